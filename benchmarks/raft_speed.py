"""Seconds of RAFT's flow against torchvision's PyTorch on a CPU, and how far the two are apart on random weights.

    python -m benchmarks.raft_speed [--kind large] [--pairs 8] [--size 256] [--iterations 20] [--rounds 3]

Float32. The two take turns in one process each, so that one's waiting threads do not slow the other. Wants torchvision
(`pip install torchvision==0.28.0 --no-deps`; its operators are not needed, so that any build will do).
"""

import argparse
import functools
import multiprocessing
import os
import statistics
import sys
import time

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np

from i2v_jax.models.kernels.choice import fastest
from i2v_jax.models.raft import RAFT
from i2v_jax.tree import unflatten
from i2v_jax.weights.measuring import assemble_raft
from i2v_jax.weights.tensors import Tensors
from i2v_jax.weights.translate import recognise

SIDES = ("torchvision", "ours")


def pictures(args) -> np.ndarray:
    """Pairs [2 n h w 3] in [-1, 1]: noise that moves by a few pixels."""
    rng = np.random.default_rng(0)
    first = rng.uniform(-1, 1, (args.pairs, args.size, args.size, 3)).astype(np.float32)
    return np.stack([first, np.roll(first, (2, 3), (1, 2))])


def with_torchvision():
    """Makes `import torchvision` work beside a torch that its build is not for; returns what must live as long."""
    import torch

    try:
        import torchvision  # noqa: F401

        return None
    except RuntimeError:  # for want of operators that RAFT needs none of
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]  # half imported
        return library


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

    torch.set_grad_enabled(False)
    torch.set_num_threads(args.cores)
    library = with_torchvision()
    model = torchvision_model(args.kind)
    first, second = torch.from_numpy(np.moveaxis(pictures(args), -1, 2).copy())

    def call(library=library):
        return np.moveaxis(model(first, second, num_flow_updates=args.iterations)[-1].numpy(), 1, -1)

    return call, {name: tensor.numpy() for name, tensor in model.state_dict().items()}


def our_call(args, weights):
    """Returns a call that gives our flow [n h w 2], with torchvision's weights."""
    imported = recognise(Tensors.of(weights))["raft"]
    found = assemble_raft(imported, convolution=fastest("cpu", jnp.float32)["convolution"])
    parameters = unflatten({path: jnp.asarray(found.parameters[path]) for path in found.parameters})
    run = jax.jit(functools.partial(RAFT(found.config).apply, iterations=args.iterations))
    first, second = pictures(args)
    return lambda: np.asarray(run({"params": parameters}, first, second).full)


def serve(connection, side: str, args) -> None:
    """A process's work: a flow, then the seconds of one whenever it is asked."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.cores])
    call = torchvision_call(args)[0] if side == SIDES[0] else our_call(args, connection.recv())
    connection.send(call())
    while connection.recv():
        begin = time.perf_counter()
        call()
        connection.send(time.perf_counter() - begin)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", choices=("large", "small"), default="large")
    for name, value in dict(pairs=8, size=256, iterations=20, rounds=3, cores=2).items():
        parser.add_argument(f"--{name}", type=int, default=value)
    args = parser.parse_args()

    context, connections, processes, flows = multiprocessing.get_context("spawn"), {}, [], {}
    for side in SIDES:
        connections[side], end = context.Pipe()
        processes.append(context.Process(target=serve, args=(end, side, args), daemon=True))
        processes[-1].start()
    connections["ours"].send(torchvision_call(args)[1])
    for side in SIDES:
        flows[side] = connections[side].recv()
    error = np.linalg.norm(flows["ours"] - flows[SIDES[0]]) / np.linalg.norm(flows[SIDES[0]])
    what = f"{args.pairs} pairs of {args.size}x{args.size}, {args.iterations} iterations"
    print(f"RAFT {args.kind}, {what}, {args.cores} cores")
    print(f"relative difference of the flows: {error:.1e}")
    ratios = []
    for number in range(args.rounds):
        seconds = {}
        for side in SIDES:
            connections[side].send(True)
            seconds[side] = connections[side].recv()
        ratios.append(seconds["ours"] / seconds[SIDES[0]])
        print(f"round {number}: torchvision {seconds[SIDES[0]]:.2f} s, ours {seconds['ours']:.2f} s: {ratios[-1]:.2f}")
    print(f"median of the ratios: {statistics.median(ratios):.2f}")
    for connection in connections.values():
        connection.send(False)


if __name__ == "__main__":
    main()
