"""What objects show of themselves in a notebook: HTML that is whole, escaped, small, and made for any theme."""

import base64
import io
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import test_report
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from zsmld import Predictor, TextEncoder, Vocabulary
from zsmld.attention import explain
from zsmld.baseline import create_scorer
from zsmld.display import bars, chips, escaped, facts, isolated, panel, table
from zsmld.predictor.prediction import Prediction
from zsmld.recipe import Recipe
from zsmld.report import compare
from zsmld.report.headline import headline

NASTY = (
    "<script>alert(1)</script>",
    "two\nlines",
    "\"quoted\" & 'single'",
    "زرافة في السهل",
    "a $x^2$ b",
    "</div>",
    "&lt;",
)


_TAGS = {"div", "span", "bdi", "table", "thead", "tbody", "tr", "th", "td", "img", "details", "summary"}


class Shown(HTMLParser):
    """What a notebook would show: elements, attributes, and the texts inside `<bdi>` and table rows."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.open: list[str] = []
        self.texts: list[str] = []
        self.rows: list[list[str]] = []
        self.feed(source)
        self.close()
        assert self.open == [], f"{self.open} stay open"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag != "img":
            self.open.append(tag)
        if tag == "bdi":
            self.texts.append("")
        elif tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data: str) -> None:
        if "bdi" in self.open:
            self.texts[-1] += data
        if "td" in self.open or "th" in self.open:
            self.rows[-1][-1] += data

    @property
    def text(self) -> str:
        return "\n".join(self.texts)

    def pictures(self) -> list[Image.Image]:
        sources = [value for tag, name, value in self.attributes if (tag, name) == ("img", "src")]
        prefix = "data:image/jpeg;base64,"
        assert all(source.startswith(prefix) for source in sources)
        return [Image.open(io.BytesIO(base64.b64decode(source.removeprefix(prefix)))) for source in sources]


def shown(thing: object) -> Shown:
    """The parsed display of an object, checked for what holds for every one of them."""
    source = thing._repr_html_()  # type: ignore[attr-defined]
    page = Shown(source)
    assert set(page.tags) <= _TAGS
    names = {name for _, name, _ in page.attributes}
    assert names <= {"style", "class", "dir", "src", "alt", "width", "height"}, "nothing runs, nothing leads away"
    for _, name, value in page.attributes:
        if name == "style":
            assert "url(" not in value and "fixed" not in value
            # The ink is the notebook's: a colour of our own would be lost on the other theme's paper.
            assert set(re.findall(r"(?<![-\w])color:([^;]+)", value)) <= {"inherit"}
            assert not re.findall(r"#[0-9a-fA-F]{3,8}\b", value)
            assert all(float(alpha) < 0.5 for alpha in re.findall(r"rgba\([^)]*,([\d.]+)\)", value) if "back" in value)
    assert "mathjax_ignore" in source, "what stands between dollar signs is no formula"
    assert len(repr(thing).splitlines()) == 1
    return page


# -------------------------------------------------------------------------------------------------------------- pieces


@given(st.lists(st.text(max_size=400), max_size=6))
def test_any_text_comes_out_as_it_went_in(texts: list[str]) -> None:
    """Whatever is in a text, a parser finds that text and no other element."""

    def printed(text: str) -> str:
        text = "".join("\ufffd" if c in "\u202d\u202e" else c for c in text)
        text = text if len(text) <= 300 else text[:299] + "…"
        kept = "".join(
            "\ufffd" if (ord(c) < 32 and c != "\n") or 127 <= ord(c) < 160 or 0xD800 <= ord(c) < 0xE000 else c
            for c in text
        )
        return kept

    expected = [printed(text) for text in texts]
    page = Shown(table([], [texts], text=range(len(texts))))
    assert page.rows == [expected] and set(page.tags) <= {"div", "table", "tbody", "tr", "td", "bdi"}
    assert Shown(facts(*texts)).texts == expected
    assert Shown(bars(texts, [0.5] * len(texts))).texts == expected
    assert Shown(chips("", texts, seen=True)).texts[1:] == expected
    assert Shown(f'<img alt="{escaped("".join(texts))}">').attributes[0][:2] == ("img", "alt")
    assert Shown(panel("".join(texts))).texts == [printed("".join(texts))]


def test_letters_that_turn_others_around_stay_in_their_own_text() -> None:
    assert isolated("\u202egpj.exe") == "<bdi>\ufffdgpj.exe</bdi>"
    assert isolated("زرافة") == "<bdi>زرافة</bdi>"


@pytest.mark.parametrize("score", [-0.1, 0.0, 0.25, 1.0, 1.7])
def test_a_bar_is_as_long_as_its_score(score: float) -> None:
    (style,) = [value for _, name, value in Shown(bars(["dog"], [score])).attributes if "gradient" in value]
    assert set(re.findall(r"\) ([\d.]+)%", style)) == {f"{100 * min(max(score, 0), 1):.1f}"}


def test_the_module_needs_the_standard_library_only() -> None:
    code = "import sys; import zsmld.display; print([m for m in ('numpy', 'PIL', 'torch') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"


# --------------------------------------------------------------------------------------------------------- predictions


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """Large, and of noise: the worst that a JPEG can be."""
    path = tmp_path / 'a "big" <photo>.png'
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (900, 1600, 3), dtype=np.uint8)).save(path)
    return path


def test_a_prediction_shows_its_photo_and_its_words(photo: Path) -> None:
    page = shown(Prediction(str(photo), NASTY, tuple(np.linspace(1, 0, len(NASTY))), tuple(range(len(NASTY)))))
    (picture,) = page.pictures()
    assert picture.size == (320, 180)
    assert page.texts == [str(photo), *NASTY]
    assert ("img", "alt", ", ".join(NASTY[:3])) in page.attributes


def test_the_display_of_a_prediction_is_small_whatever_it_holds(photo: Path) -> None:
    words = tuple(f"{i} " + "&" * 5000 for i in range(2000))
    prediction = Prediction(str(photo), words, (0.5,) * 2000, tuple(range(2000)))
    assert len(prediction._repr_html_()) < 200_000
    assert len(shown(prediction).texts) == 1 + 12 and "and 1988 more" in prediction._repr_html_()


def test_the_photo_is_opened_when_the_prediction_is_shown(tmp_path: Path) -> None:
    path = tmp_path / "later.png"
    prediction = Prediction(str(path), ("dog",), (0.5,), (0,))
    assert f"not found: {path}" in shown(prediction).text and not shown(prediction).pictures()
    Image.new("RGB", (40, 30), "red").save(path)
    (picture,) = shown(prediction).pictures()
    assert picture.size == (40, 30) and shown(prediction).text == f"{path}\ndog"
    path.write_bytes(b"no image at all")
    assert "cannot decode" in shown(prediction).text and "dog" in shown(prediction).text


def test_a_prediction_without_photo_or_words_says_so() -> None:
    failed = shown(Prediction("a.jpg", error="cannot decode <a>.jpg\nreplace it"))
    assert failed.texts == ["a.jpg", "could not be read", "cannot decode <a>.jpg\nreplace it"]
    in_memory = shown(Prediction(None, ("dog",), (0.5,), (0,)))
    assert "zsmld.predictor.annotate(image, prediction) shows both" in in_memory.text and "dog" in in_memory.text
    assert "no words" in shown(Prediction(None)).text


def test_one_line_of_a_prediction_names_its_best_words() -> None:
    words, scores = ("a", "two\nlines", "c", "d", "e", "f"), (0.9, 0.8, 0.7, 0.6, 0.5, 0.4)
    assert repr(Prediction("a.jpg", words, scores, tuple(range(6)))) == (
        r"Prediction('a.jpg', 'a' 0.90, 'two\nlines' 0.80, 'c' 0.70, 'd' 0.60, 'e' 0.50, …; 6 words)"
    )
    assert repr(Prediction("a\n.jpg", error="not\nthere")) == r"Prediction('a\n.jpg', error='not\nthere')"
    assert repr(Prediction(None)) == "Prediction(None, no words)"


# ---------------------------------------------------------------------------------------------------------- vocabulary


def test_a_vocabulary_shows_its_words_on_their_sides() -> None:
    words = [" ".join(text.splitlines()) for text in NASTY]  # a word is one line
    descriptions = {words[0]: ["a <b>bold</b> thing", "another"]}
    page = shown(Vocabulary(words, seen=words[:3], templates=["a {} &", "{}"], descriptions=descriptions))
    assert page.texts[0] == f"Vocabulary of {len(words)} words: 3 seen, {len(words) - 3} unseen"
    assert page.texts[1:3] == ["templates: a {} & and 1 more", "words with descriptions: 1"]
    assert page.rows[0] == ["label", "word", "", "prompt"]
    assert page.rows[1] == ["0", words[0], "seen", "a <b>bold</b> thing and 1 more"]
    assert page.rows[4] == ["3", words[3], "unseen", f"a {words[3]} & and 1 more"]
    at = page.texts.index("seen"), page.texts.index("unseen")
    assert page.texts[at[0] + 1 : at[1]] == words[:3]


def test_a_long_vocabulary_is_cut_with_counts_and_shows_both_sides() -> None:
    words = [f"word {i} " + "x" * 1000 for i in range(20_000)]
    page = shown(Vocabulary(words, seen=words[:19_000]))
    assert len(Vocabulary(words, seen=words[:19_000])._repr_html_()) < 300_000
    assert "the first 60 of each side, 19880 are left out" in page.text
    assert [row[0] for row in page.rows[1:]] == [str(i) for i in (*range(60), *range(19_000, 19_060))]
    html = Vocabulary(words, seen=words[:19_000])._repr_html_()
    assert "and 18940 more" in html and "and 940 more" in html


# --------------------------------------------------------------------------------------------------------------- model


def test_a_model_shows_its_parts_and_widths(make_model) -> None:
    model = make_model()
    page = shown(model)
    cells = {row[0]: row[1:] for row in page.rows if row[0]}
    count = f"{sum(p.numel() for p in model.parameters()):,}"
    assert cells["all"] == ["on cpu", count] and cells["image encoder"][0] == "timm:test_resnet"
    assert ["", "64 × 64 px → 2 × 2 spatial embeddings of 96", ""] in page.rows
    assert "1 × (32 wide, 4 heads, feed-forward 64)" in cells["decoder"][0] and "word queries" in cells["decoder"][0]
    assert cells["text encoder"][0].endswith("embeddings of 16") and cells["scores"][0] == "sigmoid"
    assert "4 seen" in page.texts and "2 unseen" in page.texts and "red car" in page.texts


def test_models_of_every_kind_show_themselves(make_model) -> None:
    assert "class queries for 5 classes" in shown(make_model(num_classes=5)).text
    assert "no vocabulary" in shown(make_model(remember=False)).text
    model = make_model()
    model.heldout_words, model.calibration = ("dog",), {"stacking": 1.0}
    model.image_encoder.requires_grad_(False)
    page = shown(model)
    assert "sigmoid, calibrated" in page.texts and "1 seen words, for selection and calibration" in page.texts
    head = f"{sum(p.numel() for p in model.decoder.parameters()):,} trainable"
    assert next(row for row in page.rows if row[0] == "all")[2].endswith(head)


def test_a_model_that_needs_no_training_shows_itself(vectors_path: Path) -> None:
    names = ["dog", "cat", "snow", "tree"] * 250
    model = create_scorer(
        "conse:timm:test_resnet",
        text_encoder=f"vectors:{vectors_path}",
        image_encoder={"image_size": 64},
        class_names=names,
        pretrained=False,
    )
    page = shown(model)
    assert "TrainingFreeScorer, conse: no training" in page.texts and "no vocabulary" in page.texts[0]


# ------------------------------------------------------------------------------------------------- report, comparison


def test_a_report_shows_its_headline_table() -> None:
    report = test_report.make_report(unreadable=("broken.png",))
    page = shown(report)
    columns, rows = headline(report.protocols)
    assert page.rows == [columns, *rows]
    assert page.texts[0] == "gzsl on pictures & <u>words</u> (test), in percent"
    assert "external knowledge: a <em>text</em> encoder" in page.texts
    assert "1 images could not be read and are left out" in page.texts


def test_a_comparison_shows_its_differences(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0)):
        test_report.make_report(seed=seed).save(tmp_path / name)
    comparison = compare(tmp_path / "a", tmp_path / "b", num_resamples=20)
    page = shown(comparison)
    assert f"a: {tmp_path / 'a' / 'report.json'}" in page.texts and page.rows[0][1] == "a"
    assert len(repr(comparison)) < 300 and "30 images, zsl mAP +0.0, gzsl mAP +0.0" in repr(comparison)


def test_attention_shows_its_overlays(make_model) -> None:
    model = make_model()
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (600, 900, 3), dtype=np.uint8))
    words = ["dog", "cat", "red car", "beach", "boat", "tree", "snow", "bird", "zebra", "lamp", "kite", "cup"]
    found = explain(model, image, words)
    page = shown(found)
    (picture,) = page.pictures()
    assert picture.width <= 900 and "and 1 more words, see overlay" in page.texts
    assert len(found._repr_html_()) < 600_000


def test_what_has_no_display_of_its_own_is_one_line(make_model) -> None:
    model = make_model()
    for thing in (model.image_encoder, TextEncoder("minilm"), Predictor(model), Recipe.load("scenes_zsl")):
        assert len(repr(thing).splitlines()) == 1
