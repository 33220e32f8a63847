"""ScoredWords: what a predictor scores. Immutable: a change makes another, and a running prediction keeps its own."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from zsmld.decoder import join_words
from zsmld.decoder.inference import CompiledWords, Shortlist
from zsmld.vocabulary import Vocabulary, check_words


@dataclass(frozen=True)
class ScoredWords:
    """Results, the texts that stand for them, and the query side of these texts.

    A result is a word; its texts are the word itself and its synonyms, next to each other.

    Attributes:
        vocabulary: N results; column j of every score matrix is its word j.
        synonyms: of the results that have some.
        texts: P ≥ N texts, those of result 0 first; without synonyms the vocabulary itself.
        embeddings: (P,T), or (P,K,T) where words have several descriptions, on the CPU; None in class mode.
        compiled: their query side, R reference words of the calibration before the texts; None in class mode.
        num_reference: R.
        shortlist: learnt with these very texts; None decodes all of them.
    """

    vocabulary: Vocabulary
    synonyms: Mapping[str, tuple[str, ...]]
    texts: Vocabulary
    embeddings: Tensor | None = None
    compiled: CompiledWords | None = None
    num_reference: int = 0
    shortlist: Shortlist | None = None

    def behind(self, reference: CompiledWords) -> "ScoredWords":
        """With compiled reference words before these."""
        assert self.compiled is not None  # word mode
        return replace(self, compiled=reference.join(self.compiled), num_reference=len(reference))

    def joined(self, more: "ScoredWords", vocabulary: Vocabulary, texts: Vocabulary) -> "ScoredWords":
        """These, and then more, with the vocabularies of both."""
        assert self.compiled is not None and more.compiled is not None  # word mode
        assert self.embeddings is not None and more.embeddings is not None
        (embeddings,) = join_words((self.embeddings,), (more.embeddings,))
        compiled, synonyms = self.compiled.join(more.compiled), {**self.synonyms, **more.synonyms}
        return ScoredWords(vocabulary, synonyms, texts, embeddings, compiled, self.num_reference)

    def without(self, words: Iterable[str]) -> "ScoredWords":
        """Without some of the results and their texts."""
        assert self.compiled is not None and self.embeddings is not None  # word mode
        leaving = {self.vocabulary.index(word) for word in words}
        kept = [label for label in range(len(self.vocabulary)) if label not in leaving]
        rows = [row for row, label in enumerate(self.labels_of_texts().tolist()) if label not in leaving]
        vocabulary = self.vocabulary.select(self.vocabulary.words[label] for label in kept)
        texts = self.texts.select(self.texts.words[row] for row in rows) if self.synonyms else vocabulary
        places = [*range(self.num_reference), *(self.num_reference + row for row in rows)]
        return ScoredWords(
            vocabulary,
            {word: synonyms for word, synonyms in self.synonyms.items() if word in vocabulary},
            texts,
            self.embeddings[rows],
            self.compiled.select(places),
            self.num_reference,
        )

    def labels_of_texts(self) -> np.ndarray:
        """(P,) int64: the result of each text."""
        counts = [1 + len(self.synonyms.get(word, ())) for word in self.vocabulary]
        return np.repeat(np.arange(len(self.vocabulary)), counts)

    def best_of_texts(self, of_texts: np.ndarray) -> np.ndarray:
        """(B,P) of texts -> (B,N) of results: the highest of each result's own."""
        if not self.synonyms:
            return of_texts
        starts = np.searchsorted(self.labels_of_texts(), np.arange(len(self.vocabulary)))
        return np.maximum.reduceat(of_texts, starts, axis=1)


def texts_of(words: Sequence[str], synonyms: Mapping[str, Sequence[str]]) -> list[str]:
    """Every word, each followed by its synonyms.

    Example:
        >>> texts_of(["sofa", "car"], {"sofa": ["couch"]})
        ['sofa', 'couch', 'car']
    """
    return [text for word in words for text in (word, *synonyms.get(word, ()))]


def check_synonyms(synonyms: Mapping[str, Iterable[str]], words: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Synonyms by word, or an error that names what is wrong; words without any are left out.

    Raises:
        TypeError: if it is no mapping of words to lists.
        ValueError: if one is of no word, is a word of its own, or stands for two words.
    """
    if not isinstance(synonyms, Mapping):
        raise TypeError(
            f"synonyms must map words to lists of texts, got {type(synonyms).__name__}; write {{'sofa': ['couch']}}"
        )
    checked: dict[str, tuple[str, ...]] = {}
    known, owner = set(words), dict[str, str]()
    for word, texts in synonyms.items():
        word = word.strip() if isinstance(word, str) else word
        if word not in known:
            raise ValueError(f"synonyms must be of the words, got those of {word!r}; add it to the words")
        own = check_words(texts, f"synonyms of {word!r}", allow_empty=True)
        for text in own:
            if text in known:
                raise ValueError(
                    f"synonyms must not be words themselves, got {text!r} of {word!r}; take it from one of the two"
                )
            if text in owner:
                raise ValueError(
                    f"synonyms must be of one word each, got {text!r} of {owner[text]!r} and of {word!r}; choose one"
                )
            owner[text] = word
        if own:
            checked[word] = own
    return checked


def fitting_synonyms(synonyms: Mapping[str, Sequence[str]], words: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Of synonyms that were there before, those that these words leave room for.

    Example:
        >>> fitting_synonyms({"sofa": ["couch", "settee"], "car": ["auto"]}, ["sofa", "couch"])
        {'sofa': ('settee',)}
    """
    known = set(words)
    fitting = {word: tuple(t for t in synonyms[word] if t not in known) for word in words if word in synonyms}
    return {word: texts for word, texts in fitting.items() if texts}
