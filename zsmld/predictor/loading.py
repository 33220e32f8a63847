"""Images as batches of tensors, read as they are asked for, in this process or ahead of it in others."""

import ctypes
import io
import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures import wait as wait_for
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from zsmld.images import ImageTransform, load_image

_SECONDS_TO_NOTICE = 2.0  # that a worker is dead; the executor does so at once, but for one case

Decoded = tuple[np.ndarray, dict[int, str]]  # pixels (G,H,W,3) uint8 of those that could be read; errors by position


@dataclass(frozen=True)
class LoadedImages:
    """A batch of sources, read.

    Attributes:
        paths: of all B, None for those that have none.
        inputs: (G,3,H,W) fp32 on the device, transformed: those that could be read, in order.
        errors: of the B−G others, by position in `paths`.
    """

    paths: list[str | None]
    inputs: Tensor
    errors: dict[int, str]


def resolve_workers(num_workers: int | str, device: torch.device, total: int | None, batch_size: int) -> int:
    """How many processes decode; "auto" by a simple rule.

    None where nothing would be gained or it is not safe: up to one batch of images, one core, no `fork` (Windows,
    macOS: each process would import everything, and a script without `if __name__ == "__main__"` would fail), or inside
    a worker of something else. Else on a GPU one for each core but one, at most 16, as the cores are idle there; on a
    CPU, whose cores have the network to compute, one for each four cores, at most 8: with fewer, a process that decodes
    takes more from the network than it gives (evaluation/reports/benchmark_predict.md).

    Raises:
        ValueError: if it is neither "auto" nor a number ≥ 0.

    Example:
        >>> resolve_workers("auto", torch.device("cpu"), 8, 32), resolve_workers(3, torch.device("cpu"), 8, 32)
        (0, 3)
    """
    if isinstance(num_workers, int) and not isinstance(num_workers, bool) and num_workers >= 0:
        return num_workers
    if num_workers != "auto":
        raise ValueError(f"num_workers must be a number ≥ 0 or 'auto', got {num_workers!r}; 0 decodes in this process")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    few = total is not None and total <= batch_size
    if few or cores == 1 or not sys.platform.startswith("linux") or multiprocessing.current_process().daemon:
        return 0
    return min(cores - 1, 16) if device.type == "cuda" else min(cores // 4, 8)


def load_images(
    sources: Iterable[Any], transform: ImageTransform, batch_size: int, num_workers: int, device: torch.device
) -> Iterator[LoadedImages]:
    """Read and transform images, in order, a batch at a time.

    Without workers nothing is taken from `sources` before the batch it is in is asked for. With workers, at most two
    batches for each of them, and one more, are taken ahead. A worker that dies takes one image with it: the batch is
    decoded again, image by image.

    Args:
        sources: of `open_images`.
        transform: of the image encoder.
        batch_size: images a batch.
        num_workers: processes that decode; 0 decodes in this one.
        device: where the inputs go.

    Yields:
        A batch of the `batch_size` next sources, readable or not.

    Raises:
        Exception: what `sources` itself raises, once everything that came before has been given.
    """
    batches = _Batches(sources, transform.image_size, batch_size)
    if num_workers:
        decoded = _decode_ahead(batches, transform, num_workers)
    else:
        decoded = ((batch, _decode([item.source for item in batch], transform)) for batch in batches)
    for batch, (pixels, errors) in decoded:
        yield LoadedImages([item.path for item in batch], _inputs(batch, pixels, errors, transform, device), errors)
    if batches.failure is not None:
        raise batches.failure


@dataclass(frozen=True)
class _Item:
    """A source as it is held while it waits; an exception is one that cannot be read."""

    path: str | None
    source: Any


class _Batches:
    """The sources in batches. An error of their giver waits in `failure`: what came before it is not lost."""

    def __init__(self, sources: Iterable[Any], image_size: int, batch_size: int) -> None:
        self.sources, self.image_size, self.batch_size = sources, image_size, batch_size
        self.failure: Exception | None = None

    def __iter__(self) -> Iterator[list[_Item]]:
        sources, ended = iter(self.sources), False
        while not ended:
            batch: list[_Item] = []
            while len(batch) < self.batch_size and not ended:
                try:
                    batch.append(self._held(next(sources)))
                except StopIteration:
                    ended = True
                except Exception as error:  # of the giver, whatever it is; raised by load_images
                    self.failure, ended = error, True
            if batch:
                yield batch

    def _held(self, source: Any) -> _Item:
        """What is open is read now: its giver may close it as soon as the next one is asked for."""
        path = str(source) if isinstance(source, (str, Path)) else None
        shape = (3, self.image_size, self.image_size)
        try:
            if isinstance(source, Tensor):
                if tuple(source.shape) != shape:
                    raise ValueError(
                        f"an image tensor must be transformed, {shape}, got {tuple(source.shape)}; pass it through "
                        f"model.image_encoder.transform"
                    )
                return _Item(path, source.clone())  # its giver may write the next one into the same memory
            if isinstance(source, np.ndarray):
                return _Item(path, source.copy())
            if isinstance(source, Image.Image):
                source.load()
            elif hasattr(source, "read") and hasattr(source, "closed"):
                content = source.read()
                if not isinstance(content, bytes):
                    raise TypeError("an open file must be open for reading bytes, got one of text; open it with 'rb'")
                held = io.BytesIO(content)
                held.name = getattr(source, "name", "image")  # for the error that names it
                return _Item(path, held)
        except Exception as error:  # decoders raise many kinds, and each is one unreadable image
            return _Item(path, error)
        return _Item(path, source)


def _decode(sources: Sequence[Any], transform: ImageTransform, stop: Any = None) -> Decoded:
    """Pixels of the sources that are not tensors, at the size that the encoder takes."""
    size = transform.image_size
    pixels, errors = np.empty((len(sources), size, size, 3), np.uint8), {}
    num_read = 0
    for position, source in enumerate(sources):
        if isinstance(source, Exception):
            errors[position] = str(source)
        elif source is not None and not isinstance(source, Tensor):
            if stop is not None and stop.value:
                break
            try:
                pixels[num_read] = np.asarray(transform.fit(load_image(source)))
                num_read += 1
            except (OSError, ValueError) as error:
                errors[position] = str(error)
            except Exception as error:  # what decoders raise on damaged files has no end
                name = source if isinstance(source, (str, Path)) else "image"
                errors[position] = f"image must be readable, cannot decode {name}: {error!r}; replace or remove it"
    return pixels[:num_read], errors


def _inputs(
    batch: list[_Item], pixels: np.ndarray, errors: dict[int, str], transform: ImageTransform, device: torch.device
) -> Tensor:
    """(G,H,W,3) uint8 and the batch's tensors -> (G,3,H,W) fp32, normalised on the device as `ImageTransform` does."""
    images = torch.from_numpy(pixels).to(device).permute(0, 3, 1, 2).float()  # (G,3,H,W), channels last in memory
    mean, std = (torch.tensor(values, device=device)[:, None, None] for values in (transform.mean, transform.std))
    images.div_(255).sub_(mean).div_(std)
    if len(pixels) + len(errors) == len(batch):
        return images
    decoded = iter(images)
    return torch.stack(
        [
            item.source.to(device).float() if isinstance(item.source, Tensor) else next(decoded)
            for position, item in enumerate(batch)
            if position not in errors
        ]
    )


# ------------------------------------------------------------------------------------------------------------ workers


def _decode_ahead(
    batches: Iterable[list[_Item]], transform: ImageTransform, num_workers: int
) -> Iterator[tuple[list[_Item], Decoded]]:
    pool = _Pool(transform, num_workers)
    try:
        for batch in batches:
            pool.submit(batch)
            # One out for one in, as soon as it is there: a slow giver does not hold back what is ready.
            if pool.is_ready():
                yield pool.take()
        while pool.pending:
            yield pool.take()
    finally:
        pool.close()


class _Pool:
    """Processes that decode batches, in order; `concurrent.futures`, and a fresh start when a process dies."""

    def __init__(self, transform: ImageTransform, num_workers: int) -> None:
        self.transform, self.num_workers = transform, num_workers
        self.pending: deque[tuple[list[_Item], Future[Decoded]]] = deque()
        linux = sys.platform.startswith("linux")
        self._context: Any = multiprocessing.get_context("fork" if linux else None)  # its types differ by platform
        self._stop = self._context.RawValue(ctypes.c_bool, False)  # without a lock, which a dead process might hold
        self._executor = self._start(num_workers)

    def submit(self, batch: list[_Item]) -> None:
        self.pending.append((batch, self._send(self._executor, [item.source for item in batch])))

    def is_ready(self) -> bool:
        return len(self.pending) > 2 * self.num_workers or self.pending[0][1].done()

    def take(self) -> tuple[list[_Item], Decoded]:
        batch, future = self.pending.popleft()
        sources = [item.source for item in batch]
        try:
            return batch, self._result(self._executor, future, sources)
        except BrokenProcessPool:
            self._executor.shutdown()
            decoded = self._one_by_one(sources)
            self._executor = self._start(self.num_workers)
            waiting = [batch for batch, _ in self.pending]
            self.pending.clear()
            for other in waiting:
                self.submit(other)
            return batch, decoded

    def close(self) -> None:
        self._stop.value = True
        self._executor.shutdown(cancel_futures=True)

    def _start(self, num_workers: int) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(num_workers, self._context, _begin_worker, (self.transform, self._stop))

    def _send(self, executor: ProcessPoolExecutor, sources: list[Any]) -> "Future[Decoded]":
        try:
            # Tensors need no decoding and stay here.
            return executor.submit(_work, [None if isinstance(source, Tensor) else source for source in sources])
        except BrokenProcessPool as error:
            broken: Future[Decoded] = Future()
            broken.set_exception(error)
            return broken

    def _result(self, executor: ProcessPoolExecutor, future: "Future[Decoded]", sources: list[Any]) -> Decoded:
        try:
            while not wait_for([future], _SECONDS_TO_NOTICE).done:
                _end_if_stuck(executor)
            return future.result()
        except BrokenProcessPool:
            raise
        except Exception:  # a source that cannot be sent to another process is decoded in this one
            return _decode(sources, self.transform)

    def _one_by_one(self, sources: list[Any]) -> Decoded:
        """Each in a process that nothing else depends on."""
        found: list[np.ndarray] = []
        errors: dict[int, str] = {}
        executor = self._start(1)
        for position, source in enumerate(sources):
            try:
                pixels, wrong = self._result(executor, self._send(executor, [source]), [source])
                found.append(pixels)
                if wrong:
                    errors[position] = wrong[0]
            except BrokenProcessPool:
                name = source if isinstance(source, (str, Path)) else "image"
                errors[position] = (
                    f"image must be readable, the process that decoded {name} died, of its memory or a fault in the "
                    f"decoder; replace or remove it"
                )
                executor.shutdown()
                executor = self._start(1)
        executor.shutdown()
        return np.concatenate(found) if found else np.empty((0, *[self.transform.image_size] * 2, 3), np.uint8), errors


def _end_if_stuck(executor: ProcessPoolExecutor) -> None:
    """A worker that was killed in the midst of sending leaves half a result, and the executor waits for its other half.

    With no worker alive, and no end of the pipe open here, that ends as with any other dead worker.
    """
    workers = list((executor._processes or {}).values())
    if wait([worker.sentinel for worker in workers], 0):
        for worker in workers:
            worker.kill()
        executor._result_queue._writer.close()  # type: ignore[attr-defined]


_own: dict[str, Any] = {}  # of a worker process: what every batch needs


def _begin_worker(transform: ImageTransform, stop: Any) -> None:
    """An interrupt is the main process's to handle; a worker ends when that is gone, however it went."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _own.update(transform=transform, stop=stop)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGTERM)


def _work(sources: list[Any]) -> Decoded:
    return _decode(sources, **_own)
