"""Images of every kind and none, through `zsmld predict`: each good one is scored, each bad one is named."""

import errno
import io
import json
import os
import random
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from faults import SOAK, Child, command, keep, watched
from PIL import Image, ImageFile

from zsmld import Predictor, ZeroShotClassifier
from zsmld.images import load_image
from zsmld.images import loading as images
from zsmld.predictor import loading

NUM_MUTATED = 500
LARGEST = 13_377  # pixels a side of the largest square that Pillow decodes


def picture() -> Image.Image:
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 7, 3), dtype=np.uint8))
    return coarse.resize((56, 48), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def good_files() -> dict[str, bytes]:
    """One of every kind that is decoded, by name."""
    image, turned = picture(), Image.Exif()
    turned[274] = 6  # a quarter turn
    grey = Image.fromarray(np.arange(48 * 56, dtype=np.uint16).reshape(48, 56) * 20)
    more = {"save_all": True, "append_images": [image.rotate(90), image.rotate(180)]}
    return {
        "plain.jpg": encoded(image, "JPEG"),
        "progressive.jpg": encoded(image, "JPEG", progressive=True),
        "cmyk.jpg": encoded(image.convert("CMYK"), "JPEG"),
        "turned.jpg": encoded(image, "JPEG", exif=turned),
        "several.jpg": encoded(image, "MPO", **more),
        "plain.png": encoded(image, "PNG"),
        "turned.png": encoded(image, "PNG", exif=turned),
        "transparent.png": encoded(image.convert("RGBA"), "PNG"),
        "palette.png": encoded(image.convert("P"), "PNG", transparency=3),
        "sixteen_bit.png": encoded(grey, "PNG"),
        "sixteen_bit.tif": encoded(grey, "TIFF"),
        "one_bit.png": encoded(image.convert("1"), "PNG"),
        "animated.png": encoded(image, "PNG", **more),
        "animated.gif": encoded(image, "GIF", **more),
        "animated.webp": encoded(image, "WEBP", **more),
        "plain.webp": encoded(image, "WEBP", exif=turned),
        "plain.tif": encoded(image, "TIFF"),
        "lzw.tif": encoded(image, "TIFF", compression="tiff_lzw"),
        "jpeg.tif": encoded(image, "TIFF", compression="jpeg"),
        "plain.bmp": encoded(image, "BMP"),
        "tiny.png": encoded(Image.new("RGB", (1, 1), "red"), "PNG"),
        "tiny.jpg": encoded(Image.new("L", (1, 1)), "JPEG"),
        "long.png": encoded(Image.new("RGB", (20_000, 1), "blue"), "PNG"),
        "other_ending.jpg": encoded(image, "PNG"),
    }


def bad_files() -> dict[str, bytes]:
    """What is no image, or none that may be decoded."""
    image = picture()
    jpg, png = encoded(image, "JPEG"), encoded(image, "PNG")
    square = encoded(Image.new("1", (20_000, 20_000)), "PNG")  # a few KiB
    claims = bytearray(encoded(image, "GIF"))
    claims[6:10] = b"\xff\xff\xff\xff"  # 65,535 x 65,535
    return {
        "text.jpg": b"this is no image\n" * 20,
        "empty.jpg": b"",
        "truncated.jpg": jpg[: len(jpg) // 2],
        "truncated.png": png[: len(png) // 2],
        "header.png": png[:33],
        "zeros.png": bytes(1000),
        "square_of_20000.png": square,
        "claims_65535.gif": bytes(claims),
        "program.jpg": encoded(image, "EPS"),
        "page.png": b"<svg xmlns='http://www.w3.org/2000/svg' width='10' height='10'/>",
    }


def predict(
    folder: Path, model_folder: Path, *more: str, images: tuple[str, ...] = ("images",)
) -> tuple[list[dict[str, Any]], float]:
    """The records of `zsmld predict IMAGES`, and the most memory its processes had together, in MiB."""
    options = ("--model", str(model_folder), "--device", "cpu", "--batch-size", "16", "--top-k", "6")
    child = Child(command("predict", *images, *options, "--output", "tags.jsonl", *more), folder)
    samples, status = watched(child)
    most = max(rss for _, rss, _ in samples)
    assert status == 1 and "Traceback" not in child.said.read_text(), child.said.read_text()
    return [json.loads(line) for line in (folder / "tags.jsonl").read_text().splitlines()], most


@pytest.fixture
def alone(model_folder: Path) -> Callable[[Path], dict[str, float]]:
    """Scores of an image that is predicted alone."""
    predictor = Predictor(ZeroShotClassifier.from_pretrained(model_folder), device="cpu", num_workers=0)

    def scores(path: Path) -> dict[str, float]:
        (found,) = predictor.predict(path, top_k=None)
        assert found.error is None, found.error
        return dict(zip(found.words, found.scores, strict=True))

    return scores


def check_records(records: list[dict[str, Any]], good: set[str], alone: Callable[[Path], dict[str, float]]) -> None:
    assert sorted(Path(r["path"]).name for r in records) == [Path(r["path"]).name for r in records]
    assert {Path(r["path"]).name for r in records if r["error"] is None} == good
    for record in records:
        if record["error"] is None:
            expected = alone(Path(record["path"]))
            found = dict(zip(record["words"], record["scores"], strict=True))
            assert found == pytest.approx(expected, abs=1e-5), record["path"]
        else:
            assert record["path"] in record["error"] and record["words"] == record["scores"] == []


def refusing_locked(opened: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """What opens an image, with the error of a file that may not be read for locked.png."""

    def open_others(source: Any) -> Any:
        if str(source).endswith("locked.png"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(source))
        return opened(source)

    return open_others


@pytest.mark.parametrize("num_workers", ["0", "2"])
def test_every_kind(
    num_workers: str, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, alone: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    good, bad = good_files(), bad_files()
    for name, content in (good | bad).items():
        (tmp_path / "images" / name).write_bytes(content)
    (tmp_path / "images" / "folder.png").mkdir()
    no_files = make_no_files(tmp_path / "images")
    locked = tmp_path / "images" / "locked.png"
    locked.write_bytes(good["plain.png"])
    locked.chmod(0)
    bad["locked.png"] = good["plain.png"]
    if os.access(locked, os.R_OK):  # root may read all files
        monkeypatch.setattr(images, "_opened", refusing_locked(images._opened))
    records, most = predict(tmp_path, model_folder, "--num-workers", num_workers)
    listed = {Path(record["path"]).name for record in records}
    assert listed == set(good) | set(bad) and not listed & set(no_files)
    check_records(records, set(good), alone)
    errors = {Path(r["path"]).name: r["error"] for r in records if r["error"]}
    assert "exceeds limit of 178956970 pixels" in errors["square_of_20000.png"]
    assert "PostScript is a program, and no program is run" in errors["program.jpg"]
    assert "its format is not known" in errors["text.jpg"]
    assert "Permission denied" in errors["locked.png"]
    before = psutil.Process().memory_info().rss / 2**20
    assert most < (1 + int(num_workers)) * (before + 300), "a bomb was decoded"
    upright = load_image(tmp_path / "images" / "turned.png")
    assert upright.size == (48, 56) and np.array_equal(upright, picture().transpose(Image.Transpose.ROTATE_270))


def make_no_files(folder: Path) -> list[str]:
    """What has the name of an image and no end, no content or no file, in the order of their names."""
    os.mkfifo(folder / "fifo.png")  # whoever opens it waits for ever
    for name, target in (("gone.png", "nowhere.png"), ("stdin.png", "/dev/stdin"), ("zero.png", "/dev/zero")):
        (folder / name).symlink_to(target)
    return ["fifo.png", "gone.png", "stdin.png", "zero.png"]


@pytest.mark.parametrize("num_workers", ["0", "2"])
def test_what_is_no_file_is_not_opened(
    num_workers: str, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, alone: Any
) -> None:
    """A folder is searched for files; what is named itself is named with its error."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    picture().save(tmp_path / "images" / "a.png")
    names = ["a.png", *make_no_files(tmp_path / "images")]
    images = tuple(f"images/{name}" for name in names)
    records, _ = predict(tmp_path, model_folder, "--num-workers", num_workers, images=images)
    assert [record["path"] for record in records] == list(images)
    check_records(records, {"a.png"}, alone)
    assert all("must be an existing file, not found" in record["error"] for record in records[1:])


def mutated(content: bytes, chance: random.Random) -> bytes:
    """Bytes flipped anywhere or in the header, cut off, left out or put in; or as it was."""
    bytes_ = bytearray(content)
    kind = chance.choice(["none", "flip", "flip", "flip", "header", "header", "cut", "leave out", "put in"])
    if kind == "flip":
        for _ in range(chance.choice([1, 3, 10, 40])):
            bytes_[chance.randrange(len(bytes_))] ^= 1 << chance.randrange(8)
    elif kind == "header":
        for _ in range(chance.choice([1, 2, 4])):
            bytes_[chance.randrange(min(len(bytes_), 120))] = chance.choice([0, 255, 127, chance.randrange(256)])
    elif kind == "cut":
        del bytes_[chance.randrange(len(bytes_)) :]
    elif kind == "leave out":
        start = chance.randrange(len(bytes_))
        del bytes_[start : start + chance.choice([1, 4, 50])]
    elif kind == "put in":
        start = chance.randrange(len(bytes_))
        bytes_[start:start] = chance.randbytes(chance.choice([1, 4, 50]))
    return bytes(bytes_)


def pillow_decodes(path: Path) -> bool:
    """The oracle: Pillow alone, by the path, with nothing of ours."""
    assert not ImageFile.LOAD_TRUNCATED_IMAGES
    try:
        with Image.open(path) as image:
            image.convert("RGB")
            return image.format != "EPS"
    except Exception:
        return False


def test_mutated_images(model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, alone: Any) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    chance, sources = random.Random(0), list(good_files().items())
    for number in range(NUM_MUTATED):
        name, content = sources[number % len(sources)]
        (tmp_path / "images" / f"{number:03d}_{name}").write_bytes(mutated(content, chance))
    good = {path.name for path in (tmp_path / "images").iterdir() if pillow_decodes(path)}
    assert NUM_MUTATED * 0.2 < len(good) < NUM_MUTATED * 0.8
    since = time.monotonic()
    records, most = predict(tmp_path, model_folder, "--num-workers", "1")
    seconds = time.monotonic() - since
    assert len(records) == NUM_MUTATED
    check_records(records, good, alone)
    figures = {"images": NUM_MUTATED, "good and scored": len(good), "bad and named": NUM_MUTATED - len(good)}
    keep("mutated images", figures | {"MiB at most, two processes": round(most), "seconds": round(seconds)})


@pytest.mark.skipif(not SOAK, reason="takes gigabytes")
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "I;16"])
def test_the_largest_image_that_is_decoded(mode: str, model_folder: Path, tmp_path: Path) -> None:
    """What one image may cost: Pillow's limit bounds it, and no copy more than needed is made."""
    (tmp_path / "images").mkdir()
    Image.new(mode, (LARGEST, LARGEST)).save(tmp_path / "images" / "largest.png", compress_level=1)
    (tmp_path / "images" / "text.png").write_text("no image")
    records, most = predict(tmp_path, model_folder, "--num-workers", "0")
    assert [record["error"] is None for record in records] == [True, False]
    assert most < 4096
    keep(f"largest image, {mode}", {"megapixels": round(LARGEST**2 / 1e6), "MiB at most": round(most)})


# ------------------------------------------------------------------------------------------------- workers that die


def test_a_worker_that_dies_costs_one_image(
    photos: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch, alone: Any
) -> None:
    """As the system kills what takes too much memory, whatever process it is in."""
    monkeypatch.chdir(photos)
    whole = loading.load_image

    def dying(source: Any) -> Image.Image:
        if str(source).endswith(("007.png", "008.png", "019.png")):
            os.kill(os.getpid(), signal.SIGKILL)
        return whole(source)

    monkeypatch.setattr(loading, "load_image", dying)
    records, _ = predict(photos, model_folder, "--num-workers", "2", "--batch-size", "4")
    monkeypatch.setattr(loading, "load_image", whole)
    bad = {"007.png", "008.png", "019.png"}
    check_records(records, {f"{number:03d}.png" for number in range(24)} - bad, alone)
    errors = [record["error"] for record in records if record["error"]]
    assert len(errors) == 3 and all("died, of its memory or a fault in the decoder; replace" in e for e in errors)


def test_workers_that_are_killed_from_outside_cost_an_image_at_most(
    photos: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch, alone: Any
) -> None:
    monkeypatch.chdir(photos)
    (photos / "images" / "010.png").write_bytes(b"broken")
    whole, chance, num_killed, num_lost = loading.load_image, random.Random(1), 0, 0

    def slow(source: Any) -> Image.Image:
        time.sleep(0.02)
        return whole(source)

    monkeypatch.setattr(loading, "load_image", slow)
    while num_killed < (25 if SOAK else 2):
        (photos / "tags.jsonl").unlink(missing_ok=True)
        options = ("--model", str(model_folder), "--device", "cpu", "--batch-size", "4", "--num-workers", "2")
        child = Child(command("predict", "images", *options, "--top-k", "6", "--output", "tags.jsonl"), photos)
        process, status, killed = psutil.Process(child.id), None, 0
        while status is None:
            status = child.wait(time.monotonic() - child.started + 0.05 + 0.2 * chance.random())
            workers = process.children() if status is None else []
            if workers and killed < 3:
                with suppress(psutil.NoSuchProcess):
                    chance.choice(workers).kill()
                    killed += 1
        assert status == 1, child.said.read_text()
        records = [json.loads(line) for line in (photos / "tags.jsonl").read_text().splitlines()]
        lost = {Path(r["path"]).name for r in records if r["error"] and "the process that decoded" in r["error"]}
        assert len(lost) <= killed
        check_records(records, {f"{number:03d}.png" for number in range(24)} - {"010.png"} - lost, alone)
        num_killed, num_lost = num_killed + killed, num_lost + len(lost)
    keep("workers killed from outside", {"workers": num_killed, "images that were lost": num_lost})
