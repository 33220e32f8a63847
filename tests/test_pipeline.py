"""The pipeline-shaped call: what the Predictor says, in the shape of Hugging Face's pipeline."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from zsmld import Predictor, ZeroShotClassifier
from zsmld.predictor import pipeline as module
from zsmld.predictor.pipeline import ImagePipeline, pipeline

WORDS = ["dog", "zebra", "red car"]


@pytest.fixture(scope="module")
def model(make_model: Callable[..., Any]) -> Any:
    return make_model(output="sum")


def same(found: list[dict[str, Any]], wanted: list[dict[str, Any]]) -> bool:
    """Equal but for the last bits, which the size of a batch moves."""
    return [e["label"] for e in found] == [e["label"] for e in wanted] and [e["score"] for e in found] == pytest.approx(
        [e["score"] for e in wanted], abs=1e-6
    )


def expected(model: Any, images: list[Any], words: list[str]) -> list[list[dict[str, Any]]]:
    scores, _ = Predictor(model, words, device="cpu").score(images)
    rows = [sorted(zip(words, row.tolist(), strict=True), key=lambda pair: -pair[1]) for row in scores]
    return [[{"label": word, "score": score} for word, score in row] for row in rows]


# ---------------------------------------------------------------------------------------------------------------- laws


def test_it_says_what_the_predictor_says(model: Any, images: list[Image.Image]) -> None:
    several = pipeline(images, WORDS, model=model, device="cpu", batch_size=3)
    assert len(several) == len(images)
    assert all(map(same, several, expected(model, images, WORDS)))
    alone = pipeline(images[0], candidate_labels=WORDS, model=model, device="cpu")
    assert same(alone, expected(model, images[:1], WORDS)[0])
    assert all(isinstance(entry["score"], float) for row in several for entry in row)


def test_scores_are_multi_label(model: Any, images: list[Image.Image]) -> None:
    """A label's score does not depend on the other candidates; a softmax's would."""
    alone = pipeline(images[0], ["zebra"], model=model, device="cpu")[0]
    among = pipeline(images[0], WORDS, model=model, device="cpu")
    assert next(e["score"] for e in among if e["label"] == "zebra") == pytest.approx(alone["score"], abs=1e-6)


def test_order_is_best_first_and_top_k_cuts_it(model: Any, images: list[Image.Image]) -> None:
    whole = pipeline(images[:2], WORDS, model=model, device="cpu")
    assert all([e["score"] for e in row] == sorted((e["score"] for e in row), reverse=True) for row in whole)
    assert pipeline(images[:2], WORDS, model=model, top_k=2, device="cpu") == [row[:2] for row in whole]


# -------------------------------------------------------------------------------------------------------- repeated use


def test_the_loaded_function_takes_other_labels_and_loads_nothing_again(
    model: Any, images: list[Image.Image], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model.save_pretrained(tmp_path / "model")
    classifier = pipeline(model=tmp_path / "model", device="cpu")
    assert isinstance(classifier, ImagePipeline) and "ZeroShotClassifier" in repr(classifier)
    monkeypatch.setattr(ZeroShotClassifier, "from_pretrained", None)  # a second loading would fail
    for words in (WORDS, WORDS[::-1], ["kite"], WORDS):
        assert same(classifier(images[0], candidate_labels=words), expected(model, images[:1], words)[0])


def test_the_same_labels_are_compiled_once(
    model: Any, images: list[Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    classifier = pipeline(model=model, device="cpu")
    first = classifier(images[0], WORDS)
    monkeypatch.setattr(module, "Predictor", None)
    monkeypatch.setattr(Predictor, "set_words", None)
    assert classifier(images[0], WORDS) == first


def test_the_template_reaches_the_text_encoder(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    class Stop(Exception):
        """Enough was seen."""

    def record(*_: Any, **options: Any) -> Any:
        seen.append(options["templates"])
        raise Stop

    monkeypatch.setattr(module, "Predictor", record)
    for template in ("a drawing of {}", None):
        with pytest.raises(Stop):
            pipeline(Image.new("RGB", (8, 8)), WORDS, model=model, hypothesis_template=template)
    assert seen == [("a drawing of {}",), None]


def test_another_template_is_another_predictor(model: Any, images: list[Image.Image]) -> None:
    classifier = pipeline(model=model, device="cpu")
    classifier(images[0], WORDS)
    before = classifier._predictor
    classifier(images[0], WORDS, hypothesis_template="a drawing of {}")
    assert classifier._predictor is not before and classifier._predictor._templates == ("a drawing of {}",)
    classifier(images[0], WORDS)
    assert classifier._predictor._templates is None


# -------------------------------------------------------------------------------------------------------------- models


def test_a_name_of_a_scorer_makes_the_scorer(monkeypatch: pytest.MonkeyPatch, model: Any) -> None:
    asked: list[str] = []
    monkeypatch.setattr(module, "create_scorer", lambda spec: asked.append(spec) or model)
    pipeline(model="conse:timm:resnet50.a1_in1k")
    pipeline()
    assert asked == ["conse:timm:resnet50.a1_in1k", "clip:ViT-B-16/openai"]


def test_names_are_those_of_transformers() -> None:
    hugging_face = pytest.importorskip("transformers").pipelines.ZeroShotImageClassificationPipeline
    theirs = {
        *inspect.signature(hugging_face.__call__).parameters,
        *inspect.signature(hugging_face.preprocess).parameters,
    }
    ours = set(inspect.signature(pipeline).parameters)
    assert {"image", "candidate_labels", "hypothesis_template"} <= ours & theirs


# ----------------------------------------------------------------------------------------------------------- bad input


def test_an_unreadable_image_of_a_list_loses_no_other(model: Any, images: list[Image.Image], tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"broken")
    sources = [images[0], tmp_path / "broken.jpg", tmp_path / "absent.jpg", images[1]]
    with pytest.warns(UserWarning, match=r"no labels for image [12]: image must be") as told:
        found = pipeline(sources, WORDS, model=model, device="cpu")
    wanted = [expected(model, images[:1], WORDS)[0], [], [], expected(model, images[1:2], WORDS)[0]]
    assert all(map(same, found, wanted)) and len(found) == 4
    assert len(told) == 2


def test_a_single_image_that_cannot_be_read_is_an_error(model: Any, tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"broken")
    with pytest.raises(ValueError, match=r"cannot decode .*broken\.jpg"):
        pipeline(tmp_path / "broken.jpg", WORDS, model=model)
    with pytest.raises(FileNotFoundError, match=r"existing file.*absent\.jpg"):
        pipeline(str(tmp_path / "absent.jpg"), WORDS, model=model)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"image": "a.jpg"}, ValueError, "candidate_labels must be given with image, got None; give both"),
        ({"candidate_labels": WORDS}, ValueError, "image must be given with candidate_labels, got None"),
        ({"top_k": 3}, ValueError, "hypothesis_template and top_k must come with an image"),
        ({"image": "https://x.org/a.jpg", "candidate_labels": WORDS}, ValueError, "on this machine, got the address"),
        ({"image": ".", "candidate_labels": WORDS}, ValueError, r"a single file, got '\.'; list the files"),
        ({"image": ["*.jpg"], "candidate_labels": WORDS}, ValueError, r"a single file, got '\*\.jpg'"),
        ({"image": iter(()), "candidate_labels": WORDS}, TypeError, r"or a list of images, got tuple_iterator"),
        ({"image": "FILE:///a.jpg", "candidate_labels": WORDS}, ValueError, "on this machine, got the address FILE"),
        ({"image": "data:image/png;base64,AA", "candidate_labels": WORDS}, ValueError, "on this machine"),
        ({"image": "", "candidate_labels": WORDS}, ValueError, "a single file, got ''"),
        ({"image": 3, "candidate_labels": WORDS}, TypeError, "or a list of images, got int; give a path, a PIL image"),
        ({"image": ["a.jpg", None], "candidate_labels": WORDS}, TypeError, "a list of images, got NoneType"),
        ({"image": "a.jpg", "candidate_labels": "dog"}, TypeError, r"candidate_labels must be a list .*\['dog'\]"),
        ({"image": "a.jpg", "candidate_labels": []}, ValueError, "candidate_labels must have at least one word"),
        (
            {"image": Image.new("RGB", (8, 8)), "candidate_labels": WORDS, "hypothesis_template": "no place"},
            ValueError,
            "sentences with one {} each",
        ),
    ],
)
def test_errors_say_what_to_do(model: Any, arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        pipeline(**arguments, model=model, device="cpu")


def test_the_loaded_function_and_the_model_are_checked_too(model: Any) -> None:
    classifier = pipeline(model=model, device="cpu")
    for arguments, missing in (((None, WORDS), "image"), (("a.jpg", None), "candidate_labels")):
        with pytest.raises(ValueError, match=f"{missing} must be given to score labels, got None"):
            classifier(*arguments)
    with pytest.raises(TypeError, match="model must be a folder, a name or a ZeroShotClassifier, got int"):
        pipeline(model=3)  # type: ignore[call-overload]


def test_no_images_is_no_answer(model: Any) -> None:
    assert pipeline([], WORDS, model=model, device="cpu") == []
