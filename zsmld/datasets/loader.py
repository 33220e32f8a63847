"""Batches from a dataset: decoded, augmented and transformed in workers; unreadable images set aside, not raised."""

import multiprocessing
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.util import Finalize
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from zsmld.images import ImageAugmentation, ImageTransform


class WorkerDied(OSError):
    """A process that decoded images was killed, or crashed; the message says what to do."""


@dataclass
class Batch:
    """Some rows of a dataset, ready for the network.

    Attributes:
        inputs: (B,3,H,W) images, or (B,S,C) spatial embeddings where the dataset has those.
        targets: (B,N) int8.
        rows: (B,) int64 positions in the dataset.
        ids: B image ids.
        unreadable: (id, error) of the images that could not be read; they are in none of the fields above.
    """

    inputs: Tensor
    targets: Tensor
    rows: Tensor
    ids: list[str]
    unreadable: list[tuple[str, str]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.ids)


def load_batches(
    dataset: Any,
    transform: Callable[[Any], Tensor] | None,
    batch_size: int,
    rows: Iterable[int] | None = None,
    num_workers: int = 0,
    augmentation: ImageAugmentation | None = None,
    seeds: Iterable[int] | None = None,
) -> Iterator[Batch]:
    """Iterate over rows of a dataset in the order given.

    An image is augmented by its seed alone, so a row gives the same bits with any number of workers, and in whichever
    process it is visited. A worker that raises ends the iteration with its error.

    Args:
        dataset: see `zsmld.datasets`.
        transform: PIL image -> (3,H,W); not used for spatial embeddings.
        batch_size: images a batch.
        rows: positions to visit; default all, in order.
        num_workers: processes that decode; 0 decodes in this one.
        augmentation: of single images; whether batches are mixed is the caller's business.
        seeds: one for each row visited, at least 0, if images are augmented; a row may come again with another.

    Yields:
        `Batch`; a batch may be empty when none of its images could be read.

    Raises:
        ValueError: if batch_size or num_workers make no sense, or images are to be augmented without a seed for each,
            without an `ImageTransform`, or where the dataset has tensors: spatial embeddings, or transformed images.
        WorkerDied: if a worker dies.
    """
    if batch_size < 1 or num_workers < 0:
        raise ValueError(
            f"batch_size must be ≥ 1 and num_workers ≥ 0, got {batch_size} and {num_workers}; correct them"
        )
    order = list(range(len(dataset))) if rows is None else [int(row) for row in rows]
    own, augment = [0] * len(order), None
    if augmentation is not None and augmentation.augments:
        own = [] if seeds is None else [int(seed) for seed in seeds]
        if len(own) != len(order):
            raise ValueError(
                f"seeds must be one for each of the {len(order)} rows visited, got {len(own)}; derive each from the "
                f"run's seed, the epoch and the place in it"
            )
        if not isinstance(transform, ImageTransform):
            raise ValueError(
                f"transform must be an ImageTransform to augment images, got {type(transform).__name__}; "
                f"give that of the image encoder or turn the image augmentation off"
            )
        augment = partial(augmentation.augment, transform=transform)
    # DataLoader draws its workers' seeds from the global generator, and disturbs it, unless it has one of its own.
    generator = torch.Generator().manual_seed(own[0] % 2**63 if own else 0)
    batches = DataLoader(
        _Rows(dataset, transform, augment),
        batch_size=batch_size,
        sampler=list(zip(order, own, strict=True)),
        num_workers=num_workers,
        collate_fn=_collate,
        generator=generator,
        worker_init_fn=_leave_signals_to_main,
    )
    others = multiprocessing.active_children()
    former = _handler()
    with _signals_held():
        iterator = iter(batches)
    _hold_back(former)
    workers = [child for child in multiprocessing.active_children() if child not in others]
    at_exit = Finalize(None, _end, args=(workers,), exitpriority=0)
    is_finalizing = sys.is_finalizing  # at the exit of Python this module may be cleared before the iteration ends
    try:
        while True:
            with _waiting():
                batch = next(iterator, None)
            if batch is None:
                break
            yield batch
    except Exception as error:
        if num_workers:
            # The message has the worker's own traceback. Torch's, of this process, keeps the workers in a cycle of
            # references, from where each of them takes five seconds to end.
            error.__traceback__ = None
        if isinstance(error, RuntimeError) and str(error).startswith("DataLoader worker"):
            raise WorkerDied(
                f"num_workers={num_workers} processes must live to decode images, one died, of its memory or a fault "
                f"in the decoder: {error}; try again, with fewer workers where memory is short"
            ) from None
        raise
    finally:
        if not is_finalizing():
            at_exit.cancel()


_num_waiting = 0  # of the main thread's iterations, those that wait for a batch


@contextmanager
def _waiting() -> Iterator[None]:
    global _num_waiting
    here = int(_on_main_thread())
    _num_waiting += here
    try:
        yield
    finally:
        _num_waiting -= here


class _HeldBack:
    """Torch's handler of a child's end, which raises when a worker died, amid whatever the main thread does.

    Here it does so only where a batch is waited for; whoever died before is missed there within five seconds.

    Args:
        torch_handler: calls the former one itself.
        former: the handler before it.
    """

    def __init__(self, torch_handler: Callable[..., Any], former: Any) -> None:
        self.torch_handler, self.former = torch_handler, former

    def __call__(self, number: int, frame: Any) -> None:
        if _num_waiting:
            self.torch_handler(number, frame)
        elif callable(self.former):
            self.former(number, frame)


def _on_main_thread() -> bool:
    """Where Python runs what handles signals, and the one thread that may say what does."""
    return threading.current_thread() is threading.main_thread()


def _handler() -> Any:
    return signal.getsignal(signal.SIGCHLD) if hasattr(signal, "SIGCHLD") else None


def _hold_back(former: Any) -> None:
    """Put `_HeldBack` in the place of torch's handler, which torch sets once in a process, with its first workers."""
    handler = _handler()
    is_torchs = getattr(handler, "__module__", None) == "torch.utils.data._utils.signal_handling"
    if is_torchs and _on_main_thread():
        signal.signal(signal.SIGCHLD, _HeldBack(handler, None if former is handler else former))


def _end(workers: list[Any]) -> None:
    """For a process that exits within an iteration: it would send its workers SIGTERM, which they ignore, and wait."""
    if workers and _on_main_thread() and hasattr(signal, "SIGCHLD"):
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler raises when a worker is killed
    for worker in workers:
        worker.kill()


_OF_MAIN = {signal.SIGTERM, signal.SIGINT}


@contextmanager
def _signals_held() -> Iterator[None]:
    """Signals that come while workers start wait until each of them ignores them; torch's own handler would end it."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    former = signal.pthread_sigmask(signal.SIG_BLOCK, _OF_MAIN)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, former)


def _leave_signals_to_main(worker: int) -> None:
    """A signal to the whole group of processes must not take the images from a process that wants to end in order.

    Workers end when their batches are used up, or when the process that they work for is gone.
    """
    for number in _OF_MAIN:
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _OF_MAIN)


class _Rows(Dataset[dict[str, Any]]):
    """Rows of a dataset, augmented and transformed; an image that cannot be read is an item with its error."""

    def __init__(
        self, dataset: Any, transform: Callable[[Any], Tensor] | None, augment: Callable[..., Tensor] | None
    ) -> None:
        self.dataset, self.transform, self.augment = dataset, transform, augment

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, visit: tuple[int, int]) -> dict[str, Any]:
        row, seed = visit
        try:
            item = self.dataset[row]
        except (OSError, ValueError) as error:
            image_id = str(self.dataset.ids[row] if hasattr(self.dataset, "ids") else row)
            return {"error": str(error), "id": image_id}
        inputs = item["spatial_embeddings"] if "spatial_embeddings" in item else item["image"]
        if self.augment is not None:
            inputs = self.augment(inputs, seed=seed)
        elif self.transform is not None and "image" in item:
            inputs = self.transform(inputs)
        return {"inputs": inputs, "targets": item["targets"], "id": item["id"], "row": row}

    def __getitems__(self, visits: list[tuple[int, int]]) -> "list[dict[str, Any]] | Batch":
        """A batch at once, where the dataset can give one: a head trains faster than rows come one by one."""
        if self.augment is not None or not hasattr(self.dataset, "batch"):
            return [self[visit] for visit in visits]
        rows = [row for row, _ in visits]
        found = self.dataset.batch(rows)
        return Batch(found["spatial_embeddings"], torch.from_numpy(found["targets"]), torch.tensor(rows), found["ids"])


def _collate(items: list[dict[str, Any]] | Batch) -> Batch:
    if isinstance(items, Batch):
        return items
    good = [item for item in items if "error" not in item]
    return Batch(
        inputs=torch.stack([item["inputs"] for item in good]) if good else torch.empty(0),
        targets=torch.from_numpy(np.stack([item["targets"] for item in good])) if good else torch.empty(0),
        rows=torch.tensor([item["row"] for item in good], dtype=torch.int64),
        ids=[item["id"] for item in good],
        unreadable=[(item["id"], item["error"]) for item in items if "error" in item],
    )
