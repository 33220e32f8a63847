"""What comes out for one image: Prediction, and which words are given to it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from zsmld.vocabulary import Vocabulary

Threshold = float | Mapping[str, float] | Literal["calibrated", "stored"] | None
DefaultThreshold = float | Literal["calibrated"]


@dataclass(frozen=True)
class Prediction:
    """The words of one image.

    Attributes:
        path: of the image; None for one that came as an array, a tensor or an open image.
        words: best first.
        scores: in [0,1], in the order of `words`.
        labels: positions of `words` in the predictor's vocabulary.
        error: why the image could not be read, or None.
        full_scores: (N,) fp32 of every word of the vocabulary, in its order, where they were asked for; no part of the
            record.
    """

    path: str | None
    words: tuple[str, ...] = ()
    scores: tuple[float, ...] = ()
    labels: tuple[int, ...] = ()
    error: str | None = None
    full_scores: np.ndarray | None = field(default=None, repr=False, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """The prediction record that `zsmld predict` writes."""
        return {
            "path": self.path,
            "words": list(self.words),
            "scores": list(self.scores),
            "labels": list(self.labels),
            "error": self.error,
        }

    def __repr__(self) -> str:
        if self.error is not None:
            return f"Prediction({self.path!r}, error={self.error!r})"
        shown = ", ".join(f"{word!r} {score:.2f}" for word, score in zip(self.words[:5], self.scores[:5], strict=True))
        more = f", …; {len(self.words)} words" if len(self.words) > 5 else ""
        return f"Prediction({self.path!r}, {shown or 'no words'}{more})"

    def _repr_html_(self) -> str:
        from zsmld.predictor.pictures import notebook_card  # which imports this class

        return notebook_card(self)


@dataclass(frozen=True)
class Thresholds:
    """The least score at which each word is given to an image.

    Args:
        words: in [0,1], of some words.
        default: of all others; "calibrated" for that of the model's calibration.
    """

    words: Mapping[str, float]
    default: DefaultThreshold = 0.5

    def checked(self, vocabulary: Vocabulary, is_calibrated: bool) -> "Thresholds":
        """With plain numbers.

        Raises:
            TypeError: if the words are no mapping.
            ValueError: if a word is not in the vocabulary, or a threshold makes no sense.
        """
        if not isinstance(self.words, Mapping):
            raise TypeError(
                f"thresholds must map words to scores, got {type(self.words).__name__}; write {{'dog': 0.5}}"
            )
        strangers = [word for word in self.words if word not in vocabulary]
        if strangers:
            raise ValueError(
                f"thresholds must be of words of the predictor, got {strangers[:5]} besides; correct them, add them "
                f"with add_words, or name the word in the place of its synonym"
            )
        wrong = {word: value for word, value in self.words.items() if not is_score(value)}
        if wrong:
            raise ValueError(f"thresholds must be in [0, 1], got {wrong}; scores lie between these")
        if self.default == "calibrated" and not is_calibrated:
            raise ValueError(
                "default_threshold must be a number, got 'calibrated' and no calibration; calibrate the model, or "
                "give a number"
            )
        if self.default != "calibrated" and not is_score(self.default):
            raise ValueError(
                f"default_threshold must be in [0, 1] or 'calibrated', got {self.default!r}; scores lie between these"
            )
        return Thresholds({word: float(value) for word, value in self.words.items()}, self.default)

    def of_words(self, vocabulary: Vocabulary) -> "Thresholds":
        """Without those of words that are not in the vocabulary."""
        return Thresholds({word: value for word, value in self.words.items() if word in vocabulary}, self.default)

    def least_scores(self, vocabulary: Vocabulary) -> np.ndarray:
        """(N,) fp32, as scores are; NaN for a word about which the calibration decides.

        Example:
            >>> Thresholds({"dog": 0.5}, "calibrated").least_scores(Vocabulary(["zebra", "dog"]))
            array([nan, 0.5], dtype=float32)
        """
        default = np.nan if self.default == "calibrated" else self.default
        return np.array([self.words.get(word, default) for word in vocabulary], np.float32)


def check_threshold(
    threshold: Any, default: Any, stored: Thresholds | None, vocabulary: Vocabulary, is_calibrated: bool
) -> Thresholds | None:
    """What `Predictor.predict` was given as `threshold`; None: every word is given.

    Raises:
        TypeError, ValueError: if it makes no sense, or what it names is not there.
    """
    if threshold is None:
        return None
    if isinstance(threshold, Mapping):
        return Thresholds(threshold, default).checked(vocabulary, is_calibrated)
    if threshold == "stored" and stored is not None:
        return stored.checked(vocabulary, is_calibrated)
    if isinstance(threshold, str) and not (threshold == "calibrated" and is_calibrated):
        lacks = {
            "calibrated": " with no calibration; calibrate the model (`zsmld calibrate`), or give a number",
            "stored": " with no stored thresholds; store some with set_thresholds, or give a number",
        }
        raise ValueError(
            f"threshold must be a number, a mapping of words, 'calibrated' for a calibrated model, or 'stored' for one "
            f"with stored thresholds, got {threshold!r}{lacks.get(threshold, '; correct it')}"
        )
    if not isinstance(threshold, str) and not is_score(threshold):
        raise ValueError(f"threshold must be in [0, 1], got {threshold!r}; scores lie between these")
    return Thresholds({}, threshold)


def is_score(value: Any) -> bool:
    """Whether a value can be a score.

    Example:
        >>> is_score(0), is_score(1.5), is_score("0.5")
        (True, False, False)
    """
    return isinstance(value, (int, float, np.number)) and not isinstance(value, bool) and bool(0 <= value <= 1)


def predictions_of(
    paths: Sequence[str | None],
    scores: np.ndarray,
    given: np.ndarray,
    errors: Mapping[int, str],
    vocabulary: Vocabulary,
    top_k: int | None,
    full_scores: bool,
) -> Iterator[Prediction]:
    """The predictions of a batch, in order.

    Args:
        paths: of all B images.
        scores: (G,N) of the readable ones.
        given: (G,N) bool, which words reach their thresholds.
        errors: of the others, by position in `paths`.
        vocabulary: N words.
        top_k: at most so many words; None for all.
        full_scores: whether the predictions hold all scores.
    """
    rows = iter(range(len(scores)))
    for position, path in enumerate(paths):
        if position in errors:
            yield Prediction(path, error=errors[position])
            continue
        row = next(rows)
        labels = best_labels(scores[row], given[row], top_k)
        yield Prediction(
            path,
            words=tuple(vocabulary.words[label] for label in labels),
            scores=tuple(scores[row, labels].tolist()),
            labels=tuple(labels.tolist()),
            full_scores=scores[row].copy() if full_scores else None,
        )


def best_labels(scores: np.ndarray, given: np.ndarray, top_k: int | None) -> np.ndarray:
    """Labels of the best of the words that are given, best first; of equal scores the first label first.

    Args:
        scores: (N,).
        given: (N,) bool.
        top_k: at most so many; None for all.

    Example:
        >>> best_labels(np.array([0.1, 0.7, 0.7, 0.9]), np.array([True, True, True, False]), 2).tolist()
        [1, 2]
    """
    labels = np.flatnonzero(given)
    if top_k is not None and top_k < len(labels):  # only those that can be among the best are sorted
        least = np.partition(scores[labels], -top_k)[-top_k]
        labels = labels[scores[labels] >= least]
    return labels[np.argsort(-scores[labels], kind="stable")][:top_k]
