"""Steering a prediction by its condition: classifier-free guidance (Ho & Salimans 2022) and its rescale
(Lin et al. 2023, section 3.4). All in float32.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def guide(
    conditional: Float[Array, "*n"], unconditional: Float[Array, "*n"], guidance_scale: float
) -> Float[Array, "*n"]:
    """Classifier-free guidance: unconditional + guidance_scale (conditional - unconditional).

    Args:
        conditional, unconditional: the network's predictions for the same latents, any float dtype.
        guidance_scale: 1 gives the conditional prediction, 0 the unconditional one.

    Returns:
        The guided prediction, float32.
    """
    conditional, unconditional = conditional.astype(jnp.float32), unconditional.astype(jnp.float32)
    return unconditional + guidance_scale * (conditional - unconditional)


def guide_apart(
    predictions: Float[Array, "3b *n"],
    guidance_scale: float,
    image_guidance_scale: float,
    guidance_rescale: float = 0.0,
) -> Float[Array, "b *n"]:
    """Guides by picture and prompt apart (Brooks et al. 2023, equation 3; DynamiCrafter's `multiplecond` sampler):
    unconditional + image_guidance_scale (picture - unconditional) + guidance_scale (both - picture).

    Args:
        predictions: for a batch laid out as all examples without either, with the picture alone, with both.
        guidance_scale, image_guidance_scale: of the prompt and of the picture; where they are equal, as `guide`.
        guidance_rescale: as in `rescale`, to the spread of the prediction with both.

    Returns:
        The guided prediction for the batch, float32.
    """
    unconditional, of_picture, conditional = (part.astype(jnp.float32) for part in jnp.split(predictions, 3))
    guided = guide(of_picture, unconditional, image_guidance_scale) + guidance_scale * (conditional - of_picture)
    return rescale(guided, conditional, guidance_rescale) if guidance_rescale else guided


def rescale(
    guided: Float[Array, "b *n"],
    conditional: Float[Array, "b *n"],
    guidance_rescale: float,
    where: Bool[Array, "..."] | None = None,
) -> Float[Array, "b *n"]:
    """Gives the guided prediction the spread of the conditional one, which keeps strong guidance from over-exposing.

    Args:
        guided: guided prediction, any float dtype; its spread is taken over all axes but the batch.
        conditional: the conditional prediction.
        guidance_rescale: phi in [0, 1]: 0 changes nothing, 1 matches the spread exactly; the paper takes 0.7.
        where: the elements whose spread counts, by default all; broadcast to `guided`.

    Returns:
        The rescaled prediction, float32. Equations 15 and 16.
    """
    guided, conditional = guided.astype(jnp.float32), conditional.astype(jnp.float32)
    axes = tuple(range(1, guided.ndim))
    spread = jnp.std(conditional, axes, keepdims=True, where=where) / jnp.std(guided, axes, keepdims=True, where=where)
    return guidance_rescale * spread * guided + (1 - guidance_rescale) * guided


def classifier_free(
    predictions: Float[Array, "2b *n"],
    guidance_scale: float,
    guidance_rescale: float = 0.0,
    where: Bool[Array, "..."] | None = None,
) -> Float[Array, "b *n"]:
    """Guides a doubled batch, `[unconditional, conditional]`, and rescales the result when `guidance_rescale` is not 0.

    Args:
        predictions: the network's output for a batch laid out as all unconditional examples, then all conditional ones.
        guidance_scale: as in `guide`.
        guidance_rescale, where: as in `rescale`; guidance_rescale a Python number.

    Returns:
        The guided prediction for the batch, float32.
    """
    unconditional, conditional = jnp.split(predictions, 2)
    guided = guide(conditional, unconditional, guidance_scale)
    return rescale(guided, conditional, guidance_rescale, where) if guidance_rescale else guided
