"""What ConSE needs of a classifier: its last linear layer, and its classes' names as embeddings."""

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zsmld.images.timm_body import load_timm_checkpoint
from zsmld.images.weights import reachable
from zsmld.text import TextEncoder
from zsmld.vocabulary import DEFAULT_TEMPLATES, check_templates

ClassNames = str | Path | Sequence[str | Sequence[str]]


def read_classifier(
    spec: str,
    checkpoint_path: str | Path | None = None,
    model_kwargs: Mapping[str, Any] | None = None,
    pretrained: bool = True,
) -> tuple[Tensor, Tensor]:
    """The last linear layer of a timm classifier.

    Args:
        spec: timm:NAME, or a local folder after `timm:`.
        checkpoint_path: a local weights file, instead of `pretrained`.
        model_kwargs: further arguments of the timm model, e.g. {"pad_type": "same"}.
        pretrained: load the named weights.

    Returns:
        Weight (K,C) and bias (K).

    Raises:
        FileNotFoundError: if weights are neither here nor can be downloaded.
        ValueError: if the model has no classifier, or not one linear layer at its end.

    Example:
        >>> weight, bias = read_classifier("timm:test_resnet", pretrained=False)
        >>> weight.shape, bias.shape
        (torch.Size([1000, 96]), torch.Size([1000]))
    """
    return last_layer(classifier_model(spec, checkpoint_path, model_kwargs, pretrained), spec)


def classifier_model(
    spec: str, checkpoint_path: str | Path | None, model_kwargs: Mapping[str, Any] | None, pretrained: bool
) -> nn.Module:
    """A whole timm model in eval mode; the caller's random numbers are untouched."""
    import timm

    name = spec.removeprefix("timm:")
    if not spec.startswith("timm:") or not name:
        raise ValueError(f"classifier must be timm:NAME, got {spec!r}; write for instance timm:resnet50.a1_in1k")
    if checkpoint_path is not None and not Path(checkpoint_path).is_file():
        raise FileNotFoundError(f"checkpoint_path must be an existing file, not found: {checkpoint_path}; correct it")
    if Path(name).is_dir():
        name = f"local-dir:{name}"
    pretrained = pretrained and checkpoint_path is None
    with torch.random.fork_rng(devices=[]), reachable(spec):  # random weights, before others take their place
        try:
            model = timm.create_model(name, pretrained=pretrained, **dict(model_kwargs or {}))
        except RuntimeError as error:
            if "Unknown model" not in str(error) and "Invalid pretrained tag" not in str(error):
                raise
            similar = difflib.get_close_matches(name, timm.list_models(pretrained=True) + timm.list_models(), 3)
            raise ValueError(
                f"classifier must be one timm knows, got {spec!r}; similar names: {similar or 'see timm.list_models()'}"
            ) from error
    if checkpoint_path is not None:
        try:
            load_timm_checkpoint(model, Path(checkpoint_path))
        except RuntimeError as error:
            raise ValueError(
                f"checkpoint_path must hold the weights of {spec} with its classifier, got {checkpoint_path}: {error}; "
                f"name the model and model_kwargs it was trained with"
            ) from error
    return model.eval()


@torch.no_grad()
def last_layer(model: Any, spec: str) -> tuple[Tensor, Tensor]:
    """Weight (K,C) and bias (K) of a timm model's classifier, checked to be all that follows its pooled embedding."""
    from timm.data.config import resolve_model_data_config

    found = model.get_classifier() if hasattr(model, "get_classifier") else None
    is_point = isinstance(found, nn.Conv2d) and found.kernel_size == (1, 1) and found.groups == 1
    if not isinstance(found, nn.Linear) and not is_point:
        what = " and ".join(type(part).__name__ for part in found) if isinstance(found, tuple) else type(found).__name__
        raise ValueError(
            f"classifier must be one linear layer, got {what} from {spec!r}; use another model, one with classes and "
            f"without distillation or a second head"
        )
    assert isinstance(found, (nn.Linear, nn.Conv2d))  # for the type checker
    weight = found.weight.flatten(1).clone()  # (K,C)
    bias = torch.zeros(len(weight)) if found.bias is None else found.bias.clone()  # (K,)
    size = resolve_model_data_config(model)["input_size"][1]
    image = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    features = model.forward_features(image)
    pooled, logits = model.forward_head(features, pre_logits=True), model.forward_head(features)
    expected = pooled @ weight.T + bias if pooled.shape[-1:] == weight.shape[1:] else torch.empty(0)
    if expected.shape != logits.shape or not torch.allclose(expected, logits, rtol=1e-3, atol=1e-3):
        raise ValueError(
            f"classifier must be all that follows the pooled embedding, got more than {type(found).__name__} at the "
            f"end of {spec!r}; use another model"
        )
    return weight, bias


def read_class_names(source: ClassNames | None = None, num_classes: int | None = None) -> tuple[tuple[str, ...], ...]:
    """The names of a classifier's classes, each with its synonyms.

    Args:
        source: a text file with a class a line, in which synonyms are separated by commas and a first line
            "background" that is one too many is left out; or a list of such lines, or of lists of synonyms. None takes
            timm's own names of ImageNet-1k, 12k, 21k or 22k, by the number of classes.
        num_classes: K; None takes as many as there are.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if a class has no name, their number is not K, or it is none of timm's.

    Example:
        >>> read_class_names(num_classes=1000)[0], read_class_names(["tabby, tabby cat", ["hare"]])
        (('tench', 'Tinca tinca'), (('tabby', 'tabby cat'), ('hare',)))
    """
    lines: list[str | Sequence[str]]
    if source is None:
        from timm.data import ImageNetInfo, infer_imagenet_subset

        subset = infer_imagenet_subset({"num_classes": num_classes})
        if subset is None:
            raise ValueError(
                f"class_names must be given for a classifier that is not one of ImageNet's, got None for {num_classes} "
                f"classes; give a text file with a name a line (scorer.class_names=FILE)"
            )
        where, lines = subset, list(ImageNetInfo(subset).label_descriptions())
    elif isinstance(source, (str, Path)):
        if not Path(source).is_file():
            raise FileNotFoundError(f"class_names must be an existing text file, not found: {source}; correct the path")
        where, lines = str(source), list(Path(source).read_text(encoding="utf-8-sig").rstrip().splitlines())
    else:
        where, lines = "class_names", list(source)
    classes = []
    for line in lines:
        parts = line.split(",") if isinstance(line, str) else line
        classes.append(tuple(dict.fromkeys(part.strip() for part in parts if part.strip())))
    if num_classes is not None and len(classes) == num_classes + 1 and classes[0] == ("background",):
        classes = classes[1:]
    if not all(classes) or len(classes) != (num_classes or len(classes)) or not classes:
        empty = f", the first without a name at position {classes.index(())}" if () in classes else ""
        raise ValueError(
            f"class_names must be one name or more for each of {num_classes or 'some'} classes, got {len(classes)} "
            f"classes from {where}{empty}; take the classes of this classifier, in its order"
        )
    return tuple(classes)


def class_embeddings(
    class_names: Sequence[Sequence[str]],
    text_encoder: TextEncoder,
    templates: Iterable[str] | str = DEFAULT_TEMPLATES,
) -> Tensor:
    """Embeddings (K,T) of classes: each synonym as a word with its templates, then their mean, rows of length one."""
    words = list(dict.fromkeys(word for synonyms in class_names for word in synonyms))
    with _told_of_class_names(text_encoder):
        found = dict(zip(words, text_encoder.encode_words(words, check_templates(templates)), strict=True))
    means = torch.stack([torch.stack([found[word] for word in synonyms]).mean(0) for synonyms in class_names])
    return F.normalize(means, dim=1)  # (K,T)


@contextmanager
def _told_of_class_names(text_encoder: TextEncoder) -> Iterator[None]:
    """Word vectors seldom know every class; the plain error would speak of words that nobody gave."""
    try:
        yield
    except ValueError as error:
        if not text_encoder.spec.startswith("vectors:"):
            raise
        raise ValueError(
            f"text_encoder must embed every class name of the classifier: {error}. Take a sentence encoder such as "
            f"minilm, or do without ConSE (in a recipe prior=null decoder.word_reach=0)"
        ) from error
