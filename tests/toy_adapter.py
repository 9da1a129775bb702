"""An adapter that no file of the project knows, registered as users do: by importing the module that defines one."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from i2v_jax.models.adapters import Adapter, Shared, register
from i2v_jax.models.attention import Projections
from i2v_jax.models.layers import Dense


class Toy(nn.Module):
    """A dense layer beside each spatial self-attention, zero at first."""

    implementation: str = "xla"
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, base: Projections, shared: Shared):
        dense = Dense(
            base.hidden.shape[-1],
            kernel_init=nn.initializers.zeros_init(),
            name="to_out",
            dtype=self.dtype,
            param_dtype=self.param_dtype,
        )
        return 0, dense(base.hidden) * jnp.asarray(shared.strength("toy"), self.dtype)


TOY = register(
    Adapter(name="toy", site="attn1", module=Toy, title="toy branch", published=(("to_toy", "to_out"),)),
)
