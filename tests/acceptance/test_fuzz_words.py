"""A vocabulary of one million words: how long it takes, and what memory; `--junit-xml` has the figures."""

import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from zsmld import Vocabulary, ZeroShotClassifier
from zsmld.cli import main

NUM_WORDS = 1_000_000


def peak_mebibytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@pytest.mark.parametrize("accent", ["", "é"])
def test_a_million_words_are_a_vocabulary(accent: str, record_property: Callable[[str, object], None]) -> None:
    words = [f"word{accent} {i}" for i in range(NUM_WORDS)]
    start, before = time.process_time(), peak_mebibytes()
    vocabulary = Vocabulary(words, seen=words[: NUM_WORDS // 2])
    assert len(vocabulary) == NUM_WORDS and vocabulary.index(words[-1]) == NUM_WORDS - 1
    assert Vocabulary.from_dict(vocabulary.to_dict()).digest() == vocabulary.digest()
    assert len(vocabulary._repr_html_()) < 200_000
    seconds, taken = time.process_time() - start, peak_mebibytes() - before
    record_property("Vocabulary", f"{seconds:.1f} s, {taken:.0f} MiB")
    assert seconds < 60 and taken < 2500


def test_a_million_words_are_remembered_and_scored(
    make_model: Callable[..., Any], tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """16 numbers a word: what they take themselves is 61 MiB."""
    words = [f"word {i}" for i in range(NUM_WORDS)]
    model = make_model(remember=False, output="cosine")
    start, before = time.process_time(), peak_mebibytes()
    embeddings = torch.from_numpy(np.random.default_rng(0).standard_normal((NUM_WORDS, 16), dtype=np.float32))
    model.remember_words(Vocabulary(words), embeddings)
    model.save_pretrained(tmp_path / "model")
    again = ZeroShotClassifier.from_pretrained(tmp_path / "model")
    assert again.vocabulary is not None and again.vocabulary.words[-1] == words[-1]
    seconds, taken = time.process_time() - start, peak_mebibytes() - before
    record_property("remember_words, save, load", f"{seconds:.1f} s, {taken:.0f} MiB")
    assert seconds < 120 and taken < 4000
    (tmp_path / "words.txt").write_text("\n".join(words[::-1]))
    Image.new("RGB", (64, 64), "red").save(tmp_path / "a.png")
    start, before = time.process_time(), peak_mebibytes()
    command = ["predict", str(tmp_path / "a.png"), "--model", str(tmp_path / "model"), "--device", "cpu"]
    command += ["--words-file", str(tmp_path / "words.txt"), "--output", str(tmp_path / "tags.jsonl"), "--top-k", "3"]
    assert main(command) == 0
    seconds, taken = time.process_time() - start, peak_mebibytes() - before
    record_property("zsmld predict --words-file", f"{seconds:.1f} s, {taken:.0f} MiB")
    assert seconds < 180 and taken < 4000
