"""How fast training and sampling are, next to a reference implementation (benchmarks/reference.py), and reading images.

commands:
  train    steps of training, by one or several processes, on random images in host memory
  encode   codes, or features, of random images
  sample   reconstructions: the images are encoded, and their codes decoded by the method's own sampler
  data     batches of images on the device, in each way to read them

Every variant is a process of its own; they run in alternating rounds. The ratio compares with the first variant.
"--help" after a command shows its options.

examples:
  python -m benchmarks.speed train --dataset toyfaces --variants reference,default,bf16
  python -m benchmarks.speed sample --model_path ckpt/toyfaces/det/ema_0.9999_016000.pt
  python -m benchmarks.speed data --dataset celeba --images 20000 --num_workers 8
  python -m benchmarks.speed train --dataset celeba --variants default --processes 1,2,4,8
"""

import inspect
import itertools
import sys
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import islice
from typing import Any

import torch

from benchmarks.reference import reference, reference_reconstruct, reference_step
from benchmarks.timing import Work, measure, report, table
from datasets import ImageDataset, build
from datasets.cache import cached
from datasets.loader import training_batches
from dbae import runtime
from dbae.checkpoint import load_model
from dbae.config import TrainConfig, UserError, option, require_positive
from dbae.methods import METHODS, DiffusionModel, preset
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
    "micro32": {"microbatch": 32},
}
INFERENCE = {  # precision and compilation
    "reference": ("fp32", "false"),
    "default": ("auto", "false"),
    "fp32": ("fp32", "false"),
    "bf16": ("bf16", "false"),
    "compiled": ("auto", "true"),
    "graphs": ("auto", "graphs"),
}
LOADING = {  # whether there are worker processes, and where all images are held
    "no workers": (False, "none"),
    "workers": (True, "none"),
    "host cache": (False, "host"),
    "device cache": (False, "device"),
}
PREFETCHED = 4  # batches that wait for each worker process
Step = Callable[[], tuple[float, bool, bool]]  # of training; returns what take_step does


@dataclass(frozen=True)
class Benchmark:
    """A command, whose options are its fields. Raises UserError for a value that cannot be used.

    It has VARIANTS, and ``work(device_name, variant)``, which is called in the process of each.
    """

    method: str = option("dbae", f"method whose preset it is: {', '.join(METHODS)}")
    dataset: str = option("toyfaces", "data set or folder:PATH, whose preset says what the model is")
    device: str = option("auto", "auto, cpu or cuda")
    rounds: int = option(5, "timed rounds, in each of which every variant runs once")
    json: str = option("", "file to write the rows to as well")

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if type(value) in (int, float) and name != "microbatch":
                require_positive(name, value)

    def groups(self) -> dict[str, int]:
        """The variants to compare, and the number of processes of each."""
        names = self.variants.split(",")
        if unknown := [name for name in names if name not in self.VARIANTS]:
            raise UserError(f"variants: expected some of {', '.join(self.VARIANTS)}, got {unknown[0]!r}")
        return dict.fromkeys(names, 1)

    def run_size(self) -> int:
        """Images in a run."""
        return self.batch_size

    def comparable(self) -> bool:
        """Whether runs make arrays that should be the first variant's."""
        return False

    def compare(self) -> None:
        """Time, print and write."""
        device, groups = runtime.setup(self.device), self.groups()
        place = device.type if self.device == "auto" else self.device
        images = self.run_size()
        timings, made = measure(self.work, {name: (place, name) for name in groups}, self.rounds, groups)
        rows, (first, *_) = table(timings, images), made.values()
        for row in rows if self.comparable() else ():
            row["difference"] = float(abs(made[row["variant"]] - first).max())
        report(f"{self.dataset}, {images} images in each run", device, rows, self.json, options=asdict(self))


@dataclass(frozen=True)
class ModelBenchmark(Benchmark):
    """One of a model: a checkpoint's, or the preset's with the same random weights everywhere."""

    model_path: str = option("", "checkpoint with a config.json (default: the preset, with random weights)")

    def build_model(self) -> DiffusionModel:
        """The model, on the CPU."""
        if self.model_path:
            return load_model(self.model_path)
        method = METHODS[self.method]
        torch.manual_seed(0)
        return method(preset(method, method.Config, self.dataset, {}))


@dataclass(frozen=True)
class Training(ModelBenchmark):
    """Compare variants of training, all but the reference by several numbers of processes, which share a batch.

    reference: float32, on a GPU with the U-Net in fp16 and a loss scale; default: what train_dbae.sh does, on a CPU
    float32, on a GPU bf16 and compiled; the others change one setting of it. On a CPU, processes share the threads.
    """

    variants: str = option("reference,default", f"what to compare: {', '.join(TRAINING)}")
    batch_size: int = option(32, "images of a step, over all processes")
    microbatch: int = option(-1, "images of a forward pass; -1: all of a step")
    steps: int = option(5, "steps of a timed run")
    processes: tuple[int, ...] = option((1,), "numbers of processes")

    VARIANTS = TRAINING

    def groups(self) -> dict[str, int]:
        for number in self.processes:
            require_positive("processes", number)
        numbers = {name: (1,) if name == "reference" else self.processes for name in super().groups()}
        return {name + f" by {n}" * (n > 1): n for name in numbers for n in numbers[name]}

    def run_size(self) -> int:
        return self.batch_size * self.steps

    def work(self, device_name: str, variant: str) -> Work:
        variant = variant.split(" ")[0]
        # The reference has the allocator as the system sets it; what trains otherwise tells it to keep memory.
        device = torch.device(device_name) if variant == "reference" else runtime.setup(device_name)
        sizes = {"batch_size": self.batch_size, "microbatch": self.microbatch}
        config = TrainConfig() if self.model_path else preset(METHODS[self.method], TrainConfig, self.dataset, {})
        config = replace(config, **sizes | TRAINING[variant])
        model = self.build_model().to(device).train()
        size = model.config.image_size
        data = [torch.randint(0, 256, (n, 3, size, size)).byte() for n in micro_batches(config, runtime.world())]
        data = [images.pin_memory() for images in data] if device.type == "cuda" else data
        batches = itertools.cycle((images, None) for images in data)
        if variant == "reference":
            step = reference_step(reference(model), config, batches)
        else:
            step = default_step(model, config, batches)
        return Work(lambda: [step() for _ in range(self.steps)])


@dataclass(frozen=True)
class Encoding(ModelBenchmark):
    """Compare variants of encoding: codes, or the features of a diffusion model's block.

    reference: float32, on a GPU with the U-Net in fp16; default: what encoding does, on a CPU float32, on a GPU bf16;
    the others change one setting.
    """

    variants: str = option("reference,default", f"what to compare: {', '.join(INFERENCE)}")
    batch_size: int = option(64, "images")

    VARIANTS = INFERENCE

    def work(self, device_name: str, variant: str) -> Work:
        model, x0 = self.prepared(device_name, variant)
        return Work(torch.no_grad()(lambda: next(iter(model.encode_arrays(x0).values())).cpu().numpy()))

    def prepared(self, device_name: str, variant: str) -> tuple[DiffusionModel, torch.Tensor]:
        """The model as the variant has it, and random images."""
        device = torch.device(device_name) if variant == "reference" else runtime.setup(device_name)
        model = self.build_model().to(device).eval()
        size, generator = model.config.image_size, torch.Generator().manual_seed(0)
        x0 = 2 * torch.rand(self.batch_size, 3, size, size, generator=generator).to(device) - 1
        if variant == "reference":
            return reference(model), x0
        precision, compiled = INFERENCE[variant]
        model.use_amp(runtime.amp_dtype(precision, device))
        runtime.use_compile(model, compiled, device)
        return model, x0


@dataclass(frozen=True)
class Sampling(Encoding):
    """Compare variants of sampling, and their images with the first variant's.

    reference: float32, on a GPU with the U-Net in fp16, every state copied to the host; default: what recon_dbae.sh
    does, on a CPU float32, on a GPU bf16; the others change one setting.
    """

    steps: int = option(10, "steps of the sampler")

    def comparable(self) -> bool:
        return bool(self.model_path)  # what a random network makes turns on the last digit

    def work(self, device_name: str, variant: str) -> Work:
        model, x0 = self.prepared(device_name, variant)
        if variant == "reference":
            return Work(lambda: reference_reconstruct(model, x0, self.steps).cpu().numpy())
        return Work(lambda: model.reconstruct(x0, steps=self.steps).cpu().numpy())


@dataclass(frozen=True)
class Loading(Benchmark):
    """Compare ways to read a data set: without and with worker processes, and with all images held in memory."""

    data_root: str = option("data", "folder of the data sets")
    data_dir: str | None = option(None, "exact path of the data set instead")
    images: int | None = option(None, "the first N training images (default: all)")
    batch_size: int = option(128, "images per batch")
    num_workers: int = option(2, "worker processes of the variant that has some")
    variants: str = option(",".join(LOADING), "what to compare")

    VARIANTS = LOADING

    def data(self) -> ImageDataset:
        """The data set that is read."""
        part = f"0:{self.images}" if self.images else None
        method = METHODS[self.method]
        size = preset(method, method.Config, self.dataset, {}).image_size
        return build(self.dataset, "train", size, self.data_root, self.data_dir, part)

    def run_size(self) -> int:
        return -(-len(self.data()) // self.batch_size) * self.batch_size

    def work(self, device_name: str, variant: str) -> Work:
        """As many batches as hold all images, at random places of the endless order. Caches are filled before."""
        device, (has_workers, place) = runtime.setup(device_name), LOADING[variant]
        workers, size = self.num_workers * has_workers, self.batch_size
        source = cached(self.data(), place, device, quiet=True)
        stream = training_batches(source, size, size, 0, num_workers=workers, device=device)

        def take(batches: int) -> None:
            deque(islice(stream, batches), maxlen=0)

        # What workers prepared between the runs is not counted
        return Work(partial(take, self.run_size() // size), before=partial(take, 1 + PREFETCHED * workers))


def prepared(model: DiffusionModel, config: TrainConfig) -> TrainState:
    """The state of a new run of a model on its device, as scripts/train.py makes it."""
    state = TrainState.begin(model, config)
    runtime.use_compile(model, config.compile, next(model.parameters()).device)
    return state


def stepping(state: TrainState, config: TrainConfig, batches: Batches) -> Step:
    """A function that takes one step of dbae.training."""
    device = next(state.model.parameters()).device
    wrapped, stop = _parallel(state.objective, device).train(), runtime.Stop()
    moved = ((images.to(device, non_blocking=True), y) for images, y in batches)
    return lambda: take_step(wrapped, state, moved, config, device, stop)


def default_step(model: DiffusionModel, config: TrainConfig, batches: Batches) -> Step:
    """The same for a new run of a model."""
    return stepping(prepared(model, config), config, batches)


COMMANDS: dict[str, type[Benchmark]] = {"train": Training, "encode": Encoding, "sample": Sampling, "data": Loading}


def main(args: list[str] | None = None) -> None:
    """Read the command and its options, and run it."""
    words = sys.argv[1:] if args is None else args
    parser = Parser(__doc__)
    parser.add_argument("command", choices=tuple(COMMANDS), help="what is timed")
    name = parser.parse_args(words[:1]).command
    cls = COMMANDS[name]
    parser = Parser(inspect.getdoc(cls))
    parser.prog += f" {name}"
    parser.add_config("options", cls)
    cls(**given(parser.parse_args(words[1:]), cls)).compare()


if __name__ == "__main__":
    run(main)
