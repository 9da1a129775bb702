"""Trains the bundled small model from nothing, stage after stage, and writes it into assets/small_world.

    python -m assets.make_small_world [--to=assets/small_world] [--trained FILE ...]

Random weights in the published formats come first; then `train.py` runs the stages of configs/train/small_world.py, in
the paper's order: autoencoder, pictures, image tokens, motion modules (lessons first), first-frame adapter. Stopped and
started again, it goes on from the last checkpoint. docs/small_world.md has what each was trained on, and for how long.
With --trained nothing is trained: files of `train.py` are put in the place of the bundled model's weights.
"""

import argparse
import itertools
import json
import math
import runpy
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from safetensors.numpy import load_file

from i2v_jax import commands, media
from i2v_jax.data import small_world
from i2v_jax.devices.mesh import make_mesh
from i2v_jax.errors import InputError
from i2v_jax.families.model import Model
from i2v_jax.families.weights import Weights
from i2v_jax.models import motion
from i2v_jax.models.clip import CLIPTextConfig, CLIPTextEncoder, CLIPVisionConfig
from i2v_jax.models.image_projection import ResamplerConfig
from i2v_jax.models.networks import Shapes, parameter_shapes
from i2v_jax.models.tokenizer import ClipTokenizer, byte_level_vocabulary
from i2v_jax.models.unet import UNetConfig
from i2v_jax.models.vae import AutoencoderKL, VAEConfig
from i2v_jax.sampling import trained_at
from i2v_jax.tree import flatten, unflatten
from i2v_jax.weights import folders, formats
from i2v_jax.weights.formats.ip_adapter import ip_adapter_table
from i2v_jax.weights.save import exported_metadata
from i2v_jax.weights.storage.safetensors import save_tensors
from i2v_jax.weights.tensors import Tensors
from i2v_jax.weights.translate import export_tensors, position_tables

ROOT = Path(__file__).resolve().parents[1]
BUNDLED = ROOT / "assets" / "small_world"
_CONFIG = runpy.run_path(str(ROOT / "configs" / "train" / "small_world.py"))
RUNS, STAGES = _CONFIG["RUNS"], _CONFIG["STAGES"]
SIZE = 48  # of pictures and of the clips that stages train on
FRAMES = 8
PICTURES = (0, 2, 13, 16)  # held-out clips to animate: moves left, moves up, the camera pans right, the camera zooms in
WIDTH = 96  # of encoders and of the UNet's middle level
MOTION = motion.V3
APART = 0.1  # share of a text encoder's states by which any two motions should differ, at least

# The configs as their own libraries write them; ours are read from these.
UNET = dict(
    _class_name="UNet2DConditionModel",
    sample_size=SIZE // 4,
    in_channels=4,
    out_channels=4,
    block_out_channels=[64, WIDTH, 128],
    down_block_types=["CrossAttnDownBlock2D"] * 3,
    up_block_types=["CrossAttnUpBlock2D"] * 3,
    layers_per_block=1,
    attention_head_dim=4,
    cross_attention_dim=WIDTH,
    norm_num_groups=8,
)
VAE = dict(
    _class_name="AutoencoderKL",
    block_out_channels=[16, 32, 64],
    down_block_types=["DownEncoderBlock2D"] * 3,
    up_block_types=["UpDecoderBlock2D"] * 3,
    layers_per_block=1,
    latent_channels=4,
    norm_num_groups=2,
    scaling_factor=1.0,  # measured after training
)
CLIP = dict(hidden_size=WIDTH, intermediate_size=2 * WIDTH, num_hidden_layers=3, num_attention_heads=4)
TEXT = dict(
    model_type="clip_text_model",
    **CLIP,
    max_position_embeddings=20,
    hidden_act="quick_gelu",
    projection_dim=WIDTH,
    eos_token_id=2,
)
VISION = dict(
    model_type="clip_vision_model", **CLIP, image_size=SIZE, patch_size=8, hidden_act="gelu", projection_dim=WIDTH
)
RESAMPLER = ResamplerConfig(
    embed_dim=WIDTH, num_tokens=8, width=WIDTH, depth=1, num_heads=4, mlp_width=2 * WIDTH, cross_attention_dim=WIDTH
)
SCHEDULER = folders.SCHEDULER | dict(beta_schedule="linear", prediction_type="v_prediction", set_alpha_to_one=True)
TRAINED_AT = dict(
    sides=[SIZE, SIZE],
    frames=[FRAMES, FRAMES],
    knows=f"18 motions of one or two plain shapes, at {SIZE}x{SIZE} pixels and {FRAMES} frames (docs/small_world.md)",
)
ZERO = ("motion/proj_out/kernel", "conv2/kernel")  # what starts by adding nothing


def text_config(vocab_size: int) -> CLIPTextConfig:
    return CLIPTextConfig.from_diffusers(TEXT | dict(vocab_size=vocab_size))


def unet_config() -> UNetConfig:
    return UNetConfig.from_diffusers(UNET, motion=MOTION, cross_attention_branches=("image_tokens",))


def initial_weights(
    expected: Shapes, rng: np.random.Generator, gains: Mapping[str, float] | None = None
) -> dict[str, Array]:
    """Random weights by path: kernels of unit gain, norms that change nothing, no biases, embeddings of unit variance.

    Args:
      expected: their shapes.
      rng: is drawn from.
      gains: what weights whose path has a text in it are multiplied by.
    """

    def draw(path, shape):
        leaf = path.rsplit("/", 1)[-1]
        if leaf == "scale":
            return np.ones(shape, np.float32)
        if path.endswith(ZERO) or leaf == "bias":
            return np.zeros(shape, np.float32)
        spread = np.prod(shape[:-1]) ** -0.5 if leaf == "kernel" else 1
        spread *= math.prod(gain for part, gain in (gains or {}).items() if part in path)
        return rng.normal(0, spread, shape).astype(np.float32)

    return {path: draw(path, leaf.shape) for path, leaf in expected.items()}


def initial_text_encoder(rng: np.random.Generator, vocab_size: int) -> dict[str, Array]:
    """Random weights, under which a state after a caption's end is about the sum of its words before the last norm.

    Otherwise one word of ten hardly changes what the UNet sees: "left" and "right" are nearly one, and before that is
    learned from, it is unlearned.
    """
    gains = {"position": 0.1, "q_proj/kernel": 0.1, "fc2/kernel": 0.2}  # attention to all alike, and little else
    weights = initial_weights(parameter_shapes(text_config(vocab_size)), rng, gains)
    weights["token_embedding/embedding"][-1] *= 0.1  # the end's, of which there are many
    return weights


def least_apart(weights: dict[str, Array], tokenizer: ClipTokenizer) -> tuple[float, str, str]:
    """Returns which two motions a text encoder tells apart the least, and by what share of its states.

    Words that it has made one, no UNet can learn apart from then on.

    Args:
      weights: of the text encoder, by path.
    """
    network, found = CLIPTextEncoder(text_config(len(tokenizer.vocabulary))), []
    for start, motions in {"": small_world.MOTIONS, "the camera ": small_world.CAMERA_MOTIONS}.items():
        captions = [start + motion for motion in motions]
        ids = tokenizer.encode([f"a red disc {caption}" for caption in captions])
        states = np.asarray(network.apply({"params": unflatten(weights)}, ids).last_hidden)
        for (one, first), (other, second) in itertools.combinations(zip(captions, states), 2):
            found.append((float(np.linalg.norm(first - second) / np.linalg.norm(first)), one, other))
    return min(found)


def initial_model() -> tuple[dict[str, dict[str, Array]], ClipTokenizer]:
    """Returns {component: weights by path}, random by a fixed seed, and a tokenizer that knows all captions' words."""
    captions = [small_world.draw(index, split).caption for split in small_world.CLIPS for index in range(500)]
    vocabulary, merges = byte_level_vocabulary(captions, 400)
    rng = np.random.default_rng(0)
    components = dict(
        unet=initial_weights(parameter_shapes(unet_config()), rng),
        vae=initial_weights(parameter_shapes(VAEConfig.from_diffusers(VAE)), rng),
        text_encoder=initial_text_encoder(rng, len(vocabulary)),
        image_encoder=initial_weights(
            parameter_shapes(CLIPVisionConfig.from_diffusers(VISION)), rng, {"position": 0.3}
        ),
        image_proj=initial_weights(parameter_shapes(RESAMPLER), rng),
    )
    return components, ClipTokenizer(vocabulary, merges, length=TEXT["max_position_embeddings"])


def save(folder: Path, components: dict[str, dict[str, Array]], tokenizer: ClipTokenizer, dtype, scale: float) -> None:
    """Writes the model in the published formats.

    Args:
      folder: gets a diffusers folder's files, image_encoder/, motion.safetensors, ip_adapter.safetensors and, where
        there is one, i2v_adapter.safetensors; and pictures/. All at once, in the place of what is there.
      components: their weights by path.
      tokenizer: of the captions.
      dtype: of the files.
      scale: the VAE's scaling factor.
    """

    whole, folder = folder, folder.with_name(f"{folder.name}.part")
    shutil.rmtree(folder, ignore_errors=True)

    def write(path, weights, table, buffers=None, **configs):
        path.parent.mkdir(parents=True, exist_ok=True)
        metadata = {"format": "pt"} | exported_metadata(configs)
        save_tensors(path, export_tensors(weights, table, buffers or Tensors.of({})), metadata)

    def settings_file(path, settings):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(settings, indent=1) + "\n")

    def tensors(weights):
        return Tensors.of({path: np.asarray(leaf).astype(dtype) for path, leaf in weights.items()})

    unet, text = tensors(components["unet"]), tensors(components["text_encoder"])
    vocab_size = len(components["text_encoder"]["token_embedding/embedding"])
    parts = {name: unet.select(rf".*/{name}/.*") for name in ("motion", "first_frame", "image_tokens")}
    base = unet.select(r"(?!.*/(motion|first_frame|image_tokens)/).*")
    for name, settings, weights, table in [
        ("unet", UNET, base, formats.DIFFUSERS_UNET),
        ("vae", VAE | dict(scaling_factor=scale), tensors(components["vae"]), formats.DIFFUSERS_VAE),
        ("text_encoder", TEXT | dict(vocab_size=vocab_size), text, formats.CLIP_TEXT),
        ("image_encoder", VISION, tensors(components["image_encoder"]), formats.CLIP_VISION),
    ]:
        file = "diffusion_pytorch_model" if name in ("unet", "vae") else "model"
        write(folder / name / f"{file}.safetensors", weights, table)
        settings_file(folder / name / "config.json", settings)
    tokenizer.save(folder / "tokenizer")
    settings_file(folder / "scheduler" / "scheduler_config.json", SCHEDULER)
    settings_file(folder / trained_at.FILE, TRAINED_AT)

    positions = position_tables(parts["motion"], MOTION.max_positions)
    write(folder / "motion.safetensors", parts["motion"], formats.PUBLISHED_UNET, positions, unet=unet_config())
    if parts["first_frame"]:
        write(folder / "i2v_adapter.safetensors", parts["first_frame"], formats.PUBLISHED_UNET, unet=unet_config())
    projected = export_tensors(tensors(components["image_proj"]), formats.IMAGE_PROJECTION, Tensors.of({}))
    attended = export_tensors(parts["image_tokens"], ip_adapter_table(unet), Tensors.of({}))
    metadata = {"format": "pt"} | exported_metadata({"unet": unet_config(), "image_proj": RESAMPLER})
    save_tensors(folder / "ip_adapter.safetensors", Tensors.of({**projected, **attended}), metadata)

    save_pictures(folder / "pictures")
    shutil.rmtree(whole, ignore_errors=True)
    folder.rename(whole)


def measure_scale(vae: dict[str, Array], clips: int = 64) -> float:
    """Returns one over the standard deviation of latents of the world's pictures."""
    network = AutoencoderKL(VAEConfig.from_diffusers(VAE))
    encode = jax.jit(lambda pictures: network.apply({"params": unflatten(vae)}, pictures, method="encode")[0])
    frames = np.stack([small_world.make(index, frames=2, size=SIZE).video for index in range(clips)])
    return round(float(1 / jnp.std(encode(frames.reshape(-1, SIZE, SIZE, 3) / np.float32(127.5) - 1))), 4)


def trained(file: Path) -> dict[str, dict[str, Array]]:
    """Returns {component: weights by path} of a file that `train.py` has left."""
    found: dict[str, dict[str, Array]] = {}
    for path, leaf in load_file(file).items():
        component, _, rest = path.partition("/")
        found.setdefault(component, {})[rest] = leaf
    return found


def put(files: Sequence[str], to: Path) -> None:
    """Writes the bundled model with the weights of files of `train.py` in the place of its own.

    Raises:
      InputError: files that cannot be read, or are of another model.
    """
    config = commands.load_config(ROOT / "configs" / "sample" / "default.py")
    config.weights.trained = tuple(files)
    Weights.of_config(config.weights).check()
    model = Model.of_config(config, make_mesh({}, jax.devices()[:1]))
    weights = {name: flatten(parameters) for name, parameters in model.parameters.items()}
    save(to, weights, model.tokenizers["text_encoder"], np.float16, model.configs["vae"].scaling_factor)


def save_pictures(folder: Path, numbers: Sequence[int] = PICTURES) -> None:
    """Writes first frames of held-out clips and a CSV for `sample.py` with their captions."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = ["picture,prompt"]
    for number in numbers:
        clip = small_world.make(number, "held_out", frames=2, size=SIZE)
        media.write_files({folder / f"{number}.png": media.encode_png(clip.video[0])})
        rows.append(f'{number}.png,"{clip.caption}"')
    (folder / "clips.csv").write_text("\n".join(rows) + "\n")


def begin() -> None:
    """Writes random weights, as a model and as if a stage had left them; not where they are already.

    What a stopped run goes on from is then of one piece, whatever the world's captions have become since.
    """
    left = RUNS / "initial" / "trained.safetensors"
    if not left.exists():
        components, tokenizer = initial_model()
        save(left.parent, components, tokenizer, np.float32, 1.0)
        save_tensors(
            left, Tensors.of({f"{name}/{path}": it for name in components for path, it in components[name].items()})
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--to", default=BUNDLED, type=Path, help="where to write the model: a new folder, or the bundled one"
    )
    parser.add_argument("--trained", nargs="+", metavar="FILE", help="what to put into the bundled model")
    arguments = parser.parse_args()
    to = arguments.to
    if to.exists() and to.resolve() != BUNDLED:
        raise InputError(f"--to={to}: it is there already; wanted the path of a new folder.")
    media.check_folder(to.parent)
    if arguments.trained:
        return put(arguments.trained, to)
    begin()
    components = trained(RUNS / "initial" / "trained.safetensors")
    tokenizer = ClipTokenizer.from_pretrained(str(RUNS / "initial"), "tokenizer")
    scale = 1.0
    for stage in STAGES:
        left = RUNS / stage / "trained.safetensors"
        if not left.exists():
            print(f"stage {stage}", flush=True)
            command = ["train.py", "--config", f"configs/train/small_world.py:{stage}"]
            if code := subprocess.run([sys.executable, *command], cwd=ROOT).returncode:
                sys.exit(code)
        for component, weights in trained(left).items():
            components[component] |= weights
        apart, one, other = least_apart(components["text_encoder"], tokenizer)
        print(f"least apart to the text encoder: {one!r} and {other!r}, {apart:.0%}", flush=True)
        if apart < APART:
            raise InputError(
                f"Stage {stage}: its text encoder takes {one!r} and {other!r} for one ({apart:.0%} apart, wanted "
                f"{APART:.0%}), which no later stage can mend. Delete {left.parent} and train it again by another "
                f"seed: train.py --config configs/train/small_world.py:{stage} --config.seed=1."
            )
        if stage == "vae":
            if not (RUNS / "base").exists():
                save(RUNS / "base", components, tokenizer, np.float32, measure_scale(components["vae"]))
            scale = json.loads((RUNS / "base" / "vae" / "config.json").read_text())["scaling_factor"]
            print(f"scaling factor {scale}", flush=True)
    save(to, components, tokenizer, np.float16, scale)


if __name__ == "__main__":
    commands.run(main)
