"""Sprites: white shapes on black with the factors of dSprites (Matthey et al., 2017), drawn on the fly by index.

All 737,280 combinations of 3 shapes, 6 scales, 40 orientations and 32 x 32 positions, each once; the images are our own
drawing, not those of dSprites. A fixed shuffle divides them into train (the first 90 %), valid and test (5 % each).
"""

import math
from functools import cache

import numpy as np
from PIL import Image

from datasets.base import ImageDataset, check_split, cut
from datasets.labels import Factors

SHAPES = ("square", "ellipse", "heart")
SIZES = {"shape": len(SHAPES), "scale": 6, "orientation": 40, "position_x": 32, "position_y": 32}
NUMBER = math.prod(SIZES.values())
SPLITS = {"all": (0, 100), "train": (0, 90), "valid": (90, 95), "test": (95, 100)}  # percent of the shuffled set
SHUFFLE_SEED = 0
OVERSAMPLING = 2  # points per pixel and axis


def factors(index: int | np.ndarray) -> np.ndarray:
    """Values of the factors [..., 5], whole numbers from 0, of the sprites of these indices."""
    return np.stack(np.unravel_index(index, tuple(SIZES.values())), axis=-1)


def render(index: int, size: int) -> Image.Image:
    """The sprite with an index, an RGB image of size x size pixels, white on black with grey edges.

    Scales go from 0.5 to 1, orientations once around, positions over the middle 60 % of the picture; a sprite of scale
    1 fits into a circle of radius 0.18.
    """
    shape, scale, orientation, column, row = factors(index).tolist()
    points = (np.arange(size * OVERSAMPLING) + 0.5) / (size * OVERSAMPLING)
    radius = 0.18 * (0.5 + 0.1 * scale)
    x = (points[None, :] - 0.2 - 0.6 * column / 31) / radius
    y = (points[:, None] - 0.2 - 0.6 * row / 31) / radius
    angle = 2 * math.pi * orientation / SIZES["orientation"]
    u, v = math.cos(angle) * x + math.sin(angle) * y, math.cos(angle) * y - math.sin(angle) * x
    if SHAPES[shape] == "square":
        inside = np.maximum(abs(u), abs(v)) < 0.7
    elif SHAPES[shape] == "ellipse":
        inside = u**2 + (v / 0.5) ** 2 < 1
    else:  # (u^2 + v^2 - 1)^3 < u^2 v^3, upright and as large as the others
        u, v = 1.3 * u, 0.2 - 1.3 * v
        inside = (u**2 + v**2 - 1) ** 3 < u**2 * v**3
    cells = inside.reshape(size, OVERSAMPLING, size, OVERSAMPLING).mean(axis=(1, 3))
    return Image.fromarray((255 * cells).astype(np.uint8)).convert("RGB")


@cache
def _shuffled() -> np.ndarray:
    return np.random.default_rng(SHUFFLE_SEED).permutation(NUMBER)


class Sprites(ImageDataset):
    """One split of the sprites, whose factors are known."""

    def __init__(self, split: str, size: int, split_range: str | None = None) -> None:
        check_split("sprites", split, tuple(SPLITS))
        first, last = (NUMBER * percent // 100 for percent in SPLITS[split])
        super().__init__("sprites", size, cut(_shuffled()[first:last], split_range))

    def name(self, index: int) -> str:
        return f"sprites-{index:06d}"

    def image(self, index: int) -> Image.Image:
        return render(index, self.size)

    @property
    def place(self) -> str:
        return self.title

    @property
    def factors(self) -> Factors:
        return Factors(tuple(SIZES), factors(np.asarray(self.indices)))
