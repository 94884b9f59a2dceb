"""Train a diffusion bridge autoencoder.

examples:
  bash train_dbae.sh celeba vp true                      preset of the data set, every GPU of the machine
  bash train_dbae.sh toyfaces vp false --total_steps 200 any option after the positions overrides the preset
  bash train_dbae.sh folder:photos vp true --image_size 128 --batch_size 64

The run's folder is WORKDIR/DATASETsize_channels_latentd_STO_SCHEDULE. Running the same command again resumes from its
newest undamaged checkpoint.

exit status:
  0         the last step is done and saved
  2         the error that is printed: arguments, data, damaged checkpoints, a loss that stays non-finite, a last
            checkpoint that cannot be written
  143, 130  stopped by SIGTERM or SIGINT: the step was finished and saved, and the same command goes on; another
            signal after more than a second ends at once (torchrun kills after 30 s, and its own status is 1)
  1         anything unexpected, with a traceback
"""

import dataclasses
import json
import os
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dbae.config import ModelConfig, TrainConfig, UserError, option, preset, preset_name
from scripts.bad_images import FILE, POLICIES, noted, report
from scripts.cli import Parser, given, run

if TYPE_CHECKING:
    import torch

CACHES = ("none", "host", "device")


@dataclass(frozen=True)
class RunOptions:
    """Where a run reads and writes."""

    dataset: str = option("", "ffhq, ffhq256, celeba, celebahq, bedroom, horse, toyfaces or folder:PATH")
    data_root: str = option("data", "folder of the data sets")
    data_dir: str | None = option(None, "exact path of the data set instead")
    split_range: str | None = option(None, "train on images A:B of the training split")
    workdir: str = option("workdir", "folder under which the run's own folder is made")
    resume_checkpoint: str | None = option(None, "start from this checkpoint where the run has none of its own")
    device: str = option("auto", "auto, cpu or cuda")
    num_workers: int = option(2, "processes that read images, per training process")
    cache: str = option("none", "read all images at the start, into this memory; none: read them step by step", CACHES)
    on_bad_image: str = option("fail", "end at a bad image, or skip: put another in its place, and list it", POLICIES)
    timeout: float = option(10.0, "minutes that a process waits for the others before the run fails")
    quiet: bool = option(False, "print rows of progress.csv and warnings, nothing else")
    dry_run: bool = option(False, "print the resolved configuration and exit")
    check: int = option(0, "check arguments and data for N processes, and exit; 0: train")

    def __post_init__(self) -> None:
        preset_name(self.dataset)
        if not 0 < self.timeout <= 10_000:
            raise UserError(f"timeout: expected minutes above 0 and up to 10000, got {self.timeout}")
        start = self.resume_checkpoint
        if start and "://" not in start and not os.path.exists(start):
            raise UserError(f"resume_checkpoint: no such file: {start}")


def parse(args: list[str] | None = None) -> tuple[RunOptions, ModelConfig, TrainConfig]:
    """Run options, and the data set's preset with what was typed on top."""
    parser = Parser(__doc__, "Defaults of the model and of training are the preset's where it says something else.")
    parser.add_config("run", RunOptions)
    parser.add_config("model", ModelConfig)
    parser.add_config("training", TrainConfig)
    typed = parser.parse_args(args)
    options = RunOptions(**given(typed, RunOptions))
    model = preset(ModelConfig, options.dataset, given(typed, ModelConfig))
    return options, model, preset(TrainConfig, options.dataset, given(typed, TrainConfig))


def run_folder(options: RunOptions, model: ModelConfig) -> str:
    """``WORKDIR/{DATASET}{size}_{channels}_{latent}d_{sto}_{schedule}``, as the official code names it."""
    kind, _, path = options.dataset.partition(":")
    name = f"folder-{os.path.basename(os.path.normpath(path))}-" if path else kind
    shape = f"{model.image_size}_{model.num_channels}_{model.latent_dim}d"
    return f"{options.workdir.rstrip('/')}/{name}{shape}_{str(model.stochastic).lower()}_{model.schedule}"


def check_run_folder(run_dir: str, model: ModelConfig, training: TrainConfig) -> None:
    """Raise UserError where the folder holds a run that these settings cannot continue."""
    from dbae.checkpoint import read_config
    from dbae.config import from_json

    earlier = read_config(run_dir)
    if earlier is None:
        return
    theirs = dataclasses.asdict(from_json(ModelConfig, earlier["model"], f"{run_dir}/config.json"))
    trained = earlier.get("train")
    theirs["ema_rate"] = (trained if isinstance(trained, dict) else {}).get("ema_rate", training.ema_rate)
    ours = {**dataclasses.asdict(model), "ema_rate": training.ema_rate}
    for name, value in ours.items():
        if theirs[name] != value:
            raise UserError(
                f"{name}: the run in {run_dir} has {theirs[name]}, got {value}; give the same, or another --workdir"
            )


def preview_with(images: "torch.Tensor", run_dir: str) -> Callable[["torch.nn.Module", int], None]:
    """A function (model, step) that draws inputs, endpoints and 10-step reconstructions of ``images`` (uint8)."""
    import torch

    from dbae.io import save_grid, to_float, to_uint8

    @torch.no_grad()
    def preview(model: torch.nn.Module, step: int) -> None:
        z = model.encode(to_float(images), sample=False)
        x_T = model.decode(z)
        x_0 = model.generate_from(z, x_T, steps=10)
        rows = [("input", images), ("endpoint", to_uint8(x_T)), ("reconstruction", to_uint8(x_0))]
        save_grid(f"{run_dir}/samples/{step:06d}.png", rows)

    return preview


def summary(
    model: "torch.nn.Module", config: TrainConfig, world: int, device: "torch.device", compiled: bool = False
) -> str:
    """What is trained and how, in four lines; the memory is that of each of ``world`` processes."""
    from dbae.performance import precision_of
    from dbae.training import micro_batches

    def millions(network: "torch.nn.Module") -> float:
        return sum(p.numel() for p in network.parameters()) / 1e6

    sizes = micro_batches(config, world)
    passes = " + ".join(f"{count} x {size}" for size, count in Counter(sizes).items())
    networks = ", ".join(f"{name} {millions(network):.3g}M" for name, network in model.named_children())
    weights = 4 * millions(model)  # bytes of a float32
    return "\n".join(
        [
            f"device: {world} x {device.type}, {precision_of(model)}"
            + ", compiled in the first step, which takes minutes" * compiled,
            f"batch: {config.batch_size} images = {world} x {sum(sizes)} = {world} x ({passes} in micro-batches)",
            f"model: {millions(model):.3g}M parameters: {networks}",
            f"memory: {5 * weights:.3g} MB = weights {weights:.3g} + gradients {weights:.3g} + average {weights:.3g} + "
            f"RAdam {2 * weights:.3g}, and activations on top",
        ]
    )


def main() -> None:
    """Parse, build model and data, resume, train."""
    options, model_config, config = parse()
    run_dir = run_folder(options, model_config)
    if options.dry_run:
        resolved = {"run": options, "model": model_config, "train": config}
        shown = {name: dataclasses.asdict(value) for name, value in resolved.items()}
        print(json.dumps(shown | {"run_dir": run_dir}, indent=2))
        return

    import torch

    from datasets import build
    from datasets.cache import cached, check_room
    from datasets.loader import first_images, training_batches
    from dbae import distributed
    from dbae.checkpoint import write_config
    from dbae.methods.dbae import DBAE
    from dbae.performance import half_dtype, use_checkpointing, use_compile, use_half
    from dbae.signals import Stop, out_of_reach
    from dbae.state import TrainState
    from dbae.training import local_batch, train

    device = distributed.setup(options.device, options.timeout)
    dtype = half_dtype(config.precision, device)
    data = build(
        options.dataset, "train", model_config.image_size, options.data_root, options.data_dir, options.split_range,
        whole=options.on_bad_image == "fail",
    )  # fmt: skip
    check_room(data, options.cache, device)
    check_run_folder(run_dir, model_config, config)
    local_batch(config, options.check or distributed.world())
    if options.check:
        return

    # Model and state, new or resumed
    torch.manual_seed(config.seed)
    model = DBAE(model_config).to(device)
    use_half(model, dtype, config.half)
    if config.checkpointing:
        use_checkpointing(model)
    state = TrainState.create(model, config, device, half=dtype == torch.float16)
    resumed = state.restore_newest(run_dir)
    if resumed is None and options.resume_checkpoint:
        resumed = state.restore_from(options.resume_checkpoint)
    distributed.barrier()
    if distributed.rank() == 0:
        write_config(run_dir, options.dataset, model=model_config, train=config)

    say = distributed.print0 if not options.quiet else lambda *_: None
    start = f", resumed from {resumed} after {state.images} images" if resumed else ""
    say(f"run: {run_dir}, steps {state.step} to {config.total_steps}{start}")
    say(f"data: {len(data)} images of {options.dataset}, {model_config.image_size} px")
    compiled = use_compile(model, config.compile, device)
    if compiled:
        state.optimizer.compile()
    say(summary(model, config, distributed.world(), device, compiled))
    bad = noted(options.on_bad_image, f"{run_dir}/{FILE}")
    preview = preview_with(first_images(data, 8, bad).to(device), run_dir)
    images = cached(data, options.cache, device, options.num_workers, bad, options.quiet or distributed.rank() > 0)
    micro_batches = training_batches(
        images, config.batch_size, config.microbatch, config.seed, state.images, distributed.rank(),
        distributed.world(), options.num_workers, device, bad,
    )  # fmt: skip
    with Stop() as stop, closing(out_of_reach(micro_batches)) as batches:
        signum = train(state, batches, config, run_dir, device, preview, stop, options.quiet)
    found = distributed.all_gather(bad.found if bad else {})
    if distributed.rank() == 0:
        report(f"{run_dir}/{FILE}", {k: v for part in found for k, v in part.items()}.values(), len(data), "replaced")
    say(f"{'stopped' if signum else 'done'}: {run_dir} holds step {state.step}")
    distributed.cleanup()
    if signum:
        raise SystemExit(128 + signum)


if __name__ == "__main__":
    run(main)
