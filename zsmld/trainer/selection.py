"""Model selection: what an epoch is measured by, and on which words."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from zsmld.datasets import Dataset, dense_targets
from zsmld.metrics import average_precision, mean_average_precision
from zsmld.model import ZeroShotClassifier
from zsmld.scoring import score_dataset
from zsmld.trainer.words import TrainingWords
from zsmld.vocabulary import Vocabulary

LAST = "the last epoch"


def holds_test_images(dataset: Dataset | None) -> bool:
    """Whether choosing by these images makes figures on test images unfair."""
    return dataset is not None and dataset.split in ("test", "all")


def what_selects(val_dataset: Dataset | None, words: TrainingWords, select_on_unseen_words: bool) -> str:
    """The key of an epoch's record whose largest value selects it, or `LAST` where nothing can."""
    if val_dataset is None or not (val_dataset.targets[:, words.selecting] == 1).sum():
        return LAST
    if select_on_unseen_words:
        return "unseen_mean_average_precision"
    if words.heldout:
        return "heldout_mean_average_precision"
    return "top_1_accuracy" if _single_label(val_dataset, words) else "seen_mean_average_precision"


def describe_selection(selected_by: str, num_heldout: int, val_dataset: Dataset | None) -> str:
    """What selects the epoch, as a person wants to read it."""
    if selected_by == LAST:
        return "the last epoch: there are no validation images, or no words in them"
    words = {"heldout": f"{num_heldout} held-out seen words", "unseen": "the UNSEEN words", "seen": "seen words"}
    figure = words.get(selected_by.split("_")[0])
    test = " (TEST images)" if holds_test_images(val_dataset) else ""
    return f"by the {'top-1 accuracy' if figure is None else f'mAP of {figure}'} on {val_dataset!r}{test}"


def _single_label(dataset: Dataset, words: TrainingWords) -> bool:
    """Whether every image has exactly one of the measured words."""
    counts = np.asarray((dataset.targets[:, words.measured] == 1).sum(1)).ravel()
    return bool((counts == 1).all())


class Selection:
    """Measures an epoch.

    Args:
        vocabulary: of the dataset.
        words: which of its words are trained, held out and measured.
        word_embeddings: (R,T) of the measured words, on the model's device; None in class mode.

    Attributes:
        unreadable: (id, error) of the validation images that could not be read.
    """

    def __init__(self, vocabulary: Vocabulary, words: TrainingWords, word_embeddings: Tensor | None) -> None:
        self._vocabulary, self._words, self._embeddings = vocabulary, words, word_embeddings
        self.unreadable: list[tuple[str, str]] = []

    @torch.no_grad()
    def measure(
        self, model: ZeroShotClassifier, dataset: Any, device: torch.device, batch_size: int, num_workers: int
    ) -> dict[str, float]:
        """mAP of the trained words, and of those that select, on validation images; words without a positive are
        skipped. For single-label images the top-1 accuracy too. Nothing without a dataset.
        """
        if dataset is None:
            return {}
        model.eval()
        labels = self._words.measured
        scored = score_dataset(model, dataset, self._embeddings, device, batch_size, num_workers)
        self.unreadable = scored.unreadable
        targets = dense_targets(dataset, labels)[scored.rows]  # (M,R)
        aps = average_precision(scored.logits, targets)  # (R,)
        trained, unseen = np.isin(labels, self._words.labels), ~self._vocabulary.is_seen[labels]
        parts = {"seen": trained, "heldout": ~trained & ~unseen, "unseen": unseen}
        figures = {
            f"{name}_mean_average_precision": mean_average_precision(aps[part], "skip")
            for name, part in parts.items()
            if part.any()
        }
        if _single_label(dataset, self._words):
            figures["top_1_accuracy"] = float((targets[np.arange(len(targets)), scored.logits.argmax(1)] == 1).mean())
        return figures
