"""Devices: a mesh with named axes, and the table that places the networks' logical axes on it.

`data` spreads videos, `fsdp` spreads videos and weights, `frames` spreads one video's frames (and, inside temporal
layers, its places). One device is a mesh of size 1: there is no other code path.
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from i2v_jax.errors import InputError, nearest

AXES = ("data", "fsdp", "frames")

# Logical axes of activations (named in `models`) -> mesh axes.
RULES = (
    ("batch", ("data", "fsdp")),
    ("frames", "frames"),
    ("space", "frames"),
    ("height", None),
    ("width", None),
)


def make_mesh(shape: Mapping[str, int], devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Arranges devices in a mesh with the axes `AXES`.

    Args:
      shape: size of each axis, 1 where absent; one of them may be -1, for all devices that are left.
      devices: by default all that there are.

    Raises:
      InputError: unknown axis, or sizes that do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    for name in shape:
        if name not in AXES:
            raise InputError(f"Unknown mesh axis {name!r}; known: {', '.join(AXES)}.{nearest(name, AXES)}")
    sizes = [shape.get(name, 1) for name in AXES]
    given = ", ".join(f"{name}={size}" for name, size in zip(AXES, sizes))
    fixed = math.prod(size for size in sizes if size != -1)
    if sizes.count(-1) > 1 or any(size < 1 and size != -1 for size in sizes):
        raise InputError(f"Mesh {given}: wanted sizes of 1 or more, and -1 (all that are left) at most once.")
    if -1 in sizes:
        sizes[sizes.index(-1)] = len(devices) // fixed
    if math.prod(sizes) != len(devices):
        raise InputError(f"Mesh {given} does not fit {len(devices)} devices: the sizes must multiply to that number.")
    return Mesh(np.asarray(devices).reshape(sizes), AXES, axis_types=(AxisType.Auto,) * len(AXES))


@contextlib.contextmanager
def use_mesh(mesh: Mesh, rules=RULES) -> Iterator[None]:
    """Within it, networks place their activations on `mesh` by `rules`; on one device there is nothing to place."""
    with jax.set_mesh(mesh), nn.logical_axis_rules(rules if mesh.size > 1 else ()):
        yield


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Where an array with a leading batch axis lies: spread over `data` and `fsdp`."""
    return NamedSharding(mesh, P(("data", "fsdp")))


def video_sharding(mesh: Mesh) -> NamedSharding:
    """Where a video `[batch, frames, ...]` lies: its batch as above, its frames over `frames`."""
    return NamedSharding(mesh, P(("data", "fsdp"), "frames"))


def replicated(mesh: Mesh) -> NamedSharding:
    """Where an array lies that every device holds whole."""
    return NamedSharding(mesh, P())


SMALLEST_SHARDED = 1 << 16  # elements; below it a parameter is not worth cutting


def place(mesh: Mesh) -> Callable[[str, np.ndarray], jax.Array]:
    """Returns a `place(path, array)` for weight loaders: each array goes to the mesh as soon as it is read.

    Every device holds it whole, or with `fsdp` > 1 its share of the longest axis that divides.
    """
    shares = mesh.shape["fsdp"]

    def put(path: str, array: np.ndarray) -> jax.Array:
        axes = [axis for axis in range(array.ndim) if array.shape[axis] % shares == 0]
        spec = [None] * array.ndim
        if shares > 1 and axes and array.size >= SMALLEST_SHARDED:
            spec[max(axes, key=lambda axis: array.shape[axis])] = "fsdp"
        return jax.device_put(array, NamedSharding(mesh, P(*spec)))

    return put
