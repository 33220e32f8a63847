"""Generated scenes: coloured shapes on textured backgrounds, with clutter, overlap, blur and noise.

The embedded data of zsmld: it needs no download, has exact labels, and asks a zero-shot question. Every word is a
colour and a shape ("red star"). Every colour and every shape is among the seen words, but some combinations never are:
a model that scores them has understood the words and not memorised them.
"""

import json
import math
from functools import cache
from typing import Any, Literal

import numpy as np
from PIL import Image, ImageDraw, ImageFilter
from scipy.sparse import csr_matrix

from zsmld.resources import resource_path
from zsmld.vocabulary import Vocabulary

SceneSplit = Literal["train", "val", "test"]

# Centre of each colour; every object is jittered around it.
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 30, 34),
    "orange": (245, 134, 20),
    "yellow": (246, 222, 38),
    "green": (38, 150, 54),
    "blue": (32, 72, 204),
    "purple": (126, 40, 166),
    "pink": (246, 132, 184),
    "brown": (112, 66, 30),
    "white": (246, 246, 244),
    "black": (18, 18, 20),
}
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring", "heart", "crescent", "arrow", "diamond")

_SUPERSAMPLE = 2  # shapes are drawn this much larger and averaged down: smooth edges at little cost
_SPLITS: dict[str, int] = {"train": 0, "val": 1, "test": 2}  # part of each image's seed, so splits never share one
_DEFAULT_NUM_IMAGES: dict[str, int] = {"train": 100_000, "val": 1_000, "test": 2_000}


class Scenes:
    """A dataset of generated scenes; image i is a pure function of (seed, split, i) and is drawn when asked for.

    Train and val scenes hold seen words only; test scenes hold all words. One to four objects a scene.

    Args:
        split: "train", "val" or "test".
        num_images: scenes in this split; default 100,000, 1,000 and 2,000.
        image_size: side in pixels.
        seed: of the whole dataset.

    Attributes:
        vocabulary: 100 words, 80 seen and 20 unseen.
        targets: (num_images, 100) CSR of int8; a missing entry means absent (`missing` = 0).

    Raises:
        ValueError: for an unknown split, or sizes below their minimum.

    Example:
        >>> scene = Scenes(split="test", num_images=3)[0]
        >>> scene["image"].size, scene["targets"].shape, scene["id"]
        ((64, 64), (100,), 'scenes/0/test/0')
    """

    name = "scenes"
    missing = 0

    def __init__(
        self, split: SceneSplit = "train", num_images: int | None = None, image_size: int = 64, seed: int = 0
    ) -> None:
        if split not in _SPLITS:
            raise ValueError(
                f"split must be one of {list(_SPLITS)}, got {split!r}; scenes are generated in these three"
            )
        num_images = _DEFAULT_NUM_IMAGES[split] if num_images is None else num_images
        if num_images < 1 or image_size < 32:
            raise ValueError(
                f"num_images must be ≥ 1 and image_size ≥ 32, got {num_images} and {image_size}; "
                f"smaller shapes cannot be told apart"
            )
        self.split, self.image_size, self.seed = split, image_size, seed
        partition = json.loads(resource_path("data", "scenes", "partition.json").read_text())
        self.vocabulary = Vocabulary(partition["seen"] + partition["unseen"], seen=partition["seen"])
        num_words = len(self.vocabulary) if split == "test" else len(partition["seen"])
        # One row of random numbers an image, so that a scene does not depend on how many there are.
        drawn = np.random.default_rng([seed, _SPLITS[split]]).random((num_images, 1 + num_words), dtype=np.float32)
        num_objects = 1 + (4 * drawn[:, 0]).astype(int)
        present = drawn[:, 1:].argpartition(range(4), axis=1)[:, :4]  # 4 distinct words
        rows = np.repeat(np.arange(num_images), num_objects)
        columns = present[np.arange(4) < num_objects[:, None]]
        self.targets = csr_matrix(
            (np.ones(len(rows), np.int8), (rows, columns)), shape=(num_images, len(self.vocabulary)), dtype=np.int8
        )

    @property
    def captions(self) -> dict[str, list[str]]:
        """Texts for caption queries: each colour and each shape alone, and the seen words that make it true."""
        parts = (*COLOURS, *SHAPES)
        return {part: [word for word in self.vocabulary.seen if part in word.split()] for part in parts}

    def __len__(self) -> int:
        return int(self.targets.shape[0])

    def __repr__(self) -> str:
        return f"Scenes(split={self.split!r}, num_images={len(self)}, words={len(self.vocabulary)}, seed={self.seed})"

    def __getitem__(self, index: int) -> dict[str, Any]:
        """{"image": PIL RGB, "targets": (100,) int8, "id": str}."""
        if not 0 <= index < len(self):
            raise IndexError(f"index must be in [0, {len(self)}), got {index}")
        row = self.targets[index]
        words = [self.vocabulary.words[label] for label in row.indices]
        image = draw_scene(words, self.image_size, np.random.default_rng([self.seed, _SPLITS[self.split], index]))
        return {
            "image": image,
            "targets": row.toarray()[0],
            "id": f"{self.name}/{self.seed}/{self.split}/{index}",
        }


def draw_scene(words: list[str], image_size: int, rng: np.random.Generator) -> Image.Image:
    """Draw one scene with one object for each word, for instance `draw_scene(["red star"], 64, rng)`.

    Args:
        words: "colour shape", from `COLOURS` and `SHAPES`; at most about six fit.
        image_size: side in pixels.
        rng: decides everything else.

    Returns:
        RGB image (image_size, image_size).
    """
    side = image_size * _SUPERSAMPLE
    image = _background(side, rng)
    _clutter(image, rng)
    placed: list[tuple[float, float, float]] = []
    for word in (words[i] for i in rng.permutation(len(words))):
        colour, shape = word.split(" ")
        x, y, radius = _free_place(placed, rng)
        placed.append((x, y, radius))
        _draw_object(image, colour, shape, x * side, y * side, radius * side, rng)
    image = image.reduce(_SUPERSAMPLE)
    image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0, 0.012) * image_size))
    pixels = np.asarray(image, np.float32)
    pixels = (pixels - 128) * rng.uniform(0.85, 1.15) + 128 + rng.uniform(-14, 14)  # contrast, brightness
    pixels += rng.standard_normal(pixels.shape, dtype=np.float32) * rng.uniform(0, 9)  # sensor noise
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def _background(side: int, rng: np.random.Generator) -> Image.Image:
    """A muted base colour with noise at a random scale, so that there is texture but no clean object colour."""
    base = rng.uniform(96, 176, 3) * 0.4 + rng.uniform(96, 176) * 0.6
    cells = int(rng.integers(3, 20))
    grid = base + rng.standard_normal((cells, cells, 3)) * rng.uniform(4, 20)
    if rng.random() < 0.3:  # stripes across, as boards or cloth
        grid += (np.arange(cells) % 2)[:, None, None] * rng.uniform(-30, 30)
    coarse = Image.fromarray(grid.clip(0, 255).astype(np.uint8))
    if rng.random() < 0.5:
        coarse = coarse.transpose(Image.Transpose.ROTATE_90)
    return coarse.resize((side, side), Image.Resampling.BICUBIC)


def _clutter(image: Image.Image, rng: np.random.Generator) -> None:
    """Scratches and specks of any colour, too thin or small to be a shape."""
    draw, side = ImageDraw.Draw(image), image.width
    for _ in range(int(rng.integers(0, 9))):
        x, y, dx, dy = rng.uniform(0, side, 4)
        fill = tuple(int(v) for v in rng.integers(20, 236, 3))
        if rng.random() < 0.5:
            draw.line((x, y, x + (dx - side / 2) * 0.5, y + (dy - side / 2) * 0.5), fill=fill, width=2)
        else:
            radius = side * rng.uniform(0.008, 0.022)
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=fill)


def _free_place(placed: list[tuple[float, float, float]], rng: np.random.Generator) -> tuple[float, float, float]:
    """Centre and radius as fractions of the side: the least crowded of a few tries, so objects overlap only partly."""
    best, best_gap = (0.5, 0.5, 0.15), -math.inf
    for _ in range(12):
        radius = rng.uniform(0.14, 0.24)
        x, y = rng.uniform(radius * 0.85, 1 - radius * 0.85, 2)
        gap = min((math.hypot(x - px, y - py) - 0.9 * (radius + pr) for px, py, pr in placed), default=0.0)
        if gap > best_gap:
            best, best_gap = (x, y, radius), gap
        if best_gap >= 0:
            break
    return best


def _draw_object(
    image: Image.Image, colour: str, shape: str, x: float, y: float, radius: float, rng: np.random.Generator
) -> None:
    """Paste a shape: a jittered colour, a little rotation and squeeze, light from one side."""
    angle, squeeze = rng.uniform(-0.35, 0.35), rng.uniform(0.85, 1.15)
    cos, sin = math.cos(angle), math.sin(angle)
    turn = np.array([[cos, -sin], [sin, cos]]) * radius
    size = int(2.6 * radius)
    mask = Image.new("L", (size, size))
    draw = ImageDraw.Draw(mask)
    for outline, fill in _outlines(shape):
        points = (outline * (squeeze, 1 / squeeze)) @ turn.T + size / 2
        draw.polygon([tuple(p) for p in points.tolist()], fill=fill)
    rgb = np.array(COLOURS[colour]) + rng.normal(0, 9, 3)
    light = np.linspace(-1, 1, 4) * rng.uniform(0, 22)  # brighter on one side, as a lit object
    ramp = (rgb + light[:, None, None] + rng.normal(0, 4, (4, 4, 1))).clip(0, 255).astype(np.uint8)
    paint = Image.fromarray(ramp).resize((size, size), Image.Resampling.BILINEAR)
    image.paste(paint, (round(x - size / 2), round(y - size / 2)), mask)


@cache
def _outlines(shape: str) -> tuple[tuple[np.ndarray, int], ...]:
    """Polygons of a shape in the unit disc, y downwards, each (P,2) with 255 to fill or 0 to cut out."""

    def around(num_points: int, radii: float | tuple[float, ...] = 1.0, start: float = -math.pi / 2) -> np.ndarray:
        angles = start + np.arange(num_points) * 2 * math.pi / num_points
        radius = np.resize(np.asarray(radii, float), num_points)[:, None]
        return np.stack([np.cos(angles), np.sin(angles)], 1) * radius

    if shape == "circle":
        return ((around(32, 0.92), 255),)
    if shape == "square":
        return ((around(4, 1.12, math.pi / 4), 255),)
    if shape == "triangle":
        return ((around(3, 1.15) + (0, 0.2), 255),)
    if shape == "star":
        return ((around(10, (1.15, 0.46)), 255),)
    if shape == "cross":
        w = 0.34
        corners = [(-w, -1), (w, -1), (w, -w), (1, -w), (1, w), (w, w), (w, 1), (-w, 1), (-w, w), (-1, w), (-1, -w)]
        return ((np.array([*corners, (-w, -w)]), 255),)
    if shape == "ring":
        return ((around(32, 1.0), 255), (around(32, 0.55), 0))
    if shape == "heart":
        t = np.linspace(0, 2 * math.pi, 40, endpoint=False)
        x = 16 * np.sin(t) ** 3
        y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))
        return ((np.stack([x, y - 2], 1) / 15.5, 255),)
    if shape == "crescent":
        return ((around(32, 1.05), 255), (around(32, 0.85) + (0.5, 0), 0))
    if shape == "arrow":
        points = [(1.15, 0), (0.15, -0.85), (0.15, -0.32), (-1.1, -0.32), (-1.1, 0.32), (0.15, 0.32), (0.15, 0.85)]
        return ((np.array(points), 255),)
    if shape == "diamond":
        return ((np.array([(0, -1.2), (0.68, 0), (0, 1.2), (-0.68, 0)]), 255),)
    raise ValueError(f"shape must be one of {list(SHAPES)}, got {shape!r}")
