"""How fast training and sampling are, next to a reference implementation (benchmarks/reference.py), and reading images.

commands:
  train    steps of training, on random images in host memory
  sample   reconstructions: the images are encoded, and their codes decoded by the method's own sampler
  data     batches of images on the device, in each way to read them
  scaling  steps of training by 1, 2, ... processes

Every variant is a process of its own; they run in alternating rounds. The ratio compares with the first variant.
"--help" after a command shows its options.

examples:
  python -m benchmarks.speed train --dataset toyfaces --variants reference,default,bf16
  python -m benchmarks.speed sample --model_path ckpt/toyfaces/det/ema_0.9999_016000.pt
  python -m benchmarks.speed data --dataset celeba --images 20000 --num_workers 8 --consumes 900
  python -m benchmarks.speed scaling --dataset celeba --processes 1,2,4,8 --weak
"""

import dataclasses
import inspect
import itertools
import os
import sys
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.reference import reference, reference_reconstruct, reference_step
from benchmarks.timing import PROFILE, Work, digits, matmul_peak, measure, operations, print_table, report, table
from datasets import ImageDataset, build
from datasets.cache import cached
from datasets.loader import training_batches
from dbae import runtime
from dbae.checkpoint import load_model
from dbae.config import TrainConfig, UserError, check_choices, option, require_from_zero, require_positive
from dbae.methods import METHODS, DiffusionModel, preset, preset_name
from dbae.state import TrainState
from dbae.training import Batches, _parallel, micro_batches, take_step
from scripts.cli import Parser, given, run

# Variants: the reference implementation is other code; the others are the default path with some settings changed.
TRAINING: dict[str, dict[str, Any]] = {  # settings of TrainConfig
    "reference": {},
    "default": {},
    "fp32": {"precision": "fp32"},
    "bf16": {"precision": "bf16"},
    "eager": {"compile": "false"},
    "compiled": {"compile": "true"},
    "graphs": {"compile": "graphs"},
    "checkpointing": {"checkpointing": True},
}
SAMPLING = {  # precision, compilation, images at once (None: all)
    "reference": ("fp32", "false", None),
    "default": ("auto", "false", None),
    "fp32": ("fp32", "false", None),
    "bf16": ("bf16", "false", None),
    "compiled": ("auto", "true", None),
    "graphs": ("auto", "graphs", None),
    "one by one": ("auto", "false", 1),
}
LOADING = {  # whether there are worker processes, and where all images are held
    "no workers": (False, "none"),
    "workers": (True, "none"),
    "host cache": (False, "host"),
    "device cache": (False, "device"),
}
PREFETCHED = 4  # batches that wait for each worker process


@dataclass(frozen=True)
class Options:
    """What every command is asked. Raises UserError for a value that cannot be used."""

    method: str = option("dbae", f"method whose preset it is: {', '.join(METHODS)}")
    dataset: str = option("toyfaces", "data set or folder:PATH, whose preset says what the model is")
    device: str = option("auto", "auto, cpu or cuda")
    rounds: int = option(5, "timed rounds, in each of which every variant runs once")
    json: str = option("", "file to write the rows to as well")

    def __post_init__(self) -> None:
        check_choices(self)
        preset_name(METHODS[self.method], self.dataset)
        if os.path.isdir(self.json):
            raise UserError(f"json: expected a file's path, {self.json} is a folder")
        for each in dataclasses.fields(self):
            value = getattr(self, each.name)
            if type(value) in (int, float):
                (require_from_zero if each.name in ("profile", "microbatch") else require_positive)(each.name, value)

    @property
    def model(self) -> Any:
        """The configuration of the preset's model."""
        return preset(METHODS[self.method], METHODS[self.method].Config, self.dataset, {})

    def build_model(self) -> DiffusionModel:
        """The preset's model, with the same random weights everywhere."""
        torch.manual_seed(0)
        return METHODS[self.method](self.model)

    def names(self, known: dict[str, Any]) -> list[str]:
        """The variants to compare, of those that are ``known``."""
        names = self.variants.split(",")
        if unknown := [name for name in names if name not in known]:
            raise UserError(f"variants: expected some of {', '.join(known)}, got {unknown[0]!r}")
        return names


@dataclass(frozen=True)
class TrainingOptions(Options):
    """What is trained."""

    batch_size: int = option(32, "images of a step, over all processes")
    microbatch: int = option(0, "images of a forward pass; 0: all of a step")
    steps: int = option(5, "steps of a timed run")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.microbatch and self.batch_size % self.microbatch:
            raise UserError(f"microbatch: expected a divisor of {self.batch_size}, got {self.microbatch}")


@dataclass(frozen=True)
class StepOptions(TrainingOptions):
    """What is compared."""

    variants: str = option("reference,default", f"what to compare: {', '.join(TRAINING)}")
    profile: int = option(0, "after the timing, show the N operations that take most of a run")


@dataclass(frozen=True)
class ScalingOptions(TrainingOptions):
    """By how many processes."""

    processes: tuple[int, ...] = option((1, 2), "numbers of processes, 1 first")
    weak: bool = option(False, "let each process have that many images")

    def __post_init__(self) -> None:
        super().__post_init__()
        numbers = self.processes
        if numbers[0] != 1 or min(numbers) < 1 or len(set(numbers)) < len(numbers):
            raise UserError(f"processes: expected different numbers from 1, 1 first, got {numbers}")
        uneven = [number for number in numbers if self.batch_size % number and not self.weak]
        if uneven:
            raise UserError(f"batch_size: expected a multiple of the {uneven[0]} processes, got {self.batch_size}")


@dataclass(frozen=True)
class SamplingOptions(Options):
    """What is sampled."""

    model_path: str = option("", "checkpoint with a config.json (default: the preset, with random weights)")
    variants: str = option("reference,default", f"what to compare: {', '.join(SAMPLING)}")
    batch_size: int = option(64, "images")
    steps: int = option(10, "steps of the sampler")


@dataclass(frozen=True)
class LoadingOptions(Options):
    """What is read, and how."""

    data_root: str = option("data", "folder of the data sets")
    data_dir: str | None = option(None, "exact path of the data set instead")
    images: int | None = option(None, "the first N training images (default: all)")
    batch_size: int = option(128, "images per batch")
    num_workers: int = option(2, "worker processes of the variant that has some")
    variants: str = option(",".join(LOADING), "what to compare")
    consumes: float | None = option(None, "images per second that training takes: say how many times that is reached")


# Work: built in the process of its variant


def train_work(device_name: str, variant: str, options: TrainingOptions) -> Work:
    """The steps of a timed run."""
    # The reference has the allocator as the system sets it; what trains otherwise tells it to keep memory.
    device = torch.device(device_name) if variant == "reference" else runtime.setup(device_name)
    method = METHODS[options.method]
    sizes = {"batch_size": options.batch_size, "microbatch": options.microbatch or options.batch_size}
    config = preset(method, TrainConfig, options.dataset, sizes | TRAINING[variant])
    model = options.build_model().to(device).train()
    size = model.config.image_size
    data = [
        torch.randint(0, 256, (n, 3, size, size), dtype=torch.uint8) for n in micro_batches(config, runtime.world())
    ]
    data = [images.pin_memory() for images in data] if device.type == "cuda" else data
    batches = itertools.cycle((images, None) for images in data)
    make = reference_step if variant == "reference" else default_step
    step = make(reference(model) if variant == "reference" else model, config, batches)
    return Work(lambda: [step() for _ in range(options.steps)])


def default_step(model: DiffusionModel, config: TrainConfig, batches: Batches) -> Callable[[], object]:
    """A function that takes one step of dbae.training, prepared as scripts/train.py does."""
    device = next(model.parameters()).device
    dtype = runtime.amp_dtype(config.precision, device)
    model.use_amp(dtype, config.autocast)
    if config.checkpointing:
        runtime.use_checkpointing(model)
    state = TrainState.create(model, config, device, scaled=dtype == torch.float16)
    runtime.use_compile(model, config.compile, device)
    wrapped, stop = _parallel(model, device).train(), runtime.Stop()
    moved = ((images.to(device, non_blocking=True), y) for images, y in batches)
    return lambda: take_step(wrapped, state, moved, config, device, stop)


def sample_work(device_name: str, variant: str, options: SamplingOptions) -> Work:
    """Reconstructions, which a run returns."""
    device = torch.device(device_name) if variant == "reference" else runtime.setup(device_name)
    model = load_model(options.model_path) if options.model_path else options.build_model()
    model = model.to(device).eval()
    size, generator = model.config.image_size, torch.Generator().manual_seed(0)
    x0 = 2 * torch.rand(options.batch_size, 3, size, size, generator=generator).to(device) - 1
    if variant == "reference":
        model = reference(model)
        return Work(lambda: reference_reconstruct(model, x0, options.steps))
    precision, compiled, at_once = SAMPLING[variant]
    model.use_amp(runtime.amp_dtype(precision, device))
    runtime.use_compile(model, compiled, device)
    parts = x0.split(at_once or len(x0))
    return Work(lambda: torch.cat([model.reconstruct(x, steps=options.steps) for x in parts]))


def data_work(device_name: str, variant: str, options: LoadingOptions) -> Work:
    """As many batches as hold all images, at random places of the endless order. Caches are filled before."""
    device, data = runtime.setup(device_name), images_of(options)
    has_workers, place = LOADING[variant]
    workers, size = options.num_workers * has_workers, options.batch_size
    source = cached(data, place, device, quiet=True)
    stream = training_batches(source, size, size, 0, num_workers=workers, device=device)

    def take(batches: int) -> None:
        deque(islice(stream, batches), maxlen=0)

    # What workers prepared between the runs is not counted
    return Work(partial(take, -(-len(data) // size)), before=partial(take, 1 + PREFETCHED * workers))


def images_of(options: LoadingOptions) -> ImageDataset:
    """The data set that is read."""
    part = f"0:{options.images}" if options.images else None
    return build(options.dataset, "train", options.model.image_size, options.data_root, options.data_dir, part)


# Commands


def train(options: StepOptions) -> None:
    """Compare variants of training.

    reference: float32, on a GPU with the U-Net in fp16 and a loss scale; default: what train_dbae.sh does, on a CPU
    float32, on a GPU bf16 and compiled; the others change one setting of it. FLOPs are those of the reference: the
    default path reaches equal numbers with fewer.
    """
    names, device = options.names(TRAINING), runtime.setup(options.device)
    tasks = [partial(operations, count=options.profile)] * bool(options.profile)
    variants = {name: (str(device), name, options) for name in names}
    timings, found = measure(train_work, variants, options.rounds, tasks)
    flops, peak = flops_of(options), matmul_peak(device, runtime.amp_dtype("auto", device) or torch.float32)
    rows = table(timings, dict.fromkeys(names, options.batch_size * options.steps))
    for row in rows:
        row["matmul_share"] = flops * row["images_per_s"] / peak
    title = (
        f"{options.dataset}, batch {options.batch_size}, {options.steps} steps, {digits(flops / 1e9)} GFLOP per image"
    )
    profiles = {name: results[0] for name, results in found.items() if results}
    facts = {"matmul_flops": peak, "flops_per_image": flops, "profiles": profiles}
    title += f", {digits(flops / 1e9)} GFLOP per image, matmul {digits(peak / 1e12)} TFLOP/s"
    report(title, device, rows, options.json, **facts)
    for name, profile in profiles.items():
        print(f"\n{name}:")
        print_table(profile, PROFILE)


def flops_of(options: TrainingOptions) -> float:
    """FLOPs of the reference for an image, forward and backward (a multiplication and an addition are two)."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        model = reference(options.build_model())
        size = model.config.image_size
        model.loss(torch.empty(1, 3, size, size), t=torch.ones(1)).sum().backward()
    return float(counter.get_total_flops())


def sample(options: SamplingOptions) -> None:
    """Compare variants of sampling. With --model_path, images are compared with the first variant's, too.

    reference: float32, on a GPU with the U-Net in fp16, every state copied to the host; default: what recon_dbae.sh
    does, on a CPU float32, on a GPU bf16; one by one: one image after the other; the others change one setting.
    """
    names, device = options.names(SAMPLING), runtime.setup(options.device)
    variants = {name: (str(device), name, options) for name in names}
    timings, found = measure(sample_work, variants, options.rounds, [made])
    rows = table(timings, dict.fromkeys(names, options.batch_size))
    # What a random network makes turns on the last digit; one by one, a stochastic encoder draws other codes
    for row in rows if options.model_path else ():
        if row["variant"] != "one by one":
            row["difference"] = float(abs(found[row["variant"]][0] - found[names[0]][0]).max())
    name = os.path.basename(options.model_path) or options.dataset
    report(f"{name}, {options.batch_size} images, {options.steps} steps", device, rows, options.json)


def made(work: Work, device: torch.device) -> np.ndarray:
    """What a run makes; the codes of a stochastic encoder are drawn from the same seed in all variants."""
    torch.manual_seed(0)
    return work.run().cpu().numpy()


def data(options: LoadingOptions) -> None:
    """Compare ways to read a data set: without and with worker processes, and with all images held in memory."""
    names, device = options.names(LOADING), runtime.setup(options.device)
    count = len(images_of(options))
    timings, _ = measure(data_work, {name: (str(device), name, options) for name in names}, options.rounds)
    rows = table(timings, dict.fromkeys(names, -(-count // options.batch_size) * options.batch_size))
    for row in rows if options.consumes else ():
        row["feeds"] = row["images_per_s"] / options.consumes
    title = f"{count} images of {options.dataset}, {options.model.image_size} px, batches of {options.batch_size}"
    report(title, device, rows, options.json, consumes=options.consumes)


def scaling(options: ScalingOptions) -> None:
    """Compare numbers of processes, which share a batch (strong scaling) or with --weak have one each.

    On a CPU they share the threads of one process. Efficiency is the ratio over the processes.
    """
    device = runtime.setup(options.device)
    if device.type == "cuda" and max(options.processes) > torch.cuda.device_count():
        raise UserError(f"processes: expected at most one per GPU, got {max(options.processes)}")
    groups = {f"{number} process{'es' * (number > 1)}": number for number in options.processes}
    batches = {name: options.batch_size * (number if options.weak else 1) for name, number in groups.items()}
    variants = {
        name: (device.type, "default", dataclasses.replace(options, batch_size=batch))
        for name, batch in batches.items()
    }
    timings, _ = measure(train_work, variants, options.rounds, processes=groups)
    rows = table(timings, {name: batch * options.steps for name, batch in batches.items()})
    for row, number in zip(rows, groups.values(), strict=True):
        row |= {"threads": max(1, torch.get_num_threads() // number), "efficiency": row["ratio"] / number}
    title = f"{options.dataset}, {options.batch_size} images per step{' and process' * options.weak}"
    report(f"{title}, {options.steps} steps", device, rows, options.json)


COMMANDS: dict[str, tuple[type[Options], Callable[[Any], None]]] = {
    "train": (StepOptions, train),
    "sample": (SamplingOptions, sample),
    "data": (LoadingOptions, data),
    "scaling": (ScalingOptions, scaling),
}


def main(args: list[str] | None = None) -> None:
    """Read the command and its options, and run it."""
    words = sys.argv[1:] if args is None else args
    parser = Parser(__doc__)
    parser.add_argument("command", choices=tuple(COMMANDS), help="what is timed")
    name = parser.parse_args(words[:1]).command
    cls, command = COMMANDS[name]
    parser = Parser(inspect.getdoc(command))
    parser.prog += f" {name}"
    parser.add_config("options", cls)
    command(cls(**given(parser.parse_args(words[1:]), cls)))


if __name__ == "__main__":
    run(main)
