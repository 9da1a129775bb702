"""Where each array of a training run lies on the mesh: weights, optimizer state, batches; as arrays or as shapes."""

from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from ml_collections import ConfigDict

from i2v_jax import tree
from i2v_jax.devices.mesh import batch_sharding, parameter_sharding, put, replicated
from i2v_jax.encoders import image_tokens
from i2v_jax.encoders.text import tokens_name
from i2v_jax.errors import InputError
from i2v_jax.families.family import family_of
from i2v_jax.models.networks import parameter_shapes
from i2v_jax.training.step import State, init_state
from i2v_jax.weights.assemble import Assembled
from i2v_jax.weights.new_lora import FACTORS, factor_shapes


def jit_step(step: Callable, state: State, mesh: jax.sharding.Mesh) -> Callable:
    """Returns the step compiled on first use: the old state's memory is the new one's, and lies where it lay.

    Args:
      step: from `make`.
      state: arrays or shapes, with shardings.
      mesh: of the run.
    """
    same = jax.tree.map(lambda leaf: leaf.sharding, state)
    return jax.jit(step, donate_argnums=0, out_shardings=(same, replicated(mesh)))


def frozen_sharding(config: ConfigDict, mesh: jax.sharding.Mesh, shape: tuple[int, ...]) -> jax.sharding.NamedSharding:
    """Where a frozen weight lies: whole on every device, or by `devices.mesh.parameter_sharding`.

    Raises:
      InputError: an unknown choice.
    """
    if config.frozen not in ("replicated", "fsdp"):
        raise InputError(f"frozen={config.frozen!r}; known: replicated, fsdp.")
    return replicated(mesh) if config.frozen == "replicated" else parameter_sharding(mesh, shape)


def trained_paths(assembled: Mapping[str, Assembled], patterns: Sequence[str]) -> set[str]:
    """Returns the paths `component/...` of all the weights to train.

    Args:
      assembled: component -> what was found.
      patterns: of the paths to train.

    Raises:
      InputError: there is no pattern, or one that matches nothing, or vectors of textual inversions.
    """
    if not patterns:
        raise InputError("`train` names no weights; wanted one pattern or more, such as 'unet/.*/first_frame/.*'.")
    whole = {name: tree.unflatten(it.parameters.entries) for name, it in assembled.items()}
    chosen = set(tree.flatten(tree.select(whole, patterns)))
    factors = [path for path in tree.flatten(whole) if FACTORS in path]
    if others := sorted(chosen.difference(factors)) if factors else []:
        raise InputError(
            f"lora.rank is set, and `train` also matches {others[0]}: what comes out would be neither a LoRA nor "
            "weights. Train one at a time: train=('.*/lora/.*',), or lora.rank=0."
        )
    for path in factors:
        if path not in chosen:
            raise InputError(
                f"lora.rank is set, and `train` leaves out {path}, which would stay as it is: nothing. Name all "
                "factors, by the pattern '.*/lora/.*'."
            )
    if added := sorted(path for path in chosen if path.endswith("/added_embedding")):
        raise InputError(
            f"`train` matches {added[0]}, the vectors of weights.embeddings, which are not trained. Leave them out of "
            "the pattern, such as 'text_encoder/(?!added_embedding).*', or leave weights.embeddings out."
        )
    return chosen


def load_weights(
    assembled: Mapping[str, Assembled], trained: Container[str], config: ConfigDict, mesh: jax.sharding.Mesh
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
                parameter_sharding(mesh, array.shape) if is_trained else frozen_sharding(config, mesh, array.shape)
            )
            loaded[not is_trained][path] = put(array, sharding)
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
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=parameter_sharding(mesh, leaf.shape)),
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
    data, family = config.data, family_of(configs["unet"])
    size = (data.height, data.width)
    wanted = _stored_shapes(data.frames, size, configs) if stored else _read_shapes(data.frames, size, configs)
    if family.has_sizes:
        wanted["sizes"] = ((6,), jnp.float32)
    if family.has_rate:
        wanted |= dict(picture=((), jnp.float32 if stored else jnp.int32), fs=((), jnp.float32))
    sharding = batch_sharding(mesh)
    return {
        name: jax.ShapeDtypeStruct((config.batch, *shape), dtype, sharding=sharding)
        for name, (shape, dtype) in wanted.items()
    }


def _stored_shapes(frames, size, configs) -> dict[str, tuple[tuple[int, ...], Any]]:
    unet, vae = configs["unet"], configs["vae"]
    recipe = family_of(unet).text
    positions = configs[recipe.components[0]].max_positions
    latent = [side // vae.downscale for side in size]
    wanted = dict(
        latents=((frames, *latent, vae.latent_channels), jnp.float32),
        text=((positions, unet.cross_attention_dim), jnp.float32),
    )
    if recipe.pooled:
        wanted["pooled"] = ((unet.added_conditioning.pooled_dim,), jnp.float32)
    if "image_proj" in configs:
        wanted["image_tokens"] = ((image_tokens.count(configs), unet.cross_attention_dim), jnp.float32)
    return wanted


def _read_shapes(frames, size, configs) -> dict[str, tuple[tuple[int, ...], Any]]:
    wanted = dict(video=((frames, *size, 3), jnp.uint8))
    for component in family_of(configs["unet"]).text.components:
        wanted[tokens_name(component)] = ((configs[component].max_positions,), jnp.int32)
    if "image_proj" in configs:
        picture = configs["image_encoder"].image_size
        wanted["pixels"] = ((picture, picture, 3), jnp.float32)
    if "controlnet" in configs:
        wanted["control"] = wanted["video"]
    return wanted


def empty_conditions(configs: Mapping[str, Any], stored: bool) -> dict[str, Array]:
    """Returns zeros in the shapes of what stands for dropped conditions, see `objective.Loss`."""
    shapes_of = _stored_shapes if stored else _read_shapes
    wanted = shapes_of(1, (64, 64), configs)
    names = ("text", "pooled", "image_tokens", *map(tokens_name, family_of(configs["unet"]).text.components))
    return {name: jnp.zeros(*wanted[name]) for name in names if name in wanted}


def abstract_weights(configs: Mapping[str, Any], lora: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Returns {component: nested shapes} of networks' weights, and of the factors of a LoRA that is trained."""
    weights = {component: tree.unflatten(parameter_shapes(config)) for component, config in configs.items()}
    if not lora or not lora["rank"]:
        return weights
    flat = tree.flatten(weights)
    factors = factor_shapes({path: leaf.shape for path, leaf in flat.items()}, lora["layers"], lora["rank"])
    return tree.unflatten(flat | {path: jax.ShapeDtypeStruct(shape, jnp.float32) for path, shape in factors.items()})
