r"""The real images that lie nearest to samples, as a figure: does a model make new images, or repeat its training set?

examples:
  python -m scripts.nearest --sample_path DIR --dataset toyfaces
  python -m scripts.nearest --sample_path DIR --dataset celeba --lpips_backbone alexnet-owt-7be5be79.pth \
      --features lite0 --weights efficientnet-lite0-57934424.pth --model_path CKPT

The first row shows the samples, the next ones each one's nearest real image: by the mean squared error of pixels, with
--lpips_backbone by LPIPS, with --features by Euclidean distance of a network's features, with --model_path of codes.
DIR_nearest.png is the figure; DIR_nearest.json has names and distances.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from datasets import ImageDataset
from datasets.loader import first_images, ordered_batches
from dbae import runtime
from dbae.checkpoint import load_model
from dbae.config import UserError, option, require_positive
from dbae.io import command_line, fingerprint, save_grid, to_float, write_json
from dbae.methods import AutoEncoder
from dbae.progress import progress_bar
from eval.generation import nearest
from eval.networks import load_network
from scripts.cli import options_of, run
from scripts.measures import ComparisonOptions, cached, features_of, first, open_reals, open_samples
from scripts.results import check_report

Neighbours = tuple[np.ndarray, np.ndarray]  # distances [n, k] and numbers [n, k], the nearest first


@dataclass(frozen=True)
class NearestOptions(ComparisonOptions):
    """Which samples are shown, and what is near."""

    num: int = option(8, "samples that are shown, the first ones")
    k: int = option(1, "nearest images of each")
    lpips_backbone: str | None = option(None, "file with AlexNet's features: also by LPIPS")
    model_path: str | None = option(None, "weight file of an autoencoder: also by its codes", (), "model")
    out: str | None = option(None, "figure to write (default: sample_path, and _nearest.png)")
    overwrite: bool = option(False, "replace a figure of other samples or settings")

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive("k", self.k)
        if self.out and not self.out.endswith(".png"):
            raise UserError(f"out: expected a name that ends in .png, got {self.out}")

    @property
    def figure(self) -> str:
        return self.out or f"{self.sample_path.rstrip('/').removesuffix('.npz')}_nearest.png"


@dataclass(frozen=True)
class Space:
    """Where images lie, and with few numbers each, all real ones [n, d] from a cache."""

    about: dict[str, Any]
    of: Callable[[Tensor], Tensor]  # uint8 [n, 3, s, s] -> [n, d]
    all: Callable[[ImageDataset], np.ndarray] | None = None
    shown: Callable[[np.ndarray], np.ndarray] = lambda distances: distances


def spaces(options: NearestOptions, size: int, device: torch.device) -> dict[str, Space]:
    """All that the options name. Raises UserError for files that are not these networks'."""
    pixels = load_network("pixels", device=device)
    found = {"MSE": Space(pixels.about, pixels, shown=lambda distances: distances**2 / (3 * size**2))}
    if options.lpips_backbone:
        lpips = load_network("lpips", options.lpips_backbone, device)
        found["LPIPS"] = Space(lpips.about, lpips, shown=np.square)
    if options.features:
        network = load_network(options.features, options.weights, device, options.resizing)
        found[network.name] = Space(network.about, network, lambda data: features_of(options, network, data, "real"))
    if options.model_path:
        found["code"] = code_space(options, options.model_path, size, device)
    return found


def code_space(options: NearestOptions, path: str, size: int, device: torch.device) -> Space:
    """The codes of an autoencoder, of a stochastic one their means."""
    model = load_model(path, device=device)
    if not isinstance(model, AutoEncoder):
        raise UserError(f"model_path: expected an autoencoder, {path} is a {type(model).__name__}")
    if model.config.image_size != size:
        raise UserError(f"model_path: expected a model of {size} px as the samples, got {model.config.image_size} px")
    about = {"codes of": fingerprint(path), "latent": "mean"}

    @torch.no_grad()
    def encode(images: Tensor) -> Tensor:
        return model.encode(to_float(images.to(device)), sample=False).cpu()

    def all_codes(data: ImageDataset) -> np.ndarray:
        return cached(options, lambda images, index: {"z": encode(images)}, about, data, "real_code")

    return Space(about, encode, all_codes)


def find(
    options: NearestOptions, places: dict[str, Space], samples: Tensor, reals: ImageDataset
) -> dict[str, Neighbours]:
    """The nearest real images by name of a space; those without a cache are passed over once, together."""
    own = {name: space.of(samples).numpy() for name, space in places.items()}
    none = (np.empty((len(samples), 0)), np.empty((len(samples), 0), np.int64))
    best = {name: none for name, space in places.items() if not space.all}
    with progress_bar(len(reals), "image", "compare") as bar:
        for images, index in ordered_batches(reals, options.batch_size, num_workers=options.num_workers):
            for name in best:
                features = places[name].of(images).numpy()
                distances, numbers = nearest(own[name], features, min(options.k, len(features)))
                pairs = ((best[name][0], distances), (best[name][1], index.numpy()[numbers]))
                distances, numbers = (np.concatenate(pair, axis=1) for pair in pairs)
                order = distances.argsort(axis=1, kind="stable")[:, : options.k]
                best[name] = tuple(np.take_along_axis(each, order, axis=1) for each in (distances, numbers))
            bar.update(len(images))
    others = {name: space.all(reals) for name, space in places.items() if space.all}
    best |= {name: nearest(own[name], features, options.k) for name, features in others.items()}
    return {name: (places[name].shown(best[name][0]), best[name][1]) for name in places}


def main(args: list[str] | None = None) -> None:
    """Parse, load, compare, draw."""
    options = options_of(__doc__, "nearest images", NearestOptions, args)

    # Everything that can be wrong
    device = runtime.setup(options.device)
    samples = open_samples(options.sample_path)
    samples = first(samples, min(options.num, len(samples)))
    reals = first(open_reals(options, samples.size), options.num_real)
    if len(reals) < options.k:
        raise UserError(f"k: expected up to {len(reals)}, the number of real images, got {options.k}")
    places = spaces(options, samples.size, device)
    settings = {"samples": samples.identity(), "reals": reals.identity(), "k": options.k}
    settings["by"] = {name: space.about for name, space in places.items()}
    settings["command"] = command_line()
    report = f"{options.figure.removesuffix('.png')}.json"
    check_report(report, [options.figure], settings, [], "neighbours", options.overwrite, "settings")

    images = first_images(samples, len(samples))
    found = find(options, places, images, reals)
    rows, names = [("samples", images)], {}
    for name, (distances, numbers) in found.items():
        for k, column in enumerate(numbers.T):
            rows.append((f"{name} {k + 1}" if options.k > 1 else name, torch.stack([reals[i][0] for i in column])))
        names[name] = {
            samples.name_of(i): [
                {"image": reals.name_of(j), "distance": d}
                for j, d in zip(numbers[i], distances[i].tolist(), strict=True)
            ]
            for i in range(len(samples))
        }
    save_grid(options.figure, rows)
    write_json(report, {"settings": settings, "nearest": names})
    medians = ", ".join(f"{name} {np.median(distances[:, 0]):.4g}" for name, (distances, _) in found.items())
    print(f"wrote {options.figure}; median distance to the nearest of {len(reals)} images: {medians}")


if __name__ == "__main__":
    run(main)
