"""load_exported: an exported folder as a model again, for everything that scores with a `ZeroShotClassifier`."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn, cast

import torch
from torch import Tensor, nn

from zsmld.decoder.inference import CompiledWords, Shortlist
from zsmld.export.folder import EXPORT, FORMAT, FORMS, is_exported
from zsmld.export.formats import FILES
from zsmld.export.programs import Program
from zsmld.images import ImageTransform
from zsmld.model import ZeroShotClassifier
from zsmld.model.checkpoint import check_mappings
from zsmld.reading import read_numpy
from zsmld.text import TextEncoder
from zsmld.vocabulary import Vocabulary, check_words


def load_exported(folder: str | Path, device: str = "auto", trust_program: bool = False) -> ZeroShotClassifier:
    """Load what `export_model` wrote, to score with: `Predictor(load_exported(folder))`, `Evaluator`, `pipeline`.

    An ONNX file is data. One of torch.export or AOTInductor is a program, which torch unpickles or links: it is loaded
    only if you say that you trust it.

    Args:
        folder: of the export.
        device: "auto", "cpu" or "cuda".
        trust_program: load a program of torch.export or AOTInductor, which can do all that you can. Made by you, say.

    Returns:
        A model whose network is the exported file. With a frozen vocabulary it scores these words alone. It cannot be
        trained or saved, and does not tell where it looked.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if one is damaged, the format does not run on the device here, or it is a program and not trusted.
        ImportError: if onnxruntime is not installed and the model is ONNX.

    Example:
        >>> load_exported("photos")
        Traceback (most recent call last):
        FileNotFoundError: folder must hold export.json, not found in photos; write it with zsmld export
    """
    folder = Path(folder)
    if not is_exported(folder):
        raise FileNotFoundError(f"folder must hold {EXPORT}, not found in {folder}; write it with zsmld export")
    try:
        config = json.loads((folder / EXPORT).read_text(encoding="utf-8"))
        if config["format"] != FORMAT:
            raise ValueError(
                f"exported folder {folder} must have format {FORMAT}, got {config['format']}; update zsmld"
            )
        words = json.loads((folder / "words.json").read_text(encoding="utf-8"))
        settings, form = config["settings"], config["form"]
        if settings["format"] not in FILES or form not in FORMS:
            raise KeyError(settings["format"], form)
        if settings["format"] != "onnx" and not trust_program:
            raise ValueError(
                f"trust_program must be True to load the {settings['format']} program in {folder}, which may run "
                f"anything; if it is your own, pass trust_program=True (--trust-program), else export to onnx"
            )
        model = _model(folder, config, words, device)
        model.heldout_words = check_words(config["heldout_words"], "heldout_words", allow_empty=True)
        model.calibration, model.prediction = config["calibration"], config["prediction"]
        model.scores, model.training_record = config["scores"], config["training"]
        check_mappings(config, "calibration", "prediction", "training")
        if form == "frozen":
            _replace_method(model, "encode_words", _frozen_columns(model, len(words["words"])))
    except (OSError, ImportError):  # what is not on this machine
        raise
    except Exception as error:  # a runtime, JSON and the parts of a model have many kinds; the reader needs the path
        if str(error).startswith(("exported folder", "trust_program", "device", str(folder))):
            raise
        raise ValueError(
            f"exported folder {folder} must be complete, it is damaged: {error!r}; export it again"
        ) from error
    _replace_method(model, "save_pretrained", _refuse_to_save)
    return model


def _model(folder: Path, config: dict[str, Any], words: dict[str, Any], device: str) -> ZeroShotClassifier:
    settings, form = config["settings"], config["form"]
    transform = config["image_encoder"]["transform"]
    transform = ImageTransform(**transform | {"mean": tuple(transform["mean"]), "std": tuple(transform["std"])})
    program = Program(folder, settings["format"], device, settings["compiled_for"])
    digest = hashlib.sha256()
    for path in sorted(folder.glob(f"{FILES[settings['format']]}*")):  # large weights stand in a second file
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    encoder = ExportedEncoder(transform, config["image_encoder"]["spec"])
    pixels = transform if settings["include_preprocessing"] else None
    num_columns = config["decoder"]["num_classes"] if form == "classes" else None
    if form == "frozen":
        num_columns = len(words["columns"])
    if num_columns is not None and (not isinstance(num_columns, int) or num_columns < 1):
        raise ValueError(f"its number of words must be a whole one of at least 1, got {num_columns!r}")
    head = ExportedHead(program, config["decoder"], form, digest.digest(), pixels, settings["precision"], num_columns)
    model = ZeroShotClassifier(cast(Any, encoder), cast(Any, head))  # they have what scoring needs, and no more
    vocabulary = None if config["vocabulary"] is None else Vocabulary.from_dict(config["vocabulary"])
    _check_own_words(folder, config, words["words"], vocabulary)
    if form == "frozen":  # a word's embedding is its column
        columns = check_words(words["columns"])
        vocabulary = _columns_as(vocabulary, columns)
        model.remember_words(vocabulary, torch.arange(len(columns), dtype=torch.float32)[:, None])  # (P,1)
        return model
    model.text_encoder, model.text_encoder_identity = config["text_encoder"]["spec"], config["text_encoder"]["identity"]
    if form == "classes":
        model.remember_words(Vocabulary(words["words"]) if vocabulary is None else vocabulary, None)
    elif vocabulary is not None:
        model.remember_words(vocabulary, _word_embeddings(folder / "word_embeddings.npy"))
    return model


def _check_own_words(folder: Path, config: dict[str, Any], words: list[str], known: Vocabulary | None) -> None:
    """Whether words.json, which score.py reads, has still the words that the model was exported with."""
    if config["form"] == "frozen":
        own = list(config["prediction"]["words"])
    elif known is not None:
        own = list(known.words)
    else:
        return  # words.json alone has them: `remember_words` counts those of class queries
    if words != own:
        raise ValueError(
            f"exported folder {folder} must have in words.json the words it was exported with, which are {len(own)}, "
            f"got {len(words)}, other ones or in another order; export the model again, changed ones are for score.py "
            f"alone"
        )


def _word_embeddings(path: Path) -> Tensor:
    try:
        return torch.from_numpy(read_numpy(path))
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"exported folder must hold {path.name}, not found in {path.parent}; export the model again"
        ) from error
    except Exception as error:  # cut short, a pickle, no array of numbers: numpy has many kinds
        raise ValueError(
            f"{path} must be an array of numbers, it is damaged: {error}; export the model again"
        ) from error


def _columns_as(known: Vocabulary | None, columns: tuple[str, ...]) -> Vocabulary:
    """Columns as words that are seen, and prompted, as the model has them."""
    if known is None:
        return Vocabulary(columns)
    own = {word: texts for word, texts in known.descriptions.items() if word in columns}
    return Vocabulary(columns, [word for word in known.seen if word in columns], known.templates, own)


class ExportedEncoder(nn.Module):
    """Gives the images themselves: the exported file is encoder and head in one.

    Args:
        transform: of the images.
        spec: of the encoder that was exported.
    """

    num_global_tokens = encoder_dim = 0
    grid_size = (1, 1)

    def __init__(self, transform: ImageTransform, spec: str) -> None:
        super().__init__()
        self.transform, self.spec = transform, spec

    def forward(self, images: Tensor) -> Tensor:
        """(B,3,H,W) -> (B,3,H,W)."""
        return images

    def config(self) -> dict[str, Any]:
        """What it was exported from."""
        return {"spec": self.spec, "exported": True, **self.transform.to_dict()}


class ExportedHead(nn.Module):
    """Transformed images and words -> logits, by an exported file; in the place of a decoder.

    Args:
        program: the file.
        config: of the decoder that was exported.
        form: "word_embeddings", "frozen" or "classes".
        digest: of the file, so that two of them are told apart.
        pixels: the transform that the file undoes itself; None where it does not.
        precision: of the file.
        num_columns: of the file, whose words are fixed; None where they are an input.
    """

    num_global_tokens = encoder_dim = 0
    prior = None

    def __init__(
        self,
        program: Program,
        config: dict[str, Any],
        form: str,
        digest: bytes,
        pixels: ImageTransform | None,
        precision: str,
        num_columns: int | None,
    ) -> None:
        super().__init__()
        self.num_classes, self.output, self.descriptions = (
            config["num_classes"],
            config["output"],
            config["descriptions"],
        )
        text_dims = {"frozen": 1, "classes": None, "word_embeddings": config["text_dim"]}
        self.text_dim: int | None = text_dims[form]
        self.digest = nn.Parameter(torch.tensor(list(digest), dtype=torch.uint8), requires_grad=False)
        self._program, self._config, self._form, self._pixels = program, config, form, pixels
        self._precision, self._num_columns = precision, num_columns

    def config(self) -> dict[str, Any]:
        """What it was exported from."""
        return {"exported": self._form, "precision": self._precision, **self._config}

    def forward(self, images: Tensor, word_embeddings: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Images (B,3,H,W) fp32 as the encoder's transform makes them, and words as for `MLDecoder` -> logits (B,N)."""
        if word_embeddings is None and self.text_dim is not None:
            raise ValueError(
                f"word_embeddings must be (N, {self.text_dim}), got None; pass those of the words to score"
            )
        fits = word_embeddings is None or (len(word_embeddings) and word_embeddings.shape[-1] == self.text_dim)
        shape = () if word_embeddings is None else tuple(word_embeddings.shape)
        if not fits or (len(shape) == 3 and self.descriptions == "mean"):
            raise ValueError(
                f"word_embeddings must be (N, {self.text_dim}), got {shape}; encode the words with model.encode_words"
            )
        if self._pixels is not None:  # back to what they were made of, exactly
            mean, std = (
                torch.tensor(v, device=images.device)[:, None, None] for v in (self._pixels.mean, self._pixels.std)
            )
            images = ((images * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)
        images = images.contiguous()
        if self._num_columns is not None:
            logits = self._program(images, num_words=self._num_columns)[0]  # (B,P)
            if logits.shape[1] != self._num_columns:
                raise ValueError(
                    f"exported folder must hold the words that its model scores, which are {logits.shape[1]}, got "
                    f"{self._num_columns}; export the model again"
                )
            return logits if word_embeddings is None else logits[:, word_embeddings[:, 0].long().to(images.device)]
        assert word_embeddings is not None  # refused above, where words are an input
        if self.descriptions == "mean":
            return self._program(images, word_embeddings)[0]
        if word_embeddings.ndim == 2:
            word_embeddings = word_embeddings[:, None]  # (N,1,T)
        mask = (word_embeddings != 0).any(2) if mask is None else mask  # (N,K)
        return self._program(images, word_embeddings, mask)[0]

    def for_inference(self, precision: str, compile: bool) -> "ExportedInference":
        """What a `Predictor` uses instead of an `InferenceDecoder`.

        Raises:
            ValueError: on another precision than the file's, or to compile.
        """
        if precision not in ("fp32", self._precision) or compile:
            raise ValueError(
                f"precision must be left out for an exported model, which is {self._precision}, got {precision!r} with "
                f"compile={compile}; export it in another precision"
            )
        return ExportedInference(self)

    def attention(self, *_: Any) -> NoReturn:
        """Where queries looked is not among what a file gives.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            "model must be a checkpoint to show where it looked, got an exported model; load the checkpoint"
        )


class ExportedInference:
    """The interface of `zsmld.decoder.inference.InferenceDecoder`, for an exported file.

    Args:
        head: of the file.
    """

    def __init__(self, head: ExportedHead) -> None:
        self._head = head

    def compile(self, word_embeddings: Tensor, mask: Tensor | None = None) -> CompiledWords:
        """Words (N,T) or (N,K,T), as they are: the file does the rest for each batch, or has done it."""
        return CompiledWords({"embeddings": word_embeddings})

    def __call__(self, images: Tensor, words: CompiledWords | None = None) -> Tensor:
        """Images (B,3,H,W) -> logits fp32 (B,N)."""
        found: Tensor = self._head(images, None if words is None else words.parts["embeddings"])
        return found

    def shortlisted(self, images: Tensor, words: CompiledWords, shortlist: Shortlist) -> NoReturn:
        """A file scores all words of an image.

        Raises:
            ValueError: always.
        """
        raise ValueError("shortlist must be left out for an exported model, which scores all words of an image at once")


def _replace_method(model: ZeroShotClassifier, name: str, method: Any) -> None:
    setattr(model, name, method)  # of this one model: nothing of ours inherits


def _refuse_to_save(*_: Any, **__: Any) -> NoReturn:
    raise ValueError("model must be a checkpoint to be saved, got an exported model; copy its folder instead")


def _frozen_columns(model: ZeroShotClassifier, num_words: int) -> Any:
    def encode_words(words: Vocabulary | Iterable[str], text_encoder: TextEncoder | None = None) -> Tensor:
        """The columns (N,1) of frozen words."""
        vocabulary = words if isinstance(words, Vocabulary) else model.prompted(words)
        unknown = model.unknown_words(vocabulary)
        if unknown:
            raise ValueError(
                f"words must be among the {num_words} that this model was exported with, got "
                f"{unknown[:3]}; export it with them, or without words for any"
            )
        return ZeroShotClassifier.encode_words(model, vocabulary)

    return encode_words
