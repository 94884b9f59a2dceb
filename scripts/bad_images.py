"""The list of bad images beside results, and what is said about them at the end."""

import dataclasses
import json
from collections.abc import Collection
from typing import TYPE_CHECKING

from dbae.config import UserError

if TYPE_CHECKING:
    from datasets.bad_images import BadImages, Fault
    from datasets.base import ImageDataset

POLICIES = ("fail", "skip")
FILE = "bad_images.json"
SHOWN = 10  # images that are printed at the end


def noted(policy: str, path: str = "") -> "BadImages | None":
    """Where bad images are noted: nowhere (None) with ``fail``, else in a list that begins with the one in ``path``.

    Raises UserError where there is something else in ``path``.
    """
    import blobfile as bf

    from datasets.bad_images import BadImages, Fault

    if policy == "fail":
        return None
    if not path or not bf.exists(path):
        return BadImages()
    try:
        with bf.BlobFile(path, "r") as file:
            faults = [Fault(int(row["position"]), str(row["name"]), str(row["problem"])) for row in json.load(file)]
    except (ValueError, TypeError, KeyError):
        raise UserError(f"{path}: expected the list of bad images that an earlier run wrote, or no such file") from None
    return BadImages({fault.name: fault for fault in faults})


def left_out(data: "ImageDataset", images: int, kept: Collection[int]) -> "list[Fault]":
    """What is wrong with those of the first ``images`` that are not ``kept``; each is read once more."""
    from datasets.bad_images import why

    return why(data, sorted(set(range(images)).difference(kept)))


def require_some(data: "ImageDataset", images: int, kept: Collection[int]) -> None:
    """Raise UserError where none of the first ``images`` is kept."""
    if not len(kept):
        problem = left_out(data, 1, [])[0].problem
        raise UserError(f"{data.title}: expected a good image, all {images} are bad; the first: {problem}")


def report(path: str, faults: "Collection[Fault]", images: int, what: str) -> None:
    """Print how many of the ``images`` were bad and which, and write them all to ``path``; nothing where none was.

    ``what`` says what became of them. The file is a list of objects with position, name and problem.
    """
    from dbae.io import atomic_write

    if not faults:
        return
    rows = [dataclasses.asdict(fault) for fault in sorted(faults, key=lambda fault: fault.position)]
    with atomic_write(path, "w") as file:
        json.dump([{key: row[key] for key in ("position", "name", "problem")} for row in rows], file, indent=1)
    for row in rows[:SHOWN]:
        print(f"bad image {row['position']}: {row['problem']}")
    print(f"{len(rows)} of {images} images are bad and were {what}: {path} lists them")
