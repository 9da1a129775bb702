"""Runs the frozen encoders over all clips once, and stores what they make of them, so that training never runs them.

    python -m i2v_jax.training.store --output=stored --config=configs/train/sd15_stage1.py [--epochs=1]
    python train.py --config=configs/train/sd15_stage1.py --config.data.source=stored

Each of `--epochs` epochs stores each clip once, with other frames of it. On several hosts the same command is run on
each; every host stores its share. A pass that was cut off goes on where it was.
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
from tqdm import tqdm

from i2v_jax import commands
from i2v_jax.data import loader as clips
from i2v_jax.data import stored
from i2v_jax.devices import processes
from i2v_jax.devices.mesh import make_mesh, placer, put_batch, use_mesh
from i2v_jax.encoders import image_tokens, text
from i2v_jax.encoders.latents import video_moments
from i2v_jax.errors import InputError
from i2v_jax.families.family import family_of
from i2v_jax.families.model import assemble_config, load_tokenizers
from i2v_jax.families.weights import Weights
from i2v_jax.hub import on_disk
from i2v_jax.weights.load import Assembled

DEFAULT = Path(__file__).parents[2] / "configs" / "train" / "sd15_stage1.py"
PART = 1024  # clips in a file


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
        """Returns `mean`, `std`, `text` and, where the model has them, `pooled`, `sizes` and `image_tokens` of clips.

        Args:
          batch: as of `data.loader.Loader`.
        """
        mean, std = map(np.asarray, self._moments(self.weights["vae"], batch["video"]))
        encoded = dict(mean=mean, std=std) | self.text(batch)
        if self.family.has_sizes:
            encoded["sizes"] = np.asarray(batch["sizes"])
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
    on_part: Callable[[int], None] = lambda clips: None,
) -> None:
    """Stores a host's share of a number of epochs, from where an earlier pass stopped.

    Args:
      loader: of the clips; its batch size is how many are encoded at a time.
      encode: what `Encoders` does.
      writer: to the folder.
      epochs: how often each clip is stored.
      on_part: called with the number of clips in each part that is written.
    """
    if writer.progress["done"]:
        return
    if writer.progress["state"]:
        loader.restore(writer.progress["state"])
    end, done = epochs * loader.order.clips, False
    while not done:
        records = []
        while len(records) < PART and not done:
            batch, ids, positions = loader.next_batch()
            arrays = stored.narrow(encode(batch))
            for row, (name, position) in enumerate(zip(ids, positions)):
                if position < end:
                    records.append((name, {key: array[row] for key, array in arrays.items()}))
            done = positions[-1] >= end
        writer.write(records, loader.state(), done)
        on_part(len(records))


def main() -> None:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--output")
    parser.add_argument("--epochs", type=int, default=1)
    arguments, rest = parser.parse_known_args()
    config = commands.read_config(DEFAULT, [sys.argv[0], *rest], usage=__doc__)
    if not arguments.output or arguments.epochs < 1:
        raise InputError("Wanted: --output=FOLDER for what is stored, and --epochs of 1 or more.")
    output = on_disk(arguments.output)
    if stored.is_stored(config.data.source):
        raise InputError(f"data.source={config.data.source!r} holds stored clips already; wanted one of videos.")
    jax.config.update("jax_compilation_cache_dir", config.compilation_cache)
    processes.join(**config.distributed)
    host, hosts = jax.process_index(), jax.process_count()
    mesh = make_mesh({"data": -1}, jax.local_devices())  # each host works on its own

    # Encoders.
    weights = Weights.of_config(config.weights)
    assembled = assemble_config(config, mesh.devices.flat[0])
    configs = {name: part.config for name, part in assembled.items()}
    family, with_image_tokens = family_of(configs["unet"]), "image_proj" in configs
    of_encoders = {name: assembled[name] for name in family.components(with_image_tokens) if name != "unet"}
    check_frozen(of_encoders, config)
    loaded = {name: part.load(placer(mesh))[1] for name, part in of_encoders.items()}
    encoders = Encoders(configs, loaded, config.objective.vae_slice)

    # Clips.
    tokenize = functools.partial(text.tokenize_captions, load_tokenizers(weights, family))
    batch = -(-config.batch // hosts // mesh.size) * mesh.size
    loader = clips.make(
        dict(config.data) | dict(bad_list=config.data.bad_list or str(output / "bad_clips.{host}.jsonl")),
        batch,
        seed=config.seed,
        host=host,
        hosts=hosts,
        tokenize=tokenize,
        image_size=configs["image_encoder"].image_size if with_image_tokens else None,
    )
    about = dict(
        cut={name: config.data[name] for name in ("frames", "stride", "height", "width")},
        clips=loader.order.clips,
        epochs=arguments.epochs,
        seed=config.seed,
        hosts=hosts,
        arrays=family.stored_names(with_image_tokens),
        weights=config.weights.to_dict(),
    )
    with use_mesh(mesh):
        writer = stored.Writer(output, host, about)
        if host == 0:
            writer.write_empty(**encoders.empty(tokenize([""])))
        with tqdm(total=arguments.epochs * loader.order.clips // hosts, unit="clip", disable=host > 0) as bar:
            store(loader, lambda batch: encoders(put_batch(batch, mesh)), writer, arguments.epochs, bar.update)
    loader.close()
    print(f"stored in {output}", *(f"bad: {n} {cause}" for cause, n in loader.report()["bad"].items()), sep="\n")


def check_frozen(encoders: Mapping[str, Assembled], config: ConfigDict) -> None:
    """Raises InputError where a config trains an encoder."""
    paths = {f"{name}/{path}" for name, part in encoders.items() for path in part.parameters.entries}
    stored.check_frozen(path for path in sorted(paths) if any(re.fullmatch(one, path) for one in config.train))


if __name__ == "__main__":
    commands.run(main)
