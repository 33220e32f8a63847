"""Uploads: files between a browser and a board. Each request has a folder of its own, and its end takes it away.

Gradio's own route leaves files behind when an upload is broken off, keeps fields without a file name in memory, and
opens all files at once; this one takes its place.
"""

import asyncio
import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterable, MutableMapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import parse_qs

from zsmld.web.limits import Limits

Message = MutableMapping[str, Any]
Receive = Callable[[], Any]
Send = Callable[[Message], Any]

_KEPT = 3600  # seconds that an upload may take, and that nobody may ask for it
_STALLED = 60  # seconds without a byte, after which an upload counts as broken off
_LEAST = 64 * 1024  # bytes that any file counts at least: names and folders need room too
_MAX_NAME_BYTES, _MAX_HEADER_BYTES = 200, 8192
_TOLD = 0.1  # seconds between two messages about the progress of an upload


class Refused(Exception):
    """An upload that cannot be taken: status and sentence of the answer."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status, self.sentence = status, sentence


class Uploads:
    """Takes uploads, and keeps them until they are read, within limits.

    Args:
        folder: where they are; an empty folder of its own.
        limits: of a file, of a request, and of everything that is kept.

    Example:
        >>> Uploads(Path("/tmp/uploads"), Limits()).holds("/etc/passwd")
        False
    """

    def __init__(self, folder: Path, limits: Limits) -> None:
        self.folder, self.limits = folder.resolve(), limits
        self._arriving: dict[str, _Arriving] = {}  # by the visitor's name for it

    def holds(self, path: object) -> bool:
        """Whether a file that an event names was uploaded: no other path, no link out of the folder, no address."""
        try:
            return isinstance(path, str) and Path(path).resolve().is_relative_to(self.folder)
        except (OSError, ValueError):  # a name that no file can have
            return False

    def remove(self, paths: Iterable[object]) -> None:
        """Take away files that nobody will read."""
        for path in paths:
            if isinstance(path, str) and self.holds(path):
                with suppress(OSError):
                    Path(path).unlink()

    def sweep(self) -> None:
        """Take away what was read, what nobody asked for, and what gradio left."""
        self.folder.mkdir(0o700, parents=True, exist_ok=True)  # systems empty their folder of temporary files
        arriving = {upload.folder for upload in self._arriving.values()}
        now = time.time()
        for path in list(self.folder.iterdir()):
            with suppress(OSError):
                if not path.is_dir() or path.is_symlink():  # gradio makes an empty file for each that an event names
                    path.unlink()
                elif path not in arriving:
                    is_empty = not any(names for _, _, names in os.walk(path))
                    if is_empty or now - path.stat().st_mtime > _KEPT:
                        shutil.rmtree(path, ignore_errors=True)

    def room(self) -> int:
        """Bytes that may still come: what is kept and what others have announced is taken off."""
        used = 0
        for folder, _, names in os.walk(self.folder):
            for name in names:
                with suppress(OSError):  # read and removed meanwhile
                    used += max(os.lstat(os.path.join(folder, name)).st_size, _LEAST)
        announced = sum(upload.declared - upload.received for upload in self._arriving.values())
        return min(self.limits.max_total_bytes - used, shutil.disk_usage(self.folder).free) - announced

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer an upload: the paths of its files, or a sentence why there are none."""
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        most, declared = self.limits.max_request_bytes, headers.get("content-length", "")
        if not declared.isdecimal():
            await answer(send, 411, "An upload must say how long it is; send its length.")
            return
        if int(declared) > most:  # nobody waits for its end
            await answer(send, 413, f"At most {most // 10**6:,} MB can be sent at once; send less.")
            return
        upload = _Arriving(self.folder / secrets.token_hex(16), int(declared), self.limits)
        name = _upload_id(scope)
        if name in self._arriving or not name:
            name = upload.folder.name
        status, content = 200, ""
        try:
            self.sweep()
            if upload.declared > self.room():
                raise Refused(507, "There is no room for more uploads at the moment; try again in a minute.")
            self._arriving[name] = upload
            content = json.dumps(await upload.arrive(headers.get("content-type", ""), receive))
        except Refused as error:
            status, content = error.status, error.sentence
        except OSError as error:
            status, content = 507, f"The upload cannot be kept: {error.strerror}; try again later."
        except _BrokenOffError:
            return  # nobody is there for an answer
        finally:
            upload.close(is_kept=status == 200 and bool(content))
            if self._arriving.get(name) is upload:
                del self._arriving[name]
        if status != 200:  # a browser reads the answer only after it has sent everything
            with suppress(_BrokenOffError):
                while upload.has_more:
                    await upload.next(receive)
        await answer(send, status, content, "text/plain" if status != 200 else "application/json")

    async def tell(self, scope: Message, send: Send) -> None:
        """The progress of an upload as server-sent events, as gradio's page expects them."""
        name, end = _upload_id(scope), time.monotonic() + 1
        while name not in self._arriving and time.monotonic() < end:  # both requests were sent at the same time
            await asyncio.sleep(0.05)
        start = [(b"content-type", b"text/event-stream"), (b"cache-control", b"no-store")]
        await send({"type": "http.response.start", "status": 200, "headers": start})
        while (upload := self._arriving.get(name)) is not None:
            while upload.untold:
                file, size = upload.untold.popitem()
                await _event(send, {"msg": "update", "orig_name": file, "chunk_size": size})
            await asyncio.sleep(_TOLD)
        await _event(send, {"msg": "done"})
        await send({"type": "http.response.body", "body": b""})


class _BrokenOffError(Exception):
    """The browser has gone, or sends nothing more."""


class _Arriving:
    """One upload while it comes: each file is written as it arrives, and nothing is kept in memory."""

    def __init__(self, folder: Path, declared: int, limits: Limits) -> None:
        self.folder, self.declared, self.limits = folder, declared, limits
        self.received, self.has_more, self.untold = 0, True, dict[str, int]()
        self._paths: list[Path] = []
        self._file: BinaryIO | None = None
        self._name, self._size, self._is_whole = "", 0, False
        self._field = self._value = self._disposition = b""
        self._header_size = 0
        self._end = time.monotonic() + _KEPT

    async def next(self, receive: Receive) -> bytes:
        """The next bytes of the body.

        Raises:
            _BrokenOffError: if there are none, though there should be.
        """
        left = min(_STALLED, self._end - time.monotonic())
        try:
            message: Message = await asyncio.wait_for(receive(), max(left, 0))
        except TimeoutError:
            raise _BrokenOffError from None
        body: bytes = message.get("body", b"")
        self.received += len(body)
        if message["type"] == "http.disconnect" or self.received > self.declared:
            raise _BrokenOffError
        self.has_more = message.get("more_body", False)
        return body

    async def arrive(self, content_type: str, receive: Receive) -> list[str]:
        """Write the files of a body.

        Returns:
            Their paths, in the order in which they came.

        Raises:
            Refused: if it is no upload, or goes beyond a limit.
        """
        from python_multipart.exceptions import FormParserError
        from python_multipart.multipart import MultipartParser, parse_options_header

        kind, options = parse_options_header(content_type)
        if kind != b"multipart/form-data" or not options.get(b"boundary"):
            raise Refused(400, "An upload must be a form with files; send it as multipart/form-data.")
        self.folder.mkdir()
        try:
            parser = MultipartParser(
                options[b"boundary"],
                {
                    "on_header_field": self._on_field,
                    "on_header_value": self._on_value,
                    "on_header_end": self._on_header_end,
                    "on_headers_finished": lambda: self._on_file(parse_options_header(self._disposition)[1]),
                    "on_part_data": self._on_data,
                    "on_part_end": self._on_part_end,
                    "on_end": self._on_end,
                },
            )
            while self.has_more:
                parser.write(await self.next(receive))
        except FormParserError as error:
            raise Refused(400, f"An upload must be a form with files, got one that cannot be read: {error}.") from error
        if not self._is_whole:
            raise Refused(400, "An upload must be whole, its end is missing; send it again.")
        return [str(path) for path in self._paths]

    def close(self, is_kept: bool) -> None:
        """The end, however it came: without success nothing stays on the disk."""
        with suppress(OSError):  # of a full disk, which has been said already
            if self._file is not None:
                self._file.close()
        if not is_kept:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _on_field(self, data: bytes, start: int, end: int) -> None:
        self._field += self._header_bytes(data, start, end)

    def _on_value(self, data: bytes, start: int, end: int) -> None:
        self._value += self._header_bytes(data, start, end)

    def _header_bytes(self, data: bytes, start: int, end: int) -> bytes:
        self._header_size += end - start
        if self._header_size > _MAX_HEADER_BYTES:
            raise Refused(400, "An upload must have short headers, got a long one; shorten the file's name.")
        return data[start:end]

    def _on_header_end(self) -> None:
        if self._field.lower() == b"content-disposition":
            self._disposition = self._value
        self._field = self._value = b""

    def _on_file(self, options: dict[bytes, bytes]) -> None:
        self._disposition, self._header_size = b"", 0
        if b"filename" not in options:  # it would have to be kept in memory
            raise Refused(400, "An upload must have files only, got a field without a file name.")
        if len(self._paths) == self.limits.max_files:
            raise Refused(413, f"At most {self.limits.max_files:,} files can be sent at once; send fewer.")
        self._name, self._size = options[b"filename"].decode("utf-8", "replace"), 0
        folder = self.folder / str(len(self._paths))  # two may have one name
        folder.mkdir()
        self._paths.append(folder / file_name(self._name))
        self._file = self._paths[-1].open("xb")

    def _on_data(self, data: bytes, start: int, end: int) -> None:
        assert self._file is not None
        self._size += end - start
        if self._size > self.limits.max_upload_bytes:
            raise Refused(413, f"A file must have at most {self.limits.max_upload_mb:g} MB; make it smaller.")
        self._file.write(data[start:end])
        self.untold[self._name] = self.untold.get(self._name, 0) + end - start

    def _on_part_end(self) -> None:
        assert self._file is not None
        self._file.close()
        self._file = None

    def _on_end(self) -> None:
        self._is_whole = True


def file_name(name: str) -> str:
    """What a file may be called here, whatever it was called there: its own name, as far as that is one.

    Example:
        >>> file_name("../../etc/pass\\0wd"), file_name(".."), len(file_name("é" * 200 + ".jpg").encode())
        ('passwd', 'picture', 200)
    """
    name = "".join(c for c in re.split(r"[/\\]", name)[-1] if c.isprintable()).strip()
    stem, suffix = os.path.splitext(name)
    if len(suffix.encode()) > 20:
        stem, suffix = name, ""
    short = stem.encode()[: _MAX_NAME_BYTES - len(suffix.encode())].decode(errors="ignore") + suffix
    return short if short.strip(".") else "picture"


async def answer(send: Send, status: int, content: str, kind: str = "text/plain") -> None:
    """A whole answer."""
    headers = [(b"content-type", f"{kind}; charset=utf-8".encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": content.encode()})


async def _event(send: Send, content: dict[str, Any]) -> None:
    await send({"type": "http.response.body", "body": f"data: {json.dumps(content)}\n\n".encode(), "more_body": True})


def _upload_id(scope: Message) -> str:
    return parse_qs(scope.get("query_string", b"").decode("latin-1")).get("upload_id", [""])[0][:64]
