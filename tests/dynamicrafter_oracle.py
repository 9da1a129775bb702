"""Small recorded runs of the published DynamiCrafter code (tests/data/oracles/README.md), in our layout.

The weights are random ones, drawn anew: as many numbers of PyTorch's generator, in the published order.
"""

import functools
import hashlib
import json
import re
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file

from i2v_jax.models.conditions import Conditions
from i2v_jax.weights.assemble import load_image_projection
from i2v_jax.weights.tensors import Tensors
from i2v_jax.weights.unets import load_dynamicrafter

FOLDER = Path(__file__).parent / "data" / "oracles" / "dynamicrafter"
IMAGE_TOKENS = 16
"""Of every frame."""
TEXT_TOKENS = 77


@functools.cache
def settings() -> dict:
    """Returns the recording's config.json."""
    return json.loads((FOLDER / "config.json").read_text())


@functools.cache
def recorded(file: str = "io", of: str = "dynamicrafter") -> dict[str, np.ndarray]:
    """Returns recorded inputs and outputs; videos channels last, [..., batch, frames, height, width, channels]."""
    tensors = load_file(FOLDER.parent / of / f"{file}.safetensors")
    return {key: np.moveaxis(x, -4, -1) if x.ndim >= 5 else x for key, x in tensors.items()}


@functools.cache
def recipes() -> dict[str, dict]:
    """Returns how the weights of every network are drawn; those of EDG are of the same names and shapes."""
    own, edg = (json.loads((FOLDER.parent / name / "weights.json").read_text()) for name in ("dynamicrafter", "edg"))
    shapes = own["unet"]["tensors"]
    edg["con_unet"]["tensors"] = shapes
    edg["con_image_proj_model"]["tensors"] = own["image_proj_model"]["tensors"]
    stage1 = edg["stage1_cc_projection"]
    stage1["tensors"] = {}
    for name, shape in shapes.items():
        stage1["tensors"][name] = shape
        layer = name.removesuffix(stage1["after"])
        joined = {key: x for key, x in stage1["widths"].items() if key.rpartition(".")[0] == f"{layer}cc_projection"}
        stage1["tensors"] |= joined if name.endswith(stage1["after"]) else {}
    return own | edg


@functools.cache
def weights(name: str) -> dict[str, np.ndarray]:
    """Returns weights in the published names: of `unet`, `image_proj_model`; of EDG `con_unet` and
    `stage1_cc_projection`, which belong over the former, and `con_image_proj_model`."""
    recipe = recipes()[name]
    generator = torch.Generator().manual_seed(recipe["seed"])
    drawn = {key: _draw(key, shape, generator) for key, shape in recipe["tensors"].items()}
    drawn = {key: x for key, x in drawn.items() if re.fullmatch(recipe.get("only", ".*"), key)}
    digest = hashlib.sha256(b"".join(x.tobytes() for x in drawn.values())).hexdigest()
    assert digest == recipe["sha256"], "PyTorch draws other numbers than those of the recording"
    return drawn


def _draw(name: str, shape: list[int], generator: torch.Generator) -> np.ndarray:
    x = torch.randn(shape, generator=generator)
    if name == "latents":
        return x.numpy()
    if name.endswith("bias"):
        return (0.1 * x).numpy()
    if len(shape) == 1:
        return (1 + 0.2 * x).numpy()
    return (x / int(np.prod(shape[1:])) ** 0.5).numpy()


def alphas() -> dict[str, np.ndarray]:
    """Returns the learned image scales of the variant that has them."""
    return {name: np.float32(x) for name, x in settings()["alphas"].items()}


def checkpoint(*, alpha: bool = False, over: str = "") -> Tensors:
    """Returns the UNet as a file holds it; `over` names EDG's weights that are in the place of some."""
    held = weights("unet") | (alphas() if alpha else {}) | (weights(over) if over else {})
    return Tensors.of({f"model.diffusion_model.{name}": x for name, x in held.items()})


@functools.cache
def unet(alpha: bool = False, over: str = ""):
    """Returns (config, parameters) of the UNet."""
    return load_dynamicrafter(checkpoint(alpha=alpha, over=over), default_fs=settings()["unet"]["default_fs"])


@functools.cache
def image_projection(name: str = "image_proj_model"):
    """Returns (config, parameters) of a resampler."""
    held = {f"image_proj_model.{name}": x for name, x in weights(name).items()}
    return load_image_projection(Tensors.of(held), head_dim=settings()["resampler"]["dim_head"])


def conditions(context: np.ndarray, image_latents: np.ndarray, fs: np.ndarray | None = None) -> Conditions:
    """Returns the published code's context (77 prompt tokens, then each frame's image tokens) as conditions."""
    text, image = context[:, None, :TEXT_TOKENS], context[:, TEXT_TOKENS:]
    image = image.reshape(len(image), -1, IMAGE_TOKENS, image.shape[-1])
    rates = None if fs is None else np.asarray(fs, np.float32)[:, None]
    return Conditions(text=text, image_tokens=image, image_latents=image_latents, fs=rates)
