"""Animates pictures: python sample.py --config configs/sample/sd15.py --config.image=cat.jpg --config.prompt="a cat"

Writes an mp4, a gif, a contact sheet and a JSON that reproduces the run: `python sample.py --config run.json`.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from i2v_jax import commands, media
from i2v_jax.devices.mesh import make_mesh
from i2v_jax.diffusion.noise_schedule import NoiseSchedule
from i2v_jax.errors import InputError
from i2v_jax.families import few_steps
from i2v_jax.families.arithmetic import choose_dtype
from i2v_jax.families.family import SD15
from i2v_jax.families.model import Model
from i2v_jax.families.weights import Weights
from i2v_jax.sampling import jobs, record
from i2v_jax.sampling.pipeline import Pipeline
from i2v_jax.sampling.settings import Settings
from i2v_jax.weights.assemble import check_prediction_type

DEFAULT = Path(__file__).parent / "configs" / "sample" / "sd15.py"
SUFFIXES = (".mp4", ".gif", ".png", ".json")


def main() -> None:
    config = commands.read_config(DEFAULT, usage=__doc__)
    jax.config.update("jax_compilation_cache_dir", config.compilation_cache)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)

    # Whatever can be wrong is found before anything costly begins.
    jobs.check_seed(config.seed)
    todo = read_jobs(config)
    for job in todo:
        media.load_picture(job.picture)
    settings = Settings.of_config(config)
    schedule = NoiseSchedule(**config.noise_schedule)
    settings.check_values(schedule)
    media.check_fps(config.fps)
    media.check_folder(config.output)
    if config.batch_per_device < 1:
        raise InputError(f"batch_per_device={config.batch_per_device}: wanted 1 or more.")
    weights = Weights.of_config(config.weights)
    weights.check()
    check_prediction_type(weights.of("unet"), schedule.prediction_type)
    few_steps.warn(weights, config.sampler, config.sampler_options.spacing)
    mesh = make_mesh(config.mesh)
    config.dtype = choose_dtype(config.dtype, mesh.devices.flat[0].platform)
    prompts = [prompt for job in todo for prompt in (job.prompt, job.negative_prompt)]
    weights.tokenizer_of(SD15.text.encoders[0]).encode(prompts, config.truncate_prompts)  # the first is alike in all

    model = Model.of_config(config, mesh)
    settings.check(model)
    # takes seconds, while programs compile
    hashing = record.in_background(record.hashes, weights.files(model.family.components(False)))
    pipeline = Pipeline(model, mesh)
    size = config.batch_per_device * mesh.shape["data"] * mesh.shape["fsdp"]
    for first in range(0, len(todo), size):
        batch = todo[first : first + size]
        numbers = f"{first + 1}-{first + len(batch)}" if len(batch) > 1 else first + 1
        videos = animate(pipeline, batch, settings, f"video {numbers} of {len(todo)}")
        for job, frames in zip(batch, videos):
            write(job, media.match_colours(frames) if config.match_colours else frames, config, hashing.result())


def read_jobs(config: ConfigDict) -> list[jobs.Job]:
    """The videos to make: of the one picture, or of the CSV's rows where there is none."""
    common = dict(
        negative_prompt=config.negative_prompt,
        prompt_2=config.prompt_2,
        negative_prompt_2=config.negative_prompt_2,
        seed=config.seed,
    )
    if config.image:
        if config.csv:
            print(f"animating {config.image}, and not the rows of {config.csv}")
        return [jobs.Job(Path(config.image).expanduser(), config.prompt, **common)]
    if not config.csv:
        raise InputError("Name what to animate: --config.image=PICTURE, or --config.csv=FILE.")
    if config.prompt:
        print(f"the prompts are those of {config.csv}, not {config.prompt!r}, which goes with --config.image=PICTURE")
    return jobs.read_jobs(config.csv, **common)


def animate(pipeline: Pipeline, batch: Sequence[jobs.Job], settings: Settings, title: str) -> np.ndarray:
    """The videos of a batch, under a bar."""
    with tqdm(desc=title, unit="step") as bar:

        def on_step(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)
            if done == total:
                bar.close()

        return pipeline(
            [media.load_picture(job.picture) for job in batch],
            [job.prompt for job in batch],
            [job.seed for job in batch],
            [job.negative_prompt for job in batch],
            settings,
            on_step,
            **jobs.second_prompts(batch),
        )


def write(job: jobs.Job, frames: media.Frames, config: ConfigDict, weights: dict[str, str]) -> None:
    """All four files, or none."""
    own = dict(image=str(job.picture), csv=None, prompt=job.prompt, negative_prompt=job.negative_prompt, seed=job.seed)
    own |= dict(prompt_2=job.prompt_2, negative_prompt_2=job.negative_prompt_2)
    run = dict(config=json.loads(config.to_json()) | own, versions=record.versions(), weights=weights)
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
