"""What a run's record says beside its config: versions, and the hashes of the weights' files."""

import sys
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from importlib import metadata
from pathlib import Path
from typing import Any

from i2v_jax import __version__
from i2v_jax.weights.tensors import sha256

PACKAGES = ("jax", "jaxlib", "flax", "numpy", "pillow", "av")


def versions() -> dict[str, str]:
    """Returns the versions of what a run's result depends on."""
    own = {"i2v_jax": __version__, "python": sys.version.split()[0]}
    return own | {package: metadata.version(package) for package in PACKAGES}


def hashes(files: Iterable[Path]) -> dict[str, str]:
    """Returns {file: its SHA-256}."""
    return {str(file): sha256(file) for file in files}


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
