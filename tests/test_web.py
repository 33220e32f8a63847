"""The page of `zsmld serve` without a browser; tests/acceptance/test_web_browser.py has it in one."""

import asyncio
import csv
import io
import json
import os
import re
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import WORDS
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image
from stand_ins import bomb

from zsmld import Predictor, Vocabulary
from zsmld.attention import explain
from zsmld.cli import main
from zsmld.display import data_url
from zsmld.predictor import Prediction
from zsmld.web import Board, Guard, Limits, Picture, Scorer, create_app
from zsmld.web.page import escaped, notes_html, results_html
from zsmld.web.scoring import reaching


@pytest.fixture
def scorer(make_model: Callable[..., Any]) -> Scorer:
    """Six own words, the first four of them seen; four pictures and ten words a page."""
    predictor = Predictor(make_model(), device="cpu", num_workers=0)
    return Scorer(predictor, limits=Limits(1, 100_000, max_pictures=4, max_words=10, max_word_length=12))


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def board(scorer: Scorer, images: list[Image.Image]) -> Board:
    return scorer.add(Board(), [scorer.read(f"{i}.png", png(image)) for i, image in enumerate(images[:3])])


# ------------------------------------------------------------------------------------------------------------- scoring


def test_records_are_those_of_zsmld_predict(
    scorer: Scorer, board: Board, images: list[Image.Image], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scorer.predictor.model.save_pretrained(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    for i, image in enumerate(images[:3]):
        image.save(f"{i}.png")
    scored = scorer.score(board, ("zebra", "lamp"), with_own=True)
    threshold = float(np.median([p.scores for p in scored.predictions]))
    words = ",".join([*WORDS[:6], "zebra", "lamp"])
    arguments = ["--model", "model", "--words", words, "--top-k", "8", "--threshold", repr(threshold)]
    assert main(["predict", "0.png", "1.png", "2.png", *arguments, "--output", "tags.csv", "--device", "cpu"]) == 0
    wanted = list(csv.DictReader(io.StringIO(Path("tags.csv").read_text(encoding="utf-8"))))
    found = list(csv.DictReader(io.StringIO(scorer.records(scored, threshold))))
    assert [row.keys() for row in found] == [row.keys() for row in wanted]
    for row, other in zip(found, wanted, strict=True):
        assert {key: row[key] for key in row if key != "scores"} == {key: other[key] for key in row if key != "scores"}
        assert [float(s) for s in row["scores"].split("|")] == pytest.approx(
            [float(s) for s in other["scores"].split("|")], abs=1e-5
        )
    assert 0 < sum(len(row["words"].split("|")) for row in found) < 24


def test_words_of_a_visitor_change_nobody_else(scorer: Scorer, board: Board) -> None:
    before = scorer.score(board, (), with_own=True)
    with_zebra = scorer.score(board, ("zebra", "dog"), with_own=True)
    only_lamp = scorer.score(board, ("lamp",), with_own=False)
    after = scorer.score(board, (), with_own=True)
    assert before.vocabulary == after.vocabulary == scorer.predictor.vocabulary
    assert before.predictions == after.predictions
    assert with_zebra.vocabulary is not None and only_lamp.vocabulary is not None
    assert with_zebra.vocabulary.words == (*WORDS[:6], "zebra") and only_lamp.vocabulary.words == ("lamp",)
    assert with_zebra.vocabulary.unseen == (*WORDS[4:6], "zebra")
    for plain, more in zip(before.predictions, with_zebra.predictions, strict=True):
        scores = dict(zip(more.words, more.scores, strict=True))
        assert [scores[word] for word in plain.words] == pytest.approx(plain.scores, abs=1e-5)
    assert board.predictions == () and board.vocabulary is None


def test_visitors_at_once_get_what_they_get_alone(scorer: Scorer, board: Board) -> None:
    wanted = {word: scorer.score(board, (word,), with_own=True).predictions for word in WORDS[6:]}
    found: dict[str, list[Any]] = {word: [] for word in wanted}

    def visit(word: str) -> None:
        for _ in range(4):
            scored = scorer.score(board, (word,), with_own=True)
            found[word].append((scored.vocabulary, scored.predictions))
            scorer.attention(scored, 0, 6)

    threads = [threading.Thread(target=visit, args=[word]) for word in wanted]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for word, results in found.items():
        assert len(results) == 4
        assert all(vocabulary.words[6] == word and p == wanted[word] for vocabulary, p in results)


def test_attention_is_that_of_explain(scorer: Scorer, board: Board) -> None:
    scored = scorer.score(board, ("zebra",), with_own=True)
    for label, word in ((0, "dog"), (6, "zebra")):
        shown = Image.open(io.BytesIO(board.pictures[1].shown))
        wanted = explain(scorer.predictor.model, shown, [word]).overlay(word)
        assert np.array_equal(scorer.attention(scored, 1, label), wanted)
    for position, label in ((3, 0), (-1, 0), (0, 7), (0, -1)):
        with pytest.raises(ValueError, match="must"):
            scorer.attention(scored, position, label)
    with pytest.raises(ValueError, match="the picture must still be on the page, it is gone; drop it again"):
        scorer.attention(board, 0, 0)


def test_class_mode_has_fixed_words(make_model: Callable[..., Any], images: list[Image.Image]) -> None:
    model = make_model(num_classes=5)
    scorer = Scorer(Predictor(model, WORDS[:5], device="cpu", num_workers=0))
    assert not scorer.takes_words and not scorer.knows_words
    board = scorer.score(scorer.add(Board(), [scorer.read("a.png", png(images[0]))]), ("zebra",), with_own=False)
    assert board.vocabulary is not None and board.vocabulary.words == WORDS[:5] and board.typed == ()
    assert scorer.attention(board, 0, 4).size == images[0].size
    assert "in training" not in results_html(board, 0.5, scorer.knows_words)


def test_words_as_typed(scorer: Scorer) -> None:
    assert scorer.words(" red   car, dog\nboat,,\n dog \r\n") == ("red car", "dog", "boat")
    assert scorer.words(" \n,") == ()
    assert scorer.words("犬, χθες, 🦓, ' OR 1=1") == ("犬", "χθες", "🦓", "' OR 1=1")
    for text, said in (
        (",".join(map(str, range(11))), "words must be at most 10, got 11; remove some"),
        ("a" * 13, "a word must have at most 12 characters, got 13 in “aaaaaaaaaaaaa…”; shorten it, or put commas"),
        ("half \ud83d", "words must be readable text, got 'half \\\\ud83d'; remove what is not"),
        ("a\0b", "words must be readable text, got 'a\\\\x00b'"),
    ):
        with pytest.raises(ValueError, match=said):
            scorer.words(text)


def test_words_that_cannot_be_scored_are_a_sentence(scorer: Scorer, board: Board) -> None:
    with pytest.raises(ValueError, match="words must be typed, got none; write some, separated by commas"):
        scorer.score(board, (), with_own=False)
    with pytest.raises(ValueError, match="unheard"):
        scorer.score(board, ("unheard",), with_own=True)
    assert scorer.predictor.vocabulary.words == WORDS[:6]
    with pytest.raises(ValueError, match="pictures must be scored before their words can be downloaded"):
        scorer.records(board, 0)


def test_a_word_with_a_bar_is_not_joined_by_bars(
    make_model: Callable[..., Any], make_vectors: Callable[..., Path], tmp_path: Path, images: list[Image.Image]
) -> None:
    vectors = make_vectors(tmp_path / "bars.npz", (*WORDS, "a|b"))
    scorer = Scorer(Predictor(make_model(text_encoder=f"vectors:{vectors}"), device="cpu", num_workers=0))
    board = scorer.add(Board(), [scorer.read("a.png", png(images[0]))])
    with pytest.raises(ValueError, match=r"words must not hold '\|' in .csv"):
        scorer.records(scorer.score(board, ("a|b",), with_own=True), 0)


def test_reaching_compares_as_the_scores_are() -> None:
    score = float(np.float32(0.1))  # above 0.1
    prediction = Prediction("a.png", ("dog", "cat"), (score, 0.05), (1, 0))
    assert reaching(prediction, 0.1).words == ("dog",) and reaching(prediction, 0.0).words == ("dog", "cat")
    assert reaching(Prediction("a.png", error="broken"), 0.5) == Prediction("a.png", error="broken")


# ------------------------------------------------------------------------------------------------------------ pictures


def test_a_picture_is_kept_small_and_scored_whole(scorer: Scorer, images: list[Image.Image]) -> None:
    rng = np.random.default_rng(3)
    large = Image.fromarray(rng.integers(0, 256, (40, 2100, 3), dtype=np.uint8))
    picture = scorer.read("folder/large.png", png(large))
    assert picture.name == "large.png" and picture.error is None and picture.fitted is not None
    assert Image.open(io.BytesIO(picture.shown)).size == (1024, 20)
    (wanted,) = scorer.predictor.predict(large, top_k=None)
    (found,) = scorer.score(scorer.add(Board(), [picture]), (), with_own=True).predictions
    assert (found.words, found.scores) == (wanted.words, wanted.scores)


def test_what_is_no_picture_ends_in_a_sentence(scorer: Scorer, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[int] = []
    monkeypatch.setattr("zsmld.web.scoring.load_image", lambda image: decoded.append(image.width))
    small = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n(x) run\n%%EOF\n"
    for name, content, said in (
        ("a.jpg", b"hello", "a.jpg must be a picture, its format is not known; choose a JPEG or PNG file"),
        ("a.png", small, "a.png must be a picture, its format is not known; choose a JPEG or PNG file"),
        ("a.svg", b"<svg xmlns='http://www.w3.org/2000/svg'/>", "a.svg must be a picture, its format is not known"),
        ("empty.png", b"", "empty.png must be a picture, its format is not known"),
        ("a.png", bomb(400), "a.png must have at most 100,000 pixels; make it smaller"),
        ("a.png", bomb(30_000), "a.png must have at most 100,000 pixels; make it smaller"),
        ("a.bmp", bytes(2**20 + 1), "a.bmp must have at most 1 MB; make it smaller"),
    ):
        picture = scorer.read(name, content)
        assert picture.error is not None and picture.error.startswith(said) and picture.fitted is None
    assert decoded == []  # refused by what stands in front
    monkeypatch.undo()
    half = png(Image.effect_noise((200, 200), 90))[:9000]
    assert "half.png must be a whole picture, it cannot be decoded: " in (scorer.read("half.png", half).error or "")


def test_unreadable_pictures_have_their_place(scorer: Scorer, board: Board) -> None:
    broken = scorer.read("broken.png", b"x")
    scored = scorer.score(scorer.add(board, [broken]), (), with_own=True)
    assert [p.path for p in scored.predictions] == ["0.png", "1.png", "2.png", "broken.png"]
    assert [p.error for p in scored.predictions] == [None, None, None, broken.error]
    row = list(csv.DictReader(io.StringIO(scorer.records(scored, 0))))[3]
    assert (row["path"], row["words"], row["error"]) == ("broken.png", "", broken.error)
    assert broken.error is not None and broken.error in results_html(scored, 0.5, True)
    with pytest.raises(ValueError, match="the word must be one of those that were scored"):
        scorer.attention(scored, 3, 0)
    alone = scorer.score(scorer.add(Board(), [broken]), (), with_own=True)
    assert [p.error for p in alone.predictions] == [broken.error]


def test_uploads_are_read_and_removed(scorer: Scorer, images: list[Image.Image], tmp_path: Path) -> None:
    files = []
    for number, image in enumerate(images[:6]):
        (tmp_path / str(9 - number)).mkdir()
        files.append(tmp_path / str(9 - number) / f"{number % 3}.png")
        image.save(files[-1])
    notes = tmp_path / "notes.txt"
    notes.write_text("x")
    board, said = scorer.take(Board(), [notes, *reversed(files)], is_folder=True)
    assert [picture.name for picture in board.pictures] == ["0.png", "0 (2).png", "1.png", "1 (2).png"]
    assert said == [
        "Files of the folder that are no pictures were left out: 1.",
        "A page has at most 4 pictures, 2 found no room; remove those that are here, or score many with zsmld predict.",
    ]
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    board, said = scorer.take(Board(), [files[0], files[0]])  # another page removed it
    assert [picture.error for picture in board.pictures] == ["0.png must be sent again, it is gone; drop it once more"]
    assert said == []


def test_limits_are_above_zero() -> None:
    with pytest.raises(ValueError, match="max_pixels must be above 0, got 0; nothing could be scored"):
        Limits(max_pixels=0)
    with pytest.raises(ValueError, match="max_upload_mb must be above 0, got nan"):
        Limits(max_upload_mb=float("nan"))


# ---------------------------------------------------------------------------------------------------------------- html


class Reader(HTMLParser):
    """What a browser would make of it: tags with their attributes, and texts of `bdi`."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.inside = False
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        self.inside = tag == "bdi"
        if self.inside:
            self.texts.append("")

    def handle_endtag(self, tag: str) -> None:
        self.inside = self.inside and tag != "bdi"

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.texts[-1] += data


def one_card(name: str, words: tuple[str, ...], scores: tuple[float, ...], typed: tuple[str, ...] = ()) -> Board:
    picture = Picture(name, b"jpeg", Image.new("RGB", (1, 1)))
    prediction = Prediction(name, words, scores, tuple(range(len(words))))
    return Board((picture,), typed, Vocabulary(words, seen=words[:1]), (prediction,))


printable = st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1).map(str.strip).filter(bool)


@given(printable, printable)
@example("<script>alert(1)</script>", '"><img src=x onerror=alert(1)>.jpg')
@example("${alert(1)}", "{{constructor}}")
def test_whatever_is_written_is_text(word: str, name: str) -> None:
    plain = results_html(one_card("name", ("word",), (0.5,)), 0.5, True)
    text = results_html(one_card(name, (word,), (0.5,)), 0.5, True)
    found, wanted = Reader(text), Reader(plain)
    assert [tag for tag, _ in found.tags] == [tag for tag, _ in wanted.tags]
    assert [set(attributes) for _, attributes in found.tags] == [set(attributes) for _, attributes in wanted.tags]
    assert found.texts == [name, word]
    assert not {"$", "{", "}"} & set(text) - {"$", "{", "}"} & set(plain) and "${" not in text and "{{" not in text
    assert Reader(f"<bdi>{escaped(word)}</bdi>").texts == [word]
    assert [tag for tag, _ in Reader(notes_html([word])).tags] == ["p"]


def test_cards_mark_what_reaches_the_threshold_and_what_was_seen() -> None:
    words, scores = ("dog", "cat", "zebra"), (0.75, 0.5, 0.25)
    tags = Reader(results_html(one_card("a.png", words, scores), 0.5, True)).tags
    rows = [attributes for tag, attributes in tags if tag == "li"]
    assert [row["data-score"] for row in rows] == ["0.75", "0.5", "0.25"]
    assert [row.get("class") for row in rows] == ["reached", "reached", None]
    buttons = [attributes for tag, attributes in tags if tag == "button" and "data-label" in attributes]
    assert [(b["data-picture"], b["data-label"]) for b in buttons] == [("0", "0"), ("0", "1"), ("0", "2")]
    assert [b["title"] for b in buttons] == ["seen in training", "not seen in training", "not seen in training"]
    assert [attributes["style"] for tag, attributes in tags if tag == "span" and attributes.get("class") == "bar"] == [
        "width:75.0%",
        "width:50.0%",
        "width:25.0%",
    ]


def test_typed_words_are_in_view_and_a_large_vocabulary_is_folded() -> None:
    words = tuple(f"word {i}" for i in range(500))
    scores = tuple(1 - i / 500 for i in range(500))
    text = results_html(one_card("a.png", words, scores, typed=("word 400",)), 0.5, False)
    view, _, folded = text.partition("<details>")
    assert Reader(view).texts[1:] == [*words[:8], "word 400"]
    assert Reader(folded).texts == list(words[8:108])
    assert "491 more words" in folded and "and 391 more; the download has all, at threshold 0" in folded
    assert "No pictures yet." in results_html(Board(), 0.5, True)


def test_overlays_are_whole_addresses() -> None:
    assert data_url(Image.new("RGB", (4, 4))).startswith("data:image/jpeg;base64,/9j/")


# --------------------------------------------------------------------------------------------------------------- guard

Answer = tuple[int, dict[str, str], bytes]


def ask(
    app: Any, method: str, path: str, body: bytes = b"", host: str = "localhost:1", query: bytes = b"", **more: Any
) -> Answer:
    """One request to an ASGI app, its path as the server hands it on: decoded."""
    headers = {"host": host, "content-length": str(len(body)), "content-type": "application/json"} | more
    scope = {
        "type": "http", "method": method, "path": path, "raw_path": path.encode(), "query_string": query,
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()], "http_version": "1.1",
        "root_path": "", "scheme": "http", "server": ("127.0.0.1", 1), "client": ("127.0.0.1", 2),
        "asgi": {"version": "3.0"},
    }  # fmt: skip
    sent: list[Any] = []
    parts = [body[i : i + 1000] for i in range(0, max(len(body), 1), 1000)]

    async def run() -> None:
        async def receive() -> Any:
            if parts:
                return {"type": "http.request", "body": parts.pop(0), "more_body": bool(parts)}
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message)

        await app(scope, receive, send)

    asyncio.run(run())
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


@pytest.fixture
def uploads(tmp_path: Path) -> Path:
    folder = tmp_path / "uploads"
    (folder / "abc").mkdir(parents=True)
    (folder / "abc" / "photo.png").write_bytes(b"photo")
    (tmp_path / "secret.txt").write_text("classified")
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
    guard = Guard(echo, uploads, 5000)
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

    guard = Guard(keep, uploads, 5000)
    for path in ("/", "/config", "/gradio_api/queue/data"):
        assert ask(guard, "GET", path, query=b"deep_link=../../x")[0] == 200
    assert found == [b"", b"", b"deep_link=../../x"]


def test_events_name_uploaded_files_only(uploads: Path) -> None:
    guard = Guard(echo, uploads, 5000)

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


def test_bodies_have_a_limit_whatever_is_declared(uploads: Path) -> None:
    guard = Guard(echo, uploads, 5000)
    assert ask(guard, "POST", "/gradio_api/upload", b"x" * 5000)[0] == 200
    status, _, said = ask(guard, "POST", "/gradio_api/upload", b"x" * 5001)
    assert (status, said) == (413, b"A request must have at most 5,000 bytes; send less at once.")
    lied = {"content-length": "10"}
    status, _, body = ask(guard, "POST", "/gradio_api/upload", b"x" * 9000, **lied)
    assert status == 499 and len(body) <= 5000
    assert ask(guard, "POST", "/gradio_api/queue/join", b" " * 300_000)[0] == 413
    assert ask(guard, "POST", "/gradio_api/queue/join", b" " * 300_000, **lied)[0] == 400
    assert ask(guard, "POST", "/gradio_api/upload", b"x", **{"content-length": "-1"})[0] == 413


def test_a_local_page_has_a_local_name(uploads: Path) -> None:
    local, open_to_all = Guard(echo, uploads, 5000, is_local=True), Guard(echo, uploads, 5000)
    for host in ("localhost", "localhost:7860", "127.0.0.1:7860", "[::1]:7860"):
        assert ask(local, "GET", "/", host=host)[0] == 200
    for host in ("evil.example", "evil.example:7860", "127.0.0.1.evil.example", "localhost.evil.example:1", ""):
        assert ask(local, "GET", "/", host=host)[0] == 403
        assert ask(open_to_all, "GET", "/", host=host)[0] == 200


# -------------------------------------------------------------------------------------------------- the app, and serve


@pytest.fixture
def app(scorer: Scorer, uploads: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Guard]:
    pytest.importorskip("gradio")
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
    assert not [d for d in config["dependencies"] if d["api_visibility"] != "private"]
    style = ask(app, "GET", "/theme.css")[2]
    assert set(re.findall(rb"url\(\s*['\"]?([a-z]+):", style)) <= {b"data"} and b"@import" not in style


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
    assert "words must be given with --words, clip:RN50/openai knows none" in refused("--model", "clip:RN50/openai")
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "gradio", None)
        said = refused(*model)
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


def test_serve_listens_to_this_machine_alone(monkeypatch: pytest.MonkeyPatch, model_folder: Path) -> None:
    pytest.importorskip("gradio")
    import uvicorn

    for name in ("GRADIO_TEMP_DIR", "GRADIO_ANALYTICS_ENABLED", "HF_HUB_DISABLE_TELEMETRY"):
        monkeypatch.setenv(name, "")
    found: list[tuple[str, bool]] = []

    def run(server: Any, sockets: list[socket.socket]) -> None:
        found.append((sockets[0].getsockname()[0], server.config.app.is_local))
        sockets[0].close()

    monkeypatch.setattr(uvicorn.Server, "run", run)
    model = ["--model", str(model_folder), "--device", "cpu", "--port", "0"]
    assert main(["serve", *model]) == 0
    assert main(["serve", *model, "--host", "0.0.0.0"]) == 0
    assert found == [("127.0.0.1", True), ("0.0.0.0", False)]
