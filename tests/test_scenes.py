"""Generated scenes: exact labels, disjoint splits, a fair zero-shot question."""

import importlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zsmld import build_dataset
from zsmld.datasets import dense_targets
from zsmld.datasets.scenes import COLOURS, SHAPES, Scenes, draw_scene

scenes_module = importlib.import_module("zsmld.datasets.scenes")
SPLITS = ("train", "val", "test")


def pixels(dataset: Scenes, index: int) -> np.ndarray:
    return np.asarray(dataset[index]["image"])


# -------------------------------------------------------------------------------------------------------------- laws


@settings(max_examples=10)
@given(st.sampled_from(SPLITS), st.integers(0, 5), st.integers(0, 9))
def test_a_scene_is_a_function_of_seed_split_and_index(split: str, seed: int, index: int) -> None:
    once, again = (Scenes(split, num_images=10, seed=seed) for _ in range(2))
    _ = again[9 - index]  # what was drawn before does not matter
    np.testing.assert_array_equal(pixels(once, index), pixels(again, index))
    np.testing.assert_array_equal(once[index]["targets"], again[index]["targets"])
    other = Scenes(split, num_images=10, seed=seed + 1)
    assert (pixels(once, index) != pixels(other, index)).any()


def test_splits_share_no_scene() -> None:
    seen = {pixels(Scenes(split, num_images=30), i).tobytes() for split in SPLITS for i in range(30)}
    assert len(seen) == 90
    ids = {Scenes(split, num_images=30)[i]["id"] for split in SPLITS for i in range(30)}
    assert len(ids) == 90


@pytest.mark.parametrize("split", SPLITS)
def test_what_is_drawn_is_what_is_labelled(split: str, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[list[str]] = []

    def recording(words: list[str], *rest: object) -> object:
        drawn.append(words)
        return draw_scene(words, *rest)

    monkeypatch.setattr(scenes_module, "draw_scene", recording)
    dataset = Scenes(split, num_images=25)
    for i in range(25):
        item = dataset[i]
        present = {dataset.vocabulary.words[label] for label in np.flatnonzero(item["targets"])}
        assert set(drawn[-1]) == present and len(drawn[-1]) == len(present)
        np.testing.assert_array_equal(item["targets"], dataset.targets[i].toarray()[0])


@pytest.mark.parametrize("split", SPLITS)
def test_one_to_four_objects_all_counts_alike(split: str) -> None:
    targets = dense_targets(Scenes(split, num_images=4000))
    assert set(np.unique(targets)) == {0, 1}
    counts = np.bincount(targets.sum(1), minlength=6)
    assert counts[0] == 0 and counts[5:].sum() == 0
    assert (counts[1:5] > 850).all()  # a quarter each


# --------------------------------------------------------------------------------------------------------- partition


def test_partition_asks_a_zero_shot_question() -> None:
    vocabulary = Scenes(num_images=1).vocabulary
    assert len(vocabulary) == 100 and len(vocabulary.seen) == 80 and len(vocabulary.unseen) == 20
    assert set(vocabulary.words) == {f"{colour} {shape}" for colour in COLOURS for shape in SHAPES}
    assert {word.split()[0] for word in vocabulary.seen} == set(COLOURS)
    assert {word.split()[1] for word in vocabulary.seen} == set(SHAPES)


def test_unseen_words_are_in_test_scenes_only() -> None:
    for split in ("train", "val"):
        dataset = Scenes(split, num_images=3000)
        counts = np.asarray(dataset.targets.sum(0)).ravel()
        assert counts[~dataset.vocabulary.is_seen].sum() == 0
        assert (counts[dataset.vocabulary.is_seen] > 0).all()
    test = Scenes("test", num_images=2000)
    assert (np.asarray(test.targets.sum(0)).ravel() > 20).all()  # each of 100 words about 50 times


# ------------------------------------------------------------------------------------------------------------ pixels


@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_pair_has_pixels_near_its_colour(colour: str, shape: str) -> None:
    for seed in range(2):
        image = np.asarray(draw_scene([f"{colour} {shape}"], 64, np.random.default_rng(seed)), np.float32)
        assert image.shape == (64, 64, 3)
        near = np.linalg.norm(image - COLOURS[colour], axis=2) < 70
        assert near.sum() >= 40  # of 4,096; the smallest shape covers about 100


def test_shapes_differ_and_words_matter() -> None:
    drawn = {shape: np.asarray(draw_scene([f"red {shape}"], 64, np.random.default_rng(0))) for shape in SHAPES}
    assert len({image.tobytes() for image in drawn.values()}) == len(SHAPES)
    with pytest.raises(ValueError, match=r"shape must be one of .*, got 'blob'"):
        draw_scene(["red blob"], 64, np.random.default_rng(0))


def test_image_size_is_the_side() -> None:
    item = Scenes("val", num_images=2, image_size=96)[1]
    assert item["image"].size == (96, 96) and item["image"].mode == "RGB"
    assert item["targets"].dtype == np.int8 and item["id"] == "scenes/0/val/1"


# ------------------------------------------------------------------------------------------------------------ errors


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match=r"split must be one of \['train', 'val', 'test'\], got 'dev'"):
        Scenes("dev")
    with pytest.raises(ValueError, match="num_images must be ≥ 1 and image_size ≥ 32, got 0 and 64"):
        Scenes(num_images=0)
    with pytest.raises(ValueError, match="got 5 and 16"):
        Scenes(num_images=5, image_size=16)
    with pytest.raises(IndexError, match=r"index must be in \[0, 5\), got 5"):
        _ = Scenes(num_images=5)[5]


def test_build_dataset() -> None:
    built = build_dataset("scenes", split="val", num_images=4, seed=3)
    assert repr(built) == "Scenes(split='val', num_images=4, words=100, seed=3)" and len(built) == 4
    assert len(Scenes("val")) == 1000 and len(Scenes("test")) == 2000
    with pytest.raises(ValueError, match=r"dataset must be one of \[.*'scenes'.*\], got 'scene'"):
        build_dataset("scene")
    with pytest.raises(ValueError, match=r"dataset 'scenes' takes \[.*'seed'.*\], got \['sed'\] besides"):
        build_dataset("scenes", sed=1)


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_a_scene_does_not_depend_on_how_many_there_are(split: str) -> None:
    few, many = Scenes(split, num_images=7), Scenes(split, num_images=200)
    assert (few.targets != many.targets[:7]).nnz == 0
    for i in range(7):
        assert few[i]["image"].tobytes() == many[i]["image"].tobytes()
