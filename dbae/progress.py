"""What a training run shows and writes while it goes: a progress bar, ``progress.csv`` and TensorBoard."""

import csv
import sys
import time
from importlib.util import find_spec
from typing import Any

import blobfile as bf
import torch
from torch import Tensor
from tqdm import tqdm

from dbae.files import atomic_write

COLUMNS = ("step", "images", "loss", "images_per_second", "seconds")


def progress_bar(total: int, unit: str, desc: str, initial: int = 0, enabled: bool = True) -> tqdm:
    """A bar with rate and remaining time; where nobody watches a terminal, a line every ten seconds."""
    pace = {"mininterval": 0.1 if sys.stderr.isatty() else 10, "dynamic_ncols": True}
    return tqdm(total=total, unit=unit, desc=desc, initial=initial, disable=not enabled, **pace)


class Progress:
    """Collects the losses of a run and reports their mean every ``interval`` steps.

    Losses stay on their device between reports, so that a step never waits for one.
    """

    def __init__(self, run_dir: str, step: int, total_steps: int, interval: int) -> None:
        self.interval = interval
        self.path = bf.join(run_dir, "progress.csv")
        self.seconds = _continue_table(self.path, step)
        self.bar = progress_bar(total_steps, "step", "train", initial=step)
        self.board = _tensorboard(run_dir)
        self._begin()

    def update(self, step: int, images: int, batch: int, loss: Tensor) -> None:
        """Note the mean loss (a scalar tensor) of a step over ``batch`` images, ``images`` in all."""
        self.losses.append(loss)
        self.images_since += batch
        self.bar.update()
        if step % self.interval == 0 or step == self.bar.total:
            self._report(step, images)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: Any) -> None:
        self.bar.close()
        if self.board:
            self.board.close()

    def _begin(self) -> None:
        self.losses: list[Tensor] = []
        self.images_since, self.start = 0, time.monotonic()

    def _report(self, step: int, images: int) -> None:
        loss = torch.stack(self.losses).mean().item()
        elapsed = time.monotonic() - self.start
        rate = self.images_since / elapsed
        self.seconds += elapsed
        with bf.BlobFile(self.path, "a", streaming=False) as file:
            csv.writer(file).writerow((step, images, f"{loss:.6g}", f"{rate:.1f}", f"{self.seconds:.1f}"))
        self.bar.set_postfix_str(f"loss {loss:.4f}, {rate:.1f} images/s", refresh=False)
        if self.board:
            self.board.add_scalar("loss", loss, images)
            self.board.add_scalar("images_per_second", rate, images)
        self._begin()


def _continue_table(path: str, step: int) -> float:
    """Keep the table's rows up to ``step``, begin one where there is none, and return its last row's seconds."""
    rows = []
    if bf.exists(path):
        with bf.BlobFile(path, "r") as file:
            rows = [row for row in csv.DictReader(file) if int(row["step"]) <= step]
    with atomic_write(path, "w") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    return float(rows[-1]["seconds"]) if rows else 0.0


def _tensorboard(run_dir: str) -> Any:
    """A TensorBoard writer where the package is installed and the folder is local, else None."""
    if find_spec("tensorboard") is None or "://" in run_dir:
        return None
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(run_dir)
