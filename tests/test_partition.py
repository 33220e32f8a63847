"""Partition files: the words of each side, and a clear word about everything else a file may hold."""

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zsmld.datasets.partition import read_partition

JSON = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["seen", "unseen", "k"]), inner),
    max_leaves=8,
)


@given(words=st.lists(st.text(st.characters(categories=["L"]), min_size=1), min_size=1, unique=True), data=st.data())
def test_the_words_of_each_side(words, data, tmp_path_factory):
    num_seen = data.draw(st.integers(1, len(words)))
    path = tmp_path_factory.mktemp("partition") / "words.json"
    sides = {"seen": words[:num_seen], "unseen": words[num_seen:]}
    path.write_text(json.dumps({"a": sides, **sides}), encoding="utf-8-sig")
    assert read_partition(path) == read_partition(f"{path}#a") == (tuple(words[:num_seen]), tuple(words[num_seen:]))


@given(content=JSON, key=st.sampled_from(["", "#k", "#seen"]))
def test_any_other_json_is_a_clear_error(content, key, tmp_path_factory):
    path = tmp_path_factory.mktemp("partition") / "words.json"
    path.write_text(json.dumps(content))
    try:
        seen, unseen = read_partition(f"{path}{key}")
    except ValueError as error:
        assert re.match("(partition|seen|unseen) must ", str(error)), error
    else:
        assert all(isinstance(word, str) for word in (*seen, *unseen)) and seen


@pytest.mark.parametrize(
    ("text", "key", "message"),
    [
        ('{"seen": ["a"], "unseen": null}', "", r"a list of words under 'unseen', .*words\.json has null; write \[\]"),
        ('{"seen": "a", "unseen": []}', "", r"a list of words under 'seen', .*words\.json has \"a\"; write"),
        ('{"seen": {"a": 1}, "unseen": []}', "", r"a list of words under 'seen', .*words\.json has {\"a\": 1}"),
        ('{"seen": ["a", 1], "unseen": []}', "", r"texts as words under 'seen', .*words\.json has 1; write them"),
        ('{"a": {"seen": ["a"], "unseen": [null]}}', "#a", r"texts as words under 'unseen', .*words\.json#a has null"),
        ("null", "#a", r"must name a key of .*words\.json, got 'a'; it has \[\]"),
        ("[" * 200_000, "", r"partition must be JSON, .*words\.json cannot be read: maximum recursion depth"),
    ],
)
def test_what_is_no_list_of_words(text, key, message, tmp_path: Path):
    (tmp_path / "words.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_partition(f"{tmp_path / 'words.json'}{key}")
