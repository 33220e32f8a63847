"""Files that others wrote, read as data: nothing in them runs, and they do not grow in memory beyond what they hold."""

import argparse
import hashlib
import io
import math
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

_ROOM = 64 * 2**20  # bytes in memory that any file may take
_EXPANSION = 1_000  # and how many times its size, which no matrix of images with words comes near


def read_torch(path: str | Path) -> Any:
    """What `torch.save` wrote, on the CPU: tensors, containers and plain values.

    Raises:
        ValueError: with the reason alone: it is damaged, asks for more than data, or has a tensor that repeats what is
            stored once, which takes no room in a file and any amount of it in memory.

    Example:
        >>> import tempfile, torch
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     torch.save({"scores": torch.zeros(1).expand(10**6, 10**6)}, f"{folder}/scores.pt")
        ...     read_torch(f"{folder}/scores.pt")
        Traceback (most recent call last):
        ValueError: it has a tensor (1000000, 1000000) of 4 stored bytes
    """
    import torch

    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as members:
                if any(member.compress_type != zipfile.ZIP_STORED for member in members.infolist()):
                    raise ValueError("it is compressed, which torch.save does not do")
        loaded = torch.load(path, map_location="cpu", weights_only=True)
        for tensor in _tensors_in(loaded):
            if tensor.is_meta:
                raise ValueError("it has a tensor without numbers, of the device meta")
            if tensor.layout == torch.strided:
                stored = tensor.untyped_storage().nbytes()
                numbers_a_byte = 4 if tensor.is_quantized else 1  # quint2x4 has four
                if tensor.numel() * tensor.element_size() > numbers_a_byte * stored:
                    raise ValueError(f"it has a tensor {tuple(tensor.shape)} of {stored} stored bytes")
    except FileNotFoundError:
        raise
    except Exception as error:  # torch, pickle and zip have many kinds
        raise ValueError(" ".join(str(error).split()) or type(error).__name__) from error
    return loaded


def _tensors_in(content: Any) -> list[Any]:
    """The tensors of nested containers; what stands there twice, or in itself, is looked into once."""
    import torch

    tensors, waiting, seen = [], [content], set()
    while waiting:
        value = waiting.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, torch.Tensor):
            tensors.append(value)
        elif isinstance(value, dict):
            waiting += value.values()
        elif isinstance(value, (list, tuple, set)):
            waiting += value
        elif isinstance(value, argparse.Namespace):  # the settings of a training
            waiting += vars(value).values()
    return tensors


def read_numpy(path: str | Path) -> Any:
    """What numpy saved, objects left out: the array of a `.npy` file; the open archive of a `.npz`, for `with`.

    Raises:
        ValueError: with the reason alone: it is damaged, is a pickle, has an array that is larger than its data, or
            unpacks to far more than its size. `archive[name]` raises numpy's errors, for objects or damage.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     np.savez_compressed(f"{folder}/scores.npz", scores=np.zeros((2, 3)))
        ...     with read_numpy(f"{folder}/scores.npz") as arrays:
        ...         print(arrays["scores"].shape)
        (2, 3)
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            packed = file.read(2) == b"PK"  # as numpy tells both apart, whatever the name
            file.seek(0)
            if not packed:
                _check_header(file, size)
            else:
                with zipfile.ZipFile(file) as archive:
                    _check_members(archive, _ROOM + _EXPANSION * size)
        return np.load(path, allow_pickle=False)
    except (FileNotFoundError, IsADirectoryError, PermissionError):
        raise
    except Exception as error:  # numpy, zip and zlib have many kinds
        raise ValueError(" ".join(str(error).split()) or type(error).__name__) from error


def _check_members(archive: zipfile.ZipFile, room: int) -> None:
    # zipfile keeps to the stated size of a deflated member, but unpacks a whole block of bzip2 or LZMA: 1 KB is 1 GB.
    if any(member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) for member in archive.infolist()):
        raise ValueError("it is compressed with bzip2 or LZMA, which numpy does not do")
    if sum(member.file_size for member in archive.infolist()) > room:
        raise ValueError(f"it unpacks to more than {room:,} bytes, far beyond its size")
    for member in archive.infolist():
        with archive.open(member) as content:
            _check_header(content, member.file_size)


def _check_header(content: Any, size: int) -> None:
    """Refuse an array of more numbers than its file has, for which numpy would take the memory first."""
    opening = io.BytesIO(content.read(2**16))  # not even numpy reads a longer header
    start = opening.read(8)
    if start[:6] != np.lib.format.MAGIC_PREFIX:
        return  # of another kind, which numpy refuses, or gives as bytes
    read = np.lib.format.read_array_header_1_0 if start[6] == 1 else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(opening)
    stored = size - opening.tell()
    if not dtype.hasobject and math.prod(shape) * max(dtype.itemsize, 1) > stored:
        raise ValueError(f"it has an array {shape} of {dtype} in {stored} stored bytes")


def read_parquet(path: str | Path) -> Any:
    """A Parquet file as a pandas frame; see `read_arrow`."""
    table = read_arrow(path)
    try:
        return table.to_pandas()
    except Exception as error:  # a type that pandas has not, or what is said there of its own columns is wrong
        raise ValueError(" ".join(str(error).split()) or type(error).__name__) from error


def read_arrow(path: str | Path) -> Any:
    """A Parquet file as an Arrow table.

    Raises:
        ValueError: with the reason alone: it is damaged, or unpacks to far more than its size, as rows that all say the
            same can.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
        room = _ROOM + _EXPANSION * Path(path).stat().st_size
        groups = [file.metadata.row_group(number) for number in range(file.metadata.num_row_groups)]
        packed = max((group.total_byte_size for group in groups), default=0)  # a row takes no more than its group
        refusal = f"it unpacks to more than {room:,} bytes, far beyond its size"
        if packed > room:
            raise ValueError(refusal)
        batches, taken = [], 0
        for batch in file.iter_batches(min(max(room // max(packed, 1), 1), 2**16)):
            batches.append(batch)
            taken += batch.nbytes
            if taken > room:
                raise ValueError(refusal)
        table = pa.Table.from_batches(batches, file.schema_arrow)
        table.validate(full=True)  # texts that are no UTF-8 would be found wherever they are used
    except FileNotFoundError:
        raise
    except Exception as error:  # Arrow and pandas have many kinds, an OSError for damaged data among them
        raise ValueError(" ".join(str(error).split()) or type(error).__name__) from error
    return table


def digest_of(path: str | Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
