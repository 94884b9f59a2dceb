"""Read-only access to one LMDB: no image or tensor is known here."""

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from weakref import WeakValueDictionary

import lmdb

from dbae.config import UserError

# Reading past the end of an LMDB's file kills the process. The last pages may rightly be missing, where they were freed
# before they were ever written, so only a greater loss is taken for a broken copy.
TRUNCATED = 1 << 20


def is_lmdb(path: str) -> bool:
    """Whether the path can be an LMDB: a folder with data.mdb in it, or any file."""
    return os.path.isfile(os.path.join(path, "data.mdb")) if os.path.isdir(path) else os.path.isfile(path)


def open_store(path: str) -> "LmdbStore":
    """The store of a path. LMDB allows one environment per file and process, so stores in use are shared."""
    store = _STORES.get(os.path.realpath(path)) or LmdbStore(path)
    return _STORES.setdefault(os.path.realpath(path), store)


class LmdbStore:
    """An LMDB (folder or single file), opened on first use in each process, so that it survives fork and spawn."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._environment = None
        self._owner = 0  # id of the process that opened the environment

    def __reduce__(self):
        return open_store, (self.path,)

    @property
    def folder(self) -> str:
        """Where the label files lie: the LMDB's folder, or that of its single file."""
        return self.path if os.path.isdir(self.path) else os.path.dirname(self.path) or "."

    @property
    def file(self) -> str:
        """The file that holds everything."""
        return os.path.join(self.path, "data.mdb") if os.path.isdir(self.path) else self.path

    def get(self, key: str) -> bytes | None:
        """The value under a key, or None. This, like every look into it, raises UserError for a damaged LMDB."""
        with self._begin() as transaction:
            return transaction.get(key.encode())

    def keys(self) -> Iterator[str]:
        """All keys in LMDB order."""
        with self._begin() as transaction, transaction.cursor() as cursor:
            for key in cursor.iternext(keys=True, values=False):
                yield key.decode(errors="replace")

    def key_format(self, candidates: Sequence[str] = ()) -> str:
        """The first of the printf formats that occurs; without candidates, the first one found by looking."""
        for candidate in candidates:
            if self._indices_end(candidate):
                return candidate
        found = next(filter(None, map(format_of, self.keys())), None)
        if found and not candidates:
            return found
        expected = " or ".join(candidate % 0 for candidate in candidates) or "256-00000"
        raise UserError(f"{self.path}: expected keys like {expected}, found {found % 0 if found else 'no image keys'}")

    def length(self, key_format: str) -> int:
        """The number of images that the LMDB states under ``length``, else one more than its last index."""
        stated = self.get("length")
        if stated is None:
            return self._indices_end(key_format)
        if not re.fullmatch(rb"\d{1,18}", stated):
            raise UserError(f"{self.path}: expected a number under the key length, got {stated[:20]!r}")
        return int(stated)

    def _indices_end(self, key_format: str) -> int:
        """One more than the last index of a format, 0 if there is none: keys of one width sort like their numbers."""
        prefix = key_format.split("%")[0].encode()
        with self._begin() as transaction, transaction.cursor() as cursor:
            found = cursor.prev() if cursor.set_range(prefix + b":") else cursor.last()  # ":" follows "9"
            last = cursor.key().decode(errors="replace") if found else ""
        return int(last[len(prefix) :]) + 1 if format_of(last) == key_format else 0

    @contextmanager
    def _begin(self):
        """A transaction on an environment that belongs to this process."""
        try:
            if self._owner != os.getpid():
                if self._environment is not None:  # inherited by a fork
                    self._environment.close()
                self._environment, self._owner = self._open(), os.getpid()
            with self._environment.begin() as transaction:
                yield transaction
        except lmdb.Error as error:
            raise UserError(f"{self.path} is damaged: {error}: copy or prepare it again") from None

    def _open(self) -> lmdb.Environment:
        is_folder = os.path.isdir(self.path)
        try:
            fast = {"lock": False, "readahead": False, "meminit": False, "max_spare_txns": 4}
            environment = lmdb.open(self.path, subdir=is_folder, readonly=True, **fast)
        except lmdb.Error as error:
            expected = "expected an LMDB (a folder with data.mdb, or a single file)"
            raise UserError(f"{self.path}: {expected}: {error}") from None
        stated = (environment.info()["last_pgno"] + 1) * environment.stat()["psize"]
        size = os.path.getsize(self.file)
        if size < stated - TRUNCATED:
            raise UserError(f"{self.path} is truncated: {size} of {stated} bytes are there, copy or download it again")
        return environment


_STORES: WeakValueDictionary[str, LmdbStore] = WeakValueDictionary()


def format_of(key: str) -> str | None:
    """The printf format of an image key such as ``256-00012``, or None for a key that is no image's."""
    match = re.fullmatch(r"(.+-)(\d+)", key)
    return f"{match[1]}%0{len(match[2])}d" if match else None
