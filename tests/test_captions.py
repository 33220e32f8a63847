"""Caption queries: true where enough of their words are, made from trained words alone."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse import csr_matrix

from zsmld import TextEncoder, Vocabulary, build_dataset
from zsmld.trainer.captions import Captions, build_captions

WORDS = ("dog", "cat", "red car", "beach", "boat", "tree")


class Rows:
    """A dataset as captions see it: words and targets."""

    def __init__(self, dense: np.ndarray, captions: dict[str, list[str]] | None = None) -> None:
        self.vocabulary, self.targets = Vocabulary(WORDS, seen=WORDS[:4]), csr_matrix(dense.astype(np.int8))
        if captions is not None:
            self.captions = captions


@pytest.fixture(scope="module")
def encoder(vectors_path: Path) -> TextEncoder:
    return TextEncoder(f"vectors:{vectors_path}")


def truth(targets: list[int], about: list[bool], needed: int) -> int:
    """A caption's target, by trying every way the unknown words could be."""
    ways = [[]]
    for target, is_about in zip(targets, about, strict=True):
        if is_about:
            ways = [[*way, value] for way in ways for value in ([0, 1] if target == -1 else [target])]
    outcomes = {sum(way) >= needed for way in ways}
    return -1 if len(outcomes) == 2 else int(outcomes.pop())


@given(
    targets=st.lists(st.lists(st.sampled_from([1, 0, -1]), min_size=4, max_size=4), min_size=1, max_size=5),
    about=st.lists(st.booleans(), min_size=4, max_size=4).filter(any),
    every=st.booleans(),
)
def test_targets_follow_from_three_valued_logic(targets: list[list[int]], about: list[bool], every: bool) -> None:
    needed = sum(about) if every else 1
    captions = Captions(["text"], torch.zeros(1, 2), torch.tensor([about]), torch.tensor([needed]))
    found = captions.targets(torch.tensor(targets, dtype=torch.int8))
    assert found.dtype == torch.int8
    assert found[:, 0].tolist() == [truth(row, about, needed) for row in targets]


def test_captions_are_made_from_words_of_one_image(encoder: TextEncoder) -> None:
    dense = np.array([[1, 1, 0, 0, 1, 0], [0, 1, 1, 1, 0, 1], [1, 0, 0, 0, 1, 1], [0, 0, -1, 1, 0, 0]])
    captions = build_captions(Rows(dense), np.arange(4), np.arange(4), encoder)
    assert captions is not None and 1 <= len(captions.texts) <= 2  # the other images have a single trained word
    for text, about, needed, embedding in zip(
        captions.texts, captions.words, captions.needed, captions.embeddings, strict=True
    ):
        words = [WORDS[label] for label in about.nonzero()[:, 0]]
        assert text == (f"{words[0]} and {words[1]}" if len(words) == 2 else f"{words[0]}, {words[1]} and {words[2]}")
        assert needed == len(words) and any((dense[row, :4][about.numpy()] == 1).all() for row in (0, 1))
        mean = encoder.encode_words(words).mean(0)  # word vectors have no sentences
        torch.testing.assert_close(embedding, mean / mean.norm())
    targets = captions.targets(torch.from_numpy(dense[:, :4].astype(np.int8)))
    assert (targets == 1).any(0).all()  # each is true of the image it comes from


def test_unseen_words_have_no_influence(encoder: TextEncoder) -> None:
    dense = (np.random.default_rng(0).random((30, 6)) < 0.5).astype(np.int8)
    other = dense.copy()
    other[:, 4:] = 1 - other[:, 4:]
    one, two = (build_captions(Rows(d), np.arange(4), np.arange(30), encoder, seed=3) for d in (dense, other))
    assert one is not None and two is not None and one.texts == two.texts and len(one.texts) > 3
    assert not any("boat" in text or "tree" in text for text in one.texts)
    different = build_captions(Rows(dense), np.arange(4), np.arange(30), encoder, seed=4)
    assert different is not None and different.texts != one.texts


def test_a_dataset_may_have_its_own(encoder: TextEncoder) -> None:
    own = {"zebra": ["dog", "cat", "boat"], "lamp": ["boat"], "kite": ["beach"]}
    captions = build_captions(Rows(np.eye(6), own), np.arange(4), np.arange(6), encoder)
    assert captions is not None and captions.texts == ["zebra", "kite"]  # nothing is known of "lamp" in training
    assert captions.needed.tolist() == [1, 1]
    torch.testing.assert_close(captions.embeddings, encoder.encode_words(["zebra", "kite"]))


def test_without_two_words_together_there_are_none(encoder: TextEncoder) -> None:
    assert build_captions(Rows(np.eye(6)), np.arange(4), np.arange(6), encoder) is None


def test_sentences_are_encoded_as_texts() -> None:
    scenes: Any = build_dataset("scenes", split="train", num_images=20)
    assert scenes.captions["red"] and all("red" in word.split() for word in scenes.captions["red"])
    assert {word for words in scenes.captions.values() for word in words} == set(scenes.vocabulary.seen)

    class Plain:
        vocabulary, targets = scenes.vocabulary, scenes.targets

    minilm = TextEncoder("minilm", device="cpu")
    captions = build_captions(Plain(), np.arange(80), np.arange(20), minilm)
    assert captions is not None and captions.embeddings.shape == (len(captions.texts), 384)
    torch.testing.assert_close(captions.embeddings, minilm.encode_words(captions.texts, scenes.vocabulary.templates))
