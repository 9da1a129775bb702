"""Seconds to make a frame between two against ccvfi's PyTorch on a CPU, and how far these are apart on random weights.

    python -m benchmarks.interpolate_speed [--pairs 4] [--size 256] [--rounds 3]

IFNet of RIFE 4.26.heavy, float32; the two take turns, see `benchmarks.paired`. Wants ccvfi, and torchvision, which it
imports, in a folder of their own (`pip install --no-deps --target FOLDER ccvfi==0.0.3 einops pydantic pydantic_core
annotated_types typing_inspection tenacity torchvision==0.28.0`, then `PYTHONPATH=FOLDER`).
"""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax.numpy as jnp
import numpy as np

from benchmarks import paired, torch_side
from i2v_jax.models import ifnet
from i2v_jax.models.kernels.choice import fastest
from i2v_jax.weights.tensors import Tensors
from i2v_jax.weights.translate import recognise
from i2v_jax.weights.whole import load_network

MOMENT = 0.3


def pairs(args) -> np.ndarray:
    """Pairs [n 2 h w 3] of 0 to 1: noise that moves by a few pixels."""
    first = np.random.default_rng(0).uniform(0, 1, (args.pairs, args.size, args.size, 3)).astype(np.float32)
    return np.stack([first, np.roll(first, (2, 3), (1, 2))], 1)


def ccvfi_call(args):
    """Returns a call that gives ccvfi's frames [n h w 3], and its weights."""
    import torch

    library = torch_side.ready(args.cores)
    from ccvfi.arch import IFNet

    torch.manual_seed(0)
    model = IFNet().eval()
    given = torch.from_numpy(np.concatenate(np.moveaxis(pairs(args), 1, 0), -1)).permute(0, 3, 1, 2)

    def call(library=library):
        return torch.cat([model(pair[None], MOMENT) for pair in given]).permute(0, 2, 3, 1).numpy()

    return call, torch_side.weights_of(model)


def our_call(args, weights):
    """Returns a call that gives our frames [n h w 3], with ccvfi's weights, and None."""
    imported = recognise(Tensors.of(weights))["ifnet"]
    config, parameters = load_network("ifnet", imported, convolution=fastest("cpu", jnp.float32)["convolution"])
    given, moment = pairs(args), np.float32([MOMENT])

    def call():
        return np.concatenate([ifnet.between(config, parameters, *pair[:, None], moment) for pair in given])

    return call, None


def main() -> None:
    args = paired.arguments(__doc__, pairs=4, size=256)
    print(f"RIFE 4.26.heavy, {args.pairs} pairs of {args.size}x{args.size}, {args.cores} cores")
    paired.compare("ccvfi", ccvfi_call, our_call, args, paired.say_difference)


if __name__ == "__main__":
    main()
