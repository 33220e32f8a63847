"""Which words are trained, and which seen words are held out to select the model by."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from zsmld.datasets import Dataset
from zsmld.decoder import MLDecoder, TrainingFreeScorer
from zsmld.vocabulary import Vocabulary


@dataclass(frozen=True)
class TrainingWords:
    """The words of a dataset, divided for training.

    Attributes:
        labels: (N,) positions of the words that are trained.
        heldout: seen words that are not, in label order: pseudo-unseen words.
        measured: (R,) positions of the words that validation ranks: all seen words, and the unseen ones only if asked.
        selecting: (K,) positions of the words whose mAP selects the epoch.
    """

    labels: np.ndarray
    heldout: tuple[str, ...]
    measured: np.ndarray
    selecting: np.ndarray


def divide_words(
    vocabulary: Vocabulary,
    decoder: MLDecoder | TrainingFreeScorer,
    val_dataset: Dataset | None,
    holdout_words: float,
    select_on_unseen_words: bool,
    seed: int,
) -> TrainingWords:
    """Divide the seen words into trained and held-out ones. Unseen words are in neither.

    Args:
        vocabulary: of the dataset.
        decoder: a head with class queries takes all words or none.
        val_dataset: only words that occur in its images can tell one epoch from another.
        holdout_words: share of the seen words, in [0,1); at most half of those that occur, so that some are left.
        select_on_unseen_words: select by the unseen words themselves, and hold nothing out.
        seed: of the choice.

    Raises:
        ValueError: if there are no seen words, or class queries do not fit them.
    """
    seen = np.flatnonzero(vocabulary.is_seen)
    if decoder.text_dim is None and (len(vocabulary) != decoder.num_classes or len(seen) < len(vocabulary)):
        raise ValueError(
            f"dataset must have {decoder.num_classes} seen words for class queries, got {len(seen)} seen of "
            f"{len(vocabulary)}; use word queries to leave words unseen"
        )
    if not len(seen):
        raise ValueError("dataset must have seen words to train on, got none; correct its partition")
    if val_dataset is None or decoder.text_dim is None:
        return TrainingWords(seen, (), seen, seen)
    if select_on_unseen_words:
        unseen = np.flatnonzero(~vocabulary.is_seen)
        return TrainingWords(seen, (), np.arange(len(vocabulary)), unseen)
    occurring = np.intersect1d(seen, np.flatnonzero(np.asarray((val_dataset.targets == 1).sum(0)).ravel()))
    if not holdout_words or len(occurring) < 2:
        return TrainingWords(seen, (), seen, seen)
    num_heldout = min(max(1, round(holdout_words * len(seen))), len(occurring) // 2)
    heldout = np.sort(np.random.default_rng(seed).choice(occurring, num_heldout, replace=False))
    words = tuple(vocabulary.words[label] for label in heldout)
    return TrainingWords(np.setdiff1d(seen, heldout), words, seen, heldout)


def rows_with(targets: Any, labels: np.ndarray) -> np.ndarray:
    """Rows of a CSR matrix (M,N) with a 1 in one of these columns.

    Raises:
        ValueError: if there is none.
    """
    rows = np.flatnonzero(np.asarray((targets[:, labels] == 1).sum(1)).ravel())
    if not len(rows):
        raise ValueError("dataset must have images with a seen word, got none; check its words and partition")
    return rows
