"""How the commands begin and end: `read_config` for their command lines, `run` for their exit codes and messages."""

from i2v_jax.commands.config import ROOT, in_full, load_config, read_config
from i2v_jax.commands.ending import run

__all__ = ["ROOT", "in_full", "load_config", "read_config", "run"]
