"""Spatial embeddings on disk: a folder of shards, each of which is complete or not there.

A shard is a safetensors file with `hashes` (K,32) uint8, of K images, and their `spatial_embeddings` (K,S,C). It is
written under a temporary name and takes its own in one rename, so that a process may be killed and a disk may fill up
at any moment. A shard is never changed: processes that write at once add shards of their own, and where two hold the
same image, the older counts.
"""

import os
import secrets
import shutil
import sys
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

HASH_BYTES = 32


class MappedEmbeddings:
    """(M,S,C) embeddings in memory-mapped shards. It is indexed like a tensor, and reads only what it is asked for.

    Args:
        paths: the shards.
        where: (M,2) int64, for each image its shard's position in `paths` and its row there.
        shape: (S,C).
        dtype: of what is stored.

    Attributes:
        shape: (M,S,C).
        dtype: as given.
    """

    def __init__(self, paths: Sequence[Path], where: np.ndarray, shape: tuple[int, int], dtype: torch.dtype) -> None:
        self.paths, self.where, self.dtype = paths, where, dtype
        self.shape = (len(where), *shape)
        self._maps: dict[int, Tensor] = {}

    def __len__(self) -> int:
        return len(self.where)

    @overload
    def __getitem__(self, index: int) -> Tensor: ...

    @overload
    def __getitem__(self, index: Tensor) -> "MappedEmbeddings": ...

    def __getitem__(self, index: "int | Tensor") -> "Tensor | MappedEmbeddings":
        """(S,C) of one image; or, for an int64 tensor of rows, those images, still on disk."""
        if isinstance(index, Tensor):
            return MappedEmbeddings(self.paths, self.where[index.numpy()], self.shape[1:], self.dtype)
        shard, row = (int(position) for position in self.where[index])
        if shard not in self._maps:
            self._maps[shard] = _open_shard(self.paths[shard])[1]
        return self._maps[shard][row]

    def float(self) -> Tensor:
        """All of them in memory, (M,S,C) fp32."""
        if not len(self):
            return torch.empty(self.shape)
        # One conversion of all: threads that wait for each other at each image would take longer than the reading.
        return torch.stack([self[i] for i in range(len(self))]).float()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_maps": {}}  # a map would be pickled with all it holds

    def __repr__(self) -> str:
        return f"MappedEmbeddings({self.shape}, {self.dtype}, {len(self.paths)} shards)"


class ShardFolder:
    """The shards of one folder, and which image is in which.

    A damaged shard is set aside with a warning: its images count as missing.

    Args:
        folder: of the shards; it need not exist before something is added.
        shape: (S,C) of an image's embeddings.
        dtype: they are stored in.
    """

    def __init__(self, folder: Path, shape: tuple[int, int], dtype: torch.dtype) -> None:
        self.folder, self.shape, self.dtype = folder.absolute(), shape, dtype
        self._paths: list[Path] = []
        self._where: dict[bytes, tuple[int, int]] = {}  # hash of an image -> position in `_paths`, row
        self.refresh()

    @property
    def bytes_per_image(self) -> int:
        """On disk."""
        positions, channels = self.shape
        return positions * channels * self.dtype.itemsize + HASH_BYTES

    @property
    def bytes_free(self) -> int:
        """On the disk of the folder, or where it will be made."""
        return shutil.disk_usage(next(path for path in (self.folder, *self.folder.parents) if path.exists())).free

    def __contains__(self, image_hash: bytes) -> bool:
        return image_hash in self._where

    def refresh(self) -> None:
        """Take in the shards that were written since, here or by other processes."""
        known = set(self._paths)
        for path in sorted(self.folder.glob("*.safetensors")):  # by the time in their names, the oldest first
            if path in known:
                continue
            try:
                hashes, embeddings = _open_shard(path)
                num_images = len(hashes) if hashes.ndim else 0
                expected = (torch.uint8, (num_images, HASH_BYTES), self.dtype, (num_images, *self.shape))
                found = (hashes.dtype, tuple(hashes.shape), embeddings.dtype, tuple(embeddings.shape))
                if found != expected:
                    raise ValueError(f"it must hold {expected}, got {found}")
            except FileNotFoundError:  # another process has just set it aside
                continue
            except (ValueError, SafetensorError) as error:
                with suppress(OSError):  # another process was faster, or the folder is read-only
                    path.replace(f"{path}.damaged")
                warnings.warn(
                    f"{path} must be a complete shard, it is damaged: {error}; its images are encoded again, and "
                    f"{path.name}.damaged may be deleted",
                    stacklevel=2,
                )
                continue
            for row, image_hash in enumerate(hashes.numpy()):
                self._where.setdefault(image_hash.tobytes(), (len(self._paths), row))
            self._paths.append(path)

    def embeddings(self, hashes: Iterable[bytes]) -> MappedEmbeddings:
        """Those of some images, in that order, on disk.

        Raises:
            KeyError: if one is not there.
        """
        where = np.array([self._where[image_hash] for image_hash in hashes], np.int64).reshape(-1, 2)
        return MappedEmbeddings(tuple(self._paths), where, self.shape, self.dtype)

    def add(self, hashes: Sequence[bytes], embeddings: Tensor) -> None:
        """Write one shard.

        Args:
            hashes: of K images.
            embeddings: (K,S,C) of them.

        Raises:
            OSError: if it cannot be written, for instance because the disk is full; no part of it is left.
        """
        stacked = torch.frombuffer(bytearray(b"".join(hashes)), dtype=torch.uint8).view(-1, HASH_BYTES)
        content = save({"hashes": stacked, "spatial_embeddings": embeddings.contiguous()})
        name = f"{time.time_ns():020d}-{secrets.token_hex(4)}.safetensors"  # no two processes take the same
        self.write(name, content)

    def write(self, name: str, content: bytes) -> None:
        """Write a file completely or not at all.

        Raises:
            OSError: if it cannot be written.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        temporary = self.folder / f"{name}.{secrets.token_hex(4)}.tmp"
        with _alone_or_beside_others(self.folder):
            try:
                with temporary.open("wb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())  # else a power cut could leave the name without the content
                os.replace(temporary, self.folder / name)
            except BaseException:
                with suppress(OSError):
                    temporary.unlink(missing_ok=True)
                raise


@contextmanager
def _alone_or_beside_others(folder: Path) -> Iterator[None]:
    """Around writing a temporary file: whoever finds that no one else is at it removes those that the killed left."""
    if sys.platform == "win32":  # no such locks: what is left is ignored
        yield
        return
    import fcntl

    with (folder / ".lock").open("a") as lock:  # the system unlocks it however the process ends
        with suppress(OSError):  # another process is writing, or the file system has no locks
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for path in folder.glob("*.tmp"):
                path.unlink(missing_ok=True)
        with suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_SH)
        yield


def _open_shard(path: Path) -> tuple[Tensor, Tensor]:
    """Hashes (K,32) and embeddings (K,S,C) of a shard, both mapped: nothing is read before it is used.

    Raises:
        FileNotFoundError: if it is gone.
        SafetensorError: if it is damaged: a file is exactly as long as its header says.
    """
    with safe_open(path, framework="pt") as file:
        return file.get_tensor("hashes"), file.get_tensor("spatial_embeddings")
