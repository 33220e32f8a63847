"""Downloads, tables, partitions and prepared indices: whatever is in their files, they are read or refused."""

import contextlib
import json
import pickle
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from fuzzing import fuzz, json_bytes, mutated_bytes, mutated_json, mutated_text, mutated_value
from PIL import Image

from zsmld.datasets import Index, build_dataset, prepare, read_partition
from zsmld.datasets.captions import captions
from zsmld.datasets.index import Index as _Index
from zsmld.datasets.rows import content_digest
from zsmld.vocabulary import read_descriptions

Files = dict[str, bytes]
Change = Callable[[random.Random, str, bytes], bytes]

IMAGES = ("a/1_10.jpg", "a/2_20.jpg", "b/3_30.jpg", "b/4_40.jpg")
ROWS = [("a/1_10.jpg", "dog|red car", "train"), ("a/2_20.jpg", "cat", "val"), ("b/3_30.jpg", "", "test")]
ROWS += [("b/4_40.jpg", "dog|zebra", "train")]
FRAME = pd.DataFrame(ROWS, columns=["image", "labels", "split"])


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The images, which no test changes."""
    folder = tmp_path_factory.mktemp("photos")
    for name in IMAGES:
        (folder / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (4, 4)).save(folder / name)
    return folder


def write(folder: Path, files: Files) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def one_changed(files: Files, change: Change) -> Callable[[random.Random, Path], None]:
    """Writes all, and one of them changed."""

    def mutate(rng: random.Random, folder: Path) -> None:
        name = rng.choice(sorted(files))
        write(folder, files | {name: change(rng, name, files[name])})

    return mutate


def by_ending(rng: random.Random, name: str, content: bytes) -> bytes:
    """As a file of its ending is best mutated."""
    if name.endswith(".json"):
        return json_bytes(rng, json.loads(content))
    if name.endswith(".jsonl"):
        lines = content.splitlines()
        lines[rng.randrange(len(lines))] = json_bytes(rng, json.loads(rng.choice(lines)))
        return b"\n".join(lines)
    if name.endswith((".parquet", ".pkl")):
        return mutated_bytes(rng, content)
    return mutated_text(rng, content, {".tsv": b"\t", ".xml": b"<"}.get(Path(name).suffix, b","))


def use(dataset: Any) -> None:
    """Read what a training would."""
    dataset.vocabulary.digest()
    assert dataset.targets.shape == (len(dataset), len(dataset.vocabulary))
    assert set(dataset.targets.data.tolist()) <= {-1, 0, 1}
    for position in range(min(2, len(dataset))):
        dataset[position]


# ------------------------------------------------------------------------------------------------------------- tables


def as_table(suffix: str, folder: Path) -> bytes:
    path = folder / f"photos{suffix}"
    if suffix == ".jsonl":
        FRAME.assign(labels=FRAME["labels"].str.split("|")).to_json(path, orient="records", lines=True)
    elif suffix == ".parquet":
        FRAME.to_parquet(path)
    else:
        FRAME.to_csv(path, sep="," if suffix == ".csv" else "\t", index=False)
    return path.read_bytes()


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_a_table(suffix: str, photos: Path, tmp_path: Path) -> None:
    name, content = f"photos{suffix}", as_table(suffix, tmp_path)
    fuzz(
        one_changed({name: content}, by_ending),
        lambda folder: use(build_dataset("table", path=folder / name, root=photos)),
        [name, "image_column", "words_column", "separator", "split"],
        examples=80,
    )


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_a_table_whose_columns_hold_anything(suffix: str, photos: Path) -> None:
    def change(rng: random.Random, folder: Path) -> None:
        columns: dict[str, Any] = {name: FRAME[name].tolist() for name in FRAME}
        column = rng.choice(list(columns))
        columns[column] = [mutated_value(rng, value) if rng.random() < 0.7 else value for value in columns[column]]
        try:
            if suffix == ".parquet":
                pd.DataFrame(columns).to_parquet(folder / "photos.parquet")
            else:
                rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
                text = "\n".join(json.dumps(row) for row in rows)
                (folder / "photos.jsonl").write_text(text)
        except Exception:  # Arrow has no column of such values
            as_bytes = as_table(suffix, folder)
            (folder / f"photos{suffix}").write_bytes(mutated_bytes(rng, as_bytes))

    fuzz(
        change,
        lambda folder: use(build_dataset("table", path=folder / f"photos{suffix}", root=photos)),
        [f"photos{suffix}", "image", "separator", "split"],
        examples=80,
    )


def test_a_partition_and_descriptions() -> None:
    partition = {"seen": ["dog", "cat"], "unseen": ["zebra"]}
    described = {"dog": ["a pet", "it barks"], "zebra": ["striped"]}
    content = json.dumps({"48_17": partition, "seen": ["dog"], "unseen": []}).encode()
    files = {"p.json": content, "d.json": json.dumps(described).encode()}

    def read(folder: Path) -> None:
        read_partition(folder / "p.json")
        read_partition(f"{folder / 'p.json'}#48_17")
        read_descriptions(folder / "d.json")

    fuzz(one_changed(files, by_ending), read, ["p.json", "d.json", "partition", "seen", "descriptions"], examples=150)


# ---------------------------------------------------------------------------------------------------------- downloads


def prepared(name: str, photos: Path | None = None, **options: Any) -> Callable[[Path], None]:
    """Reads a download, writes the index, opens it and looks into it."""

    def call(folder: Path) -> None:
        given = options if photos is None else options | {"images": photos}
        index = prepare(name, folder, folder / "index", missing_images="drop", num_decoded=2, **given)
        again = Index.open(folder / "index")
        assert again.words == tuple(index.words) and (again.targets != index.targets).nnz == 0
        use(again.dataset("all"))

    return call


def test_lists_of_images(photos: Path) -> None:
    files = {
        "train_list.txt": b"a/1_10.jpg\t1,0,1\na/2_20.jpg\t0,1,-1\n",
        "val_list.txt": b"b/3_30.jpg\t0,0,0\nb/4_40.jpg\t1,1,1\n",
        "label_list.txt": b"0 dog\n1 cat\n2 red car\n",
    }
    fuzz(one_changed(files, by_ending), prepared("image_list", photos), [*files, "words must"], examples=100)


def nus_wide_files() -> Files:
    names = "".join(f"{name.replace('/', chr(92))}\r\n" for name in IMAGES).encode()
    files = {
        "TagList1k.txt": b"nature\r\nsky\r\ndog\r\n",
        "AllTags1k.txt": b"1\t0\t1\t\r\n0\t1\t0\t\r\n1\t1\t0\t\r\n0\t0\t1\t\r\n",
        "Concepts81.txt": b"dog\r\nmap\r\n",
        "Imagelist.txt": names,
        "TrainImagelist.txt": names[: len(names) // 2],
        "TestImagelist.txt": names[len(names) // 2 :],
    }
    for concept in ("dog", "map"):
        files[f"AllLabels/Labels_{concept}.txt"] = b"1\r\n0\r\n1\r\n0\r\n"
        files[f"TrainTestLabels/Labels_{concept}_Train.txt"] = b"1\r\n0\r\n"
        files[f"TrainTestLabels/Labels_{concept}_Test.txt"] = b"1\r\n0\r\n"
    return files


def test_nus_wide(photos: Path) -> None:
    fuzz(
        one_changed(nus_wide_files(), by_ending),
        prepared("nus_wide", photos, check_counts=False),
        ["must be a complete download of nus_wide"],
        examples=100,
    )


def test_nus_wide_as_biam_chooses_it(photos: Path) -> None:
    listed = {"img_names": [name.replace("/", "_") for name in IMAGES]}
    pickles = {
        "img_names.pkl": pickle.dumps({"img_names": listed["img_names"][:2]}, protocol=2),
        "test_img_names.pkl": pickle.dumps({"img_names": listed["img_names"][2:]}, protocol=4),
    }

    def change(rng: random.Random, folder: Path) -> None:
        write(folder, nus_wide_files())
        one_changed(pickles, by_ending)(rng, folder)

    read = prepared("nus_wide", photos, check_counts=False, layout="biam")
    fuzz(change, read, ["must be a complete download of nus_wide"], examples=120)


def test_nus_wide_as_ml_decoder_passes_it_on(photos: Path) -> None:
    rows = "".join(f"{name},\"['dog', 'sky']\",{'train' if i < 2 else 'val'}\n" for i, name in enumerate(IMAGES))
    classes = {"test class": ["dog"], "train class": ["sky", "map"]}
    files = {"data.csv": f"filepath,label,split_name\n{rows}".encode()}
    files["benchmark_81_v0.json"] = json.dumps(classes).encode()
    fuzz(
        one_changed(files, by_ending),
        prepared("nus_wide", photos, check_counts=False),
        ["must be a complete download of nus_wide"],
        examples=100,
    )


def coco_files(photos: Path) -> Files:
    files = {}
    for split, part in (("train", IMAGES[:2]), ("val", IMAGES[2:])):
        at = 10 if split == "train" else 20
        files[f"annotations/instances_{split}2014.json"] = json.dumps({
            "images": [{"id": at + i, "file_name": name} for i, name in enumerate(part)],
            "categories": [{"id": 3, "name": "dog"}, {"id": 5, "name": "cat"}],
            "annotations": [
                {"id": i, "image_id": at + i, "category_id": 3 + 2 * i, "area": 40.5, "iscrowd": i, "segmentation": []}
                for i in range(2)
            ],
        }).encode()  # fmt: skip
    return files | {name: (photos / name).read_bytes() for name in IMAGES}


def test_coco(photos: Path) -> None:
    files = coco_files(photos)

    def change(rng: random.Random, folder: Path) -> None:
        write(folder, files)
        one_changed({name: files[name] for name in files if name.endswith(".json")}, by_ending)(rng, folder)

    fuzz(change, prepared("coco", check_counts=False), ["must be a complete download of coco"], examples=120)


def test_open_images(photos: Path) -> None:
    image = (photos / IMAGES[0]).read_bytes()
    rows = "0a,verification,/m/01,1\n0a,verification,/m/02,0\n{0}b,verification,/m/02,1\n"
    files = {
        f"{split}-annotations-human-imagelabels.csv": (
            "ImageID,Source,LabelName,Confidence\n" + rows.format(i).replace("0a", f"{i}a")
        ).encode()
        for i, split in enumerate(("train", "validation", "test"))
    }
    files["class-descriptions.csv"] = b'/m/01,Dog\n/m/02,"Lemon, lime"\n/m/03,Cat\n'
    pictures = {f"{split}/{i}{x}.jpg": image for i, split in enumerate(("train", "validation", "test")) for x in "ab"}
    lists: Files = {
        "seen_7186.txt": b"/m/01\n",
        "top_400_unseen.csv": b"0\n1\n",
        "unseen_labels.pkl": pickle.dumps(np.array(["/m/02", "/m/03"])),
    }

    def change(rng: random.Random, folder: Path) -> None:
        write(folder, pictures)
        one_changed(files | (lists if rng.random() < 0.3 else {}), by_ending)(rng, folder)

    fuzz(
        change,
        prepared("open_images", check_counts=False),
        ["must be a complete download of open_images"],
        examples=100,
    )


def test_voc(photos: Path) -> None:
    image = (photos / IMAGES[0]).read_bytes()
    files = {"VOC2007/ImageSets/Main/trainval.txt": b"000001\n000002\n", "VOC2007/ImageSets/Main/test.txt": b"000003\n"}
    files["VOC2007/ImageSets/Main/dog_trainval.txt"] = b"000001  1\n000002 -1\n"
    pictures = {}
    for i, kind in enumerate(("dog", "cat", "person"), 1):
        files[f"VOC2007/Annotations/00000{i}.xml"] = (
            f"<annotation><filename>00000{i}.jpg</filename><object><name>{kind}</name><difficult>0</difficult>"
            f"<part><name>head</name></part></object></annotation>"
        ).encode()
        pictures[f"VOC2007/JPEGImages/00000{i}.jpg"] = image

    def change(rng: random.Random, folder: Path) -> None:
        write(folder, pictures)
        one_changed(files, by_ending)(rng, folder)

    fuzz(change, prepared("voc", check_counts=False), ["must be a complete download of voc"], examples=120)


def test_captions(tmp_path: Path) -> None:
    told = ["A dog in a red car.", "Two zebras run", "a cat sleeps", "dogs and cats"]
    files = {
        "c.txt": "\n".join(told).encode(),
        "c.csv": ("caption,labels\n" + "".join(f'"{text}",dog|cat\n' for text in told)).encode(),
        "c.jsonl": "\n".join(json.dumps({"caption": text, "labels": ["dog"]}) for text in told).encode(),
        "c.json": json.dumps({"annotations": [{"id": i, "caption": text} for i, text in enumerate(told)]}).encode(),
    }
    beside = {"synonyms.json": b'{"dog": ["puppy"]}', "words.txt": b"dog\ncat\nred car\n"}

    def change(rng: random.Random, folder: Path) -> None:
        chosen = rng.choice(sorted(files))
        one_changed({chosen: files[chosen]} | beside, by_ending)(rng, folder)

    def call(folder: Path) -> None:
        path = next(path for path in folder.iterdir() if path.stem == "c")
        given = {"words": folder / "words.txt", "synonyms": folder / "synonyms.json"}
        dataset = captions(path, val_fraction=0, **given)
        dataset[0], dataset.texts(0)

    fuzz(change, call, ["path", *files, "synonyms", "words"], examples=150)


# ---------------------------------------------------------------------------------------------------- prepared indices


@pytest.fixture(scope="module")
def index_files(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Files:
    folder = tmp_path_factory.mktemp("index")
    FRAME.to_csv(folder / "photos.csv", index=False)
    prepare("table", folder / "photos.csv", folder / "index", images=photos)
    return {path.name: path.read_bytes() for path in (folder / "index").iterdir()}


def open_index(folder: Path) -> None:
    index = _Index.open(folder)
    index.to_text()
    for split in index.split_names:
        use(index.dataset(split))


def test_a_prepared_index(index_files: Files) -> None:
    fuzz(
        one_changed({name: index_files[name] for name in ("rows.parquet", "manifest.json")}, by_ending),
        open_index,
        ["rows.parquet", "manifest.json", "root", "words", "partition"],
        examples=150,
    )


def test_a_prepared_index_whose_hash_was_made_to_fit(index_files: Files) -> None:
    """As somebody writes it who knows the format: the hash keeps out damage, not intent."""

    def change(rng: random.Random, folder: Path) -> None:
        write(folder, index_files)
        manifest = json.loads(index_files["manifest.json"])
        if rng.random() < 0.6:
            table = pq.read_table(folder / "rows.parquet").to_pydict()
            column = rng.choice(list(table))
            kind = rng.randrange(3)
            if kind == 0:
                del table[column]
            elif kind == 1:
                table[column] = [mutated_value(rng, value) for value in table[column]]
            else:
                table[column] = rng.choice([[[0, 99]], [[-1]], [None], ["train"], [0], [[None]], [1.5]]) * len(FRAME)
            try:
                pd.DataFrame(table).to_parquet(folder / "rows.parquet")
            except Exception:
                return
        else:
            manifest = mutated_json(rng, manifest)
        with contextlib.suppress(KeyError, TypeError):
            manifest["sha256"] = content_digest(folder / "rows.parquet", manifest["words"], manifest["missing"])
        (folder / "manifest.json").write_bytes(json.dumps(manifest).encode())

    fuzz(change, open_index, ["rows.parquet", "manifest.json", "root", "words", "partition"], examples=200)
