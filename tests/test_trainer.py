"""Trainer: it learns, it never sees an unseen word, and what it saved stays."""

import csv
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse import csr_matrix
from sklearn.metrics import average_precision_score
from torch import Tensor

from zsmld import Evaluator, Trainer, Vocabulary, ZeroShotClassifier
from zsmld.augmentation import QueryAugmentation
from zsmld.decoder import MLDecoder
from zsmld.features import FeatureCache
from zsmld.images import ImageAugmentation
from zsmld.losses import asymmetric_loss
from zsmld.trainer.captions import build_captions
from zsmld.trainer.optimization import build_scheduler, learning_rate_factor, parameter_groups
from zsmld.trainer.options import settings_of
from zsmld.trainer.order import Order
from zsmld.trainer.selection import Selection
from zsmld.trainer.words import rows_with

MakeModel = Callable[..., Any]
WORDS = ("dog", "cat", "red car", "beach", "boat", "tree")
SEEN = WORDS[:4]


class Toys:
    """Tensor images (3,64,64): each word brightens its own place, so that the words can be learnt."""

    name, split, missing = "toys", "train", 0

    def __init__(
        self, num_images: int = 24, seed: int = 0, seen: tuple[str, ...] = SEEN, bad: tuple[int, ...] = ()
    ) -> None:
        rng = np.random.default_rng(seed)
        self.vocabulary = Vocabulary(WORDS, seen=seen)
        dense = (rng.random((num_images, len(WORDS))) < 0.35).astype(np.int8)
        dense[np.arange(num_images), np.arange(num_images) % 4] = 1  # every image has a seen word
        self.images = torch.from_numpy(rng.standard_normal((num_images, 3, 64, 64)).astype(np.float32)) * 0.1
        for row, label in np.argwhere(dense):
            self.images[row, label % 3, 10 * label : 10 * label + 14] += 2
        self.targets, self.bad = csr_matrix(dense), bad
        self.ids = [f"toy {i}" for i in range(num_images)]
        self.poison_after: int | None = None
        self.taken, self.counts = 0, Counter[int]()

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, row: int) -> dict[str, Any]:
        self.taken += 1
        self.counts[row] += 1
        if row in self.bad:
            raise ValueError(f"image must be readable, cannot decode {self.ids[row]}")
        image = self.images[row]
        if self.poison_after is not None and self.taken > self.poison_after:
            image = image * float("nan")
        return {"image": image, "targets": self.targets[row].toarray()[0], "id": self.ids[row]}

    def with_targets(self, change: Callable[[np.ndarray], None]) -> "Toys":
        """The same images with other targets."""
        other = Toys(len(self))
        other.images, other.vocabulary = self.images, self.vocabulary
        dense = self.targets.toarray()
        change(dense)
        other.targets = csr_matrix(dense)
        return other


def train(model: Any, dataset: Any, **options: Any) -> Trainer:
    small = {"epochs": 2, "batch_size": 8, "lr": 1e-3, "ema_decay": 0.0, "device": "cpu"}
    trainer = Trainer(model, dataset, **(small | options))
    trainer.fit()
    return trainer


def weights(trainer: Trainer) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return list(a) == list(b) and all(torch.equal(a[name], b[name]) for name in a)


# -------------------------------------------------------------------------------------------------------------- laws


@pytest.mark.parametrize("loss", ["asymmetric", "binary_cross_entropy"])
def test_a_few_steps_reduce_the_loss(loss: str, make_model: MakeModel) -> None:
    history = train(make_model(remember=False), Toys(), epochs=20, loss=loss, schedule="constant", lr=3e-3).history
    assert len(history) == 20 and all(np.isfinite(record["loss"]) for record in history)
    assert history[-1]["loss"] < 0.7 * history[0]["loss"]


def test_seeded_runs_are_bit_identical_and_others_are_not(make_model: MakeModel) -> None:
    options = {"augmentation": QueryAugmentation(noise=0.1, mixed=2, random_queries=2, word_dropout=0.3), "seed": 5}
    one, two = (weights(train(make_model(), Toys(), **options)) for _ in range(2))
    assert same(one, two)
    assert not same(one, weights(train(make_model(), Toys(), **options | {"seed": 6})))


def test_labels_of_unseen_words_cannot_influence_training(make_model: MakeModel) -> None:
    data, val = Toys(), Toys(12, seed=1)

    def zero(dense: np.ndarray) -> None:
        dense[:, 4:] = 0

    def unknown(dense: np.ndarray) -> None:
        dense[:, 4:] = -1

    def permute(dense: np.ndarray) -> None:
        dense[:, 4:] = np.random.default_rng(0).permutation(dense[:, 4:])

    options = {"holdout_words": 0.25, "ema_decay": 0.9}
    reference = train(make_model(remember=False), data, val_dataset=val, **options)
    for change in (zero, unknown, permute):
        changed = train(
            make_model(remember=False), data.with_targets(change), val_dataset=val.with_targets(change), **options
        )
        assert same(weights(changed), weights(reference))
        for a, b in zip(changed.history, reference.history, strict=True):
            assert {k: v for k, v in a.items() if k != "images_per_second"} == {
                k: v for k, v in b.items() if k != "images_per_second"
            }
    other = train(make_model(remember=False), data.with_targets(lambda dense: dense[:, 0].fill(1)), **options)
    assert not same(weights(other), weights(reference))  # labels of seen words do


def test_unseen_words_are_not_even_known_to_the_trained_model(make_model: MakeModel) -> None:
    trainer = train(make_model(remember=False), Toys())
    assert trainer.model.vocabulary.words == SEEN and trainer.model.vocabulary.unseen == ()
    expected = trainer.model.encode_words(list(SEEN))
    torch.testing.assert_close(trainer.model.decoder.word_mean, expected.mean(0))
    torch.testing.assert_close(trainer.model.decoder.word_scale, expected.std(0))


def test_images_with_unseen_words_only_are_left_out(make_model: MakeModel) -> None:
    data = Toys(16)

    def strip(dense: np.ndarray) -> None:
        dense[8:] = (0, 0, 0, 0, 1, 1)

    stripped = data.with_targets(strip)
    train(make_model(), stripped, epochs=1)
    assert stripped.taken == 8
    with pytest.raises(ValueError, match="dataset must have images with a seen word, got none"):
        train(make_model(), data.with_targets(lambda dense: dense[:, :4].fill(0)))


def test_held_out_words_are_seen_and_never_trained(make_model: MakeModel) -> None:
    data, val = Toys(), Toys(12, seed=1)
    reference = train(make_model(remember=False), data, val_dataset=val, holdout_words=0.25, epochs=1)
    (heldout,) = reference.heldout
    assert heldout in SEEN
    label = WORDS.index(heldout)

    def flip(dense: np.ndarray) -> None:
        dense[:, label] = 1 - dense[:, label]

    changed = train(make_model(remember=False), data.with_targets(flip), val_dataset=val, holdout_words=0.25, epochs=1)
    rows = [set(rows_with(t.dataset.targets, t._words.labels).tolist()) for t in (reference, changed)]
    assert rows[0] == rows[1] and same(weights(changed), weights(reference))
    trained = reference.model.encode_words([word for word in SEEN if word != heldout])
    torch.testing.assert_close(reference.model.decoder.word_mean, trained.mean(0))
    assert set(reference.history[0]) >= {"seen_mean_average_precision", "heldout_mean_average_precision"}
    choices = {Trainer(make_model(), data, val, holdout_words=0.5, seed=s, device="cpu").heldout for s in range(8)}
    assert len(choices) > 1 and all(len(c) == 2 and set(c) < set(SEEN) for c in choices)
    assert Trainer(make_model(), data, holdout_words=0.5, device="cpu").heldout == ()  # nothing to select on


# ------------------------------------------------------------------------------------------------------- frozen, cached


def test_frozen_encoder_keeps_weights_and_statistics(make_model: MakeModel) -> None:
    model = make_model()
    before = {name: tensor.clone() for name, tensor in model.image_encoder.state_dict().items()}
    assert any("running_mean" in name for name in before)
    train(model, Toys(), freeze_image_encoder=True, ema_decay=0.9)
    assert same(before, model.image_encoder.state_dict())
    train(model, Toys(), freeze_image_encoder=True, features=FeatureCache())
    assert same(before, model.image_encoder.state_dict())
    thawed = train(make_model(), Toys())
    changed = {n for n, t in thawed.model.image_encoder.state_dict().items() if not torch.equal(t, before[n])}
    assert any("running_mean" in name for name in changed) and any(name.endswith("weight") for name in changed)


def test_cached_features_train_the_same_head(make_model: MakeModel) -> None:
    found = []
    for cache in (False, True):
        model = make_model(dropout=0.0)
        options = {
            "freeze_image_encoder": True,
            "features": FeatureCache() if cache else None,
            "schedule": "constant",
            "lr": 1e-4,
        }
        found.append(train(model, Toys(bad=(3,)), val_dataset=Toys(12, seed=1), **options))
    assert found[0].unreadable[0][0] == found[1].unreadable[0][0] == "toy 3"
    for a, b in zip(found[0].history, found[1].history, strict=True):
        # The unreadable row is skipped in its step without the cache, and replaced with it: losses differ a little.
        assert a["loss"] == pytest.approx(b["loss"], rel=0.15)
    exact = []
    for cache in (False, True):
        options = {
            "freeze_image_encoder": True,
            "features": FeatureCache() if cache else None,
            "schedule": "constant",
            "lr": 1e-4,
        }
        exact.append(train(make_model(dropout=0.0), Toys(), **options))
    assert [r["loss"] for r in exact[0].history] == pytest.approx([r["loss"] for r in exact[1].history], rel=2e-3)
    words = exact[0].model.word_embeddings
    with torch.no_grad():
        logits = [t.model(Toys().images[:4], words) for t in exact]
    torch.testing.assert_close(logits[0], logits[1], rtol=0, atol=2e-2)


# ---------------------------------------------------------------------------------------------------------- selection


def test_the_best_epoch_is_kept_and_saved(
    make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted, snapshots = iter([0.1, 0.9, 0.3]), []

    def measure(self: Selection, model: Any, *rest: Any) -> dict[str, float]:
        snapshots.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        return {"heldout_mean_average_precision": next(scripted)}

    monkeypatch.setattr(Selection, "measure", measure)
    trainer = train(
        make_model(), Toys(), val_dataset=Toys(8, seed=1), holdout_words=0.25, epochs=3, output=tmp_path, ema_decay=0.5
    )
    assert trainer.best_epoch == 2 and len(snapshots) == 3
    assert same(weights(trainer), snapshots[1]) and not same(snapshots[1], snapshots[2])
    assert same(ZeroShotClassifier.from_pretrained(tmp_path / "model").state_dict(), snapshots[1])
    assert not trainer.model.training


def test_without_held_out_words_the_last_epoch_is_kept(make_model: MakeModel, tmp_path: Path) -> None:
    trainer = train(make_model(remember=False), Toys(), epochs=3, output=tmp_path)
    assert trainer.best_epoch == 3
    restored = ZeroShotClassifier.from_pretrained(tmp_path / "model")
    assert same(restored.state_dict(), weights(trainer)) and restored.vocabulary.words == SEEN


def test_log_has_one_row_an_epoch(make_model: MakeModel, tmp_path: Path) -> None:
    trainer = train(make_model(), Toys(), val_dataset=Toys(8, seed=1), holdout_words=0.25, epochs=3, output=tmp_path)
    with (tmp_path / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert [float(row["loss"]) for row in rows] == [record["loss"] for record in trainer.history]
    assert set(rows[0]) == {
        "epoch",
        "step",
        "loss",
        "lr",
        "images_per_second",
        "seen_mean_average_precision",
        "heldout_mean_average_precision",
    }


def test_averaged_weights_do_not_change_the_training(make_model: MakeModel) -> None:
    raw, averaged = (train(make_model(), Toys(), ema_decay=decay) for decay in (0.0, 0.9))
    assert [r["loss"] for r in raw.history] == [r["loss"] for r in averaged.history]
    assert not same(weights(raw), weights(averaged))


# -------------------------------------------------------------------------------------------------------- what fails


def test_nan_loss_names_the_last_good_model_and_leaves_it(make_model: MakeModel, tmp_path: Path) -> None:
    data = Toys()
    data.poison_after = 24  # the first epoch is sound
    with pytest.raises(ValueError, match=rf"loss must be a number, got nan at step 3 of epoch 2; .*: {tmp_path}/model"):
        train(make_model(), data, epochs=3, output=tmp_path)
    restored = ZeroShotClassifier.from_pretrained(tmp_path / "model")
    assert all(torch.isfinite(tensor).all() for tensor in restored.state_dict().values())
    data.poison_after, data.taken = 0, 0
    with pytest.raises(ValueError, match=r"at step 0 of epoch 1; lower lr \(now 0\.001\).*Last good model: none yet"):
        train(make_model(), data, output=tmp_path / "other")
    assert not (tmp_path / "other" / "model").exists()


def test_unreadable_images_are_skipped_and_listed(make_model: MakeModel) -> None:
    trainer = train(make_model(), Toys(bad=(3, 5)), epochs=1)
    assert sorted(trainer.unreadable) == [
        (f"toy {i}", f"image must be readable, cannot decode toy {i}") for i in (3, 5)
    ]


def test_an_unreadable_first_batch_brings_no_warning(make_model: MakeModel) -> None:
    train(make_model(), Toys(bad=tuple(range(23))), batch_size=4, epochs=1)


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
def test_no_readable_image_at_all(make_model: MakeModel) -> None:
    with pytest.raises(ValueError, match=r"dataset must have readable images, none could be read; first: .*toy"):
        train(make_model(), Toys(bad=tuple(range(24))))


def test_all_option_errors_come_at_once(make_model: MakeModel) -> None:
    with pytest.raises(ValueError, match="Trainer options must fit together, got: ") as caught:
        Trainer(
            make_model(),
            Toys(),
            epochs=0,
            lr=-1,
            schedule="steps",
            precision="int8",
            ema_decay=1,
            features=FeatureCache(),
            optimizer="adamm",
            trackers=("wandbee",),
            layer_decay=0,
            loss_options={"reduction": "max"},
        )
    for part in (
        "log_every and checkpoint_every must be at least 1",
        "lr must be positive",
        "layer_decay must be in (0, 1], got 0",
        "optimizer must be one of timm's, such as 'adamw', 'adam' or 'lamb', got 'adamm'",
        "trackers must be among ['tensorboard', 'wandb'], got 'wandbee'",
        "loss_options must have reduction 'mean' or 'sum', got 'max'",
        "schedule must be 'one_cycle', 'cosine' or 'constant', got 'steps'",
        "precision must be 'fp32', 'bf16' or 'fp16', got 'int8'",
        "ema_decay, holdout_words and warmup must be in [0, 1)",
        "features need freeze_image_encoder=true",
    ):
        assert part in str(caught.value)
    with pytest.raises(ValueError, match=r"loss must be one of \['asymmetric', .*\], got 'hinge'"):
        Trainer(make_model(), Toys(), loss="hinge")
    with pytest.raises(ValueError, match="device must be auto or one of"):
        train(make_model(), Toys(), device="tpu")


def test_unknown_loss_options_are_refused_at_construction(make_model: MakeModel) -> None:
    with pytest.raises(ValueError, match="gama"):
        train(make_model(), Toys(), loss_options={"gama": 1})


def test_words_that_do_not_fit(make_model: MakeModel) -> None:
    with pytest.raises(ValueError, match="dataset must have seen words to train on, got none"):
        Trainer(make_model(), Toys(seen=()))
    with pytest.raises(ValueError, match="dataset must have 6 seen words for class queries, got 4 seen of 6"):
        Trainer(make_model(num_classes=6), Toys())


# ----------------------------------------------------------------------------------------------------- other settings


def test_class_mode_trains(make_model: MakeModel) -> None:
    model = make_model(num_classes=6, num_groups=3)
    history = train(model, Toys(seen=WORDS), val_dataset=Toys(8, seen=WORDS), epochs=6, schedule="constant").history
    assert history[-1]["loss"] < 0.8 * history[0]["loss"]
    assert model.vocabulary.words == WORDS and "seen_mean_average_precision" in history[0]


def test_steps_per_epoch_visit_every_image_equally(make_model: MakeModel) -> None:
    data = Toys(12)
    train(make_model(), data, epochs=3, steps_per_epoch=2, batch_size=6)
    assert data.taken == 36 and data.counts == dict.fromkeys(range(12), 3)


@given(
    num_rows=st.integers(1, 30), batch=st.sampled_from([1, 2, 6, 12]), seed=st.integers(0, 99), cut=st.integers(0, 9)
)
def test_an_order_is_a_function_of_the_step(num_rows: int, batch: int, seed: int, cut: int) -> None:
    order = Order(np.arange(num_rows) * 3, batch, seed)
    rows, seeds = order.steps(0, 10)
    for whole, parts in (
        (rows, (order.steps(0, cut)[0], order.steps(cut, 10)[0])),
        (seeds, (seeds[:cut], seeds[cut:])),
    ):
        assert np.array_equal(np.concatenate(parts), whole)
    flat = rows.ravel()
    for start in range(0, len(flat) - num_rows + 1, num_rows):  # every pass has every image once
        assert sorted(flat[start : start + num_rows]) == list(range(0, 3 * num_rows, 3))
    assert len(set(seeds.ravel().tolist())) == seeds.size and seeds.min() >= 0


@given(world=st.sampled_from([1, 2, 3]), parts=st.sampled_from([1, 2]), seed=st.integers(0, 9))
def test_processes_and_parts_share_each_step(world: int, parts: int, seed: int) -> None:
    order = Order(np.arange(20), 12, seed)
    whole = order.steps(2, 5)[0]
    shares = [[rows for rows, _ in order.share(2, 5, process, world, parts)] for process in range(world)]
    assert {len(share) for share in shares} == {3 * parts}
    for step in range(3):
        together = [share[step * parts + part] for part in range(parts) for share in shares]
        assert np.concatenate(together).tolist() == whole[step].tolist()


def test_schedules_rise_and_end_near_zero() -> None:
    for name in ("one_cycle", "cosine", "constant"):
        parameter = torch.nn.Parameter(torch.zeros(1))
        optimizer = torch.optim.AdamW([{"params": [parameter], "lr": 2.0}])
        scheduler, rates, momenta = build_scheduler(name, optimizer, 100, 0.2), [], []
        for _ in range(100):
            rates.append(optimizer.param_groups[0]["lr"])
            momenta.append(optimizer.param_groups[0]["betas"][0])
            optimizer.step()
            scheduler.step()
        if name == "constant":
            assert set(rates) == {2.0}
            continue
        peak = int(np.argmax(rates))
        assert max(rates) == pytest.approx(2) and abs(peak - 20) <= 1
        assert rates[0] <= 0.09 and rates[-1] < 0.002
        assert rates[: peak + 1] == sorted(rates[: peak + 1]) and rates[peak:] == sorted(rates[peak:], reverse=True)
        # The official recipes' OneCycleLR moves β₁ the other way; the cosine leaves it alone.
        expected = (0.85, 0.95) if name == "one_cycle" else (0.9, 0.9)
        assert (min(momenta), max(momenta)) == pytest.approx(expected, abs=1e-3)


def test_matrices_decay_and_vectors_do_not(make_model: MakeModel) -> None:
    head, head_free, decayed, free = parameter_groups(make_model(), 1e-3, 0.1, encoder_lr_scale=0.5)
    assert head["weight_decay"] == decayed["weight_decay"] == 0.1
    assert head_free["weight_decay"] == free["weight_decay"] == 0
    assert (head["lr"], head_free["lr"], decayed["lr"], free["lr"]) == (1e-3, 1e-3, 5e-4, 5e-4)
    assert all(p.ndim > 1 for p in decayed["params"]) and all(p.ndim <= 1 for p in free["params"])


def test_clipping_and_bf16_train(make_model: MakeModel) -> None:
    trainer = train(make_model(), Toys(), precision="bf16", max_grad_norm=0.5, schedule="cosine")
    assert all(tensor.dtype != torch.bfloat16 for tensor in trainer.model.state_dict().values())
    assert np.isfinite(trainer.history[-1]["loss"])


def test_a_model_trained_in_bf16_scores_like_its_saved_copy(make_model: MakeModel, tmp_path: Path) -> None:
    trainer = train(make_model(), Toys(), precision="bf16", output=tmp_path, epochs=1)
    restored = ZeroShotClassifier.from_pretrained(tmp_path / "model")
    images, words = Toys().images[:2], restored.word_embeddings
    with torch.no_grad():
        torch.testing.assert_close(trainer.model(images, words), restored(images, words), rtol=0, atol=1e-5)


def test_captions_are_queries_when_the_dataset_has_them(make_model: MakeModel) -> None:
    data = Toys()
    data.captions = {"bird": ["dog", "cat"], "lamp": ["beach", "boat"]}
    encoder = make_model().build_text_encoder("cpu")
    captions = build_captions(data, np.arange(4), np.arange(len(data)), encoder)
    assert captions is not None
    assert captions.texts == ["bird", "lamp"] and captions.embeddings.shape == (2, 16)
    assert captions.needed.tolist() == [1, 1]  # any of its words makes it true; an unseen word tells nothing
    assert captions.words.tolist() == [[True, True, False, False], [False, False, False, True]]


# --------------------------------------------------------------------------- what a step and a selection really compute


def test_the_first_loss_is_the_mean_over_images_of_the_seeded_batch(make_model: MakeModel) -> None:
    data, options = Toys(), {"steps_per_epoch": 1, "epochs": 1, "seed": 3, "standardize_words": False}
    model, twin = (make_model(dropout=0.0) for _ in range(2))
    reported = train(model, data, **options).history[0]["loss"]
    rows = np.random.default_rng([3, 0]).permutation(len(data))[:8]
    logits = twin.train()(data.images[rows], twin.encode_words(SEEN))
    expected = asymmetric_loss(logits, torch.from_numpy(data.targets.toarray()[rows][:, :4])) / 8
    assert reported == pytest.approx(expected.item(), rel=1e-5)


def test_selection_figures_are_the_average_precisions_of_their_words(make_model: MakeModel) -> None:
    """Held-out and trained words are not mixed up: both figures by hand, from the model of the only epoch."""
    val = Toys(30, seed=1)
    trainer = train(make_model(remember=False), Toys(), val_dataset=val, holdout_words=0.5, epochs=1)
    model = trainer.model.eval()
    with torch.no_grad():
        scores = model(val.images, model.encode_words(WORDS)).numpy()
    targets = val.targets.toarray()
    aps = {w: average_precision_score(targets[:, i], scores[:, i]) for i, w in enumerate(WORDS)}
    assert len(trainer.heldout) == 2
    heldout = np.mean([aps[word] for word in trainer.heldout])
    trained = np.mean([aps[word] for word in SEEN if word not in trainer.heldout])
    assert abs(heldout - trained) > 1e-3, "the two figures must differ for this test to mean anything"
    assert trainer.history[0]["heldout_mean_average_precision"] == pytest.approx(heldout, abs=1e-6)
    assert trainer.history[0]["seen_mean_average_precision"] == pytest.approx(trained, abs=1e-6)


def test_only_words_that_occur_in_the_validation_images_are_held_out(make_model: MakeModel, tmp_path: Path) -> None:
    def empty_two(dense: np.ndarray) -> None:
        dense[:, :2] = 0

    def empty(dense: np.ndarray) -> None:
        dense[:] = 0

    val = Toys(12, seed=1)
    for seed in range(5):
        trainer = Trainer(make_model(), Toys(), val.with_targets(empty_two), holdout_words=0.5, seed=seed)
        assert len(trainer.heldout) == 1 and set(trainer.heldout) < {"red car", "beach"}  # half of them stay
    trainer = train(make_model(), Toys(), val_dataset=val.with_targets(empty), holdout_words=0.5, epochs=3)
    assert trainer.heldout == () and trainer.best_epoch == 3
    assert len(Trainer(make_model(), Toys(), val, holdout_words=0.01).heldout) == 1


def test_a_validation_set_of_other_words_is_refused(make_model: MakeModel) -> None:
    other = Toys(12, seed=1)
    other.vocabulary = Vocabulary(WORDS[::-1], seen=SEEN)
    with pytest.raises(ValueError, match="val_dataset must have the vocabulary of dataset"):
        Trainer(make_model(), Toys(), other)


def test_the_learning_rate_follows_the_schedule(make_model: MakeModel) -> None:
    options = {"epochs": 4, "steps_per_epoch": 2, "schedule": "cosine", "warmup": 0.25, "lr": 2e-3}
    rates = [record["lr"] for record in train(make_model(), Toys(), **options).history]
    expected = [2e-3 * learning_rate_factor("cosine", step / 8, 0.25) for step in (2, 4, 6, 8)]
    assert rates == pytest.approx(expected) and len(set(rates)) == 4


def test_every_step_draws_its_own_augmentation(make_model: MakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Tensor] = []
    original = QueryAugmentation.__call__

    def spy(self: QueryAugmentation, words: Tensor, *rest: Any) -> Any:
        queries, targets = original(self, words, *rest)
        drawn.append(queries.clone())
        return queries, targets

    monkeypatch.setattr(QueryAugmentation, "__call__", spy)
    for _ in range(2):
        train(make_model(), Toys(), augmentation=QueryAugmentation(noise=0.5), epochs=2, steps_per_epoch=2)
    assert len(drawn) == 8
    assert all(torch.equal(a, b) for a, b in zip(drawn[:4], drawn[4:], strict=True))
    assert all(not torch.equal(drawn[0], other) for other in drawn[1:4])


def test_augmented_queries_are_what_is_trained_on(make_model: MakeModel) -> None:
    plain, noisy = (
        weights(train(make_model(), Toys(), augmentation=QueryAugmentation(noise=noise))) for noise in (0.0, 1.0)
    )
    assert not same(plain, noisy)


def test_clipping_changes_the_training(make_model: MakeModel) -> None:
    free, clipped = (weights(train(make_model(), Toys(), max_grad_norm=norm)) for norm in (0.0, 1e-6))
    assert not same(free, clipped)


def test_precision_is_what_the_network_computes_in(make_model: MakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    inside: list[torch.dtype] = []
    original = MLDecoder.memory

    def spy(self: MLDecoder, spatial_embeddings: Tensor) -> Tensor:
        memory = original(self, spatial_embeddings)
        if self.training:
            inside.append(memory.dtype)
        return memory

    monkeypatch.setattr(MLDecoder, "memory", spy)
    train(make_model(), Toys(), precision="bf16", epochs=1)
    assert set(inside) == {torch.bfloat16}
    inside.clear()
    train(make_model(), Toys(), epochs=1)
    assert set(inside) == {torch.float32}


def test_a_frozen_encoder_can_be_trained_later(make_model: MakeModel) -> None:
    model = make_model()
    train(model, Toys(), freeze_image_encoder=True)
    before = {name: p.clone() for name, p in model.image_encoder.named_parameters()}
    assert all(p.requires_grad for p in model.image_encoder.parameters())
    train(model, Toys(), lr=1e-2)
    assert all(not torch.equal(p, before[name]) for name, p in model.image_encoder.named_parameters() if p.ndim > 1)


def test_a_second_fit_starts_its_log_again(make_model: MakeModel, tmp_path: Path) -> None:
    trainer = Trainer(make_model(), Toys(), output=tmp_path, epochs=2, batch_size=8, device="cpu")
    trainer.fit()
    trainer.fit()
    assert [record["epoch"] for record in trainer.history] == [1, 2]
    assert len((tmp_path / "log.csv").read_text().splitlines()) == 3


# ------------------------------------------------------------------------------------------- how it is optimised


def test_accumulated_parts_are_one_step(make_model: MakeModel) -> None:
    augmentation = QueryAugmentation(noise=0.2, mixed=3, word_dropout=0.4)
    options = {"freeze_image_encoder": True, "augmentation": augmentation, "optimizer": "sgd"}
    whole, parts = (
        train(make_model(dropout=0.0), Toys(bad=(5,)), gradient_accumulation=number, **options) for number in (1, 4)
    )
    for a, b in zip(weights(whole).values(), weights(parts).values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    assert [r["loss"] for r in whole.history] == pytest.approx([r["loss"] for r in parts.history], rel=1e-5)
    with pytest.raises(ValueError, match="batch_size must be a multiple of 1 processes times gradient_accumulation=3"):
        train(make_model(), Toys(), gradient_accumulation=3)


def test_a_summed_loss_has_as_many_times_the_gradients(make_model: MakeModel) -> None:
    options = {"optimizer": "sgd", "schedule": "constant", "steps_per_epoch": 1, "epochs": 1, "weight_decay": 0.0}
    start = make_model(dropout=0.0).decoder.state_dict()
    mean, summed = (
        train(make_model(dropout=0.0), Toys(), lr=lr, loss_options={"reduction": kind}, **options)
        for lr, kind in ((8e-3, "mean"), (1e-3, "sum"))
    )
    moved = 0
    for name, before in start.items():
        torch.testing.assert_close(mean.model.decoder.state_dict()[name], summed.model.decoder.state_dict()[name])
        moved += not torch.equal(before, mean.model.decoder.state_dict()[name])
    assert moved > 5


@pytest.mark.parametrize("optimizer", ["adam", "lamb", "sgd"])
def test_other_optimisers_train(make_model: MakeModel, optimizer: str) -> None:
    history = train(make_model(), Toys(), optimizer=optimizer, epochs=3, lr=1e-2, schedule="cosine").history
    assert np.isfinite([record["loss"] for record in history]).all()


def test_named_parts_of_the_encoder_stay(make_model: MakeModel) -> None:
    model = make_model()
    before = {name: tensor.clone() for name, tensor in model.image_encoder.body.state_dict().items()}
    train(model, Toys(), freeze_image_encoder=("conv1", "bn1", "layer1"), lr=1e-2)
    after = model.image_encoder.body.state_dict()
    frozen = [name for name in before if name.split(".")[0] in ("conv1", "bn1", "layer1")]
    assert len(frozen) > 5 and all(torch.equal(before[name], after[name]) for name in frozen)  # statistics too
    assert any(not torch.equal(before[name], after[name]) for name in before if name not in frozen)
    assert all(p.requires_grad for p in model.parameters())
    with pytest.raises(ValueError, match=r"it has no 'stem'; its parts are \['conv1', 'bn1'"):
        train(make_model(), Toys(), freeze_image_encoder=("stem",))


def test_rates_fall_by_layer(make_model: MakeModel) -> None:
    groups = parameter_groups(make_model(), 1e-3, 0.1, encoder_lr_scale=0.1, layer_decay=0.5)
    rates = sorted({group["lr"] for group in groups})
    assert rates[-1] == 1e-3 and len(rates) >= 4
    assert all(low == pytest.approx(high / 2) for low, high in pairwise(rates[:-1]))
    assert sum(len(group["params"]) for group in groups) == len(list(make_model().parameters()))
    deep = make_model()
    deep.image_encoder.body = torch.nn.Sequential(torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match="layer_decay must be 1 for timm:test_resnet, timm does not know its layers"):
        parameter_groups(deep, 1e-3, 0.1, layer_decay=0.5)


def test_a_compiled_network_trains_the_same(make_model: MakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled, original = [], torch.compile

    def eager(network: Any, **options: Any) -> Any:
        compiled.append(network)
        return original(network, backend="eager")

    monkeypatch.setattr(torch, "compile", eager)
    options = {"freeze_image_encoder": True, "ema_decay": 0.9, "epochs": 1}
    plain, fast = (train(make_model(dropout=0.0), Toys(), compile=flag, **options) for flag in (False, True))
    assert len(compiled) == 1
    for a, b in zip(weights(plain).values(), weights(fast).values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_batches_are_mixed_and_images_augmented(make_model: MakeModel, images: list[Any]) -> None:
    """Single-label images with MixUp, CutMix and everything else: it learns, and twice the same."""
    data = Toys(14, seen=WORDS)
    dense = np.eye(6, dtype=np.int8)[np.arange(14) % 6]
    data.targets = csr_matrix(dense)
    pictures = [images[row % 7] for row in range(14)]
    data.__class__ = type("Pictures", (Toys,), {"__getitem__": lambda self, row: {
        "image": pictures[row], "targets": dense[row], "id": str(row)
    }})  # fmt: skip
    augmentation = ImageAugmentation(0.5, 2, 9, 0.5, 0.3, mixup=0.2, cutmix=1.0)
    options = {"image_augmentation": augmentation, "loss": "binary_cross_entropy", "batch_size": 7, "epochs": 2}
    one, two = (train(make_model(num_classes=6, num_groups=3), data, **options) for _ in range(2))
    assert same(weights(one), weights(two)) and np.isfinite(one.history[-1]["loss"])
    plain = train(
        make_model(num_classes=6, num_groups=3), data, **options | {"image_augmentation": ImageAugmentation()}
    )
    assert not same(weights(one), weights(plain))
    with pytest.raises(ValueError, match="captions and mixed queries need targets that are present or absent"):
        Trainer(make_model(), data, augmentation=QueryAugmentation(mixed=2), image_augmentation=augmentation)
    with pytest.raises(ValueError, match="features cannot be augmented"):
        Trainer(make_model(), data, features=FeatureCache(), freeze_image_encoder=True, image_augmentation=augmentation)


# -------------------------------------------------------------------------------------------- selection, and its flags


def test_test_images_and_unseen_words_select_only_by_their_flags(make_model: MakeModel, tmp_path: Path) -> None:
    val = Toys(12, seed=1)
    val.split = "test"
    with pytest.raises(ValueError, match=r"val_dataset must not be the test images.*select_on_test_images=true"):
        Trainer(make_model(), Toys(), val)
    with pytest.raises(ValueError, match="select_on_unseen_words needs a val_dataset and unseen words"):
        Trainer(make_model(), Toys(), select_on_unseen_words=True)
    options = {"select_on_test_images": True, "select_on_unseen_words": True, "output": tmp_path}
    trainer = train(make_model(remember=False), Toys(), val_dataset=val, **options)
    assert trainer.heldout == () and trainer.selected_by == "unseen_mean_average_precision"
    assert "UNSEEN" in trainer.selection_text() and "TEST images" in trainer.selection_text()
    best = max(trainer.history, key=lambda record: record["unseen_mean_average_precision"])
    assert best["epoch"] == trainer.best_epoch
    restored = ZeroShotClassifier.from_pretrained(tmp_path / "model")
    assert restored.vocabulary.words == SEEN  # unseen words selected, but are not learnt
    test = Toys(12, seed=2)
    test.split = "test"
    report = Evaluator("gzsl", device="cpu").evaluate(restored, test)
    said = " ".join(report.external_knowledge)
    assert "test images chose the epoch" in said and "labels of unseen words chose the epoch" in said


def test_without_held_out_words_all_seen_words_select(make_model: MakeModel) -> None:
    trainer = train(make_model(), Toys(), val_dataset=Toys(12, seed=1), holdout_words=0.0)
    assert trainer.selected_by == "seen_mean_average_precision" and trainer.heldout == ()
    best = max(trainer.history, key=lambda record: record["seen_mean_average_precision"])
    assert best["epoch"] == trainer.best_epoch
    single = Toys(12, seen=WORDS).with_targets(
        lambda dense: np.copyto(dense, np.eye(6, dtype=np.int8)[[*range(6)] * 2])
    )
    single.vocabulary = Vocabulary(WORDS, seen=WORDS)
    trainer = train(make_model(num_classes=6, num_groups=3), single, val_dataset=single, loss="cross_entropy")
    assert trainer.selected_by == "top_1_accuracy" and 0 <= trainer.history[0]["top_1_accuracy"] <= 1


# ------------------------------------------------------------------------------------------------- what it writes down


def test_a_checkpoint_says_how_it_came_about(make_model: MakeModel, tmp_path: Path) -> None:
    options = {"output": tmp_path, "ema_decay": 0.9, "configuration": {"trainer": {"lr": 1}}}
    trainer = train(make_model(), Toys(), val_dataset=Toys(12, seed=1), **options)
    record = ZeroShotClassifier.from_pretrained(tmp_path / "model").training_record
    assert record["epoch"] == trainer.best_epoch and record["weights"] == "averaged"
    assert record["selected_by"] == "heldout_mean_average_precision" and record["num_processes"] == 1
    assert record["settings"]["lr"] == 1e-3 and record["settings"]["schedule"] == "one_cycle"  # the default as well
    assert record["configuration"] == {"trainer": {"lr": 1}} and "git" in record


def test_trackers_and_steps_get_every_figure(make_model: MakeModel, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    every = {"log_every": 2, "steps_per_epoch": 3}
    train(make_model(), Toys(), val_dataset=Toys(8, seed=1), output=tmp_path, trackers=("tensorboard",), **every)
    with (tmp_path / "steps.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["step"], row["epoch"]) for row in rows] == [("2", "1"), ("4", "2"), ("6", "2")]
    events = EventAccumulator(str(tmp_path / "zsmld")).Reload()
    assert {"train/loss", "train/lr", "epoch/heldout_mean_average_precision"} <= set(events.Tags()["scalars"])
    logged = [event.value for event in events.Scalars("train/loss")]
    assert logged == pytest.approx([float(row["loss"]) for row in rows], rel=1e-6)
    with pytest.raises(ValueError, match="trackers need an output folder"):
        Trainer(make_model(), Toys(), trackers=("tensorboard",))


@pytest.mark.parametrize("warmup", [0.05, 0.1, 0.2, 0.25, 0.5])
def test_every_length_of_training_has_a_schedule(warmup: float) -> None:
    for total_steps in range(1, 25):
        parameter = torch.nn.Parameter(torch.zeros(1))
        optimizer = torch.optim.AdamW([{"params": [parameter], "lr": 2.0}])
        scheduler, rates = build_scheduler("one_cycle", optimizer, total_steps, warmup), []
        for _ in range(total_steps):
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
        assert np.isfinite(rates).all() and 0 <= min(rates) <= max(rates) <= 2.0 + 1e-6


def test_what_would_fail_later_is_refused_now(make_model: MakeModel) -> None:
    with pytest.raises(ValueError, match="mixup and cutmix need loss binary_cross_entropy or cross_entropy"):
        Trainer(make_model(), Toys(), image_augmentation=ImageAugmentation(mixup=0.2))
    whole = Toys(12, seed=1)
    whole.split = "all"
    with pytest.raises(ValueError, match="val_dataset must not be the test images"):
        Trainer(make_model(), Toys(), whole)
    with pytest.raises(ValueError, match="scores must be 'sigmoid' or 'softmax', got 'softplus'"):
        Trainer(make_model(), Toys(), scores="softplus")


def test_another_partition_or_encoder_is_not_resumed(make_model: MakeModel) -> None:
    def settings(data: Toys, model: Any = None) -> dict[str, Any]:
        return settings_of(Trainer(model or make_model(), data, freeze_image_encoder=True, steps_per_epoch=2))

    base = settings(Toys())
    assert settings(Toys()) == base
    assert settings(Toys(seen=WORDS[1:5]))["seen"] != base["seen"]
    other_labels = Toys().with_targets(lambda dense: dense[:, 0].fill(1))
    assert settings(other_labels)["images"] != base["images"]
    assert settings(Toys(), make_model(seed=1))["frozen_weights"] != base["frozen_weights"]


def test_the_average_without_warm_up_has_one_decay(make_model: MakeModel) -> None:
    def end(num_steps: int, **options: Any) -> Tensor:
        options = {"schedule": "constant", "steps_per_epoch": num_steps, "epochs": 1} | options
        return train(make_model(remember=False), Toys(), **options).model.decoder.state_dict()["spatial_proj.weight"]

    first, second = end(1), end(2)
    assert not torch.equal(first, second)
    # timm's average takes the weights of the first step whole, and goes half the way to the next
    torch.testing.assert_close(end(2, ema_decay=0.5, ema_warmup=False), (first + second) / 2, rtol=0, atol=1e-6)
    nearer = end(2, ema_decay=0.5)  # 1 − 2^(−2/3) = 0.37 is less than 0.5
    torch.testing.assert_close(nearer, first * (1 - 2 ** (-2 / 3)) + second * 2 ** (-2 / 3), rtol=0, atol=1e-6)


def test_single_label_models_score_with_a_softmax(make_model: MakeModel, tmp_path: Path) -> None:
    from zsmld import Predictor

    one_word = np.eye(6, dtype=np.int8)[[*range(6)] * 2]
    single = Toys(12, seen=WORDS).with_targets(lambda dense: np.copyto(dense, one_word))
    single.vocabulary = Vocabulary(WORDS, seen=WORDS)
    options = {"loss": "cross_entropy", "scores": "softmax", "output": tmp_path, "batch_size": 6}
    train(make_model(num_classes=6, num_groups=3), single, **options)
    restored = ZeroShotClassifier.from_pretrained(tmp_path / "model")
    assert restored.scores == "softmax"
    pictures = [np.random.default_rng(i).integers(0, 256, (64, 64, 3), dtype=np.uint8) for i in range(3)]
    scores, failed = Predictor(restored, device="cpu").score(pictures)
    assert not failed
    np.testing.assert_allclose(scores.sum(1), 1, atol=1e-5)
