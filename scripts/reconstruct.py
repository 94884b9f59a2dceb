"""Reconstruct a data set from its codes alone, in the official file layout under the checkpoint's folder.

example:
  bash recon_dbae.sh celebahq vp ckpt/ffhq/det/ema_0.9999_1020000.pt 0.0 1 train 7 euler 100 false

The folder is sample_STEP/SAMPLER_RHO_STEPS_w=GUIDANCE_churn=CHURN, followed by _grid=, _eta= and _boot= where they are
not the default. Running the same command again completes it. With --on_bad_image skip, images that cannot be read are
left out and listed in bad_images.json.
"""

import itertools
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from datasets.base import ImageDataset
from datasets.loader import ordered_batches
from datasets.tolerant import FILE, POLICIES, Tolerant
from dbae import runtime
from dbae.background import Background
from dbae.config import RuntimeConfig, UserError, option
from dbae.io import check_outputs, command_line, fingerprint, save_grid
from dbae.methods import AutoEncoder
from dbae.progress import progress_bar
from eval import samples
from eval.reconstruction import ReconstructionMetrics, describe
from scripts.cli import Parser, run
from scripts.common import build_data, compile_for, load, parse_sampling, print_dry_run, result_folder
from scripts.options import DataOptions
from scripts.trained import TrainedModel


@dataclass(frozen=True)
class ReconOptions(DataOptions, RuntimeConfig):
    """What to reconstruct and how to write it."""

    on_bad_image: str = option("fail", "end at a bad image, or skip it and list it at the end", POLICIES)
    evaluate: bool = option(False, "compute the metrics in the same pass")
    metrics: str = option("MSE,SSIM,SSIM_official,LPIPS", "metrics to compute with --evaluate")
    lpips_backbone: str | None = option(None, "file with AlexNet's features for LPIPS")


def begin(options: ReconOptions, trained: TrainedModel, data: ImageDataset, folder: str) -> None:
    """Make or go on with a folder of reconstructions.

    What they depend on stands in its metrics.json. Raises UserError where the folder holds others.
    """
    names = ("dataset", "split", "split_range", "limit", "batch_size")
    settings = {
        "checkpoint": os.path.basename(options.model_path),
        "weights": fingerprint(options.model_path),
        **{name: getattr(options, name) for name in names},
        **data.identity(),
        "processes": options.check or runtime.world(),
        **trained.identity(),
        "command": command_line(),
    }
    if not options.overwrite:
        samples.check_folder(folder, settings)
    check_outputs(samples.our_files(folder), [options.model_path, *data.files()])
    if not options.check:
        samples.open_folder(folder, settings, options.overwrite)


def reconstruct_all(
    trained: TrainedModel, batches: Iterator, folder: str
) -> Iterator[tuple[Tensor, Tensor, list[int], bool]]:
    """Write this process's batches that are not there yet, in the background, and a grid of the very first.

    Yields real and fake, uint8 NHWC on the CPU, the images' numbers, and whether they were computed. A batch without a
    good image is no batch.
    """
    rank = runtime.rank()
    with Background(waiting=8) as writer:
        for i, (images, index) in enumerate(batches):
            paths = [samples.part_path(folder, rank, kind, i) for kind in ("real", "fake")]
            if all(map(os.path.exists, paths)):
                real, (fake, numbers) = samples.read_part(paths[0]), samples.read_numbered(paths[1])
                yield torch.from_numpy(real), torch.from_numpy(fake), numbers.tolist(), False
                continue
            if not len(images):
                continue
            endpoint, fake = trained.reconstruct(images, index.tolist())
            if i == rank == 0:
                rows = [("input", images), ("x_T", endpoint), ("reconstruction", fake)]
                grid = os.path.join(folder, "0_sample_0.png")
                writer.submit(partial(save_grid, grid, [(label, row[:16]) for label, row in rows]))
            pair = [batch.permute(0, 2, 3, 1) for batch in (images, fake)]
            for path, batch in zip(paths, pair, strict=True):
                writer.submit(partial(samples.write_part, path, batch.numpy(), index.numpy()))
            yield *pair, index.tolist(), True


def main(args: list[str] | None = None) -> None:
    """Parse, load, reconstruct, combine, and report."""
    options, about, _, method, sampling = parse_sampling(Parser(__doc__), ReconOptions, "reconstruction", args)
    folder = result_folder(options.model_path, method.result_name(sampling), out=options.out)
    calls = method.nfe(sampling)
    if options.dry_run:
        return print_dry_run(options, about, sampling, nfe=calls, output=folder)

    if not issubclass(method, AutoEncoder) and not method.INVERTS:
        raise UserError(f"model_path: expected an autoencoder, or a model that inverts, got {method.method}")
    device = runtime.setup(options.device)
    trained = TrainedModel.of(load(options, about, device), options, sampling)
    size = trained.model.config.image_size
    data = build_data(options, size, whole=options.on_bad_image == "fail")
    names = options.metrics.split(",") if options.evaluate else []
    metrics = ReconstructionMetrics(names, device, options.lpips_backbone) if names else None
    runtime.on_first(lambda: begin(options, trained, data, folder))
    if options.check:
        return None

    # Reconstruct: each process its share, each image once
    images, rank, world = len(data), runtime.rank(), runtime.world()
    compile_for(trained.model, options, images * calls)
    start = time.monotonic()
    readable, kept, computed, resumed = Tolerant(data, options.on_bad_image), [], False, False
    batches = ordered_batches(readable, options.batch_size, rank, world, num_workers=options.num_workers)
    with progress_bar(images, "image", "reconstruct", enabled=rank == 0) as bar:
        for real, fake, numbers, new in reconstruct_all(trained, batches, folder):
            kept += numbers
            computed, resumed = computed or new, resumed or not new
            if metrics:
                metrics.update(real, fake)
                bar.set_postfix_str(describe(metrics.means()), refresh=False)
            bar.update(min(len(real) * world, images - bar.n))

    # Combine and report
    runtime.barrier()
    kept = list(itertools.chain(*runtime.all_gather(kept)))
    computed, resumed = map(any, zip(*runtime.all_gather((computed, resumed)), strict=True))
    if metrics:
        metrics.merge(runtime.all_gather((metrics.images, metrics.sums)))
    if rank == 0:
        readable.check_kept(kept, images)
        n, seconds = len(kept), round(time.monotonic() - start, 1)
        combined = os.path.join(folder, f"samples_{n}x{size}x{size}x3_nfe{calls}.npz")
        samples.write_combined(combined, samples.fake_images(folder), (n, size, size, 3))
        cost = {"seconds": seconds, "device": str(device)} if computed and not resumed else {}  # of all images
        samples.update_report(folder, complete=True, nfe=calls, bad_images=images - n, **cost)
        if metrics:
            samples.add_metrics(
                folder, metrics.images, metrics=metrics.means(), standard_errors=metrics.standard_errors()
            )
            print(f"{describe(metrics.means())}  ({metrics.images} images)")
        readable.report(os.path.join(folder, FILE), images)
        print(
            f"wrote {n} reconstructions to {folder}" if computed else f"{folder} is complete already: nothing computed"
        )
    return runtime.cleanup()


if __name__ == "__main__":
    run(main)
