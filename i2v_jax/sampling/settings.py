"""What a run of sampling is given beside picture, prompts and seed, and whether a model can do it."""

import math
from dataclasses import dataclass
from typing import Any

from ml_collections import ConfigDict

from i2v_jax.diffusion import samplers
from i2v_jax.diffusion.free_init import FreeInit, warn_if_nothing_is_kept
from i2v_jax.diffusion.noise_schedule import NoiseSchedule
from i2v_jax.diffusion.windows import Windows
from i2v_jax.encoders.emphasis import check_emphasis
from i2v_jax.encoders.picture_input import LIKENESS
from i2v_jax.encoders.prompt_syntax import check_syntax
from i2v_jax.encoders.sizes import Pair
from i2v_jax.errors import InputError, nearest
from i2v_jax.families.model import Model
from i2v_jax.media import FITS
from i2v_jax.sampling import from_picture, long_videos, mivas, second_pass
from i2v_jax.sampling.controls.settings import ControlSettings
from i2v_jax.sampling.image_prompts import ImagePrompts
from i2v_jax.sampling.second_pass import SecondPass

SIZES = ("original_size", "crop", "target_size", "negative_original_size", "negative_crop", "negative_target_size")

OF_RUN = ("truncate_prompts", "vae_slice", "miva_masks")  # not a row's own
OF_FILES = ("fps", "match_colours", "join")
GROUPS = ("sampler_options", "sizes", "free_init", "second_pass", "controls", "image_prompts", "windows")


def row_settings(config: ConfigDict) -> dict[str, Any]:
    """Returns the keys of a sampling command's config that each row of a batch may have a value of its own for."""
    names = [name for name in Settings.__dataclass_fields__ if name not in (*OF_RUN, *GROUPS, *SIZES)]
    found = {name: config[name] for name in (*names, *OF_FILES) if name in config}
    for group in GROUPS:
        found |= {f"{group}.{name}": value for name, value in config.get(group, {}).items()}
    return found


@dataclass(frozen=True)
class Settings:
    """Settings of a run. The defaults are the published code's.

    Attributes:
      height, width: of the video, pixels; multiples of the VAE's factor (8).
      frames: 1 .. positions of the motion modules; with windows any number.
      steps: sampling steps of a whole run.
      guidance_scale: strength of classifier-free guidance; 1 or less runs without it, at half the cost.
      image_guidance_scale: of DynamiCrafter: strength of guidance by the picture, that by the prompt being
        `guidance_scale`, see `diffusion.guidance.guide_apart`; 0: `guidance_scale` is of both.
      guidance_rescale: phi of `diffusion.guidance.rescale`, 0 .. 1.
      sampler, sampler_options: see `diffusion.samplers.make`.
      t0: strength of the Frame Similarity Prior's noise in (0, 1]; 1 runs every step, less starts later.
      p: the prior's share of unblurred elements, 0 .. 1.
      deep_cache_every: steps from one that runs the whole UNet to the next, see `feature_reuse`; 1: all do.
      free_init: how often a run begins again from what it made, see `diffusion.free_init`.
      second_pass: whether the video is made again at a larger size, from what was made, see `sampling.second_pass`.
      windows: of frames that the network sees at a time, for videos of any length, see `diffusion.windows`.
      prompt_travel: prompts by frame in the place of the prompt, see `prompt_travel.parse`; "": none.
      adapter_scale, image_token_scale: strength of the first-frame and image-token branches; 1 as trained.
      text_in_time_scale: strength of a text-in-time adapter, where the model has one; 1 as trained.
      motion_scale: which motion PIA makes, and how much, a row of `encoders.picture_input.LIKENESS`.
      fs: of DynamiCrafter: the frame rate that it is told (of the 256 model the stride between frames); 0: its default.
      last_picture: of DynamiCrafter: file of the picture that the last frame shows; "": the animated one is in all.
      loop: of DynamiCrafter: the last frame shows the animated picture too, and those between are free.
      analytic_init: of DynamiCrafter: file of statistics that the run begins from, see `diffusion.ldm_ddim`; "": noise.
      fit: how a picture of another aspect comes to `height` x `width`, see `media.fit_picture`.
      truncate_prompts: cut a prompt of more than 77 tokens with a warning, in place of an error.
      prompt_syntax: "plain"; or "weighted": parentheses weigh words, and prompts may be long, see
        `encoders.prompt_syntax`.
      prompt_weighting: what weights do, see `encoders.emphasis`.
      clip_skip: last layers of the text encoders to leave out, as diffusers counts them; 0: as trained.
      miva_masks: where each MIVA works: a picture's file, white there; "rest": where no other does; "": everywhere; ():
        all everywhere.
      prompt_of_first_weights: of weights over time: only the first ones are given the prompt, the others the empty one.
      miva_with_prompt: MIVAs' implicit prompts stand beside the prompt, rather than in its place.
      vae_slice: frames that each device decodes at a time; bounds memory.
      original_size, crop, target_size: what SDXL is given of size and crop, (height, width) and (top, left) in pixels;
        () is the video's own size, and (0, 0).
      image_prompts: what the image tokens are of.
      negative_original_size, negative_crop, negative_target_size: the same on the side that guidance leads away from;
        () is what stands on the other side, but (0, 0) for the crop where one of the sizes is given.
      controls: how control networks work, where the model has some.
    """

    height: int = 512
    width: int = 512
    frames: int = 16
    steps: int = 25
    guidance_scale: float = 7.5
    image_guidance_scale: float = 0.0
    guidance_rescale: float = 0.0
    sampler: str = "ddim"
    sampler_options: tuple[tuple[str, Any], ...] = ()
    t0: float = 1.0
    p: float = 0.5
    free_init: FreeInit = FreeInit()
    second_pass: SecondPass = SecondPass()
    windows: Windows = Windows()
    prompt_travel: str = ""
    deep_cache_every: int = 1
    adapter_scale: float = 1.0
    image_token_scale: float = 1.0
    text_in_time_scale: float = 1.0
    motion_scale: int = 0
    fs: int = 0
    last_picture: str = ""
    loop: bool = False
    analytic_init: str = ""
    fit: str = "crop"
    truncate_prompts: bool = False
    prompt_syntax: str = "plain"
    prompt_weighting: str = "a1111"
    clip_skip: int = 0
    miva_masks: tuple[str, ...] = ()
    miva_with_prompt: bool = False
    prompt_of_first_weights: bool = False
    vae_slice: int = 1
    original_size: Pair | tuple[()] = ()
    crop: Pair | tuple[()] = ()
    target_size: Pair | tuple[()] = ()
    negative_original_size: Pair | tuple[()] = ()
    negative_crop: Pair | tuple[()] = ()
    negative_target_size: Pair | tuple[()] = ()
    controls: ControlSettings = ControlSettings()
    image_prompts: ImagePrompts = ImagePrompts()

    @classmethod
    def of_config(cls, config: ConfigDict) -> "Settings":
        """Returns the settings that a config has; those that it has not are the defaults."""
        plain = [name for name in cls.__dataclass_fields__ if name not in (*SIZES, *GROUPS)]
        given = {name: config[name] for name in plain if name in config}
        given["miva_masks"] = tuple(config.get("miva_masks", ()))
        given["controls"] = ControlSettings.of_config(config.get("controls", {}))
        given |= {name: tuple(size) for name, size in config.get("sizes", {}).items()}
        given |= dict(free_init=FreeInit(**config.get("free_init", {})), windows=Windows(**config.get("windows", {})))
        given |= dict(second_pass=SecondPass(**config.get("second_pass", {})))
        given |= dict(image_prompts=ImagePrompts.of_config(config.get("image_prompts", {})))
        return cls(**given | dict(sampler_options=tuple(sorted(config.sampler_options.items()))))

    def check(self, model: Model) -> samplers.Sampler:
        """Returns the run's sampler, having checked every setting, before anything costly begins.

        Raises:
          InputError: a setting is out of range; says which, and what is wanted.
        """
        if model.max_frames is None and self.frames != 1:
            raise InputError(f"frames={self.frames}: without motion modules only 1 frame can be made. Give `motion`.")
        if named := [name for name in SIZES if getattr(self, name) and not model.family.has_sizes]:
            raise InputError(f"{', '.join(named)}: {model.family.title} is not conditioned on sizes. Leave it out.")
        self.controls.check(len(model.controls), self.frames)
        self._check_clip_skip(model)
        self.image_prompts.check(model)
        mivas.check(self.miva_masks, model)
        long_videos.check(self, model)
        from_picture.check(self, model)
        if self.prompt_of_first_weights and not model.over_time:
            raise InputError(
                "prompt_of_first_weights=True, and the weights are the same throughout. Leave it out, or give "
                "weights_over_time."
            )
        sampler = self.check_values(model.schedule, model.configs["vae"].downscale, model.max_frames or 1)
        self.controls.check_steps(len(model.controls), sampler.num_steps - self.start_index(sampler))
        for own in self.passes[1:]:
            own.check(model)
        return sampler

    @property
    def passes(self) -> "list[Settings]":
        """The settings of the run's passes: its own, and those of the second one where there is one."""
        return second_pass.passes(self)

    def start_index(self, sampler: samplers.Sampler) -> int:
        """Returns the first step of the pass."""
        if self.second_pass.under_way:
            return sampler.start_index(self.second_pass.strength, "second_pass.strength")
        return sampler.start_index(self.t0)

    def count_steps(self, model: Model) -> int:
        """Returns how many steps the pass takes, all its runs together; raises what `check` raises."""
        sampler = self.check(model)
        return (sampler.num_steps - self.start_index(sampler)) * self.free_init.runs

    def check_values(self, schedule: NoiseSchedule, factor: int = 8, max_frames: int | None = None) -> samplers.Sampler:
        """As `check`, with no model at hand: its VAE's factor is taken to be 8, its frames to be enough."""
        for name in ("height", "width"):
            size = getattr(self, name)
            if size < factor or size % factor:
                near = max(factor, round(size / factor) * factor)
                raise InputError(f"{name}={size}: wanted a multiple of {factor}, such as {near}.")
        if self.frames < 1:
            raise InputError(f"frames={self.frames}: wanted 1 or more.")
        if max_frames is not None and self.frames > max_frames and not self.windows.length:
            raise InputError(
                f"frames={self.frames}: these motion modules know 1 to {max_frames} frames. For a longer video give "
                f"windows of at most {max_frames} frames, such as --config.windows.length={min(16, max_frames)}."
            )
        long_videos.check_values(self)
        if self.fit not in FITS:
            raise InputError(f"fit={self.fit!r}; known: {', '.join(FITS)}.{nearest(self.fit, FITS)}")
        if not 0 <= self.motion_scale < len(LIKENESS):
            raise InputError(
                f"motion_scale={self.motion_scale}: wanted 0 to {len(LIKENESS) - 1}. 0 to 2 are more and more motion, "
                "3 to 5 the same in a loop, 6 to 8 in another style than the picture's."
            )
        if not 0 <= self.p <= 1:
            raise InputError(f"p={self.p}: wanted a probability in [0, 1].")
        if not 0 <= self.guidance_rescale <= 1:
            raise InputError(f"guidance_rescale={self.guidance_rescale}: wanted a number in [0, 1].")
        if self.deep_cache_every < 1:
            raise InputError(f"deep_cache_every={self.deep_cache_every}: wanted 1 (every step) or more.")
        if self.vae_slice < 1:
            raise InputError(f"vae_slice={self.vae_slice}: wanted 1 or more frames.")
        if self.image_guidance_scale < 0:
            raise InputError(f"image_guidance_scale={self.image_guidance_scale}: wanted a number above 0; 0 for none.")
        for name in (
            "guidance_scale",
            "image_guidance_scale",
            "adapter_scale",
            "image_token_scale",
            "text_in_time_scale",
        ):
            if not math.isfinite(getattr(self, name)):
                raise InputError(f"{name}={getattr(self, name)}: wanted a finite number.")
        from_picture.check_values(self)
        check_syntax(self.prompt_syntax)
        check_emphasis(self.prompt_weighting)
        if self.clip_skip < 0:
            raise InputError(f"clip_skip={self.clip_skip}: wanted 0, as trained, or more layers to skip.")
        for name in SIZES:
            self._check_size(name)
        if self.free_init.runs > 1:
            warn_if_nothing_is_kept(self.free_init, (self.frames, self.height // factor, self.width // factor))
        sampler = samplers.make(self.sampler, schedule, self.steps, **dict(self.sampler_options))
        self.start_index(sampler)
        if len(self.passes) > 1:
            second_pass.check(self, factor)
            self.passes[1].check_values(schedule, factor, max_frames)
        return sampler

    def _check_clip_skip(self, model: Model) -> None:
        for part in model.family.text.encoders:
            most = model.configs[part.component].num_layers - (1 if part.states == "last_hidden" else 2)
            if self.clip_skip > max(most, 0):
                raise InputError(
                    f"clip_skip={self.clip_skip}: the {part.component} has layers for 0 to {max(most, 0)}."
                )

    def _check_size(self, name: str) -> None:
        value, least = getattr(self, name), 0 if name.endswith("crop") else 1
        sound = len(value) in (0, 2) and all(isinstance(number, int) and number >= least for number in value)
        if not sound:
            pair = "(top, left)" if least == 0 else "(height, width)"
            raise InputError(f"{name}={value}: wanted {pair} in whole pixels, or () for the default.")

    @property
    def guided(self) -> bool:
        """Whether the network runs twice a step, without and with the prompt, or three times."""
        return self.guidance_scale > 1 or self.image_guidance_scale > 0

    def size_conditions(self, negative: bool) -> tuple[Pair, Pair, Pair]:
        """Original size, crop and target size as they are given to the network, on one of the two sides."""
        own = (self.height, self.width)
        sizes = (self.original_size or own, self.crop or (0, 0), self.target_size or own)
        if not negative:
            return sizes
        others = (self.negative_original_size, self.negative_crop, self.negative_target_size)
        if self.negative_original_size or self.negative_target_size:
            sizes = (sizes[0], (0, 0), sizes[2])  # as diffusers' pipelines have it
        return tuple(other or size for other, size in zip(others, sizes))
