"""Options of the one head: prior, reach, prompts, descriptions, global token; and what the trainer makes of them."""

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_matrix

from zsmld import ImageEncoder, MLDecoder, TextEncoder, Trainer, Vocabulary, ZeroShotClassifier, build_dataset
from zsmld.decoder import TrainingFreeScorer, build_decoder, join_words
from zsmld.features import FeatureDataset
from zsmld.losses import build_loss
from zsmld.trainer.knowledge import Teacher, calibrate_prior, candidate_similarities, opinions

C, T, D, K = 6, 5, 16, 7


def randn(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def close(a, b, tolerance=1e-5):
    torch.testing.assert_close(a, b, atol=tolerance, rtol=tolerance)


def conse(num_global_tokens=0, **options):
    scorer = TrainingFreeScorer(C, T, num_global_tokens, num_classes=K, **options)
    scorer.set_classes(randn(1, K, C), randn(2, K), randn(3, K, T))
    return scorer


def build(seed=0, prior=True, seen=4, num_global_tokens=0, **options):
    torch.manual_seed(seed)
    options = {"output": "cosine"} | options
    decoder = MLDecoder(
        C, text_dim=T, decoder_dim=D, num_heads=2, feedforward_dim=24, num_global_tokens=num_global_tokens,
        prior=conse(num_global_tokens) if prior else None, **options,
    )  # fmt: skip
    with torch.no_grad():  # nothing may hide behind a zero
        for parameter in decoder.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    words = randn(seed + 10, seen, T)
    decoder.standardize_words(words)
    if decoder.word_reach:
        decoder.remember_seen_words(words)
    return decoder.eval()


HEADS = {
    "prior": {},
    "prior, shared": {"output": "shared"},
    "prior, sum, two layers": {"output": "sum", "num_layers": 2},
    "reach": {"word_reach": 0.5},
    "prompts": {"prompts": True, "prior": False},
    "descriptions": {"descriptions": "attention", "prior": False},
    "all": {"word_reach": 0.3, "prompts": True, "descriptions": "attention", "num_global_tokens": 1},
    "unit positions": {"unit_positions": True},
}
every_head = pytest.mark.parametrize("options", HEADS.values(), ids=HEADS)


# ------------------------------------------------------------------------------------------------------------- laws


@every_head
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), num_words=st.integers(2, 6))
def test_a_words_logit_depends_on_itself_alone(options, seed, num_words):
    decoder = build(**options)
    spatial, words = randn(seed, 3, 4, C), randn(seed + 1, num_words, 2, T)
    words[0, 1] = 0  # a word with one description
    logits = decoder(spatial, words)
    order = torch.randperm(num_words, generator=torch.Generator().manual_seed(seed))
    close(decoder(spatial, words[order]), logits[:, order])
    close(decoder(spatial, words[:1]), logits[:, :1])
    first, rest = decoder.word_queries(words[:1, :1]), decoder.word_queries(words[1:])
    close(decoder.decode(spatial, *join_words(first, rest)), logits)  # chunks with other numbers of descriptions


@every_head
def test_training_and_evaluation_agree_without_dropout(options):
    decoder = build(dropout=0.0, **options)
    spatial, words = randn(1, 3, 4, C), randn(2, 5, T)
    close(decoder.train()(spatial, words), decoder.eval()(spatial, words))


@every_head
def test_a_checkpoint_rebuilds_it(options):
    decoder = build(**options)
    again = build_decoder(decoder.config()).eval()
    again.load_state_dict(decoder.state_dict())
    spatial, words = randn(1, 3, 4, C), randn(2, 5, T)
    assert torch.equal(again(spatial, words), decoder(spatial, words))
    assert again.config() == decoder.config()


def test_options_that_are_off_are_not_in_a_checkpoint():
    plain = MLDecoder(C, text_dim=T, decoder_dim=D, num_heads=2)
    assert not {"prior", "word_reach", "descriptions", "prompts", "unit_positions"} & set(plain.config())


# ------------------------------------------------------------------------------------------------------- the options


def test_the_prior_is_added():
    decoder = build()
    spatial, words = randn(1, 3, 4, C), randn(2, 5, T)
    alone = copy.deepcopy(decoder)
    alone.prior = None
    close(decoder(spatial, words), alone(spatial, words) + decoder.prior(spatial, words))


def test_a_fresh_head_says_almost_what_its_prior_says():
    torch.manual_seed(0)
    decoder = MLDecoder(C, text_dim=T, decoder_dim=D, num_heads=2, output="shared", prior=conse()).eval()
    spatial, words = randn(1, 3, 4, C), randn(2, 5, T)
    close(decoder(spatial, words), decoder.prior(spatial, words))
    cosine = MLDecoder(C, text_dim=T, decoder_dim=D, num_heads=2, output="cosine", prior=conse()).eval()
    assert (cosine(spatial, words) - cosine.prior(spatial, words)).abs().max() <= 1 + 1e-5  # temperature 1
    warm = MLDecoder(C, text_dim=T, decoder_dim=D, num_heads=2, output="cosine", prior=conse(), temperature=3.0)
    assert warm.log_temperature.exp().item() == pytest.approx(3)


def test_reach_is_one_at_seen_words_and_falls_with_the_distance():
    decoder, seen = build(word_reach=0.5), randn(10, 4, T)
    words = torch.cat([seen, randn(5, 3, T)])
    shares = decoder.word_queries(words)[2]
    close(shares[:4], torch.ones(4))
    near = F.normalize((words - seen.mean(0)) / seen.std(0), dim=1)
    expected = [float(np.exp((max(float(w @ s) for s in near[:4]) - 1) / 0.5)) for w in near[4:]]
    close(shares[4:], torch.tensor(expected))
    spatial, everywhere = randn(1, 3, 4, C), copy.deepcopy(decoder)
    everywhere.word_reach = 0.0
    own = everywhere(spatial, words) - decoder.prior(spatial, words)
    close(decoder(spatial, words), shares * own + decoder.prior(spatial, words))


def test_reach_needs_its_words():
    torch.manual_seed(0)
    decoder = MLDecoder(C, text_dim=T, decoder_dim=D, num_heads=2, output="cosine", prior=conse(), word_reach=0.5)
    with pytest.raises(ValueError, match="seen words must be remembered for word_reach, got none; call remember_seen"):
        decoder(randn(1, 2, 4, C), randn(2, 3, T))
    with pytest.raises(ValueError, match="word_reach must be positive to remember seen words, got 0"):
        build().remember_seen_words(randn(0, 2, T))


def test_prompts_subtract_the_cosine_with_the_negative_one():
    decoder = build(prior=False, prompts=True)
    spatial, words = randn(1, 3, 4, C), randn(2, 5, T)
    queries, standardized = decoder.word_queries(words)
    _, attended = decoder._decode(decoder.memory(spatial), queries)
    looked_at = F.normalize(decoder.cosine_proj(attended), dim=2)
    expected = torch.zeros(3, 5)
    for image in range(3):
        for word in range(5):
            seen, w = looked_at[image, word], standardized[word]
            positive = F.cosine_similarity(seen, w + decoder.positive_prompt, dim=0)
            negative = F.cosine_similarity(seen, w + decoder.negative_prompt, dim=0)
            expected[image, word] = decoder.log_temperature.exp() * (positive - negative) + decoder.cosine_bias
    close(decoder(spatial, words), expected)


def test_attention_over_descriptions_is_a_loop():
    decoder = build(prior=False, descriptions="attention")
    spatial, words = randn(1, 3, 4, C), randn(2, 4, 3, T)
    words[1, 2:] = 0
    words[2, 1:] = 0
    logits = decoder(spatial, words)
    plain = copy.deepcopy(decoder)
    plain.descriptions = "mean"
    plain.word_mean.zero_()
    plain.word_scale.fill_(1.0)  # below, words are standardised already
    for image in range(3):
        look = decoder.description_proj(spatial[image].mean(0))
        for word in range(4):
            several = words[word][(words[word] != 0).any(1)]
            several = (several - decoder.word_mean) / decoder.word_scale
            fit = torch.stack([look @ F.normalize(one, dim=0) for one in several]).softmax(0)
            weighted = sum(share * one for share, one in zip(fit, several, strict=True))
            close(logits[image, word], plain(spatial[image : image + 1], weighted[None])[0, 0])


def test_a_single_description_needs_no_attention():
    decoder = build(prior=False, descriptions="attention")
    spatial, words = randn(1, 3, 4, C), randn(2, 4, T)
    plain = copy.deepcopy(decoder)
    plain.descriptions = "mean"
    close(decoder(spatial, words), plain(spatial, words))


def test_attention_leaves_the_global_token_out():
    decoder = build(num_global_tokens=1)
    weights = decoder.attention(randn(1, 2, 10, C), randn(2, 3, T))
    assert weights.shape == (2, 2, 3, 9)
    close(weights.sum(3), torch.ones(2, 2, 3))


def test_unit_positions_do_not_see_lengths():
    decoder = build(prior=False, unit_positions=True)
    spatial, words = randn(1, 3, 4, C), randn(2, 5, T)
    close(decoder(spatial * 7, words), decoder(spatial, words))
    lengths = torch.rand(3, 4, 1, generator=torch.Generator().manual_seed(3)) + 0.1
    close(decoder(spatial * lengths, words), decoder(spatial, words))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"word_reach": 0.5}, "word_reach must be ≥ 0, and have a prior that decides beyond it, got 0.5 and no prior"),
        ({"word_reach": -1.0}, "word_reach must be ≥ 0"),
        ({"prompts": True, "output": "shared"}, "prompts and temperature must come with output='cosine' or 'sum'"),
        ({"temperature": 5.0, "output": "shared"}, "prompts and temperature must come with"),
        ({"temperature": 0.0}, "temperature must be positive, got 0.0"),
        ({"descriptions": "max"}, "descriptions must be 'mean' or 'attention', got 'max'; choose one"),
        ({"num_global_tokens": 2}, "num_global_tokens must be 0 or 1, got 2; take the image encoder's"),
        (
            {"prior": TrainingFreeScorer(T, T)},
            r"prior must have .*= \[6, 5, 0\], as the head has, got \[5, 5, 0\]; build it for the same",
        ),
    ],
)
def test_options_that_contradict_each_other(options, message):
    with pytest.raises(ValueError, match=message):
        MLDecoder(C, text_dim=T, decoder_dim=D, num_heads=2, **{"output": "cosine"} | options)


def test_class_mode_has_no_word_options():
    with pytest.raises(ValueError, match=r"class mode must come without \['prior'\], which need word queries"):
        MLDecoder(C, num_classes=3, decoder_dim=D, num_heads=2, prior=conse())
    assert MLDecoder(C, num_classes=3, decoder_dim=D, num_heads=2, num_global_tokens=1)(randn(0, 2, 4, C)).shape == (
        2,
        3,
    )


def test_an_image_embedding_needs_the_words_space():
    decoder = build(prior=False)
    with pytest.raises(ValueError, match="encoder_dim must be text_dim=5 to compare images with words, got 6; give"):
        decoder.image_embeddings(randn(1, 2, 4, C))
    shared = MLDecoder(C, text_dim=T, decoder_dim=D, num_heads=2)
    with pytest.raises(ValueError, match="output must be 'cosine' or 'sum' to embed an image in the words' space"):
        shared(randn(1, 2, 4, C), randn(2, 3, T), with_embedding=True)


# ------------------------------------------------------------------------------------------------------ the training


def vectors(tmp_path, words):
    path = tmp_path / "vectors.npz"
    np.savez(path, words=np.array(words), embeddings=randn(3, len(words), T).numpy())
    return TextEncoder(f"vectors:{path}")


@pytest.fixture
def parts(tmp_path):
    """Features whose words are what a classifier of K classes says of them, so that a prior knows them."""
    vocabulary = Vocabulary([f"w{n}" for n in range(K)], seen=[f"w{n}" for n in range(K - 2)])
    encoder = ImageEncoder("timm:test_resnet", pretrained=False, image_size=32, global_token=True)
    torch.manual_seed(0)
    weight = torch.randn(K, encoder.encoder_dim) / 4
    present = torch.rand(60, K) < 0.3
    positions = torch.randn(60, 3, encoder.encoder_dim) * 0.2 + (present.float() @ weight)[:, None]
    spatial = torch.cat([positions.mean(1, keepdim=True), positions], 1)
    targets = csr_matrix(present.numpy().astype(np.int8))
    dataset = FeatureDataset(spatial, targets, [str(n) for n in range(60)], vocabulary, "made", "train")
    text = vectors(tmp_path, vocabulary.words)
    scorer = TrainingFreeScorer(encoder.encoder_dim, T, 1, num_classes=K)
    scorer.set_classes(weight * 4, torch.zeros(K), text.encode_words(vocabulary.words))
    return encoder, text, dataset, scorer


def trainer(parts, decoder=None, **options):
    encoder, text, dataset, scorer = parts
    torch.manual_seed(0)
    head = MLDecoder(
        encoder.encoder_dim, text_dim=T, decoder_dim=D, num_heads=2, num_global_tokens=1, prior=copy.deepcopy(scorer),
        **{"output": "cosine", "dropout": 0.0} | (decoder or {}),
    )  # fmt: skip
    defaults = {
        "epochs": 2, "batch_size": 20, "lr": 1e-3, "ema_decay": 0.0, "freeze_image_encoder": True, "device": "cpu",
    }  # fmt: skip
    return Trainer(ZeroShotClassifier(encoder, head, text), dataset, text_encoder=text, **defaults | options)


@pytest.mark.parametrize("name", ["asymmetric", "binary_cross_entropy"])
def test_a_calibrated_prior_is_where_training_would_leave_it(parts, name):
    """No gradient is left. (The asymmetric loss's value may still fall: its focusing weights have no gradient.)"""
    _, text, dataset, scorer = parts
    words, targets = text.encode_words(dataset.vocabulary.seen), dataset.targets.toarray()[:, :5]

    def gradients():
        scorer.zero_grad()
        loss = build_loss(name)(scorer(dataset.spatial_embeddings, words), torch.from_numpy(targets)) / len(targets)
        loss.backward()
        return torch.cat([scorer.scale.grad, scorer.bias.grad[None]]).abs().max()

    before = gradients()
    candidates = candidate_similarities(scorer, dataset.spatial_embeddings.split(16), words)
    assert list(candidates) == [0.5, 1.0, 2.0, 3.0, 4.0]
    calibrate_prior(scorer, candidates, targets, build_loss(name))
    assert gradients() < 1e-3 < before


def test_training_learns_beside_the_prior_and_saves_all_of_it(parts, tmp_path):
    model = trainer(parts, {"word_reach": 0.5}, output=tmp_path / "run").fit()
    loaded = ZeroShotClassifier.from_pretrained(tmp_path / "run" / "model")
    spatial, words = parts[2].spatial_embeddings[:4], parts[1].encode_words(parts[2].vocabulary)
    close(loaded.decoder(spatial, words), model.decoder(spatial, words))
    assert loaded.decoder.prior.scale.tolist() != [10.0, 10.0] and len(loaded.decoder.seen_words) == 5
    assert torch.equal(model.decoder.prior.class_weight, parts[3].class_weight)  # it is knowledge, and not trained


def test_unseen_words_touch_neither_prior_nor_head(parts):
    """The same training with other labels of the unseen words gives the same bits."""
    encoder, text, dataset, scorer = parts
    first = trainer(parts, {"word_reach": 0.5}, teacher_words=3).fit().decoder.state_dict()
    changed = dataset.targets.toarray()
    changed[:, 5:] = 1 - changed[:, 5:]
    other = FeatureDataset(
        dataset.spatial_embeddings, csr_matrix(changed), dataset.ids, dataset.vocabulary, "made", "train"
    )
    second = trainer((encoder, text, other, scorer), {"word_reach": 0.5}, teacher_words=3).fit().decoder.state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_teacher_moves_the_head_towards_its_opinions(parts):
    """The head alone, without its prior, of class names that have no labels."""
    words = parts[3].class_embeddings
    spatial = parts[2].spatial_embeddings
    wanted = opinions(parts[3], spatial, words, torch.arange(K))

    def distance(**options):
        decoder = trainer(parts, {"temperature": 10.0}, epochs=40, lr=3e-3, calibrate_prior=False, **options)
        with torch.no_grad():
            decoder.model.decoder.prior.scale.zero_()
        decoder.model.decoder.prior.requires_grad_(False)
        head = decoder.fit().decoder
        with torch.no_grad():
            said = F.binary_cross_entropy_with_logits(head(spatial, words)[:, 5:], wanted[:, 5:])
            return float(said - F.binary_cross_entropy(wanted[:, 5:], wanted[:, 5:]))  # beyond the least there is

    assert distance(teacher_words=K, teacher_weight=3.0) < 0.5 * distance()


def test_teacher_words_are_drawn_by_the_step_alone():
    teacher = Teacher(conse(), randn(0, 9, T), torch.tensor([1.0] * 8 + [0.0]), 4, 0.3, seed=1)
    draws = [teacher.draw(step).tolist() for step in range(50)]
    assert draws == [teacher.draw(step).tolist() for step in range(50)]
    assert len({tuple(draw) for draw in draws}) > 20 and all(len(set(draw)) == 4 and 8 not in draw for draw in draws)


def test_opinions_are_the_highest_probability_of_any_view():
    scorer, spatial = conse(temperature=3.0), randn(4, 2, 3, C)
    found = opinions(scorer, spatial, scorer.class_embeddings, torch.arange(K))
    for image in range(2):
        views = torch.cat([spatial[image].mean(0, keepdim=True), spatial[image]])
        logits = views @ scorer.class_weight.T + scorer.class_bias
        close(found[image], logits.softmax(1).amax(0))  # the classifier's own, at temperature 1


def test_distillation_draws_what_the_words_saw_towards_the_image(parts):
    spatial, words = parts[2].spatial_embeddings, parts[1].encode_words(parts[2].vocabulary.seen)

    def likeness(**options):
        head = trainer(parts, epochs=20, lr=3e-3, **options).fit().decoder
        with torch.no_grad():
            _, embedding = head(spatial, words, with_embedding=True)
            return float((embedding * head.image_embeddings(spatial)).sum(1).mean())

    assert likeness(distillation=3.0) > likeness() + 0.1


def test_what_does_not_fit_is_said(parts, tmp_path):
    with pytest.raises(ValueError, match="a prior needs freeze_image_encoder=true: it knows the encoder as it is"):
        trainer(parts, freeze_image_encoder=False)
    with pytest.raises(ValueError, match="teacher_list names the words of a prior without a classifier, and only"):
        listed = tmp_path / "list.txt"
        listed.write_text("a\n")
        trainer(parts, teacher_words=2, teacher_list=str(listed))
    with pytest.raises(ValueError, match="teacher_list must be an existing file, one word a line, not found: nowhere"):
        trainer(parts, teacher_words=2, teacher_list="nowhere")
    with pytest.raises(ValueError, match="distillation needs output cosine or sum"):
        trainer(parts, {"output": "shared"}, distillation=1.0)
    with pytest.raises(ValueError, match="model must have a head to train, it has a training-free scorer"):
        encoder, text, dataset, scorer = parts
        Trainer(ZeroShotClassifier(encoder, scorer, text), dataset, freeze_image_encoder=True)


def test_an_encoder_that_is_frozen_stays_as_it_is(tmp_path):
    """Calibration reads training images, before the first step and in evaluation mode."""
    scenes = build_dataset("scenes", split="train", num_images=24)
    encoder = ImageEncoder("timm:test_resnet", pretrained=False, image_size=32)  # in training mode, as it is made
    text = vectors(tmp_path, scenes.vocabulary.words)
    scorer = TrainingFreeScorer(encoder.encoder_dim, T, num_classes=K)
    scorer.set_classes(randn(1, K, encoder.encoder_dim), randn(2, K), randn(3, K, T))
    before = copy.deepcopy(encoder.state_dict())
    head = MLDecoder(encoder.encoder_dim, text_dim=T, decoder_dim=D, num_heads=2, output="cosine", prior=scorer)
    options = {"epochs": 1, "batch_size": 8, "freeze_image_encoder": True, "device": "cpu", "teacher_words": 3}
    Trainer(ZeroShotClassifier(encoder, head, text), scenes, text_encoder=text, **options).fit()
    assert all(torch.equal(encoder.state_dict()[name], tensor) for name, tensor in before.items())


def test_bf16_leaves_the_prior_exact(parts):
    """Its scales are large; under autocast its similarities would be rounded to three digits."""
    decoder = build(output="shared", word_reach=0.5)
    with torch.no_grad():
        decoder.prior.scale.fill_(50.0)
        decoder.shared_fc.weight.zero_()
        decoder.shared_fc.bias.zero_()
    spatial, words = randn(1, 3, 4, C), randn(2, 5, T)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = decoder(spatial, words)
    close(rounded.float(), decoder(spatial, words), 1e-4)


def test_words_of_a_teacher_list_name_no_word_that_measures(tmp_path):
    from zsmld.trainer.preparation import _teacher_list

    path = tmp_path / "list.txt"
    path.write_text("zebra\nZebras\nzebra crossing\nhorses\ncow\n\ncow\n")
    trainer = SimpleNamespace(
        teacher_list=str(path),
        dataset=SimpleNamespace(vocabulary=Vocabulary(["dog", "zebra"], seen=["dog"])),
        heldout=("horse",),
    )
    assert _teacher_list(trainer) == ["cow"]


def test_a_prior_must_fit_its_head():
    with pytest.raises(ValueError, match=r"prior must have .* = \[6, 5, 1\], as the head has, got \[6, 5, 0\]"):
        MLDecoder(C, text_dim=T, decoder_dim=D, num_heads=2, num_global_tokens=1, prior=conse())
    for option, message in (
        ({"standardization": "per_word"}, "prior must have standardization='none' inside a head"),
        ({"descriptions": "max"}, "prior must have descriptions='mean' inside a head that takes their mean, got 'max'"),
    ):
        with pytest.raises(ValueError, match=message):
            MLDecoder(C, text_dim=T, decoder_dim=D, num_heads=2, prior=conse(**option))
    MLDecoder(C, text_dim=T, decoder_dim=D, num_heads=2, descriptions="attention", prior=conse(descriptions="max"))
