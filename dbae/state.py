"""Everything a training run must remember: written as one set of files, restored from the newest complete one."""

from dataclasses import dataclass

import blobfile as bf
import torch
from torch import nn

from dbae.checkpoint import (
    NAME,
    complete_sets,
    load_weights,
    read_tensors,
    set_names,
    step_of,
    to_released_names,
    write_tensors,
)
from dbae.config import TrainConfig
from dbae.ema import EMA
from dbae.errors import UserError
from dbae.files import listdir

FREQ = "freq_"


@dataclass
class TrainState:
    """Model, average, optimizer and loss scale after ``step`` steps over ``images`` images.

    Random states are not kept: every random number of training is a function of the seed and the image count.
    """

    model: nn.Module
    ema: EMA
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    step: int = 0
    images: int = 0

    @classmethod
    def create(cls, model: nn.Module, config: TrainConfig, device: torch.device, half: bool) -> "TrainState":
        """A fresh state. ``half``: fp16, whose gradients need a loss scale (the official initial one is 2^20)."""
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.RAdam(trained, lr=config.lr, weight_decay=config.weight_decay)
        scaler = torch.amp.GradScaler(device.type, init_scale=2.0**20, enabled=half)
        return cls(model, EMA(model, config.ema_rate, config.ema_warmup), optimizer, scaler)

    def save(self, run_dir: str, prefix: str = "") -> None:
        """Write the set of this step; the optimizer file, written last, completes it. Drops older ``freq_`` sets."""
        paths = self._paths(run_dir, self.step, prefix)
        self.ema.sync_buffers(self.model)
        write_tensors(paths["ema"], to_released_names(self.ema.module.state_dict()))
        write_tensors(paths["model"], to_released_names(self.model.state_dict()))
        counters = {"step": self.step, "images": self.images, "scaler": self.scaler.state_dict()}
        write_tensors(paths["opt"], {"optimizer": self.optimizer.state_dict(), **counters})
        for name in listdir(run_dir):
            match = NAME.fullmatch(name)
            if match and match["prefix"] and int(match["step"]) < self.step:
                bf.remove(bf.join(run_dir, name))

    def restore_newest(self, run_dir: str) -> str | None:
        """Restore the newest complete set of a run folder and say which; None where there is none."""
        sets = complete_sets(run_dir, self.ema.rate)
        return self._restore(self._paths(run_dir, *sets[-1])) if sets else None

    def restore_from(self, path: str) -> str:
        """Go on from ``path``: with its set's average, optimizer and counters, or from its weights alone.

        The average starts from the same weights in the second case. Raises UserError for a file that does not fit.
        """
        match = NAME.fullmatch(bf.basename(path))
        if match:
            paths = self._paths(bf.dirname(path), step_of(path), match["prefix"] or "")
            if all(bf.exists(sibling) for sibling in paths.values()):
                return self._restore(paths)
        load_weights(self.model, path)
        load_weights(self.ema.module, path)
        return f"{path} (weights alone: the set beside it is not complete)"

    def _paths(self, run_dir: str, step: int, prefix: str) -> dict[str, str]:
        return {kind: bf.join(run_dir, name) for kind, name in set_names(step, self.ema.rate, prefix).items()}

    def _restore(self, paths: dict[str, str]) -> str:
        load_weights(self.model, paths["model"])
        load_weights(self.ema.module, paths["ema"])
        saved = read_tensors(paths["opt"])
        try:
            self.optimizer.load_state_dict(saved["optimizer"])
            self.scaler.load_state_dict(saved["scaler"])
            self.step, self.images = saved["step"], saved["images"]
        except (KeyError, ValueError, RuntimeError) as error:
            raise UserError(f"{paths['opt']}: does not fit the optimizer ({error})") from None
        return paths["model"]
