"""Every network of `verify --run`, by the class of its config: its random input, its outputs here and by PyTorch.

What `models.networks` knows stands here too, so that a new kind of network cannot be forgotten.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from i2v_jax.models.clip import CLIPTextConfig, CLIPVisionConfig
from i2v_jax.models.conditions import Conditions
from i2v_jax.models.controlnet import ControlNetConfig
from i2v_jax.models.dino import DINOConfig
from i2v_jax.models.dover import DOVERConfig
from i2v_jax.models.dynamicrafter import DynamiCrafterConfig
from i2v_jax.models.i3d import I3DConfig
from i2v_jax.models.ifnet import IFNetConfig
from i2v_jax.models.image_projection import (
    FaceProjectionConfig,
    FaceResamplerConfig,
    ImageProjectionConfig,
    ResamplerConfig,
    StateProjectionConfig,
    VideoResamplerConfig,
)
from i2v_jax.models.lpips import LPIPSConfig
from i2v_jax.models.networks import module_of
from i2v_jax.models.raft import RAFTConfig
from i2v_jax.models.sparse_control import SparseControlNetConfig
from i2v_jax.models.t2i_adapter import T2IAdapterConfig
from i2v_jax.models.unet import UNetConfig
from i2v_jax.models.upscaler import UpscalerConfig
from i2v_jax.models.vae import VAEConfig
from i2v_jax.weights.formats import (
    clip,
    controlnet,
    dino,
    dover,
    dynamicrafter,
    i3d,
    ifnet,
    ip_adapter,
    lpips,
    raft,
    sparse_control,
    t2i_adapter,
    upscaler,
)
from i2v_jax.weights.formats import diffusers as names
from i2v_jax.weights.names import Table

VIDEOS, FRAMES, SIDE, TOKENS = 1, 2, 16, 7  # of the input; the side is of the latents
PICTURE_SIDE = 64  # of what autoencoders are given

Outputs = dict[str, list[np.ndarray]]
"""Name -> arrays, in PyTorch's order of axes."""


class Network(NamedTuple):
    """What a class of configs is compared by.

    Attributes:
        inputs: random input for a config.
        ours: our network's outputs, of its config, variables and input.
        theirs: those of PyTorch's model.
        names: the format that has the names of PyTorch's model of a config.
        lacking: says why the libraries have no model of a config, "" where they have one.
    """

    inputs: Callable[[Any, np.random.Generator], dict[str, np.ndarray]]
    ours: Callable[[Any, dict, dict[str, np.ndarray]], Outputs]
    theirs: Callable[[Any, dict[str, np.ndarray]], dict[str, list]]
    names: Callable[[Any], Table]
    lacking: Callable[[Any], str] = lambda config: ""


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


def _sparse_inputs(c: SparseControlNetConfig, rng: np.random.Generator) -> dict[str, np.ndarray]:
    given = _unet_inputs(c, rng)
    side = c.picture_scale * given["sample"].shape[2]
    known = np.arange(FRAMES)[None] == rng.integers(0, FRAMES, (VIDEOS, 1))
    return given | dict(picture=rng.random((VIDEOS, FRAMES, side, side, c.picture_channels), np.float32), known=known)


def _t2i_inputs(c: T2IAdapterConfig, rng: np.random.Generator) -> dict[str, np.ndarray]:
    side = 2 ** (len(c.block_out_channels) - 1) * c.unshuffle
    return dict(picture=rng.random((VIDEOS, FRAMES, side, side, c.in_channels), np.float32))


def _our_call(given: dict[str, np.ndarray]) -> dict[str, Any]:
    names = ("text", "image_tokens", "text_embeds", "time_ids")
    call = {name: array for name, array in given.items() if name not in names}
    return call | {"conditions": Conditions.of_videos(*map(given.get, names))}


def _our_unet(c: UNetConfig, variables: dict, given: dict[str, np.ndarray]) -> Outputs:
    out = jax.jit(module_of(c).apply)(variables, **_our_call(given))
    return {"noise": [_pictures(np.asarray(out))]}


def _our_controlnet(c: Any, variables: dict, given: dict[str, np.ndarray]) -> Outputs:
    down, middle, _ = jax.jit(module_of(c).apply)(variables, **_our_call(given))
    return {"residuals": [_pictures(np.asarray(residual)) for residual in (*down, middle)]}


def _our_t2i(c: T2IAdapterConfig, variables: dict, given: dict[str, np.ndarray]) -> Outputs:
    levels = jax.jit(module_of(c).apply)(variables, **given)
    return {"features": [_pictures(np.asarray(level)) for level in levels]}


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


def _their_sparse(model: Any, given: dict[str, np.ndarray]) -> dict[str, list]:
    where = given["known"][..., None, None, None].astype(np.float32)
    picture = given["picture"] * where
    down, middle = model(
        _tensor(np.moveaxis(given["sample"], -1, 1)),
        _tensor(given["timesteps"]),
        _per_frame(given["text"]),
        controlnet_cond=_tensor(np.moveaxis(picture, -1, 1)),
        conditioning_mask=_tensor(np.moveaxis(np.broadcast_to(where, (*picture.shape[:-1], 1)), -1, 1)),
        return_dict=False,
    )
    return {"residuals": [*down, middle]}


def _their_t2i(model: Any, given: dict[str, np.ndarray]) -> dict[str, list]:
    return {"features": model(_tensor(_pictures(given["picture"])))}


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
    given = {"faces": _normal(rng, 2, c.face_dim)} if c.face_dim else {}
    if c.reads:
        states = () if c.reads == "image_embeds" else (TOKENS,)
        given["states"] = _normal(rng, 2, *states, c.embed_dim)
    return given


def _our_projection(c: Any, variables: dict, given: dict[str, np.ndarray]) -> Outputs:
    return {"image tokens": [jax.jit(module_of(c).apply)(variables, *given.values())]}


def _their_projection(model: Any, given: dict[str, np.ndarray]) -> dict[str, list]:
    if len(given) > 1:  # diffusers lays the states of FaceID plus on the model
        model.clip_embeds = _tensor(given["states"])[None]
    return {"image tokens": [model(_tensor(next(iter(given.values()))))]}


def _unet_names(c: UNetConfig) -> Table:
    return names.DIFFUSERS_IP_UNET_LINEAR if c.linear_projection else names.DIFFUSERS_IP_UNET


def _pia(c: UNetConfig) -> str:
    return "diffusers joins PIA's first layer and the base's" if c.motion and c.motion.conv_in_channels else ""


def _controlnet_names(c: ControlNetConfig) -> Table:
    return controlnet.DIFFUSERS_CONTROLNET_LINEAR if c.linear_projection else controlnet.DIFFUSERS_CONTROLNET


def _sparse_names(c: SparseControlNetConfig) -> Table:
    return sparse_control.DIFFUSERS_SPARSE_LINEAR if c.linear_projection else sparse_control.DIFFUSERS_SPARSE


def _other_resampler(c: ResamplerConfig) -> str:
    is_theirs = (c.depth, c.head_dim, c.mlp_width) == (4, 64, 4 * c.width)
    theirs = "diffusers loads resamplers of 4 layers, with heads of 64 channels, four times as wide inside"
    return "" if is_theirs else theirs


def _other_projection(c: ImageProjectionConfig) -> str:
    return "" if c.num_tokens == 4 else "diffusers loads linear image projections of 4 tokens"


def _of_others(title: str, table: Table) -> Network:
    """A network that neither diffusers nor transformers has, so that nothing is put in and nothing comes out."""
    lacking = (
        f"diffusers and transformers have no {title}. tests/test_{title.lower()}.py compares it with recorded runs"
    )
    return Network(
        lambda c, rng: {}, lambda c, variables, given: {}, lambda model, given: {}, lambda c: table, lambda c: lacking
    )


_PROJECTION = Network(_projection_inputs, _our_projection, _their_projection, lambda c: ip_adapter.IMAGE_PROJECTION)
NETWORKS: Mapping[type, Network] = {
    UNetConfig: Network(_unet_inputs, _our_unet, _their_unet, _unet_names, _pia),
    ControlNetConfig: Network(_controlnet_inputs, _our_controlnet, _their_controlnet, _controlnet_names),
    SparseControlNetConfig: Network(_sparse_inputs, _our_controlnet, _their_sparse, _sparse_names),
    T2IAdapterConfig: Network(_t2i_inputs, _our_t2i, _their_t2i, lambda c: t2i_adapter.DIFFUSERS_T2I),
    VAEConfig: Network(_vae_inputs, _our_vae, _their_vae, lambda c: names.DIFFUSERS_VAE),
    CLIPTextConfig: Network(_text_inputs, _our_text, _their_text, lambda c: clip.CLIP_TEXT),
    CLIPVisionConfig: Network(_vision_inputs, _our_vision, _their_vision, lambda c: clip.CLIP_VISION),
    ImageProjectionConfig: _PROJECTION._replace(lacking=_other_projection),
    ResamplerConfig: _PROJECTION._replace(lacking=_other_resampler),
    StateProjectionConfig: _PROJECTION,
    FaceProjectionConfig: _PROJECTION,
    FaceResamplerConfig: _PROJECTION._replace(lacking=_other_resampler),
    RAFTConfig: _of_others("RAFT", raft.TORCHVISION_RAFT),
    DOVERConfig: _of_others("DOVER", dover.DOVER),
    UpscalerConfig: _of_others("upscaler", upscaler.REAL_ESRGAN),
    IFNetConfig: _of_others("IFNet", ifnet.RIFE),
    LPIPSConfig: _of_others("LPIPS", lpips.TORCHVISION_CLASSIFIER),
    DINOConfig: _of_others("DINO", dino.DINO),
    I3DConfig: _of_others("I3D", i3d.PIERGIAJ_I3D),
    DynamiCrafterConfig: _of_others("DynamiCrafter", dynamicrafter.DYNAMICRAFTER_UNETS[False]),
    VideoResamplerConfig: _of_others("DynamiCrafter", dynamicrafter.DYNAMICRAFTER_PROJECTION),
}
