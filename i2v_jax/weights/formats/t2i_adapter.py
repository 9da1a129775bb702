"""Names of T2I-Adapters: diffusers' T2IAdapter, and TencentARC's own, which counts its blocks through all levels.

A light adapter's second convolutions are 3x3, a full one's 1x1, so that the tables are made for each file or tree.
"""

import math
import re
from collections.abc import Iterable, Mapping

from i2v_jax.weights.names import CONV, DENSE_AS_CONV, FamilyTable, Row, under

Shapes = Mapping[str, tuple[int, ...]]


def _block(is_light: bool) -> list[Row]:
    return [Row("block1", "block1", CONV), Row("block2", "block2", CONV if is_light else DENSE_AS_CONV)]


def _ends() -> list[Row]:
    """A light adapter's blocks begin and end with these; a full one's begin with the first where the width changes."""
    return [Row("in_conv", "in_conv", DENSE_AS_CONV), Row("out_conv", "out_conv", DENSE_AS_CONV)]


def _is_light(names: Iterable[str]) -> bool:
    return any("out_conv" in name for name in names)


def _diffusers_rows(names: Shapes) -> list[Row]:
    block = under("resnets.{j}.", "resnets_{j}/", _block(_is_light(names)))
    return under("adapter.", "", [Row("conv_in", "conv_in", CONV), *under("body.{i}.", "body_{i}/", _ends() + block)])


def _light_rows() -> list[Row]:
    return under("body.{i}.", "body_{i}/", _ends() + under("body.{j}.", "resnets_{j}/", _block(True)))


def _full_rows(blocks: int, layers: int) -> list[Row]:
    """`blocks` in all, `layers` of them in a level."""
    rows = [Row("conv_in", "conv_in", CONV)]
    for number in range(blocks):
        level, layer = divmod(number, layers)
        if layer == 0:
            rows.append(Row(f"body.{number}.in_conv", f"body_{level}/in_conv", DENSE_AS_CONV))
        rows += under(f"body.{number}.", f"body_{level}/resnets_{layer}/", _block(False))
    return rows


def _numbers(pattern: str, names: Iterable[str]) -> set[int]:
    return {int(match[1]) for name in names if (match := re.fullmatch(pattern, name))}


def _original_of_file(shapes: Shapes) -> list[Row]:
    if _is_light(shapes):
        return _light_rows()
    blocks = _numbers(r"body\.(\d+)\.block1\.weight", shapes)
    wider = _numbers(r"body\.(\d+)\.in_conv\.weight", shapes)  # the first of a level
    count = max(blocks, default=-1) + 1
    layers = math.gcd(count, *(wider or {2}))  # published ones have 2 in a level
    return _full_rows(count, layers) if count in range(1, MAX_BLOCKS) else []


def _original_of_tree(shapes: Shapes) -> list[Row]:
    if _is_light(shapes):
        return _light_rows()
    levels = _numbers(r"body_(\d+)/.*", shapes)
    layers = max(_numbers(r"body_\d+/resnets_(\d+)/.*", shapes), default=0) + 1
    return _full_rows((max(levels, default=-1) + 1) * layers, layers)


MAX_BLOCKS = 1000  # published ones have 8

DIFFUSERS_T2I = FamilyTable("diffusers T2I-Adapter", _diffusers_rows, _diffusers_rows)
ORIGINAL_T2I = FamilyTable("original T2I-Adapter", _original_of_file, _original_of_tree)
T2I_TABLES = (DIFFUSERS_T2I, ORIGINAL_T2I)
