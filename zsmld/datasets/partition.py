"""Partitions of words into seen and unseen, as files."""

import json
from pathlib import Path

from zsmld.vocabulary import check_words


def read_partition(partition: str | Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Seen and unseen words of a JSON file {"seen": […], "unseen": […]}, or of a key in it, "FILE#KEY".

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if it is not JSON, has no such key, or no such lists.
    """
    file, _, key = str(partition).partition("#")
    if not Path(file).is_file():
        raise FileNotFoundError(f"partition must be an existing JSON file, not found: {file}; correct the path")
    try:
        content = json.loads(Path(file).read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise ValueError(f"partition must be JSON, {file} cannot be read: {error}; repair it") from error
    if key:
        if key not in content:
            raise ValueError(f"partition must name a key of {file}, got {key!r}; it has {sorted(content)}")
        content = content[key]
    if not isinstance(content, dict) or not {"seen", "unseen"} <= set(content):
        raise ValueError(
            f"partition must be a JSON object with 'seen' and 'unseen', got {file} with "
            f"{sorted(content) if isinstance(content, dict) else type(content).__name__}; write FILE#KEY for one inside"
        )
    return check_words(content["seen"], "seen"), check_words(content["unseen"], "unseen", allow_empty=True)
