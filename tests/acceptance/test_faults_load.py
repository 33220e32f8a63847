"""Memory stays flat: a large folder through `zsmld predict`, a test set of NUS-WIDE's size through `zsmld evaluate`."""

import ctypes
import gc
import json
import sys
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from faults import SOAK, Child, command, keep, watched
from PIL import Image

from zsmld import ImageEncoder, Vocabulary, create_model
from zsmld.cli import main

NUM_FILES = 1000  # distinct ones; the others are hard links of them
NUM_IMAGES = 100_000 if SOAK else 3000
NUM_SCORED, NUM_SEEN, NUM_UNSEEN = 107_859 if SOAK else 1500, 925, 81
GROWTH = 32.0  # MiB that may come after the warm-up, the first fifth
KEPT, KEPT_BLOCKS = 1.0, 2500  # MiB, and Python's small blocks, that a third evaluation or a later one may add


_MALLINFO = ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")


class _Mallinfo(ctypes.Structure):
    """`struct mallinfo2` of glibc 2.33 and later: bytes, and counts."""

    _fields_ = tuple((name, ctypes.c_size_t) for name in _MALLINFO)


def in_use() -> tuple[float, int]:
    """What is allocated and not freed: MiB of large blocks, such as tensors, and the number of Python's small ones.

    What an allocator holds free, which comes and goes, is in neither.
    """
    measure = ctypes.CDLL(None).mallinfo2
    measure.restype = _Mallinfo
    found = measure()
    return float(found.uordblks + found.hblkhd) / 2**20, sys.getallocatedblocks()


def growth(samples: list[tuple[float, float, float]]) -> float:
    """How much more than at the end of the warm-up is held in the last tenth at the most, in MiB."""
    late = len(samples) // 10 or 1
    warm = [private for _, _, private in samples[len(samples) // 5 :][: 2 * late]]
    return max(private for _, _, private in samples[-late:]) - float(np.median(warm))


@pytest.fixture
def smallest_model(vectors_path: Path, tmp_path: Path) -> Path:
    encoder = ImageEncoder("timm:test_resnet", pretrained=False, image_size=32)
    model = create_model(encoder, f"vectors:{vectors_path}", decoder_dim=16, num_heads=2, feedforward_dim=16)
    vocabulary = Vocabulary(("dog", "cat", "red car", "beach", "boat", "tree"))
    model.remember_words(vocabulary, model.encode_words(vocabulary))
    model.eval().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("num_workers", ["0", "1"])
def test_a_large_folder(num_workers: str, smallest_model: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for number in range(NUM_IMAGES):
        path = tmp_path / "images" / f"{number // 1000:03d}" / f"{number % 1000:03d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        if number < NUM_FILES:
            Image.fromarray(rng.integers(0, 256, (40, 48, 3), dtype=np.uint8)).save(path)
        else:
            path.hardlink_to(tmp_path / "images" / "000" / path.name)
    options = ("--model", str(smallest_model), "--device", "cpu", "--batch-size", "64", "--num-workers", num_workers)
    work = command("predict", "images", *options, "--output", "tags.jsonl", "--scores-output", "scores.npy")
    child = Child(work, tmp_path)
    samples, status = watched(child, 0.5 if SOAK else 0.05)
    assert status == 0, child.said.read_text()
    scores = np.load(tmp_path / "scores.npy", mmap_mode="r")
    assert scores.shape == (NUM_IMAGES, 6)
    np.testing.assert_allclose(scores[-NUM_FILES:], scores[:NUM_FILES], atol=1e-5)  # the same files
    with (tmp_path / "tags.jsonl").open() as file:
        paths = [json.loads(line)["path"] for line in file]
    assert len(paths) == len(set(paths)) == NUM_IMAGES and paths == sorted(paths)
    figures = {
        "images": NUM_IMAGES,
        "seconds": round(child.seconds),
        "images a second": round(NUM_IMAGES / child.seconds),
        "MiB at most": round(max(rss for _, rss, _ in samples)),
        "MiB that came after the warm-up": round(growth(samples), 1),
        "of which may come": GROWTH,
    }
    keep(f"large folder, {num_workers} workers", figures, samples=samples)
    assert growth(samples) < GROWTH, figures


@pytest.fixture
def predictions(tmp_path: Path) -> Path:
    """Scores and targets of NUS-WIDE's size: as many images, words and labels an image."""
    rng, num_words = np.random.default_rng(0), NUM_SEEN + NUM_UNSEEN
    scores = np.lib.format.open_memmap(tmp_path / "scores.npy", "w+", np.float32, (NUM_SCORED, num_words))
    targets = np.lib.format.open_memmap(tmp_path / "targets.npy", "w+", np.int8, (NUM_SCORED, num_words))
    for start in range(0, NUM_SCORED, 4096):
        rows = slice(start, min(start + 4096, NUM_SCORED))
        targets[rows] = rng.random(targets[rows].shape, np.float32) < 0.01
        scores[rows] = 0.7 * rng.random(targets[rows].shape, np.float32) + 0.3 * targets[rows]
    words = [f"word {number}" for number in range(num_words)]
    (tmp_path / "words.txt").write_text("\n".join(words))
    (tmp_path / "partition.json").write_text(json.dumps({"seen": words[:NUM_SEEN], "unseen": words[NUM_SEEN:]}))
    return tmp_path


@pytest.mark.timeout(3600)
@pytest.mark.skipif(sys.platform != "linux", reason="the C library must count what is in use: glibc 2.33 and later")
def test_a_large_evaluation(predictions: Path) -> None:
    """Five times in one process, of which the first two warm up: the others keep nothing, by both allocators' count.

    What one takes at most is bound by a fifth more than the first took and 32 MiB: the allocator places the same
    matrices otherwise each time, and the peak comes and goes by some 50 MiB.
    """
    files = ("--scores", "scores.npy", "--targets", "targets.npy", "--words-file", "words.txt")
    arguments = ["evaluate", *files, "--partition", "partition.json", "--protocol", "nus_wide_gzsl"]
    num_times = 5

    def work() -> int:
        status = 0
        for number in range(num_times):
            status |= main([*arguments, "--output", f"report {number}"])
            gc.collect()
            with (predictions / "ends.txt").open("a") as file:
                print(time.monotonic(), *in_use(), file=file)
        return status

    child = Child(work, predictions)
    samples, status = watched(child, 0.2 if SOAK else 0.02)
    assert status == 0, child.said.read_text()
    reports = [json.loads((predictions / f"report {i}" / "report.json").read_text()) for i in range(num_times)]
    assert all(report["protocols"] == reports[0]["protocols"] for report in reports)
    assert reports[0]["protocols"]["gzsl"]["num_images"] == NUM_SCORED
    lines = [line.split() for line in (predictions / "ends.txt").read_text().splitlines()]
    ends = [0.0, *(float(end) - child.started for end, _, _ in lines)]
    kept = [round(float(held), 1) for _, held, _ in lines]
    blocks = [int(number) for _, _, number in lines]
    peaks = [
        max(private for seconds, _, private in samples if since <= seconds <= until) for since, until in pairwise(ends)
    ]
    matrix = NUM_SCORED * (NUM_SEEN + NUM_UNSEEN) * 4 / 2**20
    figures = {
        "images": NUM_SCORED,
        "words": NUM_SEEN + NUM_UNSEEN,
        "times": num_times,
        "seconds": round(child.seconds),
        "MiB of the scores": round(matrix),
        "MiB at most, with files": round(max(rss for _, rss, _ in samples)),
        "MiB at most in the first": round(peaks[0]),
        "in a later one": round(max(peaks[1:])),
        "MiB in use after the first": kept[0],
        "the second": kept[1],
        "the last": kept[-1],
        "of which may come after the second": KEPT,
        "Python's small blocks after the second": blocks[1],
        "after the last": blocks[-1],
        "of which may come": KEPT_BLOCKS,
    }
    keep("large evaluation", figures, samples=samples)
    assert max(kept[2:]) < kept[1] + KEPT, kept
    assert max(blocks[2:]) < blocks[1] + KEPT_BLOCKS, blocks
    assert max(peaks[1:]) < 1.2 * peaks[0] + GROWTH, peaks
