"""What becomes of an image that cannot be read: the run ends with its name, or goes on without it and keeps a list."""

import dataclasses
import json
import sys
from collections.abc import Collection, Iterable
from dataclasses import dataclass

import blobfile as bf
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate
from tqdm import tqdm

from datasets.images import UnreadableImage
from dbae.config import UserError
from dbae.io import atomic_write

POLICIES = ("fail", "skip")
FILE = "bad_images.json"
SHOWN = 10  # bad images that are named one by one, when they are met and at the end
TRIES = 1000  # images that are tried in place of a bad one


@dataclass(frozen=True)
class Fault:
    """What went wrong with an image: a value, as an exception leaves a worker as a traceback in text."""

    position: int  # in the split
    name: str  # key or file name
    problem: str  # one line, which says where
    one_image: bool = True  # whether the other images may be fine


class Tolerant(Dataset):
    """A data set whose errors are values: an item is an image [3, s, s] or None, its position, and a Fault or None.

    The policy ``fail`` raises the first fault in the main process, ``skip`` goes on and lists them: a bad image is left
    out, or with ``replace`` another one stands in, always the same, whose position the item has.
    """

    def __init__(self, dataset: Dataset, policy: str = "fail", replace: bool = False, path: str = "") -> None:
        """``path`` is the list that an earlier run wrote, perhaps."""
        self.dataset, self.policy = dataset, policy
        self.replace = replace and policy == "skip"
        self.faults: dict[str, Fault] = {}  # by name
        if policy == "skip" and path and bf.exists(path):
            try:
                with bf.BlobFile(path, "r") as file:
                    rows = [Fault(int(row["position"]), row["name"], row["problem"]) for row in json.load(file)]
                self.faults = {fault.name: fault for fault in rows}
            except (ValueError, TypeError, KeyError):
                expected = "expected the list of bad images that an earlier run wrote, or no such file"
                raise UserError(f"{path}: {expected}") from None

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, i: int) -> tuple[Tensor | None, int, Fault | None]:
        image, fault = self._read(i)
        if fault is None or not (fault.one_image and self.replace):
            return image, i, fault
        # A drawn one in its place: the next good one after a long gap would be seen as often as the gap is long
        for j in np.random.default_rng(i).integers(len(self), size=TRIES).tolist():
            image, another = self._read(j)
            if another is None:
                return image, j, fault
            if not another.one_image:
                return None, i, another
        nothing = f"{fault.problem}; nor is any of {TRIES} others good"
        return None, i, dataclasses.replace(fault, problem=nothing, one_image=False)

    def _read(self, i: int) -> tuple[Tensor | None, Fault | None]:
        try:
            return self.dataset[i][0], None
        except (UserError, OSError, MemoryError) as error:
            name = self.dataset.name_of(i)
            return None, Fault(i, name, str(error) or f"{name}: out of memory", isinstance(error, UnreadableImage))

    def settle(self, faults: Iterable[Fault]) -> None:
        """Note the faults of a batch and warn of new ones. Raises UserError for one that cannot be passed over."""
        for fault in faults:
            if self.policy == "fail" or not fault.one_image:
                raise UserError(fault.problem)
            if fault.name not in self.faults:
                self.faults[fault.name] = fault
                if len(self.faults) <= SHOWN:
                    last = "; further ones are counted and listed at the end" if len(self.faults) == SHOWN else ""
                    tqdm.write(f"warning: {fault.problem}{last}", file=sys.stderr)

    def merge(self, parts: Iterable[dict[str, Fault]]) -> None:
        """Note the faults that other processes found."""
        for part in parts:
            self.faults |= part

    def check_kept(self, kept: Collection[int], images: int) -> None:
        """Note what is wrong with those of the first ``images`` that were not kept.

        Raises UserError where none was, and with the policy ``fail`` for any.
        """
        self.faults = {}
        for i in sorted(set(range(images)).difference(kept)):
            name, (_, fault) = self.dataset.name_of(i), self._read(i)
            self.faults[name] = fault or Fault(i, name, f"{name} can be read now")
            if not len(kept):
                expected = f"{self.dataset.title}: expected a good image, all {images} are bad"
                raise UserError(f"{expected}; the first: {self.faults[name].problem}")
            if self.policy == "fail":
                raise UserError(f"{self.faults[name].problem} (it was left out before)")

    def report(self, path: str, images: int | None = None) -> None:
        """Print how many of the ``images`` (default: all) were bad, and write position, name and problem of each."""
        if not self.faults:
            return
        faults = sorted(self.faults.values(), key=lambda fault: fault.position)
        rows = [{key: getattr(fault, key) for key in ("position", "name", "problem")} for fault in faults]
        with atomic_write(path, "w") as file:
            json.dump(rows, file, indent=1)
        for row in rows[:SHOWN]:
            print(f"bad image {row['position']}: {row['problem']}")
        what = "replaced" if self.replace else "left out"
        print(f"{len(rows)} of {images or len(self)} images are bad and were {what}: {path} lists them")


def collate(items: list[tuple[Tensor | None, int, Fault | None]]) -> tuple[Tensor, Tensor, list[Fault]]:
    """Images [n, 3, s, s] and positions [n] of those that are there, n = 0 perhaps, and the faults."""
    images = [image for image, _, _ in items if image is not None]
    positions = [position for image, position, _ in items if image is not None]
    batch = default_collate(images) if images else torch.empty(0, 3, 0, 0, dtype=torch.uint8)
    return batch, torch.tensor(positions, dtype=torch.long), [fault for _, _, fault in items if fault]
