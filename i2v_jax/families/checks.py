"""Whether networks fit each other, and the run: widths that must agree, parts that must be there, noise schedules."""

import warnings
from collections.abc import Iterator, Mapping
from typing import Any

from i2v_jax.encoders.controls import components
from i2v_jax.errors import InputError
from i2v_jax.families import over_time
from i2v_jax.families.family import RATES, Family, family_of
from i2v_jax.families.weights import Weights
from i2v_jax.models.image_projection import TOKENS_OF_FRAME
from i2v_jax.models.t2i_adapter import T2IAdapterConfig
from i2v_jax.weights.trained_for import refuse_other_schedule, told_by_source, told_by_training


def check_fit(family: Family, configs: Mapping[str, Any]) -> None:
    """Raises InputError where networks do not fit each other.

    Args:
      family: that the UNet is of.
      configs: component -> its network's config.
    """
    if "image_tokens" in configs["unet"].cross_attention_branches:
        projection = configs.get("image_proj")
        if not projection or (projection.reads and not configs.get("image_encoder")):
            raise InputError(
                "The UNet has image-token layers, but there is no image encoder or no image projection to make tokens. "
                "Give both, or leave the image adapter out."
            )
    unet = configs["unet"]
    if unet.motion and unet.motion.conv_in_channels and "first_frame" in unet.self_attention_branches:
        raise InputError(
            "PIA's motion modules take the picture by a first layer of their own, and sample frame 1; the I2V-Adapter "
            "wants it clean. Leave the latter out (weights.adapter=), or give other motion modules, such as "
            "guoyww/animatediff/mm_sd_v15.ckpt."
        )
    for given, wanted, what, cause in _pairs(family, configs):
        if given != wanted:
            raise InputError(f"{what}: {given} against {wanted}. {cause}")


def check_training(config: Mapping[str, Any], configs: Mapping[str, Any]) -> None:
    """Raises InputError where a training's config wants what models of its family have not, or leaves out what they do.

    Args:
      config: of the run.
      configs: component -> its network's config.
    """
    family, objective = family_of(configs["unet"]), config["objective"]
    if not family.has_picture:
        if objective.get("picture", "first") != "first" or objective.get("image_noise", 0):
            raise InputError(
                f"objective.picture={objective['picture']!r}, objective.image_noise={objective['image_noise']}: of "
                f"DynamiCrafter, whose UNet takes the picture's latents; the model is {family.title}. Leave them "
                "'first' and 0."
            )
        return
    beside = {"control.process": "ControlNet", "lora.rank": "LoRA", "miva.rank": "MIVA"}
    for key, what in beside.items():
        group, name = key.split(".")
        if given := config.get(group, {}).get(name):
            raise InputError(f"{key}={given!r}: there is no {what} for {family.title}. Leave it out.")
    if config["branches"]:
        raise InputError(f"branches={tuple(config['branches'])}: {family.title} has no adapters. Set branches=().")
    if config["loss"] != "denoising":
        return
    if objective["first_frame"] != "noisy":
        raise InputError(
            f"objective.first_frame={objective['first_frame']!r}: {family.title} samples frame 1 like the others. Set "
            "objective.first_frame='noisy'."
        )
    frames, known = config["data"]["frames"], configs["image_proj"].num_tokens // TOKENS_OF_FRAME
    if frames != known:
        raise InputError(
            f"data.frames={frames}: this model's image projection makes tokens for {known} frames, no more and no "
            "fewer."
        )
    if (rate := config["data"].get("rate", "")) not in RATES:
        raise InputError(
            f"data.rate={rate!r}: {family.title} is told a rate of each clip. Set it to one of {', '.join(RATES)}."
        )


def check_schedule(weights: Weights, schedule: Any, fetched: bool = False) -> None:
    """Raises InputError where a run's noise schedule is not the one that its models were trained with, say their files.

    Warns of LoRAs that were trained with another.

    Args:
      weights: of the run.
      schedule: with `num_train_timesteps`, `prediction_type` and `zero_terminal_snr`.
      fetched: whether what is on the hub is asked too, where that is to be fetched anyway.
    """
    over_time.check(weights.over_time, schedule.num_train_timesteps)
    in_time = [source for source, _ in over_time.sources(weights.over_time)]
    for source in (weights.of("unet"), *weights.trained, *in_time):
        refuse_other_schedule(told_by_source(source, fetched=fetched), source, schedule)
    of_mivas = [source for source, _ in weights.given_mivas()]
    for source in filter(None, (weights.motion, weights.adapter, weights.image_adapter, *of_mivas)):
        refuse_other_schedule(told_by_training(source), source, schedule)
    for source, _ in weights.styles():
        told = told_by_source(source)
        if told.prediction_type not in (None, schedule.prediction_type):
            warnings.warn(
                f"{source} was trained on a model that predicts {told.prediction_type} (says {told.where}); this run "
                f"has noise_schedule.prediction_type={schedule.prediction_type!r}.",
                stacklevel=2,
            )


def _pairs(family: Family, configs: Mapping[str, Any]) -> Iterator[tuple[int, int, str, str]]:
    """Pairs of numbers that must agree, what they are, and what to look at when they do not."""
    unet, vae = configs["unet"], configs["vae"]
    yield (
        unet.latent_channels,
        vae.latent_channels,
        "Channels of the UNet's input against the VAE's latents",
        "Inpainting and picture-editing models, for instance, take more than latents; give a text-to-image base.",
    )
    yield (
        unet.out_channels,
        vae.latent_channels,
        "Channels of the UNet's output against the VAE's latents",
        "Give a VAE and a UNet that belong together.",
    )
    if unet.motion and unet.motion.conv_in_channels:
        yield (
            unet.motion.conv_in_channels,
            2 * vae.latent_channels + 1,
            "Channels of PIA's first layer against two of the VAE's latents and a mask",
            "Give PIA's motion modules as they were published (openmmlab/PIA-condition-adapter).",
        )
    encoders = [configs[component] for component in family.text.components]
    several = "s'" if len(encoders) > 1 else "'s"
    yield (
        sum(encoder.width for encoder in encoders),
        unet.cross_attention_dim,
        f"Width of the text encoder{several} tokens against the UNet's",
        f"Give the text encoder{'s' if len(encoders) > 1 else ''} that the UNet was trained with.",
    )
    if family.text.pooled:
        pooled = configs[family.text.pooled]
        yield (
            pooled.projection_dim or pooled.width,
            unet.added_conditioning.pooled_dim,
            "Width of the second text encoder's pooled output against the UNet's",
            "Give the text encoders that the UNet was trained with.",
        )
    for component in components(configs):
        yield _pair_of_control(configs[component], vae)
    if "image_tokens" in unet.cross_attention_branches or family.image_projection:
        encoder, projection = configs.get("image_encoder"), configs["image_proj"]
        if projection.reads:
            yield (
                encoder.projection_dim if projection.reads == "image_embeds" else encoder.width,
                projection.embed_dim,
                "Width of the image encoder's output against the image projection's",
                "IP-Adapters for SD1.5 want the ViT-H image encoder; give the one that yours was trained with.",
            )
        yield (
            projection.cross_attention_dim,
            unet.cross_attention_dim,
            "Width of image tokens against the UNet's",
            "Give an image adapter for this UNet's family.",
        )


def _pair_of_control(control: Any, vae: Any) -> tuple[int, int, str, str]:
    """What the autoencoder decides of a control network: what it reads must lie as the latents do."""
    if isinstance(control, T2IAdapterConfig):
        return (
            control.unshuffle,
            vae.downscale * (2 if control.kind == "full_adapter_xl" else 1),
            "Side of a T2I-Adapter's picture over its first features' against the VAE's",
            "Give a T2I-Adapter that was trained with latents of this size.",
        )
    if getattr(control, "reads_latents", False):
        return (
            control.picture_channels,
            vae.latent_channels,
            "Channels of the latents that a SparseCtrl reads against the VAE's",
            "Give the VAE that it was trained with.",
        )
    return (
        control.picture_scale,
        vae.downscale,
        "Side of a ControlNet's picture over its latents' against the VAE's",
        "Give a ControlNet that was trained with latents of this size.",
    )
