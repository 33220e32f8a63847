"""A small image encoder of each family that the recipes use, with random weights."""

import json
from pathlib import Path

import open_clip

from zsmld import ImageEncoder

# Name -> side in pixels; None for the network's own.
FAMILIES: dict[str, int | None] = {
    "timm:test_resnet": 32,
    "timm:test_vit": None,
    "timm:test_convnext": 32,
    "timm:test_efficientnet": 32,
    "timm:repvgg_a0": 64,
    "timm:hgnetv2_b0": 64,
    "timm:lcnet_050": 64,
    "timm:tresnet_m": 64,
    "swin": 64,
    "open_clip ViT": 32,
    "open_clip ResNet": 64,
}


def small_encoder(name: str, folder: Path) -> ImageEncoder:
    """The encoder, in eval mode.

    Args:
        name: of `FAMILIES`.
        folder: for the configuration of an open_clip network.
    """
    size = FAMILIES[name]
    if name == "swin":
        options = {"embed_dim": 16, "depths": (1, 1), "num_heads": (2, 2), "window_size": 4}
        return ImageEncoder("timm:swin_tiny_patch4_window7_224", False, size, model_kwargs=options).eval()
    if name.startswith("open_clip"):
        config = open_clip.get_model_config("RN50" if "ResNet" in name else "ViT-B-32")
        small = (
            {"layers": [1, 1, 1, 1], "width": 16} if "ResNet" in name else {"layers": 2, "width": 64, "patch_size": 8}
        )
        config["vision_cfg"] |= small | {"image_size": size}
        (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
        return ImageEncoder(f"open_clip:{folder}", pretrained=False, value_path=False).eval()
    return ImageEncoder(name, pretrained=False, image_size=size).eval()
