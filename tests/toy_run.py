"""A training run that takes seconds: `python -m tests.toy_run FOLDER STEPS [MESH] [COORDINATOR PROCESSES PROCESS]`.

The network is a product of two matrices, batches are counted off, and there is a checkpoint after every step. When all
steps are done, `result.npz` in FOLDER holds the trained weights and the losses of the steps since the last start.
"""

import json
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from i2v_jax.devices.mesh import make_mesh, on_this_host, parameter_sharding, placer, put_batch, use_mesh
from i2v_jax.devices.processes import gather_json, join
from i2v_jax.diffusion.noise_schedule import ANIMATEDIFF_SD15
from i2v_jax.training.checkpoints import Checkpoints
from i2v_jax.training.fingerprint import fingerprint
from i2v_jax.training.objective import Loss, Objective, denoising_loss
from i2v_jax.training.optimizer import Optimizer
from i2v_jax.training.placement import jit_step
from i2v_jax.training.preemption import Preemption
from i2v_jax.training.step import init_state, make_step

BATCH, FRAMES, SIZE, CHANNELS, WIDTH = 8, 2, 2, 4, 1 << 14


class Toy(Loss):
    def __call__(self, tree, batch, draws):
        weights = tree["unet"]

        def predict(noisy, timesteps):
            return jnp.tanh(noisy @ weights["up"]) @ weights["down"] + weights["bias"]

        return denoising_loss(predict, self.schedule, batch["latents"], draws.noise, draws.timesteps, self.objective)


def start(mesh, base=0.0):
    """Returns trained and frozen weights, optimizer and state; `base` is the frozen weights' value."""
    rng = np.random.default_rng(0)
    make = placer(mesh)
    trained = {
        "unet": {
            "up": make("", rng.normal(size=(CHANNELS, WIDTH)).astype(np.float32) / 2),
            "down": make("", np.zeros((WIDTH, CHANNELS), np.float32)),
        }
    }
    frozen = {"unet/bias": make("", np.full(CHANNELS, base, np.float32))}
    optimizer = Optimizer(learning_rate=1e-2).make(1000)
    state = jax.jit(lambda tree: init_state(tree, optimizer, averaging=True))(trained)
    state = jax.tree.map(lambda x: jax.device_put(x, parameter_sharding(mesh, x.shape)), state)
    return frozen, optimizer, state


def batch_of(taken, mesh):
    """This process's share of a batch, placed; `taken` batches came before it."""
    latents = np.random.default_rng(taken).normal(size=(BATCH, FRAMES, SIZE, SIZE, CHANNELS)).astype(np.float32)
    share = BATCH // jax.process_count()
    first = jax.process_index() * share
    return put_batch({"latents": latents[first : first + share]}, mesh)


def main(folder, steps, mesh="{}", *distributed):
    if distributed:
        coordinator, processes, process = distributed
        join("flags", coordinator, int(processes), int(process))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    mesh = make_mesh({"data": -1} | json.loads(mesh))
    preemption = Preemption()
    frozen, optimizer, state = start(mesh)
    loss = Toy({}, ANIMATEDIFF_SD15, Objective())
    run = jit_step(make_step(loss, optimizer, average_decay=0.9), state, mesh)
    about = dict(frozen=fingerprint(frozen), seed=0, config={})
    checkpoints = Checkpoints(Path(folder) / "checkpoints", keep=2)
    taken, losses = 0, []
    if checkpoints.latest() is not None:
        state, positions, _ = checkpoints.restore(state, about)
        taken = positions[jax.process_index()]["taken"]
    print(f"begins at {int(state.step)}", flush=True)
    with use_mesh(mesh):
        for number in range(int(state.step) + 1, int(steps) + 1):
            state, metrics = run(state, frozen, batch_of(taken, mesh), jax.random.key(0))
            taken += 1
            losses.append(metrics.loss)
            stopping = preemption.reached(number)
            checkpoints.save(number, state, gather_json({"taken": taken}), about, float(metrics.loss))
            print(f"step {number}", flush=True)
            if stopping:
                checkpoints.close()
                sys.exit(preemption.exit_code)
            time.sleep(0.01 if int(steps) < 1000 else 0.2)
    checkpoints.close()
    whole = jax.device_get(on_this_host(state.trained, mesh))
    if jax.process_index() == 0:
        np.savez(
            Path(folder) / "result.npz", losses=np.array(losses), **{k.replace("/", "."): v for k, v in whole.items()}
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
