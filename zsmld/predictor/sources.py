"""What stands for images: paths, folders, globs, objects, lists of these, and what gives them one after the other."""

from collections.abc import Iterable, Iterator, Sequence, Sized
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from zsmld.images import ImageSource

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"})


def list_images(images: Any) -> list[ImageSource | Tensor]:
    """Every image that a path, folder, glob, image object or list of these stands for.

    Raises:
        FileNotFoundError: if a path or glob matches nothing, or a folder holds no image.
        TypeError: if something is no image.

    Example:
        >>> len(list_images([Image.new("RGB", (8, 8)), "somewhere.jpg"]))
        2
    """
    if isinstance(images, (str, Path)):
        return list(_found(images))
    if _is_image_object(images):
        return [images]
    if not isinstance(images, Iterable):
        raise TypeError(f"images must be a path, an image or a list of these, got {type(images).__name__}; see predict")
    listed: list[ImageSource | Tensor] = []
    for image in images:
        _check_image(image)
        listed += _found(image) if _is_group(image) else [image]
    return listed


def open_images(images: Any) -> tuple[Iterable[Any], int | None]:
    """The images that something stands for, and how many, if that is known.

    What has its items at hand is listed and checked now. Of a generator, or anything else that is iterated, nothing is
    taken before it is asked for; an item that is no image is an exception among the items, not raised.

    Args:
        images: as in `Predictor.predict`.

    Raises:
        FileNotFoundError, TypeError: as `list_images`.

    Example:
        >>> items, total = open_images(f"{number}.jpg" for number in range(10**9))
        >>> next(iter(items)), total
        ('0.jpg', None)
    """
    if isinstance(images, (str, Path, Sequence)) or _is_image_object(images) or not isinstance(images, Iterable):
        listed = list_images(images)
        return listed, len(listed)
    return _one_by_one(images), len(images) if isinstance(images, Sized) else None


def _found(images: str | Path) -> list[Path]:
    """What a path, a folder or a glob stands for."""
    path = Path(images)
    if path.is_dir():
        found = sorted(p for p in path.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())
    elif path.exists():
        found = [path]
    else:
        parent = Path(path.anchor) if path.is_absolute() else Path()
        pattern = str(path.relative_to(parent)) if path.is_absolute() else str(path)
        found = sorted(p for p in parent.glob(pattern) if p.is_file()) if any(c in pattern for c in "*?[") else []
    if not found:
        raise FileNotFoundError(
            f"images must be an existing file, a folder with images or a glob that matches some, found none at "
            f"{images}; correct the path"
        )
    return found


def _one_by_one(images: Iterable[Any]) -> Iterator[Any]:
    for image in images:
        try:
            _check_image(image)
            found: list[Any] = list(_found(image)) if _is_group(image) else [image]
        except (TypeError, OSError) as error:
            found = [error]
        yield from found


def _check_image(image: Any) -> None:
    if not isinstance(image, (str, Path)) and not _is_image_object(image):
        raise TypeError(f"each image must be a path, an image, an array or an open file, got {image!r:.80}; remove it")


def _is_group(image: Any) -> bool:
    # A missing file inside a list is one unreadable image, not the end of all others.
    return isinstance(image, (str, Path)) and (Path(image).is_dir() or any(c in str(image) for c in "*?["))


def _is_image_object(source: Any) -> bool:
    return isinstance(source, (Image.Image, np.ndarray, Tensor, bytes)) or hasattr(source, "read")
