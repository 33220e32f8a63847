"""open_clip's image towers: built, and taken apart into the embedding of each position and that of the whole image.

There are three: its own ViT, the ResNet with attention pool of CLIP, and any timm network (SigLIP, EVA, ConvNeXt, ...).
"""

import difflib
import math
import os
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zsmld.images.timm_body import check_timm, encode_timm, is_row_of_blocks


def create_open_clip(name: str, pretrained: bool, **options: Any) -> tuple[Any, str]:
    """An open_clip model and the name its tokenizer goes by.

    Args:
        name: "ARCH/PRETRAINED", "hf-hub:OWNER/NAME", or a local folder.
        pretrained: False gives random weights, and reads none.
        options: further arguments of `open_clip.create_model`.

    Raises:
        ValueError: if open_clip knows no such architecture or weights, or no weights are named.
    """
    import open_clip

    if is_folder(name, pretrained):
        name = f"local-dir:{name}"
    arch, _, weights = (name, "", "") if name.startswith(("hf-hub:", "local-dir:")) else name.partition("/")
    if ":" not in arch and arch not in open_clip.list_models():
        similar = difflib.get_close_matches(arch, open_clip.list_models(), 3) or "open_clip.list_models()"
        raise ValueError(f"open_clip:ARCH/PRETRAINED must name a known architecture, got {arch!r}; see {similar}")
    tags = open_clip.list_pretrained_tags_by_model(arch) if ":" not in arch else []
    if pretrained and ":" not in arch and weights not in tags and not Path(weights).is_file():
        got = repr(weights) if weights else "none"
        raise ValueError(
            f"open_clip:ARCH/PRETRAINED must name weights of {arch} or a file, got {got}; it has {tags}, write for "
            f"instance open_clip:{arch}/{(tags or ['FILE'])[0]}"
        )
    # OpenAI's weights need another activation than the architecture's default; open_clip only warns of it.
    quick_gelu = weights in tags and open_clip.get_pretrained_cfg(arch, weights).get("quick_gelu", False)
    image_size: Any = options.get("force_image_size")
    # open_clip resizes the positional embedding of its ViT when it loads weights, but not that of the attention pool.
    resized_here = image_size is not None and _is_resnet(arch)
    model = open_clip.create_model(
        arch,
        weights if pretrained and weights else None,
        load_weights=pretrained,
        pretrained_text=pretrained,
        force_quick_gelu=quick_gelu,
        **(options | {"force_image_size": None} if resized_here else options),
    )
    if resized_here:
        _resize_attention_pool(model.visual, image_size)
    return model, arch


def is_folder(name: str, pretrained: bool) -> bool:
    """Whether a model's name is a local folder; without its weights, a folder is not read in the place of a name."""
    import open_clip

    return os.path.isdir(name) and (pretrained or name.partition("/")[0] not in open_clip.list_models())


def architecture_of(folder: str) -> str | None:
    """open_clip's name of the architecture whose image tower a local folder has; None if it has no name."""
    import open_clip

    def tower_of(config: dict[str, Any]) -> Any:
        vision = {key: value for key, value in config["vision_cfg"].items() if key != "timm_model_pretrained"}
        return config["embed_dim"], vision, config.get("quick_gelu", False)

    own = open_clip.get_model_config(f"local-dir:{folder}")
    known = {arch: open_clip.get_model_config(arch) for arch in open_clip.list_models()}
    alike = [arch for arch, config in known.items() if tower_of(config) == tower_of(own)]

    def text_differs(arch: str) -> tuple[bool, bool]:
        text = known[arch]["text_cfg"]
        return text != own["text_cfg"], "hf_model_name" in text  # which would ask the Hub

    return min(alike, key=text_differs, default=None)


def _is_resnet(arch: str) -> bool:
    import open_clip

    vision = (open_clip.get_model_config(arch) or {}).get("vision_cfg", {})
    return isinstance(vision.get("layers"), (list, tuple)) and not vision.get("timm_model_name")


@torch.no_grad()
def _resize_attention_pool(tower: Any, image_size: int) -> None:
    """The ResNet for images of another size: its pool's positional embedding, resampled as open_clip does a ViT's."""
    pool, side = tower.attnpool, (image_size + 1) // 2 // 16  # rows of the map: the stem rounds up, what follows down
    whole, grid = pool.positional_embedding[:1], pool.positional_embedding[1:]  # (1,C) (S,C)
    old = math.isqrt(len(grid))
    grid = grid.T.reshape(1, -1, old, old)  # (1,C,old,old)
    grid = F.interpolate(grid, size=(side, side), mode="bicubic", antialias=True, align_corners=False)
    pool.positional_embedding = nn.Parameter(torch.cat([whole, grid.flatten(2)[0].T]))  # (1+side*side,C)
    tower.image_size = image_size


def check_open_clip(tower: Any, spec: str, projected: bool, value_path: bool) -> None:
    """Refuse the options that this tower cannot serve.

    Raises:
        ValueError: which option, and why.
    """
    kind = type(tower).__name__
    if kind == "TimmModel":
        check_timm(tower.trunk, spec, projected, value_path)
        if projected and hasattr(tower.head, "pool"):
            raise ValueError(
                f"projected must be False for a tower that pools by 2-D attention after timm's trunk, got {spec!r}; "
                f"leave it out"
            )
    elif kind == "VisionTransformer":
        if projected and getattr(tower, "attn_pool_contrastive", None) is not None:
            raise ValueError(
                f"projected must be False for a tower with two attention pools, got {spec!r} "
                f"(attentional_pool={tower.attn_pool_type!r}); leave it out"
            )
    elif kind == "ModifiedResNet":
        if value_path and not projected:
            raise ValueError(
                f"value_path must come with projected for a ResNet, whose one attention is its pool, got {spec!r} with "
                f"projected=False; set projected as well"
            )
    elif projected or value_path:
        raise ValueError(
            f"projected and value_path must be False for a tower that open_clip does not build itself, got {spec!r} "
            f"({kind}); leave them out"
        )


def encode_open_clip(
    tower: Any, images: Tensor, projected: bool = False, value_path: bool = False, global_token: bool = False
) -> tuple[Tensor, Tensor | None]:
    """The embedding of each position, (B,H,W,C) or (B,S,C), and of the whole image, (B,C), or None if not asked for.

    Args:
        tower: the `visual` of an open_clip model.
        images: (B,3,H,W).
        projected: each position into the space of images and texts.
        value_path: in the last block the value projection takes the attention's place.
        global_token: whether to give the embedding of the whole image, always that of the ordinary path; projected
            it is `tower(images)`, not normalised.
    """
    kind = type(tower).__name__
    if kind == "VisionTransformer":
        return _encode_vit(tower, images, projected, value_path, global_token)
    if kind == "TimmModel" and (projected or value_path or is_row_of_blocks(tower.trunk)):
        return encode_timm(tower.trunk, images, projected, value_path, global_token, tail=tower.head)
    found = tower.forward_intermediates(
        images, indices=1, normalize_intermediates=True, intermediates_only=True, output_fmt="NCHW"
    )["image_intermediates"][-1]  # (B,C,H,W)
    positions = found.permute(0, 2, 3, 1)  # (B,H,W,C)
    if projected:  # a ResNet: its pool attends to one position, which gives that position's value
        positions = tower.attnpool.c_proj(tower.attnpool.v_proj(positions))  # (B,H,W,C')
    if not global_token:
        return positions, None
    return positions, tower.attnpool(found) if projected else positions.flatten(1, 2).mean(1)  # (B,C)


def _encode_vit(
    tower: Any, images: Tensor, projected: bool, value_path: bool, global_token: bool
) -> tuple[Tensor, Tensor | None]:
    tokens = tower._embeds(images)  # (B,1+S,C)
    if value_path:
        last = tower.transformer.resblocks[-1]
        depth = len(tower.transformer.resblocks)
        if depth > 1:
            tokens, _ = tower.transformer.forward_intermediates(tokens, indices=[depth - 2], stop_early=True)
        found = _value_block(last, tokens)
        ordinary = last(tokens) if global_token else found
    else:
        ordinary = found = tower.transformer(tokens)
    positions, pool = found[:, 1:], tower.attn_pool  # (B,S,C)
    if projected:
        positions = positions if pool is None else _value_of_pool(pool, positions)
        positions = _project(tower, tower.ln_post(positions))  # (B,S,C')
        whole = _project(tower, tower._pool(ordinary)[0]) if global_token else None  # (B,C')
    else:  # the final norm belongs to the tokens, unless an attention pool stands before it (CoCa)
        positions = tower.ln_post(positions) if pool is None else positions
        whole = ordinary[:, 0] if pool is not None else tower.ln_post(ordinary[:, 0])  # (B,C)
    return positions, whole if global_token else None


def _project(tower: Any, embeddings: Tensor) -> Tensor:
    return embeddings if tower.proj is None else embeddings @ tower.proj


def _value_of_pool(pool: Any, positions: Tensor) -> Tensor:
    """CoCa's attention pool of each position alone, (B,S,C) -> (B,S,C'): the same for each of its queries."""
    attn, keys = pool.attn, pool.ln_k(positions)
    weight = attn.in_proj_weight.chunk(3)[2] if attn.v_proj_weight is None else attn.v_proj_weight
    return attn.out_proj(F.linear(keys, weight, attn.in_proj_bias.chunk(3)[2]))


def _value_block(block: Any, tokens: Tensor) -> Tensor:
    """A block in which the value projection takes the attention's place, (B,N,C) -> (B,N,C).

    Source: MaskCLIP, arXiv 2112.01071, section 3.2. Residuals, norms and MLP stay; no token sees another.
    """
    attn = block.attn
    bias = None if attn.in_proj_bias is None else attn.in_proj_bias.chunk(3)[2]
    values = F.linear(block.ln_1(tokens), attn.in_proj_weight.chunk(3)[2], bias)  # (B,N,C)
    if getattr(attn, "head_scale", None) is not None:
        values = (values.unflatten(-1, (attn.num_heads, -1)) * attn.head_scale.squeeze(-1)).flatten(-2)
    if hasattr(attn, "ln_inner"):
        values = attn.ln_inner(values)
    values = attn.out_proj(values)
    if hasattr(block, "ln_attn"):
        values = block.ln_attn(values)
    tokens = tokens + block.ls_1(values)
    return tokens + block.ls_2(block.mlp(block.ln_2(tokens)))
