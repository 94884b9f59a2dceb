"""Weights as .safetensors: the same model there and back, models as folders and on the Hub, and files to be refused."""

import json
import struct
import sys
from types import SimpleNamespace

import pytest
import tiny
import torch
from parity import released_state
from safetensors.torch import load_file, save_file

from dbae.checkpoint import config_content, load_model, read_weights, save_weights, write_config
from dbae.config import TrainConfig, UserError
from dbae.hub import from_pretrained, push_to_hub, save_pretrained
from dbae.methods.diffae import DiffAE, DiffAEConfig
from dbae.tensors import read_tensors, write_tensors
from scripts import convert, reconstruct


@pytest.fixture(scope="module")
def model():
    return tiny.model(stochastic=True, schedule="ve")


@pytest.fixture
def weights(tmp_path, model):
    """The EMA file of a run folder."""
    write_config(str(tmp_path / "run"), config_content(model, "toyfaces", train=TrainConfig(lr=0.5)))
    path = str(tmp_path / "run/ema_0.9999_000020.pt")
    save_weights(path, model)
    return path


def converted(source, out, *words):
    convert.main([f"--model_path={source}", f"--out={out}", *words])
    return str(out)


def bare(state):
    """Stands for a model of some tensors."""
    return SimpleNamespace(state_dict=lambda: state, to_official=dict)


def same(one, other):
    return one.keys() == other.keys() and all(
        torch.equal(one[n], other[n]) and one[n].dtype == other[n].dtype for n in one
    )


def assert_same_model(found, expected):
    assert found.config == expected.config and not found.training
    assert same(found.state_dict(), expected.state_dict())
    x = tiny.images(2)
    with torch.no_grad():
        assert torch.equal(found.encode(x, sample=False), expected.encode(x, sample=False))


# -- there and back --------------------------------------------------------------------------------------------------


def test_there_and_back(tmp_path, weights, model):
    path = converted(weights, tmp_path / "model.safetensors")
    assert_same_model(load_model(path), model)
    assert same(load_file(path), read_tensors(weights))  # the official names, for any reader of the format
    back = converted(path, tmp_path / "back/ema_0.9999_000020.pt")
    assert same(read_tensors(back), read_tensors(weights))
    assert (tmp_path / "back/config.json").read_text() == (tmp_path / "run/config.json").read_text()
    with pytest.raises(UserError, match=r"schedule: .* was trained with ve, got vp"):
        load_model(path, schedule="vp")


def test_a_released_file_gets_a_configuration(tmp_path):
    bare = tmp_path / "ema_0.9999_1020000.pt"
    torch.save(released_state(64, "det"), bare)
    with pytest.raises(UserError, match="schedule: needed for"):
        converted(bare, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match="made for 64x64 images, but ffhq is 128x128"):
        converted(bare, tmp_path / "a.safetensors", "--schedule=vp", "--dataset=ffhq")
    path = converted(bare, tmp_path / "a.safetensors", "--schedule=vp", "--dataset=celeba")
    content = read_weights(path)[1]
    assert content["dataset"] == "celeba" and content["method"] == "dbae"
    assert (content["model"]["image_size"], content["model"]["num_channels"]) == (64, 64)
    assert content["model"]["schedule"] == "vp"


def test_files_of_others(tmp_path, weights, model):
    """Without a configuration inside, the one beside the file counts, and without that the shapes and the schedule."""
    path = str(tmp_path / "run/plain.safetensors")
    save_file(read_tensors(weights), path)
    assert read_weights(path)[1] is None
    assert_same_model(load_model(path), model)
    save_file(read_tensors(weights), str(tmp_path / "bare.safetensors"))
    with pytest.raises(UserError, match="schedule: needed for"):
        load_model(str(tmp_path / "bare.safetensors"))


def test_tensors_that_share_memory_or_are_views(tmp_path):
    whole = torch.arange(12.0).reshape(3, 4)
    state = {"a": whole.T, "b": whole[0], "c": whole[0], "d": torch.tensor(3)}
    save_weights(str(tmp_path / "a.safetensors"), bare(state), {"model": {}})
    assert same(load_file(tmp_path / "a.safetensors"), state)


# -- what is refused -------------------------------------------------------------------------------------------------


def test_no_configuration_is_left_in_the_current_folder(tmp_path, weights, monkeypatch):
    """Where it would be taken for that of all weights there."""
    whole = converted(weights, tmp_path / "a" / "whole.safetensors")
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    for out in ("b.pt", "./b.pt", here / "b.pt"):
        with pytest.raises(UserError, match=r"out: expected a folder for it, such as b/b\.pt, as config.json"):
            converted(whole, out)
    assert not list(here.iterdir())
    converted(whole, "b/b.pt")
    assert {path.name for path in (here / "b").iterdir()} == {"b.pt", "config.json"}


def test_nothing_is_replaced_unasked(tmp_path, weights):
    out = tmp_path / "model.safetensors"
    out.write_bytes(b"mine")
    with pytest.raises(UserError, match=r"out: .*model.safetensors is there already; give --overwrite true"):
        converted(weights, out)
    assert out.read_bytes() == b"mine"
    converted(weights, out, "--overwrite")
    (tmp_path / "linked.safetensors").hardlink_to(weights)
    with pytest.raises(UserError, match="is an input, and inputs are never overwritten"):
        converted(weights, tmp_path / "linked.safetensors", "--overwrite")
    (tmp_path / "other").mkdir()
    (tmp_path / "other/config.json").write_text("mine")
    with pytest.raises(UserError, match=r"out: .*other/config.json is there already"):
        converted(out, tmp_path / "other/ema_0.9999_000020.pt")
    assert (tmp_path / "other/config.json").read_text() == "mine" and len(list((tmp_path / "other").iterdir())) == 1


@pytest.mark.parametrize(
    ("source", "out", "message"),
    [
        (
            "run/ema_0.9999_000020.pt",
            "b.pt",
            r"out: expected a name that ends in .safetensors for this weight file, got .*b.pt",
        ),
        ("a.safetensors", "b.safetensors", "out: expected a name that ends in .pt for this weight file"),
        ("", "b.safetensors", " is a folder; expected a weight file"),
        ("absent.pt", "b.safetensors", r"no such file: .*absent.pt"),
        ("absent.safetensors", "b.pt", r"no such file: .*absent.safetensors"),
        ("run/opt_000020.pt", "b.safetensors", "expected tensors by name; 'optimizer' holds none"),
    ],
)
def test_wrong_input_is_one_line(tmp_path, weights, source, out, message):
    write_tensors(str(tmp_path / "run/opt_000020.pt"), {"optimizer": {"lr": 1.0}})
    with pytest.raises(UserError, match=message) as caught:
        converted(tmp_path / source, tmp_path / out)
    assert "\n" not in str(caught.value) and not (tmp_path / out).exists()


@pytest.mark.parametrize("words", ["--method=diffae", "--dataset=celeba"])
def test_what_a_file_states_is_not_said_otherwise(tmp_path, weights, words):
    with pytest.raises(UserError, match=words[2:].replace("=", ".*")):
        converted(weights, tmp_path / "out.safetensors", words)
    converted(weights, tmp_path / "out.safetensors", "--method=dbae", "--dataset=toyfaces")


@pytest.fixture
def whole(tmp_path):
    path = tmp_path / "a.safetensors"
    save_weights(str(path), bare({"a": torch.zeros(4), "b": torch.ones(2, 2)}), {"model": {}})
    return path


def with_header(header):
    encoded = json.dumps(header).encode() if not isinstance(header, bytes) else header
    return struct.pack("<Q", len(encoded)) + encoded


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"text", b"\xff" * 64, with_header([]), with_header({"a": 1}), with_header({"__metadata__": []})),
        with_header({"a": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}}),
        with_header({"a": {"dtype": "object", "shape": [1], "data_offsets": [0, 0]}}),
        with_header({"__metadata__": {"dbae": "{"}}),
        with_header(b"[" * 100_000),
    ],
)
def test_hostile_files(whole, content):
    whole.write_bytes(content)
    for read in (read_weights, load_model):
        with pytest.raises(UserError, match=r"a.safetensors: (refused|expected)") as caught:
            read(str(whole))
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


@pytest.mark.parametrize("content", ["3", "{}", '{"model": 3}', '{"model": {"depth": 3}}'])
def test_hostile_configurations(tmp_path, content):
    path = str(tmp_path / "a.safetensors")
    save_file({"a": torch.zeros(1)}, path, {"dbae": content})
    with pytest.raises(UserError, match=r"a.safetensors: (expected an object|.*unknown setting 'depth')"):
        load_model(path)


def test_damaged_files(whole):
    chance = torch.Generator().manual_seed(0)
    content = whole.read_bytes()
    for _ in range(200):
        data = bytearray(content)
        data[int(torch.randint(len(data), (), generator=chance))] ^= 1 << int(torch.randint(8, (), generator=chance))
        whole.write_bytes(data)
        try:
            read_weights(str(whole))
        except UserError as error:
            assert "\n" not in str(error)


def test_without_the_package(tmp_path, monkeypatch, model, whole):
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    monkeypatch.setitem(sys.modules, "safetensors", None)
    for call in (lambda: load_model(str(whole)), lambda: save_pretrained(model, str(tmp_path))):
        with pytest.raises(UserError, match="need the package safetensors: pip install safetensors"):
            call()


# -- folders and the Hub ---------------------------------------------------------------------------------------------


def test_a_folder_is_a_model(tmp_path, model):
    folder = tmp_path / "folder"
    save_pretrained(model, str(folder), "toyfaces")
    write_config(str(tmp_path / "run"), config_content(model, "toyfaces", train=TrainConfig()))
    with pytest.raises(UserError, match="run: expected another folder, this one is of a training run"):
        save_pretrained(model, str(tmp_path / "run"))
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert_same_model(from_pretrained(str(folder)), model)
    card = (folder / "README.md").read_text()
    for fact in ("library_name: dbae", "| stochastic | True |", "| latent_dim | 8 |", "| schedule | ve |", "toyfaces"):
        assert fact in card
    assert json.loads((folder / "config.json").read_text())["model"]["schedule"] == "ve"
    (folder / "README.md").write_text("mine")
    save_pretrained(model, str(folder))
    assert (folder / "README.md").read_text() == "mine"


def test_folders_that_are_no_models(tmp_path, weights):
    with pytest.raises(UserError, match=r"run: expected a folder with model.safetensors"):
        from_pretrained(str(tmp_path / "run"))
    for name in (str(tmp_path / "absent"), "no name", "a/b/c", "../x/y", ""):
        with pytest.raises(UserError, match="expected a folder, or a repository of the Hub like OWNER/NAME"):
            from_pretrained(name)


class Hub:
    """Stands for the client: repositories are folders, of which it notes what is asked for."""

    def __init__(self, root):
        self.root, self.asked = root, []

    def hf_hub_download(self, repo, name, revision=None):
        self.asked.append((repo, name, revision))
        if not (self.root / repo / name).exists():
            raise FileNotFoundError("404\n\nnot found")
        return str(self.root / repo / name)

    def HfApi(self, token=None):
        self.token = token
        return SimpleNamespace(create_repo=self.create, upload_folder=self.upload)

    def create(self, repo, private, exist_ok):
        if repo == "not/mine":
            raise RuntimeError("403 Forbidden")
        (self.root / repo).mkdir(parents=True, exist_ok=exist_ok)
        self.private = private
        return f"https://hub/{repo}"

    def upload(self, repo_id, folder_path, commit_message):
        import shutil

        shutil.copytree(folder_path, self.root / repo_id, dirs_exist_ok=True)


def test_up_to_the_hub_and_down_again(tmp_path, monkeypatch, model):
    hub = Hub(tmp_path)
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    assert push_to_hub(model, "me/faces", "toyfaces", token="secret") == "https://hub/me/faces"
    assert hub.token == "secret" and hub.private
    monkeypatch.chdir("/")  # me/faces is no folder here
    assert_same_model(from_pretrained("me/faces", revision="v1"), model)
    assert hub.asked == [("me/faces", "config.json", "v1"), ("me/faces", "model.safetensors", "v1")]
    for call in (lambda: from_pretrained("me/absent"), lambda: push_to_hub(model, "not/mine")):
        with pytest.raises(UserError, match=r"the Hub does not answer as expected: 40[34] \w+") as caught:
            call()
        assert "\n" not in str(caught.value)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match="the Hub needs the package huggingface_hub: pip install huggingface_hub"):
        from_pretrained("me/faces")


def test_the_real_client_without_network(monkeypatch, tmp_path):
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match="me/absent: the Hub does not answer as expected: ") as caught:
        from_pretrained("me/absent")
    assert "\n" not in str(caught.value)


def test_programs_are_told_the_method_by_the_file(tmp_path, capsys):
    """Whatever run lies beside it."""
    (tmp_path / "own").mkdir()
    path = tiny.written(tmp_path / "own", DiffAE(DiffAEConfig(**tiny.SMALL, latent_dim=6)))
    tiny.written(tmp_path, tiny.model())
    whole = converted(path, tmp_path / "other.safetensors", "--method=diffae")
    words = ["--dataset=toyfaces", "--split=test", "--limit=2", "--device=cpu", "--sampler=ddim", "--steps=3"]
    reconstruct.main([*words, f"--model_path={whole}", "--evaluate", "--metrics=MSE"])
    (report,) = tmp_path.rglob("metrics.json")
    assert "xT=inferred" in str(report) and json.loads(report.read_text())["nfe"] == 6
    with pytest.raises(UserError, match=r"method: .* is of diffae, got ddae"):
        reconstruct.main([*words, f"--model_path={whole}", "--method=ddae"])


def test_what_evaluation_may_change_is_kept(tmp_path, weights):
    path = converted(weights, tmp_path / "a.safetensors", "--end_data=0.25")
    assert load_model(path).config.end_data == 0.25
