"""The inference form of the head: equal to the head itself, whatever is folded, cut into chunks or rounded."""

import copy
import os
import shutil
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import word_head
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from zsmld.decoder import MLDecoder, TrainingFreeScorer
from zsmld.decoder.bf16 import Bf16Layer
from zsmld.decoder.folded import FoldedLayer, fold
from zsmld.decoder.inference import CompiledWords, InferenceDecoder
from zsmld.decoder.int8 import Int8Linear, QuantizingLinear, int8_is_available, quantize

C, T, D, K = 7, 5, 24, 6  # encoder, text and decoder widths, classes of a prior

needs_int8 = pytest.mark.skipif(not int8_is_available(), reason="this build of torch has no int8 products")
seeds = st.integers(0, 2**32 - 1)


def randn(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def close(actual, expected, tolerance=1e-5):
    assert_close(actual, expected, atol=tolerance, rtol=tolerance)


def randomize(module, seed, amount=0.3):
    """As after training: no bias is zero, and no norm is the identity."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += amount * torch.randn(parameter.shape, generator=generator)


def build_scorer(kind, num_global_tokens=0, **options):
    if kind == "clip":
        return TrainingFreeScorer(T, T, num_global_tokens, **options).eval()
    scorer = TrainingFreeScorer(C, T, num_global_tokens, num_classes=K, **options)
    scorer.set_classes(randn(1, K, C), randn(2, K), randn(3, K, T))
    return scorer.eval()


def build(seed=0, prior=None, num_global_tokens=0, amount=0.3, **options):
    """A small head in eval mode with weights as after training."""
    options = {"decoder_dim": D, "num_heads": 3, "feedforward_dim": 40} | options
    options |= {"encoder_dim": T if prior == "clip" else C, "num_global_tokens": num_global_tokens}
    if prior:
        options["prior"] = build_scorer(prior, num_global_tokens)
    if "num_classes" not in options:
        options["text_dim"] = T
    torch.default_generator.manual_seed(seed)  # far quicker than torch.manual_seed, which keeps a stack for each GPU
    decoder = MLDecoder(**options)
    randomize(decoder, seed, amount)
    if decoder.text_dim is not None:
        decoder.standardize_words(randn(seed + 1, 9, T) * 2 + 1)
    if decoder.word_reach:
        decoder.remember_seen_words(randn(seed + 1, 9, T) * 2 + 1)
    return decoder.eval()


def spatial_of(decoder, seed, num_images=2, positions=3):
    return randn(seed, num_images, decoder.num_global_tokens + positions, decoder.encoder_dim)


def decode(fast, spatial, words=None, mask=None):
    return fast(spatial) if words is None else fast(spatial, fast.compile(words, mask))


def forced(fast, mixes):
    """`fast`, whose values are always or never mixed; None lets it choose."""
    if mixes is not None:
        fast._mixing_pays = lambda *_: mixes
        fast._keeps_hidden = mixes
    return fast


HEADS = {
    "shared": {},
    "cosine": {"output": "cosine"},
    "sum": {"output": "sum"},
    "one wide head": {"output": "sum", "num_heads": 1, "decoder_dim": 9},
    "heads of width one": {"output": "sum", "num_heads": 5, "decoder_dim": 5},
    "odd widths": {"num_heads": 5, "decoder_dim": 15, "feedforward_dim": 7},
    "prompts": {"output": "cosine", "prompts": True},
    "prompts, sum": {"output": "sum", "prompts": True},
    "prior, conse": {"prior": "conse"},
    "prior, clip, cosine": {"prior": "clip", "output": "cosine"},
    "prior, clip, sum, prompts": {"prior": "clip", "output": "sum", "prompts": True},
    "reach": {"prior": "conse", "word_reach": 0.5},
    "reach, cosine": {"prior": "clip", "word_reach": 0.3, "output": "cosine"},
    "unit positions": {"unit_positions": True},
    "global token": {"num_global_tokens": 1, "prior": "conse", "output": "sum", "word_reach": 0.5},
    "attention over descriptions": {"descriptions": "attention"},
    "attention and all else": {
        "descriptions": "attention", "prior": "conse", "output": "sum", "prompts": True, "word_reach": 0.5,
        "num_global_tokens": 1,
    },
    "two layers": {"num_layers": 2},
    "two layers, cosine": {"num_layers": 2, "output": "cosine"},
    "three layers, reach": {"num_layers": 3, "output": "sum", "prior": "clip", "word_reach": 0.5},
}  # fmt: skip
every_head = pytest.mark.parametrize("options", HEADS.values(), ids=HEADS)
FOLDED = {name: HEADS[name] for name in ("shared", "cosine", "sum", "prompts, sum", "reach", "global token")}
folded_heads = pytest.mark.parametrize("options", FOLDED.values(), ids=FOLDED)
both_ways = pytest.mark.parametrize("mixes", [True, False], ids=["values mixed", "heads projected"])

SCORERS = {
    "clip": {"kind": "clip"},
    "clip, local": {"kind": "clip", "views": "local", "top_positions": 2},
    "conse": {"kind": "conse", "top_classes": 3, "temperature": 2.0},
    "conse, global token": {"kind": "conse", "num_global_tokens": 1},
    **{f"descriptions, {how}": {"kind": "clip", "descriptions": how} for how in ("attention", "max", "second")},
    **{f"standardized {how}": {"kind": "conse", "standardization": how} for how in ("per_word", "per_image", "both")},
}
CLASSES = [(12, 4), (5, 5), (10, 6), (9, 1), (31, None), (1, 1)]  # some of them no multiple of the groups


# ------------------------------------------------------------------------------------------------- equal to the head


@every_head
@settings(max_examples=12)
@given(
    seed=seeds,
    num_words=st.integers(1, 30),
    num_images=st.integers(1, 4),
    positions=st.integers(1, 12),
    num_descriptions=st.integers(0, 3),
    max_rows=st.sampled_from([1, 2, 7, 29, 30, 31, 60, 512]),
    mixes=st.sampled_from([None, None, True, False]),
    expected_positions=st.sampled_from([None, 1, 2, 12]),
)
def test_a_head_gives_the_same(
    options, seed, num_words, num_images, positions, num_descriptions, max_rows, mixes, expected_positions
):
    decoder = build(seed, **options)
    spatial = spatial_of(decoder, seed + 2, num_images, positions)
    words = randn(seed + 3, num_words, *([num_descriptions] if num_descriptions else []), T)
    if num_descriptions > 1:
        words[0, 1:] = 0  # a word with one description
    fast = forced(InferenceDecoder(decoder, num_positions=expected_positions), mixes)
    fast._max_rows = max_rows
    logits = decode(fast, spatial, words)
    assert logits.shape == (num_images, num_words) and logits.dtype == torch.float32
    close(logits, decoder(spatial, words))


@pytest.mark.parametrize("learnable", [False, True])
@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("classes, groups", CLASSES)
def test_class_mode_gives_the_same(classes, groups, num_layers, learnable):
    decoder = build(num_classes=classes, num_groups=groups, num_layers=num_layers, learnable_queries=learnable)
    for num_images, positions, max_rows in ((1, 1, 512), (3, 2, 512), (3, 9, 4), (2, 2, 1), (9, 2, 7)):
        spatial = spatial_of(decoder, 1, num_images, positions)
        expected = decoder(spatial)
        for mixes in (None, True, False):
            fast = forced(InferenceDecoder(decoder), mixes)
            fast._max_rows = max_rows
            close(fast(spatial), expected)


@pytest.mark.parametrize("options", SCORERS.values(), ids=SCORERS)
@settings(max_examples=8)
@given(seed=seeds, num_words=st.integers(1, 9), num_images=st.integers(1, 4), max_rows=st.sampled_from([1, 3, 512]))
def test_a_training_free_scorer_gives_the_same(options, seed, num_words, num_images, max_rows):
    scorer = build_scorer(**options)
    if scorer.standardization != "none":
        scorer.fit_statistics(randn(seed, 8, 3, scorer.encoder_dim), randn(seed + 1, 9, T))
    randomize(scorer, seed)
    spatial = spatial_of(scorer, seed + 2, num_images, 4)
    fast = InferenceDecoder(scorer)
    fast._max_rows = max_rows
    for words in (randn(seed + 3, num_words, T), randn(seed + 4, num_words, 3, T)):
        close(decode(fast, spatial, words), scorer(spatial, words))


@both_ways
@pytest.mark.parametrize("options", [{"output": "shared"}, {"output": "cosine"}, {"output": "sum", "num_heads": 2}])
def test_a_head_gives_what_the_loops_give(options, mixes):
    decoder = build(decoder_dim=8, **{"num_heads": 4, "feedforward_dim": 12} | options)
    spatial, words = spatial_of(decoder, 1), randn(2, 6, T)
    expected, _ = word_head(decoder, spatial, words)
    close(decode(forced(InferenceDecoder(decoder), mixes), spatial, words).double(), torch.from_numpy(expected))


def test_a_mask_says_which_descriptions_exist():
    words = randn(2, 6, 3, T)
    mask = torch.tensor([[True, False, True], [False, False, True]]).repeat(3, 1)
    for decoder in (build(output="sum"), build(descriptions="attention"), build_scorer("conse", descriptions="max")):
        spatial = spatial_of(decoder, 1)
        logits = decode(InferenceDecoder(decoder), spatial, words, mask)
        close(logits, decoder(spatial, words, mask))
        assert not torch.allclose(logits, decoder(spatial, words))


SCALES = {
    "the second norm's ε decides": {"norm1": 1e-4, "out_proj": 1e-3},
    "the second norm's ε matters": {"norm1": 3e-3, "out_proj": 3e-3},
    "the third norm's ε decides": {"norm2": 1e-4, "linear2": 1e-4},
    "both decide": {"norm1": 1e-4, "out_proj": 1e-3, "norm2": 1e-4, "linear2": 1e-4},
    "all is large": {"norm1": 30.0, "out_proj": 30.0, "norm2": 30.0, "linear1": 10.0, "linear2": 30.0},
    "the norms divide by much": {"norm1": 300.0, "norm2": 0.01},
    "the attention says little": {"out_proj": 1e-4},
    "the attention says it all": {"norm1": 1e-3, "out_proj": 100.0},
    "shifts are larger than scales": {"norm1.bias": 5.0, "norm2.bias": 5.0, "linear2.bias": 5.0, "norm3.bias": 5.0},
}


@pytest.mark.parametrize("scales", SCALES.values(), ids=SCALES)
@pytest.mark.parametrize("options", [{}, {"output": "sum"}, {"num_classes": 30, "num_groups": 30}])
@both_ways
def test_small_and_large_weights_are_decoded_as_exactly_as_the_head_does(scales, options, mixes):
    """Where the head itself is off the exact result in fp32, folding may be as far off, and little more."""
    for seed in range(4):
        decoder = build(seed, **options)
        with torch.no_grad():
            for name, parameter in decoder.layers[0].named_parameters():
                for start, scale in scales.items():
                    if name.startswith(start):
                        parameter *= scale
        spatial, words = spatial_of(decoder, 1), None if "num_classes" in options else randn(2, 30, T)
        expected = copy.deepcopy(decoder).double()(spatial.double(), None if words is None else words.double())
        logits = decode(forced(InferenceDecoder(decoder), mixes), spatial, words)
        own = (decoder(spatial, words).double() - expected).abs().max()
        assert (logits.double() - expected).abs().max() <= 10 * own + 1e-5 * (1 + expected.abs().max())


@both_ways
def test_words_whose_query_is_zero_and_positions_that_are_zero(mixes):
    decoder = build(output="sum")
    with torch.no_grad():
        decoder.word_proj.bias -= 1e3  # behind the ReLU no query is left
    spatial, words = spatial_of(decoder, 1, 3), randn(2, 30, T)
    spatial[0] = 0
    spatial[1, 1:] = 0
    close(decode(forced(InferenceDecoder(decoder), mixes), spatial, words), decoder(spatial, words))


@both_ways
def test_images_decoded_together_are_as_decoded_alone(mixes):
    """A GPU mixes the values of several images in one product; a processor does not, so the layer is asked itself."""
    decoder = build(output="sum")
    fast, spatial = forced(InferenceDecoder(decoder), mixes), spatial_of(decoder, 1, 4)
    with torch.no_grad():
        words = fast.compile(randn(2, 30, T))
        keys, values = fast._keys_and_values(spatial)
        together = fast._decode(keys, values, fast._layer.mix(values) if mixes else None, words)
    close(together, decoder(spatial, randn(2, 30, T)))


# ---------------------------------------------------------------------------------------------------- laws of words


@every_head
@settings(max_examples=8)
@given(seed=seeds, num_words=st.integers(2, 30), num_extra=st.integers(1, 30), max_rows=st.sampled_from([3, 512]))
def test_a_words_logit_depends_on_itself_alone(options, seed, num_words, num_extra, max_rows):
    decoder = build(seed, **options)
    fast, spatial = InferenceDecoder(decoder, num_positions=2), spatial_of(decoder, seed + 2, 2, 2)
    fast._max_rows = max_rows
    words, others = randn(seed + 3, num_words, T), randn(seed + 4, num_extra, T) * 10
    logits = decode(fast, spatial, words)
    order = torch.randperm(num_words, generator=torch.Generator().manual_seed(seed))
    close(decode(fast, spatial, words[order]), logits[:, order])
    close(decode(fast, spatial, torch.cat([words, others]))[:, :num_words], logits)
    close(torch.cat([decode(fast, image[None], words) for image in spatial]), logits)


@every_head
@settings(max_examples=8)
@given(
    seed=seeds, num_words=st.integers(1, 12), num_extra=st.integers(1, 12), widths=st.tuples(*[st.integers(1, 3)] * 2)
)
def test_compiled_words_are_selected_and_joined(options, seed, num_words, num_extra, widths):
    decoder = build(seed, **options)
    fast, spatial = InferenceDecoder(decoder, num_positions=2), spatial_of(decoder, seed + 2, 2, 2)
    parts = [randn(seed + 3, num_words, widths[0], T), randn(seed + 4, num_extra, widths[1], T)]
    first, second = (fast.compile(part) for part in parts)
    joined = first.join(second)
    assert (len(first), len(second), len(joined)) == (num_words, num_extra, num_words + num_extra)
    expected = torch.cat([decoder(spatial, part) for part in parts], 1)
    close(fast(spatial, joined), expected)
    order = torch.randperm(len(joined), generator=torch.Generator().manual_seed(seed))[: num_words + 1]
    for labels in (order, order.tolist()):
        close(fast(spatial, joined.select(labels)), expected[:, order])
    close(fast(spatial, joined.select(slice(num_words, None))), expected[:, num_words:])


@pytest.mark.parametrize(
    "labels", [[2, 0], (2, 0), torch.tensor([2, 0]), range(2, -1, -2)], ids=lambda x: type(x).__name__
)
def test_words_are_selected_by_any_sequence_of_labels(labels):
    """A tuple is no index into several dimensions."""
    compiled = InferenceDecoder(build(output="sum")).compile(randn(1, 4, T))
    for name, part in compiled.select(labels).parts.items():
        assert torch.equal(part, torch.stack([compiled.parts[name][2], compiled.parts[name][0]])), name


def test_joined_words_keep_their_parts_in_order():
    """`decode` takes some by position; a set's order changes from one process to the next."""
    parts = {f"part{place}": torch.full((2, 1), float(place)) for place in range(9)}
    joined = CompiledWords(parts).join(CompiledWords(parts))
    assert list(joined.parts) == list(parts)


def test_hidden_layers_that_are_kept_for_some_words_only():
    """A small vocabulary keeps them, and joins one that was compiled where they are not kept."""
    decoder = build()
    keeps, other = InferenceDecoder(decoder, num_positions=2), InferenceDecoder(decoder)
    first, second = randn(2, 20, T), randn(3, 15, T)
    compiled = keeps.compile(first), other.compile(second)
    assert "hidden" in compiled[0].parts and "hidden" not in compiled[1].parts
    spatial, expected = spatial_of(decoder, 1, 2, 2), decoder(spatial_of(decoder, 1, 2, 2), torch.cat([first, second]))
    close(keeps(spatial, compiled[0].join(compiled[1])), expected)
    close(keeps(spatial, compiled[1].join(compiled[0])), torch.cat([expected[:, 20:], expected[:, :20]], 1))


def test_hidden_layers_are_kept_only_as_far_as_they_may_be(monkeypatch):
    monkeypatch.setattr("zsmld.decoder.inference._KEPT", 20 * 40 * 4)  # of 20 words
    fast = InferenceDecoder(build(), num_positions=2)
    assert fast.compile(randn(1, 20, T)).parts["hidden"].shape == (20, 40)
    assert "hidden" not in fast.compile(randn(1, 21, T)).parts
    assert "hidden" not in InferenceDecoder(build(), num_positions=49).compile(randn(1, 20, T)).parts  # not mixed


# ------------------------------------------------------------------------------------------------------------ states


@folded_heads
@both_ways
@pytest.mark.parametrize("precision", ["fp32", "bf16", pytest.param("int8", marks=needs_int8)])
def test_decoding_changes_nothing_it_was_given(options, mixes, precision):
    """Much is computed in place; the same call gives the same bits again."""
    decoder = build(**options)
    state = copy.deepcopy(decoder.state_dict())
    fast, spatial, words = InferenceDecoder(decoder, precision, 2), spatial_of(decoder, 1, 3, 2), randn(2, 30, T)
    given_spatial, given_words, compiled = spatial.clone(), words.clone(), forced(fast, mixes).compile(words)
    given_parts = {name: part.clone() for name, part in compiled.parts.items()}
    first = fast(spatial, compiled)
    assert torch.equal(fast(spatial, compiled), first)
    assert torch.equal(spatial, given_spatial) and torch.equal(words, given_words)
    assert all(torch.equal(compiled.parts[name], part) for name, part in given_parts.items())
    assert all(torch.equal(tensor, state[name]) for name, tensor in decoder.state_dict().items())


@pytest.mark.parametrize("options", [{}, {"num_layers": 2}, {"num_classes": 7}, {"prior": "conse", "word_reach": 0.5}])
def test_logits_have_no_gradient(options):
    decoder = build(**options)
    spatial = spatial_of(decoder, 1).requires_grad_()
    words = None if "num_classes" in options else randn(2, 5, T).requires_grad_()
    assert not decode(InferenceDecoder(decoder), spatial, words).requires_grad


@pytest.mark.parametrize("options", [{}, {"num_layers": 2}, {"descriptions": "attention"}])
def test_a_head_in_training_mode_is_decoded_as_in_eval_mode(options):
    """No dropout is drawn. The head stays in its mode: an evaluation between two epochs must not end the training."""
    decoder, words = build(dropout=0.5, **options), randn(2, 9, T)
    spatial = spatial_of(decoder, 1)
    expected = decoder(spatial, words)
    decoder.train()
    close(decode(InferenceDecoder(decoder), spatial, words), expected)
    assert decoder.training


def test_it_is_built_again_after_the_weights_have_changed():
    decoder, words = build(output="sum"), randn(2, 9, T)
    spatial = spatial_of(decoder, 1)
    InferenceDecoder(decoder)
    randomize(decoder, seed=5)
    close(decode(InferenceDecoder(decoder), spatial, words), decoder(spatial, words))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_spatial_embeddings_of_any_dtype_and_layout(dtype):
    decoder, words = build(output="sum", prior="conse"), randn(2, 30, T)
    spatial = randn(1, 2, C, 3).to(dtype).transpose(1, 2)  # as a map of channels first is flattened
    logits = decode(InferenceDecoder(decoder), spatial, words)
    assert logits.dtype == torch.float32
    close(logits, decoder(spatial.float(), words))


# --------------------------------------------------------------------------------------------------------- precision


def relative_error(options, precision, mixes, seed=0):
    """Root mean square difference from fp32, relative to the logits' deviation over words; a wider head."""
    options = {"decoder_dim": 64, "num_heads": 4, "feedforward_dim": 128} | options
    decoder = build(seed, amount=0.1, **options)
    spatial, words = spatial_of(decoder, 1, 4, 5), None if "num_classes" in options else randn(2, 60, T)
    expected = decoder(spatial, words)
    logits = decode(forced(InferenceDecoder(decoder, precision), mixes), spatial, words)
    assert logits.dtype == torch.float32
    return ((logits - expected).square().mean().sqrt() / expected.std(1).mean()).item()


PRECISE = FOLDED | {"classes": {"num_classes": 60, "num_groups": 25}}


@pytest.mark.parametrize("options", PRECISE.values(), ids=PRECISE)
@both_ways
def test_bf16_stays_near_fp32(options, mixes):
    """Factors are rounded to 8 bits of mantissa, 2⁻⁹ = 0.2 % each, in six products one after the other; the softmax and
    what two words have in common, which the deviation leaves out, make a few times more of it.
    """
    error = max(relative_error(options, "bf16", mixes, seed) for seed in range(3))
    assert 1e-6 < error < 0.03


@pytest.mark.parametrize("options", PRECISE.values(), ids=PRECISE)
@torch.no_grad()
def test_rows_in_bf16_stay_near_fp32(options):
    """As GPUs decode: beside the bound of the test above, what is between two products is rounded, too."""
    for seed in range(3):
        decoder = build(seed, amount=0.1, **options)
        folded, heads, base = fold(decoder), randn(seed, 2, 60, D), randn(seed + 9, 60, D)
        base = None if folded.first is None else base - base.mean(1, keepdim=True)
        both = Bf16Layer(folded).from_heads(heads.bfloat16(), base), FoldedLayer(folded).from_heads(heads, base)
        for found, expected in zip(*both, strict=True):
            assert (found is None) == (expected is None)
            if found is not None:
                assert found.dtype == torch.float32
                error = (found - expected).square().mean().sqrt() / expected.std(1).mean()
                assert 1e-6 < error < 0.03


@pytest.mark.parametrize("size", [1e-3, 1.0, 30.0])
@torch.no_grad()
def test_the_last_norm_and_the_logits_of_bf16_rows_are_fp32(size):
    """Rounded to bf16, the logits of many words would be one number; small rows feel the norm's ε, all the mean."""
    decoder = build(output="shared")
    rows = (size * randn(1, 2, 50, D) + size * randn(2, 2, 50, 1)).bfloat16()
    expected = decoder.shared_fc(decoder.layers[0].norm3(rows.float()))[..., 0]
    close(Bf16Layer(fold(decoder))._logits(rows), expected, 1e-4)


@pytest.mark.parametrize("options", [{}, {"num_layers": 2}, {"num_classes": 60, "num_groups": 25}])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_callers_autocast_changes_nothing(precision, options):
    decoder = build(**options)
    fast, spatial = InferenceDecoder(decoder, precision), spatial_of(decoder, 1, 4, 5)
    words = None if "num_classes" in options else fast.compile(randn(2, 60, T))
    expected = fast(spatial, words)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(fast(spatial, words), expected)


@needs_int8
@pytest.mark.parametrize("options", PRECISE.values(), ids=PRECISE)
@both_ways
def test_int8_stays_near_fp32(options, mixes):
    """A row's step is 1/63 of its largest value, about three deviations: rounding is 1/63 · 3 / √12 = 1.4 % of them,
    that of a weight half of it. A few products one after the other add up to a few per cent.
    """
    error = max(relative_error(options, "int8", mixes, seed) for seed in range(3))
    assert 1e-6 < error < 0.08


@needs_int8
@folded_heads
@both_ways
def test_in_int8_a_word_depends_on_itself_alone(options, mixes):
    """Rows are quantised each for itself. (Only the choice whether to mix takes their number; it is fixed here.)"""
    decoder = build(**options)
    fast, words = forced(InferenceDecoder(decoder, "int8", 2), mixes), randn(2, 30, T)
    spatial = spatial_of(decoder, 1, 3, 2)
    logits = decode(fast, spatial, words)
    close(decode(fast, spatial, torch.cat([1e3 * randn(3, 11, T), words]))[:, 11:], logits)
    close(decode(fast, spatial, words.flip(0)), logits.flip(1))
    fast._max_rows = 7
    close(decode(fast, spatial, words), logits)
    close(torch.cat([decode(fast, image[None], words) for image in spatial]), logits)


@needs_int8
class TestInt8:
    ROWS = torch.stack(
        [
            torch.zeros(64),
            torch.ones(64),
            torch.full((64,), -3.5),
            randn(0, 64),
            randn(1, 64) * 1e-20,
            randn(2, 64) * 1e20,
            torch.eye(64)[3] * 1e6,
            -torch.eye(64)[3],
        ]
    )

    @pytest.mark.parametrize("positive", [False, True])
    def test_a_row_is_off_by_half_a_step_at_most(self, positive):
        rows = self.ROWS.relu() if positive else self.ROWS
        linear = Int8Linear(torch.eye(64), positive)
        whole, step = quantize(rows, linear.zero, linear.largest)
        assert whole.dtype == torch.uint8 and whole.max() <= linear.largest
        largest = rows.abs().amax(1, keepdim=True)
        steps = linear.largest - linear.zero
        assert_close(step, largest.clamp(min=1e-30) / steps, atol=0, rtol=1e-6)
        off = (step.double() * (whole.double() - linear.zero) - rows.double()).abs()
        assert (off <= 0.501 * step.double()).all()

    @pytest.mark.parametrize("positive", [False, True])
    def test_a_product_is_that_of_the_rounded_factors(self, positive):
        """Integers add up without error, also where the sums are as large as they get."""
        rows = self.ROWS.relu() if positive else self.ROWS
        weight = torch.cat([randn(3, 20, 64), torch.ones(1, 64), -torch.ones(1, 64), torch.zeros(1, 64)])
        linear, bias = QuantizingLinear(weight, randn(4, 23), positive), randn(4, 23)
        inner = linear._linear
        whole, step = quantize(rows, inner.zero, inner.largest)
        scales = weight.abs().amax(1, keepdim=True).clamp(min=1e-30).double() / 127
        rounded = (weight.double() / scales).round() * scales
        expected = (step.double() * (whole.double() - inner.zero)) @ rounded.T + bias
        size = (step.double() * inner.largest) * rounded.abs().sum(1)  # of what is added up
        assert ((linear(rows).double() - expected).abs() <= 1e-6 * size + 1e-6).all()

    @both_ways
    def test_rows_that_are_constant_zero_or_huge_give_numbers(self, mixes):
        decoder = build(output="sum")
        with torch.no_grad():
            decoder.word_proj.bias -= 1e3  # no query: the second norm sees the same row for all words
            decoder.layers[0].linear1.bias -= 1e3  # no hidden layer
        spatial, words = spatial_of(decoder, 1, 5, 3), randn(2, 30, T)
        spatial[0] = 0
        spatial[1] = 2.5
        spatial[2] *= 1e10
        spatial[3] *= 1e-30
        logits = decode(forced(InferenceDecoder(decoder, "int8"), mixes), spatial, words)
        assert torch.isfinite(logits).all()
        expected = decoder(spatial, words)
        assert (logits - expected).abs().max() < 0.1 * expected.std()

    @both_ways
    def test_a_head_that_says_nothing_gives_its_bias(self, mixes):
        decoder = build()
        with torch.no_grad():
            for parameter in decoder.parameters():
                parameter.zero_()
            decoder.shared_fc.bias.fill_(0.75)
        logits = decode(forced(InferenceDecoder(decoder, "int8"), mixes), spatial_of(decoder, 1), randn(2, 30, T))
        close(logits, torch.full((2, 30), 0.75))

    @pytest.mark.skipif(
        shutil.which(os.environ.get("CXX", "g++")) is None,
        reason="torch.compile needs a C++ compiler, and there is none",
    )
    def test_compiled_steps_give_the_same(self):
        """A single small case, as it takes half a minute. Halves are rounded up there, and to even without it."""
        decoder = build()
        spatial, words = spatial_of(decoder, 1), randn(2, 30, T)
        plain, compiled = (forced(InferenceDecoder(decoder, "int8", compile=c), True) for c in (False, True))
        close(decode(compiled, spatial, words), decode(plain, spatial, words), 1e-3)


# ------------------------------------------------------------------------------------------------------------- errors


def test_a_precision_that_there_is_not_is_refused():
    message = r"precision must be one of \['fp32', 'bf16', 'int8'\], got 'fp16'; choose one"
    for decoder in (build(), build(num_layers=2), build(num_classes=3), build_scorer("clip")):
        with pytest.raises(ValueError, match=message):
            InferenceDecoder(decoder, "fp16")


def test_int8_is_refused_where_it_is_not(monkeypatch):
    message = r"precision must be 'fp32' or 'bf16' on {} here, got 'int8', which needs an x86 processor; choose one of"
    with pytest.raises(ValueError, match=message.format("meta")):
        InferenceDecoder(build().to("meta"), "int8")
    monkeypatch.setattr("zsmld.decoder.inference.int8_is_available", lambda: False)
    with pytest.raises(ValueError, match=message.format("cpu")):
        InferenceDecoder(build(), "int8")
    InferenceDecoder(build(), "bf16")


@pytest.mark.parametrize("options", [{}, {"num_layers": 2}])
def test_words_are_compiled_before_they_are_decoded(options):
    fast = InferenceDecoder(build(**options))
    with pytest.raises(ValueError, match=r"words must be compiled words in word mode, got None; pass those of compile"):
        fast(randn(1, 2, 3, C))
    with pytest.raises(ValueError, match=r"word_embeddings must be \(N, 5\) to fit text_dim=5, got \(4, 6\); encode"):
        fast.compile(randn(1, 4, T + 1))
    with pytest.raises(ValueError, match=r"word_embeddings must be None in class mode, got \(4, 5\); build the head"):
        InferenceDecoder(build(num_classes=3, **options)).compile(randn(1, 4, T))


@pytest.mark.parametrize("options", [{}, {"num_layers": 2}, {"output": "sum", "prior": "conse"}])
@pytest.mark.parametrize("shape", [(2, 3, C + 1), (3, C), (2, C, 3, 3)])
def test_spatial_embeddings_of_a_wrong_shape_are_refused(options, shape):
    fast = InferenceDecoder(build(**options))
    words = fast.compile(randn(2, 4, T))
    with pytest.raises(ValueError, match=r"spatial_embeddings must be \(B, S, 7\) to fit encoder_dim=7, got"):
        fast(torch.zeros(shape), words)


# -------------------------------------------------------------------------------------------------- bounded memory


class Peak(TorchDispatchMode):
    """The most bytes that results of operations held at one time; what one operation needs inside is not seen."""

    def __init__(self):
        super().__init__()
        self.live, self.peak, self._seen = 0, 0, set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self._seen.update(storage._cdata for storage in storages_of(args))  # what was there before is not counted
        results = func(*args, **kwargs or {})
        for storage in storages_of(results if isinstance(results, (tuple, list)) else [results]):
            self._count(storage)
        self.peak = max(self.peak, self.live)
        return results

    def _count(self, storage):
        if (key := storage._cdata) not in self._seen:
            self._seen.add(key)
            self.live += storage.nbytes()
            weakref.finalize(storage, self._forget, key, storage.nbytes())

    def _forget(self, key, size):
        self._seen.discard(key)
        self.live -= size


def storages_of(values):
    tensors = [value for value in values if isinstance(value, torch.Tensor)]
    return [tensor.untyped_storage() for tensor in tensors if tensor.layout == torch.strided]


def peak(fast, spatial, words=None):
    """Bytes beyond the result and what was there before."""
    with Peak() as memory:
        logits = fast(spatial, words)
    return memory.peak - logits.numel() * logits.element_size()


BOUNDED = {
    "shared": {},
    "sum": {"output": "sum", "prompts": True},
    "prior, reach": {"prior": "conse", "word_reach": 0.5},
    "two layers": {"num_layers": 2},
    "attention over descriptions": {"descriptions": "attention", "prior": "conse"},
}


@pytest.mark.parametrize("options", BOUNDED.values(), ids=BOUNDED)
@both_ways
def test_memory_does_not_grow_with_the_words(options, mixes):
    decoder = build(**options)
    fast, spatial = forced(InferenceDecoder(decoder), mixes), spatial_of(decoder, 1)
    few, many = fast.compile(randn(2, 2000, T)), fast.compile(randn(2, 20000, T))
    joined = 0 if fast._folds else 2 * 20000 * 4  # chunks of the result, before they are joined
    assert peak(fast, spatial, many) < 1.1 * peak(fast, spatial, few) + joined


@pytest.mark.parametrize("name", ["shared", "sum", "two layers"])  # a prior's similarities grow with the images
@both_ways
def test_memory_does_not_grow_with_the_images(name, mixes):
    options = BOUNDED[name]
    decoder = build(**options)
    fast = forced(InferenceDecoder(decoder), mixes)
    words = fast.compile(randn(2, 1000, T))
    few, many = (peak(fast, spatial_of(decoder, 1, num_images), words) for num_images in (16, 160))
    # A head of one layer takes a few images at a time. Others hold the memory of all, and chunks of the result.
    images = 0 if fast._folds else 160 * (3 * 4 * (C + 2 * D) + 1000 * 4)
    assert many < 1.1 * few + images


@needs_int8
@both_ways
def test_memory_of_int8_does_not_grow_with_words_or_images(mixes):
    fast = forced(InferenceDecoder(build(), "int8"), mixes)
    few, many = fast.compile(randn(2, 2000, T)), fast.compile(randn(2, 20000, T))
    spatial = spatial_of(fast.decoder, 1, 16)
    assert peak(fast, spatial, many) < 1.1 * peak(fast, spatial[:2], few) + 16 * 3 * 4 * (C + 2 * D)
