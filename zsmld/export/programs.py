"""Program: an exported file, ready to run on a device."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zsmld.export.formats import FILES, moved, quietly
from zsmld.text import resolve_device

_MAX_ROWS = 65_536  # images times words in one run: their hidden layers stay below a gigabyte


class Program:
    """Images and words -> logits and scores, by an exported file.

    Args:
        folder: of the file.
        format: of the file.
        device: "auto", "cpu" or "cuda".
        compiled_for: the device of a file that AOTInductor compiled.

    Attributes:
        device: where it runs.

    Raises:
        FileNotFoundError: if the file is missing.
        ValueError: if it is damaged, or the format does not run on the device here.
        ImportError: if a package is missing.
    """

    def __init__(self, folder: Path, format: str, device: str = "auto", compiled_for: str = "cpu") -> None:
        path = folder / FILES[format]
        if not path.is_file():
            raise FileNotFoundError(
                f"exported folder must hold {path.name}, not found in {folder}; export the model again"
            )
        try:
            self._run, self.device = _LOADERS[format](path, device, compiled_for)
        except (ValueError, ImportError):
            raise
        except Exception as error:  # each runtime has kinds of its own
            reason = str(error).strip().partition("\n")[0]
            raise ValueError(
                f"{path} must be readable, it is damaged or of another version: {type(error).__name__}: {reason}; "
                f"export the model again"
            ) from error

    @torch.no_grad()
    def __call__(self, images: Tensor, *words: Tensor, num_words: int = 1) -> tuple[Tensor, Tensor]:
        """Score, in as many runs as memory asks for.

        Args:
            images: (B,3,H,W), as the file takes them.
            words: embeddings (N,T), or (N,K,T) and a mask (N,K) bool; none for a frozen vocabulary.
            num_words: of a frozen vocabulary.

        Returns:
            Logits and scores, on the device of the images.
        """
        step = max(1, _MAX_ROWS // (len(words[0]) if words else num_words))
        found = [self._run(part, *words) for part in images.split(step)]
        logits, scores = (torch.cat(parts).to(images.device) for parts in zip(*found, strict=True))
        return logits, scores


Run = Callable[..., tuple[Tensor, Tensor]]


def _load_onnx(path: Path, device: str, compiled_for: str) -> tuple[Run, torch.device]:
    onnxruntime = needed("onnxruntime")
    can_cuda = "CUDAExecutionProvider" in onnxruntime.get_available_providers()
    if device == "auto":
        device = "cuda" if can_cuda and torch.cuda.is_available() else "cpu"
    on = resolve_device(device)
    if on.type not in ("cpu", "cuda") or (on.type == "cuda" and not can_cuda):
        raise ValueError(
            f"device must be 'cpu' for this onnxruntime, whose providers are {onnxruntime.get_available_providers()}, "
            f"got {device!r}; choose cpu, or pip install onnxruntime-gpu in the place of onnxruntime"
        )
    providers: list[Any] = ["CPUExecutionProvider"]
    if on.type == "cuda":
        providers.insert(0, ("CUDAExecutionProvider", {"device_id": on.index or 0}))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), options, providers=providers)
    if on.type == "cuda" and "CUDAExecutionProvider" not in session.get_providers():  # it goes on without a word
        raise ValueError(
            f"device must be 'cpu' here, onnxruntime {onnxruntime.__version__} cannot load its CUDA libraries, got "
            f"{device!r}; choose cpu, or install the CUDA and cuDNN that this onnxruntime-gpu asks for"
        )
    names = [given.name for given in session.get_inputs()]

    def run(*inputs: Tensor) -> tuple[Tensor, Tensor]:
        if len(names) != len(inputs):
            raise ValueError(
                f"exported folder {path.parent} must hold the program that was exported, which takes {len(inputs)} "
                f"inputs, got one of {len(names)}; export the model again"
            )
        arrays = {name: tensor.detach().cpu().numpy() for name, tensor in zip(names, inputs, strict=True)}
        try:
            logits, scores = session.run(["logits", "scores"], arrays)
        except onnxruntime.capi.onnxruntime_pybind11_state.InvalidArgument as error:
            raise ValueError(
                f"exported folder {path.parent} must hold the program that was exported, which takes other inputs: "
                f"{error}; export the model again"
            ) from error
        return torch.from_numpy(logits), torch.from_numpy(scores)

    return run, on


def _load_torch_export(path: Path, device: str, compiled_for: str) -> tuple[Run, torch.device]:
    on = resolve_device(device)
    with quietly():
        program = moved(torch.export.load(path), on)
    module = program.module()
    return lambda *inputs: module(*(tensor.to(on) for tensor in inputs)), on


def _load_aot_inductor(path: Path, device: str, compiled_for: str) -> tuple[Run, torch.device]:
    if device == "auto":
        device = compiled_for
    on = resolve_device(device)
    if on.type != compiled_for:
        raise ValueError(
            f"device must be {compiled_for!r}, for which AOTInductor compiled this model, got {device!r}; export it "
            f"for that device"
        )
    with quietly():
        compiled = torch._inductor.aoti_load_package(str(path))
    return lambda *inputs: tuple(compiled(*(tensor.to(on) for tensor in inputs))), on


_LOADERS = {"onnx": _load_onnx, "torch_export": _load_torch_export, "aot_inductor": _load_aot_inductor}


def needed(package: str) -> Any:
    """A package of the extra `export`.

    Raises:
        ImportError: if it is not installed.
    """
    import importlib

    try:
        return importlib.import_module(package)
    except ImportError as error:
        name = package.partition(".")[0]
        raise ImportError(
            f'{name} must be installed for ONNX, it is not: {error}; pip install "zsmld[export]"'
        ) from error
