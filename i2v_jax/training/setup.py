"""From a training config to what training needs: networks, loss, optimizer, step, and where each array lies.

Shared by `train.py`, which loads the weights, and `plan`, which needs none: `published` knows the networks of the
weights that the shipped configs name.
"""

import dataclasses
from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array
from ml_collections import ConfigDict

from i2v_jax import tree
from i2v_jax.diffusion.noise_schedule import NoiseSchedule
from i2v_jax.errors import InputError, nearest
from i2v_jax.hub import local
from i2v_jax.models import clip, image_projection, motion, unet, vae
from i2v_jax.models.kernels.choice import choose
from i2v_jax.models.networks import parameter_shapes
from i2v_jax.training.objective import Loss, Objective, Reconstruction, ReconstructionLoss
from i2v_jax.training.optimizer import Optimizer
from i2v_jax.training.step import State, init_state, make_step
from i2v_jax.weights import assemble as load

LOSSES = ("denoising", "reconstruction")
DTYPES = ("auto", "float32", "bfloat16")

# Networks of published weights, by the names they have in configs.
PUBLISHED = {
    "stable-diffusion-v1-5/stable-diffusion-v1-5": dict(unet=unet.SD15, vae=vae.SD_VAE, text_encoder=clip.SD15_TEXT),
    "guoyww/animatediff/mm_sd_v15.ckpt": dict(motion=motion.V1, pooled_norms=True),
    "guoyww/animatediff/mm_sd_v15_v2.ckpt": dict(motion=motion.V2, pooled_norms=False),
    "guoyww/animatediff/v3_sd15_mm.ckpt": dict(motion=motion.V3, pooled_norms=False),
    "h94/IP-Adapter/models/ip-adapter-plus_sd15.safetensors": image_projection.IP_ADAPTER_PLUS_SD15,
    "h94/IP-Adapter/models/ip-adapter_sd15.safetensors": image_projection.IP_ADAPTER_SD15,
    "h94/IP-Adapter/models/image_encoder": clip.VIT_H_VISION,
}


class Arithmetic(NamedTuple):
    """How networks compute: dtype of frozen weights and activations, kernels, what the backward pass recomputes."""

    dtype: Any
    attention: str
    convolution: str
    remat: str


class Setup(NamedTuple):
    """What a config says of the arithmetic of a run."""

    loss: Loss | ReconstructionLoss
    optimizer: optax.GradientTransformation
    step: Callable  # of `training.step.make_step`, not jitted


def arithmetic(config: ConfigDict, device: jax.Device) -> Arithmetic:
    """Returns the arithmetic that a config asks for on a device; "auto" is decided here.

    Raises:
      InputError: an unknown dtype, or a kernel that does not run there.
    """
    if config.dtype not in DTYPES:
        raise InputError(f"dtype={config.dtype!r}; known: {', '.join(DTYPES)}.{nearest(config.dtype, DTYPES)}")
    narrow = "float32" if device.platform == "cpu" else "bfloat16"
    dtype = jnp.dtype(narrow if config.dtype == "auto" else config.dtype)
    return Arithmetic(dtype, **choose(device, dtype, config.attention, config.convolution), remat=config.remat)


def assemble(config: ConfigDict, how: Arithmetic) -> dict[str, load.Assembled]:
    """Returns {component: assembled} of the weights that a config names, found and checked but unread.

    Raises:
      InputError: weights that are not there or do not fit; says which.
    """
    named = config.weights
    dtypes = dict(dtype=how.dtype, trained=tuple(named.trained))
    kernels = dict(attention=how.attention, convolution=how.convolution)
    found = dict(
        unet=load.assemble_unet(
            named.unet or named.base,
            motion=named.motion or None,
            adapters=dict(first_frame=named.adapter or None, image_tokens=named.image_adapter or None),
            self_attention_branches=tuple(config.branches),
            remat=how.remat,
            **dtypes,
            **kernels,
        ),
        vae=load.assemble_vae(named.vae or named.base, **dtypes, **kernels),
        text_encoder=load.assemble_text_encoder(named.text_encoder or named.base, **dtypes),
    )
    if named.image_adapter:
        found["image_encoder"] = load.assemble_image_encoder(named.image_encoder, **dtypes)
        found["image_proj"] = load.assemble_image_projection(named.image_adapter, **dtypes)
    load.check_trained(named.trained, found)
    return found


def check_size(config: ConfigDict, autoencoder: vae.VAEConfig) -> None:
    """Raises InputError where clips are of a size that has no latents."""
    for name in ("height", "width"):
        if (side := config.data[name]) % autoencoder.downscale:
            near = max(1, round(side / autoencoder.downscale)) * autoencoder.downscale
            raise InputError(f"data.{name}={side}: wanted a multiple of {autoencoder.downscale}, such as {near}.")


def networks(config: ConfigDict, how: Arithmetic) -> dict[str, Any]:
    """Returns {component: its network's config}, with no weights read; those of published weights need not be here.

    Raises:
      InputError: weights that are neither here nor known.
    """
    sources = {
        name: source
        for name, source in config.weights.items()
        if source and name not in ("adapter", "tokenizer", "trained")
    }
    if all(map(local, sources.values())):
        return {component: it.config for component, it in assemble(config, how).items()}
    for name, source in sources.items():
        if source not in PUBLISHED:
            raise InputError(
                f"weights.{name}={source!r} is not on this machine, and its network is not known by name; known: "
                f"{', '.join(PUBLISHED)}.{nearest(source, PUBLISHED)}"
            )
    base, motion = PUBLISHED[sources["base"]], PUBLISHED[sources["motion"]] if "motion" in sources else {}
    dtypes = dict(dtype=how.dtype, param_dtype=how.dtype)
    kernels = dict(attention=how.attention, convolution=how.convolution)
    branches = dict(
        self_attention_branches=tuple(config.branches),
        cross_attention_branches=("image_tokens",) if "image_adapter" in sources else (),
    )
    found = dict(
        unet=dataclasses.replace(base["unet"], remat=how.remat, **dtypes, **kernels, **branches, **motion),
        vae=dataclasses.replace(base["vae"], **dtypes, **kernels),
        text_encoder=dataclasses.replace(base["text_encoder"], **dtypes),
    )
    if "image_adapter" in sources:
        found["image_encoder"] = dataclasses.replace(PUBLISHED[sources["image_encoder"]], **dtypes)
        found["image_proj"] = dataclasses.replace(PUBLISHED[sources["image_adapter"]], **dtypes)
    return found


def make(
    config: ConfigDict, configs: Mapping[str, Any], empty_prompt: Array, empty_image: Array | None = None
) -> Setup:
    """Returns loss, optimizer and step.

    Args:
      config: of the run.
      configs: component -> its network's config.
      empty_prompt: its token ids, or its states where batches hold states.
      empty_image: a zero picture's image tokens, where batches hold tokens.

    Raises:
      InputError: a setting out of range.
    """
    if config.loss not in LOSSES:
        raise InputError(f"loss={config.loss!r}; known: {', '.join(LOSSES)}.{nearest(config.loss, LOSSES)}")
    if config.loss == "reconstruction":
        loss = ReconstructionLoss(configs["vae"], Reconstruction(**config.reconstruction))
    else:
        schedule, objective = NoiseSchedule(**config.noise_schedule), Objective(**config.objective)
        loss = Loss(configs, schedule, objective, empty_prompt, empty_image)
    optimizer = Optimizer(**config.optimizer).make(config.steps)
    step = make_step(loss, optimizer, accumulate=config.accumulate, average_decay=config.average_decay)
    return Setup(loss, optimizer, step)


def jit_step(step: Callable, state: State, mesh: jax.sharding.Mesh) -> Callable:
    """Returns the step compiled on first use: the old state's memory is the new one's, and lies where it lay.

    Args:
      step: from `make`.
      state: arrays or shapes, with shardings.
      mesh: of the run.
    """
    same = jax.tree.map(lambda leaf: leaf.sharding, state)
    return jax.jit(step, donate_argnums=0, out_shardings=(same, mesh.replicated(mesh)))


def frozen_sharding(config: ConfigDict, mesh: jax.sharding.Mesh, shape: tuple[int, ...]) -> jax.sharding.NamedSharding:
    """Where a frozen weight lies: whole on every device, or by `mesh.parameter_sharding`.

    Raises:
      InputError: an unknown choice.
    """
    if config.frozen not in ("replicated", "fsdp"):
        raise InputError(f"frozen={config.frozen!r}; known: replicated, fsdp.")
    return mesh.replicated(mesh) if config.frozen == "replicated" else mesh.parameter_sharding(mesh, shape)


def trained_paths(assembled: Mapping[str, load.Assembled], patterns: Sequence[str]) -> set[str]:
    """Returns the paths `component/...` of all the weights to train.

    Args:
      assembled: component -> what was found.
      patterns: of the paths to train.

    Raises:
      InputError: there is no pattern, or one that matches nothing.
    """
    if not patterns:
        raise InputError("`train` names no weights; wanted one pattern or more, such as 'unet/.*/first_frame/.*'.")
    whole = {name: tree.unflatten(it.parameters.entries) for name, it in assembled.items()}
    return set(tree.flatten(tree.select(whole, patterns)))


def load_weights(
    assembled: Mapping[str, load.Assembled], trained: Container[str], config: ConfigDict, mesh: jax.sharding.Mesh
) -> tuple[dict[str, Array], dict[str, Array]]:
    """Reads weights onto the mesh, one by one.

    Args:
      assembled: component -> what was found, of the components to load.
      trained: from `trained_paths`.
      config: of the run.
      mesh: where to.

    Returns:
      (trained, frozen) by path: trained weights in float32 as their files hold them, frozen ones in the run's dtype.
    """
    loaded: tuple[dict, dict] = ({}, {})
    for name, it in assembled.items():
        for path, entry in it.parameters.entries.items():
            path = f"{name}/{path}"
            is_trained = path in trained
            array = np.asarray(entry.read(), np.float32 if is_trained else it.config.param_dtype)
            sharding = (
                mesh.parameter_sharding(mesh, array.shape)
                if is_trained
                else frozen_sharding(config, mesh, array.shape)
            )
            loaded[not is_trained][path] = mesh.put(array, sharding)
    return loaded


def new_state(trained: Mapping[str, Array], optimizer, config: ConfigDict, abstract: State) -> State:
    """Returns the state before the first step, lying where `abstract` says."""
    places = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    make = jax.jit(lambda tree: init_state(tree, optimizer, config.average_decay is not None), out_shardings=places)
    return make(dict(trained))


def abstract_state(config: ConfigDict, trained: Mapping[str, Any], optimizer, mesh: jax.sharding.Mesh) -> State:
    """Returns the shapes and shardings of the state, for compiling and for restoring checkpoints.

    Args:
      config: of the run.
      trained: the trained weights, nested, arrays or shapes.
      optimizer: of the run.
      mesh: where it lies.
    """
    state = jax.eval_shape(lambda tree: init_state(tree, optimizer, config.average_decay is not None), trained)
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=mesh.parameter_sharding(mesh, leaf.shape)
        ),
        state,
    )


def abstract_frozen(config: ConfigDict, frozen: Mapping[str, Any], mesh: jax.sharding.Mesh) -> dict[str, Any]:
    """Returns the shapes and shardings of the frozen weights, by path."""
    return {
        path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=frozen_sharding(config, mesh, leaf.shape))
        for path, leaf in tree.flatten(frozen).items()
    }


def abstract_batch(
    config: ConfigDict, configs: Mapping[str, Any], mesh: jax.sharding.Mesh, stored: bool = False
) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the shapes and shardings of a batch.

    Args:
      config: of the run.
      configs: component -> its network's config.
      mesh: where it lies.
      stored: batches of latents, prompt states and image tokens, rather than of videos, ids and pictures.
    """
    data, vae_config, text = config.data, configs["vae"], configs["text_encoder"]
    size = (data.height, data.width)
    if stored:
        latent = [side // vae_config.downscale for side in size]
        wanted = dict(
            latents=((data.frames, *latent, vae_config.latent_channels), jnp.float32),
            text=((text.max_positions, text.width), jnp.float32),
        )
    else:
        wanted = dict(video=((data.frames, *size, 3), jnp.uint8), tokens=((text.max_positions,), jnp.int32))
    if "image_proj" in configs:
        picture, tokens = configs["image_encoder"].image_size, configs["unet"].cross_attention_dim
        wanted |= (
            dict(image_tokens=((image_tokens(configs), tokens), jnp.float32))
            if stored
            else dict(pixels=((picture, picture, 3), jnp.float32))
        )
    sharding = mesh.batch_sharding(mesh)
    return {
        name: jax.ShapeDtypeStruct((config.batch, *shape), dtype, sharding=sharding)
        for name, (shape, dtype) in wanted.items()
    }


def image_tokens(configs: Mapping[str, Any]) -> int:
    encoder, projection = configs["image_encoder"], configs["image_proj"]
    if hasattr(projection, "num_tokens"):
        return projection.num_tokens
    return 1 + (encoder.image_size // encoder.patch_size) ** 2  # one for each state


def abstract_weights(configs: Mapping[str, Any]) -> dict[str, Any]:
    """Returns {component: nested shapes} of networks' weights."""
    return {component: tree.unflatten(parameter_shapes(config)) for component, config in configs.items()}


SILENT = (
    *("folder", "mesh", "rules", "frozen", "distributed", "compilation_cache", "checkpoints", "log", "samples"),
    *("accumulate", "attention", "convolution", "remat", "objective/vae_slice"),
    *("data/workers", "data/buffer", "data/bad_list", "data/max_bad"),
)
"""Keys of a config, or groups of them, that change where and how a run computes, but not what, rounding apart."""


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Returns a line for each key that changes what a run comes to: which, from which value to which.

    Args:
      before, now: configs, as JSON holds them.
    """
    before, now = tree.flatten(before), tree.flatten(now)
    keys = [
        key
        for key in dict.fromkeys((*now, *before))
        if before.get(key) != now.get(key) and not any(f"{key}/".startswith(f"{it}/") for it in SILENT)
    ]
    return [f"{key.replace('/', '.')} {before.get(key)} -> {now.get(key)}" for key in keys]
