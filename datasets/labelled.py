"""Data sets with targets for linear probes: which splits there are, and values that were checked beforehand."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from datasets import build
from datasets.base import ImageDataset
from datasets.splits import TENTHS, log_once, tenths
from dbae.config import UserError

OFFICIAL = ("celeba", "toyfaces", "lfw")  # sets that come with splits
LABELLED = (*OFFICIAL, "celebahq")  # and own folders
TASKS = {"classification": TENTHS, "regression": {"train": (0, 8), "test": (8, 10)}}  # splits, and tenths without one


@dataclass(frozen=True)
class Labelled:
    """One split with its targets."""

    dataset: ImageDataset
    names: tuple[str, ...]  # of the k targets
    values: Tensor  # [n, k] float32; classification: 0 or 1


def labelled_splits(
    name: str, task: str, size: int, data_root: str = "data", data_dir: str | None = None, labels: str | None = None
) -> dict[str, Labelled]:
    """The splits of a data set for ``classification`` (train, valid, test) or ``regression`` (train, test).

    ``name`` is celeba, celebahq, toyfaces, lfw (regression only) or folder:PATH; the rest is as in ``datasets.build``.
    No image is read. Raises UserError for labels that are missing or of no use for the task.
    """
    if task not in TASKS:
        raise UserError(f"task: expected {' or '.join(TASKS)}, got {task!r}")
    if name not in LABELLED and not name.startswith("folder:"):
        raise UserError(f"data set: expected one with labels, {', '.join(LABELLED)} or folder:PATH, got {name!r}")
    if name == "lfw" and task == "classification":
        raise UserError("lfw: expected the task regression, its attributes are real-valued, got classification")
    datasets = _splits(name, task, size=size, data_root=data_root, data_dir=data_dir, labels=labels)
    with_drawing = name == "toyfaces" and task == "regression"
    parts = {
        split: Labelled(dataset, dataset.target_names, dataset.targets)
        if with_drawing
        else Labelled(dataset, dataset.label_names, dataset.labels)
        for split, dataset in datasets.items()
    }
    return _binary(parts) if task == "classification" else _finite(parts)


def _splits(name: str, task: str, **options) -> dict[str, ImageDataset]:
    if name in OFFICIAL:
        return {split: build(name, split, **options) for split in TASKS[task]}
    whole = build(name, "train", **options)
    shares = {split: tenths(whole.title, len(whole), *share) for split, share in TASKS[task].items()}
    percent = ", ".join(f"{10 * (last - first)} % {split}" for split, (first, last) in TASKS[task].items())
    log_once(f"{whole.title}: no official split, so by index, {percent}")
    return {
        split: build(name, "train", split_range=f"{share.start}:{share.stop}", **options)
        for split, share in shares.items()
    }


def _binary(parts: dict[str, Labelled]) -> dict[str, Labelled]:
    """The same with -1 turned into 0. Raises UserError for other values, and for targets without any 1 in a split."""
    for where, column in _columns(parts):
        low = -1 if (column == -1).any() else 0
        strange = column[(column != low) & (column != 1)]
        if len(strange):
            beside = " beside -1" if low else ""
            raise UserError(f"{where}: expected 0 and 1, or -1 and 1, for classification, got {strange[0]:g}{beside}")
    parts = {split: replace(part, values=part.values.clamp(min=0)) for split, part in parts.items()}
    lacking = [f"{lack} in {split}" for split, part in parts.items() if (lack := _without_positives(part))]
    if lacking:
        expected = "expected positives of every label in every split"
        raise UserError(f"{_source(parts)}: {expected}, there are none of {'; '.join(lacking)}")
    return parts


def _without_positives(part: Labelled) -> str:
    present = part.values.bool().any(0).tolist()
    return ", ".join(name for name, there in zip(part.names, present, strict=True) if not there)


def _finite(parts: dict[str, Labelled]) -> dict[str, Labelled]:
    """The same. Raises UserError for a number that is none in float32."""
    for where, column in _columns(parts):
        strange = column[~column.isfinite()]
        if len(strange):
            raise UserError(f"{where}: expected finite 32-bit numbers, got {strange[0]:g}")
    return parts


def _columns(parts: dict[str, Labelled]) -> Iterable[tuple[str, Tensor]]:
    """The values of each target over all splits, and where they come from."""
    names = next(iter(parts.values())).names
    values = torch.cat([part.values for part in parts.values()])
    return ((f"{_source(parts)}, column {name!r}", column) for name, column in zip(names, values.T, strict=True))


def _source(parts: dict[str, Labelled]) -> str:
    dataset = next(iter(parts.values())).dataset
    return getattr(dataset, "labels_path", dataset.title)
