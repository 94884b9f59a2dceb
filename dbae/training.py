"""The training loop. It receives a state and a stream of images, and knows neither a data set nor a bridge.

A model is anything whose ``forward(x0)`` returns a loss per image.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dbae import distributed
from dbae.config import TrainConfig, UserError
from dbae.flat import Kept
from dbae.io import seed_for, to_float
from dbae.nn.spectral import set_power_iteration
from dbae.outcomes import Outcomes
from dbae.progress import Progress, attempt
from dbae.signals import Stop
from dbae.state import FREQ, TrainState


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
    Returns 0 after the last step, or the signal that any process's ``stop`` noted, after the step it came in, or on a
    GPU the next one, is saved.

    A step whose loss or gradient is not finite on any process leaves parameters, buffers, average and optimizer as they
    were; counters and data go on. The device decides that; on a GPU the host learns of it, and of the loss and of other
    processes' signals, when the next step is under way. Files that cannot be written are warned about, and tried again
    when they are due again.

    Raises UserError after ``config.max_bad_steps`` such steps in a row and where the last checkpoint cannot be written;
    SystemExit on the other processes, so that the error is printed once.
    """
    stop = stop or Stop()
    main = distributed.rank() == 0
    model = _parallel(state.model, device).train()
    buffers, outcomes = Kept(list(state.model.buffers())), Outcomes(device)
    total, every = config.total_steps, config.log_interval
    report = Progress(run_dir, state.step, total, every, quiet) if main else nullcontext()
    bad_steps, stopping, problem = 0, False, None

    with report as progress:
        while state.step < total and not stopping and not problem:
            # Step
            loss, taken, asked = take_step(model, state, batches, config, device, buffers, stop)

            # What the host learns of it
            done = state.step == total
            drawn = done or state.step % config.sample_interval == 0
            prefix = _checkpoint_due(state.step, config)
            outcomes.add(state.step, state.images, torch.stack([loss, taken, asked]))
            for outcome in outcomes.arrived(wait=drawn or prefix is not None or state.step % every == 0):
                if progress:
                    progress.update(outcome, config.batch_size)
                stopping = stopping or outcome.stopping
                bad_steps = 0 if outcome.taken else bad_steps + 1
                if bad_steps == config.max_bad_steps:
                    problem = (
                        f"loss: not finite, or its gradient, in {bad_steps} steps in a row up to step {outcome.step}; "
                        f"the checkpoints in {run_dir} are from before: go on with a lower --lr, or --precision bf16 "
                        "or fp32"
                    )

            # Pictures and checkpoints
            prefix = FREQ if stopping and prefix is None else prefix
            if main and drawn:
                state.ema.sync_buffers(state.model)
                attempt(f"the pictures of step {state.step}", lambda: preview(state.ema.module, state.step))
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


def take_step(
    model: nn.Module,
    state: TrainState,
    batches: Iterator[Tensor],
    config: TrainConfig,
    device: torch.device,
    buffers: Kept,
    stop: Stop,
) -> tuple[Tensor, Tensor, Tensor]:
    """One step of ``state``, whose model is (wrapped by) ``model`` and holds ``buffers``; nothing waits for the device.

    Returns the mean loss over all processes, whether it and the gradient were finite, so that the step was taken, and
    the part of the processes whose ``stop`` holds a signal: one value each, on the device.
    """
    # Gradients, and what every process must know of the others
    buffers.keep()
    loss = _accumulate(model, state, batches, config, device)
    state.scaler.unscale_(state.optimizer)
    loss, asking = distributed.mean(torch.stack([loss, torch.full_like(loss, float(stop.signum > 0))]))
    square = torch.linalg.vector_norm(state.optimizer.vector.grad).square()  # overflows where second moments would
    finite = torch.isfinite(loss) & torch.isfinite(square)

    # Update
    state.optimizer.step(finite)
    buffers.restore_unless(finite)
    state.scaler.update()
    state.optimizer.zero_grad()
    state.step += 1
    state.images += config.batch_size
    state.ema.update(state.optimizer.vector, state.step, finite)
    return loss, finite, asking


def _accumulate(
    model: nn.Module,
    state: TrainState,
    batches: Iterator[Tensor],
    config: TrainConfig,
    device: torch.device,
) -> Tensor:
    """Gradients of one step, averaged over the images of all micro-batches and processes; the mean loss of this one."""
    sizes = micro_batches(config, distributed.world())
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


def _checkpoint_due(step: int, config: TrainConfig) -> str | None:
    """Prefix of the set to be written after a step, None for no set."""
    if step == config.total_steps or step % config.save_interval == 0:
        return ""
    return FREQ if step % config.save_interval_for_preemption == 0 else None
