"""Textual inversions (embeddings): vectors that a token in the prompt stands for, in the layouts that people share.

AUTOMATIC1111's `string_to_param`; kohya-ss's `emb_params`, or `clip_l` and `clip_g`; diffusers' `{token: vectors}`.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from i2v_jax.errors import InputError
from i2v_jax.hub import fetch, local
from i2v_jax.weights.lazy import check_finite
from i2v_jax.weights.storage.open import WEIGHT_SUFFIXES, open_tensors
from i2v_jax.weights.tensors import Tensors

A1111, KOHYA, DIFFUSERS = "AUTOMATIC1111", "kohya-ss", "diffusers"
"""The layouts."""

CLIP_L, CLIP_G = "clip_l", "clip_g"
COMPONENTS = {CLIP_L: "text_encoder", CLIP_G: "text_encoder_2"}
"""What files call a text encoder -> its component."""
FAMILIES = {768: "Stable Diffusion 1.x", 1024: "Stable Diffusion 2.x", 1280: "the second text encoder of SDXL"}
"""Width of vectors -> whose they are."""

FILES = ("learned_embeds.safetensors", "learned_embeds.bin", "learned_embeds_2.safetensors", "learned_embeds_2.bin")
"""What diffusers' trainings call their files in a folder; those with 2 are for SDXL's second text encoder."""
PARAMETER = "string_to_param."
BRACKETED = re.compile(r"<.+>")
MOST = 1024  # tokens in a file


class Embedding(NamedTuple):
    """What one file holds for a token.

    Attributes:
      token: that stands for it in the prompt.
      vectors: text encoder ("clip_l", "clip_g"; "" where the file does not say which) -> [number, width], as stored.
      source: the file, for messages.
    """

    token: str
    vectors: dict[str, np.ndarray]
    source: str


def token_and_file(text: str) -> tuple[str, str]:
    """Reads `FILE` or `TOKEN=FILE`; the token is "" where the file tells it. A file may have `=` in its name."""
    token, equals, source = text.partition("=")
    return (token.strip(), source) if equals and not local(text) else ("", text)


def files_of(source: str) -> list[str]:
    """Returns the files of a source: itself, or those of a folder, here or on the hub.

    Raises:
      InputError: there are none.
    """
    if (local(source) or Path(source)).is_file() or Path(source).suffix in WEIGHT_SUFFIXES:
        return [source]
    folder = local(source) or fetch(source, FILES)
    found = [str(folder / name) for name in FILES if (folder / name).is_file()]
    safe = [name for name in found if name.endswith(".safetensors")]
    if not found:
        raise InputError(f"{source} holds no embedding; wanted a file of one, or a folder with {FILES[0]}.")
    return [name for name in found if name in safe or name.replace(".bin", ".safetensors") not in safe]


def layout_of(tensors: Tensors) -> str | None:
    """Returns the layout of a file of embeddings; None where it is none."""
    shapes = {name: entry.shape for name, entry in tensors.entries.items()}
    parameters = [name for name in shapes if name.startswith(PARAMETER)]
    if parameters:
        return A1111
    if set(shapes) in ({"emb_params"}, {CLIP_L}, {CLIP_G}, {CLIP_L, CLIP_G}):
        return KOHYA
    fits = all(0 < len(shape) < 3 and not re.search(r"[./]", name) for name, shape in shapes.items())
    return DIFFUSERS if fits and 0 < len(shapes) <= MOST else None


def is_embedding(tensors: Tensors) -> bool:
    """Whether a file is known for one of embeddings by what it holds alone."""
    layout = layout_of(tensors)
    if layout != DIFFUSERS:
        return layout is not None
    return all(BRACKETED.fullmatch(name) or entry.shape[-1] in FAMILIES for name, entry in tensors.entries.items())


def read(text: str) -> list[Embedding]:
    """Reads what `weights.embeddings` names.

    Args:
      text: `FILE` or `TOKEN=FILE`; a file of one embedding, or of several in diffusers' layout; a folder, a hub id.

    Raises:
      InputError: no embedding, vectors that are not finite, or one token for a file of several.
    """
    token, source = token_and_file(text)
    found = [embedding for file in files_of(source) for embedding in _of_file(open_tensors(file))]
    if token and len({embedding.token for embedding in found}) > 1:
        raise InputError(
            f"{text}: {source} holds {len(found)} embeddings, of tokens {', '.join(one.token for one in found)}; one "
            "cannot stand for all. Leave the token out."
        )
    for embedding in found:
        _check_token(token or embedding.token, source)
    return [embedding._replace(token=token) if token else embedding for embedding in found]


def _of_file(tensors: Tensors) -> list[Embedding]:
    source, layout = tensors.source, layout_of(tensors)
    if layout is None:
        names = ", ".join(sorted(tensors)[:3])
        raise InputError(
            f"{source} is no textual inversion: it holds {len(tensors)} tensors, {names} ... Wanted string_to_param "
            "(AUTOMATIC1111), emb_params or clip_l and clip_g (kohya-ss), or tokens (diffusers)."
        )
    finite = check_finite(tensors)
    if layout == A1111:
        names = [name for name in tensors if name.startswith(PARAMETER)]
        if len(names) > 1:
            raise InputError(f"{source} holds {len(names)} embeddings ({', '.join(names)}); wanted one a file.")
        return [Embedding(Path(source).stem, {"": _vectors(finite, names[0])}, source)]
    if layout == KOHYA:
        vectors = {"" if name == "emb_params" else name: _vectors(finite, name) for name in sorted(tensors)[::-1]}
        return [Embedding(Path(source).stem, vectors, source)]
    return [Embedding(name, {"": _vectors(finite, name)}, source) for name in tensors]


def _vectors(tensors: Tensors, name: str) -> np.ndarray:
    entry = tensors.entries[name]
    if len(entry.shape) not in (1, 2) or 0 in entry.shape or "float" not in entry.dtype.name:
        raise InputError(
            f"{tensors.source}: {name!r} is {entry.dtype} of shape {entry.shape}; wanted vectors [number, width]."
        )
    return entry.read().reshape(-1, entry.shape[-1])


def _check_token(token: str, source: str) -> None:
    if not token.strip() or token != token.strip():
        raise InputError(f"{source}: {token!r} can be no word of a prompt. Name another: TOKEN={source}.")


def by_token(embeddings: Iterable[Embedding]) -> dict[str, list[Embedding]]:
    """Returns what there is for each token, in order; capitals make no difference.

    One token may have a file for each text encoder.

    Raises:
      InputError: a token is defined twice.
    """
    found: dict[str, list[Embedding]] = {}
    for embedding in embeddings:
        same = found.setdefault(embedding.token.lower(), [])
        for other in same:
            if _overlap(embedding.vectors, other.vectors):
                raise InputError(
                    f"The token {embedding.token!r} is defined twice, by {other.source} and by {embedding.source}. "
                    f"Leave one out, or name it otherwise: weights.embeddings='OTHER={embedding.source}'."
                )
        same.append(embedding)
    return {same[0].token: same for same in found.values()}


def _overlap(one: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray]) -> bool:
    """Whether both have vectors for the same text encoder, which their width tells where their file does not."""
    return any(
        first.shape[-1] == second.shape[-1] and (name == other_name or not name or not other_name)
        for name, first in one.items()
        for other_name, second in other.items()
    )


def ids(embeddings: Mapping[str, Sequence[Embedding]]) -> dict[str, list[int]]:
    """Returns the ids of tokens, which count down from -1: token -> one for each of its vectors."""
    found, last = {}, 0
    for token, parts in embeddings.items():
        counts = {len(array) for part in parts for array in part.vectors.values()}
        if len(counts) > 1:
            sources = " and ".join(dict.fromkeys(part.source for part in parts))
            raise InputError(
                f"{sources}: {token!r} has {' and '.join(map(str, sorted(counts)))} vectors for the text encoders; "
                "wanted as many for each."
            )
        count = counts.pop()
        found[token] = [last - number for number in range(1, count + 1)]
        last -= count
    return found


def vectors_for(
    embeddings: Mapping[str, Sequence[Embedding]], widths: Mapping[str, int], title: str
) -> dict[str, np.ndarray]:
    """Returns the vectors of all tokens for each text encoder, in the order of `ids`.

    Args:
      embeddings: from `by_token`.
      widths: text encoder of the model -> its width.
      title: of the model's family, for messages.

    Raises:
      InputError: vectors of another width or family, or none for one of the text encoders.
    """
    rows: dict[str, list[np.ndarray]] = {component: [] for component in widths}
    for token, parts in embeddings.items():
        held: dict[str, np.ndarray] = {}
        for part in parts:
            for name, array in part.vectors.items():
                held[_component(token, part.source, name, array.shape[-1], widths, held, title)] = array
        if lacking := [component for component in widths if component not in held]:
            sources = " and ".join(dict.fromkeys(part.source for part in parts))
            raise InputError(
                f"{sources}: the embedding {token!r} has no vectors for the {' and '.join(lacking)} of {title}. Give "
                f"one that was trained on {title}."
            )
        for component, array in held.items():
            rows[component].append(np.asarray(array, np.float32))
    return {component: np.concatenate(arrays) for component, arrays in rows.items()}


def _component(
    token: str, source: str, name: str, width: int, widths: Mapping[str, int], held: Mapping, title: str
) -> str:
    """The text encoder that vectors are for."""
    fitting = [component for component, own in widths.items() if own == width and component not in held]
    component = COMPONENTS.get(name) or (fitting or [None])[0]
    if widths.get(component) == width and component not in held:
        return component
    whose = f", of {FAMILIES[width]}" if width in FAMILIES else ""
    encoders = ", ".join(f"{component} {own}" for component, own in widths.items())
    raise InputError(
        f"{source}: the embedding {token!r} has vectors{f' {name}' if name else ''} {width} wide{whose}, which no text "
        f"encoder of {title} takes here ({encoders}). Give one that was trained on {title}."
    )


def opened(source: str) -> list[Tensors]:
    """Opens a source that is known for one of embeddings by what it holds; [] for any other, or a model of the hub.

    Raises:
      InputError: a file is damaged.
    """
    path = local(source)
    if path is None or (path.is_dir() and not any((path / name).is_file() for name in FILES)):
        return []
    found = [open_tensors(file) for file in files_of(source)]
    return found if all(map(is_embedding, found)) else []
