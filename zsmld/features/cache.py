"""FeatureCache: where the spatial embeddings of a frozen encoder are kept, and the one run of the encoder they need."""

import errno
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from zsmld.datasets import Dataset
from zsmld.datasets.loader import Batch, load_batches
from zsmld.features.dataset import FeatureDataset
from zsmld.features.hashing import hash_images, weights_hash
from zsmld.features.shards import MappedEmbeddings, ShardFolder
from zsmld.images import ImageEncoder
from zsmld.model import package_versions
from zsmld.processes import from_all, rank_and_world
from zsmld.text import resolve_device

FeatureDtype = Literal["fp16", "bf16", "fp32"]

_DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
_FORMAT, _MANIFEST = 1, "manifest.json"

# Rows -> batches of those that could be read, whose inputs are their embeddings (B,S,C).
_Encode = Callable[[Sequence[int]], Iterator[Batch]]


@dataclass(frozen=True)
class FeatureCache:
    """Runs a frozen image encoder over a dataset once, and keeps what it gave.

    On disk, embeddings are kept by what decides them. Each encoder (its configuration with the transform, and its
    weights) and dtype has a folder `<cache>/<key>`, with a `manifest.json` that says which; in it an image is known by
    its content. So one cache serves many datasets, splits and encoders; an image that two of them share is encoded
    once, and a file that changed is encoded again. A process that is killed loses the shard it was filling, no more.

    Every batch of the encoder has the same size, the last is filled up: kernels are chosen by the size. On the same
    machine with as many threads, embeddings are then the same bits in memory and on disk, after an interruption and
    from several processes. Another batch size, device or version moves the last bits of fp32; the first kept stay.

    Args:
        cache: a folder; "memory" keeps the embeddings in memory, for this process alone.
        dtype: of the kept embeddings. "fp16" and "bf16" take half the room of "fp32"; fp16 rounds by at most 0.05 %,
            bf16 by 0.4 % but holds numbers beyond 65,504.
        batch_size: images a batch of the encoder.
        shard_mebibytes: largest size of a file.

    Raises:
        ValueError: if an option makes no sense; the message lists all that do not.

    Example:
        >>> from zsmld.datasets import Scenes
        >>> encoder = ImageEncoder("timm:test_resnet", pretrained=False, image_size=64)
        >>> FeatureCache().extract(encoder, Scenes("val", num_images=3))
        FeatureDataset('scenes', 3 images, 4 positions of 96)
    """

    cache: str | Path = "memory"
    dtype: FeatureDtype = "fp16"
    batch_size: int = 64
    shard_mebibytes: float = 64.0

    def __post_init__(self) -> None:
        problems = []
        if not isinstance(self.cache, (str, Path)) or not str(self.cache):
            problems.append(f"cache must be a folder or 'memory', got {self.cache!r}")
        if self.dtype not in get_args(FeatureDtype):
            problems.append(f"dtype must be 'fp16', 'bf16' or 'fp32', got {self.dtype!r}")
        if self.batch_size < 1:
            problems.append(f"batch_size must be ≥ 1, got {self.batch_size}")
        if not 0 < self.shard_mebibytes < float("inf"):
            problems.append(f"shard_mebibytes must be positive, got {self.shard_mebibytes}")
        if problems:
            raise ValueError(f"FeatureCache options must make sense, got: {'; '.join(problems)}; correct them")

    def extract(
        self,
        image_encoder: ImageEncoder,
        dataset: Dataset,
        device: str = "auto",
        num_workers: int = 0,
        progress: bool = False,
    ) -> FeatureDataset:
        """The spatial embeddings of a dataset's images; only those are encoded that the cache does not have.

        To know an image, its file is hashed where the dataset is of files, which decodes nothing; else its pixels are.
        Files must not change meanwhile. With `torch.distributed`, all processes call this together: on disk they share
        the work, and each gets all of it; in memory each does all of it.

        Args:
            image_encoder: put into eval mode for it. Random numbers of the caller are not touched.
            dataset: with images.
            device: "auto", "cpu", "cuda" or "mps".
            num_workers: processes that hash and decode.
            progress: show progress bars.

        Returns:
            A `FeatureDataset` of the readable images, in order. On disk its embeddings are mapped, not loaded.

        Raises:
            ValueError: if no image can be read, or an embedding is not finite in this dtype.
            FileExistsError: if `cache` is a file.
            OSError: if the disk has no room for what is missing, which is checked before, or fills up meanwhile. What
                was saved stays, and is used the next time.
        """
        if self.cache == "memory":
            dtype = _DTYPES[self.dtype]
            return extract_features(image_encoder, dataset, device, self.batch_size, num_workers, dtype, progress)
        if Path(self.cache).is_file():
            raise FileExistsError(f"cache must be a folder or 'memory', {self.cache} is a file; choose another")
        identity = {
            "format": _FORMAT,
            "image_encoder": image_encoder.config(),
            "weights": weights_hash(image_encoder),
            "dtype": self.dtype,
        }
        key = hashlib.blake2b(json.dumps(identity, sort_keys=True, default=repr).encode(), digest_size=16).hexdigest()
        shards = ShardFolder(Path(self.cache) / key, _shape(image_encoder), _DTYPES[self.dtype])

        with _at_rest(image_encoder, resolve_device(device)) as on_device:
            images, unreadable = hash_images(dataset, num_workers, progress)  # row -> (hash, id), row -> (id, error)
            distinct: dict[bytes, int] = {}  # hash -> its first row
            for row in sorted(images):
                distinct.setdefault(images[row][0], row)
            batch_size = max(1, min(self.batch_size, len(distinct)))
            encode = partial(
                _encode, image_encoder, dataset, on_device, shards.dtype, batch_size, num_workers, progress
            )

            rank, world = rank_and_world()
            # All must deal out the same images: those that the first process misses.
            missing = from_all([pair for pair in distinct.items() if pair[0] not in shards])[0]
            failed = self._fill(shards, missing[rank::world], encode, identity)
            errors = {image_hash: error for part in from_all(failed) for image_hash, error in part.items()}
            shards.refresh()
            # Nothing is left now, unless the processes have disks of their own.
            left = [pair for pair in distinct.items() if pair[0] not in shards and pair[0] not in errors]
            errors |= self._fill(shards, left, encode, identity)
            shards.refresh()

        unreadable |= {row: (image_id, errors[h]) for row, (h, image_id) in images.items() if h in errors}
        rows = [row for row in sorted(images) if row not in unreadable]
        return _features_of(
            dataset,
            rows,
            [images[row][1] for row in rows],
            [unreadable[row] for row in sorted(unreadable)],
            shards.embeddings(images[row][0] for row in rows),
        )

    def _fill(
        self, shards: ShardFolder, missing: list[tuple[bytes, int]], encode: _Encode, identity: dict[str, Any]
    ) -> dict[bytes, str]:
        """Encode and save some images.

        Args:
            shards: where.
            missing: (hash, row) of each.
            encode: gives the embeddings of rows.
            identity: of the encoder, for the manifest.

        Returns:
            hash -> error of those that could not be read.
        """
        if not missing:
            return {}
        hash_of = {row: image_hash for image_hash, row in missing}
        errors: list[str] = []

        def encoded() -> Iterator[tuple[list[bytes], Tensor]]:
            for batch in encode(list(hash_of)):
                errors.extend(error for _, error in batch.unreadable)
                yield [hash_of.pop(row) for row in batch.rows.tolist()], batch.inputs

        num_left = len(missing)
        with _room(shards, num_left):
            if shards.bytes_free < num_left * shards.bytes_per_image:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        per_shard = max(1, int(self.shard_mebibytes * 2**20 / shards.bytes_per_image))
        for hashes, embeddings in _in_portions(encoded(), per_shard):
            with _room(shards, num_left):
                if not (shards.folder / _MANIFEST).exists():
                    shards.write(_MANIFEST, _manifest(identity, shards))
                shards.add(hashes, embeddings)
            num_left -= len(hashes)
        return dict(zip(hash_of.values(), errors, strict=True))  # what was not taken out, in order


def extract_features(
    image_encoder: ImageEncoder,
    dataset: Dataset,
    device: str = "auto",
    batch_size: int = 64,
    num_workers: int = 0,
    dtype: torch.dtype = torch.float16,
    progress: bool = False,
) -> FeatureDataset:
    """Run a frozen image encoder over a dataset once, and keep the embeddings in memory; `FeatureCache` keeps them.

    Args:
        image_encoder: put into eval mode for it. Random numbers of the caller are not touched.
        dataset: with images.
        device: "auto", "cpu", "cuda" or "mps".
        batch_size: images a batch.
        num_workers: processes that decode.
        dtype: of the kept embeddings; fp16 halves memory and moves scores by about 1e-3.
        progress: show a progress bar.

    Returns:
        A `FeatureDataset` of the readable images, in order.

    Raises:
        ValueError: if no image can be read, or an embedding is not finite in this dtype.
    """
    size = max(1, min(batch_size, len(dataset))) if batch_size > 0 else batch_size  # load_batches refuses the others
    parts, rows, ids, unreadable = [], [], [], []
    with _at_rest(image_encoder, resolve_device(device)) as on_device:
        encode = partial(_encode, image_encoder, dataset, on_device, dtype, size, num_workers, progress)
        for batch in encode(range(len(dataset))):
            parts.append(batch.inputs)
            rows += batch.rows.tolist()
            ids += batch.ids
            unreadable += batch.unreadable
    return _features_of(dataset, rows, ids, unreadable, torch.cat(parts) if parts else torch.empty(0))


def _encode(
    image_encoder: ImageEncoder,
    dataset: Dataset,
    device: torch.device,
    dtype: torch.dtype,
    batch_size: int,
    num_workers: int,
    progress: bool,
    rows: Sequence[int],
) -> Iterator[Batch]:
    """Batches of the rows, with (B,S,C) embeddings on the CPU as inputs; see `FeatureCache` on their last bits."""
    with tqdm(total=len(rows), disable=None if progress else True, desc="image features", unit="image") as bar:
        for batch in load_batches(dataset, image_encoder.transform, batch_size, rows, num_workers):
            embeddings = torch.empty(0, *_shape(image_encoder), dtype=dtype)
            if len(batch):
                filled = torch.cat([batch.inputs, batch.inputs[:1].expand(batch_size - len(batch), -1, -1, -1)])
                with torch.no_grad():
                    embeddings = image_encoder(filled.to(device))[: len(batch)].to("cpu", dtype)
                finite = torch.isfinite(embeddings).flatten(1).all(1)
                if not finite.all():
                    first = batch.ids[int(finite.int().argmin())]
                    raise ValueError(
                        f"spatial embeddings must be finite in {dtype}, got NaN or infinity first for image {first}; "
                        f"use a dtype of larger range (bf16, fp32), or check the encoder's weights"
                    )
            yield replace(batch, inputs=embeddings)
            bar.update(len(batch) + len(batch.unreadable))


def _in_portions(pairs: Iterable[tuple[list[bytes], Tensor]], size: int) -> Iterator[tuple[list[bytes], Tensor]]:
    """The same hashes and embeddings in the same order, `size` at a time."""
    hashes: list[bytes] = []
    parts: list[Tensor] = []
    for more_hashes, more in pairs:
        hashes += more_hashes
        parts.append(more)
        while len(hashes) >= size:
            whole = torch.cat(parts)
            yield hashes[:size], whole[:size]
            hashes, parts = hashes[size:], [whole[size:]]
    if hashes:
        yield hashes, torch.cat(parts)


@contextmanager
def _at_rest(image_encoder: ImageEncoder, device: torch.device) -> Iterator[torch.device]:
    """The encoder on a device and in eval mode; its own mode and the caller's random numbers come back.

    A DataLoader draws a number at each start, so that without this a full cache would train another head than an empty.
    """
    training = image_encoder.training
    with torch.random.fork_rng(devices=[]):
        try:
            image_encoder.to(device).eval()
            yield device
        finally:
            image_encoder.train(training)


@contextmanager
def _room(shards: ShardFolder, num_images: int) -> Iterator[None]:
    """Around writing: an error that says where, how much must be written yet, and that nothing is lost."""
    try:
        yield
    except OSError as error:
        raise OSError(
            error.errno,
            f"cache must have room for {num_images * shards.bytes_per_image:,} more bytes ({num_images:,} images), "
            f"{shards.folder} has {shards.bytes_free:,} free and says: {error.strerror or error}; "
            f"make room there and run it again, what was saved stays and is used",
        ) from error


def _manifest(identity: dict[str, Any], shards: ShardFolder) -> bytes:
    """What a person reads: which encoder this folder is of."""
    content = identity | {"spatial_embeddings": shards.shape, "versions": package_versions()}
    return (json.dumps(content, indent=1, ensure_ascii=False, default=repr) + "\n").encode()


def _shape(image_encoder: ImageEncoder) -> tuple[int, int]:
    """(S,C)."""
    rows, columns = image_encoder.grid_size
    return image_encoder.num_global_tokens + rows * columns, image_encoder.encoder_dim


def _features_of(
    dataset: Dataset,
    rows: Sequence[int],
    ids: Sequence[str],
    unreadable: Sequence[tuple[str, str]],
    embeddings: Tensor | MappedEmbeddings,
) -> FeatureDataset:
    """The rows of a dataset that could be read, as spatial embeddings.

    Raises:
        ValueError: if there are none.
    """
    if not rows:
        first = f"; first: {unreadable[0][1]}" if unreadable else ""
        raise ValueError(f"dataset must have readable images, none could be read{first}")
    return FeatureDataset(
        embeddings,
        dataset.targets[np.asarray(rows)],
        ids,
        dataset.vocabulary,
        dataset.name,
        dataset.split,
        dataset.missing,
        unreadable,
    )
