"""What is trained: the raw weights, their moving average, and the model that is evaluated; whole, or in shards."""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from zsmld.model import ZeroShotClassifier

_MIN_SHARDED = 1_000_000  # parameters of a block that is gathered and given back on its own


class Weights:
    """The part of a model that is trained, in all its copies.

    Args:
        model: on its device. Its own weights are trained in place, unless they are sharded.
        head_only: train `model.decoder` alone.
        ema_decay: of the moving average; 0 keeps none.
        sharded: FSDP: every process holds a share of the weights, of their average and of the optimiser's state. Then
            a copy is trained, and `model` is what it is gathered into.

    Attributes:
        trained: the module whose parameters an optimiser gets.
    """

    def __init__(self, model: ZeroShotClassifier, head_only: bool, ema_decay: float, sharded: bool) -> None:
        from timm.utils.model_ema import ModelEmaV3

        self.model, self.head_only, self.sharded = model, head_only, sharded
        part: nn.Module = model.decoder if head_only else model
        self.trained = copy.deepcopy(part) if sharded else part
        # The warm-up lets the average follow at once in the first steps, where the weights are still random.
        self.ema = ModelEmaV3(self.trained, decay=ema_decay, use_warmup=True) if ema_decay else None
        if sharded:
            for module in (self.trained, *([self.ema.module] if self.ema else [])):
                _shard(module)

    def update(self, num_steps: int) -> None:
        """Move the average, after this many steps."""
        if self.ema is not None:
            self.ema.update(self.trained, step=num_steps)

    def evaluated(self) -> ZeroShotClassifier:
        """The model that is measured and saved: with averaged weights where there are some."""
        source = self.trained if self.ema is None else self.ema.module
        if self.sharded:  # whole again, in every process: evaluation shares images, not weights
            own = self.model.decoder if self.head_only else self.model
            own.load_state_dict(get_model_state_dict(source, options=StateDictOptions(full_state_dict=True)))
            return self.model
        if not self.head_only:
            assert isinstance(source, ZeroShotClassifier)  # for the type checker: it is a copy of the model
            return source
        shown = copy.copy(self.model)  # the same frozen encoder, words and transform, with another head
        shown._modules = {**self.model._modules, "decoder": source}
        return shown

    def take(self, state: dict[str, Tensor]) -> None:
        """End with these weights, of the trained part, in the model."""
        (self.model.decoder if self.head_only else self.model).load_state_dict(state)

    def of_trained_part(self, model: ZeroShotClassifier) -> dict[str, Tensor]:
        """A copy of the weights of an evaluated model, on the CPU, as `take` wants them."""
        part = model.decoder if self.head_only else model
        return {name: tensor.detach().cpu().clone() for name, tensor in part.state_dict().items()}

    # ----------------------------------------------------------------------------------------------- save and resume

    def state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """Weights, average and optimiser, whole whatever the number of processes; empty but in the main process.

        Every process must call it.
        """
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        return {
            "trained": get_model_state_dict(self.trained, options=options),
            "averaged": None if self.ema is None else get_model_state_dict(self.ema.module, options=options),
            "optimizer": get_optimizer_state_dict(self.trained, optimizer, options=options),
        }

    def restore(self, state: dict[str, Any], optimizer: torch.optim.Optimizer) -> None:
        """What `state` gave; every process has read it."""
        options = StateDictOptions(full_state_dict=True)
        set_model_state_dict(self.trained, state["trained"], options=options)
        if self.ema is not None:
            set_model_state_dict(self.ema.module, state["averaged"], options=options)
        set_optimizer_state_dict(self.trained, optimizer, state["optimizer"], options=options)


def _shard(module: nn.Module) -> None:
    """FSDP in place: large blocks on their own, the rest as one.

    The parts of a whole model are sharded each for itself, since the network calls them one after the other.
    """
    from torch.distributed.fsdp import fully_shard

    roots = [module.image_encoder, module.decoder] if isinstance(module, ZeroShotClassifier) else [module]
    for root in roots:
        for parent in list(root.modules()):
            if isinstance(parent, (nn.ModuleList, nn.Sequential)):
                for block in parent:
                    if sum(p.numel() for p in block.parameters()) >= _MIN_SHARDED:
                        fully_shard(block)
        fully_shard(root)
