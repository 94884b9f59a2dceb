"""Read-only access to one LMDB: no image or tensor is known here."""

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from weakref import WeakValueDictionary

import lmdb

from dbae.config import UserError

# Reading past the end of an LMDB's file kills the process. The last pages may rightly be missing, where they were freed
# before they were ever written, so only a greater loss is taken for a broken copy: an eighth, and of large files 1 MiB.
TRUNCATED = 1 << 20
RECORD_KEY = "dbae-prepare"  # under which a preparation says how far it has come; ``length`` is written last


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

    def has(self, key: str) -> bool:
        """Whether there is such a key; its value is not read."""
        with self._begin() as transaction, transaction.cursor() as cursor:
            return cursor.set_key(key.encode())

    def keys(self) -> Iterator[str]:
        """All keys in LMDB order."""
        with self._begin() as transaction, transaction.cursor() as cursor:
            for key in cursor.iternext(keys=True, values=False):
                yield key.decode(errors="replace")

    def image_entries(self) -> int:
        """How many entries there are without ``length`` and a preparation's record."""
        with self._begin() as transaction:
            return transaction.stat()["entries"] - self.has("length") - self.has(RECORD_KEY)

    def contents(self) -> dict[str, tuple[int, int]]:
        """The printf formats of all image keys: how many keys there are, and one more than the last index.

        Raises UserError where the keys of one prefix are not of one format, such as 256-1 beside 256-00002.
        """
        found: dict[str, list[int]] = {}  # by prefix: number of keys, end, digits of padded keys, fewest digits
        for key in self.keys():
            if match := IMAGE_KEY.fullmatch(key):
                prefix, digits = match.groups()
                entry = found.setdefault(prefix, [0, 0, 0, len(digits)])
                padded = len(digits) if digits[0] == "0" else 0
                if padded and entry[2] not in (0, padded):
                    raise self._mixed(prefix)
                count, end, width, fewest = entry
                entry[:] = count + 1, max(end, int(digits) + 1), padded or width, min(fewest, len(digits))
        for prefix, (_, _, width, fewest) in found.items():
            if fewest < width:
                raise self._mixed(prefix)
        return {f"{prefix}%0{fewest}d": (count, end) for prefix, (count, end, _, fewest) in found.items()}

    def key_format(self, candidates: Sequence[str] = ()) -> str:
        """The first of the printf formats that occurs; without candidates, the first one found by looking.

        Raises UserError where there is none, or where the choice would leave images out.
        """
        for candidate in candidates:
            if self._begins(candidate):
                return candidate
        contents = self.contents()
        found = next(iter(contents), None)
        if found and not candidates:
            if len({count for count, _ in contents.values()}) > 1:
                counts = ", ".join(f"{count} like {key_format % 0}" for key_format, (count, _) in contents.items())
                raise UserError(f"{self.path}: expected image keys of one kind, there are {counts}")
            return found
        expected = " or ".join(candidate % 0 for candidate in candidates) or "256-00000"
        raise UserError(f"{self.path}: expected keys like {expected}, found {found % 0 if found else 'no image keys'}")

    def length(self, key_format: str) -> int:
        """The number under ``length``, or one more than the last index where that is more or nothing is stated.

        Raises UserError for an unfinished preparation, and for keys of several formats.
        """
        stated = self.stated_length()
        if stated is None and self.has(RECORD_KEY):
            raise UserError(f"{self.path}: its preparation is unfinished, run the same prepare command again")
        if (
            stated
            and self.image_entries() == stated
            and self.has(key_format % 0)
            and self.has(key_format % (stated - 1))
        ):
            return stated  # as it should be, without a look at every key
        _, end = self.contents().get(key_format, (0, 0))
        return max(stated or 0, end)

    def stated_length(self) -> int | None:
        """The number under ``length``; None without it."""
        stated = self.get("length")
        if stated is not None and not re.fullmatch(rb"\d{1,18}", stated):
            raise UserError(f"{self.path}: expected a number under the key length, got {stated[:20]!r}")
        return None if stated is None else int(stated)

    def _begins(self, key_format: str) -> bool:
        """Whether the first key with the format's prefix is of that format."""
        prefix = key_format.split("%")[0]
        with self._begin() as transaction, transaction.cursor() as cursor:
            first = cursor.key().decode(errors="replace") if cursor.set_range(prefix.encode()) else ""
        match = IMAGE_KEY.fullmatch(first)
        return bool(match) and match[1] == prefix and key_format % int(match[2]) == first

    def _mixed(self, prefix: str) -> UserError:
        return UserError(f"{self.path}: expected keys {prefix}NUMBER of one kind, some have leading zeros, others less")

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
        if size < stated - min(TRUNCATED, stated // 8):
            raise UserError(f"{self.path} is truncated: {size} of {stated} bytes are there, copy or download it again")
        return environment


IMAGE_KEY = re.compile(r"(.+-)([0-9]{1,18})")
_STORES: WeakValueDictionary[str, LmdbStore] = WeakValueDictionary()
