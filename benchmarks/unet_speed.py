"""Seconds of one UNet call, SD1.5 with motion modules, against diffusers' PyTorch on a CPU; and the adapter's cost.

    python -m benchmarks.unet_speed [--rounds 5] [--frames 8] [--size 32]

Float32, two videos, random weights of the real size (1,276.7 M parameters, 5.1 GB each). PyTorch and JAX each have a
process, so that one's waiting threads do not slow the other, and take turns, so that whatever else the machine does
falls on both. The figure is the median over rounds of each round's ratio.
"""

import argparse
import dataclasses
import multiprocessing
import os
import time

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np

from i2v_jax.models import motion, unet
from i2v_jax.models.conditions import Conditions
from i2v_jax.models.kernels.choice import fastest
from i2v_jax.models.networks import parameter_shapes
from i2v_jax.tree import unflatten

VIDEOS, TOKENS = 2, 77


def pytorch(args):
    """Returns a call of diffusers' UNetMotionModel, as its pipelines call it."""
    import torch
    from diffusers import UNetMotionModel

    torch.set_grad_enabled(False)
    torch.set_num_threads(os.cpu_count())
    with torch.device("meta"):
        model = UNetMotionModel(
            cross_attention_dim=768, num_attention_heads=8, motion_max_seq_length=24, use_motion_mid_block=False
        )
    model = model.to_empty(device="cpu").eval()
    for tensor in [*model.parameters(), *model.buffers()]:
        tensor.uniform_(-0.02, 0.02)
    count = sum(parameter.numel() for parameter in model.parameters())
    sample = torch.randn(VIDEOS, 4, args.frames, args.size, args.size)
    text = torch.randn(VIDEOS * args.frames, TOKENS, 768)
    return count, lambda: model(sample, torch.tensor(500), encoder_hidden_states=text)


def ours(args, adapter: bool, parameters):
    """Returns a compiled call of our UNet, and its parameters: the given ones and what else it wants."""
    config = dataclasses.replace(
        unet.SD15,
        motion=motion.V1,
        self_attention_branches=("first_frame",) if adapter else (),
        **fastest("cpu", jnp.float32),
    )
    rng = np.random.default_rng(0)
    block = rng.uniform(-0.02, 0.02, 1 << 24).astype(np.float32)
    for path, leaf in parameter_shapes(config).items():
        if path not in parameters:
            parameters[path] = jnp.asarray(np.resize(block, leaf.shape))
    own = unflatten({path: parameters[path] for path in parameter_shapes(config)})
    sample = rng.standard_normal((VIDEOS, args.frames, args.size, args.size, 4), np.float32)
    conditions = Conditions.of_videos(rng.standard_normal((VIDEOS, TOKENS, 768), np.float32))
    run = jax.jit(unet.UNet(config).apply).lower({"params": own}, sample, 500.0, conditions).compile()
    return lambda: jax.block_until_ready(run({"params": own}, sample, 500.0, conditions))


def serve(connection, side: str, args) -> None:
    """A process's work: builds its networks, then times a call of one whenever it is asked by name."""
    if side == "diffusers PyTorch":
        count, call = pytorch(args)
        calls = {side: call}
    else:
        parameters = {}
        calls = {"ours": ours(args, False, parameters)}
        count = sum(leaf.size for leaf in parameters.values())
        calls["ours, with adapter"] = ours(args, True, parameters)
    for call in calls.values():
        call()
    connection.send(count)
    while name := connection.recv():
        begin = time.perf_counter()
        calls[name]()
        connection.send(time.perf_counter() - begin)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--size", type=int, default=32, help="height and width of the latents")
    args = parser.parse_args()

    context, workers, counts = multiprocessing.get_context("spawn"), {}, set()
    for side in ("diffusers PyTorch", "ours"):
        workers[side], theirs = context.Pipe()
        context.Process(target=serve, args=(theirs, side, args), daemon=True).start()
        counts.add(workers[side].recv())
    (count,) = counts  # the two networks are of one size
    workers["ours, with adapter"] = workers["ours"]
    print(f"{count / 1e6:.1f} M parameters, {VIDEOS}x{args.frames} frames of {args.size}x{args.size} latents, float32")
    seconds = {name: [] for name in workers}
    for _ in range(args.rounds):
        for name, worker in workers.items():
            worker.send(name)
            seconds[name].append(worker.recv())
        print("  ".join(f"{name} {times[-1]:6.2f} s" for name, times in seconds.items()), flush=True)
    reference, plain, adapted = (np.array(times) for times in seconds.values())
    print(f"ours over PyTorch:         {np.median(plain / reference):.3f}   (wanted 0.8, bar 1.0)")
    print(f"with adapter over without: {np.median(adapted / plain):.3f}   (bar 1.15)")


if __name__ == "__main__":
    main()
