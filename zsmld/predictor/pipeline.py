"""The call that users of Hugging Face's zero-shot-image-classification pipeline know, with multi-label scores."""

import re
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any, overload

import numpy as np
from PIL import Image
from torch import Tensor

from zsmld.baseline import create_scorer
from zsmld.model import ZeroShotClassifier
from zsmld.predictor import Prediction, Predictor
from zsmld.vocabulary import check_templates, check_words

DEFAULT_MODEL = "clip:ViT-B-16/openai"
_IMAGES = (Image.Image, np.ndarray, Tensor, bytes)


class ImagePipeline:
    """A model that is loaded once, as a function of images and labels; made by `pipeline`.

    Args:
        model: a `ZeroShotClassifier`; put in eval mode, on the device.
        device: "auto", "cpu", "cuda" or "mps".
        batch_size: images a batch.
    """

    def __init__(self, model: ZeroShotClassifier, device: str = "auto", batch_size: int = 32) -> None:
        self.model, self._device, self._batch_size = model, device, batch_size
        # The labels of the last call stay compiled, and the text encoder loaded, for the next.
        self._predictor: Predictor | None = None
        self._templates: tuple[str, ...] | None = None

    def __call__(
        self,
        image: Any,
        candidate_labels: Iterable[str],
        hypothesis_template: str | None = None,
        top_k: int | None = None,
    ) -> list[Any]:
        """Score labels in one image, or in each of a list; arguments, result and errors as in `pipeline`."""
        if image is None or candidate_labels is None:
            missing = "image" if image is None else "candidate_labels"
            raise ValueError(f"{missing} must be given to score labels, got None; give an image and a list of labels")
        labels = check_words(candidate_labels, "candidate_labels")
        several = isinstance(image, (list, tuple))
        for one in image if several else [image]:
            _check_image(one)
        found = list(self._predictor_for(labels, hypothesis_template).predict(image, top_k=top_k))
        if not several:
            if found[0].error is not None:
                raise ValueError(found[0].error)
            return _entries(found[0])
        for position, prediction in enumerate(found):
            if prediction.error is not None:
                warnings.warn(f"no labels for image {position}: {prediction.error}", stacklevel=2)
        return [_entries(prediction) for prediction in found]

    def _predictor_for(self, labels: tuple[str, ...], hypothesis_template: str | None) -> Predictor:
        templates = None if hypothesis_template is None else check_templates([hypothesis_template])
        if self._predictor is None or templates != self._templates:
            self._predictor = Predictor(
                self.model, labels, device=self._device, batch_size=self._batch_size, templates=templates
            )
            self._templates = templates
        elif labels != self._predictor.vocabulary.words:
            self._predictor.set_words(labels)
        return self._predictor

    def __repr__(self) -> str:
        return f"ImagePipeline({self.model!r})"


@overload
def pipeline(
    image: None = None,
    candidate_labels: None = None,
    *,
    model: str | Path | ZeroShotClassifier = ...,
    device: str = ...,
    batch_size: int = ...,
) -> ImagePipeline:
    """A function, for more than one call."""


@overload
def pipeline(
    image: Any,
    candidate_labels: Iterable[str],
    *,
    model: str | Path | ZeroShotClassifier = ...,
    hypothesis_template: str | None = ...,
    top_k: int | None = ...,
    device: str = ...,
    batch_size: int = ...,
) -> list[Any]:
    """The answer."""


def pipeline(
    image: Any = None,
    candidate_labels: Iterable[str] | None = None,
    *,
    model: str | Path | ZeroShotClassifier = DEFAULT_MODEL,
    hypothesis_template: str | None = None,
    top_k: int | None = None,
    device: str = "auto",
    batch_size: int = 32,
) -> list[Any] | ImagePipeline:
    """Score candidate labels in an image, each on its own: several may be present, or none.

    With an image, the answer; without, a function that takes `(image, candidate_labels, hypothesis_template, top_k)`
    and has the model loaded, for more than one call.

    Args:
        image: a path, a PIL image, an array (H,W,3) of uint8, bytes or an open file; or a list of these.
        candidate_labels: the words to score.
        model: a folder, a Hub id, `clip:ARCH/PRETRAINED` or `conse:timm:NAME` (see `create_scorer`), or a model that is
            loaded already. The default scores photos without training; its weights (600 MB) are downloaded once.
        hypothesis_template: sentence with one `{}` for the label; default those of the model.
        top_k: at most this many labels an image; None for all.
        device: "auto", "cpu", "cuda" or "mps".
        batch_size: images a batch.

    Returns:
        For one image `[{"label": str, "score": float}, …]`, best first, scores in [0,1] that need not sum to one; for a
        list of images one such list for each, in order. An image of a list that cannot be read has an empty list, and
        a warning says why.

    Raises:
        FileNotFoundError: if the model, or a single image, is not there.
        ValueError: if a single image cannot be read, or labels or template are not as above.
        TypeError: if an image is none of these, or the labels are one text.

    Source: names and result are those of transformers' `ZeroShotImageClassificationPipeline`, whose scores are a
    softmax over the labels; here each is the score of its own label. Its `timeout` is of downloads, which there are
    none of.

    Example:
        >>> from zsmld import build_dataset
        >>> image = build_dataset("scenes", split="test", num_images=1)[0]["image"]
        >>> classifier = pipeline(model="scenes", device="cpu")
        >>> [sorted(entry) for entry in classifier(image, candidate_labels=["red star", "blue ring"])]
        [['label', 'score'], ['label', 'score']]
    """
    if (image is None) != (candidate_labels is None):
        given, missing = ("image", "candidate_labels") if image is not None else ("candidate_labels", "image")
        raise ValueError(
            f"{missing} must be given with {given}, got None; give both, or neither for a function to call later"
        )
    if image is None and (hypothesis_template is not None or top_k is not None):
        raise ValueError(
            "hypothesis_template and top_k must come with an image, got none; give them when the function is called"
        )
    classifier = ImagePipeline(_loaded(model), device, batch_size)
    if image is None or candidate_labels is None:
        return classifier
    return classifier(image, candidate_labels, hypothesis_template, top_k)


def _loaded(model: str | Path | ZeroShotClassifier) -> ZeroShotClassifier:
    if isinstance(model, ZeroShotClassifier):
        return model
    if not isinstance(model, (str, Path)):
        raise TypeError(
            f"model must be a folder, a name or a ZeroShotClassifier, got {type(model).__name__}; see pipeline for them"
        )
    if str(model).startswith(("clip:", "conse:")):
        return create_scorer(str(model))
    return ZeroShotClassifier.from_pretrained(model)


def _check_image(image: Any) -> None:
    """What would stand for several images, or for one on the network, is no image."""
    if isinstance(image, str) and re.match(r"[a-z][a-z0-9+.-]+:(//|image/)", image, re.IGNORECASE):
        raise ValueError(f"image must be on this machine, got the address {image:.80}; download it and give the path")
    is_path = isinstance(image, (str, Path))
    if is_path and not Path(image).is_file() and (Path(image).is_dir() or any(c in str(image) for c in "*?[")):
        raise ValueError(f"image must be a single file, got {str(image)!r}; list the files, or use Predictor")
    if not is_path and not hasattr(image, "read") and not isinstance(image, _IMAGES):
        hint = "write list(image)" if isinstance(image, Iterable) else "give a path, a PIL image, an array or bytes"
        raise TypeError(f"image must be an image or a list of images, got {type(image).__name__}; {hint}")


def _entries(prediction: Prediction) -> list[dict[str, Any]]:
    return [{"label": word, "score": score} for word, score in zip(prediction.words, prediction.scores, strict=True)]
