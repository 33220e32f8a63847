"""The official lists of NUS-WIDE: tags, concepts, ground truth and splits, and BiAM's choice of their images."""

import io
import pickle
import pickletools
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from scipy.sparse import csr_matrix

from zsmld.datasets.index import Index
from zsmld.datasets.nus_wide.digits import read_column, read_ones, unreadable
from zsmld.datasets.nus_wide.places import image_paths, locate
from zsmld.datasets.partition import read_partition
from zsmld.resources import resource_path

# A list as its archive unpacks it, the archive, and where else copies have it.
_LISTS = {
    "NUS_WID_Tags/TagList1k.txt": ("NUS_WID_Tags.zip", ("TagList1k.txt",)),
    "NUS_WID_Tags/AllTags1k.txt": ("NUS_WID_Tags.zip", ("AllTags1k.txt",)),
    "ConceptsList/Concepts81.txt": ("ConceptsList.zip", ("Concepts81.txt", "NUS_WID_Tags/Concepts81.txt")),
    "Groundtruth/AllLabels": ("Groundtruth.zip", ("AllLabels",)),
    "ImageList/Imagelist.txt": ("ImageList.zip", ("Imagelist.txt",)),
    "ImageList/TrainImagelist.txt": ("ImageList.zip", ("TrainImagelist.txt",)),
    "ImageList/TestImagelist.txt": ("ImageList.zip", ("TestImagelist.txt",)),
}
_OFFICIAL = {"images": 269_648, "train": 161_789, "test": 107_859, "tags": 1_000, "concepts": 81}
# The one damaged value of Groundtruth.zip itself: file, line, what it says.
_KNOWN_DAMAGE = ("Labels_lake_Train.txt", 78_372, "-1130179")


def read_lists(
    root: Path,
    image_root: Path,
    chosen: dict[str, Path],
    problems: list[str],
    check_labels: bool,
    check_counts: bool,
) -> Index | None:
    """The index of the official lists.

    Args:
        root: folder of the lists.
        image_root: folder of the images.
        chosen: BiAM's pickled lists, which take the place of the official lists of a split, by split.
        problems: receives what is wrong.
        check_labels: compare TrainTestLabels with AllLabels.
        check_counts: expect the official numbers and names.
    """
    files = {name: locate(root, name, *others) for name, (_, others) in _LISTS.items()}
    absent = [f"{name} (of {_LISTS[name][0]})" for name, file in files.items() if file is None]
    if absent:
        problems.append(
            f"{root} must have the lists of NUS-WIDE, it lacks {', '.join(absent)}; unpack the archives there"
        )
    tag_list, tag_table, concept_list, label_folder, image_list, train_list, test_list = files.values()
    if tag_list is None or concept_list is None or image_list is None:
        return None
    num_problems = len(problems)
    names = _image_names(read_lines(image_list, problems))
    tags, concepts = _distinct(tag_list, problems), _distinct(concept_list, problems)
    seen = [tag for tag in tags if tag not in set(concepts)]
    if not (seen and concepts and names) and len(problems) == num_problems:
        problems.append(
            f"{root} must list tags that are no concepts, concepts and images, got {len(seen)}, {len(concepts)} and "
            f"{len(names)}; unpack the archives again"
        )
    if not names:
        return None

    lists = {split: file for split, file in (("train", train_list), ("test", test_list)) if file is not None} | chosen
    rows = {split: _rows_of(file, image_list, names, problems) for split, file in lists.items()}
    splits = _divide(image_list, names, rows, bool(chosen), problems)
    kept = np.flatnonzero(splits != "")
    if not len(kept):
        problems.append(f"{root} must have lists of training or test images, it has no image of either; unpack them")
        return None
    truth = _read_concepts(label_folder, len(names), concepts, problems)
    user_tags = _read_tags(tag_table if tags else None, len(names), tags, seen, problems)
    if not (seen and concepts):  # whose absence is a problem already, and the other files are looked at
        return None
    targets = _join(user_tags, truth, len(seen))[kept]
    compared: Any = "not compared"
    train_test = locate(root, "Groundtruth/TrainTestLabels", "TrainTestLabels")
    if check_labels and not chosen and train_test is not None and label_folder is not None:
        compared = _compare(train_test, concepts, truth, rows, problems)

    counts = {"images": len(names), "train": int((splits == "train").sum()), "test": int((splits == "test").sum())}
    counts |= {"tags": len(tags), "concepts": len(concepts)}
    if check_counts:
        _check_counts(root, counts, problems)
        check_names(root, seen, concepts, problems)
    paths, image_files = image_paths(image_root, names)
    ids, same_file_names = _ids(names)
    flickr_ids = pd.Series(ids).str.rpartition("_")[2]
    return Index(
        name="nus_wide",
        root=image_root,
        words=(*seen, *concepts),
        partitions={"925_81": {"seen": seen, "unseen": concepts}, "81": {"seen": concepts, "unseen": []}},
        ids=pa.array(ids, pa.string()).take(pa.array(kept)),
        paths=pa.array(paths, pa.string()).take(pa.array(kept)),
        splits=splits[kept],
        targets=targets,
        manifest={
            "layout": "biam" if chosen else "official",
            "lists": {split: file.name for split, file in lists.items()},
            "image_files": image_files,
            "policies": {
                "seen_labels": "user tags (AllTags1k.txt)",
                "unseen_labels": "annotators (Groundtruth/AllLabels)",
                "double_flickr_ids": "both rows kept",
            },
            "counts": {
                **counts,
                "seen": len(seen),
                "unseen": len(concepts),
                "double_flickr_ids": int(flickr_ids.duplicated().sum()),
                "same_file_names": same_file_names,
                "labels_per_image": labels_per_image(targets, splits[kept], len(seen)),
            },
            "concepts_that_are_no_tags": [concept for concept in concepts if concept not in set(tags)],
            "train_test_labels": compared,
        },
    )


# ----------------------------------------------------------------------------------------------------- words and rows


def read_lines(file: Path, problems: list[str]) -> list[str]:
    """Lines of a text file without blanks around them, empty ones left out; none if it cannot be read, a problem."""
    try:
        text = file.read_bytes().decode("utf-8-sig", "replace")
    except OSError as error:
        problems.append(unreadable(file, error))
        return []
    return [line.strip() for line in text.splitlines() if line.strip()]


def check_names(root: Path, seen: list[str], unseen: list[str], problems: list[str]) -> None:
    """Seen and unseen words must be the official 925 and 81, in any order."""
    expected = read_partition(resource_path("data", "nus_wide", "partition.json"))
    for side, words, official in (("seen", seen, expected[0]), ("unseen", unseen, expected[1])):
        amiss = sorted(set(words) ^ set(official))
        if amiss:
            problems.append(
                f"{root} must have the {len(official)} {side} words of NUS-WIDE, got {len(words)} with {len(amiss)} "
                f"missing or strange such as {amiss[:5]}; correct the lists, or pass check_counts=False for a subset"
            )


def labels_per_image(targets: csr_matrix, splits: np.ndarray, num_seen: int) -> dict[str, dict[str, float]]:
    """Of each split: mean labels per image on either side, and of the images that have one of the unseen words."""
    result = {}
    for split in sorted(set(splits.tolist())):
        part = targets[np.flatnonzero(splits == split)]
        rows = np.repeat(np.arange(part.shape[0]), np.diff(part.indptr))
        unseen = np.bincount(rows[part.indices >= num_seen], minlength=part.shape[0])
        result[split] = {
            "seen": round(float((part.indices < num_seen).sum() / part.shape[0]), 4),
            "unseen": round(float(unseen.mean()), 4),
            "images_with_an_unseen_word": int((unseen > 0).sum()),
            "unseen_of_those": round(float(unseen.sum() / max(1, (unseen > 0).sum())), 4),
        }
    return result


def _distinct(file: Path, problems: list[str]) -> list[str]:
    words = pd.Series(read_lines(file, problems), dtype=object)
    twice = words[words.duplicated()].tolist()
    if twice:
        problems.append(f"{file} must name each word once, it repeats {twice[:5]}; unpack it again")
    return words.drop_duplicates().tolist()


def _image_names(lines: list[str]) -> list[str]:
    r"""Class and file of images that a list names as class\file, class/file or C:\ImageData\Flickr\class\file."""
    return ["/".join(line.replace("\\", "/").split("/")[-2:]) for line in lines]


def _ids(names: list[str]) -> tuple[list[str], int]:
    """File names without ending; where two are alike, the class in front."""
    full = pd.Series(names).str.rpartition(".")[0].where(lambda s: s != "", pd.Series(names))
    ids = full.str.rpartition("/")[2]
    same = ids.duplicated(keep=False)
    ids = ids.where(~same, full)
    again = ids.duplicated()  # a line that stands in the list twice, which is a problem already
    return ids.where(~again, ids + "#" + pd.Series(np.arange(len(ids))).astype(str)).tolist(), int(same.sum())


def _rows_of(file: Path, image_list: Path, names: list[str], problems: list[str]) -> np.ndarray:
    """Rows of Imagelist.txt that a list of a split names, in its order; −1 where there is no such row."""
    if file.suffix == ".pkl":
        index, listed = pd.Index(names).str.replace("/", "_"), _pickled_names(file, problems)
    else:
        index, listed = pd.Index(names), _image_names(read_lines(file, problems))
    first = np.flatnonzero(~index.duplicated())
    if len(first) < len(index):
        twice = index[index.duplicated()]
        message = (
            f"{image_list} must name each image once, it repeats {len(twice):,} such as {twice[0]}; unpack it again"
        )
        problems += [message] if message not in problems and file.suffix != ".pkl" else []
    rows = index[first].get_indexer(pd.Index(listed, dtype=object))
    strangers = np.flatnonzero(rows < 0)
    if len(strangers):
        problems.append(
            f"{file} must name images of {image_list.name}, {len(strangers):,} of its {len(listed):,} are not, for "
            f"instance {listed[strangers[0]]}; unpack both from one archive"
        )
    return np.where(rows < 0, -1, first[rows])


def _divide(
    image_list: Path, names: list[str], rows: dict[str, np.ndarray], subset: bool, problems: list[str]
) -> np.ndarray:
    """Split of each row, "" for none."""
    splits, times = np.full(len(names), "", "<U5"), np.zeros(len(names), np.int64)
    for split, found in rows.items():
        splits[found[found >= 0]] = split
        times += np.bincount(found[found >= 0], minlength=len(names))
    for amiss, what in (
        (times > 1, "are named more than once by the lists of training and test images"),
        ((times == 0) & (len(rows) == 2) & (not subset), "are in neither of the lists of training and test images"),
    ):
        if amiss.any():
            problems.append(
                f"{image_list} must be divided by the lists of training and test images, {amiss.sum():,} of its "
                f"{len(names):,} images {what}, for instance {names[int(amiss.argmax())]}; unpack all three again"
            )
    return splits


class _PlainUnpickler(pickle.Unpickler):
    """Texts, numbers, lists and dicts only: a pickle can otherwise run any program."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def _pickled_names(file: Path, problems: list[str]) -> list[str]:
    """BiAM's {"img_names": ["actor_0001_2124494179.jpg", …]}; a path before the class is cut off after Flickr."""
    try:
        data = file.read_bytes()
        # A damaged byte may ask for a table of billions of entries, which the unpickler would make.
        if any("PUT" in code.name and int(place or 0) > len(data) for code, place, _ in pickletools.genops(data)):
            raise ValueError("it keeps more texts than it has bytes")
        content = _PlainUnpickler(io.BytesIO(data)).load()
        names = content["img_names"] if isinstance(content, dict) else content
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ValueError("it holds something else")
    except Exception as error:  # there is no kind of error that damaged bytes cannot raise
        problems.append(f'{file} must be a pickle of {{"img_names": [texts]}}, got {error!r}; copy it again')
        return []
    return [name.replace("\\", "/").replace("/", "_").rpartition("Flickr_")[2] for name in names]


# -------------------------------------------------------------------------------------------------------------- labels


def _read_tags(
    file: Path | None, num_images: int, tags: list[str], seen: list[str], problems: list[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of the seen tags that images have."""
    ones = None if file is None else read_ones(file, len(tags), problems)
    if ones is None:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    rows, columns, num_lines = ones
    if num_lines != num_images:
        problems.append(
            f"{file} must have a line for each of the {num_images:,} images of Imagelist.txt, it has {num_lines:,}; "
            f"unpack it again"
        )
    place = {word: label for label, word in enumerate(seen)}
    labels = np.array([place.get(tag, -1) for tag in tags])[columns]
    held = (labels >= 0) & (rows < num_images)
    return rows[held].astype(np.int64), labels[held]


def _read_concepts(folder: Path | None, num_images: int, concepts: list[str], problems: list[str]) -> np.ndarray:
    """(M,N) int8 of the annotators; a column that cannot be read is all 0, and a problem."""
    truth = np.zeros((num_images, len(concepts)), np.int8, order="F")
    if folder is None:
        return truth
    absent = []
    for label, concept in enumerate(concepts):
        file = folder / f"Labels_{concept}.txt"
        if not file.exists():
            absent.append(file.name)
            continue
        try:
            values, damaged = read_column(file)
        except OSError as error:
            problems.append(unreadable(file, error))
            continue
        if damaged:
            line = next(iter(damaged))
            problems.append(
                f"{file} must have 0 or 1 in each line, {len(damaged):,} have not, line {line:,} is "
                f"{damaged[line]!r}; unpack it again"
            )
        elif len(values) != num_images:
            problems.append(
                f"{file} must have a line for each of the {num_images:,} images of Imagelist.txt, it has "
                f"{len(values):,}; unpack it again"
            )
        else:
            truth[:, label] = values
    if absent:
        problems.append(
            f"{folder} must have a file for each of the {len(concepts)} concepts, it lacks {len(absent)}: "
            f"{', '.join(absent)}; unpack Groundtruth.zip again"
        )
    return truth


def _join(tags: tuple[np.ndarray, np.ndarray], truth: np.ndarray, num_seen: int) -> csr_matrix:
    labels, rows = np.nonzero(truth.T)
    rows, labels = np.concatenate([tags[0], rows]), np.concatenate([tags[1], labels + num_seen])
    shape = (truth.shape[0], num_seen + truth.shape[1])
    targets = csr_matrix((np.ones(len(rows), np.int8), (rows, labels)), shape, dtype=np.int8)
    targets.sort_indices()
    return targets


def _compare(
    folder: Path, concepts: list[str], truth: np.ndarray, rows: dict[str, np.ndarray], problems: list[str]
) -> dict[str, Any]:
    """TrainTestLabels against AllLabels, image by image; what is known to be damaged is noted only."""
    differ: dict[str, int] = {}
    amiss: list[str] = []
    noted: list[str] = []
    for label, concept in enumerate(concepts):
        for split, found in rows.items():
            file = folder / f"Labels_{concept}_{split.title()}.txt"
            try:
                values, damaged = read_column(file) if file.exists() else (np.empty(0, np.int8), {})
            except OSError as error:
                amiss.append(f"{file.name} ({error.strerror or error})")
                continue
            if len(values) != len(found):
                amiss.append(f"{file.name} ({len(values):,} of {len(found):,} lines)")
                continue
            for line, text in damaged.items():
                (noted if (file.name, line, text) == _KNOWN_DAMAGE else amiss).append(
                    f"{file.name} line {line}: {text}"
                )
            compared = (values >= 0) & (found >= 0)
            wrong = int((values[compared] != truth[found[compared], label]).sum())
            if wrong:
                differ[concept] = differ.get(concept, 0) + wrong
    if amiss:
        problems.append(
            f"{folder} must have a line 0 or 1 for each image of each list and concept, it has not in {len(amiss):,} "
            f"places: {', '.join(amiss[:10])}; unpack Groundtruth.zip again, or pass check_labels=False"
        )
    if differ:
        shown = ", ".join(f"{concept} {count:,}" for concept, count in differ.items())
        problems.append(
            f"{folder} must agree with AllLabels on every image, labels differ for {len(differ)} concepts: {shown}; "
            f"unpack Groundtruth.zip and ImageList.zip again, or pass check_labels=False to use AllLabels as it is"
        )
    return {"differing_labels": differ, "known_damage": noted}


def _check_counts(root: Path, counts: dict[str, int], problems: list[str]) -> None:
    wrong = [f"{counts[key]:,} {key} of {number:,}" for key, number in _OFFICIAL.items() if counts[key] != number]
    if wrong:
        problems.append(
            f"{root} must have NUS-WIDE's {', '.join(f'{n:,} {k}' for k, n in _OFFICIAL.items())}, got "
            f"{', '.join(wrong)}; complete the lists, or pass check_counts=False for a subset"
        )
