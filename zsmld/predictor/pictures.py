"""Predictions to look at: a photo with its words and scores, and a contact sheet of many."""

import io
import os
import shutil
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

from PIL import Image, ImageDraw

from zsmld.display import bars, beside, blank, data_url, facts, panel
from zsmld.display import escaped as _text
from zsmld.display import image as shown_image
from zsmld.images import ImageSource, load_image
from zsmld.images.lettering import Lettering
from zsmld.predictor.prediction import Prediction
from zsmld.predictor.sheet import PAGE

_PAPER, _INK, _FAINT, _TRACK, _BAR = "#ffffff", "#222222", "#6b6b6b", "#eef1f5", "#bcd3ea"
_BLANK = "#e4e4e4"  # in the place of a photo that cannot be read


def annotate(
    image: ImageSource | None,
    prediction: Prediction,
    image_size: int = 640,
    max_words: int = 10,
    font_path: str | Path | None = None,
) -> Image.Image:
    """The photo with its ranked words and their scores as bars: below a wide photo, beside a tall or small one.

    Args:
        image: what was scored, as `load_image` takes it; None for the file at the prediction's path.
        prediction: of this image. One with an error, or an image that cannot be read, gives a grey card that says why.
        image_size: the photo's longer side is brought down to this many pixels; smaller photos stay as they are.
        max_words: at most this many words; the others are counted.
        font_path: a TrueType or OpenType font that is tried first. Without it words are set in DejaVu Sans (Latin,
            Greek, Cyrillic, Arabic, Hebrew), and other scripts in fonts that are installed.

    Returns:
        PIL RGB.

    Raises:
        ValueError: if image_size is below 64, max_words below 1, or there is neither an image nor a path.
        FileNotFoundError: if there is no font at font_path.

    Example:
        >>> annotate(Image.new("RGB", (640, 480)), Prediction("a.jpg", ("zebra", "dog"), (0.9, 0.2), (4, 0))).size
        (640, 550)
    """
    _check(image_size, max_words)
    letters = Lettering(max(13, image_size // 40), font_path)
    photo, error = _reduced(image, prediction, image_size)
    if photo is None:
        photo = _blank(error, letters, image_size)
    if not prediction.words and error is not None:
        return photo
    rows = [(word, f"{score:.2f}") for word, score in zip(prediction.words, prediction.scores, strict=True)]
    more = len(rows) - max_words
    below = photo.width >= max(photo.height, 16 * letters.size)
    gap, row = letters.size // 2, round(1.6 * letters.size)
    space = 2 * gap + letters.width("0.00")  # of a score
    longest = max((letters.width(word) for word, _ in rows[:max_words]), default=0)
    panel_width = photo.width if below else min(max(longest + space + 2 * gap, 12 * letters.size), 20 * letters.size)
    lines = min(len(rows), max_words) + (more > 0 or not rows)
    panel_height = lines * row + (lines - 1) * (gap // 3) + 2 * gap
    size = (
        (photo.width, photo.height + panel_height)
        if below
        else (photo.width + panel_width, max(photo.height, panel_height))
    )
    picture = Image.new("RGB", size, _PAPER)
    picture.paste(photo, (0, 0))
    canvas = ImageDraw.Draw(picture)
    left, right = (0 if below else photo.width) + gap, size[0] - gap
    top = (photo.height if below else 0) + gap
    for (word, number), score in zip(rows[:max_words], prediction.scores, strict=False):
        canvas.rectangle((left, top, right - 1, top + row - 1), fill=_TRACK)
        filled = round((right - left) * min(max(score, 0.0), 1.0))
        if filled:
            canvas.rectangle((left, top, left + filled - 1, top + row - 1), fill=_BAR)
        baseline = top + round(0.72 * row)
        letters.draw(canvas, left + gap, baseline, letters.shorten(word, right - left - gap - space), _INK)
        letters.draw(canvas, right - gap - letters.width(number), baseline, number, _INK)
        top += row + gap // 3
    if more > 0 or not rows:
        note = f"and {more} more" if rows else "no words"
        letters.draw(canvas, left + gap, top + round(0.72 * row), note, _FAINT)
    return picture


def notebook_card(prediction: Prediction) -> str:
    """HTML of a prediction for a notebook: a thumbnail of the file at its path, read now, and its words as bars."""
    words = bars(prediction.words, prediction.scores) or blank("no words")
    if prediction.error is not None:
        return panel(prediction.path or "an image", facts("could not be read"), blank(prediction.error))
    if prediction.path is None:  # the image itself is not kept: a million predictions must fit in memory
        hint = "The image is not kept; zsmld.predictor.annotate(image, prediction) shows both."
        return panel("an image without a path", facts(hint), beside("", words))
    photo, error = _reduced(None, prediction, 320)
    picture = blank(error or "") if photo is None else shown_image(photo, ", ".join(prediction.words[:3]) or "no words")
    return panel(prediction.path, beside(picture, words))


class ContactSheet:
    """Pages of thumbnails with their words; each page is one HTML file that loads nothing else.

    Pages are `sheet.html`, `sheet-2.html`, … with links between them and a box that filters them by word. One page at
    a time is held in memory, whatever the number of images. The files appear under their names at the end: an
    exception inside `with`, or a process that dies, leaves what was there before.

    Args:
        path: of the first page, ending in .html; its folder is made if it does not exist.
        title: stands above each page.
        page_size: images a page.
        image_size: longer side of the thumbnails in pixels.
        max_words: at most this many words an image; the others are counted.
        on_page: called with each page and the name it is about to get.

    Raises:
        ValueError: if the path does not end in .html, or a number is too small.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with ContactSheet(Path(folder) / "sheet.html") as sheet:
        ...         sheet.add(Prediction(None, ("zebra",), (0.9,), (0,)), Image.new("RGB", (64, 48)))
        ...     [page.name for page in sheet.pages]
        ['sheet.html']
    """

    def __init__(
        self,
        path: str | Path,
        title: str = "Predictions",
        page_size: int = 200,
        image_size: int = 320,
        max_words: int = 10,
        on_page: Callable[[Path, Path], None] | None = None,
    ) -> None:
        _check(image_size, max_words)
        self.path, self.title, self.image_size, self.max_words = Path(path), title, image_size, max_words
        if self.path.suffix.lower() not in (".html", ".htm"):
            raise ValueError(f"path must end in .html, got {path}; name the contact sheet so")
        if page_size < 1:
            raise ValueError(f"page_size must be at least 1, got {page_size}; choose how many images a page shows")
        self.page_size = page_size
        self.pages: list[Path] = []
        self._cards: list[str] = []
        self._words: set[str] = set()
        self._unreadable = 0
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._on_page = on_page
        self._unfinished = self.path.with_name(f".{self.path.name}.partial")  # always the same: no heap of killed ones
        shutil.rmtree(self._unfinished, ignore_errors=True)
        self._unfinished.mkdir()

    def add(self, prediction: Prediction, image: ImageSource | None = None) -> None:
        """One more image.

        Args:
            prediction: one with an error is shown as a card with that error.
            image: what was scored; None for the file at the prediction's path.

        Raises:
            ValueError: if there is neither an image nor a path.
        """
        photo, error = _reduced(image, prediction, self.image_size)
        if len(self._cards) == self.page_size:
            self._finish_page(has_next=True)
        self._unreadable += error is not None
        shown = list(zip(prediction.words, prediction.scores, strict=True))
        self._words.update(word for word, _ in shown[: self.max_words])
        bars = "".join(
            f'<li><span style="width:{100 * min(max(score, 0.0), 1.0):.0f}%"></span><bdi>{_text(word)}</bdi>'
            f"<b>{score:.2f}</b></li>"
            for word, score in shown[: self.max_words]
        )
        if len(shown) > self.max_words:
            bars += f'<li class="more">and {len(shown) - self.max_words} more</li>'
        elif not shown and error is None:
            bars = '<li class="more">no words</li>'
        name = "" if prediction.path is None else f'<p class="path"><bdi>{_text(prediction.path)}</bdi></p>'
        picture = (
            f'<div class="blank"><bdi>{_text(error)}</bdi></div>' if photo is None else self._image(photo, prediction)
        )
        self._cards.append(f"<figure>{picture}<figcaption>{name}<ol>{bars}</ol></figcaption></figure>\n")

    def close(self) -> list[Path]:
        """Write the last page and give all pages their names; their paths, in order."""
        try:
            self._finish_page(has_next=False)
            for page in reversed(self.pages):  # the first one last: whoever opens it finds the others
                if self._on_page is not None:
                    self._on_page(self._unfinished / page.name, page)
                os.replace(self._unfinished / page.name, page)
        finally:
            shutil.rmtree(self._unfinished, ignore_errors=True)
        return self.pages

    def __enter__(self) -> "ContactSheet":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            shutil.rmtree(self._unfinished, ignore_errors=True)

    def _image(self, photo: Image.Image, prediction: Prediction) -> str:
        alt = _text(", ".join(prediction.words[:3]) or "no words")
        shown = f'<img src="{data_url(photo)}" alt="{alt}" width="{photo.width}" height="{photo.height}">'
        link = None if prediction.path is None else _link(Path(prediction.path), self.path.parent)
        return f'<div class="photo">{shown}</div>' if link is None else f'<a class="photo" href="{link}">{shown}</a>'

    def _finish_page(self, has_next: bool) -> None:
        number = len(self.pages) + 1
        names = {n: self._page_path(n).name for n in (number - 1, number + 1)}
        links = [] if number == 1 else [f'<a class="turn" rel="prev" href="{quote(names[number - 1])}">← previous</a>']
        links += [f"<span>page {number}</span>"] if number > 1 or has_next else []
        links += [f'<a class="turn" rel="next" href="{quote(names[number + 1])}">next →</a>'] if has_next else []
        first = (number - 1) * self.page_size + 1
        facts = f"Images {first} to {first + len(self._cards) - 1}" if self._cards else "No images"
        if self._unreadable:
            facts += f", {self._unreadable} of them could not be read"
        page = PAGE.substitute(
            title=_text(self.title),
            facts=facts,
            turns=f"<nav>{' '.join(links)}</nav>" if links else "",
            words="".join(f'<option value="{_text(word)}">' for word in sorted(self._words)),
            cards="".join(self._cards),
        )
        path = self._page_path(number)
        (self._unfinished / path.name).write_text(page, encoding="utf-8")
        self.pages.append(path)
        self._cards, self._words, self._unreadable = [], set(), 0

    def _page_path(self, number: int) -> Path:
        return self.path if number == 1 else self.path.with_stem(f"{self.path.stem}-{number}")


def write_contact_sheet(predictions: Iterable[Prediction], path: str | Path, **options: Any) -> list[Path]:
    """A contact sheet of predictions whose images are files: `ContactSheet` over all of them, as they come.

    Args:
        predictions: of `Predictor.predict`, for instance.
        path: of the first page.
        options: further arguments of `ContactSheet`.

    Returns:
        The paths of all pages, in order.

    Raises:
        ValueError: as `ContactSheet`.
    """
    with ContactSheet(path, **options) as sheet:
        for prediction in predictions:
            sheet.add(prediction)
    return sheet.pages


def _check(image_size: int, max_words: int) -> None:
    if image_size < 64:
        raise ValueError(f"image_size must be at least 64 pixels, got {image_size}; words need room")
    if max_words < 1:
        raise ValueError(f"max_words must be at least 1, got {max_words}; choose how many words are shown")


def _reduced(
    image: ImageSource | None, prediction: Prediction, image_size: int
) -> tuple[Image.Image | None, str | None]:
    """The photo, its longer side at most image_size; or why there is none."""
    if prediction.error is not None:
        return None, prediction.error
    source = prediction.path if image is None else image
    if source is None:
        raise ValueError("image must be given for a prediction without a path, got None; pass what was scored")
    try:
        photo = _decoded(source, image_size)
    except (FileNotFoundError, ValueError) as error:  # it was there when it was scored
        return None, str(error)
    scale = min(1.0, image_size / max(photo.size))
    small = (max(1, round(photo.width * scale)), max(1, round(photo.height * scale)))
    return photo.resize(small, Image.Resampling.LANCZOS, reducing_gap=3.0), None


def _decoded(source: ImageSource, image_size: int) -> Image.Image:
    """As `load_image`; a large JPEG is decoded at the fraction of its size that is needed, many times faster."""
    if isinstance(source, (str, Path, bytes)):
        failures = (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError)
        with suppress(*failures), Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as opened:
            opened.draft(None, (image_size, image_size))
            return load_image(opened)
    return load_image(source)  # says what is wrong, if something is


def _blank(message: str | None, letters: Lettering, image_size: int) -> Image.Image:
    """A grey card that says why there is no photo."""
    card = Image.new("RGB", (image_size, image_size // 2), _BLANK)
    canvas, gap = ImageDraw.Draw(card), letters.size
    row = round(1.4 * letters.size)
    lines = letters.wrap(message or "", card.width - 2 * gap, max(1, (card.height - 2 * gap) // row))
    top = (card.height - row * len(lines)) // 2
    for number, line in enumerate(lines):
        letters.draw(canvas, gap, top + number * row + letters.size, line, _FAINT)
    return card


def _link(path: Path, folder: Path) -> str | None:
    """Where a browser finds an image from a page in a folder; None if it is no file."""
    if not path.is_file():
        return None
    try:
        relative = Path(os.path.relpath(path, folder))
    except ValueError:  # on another drive
        return path.resolve().as_uri()
    return quote(os.fsencode(relative.as_posix()))
