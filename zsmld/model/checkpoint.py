"""A checkpoint read back: data that must fit to the last tensor, whoever wrote it.

What is on the Hub may be anybody's. A config can name no class, no file and no other weights; the weights are
safetensors, which hold arrays and nothing that runs.
"""

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_parameter_registration_hook,
)

from zsmld.decoder import build_decoder
from zsmld.images import ImageEncoder
from zsmld.model.files import CONFIG, FORMAT, WEIGHTS
from zsmld.vocabulary import Vocabulary, check_words

if TYPE_CHECKING:
    from zsmld.model import ZeroShotClassifier

_IMAGE_KEYS = {"spec", "stage", "model_kwargs", "image_size", "mean", "std", "interpolation", "resize"} | {
    "projected",
    "value_path",
    "global_token",
}
# Arguments of timm's and open_clip's models, at any depth, that read files, fetch weights or allow pickles.
_FORBIDDEN_KWARGS = {"cache_dir", "load_weights", "weights_only"}
_FORBIDDEN_STARTS, _FORBIDDEN_ENDS = ("pretrained", "hf_"), ("_path", "_pretrained")  # not timm's drop_path_rate
_FOLDERS = tuple(
    f"{kind}:{start}" for kind in ("timm", "open_clip") for start in ("local-dir:", "/", ".", "~")
)  # an encoder from a folder is stored by its name


def read_config(folder: Path, name: str) -> dict[str, Any]:
    """The configuration of a checkpoint, of a format that this version knows.

    Args:
        folder: that holds it.
        name: of the checkpoint, for the message.

    Raises:
        ValueError: if it is damaged, or not one of ours.
    """
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"checkpoint {name} must be readable, it is damaged: {error}; save it again") from error
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        found = config.get("format") if isinstance(config, dict) else type(config).__name__
        advice = "update zsmld" if isinstance(found, int) else "it is no model that zsmld saved"
        raise ValueError(f"checkpoint {name} must have format {FORMAT}, got {found}; {advice}")
    return config


def load_checkpoint(cls: type["ZeroShotClassifier"], folder: Path, name: str) -> "ZeroShotClassifier":
    """The model of a folder, on the CPU; every tensor must be expected, and every expected one be there.

    Args:
        cls: `ZeroShotClassifier`.
        folder: with both files.
        name: of the checkpoint, for messages.

    Raises:
        ValueError: if the files are damaged or do not fit each other.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    config = read_config(folder, name)
    try:
        tensors: dict[str, Tensor] = load_file(folder / WEIGHTS)
    except SafetensorError as error:
        raise ValueError(f"checkpoint {name} must be readable, it is damaged: {error}; save it again") from error
    with _no_larger_than(tensors):
        model, vocabulary = _build(cls, config, name)
    has_words = vocabulary is not None and model.decoder.text_dim is not None
    word_embeddings = tensors.pop("word_embeddings", None) if has_words else None
    own = model.state_dict()
    missing, unexpected = sorted(set(own) - set(tensors)), sorted(set(tensors) - set(own))
    both = [key for key in own if key in tensors]
    shapes = [key for key in both if own[key].shape != tensors[key].shape]
    # Half precision becomes single without loss; integers in the place of weights are another matter.
    kinds = [key for key in both if own[key].is_floating_point() != tensors[key].is_floating_point()]
    if missing or unexpected or shapes or kinds:
        raise ValueError(
            f"checkpoint {name} must fit its config, got {len(missing)} missing {missing[:3]}, "
            f"{len(unexpected)} unexpected {unexpected[:3]}, {len(shapes)} of other shape {shapes[:3]}, "
            f"{len(kinds)} of other type {kinds[:3]}; save it again"
        )
    model.load_state_dict(tensors)
    if vocabulary is not None:
        try:
            model.remember_words(vocabulary, word_embeddings)
        except ValueError as error:
            raise ValueError(f"checkpoint {name} must have embeddings of its words: {error}") from error
    return model


@contextmanager
def _no_larger_than(tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """Refuse a network that is far larger than its weights, before its memory is used: a configuration can ask for any.

    Somewhat larger it may be: of open_clip's models the text tower is built too, of networks with a stage the rest.
    """
    left = {
        "numbers": 500_000_000 + 10 * sum(tensor.numel() for tensor in tensors.values()),
        "tensors": 2_000 + 10 * len(tensors),
    }
    thread = threading.get_ident()  # others may build networks of their own

    def count(module: nn.Module, name: str, tensor: Tensor | None) -> None:
        if tensor is not None and threading.get_ident() == thread:
            left["numbers"] -= tensor.numel()
            left["tensors"] -= 1
            if min(left.values()) < 0:
                raise ValueError("a network far larger than the weights beside it")

    hooks = (register_module_parameter_registration_hook(count), register_module_buffer_registration_hook(count))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _build(
    cls: type["ZeroShotClassifier"], config: dict[str, Any], name: str
) -> tuple["ZeroShotClassifier", Vocabulary | None]:
    try:
        image_config = dict(config["image_encoder"])
        # A checkpoint is data: it must not make us read other files or fetch other weights.
        foreign = sorted((set(image_config) - _IMAGE_KEYS) | set(_forbidden(image_config["model_kwargs"])))
        if foreign:
            raise ValueError(f"checkpoint {name} must not set {foreign} of its image encoder; it is not one of ours")
        if image_config["spec"].startswith(_FOLDERS):
            raise ValueError(f"checkpoint {name} must not name a folder as its image encoder; it is not one of ours")
        if max(_numbers(image_config["model_kwargs"]), default=0) > 1_000_000:  # of blocks, channels or pixels
            raise ValueError(f"model_kwargs with numbers of no network: {image_config['model_kwargs']!r:.80}")
        with torch.device("meta"):  # without memory, in which sizes beyond all reason are found
            build_decoder(config["decoder"])
            if image_config["spec"].startswith("timm:") and _may_be_large(image_config):
                try:
                    ImageEncoder(pretrained=False, **image_config)
                except RuntimeError as error:  # NotImplementedError is one
                    if "meta" not in str(error):  # timm before 1.0.16 reads numbers of tensors while it builds
                        raise
        image_encoder = ImageEncoder(pretrained=False, **image_config)
        decoder = build_decoder(config["decoder"])
        model = cls(image_encoder, decoder, recipe=config["recipe"])
        model.text_encoder = config["text_encoder"]["spec"]
        model.text_encoder_identity = config["text_encoder"]["identity"]
        vocabulary = None if config["vocabulary"] is None else Vocabulary.from_dict(config["vocabulary"])
        # Checkpoints that were written before these were stored, or have none, lack the keys.
        model.heldout_words = check_words(config.get("heldout_words", ()), "heldout_words", allow_empty=True)
        model.calibration = config.get("calibration")
        model.prediction = config.get("prediction")
        model.training_record = config.get("training")
        model.scores = config.get("scores", "sigmoid")
        if model.scores not in ("sigmoid", "softmax"):
            raise ValueError(f"checkpoint {name} must have scores sigmoid or softmax, got {model.scores!r}")
        plain = {"recipe": model.recipe, "calibration": model.calibration, "prediction": model.prediction}
        plain["training"] = model.training_record
        for key, stored in plain.items():
            if not isinstance(stored, dict | None):
                raise TypeError(f"a {key} of type {type(stored).__name__}, which is no mapping")
        for key in ("spec", "identity"):
            if not isinstance(config["text_encoder"][key], str | None):
                raise TypeError(f"a text_encoder whose {key} is no text")
        strangers = sorted(set(model.heldout_words) - set(() if vocabulary is None else vocabulary.seen))
        if strangers:
            raise ValueError(
                f"checkpoint {name} must have heldout_words among its seen words, got {strangers[:5]}; correct {CONFIG}"
            )
    except (FileNotFoundError, ImportError):  # what is not on this machine
        raise
    except Exception as error:  # timm, open_clip and torch have many kinds; the reader needs the path
        if str(error).startswith(f"checkpoint {name} "):
            raise
        raise ValueError(f"checkpoint {name} must have a complete {CONFIG}, got {error}; save it again") from error
    return model, vocabulary


def _may_be_large(image_config: dict[str, Any]) -> bool:
    """Whether a tensor of the encoder could have more than half a billion numbers: as many positions as pixels, say."""
    size = image_config.get("image_size") or 0
    return size**2 * max([2048, *_numbers(image_config["model_kwargs"])]) > 2**29


def _numbers(options: Any) -> Iterator[float]:
    """The numbers in nested lists and mappings."""
    if isinstance(options, int | float):
        yield abs(options)
    elif isinstance(options, list | dict):
        for value in options.values() if isinstance(options, dict) else options:
            yield from _numbers(value)


def _forbidden(options: Any) -> Iterator[str]:
    """Names of options, at any depth, that a checkpoint must not set."""
    for key, value in options.items() if isinstance(options, dict) else ():
        if key in _FORBIDDEN_KWARGS or key.startswith(_FORBIDDEN_STARTS) or key.endswith(_FORBIDDEN_ENDS):
            yield key
        yield from _forbidden(value)
