"""Faults inflicted on small training runs, each of which must end with the bits of a run that nothing disturbed.

example:
  python -m benchmarks.faults --faults 200

After its fault a run is started once more, as a scheduler or a person would. It survives if that ends well, with the
weights, the average and the optimizer state of the undisturbed run, a progress.csv without repeats, and no unfinished
files. The exit status is 1 if one does not.
"""

import csv
import itertools
import multiprocessing
import os
import random
import resource
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks.timing import markdown
from datasets.loader import training_batches
from dbae.checkpoint import set_names
from dbae.config import TrainConfig, require_positive
from dbae.methods.dbae import DBAE, DBAEConfig
from dbae.runtime import Stop
from dbae.state import TrainState
from dbae.tensors import read_tensors
from dbae.training import Batches, train
from scripts.cli import Parser, run

STEPS = 6
MICRO_BATCHES = 2  # per step, over all processes
MODEL = DBAEConfig(
    image_size=32, num_channels=4, norm_groups=4, channel_mult=(1, 1), encoder_mult=(1, 1), num_res_blocks=1,
    attention_sizes=(16,), encoder_attention_sizes=(16,), head_channels=4, decoder_channels=2, latent_dim=4,
    stochastic=True,
)  # fmt: skip
TRAINING = {
    "total_steps": STEPS, "batch_size": 4 * MICRO_BATCHES, "microbatch": 4, "lr": 1e-2, "ema_rate": 0.9,
    "log_interval": 1, "sample_interval": 1000, "save_interval": 4, "save_interval_for_preemption": 1,
}  # fmt: skip
FILE_EVENTS = 66  # so often does a run synchronise, rename and remove files
CONTEXT = multiprocessing.get_context("forkserver")  # its server has imported all and run nothing: starts are quick
CONTEXT.set_forkserver_preload(["torch._dynamo", "torch.utils.tensorboard", "dbae.training", "datasets.loader"])

Sabotage = Callable[
    [Batches], Batches
]  # prepares a fault in a process, or brings it about between micro-batches; iter: none


# Small runs, of a second or two


def run_here(
    folder: Path | str,
    rank: int = 0,
    world: int = 1,
    sabotage: Sabotage = iter,
    network: type[DBAE] = DBAE,
    scaled: bool = False,
    preview: Callable[..., None] = lambda model, step: None,
    **changes: Any,
) -> tuple[TrainState, int]:
    """A run in this process, going on with what ``folder`` holds, with ``changes`` of TRAINING; state and ``signum``.

    ``network`` takes the place of DBAE; ``scaled`` scales the loss as fp16 does.
    """
    config, device = TrainConfig(**{**TRAINING, **changes}), torch.device("cpu")
    torch.manual_seed(0)
    state = TrainState.create(network(MODEL), config, device, scaled)
    state.restore_newest(str(folder))
    pixels = torch.randint(0, 256, (12, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    data = [(image, i) for i, image in enumerate(pixels)]
    batches = training_batches(data, config.batch_size, config.microbatch, 0, state.images, rank, world)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # bits must not depend on the machine
    try:
        with Stop() as stop:
            return state, train(state, sabotage(batches), config, str(folder), device, preview, stop, quiet=True)
    finally:
        torch.set_num_threads(threads)


def _worker(folder: str, rank: int, world: int, meeting: str, sabotage: Sabotage, changes: dict[str, Any]) -> None:
    """``run_here`` as one of ``world`` processes, silent, with the exit status of a training script."""
    for stream in (1, 2):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
    tqdm.set_lock(threading.RLock())  # its own is a semaphore of the system, which a killed process leaves behind
    if world > 1:
        torch.distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=world)
    _, signum = run_here(folder, rank, world, sabotage, **changes)
    raise SystemExit(128 + signum if signum else 0)


def start(folder: Path, world: int = 1, sabotage: Sabotage = iter, **changes: Any) -> list[Any]:
    """Start a run in ``folder``, or go on with the one there, with ``changes`` of TRAINING; returns its processes."""
    meeting = f"{folder}.meeting-{time.monotonic_ns()}"
    places = [(str(folder), rank, world, meeting, sabotage, changes) for rank in range(world)]
    processes = [CONTEXT.Process(target=_worker, args=place) for place in places]
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


def results(folder: Path, step: int = STEPS) -> dict[str, Tensor]:
    """Every tensor and number of the set that a run wrote at ``step``, by file and name."""

    def flat(name: str, value: Any) -> Iterator[tuple[str, Tensor]]:
        if isinstance(value, dict):
            for key, part in value.items():
                yield from flat(f"{name}/{key}", part)
        elif isinstance(value, (Tensor, int, float)):
            yield name, torch.as_tensor(value)

    files = set_names(step, TRAINING["ema_rate"]).items()
    return dict(pair for kind, name in files for pair in flat(kind, read_tensors(str(folder / name))))


def equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    """Whether two results are the same bit for bit."""
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)


def in_order(folder: Path) -> bool:
    """Whether a finished run left rows of increasing steps up to the last, and no unfinished file."""
    with (folder / "progress.csv").open() as file:
        steps = [int(row["step"]) for row in csv.DictReader(file)]
    return steps == sorted(set(steps)) and steps[-1] == STEPS and not list(folder.glob("*.tmp"))


@dataclass
class Trials:
    """Runs with a fault each, in folders below ``root``; ``random`` decides when and where it strikes."""

    root: Path
    random: random.Random
    references: dict[int, tuple[dict[str, Tensor], float]] = field(default_factory=dict)

    def survives(self, kind: str) -> bool:
        """Whether a run with one fault of this kind, a row of KINDS, ends as if nothing had happened."""
        world, inflict = KINDS[kind]
        expected, _ = self.reference(world)
        folder = Path(tempfile.mkdtemp(dir=self.root))
        inflict(self, folder)
        return not any(statuses(start(folder, world))) and in_order(folder) and equal(results(folder), expected)

    def reference(self, world: int) -> tuple[dict[str, Tensor], float]:
        """Results of the undisturbed run of ``world`` processes, and its seconds."""
        if world not in self.references:
            folder, begin = self.root / f"undisturbed{world}", time.monotonic()
            if any(statuses(start(folder, world))):
                raise RuntimeError("the undisturbed run failed")
            self.references[world] = results(folder), time.monotonic() - begin
        return self.references[world]


# Faults: each starts a run in an empty folder, or copies one there, and harms it


def signalled(number: int, world: int, trials: Trials, folder: Path) -> None:
    """A signal to one process at any moment. Where it kills, the others are killed too, as torchrun does."""
    struck = False
    while not struck:  # the run may have ended by then
        shutil.rmtree(folder, ignore_errors=True)
        processes = start(folder, world)
        time.sleep(trials.random.uniform(0, trials.reference(world)[1]))
        victim = trials.random.choice(processes)
        struck = victim.is_alive()
        for process in processes if number == signal.SIGKILL else [victim]:
            if process.is_alive():
                os.kill(process.pid, number)
        statuses(processes)


def killed_at_file_event(trials: Trials, folder: Path) -> None:
    """``kill -9`` while a file is being written, renamed or removed."""
    sabotage = partial(_dying, trials.random.randint(1, FILE_EVENTS), trials.random.random())
    statuses(start(folder, sabotage=sabotage))


def disk_full(trials: Trials, folder: Path) -> None:
    """No file can grow beyond 0 or 100,000 bytes for some steps, the last ones perhaps."""
    first = trials.random.randrange(STEPS)
    last = trials.random.randint(first + 1, STEPS)
    statuses(start(folder, sabotage=partial(_limited, first, last, trials.random.choice((0, 100_000)))))


def damaged(damage: Callable[[random.Random, bytearray], Any], trials: Trials, folder: Path) -> None:
    """One file of the newest set is damaged while the run rests: that of step 5, there is one of step 4 as well."""
    statuses(start(folder, total_steps=5))
    path = folder / trials.random.choice(list(set_names(5, TRAINING["ema_rate"]).values()))
    content = bytearray(path.read_bytes())
    damage(trials.random, content)
    path.write_bytes(content)


def _truncate(chance: random.Random, content: bytearray) -> None:
    del content[chance.randrange(len(content)) :]


def _flip_bit(chance: random.Random, content: bytearray) -> None:
    content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)


def _dying(event: int, share: float, batches: Batches) -> Batches:
    """Let the process kill itself in place of its ``event``-th file operation, with a ``share`` of the file written."""
    count = itertools.count(1)

    def mortal(operation: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            if next(count) == event:
                if isinstance(args[0], int) and os.path.isfile(f"/proc/self/fd/{args[0]}"):
                    os.ftruncate(args[0], int(share * os.fstat(args[0]).st_size))
                os.kill(os.getpid(), signal.SIGKILL)
            return operation(*args, **options)

        return call

    os.fsync, os.replace, os.remove = mortal(os.fsync), mortal(os.replace), mortal(os.remove)
    return batches


def _limited(first: int, last: int, size: int, batches: Batches) -> Batches:
    """Let no file grow beyond ``size`` bytes in the steps first..last-1, counted from 0."""
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for i, batch in enumerate(batches):
        full = first <= i // MICRO_BATCHES < last
        resource.setrlimit(resource.RLIMIT_FSIZE, (size if full else hard, hard))
        yield batch


KINDS: dict[str, tuple[int, Callable[[Trials, Path], Any]]] = {  # name -> (number of processes, fault)
    "kill -9": (1, partial(signalled, signal.SIGKILL, 1)),
    "kill -9 in a file operation": (1, killed_at_file_event),
    "kill -9, two processes": (2, partial(signalled, signal.SIGKILL, 2)),
    "SIGTERM": (1, partial(signalled, signal.SIGTERM, 1)),
    "SIGINT to one of two processes": (2, partial(signalled, signal.SIGINT, 2)),
    "disk full": (1, disk_full),
    "file truncated": (1, partial(damaged, _truncate)),
    "bit flipped": (1, partial(damaged, _flip_bit)),
}


def main() -> None:
    """Inflict, count, print."""
    parser = Parser(__doc__)
    parser.add_argument("--faults", type=int, default=200, metavar="N", help="faults of all kinds (default: 200)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the moments and places (default: 0)")
    options = parser.parse_args()
    require_positive("faults", options.faults)

    outcomes: dict[str, list[bool]] = {kind: [] for kind in KINDS}
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as root:
        trials = Trials(Path(root), random.Random(options.seed))
        for kind in itertools.islice(itertools.cycle(KINDS), options.faults):
            outcomes[kind].append(trials.survives(kind))
    columns = {name: f"{{{name}}}" for name in ("fault", "tried", "survived")}
    print(
        markdown([{"fault": kind, "tried": len(row), "survived": sum(row)} for kind, row in outcomes.items()], columns)
    )
    lost = sum(row.count(False) for row in outcomes.values())
    print(f"\n{options.faults} faults in {time.monotonic() - begin:.0f} s, {lost} runs lost")
    raise SystemExit(lost > 0)


if __name__ == "__main__":
    run(main)
