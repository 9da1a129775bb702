"""Configs read off shapes: those of published models and of their parts, and what shapes that fit nothing lead to."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from i2v_jax.errors import InputError
from i2v_jax.models.clip import OPENCLIP_BIGG_TEXT, SD15_TEXT, TINY_TEXT, VIT_H_VISION, VIT_L_VISION
from i2v_jax.models.image_projection import IP_ADAPTER_PLUS_SD15, IP_ADAPTER_SD15
from i2v_jax.models.motion import SDXL_BETA, V1, V2, V3, MotionConfig
from i2v_jax.models.networks import parameter_shapes
from i2v_jax.models.unet import SD15, SDXL, AddedConditioning, UNetConfig
from i2v_jax.models.vae import SD_VAE, SDXL_VAE, VAEConfig
from i2v_jax.weights.assemble import load_text_encoder, load_vae
from i2v_jax.weights.infer import infer_config
from i2v_jax.weights.tensors import Tensors

BRANCHES = dict(self_attention_branches=("first_frame",), cross_attention_branches=("image_tokens",))
PARTS = {"motion": "/motion/", "adapter": "/first_frame/", "image tokens": "/image_tokens/"}
SMALL = UNetConfig(
    block_out_channels=(20, 40, 60),  # what does not divide by 8 has fewer heads and groups
    norm_groups=4,
    layers_per_block=1,
    down_attention=(True, True, False),
    up_attention=(False, True, True),
    transformer_depth=(1, 1, 1),
    num_heads=(4, 8, 4),
    cross_attention_dim=24,
    motion=MotionConfig(max_positions=32, num_layers=2, num_heads=4, norm_groups=4),
    **BRANCHES,
)
SMALL_XL = UNetConfig(
    block_out_channels=(32, 64),
    in_channels=9,
    layers_per_block=2,
    down_attention=(False, True),
    up_attention=(True, False),
    transformer_depth=(1, 2),
    num_heads=(8, 1),
    cross_attention_dim=24,
    linear_projection=True,
    added_conditioning=AddedConditioning(256, 1600),
    motion=MotionConfig(max_positions=32, mid_block=True),
    **BRANCHES,
)


def shapes(config):
    return {path: leaf.shape for path, leaf in parameter_shapes(config).items()}


def tables(unet, positions):
    """The position tables that a UNet's motion modules are stored with."""
    return {
        path.replace("to_q/kernel", "positions"): (1, positions, shape[0])
        for path, shape in unet.items()
        if "/motion/" in path and path.endswith("to_q/kernel")
    }


@pytest.mark.parametrize(
    "base, motion", [*((SD15, motion) for motion in (None, V1, V2, V3)), (SDXL, None), (SDXL, SDXL_BETA)]
)
def test_published_unets(base, motion):
    config = dataclasses.replace(base, motion=motion, pooled_norms=motion == V1, **(BRANCHES if motion == V3 else {}))
    whole = shapes(config)
    assert infer_config("unet", whole | (tables(whole, motion.max_positions) if motion else {})) == config
    if motion == V3:
        for name, mark in PARTS.items():
            alone = dict(
                motion=V3 if name == "motion" else None,
                self_attention_branches=("first_frame",) if name == "adapter" else (),
                cross_attention_branches=("image_tokens",) if name == "image tokens" else (),
            )
            part = {path: shape for path, shape in whole.items() if mark in path}
            assert infer_config("unet", part) == dataclasses.replace(config, **alone), name


@pytest.mark.parametrize("config", [SMALL, SMALL_XL], ids=["small", "small XL"])
def test_other_unets_and_their_parts(config):
    whole = shapes(config)
    inferred = infer_config("unet", whole, linear_projection=config.linear_projection)
    assert inferred == config
    for mark in PARTS.values():
        part = {path: shape for path, shape in whole.items() if mark in path}
        again = shapes(infer_config("unet", part))
        assert {path: shape for path, shape in again.items() if mark in path} == part


def test_autoencoders():
    assert infer_config("vae", shapes(SD_VAE)) == SD_VAE
    assert infer_config("vae", shapes(SDXL_VAE), scaling_factor=0.13025) == SDXL_VAE
    small = VAEConfig(block_out_channels=(8, 24), layers_per_block=3, latent_channels=16, norm_groups=8)
    assert infer_config("vae", shapes(small)) == small


@pytest.mark.parametrize("config", [SD15_TEXT, OPENCLIP_BIGG_TEXT])
def test_text_encoders(config):
    for component in ("text_encoder", "text_encoder_2"):
        assert infer_config(component, shapes(config)) == config


@pytest.mark.parametrize("config", [VIT_L_VISION, VIT_H_VISION])
def test_image_encoders(config):
    assert infer_config("image_encoder", shapes(config)) == config


@pytest.mark.parametrize("config", [IP_ADAPTER_SD15, IP_ADAPTER_PLUS_SD15])
def test_image_projections(config):
    assert infer_config("image_proj", shapes(config)) == config


# Shapes that fit no network.

WHOLE = {
    "unet": shapes(SMALL),
    "vae": shapes(SD_VAE),
    "text_encoder": shapes(TINY_TEXT),
    "image_encoder": shapes(VIT_L_VISION),
    "image_proj": shapes(IP_ADAPTER_PLUS_SD15),
}


def refused(action, *words):
    with pytest.raises(InputError) as caught:
        action()
    for word in words:
        assert word in str(caught.value), str(caught.value)


def test_one_lost_or_odd_tensor_changes_nothing_that_others_tell():
    """So that the check against the network's own shapes then names that tensor, and not all the others."""
    whole = WHOLE["unet"]
    config = infer_config("unet", whole)
    only_here = {"conv_in/kernel", "conv_out/kernel"}  # and nothing else tells the latents' channels
    for path in [path for path in whole if path not in only_here][::5]:
        assert infer_config("unet", {name: shape for name, shape in whole.items() if name != path}) == config, path
        assert (
            infer_config("unet", {path: (*whole[path][:-1], 7)} | {n: s for n, s in whole.items() if n != path})
            == config
        ), path


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_any_shapes_give_a_config_or_an_input_error(data):
    component = data.draw(st.sampled_from(sorted(WHOLE)))
    held = dict(WHOLE[component])
    paths = sorted(held)
    for path in data.draw(st.lists(st.sampled_from(paths), max_size=40)):
        held.pop(path, None)
    odd = st.lists(st.integers(0, 2**40), max_size=5).map(tuple)
    for path in data.draw(st.lists(st.sampled_from(paths), max_size=5)):
        held[path] = data.draw(odd)
    for path in data.draw(st.lists(st.sampled_from(paths), max_size=3)):
        number = data.draw(st.integers(0, 10**12))
        held[path.replace("_0", f"_{number}")] = WHOLE[component][path]
    try:
        infer_config(component, held)
    except InputError as error:
        assert component == "image_proj" or any(path in str(error) for path in [*held, *paths]), str(error)


def test_errors_name_the_path():
    unet = WHOLE["unet"]
    refused(lambda: infer_config("unet", {}), "no parameters")
    refused(lambda: infer_config("unet", {"conv_in/kernel": (3, 3, 4, 32)}), "conv_in/kernel")
    far = {path.replace("down_blocks_2", "down_blocks_9"): shape for path, shape in unet.items()}
    refused(lambda: infer_config("unet", far), "down_blocks_9", "nothing has number 3")
    deep = {f"down_blocks_{i}/layers_0/resnet/conv1/kernel": (3, 3, 32, 32) for i in range(30)}
    refused(lambda: infer_config("unet", deep), "30 levels")
    refused(lambda: infer_config("unet", unet | {"conv_in/kernel": (3, 3, 0, 32)}), "conv_in/kernel", "[3, 3, 0, 32]")
    numbered = {f"numbered_{i}/image_tokens/to_k/kernel": (8, 8) for i in range(3)}
    refused(lambda: infer_config("unet", numbered), "numbered_0")
    motion = {path: shape for path, shape in unet.items() if "/motion/" in path}
    table = {"mid_block/motion/blocks_0/attn1/positions": (1, 10**9, 10**9)}
    refused(lambda: infer_config("unet", motion | table), next(iter(table)), "1000000000")
    text = WHOLE["text_encoder"]
    refused(
        lambda: infer_config("text_encoder", {**text, "token_embedding/embedding": (5,)}), "token_embedding/embedding"
    )
    lost = {path: shape for path, shape in text.items() if path != "position_embedding/embedding"}
    refused(lambda: infer_config("text_encoder", lost), "Missing 'position_embedding/embedding'")
    refused(lambda: infer_config("unett", unet), "unett", "Did you mean 'unet'?")


def test_loading_says_so_in_the_files_own_names():
    def file(names):
        return Tensors.of({name: np.zeros(shape, np.float32) for name, shape in names.items()}, "some.safetensors")

    layer = "cond_stage_model.transformer.text_model.encoder.layers.0.mlp.fc1.weight"
    refused(lambda: load_text_encoder(file({layer: (8, 4)})), "some.safetensors", "'cond_stage_model.transformer.text_")
    block = "first_stage_model.decoder.up.{}.block.0.conv1.weight"
    far = file({block.format(0): (8, 8, 3, 3), block.format(5): (8, 8, 3, 3)})
    refused(lambda: load_vae(far), "some.safetensors", f"'{block.format(0)}'")
