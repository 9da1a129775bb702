"""A training step on stored latents, prompt states and image tokens, against one that runs the encoders on videos.

    python -m benchmarks.stored_clips [--config configs/train/sd15_stage1.py] [--timed tests/configs/train.py]
                                      [--batch 1] [--steps 10]

Prints what both steps of both configs compute, counted on the plain program; then seconds of both steps of the second
on this machine's first device, with random weights of its networks, steps of both kinds taking turns.
"""

import argparse
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

from i2v_jax import commands, tree
from i2v_jax.devices.mesh import make_mesh
from i2v_jax.families.published import networks_of_config
from i2v_jax.training import placement, setup
from i2v_jax.training.flops import count_flops


def prepare(config, mesh, stored: bool):
    """Returns the step, and shapes of state, frozen weights and batch."""
    configs = networks_of_config(config, jax.devices()[0])
    _, optimizer, step = setup.make(config, configs, placement.empty_conditions(configs, stored))
    trained, frozen = tree.split(placement.abstract_weights(configs), config.train)
    state = placement.abstract_state(config, trained, optimizer, mesh)
    batch = placement.abstract_batch(config, configs, mesh, stored=stored)
    return step, state, placement.abstract_frozen(config, frozen, mesh), batch


def teraflops(config, mesh, stored: bool) -> float:
    """What a step computes, loops counted in full: plain attention and convolutions, all frames encoded at once."""
    plain = config.copy_and_resolve_references()
    plain.objective.vae_slice = 0
    plain.attention = plain.convolution = "xla"
    step, *arguments = prepare(plain, mesh, stored)
    return count_flops(jax.jit(step).trace(*arguments, jax.random.key(0)).jaxpr) / 1e12


def random(shapes):
    """Arrays like these: small random numbers, zeros where they are whole."""
    rng = np.random.default_rng(0)

    def draw(leaf):
        numbers = 0.02 * rng.standard_normal(leaf.shape, np.float32)
        return jnp.asarray(numbers, leaf.dtype)  # of whole numbers, zeros

    return jax.tree.map(draw, shapes)


def load(name: str, batch: int):
    """Returns a config for batches of so many clips."""
    config = commands.load_config(name)
    config.batch = batch
    return config


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/train/sd15_stage1.py")
    parser.add_argument("--timed", default="tests/configs/train.py")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--steps", type=int, default=10)
    arguments = parser.parse_args()
    mesh = make_mesh({}, jax.devices()[:1])
    for name in dict.fromkeys((arguments.config, arguments.timed)):
        videos, stored = (teraflops(*load(name, arguments.batch), mesh, stored) for stored in (False, True))
        print(f"{name}: {videos:.4f} TFLOP on videos, {stored:.4f} on stored clips: {videos / stored:.2f} times less")
    steps, seconds = [], ([], [])
    for stored in (False, True):
        step, *shapes = prepare(*load(arguments.timed, arguments.batch), mesh, stored)
        steps.append((jax.jit(step, donate_argnums=0), random(shapes)))
    for _ in range(arguments.steps + 1):
        for kind, (step, (state, frozen, batch)) in enumerate(steps):
            begin = time.perf_counter()
            state, metrics = step(state, frozen, batch, jax.random.key(0))
            jax.block_until_ready((state, metrics))
            seconds[kind].append(time.perf_counter() - begin)
            steps[kind] = step, (state, frozen, batch)
    ratios = [videos / stored for videos, stored in zip(*(times[1:] for times in seconds))]
    videos, stored = (statistics.median(times[1:]) for times in seconds)
    print(
        f"{arguments.timed} on {jax.devices()[0].device_kind}: {videos:.3f} s on videos, {stored:.3f} on stored clips: "
        f"{statistics.median(ratios):.2f} times faster"
    )


if __name__ == "__main__":
    main()
