"""Alignment and uniformity: the measures, and the program that follows them over a run."""

import json
import shutil
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import torch
import torch.nn.functional as F
from conftest import ROOT
from parity import FOLDER

from dbae.checkpoint import config_content, save_weights, write_config
from dbae.config import TrainConfig, UserError
from dbae.io import image_generators, to_float
from dbae.methods import DDAE, EDMDDAE
from eval.contrastive import alignment, uniformity
from scripts import contrastive
from scripts.common import feature_time
from scripts.runs import checkpoints, thinned
from scripts.trained import TrainedModel

SMALL = {"image_size": 8, "num_channels": 32, "channel_mult": (1, 1), "num_res_blocks": 1, "attention_sizes": (4,)}
SMALL |= {"dropout": 0.0, "feature_block": "out_2"}
BLOCKS = ["out_1", "out_2", "out_3", "out_4"]


def normal(seed):
    return torch.from_numpy(np.random.Generator(np.random.PCG64(seed)).standard_normal((16, 32)))


def test_official_values():
    vectors = np.load(FOLDER / "ddae.npz")
    f, g = F.normalize(normal(30)), F.normalize(normal(30) + 0.3 * normal(31))
    for name, value in (
        ("alignment", alignment(f, g)),
        ("uniformity_x", uniformity(f)),
        ("uniformity_y", uniformity(g)),
    ):
        assert value.item() == pytest.approx(vectors[f"contrastive/n16_d32_seed30/{name}"].item(), rel=1e-9), name


def test_extremes():
    same, ends = torch.tensor([[0.0, 1.0]]).expand(4, 2), torch.tensor([[0.0, 1.0], [0.0, -1.0]])
    assert alignment(ends, ends) == 0 and alignment(ends, -ends) == 4
    assert uniformity(same) == 0 and uniformity(ends).item() == pytest.approx(-8)
    with pytest.raises(ValueError, match="two features"):
        uniformity(ends[:1])


class Images(torch.utils.data.Dataset):
    """What the program needs of a data set."""

    def __init__(self, images):
        self.images = images

    def part(self, positions):
        return Images([self.images[i] for i in positions])

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        return self.images[i], i


DATA = Images(list(((tiny.images(13, seed=3) + 1) * 127.5).to(torch.uint8)))
BAR = SimpleNamespace(n=0, update=lambda n: None)


def ddae(seed=0):
    torch.manual_seed(seed)
    return DDAE(DDAE.Config(**{**SMALL, "image_size": 32, "attention_sizes": (16,)})).eval()


def measured(model, time=800.0, blocks=("out_2", "out_4"), batch_size=6, microbatch=4):
    options = SimpleNamespace(batch_size=batch_size, microbatch=microbatch, num_workers=0)
    return contrastive.measure(TrainedModel(model, model.SAMPLING, seed=5), DATA, time, blocks, options, BAR)


def test_the_mean_over_batches_by_hand():
    """13 images in batches of 6: the last, of one image, counts in alignment alone."""
    model, found = ddae(), measured(ddae())
    near, even = [], []
    for rows in (range(6), range(6, 12), range(12, 13)):
        x = to_float(torch.stack([DATA[i][0] for i in rows]))
        draws = [
            F.normalize(model.features(x, 800, ["out_4"], generator=image_generators(5, rows, k))["out_4"].double())
            for k in (1, 2)
        ]
        near.append(len(rows) * alignment(*draws).item())
        even += [(uniformity(draws[0]) + uniformity(draws[1])).item() / 2] if len(rows) > 1 else []
    assert found["alignment"][1] == pytest.approx(sum(near) / 13, rel=1e-4) and found["alignment"][1] > 1e-6
    assert found["uniformity"][1] == pytest.approx(sum(even) / 2, rel=1e-4) and found["uniformity"][1] < -1e-6
    assert found["alignment"][0] != found["alignment"][1]
    assert measured(ddae(), microbatch=6)["alignment"] == pytest.approx(found["alignment"], rel=1e-4)
    assert measured(ddae(), batch_size=13)["uniformity"] != pytest.approx(found["uniformity"], rel=1e-4)


def test_results_do_not_depend_on_processes(monkeypatch):
    """Two processes, one after the other; the second has what the first one found."""
    alone, parts = measured(ddae()), []
    monkeypatch.setattr(contrastive.runtime, "world", lambda: 2)
    monkeypatch.setattr(contrastive.runtime, "all_gather", lambda value: parts.append(value) or parts)
    for rank in (1, 0):
        monkeypatch.setattr(contrastive.runtime, "rank", lambda rank=rank: rank)
        together = measured(ddae())
    assert [len(sizes) for sizes, _ in parts] == [1, 2] and together == alone


def test_codes_are_shared_by_both_draws():
    """A stochastic encoder's code is drawn once per image, from the image's own numbers."""
    model = tiny.model(stochastic=True)
    first, again = (measured(model, 0.5, ["middle_block"], microbatch=size) for size in (4, 6))
    assert first["alignment"] == pytest.approx(again["alignment"], rel=1e-3)
    with pytest.raises(UserError, match="time: expected one, as dbae"):
        feature_time(model)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run's folder with the averages of two steps, and files that are none."""
    folder = tmp_path_factory.mktemp("run")
    for step in (20, 30):
        torch.manual_seed(step)
        model = DDAE(DDAE.Config(**SMALL))
        save_weights(str(folder / f"ema_0.9999_{step:06d}.pt"), model)
    write_config(str(folder), config_content(model, "toyfaces", train=TrainConfig(batch_size=4)))
    for name in ("model_000020.pt", "freq_ema_0.9999_000025.pt"):
        shutil.copy(folder / "ema_0.9999_000020.pt", folder / name)
    return folder


def words(folder, *more):
    """The program's options; the model states its method, and its configuration is not asked for."""
    return [f"--model_path={folder}", "--dataset=toyfaces", "--device=cpu", "--limit=5", "--batch_size=4", *more]


def test_over_a_run(run, capsys, monkeypatch):
    first = f"{run}/ema_0.9999_000020.pt"
    contrastive.main(words(first, "--config=DDPM_toyfaces"))
    alone = json.loads((run / "sample_20" / "contrastive_11.json").read_text())
    contrastive.main(words(run, "--config=DDPM_toyfaces"))
    out, report = capsys.readouterr().out, json.loads((run / "contrastive_11.json").read_text())
    assert report["made_from"]["blocks"] == BLOCKS and report["made_from"]["batch_size"] == 4
    assert [entry["images_seen"] for entry in report["checkpoints"]] == [80, 120]
    assert report["checkpoints"][0] == alone["checkpoints"][0] and report["made_from"] == alone["made_from"]
    assert f"| out_4 | {report['checkpoints'][1]['alignment'][3]:.4f} |" in out and "batches of 4" in out
    assert (run / "contrastive_11.png").stat().st_size and (run / "sample_20" / "contrastive_11.png").exists()

    monkeypatch.setattr(contrastive, "measure", None)  # all is there already
    contrastive.main(words(f"{first},{run}/ema_0.9999_000030.pt", "--config=DDPM_toyfaces"))
    assert json.loads((run / "contrastive_11.json").read_text()) == report
    with pytest.raises(
        UserError, match=r"_11.json holds measures with another batch_size \(4, now 5\), made by: python3"
    ):
        contrastive.main(words(run, "--config=DDPM_toyfaces", "--batch_size=5"))


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--blocks", "out_5"], "blocks: expected some of out_1, .*, got out_5"),
        (["--time=0"], "time: expected a whole number from 1 to 1000, got 0"),
        (["--time=1.5"], "time: expected a whole number"),
        (["--limit=1"], "limit: expected 2 or more"),
        (["--every=-1"], "every: expected a number from 0"),
        (["--microbatch=0"], "microbatch: expected a number above 0"),
    ],
)
def test_wrong_options(run, more, said):
    with pytest.raises(UserError, match=said):
        contrastive.main(words(run, "--config=DDPM_toyfaces", "--out", str(run / "other"), *more))
    assert not (run / "other").exists()


def test_models_that_cannot_be_measured_alike(run, tmp_path):
    edm = tiny.written(tmp_path, EDMDDAE(EDMDDAE.Config(**SMALL)))
    both = f"{run}/ema_0.9999_000020.pt,{edm}"
    with pytest.raises(UserError, match=r"expected models of one method, ddae; .* has ddae_edm"):
        contrastive.main(words(both, f"--out={tmp_path}"))


def test_checkpoints_of_a_run(run, tmp_path):
    found = checkpoints(str(run))
    assert [(each.number, each.images) for each in found] == [(20, 80), (30, 120)]
    (run / "progress.csv").write_text("step,images\n20,77\n")  # as of a run that went on with another batch
    assert [each.images for each in checkpoints(str(run))] == [77, None]
    (run / "progress.csv").unlink()
    assert [each.number for each in thinned(found, 20)] == [20, 30] and thinned(found, 7) == found[1:]
    with pytest.raises(UserError, match="expected a folder with files like"):
        checkpoints(str(tmp_path))
    for epoch in (400, 1999, 800):
        (tmp_path / f"model_{epoch}.pth").touch()
    assert [(each.number, each.images) for each in checkpoints(str(tmp_path))] == [
        (400, None),
        (800, None),
        (1999, None),
    ]


def test_another_time_of_the_end_is_another_measure(tmp_path):
    words = [f"--model_path={tiny.written(tmp_path, tiny.model())}", "--dataset=toyfaces", "--device=cpu", "--limit=3"]
    words += ["--batch_size=3", "--time=0.9", "--blocks=middle_block"]
    contrastive.main(words)
    with pytest.raises(UserError, match=r"measures with another end_data \(0.5, now 0.0\)"):
        contrastive.main([*words, "--end_data=0"])


def test_launcher(run):
    """Paths as seen from the caller's folder, each of several."""
    done = subprocess.run(
        ["bash", str(ROOT / "ddae/contrastive.sh"), "DDPM_toyfaces",
         "ema_0.9999_000020.pt,ema_0.9999_000030.pt", "--dry_run"],
        capture_output=True, text=True, cwd=run, env={"PATH": "/usr/bin:/bin", "PYTHON": sys.executable, "NPROC": "1"},
    )  # fmt: skip
    assert done.returncode == 0 and f'"{run}/ema_0.9999_000030.pt"' in done.stdout, done.stderr
