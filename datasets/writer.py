"""Writing an LMDB of images in chunks, so that it can be stopped at any moment and continued.

Each chunk is one transaction: its images, and under RECORD_KEY how far the work has come. ``length`` is written last.
"""

import hashlib
import io
import json
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial

from PIL import Image
from tqdm import tqdm

from datasets.images import BadImage, cover, decode
from datasets.lmdb import import_lmdb
from datasets.originals import Originals
from dbae.config import UserError

RECORD_KEY = b"dbae-prepare"
CHUNK = 256  # images per transaction
FIRST_MAP = 1 << 24  # bytes; the map grows as it fills, so that the file is never larger than its contents
ENCODINGS = {
    "webp": {"format": "WEBP", "quality": 100},
    "png": {"format": "PNG"},
    "jpg": {"format": "JPEG", "quality": 95, "subsampling": 0},
}
KEPT_FORMATS = ("JPEG", "PNG", "WEBP")  # whose files are stored as they are when images are not resized


@dataclass(frozen=True)
class Job:
    """What becomes of each original."""

    originals: Originals
    key_format: str
    size: int | None  # None: not resized
    encoding: str  # a key of ENCODINGS
    keep_holes: bool  # whether a bad image leaves its index empty, or the next one takes it

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

    def settings(self, names: list[str]) -> dict:
        """What must be the same when the work is continued."""
        digest = hashlib.sha256("\n".join(names).encode(errors="replace")).hexdigest()[:16]
        given = {"keys": self.key_format, "size": self.size, "format": self.encoding}
        return given | {"images": len(names), "file names": digest}


@dataclass
class Record:
    """How far an LMDB has come."""

    settings: dict
    done: int = 0  # originals that were read
    finished: bool = False
    skipped: list[list[str]] = field(default_factory=list)  # name and reason of each bad image

    @property
    def written(self) -> int:
        return self.done - len(self.skipped)

    @classmethod
    def from_bytes(cls, data: bytes, path: str) -> "Record":
        """What is stored under RECORD_KEY. Raises UserError, naming the LMDB, for anything else."""
        try:
            record = cls(**json.loads(data))
            right = len(record.skipped) <= record.done <= record.settings["images"]
            right = right and all(list(map(type, entry)) == [str, str] for entry in record.skipped)
        except (ValueError, TypeError, KeyError):
            right = False
        if not right:
            raise UserError(f"{path}: expected a preparation's record under {RECORD_KEY.decode()}, got {data[:40]!r}")
        return record


def write_lmdb(path: str, job: Job, names: list[str], workers: int) -> tuple[Record, bool]:
    """Write or continue the LMDB folder ``path``; returns its record, and whether there was anything left to do."""
    lmdb = import_lmdb()
    try:
        os.makedirs(path, exist_ok=True)
        with lmdb.open(path, map_size=FIRST_MAP) as environment:
            record = _resume(environment, path, job.settings(names))
            if record.finished:
                return record, False
            bar = tqdm(total=len(names), initial=record.done, unit=" images", mininterval=0.5, file=sys.stderr)
            with bar, _mapping(job.convert, workers) as convert_all:
                while record.done < len(names):
                    chunk = names[record.done : record.done + CHUNK]
                    entries = []
                    for name, (data, problem) in zip(chunk, convert_all(chunk), strict=True):
                        if data is None:
                            tqdm.write(f"skipped {name}: {problem}", file=sys.stderr)
                            record.skipped.append([name, problem])
                        else:
                            index = record.done if job.keep_holes else record.written
                            entries.append(((job.key_format % index).encode(), data))
                        record.done += 1
                    _commit(environment, entries, record)
                    bar.update(len(chunk))
            if not record.written:
                raise UserError(f"{job.originals.path}: expected images, all {record.done} are bad")
            record.finished = True
            length = record.done if job.keep_holes else record.written
            _commit(environment, [(b"length", str(length).encode())], record)
    except BrokenProcessPool:
        again = "run the same command with fewer --workers"
        raise UserError(f"{path}: a worker was killed, out of memory? Then {again}") from None
    except (lmdb.Error, OSError) as error:
        raise UserError(f"{path}: cannot write the LMDB: {error}") from error
    return record, True


def _resume(environment, path: str, settings: dict) -> Record:
    """The record of an LMDB begun with the same settings, or a new one for an empty LMDB."""
    if environment.stat()["entries"] == 0:
        return Record(settings)
    with environment.begin() as transaction:
        data = transaction.get(RECORD_KEY)
    if data is None:
        raise UserError(f"{path}: there is an LMDB that this command did not make, choose another --out")
    record = Record.from_bytes(data, path)
    for name, value in settings.items():
        if (before := record.settings.get(name)) != value:
            raise UserError(f"{path} was begun with {name} {before}, now {value}: repeat that, or choose another --out")
    return record


def _commit(environment, entries: list[tuple[bytes, bytes]], record: Record) -> None:
    """Write the entries and the record together, in a larger map if need be."""
    entries = [*entries, (RECORD_KEY, json.dumps(asdict(record)).encode())]
    while True:
        try:
            with environment.begin(write=True) as transaction:
                for key, value in entries:
                    transaction.put(key, value)
            return
        except import_lmdb().MapFullError:
            environment.set_mapsize(environment.info()["map_size"] * 5 // 4 + FIRST_MAP)


@contextmanager
def _mapping(function: Callable, workers: int) -> Iterator[Callable[[list[str]], Iterable]]:
    """A map of ``function`` over names, in order, in this process or in ``workers`` others."""
    if workers <= 1:
        yield partial(map, function)
        return
    # A fork of this process would share the open LMDB; the server imports everything once for all workers
    method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context(method), _start_worker)
    previous = signal.signal(signal.SIGINT, _interrupt_once)
    try:
        yield partial(pool.map, function, chunksize=8)
    finally:
        pool.shutdown(cancel_futures=True)
        signal.signal(signal.SIGINT, previous)


def _interrupt_once(*_) -> None:
    """Stop at the first Ctrl-C; a second one must not break into the shutdown, which would wait for ever."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    raise KeyboardInterrupt


def _start_worker() -> None:
    """Leave Ctrl-C to the parent process, and end with it even if it is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)
