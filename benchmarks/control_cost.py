"""What a ControlNet costs: seconds of a guided step with one over those without.

    python -m benchmarks.control_cost [--size 512] [--frames 16] [--dtype bfloat16] [--small]

Random weights of the real sizes (SD1.5, AnimateDiff v1, I2V-Adapter, image tokens; a ControlNet of SD1.5). Beside it
the share of the operations, which no machine's noise moves, and what encoding the pictures took, once for a run.
`--small` takes a UNet an eighth as wide, for a machine without an accelerator.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import guided_step
from benchmarks.sample_speed import random_parameters
from i2v_jax.encoders import controls
from i2v_jax.models.conditions import Conditions
from i2v_jax.models.controlnet import SD15_CONTROLNET
from i2v_jax.models.networks import parameter_shapes

BAR = 1.35


def main() -> None:
    args = guided_step.parser(__doc__, size=512).parse_args()
    dtype = jnp.dtype(args.dtype)
    configs = dict(
        unet=guided_step.unet_config(dtype, args.small),
        control_0=dataclasses.replace(SD15_CONTROLNET, **guided_step.common(dtype, args.small)),
    )
    parameters = {name: random_parameters(parameter_shapes(config)) for name, config in configs.items()}
    tokens = guided_step.tokens(dtype)
    pictures = jnp.zeros((2, args.frames, args.size, args.size, 3))
    known = jnp.ones((2, args.frames), bool)
    encode = jax.jit(lambda p, x, k: controls.encode(configs["control_0"], p, x, k, None))
    embedded = encode(parameters["control_0"], pictures, known)
    encoding = guided_step.seconds(lambda: encode(parameters["control_0"], pictures, known), args.rounds)

    alone = {"unet": configs["unet"]}, {"unet": parameters["unet"]}
    before, work_before = guided_step.cost(args, *alone, Conditions(*tokens))
    conditions, scales = Conditions(*tokens, controls=(embedded,)), np.ones((1, args.frames), np.float32)
    after, work_after = guided_step.cost(args, configs, parameters, conditions, controls=scales)
    print(guided_step.title(args))
    print(f"a guided step without {before:.3f} s, with a ControlNet {after:.3f} s")
    print(f"cost of a step {after / before:.3f} (bar {BAR}); of its operations {work_after / work_before:.3f}")
    print(f"encoding the pictures, once for a run: {encoding:.3f} s, {encoding / before:.1%} of a step")


if __name__ == "__main__":
    main()
