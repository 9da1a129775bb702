"""Makes the bundled small model: a diffusers folder, and files of AnimateDiff, I2V-Adapter and IP-Adapter.

    python assets/make_small_model.py assets/small

Weights are random, by a fixed seed: they exercise every format and every network, and draw nothing one would frame.
"""

import json
import sys
from pathlib import Path

import numpy as np

from i2v_jax.models import motion
from i2v_jax.models.clip import CLIPTextConfig, CLIPVisionConfig
from i2v_jax.models.image_projection import ResamplerConfig
from i2v_jax.models.unet import UNetConfig
from i2v_jax.models.vae import VAEConfig
from i2v_jax.tokenizer import ClipTokenizer, byte_level_vocabulary
from i2v_jax.weights import formats, shapes
from i2v_jax.weights.files import Tensors, save_tensors
from i2v_jax.weights.translate import export_tensors, position_tables

MOTION = motion.V1
PROMPTS = ["a cat looking around, its ears moving", "a photo of a person walking on the beach at sunset, waves rolling"]

# The configs as their own libraries write them; ours are read from these.
UNET = dict(
    _class_name="UNet2DConditionModel",
    sample_size=32,
    block_out_channels=[32, 64, 64],
    down_block_types=["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    up_block_types=["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
    layers_per_block=1,
    attention_head_dim=8,
    cross_attention_dim=32,
    norm_num_groups=8,
)
VAE = dict(
    _class_name="AutoencoderKL",
    block_out_channels=[16, 32, 32, 32],
    down_block_types=["DownEncoderBlock2D"] * 4,
    up_block_types=["UpDecoderBlock2D"] * 4,
    layers_per_block=1,
    latent_channels=4,
    norm_num_groups=8,
    scaling_factor=0.18215,
)
TEXT = dict(
    model_type="clip_text_model",
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    max_position_embeddings=77,
    hidden_act="quick_gelu",
    projection_dim=32,
    eos_token_id=2,
)
VISION = dict(
    model_type="clip_vision_model",
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    image_size=224,
    patch_size=32,
    hidden_act="gelu",
    projection_dim=32,
)
SCHEDULER = dict(
    _class_name="DDIMScheduler",
    beta_schedule="linear",
    beta_start=0.00085,
    beta_end=0.012,
    num_train_timesteps=1000,
    steps_offset=1,
    clip_sample=False,
    set_alpha_to_one=True,
)


def random_weights(expected: shapes.Shapes, rng: np.random.Generator) -> Tensors:
    """Kernels of unit gain, norms that change nothing, small biases; in float16, to be small."""

    def draw(path, shape):
        leaf = path.rsplit("/", 1)[-1]
        if leaf == "scale":
            return np.ones(shape, np.float16)
        spread = 0.02 if leaf != "kernel" else np.prod(shape[:-1]) ** -0.5
        return rng.normal(0, spread, shape).astype(np.float16)

    return Tensors.of({path: draw(path, leaf.shape) for path, leaf in expected.items()})


def write(path: Path, weights: Tensors, table, buffers: Tensors | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_tensors(path, export_tensors(weights, table, buffers or Tensors.of({})), {"format": "pt"})


def main(folder: Path) -> None:
    rng = np.random.default_rng(0)
    vocabulary, merges = byte_level_vocabulary(PROMPTS, 200)
    text = TEXT | dict(vocab_size=len(vocabulary))
    config = UNetConfig.from_diffusers(
        UNET,
        motion=MOTION,
        self_attention_branches=("first_frame",),
        cross_attention_branches=("image_tokens",),
    )
    unet = random_weights(shapes.unet_shapes(config), rng)
    parts = {name: unet.select(rf".*/{name}/.*") for name in ("motion", "first_frame", "image_tokens")}
    base = unet.select(r"(?!.*/(motion|first_frame|image_tokens)/).*")
    resampler = ResamplerConfig(
        embed_dim=32, num_tokens=16, width=64, depth=2, num_heads=1, mlp_width=256, cross_attention_dim=32
    )

    for name, settings, weights, table in [
        ("unet", UNET, base, formats.DIFFUSERS_UNET),
        ("vae", VAE, random_weights(shapes.vae_shapes(VAEConfig.from_diffusers(VAE)), rng), formats.DIFFUSERS_VAE),
        (
            "text_encoder",
            text,
            random_weights(shapes.text_encoder_shapes(CLIPTextConfig.from_diffusers(text)), rng),
            formats.CLIP_TEXT,
        ),
        (
            "image_encoder",
            VISION,
            random_weights(shapes.image_encoder_shapes(CLIPVisionConfig.from_diffusers(VISION)), rng),
            formats.CLIP_VISION,
        ),
    ]:
        file = "diffusion_pytorch_model" if name in ("unet", "vae") else "model"
        write(folder / name / f"{file}.safetensors", weights, table)
        (folder / name / "config.json").write_text(json.dumps(settings, indent=1) + "\n")
    ClipTokenizer(vocabulary, merges).save(folder / "tokenizer")
    (folder / "scheduler").mkdir(exist_ok=True)
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(SCHEDULER, indent=1) + "\n")

    positions = position_tables(parts["motion"], MOTION.max_positions)
    write(folder / "motion.safetensors", parts["motion"], formats.PUBLISHED_UNET, positions)
    write(folder / "i2v_adapter.safetensors", parts["first_frame"], formats.PUBLISHED_UNET)
    projection = random_weights(shapes.image_projection_shapes(resampler), rng)
    projected = export_tensors(projection, formats.IMAGE_PROJECTION, Tensors.of({}))
    attended = export_tensors(parts["image_tokens"], formats.ip_adapter_table(unet), Tensors.of({}))
    save_tensors(folder / "ip_adapter.safetensors", Tensors.of({**projected, **attended}), {"format": "pt"})


if __name__ == "__main__":
    main(Path(sys.argv[1]))
