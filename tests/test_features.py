"""Cached spatial embeddings stand for the images they came from."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_matrix
from torch.testing import assert_close

from zsmld.datasets import Scenes, dense_targets
from zsmld.features import FeatureDataset, extract_features
from zsmld.images import ImageEncoder
from zsmld.vocabulary import Vocabulary

law = settings(max_examples=20)


@pytest.fixture(scope="module")
def scenes():
    return Scenes(split="test", num_images=12)


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    return ImageEncoder("timm:test_resnet", pretrained=False, image_size=64)


@pytest.fixture(scope="module")
def expected(scenes, encoder):
    """What the encoder gives for each scene alone."""
    encoder.eval()
    with torch.no_grad():
        return torch.cat([encoder(encoder.transform(scenes[i]["image"])[None]) for i in range(len(scenes))])


@pytest.mark.parametrize("batch_size", [1, 5, 64])
def test_features_are_the_encoders_output_in_order(scenes, encoder, expected, batch_size):
    features = extract_features(encoder, scenes, device="cpu", batch_size=batch_size, dtype=torch.float32)
    assert len(features) == len(scenes)
    assert_close(features.spatial_embeddings, expected, atol=1e-4, rtol=1e-4)
    for i in range(len(scenes)):
        item = features[i]
        assert item["id"] == scenes[i]["id"]
        np.testing.assert_array_equal(item["targets"], scenes[i]["targets"])
        assert "image" not in item
        assert_close(item["spatial_embeddings"], expected[i], atol=1e-4, rtol=1e-4)


def test_features_are_kept_in_half_precision_and_given_in_full(scenes, encoder, expected):
    features = extract_features(encoder, scenes, device="cpu")
    assert features.spatial_embeddings.dtype == torch.float16
    assert features[0]["spatial_embeddings"].dtype == torch.float32
    assert_close(features.spatial_embeddings.float(), expected, atol=2e-3, rtol=2e-3)


def test_features_have_what_every_dataset_has(scenes, encoder):
    features = extract_features(encoder, scenes, device="cpu")
    assert features.vocabulary == scenes.vocabulary
    assert (features.name, features.split, features.missing) == (scenes.name, scenes.split, scenes.missing)
    np.testing.assert_array_equal(dense_targets(features), dense_targets(scenes))
    assert features.unreadable == []


@pytest.mark.parametrize("training", [True, False])
def test_the_encoder_works_in_eval_mode_and_gets_its_own_mode_back(scenes, encoder, training, expected):
    encoder = copy.deepcopy(encoder).train(training)
    state = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    features = extract_features(encoder, scenes, device="cpu", batch_size=3, dtype=torch.float32)
    assert encoder.training == training
    assert all(torch.equal(tensor, state[name]) for name, tensor in encoder.state_dict().items())
    assert_close(features.spatial_embeddings, expected, atol=1e-4, rtol=1e-4)
    assert not features.spatial_embeddings.requires_grad


class Broken:
    """Scenes of which some cannot be read."""

    name, split, missing = "broken", "test", 0

    def __init__(self, scenes, broken):
        self.scenes, self.broken = scenes, broken
        self.vocabulary, self.targets = scenes.vocabulary, scenes.targets
        self.ids = [f"image {i}" for i in range(len(scenes))]

    def __len__(self):
        return len(self.scenes)

    def __getitem__(self, index):
        if index in self.broken:
            raise ValueError(f"image must be readable, cannot decode {self.ids[index]}")
        return self.scenes[index] | {"id": self.ids[index]}


@pytest.mark.parametrize("batch_size", [1, 5])
def test_unreadable_images_are_listed_and_the_others_keep_their_targets(scenes, encoder, expected, batch_size):
    dataset = Broken(scenes, broken={0, 5, 6})
    features = extract_features(encoder, dataset, device="cpu", batch_size=batch_size, dtype=torch.float32)
    kept = [i for i in range(len(scenes)) if i not in dataset.broken]
    assert features.ids == [f"image {i}" for i in kept]
    assert features.unreadable == [
        (f"image {i}", f"image must be readable, cannot decode image {i}") for i in sorted(dataset.broken)
    ]
    np.testing.assert_array_equal(dense_targets(features), dense_targets(scenes)[kept])
    assert_close(features.spatial_embeddings, expected[kept], atol=1e-4, rtol=1e-4)


def test_no_readable_image_at_all_is_an_error(scenes, encoder):
    dataset = Broken(scenes, broken=set(range(len(scenes))))
    with pytest.raises(ValueError, match=r"must have readable images, none could be read; first: .*decode image 0"):
        extract_features(encoder, dataset, device="cpu")


# ----------------------------------------------------------------------------------------------- FeatureDataset


def made(rows=6, words=4, missing=0, seed=0):
    rng = np.random.default_rng(seed)
    stored = rng.random((rows, words)) < 0.5
    values = rng.choice([1, 0, -1], (rows, words)).astype(np.int8)
    i, j = np.nonzero(stored)
    targets = csr_matrix((values[i, j], (i, j)), shape=(rows, words), dtype=np.int8)  # explicit zeros are kept
    vocabulary = Vocabulary([f"word {i}" for i in range(words)])
    ids = [f"image {i}" for i in range(rows)]
    embeddings = torch.randn(rows, 3, 2, generator=torch.Generator().manual_seed(seed))
    dataset = FeatureDataset(embeddings, targets, ids, vocabulary, "made", "train", missing)
    return dataset, np.where(stored, values, missing)


@law
@given(rows=st.integers(1, 6), words=st.integers(1, 5), missing=st.sampled_from([0, -1]), seed=st.integers(0, 999))
def test_what_is_not_stored_is_missing_and_a_stored_zero_is_zero(rows, words, missing, seed):
    dataset, expected = made(rows, words, missing, seed)
    np.testing.assert_array_equal(np.stack([dataset[i]["targets"] for i in range(rows)]), expected)
    np.testing.assert_array_equal(dense_targets(dataset), expected)
    assert dataset[0]["targets"].dtype == np.int8


@law
@given(rows=st.lists(st.integers(0, 5), min_size=1, max_size=8), missing=st.sampled_from([0, -1]))
def test_selected_rows_are_the_rows(rows, missing):
    dataset, _ = made(missing=missing)
    selected = dataset.select(rows, split="val")
    assert selected.split == "val"
    assert dataset.select(rows).split == "train"
    assert len(selected) == len(rows)
    for i, row in enumerate(rows):
        ours, theirs = selected[i], dataset[row]
        assert ours["id"] == theirs["id"]
        assert torch.equal(ours["spatial_embeddings"], theirs["spatial_embeddings"])
        np.testing.assert_array_equal(ours["targets"], theirs["targets"])


@law
@given(rows=st.lists(st.integers(-6, 5), max_size=8), missing=st.sampled_from([0, -1]))
def test_a_batch_holds_its_rows_one_by_one(rows, missing):
    dataset, _ = made(missing=missing)
    batch, items = dataset.batch(rows), [dataset[row] for row in rows]
    assert batch["ids"] == [item["id"] for item in items]
    assert batch["spatial_embeddings"].shape == (len(rows), 3, 2) and batch["targets"].shape == (len(rows), 4)
    assert batch["spatial_embeddings"].dtype == torch.float32 and batch["targets"].dtype == np.int8
    for i, item in enumerate(items):
        assert torch.equal(batch["spatial_embeddings"][i], item["spatial_embeddings"])
        np.testing.assert_array_equal(batch["targets"][i], item["targets"])


def test_a_mask_selects_its_rows():
    dataset, _ = made()
    assert dataset.select(np.array([True, False, False, True, False, False])).ids == ["image 0", "image 3"]


def test_rows_must_fit():
    dataset, _ = made()
    for embeddings, targets, ids, found in (
        (dataset.spatial_embeddings[:5], dataset.targets, dataset.ids, "5, 6 and 6"),
        (dataset.spatial_embeddings, dataset.targets[:4], dataset.ids, "6, 4 and 6"),
        (dataset.spatial_embeddings, dataset.targets, dataset.ids[:3], "6, 6 and 3"),
    ):
        with pytest.raises(ValueError, match=rf"must have one row an image, got {found}; select the same rows of each"):
            FeatureDataset(embeddings, targets, ids, dataset.vocabulary, "made", "train")


def test_an_index_out_of_range_ends_iteration():
    dataset, _ = made()
    with pytest.raises(IndexError):
        dataset[6]
    with pytest.raises(IndexError):
        dataset.batch([0, 6])
    assert dataset[-1]["id"] == "image 5"


def test_repr_says_how_much_there_is():
    assert repr(made()[0]) == "FeatureDataset('made', 6 images, 3 positions of 2)"
