"""A training that is interrupted, in whatever way, ends with the bits of one that is not; what was saved stays."""

import csv
import errno
import multiprocessing
import os
import pickle
import random
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.sparse import csr_matrix
from torch import Tensor

from zsmld import ImageEncoder, Trainer, Vocabulary, ZeroShotClassifier, create_model
from zsmld.augmentation import QueryAugmentation
from zsmld.decoder import MLDecoder, TrainingFreeScorer
from zsmld.features import FeatureCache
from zsmld.images import ImageAugmentation
from zsmld.trainer import TrainingStopped
from zsmld.trainer.checkpoint import StopSignal, load_state
from zsmld.trainer.devices import build_accelerator
from zsmld.trainer.selection import Selection
from zsmld.trainer.step import Step
from zsmld.trainer.weights import Weights
from zsmld.trainer.words import rows_with

WORDS = ("dog", "cat", "red car", "beach", "boat", "tree")
STEPS = 12  # of each training here: three epochs of four
Change = Callable[[int], None]


def nothing(visit: int) -> None:
    """What happens when an image is visited."""


class Pictures:
    """20 random PIL images, and something that happens when one is visited in this process."""

    name, missing = "pictures", 0

    def __init__(self, on_visit: Change = nothing, seed: int = 0, bad: tuple[int, ...] = (), split: str = "train"):
        rng = np.random.default_rng(seed)
        dense = (rng.random((20, len(WORDS))) < 0.4).astype(np.int8)
        dense[np.arange(20), np.arange(20) % 4] = 1
        self.vocabulary, self.targets = Vocabulary(WORDS, seen=WORDS[:4]), csr_matrix(dense)
        self.pictures = rng.integers(0, 256, (20, 36, 32, 3), dtype=np.uint8)
        self.ids, self.bad, self.split = [f"picture {i}" for i in range(20)], bad, split
        self.on_visit, self.visits = on_visit, 0

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, row: int) -> dict[str, Any]:
        self.visits += 1
        self.on_visit(self.visits)
        if row in self.bad:
            raise ValueError(f"image must be readable, cannot decode {self.ids[row]}")
        image = Image.fromarray(self.pictures[row])
        return {"image": image, "targets": self.targets[row].toarray()[0], "id": self.ids[row]}


def signal_at(visit: int, number: int = signal.SIGTERM) -> Change:
    """Send a signal to this process when it visits that image of a training."""

    def send(now: int) -> None:
        if now == visit:
            signal.raise_signal(number)  # os.kill ends a process on Windows, whatever its handlers

    return send


def model_of(vectors: Path, encoder: str = "test_resnet", prior: bool = False, **decoder: Any) -> ZeroShotClassifier:
    """A tiny model, with dropout and batch statistics."""
    if prior:
        plain = model_of(vectors, encoder, **decoder)
        dims = plain.image_encoder.encoder_dim, plain.decoder.text_dim
        scorer, random = TrainingFreeScorer(*dims, num_classes=9), torch.Generator().manual_seed(0)
        shapes = ((9, dims[0]), (9,), (9, dims[1]))
        scorer.set_classes(*(torch.randn(*shape, generator=random) for shape in shapes))
        head = MLDecoder(**plain.decoder.config() | {"prior": scorer, "word_reach": 0.5})
        return ZeroShotClassifier(plain.image_encoder, head, plain.text_encoder).eval()
    torch.manual_seed(0)
    options = {"decoder_dim": 32, "num_heads": 4, "feedforward_dim": 64, "dropout": 0.2} | decoder
    image_encoder = ImageEncoder(f"timm:{encoder}", pretrained=False, image_size=32)
    return create_model(image_encoder, f"vectors:{vectors}", output="sum", **options).eval()


AUGMENTED = {
    "augmentation": QueryAugmentation(noise=0.2, random_queries=2, captions=2, word_dropout=0.25, mixed=2),
    "image_augmentation": ImageAugmentation(cutout=0.3, horizontal_flip=0.5, min_crop_area=0.5),
}
MIXED = {
    "augmentation": QueryAugmentation(noise=0.2),
    "image_augmentation": ImageAugmentation(mixup=0.4, cutmix=0.4),
    "loss": "binary_cross_entropy",
}
CACHED = {"augmentation": AUGMENTED["augmentation"], "features": FeatureCache(), "freeze_image_encoder": True}
FROZEN = {
    **AUGMENTED,
    "gradient_accumulation": 2,
    "freeze_image_encoder": True,
    "optimizer": "sgd",
    "schedule": "cosine",
}
KNOWING = {"freeze_image_encoder": True, "teacher_words": 4, "distillation": 0.5, "prior": True}
PARTLY = {**AUGMENTED, "freeze_image_encoder": ("conv1", "layer1"), "optimizer": "lamb", "ema_decay": 0.0}


def trainer_of(vectors: Path, output: Path | None, data: Any = None, **options: Any) -> Trainer:
    """A training of three epochs of four steps, of which every third is followed by a checkpoint."""
    encoder, prior = options.pop("encoder", "test_resnet"), options.pop("prior", False)
    settings = {"epochs": 3, "steps_per_epoch": 4, "batch_size": 4, "lr": 1e-3, "ema_decay": 0.9, "device": "cpu"}
    settings |= {"val_dataset": Pictures(seed=1), "holdout_words": 0.25, "log_every": 5, "checkpoint_every": 3}
    data = Pictures(bad=(3,)) if data is None else data
    return Trainer(model_of(vectors, encoder, prior), data, output=output, **(settings | options))


def without_speed(record: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name != "images_per_second"}


def rows(path: Path) -> list[dict[str, Any]]:
    with path.open(newline="") as file:
        return [without_speed(row) for row in csv.DictReader(file)]


def outcome(trainer: Trainer) -> dict[str, Any]:
    """Everything that must not depend on an interruption."""
    output = Path(str(trainer.output))
    state, saved = load_state(output / "checkpoint.pt"), ZeroShotClassifier.from_pretrained(output / "model")
    return {
        "weights": {n: t.clone() for n, t in trainer.model.state_dict().items()},
        "saved": dict(saved.state_dict()),
        "record": {**saved.training_record, "settings": None},
        "model's record": {**trainer.model.training_record, "settings": None},
        "random": state["random"][0]["cpu"],
        "best": (trainer.best_epoch, state["progress"]["best"]),
        "history": [without_speed(record) for record in trainer.history],
        "unreadable": trainer.unreadable,
        **{file: rows(output / f"{file}.csv") for file in ("steps", "log", "unreadable")},
    }


def assert_same_bits(found: dict[str, Any], expected: dict[str, Any]) -> None:
    for part in expected:
        if part in ("weights", "saved"):
            different = [n for n, tensor in expected[part].items() if not torch.equal(found[part][n], tensor)]
            assert found[part].keys() == expected[part].keys() and not different, (part, different)
        elif part == "random":
            assert torch.equal(found[part], expected[part]), "the next random number would be another"
        else:
            assert found[part] == expected[part], part


@pytest.fixture(scope="module")
def whole(vectors_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict[str, Any]]:
    """What comes of a training that nothing interrupts, by its options."""
    known: list[tuple[dict[str, Any], dict[str, Any]]] = []

    def of(**options: Any) -> dict[str, Any]:
        for with_options, found in known:
            if with_options == options:
                return found
        trainer = trainer_of(vectors_path, tmp_path_factory.mktemp("whole"), **options)
        trainer.fit()
        known.append((options, outcome(trainer)))
        return known[-1][1]

    return of


def stop_by_signal(vectors: Path, output: Path, visit: int, **options: Any) -> str:
    trainer = trainer_of(vectors, output, Pictures(signal_at(visit), bad=(3,)), **options)
    with pytest.raises(TrainingStopped) as caught:
        trainer.fit()
    assert caught.value.signal == signal.SIGTERM
    return str(caught.value)


# ---------------------------------------------------------------------------------------------------- the same numbers


@pytest.mark.parametrize("options", [AUGMENTED, MIXED, FROZEN, PARTLY], ids=["augmented", "mixed", "frozen", "partly"])
@pytest.mark.parametrize("visit", [6, 23])
def test_a_signal_in_mid_epoch_changes_no_bit(
    options: dict[str, Any], visit: int, whole: Any, vectors_path: Path, tmp_path: Path
) -> None:
    step = -(-visit // 4)  # the one that was under way is finished
    message = stop_by_signal(vectors_path, tmp_path, visit, **options)
    assert message.startswith(f"training was stopped by SIGTERM after step {step} of 12; what it learnt: {tmp_path}")
    assert message.endswith("checkpoint.pt; go on with --resume (in Python fit(resume=True))")
    resumed = trainer_of(vectors_path, tmp_path, **options)
    resumed.fit(resume=True)
    assert_same_bits(outcome(resumed), whole(**options))
    assert not list(tmp_path.glob(".*"))


def test_a_prior_that_is_calibrated_and_teaches_goes_on(whole: Any, vectors_path: Path, tmp_path: Path) -> None:
    trainer = trainer_of(vectors_path, None, **KNOWING)
    calibrating = len(rows_with(trainer.dataset.targets, trainer._words.labels))  # it reads them once before
    stop_by_signal(vectors_path, tmp_path, calibrating + 6, **KNOWING)
    resumed = trainer_of(vectors_path, tmp_path, **KNOWING)
    resumed.fit(resume=True)
    assert_same_bits(outcome(resumed), whole(**KNOWING))


def test_a_signal_that_comes_with_an_epoch_s_last_step_changes_no_bit(
    whole: Any, vectors_path: Path, tmp_path: Path
) -> None:
    """The epoch is complete, but not measured yet."""
    assert "after step 8 of 12" in stop_by_signal(vectors_path, tmp_path, 31, **AUGMENTED)
    state = load_state(tmp_path / "checkpoint.pt")
    assert state["progress"]["step"] == 8 and len(state["progress"]["history"]) == 1
    resumed = trainer_of(vectors_path, tmp_path, **AUGMENTED)
    resumed.fit(resume=True)
    assert_same_bits(outcome(resumed), whole(**AUGMENTED))


def test_a_cached_training_goes_on(whole: Any, vectors_path: Path, tmp_path: Path, monkeypatch: Any) -> None:
    with_signal(monkeypatch, at_step=5)
    with pytest.raises(TrainingStopped, match="after step 7 of 12"):
        trainer_of(vectors_path, tmp_path, **CACHED).fit()
    monkeypatch.undo()
    resumed = trainer_of(vectors_path, tmp_path, **CACHED)
    resumed.fit(resume=True)
    assert_same_bits(outcome(resumed), whole(**CACHED))


def with_signal(monkeypatch: pytest.MonkeyPatch, at_step: int, *numbers: int) -> None:
    """Signals reach this process within a step; it does the next one before it stops."""
    original = Step.backward

    def backward(self: Step, parts: Any, step: int, num_images: float) -> Tensor:
        if step == at_step:
            for number in numbers or (signal.SIGTERM,):
                signal.raise_signal(number)
        return original(self, parts, step, num_images)

    monkeypatch.setattr(Step, "backward", backward)


@pytest.mark.skipif(sys.platform != "linux", reason="forks its workers, torch and all: on Linux alone")
def test_workers_change_no_bit_and_a_signal_to_the_whole_group_leaves_them_alone(
    whole: Any, vectors_path: Path, tmp_path: Path
) -> None:
    """Ctrl-C, a batch system's end and `timeout` reach the workers that decode, too."""
    process, told = child(vectors_path, tmp_path, waits_at=8)
    while told.recv() < 4:
        pass
    os.killpg(process.pid, signal.SIGTERM)
    last = 4
    while isinstance(last, int):
        last = told.recv()
    assert last.startswith("training was stopped by SIGTERM after step"), last
    process.join(100)
    assert process.exitcode == 0
    resumed = trainer_of(vectors_path, tmp_path, num_workers=2, **AUGMENTED)
    resumed.fit(resume=True)
    assert_same_bits(outcome(resumed), whole(**AUGMENTED))


@pytest.mark.skipif(sys.platform != "linux", reason="forks its workers, torch and all: on Linux alone")
def test_killed_again_and_again_changes_no_bit(whole: Any, vectors_path: Path, tmp_path: Path) -> None:
    """SIGKILL at random moments within steps and between them, until it is done."""
    chance = random.Random(0)
    for until in (2, 4, 6, 9):  # the step before which it is left alone, so that each child gets further
        process, told = child(vectors_path, tmp_path, waits_at=until + 2)
        while told.recv() < until:
            pass
        time.sleep(chance.random() * 0.1)
        os.killpg(process.pid, signal.SIGKILL)
        process.join(100)
        assert process.exitcode == -signal.SIGKILL
    killed = load_state(tmp_path / "checkpoint.pt")["progress"]["step"]
    assert 0 < killed < STEPS
    resumed = trainer_of(vectors_path, tmp_path, **AUGMENTED)
    resumed.fit(resume=True)
    assert_same_bits(outcome(resumed), whole(**AUGMENTED))


def child(vectors: Path, output: Path, waits_at: int) -> tuple[Any, Any]:
    """A process that trains with two workers, in a group of its own; and where it says each step, and why it ends.

    Before one step it waits for a signal: this process may be too slow to send it before all steps are done.
    """
    # Not forked: where any earlier test has started threads of autograd, a forked child cannot train.
    spawn = multiprocessing.get_context("spawn")
    told, tell = spawn.Pipe(duplex=False)
    process = spawn.Process(target=train_in_child, args=(vectors, output, waits_at, tell))
    process.start()
    tell.close()
    return process, told


def train_in_child(vectors: Path, output: Path, waits_at: int, tell: Any) -> None:
    os.setsid()
    multiprocessing.set_start_method("fork", force=True)  # of the workers, as in a process that a person starts
    original = Step.backward

    def backward(self: Step, parts: Any, step: int, num_images: float) -> Tensor:
        tell.send(step)
        stop: Any = signal.getsignal(signal.SIGTERM).__self__  # type: ignore[union-attr]
        until = time.monotonic() + 300  # a child that nobody signals must not outlive the tests
        while step == waits_at and not stop.received and time.monotonic() < until:
            time.sleep(0.01)
        return original(self, parts, step, num_images)

    Step.backward = backward  # type: ignore[method-assign]
    try:
        trainer_of(vectors, output, num_workers=2, **AUGMENTED).fit(resume=True)
    except TrainingStopped as stopped:
        tell.send(str(stopped))


def test_training_at_an_epoch_s_end_goes_on(
    whole: Any, vectors_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is lost between the checkpoint of an epoch and the next one is trained again."""
    original = Step.backward

    def backward(self: Step, parts: Any, step: int, num_images: float) -> Tensor:
        if step == 4:
            raise RuntimeError("the power is gone")
        return original(self, parts, step, num_images)

    monkeypatch.setattr(Step, "backward", backward)
    with pytest.raises(RuntimeError, match="the power is gone"):
        trainer_of(vectors_path, tmp_path, checkpoint_every=None, **AUGMENTED).fit()
    monkeypatch.undo()
    assert load_state(tmp_path / "checkpoint.pt")["progress"]["step"] == 4
    resumed = trainer_of(vectors_path, tmp_path, **AUGMENTED)
    resumed.fit(resume=True)
    assert_same_bits(outcome(resumed), whole(**AUGMENTED))


def test_an_encoder_with_unused_parameters_goes_on(vectors_path: Path, tmp_path: Path) -> None:
    options = {"encoder": "test_convnext", **AUGMENTED}
    alone = trainer_of(vectors_path, tmp_path / "whole", **options)
    alone.fit()
    stop_by_signal(vectors_path, tmp_path / "stopped", 10, **options)
    resumed = trainer_of(vectors_path, tmp_path / "stopped", **options)
    resumed.fit(resume=True)
    assert_same_bits(outcome(resumed), outcome(alone))


@pytest.mark.parametrize("optimizer", ["adam", "adafactor", "nadamw", "muon", "momentum", "rmsprop"])
def test_every_kind_of_optimizer_goes_on(optimizer: str, vectors_path: Path, tmp_path: Path) -> None:
    options = {"optimizer": optimizer, "freeze_image_encoder": True, "epochs": 1, "features": FeatureCache()}
    found = []
    for name, at_step in (("whole", -1), ("stopped", 1)):
        with pytest.MonkeyPatch.context() as patch:
            with_signal(patch, at_step)
            try:
                trainer = trainer_of(vectors_path, tmp_path / name, **options)
                trainer.fit()
            except TrainingStopped:
                trainer = trainer_of(vectors_path, tmp_path / name, **options)
                trainer.fit(resume=True)
        found.append(outcome(trainer))
    assert_same_bits(found[1], found[0])


def test_the_scaler_of_fp16_goes_on(vectors_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the CPU there is one only if asked for: a scale that grows every second step."""

    def with_scaler(*arguments: Any) -> Any:
        accelerator = build_accelerator(*arguments)
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=1024, growth_interval=2)
        return accelerator

    monkeypatch.setattr("zsmld.trainer.build_accelerator", with_scaler)
    alone = trainer_of(vectors_path, tmp_path / "whole", **FROZEN)
    alone.fit()
    stop_by_signal(vectors_path, tmp_path / "stopped", 10, **FROZEN)
    assert load_state(tmp_path / "stopped" / "checkpoint.pt")["scaler"]["scale"] == 2048
    resumed = trainer_of(vectors_path, tmp_path / "stopped", **FROZEN)
    resumed.fit(resume=True)
    assert_same_bits(outcome(resumed), outcome(alone))
    states = [load_state(tmp_path / name / "checkpoint.pt")["scaler"] for name in ("stopped", "whole")]
    assert states[0] == states[1] and states[0]["scale"] == 1024 * 2**6


def test_a_step_that_fp16_skips_moves_no_schedule(
    vectors_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the first steps on a GPU: gradients overflow until the scale has come down."""

    def with_scaler(*arguments: Any) -> Any:
        accelerator = build_accelerator(*arguments)
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=3e38)
        return accelerator

    monkeypatch.setattr("zsmld.trainer.build_accelerator", with_scaler)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # torch warns where a schedule moves before the optimiser
        trainer = trainer_of(vectors_path, tmp_path, schedule="cosine")
        trainer.fit()
    state = load_state(tmp_path / "checkpoint.pt")
    skipped = int(np.log2(3e38 / state["scaler"]["scale"]).round())
    assert 1 <= skipped < STEPS and state["scheduler"]["last_epoch"] == STEPS - skipped
    assert np.isfinite([record["loss"] for record in trainer.history]).all()


# ---------------------------------------------------------------------------------------------------------- signals


def test_a_second_ctrl_c_ends_at_once_and_handlers_are_put_back(
    vectors_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with_signal(monkeypatch, 1, signal.SIGINT, signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        trainer_of(vectors_path, tmp_path).fit()
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before
    assert not (tmp_path / "checkpoint.pt").exists()
    monkeypatch.undo()
    with_signal(monkeypatch, 1, signal.SIGINT)
    with pytest.raises(TrainingStopped, match="stopped by SIGINT after step 3 of 12"):
        trainer_of(vectors_path, tmp_path).fit()
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


def test_a_signal_before_the_first_step_ends_as_it_always_does(vectors_path: Path, tmp_path: Path) -> None:
    """Features are computed before there is anything to keep."""
    data = Pictures(signal_at(2, signal.SIGINT))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores Ctrl-C
    try:
        with pytest.raises(KeyboardInterrupt):
            trainer_of(vectors_path, tmp_path, data, freeze_image_encoder=True, features=FeatureCache()).fit()
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_signal_in_the_last_step_is_told_after_all_is_saved(vectors_path: Path, tmp_path: Path) -> None:
    """Nothing is left to train, but somebody asked the program to end."""
    val = Pictures(signal_at(20 * 2 + 5), seed=1)  # in the third evaluation
    with pytest.raises(TrainingStopped, match="after step 12 of 12"):
        trainer_of(vectors_path, tmp_path, val_dataset=val).fit()
    assert load_state(tmp_path / "checkpoint.pt")["finished"]


def test_a_training_in_another_thread_leaves_signals_alone(vectors_path: Path) -> None:
    found: list[Any] = []
    before = signal.getsignal(signal.SIGTERM)

    def fit() -> None:
        with StopSignal() as stop:
            found.append(signal.getsignal(signal.SIGTERM))
        found.append(stop.received)
        found.append(trainer_of(vectors_path, None, epochs=1).fit())

    thread = threading.Thread(target=fit)
    thread.start()
    thread.join(100)
    assert found[:2] == [before, 0] and isinstance(found[2], ZeroShotClassifier)


# ------------------------------------------------------------------------------------------- what cannot be written


def full(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def full_for_torch(state: Any, file: Any) -> None:
    """Torch's own writer notices a full disk in C++."""
    file.write(b"half of it")
    raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0")


def test_a_full_disk_leaves_the_last_checkpoint(whole: Any, vectors_path: Path, tmp_path: Path) -> None:
    """Whatever fails in writing a checkpoint, the former one is whole, and nothing else is left."""
    for what, broken in (
        ("torch.save", full),
        ("torch.save", full_for_torch),
        ("os.fsync", full),
        ("pathlib.Path.replace", full),
    ):
        output = tmp_path / f"{what}{broken.__name__}"
        stop_by_signal(vectors_path, output, 5, **AUGMENTED)  # after step 2
        before = (output / "checkpoint.pt").read_bytes()
        with pytest.MonkeyPatch.context() as patch:

            def break_it(visit: int, patch: pytest.MonkeyPatch = patch, what: str = what, broken: Any = broken) -> None:
                if visit == 2:
                    patch.setattr(what, broken)

            interrupted = trainer_of(vectors_path, output, Pictures(break_it, bad=(3,)), **AUGMENTED)
            with pytest.raises(OSError, match=r"checkpoint must be written, it cannot be: ") as caught:
                interrupted.fit(resume=True)
        message = f"Last good state: {output}/checkpoint.pt; free some space and go on with --resume"
        assert message in str(caught.value)
        assert (output / "checkpoint.pt").read_bytes() == before and not list(output.glob(".*"))
    resumed = trainer_of(vectors_path, output, **AUGMENTED)
    resumed.fit(resume=True)
    assert_same_bits(outcome(resumed), whole(**AUGMENTED))


@pytest.mark.parametrize("what", ["model", "log", "rows"])
def test_a_full_disk_for_the_model_or_a_log_goes_on_later(
    what: str, whole: Any, vectors_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if what == "model":
        monkeypatch.setattr("safetensors.torch.save", full)
    else:
        target = "zsmld.trainer.log.Log.epoch" if what == "log" else "zsmld.trainer.log.Log.step"
        monkeypatch.setattr(target, full)
    interrupted = trainer_of(vectors_path, tmp_path, checkpoint_every=1, **AUGMENTED)
    with pytest.raises(OSError, match=rf"{'model' if what == 'model' else 'log'} must be written, it cannot be: .*28"):
        interrupted.fit()
    monkeypatch.undo()
    resumed = trainer_of(vectors_path, tmp_path, **AUGMENTED)
    resumed.fit(resume=True)
    assert_same_bits(outcome(resumed), whole(**AUGMENTED))


@pytest.mark.parametrize("poisoned", ["loss", "weights"])
def test_nan_leaves_the_last_checkpoint(
    poisoned: str, whole: Any, vectors_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A NaN in a gradient is met before the weights that it has spoilt are saved."""
    original = Step.backward

    def backward(self: Step, parts: Any, step: int, num_images: float) -> Tensor:
        loss = original(self, parts, step, num_images)
        if step == 5 and poisoned == "weights":
            next(p for p in self.network.parameters() if p.grad is not None).grad.mul_(float("nan"))  # type: ignore
        return loss * float("nan") if step == 5 and poisoned == "loss" else loss

    monkeypatch.setattr(Step, "backward", backward)
    found = "nan" if poisoned == "loss" else "weights that are no numbers"
    where = rf"Last good model: {tmp_path}/model and {tmp_path}/checkpoint.pt"
    with pytest.raises(ValueError, match=rf"loss must be a number, got {found}.* step 5 of epoch 2; lower lr.*{where}"):
        trainer_of(vectors_path, tmp_path, **AUGMENTED).fit()
    monkeypatch.undo()
    assert load_state(tmp_path / "checkpoint.pt")["progress"]["step"] == 4
    resumed = trainer_of(vectors_path, tmp_path, **AUGMENTED)
    resumed.fit(resume=True)
    assert_same_bits(outcome(resumed), whole(**AUGMENTED))


# ---------------------------------------------------------------------------------------------- what is not resumed


def test_other_settings_are_refused_with_the_differences(vectors_path: Path, tmp_path: Path) -> None:
    stop_by_signal(vectors_path, tmp_path, 5)
    other = trainer_of(vectors_path, tmp_path, lr=2e-3, seed=1, data=Pictures(seed=0, split="val"))
    with pytest.raises(
        ValueError, match=r"a resumed training must have the settings of .*checkpoint.pt, got"
    ) as caught:
        other.fit(resume=True)
    text = str(caught.value)
    assert "lr was 0.001 and is 0.002; seed was 0 and is 1; images was 'pictures, train, 20 images" in text
    assert text.endswith("set them back, or start again in another folder")
    free = trainer_of(vectors_path, tmp_path, log_every=1, checkpoint_every=1, num_workers=1)
    assert free.fit(resume=True) is free.model


def test_an_unfinished_training_is_not_overwritten(vectors_path: Path, tmp_path: Path) -> None:
    stop_by_signal(vectors_path, tmp_path, 5)
    with pytest.raises(FileExistsError, match=r"output must not hold an unfinished training, .* is one of 2 steps; go"):
        trainer_of(vectors_path, tmp_path).fit()


def test_a_finished_training_returns_its_model_at_once(whole: Any, vectors_path: Path, tmp_path: Path) -> None:
    trainer_of(vectors_path, tmp_path, **AUGMENTED).fit()
    data = Pictures(bad=(3,))
    again = trainer_of(vectors_path, tmp_path, data, **AUGMENTED)
    assert not again.fit(resume=True).training and data.visits == 0
    assert_same_bits(outcome(again), whole(**AUGMENTED))
    restarted = trainer_of(vectors_path, tmp_path, **AUGMENTED)  # without `resume` it starts again
    restarted.fit()
    assert_same_bits(outcome(restarted), whole(**AUGMENTED))


def test_nothing_to_resume_starts(whole: Any, vectors_path: Path, tmp_path: Path) -> None:
    trainer = trainer_of(vectors_path, tmp_path, **AUGMENTED)
    trainer.fit(resume=True)
    assert_same_bits(outcome(trainer), whole(**AUGMENTED))


def test_a_trainer_that_was_stopped_goes_on_itself(whole: Any, vectors_path: Path, tmp_path: Path) -> None:
    trainer = trainer_of(vectors_path, tmp_path, Pictures(signal_at(22), bad=(3,)), **AUGMENTED)
    with pytest.raises(TrainingStopped):
        trainer.fit()
    trainer.fit(resume=True)
    assert_same_bits(outcome(trainer), whole(**AUGMENTED))


class Code:
    """What a checkpoint must not hold."""


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_damaged_checkpoint_says_so(vectors_path: Path, tmp_path: Path) -> None:
    stop_by_signal(vectors_path, tmp_path, 5)
    path = tmp_path / "checkpoint.pt"
    content = path.read_bytes()
    torch.load(path, weights_only=True)
    for damaged in (b"", b"no checkpoint", content[: len(content) // 2], content[:-100], pickle.dumps(Code())):
        path.write_bytes(damaged)
        for resume in (True, False):
            with pytest.raises(ValueError, match=r"checkpoint .*checkpoint.pt must be readable, it is damaged: "):
                trainer_of(vectors_path, tmp_path).fit(resume)
    for state in ({"format": 0}, [1]):
        torch.save(state, path)
        with pytest.raises(ValueError, match=r"checkpoint .*checkpoint.pt must have format 1, got another"):
            trainer_of(vectors_path, tmp_path).fit(resume=True)


def test_a_checkpoint_with_another_schedule_or_optimizer_says_so(vectors_path: Path, tmp_path: Path) -> None:
    stop_by_signal(vectors_path, tmp_path, 5, schedule="one_cycle")
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    schedule = state["scheduler"]
    for change in (
        {"_schedule_phases": [{"start_lr": "initial_lr"}]},
        {"total_steps": schedule["total_steps"] + 1},
        {"last_epoch": -1},
        {"last_epoch": state["progress"]["step"] + 1},
        {"_last_lr": []},
        {"another": 1},
    ):
        torch.save(state | {"scheduler": schedule | change}, tmp_path / "checkpoint.pt")
        with pytest.raises(
            ValueError, match=r"does not fit: ValueError: the schedule has .*; remove checkpoint\.pt to"
        ):
            trainer_of(vectors_path, tmp_path, schedule="one_cycle").fit(resume=True)
    (group, *others) = state["weights"]["optimizer"]["param_groups"]
    for change in ({"betas": (0.9,)}, {"lr": None}):
        optimizer = state["weights"]["optimizer"] | {"param_groups": [group | change, *others]}
        torch.save(state | {"weights": state["weights"] | {"optimizer": optimizer}}, tmp_path / "checkpoint.pt")
        with pytest.raises(ValueError, match=rf"the optimiser has \['{next(iter(change))}'\] of another kind"):
            trainer_of(vectors_path, tmp_path, schedule="one_cycle").fit(resume=True)
    del group["max_momentum"], group["foreach"]  # as an earlier torch might write it
    torch.save(state, tmp_path / "checkpoint.pt")
    trainer_of(vectors_path, tmp_path, schedule="one_cycle").fit(resume=True)


@pytest.mark.parametrize("schedule", ["one_cycle", "cosine"])
def test_a_number_may_be_whole_in_one_run_and_a_fraction_in_the_other(
    schedule: str, vectors_path: Path, tmp_path: Path
) -> None:
    stop_by_signal(vectors_path, tmp_path, 5, schedule=schedule, weight_decay=0, lr=1)
    trainer_of(vectors_path, tmp_path, schedule=schedule, weight_decay=0.0, lr=1.0).fit(resume=True)


def test_a_checkpoint_without_its_selected_weights_says_so(vectors_path: Path, tmp_path: Path) -> None:
    trainer_of(vectors_path, tmp_path).fit()
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert state["finished"] and state["progress"]["best_weights"]
    state["progress"]["best_weights"] = {}
    torch.save(state, tmp_path / "checkpoint.pt")
    with pytest.raises(ValueError, match=r"best_weights must be those of the network.*; remove checkpoint\.pt to"):
        trainer_of(vectors_path, tmp_path).fit(resume=True)


def test_an_epoch_without_a_figure_can_still_be_the_best(
    vectors_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No validation image with a held-out word could be read: its mAP is NaN in every epoch."""
    monkeypatch.setattr(Selection, "measure", lambda *_: {"heldout_mean_average_precision": float("nan")})
    trainer = trainer_of(vectors_path, tmp_path)
    trainer.fit()
    assert trainer.best_epoch == 1 and (tmp_path / "model").is_dir()


# ------------------------------------------------------------------------------------------------- the parts of it


@pytest.mark.parametrize("head_only", [True, False])
def test_measuring_the_average_leaves_the_trained_weights_and_their_mode(head_only: bool, vectors_path: Path) -> None:
    model = model_of(vectors_path)
    weights = Weights(model, head_only, 0.9, sharded=False)
    assert weights.ema is not None
    weights.trained.train()
    with torch.no_grad():
        for parameter in weights.ema.module.parameters():
            parameter.add_(1)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    shown = weights.evaluated().eval()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model.decoder.training and not shown.decoder.training and shown.decoder is not model.decoder
    for name, tensor in shown.decoder.state_dict().items():
        own = dict(model.decoder.named_parameters()).get(name)
        assert own is None or torch.equal(tensor, own + 1)
    weights.take(weights.of_trained_part(shown))
    assert torch.equal(model.decoder.word_proj.weight, shown.decoder.word_proj.weight)


def test_every_epoch_trains_in_training_mode(vectors_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    modes: list[tuple[bool, ...]] = []
    original = Step.backward

    def backward(self: Step, *arguments: Any) -> Tensor:
        encoder = self.model.image_encoder
        modes.append((self.model.decoder.training, encoder.training, encoder.body.conv1.training))
        return original(self, *arguments)

    monkeypatch.setattr(Step, "backward", backward)
    for frozen, expected in ((True, (True, False, False)), (False, (True, True, True))):
        modes.clear()
        for ema_decay in (0.0, 0.9):
            trainer_of(vectors_path, None, freeze_image_encoder=frozen, ema_decay=ema_decay).fit()
        assert set(modes) == {expected} and len(modes) == 2 * STEPS
    modes.clear()
    trainer_of(vectors_path, None, freeze_image_encoder=("conv1",)).fit()
    assert set(modes) == {(True, True, False)}
