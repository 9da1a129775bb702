"""Makes a study: one page with the videos of several runs in it, under ids that say nothing, and the key to them."""

import base64
import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

from i2v_jax.data.decoding import BadClip
from i2v_jax.errors import InputError
from i2v_jax.evaluation.journal import key_of
from i2v_jax.evaluation.sets import Item, all_frames, videos_in
from i2v_jax.evaluation.study.key import Key
from i2v_jax.media import LENIENT, Frames, Picture, encode_video, fit_picture

PAGE = Path(__file__).with_name("page.html")
DATA = "/*STUDY*/null"
"""What stands in `page.html` in the place of a study."""
TITLE = "Which video is better?"
QUESTIONS = {
    "consistency": "Which video keeps closest to the picture?",
    "quality": "Which video looks best?",
    "motion": "In which video does most move, and as it would?",
}
"""The three that the I2V-Adapter paper names: consistency with the reference image, visual quality, motion range."""
WITHOUT_PICTURE = "Which video keeps closest to its own first frame?"
MOST_RUNS = 12  # side by side
RATES = (1.0, 60.0)  # frames a second of what is shown


def common_cases(folders: Mapping[str, str | Path], common: bool) -> tuple[list[str], dict[str, dict[str, Path]]]:
    """Returns the names of the cases, and run -> case -> video.

    Args:
      folders: name of a run -> its folder of videos.
      common: leave out what not all runs have, in the place of refusing it.

    Raises:
      InputError: fewer than 2 runs or more than 12, a folder without videos, or runs of different cases.
    """
    if not 2 <= len(folders) <= MOST_RUNS:
        raise InputError(f"{len(folders)} runs: wanted 2 to {MOST_RUNS}, each as NAME=FOLDER.")
    found = {run: videos_in(folder) for run, folder in folders.items()}
    every = dict.fromkeys(name for videos in found.values() for name in videos)
    shared = [name for name in every if all(name in videos for videos in found.values())]
    if not shared:
        first, second = list(found)[:2]
        raise InputError(
            f"No case has a video of every run: {first} has {next(iter(found[first]))!r}, {second} has "
            f"{next(iter(found[second]))!r}. Videos of one case have one name."
        )
    lacking = {run: [name for name in every if name not in videos] for run, videos in found.items()}
    if any(lacking.values()) and not common:
        told = "; ".join(
            f"{run} lacks {', '.join(names[:3])}" + (f" and {len(names) - 3} more" if len(names) > 3 else "")
            for run, names in lacking.items()
            if names
        )
        raise InputError(
            f"The runs have different cases: {told}. Make these videos, or take the {len(shared)} cases that all have "
            "with --common."
        )
    return shared, found


def make(
    folders: Mapping[str, str | Path],
    items: Sequence[Item] = (),
    *,
    count: int = 0,
    seed: int = 0,
    side: int = 512,
    title: str = TITLE,
    questions: Mapping[str, str] | None = None,
    common: bool = False,
) -> tuple[bytes, Key]:
    """Returns a study's page and its key.

    Args:
      folders: name of a run -> its folder of videos; videos of one case have one name.
      items: pictures and prompts of the cases, by the videos' names; those without are shown without.
      count: how many cases, drawn at random; 0: all.
      seed: of that draw, of the ids and of the order in the file. The page draws an order of its own for each person.
      side: pixels of a video's longer side, at most.
      title: of the page.
      questions: name -> what is asked; by default `QUESTIONS`.
      common: leave out what not all runs have.

    Raises:
      InputError: see `common_cases`; fewer cases than `count`; a video that cannot be read.
    """
    if side < 16:
        raise InputError(f"side={side}: wanted 16 pixels or more.")
    names, videos = common_cases(folders, common)
    if not 0 <= count <= len(names):
        raise InputError(f"{count} cases of {len(names)}: wanted no more than there are.")
    known = {item.name: item for item in items}
    if known and not known.keys() & set(names):
        raise InputError(f"No picture is called as a video: {next(iter(known))!r} against {names[0]!r}.")
    # without the videos' own names, nobody makes the order again from a seed that is easily guessed
    drawn = np.random.Generator(np.random.PCG64(int(key_of(seed, list(folders), names), 16)))
    chosen = [names[i] for i in drawn.permutation(len(names))[: count or len(names)]]
    if questions is None:
        first = QUESTIONS["consistency"] if any(name in known for name in chosen) else WITHOUT_PICTURE
        questions = QUESTIONS | {"consistency": first}
    cases, case_names, owners = [], {}, {}
    for name in chosen:
        ids = [drawn.bytes(6).hex() for _ in range(len(folders) + 1)]
        case, *ids = ids
        runs = [list(folders)[i] for i in drawn.permutation(len(folders))]
        case_names[case], owners[case] = name, dict(zip(ids, runs))
        shown = {one: _base64(_shown(videos[run][name], side)) for one, run in owners[case].items()}
        cases.append({"case": case, **_about(known.get(name), side), "videos": shown})
    content = hashlib.sha256(json.dumps([cases, dict(questions), title]).encode()).hexdigest()[:16]
    key = Key(content, title, tuple(folders), dict(questions), case_names, owners, seed)
    return page(key, cases), key


def page(key: Key, cases: Sequence[Mapping[str, Any]]) -> bytes:
    """Returns the page of a study; of its key only id, title and questions go into it."""
    asked = [dict(name=name, text=text) for name, text in key.questions.items()]
    data = json.dumps(dict(study=key.study, title=key.title, questions=asked, cases=list(cases)))
    for mark in "<>&\u2028\u2029":  # which would end the script
        data = data.replace(mark, f"\\u{ord(mark):04x}")
    before, mark, after = PAGE.read_text(encoding="utf-8").partition(DATA)
    return (before + data + after).encode()


def _about(item: Item | None, side: int) -> dict[str, str | None]:
    """A case's prompt and picture."""
    if item is None:
        return dict(prompt=None, picture=None)
    picture = item.picture and _base64(_jpeg(_within(item.picture(), side)))
    return dict(prompt=item.prompt, picture=picture)


def _shown(path: Path, side: int) -> bytes:
    """A video as it is shown: coded anew, so that neither codec nor metadata tell whose it is."""
    try:
        frames = all_frames(path)
    except BadClip as error:
        raise InputError(f"{path}: {error.cause}. {error.detail}".strip()) from None
    frames = np.stack([_within(frame, side) for frame in frames])
    return encode_video(frames, _rate(path, frames))


def _within(picture: Picture, side: int) -> Picture:
    """A picture with its longer side at most so long, its aspect kept, sides even."""
    scale = min(1.0, side / max(picture.shape[:2]))
    height, width = (max(2, round(length * scale) // 2 * 2) for length in picture.shape[:2])
    return picture if (height, width) == picture.shape[:2] else fit_picture(picture, height, width)


def _rate(path: Path, frames: Frames) -> float:
    """Frames a second of a video that can be read."""
    with av.open(str(path), **LENIENT) as container:
        stream = container.streams.video[0]
        rate = stream.average_rate or stream.guessed_rate
    return min(max(float(rate or 8), RATES[0]), RATES[1])


def _jpeg(picture: Picture) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=92)
    return buffer.getvalue()


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()
