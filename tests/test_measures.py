"""Measures of generated images: closed forms, second implementations, and the programs on a few small images."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.linalg import sqrtm

import eval_generation
import eval_manipulation
from datasets import Labelled, labelled_splits
from datasets.labels import Targets
from dbae.config import UserError
from eval import neighbours
from eval.features import reduced
from eval.generation import (
    frechet_at_half,
    frechet_distance,
    kernel_distance,
    memorisation,
    nearest,
    precision_recall,
)
from eval.networks import load_network
from scripts import measures
from scripts import nearest as nearest_images


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_frechet_distance_of_fewer_rows_than_numbers(rng):
    """The singular values of products of rows give what a root of the product of covariances gives."""
    x, y = rng.standard_normal((40, 60)), rng.standard_normal((90, 60)) * 1.3 + 0.1
    a, b = np.cov(x.T), np.cov(y.T)
    trace = np.trace(a + b) - 2 * np.sqrt(np.linalg.eigvals(a @ b).astype(complex)).sum().real
    expected = np.square(x.mean(0) - y.mean(0)).sum() + trace
    assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-5)
    wide = np.cov(rng.standard_normal((300, 8)).T), np.cov(rng.standard_normal((300, 8)).T * 2)
    z = [np.linalg.cholesky(each) @ whitened(500, 8, rng).T for each in wide]
    expected = np.trace(wide[0] + wide[1] - 2 * sqrtm(wide[0] @ wide[1]).real)
    assert frechet_distance(z[0].T, z[1].T + 1) == pytest.approx(expected + 8, rel=1e-9)


def whitened(n, d, rng):
    x = rng.standard_normal((n, d))
    x -= x.mean(0)
    return np.linalg.solve(np.linalg.cholesky(np.cov(x.T)), x.T).T


def test_bias_of_frechet_distance_is_extrapolated(rng):
    """Of two samples of one distribution the distance is all bias, twice as large at half as many."""
    x, y = rng.standard_normal((2, 2000, 100))
    whole, half = frechet_distance(x, y), frechet_at_half(x, y)
    assert half / whole == pytest.approx(2, rel=0.2) and abs(2 * whole - half) < whole / 4


def test_kernel_distance_by_moments(rng):
    """For one number the cubic kernel is a sum over moments: ``1 + 3 xy + 3 x^2 y^2 + x^3 y^3``."""
    x, y = rng.standard_normal(400), rng.standard_normal(400) * 1.2 + 0.3
    factors = np.array([1, 3, 3, 1])
    m, n = (np.array([(each**p).mean() for p in range(4)]) for each in (x, y))
    within = [
        (400**2 * (factors * moment**2).sum() - ((each**2 + 1) ** 3).sum()) / (400 * 399)
        for each, moment in ((x, m), (y, n))
    ]
    found = kernel_distance(x[:, None], y[:, None])
    assert found.mean == pytest.approx(sum(within) - 2 * (factors * m * n).sum(), rel=1e-9)
    assert (found.subsets, found.size, found.std) == (1, 400, 0)


def test_kernel_distance_is_unbiased(rng):
    x, y = rng.standard_normal((2, 3000, 8))
    found = kernel_distance(x, y, size=100)
    assert (found.subsets, found.size) == (100, 100)
    assert abs(found.mean) < 4 * found.std / 10
    assert kernel_distance(x, y + 0.5, size=100).mean > 10 * found.std


def by_all_pairs(real, fake, k):
    """Precision, recall, density and coverage from whole matrices of distances (the package prdc's formulas)."""

    def distances(a, b):
        return np.linalg.norm(a[:, None].astype(np.float64) - b, axis=-1)

    radius_real, radius_fake = (np.sort(distances(each, each), axis=1)[:, k, None] for each in (real, fake))
    between = distances(real, fake)
    return {
        "precision": (between <= radius_real).any(0).mean(),
        "recall": (between <= radius_fake.T).any(1).mean(),
        "density": (between <= radius_real).sum(0).mean() / k,
        "coverage": (between <= radius_real).any(1).mean(),
    }


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("offset, power", [(0, 0), (300, 0), (0, 3)])
def test_balls_by_all_pairs(offset, power, half, monkeypatch, rng):
    """Also far from the origin, along few directions, with rows that occur twice, in tiles, and by rounded products."""
    monkeypatch.setattr("eval.neighbours.TILE", 32)
    monkeypatch.setattr("eval.neighbours.has_bfloat16", lambda: half)
    spread = np.arange(1, 121) ** (-power / 2)
    real, fake = (rng.standard_normal((n, 120)) * s * spread + offset for n, s in ((150, 1), (120, 0.97)))
    real, fake = real.astype(np.float32), fake.astype(np.float32)
    fake[:10], fake[10:20], real[100:105] = real[:10], fake[20], real[99]
    levels = [level.lower for level in neighbours.prepared(real, real, device="cpu")[0].levels]
    assert levels == [True] * (power == 3) + [False] * (1 + half)
    assert precision_recall(real, fake, k=3) == pytest.approx(by_all_pairs(real, fake, 3), abs=1e-12)


def test_a_way_to_compare_that_decides_nothing_is_given_up(monkeypatch, rng):
    """Where most directions matter, the few do not tell rows apart; what is found is the same."""
    monkeypatch.setattr("eval.neighbours.TILE", 16)
    monkeypatch.setattr("eval.neighbours.has_bfloat16", lambda: False)
    spread = np.arange(1, 121) ** -0.6
    real, fake = (rng.standard_normal((n, 120)).astype(np.float32) * spread for n in (200, 190))
    rows = neighbours.prepared(real, real, device="cpu")[0]
    assert [level.lower for level in rows.levels] == [True, False]
    ways = neighbours.Ways(rows, rows)
    for decided in [False] * (neighbours.TRIES - 1) + [True] + [False] * neighbours.TRIES:
        assert len(ways.levels) == 2
        ways.note(decided)
    for _ in range(neighbours.TRIES):
        assert len(ways.levels) == 1  # which always decides
        ways.note(False)
    assert precision_recall(real, fake, k=3) == pytest.approx(by_all_pairs(real, fake, 3), abs=1e-12)


@pytest.mark.parametrize("half", [False, True])
def test_rounded_distances_are_within_their_bounds(half, monkeypatch, rng):
    monkeypatch.setattr("eval.neighbours.has_bfloat16", lambda: half)
    x = (rng.standard_normal((200, 50)) * np.arange(1, 51) ** -1.5 + 7).astype(np.float32)
    x[100:150] = x[:50] + 1e-3 * rng.standard_normal((50, 50)).astype(np.float32)
    (rows,) = neighbours.prepared(x, x, device="cpu")
    true = torch.cdist(rows.full.double(), rows.full.double()) ** 2
    for level in rows.levels:
        off = neighbours._squared(level, level, slice(0, 200), slice(0, 200)) - true
        bound = level.error * (level.lengths[:, None] + level.lengths)
        assert (off <= bound).all() and (level.lower or (-off <= bound).all())
        assert off.abs().max() > 0  # they are rounded
    assert [level.rows.shape[1] for level in rows.levels] == [16] + [50] * (1 + half)


def test_nearest_others_of_a_set(monkeypatch, rng):
    """Each tile serves rows and columns."""
    monkeypatch.setattr("eval.neighbours.TILE", 16)
    x = rng.standard_normal((70, 5)).astype(np.float32)
    all_pairs = np.linalg.norm(x[:, None].astype(np.float64) - x, axis=-1)
    np.fill_diagonal(all_pairs, np.inf)
    (rows,) = neighbours.prepared(x, x, device="cpu")
    found = neighbours.nearest(rows, rows, 20)
    assert np.array_equal(found.numbers, all_pairs.argsort(axis=1)[:, :20])
    assert found.squared.sqrt().numpy() == pytest.approx(np.sort(all_pairs, axis=1)[:, :20], rel=1e-5)


def test_balls_of_equal_and_of_distant_sets(rng):
    x = rng.standard_normal((50, 4))
    same, far = precision_recall(x, x), precision_recall(x, x + 100)
    assert same["precision"] == same["recall"] == same["coverage"] == 1
    assert set(far.values()) == {0.0}
    with pytest.raises(UserError, match="4 rows or more"):
        precision_recall(x[:3], x)


def test_nearest_rows(monkeypatch, rng):
    monkeypatch.setattr("eval.neighbours.TILE", 16)
    x, y = rng.standard_normal((30, 5)) + 50, rng.standard_normal((70, 5)) + 50
    all_pairs = np.linalg.norm(x[:, None].astype(np.float32).astype(np.float64) - y.astype(np.float32), axis=-1)
    distances, numbers = nearest(x, y, 3)
    assert np.array_equal(numbers, all_pairs.argsort(axis=1)[:, :3])
    assert distances == pytest.approx(np.sort(all_pairs, axis=1)[:, :3], rel=1e-5)


def test_copies_are_found(rng):
    train, held_out = rng.standard_normal((500, 4)), rng.standard_normal((200, 4))
    assert memorisation(train[:100], held_out, train) == 0
    assert memorisation(rng.standard_normal((200, 4)), held_out, train) == pytest.approx(1, abs=0.2)
    assert memorisation(held_out, train[:100], train) is None


# The programs


def images(folder, n, seed, size=8):
    """A folder of n random images."""
    folder.mkdir(parents=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (n, size, size, 3), dtype=np.uint8)
    for i, each in enumerate(pixels):
        Image.fromarray(each).save(folder / f"{i:06d}.png")
    return pixels


@pytest.fixture
def folders(tmp_path):
    images(tmp_path / "real", 40, 0)
    pixels = images(tmp_path / "run" / "samples", 30, 1)
    (tmp_path / "run" / "samples" / "settings.json").write_text("{}")
    Image.new("RGB", (99, 50)).save(tmp_path / "run" / "samples" / "grid.png")
    return tmp_path, pixels


def words(folder, *more):
    return [
        f"--sample_path={folder / 'run' / 'samples'}",
        f"--dataset=folder:{folder / 'real'}",
        "--split=all",
        "--device=cpu",
        *more,
    ]


def rows(path):
    return json.loads(path.read_text())["measures"]


def test_a_folder_is_measured(folders, capsys, monkeypatch):
    folder, pixels = folders
    how = words(folder, "--features=pixels")
    eval_generation.main(how)
    out = capsys.readouterr().out
    assert "FD(pixels)" in out and "30 samples" in out and "against 40 of" in out and "FID" not in out
    report = folder / "run" / "samples" / "generation.json"
    (row,) = rows(report)
    fake, real = (
        np.stack([np.asarray(Image.open(path)) for path in sorted(place.glob("0*.png"))])
        for place in (folder / "run" / "samples", folder / "real")
    )
    fake, real = (each.transpose(0, 3, 1, 2).reshape(len(each), -1) / 255 for each in (fake, real))
    assert row["results"]["FD"] == pytest.approx(frechet_distance(fake, real), rel=1e-5)
    assert row["results"]["precision"] == precision_recall(real, fake)["precision"]
    assert row["results"]["KID_size"] == 30

    # Equal settings take each other's place, others stand beside; features come from the cache
    monkeypatch.setattr("eval.networks.FeatureNetwork.__call__", lambda *args: pytest.fail("computed again"))
    eval_generation.main([*how, "--k=2"])
    eval_generation.main(how)
    assert [each["settings"]["k"] for each in rows(report)] == [2, 3]

    # The same images as an array
    np.savez(folder / "samples.npz", arr_0=pixels)
    monkeypatch.undo()
    eval_generation.main([*how[1:], f"--sample_path={folder / 'samples.npz'}", "--metrics", "FD"])
    assert rows(folder / "samples.generation.json")[0]["results"]["FD"] == row["results"]["FD"]


def test_changed_images_are_measured_anew(folders):
    folder, _ = folders
    how = words(folder, "--features=pixels", "--metrics=KID")
    eval_generation.main(how)
    Image.new("RGB", (8, 8)).save(folder / "run" / "samples" / "000003.png")
    eval_generation.main(how)
    first, second = (each["results"]["KID"] for each in rows(folder / "run" / "samples" / "generation.json"))
    assert first != second


def test_floor_and_flips(folders, capsys):
    folder, _ = folders
    real = ["--features=pixels", f"--real={folder / 'real'}", "--floor=halves"]
    eval_generation.main([words(folder)[0], "--device=cpu", *real])
    lines = capsys.readouterr().out.splitlines()
    assert " 20 of " in lines[-1] and "against 20 of" in lines[-1]
    plain, halves = rows(folder / "run" / "samples" / "generation.json")
    assert halves["settings"]["samples"]["images"] == 20 and halves["settings"] != plain["settings"]
    eval_generation.main(words(folder, "--features=pixels", "--flip=random"))
    flipped = rows(folder / "run" / "samples" / "generation.json")[-1]
    assert flipped["results"]["FD"] != plain["results"]["FD"]
    network = load_network("pixels")
    x = torch.randint(0, 256, (200, 3, 8, 8), dtype=torch.uint8)
    made = measures.network_encoder(network, "random", seed=1)(x, list(range(200)))["z"]
    with pytest.raises(UserError, match="floor: expected other images than the real ones, which are of test"):
        eval_generation.main(words(folder, "--features=pixels", "--split=test", "--floor=test"))
    mirrored = (made != network(x)).any(1)
    assert 70 < mirrored.sum() < 130 and torch.equal(made[mirrored], network(x.flip(3))[mirrored])


def test_what_is_wrong_is_told_first(folders, tmp_path, monkeypatch):
    folder, _ = folders
    monkeypatch.setattr(measures, "encode_to_file", lambda *args: pytest.fail("encoded"))
    for more, message in (
        (["--features=fid"], "features: expected one of"),
        (["--features=pixels", "--metrics", "FD", "IS"], "metrics: expected some of FD, KID, PR, got IS"),
        (["--features=pixels", "--num=31"], "expected 31 images or more, there are 30"),
        (["--features=pixels", "--k=40"], "expected 41 images or more"),
        (["--features=pixels", "--real=x"], "expected one of them, got both"),
        (["--features=lite0"], "lite0 needs a file such as"),
    ):
        with pytest.raises(UserError, match=message):
            eval_generation.main(words(folder, *more))
    (folder / "run" / "samples" / "generation.json").write_text('{"measures": {}}')
    with pytest.raises(UserError, match="move it away"):
        eval_generation.main(words(folder, "--features=pixels"))
    with pytest.raises(UserError, match="got uint8 \\(3, 4, 5, 3\\)"):
        np.savez(tmp_path / "x.npz", arr_0=np.zeros((3, 4, 5, 3), np.uint8))
        measures.open_samples(str(tmp_path / "x.npz"))


def test_samples_of_several_sizes_are_refused(folders):
    folder, _ = folders
    Image.new("RGB", (9, 9)).save(folder / "run" / "samples" / "000030.png")
    with pytest.raises(UserError, match=r"000030\.png: it is 9x9, expected 8x8"):
        eval_generation.main(words(folder, "--features=pixels"))


def test_the_nearest_images_are_drawn(folders):
    """Samples that are real images with a little noise are told as what they are."""
    folder, _ = folders
    for i, j in enumerate((7, 33, 12)):
        real = np.asarray(Image.open(folder / "real" / f"{j:06d}.png")).astype(int)
        noisy = (real + np.random.default_rng(i).integers(-3, 4, real.shape)).clip(0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(folder / "run" / "samples" / f"{i:06d}.png")
    how = words(folder, "--num=3", "--k=2", "--features=pixels", "--batch_size=7")
    nearest_images.main(how)
    report = json.loads((folder / "run" / "samples_nearest.json").read_text())
    for by in ("MSE", "pixels"):
        found = report["nearest"][by]
        assert [found[f"{i:06d}.png"][0]["image"] for i in range(3)] == ["000007.png", "000033.png", "000012.png"]
        assert found["000000.png"][0]["distance"] < found["000000.png"][1]["distance"]
    mse = report["nearest"]["MSE"]["000000.png"][0]["distance"]
    assert mse * 3 * 64 == pytest.approx(report["nearest"]["pixels"]["000000.png"][0]["distance"] ** 2, rel=1e-5)
    assert Image.open(folder / "run" / "samples_nearest.png").height > 5 * 64
    nearest_images.main(how)
    with pytest.raises(UserError, match="with another k"):
        nearest_images.main([*how, "--k=1"])
    nearest_images.main([*how, "--k=1", "--overwrite=true"])


def test_nearest_by_code(checkpoint, tmp_path):
    real = images(tmp_path / "real", 12, 0, size=32)
    (tmp_path / "samples").mkdir()
    Image.fromarray(real[5]).save(tmp_path / "samples" / "000000.png")
    how = [f"--sample_path={tmp_path / 'samples'}", f"--real={tmp_path / 'real'}", f"--model_path={checkpoint}"]
    nearest_images.main([*how, "--device=cpu"])
    found = json.loads((tmp_path / "samples_nearest.json").read_text())["nearest"]["code"]["000000.png"]
    assert found[0]["image"] == "000005.png" and found[0]["distance"] == pytest.approx(0, abs=1e-3)


class Small:
    """A quick feature network."""

    name = "8x8 pixels"

    def __call__(self, images):
        return reduced(images.float() / 255, 8)


def test_edits_that_do_nothing_and_edits_that_do_all(monkeypatch):
    splits = {name: Labelled(p.dataset.part(range(300)), Targets("binary", p.targets.names, p.targets.values[:300]))
              for name, p in labelled_splits("toyfaces", "binary", 32).items()}  # fmt: skip
    options = eval_manipulation.EditMeasureOptions(dataset="toyfaces", model_path="x", limit=40, judged=300)
    network = Small()
    judge = eval_manipulation.train_judge(network, splits, options)
    part, column = splits["test"], judge.names.index("Male")
    rows = [(part.targets.values[:, column] == has).nonzero().flatten()[:40] for has in (0, 1)]
    women, men = (eval_manipulation.pixels(part, each) for each in rows)

    def measured(made):
        monkeypatch.setattr(eval_manipulation, "edit", lambda *args: torch.stack([women, made], 1))
        return eval_manipulation.measure("Male", None, part, None, judge, network, options)

    nothing, everything = measured(women), measured(men)
    assert nothing["reached"] == nothing["reached_unedited"] and nothing["others_flipped"] == 0
    assert nothing["FD_to_negatives"] == nothing["FD_unedited_to_negatives"] > 0  # to other images than the originals
    assert nothing["FD_to_negatives"] < nothing["FD_to_positives"]
    assert nothing["cosine"]["edit"] == pytest.approx(1)
    assert everything["reached"] == everything["reached_positives"] > 0.7 > 0.3 > everything["reached_unedited"]
    assert abs(everything["FD_to_positives"]) < 1e-6 * everything["FD_to_negatives"]
    assert everything["others_flipped"] > 0 and everything["cosine"]["edit"] < 1


def test_real_images_of_a_class():
    whole = labelled_splits("toyfaces", "binary", 32)["test"]
    column = whole.targets.values[:, whole.targets.names.index("Male")]
    for name, rows in (("Male", column > 0), ("!Male", column <= 0)):
        options = measures.ComparisonOptions(sample_path="x", dataset="toyfaces", split="test", class_name=name)
        chosen = measures.open_reals(options, 32)
        assert len(chosen) == int(rows.sum())
        assert torch.equal(chosen[0][0], whole.dataset[int(rows.nonzero()[0])][0])
    with pytest.raises(UserError, match="class: expected one of"):
        measures.open_reals(measures.ComparisonOptions(sample_path="x", dataset="toyfaces", class_name="Mal"), 32)
