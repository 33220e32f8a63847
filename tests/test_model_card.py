"""The model card: metadata that the Hub's own library reads back, figures of the report, and words that stay text."""

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from zsmld import Evaluator, Vocabulary, ZeroShotClassifier, build_dataset
from zsmld.model import model_card
from zsmld.model.markup import fenced, inline, inline_code
from zsmld.resources import resource_path

MakeModel = Callable[..., Any]
SECTIONS = [
    "How to use it",
    "Intended use and limits",
    "Figures",
    "Words",
    "Training",
    "External knowledge",
    "Licences",
    "Versions",
]


class Page(HTMLParser):
    """What a browser makes of a page: elements in order, links, and the text."""

    def __init__(self, content: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[str] = []
        self.links: list[str] = []
        self.text = ""
        self.feed(content)
        self.close()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append(tag)
        self.links += [value or "" for name, value in attributes if name in ("href", "src")]
        assert not [name for name, _ in attributes if name.startswith("on")]

    def handle_data(self, data: str) -> None:
        self.text += data


def rendered(text: str) -> Page:
    """Markdown as CommonMark has it, with HTML, tables and strikethrough; its own escapes are the oracle of ours."""
    return Page(MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).render(text))


@pytest.fixture
def scenes() -> ZeroShotClassifier:
    return ZeroShotClassifier.from_pretrained(resource_path("data", "scenes", "model"))


@pytest.fixture
def model(make_model: MakeModel) -> ZeroShotClassifier:
    model = make_model()
    model.heldout_words = ("cat",)
    return model


@pytest.fixture
def report(model: ZeroShotClassifier, photos: Path) -> Any:
    """Of `model` on 24 photos of six words, two of them unseen."""
    dataset = build_dataset("table", path=photos / "photos.csv", partition=photos / "partition.json")
    return Evaluator("gzsl", num_samples=0).evaluate(model, dataset)


# -------------------------------------------------------------------------------------------------------------- figures


def test_the_metadata_come_back_from_the_hubs_own_reader(
    model: ZeroShotClassifier, report: Any, tmp_path: Path
) -> None:
    model_card(model, report, "apache-2.0", "owner/m", "0" * 40).save(tmp_path / "README.md")
    data = ModelCard.load(tmp_path / "README.md").data
    assert (data.license, data.library_name, data.pipeline_tag) == (
        "apache-2.0",
        "zsmld",
        "zero-shot-image-classification",
    )
    assert {"zsmld", "multi-label", "ml-decoder"} <= set(data.tags) and data.model_name == "m"
    found = {(r.metric_config, r.metric_type): r for r in data.eval_results}
    # Two unseen words have no best three.
    for part, keys in {"zsl": (), "gzsl": ("f1_at_3", "f1_at_5")}.items():
        for key in ("mean_average_precision", *keys):
            result = found.pop((part, key))
            assert result.metric_value == pytest.approx(report.protocols[part][key], abs=1e-12)
            where = (result.dataset_name, result.dataset_split, result.dataset_config)
            assert where == ("photos", "all", "gzsl")
    gzsl = report.protocols["gzsl"]
    for part, key in (("seen", "seen_mean_average_precision"), ("unseen", "unseen_mean_average_precision")):
        assert found.pop((f"gzsl_{part}", "mean_average_precision")).metric_value == pytest.approx(gzsl[key])
    assert found.pop(("gzsl_harmonic_mean", "mean_average_precision")).metric_value == pytest.approx(
        gzsl["harmonic_mean"]
    )
    assert not found


def test_the_table_has_the_reports_own_figures(model: ZeroShotClassifier, report: Any) -> None:
    text = model_card(model, report).text
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    header, _, zsl, gzsl, *rest = rows
    assert header == ["", "words", "images", "labels/image", "mAP", "chance mAP", "F1@3", "F1@5"]
    for row, part, title in (
        (zsl, "zsl", "ZSL (unseen words)"),
        (gzsl, "gzsl", "GZSL (all words)"),
    ):
        figures = report.protocols[part]
        keys = ("mean_average_precision", "chance_mean_average_precision", "f1_at_3", "f1_at_5")
        assert row == [
            title,
            str(figures["num_words"]),
            "24",
            f"{figures['labels_per_image']:.3f}",
            *(f"{100 * figures[key]:.1f}" if key in figures else "" for key in keys),
        ]
    assert len(rest) == 3 and all(len(row) == 8 for row in rows)
    page = rendered(text)
    assert page.elements.count("table") == 1 and page.elements.count("tr") == 6
    assert "empty_words=" in page.text and "keep_unlabelled=" in page.text
    assert "Held out: 1 of the seen words had no labels in training" in page.text
    assert all(item in page.text for item in report.external_knowledge) and report.external_knowledge


def test_a_report_is_taken_in_every_form(model: ZeroShotClassifier, report: Any, tmp_path: Path) -> None:
    expected = str(model_card(model, report))
    (tmp_path / "report.json").write_text(json.dumps(report.to_dict()))
    for form in (tmp_path, str(tmp_path), tmp_path / "report.json", report.to_dict()):
        assert str(model_card(model, form)) == expected


def test_figures_of_another_model_are_refused(
    model: ZeroShotClassifier, report: Any, scenes: ZeroShotClassifier, tmp_path: Path
) -> None:
    with pytest.raises(
        ValueError, match=r"report must be of this model, .*, got one of a model with image_encoder='ti"
    ):
        model_card(scenes, report)
    larger = report.to_dict() | {"model": report.model | {"num_parameters": 1}}
    with pytest.raises(ValueError, match="got one of a model with num_parameters=1; evaluate this one"):
        model_card(model, larger)
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "other.json").write_text('{"protocols": {}}')
    for form, kind, message in (
        (tmp_path, FileNotFoundError, r"report must be a folder with report\.json, or a JSON file, not found"),
        (tmp_path / "broken.json", ValueError, r"report must be JSON, .*broken\.json cannot be read"),
        (tmp_path / "other.json", ValueError, r"report must have protocols, model, dataset .*other\.json has not"),
        ({"zsl": 1}, ValueError, "report must have protocols, model, dataset .* the one given has not"),
    ):
        with pytest.raises(kind, match=message):
            model_card(model, form)


def test_figures_that_are_no_numbers_are_left_out(model: ZeroShotClassifier, report: Any) -> None:
    content = json.loads(json.dumps(report.to_dict()))
    content["protocols"]["gzsl"] |= {"mean_average_precision": float("nan"), "f1_at_3": None}
    card = model_card(model, content)
    left = [r.metric_type for r in card.data.eval_results if r.metric_config == "gzsl"]
    assert left == ["f1_at_5"] and "nan" not in str(card)


def test_calibrated_figures_have_their_own_row(model: ZeroShotClassifier, report: Any) -> None:
    content = json.loads(json.dumps(report.to_dict()))
    content["protocols"]["gzsl"]["calibrated"] = {"mean_average_precision": 0.5, "f1_at_3": 0.25}
    card = model_card(model, content)
    assert "| GZSL (all words), calibrated |  |  |  | 50.0 |  | 25.0 |  |" in card.text
    found = {r.metric_type: r.metric_value for r in card.data.eval_results if r.metric_config == "gzsl_calibrated"}
    assert found == {"mean_average_precision": 0.5, "f1_at_3": 0.25}


# ------------------------------------------------------------------------------------------------------- what it says


def test_what_is_not_known_is_said(make_model: MakeModel) -> None:
    card = model_card(make_model())
    page = rendered(card.text)
    assert [line[3:] for line in card.text.splitlines() if line.startswith("## ")] == SECTIONS
    assert card.data.license is None and card.data.eval_results is None and card.data.base_model is None
    for sentence in (
        "No report was given: how well this model does is not stated here.",
        "these weights: not stated; ask the owner before you use them",
        "from which these weights may be derived: not recorded",
        "How it was trained is not recorded.",
        "training images and labels: not recorded",
    ):
        assert sentence in page.text
    assert "from_pretrained('FOLDER')" in page.text


def test_what_is_known_is_said(make_model: MakeModel) -> None:
    model = make_model()
    model.heldout_words = ("cat",)
    model.image_encoder.spec = "timm:resnet50.a1_in1k"
    model.image_encoder.body.pretrained_cfg = {"hf_hub_id": "timm/resnet50.a1_in1k"}
    model.recipe = {
        "dataset": {"name": "hugging_face", "path": "owner/photos"},
        "image_encoder": {"spec": "timm:resnet50.a1_in1k"},
        "trainer": {"epochs": 3, "note": "```\n# no heading"},
    }
    model.training_record = {
        "epoch": 2,
        "weights": "averaged",
        "selected_by": "heldout_mean_average_precision",
        "git": "abc123",
        "settings": {"images": "photos, train, 99 images", "val_images": None},
    }
    card = model_card(model, license="cc-by-4.0", repo_id="owner/m", revision="f" * 40)
    assert card.data.base_model == "timm/resnet50.a1_in1k" and card.data.datasets == ["owner/photos"]
    page = rendered(card.text)
    for sentence in (
        "averaged over steps (EMA), of epoch 2, selected by heldout_mean_average_precision",
        "Training images: photos, train, 99 images",
        "Held-out words (1)",
        "Seen words (4)",
        "Unseen words (2)",
        "6 words are stored: 4 seen, 2 unseen.",
        f"from_pretrained('owner/m', revision='{'f' * 40}')",
        f"--model owner/m@{'f' * 40}",
        "New words need the word-vector file named above",
        f"identity {model.text_encoder_identity}",
    ):
        assert sentence in page.text, sentence
    assert page.elements.count("h1") == 1 and page.elements.count("h2") == len(SECTIONS)
    (block,) = re.findall(r"^(`{4,})yaml\n(.*?)\n\1$", card.text, re.DOTALL | re.MULTILINE)
    assert yaml.safe_load(block[1]) == model.recipe
    model.recipe["image_encoder"]["pretrained"] = False
    card = model_card(model)
    assert card.data.base_model is None and "its weights were trained from random ones" in card.text


def test_the_code_of_a_card_runs(
    scenes: ZeroShotClassifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scenes.save_pretrained(tmp_path / "model")
    (tmp_path / "photos").mkdir()
    build_dataset("scenes", split="test", num_images=1)[0]["image"].save(tmp_path / "photos" / "a.png")
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", model_card(scenes).text, re.DOTALL)
    exec(compile(code.replace("FOLDER", "model"), "card", "exec"), {})
    assert "a.png" in capsys.readouterr().out


def test_class_mode_and_models_without_words(make_model: MakeModel) -> None:
    page = rendered(model_card(make_model(num_classes=7)).text)
    assert "scores images against 7 fixed classes" in page.text and "Its classes are fixed" in page.text
    assert "It stores no words." in page.text and "Text encoder" not in page.text
    data = model_card(make_model(num_classes=7)).data
    assert data.pipeline_tag == "image-classification" and "zero-shot" not in data.tags
    wordless = rendered(model_card(make_model(remember=False)).text)
    assert "It stores no words." in wordless.text
    assert "Or on the shell, with any words:" in wordless.text and "--words 'dog,red car'" in wordless.text


def test_long_lists_are_shortened(make_model: MakeModel) -> None:
    model = make_model()
    words = [f"word{i}" for i in range(1000)]
    model.remember_words(Vocabulary(words, seen=words[:700]), torch.zeros(1000, 16))
    text = model_card(model).text
    assert "Seen words (700)" in text and "word299, … and 400 more, all in <code>config.json</code>" in text
    assert "word300," not in text and "word700" in text and "word999" in text


@pytest.mark.parametrize("license", ["Apache 2.0", "", "a\nb: c", "Apache-2.0"])
def test_a_licence_is_an_identifier(license: str, make_model: MakeModel) -> None:
    with pytest.raises(ValueError, match=r"license must be an identifier of the Hub such as 'apache-2\.0', got"):
        model_card(make_model(), license=license)


# ---------------------------------------------------------------------------------------------------------- only text

NASTY = [
    "<script>alert(1)</script>",
    "</p></details><img src=x onerror=alert(1)>",
    "![x](http://evil.example/a.png)",
    "[click](javascript:alert(1))",
    "**bold** _em_ `code` ~~gone~~",
    "a | b",
    "# heading",
    "line\n\n## break\n---\n",
    "&lt;b&gt; &amp;#42;",
    "http://evil.example www.evil.example",
    "snake_case",
    "“q” 'q' \"q\"",
    "زرافة 斑马",
    "\\*x\\*",
    "---\nlicense: mit\n---",
]


def test_words_are_text_and_never_markup(make_model: MakeModel) -> None:
    words = [" ".join(text.split()) for text in NASTY]  # a word is one line
    model, plain = make_model(), make_model()
    model.remember_words(Vocabulary(words, seen=words[:8]), torch.zeros(len(words), 16))
    names = [f"word{i}" for i in range(len(words))]
    plain.remember_words(Vocabulary(names, seen=names[:8]), torch.zeros(len(words), 16))
    card = model_card(model, license="apache-2.0")
    page, other = rendered(card.text), rendered(model_card(plain, license="apache-2.0").text)
    assert page.elements == other.elements and page.links == other.links
    for word in words[2:]:
        assert word in page.text
    assert ModelCard(str(card)).data.to_dict() == model_card(plain, license="apache-2.0").data.to_dict()


def test_names_are_text_and_never_markup(make_model: MakeModel, report: Any) -> None:
    """What a report or a configuration of somebody else says."""
    cards = []
    for nasty in ("name", "<img src=x onerror=alert(1)> **x** | [a](b) `c`\n\n# h"):
        model = make_model()
        model.recipe = {"dataset": {"name": nasty}}
        model.training_record = {"weights": "raw", "epoch": nasty, "selected_by": nasty, "git": nasty}
        content = json.loads(json.dumps(report.to_dict()))
        content |= {"model": {"predictions": nasty}, "protocol": nasty, "external_knowledge": [nasty]}
        content["dataset"] |= {"name": nasty, "split": nasty}
        content["protocols"] = {nasty: content["protocols"]["zsl"] | {"policies": {nasty: nasty}}}
        cards.append(model_card(model, content))
    first, second = (rendered(card.text) for card in cards)
    assert first.elements == second.elements and first.links == second.links
    assert ModelCard(str(cards[1])).data.eval_results[0].dataset_name.startswith("<img src=x")


@settings(max_examples=120)
@given(st.text(st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"]), max_size=40))
def test_any_text_comes_out_as_it_went_in(text: str) -> None:
    line = " ".join(text.split())
    for page in (rendered(f"x {inline(text)} x\n"), rendered(f"<p>\nx {inline(text)} x\n</p>\n")):
        assert page.elements == ["p"] and " ".join(page.text.split()) == " ".join(f"x {line} x".split())
    assert rendered(f"x {inline_code(text)}\n").elements == ["p", "code"]
    cells = rendered(f"| a | b |\n| --- | --- |\n| {inline(text)} | x |\n")
    assert cells.elements.count("td") == 2


@settings(max_examples=100)
@given(st.text("`~ab\n", max_size=30))
def test_a_block_holds_any_text(text: str) -> None:
    page = rendered(f"{fenced(text, 'yaml')}\n\nafter\n")
    assert page.elements == ["pre", "code", "p"] and page.text.strip("\n").endswith("after")
