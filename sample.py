"""Animates pictures: python sample.py --config configs/sample/sd15.py --config.image=cat.jpg --config.prompt="a cat"

Writes an mp4, a gif, a contact sheet and a JSON that reproduces the run: `python sample.py --config run.json`.
"""

import json
import sys
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
from tqdm import tqdm

from i2v_jax import __version__, commands, media
from i2v_jax.devices.mesh import make_mesh
from i2v_jax.diffusion.noise_schedule import NoiseSchedule
from i2v_jax.errors import InputError, nearest
from i2v_jax.models.tokenizer import ClipTokenizer
from i2v_jax.sampling import jobs
from i2v_jax.sampling.pipeline import Models, Pipeline, Settings
from i2v_jax.weights import assemble as load
from i2v_jax.weights.storage.open import check_reader, open_tensors
from i2v_jax.weights.tensors import sha256

DEFAULT = Path(__file__).parent / "configs" / "sample" / "sd15.py"
SUFFIXES = (".mp4", ".gif", ".png", ".json")
DTYPES = ("auto", "float32", "bfloat16")
BASE_PARTS = ("unet", "vae", "text_encoder", "tokenizer")
PART_FOLDERS = (  # what is read of each part of the weights, when its source is the folder of a pipeline
    ("unet", "unet"),
    ("vae", "vae"),
    ("text_encoder", "text_encoder"),
    ("motion", "motion_adapter"),
    ("adapter", "unet"),
    ("image_adapter", "unet"),
    ("image_adapter", "image_proj"),
    ("image_encoder", "image_encoder"),
)


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
    check_weights(config.weights)
    load.check_prediction_type(config.weights.unet or config.weights.base, config.noise_schedule.prediction_type)
    mesh = make_mesh(config.mesh)
    config.dtype = choose_dtype(config.dtype, mesh.devices.flat[0].platform)
    tokenizer = load_tokenizer(config.weights)
    tokenizer.encode([prompt for job in todo for prompt in (job.prompt, job.negative_prompt)], config.truncate_prompts)

    models = load_models(config, mesh, tokenizer)
    settings.check(models)
    hashing = in_background(hashes, weight_files(config.weights))  # takes seconds, while programs compile
    pipeline = Pipeline(models, mesh)
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
    """The videos to make: of the one picture, or of the CSV's rows where there is none."""
    if config.image:
        if config.csv:
            print(f"animating {config.image}, and not the rows of {config.csv}")
        return [jobs.Job(Path(config.image).expanduser(), config.prompt, config.negative_prompt, config.seed)]
    if not config.csv:
        raise InputError("Name what to animate: --config.image=PICTURE, or --config.csv=FILE.")
    if config.prompt:
        print(f"the prompts are those of {config.csv}, not {config.prompt!r}, which goes with --config.image=PICTURE")
    return jobs.read_jobs(config.csv, config.negative_prompt, config.seed)


def read_settings(config: ConfigDict) -> Settings:
    names = Settings.__dataclass_fields__.keys() - {"sampler_options"}
    options = tuple(sorted(config.sampler_options.items()))
    return Settings(**{name: config[name] for name in names}, sampler_options=options)


def check_weights(weights: ConfigDict) -> None:
    """Raises InputError for what can be told of the weights before anything is fetched or loaded."""
    lacking = [part for part in BASE_PARTS if not weights[part]]
    if lacking and not weights.base:
        raise InputError(
            f"Nothing gives the {', '.join(lacking)}: set --config.weights.base to the folder or hub id of a model, "
            f"or each of {', '.join(f'weights.{part}' for part in BASE_PARTS)}."
        )
    for source, folder in sources(weights):
        check_reader(source, folder)


def choose_dtype(name: str, platform: str) -> str:
    if name not in DTYPES:
        raise InputError(f"dtype={name!r}; known: {', '.join(DTYPES)}.{nearest(name, DTYPES)}")
    if name == "auto":
        return "float32" if platform == "cpu" else "bfloat16"
    return name


def load_tokenizer(weights: ConfigDict) -> ClipTokenizer:
    return ClipTokenizer.from_pretrained(weights.tokenizer or weights.base, "" if weights.tokenizer else "tokenizer")


def load_models(config: ConfigDict, mesh: jax.sharding.Mesh, tokenizer: ClipTokenizer) -> Models:
    print(f"loading weights onto {mesh.devices.size} {mesh.devices.flat[0].device_kind}", flush=True)
    return Models.load(
        **{part: source or None for part, source in config.weights.items()}
        | dict(tokenizer=tokenizer, trained=tuple(config.weights.trained)),
        schedule=NoiseSchedule(**config.noise_schedule),
        dtype=jnp.dtype(config.dtype),
        attention=config.attention,
        convolution=config.convolution,
        mesh=mesh,
    )


def sources(weights: ConfigDict) -> list[tuple[str, str]]:
    """Whatever `Models.load` opens: sources, and the folder to read in each that is the folder of a pipeline."""
    named = [(weights[part] or (weights.base if part in BASE_PARTS else ""), folder) for part, folder in PART_FOLDERS]
    if not weights.image_adapter:  # then nothing looks at the picture's tokens
        named = [(source, folder) for source, folder in named if folder != "image_encoder"]
    named += [(source, "") for source in weights.trained]
    return [(source, folder) for source, folder in named if source]


def weight_files(weights: ConfigDict) -> list[Path]:
    return sorted({file for source, folder in sources(weights) for file in open_tensors(source, folder).files()})


def hashes(files: Iterable[Path]) -> dict[str, str]:
    return {str(file): sha256(file) for file in files}


def in_background(function: Callable[..., Any], *arguments: Any) -> Future:
    """Calls a function in a thread that the end of the process does not wait for."""
    future = Future()

    def work() -> None:
        try:
            future.set_result(function(*arguments))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    return future


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
