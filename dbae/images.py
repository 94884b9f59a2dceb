"""Images as numbers and as pictures: the one place where uint8 and [-1, 1] meet, and labelled grids."""

from collections.abc import Sequence

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from dbae.files import atomic_write


def to_float(x: Tensor) -> Tensor:
    """uint8 in 0..255 -> float32 in [-1, 1]."""
    return x.float() / 127.5 - 1


def to_uint8(x: Tensor) -> Tensor:
    """Float in [-1, 1] -> uint8 in 0..255; truncates, as the official code does."""
    return ((x + 1) * 127.5).clamp(0, 255).to(torch.uint8)


def save_grid(path: str, rows: Sequence[tuple[str, Tensor]], scale: int | None = None) -> None:
    """Write a PNG whose rows are labelled series of images, each (label, uint8 [N, 3, H, W]).

    Pixels are enlarged ``scale`` times without smoothing (default: to at least 64 pixels).
    """
    height = rows[0][1].shape[2]
    scale = scale or max(1, 64 // height)
    cell, gap = height * scale, 4
    font = ImageFont.load_default(size=max(12, cell // 6))
    margin = 2 * gap + max(int(font.getlength(label)) for label, _ in rows)
    columns = max(len(images) for _, images in rows)
    sheet = Image.new("RGB", (margin + columns * (cell + gap), gap + len(rows) * (cell + gap)), "white")
    draw = ImageDraw.Draw(sheet)
    for row, (label, images) in enumerate(rows):
        top = gap + row * (cell + gap)
        draw.text((margin - gap, top + cell // 2), label, fill="black", font=font, anchor="rm")
        for column, image in enumerate(images.cpu().permute(0, 2, 3, 1).numpy()):
            tile = Image.fromarray(image).resize((cell, cell), Image.Resampling.NEAREST)
            sheet.paste(tile, (margin + column * (cell + gap), top))
    with atomic_write(path) as file:
        sheet.save(file, format="PNG")
