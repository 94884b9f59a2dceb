"""What training steps came to, fetched from the device without making it wait."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Outcome:
    """One step: its count, the images so far, the mean loss, whether it was taken, and whether a stop was asked for."""

    step: int
    images: int
    loss: float
    taken: bool
    stopping: bool


class Outcomes:
    """Outcomes on their way to the host, of which the newest ``lag`` may still be under way.

    A GPU works on while the host reads the outcome of the step before: ``lag`` is 1 there and 0 on a CPU. It is fixed,
    so that all processes see the same.
    """

    def __init__(self, device: torch.device) -> None:
        self.on_gpu = device.type == "cuda"
        self.lag = int(self.on_gpu)
        self.pending: deque[tuple[int, int, Tensor, torch.cuda.Event | None]] = deque()

    def add(self, step: int, images: int, values: Tensor) -> None:
        """Send (loss, taken, stopping) [3] of a step to the host."""
        event = None
        if self.on_gpu:
            values = torch.empty(3, pin_memory=True).copy_(values, non_blocking=True)
            event = torch.cuda.Event()
            event.record()
        self.pending.append((step, images, values, event))

    def arrived(self, wait: bool) -> Iterator[Outcome]:
        """Outcomes in order that were not given before: all of them with ``wait``."""
        while len(self.pending) > (0 if wait else self.lag):
            step, images, values, event = self.pending.popleft()
            if event:
                event.synchronize()
            loss, taken, stopping = values.tolist()
            yield Outcome(step, images, loss, taken > 0, stopping > 0)
