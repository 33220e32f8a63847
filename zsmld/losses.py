"""Losses on multi-label logits. Targets are 1 present, 0 absent, −1 unknown; unknown entries give no loss, no gradient.

Every loss computes in fp32 whatever comes in, and returns the sum over words and images ("sum", as the papers do) or
the mean over images of the sum over words ("mean", which does not change with the batch size).
"""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Reduction = Literal["sum", "mean"]


def asymmetric_loss(
    logits: Tensor,
    targets: Tensor,
    gamma_neg: float = 4.0,
    gamma_pos: float = 0.0,
    clip: float = 0.05,
    reduction: Reduction = "sum",
) -> Tensor:
    """Asymmetric loss: easy negatives are down-weighted, and dropped below a probability margin.

    Args:
        logits: (B,N), real.
        targets: (B,N) in {1, 0, −1}; −1 is ignored.
        gamma_neg: focusing exponent of the negatives; the ML-Decoder recipes use 4.
        gamma_pos: focusing exponent of the positives; the ML-Decoder recipes use 0.
        clip: probability margin by which negatives are shifted, in [0,1).
        reduction: "sum" or "mean" (over images).

    Returns:
        A scalar, fp32.

    Raises:
        ValueError: if shapes differ or the reduction is unknown.

    Source: Ridnik et al., "Asymmetric Loss For Multi-Label Classification", arXiv 2009.14119, equations 1 to 6. As in
    the official code the focusing weight is a constant for the gradient; the grad mode of the caller is kept.

    Example:
        >>> asymmetric_loss(torch.zeros(1, 2), torch.tensor([[1, -1]])).item()  # only the positive counts: −log 0.5
        0.6931471824645996
    """
    _check(logits, targets)
    logits, present = logits.float(), targets == 1  # (B,N), (B,N)
    score = torch.sigmoid(logits)  # (B,N)
    absent_score = (1 - score + clip).clamp(max=1)  # (B,N) probability of "absent", shifted by the margin
    probability = torch.where(present, score, absent_score)  # (B,N) of what is true
    loss = -probability.clamp(min=1e-8).log()  # (B,N)
    if gamma_neg or gamma_pos:
        gamma = torch.where(present, gamma_pos, gamma_neg)  # (B,N)
        loss = loss * (1 - probability.detach()).pow(gamma)  # (B,N)
    return _reduce(loss, targets, reduction)


def binary_cross_entropy(logits: Tensor, targets: Tensor, reduction: Reduction = "sum") -> Tensor:
    """Binary cross-entropy on logits (B,N) with targets in {1, 0, −1}, where −1 is ignored. A scalar, fp32.

    Raises:
        ValueError: if shapes differ or the reduction is unknown.

    Example:
        >>> binary_cross_entropy(torch.zeros(1, 2), torch.tensor([[0, -1]])).item()
        0.6931471824645996
    """
    _check(logits, targets)
    loss = F.binary_cross_entropy_with_logits(logits.float(), (targets == 1).float(), reduction="none")  # (B,N)
    return _reduce(loss, targets, reduction)


Loss = Callable[[Tensor, Tensor], Tensor]

_LOSSES: dict[str, Callable[..., Tensor]] = {
    "asymmetric": asymmetric_loss,
    "binary_cross_entropy": binary_cross_entropy,
}


def build_loss(name: str, **options: float | str) -> Loss:
    """The loss of that name with its options bound, as `loss(logits, targets)`.

    Raises:
        ValueError: for an unknown name or option.
    """
    if name not in _LOSSES:
        raise ValueError(f"loss must be one of {sorted(_LOSSES)}, got {name!r}; correct the name")
    known = set(inspect.signature(_LOSSES[name]).parameters) - {"logits", "targets"}
    if set(options) - known:
        raise ValueError(
            f"options of loss {name!r} must be among {sorted(known)}, got {sorted(set(options) - known)}; correct them"
        )
    return partial(_LOSSES[name], **options)


def _check(logits: Tensor, targets: Tensor) -> None:
    if logits.shape != targets.shape:
        raise ValueError(
            f"targets must have the shape of logits {tuple(logits.shape)}, got {tuple(targets.shape)}; "
            f"select the same words in both"
        )


def _reduce(loss: Tensor, targets: Tensor, reduction: Reduction) -> Tensor:
    if reduction not in ("sum", "mean"):
        raise ValueError(f"reduction must be 'sum' or 'mean', got {reduction!r}; the papers use 'sum'")
    total = loss.masked_fill(targets == -1, 0).sum()
    return total if reduction == "sum" else total / len(loss)
