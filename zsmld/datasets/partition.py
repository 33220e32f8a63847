"""Partitions of words into seen and unseen, as files."""

import json
from pathlib import Path

from zsmld.vocabulary import check_words


def read_partition(partition: str | Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Seen and unseen words of a JSON file {"seen": […], "unseen": […]}, or of a key in it, "FILE#KEY".

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if it is not JSON, has no such key, or no such lists of distinct words.
    """
    file, _, key = str(partition).partition("#")
    if not Path(file).is_file():
        raise FileNotFoundError(f"partition must be an existing JSON file, not found: {file}; correct the path")
    try:
        content = json.loads(Path(file).read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:  # the last: lists in lists without end
        raise ValueError(f"partition must be JSON, {file} cannot be read: {error}; repair it") from error
    if key:
        keys = sorted(content) if isinstance(content, dict) else []
        if key not in keys:
            raise ValueError(f"partition must name a key of {file}, got {key!r}; it has {keys}")
        content = content[key]
    if not isinstance(content, dict) or not {"seen", "unseen"} <= set(content):
        raise ValueError(
            f"partition must be a JSON object with 'seen' and 'unseen', got {file} with "
            f"{sorted(content) if isinstance(content, dict) else type(content).__name__}; write FILE#KEY for one inside"
        )
    for side in ("seen", "unseen"):
        if not isinstance(content[side], list):
            raise ValueError(
                f"partition must have a list of words under {side!r}, {partition} has "
                f"{json.dumps(content[side])[:80]}; write [] for none"
            )
        strangers = [word for word in content[side] if not isinstance(word, str)]
        if strangers:
            raise ValueError(
                f"partition must have texts as words under {side!r}, {partition} has {json.dumps(strangers[0])[:80]}; "
                f"write them as texts"
            )
    return check_words(content["seen"], "seen"), check_words(content["unseen"], "unseen", allow_empty=True)
