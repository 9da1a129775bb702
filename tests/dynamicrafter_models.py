"""A small DynamiCrafter of random weights, as its checkpoints are published: one file with all networks and tables."""

import dataclasses
import functools
import tempfile
from pathlib import Path

import numpy as np
import torch

from i2v_jax.diffusion.noise_schedule import NoiseSchedule
from i2v_jax.models.clip import CLIPTextConfig, CLIPVisionConfig
from i2v_jax.models.dynamicrafter import TINY_DYNAMICRAFTER
from i2v_jax.models.image_projection import TOKENS_OF_FRAME, ResamplerConfig
from i2v_jax.models.networks import parameter_shapes
from i2v_jax.models.vae import VAEConfig
from i2v_jax.weights.formats import dynamicrafter as names
from i2v_jax.weights.formats.original import SD2_TEXT, SD_VAE
from i2v_jax.weights.tensors import Tensors
from i2v_jax.weights.translate import export_tensors

FRAMES, WIDTH = 3, 32
SCHEDULES = {
    "512": NoiseSchedule(
        "scaled_linear_double", prediction_type="v_prediction", zero_terminal_snr=True, base_scale=0.7
    ),
    "256": NoiseSchedule("scaled_linear_double"),
}


def configs(kind: str, levels: int = 2) -> dict[str, tuple]:
    """Returns component -> (config, table of its names). A UNet of one level compiles in a third of the time."""
    unet = dataclasses.replace(TINY_DYNAMICRAFTER, image_scale=kind == "256", cross_attention_dim=WIDTH)
    cut = {name: getattr(unet, name)[:levels] for name in ("block_out_channels", "level_attention")}
    unet = dataclasses.replace(unet, **cut)
    clip = dict(width=WIDTH, mlp_width=64, num_layers=2, num_heads=1, projection_dim=24)
    return {
        "unet": (unet, names.DYNAMICRAFTER_UNETS[kind == "256"]),
        "vae": (VAEConfig(block_out_channels=(32,) * 4, layers_per_block=1), SD_VAE),
        "text_encoder": (CLIPTextConfig(**clip), SD2_TEXT),
        "image_encoder": (CLIPVisionConfig(**clip, image_size=28, patch_size=14), names.OPENCLIP_VISION),
        "image_proj": (
            ResamplerConfig(WIDTH, FRAMES * TOKENS_OF_FRAME, WIDTH, 1, 1, 64, 64, WIDTH),
            names.DYNAMICRAFTER_PROJECTION,
        ),
    }


@functools.cache
def state(kind: str = "512", levels: int = 2) -> dict[str, np.ndarray]:
    """Returns the tensors of a checkpoint, by their published names."""
    rng = np.random.default_rng(0)

    def drawn(path, shape):
        spread = 0.1 if len(shape) < 2 else np.prod(shape[:-1]) ** -0.5
        return (rng.normal(0, spread, shape) + path.endswith("/scale")).astype(np.float32)

    tensors = {}
    for config, table in configs(kind, levels).values():
        parameters = {path: drawn(path, leaf.shape) for path, leaf in parameter_shapes(config).items()}
        exported = export_tensors(Tensors.of(parameters), table, Tensors.of({}))
        tensors |= {name: np.array(entry.read(), order="C") for name, entry in exported.entries.items()}
    schedule = SCHEDULES[kind]
    tensors |= dict(betas=schedule.betas, alphas_cumprod=schedule.alphas_cumprod)
    if kind != "256":
        tensors["scale_arr"] = np.append(schedule.scales, np.full(400, schedule.base_scale, np.float32))
    text = "embedder.model.ln_final.weight", "embedder.model.logit_scale", "cond_stage_model.model.logit_scale"
    return tensors | {name: rng.normal(size=() if "logit" in name else WIDTH).astype(np.float32) for name in text}


@functools.cache
def checkpoint(kind: str = "512", deepspeed: bool = False, levels: int = 2) -> Path:
    """Returns the file."""
    made = tempfile.TemporaryDirectory(prefix="dynamicrafter-")
    checkpoint.keep = [*getattr(checkpoint, "keep", []), made]
    path = Path(made.name) / "model.ckpt"
    tensors = {name: torch.from_numpy(np.array(x)) for name, x in state(kind, levels).items()}
    if deepspeed:
        module = {f"_forward_module.{name}": x for name, x in tensors.items()}
        torch.save({"module": module, "global_steps": 3, "optimizer": {"step": torch.zeros(2)}}, path)
    else:
        torch.save({"state_dict": tensors}, path)
    return path
