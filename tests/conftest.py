"""Tests run on the CPU, in float32, with compiled programs kept between runs, in processes that stay small."""

import contextlib
import ctypes
import functools
import gc
import os
import resource
import shutil
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # PyTorch's spin while they wait for one that is held up

from tests.processes import xla_flags

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # tests run in several processes
os.environ.setdefault("XLA_FLAGS", xla_flags(8))
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")  # most of the time is compiling's, here and in commands
os.environ["JAX_DEFAULT_MATMUL_PRECISION"] = "highest"
os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "0")  # and a tenth of it the noting of where operations stand

import jax
import numpy as np
import pytest
import torch

from i2v_jax.weights.assemble import return_freed_memory

ARENA_MAX = -8  # in malloc.h
CACHE = Path(__file__).resolve().parent.parent / ".cache" / "jax"
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(CACHE)  # of commands that tests start
jax.config.update("jax_compilation_cache_dir", str(CACHE))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
with contextlib.suppress(OSError, AttributeError):  # glibc's: of a pool for each thread little can be given back
    ctypes.CDLL(None).mallopt(ARENA_MAX, 2)
gc.set_threshold(100_000, 20, 20)  # tracing makes many objects, none of them garbage

SMALL, GROWTH = 1.2e9, 0.3e9  # bytes: below the first nothing is given back, nor before it has grown by the second
LARGE = 1.8e9  # bytes of a process after a file, from where what the program keeps is forgotten, too
CACHED = type(functools.cache(print))
LONGEST = (
    *("train", "unet", "train_dynamicrafter", "convert", "pipeline", "page", "small_world_model", "sdxl_training"),
    *("dover", "checkpoints", "sdxl", "device", "stored", "control_command", "control_sampling", "text_in_time"),
    *("train_control", "longer", "measures", "train_miva"),
)  # files, of 40 seconds to six minutes
_of_imports = []
_size_before = 0.0


def memory() -> float:
    """Bytes of this process that lie in memory now; where the system does not tell, the most there ever were."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def pytest_collection_modifyitems(items):
    """The longest files begin first, so that processes end at about the same time."""
    places = {f"test_{name}": number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))


def caches() -> list:
    """All `functools.cache`s that collections look at."""
    return [value for value in gc.get_objects() if isinstance(value, CACHED)]


def pytest_collection_finish():
    """What imports have made stays: no collection need look at it."""
    _of_imports.extend(caches())
    gc.collect()
    gc.freeze()


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item, nextitem):
    """After a file's last test, forgets what `functools.cache`s of its own keep: models, programs."""
    global _size_before
    if nextitem is None or nextitem.module is not item.module:
        modules = (item.module.__name__,)
        if memory() > LARGE:
            modules += ("tests.", "i2v_jax.", "convert.")
        for value in [*_of_imports, *caches()]:
            if value.__module__.startswith(modules):
                value.cache_clear()
        _size_before = 0.0  # what other files have no use for is given back


@pytest.hookimpl(trylast=True)
def pytest_runtest_logfinish():
    """After a test, gives memory back that is free but kept by malloc, then compiled programs if these are many."""
    global _size_before

    def has_grown() -> bool:
        return memory() > max(SMALL, _size_before + GROWTH)

    if has_grown():
        return_freed_memory()
        if has_grown():
            jax.clear_caches()
            gc.collect()
            return_freed_memory()
        _size_before = memory()


@pytest.fixture(scope="module")
def browser():
    """A running Chromium that asks nothing of the network by itself."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not chromium:
        pytest.skip("no chromium is on the path: `apt-get install chromium`")
    from playwright.sync_api import sync_playwright

    off = ["gpu", "background-networking", "component-update", "sync", "quic"]
    with sync_playwright() as playwright:
        flags = ["--no-sandbox", "--no-first-run", *(f"--disable-{name}" for name in off)]
        running = playwright.chromium.launch(executable_path=chromium, args=flags)
        yield running
        running.close()


@pytest.fixture
def ieee_sqrt(monkeypatch):
    """Rounds the square roots of PyTorch tensors as IEEE 754 asks; MKL's differ in the last bit on some CPUs."""
    monkeypatch.setattr(torch.Tensor, "sqrt", lambda x: torch.from_numpy(np.asarray(np.sqrt(x.numpy()))))


@pytest.fixture
def measured(request):
    """Returns `measured(what, value, bar)`: asserts value <= bar, and lists it in the table after the run."""

    def check(what: str, value: float, bar: float) -> None:
        request.node.user_properties.append(("measured", (what, float(value), float(bar))))
        assert value <= bar, f"{what}: {value:.2e}, wanted at most {bar:.0e}"

    return check


def pytest_terminal_summary(terminalreporter):
    reports = [report for outcome in ("passed", "failed") for report in terminalreporter.stats.get(outcome, [])]
    rows = [row for report in reports for name, row in getattr(report, "user_properties", []) if name == "measured"]
    if rows:
        terminalreporter.section("measured against yardsticks (relative error, bar)")
        for what, value, bar in sorted(set(map(tuple, rows))):
            terminalreporter.write_line(f"{value:9.1e}  {bar:5.0e}  {what}")
