"""Training images/s of our step beside a step written the way the official ML-Decoder code does it.

    python evaluation/benchmark_training.py [--rounds 7 --threads 1 --output F]

Writes evaluation/reports/benchmark_training.{json,md}. Both sides have the same weights and the same batch, and take
turns in one process, one step at a time; the first loss and the gradients must agree before anything is timed. On a GPU
the rows come in fp32, bf16 and fp16, else in fp32 alone. Where cores are shared, threads wait for one another: use one.
Cost: about five minutes on two busy cores.

The official step, from its description: (N,B,D) queries, of which each image has its copy; `nn.MultiheadAttention`,
which averages its attention weights as well; a TorchScript loop over the queries for the output projection, in both
query modes; the plain asymmetric loss, which switches gradients off and on; Adam with an L2 penalty, `OneCycleLR`, and
an average that copies the state dict tensor by tensor. Ours: the parts that `Trainer` puts together, with its "adam".
"""

import argparse
import copy
import json
import os
import platform
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy.sparse import csr_matrix
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from zsmld import ImageEncoder, MLDecoder, Trainer, Vocabulary, ZeroShotClassifier
from zsmld.augmentation import QueryAugmentation
from zsmld.datasets.loader import Batch
from zsmld.features import FeatureDataset
from zsmld.images import ImageAugmentation
from zsmld.losses import build_loss
from zsmld.text import resolve_device
from zsmld.trainer.devices import build_accelerator
from zsmld.trainer.optimization import build_optimizer, build_scheduler, freeze, parameter_groups
from zsmld.trainer.step import Step
from zsmld.trainer.weights import Weights

LR, WEIGHT_DECAY, EMA_DECAY, WARMUP, DROPOUT, TOTAL_STEPS = 1e-4, 1e-4, 0.9997, 0.2, 0.1, 10_000
LOOP_STEPS = 3  # of a round


@dataclass(frozen=True)
class Case:
    """What a row measures: the head on kept embeddings ("head"), the whole model, or the whole loop around the head."""

    mode: str
    words: int
    groups: int | None = None
    what: str = "head"
    batch: int = 8
    encoder: str = "resnet50"
    image_size: int = 224
    text_dim: int = 300
    decoder_dim: int = 768
    num_heads: int = 8
    feedforward_dim: int = 2048


CASES = (
    Case("word", 81),
    Case("word", 925, batch=4),  # eight take the reference half a minute a step on a busy core
    Case("class", 80, 80),
    Case("class", 9605, 100),
    Case("class", 80, 80, what="whole model", encoder="resnet18"),
    Case("word", 81, what="loop"),
)
_TINY = {"batch": 3, "encoder": "test_resnet", "image_size": 64, "decoder_dim": 32, "num_heads": 4, "text_dim": 16}
TINY_CASES = tuple(
    replace(case, words=words, groups=case.groups and 4, feedforward_dim=64, **_TINY)
    for case, words in zip(CASES, (5, 9, 4, 10, 4, 5), strict=True)
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "reports" / "benchmark_training.json")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precisions", nargs="+", choices=["fp32", "bf16", "fp16"], help="default: see above")
    parser.add_argument("--tiny", action="store_true", help="tiny shapes, to see that it runs")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = resolve_device(options.device)
    precisions = options.precisions or (["fp32", "bf16", "fp16"] if device.type == "cuda" else ["fp32"])
    load = os.getloadavg()
    rows = []
    for precision in precisions:
        for case in TINY_CASES if options.tiny else CASES:
            rows.append(measure(case, precision, device, options.rounds))
            print(json.dumps(rows[-1]), file=sys.stderr)
    write_report(rows, load, device, options)


# ------------------------------------------------------------------------------------------------- the official step


class ReferenceHead(nn.Module):
    """The official head as it is described, with our names: no code of it was taken."""

    def __init__(self, case: Case, encoder_dim: int, words: Tensor | None) -> None:
        super().__init__()
        width, self.num_classes, self.looped = case.decoder_dim, case.words, True
        self.spatial_proj = nn.Linear(encoder_dim, width)
        self.attention = nn.MultiheadAttention(width, case.num_heads, dropout=DROPOUT)
        self.linear1, self.linear2 = nn.Linear(width, case.feedforward_dim), nn.Linear(case.feedforward_dim, width)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))
        self.dropout, self.dropout1, self.dropout2, self.dropout3 = (nn.Dropout(DROPOUT) for _ in range(4))
        if words is None:
            self.queries = nn.Parameter(torch.empty(case.groups or 0, width), requires_grad=False)
            self.num_queries, self.factor = len(self.queries), -(-case.words // len(self.queries))
            self.pooling = nn.Parameter(torch.empty(len(self.queries), width, self.factor))
            self.pooling_bias = nn.Parameter(torch.empty(case.words))
        else:
            self.register_buffer("words", words)
            self.word_proj = nn.Linear(case.text_dim, width)
            self.num_queries, self.factor = len(words), 1
            self.pooling, self.pooling_bias = nn.Parameter(torch.empty(width, 1)), nn.Parameter(torch.empty(1))

    def forward(self, inputs: Tensor) -> Tensor:
        """A map (B,C,H,W), or kept embeddings (B,S,C) -> logits (B,N)."""
        spatial = inputs.flatten(2).transpose(1, 2) if inputs.ndim == 4 else inputs  # (B,S,C)
        memory = F.relu(self.spatial_proj(spatial)).transpose(0, 1)  # (S,B,D)
        queries = F.relu(self.word_proj(self.words)) if hasattr(self, "word_proj") else self.queries  # (N,D)
        t = queries.unsqueeze(1).expand(-1, len(inputs), -1)  # (N,B,D)
        t = self.norm1(t + self.dropout1(t))
        t = self.norm2(t + self.dropout2(self.attention(t, memory, memory)[0]))
        t = self.norm3(t + self.dropout3(self.linear2(self.dropout(F.relu(self.linear1(t))))))
        out = torch.zeros(len(inputs), self.num_queries, self.factor, device=t.device, dtype=t.dtype)  # (B,G,N/G)
        if self.looped:
            scripted()(t.transpose(0, 1), self.pooling, out)
        else:  # not the official code: it tells how much of a difference is this loop
            weights = self.pooling.expand(self.num_queries, -1, -1)
            out = torch.einsum("gbd,gdf->bgf", t, weights)
        return out.flatten(1)[:, : self.num_classes] + self.pooling_bias  # (B,N)


def project(queries: Tensor, weight: Tensor, out: Tensor) -> None:
    for i in range(queries.shape[1]):
        own = weight[i] if weight.dim() == 3 else weight
        out[:, i] = torch.matmul(queries[:, i], own)


_SCRIPTED: list[Any] = []


def scripted() -> Any:
    """`project` in TorchScript, as the official code has its own; in plain Python once torch has given that up."""
    if not _SCRIPTED:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _SCRIPTED.append(torch.jit.script(project) if hasattr(torch.jit, "script") else project)
    return _SCRIPTED[0]


class ReferenceModel(nn.Module):
    """An image network, or none, and the head."""

    def __init__(self, body: nn.Module | None, head: ReferenceHead) -> None:
        super().__init__()
        self.body, self.head = body, head

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(inputs if self.body is None else self.body.forward_features(inputs))


def reference_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """The plain asymmetric loss with its usual γ− 4, γ+ 0, margin 0.05, summed; the focusing weight has no gradient."""
    absent = 1 - targets  # (B,N)
    present_score = torch.sigmoid(logits)
    absent_score = (1 - present_score + 0.05).clamp(max=1)
    loss = targets * torch.log(present_score.clamp(min=1e-8)) + absent * torch.log(absent_score.clamp(min=1e-8))
    torch.set_grad_enabled(False)
    probability = present_score * targets + absent_score * absent
    weight = torch.pow(1 - probability, 0 * targets + 4 * absent)
    torch.set_grad_enabled(True)
    return -(loss * weight).sum()


class Reference:
    """Weights, optimiser and average of the official step."""

    def __init__(self, model: ReferenceModel, precision: str, device: torch.device) -> None:
        self.model, self.device, self.precision = model.to(device).train(), device, precision
        trained = [p for p in self.model.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in trained if p.ndim == 1], "weight_decay": 0.0},
            {"params": [p for p in trained if p.ndim > 1], "weight_decay": WEIGHT_DECAY},
        ]
        self.optimizer = torch.optim.Adam(groups, lr=LR, weight_decay=0)
        self.scheduler = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer, LR, total_steps=TOTAL_STEPS, pct_start=WARMUP
        )
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
        self.averaged = copy.deepcopy(self.model).eval()

    def backward(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Forward and backward; the summed loss."""
        inputs, targets = inputs.to(self.device), targets.to(self.device)
        half = torch.float16 if self.precision == "fp16" else torch.bfloat16
        with torch.autocast(self.device.type, half, enabled=self.precision != "fp32"):
            logits = self.model(inputs).float()
        loss = reference_loss(logits, targets)
        self.model.zero_grad()
        self.scaler.scale(loss).backward()
        return loss.detach()

    def step(self, inputs: Tensor, targets: Tensor) -> None:
        """One step."""
        self.backward(inputs, targets)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.scheduler.step()
        with torch.no_grad():
            pairs = zip(self.averaged.state_dict().values(), self.model.state_dict().values(), strict=True)
            for average, now in pairs:
                average.copy_(EMA_DECAY * average + (1 - EMA_DECAY) * now)


# ---------------------------------------------------------------------------------------------------------- our step


class Ours:
    """What `Trainer` puts together before its loop, and does in each step of it."""

    def __init__(
        self, model: ZeroShotClassifier, words: Tensor | None, head_only: bool, precision: str, device: torch.device
    ) -> None:
        self.accelerator = build_accelerator(str(device), precision, (), None, not head_only)
        model.to(device)
        freeze(model.image_encoder, head_only)
        model.image_encoder.eval()
        self.weights = Weights(model, head_only, EMA_DECAY, False)
        bare = build_optimizer("adam", parameter_groups(self.weights.trained, LR, WEIGHT_DECAY), LR)
        self.scheduler = build_scheduler("one_cycle", bare, TOTAL_STEPS, WARMUP)
        network, self.optimizer = self.accelerator.prepare(self.weights.trained), self.accelerator.prepare(bare)
        network.train()
        self.run = Step(
            accelerator=self.accelerator,
            model=model,
            network=network,
            head_only=head_only,
            sharded=False,
            loss=build_loss("asymmetric", reduction="sum"),
            mean_over_images=False,
            labels=np.arange(len(model.vocabulary)),
            words=None if words is None else words.to(device),
            captions=None,
            teacher=None,
            distillation=0.0,
            augmentation=QueryAugmentation(),
            image_augmentation=ImageAugmentation(),
            text_noise=0.0,
            seed=0,
        )
        self.num_steps = 0

    def backward(self, batch: Batch) -> Tensor:
        """Forward and backward; the summed loss."""
        return self.run.backward([batch], self.num_steps, len(batch))

    def step(self, batch: Batch) -> None:
        """One step."""
        loss = self.backward(batch)
        if loss.device.type == "cpu" and not np.isfinite(loss.item()):  # a GPU is not waited for in each step
            raise ValueError(f"loss must be a number, got {loss.item()}")
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.scheduler.step()
        self.num_steps += 1
        self.weights.update(self.num_steps)


# ----------------------------------------------------------------------------------------------- equal on both sides


def build(case: Case, folder: Path, device: torch.device, precision: str, dropout: float) -> tuple[Any, ...]:
    """Both sides with equal weights, and the batch: (ours, batch, reference, (inputs, targets))."""
    torch.manual_seed(0)
    names = [f"word{i}" for i in range(case.words)]
    encoder = ImageEncoder(f"timm:{case.encoder}", pretrained=False, image_size=case.image_size)
    words, text = None, {}
    if case.mode == "word":
        words = torch.randn(case.words, case.text_dim)
        np.savez(folder / "words.npz", words=np.array(names), embeddings=words.numpy())
        text = {"text_encoder": f"vectors:{folder / 'words.npz'}"}
    decoder = MLDecoder(
        encoder.encoder_dim,
        text_dim=case.text_dim if case.mode == "word" else None,
        num_classes=None if case.mode == "word" else case.words,
        num_groups=case.groups,
        decoder_dim=case.decoder_dim,
        num_heads=case.num_heads,
        feedforward_dim=case.feedforward_dim,
        dropout=DROPOUT,
    )
    model = ZeroShotClassifier(encoder, decoder, vocabulary=Vocabulary(names), word_embeddings=words, **text)
    head = ReferenceHead(case, encoder.encoder_dim, words)
    whole = case.what == "whole model"
    body = copy.deepcopy(encoder.body).to(memory_format=torch.contiguous_format) if whole else None
    theirs = ReferenceModel(body, head)
    own = dict(decoder.named_parameters()) | dict(decoder.named_buffers())
    with torch.no_grad():
        for name, parts in correspondence(case).items():
            parameter = head.get_parameter(name)
            parameter.copy_(torch.cat([own[part] for part in parts]).reshape(parameter.shape))
    set_dropout(model, dropout)
    set_dropout(theirs, dropout)
    shape = (3, case.image_size, case.image_size) if whole else (int(np.prod(encoder.grid_size)), encoder.encoder_dim)
    inputs = torch.randn(case.batch, *shape)
    inputs = inputs if whole else F.relu(inputs)
    targets = (torch.rand(case.batch, case.words) < min(0.2, 3 / case.words)).to(torch.int8)
    targets[:, 0] = 1
    ids = [str(i) for i in range(case.batch)]
    batch = Batch(inputs, targets, torch.arange(case.batch), ids)
    ours = Ours(model, words, not whole, precision, device)
    return ours, batch, Reference(theirs, precision, device), (inputs, targets.long())


def correspondence(case: Case) -> dict[str, list[str]]:
    """The reference head's parameters, each with ours that it holds one above the other."""
    layer = "layers.0."
    plain = ("linear1", "linear2", "norm1", "norm2", "norm3")
    names = {f"{name}.{kind}": [f"{layer}{name}.{kind}"] for name in plain for kind in ("weight", "bias")}
    for kind in ("weight", "bias"):
        names[f"spatial_proj.{kind}"] = [f"spatial_proj.{kind}"]
        names[f"attention.in_proj_{kind}"] = [f"{layer}{part}_proj.{kind}" for part in ("query", "key", "value")]
        names[f"attention.out_proj.{kind}"] = [f"{layer}out_proj.{kind}"]
    if case.mode == "word":
        names |= {f"word_proj.{kind}": [f"word_proj.{kind}"] for kind in ("weight", "bias")}
        return names | {"pooling": ["shared_fc.weight"], "pooling_bias": ["shared_fc.bias"]}
    return names | {"pooling": ["group_fc_weight"], "pooling_bias": ["group_fc_bias"], "queries": ["group_queries"]}


def gradients(case: Case, ours: Ours, reference: Reference) -> Iterator[tuple[str, Tensor, Tensor]]:
    """(name, ours, theirs) of each trained parameter."""
    model = ours.run.model
    own = dict(model.decoder.named_parameters())
    for name, parts in correspondence(case).items():
        parameter = reference.model.head.get_parameter(name)
        if parameter.requires_grad:
            joined = torch.cat([own[part].grad for part in parts])
            yield name, joined.reshape(parameter.shape), parameter.grad
    if reference.model.body is not None:
        theirs = reference.model.body.named_parameters()
        for (name, mine), (_, parameter) in zip(model.image_encoder.body.named_parameters(), theirs, strict=True):
            yield name, mine.grad, parameter.grad


def set_dropout(module: nn.Module, p: float) -> None:
    for part in module.modules():
        if isinstance(part, nn.Dropout):
            part.p = p
        elif isinstance(part, nn.MultiheadAttention):
            part.dropout = p


# --------------------------------------------------------------------------------------------------------- measuring


def measure(case: Case, precision: str, device: torch.device, num_rounds: int) -> dict[str, Any]:
    """One row."""
    with tempfile.TemporaryDirectory() as folder:
        ours, batch, reference, pair = build(case, Path(folder), device, precision, 0.0)
        agreement = agree(case, ours, batch, reference, pair, precision)
        set_dropout(ours.run.model, DROPOUT)
        set_dropout(reference.model, DROPOUT)
        sides: dict[str, Callable[[], float]]
        if case.what == "loop":
            sides = loops(case, ours.run.model, reference, precision, device)
        else:
            sides = {
                "reference": lambda: speed(lambda: reference.step(*pair), len(batch), device),
                "ours": lambda: speed(lambda: ours.step(batch), len(batch), device),
            }

        def unlooped() -> float:
            reference.model.head.looped = False
            found = sides["reference"]()
            reference.model.head.looped = True
            return found

        calls = {**sides, "unlooped": unlooped}
        found: dict[str, list[float]] = {side: [] for side in calls}
        load = os.getloadavg()[0]
        for number in range(-1, num_rounds):  # TorchScript compiles in its first two calls, and `agree` made one
            for side in list(calls) if number % 2 else list(calls)[::-1]:
                images_per_second = calls[side]()
                if number >= 0:
                    found[side].append(images_per_second)
    median = {side: float(np.median(speeds)) for side, speeds in found.items()}
    return {
        "what": case.what,
        "mode": case.mode,
        "words": case.words,
        "groups": case.groups,
        "batch": case.batch,
        "precision": precision,
        "reference_images_per_second": median["reference"],
        "ours_images_per_second": median["ours"],
        "ratio": median["ours"] / median["reference"],
        "ratio_quartiles": quartiles(np.divide(found["ours"], found["reference"])),
        "reference_without_loop_images_per_second": median["unlooped"],
        "ratio_to_reference_without_loop": median["ours"] / median["unlooped"],
        "ratio_to_reference_without_loop_quartiles": quartiles(np.divide(found["ours"], found["unlooped"])),
        "reference_quartiles": quartiles(found["reference"]),
        "ours_quartiles": quartiles(found["ours"]),
        "load_before": load,
        **agreement,
    }


def agree(case: Case, ours: Ours, batch: Batch, reference: Reference, pair: Any, precision: str) -> dict[str, float]:
    """The first losses and the largest relative difference of a gradient; they must be equal before they are timed."""
    # By default cuDNN rounds the factors of fp32 convolutions to TF32, in each memory order its own way.
    before, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False
    losses = float(reference.backward(*pair)), float(ours.backward(batch))
    torch.backends.cudnn.allow_tf32 = before
    difference = abs(losses[1] - losses[0]) / abs(losses[0])
    largest = 0.0
    if precision == "fp32":
        found = [(float((a - b).norm()), float(b.norm())) for _, a, b in gradients(case, ours, reference)]
        largest = max(apart for apart, _ in found) / max(size for _, size in found)
    if difference > (1e-4 if precision == "fp32" else 2e-2) or largest > 1e-3:
        raise ValueError(f"both sides must be the same work, got losses {losses} and gradients {largest:.0e} apart")
    ours.optimizer.zero_grad()
    return {
        "reference_first_loss": losses[0],
        "ours_first_loss": losses[1],
        "loss_difference": difference,
        "gradient_difference": largest,
    }


def speed(step: Callable[[], None], num_images: int, device: torch.device) -> float:
    """Images per second of a call."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return num_images / (time.perf_counter() - start)


def loops(
    case: Case, model: ZeroShotClassifier, reference: Reference, precision: str, device: torch.device
) -> dict[str, Callable[[], float]]:
    """Whole loops over embeddings in memory: `Trainer` as it is, and a `DataLoader` around the official step."""
    num_images, torch_rng = LOOP_STEPS * case.batch, torch.Generator().manual_seed(0)
    positions = int(np.prod(model.image_encoder.grid_size))
    embeddings = F.relu(torch.randn(num_images, positions, model.decoder.encoder_dim, generator=torch_rng))
    targets = (torch.rand(num_images, case.words, generator=torch_rng) < 3 / case.words).to(torch.int8)
    targets[:, 0] = 1
    ids, vocabulary = [str(i) for i in range(num_images)], Vocabulary([f"word{i}" for i in range(case.words)])
    dataset = FeatureDataset(embeddings, csr_matrix(targets.numpy()), ids, vocabulary, "random", "train")

    def theirs() -> None:
        for inputs, labels in DataLoader(_Pairs(embeddings, targets.long()), case.batch, shuffle=True):
            reference.step(inputs, labels)

    def trainer() -> float:
        training = Trainer(
            model,
            dataset,
            epochs=2,  # the first makes the optimiser's state
            steps_per_epoch=LOOP_STEPS,
            batch_size=case.batch,
            optimizer="adam",
            loss_options={"reduction": "sum"},
            lr=LR,
            weight_decay=WEIGHT_DECAY,
            ema_decay=EMA_DECAY,
            precision=precision,
            freeze_image_encoder=True,
            standardize_words=False,
            device=str(device),
        )
        training.fit()
        return training.history[1]["images_per_second"]

    return {"reference": lambda: speed(theirs, num_images, device), "ours": trainer}


class _Pairs(Dataset[tuple[Tensor, Tensor]]):
    def __init__(self, inputs: Tensor, targets: Tensor) -> None:
        self.inputs, self.targets = inputs, targets

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, row: int) -> tuple[Tensor, Tensor]:
        return self.inputs[row], self.targets[row]


def quartiles(values: Any) -> list[float]:
    return [float(value) for value in np.quantile(values, (0.25, 0.75))]


# --------------------------------------------------------------------------------------------------------- the report


def write_report(rows: list[dict[str, Any]], load: Any, device: torch.device, options: argparse.Namespace) -> None:
    """JSON and Markdown."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    processor = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    content = {
        "command": f"python evaluation/benchmark_training.py --rounds {options.rounds} --threads {options.threads}"
        + (" --tiny" if options.tiny else ""),
        "rounds": options.rounds,
        "rows": rows,
        "machine": {
            "processor": processor[0] if processor else platform.machine(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
            "load_before": list(load),
            "load_after": list(os.getloadavg()),
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    text = markdown(content)
    options.output.with_suffix(".md").write_text(text, encoding="utf-8")
    print(text)


def title(row: dict[str, Any]) -> str:
    queries = (
        f"{row['words']:,} words" if row["mode"] == "word" else f"{row['words']:,} classes, {row['groups']} groups"
    )
    where = {"head": "head on kept embeddings", "whole model": "whole model, resnet18", "loop": "whole loop, head"}
    return f"{where[row['what']]}: {queries}"


def verdict(row: dict[str, Any], name: str = "ratio") -> str:
    """Half of the rounds lie between the quartiles: where 1 lies there too, the row says nothing."""
    low, high = row[f"{name}_quartiles"]
    return "faster" if low > 1 and row[name] > 1 else "slower" if high < 1 and row[name] < 1 else "undecided"


def markdown(content: dict[str, Any]) -> str:
    """The report for people."""
    machine, rows = content["machine"], content["rows"]
    lines = [
        "# Training: images per second beside the official step",
        "",
        f"Device {machine['device']}, {machine['processor']}, {machine['threads']} "
        f"threads on {machine['cores']} cores, torch {machine['torch']}; load average "
        f"{machine['load_before'][0]:.1f} before and {machine['load_after'][0]:.1f} after: the cores were "
        f"{'shared with other work' if max(machine['load_before'][0], rows[0]['load_before']) > 1 else 'free'}.",
        f"{content['rounds']} rounds of one step each way (the loop: {LOOP_STEPS} steps), in turns; medians, quartiles "
        "in brackets. The ratio is ours to the reference's: above 1 ours is faster. Its quartiles are of ratios within "
        "a round.",
        "",
        "| what | batch | precision | reference, images/s | ours, images/s | ratio | "
        "| ratio to a reference without its loop |",
        "|---|---:|---|---:|---:|---:|---|---:|",
    ]
    for row in rows:
        reference, ours, ratio, unlooped = (
            f"{row[value]:.{digits}f} [{row[name][0]:.{digits}f}–{row[name][1]:.{digits}f}]"
            for value, name, digits in (
                ("reference_images_per_second", "reference_quartiles", 1),
                ("ours_images_per_second", "ours_quartiles", 1),
                ("ratio", "ratio_quartiles", 2),
                ("ratio_to_reference_without_loop", "ratio_to_reference_without_loop_quartiles", 2),
            )
        )
        case = f"{title(row)} | {row['batch']} | {row['precision']}"
        lines.append(f"| {case} | {reference} | {ours} | {ratio} | {verdict(row)} | {unlooped} |")
    lines.append("")
    for kind, sentence in (("slower", "**Ours is slower in:**"), ("undecided", "No clear difference in:")):
        named = [f"{title(row)} ({row['precision']}, {row['ratio']:.2f})" for row in rows if verdict(row) == kind]
        if named:
            lines += [f"{sentence} {'; '.join(named)}.", ""]
    if all(verdict(row) == "faster" for row in rows):
        lines += ["Ours is faster in every row.", ""]
    without = "ratio_to_reference_without_loop"
    named = [
        f"{title(row)} ({row['precision']}, {row[without]:.2f})" for row in rows if verdict(row, without) != "faster"
    ]
    lines += [
        "The last column is no official code: its reference has one matrix product where the official head loops over "
        "its queries. Autograd gives each slice of that loop a gradient as large as the whole, so its cost grows with "
        "the square of the queries; what is left in this column is the rest of the step. "
        + (
            f"There ours is not clearly faster in: {'; '.join(named)}."
            if named
            else "There ours is faster in every row."
        ),
        "",
        "Both sides start from the same weights and see the same batch. Without dropout their first losses differ by "
        f"at most {max(row['loss_difference'] for row in rows):.0e} of the loss, the gradients in fp32 by "
        f"{max(row['gradient_difference'] for row in rows):.0e} of the largest; timed with dropout {DROPOUT}.",
        "The reference is written from the official code's description: `nn.MultiheadAttention` with its averaged "
        "weights, a TorchScript loop over queries for the output projection, the plain asymmetric loss, Adam, "
        "`OneCycleLR`, an average copied tensor by tensor; images in torch's own memory order. Ours are the parts that "
        "`Trainer` puts together, Adam too; convolutions in `channels_last`. The loop feeds both from embeddings in "
        "memory.",
        "",
        f"Command: `{content['command']}`",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
