"""Whole checkpoints: whatever the sources hold, recognised, put together and checked, unread.

A source may be one part (motion modules, an adapter), one component or a pipeline; several make one checkpoint.
"""

import dataclasses
import json
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from i2v_jax.errors import InputError, nearest
from i2v_jax.hub import fetch, local
from i2v_jax.models.adapters.miva import NAME
from i2v_jax.weights.assemble import Assembled, assemble_unet_parts
from i2v_jax.weights.components import ASSEMBLE
from i2v_jax.weights.fit import GO_ON
from i2v_jax.weights.formats.ip_adapter import IP_ADAPTER, ip_adapter_table
from i2v_jax.weights.kinds.find import refuse_unread
from i2v_jax.weights.low_rank import check_lora, merge_lora, with_alphas
from i2v_jax.weights.storage.files import read_json
from i2v_jax.weights.storage.open import FOLDERS, WEIGHT_SUFFIXES, files_by_hand, holds_weights, open_tensors
from i2v_jax.weights.styles import merge_styles
from i2v_jax.weights.tensors import OWN_FORMAT, Tensors
from i2v_jax.weights.trained_for import TrainedFor, first_told, told_by_source, told_by_tensors
from i2v_jax.weights.translate import Imported, recognise, without_unknown
from i2v_jax.weights.unet_parts import motion_layout, parts_of, tells_motion
from i2v_jax.weights.unets import assemble_any_unet

LORA = r".*/lora/\w+"
"""Paths of LoRA weights, beside the kernel that they change."""


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """Components by name, each whole or a part that fits together, unread.

    Attributes:
        source: what the user named, for messages.
        components: name -> config, parameters, buffers.
        lora: name -> LoRA weights that are kept apart, by path.
        formats: name -> the formats that its parts came in, the first of the base.
        prefix: what stood before every name in the file (`module.`).
        told: what the files tell of the noise schedule that the model was trained with.
    """

    source: str
    components: dict[str, Assembled]
    lora: dict[str, Tensors]
    formats: dict[str, list[str]]
    prefix: str = ""
    told: TrainedFor = TrainedFor()

    def tensors(self) -> dict[str, Tensors]:
        """Returns, by component, everything there is to keep: parameters, LoRA weights, buffers."""
        everything = {}
        for name, component in self.components.items():
            parts = (component.parameters, self.lora.get(name, Tensors.of({})), component.buffers)
            everything[name] = component.parameters.holding({k: v for part in parts for k, v in part.entries.items()})
        return everything

    def metadata(self) -> dict[str, str]:
        """Returns what our own files say of where the weights come from, so that an export can be like the source."""
        settings = {name: dict(component.settings) for name, component in self.components.items() if component.settings}
        return {
            "source": self.source,
            "formats": json.dumps(self.formats),
            "settings": json.dumps(settings),
            "prefix": self.prefix,
            **self.told.metadata(),
        }


def open_checkpoint(
    sources: Sequence[str | Path | Tensors],
    *,
    loras: Sequence[tuple[str | Path | Tensors, float]] = (),
    configs: Mapping[str, Mapping[str, Any]] | None = None,
    variant: str | None = None,
    skip_unknown: bool = False,
    motion_frames: int | None = None,
) -> Checkpoint:
    """Opens everything that the sources hold; of a part that several hold, the last one's is taken.

    Args:
        sources: files, folders of components or pipelines, hub ids, of any format known here.
        loras: LoRA files to merge into the weights, each with its scale.
        configs: component -> diffusers or transformers config, in place of what lies beside the weights.
        variant: which precision of several, such as `fp16`.
        skip_unknown: leave tensors out that nothing knows, rather than refuse them.
        motion_frames: how many frames the motion modules know, where no file tells.

    Raises:
        InputError: a source cannot be read; tensors are missing, unknown, misshapen; LoRA that fits nothing.
    """
    opened = [pair for source in sources for pair in open_files(source, variant)]
    told = first_told(_told(source, opened) for source in sources)
    held: dict[str, list[Imported]] = {}
    lora: dict[str, Tensors] = {}
    lora_names: dict[str, dict[str, str]] = {}
    formats: dict[str, list[str]] = {}
    settings: dict[str, Mapping[str, Any]] = {}
    for tensors, _ in opened:
        refuse_unread(tensors, tensors.source)
        settings |= _json(tensors, "settings", dict)
    for tensors, found in _numbered_by_base([(tensors, recognise_in(tensors, folder)) for tensors, folder in opened]):
        for component, imported in found.items():
            own = _json(tensors, "formats", list).get(component)
            formats.setdefault(component, []).extend(map(str, own or [imported.table.name]))
            if skip_unknown:
                imported = without_unknown(imported)
            apart, imported = _split_lora(with_alphas(component, imported))
            if apart:
                check_lora(apart, imported)
                lora[component] = _replaced(lora[component], apart) if component in lora else apart
                lora_names[component] = lora_names.get(component, {}) | imported.names
            if not apart or imported.parameters or imported.unknown or imported.misshapen:
                held.setdefault(component, []).append(imported)

    components = {
        name: _assemble(name, pieces, (configs or {}).get(name), motion_frames) for name, pieces in held.items()
    }
    for name in lora.keys() - components.keys():
        components[name] = Assembled(None, Tensors.of({}), Tensors.of({}))
    for name, apart in lora.items():
        if "base" in parts_of(components[name].parameters):
            merge_lora(components[name].parameters, apart, 1.0)  # raises where it is for another model
    for name, names in lora_names.items():
        components[name] = dataclasses.replace(components[name], names={**components[name].names, **names})
    for name, component in components.items():
        if name in settings and not component.settings:
            components[name] = dataclasses.replace(component, settings=settings[name])
    components = merge_styles(components, loras, skip_unknown)
    for source, _ in loras:
        _warn_of_other_prediction(source, told)
    return Checkpoint(
        " + ".join(dict.fromkeys(tensors.source for tensors, _ in opened)),
        components,
        lora,
        {name: list(dict.fromkeys(names)) for name, names in formats.items()},
        next((tensors.prefix or tensors.metadata.get("prefix", "") for tensors, _ in opened), ""),
        told,
    )


def _told(source: str | Path | Tensors, opened: list[tuple[Tensors, str]]) -> TrainedFor:
    """What a source tells of its noise schedule; it is opened already."""
    own = [tensors for tensors, _ in opened if tensors is source or tensors.source == str(source)]
    told = [told_by_tensors(tensors) for tensors in own]
    return first_told([*told, *([] if isinstance(source, Tensors) or not own else [told_by_source(source, own[0])])])


def _warn_of_other_prediction(source: str | Path | Tensors, base: TrainedFor) -> None:
    """Warns of a LoRA that says it was trained on a model that predicts something else than the base does."""
    own = told_by_tensors(open_tensors(source))
    if own.prediction_type not in (None, base.prediction_type or "epsilon"):
        warnings.warn(
            f"{source} was trained on a model that predicts {own.prediction_type} (says {own.where}); the base "
            f"predicts {base.prediction_type or 'epsilon, as nothing says otherwise'}.",
            stacklevel=3,
        )


def open_files(source: str | Path | Tensors, variant: str | None = None) -> list[tuple[Tensors, str]]:
    """Opens a source: a file or a component, or every component of a pipeline's folder, on this machine or the hub.

    Returns:
        Each one's tensors, with the name of the folder or file that it lies in.

    Raises:
        InputError: nothing is there, or it is damaged, or it is no format we know.
    """
    if isinstance(source, Tensors):
        return [(source, "")]
    path = local(source)
    if path is None:
        index = _fetched_index(source, variant)
        folders = [folder for folder in FOLDERS if index.get(folder)]
    else:
        folders = [folder for folder in FOLDERS if holds_weights(path / folder)]
        if holds_weights(path) and not (path / "model_index.json").is_file():
            folders = []
    if not folders:
        return [(open_tensors(source, variant=variant), Path(source).name)]
    if "unet" in folders and "motion_adapter" in folders:  # diffusers saves the motion modules twice
        folders.remove("motion_adapter")
    return [(open_tensors(source, folder, variant), folder) for folder in folders]


def recognise_in(tensors: Tensors, folder: str = "") -> dict[str, Imported]:
    """Returns `recognise(tensors)`, SDXL's second text encoder under the name of its folder, which alone tells."""
    found = recognise(tensors)
    if folder == "text_encoder_2" and "text_encoder" in found:
        found[folder] = dataclasses.replace(found.pop("text_encoder"), component=folder)
    return found


def _fetched_index(source: str | Path, variant: str | None) -> dict[str, Any]:
    """The model_index.json of a pipeline on the hub; {} for a file or a single component."""
    if Path(source).suffix in WEIGHT_SUFFIXES:
        return {}
    path = fetch(source, ["model_index.json"], files_by_hand(source, variant=variant)) / "model_index.json"
    return read_json(path) if path.is_file() else {}


def _json(tensors: Tensors, key: str, kind: type) -> dict[str, Any]:
    """What one of our own files says of its components under a key of its metadata, each a value of that kind."""
    if tensors.metadata.get("format") != OWN_FORMAT:
        return {}
    try:
        value = json.loads(tensors.metadata.get(key, "{}"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{tensors.source}: {key!r} in its metadata is no JSON ({error}).") from error
    if not isinstance(value, dict) or not all(isinstance(entry, kind) for entry in value.values()):
        raise InputError(f"{tensors.source}: {key!r} in its metadata is no JSON object of {kind.__name__}s.")
    return value


def _split_lora(imported: Imported) -> tuple[Tensors | None, Imported]:
    apart = imported.parameters.select(LORA)
    if not apart:
        return None, imported
    rest = {path: entry for path, entry in imported.parameters.entries.items() if path not in apart}
    return apart, dataclasses.replace(imported, parameters=imported.parameters.holding(rest))


def _replaced(lora: Tensors, later: Tensors) -> Tensors:
    """LoRA weights, with those layers of a later file that it holds, whole; warns where that replaces any."""
    layers = {path.rpartition("/")[0] for path in later}
    kept = {path: entry for path, entry in lora.entries.items() if path.rpartition("/")[0] not in layers}
    if len(kept) < len(lora):
        warnings.warn(
            f"{later.source} replaces layers of {lora.source}: kept apart, a layer has one LoRA. Merge them by --lora "
            "to have both.",
            stacklevel=2,
        )
    return later.holding(kept | later.entries)


def _assemble(
    component: str, pieces: list[Imported], settings: Mapping[str, Any] | None, motion_frames: int | None
) -> Assembled:
    given = {} if settings is None else {"config": settings}
    last = pieces[-1]
    if component == "unet":
        return _assemble_unet(pieces, given, {} if motion_frames is None else {"max_positions": motion_frames})
    if component in ("noise_schedule", "leftovers"):
        if last.unknown or last.misshapen:
            names = ", ".join([*last.unknown, *last.misshapen][:3])
            raise InputError(f"{last.parameters.source} holds tensors of unknown names or shapes: {names}. {GO_ON}")
        return Assembled(None, last.parameters, last.buffers)
    if component in ASSEMBLE:
        return ASSEMBLE[component](last, **given)
    raise InputError(f"{last.parameters.source}: unknown component {component!r}.{nearest(component, ASSEMBLE)}")


def _assemble_unet(pieces: list[Imported], given: dict[str, Any], motion: dict[str, Any]) -> Assembled:
    """Each part from the last piece that holds it."""
    base = next((piece for piece in reversed(pieces) if "base" in parts_of(piece.parameters)), None)
    parts = {part: piece for piece in pieces for part in parts_of(piece.parameters)}
    strangers = [piece for piece in pieces if piece not in parts.values()]
    if strangers and (names := [name for piece in strangers for name in (*piece.unknown, *piece.misshapen)]):
        where = strangers[0].parameters.source
        raise InputError(f"{where} holds tensors of unknown names or shapes: {names[:3]}. {GO_ON}")
    parts.pop("base", None)
    if NAME in parts:
        raise InputError(
            f"{parts[NAME].parameters.source} is a MIVA, which no format of others has a place for. Sample with it as "
            "it is: --config.mivas."
        )
    of_motion = [piece for piece in pieces if "motion" in parts_of(piece.parameters)]
    given = given | {"motion_config": _earlier_motion(of_motion, motion) | motion}
    if base is not None:
        others = {part: piece for part, piece in parts.items() if piece is not base}
        return assemble_any_unet(base, motion=others.pop("motion", None), adapters=others, **given)
    if numbered := [path for piece in pieces for path in piece.parameters if path.startswith("numbered_")]:
        last = pieces[-1]
        names = [last.names[path] for path in numbered if path in last.names]
        partners = [re.sub(r"(?<=\.to_)[kv]", lambda side: "v" if side[0] == "k" else "k", name) for name in names]
        strange = [f"missing {name!r}" for name in partners if name not in names]
        strange += [f"unexpected {name!r}" for name in (*last.unknown, *last.misshapen)]
        raise InputError(
            f"{last.parameters.source} numbers {(len(numbered) + 1) // 2} cross-attentions, the last in "
            f"{names[-1]!r}, which fits neither SD1.5 nor SDXL{': ' * bool(strange)}{', '.join(strange[:4])}. "
            "Give its base UNet as a source before it."
        )
    return assemble_unet_parts(motion=parts.pop("motion", None), adapters=parts, **given)


def _earlier_motion(pieces: list[Imported], by_hand: dict[str, Any]) -> dict[str, Any]:
    """What an earlier file tells of motion modules that come from a training's checkpoint, which tells nothing."""
    if len(pieces) < 2 or tells_motion(pieces[-1]):
        return {}
    layout = motion_layout(pieces[-2], {}, by_hand)
    return {name: getattr(layout, name) for name in ("max_positions", "num_heads", "norm_groups")}


def _numbered_by_base(
    opened: list[tuple[Tensors, dict[str, Imported]]],
) -> list[tuple[Tensors, dict[str, Imported]]]:
    """The files, in which IP-Adapters number the attentions of the UNet that is there."""
    unets = [found["unet"] for _, found in opened if "unet" in found]
    bases = [unet for unet in unets if "base" in parts_of(path for path in unet.parameters if "/lora/" not in path)]
    if not bases:
        return opened
    return [
        (
            tensors,
            {
                name: _renumbered(one, bases[-1]) if one.table.name == IP_ADAPTER.name else one
                for name, one in found.items()
            },
        )
        for tensors, found in opened
    ]


def _renumbered(imported: Imported, base: Imported) -> Imported:
    """An IP-Adapter's attention weights at the paths that their numbers mean in this base."""
    table = ip_adapter_table(base.parameters)
    entries, names, unknown = {}, {}, list(imported.unknown)
    for path, entry in imported.parameters.entries.items():
        name = imported.names[path]
        for match in table.to_ours(name):
            entries[match.name], names[match.name] = entry, name
        if not table.to_ours(name):
            unknown.append(name)
    parameters = imported.parameters.holding(entries)
    return dataclasses.replace(imported, parameters=parameters, names=names, unknown=unknown, table=table)
