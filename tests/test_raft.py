"""RAFT against recorded runs of princeton-vl's and torchvision's; both layouts of its weights; any size of picture."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from convert.__main__ import main
from i2v_jax.errors import InputError
from i2v_jax.models.correlation import correlation_pyramid, look_up
from i2v_jax.models.networks import parameter_shapes
from i2v_jax.models.raft import LARGE, RAFT, SMALL, TINY, corners_aligned, padding_of
from i2v_jax.tree import unflatten
from i2v_jax.weights.infer import infer_config
from i2v_jax.weights.whole import load_network
from tests import metric_oracles
from tests.helpers import relative_error
from tests.test_weights import bytes_of

PRESETS = {"large": LARGE, "small": SMALL}


def saved(state, path, nesting=None):
    torch.save({name: torch.from_numpy(np.array(array)) for name, array in state.items()}, path)
    return path


def random_parameters(config, seed=0):
    rng = np.random.default_rng(seed)
    return unflatten(
        {
            path: jnp.asarray(
                rng.normal(0, np.prod(leaf.shape[:-1]) ** -0.5 if leaf.ndim > 1 else 0.1, leaf.shape), jnp.float32
            )
            for path, leaf in parameter_shapes(config).items()
        }
    )


def channels_last(tensor):
    return np.moveaxis(tensor, 1, -1)


@pytest.mark.parametrize("kind, convolution", [("large", "xla"), ("small", "xla"), ("small", "winograd")])
def test_flows_are_the_published_codes(kind, convolution, tmp_path, measured):
    config, parameters = load_network(
        "raft", saved(metric_oracles.raft_state(kind), tmp_path / "raft.pth"), convolution=convolution
    )
    assert dataclasses.replace(config, convolution="xla") == PRESETS[kind]
    about = metric_oracles.settings("raft")
    frames = metric_oracles.video(about["video"])[:2]
    rows, columns = padding_of(*frames.shape[1:3])
    assert [*columns, *rows] == about["runs"][kind]["pad_left_right_top_bottom"]
    first, second = np.pad(frames, ((0, 0), rows, columns, (0, 0)), mode="edge")[:, None] * np.float32(2 / 255) - 1
    run = jax.jit(functools.partial(RAFT(config).apply, iterations=about["runs"][kind]["iterations"]))
    flow = run({"params": parameters}, first, second)
    wanted = metric_oracles.recorded("raft")
    for name, ours in (("low", flow.low), ("up", flow.full)):
        error = relative_error(ours, channels_last(wanted[f"{kind}.flow_{name}"]))
        measured(f"RAFT {kind}, {convolution}: flow {name} of princeton-vl's and torchvision's", error, 1e-4)


@pytest.mark.parametrize("kind", PRESETS)
def test_both_layouts_come_back_byte_for_byte(kind, tmp_path):
    """Each from itself, from the other, and from our own file."""
    princeton = metric_oracles.raft_state(kind)
    torchvision = metric_oracles.as_torchvision(princeton, kind)
    files = {
        "raft": (saved(princeton, tmp_path / "raft-things.pth"), princeton),
        "raft-torchvision": (saved(torchvision, tmp_path / "raft_C_T_V2.pth"), torchvision),
    }
    assert main(["import", str(files["raft"][0]), str(tmp_path / "ours.safetensors")]) == 0
    sources = [file for file, _ in files.values()] + [tmp_path / "ours.safetensors"]
    for to, (_, wanted) in files.items():
        for number, source in enumerate(sources):
            back = tmp_path / f"{to}-{number}.pth"
            assert main(["export", str(source), str(back), "--to", to]) == 0
            state = torch.load(back, weights_only=True)
            assert bytes_of({name: value.numpy() for name, value in state.items()}) == bytes_of(wanted)
    as_came = tmp_path / "as_came.pth"
    assert main(["export", str(files["raft"][0]), str(as_came)]) == 0
    assert set(torch.load(as_came, weights_only=True)) == set(princeton)
    trees = [load_network("raft", source)[1] for source in sources]
    for tree in trees[1:]:
        jax.tree.map(np.testing.assert_array_equal, tree, trees[0])


def test_inspect_and_a_wrong_place_name_it(tmp_path, capsys):
    file = saved(metric_oracles.raft_state("small"), tmp_path / "raft-small.pth")
    assert main(["inspect", str(file)]) == 0
    assert "RAFT, small: optical flow" in capsys.readouterr().out
    with pytest.raises(InputError, match="raft"):
        from i2v_jax.weights.assemble import load_vae

        load_vae(file)


@pytest.mark.parametrize("config", [LARGE, SMALL, TINY])
def test_shapes_tell_the_config(config):
    assert infer_config("raft", {path: leaf.shape for path, leaf in parameter_shapes(config).items()}) == config


def test_missing_tensors_are_named(tmp_path):
    state = metric_oracles.raft_state("small")
    del state["module.update_block.gru.convz.weight"]
    with pytest.raises(InputError, match=re.escape("update_block.gru.convz")):
        load_network("raft", saved(state, tmp_path / "raft.pth"))


def test_looks_correlations_up_as_the_definition_says():
    """Bilinear samples of zero-padded dot products, one by one, at positions inside, at the edge and far outside."""
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(2, 1, 6, 9, 4)).astype(np.float32)
    pyramid = correlation_pyramid(first, second, 2, 1)
    positions = rng.uniform(-4, 12, (6 * 9, 2)).astype(np.float32)
    positions[:2] = (1e9, 0), (0, -1e9)
    found = np.asarray(look_up(pyramid, positions, 1)).reshape(6 * 9, 2, 3, 3)
    full = np.einsum("pc,hwc->phw", first.reshape(-1, 4), second[0]) / 2
    levels = full, full[:, :6, :8].reshape(-1, 3, 2, 4, 2).mean((2, 4))
    for p, level, i, j in np.ndindex(found.shape):
        if p % 7:
            continue
        image, (x, y) = levels[level][p], positions[p] / 2**level + (i - 1, j - 1)
        wanted = sum(image[v, u] * max(0, 1 - abs(u - x)) * max(0, 1 - abs(v - y)) for v, u in np.ndindex(*image.shape))
        assert found[p, level, i, j] == pytest.approx(wanted, abs=1e-5)


def test_small_pictures_and_batches():
    """Pictures whose last levels have no pixel give numbers, and a pair's flow does not depend on its batch."""
    parameters = random_parameters(SMALL)
    pictures = np.random.default_rng(1).uniform(-1, 1, (2, 3, 24, 40, 3)).astype(np.float32)
    run = jax.jit(functools.partial(RAFT(SMALL).apply, iterations=3))
    together = run({"params": parameters}, *pictures)
    assert together.full.shape == (3, 24, 40, 2) and np.isfinite(together.full).all()
    alone = run({"params": parameters}, *pictures[:, 1:2])
    np.testing.assert_allclose(alone.full[0], together.full[1], rtol=1e-4, atol=1e-4)
    with pytest.raises(InputError, match="multiples of 8"):
        run({"params": parameters}, pictures[0, :, :20], pictures[1, :, :20])


def test_enlarges_with_corners_on_corners():
    values = torch.from_numpy(np.random.default_rng(0).normal(size=(1, 1, 5, 1)).astype(np.float32))
    wanted = torch.nn.functional.interpolate(values, (40, 8), mode="bilinear", align_corners=True)[0, 0, :, :1]
    np.testing.assert_allclose(corners_aligned(5, 40) @ values[0, 0].numpy(), wanted, atol=1e-6)
