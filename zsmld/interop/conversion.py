"""From a network with our head, trained in anybody's loop, to a model of ours."""

import copy
from collections.abc import Iterable
from typing import Any

import torch

from zsmld.images import ImageEncoder
from zsmld.interop.body_names import fit_body, idle_children
from zsmld.interop.map_classifier import MapClassifier
from zsmld.model import ZeroShotClassifier
from zsmld.vocabulary import Vocabulary


def to_classifier(
    model: MapClassifier,
    *,
    words: Iterable[str] | None = None,
    image_encoder: str | None = None,
    model_kwargs: dict[str, Any] | None = None,
    **transform: Any,
) -> ZeroShotClassifier:
    """A trained network with our head as a `ZeroShotClassifier`: to save, predict with, evaluate and export.

    Args:
        model: what `add_ml_decoder_head` made of a timm model; it is not changed.
        words: names of the classes, or of words that were given as embeddings; default those the head knows.
        image_encoder: spec of the body; default the timm model that it was made as.
        model_kwargs: further arguments that the timm model was made with, which it does not keep.
        transform: `image_size`, `mean`, `std`, `interpolation` and `resize` of the training, see `ImageEncoder`;
            default those of timm for this network.

    Returns:
        The model in eval mode, on the CPU; it gives the logits that `model` gives.

    Raises:
        TypeError: if `model` is no `MapClassifier`.
        ValueError: if its network is none of timm's, or does not fit the arguments.

    Example:
        >>> import timm
        >>> from zsmld.interop import add_ml_decoder_head
        >>> trained = add_ml_decoder_head(timm.create_model("resnet18"), num_classes=2, image_size=64, decoder_dim=64)
        >>> to_classifier(trained, words=["dog", "cat"], image_size=64).vocabulary.words
        ('dog', 'cat')
    """
    if not isinstance(model, MapClassifier):
        raise TypeError(
            f"model must be what add_ml_decoder_head made without replace, got {type(model).__name__}; wrap the "
            f"network with map_of left out"
        )
    name = model.pretrained_cfg.get("architecture")
    if model.map_of is not None or not name:
        raise ValueError(
            f"model must be a network of timm, whose name brings it back, got {type(model.body).__name__}; keep it in "
            f"your own code"
        )
    kept: dict[str, Any] = model.pretrained_cfg
    own = {"image_size": kept["input_size"][-1], **{key: kept[key] for key in ("mean", "std", "interpolation")}}
    grid: Any = next((module.img_size for module in model.body.modules() if hasattr(module, "grid_size")), None)
    own["image_size"] = own["image_size"] if grid is None else grid[0]  # the weights' size, or that of the network
    spec = image_encoder or f"timm:{name}"
    encoder = ImageEncoder(spec, pretrained=False, model_kwargs=model_kwargs, **(own | transform)).eval()
    blank = torch.zeros(1, 3, *[encoder.transform.image_size] * 2)
    idle = idle_children(encoder.body, lambda: encoder(blank))
    state = {key: tensor.detach().cpu().float() for key, tensor in model.body.state_dict().items()}
    encoder.body.load_state_dict(fit_body(encoder.body, state, (), idle)[0])
    head = model.head
    decoder = copy.deepcopy(head.decoder).cpu().float()
    found = ZeroShotClassifier(encoder, decoder, None if head.vocabulary is None else head.text_encoder)
    vocabulary = head.vocabulary if words is None else Vocabulary(words)
    if vocabulary is not None:
        found.remember_words(vocabulary, None if decoder.text_dim is None else head.word_embeddings)
    return found.eval()
