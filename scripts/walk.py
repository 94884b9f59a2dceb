"""An animation through the latent prior: from sample to sample, on arcs of the prior's noise.

Each frame's noise is turned to a code by the prior and to an image by the model; all share the noise of x_T and of the
sampler, so only the code tells them apart. Writes sample_STEP/walk_SETTINGS.gif, and the samples as a PNG.

example:
  python -m scripts.walk --model_path CKPT --dataset toyfaces --sampler dbim --steps 10 --grid logsnr
"""

import os
from dataclasses import dataclass

import torch

from dbae import runtime
from dbae.config import UserError, option
from dbae.io import fingerprint, image_generators, to_uint8
from dbae.methods.codes import slerp
from dbae.progress import progress_bar
from scripts.cli import Parser, run
from scripts.common import load_autoencoder, parse_sampling, print_dry_run, result_folder
from scripts.figures import Row, animation, check_rows, strip
from scripts.from_prior import FromPriorOptions, load_prior, noise, without_images
from scripts.results import Results
from scripts.trained import TrainedModel


@dataclass(frozen=True)
class WalkOptions(FromPriorOptions):
    """How many samples, and how many frames from one to the next. Raises UserError for values out of range."""

    samples: int = option(5, "samples that the animation goes through")
    frames: int = option(12, "frames from one to the next, both included")
    rows: int = option(2, "walks, one below the other")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least in (("samples", 2), ("frames", 2), ("rows", 1)):
            if getattr(self, name) < least:
                raise UserError(f"{name}: expected {least} or more, got {getattr(self, name)}")


@torch.no_grad()
def main(args: list[str] | None = None) -> None:
    """Parse, walk, draw."""
    options, about, typed, method, sampling = parse_sampling(Parser(__doc__), WalkOptions, "walk", args)
    sampling = without_images(method, sampling, typed)
    path = result_folder(options.model_path, f"walk_{method.result_name(sampling)}", out=options.out)
    if options.dry_run:
        return print_dry_run(options, about, sampling, output=f"{path}.gif")
    check_rows(options.rows, options.samples)
    device = runtime.setup(options.device)
    trained = TrainedModel.of(load_autoencoder(options, about, device), options, sampling)
    model, latent = trained.model, {"steps": options.latent_steps}
    prior_path, prior = load_prior(options, fingerprint(options.model_path), trained)
    settings = {"weights": fingerprint(options.model_path), "prior": fingerprint(prior_path), **trained.identity()}
    settings |= {name: getattr(options, name) for name in ("latent_steps", "samples", "frames", "rows")}
    results = Results(os.path.dirname(path), settings, [options.model_path, prior_path], options.overwrite)
    paths = [f"{path}.{ending}" for ending in ("gif", "png")]
    results.check(paths)
    if options.check:
        return None

    numbers = list(range(options.rows * options.samples))  # the noise of the samples of these numbers
    stops = noise(options, numbers, model.config.latent_dim, 0).unflatten(0, (options.rows, options.samples))
    fractions = torch.linspace(0, 1, options.frames)[:-1]
    ways = [slerp(*stops[:, i : i + 2].unbind(1), fractions) for i in range(options.samples - 1)]
    way = torch.cat([*ways, stops[:, -1:]], dim=1).flatten(0, 1).to(device)  # [rows * F, latent]
    images = []
    with progress_bar(len(way), "image", "walk") as bar:
        for part in way.split(options.batch_size):
            shared = image_generators(options.seed, [0] * len(part))
            images.append(to_uint8(model.generate_from(prior.decode(part, **latent), None, shared, **trained.settings)))
            bar.update(len(part))
    films = torch.cat(images).cpu().unflatten(0, (options.rows, -1))  # [rows, F, 3, H, W]
    os.makedirs(results.folder, exist_ok=True)
    animation(paths[0], films[:, None])
    strip(paths[1], [Row("", film[:: options.frames - 1]) for film in films], "samples of the latent prior")
    results.record(paths)
    for path in paths:
        print("wrote", path)
    return None


if __name__ == "__main__":
    run(main)
