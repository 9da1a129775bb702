"""`verify`: a conversion against what it was made from: every tensor, and with `--run` the outputs on random input."""

import argparse

import numpy as np
from tqdm import tqdm

from convert.parts import part_of
from convert.sources import open_sources
from convert.tables import table
from i2v_jax.weights.checkpoint import Checkpoint, open_checkpoint, open_files
from i2v_jax.weights.lazy import cast
from i2v_jax.weights.tensors import Entry, Tensors

SHOWN = 5  # tensors named of each sort


def run(arguments: argparse.Namespace) -> int:
    """Prints what is equal and what differs, part by part; returns 1 where anything does."""
    source = open_sources(arguments)
    converted = open_checkpoint([arguments.converted], configs=dict(arguments.config))
    same = _print_tensors(_entries(source), _entries(converted))
    ran = True
    if arguments.run:
        from convert.running import compare_outputs  # PyTorch and diffusers are imported only for this

        files = (
            []
            if arguments.lora
            else [file for name in arguments.sources for file in open_files(name, arguments.variant)]
        )
        ran = compare_outputs(files, source, converted)
    if not same or ran is False:
        print("NOT the same")
        return 1
    print("verified" if ran else "verified tensor by tensor; no outputs could be compared")
    return 0


def _entries(checkpoint: Checkpoint) -> dict[tuple[str, str], Entry]:
    return {
        (component, path): entry
        for component, tensors in checkpoint.tensors().items()
        for path, entry in tensors.entries.items()
    }


def _print_tensors(source: dict[tuple[str, str], Entry], converted: dict[tuple[str, str], Entry]) -> bool:
    there = {part_of(*key) for key in converted}
    rows, faults = {}, []
    keys = list(source | converted)
    for key in tqdm(keys, desc="comparing", unit="tensor", leave=False):
        row = rows.setdefault(part_of(*key), {"equal": 0, "different": 0, "missing": 0, "added": 0})
        verdict = _verdict(source.get(key), converted.get(key))
        row[verdict] += 1
        if verdict != "equal" and part_of(*key) in there:
            faults.append((verdict, "/".join(key)))
    header = ("part", "equal", "different", "missing", "added", "")
    notes = {part: "" if part in there else "not converted" for part in rows}
    print(table(header, [(part, *row.values(), notes[part]) for part, row in rows.items()]))
    for verdict, path in faults[:SHOWN]:
        print(f"{verdict}: {path}")
    if faults[SHOWN:]:
        print(f"... and {len(faults) - SHOWN} more")
    return not faults and bool(there)


def _verdict(source: Entry | None, converted: Entry | None) -> str:
    """Equal are bytes, after a cast to the converted dtype where that is another."""
    if source is None or converted is None:
        return "added" if source is None else "missing"
    if source.dtype != converted.dtype:
        source = cast(Tensors({"": source}, "the source"), converted.dtype).entries[""]
    if (source.shape, source.dtype) != (converted.shape, converted.dtype):
        return "different"
    one, other = (np.ascontiguousarray(entry.read()).reshape(-1).view(np.uint8) for entry in (source, converted))
    return "equal" if np.array_equal(one, other) else "different"
