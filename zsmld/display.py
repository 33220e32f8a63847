"""What objects show of themselves in a notebook: small pieces of HTML that load nothing and run nothing.

Every colour is the notebook's own ink or a tint that lets its paper through, so that dark and light themes both read
well; and every style stands in its element, because notebooks remove style sheets from pages that are not trusted.
"""

import base64
import html
import io
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING
from unicodedata import category

if TYPE_CHECKING:
    from PIL import Image

_BLUE, _ORANGE, _GREY = "rgba(70,130,200,.42)", "rgba(225,120,30,.42)", "rgba(128,128,128,.16)"
_LINE = "1px solid rgba(128,128,128,.45)"
_FAINT = "opacity:.72;font-size:12px"
_LONGEST = 300  # characters of one text; what is longer is cut, so that no object's display is large


def escaped(value: object) -> str:
    """Text for HTML, inside elements and attributes; what no page can hold, half a surrogate pair for instance, becomes
    U+FFFD.

    Example:
        >>> escaped('<b>"red car"</b>')
        '&lt;b&gt;&quot;red car&quot;&lt;/b&gt;'
    """
    return html.escape("".join("\ufffd" if category(c) in ("Cc", "Cs") and c != "\n" else c for c in str(value)))


def isolated(value: object) -> str:
    """Text for HTML that is cut if it is very long, and whose direction of writing does not reach beyond it.

    Example:
        >>> isolated("زرافة & zebra")
        '<bdi>زرافة &amp; zebra</bdi>'
    """
    text = str(value).translate({0x202D: 0xFFFD, 0x202E: 0xFFFD})  # these would turn our own letters around, inside it
    return f"<bdi>{escaped(text if len(text) <= _LONGEST else text[: _LONGEST - 1] + '…')}</bdi>"


def data_url(picture: "Image.Image", quality: int = 82) -> str:
    """A picture as a JPEG inside the page.

    Args:
        picture: PIL, of any mode that has colours or greys.
        quality: of the JPEG, 1 to 95.
    """
    buffer = io.BytesIO()
    picture.convert("RGB").save(buffer, "JPEG", quality=quality, optimize=True)
    return jpeg_url(buffer.getvalue())


def jpeg_url(content: bytes) -> str:
    """The bytes of a JPEG as an address that holds them."""
    return "data:image/jpeg;base64," + base64.b64encode(content).decode()


def panel(title: str, *parts: str) -> str:
    """The whole of one object.

    Args:
        title: plain text, what it is.
        parts: HTML, below each other.

    Example:
        >>> panel("Vocabulary", facts("3 words")).count("<div")
        3
    """
    # The classes keep a notebook from setting what stands between two dollar signs as a formula.
    return (
        f'<div class="zsmld tex2jax_ignore mathjax_ignore" dir="ltr" style="font:13px/1.45 system-ui,sans-serif;'
        f'color:inherit;max-width:56rem;margin:.2rem 0 .6rem"><div style="font-weight:600;overflow-wrap:anywhere">'
        f"{isolated(title)}</div>{''.join(parts)}</div>"
    )


def facts(*texts: str) -> str:
    """Plain texts of less weight, a line each."""
    return "".join(f'<div style="{_FAINT};overflow-wrap:anywhere">{isolated(text)}</div>' for text in texts)


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], text: Sequence[int] = (0,)) -> str:
    """A table of plain texts, which scrolls where it is long or wide.

    Args:
        columns: names; none for a table without a head.
        rows: their cells.
        text: columns that stand to the left; the others hold numbers and stand to the right.
    """

    def line(cells: Sequence[str], tag: str) -> str:
        rule = f"border-bottom:{_LINE};font-weight:600;" if tag == "th" else "border:0;"
        made = (
            f'<{tag} style="{rule}padding:.1rem .7rem .1rem 0;text-align:{"left" if i in text else "right"};'
            f'vertical-align:top;white-space:pre-wrap;max-width:38rem;overflow-wrap:break-word">{isolated(cell)}</{tag}>'
            for i, cell in enumerate(cells)
        )
        return f"<tr>{''.join(made)}</tr>"

    head = f"<thead>{line(columns, 'th')}</thead>" if columns else ""
    body = "".join(line(row, "td") for row in rows)
    return (
        f'<div style="max-height:22rem;overflow:auto;margin:.3rem 0"><table style="border-collapse:collapse;margin:0;'
        f'font-size:13px;font-variant-numeric:tabular-nums;color:inherit">{head}<tbody>{body}</tbody></table></div>'
    )


def chips(title: str, words: Sequence[str], seen: bool, max_words: int = 60) -> str:
    """Words one after another, on blue if seen and on orange if not; those after `max_words` are counted."""
    style = (
        f"display:inline-block;max-width:100%;box-sizing:border-box;background:{_BLUE if seen else _ORANGE};"
        f"border-radius:3px;padding:0 .4em;margin:1px 0;line-height:1.5;overflow-wrap:anywhere"
    )
    more = f'<span style="{_FAINT}">and {len(words) - max_words} more</span>' if len(words) > max_words else ""
    shown = " ".join(f'<span style="{style}">{isolated(word)}</span>' for word in words[:max_words])
    return f'<div style="margin:.3rem 0">{isolated(title)} {shown} {more}</div>'


def bars(words: Sequence[str], scores: Sequence[float], max_words: int = 12) -> str:
    """Words with their scores in [0,1], each on a bar; those after `max_words` are counted."""
    lines = []
    for word, score in list(zip(words, scores, strict=True))[:max_words]:
        filled = f"{100 * min(max(score, 0.0), 1.0):.1f}%"
        lines.append(
            f'<div style="display:flex;justify-content:space-between;gap:1rem;padding:.05rem .45rem;margin-bottom:2px;'
            f'border-radius:3px;background:linear-gradient(to right,{_BLUE} {filled},{_GREY} {filled})">'
            f'<span style="overflow-wrap:anywhere;min-width:0">{isolated(word)}</span> '
            f'<span style="font-variant-numeric:tabular-nums">{score:.2f}</span></div>'
        )
    if len(words) > max_words:
        lines.append(f'<div style="{_FAINT}">and {len(words) - max_words} more</div>')
    return "".join(lines)


def beside(picture: str, body: str) -> str:
    """HTML with a picture to its left, or above it where there is no room; alone if there is none."""
    left = f'<div style="flex:0 1 auto;max-width:20rem">{picture}</div>' if picture else ""
    return (
        f'<div style="display:flex;flex-wrap:wrap;gap:.4rem 1rem;align-items:flex-start;margin:.3rem 0">{left}'
        f'<div style="flex:1 1 15rem;min-width:0;max-width:26rem">{body}</div></div>'
    )


def image(picture: "Image.Image", alt: str) -> str:
    """A picture in its own size, or smaller where there is no room."""
    return (
        f'<img src="{data_url(picture)}" alt="{escaped(alt)}" width="{picture.width}" height="{picture.height}" '
        f'style="max-width:100%;height:auto;margin:0;border-radius:3px">'
    )


def blank(message: str) -> str:
    """What stands in the place of a picture that there is not."""
    style = f"background:{_GREY};border-radius:3px;padding:.8rem;overflow-wrap:anywhere;{_FAINT}"
    return f'<div style="{style}">{isolated(message)}</div>'


def folded(summary: str, body: str) -> str:
    """HTML that a click on its title shows."""
    return (
        f'<details style="margin:.3rem 0"><summary style="cursor:pointer">{isolated(summary)}</summary>{body}</details>'
    )
