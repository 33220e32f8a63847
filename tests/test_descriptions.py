"""Descriptions: several sentences a word, from a file, in a vocabulary, and as embeddings."""

import hashlib
import json
import pickle
import re
from pathlib import Path
from typing import Any
from unicodedata import normalize

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from stand_ins import CountingBackend, counting_encoder
from torch import Tensor

from zsmld import TextEncoder, Vocabulary
from zsmld.vocabulary import read_descriptions

texts = st.text(min_size=1, max_size=8).map(str.strip).filter(bool)
sentences = st.lists(texts, min_size=1, max_size=4)
lines = st.text(st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"]), min_size=1, max_size=8)
word_lists = st.lists(
    lines.map(str.strip).filter(bool), min_size=1, max_size=6, unique_by=lambda text: normalize("NFC", text)
)
ROOT = Path(__file__).resolve().parent.parent


@st.composite
def vocabularies(draw: st.DrawFn) -> Vocabulary:
    """Some words described, none to all of them; the mapping may hold other words too."""
    words = draw(word_lists)
    described = draw(st.lists(st.sampled_from(words), unique=True))
    mapping = {word: draw(sentences) for word in described}
    if mapping:
        mapping |= {f"{word} besides": ["another sentence"] for word in words if f"{word} besides" not in words}
    templates = draw(st.sampled_from([["{}"], ["a photo of a {}.", "it is a {}!"]]))
    return Vocabulary(words, draw(st.lists(st.sampled_from(words), unique=True)), templates, mapping)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> TextEncoder:
    return counting_encoder(tmp_path_factory.mktemp("descriptions"))[0]


def slow_embedding(prompts: tuple[str, ...]) -> Tensor:
    """normalise, mean, normalise, one prompt after another."""
    total = torch.zeros(CountingBackend.text_dim, dtype=torch.float64)
    for prompt in prompts:
        row = torch.from_numpy(CountingBackend().embed([prompt])[0]).double()
        total += row / row.norm()
    mean = total / len(prompts)
    return (mean / mean.norm()).float()


# -------------------------------------------------------------------------------------------------- in a vocabulary


@given(vocabularies())
def test_descriptions_take_the_place_of_templates_where_there_are_some(vocabulary: Vocabulary) -> None:
    plain = Vocabulary(vocabulary.words, templates=vocabulary.templates)
    for word in vocabulary:
        assert vocabulary.prompts(word) == vocabulary.descriptions.get(word, plain.prompts(word))
    assert list(vocabulary.descriptions) == [word for word in vocabulary if word in vocabulary.descriptions]


@given(vocabularies())
def test_round_trips(vocabulary: Vocabulary) -> None:
    for restored in (
        Vocabulary.from_dict(json.loads(json.dumps(vocabulary.to_dict()))),
        pickle.loads(pickle.dumps(vocabulary)),
    ):
        assert restored == vocabulary and restored.descriptions == vocabulary.descriptions
        assert hash(restored) == hash(vocabulary) and restored.digest() == vocabulary.digest()


@given(vocabularies())
def test_without_descriptions_nothing_is_stored_and_the_digest_is_the_old_one(vocabulary: Vocabulary) -> None:
    bare = Vocabulary(vocabulary.words, vocabulary.seen, vocabulary.templates)
    old = {"words": list(bare.words), "seen": list(bare.seen), "templates": list(bare.templates)}
    assert bare.to_dict() == old
    assert bare.digest() == hashlib.sha256(json.dumps(old, sort_keys=True).encode()).hexdigest()
    assert Vocabulary(bare.words, bare.seen, bare.templates, {}) == bare == Vocabulary.from_dict(old)
    assert (vocabulary == bare) == (vocabulary.digest() == bare.digest()) == (not vocabulary.descriptions)


@given(vocabularies(), st.data())
def test_select_and_add_carry_descriptions(vocabulary: Vocabulary, data: st.DataObject) -> None:
    words = data.draw(st.lists(st.sampled_from(vocabulary.words), min_size=1, unique=True))
    assert [vocabulary.select(words).prompts(word) for word in words] == [vocabulary.prompts(word) for word in words]
    new, first = f"{'x' * 9} new", vocabulary.words[0]
    grown = vocabulary.add([new, new + "er"], descriptions={new: ["a new thing"], first: ["not what it was"]})
    assert grown.prompts(new) == ("a new thing",)
    assert grown.prompts(new + "er") == tuple(t.format(new + "er") for t in vocabulary.templates)
    assert grown.select(vocabulary.words) == vocabulary


def test_order_of_the_mapping_does_not_matter() -> None:
    one = Vocabulary(["dog", "cat"], descriptions={"dog": ["barks"], "cat": ["purrs"], "cow": ["moos"]})
    two = Vocabulary(["dog", "cat"], descriptions={"cat": ["purrs"], " dog ": (" barks\n",)})
    assert one == two and one.digest() == two.digest() and hash(one) == hash(two)
    assert one.descriptions == {"dog": ("barks",), "cat": ("purrs",)}


def test_it_cannot_be_changed_in_place() -> None:
    vocabulary = Vocabulary(["dog"], descriptions={"dog": ["barks"]})
    vocabulary.descriptions["dog"] = ("purrs",)
    assert vocabulary.prompts("dog") == ("barks",)


def test_descriptions_are_sentences_and_no_templates() -> None:
    vocabulary = Vocabulary(["set"], descriptions={"set": ["{} is the empty set", "{1, 2} is another"]})
    assert vocabulary.prompts("set") == ("{} is the empty set", "{1, 2} is another")


@pytest.mark.parametrize(
    ("descriptions", "error", "message"),
    [
        ([("dog", ["barks"])], TypeError, "descriptions must map words to lists of texts, got list; read a file with"),
        ({"cow": ["moos"]}, ValueError, r"at least one word of the vocabulary, \['dog'\], got those of 1 others such"),
        (
            {"dog": "barks"},
            ValueError,
            r"descriptions of 'dog' must be a list of texts, got 'barks'; write it in \[ \]",
        ),
        ({"dog": []}, ValueError, "descriptions of 'dog' must be at least one text, got none; leave the word out"),
        ({"dog": ["barks", " "]}, ValueError, "of 'dog' must be non-empty texts, got ' ' at position 1; remove it"),
        ({"dog": ["barks"], "cow": [3]}, ValueError, "of 'cow' must be non-empty texts, got 3 at position 0"),
        ({"dog": ["barks"], "": ["?"]}, ValueError, "descriptions must be of words, got '' at position 1"),
        ({"dog": ["barks"], 3: ["?"]}, ValueError, "descriptions must be of words, got 3 at position 1"),
        ({"dog": ["barks"], "dog ": ["?"]}, ValueError, "hold each word once, got 'dog' again at position 1; join"),
    ],
)
def test_wrong_descriptions(descriptions: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Vocabulary(["dog"], descriptions=descriptions)


def test_descriptions_of_none_of_the_added_words_are_refused() -> None:
    vocabulary = Vocabulary(["dog"], descriptions={"dog": ["barks"]})
    with pytest.raises(ValueError, match=r"at least one word of the vocabulary, \['cat'\], got those of 1 others"):
        vocabulary.add(["cat"], descriptions={"dog": ["howls"]})


# -------------------------------------------------------------------------------------------------------- from a file


@given(st.dictionaries(texts, sentences, min_size=1, max_size=5), st.booleans(), st.booleans())
def test_both_layouts_are_read(
    tmp_path_factory: pytest.TempPathFactory, described: dict[str, list[str]], as_list: bool, escaped: bool
) -> None:
    content = [{word: found} for word, found in described.items()] if as_list else described
    path = tmp_path_factory.mktemp("file") / "descriptions.json"
    path.write_text(json.dumps(content, ensure_ascii=escaped, indent=3), encoding="utf-8")
    assert read_descriptions(path) == {word: tuple(found) for word, found in described.items()}
    assert read_descriptions(str(path)) == read_descriptions(path)


def test_unicode_of_a_windows_editor(tmp_path: Path) -> None:
    path = tmp_path / "d.json"
    path.write_bytes(b'\xef\xbb\xbf{"z\xc3\xa8bre":\r\n["un cheval ray\xc3\xa9 \\ud83e\\udd93"]}')
    assert read_descriptions(path) == {"zèbre": ("un cheval rayé 🦓",)}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"dog": ["barks",]}', r"d\.json must be JSON in UTF-8, it cannot be read: .*line 1 column 1"),
        ("", "must be JSON in UTF-8, it cannot be read: .*line 1 column 1"),
        ("[" * 100_000, "must be JSON in UTF-8, it cannot be read"),
        (b'{"dog": ["b\xe9b\xe9"]}', "must be JSON in UTF-8, it cannot be read: 'utf-8' codec"),
        ("3", r"d\.json must be an object of words or a list of such objects, got 3; write \{"),
        ("{}", "must be an object of words or a list of such objects, got an object of 0 entries"),
        ("[]", r"must be an object of words or a list of such objects, got an object of 0 entries"),
        ('[{"dog": ["barks"]}, "cat"]', r"objects with one word each, got 'cat' at position 1; write \{"),
        ('[{"dog": ["barks"], "cat": ["purrs"]}]', "one word each, got an object of 2 entries at position 0"),
        ('[{"dog": ["barks"]}, {}]', "one word each, got an object of 0 entries at position 1"),
        ('{"dog": ["barks"], "dog": ["howls"]}', r"d\.json: descriptions must hold each word once, got 'dog' again at"),
        ('[{"dog": ["barks"]}, {"dog": ["howls"]}]', "must hold each word once, got 'dog' again at position 1"),
        ('{" ": ["barks"]}', r"d\.json: descriptions must be of words, got ' ' at position 0"),
        ('{"dog": "barks"}', r"d\.json: descriptions of 'dog' must be a list of texts, got 'barks'"),
        ('{"dog": {"a": "barks"}}', "of 'dog' must be a list of texts, got an object of 1 entries"),
        ('{"dog": null}', "of 'dog' must be a list of texts, got None"),
        ('{"dog": []}', r"d\.json: descriptions of 'dog' must be at least one text, got none"),
        ('{"dog": ["barks", ""]}', r"d\.json: descriptions of 'dog' must be non-empty texts, got '' at position 1"),
        ('{"dog": ["barks", ["howls"]]}', r"must be non-empty texts, got \['howls'\] at position 1"),
        ('{"dog": ["barks \\ud83e"]}', r"must be non-empty texts, got 'barks \\ud83e' at position 0"),
    ],
)
def test_wrong_files(content: str | bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "d.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=message):
        read_descriptions(tmp_path / "d.json")


def test_missing_file() -> None:
    with pytest.raises(FileNotFoundError, match=r"existing JSON file, not found: no/such\.json; correct the path"):
        read_descriptions("no/such.json")


# ------------------------------------------------------------------------------------------------------- as embeddings


@given(vocabularies())
def test_a_words_embedding_is_the_ensemble_over_its_prompts(encoder: TextEncoder, vocabulary: Vocabulary) -> None:
    expected = torch.stack([slow_embedding(vocabulary.prompts(word)) for word in vocabulary])
    torch.testing.assert_close(encoder.encode_words(vocabulary), expected, rtol=0, atol=1e-6)
    given_apart = encoder.encode_words(list(vocabulary), vocabulary.templates, vocabulary.descriptions)
    assert torch.equal(given_apart, encoder.encode_words(vocabulary))


@given(vocabularies())
def test_the_mean_of_the_described_rows_is_the_word_embedding(encoder: TextEncoder, vocabulary: Vocabulary) -> None:
    embeddings, mask = encoder.encode_descriptions(vocabulary)
    counts = [len(vocabulary.prompts(word)) for word in vocabulary]
    assert embeddings.shape == (len(vocabulary), max(counts), 5) and embeddings.dtype == torch.float32
    assert mask.dtype == torch.bool and mask.tolist() == [[k < n for k in range(max(counts))] for n in counts]
    torch.testing.assert_close(embeddings.norm(dim=2), mask.float())  # one where there is a prompt, zero elsewhere
    for row, word in zip(embeddings, vocabulary, strict=True):
        for k, prompt in enumerate(vocabulary.prompts(word)):
            torch.testing.assert_close(row[k], slow_embedding((prompt,)), rtol=0, atol=1e-6)
    means = torch.stack([row[there].mean(0) for row, there in zip(embeddings, mask, strict=True)])
    torch.testing.assert_close(F.normalize(means, dim=1), encoder.encode_words(vocabulary), rtol=0, atol=1e-6)


@given(vocabularies(), st.randoms(use_true_random=False))
def test_order_of_words_permutes_rows(encoder: TextEncoder, vocabulary: Vocabulary, random: Any) -> None:
    order = random.sample(range(len(vocabulary)), len(vocabulary))
    permuted = vocabulary.select([vocabulary.words[label] for label in order])
    assert torch.equal(encoder.encode_words(permuted), encoder.encode_words(vocabulary)[order])
    for of_permuted, of_all in zip(
        encoder.encode_descriptions(permuted), encoder.encode_descriptions(vocabulary), strict=True
    ):
        assert torch.equal(of_permuted, of_all[order])


@given(vocabularies(), sentences)
def test_more_words_change_no_other_row(encoder: TextEncoder, vocabulary: Vocabulary, more: list[str]) -> None:
    new = "a word of more than eight letters"
    grown, n = vocabulary.add([new], descriptions={new: more}), len(vocabulary)
    assert torch.equal(encoder.encode_words(grown)[:n], encoder.encode_words(vocabulary))
    (few, mask), (many, wide) = encoder.encode_descriptions(vocabulary), encoder.encode_descriptions(grown)
    k = mask.shape[1]
    assert torch.equal(many[:n, :k], few) and torch.equal(wide[:n, :k], mask)
    assert not wide[:n, k:].any() and not many[:n, k:].any()


def test_each_text_is_encoded_once_and_cached_on_disk(tmp_path: Path) -> None:
    described = {f"word {i}": [f"sentence {i % 7}", f"sentence {i}"] for i in range(700)}
    vocabulary = Vocabulary([*described, "bus"], descriptions=described)
    first, backend = counting_encoder(tmp_path)
    embeddings, mask = first.encode_descriptions(vocabulary)
    assert sorted(backend.asked) == sorted({*(f"sentence {i}" for i in range(700)), "a photo of a bus."})
    again, untouched = counting_encoder(tmp_path)
    assert torch.equal(again.encode_descriptions(vocabulary)[0], embeddings)
    assert torch.equal(again.encode_words(vocabulary), first.encode_words(vocabulary))
    assert untouched.asked == [] and mask.sum() == 1401


def test_arguments_of_encode_words_take_the_place_of_the_vocabularys(encoder: TextEncoder) -> None:
    vocabulary = Vocabulary(["dog", "cat"], descriptions={"dog": ["barks"]})
    for found, prompts in (
        (encoder.encode_words(vocabulary, ["{}"]), [("barks",), ("cat",)]),
        (encoder.encode_words(vocabulary, descriptions={"cat": ["purrs"]}), [("a photo of a dog.",), ("purrs",)]),
        (encoder.encode_words(vocabulary, descriptions={}), [("a photo of a dog.",), ("a photo of a cat.",)]),
    ):
        torch.testing.assert_close(found, torch.stack([slow_embedding(p) for p in prompts]), rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="descriptions must be of at least one word"):
        encoder.encode_words(["dog"], descriptions={"cow": ["moos"]})


def test_word_vectors_refuse_descriptions(vectors_path: Path) -> None:
    encoder = TextEncoder(f"vectors:{vectors_path}")
    vocabulary = Vocabulary(["dog", "cat"], descriptions={"dog": ["barks"]})
    for encode in (encoder.encode_words, encoder.encode_descriptions):
        with pytest.raises(
            ValueError, match=r"text_encoder must be a sentence encoder to encode descriptions, got the"
        ):
            encode(vocabulary)
    embeddings, mask = encoder.encode_descriptions(Vocabulary(["dog", "cat"], templates="simple"))
    assert torch.equal(embeddings[:, 0], encoder.encode_words(["dog", "cat"])) and mask.tolist() == [[True], [True]]


def test_a_description_says_what_an_unknown_word_means() -> None:
    encoder = TextEncoder("minilm", device="cpu")
    descriptions = {"blicket": ["a small furry pet that purrs and meows", "a kitten that catches mice"]}
    cat, airplane = encoder.encode_words(["cat", "airplane"])
    (plain,), (described,) = encoder.encode_words(["blicket"]), encoder.encode_words(["blicket"], None, descriptions)
    assert described @ cat > plain @ cat + 0.1
    assert described @ cat > described @ airplane + 0.1


def test_the_documents_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    text = (ROOT / "docs" / "descriptions.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    exec(compile(example, "docs/descriptions.md", "exec"), {})
    printed = capsys.readouterr().out
    assert "torch.Size([2, 384])" in printed and "torch.Size([2, 7, 384]) tensor([2, 7])" in printed
    (layout,) = re.findall(r"```json\n(.*?)```", text, re.DOTALL)
    assert [len(found) for found in json.loads(layout).values()] == [2, 1]
