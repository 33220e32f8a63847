"""The folded layer in 8 bits, for x86 processors. Between two products, each row is passed over once.

A row is quantised by its own largest value and a weight by its output channel, so that what becomes of a word depends
on no other word. Of the logit, only what is not linear in the feed-forward's result feels its rounding: the length that
the third norm divides by, in which errors average out.

Letters used in the shapes: B images, S spatial positions, T text width, D decoder width, F feed-forward width,
H attention heads, n words of a chunk, X = D+F+T.
"""

import platform
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from zsmld.decoder.folded import FoldedWeights, PackedLinear


def int8_is_available() -> bool:
    """Whether this is an x86 processor, and this build of torch has the int8 products of oneDNN.

    Example:
        >>> int8_is_available() in (True, False)
        True
    """
    is_x86 = platform.machine().lower() in ("x86_64", "amd64")
    return is_x86 and "onednn" in torch.backends.quantized.supported_engines


class Int8Linear:
    """Products of quantised rows with a weight in 8 bits.

    Args:
        weight: (O,I) fp32, or (O,…) whose other dimensions are flattened.
        positive: the rows to come have no negative values, and get twice the steps.
    """

    def __init__(self, weight: Tensor, positive: bool = False) -> None:
        # Without VNNI two neighbouring products are added in 16 bits; with 7 bits of x they cannot overflow.
        self.largest = 255 if getattr(torch.cpu, "_is_vnni_supported", lambda: False)() else 127
        self.zero = 0 if positive else (self.largest + 1) // 2
        inner = tuple(range(1, weight.ndim))
        scales = (torch.maximum(weight.amax(inner, True), -weight.amin(inner, True)) / 127).clamp(min=1e-30)  # (O,…)
        whole = (weight / scales).round_().to(torch.int8).flatten(1).contiguous()  # (O,I)
        self._scales = scales.flatten()
        self._packed = torch.ops.onednn.qlinear_prepack(whole, None)
        self._zeros = torch.zeros(len(whole), dtype=torch.int32)

    def __call__(self, whole: Tensor) -> Tensor:
        """Rows (…,I) uint8 of `quantize` -> (…,O) fp32, in units of each row's step."""
        into: tuple[Any, ...] = (None, 1.0, 0, torch.float32, "none", [], "")
        weight = self._packed, self._scales, self._zeros
        y: Tensor = torch.ops.onednn.qlinear_pointwise(whole, 1.0, self.zero, *weight, *into)
        return y


# ------------------------------------------------------------------------------------- between two products
# Each is one loop over rows where torch.compile makes it one. Shapes (B,n,…); a step has shape (B,n,1).


def quantize(x: Tensor, zero: int, largest: int) -> tuple[Tensor, Tensor]:
    """(…,I) fp32 -> (…,I) uint8, and the step of each row (…,1): x is about step · (whole − zero)."""
    top = x.amax(-1, keepdim=True) if not zero else torch.maximum(x.amax(-1, keepdim=True), -x.amin(-1, keepdim=True))
    step = top.clamp(min=1e-30) / (largest - zero)
    return (x * (1 / step)).add_(zero + 0.5).to(torch.uint8), step


def _summarize(x: Tensor, summary: Tensor) -> Tensor:
    """(…,I) and (2,I) -> (…,2); written so that it becomes part of the loop."""
    if torch.compiler.is_compiling():
        return torch.stack([(x * summary[0]).sum(-1), (x * summary[1]).sum(-1)], -1)
    return F.linear(x, summary)


def _after_attention(
    y: Tensor, step: Tensor, base: Tensor, norm: tuple[Tensor, Tensor, float], bias: Tensor, zero: int, largest: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The output projection's result and base (n,D) -> quantised input of the feed-forward, v (B,n,D) before it."""
    t = F.layer_norm(torch.addcmul(base, y, step), (y.shape[2],), *norm)  # (B,n,D)
    whole, step = quantize(t, zero, largest)
    return whole, step, t + bias


def _after_first(
    y: Tensor, step: Tensor, bias: Tensor, summary: Tensor | None, largest: int
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The first matrix's result -> quantised hidden layer, and its summary (B,n,2)."""
    hidden = torch.addcmul(bias, y, step).relu_()  # (B,n,F)
    whole, step = quantize(hidden, 0, largest)
    return whole, step, None if summary is None else _summarize(hidden, summary)


def _after_mixing(
    y: Tensor, step: Tensor, base: Tensor, start: Tensor, norm: tuple[Tensor, Tensor, float], folded: tuple[Any, ...]
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
    """Attention weights times mixed values -> quantised hidden layer, v (B,n,D) before it, σ (B,n,1), the summary."""
    ends, residual_bias, hidden_bias, summary, largest = folded
    centered = torch.addcmul(base, y[..., : ends[0]], step)  # (B,n,D)
    deviation = (centered.square().mean(2, keepdim=True) + norm[2]).sqrt()  # (B,n,1)
    hidden = torch.addcmul(start, y[..., ends[0] : ends[1]], step)  # (B,n,F)
    hidden = hidden.addcmul_(deviation, hidden_bias).relu_()
    whole, hidden_step = quantize(hidden, 0, largest)
    v = centered * norm[0] + deviation * residual_bias  # (B,n,D)
    return whole, hidden_step, v, deviation, None if summary is None else _summarize(hidden, summary)


def _after_second(
    y: Tensor, step: Tensor, v: Tensor, of_hidden: Tensor, deviation: Tensor | None, summary: Tensor, eps: float
) -> Tensor:
    """The second matrix's result -> the logits (B,n) before their bias."""
    product, mean = (_summarize(v, summary) + of_hidden).unbind(2)  # (B,n)
    variance = torch.addcmul(v, y, step).square().mean(2) - mean.square()
    floor = eps if deviation is None else eps * deviation.square().squeeze(2)
    return product * (variance.clamp(min=0) + floor).rsqrt()


def _after_second_of_classes(y: Tensor, step: Tensor, v: Tensor, deviation: Tensor | None, eps: float) -> Tensor:
    """The same in class mode: the third norm without its scale and shift (B,n,D)."""
    v = torch.addcmul(v, y, step)
    return F.layer_norm(v if deviation is None else v / deviation, (v.shape[2],), eps=eps)


_STEPS = (quantize, _after_attention, _after_first, _after_mixing, _after_second, _after_second_of_classes)


class QuantizingLinear:
    """As `PackedLinear`, in 8 bits: fp32 in, fp32 out."""

    def __init__(self, weight: Tensor, bias: Tensor, positive: bool = False) -> None:
        self._linear, self._bias = Int8Linear(weight, positive), bias

    def __call__(self, x: Tensor) -> Tensor:
        """(…,I) fp32 -> (…,O) fp32."""
        whole, step = quantize(x, self._linear.zero, self._linear.largest)
        return self._linear(whole).mul_(step).add_(self._bias)


class Int8Layer:
    """As `FoldedLayer`, in 8 bits.

    Args:
        folded: weights.
        compile: make one loop of each step between two products, by `torch.compile`; it needs a C++ compiler.
    """

    def __init__(self, folded: FoldedWeights, compile: bool = False) -> None:
        self._folded, layer = folded, folded.layer
        self._layer = layer
        steps: list[Any] = [torch.compile(step) if compile else step for step in _STEPS]
        self._quantize, self._after_attention, self._after_first, self._after_mixing, *last = steps
        self._after_second = last[1 if folded.summary is None else 0]
        self._mixed = folded.mixed.transpose(1, 2).contiguous()  # (H,X,D/H)
        self._out_proj = Int8Linear(layer.out_proj.weight)
        self._cosine = None if folded.cosine is None else PackedLinear(*folded.cosine)
        if folded.second is not None:
            self._linear1 = Int8Linear(layer.linear1.weight)
            self._linear2 = Int8Linear(folded.second, positive=True)
            self._norm = (layer.norm2.weight, layer.norm2.bias, layer.norm2.eps)

    def mix(self, values: Tensor) -> Int8Linear:
        """Values (1,H,S,D/H) of one image -> products with its mixed values."""
        mixed = torch.bmm(self._mixed, values[0].transpose(1, 2))  # (H,X,S); quicker to lay out than (H,S,X)
        return Int8Linear(mixed.transpose(0, 1), positive=True)

    def from_heads(self, heads: Tensor, base: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """See `FoldedLayer.from_heads`."""
        linear, folded = self._out_proj, self._folded
        whole, step = self._quantize(heads, linear.zero, linear.largest)
        y = linear(whole)  # (B,n,D)
        looked_at = None if self._cosine is None else self._cosine(y * step)  # (B,n,T)
        if base is None:
            return None, looked_at
        linear = self._linear1
        whole, step, v = self._after_attention(
            y, step, base, self._norm, folded.second_bias, linear.zero, linear.largest
        )
        y = linear(whole)  # (B,n,F)
        whole, step, of_hidden = self._after_first(
            y, step, self._layer.linear1.bias, folded.hidden_summary, self._linear2.largest
        )
        return self._output(whole, step, v, of_hidden, None), looked_at

    def from_weights(
        self, weights: Tensor, mixed: Int8Linear, base: Tensor | None, start: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None]:
        """See `FoldedLayer.from_weights`; of one image."""
        folded = self._folded
        whole, step = self._quantize(weights, 0, mixed.largest)
        y = mixed(whole)  # (1,n,X)
        looked_at = None if folded.cosine is None else y[..., folded.ends[1] :] * step + folded.cosine[1]
        if base is None:
            return None, looked_at
        constants = folded.ends, folded.residual_bias, folded.hidden_bias, folded.hidden_summary, self._linear2.largest
        found = self._after_mixing(y, step, base, start, self._norm, constants)
        whole, step, v, deviation, of_hidden = found
        return self._output(whole, step, v, of_hidden, deviation), looked_at

    def _output(
        self, whole: Tensor, step: Tensor, v: Tensor, of_hidden: Tensor | None, deviation: Tensor | None
    ) -> Tensor:
        """See `FoldedLayer._output`."""
        folded, eps = self._folded, self._layer.norm3.eps
        y = self._linear2(whole)  # (B,n,D)
        if folded.summary is None:
            found: Tensor = self._after_second(y, step, v, deviation, eps)
            return found
        logits = self._after_second(y, step, v, of_hidden, deviation, folded.summary, eps)
        return logits + folded.output_bias
