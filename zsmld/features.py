"""Spatial embeddings of a frozen image encoder, computed once and used in place of images."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_matrix
from torch import Tensor
from tqdm.auto import tqdm

from zsmld.datasets import Dataset
from zsmld.datasets.loader import load_batches
from zsmld.images import ImageEncoder
from zsmld.text import resolve_device
from zsmld.vocabulary import Vocabulary


class FeatureDataset:
    """A dataset whose items hold "spatial_embeddings" (S,C) instead of "image". Made by `extract_features`.

    Args:
        spatial_embeddings: (M,S,C) fp16 or fp32.
        targets: (M,N) CSR of int8.
        ids: M image ids.
        vocabulary: N words.
        name, split, missing: of the dataset the images came from.
        unreadable: (id, error) of the images that could not be read.
    """

    def __init__(
        self,
        spatial_embeddings: Tensor,
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
        targets = self.targets[index]
        dense = targets.toarray()[0]
        if self.missing != 0:
            dense = np.full_like(dense, self.missing)
            dense[targets.indices] = targets.data
        return {"spatial_embeddings": self.spatial_embeddings[index].float(), "targets": dense, "id": self.ids[index]}

    def select(self, rows: Sequence[int] | np.ndarray, split: str | None = None) -> "FeatureDataset":
        """Some of the images, as another split."""
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


@torch.no_grad()
def extract_features(
    image_encoder: ImageEncoder,
    dataset: Dataset,
    device: str = "auto",
    batch_size: int = 64,
    num_workers: int = 0,
    dtype: torch.dtype = torch.float16,
    progress: bool = False,
) -> FeatureDataset:
    """Run a frozen image encoder over a dataset once.

    Args:
        image_encoder: put into eval mode for it.
        dataset: with images.
        device: "auto", "cpu", "cuda" or "mps".
        batch_size: images a batch.
        num_workers: processes that decode.
        dtype: of the kept embeddings; fp16 halves memory and moves scores by about 1e-3.
        progress: show a progress bar.

    Returns:
        A `FeatureDataset` of the readable images, in order.

    Raises:
        ValueError: if no image can be read.
    """
    resolved, training = resolve_device(device), image_encoder.training
    image_encoder = image_encoder.to(resolved).eval()
    parts, rows, ids, unreadable = [], [], [], []
    batches = load_batches(dataset, image_encoder.transform, batch_size, num_workers=num_workers)
    with tqdm(total=len(dataset), disable=None if progress else True, desc="image features", unit="image") as bar:
        for batch in batches:
            unreadable += batch.unreadable
            bar.update(len(batch) + len(batch.unreadable))
            if len(batch):
                parts.append(image_encoder(batch.inputs.to(resolved)).to("cpu", dtype))
                rows.append(batch.rows.numpy())
                ids += batch.ids
    image_encoder.train(training)
    if not parts:
        raise ValueError(f"dataset must have readable images, none could be read; first: {unreadable[0][1]}")
    return FeatureDataset(
        torch.cat(parts),
        dataset.targets[np.concatenate(rows)],
        ids,
        dataset.vocabulary,
        dataset.name,
        dataset.split,
        dataset.missing,
        unreadable,
    )
