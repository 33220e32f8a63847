"""Word vectors in any usual form -> one array for the words that are wanted."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from zsmld.interop.checkpoint_files import read_arrays
from zsmld.text.word_vectors import WordVectors, orient_vectors
from zsmld.vocabulary import check_words


@dataclass
class VectorReport:
    """Word vectors, and how each word got its own.

    Attributes:
        words: those with a vector, in the order asked for.
        embeddings: (N,T) fp32, as the file has them, not normalised.
        averaged: those of several parts, whose vector is the mean over the parts.
        missing: words that have none; they are not in `words`.
        lengths: of the shortest and the longest vector of the whole file.
    """

    words: tuple[str, ...]
    embeddings: np.ndarray
    averaged: tuple[str, ...]
    missing: tuple[str, ...]
    lengths: tuple[float, float]

    def __str__(self) -> str:
        lines = [f"{len(self.words)} words with a vector of {self.embeddings.shape[1]} numbers"]
        if self.averaged:
            lines.append(f"{len(self.averaged)} by the mean of their parts: {', '.join(self.averaged)}")
        if self.missing:
            lines.append(f"{len(self.missing)} without a vector, left out: {', '.join(self.missing)}")
        return "\n".join(lines)


def import_word_vectors(
    path: str | Path,
    output: str | Path | None = None,
    words: Sequence[str] | str | Path | None = None,
    classes: Sequence[str] | str | Path | None = None,
) -> VectorReport:
    """Find the vectors of words in a file of any usual form.

    Args:
        path: GloVe, fastText or word2vec text; `.npz` with `words` (or `classes`) and one array; or an array alone,
            (T,N), (1,T,N) or (N,T), as `.npy`, `.pt`, `.pth`, or a pickle of arrays.
        output: a `.npz` to write, which the text encoder `vectors:FILE` reads; None writes none.
        words: the words that are wanted, a list or a file; default all of the file.
        classes: the words of an array alone, in its order, a list or a file; default `classes.pickle`, `classes.txt`
            or `classes.json` beside a `.npy` or a pickle.

    Returns:
        The vectors, and which words have none: a word counts as it is, with underscores, in lower case, and then as
        the mean of its parts.

    Raises:
        FileNotFoundError: if a file does not exist.
        ValueError: if the file has another form, or no word has a vector.

    Source: Alibaba-MIIL/ZS_SDL ships (300,N) arrays and lists of classes, the official ML-Decoder takes (1,300,N).

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "vectors.txt"
        >>> _ = file.write_text("red 1 0 0\\ncar 0 1 0\\n")
        >>> report = import_word_vectors(file, words=["red car", "zebra"])
        >>> print(report)
        1 words with a vector of 3 numbers
        1 by the mean of their parts: red car
        1 without a vector, left out: zebra
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"word_vectors must be an existing file, not found: {path}; correct the path")
    if output is not None and Path(output).suffix != ".npz":
        raise ValueError(f"output must end in .npz, by which the text encoder knows its form, got {output}; rename it")
    names = None if classes is None else read_classes(classes)
    if names is None and path.suffix in (".npy", ".pickle", ".pkl"):
        names = read_classes(_beside(path))
    if names is not None and path.suffix in (".pickle", ".pkl"):
        vectors = WordVectors.from_array(orient_vectors(np.asarray(_array_of(path)), len(names), str(path)), names)
    else:
        vectors = WordVectors(str(path), torch.device("cpu"), True, names)
    wanted = vectors.words if words is None else check_words(read_classes(words))
    found = {word: vector for word in wanted if (vector := vectors.lookup(word)) is not None}
    if not found:
        raise ValueError(
            f"words must have a vector in {path.name}, got none for all {len(wanted)}, such as {list(wanted[:5])}; "
            f"use vectors of their language"
        )
    report = VectorReport(
        words=tuple(found),
        embeddings=np.stack(list(found.values())).astype(np.float32),
        averaged=tuple(word for word in found if not vectors.has(word)),
        missing=tuple(word for word in wanted if word not in found),
        lengths=vectors.lengths(),
    )
    if output is not None:
        Path(output).parent.mkdir(parents=True, exist_ok=True)
        np.savez(output, words=np.array(report.words), embeddings=report.embeddings)
    return report


def read_classes(classes: Sequence[str] | str | Path) -> tuple[str, ...]:
    """A list of words as it is; or from a file: one a line, a JSON list or `{index: word}`, or a pickle of texts.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it holds no list of words.
    """
    if not isinstance(classes, (str, Path)):
        return tuple(classes)
    path = Path(classes)
    if not path.is_file():
        raise FileNotFoundError(f"words must be a list or an existing file, not found: {path}; correct the path")
    try:
        if path.suffix in (".pickle", ".pkl"):
            found = read_arrays(path)
        elif path.suffix == ".json":
            found = json.loads(path.read_text(encoding="utf-8-sig"))
        else:
            found = [line for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
        if isinstance(found, dict):
            found = [found[label] for label in sorted(found, key=int)]
    except (ValueError, RecursionError) as error:  # the last: lists in lists without end
        raise ValueError(f"{path} must hold a list of words, cannot read it: {error}; write one a line") from error
    if isinstance(found, np.ndarray) and found.ndim == 1:  # of two dimensions, one may be 0 and the other anything
        found = found.tolist()
    if not isinstance(found, (list, tuple)) or not found or not all(isinstance(word, str) for word in found):
        raise ValueError(f"{path} must hold a list of words, got {found!r:.60}; write one a line")
    return tuple(word.strip() for word in found)


def _beside(path: Path) -> Path:
    for candidate in (path.with_name("classes.pickle"), path.with_name("classes.txt"), path.with_name("classes.json")):
        if candidate.is_file():
            return candidate
    raise ValueError(f"classes must name the words of the array {path}, got none; give a list or a file")


def _array_of(path: Path) -> np.ndarray:
    loaded = read_arrays(path)
    if not isinstance(loaded, np.ndarray):
        raise ValueError(f"{path} must hold one array of word vectors, got {type(loaded).__name__}; save it as .npy")
    return loaded
