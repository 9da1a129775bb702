"""Upscalers of random weights, made by rule under the names of the files that the community has."""

import zlib

import numpy as np

CHANNELS = dict(features=8, growth=32, blocks=2)


def dense(names, doublings: int = 2, unshuffle: int = 1) -> dict[str, tuple[int, ...]]:
    """{name: shape} of an RRDBNet; `names` are of first, block, body, up, high and last convolution."""
    f, g = CHANNELS["features"], CHANNELS["growth"]
    first, block, body, up, high, last = names
    shapes = {first: (3 * unshuffle**2, f), body: (f, f), high: (f, f), last: (f, 3)}
    shapes |= {up(number): (f, f) for number in range(1, doublings + 1)}
    for i in range(CHANNELS["blocks"]):
        for j in (1, 2, 3):
            shapes |= {block(i, j, k): (f + (k - 1) * g, f if k == 5 else g) for k in range(1, 6)}
    found = {}
    for name, (given, made) in shapes.items():
        found |= {f"{name}.weight": (made, given, 3, 3), f"{name}.bias": (made,)}
    return found


def old_names(doublings: int):
    after = 3 * doublings
    return (
        "model.0",
        lambda i, j, k: f"model.1.sub.{i}.RDB{j}.conv{k}.0",
        f"model.1.sub.{CHANNELS['blocks']}",
        lambda number: f"model.{3 * number}",
        f"model.{after + 2}",
        f"model.{after + 4}",
    )


NEW = (
    "conv_first",
    lambda i, j, k: f"body.{i}.rdb{j}.conv{k}",
    "conv_body",
    "conv_up{}".format,
    "conv_hr",
    "conv_last",
)
CODE = ("conv_first", lambda i, j, k: f"RRDB_trunk.{i}.RDB{j}.conv{k}", "trunk_conv", "upconv{}".format, "HRconv")


def compact(factor: int, convolutions: int = 2) -> dict[str, tuple[int, ...]]:
    """{name: shape} of an SRVGGNet."""
    f, last = CHANNELS["features"], 2 * (convolutions + 1)
    shapes = {}
    for number in range(0, last + 1, 2):
        given, made = (3 if not number else f), (3 * factor**2 if number == last else f)
        shapes |= {f"body.{number}.weight": (made, given, 3, 3), f"body.{number}.bias": (made,)}
        shapes |= {} if number == last else {f"body.{number + 1}.weight": (f,)}
    return shapes


SHAPES = {
    "Real-ESRGAN x4": dense(NEW),
    "Real-ESRGAN x2": dense(NEW, unshuffle=2),
    "ESRGAN's code": dense((*CODE, "conv_last")),
    "ESRGAN x4": dense(old_names(2)),
    "ESRGAN x8": dense(old_names(3), doublings=3),
    "ESRGAN x1": dense(old_names(0), doublings=0),
    "SRVGGNet x4": compact(4),
    "SRVGGNet x2": compact(2, 3),
}
"""Kind of file -> {name: shape}."""


def state(kind: str) -> dict[str, np.ndarray]:
    """{name: array} of a file."""
    made = {}
    for name, shape in SHAPES[kind].items():
        rng = np.random.default_rng(zlib.crc32(f"{kind} {name}".encode()))
        size = 0.3 if len(shape) == 1 else 1.5 / np.sqrt(np.prod(shape[1:]))
        made[name] = rng.uniform(-size, size, shape).astype(np.float32)
    return made


def pictures() -> np.ndarray:
    """Two pictures of odd sides, [2, 7, 9, 3], 0 to 1."""
    return np.random.default_rng(0).uniform(0, 1, (2, 7, 9, 3)).astype(np.float32)
