"""python -m i2v_jax.sampling.controls preview SOURCE ...: see `preview`."""

from i2v_jax import commands
from i2v_jax.sampling.controls.preview import main

if __name__ == "__main__":
    commands.run(main)
