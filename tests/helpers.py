"""What several test files share."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from i2v_jax.models.conditions import Conditions
from tests.processes import AS_USERS


def relative_error(out, ref) -> float:
    """Returns ||out - ref|| / ||ref||, in float64."""
    out, ref = np.asarray(out, np.float64), np.asarray(ref, np.float64)
    assert out.shape == ref.shape, (out.shape, ref.shape)
    return float(np.linalg.norm(out - ref) / np.linalg.norm(ref))


def exact_jit(function, **options):
    """`jax.jit`, compiled as users' programs are: what two programs both do has the same bits in both."""
    return jax.jit(function, compiler_options=AS_USERS, **options)


def with_conditions(given: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a network's inputs with `text`, `image_tokens` and PyTorch's `added` made its conditions."""
    given = dict(given)
    added = given.pop("added", None) or {}
    tokens = given.pop("text"), given.pop("image_tokens", None)
    return given | dict(conditions=Conditions.of_videos(*tokens, added.get("text_embeds"), added.get("time_ids")))
