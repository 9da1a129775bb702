"""What is random in a run: what is drawn for a video depends on its seed and the purpose's name alone."""

import zlib

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int32, Key

from i2v_jax.diffusion.frame_similarity_prior import sample_mask


def named_keys(seeds: Int32[np.ndarray, " n"], name: str) -> Key[Array, " n"]:
    """One random key per video for one purpose."""
    number = zlib.crc32(name.encode()) & 0x7FFFFFFF
    return jax.vmap(lambda seed: jax.random.fold_in(jax.random.key(seed), number))(jnp.asarray(seeds, jnp.uint32))


def normal(keys: Key[Array, " n"], shape: tuple[int, ...]) -> Float[Array, "n ..."]:
    """Standard normal noise of `shape` for each key."""
    return jax.vmap(lambda key: jax.random.normal(key, shape, jnp.float32))(keys)


def prior(seeds: Int32[Array, " n"], video: tuple[int, ...], p: float) -> tuple[Array, Array]:
    """Returns the Frame Similarity Prior's mask and noise, of each video by its seed."""
    mask = jax.vmap(lambda key: sample_mask(key, video, p))(named_keys(seeds, "prior mask"))
    return mask, normal(named_keys(seeds, "prior noise"), video)
