"""One training step: gradients of the trained weights alone, an optimizer update, a running average.

The tree is split into trained and frozen weights (`weights.tree.split`); only trained ones have gradients, optimizer
state and float32 copies. The step is a pure function; its placement on devices follows from that of its arguments.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.extend.core import jaxpr_as_fun
from jax.interpreters.partial_eval import dce_jaxpr
from jaxtyping import Array, Float, Int, Key

from i2v_jax.errors import InputError
from i2v_jax.training.objective import Batch, Loss
from i2v_jax.tree import flatten, unflatten
from i2v_jax.weights.new_lora import merged

Flat = dict[str, Array]
"""Path (`unet/...`) -> leaf."""


class State(NamedTuple):
    """What training changes, and so what a checkpoint holds of the arrays."""

    step: Int[Array, ""]  # steps done
    trained: Flat  # float32
    optimizer: optax.OptState
    average: Flat | None  # of the trained weights over steps, where that is asked for


class Metrics(NamedTuple):
    """What a step tells."""

    loss: Float[Array, ""]
    each: Float[Array, " b"]  # every clip's own loss
    gradient_norm: Float[Array, ""]
    update_norm: Float[Array, ""]


def init_state(trained: Mapping[str, Any], optimizer: optax.GradientTransformation, averaging: bool = False) -> State:
    """Returns the state before the first step.

    Args:
      trained: tree of the weights to train, any float dtype; copied to float32.
      optimizer: of the run.
      averaging: whether a running average is kept.
    """
    flat = {path: jnp.array(leaf, jnp.float32) for path, leaf in flatten(trained).items()}
    average = {path: jnp.array(leaf) for path, leaf in flat.items()} if averaging else None
    return State(jnp.zeros((), jnp.int32), flat, optimizer.init(flat), average)


def make_step(
    loss: Loss, optimizer: optax.GradientTransformation, *, accumulate: int = 1, average_decay: float | None = None
) -> Callable[[State, Flat, Batch, Key[Array, ""]], tuple[State, Metrics]]:
    """Returns `step(state, frozen, batch, key) -> (state, metrics)`, to be jitted with the state donated.

    Args:
      loss: of a batch under a whole tree.
      optimizer: of the trained weights.
      accumulate: parts that a batch is worked through in, one after another, to bound memory; the result is that of
        the whole batch.
      average_decay: of the running average; None where none is kept.

    Weights that the loss never looks at, such as the VAE's decoder, stay as they are: as in PyTorch, which knows no
    gradient of them, they do not decay.

    The step's own arguments: `frozen`, the other weights by path, in any dtype; `batch`, see `objective.Batch`; `key`,
    the run's one key, from which each step draws by its number.

    Raises:
      InputError: (by the step, when traced) a batch that does not divide into its parts.
    """

    def of_trained(trained: Flat, frozen: Flat, batch: Batch, draws):
        value, details = loss(unflatten(merged(frozen | trained)), batch, draws)
        return value, details["each"]

    def gradients(trained: Flat, frozen: Flat, batch: Batch, draws):
        function, reached = _traced(of_trained, trained, frozen, batch, draws)
        return *jax.value_and_grad(function, has_aux=True)(trained, frozen, batch, draws), reached

    def step(state: State, frozen: Flat, batch: Batch, key: Key[Array, ""]) -> tuple[State, Metrics]:
        draws = loss.draw(jax.random.fold_in(key, state.step), batch)
        if accumulate == 1:
            (value, each), gradient, reached = gradients(state.trained, frozen, batch, draws)
        else:
            parts = jax.tree.map(lambda x: _parts(x, accumulate), (dict(batch), draws))
            zeros, reached = jax.tree.map(jnp.zeros_like, state.trained), {}

            def add(total, part):
                (value, each), gradient, found = gradients(state.trained, frozen, *part)
                reached.update(found)
                return jax.tree.map(lambda t, g: t + g / accumulate, total, gradient), (value, each)

            gradient, (values, each) = jax.lax.scan(add, zeros, parts)
            value, each = jnp.mean(values), each.swapaxes(0, 1).reshape(-1)
        updates, optimizer_state = optimizer.update(gradient, state.optimizer, state.trained)
        updates = {path: leaf if reached[path] else jnp.zeros_like(leaf) for path, leaf in updates.items()}
        trained = optax.apply_updates(state.trained, updates)
        average = state.average
        if average is not None:
            average = optax.incremental_update(trained, average, 1 - average_decay)
        metrics = Metrics(value, each, optax.global_norm(gradient), optax.global_norm(updates))
        return State(state.step + 1, trained, optimizer_state, average), metrics

    return step


def _traced(function: Callable[..., Any], flat: Flat, *others: Any) -> tuple[Callable[..., Any], dict[str, bool]]:
    """Traces a function once: what computes the same, and which leaves of the first argument its first value needs."""
    program, outputs = jax.make_jaxpr(function, return_shape=True)(flat, *others)
    _, used = dce_jaxpr(program.jaxpr, [True] + [False] * (len(program.out_avals) - 1))
    structure = jax.tree.structure(outputs)

    def same(*arguments: Any) -> Any:
        return jax.tree.unflatten(structure, jaxpr_as_fun(program)(*jax.tree.leaves(arguments)))

    return same, jax.tree.unflatten(jax.tree.structure(flat), used[: len(flat)])


def _parts(x: Array, count: int) -> Array:
    """[b ...] to [count b/count ...], every part taken from all devices."""
    if x.shape[0] % count:
        raise InputError(f"A batch of {x.shape[0]} clips cannot be cut into accumulate={count} equal parts.")
    return x.reshape(x.shape[0] // count, count, *x.shape[1:]).swapaxes(0, 1)
