"""Comparison of two saved reports: paired bootstrap over the images that both have."""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from zsmld.display import facts, panel, table
from zsmld.metrics import AveragePrecision
from zsmld.metrics.arrays import in_threads
from zsmld.report.bootstrap import (
    draw_weights,
    harmonic_means,
    mean_over_words,
    resampled_average_precision,
    weighted_sum,
)
from zsmld.report.errors import best_words
from zsmld.report.headline import TITLES, Rows, figure_columns, markdown_table, text_table
from zsmld.report.pairing import Pair, pair_reports
from zsmld.report.scores_file import ScoresFile


@dataclass(frozen=True)
class Difference:
    """One figure of two reports, and how sure its difference is.

    Attributes:
        a, b: the figure in each, a fraction.
        a_interval, b_interval: percentile intervals over the resamples.
        difference: b − a.
        interval: percentile interval of the difference, the resamples paired.
        share_b_above: share of the resamples in which b is above a.
    """

    a: float
    b: float
    a_interval: tuple[float, float]
    b_interval: tuple[float, float]
    difference: float
    interval: tuple[float, float]
    share_b_above: float


@dataclass(frozen=True)
class Comparison:
    """What `compare` found.

    Attributes:
        a, b: the two JSON files.
        figures: part -> figure -> `Difference`, named as in `report.json`.
        words: word -> `Difference` of its average precision in the part with the most words; words without positives
            are left out. The intervals are those of single words: of a thousand words, some move far by chance.
        is_seen: word -> whether it was seen in training.
        num_images: M, compared in both.
        num_resamples, seed, confidence: of the bootstrap.
        policies: under which both were measured.
        different: what the reports do not have in common, empty if they fit each other.
    """

    a: str
    b: str
    figures: dict[str, dict[str, Difference]]
    words: dict[str, Difference]
    is_seen: dict[str, bool]
    num_images: int
    num_resamples: int
    seed: int
    confidence: float
    policies: dict[str, Any]
    different: tuple[str, ...]

    def moved(self, num_words: int | None = 10) -> list[str]:
        """The words whose average precision differs most, largest difference first; None for all that differ."""
        different = [word for word in self.words if self.words[word].difference]
        return sorted(different, key=lambda word: -abs(self.words[word].difference))[:num_words]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON; fractions."""
        return asdict(self)

    def to_text(self, num_words: int = 10) -> str:
        """Tables for a terminal, in percent, at most 110 columns wide if the words are not long.

        Args:
            num_words: words shown of those that moved most.
        """
        columns, figures, words = self._tables(num_words)
        lines = [f"a  {self.a}", f"b  {self.b}", *self._notes(), "", text_table(columns, figures), ""]
        lines += [self._words_title(), *([text_table(["", *columns[1:]], words)] if words else [])]
        wrapped = [
            textwrap.fill(line, 110, subsequent_indent="   ", break_long_words=False) if "\n" not in line else line
            for line in lines
        ]
        return "\n".join(wrapped)

    def to_markdown(self, num_words: int = 10) -> str:
        """The same as Markdown."""
        columns, figures, words = self._tables(num_words)
        notes = "\n".join(f"- {note}" for note in (f"a: `{self.a}`", f"b: `{self.b}`", *self._notes()))
        table = f"\n{markdown_table(columns, words)}" if words else ""
        return f"{notes}\n\n{markdown_table(columns, figures)}\n{self._words_title()}\n{table}"

    def __repr__(self) -> str:
        moves = ", ".join(
            f"{part} mAP {100 * found['mean_average_precision'].difference:+.1f}"
            for part, found in self.figures.items()
            if "mean_average_precision" in found
        )
        return f"Comparison({self.a!r}, {self.b!r}, {self.num_images} images, {moves})"

    def _repr_html_(self) -> str:
        columns, figures, words = self._tables(10)
        return panel(
            "Two reports compared, in percent",
            facts(f"a: {self.a}", f"b: {self.b}"),
            table(columns, figures),
            facts(self._words_title()),
            table(["", *columns[1:]], words) if words else "",
            facts(*self._notes()),
        )

    def _notes(self) -> list[str]:
        policies = ", ".join(f"{name}={value}" for name, value in self.policies.items())
        notes = [
            f"{self.num_images} images; {self.num_resamples} paired resamples of the images, seed {self.seed}; "
            f"{100 * self.confidence:g}% percentile intervals; figures in percent",
            f"policies: {policies}",
            "copies of an image rank together, which lifts the AP of rare words in a resample: intervals of a or b may "
            "lie above the figure; in b − a this cancels for the most part",
            "compared as the network scores them: calibrated figures, CF1 and OF1 take no part",
        ]
        if self.different:
            notes.append(f"COMPARED ALTHOUGH THEY DIFFER, in what both have: {'; '.join(self.different)}")
        return notes

    def _words_title(self) -> str:
        if not self.moved(1):
            return f"No word moved, of {len(self.words)}."
        return (
            f"Words that moved most, of {len(self.words)}: AP ({list(self.figures)[-1].upper()}); intervals of single "
            f"words, not corrected for choosing the largest"
        )

    def _tables(self, num_words: int) -> tuple[list[str], Rows, Rows]:
        names = figure_columns(self.figures) | {
            "seen_mean_average_precision": "mAP of seen words",
            "unseen_mean_average_precision": "mAP of unseen words",
            "harmonic_mean": "harmonic mean",
        }
        figures = []
        for part, found in self.figures.items():
            figures.append([TITLES[part], *[""] * 7])
            figures += [[f"  {names[key]}", *_cells(value)] for key, value in found.items()]
        words = [
            [f"{word} ({'seen' if self.is_seen[word] else 'unseen'})", *_cells(self.words[word])]
            for word in self.moved(num_words)
        ]
        return ["", "a", "", "b", "", "b − a", "", "b > a"], figures, words


def compare(
    a: str | Path,
    b: str | Path,
    num_resamples: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
    allow_different: bool = False,
    num_threads: int | None = None,
) -> Comparison:
    """Compare two reports that were saved with their scores.

    Compared are, for each part, the mAP (of seen and unseen words and their harmonic mean in "gzsl") and F1@K, or for
    single labels the top-K accuracies; and each word's average precision. All are computed from the scores, at no
    calibration. A resample draws as many images as there are, with replacement, the same in both reports; the words and
    the labels are taken as given. A word whose few positives a resample does not draw is left out of that resample: as
    a zero it would pull every resample below the figure itself. Copies of an image rank side by side, which lifts the
    average precision of rare words: percentile intervals of a single report's mAP may lie above the figure, while in
    the difference this cancels for the most part. The same reports, seed and number of resamples give the
    same comparison.

    Args:
        a, b: JSON files, or folders with `report.json`; the scores stand beside them.
        num_resamples: R.
        seed: of the resamples.
        confidence: of the percentile intervals, in (0,1).
        allow_different: compare the images, words and parts that both have, by the policies of `a`, and say so.
        num_threads: None for all cores; the result is the same.

    Returns:
        A `Comparison`.

    Raises:
        FileNotFoundError: if a file is not there.
        ValueError: if a file is no report or has no scores; if images, targets, words, partitions, parts or policies
            differ, all that differ named, unless `allow_different`; on values out of range.

    Source: percentile intervals of the paired bootstrap, Efron and Tibshirani, An Introduction to the Bootstrap, 1993,
    chapter 13.
    """
    if num_resamples < 1 or not 0 < confidence < 1:
        raise ValueError(
            f"num_resamples must be at least 1 and confidence inside (0, 1), got {num_resamples} and {confidence}; "
            f"1000 and 0.95 are usual"
        )
    pair = pair_reports(a, b, allow_different)
    weights = draw_weights(len(pair.a.ids), num_resamples, seed)
    resampled = [_figures(side, pair, weights, num_threads) for side in (pair.a, pair.b)]
    if not pair.different:
        for i in (i for i in (0, 1) if pair.as_saved[i]):  # another order may break ties otherwise
            _check(pair.paths[i], pair.contents[i]["protocols"], resampled[i][0])
    (a_figures, a_words), (b_figures, b_words) = resampled
    vocabulary = pair.a.vocabulary
    known = ~np.isnan(a_words) & ~np.isnan(b_words)
    labels = np.flatnonzero(known[:, 0] & known[:, 1:].any(1))
    return Comparison(
        a=str(pair.paths[0]),
        b=str(pair.paths[1]),
        figures={
            part: {name: _difference(values, b_figures[part][name], confidence) for name, values in figures.items()}
            for part, figures in a_figures.items()
        },
        words={vocabulary.words[i]: _difference(a_words[i], b_words[i], confidence) for i in labels},
        is_seen={vocabulary.words[i]: bool(vocabulary.is_seen[i]) for i in labels},
        num_images=len(pair.a.ids),
        num_resamples=num_resamples,
        seed=seed,
        confidence=confidence,
        policies=pair.policies,
        different=pair.different,
    )


def _figures(
    side: ScoresFile, pair: Pair, weights: Sequence[np.ndarray], num_threads: int | None
) -> tuple[dict[str, dict[str, np.ndarray]], np.ndarray]:
    """Every compared figure, (1+R,) each, the first of the images as they are; and the words' AP (N,1+R)."""
    policies, figures, words, last = pair.policies, {}, np.zeros((0, 0)), None
    for part, labels in pair.labels.items():
        scores, targets = side.scores[:, labels], side.targets[:, labels]
        kept = np.ones(len(scores), bool) if policies["keep_unlabelled"] else (targets == 1).any(1)
        targets[~kept] = -1  # takes no part and is never given
        if last is not None and policies["keep_unlabelled"]:  # other words make no difference to a word's own
            aps = words[np.searchsorted(last, labels)]
        else:
            aps = _average_precisions(scores, targets, weights, policies["average_precision"], num_threads)
        if last is None:  # the part with the most words comes first
            words, last = aps, labels
        means = {"mean_average_precision": mean_over_words(aps, policies["empty_words"])}
        if part == "gzsl":
            seen = side.vocabulary.is_seen[labels]
            for name, chosen in (("seen", seen), ("unseen", ~seen)):
                means[f"{name}_mean_average_precision"] = mean_over_words(aps[chosen], policies["empty_words"])
            means["harmonic_mean"] = harmonic_means(*list(means.values())[1:])
        figures[part] = means | _top_k(part, scores, targets, kept, pair.policies["top_k"], weights)
    return dict(reversed(figures.items())), words


def _average_precisions(
    scores: np.ndarray,
    targets: np.ndarray,
    weights: Sequence[np.ndarray],
    method: AveragePrecision,
    num_threads: int | None,
) -> np.ndarray:
    """(N,1+R) of every word in every resample."""

    def one_word(label: int) -> np.ndarray:
        return resampled_average_precision(scores[:, label], targets[:, label], weights, method)

    return np.array(in_threads(one_word, range(scores.shape[1]), num_threads))


def _top_k(
    part: str,
    scores: np.ndarray,
    targets: np.ndarray,
    kept: np.ndarray,
    top_k: Sequence[int],
    weights: Sequence[np.ndarray],
) -> dict[str, np.ndarray]:
    """F1@K, or the top-K accuracy of single labels, in every resample."""
    found, num_images = {}, np.maximum(weighted_sum(kept, weights), 1)
    positives = np.maximum(weighted_sum((targets == 1).sum(1), weights), 1)
    for k in (k for k in top_k if k <= scores.shape[1]):
        rows, columns = best_words(scores, targets, k)
        hits = weighted_sum(np.bincount(rows, targets[rows, columns] == 1, len(scores)).astype(np.int64), weights)
        if part == "single_label":
            found[f"top_{k}_accuracy"] = hits / num_images
        else:
            found[f"f1_at_{k}"] = harmonic_means(hits / (num_images * k), hits / positives)
    return found


def _check(path: Path, protocols: Mapping[str, Any], figures: Mapping[str, Mapping[str, np.ndarray]]) -> None:
    """Refuse a report whose figures are not those of its scores."""
    wrong = [
        f"{part} {name} is {protocols[part][name]} there, {values[0]} from the scores"
        for part, found in figures.items()
        for name, values in found.items()
        if name in protocols[part]
        and not (isinstance(protocols[part][name], int | float) and abs(protocols[part][name] - values[0]) <= 1e-9)
    ]
    if wrong:
        raise ValueError(f"{path} must have the figures of its scores, {'; '.join(wrong)}; evaluate again")


def _difference(a: np.ndarray, b: np.ndarray, confidence: float) -> Difference:
    known = ~np.isnan(a[1:]) & ~np.isnan(b[1:])
    a_drawn, b_drawn = a[1:][known], b[1:][known]

    def interval(values: np.ndarray) -> tuple[float, float]:
        low, high = np.quantile(values, ((1 - confidence) / 2, (1 + confidence) / 2))
        return float(low), float(high)

    return Difference(
        a=float(a[0]),
        b=float(b[0]),
        a_interval=interval(a_drawn),
        b_interval=interval(b_drawn),
        difference=float(b[0] - a[0]),
        interval=interval(b_drawn - a_drawn),
        share_b_above=float((b_drawn > a_drawn).mean()),
    )


def _cells(value: Difference) -> list[str]:
    def interval(pair: tuple[float, float], sign: str = "") -> str:
        return f"[{100 * pair[0]:{sign}.1f}, {100 * pair[1]:{sign}.1f}]"

    return [
        f"{100 * value.a:.1f}",
        interval(value.a_interval),
        f"{100 * value.b:.1f}",
        interval(value.b_interval),
        f"{100 * value.difference:+.1f}",
        interval(value.interval, "+"),
        f"{100 * value.share_b_above:.0f}%",
    ]
