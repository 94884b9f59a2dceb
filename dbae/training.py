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
from dbae.config import TrainConfig
from dbae.decoder import set_power_iteration
from dbae.errors import UserError
from dbae.images import to_float
from dbae.progress import Progress
from dbae.randomness import seed_for
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


def train(
    state: TrainState,
    batches: Iterator[Tensor],
    config: TrainConfig,
    run_dir: str,
    device: torch.device,
    preview: Callable[[nn.Module, int], None],
) -> None:
    """Train ``state`` until ``config.total_steps``, writing checkpoints and progress to ``run_dir``.

    ``batches`` yields this process's micro-batches in order, uint8 [m, 3, H, W] on the device, from image
    ``state.images`` on; ``preview(model, step)`` draws pictures with the averaged weights, on the first process.
    """
    per_process = local_batch(config, distributed.world())
    micro = per_process if config.microbatch == -1 else min(config.microbatch, per_process)
    sizes = [min(micro, per_process - start) for start in range(0, per_process, micro)]
    main = distributed.rank() == 0
    model = state.model
    if distributed.world() > 1:
        ids = [device.index] if device.type == "cuda" else None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # a new name for broadcast_buffers that older torch lacks
            model = DistributedDataParallel(model, device_ids=ids, broadcast_buffers=False)
    model.train()
    report = Progress(run_dir, state.step, config.total_steps, config.log_interval) if main else nullcontext()

    with report as progress:
        while state.step < config.total_steps:
            # Gradients, averaged over the images of all micro-batches and processes
            position = state.images + distributed.rank() * per_process
            step_loss = torch.zeros((), device=device)
            for i, size in enumerate(sizes):
                x0 = to_float(next(batches))
                torch.manual_seed(seed_for(config.seed, position))  # flips, times, noise, codes and dropout
                position += size
                if config.flip:
                    x0 = torch.where(torch.rand(size, 1, 1, 1, device=device) < 0.5, x0.flip(3), x0)
                set_power_iteration(state.model, on=i == 0)
                last = i == len(sizes) - 1
                with nullcontext() if last or model is state.model else model.no_sync():
                    loss = model(x0).sum() / per_process
                    state.scaler.scale(loss).backward()
                step_loss += loss.detach()

            # Step
            state.scaler.step(state.optimizer)
            state.scaler.update()
            state.optimizer.zero_grad(set_to_none=True)
            state.step += 1
            state.images += config.batch_size
            state.ema.update(state.model, state.step)
            if progress:
                progress.update(state.step, state.images, config.batch_size, step_loss)

            # Pictures and checkpoints
            done = state.step == config.total_steps
            if main and (done or state.step % config.sample_interval == 0):
                state.ema.sync_buffers(state.model)
                preview(state.ema.module, state.step)
            if main and (done or state.step % config.save_interval == 0):
                state.save(run_dir)
            elif main and state.step % config.save_interval_for_preemption == 0:
                state.save(run_dir, FREQ)
    distributed.barrier()
