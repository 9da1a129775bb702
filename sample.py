"""Animates pictures: python sample.py --config configs/sample/sd15.py --config.image=cat.jpg --config.prompt="a cat"

The code is i2v_jax/cli/sample.py.
"""

from i2v_jax import commands
from i2v_jax.cli.sample import main

if __name__ == "__main__":
    commands.run(main)
