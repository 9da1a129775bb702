"""How the commands begin and end: strict `ml_collections` config files and flags; a message and exit code 2 on bad
input or where memory does not suffice, 130 on Ctrl-C."""

import contextlib
import json
import os
import re
import runpy
import sys
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn

from absl import flags
from ml_collections import ConfigDict, config_dict, config_flags

from i2v_jax.errors import InputError, nearest

ROOT = Path(__file__).resolve().parents[1]  # of the checkout, from which config files import `configs`
KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text", tuple: "a tuple like '(1, 2)'"}

OUT_OF_MEMORY = """\
The devices have too little memory for this. Any of these helps:
  --config.dtype=bfloat16 halves weights and activations
  a smaller height, width or number of frames
  sampling: --config.batch_per_device=1, --config.vae_slice=1; --config.mesh.frames=N spreads each video over N devices
  training: --config.remat=products, then full; --config.accumulate=N works through a batch in N parts;
    --config.frozen=fsdp with --config.mesh.fsdp=N leaves each device a share of the frozen weights"""


def run(main: Callable[[], None]) -> NoReturn:
    """Runs a command and leaves the process: code 0, 130 when interrupted, 2 with a message on bad input or when a
    device is out of memory."""
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_once()
            try:
                main()
            finally:
                sys.stdout.flush()  # here, where it shows that nobody reads it any more
    except InputError as error:
        _fail(str(error), 2)
    except BrokenPipeError:  # what read the output, such as `head`, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        if _is_out_of_memory(error):
            _fail(f"{OUT_OF_MEMORY}\n({str(error).splitlines()[0]})", 2)
        if not _is_one_of_several():
            raise
        traceback.print_exc()
        _fail(f"{type(error).__name__}: {error}", 1)
    sys.exit(0)


def _fail(message: str, code: int) -> NoReturn:
    print(f"error: {message}", file=sys.stderr, flush=True)
    if _is_one_of_several():
        from i2v_jax.devices import processes

        processes.leave(message, code)
    sys.exit(code)


def _is_one_of_several() -> bool:
    jax = sys.modules.get("jax")
    return jax is not None and jax.distributed.is_initialized()


def _is_out_of_memory(error: Exception) -> bool:
    jax = sys.modules.get("jax")  # commands that do not compute need not import it
    return jax is not None and isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in str(error)


def _show_once() -> Callable[..., None]:
    shown = set()

    def show(message: Warning, *where: Any) -> None:
        if str(message) not in shown:
            print(f"warning: {message}", file=sys.stderr)
        shown.add(str(message))

    return show


def read_config(default: str | Path, argv: Sequence[str] | None = None, usage: str = "") -> ConfigDict:
    """Reads the config of a command line: `--config=FILE[:ARGUMENT] --config.KEY=VALUE ...`, in any order.

    `--help` prints the default file, whose comments say what the keys mean, what another file changes, and leaves.

    Args:
        default: the config file when the command line names none; also says which keys there are, of which types.
        argv: the command line, the program first; `sys.argv` when None.
        usage: what the command does, for `--help`.

    Returns:
        The config with the flags applied, locked: a key that does not exist can be neither read nor set.

    Raises:
        InputError: a file that `load_config` refuses, an unknown key or flag (the nearest is named), a value of another
            type, an argument that is no flag.
    """
    values = flags.FlagValues()
    flags.DEFINE_string("config", str(default), "", flag_values=values)
    try:
        argv = values(list(sys.argv if argv is None else argv), known_only=True)
    except flags.Error as error:
        raise InputError(f"{error}. Write --config=FILE.") from None
    known = load_config(default)
    config = known if values.config == str(default) else load_config(values.config, known)
    if {"-h", "-help", "--help"} & set(argv):
        print(
            f"{usage}\n\nusage: {argv[0]} [--config=FILE] [--config.KEY=VALUE ...]\n\nKeys and defaults ({default}):\n"
        )
        print(Path(default).read_text(encoding="utf-8"))
        defaults = _leaves(known)
        changes = [f"    config.{key} = {value!r}" for key, value in _leaves(config).items() if value != defaults[key]]
        if changes:
            print(f"{values.config} changes:\n", *changes, sep="\n")
        sys.exit(0)
    return _override(config, argv)


def load_config(source: str | Path, known: ConfigDict | None = None) -> ConfigDict:
    """Reads a config file: a Python file with `get_config() -> ConfigDict`, or a JSON with the config under "config".

    A Python file can import others of this checkout, such as `configs.train.sd15_stage1`, from any working directory.

    Args:
        source: path of the file; of a Python file also "path:argument", for `get_config(argument)`.
        known: a config with every key there is: the file has no others, and they are of the same types. What the file
            lacks, such as a key that is newer than the file, is as in `known`.

    Returns:
        The config, locked.

    Raises:
        InputError: no such file, a file that fails (with its line), is no config, or has unknown keys.
    """
    name, arguments = os.path.expanduser(source), []
    if not Path(name).is_file() and ":" in name:
        name, *arguments = name.split(":", 1)
    path = Path(name)
    if not path.is_file():
        siblings = [str(sibling) for sibling in sorted(path.parent.glob("*.py"))]
        raise InputError(f"No config file at {name!r}.{nearest(name, siblings)}")
    config = _from_json(name) if path.suffix == ".json" else _from_python(name, arguments)
    if known is not None:
        _check(config, known, name)
        _match_types(config, known, name)
    return config.lock()


def _from_json(name: str) -> ConfigDict:
    try:
        return ConfigDict(json.loads(Path(name).read_text(encoding="utf-8"))["config"])
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


def _override(config: ConfigDict, argv: list[str]) -> ConfigDict:
    """Applies the flags `--config.KEY=VALUE` of a command line to a config, with the flags' own parsers."""
    leaves = _leaves(config)
    for argument in argv[1:]:
        if found := re.match(r"--?(?:no)?config\.([^=]*)", argument):
            key = found[1]
            if any(leaf.startswith(f"{key}.") for leaf in leaves):
                raise InputError(f"--config.{key} is a group of keys, set one of them: --config.{key}.KEY=VALUE.")
            if key not in leaves:
                raise InputError(
                    f"Unknown config key --config.{key}.{_nearest_key(key, leaves, '--config.')} --help lists them."
                )
    values = flags.FlagValues()
    try:
        config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=argv)
        rest = values(argv)
    except flags.UnrecognizedFlagError as error:
        hint = _nearest_key(error.flagname.removeprefix("config."), leaves, "--config.")
        raise InputError(f"Unknown flag --{error.flagname}.{hint} --help lists what there is.") from None
    except flags.IllegalFlagValueError as error:
        given, key = re.match(r"flag (--config\.([^=]+)=.*?): ", str(error), re.DOTALL).groups()
        raise InputError(f"{given}: {_wanted(_kind(config, key))} is wanted.") from None
    except flags.Error as error:
        raise InputError(f"{error}.") from None
    if len(rest) > 1:
        raise InputError(f"{rest[1]!r} belongs to no flag. Write --config.KEY=VALUE, and quote values with spaces.")
    return values.config


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
