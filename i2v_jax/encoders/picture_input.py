"""What first layers take beside the latents: of PIA (Zhang et al. 2024, section 3) a mask and the picture's latents, of
DynamiCrafter (Xing et al. 2023) latents of one picture or of two.

The mask tells every frame how like the picture it is to be, by the published table of that likeness over frames.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

LIKENESS = (
    (1.0, 0.9, 0.85, 0.85, 0.85, 0.8),  # small motion
    (1.0, 0.8, 0.8, 0.8, 0.79, 0.78, 0.75),  # moderate
    (1.0, 0.8, 0.7, 0.7, 0.7, 0.7, 0.7, 0.7, 0.7, 0.7, 0.6, 0.5, 0.5),  # large
    (1.0, 0.9, 0.85, 0.85, 0.85, 0.8, 0.8, 0.8, 0.8, 0.8, 0.8, 0.8, 0.85, 0.85, 0.9, 1.0),  # loops: small motion
    (1.0, 0.8, 0.8, 0.8, 0.79, 0.78, 0.75, 0.75, 0.75, 0.75, 0.75, 0.78, 0.79, 0.8, 0.8, 1.0),  # moderate
    (1.0, 0.8, 0.7, 0.7, 0.7, 0.7, 0.6, 0.5, 0.5, 0.6, 0.7, 0.7, 0.7, 0.7, 0.8, 1.0),  # large
    (0.5, 0.4, 0.4, 0.4, 0.35, 0.3),  # another style than the picture's: small motion
    (0.5, 0.4, 0.4, 0.4, 0.35, 0.35, 0.3, 0.25, 0.2),  # moderate
    (0.5, 0.2),  # large
)
"""Likeness to the picture, frame by frame, by `motion_scale`; the last goes on."""


def likeness(frames: int, motion_scale: int) -> Float[np.ndarray, " frames"]:
    """Returns how like the picture each frame is to be."""
    known = LIKENESS[motion_scale]
    return np.array([known[min(frame, len(known) - 1)] for frame in range(frames)], np.float32)


def encode(first_frame: Float[Array, "b 1 h w c"], frames: int, motion_scale: int) -> Float[Array, "b f h w m"]:
    """Returns mask and picture for every frame, `c + 1` channels, the mask first.

    Args:
      first_frame: clean, scaled latents of the picture.
      frames: of the video.
      motion_scale: 0 .. 8, a row of `LIKENESS`.
    """
    shape = (first_frame.shape[0], frames, *first_frame.shape[2:])
    mask = jnp.broadcast_to(likeness(frames, motion_scale)[:, None, None, None], (*shape[:-1], 1))
    return jnp.concatenate([mask, jnp.broadcast_to(first_frame, shape)], -1)


def in_frames(
    first: Float[Array, "b 1 h w c"], frames: int, last: Float[Array, "b 1 h w c"] | None = None
) -> Float[Array, "b f h w c"]:
    """Returns latents for every frame: the picture's in all; or two pictures' at the ends and zeros between.

    Args:
      first: clean, scaled latents of the first picture.
      frames: of the video.
      last: of the last picture, where there is one.
    """
    shape = (first.shape[0], frames, *first.shape[2:])
    if last is None:
        return jnp.broadcast_to(first, shape)
    between = jnp.zeros((shape[0], frames - 2, *shape[2:]), first.dtype)
    return jnp.concatenate([first, between, last], 1)


def time_noise(
    share: Float[Array, " b"], normal: Float[Array, " b"], most: float, power: float = 5.0
) -> Float[Array, " b"]:
    """Returns how much noise the picture's latents get in training, so that a model does not copy them (TimeNoise, Zhao
    et al. 2024, section 4.2): most * sigmoid(normal + 2 share^power - 1), more at noisier timesteps.

    Args:
      share: timesteps over their number, in [0, 1).
      normal: standard normal, one for each video.
      most: the largest standard deviation (the published beta_m is 100).
      power: how late the noise grows.
    """
    return most * jax.nn.sigmoid(normal + 2 * share**power - 1)
