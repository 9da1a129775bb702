"""What training minimises: the denoising loss of I2V-Adapter (paper section 3.1), over everything that a batch holds;
or, for an autoencoder, the error of what it makes of pictures.

The first frame stays clean, in its latents and in the loss: the mean is over frames 2..l. Whatever a batch does not
hold ready (latents, prompt tokens, image tokens) is encoded here, so that any encoder may be trained too.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from i2v_jax.diffusion.noise_schedule import NoiseSchedule, target
from i2v_jax.errors import InputError
from i2v_jax.models.clip import CLIPTextEncoder, CLIPVisionEncoder
from i2v_jax.models.conditions import Conditions
from i2v_jax.models.image_projection import projection_of
from i2v_jax.models.unet import UNet
from i2v_jax.models.vae import AutoencoderKL, VAEConfig, sample_posterior

Batch = Mapping[str, Array]
"""What one step sees, a leading axis `b` for clips on each:

- `video` uint8 [b f h w 3], or `latents` float [b f h' w' c] (scaled by the VAE's factor);
- `tokens` int32 [b t], the prompt's ids, or `text` float [b t d], its states;
- `pixels` float [b H W 3], the first frame as the image encoder wants it, or `image_tokens` float [b n d]; neither for
  a UNet without image tokens.
"""


@dataclasses.dataclass(frozen=True)
class Objective:
    """Settings of the loss; the defaults are the paper's.

    Attributes:
      first_frame: "clean" trains an image-to-video model as the paper does; "noisy" noises and scores every frame, as
        pictures and motion modules are trained; "early" keeps it clean in the noisier half of the timesteps, where a
        sampler is at first and decides what moves where, and scores the other frames.
      timesteps: "uniform", as in the paper; or "cubic", more of the noisier ones: T (1 - u^3) with uniform u, as
        T2I-Adapter is trained (Mou et al. 2023).
      prompt_dropout: share of prompts replaced by the empty one, for classifier-free guidance.
      image_dropout: share of clips without image tokens: theirs are zeros, which add nothing.
      joint_dropout: share of clips with the empty prompt and a zero picture's image tokens, what classifier-free
        guidance leads away from, as IP-Adapter is trained.
      min_snr_gamma: weights timesteps by min(SNR, gamma) (Hang et al. 2023, section 3.4); None: evenly.
      vae_slice: frames of each clip that are encoded at a time, at most; bounds memory. 0: all at once.
    """

    first_frame: str = "clean"
    timesteps: str = "uniform"
    prompt_dropout: float = 0.1
    image_dropout: float = 0.0
    joint_dropout: float = 0.0
    min_snr_gamma: float | None = None
    vae_slice: int = 0

    def __post_init__(self):
        if self.first_frame not in ("clean", "noisy", "early"):
            raise InputError(f"first_frame={self.first_frame!r}; wanted 'clean', 'noisy' or 'early'.")
        if self.timesteps not in ("uniform", "cubic"):
            raise InputError(f"timesteps={self.timesteps!r}; wanted 'uniform' or 'cubic'.")
        for name in ("prompt_dropout", "image_dropout", "joint_dropout"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name}={getattr(self, name)}: wanted a share in [0, 1].")
        if self.min_snr_gamma is not None and not self.min_snr_gamma > 0:
            raise InputError(f"min_snr_gamma={self.min_snr_gamma}: wanted a number above 0, or None.")
        if self.vae_slice < 0:
            raise InputError(f"vae_slice={self.vae_slice}: wanted 0 (all frames at once) or more.")


class Draws(NamedTuple):
    """What is random in a step, drawn for the whole batch at once: it is the same on any number of devices."""

    posterior: Float[Array, "b f h w c"]  # which latents, of the VAE's distribution
    noise: Float[Array, "b f h w c"]
    timesteps: Int[Array, " b"]
    drop: Bool[Array, " b"]  # the prompt
    drop_image: Bool[Array, " b"]  # the image tokens
    drop_both: Bool[Array, " b"]  # for guidance


def draw(key: Key[Array, ""], latents: tuple[int, ...], schedule: NoiseSchedule, objective: Objective) -> Draws:
    """Draws noise, timesteps, dropped prompts and image tokens for latents of shape [b f h w c]."""
    posterior, noise, timesteps, drop = jax.random.split(key, 4)
    drop_image, drop_both = (jax.random.fold_in(key, number) for number in (4, 5))
    count = schedule.num_train_timesteps
    if objective.timesteps == "uniform":
        drawn = jax.random.randint(timesteps, latents[:1], 0, count)
    else:
        share = 1 - jax.random.uniform(timesteps, latents[:1]) ** 3
        drawn = jnp.minimum(jnp.int32(count * share), count - 1)
    return Draws(
        jax.random.normal(posterior, latents, jnp.float32),
        jax.random.normal(noise, latents, jnp.float32),
        drawn,
        jax.random.bernoulli(drop, float(objective.prompt_dropout), latents[:1]),
        jax.random.bernoulli(drop_image, float(objective.image_dropout), latents[:1]),
        jax.random.bernoulli(drop_both, float(objective.joint_dropout), latents[:1]),
    )


def denoising_loss(
    predict: Callable[[Float[Array, "b f h w c"], Int[Array, " b"]], Float[Array, "b f h w c"]],
    schedule: NoiseSchedule,
    latents: Float[Array, "b f h w c"],
    noise: Float[Array, "b f h w c"],
    timesteps: Int[Array, " b"],
    objective: Objective = Objective(),  # noqa: B008 (frozen)
) -> tuple[Float[Array, ""], dict[str, Array]]:
    """The mean squared error of a prediction, in float32.

    Args:
      predict: the network, given noisy latents and timesteps.
      schedule: says what is noisy, and what is to be predicted.
      latents: clean ones.
      noise: standard normal.
      timesteps: 0 .. schedule.num_train_timesteps - 1.
      objective: whether the first frame is clean and left out, weights of timesteps.

    Returns:
      The loss, and `noisy` latents, `prediction`, and `each` clip's own loss [b].
    """
    given = objective.first_frame != "noisy"
    if given and latents.shape[1] < 2:
        raise InputError("Clips of one frame have nothing to learn beside a clean first frame. Give 2 frames or more.")
    noisy = schedule.add_noise(latents, noise, timesteps)
    if given:
        clean = timesteps >= (0 if objective.first_frame == "clean" else schedule.num_train_timesteps // 2)
        first = jnp.where(clean[:, None, None, None, None], jnp.asarray(latents[:, :1], jnp.float32), noisy[:, :1])
        noisy = jnp.concatenate([first, noisy[:, 1:]], 1)
    prediction = predict(noisy, timesteps)
    alpha, sigma = (
        scale(timesteps).reshape(-1, *(1,) * (latents.ndim - 1)) for scale in (schedule.alpha, schedule.sigma)
    )
    error = jnp.square(
        jnp.asarray(prediction, jnp.float32) - target(schedule.prediction_type, latents, noise, alpha, sigma)
    )
    each = jnp.mean(error[:, int(given) :], range(1, error.ndim)) * min_snr_weight(
        schedule, timesteps, objective.min_snr_gamma
    )
    return jnp.mean(each), {"noisy": noisy, "prediction": prediction, "each": each}


def min_snr_weight(schedule: NoiseSchedule, timesteps: Int[Array, " b"], gamma: float | None) -> Float[Array, " b"]:
    """Weight of each timestep's loss, so that in terms of x_0 it is min(SNR, gamma) (Hang et al. 2023, section 3.4)."""
    if gamma is None:
        return jnp.ones(timesteps.shape)
    snr = jnp.square(schedule.alpha(timesteps) / schedule.sigma(timesteps))
    if schedule.prediction_type == "epsilon":
        return gamma / jnp.maximum(snr, gamma)  # which is 1 where nothing but noise is left
    return jnp.minimum(snr, gamma) / {"v_prediction": snr + 1, "sample": 1}[schedule.prediction_type]


@dataclasses.dataclass(frozen=True)
class Loss:
    """The loss of a batch under a tree of parameters.

    Attributes:
      configs: component ("unet", "vae", "text_encoder", "image_encoder", "image_proj") -> its config. What batches hold
        ready needs no component.
      schedule, objective: see there.
      empty_prompt: the empty prompt's ids [t], or its states [t d] for batches that hold states.
      empty_image: a zero picture's image tokens [n d], for batches that hold tokens; only joint dropout has need of it.
    """

    configs: Mapping[str, Any]
    schedule: NoiseSchedule
    objective: Objective
    empty_prompt: Array
    empty_image: Array | None = None

    def latents_shape(self, batch: Batch) -> tuple[int, ...]:
        """Shape [b f h w c] of a batch's latents."""
        if "latents" in batch:
            return batch["latents"].shape
        b, f, h, w, _ = batch["video"].shape
        vae = self.configs["vae"]
        return b, f, h // vae.downscale, w // vae.downscale, vae.latent_channels

    def draw(self, key: Key[Array, ""], batch: Batch) -> Draws:
        """Draws what is random in a batch's loss."""
        return draw(key, self.latents_shape(batch), self.schedule, self.objective)

    def __call__(
        self, tree: Mapping[str, Any], batch: Batch, draws: Draws
    ) -> tuple[Float[Array, ""], dict[str, Array]]:
        """Returns what `denoising_loss` returns.

        Args:
          tree: component -> parameters.
          batch: see `Batch`.
          draws: from `draw`.
        """
        unet = UNet(self.configs["unet"])
        text, image_tokens = self._text(tree, batch, draws), self._image_tokens(tree, batch, draws)

        def predict(noisy, timesteps):
            return unet.apply({"params": tree["unet"]}, noisy, timesteps, Conditions.of_videos(text, image_tokens))

        latents = self._latents(tree, batch, draws.posterior)
        return denoising_loss(predict, self.schedule, latents, draws.noise, draws.timesteps, self.objective)

    def _latents(self, tree, batch, posterior):
        if "latents" in batch:
            return jnp.asarray(batch["latents"], jnp.float32)
        config = self.configs["vae"]
        vae = AutoencoderKL(config)

        def encode(frames):
            pictures = jnp.asarray(frames, jnp.float32) / 127.5 - 1
            return vae.apply({"params": tree["vae"]}, pictures, method="encode")

        video = batch["video"]
        b, f, *picture = video.shape
        most = self.objective.vae_slice or f
        count = next(n for n in range(min(most, f), 0, -1) if f % n == 0)
        # slices of every clip's frames, so that on a mesh each device encodes those of its own clips
        slices = video.reshape(b, f // count, count, *picture).swapaxes(0, 1).reshape(f // count, b * count, *picture)
        moments = jax.lax.map(encode, slices) if f > count else encode(slices[0])
        mean, logvar = (
            x.reshape(f // count, b, count, *x.shape[-3:]).swapaxes(0, 1).reshape(b * f, *x.shape[-3:]) for x in moments
        )
        latents = sample_posterior(mean, logvar, posterior.reshape(mean.shape))
        return config.scaling_factor * jnp.asarray(latents, jnp.float32).reshape(posterior.shape)

    def _text(self, tree, batch, draws):
        drop = draws.drop | draws.drop_both
        if "text" in batch:
            return jnp.where(drop[:, None, None], jnp.asarray(self.empty_prompt, batch["text"].dtype), batch["text"])
        tokens = jnp.where(drop[:, None], self.empty_prompt, batch["tokens"])
        encoder = CLIPTextEncoder(self.configs["text_encoder"])
        return encoder.apply({"params": tree["text_encoder"]}, tokens).last_hidden

    def _image_tokens(self, tree, batch, draws):
        if "image_tokens" not in self.configs["unet"].cross_attention_branches:
            return None
        tokens = batch.get("image_tokens")
        if tokens is None:
            encoder, config = CLIPVisionEncoder(self.configs["image_encoder"]), self.configs["image_proj"]
            pixels = jnp.where(draws.drop_both[:, None, None, None], 0, batch["pixels"])
            seen = getattr(encoder.apply({"params": tree["image_encoder"]}, pixels), config.reads)
            if config.reads == "image_embeds":  # of which IP-Adapter takes zeros, as `pipeline` does
                seen = jnp.where(draws.drop_both[:, None], 0, seen)
            tokens = projection_of(config).apply({"params": tree["image_proj"]}, seen)
        elif self.objective.joint_dropout:
            if self.empty_image is None:
                raise InputError(
                    f"joint_dropout={self.objective.joint_dropout}: these clips were stored without a zero picture's "
                    "image tokens. Store them again, or set objective.joint_dropout=0."
                )
            tokens = jnp.where(draws.drop_both[:, None, None], jnp.asarray(self.empty_image, tokens.dtype), tokens)
        return jnp.where(draws.drop_image[:, None, None], 0, tokens)


@dataclasses.dataclass(frozen=True)
class Reconstruction:
    """Settings of an autoencoder's loss.

    Attributes:
      crop: side in pixels of the square of each clip that is looked at, drawn at random; 0: all of it.
      edges: weight of the absolute error of differences between neighbouring pixels, beside that of the pixels.
      divergence: weight of the latents' mean KL divergence from a standard normal (Rombach et al. 2022, section 3.1).
    """

    crop: int = 0
    edges: float = 1.0
    divergence: float = 1e-4

    def __post_init__(self):
        for name in ("crop", "edges", "divergence"):
            if not getattr(self, name) >= 0:
                raise InputError(f"{name}={getattr(self, name)}: wanted 0 or more.")


class Crops(NamedTuple):
    """What is random in a step of an autoencoder."""

    posterior: Float[Array, "b f h w c"]  # which latents, of its distribution
    corners: Int[Array, "b 2"]  # of the squares: top, left


@dataclasses.dataclass(frozen=True)
class ReconstructionLoss:
    """The loss of a batch's `video` under a tree that holds a "vae"; each frame is a picture of its own.

    Attributes:
      config: of the autoencoder.
      objective: weights of the terms.
    """

    config: VAEConfig
    objective: Reconstruction

    def draw(self, key: Key[Array, ""], batch: Batch) -> Crops:
        """Draws which latents, of the posterior, and which squares.

        Raises:
          InputError: squares that are larger than the frames, or that have no latents.
        """
        b, f, *size, _ = batch["video"].shape
        side, scale = self.objective.crop, self.config.downscale
        if side % scale or side > min(size):
            raise InputError(
                f"reconstruction.crop={side}: wanted a multiple of {scale}, {min(size)} (the frames' side) at most."
            )
        posterior, corners = jax.random.split(key)
        h, w = (side, side) if side else size
        most = jnp.array([size[0] - h + 1, size[1] - w + 1])
        return Crops(
            jax.random.normal(posterior, (b, f, h // scale, w // scale, self.config.latent_channels), jnp.float32),
            jax.random.randint(corners, (b, 2), 0, most),
        )

    def __call__(
        self, tree: Mapping[str, Any], batch: Batch, draws: Crops
    ) -> tuple[Float[Array, ""], dict[str, Array]]:
        """Returns the loss, and `each` clip's own loss [b] and the `decoded` frames [b f h w 3]."""
        vae, parameters = AutoencoderKL(self.config), {"params": tree["vae"]}
        h, w = (side * self.config.downscale for side in draws.posterior.shape[2:4])

        def crop(video, corner):
            return jax.lax.dynamic_slice(video, (0, *corner, 0), (len(video), h, w, 3))

        video = jnp.asarray(jax.vmap(crop)(batch["video"], draws.corners), jnp.float32) / 127.5 - 1
        mean, logvar = vae.apply(parameters, video.reshape(-1, *video.shape[2:]), method="encode")
        latents = sample_posterior(mean, logvar, draws.posterior.reshape(mean.shape))
        decoded = jnp.asarray(vae.apply(parameters, latents, method="decode"), jnp.float32).reshape(video.shape)

        def per_clip(x):
            return jnp.mean(jnp.asarray(x, jnp.float32).reshape(len(video), -1), 1)

        error = decoded - video
        edges = sum(per_clip(jnp.abs(jnp.diff(error, axis=axis))) for axis in (2, 3))
        divergence = per_clip(0.5 * (jnp.square(mean) + jnp.exp(logvar) - 1 - logvar))
        each = per_clip(jnp.abs(error)) + self.objective.edges * edges + self.objective.divergence * divergence
        return jnp.mean(each), {"decoded": decoded, "each": each}
