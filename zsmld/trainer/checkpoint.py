"""Never lose work: the state of a training on disk, whole or not at all, and signals that end it at a step's end."""

import json
import math
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from zsmld.processes import from_all
from zsmld.trainer.weights import Weights
from zsmld.writing import written_whole

CHECKPOINT = "checkpoint.pt"
_FORMAT = 1


@dataclass
class Progress:
    """How far a training is.

    Attributes:
        step: optimiser steps that are done.
        epoch_loss: summed loss of the epoch that has begun, over all processes.
        epoch_images: images it was summed over.
        row: summed loss and images of the row of `steps.csv` that has begun.
        history: one record an epoch.
        best: the figure that selected the best epoch so far.
        best_epoch: that epoch, from 1.
        best_weights: its weights, on the CPU.
        unreadable: error by image id.
    """

    step: int = 0
    epoch_loss: float = 0.0
    epoch_images: int = 0
    row: tuple[float, int] = (0.0, 0)
    history: list[dict[str, float]] = field(default_factory=list)
    best: float = -math.inf
    best_epoch: int = 0
    best_weights: dict[str, Tensor] = field(default_factory=dict)
    unreadable: dict[str, str] = field(default_factory=dict)


class TrainingStopped(Exception):  # it is no error: somebody asked for it
    """Training was stopped by a signal. What it had learnt is saved, if there is an output folder.

    Attributes:
        signal: number of the signal.
    """

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.signal = number


def stopped(number: int, step: int, total_steps: int, output: str | Path | None) -> TrainingStopped:
    """What is raised when a signal has come, and the checkpoint is written."""
    return TrainingStopped(
        f"training was stopped by {signal.Signals(number).name} after step {step} of {total_steps}; what it learnt: "
        f"{saved_where(output)}; go on with --resume (in Python fit(resume=True))",
        number,
    )


def saved_where(output: str | Path | None) -> str:
    """The last good states in an output folder, for a message."""
    paths = [] if output is None else [Path(output, name) for name in ("model", CHECKPOINT)]
    return " and ".join(str(path) for path in paths if path.exists()) or "none yet"


class StopSignal:
    """While entered, SIGTERM and the first Ctrl-C are noted instead of ending the process; a second Ctrl-C does.

    Attributes:
        received: number of the signal, or 0.
    """

    def __init__(self) -> None:
        self.received = 0
        self._former: dict[int, Any] = {}

    def __enter__(self) -> "StopSignal":
        if threading.current_thread() is threading.main_thread():  # Python lets no other thread set handlers
            for number in (signal.SIGTERM, signal.SIGINT):
                self._former[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._former.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)  # None: it was not set by Python

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = number


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Write a training state: into a neighbour that takes the file's place once it is on the disk.

    Raises:
        OSError: if it cannot be written; the file that was there stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as temporary, temporary.open("wb") as file:
        try:
            torch.save({"format": _FORMAT, **state}, file)
        except RuntimeError as error:  # torch's writer hides what the disk said behind an error of its own
            raise OSError(str(error.__context__ or error)) from error


def load_state(path: Path) -> dict[str, Any]:
    """Read what `save_state` wrote: tensors and plain values, no code.

    Raises:
        ValueError: if the file is damaged or of another version.
    """
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch and pickle have many kinds; the reader needs the path
        raise ValueError(
            f"checkpoint {path} must be readable, it is damaged: {error}; remove it to start the training again"
        ) from error
    if not isinstance(state, dict) or state.get("format") != _FORMAT:
        raise ValueError(f"checkpoint {path} must have format {_FORMAT}, got another; remove it to start again")
    kinds = {"settings": str, "finished": bool, "progress": dict, "weights": dict, "scheduler": dict, "random": list}
    wrong = [key for key, kind in kinds.items() if not isinstance(state.get(key), kind)]
    if not wrong:
        wrong = [f"progress.{key}" for key in _wrong_progress(state["progress"])]
    try:
        state["settings"] = json.loads(state["settings"]) if not wrong else {}
    except (ValueError, RecursionError):
        state["settings"] = None
    wrong += [] if isinstance(state["settings"], dict) else ["settings"]
    if wrong:
        raise ValueError(f"checkpoint {path} must be whole, it is damaged in {wrong}; remove it to start again")
    return state


def _wrong_progress(progress: dict[str, Any]) -> list[str]:
    """The entries that no training wrote."""

    def is_number(value: Any) -> bool:
        return isinstance(value, int | float) and not isinstance(value, bool)

    def is_row(value: Any) -> bool:
        return isinstance(value, tuple) and len(value) == 2 and all(map(is_number, value))

    def is_record(value: Any) -> bool:
        return isinstance(value, dict) and all(isinstance(k, str) and is_number(v) for k, v in value.items())

    fits: dict[str, Callable[[Any], bool]] = {
        "step": lambda v: type(v) is int and v >= 0,
        "epoch_loss": is_number,
        "epoch_images": lambda v: type(v) is int and v >= 0,
        "row": is_row,
        "history": lambda v: isinstance(v, list) and all(map(is_record, v)),
        "best": is_number,
        "best_epoch": lambda v: type(v) is int and v >= 0,
        "best_weights": lambda v: isinstance(v, dict) and all(isinstance(t, Tensor) for t in v.values()),
        "unreadable": lambda v: isinstance(v, dict) and all(isinstance(t, str) for pair in v.items() for t in pair),
    }
    return [key for key in {**fits, **progress} if key not in fits or not fits[key](progress.get(key))]


def saved_state(path: Path | None, settings: dict[str, Any], resume: bool) -> dict[str, Any] | None:
    """The state to go on from; None to start.

    Args:
        path: of the checkpoint; None if nothing is written.
        settings: of this training.
        resume: whether to go on.

    Raises:
        ValueError: if the checkpoint is damaged, or of a training with other settings.
        FileExistsError: if there is an unfinished training that shall not be resumed.
    """
    if path is None or not path.is_file():
        return None
    state = load_state(path)
    if not resume and state["finished"]:
        return None
    if not resume:
        raise FileExistsError(
            f"output must not hold an unfinished training, {path} is one of {state['progress']['step']} steps; go on "
            f"with --resume (in Python fit(resume=True)), or remove it to start again"
        )
    then = state["settings"]
    names = [name for name in {**then, **settings} if then.get(name) != settings.get(name)]
    if names:
        changed = "; ".join(f"{name} was {then.get(name)!r} and is {settings.get(name)!r}" for name in names)
        raise ValueError(
            f"a resumed training must have the settings of {path}, got others: {changed}; set them back, or start "
            f"again in another folder"
        )
    return state


def check_shared(step: int, output: str | Path | None) -> None:
    """Refuse processes that found different checkpoints.

    Raises:
        ValueError: if `step`, where this process goes on, is not that of every other.
    """
    if len(set(from_all(step))) > 1:
        raise ValueError(
            f"output must be one folder that every process sees, {output} holds a checkpoint on some machines only; "
            f"put it on a shared disk"
        )


@contextmanager
def kept_safe(what: str, last_good: Callable[[], str]) -> Iterator[None]:
    """Around writing: what fails says where the last good state is.

    Raises:
        OSError: with that place in its message.
    """
    try:
        yield
    except OSError as error:
        raise OSError(
            f"{what} must be written, it cannot be: {error}. Last good state: {last_good()}; free some space and go on "
            f"with --resume (in Python fit(resume=True))"
        ) from error


def random_state(device: torch.device) -> dict[str, torch.Tensor]:
    """Torch's generators of this process: the CPU's, and the device's own."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def restore_random_state(state: dict[str, torch.Tensor], device: torch.device) -> None:
    """The generators as they were."""
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)


def _check_schedule(saved: dict[str, Any], own: dict[str, Any], step: int) -> None:
    """Torch's schedules take whatever they are given: all but where they are follows from the settings."""
    moves = {"last_epoch", "_step_count", "_last_lr", "_get_lr_called_within_step"}
    fits = own.keys() == saved.keys() and all(
        type(saved[name]) is type(value) if name in moves else saved[name] == value for name, value in own.items()
    )
    if not fits or not 0 <= saved["last_epoch"] <= step or len(saved["_last_lr"]) != len(own["_last_lr"]):
        raise ValueError(f"the schedule has {saved}")


def restore_state(saved: dict[str, Any], weights: Weights, optimizer: Any, scheduler: Any, accelerator: Any) -> None:
    """Weights, schedule, loss scale and this process's generators as they were, where as many processes go on.

    Raises:
        ValueError: if they are those of another network.
    """
    try:
        best = saved["progress"]["best_weights"]
        if best or saved["progress"]["best_epoch"] or saved["finished"]:  # else no epoch has ended
            weights.check(best)
        if saved["finished"]:
            return
        weights.restore(saved["weights"], optimizer)
        _check_schedule(saved["scheduler"], scheduler.state_dict(), saved["progress"]["step"])
        scheduler.load_state_dict(saved["scheduler"])
        if accelerator.scaler is not None and saved["scaler"]:
            accelerator.scaler.load_state_dict(saved["scaler"])
        if len(saved["random"]) == accelerator.num_processes:
            restore_random_state(saved["random"][accelerator.process_index], accelerator.device)
    except Exception as error:  # torch has many kinds
        raise ValueError(
            f"checkpoint must be of this training, what it holds does not fit: {type(error).__name__}: {error}; remove "
            f"{CHECKPOINT} to start again"
        ) from error
