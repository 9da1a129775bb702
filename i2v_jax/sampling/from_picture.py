"""What models whose UNet takes the picture itself (PIA, DynamiCrafter) want of a run beside what all others do.

Both sample frame 1 like the others. DynamiCrafter's frames begin as noise alone, and the picture's latents stand in all
of them, or two pictures' in the first and the last (interpolation, loops).
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from i2v_jax.diffusion.ldm_ddim import analytic_initial
from i2v_jax.diffusion.samplers import OPTIONS, SamplerState
from i2v_jax.encoders import image_tokens, picture_input
from i2v_jax.errors import InputError
from i2v_jax.families.model import Model
from i2v_jax.media import Picture, clip_pixels, fit_picture, load_picture, stretched_clip_pixels
from i2v_jax.models.conditions import Conditions
from i2v_jax.weights.storage.open import open_tensors

OF_FAMILY = ("fs", "loop", "last_picture", "analytic_init", "image_guidance_scale")
"""Settings of DynamiCrafter alone."""
OF_OTHERS = dict(t0=1.0, adapter_scale=1.0, image_token_scale=1.0, motion_scale=0, deep_cache_every=1)
"""Settings that DynamiCrafter has not, and their defaults."""
EXAMPLE = "configs/sample/dynamicrafter.py"


def check(settings: Any, model: Model) -> None:
    """Raises InputError for settings that a model of this kind, or one of another, cannot heed."""
    if settings.free_init.runs > 1 and model.takes_picture:
        raise InputError(
            f"free_init.iterations={settings.free_init.iterations}: FreeInit is not built for models that sample frame "
            "1 too (PIA, DynamiCrafter). Leave it out, or give another model."
        )
    if settings.motion_scale and not model.has_motion_scale:
        raise InputError(
            f"motion_scale={settings.motion_scale} is of PIA's motion modules, and the model has others. Leave it out, "
            "or give weights.motion=openmmlab/PIA-condition-adapter."
        )
    if not model.family.has_picture:
        if given := [name for name in OF_FAMILY if getattr(settings, name)]:
            more = " Loops of others: configs/sample/long.py:loop, docs/longer.md." if "loop" in given else ""
            raise InputError(
                f"{', '.join(given)}: of DynamiCrafter ({EXAMPLE}), and the model is another. Leave it out.{more}"
            )
        return
    for name, default in OF_OTHERS.items():
        if getattr(settings, name) != default:
            raise InputError(
                f"{name}={getattr(settings, name)}: DynamiCrafter has no such setting; leave it {default}."
            )
    prompts = settings.image_prompts
    if prompts.pictures or prompts.weights or prompts.has_face:
        raise InputError("image_prompts: DynamiCrafter's image tokens are of the animated picture. Leave them out.")
    if settings.loop and settings.last_picture:
        raise InputError(
            f"loop, and last_picture={settings.last_picture!r}: a loop ends in its first picture. Give one."
        )
    if settings.frames != model.max_frames:
        raise InputError(
            f"frames={settings.frames}: this model's image projection makes tokens for {model.max_frames} frames, no "
            "more and no fewer."
        )
    if model.configs["unet"].image_scale and model.schedule.prediction_type != "epsilon":
        raise InputError(
            "The image tokens of this model have learned strengths: it is DynamiCrafter for 256x256, which predicts "
            f"epsilon of plain betas; noise_schedule.prediction_type={model.schedule.prediction_type!r} is of the "
            f"others. Take {EXAMPLE}:256."
        )


def check_values(settings: Any) -> None:
    """Raises InputError for values that no model takes, and files that cannot be read."""
    if settings.fs < 0:
        raise InputError(f"fs={settings.fs}: wanted 1 or more, or 0 for the model's own default.")
    if settings.last_picture:
        load_picture(settings.last_picture)
    if settings.analytic_init:
        statistics(settings.analytic_init)


def clip_input(model: Model, picture: Picture, settings: Any) -> Float[Any, "size size 3"]:
    """Returns a picture as the model's image encoder takes it."""
    size = model.configs["image_encoder"].image_size
    if not model.family.has_picture:
        return clip_pixels(picture, size)
    return stretched_clip_pixels(fit_picture(picture, settings.height, settings.width, settings.fit), size)


def conditions(model: Model, made: Conditions, settings: Any) -> Conditions:
    """Returns the conditions of one side of guidance; for DynamiCrafter image tokens by frame, and the frame rate."""
    if not model.family.has_picture:
        return made
    tokens, rate = image_tokens.by_frame(made.image_tokens[:, 0]), settings.fs or model.configs["unet"].default_fs
    return made._replace(image_tokens=tokens, fs=jnp.full((tokens.shape[0], 1), rate, jnp.float32))


def sides(unconditional: Conditions, conditional: Conditions, settings: Any) -> tuple[Conditions, ...]:
    """Returns the sides of guidance; with `image_guidance_scale` one between them, which has the picture alone."""
    if not settings.image_guidance_scale:
        return unconditional, conditional
    return unconditional, unconditional._replace(image_tokens=conditional.image_tokens), conditional


def strengths(settings: Any) -> dict[str, float]:
    """Returns the strength of guidance by the picture, where that is apart."""
    return dict(image_guidance_scale=settings.image_guidance_scale) if settings.image_guidance_scale else {}


def with_picture(
    model: Model,
    given: Conditions,
    first_frame: Float[Array, "n 1 h w c"],
    last_frame: Float[Array, "n 1 h w c"] | None,
    settings: Any,
) -> Conditions:
    """Returns conditions, of both sides of guidance, with what the first layer takes of the pictures."""
    if model.family.has_picture:
        picture = picture_input.in_frames(first_frame, settings.frames, last_frame)
    else:
        picture = picture_input.encode(first_frame, settings.frames, settings.motion_scale)
    sides = given.text.shape[0] // picture.shape[0]
    return given._replace(image_latents=jnp.tile(picture, (sides, 1, 1, 1, 1)))


def statistics(file: str) -> tuple[Float[Any, "*video"], Float[Any, ""]]:
    """Reads the statistics of clean latents that a run may start from (Analytic-Init), channels last.

    Raises:
      InputError: the file cannot be read or holds something else.
    """
    tensors = open_tensors(file)
    if missing := [name for name in ("Expectation_X0", "Tr_Cov_d") if name not in tensors]:
        raise InputError(
            f"analytic_init: {file} holds no {', '.join(missing)}. Wanted a file such as "
            "GraceZhao/DynamiCrafter-Analytic-Init/initial_noise_512.pt."
        )
    mean, spread = (tensors.entries[name].read().astype("float32") for name in ("Expectation_X0", "Tr_Cov_d"))
    if mean.ndim not in (4, 5) or spread.size != 1:
        raise InputError(
            f"analytic_init: {file} has shapes {mean.shape} and {spread.shape}; wanted [channels, frames, height, "
            "width] and one number."
        )
    return mean.reshape(mean.shape[-4:]).transpose(1, 2, 3, 0), spread.reshape(())


def last_pictures(pictures: Sequence[Picture], settings: Any) -> list[Picture] | None:
    """Returns what last frames show, a picture for each video; None where they are free."""
    if settings.last_picture:
        return [load_picture(settings.last_picture)] * len(pictures)
    return list(pictures) if settings.loop else None


def begun(model: Model, state: SamplerState, settings: Any) -> SamplerState:
    """Returns what a run begins with: what is given, or that noise about the mean of many videos.

    Raises:
      InputError: the statistics are of another size.
    """
    if not settings.analytic_init:
        return state
    noise = state.latents
    noisiest = dict(settings.sampler_options).get("noisiest", OPTIONS["noisiest"])
    mean, spread = statistics(settings.analytic_init)
    if mean.shape != noise.shape[1:]:
        raise InputError(
            f"analytic_init: {settings.analytic_init} is of latents [frames, height, width, channels] = "
            f"{list(mean.shape)}, and this run's are {list(noise.shape[1:])}."
        )
    return state._replace(latents=analytic_initial(model.schedule, noisiest, mean, spread, noise))
