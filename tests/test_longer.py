"""Videos of any length: windows change nothing that they should not, FreeNoise and prompt travel equal diffusers'."""

import dataclasses
import functools
import shutil
from types import SimpleNamespace

import diffusers
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers.models.attention import FreeNoiseTransformerBlock
from diffusers.pipelines.free_noise_utils import AnimateDiffFreeNoiseMixin

from i2v_jax.devices.mesh import make_mesh
from i2v_jax.diffusion.windows import Windows, free_noise_cut
from i2v_jax.errors import InputError
from i2v_jax.families.family import DYNAMICRAFTER
from i2v_jax.families.model import Model
from i2v_jax.families.weights import Weights
from i2v_jax.models import motion
from i2v_jax.models.adapters.adapter import Shared
from i2v_jax.models.adapters.first_frame import FIRST_FRAME
from i2v_jax.models.adapters.windows import KEPT
from i2v_jax.models.attention import Attention
from i2v_jax.models.conditions import Conditions
from i2v_jax.sampling import long_videos, programs, prompt_travel, trained_at
from i2v_jax.sampling.pipeline import Pipeline
from i2v_jax.sampling.settings import Settings
from i2v_jax.sampling.windowed import chunks, in_windows, windowed
from tests.helpers import relative_error
from tests.test_pipeline import PROMPTS, SETTINGS, SMALL, WEIGHTS, one_device_latents, pictures, pipeline
from tests.torch_models import randomise

FRAMES = 10


def normal(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape, np.float32)


class Still(nn.Module):
    """A layer whose frames have only frame 1 in common, as the spatial layers of a network; each has its own prompt."""

    @nn.compact
    def __call__(self, x, conditions, window=None):
        places = x.reshape(*x.shape[:2], -1, x.shape[-1]) + conditions.text.mean((2, 3))[..., None, None]
        branches = (("first_frame", FIRST_FRAME.module), ("again", FIRST_FRAME.module))
        shared = Shared(None, conditions, window=window)
        return Attention(2, branches)(places, shared=shared).reshape(x.shape)


@pytest.mark.parametrize(
    "settings",
    [
        Windows(4, 2, batch=2),
        Windows(4, 1, "looped", "flat"),
        Windows(5, 3, "shifted", "delayed_reverse_sawtooth", batch=9),
    ],
    ids=str,
)
def test_what_frames_do_not_say_of_each_other_is_the_same_in_windows(settings, measured):
    """All see frame 1 of the video, in whatever window, chunk and place of a window they are."""
    x, conditions = normal(2, FRAMES, 2, 3, 8), Conditions(normal(2, FRAMES, 7, 16))
    weights = jax.tree.map(lambda leaf: normal(*leaf.shape), Still().init(jax.random.key(0), x, conditions)["params"])

    def denoise(parameters, x, t, conditions, window, kept):
        return Still().apply({"params": parameters, **kept}, x, conditions, window, mutable=[KEPT])

    def plain(x):
        return Still().apply({"params": weights}, x, conditions)

    run = jax.jit(lambda x, windows: windowed(denoise, windows)(weights, x, 0, conditions))
    others = np.concatenate([x[:, :1] + 1, x[:, 1:]], 1)
    assert relative_error(plain(others)[:, 5:], plain(x)[:, 5:]) > 1e-2, "frame 1 matters to the others"
    for step in (0, 1, 5) if settings.schedule == "looped" else (2,):
        windows = chunks(settings, FRAMES, 2, 1, step)
        for given in (x, others):
            error = relative_error(run(given, windows), plain(given))
            measured(f"windows, {settings.schedule}: layers in which frames share frame 1 alone", error, 1e-5)


def test_strengths_of_control_networks_are_cut_to_windows():
    """Each frame has its own, in whatever windows it is, of both videos."""
    strengths = normal(3, FRAMES)

    def denoise(parameters, x, t, conditions, window, kept, weights):
        assert weights.shape == (3, *x.shape[:2])
        return jnp.broadcast_to(weights[1][..., None, None, None], x.shape), kept

    windows = chunks(Windows(4, 2, "looped", batch=2), FRAMES, 2, 1, 3)
    given = {}, normal(2, FRAMES, 1, 1, 4), 0, Conditions.of_videos(normal(2, 7, 32))
    found = windowed(denoise, windows, jnp.asarray(strengths))(*given)
    np.testing.assert_allclose(found, np.broadcast_to(strengths[1][None, :, None, None, None], found.shape), atol=1e-6)


def test_a_window_of_the_whole_video_is_the_plain_run(measured):
    settings = dataclasses.replace(SETTINGS, windows=Windows(8, 4))
    found = pipeline().latents(pictures(), PROMPTS, [1, 2, 3, 2**32 - 1], settings=settings)
    measured("a window of all frames against the plain run", relative_error(found, one_device_latents()), 1e-5)


@functools.cache
def longer():
    settings = dataclasses.replace(
        SETTINGS, frames=11, steps=2, windows=Windows(8, 4, "looped"), prompt_travel="{0: 'a cat', 5: 'waves'}"
    )
    return settings, np.asarray(pipeline().latents(pictures()[:1], "unused", 7, settings=settings))


def test_more_frames_than_motion_modules_know():
    """The first frame stays the picture's to the bit; the program is compiled once; the video is finite."""
    settings, latents = longer()
    assert latents.shape[1] == 11 and np.isfinite(latents).all()
    np.testing.assert_array_equal(latents[:, 0], pipeline().encode_first_frame(pictures()[:1], [7], settings)[:, 0])
    assert pipeline().programs(settings)[1]._cache_size() == 1


def test_windows_of_one_video_are_spread_over_devices(measured):
    settings, wanted = longer()
    spread = pipeline(2, data=2)
    found = spread.latents(pictures()[:1], "unused", 7, settings=settings)
    measured("windows on 2 devices against 1", relative_error(found, wanted), 1e-5)


def test_a_run_gives_each_step_its_windows_and_each_frame_its_prompt(monkeypatch):
    """Around a step that does nothing: on two devices, one video, of rescheduled noise; frames come as decoded."""
    seen = []

    def nothing(configs, sampler, parameters, state, i, conditions, first_frame, seeds, strengths, windows, **_):
        seen.append((conditions.text.shape, windows.frames.shape, state.latents.shape))
        return state, jnp.isfinite(state.latents).all()

    monkeypatch.setattr(programs, "sampling_step", nothing)
    mesh = make_mesh(dict(data=2), jax.devices()[:2])
    run = Pipeline(Model.load(WEIGHTS, mesh=mesh), mesh)
    windows = Windows(8, 4, "looped", noise="shuffle")
    travel = "{0: 'a cat', 5: 'waves'}"
    settings = dataclasses.replace(SETTINGS, frames=18, steps=3, windows=windows, prompt_travel=travel)
    latents = np.asarray(run.latents(pictures()[:1], "unused", 7, settings=settings))
    assert seen == [((2, 18, 77, 32), (3, 2, 8), (1, 18, 8, 8, 4))], "traced once, for all steps"
    first = run.encode_first_frame(pictures()[:1], np.array([7], np.uint32), settings)
    np.testing.assert_array_equal(latents[:, :1], first)
    random = dataclasses.replace(settings, windows=dataclasses.replace(windows, noise="random"))
    others = np.asarray(run.latents(pictures()[:1], "unused", 7, settings=random))
    np.testing.assert_allclose(others[:, :8], latents[:, :8], atol=1e-5)  # the first window's noise is its own
    assert np.abs(others[:, 8:] - latents[:, 8:]).mean() > 0.1
    slices = list(run.decode_slices(latents, settings))
    assert [len(some) for some in slices] == [2] * 9
    np.testing.assert_array_equal(np.concatenate(slices), run.decode(latents, settings)[0])


@functools.cache
def animate_diff():
    """diffusers' pipeline of the small model with random motion modules of its own."""
    part = {
        "vae": diffusers.AutoencoderKL,
        "unet": diffusers.UNet2DConditionModel,
    }
    import transformers

    loaded = {name: kind.from_pretrained(SMALL / name) for name, kind in part.items()}
    adapter = diffusers.MotionAdapter(
        block_out_channels=(32, 64),
        motion_layers_per_block=1,
        motion_norm_num_groups=8,
        motion_num_attention_heads=4,
        motion_max_seq_length=8,
        use_motion_mid_block=True,
    )
    schedule = dict(beta_schedule="linear", beta_start=0.00085, beta_end=0.012, clip_sample=False, steps_offset=1)
    return diffusers.AnimateDiffPipeline(
        **loaded,
        text_encoder=transformers.CLIPTextModel.from_pretrained(SMALL / "text_encoder"),
        tokenizer=transformers.CLIPTokenizer.from_pretrained(SMALL / "tokenizer"),
        motion_adapter=randomise(adapter),
        scheduler=diffusers.DDIMScheduler(**schedule),
    )


@pytest.fixture(scope="module")
def same_model(tmp_path_factory):
    """Ours, of the same weights; diffusers' motion modules pool their norms over frames."""
    folder = tmp_path_factory.mktemp("motion")
    animate_diff().motion_adapter.save_pretrained(folder)
    mesh = make_mesh({}, jax.devices()[:1])
    model = Model.load(Weights(str(SMALL), motion=str(folder)), mesh=mesh)
    config = model.configs["unet"]
    pooled = dataclasses.replace(config.motion, pooled_norm=True)
    model.configs["unet"] = dataclasses.replace(config, motion=pooled, pooled_norms=False)
    return Pipeline(model, mesh)


@pytest.mark.parametrize(
    "frames, overlap, weighting", [(14, 6, "pyramid"), (12, 4, "delayed_reverse_sawtooth"), (13, 5, "flat")]
)
def test_free_noise_with_prompt_travel_equals_diffusers(same_model, frames, overlap, weighting, measured):
    """Two guided steps. 13 frames leave a window unfilled: flat, as diffusers' other weights there do not sum to 1."""
    travel, length = {0: "a cat", 4: "waves", 9: "a walk on the beach"}, 8
    noise = normal(1, frames, 8, 8, 4)
    pipe = animate_diff()
    pipe.set_progress_bar_config(disable=True)
    pipe.enable_free_noise(length, length - overlap, weighting)
    with torch.no_grad():
        wanted = pipe(
            prompt=dict(travel),
            negative_prompt="a dog",
            num_frames=frames,
            height=64,
            width=64,
            num_inference_steps=2,
            guidance_scale=5.0,
            latents=torch.from_numpy(np.moveaxis(noise, -1, 1).copy()),
            output_type="latent",
        ).frames
    windows = Windows(length, overlap, weighting=weighting, average="attention")
    settings = Settings(64, 64, frames, 2, 5.0, windows=windows, prompt_travel=str(travel))
    conditions = same_model.encode(["unused"], ["a dog"], settings=settings)
    found = same_model.denoise(noise, conditions, settings)
    error = relative_error(np.moveaxis(np.asarray(found), -1, 1), wanted.numpy())
    measured(f"FreeNoise and prompt travel against diffusers, {weighting}", error, 1e-4)


@pytest.mark.parametrize(
    "frames, overlap, weighting",
    [(14, 6, "pyramid"), (12, 4, "delayed_reverse_sawtooth"), (13, 5, "flat"), (8, 4, "pyramid")],
)
def test_free_noise_of_a_block_equals_diffusers(frames, overlap, weighting, measured):
    """13 frames leave a window unfilled: flat, as diffusers' other weights there do not sum to 1."""
    length, width = 8, 16
    block = FreeNoiseTransformerBlock(
        width,
        2,
        width // 2,
        double_self_attention=True,
        positional_embeddings="sinusoidal",
        num_positional_embeddings=length,
        context_length=length,
        context_stride=length - overlap,
        weighting_scheme=weighting,
    )
    state = {name: tensor.numpy() for name, tensor in randomise(block).state_dict().items()}
    cut = free_noise_cut(Windows(length, overlap, weighting=weighting, average="attention"), frames)
    tables = tuple(tuple(map(tuple, table.tolist())) for table in cut[:2])
    ours = motion.TemporalBlock(motion.MotionConfig(length, num_heads=2, windows=tables))
    x = normal(3, frames, width)
    with torch.no_grad():
        wanted = block(torch.from_numpy(x)).numpy()
    found = ours.apply({"params": block_parameters(state)}, x[None])[0]
    measured(f"FreeNoise: a motion module's block against diffusers, {weighting}", relative_error(found, wanted), 1e-5)


def block_parameters(state):
    """A block of diffusers' as ours."""
    named = {
        "attn1.to_out.0": "attn1.to_out",
        "attn2.to_out.0": "attn2.to_out",
        "ff.net.0.proj": "ff.proj_in",
        "ff.net.2": "ff.proj_out",
    }
    found = {}
    for name, value in state.items():
        path, _, leaf = name.rpartition(".")
        if path == "pos_embed":
            continue
        is_norm = path.startswith("norm")
        leaf = {"weight": "scale" if is_norm else "kernel"}.get(leaf, leaf)
        at = found
        for part in named.get(path, path).split("."):
            at = at.setdefault(part, {})
        at[leaf] = jnp.asarray(value if value.ndim == 1 else value.T)
    return found


def test_free_noise_of_one_window_is_the_plain_module():
    config = motion.MotionConfig(8, num_heads=2, norm_groups=8)
    x = normal(1, 6, 3, 2, 16)
    module = motion.MotionModule(config)
    weights = jax.tree.map(lambda leaf: normal(*leaf.shape), module.init(jax.random.key(0), x))
    whole = dataclasses.replace(config, windows=((tuple(range(6)),), ((1.0,) * 6,)))
    found = motion.MotionModule(whole).apply(weights, x)
    assert relative_error(found, module.apply(weights, x)) < 1e-6


def test_conditions_are_cut_to_windows():
    """What is of each frame is its own; what is of the video stands beside each window; pooled text is a mean."""
    by_frame = np.arange(6, dtype=np.float32)[None, :, None] + 100 * np.arange(2)[:, None, None]
    given = Conditions(by_frame[..., None], normal(2, 1, 3, 4), by_frame, controls=({"embedding": by_frame},))
    found = in_windows(given, 6, jnp.array([[0, 1, 2], [3, 4, 5]]))
    assert found.text[..., 0, 0].tolist() == [[0, 1, 2], [100, 101, 102], [3, 4, 5], [103, 104, 105]]
    np.testing.assert_array_equal(found.controls[0]["embedding"], found.text[..., 0])
    np.testing.assert_array_equal(found.image_tokens, np.concatenate([given.image_tokens] * 2))
    assert found.pooled[:, 0, 0].tolist() == [1, 101, 4, 104]


def test_prompts_between_frames():
    table = prompt_travel.shares([0, 4], 8)
    np.testing.assert_allclose(table[:, 1], [0, 0.25, 0.5, 0.75, 1, 1, 1, 1])
    np.testing.assert_allclose(prompt_travel.shares([0, 4], 8, True)[:, 0], [1, 0.75, 0.5, 0.25, 0, 0.25, 0.5, 0.75])
    for keys in ([0], [0, 1, 7], [0, 3, 4]):
        for is_loop in (False, True):
            table = prompt_travel.shares(keys, 8, is_loop)
            np.testing.assert_allclose(table.sum(1), 1, atol=1e-6)
            np.testing.assert_array_equal(table[keys], np.eye(len(keys)))
    assert prompt_travel.parse("{24: 'b', 0: 'a'}") == {0: "a", 24: "b"} and prompt_travel.parse("") == {}


@pytest.mark.parametrize("keys", [(0, 4, 9), (0,), (0, 1, 13), (0, 12)])
def test_prompts_between_frames_are_those_of_diffusers(keys, measured):
    frames, states = 14, normal(len(keys), 7, 16)
    pipe = object.__new__(AnimateDiffFreeNoiseMixin)
    pipe._free_noise_prompt_interpolation_callback = pipe._lerp
    numbers = {str(key): number for number, key in enumerate(keys)}
    pipe.encode_prompt = lambda prompt, **_: (torch.from_numpy(states[[numbers[name] for name in prompt]]), None)
    wanted, _ = pipe._encode_prompt_free_noise({key: str(key) for key in keys}, frames, "cpu", 1, False)
    given = Conditions(jnp.repeat(states, 2, 0)[:, None], pooled=jnp.repeat(states[:, :1, :], 2, 0))
    found = prompt_travel.by_frame(given, list(keys), Settings(frames=frames))
    assert found.text.shape == (2, frames, 7, 16) and found.pooled.shape == (2, 1, 16)
    for video in found.text:
        measured("prompts between frames against diffusers", relative_error(video, wanted.numpy()), 1e-6)


@pytest.mark.parametrize(
    "text, said",
    [
        ("{4: 'waves'}", "there is no prompt for frame 0"),
        ("{0: 'a', 8: 'b', -1: 'c'}", "a video of frames=8 has the frames 0 to 7, and not 8, -1"),
        ("a calm sea", "wanted frames and their prompts, such as .*a calm sea"),
        ("{0: 1}", "wanted frames and their prompts"),
        ("{'0': 'a'}", "wanted frames and their prompts"),
        ("{}", "wanted frames and their prompts"),
    ],
)
def test_prompts_that_cannot_be(text, said):
    with pytest.raises(InputError, match=said):
        dataclasses.replace(SETTINGS, prompt_travel=text).check(pipeline().model)


def model(**changes):
    given = dict(max_frames=24, has_text_in_time=False, family=pipeline().model.family)
    return SimpleNamespace(**given | changes)


def test_windows_that_a_model_does_not_take():
    with pytest.raises(InputError, match="windows.length=32: these motion modules know 1 to 24 frames at a time"):
        long_videos.check(Settings(frames=64, windows=Windows(32)), model())
    with pytest.raises(InputError, match="there are no motion modules"):
        long_videos.check(Settings(frames=64, windows=Windows(16)), model(max_frames=None))
    with pytest.raises(InputError, match="DynamiCrafter makes 16 frames at once.*go on from the last frame"):
        long_videos.check(Settings(windows=Windows(16)), model(max_frames=16, family=DYNAMICRAFTER))
    with pytest.raises(InputError, match="prompt_travel: .*DynamiCrafter"):
        long_videos.check(Settings(prompt_travel="{0: 'a'}"), model(max_frames=16, family=DYNAMICRAFTER))
    with pytest.raises(InputError, match="FreeNoise.*text-in-time"):
        long_videos.check(Settings(windows=Windows(16, average="attention")), model(has_text_in_time=True))
    with pytest.raises(InputError, match="deep_cache_every=3 and windows.length=16"):
        long_videos.check_values(Settings(windows=Windows(16), deep_cache_every=3))
    with pytest.raises(InputError, match="frames=100: these motion modules know 1 to .*windows.length="):
        dataclasses.replace(SETTINGS, frames=100).check(pipeline().model)


def test_more_frames_than_memory_or_disk_for(tmp_path, monkeypatch):
    """What is said names a number that fits."""
    settings = dataclasses.replace(SETTINGS, frames=5000, windows=Windows(8))
    each = long_videos.bytes_of_frame(pipeline().model, settings)
    monkeypatch.setattr(long_videos.memory, "free_bytes", lambda device: 400 * each)
    with pytest.raises(InputError, match="frames=5000: .*of memory or more.*free, for 400 frames"):
        long_videos.check_memory(pipeline().model, settings, 1, None)
    with pytest.raises(InputError, match="for 200 frames"):
        long_videos.check_memory(pipeline().model, settings, 2, None)
    long_videos.check_memory(pipeline().model, dataclasses.replace(settings, frames=400), 1, None)
    free = 300 * long_videos.BYTES_ON_DISK * 64 * 64
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=free))
    with pytest.raises(InputError, match="frames=5000: .*are free, for 300 frames"):
        long_videos.check_disk(tmp_path / "new" / "folder", settings)
    long_videos.check_disk(tmp_path, dataclasses.replace(settings, frames=300))


def test_what_a_model_was_trained_at_is_a_windows_length():
    known = trained_at.TrainedAt((64, 64), (8, 8))
    settings = dataclasses.replace(SETTINGS, frames=40)
    assert "frames=40" in trained_at.departures(known, settings)
    assert trained_at.departures(known, dataclasses.replace(settings, windows=Windows(8))) is None
    assert "windows.length=6" in trained_at.departures(known, dataclasses.replace(settings, windows=Windows(6)))
