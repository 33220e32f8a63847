"""Tables: a person's own photos."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from zsmld.datasets import Index, IndexedDataset, build_dataset, prepare
from zsmld.datasets.rows import guess_separator
from zsmld.datasets.table import read_table, split_words, table

ROWS = [("a.png", ["dog", "red car"]), ("b.png", ["cat"]), ("c.png", []), ("d.png", ["cat", "dog"])]
CSV = "image,labels\na.png,dog|red car\nb.png,cat\nc.png,\nd.png,cat|dog\n"


def write(folder: Path, name: str, text: str, images: tuple[str, ...] = ("a", "b", "c", "d")) -> Path:
    """A table, and the images that it names, beside it."""
    (folder / name).write_text(text, encoding="utf-8")
    for image in images:
        (folder / f"{image}.png").touch()
    return folder / name


def words_of(dataset: IndexedDataset) -> list[set[str]]:
    return [{dataset.vocabulary.words[j] for j in row.indices} for row in dataset.targets]


def ids_of(dataset: IndexedDataset) -> list[str]:
    return dataset.ids.to_pylist()


# ---------------------------------------------------------------------------------------------------- the same table

FORMS = {
    "t.csv": CSV,
    "semicolon.csv": CSV.replace("|", ";"),
    "comma.csv": 'file_name,tags\na.png,"dog, red car"\nb.png,cat\nc.png,\nd.png,"cat,dog"\n',
    "t.tsv": CSV.replace(",", "\t"),
    "list.jsonl": "".join(json.dumps({"image": i, "labels": w}) + "\n" for i, w in ROWS),
    "text.jsonl": "".join(json.dumps({"path": i, "words": " | ".join(w)}) + "\n" for i, w in ROWS),
    "twice.csv": CSV.replace("b.png,cat", "b.png,cat|cat"),
}


@pytest.mark.parametrize("name", FORMS)
def test_every_form_is_the_same_table(name: str, tmp_path: Path) -> None:
    found = table(write(tmp_path, name, FORMS[name]))
    assert found.vocabulary.words == ("cat", "dog", "red car") and found.vocabulary.unseen == ()
    assert ids_of(found) == [image for image, _ in ROWS]
    assert words_of(found) == [set(words) for _, words in ROWS]
    assert found.targets.dtype == np.int8 and found.targets.data.tolist() == [1] * 5
    assert found.name == Path(name).stem and found.split == "all" and found.missing == 0
    assert found.manifest["unknown_words"] == {}


def test_parquet_is_the_same_table(tmp_path: Path) -> None:
    write(tmp_path, "unused.csv", CSV)
    for cells in ([w for _, w in ROWS], ["|".join(w) for _, w in ROWS]):
        pq.write_table(pa.table({"image": [i for i, _ in ROWS], "tags": cells}), tmp_path / "t.parquet")
        found = table(tmp_path / "t.parquet")
        assert ids_of(found) == [image for image, _ in ROWS] and words_of(found) == [set(words) for _, words in ROWS]


def test_the_same_through_the_reader_and_an_index_on_disk(tmp_path: Path) -> None:
    problems: list[str] = []
    index = read_table(write(tmp_path, "t.csv", CSV), problems)
    assert not problems and index is not None
    opened = Index.open(index.save(tmp_path / "prepared"))
    for split in ("train", "val", "test", "all"):
        if split == "val":  # 0.1 of four images is none
            continue
        here, there = opened.dataset(split), table(tmp_path / "t.csv", split=split)
        assert ids_of(here) == ids_of(there) and words_of(here) == words_of(there)
    assert opened.manifest["counts"] == {
        "rows": 4,
        "merged_rows": 0,
        "unknown_words": 0,
        "labels_of_unknown_words": 0,
        "words_without_images": 0,
        "images_without_words": 1,
    }


def test_items_hold_the_picture_the_targets_and_the_id(tmp_path: Path) -> None:
    path = write(tmp_path, "t.csv", CSV)
    Image.new("RGB", (5, 4), "red").save(tmp_path / "a.png")
    item = table(path)[0]
    assert item["image"].size == (5, 4) and item["image"].getpixel((0, 0)) == (255, 0, 0)
    assert item["targets"].tolist() == [0, 1, 1] and item["targets"].dtype == np.int8 and item["id"] == "a.png"
    with pytest.raises(ValueError, match=r"image must be readable, cannot decode .*b\.png"):
        _ = table(path)[1]


def test_images_are_found_beside_the_table_in_images_or_in_root(tmp_path: Path) -> None:
    path = write(tmp_path, "t.csv", CSV)
    assert table(path).root == tmp_path
    for name in ("images", "else"):
        (tmp_path / name).mkdir()
    for image in "abcd":
        (tmp_path / f"{image}.png").rename(tmp_path / "images" / f"{image}.png")
    assert table(path).root == tmp_path / "images"
    assert table(path, root=tmp_path / "images").root == tmp_path / "images"
    with pytest.raises(ValueError, match=r"4 of 4 images are not in .*else, for instance a\.png"):
        table(path, root=tmp_path / "else")
    with pytest.raises(FileNotFoundError, match=r"root must be an existing folder of images, not found: .*none"):
        table(path, root=tmp_path / "none")


# ------------------------------------------------------------------------------- what is merged, left out or not there


def test_words_decide_order_and_the_others_are_counted(tmp_path: Path) -> None:
    path = write(tmp_path, "t.csv", CSV)
    with pytest.warns(UserWarning, match="words outside the vocabulary are left out: {'dog': 2}"):
        found = table(path, words=["red car", "cat", "zebra"])
    assert found.vocabulary.words == ("red car", "cat", "zebra")
    assert found.manifest["unknown_words"] == {"dog": 2}
    assert words_of(found) == [{"red car"}, {"cat"}, set(), {"cat"}]
    problems: list[str] = []
    (tmp_path / "words.txt").write_text("red car\n\ncat\nzebra\n", encoding="utf-8")
    index = read_table(path, problems, words=tmp_path / "words.txt")
    assert not problems and index is not None and index.words == found.vocabulary.words


def test_repeated_rows_are_merged_and_missing_images_dropped_with_one_warning(tmp_path: Path) -> None:
    text = "image,labels\na.png,dog\nb.png,cat\na.png,cat|dog\n./a.png,bird\nsub\\d.png,dog\nnone.png,dog|kite\n"
    path = write(tmp_path, "t.csv", text, images=("a", "b"))
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "d.png").touch()
    with pytest.warns(UserWarning) as caught:
        found = table(path, words=["dog", "cat", "bird"])
    assert len(caught) == 1 and str(caught[0].message) == (
        f"{path}: words outside the vocabulary are left out: {{'kite': 1}}; 2 repeated rows are merged with the first "
        f"of their image; 1 images are not in {tmp_path} and left out, such as ['none.png']"
    )
    assert ids_of(found) == ["a.png", "b.png", "sub\\d.png"] and found.paths[2].as_py() == "sub/d.png"
    assert words_of(found) == [{"dog", "cat", "bird"}, {"cat"}, {"dog"}]
    assert found.manifest["counts"]["merged_rows"] == 2 and found.manifest["missing_images"] == 1
    with pytest.raises(ValueError, match=r"1 of 4 images are not in .*; complete them, or missing_images=drop"):
        table(path, missing_images="error")


def test_a_missing_image_moves_no_other_image_to_another_split(tmp_path: Path) -> None:
    names = [f"{i}.png" for i in range(30)]
    path = write(tmp_path, "t.csv", "image,labels\n" + "".join(f"{n},dog\n" for n in names), [n[:-4] for n in names])
    before = {split: set(ids_of(table(path, split=split))) for split in ("train", "val", "test")}
    (tmp_path / "7.png").unlink()
    for split, ids in before.items():
        with pytest.warns(UserWarning, match="1 images are not in"):
            assert set(ids_of(table(path, split=split))) == ids - {"7.png"}


def test_all_that_is_wrong_comes_at_once(tmp_path: Path) -> None:
    path = write(tmp_path, "t.csv", "image,labels,split\na.png,dog|cat,train\n,x;y,dev set\na.png,cat,test\n")
    with pytest.raises(ValueError) as raised:
        table(path, missing_images="error")
    message = str(raised.value)
    assert message.startswith(f"{path} must be a usable table of images, found:\n  - ")
    for part in (
        "t.csv must name an image in each row, 1 rows do not, such as [2]",
        "separator must be given for t.csv, whose words could be divided by any of ['|', ';'], for instance 'dog|cat'",
        "column split of t.csv must say train, val or test, got ['dev set']",
        "t.csv must have an image in one split, 1 are in several, such as that of row [1]",
        "1 of 2 images are not in",
    ):
        assert part in message


# ---------------------------------------------------------------------------------------------- words and partitions


@pytest.mark.parametrize(
    ("cells", "words", "expected"),
    [
        (["dog", "cat"], (), "|"),
        (["a;b", "c"], (), ";"),
        (["tench, Tinca tinca"], (), ","),
        (["tench, Tinca tinca|dog"], (), "any of ['|', ',']"),
        (["a;b,c"], (), "any of [';', ',']"),
        (["tench, Tinca tinca"], ("tench, Tinca tinca",), "may be divided by ',' or hold it"),
        ([["a|b", "c"], "d"], (), "|"),
    ],
)
def test_separator_is_guessed_only_if_it_can_be_no_other(cells: list, words: tuple, expected: str) -> None:
    problems: list[str] = []
    found = guess_separator(pd.Series(cells), None, words, "t.csv", problems)
    assert found == expected and not problems if len(expected) == 1 else expected in problems[0]
    assert guess_separator(pd.Series(cells), " / ", words, "t.csv", []) == " / "


@given(st.lists(st.lists(st.text("ab; é", min_size=1, max_size=4), max_size=4), min_size=1, max_size=8))
def test_split_words_like_a_loop(cells: list[list[str]]) -> None:
    texts = ["|".join(cell) for cell in cells]
    expected = [(i, w.strip()) for i, text in enumerate(texts) for w in text.split("|") if w.strip()]
    for column in (texts, [text.split("|") for text in texts]):
        rows, words = split_words(pd.Series(column, dtype=object), "|")
        assert list(zip(rows.tolist(), words.tolist(), strict=True)) == expected


def test_partition_file(tmp_path: Path) -> None:
    path = write(tmp_path, "t.csv", CSV)
    inner = {"seen": ["dog"], "unseen": ["cat"]}
    plain = write(tmp_path, "p.json", json.dumps(inner))
    keyed = write(tmp_path, "many.json", json.dumps({"1/1": inner, "names": ["dog"]}))
    for partition in (plain, f"{keyed}#1/1"):
        found = table(path, partition=partition)
        assert found.vocabulary.seen == ("dog",) and found.vocabulary.unseen == ("cat",)
        assert found.vocabulary.words == ("dog", "cat") and found.manifest["unknown_words"] == {"red car": 1}
    with pytest.raises(ValueError, match=r"partition must name a key of .*many\.json, got '2/2'; it has \['1/1', 'na"):
        table(path, partition=f"{keyed}#2/2")
    with pytest.raises(ValueError, match=r"'seen' and 'unseen', got .* with \['1/1', 'names'\]; write FILE#KEY"):
        table(path, partition=keyed)
    with pytest.raises(ValueError, match=r"'seen' and 'unseen', got .* with list"):
        table(path, partition=f"{keyed}#names")
    with pytest.raises(FileNotFoundError, match=r"partition must be an existing JSON file, not found: none\.json"):
        table(path, partition="none.json")
    with pytest.raises(ValueError, match="words must be left out beside partition, got both"):
        table(path, partition=plain, words=["dog"])
    overlapping = write(tmp_path, "o.json", json.dumps({"seen": ["dog"], "unseen": ["dog"]}))
    with pytest.raises(ValueError, match=r"must be distinct, got \['dog'\]"):
        table(path, partition=overlapping)


def test_a_partition_may_have_words_that_no_row_has(tmp_path: Path) -> None:
    path = write(tmp_path, "t.csv", CSV)
    partition = write(tmp_path, "p.json", json.dumps({"seen": ["dog", "lynx"], "unseen": ["cat", "yak"]}))
    with pytest.warns(UserWarning, match="2 words of the partition are in no row"):
        found = table(path, partition=partition)
    assert found.vocabulary.words == ("dog", "lynx", "cat", "yak")
    assert found.targets.toarray().tolist() == [[1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0], [1, 0, 1, 0]]


def test_templates_reach_the_vocabulary(tmp_path: Path) -> None:
    found = table(write(tmp_path, "t.csv", CSV), templates=("{} outdoors",))
    assert found.vocabulary.prompts("dog") == ("dog outdoors",)


@pytest.mark.parametrize("second", ['{"image": "b.png"}', '{"image": "b.png", "labels": null}'])
def test_jsonl_row_without_words_has_none(second: str, tmp_path: Path) -> None:
    found = table(write(tmp_path, "t.jsonl", '{"image": "a.png", "labels": ["dog"]}\n' + second + "\n"))
    assert found.vocabulary.words == ("dog",) and words_of(found) == [{"dog"}, set()]


def test_unquoted_commas_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path, "t.csv", "image,labels\na.png,dog,cat\nb.png,zebra,bird\n")
    with pytest.raises(ValueError, match=r"t\.csv"):
        table(path)


# ------------------------------------------------------------------------------------------------------------ splits


@given(st.integers(4, 60), st.floats(0, 0.45), st.floats(0, 0.45), st.integers(0, 3))
def test_splits_are_disjoint_cover_everything_and_repeat(
    tmp_path_factory: pytest.TempPathFactory, num_rows: int, val_fraction: float, test_fraction: float, seed: int
) -> None:
    text = "image,labels\n" + "".join(f"{i}.png,dog\n" for i in range(num_rows))
    path = write(tmp_path_factory.mktemp("table"), "t.csv", text, tuple(map(str, range(num_rows))))
    options = {"val_fraction": val_fraction, "test_fraction": test_fraction, "seed": seed}

    def ids(split: str) -> list[str]:
        try:
            return ids_of(table(path, split=split, **options))
        except ValueError as error:
            assert "must have rows" in str(error)
            return []

    parts = {split: ids(split) for split in ("train", "val", "test")}
    assert sorted([*parts["train"], *parts["val"], *parts["test"]], key=lambda i: int(i[:-4])) == ids("all")
    assert len(parts["val"]) == round(val_fraction * num_rows)
    assert len(parts["test"]) == round(test_fraction * num_rows)
    assert parts == {split: ids(split) for split in parts}
    for part in parts.values():  # the table's own order
        assert part == sorted(part, key=lambda i: int(i[:-4]))


def test_every_split_has_the_same_vocabulary(photos: Path) -> None:
    tables = [table(photos / "photos.csv", split=split) for split in ("train", "val", "test", "all")]
    assert len({found.vocabulary.digest() for found in tables}) == 1
    assert [len(found) for found in tables] == [17, 2, 5, 24]
    assert ids_of(table(photos / "photos.csv", split="test", seed=1)) != ids_of(tables[2])


def test_split_column_decides(tmp_path: Path) -> None:
    text = "image,labels,split\na.png,dog,test\nb.png,cat,train\nc.png,dog,Training\nd.png,cat,validation\n"
    path = write(tmp_path, "t.csv", text)
    found = {split: ids_of(table(path, split=split)) for split in ("train", "val", "test", "all")}
    assert found["train"] == ["b.png", "c.png"] and found["val"] == ["d.png"] and found["test"] == ["a.png"]
    assert len(found["all"]) == 4


# ------------------------------------------------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("name", "text", "options", "message"),
    [
        ("t.csv", "image,labels\na.png,dog|cat\nb.png,x;y\n", {}, r"separator must be given .* any of \['\|', ';'\]"),
        ("t.csv", "image,labels\n", {}, "must have at least one row, got none"),
        ("t.csv", "picture,labels\na,b\n", {}, r"image_column must be named, t\.csv has 0 columns .*\['picture'"),
        ("t.csv", "image,path,labels\na,b,c\n", {}, "image_column must be named, .* has 2 columns"),
        ("t.csv", "image,words,tags\na,b,c\n", {}, "words_column must be named, .* has 2 columns"),
        ("t.csv", "image,lables\na,b\n", {}, r"0 columns .*\['image', 'lables'\], usual are labels, tags, words"),
        ("t.csv", CSV, {"image_column": "photo"}, r"image_column must be a column of t\.csv, got 'photo'; it has"),
        ("t.csv", CSV, {"split": "dev"}, "split must be 'train', 'val', 'test' or 'all', got 'dev'"),
        ("t.csv", CSV, {"val_fraction": 0.6, "test_fraction": 0.5}, "must leave rows to train on, got 0.6 and 0.5"),
        ("t.csv", CSV, {"val_fraction": -0.1}, "must leave rows to train on"),
        ("t.csv", CSV, {"split": "val", "val_fraction": 0.0}, "split 'val' of .* must have rows, got none of 4"),
        ("t.csv", "image,labels\na.png,\n", {}, "words must have at least one word, got none"),
        ("t.xlsx", CSV, {}, r"path must end in \.csv, \.tsv or \.jsonl, got t\.xlsx"),
    ],
)
def test_wrong_tables(name: str, text: str, options: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        table(write(tmp_path, name, text), **options)


def test_missing_table() -> None:
    with pytest.raises(FileNotFoundError, match=r"path must be an existing table, not found: none\.csv"):
        table("none.csv")


def test_ambiguity_ends_with_a_separator_or_a_column(tmp_path: Path) -> None:
    path = write(tmp_path, "t.csv", "image,labels,tags\na.png,dog|black;white,x\nb.png,cat,y\n")
    found = table(path, words_column="labels", separator="|")
    assert found.vocabulary.words == ("black;white", "cat", "dog")


# ------------------------------------------------------------------------------------------------------------- real


def test_real_coco_photos(real: Path) -> None:
    folder = real / "coco_photos"
    found = table(folder / "labels.csv", partition=f"{folder / 'zero_shot_partitions.json'}#48/17")
    assert len(found) == 412 and len(list((folder / "images").iterdir())) == 412
    assert len(found.vocabulary.seen) == 48 and len(found.vocabulary.unseen) == 17
    assert found.root == folder / "images" and found[0]["image"].mode == "RGB"
    giraffe = [line for line in (folder / "labels.csv").read_text().splitlines() if "giraffe" in line.split(",")[1]]
    assert "giraffe" not in found.vocabulary or found.targets[:, found.vocabulary.index("giraffe")].sum() == len(
        giraffe
    )


def test_vocabulary_is_what_a_tiny_model_needs(photos: Path, make_model: Callable) -> None:
    found = table(photos / "photos.csv", partition=photos / "partition.json")
    assert make_model(remember=False).encode_words(found.vocabulary).shape == (6, 16)


def test_blanks_between_words_are_not_taken_for_words_without_a_remark(tmp_path):
    path = write(tmp_path, "t.csv", "image,labels\na.png,dog cat bird\nb.png,cat\nc.png,red car\n")
    for name in "abc":
        Image.new("RGB", (4, 4)).save(tmp_path / f"{name}.png")
    with pytest.warns(UserWarning, match="no separator was found and most cells hold blanks"):
        assert "dog cat bird" in build_dataset("table", path=path).vocabulary
    assert build_dataset("table", path=path, separator=" ").vocabulary.words == ("bird", "car", "cat", "dog", "red")


def test_an_empty_separator_and_an_empty_word_list_are_refused(tmp_path):
    path = write(tmp_path, "t.csv", "image,labels\na.png,dog\n")
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"separator must not be empty, got ''"):
        build_dataset("table", path=path, separator="")
    (tmp_path / "words.txt").write_text("\n")
    with pytest.raises(ValueError, match=r"words must have at least one word, .*words.txt has none"):
        prepare("table", path, words=tmp_path / "words.txt")


# ------------------------------------------------------------------------------- what a file may not hold, with its row


def refused(path: Path, **options: Any) -> str:
    with pytest.raises(ValueError) as raised:
        table(path, **options)
    assert str(raised.value).startswith(f"{path} must be a usable table of images, found:\n  - ")
    return str(raised.value)


def test_unusable_words_name_the_file_and_the_row_all_at_once(tmp_path: Path) -> None:
    text = 'image,labels,split\na.png,dog|é,train\nb.png,"hot\ndog",train\nc.png,e\u0301|a\x1b[31mb,dev set\n'
    path = write(tmp_path, "t.csv", text)
    (tmp_path / "p.json").write_text(json.dumps({"seen": ["é"], "unseen": ["dog"]}), encoding="utf-8")
    for options in ({}, {"partition": tmp_path / "p.json"}):
        message = refused(path, **options)
        assert len(message.splitlines()) == 5
        assert r"t.csv, row 2: words must be of one line, " in message and r"got 'hot\ndog'; write it anew" in message
        assert "t.csv, row 3: words must be of one line, " in message and r"got 'a\x1b[31mb'; write it" in message
        assert ", row 3: words must be distinct, got 'é'" in message or ", row 1: words must be distinct" in message
        assert "column split of t.csv must say train, val or test, got ['dev set']" in message
    with pytest.warns(UserWarning, match=r"words outside the vocabulary are left out: .*'hot\\ndog'"):
        assert table(write(tmp_path, "u.csv", text.replace("dev set", "test")), words=["dog"]).vocabulary.words == (
            "dog",
        )


def test_of_many_unusable_words_some_are_named_and_the_others_counted(tmp_path: Path) -> None:
    path = write(tmp_path, "t.csv", "image,labels\na.png," + "|".join(f"w\x01{i}" for i in range(1005)) + "\n")
    message = refused(path)
    assert message.count("t.csv, row 1: words must be of one line") == 5
    assert "t.csv must have usable words, 1,000 more are not; correct them" in message


def test_a_file_of_words_is_named(tmp_path: Path) -> None:
    problems: list[str] = []
    (tmp_path / "words.txt").write_text("dog\na\x1b[31mb\n", encoding="utf-8")
    assert read_table(write(tmp_path, "t.csv", CSV), problems, words=tmp_path / "words.txt") is not None
    assert len(problems) == 1 and problems[0].startswith(f"{tmp_path / 'words.txt'}: words must be of one line")


@pytest.mark.parametrize("entry", [[["dog"]], ["dog", {"a": 1}], {"dog": 1}, ["dog", [[]]]])
def test_what_is_no_text_is_no_word(entry: Any, tmp_path: Path) -> None:
    rows = [{"image": "a.png", "labels": ["dog"]}, {"image": "b.png", "labels": entry}]
    path = write(tmp_path, "t.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    assert "t.jsonl must have texts or a list of texts as words, got " in refused(path)
    assert " in row 2 and others in 0 more rows; write each word as a text" in refused(path)


def test_what_is_no_text_in_parquet_is_no_word(tmp_path: Path) -> None:
    for cells, got in (([["dog"], ["cat"]], None), ([[["dog"]], [["cat"]]], "['dog']"), ([b"dog", b"cat"], "b'dog'")):
        pq.write_table(pa.table({"image": ["a.png", "b.png"], "labels": cells}), write(tmp_path, "t.parquet", ""))
        if got is None:
            assert table(tmp_path / "t.parquet").vocabulary.words == ("cat", "dog")
        else:
            assert f"got {got} in row 1 and others in 1 more rows" in refused(tmp_path / "t.parquet")


def test_numbers_are_words(tmp_path: Path) -> None:
    path = write(tmp_path, "t.jsonl", '{"image": "a.png", "labels": [7, "dog"]}\n{"image": "b.png", "labels": 8}\n')
    assert table(path).vocabulary.words == ("7", "8", "dog")
    with pytest.raises(
        ValueError, match=r"the table must have texts or a list of texts as words, got \['a'\] in row 1"
    ):
        split_words(pd.Series([[["a"]]], dtype=object), "|")


@pytest.mark.parametrize("first", ["", "b.png,cat\n"])
@pytest.mark.parametrize("separator", [",", "\t"])
def test_a_row_with_more_fields_than_columns_is_refused_at_once(first: str, separator: str, tmp_path: Path) -> None:
    text = f"image,labels\n{first}a.png,dog,{',' * 100_000}\n".replace(",", separator)
    path = write(tmp_path, "t.csv" if separator == "," else "t.tsv", text)
    start = time.process_time()
    message = refused(path)
    assert time.process_time() - start < 5  # it took minutes
    assert f"Expected 2 fields in line {3 if first else 2}, saw 100003 (quote the words of a row or join" in message


def test_more_columns_than_anybody_has_are_refused_at_once(tmp_path: Path) -> None:
    start = time.process_time()
    message = refused(write(tmp_path, "t.csv", f"image,labels{',' * 100_000}\na.png,dog\n"))
    assert "it has 100,002 columns, of 10,000 at most" in message and time.process_time() - start < 5


@pytest.mark.parametrize(
    "text",
    ["\ufeffimage,labels\na.png,dog\n", '\n  \n"image","labels"\n\na.png,dog', "image,labels,,\r\na.png,dog\r\n"],
)
def test_marks_blank_lines_and_columns_without_a_name_are_nobodys_harm(text: str, tmp_path: Path) -> None:
    found = table(write(tmp_path, "t.csv", text))
    assert found.vocabulary.words == ("dog",) and ids_of(found) == ["a.png"]


def test_a_column_that_stands_twice_is_refused(tmp_path: Path) -> None:
    for name, separator in (("t.csv", ","), ("t.tsv", "\t")):
        text = "image,image,labels\na.png,b.png,dog\n".replace(",", separator)
        message = refused(write(tmp_path, name, text), image_column="image")
        assert f"image_column must be one column of {name}, got 'image', which stands twice; rename one" in message
        assert "has 2 columns of a usual name among" in refused(tmp_path / name)


def test_columns_that_nobody_reads_may_stand_twice(tmp_path: Path) -> None:
    assert len(table(write(tmp_path, "t.csv", "image,labels,note,note, , \na.png,dog,1,2,3,4\n"))) == 1
    header = '"' + "," * 11_000 + '"'
    assert len(table(write(tmp_path, "t.csv", f"image,labels,{header}\na.png,dog,1\n"))) == 1


def test_numbers_are_words_as_they_are_written(tmp_path: Path) -> None:
    lines = ('{"image": "a.png", "labels": 7}', '{"image": "b.png", "labels": [8, "dog"]}', '{"image": "c.png"}')
    assert table(write(tmp_path, "t.jsonl", "\n".join(lines))).vocabulary.words == ("7", "8", "dog")


def test_two_spellings_of_a_partitions_word_are_named(tmp_path: Path) -> None:
    path = write(tmp_path, "t.csv", "image,labels\na.png,dog|caf\u00e9\n")
    partition = write(tmp_path, "p.json", '{"seen": ["dog", "caf\\u00e9"], "unseen": ["cafe\\u0301"]}')
    assert "t.csv: words must be" in refused(path, partition=partition)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"image": "a.png", "labels": ["dog"], "labels": ["cat"]}', "the key 'labels' stands twice"),
        ('{"image": "a.png", "labels": "dog", "of": {"a": 1, "a": 2}}', "the key 'a' stands twice"),
        ('{"image": "\\ud800.png", "labels": "dog"}', "it has half of a character"),
        ("[]", "it is no object"),
        ("5", "it is no object"),
        ('{"image": "a.png"', "Expecting ',' delimiter"),
        ('{"image": ' + "[" * 100_000, "maximum recursion depth"),
    ],
)
def test_a_line_that_is_no_object_is_refused(line: str, reason: str, tmp_path: Path) -> None:
    path = write(tmp_path, "t.jsonl", '{"image": "b.png", "labels": ["dog"]}\n\n' + line + "\n")
    assert f"t.jsonl must be a readable table, it is not: line 3: {reason}" in refused(path)


def test_unusable_words_of_a_hugging_face_dataset_name_it_and_the_column() -> None:
    datasets = pytest.importorskip("datasets")
    made = datasets.Dataset.from_dict({"image": ["a.png", "b.png"], "labels": ["dog", "hot\ndog"]})
    with pytest.raises(ValueError) as raised:
        build_dataset("hugging_face", path=made)
    start = "hugging_face must have usable words in column 'labels', found:\n  - words must be of one line, "
    assert str(raised.value).startswith(start) and r"got 'hot\ndog'; write it anew" in str(raised.value)
