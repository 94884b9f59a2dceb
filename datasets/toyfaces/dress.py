"""Painters of the body and of what is worn: garment, necktie and jewellery, eyeglasses and hats."""

import numpy as np

from datasets.toyfaces.face import Face
from datasets.toyfaces.pen import INK, SIDES, WHITE, Palette, Pen, arc, ellipse, hsv, mix, skull

GOLD, SHIRT = (232, 184, 72), (238, 241, 247)


def draw_body(pen: Pen, face: Face, palette: Palette) -> None:
    """Neck, shoulders and what is worn on them."""
    neck, shoulder = (0.42, 1.5) if face.male else (0.33, 1.28)
    slope = arc((shoulder, 1.8), (0.85 * shoulder, 1.32), (neck - 0.04, 1.06))
    body = np.concatenate([slope, slope[::-1] * (-1, 1)])
    pen.fill(palette.garment, body)
    for inset in (0.1, 0.2, 0.3):
        pen.fill(WHITE, body * (1 - inset, 1) + (-0.04, inset), alpha=14)
    depth = 1.46 if face.v_neck or face.necklace else 1.26
    pen.fill(palette.skin, arc((-neck - 0.06, 1.07), (0, depth), (neck + 0.06, 1.07)))
    pen.fill(palette.skin, [(-neck, 0.5), (neck, 0.5), (neck + 0.02, 1.1), (-neck - 0.02, 1.1)])
    pen.fill(palette.skin_shade, arc((-neck, 0.8), (0, 1.2), (neck, 0.8)), alpha=150)
    if face.necktie:
        _draw_necktie(pen, face, neck)
    if face.necklace:
        _draw_necklace(pen, neck)


def _draw_necktie(pen: Pen, face: Face, neck: float) -> None:
    tie = hsv(face.garment_hue + 0.45, 0.75, 0.55)
    pen.fill(SHIRT, [(-neck, 1.1), (0, 1.18), (neck, 1.1), (0.24, 1.6), (-0.24, 1.6)])
    pen.fill(tie, [(-0.07, 1.36), (0.07, 1.36), (0.15, 1.7), (-0.15, 1.7)])
    pen.fill(mix(tie, WHITE, 0.2), [(-0.12, 1.17), (0.12, 1.17), (0.07, 1.37), (-0.07, 1.37)])
    for side in SIDES:
        flap = np.array([(side * neck, 0.94), (side * (neck + 0.12), 1.14), (side * 0.24, 1.42), (side * 0.05, 1.17)])
        pen.fill(SHIRT, flap)
        pen.stroke(INK, flap[1:], 0.03, alpha=110)


def _draw_necklace(pen: Pen, neck: float) -> None:
    for x, y in arc((-neck + 0.01, 1.0), (0, 1.28), (neck - 0.01, 1.0)):
        pen.ellipse(GOLD, x, y, 0.045, 0.045)
    pen.ellipse((206, 60, 80), 0, 1.34, 0.075, 0.085)
    pen.ellipse(WHITE, -0.02, 1.31, 0.025, 0.025)


def draw_adornments(pen: Pen, face: Face, palette: Palette) -> None:
    """Earrings, eyeglasses and hat."""
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
        rim, lens = ellipse(x, 0.02, radius, 0.22), ellipse(x, 0.02, radius - 0.045, 0.175)
        pen.fill(WHITE, lens, alpha=50)
        pen.fill(INK, rim, rim[:1], lens[:1], lens[::-1])
        pen.stroke(INK, arc((x + side * radius, 0), (side * 0.7, -0.02), (side * face.head_width, -0.02)), 0.05)
    pen.stroke(INK, arc((-0.09, 0), (0, -0.05), (0.09, 0)), 0.06)


def _draw_hat(pen: Pen, face: Face) -> None:
    width, cloth = face.head_width, hsv(face.hat_hue, 0.6, 0.62)
    crown = skull(face, np.linspace(np.pi, 2 * np.pi, 33)) * (1.14, 0.84) - (0, 0.46)
    pen.fill(cloth, crown)
    pen.fill(WHITE, crown * (0.6, 0.85) - (0.1, 0.12), alpha=34)
    if face.hat == "beanie":
        pen.fill(mix(cloth, WHITE, 0.4), _band(1.17 * width, -0.34, -0.62))
        for x in np.linspace(-0.9, 0.9, 8) * width:
            pen.stroke(cloth, [(x, y + 0.1 * x * x) for y in (-0.52, -0.6, -0.68)], 0.04)
        pen.ellipse(mix(cloth, WHITE, 0.5), 0, -1.3, 0.15, 0.12)
    else:
        pen.fill(mix(cloth, INK, 0.6), _band(1.14 * width, -0.5, -0.76))
        pen.fill(mix(cloth, INK, 0.15), _band(1.65 * width, -0.4, -0.46))


def _band(half: float, low: float, high: float) -> np.ndarray:
    """A strip round the head that bulges upwards in the middle."""
    lower, upper = arc((-half, low), (0, low - 0.16), (half, low)), arc((half, high), (0, high - 0.16), (-half, high))
    return np.concatenate([lower, upper])
