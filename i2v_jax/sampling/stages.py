"""Weights over time in a run: what each stage runs and is conditioned on."""

from collections.abc import Callable, Sequence
from typing import Any

from i2v_jax.families import over_time
from i2v_jax.families.model import Model
from i2v_jax.models.conditions import Conditions

AnyConditions = Conditions | list[Conditions]
"""Of a run, or of each of its stages where weights change over time."""


def encode(pipeline: Any, prompts: Sequence[str], settings: Any, **named: Any) -> list[Conditions]:
    """Returns the conditions of each stage of a run.

    Args:
      pipeline: of the run; what stages with the same encoders and prompts see is encoded once.
      prompts, settings: as of `Pipeline.encode`; with `settings.prompt_of_first_weights` all stages but the first have
        empty prompts, as EDG's published inference runs its second model.
      named: other arguments of `Pipeline.encode`.
    """
    stages, encoded = pipeline.model.over_time, []
    for number, stage in enumerate(stages):
        is_empty, first = settings.prompt_of_first_weights and number > 0, int(settings.prompt_of_first_weights)
        known = range(first, number) if is_empty else range(number)
        like = next((i for i in known if over_time.same_encoders(stages[i].parameters, stage.parameters)), None)
        if like is not None:
            encoded.append(encoded[like])
            continue
        own = named | dict(prompts=prompts, settings=settings)
        if is_empty:
            own |= {name: [""] * len(prompts) for name in ("prompts", "prompts_2") if own.get(name) is not None}
        encoded.append(pipeline.of_stage(number).encode(**own))
    return encoded


def each(function: Callable[..., Conditions], conditions: AnyConditions, *given: Any) -> AnyConditions:
    """Returns what a function makes of a run's conditions, or of those of each stage."""
    if isinstance(conditions, list):
        return [function(own, *given) for own in conditions]
    return function(conditions, *given)


def networks(model: Model, conditions: AnyConditions) -> list[tuple[dict[str, Any], Conditions]]:
    """Returns what runs in each stage, component -> parameters, and its conditions; one stage where weights stay."""
    trees = [stage.parameters for stage in model.over_time] or [model.parameters]
    conditions = conditions if isinstance(conditions, list) else [conditions] * len(trees)
    names = ("unet", *model.controls)
    return [({name: tree[name] for name in names}, told) for tree, told in zip(trees, conditions, strict=True)]
