"""`export`: any format into those of the PyTorch and Flax world, as a file, or as a folder for `from_pretrained`."""

import argparse
import dataclasses
import math
import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from convert import embeddings
from convert.converting import opened, output, selected, summary, writing
from convert.formats import FORMATS
from convert.parts import part_of
from i2v_jax.errors import InputError, nearest
from i2v_jax.hub import local
from i2v_jax.models.adapters import ADAPTER_PATH
from i2v_jax.models.motion import PICTURE_INPUT
from i2v_jax.weights.checkpoint import Checkpoint
from i2v_jax.weights.configs import shapes_tell
from i2v_jax.weights.folders import (
    PIPELINE_FOLDERS,
    copy_rest,
    write_component,
    write_model_index,
    write_scheduler,
)
from i2v_jax.weights.formats import (
    TABLES,
    clip,
    controlnet,
    diffusers,
    dino,
    dover,
    dynamicrafter,
    i3d,
    ifnet,
    ip_adapter,
    lora,
    lpips,
    original,
    raft,
    sparse_control,
    t2i_adapter,
    upscaler,
)
from i2v_jax.weights.formats.diffusers import PUBLISHED_UNET, PUBLISHED_UNET_LINEAR
from i2v_jax.weights.formats.flax import FLAX_TABLES
from i2v_jax.weights.low_rank import PEFT_METADATA, export_lora
from i2v_jax.weights.measuring import with_made_buffers
from i2v_jax.weights.names import Table
from i2v_jax.weights.save import EXPORTED_CONFIGS, exported_metadata
from i2v_jax.weights.storage.msgpack import save_msgpack
from i2v_jax.weights.storage.open import WEIGHT_SUFFIXES
from i2v_jax.weights.storage.pickle import save_pickle
from i2v_jax.weights.storage.safetensors import save_tensors
from i2v_jax.weights.tensors import Tensors
from i2v_jax.weights.trained_for import MODELSPEC, OWN_KEY
from i2v_jax.weights.translate import export_tensors, position_tables

WITHOUT_ADAPTERS = rf"(?!{ADAPTER_PATH.pattern}|.*/lora/).*"
CONTROLS = ("controlnet", "sparse_controlnet", "t2i_adapter")
AFTERWARDS = ("raft", "dover", "lpips", "dino", "i3d", "upscaler", "ifnet")
"""Networks that look at videos, or change them."""
CONFIGURED = ("unet", *CONTROLS, *AFTERWARDS, "vae", "text_encoder", "text_encoder_2", "image_encoder", "image_proj")
BASE = rf"(?!.*/motion/){WITHOUT_ADAPTERS}"


@dataclasses.dataclass(frozen=True)
class FileLayout:
    """How a format of the command line is written.

    Attributes:
        tables: component -> its table for SD1.5, and for SDXL where that is another.
        only: the paths that belong there.
        nesting: how a pickle's names are nested: all below one name, (None) by their first part, or ("") not at all.
        folder: whether it may be a folder of components.
        prefix: what stands before every name.
    """

    tables: Mapping[str, tuple[Table, ...]]
    only: str = BASE
    nesting: str | None = "state_dict"
    folder: bool = False
    prefix: str = ""


LAYOUTS = {
    "diffusers": FileLayout(
        dict.fromkeys(("unet", *CONTROLS, "vae", "text_encoder", "text_encoder_2", "image_encoder"), ()),
        only=WITHOUT_ADAPTERS,
        folder=True,
    ),
    "flax": FileLayout(
        FLAX_TABLES,
        folder=True,
    ),
    "sd": FileLayout(
        {
            "unet": (original.SD15_UNET, original.SDXL_UNET),
            "unet_ema": (original.SD15_EMA, original.SDXL_EMA),
            "vae": (original.SD_VAE,),
            "text_encoder": (original.SD15_TEXT, original.SDXL_TEXT),
            "text_encoder_2": (original.SDXL_TEXT_2,),
            "controlnet": (original.SD15_CONTROLNET, original.SDXL_CONTROLNET),
            "noise_schedule": (original.NOISE_SCHEDULE,),
            "leftovers": (original.LEFTOVERS,),
        },
    ),
    "dynamicrafter": FileLayout(
        {
            "unet": (dynamicrafter.DYNAMICRAFTER_UNETS[1], dynamicrafter.DYNAMICRAFTER_UNETS[0]),
            "vae": (original.SD_VAE,),
            "text_encoder": (original.SD2_TEXT,),
            "image_encoder": (dynamicrafter.OPENCLIP_VISION,),
            "image_proj": (dynamicrafter.DYNAMICRAFTER_PROJECTION,),
            "noise_schedule": (original.NOISE_SCHEDULE,),
            "leftovers": (original.LEFTOVERS,),
        },
    ),
    "i2v-adapter": FileLayout(
        {"unet": (PUBLISHED_UNET, PUBLISHED_UNET_LINEAR)},
        only=r"(?!.*/lora/).*",
    ),
    "animatediff": FileLayout(
        {
            "unet": (PUBLISHED_UNET, PUBLISHED_UNET_LINEAR),
            "sparse_controlnet": (sparse_control.ORIGINAL_SPARSE, sparse_control.ORIGINAL_SPARSE_LINEAR),
        },
        only=rf"(unet/(?!{ADAPTER_PATH.pattern}|.*/lora/).*/motion/.*|sparse_controlnet/.*)",
    ),
    "raft": FileLayout({"raft": (raft.PRINCETON_RAFT, raft.PRINCETON_RAFT_SMALL)}, nesting="", prefix="module."),
    "dover": FileLayout({"dover": (dover.DOVER,)}, nesting=""),
    "real-esrgan": FileLayout(
        {"upscaler": (upscaler.REAL_ESRGAN, upscaler.COMPACT)}, nesting=None, prefix="params_ema."
    ),
    "esrgan": FileLayout({"upscaler": (upscaler.ESRGAN, upscaler.ESRGAN_CODE)}, nesting=""),
    "rife": FileLayout({"ifnet": (ifnet.RIFE,)}, nesting="", prefix="module."),
    "rife-plain": FileLayout({"ifnet": (ifnet.RIFE,)}, nesting=""),
    "lpips": FileLayout({"lpips": (lpips.LPIPS_ALEX, lpips.LPIPS_VGG)}, nesting=""),
    "dino": FileLayout({"dino": (dino.DINO,)}, nesting=""),
    "i3d": FileLayout({"i3d": (i3d.PIERGIAJ_I3D,)}, nesting=""),
    "i3d-hassony2": FileLayout({"i3d": (i3d.HASSONY_I3D,)}, nesting=""),
    "raft-torchvision": FileLayout({"raft": (raft.TORCHVISION_RAFT,)}, nesting=""),
    "t2i-adapter": FileLayout({"t2i_adapter": (t2i_adapter.ORIGINAL_T2I,)}),
    "ip-adapter": FileLayout(
        {"unet": (ip_adapter.IP_ADAPTER,), "image_proj": (ip_adapter.IMAGE_PROJECTION,)},
        only=ip_adapter.PATHS,
        nesting=None,
    ),
    "kohya": FileLayout(
        {
            "unet": (lora.KOHYA_UNET, lora.KOHYA_SDXL),
            "text_encoder": (lora.KOHYA_TEXT, lora.KOHYA_TEXT_1),
            "text_encoder_2": (lora.KOHYA_TEXT_2,),
        },
        only=r".*/lora/\w+",
    ),
    "peft": FileLayout(
        {
            "unet": (lora.DIFFUSERS_LORA, lora.DIFFUSERS_LORA_LINEAR),
            "text_encoder": (lora.DIFFUSERS_LORA_TEXT,),
            "text_encoder_2": (lora.DIFFUSERS_LORA_TEXT_2,),
        },
        only=r".*/lora/\w+",
    ),
    "motion-lora": FileLayout(
        {"unet": (lora.MOTION_LORA, lora.MOTION_LORA_LINEAR)},
        only=r"unet/.*/motion/.*/lora/\w+",
    ),
}

FOLDERS = {
    "diffusers": {
        "unet": (diffusers.DIFFUSERS_UNET, diffusers.DIFFUSERS_UNET_LINEAR, diffusers.DIFFUSERS_PIA),
        "controlnet": (controlnet.DIFFUSERS_CONTROLNET, controlnet.DIFFUSERS_CONTROLNET_LINEAR),
        "sparse_controlnet": (sparse_control.DIFFUSERS_SPARSE, sparse_control.DIFFUSERS_SPARSE_LINEAR),
        "t2i_adapter": (t2i_adapter.DIFFUSERS_T2I,),
        "vae": (diffusers.DIFFUSERS_VAE,),
        "text_encoder": (clip.CLIP_TEXT, clip.CLIP_TEXT_FLAT),
        "text_encoder_2": (clip.CLIP_TEXT, clip.CLIP_TEXT_FLAT),
        "image_encoder": (clip.CLIP_VISION, clip.CLIP_VISION_FLAT),
    },
    "flax": FLAX_TABLES,
}
"""Formats of folders: component -> the names that such a folder may have."""
NEWER = {table.name: table for table in (clip.CLIP_TEXT_FLAT, clip.CLIP_VISION_FLAT)}
"""Names of transformers 5.6 and later, which are written where they came and no format is asked for."""


def run(arguments: argparse.Namespace) -> int:
    """Writes OUTPUT and prints what it holds."""
    if arguments.to is not None and arguments.to not in FORMATS:
        known = ", ".join(FORMATS)
        raise InputError(f"--to {arguments.to}: no such format.{nearest(arguments.to, FORMATS)} Known: {known}.")
    if embeddings.are_meant(arguments.sources, arguments.to):
        return embeddings.export(arguments)
    check_output(arguments.output, arguments.to)
    with output(arguments) as path:
        whole = opened(arguments)
        checkpoint, to = as_written(whole, arguments)
        with writing(path, checkpoint) as update:
            write(path, checkpoint, to, arguments, update)
    print(f"{arguments.output}:\n{summary(checkpoint)}")
    if left := sorted(_parts(whole) - _parts(checkpoint)):
        print(f"left out, as {to} has no place for them: {', '.join(left)}")
    return 0


def check_output(name: str, to: str | None) -> None:
    """Raises InputError where an output's name is not of a file or folder that a format is written to."""
    suffix = Path(name).suffix
    if to == "diffusers" and suffix:
        raise InputError(f"--to diffusers writes a folder; {name} is a file's name. Leave its {suffix} out.")
    if suffix not in WEIGHT_SUFFIXES and to and not LAYOUTS[to].folder:
        raise _no_file(name)


def as_written(whole: Checkpoint, arguments: argparse.Namespace) -> tuple[Checkpoint, str | None]:
    """Returns what of a checkpoint `arguments.output` will hold, and in which format; None: as it came.

    Raises:
        InputError: the format of a folder that came in none is not told, or holds nothing of the checkpoint.
    """
    is_file = Path(arguments.output).suffix in WEIGHT_SUFFIXES
    to = arguments.to or (None if is_file else _folder_format(whole, arguments.output))
    return _of_format(whole, to), to


def write(
    path: Path,
    checkpoint: Checkpoint,
    to: str | None,
    arguments: argparse.Namespace,
    progress: Callable[[int], object],
    metadata: Mapping[str, str] = MappingProxyType({}),
    ahead_bytes: float = math.inf,
) -> None:
    """Writes what `as_written` returned to a file, where `arguments.output` is one's name, or to a folder.

    `metadata` and `ahead_bytes` are of a `.safetensors` file, see `save_tensors`.
    """
    suffix = Path(arguments.output).suffix
    if suffix in WEIGHT_SUFFIXES:
        _write_file(path, checkpoint, to, suffix, progress, metadata, ahead_bytes)
    else:
        _write_folder(path, checkpoint, to, arguments, progress)


def _no_file(name: str) -> InputError:
    known, folders = ", ".join(WEIGHT_SUFFIXES), " or ".join(to for to, layout in LAYOUTS.items() if layout.folder)
    return InputError(
        f"OUTPUT {name} names no file of weights; wanted one that ends in {known}, or --to {folders} for a folder."
    )


def _folder_format(checkpoint: Checkpoint, name: str) -> str:
    """The format of a folder whose every component came in it: without --to, a source goes out as it came.

    Raises:
        InputError: a component came in another.
    """
    for to, tables in FOLDERS.items():
        known = {component: {table.name for table in tables[component]} for component in tables}
        if all(set(checkpoint.formats.get(name, [""])) <= known.get(name, set()) for name in checkpoint.components):
            return to
    raise _no_file(name)


def _parts(checkpoint: Checkpoint) -> set[str]:
    return {part_of(name, path) for name, tensors in checkpoint.tensors().items() for path in tensors}


def _of_format(checkpoint: Checkpoint, to: str | None) -> Checkpoint:
    """The part of a checkpoint that a format holds."""
    if to is None:
        return checkpoint
    wanted = LAYOUTS[to]
    components = "|".join(wanted.tables)
    paths = [f"{name}/{path}" for name, tensors in checkpoint.tensors().items() for path in tensors]
    chosen = rf"(?=({components})/){wanted.only}"
    if not any(re.fullmatch(chosen, path) for path in paths):
        held = ", ".join(checkpoint.components)
        raise InputError(f"{checkpoint.source} holds nothing that is part of {to} ({FORMATS[to]}). It holds: {held}.")
    return selected(checkpoint, [chosen])


def _write_file(
    path: Path,
    checkpoint: Checkpoint,
    to: str | None,
    suffix: str,
    progress: Callable[[int], object],
    metadata: Mapping[str, str],
    ahead_bytes: float,
) -> None:
    tensors = exported(checkpoint, to)
    carried = _carried(checkpoint)
    if suffix == ".safetensors":
        save_tensors(path, tensors, {**tensors.metadata, **carried, **metadata}, progress, ahead_bytes)
        return
    if carried:
        warnings.warn(
            f"{suffix} has no place for {' and '.join(_CARRIED[key] for key in carried)}. Written as .safetensors, the "
            "file carries that, and is read again as it was.",
            stacklevel=2,
        )
    if PEFT_METADATA in tensors.metadata:
        raise InputError(f"{to} keeps alphas in the metadata of .safetensors, and {suffix} has none. Write the former.")
    elif suffix == ".msgpack":
        save_msgpack(path, tensors, progress)
    else:
        plain = "" if set(checkpoint.components) <= set(AFTERWARDS) else "state_dict"
        plain = None if checkpoint.prefix.startswith("params") else plain
        save_pickle(path, tensors, LAYOUTS[to].nesting if to else plain, progress)


def _carried(checkpoint: Checkpoint) -> dict[str, str]:
    """What a file must carry in its metadata to be read again as it is: configs that its shapes do not tell, and what
    its UNet was trained to predict where that is not epsilon."""
    alone = "unet" not in checkpoint.components
    configs = {
        name: component.config
        for name, component in checkpoint.components.items()
        if component.config is not None and component.parameters and name in CONFIGURED
        if not shapes_tell(name, component.config, checkpoint.tensors()[name], alone)
    }
    told, held = checkpoint.told, checkpoint.components.get("unet")
    tells = (
        held is not None
        and "conv_in/kernel" in held.parameters
        and (told.zero_terminal_snr or told.prediction_type not in (None, "epsilon"))
    )
    spec = {MODELSPEC[0]: "v"} if tells and told.prediction_type == "v_prediction" else {}
    return exported_metadata(configs) | (told.metadata() if tells else {}) | spec


_CARRIED = {
    EXPORTED_CONFIGS: "the configs of networks that are no published ones",
    OWN_KEY: "what the model predicts",
    MODELSPEC[0]: "its name in modelspec",
}


def exported(checkpoint: Checkpoint, to: str | None) -> Tensors:
    """Returns a checkpoint's tensors under the names of a format, or of the formats that they came in.

    Raises:
        InputError: the format has no place for a tensor; what came in several formats, and `to` is None.
    """
    tables = {name: _table(checkpoint, name, to) for name in checkpoint.components}
    parts: dict[str, Any] = {}
    metadata = {"format": "pt"}
    for name, component in checkpoint.components.items():
        buffers = component.buffers
        if getattr(component.config, "motion", None) and component.parameters and not _without_tables(checkpoint, name):
            made = position_tables(component.parameters, component.config.motion.max_positions)
            buffers = made.holding(made.entries | buffers.entries)
        buffers = with_made_buffers(name, component.parameters, buffers, component.config)
        parts |= export_tensors(component.parameters, tables[name], buffers).entries
    if checkpoint.lora:
        low_rank = export_lora(checkpoint.lora, {name: tables[name] for name in checkpoint.lora})
        parts |= low_rank.entries
        metadata |= low_rank.metadata
    prefix = checkpoint.prefix if to is None else LAYOUTS[to].prefix
    return Tensors({prefix + name: entry for name, entry in parts.items()}, checkpoint.source, metadata)


def _without_tables(checkpoint: Checkpoint, component: str) -> bool:
    """Whether motion modules came without position tables in the format that always has them, as AnimateLCM's do."""
    buffers, came_in = checkpoint.components[component].buffers, checkpoint.formats.get(component, [])
    return came_in in ([PUBLISHED_UNET.name], [PUBLISHED_UNET_LINEAR.name], [diffusers.PIA.name]) and not buffers


def _table(checkpoint: Checkpoint, component: str, to: str | None) -> Table:
    came_in = checkpoint.formats.get(component, [])
    known = {table.name: table for table in TABLES[component]}
    if to is None:
        if len(came_in) == 1 and came_in[0] in known:
            return known[came_in[0]]
        formats = ", ".join(FORMATS)
        raise InputError(
            f"The {component} of {checkpoint.source} came as {' + '.join(came_in)}: say in which format to write it, "
            f"by --to {{{formats}}}."
        )
    candidates = LAYOUTS[to].tables.get(component, ())
    if not candidates:
        raise InputError(f"{to} has no place for a {component}. Leave it out by --only.")
    if to == "animatediff" and f"{PICTURE_INPUT}/motion/kernel" in checkpoint.components[component].parameters:
        return diffusers.PIA
    if to == "real-esrgan":
        return candidates[checkpoint.components[component].config.compact]
    if to == "raft" and component == "raft":
        return candidates[0 if checkpoint.components[component].config.separable else -1]
    if to == "lpips":
        return candidates[checkpoint.components[component].config.backbone == "vgg"]
    for candidate in candidates:
        if [candidate.name] == came_in:
            return candidate
    return candidates[-1] if _is_sdxl(checkpoint, component) else candidates[0]


def _is_sdxl(checkpoint: Checkpoint, component: str) -> bool:
    """Whether SDXL's form of a format is meant: linear projections in the UNet, two text encoders."""
    linear = getattr(checkpoint.components[component].config, "linear_projection", None)
    if linear is not None:
        return linear
    deep = re.compile(r".*/attention/blocks_[1-9]\d*/.*")  # SDXL's transformers are deeper than one block
    return "text_encoder_2" in checkpoint.components or any(
        deep.fullmatch(path) for tensors in checkpoint.tensors().values() for path in tensors
    )


def _write_folder(
    path: Path, checkpoint: Checkpoint, to: str, arguments: argparse.Namespace, progress: Callable[[int], object]
) -> None:
    """A component's folder, or a pipeline's with a folder for each."""
    path.mkdir()
    alone = len(checkpoint.components) == 1
    for name, component in checkpoint.components.items():
        write_component(
            path if alone else path / PIPELINE_FOLDERS.get(name, name),
            name,
            component.parameters,
            component.buffers,
            component.config,
            component.settings,
            variant=arguments.write_variant,
            max_shard_bytes=arguments.shard_size,
            flax=to == "flax",
            names=NEWER.get("".join(checkpoint.formats.get(name, []))) if arguments.to is None else None,
            progress=progress,
        )
    if not alone and "unet" in checkpoint.components:
        source = next((found for source in arguments.sources if (found := local(source)) and found.is_dir()), None)
        if source:
            copy_rest(source, path)
        told = checkpoint.told
        if told.prediction_type and not (path / "scheduler").exists():
            write_scheduler(path, told.prediction_type, bool(told.zero_terminal_snr))
        write_model_index(path, source)
    elif alone and "unet" in checkpoint.components and checkpoint.told.prediction_type not in (None, "epsilon"):
        warnings.warn(
            f"{arguments.output} is a UNet's folder, which does not say that it predicts "
            f"{checkpoint.told.prediction_type}: give that to whatever loads it.",
            stacklevel=2,
        )
