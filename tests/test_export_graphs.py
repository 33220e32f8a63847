"""What is exported, before it is a file: every kind of head, precision and image encoder, traced and run by torch."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from encoder_families import small_encoder
from torch.testing import assert_close

from zsmld import ImageEncoder, MLDecoder, Predictor, Vocabulary, ZeroShotClassifier, create_model
from zsmld.calibration import Calibration
from zsmld.decoder import TrainingFreeScorer
from zsmld.export import export_model, load_exported
from zsmld.export.formats import capture
from zsmld.export.graph import ExportGraph, PixelNormalization
from zsmld.export.vocabulary import freeze_words

SMALL = {"decoder_dim": 32, "num_heads": 4, "feedforward_dim": 64}


def scorer(encoder_dim: int = 96, **options) -> TrainingFreeScorer:
    """A ConSE scorer with random classes."""
    torch.manual_seed(3)
    made = TrainingFreeScorer(encoder_dim, 16, num_classes=7, **options)
    made.set_classes(torch.randn(7, encoder_dim), torch.randn(7), torch.randn(7, 16))
    return made


HEADS = {
    "shared": {},
    "cosine": {"output": "cosine"},
    "sum, two layers": {"output": "sum", "num_layers": 2},
    "prompts": {"output": "sum", "prompts": True, "unit_positions": True},
    "prior": {"output": "sum", "prior": scorer()},
    "reach": {"output": "sum", "prior": scorer(top_classes=3), "word_reach": 0.3},
    "descriptions": {"output": "sum", "descriptions": "attention"},
}


@pytest.fixture(scope="module")
def encoder() -> ImageEncoder:
    torch.manual_seed(0)
    return ImageEncoder("timm:test_resnet", pretrained=False, image_size=32).eval()


def built(encoder: ImageEncoder, kind: str) -> ZeroShotClassifier:
    """A model with a head of a kind, or a scorer without training."""
    torch.manual_seed(1)
    if kind.startswith("free"):
        options = {"descriptions": kind.split()[1]} if " " in kind else {"standardization": "both"}
        decoder = scorer(**options)
        if "standardization" in options:
            decoder.fit_statistics(torch.randn(4, 4, 96), torch.randn(9, 16))
    else:
        decoder = MLDecoder(96, 16, **SMALL, **copy.deepcopy(HEADS[kind]))
        decoder.standardize_words(torch.randn(30, 16))
        if decoder.word_reach:
            decoder.remember_seen_words(torch.randn(30, 16))
    for parameter in decoder.parameters():  # what starts at zero must be seen as well
        parameter.data += 0.1 * torch.randn_like(parameter)
    return ZeroShotClassifier(encoder, decoder).eval()


def words_of(model: ZeroShotClassifier, num_words: int) -> tuple[torch.Tensor, ...]:
    """(N,T), or (N,3,T) with a mask in which every second word has one description less."""
    generator = torch.Generator().manual_seed(num_words)
    if model.decoder.descriptions == "mean":
        return (torch.randn(num_words, 16, generator=generator),)
    words = torch.randn(num_words, 3, 16, generator=generator)
    words[::2, 2] = 0
    return words, (words != 0).any(2)


@pytest.mark.parametrize("kind", [*HEADS, "free", "free second"])
def test_every_head_with_any_words(encoder, kind):
    """The graph is the model; the model itself is left as it was."""
    model = built(encoder, kind)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    check_any_words(model, ExportGraph(model))
    assert_close(model.state_dict(), before, atol=0, rtol=0)


@pytest.mark.parametrize("kind", ["reach", "descriptions"])  # the others: tests/acceptance
def test_one_trace_serves_any_words(encoder, kind):
    model = built(encoder, kind)
    program = capture(ExportGraph(model), (torch.randn(2, 3, 32, 32), *words_of(model, 3)))
    check_any_words(model, program.module())


def check_any_words(model: ZeroShotClassifier, program: torch.nn.Module) -> None:
    for num_images, num_words in ((1, 1), (3, 2), (2, 300)):
        images, words = torch.randn(num_images, 3, 32, 32), words_of(model, num_words)
        with torch.no_grad():
            expected = model(images, *words)
            logits, scores = program(images, *words)
        assert_close(logits, expected, atol=1e-4, rtol=1e-5)
        assert_close(scores, expected.sigmoid(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", [*HEADS, "free", "free max"])
def test_every_head_with_frozen_words(encoder, kind):
    model = built(encoder, kind)
    words, *mask = words_of(model, 6)
    model.text_encoder = model.text_encoder_identity = "stand-in"
    model.remember_words(Vocabulary(list("abcdef"), seen=list("ab")), words)
    frozen = freeze_words(model, ["f", "b", "c"], None)
    program = ExportGraph(model, frozen)
    for num_images in (1, 3):
        images = torch.randn(num_images, 3, 32, 32)
        with torch.no_grad():
            expected = model(images, words[[5, 1, 2]], *(part[[5, 1, 2]] for part in mask))
            assert_close(program(images)[0], expected, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("groups", [4, None])
def test_class_mode_is_frozen(encoder, groups, tmp_path, images):
    torch.manual_seed(0)
    model = create_model(encoder, num_classes=10, num_groups=groups, **SMALL).eval()
    model.remember_words(Vocabulary([f"class {c}" for c in range(10)]), None)
    report = export_model(model, tmp_path / "out", format="torch_export")
    assert report.form == "classes" and report.num_words == 10 and report.largest_difference < 1e-4
    with pytest.raises(ValueError, match=r"trust_program must be True .* \(--trust-program\), else export to onnx"):
        load_exported(tmp_path / "out", "cpu")
    other = load_exported(tmp_path / "out", "cpu", trust_program=True)
    ours = Predictor(model, device="cpu").score(images)[0]
    np.testing.assert_allclose(Predictor(other, device="cpu").score(images)[0], ours, atol=1e-5)
    with pytest.raises(ValueError, match="words must be the 10 classes of the model in their order"):
        export_model(model, tmp_path / "other", words=["class 1"], format="torch_export")


@pytest.mark.parametrize("standardization", ["none", "per_word", "per_image", "both"])
def test_calibrated_scores(make_model, images, standardization):
    model = make_model(output="sum")
    model.calibration = Calibration(
        standardization,
        trained_words=("dog", "cat"),
        stacking=0.9,
        reference_words=("dog", "beach", "cat"),
        word_statistics={"dog": (0.5, 2.0)},
        default_statistics=(-0.2, 0.7),
        scale=2.0,
        bias=0.3,
    ).to_dict()
    calibration = Calibration.of(model)
    pixels = torch.stack([model.image_encoder.transform(image) for image in images])
    for calibrated in (calibration, None):
        frozen = freeze_words(model, ["cat", "boat", "dog"], calibrated)
        with torch.no_grad():
            found = ExportGraph(model, frozen)(pixels)[1].numpy()
        predictor = Predictor(model, ["cat", "boat", "dog"], device="cpu", calibrated=calibrated is not None)
        np.testing.assert_allclose(found, predictor.score(images)[0], atol=1e-5)


def test_softmax_and_transductive_scores(make_model, tmp_path):
    model = make_model()
    model.scores = "softmax"
    scores = ExportGraph(model)(torch.zeros(2, 3, 64, 64), torch.randn(5, 16))[1]
    assert_close(scores.sum(1), torch.ones(2))
    model.calibration = Calibration("per_word", transductive=True).to_dict()
    with pytest.raises(ValueError, match="calibrated must be False for this model, its calibration is transductive"):
        export_model(model, tmp_path / "out", words="stored", format="torch_export")


def test_pixels_are_normalised_as_the_transform_does(make_model, images):
    transform = make_model().image_encoder.transform
    for image in images:
        pixels = torch.from_numpy(np.array(transform.fit(image))).permute(2, 0, 1)
        found = PixelNormalization(transform.mean, transform.std)(pixels[None])[0]
        assert_close(found, transform(image), atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", list(HEADS))
def test_half_precision_is_close(encoder, kind):
    """Weights in fp16, and the logits within their digits."""
    model = built(encoder, kind)
    graph = ExportGraph(model, half=True)
    halved = {name for name, parameter in graph.named_parameters() if parameter.dtype == torch.float16}
    assert any("image_encoder" in name for name in halved) and any("linear1" in n or "key_proj" in n for n in halved)
    assert not any("prior" in name or "word_" in name for name in halved)
    images, words = torch.randn(3, 3, 32, 32), words_of(model, 20)
    with torch.no_grad():
        expected, found = model(images, *words), graph(images, *words)[0]
    spread = float(expected.std())
    assert 0 < float((found - expected).abs().max()) < 0.05 * max(spread, 1.0)


@pytest.mark.parametrize("name", ["timm:test_vit", "swin"])  # the others: tests/acceptance
def test_families_of_image_encoders(name, tmp_path):
    torch.manual_seed(0)
    encoder = small_encoder(name, tmp_path)
    model = ZeroShotClassifier(encoder, MLDecoder(encoder.encoder_dim, 16, **SMALL)).eval()
    size = encoder.transform.image_size
    program = capture(ExportGraph(model), (torch.randn(2, 3, size, size), torch.randn(3, 16))).module()
    for num_images in (1, 3):
        images, words = torch.randn(num_images, 3, size, size), torch.randn(4, 16)
        with torch.no_grad():
            assert_close(program(images, words)[0], model(images, words), atol=1e-4, rtol=1e-4)


def test_the_guide_shows_the_figures_of_the_report():
    root = Path(__file__).resolve().parent.parent
    report = (root / "evaluation/reports/export.md").read_text(encoding="utf-8")
    rows = [line for line in report.split("## mAP", 1)[1].splitlines() if line.startswith("|")]
    assert len(rows) >= 7
    guide = (root / "docs/export.md").read_text(encoding="utf-8")
    assert not [row for row in rows if row not in guide]
