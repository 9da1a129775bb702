"""RAFT trained on the small world: its pairs, its loss, its file, and RAFT as an estimator beside the others."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from i2v_jax.data.optical_flow import warp
from i2v_jax.errors import InputError
from i2v_jax.evaluation import flow
from i2v_jax.evaluation.networks import Networks
from i2v_jax.models.raft import RAFT, TINY
from i2v_jax.training import flow as training
from i2v_jax.tree import flatten
from i2v_jax.weights.whole import load_network

SMALLEST = ("--steps=2", "--batch=2", "--iterations=2", "--size=32", "--crop=16")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Weights of two steps, and the arguments."""
    arguments = training.parse([f"--folder={tmp_path_factory.mktemp('raft')}", *SMALLEST])
    return training.train(arguments, TINY), arguments


def test_pairs_have_their_true_flow():
    """What the flow fetches from the second picture is the first, with the second cut elsewhere or not."""
    times, crop = 3, 32
    batch = training.pairs(12, 48, crop, times, np.random.default_rng(0))
    assert batch["first"].shape == (12, crop, crop, 3) and batch["flow"].shape == (12, times * crop, times * crop, 2)
    means = batch["flow"].reshape(12, crop, times, crop, times, 2).mean((2, 4)) / times
    before, after, shifted = [], [], 0
    for first, second, ahead in zip(batch["first"], batch["second"], means):
        inner = np.s_[6:-6, 6:-6]
        before.append(np.abs(np.float32(second) - first)[inner].mean())
        after.append(np.abs(warp(second, ahead) - first)[inner].mean())
        shifted += np.abs(np.median(ahead, (0, 1))).max() > 1
    assert np.mean(after) < 0.35 * np.mean(before) and 3 <= shifted < 12


def test_two_steps_write_a_raft_that_measures(trained):
    file, arguments = trained
    config, parameters = load_network("raft", file)
    assert config == TINY
    picture = jnp.zeros((1, 64, 64, 3))
    new = jax.jit(functools.partial(RAFT(TINY).init, iterations=1))(jax.random.key(0), picture, picture)["params"]
    same = jax.tree.map(lambda a, b: bool((a == b).all()), parameters, new)
    kernels = [equal for path, equal in flatten(same).items() if path.endswith("kernel")]
    assert kernels and not any(kernels)
    video = np.random.default_rng(0).integers(0, 255, (3, 40, 44, 3), np.uint8)
    flows = flow.estimator("raft", Networks(dict(raft=file)))(video)
    assert flows.shape == (2, 40, 44, 2) and np.isfinite(flows).all() and flows.any()
    with pytest.raises(InputError, match="there already"):
        training.train(arguments, TINY)
    with pytest.raises(InputError, match="wanted a crop of 4 to 32 pixels"):
        training.train(training.parse([*SMALLEST, "--crop=40", "--folder=elsewhere"]), TINY)


def test_without_weights_raft_says_where_from():
    with pytest.raises(InputError, match="metric_weights.raft=FILE"):
        flow.estimator("raft", Networks({}))
    with pytest.raises(InputError, match="dis, tv_l1, ilk, raft"):
        flow.estimator("rafts", Networks({}))


def test_the_loss_weighs_every_update(trained):
    """Without changes to the pictures it is the sum of each update's distance by its weight; the flow given after every
    update is that of as many updates."""
    _, parameters = load_network("raft", trained[0])
    batch = training.pairs(2, 32, 16, 4, np.random.default_rng(1))
    loss = training.FlowLoss(TINY, 3, 4)
    unchanged = training.Changes(jnp.ones((2, 2, 3)), jnp.zeros((2, 2, 16, 16, 3)), jnp.zeros((2, 16, 16)))
    value, details = jax.jit(loss)(parameters, batch, unchanged)
    pair = [jax.image.resize(np.float32(batch[name]) / 127.5 - 1, (2, 64, 64, 3), "linear") for name in batch][:2]
    wanted = 0
    for updates in (1, 2, 3):
        full = RAFT(TINY).apply({"params": parameters}, *pair, updates).full
        wanted += 0.8 ** (3 - updates) * np.abs(full - batch["flow"]).mean((1, 2, 3))
    np.testing.assert_allclose(details["each"], wanted, rtol=1e-5)
    assert float(value) == pytest.approx(wanted.mean(), rel=1e-5)


def test_changes_keep_to_their_bounds():
    """Colours of both pictures are mostly the same, noise is at most 5 of 255, and some second pictures are covered."""
    loss, batch = training.FlowLoss(TINY, 1, 1), dict(first=np.zeros((64, 16, 16, 3)))
    changes = loss.draw(jax.random.key(0), batch)
    same = (changes.colours[:, 0] == changes.colours[:, 1]).all(-1)
    assert 0.6 < same.mean() < 0.95 and abs(changes.colours - 1).max() <= 0.4
    assert 1 < changes.noise.std() < 5
    covered = changes.covered.mean((1, 2))
    assert 0.2 < (covered > 0).mean() < 0.8 and covered.max() <= 0.1
    shown = changes.apply(jnp.full((64, 2, 16, 16, 3), 100.0))
    assert shown.min() >= 0 and shown.max() <= 255
