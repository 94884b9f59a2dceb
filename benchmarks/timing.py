"""Timing of variants of the same work, each in processes of its own: none has the allocator, threads or memory of
another. Variants run in alternating rounds, so that a machine that slows down slows all of them; medians, ranges and
the ratios of each round are reported, never single runs. Nothing here knows what is measured.
"""

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
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from dbae import runtime
from dbae.config import UserError
from dbae.io import atomic_write

MATMUL_SIZE = {"cuda": 8192, "cpu": 2048}
STATUS, CPUINFO = Path("/proc/self/status"), Path("/proc/cpuinfo")  # where Linux tells of a process and of the CPU


@dataclass
class Work:
    """What is timed, and what happens just ``before`` every run of it, untimed."""

    run: Callable[[], Any]
    before: Callable[[], Any] = lambda: None


Build = Callable[..., Work]  # called in the process with a variant's arguments, the device's name first
Task = Callable[[Work, torch.device], Any]  # done in the process with the work; can be pickled, and so can its result
Ask = Callable[[Task], Any]  # has a variant's processes do a task, and returns the first one's result


@dataclass(frozen=True)
class Timing:
    """Seconds of each round, and the most memory in bytes that was in use in any of them, where it is known."""

    seconds: tuple[float, ...]
    peak_bytes: int | None

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


# Isolated processes


def measure(
    build: Build,
    variants: Mapping[str, tuple[Any, ...]],
    rounds: int,
    tasks: Sequence[Task] = (),
    processes: Mapping[str, int] | None = None,
) -> tuple[dict[str, Timing], dict[str, list[Any]]]:
    """Time ``build(*arguments)`` of every variant once per round, each in a process (or several) of its own.

    One untimed run of each comes first; every second round goes the other way round. Then every variant does the
    ``tasks``, whose results come second. Raises the UserError of a build, and RuntimeError where a process ends.
    """
    with ExitStack() as stack:
        asks = {
            name: stack.enter_context(isolated(name, build, arguments, (processes or {}).get(name, 1)))
            for name, arguments in variants.items()
        }
        for ask in asks.values():
            ask(clocked)
        timings = alternate({name: partial(ask, clocked) for name, ask in asks.items()}, rounds)
        return timings, {name: [ask(task) for task in tasks] for name, ask in asks.items()}


def alternate(variants: Mapping[str, Callable[[], tuple[float, int | None]]], rounds: int) -> dict[str, Timing]:
    """Call every variant, which returns its seconds and its peak of memory, once per round, to and fro."""
    measured: dict[str, list[tuple[float, int | None]]] = {name: [] for name in variants}
    for number in range(rounds):
        for name in list(variants)[:: -1 if number % 2 else 1]:
            measured[name].append(variants[name]())
    timings = {}
    for name, runs in measured.items():
        seconds, peaks = zip(*runs, strict=True)
        timings[name] = Timing(seconds, None if None in peaks else max(peaks))
    return timings


@contextmanager
def isolated(name: str, build: Build, arguments: tuple[Any, ...], world: int = 1) -> Iterator[Ask]:
    """A group of ``world`` processes that hold ``build(*arguments)``; they end with the block."""
    context = multiprocessing.get_context("spawn")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    pipes, started = [], []
    for rank in range(world):
        ours, theirs = context.Pipe()
        started.append(context.Process(target=_serve, args=(theirs, build, arguments, rank, world, port)))
        started[-1].start()
        theirs.close()
        pipes.append(ours)

    def ask(task: Task) -> Any:
        try:
            for pipe in pipes:
                pipe.send(task)
            results = [pipe.recv() for pipe in pipes]
        except (EOFError, OSError):
            raise RuntimeError(f"a process of the variant {name!r} ended") from None
        if isinstance(results[0], UserError):
            raise results[0]
        return results[0]

    try:
        yield ask
    finally:
        for pipe in pipes:
            pipe.close()
        for process in started:
            process.join(timeout=30)
            process.kill()


def _serve(pipe: Connection, build: Build, arguments: tuple[Any, ...], rank: int, world: int, port: int) -> None:
    """Build the work, then do what is asked until nobody asks. The processes of a group share the threads of one."""
    if world > 1:
        where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world}
        os.environ.update({name: str(value) for name, value in where.items()})
        torch.set_num_threads(max(1, torch.get_num_threads() // world))
    device = torch.device(arguments[0])
    try:
        work = build(*arguments)
        while True:
            pipe.send(pipe.recv()(work, device))
    except UserError as error:
        pipe.send(error)
    except EOFError:
        work = None
    runtime.cleanup()


# One run


def clocked(work: Work, device: torch.device) -> tuple[float, int | None]:
    """Seconds of a run until the device was done with it, and the peak of memory so far in bytes.

    The peak is the allocator's on CUDA, on Linux otherwise the resident set of the whole process, elsewhere None.
    """
    work.before()
    gc.collect()
    synchronise = partial(torch.cuda.synchronize, device) if device.type == "cuda" else lambda: None
    synchronise()
    begin = time.perf_counter()
    work.run()
    synchronise()
    seconds = time.perf_counter() - begin
    if device.type == "cuda":
        return seconds, torch.cuda.max_memory_allocated(device)
    found = re.search(r"VmHWM:\s*(\d+) kB", STATUS.read_text()) if STATUS.exists() else None
    return seconds, found and 1024 * int(found[1])


def matmul_peak(device: torch.device, dtype: torch.dtype, rounds: int = 10) -> float:
    """FLOP/s of a large square matrix product, which takes 2 n^3 operations: what the device reaches at best."""
    n = MATMUL_SIZE[device.type]
    a, b = torch.randn(2, n, n, device=device).to(dtype)
    work = Work(lambda: a @ b)
    work.run()
    return 2 * n**3 / statistics.median(clocked(work, device)[0] for _ in range(rounds))


def operations(work: Work, device: torch.device, count: int) -> list[dict[str, Any]]:
    """The ``count`` operations on the device in which a run spends most time, without what they call, and the rest.

    ``share`` is the part of the time of all operations; ``ms`` and ``calls`` are those of one run.
    """
    on_gpu = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as profiler:
        work.run()
    found = [
        (event.key, (event.self_device_time_total if on_gpu else event.self_cpu_time_total) / 1000, event.count)
        for event in profiler.key_averages()
    ]
    found.sort(key=lambda row: -row[1])
    total = sum(ms for _, ms, _ in found)
    found[count:] = [("others", sum(ms for _, ms, _ in found[count:]), None)]
    return [{"operation": name, "ms": ms, "share": ms / total, "calls": calls} for name, ms, calls in found]


# Tables


def table(timings: Mapping[str, Timing], images: Mapping[str, int]) -> list[dict[str, Any]]:
    """One row per variant: seconds, images per second, how many times as fast as the first variant, memory.

    ``images`` says how many are in one run. ``ratio`` compares medians, ``ratio_low`` and ``ratio_high`` the runs of
    each round. ``peak_mb`` is in 10^6 bytes.
    """
    first = next(iter(timings))
    rows = []
    for name, timing in timings.items():
        factor = images[name] / images[first]
        ratios = [factor * theirs / ours for theirs, ours in zip(timings[first].seconds, timing.seconds, strict=True)]
        row = {"variant": name, "median_s": timing.median, "low_s": min(timing.seconds), "high_s": max(timing.seconds)}
        row |= {"images_per_s": images[name] / timing.median, "ratio": factor * timings[first].median / timing.median}
        row |= {"ratio_low": min(ratios), "ratio_high": max(ratios)}
        rows.append(row | {"peak_mb": None if timing.peak_bytes is None else timing.peak_bytes / 1e6})
    return rows


def digits(value: float) -> str:
    """A number to three digits, without an exponent where it is large."""
    return f"{value:.3g}" if abs(value) < 999.5 else f"{value:,.0f}"


def times(ratio: float) -> str:
    return f"{digits(ratio)}x"


def between(low: float, high: float) -> str:
    return f"{digits(low)} to {digits(high)}"


# What print_table shows: title, keys of a row, and their text
Column = tuple[str, tuple[str, ...], Callable[..., str]]
COLUMNS: tuple[Column, ...] = (
    ("variant", ("variant",), str),
    ("median s", ("median_s",), digits),
    ("range s", ("low_s", "high_s"), between),
    ("images/s", ("images_per_s",), digits),
    ("ratio", ("ratio",), times),
    ("ratio in rounds", ("ratio_low", "ratio_high"), between),
    ("peak MB", ("peak_mb",), digits),
    ("of matmul peak", ("matmul_share",), "{:.0%}".format),
    ("largest difference", ("difference",), "{:.1e}".format),
    ("over consumption", ("feeds",), times),
    ("threads each", ("threads",), str),
    ("efficiency", ("efficiency",), "{:.0%}".format),
)
PROFILE: tuple[Column, ...] = (
    ("operation", ("operation",), str),
    ("ms", ("ms",), digits),
    ("share", ("share",), "{:.0%}".format),
    ("calls", ("calls",), str),
)


def print_table(rows: Sequence[Mapping[str, Any]], columns: Sequence[Column] = COLUMNS) -> None:
    """Print rows in Markdown; columns without any value are left out."""

    def cell(row: Mapping[str, Any], keys: tuple[str, ...], text: Callable[..., str]) -> str:
        values = [row.get(key) for key in keys]
        return "" if None in values else text(*values)

    filled = [[title, *(cell(row, keys, text) for row in rows)] for title, keys, text in columns]
    head, *body = zip(*(column for column in filled if any(column[1:])), strict=True)
    for line in (head, ["---"] * len(head), *body):
        print("|", " | ".join(line), "|")


def about(device: torch.device) -> str:
    """One line: the GPU's name or the CPU's model (where Linux tells it), torch's version, and its threads."""
    name = platform.machine()
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    elif CPUINFO.exists() and (found := re.search(r"model name\s*: (.*)", CPUINFO.read_text())):
        name = found[1]
    return f"{name}, torch {torch.__version__}, {torch.get_num_threads()} threads"


def commit(folder: Path = Path(__file__).parent) -> str | None:
    """Short hash of the commit, with "+changes" where tracked files differ from it; None outside of a clone."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "--short", "HEAD") + "+changes" * bool(git("status", "--porcelain", "-uno"))
    except (OSError, subprocess.CalledProcessError):
        return None


def report(
    title: str,
    device: torch.device,
    rows: Sequence[Mapping[str, Any]],
    path: str = "",
    columns: Sequence[Column] = COLUMNS,
    **more: Any,
) -> None:
    """Print the rows, and write them to a JSON file where a ``path`` is given, with machine, commit and ``more``."""
    print(f"{title}; {about(device)}")
    print_table(rows, columns)
    if path:
        with atomic_write(path, "w") as file:
            json.dump(
                {"title": title, "about": about(device), "commit": commit(), **more, "rows": rows}, file, indent=2
            )
