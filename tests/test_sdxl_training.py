"""Training on SDXL: the same on any devices and from stored clips; what is dropped is dropped together; the command."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file

from i2v_jax import commands, tree
from i2v_jax.data import stored
from i2v_jax.devices import mesh as devices
from i2v_jax.devices.mesh import make_mesh, placer, put_batch, use_mesh
from i2v_jax.diffusion.noise_schedule import ANIMATEDIFF_SDXL_BETA
from i2v_jax.families.family import SDXL
from i2v_jax.families.model import assemble_config
from i2v_jax.training import placement, setup, store
from i2v_jax.training.objective import Draws, Loss, Objective
from tests import sdxl_models, train_runs
from tests.processes import ROOT, run_here

CONFIG = "configs/train/sdxl.py"
BATCH, FRAMES, SIDE = 8, 3, 32
QUICK = {"remat": "none"}  # half as much to compile


def model_settings() -> dict[str, str]:
    """The small SDXL in the place of the config's."""
    return {
        "weights.base": str(sdxl_models.folder()),
        "weights.motion": str(sdxl_models.motion()),
        "weights.image_adapter": str(sdxl_models.image_adapter("plus")),
        "weights.image_encoder": str(sdxl_models.image_encoder()),
    }


def config_of(**changes):
    """The shipped config, of small clips."""
    config = commands.load_config(ROOT / CONFIG).copy_and_resolve_references()
    sizes = {"data.height": SIDE, "data.width": SIDE, "data.frames": FRAMES, "batch": BATCH, "mesh.fsdp": 1}
    config.update_from_flattened_dict(model_settings() | sizes | dict(dtype="float32") | changes)
    return config


@functools.cache
def assembled(**changes):
    return assemble_config(config_of(**changes), jax.devices()[0])


def losses_on(shape, steps=20):
    """Losses of steps on random stored clips, on a mesh of this shape, the frozen weights as the config has them."""
    config = config_of(**QUICK)
    mesh = make_mesh(shape, jax.devices()[: int(np.prod(list(shape.values())))])
    parts = assembled(**QUICK)
    configs = {name: part.config for name, part in parts.items()}
    chosen = placement.trained_paths(parts, config.train)
    trained, frozen = placement.load_weights({"unet": parts["unet"]}, chosen, config, mesh)
    made = setup.make(config, configs, placement.empty_conditions(configs, stored=True))
    abstract = placement.abstract_state(config, tree.unflatten(trained), made.optimizer, mesh)
    state = placement.new_state(trained, made.optimizer, config, abstract)
    step = placement.jit_step(made.step, abstract, mesh)
    shapes = placement.abstract_batch(config, configs, mesh, stored=True)
    losses = []
    with use_mesh(mesh):
        for number in range(steps):
            rng = np.random.default_rng(number)
            batch = {name: rng.normal(size=leaf.shape).astype(np.float32) for name, leaf in shapes.items()}
            batch["sizes"] = rng.integers(0, 1024, (BATCH, 6)).astype(np.float32)
            state, metrics = step(state, frozen, put_batch(batch, mesh), jax.random.key(0))
            losses.append(float(metrics.loss))
    return np.array(losses), state, frozen


def test_losses_do_not_depend_on_the_devices(measured, monkeypatch):
    """One device against eight, videos and all weights, frozen and trained, spread over them."""
    monkeypatch.setattr(devices, "SMALLEST_SHARDED", 32)  # else nothing of a small model is cut
    one, *_ = losses_on({"data": 1})
    eight, state, frozen = losses_on({"data": 2, "fsdp": 4})
    for leaves in (state.trained, frozen):
        assert any(not leaf.is_fully_replicated for leaf in leaves.values())
    assert len(set(one)) == 20
    measured("SDXL: losses of 20 steps, 8 devices (data 2, fsdp 4) against 1", np.abs(eight / one - 1).max(), 1e-5)


@functools.cache
def loaded():
    mesh = make_mesh({}, jax.devices()[:1])
    pairs = {name: part.load(placer(mesh)) for name, part in assembled().items()}
    return tuple({name: pair[i] for name, pair in pairs.items()} for i in (0, 1))


def clips(rng):
    """A batch of videos as the loader gives it."""
    configs, _ = loaded()
    picture = configs["image_encoder"].image_size
    ids = {name: rng.integers(1, 500, (2, 77)).astype(np.int32) for name in ("tokens", "tokens_2")}
    for array in ids.values():
        array[:, 20:] = configs["text_encoder"].vocab_size - 1
    return ids | dict(
        video=rng.integers(0, 256, (2, FRAMES, SIDE, SIDE, 3)).astype(np.uint8),
        pixels=rng.normal(size=(2, picture, picture, 3)).astype(np.float32),
        sizes=rng.integers(0, 1024, (2, 6)).astype(np.float32),
    )


def test_stored_clips_have_the_loss_of_the_videos(measured):
    """Over 20 batches; of what is stored in float16, and before it is rounded to that."""
    configs, weights = loaded()
    encoders = store.Encoders(configs, weights, vae_slice=1)
    loss = Loss(configs, ANIMATEDIFF_SDXL_BETA, Objective(prompt_dropout=0.5))
    run = jax.jit(lambda weights, batch, draws: loss(weights, batch, draws)[0])
    errors = {"float32": [], "float16": []}
    for number in range(20):
        batch = clips(np.random.default_rng(number))
        draws = loss.draw(jax.random.key(number), batch)
        wanted = float(run(weights, batch, draws))
        arrays = encoders(batch)
        for name, kept in (("float32", arrays), ("float16", stored.narrow(arrays))):
            latents = kept["mean"].astype(np.float32) + kept["std"].astype(np.float32) * np.asarray(draws.posterior)
            given = {key: jnp.asarray(kept[key], jnp.float32) for key in SDXL.stored_names(True)}
            errors[name].append(abs(float(run(weights, given | dict(latents=latents), draws)) / wanted - 1))
    measured("SDXL: losses of 20 steps, what is stored against videos", max(errors["float32"]), 1e-5)
    measured("SDXL: losses of 20 steps, stored in float16 against videos", max(errors["float16"]), 1e-3)


def test_both_texts_are_dropped_together():
    """States and pooled text become zeros in the same clips; sizes and image tokens stay."""
    configs, weights = loaded()
    loss = Loss(configs, ANIMATEDIFF_SDXL_BETA, Objective(prompt_dropout=0.5))
    batch = clips(np.random.default_rng(0))
    no = np.zeros(2, bool)
    draws = Draws(None, None, None, np.array([True, False]), no, no)
    dropped, kept = loss.conditions(weights, batch, draws), loss.conditions(weights, batch, draws._replace(drop=no))
    assert not dropped.text[0].any() and not dropped.pooled[0].any()
    assert kept.text[0].any() and kept.pooled[0].any()
    jax.tree.map(lambda one, other: np.testing.assert_array_equal(one[1], other[1]), dropped, kept)
    np.testing.assert_array_equal(dropped.sizes[:, 0], batch["sizes"])
    np.testing.assert_array_equal(dropped.image_tokens, kept.image_tokens)
    empty = {name: batch[name][1] for name in ("tokens", "tokens_2")}
    without_zeros = dataclasses.replace(loss, zeros_for_empty_prompt=False, empty=empty)
    other = without_zeros.conditions(weights, batch, draws)
    for name in ("text", "pooled"):  # the empty prompt's, where the model says so
        np.testing.assert_allclose(getattr(other, name)[0], getattr(kept, name)[1], rtol=1e-5, atol=1e-6)


def test_the_commands_with_the_shipped_config(tmp_path):
    """Clips are stored, and trained on with all weights cut over two devices; the adapter is all that was trained."""
    source = train_runs.write_clips(tmp_path / "clips", 8)
    settings = model_settings() | {
        "data.source": source,
        "data.height": SIDE,
        "data.width": SIDE,
        "data.frames": FRAMES,
        "data.stride": 1,
        "data.workers": 0,
        "dtype": "float32",
        "batch": BATCH,
        "mesh.fsdp": 2,
        "steps": 2,
        "samples.every_steps": 0,
        "folder": tmp_path / "run",
        "compilation_cache": ROOT / ".cache" / "jax",
    }
    flags = [f"--config={CONFIG}", *(f"--config.{key}={value}" for key, value in settings.items())]
    run_here(["-m", "i2v_jax.training.store", f"--output={tmp_path / 'stored'}", *flags], devices=2)
    about = json.loads((tmp_path / "stored" / "stored.json").read_text())
    assert about["arrays"] == ["text", "pooled", "sizes", "image_tokens"]
    record = stored.Stored(tmp_path / "stored")[0]
    assert record["sizes"].dtype == np.float32 and record["sizes"][4:].tolist() == [SIDE, SIDE]
    out = run_here(["train.py", *flags, f"--config.data.source={tmp_path / 'stored'}"], devices=2)
    assert "going on" not in out
    trained = load_file(tmp_path / "run" / "trained.safetensors")
    assert trained and all("/attn1/first_frame/" in path for path in trained)
    assert any(np.any(array) for path, array in trained.items() if "/to_out/" in path)
