"""What the page shows, as HTML: texts of people's are escaped, files are named by their addresses here."""

import base64
import datetime
from collections.abc import Sequence
from html import escape
from pathlib import Path
from urllib.parse import quote

from i2v_jax.page.desk import CANCELLED, RUNNING, WAITING, Run
from i2v_jax.page.history import Entry

TITLE = "Picture to video"
STAGES = {"encoding": "Reading picture and prompt", "decoding": "Making frames of it", "writing": "Writing the files"}
DOWNLOADS = ((".mp4", "Video"), (".gif", "GIF"), (".png", "Contact sheet"), (".json", "Record"))
CLICKS = (
    "element.addEventListener('click', event => { const it = event.target.closest('[data-name]'); "
    "if (it) trigger('click', {name: it.dataset.name}); });"
)
"""Tells the server which of a list's buttons was pressed."""


def header(knows: str) -> str:
    """The page's head; `knows` is what a model of few things can do."""
    told = f"<p>This small model knows {escape(knows.partition(' (')[0])}.</p>" if knows else ""
    lines = f"<h1>{TITLE}</h1><p>Drop a picture, say what happens, and watch it move.</p>{told}"
    return f'<header class="head">{lines}</header>'


def address(path: Path) -> str:
    """A file's address, relative to the page's."""
    return escape(f"gradio_api/file={quote(str(path))}")


def data_address(content: bytes, kind: str) -> str:
    """An address that is the content itself."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def nothing_yet() -> str:
    """The stage before the first run."""
    return '<div class="stage empty"><p>Your video appears here.</p></div>'


def failure(words: str) -> str:
    """The stage after something went wrong."""
    return f'<div class="stage failed" role="alert"><h3>That did not work</h3><p>{escape(words)}</p></div>'


def stopped(run: Run) -> str:
    """The stage after a run was cancelled."""
    after = f" after step {run.done} of {run.total}" if run.total else ", before it began"
    return f'<div class="stage stopped"><p>Stopped{after}.</p></div>'


def under_way(run: Run, before: int, seconds_before: float | None) -> str:
    """The stage of a run that waits or goes on; `before` of the queue come first."""
    words, share = status_of(run, before, seconds_before), run.done / run.total if run.total else 0
    picture = ""
    if run.preview:
        picture = f'<img src="{data_address(run.preview, "jpeg")}" alt="The picture, and a few unfinished frames">'
    bar = f'<div class="bar"><i style="width:{100 * share:.0f}%"></i></div>'
    return f'<div class="stage working" aria-live="polite">{picture}<p class="status">{escape(words)}</p>{bar}</div>'


def status_of(run: Run, before: int, seconds_before: float | None) -> str:
    """Says in a line how far a run is."""
    if run.state == WAITING:
        place = "next in the queue" if before <= 1 else f"{before} runs come first"
        return f"Waiting: {place}{about(seconds_before)}"
    if run.state == CANCELLED:
        return "Stopped"
    if run.state == RUNNING and run.stage == "steps":
        return f"Step {run.done} of {run.total}{about(run.seconds_left)}"
    return STAGES.get(run.stage, run.stage.capitalize())


def about(seconds: float | None) -> str:
    """A length of time, as it stands after a line's other words."""
    if seconds is None:
        return ""
    return f", about {seconds:.0f} s" if seconds < 90 else f", about {seconds / 60:.0f} min"


def result(entry: Entry, notes: Sequence[str] = ()) -> str:
    """The stage of a video that is made: it, what it is of, its files."""
    config = entry.config
    links = "".join(
        f'<a href="{address(entry.file(suffix))}" download="{entry.name}{suffix}">{name}</a>'
        for suffix, name in DOWNLOADS
    )
    size = f"{config['width']} × {config['height']}, {config['frames']} frames"
    facts = f"{size}, {config['steps']} steps, seed {config['seed']}"
    told = "".join(f'<p class="note">{escape(note)}</p>' for note in notes)
    return (
        f'<div class="stage done" data-run="{entry.name}">{video(entry.file(".mp4"))}'
        f'<p class="prompt">{escape(config["prompt"]) or "No prompt"}</p><p class="facts">{facts}</p>{told}'
        f'<nav class="downloads" aria-label="Download">{links}</nav></div>'
    )


def video(path: Path, number: int = 0) -> str:
    """A video that plays for ever; of an animated picture's file, that picture."""
    source = f"{address(path)}{f'#{number}' if number else ''}"
    if path.suffix in (".gif", ".webp"):
        return f'<img class="video" src="{source}" alt="The finished video">'
    return f'<video class="video" src="{source}" autoplay loop muted controls playsinline></video>'


def finished(path: Path) -> str:
    """A finished video, and where it is had."""
    name = path.name.replace("-finished-", "-")
    size = path.stat().st_size
    shown = f"{size / 1e6:.1f} MB" if size > 1e5 else f"{size / 1e3:.0f} kB"
    link = f'<a href="{address(path)}" download="{name}">Download {path.suffix[1:].upper()}, {shown}</a>'
    return f'<div class="stage done finished">{video(path)}<nav class="downloads">{link}</nav></div>'


def history(entries: Sequence[Entry]) -> str:
    """All runs, to be pressed."""
    if not entries:
        return '<p class="quiet">Nothing yet. What you make stays here.</p>'
    cells = "".join(
        f'<button type="button" data-name="{entry.name}" title="{escape(entry.config["prompt"], quote=True)}">'
        f'<img src="{address(entry.file(".gif"))}" alt="" loading="lazy">'
        f"<span>{escape(entry.config['prompt']) or 'No prompt'}</span></button>"
        for entry in entries
    )
    return f'<div class="grid" role="list">{cells}</div>'


def examples(pictures: Sequence[tuple[str, str]]) -> str:
    """Pictures to begin with, each its name's index and an address."""
    if not pictures:
        return ""
    cells = "".join(
        f'<button type="button" data-name="{number}" title="{escape(prompt, quote=True)}"><img src="{source}" alt="'
        f'{escape(prompt, quote=True)}"></button>'
        for number, (prompt, source) in enumerate(pictures)
    )
    return f'<div class="examples"><span>Or try one:</span>{cells}</div>'


def comparison(entries: Sequence[Entry | None]) -> str:
    """Two videos side by side; what they do not have in common is named."""
    one, other = entries
    if one is None or other is None:
        return '<p class="quiet">Choose two videos.</p>'
    cells = "".join(
        f"<figure>{video(entry.file('.mp4'), number + 1)}<figcaption>{escape(entry.config['prompt']) or 'No prompt'}"
        f"<small>{escape(when(entry))}</small></figcaption></figure>"
        for number, entry in enumerate(entries)
    )
    unlike = differences(one, other)
    rows = "".join(f"<tr><th>{name}</th><td>{a}</td><td>{b}</td></tr>" for name, a, b in unlike)
    table = f'<table class="unlike"><caption>What is different</caption>{rows}</table>' if rows else ""
    same = "" if rows else '<p class="quiet">All settings are the same.</p>'
    return f'<div class="pair">{cells}</div>{table}{same}'


def differences(one: Entry, other: Entry) -> list[tuple[str, str, str]]:
    """Returns (setting, value, other value), escaped, of what two runs have not in common."""
    names = dict(
        prompt="prompt",
        negative_prompt="negative prompt",
        seed="seed",
        width="width",
        height="height",
        frames="frames",
        steps="steps",
        t0="t0",
        p="p",
        adapter_scale="adapter scale",
        image_token_scale="image token scale",
        guidance_scale="guidance scale",
    )
    found = []
    for key, name in names.items():
        values = [entry.config.get(key) for entry in (one, other)]
        if values[0] != values[1]:
            found.append((name, *(escape(str(value)) for value in values)))
    return found


def when(entry: Entry) -> str:
    """When a run was asked for."""
    return datetime.datetime.strptime(entry.name[:15], "%Y%m%d-%H%M%S").strftime("%d %b %Y, %H:%M:%S")


def label(entry: Entry) -> str:
    """A run's name in a list to choose from."""
    prompt = entry.config["prompt"] or "No prompt"
    return f"{prompt[:60]}{'…' if prompt[60:] else ''} ({when(entry)})"
