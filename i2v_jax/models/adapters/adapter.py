"""What an adapter is: an attention beside a frozen network's own, and every fact about it that others need."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
from jaxtyping import Array, Float

from i2v_jax.models.conditions import Conditions

SITES = ("attn1", "attn2")
"""Spatial self-attention, cross-attention."""
ADAPTER_PATH = re.compile(
    rf".*/attention/blocks_\d+/(?P<site>{'|'.join(SITES)})/(?P<name>(?!to_|miva/)\w+)/(?P<leaf>.*)"
)
"""Paths of adapters' parameters in a UNet: what lies below an attention and is no layer of its own. MIVAs, which lie
below motion modules too, are no `Adapter`s."""


class Shared(NamedTuple):
    """What all layers of a UNet see, handed down unchanged."""

    time: Float[Array, "b e"]  # timestep embedding
    conditions: Conditions
    strengths: Mapping[str, Any] = {}  # of adapters, by name
    masks: Mapping[int, Float[Array, "b s n"]] | None = None  # of MIVAs, by the number of a level's places

    def strength(self, adapter: str) -> Any:
        """The strength of an adapter; 1, as trained, where none is given."""
        return self.strengths.get(adapter, 1.0)


@dataclasses.dataclass(frozen=True)
class Adapter:
    """A branch of one kind of attention.

    Its parameters lie at `.../SITE/NAME/...`. Which part of a UNet a weight belongs to, what is filled in where a file
    lacks it, name tables and messages follow from what stands here.

    Attributes:
      name: of its parameters' folder, and in a `UNetConfig`.
      site: one of `SITES`.
      module: is made with `implementation`, `dtype`, `param_dtype`, `name`; takes `(Projections, Shared)` and returns
        `(inner, outer)`, see `models.attention.Attention`.
      title: what messages call it.
      weights: what tables of `python -m convert` call its weights; "" for its title.
      product: what `python -m convert inspect` says of a model that has it; None for its title, "" where other weights
        of the file tell.
      published: (name below the attention's in PyTorch, name here) of each of its dense layers.
      spellings: further names, by who writes them: "diffusers" for a UNet that has loaded it.
      copies: layer here -> the attention's own layer that a new one, or one that a file lacks, starts as; all other
        parameters of a new adapter start at zero.
      layout: which format of others has a place for its weights, for messages.
    """

    name: str
    site: str
    module: type[nn.Module]
    title: str
    published: tuple[tuple[str, str], ...]
    spellings: Mapping[str, tuple[tuple[str, str], ...]] = dataclasses.field(default_factory=dict)
    copies: Mapping[str, str] = dataclasses.field(default_factory=dict)
    weights: str = ""
    product: str | None = None
    layout: str = "the published I2V-Adapter layout"
