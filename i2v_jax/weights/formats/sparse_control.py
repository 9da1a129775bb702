"""Names of SparseCtrl, diffusers' and AnimateDiff's own: those of a ControlNet and of motion modules."""

from i2v_jax.weights.formats.controlnet import ADDED, SHARED
from i2v_jax.weights.formats.diffusers import DIFFUSERS_MOTION, ORIGINAL_MOTION, unet_rows
from i2v_jax.weights.names import CONV, DENSE, DENSE_AS_CONV, Kind, Row, Table, under

NESTED = "controlnet."
"""The key that the published code looks for, and below which training states hold the network."""


def _rows(projection: Kind, motion: list[Row]) -> list[Row]:
    shared = [row for row in unet_rows(projection, motion) if SHARED.fullmatch(row.ours)]
    return [*shared, *ADDED, Row("controlnet_cond_embedding", "controlnet_cond_embedding", CONV)]


DIFFUSERS_SPARSE = Table("diffusers SparseCtrl", _rows(DENSE_AS_CONV, DIFFUSERS_MOTION))
DIFFUSERS_SPARSE_LINEAR = Table("diffusers SparseCtrl, linear projections", _rows(DENSE, DIFFUSERS_MOTION))
ORIGINAL_SPARSE = Table("AnimateDiff SparseCtrl", _rows(DENSE_AS_CONV, ORIGINAL_MOTION))
ORIGINAL_SPARSE_LINEAR = Table("AnimateDiff SparseCtrl, linear projections", _rows(DENSE, ORIGINAL_MOTION))
NESTED_SPARSE = Table(f"AnimateDiff SparseCtrl ({NESTED}*)", under(NESTED, "", ORIGINAL_SPARSE.rows))
SPARSE_TABLES = (DIFFUSERS_SPARSE, DIFFUSERS_SPARSE_LINEAR, ORIGINAL_SPARSE, ORIGINAL_SPARSE_LINEAR, NESTED_SPARSE)
