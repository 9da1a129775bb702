"""The Frame Similarity Prior: a run starts from the picture, degraded and noised, in place of pure noise (I2V-Adapter,
section 3.3). Frames 2..l start at alpha D(x_1) + sigma epsilon with D(x) = M_p x + (1 - M_p) blur(x); frame 1 is clean.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key

from i2v_jax.diffusion.first_frame import pin
from i2v_jax.diffusion.samplers import Sampler
from i2v_jax.errors import InputError

# The published code's blur of latents: 9x9 pixels, standard deviation 18, borders reflected.
RADIUS = 4
STANDARD_DEVIATION = 18.0


def sample_mask(key: Key[Array, ""], shape: tuple[int, ...], p: float) -> Bool[Array, "*shape"]:
    """Draws M_p: True, keep the picture, with probability p; False, take the blurred one.

    Args:
        key: random key.
        shape: of the video's latents; every element of every frame is drawn by itself, as in the published code.
        p: in [0, 1]; the published code's is 0.5.

    Raises:
        InputError: p out of range.
    """
    if not 0 <= p <= 1:
        raise InputError(f"p = {p} given; wanted a probability in [0, 1], that of keeping an element of the picture")
    return jax.random.bernoulli(key, p, shape)


def gaussian_blur(latents: Float[Array, "*b h w c"]) -> Float[Array, "*b h w c"]:
    """Blurs each picture and channel with the published 9x9 kernel.

    Args:
        latents: of any size. A border is reflected about its outermost pixel, so an axis of fewer than 5 pixels cannot
            hold the kernel: there the radius shrinks to the axis' length less 1, and an axis of 1 is not blurred.

    Returns:
        The blurred latents, float32.
    """
    latents = latents.astype(jnp.float32)
    for axis in (-3, -2):
        latents = _blur_axis(latents, axis)
    return latents


def degrade(first_frame: Float[Array, "b 1 h w c"], mask: Bool[Array, "b f h w c"]) -> Float[Array, "b f h w c"]:
    """D(x_1) for every frame but the first, which is x_1 itself.

    Args:
        first_frame: clean latents of the picture.
        mask: from `sample_mask`; its frames are the video's.

    Returns:
        Latents of the video before noise is added, float32.
    """
    first_frame = first_frame.astype(jnp.float32)
    return pin(jnp.where(mask, first_frame, gaussian_blur(first_frame)), first_frame)


def initial_latents(
    first_frame: Float[Array, "b 1 h w c"],
    mask: Bool[Array, "b f h w c"],
    noise: Float[Array, "b f h w c"],
    sampler: Sampler,
    start_index: int = 0,
) -> Float[Array, "b f h w c"]:
    """The latents a run starts from: frame 1 clean, the others D(x_1) noised to the level of step `start_index`.

    Args:
        first_frame: clean latents of the picture.
        mask: from `sample_mask`.
        noise: standard Gaussian noise; frame 1's is not used.
        sampler: the run's sampler.
        start_index: `sampler.start_index(t0)` for a prior of strength t0.

    Returns:
        Latents in the sampler's own scaling (frame 1 in no scaling), float32, for `sampler.init`.
    """
    return pin(sampler.add_noise(degrade(first_frame, mask), noise, start_index), first_frame)


def _blur_axis(latents: Float[Array, "..."], axis: int) -> Float[Array, "..."]:
    size = latents.shape[axis]
    radius = min(RADIUS, size - 1)
    weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / STANDARD_DEVIATION) ** 2)
    weights = (weights / weights.sum()).astype(np.float32)
    padding = [(0, 0)] * latents.ndim
    padding[axis] = (radius, radius)
    padded = jnp.pad(latents, padding, mode="reflect")
    return sum(w * jax.lax.slice_in_dim(padded, k, k + size, axis=axis) for k, w in enumerate(weights))
