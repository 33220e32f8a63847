"""The options of a Trainer: what cannot fit together, and which of them decide its numbers."""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from zsmld.augmentation import QueryAugmentation
from zsmld.datasets import ids_digest
from zsmld.decoder import MLDecoder
from zsmld.features.hashing import weights_hash
from zsmld.model import package_versions
from zsmld.model.checkpoint import storing_problems
from zsmld.resources import git_revision
from zsmld.trainer.devices import missing_trackers
from zsmld.trainer.optimization import Schedule
from zsmld.trainer.selection import holds_test_images

if TYPE_CHECKING:
    from zsmld.trainer import Trainer

Precision = Literal["fp32", "bf16", "fp16"]

# What may be different when a training goes on: it does not change the numbers, or no more than rounding does.
_FREE = {
    "model", "dataset", "val_dataset", "output", "text_encoder", "features", "num_workers", "device", "progress",
    "trackers", "configuration", "log_every", "checkpoint_every", "compile", "fsdp",
}  # fmt: skip


def option_problems(t: Any) -> list[str]:
    """What is wrong with the options themselves, whatever the data, as sentences.

    Args:
        t: a Trainer, or anything with its options as attributes.
    """
    from timm.optim import list_optimizers

    whole = (t.epochs, t.batch_size, t.gradient_accumulation, t.log_every)
    if_given = [number for number in (t.steps_per_epoch, t.checkpoint_every) if number is not None]
    counts = "epochs, steps_per_epoch, batch_size, gradient_accumulation, log_every and checkpoint_every"
    rules = {
        f"{counts} must be at least 1": min(*whole, *if_given) >= 1,
        # NaN is none of these
        "lr must be positive, weight_decay, max_grad_norm and encoder_lr_scale not negative": (
            t.lr > 0 and t.weight_decay >= 0 and t.max_grad_norm >= 0 and t.encoder_lr_scale >= 0
        ),
        f"layer_decay must be in (0, 1], got {t.layer_decay}": 0 < t.layer_decay <= 1,
        f"schedule must be 'one_cycle', 'cosine' or 'constant', got {t.schedule!r}": t.schedule in get_args(Schedule),
        f"precision must be 'fp32', 'bf16' or 'fp16', got {t.precision!r}": t.precision in get_args(Precision),
        "teacher_words, teacher_weight, distillation and text_noise must not be negative": (
            t.teacher_words >= 0 and t.teacher_weight >= 0 and t.distillation >= 0 and t.text_noise >= 0
        ),
        f"teacher_list must be an existing file, one word a line, not found: {t.teacher_list}": (
            t.teacher_list is None or Path(t.teacher_list).is_file()
        ),
        "ema_decay, holdout_words and warmup must be in [0, 1)": (
            0 <= t.ema_decay < 1 and 0 <= t.holdout_words < 1 and 0 <= t.warmup < 1
        ),
        f"optimizer must be one of timm's, such as 'adamw', 'adam' or 'lamb', got {t.optimizer!r}": (
            t.optimizer in list_optimizers()
        ),
        f"scores must be 'sigmoid' or 'softmax', got {t.scores!r}": t.scores in ("sigmoid", "softmax"),
        f"loss_options must have reduction 'mean' or 'sum', got {t.loss_options.get('reduction')!r}": (
            t.loss_options.get("reduction", "mean") in ("mean", "sum")
        ),
        "features need freeze_image_encoder=true: they are computed once": (
            t.features is None or t.freeze_image_encoder is True
        ),
        "features cannot be augmented, they are computed once; turn image_augmentation off": (
            t.features is None or t.image_augmentation.is_off
        ),
        "mixup and cutmix need loss binary_cross_entropy or cross_entropy": (
            not t.image_augmentation.mixes or t.loss in ("binary_cross_entropy", "cross_entropy")
        ),
        "captions and mixed queries need targets that are present or absent; turn mixup and cutmix off": (
            not t.image_augmentation.mixes or not (t.augmentation.captions or t.augmentation.mixed)
        ),
    }
    return [sentence for sentence, kept in rules.items() if not kept] + missing_trackers(t.trackers)


def problems_of(trainer: "Trainer") -> list[str]:
    """Everything that is wrong with the options and with what they are about, as sentences."""
    t, problems = trainer, option_problems(trainer)
    if t.trackers and t.output is None:
        problems.append("trackers need an output folder")
    if t.val_dataset is not None and t.val_dataset.vocabulary != t.dataset.vocabulary:
        problems.append("val_dataset must have the vocabulary of dataset: the same words, order and partition")
    if holds_test_images(t.val_dataset) and not t.select_on_test_images:
        problems.append(
            "val_dataset must not be the test images, which would no longer be unseen; take a part of the training "
            "images (val_fraction), or say select_on_test_images=true"
        )
    if t.output is not None:
        problems += storing_problems(t.model.image_encoder.config())
    problems += _knowledge_problems(t)
    problems += _sentence_problems(t)
    if t.select_on_unseen_words and (t.val_dataset is None or not t.dataset.vocabulary.unseen):
        problems.append("select_on_unseen_words needs a val_dataset and unseen words")
    return problems


def _knowledge_problems(t: "Trainer") -> list[str]:
    """What does not fit between the head, what it shall learn from besides labels, and the image encoder."""
    decoder = t.model.decoder
    if not isinstance(decoder, MLDecoder):
        return ["model must have a head to train, it has a training-free scorer; give it an MLDecoder"]
    prior = decoder.prior
    rules = {
        "a prior needs freeze_image_encoder=true: it knows the encoder as it is": (
            prior is None or t.freeze_image_encoder is True
        ),
        "teacher_words needs a prior, which is the teacher": not t.teacher_words or prior is not None,
        "teacher_list names the words of a prior without a classifier, and only these": (
            not (t.teacher_words or t.teacher_list)
            or prior is None
            or (t.teacher_list is None) == (prior.output == "conse")
        ),
        "distillation needs output cosine or sum, freeze_image_encoder=true, and a prior or an encoder in the words' "
        "space": (
            not t.distillation
            or (
                decoder.output != "shared"
                and t.freeze_image_encoder is True
                and (prior is not None or decoder.encoder_dim == decoder.text_dim)
            )
        ),
        "attention over descriptions needs query augmentation off": (
            decoder.descriptions == "mean" or t.augmentation == QueryAugmentation()
        ),
        "attention over descriptions and teacher_words do not go together": (
            decoder.descriptions == "mean" or not t.teacher_words
        ),
    }
    return [sentence for sentence, kept in rules.items() if not kept]


def _sentence_problems(t: "Trainer") -> list[str]:
    """What a training on sentences needs, so that its head fits images."""
    if not hasattr(t.dataset, "sentences"):
        return ["text_noise is for a dataset of sentences; leave it at 0"] if t.text_noise else []
    decoder, encoder = t.model.decoder, t.model.image_encoder
    if not isinstance(decoder, MLDecoder):
        return []  # it is said already
    rules = {
        f"sentences need one encoder of images and texts, such as open_clip:ViT-B-16/openai for both, got "
        f"{encoder.spec} and {t.model.text_encoder}": encoder.spec == t.model.text_encoder,
        f"sentences need positions in the space of texts, got {decoder.encoder_dim} channels for {decoder.text_dim}; "
        f"say image_encoder.projected=true": encoder.projected and decoder.encoder_dim == decoder.text_dim,
        "sentences need decoder.unit_positions=true: texts and images differ in length": decoder.unit_positions,
        "sentences need freeze_image_encoder=true: they say nothing about its weights": t.freeze_image_encoder is True,
        "sentences cannot be augmented as images are; turn image_augmentation off": t.image_augmentation.is_off,
        "sentences cannot train a head with a prior, which expects similarities of images; leave it out": (
            decoder.prior is None
        ),
    }
    return [sentence for sentence, kept in rules.items() if not kept]


def settings_of(trainer: "Trainer") -> dict[str, Any]:
    """What decides a training's numbers, as plain values: options, words, images, networks and versions."""
    options = {f.name: getattr(trainer, f.name) for f in dataclasses.fields(trainer) if f.name not in _FREE}
    datasets = {"images": trainer.dataset, "val_images": trainer.val_dataset}
    return {
        **{name: plain(value) for name, value in options.items()},
        "words": _digest("\n".join(trainer.dataset.vocabulary.words).encode()),
        "seen": _digest("\n".join(trainer.dataset.vocabulary.seen).encode()),
        **{name: None if dataset is None else _images(dataset) for name, dataset in datasets.items()},
        "image_encoder": plain(trainer.model.image_encoder.config()),
        # A checkpoint holds no weights of an encoder that is not trained.
        "frozen_weights": weights_hash(trainer.model.image_encoder) if trainer.freeze_image_encoder is True else None,
        "decoder": plain(trainer.model.decoder.config()),
        "text_encoder": trainer.model.text_encoder_identity,
        "torch": package_versions()["torch"],
    }


def training_record(trainer: "Trainer", settings: dict[str, Any], num_processes: int, device: str) -> dict[str, Any]:
    """What a checkpoint says of how its weights came about."""
    return {
        "epoch": trainer.best_epoch,
        "weights": "averaged" if trainer.ema_decay else "raw",
        "selected_by": trainer.selected_by,
        "selected_on_test_images": holds_test_images(trainer.val_dataset),
        "num_processes": num_processes,
        "device": device,
        "git": git_revision(),
        "settings": settings,
        "configuration": trainer.configuration,
    }


def _images(dataset: Any) -> str:
    """Which images, with which labels."""
    ids = getattr(dataset, "ids", None)
    of_ids = "" if ids is None else f", ids {ids_digest(ids)[:16]}"
    if hasattr(dataset, "sentences"):  # ids are lines of a file, which may have changed
        of_ids += f", text {_digest(json.dumps([dataset.sentences, dataset.texts(0)]).encode())[:16]}"
    targets = dataset.targets
    labels = _digest(*(part.tobytes() for part in (targets.indptr, targets.indices, targets.data)))
    return f"{dataset.name}, {dataset.split}, {len(dataset)} images{of_ids}, labels {labels[:16]}"


def _digest(*parts: bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def plain(value: Any) -> Any:
    """Values that JSON keeps as they are."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return plain(dataclasses.asdict(value))
    if isinstance(value, dict):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(inner) for inner in value]
    return str(value) if isinstance(value, Path) else value
