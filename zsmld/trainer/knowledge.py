"""What a head takes over from a prior: how far to trust it, and what it has to say about other words."""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zsmld.datasets.loader import load_batches
from zsmld.decoder import TrainingFreeScorer
from zsmld.losses import Loss, binary_cross_entropy
from zsmld.metrics import average_precision, mean_average_precision
from zsmld.model import ZeroShotClassifier

_MOST_IMAGES = 2048  # three numbers and a temperature need no more
_TEMPERATURES = (0.5, 1.0, 2.0, 3.0, 4.0)


@dataclass(frozen=True)
class Teacher:
    """Other words as additional queries, with a prior's opinion of each image as their targets.

    For ConSE the words are the classifier's class names and the opinion is the highest probability it gives them in any
    view; for CLIP it is the prior's own score of any words. Every process draws the same words in a step.

    Attributes:
        prior: a copy of the head's, as it was calibrated.
        embeddings: (K,T) of the words.
        shares: (K,) on the CPU, not negative, how likely each is drawn.
        number: R, words drawn in each step.
        weight: of their loss.
        seed: of the draw.

    Source: the idea of a classifier's soft predictions as targets is distillation, Hinton et al., arXiv 1503.02531.
    """

    prior: TrainingFreeScorer
    embeddings: Tensor
    shares: Tensor
    number: int
    weight: float
    seed: int

    def draw(self, step: int) -> Tensor:
        """Labels (R,) of this step's words among the K."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        number = min(self.number, int((self.shares > 0).sum()))
        return torch.multinomial(self.shares, number, generator=generator)

    @torch.no_grad()
    def targets(self, spatial_embeddings: Tensor, labels: Tensor) -> Tensor:
        """Opinions in [0,1] of these words: spatial embeddings (B,S,C) -> (B,R)."""
        return opinions(self.prior, spatial_embeddings, self.embeddings[labels], labels)


@torch.no_grad()
def opinions(prior: TrainingFreeScorer, spatial_embeddings: Tensor, words: Tensor, labels: Tensor) -> Tensor:
    """A prior's opinion of words (R,T), the classes `labels` of its classifier if it has one: (B,R) in [0,1]."""
    if prior.output == "conse":
        return prior.class_probabilities(prior.with_global(spatial_embeddings), temperature=1.0).amax(1)[:, labels]
    return prior(spatial_embeddings, words).sigmoid()


@torch.no_grad()
def spatial_batches(
    model: ZeroShotClassifier, dataset: Any, rows: np.ndarray, device: torch.device, num_workers: int
) -> Iterator[tuple[Tensor, np.ndarray]]:
    """Spatial embeddings (B,S,C) of at most 2,048 of these rows, evenly spread, and which rows they are."""
    rows = rows[np.unique(np.linspace(0, len(rows) - 1, min(_MOST_IMAGES, len(rows))).astype(int))]
    for batch in load_batches(dataset, model.image_encoder.transform, 64, rows, num_workers=num_workers):
        if len(batch):
            inputs = batch.inputs.to(device)
            yield model.image_encoder(inputs) if inputs.ndim == 4 else inputs.float(), batch.rows.numpy()


@torch.no_grad()
def candidate_similarities(
    prior: TrainingFreeScorer, batches: Iterable[Tensor], words: Tensor
) -> dict[float | None, Tensor]:
    """Similarities (M,N,1|2) of words (N,T) or (N,K,T) under each temperature that a classifier could have.

    Args:
        prior: of a head.
        batches: of spatial embeddings (B,S,C), read once.
        words: on their device.

    Returns:
        By temperature; {None: …} for a prior without a classifier.
    """
    compiled, found = prior.word_queries(words), defaultdict[float | None, list[Tensor]](list)
    for spatial in batches:
        for temperature in _TEMPERATURES if prior.output == "conse" else (None,):
            found[temperature].append(prior.similarities(prior.image_views(spatial, temperature), *compiled))
    return {temperature: torch.cat(parts) for temperature, parts in found.items()}


@torch.no_grad()
def calibrate_prior(
    prior: TrainingFreeScorer, candidates: dict[float | None, Tensor], targets: np.ndarray, loss: Loss
) -> None:
    """Set a prior's scales and bias where training would leave them, and choose the temperature of its classifier.

    The prior has not been trained on these images, so its mAP of the trained words on them says which temperature is
    best; unseen words and held-out words take no part. A head beside it, whose own logit starts near zero, then starts
    where the prior is.

    Args:
        prior: of a head.
        candidates: of `candidate_similarities`, for training images and trained words.
        targets: (M,N) in {1, 0, −1}.
        loss: of logits and targets (M,N), summed.
    """
    best: tuple[float, float | None, Tensor, Tensor] | None = None
    for temperature, pairs in candidates.items():
        expected = torch.from_numpy(targets).to(pairs.device)
        # In units of the similarities' own deviation: a search that starts anywhere else takes too large steps.
        spread = pairs.flatten(0, 1).std(0).clamp(min=1e-6)  # (1|2,)
        start = _lowest(pairs / spread, expected, binary_cross_entropy)  # where there is exactly one lowest point
        logits = pairs @ (start[:-1] / spread) + start[-1]  # (M,N)
        quality = mean_average_precision(average_precision(logits.cpu().numpy(), targets), "skip")
        if best is None or quality > best[0]:
            best = quality, temperature, spread, start
    assert best is not None  # there is at least one candidate
    _, temperature, spread, start = best
    settled = _settled(candidates[temperature] / spread, expected, loss, start)
    if temperature is not None:
        prior.temperature.fill_(temperature)
    prior.scale.copy_(settled[:-1] / spread)
    prior.bias.copy_(settled[-1])


def _gradient(parameters: Tensor, pairs: Tensor, targets: Tensor, loss: Loss) -> tuple[Tensor, Tensor]:
    """Mean loss and its gradient at scales and bias (2|3,), of pairs (M,N,2) -> targets (M,N)."""
    given = parameters.detach().requires_grad_()
    with torch.enable_grad():
        value = loss(pairs @ given[:-1] + given[-1], targets) / len(pairs)
        (gradient,) = torch.autograd.grad(value, given)
    return value.detach(), gradient


def _lowest(pairs: Tensor, targets: Tensor, loss: Loss) -> Tensor:
    """Scales and bias (2|3,) with the lowest value of a convex loss."""
    from scipy.optimize import minimize

    def at(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = _gradient(torch.from_numpy(parameters).to(pairs), pairs, targets, loss)
        return value.item(), gradient.cpu().numpy().astype(np.float64)

    found = minimize(at, np.array([*[1.0] * pairs.shape[2], -2.0]), jac=True, method="BFGS")
    return torch.from_numpy(found.x).to(pairs)


def _settled(pairs: Tensor, targets: Tensor, loss: Loss, start: Tensor) -> Tensor:
    """Scales and bias (2|3,) where descent by the training's own loss comes to rest.

    That is not where its value is lowest: the focusing weights of the asymmetric loss have no gradient.
    """
    parameters = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([parameters], lr=0.1)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.001, total_iters=300)
    for _ in range(300):
        parameters.grad = _gradient(parameters, pairs, targets, loss)[1]
        optimizer.step()
        schedule.step()
    return parameters.detach()
