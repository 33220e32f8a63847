"""Table: a person's own photos."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from zsmld.datasets.table import Table

ROWS = [("a.png", ["dog", "red car"]), ("b.png", ["cat"]), ("c.png", []), ("d.png", ["cat", "dog"])]
CSV = "image,labels\na.png,dog|red car\nb.png,cat\nc.png,\nd.png,cat|dog\n"


def write(folder: Path, name: str, text: str) -> Path:
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


def words_of(table: Table) -> list[set[str]]:
    return [{table.vocabulary.words[j] for j in row.indices} for row in table.targets]


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
    table = Table(write(tmp_path, name, FORMS[name]))
    assert table.vocabulary.words == ("cat", "dog", "red car") and table.vocabulary.unseen == ()
    assert table.ids == [image for image, _ in ROWS]
    assert words_of(table) == [set(words) for _, words in ROWS]
    assert table.targets.dtype == np.int8 and table.targets.data.tolist() == [1] * 5
    assert table.name == Path(name).stem and table.split == "all" and table.missing == 0
    assert not table.unknown_words


def test_items_hold_the_picture_the_targets_and_the_id(tmp_path: Path) -> None:
    Image.new("RGB", (5, 4), "red").save(tmp_path / "a.png")
    item = Table(write(tmp_path, "t.csv", CSV))[0]
    assert item["image"].size == (5, 4) and item["image"].getpixel((0, 0)) == (255, 0, 0)
    assert item["targets"].tolist() == [0, 1, 1] and item["targets"].dtype == np.int8 and item["id"] == "a.png"


def test_images_are_found_beside_the_table_in_images_or_in_root(tmp_path: Path) -> None:
    path = write(tmp_path, "t.csv", CSV)
    assert Table(path).root == tmp_path
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").touch()
    assert Table(path).root == tmp_path / "images"
    (tmp_path / "else").mkdir()
    assert Table(path, root=tmp_path / "else").root == tmp_path / "else"
    with pytest.raises(FileNotFoundError, match=r"root must be an existing folder of images, not found: .*none"):
        Table(path, root=tmp_path / "none")
    with pytest.raises(FileNotFoundError, match=r"image must be an existing file, not found: .*b\.png"):
        _ = Table(path)[1]


# ---------------------------------------------------------------------------------------------- words and partitions


def test_words_decide_order_and_the_others_are_counted(tmp_path: Path) -> None:
    path = write(tmp_path, "t.csv", CSV)
    with pytest.warns(UserWarning, match="words outside the vocabulary are left out: {'dog': 2}"):
        table = Table(path, words=["red car", "cat", "zebra"])
    assert table.vocabulary.words == ("red car", "cat", "zebra")
    assert table.unknown_words == {"dog": 2}
    assert words_of(table) == [{"red car"}, {"cat"}, set(), {"cat"}]


def test_partition_file(tmp_path: Path) -> None:
    path = write(tmp_path, "t.csv", CSV)
    inner = {"seen": ["dog"], "unseen": ["cat"]}
    plain = write(tmp_path, "p.json", json.dumps(inner))
    keyed = write(tmp_path, "many.json", json.dumps({"1/1": inner, "names": ["dog"]}))
    for partition in (plain, f"{keyed}#1/1"):
        table = Table(path, partition=partition)
        assert table.vocabulary.seen == ("dog",) and table.vocabulary.unseen == ("cat",)
        assert table.vocabulary.words == ("dog", "cat") and table.unknown_words == {"red car": 1}
    with pytest.raises(ValueError, match=r"partition must name a key of .*many\.json, got '2/2'; it has \['1/1', 'na"):
        Table(path, partition=f"{keyed}#2/2")
    with pytest.raises(ValueError, match=r"'seen' and 'unseen', got .* with \['1/1', 'names'\]; write FILE#KEY"):
        Table(path, partition=keyed)
    with pytest.raises(ValueError, match=r"'seen' and 'unseen', got .* with list"):
        Table(path, partition=f"{keyed}#names")
    with pytest.raises(FileNotFoundError, match=r"partition must be an existing JSON file, not found: none\.json"):
        Table(path, partition="none.json")
    overlapping = write(tmp_path, "o.json", json.dumps({"seen": ["dog"], "unseen": ["dog"]}))
    with pytest.raises(ValueError, match=r"must be distinct, got \['dog'\]"):
        Table(path, partition=overlapping)


def test_templates_reach_the_vocabulary(tmp_path: Path) -> None:
    table = Table(write(tmp_path, "t.csv", CSV), templates=("{} outdoors",))
    assert table.vocabulary.prompts("dog") == ("dog outdoors",)


@pytest.mark.parametrize("second", ['{"image": "b.png"}', '{"image": "b.png", "labels": null}'])
def test_jsonl_row_without_words_has_none(second: str, tmp_path: Path) -> None:
    table = Table(write(tmp_path, "t.jsonl", '{"image": "a.png", "labels": ["dog"]}\n' + second + "\n"))
    assert table.vocabulary.words == ("dog",) and words_of(table) == [{"dog"}, set()]


def test_unquoted_commas_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path, "t.csv", "image,labels\na.png,dog,cat\nb.png,zebra,bird\n")
    with pytest.raises(ValueError, match=r"t\.csv"):
        Table(path)


# ------------------------------------------------------------------------------------------------------------ splits


@given(st.integers(4, 60), st.floats(0, 0.45), st.floats(0, 0.45), st.integers(0, 3))
def test_splits_are_disjoint_cover_everything_and_repeat(
    tmp_path_factory: pytest.TempPathFactory, num_rows: int, val_fraction: float, test_fraction: float, seed: int
) -> None:
    text = "image,labels\n" + "".join(f"{i}.png,dog\n" for i in range(num_rows))
    path = write(tmp_path_factory.mktemp("table"), "t.csv", text)
    options = {"val_fraction": val_fraction, "test_fraction": test_fraction, "seed": seed}

    def ids(split: str) -> list[str]:
        try:
            return Table(path, split=split, **options).ids
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
    tables = [Table(photos / "photos.csv", split=split) for split in ("train", "val", "test", "all")]
    assert len({table.vocabulary.digest() for table in tables}) == 1
    assert [len(table) for table in tables] == [17, 2, 5, 24]
    assert Table(photos / "photos.csv", split="test", seed=1).ids != tables[2].ids


def test_split_column_decides(tmp_path: Path) -> None:
    text = "image,labels,split\na.png,dog,test\nb.png,cat,train\nc.png,dog,train\nd.png,cat,val\n"
    path = write(tmp_path, "t.csv", text)
    found = {split: Table(path, split=split).ids for split in ("train", "val", "test", "all")}
    assert found["train"] == ["b.png", "c.png"] and found["val"] == ["d.png"] and found["test"] == ["a.png"]
    assert len(found["all"]) == 4


# ------------------------------------------------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("name", "text", "options", "message"),
    [
        ("t.csv", "image,labels\na.png,dog|cat\nb.png,x;y\n", {}, r"separator must be given .* any of \['\|', ';'\]"),
        ("t.csv", "image,labels\na.png,dog\na.png,cat\n", {}, r"name each image once, got 1 repeated rows .*'a\.png'"),
        ("t.csv", "image,labels\n", {}, "must have at least one row, got none"),
        ("t.csv", "picture,labels\na,b\n", {}, r"image_column must be named, t\.csv has 0 columns .*\['picture'"),
        ("t.csv", "image,path,labels\na,b,c\n", {}, "image_column must be named, .* has 2 columns"),
        ("t.csv", "image,words,tags\na,b,c\n", {}, "words_column must be named, .* has 2 columns"),
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
        Table(write(tmp_path, name, text), **options)


def test_missing_table() -> None:
    with pytest.raises(FileNotFoundError, match=r"path must be an existing table, not found: none\.csv"):
        Table("none.csv")


def test_ambiguity_ends_with_a_separator_or_a_column(tmp_path: Path) -> None:
    path = write(tmp_path, "t.csv", "image,labels,tags\na.png,dog|black;white,x\nb.png,cat,y\n")
    table = Table(path, words_column="labels", separator="|")
    assert table.vocabulary.words == ("black;white", "cat", "dog")


# ------------------------------------------------------------------------------------------------------------- real


def test_real_coco_photos(real: Path) -> None:
    folder = real / "coco_photos"
    table = Table(folder / "labels.csv", partition=f"{folder / 'zero_shot_partitions.json'}#48/17")
    assert len(table) == 412 and len(list((folder / "images").iterdir())) == 412
    assert len(table.vocabulary.seen) == 48 and len(table.vocabulary.unseen) == 17
    assert table.root == folder / "images" and table[0]["image"].mode == "RGB"
    giraffe = [line for line in (folder / "labels.csv").read_text().splitlines() if "giraffe" in line.split(",")[1]]
    assert "giraffe" not in table.vocabulary or table.targets[:, table.vocabulary.index("giraffe")].sum() == len(
        giraffe
    )


def test_vocabulary_is_what_a_tiny_model_needs(photos: Path, make_model: Callable) -> None:
    table = Table(photos / "photos.csv", partition=photos / "partition.json")
    assert make_model(remember=False).encode_words(table.vocabulary).shape == (6, 16)
