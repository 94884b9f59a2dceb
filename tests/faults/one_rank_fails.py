"""For torchrun: a small run in the folder given, whose second process fails in step 4 of its first attempt."""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.faults import MICRO_BATCHES, run_here
from dbae import runtime
from dbae.checkpoint import complete_sets
from dbae.training import Batches


def failing(batches: Batches) -> Batches:
    first = os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
    for i, images in enumerate(batches):
        if first and runtime.rank() == 1 and i == 3 * MICRO_BATCHES // runtime.world():
            raise RuntimeError("rank 1 lost its disk")
        yield images


if __name__ == "__main__":
    runtime.setup("cpu", timeout=1)
    sets = complete_sets(sys.argv[1], 0.9)
    runtime.print0(f"going on after step {sets[-1][0] if sets else 0}")
    run_here(sys.argv[1], runtime.rank(), runtime.world(), failing)
    runtime.cleanup()
    if any("gloo" in task.read_text() for task in Path("/proc/self/task").glob("*/comm")):  # none on other systems
        raise RuntimeError("the group's threads are still there")
