"""Losses: against scalar loops, timm and torch; unknown targets take no part."""

import math
import warnings

import pytest
import timm.loss
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import asymmetric_loss as slow_asymmetric_loss
from oracles import ranking_loss as slow_ranking_loss
from oracles import two_way_loss as slow_two_way_loss
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from zsmld.losses import (
    asymmetric_loss,
    binary_cross_entropy,
    build_loss,
    cross_entropy,
    ranking_loss,
    two_way_loss,
)

WORD_BY_WORD = (asymmetric_loss, binary_cross_entropy)
IMAGE_BY_IMAGE = (*WORD_BY_WORD, ranking_loss, cross_entropy)
HARD = (asymmetric_loss, two_way_loss, ranking_loss)
SOFT = (binary_cross_entropy, cross_entropy)
LOSSES = (*IMAGE_BY_IMAGE, two_way_loss)
ASYMMETRIC_OPTIONS = (
    {},
    {"gamma_neg": 0.0, "gamma_pos": 0.0, "clip": 0.0},
    {"gamma_neg": 2.0, "gamma_pos": 1.0, "clip": 0.2},
    {"gamma_neg": 4, "gamma_pos": 0, "clip": 0},
)
TWO_WAY_OPTIONS = ({}, {"temperature_pos": 1.0}, {"temperature_pos": 0.5, "temperature_neg": 2})
RANKING_OPTIONS = ({}, {"margin": 0}, {"margin": 2.5}, {"normalize_by": "violations"})

law = settings(max_examples=25)
seeds = st.integers(0, 2**32 - 1)


def draw(seed, images=4, words=6, unknown=True, scale=4.0, loss=None):
    """Logits and targets that the loss takes: cross_entropy wants exactly one 1 in a row."""
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(images, words, generator=generator)
    if loss is cross_entropy:
        targets = torch.randint(-1 if unknown else 0, 1, (images, words), generator=generator, dtype=torch.int8)
        return logits, targets.scatter(1, torch.randint(words, (images, 1), generator=generator), 1)
    return logits, torch.randint(-1 if unknown else 0, 2, (images, words), generator=generator, dtype=torch.int8)


def draw_soft(seed, images=4, words=6, unknown=True):
    """Logits, and targets as MixUp makes them: rows that sum to one over the known words."""
    logits, targets = draw(seed, images, words, unknown)
    targets[:, 0] = 0  # one is known
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.rand(images, words, generator=generator).masked_fill(targets == -1, 0)
    return logits, (mixed / mixed.sum(1, keepdim=True)).masked_fill(targets == -1, -1)


def gradient(loss, logits):
    logits = logits.clone().requires_grad_()
    loss(logits).backward()
    return logits.grad


# ------------------------------------------------------------------------------------------------- laws of all losses


@pytest.mark.parametrize("loss", LOSSES)
@law
@given(seed=seeds, images=st.integers(1, 5), words=st.integers(1, 6))
def test_the_order_of_words_and_of_images_does_not_matter(loss, seed, images, words):
    logits, targets = draw(seed, images, words, loss=loss)
    generator = torch.Generator().manual_seed(seed)
    rows, columns = torch.randperm(images, generator=generator), torch.randperm(words, generator=generator)
    moved = loss(logits[rows][:, columns], targets[rows][:, columns])
    assert_close(moved, loss(logits, targets), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("loss", LOSSES)
@law
@given(seed=seeds, value=st.sampled_from([-80.0, -3.0, 0.0, 3.0, 80.0]))
def test_unknown_targets_have_no_part_in_value_or_gradient(loss, seed, value):
    logits, targets = draw(seed, loss=loss)
    unknown = targets == -1
    moved = torch.where(unknown, value, logits)
    assert loss(moved, targets) == loss(logits, targets)
    gradients = gradient(lambda x: loss(x, targets), moved)
    assert (gradients[unknown] == 0).all()
    assert torch.equal(gradients[~unknown], gradient(lambda x: loss(x, targets), logits)[~unknown])


@pytest.mark.parametrize("loss", LOSSES)
@law
@given(seed=seeds, images=st.integers(1, 4))
def test_images_and_words_that_are_all_unknown_change_nothing(loss, seed, images):
    logits, targets = draw(seed, images, loss=loss)
    more_logits, more_targets = F.pad(logits, (2, 1, 1, 2), value=3.0), F.pad(targets, (2, 1, 1, 2), value=-1)
    assert_close(loss(more_logits, more_targets), loss(logits, targets), rtol=1e-6, atol=1e-6)
    expected = F.pad(gradient(lambda x: loss(x, targets), logits), (2, 1, 1, 2))
    assert_close(gradient(lambda x: loss(x, more_targets), more_logits), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_all_unknown_is_zero_with_zero_gradient_and_so_is_nothing_at_all(loss, reduction):
    for shape in ((4, 6), (1, 1), (0, 6), (4, 0)):
        logits = torch.randn(shape)
        targets = torch.full_like(logits, -1)
        assert loss(logits, targets, reduction=reduction) == 0
        with torch.autograd.set_detect_anomaly(True):  # no NaN on the way either
            assert (gradient(lambda x, t=targets: loss(x, t, reduction=reduction), logits) == 0).all()


@pytest.mark.parametrize("loss", LOSSES)
@law
@given(seed=seeds, images=st.integers(1, 5))
def test_mean_is_exactly_sum_over_images(loss, seed, images):
    logits, targets = draw(seed, images, loss=loss)
    assert loss(logits, targets, reduction="mean") == loss(logits, targets) / images


@pytest.mark.parametrize("loss", IMAGE_BY_IMAGE)
@law
@given(seed=seeds, images=st.integers(1, 5))
def test_sum_adds_up_over_images_and_mean_does_not_see_the_batch_size(loss, seed, images):
    logits, targets = draw(seed, images, loss=loss)
    rows = [loss(logits[i : i + 1], targets[i : i + 1]) for i in range(images)]
    assert_close(sum(rows), loss(logits, targets), rtol=1e-5, atol=1e-5)
    twice = loss(logits.repeat(2, 1), targets.repeat(2, 1), reduction="mean")
    assert_close(twice, loss(logits, targets, reduction="mean"), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_logits_are_computed_in_fp32(loss, dtype):
    """Also where fp16 could not hold the result: the sum here is above its largest number, 65504."""
    logits, targets = draw(0, images=900, words=40, scale=200.0, loss=loss)
    logits = logits.to(dtype)
    value = loss(logits, targets)
    assert value.dtype == torch.float32
    assert value > 65504
    assert_close(value, loss(logits.float(), targets), rtol=0, atol=0)
    with torch.autocast("cpu", torch.bfloat16):
        assert_close(loss(logits, targets), value, rtol=0, atol=0)
    assert torch.isfinite(gradient(lambda x: loss(x, targets), logits)).all()


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_extreme_logits_give_finite_values_and_gradients(loss, dtype):
    logits = torch.tensor([[-1e4, 1e4, -1e4, 1e4, 0.0], [1e4, -1e4, 1e4, -1e4, 1e4]], dtype=dtype)
    targets = torch.tensor([[1, 0, 0, 0, -1], [1, 0, 0, 0, -1]])
    with torch.autograd.set_detect_anomaly(True):
        assert torch.isfinite(loss(logits, targets))
        assert torch.isfinite(gradient(lambda x: loss(x, targets), logits)).all()


@pytest.mark.parametrize(
    ("loss", "options"),
    [
        (asymmetric_loss, {"gamma_neg": 0, "clip": 0.1}),  # a focusing weight is a constant for the gradient
        (binary_cross_entropy, {"label_smoothing": 0.1}),
        *((two_way_loss, options) for options in TWO_WAY_OPTIONS),
        *((ranking_loss, options) for options in RANKING_OPTIONS),
        (cross_entropy, {"label_smoothing": 0.1}),
    ],
)
def test_gradients_equal_finite_differences_in_fp64(loss, options):
    for seed in range(3):
        logits, targets = draw(seed, loss=loss)
        assert loss(logits.double(), targets, **options).dtype == torch.float64
        assert torch.autograd.gradcheck(lambda x, t=targets: loss(x, t, **options), logits.double().requires_grad_())


@pytest.mark.parametrize("loss", LOSSES)
@law
@given(seed=seeds)
def test_the_gradient_lifts_what_is_present_and_lowers_what_is_absent(loss, seed):
    logits, targets = draw(seed, words=8, scale=1.0, loss=loss)
    targets[:, :2] = torch.tensor([1, 0], dtype=targets.dtype)
    if loss is cross_entropy:
        targets[:, 2:] = targets[:, 2:].clamp(max=0)
    gradients = gradient(lambda x: loss(x, targets), logits)
    assert (gradients[targets == 1] <= 0).all()
    assert (gradients[targets == 0] >= 0).all()
    wrong = (logits[:, 0] < logits[:, 1])[:, None] & (torch.arange(8) < 2)  # the first word should be above the second
    assert (gradients[wrong] != 0).all() or loss is asymmetric_loss  # it drops negatives below its clip


@pytest.mark.parametrize("loss", WORD_BY_WORD)
def test_every_wrong_word_has_a_gradient(loss):
    logits, targets = draw(0, unknown=False, scale=1.0)
    gradients = gradient(lambda x: loss(x, targets), logits)
    assert (gradients[targets == 1] < 0).all()
    assert (gradients[(targets == 0) & (logits > 0)] > 0).all()


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("enabled", [True, False])
def test_the_grad_mode_of_the_caller_is_kept(loss, enabled):
    logits, targets = draw(0, loss=loss)
    with torch.set_grad_enabled(enabled):
        value = loss(logits.requires_grad_(), targets)
        assert torch.is_grad_enabled() == enabled
        with pytest.raises(ValueError, match="reduction must be"):  # the last thing that can go wrong
            loss(logits, targets, reduction="none")
        assert torch.is_grad_enabled() == enabled
    assert value.requires_grad == enabled
    with torch.inference_mode():
        assert loss(logits, targets) == value


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.float16, torch.float32, torch.float64])
def test_targets_of_any_type_mean_the_same_and_nothing_is_written_to(loss, dtype):
    logits, targets = draw(0, loss=loss)
    kept = logits.clone(), targets.clone()
    assert loss(logits, targets.to(dtype)) == loss(logits, targets)
    assert torch.equal(logits, kept[0])
    assert torch.equal(targets, kept[1])


# --------------------------------------------------------------------------------------------------------- asymmetric


@pytest.mark.parametrize("options", ASYMMETRIC_OPTIONS)
@law
@given(seed=seeds, images=st.integers(1, 4), words=st.integers(1, 6))
def test_asymmetric_loss_equals_the_scalar_loops(options, seed, images, words):
    logits, targets = draw(seed, images, words, scale=1.5)  # 1 − sigmoid(x) loses digits in fp32 when x is large
    expected = slow_asymmetric_loss(logits.double().tolist(), targets.tolist(), **options)
    assert asymmetric_loss(logits, targets, **options).item() == pytest.approx(expected, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("options", ASYMMETRIC_OPTIONS)
@law
@given(seed=seeds, scale=st.sampled_from([1.0, 4.0, 30.0, 1e4]))
def test_asymmetric_loss_and_its_gradient_equal_timms(options, seed, scale):
    logits, targets = draw(seed, unknown=False, scale=scale)
    known = {"gamma_neg": 4.0, "gamma_pos": 0.0, "clip": 0.05} | options
    theirs = timm.loss.AsymmetricLossMultiLabel(**known, reduction="sum", disable_torch_grad_focal_loss=True)
    assert_close(asymmetric_loss(logits, targets, **options), theirs(logits, targets), rtol=1e-5, atol=1e-5)
    ours = gradient(lambda x: asymmetric_loss(x, targets, **options), logits)
    assert_close(ours, gradient(lambda x: theirs(x, targets), logits), rtol=1e-5, atol=1e-6)


def test_asymmetric_loss_with_nothing_asymmetric_is_binary_cross_entropy():
    logits, targets = draw(0)
    plain = asymmetric_loss(logits, targets, gamma_neg=0, gamma_pos=0, clip=0)
    assert_close(plain, binary_cross_entropy(logits, targets), rtol=1e-5, atol=1e-5)


def test_negatives_below_the_margin_cost_nothing():
    easy = torch.logit(torch.tensor([[0.001, 0.03, 0.049]]))
    absent = torch.zeros(1, 3)
    assert asymmetric_loss(easy, absent, clip=0.05) == 0
    assert (gradient(lambda x: asymmetric_loss(x, absent, clip=0.05), easy) == 0).all()
    assert asymmetric_loss(easy, absent, clip=0.0) > 0


# ----------------------------------------------------------------------------------------------- binary cross-entropy


@law
@given(seed=seeds)
def test_binary_cross_entropy_equals_torch_on_the_known_entries(seed):
    logits, targets = draw(seed)
    known = targets != -1
    expected = F.binary_cross_entropy_with_logits(logits[known], targets[known].float(), reduction="sum")
    assert_close(binary_cross_entropy(logits, targets), expected, rtol=1e-5, atol=1e-5)


@law
@given(seed=seeds, smoothing=st.floats(0, 0.9))
def test_binary_cross_entropy_takes_soft_targets_and_smooths_towards_a_half(seed, smoothing):
    logits, targets = draw_soft(seed)
    known = targets != -1
    smooth = targets[known] * (1 - smoothing) + smoothing / 2
    expected = F.binary_cross_entropy_with_logits(logits[known], smooth, reduction="sum")
    assert_close(binary_cross_entropy(logits, targets, smoothing), expected, rtol=1e-5, atol=1e-5)


# ------------------------------------------------------------------------------------------------------------ two-way


@pytest.mark.parametrize("options", TWO_WAY_OPTIONS)
@law
@given(seed=seeds, images=st.integers(1, 4), words=st.integers(1, 6))
def test_two_way_loss_equals_the_scalar_loops(options, seed, images, words):
    logits, targets = draw(seed, images, words, scale=2.0)
    expected = slow_two_way_loss(logits.double().tolist(), targets.tolist(), **options)
    assert two_way_loss(logits, targets, **options).item() == pytest.approx(expected, rel=1e-4, abs=1e-5)


@pytest.mark.skipif(not hasattr(timm.loss, "TwoWayLoss"), reason="timm has it since 1.0.31 at the latest")
@pytest.mark.parametrize("options", TWO_WAY_OPTIONS)
@law
@given(seed=seeds)
def test_two_way_loss_and_its_gradient_equal_timms(options, seed):
    """timm's is the mean over images with something present, as the official code's."""
    logits, targets = draw(seed, images=5, unknown=False)
    targets[0] = 0
    num_images = (targets == 1).any(1).sum()
    theirs = timm.loss.TwoWayLoss(options.get("temperature_pos", 4.0), options.get("temperature_neg", 1.0))
    expected = theirs(logits, targets) * num_images
    assert_close(two_way_loss(logits, targets, **options), expected, rtol=1e-5, atol=1e-5)
    ours = gradient(lambda x: two_way_loss(x, targets, **options), logits)
    assert_close(ours, gradient(lambda x: theirs(x, targets) * num_images, logits), rtol=1e-4, atol=1e-5)


@law
@given(seed=seeds, words=st.integers(1, 6))
def test_two_way_loss_of_one_single_label_image_is_cross_entropy(seed, words):
    """The paper's starting point; with one image no column has both a present and an absent entry."""
    logits, targets = draw(seed, 1, words, loss=cross_entropy)
    two_way = two_way_loss(logits, targets, temperature_pos=1, temperature_neg=1)
    assert_close(two_way, cross_entropy(logits, targets), rtol=1e-5, atol=1e-5)


def test_two_way_loss_sees_images_as_it_sees_words():
    logits, targets = draw(1, images=6, words=6, unknown=False)
    assert (targets == 1).any(0).all() and (targets == 1).any(1).all()
    assert_close(two_way_loss(logits, targets), two_way_loss(logits.T, targets.T), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("loss", [two_way_loss, ranking_loss])
@pytest.mark.parametrize("target", [0, 1])
def test_without_something_present_and_something_absent_there_is_nothing_to_compare(loss, target):
    logits = draw(0)[0]
    targets = torch.full_like(logits, target)
    targets[:, 2] = -1
    assert loss(logits, targets) == 0
    with torch.autograd.set_detect_anomaly(True):
        assert (gradient(lambda x: loss(x, targets), logits) == 0).all()


# ------------------------------------------------------------------------------------------------------------ ranking


@pytest.mark.parametrize("options", RANKING_OPTIONS)
@pytest.mark.parametrize("grid", [False, True])
@law
@given(seed=seeds, images=st.integers(1, 4), words=st.integers(1, 8))
def test_ranking_loss_equals_the_loops_over_pairs(options, grid, seed, images, words):
    logits, targets = draw(seed, images, words, scale=2.0)
    logits = logits.mul(2).round().div(2) if grid else logits  # on the grid pairs tie, also at exactly the margin
    expected = slow_ranking_loss(logits.double().tolist(), targets.tolist(), **options)
    assert ranking_loss(logits, targets, **options).item() == pytest.approx(expected, rel=1e-5, abs=1e-5)


@law
@given(seed=seeds, shift=st.floats(-50, 50))
def test_ranking_loss_sees_differences_only(seed, shift):
    logits, targets = draw(seed)
    assert_close(ranking_loss(logits + shift, targets), ranking_loss(logits, targets), rtol=1e-4, atol=1e-4)
    gradients = gradient(lambda x: ranking_loss(x, targets), logits)
    assert_close(gradients.sum(1), torch.zeros(4), rtol=0, atol=1e-6)


def test_ranking_loss_is_zero_when_all_present_words_are_a_margin_above_all_absent_ones():
    logits, targets = torch.tensor([[3.0, 1.0, 1.9, 5.0]]), torch.tensor([[1, 0, 0, 1]])
    assert ranking_loss(logits, targets) == 0
    assert ranking_loss(logits, targets, margin=1.5).item() == pytest.approx(0.4 / 4)
    assert ranking_loss(logits, targets, margin=1.5, normalize_by="violations").item() == pytest.approx(0.4)


@pytest.mark.parametrize("normalize_by", ["pairs", "violations"])
def test_ranking_loss_of_many_words_is_right_and_builds_no_pairs(normalize_by):
    """7,186 words, half of them present: (B,N,N) would be 200 million numbers, and (B,N) is all that is ever made."""
    logits, targets = draw(0, images=4, words=7186, unknown=False)
    with _LargestTensor() as largest:
        value = ranking_loss(logits, targets, normalize_by=normalize_by)
    assert largest.size == logits.numel()
    expected = 0.0
    for row, target in zip(logits.double(), targets, strict=True):
        chunks = row[target == 1].split(256)
        hinges = [(1 + row[target == 0] - chunk[:, None]).clamp(min=0) for chunk in chunks]
        divisor = sum(int((part > 0).sum()) if normalize_by == "violations" else part.numel() for part in hinges)
        expected += sum(part.sum().item() for part in hinges) / divisor
    assert value.item() == pytest.approx(expected, rel=1e-5)


class _LargestTensor(TorchDispatchMode):
    """Notes the size of the largest tensor that any operation returns."""

    size = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.size = max([self.size, *(leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor))])
        return result


def test_ranking_loss_takes_any_layout_without_a_warning():
    logits, targets = draw(0, images=6, words=6)
    expected = ranking_loss(logits.T.contiguous(), targets.T.contiguous())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert ranking_loss(logits.T, targets.T) == expected


# ------------------------------------------------------------------------------------------------------ cross-entropy


@law
@given(seed=seeds, smoothing=st.floats(0, 0.9))
def test_cross_entropy_and_its_gradient_equal_torchs(seed, smoothing):
    logits, targets = draw(seed, unknown=False, loss=cross_entropy)
    classes = targets.argmax(1)

    def theirs(x):
        return F.cross_entropy(x, classes, label_smoothing=smoothing, reduction="sum")

    assert_close(cross_entropy(logits, targets, smoothing), theirs(logits), rtol=1e-5, atol=1e-5)
    ours = gradient(lambda x: cross_entropy(x, targets, smoothing), logits)
    assert_close(ours, gradient(theirs, logits), rtol=1e-5, atol=1e-6)


@law
@given(seed=seeds, smoothing=st.floats(0, 0.9))
def test_cross_entropy_of_soft_targets_equals_torchs_on_the_known_words(seed, smoothing):
    logits, targets = draw_soft(seed)
    expected = 0.0
    for row, target in zip(logits, targets, strict=True):
        known = target != -1
        expected += F.cross_entropy(row[known], target[known], label_smoothing=smoothing)
    assert_close(cross_entropy(logits, targets, smoothing), expected, rtol=1e-5, atol=1e-5)


def test_cross_entropy_takes_mixed_targets_in_half_precision():
    """Shares are rounded, and still sum to one for the check."""
    shares = torch.linspace(0, 1, 101, dtype=torch.bfloat16)
    targets = torch.stack([shares, 1 - shares, torch.zeros_like(shares)], 1)
    value = cross_entropy(torch.randn(101, 3), targets)
    assert torch.isfinite(value) and value.dtype == torch.float32


def test_cross_entropy_of_the_only_known_word_is_zero():
    logits, targets = torch.tensor([[-7.0, 2.0, 4.0]]), torch.tensor([[1, -1, -1]])
    assert cross_entropy(logits, targets) == 0
    assert (gradient(lambda x: cross_entropy(x, targets), logits) == 0).all()


@pytest.mark.parametrize(("row", "total"), [([1, 0, 1], 2), ([0, 0, -1], 0), ([0.5, 0.2, 0.0], 0.7)])
def test_cross_entropy_refuses_rows_that_are_not_single_label(row, total):
    targets = torch.tensor([[1, 0, 0], [-1, -1, -1], row])
    said = rf"targets must have exactly one 1 in a row .*, got a sum of {total} in row 2; use binary_cross_entropy"
    with pytest.raises(ValueError, match=said):
        cross_entropy(torch.zeros(3, 3), targets)


# ---------------------------------------------------------------------------------------------- building, and errors


def test_build_loss_binds_its_options():
    logits, targets = draw(0)
    built = build_loss("asymmetric", gamma_neg=2.0, clip=0.1, reduction="mean")
    assert built(logits, targets) == asymmetric_loss(logits, targets, 2.0, 0.0, 0.1, "mean")
    assert build_loss("binary_cross_entropy")(logits, targets) == binary_cross_entropy(logits, targets)
    assert build_loss("two_way", temperature_pos=2)(logits, targets) == two_way_loss(logits, targets, 2)
    built = build_loss("ranking", margin=2.0, normalize_by="violations")
    assert built(logits, targets) == ranking_loss(logits, targets, 2.0, "violations")
    logits, targets = draw(0, loss=cross_entropy)
    assert build_loss("cross_entropy", label_smoothing=0.1)(logits, targets) == cross_entropy(logits, targets, 0.1)


@pytest.mark.parametrize("loss", LOSSES)
def test_errors_say_what_is_wrong(loss):
    logits, targets = draw(0, loss=loss)
    with pytest.raises(ValueError, match=r"targets must have the shape of logits \(4, 6\), got \(4, 5\); select"):
        loss(logits, targets[:, :5])
    with pytest.raises(ValueError, match=r"logits must be \(B,N\), got \(6,\); give one row an image"):
        loss(logits[0], targets[0])
    with pytest.raises(ValueError, match=r"reduction must be 'sum' or 'mean', got 'none'; the papers use 'sum'"):
        loss(logits, targets, reduction="none")


@pytest.mark.parametrize("loss", HARD)
@pytest.mark.parametrize("value", [0.25, -0.5, 2.0, math.nan])
def test_losses_of_hard_targets_refuse_soft_ones(loss, value):
    logits, targets = torch.zeros(1, 3), torch.tensor([[1.0, value, -1.0]])
    said = rf"targets must be 1, 0 or -1 for this loss, got {value:g}; soft ones go with binary_cross_entropy or cross"
    with pytest.raises(ValueError, match=said):
        loss(logits, targets)


@pytest.mark.parametrize("loss", SOFT)
@pytest.mark.parametrize("value", [-0.3, 1.5, math.nan])
def test_soft_targets_outside_the_range_are_refused(loss, value):
    """−0.3 is what mixing an absent word with an unknown one makes."""
    with pytest.raises(ValueError, match=rf"targets must be in \[0,1\] or -1 .*, got {value:g}; mix no unknown"):
        loss(torch.zeros(1, 3), torch.tensor([[1.0, value, -1.0]]))


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("asl", {}, r"loss must be one of \['asymmetric', 'binary_cross_entropy', .*'two_way'\], got 'asl'; correct"),
        ("ranking", {"gap": 1}, r"options of loss 'ranking' must be among \['margin', .*\], got \['gap'\]; correct"),
        ("asymmetric", {"gamma_neg": -1}, r"gamma_neg must be a number in \[0,∞\), got -1; correct the option"),
        ("asymmetric", {"gamma_pos": math.nan}, r"gamma_pos must be a number in \[0,∞\), got nan; correct the option"),
        ("asymmetric", {"clip": 1}, r"clip must be a number in \[0,1\), got 1; correct the option"),
        ("binary_cross_entropy", {"label_smoothing": 1.0}, r"label_smoothing must be a number in \[0,1\), got 1.0; c"),
        ("cross_entropy", {"label_smoothing": "a"}, r"label_smoothing must be a number in \[0,1\), got 'a'; correct"),
        ("two_way", {"temperature_pos": 0}, r"temperature_pos must be a number in \(0,∞\), got 0; correct"),
        ("two_way", {"temperature_neg": math.inf}, r"temperature_neg must be a number in \(0,∞\), got inf; correct"),
        ("ranking", {"margin": -0.5}, r"margin must be a number in \[0,∞\), got -0.5; correct"),
        ("ranking", {"normalize_by": "words"}, r"normalize_by must be 'pairs' or 'violations', got 'words'; the paper"),
        ("two_way", {"reduction": "none"}, r"reduction must be 'sum' or 'mean', got 'none'; the papers use 'sum'"),
    ],
)
def test_build_loss_refuses_at_once_what_is_wrong(name, options, said):
    with pytest.raises(ValueError, match=said):
        build_loss(name, **options)
