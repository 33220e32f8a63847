"""Sentences in the place of images: a head that is trained on them scores images, where both share a space.

Targets are the words that a sentence names, or labels that stand beside it. The `Trainer` has the sentences encoded by
the text encoder; see `zsmld.features.encode_sentences` and docs/text_training.md.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix

from zsmld.datasets.index import Split
from zsmld.datasets.named_words import find_words, phrases
from zsmld.datasets.partition import read_partition
from zsmld.datasets.rows import share_of_training
from zsmld.datasets.table import _read_frame, indicator, split_words
from zsmld.vocabulary import DEFAULT_TEMPLATES, Vocabulary, check_templates, check_words


class CaptionDataset:
    """Sentences with the words that they are about. Made by `captions`, or from your own lists.

    Args:
        sentences: M texts.
        targets: (M,N) CSR of int8: 1 present, 0 absent, −1 unknown.
        ids: M distinct ids.
        vocabulary: N words.
        name: what a report calls it.
        split: "train" or "val".
        num_phrases: parts of each sentence that are encoded beside the whole, see `phrases`.
        manifest: counts and policies, for `data.json`.
        splits: that `captions` has of the same file.

    Raises:
        ValueError: if there are not as many sentences, rows of targets and ids, or one column of targets a word.

    Example:
        >>> vocabulary = Vocabulary(["dog", "ball"])
        >>> found = find_words(["A dog chases two balls."], vocabulary.words)
        >>> CaptionDataset(["A dog chases two balls."], found, ["1"], vocabulary)[0]["targets"]
        array([1, 1], dtype=int8)
    """

    missing = 0

    def __init__(
        self,
        sentences: Sequence[str],
        targets: csr_matrix,
        ids: Sequence[str],
        vocabulary: Vocabulary,
        name: str = "captions",
        split: str = "train",
        num_phrases: int = 4,
        manifest: dict[str, Any] | None = None,
        splits: tuple[str, ...] = ("train",),
    ) -> None:
        if targets.shape != (len(sentences), len(vocabulary)) or len(ids) != len(sentences):
            raise ValueError(
                f"sentences, ids and rows of targets must be as many, and its columns as the {len(vocabulary)} words, "
                f"got {len(sentences)}, {len(ids)} and {targets.shape}; select the same rows of each"
            )
        if num_phrases < 0:
            raise ValueError(f"num_phrases must not be negative, got {num_phrases}; 0 encodes whole sentences alone")
        self.sentences, self.targets, self.ids, self.vocabulary = list(sentences), targets, list(ids), vocabulary
        self.name, self.split, self.splits, self.num_phrases = name, split, splits, num_phrases
        self.manifest = manifest or {}

    def __len__(self) -> int:
        return len(self.sentences)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """{"text": str, "targets": (N,) int8, "id": str}."""
        row = range(len(self))[index]
        return {"text": self.sentences[row], "targets": self.targets[row].toarray()[0], "id": self.ids[row]}

    def texts(self, index: int) -> list[str]:
        """What is encoded of a sentence: the whole, then its phrases; 1 + `num_phrases` texts."""
        return [self.sentences[index], *phrases(self.sentences[index], self.num_phrases)]

    def __repr__(self) -> str:
        return (
            f"CaptionDataset({self.name!r}, split={self.split!r}, num_sentences={len(self)}, "
            f"seen={len(self.vocabulary.seen)}, unseen={len(self.vocabulary.unseen)})"
        )


def captions(
    path: str | Path,
    split: Split = "train",
    images: dict | None = None,  # type: ignore[type-arg]  # a recipe leaves the values of a bare dict as they are
    words: list[str] | str | Path | None = None,
    partition: str | Path | None = None,
    synonyms: str | Path | None = None,
    templates: tuple[str, ...] | str = DEFAULT_TEMPLATES,
    exclude_unseen_sentences: bool = False,
    num_phrases: int = 4,
    val_fraction: float = 0.1,
    seed: int = 0,
) -> Any:
    """Sentences to train on, and images to validate and test on.

    Equal sentences are merged, and have the words of each; those with no word of the vocabulary are left out; both are
    counted in `manifest`. Targets of seen words do not depend on which unseen words there are.

    Args:
        path: a text file with one sentence a line; a table (.csv, .tsv, .jsonl, .parquet) with a column `caption`; or
            COCO's captions (.json). Where a table has a column `labels`, words joined by | or a list, these are the
            targets; otherwise the words that a sentence names, see `find_words`.
        split: "train" gives sentences, "val" and "test" images.
        images: the dataset of images: `name` and its arguments, but for the split. Its vocabulary is that of the
            sentences, so `words`, `partition` and `templates` are left out; it must have test images. Without it, a
            part of the sentences is "val", and there is no "test".
        words: the vocabulary, as a list or a text file with one a line; default every label of the table, sorted.
        partition: JSON file {"seen": […], "unseen": […]}; a partition inside a larger file is named "FILE#KEY".
        synonyms: JSON file {"person": ["man", "woman"], …}: texts that name a word besides itself.
        templates: prompt sentences of the vocabulary, or the name of a set of them.
        exclude_unseen_sentences: drop those that name an unseen word. Without it the text encoder reads unseen words
            in sentences about others, as it does when images show them.
        num_phrases: parts of each sentence that are encoded beside the whole, see `phrases`. Each is a position for
            the head to attend to; with none it never learns where to look.
        val_fraction: share of the sentences in "val", in [0,1); not with `images`.
        seed: of that division.

    Raises:
        FileNotFoundError: if a file does not exist.
        ValueError: if there is no sentence, no caption, no vocabulary, or none of its words in any sentence.

    Source: TaI-DPT (Guo et al., arXiv 2211.12739) and its code take targets from the class names and synonyms in
    captions, and drop captions without any; they lemmatise where this adds plurals, and let the longest name win.
    """
    if images is not None:
        if words is not None or partition is not None or check_templates(templates) != DEFAULT_TEMPLATES:
            raise ValueError(
                "words, partition and templates must be left out beside images, which bring a vocabulary; give them "
                "among the arguments of images"
            )
        if "name" not in images or "split" in images:
            raise ValueError(
                f"images must have a name and no split, got the arguments {sorted(images)}; write for instance "
                f"{{name: table, path: photos.csv}}"
            )
        from zsmld.datasets import build_dataset  # not at the top: it imports this file

        tested = build_dataset(**images, split="test" if split == "train" else split)
        if split != "train":
            return tested
        splits = ("train", *(s for s in getattr(tested, "splits", ("val", "test")) if s != "train"))
        vocabulary, val_fraction = tested.vocabulary, 0.0
    elif split not in ("train", "val"):
        raise ValueError(f"split must be 'train' or 'val' for sentences, got {split!r}; give images=… to test on")
    else:
        splits = ("train", "val") if val_fraction else ("train",)
        vocabulary = _vocabulary(words, partition, templates)
    path = Path(path)
    rows, cells = _read_sentences(path)
    texts = [" ".join(text.split()) for text in rows]
    first: dict[str, int] = {}  # sentence -> its first row
    for row, text in enumerate(texts):
        if text:
            first.setdefault(text, row)
    if not first:
        raise ValueError(f"path must have at least one sentence, {path} has none; fill it")
    sentences = list(first)
    unknown: dict[str, int] = {}
    if cells is None and vocabulary is None:
        raise ValueError(f"words must be given for {path}, which has no labels; pass words=, partition= or images=")
    if cells is None:
        assert vocabulary is not None  # the check above made sure
        targets = _targets_of(sentences, vocabulary, _read_synonyms(synonyms))
    else:
        place = {text: number for number, text in enumerate(sentences)}
        vocabulary, targets, unknown = _targets_beside(cells, [place.get(text) for text in texts], vocabulary, path)
    named = targets == 1
    about = np.asarray(named.sum(1)).ravel() > 0
    if not about.any():
        raise ValueError(
            f"path must have sentences with a word of the vocabulary, none of {len(sentences):,} in {path} has one of "
            f"{list(vocabulary.words[:3])}…; check spelling, or give synonyms"
        )
    kept = share_of_training(split, len(sentences), val_fraction, seed) & about
    with_unseen = np.asarray(named[:, np.flatnonzero(~vocabulary.is_seen)].sum(1)).ravel() > 0
    if exclude_unseen_sentences:
        kept &= ~with_unseen
    chosen = np.flatnonzero(kept)
    if not len(chosen):
        raise ValueError(
            f"split {split!r} of {path} must have sentences, got none of {len(sentences):,}: {int((~about).sum()):,} "
            f"have no word and {int(with_unseen.sum()):,} an unseen one; change val_fraction or loosen the policies"
        )
    manifest = {
        "policies": {"exclude_unseen_sentences": exclude_unseen_sentences, "val_fraction": val_fraction, "seed": seed},
        "counts": {
            "rows": len(texts),
            "empty_rows": sum(not text for text in texts),
            "merged_rows": sum(map(bool, texts)) - len(sentences),
            "without_a_word": int((~about).sum()),
            "with_an_unseen_word": int((about & with_unseen).sum()),
            "kept": len(chosen),
            "words_without_sentences": int((np.asarray(named[chosen].sum(0)).ravel() == 0).sum()),
        },
        "unknown_words": unknown,
    }
    return CaptionDataset(
        [sentences[row] for row in chosen],
        targets[chosen],
        [f"{path.name}/{first[sentences[row]]}" for row in chosen],
        vocabulary,
        path.stem,
        split,
        num_phrases,
        manifest,
        splits,
    )


def _targets_of(sentences: Sequence[str], vocabulary: Vocabulary, synonyms: Mapping[str, Sequence[str]]) -> csr_matrix:
    """Targets from the sentences: those of seen words as if there were no others, whatever the unseen ones are."""
    everything = find_words(sentences, vocabulary.words, synonyms).tocoo()
    if not vocabulary.unseen:
        return everything.tocsr()
    among_seen = find_words(sentences, vocabulary.seen, synonyms).tocoo()
    unseen = ~vocabulary.is_seen[everything.col]
    values = np.concatenate([among_seen.data, everything.data[unseen]])
    rows = np.concatenate([among_seen.row, everything.row[unseen]])
    columns = np.concatenate([np.flatnonzero(vocabulary.is_seen)[among_seen.col], everything.col[unseen]])
    targets = csr_matrix((values, (rows, columns)), everything.shape, dtype=np.int8)
    targets.sort_indices()
    return targets


def _targets_beside(
    cells: pd.Series, places: Sequence[int | None], vocabulary: Vocabulary | None, path: Path
) -> tuple[Vocabulary, csr_matrix, dict[str, int]]:
    """Targets from a table's labels, the vocabulary, and how often each label beyond it stands there."""
    row, word = split_words(cells, "|", path.name)
    if vocabulary is None:
        if not len(word):
            raise ValueError(f"words must be given for {path}, whose labels are empty; pass words= or fill the column")
        vocabulary = Vocabulary(sorted(set(word)))
    label = pd.Index(vocabulary.words).get_indexer(word)
    place = np.array([-1 if number is None else number for number in places], np.int64)[row]
    kept = (label >= 0) & (place >= 0)
    shape = (1 + max(number for number in places if number is not None), len(vocabulary))
    unknown = word[label < 0].value_counts()
    counts = {str(key): int(value) for key, value in unknown.items()}
    return vocabulary, indicator(place[kept], label[kept], shape), counts


def _vocabulary(
    words: list[str] | str | Path | None, partition: str | Path | None, templates: Iterable[str] | str
) -> Vocabulary | None:
    if words is not None and partition is not None:
        raise ValueError("words must be left out beside partition, got both; the partition's words are the vocabulary")
    if partition is not None:
        seen, unseen = read_partition(partition)
        return Vocabulary([*seen, *unseen], seen=seen, templates=templates)
    if isinstance(words, (str, Path)):
        if not Path(words).is_file():
            raise FileNotFoundError(f"words must be an existing file, one word a line, not found: {words}; correct it")
        words = [line for line in _lines_of(Path(words), "words") if line.strip()]
    return None if words is None else Vocabulary(check_words(words), templates=templates)


def _read_sentences(path: Path) -> tuple[list[str], pd.Series | None]:
    """The sentence of each row, and the column of its labels if there is one."""
    if not path.is_file():
        raise FileNotFoundError(f"path must be an existing file of sentences, not found: {path}; correct the path")
    suffix = path.suffix.lower()
    if suffix == ".txt":
        return _lines_of(path, "path"), None
    if suffix == ".json":
        try:
            return [str(entry["caption"]) for entry in json.loads(path.read_bytes())["annotations"]], None
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ValueError(
                f"path must be COCO's captions, {path} has no annotations with a caption each: {error!r}; give "
                f"captions_train2014.json, or a table"
            ) from error
    if suffix not in (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet"):
        raise ValueError(f"path must end in .txt, .csv, .tsv, .jsonl, .parquet or .json, got {path.name}; rename it")
    problems: list[str] = []
    frame = _read_frame(path, problems)
    if frame is None:
        raise ValueError(problems[0])
    if "caption" not in frame.columns:
        raise ValueError(
            f"path must have a column 'caption', {path.name} has {[str(name) for name in frame.columns]}; rename the "
            f"column of sentences"
        )
    rows = ["" if cell is None or cell != cell else str(cell) for cell in frame["caption"]]
    return rows, frame["labels"] if "labels" in frame.columns else None


def _lines_of(path: Path, argument: str) -> list[str]:
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{argument} must be a UTF-8 text file, {path} is not: {error}; convert it") from error


def _read_synonyms(path: str | Path | None) -> dict[str, list[str]]:
    if path is None:
        return {}
    if not Path(path).is_file():
        raise FileNotFoundError(f"synonyms must be an existing JSON file, not found: {path}; correct the path")
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"synonyms must be JSON, {path} cannot be read: {error}; repair it") from error
    lists = content.values() if isinstance(content, dict) else [None]
    if not all(isinstance(texts, list) and all(isinstance(text, str) for text in texts) for texts in lists):
        raise ValueError(f'synonyms must map words to lists of texts, {path} does not; write {{"person": ["man"]}}')
    return dict(content)
