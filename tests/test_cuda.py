"""On a GPU: what is given there is what the CPU gives. All of it is skipped where there is none.

    python -m pytest tests/test_cuda.py

cuDNN may round the factors of fp32 convolutions to TF32, torch's default: the tests turn it off, so that a difference
is a fault and not a rounding.
"""

import json
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from encoder_families import FAMILIES, small_encoder
from test_training_resume import AUGMENTED, FROZEN, KNOWING, load_state, stop_by_signal, trainer_of
from torch import Tensor
from torch.testing import assert_close

from zsmld import Evaluator, MLDecoder, Predictor, TextEncoder, ZeroShotClassifier, build_dataset
from zsmld.attention import explain
from zsmld.calibration import calibrate
from zsmld.cli import main
from zsmld.decoder import TrainingFreeScorer
from zsmld.decoder.bf16 import Bf16Layer
from zsmld.decoder.folded import fold
from zsmld.decoder.inference import InferenceDecoder
from zsmld.estimator import MLDecoderClassifier
from zsmld.export import export_model, load_exported
from zsmld.features import FeatureCache
from zsmld.losses import asymmetric_loss
from zsmld.predictor.shortlist import learn_shortlist
from zsmld.resources import resource_path
from zsmld.trainer.words import rows_with

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

C, T = 48, 24  # encoder and text widths
SMALL = {"decoder_dim": 64, "num_heads": 4, "feedforward_dim": 96}
HEADS: dict[str, dict[str, Any]] = {
    "shared": {"output": "shared"},
    "cosine": {"output": "cosine"},
    "sum": {"output": "sum"},
    "two layers": {"num_layers": 2},
    "attention over descriptions": {"descriptions": "attention"},
    "classes": {"num_classes": 23, "num_groups": 5},
}


@pytest.fixture(autouse=True)
def exact_products() -> Iterator[None]:
    before, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False
    yield
    torch.backends.cudnn.allow_tf32 = before


def build(kind: str) -> MLDecoder:
    """A head on the CPU with weights as after training."""
    torch.manual_seed(0)
    options = HEADS[kind] if "num_classes" in HEADS[kind] else {"text_dim": T} | HEADS[kind]
    head = MLDecoder(C, **(SMALL | options)).eval()
    with torch.no_grad():
        for parameter in head.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return head


def inputs_of(kind: str, num_images: int = 5, num_words: int = 11) -> tuple[Tensor, ...]:
    """Spatial embeddings (B,S,C), and words (N,T) or (N,K,T) where the head takes them."""
    spatial = torch.randn(num_images, 9, C)
    if "num_classes" in HEADS[kind]:
        return (spatial,)
    return spatial, torch.randn(num_words, 3, T) if "descriptions" in HEADS[kind] else torch.randn(num_words, T)


def close(found: Any, expected: Any, tolerance: float = 1e-4) -> None:
    found, expected = (torch.as_tensor(value).detach().cpu().float() for value in (found, expected))
    assert_close(found, expected, atol=tolerance, rtol=tolerance)


# ---------------------------------------------------------------------------------------------------------- the head


@pytest.mark.parametrize("kind", HEADS)
def test_logits_and_gradients_are_those_of_the_cpu(kind: str) -> None:
    head, inputs, found = build(kind), inputs_of(kind), []
    for device in ("cpu", "cuda"):
        head.to(device).zero_grad()
        logits = head(*(part.to(device) for part in inputs))
        targets = (torch.arange(logits.numel(), device=device).reshape_as(logits) % 4).clamp(max=2) - 1
        asymmetric_loss(logits, targets).backward()
        found.append((logits, {name: parameter.grad.cpu() for name, parameter in head.named_parameters()}))
    close(found[1][0], found[0][0])
    largest = max(float(gradient.abs().max()) for gradient in found[0][1].values())
    for name, gradient in found[0][1].items():
        close(found[1][1][name] / largest, gradient / largest, 1e-5)


@pytest.mark.parametrize("kind", HEADS)
def test_the_inference_form_is_the_head(kind: str) -> None:
    head, (spatial, *words) = build(kind), inputs_of(kind)
    expected = head(spatial, *words)
    fast = InferenceDecoder(head.cuda(), num_positions=9)
    logits = fast(spatial.cuda(), *(fast.compile(part.cuda()) for part in words))
    assert logits.dtype == torch.float32 and logits.is_cuda
    close(logits, expected)
    with pytest.raises(ValueError, match="precision must be 'fp32' or 'bf16' on cuda here, got 'int8'"):
        InferenceDecoder(head, "int8")


@pytest.mark.parametrize("kind", ["shared", "cosine", "sum", "classes"])
@torch.no_grad()
def test_bf16_stays_near_fp32(kind: str) -> None:
    """The bound of `tests/test_inference.py`, on what is rounded here: the rows between the products, too."""
    head, (spatial, *words) = build(kind), inputs_of(kind)
    expected = head(spatial, *words)
    fast = InferenceDecoder(head.cuda(), "bf16", num_positions=9)
    compiled = [fast.compile(part.cuda()) for part in words]
    logits = fast(spatial.cuda(), *compiled)
    assert logits.dtype == torch.float32 and logits.is_cuda
    assert 1e-6 < (logits.cpu() - expected).square().mean().sqrt() / expected.std(1).mean() < 0.03
    with torch.autocast("cuda", torch.bfloat16):
        assert torch.equal(fast(spatial.cuda(), *compiled), logits)


@torch.no_grad()
def test_the_last_norm_and_the_logits_of_bf16_rows_are_fp32() -> None:
    layer, rows = Bf16Layer(fold(build("shared").cuda())), torch.randn(2, 50, 64, device="cuda").bfloat16()
    close(layer._logits(rows), build("shared").shared_fc(build("shared").layers[0].norm3(rows.cpu().float()))[..., 0])


@torch.no_grad()
def test_more_words_and_images_than_are_decoded_at_once() -> None:
    head = build("sum")
    spatial, words = inputs_of("sum", num_images=21, num_words=40_000)
    few = torch.arange(0, 40_000, 997)
    expected = head(spatial, words[few])
    fast = InferenceDecoder(head.cuda())
    close(fast(spatial.cuda(), fast.compile(words.cuda()))[:, few.cuda()], expected)


@torch.no_grad()
def test_a_shortlist_keeps_the_logits_of_the_words_it_decodes() -> None:
    head, (spatial, words) = build("sum").cuda(), inputs_of("sum", num_images=40, num_words=500)
    fast, spatial = InferenceDecoder(head), spatial.cuda()
    compiled = fast.compile(words.cuda())
    full = fast(spatial, compiled)
    some = fast.shortlisted(spatial[:3], compiled, learn_shortlist(full, size=50, num_anchors=20))
    kept = some.isfinite()
    assert kept.any(1).all() and int(kept.sum(1).max()) <= 70
    close(some[kept], full[:3][kept], 1e-5)


@torch.no_grad()
def test_training_free_scorers_are_those_of_the_cpu() -> None:
    torch.manual_seed(0)
    scorer = TrainingFreeScorer(C, T, num_classes=6).eval()
    scorer.set_classes(torch.randn(6, C), torch.randn(6), torch.randn(6, T))
    spatial, words = torch.randn(4, 9, C), torch.randn(7, T)
    expected = scorer(spatial, words)
    close(scorer.cuda()(spatial.cuda(), words.cuda()), expected)
    fast = InferenceDecoder(scorer)
    close(fast(spatial.cuda(), fast.compile(words.cuda())), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_loss_is_computed_in_fp32_under_autocast(dtype: torch.dtype) -> None:
    logits, targets = 8 * torch.randn(6, 40), torch.randint(-1, 2, (6, 40))
    with torch.autocast("cuda", dtype):
        found = asymmetric_loss(logits.cuda(), targets.cuda())
    assert found.dtype == torch.float32
    close(found, asymmetric_loss(logits, targets), 1e-5)


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_image_encoders_are_those_of_the_cpu(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    encoder = small_encoder(name, tmp_path)
    size = encoder.transform.image_size
    images = torch.randn(2, 3, size, size)
    expected = encoder(images)
    close(encoder.cuda()(images.cuda()), expected, 1e-3)


# ------------------------------------------------------------------------------------------------- prediction


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_predictor_scores_as_on_the_cpu(
    num_workers: int, make_model: Callable[..., Any], photos: Path, tmp_path: Path
) -> None:
    model = make_model(output="sum")
    expected = Predictor(model, device="cpu").score(photos / "images")[0]
    predictor = Predictor(model, device="cuda", num_workers=num_workers, batch_size=7)
    assert predictor.device.type == "cuda"
    close(predictor.score(photos / "images")[0], expected, 1e-5)
    close(Predictor(model, device="cuda", precision="bf16").score(photos / "images")[0], expected, 2e-2)
    predictor.add_words(["zebra", "lamp"])
    predictor.remove_words(["dog"])
    predictor.save_pretrained(tmp_path / "saved")
    again = Predictor(ZeroShotClassifier.from_pretrained(tmp_path / "saved"), device="cpu")
    close(predictor.score(photos / "images")[0], again.score(photos / "images")[0], 1e-5)
    assert again.vocabulary.words[-2:] == ("zebra", "lamp")


def test_predict_writes_the_records_of_the_cpu(model_folder: Path, photos: Path, tmp_path: Path) -> None:
    found = []
    for device in ("cpu", "cuda"):
        output = tmp_path / f"{device}.jsonl"
        arguments = [str(photos / "images"), "--model", str(model_folder), "--device", device, "--output", str(output)]
        assert main(["predict", *arguments]) == 0
        found.append([json.loads(line) for line in output.read_text().splitlines()])
    assert len(found[0]) == len(found[1]) == 24
    for ours, expected in zip(found[1], found[0], strict=True):
        assert ours["path"] == expected["path"]
        scores = [dict(zip(record["words"], record["scores"], strict=True)) for record in (ours, expected)]
        assert scores[0] == pytest.approx(scores[1], abs=1e-4)


def test_processes_share_a_gpu_and_their_files_are_those_of_one(
    model_folder: Path, photos: Path, tmp_path: Path
) -> None:
    arguments = ["predict", str(photos / "images"), "--model", str(model_folder), "--device", "cuda"]
    arguments += ["--batch-size", "4"]
    for number, name in enumerate(("one.csv", "two.csv"), 1):
        started_by(f"--nproc-per-node={number}", *arguments, "--output", str(tmp_path / name))
    assert (tmp_path / "two.csv").read_bytes() == (tmp_path / "one.csv").read_bytes()


def started_by(launch: str, *arguments: str) -> None:
    """The command line, started by torchrun."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", launch, "-m", "zsmld", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-6000:]


def test_where_the_head_looked(make_model: Callable[..., Any], images: list[Any]) -> None:
    model, maps = make_model(), []
    for device in ("cpu", "cuda"):
        maps.append(explain(model.to(device), images[0], ["dog", "cat"]).places)
    close(maps[1], maps[0], 1e-5)


# ------------------------------------------------------------------------------------- evaluation and calibration


def test_figures_and_calibrations_are_those_of_the_cpu(make_model: Callable[..., Any], photos: Path) -> None:
    dataset = build_dataset("table", path=photos / "photos.csv", partition=photos / "partition.json", split="test")
    scenes, shipped = build_dataset("scenes", split="val", num_images=200), resource_path("data", "scenes", "model")
    figures, calibrations = [], []
    for device in ("cpu", "cuda"):
        report = Evaluator("gzsl", device=device, num_samples=1).evaluate(make_model(output="sum"), dataset)
        figures.append(report.protocols)
        calibrations.append(calibrate(ZeroShotClassifier.from_pretrained(shipped), scenes, device=device))
    for name, expected in figures[0].items():
        for figure, value in expected.items():
            if isinstance(value, float):
                assert figures[1][name][figure] == pytest.approx(value, abs=1e-6), figure
    assert calibrations[1].standardization == calibrations[0].standardization
    assert calibrations[1].stacking == pytest.approx(calibrations[0].stacking, abs=1e-3)
    assert calibrations[1].thresholds == pytest.approx(dict(calibrations[0].thresholds), abs=1e-2)


# ------------------------------------------------------------------------------------------------------- training


def losses_of(trainer: Any) -> list[float]:
    return [record["loss"] for record in trainer.history]


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_training_reduces_the_loss(precision: str, vectors_path: Path, tmp_path: Path) -> None:
    options = {"epochs": 10, "device": "cuda", "precision": precision, "schedule": "constant", "lr": 3e-3}
    trainer = trainer_of(vectors_path, tmp_path, **options)
    trainer.fit()
    assert np.isfinite(losses_of(trainer)).all() and losses_of(trainer)[-1] < losses_of(trainer)[0]
    saved = ZeroShotClassifier.from_pretrained(tmp_path / "model")
    assert all(tensor.isfinite().all() for tensor in saved.state_dict().values())
    for name, tensor in saved.state_dict().items():
        close(tensor, trainer.model.state_dict()[name], 0)


@pytest.mark.parametrize("options", [AUGMENTED, FROZEN, KNOWING], ids=["augmented", "frozen", "knowing"])
def test_an_interrupted_training_goes_on(options: dict[str, Any], vectors_path: Path, tmp_path: Path) -> None:
    """The device's random numbers, for dropout, go on too."""
    options = options | {"device": "cuda"}
    alone = trainer_of(vectors_path, tmp_path / "whole", **options)
    alone.fit()
    plain = trainer_of(vectors_path, None, **options)
    before = len(rows_with(plain.dataset.targets, plain._words.labels)) if "prior" in options else 0  # to calibrate it
    stop_by_signal(vectors_path, tmp_path / "stopped", before + 10, **options)
    assert load_state(tmp_path / "stopped" / "checkpoint.pt")["random"][0]["cuda"].numel()
    resumed = trainer_of(vectors_path, tmp_path / "stopped", **options)
    resumed.fit(resume=True)
    assert losses_of(resumed) == pytest.approx(losses_of(alone), rel=1e-3)
    for name, tensor in alone.model.state_dict().items():
        if tensor.is_floating_point() and not name.endswith("key_proj.bias"):  # whose gradient is the rounding of zero
            close(resumed.model.state_dict()[name], tensor, 1e-3)


def test_the_scaler_of_fp16_goes_on(vectors_path: Path, tmp_path: Path) -> None:
    options = {"device": "cuda", "precision": "fp16"}
    trainer_of(vectors_path, tmp_path / "whole", **options).fit()
    stop_by_signal(vectors_path, tmp_path / "stopped", 10, **options)
    trainer_of(vectors_path, tmp_path / "stopped", **options).fit(resume=True)
    states = [load_state(tmp_path / name / "checkpoint.pt") for name in ("whole", "stopped")]
    assert states[0]["scaler"]["scale"] < 65536 and states[0]["scheduler"]["last_epoch"] < 12, "nothing overflowed"
    assert states[1]["scaler"] == states[0]["scaler"]
    assert states[1]["scheduler"]["last_epoch"] == states[0]["scheduler"]["last_epoch"]


@pytest.mark.parametrize("cached", [True, False])
def test_one_step_is_that_of_the_cpu(cached: bool, vectors_path: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "epochs": 1,
        "steps_per_epoch": 1,
        "optimizer": "sgd",
        "schedule": "constant",
        "lr": 1e-2,
    }
    options |= {"freeze_image_encoder": True, "ema_decay": 0.0, "val_dataset": None, "holdout_words": 0.0}
    losses, changes = [], []
    for device in ("cpu", "cuda"):
        features = {"features": FeatureCache(tmp_path / device)} if cached else {}
        trainer = trainer_of(vectors_path, None, **options, **features, device=device)
        for module in trainer.model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        before = {name: weight.detach().cpu().clone() for name, weight in trainer.model.decoder.named_parameters()}
        trainer.fit()
        losses.append(losses_of(trainer))
        changes.append(
            {name: weight.detach().cpu() - before[name] for name, weight in trainer.model.decoder.named_parameters()}
        )
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    largest = max(float(change.abs().max()) for change in changes[0].values())
    assert largest > 1e-3
    for name, change in changes[0].items():
        close(changes[1][name] / largest, change / largest, 1e-3)


@pytest.fixture
def recipe(photos: Path, vectors_path: Path, tmp_path: Path) -> Path:
    content = {
        "dataset": {"name": "table", "path": str(photos / "photos.csv"), "partition": str(photos / "partition.json")},
        "image_encoder": {"spec": "timm:test_vit", "pretrained": False},
        "text_encoder": f"vectors:{vectors_path}",
        "decoder": {"decoder_dim": 32, "num_heads": 4, "feedforward_dim": 64},
        "trainer": {"epochs": 2, "batch_size": 4, "steps_per_epoch": 2, "device": "cuda", "log_every": 1},
    }
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.mark.parametrize(
    "options",
    [[], ["trainer.precision=bf16"], ["trainer.precision=fp16"], ["trainer.num_workers=2"]],
    ids=["plain", "bf16", "fp16", "workers"],
)
def test_torchrun_trains_a_recipe_on_nccl(options: list[str], recipe: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    started_by("--nproc-per-node=1", "train", str(recipe), "--output", str(output), *options)
    assert (output / "report" / "report.json").is_file()
    model = ZeroShotClassifier.from_pretrained(output / "model")
    assert all(tensor.isfinite().all() for tensor in model.state_dict().values())


def test_a_compiled_training(recipe: Path, tmp_path: Path) -> None:
    if shutil.which("gcc") is None and shutil.which("clang") is None:
        pytest.skip("torch.compile needs a C compiler")
    arguments = [str(recipe), "--output", str(tmp_path / "run"), "trainer.compile=true", "trainer.precision=bf16"]
    assert main(["train", *arguments]) == 0


# ----------------------------------------------------------------------------------------------------- other doors


def test_a_clip_encodes_words_as_on_the_cpu(tmp_path: Path) -> None:
    import open_clip
    from safetensors.torch import save_file

    config = {
        "embed_dim": 24,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2},
    }
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    torch.manual_seed(0)
    model = open_clip.create_model(f"local-dir:{tmp_path}", load_weights=False)
    save_file(model.state_dict(), tmp_path / "open_clip_model.safetensors")
    found = []
    for device in ("cpu", "cuda"):
        encoder = TextEncoder(f"open_clip:{tmp_path}", device=device, cache_dir=tmp_path / device)
        found.append(encoder.encode_words(["dog", "a red car", "zebra"], ("a photo of a {}.", "{}")))
    assert found[1].device.type == "cpu"  # as from the cache
    close(found[1], found[0], 1e-4)


def test_an_estimator_is_fitted_on_the_gpu_and_kept_on_the_cpu() -> None:
    rng = np.random.default_rng(0)
    X, Y = rng.normal(size=(60, 12)), rng.integers(0, 2, (60, 5))
    options: dict[str, Any] = {"decoder_dim": 16, "num_heads": 2, "feedforward_dim": 32, "random_state": 0}
    model = MLDecoderClassifier(device="cuda", epochs=3, **options).fit(X, Y)
    scores = model.predict_proba(X)
    again = pickle.loads(pickle.dumps(model)).set_params(device="cpu")
    np.testing.assert_allclose(again.predict_proba(X), scores, atol=1e-4)


@pytest.mark.parametrize("format", ["torch_export", "aot_inductor"])
def test_an_exported_program_runs_on_the_gpu(
    format: str, make_model: Callable[..., Any], images: list[Any], tmp_path: Path
) -> None:
    if format == "aot_inductor" and shutil.which("g++") is None:
        pytest.skip("AOTInductor needs a C++ compiler")
    model = make_model(output="sum")
    options = {"device": "cuda"} if format == "aot_inductor" else {}
    report = export_model(model, tmp_path / "out", format=format, **options)  # type: ignore[arg-type]
    assert len(report.checks) == 9
    assert all(parameter.device.type == "cpu" for parameter in model.parameters())  # the model stays where it is
    loaded = Predictor(load_exported(tmp_path / "out", "cuda", trust_program=True), ["zebra", "dog"], device="cuda")
    expected = Predictor(model, ["zebra", "dog"], device="cpu").score(images)[0]
    close(loaded.score(images)[0], expected, 1e-4)
    if format == "aot_inductor":
        with pytest.raises(ValueError, match="device must be 'cuda', for which AOTInductor compiled this model"):
            load_exported(tmp_path / "out", "cpu", trust_program=True)
