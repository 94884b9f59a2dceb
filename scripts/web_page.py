"""The web page: its layout in gradio, and what leads from a click to an action of ``scripts.web_actions``."""

import html
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import gradio as gr
from gradio.components import Component
from gradio.events import Dependency

from dbae.config import UserError
from dbae.diffusion import SOLVERS
from dbae.methods.codes import PATHS
from scripts.edit_inputs import InterpolateOptions
from scripts.web_actions import HINT, NOTHING, SCALE, Studio

KEPT = (300, 3600)  # every five minutes, uploads and pictures that are older than an hour are deleted
FIRST = ("Male", "Young", "Smiling", "Eyeglasses")  # attributes that have sliders at first, where there are these
REACH = 1.0  # of a slider to both sides: to the medians of real images, where edited ones still look like those
STEPS, FRAMES = 100, 21  # the most that a visitor can ask for
SMOOTH = 128  # pixels from which pictures are enlarged smoothly
SAMPLES = [f"assets/img{i}.png" for i in (1, 2, 3, 4)]
ABOUT = """# Diffusion autoencoder
The model sees the central square of an image and writes it down as a code *z* of {latent} numbers. Given the code, it
walks from a state *x_T* along a diffusion to the reconstruction."""
MEDIANS = "0: as it is. 1: as strong as the median image that has the attribute, -1: that has it not."
NO_MEDIANS = "0: as it is. 1 and -1: {scale:g} of the square root of the code's length, along the classifier's row."
NO_CLASSIFIER = """This model has no attribute classifier yet. Train one on labelled images, then start the page again:

`bash infer_class_dbae.sh DATASET SCHEDULE MODEL_PATH STO`, or `bash diffae/infer_class.sh DATASET MODEL_PATH`

or name the one that you have: `--classifier best.pt`."""
CSS = """
.gradio-container {max-width: 1120px !important; margin: auto}
.picture > label, .frames > label {position: static; border: none; width: fit-content; white-space: nowrap}
.picture > label > span, .frames > label > span {display: none}
.picture .empty {min-height: 0; aspect-ratio: 1}
.picture .image-container button, .picture .image-frame {width: 100%}
.picture .image-frame img {width: 100%; aspect-ratio: 1; object-fit: contain}
.picture .icon-button-wrapper {display: none}
.sharp .picture img, .sharp .frames img {image-rendering: pixelated}
.frames .grid-wrap {overflow: visible; min-height: 0; max-height: none; height: auto}
.frames .grid-container {
    grid-template-columns: repeat(auto-fill, minmax(64px, 1fr)) !important; grid-auto-rows: auto; gap: 4px; padding: 0
}
.frames .gallery-item {aspect-ratio: 1; height: auto}
.samples .gallery-item, .samples .gallery-item img {width: 58px; height: 58px}
@media (max-width: 700px) {
    .choices {display: contents} .choices > * {flex: 1 1 100%} .results {order: 1} .last {order: 2}
    .row:has(> .picture) {gap: 6px} .picture > label {font-size: 10.5px; padding: 3px 5px}
    .min_value, .max_value {display: inline !important}
}
"""
# gradio's sliders are released by a pointer alone; this lets keys release them.
KEYS = """() => document.addEventListener("keyup", event => {
    if (/^(Arrow|Page|Home|End|Enter)/.test(event.key) && event.target.matches("input[type=range], input[type=number]"))
        event.target.dispatchEvent(new PointerEvent("pointerup", {bubbles: true}))
})"""
# One call of the model at a time, whoever makes it; of what is asked meanwhile in one place, only the last counts.
CALL = {
    "concurrency_id": "model",
    "concurrency_limit": 1,
    "trigger_mode": "always_last",
    "show_progress": "minimal",
    "api_visibility": "private",
}
AT_ONCE = {"queue": False, "api_visibility": "private"}


def looks() -> dict[str, Any]:
    """The arguments of ``launch`` for looks and keys. Fonts are the visitor's own, so that none is fetched."""
    font, mono = ["system-ui", "sans-serif"], ["ui-monospace", "monospace"]
    return {"css": CSS, "js": KEYS, "theme": gr.themes.Default(primary_hue="indigo", font=font, font_mono=mono)}


def build(studios: Mapping[str, Studio]) -> gr.Blocks:
    """The page of a model, or of several, each in a tab of its name."""
    with gr.Blocks(title="Diffusion autoencoder", analytics_enabled=False, delete_cache=KEPT) as page:
        for name, studio in studios.items():
            with gr.Tab(name) if len(studios) > 1 else nullcontext():
                _layout(studio)
    return page


def _layout(studio: Studio) -> None:
    """All that is done with a model, which starts with its sampler and number of steps."""
    model, sampling = studio.trained.model.config, studio.trained.sampling
    gr.Markdown(ABOUT.format(latent=model.latent_dim))
    seen = gr.State()
    with gr.Row(elem_classes="sharp" if model.image_size < SMOOTH else ""):
        with gr.Column(scale=2, min_width=280, elem_classes="choices"):
            image, sample = _upload("Image")
            with gr.Accordion("Sampling", elem_classes="last"):
                kind = gr.Dropdown(list(SOLVERS), value=sampling.sampler, label="Sampler")
                count = gr.Slider(
                    1, max(STEPS, sampling.steps), value=sampling.steps, step=1, precision=0, label="Steps"
                )
        with gr.Column(scale=5, min_width=320, elem_classes="results"):
            with gr.Row():
                pictures = [_picture(label) for label in ("Crop", "x_T", "Reconstruction")]
            facts, cost = gr.Markdown(HINT), gr.Markdown()
            given = [seen, kind, count]
            with gr.Tab("Edit"):
                edited = _edit_tab(studio, given, cost)
            with gr.Tab("Interpolate"):
                outdated = _interpolate_tab(studio, given, cost)
    view = [seen, *pictures, facts, cost]

    def seen_or_cleared(*values: Any) -> tuple[Any, ...]:
        """The view and the upload, which a bad one leaves, so that no broken picture stays.

        The upload is returned as it came: of an update, gradio would make a new component, which reads it itself.
        """
        found = _told(studio.look, None)(*values)
        return (*NOTHING, None) if found is None else (*found, values[0])

    look = {"fn": seen_or_cleared, "inputs": [image, kind, count], "outputs": [*view, image], **CALL}
    for event in (
        image.input(**look),
        sample.then(**look),
        gr.on([kind.input, count.release], studio.again, given, view, **CALL),
    ):
        if edited:
            event.then(**edited)
    seen.change(lambda: (None, None), None, outdated, **AT_ONCE)


def _edit_tab(studio: Studio, given: Sequence[Component], cost: gr.Markdown) -> dict[str, Any] | None:
    """A slider for every chosen attribute, in their order; returns the arguments of the editing event."""
    if studio.classifier is None:
        gr.Markdown(NO_CLASSIFIER)
        return None
    labels = studio.labels
    first = [label for label in FIRST if label in labels] or labels[: len(FIRST)]
    with gr.Row():
        with gr.Column(scale=4, min_width=280), gr.Row():
            pictures = [_picture("Reconstruction"), _picture("Edited")]
        with gr.Column(scale=3, min_width=280):
            chosen = gr.Dropdown(labels, value=first, multiselect=True, label="Attributes")
            gr.Markdown(MEDIANS if studio.medians else NO_MEDIANS.format(scale=SCALE))
            reach = {"minimum": -REACH, "maximum": REACH, "step": 0.1, "value": 0}
            shown = gr.State(first)  # attributes of the sliders, from the first on
            rest = [label for label in labels if label not in first]
            sliders = [gr.Slider(**reach, label=label, visible=label in first) for label in [*first, *rest]]
            fix_xT = gr.Checkbox(studio.trained.keeps_xT(None), label="Keep x_T")
            reset = gr.Button("Reset", size="sm")

    def arrange(before: list[str], names: list[str], *strengths: float) -> list[Any]:
        """The sliders in the order of the names, each as it was."""
        kept = dict(zip(before, strengths, strict=False))
        updates = [gr.update(label=name, value=kept.get(name, 0), visible=True) for name in names]
        return [names, *updates, *[gr.update(visible=False)] * (len(labels) - len(names))]

    edit = _told(studio.edit, (None, None, ""))
    edited = {"fn": edit, "inputs": [*given, fix_xT, shown, *sliders], "outputs": [*pictures, cost], **CALL}
    gr.on([slider.release for slider in sliders] + [fix_xT.input], **edited)
    order = [shown, *sliders]
    arranged = chosen.input(arrange, [shown, chosen, *sliders], order, trigger_mode="always_last", **AT_ONCE)
    arranged.then(**edited)
    reset.click(lambda: [0] * len(sliders), None, sliders, **AT_ONCE).then(**edited)
    return edited


def _interpolate_tab(studio: Studio, given: Sequence[Component], cost: gr.Markdown) -> list[Component]:
    """The second image, the way there, and the pictures of it, which are returned."""
    with gr.Row():
        with gr.Column(scale=4, min_width=280):
            other, _ = _upload("Second image")
            check = _told(studio.check, None)
            other.input(lambda path: path if check(path) else None, other, other, **CALL)
        with gr.Column(scale=3, min_width=280):
            frames = gr.Slider(2, FRAMES, value=InterpolateOptions.frames, step=1, precision=0, label="Frames")
            way = gr.Radio(list(PATHS), value=InterpolateOptions.path, label="Path between the codes")
            start = gr.Button("Interpolate", variant="primary")
    with gr.Row():
        with gr.Column(scale=4, min_width=280):
            strip = gr.Gallery(label="Frames", height="auto", buttons=[], elem_classes="frames")
        with gr.Column(scale=3, min_width=200):
            film = _picture("Animation")
    action = _told(studio.interpolate, (None, None, ""))
    start.click(action, [given[0], other, *given[1:], frames, way], [strip, film, cost], **CALL)
    return [strip, film]


def _upload(label: str) -> tuple[gr.Image, Dependency]:
    """An image, and the event that puts a sample there. Its value is the path of a file, whatever that holds.

    gradio has checked by then that the file was uploaded here. It would open the image, too, but reading is up to the
    studio. (Deriving a class is no way: gradio then writes a stub beside this file.)
    """
    image = gr.Image(label=label, type="filepath", sources=["upload", "clipboard"], height=240, buttons=[])
    image.preprocess = lambda payload: payload and payload.path
    with gr.Column(elem_classes="samples"):
        samples = gr.Examples(SAMPLES, image, label="Samples", cache_examples=False)
    return image, samples.load_input_event


def _picture(label: str) -> gr.Image:
    return gr.Image(label=label, interactive=False, min_width=90, buttons=[], elem_classes="picture")


def _told(action: Callable, otherwise: Any) -> Callable:
    """The action; where it raises UserError, the visitor gets its line, and the outputs become ``otherwise``."""

    def call(*values: Any) -> Any:
        try:
            return action(*values)
        except UserError as error:
            gr.Warning(html.escape(str(error)))
            return otherwise

    return call
