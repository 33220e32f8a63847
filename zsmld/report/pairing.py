"""What two saved reports have in common, and whether they may be compared."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from zsmld.report.scores_file import ScoresFile, open_report

_POLICIES = ("keep_unlabelled", "empty_words", "average_precision", "top_k")  # those that decide a compared figure


@dataclass(frozen=True)
class Pair:
    """Two reports on the same images and words, in the same order.

    Attributes:
        paths: the two JSON files.
        contents: what they hold.
        a, b: scores and targets, of the words that are ranked in the part with the most words.
        labels: part -> columns it ranks, the part with the most words first.
        policies: those that decide the figures.
        different: what the reports did not have in common.
        as_saved: for each report whether its images and words are in their own order, none left out.
    """

    paths: tuple[Path, Path]
    contents: tuple[dict[str, Any], dict[str, Any]]
    a: ScoresFile
    b: ScoresFile
    labels: dict[str, np.ndarray]
    policies: dict[str, Any]
    different: tuple[str, ...]
    as_saved: tuple[bool, bool]


def pair_reports(a: str | Path, b: str | Path, allow_different: bool = False) -> Pair:
    """Open two reports and bring their images and words into the order of the first.

    Another order of images or words alone is no difference. Thresholds and templates decide no compared figure, and
    model, versions and external knowledge are what is compared.

    Raises:
        FileNotFoundError: if a file is not there.
        ValueError: if a file is no report with scores; if the reports have no image, word or part in common; if they
            differ and `allow_different` is False.
    """
    (a_content, a_file, a_path), (b_content, b_file, b_path) = open_report(a), open_report(b)
    names = (_name(a_path), _name(b_path))
    parts = [part for part in a_content["protocols"] if part in b_content["protocols"]]
    different = _sets("parts", list(a_content["protocols"]), list(b_content["protocols"]), names)
    if not parts:
        raise ValueError(f"reports must have a part in common, got {'; '.join(different)}; evaluate both likewise")
    different += _sets("images", a_file.ids, b_file.ids, names)
    ranked = {part: [list(c["protocols"][part]["words"]) for c in (a_content, b_content)] for part in parts}
    widest = parts[-1]
    different += _sets("words", ranked[widest][0], ranked[widest][1], names)
    common = [word for word in ranked[widest][0] if word in b_file.vocabulary]
    seen = (set(a_file.vocabulary.seen), set(b_file.vocabulary.seen))
    moved = [word for word in common if (word in seen[0]) != (word in seen[1])]
    if moved:
        different.append(f"partition: {len(moved)} words are seen in one and unseen in the other {moved[:3]}")
    a_policies, b_policies = (c["protocols"][widest]["policies"] for c in (a_content, b_content))
    different += [
        f"policies: {name} is {a_policies[name]} in {names[0]}, {b_policies[name]} in {names[1]}"
        for name in _POLICIES
        if a_policies[name] != b_policies[name]
    ]
    b_ids = set(b_file.ids)
    ids = None if a_file.ids == b_file.ids else [image_id for image_id in a_file.ids if image_id in b_ids]
    if not common or ids == []:
        raise ValueError(f"reports must have images and words in common, got {'; '.join(different)}; compare others")
    saved = (a_file, b_file)
    a_file, b_file = _select(a_file, ids, common, names[0]), _select(b_file, ids, common, names[1])
    unequal = int((a_file.targets != b_file.targets).sum())
    if unequal:
        different.append(f"targets: {unequal} of {a_file.targets.size} entries of the common images and words differ")
    if different and not allow_different:
        raise ValueError(
            f"reports must be of the same images, words and policies, these differ: {'; '.join(different)}; pass "
            f"allow_different (--allow-different) to compare what both have"
        )
    labels = {}
    for part in reversed(parts):
        both = set(ranked[part][0]) & set(ranked[part][1])
        labels[part] = np.array([j for j, word in enumerate(common) if word in both])
    return Pair(
        paths=(a_path, b_path),
        contents=(a_content, b_content),
        a=a_file,
        b=b_file,
        labels={part: chosen for part, chosen in labels.items() if len(chosen)},
        policies={name: a_policies[name] for name in _POLICIES},
        different=tuple(different),
        as_saved=(
            a_file.ids == saved[0].ids and a_file.vocabulary.words == saved[0].vocabulary.words,
            b_file.ids == saved[1].ids and b_file.vocabulary.words == saved[1].vocabulary.words,
        ),
    )


def _sets(what: str, a: Sequence[str], b: Sequence[str], names: tuple[str, str]) -> list[str]:
    """What is on one side only, in words; empty if nothing is."""
    only_a, only_b = sorted(set(a) - set(b)), sorted(set(b) - set(a))
    if not only_a and not only_b:
        return []
    return [f"{what}: {len(only_a)} only in {names[0]} {only_a[:3]}, {len(only_b)} only in {names[1]} {only_b[:3]}"]


def _select(file: ScoresFile, ids: Sequence[str] | None, words: Sequence[str], name: str) -> ScoresFile:
    """The rows and columns of some images and words, in their order."""
    scores, targets = file.scores, file.targets
    if ids is not None:
        rows = {image_id: row for row, image_id in enumerate(file.ids)}
        if len(rows) < len(file.ids):
            raise ValueError(
                f"{name} must name each image once to be brought into another order, {len(file.ids) - len(rows)} ids "
                f"stand more than once; give images distinct ids"
            )
        order = np.array([rows[image_id] for image_id in ids])
        scores, targets = scores[order], targets[order]
    if tuple(words) != file.vocabulary.words:
        columns = file.vocabulary.labels(words)
        scores, targets = scores[:, columns], targets[:, columns]
    return ScoresFile(scores, targets, list(file.ids if ids is None else ids), file.vocabulary.select(words), file.kind)


def _name(path: Path) -> str:
    return f"{path.parent.name}/{path.name}" if path.parent.name else path.name
