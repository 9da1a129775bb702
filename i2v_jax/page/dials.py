"""What a person chooses on the page, in their words, and the settings of sampling that stand for it."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from i2v_jax.errors import InputError, check_known
from i2v_jax.hub import on_disk
from i2v_jax.page.options import Options
from i2v_jax.sampling.inputs import MAX_SEED
from i2v_jax.weights.storage.open import WEIGHT_SUFFIXES
from i2v_jax.weights.styles import style

NONE = "none"
NATURAL = "natural"
CLOSENESS = {"loose": (0.5, 0.4), "a little loose": (0.75, 0.7), NATURAL: (1.0, 1.0), "tight": (1.2, 1.2)}
"""Name -> what multiplies the config's `adapter_scale` and `image_token_scale`."""
OBEDIENCE = {"freely": 0.7, NATURAL: 1.0, "strictly": 1.5}
"""Name -> what multiplies the config's `guidance_scale`."""
STRENGTHS = {"a hint": 0.5, "clear": 0.8, "full": 1.0}
"""Name -> the scale of a style's LoRA."""
RATIOS = ((4, 3), (3, 4), (16, 9), (9, 16))  # width, height
LONGEST_PROMPT = 2000  # characters; what a model takes is far less


@dataclasses.dataclass(frozen=True)
class Request:
    """A run as a person asks for it.

    Attributes:
      prompt, negative_prompt: texts.
      size: "WIDTH x HEIGHT", as `Offers.sizes` names it.
      length: frames.
      steps: of sampling.
      seed: 0 .. 2**32 - 1.
      motion: how much of it, of `Offers.motion`.
      closeness: to the picture, of `CLOSENESS`.
      obedience: to the prompt, of `OBEDIENCE`.
      style, strength: a name of the folder of styles, or `NONE`; of `STRENGTHS`.
      base: a name of the folder of bases, or `NONE`, the config's own.
      learned_motion: a name of the folder of MIVAs, or `NONE`.
    """

    prompt: str = ""
    negative_prompt: str = ""
    size: str = ""
    length: int = 0
    steps: int = 0
    seed: int = 0
    motion: str = NATURAL
    closeness: str = NATURAL
    obedience: str = NATURAL
    style: str = NONE
    strength: str = "clear"
    base: str = NONE
    learned_motion: str = NONE


class Offers:
    """What there is to choose from, and what it means for a run."""

    def __init__(self, options: Options, config: ConfigDict, most_frames: int | None, window: int):
        """Args:
        options: of the page.
        config: of sampling.
        most_frames: that the model makes at once; None of a model of pictures.
        window: frames that it sees at a time in longer videos; 0 where it makes none.
        """
        self.options, self.config, self.most_frames, self.window = options, config, most_frames, window
        pairs = options.offered_sizes or sizes_like(config.height, config.width)
        self.sizes = {f"{width} x {height}": (height, width) for height, width in pairs}
        self.lengths = [int(n) for n in options.offered_lengths] or self._lengths()
        self.steps = [int(n) for n in options.offered_steps] or steps_like(config.steps)
        self.motion = {
            "hardly any": (0.6, 1.0),
            "calm": (0.8, 1.0),
            NATURAL: (config.t0, config.p),
            "lively": (1.0, options.lively_p),
        }
        self.default = Request(
            negative_prompt=config.negative_prompt,
            size=next(iter(self.sizes)),
            length=config.frames if config.frames in self.lengths else self.lengths[0],
            steps=config.steps if config.steps in self.steps else self.steps[0],
            seed=config.seed,
        )

    @property
    def styles(self) -> dict[str, Path]:
        """Name -> file of each LoRA that there is now."""
        return weights_in(self.options.styles)

    @property
    def bases(self) -> dict[str, Path]:
        """Name -> file or folder of each base model that there is now."""
        return weights_in(self.options.bases, folders=True)

    @property
    def learned_motions(self) -> dict[str, Path]:
        """Name -> file of each MIVA that there is now."""
        return weights_in(self.options.motions)

    def check(self, request: Request) -> None:
        """Raises InputError for what is not offered: nothing that a browser sends is taken on trust."""
        known = dict(
            size=self.sizes,
            motion=self.motion,
            closeness=CLOSENESS,
            obedience=OBEDIENCE,
            strength=STRENGTHS,
            style=[NONE, *self.styles],
            base=[NONE, *self.bases],
            learned_motion=[NONE, *self.learned_motions],
        )
        for name, choices in known.items():
            check_known(f"{name}=", str(getattr(request, name)), choices)
        for name, choices in (("length", self.lengths), ("steps", self.steps)):
            if getattr(request, name) not in choices:
                raise InputError(f"{name}={getattr(request, name)!r}: wanted one of {', '.join(map(str, choices))}.")
        if not isinstance(request.seed, int) or not 0 <= request.seed <= MAX_SEED:
            raise InputError(f"seed={request.seed!r}: a whole number from 0 to {MAX_SEED} is wanted.")
        for name in ("prompt", "negative_prompt"):
            text = getattr(request, name)
            if not isinstance(text, str):
                raise InputError(f"{name}: text is wanted.")
            if len(text) > LONGEST_PROMPT:
                raise InputError(
                    f"The {name.replace('_', ' ')} has {len(text)} letters, {LONGEST_PROMPT} are the most."
                )

    def config_of(self, request: Request, picture: Path, folder: Path) -> ConfigDict:
        """Returns the config of sampling that a checked request stands for.

        Args:
          request: of a person.
          picture: that is animated.
          folder: of the run's files.
        """
        own = self.config.copy_and_resolve_references()
        (t0, p), (adapter, tokens) = self.motion[request.motion], CLOSENESS[request.closeness]
        height, width = self.sizes[request.size]
        with own.unlocked():
            own.image, own.csv, own.output, own.variations = str(picture), None, str(folder), 1
            own.prompt, own.negative_prompt = request.prompt, request.negative_prompt
            own.height, own.width, own.frames = height, width, request.length
            own.steps, own.seed, own.t0, own.p = request.steps, request.seed, t0, p
            own.adapter_scale = adapter * self.config.adapter_scale
            own.image_token_scale = tokens * self.config.image_token_scale
            if self.config.guidance_scale > 1:  # else the model is run without
                own.guidance_scale = max(1.05, OBEDIENCE[request.obedience] * self.config.guidance_scale)
            if self.most_frames is not None and request.length > self.most_trained and not own.windows.length:
                own.windows.length = self.window
                own.windows.overlap = min(own.windows.overlap, self.window // 2)
                own.windows.schedule = "shifted"
            if request.base != NONE:
                own.weights.base = str(self.bases[request.base])
            if request.style != NONE:
                added = f"{self.styles[request.style]}={STRENGTHS[request.strength]}"
                own.weights.loras = (*own.weights.loras, added)
            if request.learned_motion != NONE:
                own.mivas = (*own.mivas, str(self.learned_motions[request.learned_motion]))
        return own

    @property
    def most_trained(self) -> int:
        """Frames up to which the model sees a video whole."""
        return min(self.window or self.most_frames, self.most_frames)

    def request_of(self, config: Mapping[str, Any]) -> Request:
        """Returns what a person asked for, from a record's config; choices that are not offered are the nearest."""
        own = self.config
        closeness = (_over(config["adapter_scale"], own.adapter_scale),)
        added = list(config["weights"].get("loras", ()))[len(own.weights.loras) :]
        name, strength = (style(added[0])) if added else ("", STRENGTHS["clear"])
        mivas = list(config.get("mivas", ()))[len(own.mivas) :]
        size = f"{config['width']} x {config['height']}"
        return Request(
            prompt=config["prompt"],
            negative_prompt=config["negative_prompt"],
            size=size if size in self.sizes else self.default.size,
            length=min(self.lengths, key=lambda length: abs(length - config["frames"])),
            steps=min(self.steps, key=lambda steps: abs(steps - config["steps"])),
            seed=config["seed"],
            motion=_nearest((config["t0"], config["p"]), self.motion),
            closeness=_nearest(closeness, {key: value[:1] for key, value in CLOSENESS.items()}),
            obedience=_nearest(
                (_over(config["guidance_scale"], own.guidance_scale),), {k: (v,) for k, v in OBEDIENCE.items()}
            ),
            style=_name_of(name, self.styles),
            strength=_nearest((strength,), {key: (value,) for key, value in STRENGTHS.items()}),
            base=_name_of(config["weights"].get("base", ""), self.bases),
            learned_motion=_name_of(style(mivas[0])[0] if mivas else "", self.learned_motions),
        )

    def _lengths(self) -> list[int]:
        own = self.config.frames
        return [own, 2 * own, 4 * own] if self.window else [own]


def sizes_like(height: int, width: int) -> list[tuple[int, int]]:
    """Returns a size first, then those of usual ratios with about as many pixels, in whole eights or sixty-fours."""
    unit, side = 64 if min(height, width) >= 256 else 8, math.sqrt(height * width)
    found = [(height, width)]
    for wide, high in RATIOS:
        exact = side * math.sqrt(high / wide), side * math.sqrt(wide / high)
        found.append(tuple(max(unit, math.floor(length / unit + 0.5) * unit) for length in exact))
    return list(dict.fromkeys(found))


def steps_like(steps: int) -> list[int]:
    """Returns half a model's steps, its own, and twice as many; of a distilled model's few its own alone."""
    return [steps] if steps <= 8 else [steps // 2, steps, 2 * steps]


def weights_in(folder: str, folders: bool = False) -> dict[str, Path]:
    """Returns name -> path of the weights that lie in a folder, and perhaps of the models that are folders in it.

    What leads out of the folder, by a link, is left out.
    """
    if not folder:
        return {}
    root, found = on_disk(folder).resolve(), {}
    for path in sorted(root.iterdir()):
        is_weights = path.is_file() and path.suffix in WEIGHT_SUFFIXES
        is_model = folders and (path / "model_index.json").is_file()
        if (is_weights or is_model) and not path.name.startswith(".") and path.resolve().is_relative_to(root):
            found[path.stem if is_weights else path.name] = path
    return found


def _over(value: float, own: float) -> float:
    return value / own if own else 1.0


def _nearest(values: Sequence[float], choices: Mapping[str, Sequence[float]]) -> str:
    return min(choices, key=lambda name: math.dist(values, choices[name]))


def _name_of(source: str, known: Mapping[str, Path]) -> str:
    path = Path(source).expanduser() if source else None
    return next((name for name, other in known.items() if path and path.absolute() == other), NONE)
