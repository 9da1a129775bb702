"""What `--help` prints: each key of a command's config under its heading, with its meaning and its value."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from i2v_jax.commands.explained import explain

WIDTH = 120


def help_text(
    usage: str,
    program: str,
    values: Mapping[str, Any],
    default: Path,
    source: str,
    root: Path,
    short: Sequence[str] = (),
    flags: Mapping[str, str] | None = None,
) -> str:
    """Returns a command's help.

    Args:
      usage: what the command does.
      program: as it is called.
      values: key with its groups -> its value.
      default: the config file whose comments explain the keys.
      source: the config that the values are of.
      root: the folder that holds `configs`.
      short: see `short_names`.
      flags: the command's own flags, beside those of the config -> what they mean.
    """
    lines = [usage.strip(), "", f"usage: {program} [--config=FILE] [--KEY=VALUE ...]", ""]
    named = ", ".join(sorted(path.stem for path in default.parent.glob("*.py") if path.stem != "__init__"))
    lines += _row("--config=FILE", f"a config, by its path or its name ({named}), or the JSON of a run")
    for flag, meaning in (flags or {}).items():
        lines += _row(f"--{flag}", meaning)
    lines += _row("--config.KEY=VALUE", "any key below; those that begin with -- also go without `config.`")
    lines += ["", f"Keys, what they mean, and [their values in {source.removeprefix(f'{root}/')}]:"]
    sections = explain(default, root) if default.suffix == ".py" else []
    left = dict(values)
    for section in sections:
        keys = {key: left.pop(key) for key in section.keys if key in left}
        lines += _section(section.title, keys, section.keys, short)
    return "\n".join([*lines, *_section("Others", left, {}, short)])


def short_names(short: Sequence[str]) -> dict[str, str]:
    """Returns key -> its short flag: of `data.source`, `--source`; of `control=controls.pictures`, `--control`."""
    found = {}
    for entry in short:
        flag, _, key = entry.rpartition("=")
        found[key] = f"--{(flag or key.split('.')[-1]).replace('_', '-')}"
    return found


def shown(value: Any) -> str:
    """Returns a value as one writes it after `=`."""
    if value is None:
        return "unset"
    if isinstance(value, str):
        return value or '""'
    return str(value)


def _section(title: str, values: Mapping[str, Any], meanings: Mapping[str, str], short: Sequence[str]) -> list[str]:
    if not values:
        return []
    names = {key: _name(key, short) for key in values}
    column = 4 + max(map(len, names.values()))
    lines = ["", *textwrap.wrap(title, WIDTH)]
    for key, value in values.items():
        lines += _row(names[key], f"{meanings.get(key, '')} [{shown(value)}]".strip(), column)
    return lines


def _name(key: str, short: Sequence[str]) -> str:
    flag = short_names(short).get(key)
    return key if flag is None else f"{flag} ({key})" if "." in key else flag


def _row(name: str, text: str, column: int = 24) -> list[str]:
    first, space = f"  {name}".ljust(column), " " * column
    whole = dict(break_long_words=False, break_on_hyphens=False)
    return textwrap.wrap(text, WIDTH, initial_indent=first, subsequent_indent=space, **whole)
