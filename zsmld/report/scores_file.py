"""The scores and targets of a report in one .npz file: what a comparison of two reports needs."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from scipy import sparse

from zsmld.metrics import AveragePrecision, EmptyWords
from zsmld.reading import digest_of, read_numpy
from zsmld.report.headline import TITLES
from zsmld.vocabulary import Vocabulary

Kind = Literal["logits", "scores"]


@dataclass(frozen=True)
class ScoresFile:
    """What the file holds.

    Attributes:
        scores: (M,N) fp32, or fp64 where they came so.
        targets: (M,N) int8 in {1, 0, −1}.
        ids: M image ids.
        vocabulary: N words with their partition.
        kind: whether `scores` are "logits" or "scores" in [0,1].
    """

    scores: np.ndarray
    targets: np.ndarray
    ids: list[str]
    vocabulary: Vocabulary
    kind: Kind


def write_scores(path: str | Path, content: ScoresFile) -> str:
    """Write the file; equal contents make equal files.

    The scores are one uncompressed array named by their kind, so that `zsmld evaluate --logits FILE.npz` reads it too.
    Targets are sparse around their most frequent value.

    Returns:
        SHA-256 of the file.

    Raises:
        ValueError: if ids, words and arrays do not fit each other.

    Example:
        >>> import tempfile
        >>> zeros = np.zeros((1, 2), np.int8)
        >>> content = ScoresFile(zeros.astype(np.float32), zeros, ["a.png"], Vocabulary(["x", "y"]), "logits")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     digest = write_scores(folder + "/a.npz", content)
        ...     read_scores(folder + "/a.npz", digest).vocabulary.words
        ('x', 'y')
    """
    shape = (len(content.ids), len(content.vocabulary))
    if content.scores.shape != shape or content.targets.shape != shape:
        raise ValueError(
            f"scores and targets must be {shape}, one row an image id and one column a word, got "
            f"{content.scores.shape} and {content.targets.shape}; give the report the ids of its rows"
        )
    fill = 0 if (content.targets < 0).mean() < 0.5 else -1
    entries = sparse.csr_array((content.targets - fill).astype(np.int8))
    arrays = {
        content.kind: np.ascontiguousarray(content.scores, np.float64 if _is_double(content.scores) else np.float32),
        "target_values": entries.data,
        "target_columns": entries.indices.astype(np.int32),
        "target_starts": entries.indptr.astype(np.int64),
        "target_fill": np.array(fill, np.int8),
        "ids": np.array(content.ids, np.str_),
        "words": np.array(content.vocabulary.words, np.str_),
        "is_seen": content.vocabulary.is_seen,
    }
    with open(path, "wb") as file:  # to a path of another ending, NumPy would add its own
        np.savez(file, **arrays)
    return digest_of(path)


def read_scores(path: str | Path, sha256: str) -> ScoresFile:
    """Read the file back.

    Raises:
        FileNotFoundError: if it is not there.
        ValueError: if it is not the one with this SHA-256, or no scores file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} must be the scores that the report was saved with, not found; keep both files together, or save "
            f"the report again"
        )
    if digest_of(path) != sha256:
        raise ValueError(
            f"{path} must be the scores that the report was saved with, its SHA-256 is not the one in the report; "
            f"save the report again"
        )
    try:
        with read_numpy(path) as arrays:
            kind: Kind = "logits" if "logits" in arrays.files else "scores"
            scores, words, is_seen = arrays[kind], arrays["words"].tolist(), arrays["is_seen"]
            stored = (arrays["target_values"], arrays["target_columns"], arrays["target_starts"])
            targets = _dense(*stored, arrays["target_fill"], scores.shape)
            ids = arrays["ids"].tolist()
        if scores.dtype.kind != "f" or not np.isin(targets, (-1, 0, 1)).all():
            raise ValueError(f"scores are {scores.dtype} {scores.shape}, targets {targets.shape} must be 1, 0 or -1")
        vocabulary = Vocabulary(words, seen=[word for word, seen in zip(words, is_seen, strict=True) if seen])
        if not all(isinstance(image_id, str) for image_id in ids):
            raise ValueError("ids that are no texts")
        if len(ids) != len(scores) or len(words) != scores.shape[1]:
            raise ValueError(f"{scores.shape} scores of {len(ids)} ids and {len(words)} words")
    except Exception as error:  # NumPy, zip and SciPy have many kinds; the reader needs the path
        raise ValueError(
            f"{path} must be the scores that the report was saved with, it cannot be read as such: {error}; save the "
            f"report again"
        ) from error
    return ScoresFile(scores, targets, ids, vocabulary, kind)


def _dense(
    values: np.ndarray, columns: np.ndarray, starts: np.ndarray, fill: np.ndarray, shape: tuple[int, ...]
) -> np.ndarray:
    """Targets (M,N) of what stands apart from the fill, row by row. SciPy's own writes beyond the memory for some."""
    given = (values, columns, starts)
    if len(shape) != 2 or fill.shape or any(a.ndim != 1 or a.dtype.kind not in "iu" for a in given):
        raise ValueError(f"scores {shape}, targets in {[(a.dtype.name, a.shape) for a in given]}")
    counts: np.ndarray = np.diff(starts.astype(np.int64))
    if len(starts) != shape[0] + 1 or starts[0] != 0 or (counts < 0).any() or (counts > len(columns)).any():
        raise ValueError(f"{len(starts)} starts of {shape[0]} rows of targets, which do not rise from 0")
    if not len(columns) == len(values) == counts.sum() or ((columns < 0) | (columns >= shape[1])).any():
        raise ValueError(f"{len(values)} targets in {len(columns)} columns, not all of them below {shape[1]}")
    if int(fill) not in (-1, 0, 1) or (np.abs(values.astype(np.int64)) > 2).any():
        raise ValueError("targets that are not 1, 0 or -1")
    targets = np.full(shape, fill, np.int8)
    targets[np.repeat(np.arange(shape[0]), counts), columns] += values.astype(np.int8)
    return targets


def report_path(path: str | Path, scores: bool = True) -> Path:
    """Path of the JSON file that a report is saved to, if nothing is in the way of it and of the files beside it.

    Only what an earlier report wrote is ever replaced: the JSON must be a report's, and a .npz file must be the one
    that it names by SHA-256. A door can ask before the long work.

    Args:
        path: a folder, or a path that ends in .json.
        scores: whether the .npz file will be written too.

    Raises:
        ValueError: on another ending, or if a file is there that is not an earlier report's.

    Example:
        >>> report_path("runs/evaluate").as_posix(), report_path("runs/today.json").as_posix()
        ('runs/evaluate/report.json', 'runs/today.json')
    """
    path = Path(path)
    if path.suffix not in ("", ".json") and not path.is_dir():
        raise ValueError(
            f"path must be a folder or end in .json, got {path}; write {path.with_suffix('.json').name}, whose stem "
            f"the other files take (--output)"
        )
    json_path = path if path.suffix == ".json" and not path.is_dir() else path / "report.json"
    earlier: Any = None
    if json_path.is_file():
        try:
            earlier = json.loads(json_path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError):  # no JSON, no UTF-8, or lists in lists without end
            earlier = None
    ours = isinstance(earlier, dict) and isinstance(earlier.get("protocols"), dict)
    written = [json_path, *(json_path.with_suffix(ending) for ending in (".md", ".html"))]
    foreign = [] if ours else [file for file in written if file.exists()]
    scores_path = json_path.with_suffix(".npz")
    if scores and scores_path.exists() and not is_scores_of(earlier, scores_path):
        foreign.append(scores_path)
    if foreign:
        raise ValueError(
            f"path must leave other files alone, {', '.join(map(str, foreign))} would be overwritten and is not an "
            f"earlier report's; save under another name (--output), or move it away"
        )
    return json_path


def is_scores_of(report: Any, path: Path) -> bool:
    """Whether a file is the one that a report's JSON names as its scores, by name and SHA-256."""
    file = report.get("scores_file") if isinstance(report, dict) else None
    if not isinstance(file, dict) or file.get("name") != path.name or not path.is_file():
        return False
    return digest_of(path) == file.get("sha256")


def open_report(path: str | Path) -> tuple[dict[str, Any], ScoresFile, Path]:
    """The JSON of a saved report, its scores, and the path of the JSON.

    Args:
        path: the JSON file, or the folder with `report.json`.

    Raises:
        FileNotFoundError: if a file is not there.
        ValueError: if it is no report, lacks what a comparison reads, has no scores, or has other scores than it was
            saved with.
    """
    path = Path(path)
    path = path / "report.json" if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} must be the JSON file of a report, not found; correct the path, or write one with zsmld evaluate"
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # the last: lists in lists without end
        raise ValueError(f"{path} must be the JSON file of a report, it is no JSON: {error}") from error
    if not isinstance(content, dict) or not isinstance(content.get("protocols"), dict) or not content["protocols"]:
        raise ValueError(f"{path} must be the JSON file of a report, it has no protocols; write one with Report.save")
    file = content.get("scores_file")
    problems = [problem for part, figures in content["protocols"].items() for problem in _amiss(part, figures)]
    if file is not None and not (isinstance(file, dict) and all(isinstance(file.get(k), str) for k in _FILE_KEYS)):
        problems.append(f"scores_file must have {' and '.join(_FILE_KEYS)}, or be null")
    if problems:
        raise ValueError(
            f"{path} must be a report as Report.save writes it, found: {'; '.join(problems)}; evaluate again"
        )
    if file is None:
        raise ValueError(
            f"{path} must name the scores it was computed from, it was saved without them; save the report again with "
            f"scores=True (zsmld evaluate does)"
        )
    scores = read_scores(path.with_name(Path(file["name"]).name), file["sha256"])
    ranked = {word for figures in content["protocols"].values() for word in figures["words"]}
    absent = sorted(ranked - set(scores.vocabulary.words))
    if absent:
        raise ValueError(f"{path} must have the words of its scores, {absent[:3]} have none; evaluate again")
    return content, scores, path


def _amiss(part: str, figures: Any) -> list[str]:
    """What a comparison reads of one part and does not find, or not as it should be."""
    if part not in TITLES or not isinstance(figures, dict):
        return [f"{part!r} is no part of a protocol"]
    problems = []
    if not isinstance(figures.get("words"), dict) or not figures["words"]:
        problems.append(f"{part} must have words")
    policies = figures.get("policies")
    if not isinstance(policies, dict):
        return [*problems, f"{part} must have policies"]
    problems += [
        f"{part} must have the policy {name}, got {policies.get(name)!r}"
        for name, fits in _POLICIES.items()
        if not fits(policies.get(name))
    ]
    return problems


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


_FILE_KEYS = ("name", "sha256")
# What decides a compared figure, each with what it must be.
_POLICIES: dict[str, Callable[[Any], bool]] = {
    "keep_unlabelled": lambda v: isinstance(v, bool),
    "empty_words": lambda v: v in get_args(EmptyWords),
    "average_precision": lambda v: v in get_args(AveragePrecision),
    "top_k": lambda v: isinstance(v, list) and all(type(k) is int and k > 0 for k in v),
    "threshold": _is_number,
}


def _is_double(scores: np.ndarray) -> bool:
    return scores.dtype == np.float64
