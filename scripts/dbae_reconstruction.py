"""Reconstruct a data set from its codes alone, in the official file layout under the checkpoint's folder.

example:
  bash recon_dbae.sh celebahq vp ckpt/ffhq/det/ema_0.9999_1020000.pt 0.0 1 train 7 euler 100 false

The folder is sample_STEP/SAMPLER_RHO_STEPS_w=GUIDANCE_churn=CHURN. Running the same command again completes it.
"""

import dataclasses
import json
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dbae.config import ModelConfig, SampleConfig, option, preset, require_positive
from dbae.errors import UserError
from scripts.cli import Parser, given, run

if TYPE_CHECKING:
    import torch

    from dbae.model import DBAE


@dataclass(frozen=True)
class ReconOptions:
    """What to reconstruct and how to write it. Raises UserError for values out of range."""

    dataset: str = option("", "ffhq, celeba, celebahq, bedroom, horse, toyfaces or folder:PATH")
    model_path: str = option("", "weight file: ema_RATE_STEP.pt or model_STEP.pt")
    split: str = option("train", "part of the data set", ("train", "valid", "test"))
    split_range: str | None = option(None, "cut A:B out of the split")
    data_root: str = option("data", "folder of the data sets")
    data_dir: str | None = option(None, "exact path of the data set instead")
    limit: int | None = option(None, "only the first N images (marked in metrics.json)")
    batch_size: int = option(64, "images sampled together on each process")
    latent: str = option("sample", "code of a stochastic encoder", ("sample", "mean"))
    seed: int = option(0, "seed of codes and churn; image i draws from (seed, i)")
    evaluate: bool = option(False, "compute the metrics in the same pass")
    metrics: str = option("MSE,SSIM,SSIM_official,LPIPS", "metrics to compute with --evaluate")
    lpips_backbone: str | None = option(None, "file with AlexNet's features for LPIPS")
    precision: str = option("fp32", "U-Net precision", ("auto", "fp32", "bf16", "fp16"))
    overwrite: bool = option(False, "replace reconstructions of other settings in the same folder")
    device: str = option("auto", "auto, cpu or cuda")
    num_workers: int = option(0, "processes that read images")
    dry_run: bool = option(False, "print the resolved configuration and exit")
    check: bool = option(False, "check arguments, weights and data, and exit")

    def __post_init__(self) -> None:
        for name in ("dataset", "model_path"):
            if not getattr(self, name):
                raise UserError(f"{name}: expected one, got none")
        require_positive("batch_size", self.batch_size)
        if self.limit is not None:
            require_positive("limit", self.limit)
        if self.seed < 0:
            raise UserError(f"seed: expected a whole number from 0, got {self.seed}")


MODEL_OPTIONS = ("image_size", "schedule", "stochastic", "end_data")


def parse(args: list[str] | None = None) -> tuple[ReconOptions, SampleConfig, dict[str, Any]]:
    """Options, sampling settings, and what was typed about the model."""
    parser = Parser(__doc__)
    parser.add_config("reconstruction", ReconOptions)
    parser.add_config("sampling", SampleConfig)
    parser.add_config("model (checked against the checkpoint)", ModelConfig, MODEL_OPTIONS)
    typed = parser.parse_args(args)
    options = ReconOptions(**given(typed, ReconOptions))
    preset(ModelConfig, options.dataset, {})  # an unknown data set ends here
    return options, SampleConfig(**given(typed, SampleConfig)), given(typed, ModelConfig)


def output_folder(model_path: str, sampling: SampleConfig) -> str:
    """Where the official code would write: beside the checkpoint, named by step and sampling settings."""
    from dbae.checkpoint import step_of

    s = sampling
    name = f"{s.sampler}_{s.rho}_{s.steps}_w={s.guidance}_churn={s.churn_step_ratio}"
    return os.path.join(os.path.dirname(model_path), f"sample_{step_of(model_path)}", name)


def load(options: ReconOptions, about: dict[str, Any], device: "torch.device | None") -> "DBAE":
    """The model, checked against everything typed about it."""
    from dbae.checkpoint import load_model

    size = about.get("image_size")
    dataset = None if size or options.dataset.startswith("folder:") else options.dataset
    typed = {name: value for name, value in about.items() if name != "image_size"}
    model = load_model(options.model_path, dataset, device=device, **typed)
    if size and size != model.config.image_size:
        raise UserError(f"image_size: {options.model_path} is for {model.config.image_size} px, got {size}")
    return model


def print_dry_run(options: ReconOptions, sampling: SampleConfig, about: dict[str, Any]) -> None:
    """Print the resolved configuration; without the weight file, the data set's preset stands for its model."""
    from dbae.sampler import nfe

    if os.path.exists(options.model_path):
        model = load(options, about, None).config
    else:
        print(f"note: no such file yet: {options.model_path}; showing the preset's model", file=sys.stderr)
        model = preset(ModelConfig, options.dataset, about)
    resolved = {
        **dataclasses.asdict(options),
        "sampling": dataclasses.asdict(sampling),
        "model": dataclasses.asdict(model),
        "nfe": nfe(sampling.steps, sampling.sampler, sampling.churn_step_ratio),
        "output": output_folder(options.model_path, sampling),
    }
    print(json.dumps(resolved, indent=2))


def settings_of(options: ReconOptions, sampling: SampleConfig, model: "DBAE", images: int) -> dict[str, Any]:
    """What the written numbers depend on: identifies a reconstruction and stands in metrics.json."""
    from dbae import distributed

    names = ("dataset", "split", "split_range", "data_dir", "limit", "batch_size", "latent", "seed", "precision")
    return {
        "checkpoint": os.path.basename(options.model_path),
        **{name: getattr(options, name) for name in names},
        "processes": distributed.world(),
        "images": images,
        "end_data": model.config.end_data,
        **dataclasses.asdict(sampling),
    }


def reconstruct_all(
    model: "DBAE", batches: Iterator, options: ReconOptions, sampling: SampleConfig, folder: str, device: "torch.device"
) -> Iterator[tuple["torch.Tensor", "torch.Tensor"]]:
    """Write this process's batches that are not there yet; yields (real, fake), uint8 NHWC on the CPU, for each."""
    import torch

    from dbae import distributed
    from dbae.images import save_grid, to_float, to_uint8
    from dbae.randomness import image_generators
    from eval import samples

    rank = distributed.rank()
    for i, (images, index) in enumerate(batches):
        real = images.permute(0, 2, 3, 1)
        real_path, fake_path = (samples.part_path(folder, rank, kind, i) for kind in ("real", "fake"))
        if os.path.exists(real_path) and os.path.exists(fake_path):
            yield real, torch.from_numpy(samples.read_part(fake_path))
            continue
        generators = image_generators(options.seed, index.tolist(), device)
        with torch.no_grad():
            z = model.encode(to_float(images.to(device)), options.latent == "sample", generators)
            x_T = model.decode(z)
            x_0 = model.generate_from(
                z, x_T, sampling.steps, sampling.sampler, sampling.churn_step_ratio, sampling.rho, sampling.guidance,
                generators,
            )  # fmt: skip
        endpoint, fake = to_uint8(x_T).cpu(), to_uint8(x_0).cpu()
        rows = [("input", images), ("endpoint", endpoint), ("reconstruction", fake)]
        save_grid(os.path.join(folder, f"{rank}_sample_{i}.png"), [(label, row[:16]) for label, row in rows])
        fake = fake.permute(0, 2, 3, 1)
        samples.write_part(real_path, real.numpy(), index.numpy())
        samples.write_part(fake_path, fake.numpy(), index.numpy())
        yield real, fake


def main() -> None:
    """Parse, load, reconstruct, combine, and report."""
    options, sampling, about = parse()
    if options.dry_run:
        return print_dry_run(options, sampling, about)

    from datasets import build
    from datasets.loader import ordered_batches
    from dbae import distributed
    from dbae.progress import progress_bar
    from dbae.sampler import nfe
    from dbae.training import autocast_dtype
    from eval import samples
    from eval.metrics import ReconstructionMetrics, describe

    folder = output_folder(options.model_path, sampling)
    device = distributed.setup(options.device)
    model = load(options, about, device)
    model.autocast_dtype = autocast_dtype(options.precision, device)
    data = build(
        options.dataset, options.split, model.config.image_size, options.data_root, options.data_dir,
        options.split_range,
    )  # fmt: skip
    names = options.metrics.split(",") if options.evaluate else []
    metrics = ReconstructionMetrics(names, device, options.lpips_backbone) if names else None
    if options.check:
        return None

    # Reconstruct: each process its share, each image once
    images = min(len(data), options.limit or len(data))
    rank, world = distributed.rank(), distributed.world()
    if rank == 0:
        samples.open_folder(folder, settings_of(options, sampling, model, images), options.overwrite)
    distributed.barrier()
    start = time.monotonic()
    batches = ordered_batches(data, options.batch_size, rank, world, options.limit, options.num_workers)
    with progress_bar(images, "image", "reconstruct", enabled=rank == 0) as bar:
        for real, fake in reconstruct_all(model, batches, options, sampling, folder, device):
            if metrics:
                metrics.update(real, fake)
                bar.set_postfix_str(describe(metrics.means()), refresh=False)
            bar.update(min(len(real) * world, images - bar.n))

    # Combine and report
    distributed.barrier()
    if metrics:
        metrics.merge(distributed.all_gather((metrics.images, metrics.sums)))
    if rank == 0:
        size, calls = model.config.image_size, nfe(sampling.steps, sampling.sampler, sampling.churn_step_ratio)
        combined = os.path.join(folder, f"samples_{images}x{size}x{size}x3_nfe{calls}.npz")
        samples.write_combined(combined, samples.fake_images(folder, world), (images, size, size, 3))
        seconds = round(time.monotonic() - start, 1)
        samples.update_report(folder, complete=True, nfe=calls, seconds=seconds, device=str(device))
        if metrics:
            samples.add_metrics(folder, metrics.means(), metrics.images)
            print(f"{describe(metrics.means())}  ({metrics.images} images)")
        print(f"wrote {images} reconstructions to {folder}")
    distributed.cleanup()
    return None


if __name__ == "__main__":
    run(main)
