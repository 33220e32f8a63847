"""NUS-WIDE: every layout it is passed on in, read as it lies on disk, against a slow reading of the same files."""

import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from zsmld.datasets import build_dataset, dense_targets, prepare
from zsmld.datasets.index import Index
from zsmld.datasets.nus_wide import digits, official, read_nus_wide
from zsmld.datasets.partition import read_partition
from zsmld.resources import resource_path

TAGS = ("nature", "clouds", "sky", "elk", "new york")
CONCEPTS = ("clouds", "computer", "elk")  # "computer" is no tag
SEEN = ["nature", "sky", "new york"]
NAMES = (
    "actor/0001_2124494179.jpg",
    "actor/0002_174174086.jpg",
    "bell_tower/0001_221597162.jpg",
    "bell_tower/0599_6.jpg",
    "zoo/0003_702409954.jpg",
    "zoo/0004_702409954.jpg",  # six photos of the official list are listed twice
)
TRAIN = (0, 2, 3, 5)
TAG_TABLE = np.array(
    [[1, 1, 0, 0, 0], [0, 0, 1, 1, 0], [0, 1, 0, 1, 0], [0, 0, 0, 0, 1], [0] * 5, [1, 0, 1, 0, 1]], np.int8
)
TRUTH = np.array([[1, 0, 0], [0, 0, 0], [0, 1, 1], [0, 0, 0], [1, 1, 1], [0, 0, 1]], np.int8)


def lines(path: Path, values, end: str = "\r\n") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("".join(f"{value}{end}" for value in values).encode())


def digit_lines(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = np.full((len(values), 3), [0, ord("\r"), ord("\n")], np.uint8)
    text[:, 0] = values + ord("0")
    path.write_bytes(text.tobytes())


def write_official(root, names=NAMES, train=TRAIN, tags=TAGS, concepts=CONCEPTS, table=TAG_TABLE, truth=TRUTH) -> Path:
    """The lists byte for byte as the archives have them: CRLF, backslashes, and a tab after each digit."""
    lines(root / "NUS_WID_Tags/TagList1k.txt", tags)
    lines(root / "NUS_WID_Tags/AllTags1k.txt", ("".join(f"{d}\t" for d in row) for row in table))
    lines(root / "ConceptsList/Concepts81.txt", concepts)
    train = np.array(list(train))
    test = np.setdiff1d(np.arange(len(names)), train)
    windows = [name.replace("/", "\\") for name in names]
    lines(root / "ImageList/Imagelist.txt", windows)
    lines(root / "ImageList/TrainImagelist.txt", [windows[i] for i in train])
    lines(root / "ImageList/TestImagelist.txt", [windows[i] for i in test])
    for label, concept in enumerate(concepts):
        digit_lines(root / f"Groundtruth/AllLabels/Labels_{concept}.txt", truth[:, label])
        digit_lines(root / f"Groundtruth/TrainTestLabels/Labels_{concept}_Train.txt", truth[train, label])
        digit_lines(root / f"Groundtruth/TrainTestLabels/Labels_{concept}_Test.txt", truth[test, label])
    return root


def write_images(root: Path, paths) -> None:
    for i, path in enumerate(paths):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 6), (40 * i, 0, 0)).save(root / path, "JPEG")


@pytest.fixture
def root(tmp_path):
    write_images(tmp_path, [f"Flickr/{name}" for name in NAMES])
    return write_official(tmp_path)


def read(root, **options) -> tuple[Index, list[str]]:
    problems: list[str] = []
    index = read_nus_wide(root, problems, **{"check_counts": False} | options)
    return index, problems


def oracle(root: Path) -> dict[str, tuple[str, set[str]]]:
    """Image name -> split and words, by plain dicts from the files as they lie there."""

    def text(path):
        return (root / path).read_bytes().decode().replace("\r", "").rstrip("\n").split("\n")

    tags, concepts = text("NUS_WID_Tags/TagList1k.txt"), text("ConceptsList/Concepts81.txt")
    table, result = text("NUS_WID_Tags/AllTags1k.txt"), {}
    truth = {concept: text(f"Groundtruth/AllLabels/Labels_{concept}.txt") for concept in concepts}
    train = set(text("ImageList/TrainImagelist.txt"))
    for row, name in enumerate(text("ImageList/Imagelist.txt")):
        words = {tag for tag, digit in zip(tags, table[row].split(), strict=True) if digit == "1"} - set(concepts)
        words |= {concept for concept in concepts if truth[concept][row] == "1"}
        result[name.replace("\\", "/")] = "train" if name in train else "test", words
    return result


def as_dict(index: Index) -> dict[str, tuple[str, set[str]]]:
    result = {}
    for row, path in enumerate(index.paths.to_pylist()):
        labels = index.targets[row].indices[index.targets[row].data == 1]
        result["/".join(path.split("/")[-2:])] = str(index.splits[row]), {index.words[label] for label in labels}
    return result


# ------------------------------------------------------------------------------------------------------ official lists


class TestOfficial:
    def test_words_rows_and_splits(self, root):
        index, problems = read(root)
        assert problems == []
        assert index.words == ("nature", "sky", "new york", "clouds", "computer", "elk")
        assert index.partitions == {
            "925_81": {"seen": SEEN, "unseen": list(CONCEPTS)},
            "81": {"seen": list(CONCEPTS), "unseen": []},
        }
        assert index.ids.to_pylist() == [name.split("/")[1].removesuffix(".jpg") for name in NAMES]
        assert index.paths.to_pylist() == [f"Flickr/{name}" for name in NAMES]
        assert index.splits.tolist() == ["train", "test", "train", "train", "test", "train"]
        # "clouds" and "elk" are annotators' labels, not users' tags, of which they are too
        assert index.targets.toarray().tolist() == [
            [1, 0, 0, 1, 0, 0],
            [0, 1, 0, 0, 0, 0],
            [0, 0, 0, 0, 1, 1],
            [0, 0, 1, 0, 0, 0],
            [0, 0, 0, 1, 1, 1],
            [1, 1, 1, 0, 0, 1],
        ]
        assert as_dict(index) == oracle(root)

    def test_manifest(self, root):
        manifest = read(root)[0].manifest
        assert manifest["layout"] == "official"
        assert manifest["concepts_that_are_no_tags"] == ["computer"]
        assert manifest["image_files"] == {
            "folder": "Flickr",
            "layout": "<class>/<number>_<Flickr id>.jpg",
            "listed": 6,
            "found": 6,
        }
        counts = dict(manifest["counts"])
        assert counts.pop("labels_per_image") == {
            "train": {"seen": 1.25, "unseen": 1.0, "images_with_an_unseen_word": 3, "unseen_of_those": 1.3333},
            "test": {"seen": 0.5, "unseen": 1.5, "images_with_an_unseen_word": 1, "unseen_of_those": 3.0},
        }
        assert counts == {
            "images": 6,
            "train": 4,
            "test": 2,
            "tags": 5,
            "concepts": 3,
            "seen": 3,
            "unseen": 3,
            "double_flickr_ids": 1,
            "same_file_names": 0,
        }
        assert manifest["train_test_labels"] == {"differing_labels": {}, "known_damage": []}

    @given(data=st.data())
    def test_every_label_is_that_of_the_files(self, data, tmp_path_factory):
        num = data.draw(st.integers(2, 9))
        bits = data.draw(st.lists(st.integers(0, 1), min_size=num * 8, max_size=num * 8))
        bits = np.array(bits, np.int8).reshape(num, 8)
        train = data.draw(st.sets(st.integers(0, num - 1), min_size=1, max_size=num - 1))
        names = [f"class_{i % 2}/{i:04d}_{100 + i}.jpg" for i in range(num)]
        order = data.draw(st.permutations(sorted(train)))  # the lists need not have the order of Imagelist.txt
        root = write_official(tmp_path_factory.mktemp("nus"), names, order, table=bits[:, :5], truth=bits[:, 5:])
        index, problems = read(root)
        assert problems == []
        assert as_dict(index) == oracle(root)
        opened = Index.open(index.save(root / "prepared"))
        assert as_dict(opened) == oracle(root) and opened.manifest == index.manifest

    def test_views(self, root):
        options = {"root": root, "check_counts": False}
        zero_shot = build_dataset("nus_wide", split="train", **options)
        assert (zero_shot.vocabulary.seen, zero_shot.vocabulary.unseen) == (tuple(SEEN), CONCEPTS)
        assert zero_shot.ids.to_pylist() == ["0001_2124494179", "0599_6", "0004_702409954"]  # those with a seen word
        assert zero_shot[0]["id"] == "0001_2124494179" and zero_shot[0]["image"].getpixel((0, 0))[0] < 20
        test = build_dataset("nus_wide", split="test", partition="81", **options)
        assert dense_targets(test).tolist() == [[0, 0, 0], [1, 1, 1]]
        labelled = build_dataset("nus_wide", split="test", partition="81", keep_unlabelled=False, **options)
        assert labelled.ids.to_pylist() == ["0003_702409954"]
        assert labelled.manifest["images"] == {"listed": 2, "unlabelled": 1, "used": 1}

    def test_prepared(self, root, tmp_path):
        index = prepare("nus_wide", root, tmp_path / "prepared", check_counts=False)
        dataset = build_dataset("prepared", path=tmp_path / "prepared", split="all")
        assert (dense_targets(dataset) == index.targets.toarray()).all()
        manifest = json.loads((tmp_path / "prepared/manifest.json").read_text(encoding="utf-8"))
        assert manifest["splits"]["test"]["num_images"] == 2 and manifest["counts"]["tags"] == 5

    def test_places_and_case_of_other_copies(self, tmp_path):
        write_official(tmp_path / "mirror/NUS-WIDE")
        top = tmp_path / "mirror/NUS-WIDE"
        (top / "ConceptsList/Concepts81.txt").rename(top / "Concepts81.txt")
        (top / "ImageList/Imagelist.txt").rename(top / "ImageList/ImageList.txt")
        (top / "Groundtruth/AllLabels").rename(top / "AllLabels")
        full = "C:\\ImageData\\Flickr\\"
        lines(top / "ImageList/TestImagelist.txt", [full + NAMES[i].replace("/", "\\") for i in (1, 4)], end="  \n")
        index, problems = read(tmp_path / "mirror")
        assert problems == []
        assert index.splits.tolist().count("test") == 2 and (index.targets.toarray()[:, 3:] == TRUTH).all()

    def test_same_file_names_get_their_class(self, tmp_path):
        names = [*NAMES[:-1], "actor/0003_702409954.jpg"]
        index, problems = read(write_official(tmp_path, names))
        assert problems == []
        assert index.ids.to_pylist()[3:] == ["0599_6", "zoo/0003_702409954", "actor/0003_702409954"]
        assert index.manifest["counts"]["same_file_names"] == 2

    def test_a_subset_is_refused_unless_allowed(self, root):
        _, problems = read(root, check_counts=True)
        assert len(problems) == 3
        assert (
            "got 6 images of 269,648, 4 train of 161,789, 2 test of 107,859, 5 tags of 1,000, 3 concepts" in problems[0]
        )
        assert "must have the 925 seen words of NUS-WIDE, got 3 with " in problems[1]
        assert "must have the 81 unseen words of NUS-WIDE, got 3 with 78 missing" in problems[2]

    def test_unknown_options(self, root, tmp_path):
        with pytest.raises(ValueError, match=r"layout must be one of \['auto', 'official', .*got 'bian'"):
            read(root, layout="bian")
        with pytest.raises(
            FileNotFoundError, match=r"images must be the folder of NUS-WIDE's images, not found: nowhere"
        ):
            read(root, images="nowhere")


# -------------------------------------------------------------------------------------------------------------- images

IMAGE_LAYOUTS = {
    "<class>/<number>_<Flickr id>.jpg": [f"zoo_{i}/{i:04d}_{90 + i}.jpg" for i in range(4)],
    "<number>_<Flickr id>.jpg": [f"{i:04d}_{90 + i}.jpg" for i in range(4)],
    "<Flickr id>.jpg": [f"{90 + i}.jpg" for i in range(4)],
    "<Flickr id>_m.jpg": [f"{90 + i}_m.jpg" for i in range(4)],
    "[<row>_]<Flickr id>_<secret>_m.jpg": [f"{i}_{90 + i}_b039ddc{i}_m.jpg" for i in range(4)],
}


class TestImages:
    @pytest.mark.parametrize("folder", ["Flickr", "images", "image", ""])
    @pytest.mark.parametrize("layout", IMAGE_LAYOUTS)
    def test_layout_is_found_and_named(self, layout, folder, tmp_path):
        names = IMAGE_LAYOUTS["<class>/<number>_<Flickr id>.jpg"]
        write_official(tmp_path, names, (0, 1), table=TAG_TABLE[:4], truth=TRUTH[:4])
        paths = [f"{folder}/{path}".lstrip("/") for path in IMAGE_LAYOUTS[layout]]
        write_images(tmp_path, paths[:3])  # one is missing, as in every copy
        with pytest.raises(ValueError, match=r"1 of 4 images are not in .*; complete them, or missing_images=drop"):
            prepare("nus_wide", tmp_path, check_counts=False)
        index = prepare("nus_wide", tmp_path, missing_images="drop", check_counts=False)
        assert index.paths.to_pylist() == paths[:3]
        assert len(index.manifest["missing_images"]) == 1
        assert index.manifest["image_files"] == {"folder": folder or ".", "layout": layout, "listed": 4, "found": 3}

    def test_flickr_names_without_row(self, tmp_path):
        write_official(tmp_path)
        write_images(tmp_path, ["images/2124494179_b039ddccac_m.jpg", "images/702409954_1234567890_m.jpg"])
        index = prepare("nus_wide", tmp_path, missing_images="drop", check_counts=False)
        assert index.ids.to_pylist() == ["0001_2124494179", "0003_702409954", "0004_702409954"]
        assert index.paths.to_pylist()[1:] == ["images/702409954_1234567890_m.jpg"] * 2  # one photo, two rows

    def test_a_row_number_of_another_photo_is_no_match(self, tmp_path):
        write_official(tmp_path)
        write_images(tmp_path, ["images/0_2124494179_ab_m.jpg", "images/1_999_ab_m.jpg"])
        index = prepare("nus_wide", tmp_path, missing_images="drop", check_counts=False)
        assert index.ids.to_pylist() == ["0001_2124494179"]

    def test_official_folder_first(self, root):
        write_images(root, [f"images/{name}" for name in NAMES])
        assert read(root)[0].paths.to_pylist() == [f"Flickr/{name}" for name in NAMES]

    def test_images_elsewhere(self, root, tmp_path):
        write_images(tmp_path / "disk", NAMES)
        for images in (tmp_path / "disk", "disk"):
            dataset = build_dataset("nus_wide", root=root, split="test", images=images, check_counts=False)
            assert dataset.root == tmp_path / "disk" and dataset.paths.to_pylist()[0] == NAMES[1]
            assert dataset[1]["image"].size == (8, 6)

    def test_no_image_at_all(self, tmp_path):
        with pytest.raises(ValueError, match=r"6 of 6 images are not in .*Flickr/actor/0001_2124494179.jpg, "):
            prepare("nus_wide", write_official(tmp_path), missing_images="drop", check_counts=False)


# ---------------------------------------------------------------------------------------------------- damaged downloads


class TestDamage:
    def test_one_message_has_everything(self, root):
        for name in ("NUS_WID_Tags/AllTags1k.txt", "ImageList/TestImagelist.txt", f"Flickr/{NAMES[0]}"):
            (root / name).unlink()
        (root / "Groundtruth/AllLabels/Labels_computer.txt").unlink()
        lines(root / "Groundtruth/AllLabels/Labels_elk.txt", [0, 0, 1, 0, "", 2])
        lines(root / "Groundtruth/AllLabels/Labels_clouds.txt", [0] * 5)
        lines(root / "ImageList/TrainImagelist.txt", ["actor\\0001_2124494179.jpg", "moon\\0001_1.jpg"])
        (root / "Flickr" / NAMES[2]).write_bytes(b"<html>")
        with pytest.raises(ValueError) as raised:
            prepare("nus_wide", root, check_labels=False, check_counts=False)
        message = str(raised.value)
        for text in (
            "must have the lists of NUS-WIDE, it lacks NUS_WID_Tags/AllTags1k.txt (of NUS_WID_Tags.zip), "
            "ImageList/TestImagelist.txt (of ImageList.zip); unpack",
            "must name images of Imagelist.txt, 1 of its 2 are not, for instance moon/0001_1.jpg",
            "must have a file for each of the 3 concepts, it lacks 1: Labels_computer.txt",
            "Labels_elk.txt must have 0 or 1 in each line, 2 have not, line 5 is ''",
            "Labels_clouds.txt must have a line for each of the 6 images of Imagelist.txt, it has 5",
            "1 of 1 images are not in ",
        ):
            assert text in message, text

    def test_without_lists_there_is_no_index(self, tmp_path):
        index, problems = read(tmp_path)
        assert index is None and len(problems) == 1
        assert problems[0].count("(of ") == 7

    @pytest.mark.parametrize(
        ("train", "test", "text"),
        [
            ((0, 2, 3), (1, 4), "1 of its 6 images are in neither of the lists of training and test images"),
            ((0, 1, 2, 3, 5), (1, 4), "1 of its 6 images are named more than once by the lists of training and test"),
            ((0, 0, 2, 3, 5), (1, 4), "1 of its 6 images are named more than once by the lists of training and test"),
        ],
    )
    def test_lists_divide_the_images(self, root, train, test, text):
        for split, rows in (("Train", train), ("Test", test)):
            lines(root / f"ImageList/{split}Imagelist.txt", [NAMES[i].replace("/", "\\") for i in rows])
        _, problems = read(root, check_labels=False)
        assert len(problems) == 1 and text in problems[0]

    def test_an_image_listed_twice(self, tmp_path):
        index, problems = read(write_official(tmp_path, [*NAMES[:5], NAMES[0]]))
        assert index is not None and len(set(index.ids.to_pylist())) == len(index)
        assert (
            sum("must name each image once, it repeats 1 such as actor/0001_2124494179.jpg" in p for p in problems) == 1
        )

    @pytest.mark.parametrize(
        "name",
        [
            "NUS_WID_Tags/TagList1k.txt",
            "NUS_WID_Tags/AllTags1k.txt",
            "ConceptsList/Concepts81.txt",
            "ImageList/TrainImagelist.txt",
            "Groundtruth/AllLabels/Labels_clouds.txt",
        ],
    )
    def test_a_folder_in_place_of_a_file_is_one_problem_of_all(self, name, root):
        (root / name).unlink()
        (root / name).mkdir()
        lines(root / "ImageList/TestImagelist.txt", ["moon\\0001_1.jpg"])
        if "clouds" not in name:
            lines(root / "Groundtruth/AllLabels/Labels_clouds.txt", [0] * 5)
        problems = read(root, check_labels=False)[1]
        assert sum(f"{root / name} must be a readable file, it is not: Is a directory" in p for p in problems) == 1
        assert any("must name images of Imagelist.txt, 1 of its 1 are not" in problem for problem in problems)
        if "clouds" not in name and "Concepts81" not in name and "Train" not in name:
            assert any("Labels_clouds.txt must have a line for each of the 6 images" in problem for problem in problems)

    def test_a_folder_in_place_of_the_list_of_images(self, root):
        for name in ("ImageList/Imagelist.txt", "NUS_WID_Tags/TagList1k.txt"):
            (root / name).unlink()
            (root / name).mkdir()
        index, problems = read(root)
        assert index is None and [problem.split(" must be ")[0] for problem in problems] == [
            str(root / "ImageList/Imagelist.txt"),
            str(root / "NUS_WID_Tags/TagList1k.txt"),
        ]

    def test_a_word_listed_twice(self, root):
        lines(root / "ConceptsList/Concepts81.txt", [*CONCEPTS, "elk"])
        assert any("Concepts81.txt must name each word once, it repeats ['elk']" in p for p in read(root)[1])

    def test_wrong_number_of_tag_lines(self, root):
        lines(root / "NUS_WID_Tags/AllTags1k.txt", ["\t".join("01010")] * 7)
        (problem,) = read(root)[1]
        assert "AllTags1k.txt must have a line for each of the 6 images of Imagelist.txt, it has 7" in problem


class TestTagTable:
    def table(self, tmp_path, text: bytes, width=3):
        (tmp_path / "table.txt").write_bytes(text)
        problems: list[str] = []
        return digits.read_ones(tmp_path / "table.txt", width, problems), problems

    @given(
        bits=st.lists(st.lists(st.integers(0, 1), min_size=3, max_size=3), min_size=1, max_size=12),
        blank=st.sampled_from(["\t", " ", "", " \t"]),
        end=st.sampled_from(["\t\r\n", "\n", "\r\n"]),
        tail=st.sampled_from(["", "\n", "\r\n\r\n"]),
        block=st.integers(1, 40),
    )
    def test_any_blanks_ends_and_blocks(self, bits, blank, end, tail, block, tmp_path_factory):
        text = end.join(blank.join(map(str, row)) for row in bits) + tail
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(digits, "_BLOCK", block)
            ones, problems = self.table(tmp_path_factory.mktemp("table"), text.encode())
        assert problems == [] and ones[2] == len(bits)
        assert list(zip(ones[0].tolist(), ones[1].tolist(), strict=True)) == [
            (i, j) for i, row in enumerate(bits) for j, bit in enumerate(row) if bit
        ]

    @pytest.mark.parametrize("block", [1, 5, 9, 1000])
    @pytest.mark.parametrize(
        ("line", "got"),
        [(b"0\t1\t", "2"), (b"0\t1\t1\t0", "4"), (b"0\t2\t1", "'2' besides"), (b"", "0"), (b"0\t-1\t0", "'-' besides")],
    )
    def test_first_wrong_line(self, line, got, block, tmp_path, monkeypatch):
        monkeypatch.setattr(digits, "_BLOCK", block)
        ones, problems = self.table(tmp_path, b"0\t0\t1\t\r\n1\t0\t0\t\r\n" + line + b"\r\n1\t1\t1\t\r\n1\t1\r\n")
        assert ones is None
        assert problems == [
            f"{tmp_path / 'table.txt'} must have 3 digits 0 or 1 in each line, line 3 has {got}; "
            f"unpack or download it again"
        ]

    def test_two_lines_in_one(self, tmp_path):
        ones, (problem,) = self.table(tmp_path, b"0\t0\t1\t0\t0\t1\t1\t\r\n")
        assert ones is None and "line 1 has 7" in problem

    def test_empty_file(self, tmp_path):
        ones, problems = self.table(tmp_path, b"")
        assert ones[2] == 0 and problems == []


class TestTrainTestLabels:
    def test_disagreement_is_named_by_concept(self, root):
        lines(root / "Groundtruth/TrainTestLabels/Labels_elk_Train.txt", [1, 0, 0, 1])  # 0, 1, 0, 1
        index, problems = read(root)
        assert len(problems) == 1 and "labels differ for 1 concepts: elk 2; " in problems[0]
        assert (index.targets.toarray()[:, 3:] == TRUTH).all()
        index, problems = read(root, check_labels=False)
        assert problems == [] and index.manifest["train_test_labels"] == "not compared"

    def test_missing_short_and_unreadable_files(self, root):
        (root / "Groundtruth/TrainTestLabels/Labels_elk_Test.txt").unlink()
        lines(root / "Groundtruth/TrainTestLabels/Labels_clouds_Test.txt", [0])
        lines(root / "Groundtruth/TrainTestLabels/Labels_computer_Train.txt", [0, 1, "yes", 0])
        (problem,) = read(root)[1]
        assert "has not in 3 places: Labels_clouds_Test.txt (1 of 2 lines), " in problem
        assert "Labels_computer_Train.txt line 3: yes, Labels_elk_Test.txt (0 of 2 lines);" in problem

    def test_a_folder_in_place_of_a_file(self, root):
        file = root / "Groundtruth/TrainTestLabels/Labels_elk_Test.txt"
        file.unlink()
        file.mkdir()
        (problem,) = read(root)[1]
        assert "has not in 1 places: Labels_elk_Test.txt (Is a directory);" in problem

    def test_they_are_optional(self, root):
        for file in (root / "Groundtruth/TrainTestLabels").iterdir():
            file.unlink()
        (root / "Groundtruth/TrainTestLabels").rmdir()
        index, problems = read(root)
        assert problems == [] and index.manifest["train_test_labels"] == "not compared"

    @pytest.mark.parametrize("line", [78_372, 78_371])
    def test_the_damaged_value_of_the_official_archive(self, line, tmp_path):
        num = 78_400
        names = [f"lake/{i:05d}_{i}.jpg" for i in range(num)]
        truth = np.zeros((num, 1), np.int8)
        root = write_official(
            tmp_path, names, range(num - 1), ("blue",), ("lake",), table=np.ones((num, 1), np.int8), truth=truth
        )
        train = ["0"] * (num - 1)
        train[line - 1] = "-1130179"
        lines(root / "Groundtruth/TrainTestLabels/Labels_lake_Train.txt", train)
        index, problems = read(root)
        noted = [f"Labels_lake_Train.txt line {line}: -1130179"]
        if line == 78_372:
            assert problems == [] and index.manifest["train_test_labels"]["known_damage"] == noted
        else:
            assert len(problems) == 1 and noted[0] in problems[0]


# -------------------------------------------------------------------------------------------------- community's layouts


class TestBiam:
    def pickled(self, path: Path, names) -> None:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(pickle.dumps({"img_names": list(names)}))

    def test_its_lists_choose_the_images(self, root):
        keys = [name.replace("/", "_") for name in NAMES]
        self.pickled(root / "test_img_names.pkl", [keys[4], f"_home_ag1_data_Flickr_{keys[1]}"])
        self.pickled(root / "features/img_names.pkl", [f"/home/ag1/data/Flickr/{NAMES[2]}"])
        index, problems = read(root)
        assert problems == [] and index.manifest["layout"] == "biam"
        assert index.manifest["lists"] == {"train": "img_names.pkl", "test": "test_img_names.pkl"}
        expected = {name: value for name, value in oracle(root).items() if name in (NAMES[1], NAMES[2], NAMES[4])}
        assert as_dict(index) == expected
        assert read(root, layout="official")[0].manifest["layout"] == "official"

    def test_the_test_list_alone(self, root):
        """BiAM's repository has it; the training list was to be downloaded."""
        self.pickled(root / "test_img_names.pkl", [NAMES[4].replace("/", "_")])
        index, problems = read(root)
        assert problems == [] and sorted(index.splits.tolist()) == ["test"] + ["train"] * 4

    def test_strangers_and_missing_lists(self, root):
        _, (problem,) = read(root, layout="biam")
        assert "must have test_img_names.pkl for layout=biam, it has not" in problem
        self.pickled(root / "test_img_names.pkl", ["moon_0001_1.jpg", NAMES[4].replace("/", "_")])
        _, (problem,) = read(root)
        assert (
            "test_img_names.pkl must name images of Imagelist.txt, 1 of its 2 are not, for instance moon_0001"
            in problem
        )

    @pytest.mark.parametrize("content", [b"", b"\x80\x04.", pickle.dumps({"images": []}), pickle.dumps([1, 2]), b"no"])
    def test_no_such_pickle(self, content, root):
        (root / "test_img_names.pkl").write_bytes(content)
        _, problems = read(root)
        assert any('must be a pickle of {"img_names": [texts]}, got ' in problem for problem in problems)

    @pytest.mark.parametrize(
        "content",
        [
            b"\x80\x04X\x01\x00\x00\x00ar\xff\xff\xff\x7f.",  # keep this text as entry 2,147,483,647
            b"\x80\x04\x8d" + b"\xff" * 8 + b".",  # a text of 2**64 − 1 bytes
            b"\x80\x04\x95" + b"\xff" * 7 + b"\x7f.",  # a frame of as many
            b"\x80\x04}](K\x01\x85e.",  # a list as a key
            b"\x80\x04](]K\x01s.",
        ],
    )
    def test_a_damaged_pickle_is_a_problem_of_its_file(self, content, root):
        (root / "test_img_names.pkl").write_bytes(content)
        _, problems = read(root)
        assert any(f"{root / 'test_img_names.pkl'} must be a pickle of " in problem for problem in problems), problems

    @given(data=st.data())
    def test_any_damage_of_a_pickle(self, data, tmp_path_factory):
        content = bytearray(pickle.dumps({"img_names": [name.replace("/", "_") for name in NAMES]}))
        for _ in range(data.draw(st.integers(1, 4))):
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
        file = tmp_path_factory.mktemp("pickle") / "test_img_names.pkl"
        file.write_bytes(content[: data.draw(st.integers(0, len(content)))])
        problems: list[str] = []
        names = official._pickled_names(file, problems)
        assert all(isinstance(name, str) for name in names)
        assert (names == []) <= (len(problems) == 1) and all(str(file) in problem for problem in problems)

    def test_the_training_list_alone_is_no_layout(self, root):
        """A full official download with BiAM's training list beside it is still official, unless one says so."""
        self.pickled(root / "img_names.pkl", [NAMES[0].replace("/", "_")])
        index, problems = read(root)
        assert problems == [] and index.manifest["layout"] == "official" and as_dict(index) == oracle(root)
        assert "must have test_img_names.pkl for layout=biam" in read(root, layout="biam")[1][0]

    def test_a_pickle_runs_no_program(self, root):
        class Attack:
            def __reduce__(self):
                return os.mkdir, (str(root / "taken"),)

        (root / "test_img_names.pkl").write_bytes(pickle.dumps({"img_names": [Attack()]}))
        _, problems = read(root)
        assert not (root / "taken").exists()
        assert any("it asks for" in problem and "mkdir" in problem for problem in problems)


CSV = """filepath,label,split_name
80002_2058923115_a0e2798162_m.jpg,"[blue, clouds]",train
0_2124494179_b039ddccac_m.jpg,"[nature]",train
3_5_ab_m.jpg,"[elk, clouds, nature]",val
4_6_ab_m.jpg,"[]",val
"""


def write_ml_decoder(root: Path, csv: str = CSV, content: object = None) -> Path:
    root.mkdir(exist_ok=True)
    (root / "data.csv").write_text(csv, encoding="utf-8")
    default = {"test class": ["clouds", "computer", "elk"]}
    (root / "benchmark_81_v0.json").write_text(json.dumps(default if content is None else content), encoding="utf-8")
    return root


class TestMlDecoder:
    @pytest.mark.parametrize("quoted", [False, True])
    @pytest.mark.parametrize("folder", ["", "images"])
    def test_rows_words_and_splits(self, quoted, folder, tmp_path):
        csv = (
            CSV if not quoted else CSV.replace("[blue, clouds]", "['blue', 'clouds']").replace("[nature]", "['nature']")
        )
        files = [line.split(",")[0] for line in CSV.splitlines()[1:]]
        write_images(write_ml_decoder(tmp_path), [f"{folder}/{file}".lstrip("/") for file in files])
        (tmp_path / "data.csv").write_text(csv, encoding="utf-8")
        index = prepare("nus_wide", tmp_path, check_counts=False)
        assert index.words == ("nature", "blue", "clouds", "computer", "elk")  # seen ones in the order of TagList1k.txt
        assert index.ids.to_pylist() == [file.removesuffix(".jpg") for file in files]
        assert index.splits.tolist() == ["train", "train", "test", "test"]
        assert index.targets.toarray().tolist() == [[0, 1, 1, 0, 0], [1, 0, 0, 0, 0], [1, 0, 1, 0, 1], [0] * 5]
        assert index.manifest["layout"] == "ml_decoder"
        assert index.manifest["image_files"]["folder"] == (folder or ".")
        assert index.manifest["unseen_words_without_images"] == ["computer"]
        assert list(index.partitions) == ["925_81", "81"]
        test = index.dataset("test", "81", keep_unlabelled=False)
        assert test.ids.to_pylist() == ["3_5_ab_m"] and dense_targets(test).tolist() == [[1, 0, 1]]

    def test_file_names_alone(self, tmp_path):
        write_ml_decoder(tmp_path, CSV.replace("\n0_", "\nnus_wide/0_"))
        write_images(tmp_path / "disk", ["0_2124494179_b039ddccac_m.jpg", "3_5_ab_m.jpg", "4_6_ab_m.jpg"])
        index = prepare("nus_wide", tmp_path, images=tmp_path / "disk", missing_images="drop", check_counts=False)
        assert len(index) == 3 and index.manifest["image_files"]["layout"] == "file names of data.csv"
        assert index.ids.to_pylist()[0] == "0_2124494179_b039ddccac_m"

    def test_no_concept_in_training(self, tmp_path):
        index, problems = read(write_ml_decoder(tmp_path, CSV.replace("[blue, clouds]", "[blue]")))
        assert problems == [] and list(index.partitions) == ["925_81"]
        assert index.dataset("train").vocabulary.unseen == ("clouds", "computer", "elk")

    def test_a_word_twice_in_a_cell(self, tmp_path):
        index, problems = read(write_ml_decoder(tmp_path, CSV.replace("[blue, clouds]", "[blue,clouds, blue]")))
        assert problems == [] and index.targets[0].toarray().tolist() == [[0, 1, 1, 0, 0]]

    def test_train_class(self, tmp_path):
        content = {"test class": ["elk"], "train class": ["blue", "nature"]}
        index, problems = read(write_ml_decoder(tmp_path, content=content))
        assert problems == [] and index.words == ("nature", "blue", "elk")
        assert index.manifest["words_on_neither_side"] == ["clouds"]

    def test_blanks_around_the_words_of_the_json(self, tmp_path):
        content = {"test class": [" clouds ", "elk\n", "computer", "clouds"], "train class": [" blue", "nature "]}
        index, problems = read(write_ml_decoder(tmp_path, content=content))
        assert problems == [] and index.words == ("nature", "blue", "clouds", "elk", "computer")
        assert index.targets.toarray().tolist() == [[0, 1, 1, 0, 0], [1, 0, 0, 0, 0], [1, 0, 1, 1, 0], [0] * 5]

    @pytest.mark.parametrize("key", ["test class", "train class"])
    @pytest.mark.parametrize("words", [None, "elk", 3, [1], [["elk"]], ["elk", " "], {"elk": 1}])
    def test_words_that_are_no_list_are_one_problem_of_all(self, key, words, tmp_path):
        content = {"test class": ["elk"], "train class": ["blue"]} | {key: words}
        _, problems = read(write_ml_decoder(tmp_path, CSV.replace(",val", ",dev"), content))
        assert sum(f'benchmark_81_v0.json must be {{"{key}": [words]}}, it has no such' in p for p in problems) == 1
        assert any("must divide its images into train and val, got ['dev'] besides" in problem for problem in problems)

    @pytest.mark.parametrize("name", ["data.csv", "benchmark_81_v0.json"])
    def test_a_folder_in_place_of_a_file(self, name, tmp_path):
        (write_ml_decoder(tmp_path) / name).unlink()
        (tmp_path / name).mkdir()
        assert any(name in problem and "Is a directory" in problem for problem in read(tmp_path)[1])

    @pytest.mark.parametrize(
        ("csv", "content", "text"),
        [
            (CSV.replace(",val", ",dev"), None, "must divide its images into train and val, got ['dev'] besides"),
            (CSV + '4_6_ab_m.jpg,"[blue]",val\n', None, "must name each image once, it repeats 1 such as 4_6_ab_m.jpg"),
            (
                CSV.replace(",split_name", ",split_name,more").replace(",train", ",train,"),
                None,
                "must have the columns",
            ),
            ("filepath,label,split_name\n", None, "and at least one row"),
            (CSV, {"test": []}, 'must be {"test class": [words]}, it has no such list'),
            (CSV, [1], 'must be {"test class": [words]}, it has no such list'),
            (CSV, {"test class": ["blue", "nature", "elk", "clouds"]}, "must have seen and unseen words, got 0 and 4"),
        ],
    )
    def test_problems(self, csv, content, text, tmp_path):
        _, problems = read(write_ml_decoder(tmp_path, csv, content))
        assert any(text in problem for problem in problems), problems

    def test_missing_and_damaged_files(self, tmp_path):
        index, (problem,) = read(tmp_path, layout="ml_decoder")
        assert index is None and "it lacks data.csv and benchmark_81_v0.json; download them" in problem
        (write_ml_decoder(tmp_path) / "benchmark_81_v0.json").write_text("{")
        assert any("benchmark_81_v0.json must be JSON, it is damaged" in problem for problem in read(tmp_path)[1])

    def test_names_are_checked(self, tmp_path):
        _, problems = read(write_ml_decoder(tmp_path), check_counts=True)
        assert len(problems) == 2 and "must have the 925 seen words of NUS-WIDE, got 2 with 923 missing" in problems[0]

    def test_two_layouts_are_ambiguous(self, root):
        write_ml_decoder(root)
        index, (problem,) = read(root)
        assert (
            index is None and "it has data.csv and Imagelist.txt; pass layout=ml_decoder or layout=official" in problem
        )
        assert read(root, layout="ml_decoder")[0].manifest["layout"] == "ml_decoder"
        assert read(root, layout="official")[1] == []


# ------------------------------------------------------------------------------------------------------- real material


def test_bundled_words():
    seen, unseen = read_partition(resource_path("data", "nus_wide", "partition.json"))
    assert (len(seen), len(unseen), len({*seen, *unseen})) == (925, 81, 1006)
    assert resource_path("data", "nus_wide", "concepts.txt").read_text().split("\n")[:-1] == list(unseen)


def test_the_official_lists_give_the_bundled_words(real, tmp_path):
    tags, concepts = (
        (real / "nus_wide" / name).read_text().split("\n")[:-1] for name in ("TagList1k.txt", "Concepts81.txt")
    )
    root = write_official(
        tmp_path, tags=tags, concepts=concepts, table=np.eye(6, 1000, 5, np.int8), truth=np.eye(6, 81, dtype=np.int8)
    )
    for name in ("TagList1k.txt", "Concepts81.txt"):
        place = "NUS_WID_Tags" if name.startswith("Tag") else "ConceptsList"
        (root / place / name).write_bytes((real / "nus_wide" / name).read_bytes())
    index, problems = read(root, check_counts=True)
    assert len(problems) == 1 and "got 6 images of 269,648, 4 train of 161,789, 2 test of 107,859; " in problems[0]
    assert index.manifest["concepts_that_are_no_tags"] == ["computer", "fire", "map", "swimmers", "tattoo", "whales"]
    seen, unseen = read_partition(resource_path("data", "nus_wide", "partition.json"))
    assert index.partitions["925_81"] == {"seen": list(seen), "unseen": list(unseen)}
    assert as_dict(index) == oracle(root)


def test_fingerprint_of_the_test_images(real, tmp_path):
    """1.876 labels an image, 2.412 for each that has one: by these, papers' test sets are told apart."""
    packed = np.load(real / "nus_wide/ground_truth_81.npz")
    truth = np.unpackbits(packed["test"], axis=1)[:, :81].astype(np.int8)
    truth = np.vstack([truth, np.zeros((1, 81), np.int8)])
    concepts = [str(concept) for concept in packed["concepts"]]
    names = [f"photo/{i:06d}_{i}.jpg" for i in range(len(truth))]
    table = np.ones((len(truth), 1), np.int8)
    root = write_official(tmp_path, names, [len(truth) - 1], ("nature",), concepts, table, truth)
    index, problems = read(root)
    assert problems == []
    assert index.manifest["counts"]["labels_per_image"]["test"] == {
        "seen": 1.0,
        "unseen": 1.8764,
        "images_with_an_unseen_word": 83_898,
        "unseen_of_those": 2.4123,
    }
    assert (np.asarray(index.targets[:, 1:].sum(0)).ravel() == truth.sum(0)).all()
    assert len(index.dataset("test", "81")) == 107_859
    assert len(index.dataset("test", "81", keep_unlabelled=False)) == 83_898
