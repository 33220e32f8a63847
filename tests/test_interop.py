"""Weights of other ML-Decoders: against references of their design, and every tensor accounted for."""

import argparse
import json
import math
import pickle
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from timm.layers.ml_decoder import MLDecoder as TimmMLDecoder
from timm.layers.ml_decoder import add_ml_decoder_head as timm_add_head
from torch import nn
from torch.testing import assert_close

from zsmld import MLDecoder, ZeroShotClassifier
from zsmld.interop import import_weights, load_weights
from zsmld.interop.body_names import filtered, name_body
from zsmld.interop.checkpoint_files import read_arrays, read_checkpoint
from zsmld.interop.head_names import find_head, translate_head

IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def close(actual, expected, tolerance=2e-5):
    assert_close(actual, expected, atol=tolerance, rtol=tolerance)


# ------------------------------------------------------------------------------- references, each in its own design


class OfficialLayer(nn.Module):
    """The official layer: nn.MultiheadAttention, no self-attention, dropout left out."""

    def __init__(self, width):
        super().__init__()
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(width), nn.LayerNorm(width), nn.LayerNorm(width)
        self.multihead_attn = nn.MultiheadAttention(width, 8)
        self.linear1, self.linear2 = nn.Linear(width, 48), nn.Linear(48, width)

    def forward(self, tgt, memory):
        tgt = self.norm1(tgt + tgt)
        tgt = self.norm2(tgt + self.multihead_attn(tgt, memory, memory)[0])
        return self.norm3(tgt + self.linear2(F.relu(self.linear1(tgt))))


class OfficialHead(nn.Module):
    """The official head by its names; words (N,T) are given to `forward` in word mode."""

    def __init__(self, channels, width=32, classes=None, groups=None, text=None, layers=1):
        super().__init__()
        self.classes = classes
        self.decoder = nn.Module()
        self.decoder.embed_standart = nn.Linear(channels, width)
        self.decoder.layers = nn.ModuleList(OfficialLayer(width) for _ in range(layers))
        if classes is None:
            if text != width:
                self.wordvec_proj = nn.Linear(text, width)
            self.decoder.duplicate_pooling = nn.Parameter(torch.randn(width, 1))
            self.decoder.duplicate_pooling_bias = nn.Parameter(torch.randn(1))
        else:
            self.decoder.query_embed = nn.Embedding(groups, width)
            factor = int(classes / groups + 0.999)
            self.decoder.duplicate_pooling = nn.Parameter(torch.randn(groups, width, factor))
            self.decoder.duplicate_pooling_bias = nn.Parameter(torch.randn(classes))
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))

    def forward(self, features, words=None):
        memory = F.relu(self.decoder.embed_standart(features.flatten(2).transpose(1, 2)))
        if self.classes is None:
            queries = F.relu(self.wordvec_proj(words) if hasattr(self, "wordvec_proj") else words)
        else:
            queries = self.decoder.query_embed.weight
        h = queries[:, None].expand(-1, len(memory), -1)  # (N,B,D), as the official code has it
        for layer in self.decoder.layers:
            h = layer(h, memory.transpose(0, 1))
        h = h.transpose(0, 1)
        if self.classes is None:
            return (h @ self.decoder.duplicate_pooling).flatten(1) + self.decoder.duplicate_pooling_bias
        out = torch.stack([h[:, i] @ self.decoder.duplicate_pooling[i] for i in range(h.shape[1])], 1)
        return out.flatten(1)[:, : self.classes] + self.decoder.duplicate_pooling_bias


def to_official(name, basic=(1, 2)):
    """timm's name of a TResNet tensor -> the official code's; stride-2 convolutions have a blur after them."""
    parts = name.split(".")
    if parts[-2] in ("conv", "bn"):
        place = "0" if parts[-2] == "conv" else "1"
        strided = parts[2] == "0" and parts[1] in ("layer2", "layer3", "layer4")
        blurred = strided and parts[3] == ("conv1" if int(parts[1][-1]) in basic else "conv2")
        return ".".join([*parts[:-2], *(["0"] if blurred else []), place, parts[-1]])
    return name


@pytest.fixture(scope="module")
def tresnet():
    """A short TResNet-M of timm with no parameter at a special value, and its state under the official names."""
    torch.manual_seed(0)
    body = timm.create_model("tresnet_m", layers=[1, 1, 1, 1], num_classes=0).eval()
    with torch.no_grad():
        for name, tensor in body.state_dict().items():
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 2)
            elif tensor.is_floating_point() and "bn" in name:
                tensor.copy_(0.2 * torch.randn_like(tensor) + (name.endswith("weight")))
    official = {to_official(n): t.clone() for n, t in body.state_dict().items() if "num_batches" not in n}
    with torch.no_grad():  # inplace-ABN uses |weight| + eps
        for name, tensor in body.state_dict().items():
            if name.endswith("bn.weight"):
                tensor.copy_(tensor.abs() + 1e-5)
    return body, official


def tresnet_checkpoint(official, head, prefix="", path="head."):
    state = {prefix + name: tensor for name, tensor in official.items()}
    return state | {f"{prefix}{path}{name}": tensor for name, tensor in head.state_dict().items()}


def save(folder, content, name="model.pth"):
    torch.save(content, folder / name)
    return folder / name


# ------------------------------------------------------------------------------------------------ the official code


@pytest.mark.parametrize("classes, groups", [(12, 4), (5, 5), (7, 3), (10, 6), (9, 1)])
@pytest.mark.parametrize("layers", [1, 2])
def test_a_class_head_equals_the_official_one(classes, groups, layers):
    torch.manual_seed(classes)
    theirs = OfficialHead(6, classes=classes, groups=groups, layers=layers).eval()
    translated = translate_head(find_head({f"fc.{n}": t for n, t in theirs.state_dict().items()}))
    assert set(translated.origin) == set(theirs.state_dict())
    ours = MLDecoder(**translated.config).eval()
    ours.load_state_dict(translated.tensors)
    features = torch.randn(3, 6, 2, 4)
    close(ours(features.flatten(2).transpose(1, 2)), theirs(features))


@pytest.mark.parametrize("text", [20, 32])
def test_a_word_head_equals_the_official_one(text):
    """Also where the word vectors are as wide as the decoder: the official code projects nothing then."""
    torch.manual_seed(text)
    theirs = OfficialHead(6, text=text).eval()
    translated = translate_head(find_head({f"head.{n}": t for n, t in theirs.state_dict().items()}))
    ours = MLDecoder(**translated.config).eval()
    own = ours.state_dict()
    ours.load_state_dict(translated.tensors | {n: own[n] for n in ("word_mean", "word_scale")})
    features, words = torch.randn(3, 6, 2, 4), torch.randn(7, text)
    close(ours(features.flatten(2).transpose(1, 2), words), theirs(features, words))


@pytest.mark.parametrize("layout", ["model", "lightning", "ema", "module"])
def test_an_official_checkpoint(layout, tresnet, tmp_path):
    body, official = tresnet
    torch.manual_seed(1)
    head, other = OfficialHead(2048, classes=7, groups=3).eval(), OfficialHead(2048, classes=7, groups=3)
    right, wrong = tresnet_checkpoint(official, head), tresnet_checkpoint(official, other)
    names = {str(i): f"thing {i}" for i in range(7)}
    content = {
        "model": {"model": right, "idx_to_class": {int(i): n for i, n in names.items()}, "epoch": 3},
        "lightning": {"state_dict": {f"model.{n}": t for n, t in right.items()}, "idx_to_class": names},
        "ema": {"state_dict": wrong, "state_dict_ema": {f"module.{n}": t for n, t in right.items()}},
        "module": {f"module.{n}": t for n, t in right.items()},
    }[layout]
    model, report = load_weights(save(tmp_path, content), image_size=64)
    with torch.no_grad():
        close(model(IMAGES), head(body.forward_features(IMAGES)))
    assert report.kind == "official" and report.mode == "class" and not report.left
    assert model.image_encoder.transform.mean == (0.0, 0.0, 0.0)
    stored = read_checkpoint(tmp_path / "model.pth").tensors
    assert set(report.taken) == set(stored)
    assert all(name in str(report) for name in stored)
    if layout in ("model", "lightning"):
        assert model.vocabulary.words == tuple(names.values())
    else:
        assert "what its classes are called" in str(report)


def test_averaged_weights_or_those_of_the_last_step(tresnet, tmp_path):
    _, official = tresnet
    torch.manual_seed(2)
    heads = [OfficialHead(2048, classes=4, groups=2) for _ in range(2)]
    states = [tresnet_checkpoint(official, head, path="fc.") for head in heads]
    nested = save(tmp_path, {"model": states[0], "model_ema": states[1]}, "nested.pth")
    flat = {f"model.{n}": t for n, t in states[0].items()} | {f"ema.module.{n}": t for n, t in states[1].items()}
    for path in (nested, save(tmp_path, {"state_dict": flat}, "flat.pth")):
        for averaged, index in ((None, 1), (True, 1), (False, 0)):
            model, _ = load_weights(path, averaged=averaged, image_size=64)
            assert torch.equal(model.decoder.group_fc_bias, heads[index].decoder.duplicate_pooling_bias)
    plain = save(tmp_path, {"model": states[0]}, "plain.pth")
    with pytest.raises(ValueError, match=r"checkpoint must hold averaged weights \(EMA\), got \['model'\]"):
        load_weights(plain, averaged=True)


def test_a_word_checkpoint_scores_as_the_official_one_and_takes_new_words(tresnet, tmp_path):
    body, official = tresnet
    torch.manual_seed(3)
    head = OfficialHead(2048, text=20).eval()
    vectors = F.normalize(torch.randn(6, 20), dim=1) * 3  # one length, and not ours
    words = ["dog", "cat", "red", "car", "zebra", "kite"]
    np.savez(tmp_path / "words.npz", words=np.array(words), embeddings=vectors.numpy())
    checkpoint = save(tmp_path, tresnet_checkpoint(official, head), "model.ckpt")
    report = import_weights(
        checkpoint, tmp_path / "out", words=words[:4], word_vectors=tmp_path / "words.npz", image_size=64
    )
    model = ZeroShotClassifier.from_pretrained(tmp_path / "out")
    with torch.no_grad():
        expected = head(body.forward_features(IMAGES), vectors)
        close(model(IMAGES, model.encode_words(words)), expected, 1e-4)
    assert model.vocabulary.words == tuple(words[:4]) and report.mode == "word"
    assert (tmp_path / "out" / "import.txt").read_text(encoding="utf-8") == f"{report}\n"


def test_word_vectors_of_different_lengths_are_remembered_as_they_are(tresnet, tmp_path):
    body, official = tresnet
    torch.manual_seed(4)
    head, vectors = OfficialHead(2048, text=20).eval(), torch.randn(3, 20)
    np.savez(tmp_path / "words.npz", words=np.array(["dog", "cat", "kite"]), embeddings=vectors.numpy())
    checkpoint = save(tmp_path, tresnet_checkpoint(official, head))
    model, report = load_weights(
        checkpoint, words=["kite", "dog", "unicorn"], word_vectors=tmp_path / "words.npz", image_size=64
    )
    with torch.no_grad():
        expected = head(body.forward_features(IMAGES), vectors[[2, 0]])
        close(model(IMAGES, model.word_embeddings), expected)
    assert model.text_encoder is None and "no text encoder of ours" in report.summary()
    assert "words without a vector were left out: ['unicorn']" in report.summary()


@pytest.mark.parametrize(
    ("blocks", "bottleneck", "width", "expected"),
    [
        ((3, 4, 11, 3), False, 64, ("timm:tresnet_m", {})),
        ((4, 5, 18, 3), False, 76, ("timm:tresnet_l", {})),
        ((4, 5, 24, 3), False, 83, ("timm:tresnet_xl", {})),
        ((3, 4, 23, 3), True, 64, ("timm:tresnet_v2_l", {})),  # what the ML-Decoder code calls L
        ((3, 8, 34, 5), True, 64, ("timm:tresnet_v2_l", {"layers": [3, 8, 34, 5]})),  # and XL
    ],
)
def test_every_tresnet_is_known_by_its_tensors(blocks, bottleneck, width, expected):
    tensors = {"body.conv1.0.weight": torch.empty(width, 48, 3, 3, device="meta")}
    for stage, count in enumerate(blocks, 1):
        last = 3 if bottleneck or stage > 2 else 2
        tensors |= {
            f"body.layer{stage}.{b}.conv{c}.0.weight": torch.empty(0) for b in range(count) for c in range(1, last + 1)
        }
    assert name_body(tensors, None) == expected


@pytest.mark.parametrize(
    "name, kwargs, basic", [("tresnet_m", {}, (1, 2)), ("tresnet_v2_l", {"layers": [3, 8, 34, 5]}, ())]
)
def test_the_named_tresnet_has_the_official_tensors(name, kwargs, basic):
    """Names and shapes of a whole network, through timm's filter, without its memory."""
    with torch.device("meta"):
        body = timm.create_model(name, num_classes=0, **kwargs)
    own = {n: t for n, t in body.state_dict().items() if "num_batches" not in n}
    official = {to_official(n, basic): t for n, t in own.items()}
    found, origin = filtered(body, official)
    assert {n: t.shape for n, t in found.items()} == {n: t.shape for n, t in own.items()}
    assert set(origin) == set(official) and set(origin.values()) == set(found)


# ------------------------------------------------------------------------------------------------------------- timm


def run_layers(self, tgt, memory, **_):
    """`nn.TransformerDecoder.forward` of the torch that timm's head was written for."""
    for layer in self.layers:
        tgt = layer(tgt, memory)
    return tgt


@pytest.mark.parametrize(
    "name, path", [("resnet18", "fc"), ("efficientnet_lite0", "classifier"), ("regnetx_002", "head")]
)
def test_a_timm_model_with_timms_head(name, path, tmp_path, monkeypatch):
    monkeypatch.setattr(nn.TransformerDecoder, "forward", run_layers)
    torch.manual_seed(5)
    theirs = timm_add_head(timm.create_model(name, num_classes=7)).eval()
    assert isinstance(getattr(theirs, path), TimmMLDecoder)
    args = argparse.Namespace(img_size=64, model=name)
    content = {"arch": name, "state_dict": theirs.state_dict(), "args": args, "metric": np.float64(0.5), "epoch": 1}
    model, report = load_weights(save(tmp_path, content, "model_best.pth.tar"))
    with torch.no_grad():
        expected = getattr(theirs, path)(theirs.forward_features(IMAGES))
        close(model(IMAGES), expected)
    assert report.kind == "timm" and model.image_encoder.transform.image_size == 64
    assert set(report.taken) | set(report.left) == set(theirs.state_dict())
    assert report.others == ["arch (str)", "args (Namespace)", "metric (float64)", "epoch (int)"]


def test_a_head_alone_needs_to_know_its_encoder(tmp_path):
    path = save(tmp_path, OfficialHead(96, classes=4, groups=2).state_dict())
    with pytest.raises(ValueError, match="image_encoder must be named for a head without a body"):
        load_weights(path)


# -------------------------------------------------------------------------------------------------------- PaddleClas


def paddle_arrays(depths, channels, classes, groups, vd, width=32):
    """A PaddleClas ResNet with an ML-Decoder, as `paddle.save` stores it: names, shapes and (in, out) matrices."""
    rng = np.random.default_rng(0)
    state = {}

    def conv_bn(name, into, out, size):
        state[f"{name}.conv.weight"] = rng.standard_normal((out, into, size, size)) / math.sqrt(into * size * size)
        state[f"{name}.bn.weight"] = rng.uniform(0.5, 1.5, out)
        state[f"{name}.bn.bias"] = rng.standard_normal(out) * 0.1
        state[f"{name}.bn._mean"] = rng.standard_normal(out) * 0.1
        state[f"{name}.bn._variance"] = rng.uniform(0.5, 1.5, out)

    for i, (into, out, size) in enumerate([(3, 32, 3), (32, 32, 3), (32, 64, 3)] if vd else [(3, 64, 7)]):
        conv_bn(f"stem.{i}", into, out, size)
    block, into = 0, 64
    for stage, depth in enumerate(depths):
        inner = 64 * 2**stage
        for i in range(depth):
            conv_bn(f"blocks.{block}.conv0", into, inner, 1)
            conv_bn(f"blocks.{block}.conv1", inner, inner, 3)
            conv_bn(f"blocks.{block}.conv2", inner, inner * 4, 1)
            if i == 0:
                conv_bn(f"blocks.{block}.short", into, inner * 4, 1)
            block, into = block + 1, inner * 4

    def linear(name, into, out):
        state[f"{name}.weight"] = rng.standard_normal((into, out)) / math.sqrt(into)
        state[f"{name}.bias"] = rng.standard_normal(out) * 0.1

    state["fc.input_proj.weight"] = rng.standard_normal((width, channels, 1, 1)) / math.sqrt(channels)
    state["fc.input_proj.bias"] = rng.standard_normal(width) * 0.1
    state["fc.query_pos_embed.weight"] = rng.standard_normal((groups, width))
    for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
        linear(f"fc.decoder.layers.0.cross_attn.{name}", width, width)
    linear("fc.decoder.layers.0.linear1", width, 48)
    linear("fc.decoder.layers.0.linear2", 48, width)
    for i in (1, 2, 3):
        state[f"fc.decoder.layers.0.norm{i}.weight"] = rng.uniform(0.5, 1.5, width)
        state[f"fc.decoder.layers.0.norm{i}.bias"] = rng.standard_normal(width) * 0.1
    factor = math.ceil(classes / groups)
    state["fc.group_conv.weight"] = rng.standard_normal((groups * factor, width, 1, 1)) / math.sqrt(width)
    state["fc.group_conv.bias"] = rng.standard_normal(groups * factor)
    return {name: array.astype(np.float32) for name, array in state.items()}


def paddle_forward(state, depths, classes, groups, vd, x):
    """PaddleClas' network as its code reads: strides in the 3x3 convolution, pooled shortcuts in the vd variant."""
    p = {name: torch.from_numpy(array) for name, array in state.items()}

    def conv_bn(name, x, stride=1, relu=True, pooled=False):
        if pooled:
            x, stride = F.avg_pool2d(x, 2, stride, ceil_mode=True) if stride > 1 else x, 1
        weight = p[f"{name}.conv.weight"]
        x = F.conv2d(x, weight, stride=stride, padding=weight.shape[2] // 2)
        mean, variance = p[f"{name}.bn._mean"], p[f"{name}.bn._variance"]
        x = F.batch_norm(x, mean, variance, p[f"{name}.bn.weight"], p[f"{name}.bn.bias"], eps=1e-5)
        return F.relu(x) if relu else x

    for i in range(3 if vd else 1):
        x = conv_bn(f"stem.{i}", x, stride=2 if i == 0 else 1)
    x, block = F.max_pool2d(x, 3, 2, 1), 0
    for stage, depth in enumerate(depths):
        for i in range(depth):
            stride = 2 if i == 0 and stage else 1
            y = conv_bn(f"blocks.{block}.conv0", x)
            y = conv_bn(f"blocks.{block}.conv1", y, stride)
            y = conv_bn(f"blocks.{block}.conv2", y, relu=False)
            if i == 0:
                x = conv_bn(f"blocks.{block}.short", x, stride, relu=False, pooled=vd and bool(stage))
            x, block = F.relu(x + y), block + 1
    head = {name.removeprefix("fc."): tensor for name, tensor in p.items() if name.startswith("fc.")}
    memory = F.relu(F.conv2d(x, head["input_proj.weight"], head["input_proj.bias"])).flatten(2).transpose(1, 2)
    width, layer = memory.shape[2], "decoder.layers.0."

    def linear(name, x):
        return x @ head[f"{layer}{name}.weight"] + head[f"{layer}{name}.bias"]

    def norm(i, x):
        return F.layer_norm(x, (width,), head[f"{layer}norm{i}.weight"], head[f"{layer}norm{i}.bias"])

    t = head["query_pos_embed.weight"].expand(len(x), -1, -1)
    t = norm(1, t + t)
    projected = [linear(f"cross_attn.{n}_proj", s) for n, s in zip("qkv", (t, memory, memory), strict=True)]
    q, k, v = (s.unflatten(2, (8, -1)).transpose(1, 2) for s in projected)
    attended = ((q @ k.transpose(2, 3) / math.sqrt(width // 8)).softmax(-1) @ v).transpose(1, 2).flatten(2)
    t = norm(2, t + linear("cross_attn.out_proj", attended))
    t = norm(3, t + linear("linear2", F.relu(linear("linear1", t))))
    out = F.conv2d(t.flatten(1)[..., None, None], head["group_conv.weight"], head["group_conv.bias"], groups=groups)
    return out.flatten(1)[:, :classes]


@pytest.mark.parametrize("vd, classes, groups", [(False, 7, 3), (True, 6, 3)])
def test_a_paddle_checkpoint(vd, classes, groups, tmp_path):
    depths = (3, 4, 6, 3)
    state = paddle_arrays(depths, 2048, classes, groups, vd)
    names = {name: f"parameter_{i}" for i, name in enumerate(state)}
    (tmp_path / "best.pdparams").write_bytes(pickle.dumps(state | {"StructuredToParameterName@@": names}, protocol=4))
    words = [f"thing {i}" for i in range(classes)]
    model, report = load_weights(tmp_path / "best.pdparams", words=words, image_size=64)
    with torch.no_grad():
        close(model(IMAGES), paddle_forward(state, depths, classes, groups, vd, IMAGES), 1e-4)
    assert report.image_encoder == ("timm:resnet50d" if vd else "timm:resnet50")
    assert set(report.taken) == set(state) and not report.left
    assert model.vocabulary.words == tuple(words)
    if classes == 7:
        with pytest.raises(ValueError, match="words must be 7 to 9 for 3 queries of 3 classes each, got 6"):
            load_weights(tmp_path / "best.pdparams", words=words[:6], image_size=64)


# ------------------------------------------------------------------------------------------- nothing in a file is run


class Evil:
    def __reduce__(self):
        return (Path.touch, (Path("/tmp/zsmld_was_run"),))


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_arrays_are_read_and_anything_else_is_refused_by_name(protocol, tmp_path):
    arrays = {"a": np.arange(6.0).reshape(2, 3), "b": np.float32(1), "c": ("name", np.arange(3)), "d": [1, "x", None]}
    (tmp_path / "good.pdparams").write_bytes(pickle.dumps(arrays, protocol=protocol))
    found = read_arrays(tmp_path / "good.pdparams")
    assert np.array_equal(found["a"], arrays["a"]) and found["b"] == 1 and found["d"] == arrays["d"]
    assert np.array_equal(found["c"][1], np.arange(3))
    for evil in (Evil(), np.array([Evil()], dtype=object), print):
        (tmp_path / "bad.pdparams").write_bytes(pickle.dumps({"a": evil}, protocol=protocol))
        with pytest.raises(ValueError, match=r"it asks for [\w.]+, which is no array"):
            read_arrays(tmp_path / "bad.pdparams")
    assert not Path("/tmp/zsmld_was_run").exists()


def test_a_torch_file_that_may_run_code_is_refused_by_name(tmp_path):
    path = save(tmp_path, {"state_dict": {"a": torch.zeros(1)}, "hook": Evil()})
    with pytest.raises(ValueError, match=r"it holds \[.*Path.*\], which may run code; save its state_dict alone"):
        read_checkpoint(path)
    assert not Path("/tmp/zsmld_was_run").exists()
    (tmp_path / "broken.pth").write_bytes(b"PK\x03\x04 not a zip")
    with pytest.raises(ValueError, match=r"cannot read .*broken\.pth"):
        read_checkpoint(tmp_path / "broken.pth")
    with pytest.raises(FileNotFoundError, match="checkpoint must be an existing file, not found"):
        read_checkpoint(tmp_path / "none.pth")


# --------------------------------------------------------------------------------------- what does not fit is listed


@pytest.fixture(scope="module")
def small():
    """A test_resnet of timm with an official head on `fc`."""
    torch.manual_seed(6)
    body, head = timm.create_model("test_resnet", num_classes=0).eval(), OfficialHead(96, classes=4, groups=2).eval()
    state = body.state_dict() | {f"fc.{n}": t for n, t in head.state_dict().items()}
    return body, head, state


def test_constants_and_the_old_classifier_are_left_out_with_the_reason(small, tmp_path):
    body, head, state = small
    more = {"layer1.0.aa.filt": torch.zeros(1), "head.fc.weight": torch.zeros(2, 96), "aux.weight": torch.zeros(3)}
    path = save(tmp_path, state | more)
    with pytest.raises(ValueError, match=r"0 missing \[\], 1 left over \['aux.weight'\], 0 of other shape"):
        load_weights(path, image_encoder="timm:test_resnet", image_size=64)
    model, report = load_weights(path, image_encoder="timm:test_resnet", image_size=64, ignore=["aux.*"])
    with torch.no_grad():
        close(model(IMAGES), head(body.forward_features(IMAGES)))
    assert set(report.left) == set(more)
    assert "aux.weight left out: ignored, as asked" in str(report)
    assert "layer1.0.aa.filt left out: a constant that the network computes itself" in str(report)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("layer1.0.conv1.weight"), r"1 missing \['layer1.0.conv1.weight'\]"),
        (
            lambda s: s.update({"layer1.0.conv1.weight": torch.zeros(1)}),
            r"1 of other shape \['layer1.0.conv1",
        ),
        (lambda s: s.pop("fc.decoder.layers.0.norm2.bias"), r"the head must hold decoder.layers.0.norm2.bias"),
        (
            lambda s: s.update({"fc.decoder.layers.0.self_attn.in_proj_bias": torch.zeros(1)}),
            r"1 besides \['decoder.layers.0.self_attn.in_proj_bias'\]; this head computes something else",
        ),
        (
            lambda s: s.update({"fc.decoder.layers.0.norm1.bias": torch.zeros(3)}),
            r"fit each other, got \['layers.0",
        ),
        (lambda s: s.pop("fc.decoder.duplicate_pooling"), r"checkpoint must hold one ML-Decoder head"),
        *(
            (
                lambda s, name=name, wrong=wrong: s.update({f"fc.decoder.{name}": wrong}),
                rf"the head must hold decoder\.{name} with {dims} dimensions, none of them 0, got the shape \(",
            )
            for name, wrong, dims in (
                ("embed_standart.weight", torch.zeros(3), 2),
                ("query_embed.weight", torch.tensor(1.0), 2),
                ("layers.0.multihead_attn.in_proj_bias", torch.zeros(3, 3), 1),
                ("query_embed.weight", torch.zeros(0, 3), 2),
                ("duplicate_pooling", torch.zeros(3), "2 or 3"),
                ("duplicate_pooling_bias", torch.tensor(1.0), 1),
            )
        ),
        *(
            (
                lambda s, rows=rows: s.update({"fc.decoder.layers.0.multihead_attn.in_proj_bias": torch.zeros(rows)}),
                rf"must hold decoder\.layers\.0\.multihead_attn\.in_proj_bias with a multiple of 3 rows, got {rows}; ",
            )
            for rows in (1, 4)
        ),
        *(
            (
                lambda s, change=change: s.update(
                    {"fc.decoder.query_embed.weight": change(s["fc.decoder.query_embed.weight"])}
                ),
                rf"the head must have {kind} ones, \['decoder\.query_embed\.weight'\]",
            )
            for change, kind in (
                (torch.Tensor.to_sparse, "dense tensors, got sparse"),
                (lambda t: t.to(torch.complex64), "real tensors, got complex"),
            )
        ),
    ],
)
def test_a_tensor_too_few_or_too_many_is_named(change, message, small, tmp_path):
    state = dict(small[2])
    change(state)
    with pytest.raises(ValueError, match=message):
        import_weights(save(tmp_path, state), tmp_path / "out", image_encoder="timm:test_resnet", image_size=64)
    assert not (tmp_path / "out").exists()


def test_other_wrong_arguments(small, tmp_path):
    path = save(tmp_path, small[2])
    with pytest.raises(ValueError, match="image_encoder must be named for a body that is no TResNet"):
        load_weights(path)
    with pytest.raises(ValueError, match="words must be 4, one for each class of the head, got 2"):
        load_weights(path, image_encoder="timm:test_resnet", image_size=64, words=["a", "b"])
    (tmp_path / "words.json").write_text(json.dumps({"1": "b", "0": "a", "2": "c", "3": "d"}))
    model, _ = load_weights(path, image_encoder="timm:test_resnet", image_size=64, words=tmp_path / "words.json")
    assert model.vocabulary.words == ("a", "b", "c", "d")


@pytest.mark.parametrize("arch", ["hf-hub:somebody/network", "local-dir:.", "somebody/network", "=cmd|' /C calc'!A0"])
def test_a_file_names_no_repository_or_folder(arch, small, tmp_path):
    path = save(tmp_path, {"arch": arch, "state_dict": small[2]})
    with pytest.raises(ValueError, match=r"image_encoder must be named for a body .* which timm does not know; give"):
        load_weights(path)
    assert load_weights(path, image_encoder="timm:test_resnet", image_size=64)


def test_classes_of_the_same_name_get_a_number(small, tmp_path):
    path = save(tmp_path, {"model": small[2], "idx_to_class": {0: "bat", 1: "ball", 2: "bat", 3: "cap"}})
    model, report = load_weights(path, image_encoder="timm:test_resnet", image_size=64)
    assert model.vocabulary.words == ("bat", "ball", "bat (2)", "cap")
    assert "classes of the same name got a number: ['bat (2)']" in report.summary()


# -------------------------------------------------------------------------------------------- what files also look like


def official_word_forward(state, features, words, path="fc."):
    """The official word mode, from its tensors alone: no module of torch's and none of ours."""
    p = {name.removeprefix(path): tensor for name, tensor in state.items() if name.startswith(path)}
    layer = "decoder.layers.0."

    def linear(name, x):
        return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]

    def norm(name, x):
        x = x - x.mean(-1, keepdim=True)
        return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * p[f"{name}.weight"] + p[f"{name}.bias"]

    memory = linear("decoder.embed_standart", features.flatten(2).transpose(1, 2)).relu()  # (B,S,D)
    t = linear("wordvec_proj", words).relu().expand(len(memory), -1, -1)  # (B,N,D)
    t = norm(f"{layer}norm1", t + t)
    joint = zip(
        p[f"{layer}multihead_attn.in_proj_weight"].chunk(3),
        p[f"{layer}multihead_attn.in_proj_bias"].chunk(3),
        strict=True,
    )
    q, k, v = (x @ w.T + b for x, (w, b) in zip((t, memory, memory), joint, strict=True))
    heads = []
    for one in range(8):
        part = slice(one * q.shape[2] // 8, (one + 1) * q.shape[2] // 8)
        scores = torch.einsum("bnd,bsd->bns", q[..., part], k[..., part]) / math.sqrt(q.shape[2] / 8)
        heads.append(scores.softmax(-1) @ v[..., part])
    t = norm(f"{layer}norm2", t + linear(f"{layer}multihead_attn.out_proj", torch.cat(heads, 2)))
    t = norm(f"{layer}norm3", t + linear(f"{layer}linear2", linear(f"{layer}linear1", t).relu()))
    return (t @ p["decoder.duplicate_pooling"]).squeeze(2) + p["decoder.duplicate_pooling_bias"]


@pytest.fixture
def small_words(tmp_path):
    """A small body with a head of word mode, and a file of word vectors of length three."""
    torch.manual_seed(6)
    body = timm.create_model("test_resnet", num_classes=0).eval()
    head = OfficialHead(body.num_features, text=20).eval()
    state = dict(body.state_dict()) | {f"fc.{name}": tensor for name, tensor in head.state_dict().items()}
    vectors = 3 * F.normalize(torch.randn(4, 20), dim=1)
    np.savez(tmp_path / "words.npz", words=np.array(["dog", "cat", "red", "car"]), embeddings=vectors.numpy())
    return body, state, vectors


def test_new_words_score_as_the_official_code_whatever_was_remembered(small_words, tmp_path):
    """What the projection takes over is the length of the file's vectors, not that of a mean over parts."""
    body, state, vectors = small_words
    path = save(tmp_path, state)
    model, report = load_weights(
        path, image_encoder="timm:test_resnet", image_size=64, words=["red car"], word_vectors=tmp_path / "words.npz"
    )
    with torch.no_grad():
        features = body.forward_features(IMAGES)
        mean = vectors[2:].mean(0, keepdim=True)
        close(model(IMAGES, model.word_embeddings), official_word_forward(state, features, mean), 1e-4)
        new = model(IMAGES, model.encode_words(["dog", "car"]))
        close(new, official_word_forward(state, features, vectors[[0, 3]]), 1e-4)
    assert "1 words have the mean of their parts" in report.summary()


def test_an_array_beside_its_words_gives_no_text_encoder_that_would_fail(small_words, tmp_path):
    body, state, vectors = small_words
    np.save(tmp_path / "array.npy", vectors.T.numpy()[None])
    (tmp_path / "classes.txt").write_text("dog\ncat\nred\ncar\n")
    model, report = load_weights(
        save(tmp_path, state), image_encoder="timm:test_resnet", image_size=64, word_vectors=tmp_path / "array.npy"
    )
    assert model.text_encoder is None and "make one file of both with import_word_vectors" in report.summary()
    with torch.no_grad():
        expected = official_word_forward(state, body.forward_features(IMAGES), vectors)
        close(model(IMAGES, model.word_embeddings), expected, 1e-4)


def test_arguments_that_do_nothing_are_refused(small_words, small, tmp_path):
    how = {"image_encoder": "timm:test_resnet", "image_size": 64}
    with pytest.raises(ValueError, match="word_vectors must be given with words for a head of word mode"):
        load_weights(save(tmp_path, small_words[1]), words=["dog"], **how)
    path = save(tmp_path, small[2])
    with pytest.raises(ValueError, match="word_vectors must be None for a head of class mode"):
        load_weights(path, word_vectors=tmp_path / "words.npz", **how)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="output must be a folder, got the file"):
        import_weights(path, tmp_path / "file", **how)


@pytest.mark.parametrize(
    "stored",
    [
        {"idx_to_class": {"/m/3": "d", "/m/1": "a", "/m/0": "c", "/m/2": "b"}},  # an order of its own
        {"idx_to_class": {3: "b", 2: "c", 1: "a", 0: "d"}},
        {"class_to_idx": {"a": 1, "b": 3, "c": 2, "d": 0}},
        {"classes": np.array(["d", "a", "c", "b"])},
        {"idx_to_class": {label: np.str_(name) for label, name in enumerate("dacb")}},
    ],
)
def test_names_of_classes_in_every_form(stored, small, tmp_path):
    path = save(tmp_path, {"model": small[2], **stored})
    model, _ = load_weights(path, image_encoder="timm:test_resnet", image_size=64)
    assert model.vocabulary.words == ("d", "a", "c", "b")


def test_a_number_for_a_name_is_not_one_that_is_there(small, tmp_path):
    path = save(tmp_path, {"model": small[2], "classes": ["bat", "bat (2)", "bat", "cap"]})
    model, _ = load_weights(path, image_encoder="timm:test_resnet", image_size=64)
    assert model.vocabulary.words == ("bat", "bat (2)", "bat (3)", "cap")


@pytest.mark.parametrize(
    ("settings", "size", "mean", "interpolation"),
    [
        ({"img_size": None, "input_size": [3, 96, 96]}, 96, (0.0, 0.0, 0.0), "bilinear"),
        ({"image_size": "96"}, 96, (0.0, 0.0, 0.0), "bilinear"),
        ({"img_size": [96, 96], "mean": [0.5, 0.4, 0.3], "interpolation": "bicubic"}, 96, (0.5, 0.4, 0.3), "bicubic"),
        ({"img_size": {}, "mean": None, "interpolation": "random"}, 448, (0.0, 0.0, 0.0), "bilinear"),
    ],
)
def test_the_settings_of_the_training_prepare_the_images(settings, size, mean, interpolation, small, tmp_path):
    path = save(tmp_path, {"state_dict": small[2], "args": argparse.Namespace(**settings)})
    transform = load_weights(path, image_encoder="timm:test_resnet")[0].image_encoder.transform
    assert (transform.image_size, transform.mean, transform.interpolation) == (size, mean, interpolation)
    given = load_weights(path, image_encoder="timm:test_resnet", image_size=64, mean=(0.1, 0.1, 0.1))[0]
    assert given.image_encoder.transform.image_size == 64 and given.image_encoder.transform.mean == (0.1, 0.1, 0.1)


def test_a_wrapper_of_any_name_is_removed(small, tmp_path):
    path = save(tmp_path, {"state_dict": {f"backbone.{name}": tensor for name, tensor in small[2].items()}})
    model, report = load_weights(path, image_encoder="timm:test_resnet", image_size=64)
    assert set(report.taken) == {f"backbone.{name}" for name in small[2]}
    assert torch.equal(model.decoder.group_fc_bias, small[2]["fc.decoder.duplicate_pooling_bias"])


def test_layers_after_the_map_may_be_missing(tmp_path):
    """The official code deletes the whole `head` of a ConvNeXt, whose norm timm's model keeps."""
    torch.manual_seed(7)
    body = timm.create_model("test_convnext", num_classes=0).eval()
    head = OfficialHead(body.num_features, classes=4, groups=2).eval()
    state = {name: tensor for name, tensor in body.state_dict().items() if not name.startswith("head.")}
    assert len(state) < len(body.state_dict())
    state |= {f"head.{name}": tensor for name, tensor in head.state_dict().items()}
    model, report = load_weights(save(tmp_path, state), image_encoder="timm:test_convnext", image_size=64)
    with torch.no_grad():
        close(model(IMAGES), head(body.forward_features(IMAGES)))
    assert any("head.norm" in name for name in report.kept)
    del state["stem.0.weight"]
    with pytest.raises(ValueError, match=r"1 missing \['stem\.0\.weight'\]"):
        load_weights(save(tmp_path, state), image_encoder="timm:test_convnext", image_size=64)


def test_a_damaged_pickle_is_one_sentence(tmp_path):
    """Any byte may be wrong; nothing but a ValueError comes out."""
    whole = pickle.dumps({"a": np.arange(6.0).reshape(2, 3), "b": ("n", np.arange(3)), "c": [1, "x", None, 2.5]})
    rng = np.random.default_rng(0)
    path, refused = tmp_path / "damaged.pdparams", 0
    for _ in range(400):
        content = bytearray(whole)
        for place in rng.integers(0, len(content), rng.integers(1, 4)):
            content[place] = rng.integers(0, 256)
        path.write_bytes(content[: rng.integers(1, len(content) + 1)])
        try:
            read_arrays(path)
        except ValueError as error:
            refused += 1
            assert "must be a pickle of numpy arrays, cannot read it" in str(error)
    assert refused > 200
