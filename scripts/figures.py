"""Pictures of images in rows: labelled strips as PNG, and animations as GIF."""

import textwrap
import warnings
from collections.abc import Sequence
from itertools import zip_longest
from typing import Any, NamedTuple

from PIL import Image
from torch import Tensor

from dbae.config import UserError, printable
from dbae.io import atomic_write

MAX_ROWS = 100  # of a strip
MAX_COLUMNS = 50  # matplotlib takes minutes to lay out more
CAPTION = 14  # letters in a line above an image


def plain_text(text: str) -> str:
    """A name as matplotlib shows it to the letter: a ``$`` begins no formula, and what cannot be printed is escaped."""
    return printable(text).replace("$", r"\$")


def save_figure(path: str, figure: Any, **options: Any) -> None:
    """Write a figure of matplotlib as PNG. A letter that its font lacks is a box, without a warning for each."""
    with warnings.catch_warnings(), atomic_write(path) as file:
        warnings.filterwarnings("ignore", r"Glyph \d+ .* missing")
        figure.savefig(file, format="png", dpi=110, **options)


class Row(NamedTuple):
    """Images side by side, what is written beside the row, where ``plain_text`` shows names, and above its images."""

    label: str
    images: Sequence[Tensor | None]  # uint8 [3, H, W]; None leaves its place empty
    captions: Sequence[str] = ()  # as they are, in lines that are no wider than an image


def check_rows(rows: int, columns: int = 1) -> None:
    """Raise UserError for more rows, or columns, than a strip takes."""
    for what, found, most in (("rows", rows, MAX_ROWS), ("columns", columns, MAX_COLUMNS)):
        if found > most:
            raise UserError(f"images: expected few enough for a picture of {most} {what}, these take {found}")


def evenly(frames: int, most: int = MAX_COLUMNS - 2) -> list[int]:
    """Numbers of at most so many frames, the first and the last among them."""
    count = min(frames, most)
    return [round(i * (frames - 1) / max(count - 1, 1)) for i in range(count)]


def draw_rows(figure: Any, rows: Sequence[Row]) -> None:
    """Fill a figure, or part of one, of matplotlib with rows of images."""
    grid = figure.subplots(len(rows), max(len(row.images) for row in rows), squeeze=False)
    for axes, row in zip(grid, rows, strict=True):
        for axis in axes:
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
        axes[0].set_ylabel(row.label, rotation=0, ha="right", va="center", fontsize=10)
        for axis, image, caption in zip_longest(axes, row.images, row.captions):
            lines = textwrap.wrap(printable(caption or ""), CAPTION, max_lines=3, placeholder="…")
            axis.set_title("\n".join(map(plain_text, lines)), fontsize=9, pad=3)
            if image is not None:
                axis.imshow(image.permute(1, 2, 0).numpy(), interpolation="nearest")


def strip(path: str, rows: Sequence[Row], title: str) -> None:
    """Write rows of images under a title as PNG."""
    from matplotlib.figure import Figure

    columns = max(len(row.images) for row in rows)
    figure = Figure(figsize=(1.15 * columns + 1.1, 1.35 * len(rows) + 0.45), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.01, h_pad=0.02, wspace=0, hspace=0)
    draw_rows(figure, rows)
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    save_figure(path, figure, bbox_inches="tight", pad_inches=0.05)


def animation(path: str, images: Tensor, side: int = 256, milliseconds: int = 90) -> None:
    """Write uint8 images [rows, columns, frames, 3, H, W] as a GIF that runs forth and back and rests at both ends.

    Frames lower than ``side`` are enlarged a whole number of times, so that pixels stay pixels.
    """
    rows, columns, frames, _, height, width = images.shape
    height, width = rows * height, columns * width
    pixels = images.permute(2, 0, 4, 1, 5, 3).reshape(frames, height, width, 3).numpy()
    scale = max(1, side // height)
    size = (width * scale, height * scale)
    pictures = [Image.fromarray(frame).resize(size, Image.Resampling.NEAREST) for frame in pixels]
    durations = [8 * milliseconds if i in (0, frames - 1) else milliseconds for i in range(2 * frames - 2)]
    with atomic_write(path) as file:
        pictures[0].save(
            file,
            format="GIF",
            save_all=True,
            append_images=pictures[1:] + pictures[-2:0:-1],
            duration=durations or 8 * milliseconds,
            loop=0,
        )
