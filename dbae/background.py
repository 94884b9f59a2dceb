"""Work in the background, so that what computes does not wait for files."""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any


class Background:
    """One thread that does what it is given, in that order; at most ``waiting`` pieces of work are held.

    What goes wrong there is raised here, by the next call. Leaving the context waits for all work, after an error, too:
    what was computed is kept.
    """

    def __init__(self, waiting: int = 1) -> None:
        self._thread = ThreadPoolExecutor(1, "background")  # started by the first piece of work
        self._waiting, self._pending = waiting, deque[Future]()

    def submit(self, work: Callable[[], Any]) -> Future:
        """Have ``work`` done, once there is room for it; the result is that of the future."""
        self.wait(self._waiting - 1)
        self._pending.append(self._thread.submit(work))
        return self._pending[-1]

    def wait(self, left: int = 0) -> None:
        """Wait until no more than ``left`` pieces of work are held."""
        while len(self._pending) > left:
            self._pending.popleft().result()

    def __enter__(self) -> "Background":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        try:
            if kind is None:
                self.wait()
        finally:
            self._thread.shutdown()
