"""Files that others wrote, read as data: nothing in them runs, and they do not grow in memory beyond what they hold."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

_ROWS_A_BYTE = 100  # more than any packed table of distinct rows has


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
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise
    except Exception as error:  # torch, pickle and zip have many kinds
        raise ValueError(" ".join(str(error).split()) or type(error).__name__) from error
    for tensor in _tensors_in(loaded):
        if tensor.layout == torch.strided and not tensor.is_quantized:
            stored = tensor.untyped_storage().nbytes()
            if tensor.numel() * tensor.element_size() > stored:
                raise ValueError(f"it has a tensor {tuple(tensor.shape)} of {stored} stored bytes")
    return loaded


def _tensors_in(content: Any) -> Iterator[Any]:
    import torch

    if isinstance(content, torch.Tensor):
        yield content
    elif isinstance(content, Mapping):
        for value in content.values():
            yield from _tensors_in(value)
    elif isinstance(content, (list, tuple)):
        for value in content:
            yield from _tensors_in(value)


def read_parquet(path: str | Path) -> Any:
    """A Parquet file as a pandas frame.

    Raises:
        ValueError: with the reason alone: it is damaged, or says to have more rows than its bytes can tell apart, which
            packing makes possible.
    """
    import pyarrow.parquet as pq

    try:
        num_rows = pq.ParquetFile(path).metadata.num_rows
        if num_rows > _ROWS_A_BYTE * Path(path).stat().st_size:
            raise ValueError(f"it says to have {num_rows:,} rows")
        table = pq.read_table(path)
        table.validate(full=True)  # texts that are no UTF-8 would be found wherever they are used
        return table.to_pandas()
    except FileNotFoundError:
        raise
    except Exception as error:  # Arrow and pandas have many kinds, an OSError for damaged data among them
        raise ValueError(" ".join(str(error).split()) or type(error).__name__) from error
