"""What processes tell each other: the same in one process, in two, and for whatever kind of tensor."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from zsmld.cli import main
from zsmld.processes import from_all, rank_and_world, take_from_main, tensors_from_all, total

_CPU = torch.device("cpu")


def exchange() -> dict[str, object]:
    """One call of each function, with values that tell the processes apart."""
    rank, world = rank_and_world()
    channels_last = torch.arange(16.0).reshape(1, 2, 2, 4).to(memory_format=torch.channels_last) + 100 * rank
    scalar, flags = torch.tensor(rank + 5), torch.tensor([rank == 0, rank == 1])
    strides, parameter = channels_last.stride(), torch.nn.Parameter(torch.full((2,), float(rank)))
    take_from_main([channels_last, scalar, flags, parameter])
    return {
        "rank": rank,
        "world": world,
        "objects": from_all({"rank": rank}),
        "sums": total([rank + 1, 0.5, float(2**53) if rank == 0 else 0], _CPU),
        "tensors": [t.tolist() for t in tensors_from_all((torch.arange(4).reshape(2, 2) + 10 * rank).T)],
        "main": [channels_last.flatten().tolist(), scalar.item(), flags.tolist(), parameter.tolist()],
        "strides_stay": channels_last.stride() == strides,
    }


_OF_MAIN = [[float(i) for i in range(16)], 5, [True, False], [0.0, 0.0]]


def test_one_process_talks_to_itself() -> None:
    assert exchange() == {
        "rank": 0,
        "world": 1,
        "objects": [{"rank": 0}],
        "sums": [1.0, 0.5, 2.0**53],
        "tensors": [[[0, 2], [1, 3]]],
        "main": _OF_MAIN,
        "strides_stay": True,
    }


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch knows no processes")
def test_two_processes_tell_each_other_the_same(tmp_path: Path) -> None:
    environment = os.environ | {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "RENDEZVOUS": str(tmp_path / "meeting")}
    command = [sys.executable, __file__]
    started = [
        subprocess.Popen(command, env=environment | {"RANK": str(rank)}, stdout=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    said = [process.communicate(timeout=200)[0] for process in started]
    found = [json.loads(text.splitlines()[-1]) for text in said]  # gloo of older torch writes a line before it
    for rank, values in enumerate(found):
        assert values == {
            "rank": rank,
            "world": 2,
            "objects": [{"rank": 0}, {"rank": 1}],
            "sums": [3.0, 1.0, 2.0**53],
            "tensors": [[[0, 2], [1, 3]], [[10, 12], [11, 13]]],
            "main": _OF_MAIN,
            "strides_stay": True,
        }


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch knows no processes")
@pytest.mark.parametrize(
    ("arguments", "status"), [(["recipes"], 0), (["predict", "gone.jpg", "--model", "gone", "--words", "dog"], 2)]
)
def test_the_command_line_takes_leave_of_the_others(arguments: list[str], status: int, tmp_path: Path) -> None:
    """A process that is torn down with its connections open may abort when the others close them."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    assert main(arguments) == status
    assert not torch.distributed.is_initialized()


if __name__ == "__main__":
    rank = int(os.environ["RANK"])
    meeting = f"file://{os.environ['RENDEZVOUS']}"
    torch.distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2)
    sys.stdout.write(json.dumps(exchange()))
    torch.distributed.destroy_process_group()
