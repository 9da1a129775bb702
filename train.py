"""Trains an adapter, or any part of a model: python train.py --config configs/train/sd15_stage1.py

The code is i2v_jax/cli/train.py.
"""

from i2v_jax import commands
from i2v_jax.cli.train import main

if __name__ == "__main__":
    commands.run(main)
