"""Which timm network the rest of a checkpoint belongs to, and its tensors under timm's names."""

import re
import sys
from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

_DEPTHS: dict[tuple[int, ...], str] = {  # blocks of each of the four stages
    (2, 2, 2, 2): "18",
    (3, 4, 6, 3): "50",
    (3, 4, 23, 3): "101",
    (3, 8, 36, 3): "152",
    (3, 12, 48, 3): "200",
}
# What a network computes itself or never uses in evaluation; a checkpoint may hold it or not.
_COUNTERS = "*num_batches_tracked"
_CONSTANTS = ("*.filt", "*relative_position_index", "*attn_mask")


def name_body(tensors: dict[str, Tensor], arch: str | None) -> tuple[str, dict[str, Any]]:
    """The timm network of a body, by its stored name or by its tensors: its spec and its model_kwargs.

    Raises:
        ValueError: if it is none that we know.

    Example:
        >>> name_body({}, "resnet50")
        ('timm:resnet50', {})
    """
    import timm

    if arch is not None and timm.is_model(arch):  # no repository or folder, which a file must not choose
        return f"timm:{arch}", {}
    names = list(tensors)
    if any(name.startswith("body.layer4.") for name in names):
        return _name_tresnet(names, tensors)
    if {"stem.0.conv.weight", "blocks.0.conv0.conv.weight"} <= set(names):
        stages = _paddle_stages(names)
        depth = _DEPTHS.get(tuple(len(stage) for stage in stages))
        if depth is not None:
            basic = "blocks.0.conv2.conv.weight" not in tensors
            depth = {"50": "34"}.get(depth, depth) if basic else depth
            return f"timm:resnet{depth}{'d' if 'stem.2.conv.weight' in tensors else ''}", {}
    raise ValueError(
        f"image_encoder must be named for a body that is no TResNet of the official code and no ResNet of PaddleClas, "
        f"got {len(names)} tensors such as {names[:3]}"
        f"{'' if arch is None else f' of {arch!r}, which timm does not know'}; give for instance timm:resnet50"
    )


def _name_tresnet(names: list[str], tensors: dict[str, Tensor]) -> tuple[str, dict[str, Any]]:
    """By the blocks of each stage. The official code has another L and another XL than timm's models of these names."""
    blocks = [_count(names, rf"body\.layer{stage}\.(\d+)\.") for stage in (1, 2, 3, 4)]
    if any(name.startswith("body.layer1.0.conv3") for name in names):  # bottlenecks from the start: the official L, XL
        own = [3, 4, 23, 3]
        return "timm:tresnet_v2_l", {} if blocks == own else {"layers": blocks}
    width = next(len(tensor) for name, tensor in tensors.items() if name.startswith("body.conv1.") and tensor.ndim == 4)
    known = {64: ("tresnet_m", [3, 4, 11, 3]), 76: ("tresnet_l", [4, 5, 18, 3]), 83: ("tresnet_xl", [4, 5, 24, 3])}
    if width not in known:
        raise ValueError(
            f"image_encoder must be named for a TResNet of width {width}, known are {sorted(known)}; give timm:NAME"
        )
    name, own = known[width]
    return f"timm:{name}", {} if blocks == own else {"layers": blocks}


def _count(names: Iterable[str], pattern: str) -> int:
    return len({match.group(1) for name in names if (match := re.match(pattern, name))})


def _paddle_stages(names: list[str]) -> list[list[int]]:
    """The blocks of PaddleClas' ResNet, which counts through; every stage opens with a block that has a shortcut."""
    stages: list[list[int]] = []
    for block in range(_count(names, r"blocks\.(\d+)\.")):
        if any(name.startswith(f"blocks.{block}.short.") for name in names) or not stages:
            stages.append([])
        stages[-1].append(block)
    return stages


def paddle_to_timm(tensors: dict[str, Tensor]) -> dict[str, str]:
    """For each tensor of a PaddleClas ResNet the name that timm's ResNet has for it; others keep theirs."""
    stages = _paddle_stages(list(tensors))
    place = {block: f"layer{s + 1}.{b}" for s, stage in enumerate(stages) for b, block in enumerate(stage)}
    deep = "stem.2.conv.weight" in tensors
    stem = (
        {0: ("conv1.0", "conv1.1"), 1: ("conv1.3", "conv1.4"), 2: ("conv1.6", "bn1")} if deep else {0: ("conv1", "bn1")}
    )
    first = 1 if deep else 0  # the vd variant pools before its shortcut
    parts = {"_mean": "running_mean", "_variance": "running_var"}
    named = {}
    for name in tensors:
        *path, kind, part = name.split(".")
        part = parts.get(part, part)
        if path and path[0] == "stem" and len(path) == 2 and kind in ("conv", "bn"):
            found = stem.get(int(path[1]), ("", ""))[kind == "bn"]
            named[name] = f"{found}.{part}" if found else name
        elif path and path[0] == "blocks" and len(path) == 3 and kind in ("conv", "bn"):
            block = place[int(path[1])]
            if path[2] == "short":
                # The first shortcut of all has no pool, but timm keeps its place.
                named[name] = f"{block}.downsample.{first + (kind == 'bn')}.{part}"
            else:
                named[name] = f"{block}.{kind}{int(path[2].removeprefix('conv')) + 1}.{part}"
        else:
            named[name] = name
    return named


def filtered(body: nn.Module, tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors under the names of a timm network, through that network's own filter for foreign checkpoints.

    Returns:
        The tensors, and for each name of theirs what it became.
    """
    filter_fn = getattr(sys.modules[type(body).__module__], "checkpoint_filter_fn", None)
    if filter_fn is None or set(body.state_dict()) <= set(tensors):
        return tensors, {name: name for name in tensors}
    found = dict(filter_fn(dict(tensors), body))
    if len(found) == len(tensors):  # timm's filters keep the order
        return found, dict(zip(tensors, found, strict=True))
    names = {id(tensor): name for name, tensor in found.items()}
    return found, {name: names.get(id(tensor), "taken apart by timm's filter") for name, tensor in tensors.items()}


@torch.no_grad()
def idle_children(network: nn.Module, run: Callable[[], Any]) -> list[str]:
    """Names of a network's children that hold parameters and take no part in `run()`: what follows its map.

    Example:
        >>> pair = nn.ModuleDict({"used": nn.Linear(2, 2), "idle": nn.Linear(2, 2)})
        >>> idle_children(pair, lambda: pair["used"](torch.zeros(1, 2)))
        ['idle']
    """
    ran: set[nn.Module] = set()
    hooks = [module.register_forward_pre_hook(lambda module, _: ran.add(module)) for module in network.modules()]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    children = [(name, child) for name, child in network.named_children() if any(True for _ in child.parameters())]
    return [name for name, child in children if not ran & set(child.modules())]


def fit_body(
    body: nn.Module, tensors: dict[str, Tensor], ignore: Iterable[str], idle: Iterable[str] = ()
) -> tuple[dict[str, Tensor], dict[str, str], list[str]]:
    """Choose what a network loads.

    Args:
        body: a timm network without its classifier.
        tensors: under its names.
        ignore: patterns (`fnmatch`) of tensors that may be left out.
        idle: children that follow the map, see `idle_children`; their tensors may be missing.

    Returns:
        The state to load; for each tensor that is left out the reason; names of the network's own that stay.

    Raises:
        ValueError: if anything is missing, left over or of another shape; the message lists it.
    """
    own = body.state_dict()
    left: dict[str, str] = {}
    classifier = getattr(body, "pretrained_cfg", {}).get("classifier") or ()
    classifiers = (classifier,) if isinstance(classifier, str) else tuple(classifier)
    for name in sorted(set(tensors) - set(own)):
        if any(name.startswith(f"{layer}.") for layer in (*classifiers, "fc", "classifier", "head.fc")):
            left[name] = "the classifier that the head stands for"
        elif fnmatchcase(name, _COUNTERS):
            left[name] = "a counter of training steps"
        elif any(fnmatchcase(name, pattern) for pattern in _CONSTANTS):
            left[name] = "a constant that the network computes itself"
        elif any(fnmatchcase(name, pattern) for pattern in ignore):
            left[name] = "ignored, as asked"
    optional = tuple(f"{child}." for child in idle)
    missing = sorted(
        name for name in set(own) - set(tensors) if not fnmatchcase(name, _COUNTERS) and not name.startswith(optional)
    )
    unexpected = sorted(set(tensors) - set(own) - set(left))
    shapes = [
        f"{name} {tuple(tensors[name].shape)} for {tuple(own[name].shape)}"
        for name in own
        if name in tensors and own[name].shape != tensors[name].shape
    ]
    if missing or unexpected or shapes:
        raise ValueError(
            f"the body's tensors must fit {type(body).__name__}, got {len(missing)} missing {missing[:5]}, "
            f"{len(unexpected)} left over {unexpected[:5]}, {len(shapes)} of other shape {shapes[:3]}; name the "
            f"image_encoder and model_kwargs it was trained with, or ignore what is no part of it"
        )
    kept = sorted(set(own) - set(tensors))
    return {name: tensors[name] for name in own if name in tensors} | {name: own[name] for name in kept}, left, kept
