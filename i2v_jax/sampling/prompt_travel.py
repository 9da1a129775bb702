"""Prompt travel: prompts of some frames of a video, and in the frames between them what lies between the two.

Text states are interpolated by frame, as in diffusers' FreeNoise; the last prompt goes on to the end, in a loop back to
the first.
"""

import ast
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32

from i2v_jax.errors import InputError
from i2v_jax.models.conditions import Conditions

EXAMPLE = "{0: 'a calm sea', 24: 'a storm'}"


def parse(text: str, frames: int | None = None) -> dict[int, str]:
    """Returns the prompts of a text such as `{0: 'a calm sea', 24: 'a storm'}` by frame, in order; {} of "".

    Args:
      text: frames, counted from 0, and prompts.
      frames: of the video; None where it is not known.

    Raises:
      InputError: another text, no frame 0, or a frame that the video has not.
    """
    if not text:
        return {}
    try:
        found = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        found = None
    numbers = found if isinstance(found, dict) and found else ()
    sound = all(type(frame) is int and isinstance(prompt, str) for frame, prompt in dict(numbers or {}).items())
    if not numbers or not sound:
        raise InputError(f'prompt_travel={text!r}: wanted frames and their prompts, such as "{EXAMPLE}".')
    if 0 not in found:
        raise InputError(
            f"prompt_travel={text!r}: there is no prompt for frame 0, with which the video begins. Frames are counted "
            f'from 0: "{EXAMPLE}".'
        )
    if frames and (outside := [frame for frame in found if not 0 <= frame < frames]):
        raise InputError(
            f"prompt_travel={text!r}: a video of frames={frames} has the frames 0 to {frames - 1}, and not "
            f"{', '.join(map(str, outside))}. Give more frames, or other numbers."
        )
    return dict(sorted(found.items()))


def shares(keys: list[int], frames: int, is_loop: bool = False) -> Float32[np.ndarray, "f k"]:
    """Returns the share of each prompt in each frame; those of a frame sum to 1.

    Args:
      keys: frames that have a prompt, in order, the first 0.
      frames: of the video.
      is_loop: behind the last prompt, the way leads back to the first.
    """
    found, ends = np.zeros((frames, len(keys))), [*keys, frames]
    for number, (begin, end) in enumerate(zip(ends, ends[1:])):
        after = (number + 1) % len(keys) if is_loop or number + 1 < len(keys) else number
        share = np.arange(end - begin) / (end - begin)
        found[begin:end, number] += 1 - share
        found[begin:end, after] += share
    return found.astype(np.float32)


def by_frame(of_prompts: Conditions, keys: list[int], settings: Any) -> Conditions:
    """Returns the conditions of videos whose frames have each its own text.

    Args:
      of_prompts: its text and pooled text of all videos by the first prompt, then by the next ...; all else of videos.
      keys: frames that have a prompt.
      settings: of the run. Pooled text, of which a network takes one, stays by frame where it sees windows; else it is
        the mean of all.
    """
    windows = settings.windows
    is_loop = windows.averages_predictions and windows.schedule == "looped"
    table = shares(keys, settings.frames, is_loop)

    def between(x):
        return jnp.einsum("fk,kn...->nf...", table, x[:, 0].reshape(len(keys), -1, *x.shape[2:]))

    found = of_prompts._replace(text=between(of_prompts.text))
    if of_prompts.pooled is None:
        return found
    pooled = between(of_prompts.pooled)
    return found._replace(pooled=pooled if windows.averages_predictions else pooled.mean(1, keepdims=True))
