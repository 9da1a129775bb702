"""The pipeline on the small model of tests/data: one video however it is spread, and what each setting promises."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from i2v_jax.devices.mesh import make_mesh, placer, use_mesh
from i2v_jax.diffusion import guidance
from i2v_jax.diffusion.noise_schedule import NoiseSchedule
from i2v_jax.errors import InputError
from i2v_jax.families.checks import check_fit
from i2v_jax.families.family import SD15
from i2v_jax.families.model import Model
from i2v_jax.families.weights import Weights
from i2v_jax.media import clip_pixels
from i2v_jax.models.clip import CLIPVisionEncoder
from i2v_jax.models.image_projection import Resampler
from i2v_jax.sampling.pipeline import Pipeline
from i2v_jax.sampling.settings import Settings
from i2v_jax.sampling.watch import Watch
from tests.helpers import relative_error
from tests.tiny import SMALL

SETTINGS = Settings(height=64, width=64, frames=8, steps=3)
PROMPTS = ["a cat", "a walk on the beach", "waves", "a cat looking around"]


WEIGHTS = Weights(
    str(SMALL),
    motion=str(SMALL / "motion.safetensors"),
    adapter=str(SMALL / "i2v_adapter.safetensors"),
    image_adapter=str(SMALL / "ip_adapter.safetensors"),
    image_encoder=str(SMALL / "image_encoder"),
)


@functools.cache
def pipeline(devices=1, **shape):
    mesh = make_mesh(shape, jax.devices()[:devices])
    return Pipeline(Model.load(WEIGHTS, mesh=mesh), mesh)


@functools.cache
def pictures(count=4):
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (70, 90, 3), np.uint8) for _ in range(count)]


@functools.cache
def one_device_latents():
    return np.asarray(pipeline().latents(pictures(), PROMPTS, [1, 2, 3, 2**32 - 1], settings=SETTINGS))


def test_many_devices_make_the_same_videos(measured):
    shape = dict(data=2, fsdp=2, frames=2)
    spread = pipeline(8, **shape)
    latents = spread.latents(pictures(), PROMPTS, [1, 2, 3, 2**32 - 1], settings=SETTINGS)
    error = relative_error(latents, one_device_latents())
    measured(f"8 devices {shape} against 1, latents after {SETTINGS.steps} guided steps", error, 1e-5)
    decoded = [run.decode(one_device_latents()[:1], SETTINGS).astype(int) for run in (spread, pipeline())]
    assert decoded[0].shape == (1, 8, 64, 64, 3)
    assert np.abs(decoded[0] - decoded[1]).max() <= 1


def test_a_video_does_not_depend_on_its_batch(measured):
    alone = pipeline().latents(pictures()[2:3], PROMPTS[2:3], [3], settings=SETTINGS)
    measured("a row alone against in a batch", relative_error(alone, one_device_latents()[2:3]), 1e-5)


def test_weighted_prompts_of_any_length_do_not_depend_on_each_other(monkeypatch):
    """What a video is conditioned on is its own prompts' alone, whatever the lengths of the others'."""
    mesh = make_mesh({}, jax.devices()[:1])
    run = Pipeline(Model.load(str(SMALL), mesh=mesh), mesh)
    lengths = []

    def seen(state, start, conditions, first_frame, seeds, settings, watch, count):
        lengths.append(conditions.text.shape[2])
        return jnp.stack(jnp.split(conditions.text[:, 0].mean(1), 2), 1)  # of each video, both sides

    monkeypatch.setattr(run, "_run", seen)
    settings = dataclasses.replace(SETTINGS, frames=1, prompt_syntax="weighted", clip_skip=1)
    prompts, negative = ["a (cat:1.3)", "a cat BREAK waves", "[waves]"], ["", "", "a BREAK b BREAK c"]
    assert run.count_chunks(prompts, negative, settings=settings) == [1, 2, 3]

    def latents(rows, **changes):
        given = [[texts[row] for row in rows] for texts in (pictures(), prompts)]
        changed = dataclasses.replace(settings, **changes)
        return np.asarray(run.latents(*given, rows, [negative[row] for row in rows], changed))

    for rows in ([0, 1, 2], [2, 0, 1]):
        together = latents(rows)
        for place, row in enumerate(rows):
            assert relative_error(latents([row])[0], together[place]) < 1e-6
    assert set(lengths) == {77, 154, 231}
    for changes in (dict(prompt_syntax="plain"), dict(clip_skip=0), dict(prompt_weighting="comfyui")):
        assert relative_error(latents([0], **changes)[0, 1], together[1, 1]) > 1e-4


def test_prompts_have_embeddings_by_their_tokens(tmp_path):
    """What the states of both sides are, with nothing of a UNet compiled."""
    width = 32
    save_file({"emb_params": np.ones((2, width), np.float32)}, tmp_path / "tok.safetensors")
    given = Weights(str(SMALL), embeddings=(str(tmp_path / "tok.safetensors"),))
    mesh = make_mesh({}, jax.devices()[:1])
    with_token, without = (Pipeline(Model.load(weights, mesh=mesh), mesh) for weights in (given, Weights(str(SMALL))))
    conditions, plain = (run.encode(["a tok", "a cat"], ["tok", ""]) for run in (with_token, without))
    errors = [relative_error(ours, other) for ours, other in zip(conditions.text, plain.text)]
    assert min(errors[0], errors[2]) > 1e-2 and max(errors[1], errors[3]) < 1e-5  # negative ones first
    assert with_token.model.configs["text_encoder"].added_tokens == 2
    save_file({"emb_params": np.ones((2, width + 8), np.float32)}, tmp_path / "tok.safetensors")
    with pytest.raises(InputError, match="'tok' has vectors 40 wide, which no text encoder of Stable Diffusion 1.5"):
        Model.load(given)


def test_a_smaller_batch_is_filled_up_and_compiles_nothing():
    """Its videos are to the bit those of a whole batch."""
    _, step = pipeline().programs(SETTINGS)
    whole = pipeline().latents(pictures(), PROMPTS, [1, 2, 3, 4], settings=SETTINGS)
    programs = step._cache_size()
    latents = pipeline().latents(pictures()[:3], PROMPTS[:3], [1, 2, 3], settings=SETTINGS, batch_size=4)
    np.testing.assert_array_equal(latents, whole[:3])
    assert step._cache_size() == programs


def test_pictures_as_paths_and_images_and_one_for_all(tmp_path):
    """What is given once is for all videos, and seeds are 0, 1, 2 ... by default."""
    path = tmp_path / "picture.png"
    Image.fromarray(pictures()[0]).save(path)
    settings = dataclasses.replace(SETTINGS, steps=1, frames=2, guidance_scale=1.0)
    run = functools.partial(pipeline().latents, settings=settings)
    wanted = np.asarray(run([pictures()[0]] * 2, ["a cat"] * 2, [0, 1]))
    np.testing.assert_array_equal(run([path, Image.open(path)], "a cat"), wanted)
    np.testing.assert_array_equal(run(str(path), "a cat", [0, 1]), wanted)
    np.testing.assert_array_equal(run(pictures()[0], ["a cat"] * 2, [0, 1]), wanted)
    assert pipeline()(path, "a cat", settings=settings).shape == (1, 2, 64, 64, 3)


def test_latents_are_seen_after_each_step():
    """They are clean ones, of the real rows, and one's own: later steps leave them as they are."""
    seen, stages = [], []
    settings = dataclasses.replace(SETTINGS, sampler_options=(("set_alpha_to_one", True),))
    made = pipeline().latents(
        pictures()[:1], "a cat", 1, settings=settings, on_latents=lambda *it: seen.append((it, it[2].copy()))
    )
    assert [it[:2] for it, _ in seen] == [(1, 3), (2, 3), (3, 3)]
    for (_, _, latents), then in seen:
        assert latents.shape == (1, 8, 8, 8, 4) and latents.dtype == np.float32
        np.testing.assert_array_equal(latents, then)
        np.testing.assert_array_equal(latents[:, :1], made[:, :1])  # the picture
    np.testing.assert_allclose(seen[-1][1], made, atol=1e-5)  # the last step ends at its prediction
    assert relative_error(seen[0][1], made) > 1e-3
    np.testing.assert_array_equal(made, pipeline().latents(pictures()[:1], "a cat", 1, settings=settings))

    every = Watch(lambda *it: stages.append(it), on_latents=lambda *it: stages.append(it[:2]), latents_every=2)
    again = Pipeline(pipeline().model, pipeline().mesh)
    for new in (True, False):
        stages.clear()
        latents = again.latents(pictures()[:1], "a cat", 1, settings=settings, watch=every, batch_size=2)
        again.decode(latents, settings, every)
        assert stages == [("encoding", new), ("steps", new), ("steps", False), (2, 3), ("decoding", new)]


def test_seeds_and_prompts_matter():
    run = functools.partial(pipeline().latents, pictures()[:1], settings=SETTINGS)
    base = one_device_latents()[:1]
    assert relative_error(run(["a cat"], [5]), base) > 1e-2
    assert relative_error(run(["waves"], [1]), base) > 1e-4
    assert relative_error(run(["a cat"], [1], ["waves"]), base) > 1e-4
    np.testing.assert_array_equal(run(["a cat"], [1]), run(["a cat"], [1]))


def test_first_frame_is_the_encoded_picture():
    """For a stochastic sampler and for DDIM alike, to the bit; only the posterior's seed moves it."""
    run = functools.partial(pipeline().latents, pictures()[:1], PROMPTS[:1])
    base = run([1], settings=SETTINGS)
    for change in (dict(sampler="euler_ancestral"), dict(p=1.0, guidance_scale=1.0)):
        latents = run([1], settings=dataclasses.replace(SETTINGS, **change))
        np.testing.assert_array_equal(latents[:, :1], base[:, :1])
        assert relative_error(latents[:, 1:], base[:, 1:]) > 1e-3
    assert relative_error(run([9], settings=SETTINGS)[:, :1], base[:, :1]) > 1e-3


def test_less_prior_noise_stays_nearer_to_the_picture():
    """The prior at a small t0 leaves frames near the first one; a run from pure noise does not. Steps that t0 leaves
    out are not told of."""
    seen = []

    def distance(t0):
        seen.clear()
        settings = dataclasses.replace(SETTINGS, steps=20, t0=t0, p=1.0)
        given = pictures()[:1], PROMPTS[:1], [1]
        latents = pipeline().latents(*given, settings=settings, on_step=lambda *step: seen.append(step))
        return relative_error(latents[:, 1:], np.broadcast_to(latents[:, :1], latents[:, 1:].shape))

    far = distance(1.0)
    assert seen == [(number, 20) for number in range(1, 21)]
    assert distance(0.06) < 0.5 * far
    assert seen == [(1, 2), (2, 2)]


def test_any_size():
    """Non-square, odd latents, of one frame; as many frames as there are positions."""
    for height, width, frames in [(40, 72, 1), (16, 16, 24)]:
        settings = Settings(height=height, width=width, frames=frames, steps=1, guidance_scale=1.0)
        video = pipeline()(pictures()[:1], PROMPTS[:1], [0], settings=settings)
        assert video.shape == (1, frames, height, width, 3) and video.dtype == np.uint8


def test_unconditional_image_tokens_are_of_an_all_zero_picture():
    model = pipeline().model

    def tokens(pixels):
        encoder, projection = CLIPVisionEncoder(model.configs["image_encoder"]), Resampler(model.configs["image_proj"])
        output = encoder.apply({"params": model.parameters["image_encoder"]}, pixels)
        return projection.apply({"params": model.parameters["image_proj"]}, output.penultimate)

    conditions = pipeline().encode(["a cat"] * 2, pictures=pictures()[:2])
    unconditional, conditional = np.split(conditions.image_tokens[:, 0], 2)
    np.testing.assert_allclose(unconditional[1:], tokens(jnp.zeros((1, 224, 224, 3))), atol=1e-5)
    pixels = jnp.asarray(clip_pixels(pictures()[0]))[None]
    np.testing.assert_allclose(conditional[:1], tokens(pixels), atol=1e-5)


def test_latents_that_are_not_finite_stop_the_run():
    model = pipeline().model
    broken = jax.tree.map(lambda x: x, model.parameters["unet"])
    broken["conv_out"] = dict(broken["conv_out"], bias=jnp.full((4,), jnp.nan))
    broken = dataclasses.replace(model, parameters={**model.parameters, "unet": broken})
    with pytest.raises(InputError, match="no longer finite after step 1 of 3"):
        Pipeline(broken, pipeline().mesh).latents(pictures()[:1], PROMPTS[:1], [1], settings=SETTINGS)


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(height=63), "height=63: wanted a multiple of 8, such as 64"),
        (dict(frames=25), "frames=25: these motion modules know 1 to 24 frames"),
        (dict(frames=0), "frames=0"),
        (dict(t0=0.0), "t0 = 0.0 given"),
        (dict(p=1.5), "p=1.5: wanted a probability"),
        (dict(sampler="dimm"), "unknown sampler 'dimm'.*Did you mean 'ddim'"),
        (dict(steps=0), "0 sampling steps given"),
        (dict(guidance_rescale=-1.0), "guidance_rescale=-1.0"),
        (dict(guidance_scale=float("nan")), "guidance_scale=nan"),
        (dict(vae_slice=0), "vae_slice=0"),
    ],
)
def test_settings_out_of_range(change, message):
    with pytest.raises(InputError, match=message):
        dataclasses.replace(SETTINGS, **change).check(pipeline().model)


def test_rescaled_guidance_ignores_what_is_predicted_for_the_first_frame():
    """It means nothing: no other frame may depend on it."""
    rng = np.random.default_rng(0)
    predictions = rng.standard_normal((2, 4, 3, 3, 2)).astype(np.float32)
    changed = predictions.copy()
    changed[:, 0] *= 100
    where = np.arange(4)[:, None, None, None] > 0
    out, wanted = (guidance.classifier_free(x, 7.5, 0.7, where=where)[:, 1:] for x in (changed, predictions))
    np.testing.assert_array_equal(out, wanted)
    settings = dataclasses.replace(SETTINGS, guidance_rescale=0.7)
    rescaled = pipeline().latents(pictures()[:1], PROMPTS[:1], [1], settings=settings)
    assert 1e-3 < relative_error(rescaled, pipeline().latents(pictures()[:1], PROMPTS[:1], [1], settings=SETTINGS))


def test_weights_are_cut_over_fsdp():
    mesh = make_mesh(dict(fsdp=4, data=2))
    place = placer(mesh)
    large, small = place("large", np.zeros((300, 512), np.float32)), place("small", np.zeros((8, 8), np.float32))
    assert {shard.data.shape for shard in large.addressable_shards} == {(300, 128)}
    assert {shard.data.shape for shard in small.addressable_shards} == {(8, 8)}


@pytest.mark.parametrize(
    "component, change, message",
    [
        ("unet", dict(in_channels=9), "UNet's input against the VAE's latents: 9 against 4. Inpainting"),
        ("unet", dict(out_channels=8), "UNet's output against the VAE's latents: 8 against 4"),
        ("unet", dict(cross_attention_dim=48), "text encoder's tokens against the UNet's: 32 against 48"),
        ("image_encoder", dict(width=64), "image encoder's output against the image projection's: 64 against 32"),
        ("image_proj", dict(cross_attention_dim=64), "image tokens against the UNet's: 64 against 32"),
    ],
)
def test_parts_that_do_not_fit_each_other_are_refused(component, change, message):
    configs = pipeline().model.configs
    with pytest.raises(InputError, match=message):
        check_fit(SD15, {**configs, component: dataclasses.replace(configs[component], **change)})


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(prompts=["a", "b"]), "1 pictures, 2 prompts, 1 seeds: wanted as many of prompts"),
        (dict(negative_prompts=[]), "0 negative_prompts: wanted as many of negative_prompts"),
        (dict(seeds=[-1]), "seed=-1: wanted 0 to 4294967295"),
        (dict(pictures=[np.zeros((8, 8, 5), np.uint8)]), "A picture is uint8 .8, 8, 5."),
        (dict(pictures="nowhere.png"), "No picture at 'nowhere.png'"),
        (dict(pictures=[], prompts=[], seeds=[]), "No pictures"),
    ],
)
def test_batches_that_make_no_sense(change, message):
    batch = dict(pictures=pictures()[:1], prompts=["a"], seeds=[0], settings=SETTINGS)
    with pytest.raises(InputError, match=message):
        pipeline().latents(**batch | change)


def test_incomplete_models_are_refused():
    model = pipeline().model
    with pytest.raises(InputError, match="no image encoder"):
        dataclasses.replace(model, configs={name: it for name, it in model.configs.items() if name != "image_encoder"})
    without_motion = dataclasses.replace(model.configs["unet"], motion=None)
    still = dataclasses.replace(model, configs={**model.configs, "unet": without_motion})
    with pytest.raises(InputError, match="without motion modules only 1 frame"):
        SETTINGS.check(still)


def test_frames_that_cannot_be_spread():
    settings = dataclasses.replace(SETTINGS, frames=6)
    with pytest.raises(InputError, match="frames=6 cannot be spread over a mesh with frames=8"):
        pipeline(8, frames=8).latents(pictures()[:1], PROMPTS[:1], [1], settings=settings)


@pytest.mark.parametrize(
    "shape, message",
    [
        (dict(data=3), "does not fit 8 devices"),
        (dict(dat=8), "Unknown mesh axis 'dat'.*Did you mean 'data'"),
        (dict(data=-1, frames=-1), "at most once"),
        (dict(data=0), "wanted sizes of 1 or more"),
    ],
)
def test_meshes_that_do_not_fit(shape, message):
    with pytest.raises(InputError, match=message):
        make_mesh(shape)


@pytest.mark.parametrize("rules, named", [({"batsh": ("data",)}, "batsh"), ({"batch": ("dta",)}, "dta")])
def test_rules_name_axes_that_are_there(rules, named):
    with pytest.raises(InputError, match=named), use_mesh(make_mesh({"data": 8}), rules):
        pass


def test_a_model_is_not_loaded_with_a_schedule_of_another_prediction_type():
    schedule = NoiseSchedule(kind="linear", prediction_type="v_prediction")
    with pytest.raises(InputError, match="trained for 'epsilon', says .*scheduler_config.json"):
        Model.load(Weights(str(SMALL)), schedule=schedule)
