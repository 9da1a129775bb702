"""Makes the videos of a set by a model, for `cli.evaluate_set`: those that are not there yet, each written at once."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict
from tqdm import tqdm

from i2v_jax import commands, media
from i2v_jax.diffusion.noise_schedule import NoiseSchedule
from i2v_jax.errors import InputError
from i2v_jax.evaluation.journal import key_of
from i2v_jax.evaluation.runs import Compared, folder_name, read_run
from i2v_jax.evaluation.sets import Item, stamp
from i2v_jax.families.arithmetic import choose_dtype
from i2v_jax.families.checks import check_schedule
from i2v_jax.families.model import Model
from i2v_jax.families.weights import Weights
from i2v_jax.sampling.pipeline import Pipeline
from i2v_jax.sampling.settings import Settings

SAMPLE = commands.ROOT / "configs" / "sample"
OF_MODEL = ("weights", "noise_schedule", "dtype", "attention", "convolution", "mivas")
"""Keys of a config that the model is made of."""


class Sampled(NamedTuple):
    """A run whose videos are made: the config of its model, and its settings."""

    labels: Mapping[str, Any]
    config: ConfigDict
    settings: Settings


class Sampler:
    """Makes videos of a set's items; one model is loaded at a time."""

    def __init__(self, config: ConfigDict, items: Sequence[Item], mesh: jax.sharding.Mesh):
        """Takes the command's config, what to animate and where."""
        self.config, self.items, self.mesh = config, items, mesh
        self._loaded: tuple[str, Pipeline] | None = None

    def checked(self, one: Compared) -> tuple[Mapping[str, Any], Sampled | str]:
        """Returns a run's labels, and what to sample or the folder of its videos.

        Raises:
          InputError: a config or settings that cannot be, missing weights, or items without a picture.
        """
        if one.videos:
            return one.labels, one.videos
        config = self.config
        if one.config:
            config = commands.load_config(one.config, commands.load_config(SAMPLE / "sd15.py"), SAMPLE)
        config = config.copy_and_resolve_references()
        config.dtype = choose_dtype(config.dtype, self.mesh.devices.flat[0].platform)
        base = Settings.of_config(config)
        name = f"{next(iter(one.labels.values()))}:" if one.labels else ""
        labels, settings = read_run(f"{name} {one.settings}" if name else one.settings, self.config.header, base)
        settings.check_values(NoiseSchedule(**config.noise_schedule))
        weights = Weights.of_run(config)
        if weights.controls:
            raise InputError(f"weights.controls={weights.controls}: pictures of a set have no control pictures.")
        weights.check()
        check_schedule(weights, config.noise_schedule)
        if lacking := next((item.name for item in self.items if item.picture is None), None):
            raise InputError(f"{lacking} has no picture to animate. Give pictures by --config.source.")
        return labels, Sampled(labels, config, settings)

    def videos(self, run: Sampled) -> dict[str, Path]:
        """Returns the run's video of each item; makes those that are not there."""
        files = Weights.of_run(run.config).files()
        key = key_of(_of_result(run), [stamp(Path(file)) for file in files], self.config.with_prompts, self.config.seed)
        folder = Path(self.config.output).expanduser() / self.config.name / folder_name(run.labels, key)
        paths = {
            item.name: folder / f"{item.name}-{key_of(item.prompt, item.identity, number)[:8]}.mp4"
            for number, item in enumerate(self.items)
        }
        todo = [(number, item) for number, item in enumerate(self.items) if not paths[item.name].exists()]
        if todo:
            self._animate(run, todo, paths)
        return paths

    def _animate(self, run: Sampled, todo: Sequence[tuple[int, Item]], paths: Mapping[str, Path]) -> None:
        pipeline, config = self._pipeline(run.config), run.config
        run.settings.check(pipeline.model)
        size = self.config.batch_per_device * self.mesh.shape["data"] * self.mesh.shape["fsdp"]
        title = ", ".join(map(str, run.labels.values()))
        for first in tqdm(range(0, len(todo), size), desc=f"animating by {title}", unit="batch"):
            batch = todo[first : first + size]
            made = pipeline(
                [item.picture() for _, item in batch],
                [item.prompt or "" if self.config.with_prompts else "" for _, item in batch],
                [(self.config.seed + number) % 2**32 for number, _ in batch],
                [config.negative_prompt] * len(batch),
                run.settings,
            )
            for (_, item), frames in zip(batch, made):
                frames = media.match_colours(frames) if config.match_colours else frames
                media.write_video(paths[item.name], frames, config.fps, overwrite=True)

    def _pipeline(self, config: ConfigDict) -> Pipeline:
        key = key_of({name: _plain(config[name]) for name in OF_MODEL if name in config})
        if self._loaded is None or self._loaded[0] != key:
            self._loaded = None  # its memory is free before the next one's is taken
            self._loaded = key, Pipeline(Model.of_config(config, self.mesh), self.mesh)
        return self._loaded[1]


def _of_result(run: Sampled) -> dict[str, Any]:
    """All that a video depends on but for its item and seed."""
    names = (*OF_MODEL, "negative_prompt", "match_colours", "fps")
    return {name: _plain(run.config[name]) for name in names if name in run.config} | {"settings": str(run.settings)}


def _plain(value: Any) -> Any:
    return value.to_dict() if isinstance(value, ConfigDict) else value
