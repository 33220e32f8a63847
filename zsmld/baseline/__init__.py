"""Training-free scorers by name: what public weights know, compared with any words, with no training at all.

    clip:ARCH/PRETRAINED    an open_clip model, e.g. clip:ViT-B-16/openai; also clip:hf-hub:NAME, clip:ARCH/FILE or
                            clip:FOLDER
    conse:timm:NAME         a timm classifier and the names of its classes, e.g. conse:timm:resnet50.a1_in1k

`create_scorer` makes a `ZeroShotClassifier` of one, which `Predictor` and `Evaluator` take as any other; `build_prior`
makes the scorer alone, for an image encoder that is there already.

Letters used in the shapes: B images, S spatial positions, C encoder channels, T text width, K classes, N words.

Source: CLIP: Radford et al., arXiv 2103.00020, section 3.1; its positions: MaskCLIP, arXiv 2112.01071. ConSE: Norouzi
et al., arXiv 1312.5650. Compound prompts and standardisation: SPARC, Miller et al., arXiv 2502.16911.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor

from zsmld.baseline.classifier import (
    ClassNames,
    class_embeddings,
    classifier_model,
    last_layer,
    read_class_names,
    read_classifier,
)
from zsmld.baseline.prompts import compound_prompts
from zsmld.datasets import Dataset
from zsmld.datasets.loader import load_batches
from zsmld.decoder import TrainingFreeScorer
from zsmld.decoder.training_free import Descriptions, Standardization, Views
from zsmld.images import ImageEncoder, load_image
from zsmld.images.open_clip_tower import check_open_clip
from zsmld.model import ZeroShotClassifier
from zsmld.text import TextEncoder, resolve_device
from zsmld.vocabulary import DEFAULT_TEMPLATES, Vocabulary, check_templates

__all__ = [
    "ClassNames",
    "build_prior",
    "class_embeddings",
    "compound_prompts",
    "create_scorer",
    "fit_standardization",
    "read_class_names",
    "read_classifier",
]

_CLIP_MATCH = (
    0.25  # the cosine at which an ordinary CLIP's score is 0.5: a convention of ours, its ranking is free of it
)


def create_scorer(
    spec: str,
    *,
    text_encoder: str | TextEncoder | None = None,
    image_encoder: Mapping[str, Any] | None = None,
    class_names: ClassNames | None = None,
    pretrained: bool = True,
    templates: Iterable[str] | str = DEFAULT_TEMPLATES,
    **options: Any,
) -> ZeroShotClassifier:
    """A model that scores any words without having been trained for it.

    With `clip:`, views="global" is the model's own zero-shot classification, views="local" compares its positions
    (top_positions of them), "both" adds the two. With `conse:` likewise; ConSE as published is temperature=1,
    top_classes=10, centered=False, views="global".

    Args:
        spec: the scorer's name, see the top of this file.
        text_encoder: for `conse:`, default "minilm"; for `clip:` its own, and no other.
        image_encoder: further arguments of `ImageEncoder`. With `clip:`, `value_path` is on unless given, where the
            tower has attention blocks.
        class_names: for `conse:`, see `read_class_names`.
        pretrained: False for random weights, for tests.
        templates: those that the words will have (`Predictor(templates=...)`, a dataset's); class names take the same.
        options: further arguments of `build_prior`.

    Returns:
        The model in eval mode, on the CPU, without a vocabulary. It has seen no word.

    Raises:
        ValueError: if the spec or an option is wrong, or parts do not fit each other.
        FileNotFoundError: if weights are neither here nor can be downloaded; the message says what to do.

    Example:
        >>> labels = [f"thing {number}" for number in range(1000)]
        >>> model = create_scorer("conse:timm:test_resnet", pretrained=False, class_names=labels)
        >>> model(torch.zeros(2, 3, 160, 160), model.encode_words(["dog", "zebra"])).shape
        torch.Size([2, 2])
    """
    kind, _, name = spec.partition(":")
    if kind not in ("clip", "conse") or not name or (kind == "conse" and not name.startswith("timm:")):
        raise ValueError(
            f"scorer must be clip:ARCH/PRETRAINED or conse:timm:NAME, got {spec!r}; write for instance "
            f"clip:ViT-B-16/openai or conse:timm:resnet50.a1_in1k"
        )
    own, given = (f"open_clip:{name}" if kind == "clip" else name), dict(image_encoder or {})
    fixed = sorted({"spec", "pretrained", "projected", "global_token", "stage"} & set(given))
    if kind == "clip" and given.get("checkpoint_path") is not None:
        raise ValueError("image_encoder must not have checkpoint_path with clip:; name the file, as clip:ARCH/FILE")
    if fixed:
        raise ValueError(f"image_encoder must not have {fixed} for a scorer, which decides these; leave them out")
    path, model_kwargs = given.get("checkpoint_path"), given.get("model_kwargs")
    encoder = ImageEncoder(own, pretrained=pretrained, projected=True, global_token=True, **given)
    if kind == "clip" and "value_path" not in given:
        encoder.value_path = _takes_value_path(encoder)
    if text_encoder is None:
        text_encoder = own if kind == "clip" else "minilm"
    if isinstance(text_encoder, str):
        text_encoder = TextEncoder(text_encoder, pretrained=pretrained)
    if kind == "clip":
        if class_names is not None:
            raise ValueError("class_names must be None with clip:, which has no classifier; leave them out")
        scorer = build_prior(encoder, text_encoder, "clip", **options)
    else:
        weight, bias = read_classifier(own, path, model_kwargs, pretrained)
        scorer = _conse(encoder, text_encoder, weight, bias, class_names, templates, **options)
    model = ZeroShotClassifier(encoder, scorer, text_encoder)
    model.training_record = {"training_free": spec, "templates": list(check_templates(templates))}
    return model.eval()


def build_prior(
    image_encoder: ImageEncoder,
    text_encoder: TextEncoder,
    kind: Literal["clip", "conse"],
    class_names: ClassNames | None = None,
    checkpoint_path: str | Path | None = None,
    templates: Sequence[str] | str = DEFAULT_TEMPLATES,
    pretrained: bool = True,
    centered: bool = True,
    top_classes: int | None = None,
    temperature: float | None = None,
    views: Views = "both",
    top_positions: int = 1,
    descriptions: Descriptions = "mean",
    description_scale: float = 1 / 0.07,
    standardization: Standardization = "none",
    scale: float | None = None,
    bias: float | None = None,
) -> TrainingFreeScorer:
    """The scorer alone, for encoders that are there already.

    Args:
        image_encoder: with `projected=True`: for "clip" an open_clip model, for "conse" a timm one.
        text_encoder: for "clip" that of the same model.
        kind: "clip" or "conse".
        class_names: "conse" only, see `read_class_names`.
        checkpoint_path: "conse" only, the weights file of the image encoder if it has one.
        templates: "conse" only, of the class names; those that the words have.
        pretrained: "conse" only, whether the image encoder has public weights. The classifier must belong to it, so
            weights that differ are refused.
        centered: "conse" only, see `TrainingFreeScorer.set_classes`.
        top_classes: "conse" only, classes that count at each position; None for all.
        temperature: "conse" only, default 3.
        views, top_positions, descriptions, description_scale, standardization: see `TrainingFreeScorer`.
        scale: of each similarity. By default CLIP's own (the exponential of its `logit_scale`), 10 for ConSE, 1 for
            standardised similarities; with views="both" half of it for each, so that their mean has this scale.
        bias: by default SigLIP's own; else such that the score is 0.5 at a cosine of 0.25 (CLIP), of 0.2 (ConSE; 0.6 if
            not centered), or two deviations above the mean. These are conventions of ours; they move scores, never the
            order of the words of an image.

    Raises:
        ValueError: if the encoders do not fit each other or the kind.
    """
    if kind not in ("clip", "conse"):
        raise ValueError(f"kind must be 'clip' or 'conse', got {kind!r}; choose one")
    options: dict[str, Any] = {
        "views": views,
        "top_positions": top_positions,
        "descriptions": descriptions,
        "description_scale": description_scale,
        "standardization": standardization,
        "scale": scale,
        "bias": bias,
    }
    classifier_options: dict[str, Any] = {"centered": centered, "top_classes": top_classes, "temperature": temperature}
    if kind == "clip":
        unused = {"class_names": class_names, "checkpoint_path": checkpoint_path} | classifier_options
        wrong = [name for name, value in unused.items() if value is not (True if name == "centered" else None)]
        if wrong:
            raise ValueError(f"{wrong[0]} must be left out with kind='clip', which has no classifier, got {wrong}")
        return _clip(image_encoder, text_encoder, **options)
    if not image_encoder.spec.startswith("timm:"):
        raise ValueError(
            f"image_encoder must be a timm classifier for kind='conse', got {image_encoder.spec!r}; use for instance "
            f"timm:resnet50.a1_in1k"
        )
    model = classifier_model(image_encoder.spec, checkpoint_path, image_encoder.model_kwargs, pretrained)
    if pretrained:
        state, own = model.state_dict(), image_encoder.body.state_dict()
        shared = [name for name in own if name in state and own[name].shape == state[name].shape]
        different = [name for name in shared if not torch.equal(own[name].cpu(), state[name])]
        if different:
            raise ValueError(
                f"checkpoint_path must be that of the image encoder, whose classifier is wanted, got other weights in "
                f"{len(different)} of {len(shared)} tensors, first {different[0]}; give the same file, or for an "
                f"encoder that was trained further build a TrainingFreeScorer and set_classes yourself"
            )
    weight, class_bias = last_layer(model, image_encoder.spec)
    return _conse(
        image_encoder, text_encoder, weight, class_bias, class_names, templates, **options, **classifier_options
    )


def _clip(image_encoder: ImageEncoder, text_encoder: TextEncoder, **options: Any) -> TrainingFreeScorer:
    if not image_encoder.spec.startswith("open_clip:") or not image_encoder.projected:
        raise ValueError(
            f"image_encoder must be an open_clip model with projected=True for kind='clip', got {image_encoder.spec!r} "
            f"with projected={image_encoder.projected}; build ImageEncoder('open_clip:…', projected=True)"
        )
    if text_encoder.spec != image_encoder.spec:
        raise ValueError(
            f"text_encoder must be that of the same CLIP, {image_encoder.spec!r}, got {text_encoder.spec!r}; images "
            f"and texts share a space in one model only"
        )
    text_dim = text_encoder.text_dim
    network: Any = getattr(text_encoder._backend, "_model", None)  # the whole CLIP, loaded for its texts
    own_scale, own_bias = getattr(network, "logit_scale", None), getattr(network, "logit_bias", None)
    scale = 100.0 if own_scale is None else float(own_scale.detach().exp())
    bias = -_CLIP_MATCH * scale if own_bias is None else float(own_bias.detach())
    return TrainingFreeScorer(
        image_encoder.encoder_dim,
        text_dim,
        num_global_tokens=image_encoder.num_global_tokens,
        **_with_scale(options, scale, bias),
    )


def _conse(
    image_encoder: ImageEncoder,
    text_encoder: TextEncoder,
    weight: Tensor,
    class_bias: Tensor,
    class_names: ClassNames | None,
    templates: Iterable[str] | str,
    centered: bool = True,
    temperature: float | None = None,
    **options: Any,
) -> TrainingFreeScorer:
    if weight.shape[1] != image_encoder.encoder_dim or not image_encoder.projected:
        raise ValueError(
            f"image_encoder must give each position as the classifier takes it, {weight.shape[1]} channels, got "
            f"{image_encoder.encoder_dim} with projected={image_encoder.projected}; set projected=True"
        )
    classes = read_class_names(class_names, len(weight))
    embeddings = class_embeddings(classes, text_encoder, templates)  # (K,T)
    scorer = TrainingFreeScorer(
        image_encoder.encoder_dim,
        embeddings.shape[1],
        num_global_tokens=image_encoder.num_global_tokens,
        num_classes=len(weight),
        temperature=3.0 if temperature is None else temperature,
        **_with_scale(options, 10.0, -2.0 if centered else -6.0),
    )
    scorer.set_classes(weight, class_bias, embeddings, centered=centered)
    return scorer


def _with_scale(options: dict[str, Any], scale: float, bias: float) -> dict[str, Any]:
    """Options of a scorer, with these as scale and bias where they are not given and not standardised."""
    if options.get("standardization", "none") != "none":
        scale, bias = 1.0, -2.0
    parts = 2 if options.get("views", "both") == "both" else 1
    defaults = {"scale": scale / parts, "bias": bias}
    return options | {name: value for name, value in defaults.items() if options.get(name) is None}


def _takes_value_path(encoder: ImageEncoder) -> bool:
    try:
        check_open_clip(encoder.body, encoder.spec, projected=True, value_path=True)
    except ValueError:
        return False
    return True


@torch.no_grad()
def fit_standardization(
    model: ZeroShotClassifier,
    images: Dataset | Iterable[Any],
    reference_words: Iterable[str] | Vocabulary,
    *,
    text_encoder: TextEncoder | None = None,
    use_test_images: bool = False,
    num_images: int = 1000,
    seed: int = 0,
    device: str = "auto",
    batch_size: int = 64,
    num_workers: int = 0,
) -> None:
    """Take the statistics of a scorer's `standardization` from calibration images; no label is read.

    Args:
        model: of `create_scorer` with `standardization`; moved to the device. Its statistics are changed, and stored
            with it.
        images: a dataset, or a list of paths, PIL images or arrays. Never those to be scored.
        reference_words: at least 2, those of the vocabulary for instance.
        text_encoder: of the model, if it is at hand.
        use_test_images: allow a dataset whose split may hold test images; figures on these are then no longer fair.
        num_images: at most this many, drawn at random.
        seed: of that draw.
        device: "auto", "cpu", "cuda" or "mps".
        batch_size: images a batch.
        num_workers: processes that decode.

    Raises:
        ValueError: if the model has nothing to fit, the split is refused, or fewer than two images can be read.

    Source: standardising the scores of images and prompts: SPARC, arXiv 2502.16911. There the statistics are those of
    the images that are scored; here they are stored, so that each image's scores are its own.
    """
    scorer = model.decoder
    if not isinstance(scorer, TrainingFreeScorer) or scorer.standardization == "none":
        raise ValueError(
            "model must be a training-free scorer with standardization to fit its statistics, got none of both; create "
            "it with standardization='per_word', 'per_image' or 'both'"
        )
    split = getattr(images, "split", None)
    if split not in (None, "train", "val") and not use_test_images:
        raise ValueError(
            f"images must be the split 'train' or 'val', got {split!r}, whose test images would no longer give fair "
            f"figures; take others, or pass use_test_images=True to do it all the same"
        )
    dataset: Any = _Images(cast(Iterable[Any], images)) if split is None else images
    rows = np.arange(len(dataset))
    if len(rows) > num_images:
        rows = np.sort(np.random.default_rng(seed).choice(rows, num_images, replace=False))
    on = resolve_device(device)
    model.to(on).eval()
    parts = []
    for batch in load_batches(dataset, model.image_encoder.transform, batch_size, rows, num_workers=num_workers):
        if len(batch):
            inputs = batch.inputs.to(on)
            parts.append((model.image_encoder(inputs) if inputs.ndim == 4 else inputs.float()).cpu())  # (B,S,C)
    words = model.encode_words(reference_words, text_encoder)  # (R,T), or (R,K,T)
    if words.ndim == 3:
        words = words[words.abs().sum(2) > 0]  # each description stands for itself
    spatial = torch.cat(parts) if parts else torch.empty(0, 1, scorer.encoder_dim)
    scorer.fit_statistics(spatial, words.to(on))


class _Images:
    """Image sources as a dataset without targets."""

    def __init__(self, sources: Iterable[Any]) -> None:
        self.sources = list(sources)

    def __len__(self) -> int:
        return len(self.sources)

    def __getitem__(self, index: int) -> dict[str, Any]:
        image = load_image(self.sources[index])
        return {"image": image, "targets": np.empty(0, np.int8), "id": str(index)}
