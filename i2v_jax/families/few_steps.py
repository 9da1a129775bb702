"""Models distilled to a few steps (LCM, Turbo, Lightning, Hyper-SD, ...): each wants its own sampler, number of steps,
guidance, so a run is warned. Only names, metadata and settings tell them from the models they were distilled from; all
may mislead, so it is no error.
"""

import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from i2v_jax.diffusion.noise_schedule import NoiseSchedule
from i2v_jax.families.weights import Weights
from i2v_jax.hub import local
from i2v_jax.weights.storage.open import open_tensors

OWN_TIMESTEPS = ("lcm", "tcd")
"""Samplers that no spacing is chosen for."""
NAMED_STEPS = re.compile(r"(?<!\d)(\d+)[-_ ]?steps?(?![a-z])")
NAMES = ("modelspec.title", "ss_output_name")
"""Keys of a file's metadata under which tools keep the name that its maker gave it."""


class FewSteps(NamedTuple):
    """A sort of model that was distilled to sample in a few steps.

    Attributes:
      title: what messages call it.
      names: what file names of such models have in them.
      samplers: that suit it.
      advice: the settings that its makers name.
      trailing: whether its timesteps are spread so (where the sampler has the choice).
      steps: the fewest and the most.
      as_named: whether the number of steps that a name says is the one to take.
      also: (number in the name, number of steps) that its makers find good too.
      guidance: the lowest and the highest guidance_scale; merges of other makers want a little more than 1.
      kind: of the noise schedule, "" for any.
      prediction_type: of the noise schedule, "" for any.
      timesteps: where it starts otherwise than at the last one.
      lora: what the name of a LoRA has in it that is to be there too.
    """

    title: str
    names: re.Pattern
    samplers: tuple[str, ...]
    advice: str
    trailing: bool = False
    steps: tuple[int, int] = (1, 8)
    as_named: bool = True
    also: tuple[int, int] | None = None
    guidance: tuple[float, float] = (0.0, 2.0)
    kind: str = ""
    prediction_type: str = ""
    timesteps: tuple[int, ...] = ()
    lora: re.Pattern | None = None


_TRAILING = "sampler_options.spacing=trailing"
_AS_NAMED = "as many steps as its name says"
_ANIMATE_LCM = re.compile(r"animate[-_ ]?lcm")
ANIMATE_LCM = FewSteps(
    "model of AnimateLCM",
    _ANIMATE_LCM,
    ("lcm",),
    "sampler=lcm, steps=4 to 8, guidance_scale=1 to 2, noise_schedule.kind=linear, and both its motion modules and its "
    "LoRA: weights.loras=('wangfuyun/AnimateLCM/AnimateLCM_sd15_t2v_lora.safetensors=0.8',)",
    kind="linear",
    lora=_ANIMATE_LCM,
)
ANIMATEDIFF_LIGHTNING = FewSteps(
    "model of AnimateDiff-Lightning",
    re.compile(r"animatediff[-_ ]?lightning"),
    ("euler", "euler_ancestral", "dpmpp_2m"),
    f"sampler=euler, {_TRAILING}, {_AS_NAMED} (3 for that of 2, too), guidance_scale=1, noise_schedule.kind=linear",
    trailing=True,
    also=(2, 3),
    kind="linear",
)
LCM = FewSteps(
    "latent consistency model (LCM)",
    re.compile(r"(?<![a-z])lcm(?![a-z])|latent[-_ ]consistency"),
    ("lcm",),
    "sampler=lcm, steps=4 to 8, guidance_scale=1 to 2",
)
TCD = FewSteps(
    "trajectory consistency model (TCD)",
    re.compile(r"(?<![a-z])tcd(?![a-z])|trajectory[-_ ]consistency"),
    ("tcd",),
    "sampler=tcd, sampler_options.eta=0.3, steps=4 or more, guidance_scale=1",
    steps=(2, 50),
)
TURBO = FewSteps(
    "Turbo model",
    re.compile(r"turbo"),
    ("euler_ancestral", "euler"),
    f"sampler=euler_ancestral, {_TRAILING}, steps=1 to 4, guidance_scale=1",
    trailing=True,
)
LIGHTNING_X0 = FewSteps(
    "Lightning model of one step",
    re.compile(r"lightning.*(?<!\d)1[-_ ]?step.*x0"),
    ("euler",),
    f"sampler=euler, {_TRAILING}, steps=1, guidance_scale=1, noise_schedule.prediction_type=sample",
    trailing=True,
    prediction_type="sample",
)
LIGHTNING = FewSteps(
    "Lightning model",
    re.compile(r"lightning"),
    ("euler", "euler_ancestral", "dpmpp_2m"),
    f"sampler=euler, {_TRAILING}, {_AS_NAMED} (2, 4 or 8), guidance_scale=1",
    trailing=True,
)
_HYPER = r"(?:(?<![a-z])hyper(?![a-z])|hyper[-_ ]?sd)"
HYPER_UNET = FewSteps(
    "Hyper-SD UNet of one step",
    re.compile(_HYPER + r".*(?<!\d)1[-_ ]?step.*unet"),
    ("lcm",),
    "sampler=lcm, sampler_options.timesteps=(800,), steps=1, guidance_scale=1",
    timesteps=(800,),
)
HYPER_UNIFIED = FewSteps(
    "Hyper-SD model of 1 to 8 steps",
    re.compile(_HYPER + r".*(?<!\d)1[-_ ]?step"),
    ("tcd",),
    "sampler=tcd, sampler_options.eta=1 (less for more detail), steps=1 to 8, guidance_scale=1",
    as_named=False,
)
HYPER_GUIDED = FewSteps(
    "Hyper-SD model that wants guidance",
    re.compile(_HYPER + r".*(?<![a-z])cfg(?![a-z])"),
    ("ddim", "tcd", "euler"),
    f"sampler=ddim, {_TRAILING}, {_AS_NAMED}, guidance_scale=5 to 8",
    trailing=True,
    steps=(8, 12),
    guidance=(3.0, 10.0),
)
HYPER = FewSteps(
    "Hyper-SD model",
    re.compile(_HYPER),
    ("ddim", "lcm", "tcd", "euler"),
    f"sampler=ddim, {_TRAILING}, {_AS_NAMED}, guidance_scale=1",
    trailing=True,
)
FEW_STEPS = (
    *(ANIMATE_LCM, ANIMATEDIFF_LIGHTNING, LCM, TCD, TURBO, LIGHTNING_X0, LIGHTNING),
    *(HYPER_UNET, HYPER_UNIFIED, HYPER_GUIDED, HYPER),
)
"""A name is of the first sort that it fits."""


class Chosen(NamedTuple):
    """How a run is sampled; what is None is not judged.

    Attributes:
      sampler: in `diffusion.samplers.SAMPLERS`.
      spacing, timesteps: of the sampler's options.
      steps, guidance_scale, deep_cache_every: of the run.
      schedule: its noise schedule.
    """

    sampler: str
    spacing: str | None = None
    steps: int | None = None
    guidance_scale: float | None = None
    schedule: NoiseSchedule | None = None
    timesteps: tuple[int, ...] | None = None
    deep_cache_every: int = 1

    @classmethod
    def of_config(cls, config: Mapping[str, Any], schedule: NoiseSchedule) -> "Chosen":
        """Returns what a sampling config says."""
        options = config["sampler_options"]
        return cls(
            config["sampler"],
            options["spacing"],
            config["steps"],
            config["guidance_scale"],
            schedule,
            tuple(options["timesteps"]),
            config.get("deep_cache_every", 1),
        )


def sampler_warning(
    sources: Iterable[str],
    unet_settings: Mapping[str, Any] | None,
    scheduler_settings: Mapping[str, Any] | None,
    chosen: Chosen,
) -> str | None:
    """Returns what to say of a model that was distilled to a few steps and is not sampled so; None when all is well.

    Args:
      sources: names of the files, folders or hub ids that weights come from, LoRAs among them.
      unet_settings: the base's `config.json`, where it has one.
      scheduler_settings: its `scheduler_config.json`, where it has one.
      chosen: how the run is sampled.
    """
    unet_settings, scheduler_settings = unet_settings or {}, scheduler_settings or {}
    sources = [*sources, str(unet_settings.get("_name_or_path", ""))]
    known = [(source, name, sort) for source in sources for name in _names(source) if (sort := _sort_of(name))]
    for source, name, sort in known:
        found = list(_departures(sort, name, chosen))
        if sort.lora and all(_is_whole_model(other) for other, _, its in known if its is sort):
            found.append("no such LoRA")
        if found:
            return _message(sort, f"{source}: by its name this is a {sort.title}", found)
    if known:
        return None
    sort, reason = _by_settings(unet_settings, scheduler_settings) or (None, "")
    found = list(_departures(sort, "", chosen)) if sort else []
    return _message(sort, reason, found) if found else None


def warn(weights: Weights, chosen: Iterable[Chosen]) -> None:
    """Warns where a model that was distilled to a few steps is not sampled so.

    Args:
      weights: of the runs.
      chosen: how each is sampled.
    """
    settings = [weights.settings(file) for file in ("unet/config.json", "scheduler/scheduler_config.json")]
    sources = [*map(str, weights.slots().values()), *(source for source, _ in weights.styles())]
    messages = (sampler_warning(sources, *settings, each) for each in dict.fromkeys(chosen))
    for message in dict.fromkeys(messages):
        if message:
            warnings.warn(message, stacklevel=2)


def sort_of(source: str) -> FewSteps | None:
    """Returns the sort of few-step model that a source is by its name or its metadata; None: of no such sort."""
    return next((sort for name in _names(source) if (sort := _sort_of(name))), None)


def telling_name(source: str) -> str:
    """The part of a source's name that its makers gave: a file's or folder's own, or all of a hub id; lower case."""
    is_path = source.startswith(("/", ".", "~")) or "\\" in source
    return (re.split(r"[/\\]", source.rstrip("/\\"))[-1] if is_path else source).lower()


def _sort_of(name: str) -> FewSteps | None:
    return next((sort for sort in FEW_STEPS if sort.names.search(name)), None)


def _names(source: str) -> Iterator[str]:
    """What a source is called: by its path, and in the metadata of its file where that is here."""
    yield telling_name(source)
    path = local(source) if source else None
    if path and path.is_file() and path.suffix == ".safetensors":
        metadata = open_tensors(path).metadata
        yield from (metadata[key].lower() for key in NAMES if key in metadata)


def _is_whole_model(source: str) -> bool:
    return "lora" not in Path(source).name.lower()


def _by_settings(unet: Mapping[str, Any], scheduler: Mapping[str, Any]) -> tuple[FewSteps, str] | None:
    if unet.get("time_cond_proj_dim") is not None:
        return LCM, f"The UNet takes the guidance scale as an input (time_cond_proj_dim): it is a {LCM.title}"
    name = scheduler.get("_class_name", "")
    if name == "LCMScheduler":
        return LCM, f"The base's scheduler is LCMScheduler: it is a {LCM.title}"
    if name == "TCDScheduler":
        return TCD, f"The base's scheduler is TCDScheduler: it is a {TCD.title}"
    # models that predict v down to pure noise are spread so too, and are no few-step models
    plain = scheduler.get("prediction_type", "epsilon") == "epsilon" and not scheduler.get("rescale_betas_zero_snr")
    if name.startswith("Euler") and scheduler.get("timestep_spacing") == "trailing" and plain:
        return TURBO, f"The base's scheduler is {name} with trailing timesteps, as a {TURBO.title}'s"
    return None


def _departures(sort: FewSteps, name: str, chosen: Chosen) -> Iterator[str]:
    """What of a run is not as the makers of such a model have it, by the keys of a config."""
    if chosen.sampler not in sort.samplers:
        yield f"sampler={chosen.sampler}"
    spaced = chosen.spacing is not None and chosen.sampler not in OWN_TIMESTEPS
    if spaced and sort.trailing and chosen.spacing != "trailing":
        yield f"sampler_options.spacing={chosen.spacing}"
    if sort.timesteps and chosen.timesteps not in (None, sort.timesteps):
        yield f"sampler_options.timesteps={chosen.timesteps}"
    if chosen.steps is not None and not _fits(sort, name, chosen.steps):
        yield f"steps={chosen.steps}"
    if chosen.guidance_scale is not None and not sort.guidance[0] <= chosen.guidance_scale <= sort.guidance[1]:
        yield f"guidance_scale={chosen.guidance_scale:g}"
    if chosen.deep_cache_every > 1:
        yield f"deep_cache_every={chosen.deep_cache_every}"
    if chosen.schedule and sort.kind and chosen.schedule.kind != sort.kind:
        yield f"noise_schedule.kind={chosen.schedule.kind}"
    if chosen.schedule and sort.prediction_type and chosen.schedule.prediction_type != sort.prediction_type:
        yield f"noise_schedule.prediction_type={chosen.schedule.prediction_type}"


def _fits(sort: FewSteps, name: str, steps: int) -> bool:
    """Whether a number of steps is the one that a name says, or among those of its sort."""
    named = NAMED_STEPS.search(name)
    if named and sort.as_named:
        return steps == int(named[1]) or (int(named[1]), steps) == sort.also
    return sort.steps[0] <= steps <= sort.steps[1]


def _message(sort: FewSteps, reason: str, found: list[str]) -> str:
    run = f"this run has {', '.join(found)}"
    return f"{reason}, made to sample in a few steps; {run}. Its makers' settings: {sort.advice}."
