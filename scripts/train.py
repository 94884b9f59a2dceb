"""Train a model.

examples:
  bash train_dbae.sh celeba vp true                      preset of the data set, every GPU of the machine
  bash train_dbae.sh toyfaces vp false --total_steps 200 any option after the positions overrides the preset
  bash train_dbae.sh folder:photos vp true --image_size 128 --preset small   networks by size: tiny, small or base

The run's folder is WORKDIR/DATASET and the model's name, for DBAE size_channels_latentd_STO_SCHEDULE. Running the same
command again resumes from its newest undamaged checkpoint.

exit status:
  0         the last step is done and saved
  2         the error that is printed: arguments, data, damaged checkpoints, a loss that stays non-finite, a last
            checkpoint that cannot be written
  143, 130  stopped by SIGTERM or SIGINT: the step was finished and saved, and the same command goes on; another
            signal after more than a second ends at once (several processes: they are killed after 30 s)
  1         anything unexpected, with a traceback
"""

import dataclasses
import json
import os
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import closing
from functools import partial
from math import ceil
from typing import IO, Any

import torch
from torch import Tensor, nn

from datasets import build
from datasets.base import ImageDataset
from datasets.cache import cached, check_room
from datasets.loader import auto_workers, first_images, training_batches
from datasets.tolerant import FILE, Tolerant
from dbae import runtime
from dbae.checkpoint import complete_sets, config_content, read_config, write_config
from dbae.config import TrainConfig, UserError, from_json
from dbae.io import lock_folder, made_by, save_grid, to_float, to_uint8, with_command
from dbae.methods import METHODS, DiffusionModel
from dbae.methods.presets import SIZES
from dbae.state import TrainState
from dbae.training import Batches, local_batch, micro_batches, train
from scripts import train_options
from scripts.cli import run
from scripts.train_options import RunOptions, networks_of, run_folder

parse = partial(train_options.parse, __doc__)


def data_entry(options: RunOptions, data: ImageDataset, labels: str | None) -> dict[str, Any]:
    """What config.json says of the data, ``labels`` being their kind where the model is trained on some."""
    return {
        "name": options.dataset.partition(":")[0],
        "path": data.place,
        "split": options.split,
        "split_range": options.split_range,
        "parts": data.parts and data.parts.about,
        "images": len(data),
        "images_digest": data.digest(times=False),
        "times_digest": data.digest(),
        "labels_digest": data.labels_digest(labels) if labels else None,
    }


def check_run_folder(
    run_dir: str,
    method: str,
    model: object,
    training: TrainConfig,
    data: dict[str, Any],
    moved: bool = False,
    elsewhere: str = "--workdir",
) -> None:
    """Raise UserError where the folder holds a run that these settings, or these ``data``, cannot continue.

    Where they have ``moved``, path and times of change do not count. Earlier versions did not note the data. The option
    ``elsewhere`` names another folder.
    """
    earlier = read_config(run_dir)
    if earlier is None:
        if complete_sets(run_dir, training.ema_rate):
            what = "config.json is missing beside its checkpoints"
            raise UserError(f"{run_dir}: {what}; put it back, or give another {elsewhere}")
        return
    theirs = dataclasses.asdict(from_json(type(model), earlier["model"], f"{run_dir}/config.json"))
    trained = earlier.get("train")
    ours = {"method": method, **dataclasses.asdict(model)}
    theirs["method"] = earlier.get("method", "dbae")
    for name in ("ema_rate", "seed"):
        ours[name] = getattr(training, name)
        theirs[name] = (trained if isinstance(trained, dict) else {}).get(name, ours[name])
    if isinstance(earlier.get("data"), dict):
        ours, theirs = ours | data, theirs | data | earlier["data"]
    movable = ("path", "times_digest")
    for name, value in ours.items():
        if theirs[name] != value and not (moved and name in movable):
            same = "--data_moved true if it is the same data" if name in movable else "the same to go on"
            found = f"the run in {run_dir} has {theirs[name]}, got {value}{made_by(earlier)}"
            raise UserError(f"{name}: {found}; give {same}, or another {elsewhere}")


def changes(run_dir: str, config: TrainConfig) -> str:
    """A line on the settings of training that are others now than when the run was last started; none without."""
    before, now = (read_config(run_dir) or {}).get("train"), json.loads(json.dumps(dataclasses.asdict(config)))
    known = before if isinstance(before, dict) else {}
    changed = [f"{name} {known[name]} -> {now[name]}" for name in now if known.get(name, now[name]) != now[name]]
    return f"\nchanged since it was last started: {', '.join(changed)}" if changed else ""


def draw_preview(images: Tensor, run_dir: str, model: DiffusionModel, step: int) -> None:
    """Write a grid of the model's preview of ``images`` (uint8)."""
    rows = [(label, to_uint8(pictures)) for label, pictures in model.preview(to_float(images))]
    save_grid(f"{run_dir}/samples/{step:06d}.png", rows)


def summary(model: DiffusionModel, config: TrainConfig, device: torch.device, compiled: bool) -> str:
    """What is trained and how, in five lines; the memory is that of each process."""

    def millions(network: nn.Module) -> float:
        return sum(p.numel() for p in network.parameters()) / 1e6

    world = runtime.world()
    sizes = micro_batches(config, world)
    passes = " + ".join(f"{count} x {size}" for size, count in Counter(sizes).items())
    networks = ", ".join(f"{name} {millions(network):.3g}M" for name, network in model.named_children())
    weights = 4 * millions(model)  # bytes of a float32
    parts = {"weights": weights, "gradients": weights, "average": weights, "optimizer": 2 * weights}
    parts |= {"DDP's copy of the gradients": weights} if world > 1 else {}
    memory = " + ".join(f"{name} {size:.3g}" for name, size in parts.items())
    return "\n".join(
        [
            f"device: {world} x {device.type}, {model.precision}"
            + ", compiled in the first step, which takes minutes" * compiled,
            f"batch: {config.batch_size} images = {world} x {sum(sizes)} = {world} x ({passes} in micro-batches)",
            f"model: {millions(model):.3g}M parameters: {networks}",
            f"average: rate {config.ema_rate}, {config.resolved().ema_rule}, over {config.total_steps} steps",
            f"memory: {sum(parts.values()):.3g} MB = {memory}, and activations on top",
        ]
    )


def main(args: list[str] | None = None) -> None:
    """Parse, build model and data, resume, train."""
    options, model_config, config = parse(args)
    run_dir = run_folder(options, model_config)
    if options.dry_run:
        known = config if options.epochs else config.resolved()  # steps of epochs are known once data are read
        resolved = {"run": options, "model": model_config, "train": known}
        shown = {name: dataclasses.asdict(value) for name, value in resolved.items()}
        print(json.dumps(shown | {"run_dir": run_dir}, indent=2))
        return

    # Everything that can be wrong
    device = runtime.setup(options.device, options.timeout)
    runtime.amp_dtype(config.precision, device)  # a wrong one is an error now
    data = build(
        options.dataset, options.split, model_config.image_size, options.data_root, options.data_dir,
        options.split_range,
        whole=options.on_bad_image == "fail",
    )  # fmt: skip
    labels = METHODS[options.method].TARGETS
    targets = data.targets(labels).values if labels else None
    check_room(data, options.cache, device)
    if options.epochs:
        config = dataclasses.replace(config, total_steps=ceil(options.epochs * len(data) / config.batch_size))
    config = config.resolved()

    def check_run() -> dict[str, Any]:
        entry = data_entry(options, data, labels)
        if options.dataset.startswith("folder:") and os.path.realpath(run_dir).startswith(f"{data.place}{os.sep}"):
            raise UserError(f"workdir: {run_dir} lies among the images, and would add pictures to them")
        check_run_folder(run_dir, options.method, model_config, config, entry, options.data_moved)
        return entry

    entry = runtime.on_first(check_run)
    local_batch(config, options.check or runtime.world())
    if options.check:
        return

    # Train
    torch.manual_seed(config.seed)
    model = METHODS[options.method](model_config).to(device)
    images = Tolerant(data, options.on_bad_image, replace=True, path=f"{run_dir}/{FILE}")

    def stream(state: TrainState) -> Batches:
        workers = auto_workers() if options.num_workers is None else options.num_workers
        stored = cached(images, options.cache, device, workers, options.quiet or runtime.rank() > 0)
        return training_batches(
            stored, config.batch_size, config.microbatch, config.seed, state.images, runtime.rank(), runtime.world(),
            workers, device, targets,
        )  # fmt: skip

    content = config_content(model, options.dataset, train=config) | {"preset": options.preset, "data": entry}
    about = f"data: {len(data)} images of {options.dataset} ({options.split}), {model_config.image_size} px"
    about += f"\npreset: {options.preset} (--preset: {', '.join(SIZES)})" if options.preset else ""
    if networks_of(options.resume_checkpoint, METHODS[options.method]):
        about += f"\nnetworks: those of {options.resume_checkpoint}"
    smaller = device.type == "cpu" and METHODS[options.method].SIZES and options.preset != SIZES[0]
    hint = f"on a CPU --preset {SIZES[0]} gets done, with smaller networks and fewer steps" if smaller else ""
    preview = partial(draw_preview, first_images(images, 8).to(device), run_dir)
    signum, step = fit(
        model, config, run_dir, content, about, stream, preview, options.resume_checkpoint, options.quiet, hint
    )
    images.merge(runtime.all_gather(images.faults))
    if runtime.rank() == 0:
        images.report(f"{run_dir}/{FILE}")
    end(run_dir, step, signum, options.quiet)


def fit(
    model: DiffusionModel,
    config: TrainConfig,
    run_dir: str,
    content: Mapping[str, Any],
    about: str,
    stream: Callable[[TrainState], Batches],
    preview: Callable[[DiffusionModel, int], None],
    resume_checkpoint: str | None = None,
    quiet: bool = False,
    hint: str = "",
) -> tuple[int, int]:
    """Train a new model, or go on with the run in ``run_dir``; returns what ``training.train`` does, and the last step.

    ``content`` is written to config.json, ``about`` says what data there are, ``stream`` yields the batches from
    where a state stands, and ``hint`` is given where the run would take days.
    """
    held: list[IO | None] = []  # the run folder's lock, until the end
    runtime.on_first(lambda: held.append(lock_folder(run_dir)))
    state, device = TrainState.begin(model, config), next(model.parameters()).device
    resumed = state.restore_newest(run_dir)
    if resumed is None and resume_checkpoint:
        resumed = state.restore_from(resume_checkpoint)
        if state.step >= config.total_steps:
            total = f"total_steps: expected more than the {state.step} of {resume_checkpoint}, got {config.total_steps}"
            raise UserError(f"{total}; to begin at step 0 give a copy of that file alone")
    if state.step < config.total_steps:  # what has ended was trained with what stands there
        about += changes(run_dir, config)
        runtime.barrier()
        if runtime.rank() == 0:
            write_config(run_dir, with_command(content))
    start = f", resumed from {resumed} after {state.images} images" if resumed else ""
    compiled = runtime.use_compile(model, config.compile, device)
    if not quiet:
        runtime.print0(f"run: {run_dir}, steps {state.step} to {config.total_steps}{start}\n{about}")
        runtime.print0(summary(model, config, device, compiled))
    batches = stream(state)  # which may read all images first: a signal ends that at once
    with runtime.Stop() as stop, closing(runtime.blocking_signals(batches)) as batches:
        return train(state, batches, config, run_dir, device, preview, stop, quiet, hint), state.step


def end(run_dir: str, step: int, signum: int, quiet: bool) -> None:
    """Say how the run ended, and exit with a signal's status."""
    if not quiet:
        runtime.print0(f"{'stopped' if signum else 'done'}: {run_dir} holds step {step}")
    runtime.cleanup()
    if signum:
        raise SystemExit(128 + signum)


if __name__ == "__main__":
    run(main)
