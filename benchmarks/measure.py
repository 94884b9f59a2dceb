"""Timing of several ways to do the same work: in turn, in one process, each with its peak of memory.

Nothing here knows what is measured. Ways run alternately, so that a machine that slows down slows all of them; medians,
ranges and per-round ratios are reported, never single runs.
"""

import gc
import os
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from dbae.config import UserError, option, preset_name, require_positive
from scripts.cli import Parser, given

if TYPE_CHECKING:
    import torch

MATMUL_SIZE = {"cuda": 8192, "cpu": 2048}
MATMUL_ROUNDS = 10
PROCESS = Path("/proc/self")  # where Linux tells a process about itself

Options = TypeVar("Options", bound="RoundOptions")


@dataclass(frozen=True)
class RoundOptions:
    """What every program that times something is asked. Raises UserError for a value that cannot be used."""

    device: str = option("auto", "auto, cpu or cuda")
    rounds: int = option(5, "timed rounds, in each of which every way runs once")
    json: str = option("", "file to write the rows to as well")

    def __post_init__(self) -> None:
        require_positive("rounds", self.rounds)
        if os.path.isdir(self.json):
            raise UserError(f"json: expected a file's path, {self.json} is a folder")


@dataclass(frozen=True)
class SpeedOptions(RoundOptions):
    """The same of a program that runs a model."""

    dataset: str = option("toyfaces", "preset of the model: a data set's name or folder:PATH")

    def __post_init__(self) -> None:
        super().__post_init__()
        preset_name(self.dataset)


def check_work(ways: str, known: Iterable[str], **numbers: int) -> None:
    """Raise UserError for a way, of some between commas, that is not known, and for a number that is not above 0."""
    for way in ways.split(","):
        if way not in known:
            raise UserError(f"ways: expected some of {', '.join(known)}, got {way!r}")
    for name, number in numbers.items():
        require_positive(name, number)


def read_options(description: str, cls: type[Options]) -> Options:
    """The options of a program's command line, described by the fields of ``cls``."""
    parser = Parser(description)
    parser.add_config("options", cls)
    return cls(**given(parser.parse_args(), cls))


# Timing


@dataclass(frozen=True)
class Timing:
    """Seconds of each round, and the most memory in bytes that was in use in any of them, where it is known."""

    seconds: tuple[float, ...]
    peak_bytes: int | None

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def low(self) -> float:
        return min(self.seconds)

    @property
    def high(self) -> float:
        return max(self.seconds)


Clocked = Callable[[], tuple[float, int | None]]  # runs a way once; its seconds and peak in bytes


def alternate(ways: Mapping[str, Callable[[], object]], rounds: int, device: "torch.device") -> dict[str, Timing]:
    """Time every way once per round, after one untimed run of each; every second round goes the other way round.

    The device is idle before and after each run. The peak is the allocator's on CUDA, on Linux otherwise the resident
    set of this process, which includes all that was there before; elsewhere it is None.
    """
    for work in ways.values():
        work()
    return collect({way: partial(clocked, work, device) for way, work in ways.items()}, rounds)


def collect(ways: Mapping[str, Clocked], rounds: int) -> dict[str, Timing]:
    """The same for ways that clock themselves, and warm up by themselves where they need to."""
    measured: dict[str, list[tuple[float, int | None]]] = {way: [] for way in ways}
    for number in range(rounds):
        for way in list(ways)[:: -1 if number % 2 else 1]:
            measured[way].append(ways[way]())
    timings = {}
    for way, runs in measured.items():
        seconds, peaks = zip(*runs, strict=True)
        timings[way] = Timing(seconds, None if None in peaks else max(peaks))
    return timings


def clocked(work: Callable[[], object], device: "torch.device") -> tuple[float, int | None]:
    """Seconds that ``work`` took until the device was done with it, and the peak of memory meanwhile in bytes."""
    gc.collect()
    synchronise(device)
    counting = reset_peak(device)
    begin = time.perf_counter()
    work()
    synchronise(device)
    seconds = time.perf_counter() - begin
    return seconds, peak_bytes(device) if counting else None


def synchronise(device: "torch.device") -> None:
    """Wait until a GPU has done all that was asked of it."""
    if device.type == "cuda":
        import torch

        torch.cuda.synchronize(device)


def reset_peak(device: "torch.device") -> bool:
    """Let ``peak_bytes`` count from now on; False where the system cannot."""
    if device.type == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats(device)
        return True
    try:
        (PROCESS / "clear_refs").write_text("5")
    except OSError:
        return False
    return True


def peak_bytes(device: "torch.device") -> int:
    """The most memory in use since ``reset_peak``, where that returned True."""
    if device.type == "cuda":
        import torch

        return torch.cuda.max_memory_allocated(device)
    status = dict(line.split(":", 1) for line in (PROCESS / "status").read_text().splitlines())
    return 1024 * int(status["VmHWM"].removesuffix("kB"))


def matmul_peak(device: "torch.device", dtype: "torch.dtype") -> float:
    """FLOP/s of a large square matrix product, which takes 2 n^3 operations: what the device reaches at best."""
    import torch

    n = MATMUL_SIZE[device.type]
    a, b = torch.randn(2, n, n, device=device).to(dtype)
    return 2 * n**3 / alternate({"product": lambda: a @ b}, MATMUL_ROUNDS, device)["product"].median
