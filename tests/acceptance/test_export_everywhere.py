"""What takes too long for every run: ONNX of each head and family of encoders, a compiled library, an environment
without torch.
"""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from encoder_families import FAMILIES, small_encoder
from test_export_graphs import HEADS, SMALL, built

from zsmld import ImageEncoder, MLDecoder, Predictor, Vocabulary, ZeroShotClassifier
from zsmld.export import export_model, load_exported

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_is_onnx(name, tmp_path, images):
    torch.manual_seed(0)
    (tmp_path / "network").mkdir()
    encoder = small_encoder(name, tmp_path / "network")
    model = ZeroShotClassifier(encoder, MLDecoder(encoder.encoder_dim, 16, **SMALL)).eval()
    report = export_model(model, tmp_path / "out")
    assert report.largest_difference < 1e-4 and len(report.checks) == 9


@pytest.mark.parametrize("kind", [*HEADS, "free", "free second", "free attention"])
@pytest.mark.parametrize("form", ["word_embeddings", "frozen"])
def test_every_head_is_onnx(kind, form, tmp_path):
    torch.manual_seed(0)
    model = built(ImageEncoder("timm:test_resnet", pretrained=False, image_size=32).eval(), kind)
    shape = (6, 16) if model.decoder.descriptions == "mean" else (6, 3, 16)
    model.text_encoder = model.text_encoder_identity = "stand-in"
    model.remember_words(Vocabulary(list("abcdef"), seen=list("ab")), torch.randn(shape))
    report = export_model(model, tmp_path / "out", words="stored" if form == "frozen" else None)
    assert report.form == form and report.largest_difference < 1e-3


@pytest.mark.parametrize("opset", [18, 21])
def test_other_opsets(make_model, tmp_path, opset):
    report = export_model(make_model(output="sum"), tmp_path / "out", words="stored", opset=opset)
    assert report.opset == opset and report.largest_difference < 1e-4


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_smaller_files_are_close(make_model, images, tmp_path, precision):
    model = make_model(output="sum")
    full = export_model(model, tmp_path / "fp32")
    report = export_model(
        model, tmp_path / "small", precision=precision, calibration_images=images if precision == "int8" else None
    )
    assert report.bytes < 0.75 * full.bytes and 0 < report.largest_score_difference < 0.1
    expected = Predictor(model, device="cpu").score(images)[0]
    found = Predictor(load_exported(tmp_path / "small", "cpu"), device="cpu").score(images)[0]
    assert np.abs(found - expected).max() < 0.1


@pytest.mark.skipif(shutil.which("g++") is None, reason="AOTInductor needs a C++ compiler")
def test_a_compiled_library(make_model, images, tmp_path):
    model = make_model(output="sum")
    report = export_model(model, tmp_path / "out", format="aot_inductor")
    assert report.largest_difference < 1e-4
    with pytest.raises(ValueError, match="trust_program must be True to load the aot_inductor program"):
        load_exported(tmp_path / "out")
    loaded = load_exported(tmp_path / "out", trust_program=True)
    ours, other = (Predictor(m, ["zebra", "dog"], device="cpu") for m in (model, loaded))
    np.testing.assert_allclose(other.score(images)[0], ours.score(images)[0], atol=1e-5)
    if torch.cuda.is_available():
        with pytest.raises(ValueError, match="device must be 'cpu', for which AOTInductor compiled this model"):
            load_exported(tmp_path / "out", "cuda", trust_program=True)


@pytest.fixture(scope="module")
def bare_python(tmp_path_factory) -> Path:
    """An environment with numpy, pillow and onnxruntime, as a user would make it."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = folder / "bin" / "python"
    install = [python, "-m", "pip", "install", "--quiet", "--constraint", ROOT / "constraints.txt"]
    install += ["numpy", "pillow", "onnxruntime"]
    done = subprocess.run(install, capture_output=True, text=True, timeout=600)
    if done.returncode:
        pytest.skip(f"needs a package index: {done.stderr[-300:]}")
    return python


@pytest.mark.parametrize("options", [{}, {"words": "stored", "include_preprocessing": True}])
def test_the_script_in_an_environment_without_torch(bare_python, make_model, images, tmp_path, options):
    missing = subprocess.run([bare_python, "-c", "import torch"], capture_output=True)
    assert missing.returncode != 0
    model = make_model(output="sum")
    export_model(model, tmp_path / "out", **options)
    paths = []
    for place, image in enumerate(images):
        paths.append(str(tmp_path / f"{place}.jpg"))
        image.save(paths[-1])
    done = subprocess.run([bare_python, tmp_path / "out" / "score.py", *paths], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = [line.split("\t") for line in done.stdout.splitlines()]
    for line, ours in zip(lines, Predictor(model, device="cpu").predict(paths, top_k=10), strict=True):
        assert line[0] == ours.path
        found = dict(entry.rsplit(" ", 1) for entry in line[1:])
        assert set(found) == set(ours.words)
        for word, score in zip(ours.words, ours.scores, strict=True):
            assert abs(float(found[word]) - score) < 1.01e-4
