"""Recorded runs of the published I3D: weights by rule, in both layouts."""

import functools

import numpy as np

from i2v_jax.models.i3d import PUBLISHED, I3DConfig
from tests.metric_oracles import draws, settings

PLACES = {"b0": "0", "b1a": "1.0", "b1b": "1.1", "b2a": "2.0", "b2b": "2.1", "b3b": "3.1"}


def config(name: str) -> I3DConfig:
    """Returns the config of the run "full" or "small"."""
    of_run = settings("i3d")[name]
    return I3DConfig(tuple(of_run["stem"]), tuple(sum(of_run.get("widths", []), [])) or PUBLISHED, of_run["classes"])


@functools.cache
def state(name: str) -> dict[str, np.ndarray]:
    """Returns the weights of a run under piergiaj's names, by the rule."""
    c = config(name)
    units = {"Conv3d_1a_7x7": (7, 3, c.stem[0]), "Conv3d_2b_1x1": (1, *c.stem[:2]), "Conv3d_2c_3x3": (3, *c.stem[1:])}
    inputs = c.stem[-1]
    for block, (b0, b1a, b1b, b2a, b2b, b3b) in c.blocks.items():
        of_block = dict(b0=(1, inputs, b0), b1a=(1, inputs, b1a), b1b=(3, b1a, b1b), b2a=(1, inputs, b2a))
        of_block |= dict(b2b=(3, b2a, b2b), b3b=(1, inputs, b3b))
        units |= {f"Mixed_{block}.{unit}": sizes for unit, sizes in of_block.items()}
        inputs = b0 + b1b + b2b + b3b
    made = {}
    for unit, (side, before, after) in units.items():
        made[f"{unit}.conv3d.weight"] = (after, before, side, side, side)
        made |= {f"{unit}.bn.{leaf}": (after,) for leaf in ("weight", "bias", "running_mean", "running_var")}
        made[f"{unit}.bn.num_batches_tracked"] = ()
    made |= {"logits.conv3d.weight": (c.classes, inputs, 1, 1, 1), "logits.conv3d.bias": (c.classes,)}
    return {key: value(key, shape) for key, shape in made.items()}


def value(key: str, shape: tuple[int, ...]) -> np.ndarray:
    """Returns an entry of a state, by the rule."""
    leaf = key.rpartition(".")[2]
    if leaf == "num_batches_tracked":
        return np.array(7)
    z = draws(f"i3d:{key}", shape)
    if leaf == "running_var":
        z = 0.5 + 0.2 * np.abs(z)
    elif len(shape) == 1:
        z = (leaf == "weight") + 0.1 * z
    else:
        z = z * (2 / np.prod(shape[1:])) ** 0.5
    return z.astype(np.float32)


def as_hassony(weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns the same under hassony2's names."""
    named = {}
    for key, array in weights.items():
        unit, part, leaf = key.rsplit(".", 2)
        head, dot, branch = unit.partition(".")
        unit = "conv3d_0c_1x1" if unit == "logits" else head[0].lower() + head[1:]
        unit += f".branch_{PLACES[branch]}" if dot else ""
        named[f"{unit}.{'batch3d' if part == 'bn' else part}.{leaf}"] = array
    return named
