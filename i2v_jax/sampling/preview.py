"""Samples of fixed pictures while a model is trained: mp4 files, and gifs beside the curves."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from i2v_jax import media
from i2v_jax.devices.mesh import make_mesh, on_this_host
from i2v_jax.diffusion.noise_schedule import NoiseSchedule
from i2v_jax.encoders import controls as control_networks
from i2v_jax.errors import InputError
from i2v_jax.families.model import Model
from i2v_jax.models.tokenizer import ClipTokenizer
from i2v_jax.sampling.controls.settings import ControlSettings
from i2v_jax.sampling.pipeline import Pipeline
from i2v_jax.sampling.settings import Settings
from i2v_jax.tree import unflatten
from i2v_jax.weights.new_lora import merged

FPS = 8


def settings_of(config: ConfigDict) -> Settings:
    """Returns the sampling settings of a training's config."""
    samples, data = config.samples, config.data
    return Settings(
        height=data.height,
        width=data.width,
        frames=data.frames,
        steps=samples.steps,
        guidance_scale=samples.guidance_scale,
        guidance_rescale=samples.get("guidance_rescale", 0.0),
        sampler=samples.get("sampler", "ddim"),
        sampler_options=tuple((name, samples[name]) for name in ("eta", "spacing") if name in samples),
        fs=samples.get("fs", 0),
        loop=config.objective.get("picture") == "ends",
        t0=samples.t0,
        p=samples.p,
        controls=ControlSettings(process=(config.control.process or "none",)),
    )


def check(samples: ConfigDict) -> None:
    """Raises InputError where pictures and prompts do not pair, or a picture cannot be read."""
    if len(samples.pictures) != len(samples.prompts):
        raise InputError(
            f"samples has {len(samples.pictures)} pictures and {len(samples.prompts)} prompts; wanted as many."
        )
    if samples.every_steps:
        for picture in samples.pictures:
            media.load_picture(picture)


def in_sampling(of_all: Mapping[str, Any]) -> dict[str, Any]:
    """Returns {component: ...} with the ControlNet under the name that a model to sample with has it by."""
    return {control_networks.component(0) if name == "controlnet" else name: it for name, it in of_all.items()}


class Preview:
    """Animates fixed pictures with the weights as they are, on one device of the first process.

    Args:
      config: of the training.
      configs: component -> its network's config.
      tokenizers: text encoder -> its tokenizer.
      frozen: path -> weights that are not trained.
      mesh: where the weights lie.
    """

    def __init__(
        self,
        config: ConfigDict,
        configs: Mapping[str, Any],
        tokenizers: Mapping[str, ClipTokenizer],
        frozen: Mapping[str, jax.Array],
        mesh: jax.sharding.Mesh,
    ):
        self.config, self.configs, self.tokenizers, self.frozen, self.mesh = config, configs, tokenizers, frozen, mesh
        self.settings = settings_of(config)
        self.settings.check_values(NoiseSchedule(**config.noise_schedule))

    def show(self, step: int, trained: Mapping[str, jax.Array], folder: Path, monitor: Any) -> None:
        """Writes an mp4 of each picture, and puts it beside the curves; every process must call it."""
        whole = merged(self.frozen | dict(trained))
        narrow = {path: leaf.astype(self._dtype(path)) for path, leaf in whole.items()}
        weights = unflatten(on_this_host(narrow, self.mesh))
        configs, controls = self.configs, None
        if "controlnet" in configs:  # is shown the picture, which then stands still
            configs, weights = (in_sampling(of_all) for of_all in (configs, weights))
            controls = [tuple(str(picture) for picture in self.config.samples.pictures)]
        if jax.process_index() != 0:
            return
        here = make_mesh({}, jax.local_devices()[:1])
        model = Model(configs, weights, self.tokenizers, NoiseSchedule(**self.config.noise_schedule))
        samples = self.config.samples
        with jax.set_mesh(here):
            videos = Pipeline(model, here)(
                [media.load_picture(picture) for picture in samples.pictures],
                list(samples.prompts),
                list(range(len(samples.pictures))),
                settings=self.settings,
                controls=controls,
            )
        folder.mkdir(parents=True, exist_ok=True)
        for number, video in enumerate(videos):
            media.write_video(folder / f"{step:08d}_{number}.mp4", video, FPS)
            monitor.video(f"samples/{number}", video, step, FPS)

    def _dtype(self, path: str) -> Any:
        return self.configs[path.partition("/")[0]].param_dtype
