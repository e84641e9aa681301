"""Conversion of pictures of any mode to RGB, as viewers show them.

`Image.convert` alone ignores the EXIF orientation, replaces transparent pixels by the colour that
happens to be stored in them, and clips values of more than 8 bits (Pillow issue 5991).
"""

from __future__ import annotations

import struct
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import ExifTags, Image

if TYPE_CHECKING:
    from numpy.typing import NDArray

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""The transposition that makes a picture upright, by EXIF orientation."""

_KEY_FACTORS = {"L;2": 255 / 3, "L;4": 255 / 15, "RGB;16B": 1 / 256}
"""Factor by which Pillow scales the pixels of a PNG file to 8 bits, but not their transparent key,
by raw mode."""

_BITS_PER_SAMPLE = 258  # tag of TIFF


def convert_to_rgb(image: Image.Image) -> Image.Image:
    """Convert a picture to RGB; of an animation, the current frame, which is the first one.

    The picture is turned upright by its EXIF orientation. Transparency is put on white. Values of
    16 bits are scaled to 8 bits, unless all are below 256. Float values may be from 0 to 1, or
    whole numbers.

    Raises:
        ValueError: No brightness is defined for the values of a 32-bit picture, or the mode is
            unknown.
        OSError: The pixels cannot be decoded.
    """
    transparent = _transparent_value(image)
    bits = (*getattr(image, "tag_v2", {}).get(_BITS_PER_SAMPLE, ()), 16)[0]
    image.load()
    orientation = _orientation(image)  # loading a TIFF file applies and removes it
    if image.mode.startswith(("I", "F")):
        image = _eight_bits(np.asarray(image), bits, transparent)
    elif transparent is not None:
        image = image.copy()
        image.info["transparency"] = transparent
    if image.mode == "La":  # Pillow converts it to no other mode
        image = image.convert("LA")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    rgb = image.convert("RGB")
    rgb.info = {}  # without the orientation, which would be applied again
    return rgb if orientation not in _UPRIGHT else rgb.transpose(_UPRIGHT[orientation])


def _orientation(image: Image.Image) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about damaged tags
            return image.getexif().get(ExifTags.Base.Orientation)
    except (SyntaxError, ValueError, struct.error):
        return None  # damaged metadata: viewers show such a picture as it is stored


def _transparent_value(image: Image.Image) -> Any:
    """Return the value of transparent pixels, scaled as Pillow scales pixels; None: no such."""
    value = image.info.get("transparency")
    tiles = getattr(image, "tile", None)  # empty once the pixels are loaded
    factor = _KEY_FACTORS.get(tiles[0][3]) if tiles and isinstance(tiles[0][3], str) else None
    if factor is None or not isinstance(value, (int, tuple)):
        return value
    if isinstance(value, int):
        return int(value * factor)
    return tuple(int(part * factor) for part in value)


def _eight_bits(pixels: NDArray[Any], bits: int, transparent: Any) -> Image.Image:
    """Convert grey values of 16 or 32 bits, ``bits`` of which are used, to 8 bits."""
    low, high = pixels.min(), pixels.max()
    is_float = pixels.dtype.kind == "f"
    is_whole = not is_float or (np.isfinite(pixels).all() and (pixels == np.rint(pixels)).all())
    if is_float and low >= 0 and high <= 1:
        grey = np.rint(pixels * 255)
    elif is_whole and low >= 0 and high < 256:
        grey = pixels
    elif is_whole and low >= 0 and high < 1 << 16:
        grey = pixels.astype(np.int64) >> (bits - 8 if 8 < bits < 16 else 8)
    else:
        raise ValueError(
            f"its values are from {low:.9g} to {high:.9g}, for which no brightness is defined; "
            "convert it to 8 bits"
        )
    picture = Image.fromarray(grey.astype(np.uint8))
    if isinstance(transparent, int):
        opaque = np.where(pixels == transparent, 0, 255).astype(np.uint8)
        picture = Image.merge("LA", (picture, Image.fromarray(opaque)))
    return picture
