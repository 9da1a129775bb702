"""python -m i2v_jax.data.small_world FOLDER: see `sheet`."""

from i2v_jax import commands
from i2v_jax.data.small_world.sheet import main

if __name__ == "__main__":
    commands.run(main)
