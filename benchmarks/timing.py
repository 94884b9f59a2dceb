"""Timing of variants of the same work, each in processes of its own: none has the allocator, threads or memory of
another. Variants run in alternating rounds, so that a machine that slows down slows all of them, but on a GPU one after
the other; medians, ranges and the ratios of each round are reported, never single runs. Nothing here knows what is
measured.
"""

import atexit
import gc
import json
import multiprocessing
import os
import platform
import re
import socket
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dbae import runtime
from dbae.io import atomic_write

STATUS, CPUINFO = Path("/proc/self/status"), Path("/proc/cpuinfo")  # where Linux tells of a process and of the CPU


@dataclass
class Work:
    """What is timed, and what happens just ``before`` every run of it, untimed."""

    run: Callable[[], Any]
    before: Callable[[], Any] = lambda: None


Build = Callable[..., Work]  # called in a variant's process with its arguments, the device's name first
Clocked = tuple[float, int | None]  # seconds of a run, and the most bytes in use so far where that is known
Row = dict[str, Any]


# Isolated processes


def measure(
    build: Build, variants: Mapping[str, tuple[Any, ...]], rounds: int, processes: Mapping[str, int] | None = None
) -> tuple[dict[str, list[Clocked]], dict[str, Any]]:
    """Time ``build(*arguments)`` of every variant once per round, each in a process, or several, of its own.

    Returns what ``clocked`` says of each round, and what each variant's first run made, which is not timed. Every
    second round goes the other way round; but on CUDA each variant ends before the next begins, as a process keeps the
    memory of its GPU. Raises the error of a build, and BrokenProcessPool where a process ends.
    """
    timings: dict[str, list[Clocked]] = {name: [] for name in variants}
    made: dict[str, Any] = {}
    on_gpu = any(torch.device(arguments[0]).type == "cuda" for arguments in variants.values())
    for together in [[name] for name in variants] if on_gpu else [list(variants)]:
        with ExitStack() as stack:
            runs = {
                name: stack.enter_context(isolated(build, variants[name], (processes or {}).get(name, 1)))
                for name in together
            }
            made |= {name: run() for name, run in runs.items()}
            for number in range(rounds):
                for name in together[:: -1 if number % 2 else 1]:
                    timings[name].append(runs[name]())
    return timings, made


@contextmanager
def isolated(build: Build, arguments: tuple[Any, ...], world: int = 1) -> Iterator[Callable[[], Any]]:
    """Call for what ``runs`` yields next in the first of ``world`` processes, which end with the block."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    spawn = multiprocessing.get_context("spawn")
    with ExitStack() as stack:
        begin = [(build, arguments, rank, world, port) for rank in range(world)]
        pools = [stack.enter_context(ProcessPoolExecutor(1, spawn, _begin, given)) for given in begin]
        yield lambda: next(answer.result() for answer in [pool.submit(_next) for pool in pools])


def _begin(build: Build, arguments: tuple[Any, ...], rank: int, world: int, port: int) -> None:
    """In a process: name the group to join where there are several, which share the threads of one."""
    global _runs
    if world > 1:
        where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world}
        os.environ.update({name: str(value) for name, value in where.items()})
        torch.set_num_threads(max(1, torch.get_num_threads() // world))
    _runs = runs(build, *arguments)
    atexit.register(runtime.cleanup)


def _next() -> Any:
    return next(_runs)


def runs(build: Build, device_name: str, *arguments: Any) -> Iterator[Any]:
    """What the first run of some work made, from a fixed seed; then what ``clocked`` says of each further one."""
    work, device = build(device_name, *arguments), torch.device(device_name)
    work.before()
    torch.manual_seed(0)
    yield work.run()
    while True:
        yield clocked(work, device)


def clocked(work: Work, device: torch.device) -> Clocked:
    """Seconds of a run until the device was done with it, and the peak of memory so far in bytes.

    The peak is the allocator's on CUDA, on Linux otherwise the resident set of the whole process, elsewhere None.
    """
    synchronise = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    work.before()
    gc.collect()
    synchronise()
    begin = time.perf_counter()
    work.run()
    synchronise()
    seconds = time.perf_counter() - begin
    if device.type == "cuda":
        return seconds, torch.cuda.max_memory_allocated(device)
    found = re.search(r"VmHWM:\s*(\d+) kB", STATUS.read_text()) if STATUS.exists() else None
    return seconds, found and 1024 * int(found[1])


# Tables

# Titles of columns, and how they show a row
COLUMNS = {
    "variant": "{variant}",
    "median s": "{median_s:.3g}",
    "range s": "{low_s:.3g} to {high_s:.3g}",
    "images/s": "{images_per_s:,.2f}",
    "ratio": "{ratio:.2f}x",
    "ratio in rounds": "{ratio_low:.2f} to {ratio_high:.2f}",
    "peak MB": "{peak_mb:,.0f}",
    "largest difference": "{difference:.1e}",
    "threads each": "{threads}",
    "efficiency": "{efficiency:.0%}",
}


def table(timings: Mapping[str, Sequence[Clocked]], images: int) -> list[Row]:
    """One row per variant: seconds, images per second, how many times as fast as the first variant, memory.

    ``images`` are in each run. ``ratio`` compares medians, ``ratio_low`` and ``ratio_high`` the runs of each round.
    ``peak_mb`` is in 10^6 bytes, and left out where it is not known.
    """
    rows, first = [], [seconds for seconds, _ in next(iter(timings.values()))]
    for name, rounds in timings.items():
        seconds, peaks = zip(*rounds, strict=True)
        median, ratios = statistics.median(seconds), [a / b for a, b in zip(first, seconds, strict=True)]
        row = {"variant": name, "median_s": median, "low_s": min(seconds), "high_s": max(seconds)}
        row |= {"images_per_s": images / median, "ratio": statistics.median(first) / median}
        row |= {"ratio_low": min(ratios), "ratio_high": max(ratios)}
        rows.append(row | ({} if None in peaks else {"peak_mb": max(peaks) / 1e6}))
    return rows


def markdown(rows: Sequence[Row], columns: Mapping[str, str] = COLUMNS) -> str:
    """Rows as a table. A cell without a value is empty; a column of such cells is left out."""

    def cell(template: str, row: Row) -> str:
        try:
            return template.format_map(row)
        except KeyError:
            return ""

    filled = [[title, "---", *(cell(template, row) for row in rows)] for title, template in columns.items()]
    lines = zip(*(column for column in filled if any(column[2:])), strict=True)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def about(device: torch.device) -> str:
    """One line: the GPU's name or the CPU's model (where Linux tells it), torch's version, and its threads."""
    found = re.search(r"model name\s*: (.*)", CPUINFO.read_text()) if CPUINFO.exists() else None
    cpu = found[1] if found else platform.machine()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu
    return f"{name}, torch {torch.__version__}, {torch.get_num_threads()} threads"


def commit(folder: Path = Path(__file__).parent) -> str | None:
    """Short hash of the commit, with "+changes" where tracked files differ from it; None outside of a clone."""
    command = ["git", "describe", "--always", "--exclude=*", "--dirty=+changes"]
    try:
        return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def report(
    title: str,
    device: torch.device,
    rows: Sequence[Row],
    path: str = "",
    columns: Mapping[str, str] = COLUMNS,
    **more: Any,
) -> None:
    """Print the rows, and write them to a JSON file where a ``path`` is given, with machine, commit and ``more``."""
    print(f"{title}; {about(device)}")
    print(markdown(rows, columns))
    if path:
        with atomic_write(path, "w") as file:
            facts = {"title": title, "about": about(device), "commit": commit()}
            json.dump({**facts, **more, "rows": rows}, file, indent=2)
