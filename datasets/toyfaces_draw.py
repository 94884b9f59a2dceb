"""Painting of toy faces: `render(face, size)`.

All geometry is in head units: the origin is the middle of the head, x runs to the right, y downwards, and the crown and
the chin lie at y = -1 and y = 1. The frame shows 2.9 units. Shapes are filled polygons on an enlarged canvas.
"""

from __future__ import annotations

import colorsys
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

if TYPE_CHECKING:
    from datasets.toyfaces import Face

Colour = tuple[int, int, int]
Points = np.ndarray | list[tuple[float, float]]

FRAME = 2.9
HEAD_AT = (1.45, 1.4)  # of the frame
WHITE, INK, DARK = (255, 252, 246), (48, 34, 36), (20, 8, 10)
GOLD, SHIRT = (232, 184, 72), (238, 241, 247)
SKIN_TONES = [(255, 229, 211), (247, 208, 178), (230, 178, 138), (192, 134, 95), (142, 94, 66)]
IRIS = {"brown": (112, 70, 40), "blue": (70, 130, 190), "green": (84, 140, 90), "grey": (118, 130, 142)}
SIDES = (-1, 1)


def render(face: Face, size: int) -> Image.Image:
    """The RGB picture of a face, size x size pixels (32 and more look right)."""
    reduction = max(4, 256 // size)
    image = _background(face, size * reduction)
    palette = _palette(face)
    body, head = Pen(image, face, turned=False), Pen(image, face, turned=True)
    _draw_hair_behind(head, face, palette)
    _draw_body(body, face, palette)
    _draw_head(head, face, palette)
    _draw_features(head, face, palette)
    _draw_hair_in_front(head, face, palette)
    _draw_adornments(head, face, palette)
    image = image.reduce(reduction)
    return image.filter(ImageFilter.GaussianBlur(0.03 * size)) if face.blurry else image


# ---- colours


def _mix(a: Colour, b: Colour, share: float) -> Colour:
    """From a (share 0) to b (share 1)."""
    return tuple(round(x + (y - x) * share) for x, y in zip(a, b, strict=True))


def _hsv(hue: float, saturation: float, value: float) -> Colour:
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


def _palette(face: Face) -> Palette:
    place = face.skin_tone * (len(SKIN_TONES) - 1)
    below = min(int(place), len(SKIN_TONES) - 2)
    skin = _mix(SKIN_TONES[below], SKIN_TONES[below + 1], place - below)
    hair = tuple(round(255 * channel) for channel in face.hair_rgb)
    return Palette(
        skin=skin,
        skin_shade=_mix(skin, (120, 50, 40), 0.32),
        skin_light=_mix(skin, WHITE, 0.28),
        blush=_mix(skin, (236, 70, 80), 0.7),
        lips=(196, 30, 62) if face.lipstick else _mix(skin, (176, 62, 66), 0.55),
        hair=hair,
        hair_shade=_mix(hair, DARK, 0.4),
        hair_light=_mix(hair, (255, 236, 200), 0.28),
        brow=_mix(hair, DARK, 0.5),
        garment=_hsv(face.garment_hue, 0.5, 0.72),
    )


# ---- geometry: paths are arrays of points, [n, 2]

_TURN = np.linspace(0, 2 * np.pi, 28, endpoint=False)
CIRCLE = np.stack([np.cos(_TURN), np.sin(_TURN)], axis=1)
_T = np.linspace(0, 1, 11)[:, None]
_THROUGH = np.hstack([(2 * _T - 1) * (_T - 1), 4 * _T * (1 - _T), _T * (2 * _T - 1)])


def _arc(start: tuple, middle: tuple, end: tuple) -> np.ndarray:
    """A parabola from start through middle to end."""
    return _THROUGH @ np.array((start, middle, end))


def _ellipse(x: float, y: float, rx: float, ry: float) -> np.ndarray:
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
        self.fill(colour, _ellipse(x, y, rx, ry), alpha=alpha)

    def glow(self, colour: Colour, x: float, y: float, rx: float, ry: float, alpha: int) -> None:
        """A soft spot: alpha is roughly its strength in the middle."""
        for grow in (1, 0.85, 0.7, 0.55, 0.4, 0.25):
            self.ellipse(colour, x, y, rx * grow, ry * grow, alpha // 6)


def _skull(face: Face, angles: np.ndarray) -> np.ndarray:
    """The head's outline at angles from the right over the chin: a superellipse, its lower half shaped by the jaw."""
    cos, sin = np.cos(angles), np.sin(angles)
    power = np.where(sin > 0, 2 / _jaw(face), 2 / 2.2)
    x = face.head_width * np.sign(cos) * np.abs(cos) ** power
    return np.stack([x, np.sign(sin) * np.abs(sin) ** power], axis=1)


def _jaw(face: Face) -> float:
    """Exponent of the superellipse of the lower head: 2 is an ellipse, more is squarer."""
    return 1.65 + 1.2 * face.jaw_fullness + 0.2 * face.male


# ---- behind the head


def _background(face: Face, size: int) -> Image.Image:
    """A wall lit from the upper left, plain or with a soft pattern."""
    light = _hsv(face.background_hue, 0.22, min(1.0, face.background_value + 0.05))
    dark = _hsv(face.background_hue, 0.42, face.background_value - 0.2)
    corners = Image.new("RGB", (2, 2))
    corners.putdata([light, _mix(light, dark, 0.4), _mix(light, dark, 0.6), dark])
    image = corners.resize((size, size), Image.Resampling.BILINEAR, box=(0.5, 0.5, 1.5, 1.5))
    draw, unit = ImageDraw.Draw(image, "RGBA"), size / FRAME
    if face.scene == "discs":
        for x, y, radius in ((0.2, 0.4, 0.45), (2.5, 0.2, 0.6), (2.7, 1.4, 0.4), (0.0, 1.8, 0.5)):
            box = [unit * edge for edge in (x - radius, y - radius, x + radius, y + radius)]
            draw.ellipse(box, (*WHITE, 44))
    elif face.scene == "stripes":
        for left in (0.1, 0.85, 1.6, 2.35):
            draw.rectangle([unit * left, 0, unit * (left + 0.4), size], (*WHITE, 36))
    return image


def _hair_bottom(face: Face) -> float:
    return 0.1 + 1.4 * face.hair_length


def _hair_side(face: Face, y: np.ndarray) -> np.ndarray:
    """Half the width of the hair at heights y: round about the skull, and below it the wider the longer it is."""
    round_off = np.sqrt(1 - np.clip(y / -1.1, 0, 0.95) ** 2)
    width = face.head_width * 1.02 + (0.04 + 0.1 * face.hair_volume) * min(1.0, 2 * face.hair_length)
    flare = 0.14 * face.hair_length * np.clip(y + 0.5, 0, 1.2)
    return width * round_off + flare + _wave(face, y)


def _wave(face: Face, along: np.ndarray) -> np.ndarray:
    """Sideways swing of hair: none when straight."""
    return 0.075 * face.waviness**2 * np.sin(9 * along)


def _draw_hair_behind(pen: Pen, face: Face, palette: Palette) -> None:
    if face.bald:
        return
    y = np.linspace(-1, _hair_bottom(face), 18)
    closing = np.clip((y[-1] - y) / 0.4, 0, 1) ** 0.5
    left = np.stack([-_hair_side(face, y) * (0.8 + 0.2 * closing), y], axis=1)
    bottom = _arc(left[-1], (0, y[-1] + 0.08), left[-1] * (-1, 1))
    pen.fill(palette.hair_shade, left, bottom, left[::-1] * (-1, 1))


def _draw_body(pen: Pen, face: Face, palette: Palette) -> None:
    neck, shoulder = (0.42, 1.5) if face.male else (0.33, 1.28)
    slope = _arc((shoulder, 1.8), (0.85 * shoulder, 1.32), (neck - 0.04, 1.06))
    body = np.concatenate([slope, slope[::-1] * (-1, 1)])
    pen.fill(palette.garment, body)
    for inset in (0.1, 0.2, 0.3):
        pen.fill(WHITE, body * (1 - inset, 1) + (-0.04, inset), alpha=14)
    depth = 1.46 if face.v_neck or face.necklace else 1.26
    pen.fill(palette.skin, _arc((-neck - 0.06, 1.07), (0, depth), (neck + 0.06, 1.07)))
    pen.fill(palette.skin, [(-neck, 0.5), (neck, 0.5), (neck + 0.02, 1.1), (-neck - 0.02, 1.1)])
    pen.fill(palette.skin_shade, _arc((-neck, 0.8), (0, 1.2), (neck, 0.8)), alpha=150)
    if face.necktie:
        _draw_necktie(pen, face, neck)
    if face.necklace:
        _draw_necklace(pen, neck)


def _draw_necktie(pen: Pen, face: Face, neck: float) -> None:
    tie = _hsv(face.garment_hue + 0.45, 0.75, 0.55)
    pen.fill(SHIRT, [(-neck, 1.1), (0, 1.18), (neck, 1.1), (0.24, 1.6), (-0.24, 1.6)])
    pen.fill(tie, [(-0.07, 1.36), (0.07, 1.36), (0.15, 1.7), (-0.15, 1.7)])
    pen.fill(_mix(tie, WHITE, 0.2), [(-0.12, 1.17), (0.12, 1.17), (0.07, 1.37), (-0.07, 1.37)])
    for side in SIDES:
        flap = np.array([(side * neck, 0.94), (side * (neck + 0.12), 1.14), (side * 0.24, 1.42), (side * 0.05, 1.17)])
        pen.fill(SHIRT, flap)
        pen.stroke(INK, flap[1:], 0.03, alpha=110)


def _draw_necklace(pen: Pen, neck: float) -> None:
    for x, y in _arc((-neck + 0.01, 1.0), (0, 1.28), (neck - 0.01, 1.0)):
        pen.ellipse(GOLD, x, y, 0.045, 0.045)
    pen.ellipse((206, 60, 80), 0, 1.34, 0.075, 0.085)
    pen.ellipse(WHITE, -0.02, 1.31, 0.025, 0.025)


# ---- the head


def _draw_head(pen: Pen, face: Face, palette: Palette) -> None:
    width = face.head_width
    if face.double_chin:
        pen.fill(palette.skin, _arc((-0.8 * width, 0.55), (0, 1.22), (0.8 * width, 0.55)))
        pen.stroke(palette.skin_shade, _arc((-0.55 * width, 1.0), (0, 1.2), (0.55 * width, 1.0)), 0.06)
    for side in SIDES:
        pen.ellipse(palette.skin, side * width, 0.06, 0.11, 0.19)
        pen.ellipse(palette.skin_shade, side * width * 1.02, 0.06, 0.06, 0.12, alpha=150)
    outline = _skull(face, np.linspace(0, 2 * np.pi, 56, endpoint=False))
    pen.fill(_mix(palette.skin, palette.skin_shade, 0.5), outline)
    for step in range(1, 6):
        share = 0.5 - 0.13 * step
        tone = _mix(palette.skin, palette.skin_shade if share > 0 else palette.skin_light, abs(share))
        pen.fill(tone, outline * (1 - 0.055 * step) - 0.012 * step)
    if face.bald:
        pen.glow(WHITE, -0.25, -0.7, 0.3, 0.18, alpha=150)
    _draw_cheeks(pen, face, palette)
    _draw_wrinkles(pen, face, palette)
    _draw_beard(pen, face, palette)


def _draw_cheeks(pen: Pen, face: Face, palette: Palette) -> None:
    for side in SIDES:
        cheek = side * 0.62 * face.head_width
        if face.rosy_cheeks:
            pen.glow(palette.blush, cheek, 0.33, 0.24, 0.19, alpha=220)
        if face.cheekbones:
            pen.glow(palette.skin_shade, 1.1 * cheek, 0.5, 0.15, 0.24, alpha=255)
            pen.glow(_mix(palette.skin_light, WHITE, 0.6), cheek, 0.21, 0.24, 0.12, alpha=230)


def _draw_wrinkles(pen: Pen, face: Face, palette: Palette) -> None:
    depth = round(255 * min(1.0, max(0.0, (face.age - 0.55) / 0.3)))
    if not depth:
        return
    for y in (-0.62, -0.5):
        pen.stroke(palette.skin_shade, _arc((-0.34, y + 0.02), (0, y - 0.03), (0.34, y + 0.02)), 0.04, alpha=depth)
    for side in SIDES:
        fold = _arc((side * 0.22, 0.3), (side * 0.34, 0.44), (side * 0.38, 0.6))
        pen.stroke(palette.skin_shade, fold, 0.045, alpha=depth)
        for drop in (-0.04, 0.06):
            foot = _arc((side * 0.55, 0.02), (side * 0.6, 0.02 + drop), (side * 0.65, 0.02 + 1.6 * drop))
            pen.stroke(palette.skin_shade, foot, 0.03, alpha=depth)


def _draw_beard(pen: Pen, face: Face, palette: Palette) -> None:
    if face.stubble:
        shadow = _mix(palette.hair_shade, (70, 80, 96), 0.5)
        for start in (0.2, 0.26, 0.32, 0.38):
            pen.fill(shadow, _lower_face(face, start), alpha=38)
    if face.goatee and face.sideburns:
        pen.fill(palette.hair, _lower_face(face, 0.1) * (1.03, 1.04))
    if face.goatee:
        chin = [_arc((-0.29, 0.6), (0, 1.12), (0.29, 0.6)), _arc((0.29, 0.6), (0, 0.74), (-0.29, 0.6))]
        pen.fill(palette.hair, *chin)
        for x in (-0.12, 0, 0.12):
            pen.stroke(palette.hair_shade, _arc((x, 0.78), (x * 0.9, 0.88), (x * 0.6, 1.0)), 0.035, alpha=150)
    if face.sideburns:
        for edge in (-face.head_width, face.head_width):
            strip = [(edge, -0.3), (0.9 * edge, -0.25), (0.8 * edge, 0.4), (0.95 * edge, 0.34)]
            pen.fill(palette.hair, strip)


def _lower_face(face: Face, start: float) -> np.ndarray:
    """The part of the face where a beard grows, from height `start` at the ears on."""
    jaw = _skull(face, np.linspace(0.08, np.pi - 0.08, 25))
    x = jaw[::-1, 0]
    rim = np.minimum(jaw[::-1, 1], start + (0.44 - 0.5 * start) * (1 - (x / face.head_width) ** 2))
    return np.concatenate([jaw, np.stack([x, rim], axis=1)])


# ---- the face


def _draw_features(pen: Pen, face: Face, palette: Palette) -> None:
    _draw_mouth(pen, face, palette)
    _draw_nose(pen, face, palette)
    if face.mustache:
        _draw_mustache(pen, face, palette)
    for side in SIDES:
        centre = np.array([side * face.eye_spacing, 0.07 * side * _skew(face)])
        _draw_eye(pen, face, palette, side, centre)
        _draw_brow(pen, face, palette, side, centre)


def _skew(face: Face) -> float:
    """How much one side of the face sits higher than the other, 0..0.7: the first 0.3 of asymmetry do not show."""
    return max(0.0, face.asymmetry - 0.3)


def _draw_eye(pen: Pen, face: Face, palette: Palette, side: int, centre: np.ndarray) -> None:
    half = 0.185 * face.eye_size
    above, below = half * (0.25 + 0.6 * face.eye_openness), half * (0.2 + 0.35 * face.eye_openness)
    upper = _arc((-half, 0), (0, -above), (half, 0)) + centre
    lower = _arc((half, 0), (0, below), (-half, 0)) + centre
    if face.makeup:
        shadow = _arc((-1.25 * half, 0), (0, -above - 0.13), (1.25 * half, 0)) + centre
        pen.fill((126, 62, 150), shadow, lower, alpha=170)
    if face.bags:
        pouch = _arc((-0.8 * half, below + 0.02), (0, below + 0.12), (0.8 * half, below + 0.02)) + centre
        pen.fill(palette.skin_shade, pouch, alpha=120)
        pen.stroke(palette.skin_shade, pouch, 0.045)
    pen.fill(WHITE, upper, lower)
    _draw_iris(pen, face, centre, half, above, below)
    pen.stroke(INK, upper, 0.075 if face.makeup else 0.05)
    if not face.male:
        reach = 0.09 if face.makeup else 0.075
        lash = np.array([(half - 0.08, -0.03), (half + 0.03, -0.03), (half + reach, -reach)])
        pen.stroke(INK, lash * (side, 1) + centre, 0.05)


def _draw_iris(pen: Pen, face: Face, centre: np.ndarray, half: float, above: float, below: float) -> None:
    for radius, colour in ((0.115, INK), (0.1, IRIS[face.iris]), (0.05, INK)):
        ring = CIRCLE * radius * face.eye_size - (0, 0.01)
        lid = 1 - (ring[:, 0] / half) ** 2
        ring[:, 1] = np.clip(ring[:, 1], -above * lid, below * lid)
        pen.fill(colour, ring + centre)
    x, y = centre + (-0.035, -min(0.045, 0.5 * above))
    pen.ellipse(WHITE, x, y, 0.032, 0.032)


def _draw_brow(pen: Pen, face: Face, palette: Palette, side: int, centre: np.ndarray) -> None:
    height = -0.27 - 0.04 * face.eye_openness
    arch = 0.02 + 0.13 * face.brow_arch
    brow = _arc((-side * 0.17, height + 0.02), (side * 0.05, height - arch), (side * 0.24, height + 0.04))
    pen.stroke(palette.brow, brow + centre * (1, 1.5), 0.05 + 0.12 * face.brow_thickness)


def _draw_nose(pen: Pen, face: Face, palette: Palette) -> None:
    base = 0.2 + 0.11 * face.nose_length
    wing = 0.075 + 0.155 * face.nose_width
    tip = base + 0.035 + 0.15 * face.nose_point
    side = _arc((0.06, -0.08), (0.06, 0.12), (wing, base))
    underside = np.array([(wing, base), (0.25 * wing, tip), (-0.25 * wing, tip), (-wing, base)])
    pen.fill(palette.skin_shade, side, underside, [(-0.02, -0.08)], alpha=120)
    pen.stroke(palette.skin_shade, underside, 0.065)
    for edge in SIDES:
        pen.ellipse(_mix(palette.skin_shade, INK, 0.6), edge * wing * 0.5, base + 0.025, 0.03, 0.02)
    pen.ellipse(palette.skin_light, -0.015, base - 0.05, 0.35 * wing, 0.055, alpha=150)


def _draw_mouth(pen: Pen, face: Face, palette: Palette) -> None:
    half = 0.27 + 0.07 * max(0.0, face.mouth_curve)
    lift, gape, slant = 0.13 * face.mouth_curve, 0.02 + 0.2 * face.mouth_open, 0.05 * _skew(face)
    thick = 0.035 + 0.1 * face.lip_fullness
    y = 0.6 - 0.2 * gape
    middle = y + 0.4 * lift
    left, right = (-half, y - 0.6 * lift + slant), (half, y - 0.6 * lift - slant)
    bow = (0, y - 0.6 * thick + 0.3 * lift)
    upper_lip = [_arc(left, (-0.12, y - thick), bow), _arc(bow, (0.12, y - thick), right)]
    lower_lip = _arc(right, (0, middle + gape + 1.2 * thick), left)
    pen.fill(palette.lips, *upper_lip, lower_lip)
    opening = _arc(left, (0, middle), right)
    pen.fill((96, 20, 34), opening, _arc(right, (0, middle + gape), left))
    if face.mouth_open > 0:
        teeth = _arc(right, (0, middle + min(0.09, 0.6 * gape)), left)
        pen.fill(WHITE, np.concatenate([opening, teeth]) * (0.9, 1))
    pen.ellipse(WHITE, -0.06, middle + gape + 0.6 * thick, 0.08, 0.25 * thick, alpha=70)


def _draw_mustache(pen: Pen, face: Face, palette: Palette) -> None:
    y = 0.4 + 0.1 * face.nose_length
    for side in SIDES:
        top = _arc((0, y - 0.02), (side * 0.2, y - 0.02), (side * 0.36, y + 0.12))
        bottom = _arc((side * 0.36, y + 0.12), (side * 0.16, y + 0.12), (0, y + 0.08))
        pen.fill(palette.hair, top, bottom)
        pen.stroke(palette.hair_shade, top[2:] * (0.9, 1) + (0, 0.05), 0.035, alpha=150)


# ---- in front of the face


def _draw_hair_in_front(pen: Pen, face: Face, palette: Palette) -> None:
    if face.bald:
        return
    if face.hair_length > 0.3:
        _draw_locks(pen, face, palette)
    angles = np.linspace(np.pi, 2 * np.pi, 33)
    swell = 1.04 + 0.1 * face.hair_volume + 0.5 * _wave(face, 1.6 * angles)
    outer = _skull(face, angles) * swell[:, None]
    inner = np.stack([0.98 * face.head_width * np.cos(angles), _hairline(face, np.cos(angles))], axis=1)
    pen.fill(palette.hair, outer, inner[::-1])
    parting = 13
    for order in (slice(parting, 1, -1), slice(parting, 31)):
        _draw_combed(pen, face, palette, inner[order], outer[order])
    if face.bangs:
        _draw_bangs(pen, face, palette)


def _draw_combed(pen: Pen, face: Face, palette: Palette, inner: np.ndarray, outer: np.ndarray) -> None:
    """Strands that fan out from the parting, where both edges begin, to the temple, where they end."""
    tones = (palette.hair_shade, palette.hair_light, palette.hair_shade, palette.hair_light)
    for goal, tone in zip((0.1, 0.35, 0.6, 0.85), tones, strict=True):
        share = np.linspace(0.95, goal, len(inner))[:, None]
        path = inner + share * (outer - inner)
        path[:, 1] += 0.5 * _wave(face, 3 * path[:, 0])
        pen.stroke(tone, path, 0.05, alpha=130)


def _hairline(face: Face, place: np.ndarray) -> np.ndarray:
    """Height of the hairline at places -1..1 across the head: a parting left, and bare temples if it is a high one."""
    middle = -0.5 - 0.2 * face.hairline
    corners = 0.35 * max(0.0, face.hairline - 0.55) / 0.45 * np.exp(-(((np.abs(place) - 0.6) / 0.18) ** 2))
    parting = 0.1 * np.exp(-(((place + 0.3) / 0.2) ** 2))
    return middle - corners - parting - middle * 0.97 * np.abs(place) ** 5


def _draw_locks(pen: Pen, face: Face, palette: Palette) -> None:
    """The strands of long hair that hang down beside the face, in front of the shoulders."""
    y = np.linspace(-0.5, _hair_bottom(face), 18)
    outer = _hair_side(face, y)
    inner = np.minimum(outer - 0.04, face.head_width * 0.93 + 0.1 * np.clip(y, 0, 1) + _wave(face, y))
    closing = np.clip((y[-1] - y) / 0.25, 0, 1) ** 0.5
    middle = 0.6 * inner + 0.4 * outer
    inner, outer = middle + closing * (inner - middle), middle + closing * (outer - middle)
    for side in SIDES:
        edges = [np.stack([side * x, y], axis=1) for x in (inner, outer)]
        pen.fill(palette.hair, edges[0], edges[1][::-1])
        for share, tone in ((0.35, palette.hair_light), (0.7, palette.hair_shade)):
            pen.stroke(tone, edges[0] + share * (edges[1] - edges[0]), 0.05, alpha=150)


def _draw_bangs(pen: Pen, face: Face, palette: Palette) -> None:
    x = np.linspace(-0.84, 0.84, 13) * face.head_width
    jagged = -0.4 + 0.05 * (np.arange(13) % 2) + 0.12 * (x / face.head_width) ** 2
    top = _arc((x[-1], -0.6), (0, -0.95), (x[0], -0.6))
    pen.fill(palette.hair, np.stack([x, jagged], axis=1), top)
    for end in x[2:-1:2]:
        strand = _arc((0.8 * end, -0.85), (0.95 * end, -0.6), (end, -0.42))
        pen.stroke(palette.hair_shade, strand, 0.04, alpha=150)


def _draw_adornments(pen: Pen, face: Face, palette: Palette) -> None:
    if face.earrings:
        for side in SIDES:
            x = side * (face.head_width + 0.05)
            pen.ellipse(GOLD, x, 0.36, 0.075, 0.1)
            pen.ellipse(WHITE, x - 0.015, 0.33, 0.03, 0.04)
    if face.eyeglasses:
        _draw_eyeglasses(pen, face)
    if face.hat != "none":
        _draw_hat(pen, face)


def _draw_eyeglasses(pen: Pen, face: Face) -> None:
    radius = face.eye_spacing - 0.07
    for side in SIDES:
        x = side * face.eye_spacing
        rim, lens = _ellipse(x, 0.02, radius, 0.22), _ellipse(x, 0.02, radius - 0.045, 0.175)
        pen.fill(WHITE, lens, alpha=50)
        pen.fill(INK, rim, rim[:1], lens[:1], lens[::-1])
        pen.stroke(INK, _arc((x + side * radius, 0), (side * 0.7, -0.02), (side * face.head_width, -0.02)), 0.05)
    pen.stroke(INK, _arc((-0.09, 0), (0, -0.05), (0.09, 0)), 0.06)


def _draw_hat(pen: Pen, face: Face) -> None:
    width, cloth = face.head_width, _hsv(face.hat_hue, 0.6, 0.62)
    crown = _skull(face, np.linspace(np.pi, 2 * np.pi, 33)) * (1.14, 0.84) - (0, 0.46)
    pen.fill(cloth, crown)
    pen.fill(WHITE, crown * (0.6, 0.85) - (0.1, 0.12), alpha=34)
    if face.hat == "beanie":
        pen.fill(_mix(cloth, WHITE, 0.4), _band(1.17 * width, -0.34, -0.62))
        for x in np.linspace(-0.9, 0.9, 8) * width:
            pen.stroke(cloth, [(x, y + 0.1 * x * x) for y in (-0.52, -0.6, -0.68)], 0.04)
        pen.ellipse(_mix(cloth, WHITE, 0.5), 0, -1.3, 0.15, 0.12)
    else:
        pen.fill(_mix(cloth, INK, 0.6), _band(1.14 * width, -0.5, -0.76))
        pen.fill(_mix(cloth, INK, 0.15), _band(1.65 * width, -0.4, -0.46))


def _band(half: float, low: float, high: float) -> np.ndarray:
    """A strip round the head that bulges upwards in the middle."""
    lower, upper = _arc((-half, low), (0, low - 0.16), (half, low)), _arc((half, high), (0, high - 0.16), (-half, high))
    return np.concatenate([lower, upper])
