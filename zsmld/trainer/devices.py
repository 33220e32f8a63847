"""Where a training runs: one device or many, as `torchrun` or `accelerate launch` started the processes."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from zsmld.datasets.loader import WorkerDied
from zsmld.text import resolve_device

if TYPE_CHECKING:
    from accelerate import Accelerator

TRACKERS = {"tensorboard": ("tensorboard", "tensorboardX"), "wandb": ("wandb",)}


def build_accelerator(
    device: str, precision: str, trackers: Sequence[str], output: str | Path | None, find_unused_parameters: bool
) -> "Accelerator":
    """accelerate's view of this process and the others.

    Args:
        device: "auto", "cpu", "cuda" or "mps".
        precision: "fp32", "bf16" or "fp16" autocast.
        trackers: among `TRACKERS`.
        output: folder for the files of trackers.
        find_unused_parameters: some image encoders hold parameters that a map does not need; DDP must look for them.

    Raises:
        ValueError: if FSDP is asked for outside of the Trainer's options, or the device cannot do the precision.
    """
    from accelerate import Accelerator, DistributedDataParallelKwargs
    from accelerate.state import AcceleratorState

    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true":
        raise ValueError(
            "accelerate launch must not set up FSDP itself, got --use_fsdp; leave it out and use trainer.fsdp=true, "
            "which knows the parts of the model"
        )
    resolved = resolve_device(device)
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    # Else a second training could not use another device or precision.
    AcceleratorState._reset_state(reset_partial_state=not distributed)
    if resolved.type == "cuda" and resolved.index is not None:
        torch.cuda.set_device(resolved)
    options: dict[str, Any] = {"log_with": list(trackers), "project_dir": str(output)} if trackers else {}
    return Accelerator(
        cpu=resolved.type == "cpu",
        mixed_precision="no" if precision == "fp32" else precision,
        step_scheduler_with_optimizer=False,
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=find_unused_parameters)],
        **options,
    )


def missing_trackers(trackers: Sequence[str]) -> list[str]:
    """What is wrong with the names of trackers, as sentences."""
    problems = [f"trackers must be among {list(TRACKERS)}, got {name!r}" for name in trackers if name not in TRACKERS]
    for name in trackers:
        if name in TRACKERS and not any(find_spec(module) for module in TRACKERS[name]):
            problems.append(f"tracker {name} must be installed: pip install {name}")
    return problems


@contextmanager
def beside_workers(num_workers: int, last_good: Callable[[], str]) -> Iterator[None]:
    """A core for each worker: threads that wait for each other's cores are far slower. Undone at the end.

    Args:
        num_workers: processes that decode images.
        last_good: where the last good state is.

    Raises:
        WorkerDied: with the last good state in its message.
    """
    num_threads = torch.get_num_threads()
    if num_workers:
        torch.set_num_threads(max(1, num_threads - num_workers))
    try:
        yield
    except WorkerDied as died:
        raise WorkerDied(
            f"{died}. Last good state: {last_good()}; go on with --resume (in Python fit(resume=True))"
        ) from None
    finally:
        torch.set_num_threads(num_threads)
