"""The benchmark programs run on a small model and print what they promise; speed itself is not tested."""

import json

import pytest
import torch
from lmdb_fixtures import image_folder
from test_edit_commands import call  # noqa: F401 - a fixture

from benchmarks import edit_response, quality_vs_nfe


@pytest.fixture
def quick(call):  # noqa: F811
    def run_main(program, *words):
        status, shown, error = call(program, *words)
        assert status == 0, error
        return shown

    return run_main


def test_quality_against_calls(checkpoint, quick, tmp_path):
    words = [f"--model_path={checkpoint}", "--limit=2", "--calls=1,3", f"--out={tmp_path / 'quality'}", "--device=cpu"]
    shown = quick(quality_vs_nfe, *words)
    report = json.loads((tmp_path / "quality.json").read_text())
    rows = report["rows"]
    assert report["images"] == 2 and {row["nfe"] for row in rows} == {1, 3}
    assert {row["sampler"] for row in rows} == {"one-step", "euler", "heun", "dbim", "dbim2", "dbim3", "dbm2"}
    assert all(row["setting"] in shown and row["MSE"] > 0 for row in rows)
    assert (tmp_path / "quality.png").exists()


def test_savings_count_only_where_the_row_is_as_good():
    official = quality_vs_nfe.OFFICIAL["MSE"].label
    rows = [
        {"setting": official, "nfe": 100, "seconds": 10.0, "MSE": 0.2},
        {"setting": "better", "nfe": 5, "seconds": 1.0, "MSE": 0.1},
        {"setting": "worse", "nfe": 5, "seconds": 1.0, "MSE": 0.3},
    ]
    _, better, worse = quality_vs_nfe.with_savings(rows)
    assert better["saves_MSE"] == 20 and better["faster_MSE"] == 10 and "saves_MSE" not in worse


def test_edit_response(checkpoint, quick, tmp_path):
    image_folder(tmp_path / "photos", [f"{i:02d}.png" for i in range(40)], 40, 40)
    rows = "".join(f"{i:02d}.png,{i % 2},{i % 3 == 0:d}\n" for i in range(40))
    (tmp_path / "photos" / "labels.csv").write_text("file,left,third\n" + rows)
    torch.manual_seed(0)
    torch.save(torch.nn.Linear(8, 2).state_dict(), tmp_path / "best.pt")
    (tmp_path / "best.json").write_text('{"attributes": ["left", "third"]}')
    words = [f"--model_path={checkpoint}", f"--dataset=folder:{tmp_path / 'photos'}", "--steps=1", "--limit=2"]
    words += [f"--classifier={tmp_path / 'best.pt'}", "--attributes=left,third", "--scales=-1,0,1"]
    shown = quick(edit_response, *words, f"--json={tmp_path / 'response.json'}")
    lines = json.loads((tmp_path / "response.json").read_text())["attributes"]
    assert [line["attribute"] for line in lines] == ["left", "third"] and "| left |" in shown
    for line in lines:
        assert line["response"][1] == 0  # scale 0 is the reconstruction
        assert line["monotone"] == (line["response"][0] < 0 < line["response"][2])
