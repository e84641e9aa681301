"""Pictures of every mode reach the model as a viewer shows them."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageOps

from effllava_optuna.errors import TaskError
from effllava_optuna.tasks import Sample, Split
from effllava_optuna.tasks.data.stored_image import StoredImage
from effllava_optuna.tasks.data.text_rows import ListedRows

COLOURS = np.array(
    [[[250, 10, 20], [10, 200, 30]], [[20, 30, 240], [0, 0, 0]], [[255, 255, 255], [90, 90, 90]]],
    dtype=np.uint8,
)
GREY = np.array([[0, 51, 102], [153, 204, 255]], dtype=np.uint8)
ALPHA = np.array([[0, 255], [128, 255], [255, 0]], dtype=np.uint8)


def load(image: Image.Image) -> NDArray[Any]:
    """Return the pixels that the model receives of an image."""
    loaded = Sample("a", "a", Split.PROXY, image, "q?", ("a", "b"), 0).load_image()
    assert loaded is not None
    assert loaded.mode == "RGB"
    return np.asarray(loaded).astype(int)


def stored(image: Image.Image, format_: str, **options: Any) -> Image.Image:
    """Save an image, and open it again."""
    file = io.BytesIO()
    image.save(file, format_, **options)
    return Image.open(io.BytesIO(file.getvalue()))


def stack(grey: NDArray[Any]) -> NDArray[Any]:
    return np.stack([grey] * 3, axis=-1)


def close(shown: NDArray[Any], expected: NDArray[Any], tolerance: float = 1) -> bool:
    """Return whether two pictures have one size and nearly the same colours."""
    return shown.shape == expected.shape and bool(np.abs(shown - expected).max() <= tolerance)


def in_mode(mode: str) -> Image.Image:
    """Return the colours, or the grey values, in a mode of Pillow."""
    colours, grey = Image.fromarray(COLOURS), Image.fromarray(GREY)
    if mode.startswith("I;16"):
        order = ">" if mode.endswith("B") else "<"
        data = (GREY.astype(np.uint16) * 257).astype(f"{order}u2").tobytes()
        return Image.frombytes(mode, grey.size, data)
    if mode == "1":
        return Image.fromarray(GREY > 127)
    if mode in ("L", "LA", "I", "F"):
        return grey.convert(mode)
    if mode == "La":
        return grey.convert("LA").convert("La")
    if mode == "PA":
        return colours.quantize(6).convert("PA")
    if mode == "P":
        return colours.quantize(6)
    return colours.convert("RGBA").convert(mode) if mode == "RGBa" else colours.convert(mode)


@pytest.mark.parametrize("mode", Image.MODES)
def test_every_mode_of_pillow_shows_the_same_colours(mode: str) -> None:
    image = in_mode(mode)
    assert image.mode == mode
    before = image.tobytes(), dict(image.info)
    expected = stack(GREY) if image.size == (3, 2) else COLOURS
    if mode == "1":
        expected = stack(np.where(GREY > 127, 255, 0))
    assert close(load(image), expected, {"YCbCr": 4, "LAB": 12, "HSV": 6}.get(mode, 1))
    assert (image.tobytes(), image.info) == before


@pytest.mark.parametrize("mode", ["RGBA", "RGBa", "LA", "La", "PA"])
def test_an_alpha_channel_is_put_on_white(mode: str) -> None:
    colours = Image.fromarray(COLOURS)
    alpha = Image.fromarray(ALPHA)
    if mode in ("LA", "La"):
        grey = colours.convert("L")
        image = Image.merge("LA", (grey, alpha)).convert(mode)
        shown = stack(np.asarray(grey))
    elif mode == "PA":
        image = Image.merge("PA", (colours.quantize(6), alpha))
        image.putpalette(colours.quantize(6).getpalette() or [])
        shown = COLOURS
    else:
        colours.putalpha(alpha)
        image, shown = colours.convert(mode), COLOURS
    opacity = (ALPHA / 255)[..., None]
    assert close(load(image), np.rint(shown * opacity + 255 * (1 - opacity)), 2)


def png(bits: int, colour: int, row: bytes, transparent: bytes, palette: bytes = b"") -> bytes:
    """Return a PNG file of two pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", 2, 1, bits, colour, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"PLTE", palette), (b"tRNS", transparent)]
    chunks += [(b"IDAT", zlib.compress(b"\0" + row)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*c) for c in chunks if c[1] or c[0] == b"IEND")


@pytest.mark.parametrize(
    "content",
    [
        png(1, 0, b"\x40", struct.pack(">H", 0)),
        png(2, 0, b"\x40", struct.pack(">H", 1)),
        png(4, 0, b"\x50", struct.pack(">H", 5)),
        png(8, 0, b"\x05\0", struct.pack(">H", 5)),
        png(16, 0, struct.pack(">HH", 0x1234, 0), struct.pack(">H", 0x1234)),
        png(8, 2, b"\1\2\3\0\0\0", struct.pack(">HHH", 1, 2, 3)),
        png(16, 2, struct.pack(">6H", 9999, 2, 3, 0, 0, 0), struct.pack(">3H", 9999, 2, 3)),
        png(1, 3, b"\x40", b"\0", bytes([9, 9, 9, 0, 0, 0])),
        png(8, 3, b"\0\1", b"\0\xff", bytes([9, 9, 9, 0, 0, 0])),
        png(8, 4, b"\x09\0\0\xff", b""),
        png(16, 4, struct.pack(">4H", 999, 0, 0, 65535), b""),
        png(8, 6, bytes([9, 9, 9, 0, 0, 0, 0, 255]), b""),
        png(16, 6, struct.pack(">8H", 999, 9, 9, 0, 0, 0, 0, 65535), b""),
    ],
    ids=lambda content: f"{content[24]} bits, colour type {content[25]}",
)
def test_every_kind_of_transparency_in_png_is_white(content: bytes) -> None:
    """The first pixel is transparent, the second one black, or white if it has one bit."""
    image = Image.open(io.BytesIO(content))
    second = 255 if image.mode == "1" else 0
    assert load(image).tolist() == [[[255] * 3, [second] * 3]]


@pytest.mark.parametrize("format_", ["GIF", "WEBP", "PNG", "ICO", "TIFF", "TGA", "AVIF"])
def test_transparency_in_a_file_is_put_on_white(format_: str) -> None:
    colours = np.full((32, 32, 3), 40, dtype=np.uint8)
    image = Image.fromarray(colours)
    alpha = np.full((32, 32), 255, dtype=np.uint8)
    alpha[:, :16] = 0
    image.putalpha(Image.fromarray(alpha))
    shown = load(stored(image, format_, **({"lossless": True} if format_ == "WEBP" else {})))
    assert shown[:, :14].min() >= 250
    assert np.abs(shown[:, 18:] - 40).max() <= 5


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format_", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF", "MPO"])
def test_a_picture_is_turned_upright(format_: str, orientation: int) -> None:
    upright = np.zeros((32, 64, 3), dtype=np.uint8)
    upright[:16, :32] = [250, 0, 0]
    upright[16:, :32] = [0, 250, 0]
    camera = [  # how a camera stores it, by orientation
        upright, upright[:, ::-1], upright[::-1, ::-1], upright[::-1],
        upright.transpose(1, 0, 2), np.rot90(upright),
        np.rot90(upright, 2).transpose(1, 0, 2), np.rot90(upright, -1),
    ]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {} if format_ in ("PNG", "TIFF") else {"quality": 100}
    pixels = np.ascontiguousarray(camera[orientation - 1])
    image = stored(Image.fromarray(pixels), format_, exif=exif, **options)
    middles = slice(4, None, 8)  # of blocks of a compressed file
    # The image, the image that was loaded already, and one that was turned already.
    for picture in (image, image, ImageOps.exif_transpose(image)):
        assert close(load(picture)[middles, middles], upright[middles, middles], 9)
        assert load(picture).shape == upright.shape


@pytest.mark.parametrize("format_", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize(
    "exif",
    [b"garbage", b"MM\0*\0\0\0\x08\0\x09", b"MM\0*\xff\xff\xff\xff"],
    ids=["no TIFF", "cut", "offset"],
)
def test_damaged_metadata_is_ignored(format_: str, exif: bytes) -> None:
    file = io.BytesIO()
    Image.fromarray(stack(GREY)).save(file, format_, exif=b"Exif\0\0" + exif)
    source = StoredImage(ListedRows([{"image": file.getvalue()}]), 0, "image", Path())
    loaded = Sample("a", "a", Split.PROXY, source, "q?", ("a", "b"), 0).load_image()
    assert loaded is not None
    assert loaded.size == (3, 2)


@pytest.mark.parametrize("format_", ["GIF", "PNG", "WEBP", "TIFF", "AVIF"])
def test_an_animation_shows_its_first_frame(format_: str) -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "lime", "blue")]
    image = stored(frames[0], format_, save_all=True, append_images=frames[1:])
    assert getattr(image, "n_frames", 1) == 3
    assert close(load(image), np.full((16, 16, 3), [255, 0, 0]), 4)


def tiff(pixels: NDArray[Any]) -> Image.Image:
    return stored(Image.fromarray(pixels), "TIFF")


@pytest.mark.parametrize(
    "image",
    [
        stored(Image.fromarray(GREY.astype(np.uint16) * 257), "PNG"),
        tiff(GREY.astype(np.uint16) * 257),
        tiff(GREY.astype(np.uint16)),  # 8-bit values in 16 bits
        tiff(GREY.astype(np.int32)),
        tiff(GREY.astype(np.int32) * 257),
        tiff(GREY.astype(np.float32)),
        tiff(GREY.astype(np.float32) / 255),
        tiff(GREY.astype(np.float32) * 257),
        stored(Image.fromarray(GREY.astype(np.float32) / 255), "PPM"),  # a PFM file
        Image.open(io.BytesIO(b"P5 3 2 65535 " + (GREY.astype(">u2") * 257).tobytes())),
        Image.open(io.BytesIO(b"P2 3 2 1023 0 205 410 615 820 1023 ")),
        stored(Image.fromarray(GREY.astype(np.uint16) * 257), "JPEG2000"),
        stored(Image.fromarray(GREY), "BMP"),
        stored(Image.fromarray(GREY).quantize(6), "GIF"),
    ],
    ids=lambda image: f"{image.format}-{image.mode}",
)
def test_deep_grey_values_are_scaled(image: Image.Image) -> None:
    assert close(load(image), stack(GREY), 1)


def test_the_bits_of_a_twelve_bit_tiff_are_scaled() -> None:
    """Two pixels of 12 bits, 4095 and 2048, and the tags of a minimal file."""
    tags = [(256, 2), (257, 1), (258, 12), (259, 1), (262, 1), (273, 8), (277, 1), (278, 1),
            (279, 3)]  # fmt: skip
    entries = b"".join(struct.pack("<HHIHH", tag, 3, 1, value, 0) for tag, value in tags)
    content = b"II*\0" + struct.pack("<I", 12) + b"\xff\xf8\x00\0"
    content += struct.pack("<H", len(tags)) + entries + bytes(4)
    image = Image.open(io.BytesIO(content))
    assert image.mode == "I;16"
    assert close(load(image), stack(np.array([[255, 128]])), 1)


@pytest.mark.parametrize(
    ("pixels", "range_"),
    [
        (np.array([[-1, 5]], dtype=np.int32), "from -1 to 5"),
        (np.array([[0, 70000]], dtype=np.int32), "from 0 to 70000"),
        (np.array([[0.5, 1.5]], dtype=np.float32), r"from 0\.5 to 1\.5"),
        (np.array([[-0.5, 1]], dtype=np.float32), r"from -0\.5 to 1"),
        (np.array([[0, np.nan]], dtype=np.float32), "from nan to nan"),
        (np.array([[0, np.inf]], dtype=np.float32), "from 0 to inf"),
        (np.array([[0, 1e9]], dtype=np.float32), r"from 0 to 1e\+09"),
    ],
)
def test_values_without_a_defined_brightness_are_refused(
    pixels: NDArray[Any], range_: str
) -> None:
    with pytest.raises(TaskError, match=rf"sample 'a' cannot be opened: its values are {range_}"):
        load(tiff(pixels))


def test_a_cmyk_file_has_its_colours() -> None:
    colours = np.repeat(np.repeat(COLOURS, 16, axis=0), 16, axis=1)
    for format_ in ("TIFF", "JPEG"):
        options = {"quality": 100} if format_ == "JPEG" else {}
        image = stored(Image.fromarray(colours).convert("CMYK"), format_, **options)
        assert image.mode == "CMYK"
        assert close(load(image)[8::16, 8::16], COLOURS, 12)


class Damaged:
    """An image whose format raises an error without a message."""

    def open(self) -> Image.Image:
        raise AssertionError


@pytest.mark.parametrize("box", [b"iloc", b"av1C"])
def test_a_damaged_file_is_named_whatever_its_format_raises(box: bytes) -> None:
    """Pillow raises RuntimeError for AVIF, AssertionError for ICNS."""
    file = io.BytesIO()
    Image.new("RGB", (16, 16), "red").save(file, "AVIF")
    content = file.getvalue().replace(box, b"xxxx")
    avif = StoredImage(ListedRows([{"image": content}]), 0, "image", Path())
    for source, reason in ((avif, "."), (Damaged(), r"AssertionError\.")):
        sample = Sample("a", "a", Split.PROXY, source, "q?", ("a", "b"), 0)
        with pytest.raises(TaskError, match=f"The image of sample 'a' cannot be opened: {reason}"):
            sample.load_image()
