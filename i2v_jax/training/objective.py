"""What training minimises: the denoising loss of I2V-Adapter (paper section 3.1), over everything that a batch holds.

The first frame stays clean, in its latents and in the loss: the mean is over frames 2..l. Whatever a batch does not
hold ready (latents, prompt tokens, image tokens) is encoded here, so that any encoder may be trained too.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from i2v_jax.diffusion.noise_schedule import NoiseSchedule, target
from i2v_jax.encoders import controls, image_tokens, picture_input
from i2v_jax.encoders.latents import scaled_sample, video_moments
from i2v_jax.encoders.text import encode_dropped, swapped
from i2v_jax.errors import InputError
from i2v_jax.families.family import Family, family_of
from i2v_jax.models.conditions import Conditions
from i2v_jax.models.networks import module_of
from i2v_jax.models.residuals import Residuals

Batch = Mapping[str, Array]
"""What one step sees, a leading axis `b` for clips on each:

- `video` uint8 [b f h w 3], or `latents` float [b f h' w' c] (scaled by the VAE's factor);
- `tokens` int32 [b t], the prompt's ids (and `tokens_2` for a second text encoder), or `text` float [b t d], its states
  (and `pooled` float [b p]);
- `sizes` float [b 6], for models that are conditioned on them;
- `pixels` float [b H W 3], the first frame as the image encoder wants it, or `image_tokens` float [b n d]; neither for
  a UNet without image tokens;
- `control` uint8 [b f h w 3], the control pictures, where a ControlNet is trained;
- `picture` [b], the number of the frame that `pixels` or `image_tokens` are of, and `fs` float [b], the rate, for
  DynamiCrafter.
"""


PICTURES = ("first", "random", "ends")


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
      prompt_swap: share of clips given the prompt of another one of the batch, so that a ControlNet learns to be heeded
        where the two disagree. What is dropped is drawn apart.
      image_dropout: share of clips without image tokens: theirs are zeros, which add nothing; of DynamiCrafter those of
        a grey picture.
      joint_dropout: share of clips with the empty prompt and a zero picture's image tokens, what classifier-free
        guidance leads away from, as IP-Adapter is trained.
      exclusive_dropout: a clip is without its prompt, or its image tokens, or both, by one draw: the three shares are
        of different clips, as DynamiCrafter is trained.
      implicit_dropout: share of clips without a MIVA's implicit prompt, for classifier-free guidance.
      picture: of DynamiCrafter: "first", the picture is the first frame; "random", any; "ends", the first frame and the
        last stand where they are, as models for interpolation are trained.
      image_noise: of DynamiCrafter: the most noise that the picture's latents get, see `picture_input.time_noise`; 0:
        none.
      image_noise_power: how late that grows.
      min_snr_gamma: weights timesteps by min(SNR, gamma) (Hang et al. 2023, section 3.4); None: evenly.
      vae_slice: frames of each clip that are encoded at a time, at most; bounds memory. 0: all at once.
    """

    first_frame: str = "clean"
    timesteps: str = "uniform"
    prompt_dropout: float = 0.1
    prompt_swap: float = 0.0
    image_dropout: float = 0.0
    joint_dropout: float = 0.0
    exclusive_dropout: bool = False
    implicit_dropout: float = 0.0
    picture: str = "first"
    image_noise: float = 0.0
    image_noise_power: float = 5.0
    min_snr_gamma: float | None = None
    vae_slice: int = 0

    def __post_init__(self):
        if self.first_frame not in ("clean", "noisy", "early"):
            raise InputError(f"first_frame={self.first_frame!r}; wanted 'clean', 'noisy' or 'early'.")
        if self.timesteps not in ("uniform", "cubic"):
            raise InputError(f"timesteps={self.timesteps!r}; wanted 'uniform' or 'cubic'.")
        for name in ("prompt_dropout", "prompt_swap", "image_dropout", "joint_dropout", "implicit_dropout"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name}={getattr(self, name)}: wanted a share in [0, 1].")
        if self.exclusive_dropout and self.prompt_dropout + self.image_dropout + self.joint_dropout > 1:
            raise InputError("exclusive_dropout: prompt_dropout, image_dropout and joint_dropout together are above 1.")
        if self.picture not in PICTURES:
            raise InputError(f"picture={self.picture!r}; wanted one of {', '.join(PICTURES)}.")
        for name in ("image_noise", "image_noise_power"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InputError(f"{name}={getattr(self, name)}: wanted 0 or more.")
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
    drop_implicit: Bool[Array, " b"] | None = None  # the implicit prompt of a MIVA
    image_level: Float[Array, " b"] | None = None  # how much noise the picture's latents get, and which
    image_noise: Float[Array, "b f h w c"] | None = None
    swap: Bool[Array, " b"] | None = None  # the prompt for that of the clip before


def draw(key: Key[Array, ""], latents: tuple[int, ...], schedule: NoiseSchedule, objective: Objective) -> Draws:
    """Draws noise, timesteps, dropped prompts and image tokens for latents of shape [b f h w c]."""
    posterior, noise, timesteps, drop = jax.random.split(key, 4)
    drop_image, drop_both, drop_implicit = (jax.random.fold_in(key, number) for number in (4, 5, 6))
    count = schedule.num_train_timesteps
    if objective.timesteps == "uniform":
        drawn = jax.random.randint(timesteps, latents[:1], 0, count)
    else:
        share = 1 - jax.random.uniform(timesteps, latents[:1]) ** 3
        drawn = jnp.minimum(jnp.int32(count * share), count - 1)
    draws = Draws(
        jax.random.normal(posterior, latents, jnp.float32),
        jax.random.normal(noise, latents, jnp.float32),
        drawn,
        jax.random.bernoulli(drop, float(objective.prompt_dropout), latents[:1]),
        jax.random.bernoulli(drop_image, float(objective.image_dropout), latents[:1]),
        jax.random.bernoulli(drop_both, float(objective.joint_dropout), latents[:1]),
        jax.random.bernoulli(drop_implicit, float(objective.implicit_dropout), latents[:1]),
    )
    if objective.exclusive_dropout:
        prompt, both = objective.prompt_dropout, objective.joint_dropout
        of_clip = jax.random.uniform(drop, latents[:1])
        draws = draws._replace(
            drop=of_clip < prompt,
            drop_both=(prompt <= of_clip) & (of_clip < prompt + both),
            drop_image=(prompt + both <= of_clip) & (of_clip < prompt + both + objective.image_dropout),
        )
    if objective.prompt_swap:
        swap = jax.random.bernoulli(jax.random.fold_in(key, 9), float(objective.prompt_swap), latents[:1])
        draws = draws._replace(swap=swap)
    if objective.image_noise:
        level, image_noise = (jax.random.fold_in(key, number) for number in (7, 8))
        level = jax.random.normal(level, latents[:1], jnp.float32)
        draws = draws._replace(image_level=level, image_noise=jax.random.normal(image_noise, latents, jnp.float32))
    return draws


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
      latents: clean ones, before any dynamic rescale.
      noise: standard normal.
      timesteps: 0 .. schedule.num_train_timesteps - 1.
      objective: whether the first frame is clean and left out, weights of timesteps.

    Returns:
      The loss, and `noisy` latents, `prediction`, and `each` clip's own loss [b].
    """
    given = objective.first_frame != "noisy"
    if given and latents.shape[1] < 2:
        raise InputError(
            "Clips of one frame have nothing to learn beside a clean first frame. Give 2 frames or more, or, to train "
            "on pictures, objective.first_frame='noisy'."
        )
    if schedule.base_scale:
        latents = schedule.scaled(latents, timesteps)
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
      configs: component ("unet", "vae", "text_encoder", "image_encoder", "image_proj", ...) -> its config. What batches
        hold ready needs no component.
      schedule, objective: see there.
      empty: what stands for dropped conditions, by the names that a batch has them under, without its batch axis: the
        empty prompt's ids or states, and a zero picture's `image_tokens` for batches that hold tokens, of which only
        joint dropout has need. A family that has zeros for the empty prompt needs none of text.
      zeros_for_empty_prompt: whether zeros stand for a dropped prompt's states; None: as in the family.
    """

    configs: Mapping[str, Any]
    schedule: NoiseSchedule
    objective: Objective
    empty: Mapping[str, Array] = dataclasses.field(default_factory=dict)
    zeros_for_empty_prompt: bool | None = None

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
        latents = self._latents(tree, batch, draws.posterior)
        unet, conditions = module_of(self.configs["unet"]), self.conditions(tree, batch, draws, latents)
        correct = self._control(tree, batch, conditions)

        def predict(noisy, timesteps):
            residuals = correct(noisy, timesteps)
            return unet.apply({"params": tree["unet"]}, noisy, timesteps, conditions, residuals=residuals)

        return denoising_loss(predict, self.schedule, latents, draws.noise, draws.timesteps, self.objective)

    def conditions(
        self,
        tree: Mapping[str, Any],
        batch: Batch,
        draws: Draws,
        latents: Float[Array, "b f h w c"] | None = None,
    ) -> Conditions:
        """Returns what a batch's clips are conditioned on, some of it dropped; `latents` are its clean ones, of which
        DynamiCrafter is given the picture's."""
        family = family_of(self.configs["unet"])
        drop = draws.drop | draws.drop_both
        zeros = self.zeros_for_empty_prompt
        empty = None if (family.zeros_for_empty_prompt if zeros is None else zeros) else self.empty
        told = batch if draws.swap is None else swapped(family.text, batch, draws.swap)
        text = encode_dropped(family.text, self.configs, tree, told, drop, empty)
        sizes = batch["sizes"] if family.has_sizes else None
        tokens = self._image_tokens(tree, batch, draws, family)
        if family.has_picture:
            return Conditions.of_videos(text.states)._replace(
                image_tokens=image_tokens.by_frame(tokens),
                image_latents=self._picture(batch, draws, latents),
                fs=jnp.asarray(batch["fs"], jnp.float32)[:, None],
            )
        found = Conditions.of_videos(text.states, tokens, text.pooled, sizes)
        if self.configs["unet"].miva is None:
            return found
        without = draws.drop_implicit | draws.drop_both
        return found._replace(implicit=1 - jnp.asarray(without, jnp.float32)[:, None])

    def _control(self, tree, batch, conditions) -> Callable[..., Residuals | None]:
        """What the ControlNet, where there is one, adds to the UNet's features, given noisy latents and timesteps."""
        config = self.configs.get("controlnet")
        if config is None:
            return lambda noisy, timesteps: None
        pictures = jnp.asarray(batch["control"], jnp.float32) / 255
        known = jnp.ones(pictures.shape[:2], bool)
        encoded = controls.encode(config, tree["controlnet"], pictures, known, None)
        return lambda *given: controls.residuals(config, tree["controlnet"], *given, conditions, encoded)

    def _latents(self, tree, batch, posterior):
        if "latents" in batch:
            return jnp.asarray(batch["latents"], jnp.float32)
        config = self.configs["vae"]
        mean, logvar = video_moments(config, tree["vae"], batch["video"], self.objective.vae_slice)
        return jnp.asarray(scaled_sample(config, mean, logvar, posterior), jnp.float32)

    def _picture(self, batch, draws, latents) -> Float[Array, "b f h w c"]:
        """The picture's latents, or two pictures', for every frame, as the first layer of DynamiCrafter takes them."""
        objective, frames = self.objective, latents.shape[1]
        if objective.picture == "ends":
            found = picture_input.in_frames(latents[:, :1], frames, latents[:, -1:])
        else:
            number = jnp.asarray(batch["picture"], jnp.int32)[:, None, None, None, None]
            found = picture_input.in_frames(jnp.take_along_axis(latents, number, 1), frames)
        if not objective.image_noise:
            return found
        share = draws.timesteps / self.schedule.num_train_timesteps
        level = picture_input.time_noise(share, draws.image_level, objective.image_noise, objective.image_noise_power)
        return found + level[:, None, None, None, None] * draws.image_noise

    def _image_tokens(self, tree, batch, draws, family: Family) -> Float[Array, "b n d"] | None:
        if not family.image_projection and "image_tokens" not in self.configs["unet"].cross_attention_branches:
            return None
        objective, nothing = self.objective, draws.drop_both
        if family.has_picture:  # which knows no zeros: guidance leads away from a grey picture's tokens
            nothing = nothing | draws.drop_image
        tokens = batch.get("image_tokens")
        if tokens is None:
            tokens = image_tokens.encode(self.configs, tree, batch["pixels"], nothing)
        elif objective.joint_dropout or (family.has_picture and objective.image_dropout):
            if "image_tokens" not in self.empty:
                raise InputError(
                    f"joint_dropout={self.objective.joint_dropout}: these clips were stored without a zero picture's "
                    "image tokens. Store them again, or set objective.joint_dropout=0."
                )
            none = jnp.asarray(self.empty["image_tokens"], tokens.dtype)
            tokens = jnp.where(nothing[:, None, None], none, tokens)
        return tokens if family.has_picture else jnp.where(draws.drop_image[:, None, None], 0, tokens)
