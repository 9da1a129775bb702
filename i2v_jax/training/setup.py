"""From a config to a training step: loss, optimizer, and the step of both."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import optax
from jaxtyping import Array
from ml_collections import ConfigDict

from i2v_jax.data.reader import Conditioning
from i2v_jax.diffusion.noise_schedule import NoiseSchedule
from i2v_jax.errors import InputError, nearest
from i2v_jax.families.family import family_of
from i2v_jax.media import stretched_clip_pixels
from i2v_jax.models import vae
from i2v_jax.training.objective import Loss, Objective
from i2v_jax.training.optimizer import Optimizer
from i2v_jax.training.reconstruction import Reconstruction, ReconstructionLoss
from i2v_jax.training.step import make_step

LOSSES = ("denoising", "reconstruction")


class Setup(NamedTuple):
    """What a config says of the arithmetic of a run."""

    loss: Loss | ReconstructionLoss
    optimizer: optax.GradientTransformation
    step: Callable  # of `training.step.make_step`, not jitted


def check_size(config: ConfigDict, autoencoder: vae.VAEConfig) -> None:
    """Raises InputError where clips are of a size that has no latents."""
    for name in ("height", "width"):
        if (side := config.data[name]) % autoencoder.downscale:
            near = max(1, round(side / autoencoder.downscale)) * autoencoder.downscale
            raise InputError(f"data.{name}={side}: wanted a multiple of {autoencoder.downscale}, such as {near}.")


def reading(config: ConfigDict, configs: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what `data.loader.make` is to know of a model: `image_size` and, of DynamiCrafter, `conditioning`."""
    size = configs["image_encoder"].image_size if "image_encoder" in configs else None
    if not family_of(configs["unet"]).has_picture:
        return dict(image_size=size)
    is_random = config.objective.picture == "random"
    return dict(image_size=size, conditioning=Conditioning(stretched_clip_pixels, is_random, config.data.rate))


def make(
    config: ConfigDict, configs: Mapping[str, Any], empty: Mapping[str, Array], zeros: bool | None = None
) -> Setup:
    """Returns loss, optimizer and step.

    Args:
      config: of the run.
      configs: component -> its network's config.
      empty, zeros: what stands for dropped conditions, see `objective.Loss`.

    Raises:
      InputError: a setting out of range.
    """
    if config.loss not in LOSSES:
        raise InputError(f"loss={config.loss!r}; known: {', '.join(LOSSES)}.{nearest(config.loss, LOSSES)}")
    if config.loss == "reconstruction":
        loss = ReconstructionLoss(configs["vae"], Reconstruction(**config.reconstruction))
    else:
        schedule, objective = NoiseSchedule(**config.noise_schedule), Objective(**config.objective)
        loss = Loss(configs, schedule, objective, empty, zeros)
    optimizer = Optimizer(**config.optimizer).make(config.steps)
    step = make_step(loss, optimizer, accumulate=config.accumulate, average_decay=config.average_decay)
    return Setup(loss, optimizer, step)
