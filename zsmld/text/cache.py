"""The cache of text embeddings on disk.

One SQLite file per encoder identity: atomic, safe with several processes, and adding words costs only the new. The
cache is a convenience: whatever happens to it ends in a warning and a fresh computation.
"""

import hashlib
import sqlite3
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np


class EmbeddingCache:
    """Embeddings of texts under one encoder identity.

    Args:
        folder: made when it is first needed.
        identity: of the encoder; encoders of different identity share nothing.
    """

    def __init__(self, folder: Path, identity: str) -> None:
        self.folder = folder
        self._name = f"{hashlib.sha256(identity.encode()).hexdigest()[:32]}.sqlite"

    def read(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
        """The embeddings, (T,) fp32 each, of those texts that are there."""
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
            warnings.warn(f"cache of word embeddings not read from {self.folder}: {error}", stacklevel=2)
        # All embeddings of an encoder have one width; a row of another is damaged and is made again.
        sizes = Counter(len(blob) for blob in blobs.values() if len(blob) % 4 == 0)
        width = max(sizes, key=lambda size: (sizes[size], size), default=0)
        return {text: np.frombuffer(blob, np.float32) for text, blob in blobs.items() if len(blob) == width}

    def write(self, fresh: dict[str, np.ndarray]) -> None:
        """Add embeddings, all in one transaction."""
        try:
            connection = self._connect()
            try:
                with connection:
                    rows = [(text, np.asarray(vector, np.float32).tobytes()) for text, vector in fresh.items()]
                    connection.executemany("INSERT OR REPLACE INTO embeddings VALUES (?, ?)", rows)
            finally:
                connection.close()
        except (OSError, sqlite3.Error) as error:
            warnings.warn(f"cache of word embeddings not written to {self.folder}: {error}", stacklevel=2)

    def _connect(self) -> sqlite3.Connection:
        self.folder.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(self.folder / self._name, timeout=30)
        connection.execute("CREATE TABLE IF NOT EXISTS embeddings (text TEXT PRIMARY KEY, embedding BLOB)")
        return connection
