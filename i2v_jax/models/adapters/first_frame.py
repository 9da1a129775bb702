"""I2V-Adapter (Guo et al. 2024, section 3.1): every frame also attends to the first one."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from i2v_jax.models.adapters.adapter import Adapter, Shared
from i2v_jax.models.adapters.windows import first_frame
from i2v_jax.models.attention import Projections, attention, merge_heads, split_heads
from i2v_jax.models.layers import Dense


class FirstFrame(nn.Module):
    """Every frame queries the first frame, `A(X_i W'_Q, K_1, V_1) W'_O` (paper eq. 5-6).

    K_1 and V_1 come from the frozen projections. W'_O and its bias start at zero, so that a new adapter changes
    nothing; W'_Q starts as a copy of the layer's W_Q.
    """

    implementation: str = "xla"
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, base: Projections, shared: Shared):
        num_heads, channels = base.query.shape[-2], base.hidden.shape[-1]
        dtypes = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        query = split_heads(Dense(channels, use_bias=False, name="to_q", **dtypes)(base.hidden), num_heads)
        key, value = first_frame(self, base.key, base.value, shared.window)
        out = merge_heads(attention(query, key, value, self.implementation))
        out = Dense(channels, kernel_init=nn.initializers.zeros_init(), name="to_out", **dtypes)(out)
        return 0, out * jnp.asarray(shared.strength("first_frame"), self.dtype)


FIRST_FRAME = Adapter(
    name="first_frame",
    site="attn1",
    module=FirstFrame,
    title="first-frame branch",
    published=(("to_q_ff", "to_q"), ("to_out_ff", "to_out")),
    copies={"to_q": "to_q"},
    weights="first-frame adapter",
    product="I2V-Adapter",
)
