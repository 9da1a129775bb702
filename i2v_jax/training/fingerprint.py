"""What tells one set of frozen weights from another: a SHA-256 for each component, the same on any devices."""

import hashlib
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby

import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from i2v_jax.training.step import Flat

Fingerprint = Mapping[str, Mapping[str, str | int]]
"""Component -> `sha256` of its weights' paths, dtypes, shapes and bytes; `parameters`, their number; their `dtype`."""


def fingerprint(frozen: Flat) -> Fingerprint:
    """Takes the fingerprint of frozen weights, a few arrays at a time. Every process of a run must call it.

    Args:
      frozen: path `component/...` -> array, wherever it lies.
    """
    paths, hashes, threads = sorted(frozen), {}, os.cpu_count() or 1
    with ThreadPoolExecutor(threads) as pool:
        for first in range(0, len(paths), threads):
            some = paths[first : first + threads]
            hashes |= zip(some, pool.map(_sha256, [_whole(frozen[path]) for path in some]))
    prints = {}
    for component, group in groupby(paths, lambda path: path.split("/")[0]):
        group = list(group)
        lines = (f"{path} {frozen[path].dtype.name} {frozen[path].shape} {hashes[path]}\n" for path in group)
        prints[component] = {
            "sha256": hashlib.sha256("".join(lines).encode()).hexdigest(),
            "parameters": sum(frozen[path].size for path in group),
            "dtype": ", ".join(sorted({frozen[path].dtype.name for path in group})),
        }
    return prints


def differences(before: Fingerprint, now: Fingerprint) -> list[str]:
    """Returns a line for each component that is not the same: what of it differs, from which value to which."""
    lines = []
    for component in sorted(before.keys() | now.keys()):
        if component not in before or component not in now:
            lines.append(
                f"{component}: {'absent' if component not in before else 'there'} before, "
                f"{'absent' if component not in now else 'there'} now"
            )
        elif differ := [
            key for key in ("parameters", "dtype", "sha256") if before[component][key] != now[component][key]
        ]:
            key = differ[0]  # the later ones follow from it
            lines.append(f"{component}: {key} {before[component][key]} before, {now[component][key]} now")
    return lines


def _whole(array: jax.Array) -> jax.Array:
    """The array as this process can read it; what is cut into shares is gathered on the devices."""
    if not array.is_fully_replicated:
        array = jax.jit(lambda x: x, out_shardings=NamedSharding(array.sharding.mesh, P()))(array)
    return array.addressable_data(0)  # a new view: JAX would keep a copy on this host with the array itself


def _sha256(array: jax.Array) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).reshape(-1).view(np.uint8)).hexdigest()
