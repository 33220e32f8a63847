"""How much faster a head trains from kept spatial embeddings than behind its frozen encoder.

    python evaluation/benchmark_features.py --root ../shared/real

COCO photos and word heads on 65 words, behind frozen encoders: ImageNet MobileNetV2 (224 px, 49 positions of 1,280)
with the paper's head (D=768) and with a narrow one (D=256), and ResNet50 at 448 px (196 positions of 2,048; random
weights, which cost as much) with the narrow one. In each of several rounds the same steps are run three ways, one after
the other: from the photos, decoded and encoded anew; from embeddings in memory; from embeddings on disk (fp16, both).
Ratios are of the same round.
Writes `evaluation/reports/benchmark_features.{json,md}`.
"""

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from coco_photos_zsl import image_encoder
from torch import Tensor

from zsmld import ImageEncoder, MLDecoder, TextEncoder, build_dataset
from zsmld.datasets.loader import load_batches
from zsmld.features import FeatureCache
from zsmld.losses import build_loss
from zsmld.model import package_versions
from zsmld.text import resolve_device

REPORT = Path(__file__).parent / "reports" / "benchmark_features.json"
WAYS = {"photos": "photos, encoded in each step", "memory": "embeddings in memory", "disk": "embeddings on disk"}


def embeddings_of(
    dataset: Any, encoder: ImageEncoder, rows: np.ndarray, batch_size: int, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches (B,S,C) and (B,N): from photos through the encoder, from kept embeddings as they are."""
    for batch in load_batches(dataset, encoder.transform, batch_size, rows):
        inputs = batch.inputs.to(device)
        if inputs.ndim == 4:
            with torch.no_grad():
                inputs = encoder(inputs)
        yield inputs, batch.targets.to(device)


def images_per_second(batches: Iterator[tuple[Tensor, Tensor]], head: MLDecoder | None, words: Tensor) -> float:
    """Steps of the head over the batches; without a head, the batches alone."""
    loss = build_loss("asymmetric")
    optimizer = None if head is None else torch.optim.AdamW(head.parameters(), lr=1e-4)
    started, num_images = time.perf_counter(), 0
    for spatial, targets in batches:
        if head is not None and optimizer is not None:
            loss(head(spatial, words), targets).backward()
            optimizer.step()
            optimizer.zero_grad()
        num_images += len(spatial)
    if words.is_cuda:
        torch.cuda.synchronize()
    return num_images / (time.perf_counter() - started)


def build_encoder(name: str, root: Path) -> ImageEncoder:
    """A frozen encoder."""
    if name == "ResNet50, 448 px":
        return ImageEncoder("timm:resnet50", pretrained=False, image_size=448).eval()
    return image_encoder(root).eval()


def measure(
    encoder: ImageEncoder, decoder_dim: int, photos: Any, batch_size: int, words: Tensor, options: argparse.Namespace
) -> dict[str, Any]:
    """One encoder and one head: rows of each way, and what the cache takes."""
    device = words.device
    torch.manual_seed(0)
    head = MLDecoder(encoder.encoder_dim, text_dim=words.shape[1], decoder_dim=decoder_dim).to(device)
    with tempfile.TemporaryDirectory() as folder:
        cache = FeatureCache(folder, batch_size=batch_size)
        started = time.perf_counter()
        disk = cache.extract(encoder, photos, options.device)
        filled = time.perf_counter() - started
        started = time.perf_counter()
        disk = cache.extract(encoder, photos, options.device)
        opened = time.perf_counter() - started
        size = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
        memory = FeatureCache(batch_size=batch_size).extract(encoder, photos, options.device)
        equal = torch.equal(disk.spatial_embeddings.float(), memory.spatial_embeddings.float())

        datasets = {"photos": photos, "memory": memory, "disk": disk}
        found: dict[tuple[str, str], list[float]] = {}
        for number in range(-1, options.rounds):  # the first round warms up
            order = np.random.default_rng(max(0, number)).permutation(len(photos))
            for way, dataset in datasets.items():
                for what, used in (("inputs", None), ("training", head)):
                    rows = order[: options.steps * batch_size]
                    batches = embeddings_of(dataset, encoder, rows, batch_size, device)
                    speed = images_per_second(batches, used, words)
                    if number >= 0:
                        found.setdefault((what, way), []).append(speed)
    rows_of_report = [
        {
            "what": what,
            "way": way,
            "images_per_second_median": float(np.median(speeds)),
            "images_per_second_min": min(speeds),
            "ratio_median": float(np.median(np.divide(speeds, found[what, "photos"]))),
            "ratio_min": float(np.min(np.divide(speeds, found[what, "photos"]))),
        }
        for (what, way), speeds in found.items()
    ]
    return {
        "decoder_dim": decoder_dim,
        "batch_size": batch_size,
        "rows": sorted(rows_of_report, key=lambda row: row["what"], reverse=True),
        "images": len(disk),
        "fill_seconds": filled,
        "open_seconds": opened,
        "mebibytes_per_image": size / 2**20 / len(disk),
        "equal_to_memory": equal,
    }


def main() -> None:
    """Measure and write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path("../shared/real"), help="the folder of the real material")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3, help="of the head, in each way and round")
    parser.add_argument("--threads", type=int, default=1, help="two on a busy machine measure how they wait for it")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path, default=REPORT)
    options = parser.parse_args()
    if not (options.root / "coco_photos").is_dir():
        parser.error(f"--root must be the folder of the real material, {options.root} has no coco_photos; correct it")

    torch.set_num_threads(options.threads)
    device = resolve_device(options.device)
    photos = build_dataset(
        "table",
        path=options.root / "coco_photos/labels.csv",
        partition=f"{options.root / 'coco_photos/zero_shot_partitions.json'}#48/17",
    )
    text_encoder = TextEncoder(f"vectors:{options.root / 'vectors/coco80_clip_vit_b32.npz'}")
    words = text_encoder.encode_words(photos.vocabulary).to(device)
    setups = {}
    for name, decoder_dim, batch_size, num_photos in (
        ("MobileNetV2, 224 px", 768, 32, 192),
        ("MobileNetV2, 224 px", 256, 32, 192),
        ("ResNet50, 448 px", 256, 8, 8 * options.steps),
    ):
        encoder = build_encoder(name, options.root).to(device)
        some = Subset(photos, num_photos)
        setups[f"{name}, D={decoder_dim}"] = measure(encoder, decoder_dim, some, batch_size, words, options)
    report = {
        "command": "python evaluation/benchmark_features.py --root ../shared/real",
        "setups": setups,
        "rounds": options.rounds,
        "steps": options.steps,
        "machine": {
            "processor": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "device": str(device),
            "threads": torch.get_num_threads(),
            "load": os.getloadavg(),
        },
        "versions": package_versions(),
    }
    options.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    text = markdown(report)
    options.output.with_suffix(".md").write_text(text, encoding="utf-8")
    print(text)


class Subset:
    """The first images of a dataset."""

    def __init__(self, dataset: Any, num_images: int) -> None:
        self.name, self.split, self.missing = dataset.name, dataset.split, dataset.missing
        self.vocabulary, self.targets = dataset.vocabulary, dataset.targets[:num_images]
        self._dataset = dataset

    def __len__(self) -> int:
        return int(self.targets.shape[0])

    def __getitem__(self, row: int) -> dict[str, Any]:
        return dict(self._dataset[row])


def markdown(report: dict[str, Any]) -> str:
    """The report for people."""
    machine = report["machine"]
    titles = {"training": "steps of the head", "inputs": "its inputs alone"}
    lines = [
        "# Training a head from kept embeddings",
        "",
        "COCO photos, frozen encoders, word heads on 65 words.",
        f"{report['rounds']} rounds of {report['steps']} steps each way, one after the other; medians, and ratios",
        f"within a round. Device {machine['device']}, {machine['threads']} thread, no workers, warm file cache, "
        f"{machine['cores']} shared cores (load {machine['load'][0]:.1f}).",
        "",
        "| encoder, head | | from | images/s | times as fast | in the worst round |",
        "|---|---|---|---:|---:|---:|",
    ]
    for name, setup in report["setups"].items():
        lines += [
            f"| {name} | {titles[row['what']]} | {WAYS[row['way']]} | {row['images_per_second_median']:,.1f} | "
            f"{row['ratio_median']:.1f} | {row['ratio_min']:.1f} |"
            for row in setup["rows"]
        ]
    lines += [
        "",
        "| encoder | images | filled in s | opened in s | MiB an image | bits equal memory's |",
        "|---|" + "---:|" * 5,
    ]
    for name, setup in report["setups"].items():
        equal = "yes" if setup["equal_to_memory"] else "NO"
        lines.append(
            f"| {name} | {setup['images']} | {setup['fill_seconds']:.1f} | {setup['open_seconds']:.2f} | "
            f"{setup['mebibytes_per_image']:.3f} | {equal} |"
        )
    lines += [
        "",
        "The head is the same work each way, and on a CPU much of a step whose inputs are ready: the larger the",
        "encoder, the smaller the head and the faster the device, the nearer a step comes to what the cache saves.",
        "Here an image is known by its pixels, so that opening decodes it; a prepared dataset is known by its files.",
        "",
        f"Command: `{report['command']}`",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
