"""How fast JPEG files become scores, beside encoder and head on tensors in memory; and what adding words costs.

    python evaluation/benchmark_predict.py --root ../shared/real

COCO photos and the paper's word head (D=768, untrained) on the 1,006 words of NUS-WIDE, behind ImageNet MobileNetV2
(224 px) and ResNet50 at 448 px (random weights, which cost as much). The photos are as they come, 256 px, and enlarged
to 1,920x1,280. In each of several rounds the same images are scored from tensors and from files, one after the other,
from the first file opened to the last prediction, processes begun and ended; ratios are of the same round.
Beside it stands what each step costs in seconds of a processor, which other programs on the machine hardly change, and
what follows from it: with C cores no program gives more than C / (all steps) images a second.
The network has as many threads as there are cores, torch's own default; `--threads 1` leaves the others to workers.
Then 1,000 words are added to 10,000, beside encoding these 1,000 alone (MiniLM, nothing cached).
Three to four minutes on two idle cores. Writes `evaluation/reports/benchmark_predict.{json,md}`.
"""

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
from coco_photos_zsl import image_encoder
from PIL import Image
from torch import Tensor

from zsmld import ImageEncoder, Predictor, TextEncoder, Vocabulary, create_model
from zsmld.images import load_image
from zsmld.model import package_versions
from zsmld.predictor.loading import _inputs, _Item, resolve_workers
from zsmld.text import resolve_device

MEMORY = "tensors in memory"
REPORT = Path(__file__).parent / "reports" / "benchmark_predict.json"


def nus_wide_words(root: Path) -> list[str]:
    """The 1,000 tags and 81 concepts, each once."""
    files = [root / "nus_wide" / name for name in ("TagList1k.txt", "Concepts81.txt")]
    return list(dict.fromkeys(word for file in files for word in file.read_text(encoding="utf-8").split()))


def build_predictor(name: str, words: list[str], batch_size: int, options: argparse.Namespace) -> Predictor:
    """An untrained head on one of the encoders; the words' embeddings are random, which cost as much."""
    if name.startswith("ResNet50"):
        encoder = ImageEncoder("timm:resnet50", pretrained=False, image_size=448)
    else:
        encoder = image_encoder(options.root)
    torch.manual_seed(0)
    model = create_model(encoder, TextEncoder("minilm", device="cpu"))
    model.remember_words(Vocabulary(words), torch.nn.functional.normalize(torch.randn(len(words), 384), dim=1))
    return Predictor(model, device=options.device, batch_size=batch_size)


def enlarged(paths: list[Path], folder: Path) -> list[Path]:
    """The photos as a camera might have written them, 1,920x1,280."""
    found = [folder / path.name for path in paths]
    for path, large in zip(paths, found, strict=True):
        image = Image.open(path).convert("RGB").resize((1920, 1280), Image.Resampling.BICUBIC)
        image.save(large, quality=90)
    return found


@torch.no_grad()
def compute(predictor: Predictor, batches: list[Tensor]) -> None:
    """What the predictor computes for a batch, and nothing else."""
    for inputs in batches:
        predictor._network.logits(inputs, predictor._words).cpu()


def num_cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def seconds(work: Callable[[], object]) -> float:
    """Wall time."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def with_threads(number: int, work: Callable[[], object]) -> None:
    """Another number of threads for this alone."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    work()
    torch.set_num_threads(before)


def processor_seconds(work: Callable[[], object]) -> float:
    """Of all threads of this process."""
    started = time.process_time()
    work()
    return time.process_time() - started


def measure_steps(predictor: Predictor, paths: list[Path]) -> dict[str, float]:
    """Seconds of a processor that an image costs in each step: the median image, or for the last two, batch.

    The network has one thread here: several spin while they wait for each other, which costs but does nothing.
    """
    transform, size = predictor.model.image_encoder.transform, predictor.batch_size
    pictures = [load_image(path) for path in paths]
    fitted = np.stack([np.asarray(transform.fit(picture)) for picture in pictures])
    batches = [fitted[start : start + size] for start in range(0, len(fitted) - size + 1, size)]
    items = [_Item(None, None)] * size
    inputs = [_inputs(items, pixels, {}, transform, predictor.device) for pixels in batches]
    steps: dict[str, list[Callable[[], object]]] = {
        "decode": [partial(load_image, path) for path in paths],
        "resize": [partial(transform.fit, picture) for picture in pictures],
        "normalise": [partial(_inputs, items, pixels, {}, transform, predictor.device) for pixels in batches],
        "network": [partial(with_threads, 1, partial(compute, predictor, [batch])) for batch in inputs],
    }
    costs = {step: float(np.median([processor_seconds(work) for work in works])) for step, works in steps.items()}
    return costs | {step: costs[step] / size for step in ("normalise", "network")}


def measure(predictor: Predictor, photos: dict[str, list[Path]], rounds: int) -> list[dict[str, Any]]:
    """One encoder: a row for tensors, and one for each size of photos and number of workers."""
    transform, size = predictor.model.image_encoder.transform, predictor.batch_size
    paths = next(iter(photos.values()))
    tensors = torch.stack([transform(load_image(path)) for path in paths]).to(predictor.device)
    batches = list(tensors.to(memory_format=torch.channels_last).split(size))
    some = max(1, resolve_workers("auto", predictor.device, None, size))

    def files(paths: list[Path], num_workers: int) -> None:
        predictor.num_workers = num_workers
        assert all(p.error is None for p in predictor.predict(paths))

    ways: dict[tuple[str, int], Callable[[], object]] = {(MEMORY, 0): lambda: compute(predictor, batches)}
    if (cores := num_cores()) > torch.get_num_threads() and predictor.device.type == "cpu":
        ways[f"{MEMORY}, {cores} threads", 0] = lambda: with_threads(cores, ways[MEMORY, 0])
    ways |= {(kind, number): partial(files, photos[kind], number) for kind in photos for number in (0, some)}
    compute(predictor, batches[:1])  # warms up
    speeds: dict[tuple[str, int], list[float]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way, work in ways.items():
            speeds[way].append(len(paths) / seconds(work))
    rows = []
    in_memory = speeds[MEMORY, 0]
    for (kind, num_workers), found in speeds.items():
        ratios = np.divide(found, in_memory)
        rows.append(
            {
                "from": kind,
                "num_workers": num_workers,
                "images_per_second_median": float(np.median(found)),
                "images_per_second_min": min(found),
                "images_per_second_max": max(found),
                "ratio_median": float(np.median(ratios)),
                "ratio_min": float(ratios.min()),
                "ratio_max": float(ratios.max()),
            }
        )
    return rows


def measure_words(predictor: Predictor, new: list[str], rounds: int) -> dict[str, Any]:
    """Adding words to 10,000, and encoding the same words alone."""
    many = [f"word {number}" for number in range(10_000)]
    predictor.model.remember_words(Vocabulary(many), torch.randn(len(many), 384))
    adding, encoding, known = [], [], []
    for number in range(-1, rounds):  # the first round loads the network
        with tempfile.TemporaryDirectory() as folder:
            encoders = [TextEncoder("minilm", predictor.device, f"{folder}/{part}") for part in "ab"]
            for encoder in encoders:
                encoder.encode(["dog"])
            some = new if number >= 0 else new[:32]
            encoded = seconds(lambda: encoders[0].encode_words(Vocabulary(some)))  # noqa: B023
            growing = Predictor(predictor.model, many, device=str(predictor.device), text_encoder=encoders[1])
            added = seconds(lambda: growing.add_words(some))  # noqa: B023
            growing.remove_words(some)
            again = seconds(lambda: growing.add_words(some))  # noqa: B023
            if number >= 0:
                adding.append(added)
                encoding.append(encoded)
                known.append(again)
    return {
        "words": len(many),
        "added": len(new),
        "encode_seconds_median": float(np.median(encoding)),
        "add_seconds_median": float(np.median(adding)),
        "ratio_median": float(np.median(np.divide(adding, encoding))),
        "ratio_max": float(np.max(np.divide(adding, encoding))),
        "add_cached_seconds_median": float(np.median(known)),
    }


def main() -> None:
    """Measure and write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path("../shared/real"), help="the folder of the real material")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=24, help="with MobileNetV2; a quarter of it with ResNet50")
    parser.add_argument("--threads", type=int, default=num_cores(), help="of the network; as many as cores by default")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path, default=REPORT)
    options = parser.parse_args()
    if not (options.root / "coco_photos").is_dir():
        parser.error(f"--root must be the folder of the real material, {options.root} has no coco_photos; correct it")

    started = time.perf_counter()
    torch.set_num_threads(options.threads)
    device = resolve_device(options.device)
    words = nus_wide_words(options.root)
    photos = sorted((options.root / "coco_photos" / "images").glob("*.jpg"))[: options.images]
    setups: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        sizes = {"photos of 256 px": photos, "photos of 1,920x1,280": enlarged(photos, Path(folder))}
        for name, batch_size, share in (("MobileNetV2, 224 px", 4, 1), ("ResNet50, 448 px", 2, 4)):
            predictor = build_predictor(name, words, batch_size, options)
            some = {size: paths[: max(batch_size, len(paths) // share)] for size, paths in sizes.items()}
            rows = measure(predictor, some, options.rounds)
            steps = {size: measure_steps(predictor, paths) for size, paths in some.items()}
            setups[name] = {"batch_size": batch_size, "rows": rows, "processor_seconds": steps}
    report = {
        "command": "python evaluation/benchmark_predict.py --root ../shared/real",
        "words": len(words),
        "setups": setups,
        "add_words": measure_words(predictor, words[:1000], options.rounds),
        "rounds": options.rounds,
        "images": len(photos),
        "seconds": time.perf_counter() - started,
        "machine": {
            "processor": platform.processor() or platform.machine(),
            "cores": num_cores(),
            "device": str(device),
            "threads": torch.get_num_threads(),
            "load": os.getloadavg(),
        },
        "versions": package_versions() | {"pillow": PIL.__version__},
    }
    options.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    text = markdown(report)
    options.output.with_suffix(".md").write_text(text, encoding="utf-8")
    print(text)


def markdown(report: dict[str, Any]) -> str:
    """The report for people."""
    machine, added = report["machine"], report["add_words"]
    lines = [
        "# From JPEG files to scores",
        "",
        f"{report['images']} COCO photos (a quarter with ResNet50), {report['words']:,} words, the paper's head.",
        f"{report['rounds']} rounds, one way after the other; medians, and ratios within a round. Device "
        f"{machine['device']}, {machine['threads']} thread(s) of",
        f"the network, warm file cache, {machine['cores']} cores (load {machine['load'][0]:.1f}).",
        "",
        "| encoder | from | workers | images/s | lowest to highest | of the speed in memory | lowest to highest |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for name, setup in report["setups"].items():
        for row in setup["rows"]:
            low, middle, high = (row[f"images_per_second_{what}"] for what in ("min", "median", "max"))
            ratios = f"{row['ratio_median']:.1%} | {row['ratio_min']:.1%} to {row['ratio_max']:.1%}"
            workers = "" if row["from"].startswith(MEMORY) else row["num_workers"]
            lines.append(
                f"| {name} | {row['from']} | {workers} | {middle:,.2f} | {low:,.2f} to {high:,.2f} | {ratios} |"
            )
    lines += [
        "",
        "In memory is the network alone, on batches of transformed images. From files is all of `Predictor.predict`:",
        "workers begun and ended, decoding, resizing, the network, ranking. Pixels are those of training, to the bit.",
        "",
        "Milliseconds of a processor that an image costs, and the bounds that follow for any program of these steps.",
        "In turn: no workers, of the speed in memory. Overlapped: no core ever idle, "
        f"{machine['cores']} / (all steps), and that of the",
        "speed in memory; above 100 % where the network alone leaves cores idle.",
        "",
        "| encoder | photos | decode | resize | normalise | network | in turn | overlapped, images/s | of memory's |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name, setup in report["setups"].items():
        for size, steps in setup["processor_seconds"].items():
            costs = " | ".join(f"{1000 * steps[step]:,.1f}" for step in ("decode", "resize", "normalise", "network"))
            in_memory = next(r["images_per_second_median"] for r in setup["rows"] if r["from"] == MEMORY)
            before, overlapped = sum(steps.values()) - steps["network"], machine["cores"] / sum(steps.values())
            bounds = f"{1 / (1 + in_memory * before):.1%} | {overlapped:,.2f} | {overlapped / in_memory:.1%}"
            lines.append(f"| {name} | {size} | {costs} | {bounds} |")
    lines += [
        "",
        f"| {added['added']:,} words added to {added['words']:,} | seconds |",
        "|---|---:|",
        f"| encode them alone (MiniLM, not cached) | {added['encode_seconds_median']:.2f} |",
        f"| `add_words`, not cached | {added['add_seconds_median']:.2f} |",
        f"| `add_words`, their embeddings in the disk cache | {added['add_cached_seconds_median']:.3f} |",
        "",
        f"`add_words` takes {added['ratio_median']:.2f} times as long as encoding (at most {added['ratio_max']:.2f}).",
        "",
        f"Command: `{report['command']}`",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
