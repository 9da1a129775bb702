"""Names of upscalers: RRDBNet as ESRGAN's first files, ESRGAN's code and Real-ESRGAN write it; SRVGGNet."""

import re
from collections.abc import Mapping

from i2v_jax.weights.names import CONV, SAME, FamilyTable, Row, Table

Shapes = Mapping[str, tuple[int, ...]]

REAL_ESRGAN = Table(
    "RRDBNet of Real-ESRGAN (body.*.rdb*)",
    [
        Row("body.{i}.rdb{j}.conv{k}", "body_{i}/rdb{j}/conv{k}", CONV),
        Row("conv_up{i}", "conv_up{i}", CONV),
        *(Row(name, name, CONV) for name in ("conv_first", "conv_body", "conv_hr", "conv_last")),
    ],
)
ESRGAN_CODE = Table(
    "RRDBNet of ESRGAN's code (RRDB_trunk.*)",
    [
        Row("RRDB_trunk.{i}.RDB{j}.conv{k}", "body_{i}/rdb{j}/conv{k}", CONV),
        Row("upconv{i}", "conv_up{i}", CONV),
        Row("conv_first", "conv_first", CONV),
        Row("trunk_conv", "conv_body", CONV),
        Row("HRconv", "conv_hr", CONV),
        Row("conv_last", "conv_last", CONV),
    ],
)


def _counted(names: Shapes, pattern: str) -> int:
    """One more than the highest number in the place of a pattern's group, 0 where none matches."""
    return max((int(found[1]) + 1 for name in names if (found := re.match(pattern, name))), default=0)


def _old_rows(blocks: int, doublings: int) -> list[Row]:
    after = 3 * doublings
    names = {"conv_first": "model.0", "conv_body": f"model.1.sub.{blocks}"}
    names |= {f"conv_up{number}": f"model.{3 * number}" for number in range(1, doublings + 1)}
    names |= {"conv_hr": f"model.{after + 2}", "conv_last": f"model.{after + 4}"}
    block = Row("model.1.sub.{i}.RDB{j}.conv{k}.0", "body_{i}/rdb{j}/conv{k}", CONV)
    return [block, *(Row(theirs, ours, CONV) for ours, theirs in names.items())]


def _old_of_file(shapes: Shapes) -> list[Row]:
    blocks = _counted(shapes, r"model\.1\.sub\.(\d+)\.RDB1\.")
    return _old_rows(blocks, (_counted(shapes, r"model\.(\d+)\.weight") - 5) // 3) if blocks else []


def _old_of_tree(shapes: Shapes) -> list[Row]:
    blocks = _counted(shapes, r"body_(\d+)/rdb1/")
    return _old_rows(blocks, max(0, _counted(shapes, r"conv_up(\d+)/") - 1)) if blocks else []


def _compact_rows(count: int) -> list[Row]:
    kinds = (CONV, {"weight": ("slope", SAME)})
    return [Row(f"body.{number}", f"body_{number}", kinds[number % 2]) for number in range(count)]


ESRGAN = FamilyTable("RRDBNet of ESRGAN's first files (model.1.sub.*)", _old_of_file, _old_of_tree)
COMPACT = FamilyTable(
    "SRVGGNet of Real-ESRGAN (body.0 …)",
    lambda shapes: _compact_rows(_counted(shapes, r"body\.(\d+)\.(?:weight|bias)$")),
    lambda shapes: _compact_rows(_counted(shapes, r"body_(\d+)/(?:kernel|slope)$")),
)
UPSCALER_TABLES = (REAL_ESRGAN, ESRGAN_CODE, ESRGAN, COMPACT)
