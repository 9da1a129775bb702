"""PyTorch models as yardsticks: random weights, norms and biases included, and the same weights as our parameters."""

import math

import jax.numpy as jnp
import numpy as np
import torch

from i2v_jax.tree import unflatten
from i2v_jax.weights.tensors import Tensors
from i2v_jax.weights.translate import Imported, recognise


def randomise(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Draws every parameter anew, so that none has a value (0 or 1) that would hide its misuse."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, math.prod(parameter.shape[1:]) ** -0.5, generator=generator)
            else:
                parameter.normal_(float(name.endswith("weight")), 0.2, generator=generator)
    return model.eval()


def our_parameters(component: str, state: dict[str, torch.Tensor]) -> dict:
    """Returns a state dict as our nested tree."""
    parameters = _imported(component, {name: tensor.numpy() for name, tensor in state.items()}).parameters
    return unflatten({path: jnp.asarray(parameters[path]) for path in parameters})


def our_shapes(component: str, state: dict[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    """Returns {our path: our shape} of a state dict that may lie on the meta device."""
    state = {name: np.broadcast_to(np.float32(0), tensor.shape) for name, tensor in state.items()}
    return {path: entry.shape for path, entry in _imported(component, state).parameters.entries.items()}


def _imported(component: str, state: dict[str, np.ndarray]) -> Imported:
    imported = recognise(Tensors.of(state))[component]
    assert not imported.unknown and not imported.misshapen, (imported.unknown, imported.misshapen)
    return imported
