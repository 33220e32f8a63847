"""NUS-WIDE as the ML-Decoder repository passes it on: one csv and the names of the unseen words."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from scipy.sparse import csr_matrix

from zsmld.datasets.index import Index, Partition
from zsmld.datasets.nus_wide.official import check_names, labels_per_image
from zsmld.datasets.nus_wide.places import count_files, locate
from zsmld.datasets.partition import read_partition
from zsmld.resources import resource_path

_JSON = "benchmark_81_v0.json"
_SPLITS = {"train": "train", "val": "test", "test": "test"}
_FOLDERS = ("", "images", "Flickr")


def read_csv(root: Path, image_root: Path, problems: list[str], check_counts: bool) -> Index | None:
    """The index of data.csv and benchmark_81_v0.json.

    Args:
        root: folder of both.
        image_root: folder of the images.
        problems: receives what is wrong.
        check_counts: expect the official names of words.
    """
    file, words_file = locate(root, "data.csv"), locate(root, _JSON)
    absent = [name for name, found in (("data.csv", file), (_JSON, words_file)) if found is None]
    if absent:
        problems.append(
            f"{root} must have the two files of ML-Decoder's repository, it lacks {' and '.join(absent)}; download them"
        )
    if file is None:
        return None
    try:
        frame = pd.read_csv(file, dtype=str, keep_default_na=False, encoding="utf-8-sig", index_col=False)
    except (OSError, ValueError) as error:  # pandas' own kinds are ValueErrors
        problems.append(f"{file} must be a csv, it cannot be read: {error}; download it again")
        return None
    if frame.shape[1] != 3 or frame.empty:
        problems.append(
            f"{file} must have the columns filepath, label and split_name and at least one row, got "
            f"{list(frame.columns)} and {len(frame)} rows; download it again"
        )
        return None
    file_column, word_column, split_column = (frame.iloc[:, i] for i in range(3))
    unknown = sorted(set(split_column) - set(_SPLITS))
    if unknown:
        problems.append(f"{file} must divide its images into train and val, got {unknown[:5]} besides; correct them")
    names = file_column.str.replace("\\", "/").str.strip()
    ids = names.str.rpartition("/")[2].str.replace(r"\.[A-Za-z]+$", "", regex=True)
    ids = ids.where(~ids.duplicated(keep=False), names)
    repeated = ids.duplicated()
    if repeated.any():
        problems.append(
            f"{file} must name each image once, it repeats {int(repeated.sum()):,} such as {names[repeated].iloc[0]}; "
            f"merge their words"
        )

    rows, codes, found = _words_of(word_column)
    seen, unseen, neither = _sides(found, words_file, problems)
    if not seen or not unseen:
        problems.append(f"{file} must have seen and unseen words, got {len(seen)} and {len(unseen)}; see {_JSON}")
        return None
    if check_counts:
        check_names(root, seen, unseen, problems)
    place = {word: label for label, word in enumerate([*seen, *unseen])}
    labels = np.array([place.get(word, -1) for word in found])[codes] if len(codes) else codes
    targets = csr_matrix(
        (np.ones(int((labels >= 0).sum()), np.int8), (rows[labels >= 0], labels[labels >= 0])),
        (len(frame), len(place)),
        dtype=np.int8,
    )
    targets.sum_duplicates()
    targets.data[:] = 1  # a word twice in one cell is still one word

    kept = np.flatnonzero((~repeated & split_column.isin(list(_SPLITS))).to_numpy())
    if not len(kept):
        return None
    splits = np.array(split_column.map(_SPLITS).fillna("").tolist())[kept]
    paths, image_files = _image_paths(image_root, names)
    targets = targets[kept]
    per_image = labels_per_image(targets, splits, len(seen))
    partitions: dict[str, Partition] = {"925_81": {"seen": seen, "unseen": unseen}}
    if per_image.get("train", {}).get("images_with_an_unseen_word"):
        partitions["81"] = {"seen": unseen, "unseen": []}
    return Index(
        name="nus_wide",
        root=image_root,
        words=tuple(place),
        partitions=partitions,
        ids=pa.array(ids.iloc[kept].tolist(), pa.string()),
        paths=pa.array(paths, pa.string()).take(pa.array(kept)),
        splits=splits,
        targets=targets,
        manifest={
            "layout": "ml_decoder",
            "lists": {"train": f"{file.name}, train", "test": f"{file.name}, val"},
            "image_files": image_files,
            "policies": {"labels": "as the csv has them, tags and concepts alike", "test": "the csv's val images"},
            "counts": {
                "images": len(kept),
                "train": int((splits == "train").sum()),
                "test": int((splits == "test").sum()),
                "seen": len(seen),
                "unseen": len(unseen),
                "labels_per_image": per_image,
            },
            "unseen_words_without_images": [word for word in unseen if word not in set(found)],
            "words_on_neither_side": neither,
        },
    )


def _words_of(cells: pd.Series) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Words of cells such as "[sky, clouds]" or "['sky', 'clouds']": row and code of each, and the words by code."""
    inner = pc.utf8_trim(pa.array(cells, pa.string()), characters="[] \t")
    lists = pc.split_pattern(inner, ",")
    words = pc.utf8_trim(lists.flatten(), characters=" \t'\"").dictionary_encode()
    rows = np.repeat(np.arange(len(cells)), pc.list_value_length(lists).to_numpy())
    codes = words.indices.to_numpy()
    named = [str(word) for word in words.dictionary.to_pylist()]
    held = codes != named.index("") if "" in named else np.ones(len(codes), bool)  # the empty cell, "[]"
    return rows[held], codes[held], named


def _sides(found: list[str], file: Path | None, problems: list[str]) -> tuple[list[str], list[str], list[str]]:
    """Seen words, unseen words, and those of the csv on neither side."""
    try:
        content = {} if file is None else json.loads(file.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:  # the last: lists in lists without end
        problems.append(f"{file} must be JSON, it is damaged: {error}; download it again")
        content = {}
    sides: dict[str, list[str]] = {}
    for key, needed in (("test class", True), ("train class", False)):
        words = content.get(key) if isinstance(content, dict) else None
        if isinstance(words, list) and all(isinstance(word, str) and word.strip() for word in words):
            sides[key] = list(dict.fromkeys(word.strip() for word in words))
        elif file is not None and (needed or (isinstance(content, dict) and key in content)):
            problems.append(f'{file} must be {{"{key}": [words]}}, it has no such list; download it again')
    unseen = sides.get("test class", [])
    others = sorted(set(found) - set(unseen) - {""})
    trained = set(sides.get("train class", others))
    seen, neither = [w for w in others if w in trained], [w for w in others if w not in trained]
    official, _ = read_partition(resource_path("data", "nus_wide", "partition.json"))
    if set(seen) <= set(official):
        seen = [word for word in official if word in set(seen)]
    return seen, unseen, neither


def _image_paths(root: Path, names: pd.Series) -> tuple[list[str], dict[str, object]]:
    """Paths relative to a folder: the csv's own or their file names alone, below the folder where most are."""
    best: tuple[int, list[str], str, str] = (0, names.tolist(), "", "as in data.csv")
    for layout, files in (("as in data.csv", names), ("file names of data.csv", names.str.rpartition("/")[2])):
        for folder in _FOLDERS:
            paths = [f"{folder}/{name}" if folder else name for name in files]
            found = count_files(root, paths)
            if found > best[0]:
                best = found, paths, folder, layout
    found, paths, folder, layout = best
    return paths, {"folder": folder or ".", "layout": layout, "listed": len(names), "found": found}
