"""What a checkpoint may say of its image encoder: the same where it is saved, before a training, and where it loads."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from test_trainer import Toys

from zsmld import ImageEncoder, MLDecoder, Trainer, ZeroShotClassifier, create_model
from zsmld.model import checkpoint

MakeModel = Callable[..., Any]
SMALL = {"num_classes": 3, "decoder_dim": 32, "num_heads": 4, "feedforward_dim": 64}
ARCH = "ViT-S-32-alt"  # open_clip's smallest


def changed(folder: Path, **image_encoder: Any) -> Path:
    config = json.loads((folder / "config.json").read_text())
    config["image_encoder"] |= image_encoder
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def folder(make_model: MakeModel, tmp_path: Path) -> Path:
    make_model().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def clip_folder(folder: Path, **vision: Any) -> str:
    """A local folder with the smallest of open_clip's models, or another; returns its path."""
    config = open_clip.get_model_config(ARCH)
    config["vision_cfg"] |= vision
    folder.mkdir(exist_ok=True)
    (folder / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": config, "preprocess_cfg": {"mean": [0.1] * 3}})
    )
    return str(folder)


# ------------------------------------------------------------------------------------------------------------- options

FOREIGN: list[tuple[dict[str, Any], str]] = [
    ({"a": [{"checkpoint_path": "x"}]}, "checkpoint_path"),
    ({"a": [[{"b": [{"pretrained_image_path": "x"}]}]]}, "pretrained_image_path"),
    ({"vision_cfg": {"timm_model_name": "local-dir:/evil"}}, "local-dir:/evil"),
    ({"vision_cfg": {"timm_model_name": "Local-Dir:evil"}}, "Local-Dir:evil"),
    ({"vision_cfg": [{"timm_model_name": "hf-hub:evil/evil"}]}, "hf-hub:evil/evil"),
    ({"act_layer": ["/etc/passwd"]}, "/etc/passwd"),
    ({"act_layer": "~/evil"}, "~/evil"),
    ({"pretrained_cfg_overlay": {"mean": [0.5] * 3}}, "pretrained_cfg_overlay"),
]


@pytest.mark.parametrize(("options", "named"), FOREIGN, ids=str)
def test_options_that_could_name_files_are_refused_everywhere(
    options: dict[str, Any], named: str, folder: Path, make_model: MakeModel, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"checkpoint .*model must not set \[") as caught:
        ZeroShotClassifier.from_pretrained(changed(folder, model_kwargs=options))
    assert named in str(caught.value)
    model = make_model()
    model.image_encoder.model_kwargs = options
    with pytest.raises(ValueError, match=r"image_encoder must have model_kwargs that name no files") as caught:
        model.save_pretrained(tmp_path / "out")
    assert named in str(caught.value) and not (tmp_path / "out").exists()


def test_a_folder_named_deep_in_the_options_is_not_read(folder: Path, tmp_path: Path) -> None:
    """Without the refusal open_clip hands the name to timm, which builds what the folder says."""
    (tmp_path / "evil").mkdir()
    (tmp_path / "evil" / "config.json").write_text('{"architecture": "test_vit"}')
    vision = {"timm_model_name": f"local-dir:{tmp_path / 'evil'}", "timm_pool": "token", "timm_proj": "linear"}
    options = {"vision_cfg": vision | {"image_size": 160}}
    assert ImageEncoder(f"open_clip:{ARCH}", pretrained=False, model_kwargs=options).encoder_dim == 64  # it would be
    with pytest.raises(ValueError, match=r"must not set \['local-dir:.*evil'\]"):
        ZeroShotClassifier.from_pretrained(changed(folder, spec=f"open_clip:{ARCH}", model_kwargs=options))


@pytest.mark.parametrize(
    ("spec", "size", "options"),
    [
        ("timm:test_vit", 160, {"drop_path_rate": 0.1}),
        ("timm:swinv2_tiny_window8_256", 64, {"pretrained_window_sizes": [8, 8, 8, 8]}),
        (
            f"open_clip:{ARCH}",
            160,
            {
                "vision_cfg": {
                    "timm_model_name": "test_vit",
                    "timm_pool": "token",
                    "timm_proj": "linear",
                    "timm_drop_path": 0.1,
                    "image_size": 160,
                }
            },
        ),
    ],
)
def test_harmless_options_are_stored(spec: str, size: int, options: dict[str, Any], tmp_path: Path) -> None:
    encoder = ImageEncoder(spec, pretrained=False, image_size=size, model_kwargs=options)
    create_model(encoder, **SMALL).save_pretrained(tmp_path)
    assert ZeroShotClassifier.from_pretrained(tmp_path).image_encoder.model_kwargs == options


def test_options_that_are_no_plain_values_are_refused_in_a_sentence(make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model()
    for options, message in (
        ({"act_layer": torch.nn.GELU}, "of plain values to be saved"),
        ({"depth": 10**7}, "of at most 1000000 to be saved"),
    ):
        model.image_encoder.model_kwargs = options
        with pytest.raises(ValueError, match=f"image_encoder must have model_kwargs {message}"):
            model.save_pretrained(tmp_path)


def test_a_training_that_could_not_save_its_model_does_not_begin(make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model()
    model.image_encoder.model_kwargs = {"pretrained_cfg_overlay": {"mean": [0.5] * 3}}
    with pytest.raises(ValueError, match=r"image_encoder must have model_kwargs that name no files .*overlay"):
        Trainer(model, Toys(), epochs=1, output=tmp_path)
    Trainer(model, Toys(), epochs=1)  # it saves none


# ------------------------------------------------------------------------------------------------------------- folders


@torch.no_grad()
def test_a_clip_from_a_folder_is_saved_by_its_architectures_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in (clip_folder(tmp_path / "clip"), "./clip", "clip"):
        spec = f"open_clip:{name}"
        encoder = ImageEncoder(spec, pretrained=False, image_size=64, projected=True)
        assert (encoder.spec, encoder.config()["spec"]) == (spec, f"open_clip:{ARCH}")
    model = create_model(encoder, **SMALL).eval()
    model.save_pretrained(tmp_path / "model")
    (tmp_path / "clip" / "open_clip_config.json").unlink()
    restored = ZeroShotClassifier.from_pretrained(tmp_path / "model")
    assert restored.image_encoder.spec == f"open_clip:{ARCH}"
    assert restored.image_encoder.transform.mean == (0.1,) * 3
    images = torch.randn(1, 3, 64, 64)
    assert torch.equal(restored(images), model(images))
    restored.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / "config.json").read_bytes() == (tmp_path / "model" / "config.json").read_bytes()


def test_a_clip_of_no_known_architecture_is_refused_before_its_training(make_model: MakeModel, tmp_path: Path) -> None:
    encoder = ImageEncoder(f"open_clip:{clip_folder(tmp_path / 'clip', layers=2)}", pretrained=False, image_size=64)
    model = ZeroShotClassifier(encoder, MLDecoder(encoder.encoder_dim, text_dim=16, decoder_dim=32))
    message = (
        r"image_encoder must have an architecture that open_clip knows by name to be saved, got 'open_clip:.*clip'"
    )
    with pytest.raises(ValueError, match=message):
        model.save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match=message):
        Trainer(model, Toys(), epochs=1, output=tmp_path / "run")
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("spec", ["open_clip:clip", "timm:clip", "timm:LOCAL-DIR:clip", "open_clip:local-dir:clip"])
def test_a_checkpoint_cannot_name_a_folder_beside_it(
    spec: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    clip_folder(tmp_path / "clip")
    (tmp_path / "clip" / "config.json").write_text('{"architecture": "test_resnet"}')
    with pytest.raises(ValueError, match="must not name a folder as its image encoder"):
        ZeroShotClassifier.from_pretrained(changed(folder, spec=spec))


def test_a_folder_of_a_networks_name_is_not_in_its_way(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "test_resnet").mkdir()
    (tmp_path / "test_resnet" / "config.json").write_text('{"architecture": "test_vit"}')
    assert ZeroShotClassifier.from_pretrained(folder).image_encoder.spec == "timm:test_resnet"
    clip_folder(tmp_path / ARCH, layers=2)
    encoder = ImageEncoder(f"open_clip:{ARCH}", pretrained=False, image_size=64)
    assert len(encoder.body.transformer.resblocks) > 2


# --------------------------------------------------------------------------------------------------------------- sizes


def test_an_early_stage_of_a_large_network_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "_SPARE", 0)  # in the proportion of convnext_xxlarge, with less memory
    encoder = ImageEncoder("timm:resnet50", pretrained=False, image_size=64, stage=0)
    model = create_model(encoder, **SMALL)
    kept = sum(parameter.numel() for parameter in model.parameters())
    assert kept < 100_000
    model.save_pretrained(tmp_path)
    assert ZeroShotClassifier.from_pretrained(tmp_path).image_encoder.stage == 0
    with pytest.raises(ValueError, match="a network far larger than the weights beside it"):  # options are not trusted
        ZeroShotClassifier.from_pretrained(changed(tmp_path, model_kwargs={"layers": [3, 4, 6, 60]}))
    with pytest.raises(ValueError, match="weights that are not those of its image encoder's stage"):
        ZeroShotClassifier.from_pretrained(changed(tmp_path, model_kwargs={}, stage=1))
