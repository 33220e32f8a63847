"""The head: against timm's, against loops, and the laws of word queries."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import word_head
from timm.layers.ml_decoder import MLDecoder as TimmMLDecoder
from torch import nn
from torch.testing import assert_close

from zsmld.decoder import DecoderLayer, MLDecoder, average_descriptions

OUTPUTS = ("shared", "cosine", "sum")
C, T, D = 6, 5, 16  # encoder, text and decoder widths

law = settings(max_examples=10)
seeds = st.integers(0, 2**32 - 1)
few = st.integers(1, 6)


def close(actual, expected, tolerance=1e-5):
    assert_close(actual, expected, atol=tolerance, rtol=tolerance)


def build(seed=0, **options):
    """A small head in eval mode with no parameter at a special value, and standardisation switched on in word mode."""
    options = {"encoder_dim": C, "decoder_dim": D, "num_heads": 4, "feedforward_dim": 24} | options
    if "num_classes" not in options:
        options = {"text_dim": T} | options
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        decoder = MLDecoder(**options)
        with torch.no_grad():
            for parameter in decoder.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
        if decoder.text_dim is not None:
            decoder.standardize_words(torch.randn(9, decoder.text_dim) * 2 + 1)
    return decoder.eval()


def randn(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# ------------------------------------------------------------------------------------------------- against timm


def run_layers(self, tgt, memory, **_):
    """`nn.TransformerDecoder.forward` of the torch that timm's head was written for."""
    for layer in self.layers:
        tgt = layer(tgt, memory)
    return tgt


def from_timm(state):
    """timm's state dict under our names."""
    prefix = "decoder.layers.0."
    ours = {
        "group_queries": state["query_embed.weight"],
        "group_fc_weight": state["duplicate_pooling"],
        "group_fc_bias": state["duplicate_pooling_bias"],
    }
    for kind in ("weight", "bias"):
        ours[f"spatial_proj.{kind}"] = state[f"embed_standart.{kind}"]
        joint = state[f"{prefix}multihead_attn.in_proj_{kind}"]
        for name, part in zip(("query_proj", "key_proj", "value_proj"), joint.chunk(3), strict=True):
            ours[f"layers.0.{name}.{kind}"] = part
        ours[f"layers.0.out_proj.{kind}"] = state[f"{prefix}multihead_attn.out_proj.{kind}"]
        for name in ("linear1", "linear2", "norm1", "norm2", "norm3"):
            ours[f"layers.0.{name}.{kind}"] = state[f"{prefix}{name}.{kind}"]
    return ours


@pytest.mark.parametrize("classes, groups", [(12, 4), (5, 5), (7, 3), (10, 6), (9, 1), (3, 100), (101, None)])
def test_class_mode_equals_timm_with_the_same_weights(classes, groups, monkeypatch):
    monkeypatch.setattr(nn.TransformerDecoder, "forward", run_layers)
    torch.manual_seed(classes)
    theirs = TimmMLDecoder(
        classes, num_of_groups=-1 if groups is None else groups, decoder_embedding=D, initial_num_features=C
    )
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    theirs.eval()
    ours = build(num_classes=classes, num_groups=groups, num_heads=8, feedforward_dim=2048)
    ours.load_state_dict(from_timm(theirs.state_dict()))
    spatial = torch.randn(3, 4, C)
    with torch.no_grad():
        close(ours(spatial), theirs(spatial))


@pytest.mark.parametrize("classes, expected", [(7, 7), (100, 100), (250, 100)])
def test_the_default_number_of_groups_is_the_papers_100_or_fewer(classes, expected):
    decoder = build(num_classes=classes)
    assert decoder.group_queries.shape == (expected, D)
    assert decoder(torch.zeros(2, 3, C)).shape == (2, classes)


@pytest.mark.parametrize("learnable", [False, True])
def test_group_queries_are_trained_only_if_asked_and_stored_either_way(learnable):
    decoder = build(num_classes=5, num_groups=2, learnable_queries=learnable)
    assert ("group_queries" in dict(decoder.named_parameters())) == learnable
    assert "group_queries" in decoder.state_dict()


# ----------------------------------------------------------------------------------------------- against loops


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("num_heads", [1, 4])
def test_word_mode_equals_the_loops(output, num_layers, num_heads):
    decoder = build(output=output, num_layers=num_layers, num_heads=num_heads, decoder_dim=8, feedforward_dim=12)
    spatial, words = randn(1, 2, 3, C), randn(2, 4, T)
    logits, weights = word_head(decoder, spatial, words)
    close(decoder(spatial, words).detach().double(), torch.from_numpy(logits))
    close(decoder.attention(spatial, words).double(), torch.from_numpy(weights))


def test_one_output_projection_serves_every_word():
    """Words with equal embeddings have equal logits, wherever they stand."""
    words = randn(0, 5, T)
    logits = build()(randn(1, 2, 3, C), words[[0, 1, 0, 2, 1]])
    close(logits[:, 0], logits[:, 2])
    close(logits[:, 1], logits[:, 4])
    assert not torch.allclose(logits[:, 0], logits[:, 1])


def test_sum_is_shared_plus_cosine():
    both = build(output="sum")
    state = both.state_dict()
    spatial, words = randn(1, 2, 3, C), randn(2, 4, T)
    parts = []
    for output in ("shared", "cosine"):
        part = build(output=output)
        part.load_state_dict({name: state[name] for name in part.state_dict()})
        parts.append(part(spatial, words))
    close(both(spatial, words), parts[0] + parts[1])


def test_cosine_stays_within_temperature_and_bias():
    decoder = build(output="cosine")
    reach = decoder.log_temperature.exp() + 1e-5
    logits = decoder(randn(1, 4, 3, C) * 50, randn(2, 30, T) * 50)
    assert (logits - decoder.cosine_bias).abs().max() <= reach


def test_cosine_logits_do_not_change_with_the_length_of_a_standardized_word():
    """The query side may move with it, the comparison itself does not."""
    decoder = build(output="cosine")
    spatial = randn(1, 2, 3, C)
    queries, standardized = decoder.word_queries(randn(2, 4, T))
    close(decoder.decode(spatial, queries, 7 * standardized), decoder.decode(spatial, queries, standardized))


# ------------------------------------------------------------------------------------------- laws of section 3


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("num_layers", [1, 2])
class TestLaws:
    @law
    @given(seed=seeds, num_words=few, num_images=few, positions=few)
    def test_permuting_words_permutes_columns(self, output, num_layers, seed, num_words, num_images, positions):
        decoder = build(seed, output=output, num_layers=num_layers)
        spatial, words = randn(seed, num_images, positions, C), randn(seed + 1, num_words, T)
        order = torch.randperm(num_words, generator=torch.Generator().manual_seed(seed))
        close(decoder(spatial, words[order]), decoder(spatial, words)[:, order])

    @law
    @given(seed=seeds, num_words=few, num_extra=few, scale=st.sampled_from([0.0, 1.0, 100.0]))
    def test_adding_words_changes_no_other_column(self, output, num_layers, seed, num_words, num_extra, scale):
        decoder = build(seed, output=output, num_layers=num_layers)
        spatial, words = randn(seed, 2, 3, C), randn(seed + 1, num_words, T)
        more = torch.cat([words, scale * randn(seed + 2, num_extra, T)])
        close(decoder(spatial, more)[:, :num_words], decoder(spatial, words))

    @law
    @given(seed=seeds, num_words=few, size=few)
    def test_chunks_of_words_equal_the_whole(self, output, num_layers, seed, num_words, size):
        decoder = build(seed, output=output, num_layers=num_layers)
        spatial, words = randn(seed, 2, 3, C), randn(seed + 1, num_words, T)
        chunks = [decoder(spatial, part) for part in words.split(size)]
        close(torch.cat(chunks, 1), decoder(spatial, words))

    @law
    @given(seed=seeds, num_words=few, num_images=few)
    def test_a_batch_equals_its_single_images(self, output, num_layers, seed, num_words, num_images):
        decoder = build(seed, output=output, num_layers=num_layers)
        spatial, words = randn(seed, num_images, 3, C), randn(seed + 1, num_words, T)
        close(torch.cat([decoder(image[None], words) for image in spatial]), decoder(spatial, words))

    @law
    @given(seed=seeds, positions=st.integers(1, 9))
    def test_the_order_of_positions_is_nothing(self, output, num_layers, seed, positions):
        decoder = build(seed, output=output, num_layers=num_layers)
        spatial, words = randn(seed, 2, positions, C), randn(seed + 1, 3, T)
        order = torch.randperm(positions, generator=torch.Generator().manual_seed(seed))
        close(decoder(spatial[:, order], words), decoder(spatial, words))

    @law
    @given(seed=seeds, num_words=few, num_images=few)
    def test_compiled_words_and_memory_equal_forward(self, output, num_layers, seed, num_words, num_images):
        decoder = build(seed, output=output, num_layers=num_layers)
        spatial, words = randn(seed, num_images, 3, C), randn(seed + 1, num_words, T)
        compiled = decoder.word_queries(words)
        assert compiled[0].shape == (num_words, D)
        assert compiled[1].shape == (num_words, T)
        close(decoder.decode(spatial, *compiled), decoder(spatial, words))


@law
@given(seed=seeds, num_images=few, classes=st.integers(1, 9), groups=few)
def test_class_mode_a_batch_equals_its_single_images(seed, num_images, classes, groups):
    decoder = build(seed, num_classes=classes, num_groups=groups)
    spatial = randn(seed, num_images, 3, C)
    logits = decoder(spatial)
    assert logits.shape == (num_images, classes)
    close(torch.cat([decoder(image[None]) for image in spatial]), logits)


# ----------------------------------------------------------------------------------------- several descriptions


@law
@given(seed=seeds, num_words=few, num_descriptions=few)
def test_descriptions_count_as_the_mean_of_those_that_exist(seed, num_words, num_descriptions):
    words = randn(seed, num_words, num_descriptions, T)
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(num_words, num_descriptions, generator=generator) < 0.5
    mask[torch.arange(num_words), torch.randint(num_descriptions, (num_words,), generator=generator)] = True
    means = []
    for n in range(num_words):
        there = [words[n, k] for k in range(num_descriptions) if mask[n, k]]
        means.append(sum(there) / len(there))
    close(average_descriptions(words, mask), torch.stack(means))
    decoder, spatial = build(seed), randn(seed + 1, 2, 3, C)
    close(decoder(spatial, words, mask), decoder(spatial, torch.stack(means)))
    moved = torch.where(mask[:, :, None], words, 1e3)  # what the mask hides has no say
    close(decoder(spatial, moved, mask), decoder(spatial, words, mask))


def test_descriptions_without_a_mask_all_count_and_one_is_the_word_itself():
    decoder, spatial, words = build(), randn(1, 2, 3, C), randn(2, 4, 3, T)
    close(decoder(spatial, words), decoder(spatial, words, torch.ones(4, 3, dtype=torch.bool)))
    close(decoder(spatial, words[:, :1]), decoder(spatial, words[:, 0]))


# ---------------------------------------------------------------------------------------------- standardisation


def test_standardized_seen_words_have_mean_zero_and_deviation_one():
    decoder, seen = build(), randn(3, 20, T) * 3 + 5
    decoder.standardize_words(seen)
    standardized = decoder.word_queries(seen)[1]
    close(standardized.mean(0), torch.zeros(T))
    close(standardized.std(0), torch.ones(T))


@pytest.mark.parametrize("output", OUTPUTS)
def test_standardizing_inside_equals_standardizing_outside(output):
    inside, outside = build(output=output), build(output=output)
    seen, words, spatial = randn(3, 20, T) * 3 + 5, randn(2, 4, T), randn(1, 2, 3, C)
    inside.standardize_words(seen)
    with torch.no_grad():
        outside.word_mean.zero_()
        outside.word_scale.fill_(1)
    close(inside(spatial, words), outside(spatial, (words - seen.mean(0)) / seen.std(0)))


def test_standardizing_changes_no_parameter_and_a_constant_dimension_gives_no_infinity():
    decoder = build()
    before = {name: parameter.clone() for name, parameter in decoder.named_parameters()}
    seen = randn(3, 20, T)
    seen[:, 2] = 0.25
    decoder.standardize_words(seen)
    for name, parameter in decoder.named_parameters():
        assert torch.equal(parameter, before[name]), name
    assert torch.isfinite(decoder(randn(1, 2, 3, C), seen)).all()


def test_a_new_head_does_not_standardize():
    words = randn(0, 4, T)
    assert torch.equal(MLDecoder(C, text_dim=T, decoder_dim=D).word_queries(words)[1], words)


# ---------------------------------------------------------------------------------------------------- attention


@pytest.mark.parametrize("options", [{"output": "shared"}, {"num_layers": 2}, {"num_classes": 7, "num_groups": 3}])
def test_attention_rows_sum_to_one(options):
    decoder = build(**options)
    words = None if "num_classes" in options else randn(2, 4, T)
    weights = decoder.attention(randn(1, 2, 9, C), words)
    assert weights.shape == (2, 4, 3 if words is None else 4, 9)
    assert (weights >= 0).all()
    close(weights.sum(3), torch.ones(weights.shape[:3]))


def test_attention_weights_are_the_softmax_that_attend_uses():
    """The weights times the values, through the output projection, are what `attend` returns."""
    torch.manual_seed(0)
    layer = DecoderLayer(D, 4, 24, 0.1).eval()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    t, memory = torch.randn(2, 5, D), torch.randn(2, 9, D)
    weights = layer.attention_weights(t, memory)  # (B,H,N,S)
    values = layer.value_proj(memory).unflatten(2, (4, D // 4))  # (B,S,H,D/H)
    mixed = torch.einsum("bhns,bshd->bnhd", weights, values).flatten(2)  # (B,N,D)
    close(layer.out_proj(mixed), layer.attend(t, memory))


# ----------------------------------------------------------------------------------------------------- training


@pytest.mark.parametrize(
    "options",
    [
        {"output": "shared"},
        {"output": "sum"},
        {"output": "cosine"},
        {"output": "shared", "num_layers": 2},
        {"output": "cosine", "num_layers": 2},
        {"num_classes": 7, "num_groups": 3},
        {"num_classes": 6, "num_groups": 3, "learnable_queries": True},
    ],
)
def test_in_training_gradients_reach_every_parameter(options):
    decoder = build(**options).train()
    torch.manual_seed(0)
    words = None if "num_classes" in options else randn(2, 9, T)
    logits = decoder(randn(1, 8, 9, C), words)
    logits.square().sum().backward()
    for name, parameter in decoder.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
        if "key_proj.bias" not in name:  # a softmax does not see what is added to all its inputs
            assert parameter.grad.abs().max() > 1e-6, name


def test_gradients_reach_words_and_images():
    spatial, words = randn(1, 2, 3, C).requires_grad_(), randn(2, 4, T).requires_grad_()
    build(output="sum").train()(spatial, words).square().sum().backward()
    assert spatial.grad.abs().sum() > 0
    assert words.grad.abs().sum() > 0


@pytest.mark.parametrize("options", [{}, {"output": "sum", "num_layers": 2}, {"num_classes": 7, "num_groups": 3}])
def test_without_dropout_training_and_eval_give_the_same(options):
    decoder = build(dropout=0.0, **options)
    words = None if "num_classes" in options else randn(2, 4, T)
    spatial = randn(1, 2, 3, C)
    close(decoder.train()(spatial, words), decoder.eval()(spatial, words))


@pytest.mark.parametrize("options", [{}, {"num_classes": 7, "num_groups": 3}])
def test_each_image_draws_its_own_dropout_in_training_only(options):
    decoder = build(dropout=0.5, **options)
    words = None if "num_classes" in options else randn(2, 4, T)
    twice = randn(1, 1, 3, C).expand(2, -1, -1)
    calm = decoder.eval()(twice, words)
    close(calm[0], calm[1])
    torch.manual_seed(0)
    noisy = decoder.train()(twice, words)
    assert not torch.allclose(noisy[0], noisy[1])


def test_query_dropout_itself_differs_between_images():
    """The first dropout, on the query before norm1, must not be drawn once for the whole batch."""
    decoder = build(dropout=0.5)
    torch.manual_seed(0)
    seen = []
    decoder.layers[0].norm1.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    decoder.train()(randn(1, 2, 3, C), randn(2, 4, T))
    assert seen[0].shape == (2, 4, D)
    assert not torch.equal(seen[0][0], seen[0][1])


# ------------------------------------------------------------------------------------------------------- states


@pytest.mark.parametrize(
    "options",
    [{"output": output, "num_layers": 2} for output in OUTPUTS]
    + [{"num_classes": 7, "num_groups": 3}, {"num_classes": 7, "learnable_queries": True}],
)
def test_config_and_state_dict_rebuild_the_head(options):
    decoder = build(**options)
    again = MLDecoder(**decoder.config()).eval()
    again.load_state_dict(decoder.state_dict())
    assert again.config() == decoder.config()
    words = None if "num_classes" in options else randn(2, 4, T)
    spatial = randn(1, 2, 3, C)
    assert torch.equal(again(spatial, words), decoder(spatial, words))


def test_config_is_a_copy():
    decoder = build()
    decoder.config()["decoder_dim"] = 0
    assert decoder.config()["decoder_dim"] == D


@pytest.mark.parametrize("output", OUTPUTS)
def test_half_precision_stays_near_full_precision(output):
    decoder, spatial, words = build(output=output), randn(1, 2, 3, C), randn(2, 4, T)
    full = decoder(spatial, words)
    half = decoder.bfloat16()(spatial.bfloat16(), words.bfloat16())
    assert half.dtype == torch.bfloat16
    close(half.float(), full, tolerance=0.2)


# ------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    "options, message",
    [
        ({}, r"exactly one of text_dim .* and num_classes .* must be given, got text_dim=None, num_classes=None"),
        ({"text_dim": 5, "num_classes": 3}, r"exactly one of .*, got text_dim=5, num_classes=3; leave one of them out"),
        ({"text_dim": 5, "num_heads": 7}, r"num_heads must divide decoder_dim=16, got 7; choose one of \[1, 2, 4, 8,"),
        ({"text_dim": 5, "num_heads": 0}, r"num_heads must divide decoder_dim=16, got 0"),
        ({"text_dim": 5, "num_heads": 4.0}, r"num_heads must be a whole number from 0 to 1,048,576, got 4\.0"),
        ({"text_dim": 0}, r"text_dim must be a whole number from 1 to 1,048,576, got 0"),
        ({"text_dim": 5, "feedforward_dim": 10**30}, r"feedforward_dim must be a whole number from 1 to "),
        ({"text_dim": 5, "num_layers": 10**9}, r"num_layers must be a whole number from 0 to 1,000, got"),
        ({"num_classes": True}, r"num_classes must be a whole number from 0 to 100,000,000, got True"),
        ({"text_dim": 5, "num_layers": 0}, r"num_layers must be at least 1, got 0"),
        ({"text_dim": 5, "output": "dot"}, r"output must be 'shared', 'cosine' or 'sum', got 'dot'"),
        ({"num_classes": 0}, r"class mode needs num_classes ≥ 1 and output='shared', got 0"),
        ({"num_classes": 3, "output": "cosine"}, r"class mode needs .*'cosine'; the cosine output needs word queries"),
        ({"num_classes": 3, "num_groups": 0}, r"num_groups must be at least 1, got 0"),
    ],
)
def test_a_head_that_cannot_be_built_says_why(options, message):
    with pytest.raises(ValueError, match=message):
        MLDecoder(C, **{"decoder_dim": D, **options})


def test_every_suggested_number_of_heads_builds():
    for num_heads in (1, 2, 4, 8, 16):
        assert MLDecoder(C, text_dim=T, decoder_dim=D, num_heads=num_heads)(
            torch.zeros(1, 2, C), torch.zeros(1, T)
        ).shape == (1, 1)


@pytest.mark.parametrize(
    "shape, message",
    [
        ((4, T + 1), r"word_embeddings must be \(N, 5\) to fit text_dim=5, got \(4, 6\); encode the words with the"),
        ((T,), r"word_embeddings must be \(N, 5\) to fit text_dim=5, got \(5,\)"),
        ((0, T), r"word_embeddings must be \(N, 5\) to fit text_dim=5, got \(0, 5\)"),
        ((1, 1, 4, T), r"word_embeddings must be \(N, 5\) .*, got \(1, 1, 4, 5\)"),
    ],
)
def test_words_of_a_wrong_shape_are_refused(shape, message):
    with pytest.raises(ValueError, match=message):
        build()(torch.zeros(2, 3, C), torch.zeros(shape))


@pytest.mark.parametrize("shape", [(2, 3, C + 1), (3, C), (2, C, 3, 3)])
def test_spatial_embeddings_of_a_wrong_shape_are_refused(shape):
    shown = str(shape).replace("(", r"\(").replace(")", r"\)")
    message = rf"spatial_embeddings must be \(B, S, 6\) to fit encoder_dim=6, got {shown}; flatten a map to \(B, S, C\)"
    with pytest.raises(ValueError, match=message):
        build()(torch.zeros(shape), torch.zeros(4, T))
    with pytest.raises(ValueError, match=message):
        build(num_classes=3)(torch.zeros(shape))


def test_the_two_modes_do_not_mix():
    spatial = torch.zeros(2, 3, C)
    with pytest.raises(ValueError, match=r"word_embeddings must be \(N, 5\) in word mode, got None; pass the embed"):
        build()(spatial)
    classes = build(num_classes=3)
    for call in (
        lambda: classes(spatial, torch.zeros(4, T)),
        lambda: classes.word_queries(torch.zeros(4, T)),
        lambda: classes.standardize_words(torch.zeros(4, T)),
        lambda: classes.attention(spatial, torch.zeros(4, T)),
    ):
        with pytest.raises(ValueError, match=r"word_embeddings must be None in class mode, got \(4, 5\); build the"):
            call()


@pytest.mark.parametrize("shape", [(1, T), (1, 2, T)])
def test_standardization_needs_two_words(shape):
    with pytest.raises(ValueError, match=r"seen_embeddings must be \(N, 5\) with N ≥ 2, got .*all seen words"):
        build().standardize_words(torch.ones(shape))


def test_a_mask_must_fit_and_leave_every_word_a_description():
    words = torch.zeros(3, 2, T)
    mask = torch.ones(3, 2, dtype=torch.bool)
    mask[1] = False
    with pytest.raises(ValueError, match=r"mask must be bool \(3, 2\) with at least one True for each word"):
        average_descriptions(words, mask)
    with pytest.raises(ValueError, match=r"mask must be bool \(3, 2\) .*, got \(2, 3\); give every word a description"):
        average_descriptions(words, torch.ones(2, 3, dtype=torch.bool))


def test_initial_attention_is_that_of_multihead_attention():
    """Xavier uniform on the joint (3D, D) matrix: the same bound, and no bias."""
    torch.manual_seed(0)
    layer, theirs = DecoderLayer(64, 8, 16, 0.0), nn.MultiheadAttention(64, 8)
    bound = float(theirs.in_proj_weight.detach().abs().max())
    for proj in (layer.query_proj, layer.key_proj, layer.value_proj):
        assert float(proj.weight.detach().abs().max()) == pytest.approx(bound, rel=0.02)
        assert np.abs(proj.bias.detach().numpy()).max() == 0
