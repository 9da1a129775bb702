"""Textual inversions on the command line: what one is, and copies in the layouts that people share, value for value."""

import argparse
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from convert.converting import DTYPES, output
from convert.tables import megabytes, table
from i2v_jax.errors import InputError
from i2v_jax.weights.embeddings import (
    A1111,
    CLIP_G,
    CLIP_L,
    DIFFUSERS,
    FAMILIES,
    KOHYA,
    Embedding,
    by_token,
    layout_of,
    opened,
    read,
    token_and_file,
)
from i2v_jax.weights.lazy import cast
from i2v_jax.weights.storage.pickle import PICKLE_SUFFIXES, save_pickle
from i2v_jax.weights.storage.safetensors import save_tensors
from i2v_jax.weights.tensors import Tensors

FORMATS = {"embedding-a1111": A1111, "embedding-kohya": KOHYA, "embedding-diffusers": DIFFUSERS}
"""Name for `--to` -> the layout."""

ONE = "vectors"  # what the vectors of a single text encoder are called in paths
Parts = Mapping[str, Mapping[str, np.ndarray]]
"""Token -> text encoder -> vectors."""


def are_meant(sources: Sequence[str], to: str | None = None) -> bool:
    """Whether a command line is about textual inversions."""
    return to in FORMATS or all(opened(token_and_file(source)[1]) for source in sources)


def inspect(source: str) -> bool:
    """Prints what a source of textual inversions is; returns False for one of something else."""
    files = opened(source)
    if not files:
        return False
    rows, families = [], {}
    for tensors in files:
        for token, text_encoder, array in _vectors(read(tensors.source)):
            width = array.shape[-1]
            families[text_encoder if text_encoder != ONE else FAMILIES.get(width, f"prompt tokens {width} wide")] = None
            rows.append((token, text_encoder, len(array), width, array.dtype.name, megabytes(array.nbytes)))
    family = "Stable Diffusion XL" if CLIP_G in families else "a CLIP-L text encoder" if CLIP_L in families else None
    tokens = ", ".join(dict.fromkeys(repr(row[0]) for row in rows))
    print(
        f"{source}: a textual inversion (embedding), as {layout_of(files[0])} writes it; "
        f"for {family or ' and '.join(families)}; in the prompt: {tokens}"
    )
    print(f"Give it as weights.embeddings={source}, or with a token of your own as TOKEN={source}.")
    print(table(("token", "text encoder", "vectors", "width", "dtype", "size"), rows))
    return True


def export(arguments: argparse.Namespace) -> int:
    """Writes the sources' textual inversions in another layout, or as they came."""
    if arguments.lora or arguments.config:
        raise InputError("Textual inversions take neither --lora nor --config.")
    if (suffix := Path(arguments.output).suffix) not in (".safetensors", *PICKLE_SUFFIXES):
        raise InputError(f"OUTPUT {arguments.output}: an embedding is written as .safetensors, .pt or .bin.")
    found = by_token([embedding for source in arguments.sources for embedding in read(source)])
    parts = _chosen(found, arguments.only or [], arguments.dtype)
    first = opened(token_and_file(arguments.sources[0])[1])
    layout = FORMATS[arguments.to] if arguments.to else layout_of(first[0]) if first else KOHYA
    tensors, beside = _laid_out(parts, layout, suffix)
    with output(arguments) as path:
        if suffix == ".safetensors":
            save_tensors(path, tensors, {"format": "pt"})
        else:
            save_pickle(path, tensors, None if layout == A1111 else "", beside=beside)
    tokens = ", ".join(map(repr, parts))
    stem = Path(arguments.output).stem
    word = tokens if layout == DIFFUSERS else f"{stem!r}, the name of the file"
    print(f"{arguments.output}: {tokens} as {layout} writes it ({megabytes(tensors.nbytes)}); in the prompt: {word}")
    return 0


def refuse_import(sources: Sequence[str]) -> None:
    """Raises InputError for textual inversions, which need no import."""
    if are_meant(sources):
        raise InputError(
            f"{sources[0]} is a textual inversion, which is read as it is: give it as weights.embeddings. `export --to "
            f"{'|'.join(FORMATS)}` copies it into another layout."
        )


def _vectors(embeddings: Sequence[Embedding]) -> Iterator[tuple[str, str, np.ndarray]]:
    for embedding in embeddings:
        for text_encoder, array in embedding.vectors.items():
            yield embedding.token, text_encoder or ONE, array


def _chosen(found: Mapping[str, list[Embedding]], patterns: list[str], dtype: str | None) -> Parts:
    """The vectors whose path `embedding/TOKEN/ENCODER` a pattern matches, in a dtype."""
    chosen: dict[str, dict[str, np.ndarray]] = {}
    for token, same in found.items():
        given = list(_vectors(same))
        for _, text_encoder, array in given:
            if text_encoder == ONE and len(given) > 1:  # a file for each text encoder
                text_encoder = CLIP_L if array.shape[-1] == min(x.shape[-1] for _, _, x in given) else CLIP_G
            path = f"embedding/{token}/{text_encoder}"
            if not patterns or any(re.fullmatch(pattern, path) for pattern in patterns):
                chosen.setdefault(token, {})[text_encoder] = array
    if not chosen:
        raise InputError(f"--only {' '.join(patterns)} matches nothing; paths look like embedding/TOKEN/{CLIP_L}.")
    if dtype:
        chosen = {token: dict(cast(Tensors.of(held), DTYPES[dtype])) for token, held in chosen.items()}
    return chosen


def _laid_out(parts: Parts, layout: str, suffix: str) -> tuple[Tensors, dict]:
    """What a file of that layout holds: tensors, and what stands beside them in a pickle."""
    if layout != DIFFUSERS and len(parts) > 1:
        raise InputError(
            f"{layout} has one embedding a file, and there are {len(parts)}: {', '.join(parts)}. Choose one by --only "
            "'embedding/TOKEN/.*'."
        )
    if layout != KOHYA and any(len(held) > 1 for held in parts.values()):
        raise InputError(
            f"{layout} has the vectors of one text encoder a file, and here are {CLIP_L} and {CLIP_G}. Choose one by "
            f"--only 'embedding/.*/{CLIP_L}', or write embedding-kohya."
        )
    if layout == DIFFUSERS:
        single = {token: next(iter(held.values())) for token, held in parts.items()}
        return Tensors.of({token: array[0] if len(array) == 1 else array for token, array in single.items()}), {}
    ((token, held),) = parts.items()
    if layout == KOHYA:
        return Tensors.of({"emb_params" if name == ONE else name: array for name, array in held.items()}), {}
    if suffix not in PICKLE_SUFFIXES:
        raise InputError(f"{layout} is a pickle: give OUTPUT a name that ends in .pt, or write embedding-kohya.")
    beside = {"string_to_token": {"*": 265}, "name": token}
    return Tensors.of({"string_to_param.*": next(iter(held.values()))}), beside
