"""Everything a training run must remember: written as one set of files, restored from the newest undamaged one."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import blobfile as bf
import torch
from torch import Tensor, nn

from dbae import runtime
from dbae.checkpoint import NAME, complete_sets, load_weights, set_names, step_of
from dbae.config import TrainConfig, UserError
from dbae.io import fingerprint, listdir
from dbae.methods import DiffusionModel
from dbae.tensors import host_copy, read_tensors, write_tensors

FREQ = "freq_"
OPTIMIZERS = {"radam": torch.optim.RAdam, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}

# The rate of the average after k steps, at most the configured one; which of them `auto` is says TrainConfig.resolved
EMA_RULES = {
    "constant": lambda rate, k: rate,
    "warmup": lambda rate, k: min(rate, (1 + k) / (10 + k)),
    "inverse-power": lambda rate, k: min(rate, 1 - k ** (-2 / 3)),
}


class EMA:
    """Exponential moving average: ``module`` holds averaged parameters and, after ``sync_buffers``, live buffers."""

    def __init__(self, model: nn.Module, rate: float, rule: str = "constant") -> None:
        self.rate, self.rule = rate, EMA_RULES[rule]
        self.module = copy.deepcopy(model).eval().requires_grad_(False)
        pairs = [
            pair for pair in zip(self.module.parameters(), model.parameters(), strict=True) if pair[1].requires_grad
        ]
        self.averaged, self.live = [averaged for averaged, _ in pairs], [live for _, live in pairs]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move the average towards the parameters as they are after ``step`` steps."""
        torch._foreach_lerp_(self.averaged, self.live, 1 - self.rule(self.rate, step))

    @torch.no_grad()
    def sync_buffers(self, model: nn.Module) -> None:
        """Copy the live model's buffers: running BatchNorm statistics and spectral-norm vectors are not averaged."""
        for averaged, live in zip(self.module.buffers(), model.buffers(), strict=True):
            averaged.copy_(live)


@dataclass
class TrainState:
    """Model, average, optimizer and loss scale after ``step`` steps over ``images`` images.

    ``objective`` is what training calls: the model, or a module that holds it and networks for training alone.

    Random states are not kept: every random number of training is a function of the seed and the image count. So a run
    that was interrupted ends with the same bits; with three processes or more it may differ by rounding, because the
    order in which torch sums gradients over processes depends on the steps since the start.
    """

    model: DiffusionModel
    ema: EMA
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    objective: nn.Module
    step: int = 0
    images: int = 0

    @classmethod
    def create(cls, model: DiffusionModel, config: TrainConfig, device: torch.device, scaled: bool) -> "TrainState":
        """A fresh state. ``scaled``: fp16, whose gradients need a loss scale (the official initial one is 2^20)."""
        objective = model.objective()
        groups = [{"initial_lr": group.get("lr", config.lr), **group} for group in objective.param_groups()]
        optimizer = OPTIMIZERS[config.optimizer](groups, config.lr, weight_decay=config.weight_decay)
        scaler = torch.amp.GradScaler(device.type, init_scale=2.0**20, enabled=scaled)
        return cls(model, EMA(model, config.ema_rate, config.resolved().ema_rule), optimizer, scaler, objective)

    @classmethod
    def begin(cls, model: DiffusionModel, config: TrainConfig) -> "TrainState":
        """A fresh state of a model on its device, which from now on computes as the configuration says."""
        device = next(model.parameters()).device
        dtype = runtime.amp_dtype(config.precision, device)
        model.use_amp(dtype, config.autocast)
        if config.checkpointing:
            runtime.use_checkpointing(model)
        return cls.create(model, config, device, scaled=dtype == torch.float16)

    def save(self, run_dir: str, prefix: str = "") -> None:
        """Write the set of this step, as ``saving`` describes."""
        self.saving(run_dir, prefix)()

    def saving(self, run_dir: str, prefix: str = "") -> Callable[[], None]:
        """What writes the set of this step from a copy of it, made here and now: training can go on meanwhile.

        The optimizer file, written last, completes the set and holds the checksums of the others. Then ``freq_`` files
        older than the two newest sets are dropped, so that there is one to go back to. The call raises OSError where it
        cannot write and UserError for weights that are not finite; earlier sets stay, and no part of this one.
        """
        self.ema.sync_buffers(self.model)
        weights = {"ema": self.ema.module, "model": self.model}
        counters = {"step": self.step, "images": self.images, "scaler": self.scaler.state_dict()}
        kept = {"optimizer": self.optimizer.state_dict(), "beside": self._beside_model()}
        content = {kind: module.to_official(module.state_dict()) for kind, module in weights.items()}
        return partial(self._write, host_copy(content | {"opt": kept | counters}), run_dir, self.step, prefix)

    def restore_newest(self, run_dir: str) -> str | None:
        """Restore the newest undamaged set of a run folder, on every process the same, and say which.

        None where there is no complete set. Each damaged one is named. Raises UserError where all are.
        """
        sets = runtime.all_gather(complete_sets(run_dir, self.ema.rate))[0]
        problem = None
        for step, prefix in reversed(sets):
            paths = self._paths(run_dir, step, prefix)
            problem = next(filter(None, runtime.all_gather(self._problem_with(paths))), None)
            if problem is None:
                return paths["model"]
            runtime.warn0(f"{problem}; the set of step {step} is left aside")
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

    def _write(self, content: dict[str, dict], run_dir: str, step: int, prefix: str) -> None:
        """Write and give back the memory of file after file."""
        for tensors in (content["model"], content["opt"]["beside"]):
            if not all(values.isfinite().all() for values in tensors.values()):
                raise UserError("the weights are not finite")
        paths = self._paths(run_dir, step, prefix)
        try:
            prints = {kind: write_tensors(paths[kind], content.pop(kind), copied=True) for kind in ("ema", "model")}
            write_tensors(paths["opt"], content["opt"] | {"fingerprints": prints}, copied=True)
        except BaseException:
            for path in filter(bf.exists, paths.values()):
                bf.remove(path)
            raise
        self._drop_old_preemption_sets(run_dir, step)

    def _beside_model(self) -> dict[str, Tensor]:
        """Tensors of the objective's networks that are not the model's."""
        state = {} if self.objective is self.model else self.objective.state_dict()
        return {name: tensor for name, tensor in state.items() if not name.startswith("model.")}

    def _drop_old_preemption_sets(self, run_dir: str, newest: int) -> None:
        sets = [step for step, _ in complete_sets(run_dir, self.ema.rate) if step <= newest]
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
            beside = saved.get("beside", {})  # sets of earlier versions have none
            if beside.keys() != self._beside_model().keys():
                raise ValueError("other networks beside the model")
            self.objective.load_state_dict(beside, strict=False)
            if saved["scaler"]:  # empty after steps in another precision, which needs no scale
                self.scaler.load_state_dict(saved["scaler"])
            self.step, self.images = int(saved["step"]), int(saved["images"])
        except UserError:
            raise
        except (AttributeError, IndexError, KeyError, TypeError, ValueError, RuntimeError) as error:
            raise UserError(f"{paths['opt']}: does not fit the optimizer ({error})") from None
        return paths["model"]

    def _check_fingerprints(self, paths: dict[str, str], noted: dict[str, str]) -> None:
        for kind, expected in noted.items():
            if fingerprint(paths[kind]) != expected:
                raise UserError(f"{paths[kind]}: damaged: it is not the file that was saved with {paths['opt']}")

    def _load_optimizer(self, saved: dict) -> None:
        """Load the optimizer's moments, but keep the settings of this run: a lower learning rate is meant.

        Raises ValueError, KeyError or TypeError for moments that do not fit the parameters.
        """
        trained = [p for group in self.optimizer.param_groups for p in group["params"]]
        if len(saved["state"]) != len(trained):
            raise ValueError(f"expected the state of {len(trained)} parameters, got {len(saved['state'])}")
        self.optimizer.load_state_dict(
            {"state": saved["state"], "param_groups": self.optimizer.state_dict()["param_groups"]}
        )
        for parameter in trained:
            moments = self.optimizer.state[parameter]
            for name in ("exp_avg", "exp_avg_sq"):
                if moments[name].shape != parameter.shape:
                    raise ValueError(f"{name}: expected {list(parameter.shape)}, got {list(moments[name].shape)}")
                if not moments[name].isfinite().all():
                    raise ValueError(f"{name}: expected finite moments, got NaN or infinity")
                moments[name] = torch.empty_like(parameter).copy_(moments[name])  # in the parameter's memory format
