"""PaddleClas list files."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from zsmld.datasets import Index, build_dataset, dense_targets, prepare

WORDS = ("airport", "red car", "sky")
TRAIN = [("a.jpg", "1,0,0"), ("sub dir/b.jpg", "0,1,1"), ("c.jpg", "0,0,0")]
VAL = [("d.jpg", "-1,0,1"), ("e.jpg", "1,1,1")]


def write(root: Path, files: dict[str, str], images: tuple[str, ...] = ()) -> Path:
    for name, text in files.items():
        (root / name).write_bytes(text.encode())
    for image in images:
        (root / image).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (2, 2)).save(root / image)
    return root


def multilabel(root: Path, newline: str = "\n") -> Path:
    """As PaddleClas writes NUS-WIDE-SCENE: path, a tab, and 0 or 1 for each word."""
    lists = {
        f"multilabel_{split}_list.txt": "".join(f"{path}\t{labels}{newline}" for path, labels in rows)
        for split, rows in (("train", TRAIN), ("val", VAL))
    }
    return write(root, {**lists, "label_list.txt": newline.join(WORDS)}, tuple(path for path, _ in TRAIN + VAL))


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_multilabel_lists(newline: str, tmp_path: Path) -> None:
    root = multilabel(tmp_path, newline)
    index = Index.open(prepare("image_list", root, tmp_path / "prepared").save(tmp_path / "prepared"))
    for split, rows in (("train", TRAIN), ("val", VAL)):
        for dataset in (index.dataset(split), build_dataset("image_list", root=root, split=split)):
            assert dataset.vocabulary.words == WORDS and dataset.ids.to_pylist() == [path for path, _ in rows]
            expected = [[int(value) for value in labels.split(",")] for _, labels in rows]
            assert dense_targets(dataset).tolist() == expected
            assert [dataset[i]["targets"].tolist() for i in range(len(dataset))] == expected
    assert index.manifest["lists"] == {
        "train": "multilabel_train_list.txt",
        "val": "multilabel_val_list.txt",
        "label_list": "label_list.txt",
    }
    assert index.manifest["counts"] == {
        "train_lines": 3,
        "val_lines": 2,
        "merged_lines": 0,
        "images_without_words": 1,
        "words_without_images": 0,
        "words_renamed_as_others_have_their_name": 0,
    }


def test_single_label_lists_with_numbered_words(tmp_path: Path) -> None:
    files = {
        "train_list.txt": "train/n1/a b.JPEG 0\ntrain/n2/a.JPEG 10\n",
        "val_list.txt": "val/v1.JPEG 2\n",
        "label_list.txt": "10 crane\n0 tench, Tinca tinca\n2 crane\n",
    }
    root = write(tmp_path, files, ("img/train/n1/a b.JPEG", "img/train/n2/a.JPEG", "img/val/v1.JPEG"))
    train = build_dataset("image_list", root=root, split="train", images="img")
    assert train.vocabulary.words == ("tench, Tinca tinca", "crane", "crane (10)")
    assert dense_targets(train).tolist() == [[1, 0, 0], [0, 0, 1]]
    test = build_dataset("image_list", root=root, split="test", images="img", test_list="val_list.txt")
    assert test.ids.to_pylist() == ["val/v1.JPEG"] and test.splits == ("test", "train")
    assert dense_targets(test).tolist() == [[0, 1, 0]]


@given(
    st.lists(
        st.tuples(st.sampled_from("abcdef"), st.lists(st.sampled_from([1, 0, -1]), min_size=3, max_size=3)),
        min_size=1,
        max_size=12,
    )
)
def test_lines_of_one_image_are_merged(tmp_path_factory: pytest.TempPathFactory, lines: list) -> None:
    text = "".join(f"{name}.jpg\t{','.join(map(str, labels))}\n" for name, labels in lines)
    root = write(tmp_path_factory.mktemp("lists"), {"train_list.txt": text, "labels.txt": "x\ny\nz\n"})
    expected: dict[str, list[int]] = {}
    for name, labels in lines:  # present if any line says so, else unknown if any says so
        old = expected.setdefault(f"{name}.jpg", [0, 0, 0])
        expected[f"{name}.jpg"] = [
            1 if 1 in pair else -1 if -1 in pair else 0 for pair in zip(old, labels, strict=True)
        ]
    for name in expected:
        (root / name).touch()
    dataset = build_dataset("image_list", root=root, split="all")
    assert dict(zip(dataset.ids.to_pylist(), dense_targets(dataset).tolist(), strict=True)) == expected
    assert dataset.ids.to_pylist() == list(expected)


def test_delimiter(tmp_path: Path) -> None:
    files = {"train_list.txt": "a.jpg;1,0\nb c.jpg;0,1\n", "label.txt": "0 cat\n1 dog\n"}
    root = write(tmp_path, files, ("a.jpg", "b c.jpg"))
    dataset = build_dataset("image_list", root=root, split="train", delimiter=";")
    assert dense_targets(dataset).tolist() == [[1, 0], [0, 1]] and dataset.vocabulary.words == ("cat", "dog")


def test_missing_images(tmp_path: Path) -> None:
    root = multilabel(tmp_path)
    (root / "a.jpg").unlink()
    with pytest.raises(ValueError, match=r"1 of 5 images are not in .*, for instance a\.jpg"):
        prepare("image_list", root)
    index = prepare("image_list", root, missing_images="drop")
    assert index.dataset("train").ids.to_pylist() == ["sub dir/b.jpg", "c.jpg"]
    assert index.manifest["missing_images"] == ["a.jpg"]


def test_what_is_no_file_is_missing(tmp_path: Path) -> None:
    root = multilabel(tmp_path)
    kept = (root / "a.jpg").rename(root / "kept.jpg")
    makers = (
        lambda path: path.mkdir(),
        lambda path: path.symlink_to("nowhere.jpg"),
        lambda path: path.symlink_to(path.name),  # in a circle
        lambda path: path.symlink_to(root / "sub dir"),
    )
    for number, make in enumerate(makers):
        make(root / "a.jpg")
        assert prepare("image_list", root, missing_images="drop").manifest["missing_images"] == ["a.jpg"]
        (root / "a.jpg").rename(tmp_path / f"away {number}")
    (root / "a.jpg").symlink_to(kept)
    assert "missing_images" not in prepare("image_list", root).manifest


def test_everything_wrong_at_once(tmp_path: Path) -> None:
    files = {
        "train_list.txt": "a.jpg\t1,0,0\n\nb.jpg\t1,0\nc.jpg\t1,0,0,1\nd.jpg\t1,2,0\ne.jpg\n" + "f.jpg\t1\n" * 7,
        "val_list.txt": "g.jpg 0\nh.jpg 3\ni.jpg x\n",
        "label_list.txt": "\n".join(WORDS),
    }
    with pytest.raises(ValueError) as raised:
        prepare("image_list", write(tmp_path, files))
    for part in (
        "train_list.txt must have on each line 3 labels, one a word of the label list; line 3 has 2, line 4 has 4, "
        "line 7 has 1, line 8 has 1, line 9 has 1 and 4 lines more; correct them",
        "train_list.txt must have on each line 0, 1 or −1 with commas between; line 5 has '1,2,0'",
        "train_list.txt must have on each line path, delimiter and labels; line 6 is 'e.jpg'",
        "2 of 2 images are not in",
        "val_list.txt must have on each line the number of one of the 3 words; line 2 has '3', line 3 has 'x'",
    ):
        assert part in str(raised.value)


@pytest.mark.parametrize(
    ("files", "options", "message"),
    [
        ({"label_list.txt": "a\nb"}, {}, "must hold list files such as train_list.txt, got none"),
        ({"train_list.txt": "a.jpg 0"}, {}, "label_list must be given, .* has none of"),
        ({"train_list.txt": "a.jpg 0", "label_list.txt": ""}, {}, "label_list must have words"),
        ({"train_list.txt": "a.jpg 0", "label_list.txt": "1 a\n1 b"}, {}, "must give each number once"),
        (
            {"train_list.txt": "\n", "label_list.txt": "a\nb"},
            {},
            "train_list.txt must have lines that can be read, got none",
        ),
        (
            {"train_list.txt": "a.jpg 0", "train.txt": "a.jpg 0", "label_list.txt": "a\nb"},
            {},
            r"train_list must be given, .* has \['train_list.txt', 'train.txt'\]; pass train_list=",
        ),
        (
            {"train_list.txt": "a.jpg 0", "val_list.txt": "a.jpg 1", "label_list.txt": "a\nb"},
            {},
            r"1 images must be in one list only, they are in several, such as \['a.jpg'\]",
        ),
        ({"label_list.txt": "a"}, {"train_list": "none.txt"}, "train_list must be an existing file, not found"),
        (
            {"train_list.txt": "a.jpg 0", "label_list.txt": "a\nb"},
            {"train_list": "train_list.txt", "test_list": "train_list.txt"},
            "must be different files",
        ),
        (
            {"train_list.txt": "a.jpg 0", "label_list.txt": "a\nb"},
            {"images": "none"},
            "images must be an existing folder",
        ),
    ],
)
def test_wrong_lists(files: dict, options: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        prepare("image_list", write(tmp_path, files, ("a.jpg",)), **options)


def test_one_image_under_two_spellings_of_its_path_is_one_image(tmp_path: Path) -> None:
    (tmp_path / "label_list.txt").write_text("dog\ncat\n")
    (tmp_path / "x").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "x" / "a.jpg")
    (tmp_path / "train.txt").write_text("x/a.jpg\t1,0\n")
    for spelling in ("x//a.jpg", "./x/a.jpg", "x/../x/a.jpg"):
        (tmp_path / "test.txt").write_text(f"{spelling}\t0,1\n")
        with pytest.raises(ValueError, match=r"x/a\.jpg"):
            prepare("image_list", tmp_path, train_list="train.txt", test_list="test.txt", label_list="label_list.txt")
