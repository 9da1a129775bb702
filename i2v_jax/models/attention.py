"""Attention: one entry point with a choice of implementation, and the module that all our networks use.

Implementations: `xla` (plain products, any platform), `blocked` (a loop over heads and blocks of queries: small memory,
and fast on CPUs), `cudnn` (fused, NVIDIA GPUs, bfloat16 or float16), `flash` (Pallas kernels, TPUs).
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from i2v_jax.errors import check_known
from i2v_jax.models.layers import Dense


def attention(
    q: Float[Array, "b g s h d"],
    k: Float[Array, "b k t h d"],
    v: Float[Array, "b k t h d"],
    implementation: str = "xla",
) -> Float[Array, "b g s h d"]:
    """Softmax attention of each group's queries (`softmax(q k^T / sqrt(d)) v`, scores and softmax in float32).

    Args:
      q: queries: batch, groups (frames in a spatial layer, places in a temporal one), sequence, heads, head size.
      k: keys; `k == g` for attention within a group, 1 where all groups share them (a prompt, the first frame).
      v: values, shaped as `k`.
      implementation: one of `IMPLEMENTATIONS`.

    Raises:
      InputError: unknown implementation.
    """
    check_known("Unknown attention implementation ", implementation, IMPLEMENTATIONS)
    run = functools.partial(_run, IMPLEMENTATIONS[implementation])
    return run(q, k, v) if implementation == "xla" else _per_device(run, q, k)(q, k, v)


def _run(kernel, q, k, v):
    if kernel is _flash:
        return kernel(q, k, v)
    fold = _groups_into_sequence if k.shape[1] == 1 else _groups_into_batch
    return kernel(fold(q), _groups_into_batch(k), _groups_into_batch(v)).reshape(q.shape)


def _per_device(run, q, k):
    """Runs a kernel that the compiler cannot partition on each device's own share of batch and groups.

    Groups are frames in spatial layers and places in temporal ones; rules put both on the same mesh axis.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return run
    spec = nn.logical_to_mesh_axes(("batch", "frames"))

    def axis(name, size):  # a share must be whole
        names = (name,) if isinstance(name, str) else name or ()
        return name if size % math.prod(mesh.shape[n] for n in names) == 0 else None

    batch, groups = axis(spec[0], q.shape[0]), axis(spec[1], q.shape[1])
    queries, keys = P(batch, groups), P(batch, groups if k.shape[1] > 1 else None)
    return jax.shard_map(run, in_specs=(queries, keys, keys), out_specs=queries, check_vma=False)


def _groups_into_batch(x):
    return x.reshape(-1, *x.shape[2:])


def _groups_into_sequence(x):
    return x.reshape(x.shape[0], -1, *x.shape[3:])


# Each takes q [b s h d], k and v [b t h d] and returns [b s h d].


def _xla(q, k, v):
    scores = jnp.einsum("bshd,bthd->bhst", q, k, preferred_element_type=jnp.float32) * q.shape[-1] ** -0.5
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    return jnp.einsum("bhst,bthd->bshd", weights, v)


_BLOCK = 1 << 20  # scores held at once: 4 MiB of float32


def _blocked(q, k, v):
    b, s, h, d = q.shape
    t = k.shape[1]
    heads_first = lambda x: x.transpose(0, 2, 1, 3).reshape(b * h, -1, d)  # noqa: E731
    queries, keys, values = heads_first(q * d**-0.5), heads_first(k), heads_first(v)
    if s * t <= _BLOCK // 8:  # all heads of one picture fit
        out = _softmax_product(queries, keys, values)
    else:
        blocks = next(n for n in range(max(1, s * t // _BLOCK), s + 1) if s % n == 0)

        def one_head(qkv):
            q, k, v = qkv
            return lax.map(lambda q: _softmax_product(q, k, v), q)

        out = lax.map(one_head, (queries.reshape(b * h, blocks, s // blocks, d), keys, values))
    return out.reshape(b, h, s, d).transpose(0, 2, 1, 3)


def _softmax_product(q, k, v):
    """`softmax(q k^T) v` over the last two axes; CPUs divide the product sooner than the longer rows of weights."""
    scores = jnp.matmul(q, k.swapaxes(-1, -2), preferred_element_type=jnp.float32)
    weights = jnp.exp(scores - jnp.max(scores, -1, keepdims=True))
    product = jnp.matmul(weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
    return (product / jnp.sum(weights, -1, keepdims=True)).astype(v.dtype)


def _cudnn(q, k, v):
    if q.shape[-1] > 128 or q.shape[-1] % 8 or k.shape[1] < 64:  # heads it does not take; keys too few to gain
        return _xla(q, k, v)
    b, keys = k.shape[:2]
    if keys % 2 == 0:
        return jax.nn.dot_product_attention(q, k, v, implementation="cudnn")
    k, v = (jnp.pad(x, ((0, 0), (0, 1), (0, 0), (0, 0))) for x in (k, v))  # its gradient wants an even number
    lengths = jnp.full(b, keys, jnp.int32)
    return jax.nn.dot_product_attention(q, k, v, key_value_seq_lengths=lengths, implementation="cudnn")


def _flash(q, k, v):
    """As `attention`: these kernels know groups."""
    if q.shape[2] >= 64:
        from i2v_jax.models.kernels.flash_tpu import flash_attention

        return flash_attention(q, k, v)
    if q.shape[1] < 64 or q.shape[1] != k.shape[1]:  # little of anything
        return _run(_xla, q, k, v)
    from i2v_jax.models.kernels.frames_tpu import frames_attention

    return frames_attention(q, k, v)


IMPLEMENTATIONS: dict[str, Callable] = {"xla": _xla, "blocked": _blocked, "cudnn": _cudnn, "flash": _flash}


class Projections(NamedTuple):
    """What a branch beside an attention may look at. Groups are frames in a spatial layer."""

    hidden: Float[Array, "b g s c"]
    query: Float[Array, "b g s h d"]
    key: Float[Array, "b k t h d"]
    value: Float[Array, "b k t h d"]
    to_key: Callable[[Array], Array] | None = None  # the frozen projections, of anything as wide as the context
    to_value: Callable[[Array], Array] | None = None


class Attention(nn.Module):
    """Multi-head attention `A(Q, K, V) W_O`, with any number of branches beside it.

    A branch is a module that sees the `Projections` and what the network's layers share, and returns `(inner, outer)`:
    what to add before and after the output projection (either may be 0). This module knows no branch by name.
    """

    num_heads: int
    branches: tuple[tuple[str, Callable[..., nn.Module]], ...] = ()
    implementation: str = "xla"
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        hidden: Float[Array, "b g s c"],
        context: Float[Array, "b k t e"] | None = None,
        shared: Any = None,
    ) -> Float[Array, "b g s c"]:
        channels = hidden.shape[-1]
        context = hidden if context is None else context
        dtypes = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        project = functools.partial(Dense, channels, use_bias=False, **dtypes)
        to_q, to_k, to_v = (project(name=name) for name in ("to_q", "to_k", "to_v"))
        projections = Projections(
            hidden,
            split_heads(to_q(hidden), self.num_heads),
            split_heads(to_k(context), self.num_heads),
            split_heads(to_v(context), self.num_heads),
            to_k,
            to_v,
        )
        inner = merge_heads(attention(*projections[1:4], self.implementation))
        outer = 0
        for name, branch in self.branches:
            module = branch(implementation=self.implementation, name=name, **dtypes)
            more_inner, more_outer = module(projections, shared)
            inner, outer = inner + more_inner, outer + more_outer
        return Dense(channels, name="to_out", **dtypes)(inner) + outer


def split_heads(x: Float[Array, "b g s c"], num_heads: int) -> Float[Array, "b g s h d"]:
    """Splits channels into heads."""
    return x.reshape(*x.shape[:-1], num_heads, -1)


def merge_heads(x: Float[Array, "b g s h d"]) -> Float[Array, "b g s c"]:
    """Joins heads into channels."""
    return x.reshape(*x.shape[:-2], -1)
