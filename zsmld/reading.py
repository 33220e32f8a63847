"""Files that others wrote, read as data: nothing in them runs, and they do not grow in memory beyond what they hold."""

import zipfile
from pathlib import Path
from typing import Any

_ROOM = 64 * 2**20  # bytes in memory that any file may take
_EXPANSION = 1_000  # and how many times its size, which no table of images with words comes near


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
            if tensor.layout == torch.strided and not tensor.is_quantized:
                stored = tensor.untyped_storage().nbytes()
                if tensor.numel() * tensor.element_size() > stored:
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
        elif isinstance(value, (list, tuple)):
            waiting += value
    return tensors


def read_parquet(path: str | Path) -> Any:
    """A Parquet file as a pandas frame; see `read_arrow`."""
    try:
        return read_arrow(path).to_pandas()
    except NotImplementedError as error:  # a type that pandas has not
        raise ValueError(str(error)) from error


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
