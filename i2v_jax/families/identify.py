"""Which family each file of a run is of, and whether they belong together: said in the names of the person's files.

Shapes tell: the width of the prompts a UNet reads (768 in SD1.x, 1024 in SD2, 2048 in SDXL, 1280 in its refiner), its
levels, the widths of CLIP encoders. Parts are judged by whether they agree with the base, published or not.
"""

import contextlib
import functools
import itertools
import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from i2v_jax.encoders.controls import components
from i2v_jax.errors import InputError
from i2v_jax.models.dynamicrafter import DynamiCrafterConfig
from i2v_jax.models.networks import NETWORKS
from i2v_jax.models.t2i_adapter import T2IAdapterConfig
from i2v_jax.models.unet import UNetConfig
from i2v_jax.weights import assemble
from i2v_jax.weights.controls import assemble_control, assemble_controlnet
from i2v_jax.weights.infer import infer_config
from i2v_jax.weights.low_rank import kernel_shapes, load_lora
from i2v_jax.weights.storage.open import open_tensors
from i2v_jax.weights.translate import recognise
from i2v_jax.weights.unet_parts import FOLDERS, part_of_path
from i2v_jax.weights.unets import assemble_any_unet

Shapes = Mapping[str, tuple[int, ...]]
Widths = tuple[int, ...]


class Part(NamedTuple):
    """What a run is given for one of its slots.

    Attributes:
      source: the file, folder or hub id, as the person named it.
      config: of its network: UNetConfig, ControlNetConfig, VAEConfig, a CLIP config, an image projection's. Of a part
        of a UNet and of a LoRA: the shapes of its tensors by path, or a UNetConfig, of which what such a part does not
        hold is not looked at.
    """

    source: str
    config: Any


class Kind(NamedTuple):
    """A published family: how to know its UNet, and what to give for each slot."""

    title: str
    prompts: int  # width of the states that it reads
    levels: Widths
    scaling_factor: float
    examples: Mapping[str, str]


_IP_ADAPTER = "h94/IP-Adapter"
SD1 = Kind(
    "Stable Diffusion 1.x",
    768,
    (320, 640, 1280, 1280),
    0.18215,
    {
        "unet": "stable-diffusion-v1-5/stable-diffusion-v1-5",
        "motion": "guoyww/animatediff/mm_sd_v15.ckpt",
        "adapter": "space-xun/i2v_adapter/i2v_module.pth",
        "image_adapter": f"{_IP_ADAPTER}/models/ip-adapter-plus_sd15.safetensors",
        "image_tokens": f"{_IP_ADAPTER}/models/ip-adapter-plus_sd15.safetensors",
        "vae": "stabilityai/sd-vae-ft-mse",
        "text_encoder": "openai/clip-vit-large-patch14",
        "lora": "latent-consistency/lcm-lora-sdv1-5",
        "controlnet": "lllyasviel/sd-controlnet-canny",
        "sparse_controlnet": "guoyww/animatediff/v3_sd15_sparsectrl_scribble.ckpt",
        "t2i_adapter": "TencentARC/t2iadapter_sketch_sd15v2",
    },
)
SD2 = Kind(
    "Stable Diffusion 2.x", 1024, (320, 640, 1280, 1280), 0.18215, {"unet": "stabilityai/stable-diffusion-2-1-base"}
)
SDXL = Kind(
    "Stable Diffusion XL",
    2048,
    (320, 640, 1280),
    0.13025,
    {
        "unet": "stabilityai/stable-diffusion-xl-base-1.0",
        "motion": "guoyww/animatediff/mm_sdxl_v10_beta.ckpt",
        "image_adapter": f"{_IP_ADAPTER}/sdxl_models/ip-adapter-plus_sdxl_vit-h.safetensors",
        "image_tokens": f"{_IP_ADAPTER}/sdxl_models/ip-adapter-plus_sdxl_vit-h.safetensors",
        "vae": "madebyollin/sdxl-vae-fp16-fix",
        "text_encoder": "stabilityai/stable-diffusion-xl-base-1.0/text_encoder",
        "text_encoder_2": "stabilityai/stable-diffusion-xl-base-1.0/text_encoder_2",
        "lora": "latent-consistency/lcm-lora-sdxl",
        "controlnet": "diffusers/controlnet-canny-sdxl-1.0",
        "t2i_adapter": "TencentARC/t2i-adapter-sketch-sdxl-1.0",
    },
)
REFINER = Kind(
    "the refiner of Stable Diffusion XL", 1280, (384, 768, 1536, 1536), 0.13025, {"unet": SDXL.examples["unet"]}
)
DYNAMICRAFTER = Kind(
    "DynamiCrafter", 1024, (320, 640, 1280, 1280), 0.18215, {"unet": "Doubiiu/DynamiCrafter_512/model.ckpt"}
)
KINDS = (SD1, SD2, SDXL, REFINER)

TITLES = {
    "motion": "motion modules",
    "adapter": "first-frame adapter",
    "image_adapter": "image adapter",
    "image_tokens": "image adapter",
    "image_encoder": "image encoder",
    "vae": "autoencoder",
    "text_encoder": "text encoder",
    "text_encoder_2": "second text encoder",
    "lora": "LoRA",
    "controlnet": "ControlNet",
    "sparse_controlnet": "SparseCtrl",
    "t2i_adapter": "T2I-Adapter",
}
# By width: what published CLIP encoders are, and where one is to be had.
TEXT_ENCODERS = {
    768: "CLIP ViT-L/14, of Stable Diffusion 1.x and the first of XL",
    1024: "OpenCLIP ViT-H/14, of Stable Diffusion 2.x",
    1280: "OpenCLIP ViT-bigG/14, the second of Stable Diffusion XL",
}
IMAGE_ENCODERS = {  # by width, and by that of the projected output
    (1024, 768): ("CLIP ViT-L/14", "openai/clip-vit-large-patch14"),
    (1280, 1024): ("OpenCLIP ViT-H/14", f"{_IP_ADAPTER}/models/image_encoder"),
    (1664, 1280): ("OpenCLIP ViT-bigG/14", f"{_IP_ADAPTER}/sdxl_models/image_encoder"),
}


def check_family(parts: Mapping[str, Part]) -> None:
    """Raises InputError for the first part that does not belong with the base; warns of what shapes cannot tell.

    Args:
      parts: slot -> what is given for it. "unet", the base, must be there; others, by their names in `TITLES`, may be:
        "image_adapter" is an IP-Adapter's projection, "image_tokens" its attention weights. Control networks go by
        their components' names, "control_0" ...
    """
    base = parts["unet"]
    check_base(base)
    for slot, check in CHECKS.items():
        if slot in parts:
            check(slot, parts, base)
    for component in components(parts):
        slot = NETWORKS[type(parts[component].config)].component
        CHECKS[slot](slot, {slot: parts[component]}, base)


def check_base(base: Part) -> None:
    """Raises InputError for a base that makes no picture from noise and a prompt alone."""
    config = base.config
    kind = kind_of_unet(config)
    purpose = {9: "an inpainting model: its", 8: "a model that edits pictures (instruct-pix2pix): its"}
    if config.in_channels in purpose and config.in_channels == config.latent_channels:
        raise InputError(
            f"{base.source} is {purpose[config.in_channels]} UNet takes {config.in_channels} channels, the latents and "
            f"a picture's. Wanted one that takes 4, the latents alone: a text-to-image model{such_as(kind, 'unet')}."
        )
    if kind is REFINER:
        raise InputError(
            f"{base.source} is {REFINER.title}: it finishes pictures that the base has begun, by one text encoder. "
            f"Give the base{such_as(SDXL, 'unet')}."
        )


def check_levels(slot: str, parts: Mapping[str, Part], base: Part) -> None:
    """Parts that lie in the UNet's levels: as many levels, as wide, wherever the part has layers."""
    part = parts[slot]
    given, wanted = levels_of(part.config), base.config.block_out_channels
    compared = [True] * len(wanted)
    if slot == "adapter":  # it lies where there is attention: in those levels, and in the middle block
        compared = [*base.config.down_attention[:-1], True]
    if len(given) == len(wanted) and all(a == b for a, b, where in zip(given, wanted, compared) if where):
        return
    known = next((kind for kind in (SD1, SDXL) if kind.levels == given), None)
    of = known.title if known else f"a UNet of {len(given)} levels, {listed(given)} channels wide"
    raise InputError(mismatch(slot, part, of, base, f"its levels are {listed(wanted)} channels wide"))


def check_prompts(slot: str, parts: Mapping[str, Part], base: Part) -> None:
    """Parts with cross-attention, or that make states for one: as wide as the base's prompts."""
    part = parts[slot]
    given, wanted = prompts_of(part.config), base.config.cross_attention_dim
    if given is not None and given != wanted:
        kind = kind_of(given)
        of = kind.title if kind else f"a UNet that reads states {given} wide"
        raise InputError(mismatch(slot, part, of, base, f"the states that it reads are {wanted} wide"))


def check_image_tokens(slot: str, parts: Mapping[str, Part], base: Part) -> None:
    """The attention weights of an image adapter: as wide as the base's prompts, and as many as its attentions."""
    check_prompts(slot, parts, base)
    part = parts[slot]
    given, wanted = count_image_attentions(part.config), count_cross_attentions(base.config)
    if given not in (0, wanted):
        of = {16: SD1.title, 70: SDXL.title}.get(given, "another network")
        of += f", with {given} cross-attentions"
        raise InputError(mismatch(slot, part, of, base, f"it has {wanted} cross-attentions"))


def check_controlnet(slot: str, parts: Mapping[str, Part], base: Part) -> None:
    """A ControlNet copies the down blocks of its UNet: levels and prompts agree."""
    check_prompts(slot, parts, base)
    check_levels(slot, parts, base)


def check_t2i_adapter(slot: str, parts: Mapping[str, Part], base: Part) -> None:
    """A T2I-Adapter's features are as wide as the levels that they are added to, and of their sizes."""
    part, levels = parts[slot], base.config.block_out_channels
    last = len(levels) - 1
    # where a level has no attention, its features are added after it is halved; a fourth of three are the middle's
    halvings = [i if attends else min(i + 1, last) for i, attends in enumerate(base.config.down_attention)] + [last]
    given, wanted = features_of(part.config), list(zip((*levels, levels[-1]), halvings))
    if given != wanted[: len(given)]:
        of = SDXL.title if part.config.kind == "full_adapter_xl" else SD1.title
        raise InputError(mismatch(slot, part, of, base, f"its levels are {listed(levels)} channels wide"))


def check_image_encoder(slot: str, parts: Mapping[str, Part], base: Part) -> None:
    """The image encoder's output is as wide as what the image adapter reads."""
    projection = parts["image_adapter"].config if "image_adapter" in parts else None
    if not getattr(projection, "reads", ""):
        return
    part, adapter = parts[slot], parts["image_adapter"]
    reads_projected = projection.reads == "image_embeds"
    given = part.config.projection_dim if reads_projected else part.config.width
    if given == projection.embed_dim:
        return
    name, _ = IMAGE_ENCODERS.get((part.config.width, part.config.projection_dim), (f"{part.config.width} wide", ""))
    fits = [found for widths, found in IMAGE_ENCODERS.items() if widths[reads_projected] == projection.embed_dim]
    what = "projected output" if reads_projected else "states"
    raise InputError(
        f"{part.source} is an image encoder ({name}) whose {what} are {given} wide; {adapter.source} was trained on "
        f"{what} {projection.embed_dim} wide. "
        + (f"Give {fits[0][0]}, such as {fits[0][1]}." if fits else "Give the image encoder that it was trained with.")
    )


def check_text_encoders(slot: str, parts: Mapping[str, Part], base: Part) -> None:
    """The text encoders' states, side by side, are what the base reads; the second's pooled output too."""
    added, wanted = base.config.added_conditioning, base.config.cross_attention_dim
    if slot == "text_encoder_2" and added is None:
        raise InputError(
            f"{base.source} ({base_title(base)}) has one text encoder, and {parts[slot].source} is given as its "
            "second. Leave it out."
        )
    width = parts[slot].config.width
    if wanted == SDXL.prompts:
        expected = {"text_encoder": 768, "text_encoder_2": 1280}[slot]
    elif added is None:
        expected = wanted
    else:
        other = "text_encoder_2" if slot == "text_encoder" else "text_encoder"
        expected = wanted - parts[other].config.width if other in parts else width
    if width != expected:
        of = TEXT_ENCODERS.get(width, f"one whose states are {width} wide")
        fits = TEXT_ENCODERS.get(expected, f"one whose states are {expected} wide")
        raise InputError(
            f"{parts[slot].source}, given as the {TITLES[slot]}, is {of}; {base.source} ({base_title(base)}) wants "
            f"{fits}. Give that one{such_as(kind_of(wanted), slot)}, or none: then the base's own is taken."
        )
    pooled = parts[slot].config.projection_dim or width
    if slot == "text_encoder_2" and pooled != added.pooled_dim:
        raise InputError(
            f"{parts[slot].source}, given as the second text encoder, has a pooled output {pooled} wide; "
            f"{base.source} wants {added.pooled_dim}. Give the text encoder that it was trained with"
            f"{such_as(kind_of(wanted), slot)}."
        )


def check_vae(slot: str, parts: Mapping[str, Part], base: Part) -> None:
    """Latents have the channels that the base takes. Their scale no shape tells: warns where it is not the family's."""
    part, kind = parts[slot], kind_of_unet(base.config)
    given, wanted = part.config.latent_channels, base.config.latent_channels
    if given != wanted:
        raise InputError(
            f"{part.source} is an autoencoder whose latents have {given} channels; {base.source} ({base_title(base)}) "
            f"takes {wanted}. Give one of its family{such_as(kind, slot)}."
        )
    if kind and abs(part.config.scaling_factor - kind.scaling_factor) > 1e-6:
        warnings.warn(
            f"{part.source} scales latents by {part.config.scaling_factor}, by its config or, where it has none, by "
            f"default; {kind.title}'s autoencoders have {kind.scaling_factor}. Shapes do not tell one family's from "
            f"another's: if pictures come out pale or garish, give one of {kind.title}{such_as(kind, slot)}.",
            stacklevel=2,
        )


CHECKS: dict[str, Callable[[str, Mapping[str, Part], Part], None]] = {
    "motion": check_levels,
    "adapter": check_levels,
    "image_adapter": check_prompts,
    "image_tokens": check_image_tokens,
    "image_encoder": check_image_encoder,
    "lora": check_prompts,
    "controlnet": check_controlnet,
    "sparse_controlnet": check_controlnet,
    "t2i_adapter": check_t2i_adapter,
    "text_encoder": check_text_encoders,
    "text_encoder_2": check_text_encoders,
    "vae": check_vae,
}


# What files are.


def explain(sources: Mapping[str, str | Path]) -> None:
    """Raises the error of `check_family` where that is why a model cannot be put together.

    To be asked when that has failed: files of another family first show as tensors of wrong names and shapes. What
    cannot be opened is left out, for its own error to stand.

    Args:
      sources: slot -> file, folder or hub id; "unet" is the base.
    """
    parts = {}
    for slot, source in sources.items():
        with contextlib.suppress(InputError):
            parts[slot] = open_part(slot, source)
    if "image_adapter" in parts:
        with contextlib.suppress(InputError):
            parts["image_tokens"] = open_part("image_tokens", sources["image_adapter"])
    if "unet" in parts:
        check_family(parts)


def open_part(slot: str, source: str | Path) -> Part:
    """Finds out what a source is, unread.

    Raises:
      InputError: there is no such source, or it holds no such part.
    """
    if components([slot]):
        return Part(str(source), assemble_control(source).config)
    if slot in ASSEMBLE:
        return Part(str(source), ASSEMBLE[slot](source).config)
    if slot == "lora":
        found = load_lora(source, skip_unknown=True)
    else:
        found = recognise(open_tensors(source, FOLDERS.get(slot, "unet")))
    entries = found["unet"].parameters.entries if "unet" in found else {}
    shapes = {path: entry.shape for path, entry in entries.items()}
    if slot == "lora" and shapes:
        shapes |= kernel_shapes(found["unet"].parameters)
    if slot in UNET_PARTS:
        shapes = {path: shape for path, shape in shapes.items() if part_of_path(path) == UNET_PARTS[slot]}
    if not shapes:
        raise InputError(f"{source} holds no {TITLES[slot]}.")
    return Part(str(source), shapes)


UNET_PARTS = {"motion": "motion", "adapter": "first_frame", "image_tokens": "image_tokens"}
"""Slot -> what `weights.unet_parts` calls what is given for it."""


ASSEMBLE: dict[str, Callable[[Any], assemble.Assembled]] = {
    "unet": assemble_any_unet,
    "vae": assemble.assemble_vae,
    "text_encoder": assemble.assemble_text_encoder,
    "text_encoder_2": functools.partial(assemble.assemble_text_encoder, folder="text_encoder_2"),
    "image_encoder": assemble.assemble_image_encoder,
    "image_adapter": assemble.assemble_image_projection,
    "controlnet": assemble_controlnet,
}


# What configs and shapes tell.


def kind_of(prompts: int) -> Kind | None:
    """The published family whose UNet reads prompt states of this width."""
    return next((kind for kind in KINDS if kind.prompts == prompts), None)


def kind_of_unet(config: Any) -> Kind | None:
    """The published family that a UNet's config is of."""
    return DYNAMICRAFTER if isinstance(config, DynamiCrafterConfig) else kind_of(config.cross_attention_dim)


def is_shapes(config: Any) -> bool:
    """Whether a part is described by the shapes of its tensors rather than by a config."""
    return isinstance(config, Mapping)


def levels_of(config: Any) -> Widths:
    """The widths of the levels that a UNet, or a part of one, has or was made for."""
    config = infer_config("unet", config) if is_shapes(config) else config
    return tuple(config.block_out_channels)


def prompts_of(config: Any) -> int | None:
    """The width of the states that cross-attentions read; None where a part has none."""
    if not is_shapes(config):
        return config.cross_attention_dim
    layer = re.compile(r".*/attn2/(?:\w+/)?to_[kv]/(?:kernel|lora/down)")
    widths = (shape[0] for path, shape in config.items() if layer.fullmatch(path))
    return next(widths, None)


def features_of(config: T2IAdapterConfig) -> list[tuple[int, int]]:
    """Width of each level's features, and how often its side is half of that of the latents."""
    first = 1 if config.kind == "full_adapter_xl" else 0
    halved = itertools.accumulate(config.halves(level) for level in range(len(config.block_out_channels)))
    return [(width, first + times) for width, times in zip(config.block_out_channels, halved)]


def count_cross_attentions(config: UNetConfig) -> int:
    """How many cross-attentions a UNet has: 16 in SD1.x and SD2, 70 in SDXL."""
    down, depth = config.down_attention, config.transformer_depth
    layers = config.layers_per_block
    below = sum(layers * depth[i] for i, attends in enumerate(down) if attends)
    above = sum((layers + 1) * depth[-1 - i] for i, attends in enumerate(config.up_attention) if attends)
    return below + depth[-1] + above


def count_image_attentions(shapes: Shapes) -> int:
    """How many attentions to image tokens an IP-Adapter has."""
    return sum(path.endswith("/image_tokens/to_k/kernel") for path in shapes)


# How messages put it.


def mismatch(slot: str, part: Part, of: str, base: Part, reason: str) -> str:
    """Says what a part is for, what the base is, and what to give."""
    kind = kind_of_unet(base.config)
    message = (
        f"{part.source} ({TITLES[slot]}) is for {of}; {base.source} is {base_title(base)}: {reason}. "
        f"Give {TITLES[slot]} for that family{such_as(kind, slot)}"
    )
    if slot == "adapter" and kind is SDXL:
        message += " (none is published: train.py makes one)"
    other = next((one for one in (SD1, SDXL) if of.startswith(one.title) and one is not kind), None)
    return message + (f", or a base of {other.title}{such_as(other, 'unet')}." if other else ".")


def base_title(base: Part) -> str:
    """What family the base is of."""
    kind = kind_of_unet(base.config)
    return f"a model of {kind.title}" if kind else "of no published family"


def such_as(kind: Kind | None, slot: str) -> str:
    """An example of what to give."""
    return f", such as {kind.examples[slot]}" if kind and slot in kind.examples else ""


def listed(widths: Widths) -> str:
    """Numbers, as a sentence has them."""
    return ", ".join(map(str, widths))
