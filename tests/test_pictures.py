"""Predictions to look at: annotated photos and contact sheets, whatever the words and paths are."""

import base64
import io
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urljoin, urlparse

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageFont

from zsmld.images import lettering
from zsmld.images.lettering import Lettering
from zsmld.predictor import Prediction
from zsmld.predictor.pictures import ContactSheet, annotate, write_contact_sheet

law = settings(max_examples=25)
BAR = (188, 211, 234)
anything = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30)


def prediction(words=("dog", "zebra"), scores=None, path=None, **options):
    scores = tuple(1 / (i + 2) for i in range(len(words))) if scores is None else scores
    return Prediction(path, tuple(words), tuple(scores), tuple(range(len(words))), **options)


def photo(width=400, height=300, colour=(0, 90, 0)):
    return Image.new("RGB", (width, height), colour)


# ----------------------------------------------------------------------------------------------------- annotate


@law
@given(st.integers(1, 1500), st.integers(1, 1500), st.lists(anything, max_size=4), st.integers(64, 400))
def test_the_photo_stands_at_the_upper_left_with_its_proportions(width, height, words, image_size):
    result = annotate(photo(width, height), prediction(words), image_size)
    scale = min(1, image_size / max(width, height))
    shown = max(1, round(width * scale)), max(1, round(height * scale))
    assert result.mode == "RGB"
    assert result.width >= shown[0] and result.height >= shown[1]
    pixels = np.asarray(result)
    assert (pixels[: shown[1], : shown[0]] == (0, 90, 0)).all()
    assert ((pixels == (0, 90, 0)).all(2)).sum() == shown[0] * shown[1]


@law
@given(st.lists(st.floats(0, 1), min_size=1, max_size=6), st.sampled_from([(500, 300), (200, 500)]))
def test_each_bar_is_as_long_as_its_score(scores, size):
    """On a row without letters: its lowest line of pixels."""
    result = np.asarray(annotate(photo(*size), prediction(["."] * len(scores), scores)))
    panel = result[size[1] :] if size[0] > size[1] else result[:, size[0] :]
    tracks = (panel == BAR).all(2) | (panel == (238, 241, 245)).all(2)
    rows = np.flatnonzero(tracks.any(1) & ~np.r_[tracks.any(1)[1:], False])  # the last of each track
    assert len(rows) == len(scores)
    for row, score in zip(rows, scores, strict=True):
        assert (panel[row] == BAR).all(1).sum() == round(score * tracks[row].sum())


def test_words_beyond_the_limit_are_counted(monkeypatch):
    drawn = spy_on_texts(monkeypatch)
    annotate(photo(), prediction([f"word{i}" for i in range(12)]), max_words=10)
    assert "word9" in drawn and "word10" not in drawn and "and 2 more" in drawn
    drawn.clear()
    annotate(photo(), prediction([f"word{i}" for i in range(10)]), max_words=10)
    assert not [text for text in drawn if "more" in text]
    drawn.clear()
    annotate(photo(), prediction(()))
    assert drawn == ["no words"]


def spy_on_texts(monkeypatch):
    drawn, original = [], Lettering.draw

    def draw(self, canvas, x, y, text, colour):
        drawn.append(text)
        assert x >= 0
        assert x + self.width(text) <= canvas.im.size[0], text
        return original(self, canvas, x, y, text, colour)

    monkeypatch.setattr(Lettering, "draw", draw)
    return drawn


@pytest.mark.parametrize("size", [(640, 480), (2000, 30), (30, 2000), (16, 16)])
def test_no_text_leaves_the_picture(monkeypatch, size):
    drawn = spy_on_texts(monkeypatch)
    words = ["a word that goes on and on " * 8, "w" * 300, "犬" * 200, "🦄" * 50, "كلب " * 80]
    annotate(photo(*size), prediction(words))
    assert len(drawn) == 2 * len(words)
    assert sum(text.endswith("…") for text in drawn) == len(words)


def test_an_error_gives_a_grey_card_that_says_it(monkeypatch):
    drawn = spy_on_texts(monkeypatch)
    result = annotate(None, Prediction("a.jpg", error="image must be readable, cannot decode a.jpg"))
    assert " ".join(drawn) == "image must be readable, cannot decode a.jpg"
    assert result.getpixel((2, 2)) == (228, 228, 228)


def test_a_photo_that_went_away_leaves_its_words(monkeypatch, tmp_path):
    drawn = spy_on_texts(monkeypatch)
    annotate(None, prediction(path=str(tmp_path / "gone.jpg")))
    assert {"dog", "zebra", "0.50"} <= set(drawn)
    assert any("image must be an existing file" in text for text in drawn)


@pytest.mark.parametrize("content", [b"", b"broken", b"\x89PNG\r\n\x1a\n broken"])
def test_a_broken_file_is_a_card_too(tmp_path, content):
    (tmp_path / "a.jpg").write_bytes(content)
    assert annotate(None, prediction((), path=str(tmp_path / "a.jpg"))).getpixel((2, 2)) == (228, 228, 228)
    assert annotate(content, prediction(())).getpixel((2, 2)) == (228, 228, 228)


def test_a_large_jpeg_is_reduced_as_it_is_decoded_and_looks_the_same(tmp_path):
    rng = np.random.default_rng(0)
    large = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize(
        (2400, 1800), Image.Resampling.BICUBIC
    )
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    large.save(tmp_path / "a.jpg", quality=95, exif=exif)
    upright = large.rotate(270, expand=True)
    expected = np.asarray(upright.resize((225, 300), Image.Resampling.LANCZOS), float)
    for source in (None, (tmp_path / "a.jpg").read_bytes(), tmp_path / "a.jpg", upright):
        result = np.asarray(annotate(source, prediction(path=str(tmp_path / "a.jpg")), 300), float)[:300, :225]
        assert np.abs(result - expected).mean() < 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 10}, "image_size must be at least 64 pixels, got 10"),
        ({"max_words": 0}, "max_words must be at least 1, got 0"),
        ({"font_path": "gone.ttf"}, "font_path must be an existing font, not found: gone.ttf"),
        ({"image": None}, "image must be given for a prediction without a path"),
    ],
)
def test_annotate_refuses(options, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        annotate(**{"image": photo(), "prediction": prediction()} | options)


# ----------------------------------------------------------------------------------------------------- lettering


def test_a_file_that_is_no_font_is_refused(tmp_path):
    (tmp_path / "a.ttf").write_text("not a font")
    with pytest.raises(ValueError, match="font_path must be a TrueType or OpenType font"):
        Lettering(16, tmp_path / "a.ttf")
    with pytest.raises(ValueError, match="size must be at least 6 pixels to be read, got 5"):
        Lettering(5)


@law
@given(anything, st.integers(20, 300))
def test_a_shortened_text_fits_and_is_as_long_as_can_be(text, width):
    letters = Lettering(14)
    short = letters.shorten(text, width)
    assert letters.width(short) <= width
    if short != text:
        kept = short[:-1]
        assert short.endswith("…") and text.startswith(kept)
        longer = text[: len(kept) + 1]
        assert letters.width(longer.rstrip() + "…") > width or longer.rstrip() == kept


@law
@given(st.lists(st.text("abcdefgh", min_size=1, max_size=40), max_size=8), st.integers(60, 300), st.integers(1, 12))
def test_wrapped_lines_fit_and_hold_the_words_in_order(words, width, max_lines):
    letters, text = Lettering(14), " ".join(words)
    lines = letters.wrap(text, width, max_lines)
    assert len(lines) <= max_lines
    assert all(letters.width(line) <= width for line in lines)
    said = "".join(lines).replace(" ", "")
    whole = text.replace(" ", "")
    assert said == whole or (len(lines) == max_lines and said.endswith("…") and whole.startswith(said[:-1]))


def shapes(text, size=20, **options):
    """What a text looks like."""
    picture = Image.new("L", (600, 60), 255)
    Lettering(size, **options).draw(ImageDraw.Draw(picture), 5, 40, text, 0)
    return picture.tobytes()


def test_plain_text_looks_as_pillow_draws_it():
    for text in ("zebra crossing", "собака", "ζέβρα", "naïve café"):
        expected = Image.new("L", (600, 60), 255)
        font = ImageFont.truetype(lettering._dejavu(), 20)
        ImageDraw.Draw(expected).text((5, 40), text, fill=0, font=font, anchor="ls")
        assert shapes(text) == expected.tobytes()


def test_characters_without_a_font_become_names_or_boxes(monkeypatch):
    monkeypatch.setattr(lettering, "_installed_fonts", lambda: ())
    monkeypatch.setattr(lettering, "_FOUND", [])
    lettering._installed.cache_clear()
    assert shapes("🦄 horn") == shapes("[unicorn face] horn")
    assert shapes("犬と") == shapes("□□")
    assert shapes("犬") != shapes("")
    assert shapes("a\ufe0f\u200db") == shapes("ab")  # variation selector, joiner
    assert shapes("a\nb\tc\x00d") == shapes("a b c d")
    lettering._installed.cache_clear()


def test_an_installed_font_or_one_that_is_given_draws_what_dejavu_lacks(monkeypatch):
    """matplotlib's last resort has a shape for every character; here it stands for a font of the machine."""
    last = str(Path(lettering._dejavu()).parent / "LastResortHE-Regular.ttf")
    if not Path(last).is_file():
        pytest.skip("matplotlib has no last resort font")
    boxes = shapes("□□")
    monkeypatch.setattr(lettering, "_installed_fonts", lambda: (last,))
    lettering._installed.cache_clear()
    assert shapes("犬と") != boxes
    assert shapes("犬と") == shapes("犬と", font_path=last)
    assert shapes("dog") != shapes("dog", font_path=last)
    monkeypatch.setattr(lettering, "_FOUND", [])
    lettering._installed.cache_clear()


# ------------------------------------------------------------------------------------------------- contact sheet


class Page(HTMLParser):
    """What a browser would find on a page: cards, links, scripts, and everything it would load."""

    def __init__(self, path):
        super().__init__()
        self.cards, self.links, self.loaded, self.scripts, self.options, self.tags = [], [], [], 0, [], set()
        self.open = []
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        assert self.open == [], self.open

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.add(tag)
        assert not [name for name in attributes if name.startswith("on")]
        if tag not in ("meta", "input", "img", "option", "br"):
            self.open.append(tag)
        if tag == "figure":
            self.cards.append({"text": "", "words": [], "scores": [], "src": None, "href": None, "alt": None})
        if tag == "img":
            self.cards[-1] |= {"src": attributes["src"], "alt": attributes["alt"]}
        if tag == "a":
            if attributes.get("class") == "photo":
                self.cards[-1]["href"] = attributes["href"]
            else:
                self.links.append((attributes["rel"], attributes["href"]))
        if tag == "option":
            self.options.append(attributes["value"])
        self.scripts += tag == "script"
        self.loaded += [attributes[name] for name in ("src", "data", "srcset") if name in attributes]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "figure" in self.open:
            self.cards[-1]["text"] += data
            if self.open[-1] == "bdi" and "li" in self.open:
                self.cards[-1]["words"].append(data)
            if self.open[-1] == "b":
                self.cards[-1]["scores"].append(data)


HOSTILE = [
    "<script>alert(1)</script>",
    '" onload="alert(1)',
    "' onclick='alert(1)",
    "</figure></main>",
    "$title ${cards}",
    "&lt;b&gt; & &amp;",
    "line\nbreak",
    "كلب صغير",
    "\u202egpj.exe",
    "]]><!-- -->",
    "{{7*7}} \\u003c",
    "javascript:alert(1)",
]


def test_words_paths_and_errors_come_out_as_they_are_and_nothing_else_happens(tmp_path):
    with ContactSheet(tmp_path / "sheet.html", title="<i>&\"'") as sheet:
        for text in HOSTILE:
            sheet.add(prediction([text, "dog"], path=text), photo())
            sheet.add(Prediction(text, error=text))
    (path,) = sheet.pages
    page = Page(path)
    head = "html head meta title style body header h1 bdi span label input datalist option"
    assert page.scripts == 1
    body = "main figure div img figcaption p ol li b footer script"
    assert page.tags <= set(f"{head} {body}".split())
    assert [card["words"] for card in page.cards] == [w for t in HOSTILE for w in ([t, "dog"], [])]
    assert all(text in card["text"] for text, card in zip(HOSTILE, page.cards[::2], strict=True))
    assert all(card["text"].count(text) == 2 for text, card in zip(HOSTILE, page.cards[1::2], strict=True))
    assert sorted(page.options) == sorted([*HOSTILE, "dog"])
    assert all(address.startswith("data:image/jpeg;base64,") for address in page.loaded)
    policy = re.search(r'content="(default-src[^"]*)"', path.read_text(encoding="utf-8"))
    assert policy and policy[1].startswith("default-src 'none'; img-src data:")


@law
@given(anything, anything)
def test_any_word_and_path_can_be_read_back(tmp_path_factory, word, path):
    folder = tmp_path_factory.mktemp("sheet")
    with ContactSheet(folder / "sheet.html") as sheet:
        sheet.add(prediction([word], path=path), photo(8, 8))
    (card,) = Page(sheet.pages[0]).cards
    visible = "".join("\ufffd" if (ord(c) < 32 and c != "\n") or 127 <= ord(c) < 160 else c for c in word)
    assert card["words"] == [visible]


def test_bytes_of_a_path_that_are_no_text_do_not_end_the_sheet(tmp_path):
    with ContactSheet(tmp_path / "sheet.html") as sheet:
        sheet.add(prediction(path="caf\udce9.jpg"), photo())
    assert "caf\ufffd.jpg" in Page(sheet.pages[0]).cards[0]["text"]


def test_thumbnails_are_the_photos_and_lead_to_them(tmp_path):
    folder = tmp_path / "photos #1 & 100%"
    folder.mkdir()
    for name, colour in (("a b?.png", (200, 0, 0)), ("javascript:x.png", (0, 0, 200))):
        photo(800, 400, colour).save(folder / name)
    paths = sorted(folder.iterdir())
    pages = write_contact_sheet((prediction(path=str(p)) for p in paths), tmp_path / "out" / "sheet.html")
    assert pages == [tmp_path / "out" / "sheet.html"]
    for path, card in zip(paths, Page(pages[0]).cards, strict=True):
        thumbnail = Image.open(io.BytesIO(base64.b64decode(card["src"].partition(",")[2])))
        assert thumbnail.size == (320, 160)
        assert np.abs(np.asarray(thumbnail, int) - np.asarray(Image.open(path), int)[0, 0]).max() < 10
        address = urlparse(urljoin(pages[0].as_uri(), card["href"]))
        assert address.scheme == "file" and Path(unquote(address.path)).resolve() == path.resolve()
        assert card["scores"] == ["0.50", "0.33"] and card["alt"] == "dog, zebra"


@pytest.mark.parametrize(("count", "sizes"), [(0, [0]), (1, [1]), (3, [3]), (4, [3, 1]), (7, [3, 3, 1])])
def test_pages_hold_every_image_once_in_order_and_link_to_each_other(tmp_path, count, sizes):
    path = tmp_path / "sheet.html"
    with ContactSheet(path, page_size=3) as sheet:
        for number in range(count):
            sheet.add(prediction([f"word{number}"]), photo(8, 8))
    names = ["sheet.html", *(f"sheet-{n}.html" for n in range(2, len(sizes) + 1))]
    assert [page.name for page in sheet.pages] == names
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(names)
    pages = [Page(page) for page in sheet.pages]
    assert [len(page.cards) for page in pages] == sizes
    assert [card["words"] for page in pages for card in page.cards] == [[f"word{i}"] for i in range(count)]
    for number, page in enumerate(pages):
        before, after = names[number - 1 : number] if number else [], names[number + 1 : number + 2]
        expected = [*(("prev", name) for name in before), *(("next", name) for name in after)]
        assert page.links == expected * 2  # above and below


def test_nothing_appears_under_its_name_before_the_end_and_an_exception_leaves_what_was_there(tmp_path):
    path = tmp_path / "sheet.html"
    path.write_text("of yesterday")
    with pytest.raises(KeyError), ContactSheet(path, page_size=2) as sheet:
        for _ in range(5):
            sheet.add(prediction(), photo(8, 8))
            assert path.read_text() == "of yesterday"
        raise KeyError
    assert [p.name for p in tmp_path.iterdir()] == ["sheet.html"]
    assert path.read_text() == "of yesterday"
    with ContactSheet(path) as sheet:
        sheet.add(prediction(), photo(8, 8))
    assert len(Page(path).cards) == 1
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask()


def test_what_a_killed_process_left_goes_away_and_pages_are_told_before_they_appear(tmp_path):
    path, told = tmp_path / "sheet.html", []
    (tmp_path / ".sheet.html.partial").mkdir()
    (tmp_path / ".sheet.html.partial" / "sheet-9.html").write_text("of a killed one")

    def tell(unfinished, page):
        told.append(page.name)
        assert unfinished.read_text(encoding="utf-8").startswith("<!") and not page.exists()

    with ContactSheet(path, page_size=1, on_page=tell) as sheet:
        for _ in range(2):
            sheet.add(prediction(), photo(8, 8))
    assert told == ["sheet-2.html", "sheet.html"]
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(told)


def umask():
    import os

    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_memory_is_that_of_one_page_however_many_images(tmp_path):
    import tracemalloc

    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (128, 128, 3), dtype=np.uint8))
    peaks = []
    for pages in (2, 12):
        tracemalloc.start()
        with ContactSheet(tmp_path / f"{pages}.html", page_size=8) as sheet:
            for _ in range(8 * pages):
                sheet.add(prediction(), picture)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert len(sheet.pages) == pages
    assert peaks[1] < 1.3 * peaks[0]


def test_unreadable_images_are_counted_on_their_page(tmp_path):
    with ContactSheet(tmp_path / "sheet.html", page_size=2) as sheet:
        sheet.add(Prediction("a.jpg", error="broken"))
        sheet.add(prediction(path=str(tmp_path / "gone.jpg")))
        sheet.add(prediction(), photo())
    first, second = (page.read_text(encoding="utf-8") for page in sheet.pages)
    assert "Images 1 to 2, 2 of them could not be read" in first
    assert "Images 3 to 3<" in second
    card = Page(sheet.pages[0]).cards[1]
    assert card["words"] == ["dog", "zebra"] and "image must be an existing file" in card["text"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"path": "sheet.pdf"}, "path must end in .html, got sheet.pdf"),
        ({"page_size": 0}, "page_size must be at least 1, got 0"),
        ({"image_size": 1}, "image_size must be at least 64"),
        ({"max_words": 0}, "max_words must be at least 1"),
    ],
)
def test_a_contact_sheet_refuses(tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        ContactSheet(**{"path": "sheet.html"} | options)
    assert list(tmp_path.iterdir()) == []


BROWSER = """
const html = require("fs").readFileSync(process.argv[2], "utf8");
const figures = html.match(/<figure>[^]*?<\\/figure>/g).map((text) => {
  const words = [...text.matchAll(/<bdi>([^<]*)<\\/bdi><b>/g)].map((found) => {
    const line = { marked: false, classList: { toggle: (_, on) => { line.marked = on; } } };
    return { textContent: found[1], parentElement: line };
  });
  return { hidden: false, words, querySelectorAll: () => words };
});
const turn = { hash: "" }, box = { value: "", addEventListener: (_, f) => { box.act = f; } }, shown = {};
globalThis.document = {
  getElementById: (id) => ({ filter: box, shown })[id],
  querySelectorAll: (what) => what === "figure" ? figures : [turn],
};
globalThis.location = { hash: process.argv[3] };
(0, eval)(html.match(/<script>([^]*)<\\/script>/)[1]);
const state = () => ({ visible: figures.map((f) => !f.hidden), marked: figures.map((f) => f.words.filter(
  (w) => w.parentElement.marked).map((w) => w.textContent)), shown: shown.textContent, hash: turn.hash });
const states = [state()];
for (const typed of JSON.parse(process.argv[4])) { box.value = typed; box.act(); states.push(state()); }
console.log(JSON.stringify(states));
"""


def test_the_box_filters_by_word(tmp_path):
    """The page's own script, run by Node on a stand-in for the page."""
    if shutil.which("node") is None:
        pytest.skip("needs Node")
    (tmp_path / "browser.js").write_text(BROWSER, encoding="utf-8")
    with ContactSheet(tmp_path / "sheet.html") as sheet:
        for words in (["red dog", "cat"], ["Dogwood"], ["犬"], []):
            sheet.add(prediction(words), photo(8, 8))

    def run(fragment, *typed):
        command = ["node", "browser.js", "sheet.html", fragment, json.dumps(typed)]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    nothing, dogs, inu, again = run("", "DOG ", "犬", "")
    assert nothing == again
    assert nothing == {"visible": [True] * 4, "marked": [[]] * 4, "shown": "", "hash": ""}
    assert dogs["visible"] == [True, True, False, False] and dogs["shown"] == "2 of 4 on this page"
    assert dogs["marked"] == [["red dog"], ["Dogwood"], [], []] and dogs["hash"] == "DOG"
    assert inu["visible"] == [False, False, True, False]
    (carried,) = run("#%E7%8A%AC")  # the wish comes along from the page before
    assert carried["visible"] == inu["visible"]
    (damaged,) = run("#%E7%")
    assert damaged == nothing
