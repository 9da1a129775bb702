"""Animates pictures: python sample.py --config configs/sample/sd15.py --config.image=cat.jpg --config.prompt="a cat"

Writes an mp4, a gif, a contact sheet and a JSON that reproduces the run: `python sample.py --config run.json`.
"""

import json
import sys
from concurrent.futures import ThreadPoolExecutor
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
DTYPES = ("float32", "bfloat16")


def main() -> None:
    config = commands.read_config(DEFAULT, usage=__doc__)
    jax.config.update("jax_compilation_cache_dir", config.compilation_cache)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)

    # Whatever can be wrong is found before anything costly begins.
    jobs.check_seed(config.seed)
    todo = read_jobs(config)
    for job in todo:
        media.load_picture(job.picture)
    settings = read_settings(config)
    settings.check_values(NoiseSchedule(**config.noise_schedule))
    media.check_fps(config.fps)
    media.check_folder(config.output)
    if config.batch_per_device < 1:
        raise InputError(f"batch_per_device={config.batch_per_device}: wanted 1 or more.")
    mesh = parallel.make_mesh(config.mesh)

    models = load_models(config, mesh)
    settings.check(models)
    prompts = [prompt for job in todo for prompt in (job.prompt, job.negative_prompt)]
    models.tokenizer.encode(prompts, config.truncate_prompts)

    pipeline = Pipeline(models, mesh)
    hashing = ThreadPoolExecutor(1).submit(hashes, config)  # takes seconds, while programs compile
    size = config.batch_per_device * mesh.shape["data"] * mesh.shape["fsdp"]
    for first in range(0, len(todo), size):
        batch = todo[first : first + size]
        numbers = f"{first + 1}-{first + len(batch)}" if len(batch) > 1 else first + 1
        with tqdm(desc=f"video {numbers} of {len(todo)}", unit="step") as bar:

            def on_step(done: int, total: int, bar=bar) -> None:
                bar.total = total
                bar.update(done - bar.n)
                if done == total:
                    bar.close()

            videos = pipeline(
                [media.load_picture(job.picture) for job in batch],
                [job.prompt for job in batch],
                [job.seed for job in batch],
                [job.negative_prompt for job in batch],
                settings,
                on_step,
            )
        for job, frames in zip(batch, videos):
            write(job, media.match_colours(frames) if config.match_colours else frames, config, hashing.result())


def read_jobs(config: ConfigDict) -> list[jobs.Job]:
    """The videos to make: the rows of the CSV, or the one picture."""
    if bool(config.image) == bool(config.csv):
        raise InputError("Name what to animate: --config.image=PICTURE, or --config.csv=FILE, one of them.")
    if config.csv:
        return jobs.read_jobs(config.csv, config.negative_prompt, config.seed)
    return [jobs.Job(Path(config.image).expanduser(), config.prompt, config.negative_prompt, config.seed)]


def read_settings(config: ConfigDict) -> Settings:
    names = Settings.__dataclass_fields__.keys() - {"sampler_options"}
    options = tuple(sorted(config.sampler_options.items()))
    return Settings(**{name: config[name] for name in names}, sampler_options=options)


def load_models(config: ConfigDict, mesh: jax.sharding.Mesh) -> Models:
    if config.dtype not in DTYPES:
        raise InputError(f"dtype={config.dtype!r}; known: {', '.join(DTYPES)}.{nearest(config.dtype, DTYPES)}")
    print(f"loading weights onto {mesh.devices.size} {mesh.devices.flat[0].device_kind}", flush=True)
    return Models.load(
        **{part: source or None for part, source in config.weights.items()},
        schedule=NoiseSchedule(**config.noise_schedule),
        dtype=jnp.dtype(config.dtype),
        attention=config.attention,
        convolution=config.convolution,
        mesh=mesh,
    )


def hashes(config: ConfigDict) -> dict[str, str]:
    """SHA-256 of every weights file that was read."""
    weights = config.weights
    sources = [(weights[part] or weights.base, part) for part in ("unet", "vae", "text_encoder")]
    # where each part lies when its source is the folder of a pipeline
    folders = dict(motion="motion_adapter", adapter="unet", image_adapter="image_proj", image_encoder="image_encoder")
    sources += [(weights[part], folder) for part, folder in folders.items() if weights[part]]
    return {str(file): sha256(file) for source, folder in sources for file in open_tensors(source, folder).files()}


def versions() -> dict[str, str]:
    packages = ("jax", "jaxlib", "flax", "numpy", "pillow", "av")
    return {"i2v_jax": __version__, "python": sys.version.split()[0]} | {p: metadata.version(p) for p in packages}


def write(job: jobs.Job, frames: media.Frames, config: ConfigDict, weights: dict[str, str]) -> None:
    """All four files, or none."""
    own = dict(image=str(job.picture), csv=None, prompt=job.prompt, negative_prompt=job.negative_prompt, seed=job.seed)
    run = dict(config=json.loads(config.to_json()) | own, versions=versions(), weights=weights)
    sheet = media.contact_sheet(media.load_picture(job.picture), frames)
    contents = (
        media.encode_video(frames, config.fps),
        media.encode_gif(frames, config.fps),
        media.encode_png(sheet),
        (json.dumps(run, indent=1) + "\n").encode(),
    )
    stem = media.free_stem(config.output, job.picture.stem, SUFFIXES)
    media.write_files({f"{stem}{suffix}": content for suffix, content in zip(SUFFIXES, contents)})
    print(f"{stem}.mp4  .gif  .png  .json")


if __name__ == "__main__":
    commands.run(main)
