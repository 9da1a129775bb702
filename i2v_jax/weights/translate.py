"""Whole files through name tables: recognise what they hold, translate lazily in either direction.

The sinusoidal position tables of motion modules are no parameters: checked on the way in, made on the way out.
"""

import bisect
import dataclasses
import functools
import os.path
import re
import warnings
from collections.abc import Callable, Iterable, Mapping

import numpy as np

from i2v_jax.errors import InputError
from i2v_jax.models.adapters import ADAPTERS
from i2v_jax.models.motion import frame_positions
from i2v_jax.weights.formats import TABLES
from i2v_jax.weights.kinds.find import likeness, refuse_unread
from i2v_jax.weights.names import SAME, WHOLE, Layout, Match, Table
from i2v_jax.weights.tensors import OWN_FORMAT, OWN_VERSION, Entry, Tensors

POSITIONS = re.compile(r".*/motion/blocks_\d+/attn\d/positions")
BUFFERS = re.compile(
    rf"{POSITIONS.pattern}|.*/position_ids|.*/logit_scale|noise_schedule/.*|leftovers/.*|vae/loss/.*|unet_ema/(decay|num_updates)"
    r"|(raft|i3d)/.*/num_batches_tracked|raft/.*/doubled/\w+|dover/.*/relative_position_index"
    r"|lpips/(lins?_?\d|scaling_layer|classifier_\d)/.*|dino/pooler/.*|ifnet/(teacher|caltime)/.*"
)


class OwnTable:
    """Our own files: names are paths below the component's name, arrays are as in the tree."""

    name = "i2v_jax"

    def __init__(self, component: str):
        self.component = component

    def of_file(self, shapes) -> "OwnTable":
        """Returns itself."""
        return self

    of_tree = of_file

    def is_empty(self) -> bool:
        """Returns False: it reads any name."""
        return False

    def to_ours(self, name: str) -> list[Match]:
        """Returns the path within the component."""
        component, _, path = name.partition("/")
        return [Match(path, SAME, bool(BUFFERS.fullmatch(name)))] if component == self.component and path else []

    def to_theirs(self, path: str) -> Match:
        """Returns the name, which is the path below the component's name."""
        return Match(f"{self.component}/{path}", SAME, bool(BUFFERS.fullmatch(f"{self.component}/{path}")))

    def fits(self, name: str, shape: tuple[int, ...]) -> bool:
        """Whether the tensor is the component's; every shape is."""
        return bool(self.to_ours(name))


def recognise(tensors: Tensors, more_tables: Mapping[str, Iterable[Table]] | None = None) -> dict[str, "Imported"]:
    """Splits a file into components, each read by the table that knows most of its names in just these shapes.

    Args:
        tensors: what the file holds.
        more_tables: component -> tables to try before those of `formats.TABLES`.

    Returns:
        Component -> its tensors in our names, those it holds most of first. Names that no table knows are `unknown` in
        the component whose names they are most like, or else in the first.

    Raises:
        InputError: no table knows any name, or the file is of a later version of our own format, or of a kind that is
            known and not read.
    """
    shapes = {name: entry.shape for name, entry in tensors.entries.items()}
    tried = dict.fromkeys(
        (component, table)
        for tables in (more_tables or {}, TABLES)
        for component in tables
        for table in tables[component]
    )
    own = _own_tables(tensors)
    known, fitting = _fitting(tuple(own or tried), tuple(shapes.items()), tuple(ADAPTERS))
    left, found = dict(tensors.entries), {}
    while left:
        counts = [0 if c in found else len(fits & left.keys()) for (c, _), fits in zip(known, fitting)]
        if not any(counts):
            break
        component, table = known[counts.index(max(counts))]
        found[component] = import_tensors(
            tensors.holding({name: left.pop(name) for name in list(left) if table.to_ours(name)}), table
        )
    if not found:
        # of names alone, perhaps with shapes that the layers cannot have
        by_name = [sum(bool(table.to_ours(name)) for name in shapes) for _, table in known]
        if not any(by_name):
            refuse_unread(tensors, tensors.source)
            alike = likeness(tensors)
            raise InputError(f"{tensors.source} is of no format known here. It holds {_some(tensors)}.{alike}")
        component, table = known[by_name.index(max(by_name))]
        return {component: import_tensors(tensors, table)}
    unknown = _by_component(left, found)
    return {
        name: dataclasses.replace(imported, beside=tuple(found), unknown=unknown[name], component=name)
        for name, imported in found.items()
    }


@functools.lru_cache(maxsize=4)  # a command asks the same of a file several times
def _fitting(
    tables: tuple[tuple[str, Table], ...], shapes: tuple[tuple[str, tuple[int, ...]], ...], adapters: tuple[str, ...]
) -> tuple[list[tuple[str, Table]], list[set[str]]]:
    """The tables of a file, each with its component, and which names each knows in their shapes.

    Args:
        tables: of any file.
        shapes: of the file's tensors, by name.
        adapters: that are registered, of which some tables' rows are made.
    """
    held = dict(shapes)
    known = [(component, table.of_file(held)) for component, table in tables]
    return known, [
        set() if table.is_empty() else {name for name, shape in shapes if table.fits(name, shape)} for _, table in known
    ]


def _by_component(unknown: Iterable[str], found: Mapping[str, "Imported"]) -> dict[str, list[str]]:
    """Component -> the unknown names that begin as its own do, up to a dot at least; others are the first's."""
    known = {component: sorted(imported.names.values()) for component, imported in found.items()}
    first, charged = next(iter(found)), {component: [] for component in found}
    for name in sorted(unknown):
        shared = {component: _shared_start(name, names) for component, names in known.items()}
        best = max(shared, key=lambda component: len(shared[component]))
        charged[best if "." in shared[best] else first].append(name)
    return charged


def _shared_start(name: str, names: list[str]) -> str:
    """The longest start that a name shares with any of some sorted names."""
    at = bisect.bisect(names, name)
    return max((os.path.commonprefix([name, other]) for other in names[max(at - 1, 0) : at + 1]), key=len, default="")


def _own_tables(tensors: Tensors) -> list[tuple[str, OwnTable]]:
    if tensors.metadata.get("format") != OWN_FORMAT:
        return []
    if (version := tensors.metadata.get("version", "none")) != OWN_VERSION:
        raise InputError(
            f"{tensors.source} has version {version[:40]} of our format; this program reads "
            f"version {OWN_VERSION}. Install the program that wrote it, or a later one."
        )
    return [(component, OwnTable(component)) for component in sorted({name.partition("/")[0] for name in tensors})]


def _some(tensors: Tensors) -> str:
    return ", ".join(sorted(tensors)[:5]) or "no tensors"


@dataclasses.dataclass(frozen=True)
class Imported:
    """A file in our names, unread.

    Attributes:
        parameters: path -> array in our layout.
        buffers: path -> what the file carries beside its parameters.
        names: path -> the name in the file.
        unknown: names of the file that nothing knows.
        misshapen: names whose rank the table cannot take.
        table: the table of the file's format.
        beside: every component of the file.
        component: which of them this is.
    """

    parameters: Tensors
    buffers: Tensors
    names: dict[str, str]
    unknown: list[str]
    misshapen: list[str]
    table: Table | OwnTable
    beside: tuple[str, ...] = ()
    component: str = ""


def without_unknown(imported: Imported) -> Imported:
    """Returns a file without the names that nothing knows; warns which they are."""
    if imported.unknown:
        names = ", ".join(imported.unknown[:5]) + (", ..." if imported.unknown[5:] else "")
        count = len(imported.unknown)
        warnings.warn(
            f"{imported.parameters.source}: {count} tensors are left out, as nothing here knows them: {names}",
            stacklevel=2,
        )
    return dataclasses.replace(imported, unknown=[])


def import_tensors(tensors: Tensors, table: Table | OwnTable) -> Imported:
    """Translates a file into our paths and layouts; nothing is read before it is asked for."""
    parameters, buffers, names, unknown, misshapen = {}, {}, {}, [], []
    for name, entry in tensors.entries.items():
        matches = table.to_ours(name)
        if not matches:
            unknown.append(name)
        elif any(match.ours_shape(entry.shape) is None for match in matches):
            misshapen.append(name)
        else:
            for match in matches:
                target = buffers if match.is_buffer else parameters
                target[match.name] = _through(entry, match.ours_shape(entry.shape), match.to_ours)
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
    table = table.of_tree({path: entry.shape for path, entry in parameters.entries.items()})
    entries, pieces = {}, {}
    for path, entry in {**parameters.entries, **buffers.entries}.items():
        match = table.to_theirs(path)
        shape = match and match.theirs_shape(entry.shape)
        if shape is None:
            if path in parameters:
                raise InputError(
                    f"{table.name} has no place for {path} of shape {entry.shape}, from {parameters.source}."
                )
        elif match.piece == WHOLE:
            entries[match.name] = _through(entry, shape, match.layout.to_theirs)
        else:
            index, count = match.piece
            pieces.setdefault(match.name, [None] * count)[index] = (path, entry, match.layout)
            entries[match.name] = Entry(shape, entry.dtype, functools.partial(_join, pieces[match.name]), entry.file)
    for name, parts in pieces.items():
        if len({part and (part[1].shape, part[1].dtype) for part in parts}) > 1:
            there = ", ".join(f"{path} {entry.shape} {entry.dtype}" for path, entry, _ in filter(None, parts))
            raise InputError(f"{table.name} joins {len(parts)} equal tensors into {name!r}; there is only {there}.")
    return parameters.holding(entries)


def _join(pieces: list[tuple[str, Entry, Layout]]) -> np.ndarray:
    return np.concatenate([layout.to_theirs(entry.read()) for _, entry, layout in pieces])


def _through(entry: Entry, shape: tuple[int, ...], change: Callable[[np.ndarray], np.ndarray]) -> Entry:
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
