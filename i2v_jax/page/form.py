"""The parts of the page that a person fills in: picture, words, dials; and what a result is to become."""

import csv
from pathlib import Path
from typing import Any

import gradio as gr
from ml_collections import ConfigDict

from i2v_jax import media
from i2v_jax.errors import InputError
from i2v_jax.page import finishing, views
from i2v_jax.page.dials import CLOSENESS, LONGEST_PROMPT, NATURAL, NONE, OBEDIENCE, STRENGTHS
from i2v_jax.page.session import Sessions
from i2v_jax.page.uploads import MOST_ZOOM
from i2v_jax.sampling.inputs import MAX_SEED
from i2v_jax.sampling.jobs import Job, read_jobs

EXAMPLES_FOLDER = "examples"  # within that of uploads
EXAMPLES = 6
THUMBNAIL = 96  # pixels
SOUND_KINDS = ["audio"]


class Form:
    """What is asked of a person: `parts` by name, `components` in the order of `names`."""

    def __init__(self, sessions: Sessions):
        self.parts: dict[str, Any] = {}
        offers, options = sessions.offers, sessions.studio.options
        self._add_picture(sessions)
        self.parts["prompt"] = gr.Textbox(
            label="What happens",
            placeholder="a cat turns its head",
            lines=2,
            max_length=LONGEST_PROMPT,
            elem_id="prompt",
        )
        self.parts["motion"] = gr.Radio(
            [*offers.motion], value=NATURAL, label="How much it moves", info="Calm keeps close to the still picture."
        )
        self.parts["closeness"] = gr.Radio(
            [*CLOSENESS],
            value=NATURAL,
            label="How close it keeps to the picture",
            info="Loose lets the model repaint; tight holds on to what is there.",
        )
        chosen = [name for name in ("styles", "bases", "motions") if getattr(options, name)]
        with gr.Accordion("Style", open=True, visible=bool(chosen)):
            self._add_styles(sessions, chosen)
        with gr.Row():
            self.start = gr.Button("Animate", variant="primary", size="lg", elem_id="start")
            self.stop = gr.Button("Stop", variant="stop", size="lg", visible=False, elem_id="stop")
        self._add_details(sessions)

    def _add_details(self, sessions: Sessions) -> None:
        offers, default = sessions.offers, sessions.offers.default
        with gr.Accordion("Size, length, seed", open=False):
            self.parts["size"] = gr.Radio(
                [*offers.sizes], value=default.size, label="Size", info="In pixels. The first use of each takes longer."
            )
            with gr.Row():
                self.parts["length"] = gr.Radio(offers.lengths, value=default.length, label="Length", info="In frames.")
                self.parts["steps"] = gr.Radio(
                    offers.steps, value=default.steps, label="Steps", info="More take longer, and may look finer."
                )
            with gr.Row():
                self.parts["seed"] = gr.Number(
                    default.seed,
                    label="Seed",
                    precision=0,
                    minimum=0,
                    maximum=MAX_SEED,
                    info="The same gives the same.",
                )
                self.parts["new_seed"] = gr.Checkbox(False, label="A new seed each time")
        with gr.Accordion("More", open=False):
            self.parts["obedience"] = gr.Radio(
                [*OBEDIENCE], value=NATURAL, label="How strictly it follows the words", info="Strictly may look harsh."
            )
            self.parts["negative_prompt"] = gr.Textbox(
                default.negative_prompt,
                label="What to avoid",
                lines=2,
                max_length=LONGEST_PROMPT,
                info="Words for what should not be seen.",
            )

    def _add_picture(self, sessions: Sessions) -> None:
        offered = examples_of(sessions.studio.config)
        self.parts["picture"] = gr.Image(
            label="Picture",
            type="filepath",
            image_mode=None,
            sources=["upload", "webcam", "clipboard"],
            height=260,
            buttons=["fullscreen"],
            elem_id="picture",
        )
        self.examples = gr.HTML(
            views.examples([(job.prompt, thumbnail(job.picture)) for job in offered]),
            js_on_load=views.CLICKS,
            visible=bool(offered),
            elem_id="examples",
        )
        with gr.Accordion("Crop", open=False):
            with gr.Row():
                with gr.Column(scale=3, min_width=180):
                    self.parts["zoom"] = gr.Slider(1, MOST_ZOOM, 1, step=0.05, label="Closer")
                    self.parts["x"] = gr.Slider(0, 1, 0.5, step=0.01, label="Left to right")
                    self.parts["y"] = gr.Slider(0, 1, 0.5, step=0.01, label="Top to bottom")
                with gr.Column(scale=2, min_width=120):
                    self.crop_shown = gr.HTML("", elem_id="crop", padding=False)

    def _add_styles(self, sessions: Sessions, chosen: list[str]) -> None:
        offers = sessions.offers
        with gr.Row():
            self.parts["style"] = gr.Dropdown(
                [NONE, *offers.styles], value=NONE, label="Style", visible="styles" in chosen, elem_id="style"
            )
            self.parts["strength"] = gr.Radio(
                [*STRENGTHS], value="clear", label="How much of it", visible="styles" in chosen
            )
        with gr.Row():
            self.parts["base"] = gr.Dropdown(
                [NONE, *offers.bases], value=NONE, label="Model", visible="bases" in chosen, elem_id="base"
            )
            self.parts["learned_motion"] = gr.Dropdown(
                [NONE, *offers.learned_motions],
                value=NONE,
                label="Learned motion",
                info="It moves by itself: the prompt is not heeded.",
                visible="motions" in chosen,
                elem_id="learned-motion",
            )

    @property
    def names(self) -> list[str]:
        return [*self.parts]

    @property
    def components(self) -> list[Any]:
        return [*self.parts.values()]


class Finish:
    """What a result is to become: `components` in the order of `names`, their group, and where it is shown."""

    def __init__(self):
        default = finishing.Wishes()
        with gr.Column(visible=False) as self.group:
            with gr.Accordion("Finish for posting", open=False, elem_id="finish"):
                parts: dict[str, Any] = {}
                with gr.Row():
                    parts["aspect"] = gr.Dropdown([*finishing.ASPECTS], value=default.aspect, label="Aspect")
                    parts["fit"] = gr.Dropdown([*finishing.FITS], value=default.fit, label="Where it does not fit")
                    parts["height"] = gr.Dropdown([*finishing.HEIGHTS], value=default.height, label="Height in pixels")
                with gr.Row():
                    parts["format"] = gr.Dropdown([*finishing.FORMATS], value=default.format, label="Format")
                    parts["times"] = gr.Dropdown([*finishing.TIMES], value=default.times, label="Shown how often")
                with gr.Row():
                    parts["text"] = gr.Textbox(
                        label="Words on it", max_length=finishing.LONGEST_TEXT, scale=3, elem_id="words"
                    )
                    parts["place"] = gr.Dropdown([*finishing.PLACES], value=default.place, label="Where", scale=1)
                parts["music"] = gr.File(
                    label="Music", file_types=SOUND_KINDS, type="filepath", height=100, elem_id="music"
                )
                self.start = gr.Button("Finish", variant="secondary", elem_id="make-finished")
            self.result = gr.HTML("", elem_id="finished", padding=False)
        self.names, self.components = [*parts], [*parts.values()]


def examples_of(config: ConfigDict) -> list[Job]:
    """Returns pictures to begin with: those of a config's table, none where it has none that can be read."""
    if not config.csv:
        return []
    try:
        return read_jobs(config.csv, seed=config.seed)[:EXAMPLES]
    except (InputError, OSError, csv.Error):
        return []


def thumbnail(picture: Path) -> str:
    """Returns a small copy of a picture, as an address that is the content itself."""
    side = THUMBNAIL
    return views.data_address(media.encode_png(media.fit_picture(media.load_picture(picture), side, side)), "png")
