"""Seconds of one UNet call, with motion modules, against diffusers' PyTorch on a CPU; and the adapter's cost.

    python -m benchmarks.unet_speed [--family sd15|sdxl] [--rounds 5] [--calls 1]

Float32, random weights of the real size: SD1.5 with AnimateDiff v1 (1,276.7 M parameters, two videos) or SDXL with its
beta motion modules (one video). PyTorch and JAX each have a process, so that one's waiting threads do not slow the
other, and take turns, so that whatever else the machine does falls on both. SDXL's processes last one turn each: its
weights do not fit into memory twice. The figure is the median over rounds of each round's ratio.
"""

import argparse
import collections
import dataclasses
import multiprocessing
import os
import tempfile
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

FAMILIES = {
    "sd15": dataclasses.replace(unet.SD15, motion=motion.V1),
    "sdxl": dataclasses.replace(unet.SDXL, motion=motion.SDXL_BETA),
}
VIDEOS = {"sd15": 2, "sdxl": 1}
TOKENS = 77
SIDES = ("diffusers PyTorch", "ours")
ADAPTED = "ours, with adapter"
BLOCK = np.random.default_rng(0).uniform(-0.02, 0.02, 1 << 22).astype(np.float32)


def pytorch(args):
    """Returns a call of diffusers' UNetMotionModel, as its pipelines call it."""
    import torch
    from diffusers import UNetMotionModel

    torch.set_grad_enabled(False)
    torch.set_num_threads(args.cores)
    config = FAMILIES[args.family]
    with torch.device("meta"):
        model = UNetMotionModel.from_config(config.to_diffusers())
    model = model.to_empty(device="cpu").eval()
    for tensor in [*model.parameters(), *model.buffers()]:
        tensor.copy_(torch.from_numpy(np.resize(BLOCK, tensor.shape)))
    count = sum(parameter.numel() for parameter in model.parameters())
    videos = VIDEOS[args.family]
    sample = torch.randn(videos, 4, args.frames, args.size, args.size)
    text = torch.randn(videos * args.frames, TOKENS, config.cross_attention_dim)
    added = {}
    if config.added_conditioning:
        pooled = torch.randn(videos, config.added_conditioning.pooled_dim)
        added["added_cond_kwargs"] = {"text_embeds": pooled, "time_ids": torch.full((videos, 6), 256.0)}
    return count, lambda: model(sample, torch.tensor(500), encoder_hidden_states=text, **added)


def networks_of(side: str, args) -> list[str]:
    """Names of the networks that a side's process times."""
    return [side, ADAPTED] if side == "ours" and args.adapter else [side]


def ours(args, adapter: bool, parameters):
    """Returns a compiled call of our UNet, and its parameters: the given ones and what else it wants."""
    config = dataclasses.replace(
        FAMILIES[args.family],
        self_attention_branches=("first_frame",) if adapter else (),
        **fastest("cpu", jnp.float32),
    )
    for path, leaf in parameter_shapes(config).items():
        if path not in parameters:
            parameters[path] = jnp.asarray(np.resize(BLOCK, leaf.shape))
    own = unflatten({path: parameters[path] for path in parameter_shapes(config)})
    rng = np.random.default_rng(0)
    videos = VIDEOS[args.family]
    sample = rng.standard_normal((videos, args.frames, args.size, args.size, 4), np.float32)
    text = rng.standard_normal((videos, TOKENS, config.cross_attention_dim), np.float32)
    added = {}
    if config.added_conditioning:
        pooled = rng.standard_normal((videos, config.added_conditioning.pooled_dim), np.float32)
        added = {"pooled": pooled, "sizes": np.full((videos, 6), 256.0, np.float32)}
    conditions = Conditions.of_videos(text, **added)
    run = jax.jit(unet.UNet(config).apply).lower({"params": own}, sample, 500.0, conditions).compile()
    return lambda: jax.block_until_ready(run({"params": own}, sample, 500.0, conditions))


def serve(connection, side: str, cache: str, args) -> None:
    """A process's work: builds its networks, then times a call of one whenever it is asked by name."""
    jax.config.update("jax_compilation_cache_dir", cache)  # a process of a later turn compiles nothing
    if side == "diffusers PyTorch":
        count, call = pytorch(args)
        calls = {side: call}
    else:
        parameters = {}
        calls = {"ours": ours(args, False, parameters)}
        count = sum(leaf.size for leaf in parameters.values())
        if args.adapter:
            calls[ADAPTED] = ours(args, True, parameters)
    for call in calls.values():
        call()
    connection.send(count)
    while name := connection.recv():
        begin = time.perf_counter()
        calls[name]()
        connection.send(time.perf_counter() - begin)


class Worker:
    """A side's process, its network built and warm."""

    def __init__(self, side: str, cache: str, args):
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, side, cache, args), daemon=True)
        self.process.start()
        theirs.close()  # so that the process's death is noticed
        self.parameters = self.connection.recv()

    def time(self, name: str) -> float:
        self.connection.send(name)
        return self.connection.recv()

    def stop(self) -> None:
        self.connection.send(None)
        self.process.join()


def take_turns(args, cache: str):
    """Yields each side's process in turn, `--rounds` times; SDXL's are made anew for each turn."""
    if args.family == "sdxl":
        for side in SIDES * args.rounds:
            worker = Worker(side, cache, args)
            yield side, worker
            worker.stop()
    else:
        workers = {side: Worker(side, cache, args) for side in SIDES}
        for _ in range(args.rounds):
            yield from workers.items()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", choices=FAMILIES, default="sd15")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--calls", type=int, default=1, help="of each network in a turn; their median counts")
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--size", type=int, default=32, help="height and width of the latents")
    parser.add_argument(
        "--adapter", action=argparse.BooleanOptionalAction, help="time the network with I2V-Adapter too; sd15: yes"
    )
    parser.add_argument("--cores", type=int, default=2, help="that either side may use")
    args = parser.parse_args()

    if args.adapter is None:
        args.adapter = args.family == "sd15"

    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.cores])  # inherited; XLA makes as many threads
    seconds, counts = collections.defaultdict(list), set()
    with tempfile.TemporaryDirectory() as cache:
        for side, worker in take_turns(args, cache):
            counts.add(worker.parameters)
            for name in networks_of(side, args):
                seconds[name].append(np.median([worker.time(name) for _ in range(args.calls)]))
                print(f"{name} {seconds[name][-1]:6.2f} s", flush=True)
    (count,) = counts  # the two networks are of one size
    shape = f"{VIDEOS[args.family]}x{args.frames} frames of {args.size}x{args.size} latents"
    print(f"{args.family}, {count / 1e6:.1f} M parameters, {shape}, float32, {args.cores} cores")
    reference, plain = (np.array(seconds[side]) for side in SIDES)
    print(f"ours over PyTorch:         {np.median(plain / reference):.3f}   (wanted 0.8, bar 1.0)")
    if args.adapter:
        print(f"with adapter over without: {np.median(seconds[ADAPTED] / plain):.3f}   (bar 1.15)")


if __name__ == "__main__":
    main()
