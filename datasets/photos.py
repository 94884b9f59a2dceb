"""Photographs of any size: the square crops that a model takes, and the way back into the photograph."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter

from datasets.alignment import MIN_SIDE, Quad, central_square, face_square, read_landmarks
from datasets.images import fit, image_names, read_image, to_rgb
from dbae.config import UserError

__all__ = ["Photo", "photo_paths", "read_landmarks", "read_photo"]

FEATHER = 1 / 12  # part of the square's side over which a pasted edge fades
SOFTENING = 1 / 16  # blur of what is reflected, in the same measure
_SMOOTH = 1024  # pixels up to which a pasted square is enlarged bicubically; beyond that bilinear looks the same


@dataclass(frozen=True)
class Photo:
    """A photograph with the square of it that a model sees."""

    path: str
    image: Image.Image  # RGB, upright, full size
    quad: Quad  # the square's corners: its top left, bottom left, bottom right, top right; pixel edges are integers

    def crop(self, size: int) -> Image.Image:
        """The square as an upright size x size RGB image, antialiased; what is outside of the photo is its reflection.

        The central square is cut exactly as images of a data set are (``datasets.images.fit``).
        """
        if self.quad == central_square(*self.image.size):
            return fit(self.image, size)
        return fit(_upright(self.image, self.quad, 2 * size), size)

    def paste(self, edited: Image.Image) -> Image.Image:
        """A copy of the photo with the edited square, of any size, in its place, faded in over FEATHER of its side.

        Nothing changes outside of the square. A side along or beyond the photo's border does not fade.
        """
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
    """Paths of the photos: files as given, and all images under each folder in natural order.

    Raises UserError if something is missing, or a folder holds no image.
    """
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

    ``landmarks`` are (x, y) of left eye, right eye, nose, left and right corner of the mouth, as seen in the picture,
    in pixels of the upright photo, whose top left corner is (0, 0). Raises UserError naming the file if it is no image
    or is under 8 pixels on a side, or if the landmarks are no face in it.
    """
    image = read_image(path, upright=True)
    if min(image.size) < MIN_SIDE:
        raise UserError(f"{path}: expected at least {MIN_SIDE} pixels on a side, got {image.width}x{image.height}")
    try:
        square = central_square(*image.size) if landmarks is None else face_square(landmarks, *image.size)
        return Photo(path, image, square)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


# Squares as similarities: points are complex numbers, so that one factor turns and scales


def _axis(quad: Quad) -> complex:
    """The top side, from left to right."""
    return complex(*quad[3]) - complex(*quad[0])


def _similarity(origin: complex, factor: complex) -> tuple[float, ...]:
    """PIL's six affine coefficients of p -> origin + factor p, from an output point to the input point it shows."""
    return factor.real, -factor.imag, origin.real, factor.imag, factor.real, origin.imag


def _warp(image: Image.Image, size: tuple[int, int], coefficients: tuple[float, ...]) -> Image.Image:
    """RGB image of that size, each pixel interpolated at its mapped place; black where that is outside.

    In floats, because PIL cuts off fractions: 8-bit interpolation would darken by half a level.
    """
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
    """The quad's content turned upright, shrunk by the largest whole factor that leaves at least ``least`` pixels.

    Where the quad is outside of the photo, the photo is reflected, and blurred there: a mirrored eye is no eye.
    """
    axis = _axis(quad)
    shrink = max(1, int(abs(axis) // least))
    side = round(abs(axis) / shrink)

    # The box around the quad in 1/shrink of its size, with reflected margins [x, y] where it lies outside
    wanted = _bounds(quad)
    there = wanted.clip(0, image.size)
    before, after = -(-abs(wanted - there) // shrink)
    pixels = np.asarray(image.reduce(shrink, tuple(there.flat)))
    pixels = np.pad(pixels, ((before[1], after[1]), (before[0], after[0]), (0, 0)), mode="symmetric")
    around = Image.fromarray(pixels)
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
