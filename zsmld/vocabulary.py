"""Vocabulary: ordered words, their seen/unseen partition, and the prompts that stand for them.

The only owner of label order: column j of every array in zsmld is `vocabulary.words[j]`.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

DEFAULT_TEMPLATES = ("a photo of a {}.",)


class Vocabulary:
    """An immutable list of distinct words, each seen or unseen in training.

    Args:
        words: distinct, non-empty texts; their order is the order of labels.
        seen: the words that have labels in training; default all.
        templates: sentences with one `{}` each, where the word goes; a word's embedding is the ensemble over all.

    Raises:
        TypeError: if `words` is one string, or an entry is not text.
        ValueError: on no words, an empty word, duplicates, a `seen` word that is no word, or a template without `{}`.

    Example:
        >>> vocabulary = Vocabulary(["dog", "cat", "zebra"], seen=["dog", "cat"])
        >>> vocabulary.index("zebra"), vocabulary.unseen, vocabulary.prompts("zebra")
        (2, ('zebra',), ('a photo of a zebra.',))
    """

    def __init__(
        self,
        words: Iterable[str],
        seen: Iterable[str] | None = None,
        templates: Iterable[str] = DEFAULT_TEMPLATES,
    ) -> None:
        self.words = check_words(words)
        self.templates = check_templates(templates)
        self._labels = {word: label for label, word in enumerate(self.words)}
        seen_words = set(self.words if seen is None else check_words(seen, "seen", allow_empty=True))
        strangers = sorted(seen_words - set(self.words))
        if strangers:
            raise ValueError(f"seen must be words of the vocabulary, got {strangers[:5]} besides; add them to words")
        self.is_seen = np.array([word in seen_words for word in self.words])  # (N,) bool
        self.is_seen.setflags(write=False)

    @property
    def seen(self) -> tuple[str, ...]:
        """Words with labels in training, in label order."""
        return tuple(word for word, seen in zip(self.words, self.is_seen, strict=True) if seen)

    @property
    def unseen(self) -> tuple[str, ...]:
        """Words without labels in training, in label order."""
        return tuple(word for word, seen in zip(self.words, self.is_seen, strict=True) if not seen)

    def index(self, word: str) -> int:
        """Label of a word.

        Raises:
            ValueError: if it is not in the vocabulary.
        """
        if word not in self._labels:
            raise ValueError(
                f"word must be one of the {len(self)} words of the vocabulary, got {word!r}; add it with Vocabulary.add"
            )
        return self._labels[word]

    def labels(self, words: Iterable[str]) -> np.ndarray:
        """Labels of several words, (M,) int64, in the order given."""
        return np.array([self.index(word) for word in words], np.int64)

    def prompts(self, word: str) -> tuple[str, ...]:
        """The sentences sent to the text encoder for a word, one a template."""
        return tuple(template.format(word) for template in self.templates)

    def add(self, words: Iterable[str], seen: bool = False) -> "Vocabulary":
        """A new vocabulary with more words at the end, so that every label stays what it is.

        Raises:
            ValueError: if a word is already there.
        """
        words = check_words(words)
        return Vocabulary([*self.words, *words], seen=[*self.seen, *(words if seen else ())], templates=self.templates)

    def select(self, words: Iterable[str]) -> "Vocabulary":
        """A new vocabulary of some of the words, in the order given, each as seen or unseen as it was."""
        words = check_words(words)
        kept = [word for word in words if self.is_seen[self.index(word)]]
        return Vocabulary(words, seen=kept, templates=self.templates)

    def digest(self) -> str:
        """SHA-256 of words, partition and templates: equal digests mean equal columns."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, for JSON."""
        return {"words": list(self.words), "seen": list(self.seen), "templates": list(self.templates)}

    @classmethod
    def from_dict(cls, state: dict[str, Any]) -> "Vocabulary":
        """The inverse of `to_dict`."""
        return cls(state["words"], seen=state["seen"], templates=state["templates"])

    def __len__(self) -> int:
        return len(self.words)

    def __iter__(self) -> Iterator[str]:
        return iter(self.words)

    def __contains__(self, word: object) -> bool:
        return word in self._labels

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Vocabulary) and self.to_dict() == other.to_dict()

    def __hash__(self) -> int:
        return hash((self.words, self.seen, self.templates))

    def __repr__(self) -> str:
        shown = ", ".join(repr(word) for word in self.words[:3]) + (", …" if len(self) > 3 else "")
        return f"Vocabulary({shown}; {len(self.seen)} seen, {len(self.unseen)} unseen)"


def check_words(words: Iterable[str], name: str = "words", allow_empty: bool = False) -> tuple[str, ...]:
    """Words as a tuple of distinct, stripped, non-empty texts, or an error that names what is wrong."""
    if isinstance(words, str):
        raise TypeError(f"{name} must be a list of words, got the text {words!r}; write [{words!r}]")
    if isinstance(words, (set, frozenset)) and name == "words":
        raise TypeError(f"{name} must be a list, whose order is that of the labels, got a set; write sorted(words)")
    words = tuple(words)
    for word in words:
        if not isinstance(word, str):
            raise TypeError(f"{name} must be texts, got {word!r} of type {type(word).__name__}; write it as text")
    words = tuple(word.strip() for word in words)
    if not words and not allow_empty:
        raise ValueError(f"{name} must have at least one word, got none; give the words to score")
    if "" in words:
        raise ValueError(f"{name} must not be empty texts, got one at position {words.index('')}; remove it")
    duplicates = [word for word, count in Counter(words).items() if count > 1]
    if duplicates:
        raise ValueError(f"{name} must be distinct, got {duplicates[:5]} more than once; remove the duplicates")
    return words


def check_templates(templates: Iterable[str] | Sequence[str]) -> tuple[str, ...]:
    """Templates as a tuple of texts with exactly one `{}` each, or an error."""
    if isinstance(templates, str):
        raise TypeError(f"templates must be a list, got the text {templates!r}; write [{templates!r}]")
    templates = tuple(templates)
    wrong = [t for t in templates if not isinstance(t, str) or (t.count("{}"), t.count("{"), t.count("}")) != (1, 1, 1)]
    if wrong or not templates:
        raise ValueError(f"templates must be sentences with one {{}} each, got {wrong[:3]}; write 'a photo of a {{}}.'")
    return templates
