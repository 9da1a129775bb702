"""`export`: any format into those of the PyTorch and Flax world, as a file, or as a folder for `from_pretrained`."""

import argparse
import dataclasses
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from convert.converting import opened, output, selected, summary, writing
from convert.formats import FORMATS
from convert.parts import part_of
from i2v_jax.errors import InputError, nearest
from i2v_jax.hub import local
from i2v_jax.models.adapters import ADAPTER_PATH
from i2v_jax.weights.checkpoint import Checkpoint
from i2v_jax.weights.folders import copy_rest, write_component, write_model_index
from i2v_jax.weights.formats import TABLES, ip_adapter, lora, original
from i2v_jax.weights.formats.diffusers import PUBLISHED_UNET, PUBLISHED_UNET_LINEAR
from i2v_jax.weights.formats.flax import FLAX_TABLES
from i2v_jax.weights.low_rank import PEFT_METADATA, export_lora
from i2v_jax.weights.names import Table
from i2v_jax.weights.storage.msgpack import save_msgpack
from i2v_jax.weights.storage.open import WEIGHT_SUFFIXES
from i2v_jax.weights.storage.pickle import save_pickle
from i2v_jax.weights.storage.safetensors import save_tensors
from i2v_jax.weights.tensors import Tensors
from i2v_jax.weights.translate import export_tensors, position_tables

WITHOUT_ADAPTERS = rf"(?!{ADAPTER_PATH.pattern}|.*/lora/).*"
BASE = rf"(?!.*/motion/){WITHOUT_ADAPTERS}"


@dataclasses.dataclass(frozen=True)
class FileLayout:
    """How a format of the command line is written.

    Attributes:
        tables: component -> its table for SD1.5, and for SDXL where that is another.
        only: the paths that belong there.
        nesting: how a pickle's names are nested: all below one name, or (None) by their first part.
        folder: whether it may be a folder of components.
    """

    tables: Mapping[str, tuple[Table, ...]]
    only: str = BASE
    nesting: str | None = "state_dict"
    folder: bool = False


LAYOUTS = {
    "diffusers": FileLayout(
        dict.fromkeys(("unet", "controlnet", "vae", "text_encoder", "text_encoder_2", "image_encoder"), ()),
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
        },
    ),
    "i2v-adapter": FileLayout(
        {"unet": (PUBLISHED_UNET, PUBLISHED_UNET_LINEAR)},
        only=r"(?!.*/lora/).*",
    ),
    "animatediff": FileLayout(
        {"unet": (PUBLISHED_UNET, PUBLISHED_UNET_LINEAR)},
        only=r"unet/(?!.*/lora/).*/motion/.*",
    ),
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


def run(arguments: argparse.Namespace) -> int:
    """Writes OUTPUT and prints what it holds."""
    if arguments.to is not None and arguments.to not in FORMATS:
        known = ", ".join(FORMATS)
        raise InputError(f"--to {arguments.to}: no such format.{nearest(arguments.to, FORMATS)} Known: {known}.")
    suffix = Path(arguments.output).suffix
    if arguments.to == "diffusers" and suffix:
        raise InputError(
            f"--to diffusers writes a folder; {arguments.output} is a file's name. Leave its {suffix} out."
        )
    is_file = suffix in WEIGHT_SUFFIXES
    if not is_file and not (arguments.to and LAYOUTS[arguments.to].folder):
        known = ", ".join(WEIGHT_SUFFIXES)
        raise InputError(f"OUTPUT {arguments.output} names no file of weights; wanted one that ends in {known}.")
    with output(arguments) as path:
        whole = opened(arguments)
        checkpoint = _of_format(whole, arguments.to)
        with writing(path, checkpoint) as update:
            if is_file:
                _write_file(path, checkpoint, arguments.to, suffix, update)
            else:
                _write_folder(path, checkpoint, arguments, update)
    print(f"{arguments.output}:\n{summary(checkpoint)}")
    if left := sorted(_parts(whole) - _parts(checkpoint)):
        print(f"left out, as {arguments.to} has no place for them: {', '.join(left)}")
    return 0


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
    path: Path, checkpoint: Checkpoint, to: str | None, suffix: str, progress: Callable[[int], object]
) -> None:
    tensors = exported(checkpoint, to)
    if suffix == ".safetensors":
        save_tensors(path, tensors, tensors.metadata, progress)
    elif PEFT_METADATA in tensors.metadata:
        raise InputError(f"{to} keeps alphas in the metadata of .safetensors, and {suffix} has none. Write the former.")
    elif suffix == ".msgpack":
        save_msgpack(path, tensors, progress)
    else:
        save_pickle(path, tensors, LAYOUTS[to].nesting if to else "state_dict", progress)


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
        if getattr(component.config, "motion", None) and component.parameters:
            made = position_tables(component.parameters, component.config.motion.max_positions)
            buffers = made.holding(made.entries | buffers.entries)
        parts |= export_tensors(component.parameters, tables[name], buffers).entries
    if checkpoint.lora:
        low_rank = export_lora(checkpoint.lora, {name: tables[name] for name in checkpoint.lora})
        parts |= low_rank.entries
        metadata |= low_rank.metadata
    prefix = checkpoint.prefix if to is None else ""
    return Tensors({prefix + name: entry for name, entry in parts.items()}, checkpoint.source, metadata)


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
    path: Path, checkpoint: Checkpoint, arguments: argparse.Namespace, progress: Callable[[int], object]
) -> None:
    """A component's folder, or a pipeline's with a folder for each."""
    path.mkdir()
    alone = len(checkpoint.components) == 1
    for name, component in checkpoint.components.items():
        write_component(
            path if alone else path / name,
            name,
            component.parameters,
            component.buffers,
            component.config,
            component.settings,
            variant=arguments.write_variant,
            max_shard_bytes=arguments.shard_size,
            flax=arguments.to == "flax",
            progress=progress,
        )
    if not alone and "unet" in checkpoint.components:
        source = next((found for source in arguments.sources if (found := local(source)) and found.is_dir()), None)
        if source:
            copy_rest(source, path)
        write_model_index(path, source)
