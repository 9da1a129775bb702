"""FreeInit (Wu et al. 2023): a run begins again from what it made, noised, with the high frequencies of fresh noise.

A noise of video that is drawn element by element lacks what low frequencies a network saw in training, where noised
clips keep some of their content; those that a finished run has, replace them. Filters are over frames, height, width.
"""

import warnings
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from i2v_jax.diffusion.frame_similarity_prior import degrade
from i2v_jax.diffusion.samplers import Sampler
from i2v_jax.errors import InputError, check_known

FILTERS = ("butterworth", "gaussian", "ideal", "box")


@dataclass(frozen=True)
class FreeInit:
    """Settings of FreeInit; hashable. The defaults but for `iterations` are those of the paper and of diffusers.

    Attributes:
        iterations: how many times a run is made, each but the first from what the one before made; 0 or 1: once.
        filter: which frequencies count as low, one of `FILTERS`.
        order: of butterworth; larger is nearer to ideal.
        spatial, temporal: where the low frequencies end, as shares of the highest one in (0, 1]; 0 keeps none.

    Raises:
        InputError: an unknown filter, or a number out of range.
    """

    iterations: int = 0
    filter: str = "butterworth"
    order: int = 4
    spatial: float = 0.25
    temporal: float = 0.25

    def __post_init__(self):
        check_known("free_init.filter=", self.filter, FILTERS)
        for name, least in (("iterations", 0), ("order", 1)):
            if getattr(self, name) < least:
                raise InputError(f"free_init.{name}={getattr(self, name)}: wanted {least} or more.")
        for name in ("spatial", "temporal"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"free_init.{name}={getattr(self, name)}: wanted a number in [0, 1].")

    @property
    def runs(self) -> int:
        """How many times a run is made."""
        return max(1, self.iterations)


def low_pass(settings: FreeInit, shape: tuple[int, int, int]) -> Float[np.ndarray, "f h w"]:
    """What is kept of each frequency, in [0, 1], float32.

    Args:
        settings: which filter, and where it ends. The formulas are those of the published code; "ideal" is as in
            diffusers, where frequencies up to a distance of sqrt(2 spatial) are low.
        shape: frames, height and width of the latents. Frequency 0 is in the middle, at size // 2 of each axis; where a
            size is odd, the published formula lies half a frequency beside it.
    """
    if not settings.spatial or not settings.temporal:
        return np.zeros(shape, np.float32)
    if settings.filter == "box":
        ends = (settings.temporal, settings.spatial, settings.spatial)
        inside = [_around_the_middle(size, round(size // 2 * end)) for size, end in zip(shape, ends)]
        return np.einsum("f,h,w->fhw", *inside).astype(np.float32)
    frames, height, width = (2 * np.arange(size) / size - 1 for size in shape)
    frames = frames * settings.spatial / settings.temporal
    distance = frames[:, None, None] ** 2 + height[:, None] ** 2 + width**2  # squared
    if settings.filter == "butterworth":
        kept = 1 / (1 + (distance / settings.spatial**2) ** settings.order)
    elif settings.filter == "gaussian":
        kept = np.exp(-distance / (2 * settings.spatial**2))
    else:
        kept = distance <= 2 * settings.spatial
    return kept.astype(np.float32)


def warn_if_nothing_is_kept(settings: FreeInit, shape: tuple[int, int, int]) -> None:
    """Warns where a filter keeps less than half of frequency 0, as of few frames: then each run begins anew.

    Args:
        settings, shape: as of `low_pass`.
    """
    frames, height, width = shape
    kept = low_pass(settings, shape)[frames // 2, height // 2, width // 2]
    if kept < 0.5:
        warnings.warn(
            f"free_init.filter={settings.filter!r} keeps {kept:.0%} of the lowest frequency of {frames} frames, with "
            f"spatial={settings.spatial} and temporal={settings.temporal}: every run all but begins from noise alone. "
            "Give more frames, larger free_init.temporal, or free_init.iterations=0.",
            stacklevel=4,
        )


def mix(
    low: Float[Array, "*b f h w c"], high: Float[Array, "*b f h w c"], kept: Float[np.ndarray, "f h w"]
) -> Float[Array, "*b f h w c"]:
    """Low frequencies of one video with the high ones of another, float32.

    Args:
        low, high: latents.
        kept: from `low_pass`.
    """
    axes = (-4, -3, -2)
    low, high = (jnp.fft.fftn(jnp.asarray(x, jnp.float32), axes=axes) for x in (low, high))
    kept = np.fft.ifftshift(kept)[..., None]
    return jnp.fft.ifftn(low * kept + high * (1 - kept), axes=axes).real.astype(jnp.float32)


def begin_again(
    made: Float[Array, "b f h w c"],
    noise: Float[Array, "b f h w c"],
    first_frame: Float[Array, "b 1 h w c"],
    mask: Bool[Array, "b f h w c"],
    fresh: Float[Array, "b f h w c"],
    sampler: Sampler,
    start_index: int,
    settings: FreeInit,
) -> Float[Array, "b f h w c"]:
    """The latents that the next run starts from.

    Low frequencies are those of what was made, noised to the level of the run's first step with the noise of the first
    run; high ones are those that a run of the Frame Similarity Prior starts from with fresh noise: so a prior of any
    strength t0 or mask keeps its share of the picture. The first frame, clean in both videos, takes part in the
    frequencies noised like the others, so that they agree with it; the sampler that holds it then pins it clean again.

    Args:
        made: clean latents of the run before.
        noise: standard Gaussian noise that the first run began with.
        first_frame, mask, sampler, start_index: of the prior, as of `frame_similarity_prior.initial_latents`.
        fresh: standard Gaussian noise, another at each run.
        settings: of the filter.

    Returns:
        Latents in the sampler's own scaling, float32; frame 1 too, until it is held.
    """
    low = sampler.add_noise(made, noise, start_index)
    high = sampler.add_noise(degrade(first_frame, mask), fresh, start_index)
    return mix(low, high, low_pass(settings, made.shape[-4:-1]))


def _around_the_middle(size: int, reach: int) -> Float[np.ndarray, "size"]:
    inside = np.zeros(size)
    inside[size // 2 - reach : size // 2 + reach] = 1
    return inside
