"""The optimizer by its settings: AdamW (paper section 4.1) with a learning-rate schedule and clipping, from optax."""

import dataclasses

import optax

from i2v_jax.errors import InputError, nearest

SCHEDULES = ("constant", "cosine", "linear")


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """Settings of the optimizer; the defaults are the paper's fixed rate, and PyTorch's AdamW for the rest.

    Attributes:
      learning_rate: the highest one.
      schedule: after the warm-up: "constant", or "cosine" or "linear" down to `final_share` of the rate.
      warmup_steps: steps of linear growth from 0.
      final_share: of the learning rate, at the last step of a falling schedule.
      b1, b2, epsilon: of Adam (Kingma & Ba 2015).
      weight_decay: decoupled (Loshchilov & Hutter 2019), times the learning rate.
      clip_norm: bound of the gradient's global norm; None: unbounded.
    """

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
        if self.schedule not in SCHEDULES:
            raise InputError(
                f"schedule={self.schedule!r}; known: {', '.join(SCHEDULES)}.{nearest(self.schedule, SCHEDULES)}"
            )
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
        adamw = optax.adamw(self.rate(steps), self.b1, self.b2, self.epsilon, weight_decay=self.weight_decay)
        # with or without clipping the state is built alike, so that a run can go on with it
        clip = optax.identity() if self.clip_norm is None else optax.clip_by_global_norm(self.clip_norm)
        return optax.chain(clip, adamw)
