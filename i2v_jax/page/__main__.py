"""python -m i2v_jax.page: see `command`."""

from i2v_jax import commands
from i2v_jax.page.command import main

if __name__ == "__main__":
    commands.run(main)
