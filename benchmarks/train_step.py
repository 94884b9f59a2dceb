"""Training throughput: the default path against the plain one (benchmarks/plain.py), on random images in host memory.

ways:
  plain          float32 on a CPU; on a GPU float32 with the U-Net in fp16 and a loss scale, as the official code
  default        what train_dbae.sh does: on a CPU float32, on a GPU bf16 and compiled
  bf16, fp32     the default path in this precision
  eager          the default path, not compiled
  compiled       the default path, compiled
  graphs         the default path, compiled to CUDA graphs
  checkpointing  the default path, with activations computed twice

Every way takes the same steps of the same size. FLOPs are those of the plain networks: the default path reaches equal
numbers with fewer. Every way is a process of its own, so that plain has the allocator as the system sets it.

example:
  python -m benchmarks.train_step --dataset toyfaces --ways plain,default,bf16
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from benchmarks.apart import alternate_apart, apart
from benchmarks.measure import SpeedOptions, check_work, matmul_peak, read_options
from benchmarks.operations import operations, print_operations
from benchmarks.report import about, print_table, table, write_json
from dbae.config import ModelConfig, TrainConfig, UserError, option, preset
from scripts.cli import run

if TYPE_CHECKING:
    import torch

    from dbae.methods.dbae import DBAE

# Each way as settings of TrainConfig; plain is another code.
WAYS: dict[str, dict] = {
    "plain": {},
    "default": {},
    "fp32": {"precision": "fp32"},
    "bf16": {"precision": "bf16"},
    "eager": {"compile": "false"},
    "compiled": {"compile": "true"},
    "graphs": {"compile": "graphs"},
    "checkpointing": {"checkpointing": True},
}


@dataclass(frozen=True)
class StepOptions(SpeedOptions):
    """What is timed."""

    ways: str = option("plain,default", f"what to compare: {', '.join(WAYS)}")
    batch_size: int = option(32, "images of a step")
    microbatch: int = option(0, "images of a forward pass (default: all of a step)")
    steps: int = option(5, "steps of a timed run")
    operations: int = option(0, "after the timing, show the N operations that take most of a run")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_work(self.ways, WAYS, batch_size=self.batch_size, steps=self.steps)
        if self.operations < 0:
            raise UserError(f"operations: expected a whole number from 0, got {self.operations}")
        if self.microbatch < 0 or self.batch_size % (self.microbatch or self.batch_size):
            raise UserError(f"microbatch: expected a divisor of {self.batch_size}, got {self.microbatch}")


def default_step(model: "DBAE", config: TrainConfig, batches: "Iterator[torch.Tensor]") -> Callable[[], object]:
    """A function that takes one step of dbae.training, prepared as scripts/train.py does."""
    import torch

    from dbae.flat import Kept
    from dbae.performance import half_dtype, use_checkpointing, use_compile, use_half
    from dbae.signals import Stop
    from dbae.state import TrainState
    from dbae.training import take_step

    device = next(model.parameters()).device
    dtype = half_dtype(config.precision, device)
    use_half(model, dtype, config.half)
    if config.checkpointing:
        use_checkpointing(model)
    state = TrainState.create(model, config, device, half=dtype == torch.float16)
    if use_compile(model, config.compile, device):
        state.optimizer.compile()
    buffers = Kept(list(model.buffers()))
    moved = (images.to(device, non_blocking=True) for images in batches)
    return lambda: take_step(model, state, moved, config, device, buffers, Stop())


def flops_of(config: ModelConfig, batch: int) -> float:
    """FLOPs of a plain step over ``batch`` images, forward and backward (a multiplication and an addition are two)."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from benchmarks.plain import plain
    from dbae.methods.dbae import DBAE

    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        images = torch.empty(1, 3, config.image_size, config.image_size)
        plain(DBAE(config)).loss(images, torch.ones(1)).sum().backward()
    return float(batch * counter.get_total_flops())


def build(device_name: str, way: str, options: StepOptions) -> Callable[[], object]:
    """A function that takes the steps of a timed run."""
    import torch

    from benchmarks.plain import plain, plain_step
    from dbae.distributed import setup
    from dbae.methods.dbae import DBAE

    device = torch.device(device_name) if way == "plain" else setup(device_name)  # which also tells the allocator
    sizes = {"batch_size": options.batch_size, "microbatch": options.microbatch or options.batch_size}
    config = preset(TrainConfig, options.dataset, sizes | WAYS[way])
    torch.manual_seed(0)
    model = DBAE(preset(ModelConfig, options.dataset, {})).to(device).train()
    size = model.config.image_size
    data = torch.randint(0, 256, (4, config.microbatch, 3, size, size), dtype=torch.uint8)
    data = data.pin_memory() if device.type == "cuda" else data
    model = plain(model) if way == "plain" else model
    step = (plain_step if way == "plain" else default_step)(model, config, itertools.cycle(data))
    return lambda: [step() for _ in range(options.steps)] and None


def main() -> None:
    """Build every way, time them in turn, print."""
    options = read_options(__doc__, StepOptions)

    import torch

    from dbae.distributed import setup
    from dbae.performance import half_dtype

    device = setup(options.device)
    names, images = options.ways.split(","), options.batch_size * options.steps
    with apart(build, {way: (str(device), way, options) for way in names}) as ways:
        timings = alternate_apart(ways, options.rounds)
        show = partial(operations, count=options.operations)
        spent = {way: ask(show) for way, ask in ways.items() if options.operations}
    flops = options.steps * flops_of(preset(ModelConfig, options.dataset, {}), options.batch_size)
    peak = matmul_peak(device, half_dtype("auto", device) or torch.float32)
    rows = table(timings, names[0], images, peak, dict.fromkeys(names, flops))
    title = f"{options.dataset}, batch {options.batch_size}, {options.steps} steps a run, {options.rounds} rounds"
    print(f"{title}; {about(device)}; matmul {peak / 1e12:.3g} TFLOP/s, {flops / images / 1e9:.3g} GFLOP per image")
    print_table(rows)
    for way, found in spent.items():
        print_operations(f"operation ({way})", found)
    if options.json:
        facts = {"matmul_flops": peak, "flops_per_image": flops / images, "operations": spent}
        write_json(options.json, title, device, rows, **facts)


if __name__ == "__main__":
    run(main)
