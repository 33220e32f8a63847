"""Sentences as training images: their embeddings in the place of spatial ones, where images and texts share a space."""

import math
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm.auto import tqdm

from zsmld.features.dataset import FeatureDataset
from zsmld.text import TextEncoder

_CHUNK = 2048  # sentences at a time: their fp32 embeddings, and the texts themselves, are never all in memory


def encode_sentences(dataset: Any, text_encoder: TextEncoder, progress: bool = False) -> FeatureDataset:
    """The embeddings of a dataset of sentences, kept in memory as fp16.

    The first position is the whole sentence, what an image encoder with `global_token` puts there too; the others are
    its phrases, in the place of the parts of an image. A head takes any number of positions, so one that is trained on
    these scores images as it is.

    Args:
        dataset: a `zsmld.datasets.captions.CaptionDataset`, or anything with `sentences` and `texts(row)`, whose lists
            have one length.
        text_encoder: of the space that the image encoder's positions are in.
        progress: show a progress bar.

    Returns:
        A `FeatureDataset` with positions of length one, (M, 1 + num_phrases, T), M sentences.

    Source: TaI-DPT, arXiv 2211.12739, and its code: the embedding of a caption stands for that of an image,
    and those of its tokens for those of its places; here phrases, which any text encoder embeds, instead of tokens.

    Example:
        >>> from zsmld import Vocabulary
        >>> from zsmld.datasets.captions import CaptionDataset, find_words
        >>> sentences = ["a dog on a sofa", "two cats"]
        >>> vocabulary = Vocabulary(["dog", "cat"])
        >>> dataset = CaptionDataset(sentences, find_words(sentences, vocabulary.words), ["1", "2"], vocabulary)
        >>> encode_sentences(dataset, TextEncoder("minilm"))
        FeatureDataset('captions', 2 images, 5 positions of 384)
    """
    parts = []
    with tqdm(total=len(dataset), disable=None if progress else True, desc="sentences", unit="sentence") as bar:
        for start in range(0, len(dataset), _CHUNK):
            texts = [dataset.texts(row) for row in range(start, min(start + _CHUNK, len(dataset)))]
            embeddings = text_encoder.encode(text for row in texts for text in row)  # (M'·S,T)
            embeddings = F.normalize(embeddings, dim=1).half()
            parts.append(embeddings.unflatten(0, (len(texts), -1)))  # (M',S,T)
            bar.update(len(texts))
    return FeatureDataset(
        torch.cat(parts),
        dataset.targets,
        dataset.ids,
        dataset.vocabulary,
        dataset.name,
        dataset.split,
        dataset.missing,
    )


def add_text_noise(positions: Tensor, noise: float, seeds: Iterable[int]) -> Tensor:
    """Gaussian noise on the embeddings of sentences, so that what is learnt of a text holds for images near it, too.

    Args:
        positions: (B,S,C), on the CPU.
        noise: expected length of what is added, in lengths of the embedding: √C times the deviation of a component.
            CapDec's best variance of a component, 0.016, is 2.9 for C = 512.
        seeds: B, of each sentence's own noise: it depends on no other sentence, process or device.

    Returns:
        (B,S,C), as long as before.

    Source: CapDec (Nukrai et al., arXiv 2211.00575), which takes images to lie in a ball around their texts.

    Example:
        >>> noisy = add_text_noise(torch.ones(2, 3, 4), 0.5, seeds=[5, 5])
        >>> torch.equal(noisy[0], noisy[1]), noisy.norm(dim=2).round(decimals=4).unique()
        (True, tensor([2.]))
    """
    lengths = positions.norm(dim=2, keepdim=True)  # (B,S,1)
    drawn = [torch.randn(positions.shape[1:], generator=torch.Generator().manual_seed(seed % 2**63)) for seed in seeds]
    noisy = positions + torch.stack(drawn) * lengths * (noise / math.sqrt(positions.shape[2]))  # (B,S,C)
    return F.normalize(noisy, dim=2) * lengths
