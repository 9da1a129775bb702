"""What an adapter is: an attention beside a frozen network's own, and every fact about it that others need."""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import numpy as np
from jaxtyping import Array, Float

from i2v_jax.models.adapters.windows import Window
from i2v_jax.models.conditions import Conditions

SITES = ("attn1", "attn2", "motion")
"""Spatial self-attention, cross-attention, motion module."""
ADAPTER_PATH = re.compile(
    rf".*/(?:attention/blocks_\d+/(?=attn)|(?=motion/))(?P<site>{'|'.join(SITES)})"
    r"/(?P<name>(?!to_|miva/|norm/|proj_|blocks_)\w+)/(?P<leaf>.*)"
)
"""Paths of adapters' parameters in a UNet: what lies below an attention or a motion module and is no layer of its own.
MIVAs, which lie below both, are no `Adapter`s."""
OWN_LAYER = {"attn1": "to_q", "attn2": "to_q", "motion": "proj_in"}
"""A dense layer that every such site has."""


class Shared(NamedTuple):
    """What all layers of a UNet see, handed down unchanged."""

    time: Float[Array, "b e"]  # timestep embedding
    conditions: Conditions
    strengths: Mapping[str, Any] = {}  # of adapters, by name
    masks: Mapping[int, Float[Array, "b s n"]] | None = None  # of MIVAs, by the number of a level's places
    window: Window | None = None  # where frame 1 is, if the network runs on windows of a video

    def strength(self, adapter: str) -> Any:
        """The strength of an adapter; 1, as trained, where none is given."""
        return self.strengths.get(adapter, 1.0)


@dataclasses.dataclass(frozen=True)
class Adapter:
    """A branch of one kind of attention, or of motion modules.

    Its parameters lie at `.../SITE/NAME/...`. Which part of a UNet a weight belongs to, what is filled in where a file
    lacks it, name tables and messages follow from what stands here.

    Attributes:
      name: of its parameters' folder, and in a `UNetConfig`.
      site: one of `SITES`.
      module: is made with `implementation`, `dtype`, `param_dtype`, `name`; takes `(Projections, Shared)` and returns
        `(inner, outer)`, see `models.attention.Attention`. Of a motion module: is made with `frames` too, how many it
        knows; takes (features behind its first layer [b s f c], Shared) and returns them changed.
      title: what messages call it.
      weights: what tables of `python -m convert` call its weights; "" for its title.
      product: what `python -m convert inspect` says of a model that has it; None for its title, "" where other weights
        of the file tell.
      published: (name below the attention's in PyTorch, name here) of each of its dense layers.
      spellings: further names, by who writes them: "diffusers" for a UNet that has loaded it.
      arrays: (name there, name here) of each parameter that is of no dense layer.
      copies: layer here -> the attention's own layer that a new one, or one that a file lacks, starts as.
      starts: parameter here -> what makes it in a new adapter, of its shape and a random generator that depends on its
        path; all others start at zero.
      layout: which format of others has a place for its weights, for messages.
    """

    name: str
    site: str
    module: type[nn.Module]
    title: str
    published: tuple[tuple[str, str], ...]
    spellings: Mapping[str, tuple[tuple[str, str], ...]] = dataclasses.field(default_factory=dict)
    arrays: tuple[tuple[str, str], ...] = ()
    copies: Mapping[str, str] = dataclasses.field(default_factory=dict)
    starts: Mapping[str, Callable[[tuple[int, ...], np.random.Generator], np.ndarray]] = dataclasses.field(
        default_factory=dict
    )
    weights: str = ""
    product: str | None = None
    layout: str = "the published I2V-Adapter layout"
