"""Writing an LMDB of images in chunks, so that it can be stopped at any moment and continued.

Each chunk is one transaction: its images, and under RECORD_KEY how far the work has come. ``length`` is written last.
"""

import csv
import hashlib
import io
import json
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, field

import lmdb
from PIL import Image
from torch.utils.data import DataLoader
from tqdm import tqdm

from datasets.base import digest_of
from datasets.images import BadImage, cover, decode
from datasets.labels import LabelTable, image_key
from datasets.listing import has_images
from datasets.lmdb import RECORD_KEY, is_lmdb
from datasets.loader import watched
from datasets.originals import Originals
from dbae.config import UserError
from dbae.io import atomic_write, fingerprint

CHUNK = 256  # images per transaction
SOURCES = "digest of the originals (names, sizes, times)"
FIRST_MAP = 1 << 24  # bytes; the map grows as it fills, so that the file is never larger than its contents
Labels = Mapping[str, bytes | LabelTable]  # label files by name: contents, or a table by names of originals
ENCODINGS = {
    "webp": {"format": "WEBP", "quality": 100},
    "png": {"format": "PNG"},
    "jpg": {"format": "JPEG", "quality": 95, "subsampling": 0},
}
KEPT_FORMATS = ("JPEG", "PNG", "WEBP")  # whose files are stored as they are when images are not resized


@dataclass(frozen=True)
class Job:
    """What becomes of each original. ``job[i]`` is the name of one, and what ``convert`` makes of it."""

    originals: Originals
    names: list[str]  # of the originals
    key_format: str
    size: int | None  # None: not resized
    encoding: str  # a key of ENCODINGS
    keep_holes: bool  # whether a bad image leaves its index empty, or the next one takes it

    def __getitem__(self, i: int) -> tuple[str, bytes | None, str]:
        return self.names[i], *self.convert(self.names[i])

    def convert(self, name: str) -> tuple[bytes | None, str]:
        """The bytes to store for an original; or None, and the reason why it is a bad image."""
        try:
            if self.size is None:
                data = self.originals.read(name)
                image = decode(data)
                if Image.open(io.BytesIO(data)).format in KEPT_FORMATS:
                    return data, ""
            else:
                image = cover(self.originals.image(name), self.size)
        except (BadImage, OSError) as error:
            return None, str(error)
        buffer = io.BytesIO()
        image.save(buffer, **ENCODINGS[self.encoding])
        return buffer.getvalue(), ""

    def settings(self) -> dict:
        """What must be the same when the work is continued."""
        given = {"keys": self.key_format, "size": self.size, "format": self.encoding, "images": len(self.names)}
        return given | {SOURCES: digest_of(self.names, self.originals.files(self.names))}


@dataclass
class Record:
    """How far an LMDB has come."""

    settings: dict
    done: int = 0  # originals that were read
    finished: bool = False
    skipped: list[list[str]] = field(default_factory=list)  # name and reason of each bad image
    labels: dict[str, str] = field(default_factory=dict)  # digests of the label files that were written, by name

    @property
    def written(self) -> int:
        return self.done - len(self.skipped)

    @classmethod
    def from_bytes(cls, data: bytes, path: str) -> "Record":
        """What is stored under RECORD_KEY. Raises UserError, naming the LMDB, for anything else."""
        try:
            record = cls(**json.loads(data))
            right = len(record.skipped) <= record.done <= record.settings["images"]
            right = right and isinstance(record.labels, dict)
            right = right and all(list(map(type, entry)) == [str, str] for entry in record.skipped)
        except (ValueError, TypeError, KeyError):
            right = False
        if not right:
            raise UserError(f"{path}: expected a preparation's record under {RECORD_KEY}, got {data[:40]!r}")
        return record


def write_lmdb(path: str, job: Job, workers: int, labels: Labels) -> tuple[Record, bool, list[str]]:
    """Write or continue the LMDB folder ``path`` and its label files.

    Returns its record, whether there were images left to do, and the label files that are new. A label file is replaced
    only where this wrote it; UserError for another one, before any image is written.
    """
    total, previous = len(job.names), signal.signal(signal.SIGINT, _interrupt_once)
    try:
        settings = job.settings()
        if not is_lmdb(path):  # nothing is left in a folder that is refused
            _check_labels(path, job, Record(settings), labels)
            if os.path.isdir(path) and has_images(path):
                raise UserError(f"{path}: it has images, which an LMDB beside them would hide: choose another --out")
        os.makedirs(path, exist_ok=True)
        with lmdb.open(path, map_size=FIRST_MAP) as environment:
            record = _resume(environment, path, settings)
            _check_labels(path, job, record, labels)
            if record.finished:
                return record, False, _write_labels(environment, path, job, record, labels)
            chunks = [range(total)[first : first + CHUNK] for first in range(record.done, total, CHUNK)]
            workers = workers if workers > 1 else 0
            loader = DataLoader(
                job, batch_sampler=chunks, num_workers=workers, collate_fn=list, worker_init_fn=_end_with_parent
            )
            bar = tqdm(total=total, initial=record.done, unit=" images", mininterval=0.5, file=sys.stderr)
            with bar, closing(watched(loader)) as converted:
                for chunk in converted:
                    _commit(environment, _entries(job, record, chunk), record)
                    bar.update(len(chunk))
            if not record.written:
                raise UserError(f"{job.originals.path}: expected images, all {record.done} are bad")
            record.finished = True
            length = record.done if job.keep_holes else record.written
            _commit(environment, [(b"length", str(length).encode())], record)
            return record, True, _write_labels(environment, path, job, record, labels)
    except (lmdb.Error, OSError) as error:
        raise UserError(f"{path}: cannot write the LMDB: {error}") from error
    finally:
        signal.signal(signal.SIGINT, previous)


def _entries(job: Job, record: Record, chunk: list[tuple[str, bytes | None, str]]) -> list[tuple[bytes, bytes]]:
    """Keys and values of a chunk; counts in the record, and reports, what was read and what was skipped."""
    entries = []
    for name, data, problem in chunk:
        if data is None:
            tqdm.write(f"skipped {name}: {problem}", file=sys.stderr)
            record.skipped.append([name, problem])
        else:
            index = record.done if job.keep_holes else record.written
            entries.append(((job.key_format % index).encode(), data))
        record.done += 1
    return entries


def _check_labels(path: str, job: Job, record: Record, labels: Labels) -> None:
    """Raise UserError for a label file that would be replaced, and that was not written here."""
    for name, content in labels.items():
        file = os.path.join(path, name)
        known = not isinstance(content, LabelTable) or record.finished
        same = (record.labels.get(name), _digest(_content(job, record, content)) if known else None)
        if os.path.exists(file) and fingerprint(file) not in same:
            raise UserError(
                f"{file}: it is not from this command, and would be replaced: move it away, or choose another --out"
            )


def _write_labels(environment, path: str, job: Job, record: Record, labels: Labels) -> list[str]:
    """Write the label files that are not there as they should be, and return their names."""
    written, before = [], dict(record.labels)
    for name, content in labels.items():
        file, data = os.path.join(path, name), _content(job, record, content)
        if not os.path.exists(file) or fingerprint(file) != _digest(data):
            with atomic_write(file) as opened:
                opened.write(data)
            written.append(name)
        record.labels[name] = _digest(data)
    if record.labels != before:
        _commit(environment, [], record)
    return written


def _content(job: Job, record: Record, content: bytes | LabelTable) -> bytes:
    """Bytes of a label file: for a table a CSV with LMDB keys in place of names, without the originals skipped."""
    if not isinstance(content, LabelTable):
        return content
    skipped = {name for name, _ in record.skipped}
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(["key", *content.names])
    for index, name in enumerate(name for name in job.names if name not in skipped):
        writer.writerow([job.key_format % index, *content.rows[image_key(name)][1]])
    return text.getvalue().encode(errors="backslashreplace")


def _digest(data: bytes) -> str:
    """What ``fingerprint`` says of a file with these bytes."""
    return hashlib.sha256(data).hexdigest()[:16]


def _resume(environment, path: str, settings: dict) -> Record:
    """The record of an LMDB begun with the same settings, or a new one for an empty LMDB."""
    if environment.stat()["entries"] == 0:
        return Record(settings)
    with environment.begin() as transaction:
        data = transaction.get(RECORD_KEY.encode())
    if data is None:
        raise UserError(f"{path}: there is an LMDB that this command did not make, choose another --out")
    record = Record.from_bytes(data, path)
    for name, value in settings.items():
        if (before := record.settings.get(name)) != value:
            raise UserError(f"{path} was begun with {name} {before}, now {value}: repeat that, or choose another --out")
    return record


def _commit(environment, entries: list[tuple[bytes, bytes]], record: Record) -> None:
    """Write the entries and the record together, in a larger map if need be."""
    entries = [*entries, (RECORD_KEY.encode(), json.dumps(asdict(record)).encode())]
    while True:
        try:
            with environment.begin(write=True) as transaction:
                for key, value in entries:
                    transaction.put(key, value)
            return
        except lmdb.MapFullError:
            environment.set_mapsize(environment.info()["map_size"] * 5 // 4 + FIRST_MAP)


def _end_with_parent(_: int) -> None:
    """Let a worker end even where its parent is killed and will never take what the worker has for it."""

    def wait() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _interrupt_once(*_) -> None:
    """Stop at the first Ctrl-C; a second one must not break into the shutdown of the workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    raise KeyboardInterrupt
