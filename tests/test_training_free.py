"""TrainingFreeScorer: against loops, laws, and the statistics it stands for."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from zsmld import Evaluator, ImageEncoder, Predictor, ZeroShotClassifier, build_dataset
from zsmld.decoder import MLDecoder, TrainingFreeScorer, build_decoder

B, S, C, T, K, N, D = 3, 5, 12, 8, 20, 6, 4


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def scorer(kind: str = "conse", centered: bool = True, **options: Any) -> TrainingFreeScorer:
    options = {"num_global_tokens": 1} | options
    if kind == "clip":
        return TrainingFreeScorer(T, T, **options).eval()
    made = TrainingFreeScorer(C, T, num_classes=K, **options).eval()
    made.set_classes(noise(K, C, seed=1), noise(K, seed=2), noise(K, T, seed=3) + 0.5, centered=centered)
    return made


def spatial(kind: str = "conse", images: int = B, seed: int = 4) -> Tensor:
    return noise(images, 1 + S, T if kind == "clip" else C, seed=seed)


def words(count: int = N, seed: int = 5) -> Tensor:
    return noise(count, T, seed=seed)


def descriptions() -> tuple[Tensor, Tensor]:
    """(N,D,T), and the mask (N,D): the first word has one, the second all, the others some."""
    mask = torch.arange(D) < torch.tensor([1, D, 2, 3, 2, D])[:, None]
    return noise(N, D, T, seed=6) * mask[..., None], mask


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


# -------------------------------------------------------------------------------------------------------- against loops


@pytest.mark.parametrize("centered", [True, False])
@pytest.mark.parametrize(("top_classes", "temperature"), [(None, 1.0), (4, 1.0), (1, 1.0), (7, 3.0), (99, 0.5)])
def test_conse_is_a_mean_of_class_names(top_classes: int | None, temperature: float, centered: bool) -> None:
    made = scorer(centered=centered, top_classes=top_classes, temperature=temperature, scale=2.0, bias=-0.5)
    images, queries = spatial(), words()
    weight, class_bias, names = (
        noise(K, C, seed=1).numpy(),
        noise(K, seed=2).numpy(),
        unit((noise(K, T, seed=3) + 0.5).numpy()),
    )
    center = names.mean(0) if centered else 0
    names, texts = unit(names - center), unit(unit(queries.numpy()) - center)
    expected = np.zeros((B, N))
    for b in range(B):
        similarity = np.zeros((1 + S, N))
        for position in range(1 + S):
            logits = (weight @ images[b, position].numpy() + class_bias) / temperature
            shares = np.exp(logits - logits.max())
            shares /= shares.sum()
            best = np.argsort(-shares)[: top_classes or K]
            mean = sum(shares[k] * names[k] for k in best) / shares[best].sum()
            similarity[position] = [mean @ text / np.linalg.norm(mean) for text in texts]
        expected[b] = 2 * similarity[0] + 2 * similarity[1:].max(0) - 0.5
    found = made(images, queries).detach().numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("views", ["global", "local", "both"])
@pytest.mark.parametrize("top_positions", [1, 3, 99])
@pytest.mark.parametrize("num_global_tokens", [0, 1])
def test_clip_is_a_cosine_of_each_position(views: str, top_positions: int, num_global_tokens: int) -> None:
    made = scorer("clip", views=views, top_positions=top_positions, num_global_tokens=num_global_tokens, scale=3.0)
    images, queries = spatial("clip"), words()
    found = made(images, queries).detach().numpy()
    for b in range(B):
        vectors = images[b].numpy()
        whole, parts = (vectors[0], vectors[1:]) if num_global_tokens else (vectors.mean(0), vectors)
        for n in range(N):
            word = unit(queries[n].numpy())
            seen = sorted((float(unit(part) @ word) for part in parts), reverse=True)[:top_positions]
            expected = -2.0
            if views != "local":
                expected += 3 * float(unit(whole) @ word)
            if views != "global":
                expected += 3 * sum(seen) / len(seen)
            assert found[b, n] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("kind", ["max", "second", "attention", "mean"])
def test_descriptions_against_loops(kind: str) -> None:
    made = scorer("clip", descriptions=kind, description_scale=5.0, scale=1.0, bias=0.0)
    images, (texts, mask) = spatial("clip"), descriptions()
    found = made(images, texts, mask).detach().numpy()
    for b in range(B):
        views = unit(images[b].numpy())
        for n in range(N):
            own = unit(texts[n][mask[n]].numpy())
            pairs = np.array([[views[0] @ text, (views[1:] @ text).max()] for text in own])  # (descriptions, 2)
            if kind == "max":
                pair = pairs.max(0)
            elif kind == "second":
                pair = np.sort(pairs, 0)[-2] if len(own) > 1 else pairs[0]
            elif kind == "attention":
                weights = np.exp(5 * pairs[:, 0])
                pair = (weights / weights.sum()) @ pairs
            else:
                mean = unit(own.mean(0))
                pair = np.array([views[0] @ mean, (views[1:] @ mean).max()])
            assert found[b, n] == pytest.approx(pair.sum(), abs=1e-5)
    torch.testing.assert_close(made(images, texts), made(images, texts, mask))  # zeros are no description


def test_a_single_description_is_the_word_itself() -> None:
    images = spatial("clip")
    for kind in ("max", "second", "attention", "mean"):
        made = scorer("clip", descriptions=kind)
        torch.testing.assert_close(made(images, words()[:, None]), made(images, words()))


# ----------------------------------------------------------------------------------------------------------------- laws

LAWS = [
    {"kind": kind, "descriptions": how, "standardization": standardization}
    for kind in ("clip", "conse")
    for how in ("mean", "second", "attention")
    for standardization in ("none", "per_word", "per_image", "both")
]


def fitted(**options: Any) -> TrainingFreeScorer:
    made = scorer(**options)
    if made.standardization != "none":
        made.fit_statistics(spatial(options["kind"], images=9, seed=7), words(7, seed=8))
    return made


@pytest.mark.parametrize("options", LAWS, ids=lambda o: "-".join(o.values()))
@given(order=st.permutations(range(N)), cut=st.integers(1, N - 1))
def test_a_word_does_not_depend_on_the_others(options: dict[str, Any], order: list[int], cut: int) -> None:
    made, images, (texts, mask) = fitted(**options), spatial(options["kind"]), descriptions()
    with torch.no_grad():
        whole = made(images, texts, mask)
        torch.testing.assert_close(made(images, texts[order], mask[order]), whole[:, order], rtol=1e-5, atol=1e-5)
        parts = [made(images, texts[:cut], mask[:cut]), made(images, texts[cut:], mask[cut:])]
        torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-5, atol=1e-5)
        longer = torch.cat([texts, noise(N, 2, T)], 1), torch.cat([mask, torch.zeros(N, 2, dtype=torch.bool)], 1)
        torch.testing.assert_close(made(images, *longer), whole, rtol=1e-5, atol=1e-5)  # what the mask hides
        alone = torch.cat([made(image[None], texts, mask) for image in images])
        torch.testing.assert_close(alone, whole, rtol=1e-5, atol=1e-5)
        compiled = made.word_queries(texts, mask)
        assert torch.equal(made.decode(images, *compiled), whole)
        for label in range(N):  # two parts of compiled words are compiled words
            torch.testing.assert_close(
                made.decode(images, *(part[[label]] for part in compiled)), whole[:, [label]], rtol=1e-5, atol=1e-5
            )


@given(factor=st.floats(0.01, 100), seed=st.integers(0, 99))
def test_lengths_do_not_matter(factor: float, seed: int) -> None:
    made, images = scorer("clip"), spatial("clip", seed=seed)
    with torch.no_grad():
        expected = made(images, words())
        torch.testing.assert_close(made(factor * images, words() / factor), expected, rtol=1e-4, atol=1e-4)


# ------------------------------------------------------------------------------------------------------ standardisation


def plain_similarities(kind: str, images: Tensor, queries: Tensor) -> list[np.ndarray]:
    """Of each view with each word, global (B,1,N) and local (B,S,N)."""
    made = scorer(kind)
    views = made.image_views(images).detach().double().numpy()
    (texts,) = made.word_queries(queries)
    similarity = views @ texts.double().numpy().T
    return [similarity[:, :1], similarity[:, 1:]]


@pytest.mark.parametrize("kind", ["clip", "conse"])
@pytest.mark.parametrize("standardization", ["per_word", "per_image", "both"])
def test_standardisation_is_that_of_explicit_means_and_deviations(kind: str, standardization: str) -> None:
    calibration, reference = spatial(kind, images=11, seed=7), words(9, seed=8)
    made = scorer(kind, standardization=standardization, scale=1.0, bias=0.0)
    made.fit_statistics(calibration, reference)
    images, queries = spatial(kind), words()
    expected = 0
    for side in (0, 1):
        similarity = plain_similarities(kind, images, queries)[side]  # (B,V',N)
        among = plain_similarities(kind, images, reference)[side]  # (B,V',R)
        if standardization in ("per_word", "both"):
            seen = plain_similarities(kind, calibration, queries)[side].reshape(-1, N)
            similarity = (similarity - seen.mean(0)) / seen.std(0, ddof=1)
            seen = plain_similarities(kind, calibration, reference)[side].reshape(-1, len(reference))
            among = (among - seen.mean(0)) / seen.std(0, ddof=1)
        if standardization in ("per_image", "both"):
            similarity = (similarity - among.mean(2, keepdims=True)) / among.std(2, ddof=1, keepdims=True)
        expected = expected + similarity.max(1)
    np.testing.assert_allclose(made(images, queries).detach().numpy(), expected, rtol=1e-4, atol=2e-5)


def test_without_statistics_standardisation_changes_nothing_by_word() -> None:
    images = spatial("clip")
    torch.testing.assert_close(
        scorer("clip", standardization="per_word")(images, words()), scorer("clip")(images, words())
    )


# --------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"views": "all"}, "views must be one of ('global', 'local', 'both'), got 'all'"),
        ({"descriptions": "first"}, "descriptions must be one of"),
        ({"standardization": "z"}, "standardization must be one of"),
        ({"num_global_tokens": 2}, "num_global_tokens must be 0 or 1, got 2"),
        ({"top_positions": 0}, "top_positions must be at least 1, got 0"),
        ({"num_classes": 3, "top_classes": 0}, "top_classes must be at least 1, got 0"),
        ({"num_classes": 3, "temperature": 0.0}, "temperature must be positive, got 0.0"),
        ({"text_dim": 9}, "encoder_dim must be text_dim=9 where there is no classifier, got 8; project the image"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match="must be") as caught:
        TrainingFreeScorer(**{"encoder_dim": T, "text_dim": T} | options)
    assert message in str(caught.value)


def test_wrong_shapes_are_refused() -> None:
    made = scorer()
    for call, kind, message in (
        (lambda: made(spatial(), None), ValueError, "word_embeddings must be (N, 8), got None"),
        (
            lambda: made(spatial("clip"), words()),
            ValueError,
            "spatial_embeddings must be (B, S, 12) to fit encoder_dim=12",
        ),
        (lambda: made(spatial()[0], words()), ValueError, "got (6, 12); use the image encoder of this scorer"),
        (
            lambda: made(spatial(), noise(N, 9)),
            ValueError,
            "word_embeddings must be (N, 8) to fit text_dim=8, got (6, 9)",
        ),
        (lambda: made(spatial(), words().numpy()), TypeError, "word_embeddings must be a tensor (N, 8), got ndarray"),
        (
            lambda: made(spatial(), words(), torch.ones(N, 1)),
            ValueError,
            "mask must be None for word_embeddings (N, T)",
        ),
        (
            lambda: made.set_classes(noise(K, C), noise(K), noise(K - 1, T)),
            ValueError,
            "classes must be [(20, 12), (20,)",
        ),
        (
            lambda: scorer("clip").set_classes(noise(K, C), noise(K), noise(K, T)),
            ValueError,
            "num_classes must be given",
        ),
        (
            lambda: made.fit_statistics(spatial()[:1], words()),
            ValueError,
            "calibration must have at least 2 images and",
        ),
        (lambda: made.fit_statistics(spatial(), words(1)), ValueError, "got 3 and 1; give more"),
    ):
        with pytest.raises(kind) as caught:
            call()
        assert message in str(caught.value)


# ---------------------------------------------------------------------------------------------- checkpoints, and doors


@pytest.mark.parametrize("kind", ["clip", "conse"])
def test_config_and_state_rebuild_it(kind: str) -> None:
    made = scorer(kind, standardization="both", views="local", top_positions=2, descriptions="second", scale=4.0)
    made.fit_statistics(spatial(kind, images=4), words(5))
    again = build_decoder(json.loads(json.dumps(made.config())))
    assert isinstance(again, TrainingFreeScorer)
    again.load_state_dict(made.state_dict())
    assert torch.equal(again(spatial(kind), words()), made(spatial(kind), words()))


@pytest.fixture
def model(vectors_path: Path) -> ZeroShotClassifier:
    """ConSE over timm's test_resnet, with class names of random embeddings."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = ImageEncoder("timm:test_resnet", pretrained=False, image_size=64, projected=True, global_token=True)
    made = TrainingFreeScorer(encoder.encoder_dim, 16, num_global_tokens=1, num_classes=K, temperature=0.1)
    made.set_classes(noise(K, encoder.encoder_dim), noise(K), noise(K, 16, seed=1))
    return ZeroShotClassifier(encoder, made, f"vectors:{vectors_path}").eval()


def test_predictor_and_checkpoint(model: ZeroShotClassifier, images: list[Any], tmp_path: Path) -> None:
    predictor = Predictor(model, ["dog", "cat", "boat"], device="cpu")
    scores, failed = predictor.score(images)
    assert scores.shape == (7, 3) and not failed and (scores > 0).all() and (scores < 1).all()
    predictor.add_words(["zebra"])
    more, _ = predictor.score(images)
    np.testing.assert_allclose(more[:, :3], scores, atol=1e-6)
    model.save_pretrained(tmp_path)
    again = ZeroShotClassifier.from_pretrained(tmp_path)
    assert isinstance(again.decoder, TrainingFreeScorer) and again.image_encoder.num_global_tokens == 1
    np.testing.assert_array_equal(Predictor(again, ["dog", "cat", "boat"], device="cpu").score(images)[0], scores)


def test_evaluator(model: ZeroShotClassifier, photos: Path) -> None:
    dataset = build_dataset("table", path=photos / "photos.csv", partition=photos / "partition.json", split="all")
    report = Evaluator("gzsl", device="cpu", num_samples=2).evaluate(model, dataset)
    assert set(report.protocols) == {"zsl", "gzsl"} and report.model["output"] == "conse"
    assert report.samples[0].image is not None


def test_attention_is_a_map_of_each_word() -> None:
    maps = scorer().attention(spatial(), words())
    assert maps.shape == (B, 1, N, S)
    torch.testing.assert_close(maps.sum(3), torch.ones(B, 1, N))
    best = plain_similarities("conse", spatial(), words())[1].argmax(1)  # (B,N)
    assert (maps[:, 0].argmax(2).numpy() == best).all()


def test_it_stands_inside_a_head() -> None:
    made = scorer()
    head = MLDecoder(
        C, text_dim=T, num_global_tokens=1, decoder_dim=16, num_heads=2, feedforward_dim=16, prior=made
    ).eval()
    torch.testing.assert_close(head(spatial(), words()), made(spatial(), words()))  # it starts as the prior is
