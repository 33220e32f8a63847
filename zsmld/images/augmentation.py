"""ImageAugmentation: what happens to images in training. Everything random in it is a function of a seed.

A seed for each image, and one for each batch, make a run repeat itself exactly: which process, which worker and which
order an image comes in change nothing, and nothing else that draws random numbers is disturbed.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from zsmld.images.transform import ImageTransform

_MAX_MAGNITUDE = 30  # torchvision's RandAugment divides its strengths into 31


@dataclass(frozen=True)
class ImageAugmentation:
    """Changes training images and batches of them. Every kind is off by default, and kinds compose.

    `augment` changes one image: crop, flip, cutout and RandAugment, in this order. `mix` changes a batch: MixUp or
    CutMix. ML-Decoder's recipe is `cutout=0.5, rand_augment_ops=2`.

    Args:
        cutout: side of a square of one random colour, relative to the image's, in [0,1]; its centre may be anywhere in
            the image, and what lies beyond the border is cut off. 0 is off.
        rand_augment_ops: how many random operations (rotate, shear, posterize, ...) are done one after the other.
            0 is off.
        rand_augment_magnitude: their strength, 0 to 30; of no effect without operations.
        horizontal_flip: probability of a mirrored image, in [0,1]. 0 is off.
        min_crop_area: a random part of the image with at least this share of its area, in (0,1], and sides between 3:4
            and 4:3 is resized to the encoder's size, whatever the transform's `resize`. 1 is off.
        mixup: α of the distribution Beta(α, α) of the weights by which pairs of images and their targets are averaged,
            at least 0. 0 is off.
        cutmix: α of the distribution Beta(α, α) of the share of an image that is kept where a rectangle of another is
            laid over it; targets are averaged by area. At least 0, and 0 is off. If `mixup` is on too, each batch gets
            one of both, with equal chances.

    Attributes:
        augments: whether `augment` changes anything.
        mixes: whether `mix` does.
        is_off: whether neither does.

    Raises:
        ValueError: if knobs are out of range; the message names all of them.

    Source: Cutout, arXiv 1708.04552, as the official ML-Decoder's `CutoutPIL`, but that a square of an even side is
    not a pixel larger. The crop, RandAugment, arXiv 1909.13719, MixUp, arXiv 1710.09412, and CutMix, arXiv 1905.04899,
    are torchvision's; the official ML-Decoder takes its RandAugment from the package `randaugment`.

    Example:
        >>> augmentation = ImageAugmentation(cutout=0.5, rand_augment_ops=2, mixup=0.2)
        >>> image, transform = Image.new("RGB", (80, 60)), ImageTransform(image_size=32)
        >>> images = torch.stack([augmentation.augment(image, transform, seed) for seed in (1, 2)])
        >>> images, targets = augmentation.mix(images, torch.tensor([[1, 0, 1], [1, 0, -1]]), seed=3)
        >>> images.shape, targets[:, :2].tolist(), targets[:, 2].tolist()
        (torch.Size([2, 3, 32, 32]), [[1.0, 0.0], [1.0, 0.0]], [-1.0, -1.0])
    """

    cutout: float = 0.0
    rand_augment_ops: int = 0
    rand_augment_magnitude: int = 9
    horizontal_flip: float = 0.0
    min_crop_area: float = 1.0
    mixup: float = 0.0
    cutmix: float = 0.0

    def __post_init__(self) -> None:
        ops, magnitude = self.rand_augment_ops, self.rand_augment_magnitude
        rules = {
            "cutout": ("in [0, 1]", 0 <= self.cutout <= 1),
            "rand_augment_ops": ("a whole number, 0 or more", isinstance(ops, int) and ops >= 0),
            "rand_augment_magnitude": (
                f"a whole number from 0 to {_MAX_MAGNITUDE}",
                isinstance(magnitude, int) and 0 <= magnitude <= _MAX_MAGNITUDE,
            ),
            "horizontal_flip": ("in [0, 1]", 0 <= self.horizontal_flip <= 1),
            "min_crop_area": ("in (0, 1]", 0 < self.min_crop_area <= 1),
            "mixup": ("a number, 0 or more", 0 <= self.mixup < math.inf),
            "cutmix": ("a number, 0 or more", 0 <= self.cutmix < math.inf),
        }
        wrong = [
            f"{name} must be {rule}, got {getattr(self, name)}" for name, (rule, kept) in rules.items() if not kept
        ]
        if wrong:
            raise ValueError("; ".join(wrong) + f"; correct {'it' if len(wrong) == 1 else 'them'}")

    @property
    def augments(self) -> bool:
        """Whether `augment` changes anything."""
        return bool(self.cutout or self.rand_augment_ops or self.horizontal_flip or self.min_crop_area < 1)

    @property
    def mixes(self) -> bool:
        """Whether `mix` changes anything."""
        return bool(self.mixup or self.cutmix)

    @property
    def is_off(self) -> bool:
        """Whether neither `augment` nor `mix` changes anything."""
        return not (self.augments or self.mixes)

    def augment(self, image: Image.Image | Tensor, transform: ImageTransform, seed: int) -> Tensor:
        """One image, changed and then transformed; with nothing to change exactly what the transform alone gives.

        Args:
            image: of any size; stays as it is.
            transform: the encoder's. It gives the size, the interpolation and the normalisation.
            seed: at least 0 and of any size. The same image, transform and seed give the same bits in every process.

        Returns:
            (3,H,W) fp32 with H = W = transform.image_size.

        Raises:
            ValueError: if the seed is negative, or the image a tensor, which counts as transformed already.
        """
        if not self.augments:
            return transform(image)
        if isinstance(image, Tensor):
            raise ValueError(
                f"image must be a PIL image to be augmented, got a tensor {tuple(image.shape)}: a transformed image or "
                f"cached spatial embeddings; turn the image augmentation or the feature cache off"
            )
        with _seeded(seed):
            return transform(self._change(image, transform))

    def _change(self, image: Image.Image, transform: ImageTransform) -> Image.Image:
        """The picture that the transform has only to normalise: RGB, of the encoder's size."""
        from torchvision.transforms import v2

        if self.min_crop_area < 1:
            interpolation = v2.InterpolationMode(transform.interpolation)
            crop = v2.RandomResizedCrop(transform.image_size, (self.min_crop_area, 1.0), interpolation=interpolation)
            picture: Image.Image = crop(image.convert("RGB"))
        else:
            picture = transform.fit(image)
        if self.horizontal_flip:
            picture = v2.RandomHorizontalFlip(self.horizontal_flip)(picture)
        if self.cutout:
            picture = _cut_out(picture, self.cutout)
        if self.rand_augment_ops:
            picture = v2.RandAugment(self.rand_augment_ops, self.rand_augment_magnitude)(picture)
        return picture

    def mix(self, images: Tensor, targets: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        """A batch, each of its images mixed with another of it, and their targets in the same proportion.

        Args:
            images: (B,3,H,W), real, on any device; stay as they are.
            targets: (B,N) of int8 or floats, in [0,1], or −1 unknown.
            seed: at least 0 and of any size. The same batch and seed give the same result in every process.

        Returns:
            Images (B,3,H,W), and targets (B,N) fp32: averages of the two images' own by their weights, so exactly 1 for
            what is present in both; and −1 where it is unknown for either of the two.

        Raises:
            ValueError: if the seed is negative, the images are none, or the targets not theirs.
        """
        if not self.mixes:
            return images, targets.float()
        if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
            raise ValueError(
                f"images must be (B, 3, H, W) of floats to be mixed, got {tuple(images.shape)} of {images.dtype}; "
                f"turn mixup and cutmix or the feature cache off"
            )
        if targets.ndim != 2 or len(targets) != len(images):
            raise ValueError(
                f"targets must be ({len(images)}, N) as there are {len(images)} images, got {tuple(targets.shape)}; "
                f"give a row of words to each image"
            )
        # The unknowns are mixed as labels of their own: where one has come in with any weight, the target is unknown.
        labels = torch.cat([targets.clamp(min=0).float(), (targets == -1).float()], 1)  # (B,2N)
        with _seeded(seed):
            images, labels = self._draw_mix()(images, labels)  # (B,3,H,W), (B,2N)
        known, unknown = labels.chunk(2, 1)  # (B,N), (B,N)
        return images, known.masked_fill(unknown > 0, -1)  # (B,3,H,W), (B,N)

    def _draw_mix(self) -> torch.nn.Module:
        from torchvision.transforms import v2

        mixes = [kind(alpha=alpha) for kind, alpha in ((v2.MixUp, self.mixup), (v2.CutMix, self.cutmix)) if alpha]
        return mixes[int(torch.randint(len(mixes), ()))]


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Torch's CPU generator, the only one that torchvision draws from, starts at a seed, and is put back after it."""
    if seed < 0:
        raise ValueError(f"seed must be 0 or more, got {seed}; choose another")
    # The generator looks at 32 bits only: without a hash, seeds that differ in higher ones would be the same.
    (hashed,) = np.random.SeedSequence(seed).generate_state(1)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int(hashed))  # `torch.manual_seed` would seed the accelerators as well
        yield


def _cut_out(image: Image.Image, factor: float) -> Image.Image:
    """The square image itself, with a square of one colour painted into it."""
    side = int(factor * image.width + 0.5)
    left, top = (torch.randint(image.width, (2,)) - side // 2).tolist()
    red, green, blue = torch.randint(256, (3,)).tolist()
    image.paste((red, green, blue), (left, top, left + side, top + side))  # PIL leaves out what is beyond the border
    return image
