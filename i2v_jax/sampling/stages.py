"""Weights over time in a run: what each stage runs and is conditioned on."""

from collections.abc import Callable
from typing import Any

from i2v_jax.families import over_time
from i2v_jax.families.model import Model
from i2v_jax.models.conditions import Conditions

AnyConditions = Conditions | list[Conditions]
"""Of a run, or of each of its stages where weights change over time."""


def encode(pipeline: Any, *given: Any, **named: Any) -> list[Conditions]:
    """Returns the conditions of each stage of a run.

    Args:
      pipeline: of the run; what stages with the same encoders see is encoded once.
      given, named: arguments of `Pipeline.encode`.
    """
    stages, encoded = pipeline.model.over_time, []
    for number, stage in enumerate(stages):
        like = next(i for i in range(number + 1) if over_time.same_encoders(stages[i].parameters, stage.parameters))
        encoded.append(encoded[like] if like < number else pipeline.of_stage(number).encode(*given, **named))
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
