"""The files of a checkpoint: where they are, what wrote them, and how each is written completely or not at all."""

import os
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

WEIGHTS, CONFIG = "model.safetensors", "config.json"


def local_folder(path_or_hub_id: str | Path, revision: str | None) -> Path:
    """The folder of a model, on this disk or fetched from the Hub.

    Raises:
        FileNotFoundError: if there is none, or a file is missing in it.
    """
    folder = Path(path_or_hub_id)
    if folder.is_dir():
        for name in (CONFIG, WEIGHTS):
            if not (folder / name).is_file():
                raise FileNotFoundError(f"model folder must hold {name}, not found in {folder}; save the model again")
        return folder
    if str(path_or_hub_id).count("/") != 1 or str(path_or_hub_id).startswith(("/", ".")):
        raise FileNotFoundError(
            f"model must be an existing folder or a Hub id 'owner/name', not found: {path_or_hub_id}; correct the path"
        )
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(str(path_or_hub_id), revision=revision, allow_patterns=[CONFIG, WEIGHTS]))
    except Exception as error:  # the Hub client raises many kinds; each ends the same way for the caller
        raise FileNotFoundError(
            f"model must be an existing folder or a Hub id, {path_or_hub_id!r} is no folder here and the Hub "
            f"answered: {type(error).__name__}: {error}; correct the name or connect to the network"
        ) from error


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
