"""From a picture and a prompt to a video: I2V-Adapter's sampling (paper section 3), as the published code runs it."""

import copy
import dataclasses
import functools
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from i2v_jax.devices.compile_cache import use_compile_cache
from i2v_jax.devices.mesh import AXES, batch_sharding, make_mesh, replicated, use_mesh, video_sharding
from i2v_jax.encoders import controls as control_networks
from i2v_jax.encoders import sizes, text
from i2v_jax.encoders.latents import decode, moments, scaled_sample
from i2v_jax.errors import InputError, python_words
from i2v_jax.families import over_time
from i2v_jax.families.model import Model
from i2v_jax.media import fit_picture, to_model_range
from i2v_jax.models.adapters.text_in_time import NAME as TEXT_IN_TIME
from i2v_jax.models.conditions import Conditions, join
from i2v_jax.sampling import (
    feature_reuse,
    from_picture,
    long_videos,
    mivas,
    programs,
    prompt_travel,
    second_pass,
    stages,
    windowed,
)
from i2v_jax.sampling.controls import given as control_pictures
from i2v_jax.sampling.denoiser import stop_unless
from i2v_jax.sampling.image_prompts import ImagePrompts, TokenEncoder
from i2v_jax.sampling.inputs import AnyPicture, batch_of, sides_of
from i2v_jax.sampling.randomness import named_keys, noise_orders, normal
from i2v_jax.sampling.settings import Settings
from i2v_jax.sampling.stages import AnyConditions
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
        self._encode_text = jax.jit(
            functools.partial(text.encode, model.family.text, model.configs), static_argnames=("clip_skip", "weighting")
        )
        self._image_tokens = TokenEncoder(model)
        of_controls = functools.partial(control_networks.encode_pictures, model.configs)
        self._encode_control = jax.jit(of_controls, static_argnums=0)
        self._encode, self._decode = jax.jit(self._encode_pictures), jax.jit(self._decode_latents)
        self._programs = functools.lru_cache(maxsize=8)(functools.partial(programs.make, model, self.mesh))
        self._begin_again = functools.lru_cache(maxsize=8)(
            functools.partial(programs.make_begin_again, model, self.mesh)
        )
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
        controls: control_pictures.Given | Sequence[control_pictures.Given] | None = None,
        image_prompts: ImagePrompts | AnyPicture | Sequence[AnyPicture] | None = None,
        **second_prompts: str | Sequence[str] | None,
    ) -> UInt8[np.ndarray, "n f H W 3"]:
        """Animates each picture. A video depends on its own picture, prompts and seed, not on the rest of the batch.

        Whatever is given once, and not in a list, is for all videos: one picture with three seeds is three videos.
        Videos whose weighted prompts take different numbers of chunks are sampled one number after the other, and
        `on_step` and `on_latents` are called for each number's.

        Args:
          pictures: become the first frames, of any sizes: paths, images of Pillow's, arrays; see `inputs.AnyPicture`.
          prompts: one, or one for each picture.
          seeds: likewise, 0 .. 2**32 - 1; None: 0, 1, 2 ...
          negative_prompts: likewise; empty by default.
          settings: of the run.
          on_step: called with (steps done, steps in all) after each sampling step.
          on_latents: called with (steps done, steps in all, latents) after each step: the clean latents as that step
            predicts them, float32 [n, f, h, w, c], an array of one's own; `decode` shows them.
          controls: for a model with control networks, a list of the pictures of each: a video, a folder, a picture or a
            list of pictures, see `controls.pictures.read`, for all videos; or a tuple of such, one for each. What is of
            a single network, or of all, may stand without the list.
          image_prompts: what the image tokens are of, in place of the settings': pictures, instead of the animated one,
            or an `ImagePrompts`.
          second_prompts: `prompts_2` and `negative_prompts_2`, for a second text encoder; by default the same.

        Returns:
          Videos, RGB; the first axis is there for a single one too.

        Raises:
          InputError: a picture that cannot be read, a setting out of range, a prompt too long, lists that do not pair,
            or latents that are no longer finite.
        """
        given = dict(controls=controls, image_prompts=image_prompts, **second_prompts)
        made = self.latents(pictures, prompts, seeds, negative_prompts, settings, on_step, on_latents, **given)
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
        image_prompts: ImagePrompts | AnyPicture | Sequence[AnyPicture] | None = None,
        watch: Watch = SILENT,
        batch_size: int = 1,
        controls: control_pictures.Given | Sequence[control_pictures.Given] | None = None,
        **second_prompts: str | Sequence[str] | None,
    ) -> Float[Array, "n f h w c"]:
        """As `__call__`, but returns the videos' clean latents (times the VAE's scaling factor), float32.

        Args:
          watch: what else is called while the run goes on.
          batch_size: of the programs; fewer videos are filled up to it, so that the same programs serve them.
          controls: as of `__call__`.
        """
        if image_prompts is not None:
            settings = dataclasses.replace(settings, image_prompts=ImagePrompts.of(image_prompts))
        if on_step or on_latents:
            watch = watch._replace(on_step=on_step or watch.on_step, on_latents=on_latents or watch.on_latents)
        with python_words():
            pictures, seeds, texts = batch_of(
                pictures, prompts, seeds, negative_prompts=negative_prompts, **second_prompts
            )
            count = len(pictures)
            settings.check(self.model)
            sources = control_pictures.of_networks(controls, len(self.model.controls), count)
            chunks = self.count_chunks(**texts, settings=settings)
            if len(set(chunks)) > 1:
                return self._apart(chunks, pictures, seeds, texts, sources, settings, watch)
            self._check_frames(long_videos.frames_at_once(settings))
            devices, size = self._shares, max(count, batch_size)
            if not settings.windows.averages_predictions:  # else windows are spread
                size += -size % devices  # whole shares; the surplus is dropped at the end
            for own in settings.passes:
                mivas.check_memory(self.model, own, max(1, size // devices), self.mesh.devices.flat[0])
                long_videos.check_memory(self.model, own, max(1, size // devices), self.mesh.devices.flat[0])
            rows = [*range(count), *[count - 1] * (size - count)]
            pictures, seeds = ([given[row] for row in rows] for given in (pictures, seeds))
            texts = {name: [given[row] for row in rows] for name, given in texts.items()}
            sources = [tuple(of_videos[row] for row in rows) for of_videos in sources]
            one_pass = functools.partial(self._pass, pictures, seeds, texts, sources, chunks[0], count)
            return second_pass.run(self, settings, watch, one_pass)

    def _pass(self, pictures, seeds, texts, sources, chunks, count, settings, watch, made) -> Float[Array, "n f h w c"]:
        """One pass of a run; the second goes on from what was `made`, the clean latents of `count` videos, enlarged."""
        with use_mesh(self.mesh):
            shape = len(pictures), settings.height, settings.width, chunks, settings.clip_skip
            watch.on_stage("encoding", self._is_new("encoding", *shape))
            order = noise_orders(settings.windows, settings.frames, seeds)
            order = {} if order is None else dict(order=self._spread(order))
            seeds = self._spread(np.asarray(seeds, np.uint32))
            given = dict(**texts, pictures=pictures, settings=settings, controls=sources)
            conditions = stages.encode(self, **given) if self.model.over_time else self.encode(**given)
            first_frame = self.encode_first_frame(pictures, seeds, settings)
            start = settings.start_index(settings.check(self.model))
            begin, _ = self.programs(settings)
            if made is not None:
                made = self._spread(made[np.minimum(np.arange(len(pictures)), count - 1)])
            state = begin(first_frame, seeds, start, settings.p, settings.frames, **order, made=made)
            if self.model.takes_picture:
                last = from_picture.last_pictures(pictures, settings)
                last = last and self.encode_first_frame(last, seeds, settings, "last frame")
                conditions = stages.each(self.with_picture, conditions, first_frame, settings, last)
                state, first_frame = from_picture.begun(self.model, state, settings), None
            if watch is not SILENT:
                jax.block_until_ready((conditions, state))  # else the first step would seem to take that time
            runs, told = settings.free_init.runs, (start, conditions, first_frame, seeds, settings)
            key = settings.sampler, settings.steps, settings.sampler_options, settings.free_init
            key = *key, settings.windows.averages_predictions
            for number in range(1, runs):
                made = self._run(state, *told, watch.of_run(number - 1, runs), count)
                state = self._begin_again(*key)(made, first_frame, seeds, start, number, settings.p, **order)
            return self._run(state, *told, watch.of_run(runs - 1, runs), count)[:count]

    def encode(
        self,
        prompts: Sequence[str],
        negative_prompts: Sequence[str] | None = None,
        prompts_2: Sequence[str] | None = None,
        negative_prompts_2: Sequence[str] | None = None,
        pictures: Sequence[UInt8[np.ndarray, "h w 3"]] = (),
        settings: Settings = Settings(),  # noqa: B008 (frozen)
        controls: control_pictures.Given | Sequence[control_pictures.Given] | None = None,
    ) -> Conditions:
        """Returns what a batch is conditioned on; under guidance all its sides, see `denoiser.guided`.

        Args:
          prompts, negative_prompts, prompts_2, negative_prompts_2: one per video each, see `__call__`.
          pictures: one per video, for models with image tokens.
          settings: whether there is guidance, sizes, how prompts are read and whether they may be cut, how control
            pictures are read. Weighted prompts of different lengths are filled up to the longest by chunks of the empty
            prompt.
          controls: as of `__call__`.
        """
        sources = control_pictures.of_networks(controls, len(self.model.controls), len(prompts))
        tokens = None
        if self.model.wants_image_tokens:
            tokens = self._image_tokens(pictures, settings, self._spread)
        travel = prompt_travel.parse(settings.prompt_travel, settings.frames)
        if travel:  # all videos by its first prompt, then by the next
            prompts = [prompt for prompt in travel.values() for _ in prompts]
            others = (prompts_2, negative_prompts, negative_prompts_2)
            prompts_2, negative_prompts, negative_prompts_2 = (texts and [*texts] * len(travel) for texts in others)
        prompts = mivas.without_prompts(self.model, prompts, settings.miva_with_prompt)
        prompts_2 = prompts_2 and mivas.without_prompts(self.model, prompts_2, settings.miva_with_prompt)
        sides = sides_of(prompts, negative_prompts, prompts_2, negative_prompts_2, settings)
        ids = self._tokenize(sides, settings)
        masks = self._masks(pictures, settings)
        conditional = self._side(sides[0], ids[0], tokens, settings, negative=False)
        encoded = self._control_pictures(sources, settings)
        conditional = conditional._replace(controls=encoded)
        if not settings.guided:
            return mivas.with_implicit(self.model, None, conditional, masks)[1]
        if tokens is not None:
            tokens = self._image_tokens.nothing(tokens)
        unconditional = self._side(sides[1], ids[1], tokens, settings, negative=True)
        networks = self.model.controls.values()
        encoded = tuple(map(control_networks.unconditional, networks, encoded))
        sides = mivas.with_implicit(self.model, unconditional._replace(controls=encoded), conditional, masks)
        return join(*from_picture.sides(*sides, settings))

    def of_stage(self, number: int) -> "Pipeline":
        """Returns the same programs for the model as it is in one of its stages."""
        other = copy.copy(self)
        other.model = self.model.of_stage(number)
        other._image_tokens = self._image_tokens.of_model(other.model)
        return other

    def count_chunks(
        self,
        prompts: Sequence[str],
        negative_prompts: Sequence[str] | None = None,
        prompts_2: Sequence[str] | None = None,
        negative_prompts_2: Sequence[str] | None = None,
        settings: Settings = Settings(),  # noqa: B008 (frozen)
    ) -> list[int]:
        """Returns how many chunks of tokens each video's prompts take; only videos of as many are sampled together."""
        if settings.prompt_syntax == "plain":
            return [1] * len(prompts)
        if travel := prompt_travel.parse(settings.prompt_travel, settings.frames):
            plain = dataclasses.replace(settings, prompt_travel="")
            others = (negative_prompts, prompts_2, negative_prompts_2, plain)
            each = [self.count_chunks([text] * len(prompts), *others) for text in travel.values()]
            return [max(counts) for counts in zip(*each)]
        sides = sides_of(prompts, negative_prompts, prompts_2, negative_prompts_2, settings)
        with warnings.catch_warnings(action="ignore"):  # of what is cut: they are told where prompts are encoded
            return text.count_chunks(self.model.tokenizers, *sides, truncate=settings.truncate_prompts)

    def encode_first_frame(
        self, pictures: Sequence[UInt8[np.ndarray, "h w 3"]], seeds: Any, settings: Settings, name: str = "first frame"
    ) -> Float[Array, "n 1 h w c"]:
        """Returns latents of the pictures, drawn of the autoencoder's posterior, scaled; `name` is of the draws."""
        fitted = [to_model_range(fit_picture(p, settings.height, settings.width, settings.fit)) for p in pictures]
        keys = named_keys(seeds, name)
        return self._encode(self.model.parameters["vae"], self._spread(np.stack(fitted)), keys)

    def with_picture(
        self,
        conditions: Conditions,
        first_frame: Float[Array, "n 1 h w c"],
        settings: Settings,
        last_frame: Float[Array, "n 1 h w c"] | None = None,
    ) -> Conditions:
        """Returns conditions, of both sides of guidance, with what the UNet's first layer takes of the pictures."""
        return from_picture.with_picture(self.model, conditions, first_frame, last_frame, settings)

    def denoise(
        self,
        noisy: Float[np.ndarray, "n f h w c"],
        conditions: AnyConditions,
        settings: Settings = Settings(),  # noqa: B008 (frozen)
        first_frame: Float[np.ndarray, "n 1 h w c"] | None = None,
        seeds: Sequence[int] | None = None,
    ) -> Float[Array, "n f h w c"]:
        """Runs all the steps from given latents.

        Args:
          noisy: in the sampler's own scaling, as noisy as the first step that `settings.t0` leaves.
          conditions: from `encode`, or from `stages.encode`.
          settings: of the run.
          first_frame: clean latents that frame 1 is held at; None: it is sampled like the others.
          seeds: one per video, for stochastic samplers.
        """
        sampler = settings.check(self.model)
        with use_mesh(self.mesh):
            seeds = self._spread(np.asarray(range(len(noisy)) if seeds is None else seeds, np.uint32))
            places = programs.state_places(self.mesh, settings.windows.averages_predictions)
            state = jax.jit(sampler.init, out_shardings=places)(jnp.asarray(noisy))
            start = settings.start_index(sampler)
            return self._run(state, start, conditions, first_frame, seeds, settings, SILENT, len(noisy))

    def decode(
        self,
        latents: Float[Array, "n f h w c"],
        settings: Settings = Settings(),  # noqa: B008 (frozen)
        watch: Watch = SILENT,
    ) -> UInt8[np.ndarray, "n f H W 3"]:
        """Decodes a few frames at a time on each device, so that the devices' memory does not grow with the video."""
        pictures = np.concatenate(list(self.decode_slices(latents, settings, watch)))
        return pictures.reshape(*latents.shape[:2], *pictures.shape[1:])

    def decode_slices(
        self,
        latents: Float[Array, "n f h w c"],
        settings: Settings = Settings(),  # noqa: B008 (frozen)
        watch: Watch = SILENT,
    ) -> Iterator[UInt8[np.ndarray, "k H W 3"]]:
        """As `decode`, but gives those few frames, video by video, as they are decoded: no memory grows."""
        count, frames = latents.shape[:2]
        flat = np.asarray(latents).reshape(-1, *latents.shape[2:])
        share = settings.vae_slice * self.mesh.size
        watch.on_stage("decoding", self._is_new("decoding", flat.shape[1:], share))
        flat = np.concatenate([flat, np.repeat(flat[-1:], -len(flat) % share, axis=0)])
        everywhere = jax.sharding.NamedSharding(self.mesh, jax.sharding.PartitionSpec(AXES))
        for i in range(0, len(flat), share):
            with use_mesh(self.mesh, rules={"batch": AXES}):
                piece = jax.device_put(flat[i : i + share], everywhere)
                pictures, finite = self._decode(self.model.parameters["vae"], piece)
            if not finite:
                raise InputError(
                    "The VAE decodes to numbers that are not finite. Try dtype float32, or check its weights."
                )
            yield np.asarray(pictures)[: count * frames - i]

    def programs(self, settings: Settings) -> tuple[Callable, Callable]:
        """Returns the two jitted programs of a run: its first state, and one step (or `feature_reuse.Steps`)."""
        return self._programs(
            settings.sampler,
            settings.steps,
            settings.sampler_options,
            settings.guided,
            settings.guidance_rescale,
            settings.deep_cache_every,
            settings.windows.averages_predictions,
            (settings.windows, settings.frames) if settings.windows.averages_attention else None,
        )

    def _apart(self, chunks, pictures, seeds, texts, sources, settings, watch) -> Float[Array, "n f h w c"]:
        """Latents of videos whose prompts take different numbers of chunks, each number's in a run of its own."""
        order, made = [], []
        for number in sorted(set(chunks)):
            rows = [row for row, own in enumerate(chunks) if own == number]
            of_rows = {name: [given[row] for row in rows] for name, given in texts.items()}
            given = [pictures[row] for row in rows], of_rows.pop("prompts"), [seeds[row] for row in rows]
            controls = [tuple(of_videos[row] for row in rows) for of_videos in sources]
            own = self.latents(*given, settings=settings, watch=watch, controls=controls, **of_rows)
            made.append(np.asarray(own))
            order += rows
        return jnp.asarray(np.concatenate(made)[np.argsort(order)])

    def _tokenize(self, sides, settings) -> list[dict[str, np.ndarray]]:
        tokenizers, cut = self.model.tokenizers, settings.truncate_prompts
        if settings.prompt_syntax == "weighted":
            return text.tokenize_weighted(tokenizers, *sides, truncate=cut)
        return [text.tokenize(tokenizers, *side, cut) for side in sides]

    def _side(self, side, ids, tokens, settings, negative: bool) -> Conditions:
        """The conditions of one side of guidance."""
        model, (prompts, prompts_2) = self.model, side
        travel = list(prompt_travel.parse(settings.prompt_travel))
        count = len(prompts) // max(1, len(travel))
        found = self._encode_text(
            self._tree(*model.family.text.components),
            jax.tree.map(self._spread, ids),
            clip_skip=settings.clip_skip,
            weighting=settings.prompt_weighting,
        )
        empty = [not prompt for prompt in prompts]
        if prompts_2 is not None:
            empty = [nothing and not prompt for nothing, prompt in zip(empty, prompts_2)]
        is_dropped = negative or model.miva_count  # as MIVAs are trained
        if is_dropped and model.family.zeros_for_empty_prompt and any(empty):
            found = text.zeroed(found, self._spread(np.array(empty)))
        numbers = None
        if model.family.has_sizes:
            numbers = self._spread(sizes.encode(*settings.size_conditions(negative), count))
        made = Conditions.of_videos(found.states, tokens, found.pooled, numbers)
        if travel:
            made = prompt_travel.by_frame(made, travel, settings)
        return from_picture.conditions(model, made, settings)

    def _masks(self, pictures, settings) -> Any:
        """Where each MIVA works, None where all do everywhere."""
        size, downscale = (settings.height, settings.width), self.model.configs["vae"].downscale
        masks = mivas.read_masks(settings.miva_masks, pictures, size, settings.fit, downscale)
        return None if masks is None else self._spread(masks)

    def _control_pictures(self, sources, settings) -> tuple[Any, ...]:
        """What each control network makes of its pictures; the same at every step."""
        size = (settings.frames, settings.height, settings.width, settings.fit)
        read = control_pictures.read_all(sources, settings.controls, *size)
        spread = video_sharding(self.mesh)
        if settings.windows.averages_predictions:
            spread = replicated(self.mesh)
        trees = (self._tree(component, "vae") for component in self.model.controls)
        networks = zip(self.model.controls, trees, read)
        return tuple(self._encode_control(name, tree, *jax.device_put(found, spread)) for name, tree, found in networks)

    def _run(self, state, start, conditions, first_frame, seeds, settings, watch, count) -> Float[Array, "n f h w c"]:
        _, program = self.programs(settings)
        strengths = dict(
            guidance_scale=settings.guidance_scale,
            **from_picture.strengths(settings),
            first_frame=settings.adapter_scale,
            image_tokens=settings.image_token_scale,
            **settings.image_prompts.strengths(),
            **mivas.strengths(self.model),
            **({TEXT_IN_TIME: settings.text_in_time_scale} if self.model.has_text_in_time else {}),
        )
        sampler = settings.check(self.model)
        total = sampler.num_steps - start
        finite, stage, networks_of = None, None, stages.networks(self.model, conditions)
        watch.on_stage("steps", self._is_new("steps", state.latents.shape, networks_of[0][1].text.shape, program))
        for done in range(total):  # the check is one step late, so that the next step is already under way
            previous = finite
            if self.model.controls:
                size = len(self.model.controls), done, total, state.latents.shape[1]
                strengths |= dict(controls=settings.controls.strengths(*size))
            before, stage = stage, over_time.at(self.model.over_time, sampler.timesteps[start + done])
            if stage != before:  # features that other weights have made are not reused
                step = program.of_run() if isinstance(program, feature_reuse.Steps) else program
            networks, told = networks_of[stage]
            windows = windowed.chunks(
                settings.windows, state.latents.shape[1], state.latents.shape[0], self._shares, done
            )
            more = () if windows is None else (windows,)
            state, finite = step(networks, state, start + done, told, first_frame, seeds, strengths, *more)
            if done:
                stop_unless(previous, done, total)
                watch.on_step(done, total)
            else:
                watch.on_stage("steps", False)  # compiled
            if watch.wants_latents(done + 1):
                stop_unless(finite, done + 1, total)
                # a copy: the next step writes over the state
                watch.on_latents(done + 1, total, np.array(state.x0[:count], np.float32))
        stop_unless(finite, total, total)
        watch.on_step(total, total)
        return state.latents

    def _is_new(self, stage: str, *shape: Any) -> bool:
        """Whether a stage's programs have yet to be compiled; asked as they begin."""
        new = (stage, *shape) not in self._begun
        self._begun.add((stage, *shape))
        return new

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

    @property
    def _shares(self) -> int:
        """Devices that a batch's rows are spread over."""
        return self.mesh.shape["data"] * self.mesh.shape["fsdp"]

    def _spread(self, array):
        is_whole = len(array) % self._shares  # where windows are spread, and not videos
        return jax.device_put(array, replicated(self.mesh) if is_whole else batch_sharding(self.mesh))
