"""Door: Predictor. The vocabulary is compiled once, images are streamed, and unreadable ones come out as such."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from zsmld.calibration import Calibration
from zsmld.datasets.loader import load_batches
from zsmld.decoder import join_words
from zsmld.images import ImageSource, load_image
from zsmld.model import ZeroShotClassifier
from zsmld.text import TextEncoder, resolve_device
from zsmld.vocabulary import Vocabulary, check_descriptions, check_templates, check_words

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"})


@dataclass(frozen=True)
class Prediction:
    """The words of one image.

    Attributes:
        path: of the image; None for one that came as an array, a tensor or an open image.
        words: best first.
        scores: in [0,1], in the order of `words`.
        labels: positions of `words` in the predictor's vocabulary.
        error: why the image could not be read, or None.
    """

    path: str | None
    words: tuple[str, ...] = ()
    scores: tuple[float, ...] = ()
    labels: tuple[int, ...] = ()
    error: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """The prediction record that `zsmld predict` writes."""
        return {
            "path": self.path,
            "words": list(self.words),
            "scores": list(self.scores),
            "labels": list(self.labels),
            "error": self.error,
        }


class Predictor:
    """Scores images against any list of words. The model is put in eval mode, on the device.

    Args:
        model: a trained `ZeroShotClassifier`.
        words: the words to score; default those the model was trained with.
        device: "auto", "cpu", "cuda" or "mps".
        batch_size: images a batch.
        num_workers: processes that decode images.
        text_encoder: encodes words the model does not know; default the checkpoint's own, built when first needed.
        templates: sentences with one `{}`, or the name of a set of them; default those of the model's vocabulary.
        descriptions: sentences about some of the words, which take the templates' place for these; see
            `zsmld.vocabulary.read_descriptions`. Default those of the model's vocabulary.
        calibrated: give calibrated scores where a calibration is stored with the model; False gives sigmoids of logits.

    Raises:
        ValueError: if there are no words, a duplicate, the text encoder is not the model's, or the model's calibration
            is damaged or transductive.

    Example:
        >>> from zsmld.resources import resource_path
        >>> model = ZeroShotClassifier.from_pretrained(resource_path("data", "scenes", "model"))
        >>> predictor = Predictor(model, words=["red star", "blue ring"])
        >>> predictor.vocabulary.words
        ('red star', 'blue ring')
    """

    def __init__(
        self,
        model: ZeroShotClassifier,
        words: Iterable[str] | None = None,
        device: str = "auto",
        batch_size: int = 32,
        num_workers: int = 0,
        text_encoder: TextEncoder | None = None,
        templates: Iterable[str] | str | None = None,
        descriptions: Mapping[str, Sequence[str]] | None = None,
        calibrated: bool = True,
    ) -> None:
        self.device = resolve_device(device)
        self.model = model.to(self.device).eval()
        self.batch_size, self.num_workers = batch_size, num_workers
        self._text_encoder = text_encoder
        self._templates = None if templates is None else check_templates(templates)
        self._descriptions = None if descriptions is None else check_descriptions(descriptions)
        self._compiled: tuple[Tensor, ...] | None = None  # the query side of the vocabulary; None for class queries
        if words is None:
            if model.vocabulary is None:
                raise ValueError(
                    "words must be given, the model knows none of its own; pass words=[...], "
                    "with class queries one name for each class"
                )
            words = model.vocabulary.words
        words = check_words(words)
        if self._descriptions and not set(self._descriptions) & set(words):
            raise ValueError(
                f"descriptions must be of some of the words, got those of {list(self._descriptions)[:3]} and words "
                f"{list(words[:3])}; write the words as they stand in the file"
            )
        self.calibration = Calibration.of(model) if calibrated else None
        if self.calibration is not None and self.calibration.transductive:
            raise ValueError(
                "calibrated must be False for this model, its calibration is transductive: it needs all images at once "
                "where these are streamed; pass calibrated=False (--uncalibrated), or calibrate without "
                "transductive=True (--transductive)"
            )
        # Their logits standardise each image's; they are scored in one pass with the words.
        self._reference: tuple[Tensor, ...] | None = None
        if self.calibration is not None and self.calibration.reference_words and model.decoder.text_dim is not None:
            self._reference = self._compile(model.encode_words(self.calibration.reference_words, text_encoder))
        self.set_words(words)

    def set_words(self, words: Iterable[str]) -> None:
        """Score these words from now on, in this order."""
        words = check_words(words)
        if self.model.decoder.text_dim is None:
            self._set_classes(words)
            return
        vocabulary = self._partitioned(words)
        # Both are replaced together, at the end: a word that cannot be encoded leaves the predictor as it was.
        compiled = self._compile(self._encode(vocabulary))
        self.vocabulary, self._compiled = vocabulary, compiled

    def add_words(self, words: Iterable[str]) -> None:
        """Score more words as well, without training; the labels of the others stay as they are.

        Raises:
            ValueError: if a word is already there, or in class mode.
        """
        if self.model.decoder.text_dim is None:
            raise ValueError(
                "words cannot be added in class mode, the classes are fixed; train a head with word queries"
            )
        vocabulary = self._partitioned(self.vocabulary.add(words).words)
        new = vocabulary.select(vocabulary.words[len(self.vocabulary) :])
        fresh = self._compile(self._encode(new))
        assert self._compiled is not None  # word mode
        self.vocabulary = vocabulary
        self._compiled = join_words(self._compiled, fresh)

    def remove_words(self, words: Iterable[str]) -> None:
        """Stop scoring some words.

        Raises:
            ValueError: if one is not there, or none would be left.
        """
        leaving = {self.vocabulary.index(word) for word in check_words(words)}
        kept = [label for label in range(len(self.vocabulary)) if label not in leaving]
        if self.model.decoder.text_dim is None:
            raise ValueError("words cannot be removed in class mode, the classes are fixed; use top_k or a threshold")
        if not kept:
            raise ValueError("words must have at least one left, all would be removed; use set_words")
        assert self._compiled is not None  # word mode
        self.vocabulary = self.vocabulary.select(self.vocabulary.words[label] for label in kept)
        self._compiled = tuple(part[kept] for part in self._compiled)

    def predict(
        self,
        images: Any,
        top_k: int | None = 5,
        threshold: float | Literal["calibrated"] | None = None,
    ) -> Iterator[Prediction]:
        """The best words of each image, in order; images are read and scored a batch at a time, as they are asked for.

        Args:
            images: a path, a folder (searched below, sorted), a glob, a PIL image, an array, a transformed tensor
                (3,H,W), an open file, or a list of any of these.
            top_k: at most this many words an image; None for all.
            threshold: only words with at least this score, in [0,1]; or "calibrated", only words that reach their own
                threshold in the model's calibration, or its default for words without labelled images.

        Yields:
            A `Prediction` for each image; one that cannot be read has `error` set, and the rest still comes out.

        Raises:
            FileNotFoundError: if a path, folder or glob matches nothing.
            ValueError: on a bad top_k or threshold, calibrated thresholds without a calibration, or if the model gives
                NaN.
        """
        if top_k is not None and top_k < 1:
            raise ValueError(f"top_k must be at least 1 or None, got {top_k}; choose how many words to return")
        if isinstance(threshold, str):
            if threshold != "calibrated" or self.calibration is None:
                raise ValueError(
                    f"threshold must be a number, or 'calibrated' for a calibrated model, got {threshold!r} and "
                    f"{'a' if self.calibration else 'no'} calibration; calibrate the model, or give a number"
                )
        elif threshold is not None and not 0 <= threshold <= 1:
            raise ValueError(f"threshold must be in [0, 1], got {threshold}; scores lie between these")
        return self._predict(list_images(images), top_k, threshold)

    def _predict(
        self, sources: list[Any], top_k: int | None, threshold: float | Literal["calibrated"] | None
    ) -> Iterator[Prediction]:
        for batch_sources, logits, errors in self._stream(sources):
            scores, given = self._scores(logits), np.ones(logits.shape, bool)
            if isinstance(threshold, str):
                assert self.calibration is not None  # predict made sure
                given = self.calibration.margins(logits, self.vocabulary) >= 0
            elif threshold is not None:
                given = scores >= threshold
            done = 0
            for position, source in enumerate(batch_sources):
                path = _path(source)
                if position in errors:
                    yield Prediction(path, error=errors[position])
                    continue
                row, kept, done = scores[done], given[done], done + 1
                order = np.argsort(-row, kind="stable")
                order = order[kept[order]][:top_k]
                yield Prediction(
                    path,
                    words=tuple(self.vocabulary.words[label] for label in order),
                    scores=tuple(float(score) for score in row[order]),
                    labels=tuple(int(label) for label in order),
                )

    def score(self, images: Any) -> tuple[np.ndarray, list[Prediction]]:
        """The whole score matrix.

        Args:
            images: as in `predict`.

        Returns:
            Scores (M,N) fp32 in [0,1] of the readable images, and a `Prediction` with `error` for each other one.
        """
        rows, failed = [], []
        for sources, logits, errors in self._stream(list_images(images)):
            rows.append(self._scores(logits))
            failed += [Prediction(_path(sources[position]), error=error) for position, error in errors.items()]
        return (np.concatenate(rows) if rows else np.empty((0, len(self.vocabulary)), np.float32)), failed

    @torch.no_grad()
    def _stream(self, sources: list[Any]) -> Iterator[tuple[list[Any], np.ndarray, dict[int, str]]]:
        """Batches of sources with the logits (B,N) of the readable ones, calibrated if the scores are to be, and the
        errors of the others by position.
        """
        images = _Sources(sources, self.model.image_encoder.transform.image_size)
        batches = load_batches(
            images, self.model.image_encoder.transform, self.batch_size, num_workers=self.num_workers
        )
        for number, batch in enumerate(batches):
            start = number * self.batch_size
            part = sources[start : start + self.batch_size]
            errors = {int(row) - start: error for row, error in batch.unreadable}
            logits = np.empty((0, len(self.vocabulary)), np.float32)
            if len(batch):
                logits = self._logits(batch.inputs.to(self.device)).cpu().numpy()  # (B,N+R), R reference words
                bad = np.isnan(logits).any(1)
                if bad.any():
                    name = sources[int(batch.rows[int(bad.argmax())])]
                    raise ValueError(f"logits must be numbers, got NaN for {name}; check the checkpoint's weights")
                if self.calibration is not None:
                    logits, reference = np.split(logits, [len(self.vocabulary)], axis=1)
                    logits = self.calibration.apply(
                        logits, self.vocabulary, None if self._reference is None else reference
                    )
            yield part, logits, errors

    def _scores(self, logits: np.ndarray) -> np.ndarray:
        if self.calibration is not None:
            return self.calibration.scores(logits)
        if self.model.scores == "softmax":  # one word an image: its words share the probability
            return torch.softmax(torch.from_numpy(logits), 1).numpy()
        return torch.sigmoid(torch.from_numpy(logits)).numpy()

    def _logits(self, inputs: Tensor) -> Tensor:
        """(B,3,H,W) -> logits fp32 (B,N), or with reference words behind the others (B,N+R)."""
        spatial = self.model.image_encoder(inputs)  # (B,S,C)
        if self._compiled is None:
            return self.model.decoder(spatial).float()
        queries = self._compiled
        if self._reference is not None:
            queries = join_words(queries, self._reference)
        return self.model.decoder.decode(spatial, *queries).float()

    @torch.no_grad()
    def _compile(self, word_embeddings: Tensor) -> tuple[Tensor, ...]:
        return self.model.decoder.word_queries(word_embeddings.to(self.device))

    def _encode(self, vocabulary: Vocabulary) -> Tensor:
        new = self.model.unknown_words(vocabulary)
        if new and self._text_encoder is None and self.model.text_encoder is not None:
            self._text_encoder = self.model.build_text_encoder(str(self.device))
        return self.model.encode_words(vocabulary, self._text_encoder)

    def _partitioned(self, words: tuple[str, ...]) -> Vocabulary:
        """Words as seen or unseen as the model has them."""
        return self.model.prompted(words, self._templates, self._descriptions)

    def _set_classes(self, words: tuple[str, ...]) -> None:
        # Unnamed classes take any names.
        classes = self.model.vocabulary or self._partitioned(words)
        if words != classes.words or len(words) != self.model.decoder.num_classes:
            raise ValueError(
                f"words must be the {self.model.decoder.num_classes} classes of the model in their order, it has class "
                f"queries, got {len(words)} words; train a head with word queries to score other words"
            )
        self.vocabulary, self._compiled = classes, None

    def __repr__(self) -> str:
        return f"Predictor({self.model!r}, {len(self.vocabulary)} words, device={str(self.device)!r})"


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
        return list(found)
    if _is_image_object(images):
        return [images]
    if not isinstance(images, Iterable):
        raise TypeError(f"images must be a path, an image or a list of these, got {type(images).__name__}; see predict")
    listed: list[ImageSource | Tensor] = []
    for image in images:
        if not isinstance(image, (str, Path)) and not _is_image_object(image):
            raise TypeError(f"each image must be a path, an image, an array or an open file, got {image!r}; remove it")
        # A missing file inside a list is one unreadable image, not the end of all others.
        is_group = isinstance(image, (str, Path)) and (Path(image).is_dir() or any(c in str(image) for c in "*?["))
        listed += list_images(image) if is_group else [image]
    return listed


def _is_image_object(source: Any) -> bool:
    return isinstance(source, (Image.Image, np.ndarray, Tensor, bytes)) or hasattr(source, "read")


def _path(source: Any) -> str | None:
    return str(source) if isinstance(source, (str, Path)) else None


class _Sources:
    """The sources as a dataset; ids are positions, so that two equal paths stay two images."""

    def __init__(self, sources: list[Any], image_size: int) -> None:
        self.sources, self.tensor_shape = sources, (3, image_size, image_size)

    def __len__(self) -> int:
        return len(self.sources)

    def __getitem__(self, index: int) -> dict[str, Any]:
        source = self.sources[index]
        if isinstance(source, Tensor) and tuple(source.shape) != self.tensor_shape:
            raise ValueError(
                f"an image tensor must be transformed, {self.tensor_shape}, got {tuple(source.shape)}; pass it through "
                f"model.image_encoder.transform"
            )
        image = source.float() if isinstance(source, Tensor) else load_image(source)
        return {"image": image, "targets": np.empty(0, np.int8), "id": str(index)}
