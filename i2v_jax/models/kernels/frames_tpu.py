"""Attention among a place's few frames on TPUs, as a Pallas kernel: places lie along the chip's 128 lanes.

A matrix unit wants sides of 128; sixteen frames would fill an eighth of one, and scores in memory would be padded as
much. Here the vector unit works on 128 places at once, and scores stay on the chip in both passes.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from i2v_jax.models.kernels.flash_tpu import LANES, MEMORY


def frames_attention(
    q: Float[Array, "b g s h d"], k: Float[Array, "b g t h d"], v: Float[Array, "b g t h d"]
) -> Float[Array, "b g s h d"]:
    """Softmax attention within each of many groups of few positions; differentiable."""
    groups, d = q.shape[1], q.shape[-1]
    out = _attend(*(_lay(x) for x in (q, k, v)), d**-0.5)
    return out[..., :groups].transpose(0, 4, 1, 2, 3)


def _lay(x):
    """[b g s h d] to [b s h d g], whole lanes of groups."""
    return jnp.pad(x.transpose(0, 2, 3, 4, 1), [(0, 0)] * 4 + [(0, -x.shape[1] % LANES)])


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _attend(q, k, v, scale):
    def kernel(q, k, v, out):
        keys, values = k[...].astype(jnp.float32), v[...].astype(jnp.float32)

        @pl.loop(0, q.shape[0])
        def _(i):
            weights = _weights(q[i], keys, scale)
            out[i] = jnp.sum(weights[:, None] * values, 0).astype(out.dtype)

    return _call(kernel, "frames_forward", 2, (q, k, v), (q,))[0]


def _save(q, k, v, scale):
    return _attend(q, k, v, scale), (q, k, v)


def _backward(scale, saved, d_out):
    def kernel(q, k, v, d_out, dq, dk, dv, dk_sum, dv_sum):
        keys, values = k[...].astype(jnp.float32), v[...].astype(jnp.float32)
        dk_sum[...] = jnp.zeros_like(dk_sum)
        dv_sum[...] = jnp.zeros_like(dv_sum)

        @pl.loop(0, q.shape[0])
        def _(i):
            query, d = q[i].astype(jnp.float32), d_out[i].astype(jnp.float32)
            weights = _weights(q[i], keys, scale)
            d_weights = jnp.sum(d[None] * values, 1)
            d_scores = weights * (d_weights - jnp.sum(weights * d_weights, 0, keepdims=True)) * scale
            dv_sum[...] += weights[:, None] * d[None]
            dk_sum[...] += d_scores[:, None] * query[None]
            dq[i] = jnp.sum(d_scores[:, None] * keys, 0).astype(dq.dtype)

        dk[...] = dk_sum[...].astype(dk.dtype)
        dv[...] = dv_sum[...].astype(dv.dtype)

    return tuple(_call(kernel, "frames_backward", 5, (*saved, d_out), saved, sums=2))


_attend.defvjp(_save, _backward)


def _weights(query, keys, scale):
    """Softmax over the keys [t d lanes] of one query [d lanes]; returns [t lanes], float32."""
    scores = jnp.sum(query.astype(jnp.float32)[None] * keys, 1) * scale
    weights = jnp.exp(scores - jnp.max(scores, 0, keepdims=True))
    return weights / jnp.sum(weights, 0, keepdims=True)


def _call(kernel, name, products, given, returned, sums=0):
    """Runs a kernel over batch, heads and 128 groups at a time."""
    b, s, h, d, g = given[0].shape
    t = given[1].shape[1]

    def spec(x):
        return pl.BlockSpec((None, x.shape[1], None, d, LANES), lambda b, h, i: (b, 0, h, 0, i))

    scores = b * h * g * s * t
    return pl.pallas_call(
        kernel,
        grid=(b, h, g // LANES),
        in_specs=[spec(x) for x in given],
        out_specs=[spec(x) for x in returned],
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in returned],
        scratch_shapes=[pltpu.VMEM((t, d, LANES), jnp.float32)] * sums,
        cost_estimate=pl.CostEstimate(
            flops=2 * products * scores * d,
            transcendentals=scores,
            bytes_accessed=sum(math.prod(x.shape) * x.dtype.itemsize for x in (*given, *returned)),
        ),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel",) * 3, vmem_limit_bytes=MEMORY),
        name=name,
    )(*given)
