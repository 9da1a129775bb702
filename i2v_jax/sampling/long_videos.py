"""Whether a video of any length can be made: what windows a model takes, and what memory and disk a run wants."""

import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np

from i2v_jax.devices import memory
from i2v_jax.diffusion.windows import count
from i2v_jax.errors import InputError
from i2v_jax.families.model import Model
from i2v_jax.hub import on_disk
from i2v_jax.sampling import prompt_travel

LATENT_ARRAYS = 10
"""Float32 arrays as large as a video's latents that a step holds: state, noise, predictions of both sides, sums."""
BYTES_ON_DISK = 5
"""Of a pixel of a frame, at most: 3 as it is decoded, until the files are written; 2 of the files."""


def frames_at_once(settings: Any) -> int:
    """Returns how many frames a network sees at a time."""
    windows = settings.windows
    return min(windows.length, settings.frames) if windows.averages_predictions else settings.frames


def check_values(settings: Any) -> None:
    """Raises InputError for what no model can make.

    Args:
      settings: of a run, whose `frames` are sound.
    """
    prompt_travel.parse(settings.prompt_travel, settings.frames)
    if settings.windows.averages_predictions and settings.deep_cache_every > 1:
        raise InputError(
            f"deep_cache_every={settings.deep_cache_every} and windows.length={settings.windows.length}: features are "
            "not kept of windows. Give deep_cache_every=1, or no windows."
        )


def check(settings: Any, model: Model) -> None:
    """Raises InputError for windows, or prompts by frame, that a model does not take."""
    windows, most = settings.windows, model.max_frames
    if model.family.has_picture and (windows.length or settings.prompt_travel):
        name = "windows.length" if windows.length else "prompt_travel"
        raise InputError(
            f"{name}: {model.family.title} makes {most} frames at once, its image tokens are of so many, and of one "
            "prompt. Longer videos: go on from the last frame of one, with that video as --config.image."
        )
    if windows.length and most is None:
        raise InputError(f"windows.length={windows.length}: there are no motion modules. Give `motion`, or 0.")
    if windows.length and windows.length > most:
        raise InputError(
            f"windows.length={windows.length}: these motion modules know 1 to {most} frames at a time. Give a window "
            f"of {most} or fewer; the video may have any number of frames."
        )
    if windows.averages_attention and model.has_text_in_time:
        raise InputError(
            "windows.average='attention' (FreeNoise), and the model has a text-in-time adapter, which knows as many "
            "frames as the motion modules. Give windows.average='predictions'."
        )


def check_memory(model: Model, settings: Any, videos: int, device: jax.Device) -> None:
    """Raises InputError where a device has not the memory for what grows with a video's length; says what fits.

    Args:
      model: that samples.
      settings: of the run, with windows.
      videos: on the device.
      device: where they are sampled.
    """
    free = memory.free_bytes(device)
    if not settings.windows.length or free is None:
        return
    each = videos * bytes_of_frame(model, settings)
    if each * settings.frames > free:
        raise InputError(
            f"frames={settings.frames}: a run of {videos} videos at a time of {settings.height}x{settings.width} wants "
            f"{each * settings.frames / 1e9:.2g} GB of memory or more; {free / 1e9:.2g} GB are free, for "
            f"{free // each} frames. Give fewer, a lower batch_per_device or a smaller height and width."
        )


def bytes_of_frame(model: Model, settings: Any) -> int:
    """Returns the memory that each frame of a video takes at least while a run goes on."""
    unet, downscale, sides = model.configs["unet"], model.configs["vae"].downscale, 2 if settings.guided else 1
    places = (settings.height // downscale) * (settings.width // downscale)
    found = 4 * LATENT_ARRAYS * places * unet.latent_channels
    if settings.prompt_travel:
        found += 4 * sides * 77 * unet.cross_attention_dim
    if not settings.windows.averages_predictions:  # features, queries, keys, values of the widest level
        overlapping = count(settings.windows, settings.frames) * settings.windows.length / settings.frames
        arrays = 4 + max(1, overlapping)
        found += int(sides * arrays * places * unet.block_out_channels[0] * np.dtype(unet.dtype).itemsize)
    return found


def check_disk(folder: str | Path, settings: Any, before: int = 0) -> None:
    """Raises InputError where the disk of a folder has not the space for a video's files; says how many frames fit.

    Args:
      folder: of the output, which need not be there yet.
      settings: of the run.
      before: frames that are written before the run's.
    """
    folder = on_disk(folder)
    place = next((place for place in (folder, *folder.parents) if place.exists()), None)
    if place is None:
        return
    each, free = BYTES_ON_DISK * settings.height * settings.width, shutil.disk_usage(place).free
    if each * (before + settings.frames) > free:
        others = f" after {before} others" if before else ""
        raise InputError(
            f"frames={settings.frames}{others}: a video of {settings.height}x{settings.width} wants up to "
            f"{each * (before + settings.frames) / 1e9:.2g} GB while its files are written in {str(folder)!r}, and "
            f"{free / 1e9:.2g} GB are free, for {max(0, free // each - before)} frames. Give fewer, free some, or "
            "another output."
        )
