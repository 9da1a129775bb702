"""The text-in-time adapter: nothing at first, then frames heed the prompt; trained alone, kept, converted, sampled."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from safetensors.numpy import load_file

from i2v_jax import commands, tree
from i2v_jax.errors import InputError
from i2v_jax.families.model import Model
from i2v_jax.families.weights import Weights
from i2v_jax.models.adapters import ADAPTER_PATH, Shared
from i2v_jax.models.adapters.text_in_time import TextInTime, positions
from i2v_jax.models.conditions import Conditions
from i2v_jax.models.motion import MotionConfig
from i2v_jax.models.networks import parameter_shapes
from i2v_jax.models.unet import SD15, SDXL, TINY, UNet
from i2v_jax.planning import plan
from i2v_jax.tree import select, unflatten
from i2v_jax.weights.assemble import load_unet
from i2v_jax.weights.save import save_own
from i2v_jax.weights.unet_parts import part_of_path
from tests import train_runs
from tests.conversions import convert
from tests.helpers import exact_jit, relative_error
from tests.processes import ROOT, run_here
from tests.tiny import SMALL

BASE = dataclasses.replace(TINY, motion=MotionConfig(mid_block=True, num_heads=4, norm_groups=8))
WITH = dataclasses.replace(BASE, motion_branches=("text_in_time",))
NAME = "text_in_time"
LAYER = f"down_blocks_0/layers_0/motion/{NAME}"
PUBLISHED = "down_blocks.0.motion_modules.0.temporal_transformer"


def random_tree(config, seed=0):
    random = np.random.default_rng(seed)
    shapes = parameter_shapes(config).items()
    return unflatten({path: 0.2 * random.standard_normal(leaf.shape, np.float32) for path, leaf in shapes})


def of_adapter(params):
    return select({"unet": params}, [rf"unet/.*/motion/{NAME}/.*"])


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Our own files of a UNet with motion modules and the adapter: whole, without it, and it alone."""
    folder = tmp_path_factory.mktemp(NAME)
    params = random_tree(WITH)
    save_own(folder / "whole.safetensors", {"unet": params}, {"unet": WITH})
    base = select({"unet": params}, [rf"unet/(?!.*/{NAME}/).*"])
    save_own(folder / "base.safetensors", base, {"unet": BASE})
    save_own(folder / "adapter.safetensors", of_adapter(params), {"unet": WITH})
    return folder


def inputs(frames=3):
    random = np.random.default_rng(1)
    latents = jnp.asarray(random.standard_normal((2, frames, 8, 8, 4)), jnp.float32)
    text = jnp.asarray(random.standard_normal((2, 5, TINY.cross_attention_dim)), jnp.float32)
    return latents, jnp.full((2,), 500.0), Conditions.of_videos(text)


def test_a_new_one_is_the_base_exactly(files):
    _, base = load_unet(files / "base.safetensors")
    config, params = load_unet(files / "base.safetensors", motion_branches=(NAME,))
    assert config == WITH
    new = tree.flatten(of_adapter(params)["unet"])
    for path, leaf in new.items():
        assert bool(np.any(leaf)) == (not any(part in path for part in ("/cc_", "/bias"))), path
    np.testing.assert_array_equal(new[f"{LAYER}/queries"], positions(new[f"{LAYER}/queries"].shape))
    given = inputs()
    outputs = [exact_jit(UNet(c).apply)({"params": p}, *given) for c, p in ((BASE, base), (WITH, params))]
    np.testing.assert_array_equal(*outputs)


def told(text, x, params, **strengths):
    module = TextInTime(x.shape[2])
    return module.apply({"params": params}, x, Shared(None, Conditions(text), strengths))


def test_every_frame_heeds_the_prompt_in_its_own_way(measured):
    random = np.random.default_rng(0)
    x = jnp.asarray(np.broadcast_to(random.standard_normal((1, 1, 1, 16)), (1, 4, 3, 16)), jnp.float32)
    texts = jnp.asarray(random.standard_normal((2, 1, 5, 8)), jnp.float32)
    shapes = jax.eval_shape(lambda: TextInTime(3).init(jax.random.key(0), x, Shared(None, Conditions(texts[:1]))))
    params = jax.tree.map(lambda leaf: random.standard_normal(leaf.shape).astype(np.float32), shapes["params"])
    one, other = (np.asarray(told(text[None], x, params)) for text in texts)
    assert relative_error(one, other) > 1e-2
    assert all(relative_error(one[:, :, i], one[:, :, j]) > 1e-2 for i, j in ((0, 1), (1, 2)))
    np.testing.assert_array_equal(one[:, 0], one[:, 3])  # places of the same features are told the same
    np.testing.assert_array_equal(told(texts[:1], x, params, text_in_time=0.0), x)
    half = np.asarray(told(texts[:1], x, params, text_in_time=0.5))
    measured("text in time at half its strength", relative_error(half, (x + one) / 2), 1e-6)
    of_frames = jnp.broadcast_to(texts[:1], (1, 3, 5, 8))  # each frame with a text of its own, here the same
    measured("text in time, a text for each frame", relative_error(told(of_frames, x, params), one), 1e-6)


def test_it_is_a_part_of_its_own(files):
    paths = list(parameter_shapes(WITH))
    own = [path for path in paths if f"/{NAME}/" in path]
    assert own and {part_of_path(path) for path in own} == {NAME}
    assert {part_of_path(path) for path in paths if "/motion/" in path and path not in own} == {"motion"}
    assert all(bool(ADAPTER_PATH.fullmatch(path)) == (path in own) for path in paths)
    config, params = load_unet(files / "base.safetensors", adapters={NAME: files / "adapter.safetensors"})
    assert config == WITH
    jax.tree.map(np.testing.assert_array_equal, params, random_tree(WITH))
    without = select({"unet": random_tree(WITH)}, [r"unet/(?!.*/motion/).*"])
    save_own(files / "pictures.safetensors", without, {"unet": TINY})
    with pytest.raises(InputError, match="stands in motion modules, and .*pictures.safetensors has none"):
        load_unet(files / "pictures.safetensors", adapters={NAME: files / "adapter.safetensors"})


def contents(path):
    return {name: (array.shape, array.dtype.name, array.tobytes()) for name, array in load_file(path).items()}


def test_it_is_converted_like_other_adapters(files, tmp_path, capsys):
    published, again = tmp_path / "published.safetensors", tmp_path / "again.safetensors"
    convert("export", files / "adapter.safetensors", published, "--to", "i2v-adapter")
    names = load_file(published)
    own = load_file(files / "adapter.safetensors")
    np.testing.assert_array_equal(names[f"{PUBLISHED}.queries"], own[f"unet/{LAYER}/queries"])
    np.testing.assert_array_equal(names[f"{PUBLISHED}.qformer.to_k.weight"].T, own[f"unet/{LAYER}/to_k/kernel"])
    convert("import", published, again)
    assert contents(again) == contents(files / "adapter.safetensors")
    assert convert("verify", files / "adapter.safetensors", published) == 0
    capsys.readouterr()
    convert("inspect", files / "adapter.safetensors")
    out = capsys.readouterr().out
    assert "EDG's text in time" in out.splitlines()[0] and "unet: text-in-time adapter" in out
    for to, name in (("animatediff", "motion.ckpt"), ("diffusers", "folder")):
        convert("export", files / "whole.safetensors", tmp_path / name, "--to", to)
        assert "left out" in (out := capsys.readouterr().out) and "text-in-time adapter" in out
    convert("inspect", tmp_path / "motion.ckpt")
    assert "text" not in capsys.readouterr().out.splitlines()[0]


@pytest.mark.parametrize("family, config", [("sd15", SD15), ("sdxl", SDXL)])
def test_the_configs_train_it_alone(family, config):
    given = commands.load_config(ROOT / "configs" / "train" / f"{NAME}.py:{family}")
    assert given.branches == (NAME,)
    shapes = parameter_shapes(dataclasses.replace(config, motion=MotionConfig(), motion_branches=(NAME,)))
    trained = tree.flatten(select({"unet": unflatten(shapes)}, given.train))
    assert trained.keys() == {f"unet/{path}" for path in shapes if f"/{NAME}/" in path}
    assert 30e6 < sum(np.prod(leaf.shape) for leaf in trained.values()) < 40e6


FLAGS = [f"--config.branches=('{NAME}',)", f"--config.train=('unet/.*/motion/{NAME}/.*',)"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of two steps of the small model, gone on with for two more."""
    folder = tmp_path_factory.mktemp("trained")
    clips = train_runs.write_stored(folder / "stored", 8)
    command = [*train_runs.train(clips, folder / "run", batch=4), *FLAGS]
    run_here([*command, "--config.steps=2"])
    before = train_runs.trained(folder / "run")
    second = run_here([*command, "--config.steps=4"])
    return folder / "run", second, before


def test_it_is_trained_gone_on_with_and_sampled(trained, tmp_path):
    folder, second, before = trained
    weights = train_runs.trained(folder)
    assert weights and all(f"/motion/{NAME}/" in path for path in weights)
    assert "going on" in second and "from step 2" in second
    for path, leaf in weights.items():
        assert not np.array_equal(leaf, before[path]) or path.endswith("/queries"), path
    flags = dict(height=32, width=32, frames=2, steps=1, output=tmp_path, text_in_time_scale=0.5)
    flags |= dict(compilation_cache=ROOT / ".cache" / "jax", weights__trained=f"('{folder / 'trained.safetensors'}',)")
    given = [f"--config.{key.replace('__', '.')}={value}" for key, value in flags.items()]
    run_here(["sample.py", "--config=tests/configs/sample.py", *given])
    record = json.loads((tmp_path / "cat.json").read_text())
    assert record["config"]["text_in_time_scale"] == 0.5


def test_it_is_planned():
    config = commands.load_config(ROOT / "tests" / "configs" / "train.py")
    with config.unlocked():
        config.update(dict(dtype="bfloat16", attention="xla", branches=(NAME,), train=(rf"unet/.*/{NAME}/.*",)))
    _, devices = plan.slice_of("v5e:2x2")
    training = plan.training_program(config, devices, stored=True)
    assert training.kinds["trained"][0] and all(f"/{NAME}/" in path for path in training.kinds["trained"][0])
    sampling = plan.sampling_program(config, devices)
    assert any(f"/{NAME}/" in path for path in tree.flatten(sampling.kinds["frozen"]))


def test_all_of_edg_by_commands(trained, tmp_path):
    """Stage 1 beside motion modules that change over the run, away from a fine-tuning and beyond it."""
    clips, pre = trained[0].parent / "stored", SMALL / "motion.safetensors"
    tuning = train_runs.train(clips, tmp_path / "tuned", batch=4, steps=2, train="('unet/.*/motion/.*',)")
    run_here([*tuning, "--config.optimizer.learning_rate=1e-2"])
    models = dict(pre=pre, tuned=tmp_path / "tuned" / "trained.safetensors")
    results = {name: tmp_path / f"{name}.safetensors" for name in ("dyn", "con")}
    named = (f"{name}={file}" for name, file in (models | results).items())
    convert("merge", "edg", *named, "--dtype", "f32")
    convert("import", pre, tmp_path / "pre.safetensors")
    for file in results.values():
        convert("import", file, file.with_suffix(".own.safetensors"))
    before, tuned = load_file(tmp_path / "pre.safetensors"), train_runs.trained(tmp_path / "tuned")
    dyn, con = (load_file(tmp_path / f"{name}.own.safetensors") for name in results)
    for path in tuned:
        change, away, beyond = tuned[path] - before[path], dyn[path] - before[path], con[path] - tuned[path]
        assert np.abs(away).max() > 1e-4 < np.abs(beyond).max()
        assert (away * change <= 0).all() and (beyond * change >= 0).all(), path

    flags = dict(height=32, width=32, frames=2, steps=2, t0=1, compilation_cache=ROOT / ".cache" / "jax")
    flags |= dict(weights__trained=f"('{trained[0] / 'trained.safetensors'}',)", output=tmp_path / "videos")
    flags |= dict(weights_over_time=f"((500, '{results['dyn']}'), (0, '{results['con']}'))")
    given = [f"--config.{key.replace('__', '.')}={value}" for key, value in flags.items()]
    told = run_here(["sample.py", "--config=tests/configs/sample.py", *given])
    assert "weights over time: 2 sets" in told
    record = json.loads((tmp_path / "videos" / "cat.json").read_text())
    used = [Path(path).name for path in record["weights"]]
    assert {"dyn.safetensors", "con.safetensors", "trained.safetensors"} <= set(used)
    model = Model.load(Weights.of_run(ConfigDict(record["config"])))
    for stage, motion in zip(model.over_time, (dyn, con), strict=True):
        held = tree.flatten(dict(stage.parameters))
        for path, leaf in (motion | train_runs.trained(trained[0])).items():
            np.testing.assert_array_equal(held[path], leaf)
