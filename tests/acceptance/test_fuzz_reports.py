"""Scores and targets of others, and saved reports: what `zsmld evaluate` and `zsmld compare` read."""

import io
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from fuzzing import fuzz, json_bytes, mutated_bytes, mutated_json, mutated_text, mutated_value
from test_fuzz_models import changed_zip, lying_npy, mutated_arrays, mutated_torch, npz

from zsmld import Evaluator, Vocabulary
from zsmld.evaluator import Matrix, read_matrix
from zsmld.protocols import Protocol
from zsmld.report import Report, compare, read_published
from zsmld.report.scores_file import digest_of
from zsmld.resources import resource_path

WORDS = ("dog", "cat", "zebra", "bus")
IDS = [f"{i}.jpg" for i in range(6)]
SCORES = np.random.default_rng(0).random((6, 4)).astype(np.float32)
TARGETS = np.array([[1, 0, 0, 1], [0, 1, 0, 0], [0, 0, 1, 0], [1, 1, 0, -1], [0, 0, 1, 1], [1, 0, 0, 0]], np.int8)


def files() -> dict[str, bytes]:
    """Scores in every form."""
    frame = pd.DataFrame(SCORES, columns=list(WORDS))
    frame.insert(0, "id", IDS)
    parquet, array, tensors = io.BytesIO(), io.BytesIO(), io.BytesIO()
    frame.to_parquet(parquet)
    np.save(array, SCORES)
    torch.save({"scores": torch.tensor(SCORES), "ids": IDS, "words": list(WORDS)}, tensors)
    return {
        "s.csv": frame.to_csv(index=False).encode(),
        "s.tsv": frame.to_csv(index=False, sep="\t").encode(),
        "s.parquet": parquet.getvalue(),
        "s.npy": array.getvalue(),
        "s.npz": npz({"scores": SCORES, "ids": np.array(IDS), "words": np.array(WORDS)}),
        "s.pt": tensors.getvalue(),
    }


def test_scores_and_targets_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zsmld.evaluator.git_revision", lambda: None)  # it asks git, which is no reader's doing
    good = files()
    whole = {"scores": torch.tensor(SCORES), "ids": IDS, "words": list(WORDS)}
    arrays = {"scores": SCORES, "ids": np.array(IDS), "words": np.array(WORDS)}
    vocabulary = Vocabulary(WORDS, seen=WORDS[:2])

    def change(rng: random.Random, folder: Path) -> None:
        name = rng.choice(sorted(good))
        content = good[name]
        if name in ("s.csv", "s.tsv"):
            content = mutated_text(rng, content, b"," if name == "s.csv" else b"\t")
        elif name == "s.npz" and rng.random() < 0.8:
            content = npz(mutated_arrays(rng, arrays)) if rng.random() < 0.5 else changed_zip(rng, content, lying_npy)
        elif name == "s.npy" and rng.random() < 0.5:
            content = lying_npy(rng, content)
        elif name == "s.pt":
            content = mutated_torch(rng, whole)
        elif name == "s.parquet" and rng.random() < 0.5:
            frame = pd.read_parquet(io.BytesIO(content))
            column = rng.choice(list(frame))
            frame[column] = [mutated_value(rng, value) for value in frame[column].tolist()]
            buffer = io.BytesIO()
            try:
                frame.to_parquet(buffer)
                content = buffer.getvalue()
            except Exception:  # Arrow has no such column
                content = mutated_bytes(rng, content)
        else:
            content = mutated_bytes(rng, content)
        (folder / name).write_bytes(content)

    def call(folder: Path) -> None:
        path = next(folder.iterdir())
        matrix = read_matrix(path)
        other = Matrix(TARGETS, matrix.ids and tuple(IDS), matrix.words and WORDS, "the targets")
        if matrix.values.shape == TARGETS.shape:
            report = Evaluator("gzsl", device="cpu").evaluate_predictions(matrix, other, "scores", vocabulary)
            report.to_text()

    fuzz(change, call, [*good, "scores", "targets"], examples=400)


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Two reports with their scores."""
    from zsmld.evaluator.figures import evaluate_scores

    folder = tmp_path_factory.mktemp("reports")
    patch = pytest.MonkeyPatch()
    patch.setattr(Report, "to_html", lambda self: "")
    vocabulary = Vocabulary(WORDS, seen=WORDS[:2])
    for name, scores in (("a", SCORES), ("b", SCORES[::-1].copy())):
        Report(
            protocols=evaluate_scores(scores, TARGETS, vocabulary, Protocol.named("gzsl"), "scores"),
            model={},
            dataset={"name": "d", "split": "test", "num_images": 6, "num_unreadable": 0, "unreadable": []},
            external_knowledge=[],
            versions={},
            protocol_name="gzsl",
            vocabulary=vocabulary,
            scores=scores,
            targets=TARGETS,
            ids=IDS,
            kind="scores",
        ).save(folder / f"{name}.json")
    patch.undo()
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix in (".json", ".npz")}


def read_both(folder: Path) -> None:
    for allow in (False, True):
        compare(folder / "a.json", folder / "b.json", num_resamples=3, allow_different=allow).to_text(num_words=2)


def test_reports_and_their_scores(reports: dict[str, bytes]) -> None:
    """The hash of the scores is made to fit half of the time."""
    content = json.loads(reports["b.json"])
    with np.load(io.BytesIO(reports["b.npz"])) as loaded:
        arrays = {name: loaded[name] for name in loaded.files}

    def change(rng: random.Random, folder: Path) -> None:
        for name, data in reports.items():
            (folder / name).write_bytes(data)
        kind = rng.randrange(4)
        if kind == 0:
            (folder / "b.json").write_bytes(json_bytes(rng, content))
            return
        if kind == 1:
            part = rng.choice(list(content["protocols"]))
            protocols = {**content["protocols"], part: mutated_json(rng, content["protocols"][part])}
            (folder / "b.json").write_text(json.dumps({**content, "protocols": protocols}))
            return
        data = reports["b.npz"]
        if kind == 2:
            data = npz(mutated_arrays(rng, arrays))
        else:
            change = rng.choice([lying_npy, mutated_bytes])
            data = changed_zip(rng, data, change) if rng.random() < 0.7 else mutated_bytes(rng, data)
        (folder / "b.npz").write_bytes(data)
        if rng.random() < 0.85:
            file: Any = content["scores_file"] | {"sha256": digest_of(folder / "b.npz")}
            (folder / "b.json").write_text(json.dumps({**content, "scores_file": file}))

    fuzz(
        change, read_both, [*reports, "reports must", "must be the scores that the report was saved with"], examples=400
    )


def test_published_figures() -> None:
    good = resource_path("evaluation", "published.csv").read_bytes()
    good = b"\n".join(good.splitlines()[:5]) + b"\n"

    def change(rng: random.Random, folder: Path) -> None:
        (folder / "published.csv").write_bytes(mutated_text(rng, good))

    fuzz(change, lambda folder: read_published(folder / "published.csv"), ["published.csv"], examples=150)
