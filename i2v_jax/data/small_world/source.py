"""The small world as a source of clips, whose frames are made when they are read."""

import functools

import numpy as np

from i2v_jax.data.clip import Clip
from i2v_jax.data.decoding import Cut, Frames, choose_frames
from i2v_jax.data.small_world.drawing import render
from i2v_jax.data.small_world.scene import CLIPS, FPS, FRAMES, NOVEL_CLIPS, Scene, check_split, draw
from i2v_jax.errors import InputError

LESSONS = "lessons"  # one more source, see `SmallWorld`


class SmallWorld:
    """A source of clips, see `data.clip`.

    Args:
      split: or `LESSONS`: the train split's clips, but with one object and one motion each, and captions that say the
        motion alone, such as "moves left". Or a motion that the bundled model was not taught (`paths.NOVEL`), of which
        there are ten clips, such as "swing"; "swing-30" has as many as it says, "held_out:swing" another split's.

    Raises:
      InputError: no such split.
    """

    def __init__(self, split: str):
        self.name, self.lessons = split, split == LESSONS
        self.split, dash, count = ("train", "", "") if self.lessons else split.partition("-")
        check_split(self.split, LESSONS)
        self.count = CLIPS.get(self.split, NOVEL_CLIPS)
        if dash:
            if self.split in CLIPS or not count.isdecimal() or int(count) < 1:
                raise InputError(f"small_world:{split}: wanted a number of clips of one motion, such as swing-30.")
            self.count = int(count)

    def __len__(self) -> int:
        return self.count

    def id_of(self, number: int) -> str:
        return clip_id(number, self.name)

    def __getitem__(self, number: int) -> Clip:
        number = range(len(self))[number]
        scene = draw(number, self.split, self.lessons)
        caption = scene.motion_caption if self.lessons else scene.caption
        return Clip(clip_id(number, self.name), caption, functools.partial(read, scene))


def clip_id(index: int, split: str) -> str:
    """Such as "train-000012"."""
    return f"{split}-{index:06d}"


def read(scene: Scene, cut: Cut, rng: np.random.Generator) -> Frames:
    """Renders the frames that a cut takes of a clip of 16, as `data.decoding.read_clip` decodes them of a video.

    The scene is rendered as a square that covers the cut, whose middle is taken: nothing is scaled.

    Raises:
      BadClip: the cut has more frames.
    """
    size = max(cut.height, cut.width)
    top, left = (size - cut.height) // 2, (size - cut.width) // 2
    numbers = choose_frames(FRAMES, cut, rng)
    video = render(scene, np.array(numbers) / (FRAMES - 1), size)
    sizes = np.array([size, size, top, left, cut.height, cut.width], np.float32)
    return Frames(video[:, top : top + cut.height, left : left + cut.width], sizes, numbers.step, FPS / numbers.step)
