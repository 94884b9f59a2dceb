"""What every method shares.

A method is a process over a noise schedule, a preconditioning, a network, and what the network is conditioned on. It
states these in a subclass, with its rows of presets (``Presets``); the rest of the repository uses only this class and,
for methods with an encoder, ``AutoEncoder``.

Images are [N, 3, H, W] in [-1, 1], float32. Time runs from the data to ``process.T``.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dbae.config import SampleConfig, UserError
from dbae.diffusion import (
    DEFAULTS,
    SOLVERS,
    Preconditioning,
    Process,
    Update,
    integrate,
    inverted,
    nfe,
    solver_updates,
    time_grid,
)
from dbae.io import Generators, randn_like, to_float
from dbae.methods.networks import Networks
from dbae.methods.presets import Presets

Cond = dict[str, Tensor]
Scalings = tuple[Tensor, ...]  # c_skip, c_out, c_in, c_noise, each [N]; all but the last may be one number
BESIDE = ("x_T", "conds_mean", "conds_std")  # what official files hold beside the tensors of networks


class DiffusionModel(Networks, Presets):
    """A denoising network around a process. Subclasses set what follows, and define ``condition`` and ``network``."""

    SAMPLING: ClassVar[SampleConfig] = SampleConfig()  # how the method is sampled unless told otherwise
    OFFICIAL_SAMPLING: ClassVar[tuple[SampleConfig, ...]] = ()  # of its published reconstructions
    FEW_STEPS: ClassVar[SampleConfig | None] = None  # of few network calls, where one was found to be as good
    TARGETS: ClassVar[str | None] = None  # kind of label that training conditions on: binary, class or real
    FEATURES: ClassVar[tuple[str, float]]  # the block, and the time, whose features stand for an image
    FEATURE_TIMES: ClassVar[tuple[float, ...]] = ()  # times whose features are compared, where the method names some
    BOUNDED: ClassVar[bool] = True  # whether x_0 lies in [-1, 1]: estimates of it are clamped in sampling
    INVERTS: ClassVar[bool] = False  # whether reconstruction infers x_T by inversion

    process: Process
    precond: Preconditioning

    # Of a method

    def condition(self, x0: Tensor | None = None, y: Tensor | None = None) -> Cond:
        """What the network sees beside x_t, for images x0 [N, 3, H, W] with targets y."""
        raise NotImplementedError

    def network(self, x: Tensor, c_noise: Tensor, blocks: Sequence[str] | None = None, **cond: Tensor) -> Any:
        """The network's output like x_t for the scaled x_t; with ``blocks`` their activations by name."""
        raise NotImplementedError

    # Shared by all methods

    def denoise(self, x_t: Tensor, t: Tensor, scalings: Scalings | None = None, **cond: Tensor) -> Tensor:
        """Estimate of x_0 at times t [N]: the preconditioned network, not clamped. The only place that calls it.

        ``scalings`` of the preconditioning are those at t, unless they are at hand or x_t is of another process.
        """
        c_skip, c_out, c_in, c_noise = scalings or self.precond.scalings(self.process, t)
        F_x = self.network(_per_image(c_in, x_t) * x_t, c_noise, **cond)
        return _per_image(c_skip, x_t) * x_t + _per_image(c_out, x_t) * F_x

    def predict_noise(self, x_t: Tensor, t: Tensor, **cond: Tensor) -> Tensor:
        """The noise in x_t that the estimate of x_0 implies, ``(x_t - a x_T - b D) / c``.

        It is the output of a network that predicts noise.
        """
        D_x = self.denoise(x_t, t, **cond)
        zero = torch.zeros_like(x_t)
        mean = self.process.marginal(D_x, t, zero, cond.get("x_T", zero))
        _, _, c = self.process.abc(t)
        return (x_t - mean) / _per_image(c, x_t)

    def draw_times(self, n: int, device: torch.device) -> Tensor:
        """Times [n] of training."""
        return self.process.draw_times(n, device)

    def loss(
        self,
        x0: Tensor,
        y: Tensor | None = None,
        t: Tensor | None = None,
        noise: Tensor | None = None,
        cond: Cond | None = None,
    ) -> Tensor:
        """Training loss [N], unreduced: ``mean(penalty(sqrt(w(t)) (D - x_0)))``.

        What is conditioned on, t and noise are made and drawn unless given. Gradients reach all networks through the
        state x_t and through what the denoiser is conditioned on.
        """
        cond = self.condition(x0, y) if cond is None else cond
        t = self.draw_times(len(x0), x0.device) if t is None else t
        noise = torch.randn_like(x0) if noise is None else noise
        x_t = self.process.marginal(x0, t, noise, cond.get("x_T"))
        scalings = self.precond.scalings(self.process, t)
        D_x = self.denoise(x_t, t, scalings, **cond)
        _, c_out, *_ = scalings  # 1 / c_out^2 is the weight
        return self.penalty((D_x - x0) / _per_image(c_out.abs(), x0)).flatten(1).mean(dim=1)

    forward = loss  # so that one wrapped call covers all networks
    penalty = staticmethod(torch.square)  # of the weighted error

    def objective(self) -> nn.Module:
        """What training calls with (x0, y) for a loss [N], and whose ``param_groups`` it trains: the model itself.

        Or a module with the model under ``model``, and networks beside it that training alone needs: they are kept with
        the optimizer, not with the weights.
        """
        return self

    def param_groups(self) -> list[dict[str, Any]]:
        """Groups of parameters as torch's optimizers take them; what a group does not set is set for the run."""
        return [{"params": [p for p in self.parameters() if p.requires_grad]}]

    def prepare(self, batch: Tensor, flip: bool) -> Tensor:
        """Training images from what a loader yields, uint8 [N, 3, H, W]: floats, half of them mirrored if asked."""
        x = to_float(batch)
        return torch.where(torch.rand(len(x), 1, 1, 1, device=x.device) < 0.5, x.flip(3), x) if flip else x

    def sampling_process(self, sampling: SampleConfig) -> Process:
        """The process that the sampler takes x_t to be of: that of training, unless official code differs."""
        return self.process

    def sample(self, x_start: Tensor, cond: Cond, sampling: SampleConfig, generator: Generators = None) -> Tensor:
        """Images in [-1, 1] from the state ``x_start`` at the first time of the grid.

        The estimate of x_0 is clamped to [-1, 1] at every call. Noise comes from ``generator``, one or one per image.
        What is not finite becomes NaN, as clamping would hide an infinity. Raises UserError as ``updates`` does.
        """
        process = self.sampling_process(sampling)
        return self._bounded(self._integrate(x_start, cond, self.updates(sampling), process, generator))

    def invert(self, x0: Tensor, cond: Cond, sampling: SampleConfig, generator: Generators = None) -> Tensor:
        """The state x_T from which ``sample`` leads back to about x0 [N, 3, H, W]: DDIM's inversion.

        The sampler's own updates on the times that ``inverted`` gives; for ``xT="random"`` noise. Raises UserError as
        ``updates`` does.
        """
        if sampling.xT == "random":
            return randn_like(x0, generator)
        return self._integrate(x0, cond, self.updates(sampling, invert=True), self.sampling_process(sampling))

    @torch.no_grad()
    def reconstruction(
        self, x: Tensor, sample: bool | None = None, generator: Generators = None, **settings: Any
    ) -> tuple[Tensor, Tensor]:
        """The states x_T that are inferred from images x, and the images that they lead back to.

        ``settings`` are fields of SampleConfig; ``sample`` is of a stochastic encoder.
        """
        sampling, cond = self.sampling(**settings), self.condition(x)
        x_T = self.invert(self.checked(x), cond, sampling, generator)
        return x_T, self.sample(x_T, cond, sampling, generator)

    def updates(self, sampling: SampleConfig, invert: bool = False) -> list[Update]:
        """What the sampler does in every step; or its inversion, of ``inversion_steps`` where there are some.

        Raises UserError for a sampler, or steps of a grid, that the process does not have, for settings so extreme that
        times or factors are not finite, and for the inversion of a sampler that draws noise.
        """
        steps, process = (invert and sampling.inversion_steps) or sampling.steps, self.sampling_process(sampling)
        try:
            ts = time_grid(process, steps, sampling.rho, sampling.grid)
            ts = inverted(process, ts, sampling.xT == "retraced") if invert else ts
            return solver_updates(sampling.sampler, process, ts, **sampling.solver_settings)
        except (ValueError, ArithmeticError) as error:
            raise UserError(f"inversion: {error}" if invert else str(error)) from None

    def check_sampling(self, sampling: SampleConfig) -> None:
        """Raise UserError as ``updates`` does, and for settings of an inversion that the method does not have."""
        self.updates(sampling)
        if self.INVERTS and sampling.xT != "random":
            self.updates(sampling, invert=True)
        elif not self.INVERTS and (sampling.xT != "inferred" or sampling.inversion_steps):
            raise UserError(f"xT, inversion_steps: {self.method} infers x_T without an inversion")

    @classmethod
    def nfe(cls, sampling: SampleConfig) -> int:
        """Network calls per reconstructed image, with those of an inversion."""
        steps = [sampling.steps]
        if cls.INVERTS and sampling.xT != "random":
            steps.append(sampling.inversion_steps or sampling.steps)
        return sum(nfe(sampling.sampler, n, sampling.churn) for n in steps)

    @torch.no_grad()
    def _integrate(
        self, x: Tensor, cond: Cond, updates: Sequence[Update], process: Process, generator: Generators = None
    ) -> Tensor:
        # The scalings of all calls are computed on the host, and multiply as numbers do
        times = [update.t for update in updates if update.t is not None]
        on_host = torch.tensor(times, dtype=None if process.discrete else x.dtype)
        calls = zip(*self.precond.scalings(process, on_host), strict=True)

        def denoise(x_t: Tensor, t: Tensor) -> Tensor:
            *factors, c_noise = next(calls)
            c_noise = torch.full(t.shape, c_noise.item(), dtype=c_noise.dtype, device=x_t.device)
            return self._bounded(self.denoise(x_t, t, (*factors, c_noise), **cond))

        return integrate(denoise, x, updates, lambda x: randn_like(x, generator))

    def _bounded(self, x: Tensor) -> Tensor:
        """Within [-1, 1] where x_0 is, with NaN for what is not finite, as clamping would hide an infinity."""
        return torch.where(x.isfinite(), x, torch.nan).clamp(-1, 1) if self.BOUNDED else x

    @classmethod
    def sampling(cls, **settings: Any) -> SampleConfig:
        """The method's own way to sample with some settings changed, fields of SampleConfig. UserError for others.

        What another sampler does not read has its neutral value again.
        """
        unknown = settings.keys() - {f.name for f in dataclasses.fields(SampleConfig)}
        if unknown:
            raise UserError(f"sampling: unknown setting {min(unknown)!r}")
        sampler = SOLVERS.get(settings.get("sampler", cls.SAMPLING.sampler))
        neutral = {name: value for name, value in DEFAULTS.items() if sampler and name not in sampler.reads}
        return dataclasses.replace(cls.SAMPLING, **{**neutral, **settings})

    @classmethod
    def result_name(cls, sampling: SampleConfig) -> str:
        """Name of a folder of results: sampler, steps, where an inversion starts, and what is not the default."""
        settings = {k: v for k, v in sampling.as_dict().items() if v != getattr(cls.SAMPLING, k)}
        settings = {"xT": sampling.xT, **settings} if cls.INVERTS else settings
        rest = (f"{k}={str(v).lower()}" for k, v in settings.items() if k not in ("sampler", "steps"))
        return "_".join([sampling.sampler, str(sampling.steps), *rest])

    @torch.no_grad()
    def generate(self, n: int, generator: Generators = None, **settings: Any) -> Tensor:
        """``n`` images from noise; ``settings`` are fields of SampleConfig."""
        size, device = self.config.image_size, next(self.parameters()).device
        noise = randn_like(torch.empty(n, 3, size, size, device=device), generator)
        *_, std = self.process.abc(torch.tensor(self.process.T, dtype=torch.float64))
        return self.sample(noise * std.item(), self.condition(), self.sampling(**settings), generator)

    def preview(self, images: Tensor) -> list[tuple[str, Tensor]]:
        """Labelled rows of pictures in [-1, 1] that show how training goes; ``images`` are of the data set."""
        generator = torch.Generator().manual_seed(0)
        return [("sample", self.generate(len(images), generator, steps=20))]

    def activations(
        self,
        x0: Tensor,
        t: float | Tensor,
        blocks: Sequence[str] | None = None,
        noise: Tensor | None = None,
        generator: Generators = None,
        cond: Cond | None = None,
    ) -> dict[str, Tensor]:
        """Activations of the network's ``blocks`` (default: all) for images noised to time t, averaged over H and W.

        float32 [N, C] by name, with their gradient, which ``features`` leaves out; the network stops after the last
        block asked for. What is conditioned on is made of the images unless given. UserError for unknown names.
        """
        blocks = list(dict.fromkeys(self.block_names() if blocks is None else blocks))
        self.check_blocks(blocks)
        cond = self.condition(x0) if cond is None else cond
        t = torch.as_tensor(t, device=x0.device).expand(len(x0))
        t = t.long() if self.process.discrete else t
        noise = randn_like(x0, generator) if noise is None else noise
        x_t = self.process.marginal(x0, t, noise, cond.get("x_T"))
        _, _, c_in, c_noise = self.precond.scalings(self.process, t)
        found = self.network(_per_image(c_in, x_t) * x_t, c_noise, blocks=tuple(blocks), **cond)
        return {name: found[name].float().mean(dim=(2, 3)) for name in blocks}

    features = torch.no_grad()(activations)  # of a network that is frozen

    def encode(self, x: Tensor, generator: Generators = None) -> Tensor:
        """Image representation [N, d] used by probes: here the features of the method's block and time."""
        block, t = self.FEATURES
        return self.features(x, t, [block], generator=generator)[block]

    def encode_arrays(self, x: Tensor, generator: Generators = None) -> dict[str, Tensor]:
        """What is computed once per image and can be kept; ``code`` makes the code of it."""
        return {"z": self.encode(x, generator)}

    def code(self, arrays: Mapping[str, Tensor], noise: Tensor | None = None) -> Tensor:
        """The code z [N, d] in what ``encode_arrays`` gave; ``noise`` is for a stochastic encoder."""
        return arrays["z"]

    # Files

    @staticmethod
    def to_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A state dict of this class under the tensor names of the official release."""
        return dict(state)

    @staticmethod
    def from_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The inverse."""
        return dict(state)

    @classmethod
    def own_tensors(cls, state: Mapping[str, Tensor], path: str) -> dict[str, Tensor]:
        """Of the tensors of an official file, which may hold other models as well, those of this one."""
        return dict(state)

    @classmethod
    def official_config(cls, state: Mapping[str, Tensor], path: str, dataset: str | None, **fields: Any) -> Any:
        """The configuration of an official file, from its tensors' shapes and the ``fields`` that were typed."""
        raise UserError(f"{path}: expected a config.json beside it, there is none")


def _per_image(coefficient: Tensor, x: Tensor) -> Tensor:
    """[N] -> [N, 1, ...], to multiply x [N, ...]; what is one number for all images stays so."""
    return coefficient.view(-1, *[1] * (x.ndim - 1)) if coefficient.ndim else coefficient
