"""Door: Evaluator -> Report. Scores a dataset once and computes every figure of the protocol."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm.auto import tqdm

from zsmld.attention import attention_maps, overlay
from zsmld.datasets import Dataset, dense_targets
from zsmld.datasets.loader import Batch, load_batches
from zsmld.metrics import (
    average_precision,
    chance_average_precision,
    harmonic_mean,
    mean_average_precision,
    precision_recall_f1_at_k,
)
from zsmld.model import ZeroShotClassifier, package_versions
from zsmld.protocols import Protocol
from zsmld.report import Report, Sample
from zsmld.text import resolve_device
from zsmld.vocabulary import Vocabulary


@dataclass
class Evaluator:
    """Evaluates models under one protocol.

    Args:
        protocol: a `Protocol`, or the name of a known one such as "nus_wide_gzsl".
        device: "auto", "cpu", "cuda" or "mps".
        batch_size: images a batch.
        num_workers: processes that decode images.
        num_samples: images kept in the report with their words and where the head looked.
        progress: show a progress bar.

    Raises:
        ValueError: for an unknown protocol or device.
    """

    protocol: str | Protocol
    device: str = "auto"
    batch_size: int = 64
    num_workers: int = 0
    num_samples: int = 0
    progress: bool = False

    def __post_init__(self) -> None:
        resolve_device(self.device)
        if isinstance(self.protocol, str):
            self.protocol = Protocol.named(self.protocol)

    def evaluate(self, model: ZeroShotClassifier, dataset: Dataset) -> Report:
        """Score every image of a dataset and compute the protocol's figures.

        Args:
            model: moved to the device; known words are looked up in it, new ones encoded by its own text encoder.
            dataset: usually its test split; the vocabulary's partition says which words are unseen.

        Returns:
            A `Report`; images that could not be read are counted and listed in it.

        Raises:
            ValueError: if the dataset does not fit the protocol, the model gives NaN, or no image can be read.
        """
        assert isinstance(self.protocol, Protocol)  # __post_init__ made it one
        vocabulary = dataset.vocabulary
        self.protocol.check(vocabulary)  # refuse what does not fit before the long work
        known = model.vocabulary
        trained = [word for word in vocabulary.unseen if known is not None and word in known.seen]
        if trained and self.protocol.task != "supervised":
            raise ValueError(
                f"dataset must hold words unseen in training as unseen, the model was trained on {trained[:5]} "
                f"({len(trained)} of {len(vocabulary.unseen)}); use the partition it was trained with"
            )
        classes = model.vocabulary if model.decoder.text_dim is None else None
        if classes is not None and classes.words != vocabulary.words:
            raise ValueError(
                f"dataset must have the model's {len(classes)} classes in the model's order, got other words or "
                f"another order; class queries are fixed: give the dataset words={list(classes.words[:2])!r}…"
            )
        device, training = resolve_device(self.device), model.training
        model = model.to(device).eval()
        try:
            # Encoded once: the samples look up their few words in it.
            words = None if model.decoder.text_dim is None else model.encode_words(vocabulary).to(device)  # (N,T)
            scores, rows, ids, unreadable = self._score(model, dataset, words, device)
            samples = self._samples(model, dataset, words, rows, scores)
        finally:
            model.train(training)
        targets = dense_targets(dataset)[rows]
        return Report(
            protocols=evaluate_scores(scores, targets, vocabulary, self.protocol),
            model={
                "image_encoder": model.image_encoder.spec,
                "text_encoder": model.text_encoder,
                "output": model.decoder.output,
                "num_parameters": sum(p.numel() for p in model.parameters()),
            },
            external_knowledge=_external_knowledge(model),
            dataset={
                "name": dataset.name,
                "split": dataset.split,
                "num_images": len(dataset),
                "num_unreadable": len(unreadable),
                "unreadable": [{"id": image_id, "error": error} for image_id, error in unreadable],
                "vocabulary_sha256": vocabulary.digest(),
            },
            versions=package_versions(),
            protocol_name=self.protocol.name,
            vocabulary=vocabulary,
            scores=scores,
            targets=targets,
            ids=ids,
            samples=samples,
        )

    @torch.no_grad()
    def _score(
        self, model: ZeroShotClassifier, dataset: Dataset, words: torch.Tensor | None, device: torch.device
    ) -> tuple[np.ndarray, np.ndarray, list[str], list[tuple[str, str]]]:
        """Logits (M,N) fp32, their rows in the dataset (M,), image ids, and what could not be read."""
        scores, rows, ids, unreadable = [], [], [], []
        batches = load_batches(dataset, model.image_encoder.transform, self.batch_size, num_workers=self.num_workers)
        with tqdm(total=len(dataset), disable=None if self.progress else True, desc="evaluate", unit="image") as bar:
            for batch in batches:
                unreadable += batch.unreadable
                bar.update(len(batch) + len(batch.unreadable))
                if not len(batch):
                    continue
                logits = score_batch(model, batch, words, device)
                scores.append(logits)
                rows.append(batch.rows.numpy())
                ids += batch.ids
        if not scores:
            raise ValueError(
                f"dataset must have readable images, none of {len(dataset)} could be read; first: {unreadable[0][1]}"
            )
        return np.concatenate(scores), np.concatenate(rows), ids, unreadable

    def _samples(
        self,
        model: ZeroShotClassifier,
        dataset: Dataset,
        words: torch.Tensor | None,
        rows: np.ndarray,
        scores: np.ndarray,
    ) -> list[Sample]:
        chosen = np.linspace(0, len(rows) - 1, min(self.num_samples, len(rows))).astype(int)
        return [make_sample(model, dataset[int(rows[i])], dataset.vocabulary, words, scores[i]) for i in chosen]


def score_batch(
    model: ZeroShotClassifier, batch: Batch, words: torch.Tensor | None, device: torch.device
) -> np.ndarray:
    """Logits (B,N) fp32 of one batch of images or spatial embeddings.

    Raises:
        ValueError: if a logit is NaN; the message names the image.
    """
    inputs = batch.inputs.to(device)
    spatial = model.image_encoder(inputs) if inputs.ndim == 4 else inputs.float()  # (B,S,C)
    logits = model.decoder(spatial, words).float().cpu().numpy()  # (B,N)
    if np.isnan(logits).any():
        first = batch.ids[int(np.isnan(logits).any(1).argmax())]
        raise ValueError(f"logits must be numbers, got NaN first for image {first}; check the checkpoint's weights")
    return logits


def evaluate_scores(
    scores: np.ndarray, targets: np.ndarray, vocabulary: Vocabulary, protocol: Protocol
) -> dict[str, dict[str, Any]]:
    """Every figure of a protocol from scores that are already there.

    Args:
        scores: (M,N) real, column j is `vocabulary.words[j]`.
        targets: (M,N) in {1, 0, −1}.
        vocabulary: N words with their partition.
        protocol: what to rank, and the policies.

    Returns:
        One entry a part ("zsl", "gzsl", "supervised"), as it stands in `report.json`.

    Raises:
        ValueError: if arrays, vocabulary and protocol do not fit.
    """
    if scores.shape[1:] != (len(vocabulary),) or targets.shape != scores.shape:
        raise ValueError(
            f"scores and targets must be (M, {len(vocabulary)}), one column a word, got {scores.shape} and "
            f"{targets.shape}; use the same images and vocabulary"
        )
    return {part: _evaluate_part(part, scores, targets, vocabulary, protocol) for part in protocol.parts}


def _evaluate_part(
    part: str, scores: np.ndarray, targets: np.ndarray, vocabulary: Vocabulary, protocol: Protocol
) -> dict[str, Any]:
    labels = protocol.ranked_labels(part, vocabulary)
    scores, targets = scores[:, labels], targets[:, labels]
    if not protocol.keep_unlabelled:
        labelled = (targets == 1).any(1)
        if not labelled.any():
            raise ValueError(
                f"targets must have images with a ranked word when keep_unlabelled=False, none of {len(targets)} has "
                f"in {part}; use keep_unlabelled=True"
            )
        scores, targets = scores[labelled], targets[labelled]
    aps = average_precision(scores, targets, protocol.average_precision)
    seen = vocabulary.is_seen[labels]

    def mean(values: np.ndarray, policy: Any = protocol.empty_words) -> float:
        return mean_average_precision(values, policy)

    figures: dict[str, Any] = {
        "mean_average_precision": mean(aps),
        "chance_mean_average_precision": mean(np.where(np.isnan(aps), np.nan, chance_average_precision(targets))),
    }
    if part == "gzsl":
        figures["seen_mean_average_precision"] = mean(aps[seen])
        figures["unseen_mean_average_precision"] = mean(aps[~seen])
        figures["harmonic_mean"] = harmonic_mean(mean(aps[seen]), mean(aps[~seen]))
    for k in (k for k in protocol.top_k if k <= len(labels)):
        precision, recall, f1 = precision_recall_f1_at_k(scores, targets, k)
        figures |= {f"precision_at_{k}": precision, f"recall_at_{k}": recall, f"f1_at_{k}": f1}
    positives = (targets == 1).sum(0)
    return figures | {
        "num_images": len(targets),
        "num_words": len(labels),
        "labels_per_image": float(positives.sum() / len(targets)),
        "policies": protocol.policies(),
        "words": {
            vocabulary.words[label]: {
                "average_precision": None if np.isnan(ap) else float(ap),
                "num_positives": int(count),
                "seen": bool(vocabulary.is_seen[label]),
            }
            for label, ap, count in zip(labels, aps, positives, strict=True)
        },
    }


@torch.no_grad()
def make_sample(
    model: ZeroShotClassifier,
    item: dict[str, Any],
    vocabulary: Vocabulary,
    word_embeddings: torch.Tensor | None,
    logits: np.ndarray,
    top_k: int = 4,
) -> Sample:
    """One image of a report: its best words, its true words, and where the head looked for the best of them.

    Args:
        model: in eval mode.
        item: of the dataset.
        vocabulary: N words.
        word_embeddings: (N,T) on the model's device; None in class mode.
        logits: (N,) of this image.
        top_k: words shown.
    """
    order = np.argsort(-logits, kind="stable")[:top_k]
    scores = 1 / (1 + np.exp(-logits[order].astype(np.float64)))
    words = tuple(vocabulary.words[label] for label in order)
    present = tuple(vocabulary.words[label] for label in np.flatnonzero(item["targets"] == 1))
    if not isinstance(item.get("image"), Image.Image) or word_embeddings is None:
        return Sample(item["id"], None, (), words, tuple(scores), present)
    picture = model.image_encoder.transform.fit(item["image"])
    inputs = model.image_encoder.transform(item["image"])[None].to(word_embeddings.device)  # (1,3,H,W)
    maps = attention_maps(model, inputs, word_embeddings[torch.from_numpy(order)])[0].cpu()  # (K,rows,columns)
    picture = picture.resize((max(192, picture.width),) * 2, Image.Resampling.BICUBIC)
    return Sample(
        item["id"], picture, tuple(overlay(picture, m) for m in maps[:2]), words, tuple(scores.tolist()), present
    )


def _external_knowledge(model: ZeroShotClassifier) -> list[str]:
    """What besides the labels of seen words touched the words."""
    known = [f"text encoder {model.text_encoder}: its training texts"] if model.text_encoder else []
    recipe = model.recipe or {}
    options = recipe.get("image_encoder", {})
    if options.get("pretrained", True) or options.get("checkpoint_path"):
        known.append(f"image encoder {model.image_encoder.spec}: the labels or captions it was pretrained on, if any")
    return known
