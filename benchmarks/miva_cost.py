"""What MIVAs cost: seconds of a guided step with 1, 2 and 4 of them over one with none, and over as many passes of one.

    python -m benchmarks.miva_cost [--size 256] [--frames 16] [--dtype bfloat16] [--small] [--masks]

Random weights of the real sizes (SD1.5, AnimateDiff v1, I2V-Adapter, image tokens; MIVAs of rank 16). Beside it the
share of the operations, which no machine's noise moves, and each count's weights. `--small` takes a UNet an eighth as
wide, for a machine without an accelerator.
"""

import argparse
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.control_cost import networks, pipeline_of, seconds
from benchmarks.sample_speed import random_parameters
from i2v_jax.models.adapters.miva import PATH, MivaConfig
from i2v_jax.models.conditions import Conditions
from i2v_jax.models.networks import parameter_shapes
from i2v_jax.sampling.settings import Settings
from i2v_jax.training.flops import count_flops

BARS = {1: 1.15, 2: 1.3, 4: 1.6}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=256, help="height and width, pixels")
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--masks", action="store_true", help="each has a mask")
    args = parser.parse_args()
    dtype, side = jnp.dtype(args.dtype), args.size // 8
    base = networks(dtype, args.small)["unet"]
    settings = Settings(height=args.size, width=args.size, frames=args.frames)
    noise = jax.random.normal(jax.random.key(0), (1, args.frames, side, side, 4))
    tokens = [jnp.zeros((2, 1, count, 768), dtype) for count in (77, 16)]

    times, work, weights = {}, {}, {}
    for count in (0, *BARS):
        config = dataclasses.replace(base, miva=MivaConfig(count, args.rank) if count else None)
        shapes = parameter_shapes(config)
        weights[count] = sum(leaf.size for path, leaf in shapes.items() if PATH in path)
        ours = pipeline_of({"unet": config}, {"unet": random_parameters(shapes)})
        conditions, strengths = Conditions(*tokens), dict(guidance_scale=7.5, first_frame=1.0, image_tokens=1.0)
        if count:
            strengths["miva"] = np.ones(count, np.float32)
            masks = jnp.ones((2, 1, count, side, side)) if args.masks else None
            conditions = conditions._replace(implicit=jnp.array([[0.0], [1.0]]), miva_masks=masks)
        begin, step = ours.programs(settings)
        seeds = np.zeros(1, np.uint32)
        state = begin(noise[:, :1], seeds, 0, 0.5, args.frames)
        arguments = (ours.model.parameters, state, 0, conditions, noise[:, :1], seeds, strengths)
        work[count] = count_flops(step.trace(*arguments).jaxpr)

        def once(step=step, arguments=arguments):
            fresh = jax.tree.map(jnp.copy, arguments[1])  # the step takes its memory
            return step(arguments[0], fresh, *arguments[2:])

        times[count] = seconds(once, args.rounds)
    what = "a UNet an eighth as wide" if args.small else "SD1.5"
    print(f"{jax.devices()[0].device_kind}: {what}, {args.frames}x{args.size}x{args.size}, {args.dtype}")
    print("| MIVAs | weights | seconds of a step | over none (bar) | of its operations | over as many passes of one |")
    print("|---|---|---|---|---|---|")
    for count, second in times.items():
        cost = f"{second / times[0]:.3f} ({BARS[count]})" if count else "1"
        passes = f"{second / (count * times[1]):.3f}" if count else ""
        row = (count, f"{weights[count]:,}", f"{second:.3f}", cost, f"{work[count] / work[0]:.3f}", passes)
        print(f"| {' | '.join(map(str, row))} |")


if __name__ == "__main__":
    main()
