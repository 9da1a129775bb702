"""What DeepCache saves and what it changes: `python -m benchmarks.feature_reuse [--real] [--every 1 2 3 5]`.

First the finest level's share of the operations of SD1.5's and SDXL's UNet, before the compiler rearranges them.
Then, with the bundled model of the small world, on two of its held-out pictures: seconds of the steps, over those of a
run that reuses nothing; how far its videos' latents and pixels are from that run's. `--real` takes random weights of
SD1.5's sizes instead, whose times are real and whose videos are not.
"""

import argparse
import dataclasses
import time

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.sample_speed import real_size_model
from i2v_jax import commands
from i2v_jax.families.model import Model
from i2v_jax.models.conditions import Conditions
from i2v_jax.models.motion import SDXL_BETA, V1
from i2v_jax.models.networks import parameter_shapes
from i2v_jax.models.unet import SD15, SDXL, UNet, UNetConfig
from i2v_jax.sampling.pipeline import Pipeline
from i2v_jax.sampling.presets import preset
from i2v_jax.sampling.settings import Settings
from i2v_jax.training.flops import count_flops
from i2v_jax.tree import unflatten

FOLDER = commands.ROOT / "assets" / "small_world" / "pictures"
PROMPTS = {"0.png": "a pink star moves left", "2.png": "a white heart moves up"}


def share_of_finest(config: UNetConfig, frames: int, size: int) -> float:
    """Operations of the finest level alone over those of the whole UNet, of a video of `size` latents a side."""
    added = config.added_conditioning
    sizes = (jnp.zeros((1, added.pooled_dim)), jnp.zeros((1, 6))) if added else (None, None)
    conditions = Conditions.of_videos(jnp.zeros((1, 77, config.cross_attention_dim)), None, *sizes)
    parameters = {"params": unflatten(parameter_shapes(config))}
    sample = jax.ShapeDtypeStruct((1, frames, size, size, 4), jnp.float32)

    def operations(deep):
        def call(parameters, sample, deep):
            return UNet(config).apply(parameters, sample, 500.0, conditions, None, None, deep)

        return count_flops(jax.jit(call).trace(parameters, sample, deep).jaxpr)

    widths = config.block_out_channels
    return operations(jax.ShapeDtypeStruct((1, frames, size, size, widths[1]), jnp.float32)) / operations(None)


def run(pipeline: Pipeline, pictures, settings: Settings) -> tuple[np.ndarray, np.ndarray, float]:
    """Returns latents, frames, and seconds of a step after the first, of a second run, which compiles nothing."""
    for _ in range(2):
        marks = []
        latents = pipeline.latents(
            pictures,
            list(PROMPTS.values())[: len(pictures)],
            range(len(pictures)),
            settings=settings,
            on_step=lambda *_, marks=marks: marks.append(time.perf_counter()),
        )
        jax.block_until_ready(latents)
        marks.append(time.perf_counter())
    seconds = (marks[-1] - marks[0]) / (settings.steps - 1)
    return np.asarray(latents), pipeline.decode(latents, settings).astype(np.float32), seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--real", action="store_true")
    parser.add_argument("--every", type=int, nargs="+", default=[1, 2, 3, 5])
    parser.add_argument("--size", type=int, default=512, help="with --real: height and width, pixels")
    parser.add_argument("--frames", type=int, default=16, help="with --real")
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"), help="with --real")
    args = parser.parse_args()
    for title, config, size in (
        ("SD1.5, 16x512x512", dataclasses.replace(SD15, motion=V1, pooled_norms=True), 64),
        ("SDXL, 16x1024x1024", dataclasses.replace(SDXL, motion=SDXL_BETA), 128),
    ):
        share = share_of_finest(config, 16, size)
        saved = ", ".join(f"{(1 + (every - 1) * share) / every:.2f} with {every}" for every in args.every)
        print(f"{title}: the finest level has {share:.2f} of a step's operations; of a run's, {saved}", flush=True)
    if args.real:
        model, count = real_size_model(jnp.dtype(args.dtype)), 1
        settings = Settings(height=args.size, width=args.size, frames=args.frames)
    else:
        small, count = preset(), 2
        model, settings = Model.load(small.weights, schedule=small.schedule), small.settings
    settings = dataclasses.replace(settings, steps=args.steps)
    pipeline, pictures = Pipeline(model), [FOLDER / name for name in PROMPTS][:count]
    print(f"{jax.devices()[0].device_kind}: {settings.frames}x{settings.height}x{settings.width}, {args.steps} steps")
    print("| every | seconds a step | of the plain run's | latents differ | pixels differ, of 255 |")
    print("|---|---|---|---|---|")
    plain = None
    for every in args.every:
        found = run(pipeline, pictures, dataclasses.replace(settings, deep_cache_every=every))
        plain = plain or found
        (latents, frames, seconds), (wanted, videos, usual) = found, plain
        error = np.linalg.norm(latents - wanted) / np.linalg.norm(wanted)
        pixels = np.abs(frames - videos).mean()
        print(f"| {every} | {seconds:.3f} | {seconds / usual:.2f} | {error:.1e} | {pixels:.2f} |", flush=True)


if __name__ == "__main__":
    main()
