"""The ControlNet against diffusers' PyTorch and Flax models, alone and with a UNet that takes its residuals."""

import functools

import diffusers
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from i2v_jax.errors import InputError
from i2v_jax.models.controlnet import TINY_CONTROLNET, ControlNet, ControlNetConfig
from i2v_jax.models.networks import parameter_shapes
from i2v_jax.models.unet import UNet, UNetConfig
from i2v_jax.weights.assemble import load_unet
from i2v_jax.weights.controls import load_controlnet
from i2v_jax.weights.infer import infer_config
from i2v_jax.weights.storage.open import open_tensors
from i2v_jax.weights.translate import export_tensors, recognise
from tests import tiny
from tests.helpers import relative_error, with_conditions
from tests.torch_models import our_parameters, our_shapes, randomise

UNET = tiny.UNET | dict(block_out_channels=(32, 64), layers_per_block=2, attention_head_dim=4)
UNET_XL = UNET | tiny.levels(False, True) | tiny.of_xl(1, 2) | dict(layers_per_block=1, attention_head_dim=(2, 4))
UNETS = {"SD1.5": UNET, "SDXL": UNET_XL}
SMALL = tiny.of_controlnet(UNET)
PICTURE = dict(conditioning_embedding_out_channels=(8, 16, 24))


def controlnet(shape, **changes):
    return randomise(diffusers.ControlNetModel(**(tiny.of_controlnet(UNETS[shape]) | PICTURE | changes)))


def inputs(batch, frames, height, width, scale=4):
    rng = np.random.default_rng(1)
    normal = lambda *shape: rng.standard_normal(shape, np.float32)  # noqa: E731
    given = dict(
        sample=normal(batch, frames, height, width, 4),
        timesteps=np.linspace(3, 961, batch).astype(np.int32),
        text=normal(batch, 7, 24),
        added=dict(text_embeds=normal(batch, 16), time_ids=rng.integers(0, 1024, (batch, 6)).astype(np.float32)),
    )
    return given, rng.random((batch, frames, scale * height, scale * width, 3), np.float32)


def pictures(video):
    """[b f h w c] as PyTorch wants its pictures."""
    return torch.from_numpy(np.moveaxis(video.reshape(-1, *video.shape[2:]), -1, 1).copy())


def theirs(model, given, **more):
    """Calls a diffusers model that knows no frames."""
    frames = given["sample"].shape[1]
    each = lambda array: torch.from_numpy(array).repeat_interleave(frames, 0)  # noqa: E731
    with torch.no_grad():
        return model(
            pictures(given["sample"]),
            each(given["timesteps"]),
            each(given["text"]),
            added_cond_kwargs={key: each(value) for key, value in given["added"].items()},
            **more,
        )


def as_pictures(residual):
    return np.moveaxis(np.asarray(residual).reshape(-1, *residual.shape[2:]), -1, 1)


@pytest.mark.parametrize("shape, pooled", [("SD1.5", False), ("SD1.5", True), ("SDXL", False)])
def test_equals_diffusers_controlnet(shape, pooled, measured):
    yardstick = controlnet(shape, global_pool_conditions=pooled)
    given, picture = inputs(2, 3, 8, 12)
    wanted = theirs(yardstick, given, controlnet_cond=pictures(picture), conditioning_scale=0.7)
    config = ControlNetConfig.from_diffusers(yardstick.config)
    parameters = our_parameters("controlnet", yardstick.state_dict())
    call = jax.jit(ControlNet(config).apply)
    down, middle, _ = call({"params": parameters}, **with_conditions(given), picture=picture, conditioning_scale=0.7)
    assert len(down) == len(wanted.down_block_res_samples)
    residuals = zip([*down, middle], [*wanted.down_block_res_samples, wanted.mid_block_res_sample], strict=True)
    error = max(relative_error(as_pictures(ours), it) for ours, it in residuals)
    measured(f"diffusers ControlNetModel, {shape} shape{', pooled' * pooled}, worst residual", error, 1e-5)


@pytest.mark.parametrize("shape", UNETS)
def test_unet_with_residuals_equals_diffusers(shape, measured):
    yardstick, unet = controlnet(shape), randomise(diffusers.UNet2DConditionModel(**UNETS[shape]), seed=1)
    given, picture = inputs(1, 2, 8, 8)
    picture = picture[:, :1]  # one for both frames
    ours = with_conditions(given)
    residuals = theirs(yardstick, given, controlnet_cond=pictures(np.repeat(picture, 2, axis=1)))
    corrected = theirs(
        unet,
        given,
        down_block_additional_residuals=residuals.down_block_res_samples,
        mid_block_additional_residual=residuals.mid_block_res_sample,
    ).sample
    parameters = our_parameters("controlnet", yardstick.state_dict()), our_parameters("unet", unet.state_dict())
    control = ControlNet(ControlNetConfig.from_diffusers(yardstick.config))
    network = UNet(UNetConfig.from_diffusers(unet.config))

    @jax.jit
    def run(parameters, scale):
        residuals = control.apply({"params": parameters[0]}, **ours, picture=picture, conditioning_scale=scale)
        return network.apply({"params": parameters[1]}, **ours, residuals=residuals)

    plain = theirs(unet, given).sample
    assert relative_error(plain, corrected) > 1e-2
    for scale, wanted in ((1.0, corrected), (0.0, plain)):
        error = relative_error(as_pictures(run(parameters, scale)), wanted)
        measured(f"diffusers UNet2DConditionModel with ControlNet x {scale:g}, {shape} shape", error, 1e-5)


def test_equals_diffusers_flax_controlnet(tmp_path, measured, monkeypatch):
    """From its own checkpoint; with the exact GELU, which is PyTorch's."""
    settings = dict(SMALL)
    settings.pop("norm_num_groups")  # Flax's is always 32
    yardstick = diffusers.FlaxControlNetModel(sample_size=8, **settings)
    shapes = jax.eval_shape(yardstick.init_weights, jax.random.key(0))
    rng = np.random.default_rng(0)
    weights = jax.tree.map(
        lambda it: rng.normal(0, np.prod(it.shape[:-1]) ** -0.5, it.shape).astype(np.float32), shapes
    )
    yardstick.save_pretrained(tmp_path, weights)
    given, picture = inputs(2, 1, 8, 12, scale=8)
    monkeypatch.setattr(nn, "gelu", functools.partial(nn.gelu, approximate=False))
    call = (pictures(given["sample"]).numpy(), given["timesteps"], given["text"], pictures(picture).numpy())
    wanted = jax.jit(yardstick.apply)({"params": weights}, *map(jnp.asarray, call))
    config, parameters = load_controlnet(tmp_path)
    apply = jax.jit(ControlNet(config).apply)
    down, middle, _ = apply({"params": parameters}, **with_conditions(given), picture=picture)
    residuals = zip([*down, middle], [*wanted.down_block_res_samples, wanted.mid_block_res_sample], strict=True)
    error = max(relative_error(ours[:, 0], it) for ours, it in residuals)
    measured("diffusers FlaxControlNetModel from its checkpoint, worst residual", error, 1e-5)


@pytest.mark.parametrize("shape", UNETS)
def test_loads_and_exports_unchanged(shape, tmp_path):
    model = controlnet(shape)
    model.save_pretrained(tmp_path)
    expected = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    config, parameters = load_controlnet(tmp_path)
    jax.tree.map(np.testing.assert_array_equal, parameters, our_parameters("controlnet", model.state_dict()))
    found = recognise(open_tensors(tmp_path))
    assert found.keys() == {"controlnet"}
    exported = export_tensors(found["controlnet"].parameters, found["controlnet"].table, found["controlnet"].buffers)
    assert exported.keys() == expected.keys()
    for name, array in expected.items():
        assert (exported[name].dtype, exported[name].tobytes()) == (array.dtype, array.tobytes())
    again = diffusers.ControlNetModel.from_config(config.to_diffusers())
    assert ControlNetConfig.from_diffusers(again.config) == config
    assert {name: tensor.shape for name, tensor in again.state_dict().items()} == {
        name: tensor.shape for name, tensor in model.state_dict().items()
    }
    with pytest.raises(InputError, match="holds no unet. It holds: controlnet"):
        load_unet(tmp_path)


@pytest.mark.parametrize("name", ["SD1.5", "SDXL"])
def test_config_of_a_file_without_one(name):
    """At the published sizes, on the meta device."""
    preset = dict(cross_attention_dim=768) if name == "SD1.5" else tiny.of_controlnet(tiny.SDXL)
    with torch.device("meta"):
        model = diffusers.ControlNetModel(**preset)
    shapes = our_shapes("controlnet", model.state_dict())
    config = ControlNetConfig.from_diffusers(model.config)
    assert infer_config("controlnet", shapes) == config
    assert {path: leaf.shape for path, leaf in parameter_shapes(config).items()} == shapes


def test_wrong_input_is_refused():
    given = dict(sample=jnp.zeros((1, 1, 8, 8, 4)), timesteps=jnp.zeros(1), text=jnp.zeros((1, 1, 32)))
    with pytest.raises(InputError, match=r"pictures of shape \(32, 64, 3\).*latents of 8x8; wanted \(64, 64, 3\)"):
        jax.eval_shape(
            functools.partial(ControlNet(TINY_CONTROLNET).init, jax.random.key(0)),
            **with_conditions(given),
            picture=jnp.zeros((1, 1, 32, 64, 3)),
        )
    with pytest.raises(InputError, match="controlnet_conditioning_channel_order='bgr' is not supported; wanted 'rgb'"):
        ControlNetConfig.from_diffusers(SMALL | dict(controlnet_conditioning_channel_order="bgr"))
