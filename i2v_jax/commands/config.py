"""Strict `ml_collections` config files and flags: read, checked against the keys that a command has, overridden."""

import ast
import contextlib
import json
import os
import re
import runpy
import shlex
import sys
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_dict, config_flags

from i2v_jax.commands.help import help_text, short_names
from i2v_jax.commands.wording import PACKAGE, as_called, program
from i2v_jax.errors import InputError, nearest
from i2v_jax.hub import read_text

BUNDLED = PACKAGE / "bundled"  # of an installed package
ROOT = BUNDLED if BUNDLED.is_dir() else PACKAGE.parent  # holds `configs`, `assets` and `convert`: else the checkout
KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text", tuple: "a tuple like '(1, 2)'"}


def read_config(
    default: str | Path,
    argv: Sequence[str] | None = None,
    usage: str = "",
    short: Sequence[str] = (),
    own_flags: Mapping[str, str] | None = None,
) -> ConfigDict:
    """Reads the config of a command line: `--config=FILE[:ARGUMENT] --config.KEY=VALUE ...`, in any order.

    `--help` prints every key with what the comments of the default file say of it, and leaves.

    Args:
        default: the config file when the command line names none; also says which keys there are, of which types.
        argv: the command line, the program first; `sys.argv` when None.
        usage: what the command does, for `--help`.
        short: keys that are common: `data.source` can be set by `--source`, too; and `FLAG=KEY`.
        own_flags: flags that the command has read itself -> what they mean, for `--help` and for hints.

    Returns:
        The config with the flags applied, locked: a key that does not exist can be neither read nor set.

    Raises:
        InputError: a file that `load_config` refuses, an unknown key or flag (the nearest is named), a value of another
            type, an argument that is no flag.
    """
    argv = in_full(list(sys.argv if argv is None else argv), short)
    source, argv = config_source(default, argv)
    known = load_config(default)
    config = known if source == str(default) else load_config(source, known, Path(default).parent)
    if {"-h", "-help", "--help"} & set(argv):
        about = (_leaves(config), Path(default), source, ROOT, short, own_flags)
        print(help_text(as_called(usage), program(argv[0]), *about))
        sys.exit(0)
    return _override(config, argv, [*short_names(short).values()] + [f"--{flag}" for flag in own_flags or ()])


def config_source(default: str | Path, argv: Sequence[str] | None = None) -> tuple[str, list[str]]:
    """Returns the config that a command line names, or the default, and the command line without it.

    Raises:
        InputError: `--config` without a file.
    """
    values = flags.FlagValues()
    flags.DEFINE_string("config", str(default), "", flag_values=values)
    try:
        rest = values(list(sys.argv if argv is None else argv), known_only=True)
    except flags.Error as error:
        raise InputError(f"{error}. Write --config=FILE.") from None
    return values.config, rest


def in_full(argv: list[str], short: Sequence[str]) -> list[str]:
    """Returns a command line with the short names of keys written out: `--config.data.source` for `--source`."""
    keys = {flag: key for key, flag in short_names(short).items()}
    written = []
    for word in argv:
        name, equals, value = word.partition("=")
        key = keys.get(name.replace("_", "-"))
        written.append(f"--config.{key}{equals}{value}" if key else word)
    return written


def load_config(source: str | Path, known: ConfigDict | None = None, folder: Path | None = None) -> ConfigDict:
    """Reads a config file: a Python file with `get_config() -> ConfigDict`, or a JSON with the config under "config".

    A Python file can import the project's own, such as `configs.train.sd15_stage1`, from any working directory.

    Args:
        source: path of the file; of a Python file also "path:argument", for `get_config(argument)`. The project's own
            are found from any folder, by `configs/sample/sd15.py`, and where `folder` is theirs by `sd15`.
        known: a config with every key there is: the file has no others, and they are of the same types. What the file
            lacks, such as a key that is newer than the file, is as in `known`.
        folder: of configs that go by their names.

    Returns:
        The config, locked.

    Raises:
        InputError: no such file, a file that fails (with its line), is no config, or has unknown keys.
    """
    name, arguments = os.path.expanduser(source), []
    path = _find(name, folder)
    if path is None and ":" in name:
        name, *arguments = name.split(":", 1)
        path = _find(name, folder)
    if path is None:
        siblings = [str(sibling) for sibling in sorted(Path(name).parent.glob("*.py"))]
        named = [sibling.stem for sibling in sorted(folder.glob("*.py"))] if folder else []
        raise InputError(f"No config file at {name!r}.{nearest(name, siblings + named)}")
    name = str(path)
    config = _from_json(name) if path.suffix == ".json" else _from_python(name, arguments)
    if known is not None:
        _check(config, known, name)
        _match_types(config, known, name)
    return config.lock()


def _find(name: str, folder: Path | None) -> Path | None:
    """The file of a config, given by its path, its path in the project, or its name in a folder."""
    places = [Path(name), ROOT / name, *([folder / f"{name}.py"] if folder and "/" not in name else [])]
    return next((path for path in places if path.is_file()), None)


def _from_json(name: str) -> ConfigDict:
    try:
        text = read_text(name)
        return ConfigDict(json.loads(text)["config"])
    except InputError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{name!r} is no JSON with a config under 'config' ({error!r}).") from None


def _from_python(name: str, arguments: list[str]) -> ConfigDict:
    try:
        with _on_import_path(ROOT):
            content = runpy.run_path(name)
            config = content["get_config"](*arguments) if "get_config" in content else None
    except InputError:
        raise
    except Exception as error:  # whatever the file's own code raises
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == name]
        line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else "?"
        raise InputError(f"The config file {name!r} fails at line {line}: {type(error).__name__}: {error}") from error
    if not isinstance(config, ConfigDict):
        raise InputError(f"The config file {name!r} has no get_config() that returns a ConfigDict.")
    return config


@contextlib.contextmanager
def _on_import_path(folder: Path) -> Iterator[None]:
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))


def _check(config: ConfigDict, known: ConfigDict, name: str) -> None:
    """Raises for keys that `known` has not; gives `config` its values of those that `config` lacks."""
    wanted = _leaves(known)
    for key in _leaves(config):
        if key not in wanted:
            raise InputError(f"Unknown key {key!r} in {name!r}.{_nearest_key(key, wanted)}")
    _fill(config, known, name)


def _fill(config: ConfigDict, known: ConfigDict, name: str, prefix: str = "") -> None:
    with config.unlocked():
        for key, value in known.items():
            is_group = isinstance(value, ConfigDict)
            if key not in config:
                config[key] = value.copy_and_resolve_references() if is_group else value
            elif is_group:
                _fill(config[key], value, name, f"{prefix}{key}.")
            elif isinstance(config[key], ConfigDict):
                raise InputError(
                    f"{prefix}{key} in {name!r} is a group of keys, {_wanted(_kind(known, key))} is wanted."
                )


def _match_types(config: ConfigDict, known: ConfigDict, name: str) -> None:
    """Raises unless values are of the types of `known`; makes int float and list tuple where that is known."""
    for key, value in _leaves(config).items():
        parent, leaf = _parent(config, key)
        kind = _kind(known, key)
        if value is None and _kind(config, key) is not kind:
            typed = config_dict.placeholder(kind)
        elif (kind, type(value)) in ((float, int), (tuple, list)):
            typed = kind(value)
        elif value is None or kind in (type(None), type(value)):
            continue
        else:
            raise InputError(f"{key} in {name!r} is {value!r}, {_wanted(kind)} is wanted.")
        with parent.unlocked():
            del parent[leaf]  # a field keeps its first type
            parent[leaf] = typed


def _override(config: ConfigDict, argv: list[str], others: Sequence[str] = ()) -> ConfigDict:
    """Applies the flags `--config.KEY=VALUE` of a command line to a config, with the flags' own parsers; `others` are
    the command's flags beside these."""
    leaves = _leaves(config)
    for argument in argv[1:]:
        if not argument.isprintable() and any("\ud800" <= letter <= "\udfff" for letter in argument):
            raise InputError(f"{argument!r} is not UTF-8 text. Set the terminal to UTF-8.")
        if found := re.match(r"--?(?:no)?config\.([^=]*)", argument):
            key = found[1]
            if any(leaf.startswith(f"{key}.") for leaf in leaves):
                raise InputError(f"--config.{key} is a group of keys, set one of them: --config.{key}.KEY=VALUE.")
            if key not in leaves:
                raise InputError(
                    f"Unknown config key --config.{key}.{_nearest_key(key, leaves, '--config.')} --help lists them."
                )
    argv = [argv[0], *(_with_quotes(argument, config, leaves) for argument in argv[1:])]
    values = flags.FlagValues()
    try:
        config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=argv)
        rest = values(argv)
    except flags.UnrecognizedFlagError as error:
        hint = nearest(f"--{error.flagname.replace('_', '-')}", others)
        hint = hint or _nearest_key(error.flagname.removeprefix("config."), leaves, "--config.")
        raise InputError(f"Unknown flag --{error.flagname}.{hint} --help lists what there is.") from None
    except flags.IllegalFlagValueError as error:
        given, key = re.match(r"flag (--config\.([^=]+)=.*?): ", str(error), re.DOTALL).groups()
        raise InputError(f"{given}: {_wanted(_kind(config, key))} is wanted.") from None
    except flags.Error as error:
        raise InputError(f"{error}.") from None
    if len(rest) > 1:
        taken = [key for key in ("image", "video") if key in leaves and Path(rest[1]).exists()]
        meant = f" Did you mean --config.{taken[0]}={shlex.quote(rest[1])}?" if taken else ""
        raise InputError(
            f"{rest[1]!r} belongs to no flag.{meant} Write --config.KEY=VALUE, and quote values with spaces."
        )
    return values.config


def _with_quotes(argument: str, config: ConfigDict, leaves: Iterable[str]) -> str:
    """A flag whose value is a tuple of one text without quotes, such as a path with spaces, with them."""
    name, equals, value = argument.partition("=")
    key = re.sub(r"^--?config\.", "", name)
    if not equals or key not in leaves or _kind(config, key) is not tuple or set(value) & set("()[]'\""):
        return argument
    try:
        ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return f"{name}={value!r}" if value else argument
    return argument


def _leaves(config: ConfigDict, prefix: str = "") -> dict[str, Any]:
    leaves = {}
    for key, value in config.items():
        leaves |= _leaves(value, f"{prefix}{key}.") if isinstance(value, ConfigDict) else {f"{prefix}{key}": value}
    return leaves


def _parent(config: ConfigDict, key: str) -> tuple[ConfigDict, str]:
    *groups, leaf = key.split(".")
    for group in groups:
        config = config[group]
    return config, leaf


def _kind(config: ConfigDict, key: str) -> type:
    parent, leaf = _parent(config, key)
    return parent.get_type(leaf)


def _wanted(kind: type) -> str:
    return KINDS.get(kind, kind.__name__)


def _nearest_key(key: str, known: Iterable[str], prefix: str = "") -> str:
    """Like `nearest`; a key given without its group, or in another one, is found by its last part."""
    by_leaf = {name.split(".")[-1]: name for name in known}
    near = get_close_matches(key, list(known), n=1)
    near = near or [by_leaf[leaf] for leaf in get_close_matches(key.split(".")[-1], by_leaf, n=1)]
    return f" Did you mean {prefix + near[0]!r}?" if near else ""
