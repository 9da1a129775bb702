"""What a model is measured on: pictures with prompts, and what is known of the videos that they are of."""

from collections.abc import Sequence
from typing import NamedTuple

from i2v_jax.data.small_world.drawing import RenderedClip, render_clip
from i2v_jax.data.small_world.scene import draw
from i2v_jax.media import Picture


class Example(NamedTuple):
    """One video to be made.

    Attributes:
      picture: the input.
      prompt: the text.
      truth: the clip whose first frame and caption these are, with its video, flow and scene; None where no clip is
        known. Metrics that need it leave such an example out.
    """

    picture: Picture
    prompt: str
    truth: RenderedClip | None = None


def small_world(split: str, numbers: Sequence[int], frames: int, side: int, *, opposite: bool = False) -> list[Example]:
    """Returns clips of the small world.

    Args:
      split, numbers: which, see `data.small_world.scene.draw`.
      frames, side: of a clip, the side in pixels.
      opposite: the same pictures, but with prompts and videos in which every motion goes the other way.

    Raises:
      InputError: no such split.
    """
    scenes = [draw(number, split) for number in numbers]
    clips = [render_clip(scene.opposite() if opposite else scene, frames, side) for scene in scenes]
    return [Example(clip.video[0], clip.caption, clip) for clip in clips]
