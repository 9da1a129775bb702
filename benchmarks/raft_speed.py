"""Seconds of RAFT's flow against torchvision's PyTorch on a CPU, and how far the two are apart on random weights.

    python -m benchmarks.raft_speed [--kind large] [--pairs 8] [--size 256] [--iterations 20] [--rounds 3]

Float32; the two take turns, see `benchmarks.paired`. Wants torchvision
(`pip install torchvision==0.28.0 --no-deps`; its operators are not needed, so that any build will do).
"""

import functools
import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import paired, torch_side
from i2v_jax.models.kernels.choice import fastest
from i2v_jax.models.raft import RAFT
from i2v_jax.tree import unflatten
from i2v_jax.weights.tensors import Tensors
from i2v_jax.weights.translate import recognise
from i2v_jax.weights.whole import assemble_network


def pictures(args) -> np.ndarray:
    """Pairs [2 n h w 3] in [-1, 1]: noise that moves by a few pixels."""
    rng = np.random.default_rng(0)
    first = rng.uniform(-1, 1, (args.pairs, args.size, args.size, 3)).astype(np.float32)
    return np.stack([first, np.roll(first, (2, 3), (1, 2))])


def torchvision_model(kind: str):
    """torchvision's network with random weights, none of them 0 or 1."""
    import torch
    from torchvision.models import optical_flow

    torch.manual_seed(0)
    model = getattr(optical_flow, f"raft_{kind}")().eval()
    generator = torch.Generator().manual_seed(1)
    for name, tensor in model.state_dict().items():
        if name.endswith(("running_var", "running_mean")) or ".1.weight" in name and tensor.ndim == 1:
            tensor.copy_(1 + 0.2 * torch.rand(tensor.shape, generator=generator))
    return model


def torchvision_call(args):
    """Returns a call that gives torchvision's flow [n h w 2], and its weights."""
    import torch

    library = torch_side.ready(args.cores)
    model = torchvision_model(args.kind)
    first, second = torch.from_numpy(np.moveaxis(pictures(args), -1, 2).copy())

    def call(library=library):
        return np.moveaxis(model(first, second, num_flow_updates=args.iterations)[-1].numpy(), 1, -1)

    return call, torch_side.weights_of(model)


def our_call(args, weights):
    """Returns a call that gives our flow [n h w 2], with torchvision's weights, and None."""
    imported = recognise(Tensors.of(weights))["raft"]
    found = assemble_network("raft", imported, convolution=fastest("cpu", jnp.float32)["convolution"])
    parameters = unflatten({path: jnp.asarray(found.parameters[path]) for path in found.parameters})
    run = jax.jit(functools.partial(RAFT(found.config).apply, iterations=args.iterations))
    first, second = pictures(args)
    return lambda: np.asarray(run({"params": parameters}, first, second).full), None


def main() -> None:
    args = paired.arguments(__doc__, ("large", "small"), pairs=8, size=256, iterations=20)
    what = f"{args.pairs} pairs of {args.size}x{args.size}, {args.iterations} iterations"
    print(f"RAFT {args.kind}, {what}, {args.cores} cores")
    paired.compare("torchvision", torchvision_call, our_call, args, paired.say_difference)


if __name__ == "__main__":
    main()
