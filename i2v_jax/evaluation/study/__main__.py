"""python -m i2v_jax.evaluation.study make|serve|read ...: see `command`."""

from i2v_jax import commands
from i2v_jax.evaluation.study.command import main

if __name__ == "__main__":
    commands.run(main)
