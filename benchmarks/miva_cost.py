"""What MIVAs cost: seconds of a guided step with 1, 2 and 4 of them over one with none, and over as many passes of one.

    python -m benchmarks.miva_cost [--size 256] [--frames 16] [--dtype bfloat16] [--small] [--masks]

Random weights of the real sizes (SD1.5, AnimateDiff v1, I2V-Adapter, image tokens; MIVAs of rank 16). Beside it the
share of the operations, which no machine's noise moves, and each count's weights. `--small` takes a UNet an eighth as
wide, for a machine without an accelerator.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np

from benchmarks import guided_step
from benchmarks.sample_speed import random_parameters
from i2v_jax.models.adapters.miva import PATH, MivaConfig
from i2v_jax.models.conditions import Conditions
from i2v_jax.models.networks import parameter_shapes

BARS = {1: 1.15, 2: 1.3, 4: 1.6}


def main() -> None:
    parser = guided_step.parser(__doc__, size=256)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--masks", action="store_true", help="each has a mask")
    args = parser.parse_args()
    dtype, side = jnp.dtype(args.dtype), args.size // 8
    base = guided_step.unet_config(dtype, args.small)

    times, work, weights = {}, {}, {}
    for count in (0, *BARS):
        config = dataclasses.replace(base, miva=MivaConfig(count, args.rank) if count else None)
        shapes = parameter_shapes(config)
        weights[count] = sum(leaf.size for path, leaf in shapes.items() if PATH in path)
        conditions, strengths = Conditions(*guided_step.tokens(dtype)), {}
        if count:
            strengths["miva"] = np.ones(count, np.float32)
            masks = jnp.ones((2, 1, count, side, side)) if args.masks else None
            conditions = conditions._replace(implicit=jnp.array([[0.0], [1.0]]), miva_masks=masks)
        made = guided_step.cost(args, {"unet": config}, {"unet": random_parameters(shapes)}, conditions, **strengths)
        times[count], work[count] = made
    print(guided_step.title(args))
    print("| MIVAs | weights | seconds of a step | over none (bar) | of its operations | over as many passes of one |")
    print("|---|---|---|---|---|---|")
    for count, second in times.items():
        cost = f"{second / times[0]:.3f} ({BARS[count]})" if count else "1"
        passes = f"{second / (count * times[1]):.3f}" if count else ""
        row = (count, f"{weights[count]:,}", f"{second:.3f}", cost, f"{work[count] / work[0]:.3f}", passes)
        print(f"| {' | '.join(map(str, row))} |")


if __name__ == "__main__":
    main()
