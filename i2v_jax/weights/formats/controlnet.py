"""Names of diffusers' ControlNetModel: the down blocks and the middle of a UNet, and what it adds to them."""

import re

from i2v_jax.weights.formats.diffusers import unet_rows
from i2v_jax.weights.names import CONV, DENSE, DENSE_AS_CONV, Kind, Row, Table, under

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


def _controlnet(projection: Kind) -> list[Row]:
    return [row for row in unet_rows(projection) if SHARED.fullmatch(row.ours)] + ADDED


DIFFUSERS_CONTROLNET = Table("diffusers ControlNet", _controlnet(DENSE_AS_CONV))
DIFFUSERS_CONTROLNET_LINEAR = Table("diffusers ControlNet, linear projections", _controlnet(DENSE))
