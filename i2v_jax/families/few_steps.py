"""Models distilled to a few steps (LCM, Turbo, Lightning, Hyper-SD): they want their own sampler, so a run is warned.

Only names and settings tell them from the models they were distilled from; both may mislead, so it is no error.
"""

import re
import warnings
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from i2v_jax.families.weights import Weights


class FewSteps(NamedTuple):
    """A sort of model that was distilled to sample in a few steps.

    Attributes:
      title: what messages call it.
      names: what file names of such models have in them.
      samplers: that suit it.
      trailing: whether its timesteps are spread so (where the sampler has the choice).
      advice: the settings that its makers name.
    """

    title: str
    names: re.Pattern
    samplers: tuple[str, ...]
    trailing: bool
    advice: str


_TRAILING = "sampler_options.spacing=trailing"
LCM = FewSteps(
    "latent consistency model (LCM)",
    re.compile(r"(?<![a-z])lcm(?![a-z])|latent[-_ ]consistency"),
    ("lcm",),
    False,
    "sampler=lcm, steps=4 to 8, guidance_scale=1 to 2",
)
TURBO = FewSteps(
    "Turbo model",
    re.compile(r"turbo"),
    ("euler_ancestral", "euler"),
    True,
    f"sampler=euler_ancestral, {_TRAILING}, steps=1 to 4, guidance_scale=1",
)
LIGHTNING = FewSteps(
    "Lightning model",
    re.compile(r"lightning"),
    ("euler", "euler_ancestral", "dpmpp_2m"),
    True,
    f"sampler=euler, {_TRAILING}, as many steps as its name says (4 or 8), guidance_scale=1",
)
HYPER = FewSteps(
    "Hyper-SD model",
    re.compile(r"(?<![a-z])hyper(?![a-z])|hyper[-_ ]?sd"),
    ("ddim", "lcm", "euler"),
    True,
    f"sampler=ddim, {_TRAILING}, as many steps as its name says, guidance_scale=1",
)
FEW_STEPS = (LCM, TURBO, LIGHTNING, HYPER)


def sampler_warning(
    sources: Iterable[str],
    unet_settings: Mapping[str, Any] | None,
    scheduler_settings: Mapping[str, Any] | None,
    sampler_name: str,
    spacing: str | None = None,
) -> str | None:
    """Returns what to say of a model that was distilled to a few steps and is not sampled so; None when all is well.

    Args:
      sources: names of the files, folders or hub ids that weights come from, LoRAs among them.
      unet_settings: the base's `config.json`, where it has one.
      scheduler_settings: its `scheduler_config.json`, where it has one.
      sampler_name: in `diffusion.samplers.SAMPLERS`.
      spacing: of the run's timesteps, where that is to be judged too.
    """
    unet_settings, scheduler_settings = unet_settings or {}, scheduler_settings or {}
    for source in (*sources, str(unet_settings.get("_name_or_path", ""))):
        for sort in FEW_STEPS:
            if sort.names.search(telling_name(source)):
                return _advice(sort, f"{source}: by its name this is a {sort.title}", sampler_name, spacing)
    found = _by_settings(unet_settings, scheduler_settings)
    return found and _advice(found[0], found[1], sampler_name, spacing)


def warn(weights: Weights, sampler_name: str, spacing: str) -> None:
    """Warns where a model that was distilled to a few steps is not sampled so.

    Args:
      weights: of the run.
      sampler_name, spacing: as of `sampler_warning`.
    """
    settings = (weights.settings(file) for file in ("unet/config.json", "scheduler/scheduler_config.json"))
    message = sampler_warning(map(str, weights.slots().values()), *settings, sampler_name, spacing)
    if message:
        warnings.warn(message, stacklevel=2)


def telling_name(source: str) -> str:
    """The part of a source's name that its makers gave: a file's or folder's own, or all of a hub id; lower case."""
    is_path = source.startswith(("/", ".", "~")) or "\\" in source
    return (re.split(r"[/\\]", source.rstrip("/\\"))[-1] if is_path else source).lower()


def _by_settings(unet: Mapping[str, Any], scheduler: Mapping[str, Any]) -> tuple[FewSteps, str] | None:
    if unet.get("time_cond_proj_dim") is not None:
        return LCM, f"The UNet takes the guidance scale as an input (time_cond_proj_dim): it is a {LCM.title}"
    name = scheduler.get("_class_name", "")
    if name == "LCMScheduler":
        return LCM, f"The base's scheduler is LCMScheduler: it is a {LCM.title}"
    # models that predict v down to pure noise are spread so too, and are no few-step models
    plain = scheduler.get("prediction_type", "epsilon") == "epsilon" and not scheduler.get("rescale_betas_zero_snr")
    if name.startswith("Euler") and scheduler.get("timestep_spacing") == "trailing" and plain:
        return TURBO, f"The base's scheduler is {name} with trailing timesteps, as a {TURBO.title}'s"
    return None


def _advice(sort: FewSteps, reason: str, sampler_name: str, spacing: str | None) -> str | None:
    spread = spacing in (None, "trailing") or not sort.trailing or sampler_name == "lcm"
    if sampler_name in sort.samplers and spread:
        return None
    chosen = f"sampler={sampler_name}" + ("" if spacing is None else f", sampler_options.spacing={spacing}")
    return f"{reason}, made to sample in a few steps; this run has {chosen}. Its makers' settings: {sort.advice}."
