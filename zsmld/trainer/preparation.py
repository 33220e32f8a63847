"""What stands before the first step: words become embeddings, and a frozen encoder's images become features."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from zsmld.features import FeatureDataset
from zsmld.trainer.captions import Captions, build_captions
from zsmld.trainer.selection import Selection
from zsmld.trainer.words import TrainingWords, rows_with

if TYPE_CHECKING:
    from zsmld.trainer import Trainer


def prepare_words(
    trainer: "Trainer", words: TrainingWords, device: torch.device
) -> tuple[Tensor | None, Captions | None, Selection]:
    """Encode the words, and tell the model of them.

    Returns:
        Embeddings (N,T) of the training words on the device, or None in class mode; the captions, if there shall be
        some; and what measures an epoch.
    """
    model, vocabulary = trainer.model, trainer.dataset.vocabulary
    model.calibration = None  # of the weights it had before
    model.scores = trainer.scores
    if model.decoder.text_dim is None:
        model.remember_words(vocabulary, None)
        return None, None, Selection(vocabulary, words, None)
    encoder = trainer.text_encoder or model.build_text_encoder(trainer.device)
    # The checkpoint knows all seen words, held-out ones too: they are part of the vocabulary it was selected on.
    seen = vocabulary.select(vocabulary.seen)
    model.remember_words(seen, model.encode_words(seen, encoder))
    model.heldout_words = words.heldout
    measured = vocabulary.select(vocabulary.words[label] for label in words.measured)
    selection = Selection(vocabulary, words, model.encode_words(measured, encoder).to(device))
    embeddings = model.encode_words(vocabulary.select(vocabulary.words[label] for label in words.labels))
    if trainer.standardize_words and len(embeddings) > 1:
        model.decoder.standardize_words(embeddings.to(device))
    captions = None
    if trainer.augmentation.captions:
        rows = rows_with(trainer.dataset.targets, words.labels)
        captions = build_captions(trainer.dataset, words.labels, rows, encoder, trainer.seed)
    return embeddings.to(device), None if captions is None else captions.to(device), selection


def prepare_data(trainer: "Trainer") -> tuple[Any, Any]:
    """The training and validation images, as features where these are asked for."""
    found: list[Any] = []
    for dataset in (trainer.dataset, trainer.val_dataset):
        if trainer.features is None or dataset is None or isinstance(dataset, FeatureDataset):
            found.append(dataset)
            continue
        features = trainer.features.extract(
            trainer.model.image_encoder, dataset, trainer.device, trainer.num_workers, trainer.progress
        )
        trainer.note_unreadable(features.unreadable)
        found.append(features)
    return found[0], found[1]
