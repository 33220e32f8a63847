"""The command line, run in this process."""

import csv
import json
import multiprocessing
import os
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from scipy.sparse import csr_matrix

import zsmld
import zsmld.baseline
from zsmld.calibration import calibrate
from zsmld.cli import main
from zsmld.cli.arguments import build_parser
from zsmld.datasets.loader import WorkerDied
from zsmld.features import FeatureCache
from zsmld.recipe import Recipe, recipe_names

VERBS = sorted(next(a for a in build_parser()._actions if a.dest == "verb").choices)


@pytest.fixture
def recipe_file(photos: Path, vectors_path: Path) -> Path:
    """A recipe that trains a tiny model on the photos in about a second."""
    content = {
        "dataset": {"name": "table", "path": str(photos / "photos.csv"), "partition": str(photos / "partition.json")},
        "image_encoder": {"spec": "timm:test_resnet", "pretrained": False, "image_size": 64},
        "text_encoder": f"vectors:{vectors_path}",
        "decoder": {"decoder_dim": 32, "num_heads": 4, "feedforward_dim": 64},
        "trainer": {"epochs": 2, "batch_size": 4, "steps_per_epoch": 2, "device": "cpu", "holdout_words": 0.25},
    }
    path = photos.parent / "tiny.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


# ---------------------------------------------------------------------------------------------- help, version, recipes


def test_verbs_are_there() -> None:
    assert {"demo", "predict", "train", "evaluate", "recipes"} <= set(VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_help_has_an_example(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([verb, "--help"])
    shown = capsys.readouterr().out
    assert caught.value.code == 0 and f"usage: zsmld {verb}" in shown and f"example:\n  zsmld {verb}" in shown


def test_no_verb_welcomes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("zsmld scores images against any list of words.") and "zsmld predict photos/" in shown


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"zsmld {zsmld.__version__}\n"


def test_unknown_verb_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["predikt"])
    assert caught.value.code == 2 and "predikt" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["import"])
    assert "did you mean import-weights?" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["train", "evaluate", "calibrate", "prepare"])
def test_overrides_are_never_required(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    if verb == "evaluate":  # whose model is optional as well
        assert main([verb]) == 2
    else:
        with pytest.raises(SystemExit):
            main([verb])
    assert "overrides" not in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["demo"],
        ["train", "scenes_zsl"],
        ["evaluate", "scenes"],
        ["calibrate", "scenes"],
        ["prepare", "table", "--root", "t.csv"],
    ],
)
def test_a_file_in_the_place_of_the_output_is_refused_first(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("afile").write_text("mine")
    assert main([*arguments, "--output", "afile"]) == 2
    wanted = f"zsmld {arguments[0]}: --output must be a folder, afile is a file; choose another\n"
    assert capsys.readouterr() == ("", wanted)
    assert [path.name for path in tmp_path.iterdir()] == ["afile"] and Path("afile").read_text() == "mine"


def test_calibrating_what_is_no_folder_needs_an_output(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["calibrate", "scenes"]) == 2
    assert "--output must be given with the model scenes, which is no folder of yours" in capsys.readouterr().err


def test_recipes_are_listed_with_their_headers(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes"]) == 0
    shown = capsys.readouterr().out
    for name in recipe_names():
        assert f"{name}\n  expected result: " in shown
    assert shown.count("  command:") == len(recipe_names())


def test_recipes_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["recipes", "copy", "custom"]) == 0
    assert (tmp_path / "custom.yaml").read_text().startswith("# Source: ")
    assert "zsmld train custom.yaml" in capsys.readouterr().out
    assert main(["recipes", "copy", "custom"]) == 2
    assert "custom.yaml must not exist yet, it does" in capsys.readouterr().err
    for name in ("custm", None):
        assert main(["recipes", "copy", *([name] if name else [])]) == 2
        err = capsys.readouterr().err
        assert f"name must be a bundled recipe's, got {name or 'none'}; " in err and "`zsmld recipes` lists them" in err
        assert ("did you mean custom?" in err) == (name == "custm")


# ------------------------------------------------------------------------------------------------------------ predict


def test_predict_on_the_screen(model_folder: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = str(photos / "images" / "000.png")
    assert main(["predict", image, "--model", str(model_folder), "--words", "dog, zebra,red car", "--top-k", "2"]) == 0
    out, err = capsys.readouterr()
    (line,) = out.splitlines()
    assert line.startswith(f"{image}  ") and err == ""
    ranked = line.removeprefix(f"{image}  ").split("  ")
    assert len(ranked) == 2 and {entry.rsplit(" ", 1)[0] for entry in ranked} <= {"dog", "zebra", "red car"}
    assert main(["predict", image, "--model", str(model_folder), "--threshold", "1"]) == 0
    assert "(no word reaches the threshold)" in capsys.readouterr().out


def test_predict_jsonl_is_a_record_a_line(model_folder: Path, photos: Path, tmp_path: Path) -> None:
    output = tmp_path / "new" / "tags.jsonl"
    assert main(["predict", str(photos / "images"), "--model", str(model_folder), "--output", str(output)]) == 0
    records = [json.loads(line) for line in output.read_text().splitlines()]
    assert [Path(record["path"]).name for record in records] == [f"{i:03d}.png" for i in range(24)]
    for record in records:
        assert list(record) == ["path", "words", "scores", "labels", "error"] and record["error"] is None
        assert len(record["words"]) == 5 and record["scores"] == sorted(record["scores"], reverse=True)
    words = zsmld.ZeroShotClassifier.from_pretrained(model_folder).vocabulary.words
    assert all([words[label] for label in record["labels"]] == record["words"] for record in records)


def test_predict_csv_and_an_unreadable_image(
    model_folder: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "images" / "010.png").write_bytes(b"broken")
    (tmp_path / "words.txt").write_text("zebra\n\ndog\n")
    output = tmp_path / "tags.csv"
    arguments = ["--model", str(model_folder), "--words-file", str(tmp_path / "words.txt"), "--output", str(output)]
    assert main(["predict", str(photos / "images"), *arguments]) == 1
    assert "1 of 24 images could not be read" in capsys.readouterr().err
    with output.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 24 and list(rows[0]) == ["path", "words", "scores", "labels", "error"]
    assert "cannot decode" in rows[10]["error"] and rows[10]["words"] == rows[10]["scores"] == ""
    assert {tuple(sorted(row["words"].split("|"))) for i, row in enumerate(rows) if i != 10} == {("dog", "zebra")}
    assert all(row["error"] == "" for i, row in enumerate(rows) if i != 10)


def test_predict_shows_the_error_and_goes_on(
    model_folder: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [str(photos / "images" / "000.png"), str(photos / "none.png"), str(photos / "images" / "001.png")]
    assert main(["predict", *paths, "--model", str(model_folder)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and "not found" in lines[1] and "not found" not in lines[0] + lines[2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["IMAGE", "--model", "no/such/model"],
            "model must be an existing folder or a Hub id 'owner/name', not found: no",
        ),
        (["IMAGE", "--model", "MODEL", "--words", "dog,dog"], "words must be distinct, got ['dog'] more than once"),
        (["IMAGE", "--model", "MODEL", "--words", "unheard-of"], "words must have a vector in words.npz"),
        (["IMAGE", "--model", "MODEL", "--words", "dog", "--words-file", "x"], "got --words and --words-file"),
        (["IMAGE", "--model", "MODEL", "--words-file", "none.txt"], "none.txt"),
        (["IMAGE"], "--model must be given, got none"),
        (
            ["IMAGE", "--model", "MODEL", "--output", "tags.xlsx"],
            "--output must end in .jsonl, .csv or .parquet, got tags.xlsx",
        ),
        (["IMAGE", "--model", "MODEL", "--top-k", "0"], "top_k must be at least 1 or None, got 0"),
        (["IMAGE", "--model", "MODEL", "--threshold", "2"], "threshold must be in [0, 1], got 2.0"),
        (["IMAGE", "--model", "MODEL", "--device", "tpu"], "device must be auto or one of"),
        (["no/*.png", "--model", "MODEL"], "images must be an existing file, a folder with images or a glob"),
    ],
)
def test_predict_refuses(
    arguments: list[str], message: str, model_folder: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {"IMAGE": str(photos / "images" / "000.png"), "MODEL": str(model_folder)}
    assert main(["predict", *(places.get(a, a) for a in arguments)]) == 2
    out, err = capsys.readouterr()
    assert err.startswith("zsmld predict: ") and message in err and out == "" and "Traceback" not in err


def test_a_folder_where_a_file_should_be_is_refused(
    model_folder: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = str(photos / "images" / "000.png")
    assert main(["predict", image, "--model", str(model_folder), "--words-file", str(tmp_path)]) == 2


# -------------------------------------------------------------------------------------------------- train and evaluate


def test_train_then_evaluate(
    recipe_file: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert main(["train", str(recipe_file), "trainer.lr=2e-4", "--output", str(run)]) == 0
    shown = capsys.readouterr().out
    assert "of 2 was selected" in shown and f"report: {run}" in shown
    assert len((run / "log.csv").read_text().splitlines()) == 3
    report = json.loads((run / "report" / "report.json").read_text())
    assert set(report["protocols"]) == {"zsl", "gzsl"} and report["protocols"]["zsl"]["num_words"] == 2
    card = (run / "model" / "README.md").read_text()
    assert f"{100 * report['protocols']['zsl']['mean_average_precision']:.1f}" in card
    model = zsmld.ZeroShotClassifier.from_pretrained(run / "model")
    assert model.recipe["trainer"]["lr"] == 2e-4 and model.vocabulary.words == ("dog", "cat", "red car", "beach")

    output = tmp_path / "report"
    arguments = [str(run / "model"), "--output", str(output), "--samples", "1", "--device", "cpu"]
    assert main(["evaluate", *arguments]) == 0
    assert f"report: {output}" in capsys.readouterr().out
    again = json.loads((output / "report.json").read_text())
    assert again["protocols"] == report["protocols"]  # the saved model gives the figures of the trained one
    assert (output / "report.html").is_file()

    (photos / "images" / "000.png").write_bytes(b"broken")
    assert main(["evaluate", *arguments, "--protocol", "zsl", "--split", "all"]) == 1
    partial = json.loads((output / "report.json").read_text())
    assert set(partial["protocols"]) == {"zsl"} and partial["protocols"]["zsl"]["num_images"] == 23
    assert partial["dataset"]["num_unreadable"] == 1 and partial["dataset"]["unreadable"][0]["id"] == "000.png"
    capsys.readouterr()
    assert main(["evaluate", *arguments, "--protocol", "coco_gzsl_48_17"]) == 2
    assert "protocol coco_gzsl_48_17 needs 48 seen and 17 unseen words" in capsys.readouterr().err
    assert main(["evaluate", *arguments, "--protocol", "zls"]) == 2
    assert "protocol.name: unknown 'zls'; did you mean 'zsl'?" in capsys.readouterr().err


def test_print_config_is_a_recipe(recipe_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", str(recipe_file), "trainer.epochs=9", "--print-config", "--output", str(tmp_path / "x")]) == 0
    shown = capsys.readouterr().out
    content = yaml.safe_load(shown)
    assert content["trainer"]["epochs"] == 9 and content["trainer"]["seed"] == 0  # defaults are shown too
    assert not (tmp_path / "x").exists()
    (tmp_path / "printed.yaml").write_text(shown)
    assert main(["train", str(tmp_path / "printed.yaml"), "--print-config"]) == 0
    assert capsys.readouterr().out == shown


def test_train_refuses_with_every_reason(recipe_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", str(recipe_file), "trainer.lrr=1", "decoder.output=softmax"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("zsmld train: recipe must be valid, got:")
    assert "trainer: unknown 'lrr'; did you mean 'lr'?" in err and "decoder.output must be" in err
    assert main(["train", "no_such_recipe"]) == 2
    assert "not found: no_such_recipe" in capsys.readouterr().err
    assert main(["train", str(recipe_file), "dataset.path=none.csv"]) == 2
    assert "path must be an existing table, not found: none.csv" in capsys.readouterr().err


def test_train_with_an_unreadable_photo_ends_with_1(
    recipe_file: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ids = zsmld.build_dataset("table", path=photos / "photos.csv", split="train").ids.to_pylist()
    (photos / "images" / ids[0]).write_bytes(b"broken")
    overrides = ["trainer.steps_per_epoch=6", "dataset.test_fraction=0", "dataset.val_fraction=0"]
    overrides += ["trainer.holdout_words=0"]
    assert main(["train", str(recipe_file), *overrides, "--output", str(tmp_path / "run")]) == 1
    assert f"left out {ids[0]}: image must be readable, cannot decode" in capsys.readouterr().err
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file()


def test_evaluate_needs_a_recipe_in_the_model(model_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(model_folder)]) == 2
    assert "must name its dataset in its recipe, it has none" in capsys.readouterr().err


def test_interrupt_is_no_traceback(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(zsmld.recipe.Recipe, "load", interrupted)
    assert main(["train", "custom"]) == 130
    assert capsys.readouterr().err == "zsmld train: interrupted\n"


def test_python_m_zsmld(tmp_path: Path) -> None:
    import subprocess
    import sys

    done = subprocess.run([sys.executable, "-m", "zsmld", "--version"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stdout == f"zsmld {zsmld.__version__}\n"


def test_a_letter_that_the_output_lacks_ends_no_run() -> None:
    """Windows gives a pipe one of its code pages."""
    import os
    import subprocess
    import sys

    command = [sys.executable, "-m", "zsmld", "predict", "--help"]
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "COLUMNS": "100"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)
    assert (done.returncode, done.stderr) == (0, "")
    assert "\\u2026" in done.stdout


def test_an_image_of_any_mode_is_predicted(model_folder: Path, tmp_path: Path) -> None:
    for mode in ("1", "L", "P", "RGBA", "CMYK", "I;16"):
        Image.new(mode, (9, 9)).save(tmp_path / f"{mode.replace(';', '')}.tiff")
    assert main(["predict", str(tmp_path), "--model", str(model_folder), "--output", str(tmp_path / "t.jsonl")]) == 0
    assert len((tmp_path / "t.jsonl").read_text().splitlines()) == 6


def test_overrides_may_stand_after_options(recipe_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", str(recipe_file), "--print-config", "trainer.epochs=7"]) == 0
    assert "epochs: 7" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["train", str(recipe_file), "--print-confg", "trainer.epochs=7"])
    assert "unrecognized arguments: --print-confg" in capsys.readouterr().err


@pytest.mark.parametrize("words", ["", " , "])
def test_an_empty_word_list_is_refused(
    words: str, model_folder: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict", str(photos / "images"), "--model", str(model_folder), "--words", words]) == 2
    assert "words must have at least one word, got none" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore:.*words of the partition are in no row")
def test_real_photos_train_and_predict(real: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Forty COCO photos, the real MobileNetV2 and MiniLM: the line of README's "Your own photos"."""
    lines = (real / "coco_photos" / "labels.csv").read_text().splitlines()[:41]
    (tmp_path / "photos.csv").write_text("\n".join(lines) + "\n")
    arguments = [
        f"dataset.path={tmp_path / 'photos.csv'}",
        f"dataset.root={real / 'coco_photos' / 'images'}",
        f"dataset.partition={real / 'coco_photos' / 'zero_shot_partitions.json'}#48/17",
        "image_encoder.spec=timm:mobilenetv2_100",
        f"image_encoder.checkpoint_path={real / 'weights' / 'mobilenetv2_100_tf2_ptq.safetensors'}",
        "image_encoder.model_kwargs={pad_type: same}",
        "image_encoder.mean=[0.5, 0.5, 0.5]",
        "image_encoder.std=[0.5, 0.5, 0.5]",
        "decoder.decoder_dim=64",
        "trainer.epochs=2",
        "trainer.batch_size=8",
        "trainer.device=cpu",
    ]
    assert main(["train", "custom", *arguments, "--output", str(tmp_path / "run")]) == 0
    shown = capsys.readouterr().out
    assert "ZSL (unseen words)" in shown and "GZSL (all words)" in shown
    photos = sorted((real / "coco_photos" / "images").iterdir())[:3]
    output = tmp_path / "tags.jsonl"
    words = ["--words", "zebra,stop sign,violin", "--output", str(output)]
    assert main(["predict", *map(str, photos), "--model", str(tmp_path / "run" / "model"), *words]) == 0
    records = [json.loads(line) for line in output.read_text().splitlines()]
    assert [record["path"] for record in records] == [str(photo) for photo in photos]
    assert all(sorted(record["words"]) == ["stop sign", "violin", "zebra"] for record in records)


# --------------------------------------------------------------------------------------------------- without training


@pytest.fixture
def scorer_settings(vectors_path: Path, tmp_path: Path) -> list[str]:
    """ConSE over a tiny random network, whose thousand classes go by the words that have vectors."""
    (tmp_path / "classes.txt").write_text("background\n" + "\n".join(["dog", "cat, bird", "snow", "tree"] * 250))
    return [
        "pretrained=false",
        "image_encoder.image_size=64",
        f"text_encoder=vectors:{vectors_path}",
        f"scorer.class_names={tmp_path / 'classes.txt'}",
    ]


@pytest.mark.parametrize("place", ["end", "behind the images", "behind the templates"])
def test_predict_without_training(
    place: str, photos: Path, tmp_path: Path, scorer_settings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "tags.jsonl"
    made: dict[str, Any] = {}
    create = zsmld.baseline.create_scorer
    monkeypatch.setattr(zsmld.baseline, "create_scorer", lambda *a, **given: made.update(given) or create(*a, **given))
    settings = [*scorer_settings, "scorer.top_positions=3"]
    arguments = {
        "end": ["IMAGES", "--templates", "simple", *settings],
        "behind the images": ["IMAGES", *settings, "--templates", "simple"],
        "behind the templates": ["--templates", "simple", *settings, "--top-k", "2", "IMAGES"],
    }[place]
    options = ["--words", "dog,zebra,red car", "--model", "conse:timm:test_resnet", "--output", str(output)]
    images = str(photos / "images")
    if place == "end":
        arguments = [*arguments[:1], *options, *arguments[1:]]
    elif place == "behind the images":
        arguments = [*arguments, *options]
    else:
        arguments = [*options, *arguments]
    assert main(["predict", *(images if a == "IMAGES" else a for a in arguments)]) == 0
    records = [json.loads(line) for line in output.read_text().splitlines()]
    assert len(records) == 24 and all(record["error"] is None for record in records)
    assert made["top_positions"] == 3 and made["templates"] == "simple" and made["image_encoder"] == {"image_size": 64}


def test_predict_takes_descriptions_and_templates(
    model_folder: Path,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given: dict[str, Any] = {}
    create = zsmld.Predictor.__init__
    monkeypatch.setattr(
        zsmld.Predictor, "__init__", lambda self, *a, **options: given.update(options) or create(self, *a, **options)
    )
    (tmp_path / "d.json").write_text('{"zebra": ["a striped animal"]}')
    image, model = str(photos / "images" / "000.png"), ["--model", str(model_folder), "--words", "dog,zebra"]
    assert main(["predict", image, *model, "--templates", "a {}.", "{}!"]) == 0
    assert given["templates"] == ["a {}.", "{}!"] and given["descriptions"] is None
    # Word vectors have no embedding of a sentence: what arrives at the text encoder is refused by it.
    assert main(["predict", image, *model, "--descriptions", str(tmp_path / "d.json")]) == 2
    assert given["descriptions"] == {"zebra": ("a striped animal",)}
    assert "text_encoder must be a sentence encoder to encode descriptions" in capsys.readouterr().err
    for option, value, message in (
        ("--descriptions", "none.json", "descriptions must be an existing JSON file, not found: none.json"),
        ("--templates", "simpel", "templates must be sentences with one {} each, got ['simpel']"),
    ):
        assert main(["predict", image, *model, option, value]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "messages"),
    [
        (
            ["--model", "clip:ViT-B-16/openai"],
            ["words must be given with --words or --words-file, clip:ViT-B-16/openai"],
        ),
        (
            ["--model", "conse:timm:test_resnet", "--words", "a", "scorer.top_position=3", "image_encoder.imagesize=3"],
            ["scorer: unknown 'top_position'; did you mean 'top_positions'?", "did you mean 'image_size'?"],
        ),
        (
            ["--model", "clip:RN50/openai", "--words", "a", "scorer.views=all", "text_encoder=3", "pretrained=maybe"],
            [
                "scorer.views must be",
                "got 'all'",
                "text_encoder must be str, got 3",
                "pretrained must be bool, got 'maybe'",
            ],
        ),
        (
            ["--model", "clip:RN50/openai", "--words", "a", "scorer.temperature=3", "scroer.bias=1", "scorer=3"],
            ["scorer must have keys, as in scorer.…=…, got 3", "setting: unknown 'scroer'; did you mean 'scorer'?"],
        ),
        (
            ["--model", "MODEL", "scorer.bias=1"],
            ["settings must come with --model clip:… or conse:…, got ['scorer.bias=1']"],
        ),
        (
            ["--model", "clip:RN50/openai", "--words", "a"],
            ["weights of open_clip:RN50/openai must be on this machine or"],
        ),
    ],
)
def test_scorers_are_refused_with_every_reason(
    arguments: list[str], messages: list[str], model_folder: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = str(photos / "images" / "000.png")
    assert main(["predict", image, *(str(model_folder) if a == "MODEL" else a for a in arguments)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("zsmld predict: ") and "Traceback" not in err
    for message in messages:
        assert message in err


def test_evaluate_without_training(
    photos: Path, tmp_path: Path, scorer_settings: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "report"
    dataset = [
        "dataset.name=table",
        f"dataset.path={photos / 'photos.csv'}",
        f"dataset.partition={photos / 'partition.json'}",
    ]
    arguments = ["conse:timm:test_resnet", *dataset, *scorer_settings, "--split", "all", "--output", str(output)]
    assert main(["evaluate", *arguments, "--protocol", "gzsl", "protocol.top_k=[1]", "scorer.views=local"]) == 0
    report = json.loads((output / "report.json").read_text())
    assert set(report["protocols"]) == {"zsl", "gzsl"} and "f1_at_1" in report["protocols"]["gzsl"]
    assert report["model"]["output"] == "conse" and report["protocols"]["gzsl"]["num_images"] == 24
    capsys.readouterr()

    assert main(["evaluate", "conse:timm:test_resnet", *scorer_settings]) == 2
    assert "conse:timm:test_resnet must name its dataset in its recipe, it has none; name it" in capsys.readouterr().err
    wrong = ["dataset.name=table", "dataset.pth=x", "scorer.view=x", "--protocol", "gzls"]
    assert main(["evaluate", "conse:timm:test_resnet", *wrong]) == 2
    err = capsys.readouterr().err
    for message in ("dataset: unknown 'pth'", "dataset.path must be given", "did you mean 'views'?", "unknown 'gzls'"):
        assert message in err


def test_evaluate_a_model_without_a_recipe(
    model_folder: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Any model whose recipe names no dataset takes one here; one that was saved as a scorer is such."""
    dataset = [
        "dataset.name=table",
        f"dataset.path={photos / 'photos.csv'}",
        f"dataset.partition={photos / 'partition.json'}",
    ]
    arguments = ["evaluate", str(model_folder), *dataset, "--split", "all", "--output", str(tmp_path / "report")]
    assert main(arguments) == 0
    assert "ZSL (unseen words)" in capsys.readouterr().out
    assert main([*arguments, "scorer.views=local"]) == 2
    assert "overrides must be of dataset and protocol for a model without a recipe" in capsys.readouterr().err


# --------------------------------------------------------------------------------------------------- workers that die


class Deadly:
    """Six pictures, each of which kills the worker that reads it."""

    name, split, missing = "deadly", "val", 0

    def __init__(self) -> None:
        words = ("dog", "cat", "red car", "beach", "boat", "tree")  # of `make_model`
        self.vocabulary, self.targets = zsmld.Vocabulary(words, seen=words[:4]), csr_matrix(np.eye(6, dtype=np.int8))

    def __len__(self) -> int:
        return 6

    def __getitem__(self, row: int) -> None:
        assert multiprocessing.parent_process() is not None, "a worker must read it, not the process of the tests"
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
@pytest.mark.parametrize("num_workers", [1, 2])
@pytest.mark.parametrize("door", ["evaluate", "calibrate", "features in memory", "features on disk"])
def test_a_worker_that_dies_ends_every_door_in_a_sentence(
    door: str, num_workers: int, make_model: Any, tmp_path: Path
) -> None:
    model, options = make_model(), {"device": "cpu", "num_workers": num_workers}
    with pytest.raises(WorkerDied, match=f"num_workers={num_workers} processes must live .*one died.*fewer workers"):
        if door == "evaluate":
            zsmld.Evaluator("zsl", **options).evaluate(model, Deadly())
        elif door == "calibrate":
            calibrate(model, Deadly(), heldout_words=["beach"], **options)
        else:
            cache = FeatureCache(tmp_path) if door == "features on disk" else FeatureCache()
            cache.extract(model.image_encoder, Deadly(), **options)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
@pytest.mark.parametrize("verb", ["evaluate", "calibrate"])
def test_a_worker_that_dies_ends_a_command_in_a_sentence(
    verb: str, make_model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = make_model()
    model.heldout_words, model.recipe = ("beach",), {"dataset": {"name": "scenes"}, "image_encoder": {"spec": "a:b"}}
    model.save_pretrained(tmp_path / "model")
    monkeypatch.setattr(Recipe, "build_dataset", lambda *_: Deadly())
    arguments = [str(tmp_path / "model"), "--output", str(tmp_path / "output"), "--device", "cpu", "--num-workers", "2"]
    assert main([verb, *arguments]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith(f"zsmld {verb}: num_workers=2 processes must live to decode images, one died")
    assert said.endswith("try again, with fewer workers where memory is short")
    assert not (tmp_path / "output").exists()
