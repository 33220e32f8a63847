"""Our head on other people's networks: what it replaces, and that their training loops do not notice."""

import copy
import pickle

import pytest
import timm
import torch
from timm.data import resolve_data_config
from timm.models import group_parameters
from timm.optim import create_optimizer_v2
from timm.utils import ModelEmaV2
from torch import nn
from torch.testing import assert_close

from zsmld import MLDecoder, TextEncoder
from zsmld.interop import MapClassifier, MLDecoderHead, add_ml_decoder_head

SMALL = {"decoder_dim": 32, "feedforward_dim": 48}
# name, pixels (None: the network fixes them), arguments that make a family small
FAMILIES = [
    ("test_resnet", 64, {}),
    ("test_vit", None, {}),
    ("test_vit2", None, {}),
    ("test_vit3", None, {}),
    ("test_byobnet", 64, {}),
    ("test_convnext", 64, {}),
    ("test_efficientnet", 64, {}),
    ("test_nfnet", 64, {}),
    ("test_mambaout", 64, {}),
    ("regnetx_002", 64, {}),
    ("mobilenetv2_050", 64, {}),
    ("mobilenetv3_small_050", 64, {}),
    ("lcnet_035", 64, {}),
    ("hgnetv2_b0", 64, {}),
    ("edgenext_xx_small", 64, {}),
    ("mobilevit_xxs", 64, {}),
    ("pvt_v2_b0", 64, {}),
    ("starnet_s1", 64, {}),
    ("ese_vovnet19b_slim_dw", 64, {}),
    (
        "swin_tiny_patch4_window7_224",
        None,
        {"img_size": 64, "window_size": 4, "embed_dim": 16, "depths": (1, 1), "num_heads": (1, 2)},
    ),
    ("deit_tiny_distilled_patch16_224", None, {"img_size": 64, "depth": 2}),
    ("beit_base_patch16_224", None, {"img_size": 64, "depth": 2, "embed_dim": 48, "num_heads": 4}),
    ("mixer_s32_224", 64, {"img_size": 64}),
]


def images(model, pixels, count=2):
    generator = torch.Generator().manual_seed(0)
    size = pixels or getattr(getattr(model.body, "patch_embed", None), "img_size", (224, 224))[0]
    return torch.randn(count, 3, size, size, generator=generator)


def build(name="test_resnet", pixels=64, kwargs=None, **options):
    torch.manual_seed(0)
    body = timm.create_model(name, pretrained=False, **(kwargs or {}))
    return add_ml_decoder_head(body, image_size=pixels, **SMALL, **options)


@pytest.mark.parametrize("name, pixels, kwargs", FAMILIES, ids=[name for name, _, _ in FAMILIES])
def test_every_family_trains_a_step_and_every_parameter_learns(name, pixels, kwargs):
    model = build(name, pixels, kwargs, num_classes=5)
    logits = model.train()(images(model, pixels))
    assert logits.shape == (2, 5)
    nn.functional.binary_cross_entropy_with_logits(logits, torch.rand(2, 5)).backward()
    assert not [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_convnext"])
def test_logits_are_those_of_the_head_on_the_map_of_the_network(name):
    """Against the network as timm has it: an NCHW map, or tokens after those of class and registers."""
    torch.manual_seed(0)
    original = timm.create_model(name, pretrained=False).eval()
    pixels = None if "vit" in name else 64
    model = add_ml_decoder_head(copy.deepcopy(original), num_classes=5, image_size=pixels, **SMALL).eval()
    x = images(model, pixels)
    with torch.no_grad():
        features = original.forward_features(x)
        if features.ndim == 4:
            positions = features.flatten(2).transpose(1, 2)
        else:
            positions = features[:, original.num_prefix_tokens :]
        assert_close(model(x), model.head.decoder(positions), atol=1e-5, rtol=1e-5)
    assert not hasattr(model.body, "fc") or isinstance(model.body.fc, nn.Identity)


@pytest.mark.parametrize("name", ["pit_ti_224", "crossvit_tiny_240", "coat_lite_tiny"])
def test_families_without_a_map_are_refused_by_name(name):
    body = timm.create_model(name, pretrained=False)
    with pytest.raises(ValueError, match=f"a map of spatial embeddings, {type(body).__name__} does not"):
        add_ml_decoder_head(body, num_classes=5)


def test_a_size_that_the_network_does_not_take_is_named():
    with pytest.raises(ValueError, match=r"image_size must be one that MlpMixer takes, got \(64, 64\)"):
        build("mixer_s32_224", 64, num_classes=5)


def test_number_of_classes_defaults_to_that_of_the_network():
    assert build(kwargs={"num_classes": 9}).num_classes == 9


# ------------------------------------------------------------------------------------------------------------ words


def test_words_are_a_buffer_that_can_be_set():
    vectors = torch.randn(6, 10)
    model = build(words=vectors[:4]).eval()
    x = images(model, 64)
    with torch.no_grad():
        four = model(x)
        model.set_words(vectors)
        six = model(x)
    assert model.num_classes == 6 and model.state_dict()["head.word_embeddings"].shape == (6, 10)
    assert_close(six[:, :4], four, atol=1e-5, rtol=1e-5)
    assert not model.head.word_embeddings.requires_grad
    with pytest.raises(ValueError, match=r"words must be \(N, 10\) to fit the head's first words, got \(2, 7\)"):
        model.set_words(torch.randn(2, 7))


def test_words_as_texts_are_those_of_the_text_encoder(vectors_path):
    spec = f"vectors:{vectors_path}"
    model = build(words=["dog", "red car"], text_encoder=spec)
    assert model.head.words == ("dog", "red car")
    assert_close(model.head.word_embeddings, TextEncoder(spec).encode_words(["dog", "red car"]))
    model.set_words(["zebra", "kite", "dog"])
    assert model.head.words == ("zebra", "kite", "dog") and model.num_classes == 3


def test_words_and_classes_must_agree():
    assert build(words=torch.randn(4, 8), num_classes=4).num_classes == 4
    with pytest.raises(ValueError, match="num_classes must be the number of words or left out, got 5 for 4 words"):
        build(words=torch.randn(4, 8), num_classes=5)
    with pytest.raises(ValueError, match="words must be given when the head is added"):
        build(num_classes=3).set_words(torch.randn(2, 8))
    with pytest.raises(ValueError, match=r"decoder_options must not set \['prior'\]"):
        build(num_classes=3, prior=None)


# ------------------------------------------------------------------------------------------- other people's tooling


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_a_timm_training_loop(name):
    """What timm's train.py asks of a model: data settings, layer decay, no weight decay, EMA, checkpointing."""
    pixels = None if "vit" in name else 64
    model = build(name, pixels, num_classes=5)
    assert resolve_data_config({}, model=model) == resolve_data_config({}, model=model.body)
    optimizer = create_optimizer_v2(model, opt="adamw", lr=1e-2, weight_decay=0.05, layer_decay=0.75)
    grouped = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    scale = {id(p): group["lr_scale"] for group in optimizer.param_groups for p in group["params"]}
    assert {scale[id(p)] for p in model.head.parameters() if p.requires_grad} == {1.0}
    assert min(scale.values()) < 0.75
    assert create_optimizer_v2(model, opt="adamw", lr=1e-2, weight_decay=0.05).param_groups
    ema = ModelEmaV2(model)
    model.set_grad_checkpointing(True)
    model.train()
    x, losses = images(model, pixels), []
    for _ in range(6):
        loss = nn.functional.binary_cross_entropy_with_logits(model(x), torch.eye(5)[:2])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        ema.update(model)
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert set(ema.module.state_dict()) == set(model.state_dict())


def test_classifier_can_be_got_and_reset():
    model = build(num_classes=5, num_groups=2, learnable_queries=True)
    assert model.get_classifier() is model.head
    model.reset_classifier(8)
    assert model.num_classes == 8 and model(images(model, 64)).shape == (2, 8)
    assert len(model.head.decoder.group_queries) == 2
    with pytest.raises(ValueError, match="global_pool must be None"):
        model.reset_classifier(8, "avg")
    words = build(words=torch.randn(3, 8), output="sum")
    words.reset_classifier(4)
    assert words(images(words, 64)).shape == (2, 4)


def test_copies_and_pickles():
    model = build(words=torch.randn(3, 8)).eval()
    x = images(model, 64)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        with torch.no_grad():
            assert_close(other.eval()(x), model(x))


@pytest.mark.parametrize("name, mode", [("test_resnet", "words"), ("test_vit", "classes")])
def test_torch_export_with_any_batch(name, mode):
    options = {"num_classes": 5} if mode == "classes" else {"words": torch.randn(5, 8)}
    pixels = None if "vit" in name else 64
    model = build(name, pixels, **options).eval()
    x = images(model, pixels, 4)
    batch = torch.export.Dim("batch", min=1, max=64)
    exported = torch.export.export(model, (x[:2],), dynamic_shapes=({0: batch},), strict=True)
    with torch.no_grad():
        assert_close(exported.module()(x), model(x), atol=1e-5, rtol=1e-5)


def test_torch_compile_takes_the_whole_graph():
    model = build(words=torch.randn(5, 8)).eval()
    x = images(model, 64)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with torch.no_grad():
        assert_close(compiled(x), model(x), atol=1e-5, rtol=1e-5)
        model.set_words(torch.randn(7, 8))
        assert compiled(x).shape == (2, 7)


# ------------------------------------------------------------------------------------------------- other networks


class Plain(nn.Module):
    """A network of nobody's: its map is in the middle of its forward."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 12, 3, 4), nn.ReLU())
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(12, 1000)

    def forward(self, x):
        return self.fc(torch.flatten(self.avgpool(self.stem(x)), 1))


def stem_of(model, x):
    return model.stem(x)


def tokens_of(model, x):
    return model.stem(x).flatten(2).transpose(1, 2)


def test_three_ways_to_the_same_map():
    """The map itself, the same as tokens, or the named layers of a network that flattens it."""
    torch.manual_seed(0)
    plain, x = Plain(), torch.randn(2, 3, 32, 32)
    makers = [
        {"map_of": stem_of},
        {"map_of": tokens_of},
        {"remove": ["avgpool"], "replace": "fc"},
    ]
    made = [add_ml_decoder_head(copy.deepcopy(plain), num_classes=5, image_size=32, **SMALL, **how) for how in makers]
    assert isinstance(made[0], MapClassifier) and isinstance(made[2], Plain)
    assert isinstance(made[2].fc, MLDecoderHead) and isinstance(made[2].avgpool, nn.Identity)
    state = made[0].head.state_dict()
    made[1].head.load_state_dict(state)
    made[2].fc.load_state_dict(state)
    expected = made[0].eval()(x)
    assert expected.shape == (2, 5)
    for model in made[1:]:
        assert_close(model.eval()(x), expected, atol=1e-5, rtol=1e-5)
    assert made[0](torch.randn(1, 3, 48, 32)).shape == made[2](torch.randn(1, 3, 48, 32)).shape == (1, 5)


def test_a_sequence_of_layers_as_the_classifier():
    torch.manual_seed(0)
    plain = Plain()
    plain.fc = nn.Sequential(nn.Linear(12, 20), nn.ReLU(), nn.Linear(20, 1000))
    model = add_ml_decoder_head(plain, num_classes=5, image_size=32, remove=["avgpool"], replace="fc", **SMALL)
    assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 5)
    assert model.fc.encoder_dim == 12


def test_wrong_ways_leave_the_network_as_it_was():
    plain = Plain()
    before = repr(plain)
    cases = [
        ({}, "model must give a map of spatial embeddings, Plain does not"),
        ({"replace": "fc"}, r"'fc' was given \(1, 12\); remove the pooling before it"),
        (
            {"remove": ["pool"], "replace": "fc"},
            r"layers of Plain, got \['pool'\]; its own are \['stem', 'avg",
        ),
        ({"remove": ["avgpool"]}, r"replace must name the layer .* got None and remove=\['avgpool'\]"),
        ({"remove": ["avgpool"], "replace": "fc", "num_heads": 5}, "num_heads must divide decoder_dim=32, got 5"),
        ({"map_of": stem_of, "replace": "fc"}, "map_of must be None with replace"),
        ({"map_of": lambda model, x: model(x)}, r"map_of must give a map .* got \(1, 1000\)"),
        ({"map_of": lambda model, x: (x, x)}, "map_of must give a tensor, got tuple"),
    ]
    for options, message in cases:
        with pytest.raises(ValueError, match=message):
            add_ml_decoder_head(plain, num_classes=5, image_size=32, **SMALL, **options)
        assert repr(plain) == before
    with pytest.raises(ValueError, match=r"words must be embeddings \(N, T\) of floats"):
        add_ml_decoder_head(plain, words=torch.zeros(3), map_of=stem_of, image_size=32)


def test_the_head_is_our_decoder_with_the_dtype_of_the_network():
    model = add_ml_decoder_head(Plain().double(), num_classes=5, map_of=stem_of, image_size=32, **SMALL)
    assert isinstance(model.head.decoder, MLDecoder)
    assert model(torch.zeros(1, 3, 32, 32, dtype=torch.float64)).dtype == torch.float64


# ------------------------------------------------------------------------------------------------ layer decay, layouts


@pytest.mark.parametrize("name", ["test_vit", "test_resnet", "test_convnext", "test_efficientnet", "cait_xxs24_224"])
def test_layers_are_grouped_as_timm_groups_them(name):
    """The stem must be first, also where timm's expression is "^stem|pos_embed", or a function."""
    kwargs = {"depth": 2} if name.startswith("cait") else {}
    original = timm.create_model(name, pretrained=False, **kwargs)
    groups = {p: i for i, ps in group_parameters(original, original.group_matcher()).items() for p in ps}
    model = build(name, 64 if "resnet" in name or "net" in name else None, kwargs, num_classes=5)
    found = group_parameters(model, model.group_matcher())
    ours = {p: i for i, ps in found.items() for p in ps}
    own = [p for p in groups if f"body.{p}" in ours]
    assert len(own) > 10
    assert [(p, ours[f"body.{p}"]) for p in own] == [(p, groups[p]) for p in own]
    assert {ours[p] for p in ours if p.startswith("head.")} == {max(found)}


class LastChannels(nn.Module):
    """As torchvision's Swin: its map has the channels last, and a permutation before the pool."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, 4)
        self.permute, self.avgpool, self.fc = torchvision_permute(), nn.AdaptiveAvgPool2d(1), nn.Linear(12, 1000)

    def forward(self, x):
        x = self.stem(x).permute(0, 2, 3, 1)
        return self.fc(self.avgpool(self.permute(x)))


def torchvision_permute():
    from torchvision.ops import Permute

    return Permute([0, 3, 1, 2])


def test_a_map_with_channels_last_is_not_read_as_rows():
    with pytest.raises(ValueError, match=r"'fc' was given \(1, 8, 8, 12\) with its 12 channels in another place"):
        add_ml_decoder_head(
            LastChannels(), num_classes=5, image_size=32, remove=["permute", "avgpool"], replace="fc", **SMALL
        )
    model = add_ml_decoder_head(LastChannels(), num_classes=5, image_size=32, remove="avgpool", replace="fc", **SMALL)
    assert model.fc.encoder_dim == 12, "one name may be a text"


def test_a_layer_in_the_middle_is_not_replaced():
    plain = Plain()
    before = repr(plain)
    with pytest.raises(ValueError, match=r"replace must be the last layer, whose result \(1, 5\) .* after 'stem\.1'"):
        add_ml_decoder_head(plain, num_classes=5, image_size=32, remove=["avgpool"], replace="stem.1", **SMALL)
    assert repr(plain) == before


def test_a_head_with_channels_last_memory_and_autocast():
    model = build(words=torch.randn(4, 8)).to(memory_format=torch.channels_last)
    x = images(model, 64).contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        loss = nn.functional.binary_cross_entropy_with_logits(model(x), torch.rand(2, 4))
    loss.backward()
    assert not [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]


@pytest.mark.parametrize("name", ["test_convnext", "test_efficientnet"])
def test_torch_export_as_it_is_by_default(name):
    model = build(name, 64, num_classes=5).eval()
    x = images(model, 64, 4)
    exported = torch.export.export(model, (x[:2],), dynamic_shapes=({0: torch.export.Dim("batch")},))
    for count in (1, 4):
        assert_close(exported.module()(x[:count]), model(x[:count]), atol=1e-5, rtol=1e-5)
