"""What the speed benchmarks print and write: their rows as a table, and in JSON with the machine and the commit."""

import json
import platform
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.measure import Timing

if TYPE_CHECKING:
    import torch

CPUINFO = Path("/proc/cpuinfo")  # where Linux tells a CPU's model


# Tables


def table(
    timings: Mapping[str, Timing],
    baseline: str,
    images: int,
    peak_flops: float | None = None,
    flops: Mapping[str, float] | None = None,
) -> list[dict[str, Any]]:
    """One row per way: seconds, images per second, how many times as fast as the way ``baseline``, memory.

    ``images`` is their number in one run of any way. ``ratio`` compares medians, ``ratio_low`` and ``ratio_high`` the
    runs of each round. ``peak_mb`` is in 10^6 bytes. With ``peak_flops``, a FLOP/s, and the ``flops`` of one run of
    some ways, ``matmul_share`` is the part of that speed they reach.
    """
    reference = timings[baseline]
    rows = []
    for way, timing in timings.items():
        ratios = [theirs / ours for theirs, ours in zip(reference.seconds, timing.seconds, strict=True)]
        counted = peak_flops is not None and way in (flops or {})
        rows.append(
            {
                "way": way,
                "median_s": timing.median,
                "low_s": timing.low,
                "high_s": timing.high,
                "images_per_s": images / timing.median,
                "ratio": reference.median / timing.median,
                "ratio_low": min(ratios),
                "ratio_high": max(ratios),
                "peak_mb": None if timing.peak_bytes is None else timing.peak_bytes / 1e6,
                "matmul_share": flops[way] / timing.median / peak_flops if counted else None,
            }
        )
    return rows


def digits(value: float) -> str:
    """A number to three digits, without an exponent where it is large."""
    return f"{value:.3g}" if abs(value) < 999.5 else f"{value:,.0f}"


def between(low: float, high: float) -> str:
    return f"{digits(low)} to {digits(high)}"


# What print_table shows: title, keys of a row, and their text
Column = tuple[str, tuple[str, ...], Callable[..., str]]
COLUMNS: tuple[Column, ...] = (
    ("way", ("way",), str),
    ("median s", ("median_s",), digits),
    ("range s", ("low_s", "high_s"), between),
    ("images/s", ("images_per_s",), digits),
    ("ratio", ("ratio",), lambda ratio: f"{digits(ratio)}x"),
    ("ratio in rounds", ("ratio_low", "ratio_high"), between),
    ("peak MB", ("peak_mb",), digits),
    ("of matmul peak", ("matmul_share",), "{:.0%}".format),
)


def print_table(rows: list[dict[str, Any]], more: tuple[Column, ...] = ()) -> None:
    """Print rows in Markdown, with ``more`` columns of a benchmark's own; columns without any value are left out."""

    def values(row: dict[str, Any], keys: tuple[str, ...]) -> list[Any]:
        return [row.get(key) for key in keys]

    columns = [column for column in COLUMNS + more if any(None not in values(row, column[1]) for row in rows)]
    print("|", " | ".join(title for title, _, _ in columns), "|\n" + "|---" * len(columns) + "|")
    for row in rows:
        cells = (text(*values(row, keys)) if None not in values(row, keys) else "" for _, keys, text in columns)
        print("|", " | ".join(cells), "|")


# Where and with what


def about(device: "torch.device") -> str:
    """One line: the GPU's or CPU's name, torch's version, and its threads."""
    import torch

    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    return f"{name}, torch {torch.__version__}, {torch.get_num_threads()} threads"


def write_json(path: str, title: str, device: "torch.device", rows: list[dict[str, Any]], **more: Any) -> None:
    """Write a benchmark's rows with what they were measured on: ``about`` and ``commit``, null outside of a clone."""
    from dbae.io import atomic_write

    report = {"title": title, "about": about(device), "commit": _commit(), **more, "rows": rows}
    with atomic_write(path, "w") as file:
        json.dump(report, file, indent=2)


def _processor() -> str:
    """The CPU's model where Linux tells it, else its architecture."""
    try:
        lines = CPUINFO.read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _commit() -> str | None:
    """Short hash of the commit, with "+changes" where tracked files differ from it."""
    try:
        return _git("rev-parse", "--short", "HEAD") + "+changes" * bool(_git("status", "--porcelain", "-uno"))
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(*words: str) -> str:
    folder = Path(__file__).parent
    return subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, check=True).stdout.strip()
