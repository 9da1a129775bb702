"""What files of networks that measure videos hold beside weights."""

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32
from safetensors.numpy import load_file

from i2v_jax.errors import InputError
from i2v_jax.models.dover import DOVERConfig
from i2v_jax.models.lpips import MEAN, STD, LPIPSConfig
from i2v_jax.models.raft import RAFTConfig
from i2v_jax.models.video_swin import relative_index
from i2v_jax.weights.assemble import Place, Source, to_device
from i2v_jax.weights.formats.dover import INDEX
from i2v_jax.weights.formats.lpips import HEAD, SCALING, SECOND_HEAD
from i2v_jax.weights.formats.raft import BATCH_NORM, COUNT, DOUBLED
from i2v_jax.weights.tensors import Entry, Tensors
from i2v_jax.weights.whole import assemble_network


def load_lpips(
    source: Source, *, place: Place = to_device, **options: Any
) -> tuple[LPIPSConfig, dict[str, Any], list[Float32[np.ndarray, " c"]]]:
    """Loads LPIPS: config, parameters of the classifier, and the heads, the file's own or the published ones.

    Arguments and errors are those of `assemble.load_unet`.
    """
    assembled = assemble_network("lpips", source, **options)
    heads = bundled_heads(assembled.config.backbone)
    own = [HEAD.format(k=k) for k in range(len(heads))]
    if set(own) <= set(assembled.buffers):
        heads = [np.asarray(assembled.buffers[path], np.float32).reshape(-1) for path in own]
    elif tuple(map(len, heads)) != assembled.config.widths:
        raise InputError(f"{assembled.parameters.source} has no heads of its own, and widths that are not published.")
    return *assembled.load(place), heads


def bundled_heads(backbone: str) -> list[Float32[np.ndarray, " c"]]:
    """Returns the published heads, version 0.1, of a name in `models.lpips.BACKBONES`."""
    found = _bundled()
    return [found[f"{backbone}.lin{k}"] for k in range(5)]


@functools.cache
def _bundled() -> dict[str, np.ndarray]:
    return load_file(Path(__file__).with_name("lpips_heads.safetensors"))


def with_made_buffers(component: str, parameters: Tensors, buffers: Tensors, config: Any) -> Tensors:
    """Returns what a network's file holds beside its weights: what came with them, and else what can be made of them.

    Args:
        component: a name of `MAKE`; others get back what came.
        parameters: path -> array in our layout.
        buffers: what an import kept.
        config: of the network.
    """
    make = MAKE.get(component)
    return buffers if make is None else buffers.holding({**make(parameters, buffers, config), **buffers.entries})


def doubled_norms(parameters: Tensors, buffers: Tensors, config: RAFTConfig) -> dict[str, Entry]:
    """Returns the norms of a RAFT's shortened blocks under the second name that princeton-vl's files have for them."""
    ours = {leaf: theirs for theirs, (leaf, _) in BATCH_NORM.items()} | {COUNT: COUNT}
    made = {}
    for path, entry in {**parameters.entries, **buffers.entries}.items():
        match = re.fullmatch(r"(.*/)downsample_1/(.*)", path)
        if match and match[2] in ours:
            made[f"{match[1]}{DOUBLED}/{ours[match[2]]}"] = dataclasses.replace(entry)
    return made


def index_tables(parameters: Tensors, buffers: Tensors, config: DOVERConfig) -> dict[str, Entry]:
    """Returns which bias each pair of a window's tokens has, as every attention of DOVER's file says it once more."""
    made = {}
    for path in parameters.entries:
        if path.endswith("/attn/relative_position_bias_table"):
            index = relative_index(config.technical.window)
            made[f"{path.rpartition('/')[0]}/{INDEX}"] = Entry.of(index.astype(np.int64))
    return made


def heads_and_scaling(parameters: Tensors, buffers: Tensors, config: LPIPSConfig) -> dict[str, Entry]:
    """Returns the heads, twice, and the channels' scaling, as the file of `lpips` has them."""
    made = {}
    for k, head in enumerate(bundled_heads(config.backbone)):
        own = buffers.entries.get(HEAD.format(k=k)) or Entry.of(head[None, :, None, None])
        made |= {template.format(k=k): own for template in (HEAD, SECOND_HEAD)}
    for name, values in (("shift", MEAN), ("scale", STD)):
        made[SCALING[name]] = Entry.of(values[None, :, None, None])
    return made


MAKE: Mapping[str, Callable[[Tensors, Tensors, Any], Mapping[str, Entry]]] = {
    "raft": doubled_norms,
    "dover": index_tables,
    "lpips": heads_and_scaling,
}
"""Component -> what makes the buffers of its file."""
