"""Images from files, bytes and arrays: decoded to RGB, upright."""

import io
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

ImageSource = str | Path | Image.Image | np.ndarray | BinaryIO | bytes


def load_image(source: ImageSource) -> Image.Image:
    """Decode one image to RGB, upright.

    Args:
        source: a path, an open file, bytes, a PIL image, or an array (H,W), (H,W,3) or (H,W,4) of uint8.

    Returns:
        PIL RGB, never the image that was passed. EXIF rotation is applied, 16-bit grey is scaled to 8, transparency is
        laid on white. No file stays open.

    Raises:
        FileNotFoundError: if the path does not exist.
        ValueError: if it cannot be decoded; the message names the path.

    Example:
        >>> load_image(np.zeros((4, 6), np.uint8)).size
        (6, 4)
    """
    if isinstance(source, np.ndarray):
        if (
            source.dtype != np.uint8
            or source.ndim not in (2, 3)
            or (source.ndim == 3 and source.shape[2] not in (3, 4))
        ):
            raise ValueError(
                f"an image array must be uint8 (H, W), (H, W, 3) or (H, W, 4), got {source.dtype} {source.shape}; "
                f"convert it, channels last"
            )
        return _to_rgb(Image.fromarray(source))
    if isinstance(source, Image.Image):
        rgb = _to_rgb(source)
        return rgb.copy() if rgb is source else rgb
    if isinstance(source, (str, Path)) and not Path(source).is_file():
        raise FileNotFoundError(f"image must be an existing file, not found: {source}; correct the path")
    try:
        with _opened(source) as file, Image.open(file) as image:
            return _to_rgb(image)
    except Exception as error:  # what decoders raise on damaged files has no end
        name = source if isinstance(source, (str, Path)) else getattr(source, "name", "image")
        # Pillow's own words for it end in the address of what was open, another in each run.
        reason = "its format is not known" if isinstance(error, UnidentifiedImageError) else error
        raise ValueError(f"image must be readable, cannot decode {name}: {reason}; replace or remove it") from error


def _opened(source: str | Path | BinaryIO | bytes) -> AbstractContextManager[BinaryIO]:
    """Pillow never gets the path: it would map some TIFFs into memory, and those it does not turn upright."""
    if isinstance(source, bytes):
        return io.BytesIO(source)
    return open(source, "rb") if isinstance(source, (str, Path)) else nullcontext(source)


def _to_rgb(image: Image.Image) -> Image.Image:
    """The image itself where its pixels are right already: a copy of a large photo takes as long as its decoding."""
    if image.format == "EPS":
        raise ValueError("PostScript is a program, and no program is run; convert it to PNG")
    image.load()  # an orientation may come behind the pixels
    image = _upright(image)
    if image.mode.startswith("I;16") or image.mode == "I":
        grey = np.array(image, np.float32)
        grey /= 256  # in place, as is the next: the largest image that Pillow takes has 179 million pixels
        return Image.fromarray(grey.clip(0, 255, out=grey).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _upright(image: Image.Image) -> Image.Image:
    """As its EXIF says; one whose EXIF is damaged is a good image of unknown orientation."""
    try:
        turned = image.getexif().get(ExifTags.Base.Orientation, 1) != 1
        return ImageOps.exif_transpose(image) if turned else image
    except Exception:  # as many kinds as decoders raise
        return image
