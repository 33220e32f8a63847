"""What is trained: the raw weights, their moving average, and the model that is evaluated; whole, or in shards."""

import copy
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from zsmld.model import ZeroShotClassifier
from zsmld.processes import rank_and_world, take_from_main, total

_MIN_SHARDED = 1_000_000  # parameters of a block that is gathered and given back on its own


class Weights:
    """The part of a model that is trained, in all its copies.

    Args:
        model: on its device, the same in every process. Its own weights are trained in place, unless they are sharded.
        head_only: train `model.decoder` alone.
        ema_decay: of the moving average; 0 keeps none.
        sharded: FSDP: every process holds a share of the weights, of their average and of the optimiser's state. Then
            a copy is trained, and `model` is what it is gathered into.
        ema_warmup: let the average follow at once in the first steps, where the weights are still random.

    Attributes:
        trained: the module whose parameters an optimiser gets.
    """

    def __init__(
        self, model: ZeroShotClassifier, head_only: bool, ema_decay: float, sharded: bool, ema_warmup: bool = True
    ) -> None:
        from timm.utils.model_ema import ModelEmaV3

        self.model, self.head_only, self.sharded = model, head_only, sharded
        part: nn.Module = model.decoder if head_only else model
        self.trained = copy.deepcopy(part) if sharded else part
        # Torch does not compute sharded parameters and whole buffers in one call.
        average = partial(ModelEmaV3, decay=ema_decay, use_warmup=ema_warmup, foreach=not sharded)
        self.ema = average(self.trained) if ema_decay else None
        if sharded:
            for module in (self.trained, *([self.ema.module] if self.ema else [])):
                _shard(module)

    def update(self, num_steps: int) -> None:
        """Move the average, after this many steps."""
        if self.ema is not None:
            self.ema.update(self.trained, step=num_steps)

    def are_finite(self) -> bool:
        """Whether no process has a NaN or an infinite number among its trained weights; all call it together."""
        parameters: list[Any] = list(self.trained.parameters())
        parts = [p.to_local() if _is_share(p) else p for p in parameters]
        num_bad = sum(float(not torch.isfinite(part).all()) for part in parts)
        return total([num_bad], next(self.model.parameters()).device) == [0]

    def evaluated(self) -> ZeroShotClassifier:
        """The model that is measured and saved: with averaged weights where there are some.

        Every process must call it. Each has batch statistics of its own images; all get the main process's.
        """
        source = self.trained if self.ema is None else self.ema.module
        take_from_main(source.buffers())
        if self.sharded:  # whole again, in every process: evaluation shares images, not weights
            part = self.model.decoder if self.head_only else self.model
            _load(part, {name: _whole(tensor) for name, tensor in source.state_dict().items()})
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

    def check(self, state: dict[str, Tensor]) -> None:
        """Refuse weights that `take` could not end with.

        Raises:
            ValueError: if names or shapes are others.
        """
        own = (self.model.decoder if self.head_only else self.model).state_dict()
        wrong = [name for name in {**own, **state} if name not in own or name not in state]
        wrong = wrong or [name for name in state if state[name].numel() != own[name].numel()]
        if wrong:
            raise ValueError(f"best_weights must be those of the network, {wrong[:3]} are not")

    def of_trained_part(self, model: ZeroShotClassifier) -> dict[str, Tensor]:
        """A copy of the weights of an evaluated model, on the CPU, as `take` wants them."""
        part = model.decoder if self.head_only else model
        return {name: tensor.detach().cpu().clone() for name, tensor in part.state_dict().items()}

    # ----------------------------------------------------------------------------------------------- save and resume

    def state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """Weights, average and optimiser, on the CPU, whole whatever the number of processes.

        Every process must call it; what the others get than the main one is empty where it would take memory.
        """
        return {
            "trained": _on_main(self.trained.state_dict()),
            "averaged": None if self.ema is None else _on_main(self.ema.module.state_dict()),
            "optimizer": _on_main(optimizer.state_dict()),
        }

    def restore(self, state: dict[str, Any], optimizer: torch.optim.Optimizer) -> None:
        """What `state` gave the main process; every process has read it."""
        _load(self.trained, state["trained"])
        if self.ema is not None:
            _load(self.ema.module, state["averaged"])
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        moments = {
            number: {n: value if n == "step" else _like(value, parameters[number]) for n, value in entry.items()}
            for number, entry in state["optimizer"]["state"].items()
        }
        own, saved = optimizer.state_dict()["param_groups"], state["optimizer"]["param_groups"]
        groups = [mine | its for mine, its in zip(own, saved, strict=True)]  # an earlier torch had fewer entries
        for mine, group in zip(own, groups, strict=True):
            if wrong := [name for name in mine if _kind(group[name]) != _kind(mine[name])]:
                raise ValueError(f"the optimiser has {wrong} of another kind")  # it takes whatever it is given
        optimizer.load_state_dict({"state": moments, "param_groups": groups})


def _kind(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(_kind, value))
    return float if type(value) is int else type(value)  # a decay of 0 is one of 0.0


def _is_share(tensor: Any) -> bool:
    if rank_and_world()[1] == 1:  # torch may have been built without processes
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def _whole(tensor: Any) -> Tensor:
    whole: Tensor = tensor.full_tensor() if _is_share(tensor) else tensor
    return whole


def _on_main(value: Any) -> Any:
    """A state with whole tensors on the CPU; in other processes without them. All gather them one after the other."""
    if isinstance(value, dict):
        return {key: _on_main(inner) for key, inner in value.items()}
    if isinstance(value, Tensor):
        whole = _whole(value.detach())
        return whole.cpu() if rank_and_world()[0] == 0 else None
    return value


def _like(value: Any, model: Any) -> Any:
    """A whole tensor as the model of it is: a share of its own shape, and a number or a vector of one number."""
    if isinstance(value, Tensor) and value.numel() == model.numel() == 1 and model.ndim < 2:
        value = value.reshape(model.shape)
    if _is_share(model) and isinstance(value, Tensor) and value.shape == model.shape:
        from torch.distributed.tensor import distribute_tensor

        return distribute_tensor(value.to(model.device), model.device_mesh, model.placements, src_data_rank=None)
    return value


def _load(module: nn.Module, state: dict[str, Tensor]) -> None:
    own = module.state_dict()
    module.load_state_dict({name: _like(tensor, own[name]) for name, tensor in state.items()})


def _shard(module: nn.Module) -> None:
    """FSDP in place: large blocks on their own, the rest as one.

    The parts of a whole model are sharded each for itself, since the network calls them one after the other.
    """
    from torch.distributed.fsdp import fully_shard

    for parameter in module.parameters():  # FSDP refuses numbers, and layouts such as channels-last
        parameter.data = parameter.data.contiguous().reshape(parameter.shape or (1,))
    roots = [module.image_encoder, module.decoder] if isinstance(module, ZeroShotClassifier) else [module]
    for root in roots:
        for parent in list(root.modules()):
            if isinstance(parent, (nn.ModuleList, nn.Sequential)):
                for block in parent:
                    if sum(p.numel() for p in block.parameters()) >= _MIN_SHARDED:
                        fully_shard(block)
        fully_shard(root)
