"""Sentences that name a word together with others."""

from collections.abc import Iterable, Mapping

from zsmld.vocabulary import DEFAULT_TEMPLATES


def compound_prompts(
    words: Iterable[str],
    partners: Mapping[str, Iterable[str]] | Iterable[str],
    template: str = "a photo of a {} and a {}.",
    include_single: bool = True,
) -> dict[str, tuple[str, ...]]:
    """Sentences that name a word together with others, to be used as descriptions.

    With descriptions="second" a word's score is its second highest one. A compound prompt scores high as well where
    its partner alone is in the image, so that the highest of many is often a partner's doing.

    Args:
        words: to be described.
        partners: of each word, such as things it often occurs with; or one list for all words.
        template: with two `{}`: the word, then the partner.
        include_single: begin with "a photo of a {}.".

    Returns:
        For each word its sentences, the `descriptions` of a `Vocabulary` or a `Predictor`.

    Raises:
        ValueError: if the template has not two `{}`, or a word is left without a sentence.

    Source: compound prompts, and that the second highest is better than the highest: SPARC, arXiv 2502.16911, which
    fuses ranks with the single prompt afterwards; here the single prompt is one of the sentences.

    Example:
        >>> compound_prompts(["dog"], ["cat", "dog"])
        {'dog': ('a photo of a dog.', 'a photo of a dog and a cat.')}
    """
    if (template.count("{}"), template.count("{"), template.count("}")) != (2, 2, 2):
        raise ValueError(f"template must have two {{}}, the word and its partner, got {template!r}; see the default")
    shared = None if isinstance(partners, Mapping) else tuple(partners)
    found: dict[str, tuple[str, ...]] = {}
    for word in words:
        own = shared if shared is not None else tuple(partners.get(word, ()) if isinstance(partners, Mapping) else ())
        sentences = [DEFAULT_TEMPLATES[0].format(word)] if include_single else []
        sentences += [template.format(word, partner) for partner in own if partner != word]
        if not sentences:
            raise ValueError(f"partners must be given for {word!r} without include_single, got none; add some")
        found[word] = tuple(dict.fromkeys(sentences))
    return found
