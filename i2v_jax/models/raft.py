"""RAFT (Teed and Deng 2020): optical flow, updated again and again by the correlations of features that it leads to.

Published layouts: princeton-vl's (`raft-things.pth`, ...) and torchvision's (`raft_large`, `raft_small`).
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from i2v_jax.errors import InputError
from i2v_jax.models.config import NetworkConfig
from i2v_jax.models.convolution import conv3x3
from i2v_jax.models.correlation import correlation_pyramid, look_up
from i2v_jax.models.layers import BatchNorm, parameter

STRIDE = 8
"""Side of the pictures over side of the features."""
EPSILON = 1e-5  # of every norm
LEAST_SIDE = 128
"""Of pictures that the published networks give numbers for; smaller ones are enlarged for them."""
ITERATIONS = 12
"""Updates of the flow as both publishers run it; EvalCrafter takes 20."""


@dataclasses.dataclass(frozen=True)
class RAFTConfig(NetworkConfig):
    """Shape and arithmetic of a RAFT; the defaults are those of the large one.

    Attributes:
      widths: channels of the first convolution and of the three stages.
      features: channels that are correlated.
      hidden, context: channels of the recurrent state, and of what the first picture gives to every update.
      bottleneck: residual blocks of three convolutions rather than two.
      context_norm: batch norm in the context's encoder (the features' has instance norm); else none.
      levels, radius: of the correlation pyramid, and of the square that is looked up in each of its levels.
      correlation_widths, flow_widths, motion_width: channels of the layers that read correlations and the flow, and of
        what they become (the flow itself comes on top).
      separable: two recurrent units, of 1x5 and of 5x1, one after the other; else one of 3x3.
      flow_head: channels within the layers that give the step.
      convex: whether the flow is enlarged by learnt weights; else bilinearly.
      convolution: implementation of 3x3 convolutions, see `models.convolution`.
      dtype: of activations; correlations and the flow are float32.
      param_dtype: of new parameters.
    """

    widths: tuple[int, ...] = (64, 64, 96, 128)
    features: int = 256
    hidden: int = 128
    context: int = 128
    bottleneck: bool = False
    context_norm: bool = True
    levels: int = 4
    radius: int = 4
    correlation_widths: tuple[int, ...] = (256, 192)
    flow_widths: tuple[int, ...] = (128, 64)
    motion_width: int = 126
    separable: bool = True
    flow_head: int = 256
    convex: bool = True
    convolution: str = "xla"

    @property
    def gru_sizes(self) -> tuple[tuple[int, int], ...]:
        """Height and width of the recurrent units' kernels."""
        return ((1, 5), (5, 1)) if self.separable else ((3, 3),)


LARGE = RAFTConfig()
SMALL = RAFTConfig(
    widths=(32, 32, 64, 96),
    features=128,
    hidden=96,
    context=64,
    bottleneck=True,
    context_norm=False,
    radius=3,
    correlation_widths=(96,),
    flow_widths=(64, 32),
    motion_width=80,
    separable=False,
    flow_head=128,
    convex=False,
)
TINY = dataclasses.replace(
    SMALL,
    widths=(8, 8, 16, 16),
    features=16,
    hidden=16,
    context=16,
    radius=1,
    levels=2,
    correlation_widths=(16,),
    flow_widths=(16, 16),
    motion_width=14,
    flow_head=16,
)


class RAFTFlow(NamedTuple):
    """The flow from the first pictures to the second ones, (right, down)."""

    low: Float[Array, "*i n h w 2"]  # pixels of the features' grid, an eighth of the pictures'
    full: Float[Array, "*i n H W 2"]  # pixels of the pictures


class Weights(NamedTuple):
    """A convolution's, to be used many times."""

    kernel: Float[Array, "kh kw i o"]
    bias: Float[Array, " o"]


class Kernel(nn.Module):
    """The parameters of a convolution; new ones are small, PyTorch's, with which the published updates began."""

    shape: tuple[int, int, int, int]
    config: RAFTConfig
    share: float = 1.0  # of PyTorch's size

    @nn.compact
    def __call__(self) -> Weights:
        c = self.config
        small = nn.initializers.variance_scaling(self.share**2 / 3, "fan_in", "uniform")
        kernel = parameter(self, "kernel", small, self.shape, c.param_dtype)
        bias = parameter(self, "bias", nn.initializers.zeros_init(), self.shape[-1:], c.param_dtype)
        return Weights(jnp.asarray(kernel, c.dtype), jnp.asarray(bias, c.dtype))


def convolve(
    x: Float[Array, "n h w i"],
    kernel: Float[Array, "kh kw i o"],
    stride: int = 1,
    implementation: str = "xla",
) -> Float[Array, "n h2 w2 o"]:
    """Convolves with zeros outside, so many that at stride 1 the size stays."""
    height, width = kernel.shape[:2]
    if (height, width) == (1, 1):
        return x[:, ::stride, ::stride] @ kernel[0, 0]
    if (height, width) == (3, 3):
        return conv3x3(x, kernel, stride, implementation=implementation)
    padding = [(side // 2, side // 2) for side in (height, width)]
    if implementation == "winograd" and stride == 1:  # as one matrix product, which CPUs multiply faster
        padded, (rows, columns) = jnp.pad(x, ((0, 0), *padding, (0, 0))), x.shape[1:3]
        shifted = [padded[:, i : i + rows, j : j + columns] for i in range(height) for j in range(width)]
        return jnp.concatenate(shifted, -1) @ kernel.reshape(-1, kernel.shape[-1])
    layout = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel, (stride, stride), padding, dimension_numbers=layout)


class Conv(nn.Module):
    """A convolution of any size, zeros outside."""

    features: int
    size: int
    config: RAFTConfig
    stride: int = 1

    @nn.compact
    def __call__(self, x: Float[Array, "n h w i"]) -> Float[Array, "n h2 w2 o"]:
        c = self.config
        shape = (self.size, self.size, x.shape[-1], self.features)
        kernel = parameter(self, "kernel", nn.initializers.he_normal(), shape, c.param_dtype)
        bias = parameter(self, "bias", nn.initializers.zeros_init(), shape[-1:], c.param_dtype)
        x = jnp.asarray(x, c.dtype)
        return convolve(x, jnp.asarray(kernel, c.dtype), self.stride, c.convolution) + jnp.asarray(bias, c.dtype)


def instance_norm(x: Float[Array, "n h w c"]) -> Float[Array, "n h w c"]:
    """Norms each channel of each picture, without parameters."""
    wide = jnp.asarray(x, jnp.float32)
    centred = wide - jnp.mean(wide, (1, 2), keepdims=True)
    return jnp.asarray(centred * jax.lax.rsqrt(jnp.mean(centred**2, (1, 2), keepdims=True) + EPSILON), x.dtype)


class Norm(nn.Module):
    """The norm of an encoder: "instance", "batch" or "none"."""

    kind: str
    config: RAFTConfig

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h w c"]:
        if self.kind == "batch":
            return BatchNorm(EPSILON, self.config.dtype, self.config.param_dtype, name="batch")(x)
        return instance_norm(x) if self.kind == "instance" else x


class Block(nn.Module):
    """Convolutions with norm and ReLU, added to the input (of other size: through a 1x1 convolution and a norm)."""

    features: int
    stride: int
    norm: str
    config: RAFTConfig

    @nn.compact
    def __call__(self, x: Float[Array, "n h w i"]) -> Float[Array, "n h2 w2 o"]:
        c, inner = self.config, self.features // 4
        layers = [(self.features, 3, self.stride), (self.features, 3, 1)]
        if c.bottleneck:
            layers = [(inner, 1, 1), (inner, 3, self.stride), (self.features, 1, 1)]
        y = x
        for i, (features, size, stride) in enumerate(layers, 1):
            y = Conv(features, size, c, stride, name=f"conv{i}")(y)
            y = nn.relu(Norm(self.norm, c, name=f"norm{i}")(y))
        if self.stride > 1:
            x = Norm(self.norm, c, name="downsample_1")(Conv(self.features, 1, c, self.stride, name="downsample_0")(x))
        return nn.relu(x + y)


class Encoder(nn.Module):
    """A picture's features at an eighth of its size."""

    features: int
    norm: str
    config: RAFTConfig

    @nn.compact
    def __call__(self, x: Float[Array, "n H W 3"]) -> Float[Array, "n h w c"]:
        c = self.config
        x = nn.relu(Norm(self.norm, c, name="norm1")(Conv(c.widths[0], 7, c, 2, name="conv1")(x)))
        for stage, width in enumerate(c.widths[1:], 1):
            for block in range(2):
                stride = 2 if stage > 1 and not block else 1
                x = Block(width, stride, self.norm, c, name=f"layer{stage}_{block}")(x)
        return Conv(self.features, 1, c, name="conv2")(x)


class RAFT(nn.Module):
    """Optical flow between pictures."""

    config: RAFTConfig

    @nn.compact
    def __call__(
        self,
        first: Float[Array, "n H W 3"],
        second: Float[Array, "n H W 3"],
        iterations: int = ITERATIONS,
        every: bool = False,
    ) -> RAFTFlow:
        """Estimates the flow from `first` to `second`.

        Args:
          first, second: pictures in [-1, 1], sides multiples of 8 (see `padding_of`). The published networks want 128
            pixels or more, and give no numbers below; here the levels that a small picture has no pixel for are zero.
          iterations: updates.
          every: give the flow after each update, along a first axis, as the loss of a training wants it.

        Raises:
          InputError: pictures of different or other sizes.
        """
        c = self.config
        check_sizes(first, second)
        pair = Encoder(c.features, "instance", c, name="feature_encoder")(jnp.concatenate([first, second]))
        features, others = jnp.split(jnp.asarray(pair, jnp.float32), 2)
        given = Encoder(c.hidden + c.context, "batch" if c.context_norm else "none", c, name="context_encoder")(first)
        hidden, context = jnp.tanh(given[..., : c.hidden]), nn.relu(given[..., c.hidden :])
        update = Update(c, name="update_block")
        pyramid = correlation_pyramid(features, others, c.levels, c.radius)
        hidden, low = update(hidden, context, pyramid, iterations, every)
        hidden, low = (x.reshape(-1, *x.shape[-3:]) for x in (hidden, low))
        if c.convex:
            mask = Mask(c, name="mask")(hidden)
            full = enlarge_convexly(low, jnp.asarray(mask, jnp.float32))
        else:
            full = enlarge(low)
        return RAFTFlow(*(x.reshape(iterations, -1, *x.shape[1:]) if every else x for x in (low, full)))


def check_sizes(first: Array, second: Array) -> None:
    """Raises InputError for pictures that RAFT cannot take."""
    height, width = first.shape[1:3]
    if first.shape != second.shape or height % STRIDE or width % STRIDE or min(height, width) < 2 * STRIDE:
        raise InputError(
            f"RAFT was given pictures of shapes {first.shape} and {second.shape}; wanted two of one shape, sides "
            f"multiples of {STRIDE}, 16 or more. Pad them."
        )


def padding_of(height: int, width: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Returns what to add above and below, left and right, so that sides are multiples of 8, as princeton-vl does."""
    missing = [-side % STRIDE for side in (height, width)]
    return tuple((count // 2, count - count // 2) for count in missing)


# Updates.


class Update(nn.Module):
    """Updates the flow from zero on: correlations at where it leads, motion features, recurrent units, a step."""

    config: RAFTConfig

    @nn.compact
    def __call__(
        self,
        hidden: Float[Array, "n h w d"],
        context: Float[Array, "n h w e"],
        pyramid: Sequence[Float[Array, "p _H _W"]],
        iterations: int,
        every: bool,
    ) -> tuple[Float[Array, "*i n h w d"], Float[Array, "*i n h w 2"]]:
        """Returns the last state and flow, or those after every update."""
        c = self.config
        motion = MotionWeights.of(c, self)
        gates = [self.gates(number, size) for number, size in enumerate(c.gru_sizes, 1)]
        heads = [
            Kernel((3, 3, c.hidden, c.flow_head), c, name="flow_head_conv1")(),
            Kernel((3, 3, c.flow_head, 2), c, 0.1, name="flow_head_conv2")(),  # begins with hardly any motion
        ]
        units = [Unit.of(c, of_unit, context) for of_unit in gates]
        n, height, width = hidden.shape[:3]
        grid = jnp.stack(jnp.meshgrid(jnp.arange(width), jnp.arange(height)), -1).astype(jnp.float32)

        def step(carry, _):
            hidden, flow = carry
            flow = jax.lax.stop_gradient(flow)  # an update is trained for where it starts, not for what led there
            correlations = look_up(pyramid, (grid + flow).reshape(-1, 2), c.radius).reshape(n, height, width, -1)
            features = motion(c, jnp.asarray(correlations, c.dtype), jnp.asarray(flow, c.dtype))
            for unit in units:
                hidden = unit(c, hidden, features)
            change = apply(c, nn.relu(apply(c, hidden, heads[0])), heads[1])
            carry = hidden, flow + jnp.asarray(change, jnp.float32)
            return carry, carry if every else None

        start = hidden, jnp.zeros((n, height, width, 2), jnp.float32)
        last, all_of_them = jax.lax.scan(step, start, length=iterations)
        return all_of_them if every else last

    def gates(self, number: int, size: tuple[int, int]) -> list[Weights]:
        """Returns the weights of a recurrent unit's gates: update, reset, candidate."""
        c = self.config
        shape = (*size, c.hidden + c.context + c.motion_width + 2, c.hidden)
        return [Kernel(shape, c, name=f"gru{number}_conv{gate}")() for gate in "zrq"]


def apply(c: RAFTConfig, x: Float[Array, "n h w i"], weights: Weights) -> Float[Array, "n h w o"]:
    return convolve(x, weights.kernel, implementation=c.convolution) + weights.bias


class Unit(NamedTuple):
    """A convolutional gated recurrent unit, as far as it can be computed before the first update.

    Attributes:
      both: kernel of the update and the reset gate.
      candidate: kernel of the next state's candidate. Both read the state and motion features alone.
      constants: what the context and the biases add to the two gates and to the candidate, the same in all updates.
    """

    both: Float[Array, "kh kw i 2*d"]
    candidate: Float[Array, "kh kw i d"]
    constants: list[Float[Array, "n h w d"]]

    @classmethod
    def of(cls, c: RAFTConfig, gates: Sequence[Weights], context: Float[Array, "n h w e"]) -> "Unit":
        """Takes the weights of the update gate, the reset gate, and the candidate."""
        ends = c.hidden, c.hidden + c.context
        constants = [
            convolve(context, kernel[:, :, ends[0] : ends[1]], implementation=c.convolution) + bias
            for kernel, bias in gates
        ]
        update, reset, candidate = (jnp.delete(kernel, np.arange(*ends), 2) for kernel, _ in gates)
        return cls(jnp.concatenate([update, reset], -1), candidate, constants)

    def __call__(
        self, c: RAFTConfig, hidden: Float[Array, "n h w d"], features: Float[Array, "n h w m"]
    ) -> Float[Array, "n h w d"]:
        """Returns the next state, (1 - z) h + z q."""
        inputs = jnp.concatenate([hidden, features], -1)
        of_update, of_reset = jnp.split(convolve(inputs, self.both, implementation=c.convolution), 2, -1)
        z, r = nn.sigmoid(of_update + self.constants[0]), nn.sigmoid(of_reset + self.constants[1])
        inputs = jnp.concatenate([r * hidden, features], -1)
        q = jnp.tanh(convolve(inputs, self.candidate, implementation=c.convolution) + self.constants[2])
        return (1 - z) * hidden + z * q


class MotionWeights(NamedTuple):
    """The layers that turn correlations and the flow into motion features."""

    correlation: list[Weights]
    flow: list[Weights]
    both: Weights

    @classmethod
    def of(cls, c: RAFTConfig, module: nn.Module) -> "MotionWeights":
        """Makes their parameters within a module."""
        widths = c.levels * (2 * c.radius + 1) ** 2, *c.correlation_widths
        correlation = [
            Kernel((size, size, *pair), c, parent=module, name=f"convc{i}")()
            for i, (size, pair) in enumerate(zip((1, 3), zip(widths, widths[1:])), 1)
        ]
        widths = 2, *c.flow_widths
        flow = [
            Kernel((size, size, *pair), c, parent=module, name=f"convf{i}")()
            for i, (size, pair) in enumerate(zip((7, 3), zip(widths, widths[1:])), 1)
        ]
        last = (3, 3, c.correlation_widths[-1] + c.flow_widths[-1], c.motion_width)
        return cls(correlation, flow, Kernel(last, c, parent=module, name="conv")())

    def __call__(
        self, c: RAFTConfig, correlations: Float[Array, "n h w k"], flow: Float[Array, "n h w 2"]
    ) -> Float[Array, "n h w m"]:
        """Returns motion features, the flow behind them."""
        of_flow = flow
        for weights in self.correlation:
            correlations = nn.relu(apply(c, correlations, weights))
        for weights in self.flow:
            of_flow = nn.relu(apply(c, of_flow, weights))
        both = nn.relu(apply(c, jnp.concatenate([correlations, of_flow], -1), self.both))
        return jnp.concatenate([both, flow], -1)


# Enlarging the flow to the pictures' size.


class Mask(nn.Module):
    """The weights of each new pixel's nine neighbours, before the softmax."""

    config: RAFTConfig

    @nn.compact
    def __call__(self, hidden: Float[Array, "n h w d"]) -> Float[Array, "n h w 576"]:
        c = self.config
        inner = nn.relu(Conv(256, 3, c, name="conv1")(hidden))
        return 0.25 * Conv(9 * STRIDE**2, 1, c, name="conv2")(inner)


def enlarge_convexly(flow: Float[Array, "n h w 2"], mask: Float[Array, "n h w 576"]) -> Float[Array, "n H W 2"]:
    """Returns the flow at eight times the size: a new pixel is a weighted mean of nine coarse ones, zeros outside."""
    n, height, width = flow.shape[:3]
    weights = jax.nn.softmax(mask.reshape(n, height, width, 9, STRIDE, STRIDE), 3)
    padded = jnp.pad(STRIDE * flow, ((0, 0), (1, 1), (1, 1), (0, 0)))
    around = jnp.stack([padded[:, i : i + height, j : j + width] for i in range(3) for j in range(3)], 3)
    enlarged = jnp.einsum("nhwkij,nhwkc->nhiwjc", weights, around)
    return enlarged.reshape(n, STRIDE * height, STRIDE * width, 2)


def enlarge(flow: Float[Array, "n h w 2"]) -> Float[Array, "n H W 2"]:
    """Returns the flow at eight times the size, bilinear, corners on corners."""
    rows, columns = (corners_aligned(side, STRIDE * side) for side in flow.shape[1:3])
    return STRIDE * jnp.einsum("Hh,Ww,nhwc->nHWc", rows, columns, flow)


def corners_aligned(count: int, wanted: int) -> Float[np.ndarray, "wanted count"]:
    """Returns the matrix that samples `count` values at `wanted` places, linearly, the ends at the ends."""
    places = np.linspace(0, count - 1, wanted)
    return np.maximum(0, 1 - np.abs(places[:, None] - np.arange(count))).astype(np.float32)
