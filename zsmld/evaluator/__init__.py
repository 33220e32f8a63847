"""Door: Evaluator -> Report. Scores a dataset once and computes every figure of the protocol."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image

from zsmld.attention import attention_maps, overlay
from zsmld.calibration import Calibration
from zsmld.datasets import Dataset, dense_targets, ids_digest, read_partition
from zsmld.decoder import TrainingFreeScorer, join_words
from zsmld.evaluator.figures import evaluate_scores
from zsmld.evaluator.predictions import Matrix, align, read_matrix
from zsmld.model import ZeroShotClassifier, package_versions
from zsmld.model.checkpoint import check_model
from zsmld.protocols import Protocol
from zsmld.report import Kind, Report, Sample
from zsmld.resources import git_revision, resource_path
from zsmld.scoring import ScoredDataset, ScoreMatrix, score_dataset
from zsmld.text import resolve_device
from zsmld.vocabulary import Vocabulary

__all__ = ["Evaluator", "Matrix", "ScoreMatrix", "evaluate_scores", "make_sample", "read_matrix"]


@dataclass
class Evaluator:
    """Evaluates models, or predictions of any origin, under one protocol.

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

        In several processes (`torch.distributed`), each calls this and each gets the same report.

        Args:
            model: moved to the device; known words are looked up in it, new ones encoded by its own text encoder.
            dataset: usually its test split; the vocabulary's partition says which words are unseen.

        Returns:
            A `Report`; images that could not be read are counted and listed in it.

        Raises:
            TypeError: if the model is none, such as the name of one.
            ValueError: if the dataset does not fit the protocol, the model gives NaN, or no image can be read.
        """
        assert isinstance(self.protocol, Protocol)  # __post_init__ made it one
        vocabulary = dataset.vocabulary
        self.protocol.check(vocabulary)  # refuse what does not fit before the long work
        check_model(model)
        known = model.vocabulary
        trained = [word for word in vocabulary.unseen if known is not None and word in known.seen]
        if trained and self.protocol.task in ("zsl", "gzsl"):
            raise ValueError(
                f"dataset must hold words unseen in training as unseen, the model was trained on {trained[:5]} "
                f"({len(trained)} of {len(vocabulary.unseen)}); use the partition it was trained with"
            )
        num_classes = model.decoder.num_classes
        if num_classes is not None and num_classes != len(vocabulary):
            raise ValueError(
                f"dataset must have the model's {num_classes} classes, got {len(vocabulary)} words; class queries are "
                f"fixed: evaluate it on the words it was trained for"
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
            calibration = Calibration.of(model) if self.protocol.task == "gzsl" else None
            columns = words
            if words is not None and calibration is not None and calibration.reference_words:
                reference = model.encode_words(calibration.reference_words).to(device)
                columns = join_words((words,), (reference,))[0]  # (N+R,T), or (N+R,K,T)
            scored = score_dataset(
                model, dataset, columns, device, self.batch_size, self.num_workers, progress=self.progress
            )
            logits, reference_logits = np.split(scored.logits, [len(vocabulary)], axis=1)  # (M,N), (M,R)
            samples = self._samples(model, dataset, words, scored)
        finally:
            model.train(training)
        targets = dense_targets(dataset)
        if len(scored.rows) < len(targets):
            targets = targets[scored.rows]
        report = self._report(
            logits,
            targets,
            vocabulary,
            scored.ids,
            "logits",
            model={
                "image_encoder": model.image_encoder.spec,
                "text_encoder": model.text_encoder,
                "output": model.decoder.output,
                "num_parameters": sum(p.numel() for p in model.parameters()),
                # Seen words without labels in training: they chose the epoch, and count as seen below.
                "heldout_words": [word for word in model.heldout_words if word in vocabulary.seen],
            },
            external_knowledge=_external_knowledge(model),
            dataset={
                "name": dataset.name,
                "split": dataset.split,
                "num_images": len(dataset),
                "num_unreadable": len(scored.unreadable),
                "unreadable": [{"id": image_id, "error": error} for image_id, error in scored.unreadable],
                "manifest": getattr(dataset, "manifest", {}),
            },
            samples=samples,
        )
        if calibration is not None:
            calibrated = calibration.apply(logits, vocabulary, reference_logits if reference_logits.size else None)
            report.protocols["gzsl"]["calibrated"] = self._calibrated(calibration, calibrated, targets, vocabulary)
        return report

    def _calibrated(
        self, calibration: Calibration, logits: np.ndarray, targets: np.ndarray, vocabulary: Vocabulary
    ) -> dict[str, Any]:
        """GZSL figures of calibrated logits (M,N), each word with its own threshold, and how they were calibrated."""
        assert isinstance(self.protocol, Protocol)
        figures = evaluate_scores(logits, targets, vocabulary, self.protocol)["gzsl"]
        # In place: a third matrix beside the raw and the calibrated logits would be too many. Margins are ≥ 0 where a
        # word is given, as logits are from score 0.5 on.
        logits -= calibration.thresholds_of(vocabulary).astype(logits.dtype)
        given = evaluate_scores(logits, targets, vocabulary, replace(self.protocol, threshold=0.5))["gzsl"]
        by_threshold = [f"{side}_{name}" for side in ("per_class", "overall") for name in ("precision", "recall", "f1")]
        figures |= {name: given[name] for name in by_threshold}
        repeated = ("words", "policies", "num_images", "num_words", "labels_per_image")
        kept = {name: value for name, value in figures.items() if name not in repeated}
        return kept | {"calibration": calibration.summary()}

    def evaluate_predictions(
        self,
        scores: Matrix,
        targets: Matrix,
        kind: Kind,
        vocabulary: Vocabulary | None = None,
        external_knowledge: Sequence[str] = (),
        dataset: str = "predictions",
        split: str = "test",
    ) -> Report:
        """Compute the protocol's figures from scores that were made elsewhere.

        Args:
            scores: (M,N), aligned with the targets by image id and word where both have them.
            targets: (M,N) in {1, 0, −1}, likewise.
            kind: "logits" are any real numbers, "scores" must be in [0,1]; it is never guessed.
            vocabulary: words and their partition; default the protocol's own (see `Protocol.words_file`), or for a
                supervised protocol the words of the files.
            external_knowledge: what besides the labels of seen words touched the words, as the author states it.
            dataset, split: what the report calls the images.

        Returns:
            A `Report` without sample images.

        Raises:
            ValueError: if ids, words, shapes, values, vocabulary and protocol do not fit each other.
        """
        assert isinstance(self.protocol, Protocol)  # __post_init__ made it one
        vocabulary = vocabulary or _vocabulary(self.protocol, scores)
        wanted = None
        if scores.words is not None and targets.words is not None:
            ranked = [vocabulary.words[label] for label in self.protocol.ranked_labels(self.protocol.task, vocabulary)]
            if set(scores.words) == set(ranked) != set(targets.words):
                wanted = ranked  # targets of words that are not ranked are not needed
        targets = targets.as_targets(wanted)
        scores, targets = align(scores, targets)
        if scores.words is None and scores.values.shape[1] != len(vocabulary):
            # A file without words: their number must leave no doubt which they are.
            unseen = vocabulary.select(vocabulary.unseen) if vocabulary.unseen else None
            if self.protocol.task != "zsl" or unseen is None or scores.values.shape[1] != len(unseen):
                or_unseen = (
                    f", or for each of the {len(unseen)} unseen ones" if unseen and self.protocol.task == "zsl" else ""
                )
                raise ValueError(
                    f"{scores.source} must have a column for each of the {len(vocabulary)} words of protocol "
                    f"{self.protocol.name}{or_unseen}, in its order, got {scores.values.shape[1]}; write words into "
                    f"the file, or name them (--words-file)"
                )
            vocabulary = unseen
        elif scores.words is not None:
            strangers = sorted(set(scores.words) - set(vocabulary.words))
            if strangers:
                raise ValueError(
                    f"{scores.source} must have words of protocol {self.protocol.name}, got {len(strangers)} others "
                    f"such as {strangers[:3]}; correct their spelling or give the partition they belong to"
                )
            vocabulary = vocabulary.select(scores.words)
        aligned_by = {
            "images": "position" if targets.ids is None else "id",
            "words": "position" if scores.words is None or scores.words_from else "word",
        }
        if aligned_by["words"] == "position":  # the likeliest mistake of a person: another order
            aligned_by["order_of_words"] = f"{vocabulary.words[0]} first, {vocabulary.words[-1]} last"
        return self._report(
            scores.values,
            targets.values,
            vocabulary,
            list(targets.ids) if targets.ids is not None else [str(row) for row in range(len(targets.values))],
            kind,
            model={"predictions": scores.source, "kind": kind, "sha256": scores.sha256},
            external_knowledge=list(external_knowledge) or ["not stated"],
            dataset={
                "name": dataset,
                "split": split,
                "targets": targets.source,
                "targets_sha256": targets.sha256,
                "aligned_by": aligned_by,
                "num_images": len(targets.values),
                "num_unreadable": 0,
                "unreadable": [],
            },
        )

    def _report(
        self,
        scores: np.ndarray,
        targets: np.ndarray,
        vocabulary: Vocabulary,
        ids: list[str],
        kind: Kind,
        model: dict[str, Any],
        external_knowledge: list[str],
        dataset: dict[str, Any],
        samples: Sequence[Sample] = (),
    ) -> Report:
        assert isinstance(self.protocol, Protocol)
        return Report(
            protocols=evaluate_scores(scores, targets, vocabulary, self.protocol, kind),
            model=model,
            external_knowledge=external_knowledge,
            dataset=dataset | {"image_ids_sha256": ids_digest(ids), "vocabulary_sha256": vocabulary.digest()},
            versions=package_versions() | ({"git": revision} if (revision := git_revision()) else {}),
            protocol_name=self.protocol.name,
            vocabulary=vocabulary,
            scores=scores,
            targets=targets,
            ids=ids,
            kind=kind,
            samples=list(samples),
        )

    def _samples(
        self, model: ZeroShotClassifier, dataset: Dataset, words: torch.Tensor | None, scored: ScoredDataset
    ) -> list[Sample]:
        rows, logits = scored.rows, scored.logits
        chosen = np.linspace(0, len(rows) - 1, min(self.num_samples, len(rows))).astype(int)
        return [make_sample(model, dataset[int(rows[i])], dataset.vocabulary, words, logits[i]) for i in chosen]


def _vocabulary(protocol: Protocol, scores: Matrix) -> Vocabulary:
    """The words a protocol is about; for a protocol about any words, those of the file."""
    if protocol.words_file is not None:
        path = resource_path("data", *protocol.words_file.split("/"))
        if path.suffix == ".txt":  # one word a line, all of one side
            return Vocabulary(path.read_text(encoding="utf-8").splitlines())
        seen, unseen = read_partition(path)
        return Vocabulary([*seen, *unseen], seen=seen)
    if scores.words is None:
        raise ValueError(
            f"vocabulary must be given for protocol {protocol.name}, whose words are not among our files, and "
            f"{scores.source} has none; write them into the file, or name them (--words-file)"
        )
    if protocol.task not in ("supervised", "single_label"):
        raise ValueError(
            f"partition must be given for protocol {protocol.name}: which words of {scores.source} are unseen is not "
            f"in the file; pass a vocabulary with its partition (--partition)"
        )
    return Vocabulary(scores.words)


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
    scorer = model.decoder if isinstance(model.decoder, TrainingFreeScorer) else model.decoder.prior
    if scorer is not None and scorer.output == "conse":
        known.append(
            f"names of the {len(scorer.class_weight)} classes of {model.image_encoder.spec}'s classifier; some may be "
            f"unseen words"
        )
    elif scorer is not None:
        known.append(f"captions: the image-text pairs that {model.image_encoder.spec} was trained on")
    record = model.training_record or {}
    if record.get("selected_on_test_images"):
        known.append("model selection: test images chose the epoch (select_on_test_images)")
    if record.get("settings", {}).get("select_on_unseen_words"):
        known.append("model selection: labels of unseen words chose the epoch (select_on_unseen_words)")
    return known
