"""The I2V-Adapter paper's tables, to stand beside what is measured here.

Its units are not given: DoverVQA near 0.09 and FlowScore below 1 are on scales of its own, see docs/evaluation.md.
"""

from collections.abc import Mapping
from typing import NamedTuple

from i2v_jax.errors import InputError, nearest
from i2v_jax.evaluation.measures import PAPERS


class Row(NamedTuple):
    """A row: its labels, and the numbers of `PAPERS`."""

    labels: tuple[str, ...]
    values: Mapping[str, float]


def _rows(*rows: tuple) -> tuple[Row, ...]:
    return tuple(Row(tuple(map(str, row[:-4])), dict(zip(PAPERS, row[-4:]))) for row in rows)


TABLES: Mapping[str, tuple[Row, ...]] = {
    "": (),
    "table1": _rows(
        ("Gen-2", 0.0800, 0.9252, 0.2490, 12.5976),
        ("Pika", 0.0691, 0.9021, 0.1316, 9.4587),
        ("DynamiCrafter", 0.0848, 0.9275, 0.4185, 14.3825),
        ("I2VGen-XL", 0.0459, 0.6904, 0.6111, 12.6566),
        ("SVD", 0.0847, 0.9365, 0.6883, 20.8362),
        ("I2V-Adapter (SD1.5)", 0.0873, 0.9379, 0.7069, 9.8967),
        ("I2V-Adapter (SDXL)", 0.0887, 0.9389, 0.7124, 11.8388),
    ),
    "table2": _rows(
        (1.0, 1.0, 0.0900, 0.9393, 0.8395, 11.7421),
        (0.9, 1.0, 0.0933, 0.9445, 0.4168, 10.0771),
        (0.8, 1.0, 0.0940, 0.9454, 0.2712, 9.1360),
        (0.7, 1.0, 0.0929, 0.9485, 0.1912, 8.3508),
        (0.6, 1.0, 0.0925, 0.9449, 0.1428, 7.6332),
        (1.0, 0.9, 0.0904, 0.9379, 0.9895, 12.0888),
        (1.0, 0.7, 0.0907, 0.9389, 0.9064, 11.8403),
        (1.0, 0.5, 0.0894, 0.9391, 0.8046, 11.6175),
        (1.0, 0.3, 0.0902, 0.9404, 0.7477, 11.4993),
        (1.0, 0.1, 0.0901, 0.9415, 0.6918, 11.3017),
    ),
    "table3": _rows(
        ("w/o I2V-Adapter and Content-Adapter", 0.0264, 0.7013, 1.5671, 24.5928),
        ("w/o I2V-Adapter", 0.0428, 0.8841, 0.2684, 13.7764),
        ("w/o Content-Adapter", 0.0813, 0.9158, 1.3533, 19.5557),
        ("Full model", 0.0887, 0.9389, 0.7124, 11.8388),
    ),
}
"""Key of `config.published` -> rows."""


def rows(name: str) -> tuple[Row, ...]:
    """Returns the rows of a table.

    Raises:
      InputError: there is no such table.
    """
    if name not in TABLES:
        known = ", ".join(filter(None, TABLES))
        raise InputError(f"published={name!r}; known: {known}.{nearest(name, TABLES)}")
    return TABLES[name]
