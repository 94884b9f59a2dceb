"""What a linear probe is compared with: pixels, their principal components, an untrained network, and chance."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from datasets import Labelled
from dbae.io import Generators, to_float
from eval import heads
from eval.features import encode_dataset, pca
from eval.tasks import TASKS
from scripts.linear_cached import Row, fit_row, part_of, solver_of
from scripts.linear_official import OnTheFly
from scripts.linear_options import LinearOptions

SIZE = 32  # side of the images whose pixels are probed; larger ones are averaged


def pixel_rows(x: Tensor) -> Tensor:
    """Images [n, 3, s, s] in [-1, 1] -> their pixels [n, 3 size^2], of 32x32 averages where they are larger."""
    return F.adaptive_avg_pool2d(x, min(SIZE, x.shape[-1])).flatten(1)


def of_cached_pixels(
    splits: Mapping[str, Labelled], dim: int, refit: bool, options: LinearOptions, device: torch.device
) -> dict[str, Row]:
    """Heads on pixels, and on ``dim`` principal components of them, each fitted as those of the model are."""

    def pixels(images: Tensor, index: Sequence[int]) -> dict[str, Tensor]:
        return {"pixels": pixel_rows(to_float(images))}

    found = {
        split: [
            encode_dataset(pixels, each.dataset, options.batch_size, flip, f"read pixels of {split}")
            for flip in ((False, True) if options.flip and split == "train" else (False,))
        ]
        for split, each in splits.items()
    }
    project = _components(found["train"][0]["pixels"], dim, options.seed)
    solver, rows = solver_of(options, device), {}
    for arrays in (each for both in found.values() for each in both):
        arrays["pca"] = project(torch.from_numpy(arrays["pixels"])).numpy()
    for name in ("pixels", "pca"):
        how = (name, options.how, options.seed)
        parts = {s: part_of(s, splits[s], both[0], both[1] if both[1:] else None, *how) for s, both in found.items()}
        rows[name], _ = fit_row(parts, solver, refit)
    return rows


def of_drawn_pixels(fly: OnTheFly, dim: int, whole: Sequence[str], single: bool) -> dict[str, Row]:
    """The same by the official recipe; of a ``single`` probe on all the ``whole`` of the images at once."""
    rows = pixel_rows(to_float(fly.data["train"][0].images))
    project = _components(rows.numpy(), dim, fly.options.seed)

    def inputs(x: Tensor, generators: Generators) -> dict[str, tuple[Tensor]]:
        z = pixel_rows(x)
        return {"pixels": (z,), "pca": (project(z).to(z.device),)}

    widths = {"pixels": rows.shape[1], "pca": min(dim, *rows.shape)}
    if single and whole:
        return fly.fit(inputs, widths, whole, ["test"], "_pixels_refit")
    found = fly.fit(inputs, widths, ["train"], ["valid", "test"], "_pixels")
    again = fly.fit(inputs, widths, whole, ["test"], "_pixels_refit") if whole else {}
    return {name: row | ({"test_refit": again[name]["test"]} if again else {}) for name, row in found.items()}


def of_chance(splits: Mapping[str, Labelled]) -> Row:
    """What the same answer for all images scores."""
    targets = {s: each.targets for s, each in splits.items()}
    kind = targets["train"].kind
    y = {s: TASKS[kind].columns(s, each.values, each.names) for s, each in targets.items()}
    return {split: heads.chance(kind, y["train"], y[split]) for split in ("valid", "test")}


def _components(rows: np.ndarray, dim: int, seed: int) -> Callable[[Tensor], Tensor]:
    return pca(rows, min(dim, *rows.shape), seed=seed)
