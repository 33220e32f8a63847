"""The headline table: every figure beside its number of words and images, and its labels per image."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

TITLES = {
    "zsl": "ZSL (unseen words)",
    "gzsl": "GZSL (all words)",
    "seen": "seen words",
    "supervised": "supervised",
    "single_label": "single label",
}

Rows = list[list[str]]


def headline(protocols: Mapping[str, Mapping[str, Any]]) -> tuple[list[str], Rows]:
    """Columns and rows of the headline table, metrics in percent; a cell is empty where a part has no such figure.

    "gzsl" is followed by the seen and the unseen words of the joint ranking, the harmonic mean of their mAP, and the
    figures at a calibration where there are any. CF1 and OF1 stand where the words are those of training or calibrated;
    beside a calibration stands H(R@K), the harmonic mean of the recalls of seen and of unseen labels in the best K.

    Args:
        protocols: part -> figures, as in `report.json`.

    Example:
        >>> figures = {"num_words": 2, "num_images": 9, "labels_per_image": 0.5, "mean_average_precision": 0.25}
        >>> headline({"zsl": figures})
        (['', 'words', 'images', 'labels/image', 'mAP'], [['ZSL (unseen words)', '2', '9', '0.500', '25.0']])
    """
    rows = [row for part, figures in protocols.items() for row in _rows(part, figures)]
    names = figure_columns(protocols)
    columns = ["", "words", "images", "labels/image", *names.values()]
    return columns, [[*row[:4], *(percent(row[4].get(key)) for key in names)] for row in rows]


def figure_columns(protocols: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """The figures of the headline table and their column names, in order.

    Example:
        >>> figure_columns({"zsl": {"mean_average_precision": 0.5, "f1_at_3": 0.25}})
        {'mean_average_precision': 'mAP', 'f1_at_3': 'F1@3'}
    """
    found: dict[str, str] = {}
    for key, name in (("mean_average_precision", "mAP"), ("chance_mean_average_precision", "chance")):
        if any(key in figures for figures in protocols.values()):
            found[key] = name
    for part, figures in list(protocols.items())[::-1]:  # a part with few words may not have the larger K
        for key in figures:
            if key.startswith("top_") and key.endswith("_accuracy"):
                found[key] = f"top-{key.removeprefix('top_').removesuffix('_accuracy')}"
            elif key.startswith("f1_at_") and part != "single_label":  # with one word an image it says nothing
                found[key] = f"F1@{key.removeprefix('f1_at_')}"
    calibrated = [figures["calibrated"] for figures in protocols.values() if "calibrated" in figures]
    if calibrated:  # what stacking moves: F1@K counts every label alike, this the seen and the unseen ones
        names = [name for name in calibrated[0] if name.startswith("harmonic_mean_recall_at_")][:1]
        found |= {name: f"H(R@{name.removeprefix('harmonic_mean_recall_at_')})" for name in names}
    if calibrated or any(part in ("seen", "supervised") for part in protocols):
        found |= {"per_class_f1": "CF1", "overall_f1": "OF1"}
    return found


def _rows(part: str, figures: Mapping[str, Any]) -> list[tuple[str, str, str, str, Mapping[str, Any]]]:
    images = str(figures["num_images"])
    rows = [(TITLES[part], str(figures["num_words"]), images, f"{figures['labels_per_image']:.3f}", figures)]
    if part != "gzsl":
        return rows
    for side in ("seen", "unseen"):
        words = [word for word in figures["words"].values() if word["seen"] == (side == "seen")]
        labels = sum(word["num_positives"] for word in words) / figures["num_images"]
        value = {"mean_average_precision": figures[f"{side}_mean_average_precision"]}
        rows.append((f"  of which {side}", str(len(words)), images, f"{labels:.3f}", value))
    if "harmonic_mean" in figures:
        rows.append(("  harmonic mean", "", "", "", {"mean_average_precision": figures["harmonic_mean"]}))
    if "calibrated" in figures:
        rows.append((_calibrated_title(figures["calibrated"]), *rows[0][1:4], figures["calibrated"]))
    return rows


def _calibrated_title(figures: Mapping[str, Any]) -> str:
    """The row's name says what would make its figures unfair beside others."""
    calibration = figures.get("calibration", {})
    unfair = ["transductive"] if calibration.get("transductive") else []
    split = calibration.get("chosen_on", {}).get("split", "val")
    if split != "val":  # "all" holds test images too
        unfair.append("on training images" if split == "train" else "on test images")
    return f"GZSL, calibrated ({', '.join(unfair)})" if unfair else "GZSL, calibrated"


def notes(
    protocols: Mapping[str, Mapping[str, Any]], model: Mapping[str, Any], dataset: Mapping[str, Any]
) -> list[str]:
    """What must be known to read the headline table: policies, images left out, held-out words, the calibration.

    Args:
        protocols, model, dataset: as in `report.json`.

    Example:
        >>> part = {"policies": {"keep_unlabelled": True}}
        >>> notes({"gzsl": part}, {"heldout_words": ["red ring"]}, {})[1]
        'held out: 1 of the seen words had no labels in training; it chose the epoch and counts as seen'
    """
    said = [f"policies: {policies_line(protocols)}"]
    manifest = dataset.get("manifest") or {}
    dropped = {name: number for name, number in manifest.get("images", {}).items() if name not in ("listed", "used")}
    dropped |= {"missing_on_disk": manifest.get("missing_images", 0)}
    if any(dropped.values()):
        counts = ", ".join(f"{number} {name.replace('_', ' ')}" for name, number in dropped.items() if number)
        said.append(f"images left out before the evaluation: {counts}")
    if heldout := model.get("heldout_words"):
        which = "it chose the epoch and counts" if len(heldout) == 1 else "they chose the epoch and count"
        said.append(f"held out: {len(heldout)} of the seen words had no labels in training; {which} as seen")
    for figures in protocols.values():
        if calibration := figures.get("calibrated", {}).get("calibration"):
            said.append(f"calibration: {_calibration_line(calibration, dataset)}")
    return said


def _calibration_line(calibration: Mapping[str, Any], dataset: Mapping[str, Any]) -> str:
    chosen_on = calibration.get("chosen_on", {})
    line = (
        f"standardization {calibration.get('standardization')}, stacking {calibration.get('stacking', 0.0):.3g}, "
        f"chosen on {chosen_on.get('num_images', '?')} {chosen_on.get('split', '?')} images with "
        f"{len(chosen_on.get('heldout_words', ()))} held-out words"
    )
    if calibration.get("transductive"):
        line += "; TRANSDUCTIVE: its statistics are those of the evaluated images"
    digest = chosen_on.get("image_ids_sha256")
    if digest is not None and digest == dataset.get("image_ids_sha256"):
        line += "; CHOSEN ON THE EVALUATED IMAGES: not a fair figure"
    return line


def policies_line(protocols: Mapping[str, Mapping[str, Any]]) -> str:
    """The policies that decide the headline's figures, in one line.

    Example:
        >>> policies_line({"zsl": {"policies": {"keep_unlabelled": True, "empty_words": "zero", "top_k": (3, 5)}}})
        'keep_unlabelled=True, empty_words=zero'
    """
    policies = list(protocols.values())[-1]["policies"]
    shown = ["keep_unlabelled", "empty_words", "average_precision"]
    if any(part in ("seen", "supervised") for part in protocols):
        shown.append("threshold")
    return ", ".join(f"{name}={policies[name]}" for name in shown if name in policies)


def text_table(columns: Sequence[str], rows: Rows) -> str:
    """A table for a terminal: the first column to the left, the others to the right.

    Example:
        >>> print(text_table(["", "mAP"], [["ZSL", "25.0"]]))
              mAP
        ZSL  25.0
    """
    table = [list(columns), *rows]
    widths = [max(len(row[i]) for row in table) for i in range(len(columns))]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
        for row in table
    )


def markdown_table(columns: Sequence[str], rows: Rows) -> str:
    """A Markdown table, cells escaped.

    Example:
        >>> print(markdown_table(["word", "AP"], [["50% | off", "25.0"]]), end="")
        | word | AP |
        | --- | ---: |
        | 50% \\| off | 25.0 |
    """
    rule = ["---"] + ["---:"] * (len(columns) - 1)
    table = [list(map(_cell, columns)), rule, *(list(map(_cell, row)) for row in rows)]
    return "".join("| " + " | ".join(row) + " |\n" for row in table)


def _cell(text: str) -> str:
    for mark in ("\\", "|", "<", "`", "*", "_"):  # what Markdown would take for its own
        text = text.replace(mark, "\\" + mark)
    return text.replace("\n", " ")


def percent(value: float | None) -> str:
    """A fraction as it is printed.

    Example:
        >>> percent(0.256), percent(None)
        ('25.6', '')
    """
    return "" if value is None or math.isnan(value) else f"{100 * value:.1f}"
