"""Files that are never half-written, images as numbers and pictures, and random numbers by image.

Paths may be anything that ``blobfile`` reads and writes. Nothing in a file is ever executed.
"""

import hashlib
import json
import os
import re
import secrets
import shlex
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import IO, Any

import blobfile as bf
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from dbae.config import UserError

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None

UNFINISHED = re.compile(r".+\.[0-9a-f]{8}\.tmp")
Generators = torch.Generator | Sequence[torch.Generator] | None


# Files


@contextmanager
def atomic_write(path: str, mode: str = "wb") -> Iterator[IO]:
    """Open ``path`` for writing; it appears under its name only when the block ends without an error.

    Local files are written beside their final name, synchronised and renamed; remote ones are uploaded whole. Text is
    UTF-8, with escapes for bytes of a file name that are no text.
    """
    remote = "://" in path
    folder = tempfile.gettempdir() if remote else os.path.dirname(path) or "."
    os.makedirs(folder, exist_ok=True)
    beside = os.path.join(folder, f"{bf.basename(path)}.{secrets.token_hex(4)}.tmp")
    try:
        text = {} if "b" in mode else {"encoding": "utf-8", "errors": "backslashreplace"}  # names need not be Unicode
        with open(beside, mode, **text) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if remote:
            bf.copy(beside, path, overwrite=True)
        else:
            os.replace(beside, path)
            _sync_folder(folder)
    except OSError as error:
        error.filename = error.filename or path  # a full disk does not say which file it was
        raise
    finally:
        if os.path.exists(beside):
            os.remove(beside)


def remove_unfinished(folder: str) -> None:
    """Remove what killed processes left of their ``atomic_write`` in a local folder; nobody else may write there."""
    for name in listdir(folder) if "://" not in folder else []:
        if UNFINISHED.fullmatch(name):
            os.remove(os.path.join(folder, name))


def lock_folder(folder: str) -> IO | None:
    """Keep other processes out of a local folder, until what is returned is closed or this process ends.

    Raises UserError where another process has locked it. None where there are no such locks.
    """
    if fcntl is None or "://" in folder:
        return None
    os.makedirs(folder, exist_ok=True)
    file = open(os.path.join(folder, ".lock"), "ab")  # noqa: SIM115
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # which forked workers do not inherit
    except (BlockingIOError, PermissionError):
        raise UserError(f"{folder}: another process is writing to it; wait for its end, or stop it") from None
    except OSError:  # a file system without locks
        return None
    return file


def check_outputs(outputs: Iterable[str], inputs: Iterable[str]) -> None:
    """Raise UserError where a file to be written is one of those that are read, whatever their names."""
    written = {place: path for path in outputs if (place := _place(path))}
    for path in inputs if written else ():
        if (place := _place(path)) in written:
            raise UserError(f"out: {written[place]} is an input, and inputs are never overwritten; write elsewhere")


def _place(path: str) -> tuple[int, int] | None:
    """Device and inode of a local file, which links share; None where there is none."""
    try:
        stat = os.stat(path)
    except OSError:
        return None
    return stat.st_dev, stat.st_ino


def read_json(path: str) -> dict[str, Any]:
    """The object in a JSON file. Raises UserError where it is none."""
    try:
        with bf.BlobFile(path, "rb") as file:
            content = json.loads(file.read())  # of bytes, it minds a byte order mark
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected an object with names and values")
    return content


def write_json(path: str, content: Mapping[str, Any]) -> None:
    """Write an object as JSON, indented; the file appears only when it is complete."""
    with atomic_write(path, "w") as file:
        file.write(json.dumps(content, indent=2) + "\n")


def command_line() -> str:
    """The command that runs, to be typed again: that of the launcher (``args.sh`` exports it), or Python's own."""
    if command := os.environ.get("DBAE_COMMAND"):
        return command
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return shlex.join(["python3", *(("-m", spec.name) if spec else sys.argv[:1]), *sys.argv[1:]])


def with_command(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings as results state them: with the command that runs, which does not count where they are compared."""
    return {**settings, "command": command_line()}


def made_by(found: Any) -> str:
    """The command that settings read from JSON state, to follow what differs; nothing where they state none."""
    return f", made by: {found['command']}" if isinstance(found, dict) and "command" in found else ""


def differing(found: Any, wanted: Mapping[str, Any]) -> str:
    """The entries in which settings read from JSON differ from ``wanted`` ones, few with values; empty if in none."""
    if not isinstance(found, dict) or not found:
        return "origin (not stated, perhaps by an older version)"
    wanted = json.loads(json.dumps(wanted))
    names = [name for name in {**wanted, **found} if found.get(name) != wanted.get(name) and name != "command"]
    shown = names
    if len(names) <= 4:
        shown = [f"{name} ({_shown(found.get(name))}, now {_shown(wanted.get(name))})" for name in names]
    return ", ".join(shown)


def is_other(
    path: str, what: str, found: Callable[[], Any], wanted: Mapping[str, Any], overwrite: bool = False
) -> bool:
    """Whether ``what`` is at ``path`` has by the settings ``found`` with it others than ``wanted`` ones.

    Raises UserError with the difference and the command that made it, or like ``found``, unless ``overwrite``: then it
    may be replaced.
    """
    try:
        settings = found()
        if others := differing(settings, wanted):
            advice = "give the same to go on, --overwrite true to replace it, or another --out"
            raise UserError(f"{path} holds {what} with another {others}{made_by(settings)}; {advice}")
    except UserError:
        if not overwrite:
            raise
        return True
    return False


def _shown(value: Any) -> str:
    return "none" if value is None else str(value)


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


def fingerprint(path: str) -> str:
    """First 16 hexadecimal digits of the SHA-256 of a file: which weights something was computed with."""
    digest = hashlib.sha256()
    with bf.BlobFile(path, "rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()[:16]


# Images


def to_float(x: Tensor) -> Tensor:
    """uint8 in 0..255 -> float32 in [-1, 1]."""
    return x.float() / 127.5 - 1


def to_uint8(x: Tensor) -> Tensor:
    """Float in [-1, 1] -> uint8 in 0..255; truncates, as the official code does. UserError for NaN and infinity."""
    require_finite("images", x)
    return ((x + 1) * 127.5).clamp(0, 255).to(torch.uint8)


def require_finite(name: str, x: Tensor) -> Tensor:
    """The tensor x; raises UserError where a number in it is not finite. It waits for a GPU: not for inner loops."""
    if not x.isfinite().all():
        raise UserError(f"{name}: expected finite numbers, got NaN or infinity")
    return x


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


# Random numbers: functions of a seed and an index, so that no result depends on batch size or process count


def seed_for(*key: int) -> int:
    """A well-mixed 63-bit seed from non-negative integers such as (run seed, image index)."""
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1)


def image_generators(seed: int, indices: Iterable[int], *stream: int) -> list[torch.Generator]:
    """One generator per image, seeded by (seed, index in the data set) and by the ``stream`` of one's draws, if any.

    They are on the CPU, whose numbers are the same wherever a model runs; those of a GPU are others.
    """
    return [torch.Generator().manual_seed(seed_for(seed, index, *stream)) for index in indices]


def randn_like(x: Tensor, generator: Generators = None) -> Tensor:
    """Standard normal values like ``x`` [N, ...]; from a sequence of N generators, each image draws from its own.

    They are drawn where the generators are, and copied to x in one piece, for which a GPU is not waited for. A CPU
    draws a number in about 4 ns (one core of an AMD EPYC): 13 ms per step that draws noise for 64 images of 128 px.
    """
    if generator is None or isinstance(generator, torch.Generator):
        where = generator.device if generator else x.device
        return torch.randn(x.shape, generator=generator, dtype=x.dtype, device=where).to(x.device)
    if len(generator) != len(x):
        raise ValueError(f"generator: expected one per image ({len(x)}), got {len(generator)}")
    noise = torch.empty(x.shape, dtype=x.dtype, pin_memory=x.is_cuda)
    for row, own in zip(noise, generator, strict=True):
        row.normal_(generator=own)
    return noise.to(x.device, non_blocking=True)


def to_device(x: Tensor, device: torch.device) -> Tensor:
    """A CPU's tensor on the device, by way of pinned memory, so that a GPU is not waited for."""
    pinned = torch.empty(x.shape, dtype=x.dtype, pin_memory=device.type == "cuda").copy_(x)
    return pinned.to(device, non_blocking=True)
