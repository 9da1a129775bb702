"""ControlNets in the pipeline: against diffusers' pipelines on the same weights, over devices, what they promise.

A small Stable Diffusion 1.5 (tests/data/small) with random motion modules, and the small SDXL of `sdxl_models`.
"""

import dataclasses
import functools

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from PIL import Image

from i2v_jax.devices.mesh import make_mesh
from i2v_jax.diffusion.noise_schedule import NoiseSchedule
from i2v_jax.encoders import controls as control_networks
from i2v_jax.errors import InputError
from i2v_jax.families.model import Model
from i2v_jax.families.weights import Weights
from i2v_jax.sampling.controls.settings import ControlSettings
from i2v_jax.sampling.pipeline import Pipeline
from i2v_jax.sampling.settings import Settings
from tests import sdxl_models, tiny
from tests.helpers import relative_error
from tests.tiny import SMALL
from tests.torch_models import randomise

WIDTHS = (8, 16, 24, 32)  # of the embedding of pictures; eight pixels are a latent
SCHEDULE = sdxl_models.PICTURE_SCHEDULE | dict(beta_schedule="linear")
HEIGHT, WIDTH, FRAMES, STEPS = 64, 48, 3, 5
SETTINGS = Settings(
    height=HEIGHT,
    width=WIDTH,
    frames=FRAMES,
    steps=STEPS,
    guidance_scale=5.0,
    sampler_options=(("set_alpha_to_one", False),),
)
PROMPT, NEGATIVE = "a cat", "blurry"
SPREAD = dict(data=2, frames=4)


@functools.cache
def unet():
    return diffusers.UNet2DConditionModel.from_pretrained(SMALL / "unet")


@functools.cache
def motion_adapter():
    adapter = diffusers.MotionAdapter(**tiny.motion((32, 64)))
    path = sdxl_models.root() / "sd15_motion"
    randomise(adapter, 11).save_pretrained(path)
    return adapter, path


@functools.cache
def controlnet(family, number):
    """A random ControlNet of diffusers', and its folder."""
    base = unet() if family == "sd15" else sdxl_models.picture_pipeline().unet
    made = diffusers.ControlNetModel.from_unet(
        base, conditioning_embedding_out_channels=WIDTHS, load_weights_from_unet=False
    )
    randomise(made, 20 + number)
    with torch.no_grad():  # as strong as trained ones: they correct, and do not drown, the UNet's features
        for layer in (*made.controlnet_down_blocks, made.controlnet_mid_block):
            layer.weight *= 0.3
            layer.bias *= 0.3
    path = sdxl_models.root() / f"{family}_controlnet_{number}"
    made.save_pretrained(path)
    return made, path


@functools.cache
def pipeline(family="sd15", networks=1, devices=1, **shape):
    mesh = make_mesh(shape, jax.devices()[:devices])
    weights = Weights(
        base=str(SMALL if family == "sd15" else sdxl_models.folder()),
        motion=str(motion_adapter()[1]) if family == "sd15" else None,
        controls=tuple(str(controlnet(family, number)[1]) for number in range(networks)),
    )
    schedule = NoiseSchedule.from_diffusers(SCHEDULE if family == "sd15" else sdxl_models.PICTURE_SCHEDULE)
    given = dict(motion_config=dict(pooled_norm=True)) if family == "sd15" else {}
    return Pipeline(Model.load(weights, schedule=schedule, mesh=mesh, **given), mesh)


def pictures(seed=0, frames=FRAMES, height=HEIGHT, width=WIDTH):
    """Outlines: mostly black, some white."""
    rng = np.random.default_rng(seed)
    return np.repeat(255 * (rng.random((frames, height, width, 1)) < 0.1), 3, -1).astype(np.uint8)


def noise(frames=FRAMES, height=HEIGHT, width=WIDTH):
    return sdxl_models.initial_noise(frames, height, width, 3)


def latents(given, settings=SETTINGS, family="sd15", networks=1):
    ours = pipeline(family, networks)
    conditions = ours.encode([PROMPT], [NEGATIVE], settings=settings, controls=given)
    return ours.denoise(noise(settings.frames), conditions, settings)


def theirs(family, networks, **options):
    """Latents of diffusers' pipeline with ControlNets, channels last."""
    nets = [controlnet(family, number)[0] for number in range(networks)]
    nets = nets if networks > 1 else nets[0]
    settings = dict(height=HEIGHT, width=WIDTH, num_inference_steps=STEPS, guidance_scale=SETTINGS.guidance_scale)
    settings |= dict(negative_prompt=NEGATIVE, output_type="latent") | options
    with torch.no_grad():
        if family == "sdxl":
            pipe = diffusers.StableDiffusionXLControlNetPipeline.from_pretrained(
                sdxl_models.folder(), controlnet=nets, add_watermarker=False
            )
            pipe.set_progress_bar_config(disable=True)
            start = torch.from_numpy(np.moveaxis(noise(1)[:, 0], -1, 1).copy())
            images = [Image.fromarray(pictures(number, 1)[0]) for number in range(networks)]
            images = images if networks > 1 else images[0]
            made = pipe(PROMPT, image=images, latents=start, **settings).images
            return np.moveaxis(made.numpy(), 1, -1)[:, None]
        pipe = diffusers.AnimateDiffControlNetPipeline(
            **tiny.parts() | dict(unet=unet()),
            motion_adapter=motion_adapter()[0],
            controlnet=nets,
            scheduler=diffusers.DDIMScheduler(**SCHEDULE),
        )
        pipe.set_progress_bar_config(disable=True)
        start = torch.from_numpy(np.moveaxis(noise(), -1, 1).copy())
        videos = [[Image.fromarray(picture) for picture in pictures(number)] for number in range(networks)]
        videos = videos if networks > 1 else videos[0]
        made = pipe(PROMPT, conditioning_frames=videos, num_frames=FRAMES, latents=start, **settings).frames
        return np.moveaxis(made.numpy(), 1, -1)


@pytest.mark.parametrize("family, networks", [("sd15", 1), ("sd15", 2), ("sdxl", 1), ("sdxl", 2)])
def test_guided_runs_equal_diffusers(family, networks, measured):
    """diffusers' pipelines for videos and for SDXL; each network with its own scale, start and end."""
    title = {"sd15": "AnimateDiffControlNetPipeline", "sdxl": "StableDiffusionXLControlNetPipeline"}[family]
    scales, starts, ends = [0.8, 0.5][:networks], [0.0, 0.2][:networks], [0.6, 1.0][:networks]
    one = (lambda values: values[0]) if networks == 1 else list
    wanted = theirs(
        family,
        networks,
        controlnet_conditioning_scale=one(scales),
        control_guidance_start=one(starts),
        control_guidance_end=one(ends),
    )
    controls = ControlSettings(scales=tuple(scales), starts=tuple(starts), ends=tuple(ends))
    frames = FRAMES if family == "sd15" else 1
    settings = dataclasses.replace(SETTINGS, frames=frames, controls=controls)
    given = [pictures(number, frames) for number in range(networks)]
    made = latents(given, settings, family, networks)
    what = f"{title}, {networks} ControlNet{'s' * (networks > 1)}: latents after {STEPS} guided steps"
    measured(what, relative_error(made, wanted), 1e-4)
    off = latents(given, dataclasses.replace(settings, controls=ControlSettings(scales=0.0)), family, networks)
    assert relative_error(made, off) > 1e-2


def test_eight_devices_make_the_same_videos_at_odd_sizes(measured):
    """Whole runs from pictures, of two videos with their own control pictures each; sides of odd latents."""
    height, width = 264, 200
    settings = dataclasses.replace(SETTINGS, height=height, width=width, frames=4, steps=1, guidance_scale=1.0)
    videos = tuple(pictures(number, 4, height, width) for number in range(2))
    start = [np.full((height, width, 3), 90 * number, np.uint8) for number in range(2)]
    one, eight = (
        ours.latents(start, [PROMPT, "waves"], [1, 2], settings=settings, controls=[videos])
        for ours in (pipeline(), pipeline(devices=8, **SPREAD))
    )
    assert one.shape == (2, 4, height // 8, width // 8, 4)
    measured(f"ControlNet at {height}x{width}: 8 devices {SPREAD} against 1", relative_error(eight, one), 1e-5)


def test_pictures_are_encoded_once_for_a_run():
    """Steps are given what was made of them once, in the size of latents."""
    ours, settings = pipeline(), dataclasses.replace(SETTINGS, steps=3)
    seen = []
    known = control_networks.CONTROLS
    (kind,) = {type(config) for config in ours.model.controls.values()}

    def encode(*arguments):
        seen.append("encoded")
        return known[kind].encode(*arguments)

    def residuals(*arguments):
        seen.append("run")
        return known[kind].residuals(*arguments)

    changed = known | {kind: known[kind]._replace(encode=encode, residuals=residuals)}
    again = Pipeline(ours.model, ours.mesh)
    control_networks.CONTROLS = changed
    try:
        conditions = again.encode([PROMPT], settings=settings, controls=pictures())
        again.denoise(noise(), conditions, settings)
    finally:
        control_networks.CONTROLS = known
    assert seen == ["encoded", "run", "run"]  # the second, traced twice: for its shapes, and for its program
    embedded = conditions.controls[0].embedding
    assert embedded.shape == (2, FRAMES, HEIGHT // 8, WIDTH // 8, 32)


def test_frames_without_a_picture_or_strength_are_left_alone():
    """What a network adds is nothing there, and the same as ever on the other frames."""
    ours, given = pipeline(), pictures()
    (component,) = ours.model.controls
    config, parameters = ours.model.configs[component], ours.model.parameters[component]

    def added(controls):
        settings = dataclasses.replace(SETTINGS, controls=controls)
        conditions = ours.encode([PROMPT], [NEGATIVE], settings=settings, controls=[list(given)])
        x = jnp.asarray(np.concatenate([noise()] * 2))
        found = control_networks.residuals(config, parameters, x, 500.0, conditions, conditions.controls[0])
        weight = controls.strengths(1, 0, 1, FRAMES)[0]
        return np.asarray(found.middle) * weight[:, None, None, None]

    every, some = added(ControlSettings()), added(ControlSettings(frames=(0, 2)))
    np.testing.assert_array_equal(some[:, [0, 2]], every[:, [0, 2]])
    assert not some[:, 1].any() and np.abs(every).max(axis=(0, 2, 3, 4)).all()
    halved = added(ControlSettings(frame_scales=(1.0, 0.5, 0.0)))
    np.testing.assert_array_equal(halved, every * np.array([1, 0.5, 0])[:, None, None, None])
    assert not added(ControlSettings(first_frame=False))[:, 0].any()


def test_strengths_follow_diffusers_shares_of_the_run():
    controls = ControlSettings(scales=(2.0, 1.0), starts=(0.0, 0.3), ends=(0.6, 1.0))
    rows = [controls.strengths(2, i, 7, 1)[:, 0] for i in range(7)]
    keep = [[1.0 - float(i / 7 < s or (i + 1) / 7 > e) for s, e in ((0.0, 0.6), (0.3, 1.0))] for i in range(7)]
    np.testing.assert_array_equal(rows, np.array(keep) * [2, 1])
    assert len({tuple(row) for row in rows}) > 2


def test_a_network_whose_strength_is_0_does_not_run():
    """Not even where it would give no numbers."""
    ours = pipeline()
    broken = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), ours.model.parameters["control_0"])
    model = dataclasses.replace(ours.model, parameters={**ours.model.parameters, "control_0": broken})
    run = functools.partial(Pipeline(model, ours.mesh).latents, pictures()[0], PROMPT, controls=pictures())
    settings = dataclasses.replace(SETTINGS, steps=2)
    with pytest.raises(InputError, match="no longer finite after step 1"):
        run(settings=settings)
    made = run(settings=dataclasses.replace(settings, controls=ControlSettings(scales=0.0)))
    assert np.isfinite(made).all()


def test_a_shuffle_network_says_nothing_to_the_unconditional_side():
    ours = pipeline()
    config = dataclasses.replace(ours.model.configs["control_0"], pooled_residuals=True)
    model = dataclasses.replace(ours.model, configs={**ours.model.configs, "control_0": config})
    conditions = Pipeline(model, ours.mesh).encode([PROMPT], settings=SETTINGS, controls=pictures())
    np.testing.assert_array_equal(conditions.controls[0].known, [[False] * FRAMES, [True] * FRAMES])


@pytest.mark.parametrize(
    "given, networks, message",
    [
        (None, 1, "The model has 1 control network, and no control pictures are given: controls=PICTURES"),
        ([pictures()] * 3, 2, "Control pictures are given for 3 control networks, and the model has 2"),
        ((pictures(),) * 3, 1, "3 control pictures in a tuple for 1 videos: wanted one for each"),
        (pictures(frames=2), 1, "has 2 pictures, and the run 3 frames"),
        ("nowhere.mp4", 1, "No control pictures at 'nowhere.mp4'"),
    ],
)
def test_control_pictures_that_do_not_pair_are_refused(given, networks, message):
    with pytest.raises(InputError, match=message):
        pipeline(networks=networks).encode([PROMPT], settings=SETTINGS, controls=given)


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(scales=(1.0, 2.0)), "controls.scales=.1.0, 2.0.: 2 values for 1 control networks"),
        (dict(scales=float("nan")), "controls.scales=nan: nan is not a finite number"),
        (dict(starts=-0.1), "controls.starts=-0.1: -0.1 is not a share of the run in .0, 1."),
        (dict(ends=1.5), "controls.ends=1.5"),
        (dict(starts=0.5, ends=0.5), "works from 0.5 to 0.5 of the run never does"),
        (dict(frame_scales=(1.0, 1.0)), "2 scales for 3 frames"),
        (dict(frame_scales=(1.0, float("inf"), 1.0)), "is not a list of finite numbers"),
        (dict(frames=(0, 3)), "wanted different frames from 0 to 2, and not 3"),
        (dict(frames=(1, 1)), "wanted different frames from 0 to 2"),
        (dict(first_frame=1), "1 is not true or false"),
        (dict(frames=1), "controls.frames=1: wanted a tuple"),
        (dict(frame_scales=np.ones(3)), "controls.frame_scales=.*wanted a tuple"),
        (dict(starts=0.5, ends=0.52), "steps none lies whole between 0.5 and 0.52 of the run"),
        (dict(process=3), "3 is not the name of a preprocessor"),
    ],
)
def test_settings_out_of_range(change, message):
    with pytest.raises(InputError, match=message):
        dataclasses.replace(SETTINGS, controls=ControlSettings(**change)).check(pipeline().model)


def test_files_that_are_no_control_network_of_this_model_are_told_what_they_are():
    lora = sdxl_models.root() / "lora.safetensors"
    name = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q"
    down, up = np.zeros((2, 64), np.float32), np.zeros((64, 2), np.float32)
    sdxl_models.save_file({f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}, lora)
    for source, message in (
        (lora, "weights.controls: .*lora.safetensors holds no control network, such as lllyasviel/.* It is a LoRA"),
        (
            SMALL / "unet",
            "weights.controls: .*unet holds no control network, .* It is a UNet. Give it as weights.unet=",
        ),
        (SMALL / "motion.safetensors", "holds no control network, .* It is motion modules"),
        (controlnet("sdxl", 0)[1], r"sdxl_controlnet_0 \(ControlNet\) is for .*; .*small is .*: the states"),
    ):
        with pytest.raises(InputError, match=message):
            Model.load(Weights(base=str(SMALL), controls=(str(source),)))
    weights = Weights(base=str(SMALL), controls=(str(controlnet("sd15", 0)[1]),))
    assert any("sd15_controlnet_0" in str(file) for file in weights.files())
