"""Open Images, image-level labels that people verified: present, absent, or not asked, which is unknown."""

import os
import pickletools
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pv
from scipy.sparse import csr_matrix, vstack

from zsmld.datasets.folder import distinct_words, read_lines
from zsmld.datasets.index import Index, Partition

_SPLITS = {"train": "train", "val": "validation", "test": "test"}
# Rows of version 4; later versions have more. Every image of validation and test has labels, of train not every one.
_ROWS = {"train": 27_894_289, "val": 551_390, "test": 1_667_399}
_IMAGES = {"val": 41_620, "test": 125_436}
_NUM_SEEN, _NUM_UNSEEN, _NUM_CANDIDATES = 7186, 400, 2594
_PREFIXES = ("", "oidv6-", "oidv7-")


def read_open_images(
    root: Path,
    problems: list[str],
    annotations: str | Path | None = None,
    images: str | Path | None = None,
    boxable: bool = False,
    absent: Literal["auto", "zero", "minus_one"] = "auto",
    check_counts: bool = True,
) -> Index | None:
    """Open Images V4 to V7, human-verified image-level labels.

    train/ validation/ test/                          <ImageID>.jpg (also images/train/…, and the train_0/ … train_f/
                                                      of the official archives)
    {train,validation,test}-annotations-human-imagelabels.csv     ImageID,Source,LabelName,Confidence
    class-descriptions.csv                            LabelName,DisplayName
    classes-trainable.txt, top_400_unseen.csv, unseen_labels.pkl  for the partition 7186_400

    The CSV files say 1 for verified present and 0 for verified absent, and have no row for what nobody verified. In
    memory these are 1, 0 and −1: a missing entry is unknown, never negative. Files may write 1, −1 and 0 instead, as
    published zero-shot code does in its own tables: `absent` says which, for all files together.

    A split is read if its labels are there. Images without a row have no known label: they are left out, and counted.
    Where raters disagree about a label of an image, it is unknown, and counted.

    Args:
        root: folder of the download.
        problems: receives everything that is wrong.
        annotations: folder of the CSV files and lists; default root, annotations/, metadata/, labels/, 2018_04/ or the
            split's folder, whichever holds them. Where two versions of a file are there, it must be given.
        images: folder that holds the split folders; default root, or images/ in it.
        boxable: read `…-human-imagelabels-boxable.csv` and `class-descriptions-boxable.csv`, of the 600 classes that
            have boxes, instead.
        absent: what the files write for verified absent: "zero", as the official ones, or "minus_one", where 0 is
            unknown. "auto" takes "minus_one" if any file has a −1, and refuses files that cannot be of one kind: one
            with −1 beside one with 0 and no −1. The manifest says which it was.
        check_counts: report a download with fewer rows than version 4 has, or other than 41,620 validation and 125,436
            test images. False for a subset.

    Returns:
        An `Index` whose words are display names, in the order of class-descriptions.csv: every class that occurs or is
        in a partition. Of classes with one name, the later are `name (MID)`. Partitions: "7186_400" where its lists
        are there (classes-trainable.txt of version 4; unseen_400.txt with one MID a line, or top_400_unseen.csv with
        positions in unseen_labels.pkl, which is searched for texts, and never executed), and "all".

    Source: storage.googleapis.com/openimages/web (download and facts of V4 to V7); Huynh and Elhamifar, "A Shared
        Multi-Attention Framework for Multi-Label Zero-Shot Learning" (CVPR 2020), code hbdat/cvpr20_LESA; the lists are
        in akshitac8/BiAM, datasets/OpenImages/2018_04.
    """
    found = len(problems)
    if not root.is_dir():
        problems.append(f"root must be the folder of the download, got the file {root}; pass its folder")
        return None
    places = _places(root, annotations, problems)
    suffix = "-boxable" if boxable else ""
    names = _read_descriptions(places, suffix, problems)
    splits = {}
    for split, official in _SPLITS.items():
        file = f"{official}-annotations-human-imagelabels{suffix}.csv"
        path = _find(places, [f"{prefix}{file}" for prefix in _PREFIXES], problems)
        folder = _image_folder(root, images, official)
        if path is not None:
            read = _read_labels(path, problems)
            if read is not None and not read.ids:
                problems.append(f"{path.name} must have rows, got none; download it again")
            elif read is not None:
                splits[split] = (read, folder or official)
        elif folder is not None:
            problems.append(f"{file} must be there for the images of {folder}, it is not in {places[0]}; download it")
    if not splits and not any("imagelabels" in problem for problem in problems[found:]):
        problems.append(
            f"{root} must have train-, validation- or test-annotations-human-imagelabels{suffix}.csv, it has none; "
            f"download them, or pass annotations="
        )
    if not names or not splits:
        return None
    absent = _convention({split: read for split, (read, _) in splits.items()}, absent, problems)
    if check_counts and not boxable:
        _check_counts({split: read for split, (read, _) in splits.items()}, problems)
    lists = _read_partition(places, problems)

    # Every class that occurs or is in a partition, in the order of the descriptions; then those without description.
    wanted = {mid for read, _ in splits.values() for mid in read.mids}.union(*lists.values())
    undescribed = sorted(wanted - set(names))
    if undescribed and check_counts:
        problems.append(
            f"class-descriptions{suffix}.csv must name every class, {len(undescribed)} labels have no name, such as "
            f"{undescribed[:3]}; use the one of the labels' version"
        )
    every, num_renamed = distinct_words([*names.values(), *undescribed], [*names, *undescribed])
    word_of = dict(zip([*names, *undescribed], every, strict=True))
    mids = [mid for mid in word_of if mid in wanted]
    words = [word_of[mid] for mid in mids]
    column = {mid: label for label, mid in enumerate(mids)}
    partitions: dict[str, Partition] = {}
    if lists:
        partitions["7186_400"] = {side: [word_of[mid] for mid in listed] for side, listed in lists.items()}
    partitions["all"] = {"seen": words, "unseen": []}

    ids, paths, parts = [], [], []
    counts: dict[str, Any] = {"classes_renamed_as_others_have_their_name": num_renamed, "undescribed": len(undescribed)}
    for split, (read, folder) in splits.items():
        targets, counted = _targets(read, np.array([column[mid] for mid in read.mids]), len(mids))
        ids.append(read.ids)
        paths.append(_paths(root, folder, read.ids))
        parts.append(targets)
        counts[split] = counted | {"images_without_labels": _num_unlabelled(root / folder, read.ids)}
    every_id = pa.concat_arrays(ids)
    if len(pc.unique(every_id)) < len(every_id):
        repeated = pc.value_counts(every_id)
        repeated = repeated.filter(pc.greater(repeated.field("counts"), 1)).field("values")
        problems.append(f"splits must have no image in common, {len(repeated):,} are in two, such as {repeated[0]}")
        return None
    return Index(
        name="open_images",
        root=root,
        words=tuple(words),
        partitions=partitions,
        ids=every_id,
        paths=pa.concat_arrays(paths),
        splits=np.repeat(np.array(list(splits), "<U5"), [len(one) for one in ids]),
        targets=vstack(parts, format="csr", dtype=np.int8),
        missing=-1,
        manifest={
            "policies": {
                "absent": absent,
                "unverified": "unknown",
                "raters_disagree": "unknown",
                "images_without_labels": "left out",
                "version": "4" if all(len(read.rows) == _ROWS[s] for s, (read, _) in splits.items()) else "not 4",
            },
            "counts": counts,
        },
    )


@dataclass
class _Labels:
    """A label file: distinct ids and classes, and (row, class, value) of each of its lines, value 1, 0 or −1.

    `_convention` turns values as the file has them into 1 present, 0 absent, −1 unknown.
    """

    ids: pa.StringArray
    mids: list[str]
    rows: np.ndarray
    classes: np.ndarray
    values: np.ndarray = field(repr=False)


def _places(root: Path, annotations: str | Path | None, problems: list[str]) -> list[Path]:
    """Folders that may hold CSV files. Not every folder below root: one has nine million images."""
    if annotations is not None:
        place = root / annotations
        if not place.is_dir():
            problems.append(f"annotations must be an existing folder, not found: {place}; correct the path")
        return [place, *(place / official for official in _SPLITS.values())]
    tops = [root, *(root / name for name in ("annotations", "metadata", "labels", "2018_04"))]
    return [*tops, *(top / official for top in tops for official in _SPLITS.values())]


def _find(places: Sequence[Path], names: Sequence[str], problems: list[str]) -> Path | None:
    found = [place / name for place in places for name in names if (place / name).is_file()]
    if len(found) > 1:
        problems.append(
            f"{names[0]} must be there once, got {[str(path) for path in found]}; pass annotations= or move the others"
        )
    return found[0] if found else None


def _image_folder(root: Path, images: str | Path | None, official: str) -> str | None:
    """Folder of a split's images, relative to root; "train_*" for the sixteen of the official archives."""
    for top in [Path(images)] if images is not None else [Path(), Path("images")]:
        for name in (official, "val") if official == "validation" else (official,):
            if (root / top / name / "data").is_dir():
                return (top / name / "data").as_posix()
            if (root / top / name).is_dir():
                return (top / name).as_posix()
        if any((root / top / f"{official}_{digit:x}").is_dir() for digit in range(16)):
            return (top / f"{official}_*").as_posix()
    return None


def _paths(root: Path, folder: str, ids: pa.StringArray) -> pa.StringArray:
    top = "" if folder == "." else f"{folder}/"
    if not folder.endswith("_*"):
        return pc.binary_join_element_wise(pa.scalar(top), ids, pa.scalar(".jpg"), "")
    first = pc.utf8_slice_codeunits(ids, 0, 1)  # train_a/ has the ids that start with a
    return pc.binary_join_element_wise(pa.scalar(folder[:-1]), first, pa.scalar("/"), ids, pa.scalar(".jpg"), "")


def _num_unlabelled(folder: Path, ids: pa.StringArray) -> int:
    """Images on disk without a row in the label file."""
    folders = list(folder.parent.glob(folder.name)) if folder.name.endswith("_*") else [folder]
    stems = [name[:-4] for one in folders if one.is_dir() for name in os.listdir(one) if name.endswith(".jpg")]
    return int(pc.sum(pc.invert(pc.is_in(pa.array(stems, pa.string()), value_set=ids))).as_py() or 0)


def _read_descriptions(places: Sequence[Path], suffix: str, problems: list[str]) -> dict[str, str]:
    """{MID: display name} in the file's order; version 6 has a header, those before have none."""
    file = f"class-descriptions{suffix}.csv"
    path = _find(places, [f"{prefix}{file}" for prefix in _PREFIXES], problems)
    if path is None:
        problems.append(f"{file} must be there for the names of the classes, it is not in {places[0]}; download it")
        return {}
    read = pv.ReadOptions(column_names=["mid", "name"])
    try:
        table = pv.read_csv(
            path, read, convert_options=pv.ConvertOptions(column_types=dict.fromkeys(["mid", "name"], pa.string()))
        )
    except pa.ArrowInvalid as error:
        problems.append(
            f"{path} must have two columns, LabelName and DisplayName, it has not: {error}; download it again"
        )
        return {}
    names = dict(zip(table["mid"].to_pylist(), table["name"].to_pylist(), strict=True))
    names.pop("LabelName", None)
    if not any(names):
        problems.append(
            f"{path} must have a class on each line, LabelName and DisplayName, got none; download it again"
        )
    return {mid: (name or "").strip() or mid for mid, name in names.items() if mid}


def _read_labels(path: Path, problems: list[str]) -> _Labels | None:
    """A label file. Ids and classes are dictionary-encoded as they are read: 58 million rows fit into memory."""
    encoded = pa.dictionary(pa.int32(), pa.string())
    options = pv.ConvertOptions(
        column_types={"ImageID": encoded, "LabelName": encoded, "Confidence": pa.float32()},
        include_columns=["ImageID", "LabelName", "Confidence"],
    )
    try:
        table = pv.read_csv(path, pv.ReadOptions(block_size=1 << 24), convert_options=options).unify_dictionaries()
    except (pa.ArrowInvalid, pa.ArrowKeyError) as error:
        problems.append(
            f"{path} must have the columns ImageID,Source,LabelName,Confidence, and whole lines, it has not: {error}; "
            f"download it again"
        )
        return None
    image, mid = (table[name].combine_chunks() for name in ("ImageID", "LabelName"))
    empty = any(column.null_count or pc.index(column.dictionary, "").as_py() >= 0 for column in (image, mid))
    if empty or table["Confidence"].null_count:
        problems.append(f"{path} must have no empty fields, it has some; download it again")
        return None
    confidence = table["Confidence"].to_numpy()
    strange = ~np.isin(confidence, (-1, 0, 1))
    if strange.any():
        problems.append(
            f"{path} must have human labels with Confidence 0 or 1, got {confidence[strange][0]:g}; use "
            f"…-human-imagelabels.csv, not the machine-generated labels"
        )
        return None
    values = confidence.astype(np.int8)
    ids, mids = (column.dictionary for column in (image, mid))
    return _Labels(ids, mids.to_pylist(), image.indices.to_numpy(), mid.indices.to_numpy(), values)


def _convention(
    splits: dict[str, _Labels], absent: Literal["auto", "zero", "minus_one"], problems: list[str]
) -> Literal["auto", "zero", "minus_one"]:
    """What all files write for absent. Values of `splits` become 1, 0 and −1 for present, absent and unknown."""
    if absent not in ("auto", "zero", "minus_one"):
        problems.append(f"absent must be 'auto', 'zero' or 'minus_one', got {absent!r}; choose one")
    negative = [_SPLITS[split] for split, read in splits.items() if (read.values == -1).any()]
    undecided = [
        _SPLITS[split] for split, read in splits.items() if _SPLITS[split] not in negative and (read.values == 0).any()
    ]
    if absent == "zero" and negative:
        problems.append(
            f"absent must be 'minus_one' for files with Confidence −1, got 'zero' and −1 in the labels of {negative}; "
            f"change it, or download the official files"
        )
    if absent == "auto" and negative and undecided:
        problems.append(
            f"absent must be given: labels of {negative} have Confidence −1, those of {undecided} have 0 and no −1, "
            f"which may mean absent or unknown; use files of one kind, or pass absent=minus_one if 0 is unknown in all"
        )
    if absent != "minus_one" and not negative:
        return "zero"
    for read in splits.values():
        read.values = np.array([-1, 1, 0], np.int8)[read.values]  # positions 0, 1 and −1
    return "minus_one"


def _targets(read: _Labels, columns: np.ndarray, num_words: int) -> tuple[csr_matrix, dict[str, int]]:
    """CSR of the verified labels of a file, and counts. Repeated rows are one; contradictory ones are unknown."""
    known = read.values >= 0
    coded = (read.rows[known].astype(np.int64) * num_words + columns[read.classes[known]]) * 2 + read.values[known]
    coded.sort()
    pairs = coded >> 1
    first = np.ones(len(pairs), bool)
    first[1:] = pairs[1:] != pairs[:-1]
    last = np.ones(len(pairs), bool)
    last[:-1] = first[1:]
    low, high = coded[first] & 1, coded[last] & 1  # sorted: 0 comes before 1
    agreed = low == high
    pairs, values = pairs[first][agreed], low[agreed].astype(np.int8)
    num_images = len(read.ids)
    indptr = np.concatenate([[0], np.cumsum(np.bincount(pairs // num_words, minlength=num_images))])
    targets = csr_matrix((values, (pairs % num_words).astype(np.int32), indptr), (num_images, num_words))
    return targets, {
        "rows": len(read.rows),
        "images": num_images,
        "present": int((values == 1).sum()),
        "absent": int((values == 0).sum()),
        "written_as_unknown": int((~known).sum()),
        "repeated_rows": len(coded) - int(first.sum()),
        "raters_disagree": int((~agreed).sum()),
    }


def _check_counts(splits: dict[str, _Labels], problems: list[str]) -> None:
    for split, read in splits.items():
        if len(read.rows) < _ROWS[split]:
            problems.append(
                f"labels of {_SPLITS[split]} must be {_ROWS[split]:,} rows in version 4, and more later, got "
                f"{len(read.rows):,}; download them again, or pass check_counts=False for a subset"
            )
        if split in _IMAGES and len(read.ids) != _IMAGES[split]:
            problems.append(
                f"labels of {_SPLITS[split]} must be of {_IMAGES[split]:,} images, got {len(read.ids):,}; download "
                f"them again, or pass check_counts=False for a subset"
            )


def _read_partition(places: Sequence[Path], problems: list[str]) -> dict[str, list[str]]:
    """MIDs of the 7,186 seen and the 400 unseen classes, if their lists are there; counts are always checked."""
    seen_path = _find(places, ["seen_7186.txt", "classes-trainable.txt"], problems)
    unseen_path = _find(places, ["unseen_400.txt", "top_400_unseen.csv"], problems)
    if unseen_path is None:  # the trainable classes alone, as in every download, are no partition
        return {}
    if seen_path is None:
        problems.append(
            f"classes-trainable.txt of version 4 must be there beside {unseen_path.name} for 7186_400, it is not; "
            f"download it"
        )
        return {}
    lists = {"seen": read_lines(seen_path, seen_path.name, problems)}
    lists["unseen"] = read_lines(unseen_path, unseen_path.name, problems)
    if lists["unseen"] and all(text.isdecimal() for text in lists["unseen"]):
        pickled = _find(places, ["unseen_labels.pkl"], problems)
        candidates = _pickled_mids(pickled.read_bytes()) if pickled is not None else []
        if len(candidates) != _NUM_CANDIDATES or max(map(int, lists["unseen"])) >= _NUM_CANDIDATES:
            problems.append(
                f"unseen_labels.pkl must have the {_NUM_CANDIDATES:,} classes that {unseen_path.name} counts, got "
                f"{len(candidates):,}; download both from one place"
            )
            return {}
        lists["unseen"] = [candidates[int(position)] for position in lists["unseen"]]
    wrong = [
        f"{len(set(lists[side]))} {side}"
        for side, number in (("seen", _NUM_SEEN), ("unseen", _NUM_UNSEEN))
        if len(set(lists[side])) != number or len(lists[side]) != number
    ]
    common = sorted(set(lists["seen"]) & set(lists["unseen"]))
    if wrong or common:
        problems.append(
            f"{seen_path.name} and {unseen_path.name} must be 7,186 and 400 other classes for 7186_400, got "
            f"{', '.join(wrong) or f'{len(common)} in both'}; use those of version 4, or move {unseen_path.name} away"
        )
        return {}
    return lists


def _pickled_mids(content: bytes) -> list[str]:
    """MIDs in a pickled NumPy array or list of texts, in order, read without executing what the pickle says."""
    try:
        arguments = [argument for _, argument, _ in pickletools.genops(content)]
    except ValueError:
        return []
    texts = [text for text in arguments if isinstance(text, str) and re.fullmatch(r"/[mg]/\w+", text)]
    if texts:  # a list, or an array of objects
        return texts
    width = next((int(t[1:]) for t in arguments if isinstance(t, str) and re.fullmatch(r"U\d+", t)), 0)
    coded = (argument.encode("latin-1", "replace") if isinstance(argument, str) else argument for argument in arguments)
    blocks = [bytes(argument) for argument in coded if isinstance(argument, (bytes, bytearray))]
    block = max(blocks, key=len, default=b"")  # an array of fixed width: UTF-32, padded with zeros
    if not width or len(block) % (4 * width):
        return []
    text = block.decode("utf-32-le", "replace")
    return [text[start : start + width].rstrip("\0") for start in range(0, len(text), width)]
