"""Peak memory of `python -m convert device` on a large model: SD1.5's UNet with motion modules and adapters, 16 frames.

    python -m benchmarks.device_memory [--weights int8] [--size 512]

Writes that network with weights that are made as they are read (3.4 GB of kernels in float32 and more), as the command
does with --no-measuring, into a temporary folder, and prints the peak resident memory, what of it was there before,
and the sizes of the files. ONNX's checker opens the result.
"""

import argparse
import dataclasses
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.load_memory import peak
from convert import device
from convert.arguments import PRECISIONS
from convert.device import networks, onnx_graph
from i2v_jax.diffusion.noise_schedule import ANIMATEDIFF_SD15
from i2v_jax.families.model import Model
from i2v_jax.models.clip import CLIPTextConfig, CLIPVisionConfig
from i2v_jax.models.image_projection import ResamplerConfig
from i2v_jax.models.motion import V1
from i2v_jax.models.networks import parameter_shapes
from i2v_jax.models.tokenizer import ClipTokenizer
from i2v_jax.models.unet import SD15
from i2v_jax.models.vae import SD_VAE
from i2v_jax.sampling.settings import Settings
from i2v_jax.weights.tensors import Entry, Tensors


def model() -> Model:
    """Returns SD1.5 with AnimateDiff v1, I2V-Adapter and image tokens, without parameters."""
    branches = dict(self_attention_branches=("first_frame",), cross_attention_branches=("image_tokens",))
    configs = dict(unet=dataclasses.replace(SD15, motion=V1, **branches), vae=SD_VAE, text_encoder=CLIPTextConfig())
    configs |= dict(image_encoder=CLIPVisionConfig(width=1280), image_proj=ResamplerConfig())
    return Model(configs, {}, {"text_encoder": ClipTokenizer.bundled()}, ANIMATEDIFF_SD15)


def made_when_read(leaf: jax.ShapeDtypeStruct) -> Entry:
    """Returns a tensor of random numbers that is in memory only while it is used."""

    def read() -> np.ndarray:
        return np.random.default_rng(0).standard_normal(leaf.shape, np.float32) * 0.02

    return Entry(leaf.shape, np.dtype(np.float32), read)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", action="append", choices=PRECISIONS)
    parser.add_argument("--size", type=int, default=512, help="height and width, pixels")
    arguments = parser.parse_args()
    onnx_graph.load_libraries()
    import onnx

    jnp.zeros(1).block_until_ready()
    before, start, whole = peak(), time.perf_counter(), model()
    shapes = parameter_shapes(whole.configs["unet"])
    tensors = Tensors({path: made_when_read(leaf) for path, leaf in shapes.items()}, "random weights")
    network = networks.unet(whole, Settings(height=arguments.size, width=arguments.size))
    with tempfile.TemporaryDirectory() as folder:
        wanted = arguments.weights or list(PRECISIONS)
        rows = device.write_networks(Path(folder), [network], {"unet": tensors}, wanted, is_measured=False)
        seconds, most = time.perf_counter() - start, peak()
        for row in rows:
            onnx.checker.check_model(Path(folder) / row.weights / "unet.onnx")
            weights, graph, program = (size / 1e6 for size in row.sizes)
            print(f"{row.weights}: weights {weights:.0f} MB, ONNX graph {graph:.1f} MB, StableHLO {program:.1f} MB")
    print(f"peak {most / 1e9:.2f} GB, {before / 1e9:.2f} GB of it before, {seconds:.0f} s")
    print(f"float32 weights: {tensors.nbytes / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
