"""Clips that a camera makes of pictures, by panning over them and zooming, and captions that say so."""

import functools
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from PIL import Image

from i2v_jax import media
from i2v_jax.data.clip import Clip, Source
from i2v_jax.data.decoding import BadClip, Cut, Frames
from i2v_jax.errors import InputError


class Move(NamedTuple):
    """Where a camera goes: by signs, what it shows goes the other way."""

    right: int = 0
    down: int = 0
    nearer: int = 0


MOVES = {
    "pans left": Move(right=-1),
    "pans right": Move(right=1),
    "pans up": Move(down=-1),
    "pans down": Move(down=1),
    "zooms in": Move(nearer=1),
    "zooms out": Move(nearer=-1),
}
"""What captions call a move -> the move."""
TRAVEL, ZOOM = (0.25, 0.3), (1.4, 1.6)
"""How far a clip's first and last frame are apart, drawn between: in sides of a frame; a factor."""


class CameraClips:
    """Every move over every picture of a source, see `data.clip.Source`; clip n has the move n mod their count.

    The caption says the move after its first part, before words for a style: of "a pink heart, ink" it is
    "a pink heart, the camera pans left, ink".

    Args:
      pictures: a folder of pictures with captions.
      name: of the folder, for messages.

    Raises:
      InputError: what the source holds are no pictures.
    """

    def __init__(self, pictures: Source, name: str):
        if not getattr(pictures, "are_pictures", False):
            raise InputError(
                f"camera:{name}: wanted a folder of pictures with txt files; what is there moves of itself. "
                f"Give data.source={name!r} for that."
            )
        self.pictures = pictures

    def __len__(self) -> int:
        return len(self.pictures) * len(MOVES)

    def id_of(self, number: int) -> str:
        picture, name = self._shot(number)
        return f"{self.pictures.id_of(picture)}, {name}"

    def __getitem__(self, number: int) -> Clip:
        picture, name = self._shot(number)
        clip = self.pictures[picture]
        subject, comma, rest = clip.caption.partition(",")
        caption = f"{subject}, the camera {name}{comma}{rest}" if clip.caption else ""
        video = functools.partial(read_moved, clip.video, MOVES[name])
        return Clip(self.id_of(number), caption, video, clip.unreadable)

    def _shot(self, number: int) -> tuple[int, str]:
        """Number of the picture, name of the move."""
        picture, move = divmod(range(len(self))[number], len(MOVES))
        return picture, list(MOVES)[move]


def read_moved(file: Path, move: Move, cut: Cut, rng: np.random.Generator) -> Frames:
    """Makes a clip of a picture, whose frames are cut from it and resized (bicubic, antialiased).

    Args:
      file: the picture.
      move: where the camera goes, at an even pace.
      cut: what a clip is; its stride is passed over.
      rng: draws how far.

    Raises:
      BadClip: no picture can be read there.
    """
    try:
        picture = media.load_picture(file)
    except InputError as error:
        raise BadClip("not a picture" if file.exists() else "missing file", str(error)) from None
    image = Image.fromarray(picture)
    height, width = picture.shape[:2]
    corners = _windows(move, cut.frames, (height, width), cut.height / cut.width, rng)
    video = np.stack(
        [np.asarray(image.resize((cut.width, cut.height), Image.Resampling.BICUBIC, box=tuple(box))) for box in corners]
    )
    left, top, right, _ = corners[0]
    scale = cut.width / (right - left)
    sizes = np.array([height, width, round(top * scale), round(left * scale), cut.height, cut.width], np.float32)
    return Frames(video, sizes)


def _windows(
    move: Move, frames: int, size: tuple[int, int], aspect: float, rng: np.random.Generator
) -> Float[np.ndarray, "frames 4"]:
    """What of a picture each frame shows, the middle of the way being that of the picture: left, top, right, bottom."""
    (height, width), share = size, np.linspace(-0.5, 0.5, frames) if frames > 1 else np.zeros(1)
    travel, zoom = rng.uniform(*TRAVEL), rng.uniform(*ZOOM)
    across, down = 1 + travel * abs(move.right), 1 + travel * abs(move.down)  # of the picture, in sides of a frame
    wide = min(width / across, height / down / aspect) * zoom ** (-abs(move.nearer) / 2 - move.nearer * share)
    wide = np.broadcast_to(wide, frames)
    tall = wide * aspect
    x, y = width / 2 + travel * move.right * share * wide, height / 2 + travel * move.down * share * tall
    return np.clip(
        np.stack([x - wide / 2, y - tall / 2, x + wide / 2, y + tall / 2], -1), 0, [width, height, width, height]
    )
