"""Training runs: the same on any devices and in any number of processes, stopped or not; what is frozen stays so."""

import dataclasses
import json
import re
import signal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from safetensors.numpy import load_file, save_file

from i2v_jax import commands, parallel
from i2v_jax.models.unet import SD15
from i2v_jax.training import setup
from i2v_jax.training.checkpoints import Checkpoints
from i2v_jax.training.fingerprint import fingerprint
from i2v_jax.training.optimizer import Optimizer
from i2v_jax.training.preemption import EXIT_CODE
from i2v_jax.training.step import init_state, make_step
from i2v_jax.weights import tree
from i2v_jax.weights.shapes import unet_shapes
from tests import processes, train_runs

BATCH = 8
LAYOUTS = (
    ({"data": 8}, "replicated"),
    ({"data": 4, "fsdp": 2}, "fsdp"),
    ({"data": 2, "fsdp": 4}, "replicated"),
)


class Run:
    """The small model on random latents, placed on a mesh as `train.py` places it."""

    def __init__(self, shape, **changes):
        config = commands.load_config("configs/train/tiny.py").copy_and_resolve_references()
        config.update_from_flattened_dict(dict(batch=BATCH) | changes)
        count = int(np.prod(list(shape.values())))
        self.mesh = parallel.make_mesh(shape, jax.devices()[:count])
        assembled = setup.assemble(config, setup.arithmetic(config, jax.devices()[0]))
        configs = {name: it.config for name, it in assembled.items()}
        self.trained, self.frozen = setup.load_weights(assembled, config.train, config, self.mesh)
        self.loss, self.optimizer, step = setup.make(config, configs, np.zeros((77, 32), np.float32))
        abstract = setup.abstract_state(config, tree.unflatten(self.trained), self.optimizer, self.mesh)
        self.state = setup.new_state(self.trained, self.optimizer, config, abstract)
        self.step = setup.jit_step(step, abstract, self.mesh)
        shapes = setup.abstract_batch(config, configs, self.mesh, stored=True)
        self.shapes = {name: it.shape for name, it in shapes.items()} | {"latents": (BATCH, 3, 4, 4, 4)}

    def go(self, steps):
        """Goes on for some steps, and returns their losses."""
        losses = []
        with parallel.use_mesh(self.mesh):
            for _ in range(steps):
                rng = np.random.default_rng(int(self.state.step))
                batch = {name: rng.normal(size=shape).astype("f4") for name, shape in self.shapes.items()}
                placed = parallel.put_batch(batch, self.mesh)
                self.state, metrics = self.step(self.state, self.frozen, placed, jax.random.key(0))
                losses.append(float(metrics.loss))
        return np.array(losses)


@pytest.fixture(scope="module")
def on_one_device():
    run = Run({"data": 1})
    return run, run.go(20)


@pytest.mark.parametrize("shape, frozen", LAYOUTS, ids=json.dumps)
def test_losses_do_not_depend_on_the_devices(shape, frozen, on_one_device, measured, monkeypatch):
    monkeypatch.setattr(parallel, "SMALLEST_SHARDED", 32)  # else nothing of a small model is cut
    run = Run(shape, frozen=frozen)
    cut = [not leaf.is_fully_replicated for leaf in run.state.trained.values()]
    assert any(cut) == (shape.get("fsdp", 1) > 1)
    losses, expected = run.go(20), on_one_device[1]
    assert len(set(expected)) == 20
    what = "x".join(map(str, (shape["data"], shape.get("fsdp", 1))))
    measured(f"losses of 20 steps, {what} devices, frozen weights {frozen}", np.abs(losses / expected - 1).max(), 1e-5)


def test_resumed_on_another_mesh(on_one_device, measured, tmp_path):
    about = dict(frozen=fingerprint(on_one_device[0].frozen))
    begun, checkpoints = Run({"data": 1}), Checkpoints(tmp_path)
    begun.go(5)
    checkpoints.save(5, begun.state, [], about)
    shape, frozen = LAYOUTS[1]
    run = Run(shape, frozen=frozen)
    run.state, _, _ = checkpoints.restore(run.state, dict(frozen=fingerprint(run.frozen)))
    losses, expected = run.go(15), on_one_device[1][5:]
    measured("losses after a resume on another mesh", np.abs(losses / expected - 1).max(), 1e-5)


def test_frozen_weights_are_what_they_were_after_200_steps(on_one_device):
    run, _ = on_one_device
    start = Run({"data": 1})
    before = {path: np.asarray(leaf).tobytes() for path, leaf in start.frozen.items()}
    run.go(200 - int(run.state.step))
    assert int(run.state.step) == 200
    assert run.frozen.keys() == before.keys() and not run.frozen.keys() & run.state.trained.keys()
    assert all(np.asarray(leaf).tobytes() == before[path] for path, leaf in run.frozen.items())
    assert all((leaf != start.trained[path]).any() for path, leaf in run.state.trained.items())


def test_gradients_and_optimizer_state_are_of_the_trained_weights_alone():
    """24.8M x 12 bytes for Stable Diffusion 1.5, and a few counters."""
    gradients = []

    def update(gradient, state, params):
        gradients.append(gradient)
        return optimizer.update(gradient, state, params)

    def bytes_of(arrays):
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(arrays))

    run, optimizer = Run({"data": 1}), Optimizer().make(1)
    step = make_step(run.loss, optax.GradientTransformation(optimizer.init, update))
    batch = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in run.shapes.items()}
    jax.eval_shape(step, run.state, run.frozen, batch, jax.random.key(0))
    count = tree.count(run.trained)
    assert gradients[0].keys() == run.trained.keys() and bytes_of(gradients) == 4 * count
    assert bytes_of(run.state.optimizer) == 8 * count + 8

    shapes = unet_shapes(dataclasses.replace(SD15, self_attention_branches=("first_frame",)))
    trained = tree.select({"unet": tree.unflatten(shapes)}, [r"unet/.*/first_frame/.*"])
    state = jax.eval_shape(lambda trained: init_state(trained, optimizer), trained)
    assert bytes_of(state.trained) + bytes_of(state.optimizer) == 12 * 24_793_280 + 8  # gradients are as the first


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    return train_runs.write_clips(tmp_path_factory.mktemp("clips") / "clips", 12)


@pytest.fixture(scope="module")
def unbroken(clips, tmp_path_factory):
    """The folder of a run of 20 steps on one device."""
    folder = tmp_path_factory.mktemp("unbroken")
    processes.finish(processes.start(command(clips, folder)))
    return folder


def command(clips, folder, **changes):
    return train_runs.train(clips, folder, **dict(steps=20, batch=BATCH, log__every_steps=1) | changes)


def test_two_processes_train_as_one(clips, unbroken, measured, tmp_path):
    distributed = dict(
        mesh__data=4,
        mesh__fsdp=2,
        checkpoints__every_steps=100,
        distributed__mode="flags",
        distributed__coordinator=f"localhost:{processes.free_port()}",
        distributed__processes=2,
    )
    both = [
        processes.start(command(clips, tmp_path, distributed__process=i, **distributed), devices=4) for i in range(2)
    ]
    for process in both:
        processes.finish(process)
    one, two = (np.array(list(train_runs.losses(folder).values())) for folder in (unbroken, tmp_path))
    assert len(one) == len(two) == 20
    measured("losses of 20 steps, 2 processes x 4 devices", np.abs(two / one - 1).max(), 1e-5)


def test_a_run_that_is_killed_and_stopped_ends_as_an_unbroken_one(clips, unbroken, tmp_path):
    def begin():
        return processes.start(command(clips, tmp_path))

    process = begin()
    assert processes.wait_for(process, "training:", 4)
    process.kill()
    process.communicate()
    process = begin()
    assert processes.wait_for(process, "training:", 3)
    process.send_signal(signal.SIGTERM)
    (last,) = re.findall(r"stopped by a signal after step (\d+);", processes.finish(process, EXIT_CODE))
    assert f"from step {last}\n" in processes.finish(begin())
    ours, theirs = train_runs.trained(tmp_path), train_runs.trained(unbroken)
    assert ours.keys() == theirs.keys()
    assert all(ours[name].tobytes() == theirs[name].tobytes() for name in ours)


def test_a_resume_on_other_base_weights_is_refused(clips, unbroken, tmp_path):
    weights = load_file(processes.ROOT / "assets" / "small" / "motion.safetensors")
    name = sorted(weights)[0]
    weights[name] = weights[name] * 1.01
    save_file(weights, tmp_path / "motion.safetensors", {"format": "pt"})
    changed = command(clips, unbroken, weights__motion=tmp_path / "motion.safetensors")
    message = processes.finish(processes.start(changed), 2)
    assert "was trained on other frozen weights" in message and "unet: sha256" in message
    assert "Traceback" not in message
