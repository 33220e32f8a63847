"""The scores and targets of a report in one .npz file: what a comparison of two reports needs."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from scipy import sparse

from zsmld.vocabulary import Vocabulary

Kind = Literal["logits", "scores"]


@dataclass(frozen=True)
class ScoresFile:
    """What the file holds.

    Attributes:
        scores: (M,N) fp32.
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
    fill = 0 if (content.targets == -1).mean() < 0.5 else -1
    entries = sparse.csr_array((content.targets - fill).astype(np.int8))
    arrays = {
        content.kind: np.ascontiguousarray(content.scores, np.float32),
        "target_values": entries.data,
        "target_columns": entries.indices.astype(np.int32),
        "target_starts": entries.indptr.astype(np.int64),
        "target_fill": np.array(fill, np.int8),
        "ids": np.array(content.ids, np.str_),
        "words": np.array(content.vocabulary.words, np.str_),
        "is_seen": content.vocabulary.is_seen,
    }
    np.savez(path, **arrays)
    return _digest(path)


def read_scores(path: str | Path, sha256: str) -> ScoresFile:
    """Read the file back.

    Raises:
        FileNotFoundError: if it is not there.
        ValueError: if it is not the one with this SHA-256.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} must be the scores that the report was saved with, not found; keep both files together, or save "
            f"the report again"
        )
    if _digest(path) != sha256:
        raise ValueError(
            f"{path} must be the scores that the report was saved with, its SHA-256 is not the one in the report; "
            f"save the report again"
        )
    with np.load(path, allow_pickle=False) as arrays:
        kind: Kind = "logits" if "logits" in arrays.files else "scores"
        scores, words, is_seen = arrays[kind], arrays["words"].tolist(), arrays["is_seen"]
        triple = (arrays["target_values"], arrays["target_columns"], arrays["target_starts"])
        targets = sparse.csr_array(triple, shape=scores.shape).toarray() + arrays["target_fill"]
        ids = arrays["ids"].tolist()
    vocabulary = Vocabulary(words, seen=[word for word, seen in zip(words, is_seen, strict=True) if seen])
    return ScoresFile(scores, targets.astype(np.int8), ids, vocabulary, kind)


def open_report(path: str | Path) -> tuple[dict[str, Any], ScoresFile, Path]:
    """The JSON of a saved report, its scores, and the path of the JSON.

    Args:
        path: the JSON file, or the folder with `report.json`.

    Raises:
        FileNotFoundError: if a file is not there.
        ValueError: if it is no report, has no scores, or has other scores than it was saved with.
    """
    path = Path(path)
    path = path / "report.json" if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(f"{path} must be the JSON file of a report, not found; correct the path")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # JSONDecodeError, UnicodeDecodeError
        raise ValueError(f"{path} must be the JSON file of a report, it is no JSON: {error}") from error
    if not isinstance(content, dict) or not isinstance(content.get("protocols"), dict) or not content["protocols"]:
        raise ValueError(f"{path} must be the JSON file of a report, it has no protocols; write one with Report.save")
    file = content.get("scores_file")
    if file is None:
        raise ValueError(
            f"{path} must name the scores it was computed from, it was saved without them; save the report again with "
            f"scores=True"
        )
    return content, read_scores(path.with_name(Path(file["name"]).name), file["sha256"]), path


def _digest(path: str | Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
