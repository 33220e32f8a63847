"""The files of a checkpoint: their names, and what wrote them."""

from importlib.metadata import PackageNotFoundError, version

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
