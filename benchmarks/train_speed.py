"""Seconds of a training step, clips a second, and the share of the device's peak that it reaches; one device.

    python -m benchmarks.train_speed [--config FILE] [--config.KEY=VALUE ...]

For GPUs and TPUs. Random weights of the real sizes, one random batch of stored clips (latents, text and image tokens
ready), the config's own batch, size, kind of numbers and way to save memory. The arithmetic of a step is counted on the
plain program, by `benchmarks.training_flops`: what is computed again to save memory is not counted as work.
"""

import time

import jax

from benchmarks.sample_speed import random_parameters
from benchmarks.training_flops import flops
from i2v_jax import commands, tree
from i2v_jax.devices.mesh import make_mesh, use_mesh
from i2v_jax.families.published import networks_of_config
from i2v_jax.models.networks import parameter_shapes
from i2v_jax.planning.plan import DEFAULT
from i2v_jax.training import placement, setup
from i2v_jax.training.monitor import peak_flops
from i2v_jax.training.step import init_state

STEPS = 10  # timed, after the one that compiles


def random_batch(shapes: dict) -> dict:
    """Standard normal arrays of the given shapes."""
    keys = jax.random.split(jax.random.key(0), len(shapes))
    return {
        name: jax.random.normal(key, leaf.shape, leaf.dtype)
        for key, (name, leaf) in zip(keys, shapes.items(), strict=True)
    }


def main() -> None:
    config = commands.read_config(DEFAULT, usage=__doc__)
    device = jax.devices()[0]
    mesh = make_mesh({}, [device])
    configs = networks_of_config(config, device)
    loss, optimizer, step = setup.make(config, configs, placement.empty_conditions(configs, stored=True))
    weights = {"unet": random_parameters(parameter_shapes(configs["unet"]))}
    trained, frozen = tree.split(weights, config.train)
    state, frozen = init_state(trained, optimizer, config.average_decay is not None), tree.flatten(frozen)
    batch = random_batch(placement.abstract_batch(config, configs, mesh, stored=True))
    key = jax.random.key(config.seed)
    with use_mesh(mesh):
        program = jax.jit(step, donate_argnums=0)
        begin = time.perf_counter()
        state, metrics = program(state, frozen, batch, key)
        metrics.loss.block_until_ready()
        compiling, begin = time.perf_counter() - begin, time.perf_counter()
        for _ in range(STEPS):
            state, metrics = program(state, frozen, batch, key)
        metrics.loss.block_until_ready()
        seconds = (time.perf_counter() - begin) / STEPS
    count = sum(leaf.size for leaf in state.trained.values())
    work = config.batch * plain_flops(config)
    size = f"{config.data.frames}x{config.data.height}x{config.data.width}"
    print(f"{device.device_kind}: {count:,} trained parameters, {config.batch} clips of {size}, remat={config.remat}")
    print(f"first step, compiling: {compiling:.1f} s; step {seconds:.3f} s, {config.batch / seconds:.2f} clips/s")
    peak = peak_flops(device)
    share = f"; {work / seconds / peak:.0%} of {peak / 1e12:.0f}" if peak else ""
    print(f"{work / 1e12:.1f} TFLOP a step: {work / seconds / 1e12:.1f} TFLOP/s{share}")
    stats = device.memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        print(f"memory at most: {stats['peak_bytes_in_use'] / 1e9:.1f} GB")


def plain_flops(config) -> float:
    """Operations of a training step of one clip, nothing of it computed twice."""
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.batch, config.attention, config.convolution, config.remat = 1, "xla", "xla", "none"
    return flops(config, config.train)[1]


if __name__ == "__main__":
    commands.run(main)
