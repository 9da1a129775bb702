"""Names of IFNet, RIFE 4.5 to 4.26: as Practical-RIFE's `flownet.pkl` has them, with `module.` in front, or without.

What later versions keep of their training (`teacher`, `caltime`) is no parameter, and kept.
"""

from i2v_jax.weights.names import BUFFER, CONV, Kind, Layout, Row, Table, under

TRANSPOSED: Kind = {
    "weight": ("kernel", Layout(lambda w: w.transpose(2, 3, 0, 1), lambda k: k.transpose(2, 3, 0, 1))),
    "bias": ("bias", Layout(lambda bias: bias, lambda bias: bias)),
}
"""A transposed convolution, there [in, out, height, width]."""
STRENGTH: Kind = {
    "beta": ("beta", Layout(lambda beta: beta.squeeze((0, 2, 3)), lambda beta: beta[None, :, None, None])),
}


def _training() -> list[Row]:
    """What is trained beside the network, and no part of it."""
    names = {"conv0.{j}.0": "conv0_{j}", "convblock.{j}.conv": "convblock_{j}", "lastconv.0": "lastconv"}
    leaves = [(f"teacher.{theirs}", f"teacher/{ours}") for theirs, ours in names.items()]
    leaves.append(("caltime.{j}", "caltime/layers_{j}"))
    rows = [Row(f"{theirs}.{leaf}", f"{ours}/{leaf}", BUFFER) for theirs, ours in leaves for leaf in ("weight", "bias")]
    return [*rows, Row("teacher.convblock.{j}.beta", "teacher/convblock_{j}/beta", BUFFER)]


RIFE = Table(
    "RIFE 4.5 to 4.26 (block0.conv0.0.0 …)",
    [
        *under(
            "block{i}.",
            "block{i}/",
            [
                Row("conv0.{j}.0", "conv0_{j}", CONV),
                Row("convblock.{j}.conv", "convblock_{j}", CONV),
                Row("convblock.{j}", "convblock_{j}", STRENGTH),
                Row("lastconv.0", "lastconv", TRANSPOSED),
            ],
        ),
        Row("encode.cnn3", "encode/cnn3", TRANSPOSED),
        Row("encode.cnn{i}", "encode/cnn{i}", CONV),
        *(Row(f"encode.{number}", f"encode/layers_{number}", TRANSPOSED) for number in (1, 6)),
        Row("encode.{i}", "encode/layers_{i}", CONV),
        *_training(),
    ],
)
