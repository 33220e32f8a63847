"""A disk that is full: one sentence that names the file, nothing half there, nothing lost, and on it goes with room."""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from faults import PAGE, SOAK, Child, Work, command, files_of, keep, may_mount, run, small_disk

from zsmld import ImageEncoder, Predictor, ZeroShotClassifier
from zsmld.datasets import Index, build_dataset
from zsmld.export import load_exported
from zsmld.features import FeatureCache
from zsmld.predictor import collection
from zsmld.report import read_scores
from zsmld.trainer.checkpoint import load_state

SHARES = [i / 10 + 0.02 for i in range(10)] if SOAK else [0.05, 0.6]
FULL = "(No space left on device|File too large)"  # a disk, and the limit that stands in for one


def fill_and_go_on(
    piece: str,
    work: Work,
    disk: Path,
    check_full: Callable[[str], None],
    check_done: Callable[[], None],
    older: Work | None = None,
    mounts: bool | None = None,
) -> None:
    """The work on disks that have room for a share of what it writes, and again once there is more.

    Args:
        piece: name of what is measured.
        work: it must fail, with status 2, and come to its end when it is repeated.
        disk: a folder in whose place there are disks, which is the working folder.
        check_full: of what the work said on a full disk.
        check_done: of the disk, at last.
        older: makes, before, what the work replaces: that must stay when the work fails.
        mounts: as for `small_disk`; default where it may.
    """
    mounts = may_mount() if mounts is None else mounts
    roomy = disk.with_name("roomy")
    for each in (older, work):
        if each is not None:
            run(each, roomy)
    sizes = [len(content) for content in files_of(roomy).values()]
    num_refused = 0
    for share in SHARES:
        with small_disk(disk, mounts) as run_when_full:
            if older is not None:
                run(older, disk)
            before = files_of(disk)
            child = run_when_full(work, share, sizes)
            if child.status == 2:
                num_refused += 1
                check_full(child.said.read_text())
                assert older is None or files_of(disk) == before
                child = Child(work, disk)
                child.wait()
            assert child.status in (0, 1), child.said.read_text()  # at once, where enough was given free meanwhile
            check_done()
    assert num_refused >= len(SHARES) / 2
    keep(
        f"full disk, {piece}",
        {
            "disks": len(SHARES),
            "of these mounted": len(SHARES) * mounts,
            "that were too small": num_refused,
            "KiB that are written": sum(-(-size // PAGE) for size in sizes) * PAGE // 1024,
        },
    )


def one_sentence(verb: str, said: str, *parts: str) -> None:
    """Of the command, about the disk, without code."""
    assert "Traceback" not in said, said
    last = said.strip().split("\n")[-1]
    assert last.startswith(f"zsmld {verb}: ") and re.search(FULL, last), said
    for part in parts:
        assert part in last, last


def test_predict(photos: Path, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collection, "_SECONDS_A_PART", 0.0)  # each batch is a part
    outputs = ("--output", "tags.jsonl", "--scores-output", "scores.npy", "--contact-sheet", "sheet.html")
    options = ("--model", str(model_folder), "--device", "cpu", "--batch-size", "4", "--num-workers", "0")
    work = command("predict", str(photos / "images"), *options, *outputs, "--pictures", "pictures")

    def check_done() -> None:
        assert files_of(tmp_path / "disk") == files_of(tmp_path / "roomy")

    fill_and_go_on("predict", work, tmp_path / "disk", lambda said: one_sentence("predict", said), check_done)


def test_prepare(photos: Path, tmp_path: Path) -> None:
    rows = "".join(f"{number:03d}.png,dog|{'x' * 5000}{number}\n" for number in range(24))
    (photos / "new.csv").write_text(f"image,labels\n{rows}")
    older = command("prepare", "table", "--root", str(photos / "photos.csv"), "--output", "index")
    work = command("prepare", "table", "--root", str(photos / "new.csv"), "--output", "index")

    def check_done() -> None:
        assert files_of(tmp_path / "disk") == files_of(tmp_path / "roomy")
        assert len(Index.open(tmp_path / "disk" / "index").words) == 25

    def check_full(said: str) -> None:
        one_sentence("prepare", said, "index must be written to the end", "make room and repeat the command")

    fill_and_go_on("prepare", work, tmp_path / "disk", check_full, check_done, older)


def test_feature_caching(photos: Path, tmp_path: Path) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = ImageEncoder("timm:test_resnet", pretrained=False, image_size=64)
    dataset = build_dataset("table", path=str(photos / "photos.csv"))
    expected = FeatureCache().extract(encoder, dataset, "cpu")

    def work() -> int:
        try:
            FeatureCache("cache", batch_size=4, shard_mebibytes=0.004).extract(encoder, dataset, "cpu")
        except OSError as error:
            sys.stdout.write(str(error))
            return 2
        return 0

    def check_full(said: str) -> None:
        assert re.search(rf"cache must have room for [\d,]+ more bytes \(\d+ images\), .*: {FULL}", said)

    def check_done() -> None:
        found = FeatureCache(tmp_path / "disk" / "cache", batch_size=4).extract(encoder, dataset, "cpu")
        embeddings = torch.stack([found[row]["spatial_embeddings"] for row in range(24)])
        assert torch.equal(embeddings, torch.stack([expected[row]["spatial_embeddings"] for row in range(24)]))
        assert not list((tmp_path / "disk").rglob("*.tmp"))

    fill_and_go_on("feature caching", work, tmp_path / "disk", check_full, check_done)


def test_training(photos: Path, vectors_path: Path, tmp_path: Path) -> None:
    recipe = {
        "dataset": {"name": "table", "path": str(photos / "photos.csv"), "test_fraction": 0, "val_fraction": 0.2},
        "image_encoder": {"spec": "timm:test_resnet", "pretrained": False, "image_size": 64},
        "text_encoder": f"vectors:{vectors_path}",
        "decoder": {"decoder_dim": 32, "num_heads": 4, "feedforward_dim": 64},
        "trainer": {"epochs": 2, "steps_per_epoch": 2, "batch_size": 4, "device": "cpu", "checkpoint_every": 1},
    }
    (photos / "tiny.json").write_text(json.dumps(recipe))  # which is YAML
    work = command("train", str(photos / "tiny.json"), "--output", "run", "--resume")
    disk, roomy = (tmp_path / name / "run" for name in ("disk", "roomy"))

    def check_full(said: str) -> None:
        one_sentence("train", said)
        if disk.exists() and (disk / "checkpoint.pt").exists():
            load_state(disk / "checkpoint.pt")
            assert "Last good state: " in said and "checkpoint.pt; free some space and go on with --resume" in said

    def check_done() -> None:
        assert files_of(disk).keys() == files_of(roomy).keys()
        for name in ("model/model.safetensors", "model/config.json"):
            assert (disk / name).read_bytes() == (roomy / name).read_bytes()

    fill_and_go_on("training", work, tmp_path / "disk", check_full, check_done)


@pytest.fixture
def predictions(tmp_path: Path) -> Path:
    """Scores and targets of two sizes of a test set."""
    rng = np.random.default_rng(0)
    for name, num_images in (("old", 50), ("new", 4000)):
        np.save(tmp_path / f"{name}_scores.npy", rng.random((num_images, 30), np.float32))
        np.save(tmp_path / f"{name}_targets.npy", (rng.random((num_images, 30)) < 0.2).astype(np.int8))
    (tmp_path / "words.txt").write_text("".join(f"word {number}\n" for number in range(30)))
    return tmp_path


def evaluation(predictions: Path, name: str) -> Work:
    files = ("--scores", str(predictions / f"{name}_scores.npy"), "--targets", str(predictions / f"{name}_targets.npy"))
    return command(
        "evaluate", *files, "--words-file", str(predictions / "words.txt"), "--protocol", "supervised", "--output", "."
    )


@pytest.fixture
def new_report(predictions: Path, tmp_path: Path) -> tuple[Work, Path, Callable[[str], None], Callable[[], None], Work]:
    """Over an earlier one, as `fill_and_go_on` takes it."""

    def check_full(said: str) -> None:
        one_sentence("evaluate", said, "must be written to the end", "make room and repeat the command")

    def check_done() -> None:
        assert files_of(tmp_path / "disk") == files_of(tmp_path / "roomy")
        named = json.loads((tmp_path / "disk" / "report.json").read_text())["scores_file"]
        assert read_scores(tmp_path / "disk" / "report.npz", named["sha256"]).scores.shape == (4000, 30)

    new, old = (evaluation(predictions, name) for name in ("new", "old"))
    return new, tmp_path / "disk", check_full, check_done, old


def test_report(new_report: Any) -> None:
    fill_and_go_on("report", *new_report)


def test_report_where_no_disk_is_mounted(new_report: Any) -> None:
    """What stands in for disks where none may be mounted, here as well."""
    fill_and_go_on("report, no disk mounted", *new_report, mounts=False)


def test_a_report_is_killed_at_each_change_of_a_file_and_repeated(predictions: Path, tmp_path: Path) -> None:
    """A run that died never leaves a report that the next one takes for a file of the user."""
    work = evaluation(predictions, "old")
    whole = run(work, tmp_path / "whole")
    assert len(files_of(tmp_path / "whole")) == 4
    again = tmp_path / "again"
    again.mkdir()
    for dies_at in range(0, whole.num_changes, 1 if SOAK else 5):
        for name in files_of(again) if dies_at % 2 else ():  # every second time over the earlier report
            (again / name).unlink()
        assert Child(work, again, dies_at).wait() == -9
        for name, content in files_of(again).items():
            assert name.startswith(".") or content == files_of(tmp_path / "whole")[name]
        run(work, again)
        assert files_of(again) == files_of(tmp_path / "whole")


def test_save_pretrained(make_model: Callable[..., Any], tmp_path: Path) -> None:
    """Over an earlier model."""
    model = make_model(decoder_dim=64)

    def save(model: ZeroShotClassifier) -> int:
        try:
            model.save_pretrained("model")
        except OSError as error:
            sys.stdout.write(str(error))
            return 2
        return 0

    def check_full(said: str) -> None:
        assert re.search(FULL, said)

    def check_done() -> None:
        assert files_of(tmp_path / "disk") == files_of(tmp_path / "roomy")
        Predictor(ZeroShotClassifier.from_pretrained(tmp_path / "disk" / "model"), device="cpu")

    older = make_model()
    fill_and_go_on(
        "save_pretrained", lambda: save(model), tmp_path / "disk", check_full, check_done, lambda: save(older)
    )


def test_export(model_folder: Path, tmp_path: Path) -> None:
    """Over an earlier export, which stays whole."""
    export = ("export", str(model_folder), "--output", "out", "--device", "cpu")
    work = command(*export, "--frozen", "--overwrite")

    def check_full(said: str) -> None:
        one_sentence("export", said, "out must be written to the end", "make room and repeat the command")
        load_exported(tmp_path / "disk" / "out", "cpu")

    def check_done() -> None:
        assert files_of(tmp_path / "disk").keys() == files_of(tmp_path / "roomy").keys()
        assert load_exported(tmp_path / "disk" / "out", "cpu").vocabulary is not None

    fill_and_go_on("export", work, tmp_path / "disk", check_full, check_done, command(*export))
