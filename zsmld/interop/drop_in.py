"""Our head on other people's networks, for those who have their own training loop."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from zsmld.images.timm_body import positions_of
from zsmld.interop.body_names import idle_children
from zsmld.interop.map_classifier import MapClassifier, MapFunction, MLDecoderHead
from zsmld.text import TextEncoder

# These mix several scales or drop the map before their last layer.
_NO_MAP = ("PoolingVisionTransformer", "CrossVit", "CoaT")


def add_ml_decoder_head(
    model: nn.Module,
    num_classes: int | None = None,
    words: Tensor | Iterable[str] | None = None,
    *,
    text_encoder: str | TextEncoder | None = "minilm",
    map_of: MapFunction | None = None,
    remove: Sequence[str] | str = (),
    replace: str | None = None,
    image_size: int | None = None,
    **decoder_options: Any,
) -> nn.Module:
    """Replace pooling and classifier of a network by an ML-Decoder head.

    A model of timm needs no more than that: its map is what `forward_features` gives, and its own pooling and
    classifier are dropped. Another network either says where its map is, with `map_of`; or names the layers that the
    head stands for, with `remove` and `replace`, and keeps its own `forward`.

    Args:
        model: the network; it is changed and becomes part of the result.
        num_classes: N, for class queries; with no words default what the model has.
        words: for word queries: embeddings (N,T), or a list of words; `set_words` changes them later.
        text_encoder: spec of the encoder of words that are given as texts.
        map_of: (model, images) -> map (B,C,H,W) or tokens (B,S,C), for networks that are not timm's.
        remove: name or names of layers that do nothing from now on, ["avgpool"] for instance.
        replace: name of the layer that the head takes the place of, "fc" for instance; it must be given a map
            (B,C,H,W), tokens (B,S,C), or a flattened map (B,C·S).
        image_size: pixels of the blank image that is sent through once to learn C; default what timm stores, else 224.
        decoder_options: further arguments of `MLDecoder`: `decoder_dim`, `num_groups`, `learnable_queries`, `output`, …

    Returns:
        A `MapClassifier`; with `replace` the model itself. Both give logits (B,N).

    Raises:
        ValueError: if the network gives no map, or an argument does not fit.

    Source: arXiv 2111.12933, section 3; timm's function of this name and PaddleClas' `use_ml_decoder`, which know some
        families by the names of their layers.

    Example:
        >>> import timm
        >>> model = add_ml_decoder_head(timm.create_model("resnet18"), num_classes=20, image_size=64, decoder_dim=64)
        >>> model(torch.zeros(2, 3, 64, 64)).shape
        torch.Size([2, 20])
    """
    remove = [remove] if isinstance(remove, str) else remove
    if num_classes is None and words is None:
        num_classes = getattr(model, "num_classes", None)

    def build(encoder_dim: int) -> MLDecoderHead:
        return MLDecoderHead(encoder_dim, num_classes, words, text_encoder, **decoder_options)

    if replace is not None and map_of is not None:
        raise ValueError("map_of must be None with replace, which uses the network's own forward; give one of them")
    if remove and replace is None:
        raise ValueError(
            f"replace must name the layer that the head stands for, got None and remove={list(remove)}; add it"
        )
    if replace is not None:
        return _in_place(model, remove, replace, image_size, build)
    family = type(model).__name__
    if map_of is None and (family in _NO_MAP or not hasattr(model, "forward_features")):
        raise ValueError(
            f"model must give a map of spatial embeddings, {family} does not; use for instance a resnet, convnext, vit "
            f"or swin of timm, or say where the map is with map_of, or name layers with remove and replace"
        )
    blank = _blank(model, image_size)
    features, unused = _probe(model, blank, map_of)
    if features.ndim == 4:
        channels = features.shape[1]
    elif features.ndim == 3:
        channels = features.shape[2]
    else:
        raise ValueError(
            f"map_of must give a map (B, C, H, W) or tokens (B, S, C), got {tuple(features.shape)}; take it earlier"
        )
    head = _like(build(channels), model)
    if map_of is None:
        for name in unused:  # what made logits of the map: it would never get a gradient
            setattr(model, name, nn.Identity())
    return MapClassifier(model, head, map_of).train(model.training)


def _blank(model: nn.Module, image_size: int | None) -> Tensor:
    one = next(model.parameters())
    # Transformers fix their grid at creation; what timm stores is that of the weights.
    grid = next((getattr(m, "img_size", None) for m in model.modules() if hasattr(m, "grid_size")), None)
    stored = getattr(model, "pretrained_cfg", {}).get("input_size", (3, 224, 224))
    size = (image_size, image_size) if image_size is not None else grid or stored[1:]
    return torch.zeros(1, getattr(model, "in_chans", 3), *size, device=one.device, dtype=one.dtype)


@torch.no_grad()
def _probe(model: nn.Module, blank: Tensor, map_of: MapFunction | None) -> tuple[Tensor, list[str]]:
    """What the network makes of a blank image, and its children with parameters that had no part in it."""
    found: list[Any] = []
    training = model.training
    model.eval()
    try:
        unused = idle_children(
            model,
            lambda: found.append(_features_of(model, blank) if map_of is None else map_of(model, blank)),
        )
    finally:
        model.train(training)
    (features,) = found
    if map_of is None:
        features = positions_of(model, features)
        square = features.ndim == 4 or round(features.shape[1] ** 0.5) ** 2 == features.shape[1]
        if blank.shape[2] == blank.shape[3] and not square:
            raise ValueError(
                f"model must give a square map, got {features.shape[1]} positions from {type(model).__name__}; use "
                f"a model whose tokens form a grid"
            )
        return features.flatten(1, -2), unused  # (1,S,C)
    if not isinstance(features, Tensor):
        raise ValueError(f"map_of must give a tensor, got {type(features).__name__}; take one map of them")
    return features, unused


def _features_of(model: nn.Module, blank: Tensor) -> Any:
    try:
        return cast(Any, model).forward_features(blank)
    except (AssertionError, RuntimeError) as error:  # timm's ways to say that a size does not fit
        raise ValueError(
            f"image_size must be one that {type(model).__name__} takes, got {tuple(blank.shape[2:])}: {error}; leave "
            f"it out, or create the model with img_size"
        ) from error


def _in_place(
    model: nn.Module, remove: Sequence[str], replace: str, image_size: int | None, build: Callable[[int], MLDecoderHead]
) -> nn.Module:
    """The head in the place of a named layer; `build` makes it for C channels. On an error the model is as it was."""
    known = dict(model.named_modules())
    strangers = [name for name in (*remove, replace) if name not in known or not name]
    if strangers:
        raise ValueError(
            f"remove and replace must be layers of {type(model).__name__}, got {strangers}; its own are "
            f"{[name for name, _ in model.named_children()]}"
        )
    blank = _blank(model, image_size)
    try:
        for name in remove:
            model.set_submodule(name, nn.Identity())
        head = build(_channels(_given_to(model, known[replace], blank), known[replace], replace))
        model.set_submodule(replace, _like(head, model))
        _check_last(model, blank, head.num_classes, replace)
    except BaseException:
        for name in (replace, *remove):  # from the outside in
            model.set_submodule(name, known[name])
        raise
    if hasattr(model, "num_classes"):
        cast(Any, model).num_classes = head.num_classes
    return model


@torch.no_grad()
def _check_last(model: nn.Module, blank: Tensor, num_classes: int, name: str) -> None:
    training = model.training
    try:
        found: Any = model.eval()(blank)
    except RuntimeError as error:  # what comes after the head does not take logits
        found = str(error)
    finally:
        model.train(training)
    if isinstance(found, str) or (isinstance(found, Tensor) and tuple(found.shape) != (1, num_classes)):
        told = tuple(found.shape) if isinstance(found, Tensor) else " ".join(found.split())[:100]
        raise ValueError(
            f"replace must be the last layer, whose result (1, {num_classes}) is the model's, got {told} after "
            f"{name!r}; name the classifier"
        )


class _Reached(Exception):
    """The blank image is at the layer: what comes after it would not fit, and does not matter."""

    def __init__(self, given: Tensor) -> None:
        super().__init__()
        self.given = given


def _given_to(model: nn.Module, layer: nn.Module, blank: Tensor) -> Tensor | None:
    def stop(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        raise _Reached(inputs[0])

    hook, training = layer.register_forward_pre_hook(stop), model.training
    try:
        with torch.no_grad():
            model.eval()(blank)
    except _Reached as reached:
        return reached.given
    finally:
        hook.remove()
        model.train(training)
    return None


def _channels(given: Tensor | None, layer: nn.Module, name: str) -> int:
    shape = () if given is None else tuple(given.shape)
    width = next((module.in_features for module in layer.modules() if isinstance(module, nn.Linear)), None)
    # A map with channels last would be read the wrong way round; what stood here knew how wide a position is.
    own, other = {4: (1, 3), 3: (2, 1)}.get(len(shape), (0, 0))
    if own and shape[own] != width == shape[other]:
        raise ValueError(
            f"replace must be a layer that is given a map (B, C, H, W) or tokens (B, S, C), {name!r} was given {shape} "
            f"with its {width} channels in another place; say where the map is with map_of"
        )
    if len(shape) == 4:
        return shape[1]
    if len(shape) == 3:
        return shape[2]
    if len(shape) == 2 and width and shape[1] % width == 0 and shape[1] > width:
        return int(width)  # a flattened map, (B,C·S)
    raise ValueError(
        f"replace must be a layer that is given a map (B, C, H, W) or tokens (B, S, C) once the layers of remove do "
        f"nothing, {name!r} was given {shape or 'nothing'}; remove the pooling before it"
    )


def _like(head: MLDecoderHead, model: nn.Module) -> MLDecoderHead:
    one = next(model.parameters())
    return head.to(one.device, one.dtype)
