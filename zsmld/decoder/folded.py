"""A layer folded for inference, in fp32 or bf16, and the weights that come out of the folding.

Letters used in the shapes: B images, S spatial positions, T text width, D decoder width, F feed-forward width,
H attention heads, N words, G group queries, n words of a chunk, X = D+F+T.

What is folded, in eval mode:
  values       through the output projection: what a word attends to is its H·S attention weights times (H·S,D) mixed
               values; and through the first feed-forward matrix: with P (N,F) of the vocabulary, the hidden layer is
               relu(P + weights · (H·S,F)). Where S is small that is fewer products a word, and no output projection;
  second norm  its division by the deviation σ passes through the ReLU, and the third norm undoes it: all that comes
               behind it is kept σ times as large, and σ itself enters with the biases and the third ε;
  third norm   its scale and shift go into the output projection; what is left is a mean, a length and a product.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from zsmld.decoder.layer import DecoderLayer
from zsmld.decoder.ml_decoder import MLDecoder


@dataclass(frozen=True)
class FoldedWeights:
    """What is made of the weights of a head of one layer.

    Attributes:
        layer: the layer itself.
        mixed: (H,D/H,X) value -> what it adds to the second norm's input, centred (D); to the hidden layer (F); to the
            cosine's projection (T). Widths are 0 where the output needs none.
        ends: where the second and the third part of X begin.
        first: (F,D) first feed-forward matrix, times the second norm's scale.
        hidden_bias: (F) what the second norm's shift adds to the hidden layer, with its bias.
        second: (D,F) second feed-forward matrix, centred over D as the third norm does.
        second_bias: (D) its bias, likewise.
        residual_bias: (D) that and the second norm's shift, likewise.
        summary: (2,D) v @ summary.T is the product of the centred v with the output projection, and the mean of v.
            None in class mode.
        hidden_summary: (2,F) the same of what the hidden layer adds to v.
        output_bias: added to the logits.
        cosine: (T,D) and (T) projection of what a word attended to, without the attention's own bias; or None.
    """

    layer: DecoderLayer
    mixed: Tensor
    ends: tuple[int, int]
    first: Tensor | None = None
    hidden_bias: Tensor | None = None
    second: Tensor | None = None
    second_bias: Tensor | None = None
    residual_bias: Tensor | None = None
    summary: Tensor | None = None
    hidden_summary: Tensor | None = None
    output_bias: Tensor | None = None
    cosine: tuple[Tensor, Tensor] | None = None


@torch.no_grad()
def fold(decoder: MLDecoder) -> FoldedWeights:
    """Fold a head of one layer; its weights are read, and not changed."""
    layer = decoder.layers[0]
    assert isinstance(layer, DecoderLayer)
    heads = layer.out_proj.weight.unflatten(1, (layer.num_heads, -1)).permute(1, 2, 0)  # (H,D/H,D)
    folded: dict[str, Any] = {}
    mixed = [heads[..., :0], heads[..., :0], heads[..., :0]]
    if not layer.attention_only:
        folded["first"] = layer.linear1.weight * layer.norm2.weight  # (F,D)
        centered = heads - heads.mean(2, keepdim=True)  # as the second norm does
        mixed[:2] = [centered, centered @ folded["first"].T]  # (H,D/H,D), (H,D/H,F)
        folded["hidden_bias"] = layer.linear1.weight @ layer.norm2.bias + layer.linear1.bias  # (F)
        # Centred before the products, as a mean that is large beside the rest would cost digits of the length.
        folded["second"] = layer.linear2.weight - layer.linear2.weight.mean(0)  # (D,F)
        folded["second_bias"] = layer.linear2.bias - layer.linear2.bias.mean()  # (D)
        folded["residual_bias"] = folded["second_bias"] + layer.norm2.bias - layer.norm2.bias.mean()  # (D)
        if decoder.text_dim is not None:
            weight = decoder.shared_fc.weight[0] * layer.norm3.weight  # (D)
            summary = torch.stack([weight - weight.mean(), torch.full_like(weight, 1 / len(weight))])  # (2,D)
            folded |= {"summary": summary, "hidden_summary": summary @ folded["second"]}  # (2,D), (2,F)
            folded["output_bias"] = decoder.shared_fc.weight[0] @ layer.norm3.bias + decoder.shared_fc.bias  # (1)
    if decoder.output in ("cosine", "sum"):
        weight = decoder.cosine_proj.weight  # (T,D)
        mixed[2] = heads @ weight.T  # (H,D/H,T)
        folded["cosine"] = (weight, weight @ layer.out_proj.bias + decoder.cosine_proj.bias)
    widths = [part.shape[2] for part in mixed]
    return FoldedWeights(layer, torch.cat(mixed, 2), (widths[0], widths[0] + widths[1]), **folded)


class PackedLinear:
    """x @ weight.T + bias, laid out once and used often.

    Args:
        weight: (O,I) fp32.
        bias: (O), added in fp32; None for none.
        bf16: round both factors to bf16.

    Example:
        >>> linear = PackedLinear(torch.eye(2), torch.ones(2))
        >>> linear(torch.tensor([[1.0, 2.0]]))
        tensor([[2., 3.]])
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None, bf16: bool = False) -> None:
        self._weight, self._bias, self._bf16 = weight.bfloat16() if bf16 else weight, bias, bf16
        self._packed: Tensor | None = None
        can_pack = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
        if not bf16 and can_pack and weight.device.type == "cpu" and weight.dtype == torch.float32:
            # oneDNN's own layout: a tenth to a third faster than the BLAS behind F.linear, on AMD and ARM above all.
            self._packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous())

    def __call__(self, x: Tensor) -> Tensor:
        """(…,I) fp32 -> (…,O) fp32."""
        if self._packed is not None:
            y: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._packed, self._bias, "none", [], "")
            return y
        if not self._bf16:
            return F.linear(x, self._weight, self._bias)
        y = F.linear(x.bfloat16(), self._weight).float()
        return y if self._bias is None else y.add_(self._bias)


class FoldedLayer:
    """Attention weights, or attended values, and words -> the logits' shared part. In fp32 or bf16.

    Args:
        folded: weights.
        bf16: round the factors of the large products.
    """

    def __init__(self, folded: FoldedWeights, bf16: bool = False) -> None:
        self._folded, self._layer, self._bf16 = folded, folded.layer, bf16
        self._out_proj = PackedLinear(self._layer.out_proj.weight, None, bf16)
        self._cosine = None if folded.cosine is None else PackedLinear(*folded.cosine, bf16)
        if folded.second is not None:
            self._linear1 = PackedLinear(self._layer.linear1.weight, self._layer.linear1.bias, bf16)
            self._linear2 = PackedLinear(folded.second, None, bf16)

    def mix(self, values: Tensor) -> Tensor:
        """Values (B,H,S,D/H) -> mixed values (B,H·S,X)."""
        weights = self._folded.mixed
        if self._bf16:
            values, weights = values.bfloat16(), weights.bfloat16()
        if len(values) == 1:
            return torch.bmm(values[0], weights).flatten(0, 1)[None]
        mixed = torch.bmm(values.transpose(0, 1).flatten(1, 2), weights)  # (H,B·S,X)
        return mixed.unflatten(1, (len(values), -1)).transpose(0, 1).flatten(1, 2)

    def from_heads(self, heads: Tensor, base: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """Attended values (B,n,D) before the output projection, and base (n,D) -> what `_output` gives, and the
        cosine's projection (B,n,T); None what the head has not.
        """
        attended = self._out_proj(heads)  # (B,n,D), without its bias
        looked_at = None if self._cosine is None else self._cosine(attended)  # (B,n,T)
        if base is None:
            return None, looked_at
        norm = self._layer.norm2
        t = F.layer_norm(attended + base, norm.normalized_shape, norm.weight, norm.bias, norm.eps)  # (B,n,D)
        hidden = self._linear1(t).relu_()  # (B,n,F)
        assert self._folded.second_bias is not None  # where there is a base
        return self._output(t.add_(self._folded.second_bias), hidden, None), looked_at

    def from_weights(
        self, weights: Tensor, mixed: Tensor, base: Tensor | None, start: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None]:
        """Attention weights (B,n,H·S), mixed values (B,H·S,X), base (n,D) and P (n,F) -> as `from_heads`."""
        folded = self._folded
        weights = weights.to(mixed.dtype)
        # In three products, as the next steps need each of them in one piece.
        centered, hidden, seen = (
            (torch.mm(weights[0], part[0])[None] if len(weights) == 1 else torch.bmm(weights, part)).float()
            for part in mixed.tensor_split(folded.ends, 2)
        )  # (B,n,D), (B,n,F), (B,n,T)
        looked_at = None if folded.cosine is None else seen.add_(folded.cosine[1])
        if base is None:
            return None, looked_at
        assert start is not None and folded.hidden_bias is not None and folded.residual_bias is not None
        centered = centered.add_(base)  # (B,n,D)
        length = torch.linalg.vector_norm(centered, dim=2, keepdim=True)  # (B,n,1)
        deviation = (length.square() / base.shape[1] + self._layer.norm2.eps).sqrt()  # (B,n,1) σ
        hidden = hidden.add_(start).addcmul_(deviation, folded.hidden_bias).relu_()  # (B,n,F)
        v = centered.mul_(self._layer.norm2.weight).addcmul_(deviation, folded.residual_bias)  # (B,n,D)
        return self._output(v, hidden, deviation), looked_at

    def _output(self, v: Tensor, hidden: Tensor, deviation: Tensor | None) -> Tensor:
        """What the feed-forward is added to (B,n,D), its hidden layer (B,n,F), σ of both -> logits (B,n), or in class
        mode the third norm without its scale and shift (B,n,D).
        """
        folded, eps = self._folded, self._layer.norm3.eps
        v = self._linear2(hidden).add_(v)  # (B,n,D)
        if folded.summary is None:
            return F.layer_norm(v if deviation is None else v.div_(deviation), v.shape[2:], eps=eps)
        product, mean = F.linear(v, folded.summary).unbind(2)  # (B,n)
        variance = torch.linalg.vector_norm(v, dim=2).square() / v.shape[2] - mean.square()
        floor = eps if deviation is None else eps * deviation.square().squeeze(2)
        return product * (variance.clamp(min=0) + floor).rsqrt() + folded.output_bias
