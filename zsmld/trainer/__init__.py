"""Door: Trainer, one visible loop. It never sees an unseen word, and selects the model by held-out seen words."""

import csv
import json
import math
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from zsmld.augmentation import QueryAugmentation
from zsmld.datasets import Dataset, dense_targets
from zsmld.datasets.loader import Batch, load_batches
from zsmld.features import FeatureDataset, extract_features
from zsmld.losses import build_loss
from zsmld.metrics import average_precision, mean_average_precision
from zsmld.model import ZeroShotClassifier
from zsmld.scoring import score_dataset
from zsmld.text import TextEncoder, resolve_device
from zsmld.trainer.optimization import Schedule, learning_rate_factor, parameter_groups
from zsmld.vocabulary import Vocabulary

Precision = Literal["fp32", "bf16", "fp16"]


@dataclass
class Trainer:
    """Trains a `ZeroShotClassifier` on the seen words of a dataset.

    Images without any of the training words are left out. With `val_dataset` and `holdout_words`, a share of the *seen*
    words is held out of training and the checkpoint with the best mAP on those pseudo-unseen words is kept; otherwise
    the last one is.

    Args:
        model: its parts are trained in place.
        dataset: to train on.
        val_dataset: images for model selection; never test images.
        output: folder for `log.csv`, `data.json` and `model/`; None writes nothing.
        augmentation: of the word queries.
        text_encoder: default the model's own, built here.
        epochs: passes, or spans of `steps_per_epoch`.
        steps_per_epoch: optimiser steps between two evaluations; default one pass over the dataset.
        batch_size: images a step, over all processes.
        lr: peak learning rate.
        weight_decay: of AdamW, for matrices only (no norms, biases or temperatures).
        schedule: "one_cycle" and "cosine" move every step and end near zero, "constant" stays.
        warmup: share of the steps in which the rate rises, for "one_cycle" and "cosine".
        loss: "asymmetric" or "binary_cross_entropy".
        loss_options: further arguments of the loss.
        ema_decay: of the averaged weights that are evaluated and saved; 0 uses the raw ones.
        max_grad_norm: gradients are clipped to this norm; 0 does not clip.
        precision: "fp32", "bf16" or "fp16" autocast.
        freeze_image_encoder: train the head only.
        cache_features: with a frozen encoder, run it once and train from the spatial embeddings.
        standardize_words: centre and scale word embeddings by the training words' statistics.
        holdout_words: share of the seen words held out for selection, in [0,1); at least one word unless 0, among those
            that occur in `val_dataset`.
        num_workers: processes that decode images.
        device: "auto", "cpu", "cuda" or "mps".
        seed: of order, dropout, augmentation and held-out words.
        progress: show a progress bar.

    Attributes:
        history: one dict an epoch: what `log.csv` holds.
        heldout: the pseudo-unseen words. The checkpoint's vocabulary counts them as seen: they have labels.
        best_epoch: the epoch whose weights the model ends with.

    Raises:
        ValueError: if options contradict each other or the dataset does not fit the model.
    """

    model: ZeroShotClassifier
    dataset: Dataset
    val_dataset: Dataset | None = None
    output: str | Path | None = None
    augmentation: QueryAugmentation = field(default_factory=QueryAugmentation)
    text_encoder: TextEncoder | None = None
    epochs: int = 40
    steps_per_epoch: int | None = None
    batch_size: int = 56
    lr: float = 1e-4
    weight_decay: float = 1e-4
    schedule: Schedule = "one_cycle"
    warmup: float = 0.2
    loss: str = "asymmetric"
    loss_options: dict[str, Any] = field(default_factory=dict)
    ema_decay: float = 0.9997
    max_grad_norm: float = 0.0
    precision: Precision = "fp32"
    freeze_image_encoder: bool = False
    cache_features: bool = False
    standardize_words: bool = True
    holdout_words: float = 0.1
    num_workers: int = 0
    device: str = "auto"
    seed: int = 0
    progress: bool = False

    def __post_init__(self) -> None:
        problems = []
        if self.epochs < 1 or (self.steps_per_epoch is not None and self.steps_per_epoch < 1) or self.batch_size < 1:
            problems.append("epochs, steps_per_epoch and batch_size must be at least 1")
        if not (self.lr > 0 and self.weight_decay >= 0 and self.max_grad_norm >= 0):  # NaN is none of these
            problems.append("lr must be positive, weight_decay and max_grad_norm not negative")
        if self.schedule not in ("one_cycle", "cosine", "constant"):
            problems.append(f"schedule must be 'one_cycle', 'cosine' or 'constant', got {self.schedule!r}")
        if self.precision not in ("fp32", "bf16", "fp16"):
            problems.append(f"precision must be 'fp32', 'bf16' or 'fp16', got {self.precision!r}")
        if not 0 <= self.ema_decay < 1 or not 0 <= self.holdout_words < 1 or not 0 <= self.warmup < 1:
            problems.append("ema_decay, holdout_words and warmup must be in [0, 1)")
        if self.cache_features and not self.freeze_image_encoder:
            problems.append("cache_features needs freeze_image_encoder=True")
        if "reduction" in self.loss_options:
            problems.append("loss_options must not have reduction, it is the mean over images")
        if self.val_dataset is not None and self.val_dataset.vocabulary != self.dataset.vocabulary:
            problems.append("val_dataset must have the vocabulary of dataset: the same words, order and partition")
        if problems:
            raise ValueError(f"Trainer options must fit together, got: {'; '.join(problems)}; correct them")
        self.history: list[dict[str, float]] = []
        self.unreadable: list[tuple[str, str]] = []
        self.best_epoch = 0
        self._loss = build_loss(self.loss, **self.loss_options, reduction="mean")
        self.heldout, self._labels = self._divide_words()
        self.steps_per_epoch = self.steps_per_epoch or max(1, len(self._rows()) // self.batch_size)

    # -------------------------------------------------------------------------------------------------- the loop

    def fit(self) -> ZeroShotClassifier:
        """Train.

        Returns:
            The model, with the selected weights, in eval mode, knowing the dataset's seen words.

        Raises:
            ValueError: if the loss becomes NaN or infinite, or no image can be read; what was saved stays.
        """
        self.history, self.unreadable = [], []
        with ExitStack() as cleanup:
            num_threads = torch.get_num_threads()
            cleanup.callback(torch.set_num_threads, num_threads)
            if self.num_workers:  # a core for each worker: threads that wait for each other's cores are far slower
                torch.set_num_threads(max(1, num_threads - self.num_workers))
            return self._fit(cleanup)

    def _fit(self, cleanup: ExitStack) -> ZeroShotClassifier:
        from accelerate import Accelerator
        from accelerate.state import AcceleratorState
        from timm.utils.model_ema import ModelEmaV3

        torch.manual_seed(self.seed)
        model, device = self.model, resolve_device(self.device)
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        if not distributed:  # else a second fit could not use another device or precision
            AcceleratorState._reset_state(reset_partial_state=True)
        if device.type == "cuda" and device.index is not None:
            torch.cuda.set_device(device)
        accelerator = Accelerator(
            cpu=device.type == "cpu",
            mixed_precision="no" if self.precision == "fp32" else self.precision,
            step_scheduler_with_optimizer=False,
        )
        model.to(accelerator.device)
        words = self._prepare_words()  # (N,T) of the training words, or None in class mode
        dataset, val_dataset = self._prepare_data()
        ema = ModelEmaV3(model, decay=self.ema_decay, use_warmup=True) if self.ema_decay else None
        # What is trained, and wrapped by DDP.
        network: nn.Module = model.decoder if self.freeze_image_encoder else model
        optimizer = torch.optim.AdamW(parameter_groups(network, self.weight_decay), lr=self.lr)
        assert self.steps_per_epoch is not None  # __post_init__ made sure
        total_steps = self.epochs * self.steps_per_epoch
        scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: learning_rate_factor(self.schedule, step / total_steps, self.warmup)
        )
        network, optimizer = accelerator.prepare(network, optimizer)
        # However it ends, the model leaves as it came, without accelerate's autocast around its forward.
        cleanup.callback(accelerator.unwrap_model, network, keep_fp32_wrapper=False)

        if self.output is not None and accelerator.is_main_process:
            self._write_data(Path(self.output) / "data.json")
        best = -math.inf
        best_weights: dict[str, Tensor] = {}
        step = 0
        shown = self.progress and accelerator.is_main_process
        bar = tqdm(total=total_steps, disable=None if shown else True, desc="train", unit="step")  # None: on a terminal
        cleanup.callback(bar.close)
        for epoch in range(1, self.epochs + 1):
            self._train_mode()
            started, num_images, total_loss = time.perf_counter(), 0, 0.0
            for batch in self._batches(dataset, epoch, accelerator.process_index, accelerator.num_processes):
                self.unreadable += batch.unreadable
                if len(batch):
                    targets = batch.targets[:, self._labels].to(accelerator.device)  # (B,N)
                    queries, targets = self._augment(words, targets, batch, step)  # (N',T), (B,N')
                    inputs = batch.inputs.to(accelerator.device)  # (B,3,H,W), or (B,S,C) from cached features
                    with accelerator.autocast():
                        if self.freeze_image_encoder and inputs.ndim == 4:
                            with torch.no_grad():
                                inputs = model.image_encoder(inputs)  # (B,S,C)
                        logits = network(inputs, queries)  # (B,N')
                    loss = self._loss(logits, targets)
                    if not torch.isfinite(loss):
                        raise ValueError(
                            f"loss must be a number, got {loss.item()} at step {step} of epoch {epoch}; lower lr "
                            f"(now {self.lr:g}) or use precision='fp32'. Last good model: {self._saved_where()}"
                        )
                    accelerator.backward(loss)
                    if self.max_grad_norm:
                        accelerator.clip_grad_norm_(network.parameters(), self.max_grad_norm)
                    optimizer.step()
                    optimizer.zero_grad()
                    total_loss += loss.item() * len(batch)
                    num_images += len(batch)
                    scheduler.step()
                step += 1
                if ema is not None:
                    ema.update(model, step=step)
                bar.update()
                bar.set_postfix(loss=f"{total_loss / max(num_images, 1):.3f}", lr=f"{scheduler.get_last_lr()[0]:.1e}")
            if not num_images:
                raise ValueError(f"dataset must have readable images, none could be read; first: {self.unreadable[:1]}")
            seconds = time.perf_counter() - started
            trained = model if ema is None else ema.module
            record: dict[str, float] = {
                "epoch": epoch,
                "loss": total_loss / num_images,
                "lr": float(scheduler.get_last_lr()[0]),
                "images_per_second": num_images / seconds,
                **(self._validate(trained, val_dataset) if val_dataset is not None else {}),
            }
            self.history.append(record)
            selected_by = record.get("heldout_mean_average_precision", float(epoch))
            if selected_by > best:  # without held-out words every epoch is better than the one before
                best, self.best_epoch = selected_by, epoch
                best_weights = {name: tensor.detach().clone() for name, tensor in trained.state_dict().items()}
                if self.output is not None and accelerator.is_main_process:
                    model.save_pretrained(Path(self.output) / "model", best_weights)
            if self.output is not None and accelerator.is_main_process:
                self._log(record, Path(self.output) / "log.csv")
            if shown:
                tqdm.write(_one_line(record))
        model.load_state_dict(best_weights)
        return model.eval()

    # ----------------------------------------------------------------------------------------------------- parts

    def _divide_words(self) -> tuple[tuple[str, ...], np.ndarray]:
        """Held-out seen words, and the labels (N,) of those that are trained. Unseen words are in neither."""
        vocabulary = self.dataset.vocabulary
        seen = np.flatnonzero(vocabulary.is_seen)
        if self.model.decoder.text_dim is None:
            if len(vocabulary) != self.model.decoder.num_classes or len(seen) < len(vocabulary):
                raise ValueError(
                    f"dataset must have {self.model.decoder.num_classes} seen words for class queries, got {len(seen)} "
                    f"seen of {len(vocabulary)}; use word queries to leave words unseen"
                )
            return (), seen
        if not len(seen):
            raise ValueError("dataset must have seen words to train on, got none; correct its partition")
        heldout = np.empty(0, np.int64)
        if self.val_dataset is not None and self.holdout_words and len(seen) > 1:
            # Only words that occur in the validation images can tell one epoch from another.
            occurring = np.flatnonzero(np.asarray((self.val_dataset.targets == 1).sum(0)).ravel())
            candidates = np.intersect1d(seen, occurring)
            num_heldout = min(max(1, round(self.holdout_words * len(seen))), len(candidates), len(seen) - 1)
            heldout = np.sort(np.random.default_rng(self.seed).choice(candidates, num_heldout, replace=False))
        return tuple(vocabulary.words[label] for label in heldout), np.setdiff1d(seen, heldout)

    def _prepare_words(self) -> Tensor | None:
        vocabulary = self.dataset.vocabulary
        if self.model.decoder.text_dim is None:
            self.model.remember_words(vocabulary, None)
            self.model.calibration = None  # of the weights it had before
            return None
        trained = vocabulary.select(vocabulary.words[label] for label in self._labels)
        encoder = self.text_encoder or self.model.build_text_encoder(self.device)
        # The checkpoint knows all seen words, held-out ones too: they are part of the vocabulary it was selected on.
        self.model.remember_words(seen := vocabulary.select(vocabulary.seen), self.model.encode_words(seen, encoder))
        self.model.heldout_words, self.model.calibration = self.heldout, None
        embeddings = self.model.encode_words(trained)
        if self.standardize_words and len(embeddings) > 1:
            self.model.decoder.standardize_words(embeddings.to(self.model.decoder.word_mean.device))
        self._captions = self._encode_captions(encoder, vocabulary)
        return embeddings.to(next(self.model.parameters()).device)

    def _encode_captions(self, encoder: TextEncoder, vocabulary: Vocabulary) -> tuple[Tensor, Tensor] | None:
        """Embeddings (M,T) of the dataset's captions, and which trained words make each true (M,N) bool."""
        captions: dict[str, list[str]] | None = getattr(self.dataset, "captions", None)
        if not self.augmentation.captions or not captions:
            return None
        embeddings = encoder.encode_words(captions, vocabulary.templates)  # (M,T)
        trained = {vocabulary.words[label]: column for column, label in enumerate(self._labels)}
        truth = torch.zeros(len(captions), len(trained), dtype=torch.bool)
        for row, words in enumerate(captions.values()):
            truth[row, [trained[word] for word in words if word in trained]] = True
        device = next(self.model.parameters()).device
        return embeddings.to(device), truth.to(device)

    def _prepare_data(self) -> tuple[Any, Any]:
        if not self.cache_features:
            return self.dataset, self.val_dataset
        encoder = self.model.image_encoder

        def cached(dataset: Any) -> Any:
            if dataset is None or isinstance(dataset, FeatureDataset):
                return dataset
            features = extract_features(
                encoder, dataset, self.device, num_workers=self.num_workers, progress=self.progress
            )
            self.unreadable += features.unreadable
            return features

        return cached(self.dataset), cached(self.val_dataset)

    def _rows(self, dataset: Any = None) -> np.ndarray:
        """Rows with at least one training word."""
        targets = (dataset or self.dataset).targets[:, self._labels]
        rows = np.flatnonzero(np.asarray((targets == 1).sum(1)).ravel())
        if not len(rows):
            raise ValueError("dataset must have images with a seen word, got none; check its words and partition")
        return rows

    def _batches(self, dataset: Any, epoch: int, process: int, num_processes: int) -> Iterator[Batch]:
        """The steps of one epoch: a window of an endless sequence of seeded permutations, so that no image waits."""
        rows, per_epoch = self._rows(dataset), self.batch_size * (self.steps_per_epoch or 1)
        start, parts = (epoch - 1) * per_epoch, []
        for one_pass in range(start // len(rows), (start + per_epoch - 1) // len(rows) + 1):
            parts.append(np.random.default_rng([self.seed, one_pass]).permutation(rows))
        offset = start - (start // len(rows)) * len(rows)
        order = np.concatenate(parts)[offset : offset + per_epoch]
        share = self.batch_size // num_processes
        mine = order.reshape(-1, self.batch_size)[:, process * share : (process + 1) * share]
        yield from load_batches(
            dataset, self.model.image_encoder.transform, share, rows=mine.ravel(), num_workers=self.num_workers
        )

    def _augment(self, words: Tensor | None, targets: Tensor, batch: Batch, step: int) -> tuple[Tensor | None, Tensor]:
        if words is None:
            return None, targets
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step)  # by step: equal in every process
        captions = None
        if self._captions is not None:
            embeddings, truth = self._captions
            captions = embeddings, ((targets == 1).float() @ truth.float().T > 0).to(targets.dtype)  # (M,T), (B,M)
        return self.augmentation(words, targets, generator, captions)

    def _train_mode(self) -> None:
        self.model.train()
        if self.freeze_image_encoder:
            self.model.image_encoder.eval()  # batch norm keeps the statistics of its pretraining

    @torch.no_grad()
    def _validate(self, model: ZeroShotClassifier, dataset: Any) -> dict[str, float]:
        """mAP of trained and of held-out seen words on the validation images; words without a positive are skipped."""
        model.eval()
        vocabulary = self.dataset.vocabulary
        labels = np.flatnonzero(vocabulary.is_seen)
        device = next(model.parameters()).device
        words = (
            None
            if model.decoder.text_dim is None
            else self.model.encode_words(vocabulary.select(vocabulary.seen)).to(device)
        )
        scored = score_dataset(model, dataset, words, device, self.batch_size, self.num_workers)
        targets = dense_targets(dataset, labels)[scored.rows]
        aps = average_precision(scored.logits, targets)
        heldout = ~np.isin(labels, self._labels)
        figures = {"seen_mean_average_precision": mean_average_precision(aps[~heldout], "skip")}
        if heldout.any():
            figures["heldout_mean_average_precision"] = mean_average_precision(aps[heldout], "skip")
        return figures

    def _write_data(self, path: Path) -> None:
        """Which images are trained and validated on, and what the datasets' policies took away."""
        datasets = {"train": self.dataset, "val": self.val_dataset}
        described = {
            split: {"dataset": repr(dataset), "manifest": getattr(dataset, "manifest", {})}
            for split, dataset in datasets.items()
            if dataset is not None
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(described, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

    def _saved_where(self) -> str:
        return "none yet" if self.output is None or not self.history else str(Path(self.output) / "model")

    def _log(self, record: dict[str, float], path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        first = len(self.history) == 1
        with path.open("w" if first else "a", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(record))
            if first:
                writer.writeheader()
            writer.writerow(record)


def _one_line(record: dict[str, float]) -> str:
    names = {
        "loss": "loss {:.3f}",
        "seen_mean_average_precision": "seen mAP {:.3f}",
        "heldout_mean_average_precision": "held-out mAP {:.3f}",
        "images_per_second": "{:.0f} images/s",
    }
    return f"epoch {record['epoch']:>3}  " + "  ".join(
        f.format(record[key]) for key, f in names.items() if key in record
    )
