"""Arithmetic of a training step over that of the loss alone: about 2 where little is trained, 3 where everything is.

    python -m benchmarks.training_flops [--config FILE] [--config.KEY=VALUE ...]

Counted on the traced program: nothing is compiled or run, no weights are needed. Attention is plain, nothing is
recomputed, and batches hold latents, text and image tokens ready.
"""

import jax

from i2v_jax import commands, tree
from i2v_jax.devices.mesh import make_mesh
from i2v_jax.families.published import networks_of_config
from i2v_jax.planning.plan import DEFAULT
from i2v_jax.training import placement, setup
from i2v_jax.training.flops import count_flops
from i2v_jax.training.step import init_state


def flops(config, patterns: tuple[str, ...]) -> tuple[float, float]:
    """Returns the operations of the loss, and those of a training step of what the patterns match."""
    mesh = make_mesh({}, jax.devices()[:1])
    configs = networks_of_config(config, jax.devices()[0])
    loss, optimizer, step = setup.make(config, configs, placement.empty_conditions(configs, stored=True))
    trained, frozen = tree.split(placement.abstract_weights({"unet": configs["unet"]}), patterns)
    state = jax.eval_shape(lambda trained: init_state(trained, optimizer), trained)
    batch, frozen = placement.abstract_batch(config, configs, mesh, stored=True), tree.flatten(frozen)
    key = jax.eval_shape(lambda: jax.random.key(0))

    def value(trained, frozen, batch, key):
        return loss(tree.unflatten(frozen | trained), batch, loss.draw(key, batch))[0]

    forward = jax.jit(value).trace(state.trained, frozen, batch, key)
    training = jax.jit(step).trace(state, frozen, batch, key)
    return count_flops(forward.jaxpr), count_flops(training.jaxpr)


def main() -> None:
    config = commands.read_config(DEFAULT, usage=__doc__)
    with config.unlocked():
        config.batch, config.attention, config.convolution, config.remat = 1, "xla", "xla", "none"
    forward, training = flops(config, config.train)
    _, everything = flops(config, ("unet/.*",))
    print(f"loss {forward / 1e12:.3f} TFLOP a clip of {config.data.frames}x{config.data.height}x{config.data.width}")
    print(f"training {training / 1e12:.3f} TFLOP: {training / forward:.2f} times   (bar 2.3)")
    print(f"training the whole UNet {everything / 1e12:.3f} TFLOP: {everything / forward:.2f} times")


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    commands.run(main)
