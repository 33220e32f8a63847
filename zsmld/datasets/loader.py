"""Batches from a dataset: decoded and transformed in workers, unreadable images set aside instead of raised."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset


@dataclass
class Batch:
    """Some rows of a dataset, ready for the network.

    Attributes:
        inputs: (B,3,H,W) images, or (B,S,C) spatial embeddings where the dataset has those.
        targets: (B,N) int8.
        rows: (B,) int64 positions in the dataset.
        ids: B image ids.
        unreadable: (id, error) of the images that could not be read; they are in none of the fields above.
    """

    inputs: Tensor
    targets: Tensor
    rows: Tensor
    ids: list[str]
    unreadable: list[tuple[str, str]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.ids)


def load_batches(
    dataset: Any,
    transform: Callable[[Any], Tensor] | None,
    batch_size: int,
    rows: Iterable[int] | None = None,
    num_workers: int = 0,
) -> Iterator[Batch]:
    """Iterate over rows of a dataset in the order given.

    Args:
        dataset: see `zsmld.datasets`.
        transform: PIL image -> (3,H,W); not used for spatial embeddings.
        batch_size: images a batch.
        rows: positions to visit; default all, in order.
        num_workers: processes that decode; 0 decodes in this one.

    Yields:
        `Batch`; a batch may be empty when none of its images could be read.

    Raises:
        ValueError: if batch_size or num_workers make no sense.
    """
    if batch_size < 1 or num_workers < 0:
        raise ValueError(
            f"batch_size must be ≥ 1 and num_workers ≥ 0, got {batch_size} and {num_workers}; correct them"
        )
    order = list(range(len(dataset))) if rows is None else [int(row) for row in rows]
    yield from DataLoader(
        _Rows(dataset, transform), batch_size=batch_size, sampler=order, num_workers=num_workers, collate_fn=_collate
    )


class _Rows(Dataset[dict[str, Any]]):
    """Rows of a dataset, transformed; an image that cannot be read is an item with its error."""

    def __init__(self, dataset: Any, transform: Callable[[Any], Tensor] | None) -> None:
        self.dataset, self.transform = dataset, transform

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, row: int) -> dict[str, Any]:
        try:
            item = self.dataset[row]
        except (OSError, ValueError) as error:
            image_id = str(self.dataset.ids[row] if hasattr(self.dataset, "ids") else row)
            return {"error": str(error), "id": image_id}
        inputs = item["spatial_embeddings"] if "spatial_embeddings" in item else item["image"]
        if self.transform is not None and "image" in item:
            inputs = self.transform(inputs)
        return {"inputs": inputs, "targets": item["targets"], "id": item["id"], "row": row}


def _collate(items: list[dict[str, Any]]) -> Batch:
    good = [item for item in items if "error" not in item]
    return Batch(
        inputs=torch.stack([item["inputs"] for item in good]) if good else torch.empty(0),
        targets=torch.from_numpy(np.stack([item["targets"] for item in good])) if good else torch.empty(0),
        rows=torch.tensor([item["row"] for item in good], dtype=torch.int64),
        ids=[item["id"] for item in good],
        unreadable=[(item["id"], item["error"]) for item in items if "error" in item],
    )
