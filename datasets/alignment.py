"""Five points of a face: the files that hold them, and the square that FFHQ's alignment cuts around them."""

import cmath
import json
import os
import reprlib
from collections.abc import Sequence
from typing import Any

from datasets.images import central_box
from datasets.labels import read_csv, read_text
from dbae.config import UserError

Point = tuple[float, float]
Landmarks = tuple[Point, ...]  # of the five LANDMARKS
Quad = tuple[Point, Point, Point, Point]

LANDMARKS = ("left_eye", "right_eye", "nose", "left_mouth", "right_mouth")  # left and right as seen in the picture
MIN_SIDE = 8  # pixels


def read_landmarks(path: str) -> dict[str, Landmarks]:
    """Five (x, y) in pixels per image, in the order of LANDMARKS, by the image's file name without folders.

    ``path`` is a .json of {"a.jpg": [[x, y], ...]} or a .csv with a header and rows of a file name and ten numbers.
    Raises UserError naming the file, the row and what was expected.
    """
    ending = os.path.splitext(path)[1].lower()
    if ending not in (".json", ".csv"):
        raise UserError(f"{path}: expected landmarks in a .json or .csv file")
    found: dict[str, Landmarks] = {}
    for name, value in _json_pairs(path) if ending == ".json" else _csv_pairs(path):
        image = os.path.basename(name)
        if image in found:
            raise UserError(f"{path}: expected landmarks once for every file name, got {image!r} twice")
        try:
            found[image] = five_points(value)
        except UserError as error:
            raise UserError(f"{path}: {name!r}: {error}") from None
    return found


def five_points(landmarks: Sequence[Sequence[float]]) -> Landmarks:
    """The landmarks as pairs of floats. Raises UserError unless they are five pairs of finite numbers."""
    try:
        points = tuple((float(x), float(y)) for x, y in landmarks if {type(x), type(y)}.isdisjoint((bool, str)))
        if len(landmarks) == len(points) == len(LANDMARKS) and all(cmath.isfinite(complex(*point)) for point in points):
            return points
    except (TypeError, ValueError, OverflowError):
        pass
    raise UserError(f"expected five pairs of finite numbers ({', '.join(LANDMARKS)}), got {reprlib.repr(landmarks)}")


def face_square(landmarks: Sequence[Sequence[float]], width: int, height: int) -> Quad:
    """Corners of the square around a face in a photo of that size, turned with the face, as FFHQ was aligned.

    Its sides run along e - rot90(m), with e from eye to eye and m from between the eyes to the middle of the mouth's
    corners; half a side is the longer of 2 |e| and 1.8 |m|, and the centre lies m / 10 below the eyes (Karras et al.
    2019, appendix A). The corners are its top left, bottom left, bottom right and top right, in the landmarks'
    coordinates, and may lie outside of the photo. Raises UserError for points that form no face, a face that is not in
    the photo, or one whose square is under 8 pixels wide.
    """
    points = five_points(landmarks)
    if any(not (-width <= x <= 2 * width and -height <= y <= 2 * height) for x, y in points):
        raise UserError(f"expected landmarks in a photo of {width}x{height} pixels, got {_listed(points)}")
    left_eye, right_eye, _, left_mouth, right_mouth = (complex(*point) for point in points)
    across, eyes = right_eye - left_eye, (left_eye + right_eye) / 2
    down = (left_mouth + right_mouth) / 2 - eyes
    level = -1j * down  # rot90(m) is 1j * m
    axis = across + level
    if not (down and axis) or ((across + right_mouth - left_mouth) * level.conjugate()).real < 0:
        expected = f"{', '.join(LANDMARKS)} as seen in the picture"
        raise UserError(f"expected {expected}, no face has them at {_listed(points)}")
    axis *= max(2.0 * abs(across), 1.8 * abs(down)) / abs(axis)
    centre = eyes + 0.1 * down
    if not (0 <= centre.real <= width and 0 <= centre.imag <= height and 2 * abs(axis) >= MIN_SIDE):
        place = f"one of {2 * abs(axis):.0f} pixels around ({centre.real:.0f}, {centre.imag:.0f})"
        raise UserError(f"expected a face of at least {MIN_SIDE} pixels in a photo of {width}x{height}, got {place}")
    turned = 1j * axis
    corners = (centre - axis - turned, centre - axis + turned, centre + axis + turned, centre + axis - turned)
    return tuple((corner.real, corner.imag) for corner in corners)


def central_square(width: int, height: int) -> Quad:
    """Corners of the largest square in the middle of a photo, in the order of ``face_square``."""
    left, top, right, bottom = central_box(width, height)
    return (left, top), (left, bottom), (right, bottom), (right, top)


def _json_pairs(path: str) -> list[tuple[str, Any]]:
    expected = f"{path}: expected a JSON object of file names and five [x, y] each"
    try:
        found = json.loads(read_text(path), object_pairs_hook=tuple)  # a dict would hide names that come twice
    except (ValueError, RecursionError) as error:
        raise UserError(f"{expected}: {error}") from None
    if not isinstance(found, tuple):
        raise UserError(f"{expected}, got {reprlib.repr(found)}")
    return list(found)


def _csv_pairs(path: str) -> list[tuple[str, Any]]:
    table, columns = read_csv(path), [f"{name}_{axis}" for name in LANDMARKS for axis in "xy"]
    if len(table.names) != len(columns):
        raise UserError(f"{path}: expected the header file,{','.join(columns)}, got {len(table.names) + 1} columns")
    return list(zip(table.rows, table.numbers.reshape(-1, len(LANDMARKS), 2).tolist(), strict=True))


def _listed(points: Landmarks) -> str:
    return " ".join(f"({x:.4g}, {y:.4g})" for x, y in points)
