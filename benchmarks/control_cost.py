"""What a ControlNet costs: seconds of a guided step with one over those without.

    python -m benchmarks.control_cost [--size 512] [--frames 16] [--dtype bfloat16] [--small]

Random weights of the real sizes (SD1.5, AnimateDiff v1, I2V-Adapter, image tokens; a ControlNet of SD1.5). Beside it
the share of the operations, which no machine's noise moves, and what encoding the pictures took, once for a run.
`--small` takes a UNet an eighth as wide, for a machine without an accelerator.
"""

import argparse
import dataclasses
import time

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.sample_speed import random_parameters
from i2v_jax.devices.mesh import make_mesh
from i2v_jax.diffusion.noise_schedule import ANIMATEDIFF_SD15
from i2v_jax.encoders import controls
from i2v_jax.families.model import Model
from i2v_jax.models import clip, controlnet, image_projection, motion, unet, vae
from i2v_jax.models.conditions import Conditions
from i2v_jax.models.kernels.choice import choose
from i2v_jax.models.networks import parameter_shapes
from i2v_jax.sampling.pipeline import Pipeline
from i2v_jax.sampling.settings import Settings
from i2v_jax.training.flops import count_flops

BAR = 1.35


def networks(dtype, small: bool) -> dict:
    """Configs of the UNet and of a ControlNet for it."""
    narrow = dict(block_out_channels=(40, 80, 160, 160), norm_groups=8, num_heads=(2, 2, 4, 4)) if small else {}
    layout = dataclasses.replace(motion.V1, **(dict(norm_groups=8, num_heads=4) if small else {}))
    common = dict(dtype=dtype, param_dtype=dtype, **choose(jax.devices()[0], dtype), **narrow)
    own = dict(
        motion=layout,
        pooled_norms=True,
        self_attention_branches=("first_frame",),
        cross_attention_branches=("image_tokens",),
    )
    return dict(
        unet=dataclasses.replace(unet.SD15, **common, **own),
        control_0=dataclasses.replace(controlnet.SD15_CONTROLNET, **common),
    )


def pipeline_of(configs: dict, parameters: dict) -> Pipeline:
    """A pipeline of which only the step is run: the encoders have configs alone."""
    mesh = make_mesh({}, jax.devices()[:1])
    encoders = dict(
        vae=vae.SD_VAE,
        text_encoder=clip.SD15_TEXT,
        image_encoder=clip.VIT_H_VISION,
        image_proj=image_projection.IP_ADAPTER_PLUS_SD15,
    )
    return Pipeline(Model(encoders | configs, parameters, {}, ANIMATEDIFF_SD15), mesh)


def seconds(function, rounds: int) -> float:
    """The least of several calls, after one that compiles."""
    jax.block_until_ready(function())
    found = []
    for _ in range(rounds):
        begin = time.perf_counter()
        jax.block_until_ready(function())
        found.append(time.perf_counter() - begin)
    return min(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=512, help="height and width, pixels")
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--small", action="store_true")
    args = parser.parse_args()
    dtype = jnp.dtype(args.dtype)
    configs = networks(dtype, args.small)
    parameters = {name: random_parameters(parameter_shapes(config)) for name, config in configs.items()}
    settings = Settings(height=args.size, width=args.size, frames=args.frames)
    side = args.size // 8
    noise = jax.random.normal(jax.random.key(0), (1, args.frames, side, side, 4))
    tokens = [jnp.zeros((2, 1, count, 768), dtype) for count in (77, 16)]
    pictures = jnp.zeros((2, args.frames, args.size, args.size, 3))
    known = jnp.ones((2, args.frames), bool)
    encode = jax.jit(lambda p, x, k: controls.encode(configs["control_0"], p, x, k, None))
    embedded = encode(parameters["control_0"], pictures, known)
    encoding = seconds(lambda: encode(parameters["control_0"], pictures, known), args.rounds)

    times, work = [], []
    for with_control in (False, True):
        names = ["unet", "control_0"] if with_control else ["unet"]
        ours = pipeline_of({name: configs[name] for name in names}, {name: parameters[name] for name in names})
        conditions = Conditions(*tokens, controls=(embedded,) if with_control else ())
        strengths = dict(guidance_scale=7.5, first_frame=1.0, image_tokens=1.0)
        if with_control:
            strengths["controls"] = np.ones((1, args.frames), np.float32)
        begin, step = ours.programs(settings)
        seeds = np.zeros(1, np.uint32)
        state = begin(noise[:, :1], seeds, 0, 0.5, args.frames)
        arguments = (ours.model.parameters, state, 0, conditions, noise[:, :1], seeds, strengths)
        work.append(count_flops(step.trace(*arguments).jaxpr))

        def once(step=step, arguments=arguments):
            fresh = jax.tree.map(jnp.copy, arguments[1])  # the step takes its memory
            return step(arguments[0], fresh, *arguments[2:])

        times.append(seconds(once, args.rounds))
    what = "a UNet an eighth as wide" if args.small else "SD1.5"
    print(f"{jax.devices()[0].device_kind}: {what}, {args.frames}x{args.size}x{args.size}, {args.dtype}")
    print(f"a guided step without {times[0]:.3f} s, with a ControlNet {times[1]:.3f} s")
    print(f"cost of a step {times[1] / times[0]:.3f} (bar {BAR}); of its operations {work[1] / work[0]:.3f}")
    print(f"encoding the pictures, once for a run: {encoding:.3f} s, {encoding / times[0]:.1%} of a step")


if __name__ == "__main__":
    main()
