"""Where a model's weights are: `config.weights` of every command, and what is opened for it."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from i2v_jax.encoders.text import tokenizer_name
from i2v_jax.errors import InputError
from i2v_jax.models.tokenizer import ClipTokenizer
from i2v_jax.weights.storage.open import check_reader, open_tensors

OF_BASE = ("unet", "vae", "text_encoder", "tokenizer")
"""What the base gives, in every family, unless something is named in its place."""

FOLDERS = (
    ("unet", "unet"),
    ("vae", "vae"),
    ("text_encoder", "text_encoder"),
    ("text_encoder_2", "text_encoder_2"),
    ("motion", "motion_adapter"),
    ("adapter", "unet"),
    ("image_adapter", "unet"),
    ("image_adapter", "image_proj"),
    ("image_encoder", "image_encoder"),
)
"""What is named, and the folder that is read of it when it is the folder of a pipeline."""


@dataclasses.dataclass(frozen=True)
class Weights:
    """Sources of a model's weights, each a file, a folder or a hub id, in any known format; "" or None leaves one out.

    Attributes:
      base: a Stable Diffusion model; gives what is not named otherwise.
      motion: AnimateDiff motion modules.
      adapter: I2V-Adapter's first-frame branch.
      image_adapter: an IP-Adapter: image projection and the UNet's image-token weights.
      image_encoder: the CLIP vision encoder that the image adapter was trained with.
      unet, vae, text_encoder, text_encoder_2, tokenizer, tokenizer_2: in place of the base's own.
      trained: files that `train.py` wrote; their weights replace those of the same paths, in all networks.
      adapter_modules: Python modules that register adapters, see `models.adapters`.
    """

    base: str | Path = ""
    motion: str | Path | None = None
    adapter: str | Path | None = None
    image_adapter: str | Path | None = None
    image_encoder: str | Path | None = None
    unet: str | Path | None = None
    vae: str | Path | None = None
    text_encoder: str | Path | None = None
    text_encoder_2: str | Path | None = None
    tokenizer: str | Path | None = None
    tokenizer_2: str | Path | None = None
    trained: tuple[str | Path, ...] = ()
    adapter_modules: tuple[str, ...] = ()

    @classmethod
    def of_config(cls, config: Mapping[str, Any]) -> "Weights":
        """Returns the sources that `config.weights` names."""
        names = ("trained", "adapter_modules")
        return cls(**{key: tuple(value) if key in names else value or None for key, value in config.items()})

    def check(self) -> None:
        """Raises InputError for what can be told before anything is fetched or loaded: gaps, files nothing can read."""
        lacking = [part for part in OF_BASE if not getattr(self, part)]
        if lacking and not self.base:
            raise InputError(
                f"Nothing gives the {', '.join(lacking)}: set --config.weights.base to the folder or hub id of a "
                f"model, or each of {', '.join(f'weights.{part}' for part in OF_BASE)}."
            )
        for source, folder in self.opened():
            check_reader(source, folder)

    def of(self, component: str) -> str | Path:
        """The source of a network that the base has unless another is named."""
        return getattr(self, component) or self.base

    def opened(self) -> list[tuple[str | Path, str]]:
        """Whatever is read: sources, and the folder to read in each that is the folder of a pipeline."""
        named = [(getattr(self, part) or (self.base if part in OF_BASE else ""), folder) for part, folder in FOLDERS]
        if not self.image_adapter:  # then nothing looks at the picture's tokens
            named = [(source, folder) for source, folder in named if folder != "image_encoder"]
        named += [(source, "") for source in self.trained]
        return [(source, folder) for source, folder in named if source]

    def files(self) -> list[Path]:
        """The files of all that is read."""
        return sorted({file for source, folder in self.opened() for file in open_tensors(source, folder).files()})

    def tokenizer_of(self, text_encoder: str) -> ClipTokenizer:
        """Reads a text encoder's tokenizer.

        Raises:
          InputError: there is none.
        """
        name = tokenizer_name(text_encoder)
        source = getattr(self, name)
        return ClipTokenizer.from_pretrained(source or self.base, "" if source else name)
