"""Training on sentences: which words they name, and a head that never saw an image and ranks the words of images."""

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file
from scipy.sparse import csr_matrix
from torch import Tensor, nn

from zsmld import Evaluator, Predictor, Trainer, Vocabulary, ZeroShotClassifier, build_dataset
from zsmld.augmentation import QueryAugmentation
from zsmld.datasets import dense_targets
from zsmld.datasets.captions import CaptionDataset, captions
from zsmld.datasets.named_words import find_words, phrases
from zsmld.decoder import MLDecoder, TrainingFreeScorer
from zsmld.features import add_text_noise, encode_sentences
from zsmld.images import ImageAugmentation
from zsmld.metrics import average_precision, mean_average_precision
from zsmld.recipe import Recipe
from zsmld.scoring import score_dataset

ROOT = Path(__file__).resolve().parent.parent

# --------------------------------------------------------------------------------------------------------- which words


@pytest.mark.parametrize(
    ("sentence", "word", "named"),
    [
        ("A DOG.", "dog", True),
        ("Two dogs, asleep", "Dog", True),
        ("hotdog stand", "dog", False),
        ("a dog-friendly bar", "dog", False),
        ("the dog's bed", "dog", True),
        ("two buses", "bus", True),
        ("three boxes", "box", True),
        ("peaches and dishes", "peach", True),
        ("ripe cherries", "cherry", True),
        ("many toys", "toy", True),
        ("sharp knives", "knife", True),
        ("falling leaves", "leaf", True),
        ("red roofs", "roof", True),
        ("baked potatoes", "potato", True),
        ("old photos", "photo", True),
        ("some people", "person", True),
        ("two persons", "person", True),
        ("policemen", "policeman", True),
        ("humans", "human", True),
        ("mongooses", "mongoose", True),
        ("wine glasses", "wine glass", True),
        ("wines glass", "wine glass", False),
        ("wine, glass", "wine glass", True),  # signs are not read
        ("a cloud", "clouds", False),  # a plural is not found in the singular
        ("a new car", "news", False),
        ("a park", "car", False),
        ("Der Bär schläft", "bär", True),
        ("a t-shirt", "T-shirt", True),
        ("!!!", "???", False),
    ],
)
def test_named(sentence: str, word: str, named: bool) -> None:
    assert find_words([sentence], [word]).toarray().tolist() == [[int(named)]]


def test_inside_a_longer_word_is_unknown() -> None:
    words = ["dog", "hot dog", "hot", "dog house"]
    found = find_words(["a hot dog", "a dog and hot dogs", "hot dog house", "a dog", ""], words)
    assert found.toarray().tolist() == [[-1, 1, -1, 0], [1, 1, -1, 0], [-1, 1, -1, 1], [1, 0, 0, 0], [0, 0, 0, 0]]
    assert found.dtype == np.int8 and found.has_canonical_format


def test_synonyms_name_their_word() -> None:
    found = find_words(["two men", "a sofa", "a person"], ["person", "couch"], {"person": ["man"], "couch": ["sofa"]})
    assert found.toarray().tolist() == [[1, 0], [0, 1], [1, 0]]


@given(st.lists(st.sampled_from(["dog", "cat", "dogs", "red", "red dog", "the", "BUS", "buses"]), max_size=8))
def test_single_words_as_a_pattern_finds_them(parts: list[str]) -> None:
    sentence, words = " ".join(parts), ["dog", "cat", "bus"]
    expected = [bool(re.search(rf"\b{word}(s|es)?\b", sentence, re.IGNORECASE)) for word in words]
    assert (find_words([sentence], words).toarray()[0] == 1).tolist() == expected


@given(st.text(max_size=60), st.integers(0, 6))
def test_phrases_are_always_as_many(text: str, number: int) -> None:
    found = phrases(text or "a dog", number)
    assert len(found) == number and (not text.strip() or all(part for part in found))


# -------------------------------------------------------------------------------------------------------------- files


SENTENCES = ["A dog on a beach.", "Two cats", "a dog  on a beach.", "", "A dog on a beach.", "nothing here", "a zebra"]
SEEN, UNSEEN = ["dog", "cat", "beach"], ["zebra"]


def written(folder: Path, suffix: str, labels: list[Any] | None = None, rows: list[str] | None = None) -> Path:
    """The sentences as a file of that kind."""
    path, frame = folder / f"sentences{suffix}", pd.DataFrame({"caption": SENTENCES if rows is None else rows})
    if labels is not None:
        frame["labels"] = labels
    if suffix == ".txt":
        path.write_text("\n".join(frame["caption"]), encoding="utf-8")
    elif suffix == ".json":
        entries = [{"id": 7 * i, "image_id": 1, "caption": text} for i, text in enumerate(frame["caption"])]
        path.write_text(json.dumps({"images": [], "annotations": entries}))
    elif suffix == ".jsonl":
        frame.to_json(path, orient="records", lines=True)
    elif suffix == ".parquet":
        frame.to_parquet(path)
    else:
        frame.to_csv(path, index=False, sep="\t" if suffix == ".tsv" else ",")
    return path


def partition(folder: Path) -> Path:
    (folder / "partition.json").write_text(json.dumps({"seen": SEEN, "unseen": UNSEEN}))
    return folder / "partition.json"


@pytest.mark.parametrize("suffix", [".txt", ".csv", ".tsv", ".jsonl", ".parquet", ".json"])
def test_every_kind_of_file_says_the_same(suffix: str, tmp_path: Path) -> None:
    path = written(tmp_path, suffix)
    dataset = build_dataset("captions", path=path, split="train", partition=partition(tmp_path), val_fraction=0.0)
    assert dataset.sentences == ["A dog on a beach.", "Two cats", "a dog on a beach.", "a zebra"]
    assert dense_targets(dataset).tolist() == [[1, 0, 1, 0], [0, 1, 0, 0], [1, 0, 1, 0], [0, 0, 0, 1]]
    assert dataset.ids == [f"{path.name}/{row}" for row in (0, 1, 2, 6)] and dataset.name == "sentences"
    assert dataset.missing == 0 and dataset.vocabulary.unseen == ("zebra",) and dataset.splits == ("train",)
    counts = dataset.manifest["counts"]
    assert (counts["empty_rows"], counts["merged_rows"], counts["without_a_word"], counts["kept"]) == (1, 1, 1, 4)
    item = dataset[1]
    assert (item["text"], item["targets"].tolist(), item["id"]) == ("Two cats", [0, 1, 0, 0], f"{path.name}/1")
    assert dataset.texts(0) == ["A dog on a beach.", "A dog", "a beach", "A dog", "a beach"]
    assert repr(dataset) == "CaptionDataset('sentences', split='train', num_sentences=4, seen=3, unseen=1)"


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_labels_beside_sentences_are_the_targets(suffix: str, tmp_path: Path) -> None:
    labels = ["dog|sand", "cat", "dog", "bird", "sun", "", "zebra| horse"]
    if suffix != ".csv":
        labels = [text.split("|") for text in labels]  # type: ignore[misc]
    path = written(tmp_path, suffix, labels)
    dataset = captions(path, val_fraction=0.0)
    assert dataset.vocabulary.words == ("bird", "cat", "dog", "horse", "sand", "sun", "zebra")
    assert [[dataset.vocabulary.words[label] for label in row.indices] for row in dataset.targets] == [
        ["dog", "sand", "sun"],  # of both rows
        ["cat"],
        ["dog"],
        ["horse", "zebra"],
    ]
    fewer = captions(path, words=["dog", "cat"], val_fraction=0.0)
    assert dense_targets(fewer).tolist() == [[1, 0], [0, 1], [1, 0]]
    assert fewer.manifest["unknown_words"] == {"sand": 1, "bird": 1, "sun": 1, "zebra": 1, "horse": 1}


def test_words_as_a_file_and_synonyms(tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("pet\n\nbeach\n")
    (tmp_path / "synonyms.json").write_text(json.dumps({"pet": ["dog", "cat"], "sea": ["ocean"]}))
    path = written(tmp_path, ".txt")
    dataset = captions(path, words=tmp_path / "words.txt", synonyms=tmp_path / "synonyms.json", val_fraction=0.0)
    assert dense_targets(dataset).tolist() == [[1, 1], [1, 0], [1, 1]]


def test_a_share_of_the_sentences_validates(tmp_path: Path) -> None:
    path = written(tmp_path, ".txt", rows=[f"dog number {i}" for i in range(40)])
    parts = [captions(path, split, words=["dog"], val_fraction=0.25, seed=3) for split in ("train", "val")]
    assert [len(part) for part in parts] == [30, 10] and parts[0].splits == ("train", "val")
    assert not set(parts[0].sentences) & set(parts[1].sentences)
    assert captions(path, "val", words=["dog"], val_fraction=0.25, seed=4).sentences != parts[1].sentences


def test_images_bring_the_vocabulary_and_the_other_splits(photos: Path, tmp_path: Path) -> None:
    images = {"name": "table", "path": str(photos / "photos.csv"), "partition": str(photos / "partition.json")}
    path = written(tmp_path, ".txt", rows=["a dog", "red cars and cats", "a boat"])
    train, val, test = (captions(path, split, images=images) for split in ("train", "val", "test"))
    assert train.vocabulary == val.vocabulary == test.vocabulary and train.splits == ("train", "test", "val")
    assert len(train) == 3 and "image" in val[0] and test.split == "test"
    with pytest.raises(ValueError, match="words, partition and templates must be left out beside images"):
        captions(path, images=images, words=["dog"])
    with pytest.raises(ValueError, match=r"images must have a name and no split, got the arguments \['path'\]"):
        captions(path, images={"path": "photos.csv"})
    content = {"dataset": {"name": "captions", "path": "x", "images": {"name": "prepared", "partition": "48_17"}}}
    recipe = Recipe.from_dict(content | {"image_encoder": {"spec": "timm:test_resnet"}}, ["dataset.images.seed=3"])
    assert recipe.dataset["images"] == {"name": "prepared", "partition": "48_17", "seed": 3}  # no number 4817


def test_sentences_that_name_an_unseen_word_can_be_left_out(tmp_path: Path) -> None:
    path = written(tmp_path, ".txt", rows=["a dog and a zebra", "a dog", "a zebra"])
    options: dict[str, Any] = {"partition": partition(tmp_path), "val_fraction": 0.0}
    assert len(captions(path, **options)) == 3
    strict = captions(path, exclude_unseen_sentences=True, **options)
    assert strict.sentences == ["a dog"] and strict.manifest["counts"]["with_an_unseen_word"] == 2


def test_targets_of_seen_words_do_not_depend_on_the_unseen(tmp_path: Path) -> None:
    path = written(tmp_path, ".txt", rows=["a hot dog", "a dog", "a red dog and a cat"])
    found = []
    for unseen in ([], ["hot dog", "red dog"]):
        (tmp_path / "p.json").write_text(json.dumps({"seen": ["dog", "cat"], "unseen": unseen}))
        found.append(dense_targets(captions(path, partition=tmp_path / "p.json", val_fraction=0.0)))
    assert np.array_equal(found[0], found[1][:, :2]) and found[1][:, 2:].tolist() == [[1, 0], [0, 0], [0, 1]]


def test_what_cannot_be_read_is_refused(tmp_path: Path) -> None:
    def refused(message: str, path: Path, error: type[Exception] = ValueError, **options: Any) -> None:
        with pytest.raises(error, match=message):
            captions(path, **{"words": ["dog"]} | options)

    good = written(tmp_path, ".txt")
    refused("path must be an existing file of sentences, not found", tmp_path / "none.txt", FileNotFoundError)
    for suffix in (".txt", ".json"):
        refused("must have at least one sentence, .* has none", written(tmp_path, suffix, rows=["", "  "]))
    good = written(tmp_path, ".txt")
    (tmp_path / "other.csv").write_text("text,labels\na dog,dog\n")
    refused(r"must have a column 'caption', other.csv has \['text', 'labels'\]", tmp_path / "other.csv")
    (tmp_path / "instances.json").write_text(json.dumps({"annotations": [{"category_id": 1}]}))
    refused("must be COCO's captions, .* has no annotations with a caption each", tmp_path / "instances.json")
    (tmp_path / "broken.json").write_text("{")
    refused("must be COCO's captions", tmp_path / "broken.json")
    (tmp_path / "sentences.doc").write_text("a dog")
    refused("path must end in .txt", tmp_path / "sentences.doc")
    refused(
        r"must have sentences with a word of the vocabulary, none of 5 in .* has one of \['moon'\]",
        good,
        words=["moon"],
    )
    refused("words must be given for .*, which has no labels", good, words=None)
    refused("words must be left out beside partition", good, partition=partition(tmp_path))
    refused("words must be an existing file", good, FileNotFoundError, words="none.txt")
    refused("split must be 'train' or 'val' for sentences, got 'test'", good, split="test")
    refused("split 'val' of .* must have sentences, got none of 5", good, split="val", val_fraction=0.0)
    refused("num_phrases must not be negative", good, num_phrases=-1)
    refused("synonyms must be an existing JSON file", good, FileNotFoundError, synonyms="none.json")
    (tmp_path / "synonyms.json").write_text('{"dog": "puppy"}')
    refused("synonyms must map words to lists of texts", good, synonyms=tmp_path / "synonyms.json")
    with pytest.raises(ValueError, match="sentences, ids and rows of targets must be as many"):
        CaptionDataset(["a dog"], csr_matrix((2, 1), dtype=np.int8), ["1"], Vocabulary(["dog"]))


# ------------------------------------------------------------------------------------------------ an artificial space

DIM = 64
COLOURS, SHAPES = ("red", "green", "blue", "white", "black"), ("square", "circle", "star", "ring", "heart")
HIDDEN = [f"{COLOURS[i]} {SHAPES[(i + 1) % 5]}" for i in range(5)]  # combinations; each part is in seen words
SHOWN = [word for word in (f"{colour} {shape}" for colour in COLOURS for shape in SHAPES) if word not in HIDDEN]
THINGS = Vocabulary([*SHOWN, *HIDDEN], seen=SHOWN)


def direction(name: str) -> Tensor:
    """A unit vector (64,) of that name."""
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "little")
    return F.normalize(torch.randn(DIM, generator=torch.Generator().manual_seed(seed)), dim=0)


class Texts:
    """A text encoder: the sum of the words' directions, those of colours and shapes the longest."""

    spec = identity = "open_clip:artificial"
    text_dim = DIM

    def encode(self, texts: Any) -> Tensor:
        weights = [{word: 1.0 if word in (*COLOURS, *SHAPES) else 0.2 for word in text.split()} for text in texts]
        return torch.stack([sum((w * direction(word) for word, w in row.items()), direction("all")) for row in weights])

    def encode_words(self, words: Any, templates: Any = None) -> Tensor:
        words = words if isinstance(words, Vocabulary) else Vocabulary(words, templates=templates)
        return F.normalize(self.encode([prompt.rstrip(".") for word in words for prompt in words.prompts(word)]), dim=1)


class Identity:
    """The transform of images that are tensors already."""

    image_size = 2

    def __call__(self, image: Tensor) -> Tensor:
        return image


class Places(nn.Module):
    """An image encoder: at each of four places the directions of a colour and a shape, noise, and the gap from texts.

    An image (3,2,2) holds the numbers of a colour, a shape and a noise at each place.
    """

    spec, encoder_dim, num_global_tokens, projected = Texts.spec, DIM, 1, True

    def __init__(self, gap: float) -> None:
        super().__init__()
        self.transform = Identity()
        nothing = torch.zeros(1, DIM)
        self.register_buffer("colours", torch.cat([torch.stack(list(map(direction, COLOURS))), nothing]))
        self.register_buffer("shapes", torch.cat([torch.stack(list(map(direction, SHAPES))), nothing]))
        self.register_buffer("noise", 0.5 * torch.stack([direction(f"noise {i}") for i in range(64)]))
        self.register_buffer("gap", gap * direction("gap") + direction("all"))

    def config(self) -> dict[str, Any]:
        return {"spec": self.spec}

    def forward(self, images: Tensor) -> Tensor:
        colour, shape, noise = images.long().flatten(2).unbind(1)  # (B,4) each
        found = self.colours[colour] + self.shapes[shape] + self.noise[noise] + self.gap  # (B,4,C)
        return 3 * torch.cat([found.mean(1, keepdim=True), found], 1)  # (B,5,C): images are longer than texts


class Pictures:
    """Images with one to three things at different places."""

    missing, name, vocabulary = 0, "pictures", THINGS

    def __init__(self, num_images: int = 300, seed: int = 0, split: str = "test") -> None:
        rng = np.random.default_rng(seed)
        self.split, self.ids = split, [str(i) for i in range(num_images)]
        self.images = torch.full((num_images, 3, 2, 2), 5.0)
        self.images[:, 2] = torch.from_numpy(rng.integers(64, size=(num_images, 2, 2)))
        dense = np.zeros((num_images, len(THINGS)), np.int8)
        for i in range(num_images):
            for place in rng.choice(4, rng.integers(1, 4), replace=False):
                label = rng.integers(len(THINGS))
                colour, shape = THINGS.words[label].split()
                self.images[i, 0].view(-1)[place] = COLOURS.index(colour)
                self.images[i, 1].view(-1)[place] = SHAPES.index(shape)
                dense[i, label] = 1
        self.targets = csr_matrix(dense)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, row: int) -> dict[str, Any]:
        return {"image": self.images[row], "targets": self.targets[row].toarray()[0], "id": self.ids[row]}


def told(vocabulary: Vocabulary = THINGS, words: list[str] = SHOWN, num_sentences: int = 600) -> CaptionDataset:
    """Sentences about one to three of these words."""
    rng = np.random.default_rng(1)
    texts = []
    for _ in range(num_sentences):
        things = [f"a {word}" for word in rng.choice(words, rng.integers(1, 4), replace=False)]
        texts.append(" and ".join(things) + str(rng.choice([" on a table", " near a wall", "", " in the sun"])))
    texts = list(dict.fromkeys(texts))
    found = find_words(texts, vocabulary.words)
    return CaptionDataset(texts, found, [str(i) for i in range(len(texts))], vocabulary)


def trainer_of(dataset: Any = None, gap: float = 4.0, decoder: dict[str, Any] | None = None, **options: Any) -> Trainer:
    """A training on sentences of the artificial space."""
    torch.manual_seed(0)
    widths = {"encoder_dim": DIM, "text_dim": DIM, "decoder_dim": 64, "num_heads": 4, "feedforward_dim": 128}
    head = {"output": "cosine", "num_global_tokens": 1, "unit_positions": True} | widths | (decoder or {})
    text_encoder: Any = Texts()
    model = ZeroShotClassifier(Places(gap), MLDecoder(**head), text_encoder)  # type: ignore[arg-type]
    settings = {"epochs": 8, "batch_size": 32, "lr": 2e-3, "ema_decay": 0.0, "loss": "binary_cross_entropy"}
    settings |= {"freeze_image_encoder": True, "device": "cpu", "text_encoder": text_encoder} | options
    return Trainer(model, told() if dataset is None else dataset, **settings)


def quality(model: ZeroShotClassifier) -> tuple[float, float]:
    """mAP of seen and unseen words on images."""
    pictures, encoder = Pictures(), Texts()
    scored = score_dataset(model, pictures, encoder.encode_words(THINGS), torch.device("cpu"))
    precision = average_precision(scored.logits, pictures.targets.toarray())
    seen = THINGS.is_seen
    return mean_average_precision(precision[seen]), mean_average_precision(precision[~seen])


def test_a_head_that_was_trained_on_sentences_ranks_the_words_of_images() -> None:
    chance = float((Pictures().targets.toarray() == 1).mean())
    assert chance < 0.1
    untrained = quality(trainer_of().model.eval())
    trainer = trainer_of(text_noise=0.5)
    seen, unseen = quality(trainer.fit())
    assert seen > 0.8 and unseen > 0.75 and seen > untrained[0] + 0.3 and unseen > untrained[1] + 0.3
    without = quality(trainer_of(text_noise=0.0).fit())
    assert seen > without[0] - 0.02 and unseen > without[1] - 0.02  # there is a gap: noise does no harm


def test_only_sentences_are_read_in_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Places, "forward", lambda *_: pytest.fail("the image encoder was run"))
    trainer_of(epochs=1, steps_per_epoch=2).fit()


def test_validation_may_be_images_or_sentences() -> None:
    for val in (Pictures(40, seed=5, split="val"), told(num_sentences=40)):
        if isinstance(val, CaptionDataset):
            val.split = "val"
        trainer = trainer_of(epochs=1, steps_per_epoch=2, val_dataset=val, holdout_words=0.2)
        trainer.fit()
        assert len(trainer.heldout) == 4 and trainer.selected_by == "heldout_mean_average_precision"
        assert 0 < trainer.history[0]["heldout_mean_average_precision"] <= 1


def test_unseen_words_never_influence_training() -> None:
    """The same sentences, which name unseen words, with these in the vocabulary and without."""
    weights = []
    for vocabulary in (THINGS, Vocabulary(SHOWN)):
        dataset = told(vocabulary, words=list(THINGS.words), num_sentences=120)
        rows = np.flatnonzero((told(THINGS, list(THINGS.words), 120).targets[:, : len(SHOWN)] == 1).sum(1))
        assert 0 < len(rows) < len(dataset)  # some name unseen words alone
        trainer = trainer_of(dataset, epochs=2, steps_per_epoch=3, text_noise=0.5, val_dataset=None)
        weights.append(trainer.fit().decoder.state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_a_resumed_training_ends_with_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options: dict[str, Any] = {"epochs": 3, "steps_per_epoch": 4, "text_noise": 0.7, "checkpoint_every": 3}
    options |= {"augmentation": QueryAugmentation(noise=0.2, captions=2), "val_dataset": Pictures(20, 5, "val")}
    whole = trainer_of(output=tmp_path / "whole", **options).fit()

    from zsmld.trainer.step import Step

    backward, calls = Step.backward, []

    def broken(self: Step, *arguments: Any) -> Tensor:
        calls.append(1)
        if len(calls) == 8:
            raise RuntimeError("power cut")
        return backward(self, *arguments)

    monkeypatch.setattr(Step, "backward", broken)
    with pytest.raises(RuntimeError, match="power cut"):
        trainer_of(output=tmp_path / "cut", **options).fit()
    monkeypatch.setattr(Step, "backward", backward)
    resumed = trainer_of(output=tmp_path / "cut", **options).fit(resume=True)
    for name, value in whole.decoder.state_dict().items():
        assert torch.equal(value, resumed.decoder.state_dict()[name]), name
    changed = told()
    changed.sentences[0] += " today"  # labels and ids stay
    with pytest.raises(ValueError, match="images"):
        trainer_of(changed, output=tmp_path / "cut", **options).fit(resume=True)


def test_a_sentence_has_its_own_noise_in_each_step() -> None:
    """It depends on the sentence's place in the step, not on how the step is divided."""
    found = []
    for parts, noise in ((1, 0.5), (4, 0.5), (1, 0.0)):
        options: dict[str, Any] = {"gradient_accumulation": parts, "optimizer": "sgd", "decoder": {"dropout": 0.0}}
        trainer = trainer_of(epochs=1, steps_per_epoch=3, text_noise=noise, **options)
        found.append(trainer.fit().decoder.state_dict())
    for name in found[0]:
        torch.testing.assert_close(found[0][name], found[1][name], rtol=1e-4, atol=1e-5)
    name = "cosine_proj.weight"
    assert (found[0][name] - found[2][name]).norm() > 100 * (found[0][name] - found[1][name]).norm()


def test_noise() -> None:
    positions = F.normalize(torch.randn(200, 5, DIM), dim=2) * 3
    noisy = add_text_noise(positions, 1.0, range(200))
    assert torch.equal(noisy, add_text_noise(positions, 1.0, range(200)))
    assert torch.equal(noisy[7:8], add_text_noise(positions[7:8], 1.0, [7]))
    assert not torch.equal(noisy, add_text_noise(positions, 1.0, range(1, 201)))
    torch.testing.assert_close(noisy.norm(dim=2), positions.norm(dim=2))
    cosine = F.cosine_similarity(noisy, positions, dim=2)
    assert abs(cosine.mean() - 2**-0.5) < 0.02  # noise as long as the embedding stands at a right angle to it
    assert add_text_noise(positions, 0.1, range(200)).sub(positions).norm(dim=2).mean() == pytest.approx(0.3, rel=0.05)


def test_encoded_sentences() -> None:
    dataset = told(num_sentences=10)
    features, encoder = encode_sentences(dataset, Texts()), Texts()  # type: ignore[arg-type]
    assert features.spatial_embeddings.shape == (len(dataset), 5, DIM) and features.vocabulary == THINGS
    assert (features.ids, features.split, features.missing) == (dataset.ids, "train", 0)
    expected = F.normalize(encoder.encode(dataset.texts(3)), dim=1)
    torch.testing.assert_close(features[3]["spatial_embeddings"], expected, rtol=0, atol=1e-3)
    alone = CaptionDataset(dataset.sentences, dataset.targets, dataset.ids, THINGS, num_phrases=0)
    assert encode_sentences(alone, Texts()).spatial_embeddings.shape == (len(dataset), 1, DIM)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"decoder": {"unit_positions": False}}, "sentences need decoder.unit_positions=true"),
        ({"freeze_image_encoder": False}, "sentences need freeze_image_encoder=true"),
        ({"image_augmentation": ImageAugmentation(cutout=0.5)}, "sentences cannot be augmented as images are"),
        ({"decoder": {"prior": TrainingFreeScorer(DIM, DIM, 1)}}, "sentences cannot train a head with a prior"),
        ({"text_noise": -1.0}, "text_noise must not be negative"),
        ({"dataset": Pictures(20, split="train"), "text_noise": 0.5}, "text_noise is for a dataset of sentences"),
    ],
)
def test_options_that_do_not_fit(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        trainer_of(**change)


def test_another_space_is_refused(make_model: Callable[..., ZeroShotClassifier]) -> None:
    model = make_model(unit_positions=True)
    with pytest.raises(ValueError, match=r"one encoder of images and texts.*got timm:test_resnet and vectors") as error:
        Trainer(model, told(), freeze_image_encoder=True, device="cpu")
    assert "sentences need positions in the space of texts, got 96 channels for 16" in str(error.value)


# ---------------------------------------------------------------------------------------------------------- open_clip


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An open_clip model of few weights, random, saved as others are."""
    folder = tmp_path_factory.mktemp("clip")
    text = {"context_length": 24, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
    vision = {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16}
    config = {"model_cfg": {"embed_dim": 24, "vision_cfg": vision, "text_cfg": text}, "preprocess_cfg": {}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    (folder / "tiny_captions_clip.json").write_text(json.dumps(config["model_cfg"]))
    open_clip.add_model_config(folder / "tiny_captions_clip.json")  # a checkpoint names its architecture
    torch.manual_seed(0)
    model = open_clip.create_model(f"local-dir:{folder}", load_weights=False)
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / "open_clip_model.safetensors")
    return f"open_clip:{folder}"


def test_from_a_recipe_to_scores_of_images(clip: str, photos: Path, tmp_path: Path) -> None:
    """The recipe that docs/text_training.md shows, with a model that fits here."""
    rows = ["a dog on a beach", "two cats and a red car", "a boat", "trees behind a dog", "the cat", "red cars"] * 4
    path = written(tmp_path, ".txt", rows=[f"{row} {i}" for i, row in enumerate(rows)])
    images = {"name": "table", "path": str(photos / "photos.csv"), "partition": str(photos / "partition.json")}
    content: dict[str, Any] = {
        "dataset": {"name": "captions", "path": str(path), "images": images, "num_phrases": 2},
        "image_encoder": {"spec": clip, "projected": True, "value_path": True, "global_token": True},
        "text_encoder": clip,
        "decoder": {"output": "sum", "unit_positions": True, "decoder_dim": 32, "num_heads": 4, "feedforward_dim": 64},
        "features": {"cache": "memory"},
        "trainer": {"epochs": 2, "batch_size": 4, "text_noise": 0.5, "freeze_image_encoder": True, "device": "cpu"},
    }
    recipe = Recipe.from_dict(content)
    assert yaml_again(recipe) == recipe.effective()
    trainer = recipe.build_trainer(tmp_path / "run")
    assert trainer.heldout and trainer.val_dataset is not None and "image" in trainer.val_dataset[0]
    trainer.fit()
    data = json.loads((tmp_path / "run" / "data.json").read_text())
    assert data["train"]["manifest"]["counts"]["rows"] == 24 and "sentences" in data["train"]["dataset"]

    model = ZeroShotClassifier.from_pretrained(tmp_path / "run" / "model")
    report = Evaluator(protocol="gzsl").evaluate(model, recipe.build_dataset("test"))
    assert set(report.protocols) == {"zsl", "gzsl"}
    picture = Image.fromarray(np.zeros((40, 30, 3), np.uint8))
    (prediction,) = Predictor(model, words=["dog", "zebra"], device="cpu").predict([picture])
    assert sorted(prediction.words) == ["dog", "zebra"]  # a word beyond the vocabulary, as ever


def yaml_again(recipe: Recipe) -> dict[str, Any]:
    """The effective recipe after a way through YAML."""
    import yaml

    return Recipe.from_dict(yaml.safe_load(recipe.to_yaml())).effective()


def test_recipe_names_wrong_keys(clip: str) -> None:
    content = {"dataset": {"name": "captions", "pth": "x.txt"}, "image_encoder": {"spec": clip}, "text_encoder": clip}
    with pytest.raises(ValueError, match="unknown 'pth'; did you mean 'path'"):
        Recipe.from_dict(content)


def test_documentation_runs(capsys: pytest.CaptureFixture[str]) -> None:
    text = (ROOT / "docs" / "text_training.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    exec(compile(example, "docs/text_training.md", "exec"), {})
    assert "FeatureDataset('captions', 3 images, 3 positions of 384)" in capsys.readouterr().out
