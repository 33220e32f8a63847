"""Exported ONNX folders: beside the model, under a Predictor, on the command line, and without torch."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image

import zsmld.export
from zsmld import Predictor, ZeroShotClassifier
from zsmld.calibration import Calibration
from zsmld.cli import main
from zsmld.export import export_model, is_exported, load_exported
from zsmld.export.graph import ExportGraph
from zsmld.export.programs import Program
from zsmld.export.verification import verify

WORDS = ("dog", "cat", "red car", "beach", "boat", "tree", "snow", "bird", "zebra", "lamp", "kite", "cup")
CALIBRATION = Calibration(
    standardization="both",
    trained_words=("dog", "cat", "red car"),
    stacking=0.7,
    reference_words=("beach", "dog", "tree"),
    word_statistics={"dog": (0.3, 1.2), "cat": (-0.2, 0.8)},
    default_statistics=(0.1, 1.1),
    scale=1.7,
    bias=-0.4,
)


@pytest.fixture(scope="module")
def model(make_model) -> ZeroShotClassifier:
    """A word model with all that a checkpoint may carry: a calibration, words in an order of their own, synonyms."""
    model = make_model(output="sum")
    model.calibration = CALIBRATION.to_dict()
    model.prediction = {
        "words": ["boat", "dog", "cat"],
        "synonyms": {"boat": ["beach"], "cat": ["red car"]},
        "thresholds": {"words": {"dog": 0.4}, "default": 0.5},
    }
    return model


@pytest.fixture(scope="module")
def opened(model, tmp_path_factory) -> Path:
    """Words as an input."""
    folder = tmp_path_factory.mktemp("exports") / "opened"
    report = export_model(model, folder)
    assert report.form == "word_embeddings" and report.num_words is None and len(report.checks) == 9
    assert {(check["images"], check["words"]) for check in report.checks} == {
        (images, words) for images in (1, 3, 8) for words in (1, 2, 300)
    }
    assert report.largest_difference < 1e-4
    return folder


@pytest.fixture(scope="module")
def frozen(model, tmp_path_factory) -> Path:
    """The stored words inside, and the preprocessing."""
    folder = tmp_path_factory.mktemp("exports") / "frozen"
    report = export_model(model, folder, words="stored", include_preprocessing=True)
    assert report.form == "frozen" and report.num_words == 3 and report.largest_difference < 1e-4
    assert "3 words, frozen" in report.to_text() and "largest difference" in report.to_text()
    return folder


def run(folder: Path, **inputs: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"))
    return tuple(session.run(["logits", "scores"], {name: value.numpy() for name, value in inputs.items()}))


def pixels_of(model: ZeroShotClassifier, images: list[Image.Image]) -> torch.Tensor:
    fitted = [np.asarray(model.image_encoder.transform.fit(image)) for image in images]
    return torch.from_numpy(np.stack(fitted)).permute(0, 3, 1, 2).contiguous()


# ------------------------------------------------------------------------------------------------------- the file


@pytest.mark.parametrize("num_images", [1, 3])
@pytest.mark.parametrize("num_words", [1, 2, 300])
def test_any_number_of_images_and_words(model, opened, num_images, num_words):
    torch.manual_seed(num_words)
    images, words = torch.randn(num_images, 3, 64, 64), torch.randn(num_words, 16)
    logits, scores = run(opened, images=images, word_embeddings=words)
    with torch.no_grad():
        expected = model(images, words)
    np.testing.assert_allclose(logits, expected.numpy(), atol=1e-4)
    np.testing.assert_allclose(scores, expected.sigmoid().numpy(), atol=1e-5)


def test_words_know_nothing_of_each_other(opened):
    torch.manual_seed(0)
    images, words = torch.randn(2, 3, 64, 64), torch.randn(20, 16)
    order = torch.randperm(20)
    logits, _ = run(opened, images=images, word_embeddings=words)
    permuted, _ = run(opened, images=images, word_embeddings=words[order])
    np.testing.assert_allclose(permuted, logits[:, order], atol=1e-5)
    some, _ = run(opened, images=images[:1], word_embeddings=words[:7])
    np.testing.assert_allclose(some, logits[:1, :7], atol=1e-5)


def test_frozen_scores_are_those_of_a_predictor(model, frozen, images):
    """Calibrated, the best synonym of each word, from pixels."""
    expected, _ = Predictor(model, device="cpu").score(images)
    logits, scores = run(frozen, images=pixels_of(model, images))
    assert logits.shape == (7, 6) and scores.shape == (7, 3)
    np.testing.assert_allclose(scores, expected, atol=1e-5)
    plain, _ = Predictor(model, ["dog", "boat"], device="cpu", calibrated=False, synonyms={}).score(images)
    columns = json.loads((frozen / "words.json").read_text())["columns"]
    assert columns == ["boat", "beach", "dog", "cat", "red car", "tree"]
    found = 1 / (1 + np.exp(-logits[:, [columns.index("dog"), columns.index("boat")]]))
    np.testing.assert_allclose(found, plain, atol=1e-5)


def test_the_query_side_is_folded(frozen, opened):
    """No product of the frozen file has the words' own side left: neither projections of words nor of queries."""

    def layers(folder: Path) -> set[str]:
        nodes = onnx.load(folder / "model.onnx").graph.node
        scopes = [prop.value for node in nodes for prop in node.metadata_props if prop.key.endswith("name_scopes")]
        return {name for name in ("word_proj", "query_proj", "key_proj") if any(f".{name}'" in s for s in scopes)}

    assert layers(opened) == {"word_proj", "query_proj", "key_proj"}
    assert layers(frozen) == {"key_proj"}


def test_the_file_says_what_it_is(frozen, opened):
    for folder in (frozen, opened):
        onnx.checker.check_model(str(folder / "model.onnx"), full_check=True)
    session = onnxruntime.InferenceSession(str(frozen / "model.onnx"))
    said = session.get_modelmeta().custom_metadata_map
    assert json.loads(said["words"]) == ["boat", "dog", "cat"] and said["precision"] == "fp32"
    assert json.loads(said["preprocessing"]) == json.loads((frozen / "preprocessing.json").read_text())
    (images,) = session.get_inputs()
    assert images.type == "tensor(uint8)" and images.shape[1:] == [3, 64, 64] and isinstance(images.shape[0], str)
    session = onnxruntime.InferenceSession(str(opened / "model.onnx"))
    assert "words" not in session.get_modelmeta().custom_metadata_map
    assert [given.name for given in session.get_inputs()] == ["images", "word_embeddings"]


# ------------------------------------------------------------------------------------------------- under a Predictor


def test_a_predictor_scores_any_words(model, opened, images):
    ours = Predictor(model, device="cpu")
    other = Predictor(load_exported(opened, "cpu"), device="cpu")
    assert other.vocabulary == ours.vocabulary and other.synonyms == ours.synonyms
    np.testing.assert_allclose(other.score(images)[0], ours.score(images)[0], atol=1e-5)
    for predictor in (ours, other):
        predictor.add_words(["zebra", "kite"])
        predictor.remove_words(["dog"])
    assert other.vocabulary.words == ("boat", "cat", "zebra", "kite")
    np.testing.assert_allclose(other.score(images)[0], ours.score(images)[0], atol=1e-5)
    with pytest.raises(ValueError, match="shortlist must be left out for an exported model"):
        other.set_words(["dog", "zebra"], synonyms={})
        other.learn_shortlist(images, size=1)
        other.score(images)


def test_a_predictor_scores_frozen_words(model, frozen, images):
    ours = Predictor(model, device="cpu")
    other = Predictor(load_exported(frozen, "cpu"), device="cpu")
    assert other.thresholds == ours.thresholds == {"dog": 0.4}
    np.testing.assert_allclose(other.score(images)[0], ours.score(images)[0], atol=1e-5)
    for predictor in (ours, other):
        predictor.set_words(["cat", "boat"], synonyms={})
    np.testing.assert_allclose(other.score(images)[0], ours.score(images)[0], atol=1e-5)
    with pytest.raises(
        ValueError, match=r"words must be among the 3 that this model was exported with, got \['zebra'\]"
    ):
        other.add_words(["zebra"])
    assert other.vocabulary.words == ("cat", "boat")


def test_what_an_exported_model_cannot(opened, tmp_path):
    model = load_exported(opened, "cpu")
    with pytest.raises(ValueError, match="model must be a checkpoint to be saved, got an exported model"):
        Predictor(model, device="cpu").save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()
    with pytest.raises(ValueError, match="precision must be left out for an exported model, which is fp32, got 'int8'"):
        Predictor(model, device="cpu", precision="int8")
    with pytest.raises(ValueError, match=r"word_embeddings must be \(N, 16\), got \(3, 5\)"):
        model(torch.zeros(1, 3, 64, 64), torch.zeros(3, 5))
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers() and torch.cuda.is_available():
        with pytest.raises(ValueError, match="device must be 'cpu' for this onnxruntime"):
            load_exported(opened, "cuda")


def test_damaged_folders_are_refused(opened, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"folder must hold export\.json, not found in "):
        load_exported(tmp_path)
    broken = tmp_path / "broken"
    shutil.copytree(opened, broken)
    config = json.loads((broken / "export.json").read_text())
    (broken / "export.json").write_text(json.dumps({key: config[key] for key in config if key != "form"}))
    with pytest.raises(ValueError, match="must be complete, it is damaged: KeyError"):
        load_exported(broken)
    for key in ("scores", "heldout_words", "training"):
        (broken / "export.json").write_text(json.dumps({name: config[name] for name in config if name != key}))
        with pytest.raises(ValueError, match=f"must be complete, it is damaged: KeyError.*{key}"):
            load_exported(broken)
    (broken / "export.json").write_text(json.dumps(config))
    embeddings = broken / "word_embeddings.npy"
    content = embeddings.read_bytes()
    np.save(embeddings, np.array([{"runs": "code"}], object), allow_pickle=True)
    for wrong in (embeddings.read_bytes(), content[:-9], b""):
        embeddings.write_bytes(wrong)
        with pytest.raises(ValueError, match=r"word_embeddings\.npy must be an array of numbers, it is damaged"):
            load_exported(broken)
    embeddings.unlink()
    with pytest.raises(FileNotFoundError, match=r"exported folder must hold word_embeddings\.npy"):
        load_exported(broken)
    (broken / "model.onnx").unlink()
    with pytest.raises(FileNotFoundError, match=r"exported folder must hold model\.onnx"):
        load_exported(broken)
    (broken / "model.onnx").write_bytes(b"none")
    with pytest.raises(ValueError, match=r"model\.onnx must be readable, it is damaged"):
        load_exported(broken)


def test_words_and_pixels_that_are_not_the_programs_are_refused(frozen, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(frozen, broken)
    words = json.loads((broken / "words.json").read_text())
    for columns in (["another", *words["columns"]], words["columns"][1:]):
        (broken / "words.json").write_text(json.dumps(words | {"columns": columns}))
        model = load_exported(broken)
        with pytest.raises(
            ValueError, match=f"words that its model scores, which are {len(words['columns'])}, got {len(columns)}"
        ):
            model(torch.zeros(1, 3, 64, 64), model.word_embeddings)
    for own in (["x", *words["words"]], words["words"][1:], words["words"][::-1]):
        (broken / "words.json").write_text(json.dumps(words | {"words": own}))
        with pytest.raises(
            ValueError, match=f"must have in words.json the words it was exported with, .* got {len(own)}"
        ):
            load_exported(broken)
    (broken / "words.json").write_text(json.dumps(words))
    config = json.loads((broken / "export.json").read_text())
    for name, value in (("image_size", 49_152_000), ("mean", [[0.5], 0.5, 0.5])):
        changed = json.loads(json.dumps(config))
        changed["image_encoder"]["transform"][name] = value
        (broken / "export.json").write_text(json.dumps(changed))
        with pytest.raises(ValueError, match=f"it is damaged: ValueError.*{name} must be "):
            load_exported(broken)


# -------------------------------------------------------------------------------------------------- on the command line


def test_predict_gives_the_records_of_the_checkpoint(model, opened, images, tmp_path, capsys):
    model.save_pretrained(tmp_path / "model")
    (tmp_path / "photos").mkdir()
    for place, image in enumerate(images):
        image.save(tmp_path / "photos" / f"{place}.png")
    (tmp_path / "photos" / "broken.jpg").write_bytes(b"no image")
    records = {}
    for name, folder in (("model", tmp_path / "model"), ("export", opened)):
        output = tmp_path / f"{name}.jsonl"
        arguments = ["predict", str(tmp_path / "photos"), "--model", str(folder), "--words", "zebra,dog,cup"]
        assert main([*arguments, "--output", str(output), "--device", "cpu", "--batch-size", "3"]) == 1
        records[name] = [json.loads(line) for line in output.read_text().splitlines()]
    assert len(records["model"]) == 8
    for ours, other in zip(records["model"], records["export"], strict=True):
        assert {**other, "scores": None} == {**ours, "scores": None}
        np.testing.assert_allclose(other["scores"] or [], ours["scores"] or [], atol=1e-5)


def test_the_export_verb(model_folder, tmp_path, capsys):
    output = str(tmp_path / "out")
    arguments = ["export", str(model_folder), "--output", output]
    assert main([*arguments, "--format", "torch_export", "--words", "zebra,dog"]) == 0
    printed = capsys.readouterr().out
    assert "torch_export, fp32, 2 words, frozen" in printed and "largest difference" in printed
    predict = ["predict", *_photo(tmp_path), "--model", output, "--device", "cpu"]
    assert main(predict) == 2 and "--trust-program" in capsys.readouterr().err
    assert main([*predict, "--trust-program"]) == 0 and "zebra" in capsys.readouterr().out
    for more, message in (
        ([], "folder must be free, "),
        (["--precision", "int4"], "precision must be one of ['fp32', 'fp16', 'int8'], got 'int4'; choose one"),
        (["--words", "dog", "--frozen"], "words must be given once, got --words and --frozen; leave one out"),
    ):
        assert main([*arguments, *more]) == 2
        assert message in capsys.readouterr().err


def _photo(folder: Path) -> list[str]:
    Image.new("RGB", (50, 40), "red").save(folder / "photo.png")
    return [str(folder / "photo.png")]


# ------------------------------------------------------------------------------------------------------ without torch

BLOCKED = (
    "import sys, runpy; sys.modules['torch'] = sys.modules['zsmld'] = None; runpy.run_path(sys.argv[1], {}, '__main__')"
)


@pytest.mark.parametrize("form", ["opened", "frozen"])
def test_the_script_needs_no_torch(form, model, images, tmp_path, request):
    """Photos of every kind: upright by EXIF, transparent, 16-bit grey, grey, palette."""
    folder = request.getfixturevalue(form)
    assert len((folder / "score.py").read_text().splitlines()) <= 30
    kinds = {"plain.png": images[0], "grey.png": images[1].convert("L"), "palette.png": images[2].convert("P")}
    transparent = images[3].convert("RGBA")
    transparent.putalpha(120)
    kinds |= {
        "clear.png": transparent,
        "deep.png": Image.fromarray(np.arange(4800, dtype=np.uint16).reshape(60, 80) * 13),
    }
    for name, image in kinds.items():
        image.save(tmp_path / name)
    exif = Image.Exif()
    exif[0x0112] = 6
    images[5].save(tmp_path / "turned.jpg", exif=exif)
    paths = [str(path) for path in sorted(tmp_path.iterdir())]
    code = BLOCKED.replace("sys.argv[1]", "(sys.argv.pop(0), sys.argv[0])[1]")
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder / "score.py"), *paths], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    lines = [line.split("\t") for line in done.stdout.splitlines()]
    assert [line[0] for line in lines] == paths and len(paths) == 6
    # Words of run time are scored as the file has them: without calibration and synonyms, the words of training.
    options = {"words": WORDS[:6], "calibrated": False, "synonyms": {}} if form == "opened" else {}
    for line, ours in zip(lines, Predictor(model, device="cpu", **options).predict(paths, top_k=10), strict=True):
        found = [entry.rsplit(" ", 1) for entry in line[1:]]
        np.testing.assert_allclose([float(score) for _, score in found], ours.scores, atol=1.01e-4)
        assert {word for word, _ in found} == set(ours.words)


@pytest.mark.parametrize("form", ["opened", "frozen"])
def test_the_script_refuses_words_that_are_not_the_models(form, tmp_path, request):
    folder = tmp_path / "exported"
    shutil.copytree(request.getfixturevalue(form), folder)
    words = json.loads((folder / "words.json").read_text())
    (folder / "words.json").write_text(json.dumps(words | {"words": ["x", *words["words"]]}))
    arguments = [sys.executable, str(folder / "score.py"), *_photo(tmp_path)]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=120)
    number = len(words["words"])
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr == f"words.json must hold the {number} words of the model, got {number + 1}; export again\n"
    with pytest.raises(ValueError, match=r"must have in words\.json the words it was exported with"):
        load_exported(folder)


# ---------------------------------------------------------------------------------------------- finished work is kept


def test_what_fails_leaves_what_was_there(model, opened, tmp_path, monkeypatch):
    real = Program.__call__
    monkeypatch.setattr(Program, "__call__", lambda self, *a, **k: tuple(t + 0.01 for t in real(self, *a, **k)))
    kept = tmp_path / "kept"
    shutil.copytree(opened, kept)
    before = {path.name: path.read_bytes() for path in kept.iterdir()}
    options = {"words": ["dog"], "format": "torch_export"}
    with pytest.raises(ValueError, match=r"exported model must give the logits of PyTorch, it differs by 0\.01 "):
        export_model(model, kept, **options, overwrite=True)
    with pytest.raises(FileExistsError, match="holds an export; choose another, or overwrite it"):
        export_model(model, kept, **options)
    assert {path.name: path.read_bytes() for path in kept.iterdir()} == before
    report = export_model(model, kept, **options, overwrite=True, verify=False)
    assert report.largest_difference is None and "not verified" in report.to_text()
    assert is_exported(kept) and [path.name for path in tmp_path.iterdir()] == ["kept"]
    assert not (kept / "word_embeddings.npy").exists()  # of the export that was there
    # From here on only where the finished folder goes is looked at.
    write = lambda model, private, *_: (private / "export.json").write_text("new") and report  # noqa: E731
    monkeypatch.setattr(zsmld.export, "_export", write)
    before, replace = (kept / "export.json").read_bytes(), os.replace
    failing = [None, OSError("disk"), None]  # the old one away, the new one in, the old one back
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", lambda *paths: _fail(failing.pop(0)) or replace(*paths))
        with pytest.raises(OSError, match="disk"):
            export_model(model, kept, **options, overwrite=True)
    assert (kept / "export.json").read_bytes() == before and [path.name for path in tmp_path.iterdir()] == ["kept"]
    if sys.platform != "win32":  # there, administrators alone may make links
        (tmp_path / "link").symlink_to(kept)
        export_model(model, tmp_path / "link", **options, overwrite=True)
        assert (tmp_path / "link").is_symlink() and (kept / "export.json").read_text() == "new"
        assert {path.name for path in tmp_path.iterdir()} == {"kept", "link"}
    (kept / "tags.jsonl").write_text("x")
    with pytest.raises(FileExistsError, match=r"nothing but an export to be overwritten, .* holds \['tags.jsonl'\] as"):
        export_model(model, kept, **options, overwrite=True)
    assert (kept / "tags.jsonl").read_text() == "x"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(FileExistsError, match="holds something else than an export; choose another"):
        export_model(model, tmp_path / "mine", **options, overwrite=True)


def _fail(error: Exception | None) -> None:
    if error is not None:
        raise error


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
@pytest.mark.parametrize("place", [0, 1])
def test_results_that_are_no_numbers_are_refused(model, wrong, place):
    """Also in a precision whose differences are not judged: half precision overflows."""
    graph, pixels, words = ExportGraph(model), torch.zeros(8, 3, 64, 64, dtype=torch.uint8), torch.randn(300, 16)

    def program(images, words, num_words):
        found = list(graph(images, words))
        found[place] = found[place] + wrong
        return found

    with pytest.raises(ValueError, match=r"must give the logits of PyTorch, it differs by (nan|inf) with .* in fp16"):
        verify(program, model, graph, None, pixels, words, "fp16")


def test_a_gpu_that_onnxruntime_cannot_use_is_refused(opened, monkeypatch):
    """It would go on on the CPU."""
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has CUDA")
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr("zsmld.export.programs.resolve_device", torch.device)
    with pytest.warns(UserWarning), pytest.raises(ValueError, match="cannot load its CUDA libraries, got 'cuda'"):
        load_exported(opened, "cuda")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "tflite"}, r"format must be one of \['onnx', 'torch_export', 'aot_inductor'\], got 'tflite'"),
        ({"precision": "bf16"}, r"precision must be one of \['fp32', 'fp16', 'int8'\], got 'bf16'"),
        ({"opset": 11}, "opset must be at least 18, got 11"),
        ({"format": "torch_export", "precision": "int8"}, "format must be 'onnx' with int8 or an opset, got 'torch_ex"),
        ({"calibration_images": "photos"}, "calibration_images must come with precision='int8', got 'fp32'"),
        ({"device": "cuda"}, "device must be 'cpu' for 'onnx', whose file runs on any device, got 'cuda'"),
        ({"words": []}, "words must"),
        ({"words": ["unicorn"]}, "unicorn"),
    ],
)
def test_options_are_checked_first(model, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        export_model(model, tmp_path / "out", **options)
    assert not any(tmp_path.iterdir())


def test_missing_packages_are_named(model, opened, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    for call in (lambda: export_model(model, tmp_path / "out"), lambda: load_exported(opened)):
        with pytest.raises(
            ImportError, match=r'onnxruntime must be installed for ONNX, .*pip install "zsmld\[export\]"'
        ):
            call()


def test_no_compiler_is_named(model, tmp_path, monkeypatch):
    monkeypatch.setattr(zsmld.export, "has_compiler", lambda: False)
    with pytest.raises(ValueError, match="where there is no C\\+\\+ compiler, got 'aot_inductor'"):
        export_model(model, tmp_path / "out", format="aot_inductor")
