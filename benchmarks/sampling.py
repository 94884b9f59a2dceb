"""Sampling throughput: the default path against the plain one (benchmarks/plain.py), images and network calls alike.

ways:
  plain          float32 on a CPU, on a GPU with the U-Net in fp16; every state is copied to the host
  default        what recon_dbae.sh does: float32 on a CPU, bf16 on a GPU
  fp32, bf16     the default path in this precision
  compiled       the default path, compiled
  graphs         the default path, compiled to CUDA graphs

Every way encodes the images, decodes endpoints and takes the same Euler steps. With --apart, ``default`` is also timed
on one image after the other, as interpolation and manipulation would be if they did not batch their frames.

Every way is a process of its own, so that plain has the allocator as the system sets it.

Weights are random, or those of --model_path. Only there the largest difference from the first way is shown, what a
stochastic encoder draws being equal in all: what a random network gives turns on the last digit.

example:
  python -m benchmarks.sampling --model_path ckpt/toyfaces/det/ema_0.9999_016000.pt --ways plain,default --apart
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks.apart import alternate_apart, apart
from benchmarks.measure import SpeedOptions, check_work, read_options
from benchmarks.report import about, print_table, table, write_json
from dbae.config import ModelConfig, option, preset
from scripts.cli import run

if TYPE_CHECKING:
    import numpy as np
    import torch

# Each way as (precision, compile); plain is another code.
WAYS = {
    "plain": ("fp32", "false"),
    "default": ("auto", "false"),
    "fp32": ("fp32", "false"),
    "bf16": ("bf16", "false"),
    "compiled": ("auto", "true"),
    "graphs": ("auto", "graphs"),
}


APART = ", one by one"


@dataclass(frozen=True)
class SamplingOptions(SpeedOptions):
    """What is timed."""

    model_path: str = option("", "checkpoint with a config.json (default: DATASET's preset, with random weights)")
    ways: str = option("plain,default", f"what to compare: {', '.join(WAYS)}")
    batch_size: int = option(64, "images")
    steps: int = option(10, "Euler steps, a network call each")
    apart: bool = option(False, "also one image after the other")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_work(self.ways, WAYS, batch_size=self.batch_size, steps=self.steps)


def build(device_name: str, way: str, options: SamplingOptions) -> Callable[[], object]:
    """A function that reconstructs the images, and returns them."""
    import torch

    from benchmarks.plain import plain, plain_reconstruct
    from dbae.checkpoint import load_model
    from dbae.distributed import setup
    from dbae.methods.dbae import DBAE
    from dbae.performance import half_dtype, use_compile, use_half

    device = torch.device(device_name) if way == "plain" else setup(device_name)  # which also tells the allocator
    torch.manual_seed(0)
    if options.model_path:
        model = load_model(options.model_path, device=device)
    else:
        model = DBAE(preset(ModelConfig, options.dataset, {})).to(device).eval()
    size = model.config.image_size
    generator = torch.Generator().manual_seed(0)
    x0 = 2 * torch.rand(options.batch_size, 3, size, size, generator=generator).to(device) - 1
    if way == "plain":
        model = plain(model)
        return lambda: plain_reconstruct(model, x0, options.steps)
    precision, compiled = WAYS[way.removesuffix(APART)]
    use_half(model, half_dtype(precision, device))
    use_compile(model, compiled, device)
    if way.endswith(APART):
        return lambda: torch.cat([model.reconstruct(x, steps=options.steps) for x in x0.split(1)])
    return lambda: model.reconstruct(x0, steps=options.steps)


def images(work: Callable[[], "torch.Tensor"], device: "torch.device") -> "np.ndarray":
    """What the work makes; the codes of a stochastic encoder are drawn from the same seed in all ways."""
    import torch

    torch.manual_seed(0)
    return work().cpu().numpy()


def main() -> None:
    """Build every way, time them in turn, compare their images, print."""
    options = read_options(__doc__, SamplingOptions)

    from dbae.checkpoint import load_model
    from dbae.distributed import setup

    device = setup(options.device)
    if options.model_path:
        load_model(options.model_path)  # a bad one is told here
    names = options.ways.split(",") + [f"default{APART}"] * options.apart
    with apart(build, {way: (str(device), way, options) for way in names}) as ways:
        timings = alternate_apart(ways, options.rounds)
        compared = [way for way in names if options.model_path and not way.endswith(APART)]
        made = {way: ways[way](images) for way in compared}
    rows = table(timings, names[0], options.batch_size)
    for row in rows:
        if row["way"] in made:
            row["difference"] = float(abs(made[row["way"]] - made[names[0]]).max())
    name = os.path.basename(options.model_path) or options.dataset
    title = f"{name}, {options.batch_size} images, Euler {options.steps}, {options.rounds} rounds"
    print(f"{title}; {about(device)}")
    print_table(rows, (("largest difference", ("difference",), "{:.1e}".format),))
    if options.json:
        write_json(options.json, title, device, rows)


if __name__ == "__main__":
    run(main)
