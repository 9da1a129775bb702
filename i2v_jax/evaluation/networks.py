"""The networks that metrics need, RAFT, DOVER, CLIP, ...: loaded once, jitted, run in batches over devices.

Inputs are cut into batches of one size, so that a long video takes no more memory than a short one, and nothing is
compiled twice.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from numpy.random import Generator

from i2v_jax.errors import InputError
from i2v_jax.evaluation import dover_views
from i2v_jax.evaluation.journal import key_of
from i2v_jax.evaluation.metric import Case
from i2v_jax.evaluation.sets import stamp
from i2v_jax.hub import local
from i2v_jax.models.clip import CLIPTextEncoder, CLIPVisionEncoder
from i2v_jax.models.dino import DINO
from i2v_jax.models.dover import DOVER, normalised
from i2v_jax.models.i3d import I3D
from i2v_jax.models.kernels.choice import fastest, platform_of
from i2v_jax.models.lpips import LPIPS
from i2v_jax.models.raft import LEAST_SIDE, RAFT
from i2v_jax.models.tokenizer import ClipTokenizer
from i2v_jax.weights.assemble import load_image_encoder, load_text_encoder
from i2v_jax.weights.measuring import load_lpips
from i2v_jax.weights.whole import load_network

ITERATIONS = 20
"""Of RAFT, as EvalCrafter and VBench run it."""
CORRELATIONS = 2**27  # of all pairs of a batch: about 1 GB with the pyramid's borders
PAIRS = 8  # the most in a batch, of each device
PICTURES = 16  # in a batch of CLIP or DINO, of each device
LOOKS = 2  # pairs of pictures in a batch of LPIPS, of each device
CLIPS = 2  # videos in a batch of I3D, of each device


class Need(NamedTuple):
    """Weights that a metric needs: what they are of, the file, and where it is from."""

    title: str
    file: str
    where: str


NEEDS = {
    "raft": Need("RAFT", "raft-things.pth", "princeton-vl/RAFT's models.zip, or raft_large_C_T_V1 of torchvision"),
    "dover": Need("DOVER", "DOVER.pth", "the releases of VQAssessment/DOVER"),
    "clip": Need("CLIP ViT-B/32", "openai/clip-vit-base-patch32", "the hub, where there is a network"),
    "lpips": Need("LPIPS's AlexNet", "alexnet-owt-7be5be79.pth", "torchvision's AlexNet_Weights.IMAGENET1K_V1"),
    "dino": Need(
        "DINO ViT-B/16", "dino_vitbase16_pretrain.pth", "facebookresearch/dino, or facebook/dino-vitb16 of the hub"
    ),
    "i3d": Need(
        "I3D of Kinetics-400",
        "i3d_torchscript.pt",
        "the address in StyleGAN-V's frechet_video_distance.py, or i3d_pretrained_400.pt of TATS",
    ),
}
"""Key of `config.metric_weights` -> what it takes."""


def missing(name: str, metrics: Sequence[str]) -> str:
    """Returns what to say of metrics whose weights are not given."""
    need = NEEDS[name]
    return (
        f"not measured: {', '.join(metrics)}, for want of {need.title}. Give {need.file} (from {need.where}) as "
        f"--config.metric_weights.{name}=FILE."
    )


class Networks:
    """What metrics ask, see `metric.Networks`."""

    def __init__(self, sources: Mapping[str, str], devices: Sequence[jax.Device] | None = None):
        """Takes where weights are (keys of `NEEDS`) and the devices to run on; by default the first."""
        self.sources = {name: str(source) for name, source in sources.items() if source}
        self.devices = list(devices or jax.devices()[:1])
        mesh = jax.sharding.Mesh(np.array(self.devices), ("batch",))
        self.spread = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("batch"))
        self.everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
        self.computed = fastest(platform_of(self.devices[0]), jnp.float32)

    def has(self, name: str) -> bool:
        """Whether weights of that name are given."""
        return name in self.sources

    def identity(self, name: str) -> str:
        """Returns what tells the weights of a network from others, without reading them."""
        path = local(self.sources[name]) if name in self.sources else None
        if path is None:
            return self.sources.get(name, "")
        files = sorted(path.rglob("*")) if path.is_dir() else [path]
        return key_of([stamp(file) for file in files if file.is_file()])

    def load(self, name: str) -> None:
        """Loads a network, so that what is wrong with its file is said before anything is measured."""
        getattr(self, f"_{name}")

    def _loaded(self, load: Callable[..., tuple[Any, ...]], name: str, **options: Any) -> tuple[Any, ...]:
        if name not in self.sources:
            raise InputError(missing(name, [f"what {NEEDS[name].title} tells"]))
        return load(self.sources[name], place=lambda path, array: jax.device_put(array, self.everywhere), **options)

    def _network(self, name: str, **options: Any) -> tuple[Any, dict[str, Any]]:
        return self._loaded(functools.partial(load_network, name), name, **options)

    @functools.cached_property
    def _raft(self) -> Callable[..., Array]:
        config, parameters = self._network("raft", convolution=self.computed["convolution"])

        @jax.jit
        def run(parameters, first, second):
            with jax.default_matmul_precision("highest"):
                return RAFT(config).apply({"params": parameters}, first, second, ITERATIONS).full

        return functools.partial(run, parameters)

    @functools.cached_property
    def _dover(self) -> Callable[..., Any]:
        config, parameters = self._network("dover", convolution=self.computed["convolution"])

        @functools.partial(jax.jit, static_argnames="branch")
        def run(parameters, clips, branch):
            with jax.default_matmul_precision("highest"):
                maps = DOVER(config).apply({"params": parameters}, **{branch: normalised(clips)})
                return getattr(maps, branch).mean((1, 2, 3))

        return functools.partial(run, parameters)

    @functools.cached_property
    def _clip(self) -> tuple[int, Callable[..., Array], Callable[[str], Array]]:
        vision, parameters = self._loaded(load_image_encoder, "clip")
        text, text_parameters = self._loaded(load_text_encoder, "clip")
        if not (vision.projection_dim and text.projection_dim):
            raise InputError(
                f"{self.sources['clip']}: wanted a CLIP with both projections, such as {NEEDS['clip'].file}."
            )
        tokenizer = ClipTokenizer.bundled()

        @jax.jit
        def of_pictures(parameters, pixels):
            with jax.default_matmul_precision("highest"):
                return CLIPVisionEncoder(vision).apply({"params": parameters}, pixels).image_embeds

        @jax.jit
        def of_text(parameters, ids):
            with jax.default_matmul_precision("highest"):
                return CLIPTextEncoder(text).apply({"params": parameters}, ids).pooled

        def of_prompt(prompt):
            return of_text(text_parameters, tokenizer.encode([prompt], truncate=True))[0]

        return vision.image_size, functools.partial(of_pictures, parameters), of_prompt

    @functools.cached_property
    def _lpips(self) -> Callable[..., Array]:
        config, parameters, heads = self._loaded(load_lpips, "lpips", convolution=self.computed["convolution"])
        heads = [jax.device_put(head, self.everywhere) for head in heads]

        @jax.jit
        def run(parameters, heads, first, second):
            with jax.default_matmul_precision("highest"):
                return LPIPS(config).apply({"params": parameters}, first, second, heads)

        return functools.partial(run, parameters, heads)

    @functools.cached_property
    def _dino(self) -> Callable[..., Array]:
        return self._of_pixels("dino", DINO)

    @functools.cached_property
    def _i3d(self) -> Callable[..., Array]:
        return self._of_pixels("i3d", I3D)

    def _of_pixels(self, name: str, module: Callable[[Any], nn.Module]) -> Callable[..., Array]:
        """A network whose one input is pixels, its weights given."""
        config, parameters = self._network(name)

        @jax.jit
        def run(parameters, pixels):
            with jax.default_matmul_precision("highest"):
                return module(config).apply({"params": parameters}, pixels)

        return functools.partial(run, parameters)

    def _batches(self, run: Callable[..., Array], size: int, *arrays: np.ndarray) -> np.ndarray:
        """Runs a network on arrays of a common first axis, `size` of each device at a time, or a power of 2 below."""
        count, outputs = len(arrays[0]), []
        size = min(size, 2 ** max(0, -(-count // len(self.devices)) - 1).bit_length()) * len(self.devices)
        for first in range(0, count, size):
            parts = [array[first : first + size] for array in arrays]
            short = size - len(parts[0])
            padded = [np.concatenate([part, np.repeat(part[-1:], short, 0)]) if short else part for part in parts]
            placed = [jax.device_put(np.ascontiguousarray(part), self.spread) for part in padded]
            outputs.append(np.asarray(run(*placed))[: size - short])
        return np.concatenate(outputs)

    def flow_batch(self, height: int, width: int) -> int:
        """Returns how many pairs of pictures of a size go into a batch."""
        positions = (max(height, LEAST_SIDE) // 8) * (max(width, LEAST_SIDE) // 8)
        return len(self.devices) * max(1, min(PAIRS, CORRELATIONS // (4 * positions**2)))

    def flow(
        self, first: Float[np.ndarray, "n h w 3"], second: Float[np.ndarray, "n h w 3"]
    ) -> Float[np.ndarray, "n h w 2"]:
        """Returns RAFT's flow, in pixels, (right, down).

        Args:
          first, second: pixels of 0 to 255, sides multiples of 8 (EvalCrafter's warping error gives other numbers, see
            there). Those of less than 128 pixels, for which the published code gives none, are enlarged first.
        """
        height, width = first.shape[1:3]
        times = -(-LEAST_SIDE // min(height, width))
        pair = [np.float32(pixels) * np.float32(2 / 255) - 1 for pixels in (first, second)]
        if times > 1:
            sides = [dover_views.bilinear(side, times * side, 1 / times) for side in (height, width)]
            pair = [dover_views.resampled(pixels, *sides) for pixels in pair]
        flows = self._batches(self._raft, self.flow_batch(height, width) // len(self.devices), *pair)
        if times > 1:
            flows = flows.reshape(-1, height, times, width, times, 2).mean((2, 4)) / times
        return flows

    def dover(self, case: Case) -> tuple[float, float]:
        """Returns the raw technical and aesthetic score of a video."""

        def compute():
            # seeded by the case, so that its number is the same in whatever order a set is measured
            views = dover_views.views(case.video, Generator(np.random.PCG64(case.seed)))
            technical = self._batches(functools.partial(self._dover, branch="technical"), 1, views.technical)
            aesthetic = self._batches(functools.partial(self._dover, branch="aesthetic"), 1, views.aesthetic)
            return float(technical.mean()), float(aesthetic.mean())

        return case.once("dover", compute)

    @property
    def clip_size(self) -> int:
        """Side of the pictures that CLIP reads, in pixels."""
        return self._clip[0]

    def picture_embeddings(self, pixels: Float[np.ndarray, "n s s 3"]) -> Float[np.ndarray, "n d"]:
        """Returns CLIP's projected embeddings, of any length, of pixels as they are given."""
        return self._batches(self._clip[1], PICTURES, np.float32(pixels))

    def text_embedding(self, prompt: str) -> Float[np.ndarray, " d"]:
        """Returns CLIP's projected embedding of a text; what is longer than its 77 tokens is cut off."""
        return np.asarray(self._clip[2](prompt))

    def looks_apart(
        self, first: Float[np.ndarray, "n h w 3"], second: Float[np.ndarray, "n h w 3"]
    ) -> Float[np.ndarray, " n"]:
        """Returns LPIPS of pairs of pictures of -1 to 1, sides of 31 pixels or more."""
        return self._batches(self._lpips, LOOKS, np.float32(first), np.float32(second))

    def subject_embeddings(self, pixels: Float[np.ndarray, "n h w 3"]) -> Float[np.ndarray, "n d"]:
        """Returns DINO's embeddings, of any length, of normalised pixels, see `models.dino`."""
        return self._batches(self._dino, PICTURES, np.float32(pixels))

    def action_logits(self, pixels: Float[np.ndarray, "n f 224 224 3"]) -> Float[np.ndarray, "n d"]:
        """Returns I3D's logits of videos of -1 to 1."""
        return self._batches(self._i3d, CLIPS, np.float32(pixels))
