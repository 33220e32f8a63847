"""Files of others stay within bounds in memory, and what is valid is read."""

import io
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from zsmld import TextEncoder
from zsmld.reading import read_arrow, read_numpy, read_parquet, read_torch
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


def npy(descr: str, shape: tuple[int, ...], data: bytes = b"") -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": descr, "fortran_order": False, "shape": shape})
    return file.getvalue() + data


def test_what_numpy_saves_is_read(tmp_path: Path) -> None:
    arrays = {"scores": np.eye(300), "words": np.array(["a", "ü"]), "none": np.zeros((0, 3)), "one": np.array(1.0)}
    arrays["targets"] = np.zeros((1000, 1000))  # as rare labels pack
    for save, name in ((np.savez, "s.npz"), (np.savez_compressed, "p.npz")):
        save(tmp_path / name, **arrays)
        with read_numpy(tmp_path / name) as found:
            assert found.files == list(arrays)
            for key, array in arrays.items():
                np.testing.assert_array_equal(found[key], array)
    np.save(tmp_path / "a.npy", arrays["scores"].T[::2])
    np.testing.assert_array_equal(read_numpy(tmp_path / "a.npy"), arrays["scores"].T[::2])
    with pytest.raises(FileNotFoundError):
        read_numpy(tmp_path / "none.npy")


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_an_archive_as_numpy_does_not_write_it_is_refused(method: int, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "v.npz", "w", method) as archive:
        archive.writestr("embeddings.npy", npy("<f4", (1, 10**6), b"\0" * 4 * 10**6))
    with pytest.raises(ValueError, match="it is compressed with bzip2 or LZMA, which numpy does not do"):
        read_numpy(tmp_path / "v.npz")
    with pytest.raises(ValueError, match=r"v\.npz must be numbers or texts .*bzip2 or LZMA, .* save it again"):
        TextEncoder(f"vectors:{tmp_path / 'v.npz'}").encode_words(["dog"])


def test_an_archive_that_unpacks_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez_compressed(tmp_path / "s.npz", scores=np.zeros((1000, 1000)))
    monkeypatch.setattr("zsmld.reading._ROOM", 0)
    monkeypatch.setattr("zsmld.reading._EXPANSION", 100)
    with pytest.raises(ValueError, match=r"it unpacks to more than .* bytes, far beyond its size"):
        read_numpy(tmp_path / "s.npz")


@pytest.mark.parametrize(("descr", "shape"), [("<f4", (10**6, 10**6)), ("<U0", (10**9,)), ("<U500000000", (1,))])
@pytest.mark.parametrize("name", ["a.npy", "a.npz"])
def test_an_array_of_more_than_its_file_has_is_refused(
    descr: str, shape: tuple[int], name: str, tmp_path: Path
) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("scores.npy", npy(descr, shape, b"\0" * 16))
    (tmp_path / "a.npy").write_bytes(npy(descr, shape, b"\0" * 16))
    with pytest.raises(ValueError, match=r"it has an array \(.*\) of .* in 16 stored bytes"):
        read_numpy(tmp_path / name)


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
    try:
        assert read_yaml("\n".join(levels))["a8"] == {f"k{n}": 1 for n in range(10)}  # PyYAML 6.0.4 merges a key once
    except yaml.YAMLError as error:
        assert "it merges more than 100,000 keys into its mappings" in str(error)
    many = ["all: &all {" + ", ".join(f"k{n}: 1" for n in range(3000)) + "}"]
    with pytest.raises(yaml.YAMLError, match="it merges more than 100,000 keys into its mappings"):
        read_yaml("\n".join(many + [f"m{n}: {{<<: *all}}" for n in range(3000)]))  # 9 million in 90 KB
    listed = many[0] + f"\nb: {{<<: [{', '.join(['*all'] * 12_000)}]}}"  # 36 million of one list
    with pytest.raises(yaml.YAMLError, match="it merges more than 1"):
        read_yaml(listed)
    assert read_yaml("a: &a {x: 1}\nb: {<<: *a, y: 2}")["b"] == {"x": 1, "y": 2}
    long = "all: &all {" + ", ".join(f"key{n}: 1" for n in range(20_000)) + "}\n"  # of one as long as it is
    assert len(read_yaml(long + "\n".join(f"m{n}: {{<<: *all}}" for n in range(6)))["m5"]) == 20_000


def test_many_words_in_a_recipe_are_no_bomb() -> None:
    words = [f"word {n}" for n in range(100_001)]
    assert read_yaml(f"words: [{', '.join(words)}]")["words"] == words
