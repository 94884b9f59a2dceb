"""Photographs of any size: the squares that a model takes, perhaps aligned as FFHQ was, and the way back."""

import os
import reprlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter

from datasets.images import central_box, fit, read_image, to_rgb
from datasets.landmarks import LANDMARKS, Point, five_points
from datasets.listing import image_names
from dbae.config import UserError

Quad = tuple[Point, Point, Point, Point]  # corners of a square: its top left, bottom left, bottom right, top right

MIN_SIDE = 8  # pixels
FEATHER = 1 / 12  # part of the square's side over which a pasted edge fades
SOFTENING = 1 / 16  # blur of what is reflected, in the same measure
_SMOOTH = 1024  # pixels up to which a pasted square is enlarged bicubically; beyond that bilinear looks the same


@dataclass(frozen=True)
class Photo:
    """A photograph with the square of it that a model sees."""

    path: str
    image: Image.Image  # RGB, upright, full size
    quad: Quad  # pixel edges are integers

    def crop(self, size: int) -> Image.Image:
        """The square as an upright size x size RGB image, antialiased; outside of the photo is its reflection."""
        # The central square is cut exactly as images of a data set are
        if self.quad == central_square(*self.image.size):
            return fit(self.image, size)
        return fit(_upright(self.image, self.quad, 2 * size), size)

    def paste(self, edited: Image.Image) -> Image.Image:
        """A copy of the photo with the edited square, of any size, in its place, faded in over FEATHER of its side."""
        axis = _axis(self.quad)
        side = min(round(abs(axis)), max(_SMOOTH, *edited.size))
        square = to_rgb(edited).resize((side, side), Image.Resampling.BICUBIC)
        start, end = _bounds(self.quad).clip(0, self.image.size)
        placing = _similarity((complex(*start) - complex(*self.quad[0])) / axis * side, side / axis)
        size = tuple(end - start)
        mask = _fade(self.image.size, self.quad, side)
        mask = mask.transform(size, Image.Transform.AFFINE, placing, Image.Resampling.BILINEAR)
        whole = self.image.copy()
        whole.paste(_warp(square, size, placing), tuple(start), mask)
        return whole


def photo_paths(items: Sequence[str]) -> list[str]:
    """Files as given, and all images under each folder in natural order. Raises UserError for what is missing."""
    if not items:
        raise UserError("photos: expected image files or folders of images, got none")
    paths = []
    for item in items:
        if os.path.isdir(item):
            paths += [os.path.join(item, name) for name in image_names(item)]
        elif os.path.exists(item):
            paths.append(item)
        else:
            raise UserError(f"{item}: expected an image or a folder of images, there is nothing of that name")
    return paths


def read_photo(path: str, landmarks: Sequence[tuple[float, float]] | None = None) -> Photo:
    """The photo in a file, turned upright by its EXIF orientation, with its central square or else the face's.

    ``landmarks`` are (x, y) of the five LANDMARKS in pixels of the upright photo, whose top left corner is (0, 0).
    Raises UserError naming a file that is no image of 8 pixels or more, or has no face there.
    """
    image = read_image(path)
    if min(image.size) < MIN_SIDE:
        raise UserError(f"{path}: expected at least {MIN_SIDE} pixels on a side, got {image.width}x{image.height}")
    try:
        square = central_square(*image.size) if landmarks is None else face_square(landmarks, *image.size)
        return Photo(path, image, square)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def face_square(landmarks: Sequence[Sequence[float]], width: int, height: int) -> Quad:
    """The square around a face in a photo of that size, turned with the face, as FFHQ was aligned.

    Its sides run along e - rot90(m), with e from eye to eye and m from between the eyes to the middle of the mouth's
    corners; half a side is the longer of 2 |e| and 1.8 |m|, and the centre lies m / 10 below the eyes (Karras et al.
    2019, appendix A). Corners may lie outside of the photo. Raises UserError for points that form no face of 8 pixels
    or more in the photo.
    """
    points = five_points(landmarks)
    if any(not (-width <= x <= 2 * width and -height <= y <= 2 * height) for x, y in points):
        raise UserError(f"expected landmarks in a photo of {width}x{height} pixels, got {reprlib.repr(points)}")
    left_eye, right_eye, _, left_mouth, right_mouth = (complex(*point) for point in points)
    across, eyes = right_eye - left_eye, (left_eye + right_eye) / 2
    down = (left_mouth + right_mouth) / 2 - eyes
    level = -1j * down  # rot90(m) is 1j * m
    axis = across + level
    if not (down and axis) or ((across + right_mouth - left_mouth) * level.conjugate()).real < 0:
        expected = f"{', '.join(LANDMARKS)} as seen in the picture"
        raise UserError(f"expected {expected}, no face has them at {reprlib.repr(points)}")
    axis *= max(2.0 * abs(across), 1.8 * abs(down)) / abs(axis)
    centre = eyes + 0.1 * down
    if not (0 <= centre.real <= width and 0 <= centre.imag <= height and 2 * abs(axis) >= MIN_SIDE):
        place = f"one of {2 * abs(axis):.0f} pixels around ({centre.real:.0f}, {centre.imag:.0f})"
        raise UserError(f"expected a face of at least {MIN_SIDE} pixels in a photo of {width}x{height}, got {place}")
    turned = 1j * axis
    corners = (centre - axis - turned, centre - axis + turned, centre + axis + turned, centre + axis - turned)
    return tuple((corner.real, corner.imag) for corner in corners)


def central_square(width: int, height: int) -> Quad:
    """The largest square in the middle of a photo."""
    left, top, right, bottom = central_box(width, height)
    return (left, top), (left, bottom), (right, bottom), (right, top)


# Squares as similarities: points are complex numbers, so that one factor turns and scales


def _axis(quad: Quad) -> complex:
    """The top side, from left to right."""
    return complex(*quad[3]) - complex(*quad[0])


def _similarity(origin: complex, factor: complex) -> tuple[float, ...]:
    """PIL's six affine coefficients of p -> origin + factor p, from an output point to the input point it shows."""
    return factor.real, -factor.imag, origin.real, factor.imag, factor.real, origin.imag


def _warp(image: Image.Image, size: tuple[int, int], coefficients: tuple[float, ...]) -> Image.Image:
    """RGB image of that size, each pixel interpolated at its mapped place; black where that is outside."""
    # In floats, because PIL cuts off fractions: 8-bit interpolation would darken by half a level
    bands = [band.convert("F").point(lambda level: level + 0.5) for band in image.split()]
    moved = [band.transform(size, Image.Transform.AFFINE, coefficients, Image.Resampling.BILINEAR) for band in bands]
    return Image.merge("RGB", [band.convert("L") for band in moved])


def _mask(opacity: np.ndarray) -> Image.Image:
    """PIL's mask from an opacity [H, W] in 0..1."""
    return Image.fromarray((255 * opacity + 0.5).astype(np.uint8))


def _bounds(quad: Quad) -> np.ndarray:
    """The smallest box of whole pixels, [[left, top], [right, bottom]], that holds a quad."""
    return np.stack([np.floor(np.min(quad, axis=0)), np.ceil(np.max(quad, axis=0))]).astype(int)


def _upright(image: Image.Image, quad: Quad, least: int) -> Image.Image:
    """The quad's content turned upright, shrunk by the largest whole factor that leaves at least ``least`` pixels."""
    axis = _axis(quad)
    shrink = max(1, int(abs(axis) // least))
    side = round(abs(axis) / shrink)

    # The box around the quad in 1/shrink of its size, with reflected margins [x, y] where it lies outside
    wanted = _bounds(quad)
    there = wanted.clip(0, image.size)
    before, after = -(-abs(wanted - there) // shrink)
    pixels = np.asarray(image.reduce(shrink, tuple(there.flat)))
    pixels = np.pad(pixels, ((before[1], after[1]), (before[0], after[0]), (0, 0)), mode="symmetric")
    around = Image.fromarray(pixels)  # and blurred there: a mirrored eye is no eye
    if before.any() or after.any():
        radius = SOFTENING * abs(axis) / shrink
        places = map(np.arange, around.size)
        x, y = (
            np.maximum(low - place, place - (len(place) - 1 - high)).clip(0)
            for place, low, high in zip(places, before, after, strict=True)
        )
        opacity = (np.hypot(x, y[:, None]) / radius).clip(0, 1)
        around = Image.composite(around.filter(ImageFilter.GaussianBlur(radius)), around, _mask(opacity))
    origin = complex(*there[0]) - shrink * complex(*before)
    return _warp(around, (side, side), _similarity((complex(*quad[0]) - origin) / shrink, axis / side / shrink))


def _fade(size: tuple[int, int], quad: Quad, side: int) -> Image.Image:
    """Opacity of a pasted square, side x side, falling smoothly to 0 at each edge that has photo beyond it."""
    inward = ((np.arange(side) + 0.5) / side / FEATHER).clip(0, 1)
    ramp = inward**2 * (3 - 2 * inward)

    def on_border(edge: tuple) -> bool:  # on or beyond one of the photo's four sides
        return any(
            max(ends) <= 0 or min(ends) >= length for ends, length in zip(zip(*edge, strict=True), size, strict=True)
        )

    edges = zip(quad, quad[1:] + quad[:1], strict=True)
    left, bottom, right, top = (np.ones(side) if on_border(edge) else ramp for edge in edges)
    return _mask(np.outer(top * bottom[::-1], left * right[::-1]))
