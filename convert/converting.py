"""What `import` and `export` share: open, choose, cast, check; and never write over what is there by accident."""

import argparse
import contextlib
import dataclasses
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import ml_dtypes
import numpy as np
from tqdm import tqdm

from convert.parts import part_of
from convert.sources import open_sources
from convert.tables import megabytes, table
from i2v_jax.errors import InputError, nearest
from i2v_jax.hub import on_disk
from i2v_jax.weights.checkpoint import Checkpoint
from i2v_jax.weights.lazy import cast, check_finite
from i2v_jax.weights.storage.open import WEIGHT_SUFFIXES
from i2v_jax.weights.tensors import Entry, Tensors

FOLDER_SUFFIXES = (".json", ".txt", ".safetensors", ".msgpack")
"""What `export` writes into folders."""
DEVICE_SUFFIXES = (".json", ".safetensors", ".onnx", ".stablehlo", ".npz", ".py", ".md")
"""What `device` does."""
DTYPES = {"f32": np.dtype(np.float32), "bf16": np.dtype(ml_dtypes.bfloat16), "f16": np.dtype(np.float16)}


def opened(arguments: argparse.Namespace) -> Checkpoint:
    """Opens the sources of a command line: whole, chosen by `--only`, cast to `--dtype`, each tensor checked as read.

    Raises:
        InputError: a source cannot be read or does not fit together; a pattern matches nothing.
    """
    checkpoint = selected(open_sources(arguments), arguments.only or [])

    def prepared(tensors: Tensors, names: Mapping[str, str]) -> Tensors:
        tensors = check_finite(tensors, names)
        return cast(tensors, DTYPES[arguments.dtype]) if arguments.dtype else tensors

    return dataclasses.replace(
        checkpoint,
        components={
            name: dataclasses.replace(component, parameters=prepared(component.parameters, component.names))
            for name, component in checkpoint.components.items()
        },
        lora={name: prepared(tensors, checkpoint.components[name].names) for name, tensors in checkpoint.lora.items()},
    )


def selected(checkpoint: Checkpoint, patterns: list[str]) -> Checkpoint:
    """Returns the tensors whose path, `component/...`, a pattern matches; all of them where there is no pattern.

    Raises:
        InputError: a pattern is no regular expression or matches nothing.
    """
    if not patterns:
        return checkpoint
    paths = [f"{name}/{path}" for name, tensors in checkpoint.tensors().items() for path in tensors]
    for pattern in patterns:
        try:
            matches = any(re.fullmatch(pattern, path) for path in paths)
        except re.error as error:
            raise InputError(f"--only {pattern!r} is no regular expression: {error}.") from error
        if not matches:
            hint = nearest(pattern, paths) or f" Paths look like {paths[0]!r}."
            raise InputError(f"--only {pattern!r} matches nothing in {checkpoint.source}.{hint}")

    def kept(component: str, tensors: Tensors) -> Tensors:
        return tensors.holding(
            {
                path: entry
                for path, entry in tensors.entries.items()
                if any(re.fullmatch(pattern, f"{component}/{path}") for pattern in patterns)
            }
        )

    components = {
        name: dataclasses.replace(
            component, parameters=kept(name, component.parameters), buffers=kept(name, component.buffers)
        )
        for name, component in checkpoint.components.items()
    }
    lora = {name: chosen for name, tensors in checkpoint.lora.items() if (chosen := kept(name, tensors))}
    components = {
        name: component
        for name, component in components.items()
        if component.parameters or component.buffers or name in lora
    }
    return dataclasses.replace(checkpoint, components=components, lora=lora)


@contextlib.contextmanager
def output(arguments: argparse.Namespace) -> Iterator[Path]:
    """Gives the place to write to, which becomes OUTPUT once the block ends well, and is removed where it does not.

    A link is replaced itself; what it points to stays.

    Raises:
        InputError: OUTPUT is there and `--overwrite` is not given; its folder is not there; it cannot be written.
    """
    path = Path(os.path.abspath(on_disk(arguments.output)))
    if os.path.lexists(path) and not arguments.overwrite:
        raise InputError(f"{arguments.output} is there already. Give another name, or --overwrite to replace it.")
    if not path.parent.is_dir():
        raise InputError(f"Cannot write {arguments.output}: there is no folder {path.parent}. Make it first.")
    if _is_folder(path):
        _check_replaceable(path, arguments.sources)
    unfinished, before = (
        path.with_name(f".{path.name}.{os.getpid()}.{kind}{path.suffix}") for kind in ("part", "before")
    )
    try:
        yield unfinished
        if os.path.lexists(path) and (_is_folder(path) or unfinished.is_dir()):
            os.rename(path, before)
        os.replace(unfinished, path)
    except OSError as error:
        raise InputError(f"Cannot write {arguments.output}: {error.strerror or error}.") from error
    except InputError as error:  # of what writes the file, which knows it by the name that it has until it is complete
        raise InputError(str(error).replace(str(unfinished), arguments.output)) from error
    finally:
        if os.path.lexists(before) and not os.path.lexists(path):
            os.rename(before, path)
        for leftover in (unfinished, before):
            if _is_folder(leftover):
                shutil.rmtree(leftover)
            elif os.path.lexists(leftover):
                leftover.unlink()


def _is_folder(path: Path) -> bool:
    """Whether the path is a folder, and no link to one."""
    return path.is_dir() and not path.is_symlink()


def _check_replaceable(folder: Path, sources: Sequence[str]) -> None:
    """Raises unless a folder may be deleted: it holds a model and nothing else, and none of the sources."""
    for source in sources:
        if Path(source).exists() and folder.resolve() in (Path(source).resolve(), *Path(source).resolve().parents):
            raise InputError(f"{folder} holds the source {source}. Give another OUTPUT.")
    if (folder / "_CHECKPOINT_METADATA").is_file():  # orbax's
        return
    is_export = (folder / "run.json").is_file() and (folder / "run.py").is_file()  # of `device`
    is_known = _is_of_device if is_export else _is_of_model
    strange = [path for path in folder.rglob("*") if path.is_file() and not is_known(path)]
    if strange:
        raise InputError(f"--overwrite would delete {strange[0]}, which is no part of a model. Give another OUTPUT.")


def _is_of_model(path: Path) -> bool:
    """Whether a file is of those that `export` writes into a folder: weights have a config beside them."""
    return path.suffix in FOLDER_SUFFIXES and (
        path.suffix not in WEIGHT_SUFFIXES or (path.parent / "config.json").is_file()
    )


def _is_of_device(path: Path) -> bool:
    """Whether a file is of those that `device` writes."""
    return path.suffix in DEVICE_SUFFIXES


@contextlib.contextmanager
def writing(path: Path, checkpoint: Checkpoint) -> Iterator[Callable[[int], object]]:
    """Shows a bar of the bytes that a checkpoint has; gives the function that moves it.

    Raises:
        InputError: the disk of `path` has not so much room.
    """
    total = sum(tensors.nbytes for tensors in checkpoint.tensors().values())
    if (free := shutil.disk_usage(path.parent).free) < total:
        raise InputError(f"Cannot write {path}: it takes {megabytes(total)}, and {megabytes(free)} are free there.")
    with tqdm(total=total, desc="writing", unit="B", unit_scale=True, unit_divisor=1000, dynamic_ncols=True) as bar:
        yield bar.update


def summary(checkpoint: Checkpoint) -> str:
    """Returns what was converted, a row for each part."""
    parts: dict[str, list[Entry]] = {}
    for name, component in checkpoint.components.items():
        for tensors in (component.parameters, checkpoint.lora.get(name, Tensors.of({}))):
            for path, entry in tensors.entries.items():
                parts.setdefault(part_of(name, path), []).append(entry)
        if component.buffers:
            parts[f"{name}: no parameters"] = list(component.buffers.entries.values())
    rows = []
    for part, entries in parts.items():
        count, size = sum(entry.size for entry in entries), sum(entry.nbytes for entry in entries)
        dtypes = ", ".join(sorted({entry.dtype.name for entry in entries}))
        rows.append((part, len(entries), f"{count:,}", dtypes, megabytes(size)))
    return table(("part", "tensors", "parameters", "dtype", "size"), rows)
