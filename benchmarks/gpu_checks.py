"""The parts of benchmarks/gpu.py that check: numbers against the CPU's, waits, bad steps, and a whole run."""

import itertools
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks.gpu_parts import Setup, Table
from benchmarks.speed import Training, prepared, stepping
from benchmarks.timing import Row
from dbae.config import TrainConfig, UserError
from dbae.device import allow_tf32
from dbae.methods import DiffusionModel
from dbae.state import TrainState

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("encoder", "decoder", "unet")
NUMBERS = {"computed in": "{where}", "loss": "{loss:.6f}", **{f"gradient, {name}": f"{{{name}:.5g}}" for name in PARTS}}
CHECKS = {"check": "{check}", "found": "{found}"}
STEPS = 20  # in which waits are counted


def correctness(setup: Setup) -> Iterator[list[Table]]:
    """Loss and gradients on the CPU and on the device, waits of a step, and what a NaN leaves changed."""
    dataset, device = setup.chosen("celeba", "toyfaces"), torch.device(setup.device)
    model = Training(dataset=dataset).build_model().eval()
    for parameter in model.parameters():
        if parameter.requires_grad and not parameter.any():
            torch.nn.init.normal_(parameter, std=0.02)  # so that every part has an effect
    title = f"Loss of 4 images and norms of its gradient, {dataset}; CUDA {torch.version.cuda}"
    numbers: Table = {"title": title, "columns": NUMBERS, "rows": []}
    for where, place, tf32, dtype in (
        ("float32, CPU", torch.device("cpu"), False, None),
        ("float32, no TF32", device, False, None),
        ("float32, TF32", device, True, None),
        ("bf16", device, True, torch.bfloat16),
    ):
        allow_tf32(convolutions=tf32, products=tf32)
        numbers["rows"].append({"where": where, **loss_and_norms(model.to(place), dtype)})
        yield [numbers]

    checks: Table = {"title": "Steps of training", "columns": CHECKS, "rows": []}
    if device.type == "cuda":
        checks["rows"].append({"check": f"waits in each of {STEPS} steps", "found": waits(dataset, device)})
    for precision in ("bf16", "fp16") if device.type == "cuda" else ("bf16",):
        found = bad_step(dataset, device, precision)
        checks["rows"].append({"check": f"a NaN in {precision}: tensors it changed", "found": found})
        yield [numbers, checks]


def loss_and_norms(model: DiffusionModel, dtype: torch.dtype | None) -> Row:
    """Of fixed images, times and noise."""
    rng, device, size = torch.Generator().manual_seed(0), next(model.parameters()).device, model.config.image_size
    x0, noise = (torch.randn(4, 3, size, size, generator=rng).to(device) for _ in range(2))
    model.use_amp(dtype)
    model.zero_grad()
    loss = model.loss(x0.clamp(-1, 1), t=torch.tensor([0.1, 0.4, 0.7, 0.95], device=device), noise=noise).mean()
    loss.backward()
    gradients = {name: [p.grad for p in net.parameters() if p.grad is not None] for name, net in model.named_children()}
    norms = {name: torch.stack([x.norm() for x in each]).norm().item() for name, each in gradients.items()}
    return {"loss": loss.item(), **norms}


def new_run(dataset: str, device: torch.device, **settings: str) -> tuple[TrainState, TrainConfig, Iterator]:
    """A state, its configuration, and batches of four images."""
    config = TrainConfig(batch_size=4, microbatch=4, **settings)
    model = Training(dataset=dataset).build_model().to(device).train()
    size = model.config.image_size
    batch = torch.randint(0, 256, (4, 3, size, size)).byte()
    batch = batch.pin_memory() if device.type == "cuda" else batch
    return prepared(model, config), config, itertools.repeat((batch, None))


def waits(dataset: str, device: torch.device) -> float:
    """How often the host waits for the GPU in a step, the first ones left out: one is known of."""
    step = stepping(*new_run(dataset, device, compile="false"))
    for _ in range(2):
        step()
    torch.cuda.set_sync_debug_mode("warn")
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for _ in range(STEPS):
            step()
    torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(each.message) for each in seen) / STEPS


def bad_step(dataset: str, device: torch.device, precision: str) -> str:
    """How many tensors of the model, its average and the optimizer a step with a NaN loss changes."""
    state, config, batches = new_run(dataset, device, compile="false", precision=precision)
    step = stepping(state, config, batches)
    for _ in range(3):
        step()  # fp16 may skip some, until the scale of the loss fits

    def tensors() -> list[Tensor]:
        modules = [*state.model.state_dict().values(), *state.ema.module.state_dict().values()]
        return modules + [x for each in state.optimizer.state.values() for x in each.values() if isinstance(x, Tensor)]

    before = deepcopy(tensors())
    hook = state.model.register_forward_hook(lambda module, inputs, loss: loss * torch.nan)
    _, taken, _ = step()
    hook.remove()
    changed = sum(not torch.equal(a, b) for a, b in zip(tensors(), before, strict=True))
    return f"{changed} of {len(before)}" + ", and the step was taken" * taken


def whole_run(setup: Setup) -> Iterator[list[Table]]:
    """Training on generated images of celeba's size, stopped and resumed; a save; reconstruction as a program."""
    images, steps, limit = setup.chosen((1_000, 150, 1_000), (8, 6, 8))
    folder = Path(setup.folder)
    write_images(folder / "images", images, setup.chosen(64, 32))
    table: Table = {"title": "A run on generated images", "columns": CHECKS, "rows": []}

    def note(check: str, found: str) -> list[Table]:
        table["rows"].append({"check": check, "found": found})
        return [table]

    # Training
    place = [f"--dataset=folder:{folder / 'images'}", "--split=all", f"--device={setup.device}"]
    train = ["scripts.train", *place, f"--workdir={folder / 'runs'}", f"--image_size={setup.chosen(64, 32)}"]
    train += [f"--preset={setup.chosen('base', 'tiny')}", f"--batch_size={setup.chosen(64, 4)}", "--microbatch=-1"]
    train += [f"--total_steps={steps}", "--log_interval=1", "--sample_interval=1000000", "--quiet"]
    begin = time.monotonic()
    process = start(train, folder / "train.log")
    try:
        while process.poll() is None and not any(table_rows(folder)):
            time.sleep(0.2)
        first = time.monotonic() - begin
        process.send_signal(signal.SIGTERM)
        begin = time.monotonic()
        status = process.wait()
    finally:
        process.kill()
    yield note("start to the first step", f"{first:.0f} s")
    yield note("SIGTERM to the end", f"{time.monotonic() - begin:.1f} s, status {status} (143: stopped and saved)")
    seconds = finished(train, folder / "train.log")
    csv = list(table_rows(folder))
    yield note("the same command again", f"{seconds:.0f} s, to step {csv[-1][0]} of {steps}")
    rates = [float(row[3]) for row in csv[len(csv) // 2 :]]
    yield note("images per second, second half", f"{sorted(rates)[len(rates) // 2]:,.0f} (median of steps)")

    # A save
    state, config, batches = new_run(setup.chosen("celeba", "toyfaces"), torch.device(setup.device), compile="false")
    stepping(state, config, batches)()
    (folder / "save").mkdir(exist_ok=True)
    begin = time.monotonic()
    state.save(str(folder / "save"))
    seconds, size = time.monotonic() - begin, sum(file.stat().st_size for file in (folder / "save").iterdir())
    yield note("one save", f"{seconds:.1f} s for {size / 1e9:.2f} GB")

    # Reconstruction
    weights = next((folder / "runs").glob("*/ema_*.pt"))
    for compiled in setup.chosen(("false", "true"), ("false",)):
        words = ["scripts.reconstruct", *place, f"--model_path={weights}", f"--out={folder / f'recon_{compiled}'}"]
        words += [f"--limit={limit}", "--sampler=dbim", "--steps=3", "--grid=logsnr", f"--compile={compiled}"]
        seconds = finished(words, folder / "reconstruct.log")
        yield note(f"{limit} reconstructions, dbim 3, compile {compiled}: the program", f"{seconds:.1f} s")


def write_images(folder: Path, images: int, size: int) -> None:
    """Smooth random pictures as PNG files."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for i in range(images):
        small = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
        small.resize((size, size), Image.Resampling.BICUBIC).save(folder / f"{i:05}.png")


def table_rows(folder: Path) -> Iterator[list[str]]:
    """Rows of the run's progress.csv, without its head."""
    for path in (folder / "runs").glob("*/progress.csv"):
        yield from (line.split(",") for line in path.read_text().splitlines()[1:])


def start(words: list[str], log: Path) -> subprocess.Popen:
    """A program of the repository."""
    with open(log, "ab") as file:
        return subprocess.Popen([sys.executable, "-m", *words], cwd=ROOT, stdout=file, stderr=file)


def finished(words: list[str], log: Path) -> float:
    """Seconds until a program has ended. Raises UserError where it fails."""
    begin = time.monotonic()
    if status := start(words, log).wait():
        raise UserError(f"{words[0]}: status {status}: {log.read_text().splitlines()[-1]}")
    return time.monotonic() - begin
