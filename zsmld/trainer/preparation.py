"""What stands before the first step: words become embeddings, and a frozen encoder's images become features."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from zsmld.datasets import dense_targets
from zsmld.datasets.named_words import find_words
from zsmld.decoder import MLDecoder, TrainingFreeScorer
from zsmld.features import FeatureDataset, encode_sentences
from zsmld.losses import Loss
from zsmld.trainer.captions import Captions, build_captions
from zsmld.trainer.knowledge import (
    Teacher,
    calibrate_prior,
    candidate_similarities,
    opinions,
    spatial_batches,
)
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
    if isinstance(model.decoder, MLDecoder):  # what needs no training has nothing to set
        if trainer.standardize_words and len(embeddings) > 1:
            model.decoder.standardize_words(embeddings.to(device))
        if model.decoder.word_reach:
            model.decoder.remember_seen_words(embeddings.to(device))
    captions = None
    if trainer.augmentation.captions:
        rows = rows_with(trainer.dataset.targets, words.labels)
        captions = build_captions(trainer.dataset, words.labels, rows, encoder, trainer.seed)
    return embeddings.to(device), None if captions is None else captions.to(device), selection


def prepare_prior(
    trainer: "Trainer", dataset: Any, words: TrainingWords, embeddings: Tensor | None, device: torch.device, loss: Loss
) -> Teacher | None:
    """Calibrate the head's prior on training images, and make a teacher of it where one is wanted."""
    decoder = trainer.model.decoder
    if not isinstance(decoder, MLDecoder) or decoder.prior is None or embeddings is None:
        return None
    if not (trainer.calibrate_prior or trainer.teacher_words):
        return None
    prior, rows = decoder.prior, rows_with(dataset.targets, words.labels)
    taught, kept, shares = _taught(trainer, prior, device), [], []

    def batches() -> Iterator[Tensor]:
        for spatial, part in spatial_batches(trainer.model, dataset, rows, device, trainer.num_workers):
            kept.append(part)
            if taught is not None:
                shares.append(opinions(prior, spatial, taught, torch.arange(len(taught))).sum(0))  # (K,)
            yield spatial

    candidates = candidate_similarities(prior, batches(), embeddings)
    if not kept:
        raise ValueError("dataset must have readable images to calibrate the prior on, got none; correct their paths")
    if trainer.calibrate_prior:
        calibrate_prior(prior, candidates, dense_targets(dataset, words.labels)[np.concatenate(kept)], loss)
    if taught is None:
        return None
    share = torch.stack(shares).sum(0)
    # Half of the draw goes to what is in the images, half to everything.
    share = share / share.sum() + 1 / len(share)
    return Teacher(
        copy.deepcopy(prior), taught, share.cpu(), trainer.teacher_words, trainer.teacher_weight, trainer.seed
    )


def _taught(trainer: "Trainer", prior: TrainingFreeScorer, device: torch.device) -> Tensor | None:
    """Embeddings (K,T) of the words that a teacher has an opinion of."""
    if not trainer.teacher_words:
        return None
    if prior.output == "conse":
        return prior.class_embeddings
    encoder = trainer.text_encoder or trainer.model.build_text_encoder(trainer.device)
    return encoder.encode_words(_teacher_list(trainer), trainer.dataset.vocabulary.templates).to(device)


def _teacher_list(trainer: "Trainer") -> list[str]:
    assert trainer.teacher_list is not None  # the options were checked
    lines = Path(trainer.teacher_list).read_text(encoding="utf-8-sig").splitlines()
    words = [word for word in dict.fromkeys(line.strip() for line in lines) if word]
    # What names a word that measures generalisation stays out of training.
    measuring = [*trainer.dataset.vocabulary.unseen, *trainer.heldout]
    named = find_words(words, measuring).getnnz(1) if measuring else np.zeros(len(words), int)
    return [word for word, count in zip(words, named, strict=True) if not count]


def prepare_data(trainer: "Trainer") -> tuple[Any, Any]:
    """The training and validation images, as features where these are asked for; sentences always are."""
    found: list[Any] = []
    for dataset in (trainer.dataset, trainer.val_dataset):
        if hasattr(dataset, "sentences"):
            encoder = trainer.text_encoder or trainer.model.build_text_encoder(trainer.device)
            found.append(encode_sentences(dataset, encoder, trainer.progress))
            continue
        if trainer.features is None or dataset is None or isinstance(dataset, FeatureDataset):
            found.append(dataset)
            continue
        features = trainer.features.extract(
            trainer.model.image_encoder, dataset, trainer.device, trainer.num_workers, trainer.progress
        )
        trainer.note_unreadable(features.unreadable)
        found.append(features)
    return found[0], found[1]
