"""A LoRA to train (Hu et al. 2021): factors beside the kernels that they change, `LAYER/lora/{down,up}`.

A model with them is run with the factors merged, as it is when it is sampled with; so what is trained for is what is
seen later, a kernel's rounding included. A file of trained factors is a LoRA like any other.
"""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from i2v_jax.errors import InputError, nearest
from i2v_jax.weights.assemble import Assembled
from i2v_jax.weights.changes import merged_weight
from i2v_jax.weights.tensors import Entry

FACTORS = "/lora/"
COMPONENTS = ("unet", "text_encoder", "text_encoder_2")
"""Those that LoRA files are of."""
KERNEL = "/kernel"


def factor_shapes(kernels: Mapping[str, tuple[int, ...]], layers: Sequence[str], rank: int) -> dict[str, tuple]:
    """Returns {path: shape} of the factors of some layers: `down` [..., in, rank] and `up` [rank, out].

    Args:
      kernels: path `component/...` -> shape, of a model's parameters; those that are no kernels are passed over.
      layers: patterns of whole paths of layers, such as `unet/.*/attention/.*/to_(q|k|v|out)`.
      rank: of the change.

    Raises:
      InputError: a rank below 1, no pattern, or one that is none, or that matches no layer.
    """
    if rank < 1:
        raise InputError(f"lora.rank={rank}: wanted 1 or more; 0 for no LoRA.")
    if not layers:
        raise InputError(
            "lora.layers names no layers; wanted a pattern, such as 'unet/.*/attention/.*/to_(q|k|v|out)'."
        )
    known, shapes = {path.removesuffix(KERNEL): shape for path, shape in kernels.items() if path.endswith(KERNEL)}, {}
    for pattern in layers:
        try:
            chosen = [layer for layer in known if re.fullmatch(pattern, layer)]
        except re.error as error:
            raise InputError(f"lora.layers: {pattern!r} is not a regular expression: {error}.") from error
        if not chosen:
            raise InputError(f"lora.layers: the pattern {pattern!r} matches no layer.{nearest(pattern, list(known))}")
        if others := [layer for layer in chosen if layer.partition("/")[0] not in COMPONENTS]:
            raise InputError(
                f"lora.layers: the pattern {pattern!r} matches {others[0]!r}; a LoRA is of {', '.join(COMPONENTS)}."
            )
        for layer in chosen:
            *window, inputs, outputs = known[layer]
            shapes[f"{layer}{FACTORS}down"] = (*window, inputs, rank)
            shapes[f"{layer}{FACTORS}up"] = (rank, outputs)
    return shapes


def with_new_lora(
    assembled: Mapping[str, Assembled], layers: Sequence[str], rank: int, rng: np.random.Generator
) -> dict[str, Assembled]:
    """Returns components with factors that change nothing yet: `down` as PyTorch's layers begin, uniform; `up` zeros.

    Args:
      assembled: component -> what was found.
      layers, rank: as for `factor_shapes`.
      rng: is drawn from.
    """
    whole = {f"{name}/{path}": entry for name, it in assembled.items() for path, entry in it.parameters.entries.items()}
    added: dict[str, dict[str, Entry]] = {}
    for path, shape in factor_shapes({path: entry.shape for path, entry in whole.items()}, layers, rank).items():
        spread = math.prod(shape[:-1]) ** -0.5 if path.endswith("down") else 0.0
        component, _, rest = path.partition("/")
        factor = rng.uniform(-spread, spread, shape).astype(np.float32)
        added.setdefault(component, {})[rest] = Entry.of(factor)
    found = dict(assembled)
    for component, entries in added.items():
        old = found[component]
        parameters = old.parameters.holding(old.parameters.entries | entries)
        found[component] = dataclasses.replace(old, parameters=parameters)
    return found


def merged(flat: Mapping[str, Array]) -> dict[str, Any]:
    """Returns a model's parameters by path with all factors merged into their kernels, in these' own dtype."""
    whole = {path: leaf for path, leaf in flat.items() if FACTORS not in path}
    with jax.default_matmul_precision("highest"):
        for layer in dict.fromkeys(path.rpartition(FACTORS)[0] for path in flat if path not in whole):  # in one order
            kernel, factors = whole[layer + KERNEL], {leaf: flat[f"{layer}{FACTORS}{leaf}"] for leaf in ("down", "up")}
            factors = {leaf: jnp.asarray(factor, jnp.float32) for leaf, factor in factors.items()}
            change = merged_weight(jnp.asarray(kernel, jnp.float32), factors, 1.0)
            whole[layer + KERNEL] = change.astype(kernel.dtype)
    return whole
