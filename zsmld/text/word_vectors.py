"""Files of word vectors: GloVe, fastText or word2vec text, or .npz with `words` and `embeddings`."""

from pathlib import Path

import numpy as np
import torch


class WordVectors:
    """A word is looked up as it is, with underscores, in lower case, then as the mean of its parts."""

    def __init__(self, name: str, device: torch.device, pretrained: bool) -> None:
        self._path = Path(name)
        self._labels, self._vectors = _read_vectors(self._path)
        self.text_dim = int(self._vectors.shape[1])

    def embed(self, texts: list[str]) -> np.ndarray:
        """(P,T) fp32, or an error that lists the texts without a vector."""
        found = [self._lookup(text) for text in texts]
        missing = [text for text, vector in zip(texts, found, strict=True) if vector is None]
        if missing:
            raise ValueError(
                f"words must have a vector in {self._path.name}, got none for {len(missing)} of {len(texts)}: "
                f"{missing[:10]}; leave them out or use another text encoder"
            )
        return np.stack([vector for vector in found if vector is not None]).astype(np.float32)

    def _lookup(self, text: str) -> np.ndarray | None:
        for whole in (text, text.replace(" ", "_"), text.lower(), text.lower().replace(" ", "_")):
            if whole in self._labels:
                return self._vectors[self._labels[whole]]
        parts = text.replace("-", " ").replace("_", " ").split()
        if len(parts) < 2:
            return None
        vectors = [self._lookup(part) for part in parts]
        return None if any(v is None for v in vectors) else np.mean([v for v in vectors if v is not None], axis=0)


def _read_vectors(path: Path) -> tuple[dict[str, int], np.ndarray]:
    """Words and vectors (N,T) of a .npz (`words`, `embeddings`) or a text file (GloVe, fastText, word2vec)."""
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as arrays:
            if not {"words", "embeddings"} <= set(arrays.files):
                raise ValueError(
                    f"{path} must hold the arrays 'words' and 'embeddings', got {sorted(arrays.files)}; rename them"
                )
            words, vectors = arrays["words"], arrays["embeddings"].astype(np.float32)
        if vectors.ndim != 2 or len(words) != len(vectors):
            raise ValueError(f"{path}: embeddings must be ({len(words)}, T), got {vectors.shape}; one row per word")
        if not np.isfinite(vectors).all():
            raise ValueError(f"{path}: embeddings must be finite numbers, got NaN or infinity; repair the file")
        return {
            str(word): label for label, word in reversed(list(enumerate(words)))
        }, vectors  # the first of two counts
    labels: dict[str, int] = {}
    rows: list[np.ndarray] = []
    width = None
    with path.open(encoding="utf-8", errors="replace") as lines:
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
