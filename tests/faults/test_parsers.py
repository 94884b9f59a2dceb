"""Whatever a file or a command line holds, it is understood or refused in a line: no other exception."""

import dataclasses
import io
import json
import string
import tempfile
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.configuration import set_hypothesis_home_dir
from PIL import Image

from datasets.images import BadImage, decode
from datasets.label_files import parse_partition, read_labels, read_text
from datasets.labels import KINDS
from dbae.checkpoint import NAME, read_config, set_names, step_of
from dbae.config import TrainConfig, UserError, from_json
from dbae.methods.dbae import DBAEConfig
from dbae.tensors import read_tensors
from scripts import train as dbae_train

set_hypothesis_home_dir(Path(tempfile.gettempdir()) / "hypothesis")  # it would make a folder here
fast = settings(derandomize=True, max_examples=100, deadline=None, database=None)
NAMES = [field.name for cls in (dbae_train.RunOptions, DBAEConfig, TrainConfig) for field in dataclasses.fields(cls)]
NAMES.remove("method")  # is looked for before the others are parsed
PICTURE = Image.radial_gradient("L").resize((24, 16)).convert("RGB")


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return tmp_path_factory.mktemp("files") / "file"


def refused_or(result, *errors):
    """What ``result()`` returns, or None where it raises one of the errors meant for users."""
    try:
        return result()
    except errors as error:
        assert str(error) and "\n" not in str(error)
        return None


# -- Names of checkpoints ----------------------------------------------------------------------------------------------


@fast
@given(st.text(max_size=40) | st.from_regex(r"(freq_)?(model|opt|ema_.*)_\d*\.pt.*"))
def test_any_name_has_a_step_or_none(name):
    step = refused_or(lambda: step_of(name), UserError)
    assert step is None or step >= 0


@fast
@given(st.integers(0, 10**12), st.floats(0, 1, exclude_max=True), st.sampled_from(["", "freq_"]))
def test_every_set_has_names_that_are_read_back(step, ema_rate, prefix):
    names = set_names(step, ema_rate, prefix)
    assert {
        kind: (step_of(name), NAME.fullmatch(name)["prefix"] or "") for kind, name in names.items()
    } == dict.fromkeys(("model", "ema", "opt"), (step, prefix))


# -- config.json -------------------------------------------------------------------------------------------------------

plain = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
values = st.recursive(plain, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner))
fields = st.sampled_from([field.name for field in dataclasses.fields(DBAEConfig)])
configs = st.dictionaries(fields, values | st.lists(st.integers(-1, 8)), max_size=3)


@fast
@given(configs | values)
@example({"channel_mult": []})
@example({"image_size": 10**400})
@example({"sigma_data": float("nan")})
def test_any_model_configuration_is_valid_or_refused(content):
    config = refused_or(lambda: from_json(DBAEConfig, content, "config.json"), UserError)
    assert config is None or from_json(DBAEConfig, json.loads(json.dumps(dataclasses.asdict(config))), "") == config


@fast
@given(st.binary(max_size=60) | values.map(lambda value: json.dumps(value).encode()))
@example(b"[" * 100_000)
@example(b"9" * 10_000)
@example(b"\xef\xbb\xbf{}")
@example(b'{"model": 3}')
@example(b'{"model": {}, "train": 3}')
def test_any_config_json_is_read_or_refused(file, content):
    folder = file.parent
    (folder / "config.json").write_bytes(content)
    read = refused_or(lambda: read_config(str(folder)), UserError)
    assert read is None or "model" in read
    refused_or(
        lambda: dbae_train.check_run_folder(str(folder), "dbae", DBAEConfig(), TrainConfig(), {"path": "x"}), UserError
    )


# -- Command lines -----------------------------------------------------------------------------------------------------

spellings = [f"--{name}" for name in NAMES] + [f"--{name.replace('_', '-')}" for name in NAMES]
flags = st.sampled_from(spellings)
numbers = st.integers().map(str) | st.floats().map(str) | st.lists(st.integers(), max_size=3).map(str)
texts = (
    st.text(string.printable, max_size=8) | numbers | st.sampled_from(["true", "vp", "auto", "fp16", "", "-1", "--"])
)
pairs = st.tuples(flags, texts).map("=".join)
words = st.lists(pairs | flags | texts, max_size=6)


@fast
@given(words)
@example(["--image_size", "9" * 5000])
@example(["--channel-mult", ",".join(["1"] * 200)])
@example(["--seed", str(2**64)])
@example(["--timeout", "1e300"])
@example(["--weight_decay", "nan"])
@example(["--dropout=\ud800"])
def test_any_command_line_is_parsed_or_refused(words):
    with redirect_stderr(io.StringIO()) as shown, redirect_stdout(io.StringIO()):
        try:
            options, model, training = dbae_train.parse(["--dataset=toyfaces", *words])
        except UserError as error:
            assert str(error)
        except SystemExit as end:
            assert end.code == 2 and shown.getvalue().startswith("error: ")
        else:
            assert options.timeout > 0 and model.image_size in (32, 64, 128, 256) and training.lr > 0


# -- Label files -------------------------------------------------------------------------------------------------------

cells = st.text(string.printable, max_size=6) | st.floats().map(str)
tables = st.lists(st.lists(cells, max_size=4).map(",".join), max_size=5).map("\n".join)


@fast
@given((tables | st.just("file,a\nx,1\n")).map(str.encode) | st.binary(max_size=60))
@example(b"file,a\nx," + b"1" * 200_000)
@example(b"file,a\nx\x00y,1\n")
@example(b'file,a\n"x,1\n')
@example(b"file,a\rx,1\ry,2")
def test_any_csv_is_a_table_of_numbers_or_refused(file, content):
    file.write_bytes(content)
    table = refused_or(lambda: read_labels(str(file)), UserError)
    if table is not None:
        for kind in (None, *KINDS):
            targets = refused_or(lambda kind=kind: table.targets(table.rows, kind), UserError)
            assert targets is None or (len(targets) == len(table.rows) and targets.values.isfinite().all())
    refused_or(lambda: parse_partition("file", read_text(str(file))), UserError)


# -- Images ------------------------------------------------------------------------------------------------------------


def encoded(kind):
    buffer = io.BytesIO()
    PICTURE.save(buffer, kind)
    return buffer.getvalue()


def harmed(original, edits, length):
    content = bytearray(original)
    for place, byte in edits:
        content[place % len(content)] = byte
    return bytes(content[: length % (len(content) + 1) or len(content)])


edits = st.lists(st.tuples(st.integers(0, 400) | st.integers(0, 10**6), st.integers(0, 255)), max_size=6)
Image.init()
FORMATS = {"JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "ICO", "PPM", "AVIF", "ICNS", "DDS", "TGA"} & Image.SAVE.keys()
pictures = st.sampled_from([encoded(kind) for kind in sorted(FORMATS)])


@pytest.mark.filterwarnings("ignore::UserWarning")  # PIL says what it finds wrong
@settings(fast, max_examples=200)
@given(st.builds(harmed, pictures, edits, st.just(0) | st.integers(0, 10**6)) | st.binary(max_size=100))
def test_any_bytes_are_an_image_or_refused(data):
    image = refused_or(lambda: decode(data), BadImage)
    assert image is None or image.mode == "RGB"


# -- Checkpoints -------------------------------------------------------------------------------------------------------


@fast
@given(st.binary(max_size=100), st.data())
def test_any_bytes_are_tensors_or_refused(file, content, data):
    """One bit of a whole file is turned, or the bytes are any: what is read is what was written, or nothing."""
    buffer = io.BytesIO()
    written = torch.arange(200.0)
    torch.save({"a": written}, buffer)
    original = bytearray(buffer.getvalue())
    if data.draw(st.booleans()):
        original[data.draw(st.integers(0, len(original) - 1))] ^= 1 << data.draw(st.integers(0, 7))
        content = bytes(original)
    file.write_bytes(content)
    read = refused_or(lambda: read_tensors(str(file)), UserError)
    assert read is None or torch.equal(read["a"], written)
