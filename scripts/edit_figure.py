"""Pictures of edited codes: labelled strips as PNG, and animations as GIF."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image
from torch import Tensor

from dbae.config import UserError
from dbae.io import atomic_write

MAX_ROWS = 100  # of a strip
Tile = tuple[str, np.ndarray | None]  # what is written above it, and uint8 [H, W, 3]; None leaves its place empty


@dataclass(frozen=True)
class Row:
    """A labelled series of tiles."""

    label: str
    tiles: Sequence[Tile]


def tile(caption: str, image: Tensor) -> Tile:
    """A tile of a uint8 image [3, H, W]."""
    return caption, image.permute(1, 2, 0).numpy()


def check_rows(rows: int) -> None:
    """Raise UserError for more rows than a strip takes."""
    if rows > MAX_ROWS:
        raise UserError(f"images: expected few enough for a picture of {MAX_ROWS} rows, these take {rows}")


def strip(path: str, rows: Sequence[Row], title: str) -> None:
    """Write rows of tiles under a title as PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    columns = max(len(row.tiles) for row in rows)
    figure, grid = plt.subplots(
        len(rows), columns, squeeze=False, layout="constrained", figsize=(1.15 * columns + 1.1, 1.35 * len(rows) + 0.45)
    )
    figure.get_layout_engine().set(w_pad=0.01, h_pad=0.02, wspace=0, hspace=0)
    for axes, row in zip(grid, rows, strict=True):
        for axis in axes:
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
        axes[0].set_ylabel(row.label, rotation=0, ha="right", va="center", fontsize=10)
        for axis, (caption, image) in zip(axes, row.tiles, strict=False):
            axis.set_title(caption, fontsize=9, pad=3)
            if image is not None:
                axis.imshow(image, interpolation="nearest")
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=110)
    plt.close(figure)


def animation(path: str, frames: Sequence[np.ndarray], side: int = 256, milliseconds: int = 90) -> None:
    """Write uint8 frames [H, W, 3] as a GIF that runs forth and back and rests at both ends.

    Frames lower than ``side`` are enlarged a whole number of times, so that pixels stay pixels.
    """
    scale = max(1, side // frames[0].shape[0])
    pictures = [
        Image.fromarray(frame).resize((frame.shape[1] * scale, frame.shape[0] * scale), Image.Resampling.NEAREST)
        for frame in frames
    ]
    there_and_back = pictures + pictures[-2:0:-1]
    rest = {0, len(pictures) - 1}
    durations = [8 * milliseconds if i in rest else milliseconds for i in range(len(there_and_back))]
    with atomic_write(path) as file:
        there_and_back[0].save(
            file, format="GIF", save_all=True, append_images=there_and_back[1:], duration=durations, loop=0
        )


def sheet(images: Tensor) -> list[np.ndarray]:
    """Frames [rows H, columns W, 3] of an animation from uint8 [rows, columns, frames, 3, H, W]."""
    rows, columns, frames, _, height, width = images.shape
    joined = images.permute(2, 0, 4, 1, 5, 3).reshape(frames, rows * height, columns * width, 3)
    return list(joined.numpy())
