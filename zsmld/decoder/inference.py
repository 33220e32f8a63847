"""InferenceDecoder: the logits of a decoder, with all that can be computed once computed once, in bounded memory.

Letters used in the shapes: B images, S spatial positions, C encoder channels, T text width, D decoder width,
F feed-forward width, H attention heads, N words, K descriptions of a word, G group queries, V views of an image.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from zsmld.decoder import join_words
from zsmld.decoder.bf16 import Bf16Layer, Bf16Linear
from zsmld.decoder.folded import FoldedLayer, PackedLinear, fold
from zsmld.decoder.int8 import Int8Layer, QuantizingLinear, int8_is_available
from zsmld.decoder.ml_decoder import MLDecoder
from zsmld.decoder.training_free import TrainingFreeScorer

Precision = Literal["fp32", "bf16", "int8"]

_ROWS = {"cpu": 1024}  # decoded at once: their hidden layers, (1024,F) fp32, stay in the cache of a processor
_ROWS_ELSEWHERE = 32768
_IMAGES = 8  # whose keys and values are made at once
_KEPT = 2**28  # bytes of hidden layers that are kept with a vocabulary; with more words, values are not mixed


@dataclass(frozen=True)
class CompiledWords:
    """What a vocabulary is to an `InferenceDecoder`: tensors with one row a word.

    Attributes:
        parts: by name; the decoder alone knows what they mean.
    """

    parts: dict[str, Tensor]

    def __len__(self) -> int:
        return len(next(iter(self.parts.values())))

    def select(self, labels: Sequence[int] | Tensor | slice) -> "CompiledWords":
        """These words alone, in this order."""
        labels = labels if isinstance(labels, Tensor | slice) else list(labels)
        return CompiledWords({name: part[labels] for name, part in self.parts.items()})

    def join(self, others: "CompiledWords") -> "CompiledWords":
        """These words, and others behind them; their numbers of descriptions may differ."""
        # In their order, which means something; hidden layers may have been kept for one of them only.
        names = [name for name in self.parts if name in others.parts]
        first, second = (tuple(words.parts[name] for name in names) for words in (self, others))
        joined = dict(zip(names, join_words(first, second), strict=True))
        if "hidden" in joined and joined["hidden"].nbytes > _KEPT:
            del joined["hidden"]
        return CompiledWords(joined)


@dataclass(frozen=True)
class Shortlist:
    """What predicts the logits of all words from those of K anchor words; `zsmld.predictor.shortlist` learns it.

    Attributes:
        size: words that are decoded for each image, besides the anchors.
        anchors: (K,) int64 labels of the anchor words; always decoded.
        weights: (N,K) fp32.
        mean: (N) fp32 of each word over the sample images.
    """

    size: int
    anchors: Tensor
    weights: Tensor
    mean: Tensor

    def predict(self, logits: Tensor) -> Tensor:
        """Logits of the anchors (B,K) -> predictions for all words (B,N)."""
        return torch.addmm(self.mean, logits - self.mean[self.anchors], self.weights.T)


class InferenceDecoder:
    """Decodes compiled words as the decoder in eval mode does, faster and in bounded memory.

    It folds the weights as they are now; after they change, build it again. Heads of several layers, with attention
    over descriptions, and training-free scorers are decoded as they are, a chunk of words at a time.

    Args:
        decoder: a head or a training-free scorer, on its device; decoded as in eval mode.
        precision: of the large products: "fp32", "bf16", or on x86 processors "int8". On GPUs bf16 is that of attention
            and of all that is between the products, too; logits are fp32.
        num_positions: S of the images to come; it decides what is kept with a vocabulary. Others work as well.
        compile: in int8, make one loop of each step between two products. It needs a C++ compiler, and half a minute
            when it is first used on a machine.

    Raises:
        ValueError: on a precision that there is not, or not here.

    Example:
        >>> decoder = MLDecoder(encoder_dim=32, text_dim=16, decoder_dim=64, feedforward_dim=128).eval()
        >>> fast, spatial, words = InferenceDecoder(decoder), torch.randn(2, 4, 32), torch.randn(5, 16)
        >>> torch.allclose(fast(spatial, fast.compile(words)), decoder(spatial, words), atol=1e-5)
        True
    """

    @torch.no_grad()
    def __init__(
        self,
        decoder: MLDecoder | TrainingFreeScorer,
        precision: Precision = "fp32",
        num_positions: int | None = None,
        compile: bool = False,
    ) -> None:
        self.decoder, self.precision = decoder, precision
        self._device = next(decoder.parameters()).device
        self._check(precision)
        self._max_rows = _ROWS.get(self._device.type, _ROWS_ELSEWHERE)
        self._versions = self._weight_versions()
        self._classes: CompiledWords | None = None
        self._in_bf16 = precision == "bf16" and self._device.type == "cuda"  # all that is between the kernels, too
        self._folds = isinstance(decoder, MLDecoder) and len(decoder.layers) == 1 and decoder.descriptions == "mean"
        if isinstance(decoder, MLDecoder) and self._folds:
            self._fold(decoder, precision, compile)
            mixes = num_positions is not None and self._mixing_pays(self._max_rows, num_positions)
            self._keeps_hidden = mixes and not self._in_bf16
            if decoder.text_dim is None:
                self._classes = CompiledWords(self._compile_queries(decoder.group_queries))

    def _check(self, precision: str) -> None:
        if precision not in get_args(Precision):
            raise ValueError(f"precision must be one of {list(get_args(Precision))}, got {precision!r}; choose one")
        if precision == "int8" and (self._device.type != "cpu" or not int8_is_available()):
            raise ValueError(
                f"precision must be 'fp32' or 'bf16' on {self._device.type} here, got 'int8', which needs an x86 "
                f"processor; choose one of these"
            )

    def _fold(self, decoder: MLDecoder, precision: Precision, compile: bool) -> None:
        self._head, self._folded = decoder, fold(decoder)
        layer, bf16, int8 = self._folded.layer, precision == "bf16", precision == "int8"
        self._num_heads, self._dim = layer.num_heads, decoder.decoder_dim
        pair = (layer.key_proj, layer.value_proj)
        of_memory = torch.cat([proj.weight for proj in pair]), torch.cat([proj.bias for proj in pair])
        of_spatial = decoder.spatial_proj.weight, decoder.spatial_proj.bias
        self._spatial_proj: Callable[[Tensor], Tensor]
        self._key_value_proj: Callable[[Tensor], Tensor]
        self._layer: FoldedLayer | Int8Layer | Bf16Layer
        if int8:
            self._spatial_proj = QuantizingLinear(*of_spatial)
            self._key_value_proj = QuantizingLinear(*of_memory, positive=True)
            self._layer = Int8Layer(self._folded, compile)
        elif self._in_bf16:
            self._spatial_proj, self._key_value_proj = Bf16Linear(*of_spatial), Bf16Linear(*of_memory)
            self._layer = Bf16Layer(self._folded)
        else:
            self._spatial_proj, self._key_value_proj = PackedLinear(*of_spatial, bf16), PackedLinear(*of_memory, bf16)
            self._layer = FoldedLayer(self._folded, bf16)
        self._first = None if self._folded.first is None else PackedLinear(self._folded.first)

    # ------------------------------------------------------------------------------------------------ word side

    @torch.no_grad()
    def compile(self, word_embeddings: Tensor, mask: Tensor | None = None) -> CompiledWords:
        """Everything on the word side; once per vocabulary.

        Args:
            word_embeddings: (N,T), or (N,K,T) for K descriptions of each word.
            mask: (N,K) bool, which descriptions exist; None: those whose embedding is not zero.

        Raises:
            ValueError: in class mode, or if a shape does not fit.
        """
        decoder = self.decoder
        compiled = decoder.word_queries(word_embeddings, mask)
        if not self._folds:
            return CompiledWords({f"part{place}": part for place, part in enumerate(compiled)})
        assert isinstance(decoder, MLDecoder)
        queries, words, *rest = compiled  # (N,D), (N,T)
        parts = self._compile_queries(queries)
        if decoder.output in ("cosine", "sum"):
            parts["direction"] = F.normalize(words + decoder.positive_prompt if decoder.prompts else words, dim=1)
            if decoder.prompts:
                parts["direction"] = parts["direction"] - F.normalize(words + decoder.negative_prompt, dim=1)  # (N,T)
        if decoder.word_reach:
            parts["reach"] = rest.pop(0)  # (N,)
        return CompiledWords(parts | {f"prior{place}": part for place, part in enumerate(rest)})

    def _compile_queries(self, queries: Tensor) -> dict[str, Tensor]:
        layer = self._folded.layer
        t = layer.norm1(queries + queries)  # (N,D)
        projected = layer.query_proj(t) / math.sqrt(self._dim // self._num_heads)  # (N,D)
        parts = {"projected": projected.unflatten(1, (self._num_heads, -1))}  # (N,H,D/H)
        if self._first is None:
            return parts
        base = t + layer.out_proj.bias
        parts["base"] = base - base.mean(1, keepdim=True)  # (N,D); the second norm subtracts the mean
        if self._keeps_hidden and len(queries) * layer.linear1.out_features * 4 <= _KEPT:
            parts["hidden"] = self._first(parts["base"])  # (N,F)
        return parts

    # ------------------------------------------------------------------------------------------------- decoding

    @torch.no_grad()
    def __call__(self, spatial_embeddings: Tensor, words: CompiledWords | None = None) -> Tensor:
        """Decode compiled words.

        Args:
            spatial_embeddings: (B,S,C).
            words: of `compile`; None in class mode.

        Returns:
            Logits (B,N) fp32; with precision "fp32" those of the decoder to 1e-5.

        Raises:
            ValueError: in word mode without words, or on spatial embeddings of another width.
        """
        if self._weight_versions() != self._versions:
            raise ValueError(
                "decoder must have the weights it was folded with, they have changed; build the InferenceDecoder, or "
                "the Predictor, again"
            )
        spatial = spatial_embeddings.float()
        words = self._classes or words
        if words is None and self.decoder.text_dim is not None:
            raise ValueError("words must be compiled words in word mode, got None; pass those of compile()")
        with torch.autocast(self._device.type, enabled=False):  # the caller's would round more than `precision` says
            if self._folds:
                return self._decode_folded(spatial, words)
            training = self.decoder.training
            try:
                return self._decode_as_is(spatial, words)
            finally:
                self.decoder.train(training)

    @torch.no_grad()
    def shortlisted(self, spatial_embeddings: Tensor, words: CompiledWords, shortlist: Shortlist) -> Tensor:
        """Decode only the words that are worth it, for each image its own.

        Args:
            spatial_embeddings: (B,S,C).
            words: of `compile`.
            shortlist: learnt with these words, by `learn_shortlist` from what this gives for sample images.

        Returns:
            Logits (B,N) fp32 as of all words, and −∞ for those that were not decoded.

        Raises:
            ValueError: if the shortlist was learnt with other words.
        """
        if len(shortlist.mean) != len(words):
            raise ValueError(
                f"shortlist must be of these {len(words)} words, got one of {len(shortlist.mean)}; learn it anew"
            )
        of_anchors = self(spatial_embeddings, words.select(shortlist.anchors))  # (B,K)
        best = shortlist.predict(of_anchors).topk(min(shortlist.size, len(words))).indices  # (B,size)
        logits = torch.full((len(best), len(words)), -torch.inf, device=self._device)
        logits[:, shortlist.anchors] = of_anchors
        for image, labels in enumerate(best):
            logits[image, labels] = self(spatial_embeddings[image : image + 1], words.select(labels))[0]
        return logits

    def _decode_folded(self, spatial: Tensor, words: CompiledWords | None) -> Tensor:
        """By what is folded -> (B,N)."""
        assert words is not None  # folded classes are words as well
        if spatial.ndim != 3 or spatial.shape[2] != self._head.encoder_dim:
            self._head.memory(spatial)  # which refuses them, and says why
        logits = self._decode_all(spatial, words)
        if self._classes is not None:
            return self._group_logits(logits)
        if "reach" in words.parts:
            logits *= words.parts["reach"]
        prior = self._head.prior
        if prior is not None:
            views = prior.image_views(spatial)  # (B,V,T)
            for some in _pieces(len(words), max(1, 8 * self._max_rows // len(spatial))):
                logits[:, some] += _score(prior, views, words.select(some), "prior")
        return logits

    def _decode_all(self, spatial: Tensor, words: CompiledWords) -> Tensor:
        """Every image and word, a chunk of rows at a time -> (B,N), or (B,G,D) in class mode."""
        # Without the hidden layers that are kept with a vocabulary, mixing would save nothing.
        is_ready = self._first is None or "hidden" in words.parts
        mixes = is_ready and self._mixing_pays(len(words), spatial.shape[1])
        mix = None if isinstance(self._layer, Bf16Layer) or not mixes else self._layer.mix
        step = min(len(words), self._max_rows)
        # Images that are decoded as one. A processor is busy with one whose values are mixed.
        together = 1 if mix and self._device.type == "cpu" else max(1, self._max_rows // step)
        width = () if self._classes is None else (self._dim,)
        found = torch.empty(len(spatial), len(words), *width, device=self._device)
        for some_images in _pieces(len(spatial), max(_IMAGES, together)):
            keys, values = self._keys_and_values(spatial[some_images])  # (B',H,S,D/H)
            of_these = found[some_images]
            for images in _pieces(len(of_these), together):
                mixed = mix(values[images]) if mix else None
                for some in _pieces(len(words), step):
                    of_these[images, some] = self._decode(keys[images], values[images], mixed, words.select(some))
        return found

    def _mixing_pays(self, num_words: int, num_positions: int) -> bool:
        """Whether mixing the values of an image is less work than projecting what each of its words attends to."""
        once = (4 if self.precision == "int8" else 2.5) * num_positions * self._dim  # as measured
        return num_words * self._num_heads * num_positions + once < num_words * self._dim

    def _keys_and_values(self, spatial: Tensor) -> tuple[Tensor, Tensor]:
        """(B,S,C) -> keys and values (B,H,S,D/H)."""
        if self._head.unit_positions:
            spatial = F.normalize(spatial, dim=2) * math.sqrt(spatial.shape[2])
        memory = F.relu(self._spatial_proj(spatial.bfloat16() if self._in_bf16 else spatial))  # (B,S,D)
        both = self._key_value_proj(memory).unflatten(2, (2, self._num_heads, -1)).permute(2, 0, 3, 1, 4)
        return both[0], both[1]

    def _decode(self, keys: Tensor, values: Tensor, mixed: Any, words: CompiledWords) -> Tensor:
        """Some images and some words -> the head's own logits (B,n), or in class mode (B,n,D)."""
        projected = words.parts["projected"].transpose(0, 1).to(keys.dtype)  # (H,n,D/H)
        base = words.parts.get("base")  # (n,D)
        if mixed is None or isinstance(self._layer, Bf16Layer):
            queries = projected.expand(len(keys), -1, -1, -1)  # (B,H,n,D/H)
            heads = F.scaled_dot_product_attention(queries, keys, values, scale=1.0)  # (B,H,n,D/H)
            found, looked_at = self._layer.from_heads(heads.transpose(1, 2).flatten(2), base)
        else:
            weights = (projected @ keys.transpose(2, 3)).softmax(3).transpose(1, 2).flatten(2)  # (B,n,H·S)
            found, looked_at = self._layer.from_weights(weights, mixed, base, words.parts.get("hidden"))
        if looked_at is None:
            assert found is not None  # for the type checker: a head has the one, the other, or both
            return found
        decoder = self._head
        length = torch.linalg.vector_norm(looked_at, dim=2).clamp(min=1e-12)  # (B,n)
        cosine = (looked_at * words.parts["direction"]).sum(2) / length  # (B,n)
        logits = decoder.log_temperature.exp() * cosine + decoder.cosine_bias  # (B,n)
        return logits if found is None else logits + found

    def _group_logits(self, t: Tensor) -> Tensor:
        """Class mode: every group query (B,G,D) to its classes (B,N). Once for all images, as the weights are large."""
        norm, weight = self._folded.layer.norm3, self._head.group_fc_weight  # (G,D,N/G)
        t = t * norm.weight + norm.bias
        logits = torch.bmm(t.transpose(0, 1), weight).transpose(0, 1).flatten(1)  # (B,G·ceil(N/G))
        return logits[:, : self._head.num_classes] + self._head.group_fc_bias

    def _decode_as_is(self, spatial: Tensor, words: CompiledWords | None) -> Tensor:
        """By the decoder's own code, in eval mode; some images and words at a time."""
        decoder = self.decoder.eval()
        if decoder.text_dim is None or words is None:
            logits: Tensor = decoder(spatial).float()
            return logits
        found = torch.empty(len(spatial), len(words), device=self._device)
        for images in _pieces(len(spatial), max(1, self._max_rows // len(words))):
            views = decoder.image_views(spatial[images]) if isinstance(decoder, TrainingFreeScorer) else None  # (b,V,T)
            for some in _pieces(len(words), self._max_rows):
                part = words.select(some)
                if isinstance(decoder, TrainingFreeScorer) and views is not None:
                    found[images, some] = _score(decoder, views, part, "part")
                else:
                    found[images, some] = decoder.decode(spatial[images], *part.parts.values()).float()
        return found

    def _weight_versions(self) -> list[int]:
        """What tells whether a weight was written since."""
        return [tensor._version for tensor in (*self.decoder.parameters(), *self.decoder.buffers())]


def _score(scorer: TrainingFreeScorer, views: Tensor, words: CompiledWords, name: str) -> Tensor:
    """A training-free scorer's logits (B,n) of some words, from views (B,V,T)."""
    own = [part for key, part in words.parts.items() if key.startswith(name)]
    return scorer.similarities(views, *own) @ scorer.scale + scorer.bias


def _pieces(total: int, size: int) -> Iterator[slice]:
    """Slices of nearly equal length, of at most `size`."""
    count = -(-total // size)
    for piece in range(count):
        yield slice(total * piece // count, total * (piece + 1) // count)
