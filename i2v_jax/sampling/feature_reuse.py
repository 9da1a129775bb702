"""DeepCache (Ma et al. 2024): only every N-th step runs the whole UNet, the others its finest level alone.

What the coarser levels hand up to the finest changes slowly from step to step, so that of the last whole step serves.
Steps of few-step models are too far apart for that.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax

from i2v_jax.models.unet import DEEP, UNet, UNetConfig

Step = Callable[..., tuple[Any, Any]]


class Keeping:
    """Stands for a UNet in a step that is traced: as it is called, it keeps what its finest level was handed."""

    features = None

    def __call__(self, config: UNetConfig) -> "Keeping":
        self.unet = UNet(config)
        return self

    def apply(self, variables: Mapping[str, Any], *given: Any) -> Any:
        prediction, kept = self.unet.apply(variables, *given, mutable=[DEEP])
        (self.features,) = kept[DEEP]["features"]
        return prediction


class Given:
    """Stands for a UNet that runs its finest level alone, handed these features."""

    def __init__(self, features: Any):
        self.features = features

    def __call__(self, config: UNetConfig) -> "Given":
        self.unet = UNet(config)
        return self

    def apply(self, variables: Mapping[str, Any], *given: Any) -> Any:
        return self.unet.apply(variables, *given, deep=self.features)


class Steps:
    """The two programs of a run that reuses features."""

    def __init__(self, step: Step, every: int, out_shardings: tuple[Any, Any]):
        """Args:
        step: `denoiser.sampling_step` with all but (parameters, state, ...) and `network` given.
        every: steps from one that runs the whole UNet to the next.
        out_shardings: of what `step` returns.
        """

        def whole(parameters, state, *given):
            unet = Keeping()
            return *step(parameters, state, *given, network=unet), unet.features

        def finest(features, parameters, state, *given):
            return step(parameters, state, *given, network=Given(features))

        self.every = every
        self.whole = jax.jit(whole, donate_argnums=1, out_shardings=(*out_shardings, None))
        self.finest = jax.jit(finest, donate_argnums=2, out_shardings=out_shardings)

    def of_run(self) -> Step:
        """Returns the steps of one run, to be called in their order as one program would be."""
        return functools.partial(self._step, {"taken": 0})

    def _step(self, kept: dict[str, Any], *given: Any) -> tuple[Any, Any]:
        if kept["taken"] % self.every:
            state, finite = self.finest(kept["features"], *given)
        else:
            state, finite, kept["features"] = self.whole(*given)
        kept["taken"] += 1
        return state, finite
