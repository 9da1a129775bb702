"""Animates pictures: python sample.py --config configs/sample/sd15.py --config.image=cat.jpg --config.prompt="a cat"

Writes an mp4, a gif, a contact sheet and a JSON that reproduces the run: `python sample.py --config run.json`.
"""

import json
import sys
from importlib import metadata
from pathlib import Path

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
from tqdm import tqdm

from i2v_jax import __version__, commands, jobs, media, parallel
from i2v_jax.diffusion.noise_schedule import NoiseSchedule
from i2v_jax.errors import InputError, nearest
from i2v_jax.pipeline import Models, Pipeline, Settings
from i2v_jax.weights.files import open_tensors, sha256

DEFAULT = Path(__file__).parent / "configs" / "sample" / "sd15.py"
SUFFIXES = (".mp4", ".gif", ".png", ".json")
DTYPES = ("float32", "bfloat16", "float16")


def main() -> None:
    config = commands.read_config(DEFAULT, usage=__doc__)
    jax.config.update("jax_compilation_cache_dir", config.compilation_cache)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)

    # Everything cheap is checked before anything costly begins.
    todo = read_jobs(config)
    pictures = [media.load_picture(job.picture) for job in todo]
    media.check_fps(config.fps)
    if config.batch_per_device < 1:
        raise InputError(f"batch_per_device={config.batch_per_device}: wanted 1 or more.")
    stems = [media.free_stem(config.output, job.picture.stem, SUFFIXES) for job in todo[:1]]
    settings = read_settings(config)
    mesh = parallel.make_mesh(config.mesh)

    print(f"loading weights onto {mesh.devices.size} {mesh.devices.flat[0].device_kind}", flush=True)
    models = load_models(config, mesh)
    settings.check(models)
    pipeline = Pipeline(models, mesh)
    record = dict(config=json.loads(config.to_json()), versions=versions(), weights=hashes(config))

    size = config.batch_per_device * mesh.shape["data"] * mesh.shape["fsdp"]
    for first in range(0, len(todo), size):
        batch = todo[first : first + size]
        with tqdm(desc=f"video {first + 1}-{first + len(batch)} of {len(todo)}", unit="step") as bar:

            def on_step(done: int, total: int, bar=bar) -> None:
                bar.total = total
                bar.update(done - bar.n)

            videos = pipeline(
                pictures[first : first + size],
                [job.prompt for job in batch],
                [job.seed for job in batch],
                [job.negative_prompt for job in batch],
                settings,
                on_step,
            )
        for job, picture, frames in zip(batch, pictures[first:], videos):
            if config.match_colours:
                frames = media.match_colours(frames)
            stem = stems.pop() if stems else media.free_stem(config.output, job.picture.stem, SUFFIXES)
            write(stem, job, picture, frames, config, record)
            print(f"{stem}.mp4  .gif  .png  .json")


def read_jobs(config: ConfigDict) -> list[jobs.Job]:
    """The videos to make: the rows of the CSV, or the one picture."""
    if (config.image is None) == (config.csv is None):
        raise InputError("Name what to animate: --config.image=PICTURE, or --config.csv=FILE, one of them.")
    if config.csv is not None:
        return jobs.read_jobs(config.csv, config.negative_prompt, config.seed)
    if not 0 <= config.seed <= jobs.MAX_SEED:
        raise InputError(f"seed={config.seed}: wanted 0 to {jobs.MAX_SEED}.")
    return [jobs.Job(Path(config.image), config.prompt, config.negative_prompt, config.seed)]


def read_settings(config: ConfigDict) -> Settings:
    names = Settings.__dataclass_fields__.keys() - {"sampler_options"}
    options = tuple(sorted(config.sampler_options.items()))
    return Settings(**{name: config[name] for name in names}, sampler_options=options)


def load_models(config: ConfigDict, mesh: jax.sharding.Mesh) -> Models:
    if config.dtype not in DTYPES:
        raise InputError(f"dtype={config.dtype!r}; known: {', '.join(DTYPES)}.{nearest(config.dtype, DTYPES)}")
    by_hand = {name: config[name] for name in ("attention", "convolution") if config[name] != "auto"}
    return Models.load(
        **config.weights,
        schedule=NoiseSchedule(**config.noise_schedule),
        dtype=jnp.dtype(config.dtype),
        mesh=mesh,
        **by_hand,
    )


def hashes(config: ConfigDict) -> dict[str, str]:
    """SHA-256 of every weights file that is read."""
    weights = config.weights
    sources = [(weights[name] or weights.base, name) for name in ("unet", "vae", "text_encoder")]
    sources += [(weights[n], n) for n in ("motion", "adapter", "image_adapter", "image_encoder") if weights[n]]
    return {str(file): sha256(file) for source, folder in sources for file in open_tensors(source, folder).files()}


def versions() -> dict[str, str]:
    packages = ("jax", "jaxlib", "flax", "numpy", "av")
    return {"i2v_jax": __version__, "python": sys.version.split()[0]} | {p: metadata.version(p) for p in packages}


def write(stem: Path, job: jobs.Job, picture, frames, config: ConfigDict, record: dict) -> None:
    """All four files, or none."""
    own = dict(image=str(job.picture), csv=None, prompt=job.prompt, negative_prompt=job.negative_prompt, seed=job.seed)
    run = record | dict(config=record["config"] | own)
    media.write_files(
        {
            f"{stem}.mp4": media.encode_video(frames, config.fps),
            f"{stem}.gif": media.encode_gif(frames, config.fps),
            f"{stem}.png": media.encode_png(media.contact_sheet(picture, frames)),
            f"{stem}.json": (json.dumps(run, indent=1) + "\n").encode(),
        }
    )


if __name__ == "__main__":
    commands.run(main)
