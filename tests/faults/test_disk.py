"""Disks that fill up, files that rot, tables torn by a loss of power."""

import csv
import errno
import itertools
import os
import re
import shutil
import threading
from pathlib import Path

import pytest
import torch

from benchmarks.faults import MICRO_BATCHES, equal, results, run_here
from dbae import progress, state, training
from dbae.background import Background
from dbae.checkpoint import complete_sets, config_content, load_model, write_config
from dbae.config import TrainConfig, UserError
from dbae.io import fingerprint
from dbae.progress import attempt


@pytest.fixture(scope="module")
def rested(tmp_path_factory):
    """A run that rests after step 4 of 6: the kept set of step 4 and the preemption set of step 3."""
    folder = tmp_path_factory.mktemp("rested")
    run_here(folder, total_steps=4)
    return folder


@pytest.fixture
def run(tmp_path, rested):
    """A copy of that run."""
    return Path(shutil.copytree(rested, tmp_path / "run"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Results of an undisturbed run."""
    folder = tmp_path_factory.mktemp("whole")
    run_here(folder)
    return results(folder)


def full_from_to(monkeypatch, first, last):
    """Synchronising a file of the sets of steps first..last finds the disk full, whenever they are written."""
    works = os.fsync

    def fsync(descriptor):
        match = re.search(r"_(\d{6})\.pt", os.readlink(f"/proc/self/fd/{descriptor}"))
        if match and first <= int(match[1]) <= last:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        works(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)


def test_a_full_disk_keeps_the_earlier_sets_and_training_goes_on(tmp_path, monkeypatch, capsys, whole):
    seen = {}

    def watching(what, write):
        reason = attempt(what, write)
        seen[what.split()[-1]] = complete_sets(str(tmp_path), 0.9), list(tmp_path.glob("*.tmp"))
        return reason

    full_from_to(monkeypatch, 3, 5)
    monkeypatch.setattr(training, "attempt", watching)
    run_here(tmp_path)
    assert [seen[step] for step in "345"] == [([(1, "freq_"), (2, "freq_")], [])] * 3
    assert not list(tmp_path.glob("*_00000[345].pt"))
    warnings = capsys.readouterr().err.splitlines()
    assert [warning.split(":")[0] for warning in warnings] == ["warning"] * 3 and "of step 3 could" in warnings[0]
    assert equal(results(tmp_path), whole)


def test_a_failing_last_checkpoint_is_an_error(tmp_path, monkeypatch, whole):
    full_from_to(monkeypatch, 6, 6)
    with pytest.raises(UserError, match="the checkpoint of step 6, the last one, could not be written: No space left"):
        run_here(tmp_path)
    monkeypatch.undo()
    assert complete_sets(str(tmp_path), 0.9) == [(4, ""), (5, "freq_")]
    run_here(tmp_path)
    assert equal(results(tmp_path), whole)


def test_training_goes_on_while_a_set_is_written_and_the_next_set_waits(tmp_path, monkeypatch, whole):
    """The set holds the step that it is of, to the bit."""
    works, may_go_on, seen = os.replace, threading.Event(), {}

    def replace(source, target):
        assert "_000002.pt" not in target or may_go_on.wait(timeout=60)
        works(source, target)

    def sabotage(batches):
        for i, batch in enumerate(batches):
            seen.setdefault(i // MICRO_BATCHES, complete_sets(str(tmp_path), 0.9))
            if i == 3 * MICRO_BATCHES:
                may_go_on.set()
            yield batch

    run_here(tmp_path / "two", total_steps=2)
    monkeypatch.setattr(os, "replace", replace)
    run_here(tmp_path, sabotage=sabotage, save_interval=2, save_interval_for_preemption=100)
    assert seen[3] == [] and (2, "") in seen[4]
    assert equal(results(tmp_path, 2), results(tmp_path / "two", 2)) and equal(results(tmp_path), whole)


def test_work_in_the_background_is_done_in_order_few_pieces_at_a_time():
    done, gate = [], threading.Event()
    with Background(waiting=2) as background:
        assert background.submit(lambda: gate.wait(60) and done.append(0)).done() is False
        background.submit(lambda: done.append(1))
        threading.Timer(0.2, gate.set).start()
        background.submit(lambda: done.append(2))  # waits for the first
        assert done[0] == 0
    assert done == [0, 1, 2]
    with pytest.raises(ZeroDivisionError), Background() as background:
        background.submit(lambda: 1 / 0)
    with pytest.raises(KeyError), Background(waiting=9) as background:  # what was computed is kept
        gate.clear()
        background.submit(lambda: gate.wait(60) and done.append(3))
        background.submit(lambda: done.append(4))
        threading.Timer(0.2, gate.set).start()
        raise KeyError
    assert done == [0, 1, 2, 3, 4]


def test_what_nobody_foresaw_while_writing_ends_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(state, "write_tensors", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run_here(tmp_path)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # TensorBoard's own
def test_a_lost_folder_is_made_anew(tmp_path, whole):
    def lose(batches):
        for i, images in enumerate(batches):
            if i == 3 * MICRO_BATCHES:
                (tmp_path / "run").rename(tmp_path / "lost")
            yield images

    run_here(tmp_path / "run", sabotage=lose)
    assert equal(results(tmp_path / "run"), whole)


def test_pictures_and_rows_can_fail_too(tmp_path, monkeypatch, capsys):
    def fail(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(progress.Progress, "_append", fail)
    assert run_here(tmp_path, total_steps=2, log_interval=2, preview=fail)[0].step == 2
    warnings = capsys.readouterr().err
    assert "a row of progress.csv could not be written" in warnings and "the pictures of step 2" in warnings


def damage(path, how="one bit"):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes({"truncated": content[: len(content) // 2], "one bit": content, "empty": b""}[how])


@pytest.mark.parametrize("how", ["truncated", "one bit", "empty"])
@pytest.mark.parametrize("name", ["model_000004.pt", "ema_0.9_000004.pt", "opt_000004.pt"])
def test_a_damaged_set_is_named_and_the_one_before_it_used(run, capsys, name, how):
    damage(run / name, how)
    assert run_here(run, total_steps=3)[0].step == 3
    (warning,) = capsys.readouterr().err.splitlines()
    assert str(run / name) in warning and "damaged" in warning and warning.endswith("step 4 is left aside")


def test_the_run_that_goes_back_ends_as_if_nothing_had_happened(run, whole):
    damage(run / "ema_0.9_000004.pt")
    run_here(run)
    assert equal(results(run), whole) and (4, "") in complete_sets(str(run), 0.9)


def test_files_of_different_runs_are_not_one_set(tmp_path, run, capsys):
    """Each file is whole, so that only the fingerprints can tell."""
    run_here(tmp_path / "other", total_steps=4, lr=1e-3)
    shutil.copy(tmp_path / "other" / "model_000004.pt", run)
    run_here(run, total_steps=3)
    assert "model_000004.pt: damaged: it is not the file that was saved with" in capsys.readouterr().err


def test_a_run_never_starts_anew_where_all_sets_are_damaged(run):
    before = {path.name for path in run.iterdir()}
    for path in run.glob("*model*.pt"):
        damage(path)
    with pytest.raises(UserError, match="expected an undamaged checkpoint, none of its 2 can be used"):
        run_here(run)
    assert {path.name for path in run.iterdir()} == before


def test_sets_without_fingerprints_load_as_before(run):
    content = torch.load(run / "opt_000004.pt", weights_only=True)
    files = {"model": "model_000004.pt", "ema": "ema_0.9_000004.pt"}
    assert content.pop("fingerprints") == {kind: fingerprint(str(run / name)) for kind, name in files.items()}
    torch.save(content, run / "opt_000004.pt")
    assert run_here(run, total_steps=4)[0].step == 4


def test_weights_saved_without_checksums_load(run):
    """torch can leave the CRC-32 out; other writers do."""
    rested, _ = run_here(run, total_steps=4)
    write_config(str(run), config_content(rested.model, "toyfaces", train=TrainConfig()))
    weights = torch.load(run / "ema_0.9_000004.pt", weights_only=True)
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(weights, run / "ema_0.9_000004.pt")
    finally:
        torch.serialization.set_crc32_options(True)
    torch.save(weights, run / "model_000004.pt", _use_new_zipfile_serialization=False)
    for name in ("ema_0.9_000004.pt", "model_000004.pt"):
        load_model(str(run / name))


@pytest.mark.parametrize("content", [{}, {"optimizer": 3}, {"optimizer": {}, "fingerprints": 3}, {"step": "x"}])
def test_a_foreign_optimizer_file_is_a_damaged_one(run, content):
    torch.save(content, run / "opt_000004.pt")
    assert run_here(run, total_steps=3)[0].step == 3


def test_table_is_continued_without_torn_rows(tmp_path):
    table = tmp_path / "progress.csv"
    table.write_bytes(
        b"step,images,loss,images_per_second,seconds\r\n"  # as written before skipped steps were counted
        b"1,8,1.5,10.0,1.0\r\n"
        b"2,16,1.4,10\n"
        b"\x00\x00\xff\r\n"
        b"\r\n"
        b"3,24,nan,10.0,2.0,1\r\n"
        b"4,32,1.3,10.0,3.0,0\r\n"
        b"5,40,1.2,10.0,4.0"
    )
    config = TrainConfig(total_steps=6, log_interval=1, batch_size=8)
    with progress.Progress(str(tmp_path), 4, config, quiet=True) as report:
        report.update(5, 40, 1.25)
        with table.open("ab") as file:
            file.write(b"6,48,1.1")  # the disk was full
        report.torn = True
        report.update(6, 48, None)
    progress.Progress(str(tmp_path), 6, config, quiet=True)
    with table.open() as file:
        found = [(row["step"], row["loss"], row["skipped"]) for row in csv.DictReader(file)]
    assert found == [("1", "1.5", "0"), ("3", "nan", "1"), ("4", "1.3", "0"), ("5", "1.25", "0"), ("6", "nan", "1")]
    assert float(list(csv.reader(table.open()))[-1][4]) >= 3.0  # seconds go on from the last row


def test_failed_write_removes_its_own_part_of_a_set(tmp_path, monkeypatch):
    """The weights fit on the disk, the optimizer's state does not: no weights of a set that is not complete remain."""
    made, works, writes = run_here(tmp_path, total_steps=1)[0], os.replace, itertools.count(1)

    def replace(source, target):
        if next(writes) == 3:
            raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))
        works(source, target)

    monkeypatch.setattr(os, "replace", replace)
    made.step = 7
    with pytest.raises(OSError):
        made.save(str(tmp_path))
    assert not list(tmp_path.glob("*_000007.pt")) and not list(tmp_path.glob("*.tmp"))
