"""What a training run shows and writes while it goes: a progress bar, ``progress.csv`` and TensorBoard."""

import csv
import io
import sys
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from importlib.util import find_spec
from math import nan
from statistics import fmean
from typing import Any

import blobfile as bf
from tqdm import tqdm

from dbae.config import TrainConfig, UserError
from dbae.io import atomic_write
from dbae.runtime import warn0

TIMED = 10  # steps after the first, by which the end of a run is foretold
TIMED_SECONDS = 10  # that they take at least, or more steps are awaited
DAY = 86_400  # seconds
COLUMNS = ("step", "images", "loss", "images_per_second", "seconds", "skipped")


def progress_bar(total: int, unit: str, desc: str, initial: int = 0, enabled: bool = True) -> tqdm:
    """A bar with rate and remaining time; where nobody watches a terminal, a line every ten seconds."""
    pace = {"mininterval": 0.1 if sys.stderr.isatty() else 10, "dynamic_ncols": True}
    return tqdm(total=total, unit=unit, desc=desc, initial=initial, disable=not enabled, **pace)


def attempt(what: str, write: Callable[[], None]) -> str | None:
    """Call ``write``, and return why it could not write ``what``: None, or a full disk, a lost path... in a few words.

    The reason is also a warning, and no more than that: a run outlives what it cannot write.
    """
    try:
        write()
    except (OSError, bf.Error, UserError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        warn0(f"{what} could not be written: {reason}")
        return reason
    return None


def pace(seconds: float, steps: int, now: datetime) -> str:
    """How long a step takes, and when ``steps`` more are done: ``2.1 s a step: done in 3 h 10 min, at 14:05``."""
    left = round(seconds * steps)
    days, hours, minutes = left // DAY, left % DAY // 3600, left % 3600 // 60
    parts = [(days, "d"), (hours, "h"), (minutes, "min")] if days else [(hours, "h"), (minutes, "min")]
    shown = " ".join(f"{n} {unit}" for n, unit in parts[:2] if n) or f"{left} s"
    end = now + timedelta(seconds=left)
    return f"{seconds:.2g} s a step: done in {shown}, at {end:%H:%M}" + f" on {end:%Y-%m-%d}" * (
        end.date() > now.date()
    )


class Progress:
    """Collects the losses of a run, which is at ``step``, and reports their mean every ``log_interval`` steps.

    ``quiet`` prints these reports as lines in place of a bar. After a few steps one line says when the run is done,
    with the ``hint`` where that is days away.
    """

    def __init__(self, run_dir: str, step: int, config: TrainConfig, quiet: bool = False, hint: str = "") -> None:
        self.config, self.quiet, self.hint = config, quiet, hint
        self.done, self.first = 0, 0.0  # steps of this start, and when the first of them was done
        self.foretold = False  # whether the line on the end is out
        self.path = bf.join(run_dir, "progress.csv")
        self.seconds = _continue_table(self.path, step)
        self.torn = False
        self.bar = progress_bar(config.total_steps, "step", "train", initial=step, enabled=not quiet)
        self.board = _tensorboard(run_dir)
        self._begin()

    def update(self, step: int, images: int, loss: float | None) -> None:
        """Note that step ``step`` is done, after ``images`` images in all; None: it was skipped."""
        self.losses.append(loss)
        self.bar.update()
        self.done += 1
        if self.done == 1:  # the first is slower: memory, compilation
            self.first = time.monotonic()
        elif not (self.foretold or self.quiet) and step < self.config.total_steps:
            steps, seconds = self.done - 1, time.monotonic() - self.first
            self.foretold = steps >= TIMED and seconds >= TIMED_SECONDS
            if self.foretold:
                self._foretell(seconds / steps, self.config.total_steps - step)
        if step % self.config.log_interval == 0 or step == self.config.total_steps:
            self._report(step, images)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: Any) -> None:
        self.bar.close()
        if self.board:
            attempt("the last TensorBoard events", self.board.close)

    def _foretell(self, seconds: float, steps: int) -> None:
        slow = seconds * steps > DAY and self.hint
        self.bar.write(pace(seconds, steps, datetime.now()) + (f"; {self.hint}" if slow else ""))

    def _begin(self) -> None:
        self.losses: list[float | None] = []
        self.start = time.monotonic()

    def _report(self, step: int, images: int) -> None:
        taken = [loss for loss in self.losses if loss is not None]
        loss, skipped = fmean(taken) if taken else nan, len(self.losses) - len(taken)
        elapsed = time.monotonic() - self.start
        rate = len(self.losses) * self.config.batch_size / elapsed
        self.seconds += elapsed
        row = (step, images, f"{loss:.6g}", f"{rate:.1f}", f"{self.seconds:.1f}", skipped)
        self.torn = bool(attempt("a row of progress.csv", lambda: self._append(row)))
        shown = f"loss {loss:.4f}, {rate:.1f} images/s" + f", {skipped} steps skipped" * bool(skipped)
        self.bar.set_postfix_str(shown, refresh=False)
        if self.quiet:
            print(f"step {step}, {images} images: {shown}", flush=True)
        if self.board:
            values = {"loss": loss, "images_per_second": rate, "skipped": skipped}
            if attempt("TensorBoard events", lambda: [self.board.add_scalar(n, v, images) for n, v in values.items()]):
                self.board = None  # its thread has ended
        self._begin()

    def _append(self, row: Sequence[Any]) -> None:
        with bf.BlobFile(self.path, "ab", streaming=False) as file:
            file.write(b"\n" * self.torn + _lines([row]))  # a torn row must not take the next one with it


def _lines(rows: Sequence[Sequence[Any]]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows)
    return text.getvalue().encode()


def _continue_table(path: str, step: int) -> float:
    """Keep the table's whole rows up to ``step``, or begin one, and return its last row's seconds."""
    rows = []
    if bf.exists(path):
        with bf.BlobFile(path, "rb") as file:
            lines = file.read().decode(errors="replace").splitlines(keepends=True)
        rows = [row for row in map(_whole_row, lines) if row and float(row[0]) <= step]
    with atomic_write(path) as file:
        file.write(_lines([COLUMNS, *rows]))
    return float(rows[-1][4]) if rows else 0.0


def _whole_row(line: str) -> list[str] | None:
    """The cells of a row; None for the header and for what a power failure or a full disk left of a row."""
    cells = line.strip().split(",")
    if len(cells) == len(COLUMNS) - 1:
        cells.append("0")  # written before skipped steps were counted
    try:
        numbers = [float(cell) for cell in cells]
    except ValueError:
        return None
    return cells if len(numbers) == len(COLUMNS) and line.endswith("\n") and numbers[0].is_integer() else None


def _tensorboard(run_dir: str) -> Any:
    """A TensorBoard writer where the package is installed and the folder is local, else None."""
    if find_spec("tensorboard") is None or "://" in run_dir:
        return None
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(run_dir)
