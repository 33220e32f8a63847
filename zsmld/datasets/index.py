"""The one shape that every download takes once it is read: rows, words, sparse targets, partitions and a manifest.

A reader (`nus_wide`, `coco`, …) turns official files into an `Index`; `Index.save` writes it as Parquet and JSON;
`Index.dataset` takes a split and a partition of it, by policies that are counted and kept in the manifest.
"""

import json
import os
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from scipy.sparse import csr_matrix

from zsmld.datasets.partition import read_partition
from zsmld.datasets.rows import (
    VALUES,
    apply_policies,
    check_split,
    content_digest,
    ids_digest,
    on_disk,
    refuse,
    repeated_ids,
    select_columns,
    share_of_training,
    shown,
    to_label_lists,
)
from zsmld.datasets.stored_index import read_manifest, read_rows
from zsmld.images import load_image
from zsmld.protocols import Protocol
from zsmld.vocabulary import DEFAULT_TEMPLATES, Vocabulary, check_words, read_descriptions
from zsmld.writing import to_the_end, written_whole

Split = Literal["train", "val", "test", "all"]
MissingImages = Literal["error", "drop"]
Partition = dict[str, list[str]]

_FORMAT = 1
_ROWS, _MANIFEST, _MISSING = "rows.parquet", "manifest.json", "missing_images.txt"


class IndexedDataset:
    """Images on disk with their words, of one split and one partition. Made by `Index.dataset`.

    Attributes:
        name, split: what a report calls it.
        vocabulary: N words with their partition.
        targets: (M,N) CSR of int8; `missing` is what an entry means that it does not store, 0 absent or −1 unknown.
        ids: M image ids, an Arrow array: `str(ids[i])`.
        paths: M image paths relative to `root`, likewise.
        splits: the splits that its download has, or that `val_fraction` makes.
        manifest: what it was read from, with which policies, and how many images each of them took away.
    """

    def __init__(
        self,
        index: "Index",
        rows: np.ndarray,
        split: str,
        vocabulary: Vocabulary,
        targets: csr_matrix,
        manifest: dict[str, Any],
    ) -> None:
        self.name, self.split, self.root, self.missing = index.name, split, index.root, index.missing
        self.vocabulary, self.targets, self.manifest = vocabulary, targets, manifest
        self.splits = (*index.split_names, *(["val"] if manifest["policies"]["val_fraction"] else []))
        self.ids, self.paths = index.ids.take(pa.array(rows)), index.paths.take(pa.array(rows))

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """{"image": PIL RGB, "targets": (N,) int8, "id": str}; an unreadable image is an error that names it."""
        index = int(index)
        if not -len(self) <= index < len(self):
            raise IndexError(f"index must be below the {len(self)} images, got {index}")
        index %= len(self)  # as a list has it: −1 is the last image
        image_id, path = self.ids[index].as_py(), self.paths[index].as_py()
        targets = np.full(len(self.vocabulary), self.missing, np.int8)
        start, end = self.targets.indptr[index], self.targets.indptr[index + 1]
        targets[self.targets.indices[start:end]] = self.targets.data[start:end]
        return {"image": load_image(self.root / path), "targets": targets, "id": image_id}

    def __repr__(self) -> str:
        return (
            f"IndexedDataset({self.name!r}, split={self.split!r}, num_images={len(self)}, "
            f"seen={len(self.vocabulary.seen)}, unseen={len(self.vocabulary.unseen)})"
        )


@dataclass
class Index:
    """A whole download: every split, every word, and the partitions that are known for it.

    Attributes:
        name: of the dataset.
        root: folder that `paths` are relative to.
        words: N words, in the order of the columns.
        partitions: name -> {"seen": […], "unseen": […]}; the first is the default.
        ids: M distinct image ids, Arrow strings.
        paths: M image paths relative to `root`, with forward slashes.
        splits: (M,) array of str, "train", "val" or "test".
        targets: (M,N) CSR of int8: 1 present, 0 absent, −1 unknown.
        missing: what an entry means that `targets` does not store, 0 or −1.
        manifest: policies it was read with, and counts; `save` adds versions and hashes.
    """

    name: str
    root: Path
    words: tuple[str, ...]
    partitions: dict[str, Partition]
    ids: pa.StringArray
    paths: pa.StringArray
    splits: np.ndarray
    targets: csr_matrix
    missing: int = 0
    manifest: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.words = check_words(self.words)
        self._labels = {word: label for label, word in enumerate(self.words)}
        self.ids, self.paths = pa.array(self.ids, pa.string()), pa.array(self.paths, pa.string())
        lengths = len(self.ids), len(self.paths), len(self.splits), self.targets.shape[0]
        if len(set(lengths)) > 1 or self.targets.shape[1] != len(self.words):
            raise ValueError(
                f"ids, paths, splits and targets must have one row an image and one column a word, got {lengths} rows "
                f"and {self.targets.shape[1]} columns for {len(self.words)} words; read them from the same files"
            )

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def split_names(self) -> tuple[str, ...]:
        """The splits that have images, sorted."""
        return tuple(sorted(set(self.splits.tolist())))

    def to_text(self) -> str:
        """What a person must see of a download: counts, words, partitions, policies."""
        lines = [f"{self.name} in {self.root}", f"{'split':<8}{'images':>10}{'labels/image':>14}"]
        for split in self.split_names:
            rows = np.flatnonzero(self.splits == split)
            lines.append(f"{split:<8}{len(rows):>10,}{(self.targets[rows] == 1).sum() / len(rows):>14.4f}")
        sides = ", ".join(
            f"{name} ({len(p['seen']):,} seen, {len(p['unseen']):,} unseen)" for name, p in self.partitions.items()
        )
        lines += [f"words         {len(self.words):,}", f"partitions    {sides}"]
        for key, title in (("policies", "policies"), ("counts", "in the files"), ("fingerprints", "test list")):
            entries = [f"{name}: {shown(value)}" for name, value in self.manifest.get(key, {}).items()]
            lines += [f"{title if i == 0 else '':<14}{entry}" for i, entry in enumerate(entries)]
        for split, number in self.manifest.get("missing_by_split", {}).items():
            listed = number + int((self.splits == split).sum())
            if number:
                lines.append(f"missing       {number:,} of {listed:,} images of {split}; missing_images.txt lists them")
        return "\n".join(lines)

    # ------------------------------------------------------------------------------------------- one split of it

    def dataset(
        self,
        split: Split,
        partition: str | Path | None = None,
        templates: tuple[str, ...] | str = DEFAULT_TEMPLATES,
        keep_unlabelled: bool = True,
        exclude_unseen_images: bool = False,
        val_fraction: float | None = None,
        seed: int = 0,
        descriptions: str | Path | None = None,
    ) -> IndexedDataset:
        """One split under one partition of the words.

        Training images of a zero-shot partition are those with a seen word; that is part of every protocol.

        Args:
            split: "train", "val", "test", or "all" images.
            partition: name of a known one, or a JSON file {"seen": […], "unseen": […]} ("FILE#KEY" for one inside a
                larger file); default the first known one.
            templates: prompt sentences of the vocabulary, or the name of a set of them.
            keep_unlabelled: keep images with none of the partition's words, seen or unseen. To drop test images with
                none of the *ranked* words is the policy of that name of a `Protocol`.
            exclude_unseen_images: drop training images that show an unseen word.
            val_fraction: share of the training images that is "val", in [0,1), drawn with `seed`; default the
                download's own validation images, if it has any.
            seed: of that draw.
            descriptions: a JSON file of sentences about some of the words, see `zsmld.vocabulary.read_descriptions`.

        Returns:
            An `IndexedDataset`, whose manifest counts what each policy took away.

        Raises:
            FileNotFoundError: if a partition file does not exist.
            ValueError: for an unknown split or partition, or if no image is left.
        """
        name, seen, unseen = self._partition(partition)
        described = None if descriptions is None else read_descriptions(descriptions)
        vocabulary = Vocabulary([*seen, *unseen], seen=seen, templates=templates, descriptions=described)
        rows = self._rows_of_split(split, val_fraction, seed)
        targets = select_columns(self.targets[rows], np.array([self._labels[word] for word in vocabulary], np.int64))
        kept = np.ones(len(rows), bool)
        counts = apply_policies(kept, targets, vocabulary.is_seen, split, keep_unlabelled, exclude_unseen_images)
        if not kept.any():
            raise ValueError(
                f"split {split!r} of {self.name} must have images under its policies, got none: {counts}; loosen them"
            )
        policies = {
            "partition": name,
            "keep_unlabelled": keep_unlabelled,
            "exclude_unseen_images": exclude_unseen_images,
            "val_fraction": val_fraction,
        }
        manifest = {
            "options": self.manifest.get("options", {}),
            "counts": self.manifest.get("counts", {}),
            "policies": self.manifest.get("policies", {}) | policies,
            "images": counts,
            "missing_images": sum(self.manifest.get("missing_by_split", {}).values()),
        }
        return IndexedDataset(self, rows[kept], split, vocabulary, targets[np.flatnonzero(kept)], manifest)

    def partition_of(self, protocol: Protocol) -> str | None:
        """Name of the first partition that a protocol is about; None if there is none."""
        for name, sides in self.partitions.items():
            try:
                protocol.check(Vocabulary([*sides["seen"], *sides["unseen"]], seen=sides["seen"]))
            except ValueError:
                continue
            return name
        return None

    def _partition(self, partition: str | Path | None) -> tuple[str, tuple[str, ...], tuple[str, ...]]:
        name = next(iter(self.partitions)) if partition is None else str(partition)
        if name in self.partitions:
            seen, unseen = (tuple(self.partitions[name][side]) for side in ("seen", "unseen"))
        elif ".json" in name:
            seen, unseen = read_partition(name)
        else:
            raise ValueError(
                f"partition must be one of {list(self.partitions)} or a JSON file, got {name!r}; choose one"
            )
        strangers = [word for word in (*seen, *unseen) if word not in self._labels]
        if strangers:
            raise ValueError(
                f"partition {name} must name words of {self.name}, got {len(strangers)} others such as "
                f"{strangers[:5]}; correct their spelling"
            )
        return name, seen, unseen

    def _rows_of_split(self, split: str, val_fraction: float | None, seed: int) -> np.ndarray:
        check_split(split, val_fraction)
        if split == "all":
            return np.arange(len(self))
        rows = np.flatnonzero(self.splits == split)
        if val_fraction is not None and split in ("train", "val"):
            rows = np.flatnonzero(self.splits == "train")
            rows = rows[share_of_training(split, len(rows), val_fraction, seed)]
        if not len(rows):
            instead = (
                "; pass val_fraction to take some of the training images" if split == "val" else "; choose another"
            )
            raise ValueError(
                f"split {split!r} of {self.name} must have images, it has {list(self.split_names)}{instead}"
            )
        return rows

    # ------------------------------------------------------------------------------------------------ images on disk

    def without_missing_images(self, missing_images: MissingImages, problems: list[str]) -> "Index":
        """The index of the images that are on disk; the others are a problem, or counted and listed in the manifest."""
        problems += repeated_ids(self.ids)
        if shared := len(self) - pc.count_distinct(self.paths).as_py():  # NUS-WIDE has six such photos
            self.manifest["counts"] = self.manifest.get("counts", {}) | {"images_that_share_a_file": shared}
        found = on_disk(self.root, self.paths)
        missing = self.paths.filter(pa.array(~found)).to_pylist()
        by_split = {split: int((~found[self.splits == split]).sum()) for split in self.split_names}
        if missing and (missing_images == "error" or not found.any()):
            use_others = "" if not found.any() else ", or missing_images=drop to use the others"
            problems.append(
                f"{len(missing):,} of {len(self):,} images are not in {self.root}, for instance "
                f"{', '.join(missing[:3])}; complete them{use_others}"
            )
        if not missing:
            return self
        mask = pa.array(found)
        return replace(
            self,
            ids=self.ids.filter(mask),
            paths=self.paths.filter(mask),
            splits=self.splits[found],
            targets=self.targets[np.flatnonzero(found)],
            manifest=self.manifest | {"missing_images": missing, "missing_by_split": by_split},
        )

    def decode_sample(self, num_images: int, seed: int = 0) -> list[str]:
        """Decode some of the images, drawn at random; what is wrong with them, one message each."""
        rows = np.random.default_rng(seed).permutation(len(self))[:num_images]
        wrong = []
        for row in np.sort(rows):
            try:
                load_image(self.root / self.paths[int(row)].as_py())
            except (OSError, ValueError) as error:
                wrong.append(str(error))
        return wrong

    # ------------------------------------------------------------------------------------------------- save and open

    def save(self, folder: str | Path) -> Path:
        """Write `rows.parquet` (id, path, split, labels) and `manifest.json` (all else) to a folder; returns it.

        They appear together, once all are on the disk: whatever ends the writing, an index that was there stays.

        Raises:
            ValueError: if an image id stands twice.
            OSError: if they cannot be written, on a full disk for instance.
        """
        from zsmld.model import package_versions

        refuse(f"ids of {self.name} must be distinct", repeated_ids(self.ids))
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        columns: dict[str, Any] = {
            "id": self.ids,
            "path": self.paths,
            "split": pa.array(self.splits.tolist(), pa.string()).dictionary_encode(),
        }
        for name, value in VALUES.items():
            if value != self.missing:
                columns[name] = to_label_lists(self.targets, value)
        splits = {}
        for split in self.split_names:
            rows = np.flatnonzero(self.splits == split)
            present = int((self.targets[rows] == 1).sum())
            splits[split] = {
                "num_images": len(rows),
                "labels_per_image": present / len(rows),
                "image_ids_sha256": ids_digest(self.ids.take(pa.array(rows)).to_pylist()),
            }
        missing = self.manifest.get("missing_images", [])
        manifest: dict[str, Any] = {
            "format": _FORMAT,
            "dataset": self.name,
            "root": str(self.root.resolve()),
            "missing": self.missing,
            "num_words": len(self.words),
            "splits": splits,
            **{key: value for key, value in self.manifest.items() if key != "missing_images"},
            "sha256": "",  # of the rows, when they are written
            "versions": package_versions(),
            "partitions": self.partitions,
            "words": list(self.words),
        }
        with to_the_end(folder), ExitStack() as written:
            rows_path, missing_path, manifest_path = (
                written.enter_context(written_whole(folder / name)) for name in (_ROWS, _MISSING, _MANIFEST)
            )
            pq.write_table(pa.table(columns), rows_path, compression="zstd")
            missing_path.write_text("".join(f"{path}\n" for path in missing), encoding="utf-8")
            manifest["sha256"] = content_digest(rows_path, self.words, self.missing)
            manifest_path.write_text(json.dumps(manifest, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        return folder

    @classmethod
    def open(cls, folder: str | Path, root: str | Path | None = None) -> "Index":
        """Open what `save` wrote.

        Args:
            folder: with `rows.parquet` and `manifest.json`.
            root: of the images, if they moved since.

        Raises:
            FileNotFoundError: if the folder has no index, or the images' folder is gone.
            ValueError: if the files are damaged or do not belong together.
        """
        folder = Path(folder)
        absent = [name for name in (_ROWS, _MANIFEST) if not (folder / name).is_file()]
        if absent:
            raise FileNotFoundError(
                f"path must be a folder that `zsmld prepare` wrote, {folder} has no {' and no '.join(absent)}; run it"
            )
        manifest = read_manifest(folder / _MANIFEST, folder / _ROWS, _FORMAT)
        image_root = Path(manifest["root"] if root is None else root)
        if not os.path.isdir(image_root):  # Path.is_dir refuses long names
            raise FileNotFoundError(f"root must be the folder of the images, not found: {image_root}; pass root=")
        ids, paths, splits, targets = read_rows(folder / _ROWS, len(manifest["words"]))
        known = {"format", "dataset", "root", "missing", "num_words", "splits", "sha256", "versions"}
        return cls(
            name=manifest["dataset"],
            root=image_root,
            words=tuple(manifest["words"]),
            partitions=manifest["partitions"],
            ids=ids,
            paths=paths,
            splits=splits,
            targets=targets,
            missing=manifest["missing"],
            manifest={k: v for k, v in manifest.items() if k not in known | {"partitions", "words"}},
        )
