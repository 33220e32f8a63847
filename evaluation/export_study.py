"""What exporting a model changes: largest differences from PyTorch in every form, and mAP in fp16 and int8.

    python evaluation/export_study.py --root ../shared/real

forms       the scenes model in every format and form, beside PyTorch; the script of the folder beside a Predictor
precisions  mAP of ONNX files: the scenes model on 1,000 test scenes, all 100 words; and a head of the paper's size on
            frozen ImageNet MobileNetV2, trained here on four fifths of the 412 COCO photos, all 80 words on the rest

int8 is calibrated with images that are not scored: validation scenes, photos of the training. Cost: about ten minutes
on two cores, most of it the training, which is kept under --work. Writes evaluation/reports/export.{json,md}.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from coco_photos_zsl import folds, image_encoder, load_features, train
from shipped import shipped_model

from zsmld import Predictor, TextEncoder, ZeroShotClassifier, build_dataset
from zsmld.datasets.loader import load_batches
from zsmld.export import export_model, load_exported
from zsmld.export.formats import has_compiler
from zsmld.metrics import average_precision, mean_average_precision
from zsmld.model import package_versions
from zsmld.resources import resource_path

COMMAND = "python evaluation/export_study.py --root ../shared/real"
NUM_SCENES = 1000
FORMS: dict[str, dict[str, Any]] = {
    "ONNX, words as an input": {},
    "ONNX, frozen words": {"words": "stored"},
    "ONNX, frozen words, pixels": {"words": "stored", "include_preprocessing": True},
    "torch.export, words as an input": {"format": "torch_export"},
    "torch.export, frozen words": {"format": "torch_export", "words": "stored"},
    "AOTInductor, frozen words": {"format": "aot_inductor", "words": "stored"},
}
PRECISIONS: dict[str, dict[str, Any]] = {
    "fp32": {},
    "fp16": {"precision": "fp16"},
    "int8, dynamic (products alone)": {"precision": "int8"},
    "int8, static (convolutions too)": {"precision": "int8", "calibration_images": True},
}


def forms(model: ZeroShotClassifier, home: Path) -> list[dict[str, Any]]:
    """The largest difference from PyTorch of each form."""
    rows = []
    for name, options in FORMS.items():
        if options.get("format") == "aot_inductor" and not has_compiler():
            continue
        report = export_model(model, home / name.replace(" ", "_"), **options)
        rows.append({"form": name, "megabytes": report.bytes / 1e6, "logits": report.largest_difference})
        rows[-1]["scores"] = report.largest_score_difference
        print(report.to_text(), flush=True)
    return rows


def script(model: ZeroShotClassifier, home: Path) -> float:
    """The largest difference of what score.py prints, with four decimals, from a Predictor."""
    scenes = build_dataset("scenes", split="test", num_images=20)
    (home / "scored").mkdir()
    for place in range(20):
        scenes[place]["image"].resize((97, 61)).save(home / "scored" / f"{place:02}.jpg")
    paths = [str(path) for path in sorted((home / "scored").iterdir())]
    command = [sys.executable, str(home / "ONNX,_frozen_words" / "score.py"), *paths]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    found, _ = Predictor(model, device="cpu").score(paths)
    labels = {word: label for label, word in enumerate(model.vocabulary or ())}
    differences = []
    for line, scores in zip(printed, found, strict=True):
        for entry in line.split("\t")[1:]:
            word, score = entry.rsplit(" ", 1)
            differences.append(abs(float(score) - float(scores[labels[word]])))
    return max(differences)


@torch.no_grad()
def logits_of(model: ZeroShotClassifier, dataset: Any, words: torch.Tensor) -> np.ndarray:
    """(M,N)."""
    batches = load_batches(dataset, model.image_encoder.transform, 32)
    return torch.cat([model(batch.inputs, words) for batch in batches]).numpy()


def precisions(
    model: ZeroShotClassifier, dataset: Any, targets: np.ndarray, calibration_images: Any, home: Path
) -> list[dict[str, Any]]:
    """mAP in percent of each precision, as ONNX with words as an input."""
    words, rows = model.encode_words(dataset.vocabulary), []
    expected = logits_of(model, dataset, words)
    for name, options in {"PyTorch": None, **PRECISIONS}.items():
        row: dict[str, Any] = {"precision": name}
        logits = expected
        if options is not None:
            if "calibration_images" in options:
                options = options | {"calibration_images": calibration_images}
            folder = home / name.replace(" ", "_")
            report = export_model(model, folder, **options)
            logits = logits_of(load_exported(folder, "cpu", trust_program=True), dataset, words)
            row |= {"megabytes": report.bytes / 1e6, "quantization": report.quantization}
        row["mean_average_precision"] = 100 * mean_average_precision(average_precision(logits, targets), "skip")
        row["change"] = row["mean_average_precision"] - (rows or [row])[0]["mean_average_precision"]
        row["largest_difference"] = float(np.abs(logits - expected).max())
        rows.append(row)
        print({key: value for key, value in row.items() if key != "quantization"}, flush=True)
    return rows


def photos(root: Path, work: Path, home: Path) -> list[dict[str, Any]]:
    """The first fifth of the COCO photos, with a head trained on the others."""
    kept = work / "photos_model"
    if not kept.is_dir():
        features, encoder = load_features(root), image_encoder(root)
        words = TextEncoder(f"vectors:{root / 'vectors/coco80_clip_vit_b32.npz'}")
        trained, _ = train(features, np.concatenate(folds(len(features))[1:]), encoder, words)
        trained.save_pretrained(kept)
    model = ZeroShotClassifier.from_pretrained(kept)
    dataset = build_dataset("table", path=root / "coco_photos/labels.csv", templates=("a {}",))
    test, *others = folds(len(dataset))
    chosen = torch.utils.data.Subset(dataset, test.tolist())
    chosen.vocabulary = dataset.vocabulary  # type: ignore[attr-defined]
    typical = [dataset[int(row)]["image"] for row in np.concatenate(others)[:128]]
    return precisions(model, chosen, dataset.targets.toarray()[test], typical, home)


def markdown(report: dict[str, Any]) -> str:
    """The tables."""
    lines = ["# Export: what it changes", "", f"Written by `{COMMAND}`.", ""]
    lines += ["Largest absolute differences from PyTorch, the scenes model, 1 to 8 images:", ""]
    lines += ["| form | MB | logits | scores |", "|---|---:|---:|---:|"]
    lines += [
        f"| {r['form']} | {r['megabytes']:.1f} | {r['logits']:.1e} | {r['scores']:.1e} |" for r in report["forms"]
    ]
    lines += [
        "",
        f"Scores that `score.py` prints, from a Predictor's: {report['script_difference']:.1e} (4 decimals).",
        "",
    ]
    for name, title in (("scenes", "1,000 test scenes, 100 words"), ("photos", "83 COCO photos, 80 words")):
        if name in report:
            lines += [f"## mAP: {title}", "", "| precision | MB | mAP | change | largest logit difference |"]
            lines += ["|---|---:|---:|---:|---:|"]
            for r in report[name]:
                size = f"{r['megabytes']:.1f}" if "megabytes" in r else ""
                lines.append(
                    f"| {r['precision']} | {size} | {r['mean_average_precision']:.2f} | {r['change']:+.2f} | "
                    f"{r['largest_difference']:.1e} |"
                )
            lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path("../shared/real"))
    parser.add_argument("--work", type=Path, default=Path("runs/export_study"), help="keeps the trained head")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "reports")
    options = parser.parse_args()
    model = ZeroShotClassifier.from_pretrained(resource_path("data", "scenes", "model"))
    report: dict[str, Any] = {"command": COMMAND}
    with tempfile.TemporaryDirectory() as home:
        if options.root.is_dir():
            report["photos"] = photos(options.root, options.work, Path(home, "photos"))
        scenes = build_dataset("scenes", split="test", num_images=NUM_SCENES)
        val = build_dataset("scenes", split="val", num_images=128)
        typical = [val[row]["image"] for row in range(128)]
        report["scenes"] = precisions(model, scenes, scenes.targets.toarray(), typical, Path(home, "scenes"))
        report["forms"] = forms(model, Path(home))
        report["script_difference"] = script(model, Path(home))
    import onnxruntime

    report["shipped_model"] = shipped_model()
    report["versions"] = package_versions() | {"onnxruntime": onnxruntime.__version__}
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "export.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    (options.output / "export.md").write_text(markdown(report), encoding="utf-8")
    print(markdown(report))


if __name__ == "__main__":
    main()
