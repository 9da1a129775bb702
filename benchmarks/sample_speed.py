"""Seconds of a whole guided SD1.5 run and of a step, and the share of the machine's matrix-product rate it reaches.

    python -m benchmarks.sample_speed [--size 512] [--frames 16] [--steps 25] [--dtype bfloat16] [--diffusers]

Random weights of the real sizes (SD1.5, AnimateDiff v1, I2V-Adapter, IP-Adapter plus with ViT-H, the VAE). The rate is
that of an 8192^3 product (2048^3 on a CPU) in the same run; a step's work is counted on the plain program.
`--diffusers` times diffusers' AnimateDiff with `torch.compile` beside it (without adapter and image tokens).
"""

import argparse
import dataclasses
import time

import jax
import jax.numpy as jnp
import numpy as np

from i2v_jax.families.model import Model
from i2v_jax.models import clip, image_projection, motion, unet, vae
from i2v_jax.models.conditions import Conditions
from i2v_jax.models.kernels.choice import choose
from i2v_jax.models.networks import Shapes, parameter_shapes
from i2v_jax.models.tokenizer import ClipTokenizer, byte_level_vocabulary
from i2v_jax.sampling.pipeline import Pipeline
from i2v_jax.sampling.settings import Settings
from i2v_jax.training.flops import count_flops
from i2v_jax.tree import unflatten


def random_parameters(expected: Shapes) -> dict:
    """Small random kernels, made on the device, one at a time; norms that change nothing."""
    draw = jax.jit(
        lambda number, shape, dtype: 0.02 * jax.random.normal(jax.random.key(number), shape, dtype),
        static_argnums=(1, 2),
    )

    def make(number, path, leaf):
        is_scale = path.endswith("/scale")
        return jnp.ones(leaf.shape, leaf.dtype) if is_scale else draw(number, leaf.shape, leaf.dtype)

    return unflatten({path: make(number, path, leaf) for number, (path, leaf) in enumerate(expected.items())})


def real_size_model(dtype) -> Model:
    """Everything of the published SD1.5 model, with random weights."""
    dtypes = dict(dtype=dtype, param_dtype=dtype)
    kernels = choose(jax.devices()[0], dtype)
    unet_config = dataclasses.replace(
        unet.SD15,
        motion=motion.V1,
        pooled_norms=True,
        self_attention_branches=("first_frame",),
        cross_attention_branches=("image_tokens",),
        **kernels,
        **dtypes,
    )
    configs = dict(
        unet=unet_config,
        vae=dataclasses.replace(vae.SD_VAE, **kernels, **dtypes),
        text_encoder=dataclasses.replace(clip.SD15_TEXT, **dtypes),
        image_encoder=dataclasses.replace(clip.VIT_H_VISION, **dtypes),
        image_proj=dataclasses.replace(image_projection.IP_ADAPTER_PLUS_SD15, **dtypes),
    )
    parameters = {name: random_parameters(parameter_shapes(config)) for name, config in configs.items()}
    tokenizers = {"text_encoder": ClipTokenizer(*byte_level_vocabulary())}
    return Model(configs, parameters, tokenizers)


def step_flops(model: Model, settings: Settings) -> float:
    """Floating-point operations of one guided step, counted before the compiler rearranges them."""
    config = dataclasses.replace(model.configs["unet"], attention="xla", convolution="xla")
    size = 8  # pixels per latent
    rows = 2 if settings.guided else 1
    sample = (rows, settings.frames, settings.height // size, settings.width // size, config.in_channels)
    given = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in (sample, (rows, 77, 768), (rows, 16, 768))]
    parameters = jax.eval_shape(lambda: model.parameters["unet"])

    def call(p, sample, text, image_tokens):
        return unet.UNet(config).apply({"params": p}, sample, 500.0, Conditions.of_videos(text, image_tokens))

    return count_flops(jax.jit(call).trace(parameters, *given).jaxpr)


def product_rate(dtype) -> float:
    """Floating-point operations a second of a large product of random matrices."""
    n = 2048 if jax.default_backend() == "cpu" else 8192
    a, b = (jax.random.normal(jax.random.key(i), (n, n), dtype) for i in range(2))
    multiply = jax.jit(jnp.matmul)
    multiply(a, b).block_until_ready()
    begin = time.perf_counter()
    for _ in range(10):
        out = multiply(a, b)
    out.block_until_ready()
    return 10 * 2 * n**3 / (time.perf_counter() - begin)


def ours(args) -> tuple[float, float]:
    """Prints and returns seconds of a whole run and of a step."""
    settings = Settings(height=args.size, width=args.size, frames=args.frames, steps=args.steps)
    models = real_size_model(jnp.dtype(args.dtype))
    pipeline = Pipeline(models)
    picture = np.random.default_rng(0).integers(0, 256, (args.size, args.size, 3), np.uint8)
    runs, steps = [], []
    for _ in range(args.rounds + 1):
        marks = [time.perf_counter()]
        tick = lambda *_, marks=marks: marks.append(time.perf_counter())  # noqa: E731
        pipeline([picture], [""], [0], settings=settings, on_step=tick)
        runs.append(time.perf_counter() - marks[0])
        steps += list(np.diff(marks[1:]))
    whole, step = min(runs[1:]), float(np.median(steps)) if steps else float("nan")
    work, rate = step_flops(models, settings), product_rate(jnp.dtype(args.dtype))
    print(f"first run, compiling: {runs[0]:.2f} s; later runs: {', '.join(f'{run:.2f}' for run in runs[1:])} s")
    print(f"whole run {whole:.2f} s, step {1000 * step:.1f} ms, {work / 1e12:.2f} TFLOP a step")
    print(f"matrix products {rate / 1e12:.1f} TFLOP/s; a step reaches {work / step / rate:.0%} of that   (wanted 45 %)")
    return whole, step


def diffusers_animatediff(args) -> float:
    """Prints and returns seconds of a whole run of diffusers' AnimateDiff, compiled, on a GPU."""
    import torch
    from diffusers import AnimateDiffPipeline, AutoencoderKL, DDIMScheduler, MotionAdapter, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    device, dtype = ("cuda" if torch.cuda.is_available() else "cpu"), getattr(torch, args.dtype)
    channels = (128, 256, 512, 512)
    pipe = AnimateDiffPipeline(
        vae=AutoencoderKL(
            block_out_channels=channels,
            down_block_types=["DownEncoderBlock2D"] * 4,
            up_block_types=["UpDecoderBlock2D"] * 4,
            layers_per_block=2,
        ),
        text_encoder=CLIPTextModel(CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_attention_heads=12)),
        tokenizer=None,
        unet=UNet2DConditionModel(cross_attention_dim=768),
        motion_adapter=MotionAdapter(motion_max_seq_length=24, use_motion_mid_block=False),
        scheduler=DDIMScheduler(beta_schedule="linear", beta_start=0.00085, beta_end=0.012, clip_sample=False),
    ).to(device, dtype)
    pipe.set_progress_bar_config(disable=True)
    pipe.unet = torch.compile(pipe.unet)
    pipe.vae.decode = torch.compile(pipe.vae.decode)
    prompts = [torch.randn(1, 77, 768, device=device, dtype=dtype) for _ in range(2)]
    runs = []
    for _ in range(args.rounds + 1):
        begin = time.perf_counter()
        pipe(
            prompt_embeds=prompts[0],
            negative_prompt_embeds=prompts[1],
            num_frames=args.frames,
            height=args.size,
            width=args.size,
            num_inference_steps=args.steps,
            guidance_scale=7.5,
            output_type="np",
        )
        runs.append(time.perf_counter() - begin)
    print(f"diffusers AnimateDiff, torch.compile: whole run {min(runs[1:]):.2f} s (first {runs[0]:.2f} s)")
    return min(runs[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=512, help="height and width, pixels")
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--diffusers", action="store_true")
    args = parser.parse_args()
    print(
        f"{jax.devices()[0].device_kind}: {args.frames}x{args.size}x{args.size}, {args.steps} DDIM steps, {args.dtype}"
    )
    whole, _ = ours(args)
    if args.diffusers:
        print(f"diffusers over ours: {diffusers_animatediff(args) / whole:.2f}   (wanted 1.5)")


if __name__ == "__main__":
    main()
