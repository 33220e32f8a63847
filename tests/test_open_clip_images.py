"""ImageEncoder's `projected`, `value_path` and `global_token`, for each kind of open_clip tower and of timm network."""

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from zsmld import ImageEncoder
from zsmld.images.timm_body import create_timm, value_block

DIM = 24  # of the space of images and texts
VIT = {"image_size": 64, "patch_size": 16, "width": 32, "layers": 2, "head_width": 16}
POOL = {"attn_pooler_queries": 5, "attn_pooler_heads": 2}
CUSTOM = {"scale_heads": True, "scale_attn_inner": True, "scale_attn": True, "scale_fc": True, "qk_norm": True}


def timm_tower(name: str, pool: str, proj: str | None, image_size: int = 160) -> dict[str, Any]:
    return {"timm_model_name": name, "timm_pool": pool, "timm_proj": proj, "image_size": image_size}


# The towers of open_clip's own configurations, made small; another size than theirs, and the side of the map there.
TOWERS: dict[str, tuple[dict[str, Any], int, int]] = {
    "vit": (VIT, 96, 6),
    "vit layer scale": (VIT | {"ls_init_value": 0.3}, 96, 6),
    "vit custom": (VIT | CUSTOM, 96, 6),
    "vit one layer": (VIT | {"layers": 1}, 96, 6),
    "clipa": (VIT | {"no_ln_pre": True, "pool_type": "avg", "final_ln_after_pool": True}, 96, 6),
    "coca": (VIT | POOL | {"attentional_pool": True, "output_tokens": True}, 96, 6),
    "resnet": ({"image_size": 64, "layers": [1, 1, 1, 1], "width": 16}, 96, 3),
    "siglip": (timm_tower("test_vit3", "map", "none"), 64, 4),
    "timm vit": (timm_tower("test_vit", "token", None), 64, 4),
    "timm vit avg": (timm_tower("test_vit2", "avg", "linear"), 64, 4),
    "timm vit relative": (timm_tower("test_vit_relpos", "", "linear"), 64, 4),
    "eva02": (timm_tower("eva02_tiny_patch14_224", "token", None, 224), 56, 4),
    "convnext": (timm_tower("test_convnext", "", "mlp"), 64, 2),
    "mobileclip": (timm_tower("fastvit_mci0", "avg", None, 256), 64, 2),
    "rotary pool": (timm_tower("test_byobnet", "rot_attn", None), 64, 2),
}
CANNOT_PROJECT = {"rotary pool"}
WITHOUT_BLOCKS = {"convnext", "mobileclip", "rotary pool"}


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def shake(network: nn.Module) -> None:
    """No weight one, no bias zero, no statistic at rest: what is forgotten shows."""
    generator = torch.Generator().manual_seed(1)
    for tensor in network.state_dict().values():
        if tensor.is_floating_point():
            tensor.add_(0.1 * torch.rand(tensor.shape, generator=generator) - 0.05)


def written(vision: dict[str, Any], folder: Path) -> str:
    text = {"context_length": 8, "vocab_size": 16, "width": 16, "heads": 2, "layers": 1}
    embed_dim = 96 if vision.get("timm_proj") == "none" else DIM  # what has no projection keeps its width
    config: dict[str, Any] = {"embed_dim": embed_dim, "vision_cfg": vision, "text_cfg": text}
    if vision.get("output_tokens"):
        config |= {"multimodal_cfg": text, "custom_text": True}  # open_clip takes it for a CoCa
        config["text_cfg"] = text | {"embed_cls": True, "output_tokens": True}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    return f"open_clip:{folder}"


def tower(name: str, folder: Path, **options: Any) -> ImageEncoder:
    """A tower of TOWERS, at its other size unless told; the same weights each time."""
    torch.manual_seed(0)
    encoder = ImageEncoder(
        written(TOWERS[name][0], folder), pretrained=False, **{"image_size": TOWERS[name][1]} | options
    )
    shake(encoder.body)
    return encoder.eval()


def alone(block: nn.Module, tokens: Tensor) -> Tensor:
    """Each token as a sequence of its own: attention has one place to look, so its value projection is what it sees."""
    return torch.stack([block(tokens[:, place : place + 1])[:, 0] for place in range(tokens.shape[1])], 1)


def images_for(encoder: ImageEncoder, count: int = 2) -> Tensor:
    return noise(count, 3, encoder.transform.image_size, encoder.transform.image_size)


# -------------------------------------------------------------------------------------------------------- every tower


@pytest.mark.parametrize("name", sorted(set(TOWERS) - CANNOT_PROJECT))
@pytest.mark.parametrize("native", [True, False], ids=["native", "other size"])
@torch.no_grad()
def test_projected_positions_follow_the_towers_own_embedding(name: str, native: bool, tmp_path: Path) -> None:
    vision, size, side = TOWERS[name]
    if native:
        size, side = vision["image_size"], side * vision["image_size"] // size
    options = {} if native else {"image_size": size}
    encoder = tower(name, tmp_path, projected=True, global_token=True, **{"image_size": None} | options)
    width = 96 if name == "siglip" else DIM
    assert encoder.transform.image_size == size and encoder.num_global_tokens == 1
    assert encoder.grid_size == (side, side) and encoder.encoder_dim == width
    images = images_for(encoder)
    found = encoder(images)
    assert found.shape == (2, 1 + side * side, width) and found.isfinite().all()
    expected = encoder.body(images)
    assert torch.equal(found[:, 0], expected[0] if isinstance(expected, tuple) else expected)
    assert (found[:, 1:].std(dim=1) > 0).all()  # positions differ

    encoder.global_token = False
    torch.testing.assert_close(encoder(images), found[:, 1:])


@pytest.mark.parametrize("name", sorted(set(TOWERS) - WITHOUT_BLOCKS))
@torch.no_grad()
def test_the_whole_image_never_takes_the_value_path(name: str, tmp_path: Path) -> None:
    for projected in (True, False) if name != "resnet" else (True,):
        encoder = tower(name, tmp_path, projected=projected, value_path=True, global_token=True)
        images = images_for(encoder)
        found = encoder(images)
        encoder.value_path = False
        ordinary = encoder(images)
        assert torch.equal(found[:, 0], ordinary[:, 0])
        assert torch.equal(found, ordinary) == (name == "resnet")  # whose pool has no other path for one position


@pytest.mark.parametrize("name", sorted(TOWERS))
@torch.no_grad()
def test_unprojected_tokens_are_as_before_and_the_whole_is_their_class_token_or_mean(name: str, tmp_path: Path) -> None:
    encoder = tower(name, tmp_path, global_token=True)
    images = images_for(encoder)
    found = encoder(images)
    is_vit = type(encoder.body).__name__ == "VisionTransformer"
    before = encoder.body.forward_intermediates(
        images,
        indices=1,
        normalize_intermediates=name != "coca",
        intermediates_only=True,
        output_fmt="NLC" if is_vit else "NCHW",
        output_extra_tokens=is_vit,
    )
    expected = before["image_intermediates"][-1]
    torch.testing.assert_close(found[:, 1:], expected if is_vit else expected.flatten(2).transpose(1, 2))
    if is_vit:
        torch.testing.assert_close(found[:, :1], before["image_intermediates_prefix"][-1])
    elif name in ("timm vit", "eva02"):
        torch.testing.assert_close(found[:, 0], encoder.body.trunk.forward_features(images)[:, 0])
    else:
        torch.testing.assert_close(found[:, 0], found[:, 1:].mean(1))


@pytest.mark.parametrize("name", ["vit", "coca", "resnet", "siglip", "eva02"])
@torch.no_grad()
def test_the_whole_image_is_what_the_model_compares_with_texts(name: str, tmp_path: Path) -> None:
    encoder = tower(name, tmp_path, projected=True, global_token=True, image_size=None)
    model = open_clip.create_model(f"local-dir:{tmp_path}", load_weights=False).eval()
    model.visual.load_state_dict(encoder.body.state_dict())
    images = images_for(encoder)
    torch.testing.assert_close(encoder(images)[:, 0], model.encode_image(images, normalize=False))


@pytest.mark.parametrize("name", ["ViT-S-32", "PE-Core-T-16-384", "ViTamin-S", "MobileCLIP2-S0"])
@torch.no_grad()
def test_named_architectures_at_a_small_size(name: str) -> None:
    encoder = ImageEncoder(f"open_clip:{name}", pretrained=False, image_size=64, projected=True, global_token=True)
    images = images_for(encoder.eval())
    found = encoder(images)
    assert found.shape == (2, 1 + math.prod(encoder.grid_size), open_clip.get_model_config(name)["embed_dim"])
    torch.testing.assert_close(found[:, 0], encoder.body(images))


# ------------------------------------------------------------------------------- by hand, from the weights and nothing


def norm(x: Tensor, state: dict[str, Tensor], name: str, eps: float = 1e-5) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    scaled = centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt()
    return scaled * state[f"{name}.weight"] + state[f"{name}.bias"]


def linear(x: Tensor, state: dict[str, Tensor], name: str) -> Tensor:
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def gelu(x: Tensor) -> Tensor:
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def attend(x: Tensor, weight: Tensor, bias: Tensor, heads: int) -> Tensor:
    query, key, value = (
        part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (x @ weight.T + bias).chunk(3, dim=-1)
    )  # (B,heads,N,head_dim)
    weights = (query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])).softmax(-1)
    return (weights @ value).transpose(1, 2).flatten(2)


@pytest.mark.parametrize("name", ["vit", "vit layer scale", "clipa"])
@pytest.mark.parametrize("value_path", [False, True])
@torch.no_grad()
def test_native_vit_by_hand(name: str, value_path: bool, tmp_path: Path) -> None:
    encoder = tower(name, tmp_path, projected=True, value_path=value_path, image_size=64)
    images = images_for(encoder)
    w = {key: tensor.double() for key, tensor in encoder.body.state_dict().items()}
    patches = images.double().unfold(2, 16, 16).unfold(3, 16, 16).permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)
    x = patches @ w["conv1.weight"].flatten(1).T
    x = torch.cat([w["class_embedding"].expand(2, 1, -1), x], 1) + w["positional_embedding"]
    if name != "clipa":
        x = norm(x, w, "ln_pre")
    for layer in (0, 1):
        block = f"transformer.resblocks.{layer}"
        weight, bias = w[f"{block}.attn.in_proj_weight"], w[f"{block}.attn.in_proj_bias"]
        y = norm(x, w, f"{block}.ln_1")
        if value_path and layer == 1:
            y = y @ weight[64:].T + bias[64:]
        else:
            y = attend(y, weight, bias, heads=2)
        x = x + linear(y, w, f"{block}.attn.out_proj") * w.get(f"{block}.ls_1.gamma", 1)
        y = gelu(linear(norm(x, w, f"{block}.ln_2"), w, f"{block}.mlp.c_fc"))
        x = x + linear(y, w, f"{block}.mlp.c_proj") * w.get(f"{block}.ls_2.gamma", 1)
    expected = norm(x[:, 1:], w, "ln_post") @ w["proj"]
    torch.testing.assert_close(encoder(images).double(), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["vit custom", "vit one layer", "coca"])
@torch.no_grad()
def test_other_native_vits_last_block_sees_each_token_alone(name: str, tmp_path: Path) -> None:
    encoder = tower(name, tmp_path, projected=True, value_path=True, image_size=64)
    body, images = encoder.body, images_for(encoder)
    tokens = body._embeds(images)
    for block in body.transformer.resblocks[:-1]:
        tokens = block(tokens)
    tokens = alone(body.transformer.resblocks[-1], tokens)[:, 1:]
    if name == "coca":  # each of the pool's queries sees the one token
        tokens = torch.stack([body.attn_pool(tokens[:, place : place + 1])[:, 3] for place in range(16)], 1)
    torch.testing.assert_close(encoder(images), body.ln_post(tokens) @ body.proj, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_resnet_by_hand(tmp_path: Path) -> None:
    encoder = tower("resnet", tmp_path, projected=True, image_size=64)
    body, images = encoder.body, images_for(encoder)
    features = body.layer4(body.layer3(body.layer2(body.layer1(body.stem(images)))))  # (B,C,H,W)
    w, found = body.attnpool.state_dict(), encoder(images)
    for row, column in [(0, 0), (0, 1), (1, 0), (1, 1)]:
        expected = linear(linear(features[:, :, row, column], w, "v_proj"), w, "c_proj")
        torch.testing.assert_close(found[:, 2 * row + column], expected, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_siglip_tower_by_hand(tmp_path: Path) -> None:
    """Value path, final norm and attention pool of one position, from the weights of timm's trunk."""
    encoder = tower("siglip", tmp_path, projected=True, value_path=True)
    trunk, images = encoder.body.trunk, images_for(encoder)
    tokens = trunk.norm_pre(trunk.patch_drop(trunk._pos_embed(trunk.patch_embed(images))))
    for block in trunk.blocks[:-1]:
        tokens = block(tokens)
    w, last, x = trunk.state_dict(), f"blocks.{len(trunk.blocks) - 1}", tokens[:, trunk.num_prefix_tokens :]
    eps, width = trunk.blocks[-1].norm1.eps, x.shape[-1]
    y = norm(x, w, f"{last}.norm1", eps) @ w[f"{last}.attn.qkv.weight"][2 * width :].T
    y = linear(y + w[f"{last}.attn.qkv.bias"][2 * width :], w, f"{last}.attn.proj")
    x = x + y * w.get(f"{last}.ls1.gamma", 1)
    y = linear(gelu(linear(norm(x, w, f"{last}.norm2", eps), w, f"{last}.mlp.fc1")), w, f"{last}.mlp.fc2")
    x = norm(x + y * w.get(f"{last}.ls2.gamma", 1), w, "norm", eps)
    x = x @ w["attn_pool.kv.weight"][width:].T + w["attn_pool.kv.bias"][width:]
    x = linear(x, w, "attn_pool.proj")
    y = linear(gelu(linear(norm(x, w, "attn_pool.norm", eps), w, "attn_pool.mlp.fc1")), w, "attn_pool.mlp.fc2")
    torch.testing.assert_close(encoder(images), x + y, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_eva_tower_by_hand(tmp_path: Path) -> None:
    """Rotary positions, biases of their own, SwiGLU: none of them mixes positions in the last block."""
    encoder = tower("eva02", tmp_path, projected=True, value_path=True)
    trunk, images = encoder.body.trunk, images_for(encoder)
    before: list[Tensor] = []
    hook = trunk.blocks[-2].register_forward_hook(lambda module, args, output: before.append(output))
    trunk(images)
    hook.remove()
    w, last, x = trunk.state_dict(), f"blocks.{len(trunk.blocks) - 1}", before[0][:, 1:]
    eps = trunk.blocks[-1].norm1.eps
    y = norm(x, w, f"{last}.norm1", eps) @ w[f"{last}.attn.qkv.weight"][2 * 192 :].T + w[f"{last}.attn.v_bias"]
    x = x + linear(y, w, f"{last}.attn.proj")
    gates, y = linear(norm(x, w, f"{last}.norm2", eps), w, f"{last}.mlp.fc1").chunk(2, dim=-1)
    x = x + linear(gates * torch.sigmoid(gates) * y, w, f"{last}.mlp.fc2")
    expected = linear(norm(x, w, "fc_norm" if "fc_norm.weight" in w else "norm", eps), w, "head")
    torch.testing.assert_close(encoder(images), expected, atol=1e-4, rtol=1e-4)


# --------------------------------------------------------------------------------------------------- value path: laws


def blocks_of_timm() -> dict[str, nn.Module]:
    from timm.models import beit, eva, vision_transformer, vision_transformer_relpos

    plain: dict[str, Any] = {
        "dim": 32,
        "num_heads": 4,
        "qkv_bias": True,
        "init_values": 0.4,
        "norm_layer": nn.LayerNorm,
    }
    rotary = plain | {"attn_type": "rope", "qkv_fused": False}
    return {
        "vit": vision_transformer.Block(**plain, qk_norm=True, scale_attn_norm=True, scale_mlp_norm=True),
        "vit without biases": vision_transformer.Block(32, 4, norm_layer=nn.LayerNorm),
        "vit post-norm": vision_transformer.ResPostBlock(**plain),
        "eva fused": eva.EvaBlock(**plain, scale_attn_inner=True, swiglu_mlp=True, scale_mlp=True),
        "eva separate": eva.EvaBlock(**plain, qkv_fused=False),
        "eva post-norm": eva.EvaBlockPostNorm(**{k: v for k, v in plain.items() if k != "init_values"}),
        "eva rope": eva.EvaBlock(**rotary),
        "eva shared values": eva.EvaBlock(**rotary, num_kv_heads=2),
        "eva gated": eva.EvaBlock(**plain, gated_attn=True),
        "beit": beit.Block(**plain),
        "relative": vision_transformer_relpos.RelPosBlock(**plain),
        "relative post-norm": vision_transformer_relpos.ResPostRelPosBlock(**plain),
    }


@pytest.mark.parametrize("name", sorted(blocks_of_timm()))
@torch.no_grad()
def test_value_block_is_the_block_that_sees_one_token(name: str) -> None:
    torch.manual_seed(0)
    block = blocks_of_timm()[name].eval()
    shake(block)
    tokens = noise(2, 6, 32)
    found = value_block(block, tokens)
    torch.testing.assert_close(found, alone(block, tokens), atol=1e-5, rtol=1e-4)
    assert not torch.allclose(found, block(tokens), atol=1e-2)  # which the whole sequence changes


@pytest.mark.parametrize("name", ["vit", "vit custom", "coca", "siglip", "timm vit avg", "eva02", "timm vit relative"])
@pytest.mark.parametrize("projected", [False, True])
@torch.no_grad()
def test_a_token_changed_before_the_last_block_changes_alone(name: str, projected: bool, tmp_path: Path) -> None:
    encoder = tower(name, tmp_path, projected=projected, value_path=True)
    body = encoder.body
    is_vit = type(body).__name__ == "VisionTransformer"
    blocks = body.transformer.resblocks if is_vit else body.trunk.blocks
    prefix = 1 if is_vit else body.trunk.num_prefix_tokens
    images, place = images_for(encoder), 5
    before = {value_path: outputs(encoder, images, value_path) for value_path in (True, False)}

    def change(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        output = output.clone()
        output[:, prefix + place] += 1 + noise(output.shape[-1])
        return output

    hook = blocks[-2].register_forward_hook(change)
    after = {value_path: outputs(encoder, images, value_path) for value_path in (True, False)}
    hook.remove()
    others = [p for p in range(math.prod(encoder.grid_size)) if p != place]
    assert torch.equal(after[True][:, others], before[True][:, others])
    assert not torch.allclose(after[True][:, place], before[True][:, place], atol=1e-3)
    assert not torch.equal(after[False][:, others], before[False][:, others])  # which attention would spread


def outputs(encoder: ImageEncoder, images: Tensor, value_path: bool) -> Tensor:
    encoder.value_path = value_path
    return encoder(images)


def test_the_value_path_leaves_the_weights_and_their_gradients_alone(tmp_path: Path) -> None:
    encoder = tower("siglip", tmp_path, projected=True, value_path=True)
    state = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    encoder(images_for(encoder)).square().sum().backward()
    assert all(torch.equal(tensor, state[name]) for name, tensor in encoder.state_dict().items())
    width = encoder.body.trunk.embed_dim
    gradient = encoder.body.trunk.blocks[-1].attn.qkv.weight.grad
    assert not gradient[: 2 * width].any() and gradient[2 * width :].any()  # queries and keys play no part


# ------------------------------------------------------------------------------------------------------- timm networks

# name, image size, its model_kwargs
CLASSIFIERS: list[tuple[str, int, dict[str, Any]]] = [
    ("resnet18", 64, {}),
    ("mobilenetv2_050", 64, {}),
    ("mobilenetv3_small_050", 64, {}),
    ("test_efficientnet", 64, {}),
    ("convnext_atto", 64, {}),
    ("test_convnext2", 64, {}),
    ("test_nfnet", 64, {}),
    ("test_byobnet", 64, {}),
    ("test_maxvit", 160, {}),
    ("vit_tiny_patch16_224", 64, {"depth": 2}),
    ("test_vit", 64, {}),
    ("test_vit2", 64, {}),
    ("test_vit3", 64, {}),
    ("test_vit4", 64, {}),
    ("vit_tiny_patch16_224", 64, {"depth": 2, "global_pool": "avgmax"}),
    ("eva02_tiny_patch14_224", 56, {"depth": 2}),
    ("swin_tiny_patch4_window7_224", 64, {"depths": (1, 1, 1, 1)}),
    ("mixer_s32_224", 224, {}),
    ("levit_128s", 224, {}),
    ("xcit_nano_12_p16_224", 64, {"depth": 2}),
]


@pytest.mark.parametrize(
    ("name", "size", "kwargs"), CLASSIFIERS, ids=[f"{c[0]}-{i}" for i, c in enumerate(CLASSIFIERS)]
)
@torch.no_grad()
def test_a_classifier_is_linear_on_projected_embeddings(name: str, size: int, kwargs: dict[str, Any]) -> None:
    torch.manual_seed(0)
    encoder = ImageEncoder(
        f"timm:{name}", pretrained=False, image_size=size, model_kwargs=kwargs, projected=True, global_token=True
    ).eval()
    full: Any = create_timm(name, {"num_classes": 7, "img_size": size} | kwargs).eval()
    shake(full)
    encoder.body.load_state_dict({key: full.state_dict()[key] for key in encoder.body.state_dict()})
    images = images_for(encoder)
    found = encoder(images)
    assert found.shape == (2, 1 + math.prod(encoder.grid_size), encoder.encoder_dim)
    heads = full.get_classifier()
    heads = heads if isinstance(heads, tuple) else (heads,)
    logits = sum(head(found[:, 0]) for head in heads) / len(heads)
    torch.testing.assert_close(logits, full(images), atol=1e-4, rtol=1e-5)

    # A position is the embedding of a map that has it everywhere.
    features, place = full.forward_features(images), math.prod(encoder.grid_size) // 2
    if features.ndim == 3:
        everywhere = features[:, [getattr(full, "num_prefix_tokens", 0) + place]].expand_as(features)
    elif getattr(full, "output_fmt", "NCHW") == "NHWC":
        everywhere = features.flatten(1, 2)[:, place][:, None, None].expand_as(features)
    else:
        everywhere = features.flatten(2)[:, :, place][:, :, None, None].expand_as(features)
    torch.testing.assert_close(
        found[:, 1 + place], full.forward_head(everywhere, pre_logits=True), atol=1e-4, rtol=1e-4
    )


@torch.no_grad()
def test_the_mean_of_projected_positions_is_the_pooled_one_where_nothing_is_bent_after_it() -> None:
    encoder = ImageEncoder("timm:resnet18", pretrained=False, image_size=64, projected=True, global_token=True).eval()
    found = encoder(images_for(encoder))
    torch.testing.assert_close(found[:, 0], found[:, 1:].mean(1))


@pytest.mark.parametrize("name", ["test_vit", "test_vit2", "test_vit3", "test_resnet"])
@torch.no_grad()
def test_unprojected_whole_image_of_timm(name: str) -> None:
    encoder = ImageEncoder(f"timm:{name}", pretrained=False, image_size=64, global_token=True).eval()
    images = images_for(encoder)
    found, features = encoder(images), encoder.body.forward_features(images)
    has_class_token = getattr(encoder.body, "cls_token", None) is not None
    torch.testing.assert_close(found[:, 0], features[:, 0] if has_class_token else found[:, 1:].mean(1))


@torch.no_grad()
def test_whole_image_of_an_earlier_stage_is_its_mean() -> None:
    encoder = ImageEncoder("timm:test_resnet", pretrained=False, image_size=64, stage=2, global_token=True).eval()
    found = encoder(images_for(encoder))
    assert found.shape[1] == 1 + math.prod(encoder.grid_size)
    torch.testing.assert_close(found[:, 0], found[:, 1:].mean(1))


# ----------------------------------------------------------------------------------------- sizes, checkpoints, refusals


@pytest.mark.parametrize("name", ["vit", "clipa", "coca", "resnet", "siglip", "eva02", "convnext"])
@torch.no_grad()
def test_weights_are_loaded_at_another_size(name: str, tmp_path: Path) -> None:
    native = tower(name, tmp_path, image_size=None)
    model = open_clip.create_model(f"local-dir:{tmp_path}", load_weights=False)
    model.visual.load_state_dict(native.body.state_dict())
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, tmp_path / "open_clip_model.safetensors")
    _, size, side = TOWERS[name]
    other = ImageEncoder(native.spec, image_size=size, projected=True).eval()
    assert other.grid_size == (side, side) and other(images_for(other)).isfinite().all()
    old, new = native.body.state_dict(), other.body.state_dict()
    changed = {key for key in new if new[key].shape != old[key].shape}
    assert all("pos" in key for key in changed) and bool(changed) == (name != "convnext")
    assert all(torch.equal(new[key], old[key]) for key in new if key not in changed)


@torch.no_grad()
def test_the_attention_pools_positions_are_resampled(tmp_path: Path) -> None:
    native = tower("resnet", tmp_path, image_size=None)
    model = open_clip.create_model(f"local-dir:{tmp_path}", load_weights=False)
    ramp = torch.tensor([[0.0, 1.0], [0.0, 1.0]]).flatten()[:, None].expand(-1, 512)  # left 0, right 1
    model.visual.attnpool.positional_embedding.copy_(torch.cat([torch.full((1, 512), 7.0), ramp]))
    save_file(model.state_dict(), tmp_path / "open_clip_model.safetensors")
    found = ImageEncoder(native.spec, image_size=128).body.attnpool.positional_embedding
    assert found.shape == (17, 512) and (found[0] == 7).all()
    grid = found[1:, 0].unflatten(0, (4, 4))
    torch.testing.assert_close(grid, grid[:1].expand(4, 4))  # rows stay alike
    assert (grid[0].diff() > 0).all()
    same = ImageEncoder(native.spec, image_size=64).body.attnpool.positional_embedding
    assert torch.equal(same, model.visual.attnpool.positional_embedding)


@pytest.mark.parametrize(
    "options",
    [
        {"spec": "timm:test_resnet", "projected": True},
        {"spec": "timm:test_vit3", "projected": True, "value_path": True, "global_token": True},
        {"spec": "timm:test_vit", "value_path": True, "image_size": 96},
        {"spec": "timm:test_vit", "global_token": True},
        {"tower": "resnet", "projected": True, "value_path": True, "global_token": True},
        {"tower": "vit", "projected": True, "value_path": True, "global_token": True},
        {"tower": "eva02", "projected": True, "global_token": True},
    ],
    ids=lambda options: options.get("spec") or options["tower"],
)
@torch.no_grad()
def test_config_rebuilds_the_same_encoder(options: dict[str, Any], tmp_path: Path) -> None:
    options = dict(options)
    if "tower" in options:
        encoder = tower(options.pop("tower"), tmp_path, **options)
    else:
        encoder = ImageEncoder(pretrained=False, **{"image_size": 64} | options).eval()
    config = json.loads(json.dumps(encoder.config()))
    rebuilt = ImageEncoder(pretrained=False, **config).eval()
    rebuilt.load_state_dict(encoder.state_dict())  # strict
    images = images_for(encoder)
    assert torch.equal(rebuilt(images), encoder(images))
    assert rebuilt.config() == encoder.config() and rebuilt.encoder_dim == encoder.encoder_dim
    assert {key: config[key] for key in ("projected", "value_path", "global_token") if key in config} == {
        key: True for key in ("projected", "value_path", "global_token") if options.get(key)
    }


def test_what_is_off_is_not_in_the_config() -> None:
    """So checkpoints and caches that were written before these options existed stay what they are."""
    config = ImageEncoder("timm:test_resnet", pretrained=False, image_size=64).config()
    assert set(config) == {"spec", "stage", "model_kwargs", "image_size", "mean", "std", "interpolation", "resize"}


@pytest.mark.parametrize(
    ("spec", "options", "message"),
    [
        (
            "timm:test_resnet",
            {"value_path": True},
            r"value_path must be False .*'timm:test_resnet' \(ResNet\); use a ViT",
        ),
        ("timm:swin_tiny_patch4_window7_224", {"value_path": True}, "value_path must be False for a network that does"),
        (
            "timm:test_resnet",
            {"stage": 2, "projected": True},
            "stage must be None with projected .* got stage=2; leave",
        ),
        (
            "timm:test_resnet",
            {"stage": 2, "value_path": True},
            "stage must be None with projected .* got stage=2; leave",
        ),
        ("timm:resnet50_clip", {"projected": True}, "projected must be False for timm's 2-D .*open_clip:RN50/openai"),
        (
            "timm:test_vit",
            {"value_path": True, "model_kwargs": {"depth": 1}},
            "value_path must be False for a network that does not end in plain attention blocks",
        ),
        (
            "timm:test_vit",
            {"value_path": True, "model_kwargs": {"attn_layer": "diff"}},
            "value_path must be False for a network that does not end in plain attention blocks",
        ),
    ],
)
def test_refusals(spec: str, options: dict[str, Any], message: str) -> None:
    size = 224 if "swin" in spec else 64
    with pytest.raises(ValueError, match=message):
        ImageEncoder(spec, pretrained=False, image_size=size, **options)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnet", {"value_path": True}, "value_path must come with projected for a ResNet, .*; set projected as well"),
        ("convnext", {"value_path": True}, r"value_path must be False .* \(ConvNeXt\); use a ViT, EVA or BEiT"),
        ("mobileclip", {"value_path": True}, r"value_path must be False .* \(FastVit\); use a ViT, EVA or BEiT"),
        ("rotary pool", {"projected": True}, "projected must be False for a tower that pools by 2-D attention"),
    ],
)
def test_refusals_of_towers(name: str, options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        tower(name, tmp_path, **options)


def test_coca_with_two_pools_is_refused(tmp_path: Path) -> None:
    vision = VIT | POOL | {"attentional_pool": "parallel", "width": DIM, "head_width": 12}
    with pytest.raises(ValueError, match=r"projected must be False for a tower with two .*attentional_pool='parallel'"):
        ImageEncoder(written(vision, tmp_path), pretrained=False, projected=True)


def test_a_tower_that_does_not_pool_has_no_embedding_of_the_whole(tmp_path: Path) -> None:
    spec = written(VIT | {"pool_type": "none"}, tmp_path)
    with pytest.raises(ValueError, match=r"global_token must be False .* got \(1, 17, 24\) beside 24 channels"):
        ImageEncoder(spec, pretrained=False, projected=True, global_token=True)
    assert ImageEncoder(spec, pretrained=False, projected=True).encoder_dim == DIM


def test_a_stem_of_strided_1x1_convolutions_trains_on_the_cpu() -> None:
    """In a process of its own: with everything channels-last, oneDNN kills it (RepVGG, MobileOne, MobileCLIP)."""
    code = (
        "import torch; from zsmld import ImageEncoder; torch.manual_seed(0)\n"
        "encoder = ImageEncoder('timm:fastvit_t8', pretrained=False, image_size=96).train()\n"
        "for _ in range(2): encoder(torch.randn(4, 3, 96, 96)).sum().backward()\n"
        "print(all(p.grad.isfinite().all() for p in encoder.body.stem.parameters()))"
    )
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (finished.returncode, finished.stdout) == (0, "True\n"), finished.stderr


def test_projected_positions_compare_with_texts(tmp_path: Path) -> None:
    """The use of it all: the cosine of each position with each text, from one model."""
    encoder = tower("vit", tmp_path, projected=True, value_path=True)
    model = open_clip.create_model(f"local-dir:{tmp_path}", load_weights=False).eval()
    with torch.no_grad():
        texts = model.encode_text(torch.tensor([[1, 2, 15, 0, 0, 0, 0, 0], [3, 4, 15, 0, 0, 0, 0, 0]]), normalize=True)
        similarity = F.normalize(encoder(images_for(encoder)), dim=-1) @ texts.T
    assert similarity.shape == (2, 36, 2) and similarity.abs().max() <= 1
