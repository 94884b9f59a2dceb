"""Faults inflicted on small training runs, each of which must end with the bits of a run that nothing disturbed.

example:
  python -m benchmarks.chaos --faults 200

After its fault a run is started once more, as a scheduler or a person would. It survives if that ends well, with the
weights, the average and the optimizer state of the undisturbed run, a progress.csv without repeats, and no unfinished
files. The exit status is 1 if one does not.
"""

import itertools
import json
import os
import random
import resource
import shutil
import signal
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.small_runs import MICRO_BATCHES, STEPS, TRAINING, Batches, in_order, results, start, statuses
from dbae.config import require_positive
from scripts.cli import Parser, run

if TYPE_CHECKING:
    from torch import Tensor

FILE_EVENTS = 66  # so often does a run synchronise, rename and remove files


def equal(found: dict[str, "Tensor"], expected: dict[str, "Tensor"]) -> bool:
    """Whether two results are the same bit for bit."""
    import torch

    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)


@dataclass
class Trials:
    """Runs with a fault each, in folders below ``root``; ``random`` decides when and where it strikes."""

    root: Path
    random: random.Random
    references: dict[int, dict[str, "Tensor"]] = field(default_factory=dict)
    seconds: dict[int, float] = field(default_factory=dict)

    def survives(self, kind: str) -> bool:
        """Whether a run with one fault of this kind, a row of KINDS, ends as if nothing had happened."""
        world, inflict = KINDS[kind]
        expected = self.reference(world)
        folder = Path(tempfile.mkdtemp(dir=self.root))
        inflict(self, folder)
        if any(statuses(start(folder, world))) or not in_order(folder):
            return False
        found = results(folder)
        shutil.rmtree(folder)
        return equal(found, expected)

    def reference(self, world: int) -> dict[str, "Tensor"]:
        """Results of the undisturbed run of ``world`` processes, whose ``seconds`` are noted."""
        if world not in self.references:
            folder, begin = self.root / f"undisturbed{world}", time.monotonic()
            if any(statuses(start(folder, world))):
                raise RuntimeError("the undisturbed run failed")
            self.seconds[world] = time.monotonic() - begin
            self.references[world] = results(folder)
        return self.references[world]

    def half_done(self, folder: Path) -> None:
        """Fill ``folder`` with a run that has come as far as step 5, and has a set of step 4 as well."""
        done = self.root / "half"
        if not done.exists() and any(statuses(start(done, total_steps=5))):
            raise RuntimeError("the first half of a run failed")
        shutil.copytree(done, folder, dirs_exist_ok=True)


# Faults: each starts a run in an empty folder, or copies one there, and harms it


def signalled(number: int, world: int, trials: Trials, folder: Path) -> None:
    """A signal to one process at any moment. Where it kills, the others are killed too, as torchrun does."""
    processes = start(folder, world)
    time.sleep(trials.random.uniform(0, trials.seconds[world]))
    victim = trials.random.choice(processes)
    struck = victim.is_alive()
    for process in processes if number == signal.SIGKILL else [victim]:
        if process.is_alive():
            os.kill(process.pid, number)
    statuses(processes)
    if not struck:
        shutil.rmtree(folder)
        signalled(number, world, trials, folder)


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
    """One file of the newest set is damaged while the run rests."""
    trials.half_done(folder)
    path = folder / trials.random.choice(["model_000005.pt", f"ema_{TRAINING['ema_rate']}_000005.pt", "opt_000005.pt"])
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
    for i, images in enumerate(batches):
        full = first <= i // MICRO_BATCHES < last
        resource.setrlimit(resource.RLIMIT_FSIZE, (size if full else hard, hard))
        yield images


KINDS: dict[str, tuple[int, Callable[[Trials, Path], None]]] = {  # name -> (number of processes, fault)
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
    parser.add_argument("--json", default="", metavar="PATH", help="also write the counts there")
    options = parser.parse_args()
    require_positive("faults", options.faults)

    counts = {kind: {"tried": 0, "survived": 0, "lost": 0} for kind in KINDS}
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as root:
        trials = Trials(Path(root), random.Random(options.seed))
        for kind in itertools.islice(itertools.cycle(KINDS), options.faults):
            survived = trials.survives(kind)
            counts[kind]["tried"] += 1
            counts[kind]["survived" if survived else "lost"] += 1
    print("| fault | tried | survived | lost |\n|---|---|---|---|")
    for kind, row in counts.items():
        print(f"| {kind} | {row['tried']} | {row['survived']} | {row['lost']} |")
    lost = sum(row["lost"] for row in counts.values())
    print(f"\n{options.faults} faults in {time.monotonic() - begin:.0f} s, {lost} runs lost")
    if options.json:
        with open(options.json, "w") as file:
            json.dump({"faults": options.faults, "seed": options.seed, "kinds": counts}, file, indent=2)
    raise SystemExit(lost > 0)


if __name__ == "__main__":
    run(main)
