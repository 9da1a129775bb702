"""Seconds of DOVER on one video's views against the published PyTorch on a CPU, and how far the two are apart.

    python -m benchmarks.dover_speed --code FOLDER [--clips 3] [--rounds 3]

FOLDER is a checkout of VQAssessment/DOVER, of which the two backbones and the head are run, with random weights. It
wants torchvision, timm and einops. Views are of the published size: `--clips` of the technical one (a video has 3) and
the aesthetic one, 32 frames of 224x224 each. Float32; the two take turns, see `benchmarks.paired`.
"""

import argparse
import importlib
import os
import sys
import types
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import paired, torch_side
from i2v_jax.errors import InputError
from i2v_jax.models.dover import DOVER
from i2v_jax.models.kernels.choice import fastest
from i2v_jax.tree import unflatten
from i2v_jax.weights.tensors import Tensors
from i2v_jax.weights.translate import recognise
from i2v_jax.weights.whole import assemble_network


def views(args) -> tuple[np.ndarray, np.ndarray]:
    """Normalised noise, [clips frames h w 3]: technical, aesthetic."""
    rng = np.random.default_rng(0)
    return tuple(rng.normal(size=(n, 32, 224, 224, 3)).astype(np.float32) for n in (args.clips, 1))


def published_model(code: str):
    """The published networks with random weights, under the names of `DOVER.pth`."""
    import torch

    folder = Path(code) / "dover" / "models"
    if not (folder / "swin_backbone.py").is_file():
        raise InputError(
            f"--code={code}: no dover/models/swin_backbone.py there; wanted a checkout of VQAssessment/DOVER."
        )
    package = types.ModuleType("published")  # its own __init__ wants a reader of videos
    package.__path__ = [str(folder)]
    sys.modules["published"] = package
    swin, convnext, head = (
        importlib.import_module(f"published.{name}") for name in ("swin_backbone", "conv_backbone", "head")
    )
    torch.manual_seed(0)
    model = torch.nn.ModuleDict(
        dict(
            technical_backbone=swin.SwinTransformer3D(),
            aesthetic_backbone=convnext.convnext_3d_tiny(),
            technical_head=head.VQAHead(in_channels=768),
            aesthetic_head=head.VQAHead(in_channels=768),
        )
    ).eval()
    generator = torch.Generator().manual_seed(1)
    for name, tensor in model.named_parameters():
        if name.endswith("gamma"):
            tensor.fill_(0.5)
        elif tensor.ndim == 1:
            tensor.add_(0.1 * torch.randn(tensor.shape, generator=generator))
    return model


def published_call(args):
    """Returns a call that gives both maps of the published networks, and their weights."""
    import torch

    library = torch_side.ready(args.cores)
    model = published_model(args.code)
    inputs = dict(
        zip(("technical", "aesthetic"), (torch.from_numpy(np.moveaxis(v, -1, 1).copy()) for v in views(args)))
    )

    def call(library=library):
        return [model[f"{name}_head"](model[f"{name}_backbone"](x)).numpy()[:, 0] for name, x in inputs.items()]

    return call, torch_side.weights_of(model)


def our_call(args, weights):
    """Returns a call that gives both maps of ours, with the same weights; clips one after the other, as evaluate.py."""
    found = assemble_network(
        "dover", recognise(Tensors.of(weights))["dover"], convolution=fastest("cpu", jnp.float32)["convolution"]
    )
    parameters = {"params": unflatten({path: jnp.asarray(found.parameters[path]) for path in found.parameters})}
    module = DOVER(found.config)
    technical = jax.jit(lambda parameters, clip: module.apply(parameters, technical=clip).technical)
    aesthetic = jax.jit(lambda parameters, clip: module.apply(parameters, aesthetic=clip).aesthetic)
    first, second = views(args)

    def call():
        maps = [np.asarray(technical(parameters, clip[None])) for clip in first]
        return [np.concatenate(maps), np.asarray(aesthetic(parameters, second))]

    return call, None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--code", required=True)
    for name, value in dict(clips=3, rounds=3, cores=2).items():
        parser.add_argument(f"--{name}", type=int, default=value)
    args = parser.parse_args()

    def check(wanted, made):
        for name, theirs, ours in zip(("technical", "aesthetic"), wanted, made):
            print(f"{name} map, relative difference: {np.linalg.norm(ours - theirs) / np.linalg.norm(theirs):.1e}")

    paired.compare("published", published_call, our_call, args, check)


if __name__ == "__main__":
    main()
