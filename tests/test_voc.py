"""Pascal VOC: what the reader makes of a miniature devkit, compared with a plain reading of the same objects."""

import os
import re
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from zsmld.datasets import DATASETS, Index, build_dataset, dense_targets, prepare
from zsmld.resources import resource_path

CLASSES = resource_path("data", "voc", "classes.txt").read_text().split()

Objects = list[tuple[str, bool]]  # class, difficult
TRAIN: dict[str, Objects] = {
    "000012": [("car", False)],
    "000017": [("person", False), ("horse", False), ("horse", True)],
    "000023": [("bicycle", True), ("bicycle", True), ("person", False)],
}
VAL: dict[str, Objects] = {"000005": [("chair", False), ("chair", True)], "000007": [("car", True)]}
TEST: dict[str, Objects] = {"000001": [("dog", False), ("person", False)], "000002": [("train", True)]}


def xml(name: str, objects: Objects, year: str = "2007") -> str:
    """An annotation file as it is distributed: tabs; body parts have names of their own."""
    text = (
        f"<annotation>\n\t<folder>VOC{year}</folder>\n\t<filename>{name}.jpg</filename>\n\t<source>\n\t\t<database>The "
        f"VOC{year} Database</database>\n\t\t<annotation>PASCAL VOC{year}</annotation>\n\t\t<image>flickr</image>\n\t\t"
        f"<flickrid>341012865</flickrid>\n\t</source>\n\t<owner>\n\t\t<flickrid>Fried Camels</flickrid>\n\t\t<name>"
        f"Jinky the Fruit Bat</name>\n\t</owner>\n\t<size>\n\t\t<width>8</width>\n\t\t<height>6</height>\n\t\t<depth>3"
        f"</depth>\n\t</size>\n\t<segmented>0</segmented>\n"
    )
    for kind, difficult in objects:
        part = "\t\t<part>\n\t\t\t<name>head</name>\n\t\t</part>\n" if kind == "person" else ""
        text += (
            f"\t<object>\n\t\t<name>{kind}</name>\n\t\t<pose>Left</pose>\n\t\t<truncated>1</truncated>\n\t\t<difficult>"
            f"{int(difficult)}</difficult>\n\t\t<bndbox>\n\t\t\t<xmin>1</xmin>\n\t\t\t<ymin>2</ymin>\n\t\t\t<xmax>5"
            f"</xmax>\n\t\t\t<ymax>4</ymax>\n\t\t</bndbox>\n{part}\t</object>\n"
        )
    return text + "</annotation>\n"


def value(objects: Objects, kind: str) -> int:
    """What the class files say: 1 present, 0 difficult objects only, −1 absent."""
    found = [difficult for name, difficult in objects if name == kind]
    return 1 if False in found else 0 if found else -1


def write_voc(devkit: Path, sets: dict[str, dict[str, Objects]], year: str = "2007", images: bool = True) -> Path:
    """The folder VOC<year> with its sets; class files are written as "%s %2d"."""
    for folder in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (devkit / folder).mkdir(parents=True, exist_ok=True)
    for image_set, listed in sets.items():
        main = devkit / "ImageSets" / "Main"
        (main / f"{image_set}.txt").write_bytes("".join(f"{name}\n" for name in listed).encode())
        for kind in CLASSES:
            lines = [f"{name} {value(objects, kind):2d}\n" for name, objects in listed.items()]
            (main / f"{kind}_{image_set}.txt").write_bytes("".join(lines).encode())
        for name, objects in listed.items():
            (devkit / "Annotations" / f"{name}.xml").write_bytes(xml(name, objects, year).encode())
            if images:
                Image.new("RGB", (8, 6), "green").save(devkit / "JPEGImages" / f"{name}.jpg")
    return devkit


@pytest.fixture
def root(tmp_path: Path) -> Path:
    sets = {"train": TRAIN, "val": VAL, "trainval": VAL | TRAIN, "test": TEST}
    write_voc(tmp_path / "VOCdevkit" / "VOC2007", sets)
    return tmp_path / "VOCdevkit"


def oracle(listed: dict[str, Objects], difficult: str) -> np.ndarray:
    meaning = {1: 1, -1: 0, 0: {"unknown": -1, "drop": 0, "keep": 1}[difficult]}
    return np.array([[meaning[value(objects, kind)] for kind in CLASSES] for objects in listed.values()])


# ------------------------------------------------------------------------------------------------------------- labels


@pytest.mark.parametrize("difficult", ["unknown", "drop", "keep"])
def test_labels_are_those_of_the_annotations(difficult: str, root: Path) -> None:
    for split, listed in (("train", VAL | TRAIN), ("test", TEST)):
        data = build_dataset("voc", root=root, split=split, difficult=difficult, check_counts=False)
        assert [str(i) for i in data.ids] == list(listed) and data.missing == 0
        np.testing.assert_array_equal(dense_targets(data), oracle(listed, difficult))
    assert data.vocabulary.words == tuple(CLASSES) and data.vocabulary.unseen == ()
    assert len(CLASSES) == 20 and sorted(CLASSES) == CLASSES


def test_difficult_objects_alone_are_unknown_by_default(root: Path) -> None:
    data = build_dataset("voc", root=root, split="train", check_counts=False)
    of = {str(i): data[row]["targets"] for row, i in enumerate(data.ids)}
    assert of["000023"][CLASSES.index("bicycle")] == -1 and of["000023"][CLASSES.index("person")] == 1
    assert of["000017"][CLASSES.index("horse")] == 1  # one of the two is not difficult
    assert of["000007"].tolist() == [-1 if kind == "car" else 0 for kind in CLASSES]


@settings(max_examples=15)
@given(
    st.lists(st.lists(st.tuples(st.sampled_from(CLASSES), st.booleans()), max_size=6), min_size=1, max_size=6),
    st.sampled_from(["unknown", "drop", "keep"]),
)
def test_any_objects(images: list[Objects], difficult: str) -> None:
    listed = {f"{100 + i:06d}": objects for i, objects in enumerate(images)}
    with TemporaryDirectory() as folder:
        root = write_voc(Path(folder), {"trainval": listed}, images=False)
        for name in listed:
            (root / "JPEGImages" / f"{name}.jpg").touch()
        index = prepare("voc", root, num_decoded=0, test_set="none", difficult=difficult, check_counts=False)
        np.testing.assert_array_equal(index.targets.toarray(), oracle(listed, difficult))
        counts = index.manifest["counts"]["train"]
    flat = [o for objects in images for o in objects]
    assert (counts["objects"], counts["difficult_objects"]) == (len(flat), sum(hard for _, hard in flat))
    assert counts["labels"] == (oracle(listed, "drop") == 1).sum()
    assert counts["labels_of_difficult_objects_only"] == (oracle(listed, "unknown") == -1).sum()


def test_awkward_annotations(root: Path) -> None:
    """Windows line ends, a byte order mark; no <difficult> (as where nobody was asked), a part first; no object."""
    annotations = root / "VOC2007" / "Annotations"
    text = xml("000012", TRAIN["000012"]).replace("\t\t<difficult>0</difficult>\n", "")
    assert "difficult" not in text
    assert text.count("<name>car</name>") == 1
    text = text.replace(
        "\t\t<name>car</name>\n", "\t\t<part>\n\t\t\t<name>head</name>\n\t\t</part>\n\t\t<name>car</name>\n"
    )
    (annotations / "000012.xml").write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    (annotations / "000005.xml").write_text(xml("000005", []))
    data = build_dataset("voc", root=root, split="train", check_counts=False, class_files="ignore")
    expected = oracle((VAL | TRAIN) | {"000005": []}, "unknown")
    np.testing.assert_array_equal(dense_targets(data), expected)


# ------------------------------------------------------------------------------------------------------ sets and splits


def test_the_root_may_be_the_devkit_its_parent_or_the_year(root: Path) -> None:
    for place, prefix in ((root, "VOC2007/"), (root.parent, "VOCdevkit/VOC2007/"), (root / "VOC2007", "")):
        data = build_dataset("voc", root=place, split="test", check_counts=False)
        assert [str(path) for path in data.paths] == [f"{prefix}JPEGImages/{name}.jpg" for name in TEST]
        assert data[0]["image"].size == (8, 6) and data[0]["id"] == "000001"


def test_train_leaves_val_and_both_make_trainval(root: Path) -> None:
    splits = {
        split: [str(i) for i in build_dataset("voc", root=root, split=split, train_set="train", check_counts=False).ids]
        for split in ("train", "val", "test")
    }
    assert splits == {"train": list(TRAIN), "val": list(VAL), "test": list(TEST)}
    index = prepare("voc", root, train_set="train", test_set="val", check_counts=False)
    assert index.splits.tolist() == ["train"] * 3 + ["test"] * 2 and index.ids.to_pylist() == [*TRAIN, *VAL]
    assert index.manifest["counts"]["test"]["image_set"] == "val"
    index = prepare("voc", root, test_set="none", check_counts=False)
    assert set(index.splits.tolist()) == {"train"} and len(index) == 5


def test_2012_has_no_public_test_labels(tmp_path: Path) -> None:
    train = {f"2008_{name}": objects for name, objects in TRAIN.items()}
    val = {f"2011_{name}": objects for name, objects in VAL.items()}
    write_voc(tmp_path / "VOC2012", {"train": train, "val": val, "trainval": train | val}, "2012")
    with pytest.raises(ValueError, match=r"test labels are not public, got 'test'; pass train_set=train test_set=val"):
        build_dataset("voc", root=tmp_path, split="test", year="2012", check_counts=False)
    options = {"root": tmp_path, "year": 2012, "train_set": "train", "test_set": "val", "check_counts": False}
    data = build_dataset("voc", split="test", **options)
    assert data.name == "voc2012" and [str(i) for i in data.ids] == list(val)
    assert [str(path) for path in data.paths] == [f"VOC2012/JPEGImages/{name}.jpg" for name in val]
    np.testing.assert_array_equal(dense_targets(data), oracle(val, "unknown"))


def test_options_are_checked(root: Path) -> None:
    for options, message in (
        ({"year": 2010}, "year must be one of [2007, 2012], got 2010; choose one"),
        ({"difficult": "maybe"}, "difficult must be one of ['unknown', 'drop', 'keep'], got 'maybe'"),
        ({"test_set": "val"}, "train_set must be 'train' where test_set is 'val', got 'trainval', which contains it"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            build_dataset("voc", root=root, split="train", **options)


def test_the_index_survives_saving(root: Path, tmp_path: Path) -> None:
    index = prepare("voc", root, tmp_path / "index", check_counts=False)
    opened = Index.open(tmp_path / "index")
    assert (opened.targets != index.targets).nnz == 0 and opened.ids.equals(index.ids)
    assert opened.manifest["policies"] == {
        "year": "2007",
        "difficult": "unknown",
        "train_set": "trainval",
        "test_set": "test",
    }
    assert opened.manifest["counts"]["train"] == {
        "image_set": "trainval",
        "images": 5,
        "objects": 10,
        "difficult_objects": 5,
        "labels": 5,
        "labels_of_difficult_objects_only": 2,
    }
    assert opened.manifest["counts"]["class_files_compared"] == 40 and "voc" in DATASETS
    data = opened.dataset("test")
    np.testing.assert_array_equal(dense_targets(data), oracle(TEST, "unknown"))


# ------------------------------------------------------------------------------------------------------ what is wrong


def test_the_official_counts_are_asked_for(root: Path) -> None:
    with pytest.raises(ValueError) as error:
        prepare("voc", root, train_set="train")
    for name, expected, got in (("train", "2,501", 3), ("val", "2,510", 2), ("test", "4,952", 2)):
        assert f"{name}.txt must list {expected} images, got {got}" in str(error.value)
    with pytest.raises(ValueError, match=r"trainval\.txt must list 5,011 images, got 5"):
        prepare("voc", root)


def test_missing_images(root: Path) -> None:
    (root / "VOC2007" / "JPEGImages" / "000017.jpg").unlink()
    with pytest.raises(ValueError, match=r"1 of 7 images are not in .*VOC2007/JPEGImages/000017\.jpg"):
        build_dataset("voc", root=root, split="train", check_counts=False)
    data = build_dataset("voc", root=root, split="train", check_counts=False, missing_images="drop")
    kept = {name: objects for name, objects in (VAL | TRAIN).items() if name != "000017"}
    assert [str(i) for i in data.ids] == list(kept)
    np.testing.assert_array_equal(dense_targets(data), oracle(kept, "unknown"))


def test_annotations_and_class_files_must_agree(root: Path) -> None:
    path = root / "VOC2007" / "ImageSets" / "Main" / "bicycle_trainval.txt"
    path.write_text(path.read_text().replace("000023  0", "000023  1").replace("000005 -1\n", ""))
    with pytest.raises(
        ValueError, match=r"class files of trainval, 2 differ or are not listed, for instance 000005 in bicycle_tr"
    ):
        prepare("voc", root, check_counts=False)
    index = prepare("voc", root, check_counts=False, class_files="ignore")
    assert index.targets[4, CLASSES.index("bicycle")] == -1 and index.manifest["counts"]["class_files_compared"] == 0
    path.write_text("000005 -1\n000007\n")
    with pytest.raises(ValueError, match=r"bicycle_trainval\.txt must have lines of an image and 1, -1 or 0"):
        prepare("voc", root, check_counts=False)
    path.unlink()
    assert prepare("voc", root, check_counts=False).manifest["counts"]["class_files_compared"] == 39


def test_everything_wrong_is_in_one_message(root: Path) -> None:
    folder = root / "VOC2007"
    (folder / "ImageSets" / "Main" / "test.txt").unlink()
    (folder / "Annotations" / "000005.xml").unlink()
    (folder / "Annotations" / "000007.xml").write_text(xml("000007", [])[:80])
    (folder / "Annotations" / "000012.xml").write_text(xml("000012", [("unicorn", False)]))
    (folder / "Annotations" / "000017.xml").write_text(
        '<?xml version="1.0"?>\n<!DOCTYPE a [<!ENTITY b "c">]>\n' + xml("000017", [])
    )
    (folder / "JPEGImages" / "000023.jpg").unlink()
    with pytest.raises(ValueError) as error:
        prepare("voc", root)
    for message in (
        "test.txt must be there, not found; unpack VOCtest_06-Nov-2007.tar beside it (or pass test_set=none)",
        "trainval.txt must list 5,011 images, got 5",
        "1 are missing, for instance 000005",
        "1 cannot be read, for instance 000007 (unclosed token",
        "1 have an object of another class, for instance 000012 ('unicorn')",
        "1 declare a document type, for instance 000017",
        "1 of 5 images are not in",
    ):
        assert message in str(error.value), message
    assert str(error.value).count("\n  - ") == 7


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            '<?xml version="1.0" encoding="foo"?>\n<annotation/>',
            "1 cannot be read, for instance 000005 (unknown encoding",
        ),
        ("<html><object><name>car</name></object></html>", "1 are no <annotation>, for instance 000005 (<html>)"),
        ("<annotation><object/></annotation>", "1 have an object of another class, for instance 000005 ('')"),
        (None, "1 cannot be read, for instance 000005 (Is a directory)"),
    ],
)
def test_one_damaged_file_is_one_problem_of_all(content: str | None, message: str, root: Path) -> None:
    path = root / "VOC2007" / "Annotations" / "000005.xml"
    path.unlink()
    if content is None:
        path.mkdir()
    else:
        path.write_text(content)
    (root / "VOC2007" / "JPEGImages" / "000023.jpg").unlink()
    with pytest.raises(ValueError) as error:
        prepare("voc", root, check_counts=False)
    assert message in str(error.value) and "1 of 7 images are not in" in str(error.value)
    assert str(error.value).count("\n  - ") == 2


@pytest.mark.parametrize(
    ("difficult", "value"),
    [("0", 1), ("1", -1), (" 1\n", -1), ("", 1), ("Unspecified", 1), ("2", None), ("-1", None), ("true", None)],
)
def test_what_difficult_may_say(difficult: str, value: int | None, root: Path) -> None:
    path = root / "VOC2007" / "Annotations" / "000012.xml"
    path.write_text(path.read_text().replace("<difficult>0<", f"<difficult>{difficult}<"))
    if value is None:
        with pytest.raises(ValueError, match=rf"1 have <difficult> other than 0 and 1, .* 000012 \('{difficult}'\)"):
            prepare("voc", root, check_counts=False, class_files="ignore")
    else:
        index = prepare("voc", root, check_counts=False, class_files="ignore")
        row = index.ids.to_pylist().index("000012")
        assert index.targets.toarray()[row].tolist() == [value if kind == "car" else 0 for kind in CLASSES]


def test_lists_with_a_byte_order_mark(root: Path) -> None:
    for path in (root / "VOC2007" / "ImageSets" / "Main").glob("*.txt"):
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    index = prepare("voc", root, check_counts=False)
    assert index.ids.to_pylist() == [*(VAL | TRAIN), *TEST]
    assert index.manifest["counts"]["class_files_compared"] == 40


def test_lists_must_not_overlap(root: Path) -> None:
    path = root / "VOC2007" / "ImageSets" / "Main" / "test.txt"
    path.write_text("000001\n000001\n000012\n")
    with pytest.raises(ValueError) as error:
        prepare("voc", root, check_counts=False)
    assert "ImageSets/Main/test.txt must list each image once, 1 are repeated such as 000001" in str(error.value)
    assert "ImageSets/Main/test.txt and trainval.txt must list each image once, 1 are repeated" in str(error.value)


def test_a_folder_of_something_else(tmp_path: Path) -> None:
    os.makedirs(tmp_path / "JPEGImages")
    with pytest.raises(ValueError, match=r"must be VOCdevkit or VOC2012 with the folder ImageSets/Main, not found"):
        prepare("voc", tmp_path, year="2012", test_set="none")
    (tmp_path / "ImageSets" / "Main").mkdir(parents=True)
    (tmp_path / "ImageSets" / "Main" / "trainval.txt").write_text("")
    with pytest.raises(ValueError, match=r"trainval\.txt must list images, it is empty"):
        prepare("voc", tmp_path, test_set="none", check_counts=False)
