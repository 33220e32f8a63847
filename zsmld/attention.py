"""Where the head looked: maps of its cross-attention for each word, in the image's own coordinates, and overlays."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Literal, Protocol, cast

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from zsmld.decoder import DecoderLayer, MLDecoder, TrainingFreeScorer
from zsmld.display import facts, panel
from zsmld.display import image as image_in_page
from zsmld.images import ImageSource, load_image
from zsmld.images.lettering import Lettering
from zsmld.images.transform import ImageTransform
from zsmld.model import ZeroShotClassifier
from zsmld.text import TextEncoder
from zsmld.vocabulary import Vocabulary, check_words

Heads = Literal["mean", "max", "each"] | int

_PAIRS = 2048  # of an image and a word that are decoded at once
_NUM_SHOWN = 11  # words in a notebook: three rows with the image


class HasModel(Protocol):
    """What `explain` needs of a `Predictor`."""

    model: ZeroShotClassifier

    @property
    def vocabulary(self) -> Vocabulary:
        """Its words, with the templates and descriptions it scores them by."""


@dataclass(frozen=True, eq=False)
class Attention:
    """Where the head looked in one image, for each of N words.

    Attributes:
        image: PIL RGB, upright, in its own size.
        words: in the order asked for.
        places: (N,rows,columns) fp32, the share of each word's attention that each place of the encoder's map received;
            each word's sum to one.
        box: (left, top, right, bottom) of the part of the image that the encoder saw and `places` divides, in pixels.
        global_shares: (N,) fp32, what the encoder's global token received besides: a share of all attention, which
            `places` leaves out. Zero without one.
    """

    image: Image.Image
    words: tuple[str, ...]
    places: np.ndarray
    box: tuple[float, float, float, float]
    global_shares: np.ndarray

    def maps(self, words: Iterable[str] | None = None) -> np.ndarray:
        """Maps in the image's own size.

        Args:
            words: some of the words; default all. Each takes 4·H·W bytes.

        Returns:
            (N,H,W) fp32: at the centre of a place its share, in between smoothly interpolated, never negative; zero
            where the encoder saw nothing, outside `box`.
        """
        wanted = self.words if words is None else check_words(words)
        chosen = self.places[[self._position(word) for word in wanted]]
        return _resampled(chosen, self.box, self.image.size)

    def overlay(self, word: str, strength: float = 0.65) -> Image.Image:
        """The image, warm where the head looked for a word; see the function `overlay`."""
        return _blended(self.image, self.places[self._position(word)], self.box, strength)

    def picture(self, tile_size: int = 320, columns: int = 4) -> Image.Image:
        """The image and an overlay for each word, in rows of tiles.

        Captions say beside the word how many times an even share its brightest place has: at 1.5× the map is almost
        flat, though the overlay shows all of its range.

        Args:
            tile_size: longer side of a tile's picture in pixels.
            columns: tiles in a row, at most.

        Returns:
            PIL RGB.
        """
        scale = tile_size / max(self.image.size)
        size = (max(1, round(self.image.width * scale)), max(1, round(self.image.height * scale)))
        small = Attention(
            self.image.resize(size, Image.Resampling.LANCZOS),
            self.words,
            self.places,
            tuple(edge * size[i % 2] / self.image.size[i % 2] for i, edge in enumerate(self.box)),  # type: ignore[arg-type]
            self.global_shares,
        )
        letters = Lettering(max(13, tile_size // 22))
        line, gap = round(1.7 * letters.size), letters.size // 2
        width, height = max(size[0], 8 * letters.size), size[1] + line
        columns = min(columns, len(self.words) + 1)
        rows = math.ceil((len(self.words) + 1) / columns)
        sheet = Image.new("RGB", (columns * (width + gap) - gap, rows * (height + gap) - gap), "white")
        canvas = ImageDraw.Draw(sheet)
        peaks = self.places.max((1, 2)) * self.places[0].size
        captions = (f"{word}  {peak:.1f}×" for word, peak in zip(self.words, peaks, strict=True))
        for number, caption in enumerate(("image", *captions)):
            x, y = number % columns * (width + gap), number // columns * (height + gap)
            sheet.paste(small.overlay(self.words[number - 1]) if number else small.image, (x, y))
            letters.draw(
                canvas, x, y + size[1] + round(1.15 * letters.size), letters.shorten(caption, width), "#222222"
            )
        return sheet

    def _position(self, word: str) -> int:
        if word not in self.words:
            raise ValueError(f"word must be one of {list(self.words[:5])}, got {word!r}; ask explain for it as well")
        return self.words.index(word)

    def __repr__(self) -> str:
        rows, columns = self.places.shape[1:]
        return f"Attention({len(self.words)} words, {rows}x{columns} places, {self.image.width}x{self.image.height}px)"

    def _repr_html_(self) -> str:
        shown = replace(self, words=self.words[:_NUM_SHOWN], places=self.places[:_NUM_SHOWN])
        left_out = len(self.words) - _NUM_SHOWN
        return panel(
            "Where the head looked",
            facts("beside each word: how many times an even share its brightest place has"),
            image_in_page(shown.picture(tile_size=200), ", ".join(shown.words)),
            facts(f"and {left_out} more words, see overlay") if left_out > 0 else "",
        )


def explain(
    model: ZeroShotClassifier | HasModel,
    image: ImageSource,
    words: Iterable[str] | Vocabulary,
    heads: Heads = "mean",
    layer: int = -1,
    text_encoder: TextEncoder | None = None,
) -> Attention:
    """Where the head looked in an image, for each of some words.

    Attention says where a word's evidence was read, not how it was judged: a word with a low score has a map as well.

    Args:
        model: a `ZeroShotClassifier` in eval mode, or a `Predictor`, whose templates and descriptions then hold.
        image: as `load_image` takes it: a path, a PIL image, an array, an open file.
        words: any words; in class mode some of the classes, and a class's map is that of its group query.
        heads: "mean" or "max" over the attention heads, or the number of one head.
        layer: of the decoder, the last by default.
        text_encoder: encodes words the model does not know; default the checkpoint's own.

    Returns:
        The `Attention`: places, maps in the image's own coordinates, overlays.

    Raises:
        FileNotFoundError: if there is no such image.
        ValueError: if the image cannot be read, the model is in training mode, there are no words, a class is unknown,
            or there is no such head or layer.

    Example:
        >>> model = ZeroShotClassifier.from_pretrained("scenes")
        >>> found = explain(model, Image.new("RGB", (90, 60)), ["red star", "blue ring"])
        >>> found, found.maps().shape
        (Attention(2 words, 8x8 places, 90x60px), (2, 60, 90))
    """
    own = None if isinstance(model, ZeroShotClassifier) else model.vocabulary  # a Predictor's, as it scores
    model = model if isinstance(model, ZeroShotClassifier) else model.model
    if model.training:
        raise ValueError("model must be in eval mode to be explained, it is in training mode; call model.eval()")
    picture, names = load_image(image), check_words(words.words if isinstance(words, Vocabulary) else words)
    embeddings, rows = _queries(model, names, words if isinstance(words, Vocabulary) else own, text_encoder)
    device = next(model.parameters()).device
    inputs = model.image_encoder.transform(picture)[None].to(device)  # (1,3,H,W)
    if embeddings is not None:
        embeddings = embeddings.to(device)
    if heads == "each":
        raise ValueError("heads must be 'mean', 'max' or the number of one head, got 'each'; use attention_maps")
    places, global_shares = _places(model, inputs, embeddings, heads, layer)  # (1,N,rows,columns), (1,N)
    return Attention(
        picture,
        names,
        places[0, rows].cpu().numpy(),
        _seen_box(model.image_encoder.transform, picture.size),
        global_shares[0, rows].cpu().numpy(),
    )


def attention_maps(
    model: ZeroShotClassifier,
    images: Tensor,
    word_embeddings: Tensor | None = None,
    heads: Heads = "mean",
    layer: int = -1,
) -> Tensor:
    """The share of each word's attention that each place of the encoder's map received.

    They are the weights that the attention itself used, taken on the way. For a training-free model, which has no
    attention, they are the softmax over places of the word's similarities; heads and layer then mean nothing.

    Args:
        model: in eval mode.
        images: (B,3,H,W), transformed.
        word_embeddings: (N,T) or (N,K,T); None in class mode, where the N maps are those of the group queries.
        heads: "mean" or "max" over the attention heads, the number of one head, or "each" for all of them.
        layer: of the decoder, the last by default.

    Returns:
        (B,N,rows,columns) fp32, or (B,H,N,rows,columns) for each head; each map sums to one, after the share of a
        global token, which is no place, is left out. The words are decoded a part at a time: beyond the result memory
        does not grow with N.

    Raises:
        ValueError: if there is no such head or layer, or the embeddings do not fit.
    """
    return _places(model, images, word_embeddings, heads, layer)[0]


@torch.no_grad()
def _places(
    model: ZeroShotClassifier, images: Tensor, word_embeddings: Tensor | None, heads: Heads, layer: int
) -> tuple[Tensor, Tensor]:
    """Maps (B,[H,]N,rows,columns), and the shares (B,[H,]N) of a global token."""
    decoder, encoder = model.decoder, model.image_encoder
    spatial = encoder(images)  # (B,S,C)
    parts, shares = [], []
    for weights in _weights(decoder, spatial, word_embeddings, layer):  # (B,H,n,S) of some words
        # A training-free scorer's come without the global token already.
        skipped = weights.shape[3] - math.prod(encoder.grid_size)
        reduced = _over_heads(weights, heads)  # (B,[H,]n,S)
        local, share = reduced[..., skipped:], reduced[..., :skipped].sum(-1)
        if skipped or heads == "max":
            local = local / local.sum(-1, keepdim=True).clamp(min=1e-12)
        parts.append(local)
        shares.append(share)
    maps = torch.cat(parts, -2)  # (B,[H,]N,S)
    return maps.unflatten(-1, encoder.grid_size), torch.cat(shares, -1)


def _weights(
    decoder: MLDecoder | TrainingFreeScorer, spatial: Tensor, word_embeddings: Tensor | None, layer: int
) -> Iterator[Tensor]:
    """Attention weights (B,H,n,S) fp32, n words at a time."""
    if isinstance(decoder, MLDecoder) and not -len(decoder.layers) <= layer < len(decoder.layers):
        raise ValueError(f"layer must be one of the decoder's {len(decoder.layers)}, from 0, got {layer}; choose one")
    step = max(1, _PAIRS // max(1, len(spatial)))
    for part in (None,) if word_embeddings is None else word_embeddings.split(step):
        if isinstance(decoder, TrainingFreeScorer):
            yield decoder.attention(spatial, part).float()
            continue
        chosen = cast(DecoderLayer, decoder.layers[layer])
        caught: list[tuple[Tensor, Tensor]] = []
        # The layer's own inputs, on their way through the whole decoder: no second account of how they come about.
        hook = chosen.register_forward_pre_hook(lambda _, inputs, caught=caught: caught.append(inputs))
        try:
            decoder(spatial, part)
        finally:
            hook.remove()
        ((queries, memory),) = caught
        yield chosen.attention_weights(chosen.normalize_queries(queries), memory).float()


def _over_heads(weights: Tensor, heads: Heads) -> Tensor:
    """(B,H,N,S) -> (B,N,S), or as it is for "each"."""
    num_heads = weights.shape[1]
    if heads == "each":
        return weights
    if heads == "mean":
        return weights.mean(1)
    if heads == "max":
        return weights.amax(1)
    if not isinstance(heads, int) or not -num_heads <= heads < num_heads:
        raise ValueError(
            f"heads must be 'mean', 'max', 'each' or a number below {num_heads}, got {heads!r}; choose one of these"
        )
    return weights[:, heads]


def _queries(
    model: ZeroShotClassifier,
    words: tuple[str, ...],
    vocabulary: Vocabulary | None,
    text_encoder: TextEncoder | None,
) -> tuple[Tensor | None, Tensor]:
    """Word embeddings (N,T) and their rows; in class mode None, and each class's group query."""
    if model.decoder.text_dim is not None:
        if vocabulary is None:
            return model.encode_words(words, text_encoder), torch.arange(len(words))
        new = [word for word in words if word not in vocabulary]
        vocabulary = (vocabulary.add(new) if new else vocabulary).select(words)
        return model.encode_words(vocabulary, text_encoder), torch.arange(len(words))
    classes = vocabulary or model.vocabulary
    if classes is None:
        raise ValueError("words must be named by the model in class mode, it names none; use attention_maps")
    assert isinstance(model.decoder, MLDecoder) and model.decoder.num_classes is not None  # class mode
    per_group = math.ceil(model.decoder.num_classes / len(model.decoder.group_queries))
    return None, torch.from_numpy(classes.labels(words) // per_group)


# ------------------------------------------------------------------------------------------------------------ pictures


def overlay(image: Image.Image, attention_map: np.ndarray | Tensor, strength: float = 0.65) -> Image.Image:
    """Lay one attention map over an image.

    Args:
        image: PIL image of any size.
        attention_map: (rows,columns), over the whole image; only its shape counts, from its lowest place to its
            highest.
        strength: opacity of the brightest place, in [0,1].

    Returns:
        PIL RGB of the image's size: warm where the head looked, dimmed elsewhere.

    Raises:
        ValueError: if the map is not two-dimensional.
    """
    heat = np.asarray(attention_map, np.float32)
    if heat.ndim != 2:
        raise ValueError(f"attention_map must be (rows, columns), got {heat.shape}; pass the map of one word")
    return _blended(image, heat, (0, 0, *image.size), strength)


def _blended(image: Image.Image, places: np.ndarray, box: tuple[float, ...], strength: float) -> Image.Image:
    from matplotlib import colormaps

    heat = (places - places.min()) / max(float(places.max() - places.min()), 1e-12)  # (rows,columns)
    heat = _resampled(heat[None], box, image.size)[0].clip(0, 1)[:, :, None]  # (H,W,1)
    # Without the black end of the colours, which would put a dark ring around each bright place; squared, so that the
    # many middling places of a map that is almost flat do not veil the image.
    colours = colormaps["inferno"](0.35 + 0.65 * heat[:, :, 0])[:, :, :3] * 255  # (H,W,3)
    heat = heat**2
    pixels = np.asarray(image.convert("RGB"), np.float32) * (0.6 + 0.4 * heat)
    return Image.fromarray((pixels * (1 - strength * heat) + colours * strength * heat).clip(0, 255).astype(np.uint8))


def _seen_box(transform: ImageTransform, size: tuple[int, int]) -> tuple[float, float, float, float]:
    """The part of an image of this size, (width, height), that the transform shows to the encoder."""
    width, height = size
    if transform.resize == "squash":
        return 0.0, 0.0, float(width), float(height)
    side = min(size)
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side


def _resampled(places: np.ndarray, box: tuple[float, ...], size: tuple[int, int]) -> np.ndarray:
    """Places (N,rows,columns) of a box in an image of this size, (width, height) -> (N,H,W) fp32, zero outside."""
    left, top, right, bottom = box
    down = _interpolation(places.shape[1], top, bottom, size[1])  # (H,rows)
    across = _interpolation(places.shape[2], left, right, size[0])  # (W,columns)
    return (down @ places.astype(np.float32) @ across.T).clip(min=0)


def _interpolation(num_places: int, start: float, end: float, num_pixels: int) -> np.ndarray:
    """Weights (pixels,places) of cubic interpolation between the centres of places that divide [start, end) evenly.

    Pixels whose centre lies outside have none; beyond the first and the last centre, these places go on.
    """
    at = (np.arange(num_pixels) + 0.5 - start) / (end - start) * num_places  # 0 to num_places inside
    inside, at = (at >= 0) & (at < num_places), (at - 0.5).clip(0, num_places - 1)
    before = np.floor(at)
    weights = np.zeros((num_pixels, num_places), np.float32)
    for neighbour in range(-1, 3):
        distance = np.abs(at - before - neighbour)
        near = (1.5 * distance - 2.5) * distance**2 + 1  # Catmull and Rom's cubic, which meets every place's value
        far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
        place = (before + neighbour).clip(0, num_places - 1).astype(int)
        np.add.at(weights, (np.arange(num_pixels), place), np.where(distance <= 1, near, far) * inside)
    return weights
