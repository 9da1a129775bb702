"""`python -m convert` within a test's own process, and what a control network's folder goes through with it."""

from pathlib import Path

import numpy as np

from convert.__main__ import main
from i2v_jax.weights.storage.open import open_tensors


def convert(*arguments) -> int:
    """Runs the command; returns its exit code."""
    return main([str(argument) for argument in arguments])


def run(*arguments) -> None:
    """Runs the command, which must end well."""
    assert convert(*arguments) == 0


def read(path) -> dict[str, np.ndarray]:
    """All tensors of a file."""
    return {name: np.asarray(entry.read()) for name, entry in open_tensors(path).entries.items()}


def comes_back_to_diffusers(network, config, folder: Path) -> Path:
    """Checks that a network's config and its folder in `folder`/diffusers come back; returns the file in our form."""
    assert type(config).from_diffusers(network.config) == config
    again = type(network).from_config(config.to_diffusers())
    assert type(config).from_diffusers(again.config) == config
    assert {k: v.shape for k, v in again.state_dict().items()} == {k: v.shape for k, v in network.state_dict().items()}
    stem, ours = "diffusion_pytorch_model.safetensors", folder / "ours.safetensors"
    run("import", folder / "diffusers", ours)
    run("export", ours, folder / "back", "--to", "diffusers")
    assert (folder / "back" / stem).read_bytes() == (folder / "diffusers" / stem).read_bytes()
    return ours
