"""Vocabulary: label order, the seen/unseen partition, prompts."""

import json
import subprocess
import sys
from unicodedata import normalize

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from zsmld import Vocabulary
from zsmld.vocabulary import (
    DEFAULT_TEMPLATES,
    TEMPLATE_SETS,
    check_templates,
    check_words,
    named_templates,
    wrong_words,
)

texts = st.text(st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"]), min_size=1, max_size=8)
texts = texts.map(str.strip).filter(bool)
word_lists = st.lists(texts, min_size=1, max_size=12, unique_by=lambda text: normalize("NFC", text))
template_lists = st.lists(
    st.sampled_from(["{}", "a photo of a {}.", "it is a {}!", "{} in the wild"]), min_size=1, unique=True
)


@st.composite
def vocabularies(draw: st.DrawFn) -> Vocabulary:
    words = draw(word_lists)
    return Vocabulary(words, seen=draw(st.lists(st.sampled_from(words), unique=True)), templates=draw(template_lists))


# ------------------------------------------------------------------------------------------------------------- laws


@given(vocabularies())
def test_label_is_position(vocabulary: Vocabulary) -> None:
    assert [vocabulary.index(word) for word in vocabulary] == list(range(len(vocabulary)))
    assert vocabulary.labels(vocabulary.words).tolist() == list(range(len(vocabulary)))
    assert vocabulary.labels(reversed(vocabulary.words)).tolist() == list(range(len(vocabulary)))[::-1]
    assert all(word in vocabulary for word in vocabulary.words)


@given(vocabularies())
def test_seen_and_unseen_divide_the_words_in_label_order(vocabulary: Vocabulary) -> None:
    assert set(vocabulary.seen) | set(vocabulary.unseen) == set(vocabulary.words)
    assert len(vocabulary.seen) + len(vocabulary.unseen) == len(vocabulary)
    for part in (vocabulary.seen, vocabulary.unseen):
        assert list(part) == sorted(part, key=vocabulary.index)
    assert [vocabulary.words[i] for i in np.flatnonzero(vocabulary.is_seen)] == list(vocabulary.seen)


@given(vocabularies(), word_lists, st.booleans())
def test_add_keeps_every_label_and_part(vocabulary: Vocabulary, more: list[str], seen: bool) -> None:
    assume(not set(more) & set(vocabulary.words))
    grown = vocabulary.add(more, seen=seen)
    assert grown.words == (*vocabulary.words, *more)
    assert grown.is_seen.tolist() == vocabulary.is_seen.tolist() + [seen] * len(more)
    assert grown.templates == vocabulary.templates
    assert grown.select(vocabulary.words) == vocabulary


@given(vocabularies(), st.data())
def test_select_takes_the_order_given_and_keeps_the_parts(vocabulary: Vocabulary, data: st.DataObject) -> None:
    words = data.draw(st.lists(st.sampled_from(vocabulary.words), min_size=1, unique=True))
    part = vocabulary.select(words)
    assert part.words == tuple(words)
    assert part.templates == vocabulary.templates
    assert [word in part.seen for word in words] == [word in vocabulary.seen for word in words]


@given(vocabularies())
def test_round_trip_through_json(vocabulary: Vocabulary) -> None:
    restored = Vocabulary.from_dict(json.loads(json.dumps(vocabulary.to_dict())))
    assert restored == vocabulary
    assert hash(restored) == hash(vocabulary)
    assert restored.digest() == vocabulary.digest()


@given(vocabularies(), vocabularies())
def test_digests_are_equal_exactly_when_vocabularies_are(a: Vocabulary, b: Vocabulary) -> None:
    assert (a.digest() == b.digest()) == (a == b)
    assert Vocabulary(a.words[::-1], a.seen, a.templates).digest() != a.digest() or len(a) == 1


@given(vocabularies())
def test_prompts_are_one_a_template_and_hold_the_word(vocabulary: Vocabulary) -> None:
    for word in vocabulary:
        prompts = vocabulary.prompts(word)
        assert len(prompts) == len(vocabulary.templates)
        assert prompts == tuple(t.replace("{}", word) for t in vocabulary.templates)


@given(st.text(max_size=12))
def test_every_accepted_template_makes_a_prompt(template: str) -> None:
    assume("}" not in template.replace("{}", ""))
    try:
        (accepted,) = check_templates([template])
    except ValueError:
        assert template.count("{}") != 1 or template.count("{") != 1
    else:
        assert "dog" in accepted.format("dog")


def test_template_with_a_lone_closing_brace_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match=r"templates must be sentences with one {} each"):
        Vocabulary(["dog"], templates=["a } {}"])


# --------------------------------------------------------------------------------------------------------- examples


def test_defaults_are_all_seen_and_one_template() -> None:
    vocabulary = Vocabulary(["dog", "cat"])
    assert vocabulary.seen == ("dog", "cat") and vocabulary.unseen == ()
    assert vocabulary.templates == DEFAULT_TEMPLATES == ("a photo of a {}.",)
    assert Vocabulary(["dog"], seen=[]).unseen == ("dog",)


def test_words_are_stripped_and_may_hold_braces() -> None:
    vocabulary = Vocabulary([" dog ", "a {} b"])
    assert vocabulary.words == ("dog", "a {} b")
    assert vocabulary.prompts("a {} b") == ("a photo of a a {} b.",)


def test_it_cannot_be_changed_in_place() -> None:
    vocabulary = Vocabulary(["dog"])
    with pytest.raises(ValueError, match="read-only"):
        vocabulary.is_seen[0] = False
    assert isinstance(vocabulary.words, tuple)


def test_equality_looks_at_words_parts_and_templates() -> None:
    vocabulary = Vocabulary(["dog", "cat"], seen=["dog"])
    assert vocabulary != Vocabulary(["cat", "dog"], seen=["dog"])
    assert vocabulary != Vocabulary(["dog", "cat"])
    assert vocabulary != Vocabulary(["dog", "cat"], seen=["dog"], templates=["{}"])
    assert vocabulary != ["dog", "cat"]


def test_repr_counts_the_parts() -> None:
    assert repr(Vocabulary([*"abcd"], seen=[*"ab"])) == ("Vocabulary('a', 'b', 'c', …; 2 seen, 2 unseen)")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"words": "dog"}, TypeError, r"words must be a list of words, got the text 'dog'; write \['dog'\]"),
        ({"words": ["dog", 3]}, TypeError, "words must be texts, got 3 of type int"),
        ({"words": []}, ValueError, "words must have at least one word, got none"),
        ({"words": ["dog", " "]}, ValueError, "words must not be empty texts, got one at position 1"),
        ({"words": ["dog", "cat", "dog "]}, ValueError, r"words must be distinct, got \['dog'\] more than once"),
        ({"words": ["dog"], "seen": "dog"}, TypeError, "seen must be a list of words"),
        ({"words": ["dog"], "seen": ["cat"]}, ValueError, r"seen must be words of the vocabulary, got \['cat'\]"),
        ({"words": ["dog"], "seen": ["dog", "dog"]}, ValueError, "seen must be distinct"),
        ({"words": ["dog"], "templates": "a {}"}, TypeError, r"list, got the text 'a {}'; write \['a {}'\], or"),
        ({"words": ["dog"], "templates": []}, ValueError, "templates must be sentences with one {} each"),
        ({"words": ["dog"], "templates": ["a dog"]}, ValueError, r"one {} each, got \['a dog'\]"),
        ({"words": ["dog"], "templates": ["{} or {}"]}, ValueError, "one {} each"),
        ({"words": ["dog"], "templates": ["{0}"]}, ValueError, "one {} each"),
        ({"words": ["dog"], "templates": [3]}, ValueError, "one {} each"),
    ],
)
def test_wrong_arguments(arguments: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Vocabulary(**arguments)


def test_wrong_words_later() -> None:
    vocabulary = Vocabulary(["dog", "cat"])
    with pytest.raises(ValueError, match="one of the 2 words of the vocabulary, got 'zebra'; add it with"):
        vocabulary.index("zebra")
    with pytest.raises(ValueError, match="got 'zebra'"):
        vocabulary.select(["dog", "zebra"])
    with pytest.raises(ValueError, match="must be distinct"):
        vocabulary.add(["dog"])
    with pytest.raises(ValueError, match="at least one word"):
        vocabulary.add([])


def test_check_words_may_allow_none() -> None:
    assert check_words([], allow_empty=True) == ()
    assert check_words(word for word in ("b", "a")) == ("b", "a")


def test_a_set_has_no_order_and_is_refused() -> None:
    with pytest.raises(TypeError, match="words must be a list, whose order is that of the labels, got a set"):
        Vocabulary({"dog", "cat"})
    assert Vocabulary(["dog", "cat"], seen={"cat"}).seen == ("cat",)


@pytest.mark.parametrize("word", ["a\x1b[31mb", "a\tb", "a\x07b", "a\x7fb", "a\x9bb", "a\x80b", "a\x0cb", "a\u2029b"])
def test_words_that_would_order_a_terminal_about_are_refused(word: str) -> None:
    for make in (lambda: Vocabulary(["dog", word]), lambda: Vocabulary(["dog"]).add([word])):
        with pytest.raises(ValueError) as raised:
            make()
        assert str(raised.value) == (
            f"words must be of one line, without NUL and without halves of characters or control characters, got "
            f"{word!r}; write it anew"
        )
    state = Vocabulary(["dog"]).to_dict() | {"words": ["dog", word], "seen": ["dog"]}
    with pytest.raises(ValueError, match="control characters"):  # a stranger's checkpoint
        Vocabulary.from_dict(state)


@given(st.characters(categories=["Cc"]))
def test_no_control_character_is_within_a_word(control: str) -> None:
    with pytest.raises(ValueError, match="without halves of characters or control characters"):
        Vocabulary([f"a{control}b"])


def test_joiners_and_marks_of_direction_stay() -> None:
    words = [
        "👩\u200d👩\u200d👧",
        "می\u200cخواهم",
        "زرافة",
        "\u202eevil",
        "\u2067زرافة\u2069",
        "soft\u00adhyphen",
        "a\u00a0b",
    ]
    assert Vocabulary(words).words == tuple(words)


def test_every_wrong_word_is_told_of() -> None:
    assert wrong_words(["dog", "é", "👩\u200d👧"]) == {}
    found = wrong_words(["é", "a\nb", "e\u0301", "\ud83e"])
    assert list(found) == ["a\nb", "\ud83e", "e\u0301"] and "twice, once as '\\xe9' and once as" in found["e\u0301"]


# ------------------------------------------------------------------------------------------------ sets of templates


@pytest.mark.parametrize(("name", "attribute"), [("simple", "SIMPLE"), ("imagenet", "OPENAI")])
def test_named_templates_make_open_clips_sentences(name: str, attribute: str) -> None:
    import open_clip

    functions = getattr(open_clip, f"{attribute}_IMAGENET_TEMPLATES")
    for word in ("dog", "{} 🦓", "Tasse à café"):
        expected = tuple(function(word) for function in functions)
        assert tuple(template.format(word) for template in named_templates(name)) == expected
        assert Vocabulary([word], templates=name).prompts(word) == expected


def test_names_of_template_sets() -> None:
    assert [len(named_templates(name)) for name in TEMPLATE_SETS] == [1, 7, 80]
    assert all(check_templates(name) == check_templates(named_templates(name)) for name in TEMPLATE_SETS)
    assert named_templates("photo") == DEFAULT_TEMPLATES
    with pytest.raises(ValueError, match=r"list or one of \['photo', 'simple', 'imagenet'\], got 'cifar'; correct"):
        named_templates("cifar")
    with pytest.raises(TypeError, match=r"or the name of a set, one of \['photo', 'simple', 'imagenet'\]"):
        Vocabulary(["dog"], templates="cifar")


def test_vocabularies_need_no_network_library() -> None:
    code = (
        "import sys; from zsmld.vocabulary import Vocabulary; Vocabulary(['dog'], descriptions={'dog': ['barks']}); "
        "print([name for name in ('torch', 'open_clip', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"
