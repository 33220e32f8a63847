"""Batches: order, unreadable rows set aside, workers that change nothing."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from zsmld.datasets.loader import load_batches


class Rows:
    """A dataset of (3,2,2) tensors filled with their row; rows in `bad` cannot be read."""

    def __init__(self, num_rows: int, bad: tuple[int, ...] = ()) -> None:
        self.ids, self.bad = [f"image {i}" for i in range(num_rows)], bad

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, row: int) -> dict[str, Any]:
        if row in self.bad:
            raise ValueError(f"cannot decode {self.ids[row]}")
        targets = np.array([row % 2, -1], np.int8)
        return {"image": torch.full((3, 2, 2), float(row)), "targets": targets, "id": self.ids[row]}


@given(st.integers(1, 20), st.integers(1, 7), st.data())
def test_every_row_comes_once_in_order_or_is_set_aside(num_rows: int, batch_size: int, data: st.DataObject) -> None:
    bad = tuple(data.draw(st.lists(st.integers(0, num_rows - 1), unique=True)))
    order = data.draw(st.none() | st.permutations(range(num_rows)))
    batches = list(load_batches(Rows(num_rows, bad), None, batch_size, rows=order))
    order = list(range(num_rows)) if order is None else order
    assert len(batches) == -(-num_rows // batch_size)
    for number, batch in enumerate(batches):
        asked = order[number * batch_size : (number + 1) * batch_size]
        good = [row for row in asked if row not in bad]
        assert batch.rows.tolist() == good and batch.ids == [f"image {row}" for row in good] and len(batch) == len(good)
        assert batch.unreadable == [(f"image {r}", f"cannot decode image {r}") for r in asked if r in bad]
        if good:
            assert batch.inputs.shape == (len(good), 3, 2, 2) and batch.targets.shape == (len(good), 2)
            assert batch.inputs[:, 0, 0, 0].tolist() == good
            assert batch.targets.tolist() == [[row % 2, -1] for row in good]


def test_workers_change_nothing() -> None:
    dataset = Rows(11, bad=(3, 4))
    alone, helped = (list(load_batches(dataset, None, 3, num_workers=n)) for n in (0, 2))
    assert len(alone) == len(helped) == 4
    for a, b in zip(alone, helped, strict=True):
        assert a.ids == b.ids and a.unreadable == b.unreadable
        assert torch.equal(a.inputs, b.inputs) and torch.equal(a.targets, b.targets) and torch.equal(a.rows, b.rows)


def test_transform_is_applied_to_images_and_not_to_embeddings() -> None:
    (batch,) = load_batches(Rows(2), lambda image: image + 10, 4)
    assert batch.inputs[:, 0, 0, 0].tolist() == [10, 11]

    class Embedded(Rows):
        def __getitem__(self, row: int) -> dict[str, Any]:
            item = super().__getitem__(row)
            return {"spatial_embeddings": item["image"].flatten(1), "targets": item["targets"], "id": item["id"]}

    (batch,) = load_batches(Embedded(2), lambda image: image + 10, 4)
    assert batch.inputs.shape == (2, 3, 4) and batch.inputs.max() == 1


def test_rows_may_repeat_and_be_few() -> None:
    batches = list(load_batches(Rows(9), None, 2, rows=np.array([8, 0, 8])))
    assert [batch.rows.tolist() for batch in batches] == [[8, 0], [8]]
    assert list(load_batches(Rows(9), None, 2, rows=[])) == []


def test_other_errors_are_not_swallowed() -> None:
    class Broken(Rows):
        def __getitem__(self, row: int) -> dict[str, Any]:
            raise KeyError("a bug of the dataset")

    with pytest.raises(KeyError, match="a bug of the dataset"):
        list(load_batches(Broken(1), None, 1))


@pytest.mark.parametrize("options", [{"batch_size": 0}, {"batch_size": 2, "num_workers": -1}])
def test_wrong_numbers(options: dict) -> None:
    with pytest.raises(ValueError, match="batch_size must be ≥ 1 and num_workers ≥ 0, got "):
        next(load_batches(Rows(2), None, **options))
