"""Killed at random moments and repeated, every work that takes a while ends with what it makes undisturbed."""

import csv
import json
import random
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from faults import Child, Work, command, files_of, kill_again_and_again, run
from safetensors.torch import load_file

from zsmld import ImageEncoder, Vocabulary, ZeroShotClassifier
from zsmld.datasets import Index, build_dataset
from zsmld.features import FeatureCache
from zsmld.predictor import collection
from zsmld.trainer.checkpoint import load_state


@pytest.fixture
def begin(tmp_path: Path) -> Callable[[], Path]:
    """Gives a new folder each time."""
    numbers = count()

    def new() -> Path:
        folder = tmp_path / f"run{next(numbers)}"
        folder.mkdir()
        return folder

    return new


# ------------------------------------------------------------------------------------------------------------- predict


def test_predict(
    photos: Path, model_folder: Path, tmp_path: Path, begin: Callable[[], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    (photos / "images" / "010.png").write_bytes(b"broken")
    monkeypatch.setattr(collection, "_SECONDS_A_PART", 0.0)  # each batch is a part; else so short a run had none
    outputs = ("--output", "tags.jsonl", "--scores-output", "scores.npy", "--contact-sheet", "sheet.html")
    options = ("--model", str(model_folder), "--device", "cpu", "--batch-size", "4", "--num-workers", "1")
    work = command("predict", str(photos / "images"), *options, *outputs, "--pictures", "pictures")
    run(work, tmp_path / "whole")
    whole = files_of(tmp_path / "whole")
    assert len(whole) == 4 + 24

    def check_killed(folder: Path) -> None:
        assert_whole(folder, whole, lambda name: ".parts/" in name or name.startswith("."))

    def is_done(folder: Path, said: str) -> bool:
        return "must not exist yet, it does" in said and files_of(folder) == whole

    kill_again_and_again("kills of predict", work, begin, check_killed, lambda f: assert_same(f, whole), is_done)


def assert_whole(folder: Path, whole: dict[str, bytes], is_unfinished: Callable[[str], bool]) -> None:
    """What has its name is whole."""
    for name, content in files_of(folder).items():
        assert is_unfinished(name) or "/." in name or content == whole[name], name


def assert_same(folder: Path, whole: dict[str, bytes]) -> None:
    found = files_of(folder)
    assert found.keys() == whole.keys()  # and nothing is left over
    assert [name for name in whole if found[name] != whole[name]] == []


# ------------------------------------------------------------------------------------------------------------- prepare


def test_prepare(photos: Path, tmp_path: Path, begin: Callable[[], Path]) -> None:
    """Over an older index, which stays until the new one is there."""
    source = (photos / "images" / "000.png").read_bytes()
    rows = ["image,labels"]
    for number in range(3000):
        name = f"{number % 1000:04d}-{number}.png"
        if number < 20:
            (photos / "images" / name).write_bytes(source)
        else:
            (photos / "images" / name).hardlink_to(photos / "images" / f"{number % 20:04d}-{number % 20}.png")
        rows.append(f"{name},dog" + "|cat" * (number % 2))
    table = photos / "many.csv"
    table.write_text("\n".join(rows) + "\n", encoding="utf-8")
    prepare_old = command("prepare", "table", "--root", str(photos / "photos.csv"), "--output", "index")
    work = command("prepare", "table", "--root", str(table), "--output", "index", "--decode", "200")
    run(prepare_old, tmp_path / "old")
    run(work, tmp_path / "whole")
    old, whole = files_of(tmp_path / "old" / "index"), files_of(tmp_path / "whole" / "index")
    assert len(whole) == 3 and old.keys() == whole.keys()

    def begin_over_old() -> Path:
        folder = begin()
        shutil.copytree(tmp_path / "old" / "index", folder / "index")
        return folder

    def check_killed(folder: Path) -> None:
        found = files_of(folder / "index")
        assert all(content in (old[name], whole[name]) for name, content in found.items() if name in whole)
        states = {found[name] == whole[name] for name in ("rows.parquet", "manifest.json")}
        if len(states) == 1:
            assert len(Index.open(folder / "index")) in (24, 3000)
        else:  # between the names of two files that belong together
            with pytest.raises(ValueError, match="must belong together, they are damaged or of two indices; prepare"):
                Index.open(folder / "index")

    def check_done(folder: Path) -> None:
        assert_same(folder / "index", whole)
        assert len(pq.read_table(folder / "index" / "rows.parquet")) == 3000

    kill_again_and_again("kills of prepare", work, begin_over_old, check_killed, check_done)


# ------------------------------------------------------------------------------------------------------------- caching


def test_feature_caching(photos: Path, tmp_path: Path, begin: Callable[[], Path]) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = ImageEncoder("timm:test_resnet", pretrained=False, image_size=64)
    dataset = build_dataset("table", path=str(photos / "photos.csv"))
    image_bytes = 4 * 96 * 2 + 32

    def extract() -> int:
        FeatureCache("cache", batch_size=4, shard_mebibytes=2 * image_bytes / 2**20).extract(encoder, dataset, "cpu")
        return 0

    run(extract, tmp_path / "whole")
    whole = embeddings_in(tmp_path / "whole" / "cache")
    assert len(whole) == 24

    def check_killed(folder: Path) -> None:
        found = embeddings_in(folder / "cache")  # a shard that is half there cannot be opened
        assert all(np.array_equal(rows, whole[image]) for image, rows in found.items())

    def check_done(folder: Path) -> None:
        check_killed(folder)
        assert len(embeddings_in(folder / "cache")) == 24
        assert not [name for name in files_of(folder) if not name.endswith((".safetensors", "manifest.json", ".lock"))]

    kill_again_and_again("kills of feature caching", extract, begin, check_killed, check_done)


def embeddings_in(cache: Path) -> dict[bytes, np.ndarray]:
    """Hash of an image -> its embeddings as they are stored."""
    found: dict[bytes, np.ndarray] = {}
    for path in cache.glob("*/*.safetensors"):
        tensors = load_file(path)
        for image_hash, rows in zip(tensors["hashes"].numpy(), tensors["spatial_embeddings"].numpy(), strict=True):
            assert image_hash.tobytes() not in found, "an image was encoded twice"
            found[image_hash.tobytes()] = rows
    return found


# -------------------------------------------------------------------------------------------------------------- models


def test_saving_a_model_over_another(make_model: Callable[..., Any], tmp_path: Path, begin: Callable[[], Path]) -> None:
    """Both fit each other to the last shape; their words stand in another order."""
    old, new = make_model(), make_model()
    words, embeddings = old.vocabulary, old.word_embeddings
    new.remember_words(Vocabulary(words.words[::-1], words.seen), embeddings.flip(0) + 1)
    for name, model in (("old", old), ("new", new)):
        model.save_pretrained(tmp_path / name / "model")

    def begin_over_old() -> Path:
        folder = begin()
        shutil.copytree(tmp_path / "old" / "model", folder / "model")
        return folder

    def save() -> int:
        new.save_pretrained("model")
        return 0

    def check_killed(folder: Path) -> None:
        found = model_of(folder / "model")
        if found is not None:
            whole = old if found.vocabulary.words == words.words else new
            assert found.vocabulary.words == whole.vocabulary.words
            assert torch.equal(found.word_embeddings, whole.word_embeddings)

    def check_done(folder: Path) -> None:
        assert_same(folder, files_of(tmp_path / "new"))

    kill_again_and_again("kills of saving a model", save, begin_over_old, check_killed, check_done)


def model_of(folder: Path) -> ZeroShotClassifier | None:
    """The model of a folder; None if it says that it is of two, which is so between the names of two files."""
    try:
        return ZeroShotClassifier.from_pretrained(folder)
    except ValueError as error:
        assert "must have the weights that its config.json was written for" in str(error), error
        return None


# ------------------------------------------------------------------------------------------------------------ training


@pytest.fixture
def training(photos: Path, vectors_path: Path) -> Work:
    """Three epochs of four steps, with a checkpoint at every second."""
    lines = (photos / "photos.csv").read_text().splitlines()
    splits = ["split", *(["train"] * 18 + ["val"] * 6)]
    content = "\n".join(f"{line},{split}" for line, split in zip(lines, splits, strict=True))
    (photos / "photos.csv").write_text(content + "\n")
    recipe = {
        "dataset": {
            "name": "table",
            "path": str(photos / "photos.csv"),
            "partition": str(photos / "partition.json"),
        },
        "image_encoder": {"spec": "timm:test_resnet", "pretrained": False, "image_size": 64},
        "text_encoder": f"vectors:{vectors_path}",
        "decoder": {"decoder_dim": 32, "num_heads": 4, "feedforward_dim": 64},
        "augmentation": {"noise": 0.2, "word_dropout": 0.25},
        "trainer": {
            "epochs": 3,
            "steps_per_epoch": 4,
            "batch_size": 4,
            "lr": 0.001,
            "ema_decay": 0.9,
            "holdout_words": 0.25,
            "checkpoint_every": 2,
            "log_every": 3,
            "device": "cpu",
        },
    }
    (photos / "tiny.yaml").write_text(yaml.safe_dump(recipe))
    return command("train", str(photos / "tiny.yaml"), "--output", "run", "--resume")


def test_training(training: Work, tmp_path: Path, begin: Callable[[], Path]) -> None:
    run(training, tmp_path / "whole")
    whole = outcome(tmp_path / "whole" / "run")
    assert len(whole["log.csv"]) == 3 and len(whole["steps.csv"]) == 4 and len(whole) >= 7

    def check_killed(folder: Path) -> None:
        if (folder / "run" / "checkpoint.pt").exists():
            load_state(folder / "run" / "checkpoint.pt")
        model = folder / "run" / "model"
        if (model / "model.safetensors").exists():
            model_of(model)
        elif (model / "config.json").exists():  # which has its name first
            with pytest.raises(FileNotFoundError, match=r"must hold model\.safetensors, not found"):
                model_of(model)
        for path in (folder / "run").rglob("*.json"):
            json.loads(path.read_text(encoding="utf-8"))
        for path in (folder / "run").glob("*.yaml"):
            assert yaml.safe_load(path.read_text(encoding="utf-8"))["trainer"]["epochs"] == 3

    def check_done(folder: Path) -> None:
        found = outcome(folder / "run")
        assert found.keys() == whole.keys()
        assert [name for name in whole if found[name] != whole[name]] == []

    kill_again_and_again("kills of training", training, begin, check_killed, check_done)


def test_a_worker_that_dies_in_training(training: Work, photos: Path, tmp_path: Path) -> None:
    """A sentence, and the same command goes on; the numbers do not depend on who decodes."""
    run(training, tmp_path / "whole")
    whole = outcome(tmp_path / "whole" / "run")
    workers = command("train", str(photos / "tiny.yaml"), "trainer.num_workers=1", "--output", "run", "--resume")
    folder, num_died = tmp_path / "again", 0
    folder.mkdir()
    chance = random.Random(0)
    while num_died < 2:
        child = Child(workers, folder)
        process, status, to_kill = psutil.Process(child.id), None, True
        while status is None:
            status = child.wait(time.monotonic() - child.started + 0.01 + 0.2 * chance.random())
            if status is None and to_kill and (children := process.children()):
                with suppress(psutil.NoSuchProcess):
                    children[0].kill()
                    to_kill = False
        said = child.said.read_text()
        assert status in (0, 2) and "Traceback" not in said, said
        if status == 2:
            num_died += 1
            assert "zsmld train: num_workers=1 processes must live to decode images, one died" in said
            assert "go on with --resume" in said
        else:  # the worker had nothing left to do when it was killed, or was not seen
            shutil.rmtree(folder / "run")
    run(training, folder)
    found = outcome(folder / "run")
    for name in ("model/model.safetensors", "log.csv", "steps.csv"):
        assert found[name] == whole[name], name


def outcome(output: Path) -> dict[str, Any]:
    """Every file of a training by its content, but for how fast it was."""
    found: dict[str, Any] = dict(files_of(output))
    for name in found:
        if name.endswith(".csv"):
            with (output / name).open(newline="") as file:
                found[name] = [
                    {k: v for k, v in row.items() if k != "images_per_second"} for row in csv.DictReader(file)
                ]
    state = load_state(output / "checkpoint.pt")
    for record in state["progress"]["history"]:
        del record["images_per_second"]
    found["checkpoint.pt"] = list(leaves(state))
    return found


def leaves(value: Any) -> Iterator[Any]:
    """The plain values of a state in order, tensors as bytes."""
    if isinstance(value, dict):
        for key in value:
            yield key
            yield from leaves(value[key])
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from leaves(inner)
    else:
        yield value.numpy().tobytes() if isinstance(value, torch.Tensor) else value
