"""Training DynamiCrafter: its published loss and noise, what a batch is conditioned on, the commands, any devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from i2v_jax import commands, tree
from i2v_jax.data.clip import Clip
from i2v_jax.data.decoding import BadClip, Cut, Frames, read_clip
from i2v_jax.data.reader import Conditioning, Reader, rate_of
from i2v_jax.devices import mesh as devices
from i2v_jax.devices.mesh import make_mesh, placer, put_batch, use_mesh
from i2v_jax.diffusion.noise_schedule import NoiseSchedule
from i2v_jax.encoders import image_tokens
from i2v_jax.encoders.latents import scaled_sample, video_moments
from i2v_jax.encoders.picture_input import time_noise
from i2v_jax.errors import InputError
from i2v_jax.families.model import assemble_config
from i2v_jax.media import stretched_clip_pixels
from i2v_jax.planning import plan
from i2v_jax.training import held_out, placement, setup, store
from i2v_jax.training.objective import Objective, denoising_loss
from tests import clips, train_runs
from tests import dynamicrafter_models as models
from tests import dynamicrafter_oracle as oracle
from tests.helpers import relative_error
from tests.processes import ROOT, run_here
from tests.test_dynamicrafter import SCHEDULE, program

pytestmark = pytest.mark.filterwarnings("ignore:.*has no config.json")

CONFIG = "configs/train/dynamicrafter.py"
BATCH, SIDE = 8, 32
SMALL = {
    "data.height": SIDE,
    "data.width": SIDE,
    "data.frames": models.FRAMES,
    "data.stride": 2,
    "data.workers": 0,
    "dtype": "float32",
    "batch": BATCH,
    "mesh.fsdp": 1,
    "samples.every_steps": 0,
    "compilation_cache": str(ROOT / ".cache" / "jax"),
}


def config_of(name="512", **changes):
    """The shipped config, of a small model and small clips."""
    config = commands.load_config(f"{ROOT / CONFIG}:{name}").copy_and_resolve_references()
    kind = "256" if name == "256" else "512"
    config.update_from_flattened_dict({"weights.base": str(models.checkpoint(kind))} | SMALL | changes)
    return config


@functools.cache
def assembled(**changes):
    return assemble_config(config_of(**changes), jax.devices()[0])


@functools.cache
def loaded():
    """(configs, weights) of the small model."""
    mesh = make_mesh({}, jax.devices()[:1])
    pairs = {name: part.load(placer(mesh)) for name, part in assembled().items()}
    return tuple({name: pair[i] for name, pair in pairs.items()} for i in (0, 1))


def loss_of(**changes):
    return setup.make(config_of(**changes), loaded()[0], {"tokens": ids(np.random.default_rng(9), 1)[0]}).loss


def ids(rng, count):
    made = rng.integers(1, 500, (count, 77)).astype(np.int32)
    made[:, 20:] = loaded()[0]["text_encoder"].vocab_size - 1
    return made


def batch_of(rng, count=BATCH):
    """A batch of videos as the loader gives it."""
    size = loaded()[0]["image_encoder"].image_size
    return dict(
        video=rng.integers(0, 256, (count, models.FRAMES, SIDE, SIDE, 3)).astype(np.uint8),
        tokens=ids(rng, count),
        pixels=rng.normal(size=(count, size, size, 3)).astype(np.float32),
        picture=rng.integers(0, models.FRAMES, count).astype(np.int32),
        fs=rng.integers(5, 30, count).astype(np.float32),
    )


def test_time_noise_equals_the_published_one(measured):
    io = oracle.recorded(of="edg")
    ours = time_noise(io["timenoise.timesteps"] / 1000, io["timenoise.normal"], 100.0, 5.0)
    measured("TimeNoise", relative_error(ours, io["timenoise.beta"]), 1e-5)


def test_a_training_step_equals_the_published_one(measured):
    """From clean latents: the dynamic rescale, noise, the network's own prediction, each clip's loss."""
    io = oracle.recorded()
    conditions = oracle.conditions(io["unet.context"], io["unet.image_latents"], io["unet.fs"])

    def predict(noisy, timesteps):
        return program()(noisy, np.asarray(timesteps, np.float32), conditions)

    given = io["train.latents"], io["train.noise"], io["train.timesteps"], Objective(first_frame="noisy")
    loss, details = denoising_loss(predict, SCHEDULE, *given)
    measured("DynamiCrafter training: noisy latents", relative_error(details["noisy"], io["train.noisy_latents"]), 1e-5)
    measured("DynamiCrafter training: prediction", relative_error(details["prediction"], io["train.prediction"]), 1e-5)
    measured("DynamiCrafter training: losses", relative_error(details["each"], io["train.loss_per_item"]), 1e-5)
    assert float(loss) == pytest.approx(io["train.loss_per_item"].mean(), rel=1e-5)


def test_a_held_out_clip_is_estimated_as_it_is(measured):
    """From the right prediction come the clean latents, as they were before the dynamic rescale."""
    io = oracle.recorded()
    given = io["train.target"], io["train.noisy_latents"], io["train.timesteps"]
    estimate = held_out.last_frames(SCHEDULE, *given)
    measured("DynamiCrafter: an estimate in one step", relative_error(estimate, io["train.latents"][:, -1]), 1e-5)


def test_published_shares_are_dropped():
    """One draw a clip: of 20 one has no prompt, one no picture, one neither; never both by two draws."""
    loss = loss_of()
    draws = loss.draw(jax.random.key(0), dict(latents=np.zeros((40_000, 1, 1, 1, 1))))
    lost = [np.asarray(x) for x in (draws.drop, draws.drop_image, draws.drop_both)]
    assert all(abs(x.mean() - 0.05) < 0.005 for x in lost) and sum(x.astype(int) for x in lost).max() == 1
    with pytest.raises(InputError, match="together are above 1"):
        Objective(exclusive_dropout=True, prompt_dropout=0.6, joint_dropout=0.5)


def test_what_a_batch_is_conditioned_on(measured):
    """The picture's latents in every frame with the noise that its timestep says, unscaled; tokens by frame, a grey
    picture's where it is dropped; the empty prompt; the rate."""
    (configs, weights), loss, batch = loaded(), loss_of(), batch_of(np.random.default_rng(0), 3)
    draws = loss.draw(jax.random.key(0), batch)
    no, flags = np.zeros(3, bool), np.eye(3, dtype=bool)
    kept = draws._replace(drop=no, drop_image=no, drop_both=no)
    lost = draws._replace(drop=flags[0], drop_image=flags[1], drop_both=flags[2])
    mean, logvar = video_moments(configs["vae"], weights["vae"], batch["video"])
    latents = scaled_sample(configs["vae"], mean, logvar, draws.posterior)
    whole, some = (loss.conditions(weights, batch, draws, latents) for draws in (kept, lost))
    level = time_noise(draws.timesteps / 1000, draws.image_level, 100.0)
    own = np.asarray(latents)[np.arange(3), batch["picture"]][:, None]
    wanted = own + np.asarray(level)[:, None, None, None, None] * draws.image_noise
    measured("image latents of a training batch", relative_error(whole.image_latents, wanted), 1e-5)
    np.testing.assert_array_equal(whole.fs[:, 0], batch["fs"])
    assert whole.image_tokens.shape == (3, models.FRAMES, 16, models.WIDTH)
    grey = image_tokens.by_frame(image_tokens.encode_unconditional(configs, weights))[0]
    for row, (has_prompt, has_picture) in enumerate([(False, True), (True, False), (False, False)]):
        assert (relative_error(some.text[row], whole.text[row]) < 1e-5) == has_prompt
        picture = whole.image_tokens[row] if has_picture else grey
        measured("image tokens of a training batch", relative_error(some.image_tokens[row], picture), 1e-5)
    assert relative_error(some.text[0], some.text[2]) < 1e-5
    np.testing.assert_array_equal(some.image_latents, whole.image_latents)  # never dropped
    plain = loss_of(**{"objective.picture": "ends", "objective.image_noise": 0.0})
    ends = np.asarray(plain.conditions(weights, batch, kept, latents).image_latents)
    np.testing.assert_array_equal(ends[:, [0, -1]], np.asarray(latents)[:, [0, -1]])
    assert not ends[:, 1:-1].any()
    quiet = held_out.without_chance(loss).draw(jax.random.key(0), batch)
    assert quiet.image_noise is None and not any(x.any() for x in (quiet.drop, quiet.drop_image, quiet.drop_both))


def test_the_rate_and_the_picture_are_the_clips_own(tmp_path):
    """24 frames a second, every 2nd or 3rd of them; the picture as the image encoder takes it, of any frame."""
    clip = Clip("a", "a caption", clips.encode(clips.numbered(12)))
    told = Conditioning(stretched_clip_pixels, True, "fps")
    reader = Reader(Cut(3, 3, SIDE, SIDE), 28, conditioning=told, least_stride=2)
    seen = set()
    for seed in range(30):
        item = reader(clip, np.random.default_rng(seed))
        np.testing.assert_array_equal(item["pixels"], stretched_clip_pixels(item["video"][item["picture"]], 28))
        frames = read_clip(clip.video, Cut(3, int(24 / item["fs"]), SIDE, SIDE), np.random.default_rng(0))
        assert rate_of(frames, "fps") == item["fs"] and rate_of(frames, "stride") == 24 / item["fs"]
        seen.add((int(item["picture"]), float(item["fs"])))
    assert seen == {(picture, fs) for picture in range(3) for fs in (8.0, 12.0)}
    plain = Reader(Cut(3, 3, SIDE, SIDE), 28)(clip, np.random.default_rng(0))
    assert not {"fs", "picture"} & plain.keys()
    with pytest.raises(BadClip, match="timestamps jump"):
        rate_of(Frames(np.zeros((2, 1, 1, 3), np.uint8), np.zeros(6, np.float32)), "fps")


def steps_on(shape, steps=3):
    """Losses of steps on random videos, on a mesh of this shape; half as much is compiled as where all is trained."""
    small = {"weights.base": str(models.checkpoint(levels=1)), "remat": "none"}
    parts, train = assembled(**small), (r"unet/(conv_in|.*/attn2)/.*", "image_proj/.*")
    config = config_of(frozen="fsdp", train=train, **small)
    mesh = make_mesh(shape, jax.devices()[: int(np.prod(list(shape.values())))])
    configs = {name: part.config for name, part in parts.items()}
    chosen = placement.trained_paths(parts, config.train)
    trained, frozen = placement.load_weights(parts, chosen, config, mesh)
    made = setup.make(config, configs, placement.empty_conditions(configs, stored=False))
    abstract = placement.abstract_state(config, tree.unflatten(trained), made.optimizer, mesh)
    state = placement.new_state(trained, made.optimizer, config, abstract)
    step, losses = placement.jit_step(made.step, abstract, mesh), []
    with use_mesh(mesh):
        for number in range(steps):
            batch = put_batch(batch_of(np.random.default_rng(number)), mesh)
            state, metrics = step(state, frozen, batch, jax.random.key(0))
            losses.append(float(metrics.loss))
    return np.array(losses), state


def test_losses_do_not_depend_on_the_devices(measured, monkeypatch):
    """One device against eight, which share clips, trained and frozen weights."""
    monkeypatch.setattr(devices, "SMALLEST_SHARDED", 32)  # else nothing of a small model is cut
    one, _ = steps_on({"data": 1})
    eight, state = steps_on({"data": 2, "fsdp": 4})
    assert any(not leaf.is_fully_replicated for leaf in state.trained.values()) and len(set(one)) == 3
    assert {path.split("/")[0] for path in state.trained} == {"unet", "image_proj"}
    measured("DynamiCrafter: losses, 8 devices (data 2, fsdp 4) against 1", np.abs(eight / one - 1).max(), 1e-5)


def test_stored_clips_have_the_loss_of_the_videos(measured):
    """All that is stored before it is rounded: latents, prompt, a drawn frame's tokens and which it is, the rate."""
    configs, weights = loaded()
    encoders, batch = store.Encoders(configs, weights), batch_of(np.random.default_rng(1), 4)
    loss, flags = loss_of(), np.eye(4, dtype=bool)
    draws = loss.draw(jax.random.key(3), batch)._replace(drop=flags[0], drop_image=flags[1], drop_both=flags[2])
    arrays = encoders(batch)
    empty = encoders.empty({"tokens": loss.empty["tokens"][None]})
    latents = arrays["mean"] + arrays["std"] * np.asarray(draws.posterior)
    of_store = {name: arrays[name] for name in ("text", "image_tokens", "picture", "fs")} | dict(latents=latents)
    stored_loss = setup.make(config_of(), configs, empty).loss
    each = jax.jit(lambda weights, batch, draws: loss(weights, batch, draws)[1]["each"])(weights, batch, draws)
    other = jax.jit(lambda weights, batch, draws: stored_loss(weights, batch, draws)[1]["each"])
    measured("DynamiCrafter: losses of stored clips", relative_error(other(weights, of_store, draws), each), 1e-5)


def flags_of(folder, **changes):
    changes = {"weights.base": models.checkpoint(levels=1), "folder": folder} | SMALL | changes
    return [f"--config={CONFIG}:512", *(f"--config.{key}={value}" for key, value in changes.items())]


def test_the_command_trains_goes_on_and_is_sampled_from(tmp_path):
    """From clips, with previews, then sampled from; and from stored clips. Of each network a part: smaller programs."""
    source = train_runs.write_clips(tmp_path / "clips", 8)
    given = {"data.source": source, "batch": 2, "checkpoints.every_steps": 1, "samples.steps": 2, "steps": 1}
    part = "('unet/(conv_in|.*/attn2)/.*', 'image_proj/.*')"
    first = run_here(["train.py", *flags_of(tmp_path / "run", **given | {"train": part, "samples.every_steps": 1})])
    assert "a new run" in first and (tmp_path / "run" / "samples" / "00000001_0.mp4").exists()
    trained = tmp_path / "run" / "trained.safetensors"
    weights, base = load_file(trained), assembled(**{"weights.base": str(models.checkpoint(levels=1))})
    assert {path.split("/")[0] for path in weights} == {"unet", "image_proj"}
    for path, leaf in weights.items():
        component, _, own = path.partition("/")
        assert not np.array_equal(leaf, base[component].parameters[own]), path

    encoded = tmp_path / "stored"
    of_unet = given | {"train": "('unet/.*/attn2/.*',)"}
    run_here(["-m", "i2v_jax.training.store", f"--output={encoded}", *flags_of(tmp_path / "other", **of_unet)])
    command = ["train.py", *flags_of(tmp_path / "other", **of_unet | {"data.source": encoded})]
    run_here(command)
    before = train_runs.trained(tmp_path / "other")
    assert "from step 1" in run_here([*command, "--config.steps=2"])
    after = train_runs.trained(tmp_path / "other")
    assert after and all(path.startswith("unet/") for path in after)
    assert not any(np.array_equal(after[path], before[path]) for path in after)

    sampled = dict(height=SIDE, width=SIDE, frames=models.FRAMES, steps=2, image="assets/cat.jpg")
    sampled |= {"output": tmp_path / "out"}
    sampled |= {"weights.base": models.checkpoint(levels=1), "compilation_cache": ROOT / ".cache" / "jax"}
    sampled |= {"weights.trained": f"('{trained}',)"}
    flags = [f"--config.{key}={value}" for key, value in sampled.items()]
    run_here(["sample.py", "--config=configs/sample/dynamicrafter.py:512", *flags])
    assert (tmp_path / "out" / "cat.mp4").exists()


REFUSED = {
    "a clean first frame": ({"objective.first_frame": "clean"}, "samples frame 1 like the others"),
    "other frames": ({"data.frames": 2}, "makes tokens for 3 frames"),
    "no rate": ({"data.rate": "fsp"}, "data.rate='fsp'.*fps, stride"),
    "an adapter": ({"branches": ("first_frame",)}, "branches|Leave motion modules and adapters out"),
    "a ControlNet": ({"control.process": "canny"}, "no ControlNet for DynamiCrafter"),
    "a LoRA": ({"lora.rank": 4}, "no LoRA for DynamiCrafter"),
    "a MIVA": ({"miva.rank": 4}, "no MIVA for DynamiCrafter"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_trained_is_refused(what):
    changes, message = REFUSED[what]
    with pytest.raises(InputError, match=message):
        assemble_config(config_of(**changes), jax.devices()[0])


def test_other_families_have_none_of_it():
    config = commands.load_config(ROOT / "tests" / "configs" / "train.py")
    config.objective.image_noise = 100.0
    with pytest.raises(InputError, match="image_noise=100.0: of DynamiCrafter"):
        assemble_config(config, jax.devices()[0])
    for changes in (dict(picture="last"), dict(image_noise=-1.0)):
        with pytest.raises(InputError, match="wanted"):
            Objective(**changes)


def test_the_shipped_config_trains_all_that_is_published():
    chosen = placement.trained_paths(assembled(), config_of().train)
    of_networks = [f"{name}/{path}" for name in ("unet", "image_proj") for path in assembled()[name].parameters.entries]
    assert sorted(chosen) == sorted(of_networks)


def test_configs_are_those_of_the_models():
    for name in ("256", "512", "1024", "interp"):
        config = commands.load_config(f"{ROOT / CONFIG}:{name}")
        objective = Objective(**config.objective)
        assert NoiseSchedule(**config.noise_schedule).zero_terminal_snr == (name != "256")
        assert config.data.rate == ("stride" if name == "256" else "fps")
        assert objective.picture == ("ends" if name == "interp" else "random")
        assert bool(objective.image_noise) == (name in ("512", "1024"))


@pytest.mark.parametrize("stored", [False, True])
def test_it_is_planned(stored):
    _, places = plan.slice_of("v5e:2x2")
    train = ("unet/.*",) if stored else ("unet/.*", "image_proj/.*")
    found = plan.training_program(config_of(batch=4, dtype="bfloat16", train=train), places, stored=stored)
    sampling = plan.sampling_program(config_of(batch=4, dtype="bfloat16"), places)
    with use_mesh(found.mesh):
        state, metrics = jax.eval_shape(found.function, *found.arguments)
        latents = jax.eval_shape(sampling.function, *sampling.arguments)[0].latents
    assert metrics.loss.shape == () and {f"{path.split('/')[0]}/.*" for path in state.trained} == set(train)
    assert latents.shape == (4, models.FRAMES, SIDE // 8, SIDE // 8, 4) and latents.dtype == jnp.float32
