"""MIVAs in a run: how strong each is, where it works, and what becomes of the prompt beside their implicit ones."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32

from i2v_jax.devices import memory
from i2v_jax.errors import InputError
from i2v_jax.families.model import Model
from i2v_jax.media import Picture, fit_picture, load_picture
from i2v_jax.models.adapters.miva import NAME
from i2v_jax.models.conditions import Conditions
from i2v_jax.models.unet import UNetConfig

REST = "rest"
"""In the place of a mask: where no other MIVA works."""


def check(masks: Sequence[str], model: Model) -> None:
    """Raises InputError for masks that do not pair with a model's MIVAs."""
    if masks and len(masks) != model.miva_count:
        raise InputError(
            f"miva_masks has {len(masks)} masks, and there are {model.miva_count} MIVAs (those of the scale 0 aside); "
            "wanted one for each, '' for everywhere."
        )
    if masks.count(REST) > 1 or (REST in masks and len(masks) < 2):
        raise InputError(f"miva_masks={tuple(masks)}: wanted one {REST!r} at most, beside others.")


def bytes_of_each(unet: UNetConfig, rows: int, frames: int, size: tuple[int, int]) -> int:
    """Returns the memory that each MIVA takes in a step at least: its queries and outputs in the layer of the most.

    Args:
      unet: the UNet's config.
      rows: videos on a device; with guidance, twice as many.
      frames: of a video.
      size: height and width of the latents.
    """
    most, (height, width) = 0, size
    levels = zip(unet.block_out_channels, unet.down_attention, unet.num_heads)
    for channels, attends, heads in levels:
        if attends:
            arrays = 4 * channels * np.dtype(unet.dtype).itemsize  # query and output, twice
            scores = 4 * heads * height * width if unet.attention == "xla" else 0
            most = max(most, rows * frames * height * width * (arrays + scores))
        height, width = -(-height // 2), -(-width // 2)
    return most


def check_memory(model: Model, settings: Any, videos: int, device: jax.Device) -> None:
    """Raises InputError where a device has not the memory for all MIVAs of a run; says how many fit.

    Args:
      model: with the MIVAs.
      settings: of the run.
      videos: on the device.
      device: where they are sampled.
    """
    count, free = model.miva_count, memory.free_bytes(device)
    if not count or free is None:
        return
    downscale, rows = model.configs["vae"].downscale, videos * (2 if settings.guided else 1)
    size = settings.height // downscale, settings.width // downscale
    each = bytes_of_each(model.configs["unet"], rows, settings.frames, size)
    if count * each > free:
        raise InputError(
            f"{count} MIVAs want {count * each / 1e9:.2g} GB of memory or more, for {videos} videos at a time of "
            f"{settings.frames}x{settings.height}x{settings.width}; {free / 1e9:.2g} GB are free, for {free // each} "
            "MIVAs. Give fewer, a lower batch_per_device, fewer frames or a smaller height and width."
        )


def strengths(model: Model) -> dict[str, Float[np.ndarray, " n"]]:
    """Returns the strengths of a model's MIVAs for its UNet; nothing where they are as trained, or there are none."""
    return {NAME: np.array([miva.scale for miva in model.mivas], np.float32)} if model.mivas else {}


def without_prompts(model: Model, prompts: Sequence[str], with_prompt: bool) -> list[str]:
    """Returns the prompts that are encoded: empty ones where MIVAs have their own; says which are not used."""
    if not model.miva_count or with_prompt:
        return list(prompts)
    if unused := [prompt for prompt in dict.fromkeys(prompts) if prompt]:
        more = f" and {len(unused) - 1} more" if unused[1:] else ""
        warnings.warn(
            f"The prompt {unused[0]!r}{more} is not used: a MIVA has its own, implicit one. To heed both: "
            "--config.miva_with_prompt=True.",
            stacklevel=2,
        )
    return [""] * len(prompts)


def with_implicit(
    model: Model, unconditional: Conditions | None, conditional: Conditions, masks: Float[Array, "b 1 n h w"] | None
) -> tuple[Conditions | None, Conditions]:
    """Returns both sides of guidance with what a UNet's MIVAs look at: implicit prompts, on one side, and masks."""
    if not model.miva_count:
        return unconditional, conditional
    there = jnp.ones((conditional.text.shape[0], 1), jnp.float32)
    conditional = conditional._replace(implicit=there, miva_masks=masks)
    if unconditional is not None:
        unconditional = unconditional._replace(implicit=0 * there, miva_masks=masks)
    return unconditional, conditional


def mask_files(masks: Sequence[str]) -> list[str]:
    """Returns those of some masks that are files."""
    return [mask for mask in masks if mask not in ("", REST)]


def read_masks(
    masks: Sequence[str], pictures: Sequence[Picture], size: tuple[int, int], fit: str, downscale: int
) -> Float32[np.ndarray, "b 1 n h w"] | None:
    """Reads masks, and brings them to the size of the latents as the pictures are brought to the video's.

    Args:
      masks: see `Settings.miva_masks`.
      pictures: that are animated.
      size: height and width of the video.
      fit: see `media.fit_picture`.
      downscale: pixels of a latent's side.

    Returns:
      How much of each MIVA there is at each place, 0 to 1; None without masks.

    Raises:
      InputError: a mask that cannot be read, or is neither of a picture's size nor of the video's.
    """
    if not masks:
        return None
    read = {mask: load_picture(Path(mask).expanduser()) for mask in mask_files(masks)}
    return np.stack([_of_picture(masks, read, picture, size, fit, downscale) for picture in pictures])[:, None]


def _of_picture(masks, read, picture, size, fit, downscale) -> Float32[np.ndarray, "n h w"]:
    found: dict[int, Any] = {}
    for number, mask in enumerate(masks):
        if mask == REST:
            continue
        white = np.full((*size, 3), 255, np.uint8)
        if mask:
            given, wanted = read[mask].shape[:2], picture.shape[:2]
            if given not in (wanted, tuple(size)):
                raise InputError(
                    f"miva_masks: {mask} is {given[1]}x{given[0]}, and its picture {wanted[1]}x{wanted[0]}. Give a "
                    f"mask of that size, or of the video's, {size[1]}x{size[0]}."
                )
            white = fit_picture(read[mask], *size, fit)
        shares = white.mean(-1, dtype=np.float32) / 255
        height, width = size[0] // downscale, size[1] // downscale
        blocks = shares[: height * downscale, : width * downscale].reshape(height, downscale, width, downscale)
        found[number] = blocks.mean((1, 3))
    if REST in masks:
        found[masks.index(REST)] = np.clip(1 - sum(found.values()), 0, 1)
    return np.stack([found[number] for number in range(len(masks))])
