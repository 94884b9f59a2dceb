"""Image files: how they are decoded to RGB with PIL, cropped and resized."""

import io
import logging
import warnings
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image, ImageCms, ImageOps

from dbae.config import UserError, printable

logger = logging.getLogger(__name__)

MAX_BYTES = 1 << 29  # of an image file, as it lies on the disk or comes out of an archive
MAX_PIXELS = 89_478_485  # of an image: a quarter of a GiB as RGB. PIL's own limit is the same, but can be switched off
# Formats that are decoded, whatever a file is called. PIL knows more, of which EPS would start another program.
Image.init()
FORMATS = {"AVIF", "BMP", "DIB", "GIF", "HEIF", "ICO", "JPEG", "JPEG2000", "PNG", "PPM", "QOI", "TGA", "TIFF", "WEBP"}
FORMATS &= Image.OPEN.keys()
# By which images are found; an MPO is read as a JPEG
EXTENSIONS = frozenset(ending for ending, kind in Image.EXTENSION.items() if kind in FORMATS | {"MPO"})
SAME = 2  # levels of 255 by which a profile's colours may differ from sRGB's where it counts as sRGB


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


def decode(data: bytes) -> Image.Image:
    """RGB image from the bytes of a file, the first of several, turned upright by its EXIF orientation.

    Raises BadImage, also for more than MAX_PIXELS, before they are decoded.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=sorted(FORMATS))
        check_pixels(*image.size)
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
        return to_rgb(image)
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
    """Copy of an image in any PIL mode as RGB in sRGB, by its ICC profile; transparency is laid on white.

    Raises BadImage for 32-bit and signed numbers, as no file tells which of them is white.
    """
    profile, image = image.info.get("icc_profile"), eight_bits(image)
    layers = image.convert("RGBA") if image.has_transparency_data else None
    colours = profile and _by_profile(layers or image, profile, is_grey=image.mode in ("1", "L", "LA"))
    if layers:
        if colours:
            colours.putalpha(layers.getchannel("A"))
        colours = Image.alpha_composite(Image.new("RGBA", image.size, "white"), colours or layers)
    rgb = (colours or image).convert("RGB")
    rgb.info.clear()  # or the profile would be stored with it, and applied a second time
    return rgb


def eight_bits(image: Image.Image) -> Image.Image:
    """The image with the upper 8 of 16 (or 12) bits of grey, as PIL itself reads 16 bits of colour; else as it is."""
    if image.mode == "F" or (image.mode == "I" and image.format not in ("PNG", "PPM")):  # those have 16 bits at most
        raise BadImage("its pixels are signed or 32-bit numbers, of which nobody knows the white: store 8 or 16 bits")
    if not image.mode.startswith("I"):
        return image
    tags = getattr(image, "tag_v2", {})  # of a TIFF: 258 are the bits, 262 is 0 where 0 is white
    levels = np.asarray(image).astype(np.int64) >> tags.get(258, (16,))[0] - 8
    levels = levels.clip(0, 255).astype(np.uint8)
    return Image.fromarray(255 - levels if tags.get(262) == 0 else levels)


def _by_profile(image: Image.Image, profile: bytes, is_grey: bool) -> Image.Image | None:
    """The image without transparency as sRGB; None where it is that already, or the profile is of no use."""
    mode, transform = _transform(profile, "L" if is_grey else image.mode if image.mode in ("CMYK", "LAB") else "RGB")
    return transform and ImageCms.applyTransform(image.convert(mode), transform)


@lru_cache(maxsize=64)
def _transform(profile: bytes, mode: str) -> tuple[str, ImageCms.ImageCmsTransform | None]:
    """What takes an image of a mode to sRGB, and the mode, L, RGB or CMYK, that it must be converted to before."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        space = source.profile.xcolor_space.strip()
        mode = "RGB" if (mode, space) == ("L", "RGB") else mode
        if space != {"L": "GRAY"}.get(mode, mode):
            raise ValueError("another colour space")
        transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB")
    except ImportError:
        log_once("this build of Pillow lacks littleCMS: images are read as if they had no ICC profile")
        return mode, None
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        log_once("an ICC profile is broken or of other colours than its image: such images are read as if without one")
        return mode, None
    # Many profiles are sRGB, under many names: those must not change a pixel
    some = np.stack(np.meshgrid(*3 * [np.arange(0, 256, 15, dtype=np.uint8)]), axis=-1).reshape(1, -1, 3)
    some = Image.fromarray(some).convert(mode)
    before, after = (np.asarray(each, int) for each in (some.convert("RGB"), ImageCms.applyTransform(some, transform)))
    return mode, transform if abs(after - before).max() > SAME else None


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
        return decode(read_bytes(path))
    except (BadImage, OSError) as error:
        raise UnreadableImage(f"{path} is a bad image: {reason_of(error)}") from error


def reason_of(error: Exception) -> str:
    """What an error says, without the path that an OSError adds."""
    return str(getattr(error, "strerror", None) or error)


@lru_cache
def log_once(message: str) -> None:
    """Log a warning, unless this process has logged the same one before."""
    logger.warning(printable(message))
