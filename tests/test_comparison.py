"""The comparison: programs run once, what changed runs again, and tables say what was found."""

import json
import shutil

import pytest
import tiny

from dbae.config import UserError
from scripts import comparison
from scripts.comparison_tables import cell, claims

MEASURE = {
    "table": "Probes",
    "run": ["scripts.probe --model={model} --out={out}", "eval.py --weights={weights}"],
    "report": "{out}/sample_*/report.json",
    "columns": {"AP": "test.0.ap"},
}


@pytest.fixture
def setup(tmp_path, monkeypatch):
    """A settings file over two tiny models, and the commands that were run; each writes a report."""
    ran = []

    def program(words):
        ran.append(words)
        out = [word.partition("=")[2] for word in words if word.startswith("--out=")]
        if out:
            path = tmp_path / out[0] / "sample_20"
            path.mkdir(parents=True, exist_ok=True)
            (path / "report.json").write_text(json.dumps({"test": [{"ap": 0.25 * len(ran), "zero": 0.0}]}))

    monkeypatch.setattr(comparison, "program", program)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "w.pth").write_bytes(b"weights")
    rows = {}
    for name in ("A", "B"):
        (tmp_path / name).mkdir()
        rows[name] = {"model": str(tiny.written(tmp_path / name, tiny.model()))}
    claims = [{"text": "B is better", "left": ["B", "exact", "AP"], "right": ["A", "exact", "AP"]}]
    section = {"title": "Toys", "dataset": "toyfaces", "rows": rows}
    path = tmp_path / "settings.json"

    def write(measures=None, **changes):
        sections = {"toys": section | changes}
        content = {"measures": measures or {"exact": MEASURE}, "sections": sections, "claims": claims}
        path.write_text(json.dumps(content))

    write()
    words = [f"--settings={path}", f"--out={tmp_path}/out", "--files", "weights=w.pth", "--table", f"{tmp_path}/t.md"]
    return words, write, ran, tmp_path


def test_every_measure_of_every_row_is_taken_once(setup):
    words, write, ran, folder = setup
    comparison.main(words)
    assert [run[0] for run in ran] == ["scripts.probe", "eval.py"] * 2
    assert ran[1] == ["eval.py", "--weights=w.pth"]
    text = (folder / "t.md").read_text()
    assert "| A | 0.25 |" in text and "| B | 0.75 |" in text and "B is better: **holds here (B 0.75, A 0.25)**" in text
    assert f"{sum(p.numel() for p in tiny.model().parameters()):,}" in text

    comparison.main(words)
    assert len(ran) == 4 and (folder / "t.md").read_text() == text
    write(measures={"exact": MEASURE | {"run": ["scripts.probe --solver=exact --out={out}"]}})
    comparison.main(words)
    assert len(ran) == 6


def test_rows_of_one_model_differ_by_their_places_and_run_apart(setup):
    words, write, ran, folder = setup
    run = ["scripts.probe --model={model} --features={features} --out={out}"]
    model = json.loads((folder / "settings.json").read_text())["sections"]["toys"]["rows"]["A"]["model"]
    rows = {"code": {"model": model}, "pixels": {"model": "code", "places": {"features": "pixels"}}}
    columns = {"AP": ["test.0.ap", "test.0.ap"]}
    measures = {"m": MEASURE | {"run": run, "columns": columns}}
    write(rows=rows, places={"features": "model"}, measures=measures)
    comparison.main([*words, "--rows", "pixels"])
    assert [command[2] for command in ran] == ["--features=pixels"]
    text = (folder / "t.md").read_text()
    assert text.count("| pixels |") == 1 and "| pixels | 0.25 ± 0.25 |" in text and "- toys: code: m: not run" in text
    comparison.main(words)
    assert [command[2] for command in ran] == ["--features=pixels", "--features=model"]
    with pytest.raises(UserError, match="rows: expected some of code, pixels, got 'B'"):
        comparison.main([*words, "--rows", "B"])


def test_sections_that_are_not_asked_for_keep_what_is_known_of_them(setup):
    words, _, ran, folder = setup
    path, content = folder / "settings.json", json.loads((folder / "settings.json").read_text())
    content["sections"]["more"] = content["sections"]["toys"] | {"title": "More"}
    path.write_text(json.dumps(content))
    words += [f"--results={folder}/results.json"]
    comparison.main([*words, "--sections", "toys"])
    text = (folder / "t.md").read_text()
    assert len(ran) == 4 and "## Toys" in text and "## More" not in text and "Not measured" not in text
    shutil.rmtree(folder / "out")
    comparison.main([*words, "--sections", "more"])
    text = (folder / "t.md").read_text()
    assert len(ran) == 8 and "| A | 0.25 |" in text.split("## More")[0] and "| A | 1.25 |" in text.split("## More")[1]
    with pytest.raises(UserError, match="sections: expected some of toys more, got 'most'"):
        comparison.main([*words, "--sections", "most"])


@pytest.mark.parametrize("entries", [3, {"A": {"row": {}}}, {"A": {"measures": {"exact": {"values": [1]}}}}])
def test_results_of_another_form_are_refused(setup, entries):
    words, _, ran, folder = setup
    (folder / "results.json").write_text(json.dumps({"toys": entries}))
    with pytest.raises(UserError, match=r"results.json: toys: expected rows with measures"):
        comparison.main([*words, f"--results={folder}/results.json"])
    assert not ran


def test_lines_are_measures_of_their_own_and_the_same_commands_run_once(setup):
    words, write, ran, folder = setup
    lines = {
        "a, 3": {"rows": ["A"], "how": "--sampler=a --steps=3", "score": "ap"},
        "a, zero": {"rows": ["A"], "how": "--sampler=a --steps=3", "score": "zero"},
        "b": {"how": "--sampler=b", "score": "ap"},
    }
    run = ["scripts.probe {how} --out={out}"]
    write(measures={"m": MEASURE | {"run": run, "columns": {"AP": "test.0.{score}"}, "lines": lines}})
    comparison.main(words)
    assert [command[1:-1] for command in ran] == [["--sampler=a", "--steps=3"], ["--sampler=b"], ["--sampler=b"]]
    text = (folder / "t.md").read_text()
    assert "| A | a, 3 | 0.25 |" in text and "| A | a, zero | 0 |" in text and "| B | b | 0.75 |" in text


def test_what_fails_is_said_and_the_rest_goes_on(setup):
    words, write, ran, folder = setup
    lacking = MEASURE | {"run": ["x {inception}"], "table": "Generation"}
    wrong = MEASURE | {"columns": {"r": "last.r"}, "rows": ["B"]}
    write(measures={"fid": lacking, "wrong": wrong, "exact": MEASURE})
    with pytest.raises(UserError, match=r"3 measures were not taken.*needs --files inception=PATH"):
        comparison.main(words)
    text = (folder / "t.md").read_text()
    assert "### Generation" not in text  # a table without a number
    assert "toys: B: wrong: {out}/sample_*/report.json: nothing stands at 'last'" in text and "| B |" in text

    (folder / "A" / "ema_0.9999_000020.pt").write_bytes(b"?")
    before = len(ran)
    with pytest.raises(UserError, match="A"):
        comparison.main(words)
    assert len(ran) == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows": {"A": {}}}, "toys: A: expected a model or how to train one"),
        ({"measures": {"m": {**MEASURE, "colums": {}}}}, "json: m: expected an object with table"),
        ({"measures": {"m": {**MEASURE, "rows": ["C"]}}}, "json: m: expected names of rows, got 'C'"),
        ({"rows": [1]}, "toys: rows: expected an object, got"),
        ({"rows": {"A": {"train": "x", "seeds": 3}}}, "toys: A: seeds: expected a list of numbers, got 3"),
        ({"measures": {"m": {**MEASURE, "lines": {"l": 3}}}}, "m: l: expected an object, got 3"),
    ],
)
def test_wrong_settings_are_refused_before_anything_runs(setup, change, message):
    words, write, ran, _ = setup
    write(**change)
    with pytest.raises(UserError, match=message):
        comparison.main(words)
    assert not ran


def test_a_command_that_cannot_be_read_fails_and_other_files_are_not_replaced(setup):
    words, write, ran, folder = setup
    write(measures={"m": MEASURE | {"run": ["scripts.probe {"]}})
    with pytest.raises(UserError, match=r"measures were not taken.*scripts.probe \{"):
        comparison.main(words)
    (folder / "t.md").write_text("my notes")
    with pytest.raises(UserError, match=r"table: .*t.md is there already, and no comparison"):
        comparison.main(words)
    assert not ran and (folder / "t.md").read_text() == "my notes"


def test_a_model_without_a_file_is_trained_and_only_a_finished_run_counts(setup, monkeypatch):
    words, write, ran, folder = setup
    write(rows={"A": {"train": "--sto=false", "seeds": [0, 1]}})
    probe = comparison.program

    def program(command):
        if command[0] != "scripts.train":
            return probe(command)
        ran.append(command)
        where = {word.partition("=")[0]: word.partition("=")[2] for word in command}
        run = folder / where["--workdir"] / "toyfaces32"
        run.mkdir(parents=True)
        tiny.written(run, tiny.model(), total_steps=20, seed=int(where["--seed"]))
        for name in ("model_000020.pt", "opt_000020.pt"):
            (run / name).write_bytes(b"")

    monkeypatch.setattr(comparison, "program", program)
    comparison.main(words)
    assert [run[0] for run in ran] == ["scripts.train", "scripts.probe", "eval.py"] * 2
    assert ran[0][:3] == ["scripts.train", "--dataset=toyfaces", "--sto=false"]
    assert "| A | 0.875 ± 0.53 |" in (folder / "t.md").read_text()  # 0.5 and 1.25, by the number of the program

    write(rows={"A": {"train": "--sto=true", "seeds": [0]}})
    with pytest.raises(
        UserError, match=r"A_seed0/train.json: expected the command scripts.train .*--sto=true --seed=0"
    ):
        comparison.main(words)
    assert len(ran) == 6  # the model of other options is neither trained on nor shown
    assert "0.5" not in (folder / "t.md").read_text()

    write(rows={"A": {"train": "--sto=false", "seeds": [0, 1]}})
    for path in folder.glob("out/toys/A_seed1/*/opt_*.pt"):
        path.unlink()
    comparison.main([*words, "--collect"])
    assert "A_seed1: no finished training" in (folder / "t.md").read_text() and len(ran) == 6


def test_a_pattern_with_an_equals_sign_is_one_path(tmp_path):
    (tmp_path / "dbim_10_grid=logsnr").mkdir()
    pattern = str(tmp_path / "dbim_*grid=logsnr*")
    assert comparison.only(pattern) == str(tmp_path / "dbim_10_grid=logsnr")
    assert comparison.only(f"--sample_path={pattern}") == f"--sample_path={tmp_path}/dbim_10_grid=logsnr"
    with pytest.raises(comparison.Failure, match="expected one such path, there are 0"):
        comparison.only(f"--out={tmp_path}/absent*")


def test_several_seeds_give_a_mean_and_a_deviation():
    assert comparison.spread([1.0, 3.0]) == [2.0, pytest.approx(2**0.5)] and comparison.spread([64, 64]) == 64
    assert cell([2.0, 2**0.5]) == "2 ± 1.4" and cell(1234567) == "1,234,567" and cell(None) == ""
    assert comparison.spread([[1.0, 0.1], [3.0, 0.1]]) == [2.0, pytest.approx(2**0.5)]


def test_a_claim_is_judged_by_more_than_two_errors():
    found = {"A": {"m": {"AP": [0.5, 0.1]}}, "C": {"m": {"AP": [0.75, 0.05]}}, "D": {"m": {"AP": 0.7}}}

    def judged(left, right):
        return claims([{"text": "t", "left": [left, "m", "AP"], "right": [right, "m", "AP"]}], found)

    assert judged("A", "B") == "- t: **not measured here**."
    assert judged("C", "A") == "- t: **holds here (C 0.75 ± 0.05, A 0.5 ± 0.1)**."
    assert judged("A", "C") == "- t: **does not hold here (A 0.5 ± 0.1, C 0.75 ± 0.05)**."
    assert judged("D", "C") == "- t: **inconclusive here (D 0.7, C 0.75 ± 0.05)**."


def test_numbers_of_an_earlier_comparison_stand_in_for_what_is_not_run_and_are_compared_with_what_is(setup, capsys):
    words, write, ran, folder = setup
    path = folder / "results.json"
    words += ["--results", str(path)]
    measures = {"exact": MEASURE | {"columns": {"AP": ["test.0.ap", "test.0.ap"]}}}
    write(measures=measures)
    comparison.main(words)
    assert "0 of the numbers taken here were known" in capsys.readouterr().out
    text, found = (folder / "t.md").read_text(), json.loads(path.read_text())
    assert found["toys"]["A"]["measures"]["exact"]["values"] == {"AP": [0.25, 0.25]}

    shutil.rmtree(folder / "out")
    (folder / "A" / "ema_0.9999_000020.pt").unlink()  # as another's table would be used: with neither files nor weights
    comparison.main([*words, "--collect"])
    assert len(ran) == 4 and (folder / "t.md").read_text() == text and json.loads(path.read_text()) == found

    comparison.main([*words, "--rows", "B"])  # gives 1.25, twice 0.75 with an error as large
    said = capsys.readouterr().out
    assert "toys: 1 of the numbers taken here were known, 0 moved" in said
    found["toys"]["B"]["measures"]["exact"]["values"]["AP"] = [0.75, 0.01]
    path.write_text(json.dumps(found))
    shutil.rmtree(folder / "out")
    write(measures={"exact": measures["exact"] | {"columns": {"AP": ["test.0.ap", "test.0.zero"]}}})
    comparison.main([*words, "--rows", "B"])
    said = capsys.readouterr().out
    assert "1 moved by more than two errors" in said and "B: exact: AP: 1.75 ± 0, was 0.75 ± 0.01" in said
    text = (folder / "t.md").read_text()  # of A's report another number is asked for now, which is not known
    assert text.count("| A |") == 1 and "| B | 1.75 ± 0 |" in text, text  # its model alone
    assert json.loads(path.read_text())["toys"]["A"] == found["toys"]["A"]

    write(measures={"exact": MEASURE | {"run": ["scripts.probe --solver=exact --out={out}"]}})
    comparison.main([*words, "--collect"])  # other commands: what they would give is not known
    text = (folder / "t.md").read_text()
    assert "### Probes" not in text and "toys: B: exact: not run" in text, text


def test_other_data_and_other_files_are_measured_anew(setup):
    words, write, ran, folder = setup
    measure = {**MEASURE, "run": ["scripts.probe --dataset={dataset} --out={out}", "eval.py --weights={weights}"]}
    write({"exact": measure})
    comparison.main(words)
    (folder / "w.pth").write_bytes(b"others")
    comparison.main(words)
    assert len(ran) == 8
    comparison.main([*words, f"--results={folder}/results.json"])
    assert len(ran) == 8  # nothing has changed
    write({"exact": measure}, dataset="celeba")
    comparison.main([*words, "--collect", f"--results={folder}/results.json"])
    assert "toys: B: exact: not run" in (folder / "t.md").read_text()  # what is known is of toyfaces
    comparison.main(words)
    assert len(ran) == 12 and ran[-2][1] == "--dataset=celeba"
