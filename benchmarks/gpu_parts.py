"""The parts of benchmarks/gpu.py that time: each yields its tables anew whenever it knows more."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, TypedDict

import torch

from benchmarks import timing
from benchmarks.memory import needs
from benchmarks.reference import ReferenceUpConv2d
from benchmarks.speed import INFERENCE, TRAINING, Benchmark, Sampling, Training
from benchmarks.timing import COLUMNS, Build, Row, Work, clocked
from dbae.methods import METHODS
from dbae.nn.layers import UpConv2d

PEAK_SIZE = 8192  # of the matrices whose product gives the peak
MEASURED = {
    **COLUMNS,
    "ms per call": "{call_ms:.2f}",
    "first run s": "{first_s:.1f}",
    "kernels per step": "{kernels:,.0f}",
    "GroupNorm": "{group_norm:.0%}",
    "of the matmul peak": "{peak_share:.0%}",
    "error": "{error}",
}


class Table(TypedDict):
    """A table of gpu.md."""

    title: str
    columns: Mapping[str, str]
    rows: list[Row]


@dataclass(frozen=True)
class Setup:
    """Where parts run: on which device, whether with small networks, and a folder to write to."""

    device: str
    toy: bool
    folder: str

    def chosen(self, usual: Any, toy: Any) -> Any:
        return toy if self.toy else usual


# Variants of training and sampling


def compare(
    build: Build, variants: Mapping[str, tuple[Any, ...]], images: int, rounds: int = 3, steps: int = 1
) -> Iterator[list[Row]]:
    """Rows after each variant, which are timed one after the other; one that fails has its error."""
    timings: dict[str, list[timing.Clocked]] = {}
    facts: dict[str, Row] = {}
    failed: list[Row] = []
    for name, arguments in variants.items():
        try:
            found, first = timing.measure(build, {name: arguments}, rounds)
        except Exception as error:  # out of memory, a compiler that is not there...: the next may work
            failed.append({"variant": name, "error": str(error).strip().split("\n")[0][:200] or type(error).__name__})
        else:
            timings, facts = timings | found, facts | first
        rows = timing.table(timings, images) if timings else []
        yield [row | facts[row["variant"]] | {"call_ms": 1e3 * row["median_s"] / steps} for row in rows] + failed


def observed(device_name: str, options: Benchmark, variant: str, cudnn: bool = True) -> Work:
    """A variant's work, whose first run is told of: its seconds, kernels per step, and GroupNorm's share of time."""
    work, device = options.work(device_name, variant), torch.device(device_name)
    torch.backends.cudnn.benchmark &= cudnn
    first = [True]

    def run_once() -> Any:
        if not first:
            return work.run()
        first.clear()
        seconds, _ = clocked(work, device)
        return {"first_s": seconds, **profiled(work, device, options.steps)}

    return Work(run_once, work.before)


def profiled(work: Work, device: torch.device, steps: int) -> Row:
    """Kernels in each of a run's ``steps`` (on a CPU operations), and the share of GroupNorm in their time."""
    on_gpu, kind = device.type == "cuda", torch.autograd.DeviceType
    activities = [torch.profiler.ProfilerActivity.CPU] + [torch.profiler.ProfilerActivity.CUDA] * on_gpu
    with torch.profiler.profile(activities=activities) as profile:
        clocked(work, device)
    events = [e for e in profile.key_averages() if e.device_type == (kind.CUDA if on_gpu else kind.CPU)]
    spent = {e.key: e.self_device_time_total if on_gpu else e.self_cpu_time_total for e in events}
    norms = sum(t for key, t in spent.items() if "groupnorm" in key.lower().replace("_", ""))
    return {"kernels": sum(e.count for e in events) / steps, "group_norm": norms / max(1, sum(spent.values()))}


def training(setup: Setup, dataset: str, batch: int, variants: Mapping[str, tuple[Any, ...]]) -> Iterator[list[Table]]:
    """Variants of training: the name of one of TRAINING, and whether cuDNN looks for the fastest convolutions."""
    options = Training(
        dataset=setup.chosen(dataset, "toyfaces"), batch_size=setup.chosen(batch, 4), steps=setup.chosen(5, 1)
    )
    kept = {
        name: (setup.device, options, *arguments)
        for name, arguments in variants.items()
        if not setup.toy or "compile" not in TRAINING[arguments[0]]
    }
    title = f"Training, {options.dataset}, batch {options.batch_size}, {options.steps} steps in each run"
    rows: list[Row] = []
    for rows in compare(observed, kept, options.run_size(), setup.chosen(3, 1)):
        yield [{"title": title, "columns": MEASURED, "rows": rows}]
    peak, flops = peak_flops(setup), needs(METHODS[options.method], options.dataset)["gflop"] * 1e9
    for row in rows:
        row |= {"peak_share": row["images_per_s"] * flops / peak} if "images_per_s" in row else {}
    title += f"; {flops / 1e9:,.0f} GFLOP per image, matrix product {peak / 1e12:,.3g} TFLOP/s"
    yield [{"title": title, "columns": MEASURED, "rows": rows}]


def peak_flops(setup: Setup) -> float:
    """FLOP/s of a large matrix product, in bf16 (toy: a small one in float32)."""
    found, _ = timing.measure(product, {"product": (setup.device, setup.chosen(PEAK_SIZE, 256))}, 3)
    return setup.chosen(20, 1) * 2 * setup.chosen(PEAK_SIZE, 256) ** 3 / min(found["product"])[0]


def product(device_name: str, size: int) -> Work:
    big = size == PEAK_SIZE
    x = torch.randn(size, size, device=device_name, dtype=torch.bfloat16 if big else torch.float32)
    return Work(lambda: [x @ x for _ in range(20 if big else 1)] and None)


DEFAULT, PLAIN = ("default",), ("reference",)
celeba = partial(
    training,
    dataset="celeba",
    batch=64,
    variants={
        "default": DEFAULT,
        "graphs": ("graphs",),
        "reference": PLAIN,
        "micro-batch 32": ("micro32",),
        "without cudnn.benchmark": ("default", False),
        "default again": DEFAULT,
    },
)
ffhq = partial(training, dataset="ffhq", batch=64, variants={"default": DEFAULT, "reference": PLAIN})
ffhq256 = partial(training, dataset="ffhq256", batch=16, variants={"default": DEFAULT})


def sampling(setup: Setup) -> Iterator[list[Table]]:
    """Reconstruction at 128 px: eager, compiled, and with CUDA graphs."""
    dataset, batch, steps = setup.chosen("ffhq", "toyfaces"), setup.chosen(64, 2), setup.chosen(10, 2)
    options = Sampling(dataset=dataset, batch_size=batch, steps=steps)
    names = [name for name in ("default", "compiled", "graphs") if not setup.toy or INFERENCE[name][1] == "false"]
    title = f"Reconstruction, {dataset}, {batch} images, {steps} network calls"
    kept = {name: (setup.device, options, name) for name in names}
    for rows in compare(observed, kept, batch, setup.chosen(3, 1), steps):
        yield [{"title": title, "columns": MEASURED, "rows": rows}]


# Layers


def upsampling(setup: Setup) -> Iterator[list[Table]]:
    """The transposed convolution in place of upsampling and convolution, at several sizes."""
    tables: list[Table] = []
    for size in setup.chosen((8, 16, 32, 64, 128), (8,)):
        shape = setup.chosen((64, 4096 // size, size), (2, 8, size))
        variants = {name: (setup.device, name, *shape) for name in ("doubled", "transposed")}
        for rows in compare(resampling, variants, shape[0], setup.chosen(3, 1)):
            found = {"title": f"[N, C, size] {list(shape)}, bf16, forward and backward", "columns": MEASURED}
            yield [*tables, {**found, "rows": rows}]
        tables.append({**found, "rows": rows})


def resampling(device_name: str, name: str, images: int, channels: int, size: int) -> Work:
    cls = UpConv2d if name == "transposed" else ReferenceUpConv2d
    layer = cls(channels, channels, 3, padding=1).to(device_name, memory_format=torch.channels_last)
    x = torch.randn(images, channels, size, size, device=device_name, dtype=torch.bfloat16)
    x = x.to(memory_format=torch.channels_last).requires_grad_()
    slope = torch.randn_like(x).repeat(1, 1, 2, 2).to(memory_format=torch.channels_last)

    def run_once() -> Row:
        for _ in range(20):
            with torch.autocast(x.device.type, torch.bfloat16):
                y = layer(x)
            y.backward(slope)
        return {}

    return Work(run_once)
