"""Trains the small RAFT on clips of the small world, whose flow is known, from nothing:

    python -m i2v_jax.training.flow [--folder runs/raft] [--steps 650] ...

FOLDER/trained.safetensors is then a RAFT for `evaluate.py`, as --config.metric_weights.raft, and FOLDER/curves has the
loss. Recipe of Teed and Deng 2020 (section 3.3, and their code): the L1 distance of every update's flow, weighted by
0.8 to the power of the updates still to come; AdamW with gradients clipped to norm 1, the rate growing over a
twentieth of the steps and falling linearly to 0; colours, noise and a covered rectangle drawn anew for each pair.
"""

import argparse
import dataclasses
import functools
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from i2v_jax import commands, media
from i2v_jax.data.small_world.drawing import render, truth
from i2v_jax.data.small_world.scene import CLIPS, FRAMES, draw
from i2v_jax.errors import InputError
from i2v_jax.models.kernels.choice import fastest, platform_of
from i2v_jax.models.raft import LEAST_SIDE, RAFT, SMALL, STRIDE, RAFTConfig
from i2v_jax.training.monitor import Monitor
from i2v_jax.training.optimizer import Optimizer
from i2v_jax.training.step import init_state, make_step
from i2v_jax.tree import unflatten
from i2v_jax.weights.save import save_own

GAMMA = 0.8
"""By how much less an update counts than the next one."""
JITTER, ASYMMETRIC = 0.4, 0.2  # of brightness, contrast and saturation; how often the second picture has its own
NOISE = 5.0  # the most, of 255
COVERED, COVER = 0.5, (0.13, 0.25)  # how often, and what share of a side
SHIFTED, SHIFT = 0.75, 5  # how often the second picture is cut elsewhere, as by a pan, and by how many pixels at most
LEAST_GAP, MOST_GAP = 1 / (FRAMES - 1), 4 / (FRAMES - 1)  # between two pictures, of a clip's length

Batch = Mapping[str, Array]
"""Pictures `first`, `second` [n h w 3] of 0 to 255, and the `flow` [n H W 2] between them, enlarged."""


class Changes(NamedTuple):
    """What is done to the pictures of a batch; axis 1 is first, second."""

    colours: Float[Array, "n 2 3"]  # factors of brightness, contrast, saturation
    noise: Float[Array, "n 2 h w 3"]  # of 255
    covered: Float[Array, "n h w"]  # 1 where the second picture is covered

    def apply(self, pictures: Float[Array, "n 2 h w 3"]) -> Float[Array, "n 2 h w 3"]:
        """Returns pictures of 0 to 255, changed."""
        brightness, contrast, saturation = jnp.moveaxis(self.colours, -1, 0)[..., None, None, None]
        grey = functools.partial(jnp.mean, keepdims=True)
        bright = brightness * pictures
        contrasted = contrast * bright + (1 - contrast) * grey(bright, (2, 3, 4))
        changed = saturation * contrasted + (1 - saturation) * grey(contrasted, 4)
        changed = jnp.clip(changed + self.noise, 0, 255)
        second, covered = changed[:, 1], self.covered[..., None]
        second = (1 - covered) * second + covered * grey(second, (1, 2))
        return jnp.stack([changed[:, 0], second], 1)


@dataclasses.dataclass(frozen=True)
class FlowLoss:
    """Loss of a batch, as `step.make_step` takes it.

    Attributes:
      config: of the network.
      iterations: updates.
      times: by how much pictures are enlarged for it.
    """

    config: RAFTConfig
    iterations: int
    times: int

    def draw(self, key: Key[Array, ""], batch: Batch) -> Changes:
        """Draws how the pictures are changed."""
        n, height, width = batch["first"].shape[:3]
        keys = jax.random.split(key, 6)
        colours = jax.random.uniform(keys[0], (n, 2, 3), minval=1 - JITTER, maxval=1 + JITTER)
        alone = jax.random.bernoulli(keys[1], ASYMMETRIC, (n, 1))
        colours = colours.at[:, 1].set(jnp.where(alone, colours[:, 1], colours[:, 0]))
        deviation = jax.random.uniform(keys[2], (n, 1, 1, 1, 1), maxval=NOISE)
        noise = deviation * jax.random.normal(keys[3], (n, 2, height, width, 3))
        middles = jax.random.uniform(keys[4], (n, 2))
        sides = jax.random.uniform(keys[5], (n, 3), minval=jnp.array([*COVER[:1] * 2, 0.0]))
        halves = jnp.where(sides[:, 2:] < COVERED, COVER[0] + (COVER[1] - COVER[0]) * sides[:, :2], 0) / 2
        rows, columns = (
            jnp.abs((jnp.arange(size) + 0.5) / size - middles[:, i, None]) < halves[:, i, None]
            for i, size in enumerate((height, width))
        )
        return Changes(colours, noise, jnp.float32(rows[:, :, None] & columns[:, None]))

    def __call__(self, tree: Any, batch: Batch, changes: Changes) -> tuple[Float[Array, ""], dict[str, Array]]:
        """Returns the mean loss and, as "each", every pair's."""
        pictures = changes.apply(jnp.float32(jnp.stack([batch["first"], batch["second"]], 1)))
        n, two, height, width, _ = pictures.shape
        pictures = jax.image.resize(pictures, (n, two, self.times * height, self.times * width, 3), "linear")
        first, second = jnp.moveaxis(pictures / 127.5 - 1, 1, 0)
        flows = RAFT(self.config).apply({"params": tree}, first, second, self.iterations, every=True).full
        distances = jnp.abs(flows - batch["flow"]).mean((2, 3, 4))  # [updates n]
        weights = GAMMA ** jnp.arange(self.iterations - 1, -1, -1)
        each = weights @ distances
        return each.mean(), {"each": each}


def pairs(count: int, size: int, crop: int, times: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Renders a batch: two pictures of each of some clips of the train split, some time apart, in either order.

    Most of what a clip shows stands still, and a network begins by saying that nothing moves; so that it must look, the
    second picture is often cut elsewhere than the first (FlowNet's relative translation, Dosovitskiy et al. 2015).

    Args:
      count: of the pairs.
      size, crop: pixels of a side, as rendered and of what is cut out of that.
      times: by how much pictures will be enlarged.
      rng: draws clips, times and cuts.
    """
    found = []
    for number in rng.integers(CLIPS["train"], size=count):
        scene = draw(int(number))
        gap = rng.uniform(LEAST_GAP, MOST_GAP)
        start = rng.uniform(0, 1 - gap)
        moments = rng.permutation([start, start + gap])
        corner = rng.integers(size - crop + 1, size=2)
        shift = rng.integers(-SHIFT, SHIFT + 1, size=2) * (rng.random() < SHIFTED)
        corners = corner, np.clip(corner + shift, 0, size - crop)
        pictures = [cut(picture, *place, crop) for picture, place in zip(render(scene, moments, size), corners)]
        flow = cut(truth(scene, moments, times * size)[0][0], *times * corner, times * crop)
        found.append((*pictures, flow - times * np.float32(corners[1] - corner)[::-1]))
    return dict(zip(("first", "second", "flow"), map(np.stack, zip(*found))))


def cut(picture: np.ndarray, top: int, left: int, side: int) -> np.ndarray:
    """Returns a square of a picture or of a flow."""
    return picture[top : top + side, left : left + side]


def train(arguments: argparse.Namespace, config: RAFTConfig = SMALL) -> Path:
    """Trains, and writes the weights and the curves; returns the weights' file.

    Raises:
      InputError: arguments that fit no training, a file that is there already, a loss that is not finite.
    """
    a, times = arguments, check(arguments)
    path = Path(a.folder) / "trained.safetensors"
    computed = fastest(platform_of(jax.devices()[0]), jnp.float32)["convolution"]
    loss = FlowLoss(dataclasses.replace(config, convolution=computed), a.iterations, times)
    picture = jnp.zeros((1, times * a.crop, times * a.crop, 3))
    parameters = jax.jit(functools.partial(RAFT(config).init, iterations=1))(jax.random.key(a.seed), picture, picture)
    optimizer = Optimizer(
        learning_rate=a.learning_rate, schedule="linear", warmup_steps=a.steps // 20, weight_decay=1e-4, clip_norm=1.0
    )
    state = init_state(parameters["params"], chain := optimizer.make(a.steps))
    rate, key = optimizer.rate(a.steps), jax.random.key(a.seed)

    def made(step: int) -> dict[str, np.ndarray]:
        return pairs(a.batch, a.size, a.crop, times, np.random.default_rng((a.seed, step)))

    monitor = Monitor(Path(a.folder) / "curves", first_step=0, steps=a.steps, every=10, clips=a.batch)
    monitor.pause("compiling, once")
    step = jax.jit(make_step(loss, chain), donate_argnums=0).lower(state, {}, batch := made(0), key).compile()
    monitor.resume()
    with ThreadPoolExecutor(1) as ahead:
        for number in range(1, a.steps + 1):
            coming = ahead.submit(made, number) if number < a.steps else None
            state, metrics = step(state, {}, batch, key)
            began = time.perf_counter()
            batch = coming and coming.result()
            ids = [f"pair {i} of step {number}" for i in range(a.batch)]
            monitor.step(number, metrics, ids, time.perf_counter() - began, learning_rate=float(rate(number - 1)))
    monitor.close()
    save_own(path, {"raft": unflatten(jax.device_get(state.trained))}, {"raft": config})
    return path


def check(arguments: argparse.Namespace) -> int:
    """Returns by how much pictures are enlarged, as much as for measuring."""
    a = arguments
    for name in ("steps", "batch", "iterations"):
        if getattr(a, name) < 1:
            raise InputError(f"--{name.replace('_', '-')}={getattr(a, name)}: wanted 1 or more.")
    times = max(1, -(-LEAST_SIDE // max(a.size, 1)))
    least = -(-2 * STRIDE // times)
    if not least <= a.crop <= a.size or times * a.crop % STRIDE:
        raise InputError(
            f"--size={a.size} --crop={a.crop}: wanted a crop of {least} to {a.size} pixels, of which "
            f"{times} times as many are a multiple of {STRIDE}."
        )
    media.check_folder(a.folder)
    if (Path(a.folder) / "trained.safetensors").exists():
        raise InputError(f"{a.folder}/trained.safetensors is there already. Name another --folder.")
    return times


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", default="runs/raft")
    parser.add_argument("--steps", type=int, default=650)
    parser.add_argument("--batch", type=int, default=6, help="pairs of pictures in a step")
    parser.add_argument("--iterations", type=int, default=6, help="updates of the flow")
    parser.add_argument("--size", type=int, default=48, help="pixels of a clip's side, as they will be measured")
    parser.add_argument("--crop", type=int, default=32, help="pixels of a side that is trained on")
    parser.add_argument("--learning-rate", type=float, default=6e-4)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(argv)


def main() -> None:
    print(train(parse()))


if __name__ == "__main__":
    commands.run(main)
