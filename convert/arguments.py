"""What the commands' arguments mean, and a parser whose help keeps its lines and whose errors are like all others."""

import argparse
from pathlib import Path
from typing import Any, NoReturn

from i2v_jax.errors import InputError
from i2v_jax.weights.files import read_json


class ArgumentParser(argparse.ArgumentParser):
    """Keeps the examples' lines in the help; raises `InputError` for a bad command line."""

    def __init__(self, **options: Any):
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        """Raises with what was wrong and where help is."""
        raise InputError(f"{message}. `{self.prog} --help` shows how.")


def lora(text: str) -> tuple[str, float]:
    """Reads `FILE` or `FILE=SCALE`."""
    source, equals, scale = text.rpartition("=")
    try:
        return (source, float(scale)) if equals else (text, 1.0)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r}: wanted FILE or FILE=SCALE, such as style.safetensors=0.8"
        ) from None


def component_config(text: str) -> tuple[str, dict[str, Any]]:
    """Reads `COMPONENT=FILE`, the file a config.json."""
    component, equals, name = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r}: wanted COMPONENT=FILE, such as unet=unet/config.json")
    try:
        return component, read_json(Path(name))
    except InputError as error:  # argparse would replace a ValueError's message by its own
        raise argparse.ArgumentTypeError(str(error).removesuffix(".")) from error


def size(text: str) -> int:
    """Reads a number of bytes such as `5GB` or `300 MB` (powers of ten, as diffusers counts).

    Raises:
        InputError: no such number.
    """
    units = {"KB": 10**3, "MB": 10**6, "GB": 10**9}
    number, unit = text.strip()[:-2], text.strip()[-2:].upper()
    try:
        if unit in units and float(number) > 0:
            return int(float(number) * units[unit])
    except ValueError:
        pass
    raise InputError(f"{text!r} is no size. Wanted a number of KB, MB or GB, such as 5GB.")
