"""Folder trees: words are folders' names; ImageNet's layout."""

import json
import os
import sys
from pathlib import Path

import pytest
from PIL import Image

from zsmld.datasets import Index, IndexedDataset, build_dataset, prepare
from zsmld.datasets.folder import distinct_words

MAPPING = (
    "n01440764 tench, Tinca tinca\nn02012849 crane\nn03126707 crane\nn03710637 maillot\nn03710721 maillot, tank suit\n"
)


def plant(root: Path, *paths: str) -> Path:
    """Tiny JPEGs at some paths below root."""
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (2, 3)).save(root / path, "JPEG")
    return root


def plant_imagenet(root: Path) -> Path:
    """As ILSVRC2012's archives unpack, val sorted into folders."""
    folders = [line.split()[0] for line in MAPPING.splitlines()]
    plant(root, *(f"train/{folder}/{folder}_{i}.JPEG" for folder in folders for i in range(3)))
    plant(root, *(f"val/{folder}/ILSVRC2012_val_{i:08d}.JPEG" for i, folder in enumerate(folders, 1)))
    (root / "LOC_synset_mapping.txt").write_text(MAPPING, encoding="utf-8")
    return root


def word_of(dataset: IndexedDataset) -> dict[str, str]:
    """{id: its word}, through the items."""
    items = [dataset[i] for i in range(len(dataset))]
    assert all(item["targets"].sum() == 1 and set(item["targets"]) <= {0, 1} for item in items)
    return {item["id"]: dataset.vocabulary.words[int(item["targets"].argmax())] for item in items}


def test_folders_are_words_and_ids_are_paths(tmp_path: Path) -> None:
    root = plant(tmp_path / "pets", "dog/1.jpg", "dog/old/deep/1.PNG", "red car/1.jpg", "cat/x.jpeg", "loose.jpg")
    (root / "cat" / "notes.txt").write_text("no image")
    (root / "empty").mkdir()
    (root / ".hidden").mkdir()
    dataset = build_dataset("folder", root=root, split="all")
    assert dataset.name == "pets" and dataset.vocabulary.words == ("cat", "dog", "red car") and dataset.missing == 0
    expected = {"cat/x.jpeg": "cat", "dog/1.jpg": "dog", "dog/old/deep/1.PNG": "dog", "red car/1.jpg": "red car"}
    assert word_of(dataset) == expected
    index = Index.open(prepare("folder", root, tmp_path / "prepared").save(tmp_path / "prepared"))
    assert word_of(index.dataset("all")) == expected
    assert index.manifest["counts"] == {
        "images_without_a_word": 1,
        "folders_without_images": 1,
        "words_without_images": 0,
        "words_renamed_as_others_have_their_name": 0,
        "files_of_other_kinds": {".txt": 1},
    }


def test_random_division_covers_everything_and_repeats(tmp_path: Path) -> None:
    root = plant(tmp_path, *(f"{word}/{i}.jpg" for word in ("dog", "cat") for i in range(10)))
    parts = {split: build_dataset("folder", root=root, split=split) for split in ("train", "val", "test")}
    assert {split: len(part) for split, part in parts.items()} == {"train": 14, "val": 2, "test": 4}
    assert len(set().union(*(part.ids.to_pylist() for part in parts.values()))) == 20
    again = build_dataset("folder", root=root, split="test")
    assert again.ids.equals(parts["test"].ids)
    other = build_dataset("folder", root=root, split="test", seed=1, test_fraction=0.5)
    assert len(other) == 10
    with pytest.raises(ValueError, match=r"must leave rows to train on, got 0.6 and 0.5"):
        build_dataset("folder", root=root, split="test", val_fraction=0.6, test_fraction=0.5)


def test_imagenet_with_its_names(tmp_path: Path) -> None:
    root = plant_imagenet(tmp_path)
    options = {"root": root, "class_names": root / "LOC_synset_mapping.txt"}
    train = build_dataset("folder", split="train", **options)
    assert train.vocabulary.words == ("tench", "crane", "crane (n03126707)", "maillot", "maillot (n03710721)")
    assert len(train) == 15 and word_of(train)["train/n03126707/n03126707_2.JPEG"] == "crane (n03126707)"
    assert word_of(build_dataset("folder", split="val", **options))["val/n01440764/ILSVRC2012_val_00000001.JPEG"] == (
        "tench"
    )
    with pytest.raises(ValueError, match=r"split 'test' of .* must have images, it has \['train', 'val'\]"):
        build_dataset("folder", split="test", **options)
    test = build_dataset("folder", split="test", val_as_test=True, **options)
    assert len(test) == 5 and all(path.startswith("val/") for path in test.ids.to_pylist())
    assert len(build_dataset("folder", split="val", val_as_test=True, val_fraction=0.2, **options)) == 3
    with pytest.raises(
        ValueError, match=r"val_fraction must be 0 for a tree that has val images, got 0.2; leave it out"
    ):
        build_dataset("folder", split="val", val_fraction=0.2, **options)


@pytest.mark.parametrize(
    "content",
    [
        {"n1": "tench", "n2": "great_white shark", "n3": "tench"},
        {"0": ["n1", "tench"], "1": ["n2", "great_white shark"], "2": ["n3", "tench"]},
    ],
)
def test_names_in_json_and_a_name_without_folder(content: dict, tmp_path: Path) -> None:
    root = plant(tmp_path / "tree", "n1/a.jpg", "n3/a.jpg")
    (tmp_path / "names.json").write_text(json.dumps(content), encoding="utf-8")
    index = prepare("folder", root, class_names=tmp_path / "names.json")
    assert index.words == ("tench", "great white shark", "tench (n3)")
    assert word_of(index.dataset("all")) == {"n1/a.jpg": "tench", "n3/a.jpg": "tench (n3)"}
    assert index.manifest["counts"]["words_without_images"] == 1
    assert index.manifest["counts"]["words_renamed_as_others_have_their_name"] == 1


def test_flat_val_needs_its_solution(tmp_path: Path) -> None:
    root = plant(tmp_path, "train/n1/a.JPEG", "train/n2/b.JPEG", "val/v_1.JPEG", "val/v_2.JPEG", "val/v_3.JPEG")
    plant(root, "test/t_1.JPEG")
    with pytest.raises(
        ValueError, match=r"val must hold a folder a word, got 3 images directly, .* pass val_list=LOC_val"
    ):
        build_dataset("folder", root=root, split="val")
    text = "ImageId,PredictionString\nv_2,n1 1 2 3 4 n1 5 6 7 8 \nv_1,n2 85 1 499 272 \n"
    (root / "LOC_val_solution.csv").write_text(text, encoding="utf-8")
    index = prepare("folder", root, val_list=root / "LOC_val_solution.csv")
    assert word_of(index.dataset("val")) == {"val/v_1.JPEG": "n2", "val/v_2.JPEG": "n1"}
    assert index.manifest["counts"]["images_without_a_word"] == 2  # v_3, and the test image, have no label
    (root / "LOC_val_solution.csv").write_text("a,b\n1,2\n", encoding="utf-8")
    with pytest.raises(ValueError, match="val_list must have the columns ImageId,PredictionString"):
        prepare("folder", root, val_list=root / "LOC_val_solution.csv")
    with pytest.raises(ValueError, match=r"val_list must be an existing file, not found: none.csv"):
        prepare("folder", root, val_list="none.csv")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"v_1,n1 1 2 3 4\nv_2", r"LOC_val_solution.csv has not in 1, such as line 3; download it again"),
        (b"v_1,n1 1 2 3 4\nv_2,", r"LOC_val_solution.csv has not in 1, such as line 3"),
        (b"v_1,n1 1 2 3 4\nv_2,n0", r"LOC_val_solution.csv has not in 1, such as line 3"),  # of n02012849
        (b"v_1,n1\n\nv_2,\n", r"LOC_val_solution.csv has not in 1, such as line 4"),
        (b"v_1,n1\nv_\xe9,n1\n", r"must be a UTF-8 text file, .*LOC_val_solution.csv is not in line 3: invalid"),
        (b'v_1,n1\n"v_2,n1\n', r"must be a CSV file, .*LOC_val_solution.csv is not in line 3: unexpected end"),
        (b"", "must have the columns ImageId,PredictionString, and rows"),
    ],
)
def test_a_damaged_solution_of_val(content: bytes, message: str, tmp_path: Path) -> None:
    root = plant(tmp_path, "train/n1/a.JPEG", "val/v_1.JPEG", "val/v_2.JPEG")
    (root / "LOC_val_solution.csv").write_bytes(b"ImageId,PredictionString\n" + content)
    with pytest.raises(ValueError, match=message):
        prepare("folder", root, val_list=root / "LOC_val_solution.csv")


def test_a_solution_of_folders_alone(tmp_path: Path) -> None:
    root = plant(tmp_path, "train/n1/a.JPEG", "val/v_1.JPEG")
    (root / "val.csv").write_text("ImageId,PredictionString\nv_1,n1\n", encoding="utf-8")
    assert word_of(build_dataset("folder", root=root, split="val", val_list=root / "val.csv")) == {"val/v_1.JPEG": "n1"}


@pytest.mark.parametrize("name", [b"caf\xe9/1.jpg", b"cafe/1\xe9.jpg", b"cafe/old\xe9/1.jpg"])
def test_names_that_are_not_utf8(name: bytes, tmp_path: Path) -> None:
    root = plant(tmp_path, "dog/1.jpg")
    path = os.fsencode(root) + b"/" + name
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb"):
            pass
    except (OSError, UnicodeError):
        pytest.skip("this file system has no such names")
    with pytest.raises(ValueError, match=r"paths must be UTF-8, got 1 that are not, such as .*\\udce9") as raised:
        prepare("folder", root)
    assert str(raised.value).encode()  # it can be printed


def test_files_of_other_kinds_are_counted_by_ending(tmp_path: Path) -> None:
    root = plant(tmp_path, "dog/1.jpg", "dog/2.JFIF", "cat/3.jpe", "cat/old/.hidden.heic")
    for name in ("dog/a.HEIC", "cat/old/b.heic", "cat/notes.txt", "cat/README", "outside.txt"):
        (root / name).write_bytes(b"-")
    index = prepare("folder", root)
    assert word_of(index.dataset("all")) == {"cat/3.jpe": "cat", "dog/1.jpg": "dog", "dog/2.JFIF": "dog"}
    assert index.manifest["counts"]["files_of_other_kinds"] == {".heic": 2, ".txt": 1, "no ending": 1}
    assert "files_of_other_kinds: .heic 2, " in index.to_text()
    for path in root.rglob("*.j*"):
        path.unlink()
    (root / "dog" / "2.JFIF").unlink(missing_ok=True)
    with pytest.raises(ValueError, match=r"images, got none, but 4 files of other kinds: \{'\.heic': 2, '\.txt': 1"):
        prepare("folder", root)


def test_avif_where_pillow_reads_it(tmp_path: Path) -> None:
    if ".avif" not in Image.registered_extensions():
        pytest.skip("Pillow without AVIF")
    (tmp_path / "dog").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "dog" / "1.avif")
    assert word_of(build_dataset("folder", root=tmp_path, split="all")) == {"dog/1.avif": "dog"}


def test_images_directly_in_split_folders_are_refused(tmp_path: Path) -> None:
    root = plant(tmp_path, "train/1.jpg", "val/2.jpg")
    message = r"split_folders must be given .*: \['train', 'val'\] hold images directly .* or pass split_folders=false"
    with pytest.raises(ValueError, match=message):
        prepare("folder", root)
    dataset = build_dataset("folder", root=root, split="all", split_folders=False)
    assert word_of(dataset) == {"train/1.jpg": "train", "val/2.jpg": "val"}
    with pytest.raises(ValueError, match="train must hold a folder a word, got 1 images directly"):
        prepare("folder", root, split_folders=True)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("n.json", '{"n1": null, "n2": "cat"}'),
        ("n.json", '{"n1": " ", "n2": "cat"}'),
        ("n.json", '{"0": ["n1", null], "1": ["n2", "cat"]}'),
        ("n.json", '{"n1": {"name": "dog"}, "n2": "cat"}'),
        ("n.txt", "n1 , dog\nn2 cat\n"),
    ],
)
def test_a_folder_without_a_name_is_refused(name: str, content: str, tmp_path: Path) -> None:
    root = plant(tmp_path / "tree", "n1/a.jpg", "n2/a.jpg")
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(
        ValueError, match=rf"class_names must (give each folder a text|have `folder name`.*), {name} has"
    ):
        prepare("folder", root, class_names=tmp_path / name)


def test_a_train_may_be_a_word(tmp_path: Path) -> None:
    toys = plant(tmp_path / "toys", "train/1.jpg", "car/1.jpg", "test/1.jpg")
    assert build_dataset("folder", root=toys, split="all").vocabulary.words == ("car", "test", "train")
    plant(toys, "train/steam/1.jpg")
    with pytest.raises(ValueError, match=r"split_folders must be given for .*: \['train'\] may be splits, or words as"):
        build_dataset("folder", root=toys, split="all")
    dataset = build_dataset("folder", root=toys, split="all", split_folders=False)
    assert word_of(dataset)["train/steam/1.jpg"] == "train"
    with pytest.raises(ValueError, match=r"split folders alone with split_folders=true, got \['car'\] as well"):
        build_dataset("folder", root=toys, split="all", split_folders=True)


def test_everything_wrong_at_once(tmp_path: Path) -> None:
    root = plant(tmp_path, "train/n1/a.jpg", "train/n9/a.jpg", "val/b.jpg")
    (tmp_path / "names.txt").write_text("n1 tench\nn2\n", encoding="utf-8")
    with pytest.raises(ValueError) as raised:
        prepare("folder", root, class_names=tmp_path / "names.txt", val_list=tmp_path / "none.csv", test_fraction=1.5)
    for part in (
        "val_list must be an existing file",
        "val must hold a folder a word, got 1 images directly",
        "class_names must have `folder name` on each line, names.txt has ['n2']",
        "class_names must name every folder, names.txt lacks 1 such as ['n9']",
        "val_fraction and test_fraction must leave rows to train on, got 0.0 and 1.5",
    ):
        assert part in str(raised.value)
    with pytest.raises(ValueError, match="class_names must be an existing text file, not found"):
        prepare("folder", root, class_names=tmp_path / "none.txt", split_folders=False)
    (tmp_path / "bad.json").write_text("[1]", encoding="utf-8")
    with pytest.raises(ValueError, match=r"class_names must be JSON"):
        prepare("folder", root, class_names=tmp_path / "bad.json", split_folders=False)
    (tmp_path / "bare").mkdir()
    with pytest.raises(ValueError, match="must hold folders with images, got none"):
        prepare("folder", tmp_path / "bare")
    with pytest.raises(ValueError, match="root must be the folder of a tree, got the file"):
        prepare("folder", tmp_path / "names.txt")


def test_val_is_test_only_where_nothing_else_is(tmp_path: Path) -> None:
    root = plant(tmp_path / "a", "train/dog/1.jpg", "val/dog/1.jpg", "test/dog/1.jpg")
    with pytest.raises(ValueError, match="val_as_test must be left out for a tree whose test folder has words"):
        prepare("folder", root, val_as_test=True)
    with pytest.raises(ValueError, match="val_as_test and val_list must be left out for a tree without split folders"):
        prepare("folder", plant(tmp_path / "b", "dog/1.jpg"), val_as_test=True)


def test_a_damaged_image_is_found_before_training(tmp_path: Path) -> None:
    root = plant(tmp_path, "dog/a.jpg")
    (root / "dog" / "b.jpg").write_bytes(b"broken")
    with pytest.raises(ValueError, match=r"image must be readable, cannot decode .*b\.jpg"):
        prepare("folder", root)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows lets administrators alone make links")
def test_a_link_to_itself_ends(tmp_path: Path) -> None:
    root = plant(tmp_path, "dog/a.jpg")
    (root / "dog" / "again").symlink_to(root / "dog")
    (root / "cat").symlink_to(plant(tmp_path.parent / f"{tmp_path.name}_else", "b.jpg"))
    assert word_of(build_dataset("folder", root=root, split="all")) == {"cat/b.jpg": "cat", "dog/a.jpg": "dog"}


def test_distinct_words_are_distinct() -> None:
    words, keys = ["a", "a", "a (2)", "a"], ["1", "2", "3", "2"]
    found, renamed = distinct_words(words, keys)
    assert len(set(found)) == 4 and found[0] == "a" and found[2] == "a (2)" and renamed == 2
