"""What the training loop asks of the optimiser: which parameters learn, how fast, and how the rate moves."""

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR

from zsmld.images import ImageEncoder

Schedule = Literal["one_cycle", "cosine", "constant"]


def parameter_groups(
    network: nn.Module, lr: float, weight_decay: float, encoder_lr_scale: float = 1.0, layer_decay: float = 1.0
) -> list[dict[str, Any]]:
    """Parameters for an optimiser: matrices decay; norms, biases and temperatures do not.

    Args:
        network: a head, or a `ZeroShotClassifier`, whose image encoder may learn at another rate.
        lr: of the head.
        weight_decay: of the matrices.
        encoder_lr_scale: the image encoder's rate is the head's times this.
        layer_decay: and times this once more for each layer further from the head, as timm divides a model into layers.

    Raises:
        ValueError: if the rates shall fall by layer in an encoder that timm cannot divide, or nothing is left to train.

    Source: layer-wise rates, arXiv 2003.10555 and BEiT, arXiv 2106.08254; timm's `param_groups_layer_decay`.
    """
    encoder = getattr(network, "image_encoder", None)
    inside = set() if encoder is None else {id(p) for p in encoder.parameters()}
    groups = _by_decay([p for p in network.parameters() if id(p) not in inside], lr, weight_decay)
    if encoder is not None and layer_decay < 1:
        groups += _by_layer(encoder, lr * encoder_lr_scale, weight_decay, layer_decay)
    elif encoder is not None:
        groups += _by_decay(list(encoder.parameters()), lr * encoder_lr_scale, weight_decay)
    if not groups:
        raise ValueError("model must have parameters to train, all of them are frozen; freeze less")
    return groups


def _by_decay(parameters: Sequence[nn.Parameter], lr: float, weight_decay: float) -> list[dict[str, Any]]:
    trained = [p for p in parameters if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "lr": lr, "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "lr": lr, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def _by_layer(encoder: ImageEncoder, lr: float, weight_decay: float, layer_decay: float) -> list[dict[str, Any]]:
    from timm.optim import param_groups_layer_decay

    if not hasattr(encoder.body, "group_matcher"):
        raise ValueError(
            f"layer_decay must be 1 for {encoder.spec}, timm does not know its layers, got {layer_decay}; use "
            f"encoder_lr_scale"
        )
    found = param_groups_layer_decay(encoder.body, weight_decay=weight_decay, layer_decay=layer_decay)
    return [
        {"params": g["params"], "lr": lr * g["lr_scale"], "weight_decay": g["weight_decay"]}
        for g in found
        if len(g["params"])
    ]


def build_optimizer(name: str, groups: list[dict[str, Any]], lr: float) -> torch.optim.Optimizer:
    """An optimiser by timm's name: "adamw", "adam" (its decay is an L2 penalty), "sgd", "lamb" and a hundred others."""
    from timm.optim import create_optimizer_v2

    optimizer: torch.optim.Optimizer = create_optimizer_v2(groups, opt=name, lr=lr, weight_decay=0.0)
    return optimizer


def build_scheduler(name: Schedule, optimizer: torch.optim.Optimizer, total_steps: int, warmup: float) -> LRScheduler:
    """The schedule of all groups, stepped after every optimiser step.

    "one_cycle" is torch's `OneCycleLR` as the official recipes use it: up on a cosine from 1/25 of the peak, down to
    almost nothing, while the momentum (Adam's β₁) moves the other way. "cosine" rises in a straight line instead and
    leaves the momentum alone. "constant" stays.
    """
    if name == "one_cycle":
        peaks = [group["lr"] for group in optimizer.param_groups]
        # At exactly one warm-up step torch divides nothing by nothing.
        warmup = warmup * (1 + 1e-6) if abs(warmup * total_steps - 1) < 1e-6 else warmup
        has_momentum = {"betas", "momentum"} & set(optimizer.defaults)
        return OneCycleLR(
            optimizer, peaks, total_steps=total_steps, pct_start=warmup, cycle_momentum=bool(has_momentum)
        )
    return LambdaLR(optimizer, lambda step: learning_rate_factor(name, step / total_steps, warmup))


def learning_rate_factor(schedule: Literal["cosine", "constant"], progress: float, warmup: float) -> float:
    """The factor on the peak learning rate at a progress in [0,1].

    Example:
        >>> [round(learning_rate_factor("cosine", progress, 0.2), 3) for progress in (0.1, 0.2, 0.6, 1.0)]
        [0.5, 1.0, 0.5, 0.0]
    """
    if schedule == "constant":
        return 1.0
    if progress < warmup:
        return max(progress / warmup, 1e-3)
    return (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup))) / 2


def freeze(encoder: ImageEncoder, frozen: bool | Sequence[str]) -> list[str]:
    """Stop an encoder, or the parts that are named, from learning.

    Args:
        encoder: of which all, none, or the modules with these names stay as they are.
        frozen: True, False, or names of modules or parameters of `encoder.body`, such as "conv1" or "blocks.0".

    Returns:
        Names, in a whole model, of those modules that must stay in eval mode so that their batch statistics do not
        move; none if all is frozen, since then the encoder is not trained with the head.

    Raises:
        ValueError: if a name matches nothing.
    """
    if frozen is False:
        return []
    if frozen is True:
        encoder.requires_grad_(False)
        return []
    modules = {name for name, _ in encoder.body.named_modules()}
    quiet: list[str] = []
    for name in frozen:
        matching = [p for n, p in encoder.body.named_parameters() if n == name or n.startswith(f"{name}.")]
        if not matching:
            parts = [n for n, _ in encoder.body.named_children()]
            raise ValueError(
                f"freeze_image_encoder must name parts of {encoder.spec}, it has no {name!r}; its parts are {parts}"
            )
        for parameter in matching:
            parameter.requires_grad_(False)
        quiet += [f"image_encoder.body.{name}"] if name in modules else []
    return quiet
