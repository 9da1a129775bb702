"""Runs the frozen encoders over all clips once, and stores what they make of them, so that training never runs them.

    python -m i2v_jax.training.store --output=stored --config=configs/train/sd15_stage1.py [--epochs=1]
    python train.py --config=configs/train/sd15_stage1.py --config.data.source=stored

Each of `--epochs` epochs stores each clip once, with other frames of it. On several hosts the same command is run on
each; every host stores its share. A pass that was cut off goes on where it was.
"""

import argparse
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int32, UInt8
from tqdm import tqdm

from i2v_jax import commands
from i2v_jax.data import loader as clips
from i2v_jax.data import stored
from i2v_jax.devices import processes
from i2v_jax.devices.mesh import make_mesh, placer, put_batch, use_mesh
from i2v_jax.errors import InputError
from i2v_jax.hub import on_disk
from i2v_jax.models.clip import CLIPTextEncoder, CLIPVisionEncoder
from i2v_jax.models.image_projection import projection_of
from i2v_jax.models.tokenizer import ClipTokenizer
from i2v_jax.models.vae import AutoencoderKL
from i2v_jax.training import setup

DEFAULT = Path(__file__).parents[2] / "configs" / "train" / "sd15_stage1.py"
PART = 1024  # clips in a file


class Encoders:
    """The frozen encoders of a model.

    Args:
      configs: component -> its network's config.
      weights: component -> parameters.
      vae_slice: frames of each clip that the VAE encodes at a time; 0: all.
    """

    def __init__(self, configs: Mapping[str, Any], weights: Mapping[str, Any], vae_slice: int = 1):
        self.weights, self.vae_slice = weights, vae_slice
        vae, text = AutoencoderKL(configs["vae"]), CLIPTextEncoder(configs["text_encoder"])
        scale = configs["vae"].scaling_factor

        def moments(parameters, frames):
            b, f = frames.shape[:2]
            pictures = jnp.asarray(frames, jnp.float32).reshape(b * f, *frames.shape[2:]) / 127.5 - 1
            mean, logvar = vae.apply({"params": parameters}, pictures, method="encode")
            mean, std = (jnp.asarray(x, jnp.float32) for x in (mean, jnp.exp(0.5 * jnp.asarray(logvar, jnp.float32))))
            return tuple(scale * x.reshape(b, f, *x.shape[1:]) for x in (mean, std))

        def states(parameters, tokens):
            return jnp.asarray(text.apply({"params": parameters}, tokens).last_hidden, jnp.float32)

        self._moments, self._text, self._image_tokens = jax.jit(moments), jax.jit(states), None
        if "image_proj" in configs:
            encoder, config = CLIPVisionEncoder(configs["image_encoder"]), configs["image_proj"]
            self.picture = configs["image_encoder"].image_size

            def image_tokens(parameters, projection, pixels, empty):
                features = getattr(encoder.apply({"params": parameters}, pixels), config.reads)
                if config.reads == "image_embeds":
                    features = jnp.where(empty, 0, features)
                return jnp.asarray(projection_of(config).apply({"params": projection}, features), jnp.float32)

            self._image_tokens = jax.jit(image_tokens)

    def text(self, tokens: Int32[Array, "b t"]) -> Float[Array, "b t d"]:
        """Prompt states."""
        return self._text(self.weights["text_encoder"], tokens)

    def empty(self, tokens: Int32[Array, "1 t"]) -> dict[str, np.ndarray]:
        """Returns `text` of the empty prompt's ids and, for a model with image tokens, `image_tokens` of a zero picture
        (or, as IP-Adapter has it, of a zero embedding)."""
        found = dict(text=np.asarray(self.text(tokens))[0])
        if self._image_tokens:
            zero = np.zeros((1, self.picture, self.picture, 3), np.float32)
            found["image_tokens"] = self._tokens(zero, empty=True)[0]
        return found

    def __call__(self, batch: Mapping[str, Array]) -> dict[str, np.ndarray]:
        """Returns `mean`, `std`, `text` and, for a model with image tokens, `image_tokens` of a batch of clips.

        Args:
          batch: `video`, `tokens`, `pixels`, as of `data.loader.Loader`.
        """
        video: UInt8[Array, "b f h w 3"] = batch["video"]
        size = self.vae_slice or video.shape[1]
        slices = [self._moments(self.weights["vae"], video[:, i : i + size]) for i in range(0, video.shape[1], size)]
        mean, std = (np.concatenate([np.asarray(part) for part in parts], 1) for parts in zip(*slices))
        encoded = dict(mean=mean, std=std, text=np.asarray(self.text(batch["tokens"])))
        if self._image_tokens:
            encoded["image_tokens"] = self._tokens(batch["pixels"])
        return encoded

    def _tokens(self, pixels, empty=False):
        weights = self.weights["image_encoder"], self.weights["image_proj"]
        return np.asarray(self._image_tokens(*weights, pixels, empty))


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

    assembled = setup.assemble(config, setup.arithmetic(config, mesh.devices.flat[0]))
    assembled = {name: it for name, it in assembled.items() if name in stored.ENCODERS}
    paths = {f"{name}/{path}" for name, it in assembled.items() for path in it.parameters.entries}
    stored.check_frozen(path for path in sorted(paths) if any(re.fullmatch(it, path) for it in config.train))
    configs = {name: it.config for name, it in assembled.items()}
    weights = {name: it.load(placer(mesh))[1] for name, it in assembled.items()}
    encoders = Encoders(configs, weights, config.objective.vae_slice)
    tokenizer = ClipTokenizer.from_pretrained(
        config.weights.tokenizer or config.weights.base, "" if config.weights.tokenizer else "tokenizer"
    )

    data = dict(config.data) | dict(bad_list=config.data.bad_list or str(output / "bad_clips.{host}.jsonl"))
    batch = -(-config.batch // hosts // mesh.size) * mesh.size
    image_size = configs["image_encoder"].image_size if "image_encoder" in configs else None
    loader = clips.make(
        data,
        batch,
        seed=config.seed,
        host=host,
        hosts=hosts,
        tokenize=lambda captions: {"tokens": tokenizer.encode_captions(captions)},
        image_size=image_size,
    )
    about = dict(
        cut={name: config.data[name] for name in ("frames", "stride", "height", "width")},
        clips=loader.order.clips,
        epochs=arguments.epochs,
        seed=config.seed,
        hosts=hosts,
        arrays=["text"] if image_size is None else ["text", "image_tokens"],
        weights=config.weights.to_dict(),
    )
    with use_mesh(mesh):
        writer = stored.Writer(output, host, about)
        if host == 0:
            writer.write_empty(**encoders.empty(tokenizer.encode("")))
        with tqdm(total=arguments.epochs * loader.order.clips // hosts, unit="clip", disable=host > 0) as bar:
            store(loader, lambda batch: encoders(put_batch(batch, mesh)), writer, arguments.epochs, bar.update)
    loader.close()
    print(f"stored in {output}", *(f"bad: {n} {cause}" for cause, n in loader.report()["bad"].items()), sep="\n")


if __name__ == "__main__":
    commands.run(main)
