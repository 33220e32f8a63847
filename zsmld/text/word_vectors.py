"""Files of word vectors: GloVe, fastText or word2vec text, .npz with `words` and `embeddings`, or .pt with both."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from zsmld.reading import read_numpy, read_torch


class WordVectors:
    """A word is looked up as it is, with underscores, in lower case, then as the mean of its parts.

    Args:
        name: the file: text; `.npz` with `words` and `embeddings`, or `classes` and an array; `.pt` or `.pth` with
            `classes` and a tensor; or with `classes` given, an array alone, also `.npy`.
        device: not used; a look-up needs none.
        pretrained: not used.
        classes: the words of an array alone.

    Raises:
        ValueError: if the file has another form, or is damaged; the message names the place.
    """

    def __init__(self, name: str, device: torch.device, pretrained: bool, classes: Sequence[str] | None = None) -> None:
        self._name = Path(name).name
        self._labels, self._vectors = _read_vectors(Path(name), classes)
        self.text_dim = int(self._vectors.shape[1])

    @classmethod
    def from_array(cls, vectors: np.ndarray, words: Sequence[str]) -> "WordVectors":
        """Of vectors (N,T) and their words in memory."""
        found = cls.__new__(cls)
        found._name, found._vectors, found._labels = "the array", vectors, _labels_of(words)
        found.text_dim = int(vectors.shape[1])
        return found

    @property
    def words(self) -> tuple[str, ...]:
        """Every word of the file, in its order."""
        return tuple(sorted(self._labels, key=self._labels.__getitem__))

    def lengths(self) -> tuple[float, float]:
        """Of the shortest and the longest vector."""
        found = np.linalg.norm(self._vectors, axis=1)
        return float(found.min()), float(found.max())

    def embed(self, texts: list[str]) -> np.ndarray:
        """(P,T) fp32, or an error that lists the texts without a vector."""
        found = [self.lookup(text) for text in texts]
        missing = [text for text, vector in zip(texts, found, strict=True) if vector is None]
        if missing:
            raise ValueError(
                f"words must have a vector in {self._name}, got none for {len(missing)} of {len(texts)}: "
                f"{missing[:10]}; leave them out or use another text encoder"
            )
        return np.stack([vector for vector in found if vector is not None]).astype(np.float32)

    def has(self, text: str) -> bool:
        """Whether there is a vector of the text itself, not only of its parts."""
        return self._whole(text) is not None

    def lookup(self, text: str) -> np.ndarray | None:
        """The vector (T,) of a text, of its parts' mean, or None."""
        whole = self._whole(text)
        if whole is not None:
            return whole
        parts = text.replace("-", " ").replace("_", " ").split()
        if len(parts) < 2:
            return None
        vectors = [self.lookup(part) for part in parts]
        return None if any(v is None for v in vectors) else np.mean([v for v in vectors if v is not None], axis=0)

    def _whole(self, text: str) -> np.ndarray | None:
        for whole in (text, text.replace(" ", "_"), text.lower(), text.lower().replace(" ", "_")):
            if whole in self._labels:
                return self._vectors[self._labels[whole]]
        return None


def orient_vectors(array: np.ndarray, num_words: int, source: str) -> np.ndarray:
    """An array (T,N), (1,T,N) or (N,T) of N word vectors as (N,T) fp32.

    Raises:
        ValueError: if it has another shape, is square, so that nobody can tell, or holds NaN or infinity.

    Example:
        >>> orient_vectors(np.zeros((1, 300, 7)), 7, "vectors.npy").shape
        (7, 300)
    """
    shape, three = array.shape, array.ndim == 3
    if three and shape[0] == 1:
        array = array[0]  # (T,N), always: the repositories that ship three dimensions have them in this order
    if array.ndim != 2 or num_words not in array.shape or (three and array.shape[1] != num_words):
        raise ValueError(
            f"{source} must be (T, {num_words}) or (1, T, {num_words}) to fit its {num_words} words, got {shape}; give "
            f"the words it was made for"
        )
    if array.shape[0] == array.shape[1] and not three:
        raise ValueError(
            f"{source} must not be square, where no one can tell words from dimensions, got {shape}; save it as "
            f"(1, T, {num_words})"
        )
    if array.dtype.kind not in "fiu" or not np.isfinite(array).all():
        raise ValueError(f"{source} must hold finite numbers, got NaN, infinity or {array.dtype}; repair the file")
    found = array if array.shape[0] == num_words and not three else array.T
    return np.ascontiguousarray(found, np.float32)


def _labels_of(words: Sequence[str]) -> dict[str, int]:
    return {str(word): label for label, word in reversed(list(enumerate(words)))}  # the first of two counts


def _read_vectors(path: Path, classes: Sequence[str] | None = None) -> tuple[dict[str, int], np.ndarray]:
    """Words and vectors (N,T) of a .npz, an array and its list, or a text file (GloVe, fastText, word2vec)."""
    if path.suffix == ".npz":
        return _read_npz(path, classes)
    if path.suffix in (".gz", ".zip", ".bin", ".model"):
        raise ValueError(
            f"{path} must be word vectors as text, got a packed or binary file; unpack it, or save word2vec's as text"
        )
    if path.suffix in (".npy", ".pt", ".pth"):
        array, stored = _read_array(path)
        words = classes or stored
        if words is None:
            raise ValueError(
                f"{path} must hold the words of its vectors too, an array alone has none; make one file of both with "
                f"zsmld.interop.import_word_vectors"
            )
        return _labels_of(words), orient_vectors(array, len(words), str(path))
    labels: dict[str, int] = {}
    rows: list[np.ndarray] = []
    width = None
    with path.open(encoding="utf-8-sig", errors="replace") as lines:
        for number, line in enumerate(lines, 1):
            parts = line.rstrip().split(" ")
            if number == 1 and len(parts) == 2 and all(part.isdigit() for part in parts):
                width = int(parts[1])  # word2vec and fastText open with "count width"
                continue
            if not line.strip():
                continue
            width = width or max(1, len(parts) - 1)
            try:
                # From the right: a few GloVe words hold spaces themselves.
                vector = np.array(parts[-width:], np.float32)
                word = " ".join(parts[:-width])
            except ValueError:
                vector, word = np.empty(0, np.float32), ""
            if vector.shape != (width,) or not word:
                raise ValueError(
                    f"{path} line {number} must be a word and {width} numbers, got {line[:60]!r}; repair it"
                )
            if not np.isfinite(vector).all():
                raise ValueError(f"{path} line {number} must have finite numbers, got {line[:60]!r}; repair it")
            labels.setdefault(word, len(rows))
            if labels[word] == len(rows):
                rows.append(vector)
    if not rows:
        raise ValueError(f"{path} must hold at least one word vector, got none; it may be a failed download")
    return labels, np.stack(rows)


def _read_npz(path: Path, given: Sequence[str] | None) -> tuple[dict[str, int], np.ndarray]:
    arrays = _load_numpy(path)
    with arrays:
        if {"words", "embeddings"} <= set(arrays.files):
            words = _words_in(arrays, "words", path)
            vectors = _array_in(arrays, "embeddings", path)
            if vectors.dtype.kind not in "fiu":
                raise ValueError(f"{path}: embeddings must be numbers, got {vectors.dtype}; save them as fp32")
            vectors = vectors.astype(np.float32)
            if vectors.ndim != 2 or len(words) != len(vectors):
                raise ValueError(f"{path}: embeddings must be ({len(words)}, T), got {vectors.shape}; one row per word")
            if not np.isfinite(vectors).all():
                raise ValueError(f"{path}: embeddings must be finite numbers, got NaN or infinity; repair the file")
            return _labels_of(words), vectors
        others = [name for name in arrays.files if name not in ("classes", "words")]
        stored = next((name for name in ("classes", "words") if name in arrays.files), None)
        if (stored is None and given is None) or len(others) != 1:
            raise ValueError(
                f"{path} must hold the arrays 'words' and 'embeddings', got {sorted(arrays.files)}; rename them"
            )
        classes = given if stored is None or given is not None else _words_in(arrays, stored, path)
        assert classes is not None  # for the type checker: one of both is there
        return _labels_of(classes), orient_vectors(_array_in(arrays, others[0], path), len(classes), str(path))


def _load_numpy(path: Path) -> Any:
    try:
        loaded = read_numpy(path)
        if isinstance(loaded, np.ndarray) != (path.suffix == ".npy"):
            raise ValueError("it is of the other kind")
        return loaded
    except ValueError as error:
        # numpy's own sentence advises to unpickle, which runs what a stranger wrote.
        reason = str(error) if str(error).startswith("it ") else "it is damaged or a pickle"
        raise ValueError(
            f"{path} must be numbers or texts as numpy saves them, cannot read it, {reason}; save it again"
        ) from error


def _words_in(arrays: Any, name: str, path: Path) -> list[str]:
    words = _array_in(arrays, name, path)
    if words.ndim != 1:
        raise ValueError(f"{path}: {name} must be a list of texts, got the shape {words.shape}; save np.array(list)")
    return [str(word) for word in words]


def _array_in(arrays: Any, name: str, path: Path) -> np.ndarray:
    try:
        found: np.ndarray = arrays[name]
        if not isinstance(found, np.ndarray):  # a member of the archive that is no array, as bytes
            raise ValueError("it is no array")
    except Exception as error:  # of objects, cut short, or larger than memory: numpy, zip and zlib have many kinds
        objects = "allow_pickle" in str(error)
        raise ValueError(
            f"{path}: {name} must be an array of numbers or texts, "
            f"{'got objects' if objects else 'it is damaged'}; save it as np.array(list)"
        ) from error
    return found


def _read_array(path: Path) -> tuple[np.ndarray, list[str] | None]:
    """An array, and its words if the file has them too: `{"classes": [...], "wordvec_array": tensor}`."""
    if path.suffix == ".npy":
        array: np.ndarray = _load_numpy(path)
        return array, None
    try:
        loaded = read_torch(path)
    except ValueError as error:
        raise ValueError(f"{path} must hold a tensor, cannot read it: {str(error)[:160]}; save it again") from error
    words = None
    if isinstance(loaded, dict):
        tensors = [value for value in loaded.values() if isinstance(value, torch.Tensor)]
        words, loaded = loaded.get("classes", loaded.get("words")), tensors[0] if len(tensors) == 1 else None
    if not isinstance(loaded, torch.Tensor):
        raise ValueError(f"{path} must hold one tensor of word vectors, got none or several; save it alone")
    if loaded.layout != torch.strided or loaded.is_quantized or loaded.is_complex():
        raise ValueError(
            f"{path} must hold a dense tensor of real numbers, got {loaded.layout}, {loaded.dtype}; save it as fp32"
        )
    if words is not None and not (isinstance(words, (list, tuple)) and all(isinstance(word, str) for word in words)):
        raise ValueError(f"{path} must hold its words as a list of texts, got {words!r:.60}; save such a list")
    return loaded.detach().float().numpy(), None if words is None else list(words)
