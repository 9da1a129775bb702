"""The optimizer by its settings: AdamW (paper section 4.1) or Muon, a rate schedule and clipping, from optax."""

import dataclasses
from typing import Any

import jax
import optax
from optax.contrib import MuonDimensionNumbers, muon

from i2v_jax.errors import InputError, nearest

KINDS = ("adamw", "muon")
SCHEDULES = ("constant", "cosine", "linear")


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """Settings of the optimizer; the defaults are the paper's fixed rate, and PyTorch's AdamW for the rest.

    Attributes:
      kind: "adamw"; or "muon" (Jordan et al. 2024), for networks trained from nothing: kernels' updates are made
        orthogonal and as large as AdamW's (Liu et al. 2025, section 2.2); all else goes by NAdamW.
      learning_rate: the highest one.
      schedule: after the warm-up: "constant", or "cosine" or "linear" down to `final_share` of the rate.
      warmup_steps: steps of linear growth from 0.
      final_share: of the learning rate, at the last step of a falling schedule.
      b1, b2, epsilon: of Adam (Kingma & Ba 2015).
      weight_decay: decoupled (Loshchilov & Hutter 2019), times the learning rate.
      clip_norm: bound of the gradient's global norm; None: unbounded.
    """

    kind: str = "adamw"
    learning_rate: float = 1e-4
    schedule: str = "constant"
    warmup_steps: int = 0
    final_share: float = 0.0
    b1: float = 0.9
    b2: float = 0.999
    epsilon: float = 1e-8
    weight_decay: float = 0.01
    clip_norm: float | None = None

    def __post_init__(self):
        for name, known in (("kind", KINDS), ("schedule", SCHEDULES)):
            if (given := getattr(self, name)) not in known:
                raise InputError(f"{name}={given!r}; known: {', '.join(known)}.{nearest(given, known)}")
        for name in ("learning_rate", "warmup_steps", "weight_decay"):
            if not getattr(self, name) >= 0:
                raise InputError(f"{name}={getattr(self, name)}: wanted 0 or more.")
        for name in ("b1", "b2", "final_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name}={getattr(self, name)}: wanted a number in [0, 1].")
        if not self.epsilon > 0:
            raise InputError(f"epsilon={self.epsilon}: wanted a number above 0.")
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise InputError(f"clip_norm={self.clip_norm}: wanted a number above 0, or None.")

    def rate(self, steps: int) -> optax.Schedule:
        """Returns the learning rate as a function of the step, of a run of `steps`."""
        if self.warmup_steps > steps:
            raise InputError(f"warmup_steps={self.warmup_steps} of a run of {steps} steps: wanted no more than that.")
        falling = max(1, steps - self.warmup_steps)
        after = {
            "constant": lambda: optax.constant_schedule(self.learning_rate),
            "cosine": lambda: optax.cosine_decay_schedule(self.learning_rate, falling, self.final_share),
            "linear": lambda: optax.linear_schedule(self.learning_rate, self.learning_rate * self.final_share, falling),
        }[self.schedule]()
        if not self.warmup_steps:
            return after
        warmup = optax.linear_schedule(0, self.learning_rate, self.warmup_steps)
        return optax.join_schedules([warmup, after], [self.warmup_steps])

    def make(self, steps: int) -> optax.GradientTransformation:
        """Returns the optimizer of a run of `steps`."""
        rate, decay = self.rate(steps), self.weight_decay
        if self.kind == "adamw":
            update = optax.adamw(rate, self.b1, self.b2, self.epsilon, weight_decay=decay)
        else:
            update = muon(
                rate,
                weight_decay=decay,
                adam_b1=self.b1,
                adam_b2=self.b2,
                adam_weight_decay=decay,
                muon_weight_dimension_numbers=_matrices,
                consistent_rms=0.2,
            )
        # with or without clipping the state is built alike, so that a run can go on with it
        clip = optax.identity() if self.clip_norm is None else optax.clip_by_global_norm(self.clip_norm)
        return optax.chain(clip, update)


def _matrices(parameters: Any) -> Any:
    """How each kernel is a matrix of inputs and outputs; None for what is no kernel."""

    def matrix(path, leaf):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if not name.endswith(("kernel", "/lora/down", "/lora/up")) or leaf.ndim < 2:
            return None
        return MuonDimensionNumbers(tuple(range(leaf.ndim - 1)), leaf.ndim - 1)

    return jax.tree_util.tree_map_with_path(matrix, parameters)
