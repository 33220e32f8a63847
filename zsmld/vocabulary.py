"""Vocabulary: ordered words, their seen/unseen partition, and the prompts that stand for them.

The only owner of label order: column j of every array in zsmld is `vocabulary.words[j]`.
"""

import hashlib
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from zsmld.display import chips, facts, folded, panel, table

DEFAULT_TEMPLATES = ("a photo of a {}.",)
TEMPLATE_SETS = ("photo", "simple", "imagenet")

# Control characters (C0, DEL, C1) and the two separators that end a line and are none. Joiners and marks of direction
# stay: emoji and Persian are written with them.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_NUM_SHOWN = 60  # seen and as many unseen words in a notebook's table


class Vocabulary:
    """An immutable list of distinct words, each seen or unseen in training.

    Args:
        words: distinct, non-empty texts; their order is the order of labels.
        seen: the words that have labels in training; default all.
        templates: sentences with one `{}` each, where the word goes, or the name of a set, see `named_templates`; a
            word's embedding is the ensemble over all.
        descriptions: sentences that stand for a word instead of the templates, see `read_descriptions`. They may be
            those of far more words; words that have none use the templates.

    Raises:
        TypeError: if `words` is one string, or an entry is not text.
        ValueError: on no words, an empty word, duplicates, a `seen` word that is no word, a template without `{}`, an
            empty description, or descriptions of none of the words.

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
        descriptions: Mapping[str, Sequence[str]] | None = None,
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
        given = check_descriptions(descriptions or {})
        self._descriptions = {word: given[word] for word in self.words if word in given}
        if given and not self._descriptions:
            raise ValueError(
                f"descriptions must be of at least one word of the vocabulary, {list(self.words[:3])}, got those of "
                f"{len(given)} others such as {list(given)[:3]}; write the words exactly as in the vocabulary"
            )

    @property
    def seen(self) -> tuple[str, ...]:
        """Words with labels in training, in label order."""
        return tuple(word for word, seen in zip(self.words, self.is_seen, strict=True) if seen)

    @property
    def unseen(self) -> tuple[str, ...]:
        """Words without labels in training, in label order."""
        return tuple(word for word, seen in zip(self.words, self.is_seen, strict=True) if not seen)

    @property
    def descriptions(self) -> dict[str, tuple[str, ...]]:
        """The sentences of those words that have some, in label order; a copy."""
        return dict(self._descriptions)

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
        """The sentences sent to the text encoder for a word: its descriptions, else one a template."""
        return self._descriptions.get(word) or tuple(template.format(word) for template in self.templates)

    def add(
        self, words: Iterable[str], seen: bool = False, descriptions: Mapping[str, Sequence[str]] | None = None
    ) -> "Vocabulary":
        """A new vocabulary with more words at the end, so that every label stays what it is.

        Args:
            words: to add.
            seen: whether they have labels in training.
            descriptions: sentences of some of the added words; those of words that were there stay what they are.

        Raises:
            ValueError: if a word is already there, or the descriptions are of none of the added words.
        """
        added = Vocabulary(words, templates=self.templates, descriptions=descriptions)
        return Vocabulary(
            [*self.words, *added.words],
            seen=[*self.seen, *(added.words if seen else ())],
            templates=self.templates,
            descriptions={**added.descriptions, **self._descriptions},
        )

    def select(self, words: Iterable[str]) -> "Vocabulary":
        """A new vocabulary of some of the words, in the order given, each as seen or unseen as it was."""
        words = check_words(words)
        kept = [word for word in words if self.is_seen[self.index(word)]]
        descriptions = {word: self._descriptions[word] for word in words if word in self._descriptions}
        return Vocabulary(words, seen=kept, templates=self.templates, descriptions=descriptions)

    def digest(self) -> str:
        """SHA-256 of words, partition, templates and descriptions: equal digests mean equal columns."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, for JSON. The key "descriptions" is there only if there are some: stored digests stay valid."""
        state: dict[str, Any] = {
            "words": list(self.words),
            "seen": list(self.seen),
            "templates": list(self.templates),
        }
        if self._descriptions:
            state["descriptions"] = {word: list(sentences) for word, sentences in self._descriptions.items()}
        return state

    @classmethod
    def from_dict(cls, state: dict[str, Any]) -> "Vocabulary":
        """The inverse of `to_dict`."""
        return cls(state["words"], state["seen"], state["templates"], state.get("descriptions"))

    def __len__(self) -> int:
        return len(self.words)

    def __iter__(self) -> Iterator[str]:
        return iter(self.words)

    def __contains__(self, word: object) -> bool:
        return word in self._labels

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Vocabulary) and self.to_dict() == other.to_dict()

    def __hash__(self) -> int:
        return hash((self.words, self.seen, self.templates, *self._descriptions.items()))

    def __repr__(self) -> str:
        shown = ", ".join(repr(word) for word in self.words[:3]) + (", …" if len(self) > 3 else "")
        return f"Vocabulary({shown}; {len(self.seen)} seen, {len(self.unseen)} unseen)"

    def _repr_html_(self) -> str:
        sides = {"seen": self.seen, "unseen": self.unseen}
        shown = [word for words in sides.values() for word in words[:_NUM_SHOWN]]
        rows = [
            [str(label), self.words[label], "seen" if self.is_seen[label] else "unseen", _first(self.prompts(word))]
            for label, word in sorted((self.index(word), word) for word in shown)
        ]
        left_out = len(self) - len(shown)
        title = f"the first {_NUM_SHOWN} of each side, {left_out} are left out" if left_out else "every word"
        described = [f"words with descriptions: {len(self._descriptions)}"] if self._descriptions else []
        return panel(
            f"Vocabulary of {len(self)} words: {len(self.seen)} seen, {len(self.unseen)} unseen",
            facts(f"templates: {_first(self.templates)}", *described),
            *(chips(side, words, side == "seen") for side, words in sides.items() if words),
            folded(f"Labels and prompts of {title}", table(["label", "word", "", "prompt"], rows, text=(1, 2, 3))),
        )


def _first(texts: Sequence[str]) -> str:
    return texts[0] + (f" and {len(texts) - 1} more" if len(texts) > 1 else "")


def check_words(words: Iterable[str], name: str = "words", allow_empty: bool = False) -> tuple[str, ...]:
    """Words as a tuple of distinct, stripped, non-empty texts of one line, or an error that names what is wrong.

    No text may hold a control character: printed, it would be an order to the terminal. Joiners and marks of direction
    are part of some scripts, and stay. Two spellings of what is one text to Unicode (NFC), é as one character or as e
    and an accent, are not distinct. The words themselves stay as they are spelled.
    """
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
    for wrong in wrong_words(words).values():
        raise ValueError(f"{name} {wrong}")
    return words


def wrong_words(words: Sequence[str]) -> dict[str, str]:
    """Those of distinct, stripped texts that can be no words beside the others, and what `check_words` says of each.

    Example:
        >>> wrong_words(["dog", "hot\\ndog"])["hot\\ndog"].partition(", got ")[2]
        "'hot\\\\ndog'; write it anew"
    """
    found: dict[str, str] = {}
    together = "".join(words)
    if not together.isprintable():
        # One word a line is what lists of words are, and neither file nor database has room for the others.
        found = {
            word: f"must be of one line, without NUL and without halves of characters or control characters, got "
            f"{word!r:.80}; write it anew"
            for word in words
            if _UNPRINTABLE.search(word) or not _is_unicode(word)
        }
    if not together.isascii():
        spelled: dict[str, str] = {}
        for word in words:
            other = spelled.setdefault(unicodedata.normalize("NFC", word), word)
            if other != word and word not in found:
                found[word] = (
                    f"must be distinct, got {other!r} twice, once as {other!a} and once as {word!a}, which are one "
                    f"text to Unicode (NFC); remove one"
                )
    return found


def check_templates(templates: Iterable[str] | Sequence[str]) -> tuple[str, ...]:
    """Templates as a tuple of texts with exactly one `{}` each, or an error; the name of a set stands for its own."""
    if isinstance(templates, str):
        if templates in TEMPLATE_SETS:
            return named_templates(templates)
        raise TypeError(
            f"templates must be a list, got the text {templates!r}; write [{templates!r}], or the name of a set, one "
            f"of {list(TEMPLATE_SETS)}"
        )
    templates = tuple(templates)
    wrong = [t for t in templates if not isinstance(t, str) or (t.count("{}"), t.count("{"), t.count("}")) != (1, 1, 1)]
    if wrong or not templates:
        raise ValueError(f"templates must be sentences with one {{}} each, got {wrong[:3]}; write 'a photo of a {{}}.'")
    return templates


def named_templates(name: str) -> tuple[str, ...]:
    """The templates of a set, by name.

    "photo" is our default, one sentence; "simple" the seven that OpenAI chose of the eighty for ImageNet;
    "imagenet" all of these. The last two are open_clip's, which is loaded for them.

    Raises:
        ValueError: if there is no such set.

    Source: Radford et al., arXiv 2103.00020, section 3.1.4; open_clip's `zero_shot_metadata`.

    Example:
        >>> named_templates("photo"), len(named_templates("simple")), len(named_templates("imagenet"))
        (('a photo of a {}.',), 7, 80)
    """
    if name not in TEMPLATE_SETS:
        raise ValueError(f"templates must be a list or one of {list(TEMPLATE_SETS)}, got {name!r}; correct the name")
    if name == "photo":
        return DEFAULT_TEMPLATES
    import open_clip

    functions = open_clip.SIMPLE_IMAGENET_TEMPLATES if name == "simple" else open_clip.OPENAI_IMAGENET_TEMPLATES
    return tuple(function("{}") for function in functions)


def read_descriptions(path: str | Path) -> dict[str, tuple[str, ...]]:
    """Descriptions of words from a JSON file, for instance one that a language model wrote.

    The file is `{"zebra": ["a striped animal", ...], "bus": [...]}`, or a list of objects with one word each,
    `[{"zebra": [...]}, {"bus": [...]}]`, as RAM++ publishes them.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not JSON of this form; the message names the file, the word and the position, from 0.

    Source: the second form is that of RAM++'s `openimages_rare_200_llm_tag_descriptions.json`, arXiv 2310.15200.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"descriptions must be an existing JSON file, not found: {path}; correct the path")
    try:
        # Objects as pairs: a dict would keep the last of two equal words, and nobody would know.
        content = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=_Object)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} must be JSON in UTF-8, it cannot be read: {error}; repair the file") from error
    if isinstance(content, list):
        for position, entry in enumerate(content):
            if not isinstance(entry, _Object) or len(entry.pairs) != 1:
                raise ValueError(
                    f"{path} must be a list of objects with one word each, got {entry!r:.80} at position {position}; "
                    f'write {{"zebra": ["a striped animal", "a wild horse"]}}'
                )
        content = _Object([pair for entry in content for pair in entry.pairs])
    if not isinstance(content, _Object) or not content.pairs:
        raise ValueError(
            f"{path} must be an object of words or a list of such objects, got {content!r:.80}; "
            f'write {{"zebra": ["a striped animal", "a wild horse"]}}'
        )
    return _checked_descriptions(content.pairs, f"{path}: descriptions")


def check_descriptions(descriptions: Mapping[str, Sequence[str]]) -> dict[str, tuple[str, ...]]:
    """Descriptions as tuples of stripped, non-empty texts by word, or an error that names the word and the position."""
    if not isinstance(descriptions, Mapping):
        raise TypeError(
            f"descriptions must map words to lists of texts, got {type(descriptions).__name__}; read a file with "
            f"read_descriptions"
        )
    return _checked_descriptions(descriptions.items(), "descriptions")


@dataclass(frozen=True)
class _Object:
    """A JSON object as it stands in the file, equal words and all."""

    pairs: list[tuple[str, Any]]

    def __repr__(self) -> str:
        return f"an object of {len(self.pairs)} entries"


def _checked_descriptions(pairs: Iterable[tuple[Any, Any]], name: str) -> dict[str, tuple[str, ...]]:
    checked: dict[str, tuple[str, ...]] = {}
    for position, (word, sentences) in enumerate(pairs):
        if not isinstance(word, str) or not word.strip():
            raise ValueError(f"{name} must be of words, got {word!r} at position {position}; write the word as text")
        word = word.strip()
        if word in checked:
            raise ValueError(
                f"{name} must hold each word once, got {word!r} again at position {position}; join the two"
            )
        if not isinstance(sentences, (list, tuple)):
            raise ValueError(f"{name} of {word!r} must be a list of texts, got {sentences!r:.80}; write it in [ ]")
        if not sentences:
            raise ValueError(f"{name} of {word!r} must be at least one text, got none; leave the word out")
        for place, sentence in enumerate(sentences):
            if not isinstance(sentence, str) or not sentence.strip() or not _is_unicode(sentence):
                raise ValueError(
                    f"{name} of {word!r} must be non-empty texts, got {sentence!r:.80} at position {place}; remove it"
                )
        checked[word] = tuple(sentence.strip() for sentence in sentences)
    return checked


def _is_unicode(text: str) -> bool:
    """Whether no half of a surrogate pair is in a text: JSON may hold one, a text cut inside an emoji for instance."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
