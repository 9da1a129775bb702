"""Names of IP-Adapter files: the image projection, and the numbered weights of a UNet's cross-attentions.

Published layouts: tencent-ailab's IP-Adapter (base and "plus"), and the image projection as diffusers loads it.
"""

import re
from collections.abc import Iterable, Mapping

from i2v_jax.models.unet import SD15, SDXL, UNetConfig
from i2v_jax.weights.names import BATCH_OF_ONE, DENSE, NORM, FamilyTable, Row, Table, under

IMAGE_PROJECTION = Table(
    "IP-Adapter image projection",
    under(
        "image_proj.",
        "",
        [
            Row("proj", "proj", DENSE),
            Row("norm", "norm", NORM),
            Row("latents", "latents", BATCH_OF_ONE),
            Row("proj_in", "proj_in", DENSE),
            *under(
                "layers.{i}.0.",
                "layers_{i}/attention/",
                [
                    Row("norm1", "norm1", NORM),
                    Row("norm2", "norm2", NORM),
                    Row("to_q", "to_q", DENSE),
                    Row("to_kv", "to_k", DENSE, (0, 2)),
                    Row("to_kv", "to_v", DENSE, (1, 2)),
                    Row("to_out", "to_out", DENSE),
                ],
            ),
            Row("layers.{i}.1.0", "layers_{i}/ff/norm", NORM),
            Row("layers.{i}.1.1", "layers_{i}/ff/proj_in", DENSE),
            Row("layers.{i}.1.3", "layers_{i}/ff/proj_out", DENSE),
            Row("proj_out", "proj_out", DENSE),
            Row("norm_out", "norm_out", NORM),
        ],
    ),
)

DIFFUSERS_IMAGE_PROJECTION = Table(
    "diffusers image projection",
    under(
        "encoder_hid_proj.image_projection_layers.0.",
        "",
        [
            Row("image_embeds", "proj", DENSE),
            Row("norm", "norm", NORM),
            Row("latents", "latents", BATCH_OF_ONE),
            Row("proj_in", "proj_in", DENSE),
            *under(
                "layers.{i}.",
                "layers_{i}/",
                [
                    Row("ln0", "attention/norm1", NORM),
                    Row("ln1", "attention/norm2", NORM),
                    Row("attn.to_q", "attention/to_q", DENSE),
                    Row("attn.to_k", "attention/to_k", DENSE),
                    Row("attn.to_v", "attention/to_v", DENSE),
                    Row("attn.to_out.0", "attention/to_out", DENSE),
                    Row("ff.0", "ff/norm", NORM),
                    Row("ff.1.net.0.proj", "ff/proj_in", DENSE),
                    Row("ff.1.net.2", "ff/proj_out", DENSE),
                ],
            ),
            Row("proj_out", "proj_out", DENSE),
            Row("norm_out", "norm_out", NORM),
        ],
    ),
)


def cross_attentions(paths: Iterable[str]) -> list[str]:
    """Returns a UNet's cross-attentions in the order in which diffusers registers them: down, up, mid.

    Args:
        paths: leaf paths of the UNet.
    """
    pattern = re.compile(r"((down|up|mid)_block.*/attention/blocks_\d+/attn2)/.*")
    sides = {match[1]: match[2] for path in paths if (match := pattern.fullmatch(path))}
    return sorted(
        sides,
        key=lambda layer: (("down", "up", "mid").index(sides[layer]), [int(n) for n in re.findall(r"_(\d+)", layer)]),
    )


def ip_adapter_table(unet_paths: Iterable[str]) -> Table:
    """The attention weights of an IP-Adapter file, whose names are numbers and mean nothing without their UNet.

    The file counts the UNet's spatial attentions, self and cross in turn, so cross-attentions are 1, 3, 5, ...

    Args:
        unet_paths: leaf paths of the UNet that the file belongs to.
    """
    return Table(IP_ADAPTER.name, _attention_rows(cross_attentions(unet_paths)))


def _attention_rows(layers: list[str]) -> list[Row]:
    return [
        Row(f"ip_adapter.{2 * i + 1}.to_{name}_ip", f"{layer}/image_tokens/to_{name}", DENSE)
        for i, layer in enumerate(layers)
        for name in ("k", "v")
    ]


NUMBERED = [
    Row(f"ip_adapter.{{n}}.to_{name}_ip", f"numbered_{{n}}/attention/blocks_0/attn2/image_tokens/to_{name}", DENSE)
    for name in ("k", "v")
]
"""Places of the weights whose UNet is not known."""


def _rows_of_file(shapes: Mapping[str, tuple[int, ...]]) -> list[Row]:
    """Those of SD1.5 or SDXL, which have 16 and 70 cross-attentions; of another UNet, paths that keep the numbers."""
    count = sum(bool(re.fullmatch(r"ip_adapter\.\d+\.to_k_ip\.weight", name)) for name in shapes)
    for config in (SD15, SDXL):
        layers = cross_attentions(_attention_paths(config))
        if len(layers) == count:
            return _attention_rows(layers)
    return NUMBERED


def _attention_paths(config: UNetConfig) -> list[str]:
    levels = range(len(config.block_out_channels))
    blocks = [
        (f"{side}_blocks_{i}/layers_{j}", config.transformer_depth[level])
        for side, attention, depth, layers in (
            ("down", config.down_attention, levels, config.layers_per_block),
            ("up", config.up_attention, levels[::-1], config.layers_per_block + 1),
        )
        for i, level in enumerate(depth)
        for j in range(layers if attention[i] else 0)
    ]
    blocks.append(("mid_block", config.transformer_depth[-1]))
    return [f"{block}/attention/blocks_{k}/attn2/to_q/kernel" for block, depth in blocks for k in range(depth)]


IP_ADAPTER = FamilyTable(
    "IP-Adapter attention", _rows_of_file, lambda shapes: _attention_rows(cross_attentions(shapes)) + NUMBERED
)
