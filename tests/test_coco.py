"""COCO: what the reader makes of miniature and of real instance files, compared with pycocotools on every image."""

import contextlib
import io
import json
import re
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from zsmld.datasets import Index, build_dataset, dense_targets, prepare
from zsmld.datasets.coco import targets_by_size
from zsmld.resources import resource_path

NAMES = resource_path("data", "coco", "classes.txt").read_text().splitlines()
# COCO's numbers have gaps; these are the official ones.
GAPS = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}
IDS = [i for i in range(1, 91) if i not in GAPS]
ID_OF = dict(zip(NAMES, IDS, strict=True))
PARTITIONS = {
    n: json.loads(resource_path("data", "coco", f"partition_{n}.json").read_text()) for n in ("48_17", "65_15")
}

Objects = list[tuple[str, float, int]]  # name, area, iscrowd
TRAIN: dict[int, Objects] = {
    9: [("bowl", 120057.1, 0), ("bowl", 44434.7, 0), ("orange", 1023.9, 0)],
    25: [],
    30: [("person", 1024, 0), ("hot dog", 9215.99, 0), ("cat", 9216, 0)],
    34: [("zebra", 500, 0), ("person", 12000, 1)],
    36: [("dog", 20000, 0), ("cat", 100, 0)],
}
VAL: dict[int, Objects] = {
    139: [("toothbrush", 3, 0), ("cat", 50000, 0), ("keyboard", 10, 0)],
    285: [],
    632: [("hair drier", 800, 1)],
    724: [("person", 5000, 0), ("bus", 5000, 0)],
}


def file_name(image: int, split: str, year: str) -> str:
    return f"COCO_{split}2014_{image:012d}.jpg" if year == "2014" else f"{image:012d}.jpg"


def instances(images: dict[int, Objects], split: str, year: str, names: list[str] = NAMES) -> dict[str, Any]:
    """The content of an instances_*.json of some categories, keys as in the distributed ones."""
    annotations = [
        {
            "segmentation": {"counts": [1, 2], "size": [6, 8]} if crowd else [[1.0, 1.0, 5.0, 1.0, 5.0, 4.0]],
            "area": area,
            "iscrowd": crowd,
            "image_id": image,
            "bbox": [1.0, 1.0, 4.0, 3.0],
            "category_id": ID_OF[name],
        }
        for image, objects in images.items()
        for name, area, crowd in objects
        if name in names
    ]
    return {
        "info": {
            "description": f"COCO {year} Dataset",
            "url": "http://cocodataset.org",
            "version": "1.0",
            "year": year,
        },
        "licenses": [{"url": "http://creativecommons.org/licenses/by-nc-sa/2.0/", "id": 1, "name": "License"}],
        "images": [
            {"license": 1, "file_name": file_name(i, split, year), "height": 6, "width": 8, "id": i} for i in images
        ],
        "annotations": [a | {"id": 900_000 - n} for n, a in enumerate(annotations)],
        "categories": [{"supercategory": "s", "id": ID_OF[n], "name": n} for n in reversed(names)],
    }


def write_coco(root: Path, year: str = "2014", under: str = "", split_folders: bool = True) -> Path:
    """annotations/instances_{train,val}<year>.json, and photos in <under><split><year>/."""
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    for split, images in (("train", TRAIN), ("val", VAL)):
        content = json.dumps(instances(images, split, year))
        (root / "annotations" / f"instances_{split}{year}.json").write_text(content)
        folder = root / under / (f"{split}{year}" if split_folders else "")
        folder.mkdir(parents=True, exist_ok=True)
        for image in images:
            Image.new("RGB", (8, 6), "blue").save(folder / file_name(image, split, year))
    return root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_coco(tmp_path / "coco")


def oracle(
    images: dict[int, Objects],
    words: list[str],
    crowd: str = "keep",
    sizes: tuple[str, ...] = ("small", "medium", "large"),
    min_area: float = 0,
) -> np.ndarray:
    """The plain reading: one object after the other."""
    targets = np.zeros((len(images), len(words)), np.int8)
    for row, objects in enumerate(images.values()):
        for name, area, is_crowd in objects:
            size = "small" if area < 1024 else "medium" if area < 9216 else "large"
            if name in words and size in sizes and area >= min_area and not (crowd == "drop" and is_crowd):
                targets[row, words.index(name)] = 1
    return targets


def pycocotools_targets(path: Path) -> dict[int, set[str]]:
    """image -> names, by pycocotools' own look-ups."""
    from pycocotools.coco import COCO

    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(path))
    return {
        image: {coco.cats[a["category_id"]]["name"] for a in coco.loadAnns(coco.getAnnIds(imgIds=[image]))}
        for image in coco.getImgIds()
    }


def named(data: Any) -> dict[int, set[str]]:
    dense = dense_targets(data)
    return {
        int(str(i)): {w for w, t in zip(data.vocabulary.words, row, strict=True) if t == 1}
        for i, row in zip(data.ids, dense, strict=True)
    }


# ------------------------------------------------------------------------------------------------------------- labels


@pytest.mark.parametrize("year", ["2014", "2017"])
def test_every_image_has_the_words_of_its_objects(
    year: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_coco(tmp_path, year)
    for split, official, images in (("train", "train", TRAIN), ("test", "val", VAL)):
        data = build_dataset("coco", root=root, split=split, year=year, check_counts=False)
        assert data.name == f"coco{year}" and data.vocabulary.words == tuple(NAMES) and data.missing == 0
        assert [str(i) for i in data.ids] == [
            str(i) for i in images
        ]  # images without an object too, in the file's order
        assert [str(p) for p in data.paths] == [f"{official}{year}/{file_name(i, official, year)}" for i in images]
        np.testing.assert_array_equal(dense_targets(data), oracle(images, NAMES))
        assert named(data) == pycocotools_targets(root / "annotations" / f"instances_{official}{year}.json")
        assert data[0]["image"].size == (8, 6)
    assert capsys.readouterr().out == ""


def test_real_annotations(real: Path, tmp_path: Path) -> None:
    """Real instance annotations and photos, halved into train and val."""
    content = json.loads((real / "coco_photos" / "instances_subset.json").read_text())
    (tmp_path / "annotations").mkdir()
    (tmp_path / "images").symlink_to(real / "coco_photos" / "images", target_is_directory=True)
    middle, files = len(content["images"]) // 2, {}
    for split, images in (("train", content["images"][:middle]), ("val", content["images"][middle:])):
        ids = {image["id"] for image in images}
        part = content | {"images": images, "annotations": [a for a in content["annotations"] if a["image_id"] in ids]}
        files[split] = tmp_path / "annotations" / f"instances_{split}2017.json"
        files[split].write_text(json.dumps(part))
    index = prepare("coco", tmp_path, num_decoded=8, year="2017", check_counts=False)
    assert index.words == tuple(NAMES) and len(index) == 169
    crowds = 0
    for split, path in (("train", files["train"]), ("test", files["val"])):
        data = index.dataset(split)
        expected = pycocotools_targets(path)
        assert named(data) == expected and len(data) == len(expected) >= 84
        crowds += index.manifest["counts"][split]["crowd_annotations"]
        assert index.manifest["counts"][split]["labels"] == sum(map(len, expected.values()))
    assert crowds == 14
    published = {
        line.split(",")[0]: set(line.split(",")[1].split("|"))
        for line in (real / "coco_photos" / "labels.csv").read_text().splitlines()[1:]
    }
    agreeing = [published[f"{i:012d}.jpg"] == words for i, words in named(index.dataset("all")).items()]
    assert len(agreeing) == 169 and np.mean(agreeing) > 0.99
    sizes = targets_by_size(files["train"])
    most = sizes["small"].maximum(sizes["medium"]).maximum(sizes["large"])
    assert (most != index.dataset("train").targets).nnz == 0


@pytest.mark.parametrize("crowd", ["keep", "drop"])
@pytest.mark.parametrize("sizes", [("small",), ("medium",), ("large",), ("large", "small")])
def test_policies_of_objects(crowd: str, sizes: tuple[str, ...], root: Path) -> None:
    index = prepare("coco", root, crowd=crowd, sizes=list(sizes), check_counts=False)
    np.testing.assert_array_equal(index.targets.toarray(), oracle(TRAIN | VAL, NAMES, crowd, sizes))
    assert index.manifest["policies"] == {"year": "2014", "crowd": crowd, "sizes": list(sizes), "min_area": 0.0}


def test_the_three_sizes_are_a_third_each(root: Path) -> None:
    by_size = targets_by_size(root / "annotations" / "instances_train2014.json")
    assert list(by_size) == ["small", "medium", "large"]
    for size, targets in by_size.items():
        np.testing.assert_array_equal(targets.toarray(), oracle(TRAIN, NAMES, sizes=(size,)))
    borders = by_size["medium"].toarray()[2]  # 32² is medium, and so is what is just below 96²
    assert {NAMES[j] for j in np.flatnonzero(borders)} == {"person", "hot dog"}
    kept = targets_by_size(root / "annotations" / "instances_train2014.json", crowd="drop")["large"]
    assert by_size["large"].nnz - kept.nnz == 1
    with pytest.raises(FileNotFoundError, match=r"instances must be an existing JSON file, not found"):
        targets_by_size(root / "nothing.json")
    (root / "broken.json").write_text("[")
    with pytest.raises(ValueError, match=r"broken\.json must be a COCO instance file, found:\n  - .* it is damaged"):
        targets_by_size(root / "broken.json")


object_lists = st.lists(
    st.tuples(
        st.sampled_from(NAMES), st.sampled_from([0.5, 1023.99, 1024, 9215.99, 9216, 3e5]), st.sampled_from([0, 0, 1])
    ),
    max_size=5,
)


@settings(max_examples=25)
@given(
    st.dictionaries(st.integers(1, 999_999), object_lists, min_size=2, max_size=8),
    st.sampled_from(["keep", "drop"]),
    st.sets(st.sampled_from(["small", "medium", "large"]), min_size=1),
    st.sampled_from([0.0, 1024.0, 5000.0]),
)
def test_any_objects(images: dict[int, Objects], crowd: str, sizes: set[str], min_area: float) -> None:
    middle = len(images) // 2
    parts = {"train": dict(list(images.items())[:middle]), "val": dict(list(images.items())[middle:])}
    with TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "annotations").mkdir()
        (root / "images").mkdir()
        for split, part in parts.items():
            path = root / "annotations" / f"instances_{split}2017.json"
            path.write_text(json.dumps(instances(part, split, "2017")))
            for image in part:
                (root / "images" / file_name(image, split, "2017")).touch()
        index = prepare(
            "coco",
            root,
            num_decoded=0,
            year="2017",
            crowd=crowd,
            sizes=tuple(sizes),
            min_area=min_area,
            check_counts=False,
        )
    np.testing.assert_array_equal(index.targets.toarray(), oracle(images, NAMES, crowd, tuple(sizes), min_area))
    assert index.ids.to_pylist() == [str(i) for i in images]


# --------------------------------------------------------------------------------------------------------- partitions


def test_partitions_are_those_of_the_literature(real: Path, root: Path) -> None:
    published = json.loads((real / "coco_photos" / "zero_shot_partitions.json").read_text())
    index = prepare("coco", root, check_counts=False)
    assert published["names"] == NAMES == list(index.words)
    assert list(index.partitions) == ["80", "48_17", "65_15"]
    assert index.partitions["80"] == {"seen": NAMES, "unseen": []}
    for name in ("48_17", "65_15"):
        assert index.partitions[name] == published[name.replace("_", "/")] == PARTITIONS[name]
        seen, unseen = (PARTITIONS[name][side] for side in ("seen", "unseen"))
        assert (len(seen), len(unseen)) == tuple(map(int, name.split("_"))) and not set(seen) & set(unseen)
        assert sorted(seen, key=NAMES.index) == seen and sorted(unseen, key=NAMES.index) == unseen


def test_training_images_of_a_zero_shot_partition(root: Path) -> None:
    options: dict[str, Any] = {"root": root, "check_counts": False}
    data = build_dataset("coco", split="train", partition="48_17", **options)
    assert named(data) == {9: {"bowl", "orange"}, 30: {"person", "cat"}, 34: {"zebra", "person"}}
    data = build_dataset("coco", split="train", partition="48_17", exclude_unseen_images=True, **options)
    assert list(named(data)) == [9, 34]
    data = build_dataset("coco", split="train", partition="65_15", **options)
    assert list(named(data)) == [9, 30, 34, 36]
    data = build_dataset("coco", split="test", partition="48_17", **options)
    assert list(named(data)) == list(VAL) and data.vocabulary.unseen == tuple(PARTITIONS["48_17"]["unseen"])
    data = build_dataset("coco", split="test", partition="48_17", keep_unlabelled=False, **options)
    assert list(named(data)) == [139, 724]
    assert len(build_dataset("coco", split="val", val_fraction=0.4, **options)) == 2


# ---------------------------------------------------------------------------------------------------------- test lists

UNSEEN_LIST = {724: VAL[724], 139: VAL[139], 30: TRAIN[30]}  # of both official splits, in an order of its own


def test_an_instance_file_replaces_the_test_list(root: Path, tmp_path: Path) -> None:
    words = sorted(PARTITIONS["48_17"]["seen"] + PARTITIONS["48_17"]["unseen"], key=NAMES.index)
    content = instances(UNSEEN_LIST, "val", "2014", words)
    content["images"][2]["file_name"] = file_name(30, "train", "2014")
    path = tmp_path / "instances_val2014_gzsi_48_17.json"
    path.write_text(json.dumps(content))
    index = prepare("coco", root, tmp_path / "index", test_instances=str(path), check_counts=False)
    assert index.ids.to_pylist() == ["9", "25", "34", "36", "724", "139", "30"]  # 30 is no training image any more
    assert index.manifest["counts"]["training_images_moved_to_test"] == 1
    assert index.paths[6].as_py() == "train2014/COCO_train2014_000000000030.jpg"
    data = index.dataset("test", "48_17")
    np.testing.assert_array_equal(dense_targets(data), oracle(UNSEEN_LIST, list(data.vocabulary.words)))
    outside = [NAMES.index(word) for word in NAMES if word not in words]
    assert len(outside) == 15 and (dense_targets(index.dataset("test"))[:, outside] == -1).all()
    assert (dense_targets(index.dataset("train")) >= 0).all()
    fingerprints = Index.open(tmp_path / "index").manifest["fingerprints"]
    assert fingerprints["48_17_zsl"] == {
        "num_listed_images": 3,
        "labels_per_image": round(4 / 3, 4),
        "literature": {"num_images": 2729, "labels_per_image": 1.2074},
        "matches": False,
    }
    assert fingerprints["48_17_gzsl"]["num_listed_images"] == 3
    assert fingerprints["48_17_gzsl"]["labels_per_image"] == 2.3333
    data = index.dataset("test", "48_17", keep_unlabelled=False)
    assert len(data) == fingerprints["48_17_gzsl"]["num_listed_images"]

    # found by its name in annotations/ as well, and then the official val is not needed
    path.rename(root / "annotations" / path.name)
    (root / "annotations" / "instances_val2014.json").unlink()
    again = prepare("coco", root, test_instances=path.name, check_counts=False)
    assert (again.targets != index.targets).nnz == 0
    assert "fingerprints" not in prepare("coco", write_coco(tmp_path / "b"), check_counts=False).manifest


def test_fingerprints_are_those_of_the_list_though_none_of_its_photos_is_there(tmp_path: Path) -> None:
    """A made-up list with the published number of images and labels: 2,729 with 3,295, and 6,392 with 16,429."""
    write_coco(tmp_path)
    unseen, seen = PARTITIONS["48_17"]["unseen"], PARTITIONS["48_17"]["seen"]
    zsl, gzsl = 3295, 16429
    assert round(zsl / 2729, 4) == 1.2074 and round(gzsl / 6392, 4) == 2.5702
    images: dict[int, Objects] = {}
    for i in range(6392):
        objects = [unseen[i % 17]] if i < 2729 else [seen[i % 48]]
        objects += [unseen[(i + 1) % 17]] if i < zsl - 2729 else []
        images[1000 + i] = [(name, 50.0, 0) for name in objects]
    for i in range(gzsl - zsl - (6392 - 2729)):
        images[1000 + i % 6392].append((seen[(i % 6392 + 7 + i // 6392) % 48], 50.0, 0))
    images[1_000_000] = [("hot dog", 50.0, 0)]  # a word of neither side
    (tmp_path / "list.json").write_text(json.dumps(instances(images, "val", "2014")))
    options = {
        "test_instances": tmp_path / "list.json",
        "check_counts": False,
        "missing_images": "drop",
        "num_decoded": 0,
    }
    index = prepare("coco", tmp_path, **options)
    assert set(index.splits.tolist()) == {"train"} and len(index.manifest["missing_images"]) == 6393
    fingerprints = index.manifest["fingerprints"]
    assert fingerprints["48_17_zsl"]["matches"] is True and fingerprints["48_17_gzsl"]["matches"] is True
    assert [fingerprints[f"48_17_{task}"]["num_listed_images"] for task in ("zsl", "gzsl")] == [2729, 6392]
    for image in (1000, 1600, 1601, 1602, 1603):  # of the unseen words one has two, the others one: 1.2074 as before
        del images[image]
    (tmp_path / "list.json").write_text(json.dumps(instances(images, "val", "2014")))
    fingerprints = prepare("coco", tmp_path, **options).manifest["fingerprints"]
    assert not fingerprints["48_17_zsl"]["matches"] and not fingerprints["48_17_gzsl"]["matches"]
    zsl_list = fingerprints["48_17_zsl"]
    assert (zsl_list["num_listed_images"], zsl_list["labels_per_image"]) == (2724, 1.2074)


# -------------------------------------------------------------------------------------------------------------- layout


@pytest.mark.parametrize(("under", "split_folders"), [("images", True), ("images", False), ("", False)])
def test_other_places_of_photos(under: str, split_folders: bool, tmp_path: Path) -> None:
    root = write_coco(tmp_path, "2017", under, split_folders)
    index = prepare("coco", root, year=2017, check_counts=False)
    folder = "/".join(part for part in (under, "train2017" if split_folders else "") if part)
    assert index.paths[0].as_py() == (f"{folder}/" if folder else "") + "000000000009.jpg"


def test_the_photos_of_one_year_serve_the_files_of_the_other(tmp_path: Path) -> None:
    root = write_coco(tmp_path, "2014")
    for split in ("train", "val"):
        path = root / "annotations" / f"instances_{split}2014.json"
        path.write_text(path.read_text().replace(f"COCO_{split}2014_", ""))
        path.rename(path.with_name(f"instances_{split}2017.json"))
    index = prepare("coco", root, year="2017", check_counts=False)
    assert index.paths[0].as_py() == "train2014/COCO_train2014_000000000009.jpg"
    with pytest.raises(ValueError, match=r"instances_train2014\.json must be there, not found; .*, or pass year=2017"):
        prepare("coco", root, check_counts=False)
    root = write_coco(tmp_path / "other", "2014")
    for split, images in (("train", TRAIN), ("val", VAL)):
        (root / f"{split}2014").rename(root / f"{split}2017")
        for image in images:
            name = file_name(image, split, "2014")
            (root / f"{split}2017" / name).rename(root / f"{split}2017" / name[-16:])
    assert prepare("coco", root, check_counts=False).paths[0].as_py() == "train2017/000000000009.jpg"


def write_own_set(root: Path, names: dict[str, list[str]], photos: dict[str, str]) -> Path:
    """A set of your own: split -> file names of its instance file, and path -> colour of the photos."""
    (root / "annotations").mkdir(parents=True)
    for number, (split, files) in enumerate(names.items()):
        ids = range(100 * number, 100 * number + len(files))
        content = instances({i: [("cat", 50.0, 0)] for i in ids}, split, "2014")
        for entry, file in zip(content["images"], files, strict=True):
            entry["file_name"] = file
        (root / "annotations" / f"instances_{split}2014.json").write_text(json.dumps(content))
    for path, colour in photos.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 6), colour).save(root / path)
    return root


@pytest.mark.parametrize("under", ["", "images/"])
@pytest.mark.parametrize("file", ["0001.jpg", "cam/0001.jpg", "000000000001.jpg", "cam/IMG_20140101120000.jpg"])
def test_a_name_of_both_splits_is_the_photo_of_its_own(under: str, file: str, tmp_path: Path) -> None:
    photos = {f"{under}{split}2014/{file}": colour for split, colour in (("train", "red"), ("val", "blue"))}
    photos["cam/0002.jpg"] = "green"
    root = write_own_set(tmp_path, {"train": [file, "cam/0002.jpg"], "val": [file]}, photos)
    index = prepare("coco", root, check_counts=False)
    assert index.paths.to_pylist() == [f"{under}train2014/{file}", "cam/0002.jpg", f"{under}val2014/{file}"]
    assert index.dataset("train")[0]["image"].getpixel((0, 0))[0] > 200
    assert index.dataset("test")[0]["image"].getpixel((0, 0))[2] > 200


@pytest.mark.parametrize("file", ["0001.jpg", "cam/0001.jpg", "000000000001.jpg"])
def test_a_missing_photo_is_not_replaced_by_another_of_that_name(file: str, tmp_path: Path) -> None:
    photos = {f"val2014/{file}": "blue", "train2014/0003.jpg": "red", "train2014/other/0001.jpg": "red"}
    root = write_own_set(tmp_path, {"train": [file, "0003.jpg"], "val": [file]}, photos)
    with pytest.raises(ValueError, match=rf"1 of 3 images are not in .*, for instance train2014/{file}; complete"):
        prepare("coco", root, check_counts=False)


def test_only_names_of_coco_itself_are_found_by_their_digits(tmp_path: Path) -> None:
    listed = ["cam_a_201401011200.jpg", "COCO_train2014_000000000030.jpg", "12000000000030.jpg"]
    photos = {
        "train2014/cam_b_201401011200.jpg": "red",
        "val2017/000000000030.jpg": "red",
        "val2014/0003.jpg": "blue",
        "val2014/COCO_val2014_000000000031.jpg": "blue",
    }
    root = write_own_set(tmp_path, {"train": listed, "val": ["0003.jpg", "000000000031.jpg"]}, photos)
    index = prepare("coco", root, missing_images="drop", check_counts=False)
    assert index.manifest["missing_images"] == ["train2014/cam_a_201401011200.jpg", "train2014/12000000000030.jpg"]
    assert index.paths.to_pylist() == [
        "val2017/000000000030.jpg",
        "val2014/0003.jpg",
        "val2014/COCO_val2014_000000000031.jpg",
    ]


def test_the_index_survives_saving(root: Path, tmp_path: Path) -> None:
    index = prepare("coco", root, tmp_path / "index", check_counts=False)
    opened = Index.open(tmp_path / "index")
    assert (opened.targets != index.targets).nnz == 0 and opened.ids.equals(index.ids)
    assert opened.partitions == index.partitions and opened.splits.tolist() == ["train"] * 5 + ["test"] * 4
    assert opened.manifest["counts"] == {
        "train": {
            "images": 5,
            "images_without_annotation": 1,
            "images_without_label": 1,
            "annotations": 10,
            "crowd_annotations": 1,
            "labels": 9,
        },
        "test": {
            "images": 4,
            "images_without_annotation": 1,
            "images_without_label": 1,
            "annotations": 6,
            "crowd_annotations": 1,
            "labels": 6,
        },
    }


def test_a_set_of_your_own_in_the_same_format(tmp_path: Path) -> None:
    names = ["person", "traffic light"]
    (tmp_path / "annotations").mkdir()
    for split, images in (("train", TRAIN), ("val", VAL)):
        content = json.dumps(instances(images, split, "2017", names) | {"info": "école"}, ensure_ascii=False)
        (tmp_path / "annotations" / f"instances_{split}2017.json").write_text(content, encoding="utf-8-sig")
        for image in images:
            Image.new("RGB", (8, 6)).save(tmp_path / file_name(image, split, "2017"))
    index = prepare("coco", tmp_path, year="2017", check_counts=False)
    assert index.words == tuple(names) and list(index.partitions) == ["2"]
    np.testing.assert_array_equal(index.targets.toarray(), oracle(TRAIN | VAL, names))
    with pytest.raises(ValueError, match=r"must have the 80 categories of COCO, got 2 with \['airplane'.* amiss"):
        prepare("coco", tmp_path, year="2017")


# ------------------------------------------------------------------------------------------------------ what is wrong


def test_the_official_counts_are_asked_for(tmp_path: Path) -> None:
    for year, (train, val) in {"2014": ("82,783", "40,504"), "2017": ("118,287", "5,000")}.items():
        root = write_coco(tmp_path / year, year)
        with pytest.raises(ValueError) as error:
            prepare("coco", root, year=year)
        assert f"instances_train{year}.json must have {train} images, got 5" in str(error.value)
        assert f"instances_val{year}.json must have {val} images, got 4" in str(error.value)
        assert f"instances_val{year}.json must have {'291,875' if year == '2014' else '36,781'} ann" in str(error.value)
        assert "categories of COCO" not in str(error.value)


def test_missing_images(root: Path) -> None:
    (root / "val2014" / file_name(139, "val", "2014")).unlink()
    with pytest.raises(ValueError, match=r"1 of 9 images are not in .*val2014/COCO_val2014_000000000139\.jpg"):
        build_dataset("coco", root=root, split="test", check_counts=False)
    data = build_dataset("coco", root=root, split="test", check_counts=False, missing_images="drop")
    kept = {i: objects for i, objects in VAL.items() if i != 139}
    np.testing.assert_array_equal(dense_targets(data), oracle(kept, NAMES))


def test_everything_wrong_is_in_one_message(root: Path) -> None:
    path = root / "annotations" / "instances_train2014.json"
    content = json.loads(path.read_text())
    content["annotations"][0]["image_id"] = 4711
    content["annotations"][1]["category_id"] = 12
    del content["annotations"][2]["area"]
    content["annotations"][3]["iscrowd"] = None
    content["annotations"].append("an annotation")
    content["images"].append(content["images"][0])
    content["images"].append({"id": 5, "file_name": None})
    content["images"].append({"id": 10**30, "file_name": "a.jpg"})
    path.write_text(json.dumps(content))
    (root / "annotations" / "instances_val2014.json").write_text('{"images": [], "annot')
    (root / "train2014" / file_name(25, "train", "2014")).unlink()
    with pytest.raises(ValueError) as error:
        prepare("coco", root)
    for message in (
        "instances_train2014.json must have 82,783 images, got 5",
        "1 annotations are of an unknown image such as 4711",
        "1 annotations are of an unknown category such as 12",
        "in each entry of annotations, 3 lack one or have another type, the first at position 2",
        "in each entry of images, 2 lack one or have another type, the first at position 6",
        "must list each of its images once, 1 ids are repeated such as 9",
        "instances_val2014.json must be JSON, it is damaged",
        "1 of 5 images are not in",
    ):
        assert message in str(error.value), message


@pytest.mark.parametrize("content", ["[]", '{"images": {}, "categories": []}', "null"])
def test_a_file_of_something_else(content: str, root: Path) -> None:
    (root / "annotations" / "instances_val2014.json").write_text(content)
    lists = r"images and categories and annotations" if "{" not in content else r"images and annotations"
    with pytest.raises(ValueError, match=rf"lists images, annotations and categories, it lacks {lists}; take an inst"):
        prepare("coco", root, check_counts=False)


@pytest.mark.parametrize("area", [-1.0, -120057.1, float("inf"), pytest.param(10**400, id="huge")])
def test_an_object_of_no_size_is_no_silent_absence(area: float, root: Path) -> None:
    path = root / "annotations" / "instances_train2014.json"
    content = json.loads(path.read_text())
    content["annotations"][3]["area"] = area
    path.write_text(json.dumps(content))
    finite = abs(area) < 1e300
    message = (
        "must have areas of at least 0 pixels, 1 annotations have a negative one such as that of id 899997; correct"
    )
    with pytest.raises(ValueError) as error:
        prepare("coco", root, check_counts=False)
    assert (message if finite else "entry of annotations, 1 lack one or have another type") in str(error.value)


def test_lists_in_lists_without_end(root: Path) -> None:
    (root / "annotations" / "instances_val2014.json").write_text('{"images": ' + "[" * 200_000)
    (root / "train2014" / file_name(25, "train", "2014")).unlink()
    with pytest.raises(ValueError) as error:
        prepare("coco", root, check_counts=False)
    assert "instances_val2014.json must be JSON, it is damaged: maximum recursion depth" in str(error.value)
    assert "1 of 5 images are not in" in str(error.value)


def test_damaged_lists_of_categories_and_images(root: Path) -> None:
    path = root / "annotations" / "instances_val2014.json"
    original = path.read_text()
    content = json.loads(original)
    content["categories"][1]["name"] = content["categories"][0]["name"]
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"4 images and 80 categories with 79 names"):
        prepare("coco", root, check_counts=False)
    path.write_text(original.replace('"name": "cat"', '"name": "kitten"'))
    with pytest.raises(ValueError, match=r"categories of instances_train2014\.json, got \['kitten'\] besides"):
        prepare("coco", root, check_counts=False)
    content = instances({**VAL, 9: []}, "val", "2014")
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"must share no image, they share 1 such as 9; take both of one year"):
        prepare("coco", root, check_counts=False)
    path.write_text(json.dumps(instances({}, "val", "2014")))
    with pytest.raises(ValueError, match=r"got 0 images and 80 categories"):
        prepare("coco", root, check_counts=False)


def test_options_are_checked(root: Path) -> None:
    for options, message in (
        ({"year": "2015"}, "year must be 2014 or 2017, got '2015'; choose one"),
        ({"crowd": "maybe"}, "crowd must be 'keep' or 'drop', got 'maybe'; choose one"),
        ({"sizes": []}, "sizes must be some of ['small', 'medium', 'large'], got []; correct them"),
        ({"sizes": ["huge"]}, "sizes must be some of ['small', 'medium', 'large'], got ['huge']; correct them"),
        ({"min_area": -1}, "min_area must be at least 0 pixels, got -1; raise it"),
        ({"min_area": float("nan")}, "min_area must be at least 0 pixels, got nan; raise it"),
        ({"test_instances": "no.json"}, "test_instances must be an existing instance file, not found: no.json"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            build_dataset("coco", root=root, split="train", check_counts=False, **options)
