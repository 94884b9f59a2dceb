"""Where and how a program runs: processes and devices, precision and compilation, signals, memory.

``torchrun`` sets the environment of a process group; a plain ``python`` is a group of one, and nothing here needs more.
"""

import ctypes
import gc
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from datetime import timedelta
from math import inf
from typing import Any, TypeVar

import torch
import torch.distributed as dist
import torch.distributed.nn  # before there is a group: its functions' defaults would keep that alive
from torch import Tensor, nn
from tqdm import tqdm

from dbae.config import COMPILE_FROM, UserError
from dbae.device import allow_tf32, choose_device
from dbae.nn.layers import Recomputed

COMPILE_MODES = {"true": "default", "graphs": "reduce-overhead"}  # our name -> that of torch.compile
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's mallopt
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
SAME_REQUEST = 1.0  # seconds within which several signals are one request to stop
Item = TypeVar("Item")


# Processes and devices


def setup(device: str = "auto", timeout: float | None = None) -> torch.device:
    """Choose this process's device and join the group that ``torchrun`` describes, if any.

    ``device`` and what is raised are as in ``choose_device``; float32 is float32 unless ``amp_dtype`` is told
    otherwise. ``timeout`` is how many minutes a process waits for the others before it fails (default: torch's own).
    """
    chosen = choose_device(device, int(os.environ.get("LOCAL_RANK", 0)))
    allow_tf32(convolutions=False, products=False)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
        torch.backends.cudnn.benchmark = True  # shapes are few: the fastest algorithm of each is tried out once
    else:
        keep_freed_memory()
    if int(os.environ.get("WORLD_SIZE", 1)) > 1 and not dist.is_initialized():
        _join("nccl" if chosen.type == "cuda" else "gloo", timedelta(minutes=timeout) if timeout else None)
    return chosen


def _join(backend: str, timeout: timedelta | None) -> None:
    """Join torchrun's group.

    When torchrun restarts a job, its store still holds the addresses of the processes that ended, so each attempt gets
    keys of its own. On several nodes the attempts are not counted alike, and the store is left as it is.
    """
    store, number, size = next(dist.rendezvous("env://"))
    if timeout:
        store.set_timeout(timeout)
    if os.environ.get("GROUP_WORLD_SIZE") == "1":
        store = dist.PrefixStore(f"attempt{os.environ['TORCHELASTIC_RESTART_COUNT']}", store)
    dist.init_process_group(backend, store=store, rank=number, world_size=size, timeout=timeout)


def rank() -> int:
    """This process's number in the group, 0 without one."""
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    """Number of processes in the group, 1 without one."""
    return dist.get_world_size() if dist.is_initialized() else 1


def barrier() -> None:
    """Wait for all processes."""
    if dist.is_initialized():
        dist.barrier()


def mean(values: Tensor) -> Tensor:
    """The average of a tensor over all processes, each of which must call this. It replaces the values."""
    if dist.is_initialized():
        dist.all_reduce(values)
        values /= world()
    return values


def all_gather(value: Any) -> list[Any]:
    """Every process's picklable ``value``, in rank order."""
    if not dist.is_initialized():
        return [value]
    gathered: list[Any] = [None] * world()
    dist.all_gather_object(gathered, value)
    return gathered


def on_first(function: Callable[[], Item]) -> Item:
    """Call a function on the first process alone; every process returns its result, or raises its UserError."""
    result, problem = None, None
    if rank() == 0:
        try:
            result = function()
        except UserError as error:
            problem = str(error)
    result, problem = all_gather((result, problem))[0]
    if problem is not None:
        raise UserError(problem)
    return result


def cleanup() -> None:
    """Leave the group, and end its threads: those that meet the end of the interpreter can crash it."""
    if dist.is_initialized():
        gc.collect()  # DistributedDataParallel holds the group, and is in a cycle with itself
        dist.destroy_process_group()


def print0(*values: Any) -> None:
    """Print on the first process only."""
    if rank() == 0:
        print(*values, flush=True)


def warn0(message: str) -> None:
    """Print a warning on the first process only, above a progress bar where there is one."""
    if rank() == 0:
        tqdm.write(f"warning: {message}", file=sys.stderr)


def keep_freed_memory() -> None:
    """Let glibc's allocator keep what this process frees, in place of asking the system for it in every layer.

    The system hands out memory page by page, which costs sampling on a CPU much of its time. Does nothing where there
    is no glibc.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, -1)


# Precision, compilation, checkpointing: the numbers stay, up to rounding; but compiled on a GPU, dropout draws other
# masks from the same seed


def amp_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """The dtype of autocast, None for float32. ``auto`` is bf16 on GPUs that have it, fp16 on older ones.

    It also sets what float32 means on a GPU: itself for fp32, TF32 for tf32. Beside half precision, convolutions of
    networks that stay float32 use TF32, as torch does unless told otherwise: the endpoint decoder is a tenth of the
    celeba preset's FLOPs, and would take most of the time without tensor cores. Raises UserError for a precision that
    the device does not compute in.
    """
    if precision == "auto":
        precision = "fp32"
        if device.type == "cuda":
            precision = "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp16"
    if precision in ("tf32", "fp16") and device.type != "cuda":
        raise UserError(f"precision: {precision} needs a GPU, the device is {device.type}; expected fp32, bf16 or auto")
    allow_tf32(convolutions=precision != "fp32", products=precision == "tf32")
    return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)


def use_compile(model: nn.Module, mode: str, device: torch.device, calls: float = inf) -> bool:
    """Compile the networks of a model, each at its first use and at each new shape but smaller batches in evaluation.

    ``mode`` is ``true``, ``graphs`` (CUDA graphs: for networks so small that starting kernels takes longer than running
    them), ``false``, or ``auto``: true on GPUs, where there will be enough ``calls`` of a network for one image. Where
    nothing can be compiled, a warning says why and nothing changes. Returns whether the networks are compiled now.
    """
    if mode == "false" or (mode == "auto" and (device.type != "cuda" or calls < COMPILE_FROM)):
        return False
    problem = _cannot_compile(device)
    if problem:
        memory = "; activations take about three times the memory so: if it runs out, --microbatch or --checkpointing"
        warn0(f"compile: not possible here, going on without: {problem}{memory * model.training}")
        return False
    for name, network in model.named_children():
        network.compile(mode=COMPILE_MODES.get(mode, "default"), dynamic=False)
        model.compiled[name] = set()
    return True


def use_checkpointing(model: nn.Module) -> None:
    """Keep only the inputs of blocks in training, and compute the rest twice: less memory."""
    for module in model.modules():
        if isinstance(module, Recomputed):
            module.checkpointing = True


def _cannot_compile(device: torch.device) -> str | None:
    """Why a compiled function with a gradient fails on this machine; None where it works."""
    try:
        with warnings.catch_warnings(), torch.enable_grad():
            warnings.simplefilter("ignore")
            x = torch.ones(16, device=device, requires_grad=True)
            torch.compile(lambda x: torch.nn.functional.silu(x * 2))(x).sum().backward()
    except Exception as error:  # a missing compiler, Triton, Python.h...: dozens of kinds
        return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return None


# Signals: a run finishes its step, saves, and ends with status 128 + the signal's number


class Stop:
    """While entered, the first SIGTERM or SIGINT is only noted in ``signum`` (0: none); a second one ends at once.

    What arrives within a second counts as one: torchrun passes on what a scheduler has sent to every process.
    """

    def __init__(self) -> None:
        self.signum, self._since = 0, 0.0

    def __enter__(self) -> "Stop":
        self._before = {number: signal.signal(number, self._note) for number in STOP_SIGNALS}
        return self

    def __exit__(self, *_: Any) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: Any) -> None:
        if not self.signum:
            self.signum, self._since = number, time.monotonic()
        elif time.monotonic() - self._since > SAME_REQUEST:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)


def blocking_signals(items: Iterator[Item]) -> Iterator[Item]:
    """The same items; worker processes that are started for the first of them never receive SIGTERM or SIGINT.

    A scheduler or a terminal signals every process of a job, and the step to be finished needs its data workers. Close
    what this returns, so that they end.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        first = next(items)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    yield first
    yield from items
