"""A data set held as bytes in memory, so that training neither reads nor decodes after its start."""

import os

import torch
from torch.utils.data import Dataset
from tqdm import tqdm

from datasets.base import ImageDataset
from datasets.loader import CachedImages, ordered_batches
from datasets.tolerant import Tolerant
from dbae.config import UserError

PLACES = ("none", "host", "device")
BATCH = 64  # images that are read together
GB = 1e9  # bytes


def cached(
    dataset: Dataset, where: str, device: torch.device | str, num_workers: int | None = 0, quiet: bool = False
) -> Dataset | CachedImages:
    """What ``training_batches`` reads: the data set itself, or all its images, read once by ``num_workers`` processes.

    ``where`` is ``host`` or ``device`` for the memory that holds them, n 3 s^2 bytes, or ``none``; ``quiet`` shows no
    progress. Bad images of a ``Tolerant`` data set are noted while reading. Raises UserError like ``check_room``,
    before reading, and like ``training_batches``.
    """
    plain = dataset.dataset if isinstance(dataset, Tolerant) else dataset
    check_room(plain, where, device)
    if where == "none":
        return dataset
    shape = (len(dataset), 3, plain.size, plain.size)
    images = torch.empty(shape, dtype=torch.uint8, device=device if where == "device" else "cpu")
    positions, done = torch.empty(len(dataset), dtype=torch.long), 0
    with tqdm(total=len(dataset), desc="read", unit=" images", disable=quiet, delay=1) as bar:
        for batch, shown in ordered_batches(dataset, BATCH, num_workers=num_workers):
            place = slice(done, done := done + len(batch))
            images[place], positions[place] = batch, shown
            bar.update(len(batch))
    return CachedImages(images, positions)


def check_room(dataset: ImageDataset, where: str, device: torch.device | str) -> None:
    """Raise UserError unless the images fit into the free memory of ``where``, or for an unknown ``where``.

    Every process holds its own copy: those of this node that torchrun tells of share the host's memory. Nothing is
    checked on systems that do not tell what is free.
    """
    if where not in PLACES:
        raise UserError(f"cache: expected {', '.join(PLACES)}, got {where!r}")
    if where == "none":
        return
    memory = torch.device(device if where == "device" else "cpu")
    on_gpu = memory.type == "cuda"
    copies = 1 if on_gpu else int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    needed, free = 3 * dataset.size**2 * len(dataset), free_memory(memory)
    if free is not None and copies * needed > free:
        raise UserError(
            f"cache: {len(dataset)} images of {dataset.size} px need {copies} x {needed / GB:.3g} GB, and "
            f"{free / GB:.3g} GB are free ({memory}); give --cache {'host or ' * on_gpu}none"
        )


def free_memory(device: torch.device) -> int | None:
    """Bytes that are free on a GPU, or that Linux can make free for programs; None where that is not known."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        with open("/proc/meminfo") as file:
            sizes = dict(line.split(":") for line in file)
        return 1024 * int(sizes["MemAvailable"].split()[0])
    except (OSError, KeyError):
        return None
