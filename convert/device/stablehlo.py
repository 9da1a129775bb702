"""StableHLO: a network with its weights as arguments, serialised by `jax.export` for CPUs, GPUs and TPUs."""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import export
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun
from jax.interpreters import partial_eval

from convert.device.networks import Network, joined
from convert.device.precisions import restored
from i2v_jax.tree import unflatten
from i2v_jax.weights.tensors import Tensors

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


class Traced(NamedTuple):
    """A network's program.

    Attributes:
      program: of the parameters in the order of `paths`, then of the inputs by name; returns the outputs by name.
      paths: `component/...` of the parameters that the outputs depend on, in order.
      outputs: names, in order.
    """

    program: ClosedJaxpr
    paths: tuple[str, ...]
    outputs: tuple[str, ...]


def trace(network: Network, parameters: Mapping[str, Tensors]) -> Traced:
    """Returns the program of a network, float32; no parameter is read.

    Args:
      network: one of `networks.of_run`.
      parameters: component -> its parameters.
    """
    entries = joined(network, parameters).entries
    shapes = {path: jax.ShapeDtypeStruct(entry.shape, jnp.float32) for path, entry in entries.items()}

    def call(flat, given):
        return network.call(unflatten(flat), given)

    traced, outputs = jax.make_jaxpr(call, return_shape=True)(shapes, network.specs)
    inputs = [False] * len(shapes) + [True] * len(network.inputs)  # these stay, used or not
    program, used = partial_eval.dce_jaxpr(traced.jaxpr, [True] * len(traced.out_avals), inputs)
    paths = tuple(path for path, is_used in zip(sorted(shapes), used) if is_used)
    return Traced(ClosedJaxpr(program, traced.consts), paths, tuple(sorted(outputs)))


def serialise(network: Network, traced: Traced, weights: Tensors) -> bytes:
    """Returns a program of `(weights, inputs)`, two dictionaries by name, that returns a dictionary of outputs.

    Args:
      network, traced: see `trace`.
      weights: as stored, see `precisions.stored`; only their shapes and dtypes are looked at.
    """
    run = jaxpr_as_fun(traced.program)

    def call(stored, given):
        parameters = [restored(stored, path) for path in traced.paths]
        return dict(zip(traced.outputs, run(*parameters, *(given[name] for name in sorted(given)))))

    shapes = {path: jax.ShapeDtypeStruct(entry.shape, entry.dtype) for path, entry in weights.entries.items()}
    return bytes(export.export(jax.jit(call), platforms=PLATFORMS)(shapes, network.specs).serialize())
