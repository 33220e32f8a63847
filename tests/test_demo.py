"""The shipped model and the demo: what a person sees first."""

import json
import re
from pathlib import Path

import pytest

from zsmld import Evaluator, Predictor, ZeroShotClassifier, build_dataset
from zsmld.demo import run_demo
from zsmld.recipe import Recipe
from zsmld.resources import resource_path

MODEL = resource_path("data", "scenes", "model")


@pytest.fixture(scope="module")
def model() -> ZeroShotClassifier:
    return ZeroShotClassifier.from_pretrained(MODEL)


def test_shipped_model_is_small_and_complete(model: ZeroShotClassifier) -> None:
    assert sum(file.stat().st_size for file in MODEL.iterdir()) <= 5_000_000
    assert sorted(file.name for file in MODEL.iterdir()) == ["config.json", "model.safetensors"]
    config = json.loads((MODEL / "config.json").read_text())
    assert config["vocabulary"]["words"] == list(build_dataset("scenes", split="val", num_images=1).vocabulary.seen)
    assert config["text_encoder"]["spec"] == "minilm"
    assert {"image_size", "mean", "std", "resize"} <= set(config["image_encoder"])


def test_shipped_model_says_how_it_was_made(model: ZeroShotClassifier) -> None:
    """The recipe inside the checkpoint is the bundled one."""
    assert model.recipe is not None
    assert Recipe.from_dict(model.recipe) == Recipe.load("scenes_zsl")


def test_no_training_scene_holds_an_unseen_word() -> None:
    for split in ("train", "val"):
        scenes = build_dataset("scenes", split=split, num_images=5_000)
        assert scenes.targets[:, ~scenes.vocabulary.is_seen].nnz == 0


def test_shipped_model_reaches_what_it_promises(model: ZeroShotClassifier) -> None:
    """At least 0.95 mAP on seen words and 0.80 on unseen ones; chance is about 0.025."""
    scenes = build_dataset("scenes", split="test", num_images=600)
    report = Evaluator("scenes_gzsl").evaluate(model, scenes)
    assert report.protocols["gzsl"]["seen_mean_average_precision"] >= 0.95
    assert report.protocols["zsl"]["mean_average_precision"] >= 0.80
    assert report.protocols["zsl"]["chance_mean_average_precision"] < 0.05


def test_unseen_words_are_added_without_training(model: ZeroShotClassifier) -> None:
    scenes = build_dataset("scenes", split="test", num_images=200)
    predictor = Predictor(model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    predictor.add_words(scenes.vocabulary.unseen)
    assert all(tensor.equal(before[name]) for name, tensor in model.state_dict().items())
    one_unseen = [
        i
        for i in range(len(scenes))
        if scenes.targets[i].nnz == 1 and not scenes.vocabulary.is_seen[scenes.targets[i].indices[0]]
    ]
    assert len(one_unseen) >= 3
    predictions = list(predictor.predict([scenes[i]["image"] for i in one_unseen], top_k=1))
    truth = [scenes.vocabulary.words[scenes.targets[i].indices[0]] for i in one_unseen]
    found = [p.words[0] == word for word, p in zip(truth, predictions, strict=True)]
    assert sum(found) >= 0.8 * len(found)


def test_demo_prints_both_tables_and_writes_the_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    json_path, html_path = run_demo(tmp_path / "demo", num_images=150)
    printed = capsys.readouterr().out
    for expected in ("ZSL (unseen words)", "GZSL (all words)", "of which seen", "chance", "there:", "found:"):
        assert expected in printed
    assert printed.rstrip().splitlines()[-2:] == [f"report  {json_path}", f"        {html_path}"]
    report = json.loads(json_path.read_text())
    assert set(report["protocols"]) == {"zsl", "gzsl"}
    assert report["protocols"]["zsl"]["num_images"] == 150
    page = html_path.read_text()
    assert page.count('<div class="sample">') == 12
    assert "looking for" in page and 'class="plots"' in page
    assert not re.search(r'(src|href)="(?!data:)', page), "the page must not load anything"
