"""Training runs of a second or two, in processes that can be disturbed; all of a run's results as one dictionary.

Processes come from a fork server that has imported torch and run nothing of it, so that one starts at once.
"""

import csv
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dbae.config import ModelConfig, TrainConfig

if TYPE_CHECKING:
    from torch import Tensor, nn

    from dbae.state import TrainState

STEPS = 6
MICRO_BATCHES = 2  # per step, over all processes
MODEL = ModelConfig(
    image_size=32, num_channels=4, norm_groups=4, channel_mult=(1, 1), encoder_mult=(1, 1), num_res_blocks=1,
    attention_sizes=(16,), encoder_attention_sizes=(16,), head_channels=4, decoder_channels=2, latent_dim=4,
    stochastic=True,
)  # fmt: skip
TRAINING = {
    "total_steps": STEPS, "batch_size": 4 * MICRO_BATCHES, "microbatch": 4, "lr": 1e-2, "ema_rate": 0.9,
    "log_interval": 1, "sample_interval": 1000, "save_interval": 4, "save_interval_for_preemption": 1,
}  # fmt: skip
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(  # an optimizer imports torch._dynamo
    ["torch._dynamo", "torch.utils.tensorboard", "dbae.training", "dbae.methods.dbae", "datasets.loader"]
)

Batches = Iterator["Tensor"]
Sabotage = Callable[[Batches], Batches]  # prepares a fault in a worker, or brings it about between micro-batches


def undisturbed(batches: Batches) -> Batches:
    """No fault."""
    return batches


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch use one thread in the block."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def run_here(
    folder: Path | str,
    rank: int = 0,
    world: int = 1,
    sabotage: Sabotage = undisturbed,
    network: Callable[[ModelConfig], "nn.Module"] | None = None,
    half: bool = False,
    preview: Callable[..., None] = lambda model, step: None,
    **changes: Any,
) -> tuple["TrainState", int]:
    """A run in this process, going on with what ``folder`` holds, with ``changes`` of TRAINING; state and ``signum``.

    It uses one thread, so that its bits do not depend on the machine. ``network`` takes the place of DBAE; ``half``
    scales the loss as in fp16.
    """
    import torch

    from datasets.loader import training_batches
    from dbae.methods.dbae import DBAE
    from dbae.signals import Stop
    from dbae.state import TrainState
    from dbae.training import train

    config, device = TrainConfig(**{**TRAINING, **changes}), torch.device("cpu")
    torch.manual_seed(0)
    state = TrainState.create((network or DBAE)(MODEL), config, device, half)
    state.restore_newest(str(folder))
    pixels = torch.randint(0, 256, (12, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    data = [(image, i) for i, image in enumerate(pixels)]
    batches = training_batches(data, config.batch_size, config.microbatch, 0, state.images, rank, world)
    with one_thread(), Stop() as stop:
        signum = train(state, sabotage(batches), config, str(folder), device, preview, stop, quiet=True)
    return state, signum


def worker(folder: str, rank: int, world: int, meeting: str, sabotage: Sabotage, changes: dict[str, Any]) -> None:
    """``run_here`` as one of ``world`` processes, silent, with the exit status of a training script."""
    for stream in (1, 2):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream)

    import torch
    from tqdm import tqdm

    tqdm.set_lock(threading.RLock())  # its own is a semaphore of the system, which a killed process leaves behind
    if world > 1:
        torch.distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=world)
    _, signum = run_here(folder, rank, world, sabotage, **changes)
    raise SystemExit(128 + signum if signum else 0)


def start(folder: Path, world: int = 1, sabotage: Sabotage = undisturbed, **changes: Any) -> list[Any]:
    """Start a run in ``folder``, or go on with the one there, with ``changes`` of TRAINING; returns its processes."""
    meeting = f"{folder}.meeting-{time.monotonic_ns()}"
    places = [(str(folder), rank, world, meeting, sabotage, changes) for rank in range(world)]
    processes = [CONTEXT.Process(target=worker, args=place) for place in places]
    for process in processes:
        process.start()
    return processes


def statuses(processes: list[Any]) -> list[int]:
    """Wait for processes, and return their exit statuses; minus the signal's number where one ended them.

    As torchrun does, ends the others where one fails: SIGTERM, and SIGKILL after 30 s.
    """
    running = {process.sentinel: process for process in processes}
    while running:
        for sentinel in wait(list(running)):
            running.pop(sentinel).join()
        if running and any(process.exitcode for process in processes):
            for process in running.values():
                process.terminate()
            for process in running.values():
                process.join(timeout=30)
                process.kill()
    return [process.exitcode for process in processes]


def results(folder: Path, step: int = STEPS) -> dict[str, "Tensor"]:
    """Every tensor and number of the set that a run wrote at ``step``, by file and name."""
    import torch

    from dbae.checkpoint import read_tensors, set_names

    found = {}

    def collect(name: str, value: Any) -> None:
        if isinstance(value, dict):
            for key, part in value.items():
                collect(f"{name}/{key}", part)
        elif isinstance(value, (torch.Tensor, int, float)):
            found[name] = torch.as_tensor(value)

    for kind, name in set_names(step, TRAINING["ema_rate"]).items():
        collect(kind, read_tensors(str(folder / name)))
    return found


def in_order(folder: Path) -> bool:
    """Whether a finished run left rows of increasing steps up to the last, and no unfinished file."""
    with (folder / "progress.csv").open() as file:
        steps = [int(row["step"]) for row in csv.DictReader(file)]
    return steps == sorted(set(steps)) and steps[-1] == STEPS and not list(folder.glob("*.tmp"))
