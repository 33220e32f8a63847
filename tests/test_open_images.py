"""Open Images: verified labels of miniature downloads in the official layout."""

import csv
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from zsmld.datasets import Index, IndexedDataset, build_dataset, dense_targets, prepare
from zsmld.datasets.open_images import _pickled_mids, read_open_images

HEADER = "ImageID,Source,LabelName,Confidence\n"
# Names with commas and quotes, two classes of one name, and one that no label has, as in class-descriptions.csv.
CLASSES = [
    ("/m/013y0j", "Organ"),
    ("/m/013y1f", "Organ"),
    ("/m/02wvth", 'Fiat 500 "topolino"'),
    ("/m/03hgsf0", "Lemon, lime and bitters"),
    ("/m/0bt9lr", "Dog"),
    ("/m/0unused", "Aspartame"),
    ("/g/11b", "Crème brûlée"),
]
ROWS = {
    "train": [
        ("000002b66c9c498e", "/m/0bt9lr", 1),
        ("000002b66c9c498e", "/m/013y0j", 0),
        ("000002b66c9c498e", "/m/02wvth", 1),
        ("a00002b97e5471a0", "/m/013y1f", 1),
        ("a00002b97e5471a0", "/m/013y1f", 1),  # twice, alike
        ("a00002b97e5471a0", "/m/0bt9lr", 1),
        ("a00002b97e5471a0", "/m/0bt9lr", 0),  # raters disagree
        ("f00003f97e5471a1", "/m/03hgsf0", 0),
    ],
    "validation": [("000026e7ee790996", "/m/0bt9lr", 0), ("000026e7ee790996", "/g/11b", 1)],
    "test": [("000062a39995e348", "/m/02wvth", 1), ("0000c64e1253d68f", "/m/013y1f", 0)],
}


def write_labels(path: Path, rows: list, newline: str = "\n") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [HEADER.strip(), *(f"{image},verification,{mid},{value}" for image, mid, value in rows)]
    path.write_bytes((newline.join(lines) + newline).encode())


def write_classes(path: Path, classes: list, header: bool = False) -> None:
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerows([("LabelName", "DisplayName")] * header + classes)


def write_image(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (2, 3)).save(path)


def download(root: Path, rows: dict = ROWS, v6: bool = False, newline: str = "\n") -> Path:
    """A miniature of version 4, or of version 6 with its names and header."""
    for split, labels in rows.items():
        prefix = "oidv6-" if v6 and split == "train" else ""
        write_labels(root / f"{prefix}{split}-annotations-human-imagelabels.csv", labels, newline)
        for image in {image for image, *_ in labels}:
            write_image(root / split / f"{image}.jpg")
    write_classes(root / f"{'oidv6-' if v6 else ''}class-descriptions.csv", CLASSES, header=v6)
    return root


def oracle(rows: list, classes: list) -> dict[str, dict[str, int]]:
    """{image: {word: target}} by dictionaries; unknown is not there."""
    names: dict[str, str] = {}
    for mid, name in classes:
        names[mid] = f"{name} ({mid})" if name in names.values() else name
    said: dict[str, dict[str, set[int]]] = {}
    for image, mid, value in rows:
        said.setdefault(image, {}).setdefault(names[mid], set()).add(value)
    return {
        image: {word: next(iter(values)) for word, values in labels.items() if len(values) == 1}
        for image, labels in said.items()
    }


def known(dataset: IndexedDataset) -> dict[str, dict[str, int]]:
    words = dataset.vocabulary.words
    by_items = {}
    for i in range(len(dataset)):
        item = dataset[i]
        by_items[item["id"]] = {words[j]: int(item["targets"][j]) for j in np.flatnonzero(item["targets"] >= 0)}
    dense = dense_targets(dataset)
    by_rows = {
        str(image): {words[j]: int(row[j]) for j in np.flatnonzero(row >= 0)}
        for image, row in zip(dataset.ids, dense, strict=True)
    }
    assert by_items == by_rows and set(np.unique(dense)) <= {-1, 0, 1}
    return by_items


@pytest.mark.parametrize(("v6", "newline"), [(False, "\n"), (True, "\r\n")])
def test_every_label_of_every_image(v6: bool, newline: str, tmp_path: Path) -> None:
    root = download(tmp_path / "oi", v6=v6, newline=newline)
    index = Index.open(prepare("open_images", root, tmp_path / "prepared", check_counts=False).save(tmp_path / "again"))
    assert index.words == (
        "Organ",
        "Organ (/m/013y1f)",
        'Fiat 500 "topolino"',
        "Lemon, lime and bitters",
        "Dog",
        "Crème brûlée",
    )
    assert index.missing == -1 and list(index.partitions) == ["all"]
    for split, official in (("train", "train"), ("val", "validation"), ("test", "test")):
        expected = oracle(ROWS[official], CLASSES)
        assert known(index.dataset(split)) == expected
        dataset = build_dataset("open_images", root=root, split=split, check_counts=False)
        assert known(dataset) == expected and dataset.paths[0].as_py().startswith(f"{official}/")
        assert dataset.ids.to_pylist() == list(expected)  # the file's order
    assert index.manifest["counts"]["train"] == {
        "rows": 8,
        "images": 3,
        "present": 3,
        "absent": 2,
        "written_as_unknown": 0,
        "repeated_rows": 2,
        "raters_disagree": 1,
        "images_without_labels": 0,
    }
    assert index.manifest["counts"]["classes_renamed_as_others_have_their_name"] == 1
    assert index.manifest["policies"]["version"] == "not 4"


def test_unknown_is_never_negative(tmp_path: Path) -> None:
    dataset = build_dataset("open_images", root=download(tmp_path), split="train", check_counts=False)
    dense = dense_targets(dataset)
    assert (dense == 0).sum() == 2 and (dense == 1).sum() == 3 and (dense == -1).sum() == dense.size - 5
    assert dataset.missing == -1 and dataset.vocabulary.unseen == ()


def test_files_with_minus_one_for_absent(tmp_path: Path) -> None:
    """Zero-shot code writes 1, −1 and 0 for what the official files say with 1, 0 and no row."""
    rows = {"test": [("00a", "/m/0bt9lr", 1), ("00a", "/m/013y0j", -1), ("00a", "/g/11b", 0), ("00b", "/m/0bt9lr", 0)]}
    index = prepare("open_images", download(tmp_path, rows), check_counts=False)
    assert known(index.dataset("test")) == {"00a": {"Dog": 1, "Organ": 0}, "00b": {}}
    assert index.manifest["counts"]["test"]["written_as_unknown"] == 2
    assert index.manifest["policies"]["absent"] == "minus_one"


DOG, ORGAN, BRULEE = "/m/0bt9lr", "/m/013y0j", "/g/11b"


@pytest.mark.parametrize(
    ("train", "test", "absent", "expected"),
    [
        # A −1 anywhere is the convention of all files; without a 0, there is nothing to disagree about.
        ([(DOG, 1), (ORGAN, -1)], [(DOG, 1)], "auto", "minus_one"),
        ([(DOG, 1), (ORGAN, -1), (BRULEE, 0)], [(DOG, 0), (ORGAN, -1)], "auto", "minus_one"),
        ([(DOG, 1), (ORGAN, 0)], [(DOG, 0)], "auto", "zero"),
        ([(DOG, 1), (ORGAN, 0)], [(DOG, 1)], "zero", "zero"),
        ([(DOG, 1), (ORGAN, 0)], [(DOG, 0)], "minus_one", "minus_one"),  # nothing is absent, and only you know
        ([(DOG, 1), (ORGAN, -1)], [(DOG, 0)], "minus_one", "minus_one"),
    ],
)
def test_absent_means_the_same_in_every_file(
    train: list, test: list, absent: str, expected: str, tmp_path: Path
) -> None:
    files = {
        split: [("0a" if split == "train" else "0b", *row) for row in rows]
        for split, rows in (("train", train), ("test", test))
    }
    index = prepare("open_images", download(tmp_path, files), check_counts=False, absent=absent)
    assert index.manifest["policies"]["absent"] == expected
    meaning = {1: 1, 0: 0} if expected == "zero" else {1: 1, -1: 0}
    names = {DOG: "Dog", ORGAN: "Organ", BRULEE: "Crème brûlée"}
    for split, rows in (("train", train), ("test", test)):
        image = files[split][0][0]
        assert known(index.dataset(split)) == {image: {names[m]: meaning[v] for m, v in rows if v in meaning}}


def test_files_of_two_conventions_are_refused(tmp_path: Path) -> None:
    rows = {"train": [("0a", DOG, 1), ("0a", ORGAN, -1)], "test": [("0b", DOG, 1), ("0b", ORGAN, 0)]}
    root = download(tmp_path, rows)
    message = r"absent must be given: labels of \['train'\] have Confidence −1, those of \['test'\] have 0 and no −1"
    with pytest.raises(ValueError, match=message):
        prepare("open_images", root, check_counts=False)
    with pytest.raises(ValueError, match=r"absent must be 'minus_one' for files with Confidence −1, got 'zero' and −1"):
        prepare("open_images", root, check_counts=False, absent="zero")
    with pytest.raises(ValueError, match="absent must be 'auto', 'zero' or 'minus_one', got 'none'; choose one"):
        prepare("open_images", root, check_counts=False, absent="none")


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["0a", "0b", "f1", "f2"]), st.sampled_from([m for m, _ in CLASSES]), st.integers(0, 1)
        ),
        min_size=1,
        max_size=40,
    )
)
def test_any_rows_in_any_order(tmp_path_factory: pytest.TempPathFactory, rows: list) -> None:
    root = download(tmp_path_factory.mktemp("oi"), {"test": rows})
    problems: list[str] = []
    index = read_open_images(root, problems, check_counts=False)
    assert not problems and index is not None
    assert known(index.dataset("test")) == oracle(rows, CLASSES)
    counts, pairs = index.manifest["counts"]["test"], {(image, mid) for image, mid, _ in rows}
    assert counts["rows"] == len(rows) and counts["repeated_rows"] == len(rows) - len(pairs)
    assert counts["present"] + counts["absent"] + counts["raters_disagree"] == len(pairs)


# -------------------------------------------------------------------------------------------------- where things are


def test_folders_of_the_official_archives_and_of_published_code(tmp_path: Path) -> None:
    root = download(tmp_path)
    for path in sorted((root / "train").iterdir()):  # train_0.tar.gz … train_f.tar.gz
        path_in_archive = root / f"train_{path.name[0]}" / path.name
        path_in_archive.parent.mkdir(exist_ok=True)
        path.rename(path_in_archive)
    (root / "train").rmdir()
    (root / "images").mkdir()
    (root / "validation").rename(root / "images" / "validation")
    for split in ROWS:
        (root / "2018_04" / split).mkdir(parents=True)
        name = f"{split}-annotations-human-imagelabels.csv"
        (root / name).rename(root / "2018_04" / split / name)
    (root / "class-descriptions.csv").rename(root / "2018_04" / "class-descriptions.csv")
    write_image(root / "train_0" / "0unlabelled.jpg")
    index = prepare("open_images", root, check_counts=False)
    assert {path.as_py().split("/")[0] for path in index.dataset("train").paths} == {"train_0", "train_a", "train_f"}
    assert index.dataset("val").paths[0].as_py() == "images/validation/000026e7ee790996.jpg"
    assert index.manifest["counts"]["train"]["images_without_labels"] == 1
    assert len(index) == 6


def test_two_versions_need_a_choice(tmp_path: Path) -> None:
    root = download(tmp_path)
    (root / "annotations").mkdir()
    for split in ("validation", "test"):
        shutil.rmtree(root / split)
    write_labels(root / "annotations" / "oidv6-train-annotations-human-imagelabels.csv", ROWS["train"][:1])
    write_classes(root / "annotations" / "oidv6-class-descriptions.csv", CLASSES, header=True)
    with pytest.raises(ValueError) as raised:
        prepare("open_images", root, check_counts=False)
    assert str(raised.value).count("must be there once, got") == 2
    index = prepare("open_images", root, check_counts=False, annotations="annotations", missing_images="drop")
    assert len(index.dataset("train")) == 1
    with pytest.raises(ValueError, match="annotations must be an existing folder, not found"):
        prepare("open_images", root, annotations="none")


def test_boxable_classes(tmp_path: Path) -> None:
    root = download(tmp_path)
    with pytest.raises(
        ValueError, match=r"train-annotations-human-imagelabels-boxable.csv must be there for the images"
    ):
        prepare("open_images", root, boxable=True)
    for split in ("train", "validation"):
        shutil.rmtree(root / split)
    write_labels(root / "test-annotations-human-imagelabels-boxable.csv", ROWS["test"][:1])
    write_classes(root / "class-descriptions-boxable.csv", CLASSES[2:4])
    index = prepare("open_images", root, boxable=True, missing_images="drop", check_counts=False)
    assert known(index.dataset("test")) == {"000062a39995e348": {'Fiat 500 "topolino"': 1}}


def test_missing_images(tmp_path: Path) -> None:
    root = download(tmp_path)
    (root / "train" / "f00003f97e5471a1.jpg").unlink()
    with pytest.raises(ValueError, match=r"1 of 6 images are not in .*, for instance train/f00003f97e5471a1\.jpg"):
        prepare("open_images", root, check_counts=False)
    index = prepare("open_images", root, check_counts=False, missing_images="drop")
    assert len(index.dataset("train")) == 2 and index.manifest["missing_images"] == ["train/f00003f97e5471a1.jpg"]


# -------------------------------------------------------------------------------------------------------- 7186 / 400

SEEN = [f"/m/0s{i:04d}" for i in range(7186)]
CANDIDATES = [f"/m/0u{i:04d}" for i in range(2594)]
POSITIONS = list(range(2593, 2593 - 400, -1))


def zero_shot_download(root: Path) -> Path:
    """With classes-trainable.txt of version 4, and the two lists of published code."""
    rows = {
        "train": [("0a", SEEN[5], 1), ("0a", CANDIDATES[2593], 1), ("0b", CANDIDATES[2593], 1), ("0c", SEEN[6], 0)],
        "test": [("0d", SEEN[5], 0), ("0d", CANDIDATES[2593], 1), ("0e", CANDIDATES[0], 1)],
    }
    download(root, rows)
    write_classes(root / "class-descriptions.csv", [(mid, f"name {mid[3:]}") for mid in [*SEEN, *CANDIDATES]])
    (root / "classes-trainable.txt").write_text("\n".join(SEEN) + "\n")
    (root / "top_400_unseen.csv").write_text("\n".join(map(str, POSITIONS)) + "\n")
    with (root / "unseen_labels.pkl").open("wb") as stream:
        pickle.dump(np.array(CANDIDATES, dtype=object), stream)
    return root


def test_partition_7186_400(tmp_path: Path) -> None:
    index = prepare("open_images", zero_shot_download(tmp_path), check_counts=False)
    assert list(index.partitions) == ["7186_400", "all"]
    assert len(index.words) == 7186 + 401  # /m/0u0000 occurs, and is in no partition
    test = index.dataset("test")
    assert len(test.vocabulary.seen) == 7186 and len(test.vocabulary.unseen) == 400
    assert test.vocabulary.seen == tuple(f"name {mid[3:]}" for mid in SEEN)
    assert test.vocabulary.unseen == tuple(f"name {CANDIDATES[position][3:]}" for position in POSITIONS)
    assert known(test) == {"0d": {"name 0s0005": 0, "name 0u2593": 1}, "0e": {}}
    assert index.dataset("train").ids.to_pylist() == ["0a"]  # with a seen word that is present
    assert index.dataset("train", "all").ids.to_pylist() == ["0a", "0b", "0c"]


def test_partition_of_a_plain_list(tmp_path: Path) -> None:
    root = zero_shot_download(tmp_path)
    (root / "top_400_unseen.csv").unlink()
    (root / "unseen_400.txt").write_text("\n".join(CANDIDATES[:400]))
    index = prepare("open_images", root, check_counts=False)
    assert index.partitions["7186_400"]["unseen"] == [f"name {mid[3:]}" for mid in CANDIDATES[:400]]


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("kind", [list, lambda mids: np.array(mids), lambda mids: np.array(mids, dtype=object)])
def test_pickled_lists_are_read_and_not_executed(kind: object, protocol: int) -> None:
    mids = ["/m/013y0j", "/g/11b", "/m/03hgsf0", "/m/0_x"]
    assert _pickled_mids(pickle.dumps(kind(mids), protocol)) == mids  # type: ignore[operator]
    assert _pickled_mids(b"no pickle") == [] and _pickled_mids(pickle.dumps([1, 2])) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda root: (root / "classes-trainable.txt").unlink(),
            "classes-trainable.txt of version 4 must be there beside",
        ),
        (lambda root: (root / "unseen_labels.pkl").unlink(), "unseen_labels.pkl must have the 2,594 classes .* got 0"),
        (lambda root: (root / "classes-trainable.txt").write_text("/m/0s1\n"), "must be 7,186 and 400 .* got 1 seen"),
        (
            lambda root: (root / "classes-trainable.txt").write_text("\n".join([*SEEN[1:], CANDIDATES[2593]])),
            "must be 7,186 and 400 .* got 1 in both",
        ),
    ],
)
def test_wrong_lists_of_the_partition(change: object, message: str, tmp_path: Path) -> None:
    root = zero_shot_download(tmp_path)
    change(root)  # type: ignore[operator]
    with pytest.raises(ValueError, match=message):
        prepare("open_images", root, check_counts=False)


def test_trainable_classes_alone_are_no_partition(tmp_path: Path) -> None:
    root = download(tmp_path)
    (root / "classes-trainable.txt").write_text("/m/0bt9lr\n")
    assert list(prepare("open_images", root, check_counts=False).partitions) == ["all"]


# ------------------------------------------------------------------------------------------------------------- damage


def test_a_partial_download_lists_everything(tmp_path: Path) -> None:
    root = download(tmp_path)
    (root / "train-annotations-human-imagelabels.csv").unlink()
    write_labels(root / "validation-annotations-human-imagelabels.csv", [("00b", "/m/0nameless", 1)])
    (root / "top_400_unseen.csv").write_text("1\n")
    with pytest.raises(ValueError) as raised:
        prepare("open_images", root)
    for part in (
        "must be a complete download of open_images, found:",
        "train-annotations-human-imagelabels.csv must be there for the images of train, it is not in",
        "labels of validation must be 551,390 rows in version 4, and more later, got 1;",
        "labels of validation must be of 41,620 images, got 1;",
        "labels of test must be 1,667,399 rows in version 4, and more later, got 2;",
        "labels of test must be of 125,436 images, got 2;",
        "classes-trainable.txt of version 4 must be there beside top_400_unseen.csv",
        "class-descriptions.csv must name every class, 1 labels have no name, such as ['/m/0nameless']",
        "1 of 3 images are not in",
    ):
        assert part in str(raised.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            HEADER + "00a,machine,/m/0bt9lr,0.7\n",
            "human labels with Confidence 0 or 1, got 0.7; use …-human-imagelabels",
        ),
        (HEADER + "00a,verification,/m/0bt9lr,1\n00b,verifi", "and whole lines, it has not: .*; download it again"),
        (HEADER + "00a,verification,/m/0bt9lr,\n", "must have no empty fields, it has some"),
        (HEADER + ",verification,/m/0bt9lr,1\n", "must have no empty fields, it has some"),
        (HEADER, "test-annotations-human-imagelabels.csv must have rows, got none"),
        ("ImageID,LabelName\n00a,/m/0bt9lr\n", "must have the columns ImageID,Source,LabelName,Confidence"),
        ("", "must have the columns ImageID,Source,LabelName,Confidence"),
    ],
)
def test_damaged_labels(text: str, message: str, tmp_path: Path) -> None:
    write_classes(tmp_path / "class-descriptions.csv", CLASSES)
    (tmp_path / "test-annotations-human-imagelabels.csv").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        prepare("open_images", tmp_path, check_counts=False)


def test_other_damage(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"must have train-, validation- or test-annotations-human-imagelabels.csv"):
        (tmp_path / "nothing").mkdir()
        write_classes(tmp_path / "nothing" / "class-descriptions.csv", CLASSES)
        prepare("open_images", tmp_path / "nothing")
    root = download(tmp_path / "oi", {"train": ROWS["train"], "test": ROWS["train"]})
    with pytest.raises(ValueError, match="splits must have no image in common, 3 are in two, such as 000002b66c9c498e"):
        prepare("open_images", root, check_counts=False)
    shutil.copy(root / "train-annotations-human-imagelabels.csv", root / "class-descriptions.csv")
    with pytest.raises(ValueError, match="must have two columns, LabelName and DisplayName"):
        prepare("open_images", root, check_counts=False)
    write_classes(root / "class-descriptions.csv", [], header=True)
    with pytest.raises(ValueError, match=r"class-descriptions.csv must have a class on each line, .* got none"):
        prepare("open_images", root, check_counts=False)
    (root / "class-descriptions.csv").unlink()
    with pytest.raises(ValueError, match=r"class-descriptions.csv must be there for the names of the classes"):
        prepare("open_images", root, check_counts=False)
    with pytest.raises(ValueError, match="root must be the folder of the download, got the file"):
        prepare("open_images", root / "test-annotations-human-imagelabels.csv")
