"""Painters of the head: skin, wrinkles and beard, and the features of the face."""

import numpy as np

from datasets.toyfaces.face import Face
from datasets.toyfaces.pen import CIRCLE, INK, SIDES, WHITE, Palette, Pen, arc, mix, skull

IRIS = {"brown": (112, 70, 40), "blue": (70, 130, 190), "green": (84, 140, 90), "grey": (118, 130, 142)}


# ---- skin and beard


def draw_head(pen: Pen, face: Face, palette: Palette) -> None:
    """The bare head with its cheeks, wrinkles and beard."""
    width = face.head_width
    if face.double_chin:
        pen.fill(palette.skin, arc((-0.8 * width, 0.55), (0, 1.22), (0.8 * width, 0.55)))
        pen.stroke(palette.skin_shade, arc((-0.55 * width, 1.0), (0, 1.2), (0.55 * width, 1.0)), 0.06)
    for side in SIDES:
        pen.ellipse(palette.skin, side * width, 0.06, 0.11, 0.19)
        pen.ellipse(palette.skin_shade, side * width * 1.02, 0.06, 0.06, 0.12, alpha=150)
    outline = skull(face, np.linspace(0, 2 * np.pi, 56, endpoint=False))
    pen.fill(mix(palette.skin, palette.skin_shade, 0.5), outline)
    for step in range(1, 6):
        share = 0.5 - 0.13 * step
        tone = mix(palette.skin, palette.skin_shade if share > 0 else palette.skin_light, abs(share))
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
            pen.glow(mix(palette.skin_light, WHITE, 0.6), cheek, 0.21, 0.24, 0.12, alpha=230)


def _draw_wrinkles(pen: Pen, face: Face, palette: Palette) -> None:
    depth = round(255 * min(1.0, max(0.0, (face.age - 0.55) / 0.3)))
    if not depth:
        return
    for y in (-0.62, -0.5):
        pen.stroke(palette.skin_shade, arc((-0.34, y + 0.02), (0, y - 0.03), (0.34, y + 0.02)), 0.04, alpha=depth)
    for side in SIDES:
        fold = arc((side * 0.22, 0.3), (side * 0.34, 0.44), (side * 0.38, 0.6))
        pen.stroke(palette.skin_shade, fold, 0.045, alpha=depth)
        for drop in (-0.04, 0.06):
            foot = arc((side * 0.55, 0.02), (side * 0.6, 0.02 + drop), (side * 0.65, 0.02 + 1.6 * drop))
            pen.stroke(palette.skin_shade, foot, 0.03, alpha=depth)


def _draw_beard(pen: Pen, face: Face, palette: Palette) -> None:
    if face.stubble:
        shadow = mix(palette.hair_shade, (70, 80, 96), 0.5)
        for start in (0.2, 0.26, 0.32, 0.38):
            pen.fill(shadow, _lower_face(face, start), alpha=38)
    if face.goatee and face.sideburns:
        pen.fill(palette.hair, _lower_face(face, 0.1) * (1.03, 1.04))
    if face.goatee:
        chin = [arc((-0.29, 0.6), (0, 1.12), (0.29, 0.6)), arc((0.29, 0.6), (0, 0.74), (-0.29, 0.6))]
        pen.fill(palette.hair, *chin)
        for x in (-0.12, 0, 0.12):
            pen.stroke(palette.hair_shade, arc((x, 0.78), (x * 0.9, 0.88), (x * 0.6, 1.0)), 0.035, alpha=150)
    if face.sideburns:
        for edge in (-face.head_width, face.head_width):
            strip = [(edge, -0.3), (0.9 * edge, -0.25), (0.8 * edge, 0.4), (0.95 * edge, 0.34)]
            pen.fill(palette.hair, strip)


def _lower_face(face: Face, start: float) -> np.ndarray:
    """The part of the face where a beard grows, from height `start` at the ears on."""
    jaw = skull(face, np.linspace(0.08, np.pi - 0.08, 25))
    x = jaw[::-1, 0]
    rim = np.minimum(jaw[::-1, 1], start + (0.44 - 0.5 * start) * (1 - (x / face.head_width) ** 2))
    return np.concatenate([jaw, np.stack([x, rim], axis=1)])


# ---- the face


def draw_features(pen: Pen, face: Face, palette: Palette) -> None:
    """Mouth, nose, mustache, eyes and brows."""
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
    upper = arc((-half, 0), (0, -above), (half, 0)) + centre
    lower = arc((half, 0), (0, below), (-half, 0)) + centre
    if face.makeup:
        shadow = arc((-1.25 * half, 0), (0, -above - 0.13), (1.25 * half, 0)) + centre
        pen.fill((126, 62, 150), shadow, lower, alpha=170)
    if face.bags:
        pouch = arc((-0.8 * half, below + 0.02), (0, below + 0.12), (0.8 * half, below + 0.02)) + centre
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
    brow = arc((-side * 0.17, height + 0.02), (side * 0.05, height - arch), (side * 0.24, height + 0.04))
    pen.stroke(palette.brow, brow + centre * (1, 1.5), 0.05 + 0.12 * face.brow_thickness)


def _draw_nose(pen: Pen, face: Face, palette: Palette) -> None:
    base = 0.2 + 0.11 * face.nose_length
    wing = 0.075 + 0.155 * face.nose_width
    tip = base + 0.035 + 0.15 * face.nose_point
    side = arc((0.06, -0.08), (0.06, 0.12), (wing, base))
    underside = np.array([(wing, base), (0.25 * wing, tip), (-0.25 * wing, tip), (-wing, base)])
    pen.fill(palette.skin_shade, side, underside, [(-0.02, -0.08)], alpha=120)
    pen.stroke(palette.skin_shade, underside, 0.065)
    for edge in SIDES:
        pen.ellipse(mix(palette.skin_shade, INK, 0.6), edge * wing * 0.5, base + 0.025, 0.03, 0.02)
    pen.ellipse(palette.skin_light, -0.015, base - 0.05, 0.35 * wing, 0.055, alpha=150)


def _draw_mouth(pen: Pen, face: Face, palette: Palette) -> None:
    half = 0.27 + 0.07 * max(0.0, face.mouth_curve)
    lift, gape, slant = 0.13 * face.mouth_curve, 0.02 + 0.2 * face.mouth_open, 0.05 * _skew(face)
    thick = 0.035 + 0.1 * face.lip_fullness
    y = 0.6 - 0.2 * gape
    middle = y + 0.4 * lift
    left, right = (-half, y - 0.6 * lift + slant), (half, y - 0.6 * lift - slant)
    bow = (0, y - 0.6 * thick + 0.3 * lift)
    upper_lip = [arc(left, (-0.12, y - thick), bow), arc(bow, (0.12, y - thick), right)]
    lower_lip = arc(right, (0, middle + gape + 1.2 * thick), left)
    pen.fill(palette.lips, *upper_lip, lower_lip)
    opening = arc(left, (0, middle), right)
    pen.fill((96, 20, 34), opening, arc(right, (0, middle + gape), left))
    if face.mouth_open > 0:
        teeth = arc(right, (0, middle + min(0.09, 0.6 * gape)), left)
        pen.fill(WHITE, np.concatenate([opening, teeth]) * (0.9, 1))
    pen.ellipse(WHITE, -0.06, middle + gape + 0.6 * thick, 0.08, 0.25 * thick, alpha=70)


def _draw_mustache(pen: Pen, face: Face, palette: Palette) -> None:
    y = 0.4 + 0.1 * face.nose_length
    for side in SIDES:
        top = arc((0, y - 0.02), (side * 0.2, y - 0.02), (side * 0.36, y + 0.12))
        bottom = arc((side * 0.36, y + 0.12), (side * 0.16, y + 0.12), (0, y + 0.08))
        pen.fill(palette.hair, top, bottom)
        pen.stroke(palette.hair_shade, top[2:] * (0.9, 1) + (0, 0.05), 0.035, alpha=150)
