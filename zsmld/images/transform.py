"""ImageTransform: PIL image -> normalised tensor, as an image encoder was trained to see it."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from numbers import Integral, Real
from typing import Any, Literal, cast

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

Resize = Literal["squash", "crop"]
_LARGEST_FP32 = float(np.finfo(np.float32).max)
_LARGEST_SIDE = 4096  # a checkpoint may ask for any: memory grows with the square


def check_image_size(image_size: int) -> None:
    """Whether images may have this side.

    Raises:
        ValueError: unless it is 1 to 4096.
    """
    if not isinstance(image_size, Integral) or isinstance(image_size, bool) or not 1 <= image_size <= _LARGEST_SIDE:
        raise ValueError(
            f"image_size must be a positive number of pixels, at most {_LARGEST_SIDE}, got {image_size!r}; correct it"
        )


def _is_fp32(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and cast(float, abs(value)) <= _LARGEST_FP32


@dataclass(frozen=True)
class ImageTransform:
    """PIL image -> normalised tensor, as the encoder was trained to see it.

    Args:
        image_size: side in pixels of the square result, 1 to 4096.
        mean: per channel, in [0,1].
        std: per channel, in [0,1].
        interpolation: "bilinear" or "bicubic".
        resize: "squash" resizes both sides and keeps everything in view, the habit of multi-label work and the
            default; "crop" resizes the short side and crops the centre.

    Raises:
        ValueError: on an unknown option, another size, or not three finite numbers, of which none of std is 0.

    Example:
        >>> ImageTransform(image_size=32)(Image.new("RGB", (80, 60))).shape
        torch.Size([3, 32, 32])
    """

    image_size: int
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    interpolation: str = "bicubic"
    resize: Resize = "squash"

    def __post_init__(self) -> None:
        if self.interpolation not in ("bilinear", "bicubic"):
            raise ValueError(f"interpolation must be 'bilinear' or 'bicubic', got {self.interpolation!r}; choose one")
        if self.resize not in ("squash", "crop"):
            raise ValueError(f"resize must be 'squash' or 'crop', got {self.resize!r}; choose one")
        check_image_size(self.image_size)
        for name, values in (("mean", self.mean), ("std", self.std)):
            if not isinstance(values, Sequence | np.ndarray) or len(values) != 3 or not all(map(_is_fp32, values)):
                raise ValueError(f"{name} must be 3 finite numbers, one per channel, got {values!r}; correct it")
        if 0 in np.asarray(self.std, np.float32):
            raise ValueError(f"std must hold no 0, which pixels are divided by, got {self.std!r}; correct it")

    def __call__(self, image: Image.Image | Tensor) -> Tensor:
        """RGB image of any size -> (3,H,W) fp32 with H = W = image_size. A tensor is taken as transformed already."""
        if isinstance(image, Tensor):
            return image
        image = self.fit(image)
        pixels = torch.from_numpy(np.asarray(image, np.float32)).permute(2, 0, 1) / 255  # (3,H,W)
        return (pixels - torch.tensor(self.mean)[:, None, None]) / torch.tensor(self.std)[:, None, None]

    def fit(self, image: Image.Image) -> Image.Image:
        """Only the geometry: RGB, (image_size, image_size); what the encoder sees, as a picture of its own."""
        if image.mode != "RGB":
            image = image.convert("RGB")
        size, method = (self.image_size, self.image_size), Image.Resampling[self.interpolation.upper()]
        # Either copies an image that has the size already.
        return image.resize(size, method) if self.resize == "squash" else ImageOps.fit(image, size, method)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self) | {"mean": list(self.mean), "std": list(self.std)}
