"""ImageEncoder: a row-major map from every family; ImageTransform."""

import re
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from zsmld import ImageEncoder
from zsmld.images import ImageTransform, load_image

# name, image size, grid (rows, columns), channels
FAMILIES = [
    ("resnet18", 128, 4, 512),
    ("convnext_atto", 128, 4, 320),
    ("vit_tiny_patch16_224", 96, 6, 192),
    ("swin_tiny_patch4_window7_224", 128, 4, 768),
    ("efficientnet_b0", 96, 3, 1280),
    ("regnety_002", 96, 3, 368),
    ("tresnet_m", 96, 3, 2048),
    ("hgnetv2_b0", 96, 3, 1024),
    ("lcnet_050", 96, 3, 256),
    ("repvgg_a0", 96, 3, 1280),
    ("mobilenetv3_small_050", 96, 3, 288),
    ("xcit_nano_12_p16_224", 96, 6, 128),
]


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# ------------------------------------------------------------------------------------------------------- every family


@pytest.mark.parametrize(("name", "image_size", "side", "channels"), FAMILIES, ids=[f[0] for f in FAMILIES])
@torch.no_grad()
def test_every_family_gives_a_row_major_map(name: str, image_size: int, side: int, channels: int) -> None:
    torch.manual_seed(0)
    encoder = ImageEncoder(f"timm:{name}", pretrained=False, image_size=image_size).eval()
    images = noise(2, 3, image_size, image_size)
    found = encoder(images)
    assert encoder.grid_size == (side, side) and encoder.encoder_dim == channels
    assert encoder.transform.image_size == image_size
    assert found.shape == (2, side * side, channels)

    # By hand, from the network's own features: position s is row s // columns, column s % columns.
    features = encoder.body.forward_features(images)
    for row, column in [(0, 0), (0, side - 1), (side - 1, 0), (1, 2)]:
        if features.ndim == 3:
            expected = features[:, encoder.body.num_prefix_tokens + row * side + column]
        elif name.startswith("swin"):
            expected = features[:, row, column]
        else:
            expected = features[:, :, row, column]
        torch.testing.assert_close(found[:, row * side + column], expected)


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224"])
@torch.no_grad()
def test_what_changes_in_one_corner_changes_that_corner_of_the_map(name: str) -> None:
    """Knows nothing of the code: a patch at the top right moves the top right quarter most, the bottom left least."""
    torch.manual_seed(0)
    encoder = ImageEncoder(f"timm:{name}", pretrained=False, image_size=224).eval()
    blank = torch.zeros(1, 3, 224, 224)
    corner = blank.clone()
    corner[:, :, :64, -64:] = 2 * noise(1, 3, 64, 64)
    change = (encoder(corner) - encoder(blank)).norm(dim=2)[0].unflatten(0, encoder.grid_size)
    half = encoder.grid_size[0] // 2
    quarters = [change[:half, :half], change[:half, -half:], change[-half:, :half], change[-half:, -half:]]
    top_left, top_right, bottom_left, bottom_right = (float(q.mean()) for q in quarters)
    assert top_right > 1.2 * max(top_left, bottom_left, bottom_right)


@pytest.mark.parametrize("name", ["pit_ti_224", "crossvit_tiny_240", "coat_tiny"])
def test_families_without_a_map_are_refused_by_name(name: str) -> None:
    family = name.split("_")[0]
    with pytest.raises(ValueError, match=f"must give a map .* timm's {family} family does not, got '{name}'"):
        ImageEncoder(f"timm:{name}", pretrained=False)


@pytest.mark.parametrize(
    "options",
    [
        {"spec": "timm:test_resnet", "image_size": 96},
        {"spec": "timm:test_vit", "image_size": 96},
        {"spec": "timm:resnet18", "image_size": 64, "stage": 2, "mean": (0.5, 0.5, 0.5), "resize": "crop"},
        {"spec": "timm:mobilenetv3_small_050", "image_size": 64, "model_kwargs": {"pad_type": "same"}},
    ],
    ids=lambda options: options["spec"],
)
@torch.no_grad()
def test_config_rebuilds_the_same_network(options: dict) -> None:
    encoder = ImageEncoder(pretrained=False, **options).eval()
    rebuilt = ImageEncoder(pretrained=False, **encoder.config()).eval()
    rebuilt.load_state_dict(encoder.state_dict())  # strict
    images = noise(1, 3, encoder.transform.image_size, encoder.transform.image_size)
    assert torch.equal(rebuilt(images), encoder(images))
    assert rebuilt.config() == encoder.config()
    assert rebuilt.transform == encoder.transform and rebuilt.grid_size == encoder.grid_size


@pytest.mark.parametrize(("stage", "side", "channels"), [(1, 16, 64), (2, 8, 128), (3, 4, 256), (4, 2, 512)])
@torch.no_grad()
def test_stage_takes_an_earlier_map(stage: int, side: int, channels: int) -> None:
    encoder = ImageEncoder("timm:resnet18", pretrained=False, image_size=64, stage=stage).eval()
    images = noise(1, 3, 64, 64)
    assert encoder.grid_size == (side, side) and encoder.encoder_dim == channels
    expected = encoder.body(images)[-1]  # (B,C,H,W)
    torch.testing.assert_close(encoder(images), expected.flatten(2).transpose(1, 2))


@torch.no_grad()
def test_stage_of_a_channels_last_network() -> None:
    encoder = ImageEncoder("timm:swin_tiny_patch4_window7_224", pretrained=False, stage=2).eval()
    images = noise(1, 3, 224, 224)
    assert encoder.grid_size == (14, 14) and encoder.encoder_dim == 384
    torch.testing.assert_close(encoder(images), encoder.body(images)[-1].flatten(1, 2))  # (B,H,W,C)


def test_stage_at_another_image_size() -> None:
    assert ImageEncoder("timm:vit_tiny_patch16_224", pretrained=False, image_size=96, stage=1).grid_size == (6, 6)


@pytest.mark.parametrize(
    ("spec", "side", "channels"),
    [("open_clip:ViT-B-32", 3, 768), ("open_clip:RN50", 3, 2048), ("open_clip:ViT-B-16-SigLIP", 6, 768)],
)
@torch.no_grad()
def test_open_clip_towers(spec: str, side: int, channels: int) -> None:
    torch.manual_seed(0)
    encoder = ImageEncoder(spec, pretrained=False, image_size=96).eval()
    assert encoder.grid_size == (side, side) and encoder.encoder_dim == channels
    images = noise(2, 3, 96, 96)
    found = encoder(images)
    assert found.shape == (2, side * side, channels)
    if spec.endswith("ViT-B-32"):  # by hand: the tokens after the final norm, without the class token
        body = encoder.body
        tokens = body.ln_post(body.transformer(body._embeds(images)))
        torch.testing.assert_close(found, tokens[:, 1:])
    if spec.endswith("RN50"):
        body = encoder.body
        features = body.layer4(body.layer3(body.layer2(body.layer1(body.stem(images)))))  # (B,C,H,W)
        torch.testing.assert_close(found, features.flatten(2).transpose(1, 2))
    if spec.endswith("ViT-B-32"):
        assert encoder.transform.mean == pytest.approx((0.48145466, 0.4578275, 0.40821073))
        rebuilt = ImageEncoder(pretrained=False, **encoder.config()).eval()
        rebuilt.load_state_dict(encoder.state_dict())
        assert torch.equal(rebuilt(images), found)


def test_real_weights_classify_real_photos(real: Path) -> None:
    """Top-1 on single-word photos whose word is an ImageNet class: the map, the padding and the transform are right."""
    from safetensors.torch import load_file

    weights = real / "weights" / "mobilenetv2_100_tf2_ptq.safetensors"
    encoder = ImageEncoder(
        "timm:mobilenetv2_100",
        checkpoint_path=weights,
        model_kwargs={"pad_type": "same"},
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        image_size=224,
    ).eval()
    assert encoder.grid_size == (7, 7) and encoder.encoder_dim == 1280
    state = load_file(weights)
    names = (real / "weights" / "imagenet_labels.txt").read_text().splitlines()[1:]
    rows = [line.split(",") for line in (real / "coco_photos" / "labels.csv").read_text().splitlines()[1:]]
    animals = {"zebra": "zebra", "elephant": "elephant|tusker", "bear": " bear|panda"}
    chosen = [(name, animals[word]) for name, word in rows if word in animals]
    assert len(chosen) == 16
    images = [encoder.transform(load_image(real / "coco_photos" / "images" / name)) for name, _ in chosen]
    with torch.no_grad():
        pooled = encoder(torch.stack(images)).mean(1)  # (B,C)
    best = (pooled @ state["classifier.weight"].T + state["classifier.bias"]).argmax(1).tolist()
    hits = sum(bool(re.search(right, names[label])) for label, (_, right) in zip(best, chosen, strict=True))
    assert hits >= 14


# ------------------------------------------------------------------------------------------------------------ errors


@pytest.mark.parametrize("spec", ["resnet18", "timm:", "clip:ViT-B-32", ""])
def test_unknown_spec(spec: str) -> None:
    with pytest.raises(ValueError, match=r"image_encoder must be timm:NAME or open_clip:ARCH/PRETRAINED, got "):
        ImageEncoder(spec, pretrained=False)


def test_unknown_model_has_similar_names() -> None:
    with pytest.raises(
        ValueError, match=r"image_encoder must be one timm knows, got 'resnet81'; similar names: \[.*'resnet18'"
    ):
        ImageEncoder("timm:resnet81", pretrained=False)


def test_open_clip_without_weights() -> None:
    with pytest.raises(
        ValueError, match=r"must name weights of ViT-B-32 or a file, got none; .* instance open_clip:ViT-B-32/openai"
    ):
        ImageEncoder("open_clip:ViT-B-32")


def test_checkpoint_must_exist_and_fit(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    with pytest.raises(FileNotFoundError, match=r"checkpoint_path must be an existing file, not found: no\.pth"):
        ImageEncoder("timm:test_resnet", checkpoint_path="no.pth")
    source = ImageEncoder("timm:test_resnet", pretrained=False, image_size=64)
    state = dict(source.body.state_dict())
    state |= {"fc.weight": torch.zeros(10, 96), "fc.bias": torch.zeros(10)}  # a classifier is no obstacle
    save_file({k: v.contiguous() for k, v in state.items()}, tmp_path / "good.safetensors")
    loaded = ImageEncoder("timm:test_resnet", checkpoint_path=tmp_path / "good.safetensors", image_size=64)
    assert all(torch.equal(v, state[k]) for k, v in loaded.body.state_dict().items())
    state.pop(next(iter(source.body.state_dict())))
    state["stranger.weight"] = torch.zeros(1)
    save_file({k: v.contiguous() for k, v in state.items()}, tmp_path / "bad.safetensors")
    with pytest.raises(ValueError, match=r"1 missing \[.*\] and 1 unexpected \['stranger.weight'\]"):
        ImageEncoder("timm:test_resnet", checkpoint_path=tmp_path / "bad.safetensors", image_size=64)


@pytest.mark.parametrize("shape", [(3, 64, 64), (1, 1, 64, 64), (1, 64, 64, 3), (1, 3, 32, 32)])
def test_images_of_a_wrong_shape(shape: tuple[int, ...]) -> None:
    encoder = ImageEncoder("timm:test_resnet", pretrained=False, image_size=64)
    with pytest.raises(ValueError, match=r"images must be \(B, 3, 64, 64\) of floats, got .*; pass each through"):
        encoder(torch.zeros(shape))


# --------------------------------------------------------------------------------------------------------- transform


@given(st.tuples(*[st.integers(0, 255)] * 3), st.sampled_from(["squash", "crop"]), st.integers(1, 40))
def test_one_colour_becomes_its_normalised_value_everywhere(colour: tuple, resize: str, image_size: int) -> None:
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.25, 0.5)
    transform = ImageTransform(image_size, mean, std, resize=resize)
    found = transform(Image.new("RGB", (31, 17), colour))
    assert found.shape == (3, image_size, image_size) and found.dtype == torch.float32
    expected = (torch.tensor(colour) / 255 - torch.tensor(mean)) / torch.tensor(std)
    torch.testing.assert_close(found, expected[:, None, None].expand_as(found))


def test_squash_keeps_the_edges_and_crop_the_proportions() -> None:
    image = Image.new("RGB", (40, 20), "black")
    image.paste("red", (0, 0, 10, 20))  # the left quarter
    squashed = np.asarray(ImageTransform(20, interpolation="bilinear").fit(image))
    assert squashed[:, :4, 0].min() > 200 and squashed[:, 8:, 0].max() == 0
    cropped = np.asarray(ImageTransform(20, resize="crop").fit(image))
    assert cropped.max() == 0  # a centre square of 20 starts at column 10


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "CMYK", "P", "1"])
@pytest.mark.parametrize("size", [(24, 24), (40, 24), (24, 40), (31, 31)])
@pytest.mark.parametrize("resize", ["squash", "crop"])
def test_fit_is_convert_and_resize_to_the_bit_and_a_picture_of_its_own(mode: str, size: tuple, resize: str) -> None:
    pixels = np.random.default_rng(5).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    image = Image.fromarray(pixels).convert(mode)
    before = image.tobytes()
    found = ImageTransform(24, resize=resize).fit(image)
    rgb = image.convert("RGB")
    if rgb.size != (24, 24):
        rgb = (rgb.resize if resize == "squash" else partial(ImageOps.fit, rgb))((24, 24), Image.Resampling.BICUBIC)
    assert found.mode == "RGB" and found.tobytes() == rgb.tobytes()
    found.paste("red", (0, 0, 24, 24))
    assert image.tobytes() == before and image.mode == mode


def test_right_size_is_not_resampled_and_rows_stay_rows() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    found = ImageTransform(24, (0.0,) * 3, (1.0,) * 3)(Image.fromarray(pixels))
    np.testing.assert_allclose(found.permute(1, 2, 0).numpy() * 255, pixels, atol=1e-4)
    tensor = torch.rand(3, 24, 24)
    assert ImageTransform(24)(tensor) is tensor


def test_transform_is_that_of_the_weights_unless_told() -> None:
    own = ImageEncoder("timm:vit_tiny_patch16_224.augreg_in21k_ft_in1k", pretrained=False).transform
    assert (own.image_size, own.mean, own.std, own.interpolation) == (224, (0.5,) * 3, (0.5,) * 3, "bicubic")
    told = ImageEncoder(
        "timm:test_resnet", pretrained=False, image_size=64, mean=(0.1, 0.2, 0.3), interpolation="bilinear"
    ).transform
    assert told.mean == (0.1, 0.2, 0.3) and told.interpolation == "bilinear" and told.image_size == 64
    assert ImageTransform(**told.to_dict() | {"mean": told.mean, "std": told.std}) == told


def test_a_transform_takes_arrays() -> None:
    picture = Image.new("RGB", (40, 30), "red")
    ours, expected = (ImageTransform(8, kind((0.5, 0.4, 0.3)), kind((1, 0.5, 0.2))) for kind in (np.array, tuple))
    torch.testing.assert_close(ours(picture), expected(picture), check_dtype=False)


def test_what_fails_at_the_own_size_is_not_blamed_on_the_size() -> None:
    with pytest.raises(RuntimeError, match="expected input"):
        ImageEncoder("timm:test_resnet", pretrained=False, model_kwargs={"in_chans": 1})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"interpolation": "nearest"}, "interpolation must be 'bilinear' or 'bicubic', got 'nearest'"),
        ({"resize": "pad"}, "resize must be 'squash' or 'crop', got 'pad'"),
        ({"image_size": 0}, "image_size must be a positive number of pixels, at most 4096, got 0"),
        ({"image_size": 49_152_000}, "image_size must be a positive number of pixels, at most 4096, got 49152000"),
        ({"image_size": 32.0}, "image_size must be a positive number of pixels, at most 4096, got 32.0"),
        ({"image_size": True}, "image_size must be a positive number of pixels, at most 4096, got True"),
        ({"mean": 0.5}, "mean must be 3 finite numbers, one per channel, got 0.5"),
        ({"mean": (10**400, 0.5, 0.5)}, "mean must be 3 finite numbers, one per channel, got"),
        ({"std": (0.5, 1e-60, 0.5)}, "std must hold no 0, which pixels are divided by, got"),
        ({"mean": (0.5,)}, "mean must be 3 finite numbers, one per channel, got"),
        ({"mean": (0.5, [0.5], 0.5)}, "mean must be 3 finite numbers, one per channel, got"),
        ({"std": (0.5, "0.5", 0.5)}, "std must be 3 finite numbers, one per channel, got"),
        ({"std": (0.5, float("nan"), 0.5)}, "std must be 3 finite numbers, one per channel, got"),
        ({"std": (0.5, 0, 0.5)}, "std must hold no 0, which pixels are divided by, got"),
    ],
)
def test_wrong_transform(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ImageTransform(**{"image_size": 32} | options)


# ------------------------------------------------------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("spec", "options", "message"),
    [
        ("timm:resnet18.nonsense", {}, "image_encoder must be one timm knows, got 'resnet18.nonsense'"),
        (
            "timm:resnet18",
            {"stage": 9, "pretrained": False},
            "stage must be one timm knows, got 'resnet18' with stage=9",
        ),
        (
            "timm:test_vit",
            {"stage": 99, "pretrained": False},
            "stage must be one timm knows, got 'test_vit' with stage=99: feature index 99 is out of range",
        ),
        (
            "timm:test_vit",
            {"image_size": 5, "pretrained": False},
            "image_size must be one that 'timm:test_vit' takes, got 5: ",
        ),
        (
            "timm:resnet18",
            {"image_size": 0, "pretrained": False},
            "image_size must be a positive number of pixels, at most 4096, got 0",
        ),
        (
            "timm:somebody/network",
            {},
            "got 'somebody/network'; for a repository of the Hub write timm:hf-hub:OWNER/NAME",
        ),
        ("open_clip:ViT-B-33/openai", {}, "must name a known architecture, got 'ViT-B-33'; see .*ViT-B-32"),
        ("open_clip:ViT-B-32/nothing", {}, "must name weights of ViT-B-32 or a file, got 'nothing'"),
    ],
)
def test_names_that_are_nearly_right(spec: str, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ImageEncoder(spec, **options)


def test_weights_files_are_never_unpickled(tmp_path: Path) -> None:
    class Malicious:
        def __reduce__(self) -> tuple:
            return (Path.touch, (tmp_path / "touched",))

    torch.save({"state_dict": {"conv1.weight": Malicious()}}, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match="checkpoint_path must hold weights and nothing else"):
        ImageEncoder("timm:resnet18", pretrained=False, checkpoint_path=tmp_path / "weights.pth")
    assert not (tmp_path / "touched").exists()


def test_open_clip_without_pretraining_reads_no_weights(tmp_path: Path) -> None:
    """A local open_clip folder with weights, built without them, has others."""
    import json

    import open_clip
    from safetensors.torch import save_file

    config = {"model_cfg": open_clip.get_model_config("RN50"), "preprocess_cfg": {}}
    config["model_cfg"]["vision_cfg"] |= {"layers": [1, 1, 1, 1], "width": 16}
    config["model_cfg"]["text_cfg"] |= {"layers": 1, "width": 64, "heads": 2}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    model = open_clip.create_model(f"local-dir:{tmp_path}", load_weights=False)
    save_file(
        {name: torch.full_like(t, 0.125) for name, t in model.state_dict().items()},
        tmp_path / "open_clip_model.safetensors",
    )
    kernels = [ImageEncoder(f"open_clip:{tmp_path}", pretrained=p).body.conv1.weight for p in (True, False)]
    assert (kernels[0] == 0.125).all() and not (kernels[1] == 0.125).any()


@pytest.mark.parametrize(("tag", "activation"), [("openai", "QuickGELU"), ("laion2b_s34b_b79k", "GELU")])
def test_open_clip_has_the_activation_its_weights_were_trained_with(tag: str, activation: str) -> None:
    """Also when a checkpoint is rebuilt without the weights: open_clip itself only warns of the mismatch."""
    encoder = ImageEncoder(f"open_clip:ViT-B-32/{tag}", pretrained=False)
    assert type(encoder.body.transformer.resblocks[0].mlp.gelu).__name__ == activation
    assert encoder.config()["spec"] == f"open_clip:ViT-B-32/{tag}"
