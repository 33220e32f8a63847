"""How a predictor reads images: lazily, in order, in other processes, and never losing one to another."""

import io
import itertools
import multiprocessing
import multiprocessing.connection
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from zsmld import Predictor
from zsmld.images import ImageTransform, load_image
from zsmld.predictor import loading
from zsmld.predictor.loading import load_images, resolve_workers
from zsmld.predictor.sources import open_images

CPU = torch.device("cpu")
TRANSFORM = ImageTransform(image_size=16)
forked = pytest.mark.skipif(sys.platform != "linux", reason="only forked workers see what this process changed")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Twelve pictures."""
    folder, rng = tmp_path_factory.mktemp("files"), np.random.default_rng(0)
    paths = [str(folder / f"{number:02d}.png") for number in range(12)]
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(path)
    return paths


def load(sources: Any, batch_size: int = 4, num_workers: int = 0, transform: ImageTransform = TRANSFORM) -> Iterator:
    return load_images(sources, transform, batch_size, num_workers, CPU)


def no_children() -> bool:
    """Whether every process that this one began has ended; they are given some time to."""
    until = time.monotonic() + 60
    while multiprocessing.active_children() and time.monotonic() < until:
        time.sleep(0.05)
    return not multiprocessing.active_children()


# -------------------------------------------------------------------------------------------------------------- laws


@pytest.mark.parametrize("resize", ["squash", "crop"])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_inputs_are_those_of_the_transform_to_the_bit(files: list[str], resize: Any, interpolation: str) -> None:
    """Training reads images in another place; what it saw there must come out here."""
    transform = ImageTransform(16, (0.4, 0.5, 0.6), (0.2, 0.3, 0.25), interpolation, resize)
    inputs = torch.cat([batch.inputs for batch in load(files, transform=transform)])
    assert inputs.dtype == torch.float32 and inputs.shape == (12, 3, 16, 16)
    assert torch.equal(inputs, torch.stack([transform(load_image(path)) for path in files]))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_nothing_is_lost_and_order_is_kept(files: list[str], num_workers: int) -> None:
    """Good ones of every kind between bad ones of every kind."""
    tensor = torch.full((3, 16, 16), 0.25, dtype=torch.float64)
    image = Image.open(files[3])
    bad: list[Any] = [
        "missing.png",
        b"broken",
        torch.zeros(3, 8, 8),
        np.zeros((3, 3)),
        io.StringIO("text"),
        TypeError("no"),
    ]
    good: list[Any] = [
        files[0],
        Path(files[1]),
        Path(files[2]).read_bytes(),
        image,
        io.BytesIO(Path(files[4]).read_bytes()),
        tensor,
    ]
    good.append(np.asarray(Image.open(files[5])))
    sources = [source for pair in zip(good, [*bad, "gone.png"], strict=True) for source in pair]
    batches = list(load(sources, batch_size=5, num_workers=num_workers))
    assert [len(batch.paths) for batch in batches] == [5, 5, 4]
    failed = [5 * number + place for number, batch in enumerate(batches) for place in batch.errors]
    assert failed == [1, 3, 5, 7, 9, 11, 13]
    assert [path for batch in batches for path in batch.paths][:3] == [files[0], "missing.png", files[1]]
    errors = [error for batch in batches for error in batch.errors.values()]
    for error, part in zip(
        errors, ["not found: missing.png", "cannot decode", "(3, 16, 16), got (3, 8, 8)", "uint8"], strict=False
    ):
        assert part in error
    assert "open it with 'rb'" in errors[4] and errors[5] == "no"
    expected = [TRANSFORM(load_image(path)) for path in files[:6]]
    expected.insert(5, tensor.float())
    assert torch.equal(torch.cat([batch.inputs for batch in batches]), torch.stack(expected))


@given(st.lists(st.booleans(), max_size=9), st.integers(1, 4))
def test_every_source_is_in_one_batch(readable: list[bool], batch_size: int) -> None:
    sources = [np.full((4, 4, 3), number, np.uint8) if good else b"" for number, good in enumerate(readable)]
    batches = list(load(sources, batch_size))
    places = [number * batch_size + place for number, batch in enumerate(batches) for place in sorted(batch.errors)]
    assert places == [number for number, good in enumerate(readable) if not good]
    assert sum(len(batch.inputs) for batch in batches) == sum(readable)
    values = [round(float(image[0, 0, 0] * 0.229 + 0.485) * 255) for batch in batches for image in batch.inputs]
    assert values == [number for number, good in enumerate(readable) if good]


@forked
@pytest.mark.timeout(120)
@pytest.mark.parametrize("num_workers", [1, 2])
def test_a_worker_that_is_killed_while_it_sends_is_noticed(
    files: list[str], num_workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The half result that it leaves must not be waited for; its images are good, and none is lost."""
    send = multiprocessing.connection.Connection._send  # type: ignore[attr-defined]

    def half(self: Any, content: Any, write: Any = os.write) -> None:
        if multiprocessing.parent_process() is not None and len(content) > 9000:  # pixels of more than one image
            write(self._handle, content[: len(content) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        send(self, content, write)

    monkeypatch.setattr(multiprocessing.connection.Connection, "_send", half)
    monkeypatch.setattr(loading, "_SECONDS_TO_NOTICE", 0.2)
    transform = ImageTransform(image_size=48)
    batches = list(load(files, num_workers=num_workers, transform=transform))
    assert [batch.errors for batch in batches] == [{}] * 3
    found = torch.cat([batch.inputs for batch in batches])
    assert torch.equal(found, torch.stack([transform(load_image(path)) for path in files]))
    assert no_children()


# ------------------------------------------------------------------------------------------------------------ lazily


@pytest.mark.parametrize(("num_workers", "ahead"), [(0, 0), (1, 3), (2, 5)])
def test_a_generator_is_read_no_further_than_needed(files: list[str], num_workers: int, ahead: int) -> None:
    taken = 0

    def endless() -> Iterator[str]:
        nonlocal taken
        while True:
            taken += 1
            yield files[taken % len(files)]

    stream = load(endless(), batch_size=3, num_workers=num_workers)
    for number in range(1, 9):
        next(stream)
        assert taken <= 3 * (number + ahead)
    stream.close()
    assert no_children()


def test_what_the_giver_closes_has_been_read(files: list[str]) -> None:
    def opened() -> Iterator[Any]:
        for path in files:
            with open(path, "rb") as file:
                yield file
            with Image.open(path) as image:
                yield image

    expected = torch.stack([TRANSFORM(load_image(path)) for path in files])
    for num_workers in (0, 1):
        found = torch.cat([batch.inputs for batch in load(opened(), num_workers=num_workers)])
        assert torch.equal(found[::2], expected) and torch.equal(found[1::2], expected)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_error_of_the_giver_comes_after_what_it_gave(files: list[str], num_workers: int) -> None:
    def failing() -> Iterator[str]:
        yield from files[:6]
        raise ConnectionError("the server is gone")

    stream, num_read = load(failing(), num_workers=num_workers), 0
    with pytest.raises(ConnectionError, match="the server is gone"):
        for batch in stream:
            num_read += len(batch.inputs)
    assert num_read == 6 and no_children()


def test_items_of_a_generator_are_checked_one_by_one(files: list[str], tmp_path: Path) -> None:
    sources, total = open_images(item for item in [files[0], 3, str(tmp_path / "*.none"), Path(files[0]).parent])
    (batch,) = load(sources, batch_size=99)
    assert total is None and len(batch.paths) == 15 and sorted(batch.errors) == [1, 2]
    assert "each image must be a path" in batch.errors[1] and "found none at" in batch.errors[2]
    assert open_images({files[0]: 0}.keys())[1] == 1 and open_images(files)[1] == 12


# ----------------------------------------------------------------------------------------------------------- workers


@forked
def test_a_process_that_dies_takes_one_image_with_it(files: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    original, main = loading.load_image, os.getpid()

    def deadly(source: Any) -> Image.Image:
        if source in (files[2], files[9]) and os.getpid() != main:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(source)

    monkeypatch.setattr(loading, "load_image", deadly)
    batches = list(load(files, num_workers=2))
    errors = {
        4 * number + place: error for number, batch in enumerate(batches) for place, error in batch.errors.items()
    }
    assert sorted(errors) == [2, 9] and all(f"the process that decoded {files[i]} died" in e for i, e in errors.items())
    expected = torch.stack([TRANSFORM(load_image(path)) for i, path in enumerate(files) if i not in errors])
    assert torch.equal(torch.cat([batch.inputs for batch in batches]), expected)
    assert no_children()


@forked
def test_any_error_of_a_decoder_is_one_unreadable_image(files: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    original = loading.load_image

    def faulty(source: Any) -> Image.Image:
        if source == files[1]:
            raise IndexError("list index out of range")  # as decoders do on damaged files
        return original(source)

    monkeypatch.setattr(loading, "load_image", faulty)
    for num_workers in (0, 1):
        batch = next(load(files, num_workers=num_workers))
        assert list(batch.errors) == [1] and f"cannot decode {files[1]}: IndexError" in batch.errors[1]


class Unsendable:
    """An image file that no other process can have."""

    def __init__(self, path: str) -> None:
        self.read = lambda *size: self.file.read(*size)
        self.file = open(path, "rb")  # noqa: SIM115
        self.seek, self.tell = self.file.seek, self.file.tell


def test_what_cannot_be_sent_to_a_worker_is_decoded_here(files: list[str]) -> None:
    batches = list(load([files[0], Unsendable(files[1]), files[2]], num_workers=1))
    assert torch.equal(batches[0].inputs, torch.stack([TRANSFORM(load_image(path)) for path in files[:3]]))


def test_closing_early_ends_the_workers(files: list[str]) -> None:
    stream = load(itertools.cycle(files), num_workers=2)
    next(stream)
    assert multiprocessing.active_children()
    stream.close()
    assert no_children()


@pytest.mark.skipif(sys.platform != "linux", reason="reads from /proc who is alive")
def test_workers_end_with_a_process_that_is_killed(files: list[str]) -> None:
    program = (
        "import sys, time, multiprocessing, torch\n"
        "from zsmld.images import ImageTransform\n"
        "from zsmld.predictor.loading import load_images\n"
        "stream = load_images(sys.argv[1:] * 1000, ImageTransform(16), 2, 2, torch.device('cpu'))\n"
        "next(stream)\n"
        "print(*(child.pid for child in multiprocessing.active_children()), flush=True)\n"
        "time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program, *files], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    children = [int(pid) for pid in process.stdout.readline().split()]
    assert len(children) == 2 and all(_is_alive(pid) for pid in children)
    process.kill()
    process.wait()
    process.stdout.close()
    until = time.monotonic() + 60
    while any(_is_alive(pid) for pid in children) and time.monotonic() < until:
        time.sleep(0.05)
    assert not any(_is_alive(pid) for pid in children), f"workers {children} outlived their process"


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_the_rule_for_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = torch.device("cuda")
    monkeypatch.setattr(sys, "platform", "linux")
    for cores, on_cpu, on_gpu in [(1, 0, 0), (2, 0, 1), (8, 2, 7), (64, 8, 16)]:
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, cores=cores: set(range(cores)), raising=False)
        assert resolve_workers("auto", CPU, None, 32) == resolve_workers("auto", CPU, 33, 32) == on_cpu
        assert resolve_workers("auto", gpu, None, 32) == on_gpu
        assert resolve_workers("auto", gpu, 32, 32) == 0
        assert resolve_workers(5, CPU, 1, 32) == 5
    monkeypatch.setattr(sys, "platform", "win32")
    assert resolve_workers("auto", gpu, None, 32) == 0
    for wrong in (-1, "many", None, 1.5, True):
        with pytest.raises(ValueError, match="num_workers must be a number ≥ 0 or 'auto', got"):
            resolve_workers(wrong, CPU, None, 32)  # type: ignore[arg-type]


# --------------------------------------------------------------------------------------------------------- predictor


def test_a_predictor_streams_and_shows_a_bar(
    make_model: Callable[..., Any], files: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    predictor = Predictor(make_model(), ["dog", "cat"], device="cpu", batch_size=4, num_workers=0)
    expected = list(predictor.predict(files))
    assert capsys.readouterr().err == ""
    assert list(predictor.predict((path for path in files), progress=True)) == expected
    assert "12image" in capsys.readouterr().err  # no total is known
    assert len(predictor.score(files, progress=True)[0]) == 12
    assert "12/12" in capsys.readouterr().err
    for wrong in (-1, "two"):
        with pytest.raises(ValueError, match="num_workers must be a number ≥ 0 or 'auto'"):
            Predictor(make_model(), ["dog"], device="cpu", num_workers=wrong)


def test_a_prediction_that_is_not_asked_for_begins_nothing(make_model: Callable[..., Any], files: list[str]) -> None:
    predictor = Predictor(make_model(), ["dog"], device="cpu", batch_size=1, num_workers=1)
    predictor.predict(files)
    assert not multiprocessing.active_children()
