"""Decoding, cropping and resizing of single images with PIL: the one place that knows about colour modes."""

import io
import struct
import warnings
import zlib
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image, ImageOps

from dbae.config import UserError

MAX_BYTES = 1 << 29  # of an image file, as it lies on the disk or comes out of an archive
MAX_PIXELS = 89_478_485  # of an image: a quarter of a GiB as RGB. PIL's own limit is the same, but can be switched off
EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"})
# Formats that are decoded, whatever a file is called. PIL knows more, of which EPS would start another program.
FORMATS = frozenset({"AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP"})
# What PIL and its codecs raise for broken bytes
_DECODE_ERRORS = (
    *(OSError, SyntaxError, ValueError, TypeError, EOFError, KeyError, IndexError, OverflowError, MemoryError),
    *(RuntimeError, AssertionError),
    *(zlib.error, struct.error, Image.DecompressionBombWarning, Image.DecompressionBombError),
)


class BadImage(ValueError):
    """Bytes that are no complete image of an acceptable size; the message says why."""


class UnreadableImage(UserError):
    """One image of a data set that cannot be had; the message names its file or key. The others may be fine."""


@dataclass(frozen=True)
class CropBox:
    """A square crop defined on images of one full size, which scales with the stored size."""

    top: int
    left: int
    side: int
    full_width: int
    full_height: int

    def scaled(self, width: int, height: int) -> tuple[float, float, float, float]:
        """The box (left, top, right, bottom) on a stored image, fractional where the scale is.

        Raises BadImage for a stored image of another shape, which has been cropped before.
        """
        if abs(width * self.full_height / self.full_width - height) > 1:
            full = f"{self.full_width}x{self.full_height}"
            raise BadImage(f"it is {width}x{height}, expected the uncropped {full} or a smaller copy of that shape")
        x, y = width / self.full_width, height / self.full_height
        return self.left * x, self.top * y, (self.left + self.side) * x, (self.top + self.side) * y


def decode(data: bytes, upright: bool = False) -> Image.Image:
    """Fully decoded RGB image from the bytes of a file; ``upright`` applies the EXIF orientation.

    16-bit grey is scaled to 8 bits and transparency is laid on white. Raises BadImage, also for more than MAX_PIXELS,
    before they are decoded.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=_formats())
        check_pixels(*image.size)
        image.load()
        return to_rgb(ImageOps.exif_transpose(image) if upright else image)
    except _DECODE_ERRORS as error:
        reason = "no image format that is read here" if isinstance(error, Image.UnidentifiedImageError) else str(error)
        raise BadImage(" ".join(reason.split()) or type(error).__name__) from error


def read_bytes(path: str) -> bytes:
    """Contents of an image file. Raises OSError, and BadImage for more than MAX_BYTES, of which no more are read."""
    with open(path, "rb") as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise BadImage(f"it has more than {MAX_BYTES >> 20} MiB")
    return data


def check_pixels(width: int, height: int) -> None:
    """Raise BadImage for a size of more than MAX_PIXELS."""
    if width * height > MAX_PIXELS:
        raise BadImage(f"{width}x{height} are more than {MAX_PIXELS} pixels")


def to_rgb(image: Image.Image) -> Image.Image:
    """RGB copy of an image in any PIL mode."""
    if image.mode.startswith("I"):  # 16 bits in a wider container, which PIL would clip to white
        levels = np.asarray(image).astype(np.int64) >> 8
        image = Image.fromarray(levels.clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def fit(image: Image.Image, size: int, crop: CropBox | None = None) -> Image.Image:
    """RGB image resized to size x size (bilinear, antialiased), after the crop box or else the central square.

    At the box's full size this is exactly crop, then resize. Raises BadImage if the box does not suit the image.
    """
    left, top, right, bottom = crop.scaled(*image.size) if crop else _central_square(*image.size)
    outer = (int(left), int(top), int(-(-right // 1)), int(-(-bottom // 1)))
    inner = (left - outer[0], top - outer[1], right - outer[0], bottom - outer[1])
    return image.crop(outer).resize((size, size), Image.Resampling.BILINEAR, box=inner)


def cover(image: Image.Image, size: int) -> Image.Image:
    """RGB image whose shorter side is resized to ``size`` (Lanczos), cut to its central square: how LMDBs are made.

    Raises BadImage for one so narrow that it would have more than MAX_PIXELS on the way.
    """
    scale = size / min(image.size)
    width, height = (max(size, round(side * scale)) for side in image.size)
    check_pixels(width, height)
    resized = image.resize((width, height), Image.Resampling.LANCZOS)
    return resized.crop(_central_square(*resized.size))


def _central_square(width: int, height: int) -> tuple[int, int, int, int]:
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    return left, top, left + side, top + side


@cache
def _formats() -> tuple[str, ...]:
    """FORMATS that this PIL can read."""
    Image.init()
    return tuple(sorted(FORMATS & Image.OPEN.keys()))
