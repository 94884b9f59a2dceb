"""Which images of a data set belong to train, valid and test."""

import logging
import os
import re
from collections.abc import Sequence
from functools import lru_cache

from datasets.labels import read_partition
from datasets.sources import Source
from dbae.config import UserError

SPLITS = ("train", "valid", "test")
TENTHS = {"train": (0, 8), "valid": (8, 9), "test": (9, 10)}  # of the images, where there is no official split
logger = logging.getLogger(__name__)


def whole_set(title: str, split: str, length: int) -> range:
    """Train and test are both the whole set, as in the official code."""
    check_split(title, split, ("train", "test"))
    return range(length)


def source_split(source: Source, split: str, length: int, folder: str) -> Sequence[int]:
    """Indices of a split of ``length`` images: by the partition file in ``folder``, official range, or 80/10/10 %."""
    if source.splits is None:
        if length != (source.complete or length):
            log_once(f"{folder}: {length} images, the published {source.name} has {source.complete}")
        return whole_set(source.name, split, length)
    check_split(source.name, split, SPLITS)
    partition = os.path.join(folder, source.partition or "")
    if os.path.isfile(partition):
        return _partitioned(source, split, length, partition)
    if length == source.complete:
        return range(*source.splits[split])
    return _by_share(source, split, length, folder)


def cut(indices: Sequence[int], split_range: str | None) -> Sequence[int]:
    """The part A:B (B excluded, either may be left out) of a split. Raises UserError if it is empty or reaches out."""
    if split_range is None:
        return indices
    match = re.fullmatch(r"(\d*):(\d*)", split_range)
    begin = int(match[1] or 0) if match else 0
    end = int(match[2] or len(indices)) if match else 0
    if not begin < end <= len(indices):
        raise UserError(f"split range: expected A:B with 0 <= A < B <= {len(indices)}, got {split_range!r}")
    return indices[begin:end]


def check_split(title: str, split: str, expected: Sequence[str]) -> None:
    if split not in expected:
        raise UserError(f"split of {title}: expected {' or '.join(expected)}, got {split!r}")


def tenths(title: str, length: int, first: int, last: int) -> range:
    """Indices in the tenths first..last of a set. Raises UserError if so small a set has none there."""
    part = range(length * first // 10, length * last // 10)
    if not part:
        raise UserError(f"{title}: expected 10 images or more to split by index, got {length}")
    return part


@lru_cache
def log_once(message: str) -> None:
    """Log a warning, unless this process has logged the same one before."""
    logger.warning(message)


def _partitioned(source: Source, split: str, length: int, path: str) -> list[int]:
    partition, number = read_partition(path), SPLITS.index(split)
    indices = [index for index in range(length) if partition.get(source.labels.row_name(index)) == number]
    if not indices:
        raise UserError(f"{path} puts none of the {length} images in {split}; without this file they split 80/10/10 %")
    return indices


def _by_share(source: Source, split: str, length: int, folder: str) -> range:
    log_once(
        f"{folder}: {length} of {source.complete} images and no {source.partition}: "
        "split by index, 80 % train, 10 % valid, 10 % test"
    )
    return tenths(folder, length, *TENTHS[split])
