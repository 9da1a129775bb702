"""What of a model's weights is not here: all of it in one message, with commands that fetch just what is needed.

Sizes are those of the files that the configs name.
"""

import contextlib
import itertools
import posixpath
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from i2v_jax.hub import HUB_ID, NotHere, download_command, is_cached, local
from i2v_jax.models.tokenizer import FILES
from i2v_jax.weights.storage.open import MODEL_STEMS, WEIGHT_SUFFIXES, files_by_hand

INDEX = "model_index.json"
PIPELINE_FILES = (INDEX, "scheduler/scheduler_config.json")
TOKENIZERS = ("tokenizer", "tokenizer_2")
COMPONENTS = ("unet", "vae", "text_encoder", "text_encoder_2", *TOKENIZERS)
"""Folders of a pipeline that a base is read from."""

SIZES: Mapping[str, Mapping[str, float]] = {
    "stable-diffusion-v1-5/stable-diffusion-v1-5": {"unet": 3.44e9, "vae": 335e6, "text_encoder": 492e6},
    "stabilityai/stable-diffusion-xl-base-1.0": {
        "unet": 10.27e9,
        "vae": 335e6,
        "text_encoder": 492e6,
        "text_encoder_2": 2.78e9,
    },
    "Doubiiu/DynamiCrafter": {"model.ckpt": 10.4e9},
    "Doubiiu/DynamiCrafter_512": {"model.ckpt": 10.4e9},
    "Doubiiu/DynamiCrafter_1024": {"model.ckpt": 10.4e9},
    "Doubiiu/DynamiCrafter_512_Interp": {"model.ckpt": 10.4e9},
    "madebyollin/sdxl-vae-fp16-fix": {"": 335e6},
    "guoyww/animatediff": {
        "mm_sd_v15.ckpt": 1.67e9,
        "mm_sd_v15_v2.ckpt": 1.82e9,
        "v3_sd15_mm.ckpt": 1.67e9,
        "mm_sdxl_v10_beta.ckpt": 0.95e9,
        "v3_sd15_sparsectrl_rgb.ckpt": 1.99e9,
        "v3_sd15_sparsectrl_scribble.ckpt": 1.99e9,
    },
    "TencentARC/t2iadapter_sketch_sd15v2": {"": 308e6},
    "TencentARC/t2iadapter_depth_sd15v2": {"": 309e6},
    "TencentARC/t2i-adapter-sketch-sdxl-1.0": {"": 316e6},
    "lllyasviel/control_v11p_sd15_openpose": {"": 1.45e9},
    "xinsir/controlnet-openpose-sdxl-1.0": {"": 2.50e9},
    "h94/IP-Adapter": {
        "models/ip-adapter_sd15.safetensors": 45e6,
        "models/ip-adapter-plus_sd15.safetensors": 98e6,
        "models/image_encoder": 2.53e9,
        "sdxl_models/ip-adapter_sdxl.safetensors": 703e6,
        "sdxl_models/ip-adapter-plus_sdxl_vit-h.safetensors": 848e6,
        "sdxl_models/image_encoder": 3.69e9,
    },
}
"""Model of the hub -> folder or file -> bytes of its weights; "" is the model's root."""


class Part(NamedTuple):
    """Something that a command reads.

    Attributes:
      name: what the person knows it by, such as `weights.motion`.
      source: file, folder or hub id.
      folder: the one that is read where the source is the folder of a pipeline; "" for a file or any folder.
      of_base: whether the source is known to be a pipeline.
      variant: which precision of several, such as `fp16`.
    """

    name: str
    source: str | Path
    folder: str = ""
    of_base: bool = False
    variant: str | None = None


@contextlib.contextmanager
def telling_all(parts: Callable[[], Sequence[Part]]) -> Iterator[None]:
    """Turns the error of the first part that is not to be had into one of all such parts.

    Args:
      parts: gives all that is read.

    Raises:
      NotHere: names every part that is not here, and how to fetch it.
    """
    try:
        yield
    except NotHere as error:
        missing = [part for part in parts() if not _is_here(part)]
        sources = {str(part.source) for part in missing}
        if error.source not in sources or (not error.reason and len(sources) == 1):
            raise
        raise NotHere(_message(error, missing), error.source, error.reason) from error


def _is_here(part: Part) -> bool:
    """Whether a part is on this machine, or an earlier run fetched it."""
    if local(part.source) is not None:
        return True
    inside = Path(*Path(part.source).parts[2:])
    if inside.suffix in WEIGHT_SUFFIXES:
        return is_cached(part.source, ["."])
    if part.folder in TOKENIZERS:
        names = FILES
    else:
        kinds = itertools.product(MODEL_STEMS, ("", ".fp16"), ("safetensors", "bin"))
        names = [*(f"{stem}{middle}.{suffix}" for stem, middle, suffix in kinds), *([] if part.folder else [INDEX])]
    places = [part.folder] if part.of_base else ["", part.folder]
    return is_cached(part.source, [posixpath.join(place, name) for place in places for name in names])


def _files(part: Part) -> list[str]:
    """What to fetch of a part, relative to the hub's model."""
    known = SIZES.get(str(part.source), {})
    if not part.folder and "unet" in known:
        components = [part._replace(folder=name, of_base=True) for name in COMPONENTS]
        return [name for one in components if not _is_known_to_lack(one) for name in _files(one)]
    if part.folder not in TOKENIZERS:
        about = PIPELINE_FILES if part.of_base and part.folder == "unet" else ()
        return [*about, *files_by_hand(part.source, part.folder, part.variant, part.of_base)]
    place = posixpath.join(*Path(part.source).parts[2:], part.folder if part.of_base else "")
    return [posixpath.join(place, name) for name in FILES]


def _message(error: NotHere, missing: Sequence[Part]) -> str:
    """Every missing part; below, a command for each model of the hub, its size where it is known."""
    repos: dict[str, list[str]] = {}
    sizes: dict[str, dict[str, float | None]] = {}
    lines: dict[str, list[str]] = {}
    for part in missing:
        if _is_known_to_lack(part):
            continue
        line = lines.setdefault(f"  {part.name}={str(part.source)!r}", [])
        match = HUB_ID.fullmatch(str(part.source))
        if not match:
            line.append("no such file or folder")
            continue
        line += [part.folder] if part.of_base else []
        repo, known = match["repo"], SIZES.get(match["repo"], {})
        repos.setdefault(repo, []).extend(_files(part))
        weights = sizes.setdefault(repo, {})
        if part.variant:
            weights[""] = None
        elif not part.folder and "unet" in known and not match["inside"]:
            weights |= known
        elif part.folder not in TOKENIZERS:
            key = match["inside"] or (part.folder if part.of_base else "")
            weights[key] = known.get(key)
    text = [
        "Not on this machine" + (f", and not to be had from the hub ({error.reason})" if error.reason else "") + ":"
    ]
    text += [line + (f": {', '.join(notes)}" if notes else "") for line, notes in lines.items()]
    if repos:
        text.append("Where there is a network, in this folder, just what is needed:")
        text += [f"  {download_command(repo, names)}{_size(sizes.get(repo, {}))}" for repo, names in repos.items()]
    return "\n".join(text)


def _is_known_to_lack(part: Part) -> bool:
    """Whether the part is the second encoder or tokenizer of a model that is known to have one of each."""
    is_second = part.of_base and part.folder.endswith("_2")
    return is_second and "text_encoder_2" not in SIZES.get(str(part.source), COMPONENTS)


def _size(weights: Mapping[str, float | None]) -> str:
    """The weights' size together, as a comment of the shell; nothing where one is not known."""
    if not weights or None in weights.values():
        return ""
    total = sum(weights.values())
    return f"  # {total / 1e9:.1f} GB" if total >= 1e9 else f"  # {total / 1e6:.0f} MB"
