"""A guided step of a model of random weights, and what it costs: for benchmarks of what a step has beside it."""

import argparse
import dataclasses
import time
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from i2v_jax.devices.mesh import make_mesh
from i2v_jax.diffusion.noise_schedule import ANIMATEDIFF_SD15
from i2v_jax.families.model import Model
from i2v_jax.models import clip, image_projection, motion, unet, vae
from i2v_jax.models.conditions import Conditions
from i2v_jax.models.kernels.choice import choose
from i2v_jax.sampling.pipeline import Pipeline
from i2v_jax.sampling.settings import Settings
from i2v_jax.training.flops import count_flops


def parser(description: str, size: int) -> argparse.ArgumentParser:
    """The flags that all of these benchmarks have; `size` is the default one."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--size", type=int, default=size, help="height and width, pixels")
    made.add_argument("--frames", type=int, default=16)
    made.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    made.add_argument("--rounds", type=int, default=5)
    made.add_argument("--small", action="store_true")
    return made


def common(dtype: Any, small: bool) -> dict[str, Any]:
    """What is set for a UNet and what works beside it."""
    narrow = dict(block_out_channels=(40, 80, 160, 160), norm_groups=8, num_heads=(2, 2, 4, 4)) if small else {}
    return dict(dtype=dtype, param_dtype=dtype, **choose(jax.devices()[0], dtype), **narrow)


def unet_config(dtype: Any, small: bool) -> unet.UNetConfig:
    """SD1.5 with AnimateDiff v1, an I2V-Adapter and image tokens; `small`: an eighth as wide."""
    layout = dataclasses.replace(motion.V1, **(dict(norm_groups=8, num_heads=4) if small else {}))
    return dataclasses.replace(
        unet.SD15,
        **common(dtype, small),
        motion=layout,
        pooled_norms=True,
        self_attention_branches=("first_frame",),
        cross_attention_branches=("image_tokens",),
    )


def tokens(dtype: Any) -> list[jax.Array]:
    """Of a prompt and of a picture, on both sides of guidance."""
    return [jnp.zeros((2, 1, count, 768), dtype) for count in (77, 16)]


def cost(
    args: argparse.Namespace,
    configs: Mapping[str, Any],
    parameters: Mapping[str, Any],
    conditions: Conditions,
    **strengths: Any,
) -> tuple[float, float]:
    """Returns the seconds and the operations of a step; `strengths` are those of what works beside the UNet."""
    side = args.size // 8
    noise = jax.random.normal(jax.random.key(0), (1, args.frames, side, side, 4))
    ours = _pipeline(configs, parameters)
    strengths = dict(guidance_scale=7.5, first_frame=1.0, image_tokens=1.0) | strengths
    begin, step = ours.programs(Settings(height=args.size, width=args.size, frames=args.frames))
    seeds = np.zeros(1, np.uint32)
    state = begin(noise[:, :1], seeds, 0, 0.5, args.frames)
    arguments = (ours.model.parameters, state, 0, conditions, noise[:, :1], seeds, strengths)
    work = count_flops(step.trace(*arguments).jaxpr)

    def once():
        fresh = jax.tree.map(jnp.copy, arguments[1])  # the step takes its memory
        return step(arguments[0], fresh, *arguments[2:])

    return seconds(once, args.rounds), work


def seconds(function, rounds: int) -> float:
    """The least of several calls, after one that compiles."""
    jax.block_until_ready(function())
    found = []
    for _ in range(rounds):
        begin = time.perf_counter()
        jax.block_until_ready(function())
        found.append(time.perf_counter() - begin)
    return min(found)


def title(args: argparse.Namespace) -> str:
    """Says what was measured, and on what."""
    what = "a UNet an eighth as wide" if args.small else "SD1.5"
    return f"{jax.devices()[0].device_kind}: {what}, {args.frames}x{args.size}x{args.size}, {args.dtype}"


def _pipeline(configs: Mapping[str, Any], parameters: Mapping[str, Any]) -> Pipeline:
    """A pipeline of which only the step is run: the encoders have configs alone."""
    mesh = make_mesh({}, jax.devices()[:1])
    encoders = dict(
        vae=vae.SD_VAE,
        text_encoder=clip.SD15_TEXT,
        image_encoder=clip.VIT_H_VISION,
        image_proj=image_projection.IP_ADAPTER_PLUS_SD15,
    )
    return Pipeline(Model(encoders | dict(configs), dict(parameters), {}, ANIMATEDIFF_SD15), mesh)
