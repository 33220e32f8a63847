"""Which words a sentence names, and the phrases it is made of. English, and no more than a few rules."""

import re
from collections.abc import Mapping, Sequence

import numpy as np
from scipy.sparse import csr_matrix

_TOKEN = re.compile(r"\w+(?:-\w+)*")
# Where a sentence falls into phrases: at signs, and at these words, which no phrase begins or ends with.
_BETWEEN = re.compile(
    r"[,.;:!?()\"]|\b(?:and|or|but|while|with|without|of|in|on|at|by|to|from|for|near|next|into|onto|over|under|above|"
    r"below|behind|beside|between|through|along|around|against|across|inside|outside|is|are|that|which|who|as)\b",
    re.IGNORECASE,
)
_IRREGULAR = {
    "man": "men", "woman": "women", "person": "people", "child": "children",
    "foot": "feet", "tooth": "teeth", "goose": "geese", "mouse": "mice",
}  # fmt: skip


def find_words(
    sentences: Sequence[str], words: Sequence[str], synonyms: Mapping[str, Sequence[str]] | None = None
) -> csr_matrix:
    """Which words each sentence names.

    A word is found as a whole, in upper or lower case, by itself or in the plural of its last part: with s or es, ies
    for y, ves for f and fe, and eight irregular ones such as people and mice. That is all of the rule: a word given in
    the plural is not found in the singular, a verb or another sense of a word ("a park", "to park") is found as well,
    and a negation is not understood. What stands inside a longer word of the list ("dog" in "hot dog", "car" in "red
    car") is unknown, unless it stands elsewhere by itself.

    Args:
        sentences: M texts.
        words: N.
        synonyms: other texts that name a word; of words beyond these they are ignored.

    Returns:
        (M,N) CSR of int8: 1 named, −1 inside a longer word; a missing entry means not named.

    Example:
        >>> find_words(["Two dogs eat a hot dog", "hot dogs, and buses"], ["dog", "hot dog", "bus"]).toarray()
        array([[ 1,  1,  0],
               [-1,  1,  1]], dtype=int8)
    """
    labels_of: dict[tuple[str, ...], list[int]] = {}
    for label, word in enumerate(words):
        for form in {form for text in (word, *(synonyms or {}).get(word, ())) for form in _forms(text)}:
            labels_of.setdefault(form, []).append(label)
    longest = max(map(len, labels_of), default=0)
    rows: list[int] = []
    labels: list[int] = []
    values: list[int] = []
    for row, sentence in enumerate(sentences):
        tokens = _tokens(sentence)
        spans = [
            (start, start + length, label)
            for length in range(1, longest + 1)
            for start in range(len(tokens) - length + 1)
            for label in labels_of.get(tokens[start : start + length], ())
        ]
        found: dict[int, int] = {}
        for start, end, label in spans:
            inside = any(s <= start and end <= e and e - s > end - start and other != label for s, e, other in spans)
            found[label] = max(found.get(label, -1), -1 if inside else 1)
        rows += [row] * len(found)
        labels += found.keys()
        values += found.values()
    matrix = csr_matrix((np.array(values, np.int8), (rows, labels)), (len(sentences), len(words)), dtype=np.int8)
    matrix.sort_indices()
    return matrix


def phrases(sentence: str, number: int) -> list[str]:
    """Parts of a sentence, cut at signs and at words such as "and", "with" and "on": always as many, in order.

    What is beyond `number` is the last part's; where there are fewer, they come again.

    Example:
        >>> phrases("A man with a red hat rides on a horse.", 3)
        ['A man', 'a red hat rides', 'a horse']
        >>> phrases("A man with a red hat rides on a horse.", 2), phrases("a dog", 2)
        (['A man', 'a red hat rides a horse'], ['a dog', 'a dog'])
    """
    parts = [part for part in (" ".join(part.split()) for part in _BETWEEN.split(sentence)) if part] or [sentence]
    if len(parts) > number:
        parts = [*parts[: max(0, number - 1)], " ".join(parts[max(0, number - 1) :])]
    return [parts[place % len(parts)] for place in range(number)]


def _tokens(text: str) -> tuple[str, ...]:
    return tuple(_TOKEN.findall(text.casefold()))


def _forms(text: str) -> set[tuple[str, ...]]:
    tokens = _tokens(text)
    if not tokens:
        return set()
    return {tokens, *((*tokens[:-1], plural) for plural in _plurals(tokens[-1]))}


def _plurals(word: str) -> set[str]:
    """Of an English noun; some that do not exist are harmless, for nobody writes them."""
    found = {word[: -len(one)] + many for one, many in _IRREGULAR.items() if word.endswith(one)}
    if word.endswith(("s", "x", "z", "ch", "sh")):
        return found | {word + "es"}
    if word.endswith("y") and word[-2:-1] not in tuple("aeiou"):
        return found | {word[:-1] + "ies"}
    if word.endswith("o"):
        found.add(word + "es")
    if word.endswith(("f", "fe")):
        found.add(word.removesuffix("e")[:-1] + "ves")
    return found | {word + "s"}
