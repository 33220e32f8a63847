"""Protocol: which images, which words, which policies. Every figure in a report stands beside its protocol."""

import difflib
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, get_args

import numpy as np

from zsmld.metrics import AveragePrecision, EmptyWords
from zsmld.vocabulary import Vocabulary

_POLICIES = ("keep_unlabelled", "empty_words", "average_precision", "top_k", "threshold")

Task = Literal["zsl", "gzsl", "seen", "supervised", "single_label"]


@dataclass(frozen=True)
class Protocol:
    """An evaluation protocol.

    Args:
        name: what reports call it.
        task: "zsl" ranks the unseen words, "gzsl" all words jointly (and writes ZSL too), "seen" the seen words,
            "supervised" all words, whatever their partition, "single_label" likewise, with one word an image.
        num_seen: seen words the dataset must have; None for any number.
        num_unseen: unseen words likewise.
        keep_unlabelled: keep test images that have none of the ranked words.
        empty_words: a word without positives counts as "zero" or is left out ("skip").
        average_precision: "exact" (ties share a threshold, as scikit-learn), "legacy" (the official ML-Decoder code),
            "integral" or "11point" (PaddleClas; "11point" is also Pascal VOC 2007's).
        top_k: the K of F1@K; one that is larger than the number of ranked words is left out.
        threshold: score in [0,1] from which a word counts as given, for CP, CR, CF1, OP, OR and OF1.
        words_file: file below `data/` with the protocol's seen and unseen words, in the order in which a matrix without
            words is read; None where any words will do.

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
    threshold: float = 0.5
    words_file: str | None = None

    def __post_init__(self) -> None:
        for value, allowed, name in (
            (self.task, get_args(Task), "task"),
            (self.empty_words, get_args(EmptyWords), "empty_words"),
            (self.average_precision, get_args(AveragePrecision), "average_precision"),
        ):
            if value not in allowed:
                raise ValueError(f"{name} must be one of {list(allowed)}, got {value!r}; correct it")
        if not isinstance(self.top_k, (tuple, list)) or not self.top_k or any(k < 1 for k in self.top_k):
            raise ValueError(f"top_k must be positive numbers, got {self.top_k}; write for instance (3, 5)")
        if not 0 <= self.threshold <= 1:
            raise ValueError(f"threshold must be a score in [0, 1], got {self.threshold}; most papers use 0.5")

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

    @property
    def _hint(self) -> str:
        """What our datasets call the partition: 48_17, or 80 where nothing is unseen."""
        return "_".join(str(number) for number in (self.num_seen, self.num_unseen) if number)

    def ranked_labels(self, part: str, vocabulary: Vocabulary) -> np.ndarray:
        """Labels ranked in a part ("zsl", "gzsl", "seen", …), in label order, (N,) int64.

        Raises:
            ValueError: if the vocabulary is not the one the protocol is about.
        """
        counts = {"seen": len(vocabulary.seen), "unseen": len(vocabulary.unseen)}
        expected = {"seen": self.num_seen, "unseen": self.num_unseen}
        # Which words must be there: those that the task does not rank may be left out altogether.
        needed = {"zsl": ("unseen",), "gzsl": ("seen", "unseen"), "seen": ("seen",)}.get(self.task, ())
        checked = [side for side in counts if counts[side] or side in needed or self.task == "supervised"]
        if any(expected[side] not in (None, counts[side]) for side in checked):
            seen, unseen = ("any number of" if e is None else e for e in expected.values())
            raise ValueError(
                f"protocol {self.name} needs {seen} seen and {unseen} unseen words, the dataset has "
                f"{counts['seen']} and {counts['unseen']}; use its partition, such as dataset.partition={self._hint}"
            )
        if any(not counts[side] for side in needed):
            raise ValueError(
                f"protocol {self.name} needs {' and '.join(needed)} words, the dataset has {counts['seen']} seen and "
                f"{counts['unseen']} unseen; give it a partition, or use protocol 'supervised'"
            )
        if part in ("zsl", "seen"):
            return np.flatnonzero(vocabulary.is_seen == (part == "seen"))
        return np.arange(len(vocabulary))

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


def _zero_shot(dataset: str, num_seen: int | None, num_unseen: int | None, variant: str = "") -> list[Protocol]:
    tasks: tuple[Task, ...] = ("zsl", "gzsl", "seen")
    # Open Images' own lists come with the download; they are not among our files.
    words_file = f"{dataset}/partition{variant}.json" if dataset in ("scenes", "nus_wide", "coco") else None
    return [
        Protocol(f"{dataset}_{task}{variant}".removeprefix("_"), task, num_seen, num_unseen, words_file=words_file)
        for task in tasks
    ]


def _supervised(dataset: str, num_words: int, words_file: str) -> Protocol:
    return Protocol(f"{dataset}_supervised", "supervised", num_words, 0, words_file=words_file)


PROTOCOLS: dict[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        *_zero_shot("", None, None),  # "zsl", "gzsl" and "seen": any dataset with a partition
        Protocol("supervised", "supervised"),
        Protocol("single_label", "single_label", top_k=(1, 5)),
        *_zero_shot("scenes", 80, 20),
        *_zero_shot("nus_wide", 925, 81),
        _supervised("nus_wide", 81, "nus_wide/concepts.txt"),
        *_zero_shot("coco", 48, 17, "_48_17"),
        *_zero_shot("coco", 65, 15, "_65_15"),
        _supervised("coco", 80, "coco/classes.txt"),
        *_zero_shot("open_images", 7186, 400),
        Protocol("open_images_supervised", "supervised"),
        # The challenge of 2007 itself used the 11-point figure; multi-label papers use the exact one on it.
        _supervised("voc2007", 20, "voc/classes.txt"),
        _supervised("voc2012", 20, "voc/classes.txt"),
        Protocol("imagenet_single_label", "single_label", 1000, 0, top_k=(1, 5)),
    )
}
