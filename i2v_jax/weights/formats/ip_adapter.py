"""Names of IP-Adapter files: the image projection, and the numbered weights of a UNet's cross-attentions.

Published layouts: tencent-ailab's IP-Adapter (base, "plus", "full face", FaceID with its LoRA), and the image
projection as in diffusers.
"""

import re
from collections.abc import Iterable, Mapping

from i2v_jax.models.adapters.image_tokens import IMAGE_TOKENS
from i2v_jax.models.unet import SD15, SDXL, UNetConfig
from i2v_jax.weights.formats.diffusers import ATTENTION, FEED_FORWARD
from i2v_jax.weights.names import BATCH_OF_ONE, DENSE, MATRIX, NORM, FamilyTable, Kind, Row, Table, alike, under

PATHS = rf"image_proj/.*|unet/.*/attn2/{IMAGE_TOKENS.name}/.*|unet/.*/attn[12]/to_\w+/lora/\w+"
"""What such a file holds, by our paths."""
SIDES = ("down", "up")
LORA_LAYERS = ("to_q", "to_k", "to_v", "to_out")
"""What a FaceID changes in every spatial attention, by a LoRA without alphas."""


def _layers(theirs: Iterable[str], ours: Iterable[str]) -> list[Row]:
    """The rows of two dense layers and a norm."""
    return [Row(*row) for row in zip(theirs, ours, (DENSE, DENSE, NORM))]


def _image_projection(
    name: str,
    prefix: str,
    linear: Iterable[Row],
    resampler: Iterable[Row],
    state: tuple[str, str, str],
    face: tuple[str, str, str],
    inner: str,
) -> FamilyTable:
    """A form of image projections.

    Args:
        name: of the table.
        prefix: what stands before every name.
        linear, resampler: rows of these two.
        state, face: what the layers of the networks "full face" and FaceID are called there.
        inner: what stands before FaceID plus's resampler; its projection of the face is `face` there, below `proj`.
    """
    face_of_plus = tuple(layer.replace("ff.", "proj.") for layer in face)
    kinds = {
        "": under(prefix, "", [*linear, *resampler]),
        "state": under(prefix, "", _layers(state, ("proj_in", "proj_out", "norm_out"))),
        "face": under(prefix, "", _layers(face, ("proj_in", "proj_out", "norm"))),
        "face plus": [
            *under(prefix, "", _layers(face_of_plus, ("face/proj_in", "face/proj_out", "face/norm"))),
            *under(prefix + inner, "", resampler),
        ],
    }

    def of_file(shapes: Mapping[str, tuple[int, ...]]) -> list[Row]:
        out, norm = (shapes.get(f"{prefix}{layer}.weight", (0,))[0] for layer in state[1:])
        if f"{prefix}{face_of_plus[0]}.weight" in shapes and f"{prefix}{inner}proj_in.weight" in shapes:
            return kinds["face plus"]
        if f"{prefix}{state[0]}.weight" in shapes:
            return kinds["state" if out == norm else "face"]  # diffusers calls both alike; FaceID makes several tokens
        return kinds[""]

    def of_tree(shapes: Mapping[str, tuple[int, ...]]) -> list[Row]:
        if "face/proj_in/kernel" in shapes:
            return kinds["face plus"]
        if "proj_in/kernel" in shapes and "latents" not in shapes:
            return kinds["face" if "norm/scale" in shapes else "state"]
        return kinds[""]

    return FamilyTable(name, of_file, of_tree)


ENDS = alike(latents=BATCH_OF_ONE, proj_in=DENSE, proj_out=DENSE, norm_out=NORM)
RESAMPLER = [
    *ENDS,
    *under(
        "layers.{i}.",
        "layers_{i}/",
        [
            Row("0.norm1", "attention/norm1", NORM),
            Row("0.norm2", "attention/norm2", NORM),
            Row("0.to_q", "attention/to_q", DENSE),
            Row("0.to_kv", "attention/to_k", DENSE, (0, 2)),
            Row("0.to_kv", "attention/to_v", DENSE, (1, 2)),
            Row("0.to_out", "attention/to_out", DENSE),
            Row("1.0", "ff/norm", NORM),
            Row("1.1", "ff/proj_in", DENSE),
            Row("1.3", "ff/proj_out", DENSE),
        ],
    ),
]
IMAGE_PROJECTION = _image_projection(
    "IP-Adapter image projection",
    "image_proj.",
    [Row("proj", "proj", DENSE), Row("norm", "norm", NORM)],
    RESAMPLER,
    ("proj.0", "proj.2", "proj.3"),
    ("proj.0", "proj.2", "norm"),
    "perceiver_resampler.",
)
DIFFUSERS_IMAGE_PROJECTION = _image_projection(
    "diffusers image projection",
    "encoder_hid_proj.image_projection_layers.0.",
    [Row("image_embeds", "proj", DENSE), Row("norm", "norm", NORM)],
    [
        *ENDS,
        *under(
            "layers.{i}.",
            "layers_{i}/",
            [
                Row("ln0", "attention/norm1", NORM),
                Row("ln1", "attention/norm2", NORM),
                *under("attn.", "attention/", ATTENTION),
                Row("ff.0", "ff/norm", NORM),
                *under("ff.1.", "ff/", FEED_FORWARD),
            ],
        ),
    ],
    ("ff.net.0.proj", "ff.net.2", "norm"),
    ("ff.net.0.proj", "ff.net.2", "norm"),
    "",
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


def _rows_of_layer(number: int | str, layer: str) -> list[Row]:
    """The rows of the attention that has a number."""
    tokens = [Row(theirs, f"{IMAGE_TOKENS.name}/{ours}", DENSE) for theirs, ours in IMAGE_TOKENS.published]
    leaf: Kind = {"": ("", MATRIX)}
    lora = [Row(f"{name}_lora.{side}.weight", f"{name}/lora/{side}", leaf) for name in LORA_LAYERS for side in SIDES]
    return under(f"ip_adapter.{number}.", f"{layer}/", [*tokens, *lora])


def _attention_rows(layers: list[str]) -> list[Row]:
    numbered = (layer for cross in layers for layer in (cross.removesuffix("2") + "1", cross))
    return [row for number, layer in enumerate(numbered) for row in _rows_of_layer(number, layer)]


NUMBERED = _rows_of_layer("{n}", "numbered_{n}/attention/blocks_0/attn2")
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
