"""Datasets, one file each. They share a contract, not a base class:

- `vocabulary`: a `Vocabulary`; `split`: "train", "val" or "test"; `name`: what a report calls it;
- `targets`: (M,N) scipy CSR of int8 with 1 present, 0 absent, −1 unknown;
- `missing`: what an entry that `targets` does not store means, 0 or −1;
- `dataset[i]`: {"image": PIL image or tensor, "targets": (N,) int8, "id": str}; `str(dataset.ids[i])` is that id.
  Sentences, which are trained on in the place of images, have a "text" there (`zsmld.datasets.captions`).

Official downloads are read by a reader each, into an `Index`. Reading takes a while: `prepare` does it once and writes
the index, which the dataset "prepared" opens at once.
"""

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from scipy.sparse import csr_matrix

from zsmld.datasets.captions import captions
from zsmld.datasets.coco import read_coco
from zsmld.datasets.folder import read_folder
from zsmld.datasets.hugging_face import HuggingFaceDataset
from zsmld.datasets.image_list import read_image_list
from zsmld.datasets.index import Index, IndexedDataset, MissingImages, Split
from zsmld.datasets.nus_wide import read_nus_wide
from zsmld.datasets.open_images import read_open_images
from zsmld.datasets.partition import read_partition
from zsmld.datasets.rows import ids_digest, refuse
from zsmld.datasets.scenes import Scenes
from zsmld.datasets.table import read_table, table
from zsmld.datasets.voc import read_voc
from zsmld.vocabulary import DEFAULT_TEMPLATES, Vocabulary

__all__ = [
    "DATASETS",
    "READERS",
    "Dataset",
    "Index",
    "IndexedDataset",
    "build_dataset",
    "dense_targets",
    "ids_digest",
    "prepare",
    "read_partition",
]


class Dataset(Protocol):
    """What every door asks of a dataset, ours or yours."""

    name: str
    split: str
    missing: int
    vocabulary: Vocabulary
    targets: csr_matrix

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]: ...


# A reader takes the place of a download, a list that it adds everything wrong to, and its own options. It gives None
# where so much is wrong that there is nothing to look at.
Reader = Callable[..., Index | None]
READERS: dict[str, Reader] = {
    "nus_wide": read_nus_wide,
    "coco": read_coco,
    "open_images": read_open_images,
    "voc": read_voc,
    "folder": read_folder,
    "table": read_table,
    "image_list": read_image_list,
}


def prepare(
    name: str,
    root: str | Path,
    output: str | Path | None = None,
    missing_images: MissingImages = "error",
    num_decoded: int = 64,
    **options: Any,
) -> Index:
    """Read a download, check it, and write one prepared index.

    Args:
        name: one of `READERS`.
        root: the download: its folder, or the file of a dataset that is one file.
        output: folder for `rows.parquet` and `manifest.json`; None writes nothing.
        missing_images: "error" refuses a download that lacks images, "drop" uses the others, counted and listed.
        num_decoded: images drawn at random that must decode.
        options: of the reader.

    Returns:
        The `Index`.

    Raises:
        FileNotFoundError: if root does not exist.
        ValueError: for an unknown name or option, or with a list of everything that is wrong with the download.
    """
    if name not in READERS:
        raise ValueError(f"dataset must be one of {sorted(READERS)}, got {name!r}; correct the name")
    if missing_images not in ("error", "drop"):
        raise ValueError(f"missing_images must be 'error' or 'drop', got {missing_images!r}; choose one")
    _check_names(name, options, _options(READERS[name]))
    if num_decoded < 0:
        raise ValueError(f"num_decoded must not be negative, got {num_decoded}; 0 decodes none")
    if output is not None and Path(output).is_file():
        raise FileExistsError(f"output must be a folder, {output} is a file; choose another")
    if not Path(root).exists():
        raise FileNotFoundError(f"root must be where {name} was downloaded to, not found: {root}; correct the path")
    problems: list[str] = []
    index = None
    try:
        index = READERS[name](Path(root), problems, **options)
    except (OSError, UnicodeError) as error:  # a file that cannot be read stands beside all else that is wrong
        problems.append(f"a file cannot be read: {error}; repair it")
    except ValueError as error:
        if not str(error).startswith("words must"):  # else it is the index that refuses what stands in a file
            raise
        problems.append(str(error))
    if index is None and not problems:
        problems.append("nothing to make an index of; compare the layout with data/*/README.md")
    if index is not None:
        index.manifest["options"] = {key: str(v) if isinstance(v, Path) else v for key, v in options.items()}
        index = index.without_missing_images(missing_images, problems)
        problems += index.decode_sample(num_decoded)
    official = name not in ("table", "folder", "image_list")
    refuse(f"{root} must be {'a complete download of' if official else 'usable as'} {name}", problems)
    assert index is not None  # else there were problems
    if output is not None:
        index.save(output)
    return index


def _official(name: str) -> Callable[..., IndexedDataset]:
    """The dataset of a reader: it takes the reader's options and those of `Index.dataset`."""
    reader = _options(READERS[name])
    views = {key: p for key, p in inspect.signature(Index.dataset).parameters.items() if key not in ("self", *reader)}

    def dataset(root: str | Path, missing_images: MissingImages = "error", **options: Any) -> IndexedDataset:
        read = {key: value for key, value in options.items() if key in reader}
        view = {key: value for key, value in options.items() if key in views}
        return prepare(name, root, missing_images=missing_images, num_decoded=0, **read).dataset(**view)

    own = list(inspect.signature(dataset).parameters.values())[:2]
    keyword = [p.replace(kind=p.KEYWORD_ONLY) for p in (*views.values(), *reader.values())]
    dataset.__signature__ = inspect.Signature([*own, *keyword])  # type: ignore[attr-defined]
    dataset.__doc__ = READERS[name].__doc__
    return dataset


def _options(reader: Reader) -> dict[str, inspect.Parameter]:
    return dict(list(inspect.signature(reader).parameters.items())[2:])


def _check_names(name: str, options: Mapping[str, Any], known: Mapping[str, inspect.Parameter]) -> None:
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise ValueError(f"dataset {name!r} takes {sorted(known)}, got {unknown} besides; correct the names")


def _prepared(
    path: str | Path,
    split: Split,
    root: str | Path | None = None,
    partition: str | Path | None = None,
    templates: tuple[str, ...] | str = DEFAULT_TEMPLATES,
    keep_unlabelled: bool = True,
    exclude_unseen_images: bool = False,
    val_fraction: float | None = None,
    seed: int = 0,
    descriptions: str | Path | None = None,
) -> IndexedDataset:
    """An index that `zsmld prepare` wrote; the arguments are those of `Index.open` and `Index.dataset`."""
    index = Index.open(path, root)
    return index.dataset(
        split, partition, templates, keep_unlabelled, exclude_unseen_images, val_fraction, seed, descriptions
    )


DATASETS: dict[str, Callable[..., Any]] = {
    **{name: _official(name) for name in READERS},
    "table": table,
    "captions": captions,
    "hugging_face": HuggingFaceDataset,
    "prepared": _prepared,
    "scenes": Scenes,
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
    _check_names(name, options, known)
    needed = [key for key, p in known.items() if p.default is inspect.Parameter.empty and key not in options]
    if needed:
        raise ValueError(f"dataset {name!r} must be given {needed}, got {sorted(options)}; add them")
    return DATASETS[name](**options)


def dense_targets(dataset: Dataset, labels: np.ndarray | None = None) -> np.ndarray:
    """Targets of a dataset as an array (M,N) int8 in {1, 0, −1}, for all words or some labels."""
    targets = dataset.targets if labels is None else dataset.targets[:, labels]
    dense = targets.toarray().astype(np.int8)
    if dataset.missing == 0:
        return dense
    stored = csr_matrix((np.ones(targets.nnz, bool), targets.indices, targets.indptr), shape=targets.shape).toarray()
    return np.where(stored, dense, np.int8(dataset.missing))
