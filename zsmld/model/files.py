"""The files of a checkpoint: their names, what wrote them, and how each is written completely or not at all."""

import os
import tempfile
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


class replaced:
    """Write to a temporary neighbour that takes the file's place only if writing succeeded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> Path:
        descriptor, name = tempfile.mkstemp(prefix=f".{self.path.name}.", dir=self.path.parent)
        os.close(descriptor)
        self.temporary = Path(name)
        return self.temporary

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.temporary.chmod(0o644)
            self.temporary.replace(self.path)
        else:
            self.temporary.unlink(missing_ok=True)
