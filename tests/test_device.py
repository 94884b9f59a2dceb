"""Devices, as far as a machine without a GPU shows: which one is chosen, its float32, and seeds that mean the same."""

import subprocess

import pytest
import torch
from conftest import ROOT

from dbae import runtime
from dbae.config import UserError
from dbae.device import choose_device
from dbae.io import image_generators, randn_like
from scripts.dit import precision_name

LISTED = "GPU 0: NVIDIA H200 (UUID: GPU-1)\n  MIG 1g.18gb Device 0: (UUID: MIG-1)\nGPU 1: NVIDIA H200 (UUID: GPU-2)\n"
FAILED = "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.\nIs it running?\n"


@pytest.fixture
def listing(tmp_path, monkeypatch):
    """Make this a machine on whose path nvidia-smi prints a text, or none is; torch finds no GPU."""

    def make(text, visible):
        for name in ("bash", "dirname", "grep", "tr", "cat"):
            (tmp_path / name).symlink_to(f"/usr/bin/{name}")
        if text is not None:
            (tmp_path / "nvidia-smi").write_text(f"#!/usr/bin/env bash\n[[ $* == -L ]]\ncat <<'END'\n{text}END\n")
            (tmp_path / "nvidia-smi").chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path))
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        monkeypatch.delenv("NPROC", raising=False)
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if visible is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)

    return make


@pytest.mark.parametrize(
    ("text", "visible", "processes", "usable"),
    [
        (None, None, 1, True),
        (FAILED, None, 1, True),
        ("No devices found.\n", None, 1, True),
        (LISTED, None, 2, False),
        (LISTED, "1", 1, False),
        (LISTED, "0,1", 2, False),
        (LISTED, "", 1, True),
        (LISTED, "-1", 1, True),
        (None, "0,1", 2, True),  # without nvidia-smi, a variable alone lists nothing
    ],
)
def test_gpus_that_are_listed_and_cannot_be_used_are_an_error(listing, text, visible, processes, usable):
    """Launchers count processes by the same list."""
    listing(text, visible)
    counted = subprocess.run(["bash", "-c", "source args.sh; echo $NPROC"], cwd=ROOT, capture_output=True, text=True)
    assert counted.stdout == f"{processes}\n", counted.stderr
    assert choose_device("cpu").type == "cpu"
    if usable:
        assert choose_device("auto").type == "cpu"
        return
    with pytest.raises(UserError) as error:
        choose_device("auto")
    text = str(error.value)
    assert "nvidia-smi lists GPUs" in text and "--device cpu" in text and torch.__version__ in text
    assert torch.cuda.is_available() or "CUDA" in text or "NVIDIA" in text  # what torch says


def test_a_gpu_is_set_up_for_fixed_shapes_and_float32(monkeypatch):
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    monkeypatch.setattr(runtime, "choose_device", lambda name, local: torch.device("cuda", local))
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert runtime.setup("auto") == torch.device("cuda", 3)
    assert torch.backends.cudnn.benchmark is True
    assert not torch.backends.cudnn.allow_tf32 and not torch.backends.cuda.matmul.allow_tf32


@pytest.mark.parametrize(
    ("precision", "dtype", "convolutions", "products"),
    [
        ("fp32", None, False, False),
        ("tf32", None, True, True),
        ("bf16", torch.bfloat16, True, False),
        ("fp16", torch.float16, True, False),
        ("auto", torch.bfloat16, True, False),
    ],
)
def test_what_float32_means_on_a_gpu(monkeypatch, precision, dtype, convolutions, products):
    import tiny

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    model = tiny.model()
    try:
        found = runtime.amp_dtype(precision, torch.device("cuda"))
        model.use_amp(found)
        assert found == dtype
        assert precision_name(precision, found) == ("tf32" if precision == "tf32" else str(dtype or torch.float32)[6:])
        assert (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32) == (convolutions, products)
        assert model.precision == ("bf16" if precision == "auto" else precision)
    finally:
        runtime.allow_tf32(convolutions=False, products=False)


@pytest.mark.parametrize("precision", ["tf32", "fp16"])
def test_precisions_of_gpus_alone(precision):
    with pytest.raises(UserError, match=f"precision: {precision} needs a GPU, the device is cpu"):
        runtime.amp_dtype(precision, torch.device("cpu"))


def test_a_seed_means_the_same_on_every_device():
    """Numbers for another device, here one that holds none, are drawn from the same generators."""
    here, there = image_generators(0, range(3)), image_generators(0, range(3))
    for shape in ((3, 5), (3, 3, 4, 4), (3,)):
        x = torch.empty(shape, dtype=torch.float64)
        drawn, elsewhere = randn_like(x, here), randn_like(x.to("meta"), there)
        assert elsewhere.is_meta and elsewhere.shape == shape and elsewhere.dtype == x.dtype
        own = [torch.Generator().set_state(each.get_state()) for each in here]
        assert all(torch.equal(a.get_state(), b.get_state()) for a, b in zip(here, there, strict=True))
        again = torch.stack([torch.randn(shape[1:], generator=each, dtype=x.dtype) for each in own])
        assert torch.equal(randn_like(x, here), again) and not torch.equal(drawn, again)
        randn_like(x, there)
    one, other, same = (torch.Generator().manual_seed(1) for _ in range(3))
    assert randn_like(torch.empty(2, 3, device="meta"), other).is_meta
    assert torch.equal(randn_like(torch.empty(2, 3), one), torch.randn(2, 3, generator=same))
    assert torch.equal(one.get_state(), other.get_state())
    with pytest.raises(ValueError, match="one per image"):
        randn_like(torch.empty(2, 3), image_generators(0, range(3)))


def test_no_generator_is_made_for_a_device():
    """All that the sources seed by themselves is drawn on the CPU."""
    rooms = ("dbae", "datasets", "eval", "scripts")
    sources = [path for room in rooms for path in (ROOT / room).rglob("*.py")] + list(ROOT.glob("*.py"))
    assert len(sources) > 90
    wrong = [path.name for path in sources for line in path.read_text().split("\n") if made_for_a_device(line)]
    assert not wrong
    assert made_for_a_device("rng = torch.Generator(x.device)") and made_for_a_device("g = Generator(device=device)")


def made_for_a_device(line):
    return any(part and part[0] != ")" for part in line.split("Generator(")[1:])
