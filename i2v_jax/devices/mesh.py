"""Devices: a mesh with named axes, and the table that places the networks' logical axes on it.

`data` spreads videos, `fsdp` spreads videos and weights, `frames` spreads one video's frames (and, inside temporal
layers, its places). One device is a mesh of size 1: there is no other code path.
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from i2v_jax.errors import InputError, check_known

AXES = ("data", "fsdp", "frames")

Rules = Mapping[str, Sequence[str]]
RULES: Rules = {
    "batch": ("data", "fsdp"),
    "frames": ("frames",),
    "space": ("frames",),
    "height": (),
    "width": (),
}
"""Logical axis of activations (named in `models`) -> the mesh axes that it is spread over."""


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
        check_known("Unknown mesh axis ", name, AXES)
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
def use_mesh(mesh: Mesh, rules: Rules = RULES) -> Iterator[None]:
    """Within it, networks place their activations on `mesh` by `rules`; on one device there is nothing to place.

    Raises:
      InputError: a rule for an axis that networks do not name, or to one that meshes do not have.
    """
    for logical, axes in rules.items():
        for name, known in ((logical, RULES), *((axis, AXES) for axis in axes)):
            if name not in known:
                raise InputError(f"Rule {logical}={axes}: no axis {name!r}; known: {', '.join(known)}.")
    placed = [(logical, tuple(axes) or None) for logical, axes in rules.items()]
    with jax.set_mesh(mesh), nn.logical_axis_rules(placed if mesh.size > 1 else ()):
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


def parameter_sharding(mesh: Mesh, shape: Sequence[int]) -> NamedSharding:
    """Where a parameter lies: whole on every device, or with `fsdp` > 1 cut along the longest axis that divides."""
    shares = mesh.shape["fsdp"]
    axes = [axis for axis, size in enumerate(shape) if size % shares == 0]
    spec = [None] * len(shape)
    if shares > 1 and axes and math.prod(shape) >= SMALLEST_SHARDED:
        spec[max(axes, key=lambda axis: shape[axis])] = "fsdp"
    return NamedSharding(mesh, P(*spec))


def placer(mesh: Mesh) -> Callable[[str, np.ndarray], jax.Array]:
    """Returns a `place(path, array)` for weight loaders: each array goes to the mesh as soon as it is read."""

    def put_path(path: str, array: np.ndarray) -> jax.Array:
        return put(array, parameter_sharding(mesh, array.shape))

    return put_path


def put(array: np.ndarray, sharding: NamedSharding) -> jax.Array:
    """Puts an array that every process has onto the devices."""
    if sharding.is_fully_addressable:
        return jax.device_put(array, sharding)
    return jax.make_array_from_callback(array.shape, sharding, lambda index: np.asarray(array[index], order="C"))


def put_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Puts a batch onto the devices, of which each process has its own part; parts are joined in their order."""
    sharding = batch_sharding(mesh)
    return {name: jax.make_array_from_process_local_data(sharding, array) for name, array in batch.items()}


def on_this_host(tree: Any, mesh: Mesh) -> Any:
    """Returns arrays of the mesh whole on one device of this process; every process must call it.

    What lies whole there already is not copied, and is gone when the array that it is of is donated.
    """
    arrays, structure = jax.tree.flatten(tree)
    cut = [array for array in arrays if not array.is_fully_replicated]
    whole = iter(jax.jit(lambda cut: cut, out_shardings=replicated(mesh))(cut))
    arrays = [array if array.is_fully_replicated else next(whole) for array in arrays]
    return jax.tree.unflatten(structure, [array.addressable_data(0) for array in arrays])
