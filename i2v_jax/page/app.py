"""The page in Gradio: its parts, what each button does, and how it is served."""

import dataclasses
import hmac
import random
import shutil
import signal
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import gradio as gr
from starlette.middleware import Middleware

from i2v_jax import media
from i2v_jax.errors import InputError
from i2v_jax.page import api, finishing, uploads, views
from i2v_jax.page.desk import CANCELLED, DONE
from i2v_jax.page.form import EXAMPLES_FOLDER, Finish, Form, examples_of
from i2v_jax.page.guard import Guard
from i2v_jax.page.options import LOCAL, Options
from i2v_jax.page.session import Sessions, request_of, whole
from i2v_jax.page.studio import Studio
from i2v_jax.page.uploads import Crop
from i2v_jax.page.words import words_of
from i2v_jax.sampling.inputs import MAX_SEED

SHOW_STAGE = "() => { document.getElementById('stage').scrollIntoView({behavior: 'smooth', block: 'nearest'}); }"
STYLE = Path(__file__).with_name("style.css")
UPLOADS_KEPT = (600, 24 * 3600)  # seconds from one look for old uploads to the next, and those that they are kept for
SOUNDS = (".mp3", ".m4a", ".aac", ".ogg", ".opus", ".flac", ".wav")


class Page(gr.Blocks):
    """Blocks that fetch nothing from the addresses that a browser names."""

    async def preprocess_data(self, block_fn: Any, inputs: list[Any], *others: Any, **named: Any) -> Any:
        if named_addresses(inputs):
            raise gr.Error("Files are uploaded, not fetched from addresses.", print_exception=False)
        try:
            return await super().preprocess_data(block_fn, inputs, *others, **named)
        except gr.Error:
            raise
        except Exception:
            raise gr.Error("This is nothing that the page sends. Load it again.", print_exception=False) from None


def named_addresses(value: Any, depth: int = 0) -> bool:
    """Whether a file somewhere in what was sent is an address in the network, or something is nested too deep."""
    if depth > 20:
        return True
    if isinstance(value, dict):
        path = value.get("path")
        is_far = isinstance(path, str) and "://" in path.replace("\\", "/")
        return is_far or any(named_addresses(each, depth + 1) for each in value.values())
    if isinstance(value, list | tuple):
        return any(named_addresses(each, depth + 1) for each in value)
    return False


def build(sessions: Sessions) -> gr.Blocks:
    """Returns the page."""
    studio = sessions.studio
    with Page(title=views.TITLE, analytics_enabled=False, delete_cache=UPLOADS_KEPT) as page:
        gr.HTML(views.header(studio.knows), padding=False)
        name = gr.State("")
        with gr.Tabs():
            with gr.Tab("Animate", id="animate"):
                with gr.Row(equal_height=False):
                    with gr.Column(scale=5, min_width=340, elem_classes="ask"):
                        form = Form(sessions)
                    with gr.Column(scale=6, min_width=340):
                        stage = gr.HTML(views.nothing_yet(), elem_id="stage", padding=False)
                        finish = Finish()
                gr.Markdown("## Your videos", elem_classes="section")
                gallery = gr.HTML("", elem_id="history", padding=False, js_on_load=views.CLICKS)
            with gr.Tab("Compare", id="compare"):
                with gr.Row():
                    one = gr.Dropdown([], label="Left", elem_id="left")
                    other = gr.Dropdown([], label="Right", elem_id="right")
                pair = gr.HTML(views.comparison((None, None)), elem_id="pair", padding=False)
        wire_run(sessions, form, stage, name, finish, gallery)
        wire_lists(sessions, form, stage, name, finish, gallery, (one, other, pair), page)
        wire_finish(sessions, name, finish)
        api.add(sessions)
    return page


def wire_run(sessions: Sessions, form: Form, stage, name, finish: Finish, gallery) -> None:
    """Start, stop, and the look of a crop."""
    offers, start, stop = sessions.offers, form.start, form.stop

    async def begin(request: gr.Request, *values: Any) -> AsyncIterator[dict]:
        given = dict(zip(form.names, values, strict=True))
        try:
            if given.pop("new_seed"):
                given["seed"] = random.randint(0, MAX_SEED)
            crop = Crop(*(given.pop(key) for key in ("zoom", "x", "y")))
            run = sessions.submit(api.path_of(given.pop("picture")), crop, request_of(offers_in(given, offers)))
        except Exception as error:
            yield {stage: views.failure(words_of(error))}
            return
        yield {start: gr.update(visible=False), stop: gr.update(visible=True), finish.group: gr.update(visible=False)}
        async for _ in sessions.watch(run, request.session_hash):
            before = sessions.desk.before(run)
            yield {stage: views.under_way(run, before, sessions.desk.seconds_before(run))}
        shown = {start: gr.update(visible=True), stop: gr.update(visible=False)}
        if run.state == DONE:
            entry = run.result
            yield shown | {
                stage: views.result(entry, run.notes),
                form.parts["seed"]: entry.config["seed"],
                name: entry.name,
                finish.group: gr.update(visible=True),
                finish.result: "",
                gallery: views.history(sessions.history.entries()),
            }
        elif run.state == CANCELLED:
            yield shown | {stage: views.stopped(run)}
        else:
            yield shown | {stage: views.failure(words_of(run.error))}

    def cancel(request: gr.Request) -> None:
        sessions.cancel(request.session_hash)

    def look(picture: Any, size: str, zoom: float, x: float, y: float) -> str:
        try:
            path = api.path_of(picture)
            if path is None:
                return ""
            if size not in offers.sizes:
                raise InputError("This size is not offered.")
            height, width = offers.sizes[size]
            picture = uploads.shown(
                uploads.cropped(sessions.picture(path), Crop(zoom, x, y), height, width), height, width
            )
        except Exception as error:
            return f'<p class="wrong" role="alert">{views.escape(words_of(error))}</p>'
        source = views.data_address(media.encode_png(picture), "png")
        return f'<figure class="first"><img src="{source}" alt=""><figcaption>The first frame</figcaption></figure>'

    quiet = dict(show_progress="hidden", api_visibility="private", preprocess=False)  # values are checked here
    outputs = [stage, start, stop, name, finish.group, finish.result, gallery, form.parts["seed"]]
    start.click(None, None, None, js=SHOW_STAGE)
    start.click(begin, form.components, outputs, concurrency_limit=None, trigger_mode="once", **quiet)
    stop.click(cancel, None, None, concurrency_limit=None, **quiet)
    seen = [form.parts[key] for key in ("picture", "size", "zoom", "x", "y")]
    gr.on(
        [part.change for part in seen],
        look,
        seen,
        form.crop_shown,
        trigger_mode="always_last",
        concurrency_limit=4,
        **quiet,
    )


def offers_in(given: dict[str, Any], offers: Any) -> dict[str, Any]:
    """A form's values; what it does not show is as in the default."""
    return dataclasses.asdict(offers.default) | {key: value for key, value in given.items() if value is not None}


def wire_lists(sessions: Sessions, form: Form, stage, name, finish: Finish, gallery, compare, page: gr.Blocks) -> None:
    """History, examples, and two results side by side."""
    one, other, pair = compare
    found = examples_of(sessions.studio.config)

    def load(event: gr.EventData) -> dict:
        try:
            entry = sessions.history.entry(event._data.get("name") if isinstance(event._data, dict) else None)
        except Exception as error:
            return {stage: views.failure(words_of(error)), gallery: views.history(sessions.history.entries())}
        request = dataclasses.asdict(sessions.offers.request_of(entry.config))
        filled = {form.parts[key]: value for key, value in request.items() if key in form.parts}
        return filled | {
            form.parts["picture"]: str(entry.file("-picture.png")),
            form.parts["zoom"]: 1.0,
            form.parts["x"]: 0.5,
            form.parts["y"]: 0.5,
            form.parts["new_seed"]: False,
            stage: views.result(entry),
            name: entry.name,
            finish.group: gr.update(visible=True),
            finish.result: "",
        }

    def example(event: gr.EventData) -> dict:
        try:
            job = found[whole("example", event._data["name"])]
        except Exception:
            return {}
        copy = sessions.uploads / EXAMPLES_FOLDER / job.picture.name
        copy.parent.mkdir(exist_ok=True)
        shutil.copyfile(job.picture, copy)
        return {form.parts["picture"]: str(copy), form.parts["prompt"]: job.prompt}

    def refresh() -> dict:
        entries = sessions.history.entries()
        choices = [(views.label(entry), entry.name) for entry in entries]
        first, second = ([entry.name for entry in entries[:2]] + [None, None])[:2]
        chosen = [entry for entry in entries[:2]]
        return {
            gallery: views.history(entries),
            one: gr.update(choices=choices, value=second),
            other: gr.update(choices=choices, value=first),
            pair: views.comparison((*reversed(chosen), None, None)[:2] if len(chosen) == 2 else (None, None)),
        }

    def side_by_side(left: str | None, right: str | None) -> str:
        try:
            return views.comparison([sessions.history.entry(each) if each else None for each in (left, right)])
        except Exception as error:
            return views.failure(words_of(error))

    quiet = dict(show_progress="hidden", api_visibility="private", concurrency_limit=8, preprocess=False)
    parts = [*form.components, stage, name, finish.group, finish.result, gallery]
    gallery.click(load, None, parts, **quiet)
    form.examples.click(example, None, [form.parts["picture"], form.parts["prompt"]], **quiet)
    lists = [gallery, one, other, pair]
    page.load(refresh, None, lists, **quiet)
    gr.on([one.input, other.input], side_by_side, [one, other], pair, **quiet)


def wire_finish(sessions: Sessions, name, finish: Finish) -> None:
    """Finishing a result."""

    def make(chosen: str, *values: Any) -> str:
        try:
            given = dict(zip(finish.names, values, strict=True))
            music = api.path_of(given.pop("music"))
            given["times"] = whole("times", given["times"])
            wishes = finishing.Wishes(**given, music=Path(music) if music else None)
            if wishes.music and wishes.music.suffix.lower() not in SOUNDS:
                raise InputError(f"Music is wanted: {', '.join(SOUNDS)}.")
            return views.finished(sessions.finish(chosen, wishes))
        except Exception as error:
            return views.failure(words_of(error))

    busy = dict(show_progress="minimal", api_visibility="private", trigger_mode="once", preprocess=False)
    finish.start.click(
        make, [name, *finish.components], finish.result, concurrency_limit=1, concurrency_id="finish", **busy
    )


def theme() -> gr.themes.Base:
    """Colours and letters; the letters are the machine's own, so that none are fetched."""
    fonts = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]
    return gr.themes.Default(
        primary_hue=gr.themes.colors.indigo,
        neutral_hue=gr.themes.colors.slate,
        radius_size=gr.themes.sizes.radius_lg,
        font=fonts,
        font_mono=["ui-monospace", "monospace"],
    )


def serve(studio: Studio, folder: Path) -> None:
    """Serves the page until it is interrupted.

    Args:
      studio: makes the videos.
      folder: Gradio's, for uploads.
    """
    options, sessions = studio.options, Sessions(studio, folder)
    page = build(sessions)
    page.queue(max_size=4 * options.most_waiting)
    most = options.most_megabytes * 10**6
    guard = Middleware(
        Guard,
        folders=(sessions.uploads, sessions.history.folder),
        uploads=sessions.uploads,
        most_upload=most + 2**20,
        most_uploads=20 * most,
        hosts=(*LOCAL,) if options.is_local else (),
    )
    page.launch(
        server_name=options.host,
        server_port=options.port,
        share=options.share,
        auth=password_check(options) if options.password else None,
        auth_message="Any name, and the password that you were given.",
        max_file_size=most,
        allowed_paths=[str(sessions.history.folder)],
        show_error=False,
        quiet=True,
        prevent_thread_lock=True,
        run_history=False,
        footer_links=[],
        enable_monitoring=False,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        app_kwargs={"middleware": [guard], "docs_url": None, "redoc_url": None, "openapi_url": None},
        theme=theme(),
        css=STYLE.read_text(encoding="utf-8"),
    )
    print(
        f"The page is at {page.local_url}{f' and {page.share_url}' if options.share else ''}; Ctrl-C ends it.",
        flush=True,
    )
    ended = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    try:
        ended.wait()
    except KeyboardInterrupt:
        pass
    page.close(verbose=False)


def password_check(options: Options):
    """Returns what Gradio asks whether a name and a password may come in; the name does not matter."""

    def is_right(_name: str, password: str) -> bool:
        return hmac.compare_digest(password.encode(), options.password.encode())

    return is_right
