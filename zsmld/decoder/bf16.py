"""The folded layer in bf16, for GPUs: products are cheap there, and passing over rows is not. Rows stay in bf16 between
the kernels; the third norm and the logits are fp32.

Letters used in the shapes: B images, S spatial positions, T text width, D decoder width, F feed-forward width,
n words of a chunk.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from zsmld.decoder.folded import FoldedWeights


class Bf16Linear:
    """x @ weight.T + bias in bf16, and the ReLU of it in the same kernel if asked for.

    Args:
        weight: (O,I) fp32.
        bias: (O) fp32, or None for none.
        relu: whether negative results become zero.

    Example:
        >>> linear = Bf16Linear(torch.eye(2), torch.ones(2), relu=True)
        >>> linear(torch.tensor([[1.0, -2.0]], dtype=torch.bfloat16))
        tensor([[2., 0.]], dtype=torch.bfloat16)
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None, relu: bool = False) -> None:
        self._weight, self._relu = weight.bfloat16(), relu
        self._bias = None if bias is None else bias.bfloat16()

    def __call__(self, x: Tensor) -> Tensor:
        """(…,I) bf16 -> (…,O) bf16."""
        if not self._relu:
            return F.linear(x, self._weight, self._bias)
        assert self._bias is not None
        y = torch._addmm_activation(self._bias, x.reshape(-1, x.shape[-1]), self._weight.T)
        return y.unflatten(0, x.shape[:-1])


class Bf16Layer:
    """As `FoldedLayer`, with rows in bf16. It takes attended values alone: mixing them would save nothing but products.

    Args:
        folded: weights.
    """

    def __init__(self, folded: FoldedWeights) -> None:
        self._folded, layer = folded, folded.layer
        self._out_proj = Bf16Linear(layer.out_proj.weight)
        self._cosine = None if folded.cosine is None else Bf16Linear(*folded.cosine)
        if folded.second is None or folded.second_bias is None:
            return
        # The second bias is added with the second norm's shift, and taken out again of what the first matrix sees. It
        # costs digits where it is far larger than the rows, which trained biases are not.
        self._norm2 = layer.norm2.weight.bfloat16(), (layer.norm2.bias + folded.second_bias).bfloat16()
        bias = layer.linear1.bias - layer.linear1.weight @ folded.second_bias
        self._linear1, self._second = Bf16Linear(layer.linear1.weight, bias, relu=True), folded.second.bfloat16()
        if folded.summary is not None:  # what bf16 leaves of it is added as two rows more
            high = folded.summary.bfloat16()
            self._summary = torch.cat([high, (folded.summary - high.float()).bfloat16()])  # (4,D)

    def from_heads(self, heads: Tensor, base: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """See `FoldedLayer.from_heads`; heads are bf16."""
        attended = self._out_proj(heads)  # (B,n,D), without its bias
        looked_at = None if self._cosine is None else self._cosine(attended).float()  # (B,n,T)
        if base is None:
            return None, looked_at
        norm2, norm3 = self._folded.layer.norm2, self._folded.layer.norm3
        t = F.layer_norm(attended + base.bfloat16(), norm2.normalized_shape, *self._norm2, norm2.eps)  # (B,n,D)
        hidden = self._linear1(t)  # (B,n,F)
        v = torch.addmm(t.flatten(0, 1), hidden.flatten(0, 1), self._second.T).view_as(t)  # (B,n,D)
        if self._folded.summary is None:
            return F.layer_norm(v.float(), norm3.normalized_shape, eps=norm3.eps), looked_at
        return self._logits(v), looked_at

    def _logits(self, v: Tensor) -> Tensor:
        """(B,n,D) bf16 -> (B,n) fp32, the third norm and the output projection."""
        norm = self._folded.layer.norm3
        high, low = _in_fp32(v, self._summary).unflatten(2, (2, 2)).unbind(2)  # (B,n,2)
        product, mean = (high + low).unbind(2)  # (B,n)
        variance = torch.linalg.vector_norm(v, dim=2, dtype=torch.float32).square() / v.shape[2] - mean.square()
        return product * (variance.clamp(min=0) + norm.eps).rsqrt() + self._folded.output_bias


def _in_fp32(x: Tensor, weight: Tensor) -> Tensor:
    """Rows (B,n,I) and weight (O,I) in bf16 -> (B,n,O) fp32: logits rounded to bf16 would give many words the same."""
    if x.device.type != "cuda":
        return F.linear(x.float(), weight.float())
    return torch.mm(x.flatten(0, 1), weight.T, out_dtype=torch.float32).unflatten(0, x.shape[:2])
