"""Still pictures: what Pillow has opened, of whatever kind, as upright 8-bit RGB; and RGB as a file within HTML."""

import base64
import io
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import UInt8

from hookedvid.video.refusals import refusal, unreadable

if TYPE_CHECKING:
    from PIL.Image import Image

ORIENTATION = 0x0112  # EXIF's number of it
# What brings a picture upright that says it was stored so (CIPA DC-008, 4.6.5: where row 0 and column 0 lie).
TURNS: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    2: np.fliplr,
    3: lambda picture: np.rot90(picture, 2),
    4: np.flipud,
    5: lambda picture: picture.swapaxes(0, 1),
    6: lambda picture: np.rot90(picture, -1),
    7: lambda picture: np.rot90(picture, 2).swapaxes(0, 1),
    8: np.rot90,
}
TODO = "extract the frame again, or save it as an 8-bit RGB image"


def upright_rgb(image: "Image", source: object) -> UInt8[np.ndarray, "height width 3"]:
    """The pixels of a picture, turned as its EXIF says.

    Of 16 bits the upper 8 are taken, as Pillow does with colours; alpha is dropped, as ffmpeg and the evaluators' code
    do; colour profiles are not applied.

    Raises:
        VideoError: Which names `source`, where the picture is damaged, or of numbers whose range nobody knows.
    """
    # Up to version 11 Pillow opens some 16-bit files as I, 32-bit numbers, of which those of other origin say no range.
    deep = image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))
    if image.mode in ("I", "F") and not deep:
        raise refusal(source, f"the image is of mode {image.mode}, which does not say what white is", TODO)
    try:
        pixels = _upper_bits(image) if deep else _rgb(image)
        # Only now, since PNG may tell its orientation behind the pixels.
        turn = TURNS.get(image.getexif().get(ORIENTATION, 1))
    except (OSError, SyntaxError, ValueError, struct.error) as e:
        if isinstance(e, OSError) and e.errno:  # Pillow's own have none
            raise unreadable(source, e) from e
        raise refusal(source, f"the image cannot be read ({e})", TODO) from e
    return np.ascontiguousarray(turn(pixels)) if turn else pixels


def webp(picture: UInt8[np.ndarray, "_height _width 3"], side: int, quality: int = 70) -> bytes:
    """A picture as a WebP file.

    Args:
        picture: RGB.
        side: Its longest side has so many pixels at most; a smaller picture stays as it is.
        quality: WebP's, to 100.
    """
    from PIL import Image

    image = Image.fromarray(picture)
    shrink = side / max(image.size)
    if shrink < 1:
        image = image.resize((max(1, round(image.width * shrink)), max(1, round(image.height * shrink))))
    file = io.BytesIO()
    image.save(file, "WEBP", quality=quality, method=4)
    return file.getvalue()


def as_uri(picture: UInt8[np.ndarray, "_height _width 3"], side: int, quality: int = 70) -> str:
    """`webp` as a `data:` URI, which stands within HTML."""
    return "data:image/webp;base64," + base64.b64encode(webp(picture, side, quality)).decode()


def _upper_bits(image: "Image") -> np.ndarray:
    return (np.asarray(image) >> 8).astype(np.uint8)[..., None].repeat(3, -1)


def _rgb(image: "Image") -> np.ndarray:
    # Pillow warns of a palette with transparency unless it is brought to RGBA first.
    opaque = image.convert("RGBA") if image.mode == "P" and "transparency" in image.info else image
    return np.asarray(opaque.convert("RGB"))
