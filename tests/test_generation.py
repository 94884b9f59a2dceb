"""Latent priors, generation, and DiffAE in the programs that all methods share."""

import json
import math

import numpy as np
import pytest
import tiny
import torch
from conftest import ROOT
from PIL import Image

import eval_manipulation
from dbae import load_model
from dbae.config import UserError
from dbae.methods import DDIM, DiffAE, LatentPrior
from dbae.methods.codes import PATHS
from dbae.methods.diffae import DDIMConfig, DiffAEConfig
from dbae.methods.prior import PriorConfig
from eval.generation import frechet_distance, gaussian
from scripts import (
    infer_class,
    interpolate,
    manipulate,
    path_length,
    recon_table,
    reconstruct,
    sample,
    train_prior,
    traverse,
    walk,
)
from scripts.conditional import accepted, few_shot

IMAGES = [str(ROOT / "assets" / f"img{i}.png") for i in (1, 2)]


@pytest.fixture(scope="module")
def diffae(tmp_path_factory):
    torch.manual_seed(0)
    return tiny.written(tmp_path_factory.mktemp("diffae"), DiffAE(DiffAEConfig(**tiny.SMALL, latent_dim=6)))


def words(path, *more):
    return ["--dataset=toyfaces", f"--model_path={path}", "--device=cpu", "--limit=24", *more]


def prior_words(path, *more):
    small = ["--layers=3", "--width=16", "--batch_size=8", "--sample_interval=4", "--compared=24", "--held_out=valid"]
    return words(path, "--method=diffae", *small, "--save_interval=4", "--total_steps=8", *more)


@pytest.fixture(scope="module")
def prior(diffae):
    """A prior of the model's codes, whose run was stopped half-way and resumed."""
    with pytest.MonkeyPatch.context() as patch:
        real = train_prior.build  # held-out codes of a few faces are enough
        patch.setattr(train_prior, "build", lambda *args: real(*args).part(range(24)))
        train_prior.main(prior_words(diffae)[:-1] + ["--total_steps=4"])
        train_prior.main(prior_words(diffae))
    return diffae.parent / "sample_20" / "prior"


def generated(path, codes, settings="ddim_2_xT=random"):
    folder = path.parent / "sample_20" / f"generated_{codes}_{settings}"
    return [np.asarray(Image.open(file)) for file in sorted(folder.glob("0*.png"))], folder


def test_a_prior_resumes_and_is_compared(prior):
    model = load_model(str(prior / "ema_0.9999_000008.pt"))
    assert model.method == "prior" and model.mean.abs().max() > 0 and model.generate(3).shape == (3, 6)
    report = json.loads((prior / "codes.json").read_text())
    assert report["held_out_images"] == 24 and report["of them trained on"] == 0
    assert report["step"] == 8 and report["prior"] > 0 and report["gaussian"] < 10 * report["training codes"] + 1
    assert 0 < report["recall"]["gaussian"] <= 1 and 0 < report["nearest training code"]["gaussian"] < 10
    assert [row.split(",")[0] for row in (prior / "progress.csv").read_text().splitlines()] == ["step", "4", "8"]


def test_a_finished_prior_is_compared_again_with_other_images_alone(diffae, prior, monkeypatch):
    real = train_prior.build
    monkeypatch.setattr(train_prior, "build", lambda *args: real(*args).part(range(24)))
    path, config = prior / "codes.json", (prior / "config.json").read_text()
    report = json.loads(path.read_text())
    for digest, gaussian_distance in ((report["digest of held-out images"], -1), ("of others", report["gaussian"])):
        path.write_text(json.dumps({**report, "gaussian": -1, "digest of held-out images": digest}))
        train_prior.main(prior_words(diffae, "--lr=0.5"))
        assert json.loads(path.read_text())["gaussian"] == gaussian_distance
    assert (prior / "config.json").read_text() == config  # nothing was trained with the other learning rate


def test_a_prior_of_drawn_codes_does_not_go_on_with_means(tmp_path, monkeypatch):
    real = train_prior.build
    monkeypatch.setattr(train_prior, "build", lambda *args: real(*args).part(range(24)))
    path = tiny.written(tmp_path, tiny.model(stochastic=True))
    more = [word for word in prior_words(path, "--total_steps=2") if word not in ("--method=diffae", "--total_steps=8")]
    train_prior.main(more)
    with pytest.raises(UserError, match=r"latent"):
        train_prior.main([*more, "--latent=mean"])
    with pytest.raises(SystemExit):  # a run is not replaced
        train_prior.main([*more, "--overwrite=true"])


def test_images_that_are_not_held_out_are_told(diffae, tmp_path, monkeypatch, capsys):
    real = train_prior.build
    monkeypatch.setattr(train_prior, "build", lambda *args: real(*args).part(range(30)))
    train_prior.main(prior_words(diffae, "--split=valid", f"--out={tmp_path}"))
    assert "the prior is trained on 24 of the 30 valid images" in capsys.readouterr().err
    report = json.loads((tmp_path / "sample_20" / "prior" / "codes.json").read_text())
    assert report["of them trained on"] == 24 and report["nearest training code"]["gaussian"] is None


@pytest.mark.parametrize("codes", ["prior", "gaussian", "encoded"])
def test_images_do_not_depend_on_batches_and_are_completed(diffae, prior, codes, capsys):
    how = words(diffae, "--steps=2", "--latent_steps=10", f"--codes={codes}")
    sample.main([*how, "--num=3", "--batch_size=3"])
    first, folder = generated(diffae, codes)
    sample.main([*how, "--num=5", "--batch_size=2"])
    made, _ = generated(diffae, codes)
    assert len(made) == 5 and all(np.array_equal(a, b) for a, b in zip(first, made, strict=False))
    (folder / "000001.png").unlink()
    sample.main([*how, "--num=5", "--batch_size=5"])
    assert all(np.array_equal(a, b) for a, b in zip(made, generated(diffae, codes)[0], strict=True))
    capsys.readouterr()
    sample.main([*how, "--num=5"])
    assert "nothing computed" in capsys.readouterr().out and (folder / "grid.png").exists()
    with pytest.raises(UserError, match="images with another seed"):
        sample.main([*how, "--num=5", "--seed=1"])


def test_wrong_priors(diffae, prior, tmp_path):
    torch.manual_seed(1)
    other = tiny.written(tmp_path, DiffAE(DiffAEConfig(**tiny.SMALL, latent_dim=6)))
    with pytest.raises(UserError, match="prior: none in"):
        sample.main(words(other))
    with pytest.raises(UserError, match="is of the codes of other weights"):
        sample.main(words(other, f"--prior={prior / 'ema_0.9999_000008.pt'}"))
    with pytest.raises(UserError, match="expected with --codes prior"):
        sample.main(words(other, "--prior=x", "--codes=gaussian"))
    with pytest.raises(UserError, match="layers: expected 2 or more"):
        train_prior.main(prior_words(other, "--layers=1"))


def test_what_is_not_read_is_refused(diffae, prior, tmp_path):
    (weights,) = prior.glob("ema_0.9999_000008.pt")
    for more, message in (
        (["--xT=retraced"], "xT, inversion_steps: expected none"),
        (["--inversion_steps=7"], "xT, inversion_steps: expected none"),
        (["--labels=absent.csv"], "labels, unlabelled: expected with --class"),
        ([f"--seed={2**63}"], r"seed: expected a whole number below 2\^63"),
        ([f"--model_path={weights}"], "model_path: expected a model of images, .* is a latent prior"),
    ):
        with pytest.raises(UserError, match=message):
            sample.main(words(diffae, *more))
    with pytest.raises(UserError, match="steps: expected 100 or 91"):
        reconstruct.main(words(diffae, "--steps=99", "--dry_run"))
    with pytest.raises(UserError, match="latent_steps, labelled: expected with an autoencoder, ddim has no code"):
        (tmp_path / "ddim").mkdir()
        baseline = tiny.written(tmp_path / "ddim", DDIM(DDIMConfig(**tiny.SMALL)))
        sample.main(words(baseline, "--latent_steps=3", "--labelled=3"))
    longer = tiny.written(tmp_path, LatentPrior(PriorConfig(latent_dim=8, layers=2, width=4)))
    for program in (sample, walk):
        with pytest.raises(UserError, match="is of codes of 8 numbers, the model's have 6"):
            program.main(words(diffae, f"--prior={longer}"))


def test_the_baseline_samples_and_inverts(tmp_path, capsys):
    path = tiny.written(tmp_path, DDIM(DDIMConfig(**tiny.SMALL)))
    sample.main(words(path, "--num=2", "--steps=2"))
    assert len(generated(path, "noise", "ddim_2_xT=random")[0]) == 2
    with pytest.raises(UserError, match="expected an autoencoder"):
        interpolate.main(words(path))
    for steps in (2, 4):
        reconstruct.main(words(path, "--split=test", f"--steps={steps}", "--limit=3", "--evaluate", "--metrics=MSE"))
    capsys.readouterr()
    recon_table.main([f"--runs={path.parent}"])
    ours = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if line.endswith("ours |")]
    assert [row[1:4] for row in ours] == [["ddim 2, uniform", "inferred", "4"], ["ddim 4, uniform", "inferred", "8"]]
    assert all(row[0].endswith(", step 20") for row in ours)
    reconstruct.main(
        words(path, "--split=test", "--steps=2", "--inversion_steps=3", "--limit=3", "--evaluate", "--metrics=MSE")
    )
    recon_table.main([f"--runs={path.parent}"])
    assert "ddim 2, uniform, inversion_steps 3" in capsys.readouterr().out
    with pytest.raises(UserError, match="expected reconstructions"):
        recon_table.main([f"--runs={path.parent / 'nothing'}"])
    for words_of_codes in ("--codes=gaussian", "--class=Male"):
        with pytest.raises(UserError, match="ddim has no code"):
            sample.main(words(path, words_of_codes))
    with pytest.raises(UserError, match="latent_dim: expected 0"):
        DDIMConfig(latent_dim=3)


def test_reconstruction_by_inversion_and_from_noise(diffae):
    reports = {}
    for start in ("inferred", "random"):
        reconstruct.main(
            words(diffae, "--split=test", "--steps=10", f"--xT={start}", "--evaluate", "--metrics=MSE,PSNR")
        )
        folder = diffae.parent / "sample_20" / f"ddim_10_xT={start}"
        reports[start] = json.loads((folder / "metrics.json").read_text())
    assert reports["inferred"]["nfe"] == 20 and reports["random"]["nfe"] == 10
    scores = reports["inferred"]["metrics"]
    assert scores["PSNR"] >= -10 * math.log10(scores["MSE"]) - 1e-6  # Jensen: a mean of logarithms
    assert scores["MSE"] < reports["random"]["metrics"]["MSE"]
    with pytest.raises(UserError, match=r"steps: expected 36 or 38"):
        reconstruct.main(words(diffae, "--split=test", "--steps=37"))
    with pytest.raises(UserError, match=r"inversion: .*decreasing times"):
        reconstruct.main(words(diffae, "--split=test", "--steps=10", "--eta=1"))


@pytest.mark.slow
def test_probe_and_edits(diffae, tmp_path):
    infer_class.main([f"--model_path={diffae}", "--dataset=toyfaces", "--device=cpu", "--solver=exact"])
    probe = next((diffae.parent / "sample_20" / "downstream_inference").glob("*/best_model_exact.pt"))
    edit = [f"--model_path={diffae}", "--device=cpu", "--steps=3", "--images", *IMAGES]
    interpolate.main([*edit, "--frames=3", f"--out={tmp_path / 'i'}"])
    manipulate.main([*edit, "--attributes=Male", f"--classifier={probe}", f"--out={tmp_path / 'm'}"])
    assert list((tmp_path / "i").glob("*.gif")) and list((tmp_path / "m").glob("*.png"))
    few = ["--limit=3", "--judged=200", "--attributes=Male", f"--classifier={probe}", "--steps=3"]
    eval_manipulation.main([f"--model_path={diffae}", "--dataset=toyfaces", "--device=cpu", *few])
    (path,) = (diffae.parent / "sample_20").glob("edits_pixels_ddim_3_*.json")
    report = json.loads(path.read_text())
    assert report["attributes"]["Male"]["edited"] == 3
    assert (
        report["settings"]["labels"] and report["settings"]["judge"]["train"]["labels"]
    )  # other labels, another report


@pytest.mark.parametrize("unlabelled", [0, 400])
def test_codes_of_a_class(unlabelled):
    """A classifier of few labels finds the class, and its codes do not depend on which others are asked for."""
    z = torch.randn(1000, 4, generator=torch.Generator().manual_seed(0))
    has = (z[:, 0] + 0.1 * z[:, 1] > 0.8).float()
    probability = few_shot(z, has, 100, unlabelled, seed=0)
    right = ((probability(z) > 0.5) == (has > 0)).float().mean()
    assert right > 0.85

    def candidates(index, attempt):
        return torch.stack([torch.randn(4, generator=torch.Generator().manual_seed(97 * i + attempt)) for i in index])

    codes = accepted(candidates, probability, seed=0)
    made = codes(list(range(60)))
    assert torch.equal(codes([7, 3]), made[[7, 3]])
    assert (made[:, 0] > 0.4).float().mean() > 0.9 and (probability(made) >= 0.5).all()
    with pytest.raises(UserError, match="both classes, 0 have it"):
        few_shot(z, torch.zeros(1000), 100, unlabelled, seed=0)


def test_what_is_wrong_ends_before_images_are_encoded(diffae, tmp_path, monkeypatch):
    monkeypatch.setattr(sample, "write_features", lambda *args, **options: pytest.fail("encoded"))
    how = words(diffae, "--codes=gaussian", f"--out={tmp_path}")
    with pytest.raises(UserError, match=r"class: expected one of .*, got 'Tall'"):
        sample.main([*how, "--class=Tall"])
    folder = tmp_path / "sample_20" / "generated_gaussian_ddim_100_xT=random"
    folder.mkdir(parents=True)
    (folder / "000000.png").touch()
    with pytest.raises(UserError, match="holds images with another origin"):
        sample.main([*how, "--check=1"])


@pytest.mark.slow
def test_images_of_a_class(diffae):
    how = [f"--model_path={diffae}", "--dataset=toyfaces", "--device=cpu", "--codes=gaussian", "--steps=2", "--num=3"]
    sample.main([*how, "--class=!Male"])
    made, folder = generated(diffae, "gaussian-!Male")
    assert len(made) == 3 and json.loads((folder / "settings.json").read_text())["labelled part"]["images"] == 10_000


def test_frechet_distance_of_gaussians():
    """Of two sets with exact moments it is the closed form; of a set to itself 0; a shift adds its square."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((500, 4))
    white = np.linalg.solve(np.linalg.cholesky(np.cov(x.T)), (x - x.mean(0)).T).T
    a, b = np.array([1.0, 2, 3, 4]), np.array([2.0, 2, 1, 0.5])
    expected = np.square(a - b).sum() + 9
    assert frechet_distance(white * a, white * b + [3, 0, 0, 0]) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-9)
    with pytest.raises(UserError, match="2 rows or more"):
        frechet_distance(x[:1], x)


def test_draws_from_a_fitted_gaussian():
    """For noise whose moments are exact, the draws have the moments of what was fitted."""
    rng = np.random.default_rng(0)
    x, noise = rng.standard_normal((300, 3)) @ rng.standard_normal((3, 3)) + 1, rng.standard_normal((500, 3))
    white = np.linalg.solve(np.linalg.cholesky(np.cov(noise.T)), (noise - noise.mean(0)).T).T
    assert frechet_distance(gaussian(x, white), x) == pytest.approx(0, abs=1e-6)


def test_a_film_goes_through_the_samples_of_the_prior(diffae, prior, tmp_path):
    line = words(diffae, f"--prior={prior / 'ema_0.9999_000008.pt'}", "--latent_steps=5", "--steps=2")
    walk.main([*line, "--samples=3", "--frames=4", "--rows=1", f"--out={tmp_path}"])
    with Image.open(next(tmp_path.rglob("walk_*.gif"))) as film:
        assert film.n_frames == 2 * 7 - 2
    with pytest.raises(UserError, match=r"walk_.*gif holds a result with another seed .*--overwrite"):
        walk.main([*line, "--samples=3", "--frames=4", "--rows=1", f"--out={tmp_path}", "--seed=1"])
    for wrong in ("--samples=1", "--frames=1", "--prior=nowhere.pt"):
        with pytest.raises(UserError):
            walk.main([*line, wrong])


def test_path_lengths_do_not_depend_on_a_small_step_nor_on_batches(diffae, tmp_path, monkeypatch):
    def distance(real, fake):
        return (real - fake).double().square().mean(dim=(1, 2, 3))

    monkeypatch.setattr(path_length, "load_lpips", lambda *_: distance)
    line = words(diffae, "--split=test", "--steps=2", "--pairs=5", "--epsilons=0.002,0.004,0.5")
    reports = []
    for batch in (4, 64):
        path_length.main([*line, f"--batch_size={batch}", f"--out={tmp_path / str(batch)}"])
        reports.append(json.loads(next((tmp_path / str(batch)).rglob("path_length*.json")).read_text()))
    near, double, far = (entry["mean"] for entry in reports[0]["ppl"])
    assert near > 0 and abs(near / double - 1) < 0.05 < abs(near / far - 1)
    assert [entry["mean"] for entry in reports[1]["ppl"]] == pytest.approx([near, double, far], rel=1e-3)
    with pytest.raises(UserError, match=r"path_length.*json holds path lengths with another pairs"):
        path_length.main([*line, "--pairs=4", f"--out={tmp_path / '4'}"])
    for wrong in ("--epsilons=0", "--pairs=0", "--pairs=13"):
        with pytest.raises(UserError):
            path_length.main([*line, wrong])


def test_fractions_of_the_way_may_differ_by_pair():
    torch.manual_seed(0)
    z_1, z_2 = torch.randn(2, 3, 7)
    fractions = torch.rand(3, 4)
    for path in PATHS.values():
        ways = path(z_1, z_2, fractions)
        for i in range(3):
            assert torch.allclose(ways[i], path(z_1[i : i + 1], z_2[i : i + 1], fractions[i])[0])


def test_single_numbers_of_a_code_are_moved(diffae, tmp_path, monkeypatch):
    moved = []
    real = traverse.TrainedModel.shift
    monkeypatch.setattr(traverse.TrainedModel, "shift", lambda *args: moved.append(args[3]) or real(*args))
    line = words(diffae, "--steps=2", f"--out={tmp_path}", "--split=test")
    traverse.main([*line, "--numbers=4,1", "--columns=3"])
    rows = moved[-1][0].unflatten(0, (2, 3))
    assert rows[:, 1].abs().max() < 1e-6 and torch.equal(rows[:, 0], -rows[:, 2])
    assert [row[2].nonzero().flatten().tolist() for row in rows] == [[4], [1]]
    traverse.main([*line, "--rows=2", "--columns=3", "--index=5"])
    assert moved[-1].shape == (1, 6, 6) and len(list(tmp_path.rglob("traverse_test_*.png"))) == 2
    with pytest.raises(UserError, match=r"traverse_.*png holds a result with another numbers"):
        traverse.main([*line, "--numbers=4", "--columns=3"])
    for wrong in ("--numbers=6", "--index=24", "--columns=1", "--reach=0"):
        with pytest.raises(UserError):
            traverse.main([*line, wrong])


def test_a_finished_prior_is_compared_with_what_is_asked_for(diffae, prior, monkeypatch):
    real = train_prior.build
    monkeypatch.setattr(train_prior, "build", lambda *args: real(*args).part(range(24)))
    before = json.loads((prior / "codes.json").read_text())
    train_prior.main(prior_words(diffae, "--compared=20"))
    after = json.loads((prior / "codes.json").read_text())
    assert (before["codes"], after["codes"]) == (24, 20) and after["step"] == before["step"] == 8
    train_prior.main(prior_words(diffae))
    assert json.loads((prior / "codes.json").read_text()) == before
