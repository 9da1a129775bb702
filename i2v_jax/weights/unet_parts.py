"""The parts of a UNet that may each come from a file of its own: spatial layers, motion modules, every adapter.

A part is called "base", "motion", "miva", or by the adapter's name.
"""

import dataclasses
import functools
import math
import re
import warnings
import zlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from i2v_jax.errors import InputError
from i2v_jax.models.adapters import ADAPTER_PATH, ADAPTERS, adapter
from i2v_jax.models.adapters.adapter import OWN_LAYER
from i2v_jax.models.adapters.miva import NAME, PATH
from i2v_jax.models.motion import PICTURE_INPUT, MotionConfig
from i2v_jax.models.networks import Shapes
from i2v_jax.models.unet import UNetConfig
from i2v_jax.weights.configs import own_config_of, replaced
from i2v_jax.weights.fit import Pool
from i2v_jax.weights.tensors import Entry
from i2v_jax.weights.translate import POSITIONS, Imported, OwnTable, check_positions

ANIMATE_LCM_POSITIONS = 64
"""Frames that AnimateLCM's motion modules know. Its file has AnimateDiff v2's names and no position tables."""

FOLDERS = {"motion": "motion_adapter"}
"""Where a part lies in a pipeline's folder, when not with the base."""


def part_of_path(path: str) -> str:
    """Returns which part of a UNet a path belongs to."""
    if PATH in path:
        return NAME
    if match := ADAPTER_PATH.fullmatch(path):
        return match["name"]
    return "motion" if "/motion/" in path else "base"


def parts_of(paths: Iterable[str]) -> set[str]:
    """Returns which parts of a UNet the paths belong to."""
    return {part_of_path(path) for path in paths}


def title_of(part: str) -> str:
    """Returns what messages call a part."""
    return {"base": "spatial layers", "motion": "motion modules", NAME: "MIVA"}.get(part) or adapter(part).title


def check_branches(unet: UNetConfig, source: str) -> tuple[str, ...]:
    """Returns the names of a UNet's adapters; InputError where one stands in motion modules, and there are none."""
    if unet.motion_branches and not unet.motion:
        raise InputError(
            f"The {title_of(unet.motion_branches[0])} stands in motion modules, and {source} has none. Give them: "
            "weights.motion."
        )
    return (*unet.self_attention_branches, *unet.cross_attention_branches, *unet.motion_branches)


def parameters_of(providers: Mapping[str, Imported]) -> Pool:
    """Returns the parameters that files hold of a UNet, each part from the file that gives it.

    Args:
        providers: part -> the file that gives it; "base" also gives every part that no other file does.
    """
    return {
        path: (entry, imported)
        for part, imported in providers.items()
        for path, entry in imported.parameters.entries.items()
        if provider_of(path, providers) == part
    }


def buffers_of(providers: Mapping[str, Imported]) -> dict[str, Entry]:
    """Returns what the files hold beside parameters, each part from the file that gives it."""
    return {
        path: entry
        for part, imported in providers.items()
        for path, entry in imported.buffers.entries.items()
        if provider_of(path, providers) == part
    }


def provider_of(path: str, providers: Mapping[str, Imported]) -> str:
    """Returns which provider gives a path: the one of its part, or else the base."""
    part = part_of_path(path)
    return part if part in providers else "base"


def fill_adapters(pool: Pool, expected: Shapes) -> None:
    """Adds to a pool the parameters of adapters that no file holds, as the adapters start.

    A layer that is a copy of the attention's own is filled in wherever it is missing, as the published loader does;
    what other layers start as only for adapters that no file holds anything of.
    """
    in_files = parts_of(pool)
    for path, leaf in expected.items():
        match = ADAPTER_PATH.fullmatch(path)
        if path in pool or not match:
            continue
        attention = path[: match.start("name")]
        layer, _, rest = match["leaf"].partition("/")
        copied = ADAPTERS[match["name"]].copies.get(layer)
        if copied and f"{attention}{copied}/{rest}" in pool:
            pool[path] = pool[f"{attention}{copied}/{rest}"]
        elif match["name"] not in in_files and (own := f"{attention}{OWN_LAYER[match['site']]}/kernel") in pool:
            start = ADAPTERS[match["name"]].starts.get(match["leaf"], _zeros)
            read = functools.partial(_started, start, path, leaf)
            pool[path] = (Entry(leaf.shape, np.dtype(leaf.dtype), read), pool[own][1])


def _zeros(shape: tuple[int, ...], random: np.random.Generator) -> np.ndarray:
    return np.zeros(shape, np.float32)


def _started(start: Any, path: str, leaf: Any) -> np.ndarray:
    """A new adapter's parameter, the same each time."""
    return start(leaf.shape, np.random.default_rng(zlib.crc32(path.encode()))).astype(leaf.dtype)


def without_copies(expected: Shapes, pool: Pool) -> Shapes:
    """Returns the expected parameters but for adapters' layers that no file holds and that wait for the base's own."""
    held = {_copied_layer(path) for path in pool}
    return {path: leaf for path, leaf in expected.items() if not (key := _copied_layer(path)) or key in held}


def _copied_layer(path: str) -> tuple[str, str] | None:
    """The adapter and its layer, where that starts as a copy."""
    match = ADAPTER_PATH.fullmatch(path)
    layer = match and match["leaf"].partition("/")[0]
    known = match and ADAPTERS.get(match["name"])
    return (known.name, layer) if known and layer in known.copies else None


def tells_motion(imported: Imported) -> bool:
    """Whether a file tells of its motion modules what their weights do not show; a training's checkpoint does not."""
    config = imported.parameters.config or own_config_of(UNetConfig, imported)
    return bool(config) or any(POSITIONS.fullmatch(path) for path in imported.buffers)


def motion_layout(imported: Imported, settings: Mapping[str, Any], by_hand: Mapping[str, Any]) -> MotionConfig | None:
    """Returns what a file's motion modules look like, None where it has none.

    Args:
        imported: the file.
        settings: the base's diffusers config, for what neither tensors nor the file's own config tell.
        by_hand: fields of `MotionConfig` to set.

    Raises:
        InputError: nothing tells how many positions they know.
    """
    blocks = [path for path in imported.parameters if part_of_path(path) == "motion"]
    if not blocks:
        return None
    known = _motion_settings(imported, settings, blocks) | dict(
        mid_block=any(path.startswith("mid_block/") for path in blocks),
        num_layers=len({number for path in blocks for number in re.findall(r"/blocks_(\d+)/", path)}),
        conv_in_channels=_conv_in_channels(imported),
    )
    known["max_positions"] = check_positions(imported) or known["max_positions"]
    layout = replaced(MotionConfig(), known | by_hand)
    if layout.max_positions is None:
        layout = dataclasses.replace(layout, max_positions=_untold_positions(imported, layout))
    return layout


def _conv_in_channels(imported: Imported) -> int | None:
    """Channels that PIA's first layer takes; None of other motion modules."""
    kernel = imported.parameters.entries.get(f"{PICTURE_INPUT}/motion/kernel")
    return kernel.shape[-2] if kernel and len(kernel.shape) == 4 else None


def _untold_positions(imported: Imported, layout: MotionConfig) -> int:
    """AnimateLCM's positions where the layers are its own; InputError for others, which nothing tells apart."""
    source = imported.parameters.source
    if layout.mid_block and not isinstance(imported.table, OwnTable):
        warnings.warn(
            f"{source} has no position tables; with a module in the middle block it is taken for AnimateLCM, which "
            f"knows {ANIMATE_LCM_POSITIONS} frames. Another number: --config.weights.motion_frames=N, of `python -m "
            "convert` --motion-frames N.",
            stacklevel=2,
        )
        return ANIMATE_LCM_POSITIONS
    raise InputError(
        f"{source} has no position tables and no config that tells how many frames its motion modules know. Give the "
        "file that they were trained from as a source before it; or say it, by --config.weights.motion_frames=N, of "
        "`python -m convert` --motion-frames N, in Python motion_config=dict(max_positions=N). N: 24 for AnimateDiff "
        "v1, 32 for later ones."
    )


def _motion_settings(imported: Imported, settings: Mapping[str, Any], blocks: list[str]) -> dict[str, Any]:
    """What configs say of motion modules: the file's own, or else diffusers' in its many spellings."""
    own = own_config_of(UNetConfig, imported)
    if own and isinstance(own.motion, MotionConfig):
        return dataclasses.asdict(own.motion)
    config = {**settings, **(imported.parameters.config or {})}
    heads = config.get("motion_num_attention_heads") or _training_heads(config) or MotionConfig.num_heads
    norms = (imported.parameters.entries[path] for path in blocks if path.endswith("/motion/norm/scale"))
    widths = {width for norm in norms for width in norm.shape[-1:]}
    if not widths <= {320, 640, 1280} and not any(key.startswith("motion_") for key in config):
        warnings.warn(
            f"{imported.parameters.source} is of no published width and has no config; its motion modules are taken to "
            f"have {heads} attention heads and norms of {math.gcd(MotionConfig.norm_groups, *widths)} groups. Give a "
            "diffusers config otherwise (motion_num_attention_heads, motion_norm_num_groups): "
            "weights.configs.unet=FILE, or --config unet=FILE of `python -m convert`.",
            stacklevel=2,
        )
    return dict(
        max_positions=config.get("motion_max_seq_length"),
        num_heads=heads[0] if isinstance(heads, list | tuple) else heads,
        # in diffusers' UNetMotionModel the one setting serves both sorts of norm
        norm_groups=config.get("motion_norm_num_groups")
        or ("motion_max_seq_length" in config and config.get("norm_num_groups"))
        or math.gcd(MotionConfig.norm_groups, *widths),
    )


def _training_heads(config: Mapping[str, Any]) -> Any:
    """Attention heads that AnimateDiff's own training config tells."""
    settings = config.get("motion_module_kwargs")
    return settings.get("num_attention_heads") if isinstance(settings, Mapping) else None


def pools_frames(layout: MotionConfig | None, settings: Mapping[str, Any]) -> bool:
    """Whether resnet norms pool over frames, as AnimateDiff v1 was trained: 24 positions, none in the middle block."""
    if layout is None:
        return False
    return not settings.get("use_inflated_groupnorm", layout.max_positions != 24 or layout.mid_block)
