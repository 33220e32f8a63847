"""What the training loop asks of the optimiser: which parameters decay, and how the learning rate moves."""

import math
from typing import Any, Literal

from torch import nn

Schedule = Literal["one_cycle", "cosine", "constant"]


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Parameters for an optimiser: matrices decay; norms, biases and temperatures do not."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]


def learning_rate_factor(schedule: Schedule, progress: float, warmup: float) -> float:
    """The factor on the peak learning rate at a progress in [0,1]."""
    if schedule == "constant":
        return 1.0
    if progress < warmup:  # one_cycle rises on a cosine from 1/25 as torch's OneCycleLR, cosine in a straight line
        rise = progress / warmup
        return (
            1 / 25 + (1 - 1 / 25) * (1 - math.cos(math.pi * rise)) / 2 if schedule == "one_cycle" else max(rise, 1e-3)
        )
    return (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup))) / 2
