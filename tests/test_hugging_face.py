"""Datasets of the library `datasets`, in memory and saved."""

import importlib.util
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from zsmld.datasets.hugging_face import HuggingFaceDataset

WORDS = ["cat", "dog", "red car"]
ROWS = [["dog", "red car"], ["cat"], [], ["cat", "dog"]]


@pytest.fixture(scope="module")
def datasets() -> Any:
    return pytest.importorskip("datasets")


def pictures(number: int = 4) -> list[Image.Image]:
    return [Image.new("RGB", (4 + i, 5), (40 * i, 0, 0)) for i in range(number)]


def make(datasets: Any, cells: list, feature: Any, column: str = "labels") -> Any:
    features = datasets.Features({"image": datasets.Image(), column: feature})
    return datasets.Dataset.from_dict({"image": pictures(len(cells)), column: cells}, features=features)


def list_of(datasets: Any, feature: Any) -> Any:
    return datasets.List(feature) if hasattr(datasets, "List") else [feature]  # datasets 3 has no List


def forms(datasets: Any) -> dict[str, Any]:
    """The same four images in every form that a column of words has."""
    number = {word: i for i, word in enumerate(WORDS)}
    named = datasets.ClassLabel(names=WORDS)
    text = datasets.Value("string")
    return {
        "list of ClassLabel": make(datasets, [[number[w] for w in row] for row in ROWS], list_of(datasets, named)),
        "Sequence of ClassLabel": make(datasets, [[number[w] for w in row] for row in ROWS], datasets.Sequence(named)),
        "list of texts": make(datasets, ROWS, list_of(datasets, text), "tags"),
        "texts": make(datasets, ["|".join(row) for row in ROWS], text, "keywords"),
        "texts and none": make(datasets, ["dog|red car", "cat", None, "cat|dog"], text),
        "lists and none": make(
            datasets, [["dog", "red car"], ["cat", "cat"], None, ["cat", "dog"]], list_of(datasets, text)
        ),
    }


def words_of(dataset: HuggingFaceDataset) -> list[set[str]]:
    return [
        {dataset.vocabulary.words[j] for j, target in enumerate(dataset[i]["targets"]) if target == 1}
        for i in range(len(dataset))
    ]


def test_every_form_is_the_same(datasets: Any) -> None:
    for name, made in forms(datasets).items():
        dataset = HuggingFaceDataset(made)
        assert dataset.vocabulary.words == ("cat", "dog", "red car"), name
        assert words_of(dataset) == [set(row) for row in ROWS], name
        assert dataset.ids.to_pylist() == ["all/0", "all/1", "all/2", "all/3"] and dataset.missing == 0
        item = dataset[2]
        assert item["image"].mode == "RGB" and item["image"].size == (6, 5) and item["image"].getpixel((0, 0))[0] == 80
        assert item["targets"].dtype == "int8" and item["id"] == "all/2" and len(dataset) == 4
        assert (dataset.targets.toarray() == [dataset[i]["targets"] for i in range(4)]).all()


def test_class_label_gives_one_word_or_none(datasets: Any) -> None:
    made = make(datasets, [2, 0, -1, None], datasets.ClassLabel(names=[*WORDS, "unused"]), "label")
    dataset = HuggingFaceDataset(made)
    assert words_of(dataset) == [{"red car"}, {"cat"}, set(), set()]
    assert dataset.vocabulary.words == (*WORDS, "unused") and dataset.manifest["counts"]["words_without_images"] == 2
    assert len(HuggingFaceDataset(made, keep_unlabelled=False)) == 2


def test_selected_rows_and_their_order(datasets: Any) -> None:
    made = forms(datasets)["list of texts"].select([3, 0])
    dataset = HuggingFaceDataset(made)
    assert words_of(dataset) == [{"cat", "dog"}, {"dog", "red car"}] and dataset[0]["image"].size == (7, 5)


def test_splits_by_their_names_in_memory_and_on_disk(datasets: Any, tmp_path: Path) -> None:
    made = forms(datasets)["list of ClassLabel"]
    whole = datasets.DatasetDict(
        {"train": made.select([0, 1]), "validation": made.select([2]), "test": made.select([3])}
    )
    whole.save_to_disk(tmp_path / "pets")
    for path in (whole, tmp_path / "pets", str(tmp_path / "pets")):
        found = {split: HuggingFaceDataset(path, split=split) for split in ("train", "test", "all")}
        assert found["train"].ids.to_pylist() == ["train/0", "train/1"] and found["train"].split == "train"
        assert found["all"].ids.to_pylist() == ["train/0", "train/1", "validation/0", "test/0"]
        assert words_of(found["all"]) == [set(row) for row in ROWS] and words_of(found["test"]) == [set(ROWS[3])]
        assert found["all"][3]["image"].size == (7, 5) and found["all"].splits == ("test", "train", "val")
        assert found["train"].vocabulary == found["test"].vocabulary
    assert found["train"].name == "pets"
    made.save_to_disk(tmp_path / "one")
    assert len(HuggingFaceDataset(tmp_path / "one")) == 4
    with pytest.raises(ValueError, match=r"split must be one that one has, got 'train'; it has \['all'\]: .*'all', or"):
        HuggingFaceDataset(tmp_path / "one", split="train")


def test_a_folder_of_images_on_disk(datasets: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    for split, word in (("train", "cat"), ("train", "dog"), ("test", "dog")):
        (tmp_path / "pets" / split / word).mkdir(parents=True)
        Image.new("RGB", (3, 3)).save(tmp_path / "pets" / split / word / "a.png")
    dataset = HuggingFaceDataset(tmp_path / "pets", split="train")
    assert dataset.vocabulary.words == ("cat", "dog") and sorted(map(sorted, words_of(dataset))) == [["cat"], ["dog"]]


def test_partition_and_words(datasets: Any, tmp_path: Path) -> None:
    made = forms(datasets)["list of texts"]
    (tmp_path / "p.json").write_text(json.dumps({"seen": ["dog", "lynx"], "unseen": ["cat"]}))
    whole = datasets.DatasetDict({"train": made, "test": made})
    train = HuggingFaceDataset(whole, split="train", partition=tmp_path / "p.json")
    assert train.ids.to_pylist() == ["train/0", "train/3"]  # those with a seen word
    assert train.vocabulary.seen == ("dog", "lynx") and train.vocabulary.unseen == ("cat",)
    assert words_of(HuggingFaceDataset(whole, split="test", partition=tmp_path / "p.json")) == [
        {"dog"},
        {"cat"},
        set(),
        {"cat", "dog"},
    ]
    with pytest.warns(UserWarning, match="words outside the vocabulary are left out: {'cat': 2, 'red car': 1}"):
        some = HuggingFaceDataset(made, words=["dog"], templates=("{}!",))
    assert some.manifest["unknown_words"] == {"cat": 2, "red car": 1} and some.vocabulary.prompts("dog") == ("dog!",)


def test_workers_can_have_it(datasets: Any) -> None:
    dataset = pickle.loads(pickle.dumps(HuggingFaceDataset(forms(datasets)["texts"])))
    assert words_of(dataset) == [set(row) for row in ROWS]


def test_an_unreadable_image_is_an_error_that_names_it(datasets: Any) -> None:
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=WORDS)})
    cells = {"image": [{"bytes": b"broken", "path": None}, None], "label": [0, 1]}
    dataset = HuggingFaceDataset(datasets.Dataset.from_dict(cells, features=features))
    with pytest.raises(ValueError, match="image must be readable, cannot decode all/0 of hugging_face"):
        _ = dataset[0]
    with pytest.raises(ValueError, match="image must be readable, all/1 of hugging_face has none"):
        _ = dataset[1]


def test_paths_as_images(datasets: Any, tmp_path: Path) -> None:
    Image.new("RGB", (3, 2)).save(tmp_path / "a.png")
    made = datasets.Dataset.from_dict({"picture": [str(tmp_path / "a.png")], "tags": [["dog"]]})
    assert HuggingFaceDataset(made)[0]["image"].size == (3, 2)


def test_what_is_refused(datasets: Any, tmp_path: Path) -> None:
    made = forms(datasets)["texts"]
    for options, message in (
        ({"split": "dev"}, "split must be 'train', 'val', 'test' or 'all', got 'dev'"),
        ({"image_column": "x"}, r"image_column must be a column, got 'x'; it has \['image', 'keywords'\]"),
        ({"words_column": "x"}, "words_column must be a column, got 'x'"),
        ({"words": ["yak"]}, r"must have words of its vocabulary, got none of \['yak'\].* for instance \['"),
        ({"words": ["dog"], "partition": "p.json"}, "words must be left out beside partition"),
    ):
        with pytest.raises(ValueError, match=message):
            HuggingFaceDataset(made, **options)
    with pytest.raises(ValueError, match=r"words_column must be named, there are 0 columns .*\['image', 'keyword'\]"):
        HuggingFaceDataset(made.rename_column("keywords", "keyword"))
    with pytest.raises(ValueError, match="image_column must be named, there are 2 columns"):
        two = {"image": datasets.Image(), "back": datasets.Image(), "tags": datasets.Value("string")}
        cells = {"image": pictures(1), "back": pictures(1), "tags": ["dog"]}
        HuggingFaceDataset(datasets.Dataset.from_dict(cells, features=datasets.Features(two)))
    mixed = make(datasets, ["a;b,c"], datasets.Value("string"))
    with pytest.raises(ValueError, match=r"separator must be given for column 'labels', .* any of \[';', ','\]"):
        HuggingFaceDataset(mixed)
    assert HuggingFaceDataset(mixed, separator=";").vocabulary.words == ("a", "b,c")
    with pytest.raises(
        ValueError, match="words_column must be ClassLabel, text, or a list of either, column 'labels' is"
    ):
        HuggingFaceDataset(make(datasets, [1.5], datasets.Value("float32")))
    (tmp_path / "p.json").write_text(json.dumps({"seen": ["red car"], "unseen": ["cat"]}))
    with pytest.raises(ValueError, match="split 'train' of hugging_face must have images under its policies, got none"):
        train = datasets.DatasetDict({"train": made.select([1])})
        HuggingFaceDataset(train, split="train", partition=tmp_path / "p.json")


def test_without_the_library_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "datasets" else find(name, *a))
    with pytest.raises(ValueError, match="must have the library datasets, it is not installed; pip install datasets"):
        HuggingFaceDataset("beans")


def test_training_images_follow_the_rules_of_every_dataset(datasets: Any, tmp_path: Path) -> None:
    partition = tmp_path / "p.json"
    partition.write_text(json.dumps({"seen": ["dog", "red car"], "unseen": ["cat"]}))
    whole = datasets.DatasetDict({"train": make(datasets, ROWS * 10, list_of(datasets, datasets.Value("string")))})
    train = HuggingFaceDataset(whole, "train", partition=partition)
    assert train.manifest["images"] == {"listed": 40, "without_a_seen_word": 20, "used": 20} and len(train) == 20
    strict = HuggingFaceDataset(whole, "train", partition=partition, exclude_unseen_images=True)
    assert strict.manifest["images"]["with_an_unseen_word"] == 10 and len(strict) == 10
    assert strict.manifest["policies"]["exclude_unseen_images"] is True
    assert HuggingFaceDataset(whole, "all").manifest["policies"]["partition"] is None

    parts = {split: HuggingFaceDataset(whole, split, val_fraction=0.25, seed=3) for split in ("train", "val")}
    ids = {split: set(part.ids.to_pylist()) for split, part in parts.items()}
    assert (len(ids["train"]), len(ids["val"])) == (30, 10) and not ids["train"] & ids["val"]
    assert "val" in parts["train"].splits and "val" not in train.splits
    again = HuggingFaceDataset(whole, "val", val_fraction=0.25, seed=3)
    assert again.ids.to_pylist() == parts["val"].ids.to_pylist()
    for part in parts.values():
        for i in (0, len(part) - 1, -1):
            item = part[i]
            row = int(item["id"].split("/")[1])
            expected = set(ROWS[row % 4])
            assert {part.vocabulary.words[j] for j in item["targets"].nonzero()[0]} == expected
    with pytest.raises(ValueError, match=r"val_fraction must be in \[0, 1\), got 1"):
        HuggingFaceDataset(whole, "val", val_fraction=1)
