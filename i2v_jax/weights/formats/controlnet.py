"""Names of diffusers' ControlNetModel: the way down and the middle of a UNet, and what it adds to them."""

import re

from i2v_jax.weights.formats.diffusers import DIFFUSERS_UNET, DIFFUSERS_UNET_LINEAR
from i2v_jax.weights.names import CONV, DENSE_AS_CONV, Row, Table, under

BRANCH_OR_MOTION = re.compile(r".*/(first_frame|image_tokens|motion)/.*")
"""Paths of what diffusers keeps neither in a ControlNet nor in a Flax model."""
SHARED = re.compile(r"(conv_in|time_embedding|add_embedding|down_blocks_\{i\}|mid_block)(/.*)?")

ADDED = [
    *under(
        "controlnet_cond_embedding.",
        "controlnet_cond_embedding/",
        [Row("conv_in", "conv_in", CONV), Row("blocks.{i}", "blocks_{i}", CONV), Row("conv_out", "conv_out", CONV)],
    ),
    Row("controlnet_down_blocks.{i}", "controlnet_down_blocks_{i}", DENSE_AS_CONV),
    Row("controlnet_mid_block", "controlnet_mid_block", DENSE_AS_CONV),
]


def _controlnet(unet: Table) -> list[Row]:
    shared = [row for row in unet.rows if SHARED.fullmatch(row.ours) and not BRANCH_OR_MOTION.fullmatch(row.ours)]
    return shared + ADDED


DIFFUSERS_CONTROLNET = Table("diffusers ControlNet", _controlnet(DIFFUSERS_UNET))
DIFFUSERS_CONTROLNET_LINEAR = Table("diffusers ControlNet, linear projections", _controlnet(DIFFUSERS_UNET_LINEAR))
