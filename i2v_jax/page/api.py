"""The page's functions by HTTP, with names and types of their own: what `gradio_client` calls (docs/page.md)."""

import dataclasses
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import gradio as gr

from i2v_jax.errors import InputError
from i2v_jax.page import finishing
from i2v_jax.page.desk import CANCELLED, DONE
from i2v_jax.page.dials import CLOSENESS, NATURAL, NONE, OBEDIENCE, STRENGTHS
from i2v_jax.page.session import Sessions, described, request_of, whole
from i2v_jax.page.uploads import Crop
from i2v_jax.page.words import words_of


def refused(error: BaseException) -> gr.Error:
    """Returns what Gradio tells of an error: its words, and never where in the code it came from."""
    return gr.Error(words_of(error), print_exception=False, title="That did not work")


def file_data(path: Path) -> dict[str, Any]:
    """A file, as Gradio's clients fetch it."""
    return {"path": str(path), "orig_name": path.name, "meta": {"_type": "gradio.FileData"}}


def path_of(given: Any) -> Any:
    """Returns the path of an uploaded file as Gradio holds it; None where there is none."""
    if not given:
        return None
    path = given.get("path") if isinstance(given, dict) else getattr(given, "path", None)
    if isinstance(path, str) and path:
        return path
    raise InputError("A file is wanted, as gradio_client's handle_file makes it.")


def add(sessions: Sessions) -> None:
    """Adds the functions to the page that is being built."""
    for function in (options_of(sessions), animate_of(sessions), history_of(sessions), finish_of(sessions)):
        name = function.__name__
        limits = dict(concurrency_limit=1, concurrency_id="finish") if name == "finish" else {}
        limits = dict(concurrency_limit=None) if name == "animate" else limits
        gr.api(function, api_name=name, **limits)


def options_of(sessions: Sessions) -> Callable:
    def options() -> dict:
        """What there is to choose from, and what is chosen where nothing is said."""
        offers = sessions.offers
        choices = dict(size=[*offers.sizes], length=offers.lengths, steps=offers.steps, motion=[*offers.motion])
        choices |= dict(closeness=[*CLOSENESS], obedience=[*OBEDIENCE], strength=[*STRENGTHS])
        choices |= dict(style=[NONE, *offers.styles], base=[NONE, *offers.bases])
        choices |= dict(learned_motion=[NONE, *offers.learned_motions])
        return dict(choices=choices, default=dataclasses.asdict(offers.default))

    return options


def animate_of(sessions: Sessions) -> Callable:
    default = sessions.offers.default

    async def animate(
        picture: dict,
        prompt: str = "",
        negative_prompt: str = default.negative_prompt,
        size: str = default.size,
        length: int = default.length,
        steps: int = default.steps,
        seed: int = default.seed,
        motion: str = NATURAL,
        closeness: str = NATURAL,
        obedience: str = NATURAL,
        style: str = NONE,
        strength: str = default.strength,
        base: str = NONE,
        learned_motion: str = NONE,
        zoom: float = 1.0,
        x: float = 0.5,
        y: float = 0.5,
    ) -> AsyncIterator[dict]:
        """Animates a picture: tells again and again how far it is, at last the run's name and its video."""
        values = dict(locals())
        try:
            crop = Crop(*(values.pop(name) for name in ("zoom", "x", "y")))
            request = request_of(values)
            run = sessions.submit(path_of(picture), crop, request)
        except Exception as error:
            raise refused(error) from None
        async for _ in sessions.watch(run):
            before = sessions.desk.before(run)
            yield dict(state=run.state, stage=run.stage, before=before, step=run.done, of=run.total)
        if run.state == DONE:
            entry = run.result
            yield described(entry, request) | dict(
                state=run.state,
                notes=run.notes,
                video=file_data(entry.file(".mp4")),
                record=file_data(entry.file(".json")),
            )
        elif run.state == CANCELLED:
            yield dict(state=run.state, step=run.done, of=run.total)
        else:
            raise refused(run.error)

    return animate


def history_of(sessions: Sessions) -> Callable:
    def history(most: int = 20) -> list:
        """The newest runs: name, what was asked for, video and record of each."""
        try:
            chosen = sessions.history.entries()[: max(0, whole("most", most))]
        except Exception as error:
            raise refused(error) from None
        return [
            described(entry, sessions.offers.request_of(entry.config))
            | dict(video=file_data(entry.file(".mp4")), record=file_data(entry.file(".json")))
            for entry in chosen
        ]

    return history


def finish_of(sessions: Sessions) -> Callable:
    default = finishing.Wishes()

    def finish(
        name: str,
        aspect: str = default.aspect,
        fit: str = default.fit,
        height: str = default.height,
        format: str = default.format,
        times: int = default.times,
        text: str = "",
        place: str = default.place,
        music: dict = None,  # noqa: RUF013 (Gradio wants a plain type)
    ) -> dict:
        """A run's video ready for posting: aspect, text, music, format."""
        try:
            wishes = finishing.Wishes(aspect, fit, height, format, whole("times", times), text, place)
            sound = path_of(music)
            wishes = dataclasses.replace(wishes, music=sound and Path(sound))
            return file_data(sessions.finish(name, wishes))
        except Exception as error:
            raise refused(error) from None

    return finish
