"""FeatureDataset: a dataset whose items hold spatial embeddings where others hold an image."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_matrix
from torch import Tensor

from zsmld.features.shards import MappedEmbeddings
from zsmld.vocabulary import Vocabulary


class FeatureDataset:
    """A dataset whose items hold "spatial_embeddings" (S,C) instead of "image". Made by `FeatureCache.extract`.

    It can be pickled, and forked into the workers of a DataLoader; embeddings on disk are mapped anew there.

    Args:
        spatial_embeddings: (M,S,C) fp16, bf16 or fp32, in memory or mapped from disk.
        targets: (M,N) CSR of int8.
        ids: M image ids.
        vocabulary: N words.
        name, split, missing: of the dataset the images came from.
        unreadable: (id, error) of the images that could not be read.

    Raises:
        ValueError: if there are not as many embeddings, rows of targets and ids.
    """

    def __init__(
        self,
        spatial_embeddings: Tensor | MappedEmbeddings,
        targets: csr_matrix,
        ids: Sequence[str],
        vocabulary: Vocabulary,
        name: str,
        split: str,
        missing: int = 0,
        unreadable: Sequence[tuple[str, str]] = (),
    ) -> None:
        if not len(spatial_embeddings) == targets.shape[0] == len(ids):
            raise ValueError(
                f"spatial_embeddings, targets and ids must have one row an image, got {len(spatial_embeddings)}, "
                f"{targets.shape[0]} and {len(ids)}; select the same rows of each"
            )
        self.spatial_embeddings, self.targets, self.ids = spatial_embeddings, targets, list(ids)
        self.vocabulary, self.name, self.split, self.missing = vocabulary, name, split, missing
        self.unreadable = list(unreadable)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """{"spatial_embeddings": (S,C) fp32, "targets": (N,) int8, "id": str}."""
        row = range(len(self))[index]  # as a list has it: −1 is the last image, too large is an IndexError
        return {
            "spatial_embeddings": self.spatial_embeddings[row].float(),
            "targets": self._dense_targets([row])[0],
            "id": self.ids[row],
        }

    def batch(self, rows: Sequence[int]) -> dict[str, Any]:
        """Several images at once, in the order given: faster than one by one, and then stacked.

        Returns:
            {"spatial_embeddings": (B,S,C) fp32, "targets": (B,N) int8, "ids": B str}.

        Raises:
            IndexError: if a row is out of range.
        """
        rows = [range(len(self))[row] for row in rows]
        return {
            "spatial_embeddings": self.spatial_embeddings[torch.tensor(rows, dtype=torch.int64)].float(),
            "targets": self._dense_targets(rows),
            "ids": [self.ids[row] for row in rows],
        }

    def _dense_targets(self, rows: Sequence[int]) -> np.ndarray:
        """(B,N) int8. Scipy's own slicing of a row takes longer than reading its embeddings."""
        indptr, indices, data = self.targets.indptr, self.targets.indices, self.targets.data
        dense = np.full((len(rows), self.targets.shape[1]), self.missing, np.int8)
        for i, row in enumerate(rows):
            start, end = indptr[row], indptr[row + 1]
            dense[i, indices[start:end]] = data[start:end]
        return dense

    def select(self, rows: Sequence[int] | np.ndarray, split: str | None = None) -> "FeatureDataset":
        """Some of the images, as another split; embeddings on disk stay there."""
        rows = np.arange(len(self))[np.asarray(rows)]  # positions, also of a boolean mask
        return FeatureDataset(
            self.spatial_embeddings[torch.from_numpy(rows)],
            self.targets[rows],
            [self.ids[row] for row in rows],
            self.vocabulary,
            self.name,
            split or self.split,
            self.missing,
            self.unreadable,
        )

    def __repr__(self) -> str:
        _, positions, channels = self.spatial_embeddings.shape
        return f"FeatureDataset({self.name!r}, {len(self)} images, {positions} positions of {channels})"
