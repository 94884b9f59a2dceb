"""SIGTERM and SIGINT as requests: a run finishes its step, saves, and ends with status 128 + the signal's number."""

import signal
import time
from collections.abc import Iterator
from typing import Any, TypeVar

REQUESTS = (signal.SIGTERM, signal.SIGINT)
TOGETHER = 1.0  # seconds
Item = TypeVar("Item")


class Stop:
    """While entered, the first SIGTERM or SIGINT is only noted in ``signum`` (0: none); a second one ends at once.

    What arrives TOGETHER counts as one: torchrun passes on what a scheduler has sent to every process.
    """

    def __init__(self) -> None:
        self.signum, self._since = 0, 0.0

    def __enter__(self) -> "Stop":
        self._before = {number: signal.signal(number, self._note) for number in REQUESTS}
        return self

    def __exit__(self, *_: Any) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: Any) -> None:
        if not self.signum:
            self.signum, self._since = number, time.monotonic()
        elif time.monotonic() - self._since > TOGETHER:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)


def out_of_reach(items: Iterator[Item]) -> Iterator[Item]:
    """The same items; processes that are started for the first of them never receive SIGTERM or SIGINT.

    A scheduler or a terminal signals every process of a job, and the step to be finished needs its data workers. Close
    what this returns, so that they end.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, REQUESTS)
    try:
        first = next(items)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    yield first
    yield from items
