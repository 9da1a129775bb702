"""Control pictures to what is added to a UNet's features: a table of the kinds of control networks.

What depends on the pictures alone is encoded once per run; the rest runs at each step.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, UInt8

from i2v_jax.encoders.latents import moments
from i2v_jax.models import sparse_control
from i2v_jax.models.conditions import Conditions
from i2v_jax.models.controlnet import ControlNet, ControlNetConfig, PictureEmbedding
from i2v_jax.models.residuals import Residuals
from i2v_jax.models.sparse_control import SparseControlNet, SparseControlNetConfig
from i2v_jax.models.t2i_adapter import T2IAdapter, T2IAdapterConfig

Tree = Mapping[str, Any]
Pictures = Float[Array, "b f H W 3"]
ToLatents = Callable[[Pictures], Float[Array, "b f h w c"]]
COMPONENT = re.compile(r"control_(\d+)")


class Control(NamedTuple):
    """A kind of control networks, as two pure functions, and one of its config.

    Attributes:
      encode: `(config, parameters, pictures, known, to_latents) -> encoded`, see `encode`.
      residuals: `(config, parameters, x, t, conditions, encoded) -> Residuals`, see `residuals`.
      unconditional: `(config, encoded) -> encoded`, see `unconditional`.
    """

    encode: Callable[[Any, Tree, Pictures, Bool[Array, "b f"], ToLatents], Any]
    residuals: Callable[[Any, Tree, Float[Array, "b f h w c"], Float[Array, ""], Conditions, Any], Residuals]
    unconditional: Callable[[Any, Any], Any] = lambda config, encoded: encoded


class Embedded(NamedTuple):
    """A ControlNet's pictures: what they add to its first features, and which frames have one."""

    embedding: Float[Array, "b f h w c"]
    known: Bool[Array, "b f"]


def component(number: int) -> str:
    """What a model calls its control networks, counted from 0, among its components."""
    return f"control_{number}"


def components(names: Iterable[str]) -> list[str]:
    """Returns which of a model's components are control networks, in their order."""
    found = {int(match[1]): name for name in names if (match := COMPONENT.fullmatch(name))}
    return [found[number] for number in sorted(found)]


def encode(config: Any, parameters: Tree, pictures: Pictures, known: Bool[Array, "b f"], to_latents: ToLatents) -> Any:
    """Returns what does not change from step to step: a pytree of arrays `[batch, frames or 1, ...]`.

    Args:
      config, parameters: of a control network.
      pictures: in [0, 1], of the video's size.
      known: which frames have a picture; what stands at the others means nothing.
      to_latents: encodes pictures by the autoencoder of the run, scaled as the UNet wants them.
    """
    return CONTROLS[type(config)].encode(config, parameters, pictures, known, to_latents)


def encode_pictures(
    configs: Mapping[str, Any],
    component: str,
    tree: Mapping[str, Tree],
    pictures: UInt8[Array, "b f H W 3"],
    known: Bool[Array, "b f"],
) -> Any:
    """As `encode`, of a model's configs and of the parameters of the network and the VAE, by component."""
    vae = configs["vae"]

    def to_latents(pictures):  # a frame at a time, which bounds memory
        frames = jnp.moveaxis(pictures, 1, 0)
        latents = jax.lax.map(lambda frame: moments(vae, tree["vae"], 2 * frame - 1)[0], frames)
        return vae.scaling_factor * jnp.moveaxis(latents, 0, 1)

    return encode(configs[component], tree[component], pictures.astype(jnp.float32) / 255, known, to_latents)


def residuals(
    config: Any,
    parameters: Tree,
    x: Float[Array, "b f h w c"],
    t: Float[Array, ""],
    conditions: Conditions,
    encoded: Any,
) -> Residuals:
    """Returns what a control network adds at a step, at strength 1.

    Args:
      config, parameters: of the network.
      x, t, conditions: what the UNet is given.
      encoded: from `encode`.
    """
    return CONTROLS[type(config)].residuals(config, parameters, x, t, conditions, encoded)


def unconditional(config: Any, encoded: Any) -> Any:
    """Returns what stands for encoded pictures on the side that guidance leads away from; mostly the same."""
    return CONTROLS[type(config)].unconditional(config, encoded)


def _embed(config, parameters, pictures, known, to_latents) -> Embedded:
    embedding = PictureEmbedding(config).apply({"params": parameters["controlnet_cond_embedding"]}, pictures)
    return Embedded(embedding, known)


def _run_controlnet(config, parameters, x, t, conditions, encoded: Embedded) -> Residuals:
    found = ControlNet(config).apply({"params": parameters}, x, t, conditions, embedding=encoded.embedding)
    return jax.tree.map(lambda added: jnp.where(encoded.known[..., None, None, None], added, 0), found)


def _without_pooled(config: ControlNetConfig, encoded: Embedded) -> Embedded:
    """What says something of the whole picture ("shuffle") is added to the conditional side alone, as published."""
    return encoded._replace(known=jnp.zeros_like(encoded.known)) if config.pooled_residuals else encoded


def _embed_sparse(config: SparseControlNetConfig, parameters, pictures, known, to_latents) -> Float[Array, "b f h w c"]:
    """A frame without a picture is one of the things that a SparseCtrl is told: its residuals are on all frames."""
    conditions = sparse_control.masked(config, to_latents(pictures) if config.reads_latents else pictures, known)
    return sparse_control.embedding(config).apply({"params": parameters["controlnet_cond_embedding"]}, conditions)


def _run_sparse(config: SparseControlNetConfig, parameters, x, t, conditions, embedded) -> Residuals:
    return SparseControlNet(config).apply({"params": parameters}, x, t, conditions, embedded=embedded)


def _features(config: T2IAdapterConfig, parameters, pictures, known, to_latents) -> list[Float[Array, "b f _h _w _c"]]:
    levels = T2IAdapter(config).apply({"params": parameters}, pictures)
    return [jnp.where(known[..., None, None, None], level, 0) for level in levels]


def _at_levels(config: T2IAdapterConfig, parameters, x, t, conditions, levels) -> Residuals:
    return Residuals(levels=levels)


CONTROLS: Mapping[type, Control] = {
    ControlNetConfig: Control(_embed, _run_controlnet, _without_pooled),
    SparseControlNetConfig: Control(_embed_sparse, _run_sparse),
    T2IAdapterConfig: Control(_features, _at_levels),
}
"""Class of a control network's config -> how it works."""
