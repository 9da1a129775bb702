"""Networks that measure videos, RAFT and DOVER, from wherever their weights are; buffers that their files hold."""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from i2v_jax.models.dover import DOVERConfig
from i2v_jax.models.raft import RAFTConfig
from i2v_jax.models.video_swin import relative_index
from i2v_jax.weights.assemble import Assembled, Place, Source, assembled_whole, import_component, to_device
from i2v_jax.weights.configs import config_of, replaced
from i2v_jax.weights.formats.dover import INDEX
from i2v_jax.weights.formats.raft import BATCH_NORM, COUNT, DOUBLED
from i2v_jax.weights.tensors import Entry, Tensors


def assemble_raft(
    source: Source, *, config: Mapping[str, Any] | None = None, dtype: Any = jnp.float32, **overrides: Any
) -> Assembled:
    """Finds and checks a RAFT's tensors; arguments and errors as for `assemble.assemble_unet`.

    The layouts of princeton-vl and of torchvision are read, large and small.
    """
    return _assembled("RAFT", "raft", RAFTConfig, source, config, dtype, overrides)


def load_raft(source: Source, *, place: Place = to_device, **options: Any) -> tuple[RAFTConfig, dict[str, Any]]:
    """Loads a RAFT; arguments, returns and errors are those of `assemble.load_unet`."""
    return assemble_raft(source, **options).load(place)


def assemble_dover(
    source: Source, *, config: Mapping[str, Any] | None = None, dtype: Any = jnp.float32, **overrides: Any
) -> Assembled:
    """Finds and checks a DOVER's tensors; arguments and errors as for `assemble.assemble_unet`."""
    return _assembled("DOVER", "dover", DOVERConfig, source, config, dtype, overrides)


def load_dover(source: Source, *, place: Place = to_device, **options: Any) -> tuple[DOVERConfig, dict[str, Any]]:
    """Loads DOVER; arguments, returns and errors are those of `assemble.load_unet`."""
    return assemble_dover(source, **options).load(place)


def _assembled(title, component, cls, source, config, dtype, overrides) -> Assembled:
    imported = import_component(source, component)
    overrides = {name: value for name, value in overrides.items() if name not in NOT_OF_THESE}
    fields = dict(dtype=dtype, param_dtype=dtype) | overrides
    return assembled_whole(title, replaced(config_of(cls, config, imported), fields), imported)


NOT_OF_THESE = ("attention", "remat", "scan_blocks")
"""How UNets are computed, which is set for all networks alike."""

ASSEMBLE: Mapping[str, Callable[..., Assembled]] = {"raft": assemble_raft, "dover": assemble_dover}
"""Component -> what assembles it from one source."""


def with_made_buffers(component: str, parameters: Tensors, buffers: Tensors, config: Any) -> Tensors:
    """Returns what a network's file holds beside its weights: what came with them, and else what can be made of them.

    Args:
        component: a name of `ASSEMBLE`; others get back what came.
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


MAKE: Mapping[str, Callable[[Tensors, Tensors, Any], Mapping[str, Entry]]] = {
    "raft": doubled_norms,
    "dover": index_tables,
}
"""Component -> what makes the buffers of its file."""
