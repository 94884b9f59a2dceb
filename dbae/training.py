"""The training loop. It receives a state and a stream of images, and knows neither a data set nor a bridge.

A model is anything whose ``forward(x0)`` returns a loss per image.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from math import isfinite

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dbae import distributed
from dbae.config import TrainConfig
from dbae.decoder import set_power_iteration
from dbae.errors import UserError
from dbae.images import to_float
from dbae.progress import Progress, attempt
from dbae.randomness import seed_for
from dbae.signals import Stop
from dbae.state import FREQ, TrainState


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """Precision of the U-Net: None is float32. ``auto`` is bf16 on GPUs that have it, fp16 on older ones, else fp32.

    Raises UserError for a half precision that the device cannot train in.
    """
    if precision == "auto":
        if device.type != "cuda":
            return None
        return torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else torch.float16
    if precision == "fp16" and device.type != "cuda":
        raise UserError(f"precision: fp16 needs a GPU, the device is {device.type}; expected fp32, bf16 or auto")
    return {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]


def local_batch(config: TrainConfig, world: int) -> int:
    """Images of one step on each of ``world`` processes. Raises UserError where they do not divide the batch."""
    if config.batch_size % world:
        raise UserError(f"batch_size: expected a multiple of the {world} processes, got {config.batch_size}")
    return config.batch_size // world


def micro_batches(config: TrainConfig, world: int) -> list[int]:
    """Images of each forward pass of a step, on each of ``world`` processes. Raises UserError like ``local_batch``."""
    images = local_batch(config, world)
    size = images if config.microbatch == -1 else min(config.microbatch, images)
    return [min(size, images - start) for start in range(0, images, size)]


def train(
    state: TrainState,
    batches: Iterator[Tensor],
    config: TrainConfig,
    run_dir: str,
    device: torch.device,
    preview: Callable[[nn.Module, int], None],
    stop: Stop | None = None,
    quiet: bool = False,
) -> int:
    """Train ``state`` until ``config.total_steps``, writing checkpoints and progress to ``run_dir``.

    ``batches`` yields this process's micro-batches in order, uint8 [m, 3, H, W] on the device, from image
    ``state.images`` on; ``preview(model, step)`` draws pictures with the averaged weights, on the first process.
    Returns 0 after the last step, or the signal that any process's ``stop`` noted, after the step it came in is saved.

    A step whose loss or gradient is not finite on any process leaves parameters, buffers, average and optimizer as they
    were; counters and data go on. To decide, the host waits for the device once per step, before the update. Files that
    cannot be written are warned about, and tried again when they are due again.

    Raises UserError after ``config.max_bad_steps`` such steps in a row and where the last checkpoint cannot be written;
    SystemExit on the other processes, so that the error is printed once.
    """
    stop = stop or Stop()
    sizes = micro_batches(config, distributed.world())
    main = distributed.rank() == 0
    model = _parallel(state.model, device)
    model.train()
    buffers = list(state.model.buffers())
    buffers_before = [buffer.clone() for buffer in buffers]
    total, every = config.total_steps, config.log_interval
    report = Progress(run_dir, state.step, total, every, quiet) if main else nullcontext()
    bad_steps, stopping, problem = 0, False, None

    with report as progress:
        while state.step < total and not stopping and not problem:
            # Gradients, and what every process must know of the others
            _copy(buffers_before, buffers)
            loss = _accumulate(model, state, batches, sizes, config, device)
            state.scaler.unscale_(state.optimizer)
            asked = torch.full_like(loss, float(stop.signum > 0))
            shared = distributed.mean(torch.stack([loss, asked]))
            loss, stopping, square = torch.cat([shared, _gradient_square(state.model)]).tolist()

            # Step
            finite = isfinite(loss) and isfinite(square)
            if finite:
                state.scaler.step(state.optimizer)
            else:
                _copy(buffers, buffers_before)
            state.scaler.update()
            state.optimizer.zero_grad(set_to_none=True)
            state.step += 1
            state.images += config.batch_size
            if finite:
                state.ema.update(state.model, state.step)
            if progress:
                progress.update(state.step, state.images, config.batch_size, loss, skipped=not finite)
            bad_steps = 0 if finite else bad_steps + 1
            if bad_steps == config.max_bad_steps:
                problem = (
                    f"loss: not finite, or its gradient, in {bad_steps} steps in a row up to step {state.step}; the "
                    f"checkpoints in {run_dir} are from before: go on with a lower --lr, or --precision bf16 or fp32"
                )

            # Pictures and checkpoints
            done = state.step == total
            if main and (done or state.step % config.sample_interval == 0):
                state.ema.sync_buffers(state.model)
                attempt(f"the pictures of step {state.step}", lambda: preview(state.ema.module, state.step))
            prefix = _checkpoint_due(state.step, config, bool(stopping))
            if main and prefix is not None:
                name = f"the checkpoint of step {state.step}"
                unsaved = attempt(name, lambda prefix=prefix: state.save(run_dir, prefix))
                if unsaved and (done or stopping):
                    problem = f"{run_dir}: {name}, the last one, could not be written: {unsaved}"

    problems, signums = zip(*distributed.all_gather((problem, stop.signum)), strict=True)
    if problems[0]:
        raise UserError(problems[0]) if main else SystemExit(2)
    return 0 if state.step == total else max(signums)


def _parallel(model: nn.Module, device: torch.device) -> nn.Module:
    """The model, or with several processes one that averages its gradients over them."""
    if distributed.world() == 1:
        return model
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # a new name for broadcast_buffers that older torch lacks
        ids = [device.index] if device.type == "cuda" else None
        return DistributedDataParallel(model, device_ids=ids, broadcast_buffers=False)


def _accumulate(
    model: nn.Module,
    state: TrainState,
    batches: Iterator[Tensor],
    sizes: list[int],
    config: TrainConfig,
    device: torch.device,
) -> Tensor:
    """Gradients of one step, averaged over the images of all micro-batches and processes; the mean loss of this one."""
    share = sum(sizes)
    position = state.images + distributed.rank() * share
    total = torch.zeros((), device=device)
    for i, size in enumerate(sizes):
        x0 = to_float(next(batches))
        torch.manual_seed(seed_for(config.seed, position))  # flips, times, noise, codes and dropout
        position += size
        if config.flip:
            x0 = torch.where(torch.rand(size, 1, 1, 1, device=device) < 0.5, x0.flip(3), x0)
        set_power_iteration(state.model, on=i == 0)
        last = i == len(sizes) - 1
        with nullcontext() if last or model is state.model else model.no_sync():
            loss = model(x0).sum() / share
            state.scaler.scale(loss).backward()
        total += loss.detach()
    return total


def _gradient_square(model: nn.Module) -> Tensor:
    """Squared norm [1] of all gradients. It overflows where RAdam's second moments would, so it must be finite too."""
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    return torch.stack(torch._foreach_norm(gradients)).square().sum()[None]


def _copy(target: list[Tensor], source: list[Tensor]) -> None:
    if source:
        torch._foreach_copy_(target, source)


def _checkpoint_due(step: int, config: TrainConfig, stopping: bool) -> str | None:
    """Prefix of the set to be written after a step, None for no set."""
    if step == config.total_steps or step % config.save_interval == 0:
        return ""
    return FREQ if stopping or step % config.save_interval_for_preemption == 0 else None
