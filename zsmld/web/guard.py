"""Guard: what may be asked of the server at all. Everything else that gradio could answer is refused before it.

The page needs its own files, an event queue and an upload. It needs no file of this machine, no proxy, no history, no
code that is edited in the browser: these routes of gradio do not exist here, whatever their own checks are worth.
"""

import json
import re
from collections.abc import Callable, Iterator, MutableMapping
from pathlib import Path
from typing import Any

Message = MutableMapping[str, Any]
App = Callable[[Message, Callable[[], Any], Callable[[Message], Any]], Any]

_PAGES = {"/", "/config", "/theme.css", "/manifest.json", "/favicon.ico", "/robots.txt"}
_READ = {"/gradio_api/queue/data", "/gradio_api/upload_progress", "/gradio_api/startup-events", "/gradio_api/app_id"}
_READ_BELOW = ("/assets/", "/static/", "/gradio_api/heartbeat/")
_JOIN, _UPLOAD = "/gradio_api/queue/join", "/gradio_api/upload"
_WRITE = {_JOIN, _UPLOAD}
_MAX_EVENT_BYTES = 256 * 1024

_HEADERS = {
    # The browser itself refuses whatever would go to another machine. Gradio's page compiles templates: unsafe-eval.
    "content-security-policy": "default-src 'self' data: blob: 'unsafe-inline' 'unsafe-eval'; object-src 'none'; "
    "base-uri 'self'; form-action 'self'; frame-ancestors 'self'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}
_PORT = re.compile(r":\d+$")
_LOOPBACK = {"127.0.0.1", "localhost", "[::1]"}


class Guard:
    """Stands before the page's app.

    Args:
        app: an ASGI app.
        upload_folder: the only place of which an event may name files.
        max_body_bytes: of an upload, all its files together.
        is_local: refuse requests that name another machine than this one, as a page of the web would that has made its
            own name point here.

    Example:
        >>> Guard(None, Path("/tmp/uploads"), 1000).allows("GET", "/gradio_api/file=/etc/passwd")
        False
    """

    def __init__(self, app: App | None, upload_folder: Path, max_body_bytes: int, is_local: bool = False) -> None:
        self.app, self.upload_folder, self.max_body_bytes = app, upload_folder.resolve(), max_body_bytes
        self.is_local = is_local

    def allows(self, method: str, path: str) -> bool:
        """Whether the page needs this route."""
        if any(part in ("..", ".") for part in path.split("/")) or "\\" in path or "\0" in path or "//" in path:
            return False
        if method in ("GET", "HEAD"):
            return path in _PAGES or path in _READ or path.startswith(_READ_BELOW)
        return method == "POST" and path in _WRITE

    async def __call__(self, scope: Message, receive: Callable[[], Any], send: Callable[[Message], Any]) -> None:
        """Answer, or pass on."""
        assert self.app is not None
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":  # no websockets here: a message nobody expects ends them
            await send({"type": "websocket.close", "code": 1008})
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        if self.is_local and _PORT.sub("", headers.get("host", "")) not in _LOOPBACK:
            await _refuse(send, 403, "The page must be opened as localhost; give --host to serve it to other machines.")
            return
        if not self.allows(scope["method"], scope["path"]):
            await _refuse(send, 404, "There is no such page.")
            return
        limit = self.max_body_bytes if scope["path"] == _UPLOAD else _MAX_EVENT_BYTES
        declared = headers.get("content-length", "0")
        if not declared.isdigit() or int(declared) > limit:
            await _refuse(send, 413, f"A request must have at most {limit:,} bytes; send less at once.")
            return
        receive = _limited(receive, limit)
        if scope["path"] in _PAGES:
            scope = {**scope, "query_string": b""}  # gradio would look for stored pages by it
        if scope["path"] == _JOIN:
            body = await _read(receive)
            if not all(self._is_uploaded(path) for path in _paths_in(body)):
                await _refuse(send, 400, "Files must be uploaded before they are used.")
                return
            receive = _replay(body, receive)
        await self.app(scope, receive, _with_headers(send))

    def _is_uploaded(self, path: object) -> bool:
        """Whether a file that an event names was uploaded: no other path, no link out of the folder, no address."""
        try:
            return isinstance(path, str) and Path(path).resolve().is_relative_to(self.upload_folder)
        except (OSError, ValueError):  # a name that no file can have
            return False


def _paths_in(body: bytes) -> Iterator[object]:
    """Every path that an event's data name; an address is a path that is not there."""
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        yield None
        return
    waiting = [content]
    while waiting:
        item = waiting.pop()
        if isinstance(item, dict):
            if "path" in item:
                yield item["path"]
            waiting += item.values()
        elif isinstance(item, list):
            waiting += item


def _limited(receive: Callable[[], Any], limit: int) -> Callable[[], Any]:
    """The same messages; beyond the limit the connection counts as closed, whatever length was declared."""
    received = 0

    async def limited() -> Message:
        nonlocal received
        message: Message = await receive()
        received += len(message.get("body", b""))
        return {"type": "http.disconnect"} if received > limit else message

    return limited


async def _read(receive: Callable[[], Any]) -> bytes:
    parts = []
    while True:
        message = await receive()
        parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(parts)


def _replay(body: bytes, receive: Callable[[], Any]) -> Callable[[], Any]:
    """The body once more, and then what comes."""
    held: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> Message:
        message: Message = held.pop() if held else await receive()
        return message

    return replayed


def _with_headers(send: Callable[[Message], Any]) -> Callable[[Message], Any]:
    async def sent(message: Message) -> None:
        if message["type"] == "http.response.start":
            given = [pair for pair in message.get("headers", ()) if pair[0].decode("latin-1").lower() not in _HEADERS]
            message["headers"] = given + [(name.encode(), value.encode()) for name, value in _HEADERS.items()]
        await send(message)

    return sent


async def _refuse(send: Callable[[Message], Any], status: int, sentence: str) -> None:
    headers = [(b"content-type", b"text/plain; charset=utf-8")]
    await _with_headers(send)({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": sentence.encode()})
