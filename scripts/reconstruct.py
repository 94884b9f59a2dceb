"""Reconstruct a data set from its codes alone, in the official file layout under the checkpoint's folder.

example:
  bash recon_dbae.sh celebahq vp ckpt/ffhq/det/ema_0.9999_1020000.pt 0.0 1 train 7 euler 100 false

The folder is sample_STEP/SAMPLER_RHO_STEPS_w=GUIDANCE_churn=CHURN, followed by _grid=, _eta= and _boot= where they are
not the default. Running the same command again completes it. With --on_bad_image skip, images that cannot be read are
left out and listed in bad_images.json.
"""

import dataclasses
import itertools
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dbae.config import SampleConfig, option
from scripts.bad_images import FILE, left_out, noted, report, require_some
from scripts.cli import Parser, given, run
from scripts.inputs import Speed, SweepInputs, build_data, load, parse, print_dry_run, result_folder

if TYPE_CHECKING:
    import torch

    from dbae.methods.dbae import DBAE


@dataclass(frozen=True)
class ReconOptions(SweepInputs, Speed):
    """What to reconstruct and how to write it."""

    evaluate: bool = option(False, "compute the metrics in the same pass")
    metrics: str = option("MSE,SSIM,SSIM_official,LPIPS", "metrics to compute with --evaluate")
    lpips_backbone: str | None = option(None, "file with AlexNet's features for LPIPS")
    overwrite: bool = option(False, "replace reconstructions of other settings in the same folder")


def output_folder(model_path: str, sampling: SampleConfig) -> str:
    """Where the official code would write: beside the checkpoint, named by step and sampling settings."""
    return result_folder(model_path, sampling.label)


def settings_of(options: ReconOptions, sampling: SampleConfig, model: "DBAE", images: int) -> dict[str, Any]:
    """What the written numbers depend on: identifies a reconstruction and stands in metrics.json."""
    from dbae import distributed
    from dbae.performance import precision_of

    names = ("dataset", "split", "split_range", "data_dir", "limit", "batch_size", "latent", "seed")
    return {
        "checkpoint": os.path.basename(options.model_path),
        **{name: getattr(options, name) for name in names},
        "processes": distributed.world(),
        "images": images,
        "end_data": model.config.end_data,
        "precision": precision_of(model),
        **dataclasses.asdict(sampling),
    }


def reconstruct_batch(
    model: "DBAE", images: "torch.Tensor", index: "torch.Tensor", options: ReconOptions, sampling: SampleConfig
) -> tuple["torch.Tensor", "torch.Tensor"]:
    """Endpoints and reconstructions of uint8 images [n, 3, H, W], the same on the CPU; image i draws from (seed, i)."""
    import torch

    from dbae.io import image_generators, to_float, to_uint8

    device = next(model.parameters()).device
    generators = image_generators(options.seed, index.tolist(), device)
    with torch.no_grad():
        z = model.encode(to_float(images.to(device)), options.latent == "sample", generators)
        x_T = model.decode(z)
        x_0 = model.generate_from(z, x_T, generator=generators, **sampling.arguments)
    return to_uint8(x_T).cpu(), to_uint8(x_0).cpu()


def reconstruct_all(
    model: "DBAE", batches: Iterator, options: ReconOptions, sampling: SampleConfig, folder: str
) -> Iterator[tuple["torch.Tensor", "torch.Tensor", list[int]]]:
    """Write this process's batches that are not there yet; yields real and fake, uint8 NHWC on the CPU, and numbers.

    A batch without a good image is no batch.
    """
    import torch

    from dbae import distributed
    from dbae.io import save_grid
    from eval import samples

    rank = distributed.rank()
    for i, (images, index) in enumerate(batches):
        real_path, fake_path = (samples.part_path(folder, rank, kind, i) for kind in ("real", "fake"))
        if os.path.exists(real_path) and os.path.exists(fake_path):
            real, (fake, numbers) = samples.read_part(real_path), samples.read_numbered(fake_path)
            yield torch.from_numpy(real), torch.from_numpy(fake), numbers.tolist()
            continue
        if not len(images):
            continue
        endpoint, fake = reconstruct_batch(model, images, index, options, sampling)
        rows = [("input", images), ("endpoint", endpoint), ("reconstruction", fake)]
        save_grid(os.path.join(folder, f"{rank}_sample_{i}.png"), [(label, row[:16]) for label, row in rows])
        real, fake = images.permute(0, 2, 3, 1), fake.permute(0, 2, 3, 1)
        samples.write_part(real_path, real.numpy(), index.numpy())
        samples.write_part(fake_path, fake.numpy(), index.numpy())
        yield real, fake, index.tolist()


def main() -> None:
    """Parse, load, reconstruct, combine, and report."""
    parser = Parser(__doc__)
    parser.add_config("sampling", SampleConfig)
    options, about, typed = parse(parser, ReconOptions, "reconstruction", None)
    sampling = SampleConfig(**given(typed, SampleConfig))
    folder = output_folder(options.model_path, sampling)

    from dbae.sampler import nfe

    calls = nfe(sampling.steps, sampling.sampler, sampling.churn_step_ratio)
    if options.dry_run:
        return print_dry_run(options, about, sampling=dataclasses.asdict(sampling), nfe=calls, output=folder)

    from datasets.loader import ordered_batches
    from dbae import distributed
    from dbae.progress import progress_bar
    from eval import samples
    from eval.reconstruction import ReconstructionMetrics, describe

    device = distributed.setup(options.device)
    model = load(options, about, device)
    data = build_data(options, model.config.image_size, options.whole)
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
    bad, kept = noted(options.on_bad_image), []
    batches = ordered_batches(data, options.batch_size, rank, world, options.limit, options.num_workers, bad=bad)
    with progress_bar(images, "image", "reconstruct", enabled=rank == 0) as bar:
        for real, fake, numbers in reconstruct_all(model, batches, options, sampling, folder):
            kept += numbers
            if metrics:
                metrics.update(real, fake)
                bar.set_postfix_str(describe(metrics.means()), refresh=False)
            bar.update(min(len(real) * world, images - bar.n))

    # Combine and report
    distributed.barrier()
    kept = list(itertools.chain(*distributed.all_gather(kept)))
    if metrics:
        metrics.merge(distributed.all_gather((metrics.images, metrics.sums)))
    if rank == 0:
        require_some(data, images, kept)
        n, size, seconds = len(kept), model.config.image_size, round(time.monotonic() - start, 1)
        combined = os.path.join(folder, f"samples_{n}x{size}x{size}x3_nfe{calls}.npz")
        samples.write_combined(combined, samples.fake_images(folder), (n, size, size, 3))
        samples.update_report(
            folder, complete=True, nfe=calls, seconds=seconds, device=str(device), bad_images=images - n
        )
        if metrics:
            samples.add_metrics(folder, metrics.means(), metrics.images)
            print(f"{describe(metrics.means())}  ({metrics.images} images)")
        report(os.path.join(folder, FILE), left_out(data, images, kept), images, "left out")
        print(f"wrote {n} reconstructions to {folder}")
    distributed.cleanup()
    return None


if __name__ == "__main__":
    run(main)
