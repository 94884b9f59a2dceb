"""The linear probe of blocks at noise levels: features, heads, the choice of a cell, and the command."""

import json
from contextlib import nullcontext
from functools import partial

import numpy as np
import pytest
import tiny
import torch
from conftest import ROOT
from PIL import Image

from benchmarks import linear_grid, timing
from datasets import Labelled, build
from datasets.labels import Targets
from dbae.config import UserError
from dbae.methods.ddae import DDAE, EDMDDAE
from dbae.methods.ddae_config import DDPMConfig, EDMConfig
from eval.heads import Descent, Solver, chance, score
from eval.linear import multinomial_regression
from eval.probe import Part
from scripts import linear, linear_report
from scripts.classifiers import cosine
from scripts.encoding import array_encoder
from scripts.linear_cached import part_of
from scripts.linear_official import features_of, recipe_of
from scripts.linear_options import Cell, LinearOptions, cells_of, default_times, time_name
from scripts.trained import TrainedModel

SMALL = {"image_size": 8, "num_channels": 32, "channel_mult": (1, 1), "num_res_blocks": 1, "attention_sizes": (4,)}
SMALL |= {"dropout": 0.0, "feature_block": "out_2"}
COLOURS = {"blue": (20, 20, 230), "green": (20, 230, 20), "red": (230, 20, 20)}
BLOCKS = [f"out_{k}" for k in range(1, 5)]


def model(cls=DDAE, config=DDPMConfig):
    torch.manual_seed(0)
    return cls(config(**SMALL)).eval().requires_grad_(False)


def trained(made, **changes):
    return TrainedModel(made, made.SAMPLING, **changes)


@pytest.fixture(scope="module")
def run_of(tmp_path_factory):
    """EMA files of run folders with a small DDAE and a small stochastic DBAE."""
    ddae, dbae = tmp_path_factory.mktemp("ddae"), tmp_path_factory.mktemp("dbae")
    return {"ddae": tiny.written(ddae, model()), "dbae": tiny.written(dbae, tiny.model(stochastic=True))}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Sixty images of three colours with noise, which are the classes, and two attributes."""
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    classes, attributes = "file,colour\n", "file,left,third\n"
    for i in range(60):
        name, colour = list(COLOURS.items())[i % 3]
        pixels = np.clip(np.array(colour) + rng.normal(0, 60, (8, 8, 3)), 0, 255)
        Image.fromarray(pixels.astype(np.uint8)).resize((32, 32)).save(folder / f"{i:02d}.png")
        classes += f"{i:02d}.png,{name}\n"
        attributes += f"{i:02d}.png,{i % 2},{i % 3 == 0:d}\n"
    (folder / "labels.csv").write_text(classes)
    (folder / "attributes.csv").write_text(attributes)
    return folder


def words(path, photos, out, *more):
    data = [f"--probe_data=folder:{photos}", f"--out={out}", "--device=cpu", "--dataset=toyfaces"]
    if "ddae" in str(path):
        data = [*data[:-1], "--config=DDPM_toyfaces", "--image_size=8", "--feature_block=out_2"]
    return [*data, f"--model_path={path}", *map(str, more)]


def report_of(out, name):
    return json.loads((out / "sample_20/linear" / f"{name}.json").read_text())


def planted(monkeypatch, where):
    """Let features of all cells be noise but for one, which has the image's colour."""

    def features(self, x, t, blocks, generators=None, draws=1):
        calls.append((t, len(x)))
        noise = torch.stack([torch.randn(4, generator=g) for g in generators]) if generators else torch.randn(len(x), 4)
        mean = torch.cat([x.mean(dim=(2, 3)), noise[:, :1]], dim=1)
        return {block: mean if (block, t) == where else noise.roll(i, 1) for i, block in enumerate(blocks)}

    calls = []
    monkeypatch.setattr(TrainedModel, "features", features)
    return calls


# Features


def test_blocks_come_from_one_call_and_equal_those_of_single_ones():
    made, x = model(), torch.randint(256, (3, 3, 8, 8)).byte()
    calls, network = [], made.network
    made.network = lambda *args, **how: calls.append(how["blocks"]) or network(*args, **how)
    several = array_encoder(trained(made, seed=3), BLOCKS[:3], 11)(x, [5, 6, 7])
    assert calls == [tuple(BLOCKS[:3])]
    for block in BLOCKS[:3]:
        alone = array_encoder(trained(made, seed=3), block, 11)(x, [5, 6, 7])["z"]
        assert torch.allclose(several[block], alone, atol=1e-6)
    inputs = features_of(trained(made), [Cell(b, t) for t in (1, 11) for b in BLOCKS], list("abcdefgh"))
    calls.clear()
    assert list(inputs(tiny.images(2)[..., :8, :8], None)) == list("abcdefgh") and calls == [tuple(BLOCKS)] * 2


def test_the_network_stops_after_the_last_block_asked_for():
    made, ran = model(), []
    for name, block in made.unet.named_blocks():
        block.register_forward_hook(lambda *_, name=name: ran.append(name))
    features_of(trained(made), [Cell("out_1", 1), Cell("out_2", 1)], "ab")(torch.zeros(1, 3, 8, 8), None)
    assert ran == ["out_1", "out_2"]


def test_draws_are_averaged():
    made, x = model(), torch.randint(256, (2, 3, 8, 8)).byte()
    features = array_encoder(trained(made), ["out_1"], 500, draws=2)(x, [0, 1])["out_1"]
    generators = [torch.Generator().manual_seed(1), torch.Generator().manual_seed(2)]
    one, two = (trained(made).features(torch.zeros(2, 3, 8, 8), 500, ["out_1"], generators)["out_1"] for _ in range(2))
    again = [torch.Generator().manual_seed(1), torch.Generator().manual_seed(2)]
    both = trained(made).features(torch.zeros(2, 3, 8, 8), 500, ["out_1"], again, draws=2)["out_1"]
    assert torch.allclose(both, (one + two) / 2, atol=1e-6) and not torch.allclose(one, two, atol=1e-3)
    assert not torch.allclose(features, array_encoder(trained(made), ["out_1"], 500)(x, [0, 1])["out_1"], atol=1e-3)


def test_blocks_of_a_stochastic_autoencoder_do_not_depend_on_the_batch():
    """Its network is told a code that is drawn from each image's own random numbers."""
    encode = array_encoder(trained(tiny.model(stochastic=True)), ["output_blocks.1"], 0.5)
    x = ((tiny.images(3) + 1) * 127.5).byte()
    whole = encode(x, [0, 1, 2])["output_blocks.1"]
    assert torch.allclose(whole[2:], encode(x[2:], [2])["output_blocks.1"], atol=1e-5)
    assert not torch.allclose(whole[2:], encode(x[2:], [3])["output_blocks.1"], atol=1e-5)


# Cells


def options(**changes):
    return LinearOptions(dataset="toyfaces", model_path="none.pt", **changes)


def test_cells_of_a_grid_and_their_names():
    ddpm, edm, dbae = model(), model(EDMDDAE, EDMConfig), tiny.model()
    grid = cells_of(ddpm, options(grid=True))
    assert grid == [Cell(block, time) for time in (1, 11, 21) for block in BLOCKS]
    assert cells_of(ddpm, options()) == [Cell("out_2", 11)]
    assert cells_of(ddpm, options(blocks=("out_3", "out_1"), times=(5,))) == [Cell("out_1", 5), Cell("out_3", 5)]
    assert [time_name(edm, cell.time) for cell in cells_of(edm, options(grid=True, blocks=("out_1",)))] == list("345")
    (cell,) = cells_of(edm, options(edm_steps=(4,), blocks=("out_1",)))
    assert cell.time == pytest.approx(0.05995, abs=1e-5) and time_name(edm, 0.05) == "0.05"
    assert cells_of(dbae, options()) == [Cell("z")]
    codes = cells_of(dbae, options(grid=True))
    assert codes[-1] == Cell("z") and len(codes) == 3 * len(dbae.block_names()) + 1


def test_default_times_of_other_methods_have_the_noise_of_edms_grid():
    for schedule in ("vp", "ve"):
        made = tiny.model(schedule=schedule)
        _, b, c = made.process.abc(torch.tensor(default_times(made), dtype=torch.float64))
        assert torch.allclose(c / b, torch.tensor(EDMDDAE.FEATURE_TIMES, dtype=torch.float64), rtol=0.02)


# Heads


def rows_of(n=400, d=6, classes=3, seed=0):
    rng = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % classes
    z = torch.randn(n, d, generator=rng) + 1.5 * torch.eye(classes, d)[y]
    return Part(lambda epoch: z, torch.nn.functional.one_hot(y, classes).float())


@pytest.mark.parametrize("how", ["exact", "ridge"])
def test_a_head_is_fitted_again_with_the_penalty_that_was_chosen(how):
    train, valid, test = (rows_of(seed=seed) for seed in range(3))
    solver = Solver("class", how)
    head = solver.fit(train, valid)
    assert score("class", head, test, "test") > 0.7 and len(set(head.penalties)) == 1
    same = solver.refit(head, train)
    assert torch.allclose(same.layer.weight, head.layer.weight, atol=2e-3)
    alone = Solver("class", how, head.penalties[:1]).fit(valid, train)  # nothing left to choose
    assert torch.allclose(solver.refit(head, valid).layer.weight, alone.layer.weight, atol=1e-4)


def test_the_exact_head_is_the_multinomial_regression():
    train, valid = rows_of(seed=0), rows_of(seed=1)
    head = Solver("class", "exact").fit(train, valid)
    layer, penalties = multinomial_regression(
        train.draw(0), train.targets, valid.draw(0), valid.targets, (1e-1, 1e-2, 1e-3, 1e-4)
    )
    assert list(head.penalties) == penalties and torch.allclose(head.layer.weight, layer.weight)


def test_attributes_have_penalties_of_their_own():
    train, valid, both = (rows_of(seed=seed) for seed in range(3))
    noise = torch.randint(2, (400, 1), generator=torch.Generator().manual_seed(0)).float()
    parts = [Part(p.draw, torch.cat([p.targets, noise.roll(i, 0)], dim=1)) for i, p in enumerate((train, valid, both))]
    head = Solver("binary", "exact").fit(*parts[:2])
    assert len(head.penalties) == 4
    again = Solver("binary", "exact").refit(head, parts[2])
    for i, penalty in enumerate(head.penalties):
        alone = Solver("binary", "exact", [penalty]).fit(parts[2], parts[1])
        assert torch.allclose(again.layer.weight[i], alone.layer.weight[i], atol=2e-3)


def test_adam_has_the_official_learning_rates(monkeypatch):
    rates, step = [], torch.optim.Adam.step
    monkeypatch.setattr(torch.optim.Adam, "step", lambda o: rates.append(o.param_groups[0]["lr"]) or step(o))
    head = Descent("class", 15, 400, 1e-3, cosine(15)).fit(rows_of())
    expected = np.load(ROOT / "tests/golden/ddae.npz")["lr/probe_15_base0.001"]
    assert np.allclose(rates, expected, rtol=1e-9) and head.penalties == ()
    official = recipe_of(options(probe="official"))
    assert official.batch_size == 512 and official.epochs == 15 and (official.crop, official.flip) == (4, True)
    assert [4e-3 * official.factor(e + 0.5) for e in range(15)] == pytest.approx(list(4 * expected))
    assert official.optimizer([torch.nn.Parameter(torch.zeros(1))]).defaults["lr"] == 4e-3


def test_chance_is_the_commonest_answer():
    train = torch.nn.functional.one_hot(torch.tensor([0, 1, 1, 2]), 3).float()
    test = torch.nn.functional.one_hot(torch.tensor([1, 0, 2, 2, 1]), 3).float()
    assert chance("class", train, test) == 0.4
    assert chance("binary", train[:, :1], test[:, :1]) == pytest.approx(0.2)


# The choice of a cell


def rows(valid, test):
    cells = [Cell(block, time) for time in (1, 11) for block in ("out_1", "out_2")]
    return {c: {"width": 4, "valid": v, "test": t} for c, v, t in zip(cells, valid, test, strict=True)}


def test_the_choice_is_made_on_validation_and_the_official_one_stands_apart():
    found = rows((0.5, 0.9, 0.6, 0.9), (0.7, 0.6, 0.95, 0.5))
    chosen = linear_report.best(found, "valid")
    report = linear_report.results({1: "1", 11: "11"}, found, {chosen: 0.65})
    assert report["selected_on_valid"] == {"key": "1/out_2", "valid": 0.9, "test": 0.6, "test_refit": 0.65}
    assert report["selected_on_test"] == {"key": "11/out_1", "valid": 0.6, "test": 0.95}
    assert [row.get("test_refit") for row in report["cells"]] == [None, 0.65, None, None]


LEARNING = ["--probe_lr=0.1", "--probe_batch_size=16", "--epochs=8"]


@pytest.mark.parametrize("probe", ["exact", "adam"])
def test_the_planted_cell_wins(monkeypatch, run_of, photos, tmp_path, capsys, probe):
    planted(monkeypatch, ("out_3", 11.0))
    more = [f"--probe={probe}", "--times=1,11", "--blocks", "out_1", "out_3"]
    linear.main(words(run_of["ddae"], photos, tmp_path, *LEARNING, *more))
    report = report_of(tmp_path, f"{photos.name}_cells_{probe}")
    assert report["selected_on_valid"]["key"] == "11/out_3" and report["selected_on_valid"]["test_refit"] == 1
    printed = capsys.readouterr().out
    assert "chosen on validation images: 11/out_3" in printed and "| out_3 | 4 |" in printed


@pytest.mark.parametrize("probe", ["ridge", "official"])
def test_a_whole_grid_and_what_it_is_compared_with(monkeypatch, run_of, photos, tmp_path, probe):
    calls = planted(monkeypatch, ("out_3", 11.0))
    linear.main(words(run_of["ddae"], photos, tmp_path, *LEARNING, "--grid", f"--probe={probe}", "--baselines"))
    report = report_of(tmp_path, f"{photos.name}_grid_{probe}")
    assert report["selected_on_valid"]["key"] == "11/out_3" and report["selected_on_valid"]["test_refit"] == 1
    assert len(report["cells"]) == 12 and report["images"] == {"train": 48, "valid": 6, "test": 6}
    assert report["made_from"]["how"] == report["probe"] == probe
    assert report["baselines"].keys() == {"pixels", "pca", "untrained", "chance"}
    assert report["baselines"]["pixels"]["width"] == 192 and report["baselines"]["pca"]["width"] == 4
    assert report["baselines"]["chance"]["test"] == pytest.approx(1 / 3)
    assert len(report["baselines"]["untrained"]["cells"]) == 12
    assert (tmp_path / f"sample_20/linear/{photos.name}_grid_{probe}.png").stat().st_size > 5000
    if probe == "ridge":  # times x splits x (the model and the untrained one); beside them one image for the widths
        assert [n for _, n in calls if n > 1] == [48, 6, 6] * 3 * 2


def test_the_official_probe_of_one_cell(monkeypatch, run_of, photos, tmp_path, capsys):
    planted(monkeypatch, ("out_2", 11.0))
    command = words(run_of["ddae"], photos, tmp_path, *LEARNING)
    linear.main(command)
    assert "[key 11/out_2]: Test acc: 100.00" in capsys.readouterr().out
    report = report_of(tmp_path, f"{photos.name}_11_out_2_official")
    assert report["cells"] == [{"key": "11/out_2", "block": "out_2", "time": 11, "width": 4, "test": 1.0}]
    assert "trained on training and validation images together" in report["protocol"]
    heads = tmp_path / f"sample_20/linear/{photos.name}_11_out_2_official_refit_heads.pt"
    assert torch.load(heads, weights_only=True)["step"] == 8 * 4  # of 54 images in batches of 16
    linear.main(command)  # is there, and only tested again
    assert report_of(tmp_path, f"{photos.name}_11_out_2_official") == report
    with pytest.raises(UserError, match=r"holds a linear probe with another epochs .*, made by: python3 "):
        linear.main([*command, "--epochs=7"])


def test_cached_features_give_the_same_grid_and_an_interrupted_run_goes_on(
    monkeypatch, run_of, photos, tmp_path, capsys
):
    more = ["--grid", "--times=11", "--blocks", "out_1", "out_3", "--batch_size=20", "--flip", "--refit=false"]
    original, calls = TrainedModel.features, []

    def features(self, x, *args, **how):
        calls.append(len(x))
        if len(calls) == stop_at:
            raise KeyboardInterrupt
        return original(self, x, *args, **how)

    monkeypatch.setattr(TrainedModel, "features", features)
    stop_at = 4  # after the one for widths and two batches
    with pytest.raises(KeyboardInterrupt):
        linear.main(words(run_of["ddae"], photos, tmp_path / "a", *more))
    stop_at = None
    calls.clear()
    linear.main(words(run_of["ddae"], photos, tmp_path / "a", *more))
    assert calls == [1, 8, 20, 20, 8, 6, 6]  # what was left of 48, the mirrored ones, valid and test
    first = report_of(tmp_path / "a", f"{photos.name}_grid_exact")
    assert "test_refit" not in first["selected_on_valid"]
    calls.clear()
    linear.main(words(run_of["ddae"], photos, tmp_path / "a", *more))
    assert calls == [1] and "is complete already" in capsys.readouterr().out
    linear.main(words(run_of["ddae"], photos, tmp_path / "b", *more))
    second = report_of(tmp_path / "b", f"{photos.name}_grid_exact")
    assert report_of(tmp_path / "a", f"{photos.name}_grid_exact")["cells"] == first["cells"] == second["cells"]


def test_a_grid_of_an_autoencoder_has_its_code_and_attributes(run_of, photos, tmp_path):
    more = ["--grid", "--blocks", "output_blocks.1", "z", "--kind=binary", f"--labels={photos / 'attributes.csv'}"]
    linear.main(words(run_of["dbae"], photos, tmp_path, *more, "--probe=ridge", "--times=0.1,0.3"))
    report = report_of(tmp_path, f"{photos.name}_binary_grid_ridge")
    assert [row["key"] for row in report["cells"]] == ["0.1/output_blocks.1", "0.3/output_blocks.1", "z"]
    assert report["score"] == "average precision" and report["cells"][-1]["width"] == 8
    assert all(0 < row[split] <= 1 for row in report["cells"] for split in ("valid", "test"))


def test_limits_take_a_random_choice(run_of, photos, tmp_path):
    linear.main(words(run_of["ddae"], photos, tmp_path, "--probe=ridge", "--limit=20", "--test_limit=5"))
    report = report_of(tmp_path, f"{photos.name}_11_out_2_ridge")
    assert report["images"] == {"train": 20, "valid": 5, "test": 5} and "test_refit" not in report["cells"][0]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--blocks", "out_9"], "blocks: expected some of out_1, out_2, out_3, out_4, got out_9"),
        (["--blocks", "z"], "blocks: expected some of out_1, out_2, out_3, out_4, got z"),
        (["--times=0"], "times: expected whole numbers from 1 to 1000, got 0"),
        (["--times=1001"], "times: expected whole numbers from 1 to 1000, got 1001"),
        (["--times=1,1"], "times: expected each once, got 1.0, 1.0"),
        (["--times=1.5"], "times: expected whole numbers from 1 to 1000, got 1.5"),
        (["--edm_steps=3"], "edm_steps: expected with a configuration of EDM, give --times"),
        (["--probe=official", "--kind=binary"], "probe: expected exact, ridge or adam for binary attributes"),
        (["--flip"], "flip: expected with exact, ridge or adam"),
        (["--penalties=0"], "penalties: expected numbers above 0, got (0.0,)"),
        (["--draws=0"], "draws: expected a number above 0, got 0"),
        (["--grid", "--blocks"], "--blocks: expected at least one argument"),
    ],
)
def test_wrong_inputs_end_before_data_is_read(monkeypatch, run_of, photos, tmp_path, capsys, more, said):
    monkeypatch.setattr(linear, "labelled_splits", lambda *_: pytest.fail("data was opened"))
    try:
        linear.main(words(run_of["ddae"], photos, tmp_path, *more))
    except UserError as error:
        message = str(error)
    except SystemExit as end:
        message = capsys.readouterr().err
        assert end.code == 2
    assert said in message and "\n" not in message.strip()


def test_data_without_labels_ends_before_images_are_read(monkeypatch, run_of, tmp_path):
    monkeypatch.setattr(TrainedModel, "features", lambda *_, **__: pytest.fail("features were computed"))
    Image.new("RGB", (8, 8)).save(tmp_path / "0.png")
    with pytest.raises(UserError, match=r"labels|images"):
        linear.main(words(run_of["ddae"], tmp_path, tmp_path / "out", "--grid"))


# What it costs


def test_the_benchmark_counts_the_calls_that_are_made(monkeypatch, capsys, tmp_path):
    def here(build, arguments, world):
        return nullcontext(partial(next, timing.runs(build, *arguments)))

    monkeypatch.setattr(timing, "isolated", here)
    monkeypatch.setattr(linear_grid.Grid, "build_model", lambda self: model())
    linear_grid.main(["--images=10", "--test_images=4", "--epochs=2", "--rounds=1", f"--json={tmp_path / 'rows.json'}"])
    official, cached = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert (official["calls"], cached["calls"]) == (3 * (2 * 10 + 4), 3 * (10 + 4))
    assert cached["calls_ratio"] == pytest.approx(72 / 42) and "GFLOP of a call" in capsys.readouterr().out
    assert linear_grid.flops(model(), ["out_1"]) < 0.8 * linear_grid.flops(model())


def test_a_label_that_does_not_vary_is_nothing_to_choose_by():
    images = build("toyfaces", "valid", 32, split_range="0:6")
    arrays = {"z": np.zeros((6, 2), dtype=np.float32)}
    for values, held in (
        ([1, 0, 1, 0, 1, 0], nullcontext()),
        ([0] * 6, pytest.raises(UserError, match=r"^valid: expected")),
    ):
        labelled = Labelled(images, Targets("binary", ("rare",), torch.tensor(values).float()[:, None]))
        with held:
            assert len(part_of("valid", labelled, arrays, None, "z", "exact", 0).targets) == 6
