"""Seconds to upscale frames against spandrel's PyTorch on a CPU, and how far the two are apart on random weights.

    python -m benchmarks.upscale_speed [--kind rrdb|compact] [--frames 8] [--size 128] [--blocks 23] [--rounds 3]

Float32, by 4; the two take turns, see `benchmarks.paired`. Wants spandrel and torchvision,
in a folder of their own
(`pip install --no-deps --target FOLDER einops spandrel==0.4.2 torchvision==0.28.0`, then `PYTHONPATH=FOLDER`).
"""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax.numpy as jnp
import numpy as np

from benchmarks import paired, torch_side
from i2v_jax.models import upscaler
from i2v_jax.models.kernels.choice import fastest
from i2v_jax.weights.tensors import Tensors
from i2v_jax.weights.translate import recognise
from i2v_jax.weights.whole import load_network


def frames(args) -> np.ndarray:
    return np.random.default_rng(0).uniform(0, 1, (args.frames, args.size, args.size, 3)).astype(np.float32)


def spandrel_call(args):
    """Returns a call that gives spandrel's frames [n H W 3], and its weights."""
    import torch

    library = torch_side.ready(args.cores)
    from spandrel.architectures.Compact import Compact
    from spandrel.architectures.ESRGAN import ESRGAN

    torch.manual_seed(0)
    model = Compact(num_conv=32) if args.kind == "compact" else ESRGAN(num_blocks=args.blocks)
    given = torch.from_numpy(frames(args)).permute(0, 3, 1, 2)

    def call(library=library):
        return torch.cat([model.eval()(frame[None]) for frame in given]).permute(0, 2, 3, 1).clamp(0, 1).numpy()

    return call, {name: tensor.numpy() for name, tensor in model.state_dict().items()}


def our_call(args, weights):
    """Returns a call that gives our frames [n H W 3], with spandrel's weights, and None."""
    imported = recognise(Tensors.of(weights))["upscaler"]
    config, parameters = load_network("upscaler", imported, convolution=fastest("cpu", jnp.float32)["convolution"])
    given = frames(args)
    call = lambda: np.concatenate([upscaler.upscale(config, parameters, frame[None]) for frame in given])  # noqa: E731
    return call, None


def main() -> None:
    args = paired.arguments(__doc__, ("rrdb", "compact"), frames=8, size=128, blocks=23)
    print(f"{args.kind}, {args.frames} frames of {args.size}x{args.size} to {4 * args.size}, {args.cores} cores")
    paired.compare("spandrel", spandrel_call, our_call, args, paired.say_difference)


if __name__ == "__main__":
    main()
