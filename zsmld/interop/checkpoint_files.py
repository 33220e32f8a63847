"""Checkpoints that others wrote, read as data: torch files, safetensors, and Paddle's pickles of arrays."""

import argparse
import io
import math
import pickle
import pickletools
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zsmld.reading import read_torch

# Where the usual training loops put their weights. Averaged ones first: they are what a paper reports.
_AVERAGED = ("state_dict_ema", "model_ema", "ema_state_dict", "ema_model", "ema")
_RAW = ("state_dict", "model", "model_state_dict", "net", "module", "weights")
_PADDLE_NAMES = "StructuredToParameterName@@"  # Paddle's table of its own parameter names


@dataclass
class StoredWeights:
    """The tensors of a checkpoint under their own names, and what else it holds.

    Attributes:
        tensors: by name, as they stand in the file.
        place: where in the file they stood, "state_dict_ema" for instance; "" if they are the file.
        others: what else the file holds, beside the weights, by name.
    """

    tensors: dict[str, Tensor]
    place: str = ""
    others: dict[str, Any] = field(default_factory=dict)

    @property
    def is_averaged(self) -> bool:
        """Whether they stood in a place for averaged weights (EMA)."""
        return not {*self.place.split(".")}.isdisjoint(_AVERAGED)


def read_checkpoint(path: str | Path, averaged: bool | None = None) -> StoredWeights:
    """Read a `.pth`, `.pt`, `.ckpt`, `.safetensors` or `.pdparams` file; nothing in it is run.

    Args:
        path: the file.
        averaged: which weights of a file with both: averaged ones (EMA), or those of the last step; None takes the
            averaged if there are some.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it cannot be read, holds anything but data, or not the weights asked for.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "model.pth"
        >>> torch.save({"epoch": 3, "state_dict": {"fc.bias": torch.zeros(2)}}, file)
        >>> stored = read_checkpoint(file)
        >>> list(stored.tensors), stored.place, stored.others
        (['fc.bias'], 'state_dict', {'epoch': 3})
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint must be an existing file, not found: {path}; correct the path")
    try:
        if path.suffix in (".pdparams", ".pdema"):
            loaded: Any = _paddle_tensors(read_arrays(path), path, {})
        elif path.suffix == ".safetensors":
            loaded = _read_safetensors(path)
        else:
            loaded = _read_torch(path)
        found = _weights_in(loaded, averaged, set())
    except RecursionError as error:
        raise ValueError(f"checkpoint must hold weights, got mappings without end: {path}; do not trust it") from error
    if found is None:
        content = sorted(map(str, loaded))[:8] if isinstance(loaded, Mapping) else type(loaded).__name__
        kind = {None: "weights", True: "averaged weights (EMA)", False: "weights that are not averaged"}[averaged]
        raise ValueError(f"checkpoint must hold {kind}, got {content} in {path}; name another file, or other weights")
    return found


def read_arrays(path: Path) -> Any:
    """Unpickle a file of numpy arrays, texts, numbers and containers of these.

    Raises:
        ValueError: if it holds anything else, or arrays larger than their data; the message names it.
    """
    content = path.read_bytes()
    try:
        # The table of what is used twice grows to the largest number that it is given: ten bytes can ask for gigabytes.
        for opcode, number, _ in pickletools.genops(content):
            if opcode.name.endswith("PUT") and int(number or 0) > len(content):
                raise pickle.UnpicklingError(f"it numbers {number} parts in {len(content)} bytes")
        return _ArrayUnpickler(io.BytesIO(content)).load()  # of a file, it would take the memory of a text in advance
    except Exception as error:  # a damaged pickle raises every kind, OverflowError and AttributeError among them
        raise ValueError(
            f"{path} must be a pickle of numpy arrays, cannot read it: {error or type(error).__name__}; do not trust it"
        ) from error


class _StoredArray(np.ndarray):
    """An array as numpy pickles it: made empty, then filled with its data. It never takes more memory than these."""

    def __new__(cls, *_: Any, **__: Any) -> "_StoredArray":
        raise pickle.UnpicklingError("it makes an array of a size without its data, which numpy does not write")

    def __setstate__(self, state: Any) -> None:
        shape, dtype, _, data = state[-4:]  # before these, a version
        if dtype.hasobject:
            fits = isinstance(data, list) and math.prod(shape) == len(data)  # numpy would read on behind the list
        else:
            fits = math.prod(shape) * max(dtype.itemsize, 1) == len(data)
        if not fits or min(shape, default=0) < 0:
            raise pickle.UnpicklingError(f"it has an array {shape} of {dtype} in {len(data)} stored parts")
        super().__setstate__(state)


def _empty(*_: Any) -> _StoredArray:
    return np.ndarray.__new__(_StoredArray, (0,), np.int8)  # numpy writes no other size


def _scalar(dtype: Any, data: Any) -> Any:
    if not isinstance(dtype, np.dtype) or dtype.hasobject or len(data) != dtype.itemsize:
        raise pickle.UnpicklingError(f"it has a number of {dtype} that is not as long as its data")
    return _NUMPY_SCALAR(dtype, data)


_NUMPY_SCALAR: Any = np.float64(0).__reduce__()[0]
_ARRAY_PARTS: dict[tuple[str, str], Any] = {("numpy", "ndarray"): _StoredArray, ("numpy", "dtype"): np.dtype}
for _core in ("core", "_core"):  # of numpy 1 and of numpy 2
    _ARRAY_PARTS[f"numpy.{_core}.multiarray", "_reconstruct"] = _empty
    _ARRAY_PARTS[f"numpy.{_core}.multiarray", "scalar"] = _scalar
    _ARRAY_PARTS[f"numpy.{_core}.numeric", "_frombuffer"] = np.empty(1).__reduce_ex__(5)[0]


class _ArrayUnpickler(pickle.Unpickler):
    """Admits what numpy arrays are made of, and refuses every other name before it is looked up."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _ARRAY_PARTS:
            return _ARRAY_PARTS[module, name]
        if (module, name) == ("builtins", "tuple"):  # Paddle writes a tensor in a container as (name, array)
            return tuple
        if (module, name) == ("_codecs", "encode"):  # arrays of pickle protocol 2
            return _latin1
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is no array")


def _latin1(text: str, encoding: str = "latin1") -> bytes:
    return text.encode("latin1")


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} must be a safetensors file, cannot read it: {error}; download it again") from error


def _read_torch(path: Path) -> Any:
    # Settings as timm's train.py stores them, and figures and names, which are numpy scalars or arrays; all are data.
    kinds = ("?", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "U")
    plain: list[Any] = [argparse.Namespace, *(type(np.dtype(kind)) for kind in kinds)]
    plain += [(part, f"{module}.{name}") for (module, name), part in _ARRAY_PARTS.items()]
    try:
        with torch.serialization.safe_globals(plain):
            return read_torch(path)
    except Exception as error:  # torch, pickle and zip have many kinds; the reader needs the path and the reason
        try:
            with torch.serialization.safe_globals(plain):
                unsafe = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        except Exception:  # damaged files, and those of torch before 1.6
            unsafe = []
        told = (
            " ".join(str(error).split())
            .rpartition("WeightsUnpickler error: ")[2]
            .partition(" Check the doc")[0]
            .partition(" Please use")[0]
        )
        reason = f"it holds {sorted(unsafe)}, which may run code" if unsafe else told[:200]
        raise ValueError(
            f"checkpoint must hold tensors and plain data, cannot read {path}: {reason}; save its state_dict alone "
            f"where you trust it"
        ) from error


def _paddle_tensors(loaded: Any, path: Path, seen: dict[int, Any]) -> Any:
    """Arrays as tensors, without Paddle's table of names; (name, array) as the array. What stands twice is one."""
    if not isinstance(loaded, dict) or id(loaded) in seen:
        return seen.get(id(loaded), loaded)
    found = seen[id(loaded)] = {}
    for name, value in loaded.items():
        if isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], np.ndarray):
            value = value[1]
        if isinstance(value, np.ndarray) and (value.dtype.kind not in "fiub" or value.dtype.itemsize > 8):
            raise ValueError(f"{path}: {name!r} must be an array of numbers, got {value.dtype}; do not trust this file")
        if isinstance(value, np.ndarray):
            if id(value) not in seen:
                seen[id(value)] = torch.from_numpy(np.array(value, value.dtype.newbyteorder("=")))
            found[name] = seen[id(value)]
        elif name != _PADDLE_NAMES:
            found[name] = _paddle_tensors(value, path, seen)
    return found


def _weights_in(loaded: Any, averaged: bool | None, seen: set[tuple[int, bool | None]]) -> StoredWeights | None:
    """The weights of what a file held: the thing itself, or what stands under a usual name in it."""
    if not isinstance(loaded, Mapping) or (id(loaded), averaged) in seen:  # had it any, they would be taken
        return None
    seen.add((id(loaded), averaged))
    places: list[tuple[str, bool | None]] = [(place, None) for place in _AVERAGED if averaged is not False]
    places += [(place, averaged) for place in _RAW]
    for place, wanted in places:
        inner = _weights_in(loaded.get(place), wanted, seen)
        if inner is not None:
            beside = {str(name): value for name, value in loaded.items() if name != place}
            return StoredWeights(inner.tensors, f"{place}.{inner.place}".rstrip("."), {**beside, **inner.others})
    own = {str(name): value for name, value in loaded.items() if isinstance(value, Tensor)}
    # Averaged weights may also stand beside the others in one dictionary, with a prefix; `find_head` chooses then.
    if not own or (averaged is True and not any(map(is_averaged_copy, own))):
        return None
    return StoredWeights(own, "", {str(name): value for name, value in loaded.items() if str(name) not in own})


def is_averaged_copy(name: str) -> bool:
    """Whether a tensor is one of averaged weights that stand beside the others: "ema.…", "ema_model.…", "model_ema.…".

    Example:
        >>> is_averaged_copy("module_ema.fc.bias"), is_averaged_copy("semantic.fc.bias")
        (True, False)
    """
    return "ema" in name.split(".")[0].split("_")
