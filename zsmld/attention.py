"""Where the head looked: maps of the decoder's cross-attention, and overlays on the image."""

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from zsmld.model import ZeroShotClassifier


@torch.no_grad()
def attention_maps(model: ZeroShotClassifier, images: Tensor, word_embeddings: Tensor | None = None) -> Tensor:
    """The share of each word's attention that each place of the map received.

    Args:
        model: in eval mode.
        images: (B,3,H,W), transformed.
        word_embeddings: (N,T) or (N,K,T); None in class mode, where the N maps are those of the group queries.

    Returns:
        (B,N,rows,columns) fp32, the mean over heads of the last layer's weights; each map sums to one.
    """
    spatial = model.image_encoder(images)  # (B,S,C)
    weights = model.decoder.attention(spatial, word_embeddings).float().mean(1)  # (B,N,S)
    return weights.unflatten(2, model.image_encoder.grid_size)  # (B,N,rows,columns)


def overlay(image: Image.Image, attention_map: np.ndarray | Tensor, strength: float = 0.55) -> Image.Image:
    """Lay one attention map over an image.

    Args:
        image: PIL image of any size.
        attention_map: (rows,columns), not negative.
        strength: opacity of the brightest place, in [0,1].

    Returns:
        PIL RGB of the image's size: warm where the head looked, dimmed elsewhere.

    Raises:
        ValueError: if the map is not two-dimensional.
    """
    heat = np.asarray(attention_map, np.float32)
    if heat.ndim != 2:
        raise ValueError(f"attention_map must be (rows, columns), got {heat.shape}; pass the map of one word")
    from matplotlib import colormaps

    heat = (heat - heat.min()) / max(float(heat.max() - heat.min()), 1e-12)
    smooth = Image.fromarray(heat).resize(image.size, Image.Resampling.BILINEAR)
    heat = np.asarray(smooth)[:, :, None]  # (H,W,1)
    colours = colormaps["inferno"](heat[:, :, 0])[:, :, :3] * 255  # (H,W,3)
    pixels = np.asarray(image.convert("RGB"), np.float32) * (0.45 + 0.55 * heat)
    return Image.fromarray((pixels * (1 - strength * heat) + colours * strength * heat).clip(0, 255).astype(np.uint8))
