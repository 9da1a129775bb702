"""`i2v`: the commands of an installed package, from any folder."""

import importlib
import os
import sys

import i2v_jax
from i2v_jax import commands
from i2v_jax.commands.wording import MODULES, PROGRAM
from i2v_jax.errors import InputError, nearest

SUMMARIES = {
    "sample": "animates pictures",
    "train": "trains an adapter, or any part of a model",
    "evaluate": "measures a model on clips whose motion is known",
    "convert": "moves weights between PyTorch and JAX, and to devices: import, export, verify, diff, merge, device ...",
    "plan": "says what of a run fits a TPU slice, and how long it takes",
    "controls": "shows what a control network will see of a video, pictures or poses",
    "study": "asks people which of several models' videos they prefer, blindly",
    "store": "runs the frozen encoders over clips once, for training",
    "finish": "makes a video ready for posting: aspect, text, logo, music, format",
    "page": "serves a page on which people animate pictures in a browser",
}


def main() -> None:
    """The console script."""
    commands.run(run_command)


def run_command() -> None:
    """Runs the command that the first argument names, on the others.

    Raises:
      InputError: there is no such command.
    """
    name, *arguments = sys.argv[1:] or ["--help"]
    sys.argv = [f"{PROGRAM}{name}", *arguments]
    if name in ("-h", "--help"):
        print("usage: i2v COMMAND ...; i2v COMMAND --help\n")
        print("\n".join(f"  {command:10}{summary}" for command, summary in SUMMARIES.items()))
        print(f"\nThe configs and the bundled small model are in {commands.ROOT}.")
    elif name == "--version":
        print(f"i2v-jax {i2v_jax.__version__}")
    elif name not in MODULES:
        raise InputError(f"i2v {name}: known commands: {', '.join(MODULES)}.{nearest(name, MODULES)}")
    elif name == "convert":
        os.environ.setdefault("JAX_PLATFORMS", "cpu")  # as `python -m convert`
        sys.path.insert(0, str(commands.ROOT))
        sys.exit(importlib.import_module("convert.__main__").main())
    elif name in ("controls", "study", "page"):
        importlib.import_module(f"{MODULES[name]}.__main__").main()
    else:
        importlib.import_module(MODULES[name]).main()
