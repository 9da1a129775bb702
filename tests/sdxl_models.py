"""A small SDXL with random weights, as diffusers saves it, and what diffusers' own pipelines make of it.

Every structure is SDXL's (three levels, no attention in the finest, depth by level, both text encoders, size
conditioning, motion modules of the beta layout); only the widths are small.
"""

import functools
import tempfile
from pathlib import Path
from typing import NamedTuple

import diffusers
import numpy as np
import torch
from safetensors.numpy import save_file
from transformers import (
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from i2v_jax.models.tokenizer import ClipTokenizer
from tests import tiny
from tests.torch_models import randomise

WIDTHS = (16, 24)  # of the text encoders
POOLED = 20
TOKEN = sum(WIDTHS)
TEXT = dict(num_attention_heads=2, num_hidden_layers=3, vocab_size=49408, bos_token_id=49406)
UNET = dict(
    block_out_channels=(16, 32, 64),
    layers_per_block=1,
    attention_head_dim=(2, 4, 8),  # heads, of 8 channels each
    cross_attention_dim=TOKEN,
    norm_num_groups=8,
    sample_size=8,
    **tiny.levels(False, True, True),
    **tiny.of_xl(1, 1, 2, projection=POOLED + 6 * 8),
)
MOTION = tiny.motion(UNET["block_out_channels"])
VAE = dict(block_out_channels=(8, 8, 16, 16), layers_per_block=1, norm_num_groups=4, **tiny.autoencoder_levels(4))
VAE |= dict(scaling_factor=0.13025, force_upcast=True)
VISION = tiny.CLIP | dict(num_hidden_layers=3, hidden_act="gelu", projection_dim=28, image_size=56, patch_size=14)
PICTURE_SCHEDULE = dict(
    beta_schedule="scaled_linear",
    beta_start=0.00085,
    beta_end=0.012,
    clip_sample=False,
    set_alpha_to_one=False,
    steps_offset=1,
    timestep_spacing="leading",
)
VIDEO_SCHEDULE = PICTURE_SCHEDULE | dict(beta_end=0.020)  # the beta motion modules' own
STEPS = 10
GUIDANCE = 5.0
PROJECTIONS = ("linear", "plus")


class Run(NamedTuple):
    """What a pipeline of diffusers made, channels last; negative ones None without guidance."""

    text: np.ndarray  # [b, 77, 40]
    negative_text: np.ndarray
    pooled: np.ndarray  # [b, 20]
    negative_pooled: np.ndarray
    sizes: np.ndarray  # [b, 6]
    negative_sizes: np.ndarray
    latents: np.ndarray  # [b, f, h, w, 4], after the last step
    pictures: np.ndarray  # [b, f, 8h, 8w, 3], uint8


@functools.cache
def root() -> Path:
    """A folder of this process's own, gone when the process ends."""
    made = tempfile.TemporaryDirectory(prefix="sdxl-")
    root.keep = made
    return Path(made.name)


@functools.cache
def folder() -> Path:
    """The picture model as `StableDiffusionXLPipeline` saves it."""
    path = root() / "base"
    tokenizers = []
    for name, pad_token in (("tokenizer", "<|endoftext|>"), ("tokenizer_2", "!")):
        ClipTokenizer.bundled(pad_token).save(root() / name)
        tokenizers.append(CLIPTokenizer.from_pretrained(root() / name))
    encoders = [
        CLIPTextModel(text_config(WIDTHS[0], "quick_gelu", eos_token_id=2)),
        CLIPTextModelWithProjection(text_config(WIDTHS[1], "gelu", eos_token_id=49407, projection_dim=POOLED)),
    ]
    pipeline = diffusers.StableDiffusionXLPipeline(
        vae=vae(),
        text_encoder=randomise(encoders[0], 1),
        text_encoder_2=randomise(encoders[1], 2),
        tokenizer=tokenizers[0],
        tokenizer_2=tokenizers[1],
        unet=randomise(diffusers.UNet2DConditionModel(**UNET), 3),
        scheduler=diffusers.DDIMScheduler(**PICTURE_SCHEDULE),
        add_watermarker=False,
    )
    pipeline.save_pretrained(path)
    return path


def text_config(width: int, activation: str, **settings) -> CLIPTextConfig:
    """The config of one text encoder; `eos_token_id` as in the published configs: 2 for the first, right for both."""
    return CLIPTextConfig(hidden_size=width, intermediate_size=2 * width, hidden_act=activation, **TEXT, **settings)


def vae() -> diffusers.AutoencoderKL:
    """An autoencoder whose pictures are mostly within range: what is clipped would show no error."""
    model = randomise(diffusers.AutoencoderKL(**VAE), 4)
    with torch.no_grad():
        model.decoder.conv_out.weight *= 0.3
    return model


@functools.cache
def motion() -> Path:
    """The motion modules as diffusers' `MotionAdapter` saves them."""
    path = root() / "motion"
    randomise(diffusers.MotionAdapter(**MOTION), 5).save_pretrained(path)
    return path


@functools.cache
def image_encoder() -> Path:
    """A CLIP vision encoder with projection, as transformers saves it."""
    path = root() / "image_encoder"
    randomise(CLIPVisionModelWithProjection(CLIPVisionConfig(**VISION)), 6).save_pretrained(path)
    return path


@functools.cache
def image_adapter(projection: str) -> Path:
    """An IP-Adapter file in the published layout: "linear" reads the projected embedding, "plus" penultimate states."""
    path = root() / f"ip-adapter-{projection}.safetensors"
    nested = image_adapter_weights(projection)
    save_file({f"{part}.{name}": x.numpy() for part, weights in nested.items() for name, x in weights.items()}, path)
    return path


@functools.cache
def image_adapter_weights(projection: str) -> dict[str, dict[str, torch.Tensor]]:
    """The weights of `image_adapter`, as diffusers takes them: {"image_proj": ..., "ip_adapter": ...}."""
    generator = torch.Generator().manual_seed(7)

    def normal(*shape):
        return torch.randn(*shape, generator=generator) * shape[-1] ** -0.5

    def norm(name, width):
        return {f"{name}.weight": 1 + normal(width), f"{name}.bias": normal(width)}

    if projection == "linear":
        weights = {"proj.weight": normal(4 * TOKEN, VISION["projection_dim"]), "proj.bias": normal(4 * TOKEN)}
        weights |= norm("norm", TOKEN)
    else:
        width, inner, states = 24, 64, VISION["hidden_size"]  # one head of 64, as in every published file
        weights = {"latents": normal(1, 5, width)} | norm("norm_out", TOKEN)
        weights |= {"proj_in.weight": normal(width, states), "proj_in.bias": normal(width)}
        weights |= {"proj_out.weight": normal(TOKEN, width), "proj_out.bias": normal(TOKEN)}
        for layer in (f"layers.{i}" for i in range(4)):  # diffusers knows no other depth
            for name in ("0.norm1", "0.norm2", "1.0"):
                weights |= norm(f"{layer}.{name}", width)
            weights |= tiny.resampler_matrices(layer, width, inner, normal)
    attention = {}
    for i, width in enumerate(attention_widths("attn2")):
        for letter in "kv":
            attention[f"{2 * i + 1}.to_{letter}_ip.weight"] = normal(width, TOKEN)
    return {"image_proj": weights, "ip_adapter": attention}


@functools.cache
def first_frame_adapter() -> Path:
    """A new first-frame adapter in the published names: its queries random, its output zero."""
    path = root() / "first_frame.safetensors"
    generator = np.random.default_rng(8)
    tensors = {}
    for name, width in zip(attention_names("attn1"), attention_widths("attn1")):
        tensors[f"{name}.to_q_ff.weight"] = generator.standard_normal((width, width), np.float32) * width**-0.5
        tensors[f"{name}.to_out_ff.weight"] = np.zeros((width, width), np.float32)
        tensors[f"{name}.to_out_ff.bias"] = np.zeros(width, np.float32)
    save_file(tensors, path)
    return path


def attention_names(site: str) -> list[str]:
    """The UNet's attentions of one kind, in diffusers' order: the levels down, up, the middle last."""
    unet = diffusers.UNet2DConditionModel(**UNET)
    return [name.removesuffix(".processor") for name in unet.attn_processors if name.endswith(f"{site}.processor")]


def attention_widths(site: str) -> list[int]:
    """The channels of each of `attention_names`."""
    unet = diffusers.UNet2DConditionModel(**UNET)
    return [unet.get_submodule(name).to_q.out_features for name in attention_names(site)]


@functools.cache
def picture_pipeline() -> diffusers.StableDiffusionXLPipeline:
    """diffusers' pipeline for single pictures."""
    pipeline = diffusers.StableDiffusionXLPipeline.from_pretrained(folder(), add_watermarker=False)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@functools.cache
def video_pipeline() -> diffusers.AnimateDiffSDXLPipeline:
    """diffusers' pipeline for videos: the same base with the motion modules, and their schedule.

    `UNetMotionModel.from_unet2d` leaves out one part of SDXL's base, whose weights then are random: `add_embedding`,
    which reads the pooled text and the sizes. Here it is the base's.
    """
    pipeline = diffusers.AnimateDiffSDXLPipeline.from_pretrained(
        folder(),
        motion_adapter=diffusers.MotionAdapter.from_pretrained(motion()),
        scheduler=diffusers.DDIMScheduler(**VIDEO_SCHEDULE),
    )
    pipeline.unet.add_embedding.load_state_dict(picture_pipeline().unet.add_embedding.state_dict())
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def initial_noise(frames: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    """Latents to start from, of a picture of that many pixels, [1, f, h, w, 4]."""
    return np.random.default_rng(seed).standard_normal((1, frames, height // 8, width // 8, 4), np.float32)


def run_picture(prompt: str, noise: np.ndarray, **options) -> Run:
    """Runs `StableDiffusionXLPipeline` from given noise of one frame; `options` are those of its call."""
    latents = torch.from_numpy(np.moveaxis(noise[:, 0], -1, 1).copy())
    run = run_pipeline(picture_pipeline(), 1, prompt, latents, **options)
    return run._replace(latents=np.moveaxis(run.latents, 1, -1)[:, None], pictures=run.pictures[:, None])


def run_video(prompt: str, noisy: np.ndarray, **options) -> Run:
    """Runs `AnimateDiffSDXLPipeline` from given latents; `options` are those of its call.

    Frame 1 stays as it is given: clean latents of a picture, as I2V-Adapter has it.
    """
    latents = torch.from_numpy(np.moveaxis(noisy, -1, 1).copy())
    run = run_pipeline(video_pipeline(), noisy.shape[1], prompt, latents, num_frames=noisy.shape[1], **options)
    return run._replace(latents=np.moveaxis(run.latents, 1, -1))


def run_pipeline(pipeline, frames: int, prompt: str, latents: torch.Tensor, **options) -> Run:
    """Runs either pipeline with guidance; `latents` and the result's are channels first.

    A callback takes what the pipeline hands to its UNet, and holds frame 1 of a video.
    """
    last, first_frame = {}, latents[:, :, :1].clone()

    def keep(pipeline, step, timestep, tensors):
        if latents.ndim == 5:
            tensors["latents"] = torch.cat([first_frame, tensors["latents"][:, :, 1:]], 2)
        last.update(tensors)
        return {"latents": tensors["latents"]}

    shown = ["latents", "prompt_embeds", "add_text_embeds", "add_time_ids"]
    side = 8 * latents.shape[-2], 8 * latents.shape[-1]
    settings = dict(height=side[0], width=side[1], num_inference_steps=STEPS, guidance_scale=GUIDANCE) | options
    settings |= dict(callback_on_step_end=keep, callback_on_step_end_tensor_inputs=shown)
    with torch.no_grad():
        made = pipeline(prompt, latents=latents, output_type="np", **settings)
    pictures = made.images if hasattr(made, "images") else made.frames
    negative_text, text = last["prompt_embeds"].numpy()[:: text_repeats(pipeline, frames)]
    negative_pooled, pooled = last["add_text_embeds"].numpy()
    negative_sizes, sizes = last["add_time_ids"].numpy()
    conditions = (text, negative_text, pooled, negative_pooled, sizes, negative_sizes)
    return Run(*(x[None] for x in conditions), last["latents"].numpy(), np.round(pictures * 255).astype(np.uint8))


def text_repeats(pipeline, frames: int) -> int:
    """How many rows of the same text states the pipeline hands to its UNet: the video's repeats them for each frame."""
    return frames if isinstance(pipeline, diffusers.AnimateDiffSDXLPipeline) else 1


def image_tokens(projection: str, picture: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the image tokens that diffusers' UNet reads of an RGB picture, and the unconditional ones, [1, n, 40]."""
    pipeline = diffusers.StableDiffusionXLPipeline.from_pretrained(
        folder(),
        image_encoder=CLIPVisionModelWithProjection.from_pretrained(image_encoder()),
        feature_extractor=CLIPImageProcessor(size=VISION["image_size"], crop_size=VISION["image_size"]),
        add_watermarker=False,
    )
    pipeline.unet._load_ip_adapter_weights([image_adapter_weights(projection)])
    with torch.no_grad():
        (embeds,) = pipeline.prepare_ip_adapter_image_embeds([picture], None, "cpu", 1, True)
        (tokens,) = pipeline.unet.encoder_hid_proj([embeds])
    unconditional, conditional = tokens.flatten(1, -2).numpy()
    return conditional[None], unconditional[None]
