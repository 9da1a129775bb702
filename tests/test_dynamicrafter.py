"""DynamiCrafter's networks, schedules and sampler against recorded runs of the published code."""

import functools

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from i2v_jax.diffusion import samplers
from i2v_jax.diffusion.ldm_ddim import analytic_initial
from i2v_jax.diffusion.noise_schedule import NoiseSchedule, target
from i2v_jax.errors import InputError
from i2v_jax.media import stretched_clip_pixels
from i2v_jax.models.clip import CLIPTextEncoder, CLIPVisionEncoder
from i2v_jax.models.conditions import join
from i2v_jax.models.dynamicrafter import DynamiCrafterUNet
from i2v_jax.models.image_projection import Resampler
from i2v_jax.sampling.denoiser import guided, unet_denoiser
from i2v_jax.weights.assemble import load_image_encoder, load_text_encoder
from i2v_jax.weights.tensors import Tensors
from tests import dynamicrafter_oracle as oracle
from tests.helpers import relative_error


@functools.cache
def program(alpha: bool = False):
    """The UNet, compiled: (latents, timesteps, conditions) -> prediction."""
    config, parameters = oracle.unet(alpha)
    return functools.partial(jax.jit(DynamiCrafterUNet(config).apply), {"params": parameters})


VARIANTS = {
    "as published": ("unet.context", True, False, "unet.output"),
    "no frame rate given": ("unet.context", False, False, "unet.output_default_fs"),
    "learned image scale": ("unet.context", True, True, "unet.output_with_alpha"),
    "image tokens that frames share": ("unet.context_shared", True, False, "unet.output_shared_image_tokens"),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_unet_equals_the_published_one(variant, measured):
    context, has_fs, alpha, output = VARIANTS[variant]
    io = oracle.recorded()
    conditions = oracle.conditions(io[context], io["unet.image_latents"], io["unet.fs"] if has_fs else None)
    out = program(alpha)(io["unet.latents"], io["unet.timesteps"].astype(np.float32), conditions)
    measured(f"DynamiCrafter UNet, {variant}", relative_error(out, io[output]), 1e-5)


def test_unet_takes_any_number_of_frames(measured):
    io = oracle.recorded()
    conditions = oracle.conditions(io["unet_frames.context"], io["unet_frames.image_latents"], io["unet.fs"])
    out = program()(io["unet_frames.latents"], io["unet.timesteps"].astype(np.float32), conditions)
    measured("DynamiCrafter UNet, another number of frames", relative_error(out, io["unet_frames.output"]), 1e-5)


def test_resampler_equals_the_published_one(measured):
    io, (config, parameters) = oracle.recorded(), oracle.image_projection()
    out = Resampler(config).apply({"params": parameters}, io["resampler.input"])
    measured("DynamiCrafter resampler", relative_error(out, io["resampler.output"]), 1e-5)


SCHEDULE = NoiseSchedule(
    kind="scaled_linear_double", prediction_type="v_prediction", zero_terminal_snr=True, base_scale=0.7
)


def test_schedule_equals_the_published_one(measured):
    io = oracle.recorded()
    for name, ours in (("betas", SCHEDULE.betas), ("alphas_cumprod", SCHEDULE.alphas_cumprod)):
        measured(f"DynamiCrafter schedule: {name}", relative_error(ours, io[f"schedule.{name}"]), 1e-5)
    measured("DynamiCrafter dynamic rescale", relative_error(SCHEDULE.scales, io["schedule.scale_arr"][:1000]), 1e-5)
    assert SCHEDULE.alphas_cumprod[-1] == 0


def test_training_target_equals_the_published_one(measured):
    """Latents scaled, then noised; the v that stands for them; the loss of the published prediction."""
    io = oracle.recorded()
    timesteps = io["train.timesteps"]
    clean = SCHEDULE.scaled(io["train.latents"], timesteps)
    noisy = SCHEDULE.add_noise(clean, io["train.noise"], timesteps)
    alpha, sigma = (scale(timesteps)[:, None, None, None, None] for scale in (SCHEDULE.alpha, SCHEDULE.sigma))
    wanted = target("v_prediction", clean, io["train.noise"], alpha, sigma)
    measured("DynamiCrafter noisy latents", relative_error(noisy, io["train.noisy_latents"]), 1e-5)
    measured("DynamiCrafter v targets", relative_error(wanted, io["train.target"]), 1e-5)
    loss = np.mean(np.square(np.asarray(wanted) - io["train.prediction"]), (1, 2, 3, 4))
    measured("DynamiCrafter loss", relative_error(loss, io["train.loss_per_item"]), 1e-5)


def test_analytic_start_equals_the_published_one(measured):
    io = oracle.recorded()
    given = io["analytic.expectation_x0"], io["analytic.tr_cov_d"], io["analytic.eps"]
    ours = analytic_initial(SCHEDULE, oracle.settings()["analytic_M"], *given)
    measured("DynamiCrafter analytic start", relative_error(ours, io["analytic.initial"]), 1e-5)


def ddim(steps: int = 6, noisiest: int = 1000, eta: float = 1.0) -> samplers.Sampler:
    """The published sampler."""
    return samplers.make("ldm_ddim", SCHEDULE, steps, spacing="trailing", eta=eta, noisiest=noisiest)


def test_tables_of_the_sampler_equal_the_published_ones(measured):
    io, sampler = oracle.recorded(), ddim()
    assert (sampler.timesteps == io["ddim.timesteps"]).all()
    tables = sampler.coefficients
    for name, ours in (
        ("alpha", sampler.alpha**2),
        ("alpha_prev", tables["alpha_next"] ** 2),
        ("sigma", tables["std"]),
        ("direction", tables["direction"]),
    ):
        measured(f"DynamiCrafter DDIM: {name}", relative_error(ours, io[f"ddim.{name}"]), 1e-5)
    wanted = io["ddim.scale_prev"] / io["ddim.scale"]
    measured("DynamiCrafter DDIM: rescale", relative_error(tables["rescale"], wanted), 1e-5)


@pytest.mark.parametrize("steps", [7, 11, 14, 15, 20, 25, 33, 50, 61, 103, 121, 1000])
def test_no_number_of_steps_makes_nan(steps):
    """Of some the published code takes the root of a number just below 0, and of some it makes one step too many."""
    sampler = ddim(steps)
    assert len(sampler.timesteps) == steps and all(np.isfinite(table).all() for table in sampler.coefficients.values())
    assert (np.diff(sampler.timesteps) < 0).all()
    exact = 1 - sampler.coefficients["alpha_next"].astype(np.float64) ** 2 - sampler.coefficients["std"] ** 2
    clamped = np.sqrt(np.maximum(exact, 0))
    assert np.abs(sampler.coefficients["direction"] - clamped).max() < 1e-3  # float32's rounding near 0, as published


def test_guided_run_equals_the_published_one(measured):
    """Six steps with guidance and its rescale, dynamic rescale, eta 1; every prediction, and the end."""
    io, (config, parameters), sampler = oracle.recorded(), oracle.unet(), ddim()
    settings = oracle.settings()["ddim"]
    projection, tree = oracle.image_projection()
    sides = []
    for side in ("_uncond", ""):
        tokens = Resampler(projection).apply({"params": tree}, io[f"ddim.image_tokens{side}"])
        context = np.concatenate([io[f"ddim.text{side}"], tokens], 1)
        measured("DynamiCrafter context", relative_error(context, io[f"ddim.context{side or '_cond'}"]), 1e-5)
        sides.append(oracle.conditions(context, io["ddim.image_latents"], io["ddim.fs"]))
    denoise = guided(unet_denoiser(config, {}), settings["guidance"], settings["guidance_rescale"])

    @jax.jit
    def step(parameters, state, i, noise):
        prediction = denoise({"unet": parameters}, state.latents, jax.numpy.asarray(sampler.timesteps)[i], join(*sides))
        return sampler.step(state, i, prediction, noise)

    state = sampler.init(io["ddim.initial"])
    for i in range(sampler.num_steps):
        state = step(parameters, state, i, io["ddim.noise"][i])
        error = relative_error(state.x0 * sampler.coefficients["rescale"][i], io[f"ddim.step{i}.pred_x0"])
        measured("DynamiCrafter run: clean latents of each step", error, 2e-4)
        measured(f"DynamiCrafter run: step {i}", relative_error(state.latents, io[f"ddim.step{i}.x"]), 2e-4)


def test_other_samplers_and_bad_numbers_are_refused():
    with pytest.raises(InputError, match="no dynamic rescale.*ldm_ddim"):
        samplers.make("euler", SCHEDULE, 10, spacing="trailing")
    with pytest.raises(InputError, match="noisiest=5"):
        ddim(6, noisiest=5)
    with pytest.raises(InputError, match="base_scale = 2"):
        NoiseSchedule(base_scale=2)


@pytest.mark.parametrize("kind", ["up", "down"])
def test_clip_preprocessing_equals_the_published_one(kind, measured):
    """A picture that is enlarged, and one that is shrunk, blurred against aliasing."""
    recorded = oracle.recorded("clip_preprocess")
    ours = stretched_clip_pixels(recorded[f"{kind}.image"][0].transpose(1, 2, 0))
    every = {"up": 7, "down": 3}[kind]
    wanted = recorded[f"{kind}.output"][0].transpose(1, 2, 0)
    error = relative_error(ours[::every, ::every], wanted)
    measured(f"DynamiCrafter CLIP preprocessing, {kind}", error, 1e-4)


@pytest.mark.filterwarnings("ignore:.*has no config.json")
def test_openclip_towers_equal_open_clip(measured):
    """Small random ones, recorded from open_clip_torch: prompt tokens before the last block, all picture tokens."""
    held = load_file(oracle.FOLDER.parent / "openclip.safetensors")
    io = {name.removeprefix("io."): x for name, x in held.items() if name.startswith("io.")}
    file = Tensors.of({name: x for name, x in held.items() if not name.startswith("io.")})
    shape = dict(num_heads=4, hidden_act="gelu", dtype=np.float32)
    config, parameters = load_text_encoder(file, eos_token_id=95, **shape)
    text = CLIPTextEncoder(config).apply({"params": parameters}, io["ids"])
    measured("OpenCLIP text, before the last block, normed", relative_error(text.penultimate_normed, io["text"]), 1e-5)
    measured("OpenCLIP text, pooled", relative_error(text.pooled, io["text_embeds"]), 1e-5)
    config, parameters = load_image_encoder(file, **shape)
    picture = CLIPVisionEncoder(config).apply({"params": parameters}, io["pixels"])
    measured("OpenCLIP vision, all tokens", relative_error(picture.last_hidden, io["tokens"]), 1e-5)
    measured("OpenCLIP vision, pooled", relative_error(picture.image_embeds, io["image_embeds"]), 1e-5)
