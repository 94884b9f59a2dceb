"""Ways to do the same work, each in a process of its own: none has the allocator, threads or memory of another."""

import multiprocessing
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

from benchmarks.measure import Timing, clocked, collect

if TYPE_CHECKING:
    import torch

Work = Callable[[], object]
Build = Callable[..., Work]  # called in the process with a way's arguments, the device's name first
Task = Callable[[Work, "torch.device"], Any]  # done in the process with the work; can be pickled, as its result
Ask = Callable[[Task], Any]  # have a process do a task, and wait for its result


@contextmanager
def apart(build: Build, ways: Mapping[str, tuple[Any, ...]]) -> Iterator[dict[str, Ask]]:
    """A process for each way, which holds ``build(*arguments)`` and has run it once; they end with the block.

    Raises RuntimeError where one ends by itself, which says why.
    """
    with ExitStack() as stack:
        yield {way: stack.enter_context(_process(way, build, arguments)) for way, arguments in ways.items()}


def alternate_apart(ways: Mapping[str, Ask], rounds: int) -> dict[str, Timing]:
    """Time every way once per round, as ``measure.alternate`` does; the peak of memory is each process's own."""
    return collect({way: partial(ask, clocked) for way, ask in ways.items()}, rounds)


@contextmanager
def _process(way: str, build: Build, arguments: tuple[Any, ...]) -> Iterator[Ask]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, build, arguments), daemon=True)
    process.start()
    theirs.close()

    def ask(task: Task) -> Any:
        try:
            ours.send(task)
            return ours.recv()
        except (EOFError, OSError):
            raise RuntimeError(f"the process of the way {way!r} ended") from None

    try:
        ask(_once)
        yield ask
    finally:
        ours.close()
        process.join()


def _serve(pipe: Connection, build: Build, arguments: tuple[Any, ...]) -> None:
    """Build the work, then do what is asked until nobody asks."""
    import torch

    device, work = torch.device(arguments[0]), build(*arguments)
    while True:
        try:
            task = pipe.recv()
        except EOFError:
            return
        pipe.send(task(work, device))


def _once(work: Work, device: "torch.device") -> None:
    work()
