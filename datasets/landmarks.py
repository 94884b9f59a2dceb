"""Five landmarks of a face in each of several photos: their files, and which are whose."""

import cmath
import json
import os
import reprlib
from collections.abc import Sequence
from itertools import takewhile

from datasets.label_files import read_labels, read_text
from datasets.labels import image_key
from dbae.config import UserError

Point = tuple[float, float]
Landmarks = tuple[Point, ...]  # of the five LANDMARKS

LANDMARKS = ("left_eye", "right_eye", "nose", "left_mouth", "right_mouth")  # left and right as seen in the picture


def read_landmarks(path: str) -> dict[str, Landmarks]:
    """Five (x, y) in pixels per image, in the order of LANDMARKS, by the image's name as it is written there.

    ``path`` is a .json of {"a.jpg": [[x, y], ...]} or a .csv with a header and rows of a file name and ten numbers.
    """
    ending = os.path.splitext(path)[1].lower()
    if ending == ".json":
        text = read_text(path)
        try:
            rows = json.loads(text, object_pairs_hook=tuple)  # a dict would hide names that come twice
        except (ValueError, RecursionError):
            rows = None
        if not isinstance(rows, tuple):
            raise UserError(f"{path}: expected a JSON object of file names and five [x, y] each")
    elif ending == ".csv":
        table = read_labels(path)
        if len(table.names) != 2 * len(LANDMARKS):
            columns = ",".join(f"{name}_{axis}" for name in LANDMARKS for axis in "xy")
            raise UserError(f"{path}: expected the header file,{columns}, got {len(table.names) + 1} columns")
        rows = zip(table.rows, table.numbers.reshape(-1, len(LANDMARKS), 2).tolist(), strict=True)
    else:
        raise UserError(f"{path}: expected landmarks in a .json or .csv file")
    found: dict[str, Landmarks] = {}
    for name, value in rows:
        if name in found:
            raise UserError(f"{path}: expected landmarks once for every file name, got {name!r} twice")
        try:
            found[name] = five_points(value)
        except UserError as error:
            raise UserError(f"{path}: {name!r}: {error}") from None
    return found


def match_landmarks(landmarks: dict[str, Landmarks], paths: Sequence[str]) -> list[Landmarks]:
    """The landmarks of each photo: those whose name has the same file name, and the most of its folders.

    Raises UserError for a photo without any, or where several photos or several names fit.
    """
    names = {name: _from_the_end(name) for name in landmarks}
    taken, chosen = {}, []
    for path in map(os.path.abspath, paths):
        parts = _from_the_end(path)
        shared = {name: _common(parts, other) for name, other in names.items() if other[0] == parts[0]}
        if not shared:
            raise UserError(f"landmarks: expected some for every image, there are none for {path}")
        best = [name for name, count in shared.items() if count == max(shared.values())]
        if len(best) > 1 or taken.setdefault(best[0], path) != path:
            raise UserError(f"landmarks: expected folders in the names, {best[0]!r} is not the only one for {path}")
        chosen.append(landmarks[best[0]])
    return chosen


def five_points(landmarks: Sequence[Sequence[float]]) -> Landmarks:
    """The landmarks as pairs of floats. Raises UserError unless they are five pairs of finite numbers."""
    try:
        points = tuple((float(x), float(y)) for x, y in landmarks if {type(x), type(y)}.isdisjoint((bool, str)))
        if len(landmarks) == len(points) == len(LANDMARKS) and all(cmath.isfinite(complex(*point)) for point in points):
            return points
    except (TypeError, ValueError, OverflowError):
        pass
    raise UserError(f"expected five pairs of finite numbers ({', '.join(LANDMARKS)}), got {reprlib.repr(landmarks)}")


def _from_the_end(path: str) -> list[str]:
    """File name, folder, and so on."""
    return image_key(path).split("/")[::-1]


def _common(parts: list[str], other: list[str]) -> int:
    """How many parts two paths share before the first that differs."""
    return len(list(takewhile(lambda pair: pair[0] == pair[1], zip(parts, other, strict=False))))
