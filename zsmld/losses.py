"""Losses on logits (B,N). Targets are 1 present, 0 absent, −1 unknown; unknown entries give no loss, no gradient.

| name in `build_loss` | for | targets |
|---|---|---|
| asymmetric | several words an image, mostly absent | hard |
| binary_cross_entropy | each word alone | hard, or soft in [0,1] |
| two_way | present above absent, over words and over images | hard |
| ranking | present above absent by a margin | hard |
| cross_entropy | one word an image | hard, or soft rows that sum to one |

Every loss is computed in fp32 (in fp64 if logits are) whatever comes in, and is the sum over images of what each
image costs ("sum", as most papers do) or that sum divided by B ("mean", which does not change with the batch size).
An image without a known word costs 0. Soft targets are what MixUp and CutMix make.
"""

import inspect
from collections.abc import Callable
from functools import partial
from numbers import Real
from typing import Any, Literal

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
        gamma_neg: focusing exponent of the negatives, in [0,∞); the ML-Decoder recipes use 4.
        gamma_pos: focusing exponent of the positives, in [0,∞); the ML-Decoder recipes use 0.
        clip: probability margin by which negatives are shifted, in [0,1).
        reduction: "sum" or "mean" (over images).

    Returns:
        A scalar, fp32.

    Raises:
        ValueError: if shapes differ, targets are soft, an option is out of range or the reduction is unknown.

    Source: Ridnik et al., "Asymmetric Loss For Multi-Label Classification", arXiv 2009.14119, equations 1 to 6. As in
    the official code the focusing weight is a constant for the gradient (timm's `disable_torch_grad_focal_loss=True`;
    its default lets the gradient through); the grad mode of the caller is never touched.

    Example:
        >>> asymmetric_loss(torch.zeros(1, 2), torch.tensor([[1, -1]])).item()  # only the positive counts: −log 0.5
        0.6931471824645996
    """
    _check_number("gamma_neg", gamma_neg, "in [0,∞)", lambda x: 0 <= x < torch.inf)
    _check_number("gamma_pos", gamma_pos, "in [0,∞)", lambda x: 0 <= x < torch.inf)
    _check_number("clip", clip, "in [0,1)", lambda x: 0 <= x < 1)
    logits, present = _prepare(logits, targets), targets == 1  # (B,N), (B,N)
    score = torch.sigmoid(logits)  # (B,N)
    absent_score = (1 - score + clip).clamp(max=1)  # (B,N) probability of "absent", shifted by the margin
    probability = torch.where(present, score, absent_score)  # (B,N) of what is true
    loss = -probability.clamp(min=1e-8).log()  # (B,N)
    if gamma_neg or gamma_pos:
        gamma = torch.where(present, gamma_pos, gamma_neg)  # (B,N)
        loss = loss * (1 - probability.detach()).pow(gamma)  # (B,N)
    return _reduce(loss.masked_fill(targets == -1, 0).sum(1), reduction)


def binary_cross_entropy(
    logits: Tensor, targets: Tensor, label_smoothing: float = 0.0, reduction: Reduction = "sum"
) -> Tensor:
    """Binary cross-entropy: every word is a yes/no question of its own.

    Args:
        logits: (B,N), real.
        targets: (B,N) in {1, 0, −1}, or soft in [0,1] and −1; −1 is ignored.
        label_smoothing: in [0,1); moves every target towards ½ by this share.
        reduction: "sum" or "mean" (over images).

    Returns:
        A scalar, fp32.

    Raises:
        ValueError: if shapes differ, soft targets leave [0,1], an option is out of range or the reduction is unknown.

    Source: torch's `binary_cross_entropy_with_logits`, summed over words where torch's mean divides by N too. Smoothing
    is that of timm's `BinaryCrossEntropy(smooth_dense=True)`; for single-label data timm spreads it over the N words
    instead (ε/N each). The A2 recipe of "ResNet strikes back" (arXiv 2110.00476) uses none.

    Example:
        >>> binary_cross_entropy(torch.zeros(1, 3), torch.tensor([[0.0, 0.7, -1.0]])).item()  # 2 log 2
        1.3862943649291992
    """
    _check_number("label_smoothing", label_smoothing, "in [0,1)", lambda x: 0 <= x < 1)
    logits, unknown = _prepare(logits, targets, soft=True), targets == -1  # (B,N), (B,N)
    truth = targets.to(logits.dtype).masked_fill(unknown, 0)  # (B,N) in [0,1]
    truth = truth * (1 - label_smoothing) + label_smoothing / 2  # (B,N)
    loss = F.binary_cross_entropy_with_logits(logits, truth, reduction="none")  # (B,N)
    return _reduce(loss.masked_fill(unknown, 0).sum(1), reduction)


def two_way_loss(
    logits: Tensor,
    targets: Tensor,
    temperature_pos: float = 4.0,
    temperature_neg: float = 1.0,
    reduction: Reduction = "sum",
) -> Tensor:
    """Two-way loss: what is present stands above what is absent, among the words of an image and the images of a word.

    One group of entries (a row, or a column) costs softplus(T⁻ log Σ exp(x⁻/T⁻) + T⁺ log Σ exp(−x⁺/T⁺)) with x⁺ the
    logits of what is present and x⁻ of what is absent: the soft maximum of the absent minus the soft minimum of the
    present. A group that lacks one of them costs 0. An image with something present costs what its own row costs, plus
    the mean over words of what their columns cost, among the words that are present in some image; an image without
    costs 0.

    **The columns couple the images of a batch**: they see the images of one call only (in data-parallel training those
    of one process), and an image's share depends on its batch. With B = 1 they are 0.

    Args:
        logits: (B,N), real.
        targets: (B,N) in {1, 0, −1}; −1 is ignored in rows and in columns.
        temperature_pos: in (0,∞); a higher one spreads the gradient over more of the present entries.
        temperature_neg: in (0,∞); the same for the absent entries.
        reduction: "sum" or "mean" (over images).

    Returns:
        A scalar, fp32.

    Raises:
        ValueError: if shapes differ, targets are soft, an option is out of range or the reduction is unknown.

    Source: Kobayashi, "Two-Way Multi-Label Loss", CVPR 2023, and its code (tk1980/TwowayMultiLabelLoss,
    `utils/criterion.py`), with its temperatures. The code returns the mean over images with something present; that
    is our "mean" if every image has something, and our "sum" is always it times the number of those images. It masks
    with −100, which leaks when logits are that far apart; here what is masked is exactly out.

    Example:
        >>> logits, targets = torch.tensor([[2.0, -1.0], [0.0, 3.0]]), torch.tensor([[1, 0], [0, 1]])
        >>> two_way_loss(logits, targets).item()  # rows 0.0486 + 0.0486, columns 2 · (0.1269 + 0.0181) / 2
        0.2422...
    """
    _check_number("temperature_pos", temperature_pos, "in (0,∞)", lambda x: 0 < x < torch.inf)
    _check_number("temperature_neg", temperature_neg, "in (0,∞)", lambda x: 0 < x < torch.inf)
    logits, present, absent = _prepare(logits, targets), targets == 1, targets == 0  # (B,N), (B,N), (B,N)
    out = torch.finfo(logits.dtype).min  # its exp is 0 and, unlike −inf, it makes no NaN in a gradient
    low = (-logits / temperature_pos).masked_fill(~present, out)  # (B,N)
    high = (logits / temperature_neg).masked_fill(~absent, out)  # (B,N)
    rows, columns = (
        F.softplus(temperature_neg * high.logsumexp(dim) + temperature_pos * low.logsumexp(dim)) for dim in (1, 0)
    )  # (B), (N); 0 where nothing is present or nothing absent
    share = columns.sum() / present.any(0).sum().clamp(min=1)  # () of each image
    return _reduce(rows + share * present.any(1), reduction)


def ranking_loss(
    logits: Tensor,
    targets: Tensor,
    margin: float = 1.0,
    normalize_by: Literal["pairs", "violations"] = "pairs",
    reduction: Reduction = "sum",
) -> Tensor:
    """Ranking loss: in each image every present word should stand above every absent one by a margin.

    An image costs Σ max(0, margin + x⁻ − x⁺) over its pairs of a present and an absent word, divided by the number of
    those pairs. Without a pair it costs 0. Time is O(B N log N) and memory O(B N): no pair is ever built.

    Args:
        logits: (B,N), real.
        targets: (B,N) in {1, 0, −1}; −1 is ignored.
        margin: in [0,∞), in units of the logits.
        normalize_by: "pairs" divides by all pairs of the image, so that the loss falls as fewer are wrong;
            "violations" by those closer than the margin, so that the last wrong pair weighs as much as the first.
        reduction: "sum" or "mean" (over images).

    Returns:
        A scalar, fp32.

    Raises:
        ValueError: if shapes differ, targets are soft, an option is out of range or unknown, or the reduction is.

    Source: the loss of LESA (Huynh and Elhamifar, CVPR 2020), BiAM (Narayan et al., ICCV 2021) and MKT (He et al.,
    AAAI 2023). Their codes (`core/model_share_attention.py`, `model.py`, `models/rank_loss.py`) are one function:
    margin 1, divided by the violated pairs (`normalize_by="violations"`), the mean over images. Fast0Tag (Zhang et al.,
    CVPR 2016) divides by all pairs, our default, and has log(1 + exp) for the hinge.

    Example:
        >>> logits, targets = torch.tensor([[2.0, 1.5, 0.0, 9.0]]), torch.tensor([[1, 0, 0, -1]])
        >>> ranking_loss(logits, targets).item()  # (max(0, 1 + 1.5 − 2) + max(0, 1 + 0 − 2)) / 2
        0.25
        >>> ranking_loss(logits, targets, normalize_by="violations").item()
        0.5
    """
    _check_number("margin", margin, "in [0,∞)", lambda x: 0 <= x < torch.inf)
    if normalize_by not in ("pairs", "violations"):
        raise ValueError(
            f"normalize_by must be 'pairs' or 'violations', got {normalize_by!r}; the papers' codes use 'violations'"
        )
    # searchsorted warns about, and copies, what is not contiguous.
    logits, present, absent = _prepare(logits, targets).contiguous(), targets == 1, targets == 0  # (B,N), (B,N), (B,N)
    bound = logits - margin  # (B,N) a pair is violated if the absent word's logit is above the present word's bound
    # A violated pair costs logit − bound, so each word enters with the number of violated pairs it is in. Both counts
    # make the same comparisons of the same numbers, so that they agree to the last bit.
    bounds = bound.masked_fill(~present, torch.inf).sort(1).values  # (B,N) rising
    rivals = logits.masked_fill(~absent, -torch.inf).sort(1).values  # (B,N) rising
    above = torch.searchsorted(bounds, logits) * absent  # (B,N) for an absent word, the bounds it is above
    below = (logits.shape[1] - torch.searchsorted(rivals, bound, right=True)) * present  # (B,N) for a present word
    violations = below.sum(1)  # (B)
    pairs = present.sum(1) * absent.sum(1)  # (B)
    loss = (above * logits - below * bound).sum(1)  # (B)
    return _reduce(loss / (pairs if normalize_by == "pairs" else violations).clamp(min=1), reduction)


def cross_entropy(
    logits: Tensor, targets: Tensor, label_smoothing: float = 0.0, reduction: Reduction = "sum"
) -> Tensor:
    """Softmax cross-entropy for single-label data: the words of an image exclude one another.

    Args:
        logits: (B,N), real.
        targets: (B,N) in {1, 0, −1} with exactly one 1 in a row, or soft in [0,1] and −1 with rows that sum to one
            (to 0.01, for half precision). −1 leaves the word out of the softmax; a row of −1 only costs 0.
        label_smoothing: in [0,1); this share of a row's target is spread evenly over its known words.
        reduction: "sum" or "mean" (over images).

    Returns:
        A scalar, fp32.

    Raises:
        ValueError: if shapes differ, a row is not as above, an option is out of range or the reduction is unknown.

    Source: torch's `cross_entropy` with class probabilities, to which it is equal where nothing is unknown.

    Example:
        >>> cross_entropy(torch.zeros(1, 3), torch.tensor([[1, 0, -1]])).item()  # one of two words: log 2
        0.6931471824645996
    """
    _check_number("label_smoothing", label_smoothing, "in [0,1)", lambda x: 0 <= x < 1)
    logits, unknown = _prepare(logits, targets, soft=True), targets == -1  # (B,N), (B,N)
    truth = targets.to(logits.dtype).masked_fill(unknown, 0)  # (B,N) in [0,1]
    sums, num_known = truth.sum(1), (~unknown).sum(1)  # (B), (B)
    # Like any look at values, this waits for a GPU; without it a row with two words would train on nonsense.
    wrong = ((sums - 1).abs() > 0.01) & (num_known > 0)  # (B)
    if wrong.any():
        row = int(wrong.nonzero()[0])
        raise ValueError(
            f"targets must have exactly one 1 in a row for cross_entropy (soft ones must sum to 1), got a sum of "
            f"{sums[row].item():g} in row {row}; use binary_cross_entropy for images with several words or none, or "
            f"mark all words of such an image unknown (-1)"
        )
    spread = label_smoothing / num_known.clamp(min=1)  # (B)
    truth = (truth * (1 - label_smoothing) + spread[:, None]).masked_fill(unknown, 0)  # (B,N)
    out = torch.finfo(logits.dtype).min  # not −inf, which makes NaN of 0 · −inf
    return _reduce(-(truth * logits.masked_fill(unknown, out).log_softmax(1)).sum(1), reduction)


Loss = Callable[[Tensor, Tensor], Tensor]

_LOSSES: dict[str, Callable[..., Tensor]] = {
    "asymmetric": asymmetric_loss,
    "binary_cross_entropy": binary_cross_entropy,
    "cross_entropy": cross_entropy,
    "ranking": ranking_loss,
    "two_way": two_way_loss,
}


def build_loss(name: str, **options: float | str) -> Loss:
    """The loss of that name with its options bound, as `loss(logits, targets)`.

    Raises:
        ValueError: for an unknown name or option, or a value that the loss refuses.

    Example:
        >>> build_loss("ranking", margin=2.0)(torch.zeros(1, 2), torch.tensor([[1, 0]])).item()
        2.0
    """
    if name not in _LOSSES:
        raise ValueError(f"loss must be one of {sorted(_LOSSES)}, got {name!r}; correct the name")
    known = set(inspect.signature(_LOSSES[name]).parameters) - {"logits", "targets"}
    if set(options) - known:
        raise ValueError(
            f"options of loss {name!r} must be among {sorted(known)}, got {sorted(set(options) - known)}; correct them"
        )
    loss = partial(_LOSSES[name], **options)
    loss(torch.zeros(1, 2), torch.tensor([[1, 0]]))  # a value it refuses is told here, not at the first step
    return loss


def _prepare(logits: Tensor, targets: Tensor, soft: bool = False) -> Tensor:
    """The logits in fp32 or better, after the checks that all losses share.

    Values are checked only where targets are floating, which the trainer's are for MixUp and CutMix alone: on a GPU
    the check waits for the device.
    """
    if logits.ndim != 2:
        raise ValueError(f"logits must be (B,N), got {tuple(logits.shape)}; give one row an image, one column a word")
    if logits.shape != targets.shape:
        raise ValueError(
            f"targets must have the shape of logits {tuple(logits.shape)}, got {tuple(targets.shape)}; "
            f"select the same words in both"
        )
    if targets.is_floating_point():
        between = (targets >= 0) & (targets <= 1) if soft else (targets == 0) | (targets == 1)  # (B,N)
        wrong = ~between & (targets != -1)  # (B,N)
        if wrong.any():
            allowed = "in [0,1] or -1 (unknown)" if soft else "1, 0 or -1 for this loss"
            advice = "mix no unknown targets" if soft else "soft ones go with binary_cross_entropy or cross_entropy"
            raise ValueError(f"targets must be {allowed}, got {targets[wrong][0].item():g}; {advice}")
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _check_number(name: str, value: object, allowed: str, valid: Callable[[Any], bool]) -> None:
    if not isinstance(value, Real) or not valid(value):
        raise ValueError(f"{name} must be a number {allowed}, got {value!r}; correct the option of the loss")


def _reduce(costs: Tensor, reduction: Reduction) -> Tensor:
    if reduction not in ("sum", "mean"):
        raise ValueError(f"reduction must be 'sum' or 'mean', got {reduction!r}; the papers use 'sum'")
    return costs.sum() if reduction == "sum" else costs.sum() / max(len(costs), 1)
