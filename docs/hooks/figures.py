"""mkdocs hook: the tables of the page Reproduce, from evaluation/published.csv, the recipes and evaluation/reports.

A published figure belongs to the recipe whose header names it ("published mAP 84.2 %"). A recipe is reproduced when
there is a report with its name; until then its header must end with "not reproduced here".
"""

import json
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import Files
from mkdocs.structure.pages import Page

from zsmld.recipe import recipe_header, recipe_names
from zsmld.report.published import PublishedFigure, read_published

ROOT = Path(__file__).resolve().parents[2]
REPORTS = ROOT / "evaluation" / "reports"
_NAMES = {
    "mean_average_precision": "mAP",
    "f1_at_3": "F1@3",
    "f1_at_5": "F1@5",
    "top_1_accuracy": "top-1",
}
_DATASETS = {
    "nus_wide": "NUS-WIDE",
    "coco": "COCO",
    "voc2007": "Pascal VOC 2007",
    "open_images": "Open Images",
    "imagenet": "ImageNet",
}


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Comments such as `<!-- table: published -->` become the tables."""
    tables = {"published": published_table, "recipes": recipe_table, "reports": report_table}
    return re.sub(r"<!-- table: (published|recipes|reports) -->", lambda match: tables[match[1]](), markdown)


def recipe_of(figure: PublishedFigure) -> str | None:
    """The recipe whose header names a published figure; None if zsmld has none of that method."""
    found = [
        name
        for name in recipe_names()
        if name.startswith(figure.dataset)
        and figure.printed in re.findall(r"published [^%]*?([\d.]+) %", recipe_header(name)["expected result"])
    ]
    if len(found) > 1:
        raise ValueError(
            f"{figure.method}'s {figure.printed} must stand in one recipe, it does in {found}; tell them apart"
        )
    return found[0] if found else None


def reproduced(recipe: str) -> bool:
    """Whether a report of this recipe is among ours; its header must say the same."""
    header = recipe_header(recipe)["expected result"]
    if (REPORTS / f"{recipe}.json").is_file():
        return True
    if "evaluation/reports/" not in header and not header.endswith("not reproduced here"):
        raise ValueError(
            f"recipe {recipe} must say 'not reproduced here' while no report has its name; correct its header"
        )
    return False


def published_table() -> str:
    """Every figure of published.csv, those of one method and test in one row."""
    rows: dict[tuple[str, ...], list[str]] = {}
    for figure in read_published():
        recipe = recipe_of(figure)
        images = f"{figure.num_images:,}" if figure.num_images else "not stated"
        key = (
            figure.method,
            f"{_DATASETS[figure.dataset]} {figure.part.replace('_', ' ')}, {figure.num_words:,} words, {images} images",
            f"{figure.source}{'; ' + figure.note if figure.note else ''}",
            *_here(figure.method, recipe),
        )
        rows.setdefault(key, []).append(f"{_NAMES[figure.metric]} {figure.printed}")
    lines = [
        "| method | test | figures in percent | recipe here | reproduced here | source |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {method} | {test} | {', '.join(figures)} | {recipe} | {done} | {source} |"
        for (method, test, source, recipe, done), figures in rows.items()
    ]
    return "\n".join(lines)


def recipe_table() -> str:
    """Every bundled recipe with what its header says."""
    lines = []
    for name in recipe_names():
        header = recipe_header(name)
        lines += [
            f"### {name}",
            "",
            f"- Expected: {_plain(header['expected result'])}",
            f"- Cost: {_plain(header['cost'])}",
        ]
        lines += [f"- Source: {_plain(header['source'])}", "", "```bash", *_commands(header["command"]), "```", ""]
    return "\n".join(lines)


def report_table() -> str:
    """Every report of ours with the command that writes it."""
    lines = ["| report | command | machine |", "|---|---|---|"]
    for path in sorted(REPORTS.glob("*.md")):
        text = path.read_text(encoding="utf-8")
        lines.append(
            f"| [{text.splitlines()[0].removeprefix('# ')}](../../evaluation/reports/{path.name}) "
            f"| `{report_command(path)}` | {_machine(path)} |"
        )
    return "\n".join(lines)


def report_command(path: Path) -> str:
    """The command that wrote a report: what its JSON says, or the first in its text."""
    stored = json.loads(path.with_suffix(".json").read_text(encoding="utf-8")).get("command")
    found = [stored] if stored else re.findall(r"`(python evaluation/[^`]+)`", path.read_text(encoding="utf-8"))
    if not found:
        raise ValueError(f"{path.name} must name the command that wrote it, it names none; write the report again")
    return str(found[0])


def _here(method: str, recipe: str | None) -> tuple[str, str]:
    """The recipe, and whether it was reproduced; where there is none, why."""
    if recipe is not None:
        return f"`{recipe}`", "yes" if reproduced(recipe) else _why_not(recipe)
    if method.startswith("ML-Decoder"):
        return "none: its settings are not known well enough", "no: no recipe"
    return "none: a method of others", "no: a method of others"


def _why_not(recipe: str) -> str:
    cost = re.split(r"[;(]| with ", recipe_header(recipe)["cost"])[0].strip()
    return f"no: neither the photos nor a GPU were at hand ({cost}, estimated)"


def _machine(path: Path) -> str:
    machine = json.loads(path.with_suffix(".json").read_text(encoding="utf-8")).get("machine") or {}
    cores = machine.get("cores")
    return ", ".join(filter(None, (str(machine.get("processor", "")), f"{cores} cores" if cores else "")))


def _commands(command: str) -> list[str]:
    return command.split(" && ")


def _plain(text: str) -> str:
    return text.replace("*", "\\*").replace("_", "\\_")
