"""Where the time of some work goes, by PyTorch operation."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from benchmarks.report import digits

if TYPE_CHECKING:
    import torch


def operations(work: Callable[[], object], device: "torch.device", count: int) -> list[dict[str, Any]]:
    """The ``count`` operations on the device in which ``work`` spends most time, without what they call, and the rest.

    ``share`` is the part of the time of all operations; ``ms`` and ``calls`` are those of one run.
    """
    from torch.profiler import ProfilerActivity, profile

    on_gpu = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as profiler:
        work()
    found = [
        {"operation": event.key, "ms": (event.self_device_time_total if on_gpu else event.self_cpu_time_total) / 1000}
        | {"calls": event.count}
        for event in profiler.key_averages()
    ]
    found.sort(key=lambda row: -row["ms"])
    total = sum(row["ms"] for row in found)
    others = {"operation": "others", "ms": sum(row["ms"] for row in found[count:]), "calls": None}
    return [row | {"share": row["ms"] / total} for row in [*found[:count], others]]


def print_operations(title: str, rows: list[dict[str, Any]]) -> None:
    """Print rows of ``operations`` in Markdown."""
    print(f"\n| {title} | ms | share | calls |\n|---|---|---|---|")
    for row in rows:
        calls = "" if row["calls"] is None else row["calls"]
        print(f"| {row['operation']} | {digits(row['ms'])} | {row['share']:.0%} | {calls} |")
