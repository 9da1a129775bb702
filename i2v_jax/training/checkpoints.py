"""A run's checkpoints: written by orbax beside the training, complete or absent, and proved when they are read.

The folder of a step holds `trained` and `average` (trees of weights, which `weights.assemble` reads too),
`optimizer`, and `about`: the data's position, the run's config, seed and frozen weights, the metric, and a checksum of
every array.
"""

import dataclasses
import hashlib
import json
import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils
from jaxtyping import Array, UInt32

from i2v_jax.errors import InputError
from i2v_jax.training.fingerprint import differences
from i2v_jax.training.step import Flat, State
from i2v_jax.tree import flatten, unflatten
from i2v_jax.weights.save import own_metadata

ABOUT = "about"
OLD = "old"  # where checkpoints go before they are deleted, so that none is ever half there


class Checkpoints:
    """Writes and reads the checkpoints of one folder. Every process of a run makes one, and calls it at the same steps.

    Args:
      folder: of all checkpoints; made where it is not there. What a run that was killed has left half-written is
        removed.
      keep: how many stay.
      best: the ones of lowest metric stay, and the latest; else the latest ones.
      configs: component -> its network's config, kept beside the weights for whoever reads these alone.

    Raises:
      InputError: `keep` below 1, or the folder cannot be made.
    """

    def __init__(
        self,
        folder: str | epath.PathLike,
        *,
        keep: int = 3,
        best: bool = False,
        configs: Mapping[str, Any] | None = None,
    ):
        if keep < 1:
            raise InputError(f"checkpoints.keep={keep}: wanted 1 or more.")
        self.folder = epath.Path(folder).expanduser().resolve()
        self.header = own_metadata(configs or {}, {})
        self.metrics: dict[int, float] = {}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.manager = ocp.CheckpointManager(
                self.folder,
                options=ocp.CheckpointManagerOptions(
                    preservation_policy=_Keep(keep, self.metrics if best else None),
                    todelete_subdir=OLD,
                    cleanup_tmp_directories=True,
                    single_host_load_and_broadcast=True,
                    lightweight_initialize=True,  # a damaged metadata file must not be in the way of the others
                    # else a folder that cannot be made is told of after minutes
                    async_options=ocp.AsyncOptions(create_directories_asynchronously=False),
                ),
            )
        except OSError as error:
            raise InputError(f"Cannot write checkpoints to {self.folder}: {error.strerror or error}.") from error
        self._remove_old()
        for step in self.manager.all_steps() if best else ():
            try:
                self.metrics[step] = self._read_about(step)["metric"]
            except (OSError, ValueError):
                continue  # damaged: `restore` tells, where it matters

    def latest(self) -> int | None:
        """Returns the step of the latest checkpoint; None where there is none."""
        return self.manager.latest_step()

    def describe_latest(self) -> str:
        """Returns which checkpoint is the latest, for messages."""
        return "none" if self.latest() is None else f"step {self.latest()} in {self.folder}"

    def save(
        self,
        step: int,
        state: State,
        positions: Sequence[Mapping[str, Any]],
        about: Mapping[str, Any],
        metric: float | None = None,
    ) -> None:
        """Begins to write a checkpoint; returns once the state may change. One that is there already is left as it is.

        Args:
          step: steps done.
          state: of the run.
          positions: of the data of all processes, as JSON can hold them.
          about: what else to keep, as JSON can hold it: the run's config and seed, and `frozen`, the fingerprint of its
            frozen weights.
          metric: how good the state is, lower is better; None or not finite counts as worst.

        Raises:
          InputError: this one or the one before cannot be written.
        """
        self.wait()
        if step in self.manager.all_steps():
            return
        self._remove_old()
        items = _items(state)
        leaves = flatten(items)
        sums = jax.device_get({name: checksum(leaf) for name, leaf in leaves.items()})
        self.metrics[step] = math.inf if metric is None or math.isnan(metric) else float(metric)
        content = dict(
            about=dict(about),
            positions=list(positions),
            metric=self.metrics[step],
            arrays={name: [leaf.dtype.name, list(leaf.shape), int(sums[name])] for name, leaf in leaves.items()},
        )
        saves = {name: ocp.args.PyTreeSave(tree, custom_metadata=self.header) for name, tree in items.items()}
        saves[ABOUT] = ocp.args.JsonSave(_seal(content))
        try:
            self.manager.save(step, args=ocp.args.Composite(**saves), force=True)
        except OSError as error:
            raise InputError(f"Cannot write the checkpoint of step {step}: {error}.") from error

    def restore(self, state: State, about: Mapping[str, Any]) -> tuple[State, list[dict[str, Any]], dict[str, Any]]:
        """Reads the latest checkpoint that is whole. Damaged ones are warned of, and renamed to `<step>.damaged`.

        Args:
          state: like that of the run, of arrays or of `jax.ShapeDtypeStruct` with shardings; these say where to put
            what is read, however it lay when it was written.
          about: of the run that goes on; its `frozen` must be the same, its config may differ.

        Returns:
          The state, the data's positions of all the processes that wrote it, and `about` as `save` was given it.

        Raises:
          InputError: there is no checkpoint, none is whole, or it is of other frozen weights, other trained ones, or
            another kind of optimizer.
        """
        self.wait()
        damaged = {}
        for step in sorted(self.manager.all_steps(), reverse=True):
            content, problem = _try(self._read_about, step)
            if not problem:
                self._check(step, content, state, about)
                leaves, problem = _try(self._read_arrays, step, state)
            if not problem:
                _, problem = _try(_prove, leaves, content["arrays"])
            if not problem:
                self._set_aside(damaged)
                return _with_leaves(state, leaves), content["positions"], content["about"]
            damaged[step] = problem
            warnings.warn(f"The checkpoint of step {step} in {self.folder} is damaged: {problem}.", stacklevel=2)
        raise InputError(
            f"No checkpoint in {self.folder} can be read"
            + "".join(f"; step {step}: {problem}" for step, problem in damaged.items())
            + ". Begin anew in another folder."
        )

    def wait(self) -> None:
        """Waits until what `save` has begun is written.

        Raises:
          InputError: it could not be written.
        """
        try:
            self.manager.wait_until_finished()
        except Exception as error:  # whatever a file system makes TensorStore raise
            raise InputError(f"A checkpoint could not be written to {self.folder}: {_short(error)}.") from error

    def close(self) -> None:
        """Waits as `wait` does, and ends the threads that write."""
        self.wait()
        self._remove_old()
        self.manager.close()

    def _read_about(self, step: int) -> dict[str, Any]:
        return _unseal(json.loads((self.folder / str(step) / ABOUT / "metadata").read_text()))

    def _check(self, step: int, content: Mapping[str, Any], state: State, about: Mapping[str, Any]) -> None:
        """Raises InputError where a whole checkpoint is not one of this run."""
        where = f"The checkpoint of step {step} in {self.folder}"
        if lines := differences(content["about"]["frozen"], about["frozen"]):
            raise InputError(
                f"{where} was trained on other frozen weights:\n"
                + "".join(f"  {line}\n" for line in lines)
                + "Give the weights, dtype and `train` patterns that it was trained with, or another folder."
            )
        held = {name: described[:2] for name, described in content["arrays"].items()}
        wanted = {name: [leaf.dtype.name, list(leaf.shape)] for name, leaf in _leaves(state).items()}
        if wrong := [name for name in sorted(held.keys() | wanted.keys()) if held.get(name) != wanted.get(name)]:
            name = wrong[0]
            raise InputError(
                f"{where} holds other arrays than this run trains: {len(wrong)} differ, such as {name} "
                f"({held.get(name, 'absent')} there, {wanted.get(name, 'absent')} here). Give `train`, the kind of "
                "optimizer and `average_decay` as they were, or another folder."
            )

    def _read_arrays(self, step: int, state: State) -> Flat:
        # Each process reads its part by itself: where one fails, none must wait for it at a barrier.
        here = jax.process_index()
        alone = ocp.options.MultiprocessingOptions(primary_host=here, active_processes={here})
        handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=alone)
        leaves = {}
        with ocp.Checkpointer(handler, multiprocessing_options=alone) as checkpointer:
            for name, tree in _items(state).items():
                places = jax.tree.map(lambda leaf: ocp.ArrayRestoreArgs(sharding=leaf.sharding), tree)
                read = checkpointer.restore(self.folder / str(step) / name, ocp.args.PyTreeRestore(tree, places))
                leaves |= {f"{name}/{path}": leaf for path, leaf in flatten(read).items()}
        return leaves

    def _set_aside(self, damaged: Iterable[int]) -> None:
        if not damaged:
            return
        if jax.process_index() == 0:
            for step in damaged:
                aside = self.folder / f"{step}.damaged"
                if aside.exists():
                    aside.rmtree()
                (self.folder / str(step)).rename(aside)
        multihost_utils.sync_global_devices("damaged checkpoints are set aside")
        self.manager.reload()

    def _remove_old(self) -> None:
        old = self.folder / OLD
        if jax.process_index() == 0 and old.exists():
            old.rmtree()


@dataclasses.dataclass
class _Keep:
    """Which checkpoints stay, for orbax: the latest ones, or the ones of lowest metric and the latest."""

    count: int
    metrics: Mapping[int, float] | None

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        steps = [checkpoint.step for checkpoint in checkpoints]
        stay = steps[-self.count :]
        if self.metrics is not None:
            stay = sorted(steps, key=lambda step: self.metrics.get(step, math.inf))[: self.count] + steps[-1:]
        return [step in stay for step in steps]


@jax.jit
def checksum(array: Array) -> UInt32[Array, ""]:
    """The sum of an array's elements, each one's bits mixed with its place (by MurmurHash3's last step).

    Integer sums do not depend on their order, so that it is the same however the array is spread over devices.
    """
    bits = array.astype(jnp.uint8) if array.dtype == bool else array
    bits = jax.lax.bitcast_convert_type(bits, jnp.dtype(f"uint{8 * min(bits.dtype.itemsize, 4)}")).astype(jnp.uint32)
    place = jnp.zeros(bits.shape, jnp.uint32)
    for axis, size in enumerate(bits.shape):
        place = place * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
    mixed = bits ^ (place * jnp.uint32(0x9E3779B9))
    mixed = (mixed ^ (mixed >> 16)) * jnp.uint32(0x85EBCA6B)
    mixed = (mixed ^ (mixed >> 13)) * jnp.uint32(0xC2B2AE35)
    return jnp.sum(mixed ^ (mixed >> 16), dtype=jnp.uint32)


def _prove(leaves: Flat, arrays: Mapping[str, Sequence[Any]]) -> None:
    sums = jax.device_get({name: checksum(leaf) for name, leaf in leaves.items()})
    if wrong := [name for name, value in sums.items() if int(value) != arrays[name][2]]:
        raise ValueError(f"{len(wrong)} arrays are not what was written, such as {wrong[0]}")


def _items(state: State) -> dict[str, dict[str, Any]]:
    """What orbax writes of a state: a tree under each name."""
    items = {"trained": unflatten(state.trained), "optimizer": {"step": state.step, "state": _by_path(state.optimizer)}}
    return items if state.average is None else items | {"average": unflatten(state.average)}


def _leaves(state: State) -> Flat:
    return flatten(_items(state))


def _with_leaves(state: State, leaves: Flat) -> State:
    """The inverse of `_leaves`, with the structure of `state`."""

    def at(prefix: str, tree: Any) -> Any:
        return jax.tree_util.tree_map_with_path(lambda path, _: leaves[prefix + _name(path)], tree)

    return State(
        leaves["optimizer/step"],
        at("trained/", state.trained),
        at("optimizer/state/", state.optimizer),
        at("average/", state.average),
    )


def _by_path(tree: Any) -> dict[str, Any]:
    return unflatten({_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)})


def _name(path: tuple[Any, ...]) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _seal(content: Mapping[str, Any]) -> dict[str, str]:
    text = json.dumps(content)
    return {"content": text, "sha256": hashlib.sha256(text.encode()).hexdigest()}


def _unseal(sealed: Any) -> dict[str, Any]:
    text = str(sealed.get("content")) if isinstance(sealed, dict) else ""
    if not text or hashlib.sha256(text.encode()).hexdigest() != sealed.get("sha256"):
        raise ValueError("its description is not what was written")
    return json.loads(text)


def _try(read: Callable[..., Any], *arguments: Any) -> tuple[Any, str]:
    """Calls a function on every process; returns its result and what is wrong on any of them, "" for nothing."""
    try:
        result, problem = read(*arguments), ""
    except (MemoryError, jax.errors.JaxRuntimeError):
        raise
    except Exception as error:  # damage makes orbax and TensorStore raise whatever they come upon
        result, problem = None, _short(error)
    if jax.process_count() > 1 and not multihost_utils.process_allgather(np.array(not problem)).all():
        problem = problem or "another process cannot read it"
    return result, problem


def _short(error: Exception) -> str:
    """The first line of a message, which may be long."""
    return (str(error).splitlines() or [type(error).__name__])[0][:300]
