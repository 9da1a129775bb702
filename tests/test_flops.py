"""The count of a step's arithmetic: XLA's own where that is right; the same however a step is cut into loops."""

from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from i2v_jax import commands, tree
from i2v_jax.devices.mesh import make_mesh
from i2v_jax.families.published import networks_of_config
from i2v_jax.models.attention import attention
from i2v_jax.training import placement, setup
from i2v_jax.training.flops import count_flops

CONFIG = Path(__file__).resolve().parents[1] / "tests" / "configs" / "train.py"


def both(function, *arguments):
    """Our count and XLA's, of which elementwise operations are a part."""
    traced = jax.jit(function).trace(*arguments)
    return count_flops(traced.jaxpr), traced.lower().cost_analysis()["flops"]


@pytest.mark.parametrize(
    "stride, padding, spread, spacing",
    [(1, "SAME", 1, 1), (2, "VALID", 1, 1), (2, "SAME", 1, 2), (1, ((2, 1), (0, 3)), 2, 1)],
)
def test_products_and_convolutions(stride, padding, spread, spacing):
    def convolve(x, kernel):
        names = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(
            x, kernel, (stride, stride), padding, (spread, spread), (spacing, spacing), dimension_numbers=names
        )

    ours, xlas = both(convolve, jnp.ones((2, 16, 12, 8)), jnp.ones((3, 3, 8, 6)))
    assert ours == xlas
    ours, xlas = both(lambda x, y: jnp.einsum("bij,bjk->bik", x, y), jnp.ones((3, 4, 5)), jnp.ones((3, 5, 6)))
    assert ours == xlas == 2 * 3 * 4 * 5 * 6


def test_rounds_of_loops_recomputation_and_all_devices():
    w = jnp.ones((16, 16))
    product = 2 * 16**3

    def loop(w):
        return jax.lax.scan(lambda x, _: (x @ w, None), w, length=10)[0]

    def twice(w):
        return jax.checkpoint(lambda w: jnp.sin(w @ w))(w).sum()

    assert both(loop, w)[0] == 10 * product
    assert both(jax.value_and_grad(twice), w)[0] == 4 * product  # forward, again, and two backward
    mesh = make_mesh({"data": 8})
    spread = jax.shard_map(lambda x: x @ x.T, mesh=mesh, in_specs=jax.P("data"), out_specs=jax.P("data"))
    assert both(spread, jnp.ones((32, 16)))[0] == 8 * 2 * 4 * 16 * 4


def test_the_attention_kernel_says_what_plain_attention_does():
    q, k = jnp.ones((1, 2, 128, 2, 40), jnp.bfloat16), jnp.ones((1, 1, 128, 2, 40), jnp.bfloat16)
    plain, kernel = (
        count_flops(jax.jit(lambda q, k, it=it: attention(q, k, k, it)).trace(q, k).jaxpr) for it in ("xla", "flash")
    )
    assert plain == kernel == 4 * 2 * 2 * 128 * 128 * 40


def step_of(**changes):
    """A training step of the tiny config on videos, and its arguments' shapes."""
    config = commands.load_config(CONFIG)
    with config.unlocked():
        config.attention = config.convolution = "xla"
        config.accumulate = changes.get("accumulate", 1)
        config.objective.vae_slice = changes.get("vae_slice", 0)
    mesh = make_mesh({}, jax.devices()[:1])
    configs = networks_of_config(config, jax.devices()[0])
    made = setup.make(config, configs, placement.empty_conditions(configs, stored=False))
    trained, frozen = tree.split(placement.abstract_weights(configs), config.train)
    state = placement.abstract_state(config, trained, made.optimizer, mesh)
    batch, frozen = placement.abstract_batch(config, configs, mesh), placement.abstract_frozen(config, frozen, mesh)
    return made.step, state, frozen, batch, jax.eval_shape(lambda: jax.random.key(0))


def test_a_training_step_whatever_its_loops(measured):
    plain, xlas = both(*step_of())
    assert 0.75 * xlas < plain < xlas
    accumulated, seen = both(*step_of(accumulate=4))
    assert seen < 0.5 * accumulated  # why XLA's is not taken
    measured("operations of a step in four parts over those of a whole one", abs(accumulated / plain - 1), 1e-3)
    sliced, _ = both(*step_of(vae_slice=1))
    measured("operations of a step that encodes frame by frame", abs(sliced / plain - 1), 1e-3)
