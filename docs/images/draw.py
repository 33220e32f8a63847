"""Draws the figures of the pages under Concepts: `python docs/images/draw.py` writes them beside this file.

The same matplotlib draws the same bytes: no date, fixed ids, and text stays text.
"""

from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle

FOLDER = Path(__file__).resolve().parent
IMAGE, WORD, HEAD, GREY = "#2a7f8e", "#b4632a", "#5b4a9c", "#8a8f98"


def main() -> None:
    """Write every figure."""
    matplotlib.rcParams.update({"svg.hashsalt": "zsmld", "svg.fonttype": "none", "font.family": "sans-serif"})
    for name, figure in {"two_lines": two_lines(), "protocols": protocols()}.items():
        figure.savefig(FOLDER / f"{name}.svg", metadata={"Date": None, "Creator": None})


def two_lines() -> Figure:
    """How an image and a word become a score."""
    figure, axes = _canvas(10.4, 3.5)
    image = ("image", "image encoder\ntimm, open_clip"), ("spatial embeddings\n(S places, C)", "Linear, ReLU")
    word = ('word "zebra"', "text encoder\nMiniLM, CLIP, GloVe"), ("word embedding\n(T)", "Linear, ReLU")
    for y, colour, ((first, second), (third, fourth)) in ((2.55, IMAGE, image), (0.55, WORD, word)):
        for number, text in enumerate((first, second, third, fourth)):
            width = 1.7 if number in (1, 2) else 1.2
            _box(axes, 0.75 + (0, 1.9, 4.0, 5.85)[number], y, width, text, colour, filled=number in (1, 3))
        for start, end in ((1.35, 1.8), (3.5, 3.9), (5.6, 6.0)):
            _arrow(axes, (start, y), (end, y), colour)
    _box(axes, 8.3, 1.55, 1.5, "cross-attention,\nfeed-forward", HEAD, filled=True)
    _arrow(axes, (7.2, 2.55), (8.0, 1.92), IMAGE, "places")
    _arrow(axes, (7.2, 0.55), (8.0, 1.18), WORD, "query")
    _box(axes, 9.85, 1.55, 0.8, "score\nin [0,1]", HEAD)
    _arrow(axes, (9.05, 1.55), (9.45, 1.55), HEAD)
    return figure


def protocols() -> Figure:
    """Which part of the matrix of images and words each protocol looks at."""
    figure, axes = _canvas(10.4, 3.3)
    axes.text(1.95, 2.98, "seen words", ha="center", color=IMAGE)
    axes.text(3.65, 2.98, "unseen words", ha="center", color=WORD)
    axes.add_patch(Rectangle((0.9, 1.75), 2.1, 1.05, facecolor=IMAGE, alpha=0.55))
    axes.add_patch(Rectangle((3.0, 1.75), 1.3, 1.05, facecolor="none", edgecolor=GREY, hatch="///", linewidth=0.5))
    axes.add_patch(Rectangle((0.9, 0.45), 2.1, 1.05, facecolor=IMAGE, alpha=0.25))
    axes.add_patch(Rectangle((3.0, 0.45), 1.3, 1.05, facecolor=WORD, alpha=0.55))
    axes.text(0.8, 2.27, "train\nimages", ha="right", va="center")
    axes.text(0.8, 0.97, "test\nimages", ha="right", va="center")
    axes.text(1.95, 2.27, "trained on", ha="center", va="center", color="white")
    axes.text(3.65, 2.27, "never looked at", ha="center", va="center", backgroundcolor="white")
    rows = (
        ("ZSL", "ranks the unseen words", (False, True)),
        ("GZSL", "ranks all words together", (True, True)),
        ("seen", "ranks the seen words", (True, False)),
    )
    for number, (name, text, (seen, unseen)) in enumerate(rows):
        y = 2.25 - 0.8 * number
        axes.add_patch(
            Rectangle((5.2, y - 0.2), 1.0, 0.4, facecolor=IMAGE if seen else "none", edgecolor=GREY, alpha=0.6)
        )
        axes.add_patch(
            Rectangle((6.2, y - 0.2), 0.6, 0.4, facecolor=WORD if unseen else "none", edgecolor=GREY, alpha=0.6)
        )
        axes.text(7.0, y, name, va="center", weight="bold")
        axes.text(7.75, y, text, va="center")
    return figure


def _canvas(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(0, height), aspect="equal")
    axes.axis("off")
    return figure, axes


def _box(axes: Axes, x: float, y: float, width: float, text: str, colour: str, filled: bool = False) -> None:
    axes.add_patch(
        FancyBboxPatch(
            (x - width / 2, y - 0.32),
            width,
            0.64,
            boxstyle="round,pad=0.03",
            facecolor=colour if filled else "white",
            edgecolor=colour,
        )
    )
    axes.text(x, y, text, ha="center", va="center", fontsize=9, color="white" if filled else "black")


def _arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], colour: str, text: str = "") -> None:
    axes.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": colour})
    if text:
        up = 0.18 if start[1] > end[1] else -0.18
        axes.text(
            (start[0] + end[0]) / 2 + 0.12, (start[1] + end[1]) / 2 + up, text, fontsize=9, color=colour, va="center"
        )


if __name__ == "__main__":
    main()
