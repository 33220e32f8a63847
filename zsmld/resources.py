"""Where the files that come with zsmld are: inside the wheel if it holds them, else in the checkout."""

import subprocess
from functools import cache
from pathlib import Path

_PACKAGE = Path(__file__).parent
_BUNDLED = _PACKAGE / "_bundled"


def resource_path(*parts: str) -> Path:
    """Path of a bundled file or folder, for instance `resource_path("data", "scenes", "partition.json")`.

    Args:
        parts: path components below the top level; the first is "data", "configs" or "evaluation", of which a wheel
            has `published.csv` alone.

    Raises:
        FileNotFoundError: if there is no such file or folder.

    Example:
        >>> resource_path("data", "scenes", "partition.json").name
        'partition.json'
    """
    root = _BUNDLED if _BUNDLED.is_dir() else _PACKAGE.parent
    path = root.joinpath(*parts)
    if not path.exists():
        raise FileNotFoundError(
            f"{'/'.join(parts)} must be among the files that come with zsmld, not found at {path}; install zsmld again"
        )
    return path


@cache
def git_revision() -> str | None:
    """Commit of the checkout that runs, with "-dirty" if files in it were changed; None outside a checkout."""
    if _BUNDLED.is_dir() or not (_PACKAGE.parent / ".git").exists():
        return None
    try:
        described = subprocess.run(
            ["git", "-C", str(_PACKAGE.parent), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):  # no git, or a checkout of another user
        return None
    return described.stdout.strip()
