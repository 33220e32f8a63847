"""What stands in for a network, or for an enormous picture, in several test files."""

import zlib
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


def bomb(side: int) -> bytes:
    """A small PNG that says, rightly, that it has side × side pixels."""
    rows = zlib.compress(b"\0" * (side // 8 + 1) * side, 9)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4) + kind + data + zlib.crc32(kind + data).to_bytes(4)

    header = side.to_bytes(4) * 2 + bytes([1, 0, 0, 0, 0])
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
