"""`import`: any format into ours, as one safetensors file or as an orbax folder."""

import argparse
from pathlib import Path

from convert.converting import opened, output, summary, writing
from convert.embeddings import refuse_import
from i2v_jax.errors import InputError
from i2v_jax.weights.save import save_own
from i2v_jax.weights.storage.open import WEIGHT_SUFFIXES


def run(arguments: argparse.Namespace) -> int:
    """Writes OUTPUT and prints what it holds."""
    refuse_import(arguments.sources)
    suffix = Path(arguments.output).suffix
    if suffix == ".safetensors":
        save = save_own
    elif suffix in WEIGHT_SUFFIXES:
        raise InputError(
            f"import writes our own format, .safetensors or a folder, and {arguments.output} is neither. "
            "`export` writes the formats of others."
        )
    else:
        from i2v_jax.weights.save import save_own_orbax as save
    with output(arguments) as path:
        checkpoint = opened(arguments)
        configs = {
            name: component.config for name, component in checkpoint.components.items() if component.config is not None
        }
        with writing(path, checkpoint) as update:
            save(path, checkpoint.tensors(), configs, checkpoint.metadata(), update)
    print(f"{arguments.output}:\n{summary(checkpoint)}")
    return 0
