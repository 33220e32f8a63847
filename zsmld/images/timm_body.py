"""timm networks: built, loaded, and taken apart into the embedding of each position and that of the whole image."""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Networks that are a plain row of attention blocks, and the blocks whose value path we know: x + attention, x + MLP.
_ROWS_OF_BLOCKS = ("VisionTransformer", "VisionTransformerDistilled", "VisionTransformerRelPos", "Eva", "Beit")
_PRE_NORM = ("Block", "EvaBlock", "RelPosBlock")
_POST_NORM = ("ResPostBlock", "EvaBlockPostNorm", "ResPostRelPosBlock")
_ATTENTIONS = ("Attention", "AttentionRope", "EvaAttention", "RelPosAttention")


def create_timm(name: str, options: dict[str, Any]) -> nn.Module:
    """A timm model; transformers fix their grid at creation and take `img_size`, the others do not know it."""
    import timm

    try:
        return timm.create_model(name, **options)
    except TypeError as error:
        if "img_size" not in str(error):
            raise
        return timm.create_model(name, **{key: value for key, value in options.items() if key != "img_size"})


def load_timm_checkpoint(body: nn.Module, path: Path) -> None:
    """Load a weights file strictly, but for the classifier that the encoder does not have."""
    from timm.models import load_state_dict

    try:
        state = load_state_dict(str(path), weights_only=True)
    except Exception as error:  # torch, pickle and safetensors have many kinds; the reader needs the path
        raise ValueError(f"checkpoint_path must hold weights and nothing else, cannot read {path}: {error}") from error
    head = {key for key in state if key.startswith(("classifier.", "fc.", "head.fc.", "head.weight", "head.bias"))}
    own = set(body.state_dict())
    missing, unexpected = sorted(own - set(state)), sorted(set(state) - own - head)
    if missing or unexpected:
        raise ValueError(
            f"checkpoint_path must hold the weights of {type(body).__name__}, got {path.name} with "
            f"{len(missing)} missing {missing[:3]} and {len(unexpected)} unexpected {unexpected[:3]}; "
            f"name the model and model_kwargs it was trained with"
        )
    body.load_state_dict({key: state[key] for key in own})


def check_timm(body: Any, spec: str, projected: bool, value_path: bool) -> None:
    """Refuse the options that this network cannot serve.

    Raises:
        ValueError: which option, and why.
    """
    name = type(body).__name__
    if projected and not hasattr(body, "forward_head"):
        raise ValueError(
            f"projected must be False for a network without timm's forward_head, got {spec!r} ({name}); leave it out"
        )
    if projected and any(type(module).__name__ == "AttentionPool2d" for module in body.modules()):
        # Its positional embedding belongs to a whole map; open_clip's own ResNets have no such obstacle.
        raise ValueError(
            f"projected must be False for timm's 2-D attention pool, got {spec!r}; use open_clip's model instead, "
            f"for instance open_clip:RN50/openai"
        )
    if not value_path:
        return
    blocks = list(body.blocks) if is_row_of_blocks(body) else []
    known = len(blocks) > 1 and type(blocks[-1]).__name__ in _PRE_NORM + _POST_NORM
    if not known or type(blocks[-1].attn).__name__ not in _ATTENTIONS:
        raise ValueError(
            f"value_path must be False for a network that does not end in plain attention blocks, got {spec!r} "
            f"({name}); use a ViT, EVA or BEiT, or leave it out"
        )


def is_row_of_blocks(body: nn.Module) -> bool:
    """Whether `forward_features` ends in the tokens of a plain transformer, class token first."""
    return type(body).__name__ in _ROWS_OF_BLOCKS


def encode_timm(
    body: Any,
    images: Tensor,
    projected: bool = False,
    value_path: bool = False,
    global_token: bool = False,
    tail: nn.Module | None = None,
) -> tuple[Tensor, Tensor | None]:
    """The embedding of each position, (B,H,W,C) or (B,S,C), and of the whole image, (B,C), or None if not asked for.

    Args:
        body: a timm network with `forward_features`.
        images: (B,3,H,W).
        projected: each position through the network's own head, up to its classifier.
        value_path: in the last block the value projection takes the attention's place.
        global_token: whether to give the embedding of the whole image, always that of the ordinary path.
        tail: for a tower of open_clip, what follows timm's whole head; None stops before the classifier.
    """
    if value_path:
        ordinary, found = _last_block_both_ways(body, images, ordinary=global_token)
    else:
        ordinary = found = body.forward_features(images)
    positions = positions_of(body, found)
    if projected:
        positions = _head_of_each(body, positions, tail)
    if not global_token:
        return positions, None
    if projected:
        return positions, _head(body, ordinary, tail)
    if ordinary.ndim == 3 and getattr(body, "cls_token", None) is not None:
        return positions, ordinary[:, 0]  # (B,C)
    return positions, positions_of(body, ordinary).flatten(1, -2).mean(1)  # (B,C)


def positions_of(body: Any, found: Any) -> Tensor:
    """A network's map as (B,H,W,C), or its tokens (B,S,C) without those of class and registers, which are no positions.

    Raises:
        ValueError: if `found` is neither.
    """
    if isinstance(found, Tensor) and found.ndim == 4:
        return found if getattr(body, "output_fmt", "NCHW") == "NHWC" else found.permute(0, 2, 3, 1)
    if isinstance(found, Tensor) and found.ndim == 3:
        return found[:, getattr(body, "num_prefix_tokens", 0) :]
    raise ValueError(
        f"image_encoder must give a map (B,C,H,W) or tokens (B,S,C), got "
        f"{tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__} from timm's "
        f"{type(body).__name__}; use another model"
    )


def _head(body: Any, features: Tensor, tail: nn.Module | None) -> Tensor:
    """What `forward_features` gave -> (B,C), pooled by the network itself."""
    if tail is None:
        return body.forward_head(features, pre_logits=True)
    return tail(body.forward_head(features))


def _head_of_each(body: Any, positions: Tensor, tail: nn.Module | None) -> Tensor:
    """Each position (...,C) through the head as if the image were it alone -> (...,C')."""
    pool = getattr(body, "attn_pool", None)
    if type(pool).__name__ == "AttentionPoolLatent":
        # Attending to one position gives its value, so there is no need for B*S sequences of one.
        found = body.head_drop(body.fc_norm(_value_of_pool(pool, positions)))  # (...,C)
        return found if tail is None else tail(body.head(found))
    rows = positions.flatten(0, -2)  # (R,C)
    if positions.ndim == 3:
        # In every place, so that the pool takes it, be that the class token's place or the mean of the others.
        rows = rows[:, None].expand(-1, 1 + getattr(body, "num_prefix_tokens", 0), -1)  # (R,1+P,C)
    elif getattr(body, "output_fmt", "NCHW") == "NHWC":
        rows = rows[:, None, None]  # (R,1,1,C)
    else:
        rows = rows[:, :, None, None]  # (R,C,1,1)
    return _head(body, rows, tail).unflatten(0, positions.shape[:-1])


def _value_of_pool(pool: Any, positions: Tensor) -> Tensor:
    """timm's AttentionPoolLatent of each position alone, (...,C) -> (...,C)."""
    found = pool.proj_drop(pool.proj(pool.kv(positions).chunk(2, dim=-1)[1]))
    return found if pool.mlp is None else found + pool.mlp(pool.norm(found))


def _last_block_both_ways(body: Any, images: Tensor, ordinary: bool) -> tuple[Tensor, Tensor]:
    """The final tokens (B,P+S,C) by the ordinary path (only if asked for, else unusable) and by the value path."""
    options = {"return_prefix_tokens": True} if body.num_prefix_tokens else {}
    found, (before,) = body.forward_intermediates(
        images, indices=[len(body.blocks) - 2], norm=False, stop_early=not ordinary, output_fmt="NLC", **options
    )
    if options:  # timm hands out the spatial tokens, then the prefix, which stands before them in the network
        before = torch.cat([before[1], before[0]], 1)  # (B,P+S,C)
    return found, body.norm(value_block(body.blocks[-1], before))


def value_block(block: Any, tokens: Tensor) -> Tensor:
    """A timm block in which the value projection takes the attention's place, (B,N,C) -> (B,N,C).

    Source: MaskCLIP, arXiv 2112.01071, section 3.2. Residuals, norms and MLP stay; no token sees another.
    """
    if type(block).__name__ in _POST_NORM:
        tokens = tokens + block.drop_path1(block.norm1(_value(block.attn, tokens)))
        return tokens + block.drop_path2(block.norm2(block.mlp(tokens)))
    tokens = tokens + block.drop_path1(_scaled(block, 1, _value(block.attn, block.norm1(tokens))))
    return tokens + block.drop_path2(_scaled(block, 2, block.mlp(block.norm2(tokens))))


def _scaled(block: Any, number: int, branch: Tensor) -> Tensor:
    """Layer scale: a module `ls1` in ViT, a parameter `gamma_1` or None in EVA and BEiT."""
    if hasattr(block, f"ls{number}"):
        return getattr(block, f"ls{number}")(branch)
    gamma = getattr(block, f"gamma_{number}", None)
    return branch if gamma is None else gamma * branch


def _value(attn: Any, tokens: Tensor) -> Tensor:
    """What the attention gives a token that attends to itself alone: all but queries, keys and their norms."""
    if getattr(attn, "qkv", None) is None:
        values = attn.v_proj(tokens)
    else:
        bias = attn.qkv.bias.chunk(3)[2] if attn.qkv.bias is not None else getattr(attn, "v_bias", None)
        values = F.linear(tokens, attn.qkv.weight.chunk(3)[2], bias)  # (B,N,heads*head_dim)
    groups = getattr(attn, "num_kv_groups", 1)
    if groups > 1:  # several heads share one value
        values = values.unflatten(-1, (-1, attn.head_dim)).repeat_interleave(groups, dim=-2).flatten(-2)
    if hasattr(attn, "norm"):
        values = attn.norm(values)
    if getattr(attn, "gate", None) is not None:
        values = values * attn.gate(tokens).sigmoid()
    return attn.proj_drop(attn.proj(values))
