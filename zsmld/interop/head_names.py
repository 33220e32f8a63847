"""What other ML-Decoders call the tensors of their heads, and the same head under our names.

Letters used in the shapes: C encoder channels, T text width, D decoder width, N classes, G groups, F = ceil(N/G).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from zsmld.interop.checkpoint_files import is_averaged_copy

# One tensor that every head of a kind has, and no other. The first that a name ends with counts.
_MARKS = {
    "official": "decoder.duplicate_pooling",
    "timm": "duplicate_pooling",
    "paddle": "query_pos_embed.weight",
}
_WRAPPERS = ("module.", "model.", "_orig_mod.", "net.", "Student.")


@dataclass
class FoundHead:
    """A head of somebody else's in a state dict.

    Attributes:
        kind: "official", "timm" or "paddle".
        wrapper: what stands before every name of the network, "module." for instance.
        path: what stands before the names of the head after that, "head." for instance.
        tensors: those of the head, by what is left of their names.
    """

    kind: str
    wrapper: str
    path: str
    tensors: dict[str, Tensor]


@dataclass
class TranslatedHead:
    """A head under our names.

    Attributes:
        config: arguments of our `MLDecoder`.
        tensors: its state dict, without the buffers that others do not have.
        origin: for each name of theirs, below the head, what it became.
    """

    config: dict[str, Any]
    tensors: dict[str, Tensor]
    origin: dict[str, str]


def find_head(tensors: dict[str, Tensor], averaged: bool | None = None) -> FoundHead:
    """The head in a state dict.

    Args:
        tensors: of a whole network, or of the head alone.
        averaged: which of two copies, where a loop stored the averaged one (EMA) beside the other; None takes it.

    Raises:
        ValueError: if there is none, or several.

    Example:
        >>> find_head({"module.fc.decoder.duplicate_pooling": torch.zeros(4, 8, 2)}).path
        'fc.'
    """
    found = {}
    for name in tensors:
        kind = next((kind for kind, mark in _MARKS.items() if f".{name}".endswith(f".{mark}")), None)
        if kind is not None:
            found[name.removesuffix(_MARKS[kind])] = kind
    if len(found) > 1:
        copies = set(filter(is_averaged_copy, found))
        wanted = set(found) - copies if averaged is False else copies or set(found)
        found = {prefix: kind for prefix, kind in found.items() if prefix in wanted}
    if len(found) != 1:
        raise ValueError(
            f"checkpoint must hold one ML-Decoder head, by a tensor {list(_MARKS.values())}, got {len(found)} "
            f"{sorted(found)[:3]} among {len(tensors)} tensors such as {sorted(tensors)[:3]}; name another file"
        )
    ((prefix, kind),) = found.items()
    wrapper = ""
    while True:
        rest = prefix[len(wrapper) :]
        root = rest.split(".")[0] + "."
        # Or a name of the loop's own, "backbone." for instance, that every tensor is below.
        below = rest != root and all(name.startswith(wrapper + root) for name in tensors)
        if root not in _WRAPPERS and not is_averaged_copy(root) and not (rest and below):
            break
        wrapper += root
    inside = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    if not rest:  # a head alone: the rest of the network, if there is one, has other roots
        own = ("decoder.", "wordvec_proj.", "embed_standart.", "query_", "duplicate_pooling", "input_proj.", "group_")
        inside = {name: tensor for name, tensor in inside.items() if name.startswith(own)}
    return FoundHead(kind, wrapper, rest, inside)


def translate_head(head: FoundHead, num_classes: int | None = None, num_heads: int = 8) -> TranslatedHead:
    """A head of somebody else's under our names.

    Args:
        head: as found.
        num_classes: N, which PaddleClas does not store where G does not divide it; None takes G·F there.
        num_heads: attention heads, which nobody stores; all of them use 8.

    Raises:
        ValueError: if a tensor is missing, left over or of another shape; the message names it.
    """
    if sparse := sorted(name for name, tensor in head.tensors.items() if tensor.layout != torch.strided):
        raise ValueError(f"the head must have dense tensors, got sparse ones, {sparse[:6]}; store them with to_dense()")
    if found := sorted(name for name, tensor in head.tensors.items() if tensor.is_complex()):
        raise ValueError(f"the head must have real tensors, got complex ones, {found[:6]}; the checkpoint is damaged")
    names = _Names(head)
    build: Callable[..., dict[str, Any]] = _paddle if head.kind == "paddle" else _official
    config = build(names, head.kind, num_classes) | {"num_heads": num_heads}
    if names.left:
        raise ValueError(
            f"the head must have the tensors of an ML-Decoder, got {len(names.left)} besides "
            f"{sorted(names.left)[:6]}; this head computes something else"
        )
    return TranslatedHead(config, names.ours, names.origin)


class _Names:
    """Takes tensors one by one, so that what is left at the end is what nobody asked for."""

    def __init__(self, head: FoundHead) -> None:
        self.kind, self.left = head.kind, dict(head.tensors)
        self.ours: dict[str, Tensor] = {}
        self.origin: dict[str, str] = {}

    def take(self, theirs: str, *ours: str) -> Tensor:
        if theirs not in self.left:
            raise ValueError(
                f"the head must hold {theirs}, as every head of kind {self.kind!r}, it is missing among "
                f"{sorted(self.left)[:4]}…; the checkpoint is not complete"
            )
        shape, dims = tuple(self.left[theirs].shape), _dims_of(theirs)
        if len(shape) not in dims or 0 in shape:
            raise ValueError(
                f"the head must hold {theirs} with {' or '.join(map(str, dims))} dimensions, none of them 0, got the "
                f"shape {shape}; the checkpoint is damaged"
            )
        self.origin[theirs] = ", ".join(f"decoder.{name}" for name in ours)
        return self.left.pop(theirs).detach().float()

    def move(self, theirs: str, ours: str) -> None:
        self.ours[ours] = self.take(theirs, ours)


def _dims_of(theirs: str) -> tuple[int, ...]:
    if theirs.endswith("bias") or ".norm" in theirs:
        return (1,)
    if theirs.endswith("duplicate_pooling"):
        return (2, 3)  # word mode (D,1), class mode (G,D,F)
    return (2, 4) if theirs in ("input_proj.weight", "group_conv.weight") else (2,)  # convolutions of 1x1


def _official(names: _Names, kind: str, _: int | None) -> dict[str, Any]:
    """The official head, and timm's copy, which has some names outside `decoder.`."""
    own = "decoder." if kind == "official" else ""
    for part in ("weight", "bias"):
        names.move(f"{own}embed_standart.{part}", f"spatial_proj.{part}")
    layers = _count_layers(names.left)
    for i in range(layers):
        for part in ("weight", "bias"):
            three = tuple(f"layers.{i}.{name}.{part}" for name in ("query_proj", "key_proj", "value_proj"))
            theirs = f"decoder.layers.{i}.multihead_attn.in_proj_{part}"
            joint = names.take(theirs, *three)  # (3D,D) or (3D)
            if len(joint) % 3:
                raise ValueError(
                    f"the head must hold {theirs} with a multiple of 3 rows, got {len(joint)}; the checkpoint is "
                    f"damaged"
                )
            names.ours.update(zip(three, joint.chunk(3), strict=True))
            names.move(f"decoder.layers.{i}.multihead_attn.out_proj.{part}", f"layers.{i}.out_proj.{part}")
            for name in ("norm1", "norm2", "norm3", "linear1", "linear2"):
                names.move(f"decoder.layers.{i}.{name}.{part}", f"layers.{i}.{name}.{part}")
    config = _widths(names.ours, layers)
    if names.left[f"{own}duplicate_pooling"].ndim == 2:
        return config | _word_mode(names, own, config["decoder_dim"])
    names.move(f"{own}query_embed.weight", "group_queries")
    names.move(f"{own}duplicate_pooling", "group_fc_weight")
    names.move(f"{own}duplicate_pooling_bias", "group_fc_bias")
    return config | _class_mode(names.ours)


def _word_mode(names: _Names, own: str, decoder_dim: int) -> dict[str, Any]:
    if "wordvec_proj.weight" in names.left:
        for part in ("weight", "bias"):
            names.move(f"wordvec_proj.{part}", f"word_proj.{part}")
    else:  # a decoder as wide as the word vectors uses them as they are
        names.ours["word_proj.weight"] = torch.eye(decoder_dim)
        names.ours["word_proj.bias"] = torch.zeros(decoder_dim)
    names.ours["shared_fc.weight"] = names.take(f"{own}duplicate_pooling", "shared_fc.weight").T.contiguous()  # (1,D)
    names.move(f"{own}duplicate_pooling_bias", "shared_fc.bias")
    return {"text_dim": names.ours["word_proj.weight"].shape[1]}


def _paddle(names: _Names, _: str, num_classes: int | None) -> dict[str, Any]:
    """PaddleClas: Linear weights are (in, out), and the group projection is a grouped 1x1 convolution."""
    spatial = names.take("input_proj.weight", "spatial_proj.weight")  # (D,C,1,1)
    names.ours["spatial_proj.weight"] = spatial.flatten(1)  # (D,C)
    names.move("input_proj.bias", "spatial_proj.bias")
    layers = _count_layers(names.left)
    for i in range(layers):
        linear = {f"cross_attn.{name}": f"{long}_proj" for name, long in _PADDLE_PROJECTIONS}
        for theirs, ours in {**linear, "linear1": "linear1", "linear2": "linear2"}.items():
            weight = names.take(f"decoder.layers.{i}.{theirs}.weight", f"layers.{i}.{ours}.weight")
            names.ours[f"layers.{i}.{ours}.weight"] = weight.T.contiguous()
            names.move(f"decoder.layers.{i}.{theirs}.bias", f"layers.{i}.{ours}.bias")
        for name in ("norm1", "norm2", "norm3"):
            for part in ("weight", "bias"):
                names.move(f"decoder.layers.{i}.{name}.{part}", f"layers.{i}.{name}.{part}")
    names.move("query_pos_embed.weight", "group_queries")
    groups = len(names.ours["group_queries"])
    weight = names.take("group_conv.weight", "group_fc_weight").flatten(1)  # (G·F,D)
    if len(weight) % groups:
        raise ValueError(f"group_conv must have a multiple of {groups} rows, got {len(weight)}; the head is damaged")
    factor, num_classes = len(weight) // groups, num_classes or len(weight)
    if math.ceil(num_classes / groups) != factor:
        raise ValueError(
            f"the number of words must be {len(weight) - groups + 1} to {len(weight)} for {groups} queries of {factor} "
            f"classes each, got {num_classes}; give the words that the head was trained with"
        )
    names.ours["group_fc_weight"] = weight.unflatten(0, (groups, factor)).transpose(1, 2).contiguous()  # (G,D,F)
    names.ours["group_fc_bias"] = names.take("group_conv.bias", "group_fc_bias")[:num_classes]  # (N)
    return _widths(names.ours, layers) | _class_mode(names.ours)


_PADDLE_PROJECTIONS = (("q_proj", "query"), ("k_proj", "key"), ("v_proj", "value"), ("out_proj", "out"))


def _count_layers(left: dict[str, Tensor]) -> int:
    return len({name.split(".")[2] for name in left if name.startswith("decoder.layers.")})


def _widths(ours: dict[str, Tensor], layers: int) -> dict[str, Any]:
    if not layers:
        raise ValueError("the head must have at least one decoder layer, got none; the checkpoint is not complete")
    decoder_dim, encoder_dim = ours["spatial_proj.weight"].shape
    return {
        "encoder_dim": encoder_dim,
        "decoder_dim": decoder_dim,
        "feedforward_dim": len(ours["layers.0.linear1.weight"]),
        "num_layers": layers,
    }


def _class_mode(ours: dict[str, Tensor]) -> dict[str, Any]:
    groups, num_classes = len(ours["group_queries"]), len(ours["group_fc_bias"])
    return {"num_classes": num_classes, "num_groups": groups}
