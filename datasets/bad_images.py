"""What becomes of an image that cannot be read: the run ends with its name, or goes on without it and keeps a list."""

import sys
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate
from tqdm import tqdm

from datasets.images import UnreadableImage
from dbae.config import UserError

SHOWN = 10  # bad images that are warned of one by one
TRIES = 1000  # images that are tried in place of a bad one


@dataclass(frozen=True)
class Fault:
    """What went wrong with an image. It is a value, because an exception leaves a worker as a traceback in text."""

    position: int  # in the split
    name: str  # key or file name
    problem: str  # one line, which says where
    one_image: bool = True  # whether the other images may be fine


@dataclass
class BadImages:
    """The bad images that a run went on without, by name."""

    found: dict[str, Fault] = field(default_factory=dict)

    def note(self, fault: Fault) -> None:
        """Keep a fault; a new one is warned of, unless there were many."""
        if fault.name not in self.found:
            self.found[fault.name] = fault
            if len(self.found) <= SHOWN:
                last = "; further ones are counted and listed at the end" if len(self.found) == SHOWN else ""
                tqdm.write(f"warning: {fault.problem}{last}", file=sys.stderr)


class Reader(Dataset):
    """A data set whose errors are values: ``reader[i]`` is an image [3, s, s] or None, ``i``, and a Fault or None.

    With ``replace`` another image stands in for a bad one, always the same. It is drawn: the next good one after a long
    gap would be seen as often as the gap is long.
    """

    def __init__(self, dataset: Dataset, replace: bool = False) -> None:
        self.dataset, self.replace = dataset, replace

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, i: int) -> tuple[Tensor | None, int, Fault | None]:
        image, fault = self._read(i)
        if fault and fault.one_image and self.replace:
            image, another = self._substitute(i)
            fault = another or fault
        return image, i, fault

    def _read(self, i: int) -> tuple[Tensor | None, Fault | None]:
        try:
            return self.dataset[i][0], None
        except (UserError, OSError, MemoryError) as error:
            name = self.dataset.name_of(i)
            return None, Fault(i, name, str(error) or f"{name}: out of memory", isinstance(error, UnreadableImage))

    def _substitute(self, i: int) -> tuple[Tensor | None, Fault | None]:
        """The first good one of some images drawn by ``i``; a fault if there is none, or for another kind of error."""
        for j in np.random.default_rng(i).integers(len(self), size=TRIES).tolist():
            image, fault = self._read(j)
            if fault is None or not fault.one_image:
                return image, fault
        return None, replace(fault, problem=f"{fault.problem}; nor is any of {TRIES} others good", one_image=False)


def collate(items: list[tuple[Tensor | None, int, Fault | None]]) -> tuple[Tensor, Tensor, list[Fault]]:
    """Images [n, 3, s, s] and positions [n] of those that are there, n = 0 perhaps, and the faults."""
    images = [image for image, _, _ in items if image is not None]
    positions = [position for image, position, _ in items if image is not None]
    faults = [fault for _, _, fault in items if fault]
    return default_collate(images) if images else torch.empty(0, 3, 0, 0), torch.tensor(positions, dtype=int), faults


def why(dataset: Dataset, positions: list[int]) -> list[Fault]:
    """What is wrong with the images at some positions, each read once more."""
    reader = Reader(dataset)
    return [reader[i][2] or Fault(i, name := dataset.name_of(i), f"{name} can be read now") for i in positions]
