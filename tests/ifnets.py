"""IFNets of random weights, made by rule under the names of RIFE's files, and frames for them."""

import dataclasses
import zlib

import numpy as np

from i2v_jax.models.ifnet import OWN, PUBLISHED, IFNetConfig

SMALL = (16, 12, 8, 8, 8)
KINDS = {version: PUBLISHED[version] for version in ("4.25.lite",)}
KINDS |= {
    version: dataclasses.replace(config, widths=SMALL[: len(config.widths)], head_width=min(config.head_width, 8))
    for version, config in PUBLISHED.items()
    if version in ("4.5", "4.6", "4.7 to 4.9", "4.10 to 4.12", "4.14.lite", "4.21 to 4.23", "4.25, 4.26", "4.26.heavy")
}
"""Version -> config; narrow, but where widths tell the scales."""
CASES = {version: (0.5, 1.0) for version in KINDS} | {"4.7 to 4.9": (0.25, 0.5), "4.26.heavy": (0.7, 2.0)}
"""Version -> the moment, and the scale at which motion is sought."""
TRAINING = {"teacher.conv0.0.0.weight": (4, 7, 3, 3), "teacher.convblock.0.beta": (1, 4, 1, 1), "caltime.2.bias": (5,)}
"""{name: shape} of what some files have beside the network."""


def shapes(config: IFNetConfig) -> dict[str, tuple[int, ...]]:
    """{name: shape} of a file, without `module.`."""
    convolutions, found = {}, {}
    for number, name in enumerate(config.head[:-1]):
        convolutions[name] = (config.head_width, config.head_width if number else 3, 3, 3)
    if config.head:
        convolutions[config.head[-1]] = (config.head_width, config.features, 4, 4)
    convolutions = {f"encode.{name.removeprefix('layers_')}": shape for name, shape in convolutions.items()}
    for number, width in enumerate(config.widths):
        block = f"block{number}"
        given = 7 + 2 * config.features if number == 0 else OWN + 2 * config.features + config.carried
        convolutions |= {
            f"{block}.conv0.0.0": (width // 2, given, 3, 3),
            f"{block}.conv0.1.0": (width, width // 2, 3, 3),
        }
        for layer in range(config.layers):
            convolutions[f"{block}.convblock.{layer}.conv"] = (width, width // config.groups, 3, 3)
            found[f"{block}.convblock.{layer}.beta"] = (1, width, 1, 1)
        convolutions[f"{block}.lastconv.0"] = (width, 4 * config.outputs, 4, 4)
    for name, shape in convolutions.items():
        biases = shape[1] if shape[-1] == 4 else shape[0]
        found |= {f"{name}.weight": shape, f"{name}.bias": (biases,)}
    return found


def state(kind: str, training: bool = False) -> dict[str, np.ndarray]:
    """{name: array} of a file."""
    made = {}
    for name, shape in {**shapes(KINDS[kind]), **(TRAINING if training else {})}.items():
        rng = np.random.default_rng(zlib.crc32(f"{kind} {name}".encode()))
        centre, size = (1.0, 0.3) if name.endswith("beta") else (0.0, 0.1)
        if len(shape) == 4 and not centre:
            size = (4.0 if "lastconv" in name else 1.0) / np.sqrt(np.prod(shape[1:]))
        made[name] = (centre + rng.uniform(-size, size, shape)).astype(np.float32)
    return made


def frames(kind: str) -> np.ndarray:
    """Two frames, [2, h, w, 3], 0 to 1, no larger than the network asks for."""
    config, (_, scale) = KINDS[kind], CASES[kind]
    side = config.multiple(scale)
    return np.random.default_rng(0).uniform(0, 1, (2, side, max(side, 64), 3)).astype(np.float32)
