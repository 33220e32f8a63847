"""Datasets, one file each. They share a contract, not a base class:

- `vocabulary`: a `Vocabulary`; `split`: "train", "val" or "test"; `name`: what a report calls it;
- `targets`: (M,N) scipy CSR of int8 with 1 present, 0 absent, −1 unknown;
- `missing`: what an entry that `targets` does not store means, 0 or −1;
- `dataset[i]`: {"image": PIL image or tensor, "targets": (N,) int8, "id": str}.
"""

import inspect
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from scipy.sparse import csr_matrix

from zsmld.datasets.scenes import Scenes
from zsmld.datasets.table import Table
from zsmld.vocabulary import Vocabulary


class Dataset(Protocol):
    """What every door asks of a dataset, ours or yours."""

    name: str
    split: str
    missing: int
    vocabulary: Vocabulary
    targets: csr_matrix

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]: ...


DATASETS: dict[str, Callable[..., Any]] = {
    "scenes": Scenes,
    "table": Table,
}


def build_dataset(name: str, **options: Any) -> Any:
    """The dataset of that name.

    Args:
        name: one of `DATASETS`.
        options: arguments of its class.

    Raises:
        ValueError: for an unknown name or option.

    Example:
        >>> build_dataset("scenes", split="val", num_images=4)
        Scenes(split='val', num_images=4, words=100, seed=0)
    """
    if name not in DATASETS:
        raise ValueError(f"dataset must be one of {sorted(DATASETS)}, got {name!r}; correct the name")
    known = inspect.signature(DATASETS[name]).parameters
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise ValueError(f"dataset {name!r} takes {sorted(known)}, got {unknown} besides; correct the names")
    return DATASETS[name](**options)


def dense_targets(dataset: Dataset, labels: np.ndarray | None = None) -> np.ndarray:
    """Targets of a dataset as an array (M,N) int8 in {1, 0, −1}, for all words or some labels."""
    targets = dataset.targets if labels is None else dataset.targets[:, labels]
    dense = targets.toarray().astype(np.int8)
    if dataset.missing == 0:
        return dense
    stored = csr_matrix((np.ones(targets.nnz, bool), targets.indices, targets.indptr), shape=targets.shape).toarray()
    return np.where(stored, dense, np.int8(dataset.missing))
