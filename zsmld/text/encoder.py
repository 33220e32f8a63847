"""TextEncoder: words and descriptions -> embeddings."""

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from zsmld.images.weights import reachable
from zsmld.text.cache import EmbeddingCache
from zsmld.text.networks import MINILM_SHA256, OpenClipText, SentenceEncoder, minilm
from zsmld.text.word_vectors import WordVectors
from zsmld.vocabulary import Vocabulary


class TextEncoder:
    """Words and descriptions -> embeddings. The network is loaded on the first text that is not in the cache.

    A text longer than the network reads is cut at its end, with a warning that names it when it is encoded.

    Args:
        spec: the encoder's name, see `zsmld.text`.
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
        self._cache_root = Path(cache_dir or os.environ.get("ZSMLD_CACHE") or Path.home() / ".cache" / "zsmld")

    @cached_property
    def identity(self) -> str:
        """What the embeddings depend on: the spec, and the content of local files instead of their path."""
        if self._kind == "minilm":
            return f"minilm:{MINILM_SHA256['model.safetensors']}"
        path = Path(self._name)
        if self._kind == "open_clip" and not path.is_dir():
            # "ViT-B-16/openai" names weights that do not change, "ViT-B-16/my/weights.pt" a file that may.
            arch, _, weights = self._name.partition("/")
            if ":" in arch or not Path(weights).is_file():
                return self.spec
            return f"open_clip:{arch}:sha256:{_content_digest(Path(weights))}"
        return f"{self._kind}:sha256:{_content_digest(path)}" if path.exists() else self.spec

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
        found = {} if self._cache is None else self._cache.read(texts)
        missing = [text for text in dict.fromkeys(texts) if text not in found]
        if missing:
            fresh = dict(zip(missing, self._backend.embed(missing), strict=True))
            if self._cache is not None:
                self._cache.write(fresh)
            found.update(fresh)
        return torch.from_numpy(np.stack([found[text] for text in texts])).float()

    def encode_words(
        self,
        words: Iterable[str] | Vocabulary,
        templates: Iterable[str] | None = None,
        descriptions: Mapping[str, Sequence[str]] | None = None,
    ) -> Tensor:
        """Word embeddings: the ensemble over a word's prompts, normalised, averaged, normalised again.

        Args:
            words: N words; a `Vocabulary` brings its own templates and descriptions.
            templates: sentences with one `{}`, or the name of a set, instead of the vocabulary's. Word-vector files
                look up the word itself and ignore them.
            descriptions: sentences of some of the words, instead of the vocabulary's; they take the place of the
                templates for these words.

        Returns:
            (N,T) fp32 on the CPU, rows of length one.

        Raises:
            ValueError: on no words, duplicates, a word without a vector, or descriptions for a file of word vectors.

        Source: open_clip's `build_zero_shot_classifier`; Radford et al., arXiv 2103.00020, section 3.1.4.
        """
        if not isinstance(words, Vocabulary):
            words = Vocabulary(words)
        if templates is not None or descriptions is not None:
            words = Vocabulary(
                words,
                templates=words.templates if templates is None else templates,
                descriptions=words.descriptions if descriptions is None else descriptions,
            )
        embeddings, num_prompts = self._encode_prompts(words)  # (P,T), (N,)
        label = torch.arange(len(words)).repeat_interleave(num_prompts)  # (P,) the word that each prompt belongs to
        sums = torch.zeros(len(words), embeddings.shape[1]).index_add_(0, label, embeddings)  # (N,T)
        return F.normalize(sums / num_prompts[:, None], dim=1)  # (N,T)

    def encode_descriptions(self, vocabulary: Vocabulary) -> tuple[Tensor, Tensor]:
        """An embedding of each prompt of each word, for a head that weighs the descriptions by the image.

        K is the largest number of prompts that a word has; a word without descriptions has those of the templates.

        Returns:
            Embeddings (N,K,T) fp32 on the CPU, rows of length one in the order of `vocabulary.prompts`, zeros where
            there is none; and the mask (N,K) bool of those there are.

        Raises:
            ValueError: on a word without a vector, or descriptions for a file of word vectors.

        Source: RAM++, arXiv 2310.15200; there every category has the same number of descriptions.

        Example:
            >>> vocabulary = Vocabulary(["zebra", "bus"], descriptions={"zebra": ["a striped animal", "a wild horse"]})
            >>> embeddings, mask = TextEncoder("minilm").encode_descriptions(vocabulary)
            >>> embeddings.shape, mask.tolist()
            (torch.Size([2, 2, 384]), [[True, True], [True, False]])
        """
        embeddings, num_prompts = self._encode_prompts(vocabulary)  # (P,T), (N,)
        mask = torch.arange(int(num_prompts.max())) < num_prompts[:, None]  # (N,K)
        padded = torch.zeros(*mask.shape, embeddings.shape[1])  # (N,K,T)
        padded[mask] = embeddings  # row by row, the order they are in
        return padded, mask

    def _encode_prompts(self, vocabulary: Vocabulary) -> tuple[Tensor, Tensor]:
        """Every prompt of every word after another, (P,T) of length one, and how many each word has, (N,)."""
        if self._kind == "vectors" and vocabulary.descriptions:
            raise ValueError(
                f"text_encoder must be a sentence encoder to encode descriptions, got the word vectors {self.spec!r}; "
                f"use minilm, sentence-transformers:NAME or open_clip:ARCH/PRETRAINED, or leave the descriptions out"
            )
        prompts = [(word,) if self._kind == "vectors" else vocabulary.prompts(word) for word in vocabulary]
        embeddings = F.normalize(self.encode(text for texts in prompts for text in texts), dim=1)  # (P,T)
        return embeddings, torch.tensor([len(texts) for texts in prompts])

    def __repr__(self) -> str:
        return f"TextEncoder({self.spec!r}, device={str(self.device)!r})"

    @cached_property
    def _backend(self) -> "_Backend":
        with reachable(self.spec, downloads=self.pretrained and bool(self._name) and not Path(self._name).exists()):
            return _BACKENDS[self._kind](self._name, self.device, self.pretrained)

    @cached_property
    def _cache(self) -> EmbeddingCache | None:
        """Random weights must never be cached, and a look-up in a file of word vectors is as fast as one in a cache."""
        if not self.pretrained or self._kind == "vectors":
            return None
        return EmbeddingCache(self._cache_root / "text", self.identity)


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


class _Backend(Protocol):
    text_dim: int

    def embed(self, texts: list[str]) -> np.ndarray:
        """(P,T) fp32."""


_BACKENDS: dict[str, Callable[[str, torch.device, bool], _Backend]] = {
    "minilm": minilm,
    "sentence-transformers": SentenceEncoder,
    "open_clip": OpenClipText,
    "vectors": WordVectors,
}
