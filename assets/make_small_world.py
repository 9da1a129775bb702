"""Trains the bundled small model and writes it: a diffusers folder, and AnimateDiff, I2V-Adapter and IP-Adapter files.

    python -m assets.make_small_model assets/small

It learns from a virtual camera moving over five photographs that scikit-image ships (see assets/README.md), with fixed
seeds. The CLIP encoders keep their random weights.
"""

import functools
import json
import sys
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import skimage.data
from jax.scipy.ndimage import map_coordinates
from jaxtyping import Array, Float, Int, Key

from i2v_jax.diffusion.noise_schedule import ANIMATEDIFF_SD15
from i2v_jax.diffusion.samplers import pin_first_frame
from i2v_jax.media import CLIP_MEAN, CLIP_STD, fit_picture, to_model_range
from i2v_jax.models import motion
from i2v_jax.models.clip import CLIPTextConfig, CLIPTextEncoder, CLIPVisionConfig, CLIPVisionEncoder
from i2v_jax.models.image_projection import Resampler, ResamplerConfig
from i2v_jax.models.unet import UNet, UNetConfig
from i2v_jax.models.vae import AutoencoderKL, VAEConfig, sample_posterior
from i2v_jax.tokenizer import ClipTokenizer, byte_level_vocabulary
from i2v_jax.weights import formats, shapes
from i2v_jax.weights.files import Tensors, save_tensors
from i2v_jax.weights.formats.ip_adapter import ip_adapter_table
from i2v_jax.weights.translate import export_tensors, position_tables
from i2v_jax.weights.tree import flatten, unflatten

MOTION = motion.V1
SIZE, FRAMES = 128, 8  # of the clips it is trained on
HEIGHT, WIDTH = 144, 216  # of the photographs
SUBJECTS = {
    "a cat": "chelsea",
    "an astronaut": "astronaut",
    "a cup of coffee": "coffee",
    "a rocket": "rocket",
    "a man with a camera": "camera",
}
MOTIONS = {  # down, right (shares of the view), zoom (logarithm), turn (radians), over a whole clip
    "moves left": (0, -0.3, 0, 0),
    "moves right": (0, 0.3, 0, 0),
    "moves up": (-0.2, 0, 0, 0),
    "moves down": (0.2, 0, 0, 0),
    "zooms in": (0, 0, -0.4, 0),
    "zooms out": (0, 0, 0.3, 0),
    "turns left": (0, 0, 0, -0.3),
    "turns right": (0, 0, 0, 0.3),
}
CAPTIONS = [f"{subject}, the camera {motion}" for subject in SUBJECTS for motion in MOTIONS]
VAE_STEPS, VAE_BATCH = 2100, 8
UNET_STEPS, UNET_BATCH, CLIPS = 1150, 4, 384

# The configs as their own libraries write them; ours are read from these.
UNET = dict(
    _class_name="UNet2DConditionModel",
    sample_size=SIZE // 8,
    block_out_channels=[32, 64],
    down_block_types=["DownBlock2D", "CrossAttnDownBlock2D"],
    up_block_types=["CrossAttnUpBlock2D", "UpBlock2D"],
    layers_per_block=1,
    attention_head_dim=4,
    cross_attention_dim=32,
    norm_num_groups=8,
)
VAE = dict(
    _class_name="AutoencoderKL",
    block_out_channels=[16, 32, 48, 48],
    down_block_types=["DownEncoderBlock2D"] * 4,
    up_block_types=["UpDecoderBlock2D"] * 4,
    layers_per_block=1,
    latent_channels=4,
    norm_num_groups=8,
    scaling_factor=1.0,  # measured after training
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
RESAMPLER = ResamplerConfig(
    embed_dim=32, num_tokens=16, width=64, depth=1, num_heads=1, mlp_width=128, cross_attention_dim=32
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
BRANCHES = dict(self_attention_branches=("first_frame",), cross_attention_branches=("image_tokens",))
ZERO = ("first_frame/to_out/kernel", "motion/proj_out/kernel")  # what starts by adding nothing


class Clips(NamedTuple):
    """A virtual camera's clips, in [-1, 1]; each one's photograph and motion by number."""

    video: Float[Array, "n f s s 3"]
    subject: Int[Array, " n"]
    motion: Int[Array, " n"]


def photographs() -> Float[np.ndarray, "n h w 3"]:
    """The photographs in one size, square ones mirrored at their sides."""

    def fit(picture):
        picture = np.broadcast_to(np.atleast_3d(picture), (*picture.shape[:2], 3))
        margin = max(0, (picture.shape[0] * WIDTH // HEIGHT - picture.shape[1]) // 2)
        padded = np.pad(picture, ((0, 0), (margin, margin), (0, 0)), mode="reflect")
        return to_model_range(fit_picture(padded, HEIGHT, WIDTH))

    return np.stack([fit(getattr(skimage.data, name)()) for name in SUBJECTS.values()])


def film(key: Key[Array, ""], pictures: Float[Array, "n h w 3"], count: int, frames: int, size: int) -> Clips:
    """Moves the camera over photographs drawn at random; a view of `size` pixels shows that share of `SIZE`."""
    draw = functools.partial(jax.random.uniform, shape=(count, 1))
    keys = jax.random.split(key, 8)
    subject = jax.random.randint(keys[0], (count,), 0, len(SUBJECTS))
    moves = jax.random.randint(keys[1], (count,), 0, len(MOTIONS))
    progress = jnp.linspace(0, 1, frames) * draw(keys[2], minval=0.6, maxval=1)
    down, right, zoom, turn = (
        progress * amount[:, None] for amount in jnp.asarray(list(MOTIONS.values()), jnp.float32)[moves].T
    )
    side = HEIGHT * draw(keys[3], minval=0.75, maxval=1)
    view = side * size / SIZE
    y = view / 2 + draw(keys[4]) * (HEIGHT - view) + side * down
    x = view / 2 + draw(keys[5]) * (WIDTH - view) + side * right
    across = (jnp.arange(size) + 0.5) / size - 0.5
    v, u = jnp.meshgrid(across, across, indexing="ij")
    scale, sine, cosine = (a[..., None, None] for a in (view * jnp.exp(zoom), jnp.sin(turn), jnp.cos(turn)))
    rows = y[..., None, None] + scale * (cosine * v - sine * u) - 0.5
    columns = x[..., None, None] + scale * (sine * v + cosine * u) - 0.5

    def look(picture, rows, columns):
        return jax.vmap(lambda c: map_coordinates(c, [rows, columns], 1, "mirror"), -1, -1)(picture)

    video = jax.vmap(look)(pictures[subject], rows, columns)
    gain = 1 + 0.1 * jax.random.normal(keys[6], (count, 1, 1, 1, 3))
    shift = 0.1 * jax.random.normal(keys[7], (count, 1, 1, 1, 3))
    return Clips(jnp.clip(video * gain + shift, -1, 1), subject, moves)


def initial_weights(expected: shapes.Shapes, rng: np.random.Generator) -> dict:
    """A tree of random weights: kernels of unit gain, norms that change nothing, small biases."""

    def draw(path, shape):
        leaf = path.rsplit("/", 1)[-1]
        if leaf == "scale":
            return np.ones(shape, np.float32)
        if path.endswith(ZERO):
            return np.zeros(shape, np.float32)
        spread = 0.02 if leaf != "kernel" else np.prod(shape[:-1]) ** -0.5
        return rng.normal(0, spread, shape).astype(np.float16).astype(np.float32)

    return unflatten({path: draw(path, leaf.shape) for path, leaf in expected.items()})


class Training(NamedTuple):
    """What a step of training takes and returns."""

    parameters: dict
    optimizer: optax.OptState
    average: dict  # of the parameters over about 100 steps: what is kept


def trainer(loss, learning_rate: float):
    """Returns (start, step): step(training, number, *data) draws by its number and returns (training, loss)."""
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(optax.warmup_constant_schedule(0, learning_rate, 50), weight_decay=1e-4),
    )

    @functools.partial(jax.jit, donate_argnums=0)
    def step(training, number, *data):
        key = jax.random.fold_in(jax.random.key(0), number)
        value, gradient = jax.value_and_grad(loss)(training.parameters, key, *data)
        updates, state = optimizer.update(gradient, training.optimizer, training.parameters)
        parameters = optax.apply_updates(training.parameters, updates)
        average = optax.incremental_update(parameters, training.average, jnp.maximum(0.01, 1 / (number + 1)))
        return Training(parameters, state, average), value

    def start(parameters):
        parameters = jax.tree.map(jnp.array, parameters)
        return Training(parameters, optimizer.init(parameters), jax.tree.map(jnp.copy, parameters))

    return start, step


def train(loss, parameters: dict, learning_rate: float, steps: int, *data) -> dict:
    """Returns the averaged parameters after so many steps."""
    start, step = trainer(loss, learning_rate)
    training = start(parameters)
    for number in range(steps):
        training, value = step(training, number, *data)
        if number % 100 == 99:
            print(f"step {number + 1} of {steps}: loss {value:.4f}", flush=True)
    return jax.tree.map(np.asarray, training.average)


def vae_loss(parameters, key, pictures):
    """Absolute error of the pictures and of their edges, and a trace of KL divergence."""
    vae = AutoencoderKL(VAEConfig.from_diffusers(VAE))
    film_key, noise_key = jax.random.split(key)
    images = film(film_key, pictures, VAE_BATCH, 1, SIZE // 2).video[:, 0]
    mean, logvar = vae.apply({"params": parameters}, images, method="encode")
    latents = sample_posterior(mean, logvar, jax.random.normal(noise_key, mean.shape))
    error = vae.apply({"params": parameters}, latents, method="decode") - images
    edges = sum(jnp.abs(jnp.diff(error, axis=axis)).mean() for axis in (1, 2))
    divergence = 0.5 * (mean**2 + jnp.exp(logvar) - 1 - logvar).mean()
    return jnp.abs(error).mean() + edges + 1e-4 * divergence


class Bank(NamedTuple):
    """Clips made ready for the UNet, once."""

    latents: Float[Array, "n f h w c"]  # of unit variance
    seen: Float[Array, "n t e"]  # by the vision encoder, of the first frame
    caption: Int[Array, " n"]


def encode_clips(pictures, vae: dict, vision: dict) -> tuple[Bank, float]:
    """Films, and encodes; returns the scaling factor too."""
    network = AutoencoderKL(VAEConfig.from_diffusers(VAE))

    @jax.jit
    def encode(key):
        clips = film(key, pictures, 4, FRAMES, SIZE)
        mean, logvar = network.apply({"params": vae}, clips.video.reshape(-1, SIZE, SIZE, 3), method="encode")
        latents = sample_posterior(mean, logvar, jax.random.normal(key, mean.shape))
        latents = latents.reshape(*clips.video.shape[:2], *latents.shape[1:])
        return Bank(latents, look(vision, clips.video[:, 0]), clips.subject * len(MOTIONS) + clips.motion)

    keys = jax.random.split(jax.random.key(1), CLIPS // 4)
    bank = jax.tree.map(lambda *parts: np.concatenate(parts), *[jax.tree.map(np.asarray, encode(k)) for k in keys])
    scale = round(float(1 / bank.latents.std()), 5)
    return bank._replace(latents=bank.latents * scale), scale


def look(vision: dict, images: Float[Array, "n s s 3"]) -> Float[Array, "n t e"]:
    """What the vision encoder makes of pictures."""
    resized = jax.image.resize(images / 2 + 0.5, (len(images), 224, 224, 3), "cubic")
    encoder = CLIPVisionEncoder(CLIPVisionConfig.from_diffusers(VISION))
    return encoder.apply({"params": vision}, (resized - CLIP_MEAN) / CLIP_STD).penultimate


def unet_loss(parameters, key, bank, prompts, black, config):
    """The I2V-Adapter's: error of the noise in frames 2..l; one in ten without prompt and picture."""
    keys = jax.random.split(key, 4)
    rows = jax.random.randint(keys[0], (UNET_BATCH,), 0, CLIPS)
    timesteps = jax.random.randint(keys[1], (UNET_BATCH,), 0, ANIMATEDIFF_SD15.num_train_timesteps)
    dropped = jax.random.bernoulli(keys[2], 0.1, (UNET_BATCH,))
    clean = bank.latents[rows]
    noise = jax.random.normal(keys[3], clean.shape)
    noisy = pin_first_frame(ANIMATEDIFF_SD15.add_noise(clean, noise, timesteps), clean[:, :1])
    text = prompts[jnp.where(dropped, len(CAPTIONS), bank.caption[rows])]
    seen = jnp.where(dropped[:, None, None], black, bank.seen[rows])
    tokens = Resampler(RESAMPLER).apply({"params": parameters["projection"]}, seen)
    predicted = UNet(config).apply({"params": parameters["unet"]}, noisy, timesteps, text, tokens)
    return jnp.square(predicted - noise)[:, 1:].mean()


def as_tensors(tree: dict) -> Tensors:
    """A tree's leaves by path, in float16, to be small."""
    return Tensors.of({path: leaf.astype(np.float16) for path, leaf in flatten(tree).items()})


def write(path: Path, weights: Tensors, table, buffers: Tensors | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_tensors(path, export_tensors(weights, table, buffers or Tensors.of({})), {"format": "pt"})


class Small(NamedTuple):
    """The networks' parameters before training, the tokenizer, and the text encoder's config."""

    unet: dict
    projection: dict
    vae: dict
    text_encoder: dict
    image_encoder: dict
    tokenizer: ClipTokenizer
    text: dict


def unet_config() -> UNetConfig:
    return UNetConfig.from_diffusers(UNET, motion=MOTION, **BRANCHES)


def new_model() -> Small:
    """The model with random weights, by a fixed seed."""
    rng = np.random.default_rng(0)
    vocabulary, merges = byte_level_vocabulary(CAPTIONS, 200)
    text = TEXT | dict(vocab_size=len(vocabulary))
    return Small(
        unet=initial_weights(shapes.unet_shapes(unet_config()), rng),
        projection=initial_weights(shapes.image_projection_shapes(RESAMPLER), rng),
        vae=initial_weights(shapes.vae_shapes(VAEConfig.from_diffusers(VAE)), rng),
        text_encoder=initial_weights(shapes.text_encoder_shapes(CLIPTextConfig.from_diffusers(text)), rng),
        image_encoder=initial_weights(shapes.image_encoder_shapes(CLIPVisionConfig.from_diffusers(VISION)), rng),
        tokenizer=ClipTokenizer(vocabulary, merges),
        text=text,
    )


def unet_data(model: Small, pictures):
    """What `unet_loss` needs (clips, prompts and the empty one, a black picture's features), and the scaling factor."""
    bank, scale = encode_clips(pictures, model.vae, model.image_encoder)
    encoder = CLIPTextEncoder(CLIPTextConfig.from_diffusers(model.text))
    prompts = encoder.apply({"params": model.text_encoder}, model.tokenizer.encode([*CAPTIONS, ""])).last_hidden
    black = CLIPVisionEncoder(CLIPVisionConfig.from_diffusers(VISION)).apply(
        {"params": model.image_encoder}, jnp.zeros((1, 224, 224, 3))
    )
    return (jax.tree.map(jnp.asarray, bank), prompts, black.penultimate), scale


def save(folder: Path, model: Small, scale: float) -> None:
    """Writes every file."""
    unet = as_tensors(model.unet)
    parts = {name: unet.select(rf".*/{name}/.*") for name in ("motion", "first_frame", "image_tokens")}
    base = unet.select(r"(?!.*/(motion|first_frame|image_tokens)/).*")
    for name, settings, weights, table in [
        ("unet", UNET, base, formats.DIFFUSERS_UNET),
        ("vae", VAE | dict(scaling_factor=scale), as_tensors(model.vae), formats.DIFFUSERS_VAE),
        ("text_encoder", model.text, as_tensors(model.text_encoder), formats.CLIP_TEXT),
        ("image_encoder", VISION, as_tensors(model.image_encoder), formats.CLIP_VISION),
    ]:
        file = "diffusion_pytorch_model" if name in ("unet", "vae") else "model"
        write(folder / name / f"{file}.safetensors", weights, table)
        (folder / name / "config.json").write_text(json.dumps(settings, indent=1) + "\n")
    model.tokenizer.save(folder / "tokenizer")
    (folder / "scheduler").mkdir(exist_ok=True)
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(SCHEDULER, indent=1) + "\n")

    positions = position_tables(parts["motion"], MOTION.max_positions)
    write(folder / "motion.safetensors", parts["motion"], formats.PUBLISHED_UNET, positions)
    write(folder / "i2v_adapter.safetensors", parts["first_frame"], formats.PUBLISHED_UNET)
    projected = export_tensors(as_tensors(model.projection), formats.IMAGE_PROJECTION, Tensors.of({}))
    attended = export_tensors(parts["image_tokens"], ip_adapter_table(unet), Tensors.of({}))
    save_tensors(folder / "ip_adapter.safetensors", Tensors.of({**projected, **attended}), {"format": "pt"})


def main(folder: Path) -> None:
    pictures = jnp.asarray(photographs())
    model = new_model()
    model = model._replace(vae=train(vae_loss, model.vae, 2e-3, VAE_STEPS, pictures))
    data, scale = unet_data(model, pictures)
    loss = functools.partial(unet_loss, config=unet_config())
    trained = train(loss, dict(unet=model.unet, projection=model.projection), 1.5e-3, UNET_STEPS, *data)
    save(folder, model._replace(**trained), scale)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
