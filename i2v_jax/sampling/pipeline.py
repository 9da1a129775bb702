"""From a picture and a prompt to a video: I2V-Adapter's sampling (paper section 3), as the published code runs it.

`Models` are the networks with their weights, `Settings` what a run is told, `Pipeline` runs batches on a mesh.
"""

import dataclasses
import functools
import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int32, Key, UInt8

from i2v_jax.devices.mesh import AXES, batch_sharding, make_mesh, placer, replicated, use_mesh, video_sharding
from i2v_jax.diffusion import guidance, samplers
from i2v_jax.diffusion.frame_similarity_prior import initial_latents, sample_mask
from i2v_jax.diffusion.noise_schedule import ANIMATEDIFF_SD15, NoiseSchedule
from i2v_jax.errors import InputError, nearest
from i2v_jax.media import FITS, clip_pixels, fit_picture, to_model_range
from i2v_jax.models.clip import CLIPTextEncoder, CLIPVisionEncoder
from i2v_jax.models.conditions import Conditions as Denoise
from i2v_jax.models.image_projection import projection_of
from i2v_jax.models.kernels.choice import choose
from i2v_jax.models.tokenizer import ClipTokenizer
from i2v_jax.models.unet import UNet
from i2v_jax.models.vae import AutoencoderKL, sample_posterior
from i2v_jax.weights import load


class Component(NamedTuple):
    """A network: its config and its parameters."""

    config: Any
    parameters: Mapping[str, Any]


@dataclasses.dataclass(frozen=True, eq=False)
class Models:
    """The networks of a run.

    Attributes:
      unet, vae, text_encoder: components, see `i2v_jax.models`.
      tokenizer: the text encoder's.
      image_encoder, image_projection: make image tokens; None for a UNet without the "image_tokens" branch.
      schedule: the noise schedule that the UNet was trained with.
    """

    unet: Component
    vae: Component
    text_encoder: Component
    tokenizer: ClipTokenizer
    image_encoder: Component | None = None
    image_projection: Component | None = None
    schedule: NoiseSchedule = ANIMATEDIFF_SD15

    def __post_init__(self):
        if self.wants_image_tokens and not (self.image_encoder and self.image_projection):
            raise InputError(
                "The UNet has image-token layers, but there is no image encoder or no image projection to make tokens. "
                "Give both, or leave the image adapter out."
            )
        if self.unet.config.added_conditioning:
            raise InputError("The UNet wants SDXL's added conditioning, which this pipeline does not make; SD1.5 only.")
        for given, wanted, what, cause in self._widths():
            if given != wanted:
                raise InputError(f"{what}: {given} against {wanted}. {cause}")

    def _widths(self):
        """Pairs of numbers that must agree, what they are, and what to look at when they do not."""
        unet, vae, text = self.unet.config, self.vae.config, self.text_encoder.config
        yield (
            unet.in_channels,
            vae.latent_channels,
            "Channels of the UNet's input against the VAE's latents",
            ("Inpainting and picture-editing models, for instance, take more than latents; give a text-to-image base."),
        )
        yield (
            unet.out_channels,
            vae.latent_channels,
            "Channels of the UNet's output against the VAE's latents",
            ("Give a VAE and a UNet that belong together."),
        )
        yield (
            text.width,
            unet.cross_attention_dim,
            "Width of the text encoder's tokens against the UNet's",
            ("Give the text encoder that the UNet was trained with."),
        )
        if self.wants_image_tokens:
            encoder, projection = self.image_encoder.config, self.image_projection.config
            seen = encoder.projection_dim if projection.reads == "image_embeds" else encoder.width
            yield (
                seen,
                projection.embed_dim,
                "Width of the image encoder's output against the image projection's",
                ("IP-Adapters for SD1.5 want the ViT-H image encoder; give the one that yours was trained with."),
            )
            yield (
                projection.cross_attention_dim,
                unet.cross_attention_dim,
                "Width of image tokens against the UNet's",
                ("Give an image adapter for this UNet's family."),
            )

    @property
    def wants_image_tokens(self) -> bool:
        """Whether the UNet attends to image tokens."""
        return "image_tokens" in self.unet.config.cross_attention_branches

    @property
    def max_frames(self) -> int | None:
        """Frames that the motion modules know positions of; None without motion modules."""
        return self.unet.config.motion and self.unet.config.motion.max_positions

    @classmethod
    def load(
        cls,
        base: str,
        *,
        motion: str | None = None,
        adapter: str | None = None,
        image_adapter: str | None = None,
        image_encoder: str | None = None,
        unet: str | None = None,
        vae: str | None = None,
        text_encoder: str | None = None,
        tokenizer: str | ClipTokenizer | None = None,
        trained: Sequence[str] = (),
        schedule: NoiseSchedule = ANIMATEDIFF_SD15,
        dtype: Any = jnp.float32,
        attention: str = "auto",
        convolution: str = "auto",
        mesh: jax.sharding.Mesh | None = None,
        **unet_settings: Any,
    ) -> "Models":
        """Loads everything, each part from a file, a folder or a hub id, in any format of `i2v_jax.weights`.

        Args:
          base: diffusers folder or hub id of a Stable Diffusion 1.5 model; gives what is not named otherwise.
          motion: AnimateDiff motion modules.
          adapter: I2V-Adapter's first-frame branch.
          image_adapter: an IP-Adapter: image projection and the UNet's image-token weights.
          image_encoder: the CLIP vision encoder that the image adapter was trained with.
          unet, vae, text_encoder, tokenizer: in place of the base's; the tokenizer may be one already loaded.
          trained: files that `train.py` wrote; their weights replace those of the same paths, in all networks.
          schedule: noise schedule that the motion modules were trained with.
          dtype: of weights and activations; float32 or bfloat16.
          attention, convolution: implementations for UNet and VAE, see `models.kernels`.
          mesh: devices to load onto; by default all, as data.
          unet_settings: passed to `load_unet`: fields of `UNetConfig` set by hand, `config`, `motion_config`.

        Raises:
          InputError: something cannot be loaded; says what.
        """
        load.check_prediction_type(unet or base, schedule.prediction_type)
        mesh = mesh or make_mesh({"data": -1})
        common = dict(dtype=dtype, trained=trained, place=placer(mesh))
        kernels = choose(mesh.devices.flat[0], dtype, attention, convolution)
        if not isinstance(tokenizer, ClipTokenizer):
            tokenizer = ClipTokenizer.from_pretrained(tokenizer or base, "" if tokenizer else "tokenizer")
        load.check_trained(
            trained, ("unet", "vae", "text_encoder", *(("image_encoder", "image_proj") if image_adapter else ()))
        )
        return cls(
            unet=Component(
                *load.load_unet(
                    unet or base,
                    motion=motion,
                    adapter=adapter,
                    image_tokens=image_adapter,
                    **(kernels | common | unet_settings),
                )
            ),
            vae=Component(*load.load_vae(vae or base, **kernels, **common)),
            text_encoder=Component(*load.load_text_encoder(text_encoder or base, **common)),
            tokenizer=tokenizer,
            # without an adapter nothing looks at the picture's tokens
            image_encoder=(image_adapter and image_encoder)
            and Component(*load.load_image_encoder(image_encoder, **common)),
            image_projection=image_adapter and Component(*load.load_image_projection(image_adapter, **common)),
            schedule=schedule,
        )


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a run is told, beside picture, prompts and seed. The defaults are the published code's.

    Attributes:
      height, width: of the video, pixels; multiples of the VAE's factor (8).
      frames: 1 .. positions of the motion modules.
      steps: sampling steps of a whole run.
      guidance_scale: strength of classifier-free guidance; 1 or less runs without it, at half the cost.
      guidance_rescale: phi of `diffusion.guidance.rescale`, 0 .. 1.
      sampler, sampler_options: see `diffusion.samplers.make`.
      t0: strength of the Frame Similarity Prior's noise in (0, 1]; 1 runs every step, less starts later.
      p: the prior's share of unblurred elements, 0 .. 1.
      adapter_scale, image_token_scale: strength of the first-frame and image-token branches; 1 as trained.
      fit: how a picture of another aspect comes to `height` x `width`, see `media.fit_picture`.
      truncate_prompts: cut a prompt of more than 77 tokens with a warning, in place of an error.
      vae_slice: frames that each device decodes at a time; bounds memory.
    """

    height: int = 512
    width: int = 512
    frames: int = 16
    steps: int = 25
    guidance_scale: float = 7.5
    guidance_rescale: float = 0.0
    sampler: str = "ddim"
    sampler_options: tuple[tuple[str, Any], ...] = ()
    t0: float = 1.0
    p: float = 0.5
    adapter_scale: float = 1.0
    image_token_scale: float = 1.0
    fit: str = "crop"
    truncate_prompts: bool = False
    vae_slice: int = 1

    def check(self, models: Models) -> samplers.Sampler:
        """Returns the run's sampler, having checked every setting, before anything costly begins.

        Raises:
          InputError: a setting is out of range; says which, and what is wanted.
        """
        if models.max_frames is None and self.frames != 1:
            raise InputError(f"frames={self.frames}: without motion modules only 1 frame can be made. Give `motion`.")
        return self.check_values(models.schedule, models.vae.config.downscale, models.max_frames or 1)

    def check_values(self, schedule: NoiseSchedule, factor: int = 8, max_frames: int | None = None) -> samplers.Sampler:
        """As `check`, with no models at hand: their VAE's factor is taken to be 8, their frames to be enough."""
        for name in ("height", "width"):
            size = getattr(self, name)
            if size < factor or size % factor:
                near = max(factor, round(size / factor) * factor)
                raise InputError(f"{name}={size}: wanted a multiple of {factor}, such as {near}.")
        if self.frames < 1:
            raise InputError(f"frames={self.frames}: wanted 1 or more.")
        if max_frames is not None and self.frames > max_frames:
            raise InputError(f"frames={self.frames}: these motion modules know 1 to {max_frames} frames.")
        if self.fit not in FITS:
            raise InputError(f"fit={self.fit!r}; known: {', '.join(FITS)}.{nearest(self.fit, FITS)}")
        if not 0 <= self.p <= 1:
            raise InputError(f"p={self.p}: wanted a probability in [0, 1].")
        if not 0 <= self.guidance_rescale <= 1:
            raise InputError(f"guidance_rescale={self.guidance_rescale}: wanted a number in [0, 1].")
        if self.vae_slice < 1:
            raise InputError(f"vae_slice={self.vae_slice}: wanted 1 or more frames.")
        for name in ("guidance_scale", "adapter_scale", "image_token_scale"):
            if not math.isfinite(getattr(self, name)):
                raise InputError(f"{name}={getattr(self, name)}: wanted a finite number.")
        sampler = samplers.make(self.sampler, schedule, self.steps, **dict(self.sampler_options))
        sampler.start_index(self.t0)
        return sampler

    @property
    def guided(self) -> bool:
        """Whether the network runs twice a step, without and with the prompt."""
        return self.guidance_scale > 1


def named_keys(seeds: Int32[np.ndarray, " n"], name: str) -> Key[Array, " n"]:
    """One random key per video for one purpose: what is drawn for a video depends on its seed and the name alone."""
    number = zlib.crc32(name.encode()) & 0x7FFFFFFF
    return jax.vmap(lambda seed: jax.random.fold_in(jax.random.key(seed), number))(jnp.asarray(seeds, jnp.uint32))


def normal(keys: Key[Array, " n"], shape: tuple[int, ...]) -> Float[Array, "n ..."]:
    """Standard normal noise of `shape` for each key."""
    return jax.vmap(lambda key: jax.random.normal(key, shape, jnp.float32))(keys)


class Conditions(NamedTuple):
    """What steers a batch; with guidance `[unconditional, conditional]`, twice as many rows as videos."""

    text: Float[Array, "b t e"]
    image_tokens: Float[Array, "b n e"] | None
    first_frame: Float[Array, "n 1 h w c"]  # clean latents


class Pipeline:
    """Runs batches of videos on a mesh; programs are compiled once for each shape and sampler."""

    def __init__(self, models: Models, mesh: jax.sharding.Mesh | None = None):
        """Args:
        models: loaded onto the same mesh.
        mesh: from `make_mesh`; by default all devices, as data.
        """
        self.models = models
        self.mesh = mesh or make_mesh({"data": -1})
        text, vae = CLIPTextEncoder(models.text_encoder.config), AutoencoderKL(models.vae.config)
        scale = models.vae.config.scaling_factor
        self._encode_text = jax.jit(lambda p, ids: text.apply({"params": p}, ids).last_hidden)
        self._encode_image = models.wants_image_tokens and _image_tokens(models)

        def encode(p, pictures, keys):
            mean, logvar = vae.apply({"params": p}, pictures, method="encode")
            return scale * sample_posterior(mean, logvar, normal(keys, mean.shape[1:]))[:, None]

        def decode(p, latents):
            pictures = vae.apply({"params": p}, latents / scale, method="decode").astype(jnp.float32)
            return jnp.round(jnp.clip(pictures / 2 + 0.5, 0, 1) * 255).astype(jnp.uint8), jnp.isfinite(pictures).all()

        self._encode, self._decode = jax.jit(encode), jax.jit(decode)
        self._programs = functools.lru_cache(maxsize=8)(self._make_programs)

    def __call__(
        self,
        pictures: Sequence[UInt8[np.ndarray, "h w 3"]],
        prompts: Sequence[str],
        seeds: Sequence[int],
        negative_prompts: Sequence[str] | None = None,
        settings: Settings = Settings(),  # noqa: B008 (frozen)
        on_step: Callable[[int, int], None] = lambda done, total: None,
    ) -> UInt8[np.ndarray, "n f H W 3"]:
        """Animates each picture. A video depends on its own picture, prompts and seed, not on the rest of the batch.

        Args:
          pictures: RGB, any sizes; become the first frames.
          prompts: one per picture.
          seeds: one per picture, 0 .. 2**32 - 1.
          negative_prompts: one per picture; empty by default.
          settings: of the run.
          on_step: called with (steps done, steps in all) after each sampling step.

        Returns:
          Videos, RGB.

        Raises:
          InputError: a setting out of range, a prompt too long, or latents that are no longer finite.
        """
        return self.decode(self.latents(pictures, prompts, seeds, negative_prompts, settings, on_step), settings)

    def latents(
        self,
        pictures: Sequence[UInt8[np.ndarray, "h w 3"]],
        prompts: Sequence[str],
        seeds: Sequence[int],
        negative_prompts: Sequence[str] | None = None,
        settings: Settings = Settings(),  # noqa: B008 (frozen)
        on_step: Callable[[int, int], None] = lambda done, total: None,
    ) -> Float[Array, "n f h w c"]:
        """As `__call__`, but returns the videos' clean latents (times the VAE's scaling factor), float32."""
        negative_prompts = [""] * len(pictures) if negative_prompts is None else negative_prompts
        _check_batch(pictures, prompts, seeds, negative_prompts)
        sampler = settings.check(self.models)
        shares = self.mesh.shape["frames"]
        if settings.frames % shares:
            raise InputError(
                f"frames={settings.frames} cannot be spread over a mesh with frames={shares}: wanted a multiple of it, "
                "or a mesh with frames=1."
            )
        count = len(pictures)
        devices = self.mesh.shape["data"] * self.mesh.shape["fsdp"]
        rows = [*range(count), *[count - 1] * (-count % devices)]  # whole shares; the surplus is dropped at the end
        pick = lambda items: [items[row] for row in rows]  # noqa: E731
        with use_mesh(self.mesh):
            seeds = self._spread(np.asarray(pick(seeds), np.uint32))
            conditions = self._conditions(pick(pictures), pick(prompts), pick(negative_prompts), seeds, settings)
            return self._sample(conditions, seeds, sampler, settings, on_step)[:count]

    def decode(
        self,
        latents: Float[Array, "n f h w c"],
        settings: Settings = Settings(),  # noqa: B008 (frozen)
    ) -> UInt8[np.ndarray, "n f H W 3"]:
        """Decodes a few frames at a time on each device, so that memory does not grow with the video."""
        count, frames = latents.shape[:2]
        flat = np.asarray(latents).reshape(-1, *latents.shape[2:])
        share = settings.vae_slice * self.mesh.size
        flat = np.concatenate([flat, np.repeat(flat[-1:], -len(flat) % share, axis=0)])
        everywhere = jax.sharding.NamedSharding(self.mesh, jax.sharding.PartitionSpec(AXES))
        with use_mesh(self.mesh, rules={"batch": AXES}):
            slices = []
            for i in range(0, len(flat), share):
                piece = jax.device_put(flat[i : i + share], everywhere)
                pictures, finite = self._decode(self.models.vae.parameters, piece)
                if not finite:
                    raise InputError(
                        "The VAE decodes to numbers that are not finite. Try dtype float32, or check its weights."
                    )
                slices.append(np.asarray(pictures))
        pictures = np.concatenate(slices)[: count * frames]
        return pictures.reshape(count, frames, *pictures.shape[1:])

    def _conditions(self, pictures, prompts, negative_prompts, seeds, settings) -> Conditions:
        models = self.models
        encode = functools.partial(models.tokenizer.encode, truncate=settings.truncate_prompts)
        sides = [negative_prompts, prompts] if settings.guided else [prompts]
        text = jnp.concatenate([self._text(encode(side)) for side in sides])
        image_tokens = None
        if models.wants_image_tokens:
            size = models.image_encoder.config.image_size
            pixels = self._spread(np.stack([clip_pixels(picture, size) for picture in pictures]))
            image_tokens = self._tokens(pixels)
            if settings.guided:
                image_tokens = jnp.concatenate([self._tokens(None, len(pictures)), image_tokens])
        fitted = [to_model_range(fit_picture(p, settings.height, settings.width, settings.fit)) for p in pictures]
        first_frame = self._encode(
            models.vae.parameters, self._spread(np.stack(fitted)), named_keys(seeds, "first frame")
        )
        return Conditions(text, image_tokens, first_frame)

    def _text(self, token_ids):
        return self._encode_text(self.models.text_encoder.parameters, self._spread(token_ids))

    def _tokens(self, pixels, count=0):
        encoder, projection = self.models.image_encoder, self.models.image_projection
        return self._encode_image(encoder.parameters, projection.parameters, pixels, count)

    def _sample(self, conditions, seeds, sampler, settings, on_step) -> Float[Array, "n f h w c"]:
        start = sampler.start_index(settings.t0)
        begin, step = self.programs(settings)
        state = begin(conditions.first_frame, seeds, start, settings.p, settings.frames)
        strengths = dict(
            guidance_scale=settings.guidance_scale,
            first_frame=settings.adapter_scale,
            image_tokens=settings.image_token_scale,
        )
        total = sampler.num_steps - start
        finite = None
        for done in range(total):  # the check is one step late, so that the next step is already under way
            previous = finite
            state, finite = step(self.models.unet.parameters, state, start + done, conditions, seeds, strengths)
            if done:
                _stop_unless(previous, done, total)
                on_step(done, total)
        _stop_unless(finite, total, total)
        on_step(total, total)
        return state.latents

    def programs(self, settings: Settings) -> tuple[Callable, Callable]:
        """Returns the two jitted programs of a run: its first state, and one step."""
        return self._programs(
            settings.sampler, settings.steps, settings.sampler_options, settings.guided, settings.guidance_rescale
        )

    def _make_programs(self, sampler_name, steps, sampler_options, guided, guidance_rescale):
        unet = UNet(self.models.unet.config)
        sampler = samplers.make(sampler_name, self.models.schedule, steps, **dict(sampler_options))

        spread, whole = video_sharding(self.mesh), replicated(self.mesh)
        state_sharding = samplers.SamplerState(
            latents=spread, x0=spread, steps_taken=whole
        )  # the same before and after a step

        @functools.partial(jax.jit, static_argnums=(2, 3, 4), out_shardings=state_sharding)
        def begin(first_frame, seeds, start, p, frames):
            video = (frames, *first_frame.shape[2:])
            mask = jax.vmap(lambda key: sample_mask(key, video, p))(named_keys(seeds, "prior mask"))
            noise = normal(named_keys(seeds, "prior noise"), video)
            latents = initial_latents(first_frame, mask, noise, sampler, start)
            return samplers.hold_first_frame(sampler, first_frame).init(latents)

        @functools.partial(jax.jit, donate_argnums=1, out_shardings=(state_sharding, whole))
        def step(parameters, state, i, conditions, seeds, strengths):
            held = samplers.hold_first_frame(sampler, conditions.first_frame)
            sample = held.scale_input(state.latents, i)
            prediction = unet.apply(
                {"params": parameters},
                jnp.concatenate([sample, sample]) if guided else sample,
                jnp.asarray(sampler.timesteps)[i],
                Denoise.of_videos(conditions.text, conditions.image_tokens),
                strengths,
            )
            if guided:
                predicted = None  # frame 1's prediction means nothing, and should not move the others' spread
                if state.latents.shape[1] > 1:
                    predicted = jnp.arange(state.latents.shape[1])[:, None, None, None] > 0
                prediction = guidance.classifier_free(
                    prediction, strengths["guidance_scale"], guidance_rescale, where=predicted
                )
            noise = None
            if sampler.stochastic:
                keys = jax.vmap(lambda key: jax.random.fold_in(key, i))(named_keys(seeds, "sampler noise"))
                noise = normal(keys, state.latents.shape[1:])
            state = held.step(state, i, prediction, noise)
            return state, jnp.isfinite(state.latents).all()

        return begin, step

    def _spread(self, array):
        return jax.device_put(array, batch_sharding(self.mesh))


def _image_tokens(models: Models):
    """Returns a function from pictures to image tokens; without pictures, to the unconditional tokens.

    Those are the tokens of an all-zero picture (published code), or the linear projection's of an all-zero
    embedding (IP-Adapter).
    """
    encoder, config = CLIPVisionEncoder(models.image_encoder.config), models.image_projection.config
    size = models.image_encoder.config.image_size

    @functools.partial(jax.jit, static_argnums=3)
    def run(encoder_parameters, projection_parameters, pixels, count):
        unconditional = pixels is None
        if unconditional:
            pixels = jnp.zeros((1, size, size, 3))
        seen = encoder.apply({"params": encoder_parameters}, pixels)
        features = getattr(seen, config.reads)
        if unconditional and config.reads == "image_embeds":
            features = jnp.zeros_like(features)
        tokens = projection_of(config).apply({"params": projection_parameters}, features)
        return jnp.broadcast_to(tokens, (count, *tokens.shape[1:])) if unconditional else tokens

    return run


def _check_batch(pictures, prompts, seeds, negative_prompts) -> None:
    given = dict(prompts=prompts, seeds=seeds, negative_prompts=negative_prompts)
    for name, items in given.items():
        if isinstance(items, str) or len(items) != len(pictures):
            shown = repr(items) if isinstance(items, str) else f"{len(items)} of them"
            raise InputError(f"{name}: {shown} for {len(pictures)} pictures; wanted a list with one for each.")
    if not len(pictures):
        raise InputError("No pictures; wanted one or more.")
    for picture in pictures:
        if picture.ndim != 3 or picture.shape[-1] != 3 or picture.dtype != np.uint8:
            raise InputError(f"A picture is {picture.dtype} {picture.shape}; wanted uint8 RGB [height, width, 3].")
    for seed in seeds:
        if not 0 <= seed < 2**32:
            raise InputError(f"seed={seed}: wanted 0 to {2**32 - 1}.")


def _stop_unless(finite, step: int, total: int) -> None:
    if not finite:
        raise InputError(
            f"The latents are no longer finite after step {step} of {total}. Try dtype float32 or a lower "
            "guidance_scale, or check the weights."
        )
