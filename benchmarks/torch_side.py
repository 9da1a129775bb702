"""PyTorch as the other side of a benchmark: set up for running a network, with torchvision whatever its build."""

import sys

import numpy as np


def ready(cores: int):
    """Sets PyTorch up to run a network on so many cores; returns what must live as long as torchvision is used."""
    import torch

    torch.set_grad_enabled(False)
    torch.set_num_threads(cores)
    return _with_torchvision()


def weights_of(model) -> dict[str, np.ndarray]:
    """The tensors of a module, by name."""
    return {name: tensor.numpy() for name, tensor in model.state_dict().items()}


def _with_torchvision():
    """Makes `import torchvision` work beside a torch that its build is not for; returns what must live as long."""
    import torch

    try:
        import torchvision  # noqa: F401

        return None
    except RuntimeError:  # for want of operators that RAFT needs none of
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]  # half imported
        return library
