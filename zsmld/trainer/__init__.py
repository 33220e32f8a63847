"""Door: Trainer, one visible loop. It never sees an unseen word, and selects the model by held-out seen words."""

import json
import time
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import nn

from zsmld.augmentation import QueryAugmentation
from zsmld.datasets import Dataset
from zsmld.features import FeatureCache
from zsmld.images import ImageAugmentation
from zsmld.losses import build_loss
from zsmld.model import ZeroShotClassifier
from zsmld.processes import from_all, take_from_main, total
from zsmld.text import TextEncoder
from zsmld.trainer.checkpoint import (
    CHECKPOINT,
    Progress,
    StopSignal,
    TrainingStopped,
    check_shared,
    kept_safe,
    random_state,
    restore_state,
    save_state,
    saved_state,
    saved_where,
    stopped,
)
from zsmld.trainer.devices import beside_workers, build_accelerator
from zsmld.trainer.log import Log
from zsmld.trainer.optimization import Schedule, build_optimizer, build_scheduler, freeze, parameter_groups
from zsmld.trainer.options import Precision, problems_of, settings_of, training_record
from zsmld.trainer.order import Order, share_of
from zsmld.trainer.preparation import prepare_data, prepare_prior, prepare_words
from zsmld.trainer.selection import describe_selection, what_selects
from zsmld.trainer.step import Step
from zsmld.trainer.weights import Weights
from zsmld.trainer.words import divide_words, rows_with

__all__ = ["Trainer", "TrainingStopped"]


@dataclass
class Trainer:
    """Trains a `ZeroShotClassifier` on the seen words of a dataset.

    Images without any of the training words are left out. With a `val_dataset`, a share of the *seen* words is held out
    of training, and the epoch with the best mAP of these pseudo-unseen words is kept; without held-out words the epoch
    with the best mAP of all seen words; without validation images the last.

    Under `torchrun` or `accelerate launch` the processes share each step's images; the result is that of one process
    with the whole batch. Everything random follows from `seed`, the step and the image: a run on the CPU repeats itself
    to the last bit, and goes on after an interruption as if there had been none.

    Args:
        model: its parts are trained in place.
        dataset: to train on.
        val_dataset: images for model selection; never test images.
        output: folder for `log.csv`, `steps.csv`, `data.json`, `unreadable.csv`, `checkpoint.pt` and `model/`; None
            writes nothing.
        augmentation: of the word queries.
        image_augmentation: of the images; default none.
        features: run a frozen image encoder once, and train from its spatial embeddings; default None.
        text_encoder: default the model's own, built here.
        epochs: passes, or spans of `steps_per_epoch`.
        steps_per_epoch: optimiser steps between two evaluations; default one pass over the dataset.
        batch_size: images an optimiser step, over all processes and accumulated parts.
        gradient_accumulation: parts of a step that are computed one after the other, for less memory.
        optimizer: "adamw", or another of timm's names ("adam", "sgd", "lamb", …).
        lr: peak learning rate.
        encoder_lr_scale: the image encoder's rate is `lr` times this.
        layer_decay: and times this again for each layer that is further from the head, in (0,1].
        weight_decay: for matrices only (no norms, biases or temperatures).
        schedule: "one_cycle" and "cosine" move every step and end near zero, "constant" stays.
        warmup: share of the steps in which the rate rises, for "one_cycle" and "cosine".
        loss: one of `zsmld.losses`: "asymmetric", "binary_cross_entropy", "two_way", "ranking", "cross_entropy".
        loss_options: further arguments of the loss; `reduction` is "mean" over images unless it is "sum".
        scores: what the model makes scores of its logits with: "sigmoid", or "softmax" for images with one word each.
        ema_decay: of the averaged weights that are evaluated and saved; 0 uses the raw ones.
        ema_warmup: let the average follow faster in the first steps (timm's: at most 1 − step^(−2/3)), so that a short
            training does not end with an average of its beginning; the official code has none.
        max_grad_norm: gradients are clipped to this norm; 0 does not clip.
        precision: "fp32", "bf16" or "fp16" autocast.
        freeze_image_encoder: train the head only (True), or name the parts that stay, such as ["conv1", "layer1"].
        compile: run the network through `torch.compile`; pays on GPUs after some minutes.
        fsdp: shard weights, averages and optimiser over the processes, for large image encoders.
        standardize_words: centre and scale word embeddings by the training words' statistics.
        calibrate_prior: before the first step, set scales, bias and temperature of the head's prior on training images.
        teacher_words: other words in each step, with the prior's opinions as targets: its classes, or `teacher_list`.
        teacher_weight: of their binary cross-entropy.
        teacher_list: for a prior without a classifier, a file with one word a line; unseen words are left out.
        distillation: weight of the cosine distance between what the words saw and what the frozen encoder itself says.
        holdout_words: share of the seen words held out for selection, in [0,1); at least one word unless 0, among those
            that occur in `val_dataset`, of which half stay.
        select_on_test_images: let test images be `val_dataset`; figures on them are then no longer fair.
        select_on_unseen_words: select by the unseen words instead of held-out ones; their figures are then not ZSL's.
        text_noise: length of the Gaussian noise on the unit embeddings of a dataset of sentences, new in each step.
        checkpoint_every: steps between two checkpoints, beside the one at each epoch's end.
        trackers: "tensorboard" and "wandb".
        log_every: steps between two rows of `steps.csv` and two points of the trackers.
        num_workers: processes that decode images.
        device: "auto", "cpu", "cuda" or "mps".
        seed: of order, dropout, augmentation and held-out words.
        progress: show a progress bar.
        configuration: plain data that is stored with the checkpoint: the recipe with all its defaults.

    Attributes:
        history: one dict an epoch: what `log.csv` holds.
        heldout: the pseudo-unseen words. The checkpoint's vocabulary counts them as seen: they have labels.
        unreadable: (id, error) of each image that could not be read, once.
        best_epoch: the epoch whose weights the model ends with.

    Raises:
        ValueError: if options contradict each other or the dataset does not fit the model.
    """

    model: ZeroShotClassifier
    dataset: Dataset
    val_dataset: Dataset | None = None
    output: str | Path | None = None
    augmentation: QueryAugmentation = field(default_factory=QueryAugmentation)
    image_augmentation: ImageAugmentation = field(default_factory=ImageAugmentation)
    features: FeatureCache | None = None
    text_encoder: TextEncoder | None = None
    epochs: int = 40
    steps_per_epoch: int | None = None
    batch_size: int = 56
    gradient_accumulation: int = 1
    optimizer: str = "adamw"
    lr: float = 1e-4
    encoder_lr_scale: float = 1.0
    layer_decay: float = 1.0
    weight_decay: float = 1e-4
    schedule: Schedule = "one_cycle"
    warmup: float = 0.2
    loss: str = "asymmetric"
    loss_options: dict[str, Any] = field(default_factory=dict)
    scores: Literal["sigmoid", "softmax"] = "sigmoid"
    ema_decay: float = 0.9997
    ema_warmup: bool = True
    max_grad_norm: float = 0.0
    precision: Precision = "fp32"
    freeze_image_encoder: bool | tuple[str, ...] = False
    compile: bool = False
    fsdp: bool = False
    standardize_words: bool = True
    calibrate_prior: bool = True
    teacher_words: int = 0
    teacher_weight: float = 0.3
    teacher_list: str | None = None
    distillation: float = 0.0
    text_noise: float = 0.0
    holdout_words: float = 0.1
    select_on_test_images: bool = False
    select_on_unseen_words: bool = False
    checkpoint_every: int | None = None
    trackers: tuple[str, ...] = ()
    log_every: int = 10
    num_workers: int = 0
    device: str = "auto"
    seed: int = 0
    progress: bool = False
    configuration: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        problems = problems_of(self)
        if problems:
            raise ValueError(f"Trainer options must fit together, got: {'; '.join(problems)}; correct them")
        self._loss = build_loss(self.loss, **self.loss_options | {"reduction": "sum"})
        self._mean_over_images = self.loss_options.get("reduction", "mean") == "mean"
        self._words = divide_words(
            self.dataset.vocabulary,
            self.model.decoder,
            self.val_dataset,
            self.holdout_words,
            self.select_on_unseen_words,
            self.seed,
        )
        self.heldout = self._words.heldout
        self.selected_by = what_selects(self.val_dataset, self._words, self.select_on_unseen_words)
        rows = rows_with(self.dataset.targets, self._words.labels)
        self.steps_per_epoch = self.steps_per_epoch or max(1, len(rows) // self.batch_size)
        self._progress = Progress()

    @property
    def history(self) -> list[dict[str, float]]:
        """One dict an epoch."""
        return self._progress.history

    @property
    def unreadable(self) -> list[tuple[str, str]]:
        """(id, error) of each image that could not be read."""
        return list(self._progress.unreadable.items())

    def note_unreadable(self, pairs: Iterable[tuple[str, str]]) -> None:
        """Count (id, error) of images that could not be read."""
        self._progress.unreadable.update(pairs)

    @property
    def best_epoch(self) -> int:
        """The epoch that was selected, 0 before there is one."""
        return self._progress.best_epoch

    def selection_text(self) -> str:
        """What selects the epoch, as a person wants to read it."""
        return describe_selection(self.selected_by, len(self.heldout), self.val_dataset)

    # -------------------------------------------------------------------------------------------------- the loop

    def fit(self, resume: bool = False) -> ZeroShotClassifier:
        """Train.

        Args:
            resume: go on from the checkpoint in `output`, if there is one. On the CPU the numbers are those of a run
                that was never interrupted.

        Returns:
            The model, with the selected weights, in eval mode, knowing the dataset's seen words.

        Raises:
            ValueError: if the loss becomes NaN or infinite, or no image can be read, or other settings are resumed;
                what was saved stays.
            FileExistsError: if `output` holds an interrupted training, and it shall not be resumed.
            OSError: if something cannot be written, or a worker dies; what was saved stays.
            TrainingStopped: on SIGTERM or Ctrl-C, after a checkpoint.
        """
        with ExitStack() as cleanup:
            cleanup.enter_context(beside_workers(self.num_workers, self._saved_where))
            return self._fit(resume, cleanup)

    def _fit(self, resume: bool, cleanup: ExitStack) -> ZeroShotClassifier:
        assert self.steps_per_epoch is not None  # __post_init__ made sure
        head_only = self.freeze_image_encoder is True
        accelerator = build_accelerator(self.device, self.precision, self.trackers, self.output, not head_only)
        device, main, world = accelerator.device, accelerator.is_main_process, accelerator.num_processes
        part = share_of(self.batch_size, world, self.gradient_accumulation)
        torch.manual_seed(self.seed + accelerator.process_index)  # each process draws its own dropout
        model = self.model.to(device)
        take_from_main(model.state_dict().values())  # however each process made its own
        settings = settings_of(self)
        saved = saved_state(self._path(CHECKPOINT), settings, resume)
        progress = self._progress = Progress() if saved is None else Progress(**saved["progress"])
        check_shared(progress.step, self.output)
        words, captions, selection = prepare_words(self, self._words, device)  # (N,T), or None in class mode
        dataset, val_dataset = prepare_data(self)
        model.image_encoder.eval()  # a frozen encoder is no part of the network, which is put into training mode below
        teacher = prepare_prior(self, dataset, self._words, words, device, self._loss)
        trainable = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
        cleanup.callback(lambda: [parameter.requires_grad_(flag) for parameter, flag in trainable])
        frozen = freeze(model.image_encoder, self.freeze_image_encoder)  # names of modules that stay in eval mode

        sharded = self.fsdp and world > 1  # one process would hold it all
        weights = Weights(model, head_only, self.ema_decay, sharded, self.ema_warmup)
        groups = parameter_groups(weights.trained, self.lr, self.weight_decay, self.encoder_lr_scale, self.layer_decay)
        bare = build_optimizer(self.optimizer, groups, self.lr)
        total_steps = self.epochs * self.steps_per_epoch
        scheduler = build_scheduler(self.schedule, bare, total_steps, self.warmup)
        network, optimizer = weights.trained, accelerator.prepare(bare)
        if not sharded:  # else it is distributed already
            network = accelerator.prepare(network)
            # However it ends, the model leaves as it came, without accelerate's autocast around its forward.
            cleanup.callback(accelerator.unwrap_model, network, keep_fp32_wrapper=False)
        if self.compile:
            network = cast(nn.Module, torch.compile(network))

        if self.trackers:
            accelerator.init_trackers("zsmld", {name: str(value) for name, value in settings.items()})
            cleanup.callback(accelerator.end_training)
        log = Log(self._path() if main else None, total_steps, self.log_every, self.progress and main, accelerator.log)
        cleanup.callback(log.close)
        if saved is not None:
            restore_state(saved, weights, bare, scheduler, accelerator)
        if saved is not None and saved["finished"]:
            return self._ended(weights, settings, world)
        with kept_safe("log", self._saved_where):
            log.start(progress.step, progress.history, progress.row, {"train": self.dataset, "val": self.val_dataset})
        stop = cleanup.enter_context(StopSignal())  # until now there was nothing to keep: a signal ended it all

        def checkpoint(finished: bool = False) -> None:
            """Everything that a resumed run needs; every process calls this together."""
            for errors in from_all(progress.unreadable):
                progress.unreadable.update(errors)
            progress.row = log.row
            if world == 1 and self.output is None:
                return  # nobody reads it
            state = {
                "settings": json.dumps(settings),
                "finished": finished,
                "progress": vars(progress),
                "weights": {} if finished else weights.state(bare),
                "scheduler": scheduler.state_dict(),
                "scaler": None if accelerator.scaler is None else accelerator.scaler.state_dict(),
                "random": from_all(random_state(device)),
            }
            if main and self.output is not None:
                with kept_safe("checkpoint", self._saved_where):
                    save_state(Path(self.output) / CHECKPOINT, state)
                    log.write_unreadable(progress.unreadable)
            accelerator.wait_for_everyone()

        run = Step(
            accelerator=accelerator,
            model=model,
            network=network,
            head_only=head_only,
            sharded=sharded,
            loss=self._loss,
            mean_over_images=self._mean_over_images,
            labels=self._words.labels,
            words=words,
            captions=captions,
            teacher=teacher,
            distillation=self.distillation,
            augmentation=self.augmentation,
            image_augmentation=self.image_augmentation,
            text_noise=self.text_noise,
            seed=self.seed,
        )
        order = Order(rows_with(dataset.targets, self._words.labels), self.batch_size, self.seed)
        pending, pending_images = torch.zeros((), dtype=torch.float64, device=device), 0
        for epoch in range(len(progress.history) + 1, self.epochs + 1):
            network.train()
            for name in frozen:  # batch norm keeps the statistics of its pretraining
                weights.trained.get_submodule(name).eval()
            first, last = progress.step, epoch * self.steps_per_epoch
            started, own_images = time.perf_counter(), 0
            shares = order.share(first, last, accelerator.process_index, world, self.gradient_accumulation)
            batches = run.batches(dataset, shares, part, self.num_workers)
            for step in range(first, last):
                parts = [next(batches) for _ in range(self.gradient_accumulation)]
                self.note_unreadable(pair for batch in parts for pair in batch.unreadable)
                num_images, stopping = total([sum(map(len, parts)), float(stop.received > 0)], device)
                if num_images:
                    pending = pending + run.backward(parts, step, num_images)
                    pending_images += int(num_images)
                saving = bool(stopping or (self.checkpoint_every and (step + 1) % self.checkpoint_every == 0))
                # A GPU must not wait for its every loss; the CPU has it at once.
                if device.type == "cpu" or (step + 1) % self.log_every == 0 or step + 1 == last or saving:
                    (value,) = total([pending.item()], device)
                    if not np.isfinite(value):
                        raise self._diverged(f"{value} at step {step} of epoch {epoch}")
                    progress.epoch_loss += value
                    progress.epoch_images += pending_images
                    log.count(value, pending_images)
                    pending, pending_images = torch.zeros_like(pending), 0
                if num_images:
                    if self.max_grad_norm:
                        accelerator.clip_grad_norm_(network.parameters(), self.max_grad_norm)
                    optimizer.step()
                    optimizer.zero_grad()
                    if not accelerator.optimizer_step_was_skipped:  # as in fp16, where gradients overflowed
                        scheduler.step()
                progress.step, own_images = step + 1, own_images + int(num_images)
                weights.update(progress.step)
                if (saving or progress.step == last) and not weights.are_finite():
                    raise self._diverged(f"weights that are no numbers after step {step} of epoch {epoch}")
                with kept_safe("log", self._saved_where):
                    log.step(progress.step, epoch, float(scheduler.get_last_lr()[0]))
                if saving:
                    checkpoint()
                if stopping:
                    raise stopped(max(from_all(stop.received)), progress.step, total_steps, self.output)
            if not progress.epoch_images:
                raise ValueError(f"dataset must have readable images, none could be read; first: {self.unreadable[:1]}")
            seconds = max(time.perf_counter() - started, 1e-9)
            if val_dataset is not None:
                checkpoint()  # measuring may take long, and a machine that is asked to stop does not wait for ever
            model_now = weights.evaluated()
            record: dict[str, float] = {
                "epoch": epoch,
                "step": progress.step,
                "loss": progress.epoch_loss / progress.epoch_images,
                "lr": float(scheduler.get_last_lr()[0]),
                "images_per_second": own_images / seconds,
                **selection.measure(model_now, val_dataset, device, self.batch_size, self.num_workers),
            }
            progress.history.append(record)
            self.note_unreadable(selection.unreadable)
            progress.epoch_loss, progress.epoch_images = 0.0, 0
            selected_by = record.get(self.selected_by, float(epoch))  # without a figure each epoch beats the last
            if selected_by > progress.best or not progress.best_epoch:  # a figure may be NaN
                progress.best, progress.best_epoch = selected_by, epoch
                progress.best_weights = weights.of_trained_part(model_now)
                model.training_record = training_record(self, settings, world, str(device))
                if main and self.output is not None:
                    with kept_safe("model", self._saved_where):
                        model.save_pretrained(Path(self.output) / "model", model_now.state_dict())
            with kept_safe("log", self._saved_where):
                log.epoch(record, first=epoch == 1)
            checkpoint(finished=epoch == self.epochs)
        if (number := max(from_all(stop.received))) > 0:  # it came with the last epoch, which is saved
            raise stopped(number, progress.step, total_steps, self.output)
        return self._ended(weights, settings, world)

    # ----------------------------------------------------------------------------------------------------- parts

    def _path(self, *parts: str) -> Path | None:
        return None if self.output is None else Path(self.output, *parts)

    def _ended(self, weights: Weights, settings: dict[str, Any], world: int) -> ZeroShotClassifier:
        """The model with the selected weights."""
        weights.take(self._progress.best_weights)
        device = str(next(self.model.parameters()).device)
        self.model.training_record = training_record(self, settings, world, device)
        return self.model.eval()

    def _diverged(self, what: str) -> ValueError:
        remedy = f"lower lr (now {self.lr:g}) or use precision='fp32'. Last good model: {self._saved_where()}"
        return ValueError(f"loss must be a number, got {what}; {remedy}")

    def _saved_where(self) -> str:
        return saved_where(self.output)
