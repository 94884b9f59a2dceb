"""The training loop. It receives a state and a stream of batches, and knows neither a data set nor a method."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dbae import runtime
from dbae.background import Background
from dbae.config import TrainConfig, UserError
from dbae.io import remove_unfinished, seed_for
from dbae.progress import Progress, attempt
from dbae.state import FREQ, TrainState

Batches = Iterator[tuple[Tensor, Tensor | None]]


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
    batches: Batches,
    config: TrainConfig,
    run_dir: str,
    device: torch.device,
    preview: Callable[[nn.Module, int], None],
    stop: runtime.Stop | None = None,
    quiet: bool = False,
    hint: str = "",
) -> int:
    """Train ``state`` until ``config.total_steps``, writing checkpoints and progress to ``run_dir``.

    ``batches`` yields this process's micro-batches (images, targets or None) in order, on the device, from image
    ``state.images`` on; ``preview(model, step)`` draws pictures with the averaged weights, on the first process;
    ``hint`` is printed where the run would take days. Returns 0 after the last step, or the signal that any process's
    ``stop`` noted, after the step it came in is saved. Checkpoints are written while training goes on; the next one,
    and the end, wait for the one before.

    A step whose loss or gradient is not finite on any process leaves parameters, buffers, average and optimizer as they
    were; counters and data go on. Files that cannot be written are warned about, and tried again when they are due.

    Raises UserError after ``config.max_bad_steps`` such steps in a row and where the last checkpoint cannot be written;
    SystemExit on the other processes, so that the error is printed once.
    """
    stop = stop or runtime.Stop()
    main = runtime.rank() == 0
    objective = _parallel(state.objective, device).train()
    if main:
        remove_unfinished(run_dir)
    report = Progress(run_dir, state.step, config, quiet, hint) if main else nullcontext()
    bad_steps, stopping, problem = 0, False, None

    with report as progress, Background() as writer:
        while state.step < config.total_steps and not stopping and not problem:
            # Step
            loss, taken, stopping = take_step(objective, state, batches, config, device, stop)
            if progress:
                progress.update(state.step, state.images, loss if taken else None)
            bad_steps = 0 if taken else bad_steps + 1
            if bad_steps == config.max_bad_steps:
                problem = (
                    f"loss: not finite, or its gradient, in {bad_steps} steps in a row up to step {state.step}; the "
                    f"checkpoints in {run_dir} are from before: go on with a lower --lr, or --precision bf16 or fp32"
                )

            # Pictures and checkpoints
            done = state.step == config.total_steps
            prefix = _checkpoint_due(state.step, config)
            prefix = FREQ if stopping and prefix is None else prefix
            if main and (done or state.step % config.sample_interval == 0):
                state.ema.sync_buffers(state.model)
                attempt(f"the pictures of step {state.step}", lambda: preview(state.ema.module, state.step))
            if main and prefix is not None:
                name = f"the checkpoint of step {state.step}"
                writer.wait()  # so that there is never a second copy of the state
                written = writer.submit(partial(attempt, name, state.saving(run_dir, prefix)))
                if (done or stopping) and (unsaved := written.result()):
                    problem = f"{run_dir}: {name}, the last one, could not be written: {unsaved}"

    problems, signums = zip(*runtime.all_gather((problem, stop.signum)), strict=True)
    if problems[0]:
        raise UserError(problems[0]) if main else SystemExit(2)
    return 0 if state.step == config.total_steps else max(signums)


def take_step(
    objective: nn.Module,
    state: TrainState,
    batches: Batches,
    config: TrainConfig,
    device: torch.device,
    stop: runtime.Stop,
) -> tuple[float, bool, bool]:
    """One step of ``state``, whose objective is (wrapped by) ``objective``.

    Returns the mean loss over all processes, whether it and the gradient were finite, so that the step was taken, and
    whether any process's ``stop`` holds a signal.
    """
    buffers = list(state.model.buffers())
    before = [buffer.clone() for buffer in buffers]
    loss = _accumulate(objective, state, batches, config, device)

    # What every process must know of the others, and the host of a GPU: the one wait of a step
    state.scaler.unscale_(state.optimizer)
    gradients = [p.grad for group in state.optimizer.param_groups for p in group["params"] if p.grad is not None]
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
    loss, asked = runtime.mean(torch.stack([loss, torch.full_like(loss, float(stop.signum > 0))]))
    finite = torch.isfinite(loss) & torch.isfinite(norm.square())  # as the second moments square it
    loss, norm, finite, asked = torch.stack([loss, norm, finite.float(), asked]).tolist()

    # Update
    state.step += 1
    state.images += config.batch_size
    if finite:
        if config.clip and (factor := config.clip / (norm + 1e-6)) < 1:
            torch._foreach_mul_(gradients, factor)
        for group in state.optimizer.param_groups:
            warm = min(1.0, state.step / config.lr_warmup) if config.lr_warmup else 1.0
            group["lr"] = group["initial_lr"] * warm
        state.optimizer.step()
        state.ema.update(state.step)
    else:
        torch._foreach_copy_(buffers, before)
    state.scaler.update()
    state.optimizer.zero_grad()
    return loss, bool(finite), asked > 0


def _accumulate(
    objective: nn.Module, state: TrainState, batches: Batches, config: TrainConfig, device: torch.device
) -> Tensor:
    """Gradients of one step, averaged over the images of all micro-batches and processes; the mean loss of this one."""
    sizes = micro_batches(config, runtime.world())
    share = sum(sizes)
    position = state.images + runtime.rank() * share
    normed = [layer for layer in state.model.modules() if hasattr(layer, "weight_orig")]
    total = torch.zeros((), device=device)
    for i, size in enumerate(sizes):
        batch, y = next(batches)
        torch.manual_seed(seed_for(config.seed, position))  # flips, times, noise, codes and dropout
        position += size
        x0 = state.model.prepare(batch, config.flip)
        for layer in normed:  # spectral norms are refined once per step, however its batch is cut
            layer.train(i == 0)
        last = i == len(sizes) - 1
        with nullcontext() if last or objective is state.objective else objective.no_sync():
            loss = objective(x0, y).sum() / share
            state.scaler.scale(loss).backward()
        total += loss.detach()
    return total


def _parallel(model: nn.Module, device: torch.device) -> nn.Module:
    """The model, or with several processes one that averages its gradients over them."""
    if runtime.world() == 1:
        return model
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # a new name for broadcast_buffers that older torch lacks
        ids = [device.index] if device.type == "cuda" else None
        return DistributedDataParallel(model, device_ids=ids, broadcast_buffers=False)


def _checkpoint_due(step: int, config: TrainConfig) -> str | None:
    """Prefix of the set to be written after a step, None for no set."""
    if step == config.total_steps or step % config.save_interval == 0:
        return ""
    return FREQ if step % config.save_interval_for_preemption == 0 else None
