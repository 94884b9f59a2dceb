"""What an LMDB of images holds, and what is wrong with it."""

import io
import os
from collections import Counter
from dataclasses import dataclass, field
from itertools import islice

from PIL import Image
from tqdm import tqdm

from datasets.images import BadImage, decode
from datasets.lmdb_store import LmdbStore, format_of, is_lmdb, open_store
from datasets.lmdb_writer import RECORD_KEY, Record
from datasets.sources import DATASETS
from dbae.config import UserError

SAMPLE = 500  # images decoded without `full`
NAMED = 3  # examples of what is missing or skipped


@dataclass
class Report:
    """Lines to print, and those of them that are problems."""

    lines: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def problem(self, line: str) -> None:
        self.problems.append(line)
        self.lines.append(f"PROBLEM  {line}")


def inspect_lmdb(path: str, full: bool = False) -> Report:
    """Count, check and decode (all images, or an even sample). Raises UserError if there is no LMDB with images."""
    if not is_lmdb(path):
        raise UserError(f"{path}: expected an LMDB (a folder with data.mdb, or a single file)")
    store, report = open_store(path), Report()
    counts = Counter(filter(None, map(format_of, store.keys())))
    if not counts:
        raise UserError(f"{path}: expected keys like 256-00000, found no image keys")
    key_format = counts.most_common(1)[0][0]
    length = store.length(key_format)
    stated = "with" if store.get("length") else "without"
    for found, count in counts.most_common():
        report.lines.append(f"keys     {count} of format {found}")
    report.lines.append(f"range    {key_format % 0} to {key_format % (length - 1)}, {stated} a length key")
    _check_gaps(store, key_format, length, counts[key_format], report)
    _check_images(store, key_format, length, full, report)
    _check_record(store, report)
    report.lines.append(f"labels   {', '.join(_label_files(store.folder)) or 'no label files'}")
    return report


def _check_gaps(store: LmdbStore, key_format: str, length: int, count: int, report: Report) -> None:
    if count > length:
        report.problem(f"the length key says {length}, there are {count} images")
    elif count < length:
        missing = (key_format % i for i in range(length) if store.get(key_format % i) is None)
        report.problem(f"{length - count} of {length} images are missing: {', '.join(islice(missing, NAMED))} ...")


def _check_images(store: LmdbStore, key_format: str, length: int, full: bool, report: Report) -> None:
    indices = range(0, length, 1 if full else max(1, length // SAMPLE))
    sizes, formats, bad = Counter(), Counter(), []
    for index in tqdm(indices, unit=" images", disable=not full):
        data = store.get(key_format % index)
        if data is None:
            continue
        try:
            sizes[decode(data).size] += 1
            formats[Image.open(io.BytesIO(data)).format] += 1
        except BadImage as error:
            bad.append(f"{key_format % index} ({error})")
    report.lines.append(f"decoded  {len(indices)} of {length} images{'' if full else ', --full decodes all'}")
    if sizes:
        smallest, largest = min(sizes, key=_area), max(sizes, key=_area)
        span = "x".join(map(str, smallest)) + (f" to {largest[0]}x{largest[1]}" if smallest != largest else "")
        report.lines.append(f"images   {span}, {'/'.join(sorted(formats))}")
    if bad:
        report.problem(f"{len(bad)} bad images, the first is {bad[0]}")


def _check_record(store: LmdbStore, report: Report) -> None:
    data = store.get(RECORD_KEY.decode())
    if data is None:
        return
    record = Record.from_bytes(data, store.path)
    if not record.finished:
        total = record.settings["images"]
        report.problem(f"unfinished: {record.done} of {total} originals, run the same prepare command again")
    if record.skipped:
        named = ", ".join(name for name, _ in record.skipped[:NAMED])
        report.lines.append(f"skipped  {len(record.skipped)} bad originals when it was prepared: {named} ...")


def _label_files(folder: str) -> list[str]:
    known = {"labels.csv"}
    for source in DATASETS.values():
        known |= {source.labels.name if source.labels else "", source.partition or ""}
    return sorted(name for name in known if name and os.path.isfile(os.path.join(folder, name)))


def _area(size: tuple[int, int]) -> int:
    return size[0] * size[1]
