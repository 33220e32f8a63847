"""Caption queries: texts that say several words at once, with targets that follow from the words' own targets."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zsmld.text import TextEncoder
from zsmld.vocabulary import Vocabulary

_LIMIT = 2000  # captions made from label sets: encoded once, and more than a training of some thousand steps draws


@dataclass
class Captions:
    """M texts and what makes each of them true.

    Attributes:
        texts: M texts.
        embeddings: (M,T).
        words: (M,N) bool, the training words that each caption is about.
        needed: (M,) how many of these words must be present: one of them ("animal"), or all ("dog, cat and boat").
    """

    texts: list[str]
    embeddings: Tensor
    words: Tensor
    needed: Tensor

    def to(self, device: torch.device) -> "Captions":
        """The same captions on another device."""
        return Captions(self.texts, self.embeddings.to(device), self.words.to(device), self.needed.to(device))

    def targets(self, targets: Tensor) -> Tensor:
        """Targets of the captions (B,M) from those of the words (B,N), both in {1, 0, −1}.

        A caption is present when enough of its words are known to be; unknown when unknown words could make it so.

        Example:
            >>> both = Captions(["dog and cat"], torch.zeros(1, 4), torch.tensor([[True, True]]), torch.tensor([2]))
            >>> both.targets(torch.tensor([[1, 1], [1, 0], [1, -1], [0, -1]], dtype=torch.int8)).T
            tensor([[ 1,  0, -1,  0]], dtype=torch.int8)
        """
        about = self.words.float().T  # (N,M)
        present, unknown = (targets == 1).float() @ about, (targets == -1).float() @ about  # (B,M), (B,M)
        found = torch.where(present + unknown >= self.needed, -1, 0).to(targets.dtype)  # (B,M)
        return found.masked_fill(present >= self.needed, 1)


def build_captions(
    dataset: Any, labels: np.ndarray, rows: np.ndarray, text_encoder: TextEncoder, seed: int = 0
) -> Captions | None:
    """The dataset's own captions, else captions made from the words that occur together in its images.

    A dataset's `captions` are a mapping from a text to the words of which any makes it true. Otherwise each image with
    two or more training words gives a text such as "dog, cat and boat", of at most four of them drawn at random, which
    is true where all of these are.

    Args:
        dataset: to train on.
        labels: (N,) of the training words. No other word is named or has any influence.
        rows: the images that captions may be made from.
        text_encoder: of the texts; a file of word vectors has none of sentences, and takes the mean of their words.
        seed: of the words that are drawn.

    Returns:
        The captions, or None if no image has two training words.
    """
    vocabulary: Vocabulary = dataset.vocabulary
    trained = {vocabulary.words[label]: column for column, label in enumerate(labels)}
    own: dict[str, list[str]] | None = getattr(dataset, "captions", None)
    if own:
        about = {text: tuple(trained[word] for word in words if word in trained) for text, words in own.items()}
        sets = [columns for columns in about.values() if columns]
        texts, needed = [text for text, columns in about.items() if columns], [1] * len(sets)
    else:
        sets = _label_sets(dataset.targets[rows][:, labels], np.random.default_rng([seed, 1]))
        texts = [_sentence([vocabulary.words[labels[column]] for column in columns]) for columns in sets]
        needed = [len(columns) for columns in sets]
    if not sets:
        return None
    words = torch.zeros(len(sets), len(labels), dtype=torch.bool)
    for row, columns in enumerate(sets):
        words[row, list(columns)] = True
    if text_encoder.spec.startswith("vectors:") and not own:
        embeddings = text_encoder.encode_words([vocabulary.words[label] for label in labels], vocabulary.templates)
        embeddings = torch.nn.functional.normalize(words.float() @ embeddings, dim=1)  # (M,T)
    else:
        embeddings = text_encoder.encode_words(texts, vocabulary.templates)  # (M,T)
    return Captions(texts, embeddings, words, torch.tensor(needed))


def _label_sets(targets: Any, rng: np.random.Generator) -> list[tuple[int, ...]]:
    """Distinct sets of two to four words that are present in one image, from images in random order."""
    found: dict[tuple[int, ...], None] = {}  # a set that keeps its order
    for row in rng.permutation(targets.shape[0]):
        start, end = targets.indptr[row], targets.indptr[row + 1]
        present = targets.indices[start:end][targets.data[start:end] == 1]
        if len(present) >= 2:
            size = rng.integers(2, min(4, len(present)) + 1)
            found[tuple(sorted(rng.choice(present, size, replace=False).tolist()))] = None
        if len(found) == _LIMIT:
            break
    return list(found)


def _sentence(words: list[str]) -> str:
    """ "dog", "dog and cat", "dog, cat and boat"."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
