"""Flash attention on TPUs (Dao et al. 2022) for heads as narrow as Stable Diffusion's, as a Pallas kernel.

Positions lie along a TPU's 128 lanes and the head's channels across them, `[..., channels, positions]`: heads of 40, 80
and 160 channels then fill the chip's memory tiles, where lanes of channels would be padded to 128. A whole group's keys
stay on the chip; scores never leave it. The backward pass computes them again from the saved log-sum-exp.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

LANES = 128
SCORES = 1 << 21  # elements held at once: 8 MiB of float32
MEMORY = 100 << 20  # bytes of on-chip memory that a kernel may take; chips have 128 MiB


def flash_attention(
    q: Float[Array, "b g s h d"], k: Float[Array, "b k t h d"], v: Float[Array, "b k t h d"]
) -> Float[Array, "b g s h d"]:
    """Attention without the scores ever leaving the chip; differentiable. Groups share keys where `k` is 1."""
    s, t, d = q.shape[2], k.shape[2], q.shape[-1]
    q, k, v = (_lay(x) for x in (q, k, v))
    return _attend(q, k, v, t, d**-0.5)[..., :s].transpose(0, 1, 4, 2, 3)


def _lay(x):
    """[b g s h d] to [b g h d s], whole lanes of positions."""
    return jnp.pad(x.transpose(0, 1, 3, 4, 2), [(0, 0)] * 4 + [(0, -x.shape[2] % LANES)])


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _attend(q, k, v, keys, scale):
    return _forward(q, k, v, keys, scale)[0]


def _forward(q, k, v, keys, scale):
    """Returns the output, laid as `q`, and the log of each query's sum of exponentials [b g h 1 s]."""
    b, g, h, d, s = q.shape
    grid, of_queries, of_keys = _grid(q, k)

    def kernel(q, k, v, out, lse):
        scores = _scores(q, k, keys, scale)
        highest = jnp.max(scores, 0, keepdims=True)
        weights = jnp.exp(scores - highest)
        total = jnp.sum(weights, 0, keepdims=True)
        out[...] = (_product(v[...], weights.astype(v.dtype), 1, 0) / total).astype(out.dtype)
        lse[...] = highest + jnp.log(total)

    saved = jax.ShapeDtypeStruct((b, g, h, 1, s), jnp.float32)
    return pl.pallas_call(
        kernel,
        grid=grid,
        in_specs=[of_queries(d), of_keys(), of_keys()],
        out_specs=[of_queries(d), of_queries(1)],
        out_shape=[jax.ShapeDtypeStruct(q.shape, q.dtype), saved],
        cost_estimate=_estimate(2, q, k, (q, k, v, q, saved)),
        compiler_params=_parameters("parallel"),
        name="flash_forward",
    )(q, k, v)


def _save(q, k, v, keys, scale):
    out, lse = _forward(q, k, v, keys, scale)
    return out, (q, k, v, out, lse)


def _backward(keys, scale, saved, d_out):
    q, k, v, out, lse = saved
    grid, of_queries, of_keys = _grid(q, k)
    d, t = k.shape[3:]
    shared = k.shape[1] == 1

    def kernel(q, k, v, out, lse, d_out, dq, dk, dv, dk_sum, dv_sum):
        group, block = pl.program_id(2), pl.program_id(3)
        first = (block == 0) & ((group == 0) | (not shared))
        last = (block == grid[3] - 1) & ((group == grid[2] - 1) | (not shared))

        @pl.when(first)
        def _():
            dk_sum[...] = jnp.zeros_like(dk_sum)
            dv_sum[...] = jnp.zeros_like(dv_sum)

        weights = jnp.exp(_scores(q, k, keys, scale) - lse[...])
        dv_sum[...] += _product(d_out[...], weights.astype(d_out.dtype), 1, 1)
        d_weights = _product(v[...], d_out[...], 0, 0)
        own = jnp.sum(out[...].astype(jnp.float32) * d_out[...].astype(jnp.float32), 0, keepdims=True)
        d_scores = (weights * (d_weights - own) * scale).astype(q.dtype)
        dq[...] = _product(k[...], d_scores, 1, 0).astype(dq.dtype)
        dk_sum[...] += _product(q[...], d_scores, 1, 1)

        @pl.when(last)
        def _():
            dk[...] = dk_sum[...].astype(dk.dtype)
            dv[...] = dv_sum[...].astype(dv.dtype)

    return pl.pallas_call(
        kernel,
        grid=grid,
        in_specs=[of_queries(d), of_keys(), of_keys(), of_queries(d), of_queries(1), of_queries(d)],
        out_specs=[of_queries(d), of_keys(), of_keys()],
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (q, k, v)],
        scratch_shapes=[pltpu.VMEM((d, t), jnp.float32)] * 2,
        cost_estimate=_estimate(5, q, k, (q, k, v, q, lse, q, q, k, v)),
        compiler_params=_parameters("arbitrary"),
        name="flash_backward",
    )(q, k, v, out, lse, d_out)


_attend.defvjp(_save, _backward)


# Within a kernel: q [d queries], k and v [d keys], scores [keys queries].


def _scores(q, k, keys, scale):
    scores = _product(k[...], q[...], 0, 0) * scale
    if keys == scores.shape[0]:
        return scores
    return jnp.where(jax.lax.broadcasted_iota(jnp.int32, scores.shape, 0) < keys, scores, -1e30)


def _product(a, b, of_a, of_b):
    return jax.lax.dot_general(a, b, (((of_a,), (of_b,)), ((), ())), preferred_element_type=jnp.float32)


def _grid(q, k):
    """Steps over batch, heads, groups and blocks of queries, and the blocks that a step sees of queries and of keys."""
    b, g, h, d, s = q.shape
    t = k.shape[-1]
    block = next(n for n in (512, 384, 256, LANES) if s % n == 0 and (n * t <= SCORES or n == LANES))
    shared = k.shape[1] == 1

    def of_queries(rows):
        return pl.BlockSpec((None, None, None, rows, block), lambda b, h, g, i: (b, g, h, 0, i))

    def of_keys():
        return pl.BlockSpec((None, None, None, d, t), lambda b, h, g, i: (b, 0 if shared else g, h, 0, 0))

    return (b, h, g, s // block), of_queries, of_keys


def _estimate(products, q, k, moved):
    """What XLA is told of a kernel that it cannot look into."""
    scores = math.prod(q.shape[:3]) * q.shape[-1] * k.shape[-1]
    return pl.CostEstimate(
        flops=2 * products * scores * q.shape[3],
        transcendentals=scores,
        bytes_accessed=sum(math.prod(x.shape) * x.dtype.itemsize for x in moved),
    )


def _parameters(groups):
    return pltpu.CompilerParams(
        dimension_semantics=("parallel", "parallel", groups, "arbitrary"), vmem_limit_bytes=MEMORY
    )
