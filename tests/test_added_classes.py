"""Classes added without training: words, thresholds and synonyms, saved and found again elsewhere."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from zsmld import Predictor, TextEncoder, Vocabulary, ZeroShotClassifier, build_dataset
from zsmld.calibration import Calibration
from zsmld.resources import resource_path

MakeModel = Callable[..., Any]
SCENES = resource_path("data", "scenes", "model")
NEW = ["red circle", "green star", "blue triangle"]

# What another machine does: no text encoder can be made there.
ELSEWHERE = """
import json, sys
import numpy as np
import zsmld.model
from zsmld import Predictor, ZeroShotClassifier

def unavailable(*_, **__):
    raise OSError("no text encoder here")

zsmld.model.TextEncoder = unavailable
folder, images, output = sys.argv[1:]
model = ZeroShotClassifier.from_pretrained(folder)
predictor = Predictor(model, device="cpu", num_workers=0)
np.save(output, predictor.score(images)[0])
given = [list(p.words) for p in predictor.predict(images, top_k=None, threshold="stored")]
print(json.dumps([given, predictor.vocabulary.unseen, predictor.thresholds, predictor.synonyms, model.calibration]))
"""


@pytest.fixture
def scenes(tmp_path: Path) -> Path:
    """A folder of generated images."""
    folder, images = tmp_path / "scenes", build_dataset("scenes", split="test", num_images=12)
    folder.mkdir()
    for number in range(12):
        images[number]["image"].save(folder / f"{number:02d}.png")
    return folder


def test_three_new_classes_are_scored_alike_elsewhere(scenes: Path, tmp_path: Path) -> None:
    model = ZeroShotClassifier.from_pretrained(SCENES)
    assert model.vocabulary is not None and not set(NEW) & set(model.vocabulary.words)
    seen = model.vocabulary.seen
    model.calibration = Calibration(
        "per_image",
        trained_words=seen,
        stacking=0.3,
        reference_words=seen[:16],
        thresholds={"red star": 0.8},
        default_threshold=1.1,
    ).to_dict()
    predictor = Predictor(model, device="cpu", num_workers=0)
    predictor.remove_words(predictor.vocabulary.words[5:])  # of the words it knows, five
    predictor.add_words(NEW, synonyms={"red circle": ["crimson disc"]})
    scores = predictor.score(scenes)[0]
    thresholds = dict(zip(NEW, np.median(scores[:, 5:], axis=0).tolist(), strict=True))
    predictor.set_thresholds(thresholds, default_threshold="calibrated")
    given = [list(p.words) for p in predictor.predict(scenes, top_k=None, threshold="stored")]
    assert 0 < sum(word in NEW for words in given for word in words) < 36
    predictor.save_pretrained(tmp_path / "model")
    assert model.prediction is None and model.vocabulary.words == seen  # this one is as it was

    command = [sys.executable, "-c", ELSEWHERE, tmp_path / "model", scenes, tmp_path / "scores.npy"]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    found, unseen, stored, synonyms, calibration = json.loads(ran.stdout)
    np.testing.assert_allclose(np.load(tmp_path / "scores.npy"), scores, atol=1e-6)
    assert found == given and unseen == NEW and stored == thresholds
    assert synonyms == {"red circle": ["crimson disc"]} and calibration == json.loads(json.dumps(model.calibration))


def test_the_command_line_takes_what_was_saved(scenes: Path, tmp_path: Path) -> None:
    predictor = Predictor(ZeroShotClassifier.from_pretrained(SCENES), ["red star"], device="cpu", num_workers=0)
    predictor.add_words(NEW)
    predictor.set_thresholds({"red circle": 0.0}, default_threshold=1.0)
    predictor.save_pretrained(tmp_path / "model")
    command = [sys.executable, "-m", "zsmld", "predict", scenes, "--model", tmp_path / "model", "--threshold", "stored"]
    ran = subprocess.run(
        [*command, "--output", tmp_path / "tags.jsonl", "--device", "cpu"], capture_output=True, text=True, timeout=120
    )
    assert ran.returncode == 0, ran.stderr
    records = [json.loads(line) for line in (tmp_path / "tags.jsonl").read_text().splitlines()]
    assert [(record["words"], record["labels"]) for record in records] == [(["red circle"], [1])] * 12


# ---------------------------------------------------------------------------------------------- what is in a checkpoint


def reloaded(predictor: Predictor, folder: Path, **options: Any) -> Predictor:
    predictor.save_pretrained(folder)
    model = ZeroShotClassifier.from_pretrained(folder)
    model.text_encoder = None  # what was saved needs none
    return Predictor(model, device="cpu", **options)


def test_the_model_knows_its_words_and_the_new_ones(
    make_model: MakeModel, images: list[Image.Image], tmp_path: Path
) -> None:
    predictor = Predictor(make_model(), ["kite", "dog", "zebra"], device="cpu", synonyms={"dog": ["cup"]})
    again = reloaded(predictor, tmp_path)
    known = again.model.vocabulary
    assert known.words[:6] == make_model().vocabulary.words and known.words[6:] == ("kite", "cup", "zebra")
    assert known.seen == make_model().vocabulary.seen and known.templates == make_model().vocabulary.templates
    assert again.vocabulary == predictor.vocabulary and again.synonyms == {"dog": ("cup",)} and again.thresholds is None
    np.testing.assert_allclose(again.score(images)[0], predictor.score(images)[0], atol=1e-6)
    twice = reloaded(again, tmp_path / "twice")  # saved again, it is the same
    config = [json.loads((folder / "config.json").read_text()) for folder in (tmp_path, tmp_path / "twice")]
    assert config[0]["vocabulary"] == config[1]["vocabulary"] and config[0]["prediction"] == config[1]["prediction"]
    assert torch.equal(twice.model.word_embeddings, again.model.word_embeddings)


def test_other_words_take_what_is_stored_of_theirs(make_model: MakeModel, tmp_path: Path) -> None:
    predictor = Predictor(
        make_model(), ["dog", "cat", "zebra"], device="cpu", synonyms={"dog": ["cup"], "cat": ["lamp"]}
    )
    predictor.set_thresholds({"dog": 0.2, "zebra": 0.7}, default_threshold=0.4)
    again = reloaded(predictor, tmp_path, words=["zebra", "lamp", "cat"])
    assert again.thresholds == {"zebra": 0.7} and again.default_threshold == 0.4
    assert again.synonyms == {}  # the lamp is a word of its own
    assert reloaded(predictor, tmp_path, words=["dog"]).synonyms == {"dog": ("cup",)}
    assert reloaded(predictor, tmp_path, synonyms={}).synonyms == {}


def test_other_templates_are_kept_as_the_words_own(tmp_path: Path) -> None:
    """They hold for the words that were encoded with them, and for no word that is added later."""
    model = ZeroShotClassifier.from_pretrained(SCENES)
    predictor = Predictor(
        model, ["red star", *NEW], device="cpu", templates=["{} on grey."], descriptions={NEW[0]: ["a red disc."]}
    )
    again = reloaded(predictor, tmp_path)
    assert again.vocabulary.prompts(NEW[0]) == ("a red disc.",)
    assert again.vocabulary.prompts("red star") == ("red star on grey.",)
    assert again.model.vocabulary.prompts("blue ring") == model.vocabulary.prompts("blue ring")
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    np.testing.assert_allclose(again.score(pixels)[0], predictor.score(pixels)[0], atol=1e-6)
    model.calibration = Calibration("per_image", reference_words=("red star", "blue ring")).to_dict()
    with pytest.raises(
        ValueError, match=r"reference words must stay those of the model, got others for \['red star'\]"
    ):
        Predictor(model, ["red star"], device="cpu", templates=["{}!"]).save_pretrained(tmp_path / "refused")
    assert not (tmp_path / "refused").exists()


def test_words_with_several_descriptions(make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model(remember=False, text_encoder="minilm", descriptions="attention")
    several = {"dog": ["a dog.", "a barking animal.", "a pet."]}
    predictor = Predictor(model, ["cat", "dog"], device="cpu", descriptions=several)
    predictor.add_words(["bird"])
    again = reloaded(predictor, tmp_path)
    assert again.model.word_embeddings.shape == (3, 3, 384) and again.vocabulary.unseen == ("cat", "dog", "bird")
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    np.testing.assert_allclose(again.score(pixels)[0], predictor.score(pixels)[0], atol=1e-6)


def test_classes_keep_their_thresholds(make_model: MakeModel, images: list[Image.Image], tmp_path: Path) -> None:
    model = make_model(num_classes=3)
    model.remember_words(Vocabulary(["dog", "cat", "tree"]), None)
    predictor = Predictor(model, device="cpu")
    predictor.set_thresholds({"cat": 0.0}, default_threshold=1.0)
    again = reloaded(predictor, tmp_path)
    assert again.thresholds == {"cat": 0.0}
    assert [p.words for p in again.predict(images, threshold="stored")] == [("cat",)] * 7


def test_a_model_without_words_of_its_own(make_model: MakeModel, tmp_path: Path) -> None:
    again = reloaded(Predictor(make_model(remember=False), ["zebra", "dog"], device="cpu"), tmp_path)
    assert again.vocabulary.words == ("zebra", "dog") and again.vocabulary.seen == ()


def test_a_checkpoint_of_before_has_nothing_stored() -> None:
    model = ZeroShotClassifier.from_pretrained(SCENES)
    predictor = Predictor(model, device="cpu")
    assert model.prediction is None and predictor.vocabulary == model.vocabulary and predictor.thresholds is None


def test_later_words_are_encoded_by_the_models_encoder(make_model: MakeModel, tmp_path: Path) -> None:
    Predictor(make_model(), ["dog", "zebra"], device="cpu").save_pretrained(tmp_path)
    again = Predictor(ZeroShotClassifier.from_pretrained(tmp_path), device="cpu")
    again.add_words(["lamp"])
    expected = TextEncoder(again.model.text_encoder).encode_words(["lamp"])
    assert torch.equal(again.model.encode_words(["lamp"]), expected) and again.vocabulary.words[-1] == "lamp"


@pytest.mark.parametrize(
    "change",
    [
        {"words": []},
        {"words": ["dog", "dog"]},
        {"synonyms": {"horse": ["pony"]}},
        {"synonyms": None},
        {"thresholds": {"words": {"dog": 3}, "default": 0.5}},
        {"thresholds": {"words": {"horse": 0.3}, "default": 0.5}},
        {"thresholds": {"words": {}, "default": "often"}},
        {"thresholds": {"dog": 0.5}},
        {"thresholds": 0.5},
    ],
)
def test_what_is_damaged_is_refused(change: dict[str, Any], make_model: MakeModel) -> None:
    model = make_model()
    sound = {"words": ["dog", "cat"], "synonyms": {}, "thresholds": None}
    model.prediction = sound
    assert Predictor(model, device="cpu").vocabulary.words == ("dog", "cat")
    model.prediction = sound | change
    with pytest.raises(
        ValueError, match=r"prediction stored with the model must be as Predictor\.save_pretrained writes"
    ):
        Predictor(model, device="cpu")


def test_a_config_whose_prediction_is_no_mapping_is_refused(make_model: MakeModel, tmp_path: Path) -> None:
    make_model().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"prediction": [1]}))
    with pytest.raises(ValueError, match="a prediction of type list, which is no mapping"):
        ZeroShotClassifier.from_pretrained(tmp_path)
