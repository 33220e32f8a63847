"""Where the head looked: the weights the attention used, in the image's own coordinates, and overlays."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import word_head
from PIL import Image, ImageDraw
from torch import nn
from torch.testing import assert_close

from zsmld import Predictor, Vocabulary, ZeroShotClassifier
from zsmld import attention as module
from zsmld.attention import Attention, attention_maps, explain, overlay
from zsmld.decoder import MLDecoder, TrainingFreeScorer
from zsmld.images.transform import ImageTransform
from zsmld.resources import resource_path

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


# --------------------------------------------------------------------------------- the weights the attention used


@pytest.fixture
def used(monkeypatch):
    """Everything that goes in and out of the attention itself, layer by layer."""
    found, original = [], F.scaled_dot_product_attention

    def spy(query, key, value, **options):
        result = original(query, key, value, **options)
        found.append((query, key, value, result))
        return result

    monkeypatch.setattr(F, "scaled_dot_product_attention", spy)
    return found


HEADS = [{}, {"output": "cosine"}, {"output": "sum"}, {"num_global_tokens": 1}, {"unit_positions": True}]
HEADS += [{"descriptions": "attention"}, {"num_classes": 7, "num_groups": 3}]


@torch.no_grad()
@pytest.mark.parametrize("options", HEADS, ids=str)
@pytest.mark.parametrize("layer", [0, 1, -1, -3])
def test_maps_are_the_weights_with_which_the_attention_made_its_result(used, options, layer):
    """With the values it had, they give the very result that went on through the network."""
    model = fake_model(num_layers=3, **options)
    tokens = options.get("num_global_tokens", 0)
    spatial = torch.randn(2, tokens + ROWS * COLUMNS, C)
    words = None if "num_classes" in options else torch.randn(4, *([3] if "descriptions" in options else []), T)
    maps = attention_maps(model, spatial, words, heads="each", layer=layer)
    used.clear()
    model.decoder(spatial, words)
    _, _, value, result = used[layer]
    local = result  # (B,H,N,D/H)
    if tokens:  # the token's own part is taken off, and what is left is compared by direction
        query, key = used[layer][:2]
        share = torch.softmax(query.double() @ key.double().mT / query.shape[-1] ** 0.5, 3)[..., :1].float()
        local = (result - share * value[:, :, :1]) / (1 - share)
    assert_close(maps.flatten(3) @ value[:, :, tokens:], local, atol=1e-6, rtol=1e-5)
    assert_close(
        attention_maps(model, spatial, words, layer=layer).sum((2, 3)), torch.ones(maps.shape[0], maps.shape[2])
    )


@law
@given(seed=st.integers(0, 2**32 - 1), heads=st.sampled_from([1, 2, 4]))
def test_each_heads_map_is_that_of_torchs_multihead_attention(seed, heads):
    model = fake_model(seed, num_heads=heads)
    layer, decoder = model.decoder.layers[0], model.decoder
    spatial, words = torch.randn(2, ROWS * COLUMNS, C), torch.randn(3, T)
    theirs = nn.MultiheadAttention(16, heads, batch_first=True).eval()
    projections = (layer.query_proj, layer.key_proj, layer.value_proj)
    theirs.load_state_dict(
        {
            "in_proj_weight": torch.cat([p.weight for p in projections]),
            "in_proj_bias": torch.cat([p.bias for p in projections]),
            "out_proj.weight": layer.out_proj.weight,
            "out_proj.bias": layer.out_proj.bias,
        }
    )
    memory = F.relu(F.linear(spatial, decoder.spatial_proj.weight, decoder.spatial_proj.bias))
    queries = F.relu(F.linear(words, decoder.word_proj.weight, decoder.word_proj.bias))
    queries = F.layer_norm(2 * queries, (16,), layer.norm1.weight, layer.norm1.bias).expand(2, -1, -1)
    expected = theirs(queries, memory, memory, average_attn_weights=False)[1]  # (B,H,N,S)
    assert_close(attention_maps(model, spatial, words, heads="each").flatten(3), expected, atol=1e-6, rtol=1e-5)
    assert_close(attention_maps(model, spatial, words).flatten(2), expected.mean(1), atol=1e-6, rtol=1e-5)
    highest = expected.amax(1)
    highest = highest / highest.sum(2, keepdim=True)
    assert_close(attention_maps(model, spatial, words, heads="max").flatten(2), highest, atol=1e-6, rtol=1e-5)
    one = attention_maps(model, spatial, words, heads=heads - 1)
    assert_close(one.flatten(2), expected[:, heads - 1], atol=1e-6, rtol=1e-5)


def test_many_words_are_decoded_a_few_at_a_time(used, monkeypatch):
    model, spatial, words = fake_model(), torch.randn(3, ROWS * COLUMNS, C), torch.randn(50, T)
    whole = attention_maps(model, spatial, words)
    used.clear()
    monkeypatch.setattr(module, "_PAIRS", 12)
    assert_close(attention_maps(model, spatial, words), whole, atol=1e-6, rtol=1e-5)
    assert [call[0].shape[2] for call in used] == [4] * 12 + [2]


def test_asking_for_maps_leaves_no_hook_behind():
    model = fake_model()
    with pytest.raises(ValueError, match="word_embeddings must be"):
        attention_maps(model, torch.randn(1, ROWS * COLUMNS, C), torch.randn(3, T + 1))
    attention_maps(model, torch.randn(1, ROWS * COLUMNS, C), torch.randn(3, T))
    assert not model.decoder.layers[0]._forward_pre_hooks


@pytest.mark.parametrize("num_global_tokens", [0, 1])
def test_a_training_free_scorer_shows_where_words_are_similar(num_global_tokens):
    scorer = TrainingFreeScorer(T, T, num_global_tokens=num_global_tokens).eval()
    model = SimpleNamespace(image_encoder=PassThrough(), decoder=scorer)
    words = torch.randn(4, T)
    spatial = torch.randn(2, num_global_tokens + ROWS * COLUMNS, T) * 0.1
    for image, word, place in ((0, 1, 4), (1, 3, 0)):
        spatial[image, num_global_tokens + place] = words[word]
        maps = attention_maps(model, spatial, words)
        assert maps.shape == (2, 4, ROWS, COLUMNS)
        assert int(maps[image, word].argmax()) == place
        assert_close(maps.sum((2, 3)), torch.ones(2, 4))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": 4}, "heads must be 'mean', 'max', 'each' or a number below 4, got 4"),
        ({"heads": "all"}, "heads must be 'mean', 'max', 'each' or a number below 4, got 'all'"),
        ({"layer": 1}, "layer must be one of the decoder's 1, from 0, got 1"),
        ({"layer": -2}, "layer must be one of the decoder's 1, from 0, got -2"),
    ],
)
def test_a_head_or_layer_that_is_not_there_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        attention_maps(fake_model(), torch.randn(1, ROWS * COLUMNS, C), torch.randn(3, T), **options)


# ------------------------------------------------------------------------------------- in the image's coordinates


class RedFinder(nn.Module):
    """A model whose places are the mean colours of a grid, and whose attention goes to the word "red"."""

    def __init__(self, resize="squash", grid=(8, 8), image_size=64):
        super().__init__()
        self.decoder = TrainingFreeScorer(3, 3, description_scale=40.0)
        self.image_encoder = nn.Module()
        transform = ImageTransform(image_size, (0.0,) * 3, (1.0,) * 3, "bilinear", resize)
        self.image_encoder.transform, self.image_encoder.grid_size = transform, grid
        self.image_encoder.forward = lambda images: F.adaptive_avg_pool2d(images, grid).flatten(2).mT
        self.vocabulary = None

    def encode_words(self, words, text_encoder):
        return torch.tensor([[1.0, 0.0, 0.0]] * len(words))


def explain_red(finder, image):
    return explain(SimpleNamespace(model=finder.eval(), vocabulary=Vocabulary(["red"])), image, ["red"])


def blue_with_a_red_disc(size, centre, radius):
    image = Image.new("RGB", size, (0, 0, 255))
    ImageDraw.Draw(image).ellipse([*(c - radius for c in centre), *(c + radius for c in centre)], fill=(255, 0, 0))
    return image


@law
@given(st.integers(100, 300), st.integers(100, 300), st.sampled_from(["squash", "crop"]), st.data())
def test_the_map_is_highest_where_the_thing_is_in_the_original_image(width, height, resize, data):
    side = min(width, height)
    left, top = ((width - side) // 2, (height - side) // 2) if resize == "crop" else (0, 0)
    margin = side // 8
    x = data.draw(st.integers(left + margin, width - left - margin))
    y = data.draw(st.integers(top + margin, height - top - margin))
    found = explain_red(RedFinder(resize), blue_with_a_red_disc((width, height), (x, y), side // 8))
    (heat,) = found.maps()
    assert heat.shape == (height, width) and heat.dtype == np.float32
    row, column = np.unravel_index(heat.argmax(), heat.shape)
    place = (found.box[2] - found.box[0]) / 8, (found.box[3] - found.box[1]) / 8
    assert abs(column - x) <= side / 8 + place[0] and abs(row - y) <= side / 8 + place[1]
    centre = (heat.sum(0) @ np.arange(width) / heat.sum(), heat.sum(1) @ np.arange(height) / heat.sum())
    assert abs(centre[0] - x) <= 0.8 * place[0] and abs(centre[1] - y) <= 0.8 * place[1]


@settings(max_examples=10)
@given(st.integers(20, 200), st.integers(20, 200), st.sampled_from(["squash", "crop"]))
def test_the_box_is_what_the_transform_shows(width, height, resize):
    """Red says how far right a pixel of the original is, green how far down; the places' means must agree."""
    right, down = np.meshgrid((np.arange(width) + 0.5) / width, (np.arange(height) + 0.5) / height)
    pixels = np.stack([right, down, 0 * right], 2) * 255
    finder = RedFinder(resize, grid=(4, 4))
    image = Image.fromarray(pixels.round().astype(np.uint8))
    found = explain_red(finder, image)
    seen = finder.image_encoder(finder.image_encoder.transform(image)[None])[0].reshape(4, 4, 3).numpy()
    left, top, right_edge, bottom = found.box
    columns = (left + (np.arange(4) + 0.5) / 4 * (right_edge - left)) / width
    rows = (top + (np.arange(4) + 0.5) / 4 * (bottom - top)) / height
    np.testing.assert_allclose(seen[:, :, 0], np.broadcast_to(columns, (4, 4)), atol=0.012)
    np.testing.assert_allclose(seen[:, :, 1], np.broadcast_to(rows[:, None], (4, 4)), atol=0.012)


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_a_photo_that_was_turned_is_explained_upright(tmp_path, orientation):
    upright = blue_with_a_red_disc((160, 120), (130, 30), 15)
    turned = upright.rotate({1: 0, 3: 180, 6: 90, 8: 270}[orientation], expand=True)
    exif = Image.Exif()
    exif[0x0112] = orientation
    turned.save(tmp_path / "turned.png", exif=exif)
    found = explain_red(RedFinder(), tmp_path / "turned.png")
    assert found.image.tobytes() == upright.tobytes()
    row, column = np.unravel_index(found.maps()[0].argmax(), (120, 160))
    assert abs(column - 130) <= 20 and abs(row - 30) <= 15


def random_attention(size=(60, 40), box=None, words=("a", "b"), grid=(4, 5), seed=0):
    places = np.random.default_rng(seed).random((len(words), *grid)).astype(np.float32)
    places /= places.sum((1, 2), keepdims=True)
    image = Image.new("RGB", size, (128,) * 3)
    return Attention(image, words, places, box or (0.0, 0.0, *map(float, size)), np.zeros(len(words), np.float32))


@law
@given(st.integers(0, 99), st.sampled_from([1, 3, 5, 9]), st.sampled_from([1, 3, 7]))
def test_at_the_centre_of_a_place_the_map_is_its_share(seed, across, down):
    """Places of an odd number of pixels have a pixel at their centre."""
    found = random_attention((5 * across, 4 * down), seed=seed)
    np.testing.assert_allclose(found.maps()[:, down // 2 :: down, across // 2 :: across], found.places, atol=1e-6)


def test_between_the_places_it_is_pillows_bicubic():
    found = random_attention((50, 40))
    for mine, places in zip(found.maps(), found.places, strict=True):
        theirs = np.asarray(Image.fromarray(places).resize((50, 40), Image.Resampling.BICUBIC))
        inner = np.s_[15:25, 15:35]  # at the edge Pillow's weights differ: it has no places beyond
        np.testing.assert_allclose(mine[inner], theirs[inner].clip(min=0), atol=1e-6)


@law
@given(st.integers(0, 99), st.integers(5, 80), st.integers(5, 80))
def test_a_mirrored_map_is_the_map_mirrored(seed, width, height):
    found = random_attention((width, height), seed=seed)
    mirrored = Attention(found.image, found.words, found.places[:, ::-1, ::-1], found.box, found.global_shares)
    np.testing.assert_allclose(mirrored.maps()[:, ::-1, ::-1], found.maps(), atol=1e-6)


def test_outside_the_part_that_was_seen_there_is_no_attention():
    found = random_attention((60, 40), box=(10.0, 0.0, 50.0, 40.0))
    heat = found.maps()
    assert not heat[:, :, :10].any() and not heat[:, :, 50:].any()
    assert heat[:, :, 10:50].any(1).all()
    flat = Attention(found.image, ("a",), np.full((1, 4, 5), 0.05, np.float32), found.box, found.global_shares[:1])
    np.testing.assert_allclose(flat.maps()[0][:, 10:50], 0.05, rtol=1e-6)


def test_maps_of_some_words_come_in_the_order_asked_for():
    found = random_attention(words=("a", "b", "c"))
    np.testing.assert_array_equal(found.maps(["c", "a"]), found.maps()[[2, 0]])
    with pytest.raises(ValueError, match=r"word must be one of \['a', 'b', 'c'\], got 'd'"):
        found.maps(["d"])


@pytest.mark.parametrize("columns", [1, 2, 4])
def test_a_picture_has_the_image_and_each_words_overlay_in_rows_of_tiles(columns, monkeypatch):
    drawn, original = [], module.Lettering.draw
    monkeypatch.setattr(module.Lettering, "draw", lambda *args: (drawn.append(args[2:5]), original(*args))[1])
    found = random_attention((320, 200), box=(60.0, 0.0, 260.0, 200.0), words=("a", "犬", "c"))
    picture = found.picture(tile_size=320, columns=columns)
    peaks = found.places.max((1, 2)) * 20  # 4 x 5 places
    assert [text for *_, text in drawn] == ["image", *(f"{w}  {p:.1f}×" for w, p in zip("a犬c", peaks, strict=True))]
    assert [x for x, *_ in drawn] == [number % columns * drawn[1 % columns][0] for number in range(4)]
    tiles = [found.image, *(found.overlay(word) for word in found.words)]
    for number, ((x, baseline, _), tile) in enumerate(zip(drawn, tiles, strict=True)):
        top = baseline - drawn[0][1]
        assert (top > 0) == (number >= columns)
        assert picture.crop((x, top, x + 320, top + 200)).tobytes() == tile.tobytes()


# ---------------------------------------------------------------------------------------------------- explain


@pytest.fixture(scope="module")
def bundled():
    return ZeroShotClassifier.from_pretrained(resource_path("data", "scenes", "model"))


def test_a_model_is_explained_by_its_own_maps(make_model, images):
    model = make_model(num_layers=2)
    words = ["zebra", "dog"]  # one new, one known
    inputs = torch.stack([model.image_encoder.transform(image) for image in images])
    expected = attention_maps(model, inputs, model.encode_words(words), heads="max", layer=0)
    for image, maps in zip(images, expected, strict=True):
        found = explain(model, image, words, heads="max", layer=0)
        assert found.words == ("zebra", "dog") and found.image.size == image.size
        np.testing.assert_allclose(found.places, maps.numpy(), atol=1e-6)
        assert not found.global_shares.any()


def test_a_vocabularys_templates_and_descriptions_hold_for_its_words_and_for_others(bundled, images):
    """A Predictor has such a vocabulary of its own."""
    vocabulary = Vocabulary(["red star", "zebra"], templates=["not a {}"], descriptions={"zebra": ["a striped horse"]})
    asked = vocabulary.add(["cup"]).select(["cup", "zebra"])
    inputs = bundled.image_encoder.transform(images[0])[None]
    expected = attention_maps(bundled, inputs, bundled.encode_words(asked))[0].numpy()
    predictor = SimpleNamespace(model=bundled, vocabulary=vocabulary)
    np.testing.assert_allclose(explain(predictor, images[0], ["cup", "zebra"]).places, expected, atol=1e-6)
    np.testing.assert_allclose(explain(bundled, images[0], asked).places, expected, atol=1e-6)
    real = Predictor(bundled, vocabulary.words, "cpu", templates=["not a {}"], descriptions=vocabulary.descriptions)
    np.testing.assert_allclose(explain(real, images[0], ["cup", "zebra"]).places, expected, atol=1e-6)
    plain = explain(bundled, images[0], ["cup", "zebra"]).places
    assert (np.abs(plain - expected).max((1, 2)) > 1e-4).all()


def test_a_class_has_the_map_of_its_group_query(make_model, images):
    model = make_model(num_classes=7, num_groups=3)
    with pytest.raises(ValueError, match="words must be named by the model in class mode"):
        explain(model, images[0], ["a"])
    model.remember_words(Vocabulary(list("abcdefg")), None)
    maps = attention_maps(model, model.image_encoder.transform(images[0])[None])[0]
    found = explain(model, images[0], ["a", "c", "d", "g"])  # three classes a group
    np.testing.assert_allclose(found.places, maps[[0, 0, 1, 2]].numpy(), atol=1e-6)
    with pytest.raises(ValueError, match="word must be one of the 7 words of the vocabulary, got 'h'"):
        explain(model, images[0], ["h"])


def test_the_global_tokens_share_stands_beside_the_map(used):
    model = fake_model(num_global_tokens=1)
    spatial, words = torch.randn(1, 1 + ROWS * COLUMNS, C), torch.randn(3, T)
    places, shares = module._places(model, spatial, words, "mean", -1)
    query, key, *_ = used[0]
    weights = torch.softmax(query.double() @ key.double().mT / 2, 3).mean(1)  # (1,N,1+S); D/H is 4
    assert_close(shares.double(), weights[..., 0], atol=1e-6, rtol=0)
    assert_close((places * (1 - shares)[..., None, None]).flatten(2).double(), weights[..., 1:], atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"heads": "each"}, "heads must be 'mean', 'max' or the number of one head, got 'each'; use attention_maps"),
        ({"words": []}, "words"),
        ({"image": "gone.jpg"}, "image must be an existing file, not found: gone.jpg"),
    ],
)
def test_what_cannot_be_explained_is_refused(make_model, images, change, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        explain(make_model(), **{"image": images[0], "words": ["dog"]} | change)


def test_a_model_in_training_is_refused(make_model, images):
    with pytest.raises(ValueError, match="model must be in eval mode to be explained"):
        explain(make_model().train(), images[0], ["dog"])


def test_a_trained_head_looks_at_the_thing_itself(bundled):
    """The bundled model, on a grey picture with one shape, off centre, that is not square."""
    shares = []
    for x, y in ((40, 40), (160, 50), (60, 150), (150, 140)):
        image = Image.new("RGB", (200, 200), (120, 120, 120))
        ImageDraw.Draw(image).rectangle([x - 25, y - 25, x + 25, y + 25], fill=(220, 30, 30))
        heat = explain(bundled, image.resize((300, 200)), ["red square"]).maps()[0]
        near = heat[y - 37 : y + 37, round(1.5 * (x - 37)) : round(1.5 * (x + 37))]
        shares.append(near.sum() / heat.sum())
    assert min(shares) > 0.5  # 0.14 if it looked everywhere alike


# ---------------------------------------------------------------------------------------------------- overlay


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
