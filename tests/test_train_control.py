"""A ControlNet is trained beside a frozen model, by the command; what comes out is sampled with and converted."""

import functools
import json
import sys

import diffusers
import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from convert.__main__ import main as convert
from i2v_jax import commands, tree
from i2v_jax.devices.mesh import make_mesh, placer
from i2v_jax.diffusion.noise_schedule import ANIMATEDIFF_SD15
from i2v_jax.errors import InputError
from i2v_jax.families.model import assemble_config
from i2v_jax.sampling.controls.preprocess import canny
from i2v_jax.training.objective import Loss, Objective
from tests import train_runs
from tests.processes import ROOT, run_here

SMALL = ROOT / "tests" / "configs" / "train.py"
CONTROL = dict(control__process="canny", train="('controlnet/.*',)", batch=8, branches="()")


def config_of(**changes):
    config = commands.load_config(SMALL).copy_and_resolve_references()
    config.update_from_flattened_dict({"control.process": "canny", "dtype": "float32", "branches": ()} | changes)
    return config


@functools.cache
def loaded():
    parts = assemble_config(config_of(), jax.devices()[0])
    pairs = {name: part.load(placer(make_mesh({}, jax.devices()[:1]))) for name, part in parts.items()}
    return tuple({name: pair[i] for name, pair in pairs.items()} for i in (0, 1))


def test_a_new_controlnet_changes_no_loss_and_reads_the_pictures_once_trained():
    configs, weights = loaded()
    rng = np.random.default_rng(0)
    video = rng.integers(0, 256, (1, 2, 32, 32, 3)).astype(np.uint8)
    batch = dict(
        video=video,
        tokens=rng.integers(1, 500, (1, 77)).astype(np.int32),
        pixels=rng.normal(size=(1, *(configs["image_encoder"].image_size,) * 2, 3)).astype(np.float32),
        control=np.stack([canny(frames) for frames in video]),
    )
    plain = {name: config for name, config in configs.items() if name != "controlnet"}

    @functools.partial(jax.jit, static_argnums=0)
    def run(with_control, weights, batch, key):
        loss = Loss(configs if with_control else plain, ANIMATEDIFF_SD15, Objective(prompt_dropout=0.0))
        return loss(weights, batch, loss.draw(key, batch))[0]

    key = jax.random.key(0)
    dark = batch | dict(control=0 * batch["control"])
    new = run(True, weights, batch, key)
    assert new == run(True, weights, dark, key)  # no picture counts; nor, but for rounding, the network
    np.testing.assert_allclose(new, run(False, weights, batch, key), rtol=1e-6)
    changed = tree.flatten(weights["controlnet"])
    for path, leaf in changed.items():
        if "/conv_out/" in path or "_blocks_" in path and leaf.ndim == 2 and not leaf.any():
            changed[path] = rng.normal(0, 0.1, leaf.shape).astype(np.float32)
    trained = weights | {"controlnet": tree.unflatten(changed)}
    one, other = (run(True, trained, it, key) for it in (batch, dark))
    assert one != other and abs(one / new - 1) > 1e-4


def test_it_begins_as_the_unet():
    _, weights = loaded()
    unet, control = (tree.flatten(weights[name]) for name in ("unet", "controlnet"))
    shared = [path for path in control if path in unet]
    assert len(shared) > 50 and all(np.array_equal(unet[path], control[path]) for path in shared)
    assert not any("/motion/" in path or "/first_frame/" in path or "/image_tokens/" in path for path in control)
    own = {path: leaf for path, leaf in control.items() if path not in unet}
    assert {path.split("/")[0].rpartition("_")[0] for path, leaf in own.items() if not np.any(leaf)} >= {
        "controlnet_down_blocks",
        "controlnet_mid",
    }
    assert np.any(own["controlnet_cond_embedding/conv_in/kernel"])


def test_the_command_trains_one_that_is_sampled_with_and_converted(tmp_path):
    source = train_runs.write_clips(tmp_path / "clips", 4)
    command = train_runs.train(source, tmp_path / "run", **CONTROL, data__workers=0)
    run_here([*command, "--config.steps=1"])
    first = train_runs.trained(tmp_path / "run")
    out = run_here([*command, "--config.steps=2"])
    assert "going on" in out and "from step 1" in out
    trained = tmp_path / "run" / "trained.safetensors"
    second = load_file(trained)
    assert second and all(path.startswith("controlnet/") for path in second)
    assert any(not np.array_equal(leaf, first[path]) for path, leaf in second.items())

    flags = dict(
        height=32,
        width=32,
        frames=2,
        steps=1,
        output=tmp_path / "out",
        compilation_cache=ROOT / ".cache" / "jax",
        weights__controls=f"('{trained}',)",
        controls__process="canny",
        controls__pictures=f"('{source / '0.mp4'}',)",
    )
    given = [f"--config.{key.replace('__', '.')}={value}" for key, value in flags.items()]
    run_here(["sample.py", "--config=tests/configs/sample.py", *given])
    record = json.loads((tmp_path / "out" / "cat.json").read_text())
    assert record["config"]["weights"]["controls"] == [str(trained)]

    assert convert(["export", str(trained), str(tmp_path / "published"), "--to", "diffusers"]) == 0
    published = diffusers.ControlNetModel.from_pretrained(tmp_path / "published")
    theirs = {path: it.numpy() for path, it in published.state_dict().items()}
    kernel = "controlnet_cond_embedding/conv_in/kernel"
    wanted = theirs["controlnet_cond_embedding.conv_in.weight"].transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(second[f"controlnet/{kernel}"], wanted)

    again = assemble_config(config_of(**{"control.source": str(tmp_path / "published")}), jax.devices()[0])
    _, begins = again["controlnet"].load(placer(make_mesh({}, jax.devices()[:1])))
    begins = tree.flatten({"controlnet": begins})
    assert begins.keys() == second.keys()
    for path, leaf in begins.items():
        np.testing.assert_array_equal(leaf, second[path], path)


@pytest.mark.parametrize(
    "changes, words",
    [
        (dict(control__process="cany"), "No preprocessor 'cany'.*Did you mean 'canny'"),
        (dict(control__process="pose"), "process='pose' draws keypoints, and clips have none"),
        (dict(control__process="canny:low=-5"), "low=-5"),
        (dict(control__process="", control__source="x.safetensors"), "control.source='x.safetensors' without"),
        (dict(loss="reconstruction"), "with loss='reconstruction'"),
        (dict(weights__controls="('x.safetensors',)"), "these are sampled with"),
    ],
)
def test_what_cannot_be_trained_is_said(changes, words, tmp_path, monkeypatch, capsys):
    from i2v_jax.cli import train

    source = train_runs.write_clips(tmp_path / "clips", 2)
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", train_runs.train(source, tmp_path / "run", **(CONTROL | changes)))
    with pytest.raises(InputError, match=words):
        train.main()


def test_stored_clips_have_no_pictures_to_follow(tmp_path, monkeypatch):
    from i2v_jax.cli import train

    source = train_runs.write_stored(tmp_path / "stored", 2)
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", train_runs.train(source, tmp_path / "run", **CONTROL))
    with pytest.raises(InputError, match="holds stored latents. Train on the clips themselves"):
        train.main()
