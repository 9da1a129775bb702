"""Runs the frozen encoders over all clips once, and stores what they make of them, so that training never runs them.

    python -m i2v_jax.training.store --output=stored --config=configs/train/sd15_stage1.py [--epochs=1]
    python train.py --config=configs/train/sd15_stage1.py --config.data.source=stored

Each of `--epochs` epochs stores each clip once, with other frames of it. On several hosts the same command is run on
each; every host stores its share. Given --config.distributed.mode=flags, --config.distributed.processes=N and a
process=0 to N-1 for each, they need not know of each other: they may run in any order, or one after another. A pass
that was cut off, also by Ctrl-C, goes on where it was.
"""

import argparse
import functools
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from ml_collections import ConfigDict
from orbax.checkpoint import multihost
from tqdm import tqdm

from i2v_jax import commands
from i2v_jax.data import loader as clips
from i2v_jax.data import stored
from i2v_jax.devices import processes
from i2v_jax.devices.compile_cache import use_compile_cache
from i2v_jax.devices.mesh import make_mesh, placer, put_batch, use_mesh
from i2v_jax.encoders import image_tokens, text
from i2v_jax.encoders.latents import video_moments
from i2v_jax.errors import InputError
from i2v_jax.families.family import family_of
from i2v_jax.families.model import assemble_config, load_tokenizers
from i2v_jax.families.weights import Weights
from i2v_jax.hub import on_disk
from i2v_jax.training import setup
from i2v_jax.training.lock import lock
from i2v_jax.training.preemption import Preemption
from i2v_jax.weights.assemble import Assembled

DEFAULT = commands.ROOT / "configs" / "train" / "sd15_stage1.py"
SHORT = ("data.source", "batch", "seed")
FLAGS = dict(output="folder of what is stored", epochs="times that each clip is stored, each time cut anew [1]")
PART = 1024  # clips in a file
LONGEST = 7 * 24 * 3600  # seconds that hosts which have joined wait for the last one


class Encoders:
    """The frozen encoders of a model.

    Args:
      configs: component -> its network's config, the UNet's too.
      weights: component -> parameters.
      vae_slice: frames of each clip that the VAE encodes at a time; 0: all.
    """

    def __init__(self, configs: Mapping[str, Any], weights: Mapping[str, Any], vae_slice: int = 1):
        self.weights, self.family = weights, family_of(configs["unet"])
        self.with_image_tokens = "image_proj" in configs
        scale = configs["vae"].scaling_factor

        def moments(parameters, video):
            mean, logvar = video_moments(configs["vae"], parameters, video, vae_slice)
            mean, std = (jnp.asarray(x, jnp.float32) for x in (mean, jnp.exp(0.5 * jnp.asarray(logvar, jnp.float32))))
            return scale * mean, scale * std

        self._moments = jax.jit(moments)
        self._text = jax.jit(functools.partial(text.encode, self.family.text, configs))
        self._image_tokens = jax.jit(functools.partial(image_tokens.encode, configs))
        self._no_image = jax.jit(functools.partial(image_tokens.encode_unconditional, configs))

    def text(self, ids: Mapping[str, Array]) -> dict[str, Float[np.ndarray, "b ..."]]:
        """Returns `text` and, where the family has it, `pooled` of prompts' ids, float32."""
        names = [text.tokens_name(component) for component in self.family.text.components]
        found = self._text(self._tree(self.family.text.components), {name: ids[name] for name in names})
        arrays = dict(text=found.states, pooled=found.pooled)
        return {name: _float32(array) for name, array in arrays.items() if array is not None}

    def empty(self, ids: Mapping[str, Array]) -> dict[str, np.ndarray]:
        """Returns `text` (and `pooled`) of the empty prompt's ids and, for a model with image tokens, the unconditional
        `image_tokens`, without a batch axis."""
        found = self.text(ids)
        if self.with_image_tokens:
            found["image_tokens"] = _float32(self._no_image(self._tree(image_tokens.COMPONENTS)))
        return {name: array[0] for name, array in found.items()}

    def __call__(self, batch: Mapping[str, Array]) -> dict[str, np.ndarray]:
        """Returns `mean`, `std`, `text` and, where the model has them, `pooled`, `sizes`, `picture`, `fs` and
        `image_tokens` of clips.

        Args:
          batch: as of `data.loader.Loader`.
        """
        mean, std = map(np.asarray, self._moments(self.weights["vae"], batch["video"]))
        encoded = dict(mean=mean, std=std) | self.text(batch)
        for name in stored.EXACT:
            if name in self.family.stored_names(False):
                encoded[name] = np.asarray(batch[name], np.float32)
        if self.with_image_tokens:
            tokens = self._image_tokens(self._tree(image_tokens.COMPONENTS), batch["pixels"])
            encoded["image_tokens"] = _float32(tokens)
        return encoded

    def _tree(self, components):
        return {component: self.weights[component] for component in components}


def _float32(array: Array) -> np.ndarray:
    return np.asarray(jnp.asarray(array, jnp.float32))


def store(
    loader: clips.Loader,
    encode: Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]],
    writer: stored.Writer,
    epochs: int,
    stopping: Callable[[], bool] = lambda: False,
) -> bool:
    """Stores a host's share of a number of epochs, from where an earlier pass stopped.

    Args:
      loader: of the clips; its batch size is how many are encoded at a time.
      encode: what `Encoders` does.
      writer: to the folder.
      epochs: how often each clip is stored.
      stopping: whether to write what there is, and stop.

    Returns:
      Whether all of the share is stored.
    """
    if writer.progress["done"]:
        return True
    if writer.progress["state"]:
        loader.restore(writer.progress["state"])
    end, done = epochs * loader.order.clips, False
    while not done and not stopping():
        records = []
        while len(records) < PART and not done and not stopping():
            batch, ids, positions = loader.next_batch()
            arrays = stored.narrow(encode(batch))
            for row, (name, position) in enumerate(zip(ids, positions)):
                if position < end:
                    records.append((name, {key: array[row] for key, array in arrays.items()}))
            done = positions[-1] >= end
        writer.write(records, loader.state(), done)
    return done


def which_host(distributed: Mapping[str, Any]) -> tuple[int, int]:
    """Returns which host this is, of how many. Hosts that are told by flags do not join: each works on its own.

    Args:
      distributed: of a config.

    Raises:
      InputError: flags are missing or out of range, or the others cannot be reached.
    """
    if distributed["mode"] != "flags":
        processes.join(**distributed)
        return jax.process_index(), jax.process_count()
    host, hosts = distributed["process"], distributed["processes"]
    if host is None or hosts is None or not 0 <= host < hosts:
        raise InputError(
            f"distributed.process={host} of distributed.processes={hosts}: wanted how many hosts store, and which of "
            "them this is, from 0."
        )
    return host, hosts


def main() -> None:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--output")
    parser.add_argument("--epochs", type=int, default=1)
    arguments, rest = parser.parse_known_args()
    config = commands.read_config(DEFAULT, [sys.argv[0], *rest], __doc__, SHORT, FLAGS)
    if not arguments.output or arguments.epochs < 1:
        raise InputError("Wanted: --output=FOLDER for what is stored, and --epochs of 1 or more.")
    output = on_disk(arguments.output)
    if stored.is_stored(config.data.source):
        raise InputError(f"data.source={config.data.source!r} holds stored clips already; wanted one of videos.")
    use_compile_cache(config.compilation_cache, least_seconds=None)
    host, hosts = which_host(config.distributed)
    preemption = Preemption(unsaved=False, together=False)
    mesh = make_mesh({"data": -1}, jax.local_devices())  # each host works on its own

    # Encoders and clips.
    weights = Weights.of_config(config.weights)
    assembled = assemble_config(config, mesh.devices.flat[0])
    configs = {name: part.config for name, part in assembled.items()}
    family, with_image_tokens = family_of(configs["unet"]), "image_proj" in configs
    of_encoders = {name: assembled[name] for name in family.components(with_image_tokens) if name != "unet"}
    check_frozen(of_encoders, config)
    tokenize = functools.partial(text.tokenize_captions, load_tokenizers(weights, family))
    loader = open_clips(config, configs, tokenize, output, (host, hosts), mesh)
    about = dict(
        cut={name: config.data[name] for name in ("frames", "stride", "height", "width")},
        clips=loader.order.clips,
        epochs=arguments.epochs,
        seed=config.seed,
        hosts=hosts,
        arrays=family.stored_names(with_image_tokens),
        weights=config.weights.to_dict(),
    )
    if hosts > 1:
        about["batch"] = loader.order.batch_size  # by which they take turns

    _lock = lock(output, f"lock-{host:05d}")  # until this ends
    if not stored.read_progress(output, host, about)["done"]:
        loaded = {name: part.load(placer(mesh))[1] for name, part in of_encoders.items()}
        encoders = Encoders(configs, loaded, config.objective.vae_slice)
        with use_mesh(mesh):
            writer = stored.Writer(output, host, about)
            if host == 0:
                writer.write_empty(**encoders.empty(tokenize([""])))
            run(loader, encoders, writer, arguments.epochs, preemption, mesh)
    loader.close()
    left = [other for other in stored.unfinished(output) if other != host]
    print(f"stored in {output}", *(f"bad: {n} {cause}" for cause, n in loader.report()["bad"].items()), sep="\n")
    if jax.distributed.is_initialized():  # JAX lets nobody go long before the others
        multihost.sync_global_processes("stored", timeout=LONGEST, processes=set(range(hosts)))
    elif left:
        print(f"host {', '.join(map(str, left))} of {hosts} still to come: the same command there")


def open_clips(
    config: ConfigDict,
    configs: Mapping[str, Any],
    tokenize: clips.Tokenize,
    output: Path,
    host: tuple[int, int],
    mesh: jax.sharding.Mesh,
) -> clips.Loader:
    """The clips of a host, one of how many, in batches for its mesh."""
    return clips.make(
        dict(config.data) | dict(bad_list=config.data.bad_list or str(output / "bad_clips.{host}.jsonl")),
        -(-config.batch // host[1] // mesh.size) * mesh.size,
        seed=config.seed,
        host=host[0],
        hosts=host[1],
        tokenize=tokenize,
        **setup.reading(config, configs),
    )


def run(
    loader: clips.Loader,
    encoders: Encoders,
    writer: stored.Writer,
    epochs: int,
    preemption: Preemption,
    mesh: jax.sharding.Mesh,
) -> None:
    """Stores a host's share, with a bar; where a signal comes, stores what is encoded and leaves the process."""

    def encode(batch):
        encoded = encoders(put_batch(batch, mesh))
        preemption.unsaved = True
        bar.update(len(batch["video"]))
        return encoded

    share, state = epochs * loader.order.clips // loader.order.hosts, writer.progress["state"]
    begun = state["good"] if state else 0
    with tqdm(total=share, initial=begun, unit="clip", disable=jax.process_index() > 0) as bar:
        done = store(loader, encode, writer, epochs, preemption.noticed.is_set)
    preemption.unsaved = False
    if not done:
        loader.close()
        print(f"stopped by a signal after {loader.good} clips of this host; the same command goes on from there")
        sys.exit(preemption.exit_code)


def check_frozen(encoders: Mapping[str, Assembled], config: ConfigDict) -> None:
    """Raises InputError where a config trains an encoder."""
    paths = {f"{name}/{path}" for name, part in encoders.items() for path in part.parameters.entries}
    stored.check_frozen(path for path in sorted(paths) if any(re.fullmatch(one, path) for one in config.train))


if __name__ == "__main__":
    commands.run(main)
