"""Models on the Hub, by the Hub's own client against a small Hub on this machine; and what a checkpoint must hold."""

import json
import pickle
import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import safetensors.torch
import torch
from huggingface_hub import ModelCard
from PIL import Image
from stand_in_hub import Hub

import zsmld.model
import zsmld.text.encoder
from zsmld import ImageEncoder, Predictor, ZeroShotClassifier, create_model
from zsmld.cli import main

MakeModel = Callable[..., Any]
IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
FILES = {"config.json", "model.safetensors"}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """An empty Hub that this process's client talks to as "owner"."""
    hub = Hub()
    hub.connect(monkeypatch, tmp_path / "cache")
    yield hub
    hub.close()


@pytest.fixture
def model(make_model: MakeModel) -> ZeroShotClassifier:
    return make_model(output="sum")


def files_of(model: ZeroShotClassifier, folder: Path) -> dict[str, bytes]:
    model.save_pretrained(folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# ------------------------------------------------------------------------------------------------------ there and back


@torch.no_grad()
def test_what_was_pushed_comes_back_pinned(hub: Hub, model: ZeroShotClassifier, tmp_path: Path) -> None:
    commit = model.push_to_hub("owner/m", license="apache-2.0", commit_message="First")
    repository = hub.repositories["owner/m"]
    assert not repository.private and repository.branches == {"main": commit.oid}
    assert commit.commit_url == f"{hub.endpoint}/owner/m/commit/{commit.oid}"
    initial, weights, card = repository.commits  # in the order they were made
    assert [repository.messages[c] for c in (initial, weights, card)] == ["initial commit", "First", "Model card"]
    assert set(repository.commits[card]) == FILES | {"README.md", ".gitattributes"}
    for name, content in files_of(model, tmp_path / "saved").items():
        assert repository.commits[weights][name] == repository.commits[card][name] == content
    text = repository.commits[card]["README.md"].decode()
    assert f"from_pretrained('owner/m', revision='{weights}')" in text and f"--model owner/m@{weights}" in text
    assert ModelCard(text).data.license == "apache-2.0"

    for pinned in (weights, card):
        restored = ZeroShotClassifier.from_pretrained("owner/m", revision=pinned)
        assert restored.source == f"owner/m@{pinned}" and restored.source in repr(restored) and not restored.training
        own, state = model.state_dict(), restored.state_dict()
        assert list(own) == list(state) and all(torch.equal(own[name], state[name]) for name in own)
        assert restored.vocabulary == model.vocabulary
        assert torch.equal(restored(IMAGES, model.word_embeddings), model(IMAGES, model.word_embeddings))
        # Where it came from is no part of what it is.
        assert files_of(restored, tmp_path / "again") == files_of(model, tmp_path / "saved")


def test_a_commit_is_the_same_model_wherever_the_branch_goes(hub: Hub, make_model: MakeModel) -> None:
    first, second = make_model(seed=0), make_model(seed=1)
    pinned = first.push_to_hub("owner/m").oid
    newest = second.push_to_hub("owner/m").oid
    weight = "decoder.word_proj.weight"
    assert not torch.equal(first.state_dict()[weight], second.state_dict()[weight])
    with pytest.warns(UserWarning, match=rf"newest commit, which may change; .* write 'owner/m@{newest}', or revision"):
        unpinned = ZeroShotClassifier.from_pretrained("owner/m")
    assert unpinned.source == f"owner/m@{newest}"
    assert torch.equal(unpinned.state_dict()[weight], second.state_dict()[weight])
    for id_, revision in (("owner/m", pinned), (f"owner/m@{pinned}", None)):
        again = ZeroShotClassifier.from_pretrained(id_, revision=revision)
        assert torch.equal(again.state_dict()[weight], first.state_dict()[weight])
    branch = ZeroShotClassifier.from_pretrained("owner/m@main")
    assert branch.source == f"owner/m@{newest}"


def test_what_is_in_the_cache_needs_no_network(hub: Hub, model: ZeroShotClassifier) -> None:
    commit = model.push_to_hub("owner/m").oid
    hub.requests.clear()
    ZeroShotClassifier.from_pretrained("owner/m", revision=commit)
    two_files = [f"{verb} /owner/m/resolve/{commit}/{name}" for name in sorted(FILES) for verb in ("HEAD", "GET")]
    assert hub.requests == [f"GET /api/models/owner/m/revision/{commit}", *two_files]  # and nothing else
    hub.requests.clear()
    ZeroShotClassifier.from_pretrained("owner/m", revision=commit)
    assert hub.requests == []
    with pytest.warns(UserWarning, match="newest commit"):
        ZeroShotClassifier.from_pretrained("owner/m")
    assert hub.requests == ["GET /api/models/owner/m"]
    hub.close()
    assert ZeroShotClassifier.from_pretrained(f"owner/m@{commit}").source == f"owner/m@{commit}"
    with pytest.warns(UserWarning, match="newest commit"):  # the branch as it was when it was last asked for
        assert ZeroShotClassifier.from_pretrained("owner/m").source == f"owner/m@{commit}"


def test_the_command_line_takes_a_pinned_model(
    hub: Hub, model: ZeroShotClassifier, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    commit = model.push_to_hub("owner/m").oid
    Image.fromarray(np.zeros((40, 50, 3), np.uint8)).save(tmp_path / "black.png")
    assert main(["predict", str(tmp_path / "black.png"), "--model", f"owner/m@{commit}", "--device", "cpu"]) == 0
    printed = capsys.readouterr()
    assert "black.png" in printed.out and "newest commit" not in printed.err


def test_branches_pull_requests_and_private_models(hub: Hub, make_model: MakeModel) -> None:
    first, second, third = (make_model(seed=seed) for seed in range(3))
    first.push_to_hub("owner/m", private=True)
    repository = hub.repositories["owner/m"]
    main_commit = repository.branches["main"]
    assert repository.private
    branch = second.push_to_hub("owner/m", revision="larger")
    request = third.push_to_hub("owner/m", create_pr=True)
    assert repository.branches == {"main": main_commit, "larger": branch.oid, "refs/pr/1": request.oid}
    assert request.pr_revision == "refs/pr/1" and request.pr_url == f"{hub.endpoint}/owner/m/discussions/1"
    assert branch.pr_url is None
    for model, revision in ((first, "main"), (second, "larger"), (third, "refs/pr/1")):
        loaded = ZeroShotClassifier.from_pretrained("owner/m", revision=revision, token="hf_owner")
        weight = "decoder.word_proj.weight"
        assert torch.equal(loaded.state_dict()[weight], model.state_dict()[weight])
    # Weights that are there already make no pull request, the card does.
    again = first.push_to_hub("owner/m", create_pr=True, license="mit")
    assert again.pr_revision == "refs/pr/1" and repository.branches["main"] == main_commit
    with pytest.raises(FileNotFoundError, match="it does not exist or is private: correct the name, or run `hf auth"):
        ZeroShotClassifier.from_pretrained(f"owner/m@{main_commit[::-1]}", token="hf_somebody")


def test_a_card_of_ones_own_is_taken_as_it_is(hub: Hub, model: ZeroShotClassifier) -> None:
    card = ModelCard("---\nlicense: mit\n---\n\n# Mine\n")
    commit = model.push_to_hub("owner/m", card=card).oid
    assert hub.repositories["owner/m"].commits[commit]["README.md"].decode() == str(card)


# -------------------------------------------------------------------------------------------------- what is refused


def test_pushing_is_refused_before_anything_is_sent(
    hub: Hub, model: ZeroShotClassifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = ModelCard("# Mine\n")
    for arguments, kind, message in (
        ({"repo_id": "a/b/c"}, ValueError, r"repo_id must be 'owner/name', got 'a/b/c'; use letters"),
        ({"card": card, "license": "mit"}, ValueError, "card must come without report and license"),
        ({"create_pr": True, "revision": "b"}, ValueError, "revision must be None with create_pr, got 'b'"),
        ({"license": "My Licence"}, ValueError, "license must be an identifier of the Hub such as 'apache-2.0'"),
        (
            {"license": "my-licence"},
            ValueError,
            'card must have metadata that the Hub takes, it says: "license" must be one of',
        ),
        ({"report": "nowhere"}, FileNotFoundError, "report must be a folder with report.json"),
        ({"token": False}, PermissionError, "must be one that may write to owner/m, there is none; run `hf auth login"),
        ({"repo_id": "other/m"}, PermissionError, "uploaded to other/m, .* 403 .*; nothing was uploaded; run `hf auth"),
        ({"token": "hf_"}, PermissionError, "the Hub answered: .*401.*; nothing was uploaded; run `hf auth login`"),
    ):
        with pytest.raises(kind, match=message):
            model.push_to_hub(**{"repo_id": "owner/m"} | arguments)
    assert hub.repositories == {}
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(PermissionError, match="token must be one that may write to owner/m, there is none"):
        model.push_to_hub("owner/m")


def test_what_must_be_private_never_becomes_public(hub: Hub, model: ZeroShotClassifier) -> None:
    before = model.push_to_hub("owner/m").oid
    with pytest.raises(ValueError, match="private must be None or False for owner/m, which exists and is public"):
        model.push_to_hub("owner/m", private=True)
    assert hub.repositories["owner/m"].branches["main"] == before


def test_a_hub_out_of_order_says_what_is_there(hub: Hub, model: ZeroShotClassifier) -> None:
    hub.most_commits = 2  # the initial one, the weights, and not the card
    with pytest.raises(ConnectionError, match=r"500 .*; the weights are there as commit [0-9a-f]{40}, the card is not"):
        model.push_to_hub("owner/m")
    hub.most_commits = 9
    commit = model.push_to_hub("owner/m").oid
    assert set(hub.repositories["owner/m"].commits[commit]) == FILES | {"README.md", ".gitattributes"}


def test_without_a_network(hub: Hub, model: ZeroShotClassifier) -> None:
    hub.close()
    with pytest.raises(ConnectionError, match=r"to owner/m, .*; nothing was uploaded; correct the name or connect"):
        model.push_to_hub("owner/m")
    with pytest.raises(FileNotFoundError, match=r"the Hub answered: .*; correct the name or connect to the network"):
        ZeroShotClassifier.from_pretrained("owner/m")


def test_what_is_no_model_of_ours_is_refused(hub: Hub, model: ZeroShotClassifier, tmp_path: Path) -> None:
    model.push_to_hub("owner/m")
    repository = hub.repositories["owner/m"]
    ours = repository.commits[repository.branches["main"]]
    for id_, revision, kind, message in (
        ("owner/none", None, FileNotFoundError, "'owner/none' is no folder here .*; it does not exist or is private"),
        ("owner/m", "v9", FileNotFoundError, "there is no revision 'v9', correct it"),
        ("owner/a--b", None, FileNotFoundError, "HFValidationError: .*; correct the name"),
        ("owner/m@v9", "v8", ValueError, "revision must be given once, got 'v9' in the id and 'v8' beside it"),
        ("owner/m@", None, FileNotFoundError, "an existing folder or a Hub id 'owner/name', not found: owner/m@"),
        (tmp_path, "v9", ValueError, "revision must be None for a folder, got 'v9'"),
    ):
        with pytest.raises(kind, match=message):
            ZeroShotClassifier.from_pretrained(id_, revision=revision)
    # A model of another library: its weights, which may be large, are not even fetched.
    foreign = repository.add({"config.json": b'{"architectures": ["CLIPModel"]}'}, "foreign")
    hub.requests.clear()
    with pytest.raises(ValueError, match=rf"checkpoint owner/m@{foreign} must have format 1, got None; it is no model"):
        ZeroShotClassifier.from_pretrained("owner/m", revision=foreign)
    assert not [request for request in hub.requests if "safetensors" in request]
    half = repository.add({"README.md": b"without weights"}, "half")
    repository.commits[half] = {"config.json": ours["config.json"]}
    with pytest.raises(FileNotFoundError, match=r"it holds no config\.json and model\.safetensors as zsmld saves them"):
        ZeroShotClassifier.from_pretrained("owner/m", revision=half)


class Bomb:
    """What runs when it is unpickled."""

    def __reduce__(self) -> tuple:
        return Path.touch, (Path("exploded"),)


def test_nothing_is_unpickled(
    hub: Hub, model: ZeroShotClassifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model.push_to_hub("owner/m")
    repository, bomb = hub.repositories["owner/m"], pickle.dumps(Bomb())
    names = ("pytorch_model.bin", "model.pt", "modeling.py", "weights.pkl")
    commit = repository.add(dict.fromkeys(names, bomb), "more files")
    hub.requests.clear()
    ZeroShotClassifier.from_pretrained("owner/m", revision=commit)
    assert {request.rpartition("/")[2] for request in hub.requests if "/resolve/" in request} == FILES
    commit = repository.add({"model.safetensors": bomb}, "a pickle under another name")
    with pytest.raises(ValueError, match=rf"checkpoint owner/m@{commit} must be readable, it is damaged"):
        ZeroShotClassifier.from_pretrained("owner/m", revision=commit)
    assert not Path("exploded").exists()
    pickle.loads(bomb)
    assert Path("exploded").exists(), "the bomb works"


def test_a_damaged_download_is_refused(hub: Hub, model: ZeroShotClassifier, tmp_path: Path) -> None:
    source = f"owner/m@{model.push_to_hub('owner/m').oid}"
    ZeroShotClassifier.from_pretrained(source)
    (weights,) = (tmp_path / "cache").rglob("model.safetensors")
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1  # one bit of one weight: the file still reads well
    weights.resolve().write_bytes(content)
    with pytest.raises(ValueError, match=rf"checkpoint {source} must have the SHA-256 that the Hub states, .* damaged"):
        ZeroShotClassifier.from_pretrained(source)


# ------------------------------------------------------------------------------------------------------ the checkpoint


def test_a_checkpoint_holds_all_that_a_model_is(model: ZeroShotClassifier, tmp_path: Path) -> None:
    model.recipe = {"dataset": {"name": "scenes"}}
    model.training_record = {"epoch": 3, "weights": "averaged", "git": "abc"}
    model.calibration = {"stacking": 1.5}
    files = files_of(model, tmp_path)
    config = json.loads(files["config.json"])
    transform = {"image_size", "mean", "std", "interpolation", "resize"}
    assert set(config["image_encoder"]) == {"spec", "stage", "model_kwargs"} | transform
    assert config["decoder"] == model.decoder.config()
    assert config["vocabulary"] == {
        "words": ["dog", "cat", "red car", "beach", "boat", "tree"],
        "seen": ["dog", "cat", "red car", "beach"],
        "templates": ["a photo of a {}."],
    }
    assert config["text_encoder"] == {"spec": model.text_encoder, "identity": model.text_encoder_identity}
    assert (config["recipe"], config["calibration"]) == (model.recipe, model.calibration)
    assert config["training"]["weights"] == "averaged"
    assert {"zsmld", "torch", "timm"} <= set(config["versions"])
    tensors = safetensors.torch.load(files["model.safetensors"])
    assert set(tensors) == {*model.state_dict(), "word_embeddings"}
    assert torch.equal(tensors["word_embeddings"], model.word_embeddings)


@pytest.mark.parametrize("spec", ["timm:test_resnet.r160_in1k", "open_clip:ViT-tiny-test/"])
@torch.no_grad()
def test_a_model_loads_and_scores_known_words_on_its_own(
    spec: str,
    vectors_path: Path,
    make_model: MakeModel,
    images: list[Image.Image],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No weights but its own, no text encoder, no network: each would fail here."""
    if spec.startswith("open_clip:"):
        (tmp_path / "ViT-tiny-test.json").write_text(json.dumps(TINY_CLIP))
        open_clip.add_model_config(tmp_path / "ViT-tiny-test.json")
    encoder = ImageEncoder(spec, pretrained=False, image_size=64)
    model = create_model(encoder, f"vectors:{vectors_path}", decoder_dim=32, num_heads=4, feedforward_dim=64).eval()
    known = make_model()
    model.remember_words(known.vocabulary, known.word_embeddings)
    expected = Predictor(model, device="cpu").score(images)[0]
    model.save_pretrained(tmp_path / "model")

    def refused(*_: object, **__: object) -> None:
        raise AssertionError("nothing may be connected to or built")

    monkeypatch.setattr(socket.socket, "connect", refused)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", refused)
    monkeypatch.setattr("huggingface_hub.snapshot_download", refused)
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", refused)
    monkeypatch.setattr(zsmld.text.encoder.TextEncoder, "__init__", refused)
    restored = ZeroShotClassifier.from_pretrained(tmp_path / "model")
    assert np.array_equal(Predictor(restored, device="cpu").score(images)[0], expected)


TINY_CLIP = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 64, "patch_size": 16, "width": 32, "layers": 2, "head_width": 16},
    "text_cfg": {"context_length": 8, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1},
}


@pytest.mark.parametrize(
    "options",
    [
        {"pretrained_image_path": "/etc/passwd"},
        {"weights_only": False},
        {"cache_dir": "/tmp"},
        {"pretrained_cfg": {"url": "http://127.0.0.1:9"}},
        {"vision_cfg": {"timm_model_name": "test_vit", "timm_model_pretrained": True}},
        {"text_cfg": {"hf_model_name": "somebody/code"}},
        {"checkpoint_path": "weights.pth"},
    ],
    ids=lambda options: next(iter(options)),
)
def test_a_config_cannot_name_other_files_or_weights(options: dict, model: ZeroShotClassifier, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["image_encoder"]["model_kwargs"] = options
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"must not set \['.*'\] of its image encoder; it is not one of ours"):
        ZeroShotClassifier.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("decoder", {"class": "os.system"}),
        ("decoder", {"_target_": "builtins.eval"}),
        ("decoder", {"prior": {"output": "sum"}}),
        ("decoder", {"output": "__import__('os')"}),
        ("image_encoder", {"checkpoint_path": "weights.pth"}),
        ("image_encoder", {"pretrained": True}),
        ("image_encoder", {"spec": "os:system"}),
        ("image_encoder", {"spec": ["timm:test_resnet"]}),
        ("image_encoder", {"model_kwargs": "x"}),
        ("vocabulary", {"words": 7}),
        ("text_encoder", {"spec": 7}),
        ("recipe", [1]),
    ],
)
def test_a_config_that_names_other_things_is_refused(
    part: str, change: Any, model: ZeroShotClassifier, tmp_path: Path
) -> None:
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config[part] = config[part] | change if isinstance(change, dict) else change
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError):
        ZeroShotClassifier.from_pretrained(tmp_path)


def test_weights_that_lie_are_refused(model: ZeroShotClassifier, make_model: MakeModel, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    del config["weights_sha256"]  # who lies would state the right one
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    path = tmp_path / "model.safetensors"
    content = path.read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + size])
    name = "decoder.word_proj.weight"
    rows, columns = header[name]["shape"]

    def written(changed: dict[str, Any], length: int | None = None) -> None:
        text = json.dumps(header | {name: header[name] | changed}).encode()
        path.write_bytes(struct.pack("<Q", length or len(text)) + text + content[8 + size :])

    written({})
    ZeroShotClassifier.from_pretrained(tmp_path)
    start, end = header[name]["data_offsets"]
    for changed, length in (
        ({"shape": [rows * 1000, columns]}, None),
        ({"data_offsets": [start, end + 10**9]}, None),
        ({"data_offsets": [0, end - start]}, None),  # over another tensor's bytes
        ({"dtype": "F64"}, None),
        ({"dtype": "PICKLE"}, None),
        ({}, 10**12),
    ):
        written(changed, length)
        with pytest.raises(ValueError, match="must be readable, it is damaged"):
            ZeroShotClassifier.from_pretrained(tmp_path)
    written({"shape": [columns, rows]})
    with pytest.raises(ValueError, match=rf"1 of other shape \['{name}'\]"):
        ZeroShotClassifier.from_pretrained(tmp_path)
    written({"dtype": "I32"})
    with pytest.raises(ValueError, match=rf"0 of other shape \[\], 1 of other type \['{name}'\]; save it again"):
        ZeroShotClassifier.from_pretrained(tmp_path)


def test_embeddings_without_words_are_refused(make_model: MakeModel, tmp_path: Path) -> None:
    for options in ({"remember": False}, {"num_classes": 7}):
        make_model(**options).save_pretrained(tmp_path)
        path = tmp_path / "model.safetensors"
        tensors = safetensors.torch.load_file(path) | {"word_embeddings": torch.zeros(3, 16)}
        safetensors.torch.save_file(tensors, path)
        with pytest.raises(ValueError, match=r"1 unexpected \['word_embeddings'\]"):
            ZeroShotClassifier.from_pretrained(tmp_path)


@torch.no_grad()
def test_half_precision_weights_load(model: ZeroShotClassifier, tmp_path: Path) -> None:
    state = model.state_dict()
    model.save_pretrained(tmp_path, {name: t.half() if t.is_floating_point() else t for name, t in state.items()})
    restored = ZeroShotClassifier.from_pretrained(tmp_path)
    assert all(p.dtype == torch.float32 for p in restored.parameters())
    words = model.word_embeddings
    torch.testing.assert_close(restored(IMAGES, words), model(IMAGES, words), rtol=0.05, atol=0.05)


@pytest.mark.parametrize("spec", ["timm:local-dir:/tmp", "timm:/tmp", "timm:../models"])
def test_a_config_cannot_name_a_folder(spec: str, model: ZeroShotClassifier, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["image_encoder"]["spec"] = spec
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="must not name a folder as its image encoder"):
        ZeroShotClassifier.from_pretrained(tmp_path)
