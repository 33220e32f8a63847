"""ZeroShotClassifier: words as an argument, strict saving and loading."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

import zsmld.model
from zsmld import ImageEncoder, MLDecoder, TextEncoder, Vocabulary, ZeroShotClassifier, create_model
from zsmld.model import checkpoint

MakeModel = Callable[..., Any]
IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


# -------------------------------------------------------------------------------------------------------------- laws


@pytest.fixture(scope="module", params=["shared", "cosine", "sum"])
def any_output(request: pytest.FixtureRequest, make_model: MakeModel) -> ZeroShotClassifier:
    return make_model(output=request.param)


@settings(max_examples=8)
@given(order=st.permutations(range(8)), cut=st.integers(1, 7))
@torch.no_grad()
def test_a_words_logit_does_not_depend_on_the_others(
    any_output: ZeroShotClassifier, order: list[int], cut: int
) -> None:
    model = any_output
    words = torch.randn(8, 16, generator=torch.Generator().manual_seed(1))
    logits = model(IMAGES, words)
    assert logits.shape == (2, 8)
    torch.testing.assert_close(model(IMAGES, words[order]), logits[:, order], rtol=0, atol=1e-5)
    torch.testing.assert_close(model(IMAGES, words[:cut]), logits[:, :cut], rtol=0, atol=1e-5)
    chunks = torch.cat([model(IMAGES, words[:cut]), model(IMAGES, words[cut:])], 1)
    torch.testing.assert_close(chunks, logits, rtol=0, atol=1e-5)
    torch.testing.assert_close(model(IMAGES[1:], words), logits[1:], rtol=0, atol=1e-5)


@torch.no_grad()
def test_several_descriptions_of_a_word_are_averaged(make_model: MakeModel) -> None:
    model = make_model()
    words = torch.randn(4, 3, 16)
    mask = torch.tensor([[1, 1, 1], [1, 0, 0], [0, 1, 1], [1, 1, 0]], dtype=torch.bool)
    by_hand = torch.stack([w[m].mean(0) for w, m in zip(words, mask, strict=True)])
    torch.testing.assert_close(model(IMAGES, words, mask), model(IMAGES, by_hand), rtol=0, atol=1e-5)
    torch.testing.assert_close(model(IMAGES, words), model(IMAGES, words.mean(1)), rtol=0, atol=1e-5)


# ----------------------------------------------------------------------------------------------------- save and load


@pytest.fixture
def saved(make_model: MakeModel, tmp_path: Path) -> tuple[ZeroShotClassifier, Path]:
    model = make_model(output="sum")
    model.recipe = {"dataset": {"name": "scenes"}}
    model.decoder.standardize_words(torch.randn(5, 16))
    model.save_pretrained(tmp_path / "model")
    return model, tmp_path / "model"


@torch.no_grad()
def test_a_saved_model_comes_back_bit_for_bit(saved: tuple[ZeroShotClassifier, Path]) -> None:
    model, folder = saved
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    restored = ZeroShotClassifier.from_pretrained(folder)
    assert not restored.training
    state, own = restored.state_dict(), model.state_dict()
    assert list(state) == list(own) and all(torch.equal(state[name], own[name]) for name in own)
    assert restored.vocabulary == model.vocabulary and torch.equal(restored.word_embeddings, model.word_embeddings)
    assert restored.recipe == model.recipe
    assert restored.text_encoder == model.text_encoder
    assert restored.text_encoder_identity == model.text_encoder_identity
    assert restored.image_encoder.config() == model.image_encoder.config()
    assert restored.decoder.config() == model.decoder.config()
    words = model.encode_words(["dog", "zebra"])
    assert torch.equal(restored(IMAGES, words), model(IMAGES, words))
    restored.save_pretrained(folder.parent / "again")
    for name in ("config.json", "model.safetensors"):
        assert (folder.parent / "again" / name).read_bytes() == (folder / name).read_bytes()


def test_held_out_words_and_calibration_are_stored_with_the_model(
    saved: tuple[ZeroShotClassifier, Path],
) -> None:
    model, folder = saved
    assert not {"heldout_words", "calibration"} & set(json.loads((folder / "config.json").read_text()))
    older = ZeroShotClassifier.from_pretrained(folder)  # as written before these were stored
    assert older.heldout_words == () and older.calibration is None
    model.heldout_words, model.calibration = ("cat", "beach"), {"stacking": 1.5, "thresholds": {"café": None}}
    model.save_pretrained(folder)
    restored = ZeroShotClassifier.from_pretrained(folder)
    assert restored.heldout_words == ("cat", "beach") and restored.calibration == model.calibration
    restored.save_pretrained(folder.parent / "again")
    assert (folder.parent / "again" / "config.json").read_bytes() == (folder / "config.json").read_bytes()


def test_save_config_leaves_the_weights(saved: tuple[ZeroShotClassifier, Path], tmp_path: Path) -> None:
    model, folder = saved
    config = json.loads((folder / "config.json").read_text())
    weights = folder / "model.safetensors"
    before = weights.read_bytes(), weights.stat().st_mtime_ns, weights.stat().st_ino
    model.calibration = {"stacking": 1.5}
    model.save_config(str(folder))
    assert (weights.read_bytes(), weights.stat().st_mtime_ns, weights.stat().st_ino) == before
    assert json.loads((folder / "config.json").read_text()) == config | {"calibration": {"stacking": 1.5}}
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    with pytest.raises(
        FileNotFoundError, match=r"must hold model\.safetensors to get another config\.json, not found in"
    ):
        model.save_config(tmp_path / "none")


def test_files_of_two_models_are_refused(saved: tuple[ZeroShotClassifier, Path]) -> None:
    """Every tensor fits; words would get the embeddings of others."""
    model, folder = saved
    config = (folder / "config.json").read_bytes()
    model.remember_words(Vocabulary(model.vocabulary.words[::-1]), model.word_embeddings.flip(0))
    model.save_pretrained(folder)
    ZeroShotClassifier.from_pretrained(folder)
    (folder / "config.json").write_bytes(config)
    with pytest.raises(ValueError, match=r"checkpoint .* must have the weights that its config\.json was written for"):
        ZeroShotClassifier.from_pretrained(folder)
    older = json.loads(config)
    del older["weights_sha256"]  # as written before it was stored
    (folder / "config.json").write_text(json.dumps(older))
    ZeroShotClassifier.from_pretrained(folder)


def test_a_configuration_is_not_put_beside_the_weights_of_another(saved: tuple[ZeroShotClassifier, Path]) -> None:
    """A training may save its next best while somebody calibrates the last."""
    model, folder = saved
    loaded = ZeroShotClassifier.from_pretrained(folder)
    model.remember_words(Vocabulary(model.vocabulary.words[::-1]), model.word_embeddings.flip(0))
    model.save_pretrained(folder)
    with pytest.raises(ValueError, match=r"folder must hold this model's weights, got others in .*; load it again"):
        loaded.save_config(folder)
    model.save_config(folder)


def test_what_cannot_be_written_leaves_the_old_model(saved: tuple[ZeroShotClassifier, Path]) -> None:
    model, folder = saved
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    torch.nn.init.zeros_(model.decoder.word_proj.weight)
    model.calibration = {"stacking": torch.zeros(1)}
    with pytest.raises(TypeError, match="not JSON serializable"):
        model.save_pretrained(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"calibration": [1]}, "must have a complete config.json, got a calibration of type list, which is no mapping"),
        ({"heldout_words": "cat"}, "must have a complete config.json, got heldout_words must be a list of words"),
        ({"heldout_words": None}, "must have a complete config.json"),
        ({"heldout_words": ["tree"]}, r"must have heldout_words among its seen words, got \['tree'\]; correct config"),
    ],
)
def test_damaged_held_out_words_and_calibrations_are_refused(
    change: dict, message: str, saved: tuple[ZeroShotClassifier, Path]
) -> None:
    config = json.loads((saved[1] / "config.json").read_text()) | change
    (saved[1] / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=message):
        ZeroShotClassifier.from_pretrained(saved[1])


@pytest.mark.parametrize("options", [{"remember": False}, {"num_classes": 7, "num_groups": 3}])
@torch.no_grad()
def test_models_without_words_come_back_too(options: dict, make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model(**options)
    model.save_pretrained(tmp_path)
    restored = ZeroShotClassifier.from_pretrained(str(tmp_path))
    words = None if "num_classes" in options else torch.randn(3, 16)
    assert restored.vocabulary is None and torch.equal(restored(IMAGES, words), model(IMAGES, words))


def test_known_words_need_no_text_encoder(
    make_vectors: Callable[..., Path], make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_vectors(tmp_path / "v.npz", ("dog", "cat", "red car", "beach", "boat", "tree", "zebra"))
    model = make_model(text_encoder=f"vectors:{path}")
    model.save_pretrained(tmp_path / "model")
    path.unlink()
    with monkeypatch.context() as patch:
        patch.setattr(zsmld.model, "TextEncoder", None)  # whoever builds one fails
        restored = ZeroShotClassifier.from_pretrained(tmp_path / "model")
        assert torch.equal(restored.encode_words(["tree", "dog"]), model.word_embeddings[[5, 0]])
    with pytest.raises(FileNotFoundError, match=r"existing word-vector file, not found: .*v\.npz"):
        restored.encode_words(["dog", "zebra"])


def test_loading_is_strict(saved: tuple[ZeroShotClassifier, Path]) -> None:
    _, folder = saved
    weights = folder / "model.safetensors"
    content, tensors = weights.read_bytes(), safetensors.torch.load_file(weights)
    name = "decoder.shared_fc.weight"

    def refused(changed: dict, message: str) -> None:
        safetensors.torch.save_file(changed, weights)
        with pytest.raises(ValueError, match=rf"checkpoint .* must fit its config, got {message}"):
            ZeroShotClassifier.from_pretrained(folder)

    refused({k: v for k, v in tensors.items() if k != name}, rf"1 missing \['{name}'\], 0 unexpected")
    refused(tensors | {"stranger": torch.zeros(1)}, r"0 missing \[\], 1 unexpected \['stranger'\]")
    refused(tensors | {name: torch.zeros(1, 7)}, rf"0 missing .* 1 of other shape \['{name}'\]")
    safetensors.torch.save_file({k: v for k, v in tensors.items() if k != "word_embeddings"}, weights)
    with pytest.raises(ValueError, match=r"word_embeddings must be \(6, 16\), one row for each word .* got None"):
        ZeroShotClassifier.from_pretrained(folder)
    weights.write_bytes(content)
    ZeroShotClassifier.from_pretrained(folder)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", b"{not json", "must be readable, it is damaged"),
        ("config.json", b"\xff\xfe\x00", "must be readable, it is damaged"),
        ("config.json", b"[]", "must have format 1, got list"),
        ("config.json", b'{"format": 99}', "must have format 1, got 99; update zsmld"),
        ("config.json", b'{"format": 1}', "must have a complete config.json, got 'image_encoder'"),
        ("model.safetensors", b"", "must be readable, it is damaged"),
        ("model.safetensors", b"no tensors here, only text", "must be readable, it is damaged"),
    ],
)
def test_damaged_files_are_refused(
    file: str, content: bytes, message: str, saved: tuple[ZeroShotClassifier, Path]
) -> None:
    (saved[1] / file).write_bytes(content)
    with pytest.raises(ValueError, match=rf"checkpoint .*model {message}"):
        ZeroShotClassifier.from_pretrained(saved[1])


def test_truncated_weights_are_refused(saved: tuple[ZeroShotClassifier, Path]) -> None:
    weights = saved[1] / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"must be readable, it is damaged: .*; save it again"):
        ZeroShotClassifier.from_pretrained(saved[1])


@pytest.mark.parametrize("key", ["image_encoder", "decoder", "text_encoder", "recipe"])
def test_incomplete_config_is_refused(key: str, saved: tuple[ZeroShotClassifier, Path]) -> None:
    config = json.loads((saved[1] / "config.json").read_text())
    del config[key]
    (saved[1] / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=rf"must have a complete config\.json, got '{key}'"):
        ZeroShotClassifier.from_pretrained(saved[1])


@pytest.mark.parametrize("change", [{"vocabulary": None}, {"vocabulary": {"words": ["dog"]}}])
def test_damaged_vocabulary_is_refused(change: dict, saved: tuple[ZeroShotClassifier, Path]) -> None:
    config = json.loads((saved[1] / "config.json").read_text()) | change
    if config["vocabulary"] is None:
        del config["vocabulary"]
    (saved[1] / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"must have a complete config\.json"):
        ZeroShotClassifier.from_pretrained(saved[1])


def test_missing_models(saved: tuple[ZeroShotClassifier, Path], tmp_path: Path) -> None:
    for name in ("no_such_folder", "./no/such", str(tmp_path / "none"), "a/b/c"):
        with pytest.raises(
            FileNotFoundError, match="model must be an existing folder or a Hub id 'owner/name', not fo"
        ):
            ZeroShotClassifier.from_pretrained(name)
    with pytest.raises(FileNotFoundError, match="'owner/no-such-model' is no folder here and the Hub answered: "):
        ZeroShotClassifier.from_pretrained("owner/no-such-model")
    (saved[1] / "config.json").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"model folder must hold config\.json, not found in .*; save the model"
    ):
        ZeroShotClassifier.from_pretrained(saved[1])


def test_a_failed_save_leaves_the_old_model(
    saved: tuple[ZeroShotClassifier, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, folder = saved
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def full_disk(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("zsmld.writing.os.fsync", full_disk)
    torch.nn.init.zeros_(model.decoder.word_proj.weight)
    with pytest.raises(OSError, match="No space left"):
        model.save_pretrained(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


# ------------------------------------------------------------------------------------------------------------- words


def test_encode_words_mixes_known_and_new(make_model: MakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model()
    model.word_embeddings[0] = 7.0  # what is stored counts, not what the encoder would say
    asked: list[str] = []
    original = TextEncoder.encode_words

    def recording(self: TextEncoder, words: Any, templates: Any = None) -> torch.Tensor:
        asked.extend(words)
        return original(self, words, templates)

    monkeypatch.setattr(TextEncoder, "encode_words", recording)
    found = model.encode_words(["zebra", "dog", "lamp", "cat"])
    assert asked == ["zebra", "lamp"]
    assert torch.equal(found[1], torch.full((16,), 7.0)) and torch.equal(found[3], model.word_embeddings[1])
    assert torch.equal(found[[0, 2]], original(TextEncoder(model.text_encoder), ["zebra", "lamp"]))


def test_other_templates_make_known_words_new(make_model: MakeModel) -> None:
    model = make_model()
    model.word_embeddings[0] = 7.0
    assert model.encode_words(Vocabulary(["dog"])).max() == 7
    assert model.encode_words(Vocabulary(["dog"], templates=["{}"])).max() < 2


def test_another_text_encoder_is_refused(
    make_vectors: Callable[..., Path], make_model: MakeModel, vectors_path: Path, tmp_path: Path
) -> None:
    words = ("dog", "cat", "red car", "beach", "boat", "tree", "zebra")
    path = make_vectors(tmp_path / "v.npz", words)
    model = make_model(text_encoder=f"vectors:{path}")
    other = TextEncoder(f"vectors:{make_vectors(tmp_path / 'other.npz', words, seed=1)}")
    with pytest.raises(
        ValueError, match=r"must be the one this model was trained with, 'vectors:sha256:.*'; its embed"
    ):
        model.encode_words(["zebra"], other)
    moved = TextEncoder(f"vectors:{shutil.copy(path, tmp_path / 'moved.npz')}")
    torch.testing.assert_close(model.encode_words(["zebra"], moved), F.normalize(moved.encode(["zebra"])))
    make_vectors(path, words, seed=2)  # the same name, other vectors
    with pytest.raises(ValueError, match=r"must have the weights .* on this machine; restore the original"):
        model.encode_words(["zebra"])


def test_remember_words_checks_and_copies(make_model: MakeModel) -> None:
    model = make_model(remember=False)
    vocabulary, embeddings = Vocabulary(["dog", "cat"]), torch.zeros(2, 16)
    model.remember_words(vocabulary, embeddings)
    embeddings += 1
    assert model.word_embeddings.max() == 0 and "word_embeddings" not in model.state_dict()
    for wrong in (None, torch.zeros(3, 16), torch.zeros(2, 8)):
        with pytest.raises(ValueError, match=r"word_embeddings must be \(2, 16\), one row for each word"):
            model.remember_words(vocabulary, wrong)
    with pytest.raises(ValueError, match="num_classes=7 words in class mode, got 2"):
        make_model(num_classes=7).remember_words(vocabulary, None)


def test_a_model_without_text_encoder_says_so() -> None:
    encoder = ImageEncoder("timm:test_resnet", pretrained=False, image_size=64)
    model = ZeroShotClassifier(encoder, MLDecoder(96, text_dim=16, decoder_dim=32))
    with pytest.raises(ValueError, match=r"text_encoder must be known to encode \['dog'\], and this model names none"):
        model.encode_words(["dog"])
    with pytest.raises(ValueError, match="text_encoder must be named to encode words, this model has none"):
        model.build_text_encoder()


# ------------------------------------------------------------------------------------------------------ construction


@torch.no_grad()
def test_create_model_in_both_modes(vectors_path: Path) -> None:
    small = {"decoder_dim": 32, "feedforward_dim": 64}
    words = create_model("timm:test_resnet", f"vectors:{vectors_path}", pretrained=False, **small).eval()
    assert words.decoder.text_dim == 16 and words.text_encoder == f"vectors:{vectors_path}"
    size = words.image_encoder.transform.image_size
    assert words(torch.zeros(1, 3, size, size), torch.zeros(4, 16)).shape == (1, 4)
    classes = create_model("timm:test_resnet", num_classes=5, num_groups=2, pretrained=False, **small).eval()
    assert classes(torch.zeros(1, 3, size, size)).shape == (1, 5) and classes.text_encoder is None
    assert "no vocabulary" in repr(classes) and "'timm:test_resnet'" in repr(classes)


def test_wrong_construction(vectors_path: Path, make_model: MakeModel) -> None:
    for options in ({}, {"text_encoder": f"vectors:{vectors_path}", "num_classes": 5}):
        with pytest.raises(ValueError, match=r"exactly one of text_dim .* and num_classes .* must be given"):
            create_model("timm:test_resnet", pretrained=False, **options)
    encoder = ImageEncoder("timm:test_resnet", pretrained=False, image_size=64)
    with pytest.raises(ValueError, match=r"decoder must have encoder_dim=96 to fit ImageEncoder\(.*, got 95"):
        ZeroShotClassifier(encoder, MLDecoder(95, text_dim=16, decoder_dim=32))
    model = make_model()
    with pytest.raises(ValueError, match=r"word_embeddings must be \(N, 16\) to fit text_dim=16, got \(3, 17\)"):
        model(IMAGES, torch.zeros(3, 17))
    with pytest.raises(ValueError, match=r"word_embeddings must be \(N, 16\) in word mode, got None"):
        model(IMAGES)
    with pytest.raises(ValueError, match=r"images must be \(B, 3, 64, 64\)"):
        model(IMAGES[0], torch.zeros(3, 16))
    with pytest.raises(ValueError, match="word_embeddings must be None in class mode"):
        make_model(num_classes=5)(IMAGES, torch.zeros(3, 16))


def test_words_are_no_state_of_the_network(make_model: MakeModel) -> None:
    model, other = make_model(), make_model(remember=False)
    assert list(model.state_dict()) == list(other.state_dict())
    assert np.isclose(sum(p.numel() for p in model.parameters()), sum(p.numel() for p in other.parameters()))


@pytest.mark.parametrize(
    "change",
    [{"checkpoint_path": "/etc/passwd"}, {"model_kwargs": {"checkpoint_path": "/etc/passwd"}}, {"pretrained": True}],
)
def test_a_config_cannot_make_us_read_other_files(change: dict, saved: tuple[ZeroShotClassifier, Path]) -> None:
    config = json.loads((saved[1] / "config.json").read_text())
    config["image_encoder"] |= change
    (saved[1] / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"must not set \['(checkpoint_path|pretrained)'\] of its image encoder"):
        ZeroShotClassifier.from_pretrained(saved[1])


def test_the_shipped_model_has_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_model) -> None:
    monkeypatch.chdir(tmp_path)
    model = ZeroShotClassifier.from_pretrained("scenes")
    assert model.image_encoder.spec == "timm:resnet10t" and model.source is None
    with pytest.raises(ValueError, match="revision must be None for a folder, got 'main'"):
        ZeroShotClassifier.from_pretrained("scenes", revision="main")
    with pytest.raises(FileNotFoundError, match="or write 'scenes' for the model that comes with zsmld"):
        ZeroShotClassifier.from_pretrained("scene")
    with pytest.raises(ValueError, match=r"zsmld\.baseline\.create_scorer\('conse:timm:resnet50'\)"):
        ZeroShotClassifier.from_pretrained("conse:timm:resnet50")
    make_model().save_pretrained("scenes")  # a folder of that name is taken first
    assert ZeroShotClassifier.from_pretrained("scenes").image_encoder.spec == "timm:test_resnet"


def test_a_network_that_cannot_be_built_without_memory_is_loaded(saved, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many are not by older versions of timm, which ask tensors for their numbers."""
    monkeypatch.setattr(checkpoint, "_may_be_large", lambda image_config: True)
    build, asked = checkpoint.ImageEncoder, []

    def older(*arguments, **options):
        asked.append(torch.empty(1).is_meta)
        torch.ones(1).item()
        return build(*arguments, **options)

    monkeypatch.setattr(checkpoint, "ImageEncoder", older)
    ZeroShotClassifier.from_pretrained(saved[1])
    assert asked == [True, False]
