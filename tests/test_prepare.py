"""From a download to figures as a user goes: prepare, recipes on the index, evaluation, calibration, comparison."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import zsmld
import zsmld.evaluator
import zsmld.protocols
from zsmld.cli import main
from zsmld.datasets import READERS, build_dataset, prepare
from zsmld.resources import resource_path

COCO = resource_path("data", "coco", "classes.txt").read_text(encoding="utf-8").splitlines()


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    """A COCO 2017 of 40 training and 12 test images: image i shows categories i and i + 7, of all 80."""
    root = tmp_path / "coco"
    (root / "annotations").mkdir(parents=True)
    categories = [{"id": i + 1, "name": name} for i, name in enumerate(COCO)]
    for split, numbers in (("train2017", range(40)), ("val2017", range(40, 52))):
        (root / split).mkdir()
        images, annotations = [], []
        for i in numbers:
            name = f"{i:012d}.jpg"
            Image.fromarray(np.full((20, 20, 3), 4 * i, np.uint8)).save(root / split / name)
            images.append({"id": i, "file_name": name, "width": 20, "height": 20})
            for j in (i % 80, (i + 7) % 80):
                entry = {"id": 100 * i + j, "image_id": i, "category_id": j + 1, "iscrowd": 0}
                annotations.append(entry | {"area": 50.0, "bbox": [0, 0, 5, 10]})
        content = {"images": images, "annotations": annotations, "categories": categories}
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return root


@pytest.fixture
def prepared(coco: Path, tmp_path: Path) -> Path:
    prepare("coco", coco, tmp_path / "prepared", year=2017, check_counts=False)
    return tmp_path / "prepared"


# ------------------------------------------------------------------------------------------------------- prepare


def test_prepare_says_what_it_found(coco: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "index"
    arguments = ["prepare", "coco", "--root", str(coco), "--output", str(output), "year=2017", "check_counts=false"]
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    assert "train           40        2.0000" in shown and "test            12" in shown
    assert "80 (80 seen, 0 unseen), 48_17 (48 seen, 17 unseen), 65_15 (65 seen, 15 unseen)" in shown
    assert f"dataset: {{name: prepared, path: {output}}}" in shown
    dataset = build_dataset("prepared", path=output, split="test", partition="65_15")
    assert len(dataset) == 12 and len(dataset.vocabulary.unseen) == 15


def test_prepare_refuses_with_everything_that_is_wrong(
    coco: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (coco / "val2017" / f"{45:012d}.jpg").unlink()
    (coco / "train2017" / f"{3:012d}.jpg").write_bytes(b"no picture")
    arguments = ["prepare", "coco", "--root", str(coco), "--output", str(tmp_path / "index"), "year=2017"]
    assert main(arguments) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"zsmld prepare: {coco} must be a complete download of coco, found:\n  - ")
    for part in (
        "must have 118,287 images, got 40",
        "must have 5,000 images, got 12",
        "1 of 52 images are not in",
        "is --missing-images drop here",
    ):
        assert part in err
    assert f"{3:012d}.jpg" in err and not (tmp_path / "index").exists()
    assert main([*arguments, "check_counts=false", "--missing-images", "drop", "--decode", "0"]) == 0
    assert "missing       1 of 12 images of test" in capsys.readouterr().out


def test_a_reader_that_meets_an_unreadable_file_reports_it_with_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reader(root: Path, problems: list[str]) -> None:
        problems.append("the list is empty")
        (root / "folder").read_text()

    (tmp_path / "folder").mkdir()
    monkeypatch.setitem(READERS, "odd", reader)
    with pytest.raises(ValueError, match=r"(?s)complete download of odd, found:\n  - the list is empty\n  - .*folder"):
        prepare("odd", tmp_path)
    monkeypatch.setitem(READERS, "odd", lambda root, problems: None)
    with pytest.raises(ValueError, match="nothing to make an index of"):
        prepare("odd", tmp_path)


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"name": "cocoa"}, ValueError, "dataset must be one of .*'coco'.*, got 'cocoa'"),
        ({"missing_images": "ignore"}, ValueError, "missing_images must be 'error' or 'drop', got 'ignore'"),
        ({"crowds": "drop"}, ValueError, r"dataset 'coco' takes .*'crowd'.*, got \['crowds'\] besides"),
        ({"root": "nowhere"}, FileNotFoundError, "root must be where coco was downloaded to, not found: nowhere"),
        ({"num_decoded": -3}, ValueError, "num_decoded must not be negative, got -3"),
        ({"output": __file__}, FileExistsError, "output must be a folder, .* is a file"),
    ],
)
def test_what_cannot_be_prepared_is_refused(coco: Path, options, error, message) -> None:
    with pytest.raises(error, match=message):
        prepare(**{"name": "coco", "root": coco} | options)


def test_arguments_that_a_dataset_needs_are_named() -> None:
    with pytest.raises(ValueError, match=r"dataset 'coco' must be given \['root', 'split'\], got \['partition'\]"):
        build_dataset("coco", partition="48_17")


@pytest.mark.parametrize("name", sorted(READERS))
def test_options_of_every_dataset_are_explained(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prepare", name, "--options"]) == 0
    shown = capsys.readouterr().out
    import inspect

    for option in list(inspect.signature(READERS[name]).parameters)[2:]:
        assert option in shown, f"{name} must explain {option}"


def test_prepare_needs_a_place(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prepare", "coco"]) == 2
    assert "--root and --output must be given" in capsys.readouterr().err


# ----------------------------------------------------------------------------------------- train, evaluate, compare


def recipe(path: Path, prepared: Path, vectors: Path, **dataset: object) -> Path:
    options = ", ".join(f"{key}: {value}" for key, value in {"name": "prepared", "path": prepared, **dataset}.items())
    path.write_text(
        f"dataset: {{{options}}}\n"
        "image_encoder: {spec: timm:test_resnet, pretrained: false, image_size: 64}\n"
        f"text_encoder: vectors:{vectors}\n"
        "decoder: {decoder_dim: 32, num_heads: 4, feedforward_dim: 64}\n"
        "trainer: {epochs: 1, steps_per_epoch: 2, batch_size: 8, holdout_words: 0.03, device: cpu}\n"
        "protocol: {name: coco_gzsl_48_17}\n"
    )
    return path


def test_a_prepared_index_is_trained_evaluated_calibrated_and_compared(
    prepared: Path, tmp_path: Path, make_vectors, capsys: pytest.CaptureFixture[str]
) -> None:
    vectors = make_vectors(tmp_path / "words.npz", tuple(COCO))
    options = {"partition": "48_17", "val_fraction": 0.3, "exclude_unseen_images": "true"}
    run = tmp_path / "run"
    assert main(["train", str(recipe(tmp_path / "r.yaml", prepared, vectors, **options)), "--output", str(run)]) == 0
    data = json.loads((run / "data.json").read_text())
    images = data["train"]["manifest"]["images"]
    assert images["without_a_seen_word"] + images["with_an_unseen_word"] > 0
    assert images["listed"] == sum(number for name, number in images.items() if name != "listed")
    assert data["train"]["manifest"]["policies"]["exclude_unseen_images"] is True

    capsys.readouterr()
    assert main(["calibrate", str(run / "model"), "--device", "cpu", "-k", "2"]) == 0
    assert "default threshold" in capsys.readouterr().out
    reports = []
    for name in ("a", "b"):
        reports.append(str(tmp_path / name))
        assert main(["evaluate", str(run / "model"), "--output", reports[-1], "--samples", "0", "--device", "cpu"]) == 0
    written = json.loads((tmp_path / "a" / "report.json").read_text())
    assert written["protocols"]["gzsl"]["num_words"] == 65 and "calibrated" in written["protocols"]["gzsl"]
    assert written["dataset"]["manifest"]["policies"]["partition"] == "48_17"
    capsys.readouterr()
    output = tmp_path / "comparison.json"
    assert main(["compare", *reports, "--resamples", "50", "--output", str(output)]) == 0
    assert "+0.0" in capsys.readouterr().out and json.loads(output.read_text())
    assert main(["compare", *reports, "--output", str(tmp_path / "c.txt")]) == 2
    assert "--output must end in .md or .json" in capsys.readouterr().err
    photo = prepared.parent / "coco" / "val2017" / f"{44:012d}.jpg"
    assert main(["predict", str(photo), "--model", str(run / "model"), "--threshold", "calibrated"]) == 0


@pytest.mark.parametrize("protocol, num_words", [("coco_gzsl_48_17", 65), ("coco_supervised", 80)])
def test_the_partition_of_an_index_follows_from_the_protocol(
    prepared: Path, tmp_path: Path, protocol: str, num_words: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """README: `zsmld evaluate --logits S.parquet --targets prepared/coco --protocol coco_gzsl_48_17 --published`."""
    import pandas as pd

    dataset = build_dataset("prepared", path=prepared, split="test", partition="48_17" if num_words == 65 else "80")
    logits = np.random.default_rng(0).standard_normal((12, num_words))
    frame = pd.DataFrame(logits, columns=list(dataset.vocabulary.words))
    frame["id"] = [str(image_id) for image_id in dataset.ids]
    frame.sample(frac=1, random_state=0).to_parquet(tmp_path / "S.parquet")
    arguments = ["--logits", str(tmp_path / "S.parquet"), "--targets", str(prepared), "--published"]
    output = tmp_path / "out" / "report.json"
    assert main(["evaluate", *arguments, "--protocol", protocol, "--output", str(output)]) == 0
    figures = list(json.loads(output.read_text())["protocols"].values())[-1]
    assert figures["num_words"] == num_words and figures["num_images"] == 12
    expected = zsmld.evaluator.evaluate_scores(
        logits, dataset.targets.toarray(), dataset.vocabulary, zsmld.protocols.PROTOCOLS[protocol]
    )
    assert figures["mean_average_precision"] == list(expected.values())[-1]["mean_average_precision"]


@pytest.mark.parametrize("option", ["--targets", "--partition", "--words-file"])
def test_options_of_predictions_are_refused_beside_a_model(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "data/scenes/model", option, "x.json"]) == 2
    assert f"{option} must come with --scores or --logits" in capsys.readouterr().err
