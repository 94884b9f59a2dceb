"""Losses and gradients that are not finite: such a step changes nothing, is counted, and a long row of them ends it."""

import csv

import pytest
import torch

from benchmarks.faults import MICRO_BATCHES, equal, run_here
from dbae.checkpoint import complete_sets
from dbae.config import UserError
from dbae.methods.dbae import DBAE
from scripts.train import draw_preview


def faulty(first, last, harm):
    """DBAE whose last micro-batch of the steps first..last-1, counted from 0, is harmed by ``harm(model, x0)``."""

    class Faulty(DBAE):
        passes = 0

        def forward(self, x0, y=None):
            step, micro_batch = divmod(self.passes, MICRO_BATCHES)
            self.passes += 1
            harmed = first <= step < last and micro_batch == MICRO_BATCHES - 1
            return harm(self, x0) if harmed else self.loss(x0)

    return Faulty


HARMS = {
    "loss is NaN": lambda model, x0: model.loss(x0) * torch.nan,
    "loss of one image is infinite": lambda model, x0: model.loss(x0) + torch.tensor([torch.inf] + [0] * (len(x0) - 1)),
    "images are NaN, and with them the statistics of BatchNorm": lambda model, x0: model.loss(x0 * torch.nan),
    "second moments of the gradient would overflow": lambda model, x0: model.loss(x0) * 1e25,
}


def rows(folder):
    with (folder / "progress.csv").open() as file:
        return list(csv.DictReader(file))


def tensors(state):
    """Everything that an optimizer step changes."""
    moments = {f"{i}/{k}": v for i, each in state.optimizer.state_dict()["state"].items() for k, v in each.items()}
    return {**state.model.state_dict(), **{f"ema/{k}": v for k, v in state.ema.module.state_dict().items()}, **moments}


@pytest.mark.parametrize("harm", HARMS.values(), ids=HARMS.keys())
def test_a_bad_step_changes_nothing_but_the_counters(tmp_path, harm):
    before, _ = run_here(tmp_path / "before", total_steps=1)
    after, _ = run_here(tmp_path / "after", network=faulty(1, 2, harm), total_steps=2)
    assert (after.step, after.images) == (2, 2 * before.images)
    assert equal(tensors(after), tensors(before))
    good, bad = rows(tmp_path / "after")
    assert (good["skipped"], bad["skipped"], bad["loss"]) == ("0", "1", "nan")


def test_the_run_goes_on_after_a_bad_step(tmp_path):
    """The images of the bad step are gone; the row's loss is that of its good steps."""
    state, _ = run_here(tmp_path, network=faulty(1, 2, HARMS["loss is NaN"]), total_steps=4, log_interval=2)
    assert state.optimizer.state_dict()["state"][0]["step"] == 3
    first, second = rows(tmp_path)
    assert (first["skipped"], second["skipped"]) == ("1", "0")
    whole, _ = run_here(tmp_path / "whole", total_steps=1)
    assert first["loss"] == rows(tmp_path / "whole")[0]["loss"] and whole.step == 1


def test_many_bad_steps_in_a_row_end_the_run(tmp_path):
    network = faulty(2, 9, HARMS["loss is NaN"])
    with pytest.raises(UserError, match="in 3 steps in a row up to step 5"):
        run_here(tmp_path, network=network, total_steps=9, max_bad_steps=3, save_interval=3)
    assert [row["skipped"] for row in rows(tmp_path)] == ["0", "0", "1", "1", "1"]
    good, _ = run_here(tmp_path / "good", total_steps=2)
    resumed, _ = run_here(tmp_path, total_steps=5)
    assert resumed.step == 5 and equal(resumed.model.state_dict(), good.model.state_dict())


def test_bad_steps_that_are_not_in_a_row_do_not_end_it(tmp_path):
    class Alternating(faulty(1, 2, HARMS["loss is NaN"])):
        def forward(self, x0, y=None):
            self.passes %= 2 * MICRO_BATCHES  # a good step, a bad one, a good one...
            return super().forward(x0)

    state, _ = run_here(tmp_path, network=Alternating, total_steps=6, max_bad_steps=2)
    assert state.step == 6 and [row["skipped"] for row in rows(tmp_path)] == ["0", "1"] * 3


def test_loss_scale_falls_at_a_bad_step_and_survives_resuming(tmp_path):
    state, _ = run_here(tmp_path, network=faulty(0, 1, HARMS["loss is NaN"]), scaled=True, total_steps=2)
    assert state.scaler.get_scale() == 2.0**19
    resumed, _ = run_here(tmp_path, scaled=True, total_steps=2)
    assert resumed.step == 2 and resumed.scaler.state_dict() == state.scaler.state_dict()
    assert resumed.scaler.state_dict()["_growth_tracker"] == 1
    other, _ = run_here(tmp_path, scaled=False, total_steps=3)  # the advice of the error message can be followed
    assert other.step == 3
    back, _ = run_here(tmp_path, scaled=True, total_steps=3)
    assert back.scaler.get_scale() == 2.0**20


def test_settings_of_the_resuming_run_hold(tmp_path):
    run_here(tmp_path, total_steps=1, lr=1e-2)
    resumed, _ = run_here(tmp_path, total_steps=1, lr=1e-3, weight_decay=0.1)
    (group,) = resumed.optimizer.param_groups
    assert resumed.step == 1 and (group["lr"], group["weight_decay"]) == (1e-3, 0.1)


def test_broken_weights_are_not_saved(tmp_path, capsys):
    def harm(model, x0):
        with torch.no_grad():
            next(p for p in model.parameters() if p.requires_grad).fill_(torch.inf)
        return model.loss(x0)

    with pytest.raises(UserError, match="in 2 steps in a row up to step 4"):
        run_here(tmp_path, network=faulty(2, 3, harm), max_bad_steps=2)
    assert complete_sets(str(tmp_path), 0.9) == [(1, "freq_"), (2, "freq_")]
    assert "the checkpoint of step 3 could not be written: the weights are not finite" in capsys.readouterr().err


def test_a_preview_that_is_not_finite_is_a_warning(tmp_path, capsys):
    def preview(model, step):
        with torch.no_grad():
            model.unet.out[2].bias.fill_(torch.nan)
        draw_preview(torch.zeros(2, 3, 32, 32, dtype=torch.uint8), str(tmp_path), model, step)

    state, _ = run_here(tmp_path, total_steps=1, preview=preview)
    assert state.step == 1 and not (tmp_path / "samples").exists()
    assert "the pictures of step 1 could not be written: images: expected finite numbers" in capsys.readouterr().err


@pytest.mark.parametrize("harm", ["moments", "weights"])
def test_a_run_does_not_go_on_from_what_is_not_finite(tmp_path, harm):
    run_here(tmp_path, total_steps=1)
    path = tmp_path / ("opt_000001.pt" if harm == "moments" else "model_000001.pt")
    content = torch.load(path, weights_only=True)
    harmed = content["optimizer"]["state"][0]["exp_avg"] if harm == "moments" else content["out.2.bias"]
    harmed.fill_(torch.inf)
    torch.save(content, path)
    if harm == "weights":  # saved by a version that did not look, so with checksums that agree
        saved = torch.load(tmp_path / "opt_000001.pt", weights_only=True)
        torch.save({**saved, "fingerprints": {}}, tmp_path / "opt_000001.pt")
    with pytest.raises(UserError, match="expected an undamaged checkpoint, none of its 1 can be used"):
        run_here(tmp_path, total_steps=2)
