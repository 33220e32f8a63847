"""The study of zero-shot quality: what its committed report claims, and the methods that it compares with."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scripts import load_script

from zsmld import Vocabulary
from zsmld.metrics import average_precision

ROOT = Path(__file__).resolve().parent.parent
EVALUATION = ROOT / "evaluation"


@pytest.fixture(scope="module")
def study() -> Any:
    sys.path.insert(0, str(EVALUATION))  # it shares code with other studies
    try:
        return load_script(EVALUATION / "zero_shot_study.py")
    finally:
        sys.path.remove(str(EVALUATION))


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    content: dict[str, Any] = json.loads((EVALUATION / "reports" / "zero_shot_study.json").read_text(encoding="utf-8"))
    return content


def mean(entry: dict[str, Any], figure: str) -> float:
    return float(np.mean([run[figure] for run in entry["runs"]]))


@pytest.mark.parametrize("partition", ["48/17", "65/15"])
def test_ours_is_above_every_other_row_in_zsl_and_gzsl_at_once(partition: str, report: dict[str, Any]) -> None:
    rows = [entry for entry in report["results"] if (entry["partition"], entry["table"]) == (partition, "main")]
    (ours,) = (entry for entry in rows if entry["name"] == "ours")
    others = [entry for entry in rows if entry is not ours]
    assert len(others) >= 12 and len(ours["runs"]) == 3
    for figure in ("zsl", "gzsl"):
        best = max(others, key=lambda entry: mean(entry, figure))
        assert mean(ours, figure) > mean(best, figure), (figure, best["name"])
    plain = [entry for entry in others if entry["name"].startswith("official word head")]
    assert plain and all(mean(ours, "zsl") >= 2 * mean(entry, "zsl") for entry in plain)


def test_the_report_is_of_the_rows_of_the_script(study: Any, report: dict[str, Any]) -> None:
    for partition in study.PARTITIONS:
        listed = [row for row in study.rows() if partition in row.partitions]
        entries = [entry for entry in report["results"] if entry["partition"] == partition]
        assert len(entries) == len(listed) + 1  # ours is shown with the ablation, too
        for row in listed:
            of_row = (row.table, row.name, row.settings, len(row.seeds))
            assert any((e["table"], e["name"], e["settings"], len(e["runs"])) == of_row for e in entries), row.name


def stub(study: Any, num_seen: int = 16) -> Any:
    """Photos whose feature is the sum of a linear image of their words' embeddings."""
    rng = np.random.default_rng(0)
    words = torch.from_numpy(rng.standard_normal((20, 6)).astype(np.float32))
    targets = (rng.random((300, 20)) < 0.08).astype(np.int8)
    targets[:20] |= np.eye(20, dtype=np.int8)
    x = torch.from_numpy((targets @ (words.numpy() @ rng.standard_normal((6, 12)))).astype(np.float32))
    names = [f"w{i}" for i in range(20)]
    photos = SimpleNamespace(
        vocabulary=Vocabulary(names, seen=names[:num_seen]),
        targets=targets,
        _closed_form_inputs=lambda kind: (x, words, torch.arange(num_seen)),
    )
    for name in ("eszsl", "ridge", "bilinear", "_closed_form"):
        setattr(photos, name, getattr(study.Photos, name).__get__(photos))
    return photos


@pytest.mark.parametrize("method", ["eszsl", "ridge", "bilinear"])
def test_closed_forms_rank_unseen_words_of_a_linear_world(method: str, study: Any) -> None:
    photos = stub(study)
    train, test = np.arange(200), np.arange(200, 300)
    scores, _ = getattr(photos, method)({"words": "any"}, train, test, 0)
    unseen = photos.targets[test][:, 16:]
    assert scores.shape == (100, 20)
    assert average_precision(scores[:, 16:], unseen).mean() > 3 * unseen.mean()  # chance is one of these


@pytest.mark.parametrize("method", ["eszsl", "ridge", "bilinear"])
def test_labels_of_unseen_words_and_test_photos_change_nothing(method: str, study: Any) -> None:
    train, test = np.arange(200), np.arange(200, 300)
    found = []
    for flip in (False, True):
        photos = stub(study)
        if flip:
            photos.targets = photos.targets.copy()
            photos.targets[:, 16:] = 1 - photos.targets[:, 16:]
            photos.targets[200:] = 1 - photos.targets[200:]
        found.append(getattr(photos, method)({"words": "any"}, train, test, 0)[0])
    np.testing.assert_array_equal(*found)


def test_a_namesake_is_a_class_or_its_last_part(study: Any, tmp_path: Path) -> None:
    (tmp_path / "weights").mkdir()
    lines = ["school bus", "umbrella", "hot dog, red hot", "busboy"] + [f"thing {n}" for n in range(996)]
    (tmp_path / "weights" / "imagenet_labels.txt").write_text("\n".join(lines))
    vocabulary = Vocabulary(["bus", "umbrella", "dog", "boy", "thing"], seen=["thing"])
    photos = SimpleNamespace(root=tmp_path, vocabulary=vocabulary)
    assert study.namesakes(photos) == ["bus", "umbrella", "dog"]
