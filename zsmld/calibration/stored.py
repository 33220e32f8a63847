"""What a calibration does to logits, and how it is stored: plain data in, checked, plain data out."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, get_args

import numpy as np
from scipy.special import expit

from zsmld.model import ZeroShotClassifier
from zsmld.vocabulary import check_words

Standardization = Literal["none", "per_image", "per_word", "both"]

_SMALL = 1e-6  # a deviation below this is that of a constant; dividing by it would be noise


@dataclass(frozen=True, repr=False)
class Calibration:
    """What turns a model's logits into calibrated logits, scores and decisions.

    Args:
        standardization: "per_word" centres and scales each word's logits over images, "per_image" each image's by those
            of the reference words, "both" first by word, then by image.
        trained_words: words the head was trained on; every other word gets `stacking`, held-out seen words too.
        stacking: added to the calibrated logits of words that were not trained, in their units.
        reference_words: whose logits give each image's mean and deviation; none if that is not needed.
        word_statistics: mean and deviation of a trained word's logits over the calibration images.
        default_statistics: the same for all other words: means over the trained ones.
        transductive: take the mean and deviation of every word from the very images that are scored, instead of from
            the calibration images. A score then depends on the other images; figures must say so.
        scale, bias: a score is sigmoid(scale · calibrated logit + bias); scale is positive.
        thresholds: of words with labelled images, in calibrated logits; infinite for a word that is never given.
        default_threshold: of all other words.
        objective: what the thresholds were chosen for, "f1" or "precision=0.9" with any precision in (0,1].
        chosen_on: images, words and settings of the choice, and what came out there; for the report.

    Raises:
        ValueError: listing everything that is wrong.

    Source: stacking is "calibrated stacking" of Chao et al. 2016, arXiv 1605.04253, equation 1: they subtract the
    constant from seen words, which ranks alike. Scale and bias are those of Platt 1999.

    Example:
        >>> calibration = Calibration(trained_words=("dog",), stacking=1.5, thresholds={"dog": 0.5})
        >>> calibrated = calibration.apply(np.array([[2.0, 1.0]]), ["dog", "zebra"])
        >>> calibrated.tolist(), calibration.thresholds_of(["dog", "zebra"]).tolist()
        ([[2.0, 2.5]], [0.5, 0.0])
    """

    standardization: Standardization = "none"
    trained_words: tuple[str, ...] = ()
    stacking: float = 0.0
    reference_words: tuple[str, ...] = ()
    word_statistics: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    default_statistics: tuple[float, float] = (0.0, 1.0)
    transductive: bool = False
    scale: float = 1.0
    bias: float = 0.0
    thresholds: Mapping[str, float] = field(default_factory=dict)
    default_threshold: float = 0.0
    objective: str = "f1"
    chosen_on: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        problems = [
            f"{name} must be {what}, got {_shortened(getattr(self, name))}"
            for name, (what, fits) in _CHECKS.items()
            if not fits(getattr(self, name))
        ]
        if not problems and self.by_image and len(self.reference_words) < 2:
            problems.append(f"reference_words must be at least 2 words for {self.standardization!r}, to have a spread")
        if not problems and self.transductive and not self.by_word:
            problems.append(f"transductive must be false for {self.standardization!r}, which takes nothing from images")
        if problems:
            raise ValueError("calibration must be valid, got:\n  - " + "\n  - ".join(problems) + "\ncalibrate again")

    def __repr__(self) -> str:
        return (
            f"Calibration({self.standardization!r}, stacking={self.stacking:.3g}, objective={self.objective!r}, "
            f"{len(self.thresholds)} thresholds, {len(self.trained_words)} trained words)"
        )

    @property
    def by_word(self) -> bool:
        """Whether each word's logits are standardised over images."""
        return self.standardization in ("per_word", "both")

    @property
    def by_image(self) -> bool:
        """Whether each image's logits are standardised by those of the reference words."""
        return self.standardization in ("per_image", "both")

    def apply(self, logits: np.ndarray, words: Iterable[str], reference_logits: np.ndarray | None = None) -> np.ndarray:
        """Calibrated logits.

        Args:
            logits: (M,N) finite, of a model in eval mode.
            words: N words, column by column.
            reference_logits: (M,R) of the same images and `reference_words`, under the templates of the model's
                vocabulary; may be left out if nothing needs them, or if they are all among `words`.

        Returns:
            (M,N) in the precision of `logits`. Column j depends on the image, on word j and on nothing else, unless
            the calibration is transductive: then on the other images too.

        Raises:
            ValueError: if shapes do not fit, or reference logits are missing.
        """
        words, logits = check_words(words), np.asarray(logits)
        if logits.ndim != 2 or logits.shape[1] != len(words):
            raise ValueError(f"logits must be (M, {len(words)}), one column a word, got {logits.shape}; correct them")
        calibrated = self._standardize_words(logits, words)
        if self.by_image:
            if reference_logits is None:
                reference_logits = _columns(logits, words, self.reference_words)
            expected = (len(logits), len(self.reference_words))
            if reference_logits.shape != expected:
                raise ValueError(
                    f"reference_logits must be {expected}, one column for each of reference_words, got "
                    f"{reference_logits.shape}; score calibration.reference_words with the same images"
                )
            reference = self._standardize_words(reference_logits, self.reference_words)
            calibrated -= reference.mean(1, keepdims=True, dtype=np.float64).astype(calibrated.dtype)
            calibrated /= _spread(reference.std(1, keepdims=True, dtype=np.float64)).astype(calibrated.dtype)
        trained = set(self.trained_words)
        calibrated[:, [word not in trained for word in words]] += calibrated.dtype.type(self.stacking)
        return calibrated

    def scores(self, calibrated: np.ndarray) -> np.ndarray:
        """Scores in [0,1], fp32, of calibrated logits or thresholds of any shape; their order is the same."""
        exponent = self.scale * np.asarray(calibrated, np.float64) + self.bias
        return expit(exponent).astype(np.float32)

    def thresholds_of(self, words: Iterable[str]) -> np.ndarray:
        """(N,) fp64: each word's threshold; a word is given to an image if its calibrated logit is at least this."""
        return np.array([self.thresholds.get(word, self.default_threshold) for word in words], np.float64)

    def margins(self, calibrated: np.ndarray, words: Iterable[str]) -> np.ndarray:
        """Calibrated logits (M,N) minus thresholds: at least 0 where a word is given, −∞ where it never is."""
        return calibrated - self.thresholds_of(words).astype(calibrated.dtype)

    def summary(self) -> dict[str, Any]:
        """What a report says of it: plain values, without the statistics and thresholds of single words."""
        left_out = ("trained_words", "reference_words", "word_statistics", "default_statistics", "thresholds")
        state = {name: value for name, value in self.to_dict().items() if name not in left_out}
        counted = ("trained_words", "reference_words", "thresholds")
        return state | {f"num_{name}": len(getattr(self, name)) for name in counted}

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; a threshold that is never reached is None."""
        state = asdict(self)
        for name in ("trained_words", "reference_words", "default_statistics"):
            state[name] = list(state[name])
        state["word_statistics"] = {word: list(pair) for word, pair in state["word_statistics"].items()}
        state["thresholds"] = {word: _or_none(value) for word, value in state["thresholds"].items()}
        state["default_threshold"] = _or_none(self.default_threshold)
        return state

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> "Calibration":
        """The inverse of `to_dict`.

        Raises:
            ValueError: listing the keys that are missing or unknown, or every value that is wrong.
        """
        if isinstance(state, Calibration):
            raise ValueError("calibration must be plain data where a model stores it; use the calibration's to_dict()")
        if not isinstance(state, Mapping):
            raise ValueError(f"calibration must be a mapping, got {_shortened(state)}; calibrate again")
        known = {field.name for field in fields(cls)}
        missing, unknown = sorted(known - set(state)), sorted(set(state) - known)
        if missing or unknown:
            raise ValueError(
                f"calibration must have the keys {sorted(known)}, {missing} are missing and {unknown} unknown; "
                f"calibrate again"
            )
        values: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in state.items()
        }
        for name in ("word_statistics", "thresholds"):
            if isinstance(values[name], Mapping):
                values[name] = {
                    word: math.inf if value is None else tuple(value) if isinstance(value, list) else value
                    for word, value in values[name].items()
                }
        if values["default_threshold"] is None:
            values["default_threshold"] = math.inf
        return cls(**values)

    @classmethod
    def of(cls, model: ZeroShotClassifier) -> "Calibration | None":
        """The calibration stored with a model, if it has one."""
        return None if model.calibration is None else cls.from_dict(model.calibration)

    def _standardize_words(self, logits: np.ndarray, words: Sequence[str]) -> np.ndarray:
        """A copy, in which each word's logits are standardised over images if this calibration does that."""
        calibrated = np.array(logits, logits.dtype if logits.dtype.kind == "f" else np.float64)
        if self.by_word:
            if self.transductive:
                mean, deviation = column_statistics(calibrated)
            else:
                pairs = [self.word_statistics.get(word, self.default_statistics) for word in words]
                mean, deviation = np.array(pairs).T
            calibrated -= mean.astype(calibrated.dtype)
            calibrated /= deviation.astype(calibrated.dtype)
        return calibrated


def column_statistics(logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation (N,) of each column; the deviation of a constant is 1.

    Example:
        >>> column_statistics(np.array([[1.0, 7.0], [5.0, 7.0]]))
        (array([3., 7.]), array([2., 1.]))
    """
    return logits.mean(0, dtype=np.float64), _spread(logits.std(0, dtype=np.float64))


def is_objective(value: Any) -> bool:
    """Whether a text says what thresholds are chosen for.

    Example:
        >>> is_objective("f1"), is_objective("precision=0.9"), is_objective("precision=90")
        (True, True, False)
    """
    if not isinstance(value, str) or value == "f1":
        return value == "f1"
    try:
        return value.startswith("precision=") and 0 < float(value.removeprefix("precision=")) <= 1
    except ValueError:
        return False


def _spread(deviation: np.ndarray) -> np.ndarray:
    return np.where(deviation < _SMALL, 1.0, deviation)


def _columns(logits: np.ndarray, words: Sequence[str], wanted: Sequence[str]) -> np.ndarray:
    labels = {word: label for label, word in enumerate(words)}
    missing = [word for word in wanted if word not in labels]
    if missing:
        raise ValueError(
            f"reference_logits must be given where words lack some of the reference words, got none without "
            f"{missing[:3]} ({len(missing)} of {len(wanted)}); score calibration.reference_words with the same images"
        )
    return np.take(logits, [labels[word] for word in wanted], axis=1)


def _is_number(value: Any, low: float = -math.inf) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and low < value < math.inf


def _is_limit(value: Any) -> bool:
    return _is_number(value) or value == math.inf


def _is_words(value: Any) -> bool:
    distinct = isinstance(value, tuple) and all(isinstance(word, str) and word for word in value)
    return distinct and len(set(value)) == len(value)


def _is_statistics(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and _is_number(value[0]) and _is_number(value[1], 0.0)


def _maps_words(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, Mapping) and all(isinstance(w, str) and fits(v) for w, v in value.items())


# What each field must be, in words and as a test.
_CHECKS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "standardization": (f"one of {list(get_args(Standardization))}", lambda v: v in get_args(Standardization)),
    "trained_words": ("distinct words", _is_words),
    "stacking": ("a finite number", _is_number),
    "reference_words": ("distinct words", _is_words),
    "word_statistics": ("a finite mean and a positive deviation for each word", _maps_words(_is_statistics)),
    "default_statistics": ("a finite mean and a positive deviation", _is_statistics),
    "transductive": ("true or false", lambda v: isinstance(v, bool)),
    "scale": ("a positive number", lambda v: _is_number(v, 0.0)),
    "bias": ("a finite number", _is_number),
    "thresholds": ("a number for each word, or null for never", _maps_words(_is_limit)),
    "default_threshold": ("a number, or null for never", _is_limit),
    "objective": ("'f1' or 'precision=P' with P in (0, 1]", is_objective),
    "chosen_on": ("a mapping", lambda v: isinstance(v, Mapping)),
}


def _shortened(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _or_none(value: float) -> float | None:
    return None if math.isinf(value) else value
