"""Training in many processes: the gradients, weights and figures of one process that has the whole batch.

Each scenario below is run in this process and, all of them in one start of torchrun, in two processes of gloo; this
file is the script that torchrun starts.
"""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from scipy.sparse import csr_matrix
from torch import Tensor

from zsmld import ImageEncoder, MLDecoder, Trainer, Vocabulary, ZeroShotClassifier, build_dataset, create_model
from zsmld.augmentation import QueryAugmentation
from zsmld.decoder import TrainingFreeScorer
from zsmld.features import FeatureCache
from zsmld.losses import build_loss
from zsmld.trainer import TrainingStopped
from zsmld.trainer import weights as weights_module
from zsmld.trainer.order import Order
from zsmld.trainer.step import Step

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch knows no processes")
NO_TORCHRUN = "torchrun needs libuv, which torch on Windows lacks (pytorch PR 175316)"

WORDS = ("dog", "cat", "red car", "beach", "boat", "tree")
LOSS_BUILDERS = ("asymmetric", "binary_cross_entropy", "two_way", "ranking", "cross_entropy")
ALL_FIVE = QueryAugmentation(noise=0.2, random_queries=2, captions=2, word_dropout=0.25, mixed=2)


class Pictures:
    """Random tensor images (3,size,size) of the six words, the first four seen."""

    name, missing = "pictures", 0

    def __init__(self, size: int, seed: int = 0, bad: tuple[int, ...] = (), split: str = "train") -> None:
        rng = np.random.default_rng(seed)
        dense = (rng.random((24, len(WORDS))) < 0.4).astype(np.int8)
        dense[np.arange(24), np.arange(24) % 4] = 1
        self.vocabulary, self.targets = Vocabulary(WORDS, seen=WORDS[:4]), csr_matrix(dense)
        self.images = torch.from_numpy(rng.standard_normal((24, 3, size, size)).astype(np.float32))
        self.ids, self.bad, self.split = [f"{'picture' if seed == 0 else 'other'} {i}" for i in range(24)], bad, split
        self.on_visit: Callable[[int], None] = lambda row: None

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, row: int) -> dict[str, Any]:
        self.on_visit(row)
        if row in self.bad:
            raise ValueError(f"image must be readable, cannot decode {self.ids[row]}")
        return {"image": self.images[row], "targets": self.targets[row].toarray()[0], "id": self.ids[row]}


def model_of(vectors: Path, encoder: str = "test_vit", size: int = 32, seed: int = 0) -> ZeroShotClassifier:
    """A tiny model without dropout; test_vit and test_convnext have no batch statistics, test_resnet has."""
    torch.manual_seed(seed)
    kwargs = {"depth": 2} if encoder == "test_vit" else None
    image_encoder = ImageEncoder(f"timm:{encoder}", pretrained=False, image_size=size, model_kwargs=kwargs)
    sizes = {"decoder_dim": 32, "num_heads": 4, "feedforward_dim": 64, "dropout": 0.0}
    return create_model(image_encoder, f"vectors:{vectors}", output="sum", **sizes).eval()


def run(model: ZeroShotClassifier, data: Any, resume: bool = False, **options: Any) -> dict[str, Any]:
    """Train; what came of it, and the gradients of the first step as the optimiser gets them."""
    small = {"epochs": 2, "batch_size": 8, "lr": 1e-3, "schedule": "constant", "ema_decay": 0.0, "device": "cpu"}
    trainer = Trainer(model, data, **(small | options))
    gradients: dict[str, Tensor] = {}
    backward = Step.backward

    def spy(self: Step, *arguments: Any) -> Tensor:
        loss = backward(self, *arguments)
        if not gradients:
            for name, parameter in self.network.named_parameters():
                if parameter.grad is not None:
                    gradients[name.removeprefix("module.")] = weights_module._whole(parameter.grad).clone()
        return loss

    Step.backward = spy  # type: ignore[method-assign]
    stopped = None
    try:
        trainer.fit(resume)
    except TrainingStopped as error:
        stopped = str(error)
    finally:
        Step.backward = backward  # type: ignore[method-assign]
    history = [{k: v for k, v in record.items() if k != "images_per_second"} for record in trainer.history]
    weights = {name: tensor.detach().clone() for name, tensor in trainer.model.state_dict().items()}
    found = {"gradients": gradients, "weights": weights, "history": history, "unreadable": trainer.unreadable}
    return found | {"stopped": stopped, "parameters_are_plain": not any(_shares(trainer.model))}


def _shares(module: torch.nn.Module) -> Iterator[bool]:
    yield from (weights_module._is_share(parameter) for parameter in module.parameters())


def rows_of_process(process: int, step: int) -> tuple[int, ...]:
    """The images that one of two processes has in a step of 8 of 24 images, seed 0."""
    *_, (rows, _) = Order(np.arange(24), 8, 0).share(0, step + 1, process, 2, 1)
    return tuple(int(row) for row in rows)


# --------------------------------------------------------------------------------------------------------- scenarios


def head(vectors: Path, folder: Path) -> dict[str, Any]:
    """A frozen encoder, all query augmentations, and images that cannot be read: in step 0 all those of process 1."""
    data = Pictures(32, bad=(*rows_of_process(1, 0), rows_of_process(0, 1)[0]))
    options = {"freeze_image_encoder": True, "augmentation": ALL_FIVE, "ema_decay": 0.9, "output": folder}
    val = Pictures(32, seed=1, bad=(2,))
    return run(model_of(vectors), data, val_dataset=val, holdout_words=0.25, log_every=1, **options)


def head_sum(vectors: Path, folder: Path) -> dict[str, Any]:
    """The same with the sum over the images, clipped."""
    options = {"freeze_image_encoder": True, "augmentation": ALL_FIVE, "loss_options": {"reduction": "sum"}}
    return run(model_of(vectors), Pictures(32, bad=(3,)), max_grad_norm=0.5, optimizer="sgd", **options)


def whole(vectors: Path, folder: Path) -> dict[str, Any]:
    """All weights are trained."""
    return run(model_of(vectors), Pictures(32), augmentation=ALL_FIVE, optimizer="sgd", lr=1e-2)


def whole_sum(vectors: Path, folder: Path) -> dict[str, Any]:
    """All weights, the sum over the images, and half of the encoder's blocks frozen."""
    options = {"loss_options": {"reduction": "sum"}, "freeze_image_encoder": ("blocks.0",), "optimizer": "sgd"}
    return run(model_of(vectors), Pictures(32), lr=1e-4, **options)


def accumulated(vectors: Path, folder: Path) -> dict[str, Any]:
    """`whole` in two parts a step."""
    options = {"optimizer": "sgd", "lr": 1e-2, "gradient_accumulation": 2}
    return run(model_of(vectors), Pictures(32), augmentation=ALL_FIVE, **options)


def knowing(vectors: Path, folder: Path) -> dict[str, Any]:
    """A head with a prior that is calibrated and teaches, distillation, two parts a step; process 1 reads nothing."""
    return run(knowing_model(vectors), Pictures(32, bad=rows_of_process(1, 0)), **KNOWING)


KNOWING = {"freeze_image_encoder": True, "teacher_words": 4, "distillation": 0.5, "gradient_accumulation": 2}


def knowing_model(vectors: Path) -> ZeroShotClassifier:
    """A tiny model whose head has a prior."""
    plain = model_of(vectors)
    encoder, random = plain.image_encoder, torch.Generator().manual_seed(0)
    prior = TrainingFreeScorer(encoder.encoder_dim, plain.decoder.text_dim, num_classes=9)
    sizes = ((9, encoder.encoder_dim), (9,), (9, plain.decoder.text_dim))
    prior.set_classes(*(torch.randn(*size, generator=random) for size in sizes))
    options = plain.decoder.config() | {"output": "cosine", "prior": prior, "word_reach": 0.5}
    return ZeroShotClassifier(encoder, MLDecoder(**options), plain.text_encoder).eval()


def unused(vectors: Path, folder: Path) -> dict[str, Any]:
    """An encoder with parameters that the map does not need."""
    return run(model_of(vectors, "test_convnext", 64), Pictures(64), epochs=1)


def cached(vectors: Path, folder: Path) -> dict[str, Any]:
    """From features that are computed once, by both processes, on disk; one image cannot be read."""
    cache = FeatureCache(folder / "features", dtype="fp32")
    return run(model_of(vectors), Pictures(32, bad=(3,)), freeze_image_encoder=True, features=cache)


def sharded(vectors: Path, folder: Path) -> dict[str, Any]:
    """FSDP with averages and validation; blocks are sharded on their own, as large ones are."""
    data, during = Pictures(32), []
    with small_shards():
        backward = Step.backward

        def spy(self: Step, *arguments: Any) -> Tensor:
            loss = backward(self, *arguments)
            during.append([name for name, p in self.network.named_parameters() if not weights_module._is_share(p)])
            return loss

        Step.backward = spy  # type: ignore[method-assign]
        try:
            found = run(model_of(vectors), data, **_options(folder, fsdp=True))
        finally:
            Step.backward = backward  # type: ignore[method-assign]
    return found | {"not_shares": during}


def _options(folder: Path, fsdp: bool) -> dict[str, Any]:
    options = {"val_dataset": Pictures(32, seed=1), "holdout_words": 0.25, "ema_decay": 0.9, "lr": 1e-4}
    return options | {"augmentation": ALL_FIVE, "output": folder, "steps_per_epoch": 3, "fsdp": fsdp}


def sharded_head(vectors: Path, folder: Path) -> dict[str, Any]:
    """FSDP of a head alone, in two parts a step, clipped, one process without readable images in the first."""
    data = Pictures(32, bad=rows_of_process(1, 0))
    options = {"freeze_image_encoder": True, "max_grad_norm": 0.1, "gradient_accumulation": 2}
    return run(model_of(vectors), data, fsdp=True, ema_decay=0.9, **options)


def sharded_resumed(vectors: Path, folder: Path) -> dict[str, Any]:
    """`sharded` stopped in the second epoch, and resumed."""
    return _stopped_and_resumed(vectors, folder, fsdp=True)


def sharded_then_alone(vectors: Path, folder: Path) -> dict[str, Any]:
    """`sharded` stopped in the second epoch; a process alone resumes it later."""
    return _stopped_and_resumed(vectors, folder, fsdp=True, resumed=False)


def uninterrupted(vectors: Path, folder: Path) -> dict[str, Any]:
    """`sharded` without shards."""
    return run(model_of(vectors), Pictures(32), **_options(folder, fsdp=False))


def resumed(vectors: Path, folder: Path) -> dict[str, Any]:
    """`uninterrupted`, stopped in the second epoch, and resumed."""
    return _stopped_and_resumed(vectors, folder, fsdp=False)


def _stopped_and_resumed(vectors: Path, folder: Path, fsdp: bool, resumed: bool = True) -> dict[str, Any]:
    """Only the last process gets the signal."""
    options = _options(folder, fsdp)
    data, visits = Pictures(32), []
    mine = int(os.environ.get("RANK", "0")) + 1 == int(os.environ.get("WORLD_SIZE", "1"))

    def stop(row: int) -> None:
        visits.append(row)
        if mine and len(visits) == 24 // int(os.environ.get("WORLD_SIZE", "1")) + 1:
            signal.raise_signal(signal.SIGTERM)  # os.kill ends a process on Windows, whatever its handlers

    data.on_visit = stop
    with small_shards():
        first = run(model_of(vectors), data, **options)
        found = run(model_of(vectors), Pictures(32), resume=True, **options) if resumed else first
    return found | {"stopped": first["stopped"]}


def batch_statistics(vectors: Path, folder: Path) -> dict[str, Any]:
    """An encoder with batch norm: each process has its own statistics, but one model is measured."""
    options = {"val_dataset": Pictures(64, seed=1), "holdout_words": 0.25, "ema_decay": 0.9, "output": folder}
    return run(model_of(vectors, "test_resnet", 64), Pictures(64), **options)


def other_weights(vectors: Path, folder: Path) -> dict[str, Any]:
    """The processes made models of their own, at random; the main process's is trained."""
    return run(model_of(vectors, seed=int(os.environ.get("RANK", "0"))), Pictures(32), freeze_image_encoder=True)


def other_weights_sharded(vectors: Path, folder: Path) -> dict[str, Any]:
    """So with shards."""
    return run(model_of(vectors, seed=int(os.environ.get("RANK", "0"))), Pictures(32), fsdp=True)


@contextmanager
def small_shards() -> Iterator[None]:
    """Blocks of a tiny model are sharded as those of a large one."""
    former, weights_module._MIN_SHARDED = weights_module._MIN_SHARDED, 1000
    yield
    weights_module._MIN_SHARDED = former


SCENARIOS: dict[str, Callable[[Path, Path], dict[str, Any]]] = {
    scenario.__name__: scenario
    for scenario in (
        *(
            head,
            head_sum,
            whole,
            whole_sum,
            accumulated,
            knowing,
            unused,
            cached,
            sharded,
            sharded_head,
            sharded_resumed,
        ),
        *(sharded_then_alone, uninterrupted, resumed, batch_statistics, other_weights, other_weights_sharded),
    )
}


def main(vectors: str, output: str) -> None:
    """What each of the processes does that torchrun starts."""
    rank = int(os.environ["RANK"])
    for name, scenario in SCENARIOS.items():
        torch.save(scenario(Path(vectors), Path(output) / name), Path(output) / f"{name}.{rank}.pt")
    torch.distributed.destroy_process_group()


# -------------------------------------------------------------------------------------------------------------- tests


@pytest.fixture(scope="module")
def two(vectors_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which two processes left what came of each scenario."""
    if sys.platform == "win32":
        pytest.skip(NO_TORCHRUN)
    folder = tmp_path_factory.mktemp("two")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", __file__]
    done = subprocess.run([*command, str(vectors_path), str(folder)], capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-6000:]
    return folder


def of_two(two: Path, name: str) -> list[dict[str, Any]]:
    return [torch.load(two / f"{name}.{rank}.pt", weights_only=False) for rank in range(2)]


def assert_same(found: dict[str, Any], expected: dict[str, Any], tolerance: float, gradients: bool = True) -> None:
    """The same gradients, weights and figures, to a tolerance relative to the largest number of each tensor."""
    for kind in ("gradients", "weights") if gradients else ("weights",):
        assert list(found[kind]) == list(expected[kind]) and found[kind]
        for name, tensor in expected[kind].items():
            # Attention does not change when all keys move together: the gradient of their bias is nothing but the
            # rounding of zero, which Adam scales up.
            if name.endswith("key_proj.bias"):
                continue
            difference = (found[kind][name].double() - tensor.double()).abs()
            if name.endswith("qkv.bias"):
                difference[len(tensor) // 3 : 2 * len(tensor) // 3] = 0
            assert difference.max() <= tolerance * max(1.0, float(tensor.abs().max())), (kind, name)
    assert len(found["history"]) == len(expected["history"]) > 0
    for record, reference in zip(found["history"], expected["history"], strict=True):
        assert record == pytest.approx(reference, rel=10 * tolerance, abs=10 * tolerance)


@pytest.mark.parametrize(
    "name", ["head", "head_sum", "whole", "whole_sum", "accumulated", "knowing", "unused", "cached", "other_weights"]
)
def test_two_processes_are_one_with_the_doubled_batch(name: str, two: Path, vectors_path: Path, tmp_path: Path) -> None:
    alone = SCENARIOS[name](vectors_path, tmp_path)
    for found in of_two(two, name):
        assert_same(found, alone, 1e-6)
        assert any(gradient.abs().max() > 1e-3 for gradient in found["gradients"].values())


@pytest.mark.parametrize("name", ["sharded", "sharded_head", "sharded_resumed", "other_weights_sharded"])
def test_shards_are_one_process_with_the_doubled_batch(
    name: str, two: Path, vectors_path: Path, tmp_path: Path
) -> None:
    alone = SCENARIOS[name](vectors_path, tmp_path)  # alone, nothing is sharded
    for found in of_two(two, name):
        assert_same(found, alone, 1e-5)
        assert found["parameters_are_plain"]


def test_the_parts_of_a_step_are_the_whole_step(vectors_path: Path, tmp_path: Path) -> None:
    assert_same(accumulated(vectors_path, tmp_path), whole(vectors_path, tmp_path), 1e-6)


def test_all_weights_and_moments_are_shared_out_while_sharded(two: Path) -> None:
    for found in of_two(two, "sharded"):
        assert found["not_shares"] == [[]] * 6


@pytest.mark.parametrize("name, whole_name", [("resumed", "uninterrupted"), ("sharded_resumed", "sharded")])
def test_one_process_that_is_stopped_stops_all_and_the_bits_go_on(name: str, whole_name: str, two: Path) -> None:
    for found, expected in zip(of_two(two, name), of_two(two, whole_name), strict=True):
        assert found["stopped"].startswith("training was stopped by SIGTERM after step 4 of 6; what it learnt: ")
        assert found["history"] == expected["history"]
        assert all(torch.equal(tensor, expected["weights"][n]) for n, tensor in found["weights"].items())
    for file in ("steps.csv", "log.csv"):
        assert table(two / name / file) == table(two / whole_name / file)


def test_a_checkpoint_of_shards_goes_on_in_one_process(two: Path, vectors_path: Path, tmp_path: Path) -> None:
    shutil.copytree(two / "sharded_then_alone", tmp_path / "copy")
    found = run(model_of(vectors_path), Pictures(32), resume=True, **_options(tmp_path / "copy", fsdp=False))
    alone = uninterrupted(vectors_path, tmp_path / "alone")
    assert_same(found, alone, 1e-5, gradients=False)


@pytest.mark.parametrize("name", ["sharded", "batch_statistics", "uninterrupted"])
def test_processes_end_with_one_model_which_is_the_saved_one(name: str, two: Path) -> None:
    first, second = of_two(two, name)
    saved = ZeroShotClassifier.from_pretrained(two / name / "model").state_dict()
    assert first["history"] == second["history"]
    for weight, tensor in saved.items():
        assert torch.equal(first["weights"][weight], tensor) and torch.equal(second["weights"][weight], tensor)


def test_images_that_cannot_be_read_are_listed_once(two: Path, vectors_path: Path, tmp_path: Path) -> None:
    bad = sorted(["other 2", *(f"picture {row}" for row in (*rows_of_process(1, 0), rows_of_process(0, 1)[0]))])
    rows = table(two / "head" / "unreadable.csv")
    assert len(bad) == 6 and sorted(row["id"] for row in rows) == bad
    for found in of_two(two, "head"):
        assert sorted(image_id for image_id, _ in found["unreadable"]) == bad


def test_each_step_and_epoch_has_one_row(two: Path) -> None:
    assert [row["step"] for row in table(two / "head" / "steps.csv")] == ["1", "2", "3", "4"]
    assert [row["epoch"] for row in table(two / "head" / "log.csv")] == ["1", "2"]


def table(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file, without what says how fast it was."""
    with path.open(newline="") as file:
        return [{k: v for k, v in row.items() if k != "images_per_second"} for row in csv.DictReader(file)]


@pytest.mark.parametrize("loss", LOSS_BUILDERS)
def test_blank_images_give_no_loss_and_no_gradient(loss: str) -> None:
    """What a process takes part with that has no readable image."""
    logits = torch.randn(2, 5, requires_grad=True)
    value = build_loss(loss, reduction="sum")(logits, torch.full((2, 5), -1))
    value.backward()
    assert value.item() == 0 and logits.grad is not None and not logits.grad.any()


# ------------------------------------------------------------------------------------------------ the command line


@pytest.mark.skipif(sys.platform == "win32", reason=NO_TORCHRUN)
def test_accelerate_launch_trains_a_recipe_and_one_process_speaks(
    photos: Path, vectors_path: Path, tmp_path: Path
) -> None:
    content = {
        "dataset": {"name": "table", "path": str(photos / "photos.csv"), "partition": str(photos / "partition.json")},
        "image_encoder": {"spec": "timm:test_resnet", "pretrained": False, "image_size": 64},
        "text_encoder": f"vectors:{vectors_path}",
        "decoder": {"decoder_dim": 32, "num_heads": 4, "feedforward_dim": 64},
        "trainer": {"epochs": 2, "batch_size": 4, "steps_per_epoch": 2, "device": "cpu", "log_every": 1},
    }
    recipe, output = tmp_path / "tiny.yaml", tmp_path / "run"
    recipe.write_text(yaml.safe_dump(content))
    launch = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--multi_gpu",  # what accelerate calls several processes on one machine; the recipe says that they have no GPU
        "--num_processes",
        "2",
        "--num_machines",
        "1",
    ]
    launch += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    command = [*launch, "-m", "zsmld", "train", str(recipe), "--output", str(output)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    for line in ("train   ", "select  ", "model   ", "was selected; model: ", "report: "):
        assert done.stdout.count(line) == 1, done.stdout
    assert [row["step"] for row in table(output / "steps.csv")] == ["1", "2", "3", "4"]
    assert [row["epoch"] for row in table(output / "log.csv")] == ["1", "2"]
    assert done.stderr.count("epoch   1 ") + done.stdout.count("epoch   1 ") == 1
    report = json.loads((output / "report" / "report.json").read_text())
    assert report["protocols"]["zsl"]["num_images"] == len(
        build_dataset("table", path=photos / "photos.csv", split="test")
    )
    model = ZeroShotClassifier.from_pretrained(output / "model")
    assert model.training_record["num_processes"] == 2


if __name__ == "__main__":
    main(*sys.argv[1:])
