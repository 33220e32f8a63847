"""Calibration: what is done to logits after training, chosen on held-out seen words and stored with the model.

Four things, in this order: logits are standardised by word, by image, or both; words that were not trained get a
constant (calibrated stacking); a slope and an offset turn the result into scores in [0,1]; and each word has a
threshold. A word's calibrated logit does not depend on the other words at hand: what needs several words takes its
statistics from a reference vocabulary that is stored in the checkpoint.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np

from zsmld.calibration.choice import choose_calibration
from zsmld.calibration.stored import Calibration
from zsmld.datasets import Dataset, dense_targets, ids_digest
from zsmld.model import ZeroShotClassifier
from zsmld.scoring import score_dataset
from zsmld.text import resolve_device
from zsmld.vocabulary import check_words

__all__ = ["Calibration", "calibrate", "choose_calibration"]


def calibrate(
    model: ZeroShotClassifier,
    dataset: Dataset,
    heldout_words: Iterable[str] | None = None,
    *,
    use_test_images: bool = False,
    use_training_images: bool = False,
    device: str = "auto",
    batch_size: int = 64,
    num_workers: int = 0,
    **options: Any,
) -> Calibration:
    """Choose a calibration for a model; `model.calibration = calibration.to_dict()` stores it.

    Only labels of the model's seen words are read, held-out ones among them; unseen words take no part.

    Args:
        model: moved to the device.
        dataset: validation images, whose split is "val"; others are refused unless one of the next two says so.
        heldout_words: all seen words that were not trained; default those stored with the model. An empty list, given
            explicitly, calibrates without any: no stacking, and the default threshold is that of seen words.
        use_test_images: allow a dataset whose split is "test", "all" or any other that may hold test images. Figures
            on those images are then no longer fair; reports say so.
        use_training_images: allow a dataset whose split is "train". The head was fitted on these images, so that the
            logits of trained words are better there than anywhere else.
        device: "auto", "cpu", "cuda" or "mps".
        batch_size: images a batch.
        num_workers: processes that decode images.
        options: further arguments of `choose_calibration`.

    Raises:
        ValueError: if the split is refused, or it is not known which words were held out, or the dataset does not fit,
            or a logit is NaN.

    Example:
        >>> from zsmld.datasets import build_dataset
        >>> model = ZeroShotClassifier.from_pretrained("scenes")
        >>> images = build_dataset("scenes", split="val", num_images=16)
        >>> calibrate(model, images, heldout_words=(), device="cpu").stacking
        0.0
    """
    known = model.vocabulary
    if known is None:
        raise ValueError("model must know the words it was trained on to be calibrated, it has none; train it first")
    if dataset.split == "train" and not use_training_images:
        raise ValueError(
            "dataset must be the split 'val', got 'train', the images that the head was fitted on; calibrate on "
            "validation images (--split val), or pass use_training_images=True (Python only) to do it all the same"
        )
    if dataset.split not in ("train", "val") and not use_test_images:
        raise ValueError(
            f"dataset must be the split 'val', got {dataset.split!r}, whose test images would no longer give fair "
            f"figures; calibrate on validation images (--split val), or pass use_test_images=True (--use-test-images) "
            f"to do it all the same"
        )
    if heldout_words is None:
        heldout_words = model.heldout_words
        if not heldout_words and model.decoder.text_dim is not None:
            raise ValueError(
                "heldout_words must be known, the model names no seen words that were left out of its training; train "
                "with holdout_words > 0 (trainer.holdout_words=8), or in Python pass the ones that were, or pass "
                "heldout_words=() to calibrate without"
            )
    words, heldout = known.seen, check_words(heldout_words, "heldout_words", allow_empty=True)
    wrong = set(heldout) ^ set(model.heldout_words) if model.heldout_words and heldout else set(heldout) - set(words)
    if wrong:
        raise ValueError(
            f"heldout_words must be the seen words that were left out of the training, got {sorted(wrong)[:5]} amiss; "
            f"leave the argument out where the model knows them ({len(model.heldout_words)} stored)"
        )
    labels = set(dataset.vocabulary.seen)
    columns = [column for column, word in enumerate(words) if word in labels]
    if not columns:
        raise ValueError(
            f"dataset must have labels of the model's seen words, got none of {list(words[:3])}… among its seen words "
            f"{list(dataset.vocabulary.seen[:3])}…; use the partition of the training"
        )
    on, training = resolve_device(device), model.training
    model = model.to(on).eval()
    try:
        embeddings = None if model.decoder.text_dim is None else model.encode_words(words).to(on)  # (N,T)
        scored = score_dataset(model, dataset, embeddings, on, batch_size, num_workers)
    finally:
        model.train(training)
    targets = np.full(scored.logits.shape, -1, np.int8)  # words without labels here still give statistics
    targets[:, columns] = dense_targets(dataset, dataset.vocabulary.labels(words[j] for j in columns))[scored.rows]
    images = {
        "dataset": dataset.name,
        "split": dataset.split,
        "num_images": len(scored.rows),
        "image_ids_sha256": ids_digest(scored.ids),
    }
    return choose_calibration(scored.logits, targets, words, heldout, **options, chosen_on=images)
