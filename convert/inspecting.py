"""`inspect`: what a file is. Only headers are read, and a damaged or partial file is described as far as it goes."""

import argparse
import re
from collections import Counter
from collections.abc import Iterator, Mapping

from convert.parts import part_of
from convert.tables import megabytes, table
from i2v_jax.errors import InputError
from i2v_jax.models.adapters import ADAPTERS
from i2v_jax.weights.checkpoint import open_checkpoint, open_files, recognise_in
from i2v_jax.weights.tensors import Entry, Tensors
from i2v_jax.weights.translate import Imported

FAMILIES = {
    768: "Stable Diffusion 1.x",
    1024: "Stable Diffusion 2.x",
    2048: "Stable Diffusion XL",
    1280: "SDXL refiner",
}
"""By the width of the prompt's tokens."""


def run(arguments: argparse.Namespace) -> int:
    """Prints a description of every source."""
    for source in arguments.sources:
        opened = open_files(source, arguments.variant)
        found = [
            (component, imported)
            for tensors, folder in opened
            for component, imported in recognise_in(tensors, folder).items()
        ]
        print(f"{source}: {'; '.join(describe(found))}")
        print(table(("part", "format", "tensors", "parameters", "dtype", "size"), _rows(found)))
        _print_notes(found, [tensors for tensors, _ in opened])
        if arguments.keys:
            print(table(("name", "path", "shape", "dtype"), _keys(found)))
    return 0


def describe(found: list[tuple[str, Imported]]) -> list[str]:
    """Returns what is known of the model: its family, version of the motion modules, adapters, LoRA."""
    paths = {
        f"{component}/{path}": entry.shape
        for component, imported in found
        for path, entry in (imported.parameters.entries | imported.buffers.entries).items()
    }
    return [*_family(paths), *_motion(paths), *_adapters(paths), *_image_tokens(paths), *_lora(paths)] or [
        f"{' and '.join(component for component, _ in found)} alone, of any family"
    ]


def _family(paths: Mapping[str, tuple[int, ...]]) -> Iterator[str]:
    for path, shape in paths.items():
        if re.fullmatch(r"(unet|controlnet)/.*/attn2/(\w+/)?to_k/(kernel|lora/down)", path):
            if "/motion/" not in path:
                yield FAMILIES.get(shape[0], f"prompt tokens {shape[0]} wide, no published family")
                return
    widths = {shape[-1] for path, shape in paths.items() if path.endswith("/motion/norm/scale")}
    if widths == {320, 640, 1280}:
        yield "for Stable Diffusion XL" if _levels(paths) == 3 else "for Stable Diffusion 1.5"


def _levels(paths: Mapping[str, tuple[int, ...]]) -> int:
    return 1 + max(
        (int(found[1]) for path in paths if (found := re.match(r"unet/down_blocks_(\d+)/", path))), default=-1
    )


def _motion(paths: Mapping[str, tuple[int, ...]]) -> Iterator[str]:
    modules = [path for path in paths if "/motion/" in path and "/lora/" not in path]
    if not modules:
        return
    positions = {shape[1] for path, shape in paths.items() if path.endswith("/positions") and len(shape) == 3}
    mid = any(path.startswith("unet/mid_block/") for path in modules)
    frames = f"{min(positions)} frames at most" if positions else "no position tables"
    version = "v2" if mid else "SDXL-beta" if _levels(paths) == 3 else "v1" if positions == {24} else "v3"
    if not positions and not mid and version == "v3":
        version = "v1 or v3"
    yield f"motion modules {version} ({frames})"


def _adapters(paths: Mapping[str, tuple[int, ...]]) -> Iterator[str]:
    for adapter in ADAPTERS.values():
        own = [path for path in paths if f"/{adapter.site}/{adapter.name}/" in path]
        lacking = [layer for layer in adapter.copies if not any(f"/{adapter.name}/{layer}/" in path for path in own)]
        product = adapter.title if adapter.product is None else adapter.product
        if own and product:
            left = f" without {', '.join(lacking)}, which is then the layers' own" if lacking else ""
            yield f"{product}{left}"


def _image_tokens(paths: Mapping[str, tuple[int, ...]]) -> Iterator[str]:
    if latents := paths.get("image_proj/latents"):
        yield f"IP-Adapter plus, {latents[0]} image tokens"
    elif "image_proj/norm/scale" in paths and "image_proj/proj/kernel" in paths:
        yield f"IP-Adapter, {paths['image_proj/proj/kernel'][1] // paths['image_proj/norm/scale'][0]} image tokens"


def _lora(paths: Mapping[str, tuple[int, ...]]) -> Iterator[str]:
    ranks = Counter(shape[-1] for path, shape in paths.items() if path.endswith("/lora/down"))
    if ranks:
        yield f"LoRA of rank {', '.join(map(str, sorted(ranks)))} on {sum(ranks.values())} layers"


def _rows(found: list[tuple[str, Imported]]) -> Iterator[tuple]:
    for component, imported in found:
        parts: dict[str, list[Entry]] = {}
        for path, entry in imported.parameters.entries.items():
            parts.setdefault(part_of(component, path), []).append(entry)
        if imported.buffers:
            parts[f"{component}: no parameters"] = list(imported.buffers.entries.values())
        for part, entries in parts.items():
            dtypes = ", ".join(sorted({entry.dtype.name for entry in entries}))
            yield (
                part,
                imported.table.name,
                len(entries),
                f"{sum(entry.size for entry in entries):,}",
                dtypes,
                megabytes(sum(entry.nbytes for entry in entries)),
            )


def _print_notes(found: list[tuple[str, Imported]], opened: list[Tensors]) -> None:
    for component, imported in found:
        for kind, names in (("unknown", imported.unknown), ("of impossible shape", imported.misshapen)):
            if names:
                print(f"{len(names)} {kind}, beside {component}: {', '.join(names[:5])}{', ...' if names[5:] else ''}")
    for tensors in opened:
        texts = {
            key: value
            for key, value in tensors.metadata.items()
            if key not in ("configs", "settings") and value not in ("", "pt")
        }
        for key, value in texts.items():
            print(f"metadata {key}: {value[:120]}{'...' if value[120:] else ''}")
    try:
        open_checkpoint(opened)
    except InputError as error:
        print(f"not convertible as it is: {error}")


def _keys(found: list[tuple[str, Imported]]) -> Iterator[tuple]:
    for component, imported in found:
        for path, entry in (imported.parameters.entries | imported.buffers.entries).items():
            yield imported.names[path], f"{component}/{path}", "x".join(map(str, entry.shape)), entry.dtype.name
