"""The figures of a model card: the table, and what the Hub reads of it."""

import json
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from zsmld.model.markup import inline, inline_code

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

    from zsmld.model import ZeroShotClassifier

_PARTS = {
    "zsl": "ZSL (unseen words)",
    "gzsl": "GZSL (all words)",
    "seen": "seen words",
    "supervised": "supervised",
    "single_label": "single label",
}


class HasReport(Protocol):
    """A `zsmld.report.Report`, or what gives the content of a `report.json` likewise."""

    def to_dict(self) -> dict[str, Any]:
        """The content of `report.json`."""


ReportLike = HasReport | Mapping[str, Any] | str | Path


def read_report(report: ReportLike) -> dict[str, Any]:
    """The content of a report.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it is not one.
    """
    if not isinstance(report, str | Path):
        given = dict(report) if isinstance(report, Mapping) else report.to_dict()
        content, where = json.loads(json.dumps(given, default=str)), "the one given"  # as if it had been saved
    else:
        path = Path(report)
        path = path / "report.json" if path.is_dir() else path
        if not path.is_file():
            raise FileNotFoundError(
                f"report must be a folder with report.json, or a JSON file, not found: {path}; run zsmld evaluate first"
            )
        where = str(path)
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"report must be JSON, {path} cannot be read: {error}; evaluate again") from error
    keys = ("protocols", "model", "dataset")
    if not isinstance(content, dict) or not all(isinstance(content.get(key), dict) for key in keys):
        raise ValueError(f"report must have {', '.join(keys)} as report.json has them, {where} has not; evaluate again")
    return content


def check_report(content: Mapping[str, Any], model: "ZeroShotClassifier") -> None:
    """Refuse the report of another model; one of predictions alone has nothing to compare.

    Raises:
        ValueError: what is other.
    """
    own = {
        "image_encoder": model.image_encoder.spec,
        "text_encoder": model.text_encoder,
        "output": model.decoder.output,
        "num_parameters": sum(p.numel() for p in model.parameters()),
    }
    stated = content["model"]
    other = [f"{key}={stated[key]!r}" for key, value in own.items() if key in stated and stated[key] != value]
    if other:
        raise ValueError(
            f"report must be of this model, {model!r}, got one of a model with {', '.join(other)}; evaluate this one"
        )


def _rows(content: Mapping[str, Any]) -> Iterable[tuple[str, str, Mapping[str, Any]]]:
    """Part, its title and its figures; of a joint ranking also the seen words, the unseen words and their mean."""
    for part, figures in content["protocols"].items():
        title = _PARTS.get(part, part)
        yield part, title, figures
        for side in ("seen", "unseen"):
            if (value := figures.get(f"{side}_mean_average_precision")) is not None:
                yield f"{part}_{side}", f"{title}: of which {side}", {"mean_average_precision": value}
        if (value := figures.get("harmonic_mean")) is not None:
            yield f"{part}_harmonic_mean", f"{title}: harmonic mean", {"mean_average_precision": value}
        if "calibrated" in figures:
            yield f"{part}_calibrated", f"{title}, calibrated", figures["calibrated"]


def _columns(content: Mapping[str, Any]) -> dict[str, str]:
    """Figures of the table and what they are called there."""
    found = {"mean_average_precision": "mAP", "chance_mean_average_precision": "chance mAP"}
    for figures in content["protocols"].values():
        for key in figures:
            if match := re.fullmatch(r"f1_at_(\d+)", key):
                found[key] = f"F1@{match[1]}"
            elif match := re.fullmatch(r"top_(\d+)_accuracy", key):
                found[key] = f"top-{match[1]}"
    return found


def eval_results(content: Mapping[str, Any], task: str) -> list["EvalResult"]:
    """What the Hub shows beside a model of a task: every figure of the table but chance, as a fraction."""
    from huggingface_hub import EvalResult

    dataset, found = content["dataset"], []
    for part, title, figures in _rows(content):
        for key, name in _columns(content).items():
            value = figures.get(key)
            if isinstance(value, int | float) and math.isfinite(value) and not key.startswith("chance"):
                found.append(
                    EvalResult(
                        task_type=task,
                        dataset_type=str(dataset.get("name", "unknown")),
                        dataset_name=str(dataset.get("name", "unknown")),
                        dataset_config=str(content.get("protocol", "unknown")),
                        dataset_split=str(dataset.get("split", "unknown")),
                        metric_type=key,
                        metric_name=f"{name}, {title}",
                        metric_config=part,
                        metric_value=float(value),
                    )
                )
    return found


def figures_text(content: Mapping[str, Any] | None) -> str:
    """The table of figures, in percent, and the policies behind it; or that there are none."""
    if content is None:
        return "No report was given: how well this model does is not stated here."
    dataset, columns = content["dataset"], _columns(content)
    protocol, name, split = (
        inline_code(known.get(key, "unknown"))
        for known, key in ((content, "protocol"), (dataset, "name"), (dataset, "split"))
    )
    text = f"Protocol {protocol} on {name}, images of {split}; in percent.\n\n"
    rows = [["", "words", "images", "labels/image", *columns.values()], ["---"] + ["---:"] * (3 + len(columns))]
    for _, title, figures in _rows(content):
        labels = figures.get("labels_per_image")
        counts = [inline(figures.get(key, "")) for key in ("num_words", "num_images")]
        counts.append(f"{labels:.3f}" if isinstance(labels, int | float) else "")
        rows.append([inline(title), *counts, *(_percent(figures.get(key)) for key in columns)])
    text += "".join(f"| {' | '.join(row)} |\n" for row in rows)
    for part, figures in content["protocols"].items():
        if policies := figures.get("policies"):
            shown = ", ".join(f"{key}={value}" for key, value in policies.items())
            text += f"\nPolicies of {inline(_PARTS.get(part, part))}: {inline_code(shown)}  "
    if heldout := content["model"].get("heldout_words"):
        text += f"\n\nHeld out: {len(heldout)} of the seen words had no labels in training; they chose the epoch."
    if unreadable := dataset.get("num_unreadable"):
        text += f"\n\n{inline(unreadable)} images could not be read and are left out."
    return text.rstrip()


def _percent(value: Any) -> str:
    return f"{100 * value:.1f}" if isinstance(value, int | float) and math.isfinite(value) else ""
