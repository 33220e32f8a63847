"""The network of a predictor: folded once, and asked for logits batch by batch."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from zsmld.calibration import Calibration
from zsmld.decoder.inference import CompiledWords, InferenceDecoder, Precision, Shortlist
from zsmld.model import ZeroShotClassifier
from zsmld.predictor.loading import LoadedImages
from zsmld.predictor.words import ScoredWords


class Network:
    """A model as a predictor uses it.

    Args:
        model: in eval mode, on its device. Its head is folded as it is now.
        precision: of the head's large products, see `zsmld.decoder.inference.InferenceDecoder`.
        compile: likewise.

    Raises:
        ValueError: on a precision that the device has not.
    """

    def __init__(self, model: ZeroShotClassifier, precision: Precision = "fp32", compile: bool = False) -> None:
        rows, columns = model.image_encoder.grid_size
        num_positions = rows * columns + model.image_encoder.num_global_tokens
        self._image_encoder, self._device = model.image_encoder, next(model.decoder.parameters()).device
        self._softmax = model.scores == "softmax"
        decoder: Any = model.decoder
        if hasattr(decoder, "for_inference"):  # an exported file, which is folded already
            self._decoder: Any = decoder.for_inference(precision, compile)
        else:
            self._decoder = InferenceDecoder(decoder, precision, num_positions, compile)

    @torch.no_grad()
    def compile(self, word_embeddings: Tensor) -> CompiledWords:
        """The query side of words (N,T) or (N,K,T)."""
        return self._decoder.compile(word_embeddings.to(self._device))

    @torch.no_grad()
    def logits(self, inputs: Tensor, words: ScoredWords) -> Tensor:
        """Images (G,3,H,W) -> logits fp32 (G,R+P), reference words before the texts; −∞ for what no shortlist keeps."""
        spatial = self._image_encoder(inputs)  # (G,S,C)
        shortlist: Shortlist | None = words.shortlist
        if words.compiled is None or shortlist is None:
            logits: Tensor = self._decoder(spatial, words.compiled)
            return logits
        texts = words.compiled.select(slice(words.num_reference, None))
        kept: Tensor = self._decoder.shortlisted(spatial, texts, shortlist)  # (G,P)
        if not words.num_reference:
            return kept
        return torch.cat([self._decoder(spatial, words.compiled.select(slice(words.num_reference))), kept], 1)

    def scores(self, logits: np.ndarray, calibration: Calibration | None) -> np.ndarray:
        """Logits (G,N) of the results, calibrated if there is a calibration -> scores fp32 in [0,1]."""
        if calibration is not None:
            return calibration.scores(logits)
        if self._softmax:  # one word an image: its words share the probability
            return torch.softmax(torch.from_numpy(logits), 1).numpy()
        return torch.sigmoid(torch.from_numpy(logits)).numpy()


def check_logits(logits: np.ndarray, batch: LoadedImages) -> None:
    """Refuse logits (G,…) that are no numbers.

    Raises:
        ValueError: naming the first such image.
    """
    bad = np.isnan(logits).any(1)
    if bad.any():
        readable = [position for position in range(len(batch.paths)) if position not in batch.errors]
        name = batch.paths[readable[int(bad.argmax())]] or "an image"
        raise ValueError(f"logits must be numbers, got NaN for {name}; check the checkpoint's weights")
