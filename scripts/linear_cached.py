"""Probes of cells on features that are computed once: a file per split and time with all blocks."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from datasets import Labelled
from eval.arrays import Arrays, read_arrays
from eval.features import CachedFeatures
from eval.heads import Descent, Head, Solver, score
from eval.probe import Part
from eval.tasks import TASKS
from scripts.classifiers import cosine
from scripts.encoding import drawn_code, write_features
from scripts.linear_options import CODE, Cell, LinearOptions
from scripts.trained import TrainedModel

Row = dict[str, Any]  # scores of a cell or another row: valid, test, width, perhaps penalties
Splits = Mapping[str, Labelled]


def solver_of(options: LinearOptions, device: torch.device) -> Solver | Descent:
    """How heads are fitted on cached features."""
    if options.how == "adam":
        how = (options.epochs, options.probe_batch_size, options.probe_lr, cosine(options.epochs))
        return Descent(options.targets, *how, options.seed, device)
    return Solver(options.targets, options.how, options.penalties, device)


def part_of(
    split: str, labelled: Labelled, plain: Arrays, flipped: Arrays | None, name: str, how: str, seed: int
) -> Part:
    """Features of a split under ``name``, with targets. Adam draws mirrored ones, others have them as rows."""
    names, kind = labelled.targets.names, labelled.targets.kind
    y = TASKS[kind].columns(split, labelled.targets.values, names)
    if flipped and how != "adam":
        z = torch.cat([torch.from_numpy(arrays[name]) for arrays in (plain, flipped)])
        return Part(lambda epoch: z, torch.cat([y, y]))
    chosen = [arrays and {"z": arrays[name]} for arrays in (plain, flipped)]
    return Part(CachedFeatures(*chosen, seed=seed).draw, y)


def joined(parts: Sequence[Part]) -> Part:
    """The images of several parts as one."""
    return Part(lambda epoch: torch.cat([p.draw(epoch) for p in parts]), torch.cat([p.targets for p in parts]))


def row_of(kind: str, head: Head, valid: Part, test: Part) -> Row:
    """What a head scores."""
    penalties = sorted(set(head.penalties))
    shown = {"penalty": penalties[0] if len(penalties) == 1 else list(head.penalties)} if penalties else {}
    scores = {"valid": score(kind, head, valid, "valid"), "test": score(kind, head, test, "test")}
    return {"width": head.layer.in_features, **scores, **shown}


def fit_row(parts: Mapping[str, Part], solver: Solver | Descent, refit: bool) -> tuple[Row, Head]:
    """The scores of one kind of features, with ``test_refit`` where they are fitted again."""
    head = solver.fit(parts["train"], parts["valid"])
    row = row_of(solver.kind, head, parts["valid"], parts["test"])
    if refit:
        row["test_refit"] = refitted(solver, head, parts)
    return row, head


def refitted(solver: Solver | Descent, head: Head, parts: Mapping[str, Part]) -> float:
    """The test score of a head that is fitted again on training and validation images."""
    again = solver.refit(head, joined([parts["train"], parts["valid"]]))
    return score(solver.kind, again, parts["test"], "test")


@dataclass
class CachedProbe:
    """Heads on features of a model from files, which all processes write; what is computed from them is the first's.

    ``about`` says of every split what the files depend on; ``name`` is their prefix.
    """

    trained: TrainedModel
    options: LinearOptions
    splits: Splits
    about: Mapping[str, Mapping[str, Any]]
    name: str = ""
    _paths: dict[tuple[str, bool, float | None], str] = field(default_factory=dict, init=False)
    _heads: dict[Cell, Head] = field(default_factory=dict, init=False)

    def encode(self, cells: Sequence[Cell]) -> None:
        """Write the features of all cells: for every time one pass over the images, for all its blocks."""
        for time, blocks in by_time(cells).items():
            for split, each in self.splits.items():
                for flip in (False, True) if self.options.flip and split == "train" else (False,):
                    where = (self.trained, self.options, dict(self.about[split]), each.dataset, self.name + split, flip)
                    what = ("", None) if time is None else (blocks, time, self.options.draws)
                    self._paths[split, flip, time] = write_features(*where, *what)

    def fit(self, cells: Sequence[Cell]) -> dict[Cell, Row]:
        """Fit on train, choose penalties on valid; scores by cell."""
        solver, found = solver_of(self.options, self.trained.device), {}
        for cell, parts in self._parts(cells):
            found[cell], self._heads[cell] = fit_row(parts, solver, refit=False)
        return found

    def refit(self, cells: Sequence[Cell]) -> dict[Cell, float]:
        """Test scores of heads that are fitted again on train and valid."""
        solver = solver_of(self.options, self.trained.device)
        return {cell: refitted(solver, self._heads[cell], parts) for cell, parts in self._parts(cells)}

    def _parts(self, cells: Sequence[Cell]) -> Iterator[tuple[Cell, dict[str, Part]]]:
        """Features of each cell by split; those of one time are in memory together."""
        for time, blocks in by_time(cells).items():
            arrays = {key[:2]: self._read(path) for key, path in self._paths.items() if key[2] == time}
            for block in blocks:
                how = (block, self.options.how, self.options.seed)
                yield (
                    Cell(block, time),
                    {
                        split: part_of(split, each, arrays[split, False], arrays.get((split, True)), *how)
                        for split, each in self.splits.items()
                    },
                )

    def _read(self, path: str) -> Arrays:
        """The arrays of a file; an autoencoder's code in place of what it is drawn from."""
        arrays = read_arrays(path)[0]
        if not arrays.keys() & {"z", "mu"}:
            return arrays
        code = CachedFeatures(arrays, code=drawn_code(self.trained), seed=self.options.seed).draw(0)
        return {CODE: code.numpy()}


def by_time(cells: Sequence[Cell]) -> dict[float | None, list[str]]:
    """Blocks of each time."""
    found: dict[float | None, list[str]] = {}
    for cell in cells:
        found.setdefault(cell.time, []).append(cell.block)
    return found
