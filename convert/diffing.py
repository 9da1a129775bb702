"""`diff`: two checkpoints side by side: keys, shapes, dtypes, largest differences.

Files of one format are compared under their own names; files of two formats under ours.
"""

import argparse
from collections.abc import Mapping

import numpy as np
from tqdm import tqdm

from convert.tables import table
from i2v_jax.errors import InputError
from i2v_jax.weights.checkpoint import open_files, recognise_in
from i2v_jax.weights.tensors import Entry

BLOCK = 1 << 20  # elements compared at a time


def run(arguments: argparse.Namespace) -> int:
    """Prints what differs; returns 1 where anything does."""
    first, second = _named(arguments.first, arguments.second)
    same_file_names = first.keys() & second.keys()
    rows = []
    for title, names in (
        ("only in FIRST", first.keys() - second.keys()),
        ("only in SECOND", second.keys() - first.keys()),
    ):
        rows += [(title, name) for name in sorted(names)]
    different = bool(rows)
    _print_some(("where", "tensor"), rows, arguments.show)

    rows = [
        (name, _form(first[name]), _form(second[name]))
        for name in sorted(same_file_names)
        if _form(first[name]) != _form(second[name])
    ]
    different |= bool(rows)
    _print_some(("tensor", "FIRST", "SECOND"), rows, arguments.show)

    rows = []
    comparable = [name for name in first if name in second and first[name].shape == second[name].shape]
    for name in tqdm(comparable, desc="comparing", unit="tensor", leave=False):
        largest, relative = difference(first[name], second[name])
        if not largest == 0:
            rows.append((largest, relative, name))
    rows.sort(key=lambda row: (-np.nan_to_num(row[0], nan=np.inf), row[2]))
    different |= bool(rows)
    _print_some(
        ("largest difference", "relative", "tensor"),
        [(f"{a:.3g}", f"{b:.3g}", name) for a, b, name in rows],
        arguments.show,
    )
    print(f"{len(comparable) - len(rows)} of {len(first.keys() | second.keys())} tensors have equal values.")
    return int(different)


def difference(one: Entry, other: Entry) -> tuple[float, float]:
    """Returns the largest absolute difference of two tensors, and the norm of the difference over the first's norm.

    Both are NaN where the tensors hold NaN in different places.
    """
    a, b = (np.asarray(entry.read()).reshape(-1) for entry in (one, other))
    largest = squares = of_first = 0.0
    for start in range(0, len(a), BLOCK):
        x, y = (array[start : start + BLOCK].astype(np.float64) for array in (a, b))
        equal = (x == y) | (np.isnan(x) & np.isnan(y))
        delta = np.where(equal, 0, x - np.where(equal, x, y))
        largest = max(
            largest, float(np.max(np.abs(delta), initial=0)), key=lambda value: np.nan_to_num(value, nan=np.inf)
        )
        squares += float(np.sum(delta * delta))
        of_first += float(np.sum(x * x))
    return largest, (squares / of_first) ** 0.5 if of_first else (0.0 if squares == 0 else np.inf)


def _named(first: str, second: str) -> tuple[Mapping[str, Entry], Mapping[str, Entry]]:
    opened = [[pair for pair in open_files(source)] for source in (first, second)]
    try:
        found = [
            [(c, imported) for t, folder in files for c, imported in recognise_in(t, folder).items()]
            for files in opened
        ]
        formats = [{component: imported.table.name for component, imported in files} for files in found]
    except InputError:  # files of no known format can still be compared by their own names
        formats, found = [{}, {}], []
    shared = formats[0].keys() & formats[1].keys()
    alike = all(formats[0][component] == formats[1][component] for component in shared)
    if alike and len({len(files) == 1 for files in opened}) == 1:
        return tuple(
            {
                name if len(files) == 1 else f"{folder}/{name}": entry
                for tensors, folder in files
                for name, entry in tensors.entries.items()
            }
            for files in opened
        )
    print("The files are of different formats: compared under this program's own names.\n")
    for files in found:
        for _, imported in files:
            if strange := [*imported.unknown, *imported.misshapen]:
                print(
                    f"{imported.parameters.source}: {len(strange)} unknown tensors are not compared: {strange[:3]}.\n"
                )
    return tuple(
        {
            f"{component}/{path}": entry
            for component, imported in files
            for path, entry in imported.parameters.entries.items()
        }
        for files in found
    )


def _form(entry: Entry) -> str:
    return f"{entry.dtype.name} {'x'.join(map(str, entry.shape))}"


def _print_some(header: tuple[str, ...], rows: list[tuple], show: int) -> None:
    if rows:
        print(table(header, rows[:show]) + (f"\n... and {len(rows) - show} more" if rows[show:] else "") + "\n")
