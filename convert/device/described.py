"""What the runner is told of a run beside its networks: sizes, prompts, tokens, and a sampler's steps as a table."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float32
from ml_collections import ConfigDict

from convert.device.networks import frames_at_once, latent_size
from i2v_jax.diffusion.sampler import Sampler, SamplerState
from i2v_jax.encoders.text import tokenizer_name, tokens_name
from i2v_jax.errors import InputError
from i2v_jax.families.model import Model
from i2v_jax.media import CLIP_MEAN, CLIP_STD
from i2v_jax.models.tokenizer import END, START
from i2v_jax.sampling.denoiser import step_noise
from i2v_jax.sampling.jobs import Job
from i2v_jax.sampling.randomness import named_keys, normal, prior
from i2v_jax.sampling.settings import Settings


def check(model: Model, settings: Settings, job: Job, config: ConfigDict) -> None:
    """Raises InputError for what a run may have and the runner has not."""
    projection = model.configs.get("image_proj")
    lacking = {
        "DynamiCrafter or PIA, whose UNet takes the picture itself": model.takes_picture,
        "control networks (weights.controls)": model.controls,
        "MIVAs (mivas)": model.miva_count,
        "weights that change (weights_over_time)": config.weights_over_time,
        "textual inversions (weights.embeddings)": any(tokenizer.added for tokenizer in model.tokenizers.values()),
        "a FaceID (weights.image_adapter)": projection and projection.face_dim,
        "further pictures (image_prompts)": settings.image_prompts.pictures or settings.image_prompts.weights,
        "weighted prompts (prompt_syntax)": settings.prompt_syntax != "plain",
        "prompt travel (prompt_travel)": settings.prompt_travel,
        "windows of frames (windows.length)": settings.windows.length,
        "FreeInit (free_init.iterations)": settings.free_init.runs > 1,
        "DeepCache (deep_cache_every)": settings.deep_cache_every > 1,
        "a second prompt (prompt_2)": job.prompt_2 or job.negative_prompt_2,
    }
    for what, is_there in lacking.items():
        if is_there:
            raise InputError(f"device: {what} cannot be exported. Leave it out; sample.py runs it.")


def describe(
    model: Model, settings: Settings, job: Job, config: ConfigDict, precisions: Sequence[str]
) -> dict[str, Any]:
    """Returns `run.json`.

    Args:
      model: its configs and tokenizers.
      settings, job, config: of the run: what the runner takes where its command line says nothing.
      precisions: of the weights that are exported, the runner's default last.
    """
    sampler, clip = settings.check(model), model.configs.get("image_encoder") if model.wants_image_tokens else None
    sizes = []
    if model.family.has_sizes:
        sides = (True, False) if settings.guided else (False,)
        sizes = [[float(n) for pair in settings.size_conditions(negative) for n in pair] for negative in sides]
    return dict(
        prompt=job.prompt,
        negative_prompt=job.negative_prompt,
        seed=job.seed,
        fps=float(config.fps),
        t0=float(settings.t0),
        p=float(settings.p),
        guidance_scale=float(settings.guidance_scale),
        guided=settings.guided,
        height=settings.height,
        width=settings.width,
        fit=settings.fit,
        frames=settings.frames,
        frames_at_once=frames_at_once(settings),
        latents=list(latent_size(model, settings)),
        weights=list(precisions),
        zeros_for_empty_prompt=bool(model.family.zeros_for_empty_prompt),
        sizes=sizes,
        image_encoder=clip and dict(size=clip.image_size, mean=CLIP_MEAN.tolist(), std=CLIP_STD.tolist()),
        tokens={
            tokens_name(component): dict(
                file=f"{tokenizer_name(component)}.json",
                length=tokenizer.length,
                start=tokenizer.vocabulary[START],
                end=tokenizer.vocabulary[END],
                pad=tokenizer.vocabulary[tokenizer.pad_token],
            )
            for component, tokenizer in model.tokenizers.items()
        },
        num_train_timesteps=sampler.schedule.num_train_timesteps,
        stochastic=sampler.stochastic,
        steps={name: table.tolist() for name, table in steps_table(sampler).items()},
    )


def steps_table(sampler: Sampler) -> dict[str, Float32[np.ndarray, " n"]]:
    """Returns a sampler's steps as numbers: timesteps, noise levels, and what the new latents and x_0 are sums of.

    Every update rule is linear in the latents, the prediction, the x_0 of the step before and the noise; the weights
    are what it makes of ones.
    """
    ones = np.eye(4, dtype=np.float32)
    made: dict[str, list] = {}
    for i in range(sampler.num_steps):
        state = SamplerState(ones[0], ones[2], np.ones((), np.int32))
        after = sampler.step(state, i, ones[1], ones[3])
        x0, latents = np.asarray(after.x0), np.asarray(after.latents)
        row = dict(x0_of_x=x0[0], x0_of_prediction=x0[1], of_x=latents[0], of_prediction=latents[1])
        for name, value in (row | dict(of_previous_x0=latents[2], of_noise=latents[3])).items():
            made.setdefault(name, []).append(value)
    tables = dict(timestep=sampler.timesteps, alpha=sampler.alpha, sigma=sampler.sigma, scale=sampler.scale)
    return {name: np.asarray(table, np.float32) for name, table in (tables | made).items()}


def noise_of_seed(model: Model, settings: Settings, seed: int) -> dict[str, np.ndarray]:
    """Returns all that JAX draws for a run of a seed, as the runner reads it."""
    sampler, size, seeds = settings.check(model), latent_size(model, settings), np.array([seed], np.uint32)
    video = (settings.frames, *size)
    mask, noise = prior(seeds, video, settings.p)
    made = dict(posterior=normal(named_keys(seeds, "first frame"), size), mask=mask, prior=noise)
    if sampler.stochastic:
        keys = named_keys(seeds, "sampler noise")
        made["steps"] = np.stack([step_noise(keys, i, video) for i in range(sampler.num_steps)])
    return {name: np.asarray(array) for name, array in made.items()}
