"""`import`: any format into ours, as one safetensors file or as an orbax folder."""

import argparse

from convert.converting import opened, output, progress, summary
from i2v_jax.weights.save import save_own


def run(arguments: argparse.Namespace) -> int:
    """Writes OUTPUT and prints what it holds."""
    checkpoint = opened(arguments)
    tensors = checkpoint.tensors()
    configs = {name: it.config for name, it in checkpoint.components.items() if it.config is not None}
    if arguments.output.endswith(".safetensors"):
        save = save_own
    else:
        from i2v_jax.weights.orbax import save_own_orbax as save  # seconds to import
    with output(arguments) as path, progress(sum(it.nbytes for it in tensors.values()), "writing") as update:
        save(path, tensors, configs, checkpoint.metadata(), update)
    print(f"{arguments.output}:\n{summary(checkpoint)}")
    return 0
