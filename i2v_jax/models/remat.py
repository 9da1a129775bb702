"""What a backward pass keeps of a layer's activations, and what it makes again: less memory for more arithmetic."""

import math
from typing import Any

import flax.linen as nn
import jax

from i2v_jax.errors import InputError


def remat(module: type[nn.Module], choice: str) -> type[nn.Module]:
    """Wraps a module so that its backward pass keeps what `UNetConfig.remat` says, and makes the rest again."""
    if choice == "none":
        return module
    policy = REMAT[choice] if choice in REMAT else getattr(jax.checkpoint_policies, choice, None)
    if policy is None and choice not in REMAT:
        raise InputError(
            f"Unknown remat {choice!r}; known: none, {', '.join(REMAT)}, or a name in jax.checkpoint_policies."
        )
    return nn.remat(module, policy=policy)


def save_products(primitive: Any, *inputs: Any, **parameters: Any) -> bool:
    """A checkpoint policy: keeps products, convolutions and attention, but not a product much wider than its input.

    What lies between them is cheap to make again: norms, activations, sums. So is, for the memory it takes, the wide
    middle of a feed-forward.
    """
    if primitive.name == "dot_general":
        (contracted, _), _ = parameters["dimension_numbers"]
        taken = math.prod(inputs[0].shape[axis] for axis in contracted)
        return inputs[1].size <= 4 * taken * taken
    return primitive.name in ("conv_general_dilated", "pallas_call")


REMAT = {"full": None, "products": save_products}
