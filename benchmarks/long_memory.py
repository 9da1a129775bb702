"""Memory of long videos: `python -m benchmarks.long_memory [--frames 64 512] [--size 512] [--real]`.

For each number of frames, in a process of its own: the small world's VAE decodes latents of videos of SIZE x SIZE, and
all files of the video are written; peak resident memory, and what of it came with this. Then what a step holds
by the compiler, weights and all: of the small model in windows of 8, `--real` of SD1.5 at SIZE in windows of 16.
"""

import argparse
import dataclasses
import functools
import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from i2v_jax.diffusion import samplers
from i2v_jax.diffusion.noise_schedule import NoiseSchedule
from i2v_jax.diffusion.windows import Windows
from i2v_jax.families.model import Model
from i2v_jax.models.conditions import Conditions
from i2v_jax.models.motion import V1
from i2v_jax.models.networks import parameter_shapes
from i2v_jax.models.unet import SD15, UNetConfig
from i2v_jax.sampling import batches, run, writing
from i2v_jax.sampling.denoiser import sampling_step
from i2v_jax.sampling.pipeline import Pipeline
from i2v_jax.sampling.presets import preset
from i2v_jax.sampling.watch import SILENT
from i2v_jax.sampling.windowed import chunks
from i2v_jax.tree import unflatten

BAR = 1.1


def decode(frames: int, size: int, folder: Path) -> dict[str, int]:
    """Decodes and writes a video of noise as a run does; bytes of this process before and at its peak."""
    small = preset("default")
    pipeline = Pipeline(Model.load(small.weights, schedule=small.schedule))
    downscale = pipeline.model.configs["vae"].downscale
    settings = dataclasses.replace(small.settings, frames=frames, height=size, width=size, vae_slice=1)
    shape = (1, frames, size // downscale, size // downscale, pipeline.model.configs["unet"].latent_channels)
    latents = np.random.default_rng(0).standard_normal(shape, np.float32)
    pipeline.decode(latents[:, :1], settings)  # compiled
    before, picture = peak(), np.zeros((size, size, 3), np.uint8)
    made = run.decoded(pipeline, latents, settings, SILENT)
    writing.write(folder / "video", batches.SUFFIXES, picture, made, frames, 8, {})
    return dict(before=before, peak=peak())


def peak() -> int:
    """The most resident bytes this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def held(config: UNetConfig, frames: int, side: int, length: int) -> int:
    """Bytes of a guided step of one video: arguments, results, and what the compiler reserves."""
    array = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.float32)
    video = array((1, frames, side, side, 4))
    windows = chunks(Windows(length, 4), frames, 1, 1, 0)
    windows = jax.tree.map(lambda table: jax.ShapeDtypeStruct(table.shape, table.dtype), windows)
    tokens = array((2, 1, 16, config.cross_attention_dim)) if config.cross_attention_branches else None
    sampler = samplers.make("ddim", NoiseSchedule(), 25)
    state = samplers.SamplerState(video, video, jax.ShapeDtypeStruct((), jnp.int32))
    step = functools.partial(sampling_step, {"unet": config}, sampler, is_guided=True, guidance_rescale=0.0)
    given = (
        {"unet": unflatten(parameter_shapes(config))},
        state,
        jax.ShapeDtypeStruct((), jnp.int32),
        Conditions(array((2, 1, 77, config.cross_attention_dim)), tokens),
        array((1, 1, side, side, 4)),
        jax.ShapeDtypeStruct((1,), jnp.uint32),
        dict(guidance_scale=array(()), first_frame=array(()), image_tokens=array(())),
        windows,
    )
    compiled = jax.jit(step, donate_argnums=1).lower(*given).compile()
    found = compiled.memory_analysis()
    given = found.argument_size_in_bytes + found.output_size_in_bytes - found.alias_size_in_bytes
    return given + found.temp_size_in_bytes


def table(title: str, found: dict[int, int]) -> bool:
    """Prints a row, and whether the most is within the bar of the least."""
    ratio = max(found.values()) / min(found.values())
    cells = " | ".join(f"{size / 1e6:.0f} MB" for size in found.values())
    print(f"| {title} | {cells} | {ratio:.3f} |", flush=True)
    return ratio <= BAR


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, nargs="+", default=[64, 512])
    parser.add_argument("--size", type=int, default=512, help="height and width, pixels")
    parser.add_argument("--real", action="store_true", help="compile a step of SD1.5, too")
    parser.add_argument("--decode", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.decode:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(decode(args.decode, args.size, Path(folder))))
        return
    print(f"| bar {BAR} | {' | '.join(f'{frames} frames' for frames in args.frames)} | most over least |")
    print(f"|---|{'---|' * (len(args.frames) + 1)}")
    peaks = {}
    for frames in args.frames:
        command = [sys.executable, "-m", "benchmarks.long_memory", "--decode", str(frames), "--size", str(args.size)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        peaks[frames] = json.loads(done.stdout.splitlines()[-1])["peak"]
    good = table(f"decode and write {args.size}x{args.size}, the whole process", peaks)
    shipped = preset("default")
    small = Model.load(shipped.weights, schedule=shipped.schedule).configs["unet"]
    good &= table("a step of the small model", {frames: held(small, frames, 6, 8) for frames in args.frames})
    if args.real:
        real = dataclasses.replace(
            SD15,
            motion=V1,
            pooled_norms=True,
            self_attention_branches=("first_frame",),
            cross_attention_branches=("image_tokens",),
            attention="blocked",
        )
        sizes = {frames: held(real, frames, args.size // 8, 16) for frames in args.frames}
        good &= table(f"a step of SD1.5 at {args.size}x{args.size}, float32", sizes)
    sys.exit(not good)


if __name__ == "__main__":
    main()
