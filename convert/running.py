"""`verify --run`: every component of a conversion on random input, in float32, against the source's PyTorch model."""

import dataclasses
import functools
import gc
import importlib.util
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from convert.parts import adapter_part, part_of
from convert.tables import table
from i2v_jax.errors import InputError
from i2v_jax.models.adapters import ADAPTERS, at_site
from i2v_jax.models.conditions import Conditions
from i2v_jax.models.networks import module_of
from i2v_jax.models.unet import UNetConfig
from i2v_jax.tree import unflatten
from i2v_jax.weights.assemble import Assembled
from i2v_jax.weights.checkpoint import Checkpoint, recognise_in
from i2v_jax.weights.tensors import Tensors

BAR = 1e-5
"""Relative error at most, where no value was rounded."""
ROUNDED = {"float16": 5e-3, "bfloat16": 5e-2}
"""Where the conversion rounded the weights to a dtype: what rounding explains."""
VIDEOS, FRAMES, SIDE, TOKENS = 1, 2, 16, 7  # of the input; the side is of the latents
PICTURE_SIDE = 64  # of what autoencoders are given

Outputs = dict[str, list[np.ndarray]]
"""Name -> arrays, in PyTorch's order of axes."""


def compare_outputs(files: list[tuple[Tensors, str]], source: Checkpoint, converted: Checkpoint) -> bool | None:
    """Prints how far our networks with the converted weights are from PyTorch's with the source's.

    Args:
        files: the files of the source, as `open_files` gives them; none where the source's weights are in no file (a
            LoRA is merged into them), and only this program's tables can name them for PyTorch.
        source, converted: the two, opened. Components that only one of them holds are passed over.

    Returns:
        Whether every error is within its bar; None where nothing could be run.

    Raises:
        InputError: PyTorch or diffusers is not installed.
    """
    if missing := [name for name in ("torch", "diffusers", "transformers") if importlib.util.find_spec(name) is None]:
        raise InputError(f"--run compares with PyTorch's models: `pip install {' '.join(missing)}`, or leave it out.")
    recognised = [(tensors, recognise_in(tensors, folder)) for tensors, folder in files]
    rows, notes = [], []
    shared = [name for name in source.components if name in converted.components and name in NETWORKS]
    for component in tqdm(shared, desc="running", unit="component", leave=False):
        ours, theirs = converted.components[component], source.components[component]
        held, wanted = ({part_of(component, path) for path in side.parameters} for side in (ours, theirs))
        parts = (held & wanted) - {f"{component}: LoRA", *_without_counterpart(component)}
        if component not in parts:
            notes.append(f"{component}: only parts of it are there, which do not run without the base")
            continue
        notes += [f"{part}: left out on both sides, PyTorch has no such part" for part in (held & wanted) - parts]
        pieces = [(tensors, found[component]) for tensors, found in recognised if component in found]
        try:
            errors, by = _errors(component, ours, theirs, pieces, parts)
        except InputError as error:
            notes.append(f"{component}: not run. {error}")
            continue
        notes += _config_notes(component, *(_runnable(side.config, component, parts) for side in (theirs, ours)))
        bar = _bar(ours, theirs)
        rows += [(component, what, f"{error:.1e}", f"{bar:.0e}", _verdict(error, bar), by) for what, error in errors]
        if f"{component}: motion modules" in parts:
            notes.append(f"{component}: group norms over frames were set as diffusers computes them, on both sides")
    if rows:
        print(table(("component", "output", "relative error", "bar", "", "PyTorch weights by"), rows))
    for note in notes or ([] if rows else ["There is nothing to run that both hold."]):
        print(note)
    return all(row[4] == "ok" for row in rows) if rows else None


def _without_counterpart(component: str) -> set[str]:
    """Parts of adapters that diffusers has no place for."""
    return {adapter_part(component, name) for name, adapter in ADAPTERS.items() if "diffusers" not in adapter.spellings}


def _config_notes(component: str, theirs: Any, ours: Any) -> list[str]:
    fields = [field.name for field in dataclasses.fields(theirs)] if type(theirs) is type(ours) else []
    pairs = [(name, getattr(theirs, name), getattr(ours, name)) for name in fields]
    return [
        f"{component}: its config says {name}={one} in the source, {other} in the converted (--config sets both)"
        for name, one, other in pairs
        if one != other
    ]


def _verdict(error: float, bar: float) -> str:
    return "ok" if error <= bar else "WRONG"  # NaN is wrong, too


def _bar(ours: Assembled, theirs: Assembled) -> float:
    there = theirs.parameters.entries
    rounded = {
        entry.dtype.name
        for path, entry in ours.parameters.entries.items()
        if path in there and entry.dtype != there[path].dtype
    }
    return max((ROUNDED[name] for name in rounded if name in ROUNDED), default=BAR)


def _errors(component: str, ours: Assembled, theirs: Assembled, pieces: list, parts: set[str]) -> tuple[list, str]:
    """(output, relative error) of all, and who read PyTorch's weights. One model after the other is in memory."""
    import torch

    from convert.torch_models import torch_model

    network = NETWORKS[component]
    given = network.inputs(_runnable(theirs.config, component, parts), np.random.default_rng(0))
    model, by = torch_model(component, _runnable(theirs.config, component, parts), theirs, pieces, parts)
    with torch.no_grad():
        wanted = {
            name: [np.asarray(array) for array in arrays] for name, arrays in network.theirs(model, given).items()
        }
    del model
    gc.collect()
    config = _runnable(ours.config, component, parts)
    parameters = unflatten(
        {
            path: jnp.asarray(np.asarray(entry.read(), np.float32))
            for path, entry in ours.parameters.entries.items()
            if part_of(component, path) in parts
        }
    )
    outputs = network.ours(config, {"params": parameters}, given)
    return [
        (name, max(_relative_error(out, ref) for out, ref in zip(outputs[name], wanted[name], strict=True)))
        for name in wanted
    ], by


def _relative_error(out: np.ndarray, ref: np.ndarray) -> float:
    out, ref = np.asarray(out, np.float64), np.asarray(ref, np.float64)
    if out.shape != ref.shape:
        return np.inf
    return float(np.linalg.norm(out - ref) / np.linalg.norm(ref))


def _runnable(config: Any, component: str, parts: set[str]) -> Any:
    """The config in float32; of a UNet, with these parts and with the norms that diffusers has."""
    changes: dict[str, Any] = dict(dtype=jnp.float32, param_dtype=jnp.float32)
    if type(config) is UNetConfig:
        motion = config.motion if f"{component}: motion modules" in parts else None
        adapters = [name for name in ADAPTERS if adapter_part(component, name) in parts]
        changes |= dict(
            motion=motion and dataclasses.replace(motion, pooled_norm=True),
            pooled_norms=False,
            self_attention_branches=at_site(adapters, "attn1"),
            cross_attention_branches=at_site(adapters, "attn2"),
        )
    return dataclasses.replace(config, **changes)


# What each kind of network is given, and how it is called here and there.


class Network(NamedTuple):
    """Random input for a config; our network's outputs; PyTorch's."""

    inputs: Callable[[Any, np.random.Generator], dict[str, np.ndarray]]
    ours: Callable[[Any, dict, dict[str, np.ndarray]], Outputs]
    theirs: Callable[[Any, dict[str, np.ndarray]], dict[str, list]]


def _normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape, np.float32)


def _unet_inputs(c: UNetConfig, rng: np.random.Generator) -> dict[str, np.ndarray]:
    side = max(SIDE, c.downscale)
    given = dict(
        sample=_normal(rng, VIDEOS, FRAMES, side, side, c.in_channels),
        timesteps=rng.integers(0, 1000, VIDEOS).astype(np.int32),
        text=_normal(rng, VIDEOS, TOKENS, c.cross_attention_dim),
    )
    if c.cross_attention_branches:
        given["image_tokens"] = _normal(rng, VIDEOS, TOKENS, c.cross_attention_dim)
    if added := c.added_conditioning:
        pooled = added.projection_input_dim - 6 * added.time_dim
        given["text_embeds"] = _normal(rng, VIDEOS, pooled)
        given["time_ids"] = rng.integers(0, 1024, (VIDEOS, 6)).astype(np.float32)
    return given


def _controlnet_inputs(c: Any, rng: np.random.Generator) -> dict[str, np.ndarray]:
    given = _unet_inputs(c, rng)
    side = c.picture_scale * given["sample"].shape[2]
    return given | dict(picture=rng.random((VIDEOS, FRAMES, side, side, 3), np.float32))


def _our_call(given: dict[str, np.ndarray]) -> dict[str, Any]:
    names = ("text", "image_tokens", "text_embeds", "time_ids")
    call = {name: array for name, array in given.items() if name not in names}
    return call | {"conditions": Conditions.of_videos(*map(given.get, names))}


def _our_unet(c: UNetConfig, variables: dict, given: dict[str, np.ndarray]) -> Outputs:
    out = jax.jit(module_of(c).apply)(variables, **_our_call(given))
    return {"noise": [_pictures(np.asarray(out))]}


def _our_controlnet(c: Any, variables: dict, given: dict[str, np.ndarray]) -> Outputs:
    down, middle = jax.jit(module_of(c).apply)(variables, **_our_call(given))
    return {"residuals": [_pictures(np.asarray(residual)) for residual in (*down, middle)]}


def _pictures(video: np.ndarray) -> np.ndarray:
    """[b f h w c] -> [b*f c h w]."""
    return np.moveaxis(video.reshape(-1, *video.shape[2:]), -1, 1)


def _tensor(array: np.ndarray) -> Any:
    import torch

    return torch.from_numpy(np.ascontiguousarray(array))


def _per_frame(array: np.ndarray) -> Any:
    return _tensor(np.repeat(array, FRAMES, 0))


def _their_unet(model: Any, given: dict[str, np.ndarray]) -> dict[str, list]:
    is_video = type(model).__name__ == "UNetMotionModel"
    each = _tensor if is_video else _per_frame  # a picture model takes the frames for pictures
    added = {name: each(given[name]) for name in ("text_embeds", "time_ids") if name in given}
    if "image_tokens" in given:
        added["image_embeds"] = [each(given["image_tokens"])[:, None]]
    sample = np.moveaxis(given["sample"], -1, 1) if is_video else _pictures(given["sample"])
    out = model(
        _tensor(sample), each(given["timesteps"]), _per_frame(given["text"]), added_cond_kwargs=added or None
    ).sample
    return {"noise": [out.movedim(2, 1).flatten(0, 1) if is_video else out]}


def _their_controlnet(model: Any, given: dict[str, np.ndarray]) -> dict[str, list]:
    added = {name: _per_frame(given[name]) for name in ("text_embeds", "time_ids") if name in given}
    down, middle = model(
        _tensor(_pictures(given["sample"])),
        _per_frame(given["timesteps"]),
        _per_frame(given["text"]),
        controlnet_cond=_tensor(_pictures(given["picture"])),
        added_cond_kwargs=added or None,
        return_dict=False,
    )
    return {"residuals": [*down, middle]}


def _vae_inputs(c: Any, rng: np.random.Generator) -> dict[str, np.ndarray]:
    pictures = rng.uniform(-1, 1, (2, PICTURE_SIDE, PICTURE_SIDE, 3)).astype(np.float32)
    return dict(pictures=pictures, latents=_normal(rng, 2, SIDE // 2, SIDE // 2, c.latent_channels))


def _our_vae(c: Any, variables: dict, given: dict[str, np.ndarray]) -> Outputs:
    encode, decode = (jax.jit(functools.partial(module_of(c).apply, method=method)) for method in ("encode", "decode"))
    moments = np.concatenate(encode(variables, given["pictures"]), -1)
    pictures = np.asarray(decode(variables, given["latents"]))
    return {"latents": [np.moveaxis(moments, -1, 1)], "pictures": [np.moveaxis(pictures, -1, 1)]}


def _their_vae(model: Any, given: dict[str, np.ndarray]) -> dict[str, list]:
    pictures, latents = (_tensor(np.moveaxis(given[name], -1, 1)) for name in ("pictures", "latents"))
    return {"latents": [model.encode(pictures).latent_dist.parameters], "pictures": [model.decode(latents).sample]}


def _text_inputs(c: Any, rng: np.random.Generator) -> dict[str, np.ndarray]:
    ids = rng.integers(0, c.vocab_size, (2, c.max_positions)).astype(np.int32)
    ids[:, -1] = c.vocab_size - 1 if c.eos_token_id == 2 else min(c.eos_token_id, c.vocab_size - 1)  # 2: the highest
    return dict(ids=ids)


def _our_text(c: Any, variables: dict, given: dict[str, np.ndarray]) -> Outputs:
    out = jax.jit(module_of(c).apply)(variables, given["ids"])
    return {"tokens": [out.last_hidden, out.penultimate], "pooled": [out.pooled]}


def _their_text(model: Any, given: dict[str, np.ndarray]) -> dict[str, list]:
    out = model(_tensor(given["ids"]).long(), output_hidden_states=True)
    pooled = out.text_embeds if "text_embeds" in out else out.pooler_output
    return {"tokens": [out.last_hidden_state, out.hidden_states[-2]], "pooled": [pooled]}


def _vision_inputs(c: Any, rng: np.random.Generator) -> dict[str, np.ndarray]:
    return dict(pictures=_normal(rng, 2, c.image_size, c.image_size, 3))


def _our_vision(c: Any, variables: dict, given: dict[str, np.ndarray]) -> Outputs:
    out = jax.jit(module_of(c).apply)(variables, given["pictures"])
    pooled = out.pooled if out.image_embeds is None else out.image_embeds
    return {"tokens": [out.last_hidden, out.penultimate], "pooled": [pooled]}


def _their_vision(model: Any, given: dict[str, np.ndarray]) -> dict[str, list]:
    out = model(_tensor(np.moveaxis(given["pictures"], -1, 1)), output_hidden_states=True)
    pooled = out.image_embeds if "image_embeds" in out else out.pooler_output
    return {"tokens": [out.last_hidden_state, out.hidden_states[-2]], "pooled": [pooled]}


def _projection_inputs(c: Any, rng: np.random.Generator) -> dict[str, np.ndarray]:
    states = () if c.reads == "image_embeds" else (TOKENS,)
    return dict(states=_normal(rng, 2, *states, c.embed_dim))


def _our_projection(c: Any, variables: dict, given: dict[str, np.ndarray]) -> Outputs:
    return {"image tokens": [jax.jit(module_of(c).apply)(variables, given["states"])]}


def _their_projection(model: Any, given: dict[str, np.ndarray]) -> dict[str, list]:
    return {"image tokens": [model(_tensor(given["states"]))]}


_UNET = Network(_unet_inputs, _our_unet, _their_unet)
_TEXT = Network(_text_inputs, _our_text, _their_text)
NETWORKS = {
    "unet": _UNET,
    "unet_ema": _UNET,
    "controlnet": Network(_controlnet_inputs, _our_controlnet, _their_controlnet),
    "vae": Network(_vae_inputs, _our_vae, _their_vae),
    "text_encoder": _TEXT,
    "text_encoder_2": _TEXT,
    "image_encoder": Network(_vision_inputs, _our_vision, _their_vision),
    "image_proj": Network(_projection_inputs, _our_projection, _their_projection),
}
