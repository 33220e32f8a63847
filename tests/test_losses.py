"""Losses: against scalar loops, timm and torch; unknown targets take no part."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import asymmetric_loss as slow_asymmetric_loss
from timm.loss import AsymmetricLossMultiLabel
from torch.testing import assert_close

from zsmld.losses import asymmetric_loss, binary_cross_entropy, build_loss

LOSSES = (asymmetric_loss, binary_cross_entropy)
OPTIONS = (
    {},
    {"gamma_neg": 0.0, "gamma_pos": 0.0, "clip": 0.0},
    {"gamma_neg": 2.0, "gamma_pos": 1.0, "clip": 0.2},
    {"gamma_neg": 4, "gamma_pos": 0, "clip": 0},
)

law = settings(max_examples=25)
seeds = st.integers(0, 2**32 - 1)


def draw(seed, images=4, words=6, unknown=True, scale=4.0):
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(images, words, generator=generator)
    targets = torch.randint(-1 if unknown else 0, 2, (images, words), generator=generator, dtype=torch.int8)
    return logits, targets


def gradient(loss, logits):
    logits = logits.clone().requires_grad_()
    loss(logits).backward()
    return logits.grad


@pytest.mark.parametrize("options", OPTIONS)
@law
@given(seed=seeds, images=st.integers(1, 4), words=st.integers(1, 6))
def test_asymmetric_loss_equals_the_scalar_loops(options, seed, images, words):
    logits, targets = draw(seed, images, words, scale=1.5)  # 1 − sigmoid(x) loses digits in fp32 when x is large
    expected = slow_asymmetric_loss(logits.double().tolist(), targets.tolist(), **options)
    assert asymmetric_loss(logits, targets, **options).item() == pytest.approx(expected, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("options", OPTIONS)
@law
@given(seed=seeds)
def test_asymmetric_loss_and_its_gradient_equal_timms(options, seed):
    logits, targets = draw(seed, unknown=False)
    known = {"gamma_neg": 4.0, "gamma_pos": 0.0, "clip": 0.05} | options
    timm = AsymmetricLossMultiLabel(**known, reduction="sum", disable_torch_grad_focal_loss=True)
    assert_close(asymmetric_loss(logits, targets, **options), timm(logits, targets), rtol=1e-5, atol=1e-5)
    ours = gradient(lambda x: asymmetric_loss(x, targets, **options), logits)
    theirs = gradient(lambda x: timm(x, targets), logits)
    assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_asymmetric_loss_with_nothing_asymmetric_is_binary_cross_entropy():
    logits, targets = draw(0)
    plain = asymmetric_loss(logits, targets, gamma_neg=0, gamma_pos=0, clip=0)
    assert_close(plain, binary_cross_entropy(logits, targets), rtol=1e-5, atol=1e-5)


@law
@given(seed=seeds)
def test_binary_cross_entropy_equals_torch_on_the_known_entries(seed):
    logits, targets = draw(seed)
    known = targets != -1
    expected = F.binary_cross_entropy_with_logits(logits[known], targets[known].float(), reduction="sum")
    assert_close(binary_cross_entropy(logits, targets), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("loss", LOSSES)
@law
@given(seed=seeds, value=st.sampled_from([-80.0, -3.0, 0.0, 3.0, 80.0]))
def test_unknown_targets_have_no_part_in_value_or_gradient(loss, seed, value):
    logits, targets = draw(seed)
    unknown = targets == -1
    moved = torch.where(unknown, value, logits)
    assert loss(moved, targets) == loss(logits, targets)
    gradients = gradient(lambda x: loss(x, targets), moved)
    assert (gradients[unknown] == 0).all()
    assert torch.equal(gradients[~unknown], gradient(lambda x: loss(x, targets), logits)[~unknown])


@pytest.mark.parametrize("loss", LOSSES)
def test_all_unknown_is_zero_with_zero_gradient(loss):
    logits = draw(0)[0]
    targets = torch.full_like(logits, -1)
    assert loss(logits, targets) == 0
    assert (gradient(lambda x: loss(x, targets), logits) == 0).all()


@pytest.mark.parametrize("loss", LOSSES)
def test_the_gradient_lifts_what_is_present_and_lowers_what_is_absent(loss):
    logits, targets = draw(0, unknown=False, scale=1.0)
    gradients = gradient(lambda x: loss(x, targets), logits)
    assert (gradients[targets == 1] < 0).all()
    assert (gradients[targets == 0] >= 0).all()
    assert (gradients[(targets == 0) & (logits > 0)] > 0).all()


def test_negatives_below_the_margin_cost_nothing():
    easy = torch.logit(torch.tensor([[0.001, 0.03, 0.049]]))
    absent = torch.zeros(1, 3)
    assert asymmetric_loss(easy, absent, clip=0.05) == 0
    assert (gradient(lambda x: asymmetric_loss(x, absent, clip=0.05), easy) == 0).all()
    assert asymmetric_loss(easy, absent, clip=0.0) > 0


@pytest.mark.parametrize("loss", LOSSES)
@law
@given(seed=seeds, images=st.integers(1, 5))
def test_sum_is_mean_times_images_and_mean_does_not_see_the_batch_size(loss, seed, images):
    logits, targets = draw(seed, images)
    total, mean = loss(logits, targets), loss(logits, targets, reduction="mean")
    assert_close(total, mean * images, rtol=1e-5, atol=1e-5)
    twice = loss(logits.repeat(2, 1), targets.repeat(2, 1), reduction="mean")
    assert_close(twice, mean, rtol=1e-5, atol=1e-5)
    rows = [loss(logits[i : i + 1], targets[i : i + 1]) for i in range(images)]
    assert_close(sum(rows), total, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_logits_are_computed_in_fp32(loss, dtype):
    """Also where fp16 could not hold the result: the sum here is above its largest number, 65504."""
    logits, targets = draw(0, images=900, words=40, scale=20.0)
    logits = logits.to(dtype)
    value = loss(logits, targets)
    assert value.dtype == torch.float32
    assert value > 65504
    assert_close(value, loss(logits.float(), targets), rtol=0, atol=0)
    assert torch.isfinite(gradient(lambda x: loss(x, targets), logits)).all()


@pytest.mark.parametrize("loss", LOSSES)
def test_extreme_logits_give_finite_values_and_gradients(loss):
    logits = torch.tensor([[-1e4, 1e4, -1e4, 1e4, 0.0]])
    targets = torch.tensor([[1, 0, 0, 1, -1]])
    assert torch.isfinite(loss(logits, targets))
    assert torch.isfinite(gradient(lambda x: loss(x, targets), logits)).all()


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("enabled", [True, False])
def test_the_grad_mode_of_the_caller_is_kept(loss, enabled):
    logits, targets = draw(0)
    with torch.set_grad_enabled(enabled):
        value = loss(logits.requires_grad_(), targets)
        assert torch.is_grad_enabled() == enabled
    assert value.requires_grad == enabled


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.float32])
def test_targets_of_any_type_mean_the_same_and_nothing_is_written_to(loss, dtype):
    logits, targets = draw(0)
    kept = logits.clone(), targets.clone()
    assert loss(logits, targets.to(dtype)) == loss(logits, targets)
    assert torch.equal(logits, kept[0])
    assert torch.equal(targets, kept[1])


def test_build_loss_binds_its_options():
    logits, targets = draw(0)
    built = build_loss("asymmetric", gamma_neg=2.0, clip=0.1, reduction="mean")
    assert built(logits, targets) == asymmetric_loss(logits, targets, 2.0, 0.0, 0.1, "mean")
    assert build_loss("binary_cross_entropy")(logits, targets) == binary_cross_entropy(logits, targets)


def test_errors_say_what_is_wrong():
    logits, targets = draw(0)
    with pytest.raises(ValueError, match=r"loss must be one of \['asymmetric', 'binary_cross_entropy'.*\], got 'asl'"):
        build_loss("asl")
    for loss in LOSSES:
        with pytest.raises(ValueError, match=r"targets must have the shape of logits \(4, 6\), got \(4, 5\); select"):
            loss(logits, targets[:, :5])
        with pytest.raises(ValueError, match=r"reduction must be 'sum' or 'mean', got 'none'; the papers use 'sum'"):
            loss(logits, targets, reduction="none")
