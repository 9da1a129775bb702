"""Names of I3D: piergiaj's, and hassony2's, which the TorchScript file of StyleGAN-V was made of."""

from i2v_jax.models.i3d import BLOCKS
from i2v_jax.weights.formats.dover import CONV3D, DENSE_AS_CONV3D
from i2v_jax.weights.formats.raft import BATCH_NORM, COUNT
from i2v_jax.weights.names import BUFFER, Row, Table

_STEM = {"conv_1a": "1a_7x7", "conv_2b": "2b_1x1", "conv_2c": "2c_3x3"}
_BRANCHES = {"b0": "0", "b1a": "1.0", "b1b": "1.1", "b2a": "2.0", "b2b": "2.1", "b3b": "3.1"}
"""Convolution of a block -> its place in hassony2's branches."""


def _unit(theirs: str, ours: str, norm: str) -> list[Row]:
    """A convolution and the norm after it."""
    return [
        Row(f"{theirs}.conv3d", ours, CONV3D),
        Row(f"{theirs}.{norm}", ours, BATCH_NORM),
        Row(f"{theirs}.{norm}.{COUNT}", f"{ours}/{COUNT}", BUFFER),
    ]


def _table(title: str, stem: str, branch: str, norm: str, logits: str) -> Table:
    """The names of a layout, of templates in which {x} stands for what differs."""
    names = {stem.format(x=theirs): ours for ours, theirs in _STEM.items()}
    for block in BLOCKS:
        for ours, place in _BRANCHES.items():
            names[branch.format(block=block, name=ours, place=place)] = f"mixed_{block}/{ours}"
    rows = [row for theirs, ours in names.items() for row in _unit(theirs, ours, norm)]
    return Table(title, [*rows, Row(f"{logits}.conv3d", "logits", DENSE_AS_CONV3D)])


PIERGIAJ_I3D = _table("piergiaj I3D", "Conv3d_{x}", "Mixed_{block}.{name}", "bn", "logits")
HASSONY_I3D = _table("hassony2 I3D", "conv3d_{x}", "mixed_{block}.branch_{place}", "batch3d", "conv3d_0c_1x1")
I3D_TABLES = (PIERGIAJ_I3D, HASSONY_I3D)
