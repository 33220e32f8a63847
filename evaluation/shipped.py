"""Which model comes with zsmld. Reports on it say so, and are stale once it is another."""

from zsmld.reading import digest_of
from zsmld.resources import resource_path


def shipped_model() -> str:
    """SHA-256 of its weights."""
    return digest_of(resource_path("data", "scenes", "model", "model.safetensors"))
