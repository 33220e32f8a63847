"""How fast the head is, beside the official design at equal weights, in the same run on the same machine.

    python evaluation/benchmark_head.py                        # all of it, about 10 minutes on two cores
    python evaluation/benchmark_head.py --sections speed --output F

speed      ratios of medians in interleaved rounds; and how near the time is to that of the feed-forward's and the
           spatial projection's bare products, which the official design's arithmetic cannot go below
memory     20,000 words, 32 images, in a process of its own
accuracy   what a precision changes: the scenes model, and a head of the paper's size trained here on real photos
shortlist  20,000 words, the scenes' among real ones (WordNet's, which timm ships for ImageNet-22k), the scenes model

The reference: Linear and ReLU, words projected once a batch, an `nn.MultiheadAttention` layer on the expanded (N,B,D)
queries, feed-forward, group projection in a TorchScript loop over queries.
Writes evaluation/reports/benchmark_head.{json,md}; sections that are not run keep what the report has.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from shipped import shipped_model
from torch import Tensor, nn

from zsmld import MLDecoder, TextEncoder, ZeroShotClassifier, build_dataset
from zsmld.datasets.loader import load_batches
from zsmld.decoder.folded import PackedLinear
from zsmld.decoder.inference import InferenceDecoder
from zsmld.decoder.int8 import Int8Linear, int8_is_available, quantize
from zsmld.metrics import average_precision, mean_average_precision
from zsmld.model import package_versions
from zsmld.predictor.shortlist import NUM_SAMPLES, learn_shortlist
from zsmld.resources import resource_path

REPORT = Path(__file__).parent / "reports" / "benchmark_head.json"
SECTIONS = ("speed", "memory", "accuracy", "shortlist")
ENCODER_DIM, TEXT_DIM, NUM_POSITIONS = 2048, 512, 49  # the head's own widths are its defaults, the paper's
WORD_ROWS = ((81, 8), (1006, 1), (1006, 8), (7186, 2))
CLASS_ROW = (9605, 200, 8)  # classes, groups, images
GOALS = {  # fp32, best precision
    ("word", 81, 8): (1.3, 2.2),
    ("word", 1006, 1): (1.4, 2.8),
    ("word", 1006, 8): (1.25, 3.2),
    ("word", 7186, 2): (1.7, 4.5),
    ("class", 9605, 8): (2.0, 4.0),
}


# -------------------------------------------------------------------------------------------------- the reference


class OfficialLayer(nn.Module):
    """Cross-attention and feed-forward as the official code has them, queries first."""

    def __init__(self, dim: int, num_heads: int, feedforward_dim: int, dropout: float = 0.1) -> None:
        super().__init__()
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(dim), nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)
        self.multihead_attn = nn.MultiheadAttention(dim, num_heads, dropout=dropout)
        self.linear1, self.linear2 = nn.Linear(dim, feedforward_dim), nn.Linear(feedforward_dim, dim)

    def forward(self, target: Tensor, memory: Tensor) -> Tensor:
        """(N,B,D) and (S,B,D) -> (N,B,D)."""
        target = self.norm1(target + self.dropout(target))
        target = self.norm2(target + self.dropout(self.multihead_attn(target, memory, memory)[0]))
        hidden = self.dropout(F.relu(self.linear1(target)))
        return self.norm3(target + self.dropout(self.linear2(hidden)))


def group_projection(h: Tensor, weight: Tensor, out: Tensor) -> None:
    """One product a query, in a loop that TorchScript compiles: (B,N,D) -> out (B,N,classes of a query)."""
    for i in range(h.shape[1]):
        own = weight if weight.dim() == 2 else weight[i]
        out[:, i, :] = torch.matmul(h[:, i, :], own)


class OfficialHead(nn.Module):
    """The official design with the weights of one of our heads."""

    def __init__(self, head: MLDecoder) -> None:
        super().__init__()
        config, layer = head.config(), head.layers[0]
        self.embed_standart = head.spatial_proj
        self.layer = OfficialLayer(head.decoder_dim, config["num_heads"], config["feedforward_dim"])
        for name in ("norm1", "norm2", "norm3", "linear1", "linear2"):
            getattr(self.layer, name).load_state_dict(getattr(layer, name).state_dict())
        attention, parts = self.layer.multihead_attn, (layer.query_proj, layer.key_proj, layer.value_proj)
        attention.in_proj_weight.copy_(torch.cat([part.weight for part in parts]))
        attention.in_proj_bias.copy_(torch.cat([part.bias for part in parts]))
        attention.out_proj.load_state_dict(layer.out_proj.state_dict())
        self.num_classes = head.num_classes
        if head.num_classes is None:
            self.wordvec_proj, self.query_embed = head.word_proj, None
            self.pooling, self.pooling_bias = head.shared_fc.weight.T.contiguous(), head.shared_fc.bias
        else:
            self.query_embed = head.group_queries
            self.pooling, self.pooling_bias = head.group_fc_weight, head.group_fc_bias
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # TorchScript is deprecated, and what the official head has
            self.group_projection = torch.jit.script(group_projection)

    def forward(self, spatial: Tensor, words: Tensor | None = None) -> Tensor:
        """(B,S,C) and (N,T) -> (B,N)."""
        memory = F.relu(self.embed_standart(spatial))
        queries = F.relu(self.wordvec_proj(words)) if self.query_embed is None else self.query_embed
        target = queries.unsqueeze(1).expand(-1, len(spatial), -1)
        h = self.layer(target, memory.transpose(0, 1)).transpose(0, 1)  # (B,N,D)
        out = torch.zeros(*h.shape[:2], self.pooling.shape[-1], device=h.device, dtype=h.dtype)
        self.group_projection(h, self.pooling, out)
        logits = out.flatten(1)
        return (logits if self.num_classes is None else logits[:, : self.num_classes]) + self.pooling_bias


# ------------------------------------------------------------------------------------------------------- speed


def precisions(device: torch.device) -> list[str]:
    """What this machine multiplies faster than fp32, and fp32."""
    if device.type == "cuda":
        return ["fp32", "bf16"]
    bf16 = any(getattr(torch.cpu, name, bool)() for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return ["fp32"] + ["bf16"] * bf16 + ["int8"] * int8_is_available()


def bare_products(head: MLDecoder, precision: str, num_rows: int, num_images: int) -> Callable[[], None]:
    """The products of the feed-forward and the spatial projection, and nothing else."""
    layer, device = head.layers[0], head.spatial_proj.weight.device
    products: list[tuple[Callable[[Tensor], Tensor], Tensor]] = []
    for linear, rows in ((head.spatial_proj, num_images * NUM_POSITIONS), (layer.linear1, 0), (layer.linear2, 0)):
        x = torch.rand(rows or num_rows, linear.in_features, device=device)
        for part in x.split(512 if device.type == "cpu" else 32768):
            if precision == "int8":
                packed = Int8Linear(linear.weight, positive=True)
                products.append((packed, quantize(part, 0, packed.largest)[0]))
            else:
                products.append((PackedLinear(linear.weight, None, precision == "bf16"), part))

    def run() -> None:
        for product, x in products:
            product(x)

    return run


def interleaved(ways: dict[str, Callable[[], Any]], rounds: int, device: torch.device) -> dict[str, list[float]]:
    """Milliseconds of each way, round by round; the first two rounds warm up."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(-2, rounds):
        for name, way in ways.items():
            started = time.perf_counter()
            way()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if number >= 0:
                times[name].append(1000 * (time.perf_counter() - started))
    return times


@torch.no_grad()
def speed(options: argparse.Namespace) -> dict[str, Any]:
    """One row for each shape and precision."""
    device, rows = torch.device(options.device), []
    compiles = shutil.which("g++") is not None or shutil.which("clang++") is not None
    shapes = [("word", *shape, None) for shape in WORD_ROWS] + [("class", CLASS_ROW[0], CLASS_ROW[2], CLASS_ROW[1])]
    for mode, num_words, batch, num_groups in shapes:
        torch.manual_seed(0)
        if num_groups is None:
            head = MLDecoder(ENCODER_DIM, text_dim=TEXT_DIM).eval().to(device)
        else:
            head = MLDecoder(ENCODER_DIM, num_classes=num_words, num_groups=num_groups).eval().to(device)
        spatial = torch.randn(batch, NUM_POSITIONS, ENCODER_DIM, device=device)
        words = () if num_groups else (torch.randn(num_words, TEXT_DIM, device=device),)
        reference = OfficialHead(head).eval().to(device)
        ways: dict[str, Callable[[], Any]] = {"reference": lambda r=reference, s=spatial, w=words: r(s, *w)}
        for precision in precisions(device):
            ours = InferenceDecoder(head, precision, NUM_POSITIONS, compile=precision == "int8" and compiles)
            compiled = tuple(ours.compile(w) for w in words)
            ways[precision] = lambda o=ours, s=spatial, c=compiled: o(s, *c)
            ways[f"bare {precision}"] = bare_products(head, precision, batch * (num_groups or num_words), batch)
        expected = ways["reference"]()
        differences = {name: float((ways[name]() - expected).abs().max()) for name in precisions(device)}
        times = interleaved(ways, options.rounds, device)
        for precision in precisions(device):
            ratios = np.divide(times["reference"], times[precision])
            bare = statistics.median(times[f"bare {precision}"])
            ours_ms = statistics.median(times[precision])
            reference_ms = statistics.median(times["reference"])
            rows.append(
                {
                    "mode": mode,
                    "words": num_words,
                    "batch": batch,
                    "precision": precision,
                    "reference_ms": reference_ms,
                    "ours_ms": ours_ms,
                    "ratio": reference_ms / ours_ms,
                    "ratio_quartiles": [float(q) for q in np.quantile(ratios, (0.25, 0.75))],
                    "bare_products_ms": bare,
                    "bound": reference_ms / bare,
                    "share_of_bound": bare / ours_ms,
                    "max_difference": differences[precision],
                    "compiled": precision == "int8" and compiles,
                    "goal": GOALS[mode, num_words, batch][0 if precision == "fp32" else 1],
                }
            )
            print(rows[-1], flush=True)
            if precision == "fp32" and differences[precision] > 1e-4:
                raise SystemExit(f"fp32 must equal the reference to 1e-4, got {differences[precision]:.1e}")
    return {"rows": rows, "rounds": options.rounds}


# ------------------------------------------------------------------------------------------------------ memory


def memory(options: argparse.Namespace) -> dict[str, Any]:
    """Peak memory above the weights, in a process of its own."""
    found = []
    for num_words, batch in ((2000, 32), (20000, 32), (20000, 64)):
        command = [sys.executable, __file__, "--memory-of", str(num_words), str(batch)]
        found.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
        print(found[-1], flush=True)
    return {"rows": found}


@torch.no_grad()
def memory_of(num_words: int, batch: int) -> None:
    """Print the peak of one size; nothing else may have run in this process."""
    head = MLDecoder(ENCODER_DIM, text_dim=TEXT_DIM).eval()
    ours = InferenceDecoder(head, "fp32", NUM_POSITIONS)
    words, spatial = torch.randn(num_words, TEXT_DIM), torch.randn(batch, NUM_POSITIONS, ENCODER_DIM)
    ours(spatial[:1], ours.compile(words[:600]))  # threads and libraries have their memory
    before = reset_peak()
    compiled = ours.compile(words)
    kept = sum(part.nbytes for part in compiled.parts.values())
    ours(spatial, compiled)
    peak = memory_status("VmHWM")
    row = {"words": num_words, "batch": batch, "peak_above_weights_mib": (peak - before) / 1024}
    print(json.dumps(row | {"of_it_compiled_words_mib": kept / 2**20}))


def reset_peak() -> int:
    """Forget the process's peak memory; KiB that it has now. Linux only."""
    Path("/proc/self/clear_refs").write_text("5")
    return memory_status("VmRSS")


def memory_status(name: str) -> int:
    """A figure of /proc/self/status, in KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


# ---------------------------------------------------------------------------------------------------- accuracy


@torch.no_grad()
def changes(
    head: MLDecoder,
    spatial: Tensor,
    words: Tensor,
    targets: np.ndarray,
    precisions: tuple[str, ...] = ("fp32", "bf16", "int8"),
) -> list[dict[str, Any]]:
    """mAP in points of each precision, beside the head itself."""

    def figures(decode: Callable[[Tensor], Tensor]) -> tuple[np.ndarray, float]:
        logits = torch.cat([decode(part) for part in spatial.split(64)]).cpu().numpy()
        return logits, 100 * mean_average_precision(average_precision(logits, targets), "skip")

    plain, expected = figures(lambda part: head(part, words))
    rows = []
    for precision in precisions:
        if precision == "int8" and not int8_is_available():
            continue
        ours = InferenceDecoder(head, precision, spatial.shape[1])
        compiled = ours.compile(words)
        logits, found = figures(lambda part, o=ours, c=compiled: o(part, c))
        rows.append(
            {
                "precision": precision,
                "mean_average_precision": found,
                "change_points": found - expected,
                "max_difference": float(np.abs(logits - plain).max()),
            }
        )
        print(rows[-1], flush=True)
    return rows


def scenes_model() -> ZeroShotClassifier:
    """The shipped one."""
    return ZeroShotClassifier.from_pretrained(resource_path("data", "scenes", "model")).eval()


@torch.no_grad()
def scenes_embeddings(model: ZeroShotClassifier, num_images: int) -> tuple[Any, Tensor]:
    """Test scenes and their spatial embeddings."""
    scenes = build_dataset("scenes", split="test", num_images=num_images)
    batches = load_batches(scenes, model.image_encoder.transform, 64)
    return scenes, torch.cat([model.image_encoder(batch.inputs) for batch in batches])


def accuracy(options: argparse.Namespace) -> dict[str, Any]:
    """Scenes: all 100 words on 2,000 test scenes. Photos: a head trained on four fifths, all words on the rest."""
    model = scenes_model()
    scenes, spatial = scenes_embeddings(model, 2000)
    found = {"scenes": changes(model.decoder, spatial, model.encode_words(scenes.vocabulary), scenes.targets.toarray())}
    if (options.root / "coco_photos").is_dir():
        found["photos"] = changes(*trained_on_photos(options.root, TextEncoder("minilm"), "cpu"))
    return found


def trained_on_photos(
    root: Path, text_encoder: TextEncoder, device: str
) -> tuple[MLDecoder, Tensor, Tensor, np.ndarray]:
    """A head of the paper's size, trained on four fifths of the photos; embeddings, words and targets of the rest."""
    import coco_photos_zsl as photos

    features, encoder = photos.load_features(root), photos.image_encoder(root)
    test = photos.folds(len(features))[0]
    rest = np.setdiff1d(np.arange(len(features)), test)
    photos.TRAINER |= {"epochs": 12, "device": device}
    trained, _ = photos.train(features, rest, encoder, text_encoder)
    spatial = torch.as_tensor(np.asarray(features.spatial_embeddings[:])).float()[test].to(device)
    words = trained.encode_words(list(features.vocabulary)).to(device)
    return trained.decoder.eval().to(device), spatial, words, features.targets.toarray()[test]


# --------------------------------------------------------------------------------------------------- shortlist


def real_words() -> list[str]:
    """WordNet's names of the 21,841 synsets of ImageNet-22k, as timm has them."""
    from timm.data import ImageNetInfo

    names = (name for text in ImageNetInfo("imagenet22k").label_descriptions() for name in text.split(", "))
    return list(dict.fromkeys(names))


@torch.no_grad()
def shortlist(options: argparse.Namespace) -> dict[str, Any]:
    """How many of the ten best words are kept, and at what cost, on scenes that it was not learnt from."""
    model = scenes_model()
    scenes, spatial = scenes_embeddings(model, NUM_SAMPLES + 256)
    own = list(scenes.vocabulary)
    words = [*own, *(word for word in real_words() if word not in scenes.vocabulary)][:20000]
    ours = InferenceDecoder(model.decoder, "fp32", spatial.shape[1])
    compiled = ours.compile(model.encode_words(words))
    samples, test = spatial[:NUM_SAMPLES], spatial[NUM_SAMPLES:]
    learnt = learn_shortlist(torch.cat([ours(part, compiled) for part in samples.split(32)]), 512)
    full = torch.cat([ours(part, compiled) for part in test.split(32)])
    few = torch.cat([ours.shortlisted(part, compiled, learnt) for part in test.split(32)])
    kept, best = few.isfinite(), full.topk(10).indices
    part = test[:32]
    times = interleaved(
        {"full": lambda: ours(part, compiled), "shortlist": lambda: ours.shortlisted(part, compiled, learnt)},
        options.rounds,
        torch.device("cpu"),
    )
    return {
        "words": len(words),
        "own_words": len(own),
        "size": learnt.size,
        "anchors": len(learnt.anchors),
        "sample_images": len(samples),
        "test_images": len(test),
        "top_10_kept": float(kept.gather(1, best).float().mean()),
        "scenes_words_in_top_10": float((best < len(own)).float().mean()),
        "max_difference_of_kept": float((few - full)[kept].abs().max()),
        "full_ms_an_image": statistics.median(times["full"]) / len(part),
        "shortlist_ms_an_image": statistics.median(times["shortlist"]) / len(part),
        "cost": statistics.median(np.divide(times["shortlist"], times["full"])),
        "cost_worst_round": float(np.max(np.divide(times["shortlist"], times["full"]))),
    }


# ------------------------------------------------------------------------------------------------------ report


def markdown(report: dict[str, Any]) -> str:
    """The report for people."""
    machine = report["machine"]
    lines = ["# The head, beside the official design", "", f"Command: `{report['command']}`", ""]
    lines += [f"{machine['processor']}, {machine['threads']} threads of {machine['cores']} cores, {machine['device']}."]
    if "speed" in report:
        lines += [
            "",
            "## Speed",
            "",
            f"D=768, feed-forward 2048, C=2048, S=49. Medians of {report['speed']['rounds']} rounds, interleaved; the",
            "ratio is official / ours, beside the quartiles of the rounds' ratios. The bound is that of a head that",
            "had only the bare products of the feed-forward and the spatial projection to compute, in that precision",
            "and run; mixing the values can go beyond it.",
            "",
            *SPEED_HEADER,
        ]
        lines += [speed_line(row) for row in report["speed"]["rows"]]
        worst = max(row["max_difference"] for row in report["speed"]["rows"] if row["precision"] == "fp32")
        lines += ["", f"fp32 logits differ from the official design's by at most {worst:.0e}."]
        if any(row["compiled"] for row in report["speed"]["rows"]):
            lines += ['int8 is `precision="int8", compile=True`.']
    if "memory" in report:
        lines += ["", "## Memory", "", "fp32, in a process of its own; peak above the head's weights.", ""]
        lines += ["| words | images | peak MiB | of it the compiled words |", "|---:|---:|---:|---:|"]
        lines += [
            f"| {row['words']:,} | {row['batch']} | {row['peak_above_weights_mib']:,.0f} | "
            f"{row['of_it_compiled_words_mib']:,.0f} |"
            for row in report["memory"]["rows"]
        ]
    if "accuracy" in report:
        lines += [
            "",
            "## What a precision changes",
            "",
            "mAP in percent, its change in points, and the largest change of a",
        ]
        lines += [
            "logit, beside the head itself.",
            "",
            "| on | precision | mAP | change | logit |",
            "|---|---|---:|---:|---:|",
        ]
        for name, rows in report["accuracy"].items():
            lines += [
                f"| {name} | {row['precision']} | {row['mean_average_precision']:.2f} | {row['change_points']:+.3f} | "
                f"{row['max_difference']:.0e} |"
                for row in rows
            ]
    if "shortlist" in report:
        s = report["shortlist"]
        lines += [
            "",
            "## Shortlist",
            "",
            f"{s['words']:,} words, {s['own_words']} of them the scenes', with the scenes model; learnt from "
            f"{s['sample_images']} test scenes, measured on",
            f"{s['test_images']} others; {s['anchors']} anchors and {s['size']} words decoded for each.",
            "",
            "| top 10 kept | cost of full decoding | in the worst round | largest difference of a kept logit |",
            "|---:|---:|---:|---:|",
            f"| {100 * s['top_10_kept']:.2f} % | {100 * s['cost']:.1f} % | {100 * s['cost_worst_round']:.1f} % | "
            f"{s['max_difference_of_kept']:.0e} |",
        ]
    return "\n".join(lines) + "\n"


SPEED_HEADER = (
    "| mode | words | images | precision | official ms | ours ms | ratio | quartiles | goal | bound | of it |",
    "|---|---:|---:|---|---:|---:|---:|---|---:|---:|---:|",
)


def speed_line(row: dict[str, Any]) -> str:
    """One row of the table; README shows these very lines."""
    low, high = row["ratio_quartiles"]
    return (
        f"| {row['mode']} | {row['words']:,} | {row['batch']} | {row['precision']} | {row['reference_ms']:.1f} | "
        f"{row['ours_ms']:.1f} | **{row['ratio']:.2f}** | {low:.2f} to {high:.2f} | {row['goal']} | "
        f"{row['bound']:.2f} | {100 * row['share_of_bound']:.0f} % |"
    )


def main() -> None:
    """Measure and write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--root", type=Path, default=Path("../shared/real"), help="the folder of the real material")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--device", default="cpu", help="of the speed section")
    parser.add_argument("--output", type=Path, default=REPORT)
    parser.add_argument("--memory-of", nargs=2, type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.memory_of:
        memory_of(*options.memory_of)
        return
    report = json.loads(options.output.read_text(encoding="utf-8")) if options.output.is_file() else {}
    for section in options.sections:
        report[section] = {"speed": speed, "memory": memory, "accuracy": accuracy, "shortlist": shortlist}[section](
            options
        )
    device = torch.cuda.get_device_name() if options.device == "cuda" else options.device
    report |= {
        "rows": report.get("speed", {}).get("rows", []),
        "command": "python evaluation/benchmark_head.py",
        "machine": {
            "processor": processor_name(),
            "cores": os.cpu_count(),
            "threads": options.threads,
            "device": device,
            "load": os.getloadavg(),
        },
        "shipped_model": shipped_model(),
        "versions": package_versions(),
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    text = markdown(report)
    options.output.with_suffix(".md").write_text(text, encoding="utf-8")
    print(text)


def processor_name() -> str:
    """As the system calls it."""
    info = Path("/proc/cpuinfo")
    names = (
        [line.split(":")[1].strip() for line in info.read_text().splitlines() if "model name" in line]
        if info.is_file()
        else []
    )
    return names[0] if names else platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
