"""Door: export_model. A trained model as a file that other programs run; load_exported makes it a model again.

graph          what is exported: images and words in, logits and scores out
vocabulary     the words that are frozen into it
formats        ONNX, torch.export, AOTInductor
quantization   int8
verification   the file beside the model, and the report
folder         what stands beside the file; script is its score.py
programs       the file, ready to run
loading        the folder as a model again
"""

import os
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from zsmld.calibration import Calibration
from zsmld.export.folder import ExportSettings, is_exported, is_part, metadata, write_files
from zsmld.export.formats import FILES, Format, capture, has_compiler, write_program
from zsmld.export.graph import ExportGraph, word_inputs
from zsmld.export.loading import load_exported
from zsmld.export.programs import Program, needed
from zsmld.export.quantization import calibration_batches, quantize
from zsmld.export.readme import readme
from zsmld.export.verification import NUM_WORDS, ExportReport, verify
from zsmld.export.vocabulary import freeze_words
from zsmld.model import ZeroShotClassifier
from zsmld.text import TextEncoder, resolve_device
from zsmld.writing import to_the_end

__all__ = ["ExportReport", "export_model", "is_exported", "load_exported"]

ExportPrecision = Literal["fp32", "fp16", "int8"]


def export_model(
    model: ZeroShotClassifier,
    folder: str | Path,
    *,
    words: Iterable[str] | str | None = None,
    format: Format = "onnx",
    precision: ExportPrecision = "fp32",
    include_preprocessing: bool = False,
    calibrated: bool = True,
    calibration_images: Any = None,
    opset: int | None = None,
    device: str = "cpu",
    verify: bool = True,
    overwrite: bool = False,
    text_encoder: TextEncoder | None = None,
) -> ExportReport:
    """Write a model as a file that runs without zsmld, with all that is needed to use it beside it.

    The file takes `images` (B,3,H,W) and gives `logits` and `scores`, any number of images at a time. Without `words`
    it takes `word_embeddings` (N,T) as well, so that words can be chosen at run time; a head that weighs several
    descriptions of a word takes (N,K,T) and a `mask` (N,K). With `words` it has them inside. The model itself stays as
    it is, where it is.

    Args:
        model: a trained model.
        folder: to write, which must not exist or be empty. It appears complete, or not at all.
        words: to freeze; "stored": those of the model, with their synonyms; None: words are an input. In class mode
            the classes are frozen always.
        format: "onnx"; "torch_export", a program that torch loads anywhere; "aot_inductor", a library for this kind of
            machine, which needs a C++ compiler.
        precision: "fp32"; "fp16", weights and large products, for GPUs; "int8", ONNX only.
        include_preprocessing: take pixels, uint8 (B,3,H,W) of the right size, and normalise inside. Resizing stays
            outside: ONNX has no operator that gives Pillow's bytes.
        calibrated: with frozen words, give calibrated scores where a calibration is stored with the model. Words of
            run time have sigmoids of their logits; `load_exported` calibrates them.
        calibration_images: for int8, photos to learn the ranges of activations from, as `Predictor.predict` takes them;
            128 are plenty. Without, ranges are measured in each batch and convolutions stay in fp32.
        opset: of ONNX; default the exporter's.
        device: "cpu", or "cuda" to compile for it with AOTInductor.
        verify: run the file and compare it with the model.
        overwrite: replace an exported folder that is there, if it holds nothing else.
        text_encoder: for words that the model does not know; default its own.

    Returns:
        An `ExportReport`, whose `to_text()` is a summary.

    Raises:
        FileExistsError: if the folder is not empty, or holds something else than an export.
        ImportError: if a package for ONNX is missing.
        OSError: if the disk is full; what was in the folder stays.
        ValueError: if options contradict each other, the model cannot be exported so, or the file gives other logits.

    Example:
        >>> import tempfile
        >>> model = ZeroShotClassifier.from_pretrained("scenes")
        >>> with tempfile.TemporaryDirectory() as home:
        ...     report = export_model(model, f"{home}/star", words=["red star"], format="torch_export")
        ...     exported = load_exported(f"{home}/star", "cpu", trust_program=True)
        ...     exported(torch.zeros(2, 3, 64, 64), torch.zeros(1, 1)).shape
        torch.Size([2, 1])
        >>> report.largest_difference < 1e-4
        True
    """
    folder, settings = Path(folder), ExportSettings(format, precision, include_preprocessing)
    _check(settings, opset, device, calibration_images)
    _check_folder(folder, overwrite)
    place = folder.resolve()  # a link stays one
    on = resolve_device(device)
    settings = replace(settings, compiled_for=on.type)
    training, before = model.training, next(model.parameters()).device
    model.to(on).eval()
    # Under a name of its own until all is in it: what fails leaves nothing, and what was there before.
    place.parent.mkdir(parents=True, exist_ok=True)
    private = Path(tempfile.mkdtemp(prefix=f".{place.name}.", dir=place.parent))
    old = private.with_name(f"{private.name}.old")
    try:
        with to_the_end(folder):
            report = _export(
                model, private, words, settings, calibrated, calibration_images, opset, verify, text_encoder
            )
        private.chmod(0o755)
        if place.exists():
            _check_folder(place, overwrite)  # again: an export takes minutes
            os.replace(place, old)
        os.replace(private, place)
        shutil.rmtree(old, ignore_errors=True)
    except BaseException:
        if old.exists() and not place.exists():
            os.replace(old, place)
        raise
    finally:
        shutil.rmtree(private, ignore_errors=True)
        model.to(before).train(training)
    return replace(report, folder=folder)


def _export(
    model: ZeroShotClassifier,
    folder: Path,
    words: Iterable[str] | str | None,
    settings: ExportSettings,
    calibrated: bool,
    calibration_images: Any,
    opset: int | None,
    verifies: bool,
    text_encoder: TextEncoder | None,
) -> ExportReport:
    calibration = Calibration.of(model) if calibrated else None
    if model.decoder.text_dim is None and words is None:
        words = "stored"
    if words is not None and calibration is not None and calibration.transductive:
        raise ValueError(
            "calibrated must be False for this model, its calibration is transductive: it needs all images at once; "
            "pass calibrated=False (--uncalibrated)"
        )
    frozen = None if words is None else freeze_words(model, words, calibration, text_encoder)
    batches = None if calibration_images is None else calibration_batches(model, calibration_images)
    sample = None if frozen is not None else _sample_words(model)
    pixels = _sample_pixels(model.image_encoder.transform.image_size)
    graph = ExportGraph(model, frozen, settings.precision == "fp16", settings.include_preprocessing)
    device = next(model.parameters()).device
    example = pixels[:2] if settings.include_preprocessing else pixels[:2].float() / 255
    inputs = (example, *word_inputs(None if sample is None else sample[:3]))
    # On the CPU: a trace of a GPU holds the limits of its kernels, no batch of one image among them.
    program = capture(graph.cpu(), inputs)
    path, wanted = folder / FILES[settings.format], settings.format
    first = folder / "fp32.onnx" if settings.precision == "int8" else path
    texts = metadata(model, settings, frozen)
    write_program(program, first, wanted, opset, texts, device)  # type: ignore[arg-type]
    graph.to(device)
    if settings.precision == "int8":
        feeds = None
        if batches is not None:
            feeds = [_feed(graph, model, batch, sample) for batch in batches]
        settings = replace(settings, quantization=quantize(first, path, feeds))
        for left in folder.glob("fp32.onnx*"):
            left.unlink()
    checks: tuple[dict[str, Any], ...] = ()
    if verifies:
        runnable = Program(folder, settings.format, device.type, settings.compiled_for)
        checks = verify(runnable, model, graph, frozen, pixels, sample, settings.precision)
    form = "word_embeddings" if frozen is None else "classes" if frozen.embeddings is None else "frozen"
    report = ExportReport(
        folder,
        form,
        settings.format,
        settings.precision,
        None if frozen is None else len(frozen.words),
        _opset_of(path) if settings.format == "onnx" else None,
        sum(file.stat().st_size for file in folder.iterdir()),
        checks,
        settings.quantization,
    )
    stored = Calibration.of(model) if frozen is None and calibrated else calibration
    write_files(folder, model, settings, frozen, stored, report.to_dict())
    (folder / "README.md").write_text(readme(model, settings, report, frozen), encoding="utf-8")
    return report


def _check(settings: ExportSettings, opset: int | None, device: str, calibration_images: Any) -> None:
    for name, value, known in (
        ("format", settings.format, get_args(Format)),
        ("precision", settings.precision, get_args(ExportPrecision)),
    ):
        if value not in known:
            raise ValueError(f"{name} must be one of {list(known)}, got {value!r}; choose one")
    if settings.format == "onnx":
        for package in ("onnx", "onnxscript", "onnxruntime"):
            needed(package)
    elif settings.precision == "int8" or opset is not None:
        raise ValueError(
            f"format must be 'onnx' with int8 or an opset, got {settings.format!r} with "
            f"precision={settings.precision!r} and opset={opset}; choose another"
        )
    if opset is not None and opset < 18:
        raise ValueError(f"opset must be at least 18, got {opset}; the exporter writes no older one")
    if calibration_images is not None and settings.precision != "int8":
        raise ValueError(
            f"calibration_images must come with precision='int8', got {settings.precision!r}; leave them out"
        )
    if settings.format == "aot_inductor" and not has_compiler():
        raise ValueError(
            "format must be 'onnx' or 'torch_export' where there is no C++ compiler, got 'aot_inductor'; install g++"
        )
    if device != "cpu" and settings.format != "aot_inductor":
        raise ValueError(
            f"device must be 'cpu' for {settings.format!r}, whose file runs on any device, got {device!r}; leave it out"
        )


def _check_folder(folder: Path, overwrite: bool) -> None:
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not is_exported(folder):
        raise FileExistsError(f"folder must be free, {folder} holds something else than an export; choose another")
    if not overwrite:
        raise FileExistsError(f"folder must be free, {folder} holds an export; choose another, or overwrite it")
    others = [path.name for path in sorted(folder.iterdir()) if not is_part(path.name)]
    if others:
        raise FileExistsError(
            f"folder must hold nothing but an export to be overwritten, {folder} holds {others[:3]} as well; move them "
            f"away, or choose another"
        )


def _sample_pixels(size: int) -> Tensor:
    """Eight random pictures (8,3,H,W) uint8."""
    return torch.randint(0, 256, (8, 3, size, size), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def _sample_words(model: ZeroShotClassifier) -> Tensor:
    """300 word embeddings (300,T), or (300,K,T): the model's own, and mixtures of them; random ones without any."""
    assert model.decoder.text_dim is not None  # word mode
    generator, count = torch.Generator().manual_seed(0), max(NUM_WORDS)
    known = model.word_embeddings
    if known is None:
        several = () if model.decoder.descriptions == "mean" else (3,)
        return torch.randn(count, *several, model.decoder.text_dim, generator=generator)
    if model.decoder.descriptions != "mean" and (known.ndim == 2 or known.shape[1] == 1):
        known = known.reshape(len(known), 1, -1).repeat(1, 2, 1)  # (N,2,T): torch.export would fix a single one
    if len(known) >= count:
        return known[:count]
    pairs = torch.randint(0, len(known), (2, count - len(known)), generator=generator)
    return torch.cat([known, (known[pairs[0]] + known[pairs[1]]) / 2])


def _feed(graph: ExportGraph, model: ZeroShotClassifier, images: Tensor, words: Tensor | None) -> dict[str, np.ndarray]:
    """Inputs of the file for some transformed images."""
    if not isinstance(graph.pixels, torch.nn.Identity):
        mean, std = (
            torch.tensor(v)[:, None, None]
            for v in (model.image_encoder.transform.mean, model.image_encoder.transform.std)
        )
        images = ((images * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)
    names = ("images", "word_embeddings", "mask")
    return {name: tensor.numpy() for name, tensor in zip(names, (images, *word_inputs(words)), strict=False)}


def _opset_of(path: Path) -> int:
    onnx = needed("onnx")
    return int(onnx.load(path, load_external_data=False).opset_import[0].version)
