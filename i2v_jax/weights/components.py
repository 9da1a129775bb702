"""Every component by its name in files, and what assembles it from one source."""

from collections.abc import Callable, Mapping

from i2v_jax.weights import controls, whole
from i2v_jax.weights.assemble import (
    Assembled,
    assemble_image_encoder,
    assemble_image_projection,
    assemble_text_encoder,
    assemble_vae,
)
from i2v_jax.weights.unets import assemble_any_unet

ASSEMBLE: Mapping[str, Callable[..., Assembled]] = {
    "unet": assemble_any_unet,
    "unet_ema": assemble_any_unet,
    **controls.ASSEMBLE,
    "vae": assemble_vae,
    "text_encoder": assemble_text_encoder,
    "text_encoder_2": assemble_text_encoder,
    "image_encoder": assemble_image_encoder,
    "image_proj": assemble_image_projection,
    **whole.ASSEMBLE,
}
"""Component -> what assembles it from one source."""
