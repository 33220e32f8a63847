"""Query augmentation: off is identity, each kind does one thing, and kinds compose."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from zsmld.augmentation import QueryAugmentation

law = settings(max_examples=25)
seeds = st.integers(0, 2**32 - 1)
T = 6


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def draw(seed=0, words=8, images=3):
    """Embeddings away from the origin with a different spread in each dimension, and targets of all three kinds."""
    source = generator(seed)
    embeddings = torch.randn(words, T, generator=source) * torch.arange(1.0, T + 1) + 10
    targets = torch.randint(-1, 2, (images, words), generator=source, dtype=torch.int8)
    return embeddings, targets


def rows_in(rows, table):
    """Position of each row in a table that holds it."""
    return torch.stack([(table == row).all(1).nonzero()[0, 0] for row in rows])


@law
@given(seed=seeds, words=st.integers(2, 9), images=st.integers(1, 4))
def test_every_knob_at_zero_is_the_identity(seed, words, images):
    embeddings, targets = draw(seed, words, images)
    queries, labels = QueryAugmentation()(embeddings, targets, generator(seed))
    assert torch.equal(queries, embeddings)
    assert torch.equal(labels, targets)


@pytest.mark.parametrize("knobs", [{"random_target": "ignore"}, {"captions": 0}, {"mixed": 0, "noise": 0.0}])
def test_a_knob_at_zero_stays_off_whatever_its_options(knobs):
    embeddings, targets = draw()
    captions = (torch.zeros(4, T), torch.ones(3, 4, dtype=torch.int8))
    queries, labels = QueryAugmentation(**knobs)(embeddings, targets, generator(), captions)
    assert torch.equal(queries, embeddings)
    assert torch.equal(labels, targets)


EVERYTHING = {"noise": 0.1, "random_queries": 2, "captions": 3, "word_dropout": 0.5, "mixed": 4}


@law
@given(
    seed=seeds,
    words=st.integers(2, 9),
    noise=st.sampled_from([0.0, 0.5]),
    random_queries=st.integers(0, 3),
    captions=st.integers(0, 6),
    word_dropout=st.sampled_from([0.0, 0.3, 0.9]),
    mixed=st.integers(0, 3),
)
def test_kinds_compose(seed, words, noise, random_queries, captions, word_dropout, mixed):
    """Words that stay, then mixed, random and caption queries: as many columns of targets as queries."""
    embeddings, targets = draw(seed, words)
    texts = (torch.randn(4, T, generator=generator(seed)), torch.zeros(3, 4, dtype=torch.int8))
    augment = QueryAugmentation(noise, random_queries, "negative", captions, word_dropout, mixed)
    queries, labels = augment(embeddings, targets, generator(seed), texts)
    stay = max(1, round((1 - word_dropout) * words))
    expected = stay + mixed + random_queries + min(captions, 4)
    assert queries.shape == (expected, T)
    assert labels.shape == (3, expected)
    assert queries.dtype == embeddings.dtype
    assert labels.dtype == targets.dtype
    assert set(labels.unique().tolist()) <= {-1, 0, 1}
    assert torch.isfinite(queries).all()
    rest = torch.cat([queries[stay + mixed :], torch.empty(0, T)])
    assert (labels[:, stay + mixed : stay + mixed + random_queries] == 0).all()
    if captions:
        assert {tuple(row) for row in rest[random_queries:].tolist()} <= {tuple(row) for row in texts[0].tolist()}


@law
@given(seed=seeds)
def test_equal_seeds_give_equal_queries_and_the_inputs_are_not_written_to(seed):
    embeddings, targets = draw(seed)
    kept = embeddings.clone(), targets.clone()
    texts = (torch.randn(4, T), torch.ones(3, 4, dtype=torch.int8))
    augment = QueryAugmentation(**EVERYTHING)
    first = augment(embeddings, targets, generator(seed), texts)
    torch.manual_seed(seed + 1)  # the global generator has no say
    again = augment(embeddings, targets, generator(seed), texts)
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    other = augment(embeddings, targets, generator(seed + 1), texts)
    assert not torch.equal(first[0], other[0])
    assert torch.equal(embeddings, kept[0])
    assert torch.equal(targets, kept[1])


# -------------------------------------------------------------------------------------------------------- noise


def test_noise_is_relative_to_each_dimensions_deviation_and_keeps_targets():
    embeddings, targets = draw(words=4000, images=1)
    queries, labels = QueryAugmentation(noise=0.3)(embeddings, targets, generator(1))
    difference = queries - embeddings
    assert torch.equal(labels, targets)
    assert_close(difference.std(0), 0.3 * embeddings.std(0), rtol=0.05, atol=0)
    assert (difference.mean(0).abs() < 0.05 * embeddings.std(0)).all()


def test_noise_grows_with_its_knob():
    embeddings, targets = draw()
    small, large = (QueryAugmentation(noise=noise)(embeddings, targets, generator())[0] for noise in (0.1, 0.4))
    assert_close(large - embeddings, 4 * (small - embeddings), rtol=1e-3, atol=1e-4)


# ----------------------------------------------------------------------------------------------- random queries


@pytest.mark.parametrize("target, value", [("positive", 1), ("negative", 0), ("ignore", -1)])
def test_random_queries_have_the_configured_target_and_the_words_statistics(target, value):
    embeddings, targets = draw()
    augment = QueryAugmentation(random_queries=4000, random_target=target)
    queries, labels = augment(embeddings, targets, generator())
    assert torch.equal(queries[:8], embeddings)
    assert torch.equal(labels[:, :8], targets)
    assert (labels[:, 8:] == value).all()
    assert_close(queries[8:].std(0), embeddings.std(0), rtol=0.06, atol=0)
    assert ((queries[8:].mean(0) - embeddings.mean(0)).abs() < 0.08 * embeddings.std(0)).all()


def test_the_default_target_of_random_queries_is_positive_as_in_the_paper():
    assert QueryAugmentation(random_queries=1).random_target == "positive"


# ----------------------------------------------------------------------------------------------------- captions


@law
@given(seed=seeds, wanted=st.integers(1, 9), available=st.integers(1, 6))
def test_captions_are_drawn_without_repetition_and_keep_their_own_targets(seed, wanted, available):
    embeddings, targets = draw(seed)
    texts = torch.randn(available, T, generator=generator(seed))
    text_targets = torch.randint(-1, 2, (3, available), generator=generator(seed), dtype=torch.int8)
    augment = QueryAugmentation(captions=wanted)
    queries, labels = augment(embeddings, targets, generator(seed), (texts, text_targets))
    where = rows_in(queries[8:], texts)
    assert len(where) == min(wanted, available) == len(set(where.tolist()))
    assert torch.equal(labels[:, 8:], text_targets[:, where])


# ------------------------------------------------------------------------------------------------- word dropout


@law
@given(seed=seeds, words=st.integers(1, 12), share=st.sampled_from([0.1, 0.5, 0.75, 0.99]))
def test_word_dropout_leaves_a_subset_in_order_with_its_targets(seed, words, share):
    source = generator(seed)
    embeddings, targets = draw(seed, max(words, 2))
    queries, labels = QueryAugmentation(word_dropout=share)(embeddings, targets, source)
    where = rows_in(queries, embeddings)
    assert len(where) == max(1, round((1 - share) * len(embeddings)))
    assert where.tolist() == sorted(set(where.tolist()))
    assert torch.equal(labels, targets[:, where])


def test_word_dropout_favours_no_word():
    embeddings, targets = draw(words=6)
    augment, source = QueryAugmentation(word_dropout=0.5), generator()
    counts = torch.zeros(6)
    for _ in range(600):
        counts[rows_in(augment(embeddings, targets, source)[0], embeddings)] += 1
    assert (counts / 600 - 0.5).abs().max() < 0.1


# -------------------------------------------------------------------------------------------------------- mixed


def or_of(a, b):
    """Three-valued or: 1 if either is known to be there, else −1 if either is unknown, else 0."""
    if 1 in (a, b):
        return 1
    return -1 if -1 in (a, b) else 0


@law
@given(seed=seeds, mixed=st.integers(1, 12))
def test_mixed_queries_lie_between_two_words_and_take_the_or_of_their_targets(seed, mixed):
    embeddings, targets = draw(seed, words=4, images=9)
    queries, labels = QueryAugmentation(mixed=mixed)(embeddings, targets, generator(seed))
    assert torch.equal(queries[:4], embeddings)
    for column in range(4, 4 + mixed):
        pairs = []  # every pair of words on whose segment the query lies
        for i in range(4):
            for j in range(i, 4):
                along = embeddings[j] - embeddings[i]
                share = (queries[column] - embeddings[i]) @ along / (along @ along).clamp(min=1e-9)
                near = embeddings[i] + share.clamp(0, 1) * along
                if torch.allclose(near, queries[column], atol=1e-3):
                    pairs.append((i, j))
        assert pairs, "the query is on no segment between two words"
        possible = [
            [or_of(int(a), int(b)) for a, b in zip(targets[:, i], targets[:, j], strict=True)] for i, j in pairs
        ]
        assert labels[:, column].tolist() in possible


def test_mixed_queries_of_every_pair_of_targets():
    """All nine pairs of 1, 0 and −1 occur, so the law above has seen each."""
    found = set()
    for seed in range(30):
        embeddings = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
        targets = torch.tensor([[a, b] for a in (1, 0, -1) for b in (1, 0, -1)], dtype=torch.int8)
        queries, labels = QueryAugmentation(mixed=8)(embeddings, targets, generator(seed))
        for query, column in zip(queries[2:], labels[:, 2:].T, strict=True):
            both = 0 < float(query[0]) < 1
            words = (0, 1) if both else ((1, 1) if query[0] == 1 else (0, 0))
            for row, label in zip(targets.tolist(), column.tolist(), strict=True):
                assert label == or_of(row[words[0]], row[words[1]])
                found.add((row[words[0]], row[words[1]]))
    assert len(found) == 9


# ------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize("knob", ["noise", "random_queries", "captions", "word_dropout", "mixed"])
def test_negative_knobs_are_refused(knob):
    with pytest.raises(ValueError, match=rf"{knob} must not be negative, got -1; 0 turns it off"):
        QueryAugmentation(**{knob: -1})


def test_a_knob_out_of_range_says_so():
    with pytest.raises(ValueError, match=r"word_dropout must be below 1, got 1.0; some words must stay"):
        QueryAugmentation(word_dropout=1.0)
    with pytest.raises(ValueError, match=r"random_target must be one of \['positive', 'negative', 'ignore'\], got 'y'"):
        QueryAugmentation(random_target="y")


def test_captions_without_captions_are_refused():
    embeddings, targets = draw()
    with pytest.raises(ValueError, match=r"captions must be 0 for a dataset without captions, got 3; turn it off"):
        QueryAugmentation(captions=3)(embeddings, targets, generator())
