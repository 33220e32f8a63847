"""`zsmld predict` for collections: whatever ends a run, the same command goes on, and the files are those of one go."""

import csv
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from zsmld import Predictor, ZeroShotClassifier
from zsmld.cli import main
from zsmld.evaluator import read_matrix
from zsmld.predictor import collection, outputs
from zsmld.predictor.archives import list_collection
from zsmld.predictor.collection import Outputs, merge_parts, tag_collection
from zsmld.predictor.parts import Part, PartsFolder, in_chunks, missing

NAMES = ("tags.jsonl", "scores.npy", "scores.words.txt")
forks = pytest.mark.skipif(sys.platform != "linux", reason="forks this process, torch and all: on Linux alone")


@pytest.fixture
def place(photos: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with `images/` of 24 photos, one of them broken; each batch becomes a part."""
    monkeypatch.chdir(photos)
    (photos / "images" / "010.png").write_bytes(b"broken")
    monkeypatch.setattr(collection, "_SECONDS_A_PART", 0.0)
    return photos


@pytest.fixture
def predict(model_folder: Path) -> Callable[..., int]:
    """The command on the photos, in batches of four."""

    def run(*arguments: str, images: tuple[str, ...] = ("images",)) -> int:
        fixed = ["--model", str(model_folder), "--batch-size", "4", "--num-workers", "0", "--device", "cpu"]
        return main(["predict", *images, *fixed, *arguments])

    return run


@pytest.fixture
def one_go(place: Path, predict: Callable[..., int]) -> dict[str, bytes]:
    """The files of a run that nothing disturbs."""
    assert predict("--output", "whole/tags.jsonl", "--scores-output", "whole/scores.npy") == 1
    assert {path.name for path in Path("whole").iterdir()} == set(NAMES)  # and nothing else is left
    return {name: Path("whole", name).read_bytes() for name in NAMES}


def records(path: str | Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").split("\n")[:-1]]


def stop_after(monkeypatch: pytest.MonkeyPatch, num_images: int, error: BaseException) -> list[str | None]:
    """A run ends with this error once it has so many images; the paths that are predicted from now on."""
    given: list[str | None] = []
    whole = Predictor.predict

    def some(self: Predictor, images: Any, **options: Any) -> Any:
        for prediction in whole(self, images, **options):
            if len(given) == num_images:
                raise error
            given.append(prediction.path)
            yield prediction

    monkeypatch.setattr(Predictor, "predict", some)
    return given


# ---------------------------------------------------------------------------------------------- whatever ends a run


def in_a_child(work: Callable[[], object]) -> tuple[int, Callable[[], int]]:
    """Run something in a forked process; its id, and what waits for its end."""
    child = os.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        try:
            work()
        finally:
            os.kill(os.getpid(), signal.SIGTERM)  # without what pytest would do at an exit
    return child, lambda: os.WTERMSIG(os.waitpid(child, 0)[1])


@forks
def test_killed_at_every_step_of_writing(place: Path, model_folder: Path, one_go: dict[str, bytes]) -> None:
    """The k-th run dies at the k-th time that a file is put in its place or a folder taken away."""
    predictor = Predictor(ZeroShotClassifier.from_pretrained(model_folder), device="cpu", batch_size=4, num_workers=0)
    killed = 0
    while True:

        def dying(steps: int = killed) -> None:
            left = [steps]

            def guarded(do: Callable[..., Any]) -> Callable[..., Any]:
                def act(*given: Any, **options: Any) -> Any:
                    left[0] -= 1
                    if left[0] < 0:
                        os.kill(os.getpid(), signal.SIGKILL)
                    return do(*given, **options)

                return act

            for owner, name in ((Path, "replace"), (Path, "rename"), (shutil, "rmtree"), (os, "fsync")):
                setattr(owner, name, guarded(getattr(owner, name)))
            tag_collection(predictor, "images", Outputs("again/tags.jsonl", "again/scores.npy"), overwrite=True)

        _, wait = in_a_child(dying)
        if wait() != signal.SIGKILL:
            break
        killed += 1
        for name in NAMES:  # under its final name a file is whole, or not there
            path = Path("again", name)
            assert not path.exists() or path.read_bytes() == one_go[name]
        assert killed < 60
    assert killed > 8
    assert {path.name: path.read_bytes() for path in Path("again").iterdir()} == one_go


def test_an_output_is_of_its_run_until_the_next_one_takes_its_place(tmp_path: Path) -> None:
    """A run that is killed as it writes an output anew goes on as well: the one of before still stands there."""
    folder = PartsFolder.begin(tmp_path / "p.parts", {}, [])
    path, temporary = tmp_path / "scores.npy", tmp_path / ".scores.npy.partial"
    for content in ("first", "of the second try", "of the third try, longer"):
        temporary.write_text(content)
        folder.note_output(temporary, path)
        assert path.exists() == PartsFolder.wrote(folder.folder, path)
        temporary.replace(path)
        assert PartsFolder.wrote(folder.folder, path)
    path.write_text("the user's own")
    assert not PartsFolder.wrote(folder.folder, path)
    temporary.write_text("of the fourth try")
    folder.note_output(temporary, path)
    assert not PartsFolder.wrote(folder.folder, path)


def test_what_a_killed_removal_left_is_taken_away(tmp_path: Path) -> None:
    """Whatever was left of it: nothing but an empty folder, say."""
    folder = tmp_path / "p.parts"
    for number, kept in enumerate(([], ["run.lock"], ["manifest.json"], ["run.lock", "manifest.json"])):
        left = tmp_path / f".p.parts.{number:032x}.removed"
        left.mkdir()
        for name in kept:
            (left / name).touch()
    for name in (".p.parts.removed", f".p.parts.{0:032x}.mine", f".q.parts.{0:032x}.removed"):
        (tmp_path / name).mkdir()
    PartsFolder.remove_leftovers(folder)
    assert {path.name for path in tmp_path.iterdir()} == {
        *(".p.parts.removed", f".p.parts.{0:032x}.mine", f".q.parts.{0:032x}.removed")
    }


@pytest.mark.skipif(sys.platform == "win32", reason="no locks there")
def test_what_a_killed_beginning_left_is_taken_away(tmp_path: Path) -> None:
    new, old, unlocked, half = (tmp_path / f".p.parts.{number:032x}" for number in range(4))
    for path in (new, old, unlocked, half):
        path.mkdir()
    (unlocked / "run.lock").touch()
    (half / "images.arrow").touch()
    os.utime(old, (0, 0))
    PartsFolder.remove_leftovers(tmp_path / "p.parts")
    assert list(tmp_path.iterdir()) == [new]  # which may be about to get its lock


@forks
def test_killed_at_random_moments(place: Path, predict: Callable[..., int], one_go: dict[str, bytes]) -> None:
    def arguments(folder: str) -> tuple[str, ...]:
        return ("--output", f"{folder}/tags.jsonl", "--scores-output", f"{folder}/scores.npy", "--overwrite")

    since = time.monotonic()
    _, wait = in_a_child(lambda: predict(*arguments("timed")))
    wait()
    took = time.monotonic() - since
    rng = np.random.default_rng(0)
    killed = 0
    while killed < 5:
        child, wait = in_a_child(lambda: predict(*arguments("again")))
        time.sleep(float(rng.uniform(0.1, 0.9)) * took)
        os.kill(child, signal.SIGKILL)
        if wait() == signal.SIGKILL:
            killed += 1
        else:  # it was done before: the first run was slow
            took /= 2
        path = Path("again", "tags.jsonl")
        assert not path.exists() or path.read_bytes() == one_go["tags.jsonl"]
    assert predict(*arguments("again")) == 1
    assert {path.name: path.read_bytes() for path in Path("again").iterdir()} == one_go


@pytest.mark.parametrize("num_images", [0, 3, 4, 9, 23])
def test_no_image_twice_and_none_lost(
    num_images: int,
    place: Path,
    predict: Callable[..., int],
    one_go: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = ("--output", "tags.jsonl", "--scores-output", "scores.npy")
    with monkeypatch.context() as patch:
        stop_after(patch, num_images, KeyboardInterrupt())
        assert predict(*arguments) == 130
    err = capsys.readouterr().err
    assert "what is done is kept in tags.jsonl.parts; repeat the command to go on" in err and "Traceback" not in err
    assert not any(Path(name).exists() for name in NAMES)
    whole_batches = num_images // 4 * 4
    with monkeypatch.context() as patch:
        again = stop_after(patch, 99, KeyboardInterrupt())
        assert predict(*arguments) == 1
    assert again == [f"images/{row:03d}.png" for row in range(whole_batches, 24)]
    err = capsys.readouterr().err
    assert (f"interrupted run, {whole_batches} of 24 images were done" in err) == (whole_batches > 0)
    assert "1 of 24 images could not be read" in err
    assert {name: Path(name).read_bytes() for name in NAMES} == one_go and not Path("tags.jsonl.parts").exists()


def test_an_error_loses_nothing_that_is_finished(
    place: Path, predict: Callable[..., int], one_go: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    with monkeypatch.context() as patch:
        stop_after(patch, 9, OSError(28, "No space left on device"))
        assert predict("--output", "tags.jsonl") == 2
    assert "No space left on device" in capsys.readouterr().err
    assert missing(PartsFolder(Path("tags.jsonl.parts")).parts(), 24) == [(8, 24)]
    assert predict("--output", "tags.jsonl") == 1
    assert Path("tags.jsonl").read_bytes() == one_go["tags.jsonl"]


def interrupted(predict: Callable[..., int], monkeypatch: pytest.MonkeyPatch, *arguments: str) -> Path:
    with monkeypatch.context() as patch:
        stop_after(patch, 13, KeyboardInterrupt())
        assert predict("--output", "tags.jsonl", *arguments) == 130
    return Path("tags.jsonl.parts")


def test_a_part_that_the_disk_lost_is_done_again(
    place: Path, predict: Callable[..., int], one_go: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = interrupted(predict, monkeypatch)
    first, second, third = sorted(parts.glob("0*.arrow"))
    first.write_bytes(first.read_bytes()[:-10])
    second.write_bytes(b"")
    shutil.copy(third, parts / "0000000000-0000000099.arrow")  # says more than it has
    (parts / ".123.partial").write_bytes(b"half")
    assert predict("--output", "tags.jsonl") == 1
    assert Path("tags.jsonl").read_bytes() == one_go["tags.jsonl"]


@pytest.mark.parametrize(
    ("arguments", "images", "difference"),
    [
        (["--top-k", "3"], ["images"], "top_k (5 then, 3 now)"),
        (["--threshold", "0.5"], ["images"], "threshold (None then, 0.5 now)"),
        (["--words", "dog,zebra"], ["images"], "words (['dog', 'cat', "),
        (["--scores-output", "s.npy"], ["images"], "full_scores (False then, True now)"),
        (["--batch-size", "8"], ["images"], "batch size (4 then, 8 now)"),
        (["--templates", "a {}."], ["images"], "templates and descriptions"),
        ([], ["images", "images/000.png"], "images (['images'] then, ['images', 'images/000.png'] now)"),
        (["--model", "OTHER"], ["images"], "model ("),
    ],
)
def test_a_run_with_other_options_is_refused(
    arguments: list[str],
    images: list[str],
    difference: str,
    place: Path,
    predict: Callable[..., int],
    make_model: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    make_model(seed=1).save_pretrained("OTHER")
    before = sorted(interrupted(predict, monkeypatch).iterdir())
    capsys.readouterr()
    assert predict("--output", "tags.jsonl", *arguments, images=tuple(images)) == 2
    err = capsys.readouterr().err
    assert "options must be those of the interrupted run in tags.jsonl.parts, got another " in err
    assert difference in err and "--restart" in err and sorted(Path("tags.jsonl.parts").iterdir()) == before
    assert predict("--output", "tags.jsonl", *arguments, "--restart", images=tuple(images)) == 1
    assert Path("tags.jsonl").exists() and "went on" not in capsys.readouterr().err


def test_outputs_that_exist_are_kept(place: Path, predict: Callable[..., int], capsys: Any) -> None:
    Path("tags.jsonl").write_text("mine")
    assert predict("--output", "tags.jsonl") == 2
    assert "tags.jsonl must not exist yet, it does; replace it with overwrite=True (--overwrite)" in (
        capsys.readouterr().err
    )
    assert Path("tags.jsonl").read_text() == "mine" and not Path("tags.jsonl.parts").exists()
    Path("scores.npy").write_text("mine")
    assert predict("--output", "other.jsonl", "--scores-output", "scores.npy") == 2
    assert predict("--output", "tags.jsonl", "--overwrite") == 1
    assert len(records("tags.jsonl")) == 24


def test_images_that_come_and_go_are_told(
    place: Path, predict: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    interrupted(predict, monkeypatch)
    Path("images", "020.png").unlink()
    Image.new("RGB", (8, 8)).save("images/0000.png")
    capsys.readouterr()
    assert predict("--output", "tags.jsonl") == 1
    err = capsys.readouterr().err
    assert "1 images came after the run began and are not in the output, the first is images/0000.png" in err
    assert "1 images of the run are no longer there, the first is images/020.png" in err
    assert "2 of 24 images could not be read" in err
    found = records("tags.jsonl")
    assert [r["path"] for r in found] == [f"images/{row:03d}.png" for row in range(24)]
    assert "not found: images/020.png" in found[20]["error"]


# ---------------------------------------------------------------------------------------------- one run, one folder


def at_work(folder: str, shard: tuple[int, int] | None = None) -> Callable[[], None]:
    """Another process that holds a work folder; what ends it."""
    reader, writer = os.pipe()

    def hold() -> None:
        with PartsFolder(Path(folder)).at_work(shard):
            os.write(writer, b"x")
            time.sleep(100)

    child, wait = in_a_child(hold)
    assert os.read(reader, 1) == b"x"

    def end() -> None:
        os.kill(child, signal.SIGKILL)
        wait()
        os.close(reader)
        os.close(writer)

    return end


@forks
def test_a_second_run_is_refused_while_one_is_at_work(
    place: Path, predict: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(interrupted(predict, monkeypatch).iterdir())
    end = at_work("tags.jsonl.parts")
    for more in ([], ["--restart"], ["--shard", "1/2"], ["--restart", "--top-k", "2"]):
        assert predict("--output", "tags.jsonl", *more) == 2
        assert "another run is at work in tags.jsonl.parts; wait for it, or choose another --output" in (
            capsys.readouterr().err
        )
    assert sorted(path for path in Path("tags.jsonl.parts").iterdir() if not path.match("shard-*.lock")) == before
    end()
    end = at_work("tags.jsonl.parts", (1, 2))
    for more, status in ((["--shard", "1/2"], 2), ([], 2), (["--shard", "2/2"], 0)):
        assert predict("--output", "tags.jsonl", *more) == status
    end()
    assert predict("--output", "tags.jsonl") == 1


def test_a_folder_that_another_run_took_is_left_alone(tmp_path: Path) -> None:
    images = list(list_collection([f"{row}.jpg" for row in range(4)]))
    folder = PartsFolder.begin(tmp_path / "p.parts", {"a": 1}, images)
    assert PartsFolder.begin(tmp_path / "p.parts", {"a": 2}, images).run == folder.run  # who comes second takes it
    (tmp_path / f".p.parts.{'0' * 32}").mkdir()
    (tmp_path / f".p.parts.{'0' * 32}" / "run.lock").touch()  # of a process that died
    other = PartsFolder.begin(tmp_path / "p.parts", {"a": 1}, images, replace=True)
    with pytest.raises(ValueError, match="must belong to one run, another one has started it over"):
        folder.add(0, pa.table({"x": [1]}))
    assert other.run != folder.run and other.parts() == [] and list(tmp_path.iterdir()) == [other.folder]
    PartsFolder.remove(other.folder)
    with pytest.raises(FileNotFoundError, match="must stay while its run is at work, it is gone"):
        other.add(0, pa.table({"x": [1]}))
    assert list(tmp_path.iterdir()) == []


@forks
def test_many_that_begin_at_once_share_one_folder(tmp_path: Path) -> None:
    images = list(list_collection([f"{row}.jpg" for row in range(100)]))
    waits = []
    for number in range(6):

        def begin(number: int = number) -> None:
            folder = PartsFolder.begin(tmp_path / "p.parts", {}, images)
            folder.add(number, pa.table({"x": [folder.run]}))

        waits.append(in_a_child(begin)[1])
    assert [wait() for wait in waits] == [signal.SIGTERM] * 6
    parts = PartsFolder(tmp_path / "p.parts").parts()
    assert [part.start for part in parts] == list(range(6)) and list(tmp_path.iterdir()) == [tmp_path / "p.parts"]
    assert len({part.table()["x"][0].as_py() for part in parts}) == 1


def test_what_a_run_that_was_killed_at_its_end_left_goes(place: Path, predict: Callable[..., int]) -> None:
    """Its outputs are there, and the work folder was on its way out."""
    assert predict("--output", "tags.jsonl") == 1
    before = sorted(Path().iterdir())
    left = Path(f".tags.jsonl.parts.{'0' * 32}")
    left.mkdir()
    (left / "0000000000-0000000004.arrow").write_bytes(b"half")
    assert predict("--output", "tags.jsonl") == 2  # as there is nothing to do
    assert sorted(Path().iterdir()) == before


def test_what_is_not_of_a_run_stays(place: Path, predict: Callable[..., int], capsys: Any) -> None:
    Path("tags.jsonl.parts").mkdir()
    Path("tags.jsonl.parts", "mine.txt").write_text("mine")
    for more in ([], ["--restart"], ["--overwrite"]):
        assert predict("--output", "tags.jsonl", *more) == 2
        assert "tags.jsonl.parts must be free for the work of the run" in capsys.readouterr().err
    assert Path("tags.jsonl.parts", "mine.txt").read_text() == "mine"


def test_outputs_of_others_are_kept_at_every_start(
    place: Path, predict: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("--scores-output", "scores.npy", "--contact-sheet", "sheet.html", "--pictures", "pictures")
    Path("pictures").mkdir()
    for name in ("scores.words.txt", "sheet-2.html", "pictures/mine.jpg"):
        Path(name).write_text("mine")
        assert predict("--output", "tags.jsonl", *arguments) == 2
        assert Path(name).read_text() == "mine" and not Path("tags.jsonl.parts").exists()
        Path(name).unlink()
    interrupted(predict, monkeypatch, *arguments)
    assert any(Path("pictures").iterdir())
    capsys.readouterr()
    assert predict("--output", "tags.jsonl", *arguments[:-1], "others") == 2
    assert "pictures ('pictures' then, 'others' now)" in capsys.readouterr().err
    Path("scores.words.txt").write_text("mine")
    assert predict("--output", "tags.jsonl", *arguments) == 2
    assert "scores.words.txt must not exist yet" in capsys.readouterr().err
    Path("scores.words.txt").unlink()

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:  # when all but the records is written
        patch.setattr(outputs, "write_records", killed)
        assert predict("--output", "tags.jsonl", *arguments) == 130
    assert Path("scores.npy").exists() and Path("sheet.html").exists()
    assert predict("--output", "tags.jsonl", *arguments) == 1


def test_restart_removes_nothing_before_it_can_begin(
    place: Path, predict: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = sorted(interrupted(predict, monkeypatch).iterdir())
    assert predict("--output", "tags.jsonl", "--restart", images=("gone",)) == 2
    Path("tags.jsonl").write_text("mine")
    assert predict("--output", "tags.jsonl", "--restart") == 2
    assert sorted(Path("tags.jsonl.parts").iterdir()) == before and Path("tags.jsonl").read_text() == "mine"


def test_a_picture_that_cannot_be_written_is_not_lost(
    place: Path, predict: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    annotate, left = collection.annotate, [7]

    def full(*given: Any) -> Image.Image:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(28, "No space left on device")
        return annotate(*given)

    arguments = ("--output", "tags.jsonl", "--pictures", "pictures")
    with monkeypatch.context() as patch:
        patch.setattr(collection, "annotate", full)
        assert predict(*arguments, "--batch-size", "1") == 2
    assert missing(PartsFolder(Path("tags.jsonl.parts")).parts(), 24) == [(7, 24)]
    assert predict(*arguments, "--batch-size", "1") == 1
    assert len(list(Path("pictures").iterdir())) == 24


def test_a_disk_too_small_for_the_scores_is_an_error(
    place: Path, predict: Callable[..., int], one_go: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    resource = pytest.importorskip("resource", reason="Windows limits no file's size")
    write = outputs.write_scores

    def limited(*given: Any) -> None:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (300, before[1]))
        try:
            write(*given)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    with monkeypatch.context() as patch:
        patch.setattr(outputs, "write_scores", limited)
        assert predict("--output", "tags.jsonl", "--scores-output", "scores.npy") == 2
    assert "scores.npy must be written to the end, got File too large; make room" in capsys.readouterr().err
    assert not list(Path().glob("*scores.npy*"))
    assert predict("--output", "tags.jsonl", "--scores-output", "scores.npy") == 1
    assert {name: Path(name).read_bytes() for name in NAMES} == one_go


# ------------------------------------------------------------------------------------------------------- the files


def test_every_format_says_the_same(place: Path, predict: Callable[..., int]) -> None:
    odd = ['a,b "c".png', "line\nbreak.png", "Käse 写真.png", "semi;colon|pipe.png"]
    for name in odd:
        shutil.copy("images/000.png", f"images/{name}")
    with open(b"images/caf\xe9.png", "wb") as file:  # no UTF-8, as a disk may have it
        file.write(Path("images/000.png").read_bytes())
    with open(b"images/caf\xe8.png", "wb") as file:  # and it cannot be read
        file.write(b"broken")
    for suffix in ("jsonl", "csv", "parquet"):
        assert predict("--output", f"tags.{suffix}", "--threshold", "0.3") == 1
    expected = records("tags.jsonl")
    paths = {record["path"] for record in expected}
    assert len(expected) == 30 and {f"images/{name}" for name in odd} < paths and r"images/caf\xe9.png" in paths
    assert len({len(record["words"]) for record in expected}) > 1
    errors = {record["path"]: record["error"] for record in expected if record["error"]}
    assert errors.keys() == {"images/010.png", r"images/caf\xe8.png"}
    assert r"cannot decode images/caf\xe8.png: " in errors[r"images/caf\xe8.png"]
    table = pq.read_table("tags.parquet")
    assert table.column_names == ["path", "words", "scores", "labels", "error"]
    assert table.schema.field("scores").type == pa.list_(pa.float32()) and table.to_pylist() == expected
    with open("tags.csv", encoding="utf-8", newline="") as file:
        for row, record in zip(csv.DictReader(file), expected, strict=True):
            words, scores, labels = (
                row[name].split("|") if row[name] else [] for name in ("words", "scores", "labels")
            )
            assert (row["path"], row["error"] or None, words) == (record["path"], record["error"], record["words"])
            assert [np.float32(score) for score in scores] == [np.float32(score) for score in record["scores"]]
            assert [int(label) for label in labels] == record["labels"]


def test_csv_refuses_a_word_it_cannot_hold(
    place: Path, predict: Callable[..., int], make_vectors: Any, make_model: Any, capsys: Any
) -> None:
    make_vectors(Path("odd.npz"), ("a|b", "dog"))
    make_model(text_encoder="vectors:odd.npz", remember=False).save_pretrained("odd")
    assert predict("--output", "tags.csv", "--words", "dog,a|b", "--model", "odd") == 2
    assert "words must not hold '|' in .csv, which joins them by it, got ['a|b']; write .jsonl" in (
        capsys.readouterr().err
    )
    assert predict("--output", "tags.jsonl", "--words", "dog,a|b", "--model", "odd") == 1
    assert {word for record in records("tags.jsonl") for word in record["words"]} == {"dog", "a|b"}


def test_the_score_matrix_is_that_of_the_predictor(
    place: Path, predict: Callable[..., int], one_go: dict[str, bytes], model_folder: Path
) -> None:
    predictor = Predictor(ZeroShotClassifier.from_pretrained(model_folder), device="cpu", batch_size=4, num_workers=0)
    expected, failed = predictor.score("images")
    matrix = np.load(io.BytesIO(one_go["scores.npy"]))
    readable = [row for row in range(24) if row != 10]
    assert matrix.dtype == np.float32 and matrix.shape == (24, 6) and len(failed) == 1
    np.testing.assert_array_equal(matrix[readable], expected)
    assert np.isnan(matrix[10]).all()
    assert one_go["scores.words.txt"].decode().splitlines() == list(predictor.vocabulary.words)
    for record, row in zip(records("whole/tags.jsonl"), matrix, strict=True):
        assert record["scores"] == [float(row[label]) for label in record["labels"]]

    assert predict("--output", "tags.csv", "--scores-output", "scores.parquet") == 1
    found = read_matrix("scores.parquet")
    assert found.words == predictor.vocabulary.words and found.values.dtype == np.float32
    assert found.ids == tuple(f"images/{row:03d}.png" for row in range(24))
    np.testing.assert_array_equal(found.values, matrix)


def test_a_predicted_matrix_can_be_evaluated(place: Path, predict: Callable[..., int], capsys: Any) -> None:
    Path("images", "010.png").unlink()
    assert predict("--output", "tags.jsonl", "--scores-output", "scores.parquet") == 0
    rows = [line.split(",") for line in Path("photos.csv").read_text().splitlines()[1:]]
    words = read_matrix("scores.parquet").words
    with open("targets.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", *words])
        for name, labels in rows:
            if name != "010.png":
                writer.writerow([f"images/{name}", *(int(word in labels.split("|")) for word in words)])
    arguments = ["--scores", "scores.parquet", "--targets", "targets.csv", "--partition", "partition.json"]
    assert main(["evaluate", *arguments, "--protocol", "gzsl", "--output", "report"]) == 0
    report = json.loads(Path("report/report.json").read_text())
    assert report["protocols"]["gzsl"]["num_images"] == 23


def test_pictures_and_contact_sheet(place: Path, predict: Callable[..., int], monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ("--pictures", "pictures", "--contact-sheet", "sheet.html")
    interrupted(predict, monkeypatch, *arguments)
    assert not Path("sheet.html").exists()
    assert predict("--output", "tags.jsonl", *arguments) == 1
    pictures = sorted(Path("pictures").iterdir())
    assert [path.name for path in pictures] == [f"{row:07d}_{row:03d}.jpg" for row in range(24)]
    assert all(min(Image.open(path).size) > 40 for path in pictures)
    page = Path("sheet.html").read_text(encoding="utf-8")
    assert page.count("<figure") == 24 and page.count("data:image/jpeg") == 23 and "010.png" in page


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--output", "t.jsonl", "--pictures", "a"], "--pictures must be a folder, a is a file; choose another"),
        (["--output", "t.jsonl", "--pictures", "a/b"], "--pictures must lie in a folder, a is a file"),
        (["--output", "t.jsonl", "--contact-sheet", "a/s.html"], "--contact-sheet must lie in a folder, a is a file"),
        (["--output", "t.jsonl", "--scores-output", "a/s.npy"], "--scores-output must lie in a folder, a is a file"),
        (["--output", "a/t.jsonl"], "--output must lie in a folder, a is a file"),
    ],
)
def test_outputs_that_cannot_be_made_leave_no_work_folder(
    arguments: list[str], message: str, place: Path, predict: Callable[..., int], capsys: Any
) -> None:
    Path("a").write_text("mine")
    assert predict(*arguments) == 2
    assert message in capsys.readouterr().err
    assert sorted(path.name for path in place.iterdir() if path.name.startswith("t.")) == []
    assert Path("a").read_text() == "mine"


def test_files_of_words_that_are_not_there(place: Path, predict: Callable[..., int], capsys: Any) -> None:
    Path("latin.txt").write_bytes("caf\u00e9".encode("latin-1"))
    for option, given, message in (
        ("--words-file", "none.txt", "--words-file must be an existing text file, not found: none.txt"),
        ("--words-file", "images", "--words-file must be an existing text file, not found: images"),
        ("--words-file", "latin.txt", "--words-file must be a UTF-8 text file, latin.txt is not"),
        ("--synonyms", "none.json", "--synonyms must be an existing JSON file, not found: none.json"),
        ("--thresholds-file", "none.json", "--thresholds-file must be an existing JSON file, not found: none.json"),
    ):
        assert predict(option, given) == 2
        assert message in capsys.readouterr().err
    with pytest.raises(SystemExit):
        predict("--threshold", "calib")
    assert "must be a number, calibrated or stored, got 'calib'" in capsys.readouterr().err


def test_thresholds_and_synonyms_from_files(place: Path, predict: Callable[..., int], capsys: Any) -> None:
    Path("thresholds.json").write_text('{"dog": 0, "cat": 1}')
    Path("synonyms.json").write_text('{"cat": ["zebra", "lamp"]}')
    arguments = ("--words", "dog,cat,boat", "--synonyms", "synonyms.json")
    assert predict("--output", "t.jsonl", *arguments, "--thresholds-file", "thresholds.json", "--threshold", "1") == 1
    assert {tuple(r["words"]) for r in records("t.jsonl") if not r["error"]} == {("dog",)}
    assert predict("--output", "a.jsonl", *arguments) == 1
    assert predict("--output", "b.jsonl", "--words", "dog,cat,boat,zebra,lamp") == 1
    for a, b in zip(records("a.jsonl"), records("b.jsonl"), strict=True):
        together, apart = (dict(zip(r["words"], r["scores"], strict=True)) for r in (a, b))
        if together:
            best = max(apart[word] for word in ("cat", "zebra", "lamp"))
            assert together["cat"] == pytest.approx(best, abs=1e-5)
    for option, text, message in (
        ("--synonyms", "[1]", '--synonyms must be a JSON file such as {"sofa": ["couch", "settee"]}, got [1]'),
        ("--synonyms", "{", "bad.json is none: "),
        ("--thresholds-file", '{"dog": "high"}', '--thresholds-file must be a JSON file such as {"dog": 0.4}, got'),
    ):
        Path("bad.json").write_text(text)
        assert predict("--output", "c.jsonl", option, "bad.json") == 2
        assert message in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------------ shards, merge


def test_shards_merge_to_the_files_of_one_process(
    place: Path, predict: Callable[..., int], one_go: dict[str, bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    statuses = []
    for number in (1, 2, 3, 4):  # each machine has a disk of its own
        arguments = ("--output", f"machine{number}/tags.jsonl", "--scores-output", "s.npy", "--shard", f"{number}/4")
        statuses.append(predict(*arguments))
        assert f"shard {number} of 4 is done: " in capsys.readouterr().err
    assert sum(statuses) == 1  # one of them has the broken image
    folders = [f"machine{number}/tags.jsonl.parts" for number in (3, 1, 4, 2)]
    assert not Path("machine1/tags.jsonl").exists()
    merge = ["--merge", "--output", "all/tags.jsonl", "--scores-output", "all/scores.npy"]
    assert main(["predict", *folders[1:], *merge]) == 2
    assert "parts must be of all 24 images, 4 are missing, first image 16: images/016.png" in capsys.readouterr().err
    assert not Path("all", "tags.jsonl").exists()
    assert main(["predict", *folders, *merge]) == 1
    assert "1 of 24 images could not be read" in capsys.readouterr().err
    assert {name: Path("all", name).read_bytes() for name in NAMES} == one_go
    assert main(["predict", *folders, *merge]) == 2 and "must not exist yet" in capsys.readouterr().err
    assert main(["predict", *folders, *merge, "--overwrite"]) == 1


def test_shards_of_other_options_are_not_merged(place: Path, predict: Callable[..., int], capsys: Any) -> None:
    assert predict("--output", "a/t.jsonl", "--shard", "1/2") in (0, 1)
    assert predict("--output", "b/t.jsonl", "--shard", "2/2", "--top-k", "2") in (0, 1)
    merge = ["predict", "a/t.jsonl.parts", "b/t.jsonl.parts", "--merge", "--output", "t.jsonl"]
    assert main(merge) == 2
    assert "b/t.jsonl.parts and a/t.jsonl.parts differ in top_k (5 then, 2 now)" in capsys.readouterr().err
    assert main(["predict", "a/t.jsonl.parts", "--merge", "--output", "t.jsonl", "--scores-output", "s.npy"]) == 2
    assert "have no full scores" in capsys.readouterr().err
    assert main(["predict", "images", "--merge", "--output", "t.jsonl"]) == 2
    assert "images must be the work folder of a run" in capsys.readouterr().err
    assert main([*merge, "--model", "m"]) == 2 and "--model must be left out beside --merge" in capsys.readouterr().err


def test_more_shards_than_batches(place: Path, predict: Callable[..., int], one_go: dict[str, bytes]) -> None:
    """On a disk in common the shards share a work folder, and the command without --shard writes the outputs."""
    for number in range(1, 9):
        arguments = ("--output", "tags.jsonl", "--scores-output", "scores.npy", "--shard", f"{number}/8")
        assert predict(*arguments) in (0, 1)
    assert predict("--output", "tags.jsonl", "--scores-output", "scores.npy") == 1
    assert {name: Path(name).read_bytes() for name in NAMES} == one_go


@pytest.mark.parametrize("shard", ["0/4", "5/4", "1/0"])
def test_a_shard_that_is_none_is_refused(shard: str, place: Path, predict: Callable[..., int], capsys: Any) -> None:
    assert predict("--output", "tags.jsonl", "--shard", shard) == 2
    assert f"shard must be K/N with 1 ≤ K ≤ N, got {shard}" in capsys.readouterr().err


def test_what_needs_an_output_says_so(place: Path, predict: Callable[..., int], capsys: Any) -> None:
    for arguments in (["--shard", "1/2"], ["--scores-output", "s.npy"], ["--pictures", "p"], ["--overwrite"]):
        assert predict(*arguments) == 2
        assert f"{arguments[0]} must come with --output, got none" in capsys.readouterr().err
    for arguments, message in (
        (["--scores-output", "s.csv"], "--scores-output must end in .npy or .parquet, got s.csv"),
        (["--contact-sheet", "s.pdf"], "--contact-sheet must end in .html, got s.pdf"),
    ):
        assert predict("--output", "t.jsonl", *arguments) == 2
        assert message in capsys.readouterr().err


# --------------------------------------------------------------------------------------------------------- tar shards


@pytest.fixture
def archives(place: Path) -> Path:
    """The photos in two tar shards, as WebDataset has them: with texts between, and a broken image."""
    folder = place / "shards"
    folder.mkdir()
    for number, rows in enumerate((range(10), range(10, 24))):
        with tarfile.open(folder / f"{number:03d}.tar", "w") as archive:
            for row in rows:
                archive.add(f"images/{row:03d}.png", f"./{row:03d}.png" if row % 2 else f"{row:03d}.png")
                content = b'{"caption": "a photo'
                for name in (f"{row:03d}.json", f"{row:03d}.txt"):
                    member = tarfile.TarInfo(name)
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
    return folder


def test_tar_shards_give_the_records_of_loose_files(
    archives: Path, predict: Callable[..., int], one_go: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    with monkeypatch.context() as patch:
        stop_after(patch, 13, KeyboardInterrupt())
        assert predict("--output", "tags.jsonl", "--scores-output", "scores.npy", images=("shards/*.tar",)) == 130
    assert predict("--output", "tags.jsonl", "--scores-output", "scores.npy", images=("shards/*.tar",)) == 1
    assert Path("scores.npy").read_bytes() == one_go["scores.npy"]
    expected = records("whole/tags.jsonl")
    for row, (record, loose) in enumerate(zip(records("tags.jsonl"), expected, strict=True)):
        assert record.pop("path") == f"shards/{row // 10 and 1:03d}.tar/{row:03d}.png" and loose.pop("path")
        errors = record.pop("error"), loose.pop("error")
        assert record == loose and (errors[0] is None) == (errors[1] is None)
        assert row != 10 or "cannot decode shards/001.tar/010.png: " in errors[0]
    for images in (("shards",), ("shards/000.tar", "shards/001.tar")):
        assert predict("--output", "more.jsonl", "--overwrite", images=images) == 1
        assert Path("more.jsonl").read_bytes() == Path("tags.jsonl").read_bytes()
    capsys.readouterr()
    assert predict("--top-k", "1", images=("shards/000.tar",)) == 0
    assert capsys.readouterr().out.startswith("shards/000.tar/000.png  ")


def test_pictures_of_tar_shards(archives: Path, predict: Callable[..., int]) -> None:
    arguments = ("--output", "t.jsonl", "--pictures", "pictures", "--contact-sheet", "sheet.html")
    assert predict(*arguments, images=("shards/000.tar",)) == 0
    assert len(list(Path("pictures").iterdir())) == 10
    assert Path("sheet.html").read_text(encoding="utf-8").count("data:image/jpeg") == 10


@pytest.mark.parametrize("damage", ["cut in an image", "cut at a header", "rubbish", "no tar"])
def test_a_damaged_shard_is_one_error_beside_what_it_holds(
    damage: str, archives: Path, predict: Callable[..., int]
) -> None:
    shard = archives / "000.tar"
    place = list(list_collection(shard))[4]
    content = shard.read_bytes()
    kept = {
        "cut in an image": content[: place.offset + 40],
        "cut at a header": content[: place.offset - 512],
        "rubbish": content[: place.offset - 512] + b"rubbish" * 500,
        "no tar": b"rubbish" * 500,
    }[damage]
    shard.write_bytes(kept)
    assert predict("--output", "t.jsonl", images=("shards/*.tar",)) == 1
    found = records("t.jsonl")[:-14]
    assert found[-1]["path"] == "shards/000.tar" and "cannot decode shards/000.tar" in found[-1]["error"]
    whole = [record["path"] for record in found if record["error"] is None]
    assert whole == ([] if damage == "no tar" else [f"shards/000.tar/{row:03d}.png" for row in range(4)])


@pytest.mark.skipif(sys.platform != "linux", reason="needs the options of GNU tar")
def test_links_and_sparse_members(place: Path, predict: Callable[..., int]) -> None:
    content = Path("images/000.png").read_bytes()
    Path("images/sparse.png").write_bytes(content)
    os.truncate("images/sparse.png", 2**20)  # zeros behind the image do not matter
    os.link("images/000.png", "images/hard.png")
    os.symlink("000.png", "images/soft.png")
    names = ["000.png", "hard.png", "soft.png", "sparse.png"]
    for form in ("gnu", "posix"):
        command = ["tar", "-S", f"--format={form}", "-C", "images", "-cf", f"{form}.tar", *names]
        subprocess.run(command, check=True, timeout=60)
        assert os.path.getsize(f"{form}.tar") < 2**19
        assert predict("--output", f"{form}.jsonl", images=(f"{form}.tar",)) == 1
        found = {Path(record["path"]).name: record for record in records(f"{form}.jsonl")}
        assert list(found) == names
        assert "it is a link to 000.png" in found["soft.png"]["error"]
        for name in ("hard.png", "sparse.png"):
            assert found[name] | {"path": ""} == found["000.png"] | {"path": ""} and found[name]["words"]


def test_a_shard_that_was_written_anew_is_refused(
    archives: Path, predict: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    with monkeypatch.context() as patch:
        stop_after(patch, 13, KeyboardInterrupt())
        assert predict("--output", "tags.jsonl", images=("shards",)) == 130
    shard = archives / "001.tar"
    os.utime(shard, ns=(shard.stat().st_atime_ns, shard.stat().st_mtime_ns + 1000))
    assert predict("--output", "tags.jsonl", images=("shards",)) == 2
    assert "shards/001.tar was written anew since; start over with restart=True (--restart)" in capsys.readouterr().err
    assert predict("--output", "tags.jsonl", "--restart", images=("shards",)) == 1


def test_a_compressed_shard_is_refused(archives: Path, predict: Callable[..., int], capsys: Any) -> None:
    with tarfile.open("a.tar.gz", "w:gz") as archive:
        archive.add("images/000.png")
    assert predict("--output", "t.jsonl", images=("a.tar.gz",)) == 2
    assert "a tar shard must be uncompressed" in capsys.readouterr().err and not Path("t.jsonl.parts").exists()
    shutil.copy("images/000.png", "backup.tar.png")
    assert predict("--output", "t.jsonl", images=("backup.tar.png",)) == 0


# ------------------------------------------------------------------------------------------------------------- Python


def test_from_python(place: Path, model_folder: Path, one_go: dict[str, bytes]) -> None:
    predictor = Predictor(ZeroShotClassifier.from_pretrained(model_folder), device="cpu", batch_size=4)
    paths = sorted(Path("images").iterdir())
    tagged = tag_collection(predictor, paths, Outputs("tags.jsonl"))
    assert (tagged.num_images, tagged.num_unreadable, tagged.num_resumed, tagged.is_written) == (24, 1, 0, True)
    assert Path("tags.jsonl").read_bytes() == one_go["tags.jsonl"]
    lazily = Path("images").glob("00*.png")
    numbers = {"top_k": np.int64(2), "threshold": {"dog": np.float32(0.25)}, "default_threshold": np.float64(0.5)}
    assert tag_collection(predictor, lazily, Outputs("some.jsonl"), **numbers).num_images == 10  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"shortlist \(--shortlist\) must be learnt from two readable images or more"):
        tag_collection(predictor, paths[:1], Outputs("more.jsonl"), shortlist=3)
    shutil.rmtree("more.jsonl.parts")
    with pytest.raises(TypeError, match="images must be paths, folders, globs or tar shards"):
        tag_collection(predictor, [np.zeros((4, 4, 3), np.uint8)], Outputs("more.jsonl"))  # type: ignore[list-item]
    with pytest.raises(ValueError, match="top_k must be at least 1"):
        tag_collection(predictor, paths, Outputs("more.jsonl"), top_k=0)
    with pytest.raises(FileNotFoundError, match="found none at none"):
        tag_collection(predictor, "none/*.jpg", Outputs("more.jsonl"))
    assert not Path("more.jsonl.parts").exists()
    with pytest.raises(ValueError, match="--scores-output must be another file than --output"):
        Outputs("a.parquet", "a.parquet")
    with pytest.raises(FileNotFoundError, match="must be the work folder of a run"):
        merge_parts(["nowhere"], Outputs("a.jsonl"))


def test_parts_of_any_cut_are_the_same_chunks(tmp_path: Path) -> None:
    whole = pa.table({"x": list(range(20))})
    folder = PartsFolder.begin(tmp_path / "p.parts", {}, list_collection([f"{row}.jpg" for row in range(20)]))
    for start, stop in ((0, 7), (4, 9), (5, 6), (9, 20)):  # two processes may have done the same
        folder.add(start, whole.slice(start, stop - start))
    parts = folder.parts()
    assert missing(parts, 20) == [] and missing(parts[:-1], 20) == [(9, 20)]
    for size in (1, 3, 8, 20, 50):
        chunks = list(in_chunks(parts, size))
        assert [len(chunk) for chunk in chunks[:-1]] == [size] * (len(chunks) - 1)
        assert pa.concat_tables(chunks).equals(whole)
    assert missing([], 3) == [(0, 3)] and missing([Part(0, 3, tmp_path)], 3) == []
