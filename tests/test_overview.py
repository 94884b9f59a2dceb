"""The page of all methods, and the picture of a run."""

import json

import pytest
import tiny
import torch
from PIL import Image

from dbae.config import UserError
from dbae.io import fingerprint
from dbae.methods.ddae import DDAE, DDPMConfig
from dbae.methods.diffae import DiffAE, DiffAEConfig
from dbae.methods.prior import LatentPrior, PriorConfig
from scripts import demo_figure, overview, reconstruct

NAMES = ["Male", "Eyeglasses"]


@pytest.fixture
def models(tmp_path):
    """Weight files of the three methods; the first has a classifier."""
    torch.manual_seed(0)
    small = DDPMConfig(num_channels=32, channel_mult=(1, 1), num_res_blocks=1, feature_block="out_1")
    made = {"a": tiny.model(), "b": DiffAE(DiffAEConfig(**tiny.SMALL, latent_dim=8)), "c": DDAE(small)}
    for name in made:
        (tmp_path / name).mkdir()
    paths = [tiny.written(tmp_path / name, model) for name, model in made.items()]
    torch.save(torch.nn.Linear(8, 2).state_dict(), tmp_path / "a" / "best.pt")
    codes = {"std": [1.0] * 8, "median_logit_of_positives": [3.0, 3.0]}
    (tmp_path / "a" / "best.json").write_text(
        json.dumps({"attributes": NAMES, "codes": codes, "weights": fingerprint(paths[0])})
    )
    return list(map(str, paths))


def test_one_page_of_all_methods(models, tmp_path, monkeypatch, capsys):
    drawn = []
    page = overview.page
    monkeypatch.setattr(overview, "page", lambda *args: (drawn.append(args), page(*args)))
    words = ["--train=80", f"--out={tmp_path}/page.png", "--attributes", *NAMES, "--model_path", *models]
    overview.main(words)
    assert Image.open(tmp_path / "page.png").width > 1_000
    (_, panels, scores), printed = drawn[0], capsys.readouterr().out
    rows = {title.split()[0].strip(",:"): [row.label.split(":")[0] for row in rows] for title, rows in panels.items()}
    assert rows["Reconstruct"] == ["input", "DBAE", "DiffAE", "DiffAE"] and rows["Interpolate"] == ["DBAE", "DiffAE"]
    assert rows["Edit"] == ["DBAE"] and "b/best.pt" in printed and rows["Generate"] == ["DBAE", "DiffAE", "DDAE"]
    assert list(scores) == ["5x5 pixels", "DBAE", "DiffAE", "DDAE"]
    assert list(scores["DDAE"]) == [(f"out_{k}", t) for t in (1, 11, 21) for k in (1, 2, 3, 4)]
    edited = panels["Edit, to the median of real images with the attribute"][0].images
    assert len(edited) == 2 + len(NAMES) and not torch.equal(edited[1], edited[2])

    with pytest.raises(UserError, match=r"page.png is there already; give --overwrite true"):
        overview.main(words)
    overview.main([*words[:2], "--overwrite", "--model_path", models[2]])
    assert len(drawn[1][1]) == 1 and list(drawn[1][2]) == ["5x5 pixels", "DDAE"]


def test_wrong_input_is_refused(models, tmp_path):
    (tmp_path / "prior").mkdir()
    prior = tiny.written(tmp_path / "prior", LatentPrior(PriorConfig(latent_dim=4, layers=3, width=8)))
    with pytest.raises(UserError, match=r"model_path: expected models of images, .* is a LatentPrior"):
        overview.main([f"--out={tmp_path}/page.png", "--model_path", models[0], str(prior)])
    with pytest.raises(UserError, match="model_path: expected at least one"):
        overview.main([f"--out={tmp_path}/page.png"])
    with pytest.raises(UserError, match="attributes: expected a number under 2 or one of Male, Eyeglasses, got 'Nose'"):
        overview.main(["--train=80", f"--out={tmp_path}/page.png", "--attributes", "Nose", "--model_path", models[0]])


def test_models_that_do_not_go_together_are_refused(models, tmp_path):
    with pytest.raises(UserError, match=r"model_path: expected models of different methods .* DBAE of 32 px, DBAE"):
        overview.main(["--train=80", f"--out={tmp_path}/page.png", "--model_path", models[0], models[0]])
    with pytest.raises(UserError, match="index: expected one of the 40 test images, got 40"):
        overview.main(["--train=80", "--index=40", f"--out={tmp_path}/page.png", "--model_path", models[0]])
    (tmp_path / "a" / "best.json").write_text(json.dumps({"attributes": NAMES, "weights": "0" * 16}))
    with pytest.raises(UserError, match=r"classifier: .* is of the weights 0000"):
        overview.main(["--train=80", f"--out={tmp_path}/page.png", "--model_path", models[0]])


def test_the_picture_of_a_run(models, tmp_path):
    log = tmp_path / "a" / "progress.csv"
    log.write_text("step,images,loss,images_per_second,seconds,skipped\n10,80,0.5,10,8,0\n20,160,0.2,10,16,0\n")
    where = ["--dataset=toyfaces", f"--model_path={models[0]}", "--split=test", "--limit=4", "--steps=2", "--evaluate"]
    reconstruct.main([*where, "--metrics=MSE", f"--out={tmp_path}/out"])
    (samples,) = (tmp_path / "out").glob("sample_*/euler*")
    words = [f"--model_path={models[0]}", f"--sample_path={samples}"]
    demo_figure.main([*words, f"--out={tmp_path}/demo.png"])
    assert Image.open(tmp_path / "demo.png").width > 1_000
    with pytest.raises(UserError, match="out"):
        demo_figure.main([*words, f"--out={models[0]}"])
