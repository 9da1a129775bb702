"""`merge`: models merged by a recipe, tensor by tensor; each result in the format of the first model, or another.

Tensors are known by this program's own paths where every model is of a format known here, else by the files' names.
"""

import argparse
import contextlib
import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from ml_collections import ConfigDict
from tqdm import tqdm

from convert import exporting
from convert.converting import DTYPES, output, summary, writing
from convert.tables import megabytes, table
from i2v_jax.commands import ROOT
from i2v_jax.commands.config import load_config
from i2v_jax.errors import InputError, nearest
from i2v_jax.families.family import family_of
from i2v_jax.weights.assemble import Assembled
from i2v_jax.weights.checkpoint import Checkpoint, open_checkpoint, open_files, recognise_in
from i2v_jax.weights.formats.lora import LORA_TABLES
from i2v_jax.weights.merge import Merged, Recipe, merge
from i2v_jax.weights.save import save_own, save_own_orbax
from i2v_jax.weights.sparse import differences
from i2v_jax.weights.storage.msgpack import save_msgpack
from i2v_jax.weights.storage.open import WEIGHT_SUFFIXES
from i2v_jax.weights.storage.pickle import save_pickle
from i2v_jax.weights.storage.safetensors import save_tensors
from i2v_jax.weights.tensors import OWN_FORMAT, Entry, Tensors

RECIPES = ROOT / "configs" / "merge"
KEYS = ("models", "numbers", "results", "unmatched", "seed")
RESULT = "result"
"""What the result of an expression on the command line is called."""
METADATA = "i2v_jax.merge"
"""Key in a .safetensors file's metadata: the recipe that made it, and the files it was made of, as JSON."""
AHEAD = 1 << 26  # bytes that may wait to be written
NAMED = re.compile(r"(?P<name>[A-Za-z_]\w*)=(?P<file>.+)", re.DOTALL)


class Model(NamedTuple):
    """A model to merge.

    Attributes:
        source: what the user named.
        entries: name -> tensor, unread.
        checkpoint: where its format is known here.
        opened: its files.
    """

    source: str
    entries: Mapping[str, Entry]
    checkpoint: Checkpoint | None
    opened: Sequence[Tensors]

    @property
    def is_own(self) -> bool:
        """Whether it is in this program's own format."""
        return all(tensors.metadata.get("format") == OWN_FORMAT for tensors in self.opened)


def run(arguments: argparse.Namespace) -> int:
    """Writes every result that has a file, and prints what it holds."""
    recipe = recipe_of(arguments)
    files = named_files(arguments.files, recipe)
    sources = {name: files[name] for name in recipe.models}
    results = {name: file for name, file in files.items() if name in recipe.results}
    models = open_models(sources, arguments)
    with contextlib.ExitStack() as stack:  # no result is there before all are complete
        places = {name: stack.enter_context(output(_of(arguments, file, sources))) for name, file in results.items()}
        printed = []
        for name, file in results.items():
            entries = {model: held.entries for model, held in models.items()}
            made = merge(recipe, name, entries, DTYPES.get(arguments.dtype))
            about = json.dumps({**recipe.text, "result": name, "files": sources}, default=list)
            printed.append(_write(places[name], made, list(models.values()), _of(arguments, file, sources), about))
    print("\n\n".join(printed))
    return 0


def recipe_of(arguments: argparse.Namespace) -> Recipe:
    """Returns the recipe that a command line names: a config's, or that of an expression.

    Raises:
        InputError: there is none, it cannot be read, or a number is none of its own.
    """
    given = arguments.recipe
    if re.fullmatch(r"\w+(:\w+)?|.*\.py(:\w+)?", given):
        config = load_config(given, folder=RECIPES)
        if strange := [key for key in config if key not in KEYS]:
            raise InputError(
                f"{given}: unknown key {strange[0]!r}.{nearest(strange[0], KEYS)} Known: {', '.join(KEYS)}."
            )
    else:
        names = [found["name"] for text in arguments.files if (found := NAMED.fullmatch(text))]
        models = [name for name in names if name != RESULT]
        config = ConfigDict(dict(models=tuple(models), results={RESULT: given}))
    numbers = dict(config.get("numbers", {}))
    for name, value in arguments.number:
        if name not in numbers:
            known = f" It has {', '.join(numbers)}." if numbers else " It has none."
            raise InputError(f"--number {name}: {given} has no number of that name.{nearest(name, numbers) or known}")
        numbers[name] = value
    return Recipe.of(
        config.models,
        {name: rules for name, rules in config.results.items()},
        numbers,
        arguments.unmatched or config.get("unmatched", "refuse"),
        config.get("seed", 0) if arguments.seed is None else arguments.seed,
    )


def named_files(texts: Sequence[str], recipe: Recipe) -> dict[str, str]:
    """Returns {name: file} of arguments `NAME=FILE`; every model of the recipe is there, and a result at least.

    Raises:
        InputError: one is no such argument, has an unknown name, is given twice or lacking.
    """
    known, files = (*recipe.models, *recipe.results), {}
    for text in texts:
        found = NAMED.fullmatch(text)
        if not found:
            raise InputError(f"{text!r}: wanted NAME=FILE, with the names {', '.join(known)}.")
        if found["name"] not in known:
            raise InputError(
                f"{text!r}: the recipe knows no {found['name']!r}.{nearest(found['name'], known)} Models: "
                f"{', '.join(recipe.models)}; results: {', '.join(recipe.results)}."
            )
        if found["name"] in files:
            raise InputError(f"{text!r}: {found['name']} is given twice.")
        files[found["name"]] = found["file"]
    if lacking := [name for name in recipe.models if name not in files]:
        raise InputError(f"The recipe wants the model {lacking[0]!r}: give {lacking[0]}=FILE.")
    results = [files[name] for name in recipe.results if name in files]
    if not results:
        wanted = " or ".join(f"{name}=FILE" for name in recipe.results)
        raise InputError(f"Nothing is to be written: give {wanted}.")
    paths = [Path(file).expanduser().resolve() for file in results]
    if twice := [file for file, path in zip(results, paths) if paths.count(path) > 1]:
        raise InputError(f"Two results are to be written to {twice[0]}. Give each a file of its own.")
    return files


def open_models(sources: Mapping[str, str], arguments: argparse.Namespace) -> dict[str, Model]:
    """Opens the models by name, all known by our paths or all by their own names.

    Raises:
        InputError: one cannot be read, holds LoRA factors, or is of another family than the first.
    """
    opened = {name: open_files(source, arguments.variant) for name, source in sources.items()}
    if all(_is_known(files) for files in opened.values()):
        found = {}
        for name, source in sources.items():
            checkpoint = open_checkpoint([source], variant=arguments.variant, motion_frames=arguments.motion_frames)
            entries = {f"{c}/{path}": e for c, t in checkpoint.tensors().items() for path, e in t.entries.items()}
            found[name] = Model(source, entries, checkpoint, [tensors for tensors, _ in opened[name]])
        _check_alike(found)
        return found
    for name, files in opened.items():
        if len(files) > 1:
            raise InputError(
                f"{name}={sources[name]}: its files, or those of another model, are of no format known here, so that "
                "only single files can be merged. Give one file each."
            )
    print("Of no format known here: tensors go by the files' own names.")
    return {name: Model(sources[name], files[0][0].entries, None, [files[0][0]]) for name, files in opened.items()}


def _is_known(files: Sequence[tuple[Tensors, str]]) -> bool:
    """Whether every tensor of a source is known here."""
    try:
        found = [imported for tensors, folder in files for imported in recognise_in(tensors, folder).values()]
    except InputError:
        return False
    return not any(imported.unknown or imported.misshapen for imported in found)


def _check_alike(models: Mapping[str, Model]) -> None:
    """Raises InputError for LoRA factors, and for UNets of other families."""
    titles = {}
    for name, model in models.items():
        if model.checkpoint.lora:
            raise InputError(
                f"{name}={model.source} holds the factors of a LoRA, whose sums are not the sums of what they change. "
                "Merge it into its base first: python -m convert import BASE OUTPUT --lora FILE=SCALE."
            )
        unet = model.checkpoint.components.get("unet")
        if unet is not None and unet.config is not None:
            titles[name] = family_of(unet.config).title
    if len(set(titles.values())) > 1:
        told = ", ".join(f"{name}={models[name].source} is of {title}" for name, title in titles.items())
        raise InputError(f"{told}. Models of one family can be merged.")


def _of(arguments: argparse.Namespace, file: str, sources: Mapping[str, str]) -> argparse.Namespace:
    """The arguments of a command that writes this one file."""
    given = vars(arguments) | dict(output=file, sources=list(sources.values()))
    return argparse.Namespace(**given, shard_size=10 * 10**9, write_variant=None)


def _write(path: Path, made: Merged, models: Sequence[Model], arguments: argparse.Namespace, about: str) -> str:
    """Writes one result; returns what to say of it."""
    metadata, suffix = {METADATA: about}, Path(arguments.output).suffix
    rows = table(("by", "tensors"), made.counts.items())
    first = models[0]
    if first.checkpoint is None:
        if arguments.sparse:
            raise InputError("--sparse: the models are of no format known here. Leave it out.")
        _write_raw(path, made, first, arguments, metadata)
        return f"{arguments.output}:\n{rows}"
    checkpoint = _checkpoint(made, models)
    if arguments.sparse:
        return f"{arguments.output}:\n{rows}\n\n{_write_sparse(path, checkpoint, first, arguments, metadata)}"
    if first.is_own and arguments.to is None and suffix in ("", ".safetensors"):
        configs = {name: part.config for name, part in checkpoint.components.items() if part.config is not None}
        given = (path, checkpoint.tensors(), configs, {**checkpoint.metadata(), **metadata})
        with writing(path, checkpoint) as update:
            if suffix:
                save_own(*given, update, AHEAD)
            else:
                save_own_orbax(*given, update)
    else:
        exporting.check_output(arguments.output, arguments.to)
        checkpoint, to = exporting.as_written(checkpoint, arguments)
        with writing(path, checkpoint) as update:
            exporting.write(path, checkpoint, to, arguments, update, metadata, AHEAD)
    return f"{arguments.output}:\n{rows}\n\n{summary(checkpoint)}"


def _checkpoint(made: Merged, models: Sequence[Model]) -> Checkpoint:
    """A result as a checkpoint like the first model's; what only others have is as theirs."""
    first = models[0].checkpoint
    components: dict[str, Assembled] = {}
    formats = dict(first.formats)
    for model in models:
        for name in model.checkpoint.components:
            holders = [one.checkpoint for one in models if name in one.checkpoint.components]
            formats.setdefault(name, holders[0].formats[name])
            # of several networks, such as one with an adapter and one without, what is kept is of the largest
            like = max((one.components[name] for one in holders), key=lambda part: len(part.parameters))
            buffers = {path for one in holders for path in one.components[name].buffers}
            held = {
                path.removeprefix(f"{name}/"): entry
                for path, entry in made.entries.items()
                if path.startswith(f"{name}/")
            }
            if held:
                components[name] = dataclasses.replace(
                    like,
                    parameters=like.parameters.holding({p: e for p, e in held.items() if p not in buffers}),
                    buffers=like.parameters.holding({p: e for p, e in held.items() if p in buffers}),
                )
    return dataclasses.replace(first, components=components, formats=formats)


def _write_sparse(
    path: Path, checkpoint: Checkpoint, first: Model, arguments: argparse.Namespace, metadata: dict[str, str]
) -> str:
    """Writes what differs from the first model; returns what to say of it."""
    if Path(arguments.output).suffix != ".safetensors" or arguments.to is not None:
        raise InputError(f"--sparse writes a .safetensors file of this program's own, not {arguments.output}.")
    found, total = {}, sum(part.parameters.nbytes for part in checkpoint.components.values())
    with tqdm(total=total, desc="comparing", unit="B", unit_scale=True, unit_divisor=1000, leave=False) as bar:
        for name, part in checkpoint.components.items():
            own = first.checkpoint.components.get(name)
            held = own.parameters.entries if own else {}
            entries = dict(differences(held, part.parameters.entries, bar.update))
            if entries and name not in LORA_TABLES:
                raise InputError(
                    f"--sparse: the {name} differs too, and files of differences are of {', '.join(LORA_TABLES)}. "
                    "Write whole weights, or have the recipe leave it as it is."
                )
            if entries:
                found[name] = part.parameters.holding(entries)
    if not found:
        raise InputError(f"{arguments.output} would hold nothing: no tensor differs from {first.source}.")
    save_own(path, found, {}, metadata, ahead_bytes=AHEAD)
    written = sum(tensors.nbytes for tensors in found.values())
    return f"differences in {', '.join(found)}: {megabytes(written)}, of {megabytes(total)} of weights"


def _write_raw(path: Path, made: Merged, first: Model, arguments: argparse.Namespace, metadata: dict[str, str]) -> None:
    """Writes a result under the files' own names."""
    suffix = Path(arguments.output).suffix
    if arguments.to is not None:
        raise InputError(f"--to {arguments.to}: the models are of no format known here. Leave it out.")
    held = first.opened[0]
    tensors = held.holding({held.prefix + name: entry for name, entry in made.entries.items()})
    if suffix == ".safetensors":
        save_tensors(path, tensors, {**held.metadata, **metadata}, ahead_bytes=AHEAD)
    elif suffix == ".msgpack":
        save_msgpack(path, tensors)
    elif suffix in WEIGHT_SUFFIXES:
        save_pickle(path, tensors, "state_dict")
    else:
        raise InputError(f"{arguments.output} names no file of weights; wanted one that ends in {WEIGHT_SUFFIXES}.")
