"""CLIP's encoders equal transformers' PyTorch and Flax ones on the same weights."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from transformers.modeling_flax_pytorch_utils import convert_pytorch_state_dict_to_flax

from i2v_jax.errors import InputError
from i2v_jax.models.clip import (
    OPENCLIP_BIGG_TEXT,
    SD15_TEXT,
    VIT_H_VISION,
    VIT_L_VISION,
    CLIPTextConfig,
    CLIPTextEncoder,
    CLIPVisionConfig,
    CLIPVisionEncoder,
)
from i2v_jax.tree import flatten
from tests.helpers import relative_error
from tests.torch_models import our_parameters, our_shapes, randomise

SIZES = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4, projection_dim=24)
VOCABULARY, LENGTH, START, END, ADDED = 100, 16, 97, 98, 99

# As SD1.5's, as SDXL's second, and with the end token that configs have named rightly since 2023.
TEXT_MODELS = {
    "quick_gelu": (transformers.CLIPTextModel, dict(eos_token_id=2)),
    "projected": (transformers.CLIPTextModelWithProjection, dict(eos_token_id=2, hidden_act="gelu")),
    "true end token": (transformers.CLIPTextModelWithProjection, dict(eos_token_id=END)),
}
VISION_MODELS = {
    "quick_gelu": (transformers.CLIPVisionModelWithProjection, dict(image_size=28, patch_size=7)),
    "gelu": (transformers.CLIPVisionModelWithProjection, dict(image_size=30, patch_size=7, hidden_act="gelu")),
    "no projection": (transformers.CLIPVisionModel, dict(image_size=16, patch_size=4)),
}


def build_text(kind):
    cls, settings = TEXT_MODELS[kind]
    settings = dict(SIZES, vocab_size=VOCABULARY, max_position_embeddings=LENGTH, bos_token_id=START, **settings)
    model = randomise(cls(transformers.CLIPTextConfig(**settings, attn_implementation="eager")))
    return model, published_config(model)


def build_vision(kind):
    cls, settings = VISION_MODELS[kind]
    model = randomise(cls(transformers.CLIPVisionConfig(**SIZES, **settings, attn_implementation="eager")))
    return model, published_config(model)


def published_config(model):
    """Returns the config as `save_pretrained` writes it."""
    return model.config.to_diff_dict() | dict(architectures=[type(model).__name__])


def flax_twin(model):
    """Returns transformers' Flax model of the same weights, as a function that gives all hidden states."""
    twin = getattr(transformers, "Flax" + type(model).__name__)(model.config)
    parameters = convert_pytorch_state_dict_to_flax(model.state_dict(), twin)
    call = jax.jit(lambda params, inputs: twin(inputs, params=params, output_hidden_states=True))
    return functools.partial(call, parameters)


def prompts(pad):
    """Prompts of 0, 1, 5 and as many words as fit, padded."""
    words = np.random.default_rng(0).integers(0, START, (4, LENGTH))
    rows = [[START, *row[:n], END] for row, n in zip(words, (0, 1, 5, LENGTH - 2))]
    return np.array([row + [pad] * (LENGTH - len(row)) for row in rows], np.int32)


def pixels(config, count=2):
    side = config.image_size
    return np.random.default_rng(1).normal(size=(count, side, side, 3)).astype(np.float32)


def run(encoder, parameters, x):
    return jax.jit(lambda p, x: encoder.apply({"params": p}, x))(parameters, x)


@pytest.mark.parametrize("kind", TEXT_MODELS)
def test_text_equals_transformers(kind, measured):
    model, config = build_text(kind)
    config = CLIPTextConfig.from_diffusers(config)
    parameters = our_parameters("text_encoder", model.state_dict())
    twin = flax_twin(model)
    pads = {END, 0} | ({ADDED} if config.eos_token_id == END else set())  # an added token may have a higher id
    for pad in pads:
        ids = prompts(pad)
        out = run(CLIPTextEncoder(config), parameters, ids)
        with torch.no_grad():
            in_torch = model(torch.from_numpy(ids).long(), output_hidden_states=True)
        for framework, theirs in (("PyTorch", in_torch), ("Flax", twin(ids))):
            pooled = theirs.text_embeds if config.projection_dim else theirs.pooler_output
            error = max(
                relative_error(out.last_hidden, theirs.last_hidden_state),
                relative_error(out.penultimate, theirs.hidden_states[-2]),
                relative_error(out.pooled, pooled),
            )
            measured(f"transformers CLIP text in {framework} ({kind}, padded by {pad})", error, 1e-5)


@pytest.mark.parametrize("kind", VISION_MODELS)
def test_vision_equals_transformers_pytorch(kind, measured):
    model, config = build_vision(kind)
    config = CLIPVisionConfig.from_diffusers(config)
    out = run(CLIPVisionEncoder(config), our_parameters("image_encoder", model.state_dict()), pixels(config))
    with torch.no_grad():
        inputs = torch.from_numpy(pixels(config)).permute(0, 3, 1, 2)
        theirs = model(inputs, output_hidden_states=True)
        pooled = model.vision_model(inputs).pooler_output
    assert (out.image_embeds is None) == (kind == "no projection")
    error = max(
        relative_error(out.last_hidden, theirs.last_hidden_state),
        relative_error(out.penultimate, theirs.hidden_states[-2]),
        relative_error(out.pooled, pooled),
        0 if kind == "no projection" else relative_error(out.image_embeds, theirs.image_embeds),
    )
    measured(f"transformers CLIP vision in PyTorch ({kind})", error, 1e-5)


def test_vision_equals_transformers_flax(measured):
    model, config = build_vision("no projection")  # transformers has no Flax vision model with projection
    config = CLIPVisionConfig.from_diffusers(config)
    out = run(CLIPVisionEncoder(config), our_parameters("image_encoder", model.state_dict()), pixels(config))
    theirs = flax_twin(model)(pixels(config).transpose(0, 3, 1, 2))
    error = max(
        relative_error(out.last_hidden, theirs.last_hidden_state),
        relative_error(out.penultimate, theirs.hidden_states[-2]),
        relative_error(out.pooled, theirs.pooler_output),
    )
    measured("transformers CLIP vision in Flax (no projection)", error, 1e-5)


@pytest.mark.parametrize("side", ["text", "vision"])
def test_bfloat16_is_near_float32(side):
    if side == "text":
        (model, config), component, encoder = build_text("projected"), "text_encoder", CLIPTextEncoder
        config, x = CLIPTextConfig.from_diffusers(config), prompts(0)
    else:
        (model, config), component, encoder = build_vision("gelu"), "image_encoder", CLIPVisionEncoder
        config = CLIPVisionConfig.from_diffusers(config)
        x = pixels(config)
    parameters = our_parameters(component, model.state_dict())
    half = run(encoder(dataclasses.replace(config, dtype=jnp.bfloat16)), parameters, x)
    for out, reference in zip(half, run(encoder(config), parameters, x)):
        assert out.dtype == jnp.bfloat16
        assert relative_error(out, reference) <= 3e-2


TEXT = dict(vocab_size=49408, max_position_embeddings=77, eos_token_id=2, architectures=["CLIPTextModel"])
SD15_PUBLISHED = TEXT | dict(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)
SDXL_PUBLISHED = TEXT | dict(
    hidden_size=1280,
    intermediate_size=5120,
    num_hidden_layers=32,
    num_attention_heads=20,
    hidden_act="gelu",
    projection_dim=1280,
    architectures=["CLIPTextModelWithProjection"],
)
VISION = dict(image_size=224, patch_size=14, num_attention_heads=16, architectures=["CLIPVisionModelWithProjection"])
VIT_L_PUBLISHED = VISION | dict(hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, projection_dim=768)
VIT_H_PUBLISHED = VISION | dict(
    hidden_size=1280, intermediate_size=5120, num_hidden_layers=32, projection_dim=1024, hidden_act="gelu"
)
PRESETS = {
    "SD1.5 text": (SD15_TEXT, SD15_PUBLISHED),
    "SDXL second text": (OPENCLIP_BIGG_TEXT, SDXL_PUBLISHED),
    "ViT-L": (VIT_L_VISION, VIT_L_PUBLISHED),
    "ViT-H": (VIT_H_VISION, VIT_H_PUBLISHED),
}


@pytest.mark.parametrize("name", PRESETS)
def test_preset_is_the_published_model(name):
    preset, published = PRESETS[name]
    assert type(preset).from_diffusers(published) == preset

    theirs = getattr(transformers, published["architectures"][0])
    with torch.device("meta"):
        state = theirs(theirs.config_class(**published)).state_dict()
    if isinstance(preset, CLIPTextConfig):
        component, encoder, x = "text_encoder", CLIPTextEncoder(preset), jnp.zeros((1, 77), jnp.int32)
    else:
        component, encoder, x = "image_encoder", CLIPVisionEncoder(preset), jnp.zeros((1, 224, 224, 3))
    ours = jax.eval_shape(encoder.init, jax.random.key(0), x)["params"]
    assert {path: leaf.shape for path, leaf in flatten(ours).items()} == our_shapes(component, state)


def test_bad_input_is_refused():
    with pytest.raises(InputError, match="Did you mean 'quick_gelu'"):
        CLIPTextConfig.from_diffusers(SD15_PUBLISHED | dict(hidden_act="quick_gel"))
    with pytest.raises(InputError, match="hidden_size.*'text_config'"):
        CLIPTextConfig.from_diffusers(dict(text_config=SD15_PUBLISHED))
    with pytest.raises(InputError, match="78 tokens.*77"):
        jax.eval_shape(CLIPTextEncoder(SD15_TEXT).init, jax.random.key(0), jnp.zeros((1, 78), jnp.int32))
    with pytest.raises(InputError, match="224x224"):
        jax.eval_shape(CLIPVisionEncoder(VIT_H_VISION).init, jax.random.key(0), jnp.zeros((1, 224, 226, 3)))
