"""A checkpoint read back: data that must fit to the last tensor, whoever wrote it.

What is on the Hub may be anybody's. A config can name no class, no file and no other weights; the weights are
safetensors, which hold arrays and nothing that runs. What is refused here is refused too where a model is saved, and
before a training that would save it.
"""

import json
import threading
from collections.abc import Iterator, Mapping, Sequence
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
from zsmld.images import ImageEncoder, names_folder
from zsmld.model.files import CONFIG, FORMAT, WEIGHTS
from zsmld.reading import digest_of
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
_FORBIDDEN_STARTS, _FORBIDDEN_ENDS = ("pretrained", "hf_"), ("_path", "_pretrained")
_HARMLESS_KWARGS = {"drop_path", "timm_drop_path", "pretrained_window_sizes"}  # numbers, whatever they are called
_LARGEST_OPTION = 1_000_000  # of blocks, channels or pixels
_SPARE = 500_000_000  # numbers beyond the weights, such as those of open_clip's text towers
_LARGEST_NETWORK = 7_000_000_000  # numbers; timm's vit_7b_patch16_dinov3 has 6.7 billion


def check_model(model: object) -> None:
    """Refuse what stands for a model and is none, such as its name.

    Raises:
        TypeError: if it is no network.
    """
    if not isinstance(model, nn.Module):
        named = isinstance(model, str | Path)
        hint = f"pass ZeroShotClassifier.from_pretrained({str(model)!r})" if named else "load it first"
        raise TypeError(f"model must be a ZeroShotClassifier, got {type(model).__name__}; {hint}")


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
    model, vocabulary = _build(cls, config, tensors, name)
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
    model.weights_sha256 = digest_of(folder / WEIGHTS)
    if config.get("weights_sha256") not in (None, model.weights_sha256):
        raise ValueError(
            f"checkpoint {name} must have the weights that its {CONFIG} was written for, got others: a save was "
            f"interrupted, or its files are of two models; save it again, or remove weights_sha256 from {CONFIG} if "
            f"you changed the weights"
        )
    return model


def storing_problems(image_config: Mapping[str, Any]) -> list[str]:
    """Why a checkpoint with this image encoder could not be loaded again, as sentences; none for most.

    Args:
        image_config: of an `ImageEncoder`.

    Example:
        >>> encoder = ImageEncoder("timm:test_resnet", pretrained=False, model_kwargs={"drop_path_rate": 0.1})
        >>> storing_problems(encoder.config())
        []
    """
    problems, options = [], image_config.get("model_kwargs", {})
    if refused := sorted(set(_forbidden(options))):
        problems.append(
            f"image_encoder must have model_kwargs that name no files and no other weights to be saved, got {refused}; "
            f"give weights in spec or checkpoint_path, and mean, std and image_size, as arguments of ImageEncoder"
        )
    if max(_numbers(options), default=0) > _LARGEST_OPTION:
        problems.append(
            f"image_encoder must have model_kwargs of at most {_LARGEST_OPTION} to be saved, got {options!r:.80}; "
            f"correct them"
        )
    try:
        json.dumps(options)
    except (TypeError, ValueError) as error:
        problems.append(
            f"image_encoder must have model_kwargs of plain values to be saved, got {options!r:.80} ({error}); give "
            f"the names of layers"
        )
    if names_folder(image_config["spec"]):
        problems.append(
            f"image_encoder must have an architecture that open_clip knows by name to be saved, got "
            f"{image_config['spec']!r}, whose folder describes another; give the file with its model_cfg to "
            f"open_clip.add_model_config, here and wherever the model is loaded"
        )
    return problems


@contextmanager
def _no_larger_than(tensors: Mapping[str, Tensor], allowance: int) -> Iterator[None]:
    """Refuse a network that is far larger than its weights, before its memory is used: a configuration can ask for any.

    Somewhat larger it may be: of open_clip's models the text tower is built too, of networks with a stage the rest,
    which is `allowance`.
    """
    left = {
        "numbers": _SPARE + allowance + 10 * sum(tensor.numel() for tensor in tensors.values()),
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
    cls: type["ZeroShotClassifier"], config: dict[str, Any], tensors: Mapping[str, Tensor], name: str
) -> tuple["ZeroShotClassifier", Vocabulary | None]:
    try:
        image_config = dict(config["image_encoder"])
        # A checkpoint is data: it must not make us read other files or fetch other weights.
        foreign = sorted((set(image_config) - _IMAGE_KEYS) | set(_forbidden(image_config["model_kwargs"])))
        if foreign:
            raise ValueError(f"checkpoint {name} must not set {foreign} of its image encoder; it is not one of ours")
        if names_folder(image_config["spec"]):
            raise ValueError(f"checkpoint {name} must not name a folder as its image encoder; it is not one of ours")
        if max(_numbers(image_config["model_kwargs"]), default=0) > _LARGEST_OPTION:
            raise ValueError(f"model_kwargs with numbers of no network: {image_config['model_kwargs']!r:.80}")
        with _no_larger_than(tensors, _whole_network(image_config)):
            with torch.device("meta"):  # without memory, in which sizes beyond all reason are found
                build_decoder(config["decoder"])
                if image_config["spec"].startswith("timm:") and _may_be_large(image_config):
                    _check_without_memory(image_config, tensors)
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
        check_mappings(config, "recipe", "calibration", "prediction", "training")
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
        reason = str(error).partition("\nException raised from")[0]  # without torch's stack
        raise ValueError(f"checkpoint {name} must have a complete {CONFIG}, got {reason}; save it again") from error
    return model, vocabulary


def check_mappings(config: Mapping[str, Any], *keys: str) -> None:
    """Refuse parts of a configuration that are there and no mappings.

    Raises:
        TypeError: with the reason alone.
    """
    for key in keys:
        if not isinstance(stored := config.get(key), dict | None):
            raise TypeError(f"a {key} of type {type(stored).__name__}, which is no mapping")


def _may_be_large(image_config: dict[str, Any]) -> bool:
    """Whether the network that is built could be larger than what is kept of it, or a tensor of it could have more than
    half a billion numbers: as many positions as pixels, say.
    """
    if image_config.get("stage") is not None:
        return True
    size = image_config.get("image_size") or 0
    return size**2 * max([2048, *_numbers(image_config["model_kwargs"])]) > 2**29


def _check_without_memory(image_config: dict[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Build timm's network where tensors have no memory; the weights must be what is kept of it."""
    try:
        kept = ImageEncoder(pretrained=False, **image_config).state_dict()
    except RuntimeError as error:  # NotImplementedError is one
        if "meta" not in str(error):  # older versions of timm read numbers of tensors while they build
            raise
        return
    found = {key: tensor.shape for key, tensor in tensors.items() if key.startswith("image_encoder.")}
    if image_config.get("stage") is not None and found != {f"image_encoder.{key}": t.shape for key, t in kept.items()}:
        raise ValueError("weights that are not those of its image encoder's stage")


def _whole_network(image_config: dict[str, Any]) -> int:
    """Numbers that may be built besides the weights: with a stage, those of the network that timm has of this name.

    Once without memory and once with.
    """
    import timm

    kind, _, name = image_config["spec"].partition(":")
    if kind != "timm" or image_config.get("stage") is None:
        return 0
    if not timm.is_model(name):  # from the Hub, say
        return 2 * _LARGEST_NETWORK
    try:
        with torch.device("meta"):
            return 2 * sum(tensor.numel() for tensor in timm.create_model(name).state_dict().values())
    except RuntimeError:  # as above
        return 2 * _LARGEST_NETWORK


def _numbers(options: Any) -> Iterator[float]:
    """The numbers in nested lists and mappings."""
    if isinstance(options, int | float):
        yield abs(options)
    elif isinstance(options, list | tuple | dict):
        for value in options.values() if isinstance(options, dict) else options:
            yield from _numbers(value)


def _forbidden(options: Any) -> Iterator[str]:
    """Names of options, and texts, at any depth, that a checkpoint must not set."""
    if isinstance(options, str):
        # open_clip hands a timm_model_name on to timm, which reads local-dir:FOLDER and hf-hub:NAME, in any case.
        if ":" in options or options.lstrip().startswith(("/", "\\", "~", ".")):
            yield options
    elif isinstance(options, Mapping):
        for name, value in options.items():
            key = str(name)
            if key not in _HARMLESS_KWARGS and (
                key in _FORBIDDEN_KWARGS or key.startswith(_FORBIDDEN_STARTS) or key.endswith(_FORBIDDEN_ENDS)
            ):
                yield key
            else:
                yield from _forbidden(value)
    elif isinstance(options, Sequence):
        for value in options:
            yield from _forbidden(value)
