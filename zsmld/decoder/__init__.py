"""The head: word queries and spatial embeddings -> logits.

ml_decoder       MLDecoder, the paper in one file
layer            its one layer
training_free    TrainingFreeScorer, what needs no training: alone, or as the prior of an MLDecoder
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from zsmld.decoder.layer import DecoderLayer
from zsmld.decoder.ml_decoder import MLDecoder
from zsmld.decoder.training_free import TrainingFreeScorer, average_descriptions

__all__ = [
    "DecoderLayer",
    "MLDecoder",
    "TrainingFreeScorer",
    "average_descriptions",
    "build_decoder",
    "join_words",
    "stack_words",
]


def build_decoder(config: dict[str, Any]) -> MLDecoder | TrainingFreeScorer:
    """The inverse of `config()`, without the weights.

    Raises:
        ValueError: if a value does not fit.
        TypeError: if a key is unknown.
    """
    if config.get("training_free"):
        return TrainingFreeScorer(**{name: value for name, value in config.items() if name != "training_free"})
    prior = None if config.get("prior") is None else build_decoder(config["prior"])
    if isinstance(prior, MLDecoder):
        raise ValueError("prior must be a training-free scorer, got an MLDecoder; the checkpoint is not one of ours")
    return MLDecoder(**config | {"prior": prior})


def join_words(first: tuple[Tensor, ...], second: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Two results of `word_queries`, one after the other; the words' numbers of descriptions may differ."""
    joined = []
    for a, b in zip(first, second, strict=True):
        if a.ndim > 1:
            width = max(a.shape[1], b.shape[1])
            a, b = (F.pad(t, [0, 0] * (t.ndim - 2) + [0, width - t.shape[1]]) for t in (a, b))
        joined.append(torch.cat([a, b]))
    return tuple(joined)


def stack_words(rows: Sequence[Tensor]) -> Tensor:
    """Embeddings of single words, (T) or (K,T) each -> (N,T), or (N,K,T) with zeros where a word has fewer."""
    if rows[0].ndim == 2:
        return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True)
    return torch.stack(list(rows))
