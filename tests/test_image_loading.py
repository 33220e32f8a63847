"""load_image: RGB, upright, from whatever an image comes as, and not one copy too many."""

import io
import os
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from zsmld.images import ImageTransform, load_image


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


PIXELS = np.random.default_rng(3).integers(0, 256, (6, 9, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("orientation", "turn"),
    [(1, lambda a: a), (2, lambda a: a[:, ::-1]), (3, lambda a: a[::-1, ::-1]), (6, lambda a: np.rot90(a, -1))],
)
def test_exif_rotation_is_applied(orientation: int, turn: object) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    found = np.asarray(load_image(encoded(Image.fromarray(PIXELS), exif=exif)))
    np.testing.assert_array_equal(found, turn(PIXELS))


def test_a_good_image_with_damaged_exif_is_a_good_image() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    good = encoded(Image.fromarray(PIXELS), "WEBP", lossless=True, exif=exif)
    start = good.index(b"MM\x00*")  # of the EXIF, which is a small TIFF
    assert load_image(good).size == (6, 9)
    for damage in (b"MM\x00\x14", b"MM\x00*\xff", b"\x00" * 8):
        damaged = good[:start] + damage + good[start + len(damage) :]
        np.testing.assert_array_equal(np.asarray(load_image(damaged)), PIXELS)


def test_whatever_a_decoder_raises_is_one_unreadable_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "half.png"
    good = encoded(Image.fromarray(PIXELS))
    path.write_bytes(b"qoif" + struct.pack(">IIBB", 9, 6, 3, 0) + b"\xfe\x01\x02\x03\xfe\x01")  # QOI, cut in a pixel
    with pytest.raises(
        ValueError, match=r"^image must be readable, cannot decode .*half\.png: .*; replace or remove it"
    ):
        load_image(path)  # Pillow raises an IndexError
    for error in (RuntimeError("no planes"), MemoryError("much"), NotImplementedError("a format"), SyntaxError("bad")):

        def fail(image: Image.Image, error: Exception = error) -> None:
            raise error

        with monkeypatch.context() as patch:
            patch.setattr(Image.Image, "load", fail)
            with pytest.raises(ValueError, match=f"cannot decode image: {error}; replace"):
                load_image(good)


def test_postscript_is_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow would hand it to Ghostscript, whatever its file is called."""
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *given: pytest.fail("it was run"))
    with pytest.raises(ValueError, match="PostScript is a program, and no program is run; convert it to PNG"):
        load_image(encoded(Image.fromarray(PIXELS), "EPS"))


def test_16_bit_grey_is_scaled() -> None:
    values = np.array([[0, 256, 32768, 65535]], np.uint16)
    found = np.asarray(load_image(encoded(Image.fromarray(values))))
    assert found.tolist() == [[[v] * 3 for v in (0, 1, 128, 255)]]


def test_transparency_is_laid_on_white() -> None:
    rgba = np.zeros((1, 3, 4), np.uint8)
    rgba[0, :, 0] = 255  # red, and fully, half, not transparent
    rgba[0, :, 3] = (0, 128, 255)
    expected = [[255, 255, 255], [255, 127, 127], [255, 0, 0]]
    for source in (encoded(Image.fromarray(rgba)), Image.fromarray(rgba), rgba):
        assert np.asarray(load_image(source))[0].tolist() == expected
    grey = Image.merge("LA", (Image.new("L", (2, 2), 10), Image.new("L", (2, 2), 0)))
    assert np.asarray(load_image(encoded(grey))).min() == 255


def test_palette_with_transparency() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putdata([0, 1])
    assert np.asarray(load_image(encoded(image)))[0].tolist() == [[255, 0, 0], [0, 0, 255]]
    assert np.asarray(load_image(encoded(image, transparency=0)))[0].tolist() == [[255] * 3, [0, 0, 255]]
    assert np.asarray(load_image(encoded(image, "GIF", transparency=1)))[0].tolist() == [[255, 0, 0], [255] * 3]


def test_other_modes() -> None:
    assert np.asarray(load_image(encoded(Image.new("L", (2, 2), 77)))).tolist() == [[[77] * 3] * 2] * 2
    assert np.asarray(load_image(encoded(Image.new("1", (2, 2), 1)))).min() == 255
    cmyk = np.asarray(load_image(encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=95)))
    assert cmyk[..., 0].min() > 230 and cmyk[..., 1:].max() < 40  # red
    assert load_image(encoded(Image.new("CMYK", (8, 8)), "TIFF")).mode == "RGB"


ROTATED = Image.Exif()
ROTATED[0x0112] = 6


def decoded_plainly(image: Image.Image) -> Image.Image:
    """Every step on a copy, as if nothing could be left out."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        return Image.fromarray((np.asarray(image, np.float32) / 256).clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def files_of_every_kind() -> dict[str, bytes]:
    rgb = Image.fromarray(PIXELS.repeat(3, 0))
    alpha = rgb.convert("RGBA")
    alpha.putalpha(Image.fromarray(PIXELS[..., 0].repeat(3, 0)))
    deep = Image.fromarray(PIXELS[..., 0].astype(np.uint16) * 257)
    files = {
        f"{kind} {image.mode}{' rotated' if options else ''}": encoded(image, kind, **options)
        for options in ({}, {"exif": ROTATED})
        for kind, images in {
            "JPEG": [rgb, rgb.convert("L"), rgb.convert("CMYK")],
            "PNG": [rgb, alpha, rgb.convert("L"), rgb.convert("LA"), rgb.convert("P"), rgb.convert("1"), deep],
            "WEBP": [rgb, alpha],
            "TIFF": [rgb, alpha, rgb.convert("CMYK"), rgb.convert("L"), deep, rgb.convert("LAB")],
        }.items()
        for image in images
    }
    first = tuple(PIXELS[0, 0].tolist())
    files |= {
        "PNG RGB with a transparent colour": encoded(rgb, transparency=first),
        "PNG L with a transparent grey": encoded(rgb.convert("L"), transparency=3),
        "PNG P with alpha": encoded(alpha.quantize(16)),
        "JPEG RGB with a strange orientation": encoded(rgb, "JPEG", exif=strange(9)),
        "MPO RGB": encoded(rgb, "MPO", save_all=True, append_images=[rgb]),
        "TIFF RGB, two": encoded(rgb, "TIFF", save_all=True, append_images=[rgb]),
        "GIF P, two": encoded(rgb, "GIF", save_all=True, append_images=[rgb.rotate(180)]),
        "BMP RGB": encoded(rgb, "BMP"),
        "PPM RGB": encoded(rgb, "PPM"),
        "ICO RGBA": encoded(rgb.resize((32, 32)), "ICO", sizes=[(32, 32)]),
        "TGA RGB": encoded(rgb, "TGA"),
    }
    return files


def strange(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


FILES = files_of_every_kind()


def test_files_of_every_kind_are_all_there() -> None:
    assert len(FILES) == 47 and sum(name.endswith(" rotated") for name in FILES) == 18


@pytest.mark.parametrize("kind", FILES)
def test_pixels_are_those_of_a_plain_decoding_to_the_bit(kind: str, tmp_path: Path) -> None:
    """What is left out for speed changes nothing, in whatever way the file comes."""
    path = tmp_path / "image"
    path.write_bytes(FILES[kind])
    expected = decoded_plainly(Image.open(io.BytesIO(FILES[kind])))
    opened = [Image.open(io.BytesIO(FILES[kind])) for _ in range(2)]
    opened[1].load()
    before = opened[1].mode, opened[1].tobytes(), dict(opened[1].getexif())
    for source in [path, FILES[kind], io.BytesIO(FILES[kind]), *opened]:
        found = load_image(source)
        assert found.mode == "RGB" and found.size == expected.size and found.tobytes() == expected.tobytes()
        # All of it is in memory: it can be cut, sent to another process, and be loaded once more.
        assert pickle.loads(pickle.dumps(found)).tobytes() == expected.tobytes()
        assert found.resize((5, 5)).tobytes() == expected.resize((5, 5)).tobytes()
        assert load_image(found).tobytes() == expected.tobytes()
    for image in opened:  # it is the caller's
        found = load_image(image)
        found.paste("red", (0, 0, *found.size))
        assert (image.mode, image.tobytes(), dict(image.getexif())) == before


def test_a_turned_tiff_is_upright_from_a_path_too(tmp_path: Path) -> None:
    """Pillow maps such a file into memory, if it knows the path, and then loses the turn."""
    grey = Image.fromarray(PIXELS[..., 0])
    grey.save(tmp_path / "a.tif", exif=ROTATED)
    assert np.array_equal(np.asarray(load_image(tmp_path / "a.tif"))[..., 0], np.rot90(PIXELS[..., 0], -1))


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="open files are listed on Linux alone")
@pytest.mark.parametrize("kind", FILES)
def test_files_do_not_stay_open(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(FILES[kind])

    def is_open() -> bool:
        links = (fd for fd in Path("/proc/self/fd").iterdir() if os.path.lexists(fd))
        return any(os.path.realpath(link) == str(path.resolve()) for link in links)

    found = load_image(path)
    assert found.size and not is_open()
    with path.open("rb") as file:
        assert load_image(file).size == found.size
        assert is_open() and not file.closed  # it is the caller's
    assert not is_open()


def test_a_large_photo_is_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    photo = encoded(Image.new("RGB", (64, 48), "red"), "JPEG", exif=strange(1))
    monkeypatch.setattr(Image.Image, "copy", lambda self: pytest.fail("copied"))
    monkeypatch.setattr(Image.Image, "convert", lambda self, mode: pytest.fail(f"converted to {mode}"))
    assert ImageTransform(32).fit(load_image(photo)).size == (32, 32)


def test_every_kind_of_source_gives_the_same_pixels(tmp_path: Path) -> None:
    content = encoded(Image.fromarray(PIXELS))
    (tmp_path / "a.png").write_bytes(content)
    with (tmp_path / "a.png").open("rb") as file:
        sources = [tmp_path / "a.png", str(tmp_path / "a.png"), content, file, io.BytesIO(content), PIXELS]
        for source in [*sources, Image.fromarray(PIXELS)]:
            found = load_image(source)
            assert found.mode == "RGB"
            np.testing.assert_array_equal(np.asarray(found), PIXELS)
    grey = load_image(PIXELS[:, :, 0])
    np.testing.assert_array_equal(np.asarray(grey)[:, :, 1], PIXELS[:, :, 0])


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("truncated.jpg", encoded(Image.fromarray(PIXELS.repeat(20, 0).repeat(20, 1)), "JPEG")[:900]),
        ("text.jpg", b"I am a text and no image"),
        ("empty.jpg", b""),
        ("page.png", b"<html>404 not found</html>"),
    ],
)
def test_undecodable_files_are_named(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"image must be readable, cannot decode .*{name}: .*; replace or remove it"):
        load_image(tmp_path / name)


def test_errors_are_the_same_in_every_run() -> None:
    """An address of an object in memory would make two runs differ."""
    for source in (b"no image", io.BytesIO(b"no image"), b"", FILES["JPEG RGB"][:300], FILES["PNG RGB"][:60]):
        with pytest.raises(ValueError, match="image must be readable, cannot decode image: ") as caught:
            load_image(source)
        assert " object at " not in str(caught.value) and "0x" not in str(caught.value)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"image must be an existing file, not found: .*none\.jpg"):
        load_image(tmp_path / "none.jpg")
    with pytest.raises(FileNotFoundError, match="image must be an existing file"):
        load_image(tmp_path)


@pytest.mark.parametrize("array", [np.zeros((4, 4), np.float32), np.zeros((4, 4, 2), np.uint8), np.zeros(4, np.uint8)])
def test_arrays_that_are_no_image(array: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"an image array must be uint8 \(H, W\), \(H, W, 3\) or \(H, W, 4\), got "):
        load_image(array)


@given(
    st.sampled_from(["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF"]),
    st.lists(st.tuples(st.integers(0, 199), st.integers(0, 255)), max_size=4),
    st.integers(0, 100),
)
@pytest.mark.filterwarnings("ignore")
def test_damaged_bytes_are_an_image_or_a_value_error(kind: str, changes: list, percent: int) -> None:
    content = bytearray(encoded(Image.fromarray(PIXELS), kind))
    for position, value in changes:
        content[position % len(content)] = value
    try:
        assert load_image(bytes(content[: len(content) * percent // 100])).mode == "RGB"
    except ValueError as error:
        assert "image must be readable" in str(error)
