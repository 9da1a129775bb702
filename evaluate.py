"""Measures a model on clips whose motion is known: python evaluate.py --config configs/evaluate/default.py

The code is i2v_jax/cli/evaluate.py.
"""

from i2v_jax import commands
from i2v_jax.cli.evaluate import main

if __name__ == "__main__":
    commands.run(main)
