"""Painters of hair, behind the head and in front of it."""

import numpy as np

from datasets.toyfaces.face import Face
from datasets.toyfaces.pen import SIDES, Palette, Pen, arc, skull


def draw_hair_behind(pen: Pen, face: Face, palette: Palette) -> None:
    """The hair that head and body hide in part."""
    if face.bald:
        return
    y = np.linspace(-1, _hair_bottom(face), 18)
    closing = np.clip((y[-1] - y) / 0.4, 0, 1) ** 0.5
    left = np.stack([-_hair_side(face, y) * (0.8 + 0.2 * closing), y], axis=1)
    bottom = arc(left[-1], (0, y[-1] + 0.08), left[-1] * (-1, 1))
    pen.fill(palette.hair_shade, left, bottom, left[::-1] * (-1, 1))


def draw_hair_in_front(pen: Pen, face: Face, palette: Palette) -> None:
    """The hair over the skull, with locks and bangs."""
    if face.bald:
        return
    if face.hair_length > 0.3:
        _draw_locks(pen, face, palette)
    angles = np.linspace(np.pi, 2 * np.pi, 33)
    swell = 1.04 + 0.1 * face.hair_volume + 0.5 * _wave(face, 1.6 * angles)
    outer = skull(face, angles) * swell[:, None]
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
    top = arc((x[-1], -0.6), (0, -0.95), (x[0], -0.6))
    pen.fill(palette.hair, np.stack([x, jagged], axis=1), top)
    for end in x[2:-1:2]:
        strand = arc((0.8 * end, -0.85), (0.95 * end, -0.6), (end, -0.42))
        pen.stroke(palette.hair_shade, strand, 0.04, alpha=150)


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
