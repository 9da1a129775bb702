"""Recorded runs of RAFT, DOVER and EvalCrafter's metrics: videos and weights by rule, and what was recorded of them."""

import functools
import hashlib
import json
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

FOLDER = Path(__file__).parent / "data" / "oracles"


@functools.cache
def settings(name: str, file: str = "config") -> dict:
    """Returns a JSON file of an oracle."""
    return json.loads((FOLDER / name / f"{file}.json").read_text())


@functools.cache
def recorded(name: str, file: str = "io") -> dict[str, np.ndarray]:
    """Returns what an oracle's file holds, in PyTorch's layout."""
    return load_file(FOLDER / name / f"{file}.safetensors")


def video(rule: Mapping) -> np.ndarray:
    """Returns the video of a rule, uint8 [T H W 3], checked by its hash."""
    frames, height, width, seed = rule["rule_T_H_W_seed"]
    y, x, c = np.ogrid[:height, :width, :3]
    made = np.empty((frames, height, width, 3), np.uint8)
    for t in range(frames):
        a = (3 * x + 2 * y + 11 * t + 40 * c + 17 * seed) % 256
        b = 96 * (((x + 2 * t) // 16 + y // 16) % 2)
        n = (7919 * x + 104729 * y + 1299709 * t + 15485863 * c + 2750159 * seed) * 2654435761 % 2**32 // 2**27
        made[t] = a // 2 + b + n
    assert hashlib.sha256(np.ascontiguousarray(made).tobytes()).hexdigest() == rule["sha256"]
    return made


def draws(salted: str, shape) -> np.ndarray:
    """Returns the normal numbers of an entry of a state dict."""
    return np.random.RandomState(zlib.crc32(salted.encode())).standard_normal(shape)


def raft_state(kind: str, flow_head: float = 0.3) -> dict[str, np.ndarray]:
    """Returns the weights of princeton-vl's RAFT, "large" or "small", by the rule."""
    state = {}
    for name, (shape, dtype, _) in settings("raft", f"keys_{kind}").items():
        key = name.removeprefix("module.")
        if key.startswith("cnet."):
            key = key.replace(".downsample.1.", ".norm3.")
        state[name] = _raft_value(key, shape).astype(dtype)
        if "flow_head.conv2" in key:
            state[name] *= np.float32(flow_head)
    return state


def _raft_value(key: str, shape) -> np.ndarray:
    leaf = key.rpartition(".")[2]
    if leaf == "num_batches_tracked":
        return np.zeros(shape)
    z = draws("raft:" + key, shape)
    if leaf == "running_var":
        return 1 + 0.2 * np.abs(z)
    if leaf == "running_mean":
        return 0.1 * z
    if leaf == "bias":
        return 0.05 * z
    return 1 + 0.1 * z if len(shape) == 1 else z / np.sqrt(np.prod(shape[1:]))


def as_torchvision(state: Mapping[str, np.ndarray], kind: str) -> dict[str, np.ndarray]:
    """Returns a state under torchvision's names, without what it stores once."""
    names = settings("raft", f"keys_{kind}")
    return {names[name][2]: array for name, array in state.items() if names[name][2]}


@functools.cache
def dover_state(name: str) -> dict[str, np.ndarray]:
    """Returns the weights of `dover_full` or `dover_small` by the rule, under the names of `DOVER.pth`."""
    salt = "" if name == "dover_full" else "small:"
    window = (
        (8, 7, 7) if name == "dover_full" else tuple(settings("dover/dover_small")["technical_backbone"]["window_size"])
    )
    state = {}
    for key, (shape, dtype) in settings(f"dover/{name}", "keys").items():
        if key.endswith("relative_position_index"):
            state[key] = pairs_of(window)
            continue
        value = _dover_value(key, draws(salt + key, shape))
        if key.startswith(("technical_head.fc_last", "aesthetic_head.fc_last")):
            value = value * 0.3
        state[key] = value.astype(dtype)
    return state


def _dover_value(key: str, z: np.ndarray) -> np.ndarray:
    leaf = key.rpartition(".")[2]
    if leaf == "gamma":
        return 0.5 + 0.1 * z
    if key.endswith("position_bias_table"):
        return 0.5 * z
    if leaf == "bias":
        return 0.1 * z
    return 1 + 0.1 * z if z.ndim == 1 else z / np.sqrt(np.prod(z.shape[1:]))


def pairs_of(window) -> np.ndarray:
    """Returns a 3-D window's relative position indices, a pair at a time as the page on DOVER defines them."""
    wd, wh, ww = window
    d, h, w = (axis.ravel() for axis in np.mgrid[:wd, :wh, :ww])
    index = (d[:, None] - d + wd - 1) * (2 * wh - 1) + (h[:, None] - h + wh - 1)
    return (index * (2 * ww - 1) + (w[:, None] - w + ww - 1)).astype(np.int64)
