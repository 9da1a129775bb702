"""From a clip to what a batch holds of it: its frames, its picture for an image encoder, what a model is told of it."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8

from i2v_jax.data.clip import Clip, check_caption
from i2v_jax.data.decoding import BadClip, Cut, Frames, read_clip
from i2v_jax.media import clip_pixels

Control = Callable[[UInt8[np.ndarray, "f h w 3"]], UInt8[np.ndarray, "f h w 3"]]
"""A clip's frames to the pictures that a control network is to follow."""


class Conditioning(NamedTuple):
    """What a model is told of a clip beside frames and caption.

    Attributes:
      preprocess: a picture and a size to what the image encoder takes.
      random_picture: the picture is any of the frames, drawn evenly, rather than the first.
      rate: "fps", frames of the clip a second, in whole numbers; "stride", frames of the video from one of the clip to
        the next; "": neither.
    """

    preprocess: Callable[..., np.ndarray] = clip_pixels
    random_picture: bool = False
    rate: str = ""


class Reader:
    """Makes of a source's clip what a batch holds of it: perhaps mirrored, perhaps without its caption.

    Args:
      cut: what a clip is.
      image_size, control, conditioning: see `data.loader.make`.
      flip: mirror every other clip, drawn by chance.
      no_captions: captions are empty, and need not be there.
      least_stride: the stride is drawn evenly from this to the cut's; 0: it is the cut's.
    """

    def __init__(
        self,
        cut: Cut,
        image_size: int | None,
        control: Control | None = None,
        flip: bool = False,
        no_captions: bool = False,
        conditioning: Conditioning = Conditioning(),  # noqa: B008 (a tuple)
        least_stride: int = 0,
    ):
        self.cut, self.image_size, self.control, self.flip = cut, image_size, control, flip
        self.no_captions, self.conditioning, self.least_stride = no_captions, conditioning, least_stride

    def __call__(self, clip: Clip, rng: np.random.Generator) -> dict[str, Any]:
        """Returns `caption`, `video`, its `sizes` (see `data.decoding.Frames`) and, where wanted, `pixels`, `control`,
        `picture` (the number of the frame that the pixels are of) and `fs` (the rate).

        Raises:
          BadClip: says why the clip cannot be used.
        """
        if not self.no_captions:
            check_caption(clip)
        cut = self.cut
        if self.least_stride:
            cut = dataclasses.replace(cut, stride=int(rng.integers(self.least_stride, cut.stride + 1)))
        frames = clip.video(cut, rng) if callable(clip.video) else read_clip(clip.video, cut, rng)
        if self.flip and rng.random() < 0.5:
            frames = frames._replace(video=np.ascontiguousarray(frames.video[:, :, ::-1]))
        caption = "" if self.no_captions else clip.caption
        item = {"caption": caption, "video": frames.video, "sizes": frames.sizes}
        picture = int(rng.integers(len(frames.video))) if self.conditioning.random_picture else 0
        if self.image_size:
            item["pixels"] = self.conditioning.preprocess(frames.video[picture], self.image_size)
        if self.control:
            item["control"] = self.control(frames.video)
        if self.conditioning.rate:
            item |= dict(picture=np.int32(picture), fs=np.float32(rate_of(frames, self.conditioning.rate)))
        return item


def rate_of(frames: Frames, rate: str) -> int:
    """Returns the rate of a clip, 1 or more; of frames a second the whole ones, as DynamiCrafter was trained with.

    Args:
      frames: of the clip.
      rate: "fps" or "stride", see `Conditioning`.

    Raises:
      BadClip: the frames have no time.
    """
    if rate == "stride":
        return frames.stride
    if not frames.fps:
        raise BadClip("timestamps jump", "frames without a time, and the model is to be told their rate")
    return max(1, math.floor(frames.fps + 1e-3))
