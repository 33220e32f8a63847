"""A dataset of Hugging Face `datasets`: in memory, saved to a folder, or on the Hub."""

import importlib
import importlib.util
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from zsmld.datasets.folder import SPLIT_NAMES, distinct_words
from zsmld.datasets.index import Split
from zsmld.datasets.partition import read_partition
from zsmld.datasets.rows import apply_policies, check_split, guess_separator, refuse, share_of_training
from zsmld.datasets.table import indicator, split_words
from zsmld.images import load_image
from zsmld.vocabulary import DEFAULT_TEMPLATES, Vocabulary, read_descriptions, wrong_words

_IMAGE_COLUMNS = ("image", "img", "picture", "photo")
_WORD_COLUMNS = ("labels", "label", "tags", "words", "keywords", "classes", "categories")


class HuggingFaceDataset:
    """Images with words from a dataset of the library `datasets` (`pip install datasets`).

    Training images of a zero-shot partition are those with a seen word, as everywhere.

    Args:
        path: a `datasets.Dataset` or `DatasetDict`, a folder that `save_to_disk` wrote, or a dataset's name on the Hub.
        split: "train", "val", "test", or "all" images; their names there may be validation, valid, dev, … A dataset
            without splits has "all" alone, or the split it says it is.
        config: configuration of a dataset on the Hub.
        image_column: of type `datasets.Image`, or of paths; default the only one of that type.
        words_column: ClassLabel, a list of ClassLabel, a text, or a list of texts; default the one of a usual name
            (labels, label, tags, …).
        separator: between the words of a text; default the one of | ; , that occurs, if only one does.
        words: the vocabulary, in order; default the names of the ClassLabel, or every word that occurs, sorted.
        partition: JSON file {"seen": […], "unseen": […]}; a partition inside a larger file is named "FILE#KEY".
        templates: prompt sentences of the vocabulary, or the name of a set of them.
        descriptions: a JSON file of sentences about some of the words, see `zsmld.vocabulary.read_descriptions`.
        keep_unlabelled: keep images with none of the words.
        exclude_unseen_images: drop training images that show an unseen word.
        val_fraction: share of the training images that is "val", in [0,1), drawn with `seed`; default the dataset's own
            validation images, if it has any.

    Attributes:
        targets: (M,N) CSR of int8; a missing entry means absent (`missing` = 0).
        ids: "SPLIT/ROW", with the split's own name and the row in it, from 0.
        splits: the splits that the dataset has, or that `val_fraction` makes.
        manifest: policies, what each took away, and `unknown_words` outside the vocabulary.

    Raises:
        ValueError: if `datasets` is not installed, a column cannot be found, or the split is not there or empty.

    Example:
        >>> HuggingFaceDataset(3)
        Traceback (most recent call last):
        TypeError: path must be a datasets.Dataset, a DatasetDict, a folder or a Hub name, got int; pass one of them
    """

    missing = 0

    def __init__(
        self,
        path: Any,
        split: Split = "all",
        config: str | None = None,
        image_column: str | None = None,
        words_column: str | None = None,
        separator: str | None = None,
        words: list[str] | None = None,
        partition: str | Path | None = None,
        templates: tuple[str, ...] | str = DEFAULT_TEMPLATES,
        keep_unlabelled: bool = True,
        exclude_unseen_images: bool = False,
        val_fraction: float | None = None,
        seed: int = 0,
        descriptions: str | Path | None = None,
    ) -> None:
        described = None if descriptions is None else read_descriptions(descriptions)
        check_split(split, val_fraction)
        if partition is not None and words is not None:
            raise ValueError(
                "words must be left out beside partition, got both; the partition's words are the vocabulary"
            )
        parts = _parts(path, config)
        self.name = Path(path).name if isinstance(path, (str, Path)) else "hugging_face"
        self.split = split
        made = {"val"} if val_fraction else set()
        self.splits = tuple(sorted({SPLIT_NAMES[n.lower()] for n in parts if n.lower() in SPLIT_NAMES} | made))
        divided = val_fraction is not None and split in ("train", "val")  # both are shares of the training images
        wanted = "train" if divided else split
        chosen = {name: part for name, part in parts.items() if wanted in ("all", SPLIT_NAMES.get(name.lower()))}
        if not chosen:
            raise ValueError(
                f"split must be one that {self.name} has, got {split!r}; it has {list(parts)}: choose one of these or "
                f"'all', or divide it with train_test_split"
            )
        features = {name: str(part.features) for name, part in chosen.items()}
        if len(set(features.values())) > 1:
            raise ValueError(f"splits must have the same columns, got {features}; pass one split")
        first = next(iter(chosen.values()))
        self._image_column, words_column = _columns(first.features, image_column, words_column)
        read = [_words(part, words_column, separator) for part in chosen.values()]
        lengths = [len(part) for part in chosen.values()]
        rows = np.concatenate(
            [row + offset for (row, _, _), offset in zip(read, np.cumsum([0, *lengths]), strict=False)]
        )
        word = pd.concat([words_of for _, words_of, _ in read], ignore_index=True)
        names = read[0][2] or tuple(sorted(word.unique()))
        if partition is not None:
            seen, unseen = read_partition(partition)
            self.vocabulary = Vocabulary([*seen, *unseen], seen, templates, described)
        else:
            if words is None:
                wrong = [f"words {what}" for what in wrong_words(names).values()]
                refuse(f"{self.name} must have usable words in column {words_column!r}", wrong)
            self.vocabulary = Vocabulary(names if words is None else words, None, templates, described)
        label = pd.Index(self.vocabulary.words).get_indexer(word)
        targets = indicator(rows[label >= 0], label[label >= 0], (sum(lengths), len(self.vocabulary)))
        unknown = word[label < 0].value_counts()
        if not targets.nnz:
            raise ValueError(
                f"{self.name} must have words of its vocabulary, got none of {list(self.vocabulary.words[:3])}… in "
                f"column {words_column!r}; check spelling and case, for instance {list(unknown.index[:3])}"
            )
        if len(unknown) and partition is None:
            some = {str(key): int(value) for key, value in unknown.head(20).items()}
            warnings.warn(f"{self.name}: words outside the vocabulary are left out: {some}", stacklevel=2)
        kept = np.ones(sum(lengths), bool)
        if val_fraction is not None and divided:
            kept = share_of_training(split, sum(lengths), val_fraction, seed)
        is_seen = self.vocabulary.is_seen
        counts = apply_policies(kept, targets, is_seen, split, keep_unlabelled, exclude_unseen_images)
        if not kept.any():
            raise ValueError(
                f"split {split!r} of {self.name} must have images under its policies, got none: {counts}; loosen them"
            )
        self._parts, self._starts = list(chosen.values()), np.cumsum([0, *lengths])
        self._rows = np.flatnonzero(kept)
        self.targets = targets[self._rows]
        ids = [f"{name}/{row}" for name, part in chosen.items() for row in range(len(part))]
        self.ids = pa.array(ids, pa.string()).take(pa.array(self._rows))
        self.manifest = {
            "policies": {
                "partition": None if partition is None else str(partition),
                "keep_unlabelled": keep_unlabelled,
                "exclude_unseen_images": exclude_unseen_images,
                "val_fraction": val_fraction,
            },
            "images": counts,
            "counts": {
                "unknown_words": len(unknown),
                "words_without_images": int((self.targets.getnnz(0) == 0).sum()),
            },
            "unknown_words": {str(key): int(value) for key, value in unknown.items()},
        }

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """{"image": PIL RGB, "targets": (N,) int8, "id": str}; an unreadable image is an error that names it."""
        image_id, row = self.ids[int(index)].as_py(), self._rows[int(index)]
        part = int(np.searchsorted(self._starts, row, side="right")) - 1
        try:
            image = self._parts[part][int(row - self._starts[part])][self._image_column]
        except (OSError, ValueError) as error:
            raise ValueError(f"image must be readable, cannot decode {image_id} of {self.name}: {error}") from error
        if image is None:
            raise ValueError(f"image must be readable, {image_id} of {self.name} has none; remove the row")
        return {"image": load_image(image), "targets": self.targets[int(index)].toarray()[0], "id": image_id}

    def __repr__(self) -> str:
        return (
            f"HuggingFaceDataset({self.name!r}, split={self.split!r}, num_images={len(self)}, "
            f"seen={len(self.vocabulary.seen)}, unseen={len(self.vocabulary.unseen)})"
        )


def _parts(path: Any, config: str | None) -> dict[str, Any]:
    """The splits of a dataset by their own names; "all" for the only one of a dataset that does not say."""
    is_name = isinstance(path, (str, Path))
    if not is_name and not (hasattr(path, "column_names") and hasattr(path, "save_to_disk")):
        raise TypeError(
            f"path must be a datasets.Dataset, a DatasetDict, a folder or a Hub name, got {type(path).__name__}; pass "
            f"one of them"
        )
    if importlib.util.find_spec("datasets") is None:
        raise ValueError(
            "dataset hugging_face must have the library datasets, it is not installed; pip install datasets"
        )
    datasets = importlib.import_module("datasets")  # heavy, and no dependency of zsmld
    if is_name and Path(path).is_dir():
        saved = any((Path(path) / name).is_file() for name in ("dataset_dict.json", "state.json"))
        path = datasets.load_from_disk(str(path)) if saved else datasets.load_dataset(str(path), config)
    elif is_name:
        try:
            path = datasets.load_dataset(str(path), config)
        except OSError as error:  # no network, or no such dataset
            raise FileNotFoundError(
                f"path must be a dataset on the Hub or a folder here, {path} is no folder and the Hub gave none "
                f"({type(error).__name__}: {' '.join(str(error).split())[:160]}); correct the name, connect to the "
                f"network, or run `hf download --repo-type dataset {path} --local-dir FOLDER` where there is one and "
                f"give that folder"
            ) from error
    if isinstance(path, dict):  # a DatasetDict
        return dict(path)
    return {str(path.split or "all"): path}


def _columns(features: Any, image_column: str | None, words_column: str | None) -> tuple[str, str]:
    """Names of the image's and the words' column: what is given, else the only one of its type or usual name."""
    for argument, given in (("image_column", image_column), ("words_column", words_column)):
        if given is not None and given not in features:
            raise ValueError(f"{argument} must be a column, got {given!r}; it has {list(features)}")
    images = [name for name, feature in features.items() if type(feature).__name__ == "Image"]
    images = images or [name for name in features if name.lower() in _IMAGE_COLUMNS]
    labels = [name for name in features if name.lower() in _WORD_COLUMNS and name not in images]
    for argument, given, found in (("image_column", image_column, images), ("words_column", words_column, labels)):
        if given is None and len(found) != 1:
            raise ValueError(
                f"{argument} must be named, there are {len(found)} columns of a usual name or type among "
                f"{list(features)}; pass {argument}="
            )
    return image_column or images[0], words_column or labels[0]


def _words(part: Any, column: str, separator: str | None) -> tuple[np.ndarray, pd.Series, tuple[str, ...]]:
    """Row and word of each label of a split, and the names of its ClassLabel, if it has one. No image is decoded."""
    feature = part.features[column]
    inner = getattr(feature, "feature", feature[0] if isinstance(feature, list) else feature)
    values = part.select_columns([column]).with_format("arrow")[:][column]
    array = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
    names = getattr(inner, "names", None)
    if names is not None:
        distinct, _ = distinct_words(names, [str(i) for i in range(len(names))])
        rows, labels = _flat(array)
        present = labels >= 0  # −1 and null: no label
        return rows[present], pd.Series(np.array(distinct, object)[labels[present]], dtype=object), tuple(distinct)
    if not (pa.types.is_string(_inner(array.type)) or pa.types.is_large_string(_inner(array.type))):
        raise ValueError(
            f"words_column must be ClassLabel, text, or a list of either, column {column!r} is {feature}; pass another"
        )
    cells = pd.Series(array.to_pylist(), dtype=object)
    problems: list[str] = []
    used = guess_separator(cells, separator, (), f"column {column!r}", problems)
    if problems:
        raise ValueError(problems[0])
    rows, words = split_words(cells, used, f"column {column!r}")
    return rows, words, ()


def _inner(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_list(kind) or pa.types.is_large_list(kind) else kind


def _flat(array: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """Row and value of each element of an array of integers, or of lists of them; null is −1."""
    if pa.types.is_list(array.type) or pa.types.is_large_list(array.type):
        lengths = array.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
        return np.repeat(np.arange(len(array)), lengths), _integers(array.flatten())
    return np.arange(len(array)), _integers(array)


def _integers(array: Iterable[Any]) -> np.ndarray:
    return pa.array(array).cast(pa.int64()).fill_null(-1).to_numpy(zero_copy_only=False)
