"""Does the page's runs with the same functions as `sample.py`: models that are loaded, programs that are compiled."""

import contextlib
import dataclasses
import gc
import io
import os
import warnings
from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from i2v_jax import media
from i2v_jax.devices.compile_cache import use_compile_cache
from i2v_jax.devices.mesh import make_mesh
from i2v_jax.diffusion.noise_schedule import NoiseSchedule
from i2v_jax.families.arithmetic import choose_dtype
from i2v_jax.families.model import Model
from i2v_jax.families.weights import Weights
from i2v_jax.page.desk import Run
from i2v_jax.page.dials import NONE, Offers, Request
from i2v_jax.page.history import PICTURE, Entry, History
from i2v_jax.page.options import Options
from i2v_jax.sampling import batches, record, trained_at, underway
from i2v_jax.sampling import run as sampling
from i2v_jax.sampling.jobs import Job
from i2v_jax.sampling.pipeline import Pipeline
from i2v_jax.sampling.progress import COMPILING, Progress
from i2v_jax.sampling.watch import Watch
from i2v_jax.weights.assemble import return_freed_memory

PREVIEWS = 5  # of a run
WINDOW = 16  # frames that a model sees at a time in longer videos, where it is not known what it was trained at


@dataclasses.dataclass(frozen=True)
class Task:
    """What the studio is asked for.

    Attributes:
      request: checked.
      picture: as it is animated, cropped.
    """

    request: Request
    picture: media.Picture


@dataclasses.dataclass
class Loaded:
    """A model in memory, and which settings its pipeline has compiled programs for."""

    model: Model
    pipeline: Pipeline
    trained: trained_at.TrainedAt
    hashes: Future
    programs: set[Any]


class Studio:
    """Makes videos, one at a time."""

    def __init__(self, options: Options, config: ConfigDict, history: History):
        """Args:
        options: of the page.
        config: of sampling, from which all runs begin.
        history: where they are kept.

        Raises:
          InputError: a model that cannot be loaded, as of `sample.py`.
        """
        use_compile_cache(config.compilation_cache)
        self.options, self.history = options, history
        self.mesh = make_mesh(config.mesh)
        self.config = config.copy_and_resolve_references()
        with self.config.unlocked():
            self.config.dtype = choose_dtype(config.dtype, self.mesh.devices.flat[0].platform)
        self.schedule = NoiseSchedule(**config.noise_schedule)
        self._models: OrderedDict[tuple[str, ...], Loaded] = OrderedDict()
        loaded = self._load(self.config)
        self._models[NONE, NONE, "", NONE] = loaded
        self.knows = loaded.trained.knows
        self.offers = Offers(options, self.config, loaded.model.max_frames, window_of(loaded))

    def animate(self, run: Run) -> Entry:
        """Makes the video of a task, and returns it; tells the run how far it is.

        Raises:
          InputError: what cannot be made.
          Cancelled: the run was asked to stop; nothing of it is left.
        """
        stem = self.history.new()
        picture, request = Path(f"{stem}{PICTURE}"), run.task.request
        try:
            run.stage = "loading the model"
            media.write_png(picture, run.task.picture)
            config = self.offers.config_of(request, picture, self.history.folder)
            with self._telling(run):
                self._make(run, config, stem)
        except BaseException:
            picture.unlink(missing_ok=True)
            raise
        self.history.prune()
        return self.history.entry(stem.name)

    def _make(self, run: Run, config: ConfigDict, stem: Path) -> None:
        picture, request = Path(config.image), run.task.request
        seconds = dict(prompt_2=config.prompt_2, negative_prompt_2=config.negative_prompt_2)
        job = Job(picture, request.prompt, request.negative_prompt, request.seed, name=stem.name, **seconds)
        sampling.check(config, [job], self.schedule)
        loaded = self._model(request, config)
        run.stop_if_cancelled()
        sampling.check_prompts(config, [job], next(iter(loaded.model.tokenizers.values())))
        (video,) = sampling.plan(config, [job], loaded.model, loaded.trained, loaded.hashes.result)
        pipeline = self._pipeline(loaded, video)
        size = self.mesh.shape["data"] * self.mesh.shape["fsdp"]
        (batch,) = batches.batches([video], size)
        with self._watched(run, pipeline, batch) as watch:
            pictures = [media.load_picture(picture)]
            for video, frames in sampling.frames_of(pipeline, batch, pictures, watch):
                batches.write(video, stoppable(frames, run), loaded.hashes.result())

    def _model(self, request: Request, config: ConfigDict) -> Loaded:
        """The model of a request; of those in memory, the ones that were not asked for longest make place."""
        strength = request.strength if request.style != NONE else ""
        key = request.base, request.style, strength, request.learned_motion
        if key not in self._models:
            while len(self._models) >= self.options.most_models:
                self._models.popitem(last=False)
                forget()
            self._models[key] = self._load(config)
        self._models.move_to_end(key)
        return self._models[key]

    def _load(self, config: ConfigDict) -> Loaded:
        weights = Weights.of_run(config)
        weights.check()
        model = Model.of_config(config, self.mesh)
        hashes = record.in_background(record.hashes, weights.files(model.family.components(False)))
        return Loaded(model, Pipeline(model, self.mesh), trained_at.of_model(weights, model), hashes, set())

    def _pipeline(self, loaded: Loaded, video: batches.Video) -> Pipeline:
        """The model's pipeline; a new one, without programs, where it would keep too many."""
        settings = video.settings
        key = settings.height, settings.width, settings.frames, settings.steps
        if key not in loaded.programs and len(loaded.programs) >= self.options.most_programs:
            loaded.pipeline, loaded.programs = Pipeline(loaded.model, self.mesh), set()
            forget()
        loaded.programs.add(key)
        return loaded.pipeline

    @contextlib.contextmanager
    def _watched(self, run: Run, pipeline: Pipeline, batch: batches.Batch) -> Iterator[Watch]:
        """What tells a run of its progress, and stops it between steps."""
        (work,), stems = sampling.works_of([batch], pipeline.model), [video.stem for video in batch.videos]
        show = partial(underway.show, pipeline, [run.task.picture], stems, batch.settings)
        run.total = work.steps
        with open(os.devnull, "w") as nowhere, Progress([work], file=nowhere) as progress:

            def on_stage(stage: str, compiles: bool) -> None:
                run.stop_if_cancelled()
                progress.on_stage(stage, compiles)
                run.stage = COMPILING if compiles else stage

            def on_step(done: int, total: int) -> None:
                run.stop_if_cancelled()
                progress.on_step(done, total)
                run.done, run.seconds_left = done, progress.time_left.seconds()

            def on_latents(done: int, total: int, latents: Any) -> None:
                run.stop_if_cancelled()
                if done < total:  # then the video itself is near
                    show(done, total, latents)
                    run.preview = as_jpeg(underway.sheet_path(stems[0]))

            every = self.options.preview_steps or max(1, work.steps // PREVIEWS)
            progress.begin(work)
            try:
                yield Watch(on_stage, on_step, on_latents, every)
            finally:
                underway.remove(stems)

    @contextlib.contextmanager
    def _telling(self, run: Run) -> Iterator[None]:
        """Puts what a command would warn of among the notes of a run."""
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("ignore")
            warnings.simplefilter("always", UserWarning)
            yield
        run.notes += dict.fromkeys(str(warning.message) for warning in found)


def window_of(loaded: Loaded) -> int:
    """Returns how many frames a model sees at a time in videos longer than it makes at once; 0: it makes none."""
    most = loaded.model.max_frames
    if most is None or loaded.model.family.has_picture:
        return 0
    return min(most, loaded.trained.frames[1] if loaded.trained.frames else WINDOW)


def as_jpeg(path: Path) -> bytes:
    """Returns a picture's file as a JPEG, which is soon sent."""
    buffer = io.BytesIO()
    Image.fromarray(media.load_picture(path)).save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def stoppable(frames: Iterator[media.Picture], run: Run) -> Iterator[np.ndarray]:
    """Returns the frames of a run, which stops between them where it is asked to."""
    for frame in frames:
        run.stop_if_cancelled()
        yield frame


def forget() -> None:
    """Gives back the memory of models and programs that nothing refers to any more."""
    gc.collect()
    jax.clear_caches()
    gc.collect()
    return_freed_memory()
