"""The checkpoints of a training run, by what a command line names them: files, or the folder of the run."""

import csv
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass

from dbae.checkpoint import NAME, read_config
from dbae.config import UserError
from dbae.io import listdir

OFFICIAL = re.compile(r"model_(?P<step>\d+)\.pth")  # DDAE's, which hold the average and are numbered by epochs


@dataclass(frozen=True)
class Checkpoint:
    """A weight file, its number (training step; epoch in official names) and how many images training had seen."""

    path: str
    number: int | None
    images: int | None

    @classmethod
    def of(cls, path: str) -> "Checkpoint":
        """What the name and the run's configuration say of a file."""
        folder, name = os.path.split(path)
        match = NAME.fullmatch(name) or OFFICIAL.fullmatch(name)
        number = int(match["step"]) if match else None
        return cls(path, number, None if number is None else _images(folder, number))

    @property
    def folder(self) -> str:
        return os.path.dirname(self.path)


def _images(folder: str, step: int) -> int | None:
    """Images that a run had seen by a step: as its log says, or without one if every step took the same batch."""
    log = os.path.join(folder, "progress.csv")
    if os.path.exists(log):
        with open(log, encoding="utf-8") as file:
            logged = {row.get("step"): row.get("images") for row in csv.DictReader(file)}
        return int(logged[str(step)]) if str(step) in logged else None
    batch = ((read_config(folder) or {}).get("train") or {}).get("batch_size")
    return step * batch if isinstance(batch, int) else None


def checkpoints(text: str) -> list[Checkpoint]:
    """The weight files that ``text`` names: a file, several separated by commas, or a folder, for all its averages.

    Those of a folder are in the order of training; official files are averages, too. Raises UserError for a folder
    without any.
    """
    paths = [text] if os.path.exists(text) else text.split(",")
    found = []
    for path in paths:
        if not os.path.isdir(path):
            found.append(Checkpoint.of(path))
            continue
        names = listdir(path)
        kept = [m[0] for m in map(NAME.fullmatch, names) if m and m["rate"] and not m["prefix"]]
        kept = kept or [name for name in names if OFFICIAL.fullmatch(name)]
        if not kept:
            raise UserError(f"model_path: expected a folder with files like ema_0.9999_001000.pt, {path} has none")
        found += sorted((Checkpoint.of(os.path.join(path, name)) for name in kept), key=lambda each: each.number)
    return found


def thinned(found: Sequence[Checkpoint], every: int) -> list[Checkpoint]:
    """Those whose number is a multiple of ``every``, and the last; all for 0."""
    return [each for each in found if not every or each is found[-1] or (each.number or 0) % every == 0]
