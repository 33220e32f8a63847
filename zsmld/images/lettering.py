"""Lettering: words drawn on pictures, in a font that has their characters."""

import unicodedata
from collections.abc import Iterator
from functools import lru_cache
from itertools import groupby
from pathlib import Path

from PIL import ImageDraw, ImageFont

Colour = tuple[int, int, int] | str
_NON_JOINER = "\u200c"  # Persian letters take another form before it


class Lettering:
    """Texts of one size. Each character comes from the first font that has it: the one given, DejaVu Sans, which
    matplotlib brings along (Latin, Greek, Cyrillic, Arabic, Hebrew, some emoji), then those installed here.

    A symbol that no font has is written as its name, "[unicorn face]", and a letter as an empty box.

    Args:
        size: height of the font in pixels.
        font_path: a TrueType or OpenType font that is tried first.

    Raises:
        FileNotFoundError: if there is no font at font_path.
        ValueError: if it is none, or size is below 6.

    Example:
        >>> letters = Lettering(16)
        >>> letters.shorten("a very long word", letters.width("a very…"))
        'a very…'
    """

    def __init__(self, size: int, font_path: str | Path | None = None) -> None:
        if size < 6:
            raise ValueError(f"size must be at least 6 pixels to be read, got {size}; choose a larger one")
        self.size, self._first = size, () if font_path is None else (str(font_path),)
        if font_path is not None:
            if not Path(font_path).is_file():
                raise FileNotFoundError(f"font_path must be an existing font, not found: {font_path}; correct it")
            if not _characters(str(font_path)) or _font(str(font_path), size) is None:
                raise ValueError(f"font_path must be a TrueType or OpenType font, got {font_path}; give another file")

    def width(self, text: str) -> int:
        """Pixels that a text takes."""
        return round(sum(font.getlength(part) for font, part in self._runs(text)))

    def shorten(self, text: str, width: int) -> str:
        """The text, or as much of its beginning as fits, with an ellipsis."""
        if self.width(text) <= width:
            return text
        fits, too_long = 0, len(text)  # the longest beginning that fits, by halving
        while too_long - fits > 1:
            middle = (fits + too_long) // 2
            fits, too_long = (middle, too_long) if self.width(text[:middle].rstrip() + "…") <= width else (fits, middle)
        return text[:fits].rstrip() + "…"

    def wrap(self, text: str, width: int, max_lines: int) -> list[str]:
        """The text in lines that fit, broken between words, or within one that is too long; the last is shortened."""
        lines: list[str] = []
        rest = " ".join(text.split())
        while rest and len(lines) < max_lines - 1:
            fitting = rest if self.width(rest) <= width else self.shorten(rest, width)[:-1] or rest[0]
            if fitting != rest and not rest[len(fitting) :].startswith(" ") and " " in fitting:
                fitting = fitting[: fitting.rindex(" ")]
            lines.append(fitting)
            rest = rest[len(fitting) :].lstrip()
        return [*lines, self.shorten(rest, width)] if rest else lines

    def draw(self, canvas: ImageDraw.ImageDraw, x: int, y: int, text: str, colour: Colour) -> None:
        """Write a text; (x,y) is the left end of its baseline."""
        place = float(x)
        for font, part in self._runs(text):
            canvas.text((place, y), part, fill=colour, font=font, anchor="ls")
            place += font.getlength(part)

    def _runs(self, text: str) -> Iterator[tuple[ImageFont.FreeTypeFont, str]]:
        """The text in parts that one font can draw."""
        drawable = "".join(self._drawable(character) for character in text)
        for path, characters in groupby(drawable, self._font_of):
            font = _font(path or _dejavu(), self.size)
            assert font is not None  # whoever is chosen can be loaded
            yield font, "".join(characters)

    def _font_of(self, character: str) -> str | None:
        for path in (*self._first, _dejavu()):
            if ord(character) in _characters(path):
                return path
        return _installed(character, self.size)

    def _drawable(self, character: str) -> str:
        kind = unicodedata.category(character)
        if kind in ("Cc", "Zl", "Zp"):
            return " "  # a line break has no place in a line
        if (
            kind == "Cs"
            or (kind == "Cf" and character != _NON_JOINER)
            or unicodedata.name(character, "").startswith("VARIATION SELECTOR")
        ):
            return ""  # joins or varies its neighbours, and is nothing to see
        if self._font_of(character) is not None:
            return character
        return f"[{unicodedata.name(character, 'symbol').lower()}]" if kind in ("So", "Sk") else "□"


@lru_cache(maxsize=1)
def _dejavu() -> str:
    import matplotlib

    return str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf")


@lru_cache(maxsize=16)
def _characters(path: str) -> frozenset[int]:
    """The code points that a font has; none if it cannot be read."""
    from matplotlib.ft2font import FT2Font

    try:
        return frozenset(FT2Font(path).get_charmap())
    except (OSError, RuntimeError):
        return frozenset()


@lru_cache(maxsize=64)
def _font(path: str, size: int) -> ImageFont.FreeTypeFont | None:
    try:
        return ImageFont.truetype(path, size)
    except OSError:  # not a font, or one of bitmaps that has not this size
        return None


_FOUND: list[str] = []  # installed fonts that had a character: they are likely to have the next one of its script


@lru_cache(maxsize=4096)
def _installed(character: str, size: int) -> str | None:
    """An installed font that has a character, upright and of ordinary weight if there is one."""
    for path in (*_FOUND, *_installed_fonts()):
        if ord(character) in _characters(path) and _font(path, size) is not None:
            if path not in _FOUND:
                _FOUND.append(path)
            return path
    return None


@lru_cache(maxsize=1)
def _installed_fonts() -> tuple[str, ...]:
    from matplotlib.font_manager import fontManager

    # matplotlib's own besides DejaVu are for formulas; its last resort has a box for every character there is.
    own = Path(_dejavu()).parent
    entries = [entry for entry in fontManager.ttflist if own not in Path(entry.fname).parents]
    entries.sort(key=lambda entry: (entry.style != "normal", entry.weight != 400, entry.fname))
    return tuple(dict.fromkeys(entry.fname for entry in entries))
