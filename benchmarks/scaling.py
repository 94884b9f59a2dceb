"""How training gains from processes: images per second with 1, 2, ... of them, on random images.

Each trains as train_dbae.sh does: on a CPU in float32, on a GPU in half precision and compiled. The batch of
all processes stays the same (strong scaling), or with --weak that of each process. The processes share the CPU's cores
evenly, unless --threads says otherwise. Only steps are timed, after some others: not the start, and not the checkpoint
at the end. The speed-up (ratio) and the efficiency, the ratio over the processes, compare with one process.

examples:
  python -m benchmarks.scaling --processes 1,2 --steps 20
  python -m benchmarks.scaling --dataset celeba --processes 1,2,4,8 --weak
"""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from benchmarks.measure import SpeedOptions, collect, read_options, synchronise
from benchmarks.report import about, print_table, table, write_json
from dbae.config import ModelConfig, TrainConfig, UserError, option, preset, require_positive
from scripts.cli import run

if TYPE_CHECKING:
    import torch

SECONDS = "seconds"  # file with a worker's result
NEVER = 1_000_000_000  # steps until checkpoints, pictures and rows of progress
COLUMNS = (("threads each", ("threads",), str), ("efficiency", ("efficiency",), "{:.0%}".format))


@dataclass(frozen=True)
class ScalingOptions(SpeedOptions):
    """What is trained, by how many processes."""

    rounds: int = option(3, "alternating rounds")
    processes: tuple[int, ...] = option((1, 2), "numbers of processes, 1 among them")
    steps: int = option(20, "timed steps")
    warm_up: int = option(3, "steps before them")
    batch_size: int | None = option(None, "images per step over all processes (default: the preset's)")
    weak: bool = option(False, "let each process have that many images")
    threads: int | None = option(None, "threads of each process (default: the cores, shared evenly)")
    worker: str = option("", "be one of the processes, and write into this folder: the program itself gives it")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("steps", "warm_up"):
            require_positive(name, getattr(self, name))
        if self.threads is not None:
            require_positive("threads", self.threads)
        numbers = self.processes
        if min(numbers) < 1 or 1 not in numbers or len(set(numbers)) < len(numbers):
            raise UserError(f"processes: expected different numbers from 1, 1 among them, got {numbers}")
        uneven = [number for number in numbers if self.training(number).batch_size % number]
        if uneven:
            raise UserError(
                f"batch_size: expected a multiple of the {uneven[0]} processes, got {self.training(1).batch_size}"
            )

    def training(self, processes: int) -> TrainConfig:
        """The preset for so many processes; the last step, which writes a checkpoint, follows the timed ones."""
        never = ("log_interval", "sample_interval", "save_interval", "save_interval_for_preemption")
        given = {"total_steps": self.warm_up + self.steps + 1, **dict.fromkeys(never, NEVER)}
        if self.batch_size is not None:
            given["batch_size"] = self.batch_size
        config = preset(TrainConfig, self.dataset, given)
        return replace(config, batch_size=config.batch_size * processes) if self.weak else config


# The worker


def work(options: ScalingOptions) -> None:
    """Train as one of the processes that torchrun started; the first one writes the seconds of the timed steps."""
    import torch

    from dbae import distributed
    from dbae.methods.dbae import DBAE
    from dbae.performance import half_dtype, use_compile, use_half
    from dbae.state import TrainState
    from dbae.training import train

    device = distributed.setup(options.device)
    config = options.training(distributed.world())
    dtype = half_dtype(config.precision, device)
    torch.manual_seed(config.seed)
    model = DBAE(preset(ModelConfig, options.dataset, {})).to(device)
    use_half(model, dtype, config.half)
    state = TrainState.create(model, config, device, half=dtype == torch.float16)
    if use_compile(model, config.compile, device):
        state.optimizer.compile()
    stamps: list[float] = []
    batches = stamped_batches(options, config, model.config.image_size, device, stamps)
    train(state, batches, config, options.worker, device, lambda *_: None, quiet=True)
    if distributed.rank() == 0:
        Path(options.worker, SECONDS).write_text(str(stamps[1] - stamps[0]))
    distributed.cleanup()


def stamped_batches(
    options: ScalingOptions, config: TrainConfig, size: int, device: "torch.device", stamps: list[float]
) -> "Iterator[torch.Tensor]":
    """Endless micro-batches of the same random images; ``stamps`` receives when the timed steps begin and end."""
    import torch

    from dbae import distributed

    share = config.batch_size // distributed.world()
    images = torch.randint(0, 256, (share, 3, size, size), dtype=torch.uint8, device=device)
    for step in count():
        if step in (options.warm_up, options.warm_up + options.steps):
            synchronise(device)
            stamps.append(time.perf_counter())
        yield from images.split(share if config.microbatch == -1 else config.microbatch)


# The program that starts them


def launch(options: ScalingOptions, processes: int, device: str) -> tuple[float, None]:
    """Seconds of the timed steps with so many processes. Raises UserError where one fails, after what it wrote."""
    module = [f"--nproc_per_node={processes}", "-m", "benchmarks.scaling"]
    values = {"dataset": options.dataset, "device": device, "processes": ",".join(map(str, options.processes))}
    values |= {name: getattr(options, name) for name in ("steps", "warm_up", "batch_size", "weak")}
    with TemporaryDirectory() as folder:
        words = [f"--{name}={value}" for name, value in {**values, "worker": folder}.items() if value is not None]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads_of(options, processes))}
        ended = subprocess.run(
            [sys.executable, "-m", "torch.distributed.run", "--standalone", *module, *words],
            cwd=Path(__file__).parent.parent, env=environment, capture_output=True, text=True,
        )  # fmt: skip
        if ended.returncode:
            print(ended.stderr, file=sys.stderr)
            raise UserError(f"{processes} processes ended with status {ended.returncode}, what they wrote is above")
        return float(Path(folder, SECONDS).read_text()), None


def threads_of(options: ScalingOptions, processes: int) -> int:
    """Threads of each process; where none were asked for, they share the cores that this one may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return options.threads or max(1, cores // processes)


def with_efficiency(rows: list[dict[str, Any]], options: ScalingOptions) -> list[dict[str, Any]]:
    """Rows with ``efficiency``; with weak scaling, a run of n processes had n times the images of the table."""
    for row, number in zip(rows, options.processes, strict=True):
        if options.weak:
            for key in ("images_per_s", "ratio", "ratio_low", "ratio_high"):
                row[key] *= number
        row |= {"processes": number, "threads": threads_of(options, number), "efficiency": row["ratio"] / number}
    return rows


def main() -> None:
    """Launch in turn, print."""
    options = read_options(__doc__, ScalingOptions)
    if options.worker:
        return work(options)

    import torch

    from dbae.distributed import setup

    device = setup(options.device)
    if device.type == "cuda" and max(options.processes) > torch.cuda.device_count():
        raise UserError(
            f"processes: expected at most one per GPU, {torch.cuda.device_count()}, got {max(options.processes)}"
        )
    names = {number: f"{number} process" + "es" * (number > 1) for number in options.processes}
    ways = {name: partial(launch, options, number, device.type) for number, name in names.items()}
    batch = options.training(1).batch_size
    rows = table(collect(ways, options.rounds), names[1], batch * options.steps)
    rows = with_efficiency(rows, options)
    title = f"{options.dataset}, {batch} images per step{' and process' * options.weak}, {options.steps} steps"
    print(f"{title}, {about(device)}")
    print_table(rows, COLUMNS)
    if options.json:
        write_json(options.json, title, device, rows, weak=options.weak)
    return None


if __name__ == "__main__":
    run(main)
