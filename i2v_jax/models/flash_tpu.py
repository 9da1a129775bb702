"""Flash attention on TPUs: jax's Pallas kernel, with the padding that our odd sizes want.

The kernel takes sequences that are whole blocks of 128 and head sizes up to 128 or multiples of it; Stable Diffusion
has heads of 40, 80 and 160, pictures of any size, and prompts of 77 tokens.
"""

import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import flash_attention as kernel
from jaxtyping import Array, Float

LANES = 128
LARGEST_BLOCK = 512


def flash_attention(
    q: Float[Array, "b s h d"], k: Float[Array, "b t h d"], v: Float[Array, "b t h d"]
) -> Float[Array, "b s h d"]:
    """Attention without the scores ever leaving the chip; differentiable."""
    b, s, h, d = q.shape
    t = k.shape[1]
    head = d if d <= LANES else -d % LANES + d
    q, k, v = (_pad(x, length, head).swapaxes(1, 2) for x, length in ((q, s), (k, t), (v, t)))
    segments = None
    if k.shape[2] != t:  # padded keys are another segment than every query
        queries = jnp.zeros((b, q.shape[2]), jnp.int32)
        keys = jnp.broadcast_to((jnp.arange(k.shape[2]) >= t).astype(jnp.int32), (b, k.shape[2]))
        segments = kernel.SegmentIds(queries, keys)
    sizes = _blocks(_block(q.shape[2]), _block(k.shape[2]))
    out = kernel.flash_attention(q, k, v, segment_ids=segments, sm_scale=d**-0.5, block_sizes=sizes)
    return out.swapaxes(1, 2)[:, :s, :, :d]


def _pad(x, length, head):
    return jnp.pad(x, ((0, 0), (0, -length % LANES), (0, 0), (0, head - x.shape[-1])))


def _block(length: int) -> int:
    return next(block for block in (LARGEST_BLOCK, 384, 256, LANES) if length % block == 0)


def _blocks(queries: int, keys: int) -> kernel.BlockSizes:
    return kernel.BlockSizes(
        block_b=1,
        block_q=queries,
        block_k_major=keys,
        block_k=keys,
        block_q_major_dkv=queries,
        block_q_dkv=queries,
        block_k_major_dkv=keys,
        block_k_dkv=keys,
        block_q_dq=queries,
        block_k_major_dq=keys,
        block_k_dq=keys,
    )
