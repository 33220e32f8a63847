"""QueryAugmentation: what happens to word queries in training.

A head trained on a few words learns those words by heart. Augmentation shows it other queries than the N training
words, so that it must use the text space. The idea is the ML-Decoder paper's (arXiv 2111.12933, section 3.2); no public
code has it, and the kinds and knobs here are ours.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

RandomTarget = Literal["positive", "negative", "ignore"]
_TARGETS: dict[str, int] = {"positive": 1, "negative": 0, "ignore": -1}


@dataclass(frozen=True)
class QueryAugmentation:
    """Changes word embeddings and targets of one training step. Every kind is off at 0, and kinds compose.

    Args:
        noise: Gaussian noise on the word embeddings, in standard deviations of each dimension over the words.
        random_queries: R extra queries drawn like the words: their mean and standard deviation, but no meaning.
        random_target: the target of random queries: "positive" (as the paper is understood), "negative", "ignore".
        captions: how many of the dataset's captions (texts with known targets) are added as queries in a step.
        word_dropout: share of the words left out of a step, in [0,1).
        mixed: extra queries that are convex combinations of two words, also of those that `word_dropout` leaves out;
            target present if either is.

    Raises:
        ValueError: if a knob is out of range.

    Source: arXiv 2111.12933, section 3.2 ("query augmentation": noise and random queries).

    Example:
        >>> augment = QueryAugmentation(noise=0.1, mixed=3)
        >>> generator = torch.Generator().manual_seed(0)
        >>> words, targets = augment(torch.randn(5, 8), torch.zeros(2, 5, dtype=torch.int8), generator)
        >>> words.shape, targets.shape
        (torch.Size([8, 8]), torch.Size([2, 8]))
    """

    noise: float = 0.0
    random_queries: int = 0
    random_target: RandomTarget = "positive"
    captions: int = 0
    word_dropout: float = 0.0
    mixed: int = 0

    def __post_init__(self) -> None:
        for name in ("noise", "random_queries", "captions", "word_dropout", "mixed"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}; 0 turns it off")
        if self.word_dropout >= 1:
            raise ValueError(f"word_dropout must be below 1, got {self.word_dropout}; some words must stay")
        if self.random_target not in _TARGETS:
            raise ValueError(f"random_target must be one of {list(_TARGETS)}, got {self.random_target!r}; choose one")

    def __call__(
        self,
        word_embeddings: Tensor,
        targets: Tensor,
        generator: torch.Generator,
        captions: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The queries and targets of one step.

        Args:
            word_embeddings: (N,T) of the training words.
            targets: (B,N) in {1, 0, −1}.
            generator: on the CPU; seeded by seed and step, so that every process of a run draws the same.
            captions: embeddings (M,T) and targets (B,M) of the dataset's captions, for `captions` > 0.

        Returns:
            Embeddings (N',T) and targets (B,N'): the words that stay, then mixed, random and caption queries.

        Raises:
            ValueError: if `captions` > 0 and the dataset has none.
        """
        if not (self.noise or self.random_queries or self.captions or self.word_dropout or self.mixed):
            return word_embeddings, targets
        device = word_embeddings.device
        deviation = word_embeddings.std(0, correction=min(1, len(word_embeddings) - 1))  # (T); zero for a single word

        def gaussian(rows: int) -> Tensor:
            return torch.randn(rows, word_embeddings.shape[1], generator=generator).to(device)

        num_words = len(word_embeddings)
        kept = torch.randperm(num_words, generator=generator)[: max(1, round((1 - self.word_dropout) * num_words))]
        kept = kept.sort().values.to(device)
        queries, labels = [word_embeddings[kept]], [targets[:, kept]]
        if self.noise:
            queries[0] = queries[0] + self.noise * deviation * gaussian(len(kept))
        if self.mixed:
            first, second = torch.randint(num_words, (2, self.mixed), generator=generator).to(device)
            share = torch.rand(self.mixed, 1, generator=generator).to(device)  # (R,1)
            queries.append(share * word_embeddings[first] + (1 - share) * word_embeddings[second])
            labels.append(torch.maximum(targets[:, first], targets[:, second]))  # present if either is known to be
            unknown = (targets[:, first] == -1) ^ (targets[:, second] == -1)  # and not absent if one is unknown
            labels[-1] = torch.where(unknown & (labels[-1] == 0), -1, labels[-1]).to(targets.dtype)
        if self.random_queries:
            queries.append(word_embeddings.mean(0) + deviation * gaussian(self.random_queries))
            labels.append(targets.new_full((len(targets), self.random_queries), _TARGETS[self.random_target]))
        if self.captions:
            if captions is None:
                raise ValueError(f"captions must be 0 for a dataset without captions, got {self.captions}; turn it off")
            embeddings, caption_targets = captions
            drawn = torch.randperm(len(embeddings), generator=generator)[: self.captions].to(device)
            queries.append(embeddings[drawn])
            labels.append(caption_targets[:, drawn])
        return torch.cat(queries), torch.cat(labels, 1)
