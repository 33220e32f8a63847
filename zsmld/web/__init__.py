"""Door: the page of `zsmld serve`. Drop pictures, type words, see scores and where the model looked.

scoring   pictures, words and scores of one visitor
page      results as HTML
layout    what stands where on the page, in gradio
uploads   files between a browser and a board
limits    what a visitor may ask for
guard     what may be asked of the server at all
"""

import logging
import os
import re
import signal
import socket
import tempfile
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from ipaddress import ip_address
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from zsmld.predictor import Predictor
from zsmld.text import TextEncoder
from zsmld.web.guard import LOOPBACK, Guard
from zsmld.web.limits import Limits
from zsmld.web.scoring import Board, Picture, Scorer
from zsmld.web.uploads import Uploads

if TYPE_CHECKING:
    import uvicorn

    from zsmld.model import ZeroShotClassifier

__all__ = ["Board", "Guard", "Limits", "Picture", "Scorer", "Uploads", "create_app", "serve"]


def create_app(
    scorer: Scorer,
    upload_folder: Path,
    title: str = "zsmld",
    about: str = "",
    words: str = "",
    examples: Sequence[Picture] = (),
    hosts: Collection[str] = LOOPBACK,
    with_addresses: bool = False,
) -> Guard:
    """The page as an ASGI app, for `serve` or for another server.

    Args:
        scorer: does the work.
        upload_folder: where uploads are until they are read; an empty folder of its own, and the only place of which
            an event may name files. Gradio takes it from the environment, where this sets it.
        title: of the page.
        about: a sentence on what scores here.
        words: that stand in the box at the beginning.
        examples: pictures that are there at the beginning.
        hosts: names, in small letters and without a port, under which the page may be opened.
        with_addresses: it may be opened under any IP address too.

    Raises:
        ValueError: without the extra `web`.
    """
    # Before gradio is imported: it and the Hub's client would report home.
    os.environ.update(GRADIO_ANALYTICS_ENABLED="False", HF_HUB_DISABLE_TELEMETRY="1")
    os.environ["GRADIO_TEMP_DIR"] = str(upload_folder)
    try:
        import gradio as gr
        from fastapi import FastAPI
    except ImportError as error:
        raise ValueError(
            f'gradio must be installed for the page, it is not ({error}); pip install "zsmld[web]"'
        ) from error
    from zsmld.web import page
    from zsmld.web.layout import build_page

    default = scorer.predictor.default_threshold
    blocks = build_page(scorer, title, about, words, examples, default if isinstance(default, float) else 0.5)
    fonts = ["ui-sans-serif", "system-ui", "sans-serif"]  # the visitor's own: none is fetched
    theme = gr.themes.Default(primary_hue="blue", font=fonts, font_mono=["ui-monospace", "monospace"])
    theme.set(body_text_color_subdued="*neutral_500")
    app = gr.mount_gradio_app(
        FastAPI(openapi_url=None),
        blocks,
        path="/",
        allowed_paths=[],
        max_file_size=scorer.limits.max_upload_bytes,
        show_error=False,
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
        theme=theme,
        css=page.STYLE,
    )
    return Guard(app, Uploads(upload_folder, scorer.limits), hosts, with_addresses)


def serve(
    model: "ZeroShotClassifier",
    words: Iterable[str] | None = None,
    device: str = "auto",
    host: str = "127.0.0.1",
    port: int = 7860,
    limits: Limits | None = None,
    allowed_hosts: Iterable[str] = (),
    title: str = "zsmld",
    about: str = "",
    typed: str = "",
    examples: Sequence[tuple[str, bytes]] = (),
    on_start: Callable[[str], Any] | None = None,
) -> None:
    """Serve the page until Ctrl-C or SIGTERM; then take away what was written for it, and return.

    Args:
        model: scores.
        words: can be had besides the typed ones; default those of the model.
        device: "auto", "cpu", "cuda" or "mps".
        host: address to listen on. The default can be reached from this machine alone.
        port: 0 takes any that is free.
        limits: of what a visitor may ask for.
        allowed_hosts: names under which the page may be opened besides its own, such as that of a server in front.
            Listening to this machine alone its own are localhost and the host; else those, this machine's name, and all
            IP addresses.
        title: of the page.
        about: a sentence on what scores here.
        typed: words that stand in the box at the beginning.
        examples: names and bytes of picture files that are there at the beginning.
        on_start: called with the page's address once it answers.

    Raises:
        ValueError: without the extra `web`, if an allowed host is no name, or as `Predictor`.
        OSError: if the port is taken, or there is no such address here.
    """
    allowed = _checked_hosts(allowed_hosts)
    with _deaf_at_the_end() as deafen, tempfile.TemporaryDirectory(prefix="zsmld-serve-") as folder:
        uploads = Path(folder, "uploads")
        uploads.mkdir()
        encoder = None
        if model.text_encoder is not None and model.decoder.text_dim is not None:
            # With a cache of its own: what visitors type does not stay.
            encoder = TextEncoder(model.text_encoder, device, cache_dir=Path(folder, "words"))
        predictor = Predictor(model, words, device, num_workers=0, text_encoder=encoder)
        scorer = Scorer(predictor, encoder, limits)
        pictures = [scorer.read(name, content) for name, content in examples]
        with _listen(host, port) as listening:
            app = create_app(scorer, uploads, title, about, typed, pictures, *_names(listening, host, allowed))
            server = _server(app, on_start, f"http://{_shown(host)}:{listening.getsockname()[1]}/")
            deafen()
            server.run(sockets=[listening])


@contextmanager
def _deaf_at_the_end() -> Iterator[Callable[[], None]]:
    """From the call of what it gives to the end of the block no signal is heard: a second Ctrl-C would leave files.

    But for uvicorn's own time: it sets its handlers, and at its end puts back those that it found.
    """
    former: dict[int, Any] = {}

    def deafen() -> None:
        if threading.current_thread() is threading.main_thread():  # others may not set handlers
            former.update({number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)})

    try:
        yield deafen
    finally:
        for number, handler in former.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)  # None: it was not set by Python


def _server(app: Guard, on_start: Callable[[str], Any] | None, address: str) -> "uvicorn.Server":
    import uvicorn

    class Announced(uvicorn.Server):
        """Says when it answers, and ends at the first signal, however many come: without a word about it."""

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if self.started and on_start is not None:
                on_start(address)

        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            self.should_exit = True
            # Pages that are open lose their connections now, which is no error to report.
            logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)

    # Pages hold a connection open for as long as they are open: at the end nobody waits for them.
    return Announced(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1, ws="none"))


def _listen(host: str, port: int) -> socket.socket:
    try:
        if not 0 <= port < 65536:  # other numbers would be taken modulo this one
            raise OSError("there is no such port")
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, protocol)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
    except OSError as error:
        raise OSError(
            f"host and port must be free on this machine, got {host} and {port}: {error}; choose others with --host "
            f"and --port"
        ) from error
    return listening


def _checked_hosts(names: Iterable[str]) -> list[str]:
    found = [name.lower() for name in names]
    for name in found:
        if not re.fullmatch(r"[\w.-]+|\[[0-9a-f:.]+\]", name):
            raise ValueError(
                f"allowed hosts must be names as they stand in the page's address, without http:// and port, got "
                f"{name!r}; write for instance photos.example.org"
            )
    return found


def _names(listening: socket.socket, host: str, allowed: Iterable[str]) -> tuple[set[str], bool]:
    """Names under which the page may be opened, and whether it may be under any address."""
    names = {*LOOPBACK, _shown(host).lower(), *allowed}
    if ip_address(listening.getsockname()[0].partition("%")[0]).is_loopback:
        return names, False
    return {*names, socket.gethostname().lower()}, True


def _shown(host: str) -> str:
    return f"[{host}]" if ":" in host else host
