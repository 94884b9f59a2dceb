"""What an LMDB of images holds, and what is wrong with it."""

import io
import os
from collections.abc import Iterable, Iterator
from itertools import islice
from math import prod

from PIL import Image
from tqdm import tqdm

from datasets.images import BadImage, decode
from datasets.label_files import find_beside, parse_labels, parse_partition, read_text
from datasets.lmdb import RECORD_KEY, is_lmdb, open_store
from datasets.sets import DATASETS, OWN_LMDB
from datasets.writer import Record
from dbae.config import UserError

SAMPLE = 500  # images decoded without `full`
NAMED = 3  # examples of what is missing or skipped
PROBLEM = "PROBLEM  "  # how a line begins that tells of one


def inspect_lmdb(path: str, full: bool = False) -> list[str]:
    """Lines on counts, gaps, and images: all are decoded, or an even sample. Problems begin with PROBLEM.

    Raises UserError if there is no LMDB with images.
    """
    if not is_lmdb(path):
        raise UserError(f"{path}: expected an LMDB (a folder with data.mdb, or a single file)")
    store = open_store(path)
    contents = store.contents()
    key_format = max(contents, key=contents.get) if contents else store.key_format()  # which raises
    (count, end), stated = contents[key_format], store.stated_length()
    length = max(stated or 0, end)
    lines = [f"keys     {found} of format {name}" for name, (found, _) in contents.items()]
    with_length = "without" if stated is None else "with"
    lines.append(f"range    {key_format % 0} to {key_format % (length - 1)}, {with_length} a length key")
    if stated is not None and stated < end:
        lines.append(f"{PROBLEM}the length key says {stated}, there are images up to {key_format % (end - 1)}")
    if count < length:
        gaps = (key for i in range(length) if not store.has(key := key_format % i))
        lines.append(f"{PROBLEM}{length - count} of {length} images are missing: {_few(gaps)}")

    sizes, formats, bad = set(), set(), []
    indices = range(0, length, 1 if full else max(1, length // SAMPLE))
    for index in tqdm(indices, unit=" images", disable=not full):
        if (data := store.get(key_format % index)) is not None:
            try:
                sizes.add(decode(data).size)
                formats.add(Image.open(io.BytesIO(data)).format)
            except BadImage as error:
                bad.append(f"{key_format % index} ({error})")
    lines.append(f"decoded  {len(indices)} of {length} images{'' if full else ', --full decodes all'}")
    if sizes:
        span = " to ".join(dict.fromkeys("{}x{}".format(*choose(sizes, key=prod)) for choose in (min, max)))
        lines.append(f"images   {span}, {'/'.join(sorted(formats))}")
    if bad:
        lines.append(f"{PROBLEM}{len(bad)} bad images, the first is {bad[0]}")

    if (data := store.get(RECORD_KEY)) is not None:
        record = Record.from_bytes(data, path)
        if not record.finished:
            done = f"{record.done} of {record.settings['images']} originals"
            lines.append(f"{PROBLEM}unfinished: {done}, run the same prepare command again")
        if record.skipped:
            names = _few(name for name, _ in record.skipped)
            lines.append(f"skipped  {len(record.skipped)} bad originals when it was prepared: {names}")
    labels = list(label_lines(store.folder, key_format, end))
    return [*lines, *(labels or ["labels   no label files"])]


def label_lines(folder: str, key_format: str, length: int) -> Iterator[str]:
    """A line on each label file beside an LMDB; with PROBLEM where training on its labels would refuse it."""
    for source in (*(source for source in DATASETS.values() if source.row), OWN_LMDB):
        rows = [source.row_name(i) if source.row else key_format % i for i in range(length)]
        for name, parse in ((source.labels, parse_labels), (source.partition, parse_partition)):
            if (path := find_beside(folder, name)) is None:
                continue
            try:
                table = parse(path, read_text(path))
                table.without_people().targets(rows, "real" if source.row else None)
            except UserError as error:
                yield f"{PROBLEM}{error}"
            else:
                kind = "splits" if parse == parse_partition else f"{len(table.names)} labels"
                yield f"labels   {os.path.basename(path)}: {len(table.rows)} rows of {kind}"


def _few(names: Iterable[str]) -> str:
    return ", ".join(islice(names, NAMED)) + " ..."
