"""Protocol: which images, which words, which policies. Every figure in a report stands beside its protocol."""

import difflib
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

import numpy as np

from zsmld.metrics import AveragePrecision, EmptyWords
from zsmld.vocabulary import Vocabulary

_POLICIES = ("keep_unlabelled", "empty_words", "average_precision", "top_k")

Task = Literal["zsl", "gzsl", "supervised"]


@dataclass(frozen=True)
class Protocol:
    """An evaluation protocol.

    Args:
        name: what reports call it.
        task: "zsl" ranks the unseen words, "gzsl" all words jointly (and writes ZSL too), "supervised" all words,
            whatever their partition.
        num_seen: seen words the dataset must have; None for any number.
        num_unseen: unseen words likewise.
        keep_unlabelled: keep test images that have none of the ranked words.
        empty_words: a word without positives counts as "zero" or is left out ("skip").
        average_precision: "exact" (ties share a threshold, as scikit-learn) or "legacy" (the official ML-Decoder code).
        top_k: the K of F1@K.

    Raises:
        ValueError: on a policy that does not exist.

    Example:
        >>> Protocol.named("coco_gzsl_48_17", keep_unlabelled=False).parts
        ('zsl', 'gzsl')
    """

    name: str
    task: Task
    num_seen: int | None = None
    num_unseen: int | None = None
    keep_unlabelled: bool = True
    empty_words: EmptyWords = "zero"
    average_precision: AveragePrecision = "exact"
    top_k: tuple[int, ...] = (3, 5)

    def __post_init__(self) -> None:
        for value, allowed, name in (
            (self.task, ("zsl", "gzsl", "supervised"), "task"),
            (self.empty_words, ("zero", "skip"), "empty_words"),
            (self.average_precision, ("exact", "legacy"), "average_precision"),
        ):
            if value not in allowed:
                raise ValueError(f"{name} must be one of {list(allowed)}, got {value!r}; correct it")
        if not isinstance(self.top_k, (tuple, list)) or not self.top_k or any(k < 1 for k in self.top_k):
            raise ValueError(f"top_k must be positive numbers, got {self.top_k}; write for instance (3, 5)")

    @classmethod
    def named(cls, name: str, **policies: Any) -> "Protocol":
        """A known protocol, with policies changed where given.

        Raises:
            ValueError: for an unknown name; the message has the nearest.
        """
        if name not in PROTOCOLS:
            near = difflib.get_close_matches(name, PROTOCOLS, 3) or sorted(PROTOCOLS)
            raise ValueError(f"protocol must be a known one, got {name!r}; did you mean one of {near}?")
        unknown = sorted(set(policies) - {f.name for f in fields(cls)})
        if unknown:
            raise ValueError(f"policies must be among {list(_POLICIES)}, got {unknown}; correct the names")
        return replace(PROTOCOLS[name], **policies)

    @property
    def parts(self) -> tuple[str, ...]:
        """What the report holds: a GZSL evaluation holds ZSL too."""
        return ("zsl", "gzsl") if self.task == "gzsl" else (self.task,)

    def ranked_labels(self, part: str, vocabulary: Vocabulary) -> np.ndarray:
        """Labels ranked in a part ("zsl", "gzsl", "supervised"), in label order, (N,) int64.

        Raises:
            ValueError: if the vocabulary is not the one the protocol is about.
        """
        counts = (len(vocabulary.seen), len(vocabulary.unseen))
        expected = (self.num_seen, self.num_unseen)
        if any(e is not None and c != e for c, e in zip(counts, expected, strict=True)):
            seen, unseen = ("any number of" if e is None else e for e in expected)
            raise ValueError(
                f"protocol {self.name} needs {seen} seen and {unseen} unseen words, the dataset has "
                f"{counts[0]} and {counts[1]}; use its partition"
            )
        if part != "supervised" and 0 in counts:
            raise ValueError(
                f"protocol {self.name} needs seen and unseen words, the dataset has {counts[0]} and {counts[1]}; "
                f"give it a partition, or use protocol 'supervised'"
            )
        return np.flatnonzero(~vocabulary.is_seen) if part == "zsl" else np.arange(len(vocabulary))

    def check(self, vocabulary: Vocabulary) -> None:
        """Refuse a vocabulary that the protocol is not about.

        Raises:
            ValueError: as `ranked_labels`, for any part.
        """
        for part in self.parts:
            self.ranked_labels(part, vocabulary)

    def policies(self) -> dict[str, Any]:
        """Every policy by name, for the report."""
        state = asdict(self)
        return {key: state[key] for key in ("task", *_POLICIES)}


def _both(dataset: str, num_seen: int | None, num_unseen: int | None, variant: str = "") -> list[Protocol]:
    return [
        Protocol(f"{dataset}_{task}{variant}".removeprefix("_"), task, num_seen, num_unseen) for task in ("zsl", "gzsl")
    ]


PROTOCOLS: dict[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        *_both("", None, None),  # "zsl" and "gzsl": any dataset with a partition
        Protocol("supervised", "supervised"),
        *_both("scenes", 80, 20),
        *_both("nus_wide", 925, 81),
        *_both("coco", 48, 17, "_48_17"),
        *_both("coco", 65, 15, "_65_15"),
    )
}
