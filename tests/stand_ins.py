"""What stands in for a network in several test files."""

from pathlib import Path

import numpy as np

from zsmld import TextEncoder


class CountingBackend:
    """Stands in for a network: its embeddings depend on the text alone, and it keeps what it was asked."""

    text_dim = 5

    def __init__(self) -> None:
        self.asked: list[str] = []

    def embed(self, texts: list[str]) -> np.ndarray:
        self.asked += texts
        rows = [np.random.default_rng([*text.encode(), 7]).standard_normal(self.text_dim) for text in texts]
        return np.stack(rows).astype(np.float32)


def counting_encoder(cache_dir: Path, name: str = "stand-in") -> tuple[TextEncoder, CountingBackend]:
    encoder, backend = TextEncoder(f"sentence-transformers:{name}", cache_dir=cache_dir), CountingBackend()
    encoder._backend = backend
    return encoder, backend
