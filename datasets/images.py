"""Image files: which ones of a folder are some, how they are decoded to RGB with PIL, cropped and resized."""

import io
import os
import re
import warnings
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps

from dbae.config import UserError

MAX_BYTES = 1 << 29  # of an image file, as it lies on the disk or comes out of an archive
MAX_PIXELS = 89_478_485  # of an image: a quarter of a GiB as RGB. PIL's own limit is the same, but can be switched off
EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"})
# Formats that are decoded, whatever a file is called. PIL knows more, of which EPS would start another program.
Image.init()
FORMATS = {"AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP"} & Image.OPEN.keys()


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
    full: tuple[int, int]

    def scaled(self, width: int, height: int) -> tuple[float, float, float, float]:
        """Left, top, right, bottom on a stored image. Raises BadImage for one of another shape, cropped before."""
        x, y = width / self.full[0], height / self.full[1]
        if abs(x * self.full[1] - height) > 1:
            full = "{}x{}".format(*self.full)
            raise BadImage(f"it is {width}x{height}, expected the uncropped {full} or a smaller copy of that shape")
        return self.left * x, self.top * y, (self.left + self.side) * x, (self.top + self.side) * y


def decode(data: bytes, upright: bool = False) -> Image.Image:
    """RGB image from the bytes of a file; ``upright`` applies the EXIF orientation.

    Raises BadImage, also for more than MAX_PIXELS, before they are decoded.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=sorted(FORMATS))
        check_pixels(*image.size)
        image.load()
        return to_rgb(ImageOps.exif_transpose(image) if upright else image)
    except Exception as error:  # PIL and its codecs raise a dozen kinds for broken bytes
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
    """Raise BadImage for a size of more than MAX_PIXELS, which a narrow image can get by resizing, too."""
    if width * height > MAX_PIXELS:
        raise BadImage(f"{width}x{height} are more than {MAX_PIXELS} pixels")


def to_rgb(image: Image.Image) -> Image.Image:
    """RGB copy of an image in any PIL mode: 16-bit grey is scaled to 8 bits, transparency is laid on white."""
    if image.mode.startswith("I"):  # 16 bits in a wider container, which PIL would clip to white
        levels = np.asarray(image).astype(np.int64) >> 8
        image = Image.fromarray(levels.clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def fit(image: Image.Image, size: int, crop: CropBox | None = None) -> Image.Image:
    """RGB image resized to size x size (bilinear, antialiased), after the crop box or else the central square."""
    left, top, right, bottom = crop.scaled(*image.size) if crop else central_box(*image.size)
    outer = (int(left), int(top), int(-(-right // 1)), int(-(-bottom // 1)))
    inner = (left - outer[0], top - outer[1], right - outer[0], bottom - outer[1])
    return image.crop(outer).resize((size, size), Image.Resampling.BILINEAR, box=inner)


def cover(image: Image.Image, size: int) -> Image.Image:
    """RGB image whose shorter side is resized to ``size`` (Lanczos), cut to its central square: how LMDBs are made."""
    scale = size / min(image.size)
    width, height = (max(size, round(side * scale)) for side in image.size)
    check_pixels(width, height)
    return image.resize((width, height), Image.Resampling.LANCZOS).crop(central_box(width, height))


def central_box(width: int, height: int) -> tuple[int, int, int, int]:
    """The largest square in the middle: left, top, right, bottom."""
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    return left, top, left + side, top + side


def read_image(path: str) -> Image.Image:
    """The upright RGB image in a file. Raises UnreadableImage naming a broken or missing one."""
    try:
        return decode(read_bytes(path), upright=True)
    except (BadImage, OSError) as error:
        raise UnreadableImage(f"{path} is a bad image: {reason_of(error)}") from error


def reason_of(error: Exception) -> str:
    """What an error says, without the path that an OSError adds."""
    return str(getattr(error, "strerror", None) or error)


def image_names(root: str) -> list[str]:
    """Paths below ``root`` of all image files, in natural order (2.jpg before 10.jpg), without hidden ones.

    Links to folders are not followed. Raises UserError if there are none, or for a folder that cannot be read.
    """
    if not os.path.isdir(root):
        found = "this is a file" if os.path.exists(root) else "there is nothing of that name"
        raise UserError(f"{root}: expected a folder of images, {found}")
    names = []
    for folder, _, files in os.walk(root, onerror=_refuse):
        below = os.path.relpath(folder, root)
        names += [os.path.normpath(os.path.join(below, name)).replace(os.sep, "/") for name in files]
    names = sorted(filter(is_image_name, names), key=natural_order)
    if not names:
        raise UserError(f"{root}: expected images ({' '.join(sorted(EXTENSIONS))}), there are none in this folder")
    return names


def is_image_name(name: str) -> bool:
    """Whether a path is an image's by its ending; hidden files and what macOS adds to archives are not."""
    hidden = any(part.startswith((".", "__MACOSX")) for part in name.split("/"))
    return not hidden and os.path.splitext(name)[1].lower() in EXTENSIONS


def natural_order(name: str) -> list[tuple[int, str, str]]:
    """Sort key that compares runs of digits as numbers, by length and digits, as ``int`` refuses thousands of them."""
    parts = re.split(r"([0-9]+)", name)
    return [(len(part.lstrip("0")), part.lstrip("0"), part) if i % 2 else (0, part, "") for i, part in enumerate(parts)]


def _refuse(error: OSError) -> None:
    raise UserError(f"{error.filename}: expected a readable folder: {error.strerror}") from None
