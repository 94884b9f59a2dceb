"""Fit the latent prior of an autoencoder: a diffusion over the codes of its training images.

examples:
  bash train_prior_dbae.sh toyfaces ckpt/toyfaces/det/ema_0.9999_016000.pt
  bash diffae/train_prior.sh ffhq CKPT --total_steps 100000 --flip true

The images are encoded once, to sample_STEP/latents/; a stochastic encoder's noise is drawn anew in every epoch. The run
lies in sample_STEP/prior/, with checkpoints, progress.csv and codes.json: how far codes from the prior, and from one
Gaussian fitted to the codes, are from codes of images that the prior was not trained on, and whether they repeat codes
that it was trained on. Running the command again goes on where it stopped. Exit statuses are those of training.
"""

import dataclasses
import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch
from torch import Tensor

from datasets import build
from datasets.loader import Order, gather
from dbae import runtime
from dbae.checkpoint import config_content, load_model, set_names
from dbae.config import TrainConfig, UserError, option
from dbae.io import fingerprint, read_json, write_json
from dbae.methods import LatentPrior, preset
from dbae.methods.prior import PriorConfig
from dbae.state import TrainState
from dbae.training import Batches, local_batch
from eval.arrays import read_arrays
from eval.features import CachedFeatures
from eval.generation import frechet_distance, gaussian, memorisation, precision_recall
from scripts.cli import Parser, given, run
from scripts.common import build_data, load_autoencoder, parse, print_dry_run, result_folder
from scripts.encoding import drawn_code, write_features
from scripts.options import DataOptions
from scripts.train import check_run_folder, end, fit
from scripts.trained import TrainedModel

K = 3  # neighbours, for precision and recall, as in Kynkäänniemi et al. (2019)


@dataclass(frozen=True)
class PriorOptions(DataOptions):
    """Whose codes, and of which images."""

    held_out: str = option("test", "split whose codes the prior is compared with at the end", ("valid", "test"))
    compared: int = option(10_000, "codes that are drawn for this comparison, at most")
    quiet: bool = option(False, "print rows of progress.csv and warnings, nothing else")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.compared < 2:
            raise UserError(f"compared: expected 2 or more, got {self.compared}")


OFFERED = tuple(f.name for f in dataclasses.fields(PriorOptions) if f.name != "overwrite")  # a run is never replaced


def code_batches(
    codes: CachedFeatures, n: int, config: TrainConfig, state: TrainState, device: torch.device
) -> Iterator[tuple[Tensor, None]]:
    """Endless micro-batches [m, latent] of this process from where the state stands, which the seed determines."""
    share = local_batch(config, runtime.world())
    order, epoch, table = Order(n, config.seed), -1, torch.empty(0)
    for first in count(state.images, config.batch_size):
        if first // n != epoch:
            epoch = first // n
            table = codes.draw(epoch).to(device)
        begin = first + runtime.rank() * share
        rows = gather(table, order.indices(begin, begin + share), device)
        yield from ((part, None) for part in rows.split(config.microbatch if config.microbatch > 0 else share))


def compare(prior: LatentPrior, train: Tensor, held_out: Tensor, n: int, seed: int) -> dict[str, Any]:
    """How n codes from the prior, n from a Gaussian, and the training codes compare with ``held_out`` ones.

    By name the Frechet distance; for drawn codes also precision and recall by balls to the K-th neighbour, and the
    distance to the nearest training code, over that of held-out codes (medians).
    """
    generator = torch.Generator().manual_seed(seed)
    noise, other = (torch.randn(n, prior.config.latent_dim, generator=generator) for _ in range(2))
    sampled = torch.cat([prior.decode(part.to(prior.mean.device)).cpu() for part in noise.split(4096)])
    sets = {"prior": sampled, "gaussian": gaussian(train, other)}
    found: dict[str, Any] = {
        name: frechet_distance(z, held_out) for name, z in (sets | {"training codes": train}).items()
    }
    k = min(K, n - 1, len(held_out) - 1)
    balls = {name: precision_recall(held_out, z, k, prior.mean.device) for name, z in sets.items()}
    found |= {measure: {name: balls[name][measure] for name in sets} for measure in ("precision", "recall")}
    found["nearest training code"] = {name: memorisation(z, held_out, train) for name, z in sets.items()}
    return found | {"k": k}


def main(args: list[str] | None = None) -> None:
    """Parse, encode what is not cached, train, compare."""
    parser = Parser(__doc__, "The data set's preset overrides the defaults shown; --dry_run prints what results.")
    parser.add_config("prior", PriorConfig, ("layers", "width"))
    taken = {"autocast", "checkpointing", *(f.name for f in dataclasses.fields(PriorOptions))}  # of a U-Net, or here
    training = tuple(f.name for f in dataclasses.fields(TrainConfig) if f.name not in taken)
    parser.add_config("training", TrainConfig, training)
    options, about, typed = parse(parser, PriorOptions, "codes", args, OFFERED)
    config = preset(LatentPrior, TrainConfig, options.dataset, given(typed, TrainConfig, training))
    both = given(typed, TrainConfig, ("batch_size", "seed"))  # of the encoding, too
    config = dataclasses.replace(config, **both).resolved()
    run_dir = result_folder(options.model_path, "prior", out=options.out)
    if options.dry_run:
        layers = preset(LatentPrior, PriorConfig, options.dataset, given(typed, PriorConfig))
        shape = {"layers": layers.layers, "width": layers.width}
        return print_dry_run(options, about, prior=shape, train=dataclasses.asdict(config), run_dir=run_dir)

    # Everything that can be wrong
    device = runtime.setup(options.device)
    trained = TrainedModel.of(load_autoencoder(options, about, device), options)
    own = {**given(typed, PriorConfig), "latent_dim": trained.model.config.latent_dim}
    prior_config = preset(LatentPrior, PriorConfig, options.dataset, own)
    size = trained.model.config.image_size
    data = build_data(options, size, whole=True)
    if len(data) < 2:
        raise UserError("data: expected 2 images or more, got 1")
    held_out = build(options.dataset, options.held_out, size, options.data_root, options.data_dir)
    local_batch(config, options.check or runtime.world())

    def begin() -> dict[str, str]:
        entry = {"weights": fingerprint(options.model_path), **trained.model.unstated, **data.identity()}
        entry |= {"latent": options.latent} if trained.model.stochastic else {}
        check_run_folder(run_dir, "prior", prior_config, config, entry, elsewhere="--out")
        return entry

    entry = runtime.on_first(begin)
    if options.check:
        return None

    # Codes, once
    names = (False, True) if config.flip else (False,)
    images = {"train": (data, names), options.held_out: (held_out, (False,))}
    arrays = {}
    for split, (each, orientations) in images.items():
        whose = {"weights": entry["weights"], **each.identity()}
        how = (trained, options, whose, each, split)
        arrays[split] = [read_arrays(write_features(*how, flip))[0] for flip in orientations]
    codes = {
        split: CachedFeatures(*found, code=drawn_code(trained), seed=options.seed) for split, found in arrays.items()
    }

    # Sets without official splits are whole in train and in test
    names_seen = {data.name_of(i) for i in range(len(data))}
    seen = sum(held_out.name_of(i) in names_seen for i in range(len(held_out)))
    about_held_out = {"held_out_images": len(held_out), "of them trained on": seen}
    if seen:
        what = f"{seen} of the {len(held_out)} {options.held_out} images"
        runtime.warn0(f"the prior is trained on {what}: the distances are not to held-out codes alone")

    # The prior
    torch.manual_seed(config.seed)
    prior = LatentPrior(prior_config)
    unflipped = dataclasses.replace(codes["train"], flipped=None).draw(0)
    prior.fit_statistics(unflipped)
    prior.to(device)
    content = config_content(prior, options.dataset, train=config) | {"data": entry}
    text = f"data: {len(unflipped)} codes of {options.dataset}, {prior_config.latent_dim} numbers each"

    def stream(state: TrainState) -> Batches:
        return code_batches(codes["train"], len(unflipped), config, state, device)

    asked = {
        "codes": min(options.compared, len(unflipped)), "held_out": options.held_out,
        "digest of held-out images": held_out.digest(),
    }  # fmt: skip

    def report(model: LatentPrior, step: int) -> None:
        compared = compare(model, unflipped, codes[options.held_out].draw(0), asked["codes"], options.seed)
        found = {"step": step, **asked, **compared}
        write_json(f"{run_dir}/codes.json", found | about_held_out)
        if not options.quiet:
            scores = ", ".join(f"{name} {found[name]:.4g}" for name in ("prior", "gaussian", "training codes"))
            runtime.print0(f"step {step}: Frechet distance to {options.held_out} codes: {scores}")
            for name in ("prior", "gaussian"):
                measures = [f"{each} {found[each][name]:.3f}" for each in ("precision", "recall")]
                ratio = found["nearest training code"][name]
                measures += [f"nearest training code at {ratio:.3f} of a held-out code's distance"] if ratio else []
                runtime.print0(f"  {name}: {', '.join(measures)} (k = {found['k']})")

    signum, step = fit(prior, config, run_dir, content, text, stream, report, quiet=options.quiet)
    if not signum and runtime.rank() == 0:  # a prior that was finished before is compared with what is asked for now
        known = read_json(f"{run_dir}/codes.json") if os.path.exists(f"{run_dir}/codes.json") else {}
        if any(known.get(name) != value for name, value in {**asked, "step": step}.items()):
            average = os.path.join(run_dir, set_names(step, config.ema_rate)["ema"])
            report(load_model(average, "prior", device=device), step)
    return end(run_dir, step, signum, options.quiet)


if __name__ == "__main__":
    run(main)
