"""The files of a checkpoint: their names, and what wrote them."""

import hashlib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
FORMAT = 1


def package_versions() -> dict[str, str]:
    """Versions of zsmld and of what decides its numbers."""
    found = {}
    for name in ("zsmld", "torch", "torchvision", "timm", "open_clip_torch", "sentence-transformers", "numpy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's content, 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
