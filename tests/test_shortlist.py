"""The shortlist: what is kept is exact, what is kept is right, and what it learns from may be anything."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from zsmld.decoder import MLDecoder
from zsmld.decoder.inference import InferenceDecoder
from zsmld.predictor.shortlist import learn_shortlist

C, T, D = 7, 5, 24
OPTIONS = {
    "shared": {"output": "shared"},
    "sum, prompts": {"output": "sum", "prompts": True},
    "two layers": {"num_layers": 2},
    "descriptions": {"descriptions": "attention"},
}


def randn(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def build(**options):
    torch.default_generator.manual_seed(0)
    options = {"decoder_dim": D, "num_heads": 3, "feedforward_dim": 40} | options
    decoder = MLDecoder(C, text_dim=T, **options)
    with torch.no_grad():
        for number, parameter in enumerate(decoder.parameters()):
            parameter += 0.3 * randn(number, *parameter.shape)
    return decoder.eval()


def kept_of(shortlist, row):
    """What an image must keep, by definition: anchors, and the best predictions."""
    predicted = shortlist.predict(row[None, shortlist.anchors])[0]
    best = sorted(range(len(row)), key=lambda n: -predicted[n])[: shortlist.size]
    return set(shortlist.anchors.tolist()) | set(best)


# ------------------------------------------------------------------------------------------------------- what is kept


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@settings(max_examples=6)
@given(
    num_words=st.integers(2, 60),
    num_images=st.integers(1, 3),
    size=st.sampled_from([1, 5, 59, 60, 512]),
    num_anchors=st.sampled_from([1, 4, 192]),
)
def test_kept_logits_are_those_of_full_decoding(options, num_words, num_images, size, num_anchors):
    decoder = build(**options)
    fast, words = InferenceDecoder(decoder), randn(1, num_words, T)
    compiled, spatial = fast.compile(words), randn(2, num_images, 2, C)
    shortlist = learn_shortlist(fast(randn(3, 12, 2, C), compiled), size, num_anchors)
    assert len(shortlist.anchors) == min(num_anchors, num_words, 11)
    logits, full = fast.shortlisted(spatial, compiled, shortlist), decoder(spatial, words).detach()
    assert logits.shape == full.shape and logits.dtype == torch.float32 and not logits.requires_grad
    kept = logits > -torch.inf
    assert_close(logits[kept], full[kept], atol=1e-5, rtol=1e-5)
    for row, which in zip(fast(spatial, compiled), kept, strict=True):
        assert set(which.nonzero().flatten().tolist()) == kept_of(shortlist, row)


def test_a_shortlist_of_all_words_is_full_decoding():
    fast = InferenceDecoder(build())
    words, spatial = fast.compile(randn(1, 40, T)), randn(2, 3, 2, C)
    shortlist = learn_shortlist(fast(randn(3, 20, 2, C), words), size=40)
    assert_close(fast.shortlisted(spatial, words, shortlist), fast(spatial, words), atol=1e-5, rtol=1e-5)


def test_the_best_words_of_a_head_are_among_those_kept():
    """256 sample images, 400 words, an eighth of them decoded: on a random head the 10 best are nearly all there."""
    fast = InferenceDecoder(build(output="sum"))
    words, spatial = fast.compile(randn(1, 400, T)), randn(2, 40, 2, C)
    shortlist = learn_shortlist(fast(randn(3, 256, 2, C), words), size=32, num_anchors=24)
    logits, full = fast.shortlisted(spatial, words, shortlist), fast(spatial, words)
    best = full.topk(10).indices
    assert (logits.gather(1, best) > -torch.inf).float().mean() > 0.99
    assert (logits > -torch.inf).sum(1).max() <= 56


# ------------------------------------------------------------------------------------------------------ what is learnt


@pytest.mark.parametrize("rank", [1, 3, 8])
@pytest.mark.parametrize("noise", [0.0, 0.02])
def test_the_best_of_low_rank_logits_are_predicted(rank, noise):
    words = randn(1, rank, 500)

    def make(seed, count):
        return randn(seed, count, rank) @ words - 3 + noise * randn(seed + 9, count, 500)

    shortlist = learn_shortlist(make(2, 100), size=20, num_anchors=4 * rank)
    more = make(3, 50)
    predicted = shortlist.predict(more[:, shortlist.anchors])
    best, kept = more.topk(10).indices, predicted.topk(20).indices
    found = (best[:, :, None] == kept[:, None, :]).any(2).float().mean()
    assert found >= 0.99
    assert (predicted - more).square().mean() < 0.01 * more.var()


def test_anchors_say_what_others_do_not():
    """Of words that are copies of five, each of the five gives one anchor before any copy does."""
    own = randn(1, 60, 5)
    logits = own[:, torch.arange(50) % 5]
    shortlist = learn_shortlist(logits, num_anchors=5)
    assert sorted((shortlist.anchors % 5).tolist()) == [0, 1, 2, 3, 4]
    more = randn(2, 4, 5)[:, torch.arange(50) % 5]
    assert_close(shortlist.predict(more[:, shortlist.anchors]), more, atol=0.02, rtol=0.02)


@settings(max_examples=20)
@given(
    num_images=st.integers(2, 12),
    num_words=st.integers(1, 12),
    rank=st.integers(0, 3),
    scale=st.sampled_from([1e-6, 1.0, 1e4]),
    num_anchors=st.sampled_from([1, 5, 192]),
)
def test_logits_of_any_rank_and_scale_give_finite_weights(num_images, num_words, rank, scale, num_anchors):
    """Constant logits (rank 0), fewer words than anchors, fewer images than either."""
    logits = scale * (randn(1, num_images, rank) @ randn(2, rank, num_words)) + randn(3, num_words)
    shortlist = learn_shortlist(logits, size=3, num_anchors=num_anchors)
    anchors = shortlist.anchors.tolist()
    assert len(anchors) == min(num_anchors, num_words, num_images - 1) == len(set(anchors))
    assert shortlist.weights.shape == (num_words, len(anchors)) and shortlist.weights.dtype == torch.float32
    predicted = shortlist.predict(logits[:, shortlist.anchors])
    assert predicted.shape == logits.shape and torch.isfinite(predicted).all()
    if rank <= len(anchors):
        off = (predicted - logits).abs().max()
        assert off <= 0.1 * (logits - logits.mean(0)).abs().max() + 1e-5 * logits.abs().max()


def test_a_words_prediction_does_not_feel_a_constant_added_to_it():
    """Words differ in how often they are there; the mean takes that out, and gives it back."""
    logits, shift = randn(1, 40, 3) @ randn(2, 3, 30), 5 * randn(3, 30)
    plain, shifted = learn_shortlist(logits, num_anchors=3), learn_shortlist(logits + shift, num_anchors=3)
    assert torch.equal(plain.anchors, shifted.anchors)
    predicted = plain.predict(logits[:, plain.anchors])
    assert_close(shifted.predict((logits + shift)[:, plain.anchors]), predicted + shift, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(
    "shape, options, got",
    [
        ((1, 5), {}, r"\(1, 5\), 512 and 192"),
        ((5,), {}, r"\(5,\), 512 and 192"),
        ((2, 3, 4), {}, r"\(2, 3, 4\), 512 and 192"),
        ((4, 5), {"size": 0}, r"\(4, 5\), 0 and 192"),
        ((4, 5), {"num_anchors": 0}, r"\(4, 5\), 512 and 0"),
    ],
)
def test_what_cannot_be_learnt_from_is_refused(shape, options, got):
    message = rf"logits must be \(M, N\) of M ≥ 2 sample images, and size and num_anchors ≥ 1, got {got}; give more"
    with pytest.raises(ValueError, match=message):
        learn_shortlist(torch.zeros(shape), **options)
