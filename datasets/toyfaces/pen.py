"""What the painters of toy faces share: colours, curves, the pen and the outline of the head.

All geometry is in head units: the origin is the middle of the head, x runs to the right, y downwards, and the crown and
the chin lie at y = -1 and y = 1. The frame shows 2.9 units. Shapes are filled polygons on an enlarged canvas.
"""

import colorsys
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from datasets.toyfaces.face import Face

Colour = tuple[int, int, int]
Points = np.ndarray | list[tuple[float, float]]

FRAME = 2.9
HEAD_AT = (1.45, 1.4)  # of the frame
WHITE, INK, DARK = (255, 252, 246), (48, 34, 36), (20, 8, 10)
SKIN_TONES = [(255, 229, 211), (247, 208, 178), (230, 178, 138), (192, 134, 95), (142, 94, 66)]
SIDES = (-1, 1)


# ---- colours


def mix(a: Colour, b: Colour, share: float) -> Colour:
    """From a (share 0) to b (share 1)."""
    return tuple(round(x + (y - x) * share) for x, y in zip(a, b, strict=True))


def hsv(hue: float, saturation: float, value: float) -> Colour:
    """The colour of a hue, a saturation and a value, each in 0..1."""
    return tuple(round(255 * channel) for channel in colorsys.hsv_to_rgb(hue, saturation, value))


class Palette(NamedTuple):
    """Colours that several parts of one face share; `shade` is darker and `light` lighter than the thing itself."""

    skin: Colour
    skin_shade: Colour
    skin_light: Colour
    blush: Colour
    lips: Colour
    hair: Colour
    hair_shade: Colour
    hair_light: Colour
    brow: Colour
    garment: Colour


def palette_of(face: Face) -> Palette:
    """The colours of one face."""
    place = face.skin_tone * (len(SKIN_TONES) - 1)
    below = min(int(place), len(SKIN_TONES) - 2)
    skin = mix(SKIN_TONES[below], SKIN_TONES[below + 1], place - below)
    hair = tuple(round(255 * channel) for channel in face.hair_rgb)
    return Palette(
        skin=skin,
        skin_shade=mix(skin, (120, 50, 40), 0.32),
        skin_light=mix(skin, WHITE, 0.28),
        blush=mix(skin, (236, 70, 80), 0.7),
        lips=(196, 30, 62) if face.lipstick else mix(skin, (176, 62, 66), 0.55),
        hair=hair,
        hair_shade=mix(hair, DARK, 0.4),
        hair_light=mix(hair, (255, 236, 200), 0.28),
        brow=mix(hair, DARK, 0.5),
        garment=hsv(face.garment_hue, 0.5, 0.72),
    )


# ---- geometry: paths are arrays of points, [n, 2]

_TURN = np.linspace(0, 2 * np.pi, 28, endpoint=False)
CIRCLE = np.stack([np.cos(_TURN), np.sin(_TURN)], axis=1)
_T = np.linspace(0, 1, 11)[:, None]
_THROUGH = np.hstack([(2 * _T - 1) * (_T - 1), 4 * _T * (1 - _T), _T * (2 * _T - 1)])


def arc(start: tuple, middle: tuple, end: tuple) -> np.ndarray:
    """A parabola from start through middle to end."""
    return _THROUGH @ np.array((start, middle, end))


def ellipse(x: float, y: float, rx: float, ry: float) -> np.ndarray:
    """An ellipse about (x, y) with the half axes rx and ry."""
    return CIRCLE * (rx, ry) + (x, y)


@lru_cache
def _taper(count: int) -> np.ndarray:
    """Widths, relative to the middle, of a stroke that thins out towards its ends."""
    return np.sin(np.linspace(0.25, np.pi - 0.25, count))[:, None]


def _ribbon(path: np.ndarray, width: float) -> np.ndarray:
    """Outline of a tapered stroke along an open path."""
    along = np.empty_like(path)
    along[1:-1] = path[2:] - path[:-2]
    along[0], along[-1] = path[1] - path[0], path[-1] - path[-2]
    across = along[:, ::-1] * (-1, 1) / np.sqrt((along**2).sum(axis=1, keepdims=True))
    side = across * _taper(len(path)) * (width / 2)
    return np.concatenate([path + side, (path - side)[::-1]])


class Pen:
    """Fills shapes given in head units. A turned pen follows the tilt and the yaw of the head.

    Yaw moves the midline of the face sideways and leaves the head's edges where they are, as on a cylinder.
    """

    def __init__(self, image: Image.Image, face: Face, turned: bool):
        self._draw = ImageDraw.Draw(image, "RGBA")
        angle = np.deg2rad(face.tilt) if turned else 0.0
        scale = image.width / FRAME
        self._matrix = scale * np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
        self._origin = scale * (np.array(HEAD_AT) + (face.shift_x, face.shift_y))
        self._yaw = face.yaw if turned else 0.0
        self._head_width = face.head_width

    def fill(self, colour: Colour, *paths: Points, alpha: int = 255) -> None:
        """Fills the polygon that runs along the paths, one after the other."""
        points = np.concatenate(paths)
        points[:, 0] += self._yaw * np.maximum(0, 1 - (points[:, 0] / self._head_width) ** 2)
        pixels = points @ self._matrix + self._origin
        self._draw.polygon(pixels.ravel().tolist(), (*colour, alpha))

    def stroke(self, colour: Colour, path: Points, width: float, alpha: int = 255) -> None:
        self.fill(colour, _ribbon(np.asarray(path), width), alpha=alpha)

    def ellipse(self, colour: Colour, x: float, y: float, rx: float, ry: float, alpha: int = 255) -> None:
        self.fill(colour, ellipse(x, y, rx, ry), alpha=alpha)

    def glow(self, colour: Colour, x: float, y: float, rx: float, ry: float, alpha: int) -> None:
        """A soft spot: alpha is roughly its strength in the middle."""
        for grow in (1, 0.85, 0.7, 0.55, 0.4, 0.25):
            self.ellipse(colour, x, y, rx * grow, ry * grow, alpha // 6)


def skull(face: Face, angles: np.ndarray) -> np.ndarray:
    """The head's outline at angles from the right over the chin: a superellipse, its lower half shaped by the jaw."""
    cos, sin = np.cos(angles), np.sin(angles)
    power = np.where(sin > 0, 2 / _jaw(face), 2 / 2.2)
    x = face.head_width * np.sign(cos) * np.abs(cos) ** power
    return np.stack([x, np.sign(sin) * np.abs(sin) ** power], axis=1)


def _jaw(face: Face) -> float:
    """Exponent of the superellipse of the lower head: 2 is an ellipse, more is squarer."""
    return 1.65 + 1.2 * face.jaw_fullness + 0.2 * face.male
