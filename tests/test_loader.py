"""Batches: order, unreadable rows set aside, augmentation by seeds, workers that change nothing or fail aloud."""

import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from zsmld.datasets.loader import Batch, WorkerDied, load_batches
from zsmld.images import ImageAugmentation, ImageTransform


class Rows:
    """A dataset of (3,2,2) tensors filled with their row; rows in `bad` cannot be read."""

    def __init__(self, num_rows: int, bad: tuple[int, ...] = ()) -> None:
        self.ids, self.bad = [f"image {i}" for i in range(num_rows)], bad

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, row: int) -> dict[str, Any]:
        if row in self.bad:
            raise ValueError(f"cannot decode {self.ids[row]}")
        targets = np.array([row % 2, -1], np.int8)
        return {"image": torch.full((3, 2, 2), float(row)), "targets": targets, "id": self.ids[row]}


@given(st.integers(1, 20), st.integers(1, 7), st.data())
def test_every_row_comes_once_in_order_or_is_set_aside(num_rows: int, batch_size: int, data: st.DataObject) -> None:
    bad = tuple(data.draw(st.lists(st.integers(0, num_rows - 1), unique=True)))
    order = data.draw(st.none() | st.permutations(range(num_rows)))
    batches = list(load_batches(Rows(num_rows, bad), None, batch_size, rows=order))
    order = list(range(num_rows)) if order is None else order
    assert len(batches) == -(-num_rows // batch_size)
    for number, batch in enumerate(batches):
        asked = order[number * batch_size : (number + 1) * batch_size]
        good = [row for row in asked if row not in bad]
        assert batch.rows.tolist() == good and batch.ids == [f"image {row}" for row in good] and len(batch) == len(good)
        assert batch.unreadable == [(f"image {r}", f"cannot decode image {r}") for r in asked if r in bad]
        if good:
            assert batch.inputs.shape == (len(good), 3, 2, 2) and batch.targets.shape == (len(good), 2)
            assert batch.inputs[:, 0, 0, 0].tolist() == good
            assert batch.targets.tolist() == [[row % 2, -1] for row in good]


def test_workers_change_nothing() -> None:
    dataset = Rows(11, bad=(3, 4))
    alone, helped = (list(load_batches(dataset, None, 3, num_workers=n)) for n in (0, 2))
    assert len(alone) == len(helped) == 4
    for a, b in zip(alone, helped, strict=True):
        assert a.ids == b.ids and a.unreadable == b.unreadable
        assert torch.equal(a.inputs, b.inputs) and torch.equal(a.targets, b.targets) and torch.equal(a.rows, b.rows)


def test_transform_is_applied_to_images_and_not_to_embeddings() -> None:
    (batch,) = load_batches(Rows(2), lambda image: image + 10, 4)
    assert batch.inputs[:, 0, 0, 0].tolist() == [10, 11]
    (batch,) = load_batches(Embedded(2), lambda image: image + 10, 4)
    assert batch.inputs.shape == (2, 3, 4) and batch.inputs.max() == 1


def test_rows_may_repeat_and_be_few() -> None:
    batches = list(load_batches(Rows(9), None, 2, rows=np.array([8, 0, 8])))
    assert [batch.rows.tolist() for batch in batches] == [[8, 0], [8]]
    assert list(load_batches(Rows(9), None, 2, rows=[])) == []


def test_other_errors_are_not_swallowed() -> None:
    class Broken(Rows):
        def __getitem__(self, row: int) -> dict[str, Any]:
            raise KeyError("a bug of the dataset")

    with pytest.raises(KeyError, match="a bug of the dataset"):
        list(load_batches(Broken(1), None, 1))


@pytest.mark.parametrize("options", [{"batch_size": 0}, {"batch_size": 2, "num_workers": -1}])
def test_wrong_numbers(options: dict) -> None:
    with pytest.raises(ValueError, match="batch_size must be ≥ 1 and num_workers ≥ 0, got "):
        next(load_batches(Rows(2), None, **options))


# ------------------------------------------------------------------------------------------------------- augmentation

TRANSFORM = ImageTransform(16)
AUGMENTATION = ImageAugmentation(0.5, 2, horizontal_flip=0.5, min_crop_area=0.5, mixup=0.2)


class Pictures(Rows):
    """The same rows with random pictures."""

    def __getitem__(self, row: int) -> dict[str, Any]:
        item = super().__getitem__(row)
        pixels = np.random.default_rng(row).integers(0, 256, (20, 30, 3), dtype=np.uint8)
        return item | {"image": Image.fromarray(pixels)}


class Embedded(Rows):
    """The same rows with spatial embeddings."""

    def __getitem__(self, row: int) -> dict[str, Any]:
        item = super().__getitem__(row)
        return {"spatial_embeddings": item["image"].flatten(1), "targets": item["targets"], "id": item["id"]}


def load(batch_size: int, rows: Any = None, seeds: Any = None, num_workers: int = 0, **options: Any) -> list[Batch]:
    options = {"dataset": Pictures(9), "transform": TRANSFORM, "augmentation": AUGMENTATION} | options
    return list(load_batches(batch_size=batch_size, rows=rows, seeds=seeds, num_workers=num_workers, **options))


def inputs_of(batches: list[Batch]) -> torch.Tensor:
    return torch.cat([batch.inputs for batch in batches])


@given(st.lists(st.tuples(st.integers(0, 8), st.integers(0, 2**70)), min_size=1, max_size=12), st.integers(1, 5))
def test_an_augmented_row_is_a_function_of_its_seed(visits: list, batch_size: int) -> None:
    rows, seeds = zip(*visits, strict=True)
    state = torch.get_rng_state()
    found = inputs_of(load(batch_size, rows, seeds))
    assert torch.equal(torch.get_rng_state(), state)
    for inputs, row, seed in zip(found, rows, seeds, strict=True):
        assert torch.equal(inputs, AUGMENTATION.augment(Pictures(9)[row]["image"], TRANSFORM, seed))


def test_neither_workers_nor_the_global_state_nor_processes_change_an_augmented_row() -> None:
    rows, seeds = [5, 1, 5, 0, 8, 5, 3], [10, 11, 12, 13, 14, 10, 16]
    alone = inputs_of(load(2, rows, seeds))
    assert torch.equal(alone[0], alone[5]) and not torch.equal(alone[0], alone[2])  # the same row and another seed
    torch.manual_seed(99)
    state = torch.get_rng_state()
    for num_workers in (1, 2):
        assert torch.equal(inputs_of(load(3, np.array(rows), np.array(seeds), num_workers)), alone)
        assert torch.equal(torch.get_rng_state(), state)
    for process in (0, 1):
        assert torch.equal(inputs_of(load(2, rows[process::2], seeds[process::2])), alone[process::2])


def test_unreadable_rows_are_set_aside_and_shift_no_seed() -> None:
    whole, holed = (load(4, seeds=range(9), dataset=Pictures(9, bad)) for bad in ((), (2, 7)))
    assert [batch.rows.tolist() for batch in holed] == [[0, 1, 3], [4, 5, 6], [8]]
    assert torch.equal(inputs_of(holed), inputs_of(whole)[[0, 1, 3, 4, 5, 6, 8]])


@pytest.mark.parametrize("augmentation", [None, ImageAugmentation(), ImageAugmentation(mixup=1.0)])
def test_without_augmentation_of_single_images_all_is_plain(augmentation: ImageAugmentation | None) -> None:
    found = inputs_of(load(4, augmentation=augmentation))
    assert torch.equal(found, torch.stack([TRANSFORM(Pictures(9)[row]["image"]) for row in range(9)]))
    for dataset in (Rows(3), Embedded(3)):
        assert inputs_of(load(4, dataset=dataset, augmentation=augmentation))[:, 0].flatten(1)[:, 0].tolist() == [
            0,
            1,
            2,
        ]


@pytest.mark.parametrize("dataset", [Rows(3), Embedded(3)], ids=["images", "embeddings"])
@pytest.mark.parametrize("num_workers", [0, 1])
def test_tensors_cannot_be_augmented(dataset: Any, num_workers: int) -> None:
    with pytest.raises(ValueError, match=r"got a tensor .*turn the image augmentation or the feature cache off"):
        load(2, seeds=range(3), num_workers=num_workers, dataset=dataset)


@pytest.mark.parametrize("seeds", [None, [], range(8), range(10)])
def test_every_visit_needs_a_seed(seeds: Any) -> None:
    number = 0 if seeds is None else len(seeds)
    with pytest.raises(ValueError, match=f"seeds must be one for each of the 9 rows visited, got {number}; derive"):
        load(2, seeds=seeds)
    assert load(2, rows=[], seeds=[]) == []


@pytest.mark.parametrize("transform", [None, np.asarray])
def test_augmentation_needs_an_image_transform(transform: Any) -> None:
    with pytest.raises(
        ValueError, match=r"transform must be an ImageTransform to augment images, got .*; give that of"
    ):
        load(2, seeds=range(9), transform=transform)


# ------------------------------------------------------------------------------------------------- workers that fail


class Faulty(Rows):
    """One row has a bug, or kills the process that reads it."""

    def __init__(self, kill: bool) -> None:
        super().__init__(9)
        self.kill = kill

    def __getitem__(self, row: int) -> dict[str, Any]:
        if row == 5 and self.kill:
            os.kill(os.getpid(), signal.SIGKILL)
        if row == 5:
            raise KeyError("a bug of the dataset")
        return super().__getitem__(row)


@pytest.mark.parametrize(
    ("kill", "error", "message"),
    [
        (False, KeyError, "a bug of the dataset"),
        pytest.param(
            True,
            WorkerDied,
            r"num_workers=2 processes must live .*, one died.*DataLoader worker \(pid.*fewer workers",
            marks=pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL"),
        ),
    ],
)
def test_a_worker_that_fails_is_an_error_and_no_wait(kill: bool, error: type[Exception], message: str) -> None:
    gc.collect()
    others = torchs_iterators()
    gc.disable()
    try:
        with pytest.raises(error, match=message):
            list(load_batches(Faulty(kill), None, 2, num_workers=2))
        # One that hangs in a cycle with the error's traceback is left to the garbage collection, in which torch waits
        # five seconds for each worker.
        assert [iterator for iterator in torchs_iterators() if iterator not in others] == []
    finally:
        gc.enable()
    assert no_children()


def torchs_iterators() -> list[Any]:
    """Those with workers that are still there, whoever keeps them."""
    return [thing for thing in gc.get_objects() if type(thing) is _MultiProcessingDataLoaderIter]


def no_children() -> bool:
    """Whether every process that this one began has ended; they are given some time to."""
    until = time.monotonic() + 60
    while multiprocessing.active_children() and time.monotonic() < until:
        time.sleep(0.05)
    return not multiprocessing.active_children()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
def test_a_worker_that_dies_interrupts_nothing_but_the_wait_for_it() -> None:
    """Torch's handler would raise in the middle of the consumer's own work."""
    others = multiprocessing.active_children()
    batches = load_batches(Rows(99), None, 2, num_workers=1)
    next(batches)
    (worker,) = set(multiprocessing.active_children()) - set(others)
    os.kill(worker.pid, signal.SIGKILL)
    worker.join(10)
    assert not worker.is_alive()
    sum(number for number in range(10**6))  # where Python would run the handler
    with pytest.raises(WorkerDied, match="num_workers=1 processes must live"):
        list(batches)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGCHLD")
def test_handlers_of_others_go_on_whatever_iterations_are_nested_or_left() -> None:
    """In a process of its own, in which torch has had no workers yet."""
    code = (
        "import os, signal, time\n"
        "from zsmld.datasets.loader import load_batches\n"
        "from tests.test_loader import Rows\n"
        "calls = []\n"
        "signal.signal(signal.SIGCHLD, lambda *_: calls.append(1))\n"
        "def end_a_child():\n"
        "    before = len(calls)\n"
        "    if os.fork() == 0: os._exit(0)\n"
        "    until = time.monotonic() + 20\n"
        "    while len(calls) == before and time.monotonic() < until: time.sleep(0.01)\n"
        "    assert len(calls) > before\n"
        "a, b = (load_batches(Rows(9), None, 2, num_workers=1) for _ in range(2))\n"
        "next(a), next(b)\n"
        "end_a_child()\n"
        "a.close()\n"
        "b.close()\n"
        "both = zip(*(load_batches(Rows(9), None, 2, num_workers=1) for _ in range(2)))\n"
        "assert sum(len(x) + len(y) for x, y in both) == 18\n"
        "end_a_child()\n"
    )
    done = ran(code, 120)
    assert done.returncode == 0, done.stderr


def test_a_signal_to_workers_that_just_start_takes_no_images(monkeypatch: pytest.MonkeyPatch) -> None:
    if multiprocessing.get_start_method() != "fork":
        pytest.skip("only forked workers see what this process changed")
    original = torch.set_num_threads

    def signalled(number: int) -> None:  # torch's worker calls it after it has set its own handlers, before ours
        os.kill(os.getpid(), signal.SIGTERM)
        original(number)

    monkeypatch.setattr(torch, "set_num_threads", signalled)
    assert sum(map(len, load_batches(Rows(9), None, 2, num_workers=2))) == 9


@pytest.mark.parametrize("module", ["zsmld.datasets.loader", "zsmld.cli", "zsmld.features"])
def test_a_process_that_fails_between_batches_ends(module: str) -> None:
    """The iteration hangs in the traceback that Python keeps, with the workers, until modules may be cleared."""
    code = (
        f"import {module}\n"
        "from zsmld.datasets.loader import load_batches\n"
        "from tests.test_loader import Rows\n"
        "batches = load_batches(Rows(9), None, 2, num_workers=2)\n"
        "next(batches)\n"
        "raise RuntimeError('the loss is not finite')\n"
    )
    done = ran(code, 60)
    assert done.returncode == 1 and done.stderr.strip().endswith("RuntimeError: the loss is not finite")
    assert "ignored" not in done.stderr


def ran(code: str, seconds: float) -> subprocess.CompletedProcess[str]:
    """Python in a process of its own, which finds this file."""
    root = Path(__file__).parents[1]
    return subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=seconds)
