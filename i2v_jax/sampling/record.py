"""A run's record: the JSON beside each video. What it says, how one goes on from it, and what then differs."""

import json
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from importlib import metadata
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from i2v_jax import __version__, commands
from i2v_jax.errors import InputError
from i2v_jax.families import over_time
from i2v_jax.hub import local, read_text
from i2v_jax.sampling import mivas, second_pass
from i2v_jax.sampling.controls import given
from i2v_jax.sampling.image_prompts import ImagePrompts
from i2v_jax.weights.embeddings import token_and_file
from i2v_jax.weights.styles import style
from i2v_jax.weights.tensors import sha256

KEYS = commands.ROOT / "configs" / "sample" / "sd15.py"  # all that a record may have, with their defaults
PACKAGES = ("jax", "jaxlib", "flax", "numpy", "pillow", "av")
OF_COMMAND = ("variations", "preview_every", "strict")  # how a command goes about it; no part of a record
NOT_OF_RESULT = ("image", "csv", "output", "compilation_cache", "batch_per_device", "vae_slice", "mesh")
PICTURES = (
    ("controls", "pictures"),
    ("image_prompts", "pictures"),
    ("image_prompts", "face_embedding"),
    ("second_pass", "by"),
)
"""Groups of a config and their keys that name pictures or files."""
NOT_A_PATH = ("adapter_modules",)  # among a config's weights


def versions() -> dict[str, str]:
    """Returns the versions of what a run's result depends on."""
    own = {"i2v_jax": __version__, "python": sys.version.split()[0]}
    return own | {package: metadata.version(package) for package in PACKAGES}


def hashes(files: Iterable[Path]) -> dict[str, str]:
    """Returns {file: its SHA-256}."""
    return {str(Path(file).absolute()): sha256(file) for file in files}


def about(config: ConfigDict, weights: Mapping[str, str]) -> dict[str, Any]:
    """Returns the record of one video.

    Args:
      config: the video's own, with the picture's absolute path as its `image`.
      weights: from `hashes`.

    Returns:
      The config, in which whatever is on this machine has its absolute path; versions; hashes of weights and picture,
      of `further_files` where there are any, and, for each source of control pictures, of its files.
    """
    record = dict(
        config=travelling(config), versions=versions(), weights=dict(weights), picture=hashes([Path(config.image)])
    )
    more = dict(
        further_files=hashes(further_files(config)),
        controls=[hashes(given.files_of(source)) for source in _control_pictures(config)],
    )
    return record | {name: found for name, found in more.items() if found}


def further_files(config: ConfigDict) -> list[Path]:
    """Returns what a run reads beside weights and picture: masks; pictures and face embedding of its image prompts; the
    upscaler of its second pass."""
    masks = [Path(mask).expanduser() for mask in mivas.mask_files(config.get("miva_masks", ()))]
    upscalers = second_pass.files(config.get("second_pass", {}))
    return [*ImagePrompts.of_config(config.get("image_prompts", {})).files, *masks, *upscalers]


def travelling(config: ConfigDict) -> dict[str, Any]:
    """Returns a config as JSON has it, without what is the command's alone; paths of files are absolute."""
    values = json.loads(config.to_json())
    for key in OF_COMMAND:
        values.pop(key, None)
    for key, value in values.get("weights", {}).items():
        if key not in NOT_A_PATH:
            values["weights"][key] = [MARKED[key](text) for text in value] if key in MARKED else _absolute(value)
    if spans := values.get(over_time.KEY):
        values[over_time.KEY] = [[above, _absolute_style(text) if text else text] for above, text in spans]
    if given := values.get("mivas"):
        values["mivas"] = [_absolute_style(text) for text in given]
    if masks := values.get("miva_masks"):
        values["miva_masks"] = [_absolute(mask) if mask in mivas.mask_files(masks) else mask for mask in masks]
    for group, key in PICTURES:
        if value := values.get(group, {}).get(key):
            values[group][key] = _absolute(value)
    return values


def read(path: str | Path) -> dict[str, Any]:
    """Returns the record in a file that a run is begun from; {} where that is a config file, or JSON without hashes."""
    path = Path(path).expanduser()
    if path.suffix != ".json" or not path.is_file():
        return {}
    content = json.loads(read_text(path))
    return content if isinstance(content.get("config"), dict) else {}


def find_picture(record: Mapping[str, Any], path: str | Path, picture: str) -> str:
    """Returns where a record's picture is: at its path, or else beside the record, where it has its name and hash.

    Args:
      record, path: what was read, and from where.
      picture: path of the picture that the run is to animate.
    """
    if Path(picture).expanduser().exists() or picture != record["config"].get("image"):
        return picture
    beside = Path(path).expanduser().absolute().with_name(Path(picture).name)
    wanted = _hash_of_picture(record)
    if not beside.is_file() or wanted not in (None, sha256(beside)):
        return picture
    return str(beside)


def find_control_pictures(record: Mapping[str, Any], path: str | Path, pictures: Sequence[str]) -> tuple[str, ...]:
    """As `find_picture`, for the sources of control pictures; a folder is known by the hashes of its files."""
    recorded, found = record["config"].get("controls", {}).get("pictures", ()), []
    for number, source in enumerate(pictures):
        beside = Path(path).expanduser().absolute().with_name(Path(source).name)
        is_lost = not Path(source).expanduser().exists() and list(recorded[number : number + 1]) == [source]
        wanted = _hashes_of_controls(record)[number : number + 1]
        found.append(str(beside) if is_lost and beside.exists() and _digests([beside]) == wanted else source)
    return tuple(found)


def differences(
    record: Mapping[str, Any], config: ConfigDict, weights: Mapping[str, str], strict: bool = False
) -> list[str]:
    """Returns what a run has otherwise than the record that it begins from: versions, files of weights, the picture.

    Args:
      record: from `read`.
      config: of the run.
      weights: from `hashes`.
      strict: also a picture of another name, which is taken to be meant.
    """
    found, now = [], versions()
    for name, version in record.get("versions", {}).items():
        if now.get(name) != version:
            found.append(f"{name} was {version}, is {now.get(name, 'not here')}")
    there, here = record.get("weights", {}), set(weights.values())
    for file, digest in there.items():
        if digest not in here:
            found.append(f"no file of weights is the one that was {file} (SHA-256 {digest[:12]}...)")
    for file, digest in weights.items():
        if there and digest not in there.values():
            found.append(f"{file} (SHA-256 {digest[:12]}...) was not among the weights")
    wanted, recorded = _hash_of_picture(record), record["config"].get("image")
    if wanted and config.image and (strict or Path(config.image).name == Path(recorded).name):
        picture = Path(config.image).expanduser()
        if not picture.is_file():
            found.append(f"{config.image} is no picture, and the record is of {recorded}")
        elif sha256(picture) != wanted:
            found.append(f"the picture {config.image} is not the one that was {recorded} (SHA-256 {wanted[:12]}...)")
    before = record["config"].get("controls", {}).get("pictures", ())
    for source, recorded, wanted in zip(_control_pictures(config), before, _hashes_of_controls(record)):
        if (strict or Path(source).name == Path(recorded).name) and _digests([source]) != [wanted]:
            found.append(f"the control pictures {source} are not those that were {recorded}")
    further = record.get("further_files", {})
    read = {sha256(file) for file in further_files(config)} if further else set()
    found += [
        f"no picture or face embedding is the one that was {file} (SHA-256 {digest[:12]}...)"
        for file, digest in further.items()
        if digest not in read
    ]
    return found


def compare(record: Mapping[str, Any], path: str, config: ConfigDict, weights: Mapping[str, str]) -> None:
    """Warns of what a run has otherwise than the record that it begins from; see `differences`.

    Raises:
      InputError: there is such a thing, and `config.strict`.
    """
    found = differences(record, config, weights, config.strict)
    if not found:
        return
    message = f"this run is not that of {path}: {'; '.join(found)}."
    if config.strict:
        raise InputError(f"{message} Mend it, or leave --config.strict out.")
    warnings.warn(f"{message} The video may differ; --config.strict refuses.", stacklevel=2)


def is_done(stem: Path, suffixes: Sequence[str], config: ConfigDict, weights: Callable[[], Mapping[str, str]]) -> bool:
    """Whether a video was made already, of the same picture, with the same settings and weights.

    Args:
      stem: path of its files without their suffixes.
      suffixes: of them; the record's is ".json".
      config: of the video to make.
      weights: gives its `hashes`; called only where all else is the same.
    """
    files = [Path(f"{stem}{suffix}") for suffix in suffixes]
    if not all(file.is_file() for file in files):
        return False
    try:
        there = json.loads(Path(f"{stem}.json").read_text(encoding="utf-8"))
        settings, digests = dict(there["config"]), sorted(there["weights"].values())
        further = sorted(there.get("further_files", {}).values())
    except (ValueError, KeyError, TypeError, AttributeError):  # somebody else's file
        return False
    wanted = travelling(config)
    settings = _completed(settings, wanted, travelling(commands.load_config(KEYS)))
    if _of_result(settings) != _of_result(wanted) or _hash_of_picture(there) != sha256(Path(config.image)):
        return False
    if further != sorted(sha256(file) for file in further_files(config)):
        return False
    if _hashes_of_controls(there) != _digests(_control_pictures(config)):
        return False
    return digests == sorted(weights().values())


def in_background(function: Callable[..., Any], *arguments: Any) -> Future:
    """Calls a function in a thread that the end of the process does not wait for."""
    future = Future()

    def work() -> None:
        try:
            future.set_result(function(*arguments))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    return future


def _completed(settings: Mapping[str, Any], wanted: Mapping[str, Any], default: Mapping[str, Any]) -> dict[str, Any]:
    """A record's settings with the defaults of keys that there were not when it was written."""
    found = dict(settings)
    for key in wanted.keys() & default.keys():
        if key not in found:
            found[key] = default[key]
        elif all(isinstance(one.get(key), dict) for one in (found, wanted, default)):
            found[key] = _completed(found[key], wanted[key], default[key])
    return found


def _of_result(values: Mapping[str, Any]) -> dict[str, Any]:
    """What decides of a result; how control pictures are read only where there are networks that look at them."""
    kept = {key: value for key, value in values.items() if key not in NOT_OF_RESULT + OF_COMMAND}
    controls = kept.pop("controls", {})
    if kept.get("weights", {}).get("controls"):
        kept["controls"] = {key: value for key, value in controls.items() if key != "pictures"}
    return kept


def _control_pictures(config: Mapping[str, Any]) -> Sequence[str]:
    return config.get("controls", {}).get("pictures", ())


def _digests(sources: Iterable[str | Path]) -> list[list[str]]:
    return [sorted(hashes(given.files_of(source)).values()) for source in sources]


def _hashes_of_controls(record: Mapping[str, Any]) -> list[list[str]]:
    """Of each source of control pictures, the hashes of its files; of files that name none, nothing."""
    recorded = record.get("controls", [])
    return [sorted(files.values()) for files in recorded] if isinstance(recorded, list) else []


def _hash_of_picture(record: Mapping[str, Any]) -> str | None:
    picture = record.get("picture")
    return next(iter(picture.values()), None) if isinstance(picture, dict) else None


def _absolute_style(text: str) -> str:
    """A LoRA, `FILE=SCALE` or `FILE`, where a file that is on this machine has its absolute path."""
    source, _ = style(text)
    return _absolute(source) + text[len(source) :]


def _absolute_embedding(text: str) -> str:
    """An embedding, `TOKEN=FILE` or `FILE`, likewise."""
    _, source = token_and_file(text)
    return text.removesuffix(source) + _absolute(source)


MARKED = {"loras": _absolute_style, "embeddings": _absolute_embedding}
"""Keys of `weights` whose files have something beside them."""


def _absolute(source: Any) -> Any:
    """A source, or several, where what is on this machine has its absolute path."""
    if isinstance(source, list):
        return [_absolute(each) for each in source]
    if isinstance(source, dict):
        return {name: _absolute(each) for name, each in source.items()}
    found = local(source) if isinstance(source, str) and source else None
    return str(found.absolute()) if found else source
