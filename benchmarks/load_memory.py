"""Peak memory while a UNet with motion modules loads: `python -m benchmarks.load_memory [--small]`.

Writes random SD1.5 and AnimateDiff v1 weights in diffusers' layout (5.1 GB) into a temporary folder, loads them in a
new process, and prints that process's peak resident memory, file pages included, over the size of the weights. What it
held before loading (Python, JAX, imports) is subtracted for the first figure and counted in the second.
"""

import argparse
import dataclasses
import json
import math
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from i2v_jax import tree
from i2v_jax.models.motion import V1
from i2v_jax.models.networks import parameter_shapes
from i2v_jax.models.unet import SD15
from i2v_jax.weights.assemble import load_unet
from i2v_jax.weights.formats import DIFFUSERS_UNET
from i2v_jax.weights.storage.safetensors import save_tensors
from i2v_jax.weights.tensors import Entry, Tensors
from i2v_jax.weights.translate import export_tensors, position_tables

FULL = dataclasses.replace(SD15, motion=V1)
SMALL = dataclasses.replace(FULL, block_out_channels=(160, 320, 640, 640))
BAR = 1.3


def write_weights(folder: Path, config) -> None:
    """Writes random weights and their config as diffusers does, the motion modules in a folder of their own."""

    def entry(leaf):
        return Entry(leaf.shape, np.dtype("f4"), lambda: np.random.default_rng(0).random(leaf.shape, np.float32))

    whole = Tensors({path: entry(leaf) for path, leaf in parameter_shapes(config).items()}, "random weights")
    for name, pattern in (("unet", r"(?!.*/motion/).*"), ("motion_adapter", r".*/motion/.*")):
        part = whole.select(pattern)
        (folder / name).mkdir()
        tensors = export_tensors(part, DIFFUSERS_UNET, position_tables(part, config.motion.max_positions))
        save_tensors(folder / name / "diffusion_pytorch_model.safetensors", tensors, {"format": "pt"})
    settings = {
        "block_out_channels": config.block_out_channels,
        "down_block_types": ["CrossAttnDownBlock2D" if on else "DownBlock2D" for on in config.down_attention],
        "up_block_types": ["CrossAttnUpBlock2D" if on else "UpBlock2D" for on in config.up_attention],
        "cross_attention_dim": config.cross_attention_dim,
        "attention_head_dim": 8,
    }
    (folder / "unet" / "config.json").write_text(json.dumps(settings))


def load(folder: Path) -> dict[str, float]:
    """Loads the weights and measures this process."""
    import jax

    jax.block_until_ready(jax.numpy.zeros(1))
    before = resident()
    start = time.perf_counter()
    config, params = load_unet(folder, motion=folder)
    jax.block_until_ready(params)
    seconds = time.perf_counter() - start
    count = tree.count(params)
    return dict(before=before, peak=peak(), after=resident(), size=4 * count, parameters=count, seconds=seconds)


def resident() -> int:
    """This process's resident bytes now, shared and file pages included."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def peak() -> int:
    """The most resident bytes this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true", help="half the channels: 1.3 GB of weights")
    parser.add_argument("--load", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.load:
        print(json.dumps(load(arguments.load)))
        return
    config = SMALL if arguments.small else FULL
    with tempfile.TemporaryDirectory() as folder:
        write_weights(Path(folder), config)
        command = [sys.executable, "-m", "benchmarks.load_memory", "--load", folder]
        run = subprocess.run(command, check=True, capture_output=True, text=True)
    m = json.loads(run.stdout.splitlines()[-1])
    assert m["parameters"] == sum(math.prod(leaf.shape) for leaf in parameter_shapes(config).values())
    ratio = (m["peak"] - m["before"]) / m["size"]
    gigabytes = {name: f"{m[name] / 1e9:.2f} GB" for name in ("size", "before", "peak", "after")}
    print(f"parameters {m['parameters'] / 1e6:.1f} M, weights {gigabytes['size']} f32, loaded in {m['seconds']:.1f} s")
    print("resident: {before} before, {peak} peak, {after} after".format(**gigabytes))
    print(f"peak memory over weights {ratio:.3f} (bar {BAR}); whole process {m['peak'] / m['size']:.3f}")
    sys.exit(ratio > BAR)


if __name__ == "__main__":
    main()
