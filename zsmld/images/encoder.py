"""ImageEncoder: images -> spatial embeddings, with any timm or open_clip model that gives a map.

An image encoder is named by a spec string:

    timm:NAME                    a timm model or a local folder, e.g. timm:resnet50.a1_in1k
    open_clip:ARCH/PRETRAINED    the image tower of an open_clip model, e.g. open_clip:ViT-B-16/openai
"""

import difflib
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zsmld.images.transform import ImageTransform, Resize

# These mix several scales or drop the map before their last layer: there is no (B,S,C) to attend to.
_NO_MAP = ("pit_", "crossvit_", "coat_")


class ImageEncoder(nn.Module):
    """Images (B,3,H,W) -> spatial embeddings (B,S,C).

    Args:
        spec: the encoder's name, see the top of this file.
        pretrained: load the named weights (from the Hub or a local folder); False for random ones.
        image_size: side in pixels; default what the weights were trained for.
        stage: for CNNs and hierarchical models, the index of an earlier stage whose map is used (timm's
            `out_indices`); default the last map before pooling.
        checkpoint_path: a local weights file for a timm model, instead of `pretrained`.
        model_kwargs: further arguments of the timm or open_clip model, e.g. {"pad_type": "same"}.
        mean: per channel, default the weights' own.
        std: likewise.
        interpolation: likewise.
        resize: "squash" or "crop", see `ImageTransform`.

    Attributes:
        encoder_dim: C.
        grid_size: (rows, columns) of the map; S is their product.
        transform: the `ImageTransform` of these weights.

    Raises:
        ValueError: if the spec is unknown, the model gives no map, or the weights do not fit.

    Example:
        >>> encoder = ImageEncoder("timm:resnet18", pretrained=False, image_size=64).eval()
        >>> encoder(torch.zeros(1, 3, 64, 64)).shape, encoder.grid_size
        (torch.Size([1, 4, 512]), (2, 2))
    """

    def __init__(
        self,
        spec: str,
        pretrained: bool = True,
        image_size: int | None = None,
        stage: int | None = None,
        checkpoint_path: str | Path | None = None,
        model_kwargs: dict[str, Any] | None = None,
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
        interpolation: str | None = None,
        resize: Resize = "squash",
    ) -> None:
        super().__init__()
        if image_size is not None and image_size < 1:
            raise ValueError(
                f"image_size must be a positive number of pixels, got {image_size}; leave it out for default"
            )
        self.body: Any  # timm's and open_clip's networks share no type
        kind, _, name = spec.partition(":")
        if kind not in ("timm", "open_clip") or not name:
            raise ValueError(
                f"image_encoder must be timm:NAME or open_clip:ARCH/PRETRAINED, got {spec!r}; "
                f"write for instance timm:resnet50.a1_in1k"
            )
        self.spec, self.stage, self.model_kwargs = spec, stage, dict(model_kwargs or {})
        if kind == "timm":
            own = self._build_timm(name, pretrained, image_size, checkpoint_path)
        else:
            own = self._build_open_clip(name, pretrained, image_size)
        self.transform = ImageTransform(
            image_size=own["image_size"],
            mean=tuple(mean or own["mean"]),
            std=tuple(std or own["std"]),
            interpolation=interpolation or own["interpolation"],
            resize=resize,
        )
        self.body.to(memory_format=torch.channels_last)  # what convolutions are fastest in, on CPUs and GPUs alike
        self._probe()

    def _build_timm(
        self, name: str, pretrained: bool, image_size: int | None, checkpoint_path: str | Path | None
    ) -> dict[str, Any]:
        import timm
        from timm.data.config import resolve_model_data_config

        if name.startswith(_NO_MAP):
            family = name.split("_")[0]
            raise ValueError(
                f"image_encoder must give a map of spatial embeddings, timm's {family} family does not, got {name!r}; "
                f"use for instance a resnet, convnext, vit or swin"
            )
        is_folder = Path(name).is_dir()
        if is_folder:
            name = f"local-dir:{name}"
        options = dict(self.model_kwargs)
        if self.stage is None:
            options["num_classes"] = 0  # drops the classifier; `forward_features` never pools
        else:
            options |= {"features_only": True, "out_indices": (self.stage,)}
        if checkpoint_path is not None and not Path(checkpoint_path).is_file():
            raise FileNotFoundError(
                f"checkpoint_path must be an existing file, not found: {checkpoint_path}; correct it"
            )
        options["pretrained"] = pretrained and checkpoint_path is None
        try:
            self.body = _create_timm(name, options | ({} if image_size is None else {"img_size": image_size}))
        except (RuntimeError, IndexError) as error:
            known = {"Unknown model": "image_encoder", "Invalid pretrained tag": "image_encoder", "index": "stage"}
            argument = next((argument for text, argument in known.items() if text in str(error)), None)
            if argument is None:
                raise
            similar = difflib.get_close_matches(name, timm.list_models(pretrained=True) + timm.list_models(), 3)
            raise ValueError(
                f"{argument} must be one timm knows, got {name!r} with stage={self.stage}: {error}; "
                f"similar names: {similar or 'see timm.list_models()'}"
            ) from error
        if is_folder:  # what a checkpoint stores must mean something where this folder is not
            self.spec = f"timm:{self.body.pretrained_cfg['architecture']}"
        own = resolve_model_data_config(self.body)
        own["image_size"] = own["input_size"][1] if image_size is None else image_size
        if checkpoint_path is not None:
            _load_timm_checkpoint(self.body, Path(checkpoint_path))
        return own

    def _build_open_clip(self, name: str, pretrained: bool, image_size: int | None) -> dict[str, Any]:
        model, _ = create_open_clip(name, pretrained, force_image_size=image_size, **self.model_kwargs)
        self.body = model.visual
        # The native ViT counts its tokens one by one; every other tower has a map.
        is_vit = type(self.body).__name__ == "VisionTransformer"
        self._open_clip_options = {
            "indices": 1,  # the last block
            # The final norm belongs to the tokens, unless an attention pooler stands before it (CoCa).
            "normalize_intermediates": getattr(self.body, "attn_pool", None) is None,
            "intermediates_only": True,
            "output_fmt": "NLC" if is_vit else "NCHW",
        }
        size = self.body.image_size
        own = dict(self.body.preprocess_cfg)
        own["image_size"] = size[0] if isinstance(size, (tuple, list)) else size
        return own

    @torch.no_grad()
    def _probe(self) -> None:
        """One blank image through the network: learns C and the grid, and refuses a model that gives no map."""
        training, size = self.training, self.transform.image_size
        self.eval()
        embeddings = self._map(torch.zeros(1, 3, size, size))
        self.train(training)
        if embeddings.ndim == 4:  # (B,H,W,C)
            self.grid_size = (embeddings.shape[1], embeddings.shape[2])
        else:  # (B,S,C)
            side = math.isqrt(embeddings.shape[1])
            if side * side != embeddings.shape[1]:
                raise ValueError(
                    f"image_encoder must give a square map, got {embeddings.shape[1]} positions from {self.spec!r}; "
                    f"use a model whose tokens form a grid"
                )
            self.grid_size = (side, side)
        self.encoder_dim = int(embeddings.shape[-1])

    def forward(self, images: Tensor) -> Tensor:
        """Images (B,3,H,W), transformed, H = W = `transform.image_size` -> spatial embeddings (B,S,C).

        Raises:
            ValueError: if the shape is not that of transformed images.
        """
        size = self.transform.image_size
        if images.ndim != 4 or tuple(images.shape[1:]) != (3, size, size) or not images.is_floating_point():
            raise ValueError(
                f"images must be (B, 3, {size}, {size}) of floats, got {tuple(images.shape)} of {images.dtype}; "
                f"pass each through image_encoder.transform"
            )
        embeddings = self._map(images.contiguous(memory_format=torch.channels_last))
        return embeddings.flatten(1, 2) if embeddings.ndim == 4 else embeddings  # (B,S,C)

    def _map(self, images: Tensor) -> Tensor:
        """(B,H,W,C) from a network with a map, (B,S,C) from one with tokens."""
        if self.spec.startswith("open_clip:"):
            found = self.body.forward_intermediates(images, **self._open_clip_options)["image_intermediates"][-1]
            return found if found.ndim == 3 else found.permute(0, 2, 3, 1)
        if self.stage is not None:
            found = self.body(images)[-1]
        else:
            found = self.body.forward_features(images)
        if isinstance(found, Tensor) and found.ndim == 4:
            channels_last = getattr(self.body, "output_fmt", "NCHW") == "NHWC"
            return found if channels_last else found.permute(0, 2, 3, 1)
        if isinstance(found, Tensor) and found.ndim == 3:
            return found[:, getattr(self.body, "num_prefix_tokens", 0) :]  # class and register tokens are no positions
        raise ValueError(
            f"image_encoder must give a map (B,C,H,W) or tokens (B,S,C), got "
            f"{tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__} from {self.spec!r}; "
            f"use another model"
        )

    def config(self) -> dict[str, Any]:
        """What rebuilds this encoder without its weights, for a checkpoint."""
        transform = self.transform.to_dict()
        return {"spec": self.spec, "stage": self.stage, "model_kwargs": self.model_kwargs, **transform}

    def __repr__(self) -> str:
        rows, columns = self.grid_size
        return f"ImageEncoder({self.spec!r}, {self.transform.image_size}px -> {rows}x{columns} of {self.encoder_dim})"


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

    if Path(name).is_dir():
        name = f"local-dir:{name}"
    arch, _, weights = (name, "", "") if name.startswith(("hf-hub:", "local-dir:")) else name.partition("/")
    if ":" not in arch and arch not in open_clip.list_models():
        similar = difflib.get_close_matches(arch, open_clip.list_models(), 3) or "open_clip.list_models()"
        raise ValueError(f"open_clip:ARCH/PRETRAINED must name a known architecture, got {arch!r}; see {similar}")
    tags = open_clip.list_pretrained_tags_by_model(arch) if ":" not in arch else []
    if pretrained and ":" not in arch and weights not in tags and not Path(weights).is_file():
        raise ValueError(
            f"open_clip:ARCH/PRETRAINED must name weights of {arch} or a file, got {weights or 'none'!r}; it has {tags}"
        )
    # OpenAI's weights need another activation than the architecture's default; open_clip only warns of it.
    quick_gelu = weights in tags and open_clip.get_pretrained_cfg(arch, weights).get("quick_gelu", False)
    model = open_clip.create_model(
        arch,
        weights if pretrained and weights else None,
        load_weights=pretrained,
        pretrained_text=pretrained,
        force_quick_gelu=quick_gelu,
        **options,
    )
    return model, arch


def _create_timm(name: str, options: dict[str, Any]) -> nn.Module:
    """A timm model; transformers fix their grid at creation and take `img_size`, the others do not know it."""
    import timm

    try:
        return timm.create_model(name, **options)
    except TypeError as error:
        if "img_size" not in str(error):
            raise
        return timm.create_model(name, **{key: value for key, value in options.items() if key != "img_size"})


def _load_timm_checkpoint(body: nn.Module, path: Path) -> None:
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
