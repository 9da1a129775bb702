"""Whole components through a name table: detect the format, translate lazily in either direction.

The sinusoidal position tables of motion modules are no parameters: checked on the way in, made on the way out.
"""

import dataclasses
import functools
import re
from collections.abc import Iterable

import numpy as np

from i2v_jax.errors import InputError
from i2v_jax.models.motion import frame_positions
from i2v_jax.weights.files import Entry, Tensors
from i2v_jax.weights.names import SAME, Match, Table, ours_shape, theirs_shape

OWN_FORMAT = "i2v_jax"
OWN_VERSION = "1"
POSITIONS = re.compile(r".*/motion/blocks_\d+/attn\d/positions")
BUFFERS = re.compile(rf"{POSITIONS.pattern}|position_ids|logit_scale")


class OwnTable:
    """Our own files: names are paths, arrays are as in the tree."""

    name = "i2v_jax"

    def to_ours(self, name: str) -> Match:
        """Returns the path, which is the name."""
        return Match(name, SAME, bool(BUFFERS.fullmatch(name)))

    to_theirs = to_ours

    def fits(self, name: str, shape: tuple[int, ...]) -> bool:
        """Every name and shape is its own."""
        return True


def detect(tensors: Tensors, tables: Iterable[Table]) -> Table | OwnTable:
    """Returns the table that knows most of the names in just these shapes.

    Raises:
        InputError: no table knows any name, or the file is of a later version of our own format.
    """
    if tensors.metadata.get("format") == OWN_FORMAT:
        if tensors.metadata.get("version") != OWN_VERSION:
            raise InputError(
                f"{tensors.source} has version {tensors.metadata.get('version')} of our format; this program reads "
                f"version {OWN_VERSION}. Install the program that wrote it, or a later one."
            )
        return OwnTable()
    tables = list(tables)
    known = [sum(table.fits(name, entry.shape) for name, entry in tensors.entries.items()) for table in tables]
    if not any(known) and not any(table.to_ours(name) for table in tables for name in tensors):
        seen = ", ".join(sorted(tensors)[:5]) or "no tensors"
        names = "; ".join(table.name for table in tables)
        raise InputError(f"{tensors.source} is none of the formats wanted here ({names}). It holds {seen}.")
    return tables[known.index(max(known))]


@dataclasses.dataclass(frozen=True)
class Imported:
    """A file in our names, unread.

    Attributes:
        parameters: path -> array in our layout.
        buffers: path -> what the file carries beside its parameters.
        names: path -> the name in the file.
        unknown: names that the table does not have.
        misshapen: names whose rank the table cannot take.
        table: the table of the file's format.
    """

    parameters: Tensors
    buffers: Tensors
    names: dict[str, str]
    unknown: list[str]
    misshapen: list[str]
    table: Table | OwnTable


def import_tensors(tensors: Tensors, table: Table | OwnTable) -> Imported:
    """Translates a file into our paths and layouts; nothing is read before it is asked for."""
    parameters, buffers, names, unknown, misshapen = {}, {}, {}, [], []
    for name, entry in tensors.entries.items():
        match = table.to_ours(name)
        if match is None:
            unknown.append(name)
        elif (shape := ours_shape(match.layout, entry.shape)) is None:
            misshapen.append(name)
        else:
            target = buffers if match.is_buffer else parameters
            target[match.name] = _through(entry, shape, match.layout.to_ours)
            names[match.name] = name
    return Imported(tensors.holding(parameters), tensors.holding(buffers), names, unknown, misshapen, table)


def export_tensors(parameters: Tensors, table: Table, buffers: Tensors) -> Tensors:
    """Translates our paths into a format's names and layouts; the inverse of `import_tensors`.

    Args:
        parameters: path -> array in our layout.
        table: the format wanted.
        buffers: what the format carries beside parameters, kept from an import or made by `position_tables`.

    Raises:
        InputError: a parameter has no place in that format.
    """
    entries = {}
    for path, entry in {**parameters.entries, **buffers.entries}.items():
        match = table.to_theirs(path)
        shape = match and theirs_shape(match.layout, entry.shape)
        if shape is not None:
            entries[match.name] = _through(entry, shape, match.layout.to_theirs)
        elif path in parameters:
            raise InputError(f"{table.name} has no place for {path} of shape {entry.shape}.")
    return parameters.holding(entries)


def _through(entry: Entry, shape: tuple[int, ...], change) -> Entry:
    return dataclasses.replace(entry, shape=shape, read=lambda: change(entry.read()))


def position_tables(parameters: Tensors, positions: int) -> Tensors:
    """Returns the position table of every temporal attention in a UNet's parameters, as buffers to export."""
    entries = {}
    for path, entry in parameters.entries.items():
        if match := re.fullmatch(r"(.*/motion/blocks_\d+/attn\d)/to_q/kernel", path):
            shape = (1, positions, entry.shape[0])
            read = functools.partial(_read_sinusoid, positions, entry.shape[0], entry.dtype)
            entries[f"{match[1]}/positions"] = Entry(shape, entry.dtype, read)
    return parameters.holding(entries)


def _read_sinusoid(positions: int, channels: int, dtype: np.dtype) -> np.ndarray:
    return frame_positions(positions, channels)[None].astype(dtype)


def check_positions(imported: Imported) -> int | None:
    """Returns how many positions the file's temporal attentions know, None when it holds no position table.

    Raises:
        InputError: a table is not the sinusoid that this program computes, or two tables differ in length.
    """
    lengths = {}
    for path, entry in imported.buffers.entries.items():
        if not POSITIONS.fullmatch(path):
            continue
        name, where = imported.names[path], imported.parameters.source
        if len(entry.shape) != 3 or entry.shape[0] != 1 or entry.shape[2] % 2:
            raise InputError(f"{where}: {name!r} has shape {entry.shape}; wanted [1, positions, channels].")
        lengths[entry.shape[1]] = name
        if len(lengths) > 1:
            raise InputError(f"{where}: position tables of different lengths: {lengths}.")
        error = np.abs(entry.read().astype(np.float32) - frame_positions(*entry.shape[1:])).max()
        if not error <= (1e-5 if entry.dtype.itemsize >= 4 else 1e-2):  # half precision rounds near 1 by up to 4e-3
            raise InputError(
                f"{where}: {name!r} differs by {error:.2g} from the sinusoid of AnimateDiff. This program computes "
                "positions and cannot use a changed table."
            )
    return next(iter(lengths), None)
