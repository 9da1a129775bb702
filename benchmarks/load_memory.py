"""Peak memory while a UNet with motion modules loads.

    python -m benchmarks.load_memory [--family sd15|sdxl] [--small] [--dtype bfloat16] [--stored float16]

Writes random weights in diffusers' layout (SD1.5 and AnimateDiff v1, 5.1 GB in float32; SDXL and its beta motion
modules, 5.6 GB in bfloat16) into a temporary folder, loads them in a new process, and prints that process's peak
resident memory, file pages included, over the size of the loaded weights. What it held before loading (Python, JAX,
imports) is subtracted for the first figure and counted in the second.
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

import jax.numpy as jnp
import numpy as np

from i2v_jax import tree
from i2v_jax.models.motion import SDXL_BETA, V1
from i2v_jax.models.networks import parameter_shapes
from i2v_jax.models.unet import SD15, SDXL
from i2v_jax.weights.assemble import load_unet
from i2v_jax.weights.formats import DIFFUSERS_UNET
from i2v_jax.weights.storage.safetensors import save_tensors
from i2v_jax.weights.tensors import Entry, Tensors
from i2v_jax.weights.translate import export_tensors, position_tables

FAMILIES = {
    "sd15": dataclasses.replace(SD15, motion=V1),
    "sdxl": dataclasses.replace(SDXL, motion=SDXL_BETA),
}
DTYPES = {"sd15": "float32", "sdxl": "bfloat16"}  # where --dtype names none
BARS = {"sd15": 1.3, "sdxl": 1.1}


def write_weights(folder: Path, config, dtype: np.dtype) -> None:
    """Writes random weights and their config as diffusers does, the motion modules in a folder of their own."""

    def entry(leaf):
        def read():
            return np.random.default_rng(0).random(leaf.shape, np.float32).astype(dtype)

        return Entry(leaf.shape, dtype, read)

    whole = Tensors({path: entry(leaf) for path, leaf in parameter_shapes(config).items()}, "random weights")
    for name, pattern in (("unet", r"(?!.*/motion/).*"), ("motion_adapter", r".*/motion/.*")):
        part = whole.select(pattern)
        (folder / name).mkdir()
        tensors = export_tensors(part, DIFFUSERS_UNET, position_tables(part, config.motion.max_positions))
        save_tensors(folder / name / "diffusion_pytorch_model.safetensors", tensors, {"format": "pt"})
    settings = dataclasses.replace(config, motion=None).to_diffusers()
    (folder / "unet" / "config.json").write_text(json.dumps(settings))


def load(folder: Path, dtype: np.dtype) -> dict[str, float]:
    """Loads the weights and measures this process."""
    import jax

    jax.block_until_ready(jax.numpy.zeros(1))
    before = resident()
    start = time.perf_counter()
    config, params = load_unet(folder, motion=folder, dtype=dtype)
    jax.block_until_ready(params)
    seconds = time.perf_counter() - start
    count = tree.count(params)
    size = dtype.itemsize * count
    return dict(before=before, peak=peak(), after=resident(), size=size, parameters=count, seconds=seconds)


def resident() -> int:
    """This process's resident bytes now, shared and file pages included."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def peak() -> int:
    """The most resident bytes this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", choices=FAMILIES, default="sd15")
    parser.add_argument("--small", action="store_true", help="half the channels: a quarter of the weights")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="of the loaded weights")
    parser.add_argument("--stored", choices=("float32", "bfloat16", "float16"), help="dtype of the files; as loaded")
    parser.add_argument("--load", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    dtype = jnp.dtype(arguments.dtype or DTYPES[arguments.family])
    if arguments.load:
        print(json.dumps(load(arguments.load, dtype)))
        return
    config = FAMILIES[arguments.family]
    if arguments.small:
        config = dataclasses.replace(config, block_out_channels=tuple(c // 2 for c in config.block_out_channels))
    with tempfile.TemporaryDirectory() as folder:
        write_weights(Path(folder), config, jnp.dtype(arguments.stored or dtype))
        command = [sys.executable, "-m", "benchmarks.load_memory", "--load", folder, "--dtype", dtype.name]
        run = subprocess.run(command, check=True, capture_output=True, text=True)
    m = json.loads(run.stdout.splitlines()[-1])
    assert m["parameters"] == sum(math.prod(leaf.shape) for leaf in parameter_shapes(config).values())
    bar = BARS[arguments.family]
    ratio = (m["peak"] - m["before"]) / m["size"]
    gigabytes = {name: f"{m[name] / 1e9:.2f} GB" for name in ("size", "before", "peak", "after")}
    print(f"{arguments.family}: {m['parameters'] / 1e6:.1f} M parameters, loaded in {m['seconds']:.1f} s")
    print("weights {size} in {}".format(dtype.name, **gigabytes))
    print("resident: {before} before, {peak} peak, {after} after".format(**gigabytes))
    print(f"peak memory over weights {ratio:.3f} (bar {bar}); whole process {m['peak'] / m['size']:.3f}")
    sys.exit(ratio > bar)


if __name__ == "__main__":
    main()
