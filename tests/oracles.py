"""Small recorded runs of the published I2V-Adapter code (tests/data/oracles/README.md), in our layout."""

import functools
import json
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from i2v_jax.models.conditions import Conditions
from i2v_jax.weights.assemble import load_image_projection, load_unet

FOLDER = Path(__file__).parent / "data" / "oracles"
NAMES = ("official_v1", "official_v2norm")


@functools.cache
def settings(name: str) -> dict:
    """Returns an oracle's config.json."""
    return json.loads((FOLDER / name / "config.json").read_text())


@functools.cache
def recorded(name: str, file: str = "io") -> dict[str, np.ndarray]:
    """Returns recorded inputs and outputs; videos channels last, [batch, frames, height, width, channels]."""
    tensors = load_file(FOLDER / name / f"{file}.safetensors")
    return {key: value.transpose(0, 2, 3, 4, 1) if value.ndim == 5 else value for key, value in tensors.items()}


@functools.cache
def unet(name: str):
    """Returns (UNetConfig, parameters) of an oracle's merged UNet."""
    config = settings(name)
    return load_unet(FOLDER / name / "unet.safetensors", config=config["unet"] | config["extra"])


@functools.cache
def image_projection(name: str):
    """Returns (ResamplerConfig, parameters) of an oracle's resampler."""
    return load_image_projection(
        FOLDER / name / "image_proj.safetensors", head_dim=settings(name)["resampler"]["dim_head"]
    )


def text_and_image(encoder_hidden_states: np.ndarray) -> dict[str, np.ndarray]:
    """Splits the published code's prompt: text tokens, then 16 image tokens."""
    return dict(text=encoder_hidden_states[:, :-16], image_tokens=encoder_hidden_states[:, -16:])


def split_tokens(encoder_hidden_states: np.ndarray) -> dict[str, Conditions]:
    """Makes the published code's prompt the UNet's conditions."""
    return dict(conditions=Conditions.of_videos(**text_and_image(encoder_hidden_states)))
