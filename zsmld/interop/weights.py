"""Weights of other ML-Decoder implementations -> a model of ours, and a report in which every tensor stands."""

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from zsmld.decoder import MLDecoder
from zsmld.images import ImageEncoder
from zsmld.interop.body_names import filtered, fit_body, idle_children, name_body, paddle_to_timm
from zsmld.interop.checkpoint_files import StoredWeights, is_averaged_copy, read_checkpoint
from zsmld.interop.head_names import FoundHead, TranslatedHead, find_head, translate_head
from zsmld.interop.vector_arrays import import_word_vectors, read_classes
from zsmld.model import ZeroShotClassifier
from zsmld.text import TextEncoder
from zsmld.vocabulary import Vocabulary, check_words

# How each code base prepares its images; None is what timm stores for the network.
_TRANSFORMS: dict[str, dict[str, Any]] = {
    "official": {"image_size": 448, "mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0), "interpolation": "bilinear"},
    "paddle": {
        "image_size": 448,
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
        "interpolation": "bilinear",
    },
    "timm": {"image_size": None, "mean": None, "std": None, "interpolation": None},
}


@dataclass
class ImportReport:
    """What became of every tensor of a checkpoint.

    Attributes:
        source: the file.
        kind: whose head it is: "official", "timm" or "paddle".
        place: where in the file the weights stood; "" if they are the file.
        mode: "word" or "class".
        image_encoder: spec of the body.
        taken: for each tensor that was taken, by its name in the file, what it became.
        left: for each that was not, the reason.
        others: what the file holds beside the weights, with its type.
        kept: our own tensors that the file does not have and does not need.
        notes: what a person should know before using the model.
        output: folder of the imported model; None for `load_weights`.
    """

    source: str
    kind: str
    place: str
    mode: str
    image_encoder: str
    taken: dict[str, str] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)
    others: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    output: str | None = None

    def summary(self) -> str:
        """A few lines, without the list of tensors."""
        place = f" ({self.place})" if self.place else ""
        lines = [f"{self.source}{place}: {self.kind} head in {self.mode} mode on {self.image_encoder}"]
        lines.append(f"{len(self.taken)} tensors taken, {len(self.left)} left out, {len(self.kept)} of our own kept")
        lines += [f"note: {note}" for note in self.notes]
        if self.output is not None:
            lines.append(f"saved to {self.output}")
        return "\n".join(lines)

    def __str__(self) -> str:
        """The summary, and every tensor."""
        lines = [self.summary()]
        lines += [f"  {theirs} -> {ours}" for theirs, ours in self.taken.items()]
        lines += [f"  {theirs} left out: {reason}" for theirs, reason in self.left.items()]
        lines += [f"  {ours} kept: the file has none" for ours in self.kept]
        lines += [f"  {name} beside the weights" for name in self.others]
        return "\n".join(lines)


def import_weights(path: str | Path, output: str | Path, **options: Any) -> ImportReport:
    """Read a checkpoint of another ML-Decoder and save it as a model of ours.

    Args:
        path: `.pth`, `.pt`, `.ckpt`, `.safetensors` or `.pdparams`.
        output: folder for the model, as `ZeroShotClassifier.save_pretrained` writes it, and for `import.txt`, the
            report.
        options: those of `load_weights`.

    Returns:
        The report; `str(report)` lists every tensor.

    Raises:
        FileNotFoundError: if a file does not exist.
        ValueError: if the checkpoint does not fit; nothing is written then.
    """
    if Path(output).exists() and not Path(output).is_dir():
        raise ValueError(f"output must be a folder, got the file {output}; name another")
    model, report = load_weights(path, **options)
    report.output = str(output)
    model.save_pretrained(output)
    (Path(output) / "import.txt").write_text(f"{report}\n", encoding="utf-8")
    return report


def load_weights(
    path: str | Path,
    *,
    image_encoder: str | None = None,
    model_kwargs: dict[str, Any] | None = None,
    words: Sequence[str] | str | Path | None = None,
    word_vectors: str | Path | None = None,
    averaged: bool | None = None,
    num_heads: int = 8,
    image_size: int | None = None,
    mean: tuple[float, float, float] | None = None,
    std: tuple[float, float, float] | None = None,
    ignore: Iterable[str] = (),
) -> tuple[ZeroShotClassifier, ImportReport]:
    """Read a checkpoint of another ML-Decoder: the official code's, timm's or PaddleClas'.

    Args:
        path: `.pth`, `.pt`, `.ckpt`, `.safetensors` or `.pdparams`.
        image_encoder: spec of the body, "timm:resnet50" for instance; default by the checkpoint: a TResNet of the
            official code, a ResNet of PaddleClas, or the architecture that timm's `train.py` stores. Needed for others,
            and for a file that holds a head alone, which gets this encoder's own pretrained weights.
        model_kwargs: further arguments of the timm model.
        words: what the classes are called, in order: a list, or a file with one a line or a JSON list; default those
            of the checkpoint (`idx_to_class`, `classes`). In word mode, the words to remember.
        word_vectors: word mode: the vectors it was trained with, a file that the text encoder `vectors:FILE` reads;
            `import_word_vectors` makes one of an array and a list.
        averaged: of a checkpoint with both, the averaged weights (EMA) or those of the last step; None takes the
            averaged if there are some.
        num_heads: attention heads, which no checkpoint stores.
        image_size: pixels; default what the checkpoint's settings say, else 448 for the official code and PaddleClas.
        mean: per channel, in [0,1]; default that of the code base: 0 for the official one.
        std: likewise; 1 for the official one.
        ignore: patterns of tensors of the body that may be left out, "*.aux.*" for instance.

    Returns:
        The model in eval mode, and the report.

    Raises:
        FileNotFoundError: if a file does not exist.
        ValueError: if anything is missing, left over or of another shape; the message lists it.

    Source: Alibaba-MIIL/ML_Decoder, `timm.layers.ml_decoder`, PaddleClas `ppcls/arch/gears/ml_decoder.py`; for TResNet
        timm's own filter, which also takes inplace-ABN's |weight| + 1e-5.

    Example:
        >>> import tempfile, timm, torch
        >>> from timm.layers.ml_decoder import add_ml_decoder_head
        >>> network = add_ml_decoder_head(timm.create_model("resnet18", num_classes=6))
        >>> file = Path(tempfile.mkdtemp()) / "checkpoint.pth.tar"
        >>> torch.save({"arch": "resnet18", "state_dict": network.state_dict()}, file)
        >>> model, report = load_weights(file, image_size=64)
        >>> print(report.summary().split(": ")[1])
        timm head in class mode on timm:resnet18
        139 tensors taken, 0 left out, 0 of our own kept
        note
    """
    stored = read_checkpoint(path, averaged)
    head = find_head(stored.tensors, averaged)
    names = _stored_words(stored.others) if words is None else read_classes(words)
    translated = translate_head(head, None if names is None else len(names), num_heads)
    mode = "word" if "text_dim" in translated.config else "class"
    report = ImportReport(str(path), head.kind, stored.place, mode, "")
    if mode == "class" and word_vectors is not None:
        raise ValueError(f"word_vectors must be None for a head of class mode, got {word_vectors}; leave it out")
    if mode == "word" and words is not None and word_vectors is None:
        raise ValueError("word_vectors must be given with words for a head of word mode, got None; name their file")
    transform = _TRANSFORMS[head.kind] | _stored_transform(stored.others)
    given = {"image_size": image_size, "mean": mean, "std": std}
    transform |= {name: value for name, value in given.items() if value is not None}
    encoder = _load_body(stored, head, image_encoder, model_kwargs, transform, tuple(ignore), report)
    decoder = _load_decoder(encoder, translated, report)
    report.taken |= {f"{head.wrapper}{head.path}{theirs}": ours for theirs, ours in translated.origin.items()}
    _account(stored, report)
    model = ZeroShotClassifier(encoder, decoder)
    if mode == "class":
        _name_classes(model, names, report)
    else:
        _give_words(model, names, word_vectors, report)
    is_averaged = stored.is_averaged or is_averaged_copy(head.wrapper)
    origin = {"file": Path(path).name, "code": head.kind}
    # What no place or name in the file calls averaged may still be that: its code says so, not the file.
    model.training_record = {"imported": origin | {"weights": "averaged" if is_averaged else "not marked as averaged"}}
    report.notes.append(f"images are prepared by {encoder.transform}")
    return model.eval(), report


def _load_body(
    stored: StoredWeights,
    head: FoundHead,
    spec: str | None,
    model_kwargs: dict[str, Any] | None,
    transform: dict[str, Any],
    ignore: tuple[str, ...],
    report: ImportReport,
) -> ImageEncoder:
    prefix = f"{head.wrapper}{head.path}"
    body = {
        name.removeprefix(head.wrapper): tensor
        for name, tensor in stored.tensors.items()
        if name.startswith(head.wrapper) and not (name.startswith(prefix) and name.removeprefix(prefix) in head.tensors)
    }
    if not head.wrapper:  # the other copy of the weights is no part of the body
        body = {name: tensor for name, tensor in body.items() if not is_averaged_copy(name)}
    alone = not body
    if alone and spec is None:
        raise ValueError(f"image_encoder must be named for a head without a body, got {report.source}; give timm:NAME")
    arch = stored.others.get("arch")
    own_kwargs: dict[str, Any] = {}
    if spec is None:
        spec, own_kwargs = name_body(body, arch if isinstance(arch, str) else None)
    # Random weights: all are replaced below, or the import fails.
    encoder = ImageEncoder(spec, pretrained=alone, model_kwargs={**own_kwargs, **(model_kwargs or {})}, **transform)
    report.image_encoder = encoder.spec
    if alone:
        report.notes.append(f"the file holds a head alone; the body has the pretrained weights of {spec}")
        return encoder
    first = paddle_to_timm(body) if head.kind == "paddle" else {name: name for name in body}
    state, second = filtered(encoder.body, {first[name]: tensor for name, tensor in body.items()})
    blank = torch.zeros(1, 3, *[encoder.transform.image_size] * 2)
    encoder.eval()
    idle = idle_children(encoder.body, lambda: encoder(blank))
    chosen, left, kept = fit_body(encoder.body, state, ignore, idle)
    encoder.body.load_state_dict(chosen)
    for name in body:
        ours = second[first[name]]
        if ours in left:
            report.left[f"{head.wrapper}{name}"] = left[ours]
        else:
            report.taken[f"{head.wrapper}{name}"] = f"image_encoder.body.{ours}"
    report.kept += [f"image_encoder.body.{name}" for name in kept]
    return encoder


def _load_decoder(encoder: ImageEncoder, translated: TranslatedHead, report: ImportReport) -> MLDecoder:
    if encoder.encoder_dim != translated.config["encoder_dim"]:
        raise ValueError(
            f"image_encoder must give {translated.config['encoder_dim']} channels, as the head expects, got "
            f"{encoder.encoder_dim} from {encoder.spec}; name the encoder it was trained with"
        )
    decoder = MLDecoder(**translated.config)
    own = decoder.state_dict()
    constants = {name: own[name] for name in ("word_mean", "word_scale") if name in own}  # identity: nobody else has it
    wrong = [
        f"{name} {tuple(tensor.shape)} for {tuple(own[name].shape)}"
        for name, tensor in translated.tensors.items()
        if own[name].shape != tensor.shape
    ]
    if wrong:
        raise ValueError(f"the head's tensors must fit each other, got {wrong[:4]}; the checkpoint is damaged")
    decoder.load_state_dict(translated.tensors | constants)
    report.kept += [f"decoder.{name}" for name in constants]
    return decoder


def _account(stored: StoredWeights, report: ImportReport) -> None:
    """Whatever is in the file and was not spoken of yet."""
    for name in stored.tensors:
        if name not in report.taken and name not in report.left:
            report.left[name] = "outside the network whose weights were taken"
    for name, value in stored.others.items():
        report.others.append(f"{name} ({type(value).__name__})")


def _stored_transform(others: dict[str, Any]) -> dict[str, Any]:
    """How the training prepared its images, as far as its settings say: a dict, or an argument parser's Namespace."""
    settings = others.get("args")
    settings = settings if isinstance(settings, dict) else dict(getattr(settings, "__dict__", {}))
    found: dict[str, Any] = {}
    for name in ("image_size", "img_size", "input_size"):  # of timm: [3, 448, 448]
        size = settings.get(name)
        size = size[-1] if isinstance(size, (list, tuple)) and size else size
        if (text := str(size)).isdigit() and int(text):
            found.setdefault("image_size", int(text))
    for name in ("mean", "std"):
        value = settings.get(name)
        if isinstance(value, (list, tuple)) and len(value) == 3 and all(isinstance(v, (int, float)) for v in value):
            found[name] = tuple(map(float, value))
    if settings.get("interpolation") in ("bilinear", "bicubic"):  # timm also writes "" and "random"
        found["interpolation"] = settings["interpolation"]
    return found


def _stored_words(others: dict[str, Any]) -> tuple[str, ...] | None:
    """The names of the classes of a checkpoint, in order; what is named twice gets a number."""
    found = others.get("idx_to_class", others.get("classes"))
    labels = others.get("class_to_idx")
    if found is None and isinstance(labels, dict):  # as torchvision's datasets have it
        found = {label: word for word, label in labels.items()}
    if isinstance(found, dict):
        numbered = all(str(label).isdigit() for label in found)  # other keys say nothing of the order; the file does
        found = [found[label] for label in (sorted(found, key=int) if numbered else found)]
    found = found.tolist() if isinstance(found, np.ndarray) else found
    if not isinstance(found, (list, tuple)) or not found:
        return None
    names: dict[str, None] = {}
    for name in map(str, found):
        again = (f"{name} ({number})" for number in itertools.count(2))
        names[name if name not in names else next(other for other in again if other not in names)] = None
    return tuple(names)


def _name_classes(model: ZeroShotClassifier, names: Sequence[str] | None, report: ImportReport) -> None:
    if names is None:
        report.notes.append("the file does not say what its classes are called; give words, a list or a file")
        return
    if len(names) != model.decoder.num_classes:
        raise ValueError(
            f"words must be {model.decoder.num_classes}, one for each class of the head, got {len(names)}; correct them"
        )
    model.remember_words(Vocabulary(check_words(names)), None)
    numbered = [name for name in names if name.endswith(")") and name.rpartition(" (")[0] in names]
    if numbered:
        report.notes.append(f"classes of the same name got a number: {numbered[:5]}")


def _give_words(
    model: ZeroShotClassifier,
    names: Sequence[str] | None,
    word_vectors: str | Path | None,
    report: ImportReport,
) -> None:
    """The words of a head of word mode, and where more come from.

    Our text encoders give vectors of length one; the official code gives the head those of its file as they are. Where
    all of the file have one length, the projection takes it over and both agree; else only the remembered words are
    right. The mean of several parts is shorter: remembered words keep it so, new ones would get length one.
    """
    if word_vectors is None:
        report.notes.append("no words yet: give word_vectors, the vectors that this head was trained with")
        return
    vectors = import_word_vectors(word_vectors, words=names)
    if vectors.missing:
        report.notes.append(f"words without a vector were left out: {list(vectors.missing)}")
    embeddings = torch.from_numpy(vectors.embeddings)
    shortest, longest = vectors.lengths
    decoder = model.decoder
    assert isinstance(decoder, MLDecoder)  # built above
    if embeddings.shape[1] != decoder.text_dim:
        raise ValueError(
            f"word_vectors must be {decoder.text_dim} wide, as the head expects, got {embeddings.shape[1]} in "
            f"{word_vectors}; name the vectors it was trained with"
        )
    if longest - shortest > 2e-3 * longest:
        report.notes.append(
            f"the word vectors are {shortest:.2f} to {longest:.2f} long and the head knows them so; it scores these "
            f"{len(vectors.words)} words, and no text encoder of ours, whose vectors have length one, may give it more"
        )
    elif Path(word_vectors).suffix in (".npy", ".pickle", ".pkl"):
        report.notes.append(
            f"{Path(word_vectors).name} does not hold its words, so the model takes no new ones; make one file of both "
            f"with import_word_vectors and give that"
        )
    else:
        spec = f"vectors:{Path(word_vectors).resolve()}"
        _scale_words(decoder.word_proj, longest)
        embeddings = embeddings / longest
        model.text_encoder, model.text_encoder_identity = spec, TextEncoder(spec).identity
        if vectors.averaged:
            report.notes.append(
                f"{len(vectors.averaged)} words have the mean of their parts, as the official code has it; a new word "
                f"of several parts gets its direction with length one"
            )
    model.remember_words(Vocabulary(vectors.words), embeddings)


@torch.no_grad()
def _scale_words(word_proj: nn.Linear, length: float) -> None:
    if not math.isclose(length, 1.0, rel_tol=1e-4):
        word_proj.weight.mul_(length)
