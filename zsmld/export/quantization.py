"""int8 for ONNX files, by onnxruntime's own quantisation."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zsmld.export.formats import quietly
from zsmld.export.programs import needed
from zsmld.model import ZeroShotClassifier
from zsmld.predictor.loading import load_images
from zsmld.predictor.sources import open_images

_MAX_IMAGES, _BATCH = 128, 8
# What compares (word embeddings, cosines, a prior) and the last sum stay in fp32: their products are few, and what is
# lost there is lost for good.
_SCOPES = ("image_encoder", "decoder.spatial_proj", "decoder.layers", "decoder.cosine_proj")


def calibration_batches(model: ZeroShotClassifier, images: Any) -> list[Tensor]:
    """The first 128 readable images, transformed, in batches (B,3,H,W).

    Raises:
        ValueError: if none can be read.
    """
    sources, _ = open_images(images)
    transform = model.image_encoder.transform
    batches = load_images(islice(sources, _MAX_IMAGES), transform, _BATCH, 0, torch.device("cpu"))
    found = [batch.inputs for batch in batches if len(batch.inputs)]
    if not found:
        raise ValueError("calibration_images must hold readable images, got none; give a folder of typical photos")
    return found


def quantize(source: Path, target: Path, batches: list[dict[str, np.ndarray]] | None) -> dict[str, Any]:
    """Write an int8 version of an ONNX file.

    Args:
        source: fp32.
        target: to write.
        batches: inputs to learn the ranges of activations from; None to measure these anew for each batch, which
            leaves convolutions in fp32.

    Returns:
        What was done, as plain values.
    """
    onnx, quantization = needed("onnx"), needed("onnxruntime.quantization")
    kinds = ["MatMul", "Gemm"] if batches is None else ["Conv", "MatMul", "Gemm"]
    nodes = [n for n in onnx.load(source, load_external_data=False).graph.node if n.op_type in kinds and _is_large(n)]
    names = [node.name for node in nodes]
    # Weights of 7 bits: without VNNI, processors sum pairs of 8-bit products in 16 bits, which overflow.
    options = {
        "op_types_to_quantize": kinds,
        "nodes_to_quantize": names,
        "per_channel": True,
        "reduce_range": True,
        "weight_type": quantization.QuantType.QInt8,
        "extra_options": {"MatMulConstBOnly": True},
    }
    with quietly():
        if batches is None:
            quantization.quantize_dynamic(source, target, **options)
        else:
            options |= {"quant_format": quantization.QuantFormat.QDQ, "activation_type": quantization.QuantType.QUInt8}
            reader: Any = _Reader(batches)
            quantization.quantize_static(source, target, reader, **options)
    return {
        "method": "dynamic" if batches is None else "static",
        "calibration_images": 0 if batches is None else sum(len(batch["images"]) for batch in batches),
        "weights": "int8 by channel, in 7 bits",
        "activations": "uint8 by tensor, measured in each batch" if batches is None else "uint8 by tensor, calibrated",
        "operators": {kind: sum(node.op_type == kind for node in nodes) for kind in kinds},
    }


def _is_large(node: Any) -> bool:
    scopes = {prop.key: prop.value for prop in node.metadata_props}.get("pkg.torch.onnx.name_scopes", "")
    return any(f"'{scope}" in scopes for scope in _SCOPES)


class _Reader:
    """Batches in the form that onnxruntime asks for them."""

    def __init__(self, batches: list[dict[str, np.ndarray]]) -> None:
        self._batches: Iterator[dict[str, np.ndarray]] = iter(batches)

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._batches, None)
