"""What the weights of a prompt do to its states, by the web UIs' two definitions."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from i2v_jax.errors import check_known


def keep_mean(
    states: Float[Array, "b n t e"], weights: Float[Array, "b n t"], empty: Float[Array, "b t e"] | None = None
) -> Float[Array, "b n t e"]:
    """Returns `z w mean(z) / mean(z w)`, means over each chunk: AUTOMATIC1111's "original" emphasis."""
    changed = states * weights[..., None]
    before, after = (x.mean((-2, -1), keepdims=True) for x in (states, changed))
    return jnp.where((weights == 1).all(-1)[..., None, None], states, changed * (before / after))


def from_empty(
    states: Float[Array, "b n t e"], weights: Float[Array, "b n t"], empty: Float[Array, "b t e"]
) -> Float[Array, "b n t e"]:
    """Returns `z_0 + w (z - z_0)` with the states z_0 of the empty prompt: ComfyUI's, and compel's where w >= 1."""
    base, weights = empty[:, None], weights[..., None]
    return jnp.where(weights == 1, states, base + weights * (states - base))


EMPHASES = {"a1111": keep_mean, "comfyui": from_empty}
"""Values of `prompt_weighting`."""


def check_emphasis(name: str) -> None:
    """Raises InputError for a name that is not in `EMPHASES`."""
    check_known("prompt_weighting=", name, EMPHASES)
