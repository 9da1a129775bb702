"""Whether networks fit each other, and the run: widths that must agree, parts that must be there, noise schedules."""

from collections.abc import Iterator, Mapping
from typing import Any

from i2v_jax.errors import InputError
from i2v_jax.families.family import Family
from i2v_jax.families.weights import Weights
from i2v_jax.weights.trained_for import refuse_other_schedule, told_by_source


def check_fit(family: Family, configs: Mapping[str, Any]) -> None:
    """Raises InputError where networks do not fit each other.

    Args:
      family: that the UNet is of.
      configs: component -> its network's config.
    """
    if "image_tokens" in configs["unet"].cross_attention_branches and not (
        configs.get("image_encoder") and configs.get("image_proj")
    ):
        raise InputError(
            "The UNet has image-token layers, but there is no image encoder or no image projection to make tokens. "
            "Give both, or leave the image adapter out."
        )
    for given, wanted, what, cause in _pairs(family, configs):
        if given != wanted:
            raise InputError(f"{what}: {given} against {wanted}. {cause}")


def check_schedule(weights: Weights, schedule: Any, fetched: bool = False) -> None:
    """Raises InputError where a run's noise schedule is not the one that its models were trained with, say their files.

    Args:
      weights: of the run.
      schedule: with `prediction_type` and `zero_terminal_snr`.
      fetched: whether what is on the hub is asked too, where that is to be fetched anyway.
    """
    for source in (weights.of("unet"), *weights.trained):
        refuse_other_schedule(told_by_source(source, fetched=fetched), source, schedule)


def _pairs(family: Family, configs: Mapping[str, Any]) -> Iterator[tuple[int, int, str, str]]:
    """Pairs of numbers that must agree, what they are, and what to look at when they do not."""
    unet, vae = configs["unet"], configs["vae"]
    yield (
        unet.in_channels,
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
    if "image_tokens" in unet.cross_attention_branches:
        encoder, projection = configs["image_encoder"], configs["image_proj"]
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
