"""T2I-Adapters against diffusers: the networks, their published layouts, UNets that take features, guided runs."""

import dataclasses
import functools
import re

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from i2v_jax.devices.mesh import make_mesh
from i2v_jax.diffusion.noise_schedule import NoiseSchedule
from i2v_jax.encoders import controls
from i2v_jax.errors import InputError
from i2v_jax.families.identify import Part, check_family
from i2v_jax.families.model import Model
from i2v_jax.families.slots import check_slot
from i2v_jax.families.weights import Weights
from i2v_jax.models.networks import parameter_shapes
from i2v_jax.models.residuals import Residuals
from i2v_jax.models.t2i_adapter import FULL, FULL_XL, LIGHT, T2IAdapter, T2IAdapterConfig
from i2v_jax.models.unet import SD15, SDXL, UNet, UNetConfig
from i2v_jax.sampling.controls.settings import ControlSettings
from i2v_jax.sampling.pipeline import Pipeline
from i2v_jax.sampling.settings import Settings
from i2v_jax.weights.assemble import load_unet, to_device
from i2v_jax.weights.checkpoint import open_checkpoint
from i2v_jax.weights.controls import assemble_control, assemble_controlnet, assemble_t2i_adapter
from i2v_jax.weights.infer import infer_config
from tests import sdxl_models, tiny
from tests.conversions import comes_back_to_diffusers, read, run
from tests.helpers import relative_error, with_conditions
from tests.sdxl_models import PICTURE_SCHEDULE
from tests.test_weights import bytes_of, state_of
from tests.torch_models import our_parameters, our_shapes, randomise

SMALL = {
    "full_adapter": dict(channels=[8, 16, 16], num_res_blocks=2),
    "light_adapter": dict(channels=[8, 16], num_res_blocks=2),
    "full_adapter_xl": dict(channels=[8, 16, 24, 24], num_res_blocks=2, downscale_factor=16),
}
PUBLISHED = {  # as their config.json has them
    "sketch": (dataclasses.replace(FULL, in_channels=1), dict(in_channels=1)),
    "depth": (FULL, {}),
    "color": (LIGHT, dict(adapter_type="light_adapter", channels=[320, 640, 1280], num_res_blocks=4)),
    "sketch-sdxl": (FULL_XL, dict(adapter_type="full_adapter_xl", downscale_factor=16)),
    "line, one channel, SDXL": (
        dataclasses.replace(FULL_XL, in_channels=1),
        dict(adapter_type="full_adapter_xl", downscale_factor=16, in_channels=1),
    ),
}


def model(kind, **changes):
    return randomise(diffusers.T2IAdapter(adapter_type=kind, **(SMALL[kind] | changes)), seed=7)


def original(state):
    """diffusers' names as TencentARC's: its blocks counted through all levels, or (light) `body` in them."""
    state = {name.removeprefix("adapter."): array for name, array in state.items()}
    if any("out_conv" in name for name in state):
        return {name.replace(".resnets.", ".body."): array for name, array in state.items()}
    layers = 1 + max(int(match[1]) for name in state if (match := re.search(r"resnets\.(\d+)", name)))

    def renumbered(match):
        return f"body.{int(match[1]) * layers + int(match[3] or 0)}."

    return {re.sub(r"body\.(\d+)\.(resnets\.(\d+)\.)?", renumbered, name): array for name, array in state.items()}


def pictures(video):
    """[b f h w c] as PyTorch wants its pictures."""
    return torch.from_numpy(np.moveaxis(video.reshape(-1, *video.shape[2:]), -1, 1).copy())


def as_pictures(video):
    return np.moveaxis(np.asarray(video).reshape(-1, *video.shape[2:]), -1, 1)


@pytest.mark.parametrize("channels", [3, 1])
@pytest.mark.parametrize("kind", SMALL)
def test_equals_diffusers(kind, channels, measured):
    """At a size whose levels have odd sides."""
    yardstick = model(kind, in_channels=channels)
    config = T2IAdapterConfig.from_diffusers(yardstick.config)
    picture = np.random.default_rng(0).random((2, 2, 80, 112, channels), np.float32)
    with torch.no_grad():
        wanted = yardstick(pictures(picture))
    parameters = our_parameters("t2i_adapter", yardstick.state_dict())
    levels = jax.jit(T2IAdapter(config).apply)({"params": parameters}, picture)
    error = max(relative_error(as_pictures(ours), it) for ours, it in zip(levels, wanted, strict=True))
    measured(f"diffusers T2IAdapter, {kind}, {channels} channels, worst level", error, 1e-5)


def test_pictures_are_read_as_the_adapter_wants_them():
    """RGB as grey for one channel; sides that are no multiple of what pixels are joined by end in the last pixels."""
    config = T2IAdapterConfig.from_diffusers(model("full_adapter_xl", in_channels=1).config)
    parameters = our_parameters("t2i_adapter", model("full_adapter_xl", in_channels=1).state_dict())
    call = functools.partial(T2IAdapter(config).apply, {"params": parameters})
    grey = np.random.default_rng(1).random((1, 1, 40, 32, 1), np.float32)
    padded = np.concatenate([grey, np.repeat(grey[:, :, -1:], 8, axis=2)], 2)
    wanted = call(padded)
    assert wanted[0].shape[2:4] == (3, 2)
    for ours in (call(grey), call(np.repeat(grey, 3, axis=-1))):
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), ours, wanted)
    with pytest.raises(InputError, match="given pictures of 4 channels; it reads 1"):
        jax.eval_shape(call, jnp.zeros((1, 1, 32, 32, 4)))
    with pytest.raises(InputError, match="'broad'; wanted one of full_adapter"):
        T2IAdapterConfig.from_diffusers(dict(adapter_type="broad"))


@pytest.mark.parametrize("kind", SMALL)
def test_both_layouts_come_back_byte_for_byte(kind, tmp_path):
    network = model(kind)
    network.save_pretrained(tmp_path / "diffusers")
    config, parameters = assemble_t2i_adapter(tmp_path / "diffusers").load(to_device)
    ours = comes_back_to_diffusers(network, config, tmp_path)
    published = original(state_of(network))
    torch.save({name: torch.tensor(array) for name, array in published.items()}, tmp_path / "t2iadapter.pth")
    loaded = assemble_t2i_adapter(tmp_path / "t2iadapter.pth").load(to_device)
    assert loaded[0] == config
    jax.tree.map(np.testing.assert_array_equal, loaded[1], parameters)
    for source, to in ((tmp_path / "t2iadapter.pth", ()), (ours, ("--to", "t2i-adapter"))):
        run("export", source, tmp_path / "copy.safetensors", *to, "--overwrite")
        assert bytes_of(read(tmp_path / "copy.safetensors")) == bytes_of(published)


@pytest.mark.parametrize("kind", SMALL)
def test_verify_runs_it_and_inspect_names_it(kind, tmp_path, capsys):
    state = {name: torch.tensor(array) for name, array in original(state_of(model(kind))).items()}
    save_file(state, tmp_path / "t2i.safetensors")
    run("import", tmp_path / "t2i.safetensors", tmp_path / "ours.safetensors")
    run("verify", tmp_path / "t2i.safetensors", tmp_path / "ours.safetensors", "--run")
    out = capsys.readouterr().out
    assert re.search(r"t2i_adapter +features +\d\.\de-\d+ +1e-05 +ok", out), out
    run("inspect", tmp_path / "t2i.safetensors")
    family = "XL" if kind == "full_adapter_xl" else "1.x"
    light = ", light" if kind == "light_adapter" else ""
    first = capsys.readouterr().out.splitlines()[0]
    assert f"for Stable Diffusion {family}; T2I-Adapter{light}, of pictures of 3 channels" in first


@pytest.mark.parametrize("name", PUBLISHED)
def test_config_of_a_published_file(name):
    """At the published sizes, on the meta device, in either layout."""
    preset, settings = PUBLISHED[name]
    with torch.device("meta"):
        network = diffusers.T2IAdapter(**settings)
    assert T2IAdapterConfig.from_diffusers(network.config) == preset
    for state in (network.state_dict(), original(network.state_dict())):
        shapes = our_shapes("t2i_adapter", state)
        assert infer_config("t2i_adapter", shapes) == preset
        assert {path: leaf.shape for path, leaf in parameter_shapes(preset).items()} == shapes


# What a UNet makes of the features.

UNETS = {
    "SD1.5": tiny.UNET
    | dict(block_out_channels=(16, 32, 32), layers_per_block=2, attention_head_dim=4)
    | tiny.levels(True, True, False),
    "SDXL": {key: value for key, value in sdxl_models.UNET.items() if key != "sample_size"},
}


@pytest.mark.parametrize("shape", UNETS)
def test_unet_with_features_equals_diffusers(shape, measured):
    """`down_intrablock_additional_residuals`; SDXL's fourth features are the middle block's."""
    unet = randomise(diffusers.UNet2DConditionModel(**UNETS[shape]), seed=1)
    rng = np.random.default_rng(2)
    normal = lambda *shape: rng.standard_normal(shape, np.float32)  # noqa: E731
    given = dict(sample=normal(1, 2, 8, 12, 4), timesteps=np.array([301], np.int32))
    given["text"] = normal(1, 7, unet.config.cross_attention_dim)
    added = {}
    if shape == "SDXL":
        given["added"] = dict(text_embeds=normal(1, sdxl_models.POOLED), time_ids=normal(1, 6))
        added = dict(
            added_cond_kwargs={k: torch.from_numpy(v).repeat_interleave(2, 0) for k, v in given["added"].items()}
        )
    sides = ((8, 12), (4, 6), (2, 3)) if shape == "SD1.5" else ((4, 6), (4, 6), (2, 3), (2, 3))
    widths = (16, 32, 32) if shape == "SD1.5" else (16, 32, 64, 64)
    features = [normal(1, 2, *side, width) for side, width in zip(sides, widths)]
    each = lambda array: torch.from_numpy(array).repeat_interleave(2, 0)  # noqa: E731
    call = pictures(given["sample"]), each(given["timesteps"]), each(given["text"])
    with torch.no_grad():
        plain = unet(*call, **added).sample
        wanted = unet(*call, down_intrablock_additional_residuals=[pictures(x) for x in features], **added).sample
    assert relative_error(plain, wanted) > 1e-2
    config, parameters = UNetConfig.from_diffusers(unet.config), our_parameters("unet", unet.state_dict())
    apply = functools.partial(jax.jit(UNet(config).apply), {"params": parameters})
    ours = apply(**with_conditions(given), residuals=Residuals(levels=features))
    measured(
        f"diffusers UNet2DConditionModel with T2I features, {shape} shape",
        relative_error(as_pictures(ours), wanted),
        1e-5,
    )


def test_frames_without_a_picture_are_left_alone():
    config = T2IAdapterConfig.from_diffusers(model("full_adapter").config)
    parameters = our_parameters("t2i_adapter", model("full_adapter").state_dict())
    picture = np.random.default_rng(1).random((1, 3, 32, 32, 3), np.float32)
    known = np.array([[True, False, True]])
    levels = controls.encode(config, parameters, picture, known, None)
    added = controls.residuals(config, parameters, None, None, None, levels)
    assert added.skips is None and added.middle is None
    for level, whole in zip(added.levels, T2IAdapter(config).apply({"params": parameters}, picture), strict=True):
        np.testing.assert_array_equal(level[:, 1], 0)
        np.testing.assert_allclose(level[:, [0, 2]], whole[:, [0, 2]], rtol=1e-5, atol=1e-6)


# Through the pipeline.

HEIGHT, WIDTH, STEPS = 64, 96, 5
SETTINGS = Settings(
    height=HEIGHT,
    width=WIDTH,
    frames=1,
    steps=STEPS,
    guidance_scale=5.0,
    sampler_options=(("set_alpha_to_one", False),),
)
PROMPT, NEGATIVE = "a walk on the beach", "waves"
ADAPTERS = {
    "SD1.5": dict(adapter_type="full_adapter", channels=[16, 32, 32]),
    "SDXL": dict(adapter_type="full_adapter_xl", channels=[16, 32, 64, 64], downscale_factor=16),
}


def adapter(family):
    return randomise(diffusers.T2IAdapter(num_res_blocks=1, **ADAPTERS[family]), seed=8)


def unet():
    """As SD1.5's, which attends in its first level, for the prompts of the small base."""
    settings = UNETS["SD1.5"] | dict(cross_attention_dim=32, sample_size=8)
    return randomise(diffusers.UNet2DConditionModel(**settings), seed=1)


def their_pipeline(family):
    if family == "SDXL":
        pipeline = diffusers.StableDiffusionXLAdapterPipeline.from_pretrained(
            sdxl_models.folder(), adapter=adapter(family), add_watermarker=False
        )
    else:
        pipeline = diffusers.StableDiffusionAdapterPipeline(
            **tiny.parts() | dict(unet=unet()),
            adapter=adapter(family),
            scheduler=diffusers.DDIMScheduler(**PICTURE_SCHEDULE),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def our_pipeline(family, tmp_path):
    adapter(family).save_pretrained(tmp_path / "adapter")
    mesh = make_mesh({}, jax.devices()[:1])
    base = str(sdxl_models.folder() if family == "SDXL" else tiny.SMALL)
    weights = Weights(base, controls=(str(tmp_path / "adapter"),))
    if family == "SD1.5":
        unet().save_pretrained(tmp_path / "unet")
        weights = dataclasses.replace(weights, unet=str(tmp_path / "unet"))
    return Pipeline(Model.load(weights, schedule=NoiseSchedule.from_diffusers(PICTURE_SCHEDULE), mesh=mesh), mesh)


@pytest.mark.parametrize("family", ADAPTERS)
def test_guided_runs_equal_diffusers(family, tmp_path, measured):
    """StableDiffusionAdapterPipeline; StableDiffusionXLAdapterPipeline over all and over half of the run."""
    yardstick, ours = their_pipeline(family), our_pipeline(family, tmp_path)
    picture = np.random.default_rng(5).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    noise = np.random.default_rng(6).standard_normal((1, 1, HEIGHT // 8, WIDTH // 8, 4), np.float32)
    made = {}
    for factor in (1.0,) if family == "SD1.5" else (1.0, 0.5):
        options = dict(adapter_conditioning_factor=factor) if family == "SDXL" else {}
        with torch.no_grad():
            wanted = yardstick(
                prompt=PROMPT,
                negative_prompt=NEGATIVE,
                image=pictures(picture[None, None].astype(np.float32) / 255),
                height=HEIGHT,
                width=WIDTH,
                num_inference_steps=STEPS,
                guidance_scale=SETTINGS.guidance_scale,
                latents=pictures(noise),
                adapter_conditioning_scale=0.8,
                output_type="latent",
                **options,
            ).images
        settings = dataclasses.replace(SETTINGS, controls=ControlSettings(scales=0.8, ends=factor))
        conditions = ours.encode([PROMPT], [NEGATIVE], settings=settings, controls=[picture])
        made[factor] = np.asarray(ours.denoise(noise, conditions, settings))
        what = f"diffusers' adapter pipeline, {family}, factor {factor:g}: latents after {STEPS} guided steps"
        measured(what, relative_error(made[factor][:, 0], np.moveaxis(wanted.numpy(), 1, -1)), 1e-4)
    without = dataclasses.replace(SETTINGS, controls=ControlSettings(scales=0.0))
    conditions = ours.encode([PROMPT], [NEGATIVE], settings=without, controls=[picture])
    assert relative_error(ours.denoise(noise, conditions, without), made[1.0]) > 1e-2


# One given for something else.


def test_one_given_for_something_else_is_told_what_it_is(tmp_path):
    path = tmp_path / "t2iadapter_depth.safetensors"
    save_file({name: torch.tensor(it) for name, it in original(state_of(model("full_adapter"))).items()}, path)
    for given, wanted in ((load_unet, "unet"), (assemble_controlnet, "controlnet")):
        with pytest.raises(InputError, match=f"holds no {wanted}. It holds: t2i_adapter.*weights.controls={path}"):
            given(path)
    with pytest.raises(InputError, match="weights.adapter: .*It is a T2I-Adapter.*weights.controls="):
        check_slot("adapter", path)
    check_slot("controls", path)
    fitting = ((SD15, FULL), (SD15, LIGHT), (SDXL, FULL_XL))
    for base, config in fitting:
        check_family({"unet": Part("base", base), "control_0": Part("t2i.pth", config)})
    for base, config, of in ((SDXL, FULL, "1.x"), (SD15, FULL_XL, "XL")):
        with pytest.raises(InputError, match=rf"t2i.pth \(T2I-Adapter\) is for Stable Diffusion {of}.*T2I-Adapter for"):
            check_family({"unet": Part("base", base), "control_0": Part("t2i.pth", config)})


@pytest.mark.parametrize("family", ADAPTERS)
def test_a_pipelines_folder_has_it_where_diffusers_looks(family, tmp_path):
    """`adapter`, in a folder that diffusers loads as the family's adapter pipeline; and is read again."""
    network, base = adapter(family), sdxl_models.folder() if family == "SDXL" else tiny.SMALL / "unet"
    network.save_pretrained(tmp_path / "adapter")
    run("export", base, tmp_path / "adapter", tmp_path / "all", "--to", "diffusers")
    name = f"StableDiffusion{'XL' * (family == 'SDXL')}AdapterPipeline"
    index = getattr(diffusers, name).load_config(tmp_path / "all")
    assert (index["_class_name"], index["adapter"]) == (name, ["diffusers", "T2IAdapter"])
    assert "t2i_adapter" in open_checkpoint([tmp_path / "all"]).components
    assert assemble_control(tmp_path / "all" / "adapter").config == T2IAdapterConfig.from_diffusers(network.config)
