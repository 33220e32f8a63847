"""Files of others stay within bounds in memory, and what is valid is read."""

import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from zsmld.reading import read_arrow, read_parquet, read_torch
from zsmld.recipe.values import read_yaml


def test_a_table_is_what_was_written(tmp_path: Path) -> None:
    frame = pd.DataFrame({"image": [f"{n}.jpg" for n in range(150_000)], "labels": "dog|cat", "n": range(150_000)})
    frame.set_index("image").to_parquet(tmp_path / "t.parquet", row_group_size=40_000)
    pd.testing.assert_frame_equal(read_parquet(tmp_path / "t.parquet"), frame.set_index("image"))
    lists = pa.table({"words": pa.array([["a"], [], ["b", "c"]] * 1000, pa.list_(pa.string()))})
    pq.write_table(lists, tmp_path / "lists.parquet")
    assert read_arrow(tmp_path / "lists.parquet").equals(lists)


def test_numbers_pack_well_and_are_read(tmp_path: Path) -> None:
    numbers = pa.table({"n": np.arange(3_000_000)})
    options = {"compression": "zstd", "use_dictionary": False, "column_encoding": {"n": "DELTA_BINARY_PACKED"}}
    pq.write_table(numbers, tmp_path / "n.parquet", **options)
    assert len(read_arrow(tmp_path / "n.parquet")) == 3_000_000


@pytest.mark.parametrize(("rows", "characters"), [(20_000, 20_000), (4, 90_000_000)])
def test_a_table_that_unpacks_without_end_is_refused(rows: int, characters: int, tmp_path: Path) -> None:
    text = pa.array(["x" * characters])
    column = pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.int32)), text)
    pq.write_table(pa.table({"image": column}), tmp_path / "t.parquet", compression="zstd", store_schema=False)
    assert (tmp_path / "t.parquet").stat().st_size < 100_000
    with pytest.raises(ValueError, match=r"it unpacks to more than .* bytes, far beyond its size"):
        read_parquet(tmp_path / "t.parquet")


def test_tensors_are_looked_into_once(tmp_path: Path) -> None:
    inner: list[object] = [torch.ones(2)]
    for _ in range(40):
        inner = [inner] * 8
    inner.append(inner)
    torch.save(inner, tmp_path / "t.pt")
    assert read_torch(tmp_path / "t.pt")[8] is not None


def test_what_torch_does_not_write_is_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(100_000)}, tmp_path / "plain.pt")
    with (
        zipfile.ZipFile(tmp_path / "plain.pt") as plain,
        zipfile.ZipFile(tmp_path / "t.pt", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for name in plain.namelist():
            packed.writestr(name, plain.read(name))
    with pytest.raises(ValueError, match=r"it is compressed, which torch\.save does not do"):
        read_torch(tmp_path / "t.pt")
    torch.save([torch.empty(10**9, device="meta")], tmp_path / "meta.pt")
    with pytest.raises(ValueError, match="it has a tensor without numbers, of the device meta"):
        read_torch(tmp_path / "meta.pt")


def test_merge_keys_do_not_multiply() -> None:
    levels = ["a0: &a0 {" + ", ".join(f"k{n}: 1" for n in range(10)) + "}"]
    levels += [f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 10)}]}}" for n in range(1, 9)]
    with pytest.raises(yaml.YAMLError, match="it merges more than 100,000 keys into one mapping"):
        read_yaml("\n".join(levels))
    assert read_yaml("a: &a {x: 1}\nb: {<<: *a, y: 2}")["b"] == {"x": 1, "y": 2}


def test_many_words_in_a_recipe_are_no_bomb() -> None:
    words = [f"word {n}" for n in range(100_001)]
    assert read_yaml(f"words: [{', '.join(words)}]")["words"] == words
