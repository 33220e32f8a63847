"""The files of an exported folder, beside the model itself.

preprocessing.json   how a photo becomes the model's input, complete enough for any language
words.json           the words of the scores and the columns of the logits
word_embeddings.npy  embeddings of these words, where words are an input: fp32 (N,T), or (N,K,T)
export.json          what zsmld needs to use the folder as a model: forms, vocabulary, text encoder, calibration
score.py             ranks words for photos with numpy, pillow and onnxruntime alone (ONNX)
README.md            all of this, for the person who gets the folder
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from zsmld.calibration import Calibration
from zsmld.export.formats import FILES
from zsmld.export.script import SCRIPT
from zsmld.export.vocabulary import FrozenWords
from zsmld.images import ImageTransform
from zsmld.model import ZeroShotClassifier, package_versions
from zsmld.predictor.stored import StoredPrediction

EXPORT = "export.json"
FORMAT = 1
FORMS = ("word_embeddings", "frozen", "classes")
_PARTS = {EXPORT, "preprocessing.json", "words.json", "word_embeddings.npy", "score.py", "README.md", *FILES.values()}


@dataclass(frozen=True)
class ExportSettings:
    """How a model was exported.

    Attributes:
        format: "onnx", "torch_export" or "aot_inductor".
        precision: "fp32", "fp16" or "int8".
        include_preprocessing: whether it takes pixels, uint8.
        compiled_for: "cpu" or "cuda", of AOTInductor.
        quantization: what int8 means here; empty without.
    """

    format: str
    precision: str = "fp32"
    include_preprocessing: bool = False
    compiled_for: str = "cpu"
    quantization: dict[str, Any] = field(default_factory=dict)


def is_exported(folder: str | Path) -> bool:
    """Whether a folder holds an exported model."""
    return (Path(folder) / EXPORT).is_file()


def is_part(name: str) -> bool:
    """Whether a file of this name is written by an export; large weights stand in a second file beside the first."""
    return name in _PARTS or name.startswith("model.onnx")


def describe_preprocessing(transform: ImageTransform, inside: bool) -> dict[str, Any]:
    """How a photo becomes the model's input: plain values, in the order of the steps."""
    crops = transform.resize == "crop"
    size = transform.image_size
    return {
        "image_size": size,
        "color": "RGB, upright (EXIF orientation applied), transparency laid on white",
        "resize": transform.resize,
        "resize_meaning": (
            f"scale both sides by one factor so that the image just covers {size} x {size}, from the largest centred "
            f"box of that shape"
            if crops
            else f"both sides to {size}, whatever the shape of the image; nothing is cropped"
        ),
        "interpolation": transform.interpolation,
        "antialias": True,
        "rounded_to_uint8": True,
        "resize_reference": "Pillow: ImageOps.fit(image, size, method)"
        if crops
        else "Pillow: image.resize(size, method)",
        "layout": "(batch, 3, height, width), channels R, G, B",
        "scale": 1 / 255,
        "mean": list(transform.mean),
        "std": list(transform.std),
        "formula": "(pixel / 255 - mean) / std, for each channel, in float32",
        "inside_model": inside,
        "input": "uint8 pixels 0 to 255; the model applies the formula" if inside else "float32, after the formula",
    }


def write_files(
    folder: Path,
    model: ZeroShotClassifier,
    settings: ExportSettings,
    frozen: FrozenWords | None,
    calibration: Calibration | None,
    report: dict[str, Any],
) -> None:
    """Everything but the model and README.md."""
    words = _words(model, frozen)
    transform = model.image_encoder.transform
    content: dict[str, Any] = {
        "format": FORMAT,
        "file": FILES[settings.format],
        "form": _form(model, frozen),
        "settings": vars(settings),
        "image_encoder": {"spec": model.image_encoder.spec, "transform": transform.to_dict()},
        "decoder": {
            "text_dim": model.decoder.text_dim,
            "num_classes": model.decoder.num_classes,
            "descriptions": model.decoder.descriptions,
            "output": model.decoder.output,
        },
        "text_encoder": {"spec": model.text_encoder, "identity": model.text_encoder_identity},
        "vocabulary": None if model.vocabulary is None else model.vocabulary.to_dict(),
        "calibration": None if calibration is None else calibration.to_dict(),
        "prediction": _prediction(model, frozen),
        "scores": model.scores,
        "heldout_words": list(model.heldout_words),
        "training": model.training_record,
        "report": report,
        "versions": package_versions(),
    }
    for name, value in (
        (EXPORT, content),
        ("preprocessing.json", describe_preprocessing(transform, settings.include_preprocessing)),
        ("words.json", words),
    ):
        (folder / name).write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    if frozen is None and model.word_embeddings is not None:
        np.save(folder / "word_embeddings.npy", model.word_embeddings.numpy())
    if settings.format == "onnx" and words["words"]:
        (folder / "score.py").write_text(SCRIPT, encoding="utf-8")


def metadata(model: ZeroShotClassifier, settings: ExportSettings, frozen: FrozenWords | None) -> dict[str, str]:
    """What an ONNX file says of itself, as texts: JSON where it is no plain text."""
    preprocessing = describe_preprocessing(model.image_encoder.transform, settings.include_preprocessing)
    content = _words(model, frozen) | {"preprocessing": preprocessing, "form": _form(model, frozen)}
    texts = {
        name: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        for name, value in content.items()
    }
    if frozen is None:  # words are an input: those of the model are not the file's
        texts = {name: text for name, text in texts.items() if name not in ("words", "columns")}
    return texts | {"producer": "zsmld", "precision": settings.precision, "text_encoder": str(model.text_encoder)}


def _form(model: ZeroShotClassifier, frozen: FrozenWords | None) -> str:
    if frozen is None:
        return "word_embeddings"
    return "classes" if model.decoder.text_dim is None else "frozen"


def _words(model: ZeroShotClassifier, frozen: FrozenWords | None) -> dict[str, Any]:
    words = model.vocabulary.words if frozen is None and model.vocabulary is not None else ()
    meaning = "softmax over the words" if model.scores == "softmax" else "sigmoid of each logit"
    if frozen is None:
        return {"words": list(words), "columns": list(words), "scores_are": meaning}
    if frozen.calibration is not None:
        meaning = "calibrated: standardised logits, a constant for words that were not trained, then a sigmoid"
    return {"words": list(frozen.words), "columns": list(frozen.columns), "scores_are": meaning}


def _prediction(model: ZeroShotClassifier, frozen: FrozenWords | None) -> dict[str, Any] | None:
    stored = StoredPrediction.of(model)
    if frozen is None or model.decoder.text_dim is None:
        return model.prediction
    own = stored.thresholds is not None and set(stored.thresholds.words) <= set(frozen.words)
    return StoredPrediction(frozen.words, frozen.synonyms, stored.thresholds if own else None).to_dict()
