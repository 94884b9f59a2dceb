"""Everything a training run must remember: written as one set of files, restored from the newest undamaged one."""

from dataclasses import dataclass

import blobfile as bf
import torch
from torch import nn

from dbae import distributed
from dbae.checkpoint import (
    NAME,
    complete_sets,
    fingerprint,
    load_weights,
    read_tensors,
    set_names,
    step_of,
    to_released_names,
    write_tensors,
)
from dbae.config import TrainConfig, UserError
from dbae.ema import EMA
from dbae.io import listdir, remove_unfinished
from dbae.optimizer import RAdam

FREQ = "freq_"


@dataclass
class TrainState:
    """Model, average, optimizer and loss scale after ``step`` steps over ``images`` images.

    Random states are not kept: every random number of training is a function of the seed and the image count. So a run
    that was interrupted ends with the same bits; with three processes or more it may differ by rounding, because the
    order in which torch sums gradients over processes depends on the steps since the start.
    """

    model: nn.Module
    ema: EMA
    optimizer: RAdam
    scaler: torch.amp.GradScaler
    step: int = 0
    images: int = 0

    @classmethod
    def create(cls, model: nn.Module, config: TrainConfig, device: torch.device, half: bool) -> "TrainState":
        """A fresh state. ``half``: fp16, whose gradients need a loss scale (the official initial one is 2^20)."""
        trained = [p for p in model.parameters() if p.requires_grad]
        average = EMA(model, config.ema_rate, config.ema_warmup)
        optimizer = RAdam(trained, config.lr, config.weight_decay)
        scaler = torch.amp.GradScaler(device.type, init_scale=2.0**20, enabled=half)
        return cls(model, average, optimizer, scaler)

    def save(self, run_dir: str, prefix: str = "") -> None:
        """Write the set of this step; the optimizer file, written last, completes it and vouches for the other two.

        Then drops ``freq_`` files older than the two newest sets, so that there is one to go back to. Raises OSError
        where it cannot write and UserError for weights that are not finite; earlier sets stay, and no part of this one.
        """
        if not all(torch.isfinite(p).all() for p in self.model.parameters()):
            raise UserError("the weights are not finite")
        remove_unfinished(run_dir)
        paths = self._paths(run_dir, self.step, prefix)
        try:
            self._write(paths)
        except BaseException:
            for path in filter(bf.exists, paths.values()):
                bf.remove(path)
            raise
        self._drop_old_preemption_sets(run_dir)

    def restore_newest(self, run_dir: str) -> str | None:
        """Restore the newest undamaged set of a run folder, on every process the same, and say which.

        None where there is no complete set. Each damaged one is named. Raises UserError where all are.
        """
        sets = distributed.all_gather(complete_sets(run_dir, self.ema.rate))[0]
        problem = None
        for step, prefix in reversed(sets):
            paths = self._paths(run_dir, step, prefix)
            problem = next(filter(None, distributed.all_gather(self._problem_with(paths))), None)
            if problem is None:
                return paths["model"]
            distributed.warn0(f"{problem}; the set of step {step} is left aside")
        if problem:
            raise UserError(f"{run_dir}: expected an undamaged checkpoint, none of its {len(sets)} can be used")
        return None

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

    def _write(self, paths: dict[str, str]) -> None:
        self.ema.sync_buffers(self.model)
        weights = {"ema": self.ema.module, "model": self.model}
        prints = {
            kind: write_tensors(paths[kind], to_released_names(module.state_dict())) for kind, module in weights.items()
        }
        counters = {"step": self.step, "images": self.images, "scaler": self.scaler.state_dict()}
        write_tensors(paths["opt"], {"optimizer": self.optimizer.state_dict(), **counters, "fingerprints": prints})

    def _drop_old_preemption_sets(self, run_dir: str) -> None:
        sets = [step for step, _ in complete_sets(run_dir, self.ema.rate) if step <= self.step]
        for name in listdir(run_dir):
            match = NAME.fullmatch(name)
            if match and match["prefix"] and int(match["step"]) < min(sets[-2:], default=0):
                bf.remove(bf.join(run_dir, name))

    def _problem_with(self, paths: dict[str, str]) -> str | None:
        """What keeps a set from being restored; None where it has been."""
        try:
            self._restore(paths)
        except (UserError, OSError) as error:
            return str(error)
        return None

    def _restore(self, paths: dict[str, str]) -> str:
        saved = read_tensors(paths["opt"])
        try:
            self._check_fingerprints(paths, saved.get("fingerprints", {}))  # sets of earlier versions have none
            load_weights(self.model, paths["model"])
            load_weights(self.ema.module, paths["ema"])
            self._load_optimizer(saved["optimizer"])
            if saved["scaler"]:  # empty after steps in another precision, which needs no scale
                self.scaler.load_state_dict(saved["scaler"])
            self.step, self.images = int(saved["step"]), int(saved["images"])
        except UserError:
            raise
        except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
            raise UserError(f"{paths['opt']}: does not fit the optimizer ({error})") from None
        return paths["model"]

    def _check_fingerprints(self, paths: dict[str, str], noted: dict[str, str]) -> None:
        for kind, expected in noted.items():
            if fingerprint(paths[kind]) != expected:
                raise UserError(f"{paths[kind]}: damaged: it is not the file that was saved with {paths['opt']}")

    def _load_optimizer(self, saved: dict) -> None:
        """Load the optimizer's state, but keep the settings of this run: a lower learning rate is meant."""
        settings = [{name: group[name] for name in ("lr", "weight_decay")} for group in self.optimizer.param_groups]
        self.optimizer.load_state_dict(saved)
        for group, values in zip(self.optimizer.param_groups, settings, strict=True):
            group.update(values)
