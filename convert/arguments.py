"""What the commands' arguments mean, and a parser whose help keeps its lines and whose errors are like all others."""

import argparse
import contextlib
import math
from pathlib import Path
from typing import Any, NoReturn

from i2v_jax.errors import InputError, nearest
from i2v_jax.weights.storage.files import read_json

DTYPES = ("f32", "bf16", "f16")
PRECISIONS = ("float32", "float16", "int8")  # of `device`'s weights
UNMATCHED = ("refuse", "keep", "drop")  # `weights.merge` has them too, and takes seconds to import


class ArgumentParser(argparse.ArgumentParser):
    """Keeps the examples' lines in the help; raises `InputError` for a bad command line."""

    def __init__(self, **options: Any):
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        """Raises with what was wrong and where help is."""
        if message.startswith("unrecognized arguments"):
            message += ". Options stand before or after SOURCE and OUTPUT, not between them"
        raise InputError(f"{message}{'' if message.endswith(('?', '.')) else '.'} `{self.prog} --help` shows how.")


def lora(text: str) -> tuple[str, float]:
    """Reads `FILE` or `FILE=SCALE`, the scale finite. A file may have `=` in its name: one that is there is a file."""
    from i2v_jax.weights.styles import style

    try:
        return style(text)
    except InputError as error:  # argparse would replace a ValueError's message by its own
        raise argparse.ArgumentTypeError(str(error).removesuffix(".")) from error


def number(text: str) -> tuple[str, float]:
    """Reads `NAME=VALUE`, the value a finite number."""
    name, _, value = text.partition("=")
    with contextlib.suppress(ValueError):
        if name and math.isfinite(float(value)):
            return name, float(value)
    raise argparse.ArgumentTypeError(f"{text!r}: wanted NAME=VALUE with a finite number, such as rate=0.7")


def frames(text: str) -> int:
    """Reads a number of frames, 1 to 1024."""
    if text.isdecimal() and 1 <= int(text) <= 1024:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r}: wanted a number of frames, such as 24 or 32")


def component_config(text: str) -> tuple[str, dict[str, Any]]:
    """Reads `COMPONENT=FILE`, the file a config.json."""
    from i2v_jax.weights.formats import TABLES

    component, equals, name = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r}: wanted COMPONENT=FILE, such as unet=unet/config.json")
    if component not in TABLES:
        hint = nearest(component, TABLES) or f" There are {', '.join(TABLES)}."
        raise argparse.ArgumentTypeError(f"{text!r}: no component is called {component!r}.{hint}")
    try:
        return component, read_json(Path(name))
    except InputError as error:  # argparse would replace a ValueError's message by its own
        raise argparse.ArgumentTypeError(str(error).removesuffix(".")) from error


def size(text: str) -> int:
    """Reads a number of bytes such as `5GB` or `300 MB` (powers of ten, as diffusers counts)."""
    units = {"KB": 10**3, "MB": 10**6, "GB": 10**9}
    number, unit = text.strip()[:-2], text.strip()[-2:].upper()
    with contextlib.suppress(ValueError):
        if unit in units and 0 < float(number) < math.inf:
            return int(float(number) * units[unit])
    raise argparse.ArgumentTypeError(f"{text!r} is no size; wanted a number of KB, MB or GB, such as 5GB")
