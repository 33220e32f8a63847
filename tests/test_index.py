"""The prepared index: what is written comes back, views are exact, and damage is refused."""

import errno
import json
import os
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy.sparse import csr_matrix

from zsmld.datasets import build_dataset, dense_targets, ids_digest
from zsmld.datasets.index import Index
from zsmld.datasets.partition import read_partition
from zsmld.protocols import Protocol

SPLITS = np.array(["train", "train", "train", "train", "val", "test", "test"])
TARGETS = np.array(  # dog, cat, zebra, lamp
    [[1, 0, 0, 0], [0, 1, 1, 0], [0, 0, 1, 0], [0, 0, 0, 0], [1, 0, 0, 0], [0, 0, 1, 1], [0, 0, 0, 0]], np.int8
)
WORDS = ("dog", "cat", "zebra", "lamp")


def sparse(targets: np.ndarray, missing: int) -> csr_matrix:
    """Targets with every entry stored that differs from `missing`; absent ones are explicit zeros."""
    rows, labels = np.nonzero(targets != missing)
    return csr_matrix((targets[rows, labels], (rows, labels)), targets.shape)


def make(root: Path, targets=TARGETS, missing=0, splits=SPLITS, **options) -> Index:
    ids = [f"{i:03d}" for i in range(len(targets))]
    partitions = {"all": {"seen": list(WORDS), "unseen": []}, "2_1": {"seen": ["cat", "dog"], "unseen": ["zebra"]}}
    paths = [f"{split}/{i}.png" for split, i in zip(splits, ids, strict=True)]
    return Index("mini", root, WORDS, partitions, ids, paths, splits, sparse(targets, missing), missing, **options)


@pytest.fixture
def root(tmp_path):
    """Seven pictures of which picture i is of colour i."""
    for i, split in enumerate(SPLITS):
        (tmp_path / split).mkdir(exist_ok=True)
        Image.new("RGB", (8, 6), (i, 0, 0)).save(tmp_path / split / f"{i:03d}.png")
    return tmp_path


values = st.lists(st.lists(st.sampled_from([-1, 0, 1]), min_size=4, max_size=4), min_size=7, max_size=7)


@given(targets=values.map(lambda rows: np.array(rows, np.int8)), missing=st.sampled_from([0, -1]))
def test_what_is_saved_comes_back(targets, missing, tmp_path_factory):
    root = tmp_path_factory.mktemp("index")
    saved = make(root, targets, missing, manifest={"policies": {"difficult": "drop"}})
    opened = Index.open(saved.save(root / "prepared"))
    assert (opened.name, opened.words, opened.partitions) == (saved.name, saved.words, saved.partitions)
    assert opened.ids.equals(saved.ids) and opened.paths.equals(saved.paths)
    assert opened.splits.tolist() == saved.splits.tolist()
    assert opened.missing == missing and opened.manifest["policies"] == {"difficult": "drop"}
    dataset = opened.dataset("all")
    assert (dense_targets(dataset) == targets).all()  # 1 present, 0 absent and -1 unknown are three things


def test_a_dataset_is_its_rows_and_columns(root):
    dataset = make(root).dataset("test", "2_1")
    assert dataset.vocabulary.words == ("cat", "dog", "zebra") and dataset.vocabulary.unseen == ("zebra",)
    assert [str(image_id) for image_id in dataset.ids] == ["005", "006"] and len(dataset) == 2
    assert dense_targets(dataset).tolist() == [[0, 0, 1], [0, 0, 0]]
    item = dataset[0]
    assert item["id"] == "005" and item["targets"].tolist() == [0, 0, 1]
    assert item["image"].getpixel((0, 0)) == (5, 0, 0)
    assert repr(dataset) == "IndexedDataset('mini', split='test', num_images=2, seen=2, unseen=1)"


def test_items_and_the_matrix_agree_where_unknown_is_missing(root):
    targets = np.array([[1, -1, 0, -1]] * 7, np.int8)
    dataset = make(root, targets, missing=-1).dataset("all", "2_1")
    assert dataset[3]["targets"].tolist() == [-1, 1, 0] == dense_targets(dataset)[3].tolist()


@pytest.mark.parametrize("missing", [0, -1])
def test_negative_positions_count_from_the_end(root, missing):
    dataset = make(root, np.array([[1, 0, -1, 0]] * 6 + [[0, 1, 0, -1]], np.int8), missing).dataset("all")
    for k in range(1, 8):
        last, same = dataset[-k], dataset[len(dataset) - k]
        assert last["id"] == same["id"] and last["targets"].tolist() == same["targets"].tolist()
        assert last["targets"].tolist() == dense_targets(dataset)[-k].tolist()
    for index in (7, -8):
        with pytest.raises(IndexError, match=f"index must be below the 7 images, got {index}"):
            dataset[index]


def test_training_images_of_a_zero_shot_partition_have_a_seen_word(root):
    index = make(root)
    assert [str(i) for i in index.dataset("train", "2_1").ids] == ["000", "001"]
    strict = index.dataset("train", "2_1", exclude_unseen_images=True)
    assert [str(i) for i in strict.ids] == ["000"]
    assert strict.manifest["images"] == {"listed": 4, "without_a_seen_word": 2, "with_an_unseen_word": 1, "used": 1}
    assert strict.manifest["policies"]["exclude_unseen_images"] is True
    everything = index.dataset("train", "all")  # no word is unseen: images without a word stay
    assert len(everything) == 4
    assert len(index.dataset("train", "all", keep_unlabelled=False)) == 3


def test_test_images_are_dropped_by_policy_alone(root):
    kept, dropped = (make(root).dataset("test", "2_1", keep_unlabelled=keep) for keep in (True, False))
    assert (len(kept), len(dropped)) == (2, 1)
    assert dropped.manifest["images"] == {"listed": 2, "unlabelled": 1, "used": 1}
    with pytest.raises(ValueError, match=r"'train' of mini must have images .* 'with_an_unseen_word': 4, 'used': 0"):
        make(root, np.tile(TARGETS[1], (7, 1))).dataset("train", "2_1", exclude_unseen_images=True)


@given(fraction=st.floats(0, 0.99), seed=st.integers(0, 5))
def test_a_share_of_train_becomes_val(fraction, seed):
    splits = np.array(["train"] * 40 + ["test"] * 10)
    index = make(Path("."), np.ones((50, 4), np.int8), splits=splits)
    num_val = round(fraction * 40)
    parts = {}
    for split, number in (("train", 40 - num_val), ("val", num_val)):
        if number:
            parts[split] = set(map(str, index.dataset(split, val_fraction=fraction, seed=seed).ids))
            assert len(parts[split]) == number
    assert not set.intersection(*parts.values()) or len(parts) == 1
    assert set().union(*parts.values()) == {f"{i:03d}" for i in range(40)}


def test_the_downloads_own_validation_images_are_used_unless_a_share_is_asked_for(root):
    index = make(root)
    assert [str(i) for i in index.dataset("val").ids] == ["004"]
    assert "004" not in [str(i) for i in index.dataset("val", val_fraction=0.5).ids]
    with pytest.raises(ValueError, match=r"'val' of mini must have images, it has \['test', 'train'\]; pass val"):
        make(root, TARGETS[:2], splits=np.array(["train", "test"])).dataset("val")


def test_a_partition_of_ones_own(root):
    path = root / "mine.json"
    path.write_text(json.dumps({"a": {"seen": ["lamp"], "unseen": ["dog"]}, "b": {"seen": ["lampe"], "unseen": []}}))
    dataset = make(root).dataset("test", f"{path}#a")
    assert dataset.vocabulary.words == ("lamp", "dog") and dense_targets(dataset)[0].tolist() == [1, 0]
    assert read_partition(f"{path}#b") == (("lampe",), ())
    with pytest.raises(ValueError, match=r"partition .*#b must name words of mini, got 1 others such as \['lampe'\]"):
        make(root).dataset("test", f"{path}#b")
    with pytest.raises(ValueError, match=r"partition must be one of \['all', '2_1'\] or a JSON file, got '3_1'"):
        make(root).dataset("test", "3_1")


def test_prepared_is_a_dataset_by_name(root):
    folder = make(root).save(root / "prepared")
    dataset = build_dataset("prepared", path=folder, split="test", partition="2_1", templates=("{}",))
    assert dataset.vocabulary.templates == ("{}",) and dataset[1]["id"] == "006"
    moved = root / "moved"
    moved.mkdir()
    (root / "test").rename(moved / "test")
    assert build_dataset("prepared", path=folder, split="test", root=moved)[0]["id"] == "005"
    with pytest.raises(FileNotFoundError, match=r"root must be the folder of the images, not found: .*gone; pass root"):
        build_dataset("prepared", path=folder, split="test", root=root / "gone")


# ---------------------------------------------------------------------------------------------------- missing images


def test_missing_images_are_refused_or_counted_never_silent(root):
    for name in ("train/001.png", "test/006.png"):
        (root / name).unlink()
    problems: list[str] = []
    make(root).without_missing_images("error", problems)
    assert len(problems) == 1
    assert problems[0].startswith(
        f"2 of 7 images are not in {root}, for instance train/001.png, test/006.png; complete"
    )
    problems = []
    left = make(root).without_missing_images("drop", problems)
    assert not problems and len(left) == 5 and left.manifest["missing_images"] == ["train/001.png", "test/006.png"]
    assert (dense_targets(left.dataset("all")) == np.delete(TARGETS, [1, 6], axis=0)).all()
    opened = Index.open(left.save(root / "prepared"))
    assert opened.dataset("test").manifest["missing_images"] == 2
    assert "missing       1 of 4 images of train; missing_images.txt lists them" in opened.to_text()
    assert (root / "prepared" / "missing_images.txt").read_text().split() == ["train/001.png", "test/006.png"]


def test_a_split_of_which_nothing_is_left_is_said(root):
    for path in (root / "test").iterdir():
        path.unlink()
    left = make(root).without_missing_images("drop", [])
    assert "missing       2 of 2 images of test" in left.to_text() and "\ntest" not in left.to_text()


def test_an_index_of_which_no_image_is_there_is_refused_whatever_the_policy(tmp_path):
    problems: list[str] = []
    make(tmp_path).without_missing_images("drop", problems)
    assert len(problems) == 1 and "7 of 7 images are not in" in problems[0] and "missing_images" not in problems[0]


def test_images_that_share_a_file_are_counted(root):
    index = make(root)
    index.paths = index.paths.take([0, 1, 2, 3, 4, 5, 0])
    assert index.without_missing_images("error", []).manifest["counts"] == {"images_that_share_a_file": 1}
    assert "counts" not in make(root).without_missing_images("error", []).manifest


def test_a_sample_is_decoded(root):
    assert make(root).decode_sample(7) == []
    (root / "test" / "005.png").write_bytes(b"\x89PNG no picture")
    wrong = make(root).decode_sample(7)
    assert len(wrong) == 1 and "005.png" in wrong[0]


# ---------------------------------------------------------------------------------------------------- manifest, damage


def test_the_manifest_says_what_is_in_it(root):
    folder = make(root, manifest={"counts": {"tags": 4}, "fingerprints": {"zsl": {"num_images": 1}}}).save(root / "p")
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["splits"]["test"]["num_images"] == 2
    assert manifest["splits"]["test"]["labels_per_image"] == 1.0
    assert manifest["splits"]["test"]["image_ids_sha256"] == ids_digest(["006", "005"])
    assert manifest["versions"]["zsmld"] and manifest["words"] == list(WORDS) and manifest["counts"] == {"tags": 4}
    text = Index.open(folder).to_text()
    lines = ("test             2        1.0000", "words         4", "in the files  tags: 4", "all (4 seen, 0 unseen)")
    for line in lines:
        assert line in text, text


@pytest.mark.parametrize(
    "damage, error, message",
    [
        (lambda p: (p / "rows.parquet").unlink(), FileNotFoundError, r"that `zsmld prepare` wrote, .* no rows.parquet"),
        (lambda p: (p / "manifest.json").write_text("{"), ValueError, r"manifest.json must be JSON, it is damaged"),
        (lambda p: (p / "manifest.json").write_text("[]"), ValueError, r"manifest.json must have format 1"),
        (lambda p: truncate(p / "rows.parquet"), ValueError, r"rows.parquet and manifest.json must belong together"),
        (lambda p: change(p, words=["cat", "dog", "zebra", "lamp"]), ValueError, r"must belong together, they are dam"),
        (lambda p: change(p, words=["dog"]), ValueError, r"must belong together"),
        (lambda p: change(p, missing=-1), ValueError, r"must belong together"),
        (lambda p: change(p, sha256=None), ValueError, r"must belong together"),
    ],
)
def test_a_damaged_index_is_refused(root, damage, error, message):
    folder = make(root).save(root / "p")
    damage(folder)
    with pytest.raises(error, match=message):
        Index.open(folder)


@pytest.mark.parametrize("number", [1, 2])
def test_an_index_stays_until_another_one_is_whole(root, tmp_path, monkeypatch, number):
    """The disk is full at the first or the second text that is written; the rows are there by then."""
    make(root).save(tmp_path / "index")
    before = {path.name: path.read_bytes() for path in (tmp_path / "index").iterdir()}
    other, count, write_text = make(root, targets=1 - np.abs(TARGETS)), [0], Path.write_text

    def full(path: Path, *given, **options) -> None:
        count[0] += 1
        if count[0] == number:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write_text(path, *given, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        with pytest.raises(
            OSError, match=r"index must be written to the end, got No space left .*; make room and repeat"
        ):
            other.save(tmp_path / "index")
    assert {path.name: path.read_bytes() for path in (tmp_path / "index").iterdir()} == before
    other.save(tmp_path / "index")
    assert (Index.open(tmp_path / "index").targets != other.targets).nnz == 0


def change(folder: Path, **values) -> None:
    """Other values in the manifest; None takes the key away."""
    manifest = json.loads((folder / "manifest.json").read_text()) | values
    kept = {key: value for key, value in manifest.items() if value is not None}
    (folder / "manifest.json").write_text(json.dumps(kept))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def test_the_rows_are_plain_parquet(root):
    folder = make(root, np.where(TARGETS == 1, 1, -1), missing=0).save(root / "p")
    table = pq.read_table(folder / "rows.parquet")
    assert table.column_names == ["id", "path", "split", "present", "unknown"]
    assert table["present"].to_pylist() == [np.flatnonzero(row).tolist() for row in TARGETS]


def test_rows_that_do_not_belong_together_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"must have one row an image .*, got \(7, 7, 6, 7\) rows and 4 columns"):
        Index("x", Path("."), WORDS, {}, list("abcdefg"), list("abcdefg"), SPLITS[:6], sparse(TARGETS, 0))
    twice = Index("x", tmp_path, WORDS, {}, list("abcdefa"), list("abcdefg"), SPLITS, sparse(TARGETS, 0))
    with pytest.raises(
        ValueError, match=r"ids of x must be distinct, found:\n  - 1 image ids stand more than once, .* a;"
    ):
        twice.save(tmp_path / "p")
    problems: list[str] = []
    twice.without_missing_images("drop", problems)
    assert problems[0].startswith("1 image ids stand more than once, for instance a") and len(problems) == 2
    with pytest.raises(ValueError, match="split must be 'train', 'val', 'test' or 'all', got 'dev'"):
        make(Path(".")).dataset("dev")
    with pytest.raises(ValueError, match=r"val_fraction must be in \[0, 1\), got 1"):
        make(Path(".")).dataset("train", val_fraction=1)


def test_the_partition_of_a_protocol(root):
    index = make(root)
    assert index.partition_of(Protocol.named("zsl")) == "2_1" == index.partition_of(Protocol.named("gzsl"))
    assert index.partition_of(Protocol.named("supervised")) == "all"
    assert index.partition_of(Protocol.named("coco_zsl_48_17")) is None
