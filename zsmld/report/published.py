"""Published figures that may stand beside a run: `evaluation/published.csv`, one figure a row, each with its source."""

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from zsmld.report.headline import Rows, figure_columns
from zsmld.resources import resource_path

_TEST_SETS = ("full", "labelled", "unknown")
_MATCHES = ("yes", "no", "unknown")


@dataclass(frozen=True)
class PublishedFigure:
    """One published figure.

    Attributes:
        method: as the authors call it.
        dataset: "nus_wide", "coco", "open_images", "voc2007", "imagenet".
        part: "zsl", "gzsl", "supervised" or "single_label".
        num_words: words ranked.
        test_set: "full", "labelled" (images without any of the words were dropped) or "unknown".
        num_images: of the test set; None where it is not stated.
        metric: named as in `report.json`.
        percent: the figure as it was printed.
        protocol_matches: "yes" where the protocol is known to be that of zsmld, else "no" or "unknown".
        source: the paper or the page it stands on.
        note: what a reader must know besides.
        printed: `percent` with the decimals that it was published with.
    """

    method: str
    dataset: str
    part: str
    num_words: int
    test_set: str
    num_images: int | None
    metric: str
    percent: float
    protocol_matches: str
    source: str
    note: str
    printed: str = ""


def read_published(path: str | Path | None = None) -> list[PublishedFigure]:
    """Read published figures.

    Args:
        path: a CSV file with a column for each attribute of `PublishedFigure` but `printed`; default the one that comes
            with zsmld.

    Raises:
        FileNotFoundError: if the file is not there.
        ValueError: on other columns or on values that cannot be; everything that is wrong is named.

    Example:
        >>> [(f.metric, f.percent) for f in read_published() if f.method == "Fast0Tag" and f.part == "zsl"]
        [('f1_at_3', 27.8), ('f1_at_5', 26.4), ('mean_average_precision', 15.1)]
    """
    path = resource_path("evaluation", "published.csv") if path is None else Path(path)
    try:
        reader = csv.DictReader(io.StringIO(path.read_text(encoding="utf-8")), strict=True)
        rows = list(reader)
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path.name} must be a CSV file in UTF-8, it is not: {error}; repair it") from error
    columns = [field.name for field in fields(PublishedFigure) if field.name != "printed"]
    if reader.fieldnames != columns:
        raise ValueError(
            f"{path.name} must have the columns {columns}, got {reader.fieldnames}; correct its first line"
        )
    figures, wrong, found = [], [], set()
    for line, row in enumerate(rows, 2):
        try:
            figure = _parse(row)
        except (ValueError, TypeError) as error:
            wrong.append(f"line {line}: {error}")
            continue
        key = (figure.method, figure.dataset, figure.part, figure.num_words, figure.test_set, figure.metric)
        if key in found:
            wrong.append(f"line {line}: {figure.method} has its {figure.metric} a second time")
        found.add(key)
        figures.append(figure)
    if wrong:
        raise ValueError(f"{path.name} must have one well-formed figure a line, got {'; '.join(wrong)}; correct them")
    return figures


def _parse(row: Mapping[str, Any]) -> PublishedFigure:
    if None in row or None in row.values():
        raise ValueError("another number of cells than columns")
    value = float(row["percent"])
    for name, allowed in (("test_set", _TEST_SETS), ("protocol_matches", _MATCHES)):
        if row[name] not in allowed:
            raise ValueError(f"{name} must be one of {list(allowed)}, got {row[name]!r}")
    if not 0 < value <= 100:
        raise ValueError(f"percent must be above 0 and at most 100, got {row['percent']}")
    empty = [name for name in ("method", "dataset", "part", "metric", "source") if not row[name].strip()]
    if empty:
        raise ValueError(f"{', '.join(empty)} must not be empty")
    numbers = {"num_words": int(row["num_words"]), "num_images": int(row["num_images"]) if row["num_images"] else None}
    return PublishedFigure(**{**row, **numbers, "percent": value, "printed": row["percent"].strip()})


def published_beside(
    protocol_name: str, protocols: Mapping[str, Mapping[str, Any]], figures: list[PublishedFigure] | None = None
) -> tuple[list[PublishedFigure], list[PublishedFigure]]:
    """Published figures on the dataset, part and number of words of a run, in two lists that are never mixed.

    A figure on labelled images only never stands beside a run that keeps the others, nor the other way round: it is in
    neither list.

    Args:
        protocol_name: of the run; its dataset is the start of it, as "nus_wide" in "nus_wide_gzsl".
        protocols: part -> figures of the run, as in `report.json`.
        figures: default those that come with zsmld.

    Returns:
        Figures whose protocol is known to match and whose test images are as many as the run's; and figures whose test
        images, protocol or policies (`empty_words`, `average_precision`) are mixed, unknown or different, which a run
        cannot be compared with as they stand.

    Example:
        >>> part = {"num_words": 81, "num_images": 107859, "policies": {"keep_unlabelled": True}}
        >>> same, unknown = published_beside("nus_wide_zsl", {"zsl": part})
        >>> {f.method for f in same} == {"Fast0Tag", "LESA", "Generative"}, "MKT" in {f.method for f in unknown}
        (True, True)
    """
    same: list[PublishedFigure] = []
    unknown: list[PublishedFigure] = []
    for figure in read_published() if figures is None else figures:
        run = protocols.get(figure.part)
        if run is None or run["num_words"] != figure.num_words or not protocol_name.startswith(f"{figure.dataset}_"):
            continue
        test_set = "full" if run["policies"]["keep_unlabelled"] else "labelled"
        if figure.test_set not in (test_set, "unknown"):
            continue
        policies = run["policies"]  # papers count a word without positives as zero, and integrate all points
        usual = policies.get("empty_words", "zero") == "zero"
        usual &= policies.get("average_precision", "exact") in ("exact", "legacy")
        matches = figure.protocol_matches == "yes" and figure.test_set == test_set and usual
        (same if matches and figure.num_images in (None, run["num_images"]) else unknown).append(figure)
    return same, unknown


def published_tables(
    protocol_name: str, protocols: Mapping[str, Mapping[str, Any]], figures: list[PublishedFigure] | None = None
) -> list[tuple[str, list[str], Rows, list[str]]]:
    """The lists of `published_beside` as tables: title, columns, rows, notes; an empty list gives no table.

    Example:
        >>> published_tables("scenes_zsl", {"zsl": {"num_words": 20}})
        []
    """
    titles = (
        "Published on the same words and test images",
        "Published, but test images, protocol or policies unknown or different: not comparable as they stand",
    )
    names = figure_columns(protocols)
    tables = []
    for title, found in zip(titles, published_beside(protocol_name, protocols, figures), strict=True):
        methods: dict[tuple[str, str, int, int | None, str], dict[str, str]] = {}
        notes: dict[str, list[str]] = {}
        for figure in found:
            key = (figure.method, figure.part.upper(), figure.num_words, figure.num_images, figure.source)
            methods.setdefault(key, {})[figure.metric] = figure.printed or str(figure.percent)
            if figure.note and figure.method not in notes.setdefault(figure.note, []):
                notes[figure.note].append(figure.method)
        shown = [key for key in names if any(key in values for values in methods.values())]
        rows = [
            [f"{part} {method}", str(words), "?" if images is None else str(images)]
            + [values.get(key, "") for key in shown]
            + [source]
            for (method, part, words, images, source), values in methods.items()
        ]
        if rows:
            columns = ["", "words", "images", *(names[key] for key in shown), "source"]
            tables.append((title, columns, rows, [f"{', '.join(by)}: {note}" for note, by in notes.items()]))
    return tables
