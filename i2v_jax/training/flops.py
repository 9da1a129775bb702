"""Arithmetic of a traced program: multiplications and additions of products, convolutions and attention kernels.

Counted on the jaxpr, so for all devices together, before a compiler sees it. XLA's own cost analysis counts the body of
a loop once, and kernels as nothing.
"""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from jax.extend import core

PASSES = {"dot_product_attention_fwd": 2, "dot_product_attention_bwd": 5}
"""Products of queries by keys in cuDNN's fused attention, by how the primitive's name begins."""


def count_flops(jaxpr: core.Jaxpr | core.ClosedJaxpr) -> float:
    """Returns the operations of a program; a loop without a known number of rounds counts as one round.

    Args:
      jaxpr: such as `jax.jit(f).trace(*arguments).jaxpr`.
    """
    return math.fsum(map(_count, getattr(jaxpr, "jaxpr", jaxpr).eqns))


def _count(equation: core.JaxprEqn) -> float:
    name, params = equation.primitive.name, equation.params
    shapes = [getattr(var.aval, "shape", ()) for var in equation.invars]
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        return 2.0 * math.prod(equation.outvars[0].aval.shape) * math.prod(shapes[0][axis] for axis in contracted)
    if name == "conv_general_dilated":
        return _convolution(*shapes, equation.outvars[0].aval.shape, params)
    if name == "pallas_call":
        return float(params["cost_estimate"].flops)
    for beginning, products in PASSES.items():
        if name.startswith(beginning):
            (b, t, n, h), s = shapes[0], shapes[1][1]
            return 2.0 * products * b * n * t * s * h
    inside = [count_flops(program) for program in _jaxprs(params)]
    if name == "cond":
        return max(inside)
    rounds = {"scan": lambda: params["length"], "shard_map": lambda: params["mesh"].size}.get(name, lambda: 1)()
    return rounds * math.fsum(inside)


def _convolution(given, kernel, out, params) -> float:
    """Operations on the input itself: its padding, and the zeros that dilation puts between, cost nothing."""
    numbers = params["dimension_numbers"]
    total = 2.0 * out[numbers.out_spec[0]] * out[numbers.out_spec[1]] * kernel[numbers.rhs_spec[1]]
    axes = zip(numbers.lhs_spec[2:], numbers.rhs_spec[2:], numbers.out_spec[2:])
    for number, (of_given, of_kernel, of_out) in enumerate(axes):
        spread = params["lhs_dilation"][number]
        places = (
            np.arange(out[of_out])[:, None] * params["window_strides"][number]
            + np.arange(kernel[of_kernel]) * params["rhs_dilation"][number]
            - params["padding"][number][0]
        )
        inside = (places >= 0) & (places <= (given[of_given] - 1) * spread) & (places % spread == 0)
        total *= np.count_nonzero(inside)
    return total


def _jaxprs(value: Any) -> Iterator[core.Jaxpr | core.ClosedJaxpr]:
    """The programs in a primitive's parameters."""
    if isinstance(value, (core.Jaxpr, core.ClosedJaxpr)):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from _jaxprs(part)
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from _jaxprs(part)
