"""Plots of a report as PNG pictures: AP of the words, precision and recall, scores."""

import base64
import io
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.special import expit

SEEN_COLOUR, UNSEEN_COLOUR = "#4878a8", "#e07b39"
_NUM_PAIRS = 4_000_000  # image-word pairs in the curves of all pairs and in the histogram


def sampled_rows(num_images: int, num_words: int) -> np.ndarray | None:
    """The images of the curves of all pairs and of the histogram, always the same; None for all of them.

    Example:
        >>> sampled_rows(10, 10) is None, len(sampled_rows(100_000, 1000))
        (True, 4000)
    """
    wanted = max(1, _NUM_PAIRS // num_words)
    if wanted >= num_images:
        return None
    return np.sort(np.random.default_rng(0).choice(num_images, wanted, replace=False))


def plot_words(words: Sequence[Mapping[str, Any]], part: str) -> str:
    """AP of every word, best first, as a data URL; a word without positives has no bar.

    Args:
        words: figures of each word, as in `report.json`.
        part: for the title.
    """
    ordered = sorted(words, key=lambda w: -(w["average_precision"] or 0.0))
    heights = np.array([100 * (w["average_precision"] or 0.0) for w in ordered])
    seen = np.array([w["seen"] for w in ordered])
    figure, axes = _axes(f"AP of each of {len(words)} words, {part.upper()}", "words, best first", "AP, %")
    for name, chosen, colour in (("seen", seen, SEEN_COLOUR), ("unseen", ~seen, UNSEEN_COLOUR)):
        if chosen.any():
            axes.bar(np.flatnonzero(chosen), heights[chosen], width=1.0, color=colour, label=name)
    axes.set_ylim(0, 102)
    return _finish(figure, axes)


def plot_all_pairs(groups: Sequence[tuple[str, str, np.ndarray, np.ndarray]]) -> str:
    """Precision over recall of all image-word pairs of each group, as a data URL.

    Args:
        groups: name, colour, scores (M,N) and targets (M,N) of each.
    """
    figure, axes = _axes("Precision and recall, all pairs", "recall, %", "precision, %")
    for name, colour, scores, targets in groups:
        known = targets >= 0
        recall, precision = precision_recall(scores[known], targets[known] == 1)
        axes.plot(100 * recall, 100 * precision, color=colour, label=name)
    axes.set(xlim=(0, 100), ylim=(0, 102))
    return _finish(figure, axes)


def plot_some_words(curves: Sequence[tuple[str, np.ndarray, np.ndarray]], title: str) -> str:
    """Precision over recall of single words, as a data URL.

    Args:
        curves: legend, scores (M,) and targets (M,) of each word.
        title: of the plot.
    """
    figure, axes = _axes(title, "recall, %", "precision, %")
    for name, scores, targets in curves:
        known = targets >= 0
        recall, precision = precision_recall(scores[known], targets[known] == 1)
        axes.step(100 * recall, 100 * precision, where="post", label=name, linewidth=1.2)
    axes.set(xlim=(0, 100), ylim=(0, 102))
    return _finish(figure, axes)


def plot_scores(groups: Sequence[tuple[str, str, np.ndarray, np.ndarray]], kind: str) -> str:
    """Histograms of the scores in [0,1] of present and absent words, as a data URL.

    Args:
        groups: as `plot_all_pairs`.
        kind: "logits" become scores by their sigmoid; "scores" are shown as they are.
    """
    figure, axes = _axes("Scores", "score" if kind == "scores" else "score (sigmoid of the logit)", "density, log")
    for name, colour, scores, targets in groups:
        for what, style, value in (("present", "solid", 1), ("absent", "dotted", 0)):
            values = scores[targets == value].astype(np.float64)
            if not len(values):
                continue
            values = expit(values) if kind == "logits" else values
            num_bins = int(np.clip(len(values) / 25, 8, 40))  # few scores make a comb of narrow bins
            axes.hist(
                values,
                bins=np.linspace(0, 1, num_bins + 1),
                density=True,
                histtype="step",
                color=colour,
                linestyle=style,
                label=f"{name}, {what}",
            )
    axes.set_yscale("log")
    return _finish(figure, axes)


def precision_recall(scores: np.ndarray, present: np.ndarray, points: int = 400) -> tuple[np.ndarray, np.ndarray]:
    """Recall and precision at distinct scores, highest first, down to the last positive; tied scores share one point.

    The curve starts at recall 0 with the first precision, and is thinned to at most about `points`.

    Example:
        >>> recall, precision = precision_recall(np.array([0.9, 0.5, 0.5, 0.1]), np.array([True, False, True, False]))
        >>> recall.tolist(), precision.round(4).tolist()
        ([0.0, 0.5, 1.0], [1.0, 1.0, 0.6667])
    """
    if not present.any():
        return np.zeros(1), np.zeros(1)
    order = np.argsort(-scores, kind="stable")
    ordered, hits = scores[order], np.cumsum(present[order])
    where = np.flatnonzero(np.append(ordered[1:] < ordered[:-1], True))  # the last of each tie
    where = where[: np.searchsorted(hits[where], hits[-1]) + 1]
    where = where[np.unique(np.linspace(0, len(where) - 1, min(points, len(where))).astype(int))]
    recall, precision = hits[where] / hits[-1], hits[where] / (where + 1)
    return np.append(0.0, recall), np.append(precision[:1], precision)


def _axes(title: str, x: str, y: str) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.4, 3.5))
    axes = figure.add_axes((0.12, 0.14, 0.85, 0.76))  # a fixed place: a layout engine would draw everything twice
    axes.set(title=title, xlabel=x, ylabel=y)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _finish(figure: Any, axes: Any) -> str:
    handles, names = axes.get_legend_handles_labels()
    if handles:
        legend = axes.legend(handles, names, fontsize=8, framealpha=0.85, edgecolor="none")
        for text in legend.get_texts():
            text.set_parse_math(False)  # a word may hold two dollars
    buffer = io.BytesIO()
    with warnings.catch_warnings():  # the font lacks some scripts; the page's own tables do not
        warnings.filterwarnings("ignore", "Glyph", UserWarning)
        figure.savefig(buffer, format="png", dpi=110)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
