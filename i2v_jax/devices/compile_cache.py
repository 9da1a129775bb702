"""Where compiled programs are kept from one process to the next: one folder a user, from wherever commands are run."""

import os
from pathlib import Path

import jax

AUTO = "auto"


def use_compile_cache(folder: str | Path = AUTO, least_seconds: float | None = 0) -> None:
    """Keeps the programs that this process compiles, and takes those that are kept.

    Args:
      folder: where; "" keeps none. "auto": where JAX has been told to (`JAX_COMPILATION_CACHE_DIR` or
        `jax_compilation_cache_dir`), and then nothing is changed; otherwise the user's folder, if it can be written.
      least_seconds: that compiling takes, for a program to be kept; None leaves JAX's own.
    """
    if str(folder) == AUTO:
        if jax.config.jax_compilation_cache_dir is not None:
            return
        if not (folder := user_cache()):
            return
    jax.config.update("jax_compilation_cache_dir", str(folder and Path(folder).expanduser()))
    if least_seconds is not None:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", least_seconds)


def cache_folder(folder: str | Path = AUTO) -> Path | None:
    """Returns the folder that `use_compile_cache` takes; None where nothing is kept."""
    if str(folder) == AUTO:
        folder = jax.config.jax_compilation_cache_dir
        folder = user_cache() if folder is None else folder
    return Path(folder).expanduser() if folder else None


def user_cache() -> Path | None:
    """Returns `$XDG_CACHE_HOME/i2v-jax`, which is `~/.cache/i2v-jax` by default; None where it cannot be written."""
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    try:
        folder = (base if base.is_absolute() else Path.home() / ".cache") / "i2v-jax"
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # a home that is read-only, or none
        return None
    return folder if os.access(folder, os.W_OK) else None
