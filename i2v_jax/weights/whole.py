"""Networks that lie whole in a file of their own, wherever it is: those that measure videos or finish them."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp

from i2v_jax.models.dino import DINOConfig
from i2v_jax.models.dover import DOVERConfig
from i2v_jax.models.i3d import I3DConfig
from i2v_jax.models.ifnet import IFNetConfig
from i2v_jax.models.lpips import LPIPSConfig
from i2v_jax.models.raft import RAFTConfig
from i2v_jax.models.upscaler import UpscalerConfig
from i2v_jax.weights.assemble import Assembled, Place, Source, assembled_whole, import_component, to_device
from i2v_jax.weights.configs import config_of, replaced


class Whole(NamedTuple):
    """What a network is called, the class of its configs, and whether these say how it convolves."""

    title: str
    config: type
    convolves: bool = True


WHOLE: Mapping[str, Whole] = {
    "raft": Whole("RAFT", RAFTConfig),  # of princeton-vl and of torchvision, large and small
    "dover": Whole("DOVER", DOVERConfig),
    "lpips": Whole("LPIPS", LPIPSConfig),  # its classifier: of the package `lpips`, torchvision's AlexNet and VGG16
    "dino": Whole("DINO", DINOConfig, convolves=False),
    "i3d": Whole("I3D", I3DConfig, convolves=False),  # of piergiaj and of hassony2, the latter as TorchScript too
    "upscaler": Whole("upscaler", UpscalerConfig),  # RRDBNet in three layouts, SRVGGNet; the averaged weights, if any
    "ifnet": Whole("IFNet", IFNetConfig),  # RIFE 4.5 to 4.26, with a teacher beside it or without
}
"""By component; the layouts of its files that are read."""
OF_UNETS = ("attention", "remat", "scan_blocks")
"""How UNets are computed, which is set for all networks alike."""


def assemble_network(
    component: str,
    source: Source,
    *,
    config: Mapping[str, Any] | None = None,
    dtype: Any = jnp.float32,
    **overrides: Any,
) -> Assembled:
    """Finds and checks the tensors of a network of `WHOLE`; arguments and errors as for `assemble.assemble_unet`."""
    network = WHOLE[component]
    imported = import_component(source, component)
    strange = OF_UNETS if network.convolves else (*OF_UNETS, "convolution")
    fields = {name: value for name, value in overrides.items() if name not in strange}
    found = config_of(network.config, config, imported)
    return assembled_whole(network.title, replaced(found, dict(dtype=dtype, param_dtype=dtype) | fields), imported)


def load_network(
    component: str, source: Source, *, place: Place = to_device, **options: Any
) -> tuple[Any, dict[str, Any]]:
    """Loads a network of `WHOLE`: its config and parameters; arguments and errors are those of `assemble.load_unet`."""
    return assemble_network(component, source, **options).load(place)


ASSEMBLE: Mapping[str, Callable[..., Assembled]] = {
    component: functools.partial(assemble_network, component) for component in WHOLE
}
"""Component -> what assembles it from one source."""
