"""What an LMDB of images holds, and what is wrong with it."""

import io
import os
from collections import Counter
from collections.abc import Iterable
from itertools import islice
from math import prod

from PIL import Image
from tqdm import tqdm

from datasets.images import BadImage, decode
from datasets.lmdb import format_of, is_lmdb, open_store
from datasets.sets import DATASETS
from datasets.writer import RECORD_KEY, Record
from dbae.config import UserError

SAMPLE = 500  # images decoded without `full`
NAMED = 3  # examples of what is missing or skipped
PROBLEM = "PROBLEM  "  # how a line begins that tells of one
LABEL_FILES = {name for source in DATASETS.values() for name in (source.labels, source.partition) if name}


def inspect_lmdb(path: str, full: bool = False) -> list[str]:
    """Lines on counts, gaps, and images: all are decoded, or an even sample. Problems begin with PROBLEM.

    Raises UserError if there is no LMDB with images.
    """
    if not is_lmdb(path):
        raise UserError(f"{path}: expected an LMDB (a folder with data.mdb, or a single file)")
    store = open_store(path)
    counts = Counter(filter(None, map(format_of, store.keys())))
    key_format = max(counts, key=counts.get) if counts else store.key_format()  # which raises
    length = store.length(key_format)
    lines = [f"keys     {count} of format {found}" for found, count in counts.most_common()]
    stated = "with" if store.get("length") else "without"
    lines.append(f"range    {key_format % 0} to {key_format % (length - 1)}, {stated} a length key")
    if counts[key_format] > length:
        lines.append(f"{PROBLEM}the length key says {length}, there are {counts[key_format]} images")
    elif counts[key_format] < length:
        gaps = (key for i in range(length) if store.get(key := key_format % i) is None)
        lines.append(f"{PROBLEM}{length - counts[key_format]} of {length} images are missing: {_few(gaps)}")

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

    if (data := store.get(RECORD_KEY.decode())) is not None:
        record = Record.from_bytes(data, path)
        if not record.finished:
            done = f"{record.done} of {record.settings['images']} originals"
            lines.append(f"{PROBLEM}unfinished: {done}, run the same prepare command again")
        if record.skipped:
            names = _few(name for name, _ in record.skipped)
            lines.append(f"skipped  {len(record.skipped)} bad originals when it was prepared: {names}")
    files = sorted(name for name in LABEL_FILES if os.path.isfile(os.path.join(store.folder, name)))
    return [*lines, f"labels   {', '.join(files) or 'no label files'}"]


def _few(names: Iterable[str]) -> str:
    return ", ".join(islice(names, NAMED)) + " ..."
