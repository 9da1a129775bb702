"""A page that tests start: in its own environment, on a port of this machine, with the bundled small model."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks import page_load
from tests.processes import ROOT, free_port, xla_flags

NO_ENVIRONMENT = "no .venv-page: `make .venv-page/.installed`"


@contextlib.contextmanager
def served(folder: Path, *options: str) -> Iterator[page_load.Server]:
    """A page whose programs are compiled quickly, and kept between runs of the tests."""
    if not page_load.PYTHON.is_file():
        pytest.skip(NO_ENVIRONMENT)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XLA_FLAGS", xla_flags(1))
        patch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
        patch.setenv("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".cache" / "jax"))
        patch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
        with page_load.served(free_port(), *options, folder=folder) as server:
            yield server
