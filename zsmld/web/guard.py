"""Guard: what may be asked of the server at all. Everything else that gradio could answer is refused before it.

The page needs its own files, an event queue and an upload. It needs no file of this machine, no proxy, no history, no
code that is edited in the browser: these routes of gradio do not exist here, whatever their own checks are worth.
"""

import json
import re
from collections.abc import Callable, Collection, Iterator
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

from zsmld.web.uploads import Message, Receive, Send, Uploads, answer

App = Callable[[Message, Receive, Send], Any]

_PAGES = {"/", "/config", "/theme.css", "/manifest.json", "/favicon.ico", "/robots.txt"}
_PROGRESS = "/gradio_api/upload_progress"
_READ = {"/gradio_api/queue/data", _PROGRESS, "/gradio_api/startup-events", "/gradio_api/app_id"}
_READ_BELOW = ("/assets/", "/static/", "/gradio_api/heartbeat/")
_JOIN, _UPLOAD = "/gradio_api/queue/join", "/gradio_api/upload"
_WRITE = {_JOIN, _UPLOAD}
_EVENT_BYTES, _FILE_BYTES = 256 * 1024, 4 * 1024  # of an event, and of each file it names: its path, name and address

_HEADERS = {
    # The browser itself refuses whatever would go to another machine. Gradio's page compiles templates: unsafe-eval.
    "content-security-policy": "default-src 'self' data: blob: 'unsafe-inline' 'unsafe-eval'; object-src 'none'; "
    "base-uri 'self'; form-action 'self'; frame-ancestors 'self'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}
_PORT = re.compile(r":\d+$")
LOOPBACK = ("localhost", "127.0.0.1", "[::1]")


class Guard:
    """Stands before the page's app, and answers uploads itself.

    A page of the web could make its own name point here, and so read what is here with its visitor's browser. Therefore
    a request must name this server as it is really called; numbers are safe, because no page can make them its own. And
    an event or upload that another page sends is refused.

    Args:
        app: an ASGI app.
        uploads: takes uploads; an event may name no other files.
        hosts: names, in small letters and without a port, under which this server may be asked.
        with_addresses: it may be asked under any IP address too.

    Example:
        >>> from pathlib import Path
        >>> from zsmld.web.limits import Limits
        >>> guard = Guard(None, Uploads(Path("/tmp/uploads"), Limits()))
        >>> guard.allows("GET", "/gradio_api/file=/etc/passwd"), guard.answers_to("localhost:7860")
        (False, True)
    """

    def __init__(
        self, app: App | None, uploads: Uploads, hosts: Collection[str] = LOOPBACK, with_addresses: bool = False
    ) -> None:
        self.app, self.uploads = app, uploads
        self.hosts, self.with_addresses = frozenset(hosts), with_addresses

    def answers_to(self, host: str) -> bool:
        """Whether a request's `Host` is a name of this server."""
        name = _PORT.sub("", host).lower()
        if name in self.hosts or not self.with_addresses:
            return name in self.hosts
        try:
            ip_address(name[1:-1] if name.startswith("[") and name.endswith("]") else name)
        except ValueError:
            return False
        return True

    def allows(self, method: str, path: str) -> bool:
        """Whether the page needs this route."""
        if any(part in ("..", ".") for part in path.split("/")) or "\\" in path or "\0" in path or "//" in path:
            return False
        if method in ("GET", "HEAD"):
            return path in _PAGES or path in _READ or path.startswith(_READ_BELOW)
        return method == "POST" and path in _WRITE

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer, or pass on."""
        assert self.app is not None
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":  # no websockets here: a message nobody expects ends them
            await send({"type": "websocket.close", "code": 1008})
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        path, send = scope["path"], _with_headers(send)
        refuse = _say_in_json if path == _JOIN else answer  # as the page reads it
        if not self.answers_to(headers.get("host", "")):
            known = "as localhost" if self.hosts <= set(LOOPBACK) else "under a name of this server"
            await refuse(send, 403, f"The page must be opened {known}; allow other names with --allow-host.")
            return
        if not self.allows(scope["method"], path):
            await refuse(send, 404, "There is no such page.")
            return
        if scope["method"] == "POST" and _is_foreign(headers):
            await refuse(send, 403, "Another page may send nothing here; open this page itself.")
            return
        if path == _UPLOAD:
            await self.uploads(scope, receive, send)
            return
        if path == _PROGRESS:
            await self.uploads.tell(scope, send)
            return
        most = _EVENT_BYTES + self.uploads.limits.max_files * _FILE_BYTES if path == _JOIN else _EVENT_BYTES
        declared = headers.get("content-length", "0")
        if not declared.isdecimal() or int(declared) > most:
            await refuse(send, 413, f"A request must have at most {most:,} bytes; send less at once.")
            return
        receive = _limited(receive, most)
        if path in _PAGES:
            scope = {**scope, "query_string": b""}  # gradio would look for stored pages by it
        if path == _JOIN:
            body = await _read(receive)
            paths = list(_paths_in(body))
            if not all(map(self.uploads.holds, paths)):
                await refuse(send, 400, "Files must be uploaded before they are used.")
                return
            self.uploads.sweep()
            receive, send = _replay(body, receive), self._or_remove(paths, send)
        await self.app(scope, receive, send)

    def _or_remove(self, paths: list[object], send: Send) -> Send:
        """The same answer; if it is that the event is refused, nobody will read its files."""

        async def sent(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] >= 400:
                self.uploads.remove(paths)
            await send(message)

        return sent


def _is_foreign(headers: dict[str, str]) -> bool:
    """Whether a page of another server sent it. Programs that are no browsers name no origin."""
    if "origin" not in headers:
        return False
    try:
        return urlsplit(headers["origin"]).netloc.lower() != headers.get("host", "").lower()
    except ValueError:  # no address at all
        return True


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


def _limited(receive: Receive, limit: int) -> Receive:
    """The same messages; beyond the limit the connection counts as closed, whatever length was declared."""
    received = 0

    async def limited() -> Message:
        nonlocal received
        message: Message = await receive()
        received += len(message.get("body", b""))
        return {"type": "http.disconnect"} if received > limit else message

    return limited


async def _read(receive: Receive) -> bytes:
    parts = []
    while True:
        message = await receive()
        parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(parts)


def _replay(body: bytes, receive: Receive) -> Receive:
    """The body once more, and then what comes."""
    held: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> Message:
        message: Message = held.pop() if held else await receive()
        return message

    return replayed


def _with_headers(send: Send) -> Send:
    """The same answers with our headers, and without those by which gradio lets pages of other servers read them."""

    async def sent(message: Message) -> None:
        if message["type"] == "http.response.start":
            given = [pair for pair in message.get("headers", ()) if _is_kept(pair[0].decode("latin-1").lower())]
            message["headers"] = given + [(name.encode(), value.encode()) for name, value in _HEADERS.items()]
        await send(message)

    return sent


def _is_kept(header: str) -> bool:
    return header not in _HEADERS and not header.startswith("access-control-")


async def _say_in_json(send: Send, status: int, sentence: str) -> None:
    await answer(send, status, json.dumps({"detail": sentence}), "application/json")
