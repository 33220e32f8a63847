"""`zsmld predict` in several processes: the files of one process, to the byte."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import zsmld
from zsmld import Predictor, ZeroShotClassifier
from zsmld.predictor import collection
from zsmld.predictor.collection import Outputs, tag_collection
from zsmld.predictor.parts import PartsFolder, missing

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch knows no processes")


def launched(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The command in two processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command += ["-m", "zsmld", "predict", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)


@pytest.mark.skipif(
    sys.platform == "win32", reason="torchrun needs libuv, which torch on Windows lacks (pytorch PR 175316)"
)
def test_two_processes_finish_what_one_began(
    photos: Path, make_model: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(photos)
    make_model().save_pretrained("model")
    Path("images", "010.png").write_bytes(b"broken")
    monkeypatch.setattr(collection, "_SECONDS_A_PART", 0.0)
    predictor = Predictor(ZeroShotClassifier.from_pretrained("model"), device="cpu", batch_size=4, num_workers=0)
    tag_collection(predictor, "images", Outputs("one/tags.csv", "one/scores.npy"))

    predict, given = Predictor.predict, []

    def stopped(self: Predictor, images: Any, **options: Any) -> Any:
        for prediction in predict(self, images, **options):
            if len(given) == 9:
                raise KeyboardInterrupt
            given.append(prediction.path)
            yield prediction

    with monkeypatch.context() as patch:
        patch.setattr(Predictor, "predict", stopped)
        with pytest.raises(KeyboardInterrupt):
            tag_collection(predictor, "images", Outputs("two/tags.csv", "two/scores.npy"))
    assert missing(PartsFolder(Path("two/tags.csv.parts")).parts(), 24) == [(8, 24)]

    arguments = ["images", "--model", "model", "--device", "cpu", "--batch-size", "4", "--num-workers", "0"]
    done = launched(*arguments, "--output", "two/tags.csv", "--scores-output", "two/scores.npy")
    # The launcher's own status is 1 for any status of a process that is not 0.
    assert done.returncode == 1 and f'File "{Path(zsmld.__file__).parent}' not in done.stderr  # no traceback of ours
    assert done.stderr.count("went on with an interrupted run, 8 of 24 images were done") == 1
    assert done.stderr.count("1 of 24 images could not be read") == 1
    assert sorted(path.name for path in Path("two").iterdir()) == ["scores.npy", "scores.words.txt", "tags.csv"]
    for name in ("tags.csv", "scores.npy"):
        assert Path("two", name).read_bytes() == Path("one", name).read_bytes()


def in_two_processes(*arguments: str, of_second: tuple[str, ...] = ()) -> list[int]:
    """Two processes, as a launcher starts them; what they say is in stderr0 and stderr1."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    shared = os.environ | {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    command = [sys.executable, "-m", "zsmld", "predict", "images", "--device", "cpu", *arguments]
    started = []
    for rank in range(2):
        environment = shared | {"RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"}
        with open(f"stderr{rank}", "w") as said:
            own = [*command, *(of_second if rank else ())]
            started.append(subprocess.Popen(own, env=environment, stdout=subprocess.DEVNULL, stderr=said))
    try:
        return [process.wait(timeout=200) for process in started]
    finally:
        for process in started:
            process.kill()


def test_a_refusal_is_said_once(photos: Path, make_model: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(photos)
    make_model().save_pretrained("model")
    Path("tags.csv").write_text("mine")
    statuses = in_two_processes("--model", "model", "--output", "tags.csv")
    assert statuses == [2, 2], Path("stderr0").read_text() + Path("stderr1").read_text()
    assert Path("stderr0").read_text().count("tags.csv must not exist yet, it does") == 1
    assert "zsmld predict" not in Path("stderr1").read_text()
    assert Path("tags.csv").read_text() == "mine" and not Path("tags.csv.parts").exists()


def test_a_process_says_why_it_alone_fails(
    photos: Path, make_model: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(photos)
    make_model().save_pretrained("model")
    statuses = in_two_processes("--model", "model", "--output", "tags.csv", of_second=("--words-file", "gone.txt"))
    assert statuses[1] == 2 and statuses[0] != 0  # the main one misses it
    said = Path("stderr1").read_text()
    assert said.count("zsmld predict: process 1: ") == 1 and "gone.txt" in said
