"""From a picture and a prompt to a video: I2V-Adapter's sampling (paper section 3), as the published code runs it."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from i2v_jax.devices.compile_cache import use_compile_cache
from i2v_jax.devices.mesh import AXES, batch_sharding, make_mesh, replicated, use_mesh, video_sharding
from i2v_jax.diffusion import samplers
from i2v_jax.diffusion.first_frame import hold
from i2v_jax.diffusion.frame_similarity_prior import initial_latents, sample_mask
from i2v_jax.encoders import image_tokens, sizes, text
from i2v_jax.encoders.latents import decode, moments, scaled_sample
from i2v_jax.errors import InputError, python_words
from i2v_jax.families.model import Model
from i2v_jax.media import clip_pixels, fit_picture, to_model_range
from i2v_jax.models.conditions import Conditions, join
from i2v_jax.sampling.denoiser import sampling_step
from i2v_jax.sampling.inputs import AnyPicture, batch_of
from i2v_jax.sampling.randomness import named_keys, normal
from i2v_jax.sampling.settings import Settings
from i2v_jax.sampling.watch import SILENT, OnLatents, OnStep, Watch


class Pipeline:
    """Runs batches of videos on a mesh; programs are compiled once for each shape and sampler."""

    def __init__(self, model: Model, mesh: jax.sharding.Mesh | None = None):
        """Args:
        model: loaded onto the same mesh.
        mesh: from `devices.mesh.make_mesh`; by default all devices, as data.
        """
        use_compile_cache()
        self.model = model
        self.mesh = mesh or make_mesh({"data": -1})
        self._encode_text = jax.jit(functools.partial(text.encode, model.family.text, model.configs))
        self._encode_image = jax.jit(functools.partial(image_tokens.encode, model.configs))
        self._encode_no_image = jax.jit(functools.partial(image_tokens.encode_unconditional, model.configs))
        self._encode, self._decode = jax.jit(self._encode_pictures), jax.jit(self._decode_latents)
        self._programs = functools.lru_cache(maxsize=8)(self._make_programs)
        self._begun = set()

    def __call__(
        self,
        pictures: AnyPicture | Sequence[AnyPicture],
        prompts: str | Sequence[str],
        seeds: int | Sequence[int] | None = None,
        negative_prompts: str | Sequence[str] | None = None,
        settings: Settings = Settings(),  # noqa: B008 (frozen)
        on_step: OnStep | None = None,
        on_latents: OnLatents | None = None,
        **second_prompts: str | Sequence[str] | None,
    ) -> UInt8[np.ndarray, "n f H W 3"]:
        """Animates each picture. A video depends on its own picture, prompts and seed, not on the rest of the batch.

        Whatever is given once, and not in a list, is for all videos: one picture with three seeds is three videos.

        Args:
          pictures: become the first frames, of any sizes: paths, images of Pillow's, arrays; see `inputs.AnyPicture`.
          prompts: one, or one for each picture.
          seeds: likewise, 0 .. 2**32 - 1; None: 0, 1, 2 ...
          negative_prompts: likewise; empty by default.
          settings: of the run.
          on_step: called with (steps done, steps in all) after each sampling step.
          on_latents: called with (steps done, steps in all, latents) after each step: the clean latents as that step
            predicts them, float32 [n, f, h, w, c], an array of one's own; `decode` shows them.
          second_prompts: `prompts_2` and `negative_prompts_2`, for a second text encoder; by default the same.

        Returns:
          Videos, RGB; the first axis is there for a single one too.

        Raises:
          InputError: a picture that cannot be read, a setting out of range, a prompt too long, lists that do not pair,
            or latents that are no longer finite.
        """
        made = self.latents(pictures, prompts, seeds, negative_prompts, settings, on_step, on_latents, **second_prompts)
        return self.decode(made, settings)

    def latents(
        self,
        pictures: AnyPicture | Sequence[AnyPicture],
        prompts: str | Sequence[str],
        seeds: int | Sequence[int] | None = None,
        negative_prompts: str | Sequence[str] | None = None,
        settings: Settings = Settings(),  # noqa: B008 (frozen)
        on_step: OnStep | None = None,
        on_latents: OnLatents | None = None,
        *,
        watch: Watch = SILENT,
        batch_size: int = 1,
        **second_prompts: str | Sequence[str] | None,
    ) -> Float[Array, "n f h w c"]:
        """As `__call__`, but returns the videos' clean latents (times the VAE's scaling factor), float32.

        Args:
          watch: what else is called while the run goes on.
          batch_size: of the programs; fewer videos are filled up to it, so that the same programs serve them.
        """
        if on_step or on_latents:
            watch = watch._replace(on_step=on_step or watch.on_step, on_latents=on_latents or watch.on_latents)
        with python_words():
            pictures, seeds, texts = batch_of(
                pictures, prompts, seeds, negative_prompts=negative_prompts, **second_prompts
            )
            count = len(pictures)
            sampler = settings.check(self.model)
            self._check_frames(settings.frames)
            devices = self.mesh.shape["data"] * self.mesh.shape["fsdp"]
            size = max(count, batch_size)
            size += -size % devices  # whole shares; the surplus is dropped at the end
            rows = [*range(count), *[count - 1] * (size - count)]
            pictures, seeds = ([given[row] for row in rows] for given in (pictures, seeds))
            texts = {name: [given[row] for row in rows] for name, given in texts.items()}
            with use_mesh(self.mesh):
                watch.on_stage("encoding", self._is_new("encoding", size, settings.height, settings.width))
                seeds = self._spread(np.asarray(seeds, np.uint32))
                conditions = self.encode(**texts, pictures=pictures, settings=settings)
                first_frame = self.encode_first_frame(pictures, seeds, settings)
                start = sampler.start_index(settings.t0)
                begin, _ = self.programs(settings)
                state = begin(first_frame, seeds, start, settings.p, settings.frames)
                if watch is not SILENT:
                    jax.block_until_ready((conditions, state))  # else the first step would seem to take that time
                return self._run(state, start, conditions, first_frame, seeds, settings, watch, count)[:count]

    def encode(
        self,
        prompts: Sequence[str],
        negative_prompts: Sequence[str] | None = None,
        prompts_2: Sequence[str] | None = None,
        negative_prompts_2: Sequence[str] | None = None,
        pictures: Sequence[UInt8[np.ndarray, "h w 3"]] = (),
        settings: Settings = Settings(),  # noqa: B008 (frozen)
    ) -> Conditions:
        """Returns what a batch is conditioned on; under guidance `[unconditional, conditional]`.

        Args:
          prompts, negative_prompts, prompts_2, negative_prompts_2: one per video each, see `__call__`.
          pictures: one per video, for models with image tokens.
          settings: whether there is guidance, sizes, whether prompts may be cut.
        """
        tokens = self._image_tokens(pictures) if self.model.wants_image_tokens else None
        conditional = self._side(prompts, prompts_2, tokens, settings, negative=False)
        if not settings.guided:
            return conditional
        if tokens is not None:
            none = self._encode_no_image(self._tree(*image_tokens.COMPONENTS))
            tokens = jnp.broadcast_to(none, (len(pictures), *none.shape[1:]))
        negative_prompts = [""] * len(prompts) if negative_prompts is None else negative_prompts
        return join(self._side(negative_prompts, negative_prompts_2, tokens, settings, negative=True), conditional)

    def encode_first_frame(
        self, pictures: Sequence[UInt8[np.ndarray, "h w 3"]], seeds: Any, settings: Settings
    ) -> Float[Array, "n 1 h w c"]:
        """Returns latents of the pictures, drawn of the autoencoder's posterior, scaled."""
        fitted = [to_model_range(fit_picture(p, settings.height, settings.width, settings.fit)) for p in pictures]
        keys = named_keys(seeds, "first frame")
        return self._encode(self.model.parameters["vae"], self._spread(np.stack(fitted)), keys)

    def denoise(
        self,
        noisy: Float[np.ndarray, "n f h w c"],
        conditions: Conditions,
        settings: Settings = Settings(),  # noqa: B008 (frozen)
        first_frame: Float[np.ndarray, "n 1 h w c"] | None = None,
        seeds: Sequence[int] | None = None,
    ) -> Float[Array, "n f h w c"]:
        """Runs all the steps from given latents.

        Args:
          noisy: in the sampler's own scaling, as noisy as the first step that `settings.t0` leaves.
          conditions: from `encode`.
          settings: of the run.
          first_frame: clean latents that frame 1 is held at; None: it is sampled like the others.
          seeds: one per video, for stochastic samplers.
        """
        sampler = settings.check(self.model)
        with use_mesh(self.mesh):
            seeds = self._spread(np.asarray(range(len(noisy)) if seeds is None else seeds, np.uint32))
            whole, spread = replicated(self.mesh), video_sharding(self.mesh)
            places = samplers.SamplerState(spread, spread, whole)
            state = jax.jit(sampler.init, out_shardings=places)(jnp.asarray(noisy))
            start = sampler.start_index(settings.t0)
            return self._run(state, start, conditions, first_frame, seeds, settings, SILENT, len(noisy))

    def decode(
        self,
        latents: Float[Array, "n f h w c"],
        settings: Settings = Settings(),  # noqa: B008 (frozen)
        watch: Watch = SILENT,
    ) -> UInt8[np.ndarray, "n f H W 3"]:
        """Decodes a few frames at a time on each device, so that memory does not grow with the video."""
        count, frames = latents.shape[:2]
        flat = np.asarray(latents).reshape(-1, *latents.shape[2:])
        share = settings.vae_slice * self.mesh.size
        watch.on_stage("decoding", self._is_new("decoding", flat.shape[1:], share))
        flat = np.concatenate([flat, np.repeat(flat[-1:], -len(flat) % share, axis=0)])
        everywhere = jax.sharding.NamedSharding(self.mesh, jax.sharding.PartitionSpec(AXES))
        with use_mesh(self.mesh, rules={"batch": AXES}):
            slices = []
            for i in range(0, len(flat), share):
                piece = jax.device_put(flat[i : i + share], everywhere)
                pictures, finite = self._decode(self.model.parameters["vae"], piece)
                if not finite:
                    raise InputError(
                        "The VAE decodes to numbers that are not finite. Try dtype float32, or check its weights."
                    )
                slices.append(np.asarray(pictures))
        pictures = np.concatenate(slices)[: count * frames]
        return pictures.reshape(count, frames, *pictures.shape[1:])

    def programs(self, settings: Settings) -> tuple[Callable, Callable]:
        """Returns the two jitted programs of a run: its first state, and one step."""
        return self._programs(
            settings.sampler, settings.steps, settings.sampler_options, settings.guided, settings.guidance_rescale
        )

    def _side(self, prompts, prompts_2, tokens, settings, negative: bool) -> Conditions:
        """The conditions of one side of guidance."""
        model, count = self.model, len(prompts)
        ids = text.tokenize(model.tokenizers, prompts, prompts_2, settings.truncate_prompts)
        found = self._encode_text(self._tree(*model.family.text.components), jax.tree.map(self._spread, ids))
        empty = [not prompt for prompt in prompts]
        if prompts_2 is not None:
            empty = [nothing and not prompt for nothing, prompt in zip(empty, prompts_2)]
        if negative and model.family.zeros_for_empty_prompt and any(empty):
            found = text.zeroed(found, self._spread(np.array(empty)))
        numbers = None
        if model.family.has_sizes:
            numbers = self._spread(sizes.encode(*settings.size_conditions(negative), count))
        return Conditions.of_videos(found.states, tokens, found.pooled, numbers)

    def _image_tokens(self, pictures) -> Float[Array, "b n e"]:
        size = self.model.configs["image_encoder"].image_size
        pixels = self._spread(np.stack([clip_pixels(picture, size) for picture in pictures]))
        return self._encode_image(self._tree(*image_tokens.COMPONENTS), pixels)

    def _run(self, state, start, conditions, first_frame, seeds, settings, watch, count) -> Float[Array, "n f h w c"]:
        _, step = self.programs(settings)
        strengths = dict(
            guidance_scale=settings.guidance_scale,
            first_frame=settings.adapter_scale,
            image_tokens=settings.image_token_scale,
        )
        total = settings.check(self.model).num_steps - start
        finite = None
        watch.on_stage("steps", self._is_new("steps", state.latents.shape, step))
        for done in range(total):  # the check is one step late, so that the next step is already under way
            previous = finite
            unet = self.model.parameters["unet"]
            state, finite = step(unet, state, start + done, conditions, first_frame, seeds, strengths)
            if done:
                _stop_unless(previous, done, total)
                watch.on_step(done, total)
            else:
                watch.on_stage("steps", False)  # compiled
            if watch.wants_latents(done + 1):
                _stop_unless(finite, done + 1, total)
                # a copy: the next step writes over the state
                watch.on_latents(done + 1, total, np.array(state.x0[:count], np.float32))
        _stop_unless(finite, total, total)
        watch.on_step(total, total)
        return state.latents

    def _is_new(self, stage: str, *shape: Any) -> bool:
        """Whether a stage's programs have yet to be compiled; asked as they begin."""
        new = (stage, *shape) not in self._begun
        self._begun.add((stage, *shape))
        return new

    def _make_programs(self, sampler_name, steps, sampler_options, is_guided, guidance_rescale):
        sampler = samplers.make(sampler_name, self.model.schedule, steps, **dict(sampler_options))
        spread, whole = video_sharding(self.mesh), replicated(self.mesh)
        # the same before and after a step
        places = samplers.SamplerState(latents=spread, x0=spread, steps_taken=whole)

        @functools.partial(jax.jit, static_argnums=(2, 3, 4), out_shardings=places)
        def begin(first_frame, seeds, start, p, frames):
            video = (frames, *first_frame.shape[2:])
            mask = jax.vmap(lambda key: sample_mask(key, video, p))(named_keys(seeds, "prior mask"))
            noise = normal(named_keys(seeds, "prior noise"), video)
            noisy = initial_latents(first_frame, mask, noise, sampler, start)
            return hold(sampler, first_frame).init(noisy)

        step = functools.partial(
            sampling_step,
            self.model.configs["unet"],
            sampler,
            is_guided=is_guided,
            guidance_rescale=guidance_rescale,
        )
        return begin, jax.jit(step, donate_argnums=1, out_shardings=(places, whole))

    def _encode_pictures(self, parameters, pictures, keys):
        config = self.model.configs["vae"]
        mean, logvar = moments(config, parameters, pictures)
        return scaled_sample(config, mean, logvar, normal(keys, mean.shape[1:]))[:, None]

    def _decode_latents(self, parameters, scaled):
        pictures = decode(self.model.configs["vae"], parameters, scaled)
        return jnp.round(jnp.clip(pictures / 2 + 0.5, 0, 1) * 255).astype(jnp.uint8), jnp.isfinite(pictures).all()

    def _check_frames(self, frames: int) -> None:
        if frames % (shares := self.mesh.shape["frames"]):
            raise InputError(
                f"frames={frames} cannot be spread over a mesh with frames={shares}: wanted a multiple of it, "
                "or a mesh with frames=1."
            )

    def _tree(self, *components: str) -> dict[str, Any]:
        return {component: self.model.parameters[component] for component in components}

    def _spread(self, array):
        return jax.device_put(array, batch_sharding(self.mesh))


def _stop_unless(finite, step: int, total: int) -> None:
    if not finite:
        raise InputError(
            f"The latents are no longer finite after step {step} of {total}. Try dtype float32 or a lower "
            "guidance_scale, or check the weights."
        )
