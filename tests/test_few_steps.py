"""The configs of few-step models: as their makers publish them, said to be so, and run with small stand-ins of the
published layouts in place of their files."""

import shutil
import warnings
from pathlib import Path

import diffusers
import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from configs.sample import hyper_sd
from i2v_jax import commands
from i2v_jax.devices.mesh import make_mesh
from i2v_jax.diffusion.noise_schedule import NoiseSchedule
from i2v_jax.errors import InputError
from i2v_jax.families import few_steps
from i2v_jax.families.few_steps import Chosen
from i2v_jax.families.model import Model
from i2v_jax.families.weights import Weights
from i2v_jax.models.conditions import Conditions
from i2v_jax.sampling.pipeline import Pipeline
from i2v_jax.sampling.presets import FOLDER, preset
from i2v_jax.sampling.settings import Settings
from tests import sdxl_models
from tests import test_weights as library
from tests.tiny import SMALL
from tests.torch_models import randomise

VARIANTS = {
    "animatelcm": [""],
    "animatediff_lightning": ["", ":1", ":2", ":4", ":8"],
    "lcm_lora": ["", ":sd15", ":sdxl"],
    "tcd_lora": ["", ":sd15", ":sdxl"],
    "hyper_sd": ["", *(f":{name}" for name in hyper_sd.VARIANTS)],
    "sdxl_lightning": ["", ":1", ":2", ":4", ":8"],
    "sdxl_turbo": [""],
}
EVERY = [name + variant for name, variants in VARIANTS.items() for variant in variants]
KNOWN = commands.load_config(FOLDER / "sd15.py")


def load(name):
    return commands.load_config(name, KNOWN, FOLDER)


def chosen_of(config):
    return Chosen.of_config(config, NoiseSchedule(**config.noise_schedule))


def warnings_of(config, chosen):
    """What is said of a run of a config's weights; none of its files is here, so that names alone tell."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        few_steps.warn(Weights.of_config(config.weights), [chosen])
    return [str(warning.message) for warning in caught]


@pytest.mark.parametrize("name", EVERY)
def test_configs_are_as_their_models_want_to_be_sampled(name):
    """Each loads, samples, and is not warned of; with the settings of undistilled models it is."""
    config = load(name)
    settings = Settings.of_config(config)
    settings.check_values(NoiseSchedule(**config.noise_schedule), max_frames=32)
    assert warnings_of(config, chosen_of(config)) == []
    (warning,) = warnings_of(config, Chosen("ddim", "leading", 60, 7.5, NoiseSchedule(), ()))
    assert "made to sample in a few steps; this run has " in warning
    for word in ("steps=60", "Its makers' settings: sampler="):
        assert word in warning
    assert settings.guided is (settings.guidance_scale > 1) is ("guided" in name or name == "animatelcm")
    assert settings.steps <= 12 and (not config.negative_prompt or settings.guided)
    assert preset(name).settings == settings


@pytest.mark.parametrize(
    "name, timesteps, kind",
    [
        ("animatelcm", [999, 839, 679, 499, 339, 179], "linear"),
        ("animatediff_lightning:4", [999, 749, 499, 249], "linear"),
        ("lcm_lora:sdxl", [999, 759, 499, 259], "scaled_linear"),
        ("hyper_sd:sd15_8", [999, 874, 749, 624, 499, 374, 249, 124], "linear"),
        ("hyper_sd:sd15_unified", [999], "linear"),
        ("hyper_sd:sdxl_unet", [800], "scaled_linear"),
        ("sdxl_lightning:2", [999, 499], "scaled_linear"),
        ("sdxl_turbo", [999, 749, 499, 249], "scaled_linear"),
    ],
)
def test_timesteps_are_those_of_the_makers(name, timesteps, kind):
    found = preset(name)
    sampler = found.settings.check_values(found.schedule)
    np.testing.assert_array_equal(sampler.timesteps, timesteps)
    assert found.schedule.kind == kind and found.schedule.prediction_type == "epsilon"
    assert preset("sdxl_lightning:1").schedule.prediction_type == "sample"


def test_reuse_of_features_is_not_for_so_few_steps():
    config = load("hyper_sd:sdxl_2")
    config.deep_cache_every = 2
    assert "deep_cache_every=2" in warnings_of(config, chosen_of(config))[0]


def test_an_unknown_row_is_refused():
    with pytest.raises(InputError, match="animatediff_lightning.py:3: wanted one of 1, 2, 4, 8"):
        load("animatediff_lightning:3")
    with pytest.raises(InputError, match=r"hyper_sd.py:sdxl4: wanted one of .*Did you mean 'sdxl_4'"):
        preset("hyper_sd:sdxl4")
    with pytest.raises(InputError, match="neither one of .*hyper_sd.* nor a file.*Did you mean 'hyper_sd'"):
        preset("hyper_ds")


def motion_modules(folder, name, tables):
    """Modules of AnimateDiff v2's layout, as wide as the small model: diffusers' names and tables, or AnimateLCM's."""
    made = dict(block_out_channels=(32, 64), motion_layers_per_block=1)
    state = library.state_of(randomise(diffusers.MotionAdapter(**made)))
    if not tables:
        state = {key: x for key, x in library.animatediff(state).items() if not key.endswith(".pe")}
    save_file({key: np.ascontiguousarray(x) for key, x in state.items()}, folder / name)
    return str(folder / name)


def lora(folder, name, width):
    """In kohya-ss's layout, as those of LCM, TCD, Hyper-SD and AnimateLCM."""
    layer, rng = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q", np.random.default_rng(0)
    leaves = {"lora_down.weight": (4, width), "lora_up.weight": (width, 4)}
    state = {f"{layer}.{leaf}": rng.standard_normal(shape, np.float32) for leaf, shape in leaves.items()}
    save_file(state | {f"{layer}.alpha": np.array(4, np.float32)}, folder / name)
    return str(folder / name)


def stand_ins(config, folder):
    """A config's weights, with small files of the same names and layouts in place of those that it names."""
    is_xl = "xl" in config.weights.base
    weights, width = config.weights.copy_and_resolve_references(), 32 if is_xl else 64
    with weights.unlocked():
        weights.image_adapter = weights.image_encoder = ""
        weights.loras = tuple(
            lora(folder, Path(source.partition("=")[0]).name, width) + "=0.8" for source in weights.loras
        )
        if is_xl:
            if weights.unet:
                name = folder / Path(weights.unet).name
                shutil.copy(sdxl_models.folder() / "unet" / "diffusion_pytorch_model.safetensors", name)
                weights.unet = str(name)
                weights.configs.unet = str(sdxl_models.folder() / "unet" / "config.json")
            weights.base, weights.motion = str(sdxl_models.folder()), str(sdxl_models.motion())
        else:
            name = Path(weights.motion).name
            weights.motion = str(SMALL / "motion.safetensors")
            if "ightning" in name or "LCM" in name:
                weights.motion = motion_modules(folder, name.replace(".ckpt", ".safetensors"), "LCM" not in name)
            weights.base, weights.adapter = str(SMALL), str(SMALL / "i2v_adapter.safetensors")
    return Weights.of_config(weights)


def load_stand_ins(name, folder):
    """A config, its model with stand-ins, and what was said of them."""
    config, mesh = load(name), make_mesh({}, jax.devices()[:1])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        schedule = NoiseSchedule(**config.noise_schedule)
        model = Model.load(stand_ins(config, folder), schedule=schedule, mesh=mesh)
    return config, Pipeline(model, mesh), [str(warning.message) for warning in caught]


@pytest.mark.parametrize(
    "name, frames",
    [("animatelcm", 64), ("animatediff_lightning:8", 32), ("lcm_lora:sd15", 24), ("hyper_sd:sd15_8_guided", 24)]
    + [("lcm_lora:sdxl", 32), ("sdxl_turbo", 32), ("hyper_sd:sdxl_unified", 32), ("tcd_lora:sdxl", 32)],
)
def test_models_of_configs_load_from_the_published_layouts(name, frames, tmp_path):
    """Their settings suit them; frames are those that their motion modules know, without a guess."""
    config, pipeline, said = load_stand_ins(name, tmp_path)
    assert Settings.of_config(config).check(pipeline.model).num_steps == config.steps
    assert pipeline.model.max_frames == frames
    assert not [message for message in said if "taken for AnimateLCM" in message]


@pytest.mark.parametrize(
    "name", ["animatelcm", "animatediff_lightning:2", "tcd_lora:sd15", "sdxl_lightning:1", "hyper_sd:sdxl_unet"]
)
def test_configs_make_a_run(name, tmp_path):
    """Of the published number of steps, from text states and noise; what stays is the first frame."""
    config, pipeline, _ = load_stand_ins(name, tmp_path)
    settings, rng = Settings.of_config(config), np.random.default_rng(0)
    rows, unet = 2 if settings.guided else 1, pipeline.model.configs["unet"]
    added = unet.added_conditioning
    conditions = Conditions.of_videos(
        rng.standard_normal((rows, 77, unet.cross_attention_dim), np.float32),
        None,
        *((rng.standard_normal((rows, added.pooled_dim), np.float32), np.ones((rows, 6), "f")) if added else ()),
    )
    noise, first = rng.standard_normal((1, 2, 4, 4, 4), np.float32), rng.standard_normal((1, 1, 4, 4, 4), np.float32)
    noisy = settings.check(pipeline.model).scale[0] * noise
    latents = pipeline.denoise(noisy, conditions, settings, first)
    assert latents.shape == noise.shape and np.isfinite(latents).all()
    np.testing.assert_array_equal(latents[:, :1], first)
    assert np.abs(latents[:, 1:] - noisy[:, 1:]).max() > 0.1
