"""Where the head looked: maps that sum to one, in the encoder's layout, and overlays."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import word_head
from PIL import Image
from torch.testing import assert_close

from zsmld.attention import attention_maps, overlay
from zsmld.decoder import MLDecoder

ROWS, COLUMNS, C, T = 2, 3, 6, 5
law = settings(max_examples=15)


def fake_model(seed=0, **options):
    """A head on an encoder whose `images` are its spatial embeddings already, on a grid that is not square."""
    torch.manual_seed(seed)
    options = {"decoder_dim": 16, "num_heads": 4, "feedforward_dim": 16} | options
    decoder = MLDecoder(C, **(options if "num_classes" in options else {"text_dim": T} | options)).eval()
    return SimpleNamespace(image_encoder=PassThrough(), decoder=decoder)


class PassThrough:
    grid_size = (ROWS, COLUMNS)

    def __call__(self, images):
        return images


@law
@given(seed=st.integers(0, 2**32 - 1), images=st.integers(1, 3), words=st.integers(1, 4), layers=st.integers(1, 2))
def test_maps_are_the_mean_over_heads_row_by_row_and_sum_to_one(seed, images, words, layers):
    model = fake_model(seed, num_layers=layers)
    spatial, embeddings = torch.randn(images, ROWS * COLUMNS, C), torch.randn(words, T)
    maps = attention_maps(model, spatial, embeddings)
    assert maps.shape == (images, words, ROWS, COLUMNS)
    assert maps.dtype == torch.float32
    assert (maps >= 0).all()
    assert_close(maps.sum((2, 3)), torch.ones(images, words), atol=1e-5, rtol=0)
    weights = torch.from_numpy(word_head(model.decoder, spatial, embeddings)[1])  # (B,H,N,S)
    for row in range(ROWS):
        for column in range(COLUMNS):
            expected = weights[:, :, :, row * COLUMNS + column].mean(1)
            assert_close(maps[:, :, row, column].double(), expected, atol=1e-5, rtol=0)


@law
@given(seed=st.integers(0, 2**32 - 1))
def test_a_words_map_does_not_depend_on_the_other_words(seed):
    model = fake_model(seed)
    spatial, embeddings = torch.randn(2, ROWS * COLUMNS, C), torch.randn(4, T)
    whole = attention_maps(model, spatial, embeddings)
    for label in range(4):
        one = attention_maps(model, spatial, embeddings[label : label + 1])
        assert_close(one[:, 0], whole[:, label], atol=1e-6, rtol=1e-5)


def test_equal_positions_get_equal_attention():
    maps = attention_maps(fake_model(), torch.randn(1, 1, C).expand(2, ROWS * COLUMNS, C), torch.randn(3, T))
    assert_close(maps, torch.full_like(maps, 1 / (ROWS * COLUMNS)))


def test_class_mode_gives_a_map_for_each_group_query():
    maps = attention_maps(fake_model(num_classes=7, num_groups=3), torch.randn(2, ROWS * COLUMNS, C))
    assert maps.shape == (2, 3, ROWS, COLUMNS)
    assert_close(maps.sum((2, 3)), torch.ones(2, 3))


def test_maps_of_a_real_encoder_have_its_grid_and_no_gradient(make_model):
    model = make_model()
    images = torch.randn(2, 3, 64, 64)
    maps = attention_maps(model, images, model.word_embeddings)
    assert maps.shape == (2, len(model.vocabulary), *model.image_encoder.grid_size)
    assert not maps.requires_grad
    assert_close(maps.sum((2, 3)), torch.ones(2, len(model.vocabulary)))


def test_word_mode_without_words_says_what_is_missing():
    with pytest.raises(ValueError, match=r"word_embeddings must be \(N, 5\) in word mode, got None"):
        attention_maps(fake_model(), torch.randn(1, ROWS * COLUMNS, C))


# ------------------------------------------------------------------------------------------------------ overlay


def grey(width=60, height=40, value=128):
    return Image.new("RGB", (width, height), (value,) * 3)


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P"])
@pytest.mark.parametrize("size", [(60, 40), (33, 97), (1, 1)])
def test_an_overlay_has_the_size_of_the_image_and_leaves_it_as_it_was(mode, size):
    image = grey(*size).convert(mode)
    before = image.tobytes()
    result = overlay(image, torch.rand(3, 4))
    assert result.mode == "RGB"
    assert result.size == size
    assert image.tobytes() == before


@pytest.mark.parametrize("row, column", [(0, 0), (0, 2), (1, 0), (1, 2)])
def test_the_overlay_is_warmest_where_the_map_is_highest(row, column):
    """In a grid of 2 rows and 3 columns over 60 x 40 pixels each place is 20 x 20."""
    heat = np.zeros((ROWS, COLUMNS))
    heat[row, column] = 1
    warmth = np.asarray(overlay(grey(), heat), float)[:, :, 0]
    means = warmth.reshape(ROWS, 20, COLUMNS, 20).mean((1, 3))
    assert np.unravel_index(means.argmax(), means.shape) == (row, column)


@law
@given(seed=st.integers(0, 2**32 - 1), factor=st.sampled_from([0.125, 4.0]), shift=st.sampled_from([0.0, 1.0]))
def test_only_the_shape_of_the_map_matters(seed, factor, shift):
    """Scaling and shifting it changes nothing but the last bit, and a tensor is as good as an array."""
    heat = np.random.default_rng(seed).random((4, 5))
    first = np.asarray(overlay(grey(), heat), int)
    assert np.abs(first - np.asarray(overlay(grey(), factor * heat + shift), int)).max() <= 1
    np.testing.assert_array_equal(np.asarray(overlay(grey(), torch.from_numpy(heat))), first)


def test_strength_zero_only_dims_and_more_strength_colours_more():
    heat = np.linspace(0, 1, 12).reshape(3, 4)
    calm, some, strong = (np.asarray(overlay(grey(), heat, strength), int) for strength in (0.0, 0.4, 0.8))
    assert (calm[:, :, 0] == calm[:, :, 2]).all()  # grey stays grey
    assert calm.max() <= 128
    assert np.abs(some - calm).sum() < np.abs(strong - calm).sum()


def test_a_flat_map_points_nowhere():
    pixels = np.asarray(overlay(grey(), np.full((3, 3), 0.1)))
    assert (pixels == pixels[0, 0]).all()


@pytest.mark.parametrize("shape", [(5,), (2, 3, 4)])
def test_a_map_must_have_rows_and_columns(shape):
    with pytest.raises(
        ValueError, match=r"attention_map must be \(rows, columns\), got \(.*\); pass the map of one word"
    ):
        overlay(grey(), np.zeros(shape))
