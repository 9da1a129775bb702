"""Sizes and lengths that a model was trained at: said where a run's are others, as its videos are worse there."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from i2v_jax.families.model import Model
from i2v_jax.families.weights import Weights
from i2v_jax.models import unet
from i2v_jax.sampling.settings import Settings

FILE = "trained_at.json"  # in the base's folder: {"sides": [least, most], "frames": [least, most], "knows": text}


class TrainedAt(NamedTuple):
    """What a model was trained at.

    Attributes:
      sides: the smallest and the largest height or width, pixels; () where unknown.
      frames: the fewest and the most; () where unknown.
      knows: what a model of few things can do, for people; "" where nothing is said.
    """

    sides: tuple[int, ...] = ()
    frames: tuple[int, ...] = ()
    knows: str = ""


PUBLISHED = {
    unet.SD15.block_out_channels: TrainedAt((256, 512), (16, 16)),
    unet.SDXL.block_out_channels: TrainedAt((512, 1024), (16, 16)),
}
"""Widths of a UNet, and what pictures (Stable Diffusion) and clips (AnimateDiff) such a one was trained at."""


HOTSHOT_POSITIONS = 24
"""Frames that Hotshot-XL's motion modules know positions of; AnimateDiff's for SDXL know 32. It was trained at 8."""


def of_folder(weights: Weights) -> TrainedAt:
    """Returns what the base's folder says; nothing where it says nothing."""
    found: Mapping[str, Any] = weights.settings(FILE)
    return TrainedAt(tuple(found.get("sides", ())), tuple(found.get("frames", ())), found.get("knows", ""))


def of_model(weights: Weights, model: Model) -> TrainedAt:
    """Returns what the base's folder says, or what is published of models as wide as this one."""
    found, unet_config = of_folder(weights), model.configs["unet"]
    if found.sides or found.frames:
        return found
    found = PUBLISHED.get(unet_config.block_out_channels, found)
    is_sdxl = unet_config.block_out_channels == unet.SDXL.block_out_channels
    return found._replace(frames=(8, 8)) if is_sdxl and model.max_frames == HOTSHOT_POSITIONS else found


def departures(trained: TrainedAt, settings: Settings) -> str | None:
    """Returns what to say of a run whose size or length is not one that the model was trained at; None: all is well."""
    length = "windows.length" if settings.windows.length else "frames"
    bounds = {"height": trained.sides, "width": trained.sides, length: trained.frames if settings.frames > 1 else ()}
    of_run = dict(height=settings.height, width=settings.width, frames=settings.frames)
    of_run["windows.length"] = min(settings.windows.length, settings.frames)
    values = {name: of_run[name] for name, known in bounds.items() if known}
    given = [f"{name}={value}" for name, value in values.items() if not bounds[name][0] <= value <= bounds[name][1]]
    if not given:
        return None
    frames = f", {_range(trained.frames)} frames" if trained.frames else ""
    sides = f"sides of {_range(trained.sides)} pixels" if trained.sides else "sizes that it does not tell"
    return (
        f"{', '.join(given)}: the model was trained at {sides}{frames}. At others its videos are worse: colours fade, "
        "shapes come apart."
    )


def _range(bounds: tuple[int, ...]) -> str:
    return str(bounds[0]) if bounds[0] == bounds[1] else f"{bounds[0]} to {bounds[1]}"
