"""A second pass at a larger size: what a run has made is enlarged, noised in part, and denoised again from there.

Web UIs call it "hires fix". The picture is encoded at the larger size, and models that hold frame 1 hold it there, so
that the first frame stays the picture. The Frame Similarity Prior is of the first pass alone.
"""

import functools
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from i2v_jax.devices.mesh import AXES, use_mesh
from i2v_jax.diffusion.free_init import FreeInit
from i2v_jax.encoders.latents import moments
from i2v_jax.errors import InputError
from i2v_jax.finishing import upscale
from i2v_jax.hub import local
from i2v_jax.media import Picture, fit_picture, to_model_range
from i2v_jax.models.vae import VAEConfig
from i2v_jax.sampling.watch import Watch

LATENTS = "latents"
LARGEST = 8  # by how much a video is enlarged
TILE, OVERLAP = 256, 16  # of an upscaler, pixels


@dataclass(frozen=True)
class SecondPass:
    """Settings of a second pass; hashable.

    Attributes:
      scale: by how much longer the sides are that it is made at; 1: there is none.
      strength: share of the noise that it begins from, in (0, 1], as `t0` counts it; 1 runs every step.
      steps: sampling steps of a whole run, of which it takes those that `strength` leaves; 0: the first pass's.
      by: how the first pass is enlarged: "lanczos", or weights of an upscaler (a file or a hub id), both decoded;
        "latents": bilinear, as they are.
      under_way: whether these are the settings of the second pass itself.

    Raises:
      InputError: a number out of range.
    """

    scale: float = 1.0
    strength: float = 0.5
    steps: int = 0
    by: str = upscale.LANCZOS
    under_way: bool = False

    def __post_init__(self):
        if not 1 <= self.scale <= LARGEST:
            raise InputError(f"second_pass.scale={self.scale}: wanted 1 (no second pass) to {LARGEST}.")
        if not 0 < self.strength <= 1:
            raise InputError(f"second_pass.strength={self.strength}: wanted a number in (0, 1].")
        if self.steps < 0:
            raise InputError(f"second_pass.steps={self.steps}: wanted 1 or more, or 0 for the first pass's.")

    @property
    def weights(self) -> str:
        """Weights of the upscaler; "" where there is none."""
        return "" if self.scale == 1 or self.by in (LATENTS, upscale.LANCZOS) else self.by


def files(settings: Mapping[str, Any]) -> list[Path]:
    """Returns the files that the settings of a config's second pass name."""
    found = local(weights) if (weights := SecondPass(**settings).weights) else None
    return [found] if found and found.is_file() else []


def passes(settings: Any) -> list[Any]:
    """Returns the settings of a run's passes, one or two; see `sampling.settings.Settings`."""
    chosen = settings.second_pass
    if chosen.scale == 1 or chosen.under_way:
        return [settings]
    second = replace(
        settings,
        height=round(settings.height * chosen.scale),
        width=round(settings.width * chosen.scale),
        steps=chosen.steps or settings.steps,
        free_init=FreeInit(),
        analytic_init="",
        second_pass=replace(chosen, under_way=True),
    )
    return [settings, second]


def check(settings: Any, factor: int) -> None:
    """Raises InputError for sizes that a VAE which makes sides shorter by `factor` does not take, or a bad upscaler."""
    scale, sides = settings.second_pass.scale, (settings.height, settings.width)
    if any(not _is_whole(side * scale / factor) for side in sides):
        parts = math.gcd(*sides) // factor  # with scales of n / parts both sides come out even
        near = max(parts + 1, round(scale * parts)) / parts
        larger = "x".join(f"{side * scale:g}" for side in sides)
        raise InputError(
            f"second_pass.scale={scale} makes {sides[0]}x{sides[1]} {larger}: wanted multiples of {factor}, as "
            f"second_pass.scale={near:.6g} gives."
        )
    if settings.second_pass.weights:
        upscaler(settings.second_pass.weights)


def _is_whole(number: float) -> bool:
    return abs(number - round(number)) < 1e-3


@functools.cache
def upscaler(weights: str) -> upscale.Enlarge:
    """Returns what enlarges a frame by an upscaler; its weights are loaded once."""
    return upscale.of_name(weights, TILE, OVERLAP, 2)[1]


def run(pipeline: Any, settings: Any, watch: Watch, one_pass: Callable[..., Any]) -> Float[Array, "n f h w c"]:
    """Returns what the last pass of a run makes.

    Args:
      pipeline: of the run.
      settings: of the run.
      watch: whose steps are counted over all passes.
      one_pass: makes one, of its settings, its watch and the latents that it begins from, None for the first.
    """
    made, of_passes = None, settings.passes
    counts = [own.count_steps(pipeline.model) for own in of_passes]
    for number, own in enumerate(of_passes):
        if number:
            made = enlarged(pipeline, made, settings, own, watch)
        made = one_pass(own, watch.part(sum(counts[:number]), sum(counts)), made)
    return made


def enlarged(
    pipeline: Any, made: Float[Array, "n f h w c"], before: Any, settings: Any, watch: Watch
) -> Float[np.ndarray, "n f H W c"]:
    """Returns a first pass's clean latents at the second one's size.

    Args:
      pipeline: whose VAE decodes and encodes, a few frames at a time.
      made: clean latents.
      before, settings: of the two passes.
      watch: of the run.
    """
    n, frames, *_, channels = made.shape
    downscale = pipeline.model.configs["vae"].downscale
    size = settings.height, settings.width
    shape = n, frames, *(side // downscale for side in size), channels
    if settings.second_pass.by == LATENTS:
        return np.asarray(jax.image.resize(jnp.asarray(made, jnp.float32), shape, "bilinear"))
    weights = settings.second_pass.weights
    enlarge = upscaler(weights) if weights else lambda frame: frame
    shown = (frame for some in pipeline.decode_slices(made, before, watch) for frame in some)
    larger = (fit_picture(enlarge(frame), *size, "stretch") for frame in shown)
    return np.concatenate([*_encoded(pipeline, larger, settings)]).reshape(shape)


def _encoded(pipeline: Any, frames: Iterable[Picture], settings: Any) -> Iterator[Float[np.ndarray, "k h w c"]]:
    """The frames' latents, means of the posterior, a few frames at a time on each device."""
    share, frames = settings.vae_slice * pipeline.mesh.size, iter(frames)
    everywhere = jax.sharding.NamedSharding(pipeline.mesh, jax.sharding.PartitionSpec(AXES))
    while some := [to_model_range(frame) for frame in itertools.islice(frames, share)]:
        whole = np.stack([*some, *[some[-1]] * (share - len(some))])
        with use_mesh(pipeline.mesh, rules={"batch": AXES}):
            given = jax.device_put(whole, everywhere)
            found = _mean(pipeline.model.configs["vae"], pipeline.model.parameters["vae"], given)
        yield np.asarray(found)[: len(some)]


@functools.partial(jax.jit, static_argnums=0)
def _mean(config: VAEConfig, parameters: Any, pictures: Float[Array, "n H W 3"]) -> Float[Array, "n h w c"]:
    return jnp.asarray(config.scaling_factor * moments(config, parameters, pictures)[0], jnp.float32)
