"""IFNet (RIFE, Huang et al. 2022): frames between two frames, as Practical-RIFE's versions 4.5 to 4.26 have it.

From coarse to fine, blocks correct the flow from the wanted moment to either frame, and a mask that says which to
trust; both frames are then warped there and blended. Pictures are RGB of 0 to 1, in and out.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Iterable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from i2v_jax.errors import InputError
from i2v_jax.models.config import NetworkConfig
from i2v_jax.models.convolution import conv3x3
from i2v_jax.models.layers import Conv, parameter
from i2v_jax.models.upscaler import shuffled

SLOPE = 0.2  # of the leaky ReLUs
FLOW, MASK = 4, 1  # channels: (right, down) to the first and to the second frame
OWN = 3 + 3 + 1 + MASK + FLOW  # channels that each block but the first reads beside features: frames, time, mask, flow
LITE = (192, 128, 96, 64, 24)  # widths of 4.25.lite, whose scales only they tell
SCALES = {4: (8, 4, 2, 1), 5: (16, 8, 4, 2, 1), LITE: (32, 16, 8, 4, 1)}
"""Number of blocks, or the widths of an odd network -> by how much smaller each of them sees the frames."""
SPEEDS = (0.25, 0.5, 1.0, 2.0, 4.0)
"""Values of `scale`: less than 1 for large frames, whose motion is then sought in smaller ones."""


@dataclasses.dataclass(frozen=True)
class IFNetConfig(NetworkConfig):
    """Shape of an IFNet; the defaults are those of version 4.7.

    Attributes:
      widths: channels of each block, from the coarsest to the finest.
      scales: by how much smaller each of them sees the frames.
      layers: residual convolutions of a block.
      groups: of these convolutions.
      outputs: channels that a block gives: flow, mask, what it tells the next.
      carried: of these, what it tells the next block; version 4.6 to 4.20 have one of which nothing is made.
      head: names of the layers that make a frame's features, the last of which enlarges them again; (): there is none.
      head_width, features: channels within, and of the features.
      convolution, dtype, param_dtype: see `models.unet.UNetConfig`; flow and frames are float32.
    """

    widths: tuple[int, ...] = (192, 128, 96, 64)
    scales: tuple[int, ...] = SCALES[4]
    layers: int = 8
    groups: int = 1
    outputs: int = 6
    carried: int = 0
    head: tuple[str, ...] = ("layers_0", "layers_1")
    head_width: int = 16
    features: int = 4
    convolution: str = "xla"

    def multiple(self, scale: float = 1.0) -> int:
        """What sides of frames are multiples of."""
        return max(1, int(4 * max(self.scales) / scale))


OF_LIST, NAMED = tuple(f"layers_{i}" for i in (0, 2, 4, 6)), tuple(f"cnn{i}" for i in range(4))
_HEADLESS = IFNetConfig(head=(), head_width=0, features=0)
_413 = IFNetConfig(head=NAMED, head_width=32, features=8)
_425 = IFNetConfig(
    widths=(192, 128, 96, 64, 32), scales=SCALES[5], outputs=13, carried=8, head=NAMED, head_width=16, features=4
)
_of = dataclasses.replace
PUBLISHED = {
    "4.5": _of(_HEADLESS, outputs=5),
    "4.6": _HEADLESS,
    "4.7 to 4.9": IFNetConfig(),
    "4.10 to 4.12": _of(_413, head=OF_LIST),
    "4.12.lite, 4.13.lite": _of(_413, widths=(128, 96, 64, 48), head=OF_LIST, features=4),
    "4.13 to 4.19, 4.24": _413,
    "4.14.lite": _of(_413, groups=2),
    "4.15.lite to 4.17.lite": _of(_413, widths=(128, 96, 64, 48), head_width=16, features=4),
    "4.20": _of(_413, widths=(384, 192, 96, 48)),
    "4.21 to 4.23": _of(_413, widths=(256, 192, 96, 48), outputs=13, carried=8),
    "4.22.lite": _of(_425, widths=(192, 128, 64, 32), scales=SCALES[4]),
    "4.25, 4.26": _425,
    "4.25.lite": _of(_425, widths=LITE, scales=SCALES[LITE]),
    "4.25.heavy": _of(_425, widths=(384, 256, 192, 128, 64)),
    "4.26.heavy": _of(_425, features=16),
}
"""Versions of Practical-RIFE -> config. Earlier ones are other networks."""


def version_of(config: IFNetConfig) -> str:
    """Returns what a network is called."""
    return next((f"RIFE {version}" for version, known in PUBLISHED.items() if known == config), "no published RIFE")


def config_from_shapes(shape: Callable[[str], tuple[int, ...]], paths: Iterable[str]) -> IFNetConfig:
    """Returns the config of the network with such parameters.

    Args:
      shape: of the convolution at a path.
      paths: of all parameters.
    """
    numbers = {int(found[1]) for path in paths if (found := re.match(r"block(\d+)/", path))}
    layers = {int(found[1]) for path in paths if (found := re.match(r"block0/convblock_(\d+)/", path))}
    names = {found[1] for path in paths if (found := re.match(r"encode/(\w+)/kernel", path))}
    head = tuple(sorted(names, key=lambda name: int(re.sub(r"\D", "", name) or 0)))
    width, features = (shape(f"encode/{head[0]}/kernel")[3], shape(f"encode/{head[-1]}/kernel")[3]) if head else (0, 0)
    widths = tuple(shape(f"block{number}/conv0_1/kernel")[3] for number in range(len(numbers)))
    if len(widths) not in SCALES:
        raise InputError(f"An IFNet of {len(widths)} blocks; those that are read have {' or '.join(map(str, (4, 5)))}.")
    return IFNetConfig(
        widths=widths,
        scales=SCALES.get(widths, SCALES[len(widths)]),
        layers=len(layers),
        groups=widths[0] // shape("block0/convblock_0/kernel")[2],
        outputs=shape("block0/lastconv/kernel")[3] // 4,
        carried=shape("block1/conv0_0/kernel")[2] - OWN - 2 * features,
        head=head,
        head_width=width,
        features=features,
    )


class IFNet(nn.Module):
    """Frames between two frames."""

    config: IFNetConfig

    @nn.compact
    def __call__(
        self,
        first: Float[Array, "n h w 3"],
        second: Float[Array, "n h w 3"],
        times: Float[Array, " n"],
        scale: float = 1.0,
    ) -> Float[Array, "n h w 3"]:
        """Makes one frame of each pair.

        Args:
          first, second: frames, sides multiples of `config.multiple(scale)`.
          times: where the wanted frame lies between them, in (0, 1).
          scale: of `SPEEDS`.

        Raises:
          InputError: frames of different or other sizes.
        """
        c = self.config
        check_sizes(c, first, second, scale)
        frames = [jnp.clip(jnp.asarray(frame, jnp.float32), 0, 1) for frame in (first, second)]
        time = jnp.broadcast_to(jnp.asarray(times, jnp.float32)[:, None, None, None], (*first.shape[:3], 1))
        given = frames
        if c.head:
            head = Head(c, name="encode")
            given = [jnp.concatenate([frame, head(frame)], -1) for frame in frames]

        seen, beside, flow, mask = given, [time], None, 0.0
        for number, (width, smaller) in enumerate(zip(c.widths, c.scales)):
            block = Block(width, smaller / scale, c, name=f"block{number}")
            seen = [seen[0][..., :3], seen[1][..., :3], seen[0][..., 3:], seen[1][..., 3:]]
            change, found, told = block(jnp.concatenate([*seen, *beside], -1), flow)
            flow = change if flow is None else flow + change
            mask = found if c.head else mask + found  # 4.5 and 4.6 correct it, as they do the flow
            beside = [time, mask, told]
            if number == len(c.widths) - 1:
                given = frames
            seen = [warp(given[0], flow[..., :2]), warp(given[1], flow[..., 2:])]
        trust = nn.sigmoid(mask)
        return trust * seen[0] + (1 - trust) * seen[1]


def check_sizes(c: IFNetConfig, first: Array, second: Array, scale: float) -> None:
    """Raises InputError for frames that the network cannot take."""
    height, width = first.shape[1:3]
    if first.shape != second.shape or height % c.multiple(scale) or width % c.multiple(scale):
        raise InputError(
            f"IFNet was given frames of shapes {first.shape} and {second.shape}; wanted two of one shape, sides "
            f"multiples of {c.multiple(scale)}. Pad them."
        )


class Head(nn.Module):
    """A frame's features, of its own size."""

    config: IFNetConfig

    @nn.compact
    def __call__(self, x: Float[Array, "n h w 3"]) -> Float[Array, "n h w d"]:
        c = self.config
        for number, name in enumerate(c.head[:-1]):
            x = _conv(c, c.head_width, 1 if number else 2, name)(x)
            if len(c.head) > 2:
                x = nn.leaky_relu(x, SLOPE)
        return jnp.asarray(Doubling(c.features, c, name=c.head[-1])(x), jnp.float32)


class Block(nn.Module):
    """Corrects flow and mask by the frames as these are warped so far, all made `smaller` first."""

    width: int
    smaller: float
    config: IFNetConfig

    @nn.compact
    def __call__(
        self, x: Float[Array, "n h w i"], flow: Float[Array, "n h w 4"] | None
    ) -> tuple[Float[Array, "n h w 4"], Float[Array, "n h w 1"], Float[Array, "n h w k"]]:
        """Returns what to add to the flow, the mask before its sigmoid, and what is told the next block."""
        c = self.config
        x = resized(x, self.smaller)
        if flow is not None:
            x = jnp.concatenate([x, resized(flow, self.smaller) / self.smaller], -1)
        x = nn.leaky_relu(_conv(c, self.width // 2, 2, "conv0_0")(x), SLOPE)
        x = nn.leaky_relu(_conv(c, self.width, 2, "conv0_1")(x), SLOPE)
        for number in range(c.layers):
            x = ResidualConv(c, name=f"convblock_{number}")(x)
        x = shuffled(Doubling(4 * c.outputs, c, name="lastconv")(x), 2)
        x = resized(jnp.asarray(x, jnp.float32), 1 / self.smaller)
        return self.smaller * x[..., :FLOW], x[..., FLOW : FLOW + MASK], x[..., c.outputs - c.carried :]


class ResidualConv(nn.Module):
    """A convolution with a learned strength of each channel, added to what it sees."""

    config: IFNetConfig

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h w c"]:
        c, channels = self.config, x.shape[-1]
        shape = (3, 3, channels // c.groups, channels)
        kernel = parameter(self, "kernel", nn.initializers.he_normal(), shape, c.param_dtype)
        bias = parameter(self, "bias", nn.initializers.zeros_init(), (channels,), c.param_dtype)
        beta = parameter(self, "beta", nn.initializers.ones_init(), (channels,), c.param_dtype)
        parts = zip(jnp.split(x, c.groups, -1), jnp.split(jnp.asarray(kernel, c.dtype), c.groups, -1))
        y = jnp.concatenate([conv3x3(part, own, implementation=c.convolution) for part, own in parts], -1)
        return nn.leaky_relu((y + jnp.asarray(bias, c.dtype)) * jnp.asarray(beta, c.dtype) + x, SLOPE)


class Doubling(nn.Module):
    """A transposed convolution of 4x4 at stride 2, which doubles the sides."""

    features: int
    config: IFNetConfig

    @nn.compact
    def __call__(self, x: Float[Array, "n h w i"]) -> Float[Array, "n H W o"]:
        c = self.config
        shape = (4, 4, x.shape[-1], self.features)
        kernel = parameter(self, "kernel", nn.initializers.he_normal(), shape, c.param_dtype)
        bias = parameter(self, "bias", nn.initializers.zeros_init(), shape[-1:], c.param_dtype)
        return doubled(jnp.asarray(x, c.dtype), jnp.asarray(kernel, c.dtype)) + jnp.asarray(bias, c.dtype)


def _conv(c: IFNetConfig, features: int, stride: int, name: str) -> Conv:
    options = dict(implementation=c.convolution, dtype=c.dtype, param_dtype=c.param_dtype, name=name)
    return Conv(features, stride, **options)


def doubled(x: Float[Array, "n h w i"], kernel: Float[Array, "4 4 i o"]) -> Float[Array, "n H W o"]:
    """A transposed convolution at stride 2, one pixel cut at each edge (PyTorch's `ConvTranspose2d(i, o, 4, 2, 1)`).

    Of each new pixel, by its place in a square of two, a convolution of 2x2: all four at once, shifted by a pixel.
    """
    n, height, width, channels = x.shape
    taps = kernel[::-1, ::-1].reshape(2, 2, 2, 2, channels, -1)  # tap and place along height, then along width
    taps = taps.transpose(0, 2, 4, 1, 3, 5).reshape(2, 2, channels, -1)
    layout = ("NHWC", "HWIO", "NHWC")
    y = jax.lax.conv_general_dilated(x, taps, (1, 1), ((1, 1), (1, 1)), dimension_numbers=layout)
    y = y.reshape(n, height + 1, width + 1, 2, 2, -1)
    rows = jnp.stack([y[:, i : i + height, :, i] for i in (0, 1)], 2)  # n h 2 w+1 2 o
    places = jnp.stack([rows[:, :, :, j : j + width, j] for j in (0, 1)], 4)
    return places.reshape(n, 2 * height, 2 * width, -1)


def resized(x: Float[Array, "n h w c"], smaller: float) -> Float[Array, "n H W c"]:
    """Pictures made smaller by a power of two (or larger, where it is below 1), bilinear, without a filter."""
    n, height, width, channels = x.shape
    if smaller < 1:
        return jax.image.resize(x, (n, int(height / smaller), int(width / smaller), channels), "bilinear")
    if smaller == 1:
        return x
    side = int(smaller)
    squares = x.reshape(n, height // side, side, width // side, side, channels)
    middle = slice(side // 2 - 1, side // 2 + 1)
    return squares[:, :, middle, :, middle].mean((2, 4))


def warp(x: Float[Array, "n h w c"], flow: Float[Array, "n h w 2"]) -> Float[Array, "n h w c"]:
    """Pictures seen through a flow: each pixel is what lies where the flow leads, bilinear; edges go on for ever."""
    return jax.vmap(_warp)(x, flow)


def _warp(x, flow):
    height, width = x.shape[:2]
    right = jnp.clip(jnp.arange(width) + flow[..., 0], 0, width - 1)
    down = jnp.clip(jnp.arange(height)[:, None] + flow[..., 1], 0, height - 1)
    left, top = jnp.floor(right).astype(jnp.int32), jnp.floor(down).astype(jnp.int32)
    beside, below = jnp.minimum(left + 1, width - 1), jnp.minimum(top + 1, height - 1)
    across, along = (right - left)[..., None], (down - top)[..., None]
    upper = (1 - across) * x[top, left] + across * x[top, beside]
    lower = (1 - across) * x[below, left] + across * x[below, beside]
    return (1 - along) * upper + along * lower


@functools.partial(jax.jit, static_argnums=(0, 5))
def between(
    config: IFNetConfig,
    parameters: Any,
    first: Float[Array, "n h w 3"],
    second: Float[Array, "n h w 3"],
    times: Float[Array, " n"],
    scale: float = 1.0,
) -> Float[Array, "n h w 3"]:
    """Frames between pairs of frames of any size, whose edges go on to the next multiple; see `IFNet`."""
    height, width = first.shape[1:3]
    missing = [(0, -side % config.multiple(scale)) for side in (height, width)]
    pair = [jnp.pad(frame, ((0, 0), *missing, (0, 0)), "edge") for frame in (first, second)]
    return IFNet(config).apply({"params": parameters}, *pair, times, scale)[:, :height, :width]
