"""An exported file beside the model it was made from, number by number."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zsmld.export.graph import ExportGraph, PixelNormalization, word_inputs
from zsmld.export.programs import Program
from zsmld.export.vocabulary import FrozenWords
from zsmld.model import ZeroShotClassifier

BATCHES, NUM_WORDS = (1, 3, 8), (1, 2, 300)
# fp32 differs in the order of sums alone; anything above this is another function.
_FP32_LIMIT = 1e-3


@dataclass(frozen=True)
class ExportReport:
    """What `export_model` wrote.

    Attributes:
        folder: of the export.
        form: "word_embeddings", "frozen" or "classes".
        format: "onnx", "torch_export" or "aot_inductor".
        precision: "fp32", "fp16" or "int8".
        num_words: of the scores; None where words are an input.
        opset: of ONNX, else None.
        bytes: of the model's file or files.
        checks: one for each number of images and words: `{"images", "words", "logits", "scores"}`, the largest absolute
            difference from PyTorch in fp32; none without verification.
        quantization: what int8 means here; empty without.
    """

    folder: Path
    form: str
    format: str
    precision: str
    num_words: int | None
    opset: int | None
    bytes: int
    checks: tuple[dict[str, Any], ...] = ()
    quantization: dict[str, Any] = field(default_factory=dict)

    @property
    def largest_difference(self) -> float | None:
        """Of the logits, from PyTorch in fp32; None without verification."""
        return max((check["logits"] for check in self.checks), default=None)

    @property
    def largest_score_difference(self) -> float | None:
        """Of the scores, from PyTorch in fp32; None without verification."""
        return max((check["scores"] for check in self.checks), default=None)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        found = {name: value for name, value in vars(self).items() if name != "folder"}
        return found | {
            "checks": list(self.checks),
            "largest_difference": self.largest_difference,
            "largest_score_difference": self.largest_score_difference,
        }

    def to_text(self) -> str:
        """A summary of a few lines."""
        words = "any words, as an input" if self.num_words is None else f"{self.num_words} words, frozen"
        opset = "" if self.opset is None else f", opset {self.opset}"
        lines = [f"{self.folder}: {self.format}{opset}, {self.precision}, {words}, {self.bytes / 1e6:.1f} MB"]
        if self.quantization:
            kinds = ", ".join(f"{count} {kind}" for kind, count in self.quantization["operators"].items() if count)
            images = self.quantization["calibration_images"]
            how = f"calibrated with {images} images" if images else "activations measured in each batch"
            lines.append(f"int8: {kinds or 'nothing'}; {how}")
        if self.checks:
            images = sorted({check["images"] for check in self.checks})
            counts = sorted({check["words"] for check in self.checks})
            lines.append(
                f"verified against PyTorch with {_listed(images)} images and {_listed(counts)} words: largest "
                f"difference {self.largest_difference:.2e} in logits, {self.largest_score_difference:.2e} in scores"
            )
        else:
            lines.append("not verified")
        return "\n".join(lines)


def verify(
    program: Program,
    model: ZeroShotClassifier,
    graph: ExportGraph,
    frozen: FrozenWords | None,
    pixels: Tensor,
    words: Tensor | None,
    precision: str,
) -> tuple[dict[str, Any], ...]:
    """Compare a file with the model itself, in fp32.

    Args:
        program: of the file.
        model: in eval mode.
        graph: that was written.
        frozen: its vocabulary, or None.
        pixels: (8,3,H,W) uint8.
        words: (300,T), or (300,K,T) for a head that takes descriptions one by one; None for a frozen vocabulary.
        precision: of the file.

    Returns:
        For each number of images and words the largest difference of logits and of scores.

    Raises:
        ValueError: if a result is NaN or infinite, or in fp32 a logit differs by more than 1e-3.
    """
    transform = model.image_encoder.transform
    device = next(model.parameters()).device
    images = PixelNormalization(transform.mean, transform.std)(pixels).to(device)  # (8,3,H,W)
    taken = pixels.to(device) if isinstance(graph.pixels, PixelNormalization) else images
    checks: list[dict[str, Any]] = []
    with torch.no_grad():
        spatial = model.image_encoder(images)  # (8,S,C)
        for num_images in BATCHES:
            for num_words in NUM_WORDS if frozen is None else (len(frozen.words),):
                part = (None if frozen is None else frozen.embeddings) if words is None else words[:num_words]
                part = None if part is None else part.to(device)
                inputs = () if frozen is not None else word_inputs(part)
                logits = model.decoder(spatial[:num_images], part)  # (B,N|P)
                expected = logits, graph.scoring(logits)
                found = program(taken[:num_images], *inputs, num_words=num_words)
                worst_logit, worst_score = (float((a - b).abs().max()) for a, b in zip(found, expected, strict=True))
                checks.append({"images": num_images, "words": num_words, "logits": worst_logit, "scores": worst_score})
    worst = max(checks, key=lambda check: check["logits"] if _is_finite(check) else math.inf)
    if not _is_finite(worst) or (precision == "fp32" and worst["logits"] > _FP32_LIMIT):
        differs = worst["logits"] if math.isfinite(worst["scores"]) else worst["scores"]
        raise ValueError(
            f"exported model must give the logits of PyTorch, it differs by {differs:.3g} with "
            f"{worst['images']} images and {worst['words']} words in {precision}; choose another format, opset or "
            f"precision, or pass verify=False (--no-verify) to keep it all the same"
        )
    return tuple(checks)


def _is_finite(check: dict[str, Any]) -> bool:
    return math.isfinite(check["logits"]) and math.isfinite(check["scores"])


def _listed(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers))
