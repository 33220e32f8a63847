"""Image augmentation: off is the plain transform, all else is a function of the seed, each kind does one thing."""

import pickle
import random
from dataclasses import FrozenInstanceError
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import v2

from zsmld.images import ImageAugmentation, ImageTransform

SIZE = 24
RAW = ImageTransform(SIZE, (0.0,) * 3, (1.0,) * 3, "bilinear")  # pixels in [0,1]
KINDS = [{"cutout": 0.5}, {"rand_augment_ops": 3}, {"horizontal_flip": 0.5}, {"min_crop_area": 0.2}]
MIXES = [{"mixup": 0.8}, {"cutmix": 1.0}, {"mixup": 0.2, "cutmix": 1.0}]
EVERYTHING = {name: value for kind in KINDS for name, value in kind.items()}
seeds = st.integers(0, 2**80)
unknown_or_not = st.lists(st.lists(st.sampled_from([-1, 0, 1]), min_size=4, max_size=4), min_size=3, max_size=3)
one_of_everything = st.fixed_dictionaries(
    {}, optional={name: st.just(value) for name, value in EVERYTHING.items()} | {"rand_augment_magnitude": st.just(30)}
)


def picture(width: int = 40, height: int = 30, seed: int = 0) -> Image.Image:
    """Random pixels: no two pictures, crops or mirror images of them are alike."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def pixels(augmentation: ImageAugmentation, image: Image.Image, seed: int, transform: ImageTransform = RAW) -> Any:
    """The augmented image as uint8 (H,W,3)."""
    found = augmentation.augment(image, transform, seed)
    return (found * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()


def global_states() -> tuple[bytes, Any, bytes]:
    return torch.get_rng_state().numpy().tobytes(), random.getstate(), pickle.dumps(np.random.get_state())


# ------------------------------------------------------------------------------------------------------------ the seed


@settings(max_examples=25)
@given(one_of_everything, seeds, st.integers(0, 1000))
def test_an_image_is_a_function_of_the_seed_and_nothing_else_is_disturbed(knobs: dict, seed: int, other: int) -> None:
    augmentation, image = ImageAugmentation(**knobs), picture()
    results = []
    for global_seed in (other, other + 1):
        torch.manual_seed(global_seed), random.seed(global_seed), np.random.seed(global_seed)
        before = global_states()
        results.append(augmentation.augment(image, RAW, seed))
        assert global_states() == before
    assert torch.equal(*results)
    assert results[0].shape == (3, SIZE, SIZE) and results[0].dtype == torch.float32
    assert image.tobytes() == picture().tobytes()  # the caller's image stays as it was


@settings(max_examples=25)
@given(st.sampled_from(MIXES), seeds, st.integers(0, 1000), unknown_or_not)
def test_a_batch_is_a_function_of_the_seed_and_nothing_else_is_disturbed(
    knobs: dict, seed: int, other: int, rows: list
) -> None:
    augmentation, images, targets = ImageAugmentation(**knobs), torch.rand(3, 3, 8, 8), torch.tensor(rows)
    copies, results = (images.clone(), targets.clone()), []
    for global_seed in (other, other + 1):
        torch.manual_seed(global_seed), random.seed(global_seed), np.random.seed(global_seed)
        before = global_states()
        results.append(augmentation.mix(images, targets, seed))
        assert global_states() == before
    assert all(torch.equal(first, second) for first, second in zip(*results, strict=True))
    assert torch.equal(images, copies[0]) and torch.equal(targets, copies[1])


@pytest.mark.parametrize("knobs", KINDS, ids=lambda knobs: next(iter(knobs)))
def test_seeds_give_different_images(knobs: dict) -> None:
    """Also seeds that are equal in their low 32 bits, all that torch's generator looks at."""
    augmentation, image = ImageAugmentation(**knobs), picture(SIZE, SIZE)
    for step in (1, 2**32, 2**64):
        distinct = {pixels(augmentation, image, 5 + step * i).tobytes() for i in range(30)}
        assert len(distinct) == 2 if "horizontal_flip" in knobs else len(distinct) >= 15


@pytest.mark.parametrize("knobs", MIXES)
def test_seeds_give_different_batches(knobs: dict) -> None:
    images, targets = torch.rand(3, 3, 16, 16), torch.zeros(3, 2)
    for step in (1, 2**32):
        results = [ImageAugmentation(**knobs).mix(images, targets, 5 + step * i)[0] for i in range(20)]
        assert len({result.numpy().tobytes() for result in results}) >= 15


@pytest.mark.parametrize("backend", ["cuda", "mps", "xpu"])
def test_no_accelerator_is_seeded(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """`torch.manual_seed` would, and leave it so."""

    def refuse(seed: int) -> None:
        raise AssertionError(f"{backend} was seeded")

    name = "manual_seed" if backend == "mps" else "manual_seed_all"
    monkeypatch.setattr(getattr(torch, backend), name, refuse)
    ImageAugmentation(**EVERYTHING).augment(picture(), RAW, 0)
    ImageAugmentation(mixup=1.0, cutmix=1.0).mix(torch.rand(2, 3, 4, 4), torch.zeros(2, 1), 0)
    with pytest.raises(AssertionError, match=f"{backend} was seeded"):
        torch.manual_seed(0)


def test_an_error_leaves_the_global_state_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any) -> None:
        torch.rand(3)
        raise RuntimeError("within")

    monkeypatch.setattr(ImageAugmentation, "_change", fail)
    before = global_states()
    with pytest.raises(RuntimeError, match="within"):
        ImageAugmentation(**EVERYTHING).augment(picture(), RAW, 0)
    assert global_states() == before


# ------------------------------------------------------------------------------------------------------------- off


@settings(max_examples=25)
@given(
    st.sampled_from([{}, {"rand_augment_magnitude": 30}, {"mixup": 0.5, "cutmix": 1.0}]),
    st.tuples(st.integers(1, 50), st.integers(1, 50)),
    st.sampled_from(["squash", "crop"]),
    st.sampled_from(["bilinear", "bicubic"]),
    seeds,
)
def test_off_is_the_plain_transform(knobs: dict, size: tuple, resize: Any, interpolation: str, seed: int) -> None:
    transform, augmentation = (
        ImageTransform(SIZE, interpolation=interpolation, resize=resize),
        ImageAugmentation(**knobs),
    )
    assert not augmentation.augments and augmentation.is_off == ("mixup" not in knobs)
    image = picture(*size, seed=seed)
    assert torch.equal(augmentation.augment(image, transform, seed), transform(image))
    tensor = torch.rand(3, SIZE, SIZE)
    assert augmentation.augment(tensor, transform, seed) is tensor


@given(unknown_or_not, st.sampled_from(KINDS), seeds)
def test_without_mixup_and_cutmix_a_batch_stays(rows: list, knobs: dict, seed: int) -> None:
    images, targets = torch.rand(3, 3, 4, 4), torch.tensor(rows, dtype=torch.int8)
    augmentation = ImageAugmentation(**knobs)
    found, labels = augmentation.mix(images, targets, seed)
    assert found is images and labels.dtype == torch.float32 and torch.equal(labels, targets.float())
    assert augmentation.augments and not augmentation.mixes and not augmentation.is_off


# ------------------------------------------------------------------------------------------------------------- kinds


def cut(factor: float, size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Where (H,W) a black and a white image became the same, and the colours (M,3) there."""
    transform = ImageTransform(size, (0.0,) * 3, (1.0,) * 3)
    dark, light = (
        pixels(ImageAugmentation(cutout=factor), Image.new("RGB", (33, 21), colour), seed, transform)
        for colour in ("black", "white")
    )
    painted = (dark == light).all(2)
    assert (dark[~painted] == 0).all() and (light[~painted] == 255).all()
    return painted, dark[painted]


@given(st.floats(0.0, 1.0), st.integers(1, 40), seeds)
def test_cutout_is_a_square_of_one_colour_clipped_at_the_border(factor: float, size: int, seed: int) -> None:
    painted, colours = cut(factor, size, seed)
    side = int(factor * size + 0.5)
    if not side:
        assert not painted.any()
        return
    assert len(np.unique(colours, axis=0)) == 1
    # By the official CutoutPIL: from centre − side // 2 to centre + side // 2, which an even side does not reach.
    possible = set()
    for centre in range(size):
        last = centre + side // 2 - (side % 2 == 0)
        possible.add((max(centre - side // 2, 0), min(last, size - 1)))
    rows, columns = np.flatnonzero(painted.any(1)), np.flatnonzero(painted.any(0))
    top, bottom, left, right = rows[0], rows[-1], columns[0], columns[-1]
    assert painted[top : bottom + 1, left : right + 1].all()  # and with the lines below, nothing else is
    assert painted.sum() == (bottom - top + 1) * (right - left + 1)
    assert (top, bottom) in possible and (left, right) in possible


def test_cutout_comes_everywhere_in_every_colour() -> None:
    found = [cut(0.5, 8, seed) for seed in range(600)]
    corners = {tuple(np.argwhere(painted)[0]) + tuple(np.argwhere(painted)[-1]) for painted, _ in found}
    assert len(corners) == 64  # one for each centre
    colours = np.array([colours[0] for _, colours in found])
    assert colours.min() <= 3 and colours.max() >= 252 and abs(colours.mean() - 127.5) < 8
    assert abs(np.corrcoef(colours.T)[np.triu_indices(3, 1)]).max() < 0.15  # no greys only


@given(seeds, st.sampled_from(["squash", "crop"]))
def test_a_certain_flip_mirrors(seed: int, resize: Any) -> None:
    transform = ImageTransform(SIZE, resize=resize)
    found = ImageAugmentation(horizontal_flip=1.0).augment(picture(), transform, seed)
    assert torch.equal(found, transform(picture()).flip(2))


def test_flips_come_as_often_as_asked() -> None:
    image, plain = picture(SIZE, SIZE), RAW(picture(SIZE, SIZE))
    augmentation = ImageAugmentation(horizontal_flip=0.3)
    flips = [not torch.equal(augmentation.augment(image, RAW, seed), plain) for seed in range(400)]
    assert 0.22 < np.mean(flips) < 0.38


@pytest.mark.parametrize("least", [0.1, 0.5])
def test_crops_have_at_least_the_area_asked(least: float) -> None:
    """Red counts columns and green rows, so their slopes tell how much of each an augmented image shows."""
    across = np.tile(np.arange(256, dtype=np.uint8), (256, 1))
    ramp = Image.fromarray(np.stack([across, across.T, np.zeros_like(across)], 2))
    transform = ImageTransform(SIZE, (0.0,) * 3, (1.0,) * 3, "bilinear", resize="crop")
    areas, shapes = [], []
    for seed in range(300):
        red, green, _ = ImageAugmentation(min_crop_area=least).augment(ramp, transform, seed) * 255
        inner = SIZE - 4  # what lies two pixels from the border is not touched by how the border is resampled
        width = (red[:, -3] - red[:, 2]).mean() / (inner - 1) * SIZE
        height = (green[-3] - green[2]).mean() / (inner - 1) * SIZE
        areas.append(float(width * height) / 256**2)
        shapes.append(float(width / height))
    assert min(areas) > least - 0.02 and max(areas) < 1.02 and min(shapes) > 0.73 and max(shapes) < 1.36
    assert min(areas) < least + 0.1 and max(areas) > 0.85 and min(shapes) < 0.8 and max(shapes) > 1.25


@pytest.mark.parametrize("size", [(1, 1), (1, 90), (90, 1), (3, 2)])
def test_crops_of_tiny_images(size: tuple[int, int]) -> None:
    found = ImageAugmentation(min_crop_area=0.01).augment(picture(*size), RAW, 0)
    assert found.shape == (3, SIZE, SIZE)


def test_crops_are_resized_as_the_transform_says() -> None:
    """Bicubic overshoots at an edge, bilinear does not."""
    edge = Image.new("RGB", (8, 8), (100, 100, 100))
    edge.paste((200, 200, 200), (4, 0, 8, 8))
    for interpolation, overshoots in (("bilinear", False), ("bicubic", True)):
        transform = ImageTransform(SIZE, (0.0,) * 3, (1.0,) * 3, interpolation)
        found = np.stack([pixels(ImageAugmentation(min_crop_area=0.5), edge, seed, transform) for seed in range(5)])
        assert (found.min() < 100 and found.max() > 200) == overshoots


def test_kinds_follow_one_another_as_in_the_official_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    """RandAugment comes last and gets a picture of the encoder's size with an untouched square of one colour in it."""
    seen: list[Any] = []

    def recorder(*arguments: int) -> Any:
        seen.append(arguments)
        return lambda image: seen.append(image) or image

    monkeypatch.setattr(v2, "RandAugment", recorder)
    knobs = {"cutout": 0.5, "rand_augment_ops": 2, "rand_augment_magnitude": 7, "horizontal_flip": 1.0}
    found = pixels(ImageAugmentation(**knobs), picture(), seed=4)
    assert seen[0] == (2, 7) and seen[1].size == (SIZE, SIZE) and seen[1].mode == "RGB"
    np.testing.assert_array_equal(np.asarray(seen[1]), found)
    mirrored = pixels(ImageAugmentation(horizontal_flip=1.0), picture(), seed=0)
    changed = (found != mirrored).any(2)
    assert len(np.unique(found[changed], axis=0)) == 1 and 6 * 6 <= changed.sum() <= 12 * 12


def test_rand_augment_is_that_of_torchvision() -> None:
    """One operation of magnitude 9: every result is one torchvision gives, and nearly all of its kinds come."""
    image = picture(SIZE, SIZE)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        theirs = {v2.RandAugment(1, 9)(image).tobytes() for _ in range(600)}
    ours = {pixels(ImageAugmentation(rand_augment_ops=1), image, seed).tobytes() for seed in range(300)}
    assert ours <= theirs and len(ours) > 15
    strong = {
        pixels(ImageAugmentation(rand_augment_ops=1, rand_augment_magnitude=30), image, s).tobytes() for s in range(99)
    }
    assert len(strong - theirs) > 10


def test_other_modes_and_sizes_are_augmented_too() -> None:
    for mode in ("L", "RGBA", "P"):
        found = ImageAugmentation(**EVERYTHING).augment(picture().convert(mode), RAW, 0)
        assert found.shape == (3, SIZE, SIZE) and torch.isfinite(found).all()


# ------------------------------------------------------------------------------------------------------------- mixing


def mixed(knobs: dict, targets: torch.Tensor, seed: int, size: int = 15) -> tuple[torch.Tensor, torch.Tensor, Any]:
    """A red, a green and a blue image, mixed: its pixels, the weight (3,3) of each in each, and the mixed targets."""
    colours = torch.eye(3)[:, :, None, None].expand(3, 3, size, size).clone()
    images, labels = ImageAugmentation(**knobs).mix(colours, targets, seed)
    return images, images.mean((2, 3)), labels


@given(st.sampled_from(MIXES), unknown_or_not, seeds, st.sampled_from([torch.int8, torch.int64, torch.float32]))
def test_images_and_targets_are_averaged_by_the_same_weights(knobs: dict, rows: list, seed: int, dtype: Any) -> None:
    targets = torch.tensor(rows, dtype=dtype)
    images, weights, labels = mixed(knobs, targets, seed)
    assert images.shape == (3, 3, 15, 15) and labels.shape == (3, 4) and labels.dtype == torch.float32
    torch.testing.assert_close(images.sum(1), torch.ones(3, 15, 15))  # every pixel is a convex combination
    torch.testing.assert_close(weights.sum(1), torch.ones(3))
    assert images.min() >= 0 and ((weights > 0).sum(1) <= 2).all()  # of two images at most
    unknown = ((targets == -1)[None] & (weights > 0)[:, :, None]).any(1)  # (B,N) in either partner
    expected = (weights @ targets.clamp(min=0).float()).masked_fill(unknown, -1)
    torch.testing.assert_close(labels, expected, atol=2e-6, rtol=0)
    both = ((targets == 1)[None] | (weights == 0)[:, :, None]).all(1)
    assert (labels[both] == 1).all()  # exactly: a loss may ask for targets == 1
    assert ((labels == -1) | ((labels >= 0) & (labels <= 1))).all()


@given(st.sampled_from([0.001, 0.2, 1.0, 50.0]), seeds)
def test_mixup_has_one_weight_everywhere_and_cutmix_one_rectangle(alpha: float, seed: int) -> None:
    images, weights, _ = mixed({"mixup": alpha}, torch.zeros(3, 1), seed)
    torch.testing.assert_close(images, weights[:, :, None, None].expand_as(images))
    images, weights, _ = mixed({"cutmix": alpha}, torch.zeros(3, 1), seed)
    assert set(images.unique().tolist()) <= {0.0, 1.0}
    for row in range(3):
        own = images[row, row] == 1
        foreign = (~own).nonzero()  # (M,2)
        if len(foreign):
            (top, left), (bottom, right) = foreign.min(0).values, foreign.max(0).values
            assert len(foreign) == (bottom - top + 1) * (right - left + 1)


def test_mixup_weights_follow_their_distribution() -> None:
    """Beta(α, α) has mean ½ and variance 1 / (8α + 4)."""
    for alpha in (0.3, 2.0):
        weights = [float(mixed({"mixup": alpha}, torch.zeros(3, 1), seed, 2)[1][0, 0]) for seed in range(500)]
        assert abs(np.mean(weights) - 0.5) < 0.05 and abs(np.var(weights) * (8 * alpha + 4) - 1) < 0.2


def test_mixup_and_cutmix_take_turns() -> None:
    cuts = [set(mixed(MIXES[2], torch.zeros(3, 1), s)[0].unique().tolist()) <= {0.0, 1.0} for s in range(200)]
    assert 0.38 < np.mean(cuts) < 0.62


@given(st.sampled_from(MIXES), seeds)
def test_a_batch_of_one_stays(knobs: dict, seed: int) -> None:
    image, targets = torch.rand(1, 3, 8, 8), torch.tensor([[1, 0, -1]], dtype=torch.int8)
    found, labels = ImageAugmentation(**knobs).mix(image, targets, seed)
    torch.testing.assert_close(found, image)
    assert labels.tolist() == [[1.0, 0.0, -1.0]]


# ------------------------------------------------------------------------------------------------------------- errors


def test_it_is_a_value() -> None:
    augmentation = ImageAugmentation(cutout=0.5, mixup=1)
    assert augmentation == ImageAugmentation(cutout=0.5, mixup=1.0) and len({augmentation, ImageAugmentation()}) == 2
    assert pickle.loads(pickle.dumps(augmentation)) == augmentation
    with pytest.raises(FrozenInstanceError):
        augmentation.cutout = 1.0


@pytest.mark.parametrize(
    ("name", "values", "rule"),
    [
        ("cutout", (-0.1, 1.1, float("nan")), r"in \[0, 1\]"),
        ("rand_augment_ops", (-1, 1.5), "a whole number, 0 or more"),
        ("rand_augment_magnitude", (-1, 31, 9.0), "a whole number from 0 to 30"),
        ("horizontal_flip", (-0.1, 1.1, float("nan")), r"in \[0, 1\]"),
        ("min_crop_area", (0.0, -1.0, 1.1, float("nan")), r"in \(0, 1\]"),
        ("mixup", (-0.1, float("inf"), float("nan")), "a number, 0 or more"),
        ("cutmix", (-0.1, float("inf"), float("nan")), "a number, 0 or more"),
    ],
)
def test_knobs_out_of_range(name: str, values: tuple, rule: str) -> None:
    for value in values:
        with pytest.raises(ValueError, match=rf"^{name} must be {rule}, got {value}; correct it$"):
            ImageAugmentation(**{name: value})


def test_all_wrong_knobs_are_named_at_once() -> None:
    message = r"^cutout must be in \[0, 1\], got 2; min_crop_area must be .*, got 0; mixup must .* -1; correct them$"
    with pytest.raises(ValueError, match=message):
        ImageAugmentation(cutout=2, min_crop_area=0, mixup=-1, horizontal_flip=1)


@pytest.mark.parametrize("knobs", KINDS, ids=lambda knobs: next(iter(knobs)))
@pytest.mark.parametrize("shape", [(3, SIZE, SIZE), (49, 64)])
def test_tensors_cannot_be_augmented(knobs: dict, shape: tuple[int, ...]) -> None:
    message = r"image must be a PIL image .*, got a tensor \(.*turn the image augmentation or the feature cache off"
    with pytest.raises(ValueError, match=message):
        ImageAugmentation(**knobs).augment(torch.zeros(shape), RAW, 0)


def test_negative_seeds() -> None:
    for use in (
        lambda seed: ImageAugmentation(cutout=0.5).augment(picture(), RAW, seed),
        lambda seed: ImageAugmentation(mixup=0.5).mix(torch.rand(2, 3, 4, 4), torch.zeros(2, 1), seed),
    ):
        with pytest.raises(ValueError, match="seed must be 0 or more, got -3; choose another"):
            use(-3)


@pytest.mark.parametrize("images", [torch.rand(2, 49, 64), torch.rand(2, 4, 8, 8), torch.zeros(2, 3, 8, 8).byte()])
def test_what_is_no_batch_of_images_cannot_be_mixed(images: torch.Tensor) -> None:
    message = (
        r"images must be \(B, 3, H, W\) of floats to be mixed, got .*turn mixup and cutmix or the feature cache off"
    )
    with pytest.raises(ValueError, match=message):
        ImageAugmentation(mixup=0.5).mix(images, torch.zeros(2, 1), 0)


@pytest.mark.parametrize("shape", [(2,), (3, 4), (2, 4, 1)])
def test_targets_of_other_images_cannot_be_mixed(shape: tuple[int, ...]) -> None:
    with pytest.raises(
        ValueError, match=r"targets must be \(2, N\) as there are 2 images, got \(.*give a row of words"
    ):
        ImageAugmentation(cutmix=0.5).mix(torch.rand(2, 3, 8, 8), torch.zeros(shape), 0)
