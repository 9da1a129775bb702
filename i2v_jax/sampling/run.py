"""A run of the sampling command: what is checked, which videos are to be made, and how they are made, under one bar."""

import itertools
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from i2v_jax import media
from i2v_jax.diffusion.noise_schedule import NoiseSchedule
from i2v_jax.encoders import text
from i2v_jax.errors import InputError
from i2v_jax.families.model import Model
from i2v_jax.models.tokenizer import ClipTokenizer
from i2v_jax.sampling import batches, going_on, jobs, long_videos, mivas, prompt_travel, trained_at, underway
from i2v_jax.sampling.controls import given
from i2v_jax.sampling.going_on import load_start
from i2v_jax.sampling.pipeline import Pipeline
from i2v_jax.sampling.progress import Progress, Work
from i2v_jax.sampling.settings import Settings
from i2v_jax.sampling.watch import Watch


def check(config: ConfigDict, todo: Sequence[jobs.Job], schedule: NoiseSchedule) -> None:
    """Raises InputError for what no model can make."""
    for picture in {job.picture for job in todo}:
        load_start(picture)
    for job in todo:
        own = job.config(config)
        settings = Settings.of_config(own)
        settings.check_values(schedule)
        settings.image_prompts.check_values()
        size = (settings.height, settings.width)
        mivas.read_masks(settings.miva_masks, [load_start(job.picture)], size, settings.fit, downscale=1)
        media.check_fps(own.fps)
        going_on.check(job.picture, own.join)
        before = going_on.length(job.picture) - 1 if own.join else 0
        long_videos.check_disk(config.output, settings.passes[-1], before)
    check_controls(config, todo)
    media.check_folder(config.output)
    for key, least in (("batch_per_device", 1), ("preview_every", 0)):
        if config[key] < least:
            raise InputError(f"{key}={config[key]}: wanted {least} or more.")


def check_controls(config: ConfigDict, todo: Sequence[jobs.Job]) -> None:
    """Raises InputError for control pictures that do not pair with networks or frames, or cannot be read."""
    read = set()
    for own in (job.config(config) for job in todo):
        settings, sources = Settings.of_config(own), tuple(given.of_config(own))
        settings.controls.check(len(sources), settings.frames)
        size = (settings.controls, settings.frames, settings.height, settings.width, settings.fit)
        if (sources, size) not in read:
            given.read_all([(source,) for source in sources], *size)
            read.add((sources, size))


def check_prompts(config: ConfigDict, todo: Sequence[jobs.Job], tokenizer: ClipTokenizer) -> None:
    """Checks all prompts, and warns of tokens of embeddings that stand in none.

    Raises:
      InputError: a prompt that is too long, or cannot be read as weighted.
    """
    every = []
    for job in todo:
        settings = Settings.of_config(job.config(config))
        prompts = [*(prompt_travel.parse(settings.prompt_travel).values() or [job.prompt]), job.negative_prompt]
        others = [job.prompt_2 or "", job.negative_prompt_2 or ""]
        if settings.prompt_syntax == "plain":
            tokenizer.encode(prompts + others, settings.truncate_prompts)
        else:
            text.count_chunks({"": tokenizer}, (prompts + others, None), truncate=settings.truncate_prompts)
        every += prompts + others
    if unused := tokenizer.unused(every):
        warnings.warn(
            f"weights.embeddings: no prompt has {', '.join(map(repr, unused))}, so nothing changes by "
            f"{'them' if unused[1:] else 'it'}.",
            stacklevel=2,
        )


def plan(
    config: ConfigDict,
    todo: Sequence[jobs.Job],
    model: Model,
    trained: trained_at.TrainedAt,
    weights: Callable[[], Mapping[str, str]],
) -> list[batches.Video]:
    """Returns the videos, with their settings and files; says which are there, and what the model was not trained at.

    Args:
      config: of the command, whose dtype is decided.
      todo: what is to be made.
      model: that makes it.
      trained: what it was trained at.
      weights: gives the hashes of its files, see `record.hashes`.

    Raises:
      InputError: settings that the model cannot do.
    """
    configs = [job.config(config) for job in todo]
    settings = [Settings.of_config(own) for own in configs]
    second = [job for job in todo if job.prompt_2 or job.negative_prompt_2]
    if second and len(model.family.text.encoders) < 2:
        raise InputError(
            f"{second[0].picture.name} has a prompt for a second text encoder, and {model.family.title} has one. Leave "
            "prompt_2 and negative_prompt_2 out."
        )
    for chosen in dict.fromkeys(settings):
        chosen.check(model)
        for own in chosen.passes:
            long_videos.check_memory(model, own, config.batch_per_device, jax.devices()[0])
        if message := trained_at.departures(trained, chosen):
            warnings.warn(message, stacklevel=2)
    is_batch = len(todo) > 1 or not config.image or Path(config.image).expanduser().is_dir()
    places = batches.stems(config.output, jobs.names(todo), configs, is_batch, weights)
    done = [str(stem) for stem, is_done in places if is_done]
    if done:
        print(f"{len(done)} of {len(todo)} are there already, of the same settings: {', '.join(done)}")
    return [batches.Video(i + 1, *video) for i, video in enumerate(zip(todo, configs, settings, *zip(*places)))]


def animate(
    pipeline: Pipeline, todo: Sequence[batches.Batch], preview_every: int, weights: Callable[[], Mapping[str, str]]
) -> None:
    """Makes and writes the videos of all batches, under one bar.

    Args:
      pipeline: on the batches' model.
      todo: from `batches.batches`.
      preview_every: steps from one contact sheet of what is under way to the next; 0: none.
      weights: see `plan`.
    """
    if not todo:
        return
    works = works_of(todo, pipeline.model)
    with Progress(works) as progress:
        for batch, work in zip(todo, works):
            progress.begin(work)
            stems = [video.stem for video in batch.videos]
            pictures = [load_start(video.job.picture) for video in batch.videos]
            watch = Watch(progress.on_stage, progress.on_step)
            if preview_every:
                show = partial(underway.show, pipeline, pictures, stems, batch.settings)
                watch = watch._replace(on_latents=show, latents_every=preview_every)
            try:
                for video, frames in frames_of(pipeline, batch, pictures, watch):
                    stem = batches.write(video, frames, weights())
                    progress.say(f"{stem}{'  '.join(batches.SUFFIXES)}")
            finally:
                underway.remove(stems if preview_every else [])
            progress.end()


def frames_of(
    pipeline: Pipeline, batch: batches.Batch, pictures: Sequence[media.Picture], watch: Watch
) -> Iterator[tuple[batches.Video, Iterator[media.Picture]]]:
    """Returns a batch's videos, and the frames of each as they are decoded, in the colours that its config asks for.

    The frames of one are to be taken before the next.
    """
    of_batch = [video.job for video in batch.videos]
    latents = pipeline.latents(
        pictures,
        [job.prompt for job in of_batch],
        [job.seed for job in of_batch],
        [job.negative_prompt for job in of_batch],
        batch.settings,
        watch=watch,
        batch_size=batch.size,
        controls=list(zip(*(given.of_config(video.config) for video in batch.videos))),
        **jobs.second_prompts(of_batch),
    )
    frames = decoded(pipeline, latents, batch.settings, watch)
    for video in batch.videos:
        own = itertools.islice(frames, batch.settings.frames)
        yield video, media.matched_colours(own) if video.config.match_colours else own


def decoded(pipeline: Pipeline, latents: Any, settings: Settings, watch: Watch) -> Iterator[media.Picture]:
    """Returns the frames of videos one by one, as they are decoded; writing begins in earnest at the last one."""
    last = latents.shape[0] * latents.shape[1] - 1
    frames = itertools.chain.from_iterable(pipeline.decode_slices(latents, settings, watch))
    for number, frame in enumerate(frames):
        if number == last:
            watch.on_stage("writing", False)
        yield frame


def chunks_of(pipeline: Pipeline, video: batches.Video) -> int:
    """Returns how many chunks of tokens a video's prompts take; only those of as many are sampled together."""
    job = video.job
    texts = jobs.second_prompts([job])
    return pipeline.count_chunks([job.prompt], [job.negative_prompt], **texts, settings=video.settings)[0]


def works_of(todo: Sequence[batches.Batch], model: Model) -> list[Work]:
    """Returns what each batch takes, for the bar."""
    count, first, works = sum(len(batch.videos) for batch in todo), 1, []
    for batch in todo:
        last = first + len(batch.videos) - 1
        title = f"video {first}-{last} of {count}" if last > first else f"video {first} of {count}"
        settings = batch.settings.passes[-1]
        pixels = batch.size * settings.frames * settings.height * settings.width
        works.append(Work(title, sum(own.count_steps(model) for own in batch.settings.passes), pixels))
        first = last + 1
    return works
