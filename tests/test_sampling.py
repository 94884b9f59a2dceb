"""Sampling: grids, network and noise calls, precision, wrong settings, and the parity vectors of three methods."""

import math
import re
from functools import partial

import numpy as np
import pytest
import torch
from gaussian import BRIDGES, CHAINS, CONTINUOUS, DIFFUSIONS, PROCESSES, SIBLINGS, exact_denoiser, has, over, sibling
from parity import VECTORS, vector

from dbae.diffusion import (
    GRIDS,
    SOLVERS,
    VE,
    Diffusion,
    Epsilon,
    Identity,
    Karras,
    LinearBeta,
    index_grid,
    inverted,
    nfe,
    sample,
    solver_updates,
    time_grid,
)

# Grids


@over(CONTINUOUS)
@pytest.mark.parametrize("steps", [1, 2, 12])
@pytest.mark.parametrize("grid", GRIDS)
def test_grid(process, steps, grid):
    """From the start down to t_min in steps that are even in the grid's scale, then 0."""
    ts = time_grid(process, steps, grid=grid)
    assert ts.shape == (steps + 1,) and ts.dtype == torch.float64 and (ts.diff() < 0).all()
    start = process.T - 1e-4 if process in BRIDGES.values() else process.T
    assert ts[0].item() == pytest.approx(start, rel=1e-9) and ts[-1] == 0
    assert steps == 1 or ts[-2].item() == pytest.approx(process.t_min)
    _, b, c = process.abc(ts[:-1])
    scaled = {"karras": ts[:-1] ** (1 / 7), "uniform": ts[:-1], "logsnr": (b / c).log()}[grid].diff()
    assert torch.allclose(scaled, scaled[:1].expand(steps - 1), rtol=1e-7)


@over(CHAINS)
@pytest.mark.parametrize("steps", [1, 2, 10, 100, 999, 1000])
@pytest.mark.parametrize("grid", ["karras", "logsnr"])
def test_grid_of_a_chain(process, steps, grid):
    ts = time_grid(process, steps, grid=grid)
    assert ts.shape == (steps + 1,) and ts.dtype == torch.int64 and (ts.diff() < 0).all()
    assert ts[0] == 999 and ts[-1] == -1 and (steps == 1 or ts[-2] == 0)
    if steps == 10:  # nearest to even spacing, within the distance of neighbours
        sigma = process.schedule.s_sigma(torch.arange(1000))[1]
        scale = sigma ** (1 / 7) if grid == "karras" else sigma.log()
        even = torch.linspace(scale[-1], scale[0], 10, dtype=torch.float64)
        assert (scale[ts[:-1]] - even).abs().max() <= scale.diff().max() / 2


def test_index_grid_is_diffaes():
    """At the numbers of steps that DiffAE has and no others."""
    process, mapped = CHAINS["linear"], 0
    possible = sibling("diffae/spaced/possible_T").tolist()
    for steps in range(1, 1001):
        if steps not in possible:
            with pytest.raises(ValueError, match=f"steps: expected .* got {steps}"):
                index_grid(process, steps)
            continue
        stride = next(s for s in range(1, 1000) if len(range(0, 1000, s)) == steps)
        indices = list(range(0, 1000, stride))
        down, up = index_grid(process, steps), inverted(process, index_grid(process, steps))
        assert down.tolist() == [*indices[::-1], -1] and up.tolist() == [*indices, 1000]
        assert torch.equal(time_grid(process, steps, grid="uniform"), down) and down.dtype == torch.int64
        if f"diffae/spaced/map_T{steps}" in SIBLINGS.files:
            assert torch.equal(up[:-1], sibling(f"diffae/spaced/map_T{steps}"))
            mapped += 1
    assert mapped


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        (lambda: time_grid(CHAINS["linear"], 37, grid="uniform"), "steps: expected 36 or 38 .* got 37"),
        (lambda: index_grid(CHAINS["linear"], 1001), "steps: expected 1000 .* got 1001"),
        (lambda: time_grid(CHAINS["linear"], 1001), "steps: expected at most 1000"),
        (lambda: inverted(DIFFUSIONS["vp"], torch.zeros(2)), "expected a discrete schedule, got VP"),
        (lambda: time_grid(DIFFUSIONS["vp"], 2, grid="cosine"), "grid: expected one of .* got 'cosine'"),
        (lambda: time_grid(BRIDGES["bridge-vp"], 5, rho=0.1), "rho, steps: expected finite times .* got rho 0.1, 5"),
        (lambda: time_grid(DIFFUSIONS["ve"], 5, rho=1e-3), "rho, steps: .* got rho 0.001"),
        (lambda: time_grid(DIFFUSIONS["ve"], 5, rho=1e300), r"rho, steps: .* got rho 1e\+300"),
        (lambda: time_grid(DIFFUSIONS["vp"], 50_000_000, grid="uniform"), "rho, steps: .* 50000000 steps, uniform"),
        (lambda: time_grid(CHAINS["linear"], 5, rho=1e-3), "rho: expected one that tells .* got 0.001"),
    ],
)
def test_grids_that_do_not_exist(grid, message):
    with pytest.raises(ValueError, match=message):
        grid()


# Calls


CALLS = [
    *((sampler, {}, lambda steps, chain: 0) for sampler in SOLVERS if "ddpm" not in sampler),
    *((sampler, {"churn": 0.5}, lambda steps, chain: steps) for sampler in ("euler", "heun")),
    # Booted, the only step of one leaves none of the state that was drawn
    *((sampler, {"boot": True}, lambda steps, chain: min(1, steps - 1)) for sampler in ("dbim", "dbim2", "dbm2")),
    *(("dbim", {"eta": eta, "boot": eta < 1}, lambda steps, chain: steps - 1) for eta in (0.5, 1.0)),
    *((sampler, {}, lambda steps, chain: steps - 1) for sampler in ("ddpm", "ddpm-large")),
    # The last index of a chain cannot be noised further
    ("edm", {"S_churn": 1e3}, lambda steps, chain: steps - chain),
    *(("edm", {"S_churn": 1e3, **off}, lambda steps, chain: 0) for off in ({"S_min": 1e9}, {"S_noise": 0.0})),
]


@over(PROCESSES, CALLS, "sampler, options, draws")
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_network_and_noise_calls(process, steps, sampler, options, draws):
    """The noise is drawn where its factor is not 0 alone, and ``nfe`` counts the network's calls."""
    calls, drawn = [], []

    def denoise(x, t):
        assert t.shape == (3,) and t.dtype == (torch.int64 if process.discrete else x.dtype) and (t >= 0).all()
        calls.append(t)
        return torch.zeros_like(x)

    def noise(x):
        drawn.append(x)
        return torch.zeros_like(x)

    x_T = torch.ones(3, 2)
    ts = time_grid(process, steps)
    x = sample(denoise, process, x_T, ts, sampler, noise=noise, **options)
    assert x.dtype == x_T.dtype and x.isfinite().all() and (x_T == 1).all()
    assert len(calls) == nfe(sampler, steps, options.get("churn", 0.0))
    assert len(drawn) == draws(steps, process.discrete)
    assert all(values.dtype == torch.float32 for values in drawn)


def test_nfe_of_the_published_commands():
    assert (nfe("euler", 100, 0.0), nfe("euler", 333, 0.33)) == (100, 666)
    assert (nfe("heun", 100, 0.0), nfe("heun", 167, 0.33)) == (199, 500)
    assert (nfe("edm", 18), nfe("dbm2", 10), nfe("one-step", 100)) == (35, 19, 1)


def test_inversion_draws_nothing():
    """Without noise for eta 0, no state is less than finite, and eta cannot run uphill."""
    process, x_0 = CHAINS["linear"], torch.linspace(-1, 1, 6)[:, None]
    ts, seen = inverted(process, index_grid(process, 10)), []
    x_T = sample(lambda x, t: seen.append(t) or x, process, x_0, ts, "ddim", noise=None)
    assert x_T.isfinite().all() and [t[0].item() for t in seen] == list(range(0, 1000, 100))
    for sampler, options in (("ddim", {"eta": 0.5}), ("ddpm", {}), ("edm", {"S_churn": 1.0})):
        with pytest.raises(ValueError, match="ts: expected decreasing times"):
            sample(lambda x, t: x, process, x_0, ts, sampler, **options)
    with pytest.raises(ValueError, match="ts: expected times with noise"):
        sample(lambda x, t: x, process, x_0, torch.tensor([-1, -1, 100]), "ddim")


@over(CHAINS)
@pytest.mark.parametrize("sampler", ["ddim", "dbim2", "dbim3", "dbm2", "edm"])
def test_retraced_inversion(process, sampler):
    """As many calls there as back. DiffAE's inversion errs at both ends, however many steps there are between."""
    x_0, ts = torch.linspace(-1, 1, 6, dtype=torch.float64)[:, None], time_grid(process, 80, grid="logsnr")
    denoise, error = exact_denoiser(process, x_0), {}
    for retraced in (False, True):
        up, seen = inverted(process, ts, retraced), []
        x_T = sample(lambda x, t, seen=seen: seen.append(t[0].item()) or denoise(x, t), process, x_0, up, sampler)
        error[retraced] = (sample(denoise, process, x_T, ts, sampler) - x_0).abs().max().item()
        assert len(seen) == nfe(sampler, 80) and seen[:2] == ([0, 0] if retraced else [0, seen[1]])
    assert error[True] < error[False] * (1.0 if sampler == "ddim" else 0.2)


WRONG = [
    ("vp", "rk4", {}, "sampler: expected one of"),
    ("vp", "euler", {"churn": 1.0}, "churn: expected .* in"),
    ("vp", "euler", {"churn": -0.1}, "churn: expected .* in"),
    ("vp", "euler", {"guidance": float("nan")}, "guidance: expected .* finite"),
    ("vp", "dbim", {"eta": 1.1}, "eta: expected .* in"),
    ("vp", "edm", {"S_churn": -1.0}, "S_churn: expected .* from 0"),
    ("vp", "dbim", {"churn": 0.33}, "churn: expected 0.0 for dbim"),
    ("vp", "heun", {"boot": True}, "boot: expected false for heun"),
    ("vp", "heun", {"order": 3}, "order: expected one of"),
    ("vp", "heun", {"guidance": 2.0}, "guidance: expected 1"),
    ("bridge-vp", "edm", {}, "edm: expected a diffusion"),
    ("linear", "heun", {}, "continuous time, got LinearBeta: edm and ddim"),
    ("bridge-vp", "euler", {"guidance": 1e308}, "euler: expected settings that give finite factors, got .*guidance 1e"),
    ("bridge-ve", "heun", {"guidance": -1e60, "churn": 0.5}, "heun: expected settings that give finite factors"),
    ("ve", "edm", {"S_churn": 1.0, "S_noise": float("inf")}, "edm: .* finite factors, got S_churn 1.0, .*S_noise inf"),
    ("linear", "edm", {"S_churn": 1.0, "S_noise": 1e300}, "edm: expected settings that give finite factors"),
]


@over(PROCESSES, ["euler", "heun", "dbim", "dbim3", "dbm2", "ddpm", "edm", "one-step"])
@pytest.mark.parametrize("steps, rho", [(1, 7.0), (1000, 7.0), (20, 0.5), (20, 1e3)])
def test_extreme_grids_have_finite_factors_or_are_refused(process, steps, rho, sampler):
    try:
        updates = solver_updates(sampler, process, time_grid(process, steps, rho))
    except ValueError as error:
        assert "rho" in str(error)
        return
    assert all(math.isfinite(k) for update in updates for k in (*update.k_x, update.k_T, *update.k_D, update.k_eps))


@pytest.mark.parametrize(("name", "sampler", "options", "message"), WRONG)
def test_wrong_settings(name, sampler, options, message):
    process = PROCESSES[name]
    with pytest.raises(ValueError, match=message):
        sample(lambda x, t: x, process, torch.ones(1, 1), time_grid(process, 2), sampler, **options)


# Precision


def network(process, x_T, preconditioning):
    """A small random denoiser with preconditioning, computed in the precision of ``x_T``."""
    dtype = x_T.dtype
    generator = torch.Generator().manual_seed(0)
    w_1, w_2 = (torch.randn(shape, generator=generator, dtype=torch.float64) / 8 for shape in ((64, 96), (48, 64)))
    frequencies = torch.logspace(0, -4, 32, dtype=torch.float64).to(dtype)

    def denoise(x, t):
        c_skip, c_out, c_in, c_noise = (v[:, None, None, None] for v in preconditioning.scalings(process, t.to(dtype)))
        angles = c_noise.flatten(1) * frequencies
        h = torch.cat([c_in * x, x_T], dim=1).flatten(1) @ w_1.T.to(dtype)
        h = torch.nn.functional.silu(h + torch.cat([angles.cos(), angles.sin()], dim=1))
        return (c_skip * x + c_out * (h @ w_2.T.to(dtype)).view_as(x)).clamp(-1, 1)

    return denoise


PRECONDITIONED = [
    *((f"bridge-{name}", Karras()) for name in ("vp", "ve")),
    *((f"bridge-{name}", Identity()) for name in ("vp", "ve")),
    *((name, Karras(log_scale=0.25)) for name in DIFFUSIONS),
    *((name, Epsilon()) for name in CHAINS),
]


@pytest.mark.parametrize(
    ("name", "preconditioning", "sampler"),
    [(*each, sampler) for each in PRECONDITIONED for sampler in SOLVERS if has(PROCESSES[each[0]], sampler)],
)
@pytest.mark.parametrize(("steps", "grid"), [(4, "karras"), (4, "logsnr"), (100, "logsnr")])
def test_float32_is_as_good_as_float64(name, preconditioning, sampler, steps, grid):
    """The network in float32, or in float64: near the ends the factors of x, x_T and D are large and cancel."""
    process = PROCESSES[name]
    draws = torch.randn(2 * steps + 1, 3, 3, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x_T = draws[-1] * (process.T if name == "ve" else 0.5)
    ts = time_grid(process, steps, grid=grid)
    options = {"euler": {"churn": 0.33}, "heun": {"churn": 0.33}, "edm": {"S_churn": 40.0}}.get(sampler, {})
    settings = options if steps == 100 else {}

    def run(denoiser, dtype):
        start, stream = x_T.to(dtype), iter(draws.to(dtype))
        denoise = denoiser(process, start)
        return sample(denoise, process, start, ts, sampler, noise=lambda x: next(stream), **settings)

    for denoiser in (exact_denoiser_of_images, partial(network, preconditioning=preconditioning)):
        exact, rounded = run(denoiser, torch.float64), run(denoiser, torch.float32)
        assert rounded.dtype == torch.float32
        assert (exact - rounded).abs().max() < 1e-3 * max(1, exact.abs().max())


def exact_denoiser_of_images(process, x_T):
    denoise = exact_denoiser(process, x_T.flatten(1))
    return lambda x, t: denoise(x.flatten(1), t).view_as(x)


# Parity


def toy_denoise(x, t, x_T, y):
    return torch.tanh(0.3 * x + 0.5 * x_T / (1 + t[:, None, None, None]) + y[:, None, None, None])


@pytest.mark.parametrize("name", sorted({k.rsplit("/", 1)[0] for k in VECTORS.files if re.match(r"sampler/v[pe]_", k)}))
def test_parity_with_dbae(name):
    pattern = r"sampler/(\w+?)_(euler|heun)_n(\d+)_churn([\d.]+)_w([\d.]+)_rho([\d.]+)"
    schedule, sampler, steps, churn, guidance, rho = re.fullmatch(pattern, name).groups()
    process, x_T, draws = BRIDGES[f"bridge-{schedule}"], vector("sampler/x_T"), iter(vector("sampler/noise"))
    ts = time_grid(process, int(steps), float(rho))
    denoise = partial(toy_denoise, x_T=x_T, y=vector("sampler/y"))
    settings = {"churn": float(churn), "guidance": float(guidance), "noise": lambda x: next(draws)}
    x = sample(denoise, process, x_T, ts, sampler, **settings)
    assert worst(x, vector(f"{name}/x_0")) < 1e-9
    assert torch.allclose(ts, vector(f"{name}/sigmas"), rtol=1e-12, atol=0)
    assert nfe(sampler, int(steps), float(churn)) == vector(f"{name}/nfe").item()


@pytest.mark.parametrize("name", sorted(key for key in VECTORS.files if key.startswith("grid/")))
def test_grid_parity_with_dbae(name):
    schedule, steps, rho = re.fullmatch(r"grid/(v[pe])/n(\d+)_rho([\d.]+)", name).groups()
    ts = time_grid(BRIDGES[f"bridge-{schedule}"], int(steps), float(rho))
    assert torch.allclose(ts, vector(name), rtol=1e-12, atol=0)


def worst(ours, theirs):
    """Largest difference over the largest value."""
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


def normal(shape, seed):
    return torch.from_numpy(np.random.Generator(np.random.PCG64(seed)).standard_normal(shape))


DIFFAE = {"linear_clip": ("linear", (3, 3, 8, 8), 100), "const0.008_noclip": ("constant", (4, 16), 200)}


def diffae(tag):
    """The toy of the DiffAE vectors: the process, its denoiser, the data and the start."""
    chain, shape, seed = DIFFAE[tag]
    process, y = CHAINS[chain], normal(shape, seed + 3) / 2

    def denoise(x, t):
        t = t.double().view(-1, *[1] * (x.ndim - 1))
        _, b, c = process.abc(t)
        x_0 = (x - c * torch.tanh(0.6 * x + 0.3 * torch.cos(t / 150) + y)) / b
        return x_0.clamp(-1, 1) if tag.endswith("_clip") else x_0

    return process, denoise, normal(shape, seed).clamp(-2, 2) / 2, normal(shape, seed + 2)


@pytest.mark.parametrize("tag", DIFFAE)
def test_parity_with_the_marginal_of_diffae(tag):
    process, _, x_0, _ = diffae(tag)
    t, noise = sibling(f"diffae/toy/{tag}/t"), normal(x_0.shape, DIFFAE[tag][2] + 1)
    assert worst(process.marginal(x_0, t, noise), sibling(f"diffae/toy/{tag}/x_t")) < 1e-9


@pytest.mark.parametrize(
    ("tag", "steps"), [*(("linear_clip", n) for n in (10, 20, 100)), *(("const0.008_noclip", n) for n in (10, 20))]
)
def test_parity_with_the_chains_of_diffae(tag, steps):
    process, denoise, x_0, x_T = diffae(tag)
    down, up = index_grid(process, steps), inverted(process, index_grid(process, steps))
    decoded = sample(denoise, process, x_T, down, "ddim")
    noised = sample(denoise, process, x_0, up, "ddim")
    round_trip = sample(denoise, process, noised, down, "ddim")
    for ours, name in ((decoded, "decode"), (round_trip, "roundtrip")):
        assert worst(ours, sibling(f"diffae/toy/{tag}/{name}_T{steps}/sample")) < 1e-9
    assert worst(noised, sibling(f"diffae/toy/{tag}/invert_T{steps}/x_T")) < 1e-9


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
def test_parity_with_the_stochastic_chain_of_diffae(sampler):
    process, denoise, _, x_T = diffae("linear_clip")
    draws = iter([normal(x_T.shape, 110 + k) for k in range(10)])
    options = {"eta": 1.0} if sampler == "ddim" else {}
    x = sample(denoise, process, x_T, index_grid(process, 10), sampler, noise=lambda x: next(draws), **options)
    assert worst(x, sibling("diffae/toy/linear_clip/decode_T10_eta1/sample")) < 1e-9


def stream(seed):
    """Draws of one generator in order, the first of them the start."""
    generator = np.random.Generator(np.random.PCG64(seed))
    return lambda: torch.from_numpy(generator.standard_normal((2, 3, 4, 4)))


@pytest.mark.parametrize(("steps", "eta"), [(100, 0.0), (100, 0.7), (20, 1.0), (30, 0.0)])
def test_parity_with_the_ddim_of_ddae(steps, eta):
    """On its longer chain, which ends at index 0 with a little noise and draws none there."""
    process, draw = Diffusion(LinearBeta(1001)), stream(21)
    ts = torch.tensor([*range(1, 1001, 1000 // steps)][::-1] + [0])
    name, calls, drawn = f"ddae/toy/ddim/T1000/steps{steps}_eta{eta}_seed21", [], []

    def denoise(x, t):
        calls.append(t[0].item() / 1000)
        _, b, c = (value[:, None, None, None] for value in process.abc(t.double()))
        return ((x - c * torch.tanh(0.5 * x + t.double()[:, None, None, None] / 1000)) / b).clamp(-1, 1)

    def noise(x):
        drawn.append(0)
        return draw() if len(drawn) < len(ts) - 1 else torch.zeros_like(x)

    x = sample(denoise, process, draw(), ts, "ddim", eta=eta, noise=noise)
    assert worst((x + 1) / 2, sibling(f"{name}/x")) < 1e-9
    assert calls == pytest.approx(sibling(f"{name}/times").tolist())


@pytest.mark.parametrize(("steps", "eta"), [(18, 0.0), (18, 1.0), (50, 0.5)])
def test_parity_with_the_edm_of_ddae(steps, eta):
    """It draws at every step, also where no noise is added: those draws are skipped here."""
    process, edm, draw = Diffusion(VE()), Karras(log_scale=0.25), stream(22)
    name, calls = f"ddae/toy/edm/steps{steps}_eta{eta}_seed22", []
    ts, start = time_grid(process, steps), draw() * 80
    draws = iter(
        [value for value, t in zip([draw() for _ in range(steps)], ts.tolist(), strict=False) if 0.01 <= t <= 1]
    )

    def denoise(x, t):
        calls.append(t[0].item())
        c_skip, c_out, c_in, c_noise = (value[:, None, None, None] for value in edm.scalings(process, t))
        return (c_skip * x + c_out * torch.tanh(0.5 * c_in * x + c_noise)).clamp(-1, 1)

    churn = {"S_churn": eta * (2**0.5 - 1) * steps, "S_min": 0.01, "S_max": 1.0, "S_noise": 1.007}
    x = sample(denoise, process, start, ts, "edm", noise=lambda x: next(draws), **churn)
    assert torch.allclose(ts, sibling(f"ddae/edm/grid/default/n{steps}"), rtol=1e-9, atol=0)
    assert worst((x + 1) / 2, sibling(f"{name}/x")) < 1e-9
    assert calls == pytest.approx(sibling(f"{name}/sigma_calls").tolist(), rel=1e-9)
    assert len(calls) == nfe("edm", steps) == sibling(f"{name}/nfe").item()
