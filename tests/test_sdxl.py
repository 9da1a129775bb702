"""SDXL through the pipeline, against diffusers' own pipelines on the same weights: pictures and videos."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from i2v_jax.devices.mesh import make_mesh
from i2v_jax.diffusion.noise_schedule import NoiseSchedule
from i2v_jax.families.model import Model, Weights
from i2v_jax.models.unet import UNet
from i2v_jax.sampling.pipeline import Pipeline
from i2v_jax.sampling.settings import Settings
from tests import sdxl_models
from tests.helpers import exact_jit, relative_error

HEIGHT, WIDTH, FRAMES = 64, 96, 4
SETTINGS = Settings(
    height=HEIGHT,
    width=WIDTH,
    frames=FRAMES,
    steps=sdxl_models.STEPS,
    guidance_scale=sdxl_models.GUIDANCE,
    sampler_options=(("set_alpha_to_one", False),),
)
PICTURE = dataclasses.replace(SETTINGS, frames=1)
PROMPTS = ["a photo of a cat, running!", "waves"]
SECOND = ["oil painting", "at night"]
NEGATIVE = ["", "blurry, low quality"]  # the first has none
SIZES = dict(
    original_size=(512, 768),
    crop=(8, 16),
    target_size=(HEIGHT, WIDTH),
    negative_original_size=(32, 48),
    negative_crop=(4, 2),
    negative_target_size=(128, 64),
)
THEIR_NAMES = dict(crop="crops_coords_top_left", negative_crop="negative_crops_coords_top_left")
SPREAD = dict(data=2, frames=4)


@functools.cache
def pipeline(devices=1, motion=True, adapter=False, projection="", **shape):
    """Our pipeline of the small SDXL: of videos or pictures, with adapters or without, on devices."""
    mesh = make_mesh(shape, jax.devices()[:devices])
    weights = Weights(
        base=str(sdxl_models.folder()),
        motion=str(sdxl_models.motion()) if motion else None,
        adapter=str(sdxl_models.first_frame_adapter()) if adapter else None,
        image_adapter=str(sdxl_models.image_adapter(projection)) if projection else None,
        image_encoder=str(sdxl_models.image_encoder()) if projection else None,
    )
    schedule = sdxl_models.VIDEO_SCHEDULE if motion else sdxl_models.PICTURE_SCHEDULE
    model = Model.load(
        weights,
        schedule=NoiseSchedule.from_diffusers(schedule),
        motion_config=dict(pooled_norm=True),  # as diffusers has it
        mesh=mesh,
    )
    return Pipeline(model, mesh)


@functools.cache
def pictures():
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (70, 90, 3), np.uint8) for _ in PROMPTS]


@functools.cache
def noisy(frames=FRAMES):
    """Latents to start from, one video for each prompt; frame 1 of a video is clean and stays so."""
    noise = [sdxl_models.initial_noise(frames, HEIGHT, WIDTH, seed) for seed in range(len(PROMPTS))]
    return np.concatenate(noise)


def theirs(frames=FRAMES, sizes=None, prompts_2=None, negatives_2=None):
    """One run of diffusers for each prompt, joined."""
    run = sdxl_models.run_picture if frames == 1 else sdxl_models.run_video
    options = {THEIR_NAMES.get(name, name): size for name, size in (sizes or {}).items()}
    runs = []
    for i, prompt in enumerate(PROMPTS):
        second = dict(prompt_2=prompts_2[i], negative_prompt_2=negatives_2[i]) if prompts_2 else {}
        start = noisy(frames)[i : i + 1]
        runs.append(run(prompt, start, negative_prompt=NEGATIVE[i] or None, **options, **second))
    return sdxl_models.Run(*(np.concatenate(arrays) for arrays in zip(*runs)))


def test_conditions_equal_diffusers(measured):
    """Text states, pooled text and sizes; one row without a negative prompt; one prompt, then two and all sizes."""
    second = dict(prompts_2=["oil painting", "at night"], negatives_2=["", "text"])
    for label, sizes, prompts in (("one prompt", {}, {}), ("two prompts", SIZES, second)):
        wanted = theirs(1, sizes, **prompts)
        assert (
            not wanted.negative_text[0].any() and not wanted.negative_pooled[0].any() and wanted.negative_text[1].any()
        )
        ours = dict(zip(("prompts_2", "negative_prompts_2"), prompts.values()))
        settings = dataclasses.replace(PICTURE, **sizes)
        conditions = pipeline(motion=False).encode(PROMPTS, NEGATIVE, **ours, settings=settings)
        for name, array, sides in (
            ("text states", conditions.text, (wanted.negative_text, wanted.text)),
            ("pooled text", conditions.pooled, (wanted.negative_pooled, wanted.pooled)),
            ("sizes", conditions.sizes, (wanted.negative_sizes, wanted.sizes)),
        ):
            error = relative_error(array[:, 0], np.concatenate(sides))
            measured(f"SDXL {label}: {name} against diffusers", error, 1e-5)


@pytest.mark.parametrize("kind", ["picture", "video"])
def test_guided_runs_and_their_pictures_equal_diffusers(kind, measured):
    """StableDiffusionXLPipeline, and AnimateDiffSDXLPipeline with frame 1 held clean; then with all sizes given."""
    frames = 1 if kind == "picture" else FRAMES
    ours = pipeline(motion=kind == "video")
    first_frame = None if kind == "picture" else noisy()[:, :1]
    for label, sizes in ((kind, {}), (f"{kind}, sizes given", SIZES)):
        settings = dataclasses.replace(SETTINGS, frames=frames, **sizes)
        wanted = theirs(frames, sizes)
        conditions = ours.encode(PROMPTS, NEGATIVE, settings=settings)
        latents = ours.denoise(noisy(frames), conditions, settings, first_frame=first_frame)
        for row, prompts in enumerate(("no negative prompt", "a negative prompt")):
            what = f"SDXL {label}, {prompts}: latents after {settings.steps} guided steps, diffusers'"
            measured(what, relative_error(latents[row], wanted.latents[row]), 1e-4)
        made = ours.decode(latents, settings).astype(int)
        assert np.mean((wanted.pictures > 0) & (wanted.pictures < 255)) > 0.9  # what is clipped shows no error
        measured(f"SDXL {label}: pictures against diffusers, of 255", np.abs(made - wanted.pictures).max(), 1)


def test_a_new_adapter_changes_nothing():
    """With W'_O = 0 the network's output is the base's, bit for bit."""
    made = []
    for ours in (pipeline(), pipeline(adapter=True)):
        unet, parameters = ours.model.configs["unet"], ours.model.parameters["unet"]
        conditions = ours.encode(PROMPTS, NEGATIVE, settings=SETTINGS)
        both = np.concatenate([noisy()] * 2)
        made.append(exact_jit(UNet(unet).apply)({"params": parameters}, both, 500, conditions))
    np.testing.assert_array_equal(*made)
    assert pipeline(adapter=True).model.configs["unet"].self_attention_branches == ("first_frame",)


def test_eight_devices_make_the_same_videos(measured):
    """Whole runs from pictures: autoencoder, both text encoders, prior, guided steps with the first frame held."""
    settings = dataclasses.replace(SETTINGS, t0=0.5, **SIZES)
    runs = (pipeline(adapter=True), pipeline(8, adapter=True, **SPREAD))
    one, eight = (ours.latents(pictures(), PROMPTS, [1, 2], NEGATIVE, settings) for ours in runs)
    measured(f"SDXL: 8 devices {SPREAD} against 1, latents", relative_error(eight, one), 1e-5)
    decoded = [ours.decode(one, settings).astype(int) for ours in runs]
    measured("SDXL: 8 devices against 1, pictures, of 255", np.abs(decoded[0] - decoded[1]).max(), 1)


@pytest.mark.parametrize("projection", sdxl_models.PROJECTIONS)
def test_image_tokens_equal_diffusers(projection, measured):
    """IP-Adapters of SDXL: linear, from the projected embedding; "plus", from penultimate states."""
    ours = pipeline(motion=False, projection=projection)
    conditions = ours.encode(PROMPTS[:1], pictures=pictures()[:1], settings=PICTURE)
    wanted, unconditional = sdxl_models.image_tokens(projection, pictures()[0])
    error = relative_error(conditions.image_tokens[:, 0], np.concatenate([unconditional, wanted]))
    measured(f"SDXL: image tokens of an IP-Adapter ({projection}) against diffusers", error, 1e-5)
