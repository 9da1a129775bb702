"""MIVA (Li et al. 2025, arXiv 2512.20000): small adapters of one motion each, of which several work at once.

All their weights have a leading axis of MIVAs, so that one product or one attention serves them all. Each layer adds
the sum of their changes, weighted by `shares`. The formulas, and what of them is our own choice: docs/miva.md.
"""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from i2v_jax.errors import InputError
from i2v_jax.models.adapters.adapter import Shared
from i2v_jax.models.adapters.windows import first_frame
from i2v_jax.models.attention import Projections, attention, merge_heads, split_heads
from i2v_jax.models.layers import parameter

NAME = "miva"
"""Of the folder of its parameters below an attention, and of its strengths [n]."""
PATH = f"/{NAME}/"
"""What stands in the paths of its parameters, and of no others."""
PARTS = ("frames", "prompt", "motion")


@dataclasses.dataclass(frozen=True)
class MivaConfig:
    """Shape of the MIVAs beside a UNet.

    Attributes:
      count: how many.
      rank: of all the changes of weights; of the largest where several differ.
      tokens: of the implicit prompt.
      parts: of `PARTS`: attention to other frames, the implicit prompt, the change of the motion modules.
    """

    count: int = 1
    rank: int = 16
    tokens: int = 77
    parts: tuple[str, ...] = PARTS

    def __post_init__(self):
        for name in ("count", "rank", "tokens"):
            if getattr(self, name) < 1:
                raise InputError(f"miva.{name}={getattr(self, name)}: wanted 1 or more.")
        if not self.parts or not set(self.parts) <= set(PARTS):
            raise InputError(f"miva.parts={self.parts}: wanted one or more of {', '.join(PARTS)}.")


def shares(shared: Shared, count: int, places: int, dtype: Any) -> Float[Array, "b s n"]:
    """Returns how much of each MIVA's change is added at each place: its strength, times its mask where it has one.

    Args:
      shared: with the strength "miva", a number or [n], and masks.
      count: n, how many MIVAs there are.
      places: s, of a frame at this level.
      dtype: of the result, whose axes b and s are 1 where there are no masks.
    """
    strengths = jnp.broadcast_to(jnp.asarray(shared.strength(NAME), jnp.float32), (count,))
    found = strengths[None, None] if shared.masks is None else strengths * shared.masks[places]
    return jnp.asarray(found, dtype)


def masks_of_levels(masks: Float[Array, "b 1 n h w"] | None, levels: int) -> dict[int, Float[Array, "b s n"]] | None:
    """Returns the number of a level's places -> the masks there; each level halves the sides, rounded up."""
    if masks is None:
        return None
    found, (height, width) = {}, masks.shape[-2:]
    for _ in range(levels):
        small = jax.image.resize(masks[:, 0], (*masks.shape[:1], masks.shape[2], height, width), "linear")
        found[height * width] = small.reshape(*small.shape[:2], -1).swapaxes(1, 2)
        height, width = -(-height // 2), -(-width // 2)
    return found


class Factors(nn.Module):
    """The factors of the MIVAs' changes of a dense layer, `x -> x down up`; `up` is zero at first."""

    config: MivaConfig
    inputs: int
    outputs: int
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self) -> tuple[Float[Array, "n i r"], Float[Array, "n r o"]]:
        count, rank = self.config.count, self.config.rank
        begin = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform", in_axis=1, out_axis=2, batch_axis=0)
        down = parameter(self, "down", begin, (count, self.inputs, rank), self.param_dtype)
        up = parameter(self, "up", nn.initializers.zeros_init(), (count, rank, self.outputs), self.param_dtype)
        return jnp.asarray(down, self.dtype), jnp.asarray(up, self.dtype)


def changes(x: Float[Array, "b g s i"], down: Float[Array, "n i r"], up: Float[Array, "n r o"]):
    """Returns every MIVA's change of a dense layer's output, [b g n s o]."""
    return jnp.einsum("bgnsr,nro->bgnso", jnp.einsum("bgsi,nir->bgnsr", x, down), up)


def total_change(x: Float[Array, "b g n s i"], weights: Float[Array, "#b #g n #s 1"], down, up):
    """Returns the weighted sum of the MIVAs' changes of a dense layer's output, each of its own input, [b g s o]."""
    return jnp.einsum("bgnsr,nro->bgso", weights * jnp.einsum("bgnsi,nir->bgnsr", x, down), up)


class Part(nn.Module):
    """A part of MIVAs at one site of a UNet."""

    config: MivaConfig
    implementation: str = "xla"
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32


class OtherFrames(Part):
    """Every frame also attends to the first frame, and to the one before it, at a spatial self-attention.

    Each has a query of its own, `Q + X down up`, and an output projection `down up`, zero at first; keys and values are
    the frozen ones. The timestep embedding decides how the two are balanced; their weights sum to 1. Frame 1 has itself
    before it, and so has the first of a window of frames.
    """

    @nn.compact
    def __call__(self, base: Projections, shared: Shared):
        b, f, s, channels = base.hidden.shape
        num_heads, n = base.query.shape[-2], self.config.count
        share = shares(shared, n, s, self.dtype).swapaxes(1, 2)[:, None, :, :, None]  # b 1 n s 1
        balance = Balance(n, 2, self.param_dtype, name="balance")(shared.time)  # b n 2
        before = lambda x: jnp.concatenate([x[:, :1], x[:, :-1]], 1)  # noqa: E731
        # all MIVAs' queries stand in a row: of frames where all look at one, else of the places of a frame
        kinds = (
            ("first", *first_frame(self, base.key, base.value, shared.window), (b, f * n, s)),
            ("previous", before(base.key), before(base.value), (b, f, n * s)),
        )
        total = 0
        for number, (name, key, value, row) in enumerate(kinds):
            factors = functools.partial(Factors, self.config, channels, channels, self.dtype, self.param_dtype)
            query = merge_heads(base.query)[:, :, None] + changes(base.hidden, *factors(name=f"{name}_to_q")())
            query = split_heads(query.reshape(*row, channels), num_heads)
            out = merge_heads(attention(query, key, value, self.implementation)).reshape(b, f, n, s, channels)
            weights = share * jnp.asarray(balance[..., number], self.dtype)[:, None, :, None, None]
            total += total_change(out, weights, *factors(name=f"{name}_to_out")())
        return 0, total


class Balance(nn.Module):
    """From the timestep embedding to each MIVA's weights of several attentions: a dense layer after a SiLU, softmax.

    New, they are the same; float32.
    """

    count: int
    kinds: int
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, time: Float[Array, "b e"]) -> Float[Array, "b n k"]:
        time = nn.silu(jnp.asarray(time, jnp.float32))
        zeros, shape = nn.initializers.zeros_init(), (self.count, time.shape[-1], self.kinds)
        kernel = jnp.asarray(parameter(self, "kernel", zeros, shape, self.param_dtype), jnp.float32)
        bias = jnp.asarray(parameter(self, "bias", zeros, (self.count, self.kinds), self.param_dtype), jnp.float32)
        return jax.nn.softmax(jnp.einsum("be,nek->bnk", time, kernel) + bias, -1)


class ImplicitPrompt(Part):
    """A learned sequence of embeddings stands in for the prompt, at a cross-attention.

    It is kept as its difference from the prompt's states, the empty prompt's unless a prompt is given beside, which is
    zero at first. Where `Conditions.implicit` is 0, as on the side that guidance leads away from, there is none.
    """

    @nn.compact
    def __call__(self, base: Projections, shared: Shared):
        (b, f, s, h, d), (n, tokens) = base.query.shape, (self.config.count, self.config.tokens)
        k, t = base.key.shape[1:3]
        shape = (n, tokens, shared.conditions.text.shape[-1])
        states = parameter(self, "states", nn.initializers.zeros_init(), shape, self.param_dtype)
        states = jnp.asarray(states, self.dtype)[:, :t]
        states = jnp.pad(states, ((0, 0), (0, t - states.shape[1]), (0, 0)))
        implicit = shared.conditions.implicit
        there = jnp.ones((1, 1), self.dtype) if implicit is None else jnp.asarray(implicit, self.dtype)

        def with_base(x, project):  # the prompt's own, then with each MIVA's: b n+1 k t h d
            change = split_heads(project(states), h)[None, :, None]
            change = change * there[:, None, :, None, None, None]
            own = jnp.broadcast_to(x[:, None], (b, 1, k, t, h, d))
            return jnp.concatenate([own, own + change], 1).reshape(b * (n + 1), k, t, h, d)

        key, value = with_base(base.key, base.to_key), with_base(base.value, base.to_value)
        query = jnp.broadcast_to(base.query[:, None], (b, n + 1, f, s, h, d)).reshape(b * (n + 1), f, s, h, d)
        out = merge_heads(attention(query, key, value, self.implementation)).reshape(b, n + 1, f, s, h * d)
        share = shares(shared, n, s, self.dtype).swapaxes(1, 2)[:, :, None, :, None]  # b n 1 s 1
        return jnp.sum(share * (out[:, 1:] - out[:, :1]), 1), 0


class MotionChange(Part):
    """A low-rank change of a motion module's attention, zero at first: of queries, keys, values and output.

    What is added is each MIVA's attention with its changed weights, less the frozen one.
    """

    @nn.compact
    def __call__(self, base: Projections, shared: Shared):
        b, s, f, channels = base.hidden.shape  # places are the groups, frames the sequence
        num_heads, n = base.query.shape[-2], self.config.count
        factors = functools.partial(Factors, self.config, channels, channels, self.dtype, self.param_dtype)

        def with_base(x, name):  # the frozen ones, then each MIVA's
            own = merge_heads(x)[:, :, None]
            both = jnp.concatenate([own, own + changes(base.hidden, *factors(name=name)())], 2)
            return split_heads(both.reshape(b, s * (n + 1), f, channels), num_heads)

        named = zip((base.query, base.key, base.value), ("to_q", "to_k", "to_v"))
        out = attention(*(with_base(x, name) for x, name in named), self.implementation)
        out = merge_heads(out).reshape(b, s, n + 1, f, channels)
        share = shares(shared, n, s, self.dtype)[..., None, None]  # b s n 1 1
        outer = total_change(out[:, :, 1:], share, *factors(name="to_out")())
        return jnp.sum(share * (out[:, :, 1:] - out[:, :, :1]), 2), outer


BRANCHES = {"frames": OtherFrames, "prompt": ImplicitPrompt, "motion": MotionChange}
"""Part -> the branch that it is: beside spatial self-attentions, cross-attentions, motion modules' attentions."""


def branches(config: MivaConfig | None, part: str) -> tuple[tuple[str, Any], ...]:
    """Returns the branches of a part for `models.attention.Attention`, none where there is no MIVA with it."""
    if config is None or part not in config.parts:
        return ()
    return ((NAME, functools.partial(BRANCHES[part], config)),)
