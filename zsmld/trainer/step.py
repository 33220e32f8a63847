"""One step: from images to gradients, in one process or many."""

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zsmld.augmentation import QueryAugmentation
from zsmld.datasets.loader import Batch, load_batches
from zsmld.decoder import MLDecoder
from zsmld.features import FeatureDataset, add_text_noise
from zsmld.images import ImageAugmentation
from zsmld.losses import Loss
from zsmld.model import ZeroShotClassifier
from zsmld.trainer.captions import Captions
from zsmld.trainer.knowledge import Teacher

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass
class Step:
    """What every step needs.

    Attributes:
        accelerator: of this process and the others.
        model: the whole model; a frozen encoder is run from it.
        network: what is trained, as the accelerator prepared it.
        head_only: whether that is the head alone.
        sharded: whether it is sharded.
        loss: of logits and targets (B,N), summed over the images.
        mean_over_images: whether gradients are those of the mean over the step's images, or of the sum.
        labels: (N,) of the training words.
        words: (N,T) their embeddings, or None in class mode.
        captions: for caption queries.
        teacher: of additional words; None for none.
        distillation: weight of the distance from what the frozen encoder itself says of the whole image.
        augmentation: of the queries.
        image_augmentation: of the images.
        text_noise: length of the noise on sentences.
        seed: of both.
    """

    accelerator: "Accelerator"
    model: ZeroShotClassifier
    network: nn.Module
    head_only: bool
    sharded: bool
    loss: Loss
    mean_over_images: bool
    labels: np.ndarray
    words: Tensor | None
    captions: Captions | None
    teacher: Teacher | None
    distillation: float
    augmentation: QueryAugmentation
    image_augmentation: ImageAugmentation
    text_noise: float
    seed: int

    def batches(
        self, dataset: Any, shares: Iterator[tuple[np.ndarray, np.ndarray]], batch_size: int, num_workers: int
    ) -> Iterator[Batch]:
        """The micro-batches of these rows and seeds, each image augmented by its own seed.

        An image that cannot be read is left out. A process that is left without any takes part with two blank images
        and unknown targets, which give no loss: the others wait for its gradients.
        """
        rows, seeds = (np.concatenate(part) for part in zip(*shares, strict=True))
        transform = self.model.image_encoder.transform
        batches = load_batches(dataset, transform, batch_size, rows, num_workers, self.image_augmentation, seeds)
        for start, batch in zip(range(0, len(rows), batch_size), batches, strict=True):
            if self.text_noise:  # then they are sentences, and each of them is there
                own = seeds[start : start + batch_size].tolist()
                batch.inputs = add_text_noise(batch.inputs, self.text_noise, own)
            if not len(batch) and self.accelerator.num_processes > 1:
                size = (3, transform.image_size, transform.image_size)
                shape = dataset.spatial_embeddings.shape[1:] if isinstance(dataset, FeatureDataset) else size
                batch.inputs, batch.targets = torch.zeros(2, *shape), torch.full((2, len(dataset.vocabulary)), -1)
            yield batch

    def backward(self, parts: list[Batch], step: int, num_images: float) -> Tensor:
        """Accumulate the gradients of one step.

        Args:
            parts: this process's micro-batches.
            step: from 0; decides the query augmentation, for all processes alike.
            num_images: of all parts in all processes.

        Returns:
            The summed loss of this process, fp64.
        """
        device = self.accelerator.device
        summed = torch.zeros((), dtype=torch.float64, device=device)
        for number, batch in enumerate(parts):
            if not len(batch.targets):
                continue
            targets = batch.targets[:, self.labels].to(device)  # (B,N)
            inputs = batch.inputs.to(device)  # (B,3,H,W), or (B,S,C) from cached features
            if self.image_augmentation.mixes:
                place = (step * self.accelerator.num_processes + self.accelerator.process_index) * len(parts) + number
                inputs, targets = self.image_augmentation.mix(inputs, targets, self.seed * 2**40 + place)
            queries, targets = self._augment(targets, step)  # (N',T), (B,N')
            if not len(batch):  # blank images: what random queries shall be is unknown for them, too
                targets = torch.full_like(targets, -1)  # (B,N')
            # The processes exchange gradients once a step, with its last part.
            alone = number + 1 < len(parts) and not self.sharded
            with self.accelerator.no_sync(self.network) if alone else nullcontext():
                with self.accelerator.autocast():
                    if self.head_only and inputs.ndim == 4:
                        with torch.no_grad():
                            inputs = self.model.image_encoder(inputs)  # (B,S,C)
                    loss = self._loss(inputs, queries, targets, step, bool(len(batch)))
                # Gradients are averaged over the processes: each counts as many times as there are.
                scaled = loss * self.accelerator.num_processes
                self.accelerator.backward(scaled / num_images if self.mean_over_images else scaled)
            summed += loss.detach().double()
        return summed

    def _loss(self, inputs: Tensor, queries: Tensor | None, targets: Tensor, step: int, real: bool) -> Tensor:
        """Of the labels; with a teacher, of its words too; with distillation, of the image's embedding too.

        Blank images are not real, and give no loss of any kind.
        """
        num_words, taught = targets.shape[1], None
        if self.teacher is not None:  # then queries are words, and inputs spatial embeddings
            labels = self.teacher.draw(step)  # (R,)
            taught = self.teacher.targets(inputs, labels)  # (B,R)
            queries = torch.cat([cast(Tensor, queries), self.teacher.embeddings[labels]])  # (N'+R,T)
        if self.distillation:
            logits, embedding = self.network(inputs, queries, with_embedding=True)  # (B,N'+R), (B,T)
            target = cast(MLDecoder, self.model.decoder).image_embeddings(inputs)  # (B,T)
            loss = self.loss(logits[:, :num_words], targets)
            loss = loss + self.distillation * real * (1 - (embedding * target).sum(1)).sum()
        else:
            logits = self.network(inputs, queries)  # (B,N'+R)
            loss = self.loss(logits[:, :num_words], targets)
        if taught is not None:
            of_teacher = F.binary_cross_entropy_with_logits(logits[:, num_words:].float(), taught, reduction="sum")
            loss = loss + cast(Teacher, self.teacher).weight * real * of_teacher
        return loss

    def _augment(self, targets: Tensor, step: int) -> tuple[Tensor | None, Tensor]:
        if self.words is None:
            return None, targets
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        captions = None if self.captions is None else (self.captions.embeddings, self.captions.targets(targets))
        return self.augmentation(self.words, targets, generator, captions)  # (N',T), (B,N')
