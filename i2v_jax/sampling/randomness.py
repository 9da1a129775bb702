"""What is random in a run: what is drawn for a video depends on its seed and the purpose's name alone."""

import zlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int32, Key

from i2v_jax.diffusion.frame_similarity_prior import sample_mask
from i2v_jax.diffusion.windows import Windows, noise_order


def named_keys(seeds: Int32[np.ndarray, " n"], name: str) -> Key[Array, " n"]:
    """One random key per video for one purpose."""
    number = zlib.crc32(name.encode()) & 0x7FFFFFFF
    return jax.vmap(lambda seed: jax.random.fold_in(jax.random.key(seed), number))(jnp.asarray(seeds, jnp.uint32))


def normal(keys: Key[Array, " n"], shape: tuple[int, ...]) -> Float[Array, "n ..."]:
    """Standard normal noise of `shape` for each key."""
    return jax.vmap(lambda key: jax.random.normal(key, shape, jnp.float32))(keys)


def prior(
    seeds: Int32[Array, " n"], video: tuple[int, ...], p: float, order: Int32[Array, "n f"] | None = None
) -> tuple[Array, Array]:
    """Returns the Frame Similarity Prior's mask and noise, of each video by its seed.

    Args:
      seeds: of the videos.
      video: shape of the latents of each.
      p: of the mask, see `sample_mask`.
      order: which frame's noise each frame gets, see `noise_orders`; None: its own.
    """
    mask = jax.vmap(lambda key: sample_mask(key, video, p))(named_keys(seeds, "prior mask"))
    noise = normal(named_keys(seeds, "prior noise"), video)
    if order is not None:
        noise = jnp.take_along_axis(noise, order.reshape(*order.shape, *[1] * (noise.ndim - 2)), axis=1)
    return mask, noise


def noise_orders(settings: Windows, frames: int, seeds: Sequence[int]) -> Int32[np.ndarray, "n f"] | None:
    """Returns which frame's noise each frame of each video gets; None where it is its own."""
    if not settings.length or settings.noise == "random":
        return None
    name = zlib.crc32(b"noise order")
    return np.stack([noise_order(settings, frames, np.random.default_rng([int(seed), name])) for seed in seeds])
