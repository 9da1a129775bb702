"""The networks of a run as functions of their weights and inputs, with an example of each input: its shape is fixed."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from i2v_jax.diffusion.frame_similarity_prior import gaussian_blur
from i2v_jax.encoders import image_tokens, text
from i2v_jax.encoders.latents import decode, moments, scaled_sample
from i2v_jax.families.model import Model
from i2v_jax.models.adapters.text_in_time import NAME as TEXT_IN_TIME
from i2v_jax.models.conditions import Conditions
from i2v_jax.sampling.denoiser import guided, unet_denoiser
from i2v_jax.sampling.settings import Settings
from i2v_jax.weights.tensors import Tensors

Arrays = Mapping[str, Any]


class Network(NamedTuple):
    """A network of a run.

    Attributes:
      name: of its files.
      call: of {component: parameters} and {name: input}; returns {name: output}.
      components: whose parameters it may use.
      inputs: name -> an array of the shape and the dtype that the network takes, with values of a usual size.
    """

    name: str
    call: Callable[[Mapping[str, Any], Arrays], dict[str, Array]]
    components: tuple[str, ...]
    inputs: dict[str, np.ndarray]

    @property
    def specs(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shape and dtype of each input."""
        return {name: jax.ShapeDtypeStruct(array.shape, array.dtype) for name, array in self.inputs.items()}


def of_run(model: Model, settings: Settings) -> list[Network]:
    """Returns the networks in the order that a run calls them.

    Args:
      model: its configs and tokenizers; parameters are not looked at.
      settings: of the run: size, frames, guidance, strengths of the adapters.
    """
    encoders = [text_encoder(model, settings)]
    if model.wants_image_tokens:
        encoders.append(image_encoder(model))
    return [*encoders, vae_encoder(model, settings), unet(model, settings), vae_decoder(model, settings)]


def joined(network: Network, parameters: Mapping[str, Tensors]) -> Tensors:
    """Returns the parameters that a network may use by `component/...`, of {component: its parameters}, unread."""
    entries = {}
    for component in network.components:
        entries |= {f"{component}/{path}": entry for path, entry in parameters[component].entries.items()}
    return Tensors(entries, network.name)


def text_encoder(model: Model, settings: Settings) -> Network:
    """Token ids [1, t] of each text encoder to the states that the UNet reads, and the pooled ones (SDXL)."""
    recipe = model.family.text

    def call(tree, given):
        found = text.encode(recipe, model.configs, tree, given, settings.clip_skip)
        return {name: states for name, states in found._asdict().items() if states is not None}

    ids = text.tokenize(model.tokenizers, ["a cat turns its head"], truncate=True)
    return Network("text_encoder", call, recipe.components, ids)


def image_encoder(model: Model) -> Network:
    """A picture as CLIP takes it [1, s, s, 3] to image tokens; where `unconditional`, those of no picture."""
    components, size = image_tokens.components(model.configs), model.configs["image_encoder"].image_size

    def call(tree, given):
        return {"image_tokens": image_tokens.encode(model.configs, tree, given["pixels"], given["unconditional"])}

    inputs = dict(pixels=normal(1, size, size, 3), unconditional=np.zeros(1, bool))
    return Network("image_encoder", call, components, inputs)


def vae_encoder(model: Model, settings: Settings) -> Network:
    """A picture [1, H, W, 3] in -1..1 and normal noise to scaled latents [1, 1, h, w, c], and those blurred."""
    config = model.configs["vae"]

    def call(tree, given):
        mean, logvar = moments(config, tree["vae"], given["picture"])
        latents = scaled_sample(config, mean, logvar, given["noise"])[:, None]
        return {"latents": latents, "blurred": gaussian_blur(latents)}

    picture = np.tanh(normal(1, settings.height, settings.width, 3))
    return Network("vae_encoder", call, ("vae",), dict(picture=picture, noise=normal(1, *latent_size(model, settings))))


def unet(model: Model, settings: Settings) -> Network:
    """A step's denoising: noisy latents [1, f, h, w, c] whose frame 1 is clean, the timestep and the conditions of both
    sides of guidance, `[unconditional, conditional]`, to the guided prediction. Adapters' strengths are constants."""
    config, conditions = model.configs["unet"], ("text", "image_tokens", "pooled", "sizes")
    strengths = dict(first_frame=settings.adapter_scale, image_tokens=settings.image_token_scale)
    if model.has_text_in_time:
        strengths[TEXT_IN_TIME] = settings.text_in_time_scale
    predicted = None
    if settings.frames > 1:  # as of a run's step: frame 1 is held, and its prediction means nothing
        predicted = jnp.arange(settings.frames)[:, None, None, None] > 0

    def call(tree, given):
        denoise = unet_denoiser(config, strengths)
        if settings.guided:
            denoise = guided(denoise, given["guidance_scale"], settings.guidance_rescale, predicted)
        known = Conditions.of_videos(*map(given.get, conditions))
        return {"prediction": denoise(tree, given["latents"], given["timestep"], known)}

    sides = 2 if settings.guided else 1
    inputs = dict(
        latents=normal(1, settings.frames, *latent_size(model, settings)),
        timestep=np.array(500, np.float32),
        text=normal(sides, text_length(model), config.cross_attention_dim),
    )
    if settings.guided:
        inputs["guidance_scale"] = np.array(settings.guidance_scale, np.float32)
    if model.wants_image_tokens:
        inputs["image_tokens"] = normal(sides, image_tokens.count(model.configs), config.cross_attention_dim)
    if added := config.added_conditioning:
        inputs["pooled"] = normal(sides, added.pooled_dim)
        inputs["sizes"] = np.full((sides, 6), 512, np.float32)
    return Network("unet", call, ("unet",), inputs)


def vae_decoder(model: Model, settings: Settings) -> Network:
    """Scaled latents [k, h, w, c] of a few frames, see `frames_at_once`, to pictures [k, H, W, 3] in about -1..1."""

    def call(tree, given):
        return {"pictures": decode(model.configs["vae"], tree["vae"], given["latents"])}

    latents = normal(frames_at_once(settings), *latent_size(model, settings))
    return Network("vae_decoder", call, ("vae",), dict(latents=latents))


def frames_at_once(settings: Settings) -> int:
    """Returns how many frames the decoder takes: at most `vae_slice`, and as many each time."""
    return next(n for n in range(min(settings.vae_slice, settings.frames), 0, -1) if settings.frames % n == 0)


def latent_size(model: Model, settings: Settings) -> tuple[int, int, int]:
    """Returns height, width and channels of a frame's latents."""
    factor = model.configs["vae"].downscale
    return settings.height // factor, settings.width // factor, model.configs["unet"].latent_channels


def text_length(model: Model) -> int:
    """Returns how many states a prompt comes to."""
    return next(iter(model.tokenizers.values())).length


@functools.cache
def normal(*shape: int) -> np.ndarray:
    """Returns an example of an input: normal numbers, float32, the same for the same shape."""
    return np.random.default_rng(len(shape)).standard_normal(shape, np.float32)
