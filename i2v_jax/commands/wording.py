"""The names of the commands: `i2v sample` where the package is installed, `python sample.py` in the checkout."""

import re
import sys
from pathlib import Path

MODULES = {  # name of the command: its module
    "sample": "i2v_jax.cli.sample",
    "train": "i2v_jax.cli.train",
    "evaluate": "i2v_jax.cli.evaluate",
    "convert": "convert",
    "plan": "i2v_jax.planning.plan",
    "controls": "i2v_jax.sampling.controls",
    "study": "i2v_jax.evaluation.study",
    "store": "i2v_jax.training.store",
    "finish": "i2v_jax.finishing.finish",
    "page": "i2v_jax.page",
}
PROGRAM = "i2v "  # what `sys.argv[0]` begins with where `i2v` runs
PACKAGE = Path(__file__).resolve().parents[1]


def as_called(text: str) -> str:
    """Returns a text with the commands in it as they are called here: under `i2v`, `i2v sample`."""
    if not sys.argv[0].startswith(PROGRAM):
        return text
    names = {module: name for name, module in MODULES.items()}
    text = re.sub(
        r"(?:\.venv/bin/)?python -m ([\w.]*\w)",
        lambda found: PROGRAM + names[found[1]] if found[1] in names else found[0],
        text,
    )
    return re.sub(r"(?:(?:\.venv/bin/)?python )?(?<![\w/.-])(sample|train|evaluate)\.py\b", rf"{PROGRAM}\1", text)


def program(name: str) -> str:
    """Returns how a program is called whose `sys.argv[0]` is `name`."""
    path = Path(name)
    if path.is_absolute() and path.is_relative_to(PACKAGE):
        return f"python -m {'.'.join(path.relative_to(PACKAGE.parent).with_suffix('').parts)}"
    return f"python {name}" if path.suffix == ".py" else name
