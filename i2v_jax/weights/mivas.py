"""Files of MIVAs: each of one motion, as `train.py` writes them; several are stacked beside a UNet.

A file holds `unet/.../miva/...` with a leading axis of 1, and says in its metadata what base it is for, its motion's
name, its rank and how it was trained.
"""

import dataclasses
import functools
import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from i2v_jax.errors import InputError
from i2v_jax.hub import local
from i2v_jax.models.adapters.miva import PARTS, PATH, MivaConfig
from i2v_jax.models.networks import Shapes, parameter_shapes
from i2v_jax.models.unet import UNetConfig
from i2v_jax.weights.assemble import Assembled
from i2v_jax.weights.configs import own_config_of
from i2v_jax.weights.kinds.find import parts_held, titled
from i2v_jax.weights.lazy import check_finite
from i2v_jax.weights.storage.open import open_tensors
from i2v_jax.weights.styles import style
from i2v_jax.weights.tensors import Entry, Tensors
from i2v_jax.weights.translate import Imported, recognise

KEY = "i2v_jax.miva"
"""Of the metadata: a JSON object with `name`, `base`, `rank`, `tokens`, `parts`, and how it was trained."""


class Miva(NamedTuple):
    """A MIVA in use.

    Attributes:
      name: of its motion.
      scale: how much of it; 1: as trained.
      source: its file.
      about: what its file says of it.
    """

    name: str
    scale: float
    source: str
    about: Mapping[str, Any]


def parse(texts: Sequence[str]) -> list[tuple[str, float]]:
    """Reads "FILE" or "FILE=SCALE" of each MIVA.

    Raises:
      InputError: a scale that is no finite number, or the same file twice.
    """
    found, known = [], {}
    for text in texts:
        try:
            source, scale = style(str(text))
        except InputError as error:
            raise InputError(f"mivas: {error}") from error
        path = local(source)
        key = str(path.resolve()) if path else source
        if key in known:
            total = known[key] + scale
            raise InputError(
                f"mivas: {source} is given twice, at {known[key]:g} and {scale:g}. Give it once, such as "
                f"'{source}={total:g}'."
            )
        known[key] = scale
        found.append((source, scale))
    return found


def read(source: str | Path, scale: float = 1.0) -> tuple[Miva, Imported]:
    """Opens a MIVA, unread.

    Returns:
      What it is, and its tensors by their paths in a UNet.

    Raises:
      InputError: it cannot be read, is no MIVA, or is damaged.
    """
    tensors = open_tensors(source)
    found = recognise(tensors)
    unet = found.get("unet")
    if KEY not in tensors.metadata or unet is None or not any(PATH in path for path in unet.parameters):
        held = titled(parts_held({name: imported.parameters for name, imported in found.items()}))
        raise InputError(
            f"mivas: {tensors.source} is no MIVA, but {held or 'of no known kind'}. Wanted a file that train.py wrote "
            "with configs/train/miva.py."
        )
    about = about_of(tensors)
    strange = [f"{name}/..." for name in found if name != "unet"]
    strange += [path for path in unet.parameters if PATH not in path] + list(unet.unknown)
    if strange:
        raise InputError(f"mivas: {tensors.source} holds {strange[0]!r} beside a MIVA. Give the MIVA alone.")
    unet = dataclasses.replace(unet, parameters=check_finite(unet.parameters))
    return Miva(str(about["name"]), scale, str(source), about), unet


def describe(mivas: Sequence[Miva], unet: Assembled) -> str:
    """Returns which MIVAs are in use, and how much they weigh."""
    own = [entry for path, entry in unet.parameters.entries.items() if PATH in path]
    whole = sum(entry.size for path, entry in unet.parameters.entries.items() if PATH not in path)
    named = ", ".join(f"{miva.name} x {miva.scale:g}" for miva in mivas)
    size = sum(entry.size for entry in own)
    title = "MIVAs" if mivas[1:] else "MIVA"
    memory = size * np.dtype(unet.config.param_dtype).itemsize
    return f"{len(mivas)} {title}: {named}; {size:,} weights, {size / whole:.2%} of the UNet, {memory / 1e6:.1f} MB"


def metadata_of(config: Mapping[str, Any], clips: int, step: int, held_out_loss: float | None) -> dict[str, str]:
    """Returns what a training writes into its MIVA's metadata.

    Args:
      config: of the training.
      clips: that it was trained on.
      step: of the weights.
      held_out_loss: there, where it was measured.
    """
    miva, data, weights = config["miva"], config["data"], config["weights"]
    about = dict(
        name=miva["name"] or Path(config["folder"]).name,
        base=_title(weights["unet"] or weights["base"]),
        motion=_title(weights["motion"]),
        adapter=_title(weights["adapter"]),
        rank=miva["rank"],
        tokens=miva["tokens"],
        parts=list(miva["parts"]),
        trained=dict(
            clips=clips,
            steps=step,
            batch=config["batch"],
            learning_rate=config["optimizer"]["learning_rate"],
            source=_title(data["source"]),
            held_out_loss=held_out_loss,
            **{name: data[name] for name in ("frames", "stride", "height", "width", "flip")},
        ),
    )
    return {KEY: json.dumps(about)}


def sentence(about: Mapping[str, Any]) -> str:
    """Returns what `inspect` says of a MIVA, from `about_of`."""
    told = about.get("trained") or {}
    size = f"{told.get('frames', '?')}x{told.get('height', '?')}x{told.get('width', '?')}"
    loss = told.get("held_out_loss")
    measured = f", held-out loss {loss:.4f}" if isinstance(loss, float) else ""
    beside = "beside an I2V-Adapter" if about.get("adapter") else "without an I2V-Adapter"
    return (
        f"MIVA {about['name']!r} of rank {about['rank']} ({', '.join(about['parts'])}), for {about['base']}, trained "
        f"{beside} on {told.get('clips', '?')} clips of {size}, {told.get('steps', '?')} steps{measured}"
    )


def refuse_among(trained: Sequence[str | Path]) -> None:
    """Raises InputError where a file of `weights.trained`, whose weights replace others, is a MIVA."""
    for source in trained:
        if KEY in open_tensors(source).metadata:
            raise InputError(f"weights.trained: {source} is a MIVA. Give it as --config.mivas=\"('{source}=1.0',)\".")


def about_of(tensors: Tensors) -> dict[str, Any]:
    """Returns what a MIVA's file says of it. Raises InputError where that is damaged."""
    try:
        about = json.loads(tensors.metadata[KEY])
        about = about | {"parts": tuple(about["parts"])}
        MivaConfig(1, about["rank"], about["tokens"], about["parts"])
        str(about["name"]), str(about["base"])
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:  # InputError is a ValueError
        raise InputError(f"{tensors.source}: {KEY!r} in its metadata does not describe a MIVA ({error}).") from error
    return about


def with_mivas(unet: Assembled, given: Sequence[tuple[Miva, Imported]], base: str | Path) -> Assembled:
    """Returns a UNet with MIVAs beside it, stacked in their order; those of a lower rank are filled up with zeros.

    Args:
      unet: the base, with its motion modules.
      given: from `read`, one or more.
      base: the base's source, for messages.

    Raises:
      InputError: one is for another base.
    """
    config = MivaConfig(
        len(given),
        max(miva.about["rank"] for miva, _ in given),
        max(miva.about["tokens"] for miva, _ in given),
        tuple(part for part in PARTS if any(part in miva.about["parts"] for miva, _ in given)),
    )
    whole = dataclasses.replace(unet.config, miva=config)
    expected = shapes_of(whole)
    for miva, imported in given:
        check_base(miva, imported, expected, unet.config, base)
        _warn_of_adapter(miva, "first_frame" in unet.config.self_attention_branches)
    held = [imported.parameters.entries for _, imported in given]
    stacked = {
        path: Entry(
            leaf.shape, np.dtype(np.float32), functools.partial(_stacked, [own.get(path) for own in held], leaf)
        )
        for path, leaf in expected.items()
    }
    return dataclasses.replace(
        unet, config=whole, parameters=unet.parameters.holding(unet.parameters.entries | stacked)
    )


def with_new_miva(
    unet: Assembled, config: MivaConfig, rng: np.random.Generator, source: str | Path | None, base: str | Path
) -> Assembled:
    """Returns a UNet with one MIVA to train, which changes nothing yet; or one that is gone on with.

    Args:
      unet: the base.
      config: of the MIVA.
      rng: is drawn from.
      source: of a MIVA to go on with; None: a new one.
      base: the base's source, for messages.

    Raises:
      InputError: the one to go on with is for another base, or of another rank, or has other parts.
    """
    if source:
        miva, imported = read(source)
        for name in ("rank", "tokens", "parts"):
            if miva.about[name] != getattr(config, name):
                raise InputError(
                    f"miva.{name}={getattr(config, name)}, and {source} has {miva.about[name]}. Set "
                    f"--config.miva.{name}={miva.about[name]}, or leave miva.source out for a new one."
                )
        return with_mivas(unet, [(miva, imported)], base)
    whole, entries = dataclasses.replace(unet.config, miva=config), {}
    for path, leaf in shapes_of(whole).items():
        spread = leaf.shape[1] ** -0.5 if path.endswith("/down") else 0.0  # as PyTorch's layers begin
        entries[path] = Entry.of(rng.uniform(-spread, spread, leaf.shape).astype(np.float32))
    return dataclasses.replace(
        unet, config=whole, parameters=unet.parameters.holding(unet.parameters.entries | entries)
    )


def shapes_of(config: UNetConfig) -> Shapes:
    """Returns path -> shape of the parameters of a UNet's MIVAs."""
    return {path: leaf for path, leaf in parameter_shapes(config).items() if PATH in path}


def check_base(miva: Miva, imported: Imported, expected: Shapes, unet: UNetConfig, base: str | Path) -> None:
    """Raises InputError for a MIVA that is not for a UNet, or that is damaged.

    Args:
      miva, imported: from `read`.
      expected: the parameters of MIVAs beside the UNet, of this rank or a higher one.
      unet: the base's config.
      base: its source, for the message.
    """
    held = {path: entry.shape for path, entry in imported.parameters.entries.items()}
    wanted = {
        path: _alone(path, leaf.shape, miva.about)
        for path, leaf in expected.items()
        if _part_of(path) in miva.about["parts"]
    }
    differing = [path for path in {**wanted, **held} if wanted.get(path) != held.get(path)]
    if not differing:
        return
    own = own_config_of(UNetConfig, imported)
    if own and _facts(own) != _facts(unet):
        raise InputError(
            f"mivas: {miva.source} was trained on {miva.about['base']}, {_facts(own)}; {base} is {_facts(unet)}. Give "
            "a MIVA that was trained on this base, or the base that it was trained on."
        )
    path = differing[0]
    raise InputError(
        f"mivas: {miva.source} does not fit {base}, or is damaged: {len(differing)} of its tensors differ from what "
        f"rank {miva.about['rank']} wants there, such as {path!r}: {held.get(path, 'not there')}, wanted "
        f"{wanted.get(path, 'none')}. It was trained on {miva.about['base']}."
    )


def _warn_of_adapter(miva: Miva, has_adapter: bool) -> None:
    """Warns where a MIVA was trained beside an I2V-Adapter and is used without one, or the reverse."""
    if bool(miva.about.get("adapter")) == has_adapter:
        return
    told = (
        "was trained without an I2V-Adapter, and this run has one. Leave it out: --config.weights.adapter=''."
        if has_adapter
        else f"was trained beside an I2V-Adapter, {miva.about['adapter']}. Give it as weights.adapter."
    )
    warnings.warn(f"mivas: {miva.source} {told}", stacklevel=3)


def _facts(unet: UNetConfig) -> str:
    widths = ", ".join(map(str, unet.block_out_channels))
    motion = unet.motion and f"{unet.motion.num_layers * unet.motion.attentions} attentions a motion module" + (
        ", with one in the middle block" if unet.motion.mid_block else ""
    )
    return f"a UNet of levels {widths} wide, prompts {unet.cross_attention_dim} wide, {motion or 'no motion modules'}"


def _title(source: str | Path | None) -> str:
    """A source without the folders of the machine that it is on."""
    path = source and local(source)
    return path.name if path else str(source or "")


def _part_of(path: str) -> str:
    if "/motion/" in path:
        return "motion"
    return "prompt" if "/attn2/" in path else "frames"


def _alone(path: str, shape: tuple[int, ...], about: Mapping[str, Any]) -> tuple[int, ...]:
    """The shape that one MIVA's tensor has of a stack's."""
    axis, size = {"down": (2, "rank"), "up": (1, "rank"), "states": (1, "tokens")}.get(
        path.rpartition("/")[2], (None, "")
    )
    return tuple(1 if i == 0 else about[size] if i == axis else side for i, side in enumerate(shape))


def _stacked(entries: Sequence[Entry | None], leaf: Any) -> np.ndarray:
    """MIVAs' arrays, one after another, filled up with zeros; one that has none has zeros alone."""
    stacked = np.zeros(leaf.shape, np.float32)
    for row, entry in zip(stacked, entries):
        if entry is not None:
            row[tuple(slice(side) for side in entry.shape[1:])] = entry.read()[0]
    return stacked
