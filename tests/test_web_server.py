"""What stands around the page of `zsmld serve`: what may be asked, uploads, the server itself."""

import asyncio
import errno
import io
import json
import os
import re
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from zsmld import Predictor, ZeroShotClassifier
from zsmld.cli import main
from zsmld.cli.serve import _scenes, _shown_name
from zsmld.web import Board, Guard, Limits, Scorer, Uploads, create_app
from zsmld.web import uploads as uploads_module
from zsmld.web.uploads import file_name

# --------------------------------------------------------------------------------------------------------------- guard

Answer = tuple[int, dict[str, str], bytes]


def ask(
    app: Any, method: str, path: str, body: bytes = b"", host: str = "localhost:1", query: bytes = b"", **more: str
) -> Answer:
    """One request to an ASGI app, its path as the server hands it on: decoded."""
    headers = {"host": host, "content-length": str(len(body)), "content-type": "application/json"}
    headers |= {name.replace("_", "-"): value for name, value in more.items()}
    scope = {
        "type": "http", "method": method, "path": path, "raw_path": path.encode(), "query_string": query,
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()], "http_version": "1.1",
        "root_path": "", "scheme": "http", "server": ("127.0.0.1", 1), "client": ("127.0.0.1", 2),
        "asgi": {"version": "3.0"},
    }  # fmt: skip
    sent: list[Any] = []
    is_broken_off = headers["content-length"].isdecimal() and int(headers["content-length"]) > len(body)
    parts = [body[i : i + 1000] for i in range(0, max(len(body), 1), 1000)]

    async def run() -> None:
        async def receive() -> Any:
            if parts:
                part = parts.pop(0)
                return {"type": "http.request", "body": part, "more_body": bool(parts) or is_broken_off}
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message)

        await app(scope, receive, send)

    asyncio.run(run())
    if not sent:  # to a browser that has gone
        return 0, {}, b""
    start = sent[0]
    names = {name.decode(): value.decode() for name, value in start.get("headers", ())}
    return start["status"], names, b"".join(message.get("body", b"") for message in sent[1:])


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """Answers with what it was sent."""
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if message["type"] == "http.disconnect" or not message.get("more_body"):
            break
    status = 499 if message["type"] == "http.disconnect" else 200
    await send({"type": "http.response.start", "status": status, "headers": []})
    await send({"type": "http.response.body", "body": body})


LIMITS = Limits(0.01, max_pictures=4, max_files=5)  # 10,485 bytes a file, 1 MB and 2 MB in all


@pytest.fixture
def uploads(tmp_path: Path) -> Path:
    folder = tmp_path / "uploads"
    (folder / "abc").mkdir(parents=True)
    (folder / "abc" / "photo.png").write_bytes(b"photo")
    (tmp_path / "secret.txt").write_text("classified")
    if sys.platform != "win32":  # there, administrators alone may make links
        (folder / "abc" / "link.png").symlink_to(tmp_path / "secret.txt")
    return folder


NEEDED = ["/", "/config", "/theme.css", "/assets/index-a1.js", "/static/img/logo.svg", "/gradio_api/queue/data"]
REFUSED = [
    "/gradio_api/file=/etc/passwd", "/gradio_api/file/etc/passwd", "/file=/etc/passwd", "/gradio_api/file=photo.png",
    "/gradio_api/proxy=http://127.0.0.1:22", "/gradio_api/stream/a/b", "/gradio_api/info", "/gradio_api/openapi.json",
    "/gradio_api/runs", "/monitoring", "/gradio_api/vibe-code", "/gradio_api/custom_component/a/b/c/d", "/docs",
    "/gradio_api/deep_link", "/gradio_api/dev/reload", "/assets/../../etc/passwd", "/static/..\\..\\secret",
    "/assets//etc/passwd", "/static/./x", "/assets/a\0b", "/data/scenes/model/config.json", "/login",
]  # fmt: skip


def test_only_what_the_page_needs_is_answered(uploads: Path) -> None:
    guard = Guard(echo, Uploads(uploads, LIMITS))
    for path in NEEDED:
        status, headers, _ = ask(guard, "GET", path)
        assert status == 200 and "default-src 'self'" in headers["content-security-policy"], path
        assert ask(guard, "DELETE", path)[0] == ask(guard, "POST", path)[0] == 404, path
    for path in REFUSED:
        for method in ("GET", "HEAD", "POST", "PUT"):
            assert ask(guard, method, path)[0] == 404, path
    for path in ("/gradio_api/run/predict", "/gradio_api/call/x", "/gradio_api/component_server", "/login"):
        assert ask(guard, "POST", path)[0] == 404, path


def test_pages_have_no_options(uploads: Path) -> None:
    found: list[bytes] = []

    async def keep(scope: Any, receive: Any, send: Any) -> None:
        found.append(scope["query_string"])
        await echo(scope, receive, send)

    guard = Guard(keep, Uploads(uploads, LIMITS))
    for path in ("/", "/config", "/gradio_api/queue/data"):
        assert ask(guard, "GET", path, query=b"deep_link=../../x")[0] == 200
    assert found == [b"", b"", b"deep_link=../../x"]


def test_events_name_uploaded_files_only(uploads: Path) -> None:
    guard = Guard(echo, Uploads(uploads, LIMITS))

    def join(data: Any) -> Answer:
        return ask(guard, "POST", "/gradio_api/queue/join", json.dumps({"data": data}).encode())

    good = {"path": str(uploads / "abc" / "photo.png"), "meta": {"_type": "gradio.FileData"}}
    status, _, body = join([[good], "dog"])
    assert status == 200 and json.loads(body) == {"data": [[good], "dog"]}  # passed on as it came
    for path in (
        "/etc/passwd", str(uploads.parent / "secret.txt"), f"{uploads}/../secret.txt", f"{uploads}/abc/link.png",
        "http://127.0.0.1:1/x.png", "https://example.com/x.png", "file:///etc/passwd", str(uploads) + "-other/x.png",
        "photo.png", "a\0b", "x" * 100_000, None, 5, ["/etc/passwd"],
    ):  # fmt: skip
        assert join([[good, {**good, "path": path}]])[0] == 400, path
        assert join({"deep": [{"er": {**good, "path": path}}]})[0] == 400, path
    assert ask(guard, "POST", "/gradio_api/queue/join", b"no json")[0] == 400
    assert ask(guard, "POST", "/gradio_api/queue/join", b"[" * 100_000)[0] == 400


def test_events_have_a_limit_whatever_is_declared(uploads: Path) -> None:
    guard, join = Guard(echo, Uploads(uploads, LIMITS)), "/gradio_api/queue/join"
    most = 256 * 1024 + LIMITS.max_files * 4096
    assert ask(guard, "POST", join, b"1" + b" " * (most - 1))[0] == 200
    status, headers, said = ask(guard, "POST", join, b" " * (most + 1))
    assert status == 413 and headers["content-type"] == "application/json; charset=utf-8"
    assert json.loads(said) == {"detail": f"A request must have at most {most:,} bytes; send less at once."}
    assert ask(guard, "POST", join, b" " * (most + 1), content_length="10")[0] == 400
    assert ask(guard, "POST", join, b"1", content_length="-1")[0] == 413


def test_an_event_may_name_as_many_files_as_may_be_sent(tmp_path: Path) -> None:
    """With the longest names there are: this many were refused before in a sentence that nobody saw."""
    uploads = Uploads(tmp_path, Limits())
    paths = [tmp_path / ("a" * 32) / str(i) / ("é" * 100) for i in range(uploads.limits.max_files)]
    files = [
        {"path": str(path), "orig_name": "é" * 127, "url": f"http://photos.example.org/gradio_api/file={quote(str(path))}",
         "size": 10**7, "mime_type": "image/jpeg", "is_stream": False, "meta": {"_type": "gradio.FileData"}}
        for path in paths
    ]  # fmt: skip
    body = json.dumps({"data": [files, None, "dog", True, 0.5]}, ensure_ascii=False).encode()
    assert len(body) > 256 * 1024
    assert ask(Guard(echo, uploads), "POST", "/gradio_api/queue/join", body)[0] == 200


def test_another_page_may_send_nothing(uploads: Path) -> None:
    pytest.importorskip("python_multipart")
    guard = Guard(echo, Uploads(uploads, LIMITS), hosts=("localhost", "photos.example.org"))
    good = {"path": str(uploads / "abc" / "photo.png"), "meta": {"_type": "gradio.FileData"}}
    event = json.dumps({"data": [[good]]}).encode()
    body, kind = form({"a.png": b"a"})
    for origin, host, status in (
        ("http://localhost:7860", "localhost:7860", 200),
        ("https://photos.example.org", "photos.example.org", 200),
        ("https://Photos.Example.ORG", "photos.example.org", 200),
        ("http://localhost:3000", "localhost:7860", 403),
        ("https://evil.example", "localhost:7860", 403),
        ("https://localhost.evil.example", "localhost", 403),
        ("https://localhost@evil.example", "localhost", 403),
        ("null", "localhost:7860", 403),
        ("", "localhost:7860", 403),
        ("http://[", "localhost:7860", 403),
    ):
        assert ask(guard, "POST", "/gradio_api/queue/join", event, host, origin=origin)[0] == status, origin
        found = ask(guard, "POST", "/gradio_api/upload", body, host, content_type=kind, origin=origin)
        assert found[0] == status, origin
        assert ask(guard, "GET", "/", host=host, origin=origin)[0] == 200  # the browser gives no answer to another page
    assert ask(guard, "POST", "/gradio_api/queue/join", event)[0] == 200  # no browser


def test_a_server_has_its_own_names(uploads: Path) -> None:
    local = Guard(echo, Uploads(uploads, LIMITS))
    named = Guard(echo, Uploads(uploads, LIMITS), ("localhost", "photos.example.org"), with_addresses=True)
    for host in ("localhost", "localhost:7860", "LocalHost"):
        assert ask(local, "GET", "/", host=host)[0] == ask(named, "GET", "/", host=host)[0] == 200
    for host in ("127.0.0.1:7860", "[::1]:7860"):
        assert ask(local, "GET", "/", host=host)[0] == 200
    for host in ("photos.example.org", "photos.example.org:443", "192.168.1.5:7860", "[fe80::1]:7860", "10.0.0.1"):
        assert ask(local, "GET", "/", host=host)[0] == 403
        assert ask(named, "GET", "/", host=host)[0] == 200
    for host in (
        "evil.example", "evil.example:7860", "127.0.0.1.evil.example", "localhost.evil.example:1", "", "::1.evil", "1",
        "photos.example.org.evil.example", "[localhost]", "192.168.1.5.nip.io",
    ):  # fmt: skip
        assert ask(local, "GET", "/", host=host)[0] == ask(named, "GET", "/", host=host)[0] == 403, host
    assert b"as localhost; allow other names with --allow-host." in ask(local, "GET", "/", host="evil.example")[2]


# ------------------------------------------------------------------------------------------------------------- uploads


def form(files: dict[str, bytes], end: bytes = b"--x--\r\n", extra: bytes = b"") -> tuple[bytes, str]:
    """A body with files, and its content type."""
    parts = [
        b'--x\r\nContent-Disposition: form-data; name="files"; filename="%s"\r\nContent-Type: image/png\r\n\r\n%s\r\n'
        % (name.encode(), content)
        for name, content in files.items()
    ]
    return b"".join(parts) + extra + end, "multipart/form-data; boundary=x"


def send(uploads: Uploads, body: bytes, kind: str = "multipart/form-data; boundary=x", **more: str) -> Answer:
    return ask(Guard(echo, uploads), "POST", "/gradio_api/upload", body, content_type=kind, **more)


def files_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if not path.is_dir())


@pytest.fixture
def empty(tmp_path: Path) -> Uploads:
    pytest.importorskip("python_multipart")
    return Uploads(tmp_path, LIMITS)


def test_uploads_come_whole_and_under_their_names(empty: Uploads) -> None:
    content = bytes(range(256)) * 40
    sent = {"a.png": content, "b c (2).JPG": b"", "犬.png": b"--x", "../../up.png": b"\r\n--", "C:\\d\\e.png": b"\r\n"}
    status, headers, said = send(empty, *form(sent))
    paths = [Path(path) for path in json.loads(said)]
    assert status == 200 and headers["content-type"].startswith("application/json")
    assert [path.name for path in paths] == ["a.png", "b c (2).JPG", "犬.png", "up.png", "e.png"]
    assert [path.read_bytes() for path in paths] == list(sent.values())
    assert all(empty.holds(str(path)) for path in paths) and files_in(empty.folder) == sorted(paths)
    # The very same again is another's: neither can name the files of the other, nor lose them by the other.
    again = [Path(path) for path in json.loads(send(empty, *form(sent))[2])]
    assert not set(again) & set(paths) and len(files_in(empty.folder)) == 10


@given(st.text(max_size=300))
@example("a" * 300 + ".jpeg")
@example("a." + "b" * 300)
def test_any_name_becomes_a_file_of_the_folder(name: str) -> None:
    found = file_name(name)
    assert found == Path(found).name and 0 < len(found.encode()) <= 200 and found not in (".", "..")
    assert file_name(found) == found and not {"/", "\\", "\0"} & set(found)


def test_an_upload_that_fails_leaves_nothing(empty: Uploads) -> None:
    body, kind = form({"a.png": b"a" * 5000, "b.png": b"b" * 5000})
    field = b'--x\r\nContent-Disposition: form-data; name="note"\r\n\r\n' + b"n" * 5000 + b"\r\n"
    long_header = b"--x\r\n" + b"X-Long: " + b"y" * 9000 + b"\r\n\r\n"
    most = "An upload must have"
    for sent, more, status, said in (
        (body[:7000], {"content_length": str(len(body))}, 0, ""),  # broken off
        (body, {"content_length": "3000"}, 0, ""),  # longer than it said
        (form({"a.png": b"a"}, end=b"")[0], {}, 400, "An upload must be whole, its end is missing; send it again."),
        (form({"a.png": b"a"}, extra=field)[0], {}, 400, f"{most} files only, got a field without a file name."),
        (form({"a.png": b"a"}, extra=long_header)[0], {}, 400, "An upload must"),
        (form({"a.png": b"a"}, extra=b"--x\r\n\r\nx\r\n")[0], {}, 400, f"{most} files only"),
        (b"no form at all", {}, 400, "An upload must be a form with files, got one that cannot be read"),
        (body, {"kind": "application/json"}, 400, "An upload must be a form with files; send it as multipart"),
        (body, {"kind": "multipart/form-data"}, 400, "An upload must be a form with files; send it as"),
        (
            form({"a.png": b"", "b.png": bytes(10_486)})[0],
            {},
            413,
            "A file must have at most 0.01 MB; make it smaller.",
        ),
        (form({f"{i}.png": b"" for i in range(6)})[0], {}, 413, "At most 5 files can be sent at once; send fewer."),
        (form({"a.png": bytes(1_100_000)})[0], {}, 413, "At most 1 MB can be sent at once; send less."),
        (body, {"content_length": "-1"}, 411, "An upload must say how long it is; send its length."),
        (body, {"content_length": "x"}, 411, "An upload must say how long it is; send its length."),
    ):
        found, _, text = send(empty, sent, **({"kind": kind} | more))
        assert found == status and text.decode().startswith(said), (sent[:50], text)
        assert list(empty.folder.iterdir()) == [], sent[:50]
        assert empty.room() == LIMITS.max_total_bytes
    assert send(empty, body, kind)[0] == 200  # it goes on


def test_a_full_disk_is_a_sentence(empty: Uploads, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any, **options: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", full)
        status, _, said = send(empty, *form({"a.png": b"a"}))
    assert (status, said) == (507, b"The upload cannot be kept: No space left on device; try again later.")
    with monkeypatch.context() as patch:
        patch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 50}))
        assert send(empty, *form({"a.png": b"a"}))[0] == 507
    assert list(empty.folder.iterdir()) == [] and send(empty, *form({"a.png": b"a"}))[0] == 200


def test_all_uploads_together_have_a_limit(empty: Uploads) -> None:
    """Whoever only uploads and never asks for anything fills this much of the disk, and no more."""
    body, kind = form({f"{i}.png": bytes(10_000) for i in range(5)})
    answers = [send(empty, body, kind) for _ in range(12)]
    kept = [status for status, _, _ in answers].index(507)
    assert 2 <= kept <= 8  # a small file counts 64 KiB: 2 MB of them are 32
    assert {status for status, _, _ in answers[kept:]} == {507}
    assert answers[-1][2] == b"There is no room for more uploads at the moment; try again in a minute."
    assert len(files_in(empty.folder)) == 5 * kept
    empty.remove(json.loads(answers[0][2]))  # read: there is room again
    assert send(empty, body, kind)[0] == 200
    for path in empty.folder.iterdir():  # an hour later all are gone
        os.utime(path, (0, 0))
    assert send(empty, body, kind)[0] == 200 and len(files_in(empty.folder)) == 5


def test_what_is_on_its_way_counts_too(empty: Uploads) -> None:
    body, kind = form({"a.png": bytes(10_000)})
    guard = Guard(echo, empty)

    async def run() -> list[int]:
        held, found = asyncio.Event(), []
        headers = [(b"host", b"localhost"), (b"content-type", kind.encode())]
        scope = {"type": "http", "method": "POST", "path": "/gradio_api/upload", "query_string": b""}

        async def upload(length: int, stop: bool) -> None:
            parts = [body]

            async def receive() -> Any:
                if parts:
                    return {"type": "http.request", "body": parts.pop(), "more_body": stop}
                await held.wait()
                return {"type": "http.disconnect"}

            async def answered(message: Any) -> None:
                found.extend([message["status"]] if "status" in message else [])

            await guard({**scope, "headers": [*headers, (b"content-length", str(length).encode())]}, receive, answered)

        slow = [asyncio.create_task(upload(900_000, stop=True)) for _ in range(2)]
        await asyncio.sleep(0)
        while sum(one.received for one in empty._arriving.values()) < 2 * len(body):
            await asyncio.sleep(0)
        await upload(len(body), stop=False)  # some 100 kB are left, and this needs no more than 10
        empty.sweep()  # touches nothing that is on its way
        assert len(files_in(empty.folder)) == 3
        await upload(900_000, stop=False)
        held.set()
        await asyncio.gather(*slow)
        await upload(len(body), stop=False)
        return found

    assert asyncio.run(run()) == [200, 507, 200]
    assert len(files_in(empty.folder)) == 2


def test_a_stalled_upload_ends(empty: Uploads, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zsmld.web.uploads._STALLED", 0.05)
    body, kind = form({"a.png": bytes(10_000)})
    headers = [(b"host", b"localhost"), (b"content-type", kind.encode()), (b"content-length", b"%d" % len(body))]
    scope = {"type": "http", "method": "POST", "path": "/gradio_api/upload", "query_string": b"", "headers": headers}
    parts = [body[:5000]]

    async def receive() -> Any:
        if not parts:
            await asyncio.Event().wait()
        return {"type": "http.request", "body": parts.pop(), "more_body": True}

    async def unwanted(message: Any) -> None:
        raise AssertionError(message)

    asyncio.run(asyncio.wait_for(Guard(echo, empty)(scope, receive, unwanted), 20))
    assert list(empty.folder.iterdir()) == [] and empty.room() == LIMITS.max_total_bytes


@pytest.mark.skipif(sys.platform == "win32", reason="Windows lets administrators alone make links")
def test_leftovers_are_swept(uploads: Path) -> None:
    """Empty files that gradio makes of each event, folders whose files were read; not what waits for its event."""
    (uploads / "tmpab12").touch()
    (uploads / "read" / "0").mkdir(parents=True)
    (uploads / "link").symlink_to(uploads.parent)
    keeper = Uploads(uploads, LIMITS)
    keeper.sweep()
    assert [path.name for path in uploads.iterdir()] == ["abc"] and (uploads.parent / "secret.txt").exists()
    (uploads / "tmpab13").touch()
    assert ask(Guard(echo, keeper), "POST", "/gradio_api/queue/join", b"{}")[0] == 200
    assert [path.name for path in uploads.iterdir()] == ["abc"]
    os.utime(uploads / "abc", (0, 0))
    keeper.sweep()
    assert list(uploads.iterdir()) == [] and (uploads.parent / "secret.txt").read_text() == "classified"


def test_the_folder_may_be_swept_by_the_system(empty: Uploads) -> None:
    shutil.rmtree(empty.folder)
    assert send(empty, *form({"a.png": b"a"}))[0] == 200
    shutil.rmtree(empty.folder)
    assert ask(Guard(echo, empty), "POST", "/gradio_api/queue/join", b"{}")[0] == 200


def test_files_of_a_refused_event_are_removed(uploads: Path) -> None:
    async def busy(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 503, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})

    photo = uploads / "abc" / "photo.png"
    body = json.dumps({"data": [{"path": str(photo)}]}).encode()
    keeper = Uploads(uploads, LIMITS)
    assert ask(Guard(echo, keeper), "POST", "/gradio_api/queue/join", body)[0] == 200 and photo.exists()
    assert ask(Guard(busy, keeper), "POST", "/gradio_api/queue/join", body)[0] == 503 and not photo.exists()
    keeper.remove([str(uploads.parent / "secret.txt"), str(uploads / "abc" / "link.png"), None, "a\0b", str(uploads)])
    assert (uploads.parent / "secret.txt").exists() and uploads.exists()


def test_progress_is_told(empty: Uploads) -> None:
    upload = uploads_module._Arriving(empty.folder / "a", 10, LIMITS)
    upload.untold |= {"a.png": 5, "b.png": 7}
    empty._arriving["abc"] = upload

    async def run() -> list[bytes]:
        told: list[bytes] = []

        async def take(message: Any) -> None:
            told.append(message.get("body", b""))
            if len(told) == 3:
                del empty._arriving["abc"]

        await empty.tell({"query_string": b"upload_id=abc"}, take)
        return told

    told = [json.loads(part.removeprefix(b"data: ")) for part in asyncio.run(run()) if part]
    assert sorted((t["orig_name"], t["chunk_size"]) for t in told[:2]) == [("a.png", 5), ("b.png", 7)]
    assert told[2:] == [{"msg": "done"}]
    assert ask(Guard(echo, empty), "GET", "/gradio_api/upload_progress", query=b"upload_id=none")[0] == 200


# -------------------------------------------------------------------------------------------------- the app, and serve


@pytest.fixture
def app(make_model: Callable[..., Any], uploads: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Guard]:
    pytest.importorskip("gradio")
    scorer = Scorer(Predictor(make_model(), device="cpu", num_workers=0), limits=Limits(1, 100_000))
    for name in ("GRADIO_TEMP_DIR", "GRADIO_ANALYTICS_ENABLED", "HF_HUB_DISABLE_TELEMETRY"):
        monkeypatch.setenv(name, "")  # so that it is put back
    yield create_app(scorer, uploads, title="Shapes & <signs>", about="About $1 {it}", words="zebra")


def test_the_page_reports_home_to_nobody(app: Guard) -> None:
    assert os.environ["GRADIO_ANALYTICS_ENABLED"] == "False"
    assert os.environ["HF_HUB_DISABLE_TELEMETRY"] in ("1", "True")
    status, _, text = ask(app, "GET", "/")
    assert status == 200 and b"<signs>" not in text
    config = json.loads(ask(app, "GET", "/config")[2])
    assert config["analytics_enabled"] is False and not config.get("run_history") and not config.get("is_space")
    assert config["max_file_size"] == 2**20
    assert config["root"] == "http://localhost:1"
    assert not [d for d in config["dependencies"] if d["api_visibility"] != "private"]
    style = ask(app, "GET", "/theme.css")[2]
    assert set(re.findall(rb"url\(\s*['\"]?([a-z]+):", style)) <= {b"data"} and b"@import" not in style


def test_no_other_page_may_read(app: Guard) -> None:
    """Gradio allows any origin under names that are not local, and any local port under those that are."""
    named = Guard(app.app, app.uploads, hosts=("photos.example.org", "localhost"))
    for host, origin in (
        ("photos.example.org", "https://evil.example"),
        ("localhost:7860", "http://localhost:3000"),
        ("localhost:7860", "http://localhost:7860"),
    ):
        assert "access-control-allow-origin" in ask(app.app, "GET", "/config", host=host, origin=origin)[1]
        for path in ("/", "/config", "/theme.css", "/gradio_api/queue/data"):
            _, headers, _ = ask(named, "GET", path, host=host, origin=origin)
            assert "content-security-policy" in headers
            assert not [name for name in headers if name.lower().startswith("access-control-")], path
        assert ask(named, "OPTIONS", "/config", host=host, origin=origin, access_control_request_method="GET")[0] == 404


def test_the_examples_come_once(make_model: Callable[..., Any]) -> None:
    """Whoever sends the event of an opened page again and again does not fill the memory."""
    gr = pytest.importorskip("gradio")
    from zsmld.web.layout import build_page

    scorer = Scorer(Predictor(make_model(), device="cpu", num_workers=0), limits=Limits(max_pictures=50))
    file = io.BytesIO()
    Image.new("RGB", (9, 9)).save(file, "PNG")
    examples = [scorer.read(f"{i}.png", file.getvalue()) for i in range(3)]
    blocks = build_page(scorer, "title", "about", examples=examples)
    start = next(event for event in blocks.fns.values() if event.name == "start")
    state = next(block for block in start.outputs if isinstance(block, gr.State))
    board = Board()
    for _ in range(24):
        board = start.fn(board, "zebra", True, 0.5)[state]
        assert [picture.name for picture in board.pictures] == ["0.png", "1.png", "2.png"]
        assert len(board.predictions) == 3


def test_the_page_stands_behind_another_server(app: Guard) -> None:
    """As docs/serve.md has it: the server in front hands the name on, and says that it was asked by https."""
    behind = Guard(app.app, app.uploads, hosts=("photos.example.org",))
    config = json.loads(ask(behind, "GET", "/config", host="photos.example.org", x_forwarded_proto="https")[2])
    assert config["root"] == "https://photos.example.org"


def test_boards_do_not_grow_without_bound(app: Guard) -> None:
    blocks = app.app.routes[-1].app.get_blocks()
    assert blocks.state_holder.capacity == 100


def test_the_app_itself_serves_no_file_either(app: Guard, uploads: Path) -> None:
    """Behind the guard as well: gradio's own checks, should a route ever be opened."""
    inner = app.app
    for path in (
        uploads.parent / "secret.txt",
        Path("/etc/passwd"),
        Path(__file__),
        uploads / "abc" / "link.png",
        uploads / ".." / "secret.txt",
    ):
        status, _, body = ask(inner, "GET", f"/gradio_api/file={path}")
        assert status in (403, 404) and b"classified" not in body, path


def test_serve_says_what_is_wrong(
    model_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*arguments: str) -> str:
        assert main(["serve", *arguments, "--device", "cpu"]) == 2
        return capsys.readouterr().err

    model = ["--model", str(model_folder)]
    assert "max_pixels must be above 0, got 0" in refused(*model, "--max-pixels", "0")
    assert "max_pixels must be at most 178,956,970, beyond" in refused(*model, "--max-pixels", "500000000")
    for name in ("https://photos.example.org", "photos.example.org:443", "photos.example.org/a", "", "*"):
        said = refused(*model, "--allow-host", name)
        assert (
            f"allowed hosts must be names as they stand in the page's address, without http:// and port, got {name!r}"
            in said
        )
    assert "words must be given with --words, clip:RN50/openai knows none" in refused("--model", "clip:RN50/openai")
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "gradio", None)
        said = refused(*model, "--port", "0")
        assert said.count("\n") == 1 and 'pip install "zsmld[web]"' in said
    pytest.importorskip("gradio")
    for name in ("GRADIO_TEMP_DIR", "GRADIO_ANALYTICS_ENABLED", "HF_HUB_DISABLE_TELEMETRY"):
        monkeypatch.setenv(name, "")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        before = set(Path(tempfile.gettempdir()).glob("zsmld-serve-*"))
        said = refused(*model, "--port", str(port))
        assert f"host and port must be free on this machine, got 127.0.0.1 and {port}: " in said
        assert set(Path(tempfile.gettempdir()).glob("zsmld-serve-*")) <= before
    assert "host and port must be free" in refused(*model, "--port", "70000")


def test_serve_answers_to_its_own_names(monkeypatch: pytest.MonkeyPatch, model_folder: Path) -> None:
    """Which those are is judged by where it listens, not by how that was written."""
    pytest.importorskip("gradio")
    import uvicorn

    for name in ("GRADIO_TEMP_DIR", "GRADIO_ANALYTICS_ENABLED", "HF_HUB_DISABLE_TELEMETRY"):
        monkeypatch.setenv(name, "")
    found: list[tuple[str, set[str], bool]] = []

    def run(server: Any, sockets: list[socket.socket]) -> None:
        guard = server.config.app
        found.append((sockets[0].getsockname()[0], set(guard.hosts), guard.with_addresses))

    monkeypatch.setattr(uvicorn.Server, "run", run)
    monkeypatch.setattr("socket.gethostname", lambda: "Desk")
    model = ["--model", str(model_folder), "--device", "cpu", "--port", "0"]
    for more in ([], ["--host", "127.0.1.1", "--allow-host", "Photos.example.org"], ["--host", "0.0.0.0"]):
        assert main(["serve", *model, *more]) == 0
    local = {"localhost", "127.0.0.1", "[::1]"}
    assert found == [
        ("127.0.0.1", local, False),
        ("127.0.1.1", local | {"127.0.1.1", "photos.example.org"}, False),
        ("0.0.0.0", local | {"0.0.0.0", "desk"}, True),
    ]


def test_visitors_do_not_read_where_the_model_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "secret" / "cats").mkdir(parents=True)
    (tmp_path / "secret" / "tower.pt").touch()
    monkeypatch.chdir(tmp_path / "secret")
    for model, wanted in (
        (str(tmp_path / "secret" / "cats"), "cats"),
        (f"{tmp_path}/secret/cats/", "cats"),
        ("../secret/cats", "cats"),
        (".", "secret"),
        (f"clip:ViT-B-16/{tmp_path}/secret/tower.pt", "clip:ViT-B-16/tower.pt"),
        (f"conse:timm:{tmp_path}/secret/cats", "conse:timm:cats"),
        ("someone/cats", "someone/cats"),
        ("clip:ViT-B-16/openai", "clip:ViT-B-16/openai"),
    ):
        assert _shown_name(model) == wanted


def test_serve_tells_visitors_the_name_of_the_model_only(monkeypatch: pytest.MonkeyPatch, model_folder: Path) -> None:
    found: list[str] = []
    monkeypatch.setattr("zsmld.web.serve", lambda *arguments, about, **more: found.append(about))
    assert main(["serve", "--model", str(model_folder), "--device", "cpu"]) == 0
    assert found == [f"{model_folder.name} scores your pictures against any words."]


def test_the_scenes_page_counts_the_words_that_were_trained() -> None:
    model = ZeroShotClassifier.from_pretrained("scenes")
    assert model.vocabulary is not None and len(model.heldout_words) == 8
    said = _scenes(model)
    assert f"It was trained on {len(model.vocabulary.seen) - 8} words; the typed ones below" in said["about"]
    assert len(model.vocabulary.seen) == 80 and not set(said["typed"].split(", ")) & set(model.vocabulary.seen)
