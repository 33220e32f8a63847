"""Scores in batches: any order, any number of processes, duplicates and padding, one matrix."""

import subprocess
import sys
import textwrap
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from zsmld import Evaluator, build_dataset
from zsmld.evaluator import ScoreMatrix
from zsmld.scoring import score_dataset


@st.composite
def shuffled_batches(draw):
    """Rows of 11 images in any order, some of them twice, cut into batches that may hold padding."""
    rows = draw(st.permutations(list(range(11)) + draw(st.lists(st.integers(0, 10), max_size=5))))
    cuts = sorted(draw(st.lists(st.integers(0, len(rows)), max_size=4)))
    batches = [list(part) for part in np.split(np.array(rows), cuts)]
    return [batch + [-1] * draw(st.integers(0, 2)) for batch in batches]


@given(batches=shuffled_batches())
def test_any_order_gives_the_same_matrix(batches):
    scores = np.random.default_rng(0).standard_normal((11, 3)).astype(np.float32)
    matrix = ScoreMatrix(11, 3)
    for batch in batches:
        rows = np.array(batch, np.int64)
        matrix.add(rows, np.where(rows[:, None] < 0, 99, scores[rows]))
    values, rows = matrix.compact()
    assert values.tobytes() == scores.tobytes() and rows.tolist() == list(range(11))


@given(came=st.sets(st.integers(0, 8), max_size=9))
def test_rows_that_never_came_are_left_out(came):
    matrix = ScoreMatrix(9, 2)
    for row in came:
        matrix.add(np.array([row]), np.array([[row, -row]], np.float32))
    values, rows = matrix.compact()
    assert rows.tolist() == sorted(came) == values[:, 0].tolist() and values.shape == (len(came), 2)


def test_the_first_of_two_equal_rows_counts():
    matrix = ScoreMatrix(2, 1)
    matrix.add(torch.tensor([1, 1]), torch.tensor([[1.0], [2.0]]))
    matrix.add(np.array([1, 0]), np.array([[3.0], [4.0]]))
    assert matrix.values.tolist() == [[4.0], [1.0]]


def test_memory_is_one_matrix_and_one_batch():
    tracemalloc.start()
    matrix = ScoreMatrix(20_000, 100)
    for start in range(0, 20_000, 50):
        matrix.add(np.arange(start, start + 50)[::-1], np.ones((50, 100), np.float32))
    matrix.filled[::3] = False
    matrix.compact()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.1 * matrix.values.nbytes


@pytest.mark.parametrize(
    "rows, scores, message",
    [
        ([0, 1], np.zeros((2, 3)), r"scores must be \(B, 2\), one row for each of 2 rows, got \(2, 3\)"),
        ([0], np.zeros((2, 2)), r"one row for each of 1 rows, got \(2, 2\)"),
        ([0, 5], np.zeros((2, 2)), r"rows must be positions among 5 images, or -1, got 0 to 5; count them from 0"),
        ([-2, 0], np.zeros((2, 2)), r"got -2 to 0"),
        ([3, 4], np.array([[0, 0], [0, np.nan]]), r"scores must be numbers, got NaN first in row 4"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_is_stored(rows, scores, message):
    matrix = ScoreMatrix(5, 2)
    with pytest.raises(ValueError, match=message):
        matrix.add(np.array(rows), scores)
    assert not matrix.filled.any() and not matrix.values.any()


# ------------------------------------------------------------------------------------------------ many processes

_WORKER = """
import sys
import numpy as np, torch, torch.distributed as dist
from zsmld import Evaluator, ZeroShotClassifier, build_dataset
from zsmld.scoring import score_dataset

model, table, output = sys.argv[1:4]
torch.set_num_threads(1)
dist.init_process_group("gloo")
dataset = build_dataset("table", path=table, partition=table.replace("photos.csv", "partition.json"))
report = Evaluator("gzsl", device="cpu", batch_size=5).evaluate(ZeroShotClassifier.from_pretrained(model), dataset)
np.savez(f"{output}.{dist.get_rank()}.npz", scores=report.scores, ids=np.array(report.ids))
if dist.get_rank() == 0:
    report.save(output, scores=False)
dist.destroy_process_group()
"""


@pytest.mark.skipif(
    sys.platform == "win32", reason="torchrun needs libuv, which torch on Windows lacks (pytorch PR 175316)"
)
@pytest.mark.parametrize("num_processes", [2, 3])
def test_processes_share_the_images_and_get_the_same_bits(photos, make_model, tmp_path, num_processes):
    """24 images, one unreadable, in batches of 5: shares and last batches are uneven."""
    (photos / "images" / "007.png").write_bytes(b"no picture")
    model = make_model()
    model.save_pretrained(tmp_path / "model")
    script = tmp_path / "worker.py"
    script.write_text(textwrap.dedent(_WORKER), encoding="utf-8")
    output = tmp_path / "report"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={num_processes}"]
    done = subprocess.run(
        [*command, str(script), str(tmp_path / "model"), str(photos / "photos.csv"), str(output)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    dataset = build_dataset("table", path=photos / "photos.csv", partition=photos / "partition.json")
    alone = Evaluator("gzsl", device="cpu", batch_size=5).evaluate(model, dataset)
    assert len(alone.ids) == 23
    for rank in range(num_processes):
        with np.load(f"{output}.{rank}.npz") as found:
            assert found["scores"].tobytes() == alone.scores.tobytes()
            assert found["ids"].tolist() == alone.ids
    import json

    written = json.loads((output / "report.json").read_text(encoding="utf-8"))
    assert written["protocols"] == json.loads(json.dumps(alone.protocols))
    assert [entry["id"] for entry in written["dataset"]["unreadable"]] == ["007.png"]


def test_batches_do_not_change_which_image_has_which_score(photos, make_model):
    model = make_model()
    dataset = build_dataset("table", path=photos / "photos.csv", partition=photos / "partition.json")
    words = model.encode_words(dataset.vocabulary)
    scored = [score_dataset(model, dataset, words, torch.device("cpu"), batch_size=size) for size in (1, 5, 24)]
    assert all(s.ids == [str(i) for i in dataset.ids] and s.rows.tolist() == list(range(24)) for s in scored)
    assert np.abs(scored[0].logits - scored[2].logits).max() < 1e-5
    assert np.abs(scored[1].logits - scored[2].logits).max() < 1e-5
    assert Path(dataset.root).name == "images"
