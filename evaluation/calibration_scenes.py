"""What calibration does to the shipped model: chosen on validation scenes, measured on test scenes.

    python evaluation/calibration_scenes.py

Writes evaluation/reports/calibration_scenes.{json,md}. Cost: about a minute on two cores.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from shipped import shipped_model

from zsmld import Evaluator, ZeroShotClassifier, build_dataset
from zsmld.calibration import calibrate
from zsmld.model import package_versions
from zsmld.resources import resource_path

# What is asked of `calibrate`; the first is its default.
CHOICES: dict[str, dict[str, Any]] = {
    "default": {},
    "stacking for F1@3": {"stacking_for": "f1"},
    "no standardisation": {"standardization": "none"},
    "per image": {"standardization": "per_image"},
    "per word, transductive": {"standardization": "per_word", "transductive": True},
    "precision 0.9": {"objective": "precision=0.9"},
}
COLUMNS = {
    "F1@3": "f1_at_3",
    "seen R@3": "seen_recall_at_3",
    "unseen R@3": "unseen_recall_at_3",
    "harmonic R@3": "harmonic_mean_recall_at_3",
    "mAP": "mean_average_precision",
    "OP": "overall_precision",
    "OR": "overall_recall",
    "OF1": "overall_f1",
    "CF1": "per_class_f1",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=resource_path("data", "scenes", "model"))
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "reports")
    options = parser.parse_args()
    model = ZeroShotClassifier.from_pretrained(options.model)
    validation, test = build_dataset("scenes", split="val"), build_dataset("scenes", split="test")
    rows: dict[str, dict[str, Any]] = {}
    for name, choice in CHOICES.items():
        model.calibration = calibrate(model, validation, **choice).to_dict()
        gzsl = Evaluator("scenes_gzsl").evaluate(model, test).protocols["gzsl"]
        calibrated = gzsl.pop("calibrated")
        rows.setdefault("none, threshold 0.5", {key: gzsl[key] for key in COLUMNS.values()})
        rows[name] = {key: calibrated[key] for key in COLUMNS.values()} | {"calibration": calibrated["calibration"]}
    content = {
        "command": "python evaluation/calibration_scenes.py",
        "rows": rows,
        "shipped_model": shipped_model(),
        "versions": package_versions(),
    }
    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / "calibration_scenes.json"
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    lines = [
        "# Calibration of the shipped model",
        "",
        f"GZSL on {len(test):,} test scenes (100 words, 20 of them unseen), in percent. Everything is chosen on "
        f"{len(validation):,} validation scenes, with {len(model.heldout_words)} seen words that were not trained as "
        "the unseen side; no unseen word and no test image takes part, but for the row that says transductive, whose "
        "statistics are those of the test images.",
        "",
        "| calibration | " + " | ".join(COLUMNS) + " |",
        "|---" + "|---:" * len(COLUMNS) + "|",
        *(
            f"| {name} | " + " | ".join(f"{100 * row[key]:.1f}" for key in COLUMNS.values()) + " |"
            for name, row in rows.items()
        ),
        "",
        "OP, OR, OF1 and CF1 are those of the words' thresholds. Validation scenes hold seen words only, so a "
        "precision that is reached there is not one of images with unseen words.",
        "",
        f"Command: `{content['command']}`",
    ]
    path.with_suffix(".md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
