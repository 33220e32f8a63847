"""What `zsmld predict` reads beside images and models: tar shards, synonyms and thresholds."""

import argparse
import io
import random
import tarfile
from pathlib import Path
from typing import Any

import pytest
from fuzzing import fuzz, json_bytes, mutated_bytes
from PIL import Image

from zsmld import Vocabulary
from zsmld.cli.predict import _mapping, _thresholds
from zsmld.images import load_image
from zsmld.predictor.archives import list_collection
from zsmld.predictor.prediction import check_threshold
from zsmld.predictor.words import check_synonyms

WORDS = ("sofa", "dog", "red car")
BLOCK = 512


def shard(kind: int) -> bytes:
    """Three images, links to one of them, and a name too long for a header, in one of tarfile's formats."""
    buffer, picture = io.BytesIO(), io.BytesIO()
    Image.new("RGB", (9, 7), "red").save(picture, "PNG")
    with tarfile.open(fileobj=buffer, mode="w", format=kind) as archive:
        for name in ("a.png", "b/c.png", f"{'long/' * 60}d.png" if kind != tarfile.USTAR_FORMAT else "d.png"):
            member = tarfile.TarInfo(name)
            member.size = len(picture.getvalue())
            archive.addfile(member, io.BytesIO(picture.getvalue()))
        for name, link in (("hard.png", tarfile.LNKTYPE), ("soft.png", tarfile.SYMTYPE)):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = link, "a.png"
            archive.addfile(member)
    return buffer.getvalue()


def with_checksums(content: bytearray) -> bytes:
    """Every block that says of itself that it is a header, with a checksum that fits."""
    for start in range(0, len(content) - BLOCK + 1, BLOCK):
        block = content[start : start + BLOCK]
        if block[257:262] == b"ustar":
            total = sum(block) - sum(block[148:156]) + 8 * 32
            content[start + 148 : start + 156] = b"%06o\0 " % total
    return bytes(content)


def test_tar_shards() -> None:
    """Whatever it is, a shard is listed to its damage, and each image of it is read or is named as unreadable."""
    shards = [shard(kind) for kind in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT)]

    def change(rng: random.Random, folder: Path) -> None:
        content = rng.choice(shards)
        if rng.random() < 0.6:  # in a header, which then still is one
            found = bytearray(content)
            headers = [n for n in range(0, len(found), BLOCK) if found[n + 257 : n + 262] == b"ustar"]
            for _ in range(rng.randint(1, 4)):
                header = rng.choice(headers)
                start = header + rng.choice([0, 100, 124, 136, 156, 157, 345, BLOCK, rng.randrange(2 * BLOCK)])
                span = rng.choice([1, 3, 8])
                fields = [
                    rng.randbytes(span),
                    b"7" * span,
                    b"-" * span,
                    b"\x80" + b"\xff" * (span - 1),
                    b"gxLKSD"[:span],
                ]
                found[start : start + span] = rng.choice(fields)
            content = with_checksums(found)
        else:
            content = mutated_bytes(rng, content)
        (folder / "s.tar").write_bytes(content)

    def call(folder: Path) -> None:
        errors = []
        for image in list_collection(folder):
            try:
                load_image(image.source())
            except (ValueError, OSError) as error:
                errors.append(error)
        if errors:
            raise ValueError(f"an image must be readable, s.tar: {errors[0]}")

    fuzz(change, call, ["s.tar"], examples=400)


@pytest.mark.parametrize("option", ["--synonyms", "--thresholds-file"])
def test_synonyms_and_thresholds(option: str) -> None:
    good: dict[str, Any] = {"sofa": ["couch", "settee"], "dog": ["puppy"]}
    if option == "--thresholds-file":
        good = {"sofa": 0.4, "dog": 0, "red car": 1}

    def change(rng: random.Random, folder: Path) -> None:
        (folder / "m.json").write_bytes(json_bytes(rng, good))

    def call(folder: Path) -> None:
        if option == "--synonyms":
            check_synonyms(_mapping(str(folder / "m.json"), option, list), WORDS)
        else:
            options = argparse.Namespace(thresholds_file=str(folder / "m.json"), threshold=None)
            check_threshold(*_thresholds(options), None, Vocabulary(WORDS), False)

    fuzz(change, call, ["m.json", "synonyms", "threshold"], examples=400)


def test_the_shards_are_read_as_they_are(tmp_path: Path) -> None:
    """Else the mutations would show nothing."""
    for kind in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT):
        content = shard(kind)
        assert with_checksums(bytearray(content)) == content
        (tmp_path / "s.tar").write_bytes(content)
        images = list(list_collection(tmp_path))
        assert len(images) == 5
        assert [load_image(image.source()).size for image in images[:4]] == [(9, 7)] * 4
