"""Control networks from wherever their weights are; of which kind one is, its file tells."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from i2v_jax.errors import InputError
from i2v_jax.models.controlnet import ControlNetConfig, of_unet
from i2v_jax.models.networks import parameter_shapes
from i2v_jax.models.sparse_control import SparseControlNetConfig
from i2v_jax.models.t2i_adapter import T2IAdapterConfig
from i2v_jax.models.unet import UNetConfig
from i2v_jax.weights.assemble import Assembled, Place, Source, assembled_whole, import_component, to_device
from i2v_jax.weights.configs import config_of, replaced
from i2v_jax.weights.kinds.find import refuse_unread
from i2v_jax.weights.storage.open import open_tensors
from i2v_jax.weights.tensors import Entry, Tensors
from i2v_jax.weights.translate import check_positions, recognise, without_unknown

FOLDER = "controlnet"
"""Where a control network lies in a pipeline's folder; a T2I-Adapter lies in `adapter`."""


PICTURE_EMBEDDING = "controlnet_cond_embedding"


def new_config(unet: UNetConfig, picture_scale: int) -> ControlNetConfig:
    """Returns the config of a new ControlNet; arguments as of `new_controlnet`, but for the UNet's config alone."""
    plain = dataclasses.replace(
        unet,
        motion=None,
        pooled_norms=False,
        self_attention_branches=(),
        cross_attention_branches=(),
        motion_branches=(),
    )
    levels = picture_scale.bit_length()
    return dataclasses.replace(of_unet(plain), picture_widths=ControlNetConfig.picture_widths[:levels])


def new_controlnet(unet: Assembled, picture_scale: int, rng: np.random.Generator) -> Assembled:
    """Returns a ControlNet that changes nothing yet (Zhang et al. 2023): copies of a UNet's layers, outputs of zeros.

    Args:
        unet: what it is for; motion modules and adapters are left out.
        picture_scale: side of a picture over that of its latents, a power of 2.
        rng: draws the first layers of the picture's embedding.
    """
    config = new_config(unet.config, picture_scale)

    def begin(path: str, shape: tuple[int, ...]) -> Entry:
        if path in unet.parameters:
            return unet.parameters.entries[path]
        is_first = path.startswith(PICTURE_EMBEDDING) and "/conv_out/" not in path and path.endswith("/kernel")
        spread = math.prod(shape[:-1]) ** -0.5 if is_first else 0.0
        return Entry.of(rng.normal(0, spread, shape).astype(np.float32))

    entries = {path: begin(path, leaf.shape) for path, leaf in parameter_shapes(config).items()}
    return Assembled(config, unet.parameters.holding(entries), Tensors.of({}))


def load_controlnet(
    source: Source, *, place: Place = to_device, **options: Any
) -> tuple[ControlNetConfig, dict[str, Any]]:
    """Loads a ControlNet: a component's or a pipeline's folder, a file, a hub id.

    Arguments, returns and errors are those of `assemble.load_unet`.
    """
    return assemble_controlnet(source, **options).load(place)


def assemble_controlnet(
    source: Source, *, config: Mapping[str, Any] | None = None, dtype: Any = jnp.float32, **overrides: Any
) -> Assembled:
    """Finds and checks a ControlNet's tensors; see `load_controlnet` and `assemble.assemble_unet`."""
    imported = import_component(source, "controlnet")
    fields = dict(dtype=dtype, param_dtype=dtype) | overrides
    return assembled_whole("ControlNet", replaced(config_of(ControlNetConfig, config, imported), fields), imported)


def assemble_sparse_controlnet(
    source: Source, *, config: Mapping[str, Any] | None = None, dtype: Any = jnp.float32, **overrides: Any
) -> Assembled:
    """Finds and checks a SparseCtrl's tensors; arguments and errors as for `assemble.assemble_unet`."""
    imported = import_component(_opened(source, FOLDER), "sparse_controlnet")
    sparse = config_of(SparseControlNetConfig, config, imported)
    positions = check_positions(imported) or sparse.motion.max_positions
    motion = dataclasses.replace(sparse.motion, max_positions=positions)
    fields = dict(motion=motion, dtype=dtype, param_dtype=dtype) | overrides
    return assembled_whole("SparseCtrl", replaced(sparse, fields), imported)


def assemble_t2i_adapter(
    source: Source, *, config: Mapping[str, Any] | None = None, dtype: Any = jnp.float32, **overrides: Any
) -> Assembled:
    """Finds and checks a T2I-Adapter's tensors; arguments and errors as for `assemble.assemble_unet`.

    Of the overrides those count that it has: it has no attention.
    """
    imported = import_component(_opened(source, "adapter"), "t2i_adapter")
    overrides = {name: value for name, value in overrides.items() if name not in NOT_OF_T2I}
    fields = dict(dtype=dtype, param_dtype=dtype) | overrides
    return assembled_whole("T2I-Adapter", replaced(config_of(T2IAdapterConfig, config, imported), fields), imported)


def _opened(source: Source, folder: str) -> Any:
    """Tensors of a source that may be a pipeline's folder; what is recognised already stays so."""
    return open_tensors(source, folder) if isinstance(source, str | Path) else source


NOT_OF_T2I = ("attention", "remat", "scan_blocks")
"""How UNets are computed, which is set for all control networks alike."""

ASSEMBLE: Mapping[str, Callable[..., Assembled]] = {
    "controlnet": assemble_controlnet,
    "sparse_controlnet": assemble_sparse_controlnet,
    "t2i_adapter": assemble_t2i_adapter,
}
"""What a file is recognised as -> what assembles it."""


def assemble_control(
    source: Source,
    config_of_kind: Callable[[str], Mapping[str, Any]] = lambda kind: {},
    *,
    skip_unknown: bool = False,
    **options: Any,
) -> Assembled:
    """Finds and checks a control network's tensors, unread.

    Args:
        source: file, folder or hub id.
        config_of_kind: {"config": the config.json given for a kind, a name in `ASSEMBLE`}, {} where none is.
        skip_unknown: leave tensors out that nothing knows, with a warning, rather than refuse them.
        options: of what assembles its kind: `dtype`, fields of its config.

    Raises:
        InputError: it cannot be read, is no control network, or tensors are missing, unexpected or misshapen.
    """
    tensors = open_tensors(source, FOLDER)
    refuse_unread(tensors, tensors.source)
    found = recognise(tensors)
    component = next((name for name in ASSEMBLE if name in found), None)
    if component is None:
        held = ", ".join(f"{name} ({imported.table.name})" for name, imported in found.items())
        raise InputError(f"{tensors.source} holds no control network. It holds: {held}.")
    imported = without_unknown(found[component]) if skip_unknown else found[component]
    return ASSEMBLE[component](imported, **config_of_kind(component), **options)
