"""The sample files of a reconstruction run, as the official code names them.

``{rank}_real_sample_{i}.npz`` and ``{rank}_fake_sample_{i}.npz`` hold one batch each under ``samples``, uint8 NHWC;
ours also hold the images' numbers in the data set under ``index``, where those that were left out do not occur.
``metrics.json`` holds settings and results.
"""

import re
from collections.abc import Iterator
from itertools import groupby
from typing import Any

import blobfile as bf
import numpy as np

from dbae.config import UserError
from dbae.io import is_other, listdir, read_json, write_json
from eval.arrays import read_arrays, write_arrays

PART = re.compile(r"(\d+)_(real|fake)_sample_(\d+)\.npz")
OURS = re.compile(
    r"\d+_((real|fake)_)?sample_\d+\.(npz|png)|samples_\d+x\d+x\d+x\d+_nfe\d+\.npz|(metrics|bad_images)\.json"
)


def part_path(folder: str, rank: int, kind: str, i: int) -> str:
    """File of batch ``i`` of process ``rank``; ``kind`` is real or fake."""
    return bf.join(folder, f"{rank}_{kind}_sample_{i}.npz")


def write_part(path: str, samples: np.ndarray, index: np.ndarray) -> None:
    """Write one batch: uint8 [n, H, W, 3] and the images' numbers [n]."""
    write_arrays(path, {"samples": samples, "index": index})


def read_part(path: str) -> np.ndarray:
    """Samples of one batch, uint8 [n, H, W, 3]. Raises UserError for anything else."""
    return _samples_and_index(path)[0]


def read_numbered(path: str) -> tuple[np.ndarray, np.ndarray]:
    """Samples of one of our batches, and the images' numbers int64 [n]. Raises UserError for anything else."""
    samples, index = _samples_and_index(path)
    if index is None or index.dtype != np.int64 or index.shape != samples.shape[:1]:
        raise UserError(f"{path}: expected an array 'index' with the number of each of the {len(samples)} samples")
    return samples, index


def _samples_and_index(path: str) -> tuple[np.ndarray, np.ndarray | None]:
    arrays = read_arrays(path)[0]
    samples = arrays.get("samples")
    if samples is None or samples.dtype != np.uint8 or samples.ndim != 4 or samples.shape[3] != 3:
        found = "none" if samples is None else f"{samples.dtype} {list(samples.shape)}"
        raise UserError(f"{path}: expected an array 'samples' of uint8 [n, H, W, 3], got {found}")
    return samples, arrays.get("index")


def pairs(folder: str) -> list[tuple[str, str]]:
    """(real, fake) files of a folder, by batch, then process. Raises UserError where one lacks its twin."""
    matches = [match for match in map(PART.fullmatch, listdir(folder)) if match]
    if not matches:
        raise UserError(f"sample_path: expected a folder with files like 0_real_sample_0.npz, got {folder}")
    there = {part_path(folder, int(m[1]), m[2], int(m[3])) for m in matches}
    keys = sorted({(int(m[3]), int(m[1])) for m in matches})
    found = [(part_path(folder, rank, "real", i), part_path(folder, rank, "fake", i)) for i, rank in keys]
    for path in (path for twins in found for path in twins if path not in there):
        raise UserError(f"sample_path: {path} is missing; run the reconstruction again to complete it")
    return found


def fake_images(folder: str) -> Iterator[np.ndarray]:
    """All reconstructions in data-set order, uint8 [n, H, W, 3] at a time: all processes' i-th batches, sorted."""
    files = [fake for _, fake in pairs(folder)]
    for _, group in groupby(files, key=lambda path: PART.fullmatch(bf.basename(path))[3]):
        samples, index = map(np.concatenate, zip(*map(read_numbered, group), strict=True))
        yield samples[index.argsort()]


def write_combined(path: str, batches: Iterator[np.ndarray], shape: tuple[int, int, int, int]) -> None:
    """Write all samples [n, H, W, 3] uint8 as one .npz, under ``arr_0`` as officially."""
    samples, first = np.empty(shape, np.uint8), 0  # and not a concatenation, which would need twice the memory
    for batch in batches:
        samples[first : first + len(batch)] = batch
        first += len(batch)
    write_arrays(path, {"arr_0": samples})


def read_report(folder: str) -> dict[str, Any]:
    """``metrics.json`` of a folder, empty where there is none. Raises UserError where it is not an object."""
    path = bf.join(folder, "metrics.json")
    return read_json(path) if bf.exists(path) else {}


def our_files(folder: str) -> list[str]:
    """Paths of what a reconstruction writes that are in ``folder``."""
    return [bf.join(folder, name) for name in listdir(folder) if OURS.fullmatch(name)]


def check_folder(folder: str, settings: dict[str, Any]) -> None:
    """Raise UserError where the folder holds reconstructions of other settings."""
    if our_files(folder):
        is_other(folder, "reconstructions", lambda: read_report(folder).get("settings"), settings)


def open_folder(folder: str, settings: dict[str, Any], overwrite: bool) -> None:
    """Begin or continue a reconstruction in a folder: finished batches are kept, or with ``overwrite`` removed."""
    bf.makedirs(folder)
    for path in our_files(folder) if overwrite else ():
        bf.remove(path)
    if read_report(folder).get("settings") is None:
        update_report(folder, settings=settings, complete=False)


def check_complete(folder: str, images: int | None = None) -> None:
    """Raise UserError where ``metrics.json`` says that the folder is unfinished, or has not as many ``images``."""
    report = read_report(folder)
    if "settings" not in report:  # a folder of the official code
        return
    expected = report["settings"].get("images", 0) - report.get("bad_images", 0)
    if not report.get("complete") or images not in (None, expected):
        found = "it is unfinished" if images is None else f"there are {images}"
        raise UserError(
            f"{folder}: expected {expected} reconstructions, as metrics.json says, {found}; "
            "run the reconstruction again to complete it"
        )


def update_report(folder: str, **entries: Any) -> None:
    """Set entries of ``metrics.json`` and keep the others."""
    report = read_report(folder) | entries
    write_json(bf.join(folder, "metrics.json"), report)


def add_metrics(folder: str, images: int, **found: dict[str, float]) -> None:
    """Set ``metrics`` and their ``standard_errors`` in ``metrics.json``, beside earlier ones over as many images."""
    report = read_report(folder)
    earlier = report if report.get("images_evaluated") == images else {}
    entries = {name: earlier.get(name, {}) | values for name, values in found.items()}
    update_report(folder, images_evaluated=images, **entries)
