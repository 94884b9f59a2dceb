"""The web page: what its actions return, what a visitor is told, and a walk through it in a browser."""

import dataclasses
import importlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
import tiny
import torch
from conftest import ROOT
from PIL import Image

from datasets.images import fit
from dbae.checkpoint import load_model
from dbae.config import UserError
from dbae.io import to_float
from dbae.methods import DBAE, DDAE, DiffAE
from dbae.methods.codes import attribute_step
from dbae.methods.ddae import DDPMConfig
from dbae.methods.diffae import DiffAEConfig
from eval.classifier import AttributeClassifier
from scripts import web, web_actions
from scripts.cli import run
from scripts.web_actions import NOTHING, SCALE

IMAGES = [str(ROOT / "assets" / f"img{i}.png") for i in (1, 2)]
EULER = ("euler", 3)
NAMES = ("Bald", "Male", "Wearing_Hat", "Young")


def lacking(what):
    """End the test: with an error in CI, where all is there; elsewhere it is skipped."""
    (pytest.fail if os.environ.get("CI") else pytest.skip)(f"no {what}")


def imported(name):
    try:
        return importlib.import_module(name)
    except ImportError:
        return lacking(name)


def pixels(path):
    return np.asarray(Image.open(path)).astype(int)


@pytest.fixture(scope="module")
def bare(checkpoint, tmp_path_factory):
    """The studio of the small model, which has no classifier."""
    options = web.PageOptions(model_path=str(checkpoint), device="cpu")
    return web.open_studio(options, {}, DBAE.SAMPLING, str(tmp_path_factory.mktemp("pictures")))


@pytest.fixture(scope="module")
def studio(bare):
    """The same with a classifier of four attributes."""
    torch.manual_seed(0)
    classifier = AttributeClassifier("best.pt", NAMES, torch.randn(4, 8), torch.zeros(4))
    return dataclasses.replace(bare, classifier=classifier)


@pytest.fixture(scope="module")
def seen(studio):
    return studio.look(IMAGES[0], *EULER)[0]


def test_look_shows_what_the_model_makes_of_the_crop(bare):
    seen, crop, state, made, facts, cost = bare.look(IMAGES[0], *EULER)
    expected = np.asarray(fit(Image.open(IMAGES[0]).convert("RGB"), 32))
    np.testing.assert_array_equal(pixels(crop), expected)
    trained = dataclasses.replace(bare.trained, sampling=bare.trained.model.sampling(steps=3))
    for found, image in zip((state, made), trained.reconstruct(seen.crop), strict=True):
        np.testing.assert_array_equal(pixels(found), image[0].permute(1, 2, 0))
    with torch.no_grad():
        mean, _ = trained.model.encode_stats(to_float(seen.crop))
    torch.testing.assert_close(seen.z, mean)  # the code of a stochastic encoder is its mean
    error = ((pixels(crop) - pixels(made)) ** 2).mean() / 255**2
    assert "8 numbers for 3,072" in facts and f"MSE of the reconstruction:** {error:.2e}" in facts
    assert re.fullmatch(r"Last call: 3 network calls, time grid karras, \d+\.\d\d s", cost)

    # The same image with other settings
    again, fresh = bare.again(seen, "one-step", 7), bare.look(IMAGES[0], "one-step", 7)
    np.testing.assert_array_equal(pixels(again[3]), pixels(fresh[3]))
    assert (again[0].made != seen.made).any() and again[5].startswith("Last call: 1 network call, ")


@pytest.mark.parametrize(
    ("sampler", "grid", "eta"),
    [("dbim", "uniform", 0.5), ("dbim2", "logsnr", 0.0), ("one-step", "logsnr", 0.0), ("euler", "karras", 0.0)],
)
def test_another_sampler_has_the_time_grid_that_suits_it(bare, seen, sampler, grid, eta):
    """The one that the page starts with keeps what was typed."""
    started = bare.trained.model.sampling(sampler="dbim", grid="uniform", eta=0.5)
    page = dataclasses.replace(bare, trained=dataclasses.replace(bare.trained, sampling=started))
    found = page._trained(sampler, 3).sampling
    assert (found.sampler, found.steps, found.grid, found.eta) == (sampler, 3, grid, eta)
    assert f"time grid {grid}, " in page.again(seen, sampler, 3)[5]


def test_a_model_that_inverts_has_its_own_samplers(tmp_path):
    torch.manual_seed(0)
    path = tiny.written(tmp_path, DiffAE(DiffAEConfig(**tiny.SMALL, latent_dim=6)))
    options = web.PageOptions(method="diffae", model_path=str(path), device="cpu")
    page = web.open_studio(options, {}, DiffAE.SAMPLING, str(tmp_path))
    seen, _, state, made, _, cost = page.look(IMAGES[0], "ddim", 4)
    assert cost.startswith("Last call: 8 network calls, ") and (pixels(state) != pixels(made)).any()
    strip, _, _ = page.interpolate(seen, IMAGES[1], "dbim2", 2, 3, "linear")
    assert len(strip) == 3
    with pytest.raises(UserError, match="steps: expected"):
        page.again(seen, "ddim", 37)


def test_nothing_is_shown_without_an_image(bare, seen):
    assert bare.look(None, *EULER) == bare.again(None, *EULER) == NOTHING
    assert bare.edit(None, *EULER, True, []) == (None, None, "")
    for first, second in ((None, IMAGES[1]), (seen, None)):
        with pytest.raises(UserError, match="both images"):
            bare.interpolate(first, second, *EULER, 4, "linear")


def test_a_bad_upload_is_named_without_its_folder_and_a_large_one_is_not_decoded(bare, tmp_path, monkeypatch):
    (tmp_path / "a.jpg").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"^a\.jpg is a bad image") as told:
        bare.look(str(tmp_path / "a.jpg"), *EULER)
    assert str(tmp_path) not in str(told.value)
    (tmp_path / "bomb.png").write_bytes(b"P6 20000 20000 255\n")  # beyond PIL's own bound
    Image.new("L", (300, 200)).save(tmp_path / "large.png")
    assert bare.look(str(tmp_path / "large.png"), "one-step", 1)[0]
    monkeypatch.setattr(web_actions, "PIXELS", 59_999)
    monkeypatch.setattr(web_actions, "read_photo", None)
    for name in ("bomb.png", "large.png"):
        with pytest.raises(UserError, match=f"^{name}: expected an image of at most"):
            bare.look(str(tmp_path / name), *EULER)


def test_sliders_at_rest_leave_the_reconstruction(studio, seen):
    made, edited, cost = studio.edit(seen, *EULER, True, studio.labels, 0, 0, 0, 0)
    np.testing.assert_array_equal(pixels(made), seen.made[0].permute(1, 2, 0))
    np.testing.assert_array_equal(pixels(edited), pixels(made))
    assert cost == seen.cost

    # Equal pictures in one file would be rewritten while another visitor's browser reads them
    assert len({made, edited, *studio.edit(seen, *EULER, True, [])[:2]}) == 4


@pytest.mark.parametrize("fix_xT", [True, False])
def test_shown_sliders_move_the_code_along_their_attributes(studio, seen, fix_xT):
    _, edited, cost = studio.edit(seen, *EULER, fix_xT, ["Young", "Male"], -3, 2, 0.4, 0.1)
    model, w = studio.trained.model, studio.classifier.weight
    with torch.no_grad():
        z = seen.z + SCALE * (2 * attribute_step(w[1]) - 3 * attribute_step(w[3]))
        expected = model.generate_from(z, model.decode(seen.z if fix_xT else z), steps=3)
    found = torch.from_numpy(pixels(edited)).permute(2, 0, 1)
    assert (found - ((expected[0] + 1) * 127.5)).abs().max() <= 1
    assert (found != seen.made[0]).any() and cost.startswith("Last call: 3 network calls")


def test_sliders_end_at_the_medians_of_real_images(studio, seen):
    w = studio.classifier.weight
    logits = (w @ seen.z[0]).detach()
    medians = {"median_logits": logits + 2, "negative_logits": logits + torch.tensor([1.0, -1, -1, -1])}
    known = dataclasses.replace(studio, classifier=dataclasses.replace(studio.classifier, **medians))
    assert known.medians and not studio.medians
    for name, row, strength, rise in (("Male", 1, 1, 2), ("Male", 1, -1, -1), ("Young", 3, 0.5, 1)):
        moved = known._move(seen.z, name, strength)[0] @ w[row]
        assert moved.item() == pytest.approx(rise, abs=1e-4)

    # Beyond the median there is nowhere to go, and the visitor is told
    _, edited, cost = known.edit(seen, *EULER, False, ["Bald"], -1)
    assert cost.startswith("Bald: already beyond") and cost.endswith(seen.cost)
    np.testing.assert_array_equal(pixels(edited), seen.made[0].permute(1, 2, 0))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], ("dbim", 10, "logsnr")),
        (["--steps=4"], ("dbim", 4, "logsnr")),
        (["--sampler=euler"], ("euler", 20, "karras")),
        (["--sampler=heun", "--steps=7"], ("heun", 7, "karras")),
    ],
)
def test_the_page_starts_with_few_steps_unless_told_otherwise(checkpoint, capsys, words, expected):
    web.main(["--model", str(checkpoint), "--dry_run", *words])
    shown = json.loads(capsys.readouterr().out)["sampling"]
    assert (shown["sampler"], shown["steps"], shown["grid"]) == expected


def test_interpolation_goes_from_one_reconstruction_to_the_other(bare, seen):
    strip, film, cost = bare.interpolate(seen, IMAGES[1], *EULER, 4, "linear")
    other, *_ = bare.look(IMAGES[1], *EULER)
    assert len(strip) == 4 and cost.startswith("Last call: 4 images, 3 network calls each")
    for path, end in ((strip[0], seen), (strip[-1], other)):
        assert np.abs(pixels(path) - end.made[0].permute(1, 2, 0).numpy()).max() <= 1  # another batch size rounds
    assert (pixels(strip[1]) != pixels(strip[0])).any()
    with Image.open(film) as animated:
        assert animated.n_frames == 6 and animated.size == (256, 256)  # there and back


def test_dry_run_and_errors_need_no_gradio(checkpoint, monkeypatch, capsys):
    monkeypatch.setattr(web, "find_spec", lambda name: None)
    web.main(["--model", str(checkpoint), "--port", "1234", "--dry_run"])
    assert '"port": 1234' in capsys.readouterr().out
    for words, told in [
        (["--model", str(checkpoint)], 'gradio is missing: pip install "gradio'),
        (["--model", str(checkpoint), "--port", "70000"], "port: "),
        (["--model", str(checkpoint), "--steps", "0"], "steps: "),
        ([], "model_path: expected one, got none"),
    ]:
        with pytest.raises(SystemExit) as stop:
            run(lambda words=words: web.main(words))
        error = capsys.readouterr().err
        assert stop.value.code == 2 and error.startswith(f"error: {told}") and error.count("\n") == 1


def test_models_beside_the_first_have_names_and_their_methods_few_steps(checkpoint, tmp_path):
    other = tiny.written(tmp_path, DiffAE(DiffAEConfig(**tiny.SMALL, latent_dim=8)))
    options = web.PageOptions(model_path=str(other))
    studio = web.studio_of(options, load_model(str(other)), None, str(tmp_path))
    assert studio.trained.sampling == DiffAE.FEW_STEPS
    assert list(web.named([studio], [str(other)])) == ["DiffAE"]
    two = web.named([studio, studio], ["runs/a/ema_0.9999_000020.pt", "runs/b/ema_0.9999_000020.pt"])
    assert list(two) == ["DiffAE, a", "DiffAE, b"]
    with pytest.raises(UserError, match="also: expected models in folders of different names"):
        web.named([studio, studio], [str(other), str(other)])
    half = web.loaded(dataclasses.replace(options, precision="bf16"), torch.device("cpu"))
    assert half.precision == "bf16" and web.loaded(options, torch.device("cpu")).precision == "fp32"
    with pytest.raises(UserError, match="also: expected a model with a code"):
        web.studio_of(options, DDAE(DDPMConfig(num_channels=32, channel_mult=(1, 1))), None, str(tmp_path))


@pytest.fixture
def web_page(monkeypatch, tmp_path):
    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    monkeypatch.chdir(ROOT)
    imported("gradio")
    from scripts import web_page

    return web_page


def test_one_call_of_the_model_at_a_time_and_no_public_api(web_page, bare, studio):
    many = dataclasses.replace(studio.trained.sampling, sampler="dbim2", steps=150)
    page = web_page.build(
        {"DBAE": dataclasses.replace(studio, trained=dataclasses.replace(studio.trained, sampling=many))}
    )
    calls = [event for event in page.fns.values() if event.concurrency_id == "model"]
    assert len(calls) >= 8 and {event.concurrency_limit for event in calls} == {1}
    assert {event.api_visibility for event in page.fns.values()} <= {"private", "undocumented"}
    tabs = web_page.build({"DBAE": bare, "DiffAE": studio})  # without a classifier, and with one
    shown = [block.label for block in tabs.blocks.values() if isinstance(block, web_page.gr.Tab)]
    assert [label for label in shown if label in ("DBAE", "DiffAE")] == ["DBAE", "DiffAE"]
    assert web_page.looks()["theme"]._stylesheets == [] and "url(" not in web_page.CSS  # nothing is fetched


def test_a_visitor_is_told(web_page, monkeypatch):
    told = []
    monkeypatch.setattr(web_page.gr, "Warning", told.append)

    def refuse(name):
        raise UserError(f"{name} is a bad image")

    assert web_page._told(refuse, NOTHING)("<b>.jpg") == NOTHING
    assert told == ["&lt;b&gt;.jpg is a bad image"]


@pytest.fixture
def address(checkpoint, tmp_path):
    """A page of the small model with a classifier, in a process of its own, whose temporary files are in tmp_path."""
    imported("gradio")
    torch.save({"weight": torch.randn(4, 8), "bias": torch.zeros(4)}, tmp_path / "best.pt")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (tmp_path / "tmp").mkdir()
    words = ["--model", checkpoint, "--classifier", tmp_path / "best.pt", "--port", port, "--steps", 3, "--device=cpu"]
    command = [sys.executable, "-m", "scripts.web", *map(str, words)]
    environment = os.environ | {"TMPDIR": str(tmp_path / "tmp")}
    page = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    assert page.stdout.readline().startswith(f"open http://127.0.0.1:{port}")
    yield f"http://127.0.0.1:{port}"
    page.send_signal(signal.SIGTERM)
    assert page.wait(20) == 128 + signal.SIGTERM
    assert not os.listdir(tmp_path / "tmp")  # nothing of what was uploaded or shown is left


@pytest.fixture
def browser():
    webdriver = imported("selenium.webdriver")
    programs = shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")
    if not all(programs):
        lacking("chromium with its chromedriver")
    options = webdriver.ChromeOptions()
    options.binary_location = programs[0]
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1280,1600"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(programs[1]))
    yield driver
    driver.quit()


def until(found, seconds=30):
    """What ``found`` returns as soon as it is true."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := found():
            return value
        time.sleep(0.1)
    raise AssertionError("it never came")


def test_a_visit(browser, address, tmp_path):
    def picture(label):
        """Address of the picture under that label on the open tab."""
        script = """return [...document.querySelectorAll('.picture')].filter(each => each.offsetParent
            && each.innerText.trim() === arguments[0]).map(each => each.querySelector('img')?.src).at(-1)"""
        return browser.execute_script(script, label)

    def upload(place, path):
        until(lambda: browser.find_elements("css selector", "input[type=file]"))[place].send_keys(str(path))

    def press(label, role):
        for button in browser.find_elements("css selector", "button"):
            if button.text == label and button.get_attribute("role") == role:
                return button.click()
        raise AssertionError(f"no button {label}")

    browser.get(address)
    upload(0, IMAGES[0])
    unedited = until(lambda: picture("Edited"))
    slider = browser.find_elements("css selector", "input[type=range][aria-label$=' 3']")[0]
    slider.send_keys("\ue014" * 6)  # the right arrow key
    until(lambda: picture("Edited") != unedited)

    press("Interpolate", "tab")
    upload(-1, IMAGES[1])
    until(lambda: browser.find_elements("css selector", "img[src*='img2.png']:not(.samples img)"))
    press("Interpolate", None)
    until(lambda: picture("Animation"))

    (tmp_path / "text.jpg").write_text("no image")
    upload(0, tmp_path / "text.jpg")
    until(lambda: "text.jpg is a bad image" in browser.find_element("css selector", "body").text)
    until(lambda: not picture("Crop"))
    until(lambda: not browser.find_elements("css selector", "img[src*='text.jpg']"))  # no broken picture
    requests = re.findall(r'"url":"(\w+://[^/"]+)', " ".join(e["message"] for e in browser.get_log("performance")))
    assert address in requests and not [each for each in requests if each.startswith("http") and each != address]
