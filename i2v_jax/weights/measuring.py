"""Networks that measure videos, from wherever their weights are; what their files hold beside weights."""

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32
from safetensors.numpy import load_file

from i2v_jax.errors import InputError
from i2v_jax.models.dino import DINOConfig
from i2v_jax.models.dover import DOVERConfig
from i2v_jax.models.i3d import I3DConfig
from i2v_jax.models.lpips import MEAN, STD, LPIPSConfig
from i2v_jax.models.raft import RAFTConfig
from i2v_jax.models.video_swin import relative_index
from i2v_jax.weights.assemble import Assembled, Place, Source, assembled_whole, import_component, to_device
from i2v_jax.weights.configs import config_of, replaced
from i2v_jax.weights.formats.dover import INDEX
from i2v_jax.weights.formats.lpips import HEAD, SCALING, SECOND_HEAD
from i2v_jax.weights.formats.raft import BATCH_NORM, COUNT, DOUBLED
from i2v_jax.weights.tensors import Entry, Tensors


def assemble_raft(
    source: Source, *, config: Mapping[str, Any] | None = None, dtype: Any = jnp.float32, **overrides: Any
) -> Assembled:
    """Finds and checks a RAFT's tensors; arguments and errors as for `assemble.assemble_unet`.

    The layouts of princeton-vl and of torchvision are read, large and small.
    """
    return assembled("RAFT", "raft", RAFTConfig, source, config, dtype, overrides)


def load_raft(source: Source, *, place: Place = to_device, **options: Any) -> tuple[RAFTConfig, dict[str, Any]]:
    """Loads a RAFT; arguments, returns and errors are those of `assemble.load_unet`."""
    return assemble_raft(source, **options).load(place)


def assemble_dover(
    source: Source, *, config: Mapping[str, Any] | None = None, dtype: Any = jnp.float32, **overrides: Any
) -> Assembled:
    """Finds and checks a DOVER's tensors; arguments and errors as for `assemble.assemble_unet`."""
    return assembled("DOVER", "dover", DOVERConfig, source, config, dtype, overrides)


def load_dover(source: Source, *, place: Place = to_device, **options: Any) -> tuple[DOVERConfig, dict[str, Any]]:
    """Loads DOVER; arguments, returns and errors are those of `assemble.load_unet`."""
    return assemble_dover(source, **options).load(place)


def assemble_lpips(
    source: Source, *, config: Mapping[str, Any] | None = None, dtype: Any = jnp.float32, **overrides: Any
) -> Assembled:
    """Finds and checks the tensors of LPIPS's classifier; arguments and errors as for `assemble.assemble_unet`.

    A file of the package `lpips`, or torchvision's AlexNet or VGG16.
    """
    return assembled("LPIPS", "lpips", LPIPSConfig, source, config, dtype, overrides)


def load_lpips(
    source: Source, *, place: Place = to_device, **options: Any
) -> tuple[LPIPSConfig, dict[str, Any], list[Float32[np.ndarray, " c"]]]:
    """Loads LPIPS: config, parameters of the classifier, and the heads, the file's own or the published ones.

    Arguments and errors are those of `assemble.load_unet`.
    """
    assembled = assemble_lpips(source, **options)
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


def assemble_dino(
    source: Source, *, config: Mapping[str, Any] | None = None, dtype: Any = jnp.float32, **overrides: Any
) -> Assembled:
    """Finds and checks the tensors of a DINO; arguments and errors as for `assemble.assemble_unet`."""
    overrides = {name: value for name, value in overrides.items() if name != "convolution"}
    return assembled("DINO", "dino", DINOConfig, source, config, dtype, overrides)


def load_dino(source: Source, *, place: Place = to_device, **options: Any) -> tuple[DINOConfig, dict[str, Any]]:
    """Loads DINO; arguments, returns and errors are those of `assemble.load_unet`."""
    return assemble_dino(source, **options).load(place)


def assemble_i3d(
    source: Source, *, config: Mapping[str, Any] | None = None, dtype: Any = jnp.float32, **overrides: Any
) -> Assembled:
    """Finds and checks the tensors of an I3D; arguments and errors as for `assemble.assemble_unet`.

    The layouts of piergiaj and of hassony2 are read, the latter as TorchScript too.
    """
    overrides = {name: value for name, value in overrides.items() if name != "convolution"}
    return assembled("I3D", "i3d", I3DConfig, source, config, dtype, overrides)


def load_i3d(source: Source, *, place: Place = to_device, **options: Any) -> tuple[I3DConfig, dict[str, Any]]:
    """Loads I3D; arguments, returns and errors are those of `assemble.load_unet`."""
    return assemble_i3d(source, **options).load(place)


def assembled(
    title: str,
    component: str,
    cls: type,
    source: Source,
    config: Mapping[str, Any] | None,
    dtype: Any,
    overrides: Mapping[str, Any],
) -> Assembled:
    """Returns a network that is whole in its file; arguments as of those that call it, with its name and config."""
    imported = import_component(source, component)
    overrides = {name: value for name, value in overrides.items() if name not in NOT_OF_THESE}
    fields = dict(dtype=dtype, param_dtype=dtype) | overrides
    return assembled_whole(title, replaced(config_of(cls, config, imported), fields), imported)


NOT_OF_THESE = ("attention", "remat", "scan_blocks")
"""How UNets are computed, which is set for all networks alike."""

ASSEMBLE: Mapping[str, Callable[..., Assembled]] = {
    "raft": assemble_raft,
    "dover": assemble_dover,
    "lpips": assemble_lpips,
    "dino": assemble_dino,
    "i3d": assemble_i3d,
}
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
