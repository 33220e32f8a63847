"""ImageEncoder: images -> spatial embeddings, with any timm or open_clip model that gives a map.

An image encoder is named by a spec string:

    timm:NAME                    a timm model or a local folder, e.g. timm:resnet50.a1_in1k
    open_clip:ARCH/PRETRAINED    the image tower of an open_clip model, e.g. open_clip:ViT-B-16/openai
"""

import difflib
import math
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zsmld.images.open_clip_tower import (
    architecture_of,
    check_open_clip,
    create_open_clip,
    encode_open_clip,
    is_folder,
)
from zsmld.images.timm_body import check_timm, create_timm, encode_timm, load_timm_checkpoint, positions_of
from zsmld.images.transform import ImageTransform, Resize, check_image_size
from zsmld.images.weights import reachable

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
        projected: send each position through what the network itself does after its map, as if the image were that
            position alone. For CLIP and its kin this leads into the space of images and texts, where positions compare
            with word embeddings; for a classifier it is all but the last linear layer.
        value_path: in a transformer's last block, put the value projection in the place of the attention, so that no
            position sees another there (MaskCLIP, arXiv 2112.01071). With open_clip's ResNets, whose one attention is
            the pool, this is what `projected` does already: it goes with it and changes nothing.
        global_token: put one position before the others, the network's own embedding of the whole image in the same
            space: its pooled output if `projected`, else its class token, else the mean of the positions. It is that
            of the ordinary path, whatever `value_path` is.

    Attributes:
        encoder_dim: C.
        grid_size: (rows, columns) of the map; S is their product, plus `num_global_tokens`.
        num_global_tokens: 1 with `global_token`, else 0.
        transform: the `ImageTransform` of these weights.

    Raises:
        ValueError: if the spec is unknown, the model gives no map or cannot serve an option, or the weights do not fit.

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
        projected: bool = False,
        value_path: bool = False,
        global_token: bool = False,
    ) -> None:
        super().__init__()
        if image_size is not None:
            check_image_size(image_size)  # before a network is built for it
        self.body: Any  # timm's and open_clip's networks share no type
        kind, _, name = spec.partition(":")
        if kind not in ("timm", "open_clip") or not name:
            raise ValueError(
                f"image_encoder must be timm:NAME or open_clip:ARCH/PRETRAINED, got {spec!r}; "
                f"write for instance timm:resnet50.a1_in1k"
            )
        if stage is not None and (projected or value_path):
            raise ValueError(
                f"stage must be None with projected or value_path, which are about a network's end, got stage={stage}; "
                f"leave one out"
            )
        self.spec, self.stage, self.model_kwargs = spec, stage, dict(model_kwargs or {})
        self.projected, self.value_path, self.global_token = projected, value_path, global_token
        self.num_global_tokens = int(global_token)
        self._stored_spec: str | None = None  # where it is not `spec`, which text encoders and reports compare
        if kind == "open_clip" and checkpoint_path is not None:
            raise ValueError(
                f"checkpoint_path must be None with open_clip, got {checkpoint_path}; name the file in the spec, as "
                f"open_clip:ARCH/FILE"
            )
        with reachable(spec, downloads=pretrained and checkpoint_path is None and not os.path.exists(name)):
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
        # But on the CPU the backward of a strided 1x1 convolution of a few channels then writes past its memory and
        # kills the process (oneDNN in torch 2.15): the stem of RepVGG, MobileOne and FastViT, hence of MobileCLIP.
        fragile = [m for m in self.body.modules() if isinstance(m, nn.Conv2d) and _is_strided_1x1_of_few(m)]
        for convolution in fragile:
            convolution.to(memory_format=torch.contiguous_format)
        self._image_format = torch.contiguous_format if fragile else torch.channels_last
        try:
            self._probe()
        except (AssertionError, RuntimeError) as error:  # networks' ways to say that a size does not fit
            if image_size is None or isinstance(error, (torch.OutOfMemoryError, NotImplementedError)):
                raise
            raise ValueError(
                f"image_size must be one that {spec!r} takes, got {image_size}: {error}; leave it out for its own"
            ) from error

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
        # Without its weights, a folder is not read in the place of a name; a checkpoint names no folder.
        from_folder = os.path.isdir(name) and (pretrained or not timm.is_model(name))
        if from_folder:
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
            self.body = create_timm(name, options | ({} if image_size is None else {"img_size": image_size}))
        except (RuntimeError, IndexError, ValueError, AssertionError) as error:
            if "no source prefix" in str(error):  # timm takes what has a slash for no name of its own
                raise ValueError(
                    f"image_encoder must be one timm knows, got {name!r}; for a repository of the Hub write "
                    f"timm:hf-hub:OWNER/NAME"
                ) from error
            known = {"Unknown model": "image_encoder", "Invalid pretrained tag": "image_encoder", "index": "stage"}
            argument = next((argument for text, argument in known.items() if text in str(error)), None)
            if argument is None:
                raise
            if argument == "stage":
                raise ValueError(
                    f"stage must be one timm knows, got {name!r} with stage={self.stage}: {error}"
                ) from error
            similar = difflib.get_close_matches(name, timm.list_models(pretrained=True) + timm.list_models(), 3)
            raise ValueError(
                f"image_encoder must be one timm knows, got {name!r}; similar names: "
                f"{similar or 'see timm.list_models()'}"
            ) from error
        if from_folder:  # what a checkpoint stores must mean something where this folder is not
            self.spec = f"timm:{self.body.pretrained_cfg['architecture']}"
        if self.stage is None:
            check_timm(self.body, self.spec, self.projected, self.value_path)
        own = resolve_model_data_config(self.body)
        own["image_size"] = own["input_size"][1] if image_size is None else image_size
        if checkpoint_path is not None:
            load_timm_checkpoint(self.body, Path(checkpoint_path))
        return own

    def _build_open_clip(self, name: str, pretrained: bool, image_size: int | None) -> dict[str, Any]:
        model, _ = create_open_clip(name, pretrained, force_image_size=image_size, **self.model_kwargs)
        if is_folder(name, pretrained) and (known := architecture_of(name)) is not None:
            self._stored_spec = f"open_clip:{known}"
        self.body = model.visual
        check_open_clip(self.body, self.spec, self.projected, self.value_path)
        size = self.body.image_size
        own = dict(self.body.preprocess_cfg)
        own["image_size"] = size[0] if isinstance(size, (tuple, list)) else size
        return own

    @torch.no_grad()
    def _probe(self) -> None:
        """One blank image through the network: learns C and the grid, and refuses a model that gives no map."""
        training, size = self.training, self.transform.image_size
        self.eval()
        embeddings, whole = self._encode(torch.zeros(1, 3, size, size))
        self.train(training)
        if whole is not None and whole.shape != (1, embeddings.shape[-1]):
            raise ValueError(
                f"global_token must be False for a network whose pooled embedding is not as wide as its positions, got "
                f"{tuple(whole.shape)} beside {embeddings.shape[-1]} channels from {self.spec!r}; leave it out"
            )
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

        With `global_token` they are (B,1+S,C), the whole image first.

        Raises:
            ValueError: if the shape is not that of transformed images.
        """
        size = self.transform.image_size
        if images.ndim != 4 or tuple(images.shape[1:]) != (3, size, size) or not images.is_floating_point():
            raise ValueError(
                f"images must be (B, 3, {size}, {size}) of floats, got {tuple(images.shape)} of {images.dtype}; "
                f"pass each through image_encoder.transform"
            )
        embeddings, whole = self._encode(images.contiguous(memory_format=self._image_format))
        if embeddings.ndim == 4:
            embeddings = embeddings.flatten(1, 2)  # (B,S,C)
        return embeddings if whole is None else torch.cat([whole[:, None], embeddings], 1)  # (B,1+S,C)

    def _encode(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Each position, (B,H,W,C) from a network with a map or (B,S,C) from one with tokens, and the whole image."""
        if self.spec.startswith("open_clip:"):
            return encode_open_clip(self.body, images, self.projected, self.value_path, self.global_token)
        if self.stage is None:
            return encode_timm(self.body, images, self.projected, self.value_path, self.global_token)
        found = positions_of(self.body, self.body(images)[-1])
        return found, found.flatten(1, -2).mean(1) if self.global_token else None  # (B,C)

    def config(self) -> dict[str, Any]:
        """What rebuilds this encoder without its weights, for a checkpoint.

        An open_clip model from a local folder goes by its architecture's name in open_clip, and by its folder if it has
        none; a model with that cannot be saved.
        """
        transform = self.transform.to_dict()
        options = {"projected": self.projected, "value_path": self.value_path, "global_token": self.global_token}
        # Only those that are on: the others are as in checkpoints that were written before they existed.
        on = {name: value for name, value in options.items() if value}
        spec = self._stored_spec or self.spec
        return {"spec": spec, "stage": self.stage, "model_kwargs": self.model_kwargs, **on, **transform}

    def __repr__(self) -> str:
        rows, columns = self.grid_size
        return f"ImageEncoder({self.spec!r}, {self.transform.image_size}px -> {rows}x{columns} of {self.encoder_dim})"


def names_folder(spec: str) -> bool:
    """Whether `ImageEncoder(spec, pretrained=False)` would read a local folder.

    Example:
        >>> names_folder("timm:resnet18"), names_folder("open_clip:./clip")
        (False, True)
    """
    import timm

    kind, _, name = spec.partition(":")
    if name.lstrip().lower().startswith(("local-dir:", "/", "\\", ".", "~")):  # timm's prefixes go in any case
        return True
    return is_folder(name, pretrained=False) if kind == "open_clip" else os.path.isdir(name) and not timm.is_model(name)


def _is_strided_1x1_of_few(convolution: nn.Conv2d) -> bool:
    return convolution.kernel_size == (1, 1) and convolution.stride != (1, 1) and convolution.in_channels < 8
