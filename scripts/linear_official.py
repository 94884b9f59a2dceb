"""The official linear probe: heads on features that are computed anew every epoch, of new crops, flips and noise.

One call of the network per batch and time feeds the heads of all its blocks.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from dbae.io import Generators
from scripts.classifiers import Inputs, Recipe, Training, accuracies, cosine, logits
from scripts.labelled import Data, joined
from scripts.linear_cached import Row, by_time
from scripts.linear_options import Cell, LinearOptions
from scripts.trained import TrainedModel


def recipe_of(options: LinearOptions) -> Recipe:
    """The official recipe: Adam, a cosine by epoch, crops of the image with a black margin of 4, and flips."""
    adam = partial(torch.optim.Adam, lr=options.probe_lr)
    return Recipe(options.epochs, options.probe_batch_size, adam, cosine(options.epochs), seed=options.seed)


def features_of(trained: TrainedModel, cells: Sequence[Cell], names: Sequence[str], draws: int = 1) -> Inputs:
    """What the heads of the cells, under their ``names``, are called with: one call of the network for every time."""
    times, name_of = by_time(cells), dict(zip(cells, names, strict=True))

    @torch.no_grad()
    def inputs(x: Tensor, generators: Generators) -> dict[str, tuple[Tensor]]:
        found = {}
        for time, blocks in times.items():
            if time is None:
                z = trained.code(trained.model.encode_arrays(x, generators), generators)
                features = dict.fromkeys(blocks, z)
            else:
                features = trained.features(x, time, blocks, generators, draws)
            found |= {name_of[Cell(block, time)]: (features[block],) for block in blocks}
        return found

    return inputs


@dataclass
class OnTheFly:
    """Heads that are trained by the official recipe on images of the splits, which every process holds in memory.

    A training is kept in a file beside the results, at ``stem``, so that an interrupted one goes on.
    """

    options: LinearOptions
    device: torch.device
    data: Mapping[str, Data]  # by split
    count: int  # of classes
    stem: str
    settings: Mapping[str, Any]

    def fit(
        self, inputs: Inputs, widths: Mapping[str, int], on: Sequence[str], scored: Sequence[str], tag: str
    ) -> dict[str, Row]:
        """Train heads of these ``widths`` on the images of the splits ``on`` together; their scores by name.

        ``tag`` tells its file from others. Raises SystemExit where a signal stopped the training.
        """
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self.options.seed)
            heads = {name: nn.Linear(width, self.count) for name, width in widths.items()}
        path = f"{self.stem}{tag}_heads.pt"
        settings = dict(self.settings) | {"heads": list(widths), "on": list(on)}
        training = Training(heads, recipe_of(self.options), self.device, path, settings)
        training.restore(self.options.overwrite)
        training.run(*joined([self.data[split] for split in on]), inputs)
        rows: dict[str, Row] = {name: {"width": width} for name, width in widths.items()}
        for split in scored:
            images, classes = self.data[split]
            how = (self.device, self.options.batch_size, self.options.seed, split)
            for name, score in accuracies(logits(training.classifiers, images, inputs, *how), classes).items():
                rows[name][split] = score
        return rows


@dataclass
class OfficialProbe:
    """The official probe of a model's cells; ``name`` tells its files from those of another model.

    ``whole`` are the splits that are the official training images.
    """

    trained: TrainedModel
    fly: OnTheFly
    widths: Mapping[str, int]  # of the features of every block
    whole: Sequence[str] = ("train", "valid")
    name: str = ""

    def fit(self, cells: Sequence[Cell]) -> dict[Cell, Row]:
        """Train on train; accuracies on valid and test by cell."""
        return self._fit(cells, ["train"], ["valid", "test"], self.name)

    def refit(self, cells: Sequence[Cell]) -> dict[Cell, float]:
        """Test accuracies of heads that are trained on all training images."""
        rows = self._fit(cells, self.whole, ["test"], f"{self.name}_refit")
        return {cell: row["test"] for cell, row in rows.items()}

    def _fit(self, cells: Sequence[Cell], on: Sequence[str], scored: Sequence[str], tag: str) -> dict[Cell, Row]:
        names = [cell.block if cell.time is None else f"{cell.time:.6g}/{cell.block}" for cell in cells]
        inputs = features_of(self.trained, cells, names, self.fly.options.draws)
        widths = {name: self.widths[cell.block] for name, cell in zip(names, cells, strict=True)}
        rows = self.fly.fit(inputs, widths, on, scored, tag)
        return {cell: rows[name] for cell, name in zip(cells, names, strict=True)}
