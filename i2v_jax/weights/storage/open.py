"""Weights wherever they are: a file of any kind, a folder of diffusers or transformers, shards, orbax, a hub id.

Whatever the file, the caller sees a lazy mapping of names to tensors.
"""

import dataclasses
import itertools
import os
from pathlib import Path

from i2v_jax.errors import InputError
from i2v_jax.hub import fetch, local
from i2v_jax.weights.storage.files import ORBAX_METADATA, read_json
from i2v_jax.weights.storage.msgpack import MSGPACK_STARTS, open_msgpack
from i2v_jax.weights.storage.pickle import NO_TORCH, PICKLE_STARTS, PICKLE_SUFFIXES, has_torch, open_pickle
from i2v_jax.weights.storage.safetensors import open_safetensors
from i2v_jax.weights.storage.torchscript import is_torchscript, open_torchscript
from i2v_jax.weights.tensors import Tensors

MODEL_STEMS = ("diffusion_pytorch_model", "model", "pytorch_model", "diffusion_flax_model", "flax_model")
LORA_STEMS = ("pytorch_lora_weights", "adapter_model")
WEIGHTS = MODEL_STEMS + LORA_STEMS
"""File stems of diffusers, transformers and PEFT."""
SUFFIXES = ("safetensors", "bin", "msgpack")  # in the order of preference
WEIGHT_SUFFIXES = (".safetensors", ".msgpack", *PICKLE_SUFFIXES)
FOLDERS = ("unet", "motion_adapter", "controlnet", "adapter", "vae", "text_encoder", "text_encoder_2", "image_encoder")
"""The components' folders within a pipeline's."""
OTHER_FILES = {
    b"GGUF": ", but GGUF, quantised weights: take the same model as .safetensors in float16 or bfloat16",
    b"<!": ", but a web page: the download was refused or wanted a login. Fetch the file itself",
    b"<html": ", but a web page: the download was refused or wanted a login. Fetch the file itself",
    b"{": ", but JSON: a config, or what a server answered. Give the weights that it lies beside",
    b"\x89HDF": ", but HDF5, of Keras or TensorFlow. Take the same model as .safetensors",
    b"\x08": ", but perhaps ONNX. Take the same model as .safetensors",
    b"7z\xbc\xaf": ", but a 7-Zip archive. Unpack it first",
    b"Rar!": ", but a RAR archive. Unpack it first",
    b"\x1f\x8b": ", but a gzip archive. Unpack it first",
}
"""How files begin that are given by mistake, and what to say of them."""
PREFIXES = ("module.", "params.", "params_ema.", "_forward_module.")
"""Of PyTorch's data-parallel training, of Flax's variable collections and of BasicSR, whose averaged weights are in the
third, of Lightning's with DeepSpeed."""


def open_tensors(source: "str | Path | Tensors", folder: str = "", variant: str | None = None) -> Tensors:
    """Opens weights wherever they are, without reading a tensor.

    Args:
        source: a file, that is safetensors, a Flax checkpoint (`.msgpack`) or a pickle (`.ckpt`, `.pth`, `.pt`,
            `.bin`); a folder of diffusers or transformers (`config.json` beside the weights, sharded or not); a
            pipeline's folder, with the component in `folder`; an orbax checkpoint; a hub id `owner/name`, or
            `owner/name/path/to/file.safetensors`; tensors already open are returned as they are.
        folder: the component's folder within a pipeline, such as `unet`.
        variant: which precision of several, such as `fp16`; by default the full one, or fp16 where it is alone.

    Raises:
        InputError: nothing is there, or it is damaged, or it is no format we know.
    """
    if isinstance(source, Tensors):
        return source
    path = local(source)
    if path is None:
        tensors = _open_hub(source, folder, variant)
    elif path.is_dir():
        tensors = _open_folder(path, folder, variant)
    else:
        tensors = _open_file(path)
    return _without_prefix(dataclasses.replace(tensors, source=str(source)))


def check_reader(source: str | Path, folder: str = "") -> None:
    """Raises InputError for a pickle where PyTorch, which alone reads pickles safely, is not installed.

    Nothing is fetched for it: files on the hub are judged by their names. Arguments are those of `open_tensors`.
    """
    path = local(source)
    if path and path.is_dir():
        path = _find_weights(path, folder, None)
        is_pickle = path is not None and ".bin" in path.suffixes
    else:
        is_pickle = (
            (_start(path).startswith(PICKLE_STARTS) and not is_torchscript(path))
            if path
            else _hub_suffix(source) in PICKLE_SUFFIXES
        )
    if is_pickle and not has_torch():
        raise InputError(f"{path or source} {NO_TORCH}")


def files_by_hand(
    source: str | Path, folder: str = "", variant: str | None = None, is_pipeline: bool = False
) -> list[str]:
    """Returns which files of a hub's model a person would fetch for `open_tensors`; patterns where names are not known.

    Args:
        source: a hub id.
        folder, variant: as for `open_tensors`.
        is_pipeline: whether the source is known to have that folder.
    """
    inside = Path(*Path(source).parts[2:])
    if inside.suffix in WEIGHT_SUFFIXES:
        config = [str(inside.parent / "config.json")] if inside.stem in MODEL_STEMS else []
        return [*config, str(inside)]
    end = f".{variant}.safetensors" if variant else ".safetensors"
    if not folder and inside.parts:
        return [f"{inside}/config.json", f"{inside}/*model{end}"]
    if not folder:
        alone = [f"{stem}{end}" for stem in WEIGHTS if "flax" not in stem]
        return ["*.json", "*.txt", *(f"{place}/*model{end}" for place in FOLDERS), *alone]
    stem = "model" if "encoder" in folder else MODEL_STEMS[0]
    places = [inside / folder] if is_pipeline else [inside] if inside.parts else [inside, inside / folder]
    return [str(place / name) for place in places for name in ("config.json", f"{stem}{end}")]


def holds_weights(folder: Path) -> bool:
    """Whether weights lie in this very folder, under a name that diffusers or transformers gives them."""
    return folder.is_dir() and _find_weights(folder, "", None) is not None


def _open_file(path: Path) -> Tensors:
    start = _start(path)
    config = read_json(path.parent / "config.json") if (path.parent / "config.json").is_file() else None
    if start[8:9] == b"{":
        tensors = open_safetensors(path)
    elif is_torchscript(path):
        tensors = open_torchscript(path)
    elif start.startswith(PICKLE_STARTS):
        tensors = open_pickle(path)
    elif start.startswith(MSGPACK_STARTS):
        tensors = open_msgpack(path)
    elif start.startswith(b"version https://git-lfs"):
        raise InputError(f"{path} is a Git LFS pointer, not the weights. Fetch them with `git lfs pull`.")
    else:
        is_known = next((what for begin, what in OTHER_FILES.items() if start.lstrip().startswith(begin)), "")
        raise InputError(
            f"{path} ({path.stat().st_size} bytes) is neither safetensors nor a PyTorch pickle nor a Flax checkpoint"
            f"{is_known}."
        )
    return dataclasses.replace(tensors, config=config)


def _start(path: Path) -> bytes:
    if not path.is_file():  # a pipe or a device might never end
        raise InputError(f"{path} is no file.")
    try:
        with open(path, "rb") as file:
            return file.read(64)
    except OSError as error:
        raise InputError(f"Cannot read {path}: {error.strerror}.") from error


def _open_folder(path: Path, folder: str, variant: str | None) -> Tensors:
    if found := _find_weights(path, folder, variant):
        return _open_shards(found) if found.suffix == ".json" else _open_file(found)
    if (path / ORBAX_METADATA).is_file():
        from i2v_jax.weights.storage.orbax import open_orbax  # orbax takes seconds to import

        return open_orbax(path)
    place = path / folder if (path / folder).is_dir() else path
    held = ", ".join(sorted(os.listdir(place))[:8]) or "nothing"
    wanted = " or ".join(f"{stem}{f'.{variant}' if variant else ''}.safetensors" for stem in WEIGHTS[:2])
    raise InputError(f"No weights in {place}: it holds {held}. Wanted: {wanted}.")


def _find_weights(path: Path, folder: str, variant: str | None) -> Path | None:
    places = [place for place in (path / folder, path) if place.is_dir()]
    for place, stems in itertools.product(places, (MODEL_STEMS, LORA_STEMS)):
        for suffix, middle, stem in itertools.product(SUFFIXES, _variants(variant), stems):
            names = (
                f"{stem}.{suffix}.index{middle}.json",
                f"{stem}{middle}.{suffix}.index.json",
                f"{stem}{middle}.{suffix}",
            )
            for name in names:
                if (place / name).is_file():
                    return place / name
    return None


def _variants(variant: str | None) -> list[str]:
    return [f".{variant}"] if variant else ["", ".fp16"]


def _open_shards(index: Path) -> Tensors:
    listing = read_json(index)
    places = listing.get("weight_map")
    if not isinstance(places, dict) or not places or not all(isinstance(name, str) for name in places.values()):
        raise InputError(f"{index} has no 'weight_map' of tensor names to files.")
    if ".msgpack" in index.suffixes:  # transformers joins the names of Flax parameters by slashes there
        places = {name.replace("/", "."): place for name, place in places.items()}
    shards = {}
    for name in sorted(set(places.values())):
        if Path(name).name != name:
            raise InputError(f"{index} names {name[:200]!r}: a shard lies beside its index.")
        if name not in os.listdir(index.parent):
            raise InputError(f"{index} names {name[:200]}, which is not there. Fetch it, or fetch the model again.")
        shards[name] = _open_file(index.parent / name)
    missing = [f"{name} ({place})" for name, place in places.items() if name not in shards[place]]
    if missing:
        raise InputError(f"{index} promises tensors that their files lack: {', '.join(missing[:3])}.")
    entries = {name: shards[place].entries[name] for name, place in places.items()}
    first = next(iter(shards.values()))
    return dataclasses.replace(first, entries=entries)


def _open_hub(source: str | Path, folder: str, variant: str | None) -> Tensors:
    """Fetches only the wanted component."""
    check_reader(source)
    if _hub_suffix(source) in WEIGHT_SUFFIXES:
        path = fetch(source, [".", "../config.json", "../adapter_config.json"], files_by_hand(source))
        if not path.is_file():
            raise InputError(f"{source} does not exist, on this machine or on the hub. Check the name.")
        return _open_file(path)
    suffixes = [suffix for suffix in SUFFIXES if suffix != "bin" or has_torch()]
    for suffix, middle in itertools.product(suffixes, _variants(variant)):
        names = ["config.json", "adapter_config.json"]
        for stem in WEIGHTS:
            names += [f"{stem}{middle}.{suffix}", f"{stem}*-of-*{suffix}", f"{stem}*{suffix}.index*.json"]
        patterns = [str(place / name) for place in (Path(), Path(folder)) for name in names]
        path = fetch(source, patterns, files_by_hand(source, folder, variant))
        if _find_weights(path, folder, variant):
            return _open_folder(path, folder, variant)
    known = "weights" if has_torch() else "safetensors (a PyTorch pickle would take `pip install torch`)"
    raise InputError(f"{source} on the hub has no {known} in {folder or 'its root'}.")


def _hub_suffix(source: str | Path) -> str:
    """Suffix of the file in a hub id `owner/name/inside`; "" for a whole model, whose name may have a dot in it."""
    return Path(*Path(source).parts[2:]).suffix


def _without_prefix(tensors: Tensors) -> Tensors:
    if all(name.startswith(("params.", "params_ema.")) for name in tensors):  # both: the averaged ones are the better
        averaged = {name: entry for name, entry in tensors.entries.items() if name.startswith("params_ema.")}
        tensors = dataclasses.replace(tensors, entries=averaged or tensors.entries)
    without = {prefix: [name for name in tensors if not name.startswith(prefix)] for prefix in PREFIXES}
    prefix = min(PREFIXES, key=lambda prefix: len(without[prefix]))
    if len(without[prefix]) > len(tensors) / 2 or not tensors:
        return tensors
    if strange := without[prefix]:
        raise InputError(f"{tensors.source}: {strange[0]!r} does not start with {prefix!r}, as most of its names do.")
    entries = {name.removeprefix(prefix): entry for name, entry in tensors.entries.items()}
    return dataclasses.replace(tensors, entries=entries, prefix=prefix)
