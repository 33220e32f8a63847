"""What a graph is written as: ONNX, a program of torch.export, or a library that AOTInductor compiles."""

import contextlib
import io
import logging
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from zsmld.export.graph import ExportGraph

Format = Literal["onnx", "torch_export", "aot_inductor"]
FILES: dict[str, str] = {"onnx": "model.onnx", "torch_export": "model.pt2", "aot_inductor": "model.pt2"}


def capture(graph: ExportGraph, example: tuple[Tensor, ...]) -> torch.export.ExportedProgram:
    """Trace a graph with any number of images and words.

    Args:
        graph: to trace.
        example: its inputs, with at least two images, words and descriptions.

    Raises:
        ValueError: if the network cannot be traced, or only for one number of images.
    """
    batch, words = torch.export.Dim("batch", min=1), torch.export.Dim("words", min=1)
    shapes: tuple[Any, ...] = ({0: batch}, {0: words}, {0: words, 1: torch.export.Dim("descriptions", min=1)})
    shapes = shapes[: len(example)]
    if len(example) == 3:
        shapes = (shapes[0], shapes[2], shapes[2])
    try:
        with torch.no_grad(), quietly():
            return torch.export.export(graph, example, dynamic_shapes=shapes, strict=False)
    except Exception as error:  # torch names no kinds of its own here
        reason = str(error).strip().splitlines()
        raise ValueError(
            f"model must be one that torch.export can trace, it cannot: {type(error).__name__}: "
            f"{reason[0] if reason else ''}; try another image encoder, or another torch than {torch.__version__}"
        ) from error


def write_program(
    program: torch.export.ExportedProgram,
    path: Path,
    format: Format,
    opset: int | None,
    metadata: dict[str, str],
    device: torch.device,
) -> None:
    """Write a traced graph.

    Args:
        program: what `capture` gave.
        path: of the file. ONNX above 2 GB puts its weights in a second file beside it.
        format: of the file.
        opset: of ONNX; None for what the exporter prefers.
        metadata: texts to keep in an ONNX file.
        device: that AOTInductor compiles for.

    Raises:
        ValueError: if the format's exporter or compiler refuses the graph.
    """
    try:
        with torch.no_grad(), quietly():
            if format == "onnx":
                _write_onnx(program, path, opset, metadata)
            elif format == "torch_export":
                torch.export.save(program, path)
            else:
                torch._inductor.aoti_compile_and_package(moved(program, device), package_path=str(path))
    except Exception as error:  # exporters name no kinds of their own
        reason = str(error).strip().splitlines()
        raise ValueError(
            f"format must be one that this model can be written as, {format!r} refuses it: {type(error).__name__}: "
            f"{reason[0] if reason else ''}; choose another format or opset"
        ) from error


def _write_onnx(program: torch.export.ExportedProgram, path: Path, opset: int | None, metadata: dict[str, str]) -> None:
    names = ["images", "word_embeddings", "mask"][: len(program.graph_signature.user_inputs)]
    made = torch.onnx.export(
        program,
        input_names=names,
        output_names=["logits", "scores"],
        opset_version=opset,
        dynamo=True,
        verbose=False,
    )
    assert made is not None  # with dynamo=True
    made.model.metadata_props.update(metadata)
    made.save(path, external_data=_num_bytes(program) > 1.9e9)


def moved(program: torch.export.ExportedProgram, device: torch.device) -> torch.export.ExportedProgram:
    """A program that was traced on the CPU, on a device."""
    if device.type == "cpu":
        return program
    from torch.export.passes import move_to_device_pass

    return move_to_device_pass(program, str(device))


def has_compiler() -> bool:
    """Whether there is a C++ compiler, which AOTInductor needs."""
    return any(shutil.which(name) for name in ("g++", "clang++", "c++", "cl"))


def _num_bytes(program: torch.export.ExportedProgram) -> int:
    tensors = [*program.state_dict.values(), *(c for c in program.constants.values() if isinstance(c, Tensor))]
    return sum(tensor.nbytes for tensor in tensors)


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Exporters say much on every stream; what matters they raise."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
