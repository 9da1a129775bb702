"""The loss of clips that are held back from training: which ones, by a hash of their ids, and how it is measured.

Measured with draws that are always the same, at timesteps spread evenly, without dropout: a curve of it moves only
because the weights do, and does not depend on the devices, nor on where a run was stopped.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from ml_collections import ConfigDict

from i2v_jax import tree
from i2v_jax.data.clip import Source
from i2v_jax.data.loader import Loader
from i2v_jax.devices.mesh import put_batch, replicated
from i2v_jax.diffusion.noise_schedule import NoiseSchedule, to_x0
from i2v_jax.encoders.latents import decode
from i2v_jax.errors import InputError
from i2v_jax.training.objective import Batch, Loss
from i2v_jax.training.reconstruction import ReconstructionLoss
from i2v_jax.training.step import Flat, State
from i2v_jax.weights.new_lora import merged

LEVELS = 4  # timesteps at which each clip's loss is measured
SEED = 0  # of the draws and of which frames are taken, whatever the run's own: runs can be compared
NUMBER, WEIGHT = "held_out/number", "held_out/weight"  # beside a batch's arrays


def check(config: ConfigDict) -> None:
    """Raises InputError for settings out of range."""
    if not 0 <= config.share < 1:
        raise InputError(f"held_out.share={config.share}: wanted 0 (none) or a share of the clips below 1.")
    for name in ("every_steps", "clips"):
        if config[name] < 1:
            raise InputError(f"held_out.{name}={config[name]}: wanted 1 or more.")
    if config.patience < 0:
        raise InputError(f"held_out.patience={config.patience}: wanted 0 (the run goes to its end) or more.")
    if config.patience and not config.share:
        raise InputError(
            f"held_out.patience={config.patience} without clips that are held out: set held_out.share, such as 0.1."
        )


class Chosen:
    """Some of a source's clips, see `data.clip.Source`."""

    def __init__(self, source: Source, numbers: Sequence[int]):
        self.source, self.numbers = source, np.asarray(numbers)  # goes to worker processes

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, number: int) -> Any:
        return self.source[int(self.numbers[number])]


def split(source: Source, share: float) -> tuple[list[int], list[int]]:
    """Chooses clips by a hash of their ids: the same ones in any order, and beside any others.

    Args:
      source: of all clips. One without `id_of` has the clips' numbers for ids.
      share: of the clips to hold back, above 0; at least one is, and one is not.

    Returns:
      (kept, held): numbers of the clips to train on, in their order; and of those that are held back, by their hash,
      one of each id.

    Raises:
      InputError: there are not two clips.
    """
    names = [source.id_of(number) if hasattr(source, "id_of") else str(number) for number in range(len(source))]
    first = {name: number for number, name in reversed(list(enumerate(names)))}
    if len(first) < 2:
        raise InputError(f"held_out.share={share} of one clip: wanted 2 clips or more, or held_out.share=0.")
    ranked = sorted(first, key=lambda name: (_unit_hash(name), name))
    below = sum(_unit_hash(name) < share for name in ranked)
    held = ranked[: min(max(below, 1), len(ranked) - 1)]
    back = set(held)
    return [number for number, name in enumerate(names) if name not in back], [first[name] for name in held]


def _unit_hash(name: str) -> float:
    """A number in [0, 1) that a name always has."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:7], "big") / 2**56


class HeldOutLoss:
    """Measures the loss of clips, and how close the pictures are that a first estimate of them gives.

    Args:
      open_clips: opens the first `held_out.clips` of them for this process, given how many clips to a batch.
      config: of the run.
      loss: that is minimised.
      mesh: of the run.
      wait: waits for the run's other processes; called once, when the program is compiled.
    """

    def __init__(
        self,
        open_clips: Callable[[int], Loader],
        config: ConfigDict,
        loss: Loss | ReconstructionLoss,
        mesh: jax.sharding.Mesh,
        wait: Callable[[], None],
    ):
        self.open_clips, self.mesh, self.loss, self.wait = open_clips, mesh, without_chance(loss), wait
        self.shares = mesh.shape["data"] * mesh.shape["fsdp"]
        wanted = -(-config.held_out.clips // self.shares) * self.shares
        self.batch = min(config.batch // config.accumulate, wanted)
        self._batches: list[dict[str, np.ndarray]] | None = None
        self._program: Callable[..., dict[str, Array]] | None = None

    def __call__(self, state: State, frozen: Flat) -> dict[str, float]:
        """Returns `loss`, the mean; `loss_at_T` for some timesteps T; and, of clips that are videos, `psnr` in dB of
        their last frames, each decoded from an estimate in one step. The same with `_of_average` where an average of
        the weights is kept. Every process must call it."""
        found = self._measure(state.trained, frozen)
        if state.average is not None:
            found |= {f"{name}_of_average": value for name, value in self._measure(state.average, frozen).items()}
        return found

    def batches(self) -> list[dict[str, np.ndarray]]:
        """This process's shares of all batches, read once and kept; rows without a clip of their own weigh 0."""
        if self._batches is None:
            loader = self.open_clips(self.batch // jax.process_count())
            rounds = -(-loader.order.clips // self.batch)
            self._batches = []
            for _ in range(rounds):
                batch, _, positions = loader.next_batch()
                numbers = [loader.order.clip(position)[1] for position in positions]
                batch[NUMBER] = np.array(numbers, np.int32)
                batch[WEIGHT] = np.array([position < loader.order.clips for position in positions], np.float32)
                self._batches.append(batch)
            loader.close()
        return self._batches

    def _measure(self, trained: Flat, frozen: Flat) -> dict[str, float]:
        totals: dict[str, float] = {}
        for batch in self.batches():
            placed = put_batch(batch, self.mesh)
            for name, sums in self._levels(trained, frozen, placed):
                for key, value in sums.items():
                    totals[f"{key}{name}"] = totals.get(f"{key}{name}", 0.0) + float(value)
        return _means(totals)

    def _levels(self, trained, frozen, batch) -> Iterator[tuple[str, dict[str, Array]]]:
        """The sums of a batch at each timestep; an autoencoder has none."""
        levels: list[tuple[str, np.int32 | None]] = [("", None)]
        if isinstance(self.loss, Loss):
            count = self.loss.schedule.num_train_timesteps
            timesteps = [count * (2 * level + 1) // (2 * LEVELS) for level in range(LEVELS)]
            levels = [(f"_at_{timestep}", np.int32(timestep)) for timestep in timesteps]
        for name, timestep in levels:
            arguments = (trained, frozen, batch, timestep)
            if self._program is None:
                program = jax.jit(self._sums, out_shardings=replicated(self.mesh))
                self._program = program.lower(*arguments).compile()
                self.wait()
            yield name, self._program(*arguments)

    def _sums(self, trained: Flat, frozen: Flat, batch: Batch, timestep: Int[Array, ""] | None) -> dict[str, Array]:
        batch = dict(batch)
        numbers, weight = batch.pop(NUMBER), batch.pop(WEIGHT)
        weights = tree.unflatten(merged(frozen | trained))
        draws = draws_of_each(self.loss, batch, numbers)
        if timestep is not None:
            draws = draws._replace(timesteps=jnp.full_like(draws.timesteps, timestep))
        _, details = self.loss(weights, batch, draws)
        found = dict(loss=details["each"])
        if pictures := self._pictures(weights, batch, draws, details):
            found["psnr"] = psnr(*pictures)
        return {"count": weight.sum()} | {name: jnp.sum(jnp.where(weight > 0, x, 0)) for name, x in found.items()}

    def _pictures(self, weights, batch, draws, details) -> tuple[Array, Array] | None:
        """What is compared: pictures as they come out and as they are, both [b ...] in [-1, 1]."""
        if "video" not in batch:
            return None
        if "decoded" in details:
            return details["decoded"], jnp.asarray(batch["video"], jnp.float32) / 127.5 - 1
        last = jnp.asarray(batch["video"][:, -1], jnp.float32) / 127.5 - 1
        estimate = last_frames(self.loss.schedule, details["prediction"], details["noisy"], draws.timesteps)
        # one picture a device at a time: an autoencoder's finest layers are large
        estimate = estimate.reshape(self.shares, -1, *estimate.shape[1:]).swapaxes(0, 1)
        decoded = jax.lax.map(lambda x: decode(self.loss.configs["vae"], weights["vae"], x), estimate)
        return decoded.swapaxes(0, 1).reshape(last.shape), last


def last_frames(
    schedule: NoiseSchedule,
    prediction: Float[Array, "b f h w c"],
    noisy: Float[Array, "b f h w c"],
    timesteps: Int[Array, " b"],
) -> Float[Array, "b h w c"]:
    """Returns the clean latents of the last frames that a prediction stands for, without any dynamic rescale."""
    alpha, sigma = (scale(timesteps)[:, None, None, None] for scale in (schedule.alpha, schedule.sigma))
    estimate = to_x0(schedule.prediction_type, prediction[:, -1], noisy[:, -1], alpha, sigma)
    if not schedule.base_scale:
        return estimate
    return estimate / jnp.asarray(schedule.scales)[timesteps][:, None, None, None]


def count(source: Source) -> int:
    """Returns how many clips a source leaves out."""
    return len(source.source) - len(source) if isinstance(source, Chosen) else 0


def without_chance(loss: Loss | ReconstructionLoss) -> Loss | ReconstructionLoss:
    """A loss that drops no condition, adds no noise to any, and looks at whole frames."""
    nothing = dict(crop=0)
    if isinstance(loss, Loss):
        nothing = dict(prompt_swap=0.0, image_dropout=0.0, joint_dropout=0.0, implicit_dropout=0.0, image_noise=0.0)
        if not getattr(loss.configs.get("unet"), "miva", None):  # a MIVA has no prompt when it is sampled with either
            nothing["prompt_dropout"] = 0.0
    return dataclasses.replace(loss, objective=dataclasses.replace(loss.objective, **nothing))


def draws_of_each(loss: Loss | ReconstructionLoss, batch: Batch, numbers: Int[Array, " b"]) -> Any:
    """Draws for each clip by its number alone, so that they do not depend on the batch that it is in."""

    def draw(number, row):
        key = jax.random.fold_in(jax.random.key(SEED), number)
        return jax.tree.map(lambda x: x[0], loss.draw(key, jax.tree.map(lambda x: x[None], row)))

    return jax.vmap(draw)(numbers, dict(batch))


def psnr(pictures: Float[Array, "b ..."], wanted: Float[Array, "b ..."]) -> Float[Array, " b"]:
    """Peak signal-to-noise ratio in dB of pictures in [-1, 1]; what lies outside is cut off."""
    error = jnp.square(jnp.clip(pictures, -1, 1) - wanted).reshape(len(wanted), -1).mean(1)
    return 10 * jnp.log10(4 / jnp.maximum(error, 1e-10))


def _means(totals: Mapping[str, float]) -> dict[str, float]:
    """From sums by `NAME_at_TIMESTEP` to means, over clips and over all of these."""
    means: dict[str, list[float]] = {}
    for name, total in totals.items():
        kind, at, timestep = name.partition("_at_")
        if kind != "count":
            means.setdefault(kind, []).append(total / totals[f"count{at}{timestep}"])
            if at and kind == "loss":
                means[name] = [means[kind][-1]]
    return {name: sum(values) / len(values) for name, values in means.items()}
