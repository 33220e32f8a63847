"""ExportGraph: what is exported, images and words in, logits and scores out; without a check or a branch on values.

Letters used in the shapes: B images, S spatial positions, N words, P columns of a frozen vocabulary (words, synonyms,
reference words), K descriptions of a word, T text width.
"""

import copy
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from zsmld.calibration import Calibration
from zsmld.decoder import DecoderLayer, MLDecoder
from zsmld.export.vocabulary import FrozenWords
from zsmld.model import ZeroShotClassifier


class ExportGraph(nn.Module):
    """A model as it is exported. The model itself stays as it is: this works on a copy.

    With words of run time, `forward(images, word_embeddings[, mask])`; with a frozen vocabulary `forward(images)`, and
    all that does not depend on the image is a constant.

    Args:
        model: in eval mode.
        frozen: the vocabulary to freeze; None for words at run time.
        half: weights and large products in fp16. What compares words (their embeddings, cosines, a training-free
            prior, the last sum) stays in fp32, whose range and digits it needs.
        include_preprocessing: take pixels, uint8, and normalise them inside.

    Example:
        >>> model = ZeroShotClassifier.from_pretrained("scenes")
        >>> logits, scores = ExportGraph(model)(torch.zeros(2, 3, 64, 64), torch.randn(5, 384))
        >>> logits.shape, bool((scores == logits.sigmoid()).all())
        (torch.Size([2, 5]), True)
    """

    def __init__(
        self,
        model: ZeroShotClassifier,
        frozen: FrozenWords | None = None,
        half: bool = False,
        include_preprocessing: bool = False,
    ) -> None:
        super().__init__()
        self.image_encoder: nn.Module = copy.deepcopy(model.image_encoder)
        self.decoder = copy.deepcopy(model.decoder)
        self.frozen = frozen is not None
        device = next(model.parameters()).device
        self.is_class_mode = self.decoder.text_dim is None
        self.num_constants = 0
        if frozen is not None:
            self._freeze(frozen, device)
        self.scoring = ScoresOfLogits(frozen, softmax=model.scores == "softmax")
        transform = model.image_encoder.transform
        self.pixels = PixelNormalization(transform.mean, transform.std) if include_preprocessing else nn.Identity()
        if half:
            self.image_encoder = HalfPrecision(self.image_encoder)
            if isinstance(self.decoder, MLDecoder):
                self._halve(self.decoder)
        self.to(device).eval()

    def _freeze(self, frozen: FrozenWords, device: torch.device) -> None:
        decoder = self.decoder
        if frozen.embeddings is not None:
            compiled = decoder.word_queries(frozen.embeddings.to(device))
            self.num_constants = len(compiled)
            for place, part in enumerate(compiled):
                self.register_buffer(f"constant{place}", part.detach())
            queries = compiled[0]  # (P,D)
        elif isinstance(decoder, MLDecoder):
            queries = decoder.group_queries  # (G,D)
        if isinstance(decoder, MLDecoder) and decoder.descriptions == "mean":
            first = cast(DecoderLayer, decoder.layers[0])
            with torch.no_grad():  # the query side of the first layer sees no image
                t = first.normalize_queries(queries[None])  # (1,P,D)
                first.query_proj = cast(Any, Constant(first.query_proj(t)))
                first.norm1 = cast(Any, Constant(t))

    @staticmethod
    def _halve(decoder: MLDecoder) -> None:
        decoder.spatial_proj = cast(Any, HalfPrecision(decoder.spatial_proj))
        for place, layer in enumerate(decoder.layers):
            decoder.layers[place] = HalfPrecision(layer)
        if decoder.output in ("cosine", "sum"):
            decoder.cosine_proj = cast(Any, HalfPrecision(decoder.cosine_proj))

    def forward(
        self, images: Tensor, word_embeddings: Tensor | None = None, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Score.

        Args:
            images: (B,3,H,W), fp32 and normalised, or uint8 pixels where the preprocessing is inside.
            word_embeddings: (N,T), or (N,K,T) with a mask; not with a frozen vocabulary.
            mask: (N,K) bool, which descriptions exist.

        Returns:
            Logits (B,N), or (B,P) of a frozen vocabulary, and scores (B,N) in [0,1].
        """
        spatial = self.image_encoder(self.pixels(images))  # (B,S,C)
        if self.is_class_mode:
            logits = self.decoder(spatial)  # (B,P)
        elif self.frozen:
            compiled = [getattr(self, f"constant{place}") for place in range(self.num_constants)]
            logits = self.decoder.decode(spatial, *compiled)  # (B,P)
        else:
            logits = self.decoder(spatial, word_embeddings, mask)  # (B,N)
        return logits, self.scoring(logits)


def word_inputs(words: Tensor | None) -> tuple[Tensor, ...]:
    """The inputs of an exported model that are words: none, (N,T), or (N,K,T) and the mask (N,K) of what is there.

    Example:
        >>> [tuple(part.shape) for part in word_inputs(torch.ones(5, 2, 384))]
        [(5, 2, 384), (5, 2)]
    """
    if words is None:
        return ()
    words = words.clone()  # a part of a tensor is exported with the strides of the whole
    return (words, (words != 0).any(2)) if words.ndim == 3 else (words,)


class ScoresOfLogits(nn.Module):
    """Logits (B,P) -> scores (B,N), as a `zsmld.Predictor` makes them: calibrated, the best synonym of each word.

    Args:
        frozen: the vocabulary, with the calibration; None: each column is a word, nothing is calibrated.
        softmax: one word an image, where nothing is calibrated.
    """

    mean: Tensor
    deviation: Tensor
    stacking: Tensor
    reference: Tensor
    texts: Tensor

    def __init__(self, frozen: FrozenWords | None, softmax: bool) -> None:
        super().__init__()
        self.softmax = softmax
        self.calibration: Calibration | None = None if frozen is None else frozen.calibration
        self.selects = frozen is not None and frozen.places != tuple((p,) for p in range(len(frozen.columns)))
        if frozen is None:
            return
        width = max(map(len, frozen.places))
        # A word with fewer texts repeats its first, which changes no maximum.
        padded = [[*places, *places[:1] * (width - len(places))] for places in frozen.places]
        self.register_buffer("texts", torch.tensor(padded))  # (N,K)
        if self.calibration is not None:
            c, columns = self.calibration, frozen.columns
            pairs = [c.word_statistics.get(word, c.default_statistics) for word in columns]
            self.register_buffer("mean", torch.tensor([pair[0] for pair in pairs]))  # (P,)
            self.register_buffer("deviation", torch.tensor([pair[1] for pair in pairs]))  # (P,)
            untrained = [word not in set(c.trained_words) for word in columns]
            self.register_buffer("stacking", torch.tensor(untrained) * c.stacking)  # (P,)
            labels = {word: place for place, word in enumerate(columns)}
            self.register_buffer(
                "reference", torch.tensor([labels[word] for word in frozen.reference], dtype=torch.long)
            )

    def forward(self, logits: Tensor) -> Tensor:
        """(B,P) -> (B,N) in [0,1]."""
        c = self.calibration
        if c is not None and c.by_word:
            logits = (logits - self.mean) / self.deviation
        if c is not None and c.by_image:
            reference = logits[:, self.reference]  # (B,R)
            center = reference.mean(1, keepdim=True)
            spread = (reference - center).square().mean(1, keepdim=True).sqrt()
            logits = (logits - center) / torch.where(spread < 1e-6, torch.ones_like(spread), spread)
        if c is not None:
            logits = logits + self.stacking
        if self.selects:
            logits = logits[:, self.texts].amax(2)  # (B,N)
        if c is not None:
            return torch.sigmoid(c.scale * logits + c.bias)
        return logits.softmax(1) if self.softmax else logits.sigmoid()


class Constant(nn.Module):
    """Gives what its layer gave once, whatever it is asked."""

    value: Tensor

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.register_buffer("value", value.detach())

    def forward(self, _: Tensor) -> Tensor:
        """The value."""
        return self.value


class HalfPrecision(nn.Module):
    """A layer in fp16 between layers in fp32."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer.half()

    def forward(self, *inputs: Tensor) -> Any:
        """As the layer's own."""
        found = self.layer(*(tensor.half() for tensor in inputs))
        return tuple(tensor.float() for tensor in found) if isinstance(found, tuple) else found.float()


class PixelNormalization(nn.Module):
    """Pixels uint8 (B,3,H,W) -> what the encoder takes, as `zsmld.images.ImageTransform` makes it after resizing."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean)[:, None, None])  # (3,1,1)
        self.register_buffer("std", torch.tensor(std)[:, None, None])  # (3,1,1)

    def forward(self, pixels: Tensor) -> Tensor:
        """(B,3,H,W) uint8 -> fp32."""
        return (pixels.float() / 255 - self.mean) / self.std
