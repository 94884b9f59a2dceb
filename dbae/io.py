"""Files that are never half-written, images as numbers and pictures, and random numbers by image."""

import os
import re
import secrets
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import IO

import blobfile as bf
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

UNFINISHED = re.compile(r".+\.[0-9a-f]{8}\.tmp")


@contextmanager
def atomic_write(path: str, mode: str = "wb") -> Iterator[IO]:
    """Open ``path`` for writing; it appears under its name only when the block ends without an error.

    Local files are written beside their final name, synchronised and renamed; remote ones are uploaded whole.
    """
    remote = "://" in path
    folder = tempfile.gettempdir() if remote else os.path.dirname(path) or "."
    os.makedirs(folder, exist_ok=True)
    beside = os.path.join(folder, f"{bf.basename(path)}.{secrets.token_hex(4)}.tmp")
    try:
        with open(beside, mode) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if remote:
            bf.copy(beside, path, overwrite=True)
        else:
            os.replace(beside, path)
            _sync_folder(folder)
    finally:
        if os.path.exists(beside):
            os.remove(beside)


def remove_unfinished(folder: str) -> None:
    """Remove what killed processes left of their ``atomic_write`` in a local folder; nobody else may write there."""
    for name in listdir(folder) if "://" not in folder else []:
        if UNFINISHED.fullmatch(name):
            os.remove(os.path.join(folder, name))


def listdir(path: str) -> list[str]:
    """Names in a folder; none where there is no such folder."""
    return [name.rstrip("/") for name in bf.listdir(path)] if bf.isdir(path) else []


def _sync_folder(folder: str) -> None:
    """Make a rename survive a loss of power. Windows cannot open folders, and needs no such thing."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


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


Generators = torch.Generator | Sequence[torch.Generator] | None


def seed_for(*key: int) -> int:
    """A well-mixed 63-bit seed from non-negative integers such as (run seed, image index)."""
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1)


def image_generators(seed: int, indices: Iterable[int], device: torch.device | str = "cpu") -> list[torch.Generator]:
    """One generator per image, seeded by (seed, index in the data set)."""
    return [torch.Generator(device).manual_seed(seed_for(seed, index)) for index in indices]


def randn_like(x: Tensor, generator: Generators = None) -> Tensor:
    """Standard normal values like ``x`` [N, ...]; from a sequence of N generators, each image draws from its own."""
    if generator is None or isinstance(generator, torch.Generator):
        return torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)
    if len(generator) != len(x):
        raise ValueError(f"generator: expected one per image ({len(x)}), got {len(generator)}")
    return torch.stack([torch.randn(x.shape[1:], generator=g, dtype=x.dtype, device=x.device) for g in generator])
