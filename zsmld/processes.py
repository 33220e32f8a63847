"""What the processes of `torch.distributed` tell each other; one process alone talks to itself."""

from collections.abc import Iterable, Sequence
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

Value = TypeVar("Value")


def rank_and_world() -> tuple[int, int]:
    """Which process this is, from 0, and how many there are.

    Example:
        >>> rank_and_world()
        (0, 1)
    """
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def from_all(value: Value) -> list[Value]:
    """The value of every process, in their order. All call it together; none goes on before all have.

    Example:
        >>> from_all("mine")
        ['mine']
    """
    _, world = rank_and_world()
    if world == 1:
        return [value]
    values: list[Value] = [value] * world
    dist.all_gather_object(values, value)
    return values


def total(values: Sequence[float], device: torch.device) -> list[float]:
    """The sums of some numbers over all processes, which call it together; `device` is where they may be exchanged.

    Example:
        >>> total([2, 0.5], torch.device("cpu"))
        [2.0, 0.5]
    """
    _, world = rank_and_world()
    if world == 1:
        return [float(value) for value in values]
    summed = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(summed)
    return [float(value) for value in summed]


def tensors_from_all(tensor: Tensor) -> list[Tensor]:
    """The tensor of every process, in their order; all have the same shape, type and kind of device.

    Example:
        >>> tensors_from_all(torch.ones(2))
        [tensor([1., 1.])]
    """
    _, world = rank_and_world()
    if world == 1:
        return [tensor]
    parts = [torch.empty_like(tensor, memory_format=torch.contiguous_format) for _ in range(world)]
    dist.all_gather(parts, tensor.contiguous())
    return parts


@torch.no_grad()
def take_from_main(tensors: Iterable[Tensor]) -> None:
    """Fill the tensors of every process with what those of the main one hold; all processes call it together.

    Example:
        >>> weight = torch.ones(2)
        >>> take_from_main([weight])
        >>> weight
        tensor([1., 1.])
    """
    _, world = rank_and_world()
    for tensor in tensors if world > 1 else ():
        dense = tensor.detach().contiguous()
        dist.broadcast(dense, 0)
        tensor.copy_(dense)
