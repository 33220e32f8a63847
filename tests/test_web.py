"""What the page of `zsmld serve` shows, without a browser; tests/acceptance/test_web_browser.py has it in one, and
test_web_server.py what stands around it."""

import csv
import io
import threading
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from itertools import islice
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
from zsmld.web import Board, Limits, Picture, Scorer
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
            scorer.attention(scored, scored.pictures[0].key, word)

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
    for word in ("dog", "zebra"):
        shown = Image.open(io.BytesIO(board.pictures[1].shown))
        wanted = explain(scorer.predictor.model, shown, [word]).overlay(word)
        assert np.array_equal(scorer.attention(scored, board.pictures[1].key, word), wanted)
    key = board.pictures[0].key
    for other in ("", "0", key[1:]):
        with pytest.raises(ValueError, match="the picture must still be on the page, it is gone; drop it again"):
            scorer.attention(scored, other, "dog")
    with pytest.raises(ValueError, match="the picture must still be on the page, it is gone; drop it again"):
        scorer.attention(board, key, "dog")


def test_a_late_click_means_what_was_clicked(scorer: Scorer, images: list[Image.Image]) -> None:
    """Words or pictures changed while the click was on its way: the same place on the page is another's now."""
    content = png(images[0])
    before = scorer.score(scorer.add(Board(), [scorer.read("a.png", content)]), ("zebra", "lamp"), with_own=False)
    wanted = scorer.attention(before, before.pictures[0].key, "lamp")
    after = scorer.score(before, ("lamp", "tree"), with_own=False)
    assert np.array_equal(scorer.attention(after, before.pictures[0].key, "lamp"), wanted)
    with pytest.raises(ValueError, match="the word must be one of those that were scored, it is not; score the words"):
        scorer.attention(after, before.pictures[0].key, "zebra")
    again = scorer.score(scorer.add(Board(), [scorer.read("a.png", content)]), ("lamp",), with_own=False)
    with pytest.raises(ValueError, match="the picture must still be on the page"):
        scorer.attention(again, before.pictures[0].key, "lamp")
    twice = scorer.add(Board(), [scorer.read("a.png", content), scorer.read("a.png", content)])
    assert len({picture.key for picture in twice.pictures}) == 2


def test_class_mode_has_fixed_words(make_model: Callable[..., Any], images: list[Image.Image]) -> None:
    model = make_model(num_classes=5)
    scorer = Scorer(Predictor(model, WORDS[:5], device="cpu", num_workers=0))
    assert not scorer.takes_words and scorer.trained_words is None
    board = scorer.score(scorer.add(Board(), [scorer.read("a.png", png(images[0]))]), ("zebra",), with_own=False)
    assert board.vocabulary is not None and board.vocabulary.words == WORDS[:5] and board.typed == ()
    assert scorer.attention(board, board.pictures[0].key, WORDS[4]).size == images[0].size
    html = results_html(board, 0.5, scorer.trained_words)
    assert "trained" not in html and "<i" not in html.replace("<img", "")
    assert "trained" in results_html(board, 0.5, ())


def test_words_that_were_held_out_are_not_trained(scorer: Scorer, board: Board) -> None:
    """They are seen words of the vocabulary, but their labels were not used."""
    assert scorer.trained_words == set(WORDS[:4])
    scorer.predictor.model.heldout_words = (WORDS[1],)
    assert scorer.trained_words == {WORDS[0], WORDS[2], WORDS[3]}
    scored = scorer.score(board, ("zebra",), with_own=True)
    assert scored.vocabulary is not None and scored.vocabulary.is_seen[1]
    tags = Reader(results_html(scored, 0.5, scorer.trained_words)).tags
    titles = {b["data-label"]: b["title"] for tag, b in tags if tag == "button" and "data-label" in b}
    assert titles == {
        str(label): "trained" if word in scorer.trained_words else "not trained"
        for label, word in enumerate(scored.vocabulary.words)
    }
    marks = [attributes for tag, attributes in tags if tag == "i"]
    assert sum("class" in mark for mark in marks) == 1 + 3 * 3  # the legend's, and three of each picture


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
    assert broken.error is not None and broken.error in results_html(scored, 0.5, WORDS)
    with pytest.raises(ValueError, match="the picture must still be on the page"):
        scorer.attention(scored, scored.pictures[3].key, WORDS[0])
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


def test_no_way_leads_beyond_the_most_pictures(scorer: Scorer, images: list[Image.Image]) -> None:
    content, num_read = png(images[0]), 0

    def read() -> Iterator[Picture]:
        nonlocal num_read
        for _ in range(9):
            num_read += 1
            yield scorer.read("a.png", content)

    board = scorer.add(scorer.add(Board(), islice(read(), 3)), read())
    assert len(board.pictures) == num_read == 4
    assert scorer.add(board, read()).pictures == board.pictures and num_read == 4


def test_uploads_are_removed_whatever_happens(
    scorer: Scorer, images: list[Image.Image], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = tmp_path / "good.png"

    def send() -> list[Path]:
        images[0].save(good)
        (tmp_path / "folder.png").mkdir(exist_ok=True)
        return [tmp_path / "folder.png", good]  # an event may name the folder of uploads itself

    board, _ = scorer.take(Board(), send())
    assert [picture.error is None for picture in board.pictures] == [False, True] and not good.exists()

    class Failed(Exception):
        pass

    def fail(*arguments: Any) -> Any:
        raise Failed

    for name, is_folder in (("add", False), ("add", True), ("read", True)):
        with monkeypatch.context() as patch:
            patch.setattr(scorer, name, fail)
            with pytest.raises(Failed):
                scorer.take(Board(), send(), is_folder)
        assert not good.exists()


def test_limits_are_above_zero() -> None:
    with pytest.raises(ValueError, match="max_pixels must be above 0, got 0; nothing could be scored"):
        Limits(max_pixels=0)
    with pytest.raises(ValueError, match="max_upload_mb must be above 0, got nan"):
        Limits(max_upload_mb=float("nan"))


def test_no_more_pixels_are_promised_than_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    said = r"max_pixels must be at most 178,956,970, beyond which Pillow reads no picture, got 178,956,971; make larger"
    with pytest.raises(ValueError, match=said):
        Limits(max_pixels=178_956_971)
    assert Limits(max_pixels=178_956_970).max_pixels == 178_956_970
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert Limits(max_pixels=10**9).max_pixels == 10**9


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
    picture = Picture(name, b"jpeg", Image.new("RGB", (1, 1)), key="k1")
    prediction = Prediction(name, words, scores, tuple(range(len(words))))
    return Board((picture,), typed, Vocabulary(words, seen=words[:1]), (prediction,))


printable = st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1).map(str.strip).filter(bool)


@given(printable, printable)
@example("<script>alert(1)</script>", '"><img src=x onerror=alert(1)>.jpg')
@example("${alert(1)}", "{{constructor}}")
@example("🦓👩‍👩‍👧", "שלום\u202e gpj.<b>")
@example("</bdi><i class=trained>", "&lt;b&gt; \u2066'`")
def test_whatever_is_written_is_text(word: str, name: str) -> None:
    plain = results_html(one_card("name", ("word",), (0.5,)), 0.5, ("word",))
    text = results_html(one_card(name, (word,), (0.5,)), 0.5, (word,))
    found, wanted = Reader(text), Reader(plain)
    assert [tag for tag, _ in found.tags] == [tag for tag, _ in wanted.tags]
    assert [set(attributes) for _, attributes in found.tags] == [set(attributes) for _, attributes in wanted.tags]
    assert found.texts == [name, word]
    assert not {"$", "{", "}"} & set(text) - {"$", "{", "}"} & set(plain) and "${" not in text and "{{" not in text
    assert Reader(f"<bdi>{escaped(word)}</bdi>").texts == [word]
    assert [tag for tag, _ in Reader(notes_html([word])).tags] == ["p"]


def test_cards_mark_what_reaches_the_threshold_and_what_was_trained() -> None:
    words, scores = ("dog", "cat", "zebra"), (0.75, 0.5, 0.25)
    tags = Reader(results_html(one_card("a.png", words, scores), 0.5, words[:1])).tags
    rows = [attributes for tag, attributes in tags if tag == "li"]
    assert [row["data-score"] for row in rows] == ["0.75", "0.5", "0.25"]
    assert [row.get("class") for row in rows] == ["reached", "reached", None]
    buttons = [attributes for tag, attributes in tags if tag == "button" and "data-label" in attributes]
    assert [b["data-label"] for b in buttons] == ["0", "1", "2"]
    assert [attributes["data-picture"] for tag, attributes in tags if tag == "article"] == ["k1"]
    assert [b["title"] for b in buttons] == ["trained", "not trained", "not trained"]
    assert [attributes["style"] for tag, attributes in tags if tag == "span" and attributes.get("class") == "bar"] == [
        "width:75.0%",
        "width:50.0%",
        "width:25.0%",
    ]


def test_typed_words_are_in_view_and_a_large_vocabulary_is_folded() -> None:
    words = tuple(f"word {i}" for i in range(500))
    scores = tuple(1 - i / 500 for i in range(500))
    text = results_html(one_card("a.png", words, scores, typed=("word 400",)), 0.5, None)
    view, _, folded = text.partition("<details>")
    assert Reader(view).texts[1:] == [*words[:8], "word 400"]
    assert Reader(folded).texts == list(words[8:108])
    assert "491 more words" in folded and "and 391 more; the download has all, at threshold 0" in folded
    assert "No pictures yet." in results_html(Board(), 0.5, ())


def test_overlays_are_whole_addresses() -> None:
    assert data_url(Image.new("RGB", (4, 4))).startswith("data:image/jpeg;base64,/9j/")
