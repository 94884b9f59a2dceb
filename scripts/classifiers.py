"""Training of classifiers on images that are drawn anew every epoch: mirrored, cropped, and noised.

Linear layers on the features of a frozen model (many of them at once), heads that are told the noise, networks that see
noisy images, and fine-tuned encoders differ in what they are given, and not in how they are trained and kept.
"""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, cos, pi
from typing import IO, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datasets.loader import CachedImages, Order, gather
from dbae import runtime
from dbae.config import UserError
from dbae.io import Generators, image_generators, is_other, lock_folder, require_finite, seed_for
from dbae.progress import progress_bar
from dbae.state import EMA
from dbae.tensors import read_tensors, write_tensors
from scripts.labelled import Rows, batch_of

# Images [n, 3, H, W] in [-1, 1] (or Rows), and where their random numbers come from (None: torch's own, which training
# seeds) -> what each classifier is called with, by its name
Inputs = Callable[[Tensor, Generators], Mapping[str, Sequence[Tensor]]]
Watch = Callable[[Mapping[str, nn.Module]], Mapping[str, float]]
ASKED = 16  # steps after which several processes ask each other for a signal to stop


def cosine(epochs: int, warmup: int = 0, by_step: bool = False) -> Callable[[float], float]:
    """Factor of the learning rate after some epochs: a cosine to 0, after a linear rise over ``warmup`` epochs.

    It changes with every epoch, so that the last one still learns, or ``by_step``.
    """

    def factor(done: float) -> float:
        done = done if by_step else int(done)
        if done < warmup:
            return (done + (0 if by_step else 1)) / warmup
        return (1 + cos(pi * (done - warmup) / (epochs - warmup))) / 2

    return factor


@dataclass(frozen=True)
class Recipe:
    """How classifiers are trained. Batch size and learning rate are those of all processes together."""

    epochs: int
    batch_size: int
    optimizer: Callable[[Any], torch.optim.Optimizer]  # of parameters or groups of them
    factor: Callable[[float], float]  # of its learning rates, by the epochs that are done, a fraction included
    crop: int = 4  # images are padded by as many black pixels on every side, and cropped at random; 0: not
    flip: bool = True
    label_smoothing: float = 0.0
    ema_rate: float = 0.0  # of the average that is evaluated; 0: the last weights
    ema_rule: str = "constant"  # one of EMA_RULES
    scaled: bool = False  # fp16, whose gradients need a loss scale
    seed: int = 0

    def identity(self) -> dict[str, Any]:
        """What is common to all, ready for JSON."""
        return {name: getattr(self, name) for name in ("epochs", "batch_size", "crop", "flip", "seed")}

    def share(self, processes: int) -> int:
        """How many images of a step each process takes. Raises UserError where they cannot be shared evenly."""
        if self.batch_size % processes:
            raise UserError(f"batch_size: expected a multiple of the {processes} processes, got {self.batch_size}")
        return self.batch_size // processes


class Training:
    """Classifiers in training: their weights, average and optimizer after ``step`` steps, kept in the file ``path``.

    Random numbers are functions of the seed and the step, so that an interrupted training ends with the same bits. What
    all depends on is ``settings``, ready for JSON: another training's file is refused.
    """

    def __init__(
        self,
        classifiers: Mapping[str, nn.Module],
        recipe: Recipe,
        device: torch.device,
        path: str,
        settings: Mapping[str, Any],
        groups: list[dict[str, Any]] | None = None,
    ) -> None:
        """``groups`` are the optimizer's, where not all parameters learn alike."""
        self.recipe, self.device, self.path, self.settings = recipe, device, path, dict(settings)
        self.names, self.networks = list(classifiers), nn.ModuleList(classifiers.values()).to(device)
        self.trained = [p for p in self.networks.parameters() if p.requires_grad]
        self.optimizer = recipe.optimizer(groups or self.trained)
        self.rates = [group["lr"] for group in self.optimizer.param_groups]
        self.ema = EMA(self.networks, recipe.ema_rate, recipe.ema_rule) if recipe.ema_rate else None
        self.scaler = torch.amp.GradScaler(device.type, enabled=recipe.scaled)
        self.step, self.history = 0, []
        self._locks: list[IO | None] = []  # of the folder, until this process ends

    @property
    def classifiers(self) -> dict[str, nn.Module]:
        """What is evaluated, by name, in evaluation mode: the average, where there is one."""
        if self.ema:
            self.ema.sync_buffers(self.networks)
        return dict(zip(self.names, (self.ema.module if self.ema else self.networks).eval(), strict=True))

    def lock(self) -> None:
        """Let no other process write to the folder until this one ends. Raises UserError where one does already."""
        runtime.on_first(lambda: self._locks.append(lock_folder(os.path.dirname(self.path))))

    def restore(self, overwrite: bool = False) -> bool:
        """Go on from the file, if there is one. Raises UserError for another training's, unless ``overwrite``."""
        if not os.path.exists(self.path):
            return False
        saved: dict[str, Any] = {}

        def settings() -> Any:
            saved.update(read_tensors(self.path))
            return json.loads(saved.get("settings", "{}"))

        if is_other(self.path, "a training", settings, self.settings, overwrite):
            return False
        self.networks.load_state_dict(saved["networks"])
        self.optimizer.load_state_dict(saved["optimizer"])
        for parameter, moments in self.optimizer.state.items():
            for name, value in moments.items():
                if isinstance(value, Tensor) and value.shape == parameter.shape:  # in the parameter's memory format
                    moments[name] = torch.empty_like(parameter).copy_(value)
        self.scaler.load_state_dict(saved["scaler"])
        if self.ema:
            self.ema.module.load_state_dict(saved["average"])
        self.step, self.history = saved["step"], json.loads(saved["history"])
        return True

    def save(self) -> None:
        content = {"networks": self.networks.state_dict(), "optimizer": self.optimizer.state_dict(), "step": self.step}
        content |= {"average": self.ema.module.state_dict()} if self.ema else {}
        content["scaler"] = self.scaler.state_dict()
        texts = {"history": self.history, "settings": self.settings}
        write_tensors(self.path, content | {name: json.dumps(value) for name, value in texts.items()})

    def run(
        self,
        images: CachedImages | Rows,
        classes: Tensor,
        inputs: Inputs,
        watch: Watch | None = None,
        quiet: bool = False,
    ) -> None:
        """Train to the end on images with their ``classes`` [n]. Raises SystemExit after a signal, saved before.

        ``watch`` gives scores of the classifiers after every epoch; they go into the ``history``.
        """
        recipe, rank, world = self.recipe, runtime.rank(), runtime.world()
        n, share, order = len(images), recipe.share(world), Order(len(images), recipe.seed)
        per_epoch = ceil(n / recipe.batch_size)
        total = recipe.epochs * per_epoch
        with (
            runtime.Stop() as stop,
            progress_bar(total, "step", "train", self.step, enabled=rank == 0 and not quiet) as bar,
        ):
            while self.step < total:
                epoch, k = divmod(self.step, per_epoch)
                first, end = epoch * n + k * recipe.batch_size, (epoch + 1) * n
                batch = order.indices(first, min(first + recipe.batch_size, end))
                rows = batch[rank * share : (rank + 1) * share]
                torch.manual_seed(seed_for(recipe.seed, self.step, rank))  # flips, crops, noise, dropout
                x = batch_of(images, rows, self.device, (recipe.crop, recipe.flip))
                self._take_step(x, gather(classes, rows, self.device), inputs, len(batch), self.step / per_epoch)
                self.step += 1
                bar.update()
                ended = self.step % per_epoch == 0
                if ended:
                    scores = dict(watch(self.classifiers)) if watch else {}
                    self.history.append({"epoch": epoch + 1, **scores})
                    if scores and rank == 0 and not quiet:
                        shown = "  ".join(f"{name} {value:.4f}" for name, value in list(scores.items())[:4])
                        bar.write(f"epoch {epoch + 1}  {shown}")
                signum = stop.signum if world == 1 else 0
                if world > 1 and (ended or self.step % ASKED == 0):  # seldom, as all wait for each other and the GPU
                    signum = max(runtime.all_gather(stop.signum))
                if signum or ended:
                    runtime.on_first(self.save)
                if signum:
                    break
            else:
                return
        runtime.print0(f"stopped: {self.path} holds step {self.step}; the same command goes on")
        runtime.cleanup()
        raise SystemExit(128 + signum)

    def _take_step(self, x: Tensor, classes: Tensor, inputs: Inputs, size: int, done: float) -> None:
        """One step on this process's share of a batch of ``size`` images."""
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * self.recipe.factor(done)
        self.networks.train()
        given = inputs(x, None) if len(x) else {}
        loss = 0 if given else sum(p.sum() for p in self.trained) * 0  # of an empty share
        for name, network in zip(self.names, self.networks, strict=True):
            if given:
                smoothing = self.recipe.label_smoothing
                each = F.cross_entropy(network(*given[name]), classes, reduction="sum", label_smoothing=smoothing)
                loss = loss + each / size
        self.optimizer.zero_grad()
        self.scaler.scale(loss).backward()
        for parameter in self.trained if runtime.world() > 1 else ():
            runtime.mean(parameter.grad).mul_(runtime.world())
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.ema:
            self.ema.update(self.step + 1)


@torch.no_grad()
def logits(
    classifiers: Mapping[str, nn.Module],
    images: CachedImages | Rows,
    inputs: Inputs,
    device: torch.device,
    batch_size: int = 256,
    seed: int = 0,
    desc: str = "test",
) -> dict[str, Tensor]:
    """Outputs [n, classes] of the classifiers on the CPU, for images as they are; image i draws from (seed, i).

    Every process computes its share, and all get the whole. Raises UserError where an output is not finite.
    """
    rank, world = runtime.rank(), runtime.world()
    mine = range(rank, len(images), world)
    parts: list[dict[str, Tensor]] = []
    with progress_bar(len(images), "image", desc, enabled=rank == 0 and bool(desc)) as bar:
        for first in range(0, len(mine), batch_size):
            rows = list(mine[first : first + batch_size])
            x = batch_of(images, rows, device)
            given = inputs(x, image_generators(seed, rows))
            parts.append({name: network(*given[name]).float() for name, network in classifiers.items()})
            bar.update(min(world * len(rows), len(images) - bar.n))
    share = {name: torch.cat([part[name] for part in parts]).cpu() for name in classifiers if parts}
    mixed = runtime.all_gather(share)
    found = {name: torch.empty(len(images), mixed[0][name].shape[1]) for name in classifiers}
    for r, part in enumerate(mixed):
        for name, values in part.items():
            found[name][r::world] = values
    return {name: require_finite(f"outputs of the {name}", output) for name, output in found.items()}


def accuracies(outputs: Mapping[str, Tensor], classes: Tensor) -> dict[str, float]:
    """Share of images whose largest output is that of their class, by name."""
    return {name: (output.argmax(dim=1) == classes).double().mean().item() for name, output in outputs.items()}
