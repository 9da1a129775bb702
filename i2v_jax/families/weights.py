"""Where a model's weights are: `config.weights` of every command, and what is opened for it."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from i2v_jax.encoders.controls import component
from i2v_jax.encoders.text import TextPart, tokenizer_name
from i2v_jax.errors import InputError, nearest
from i2v_jax.families import over_time
from i2v_jax.families.downloads import COMPONENTS, Part, telling_all
from i2v_jax.families.family import Family
from i2v_jax.families.over_time import Span
from i2v_jax.hub import fetch, local
from i2v_jax.models.tokenizer import ClipTokenizer
from i2v_jax.weights import mivas
from i2v_jax.weights.controls import ASSEMBLE as CONTROL_KINDS
from i2v_jax.weights.controls import FOLDER as CONTROL_FOLDER
from i2v_jax.weights.embeddings import Embedding, by_token, files_of, token_and_file
from i2v_jax.weights.embeddings import read as read_embeddings
from i2v_jax.weights.lazy import check_finite
from i2v_jax.weights.storage.files import read_json
from i2v_jax.weights.storage.open import WEIGHT_SUFFIXES, check_reader, open_tensors
from i2v_jax.weights.styles import embeddings_of, style
from i2v_jax.weights.tensors import Tensors

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


CONFIGURED = ("unet", "vae", "text_encoder", "text_encoder_2", "image_encoder", "image_proj", *CONTROL_KINDS)
"""Components whose config may be given, by `weights.configs`."""

INDEX = "model_index.json"  # of a diffusers pipeline's folder


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
      controls: control networks (ControlNet and its kin), of which kind their files tell.
      trained: files that `train.py` wrote; their weights replace those of the same paths, in all networks.
      loras: "FILE=SCALE" or "FILE": LoRA and its kin, merged into UNet, text encoders and motion modules in this order.
      mivas: "FILE=SCALE" or "FILE": MIVAs, which work at once; the scale 0 leaves one out.
      embeddings: "TOKEN=FILE" or "FILE": textual inversions, which their tokens stand for in prompts.
      adapter_modules: Python modules that register adapters, see `models.adapters`.
      configs: component (`unet`, `vae`, `text_encoder`, ...) -> its diffusers or transformers config.json, in place of
        what a file tells or lies beside it, as `--config` of `python -m convert`.
      motion_frames: how many frames the motion modules know, where their file does not tell.
      skip_unknown: leave out tensors that nothing knows, and layers of LoRAs that the model lacks, with a warning,
        rather than refuse their file.
      over_time: which files' weights serve which timesteps, see `families.over_time`.
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
    controls: tuple[str | Path, ...] = ()
    trained: tuple[str | Path, ...] = ()
    loras: tuple[str, ...] = ()
    mivas: tuple[str, ...] = ()
    embeddings: tuple[str, ...] = ()
    adapter_modules: tuple[str, ...] = ()
    configs: Mapping[str, str | Path] = dataclasses.field(default_factory=dict)
    motion_frames: int | None = None
    skip_unknown: bool = False
    over_time: tuple[Span, ...] = ()

    def __post_init__(self):
        object.__setattr__(self, "over_time", over_time.parse(self.over_time))

    @classmethod
    def of_run(cls, config: Mapping[str, Any]) -> "Weights":
        """Returns the sources that a sampling command's config names: of `config.weights`, MIVAs, and over time."""
        given = dict(mivas=tuple(config.get("mivas", ())), over_time=tuple(config.get(over_time.KEY, ())))
        return dataclasses.replace(cls.of_config(config["weights"]), **given)

    @classmethod
    def of_config(cls, config: Mapping[str, Any]) -> "Weights":
        """Returns the sources that `config.weights` names."""
        several = ("controls", "trained", "loras", "embeddings", "adapter_modules")
        made = dict.fromkeys(several, tuple) | {"configs": _given}
        unchanged = ("motion_frames", "skip_unknown")
        return cls(
            **{key: value if key in unchanged else made.get(key, _or_none)(value) for key, value in config.items()}
        )

    def check(self) -> None:
        """Raises InputError for what can be told before anything is fetched or loaded: gaps, files nothing can read."""
        lacking = [part for part in OF_BASE if not getattr(self, part)]
        if lacking and not self.base:
            raise InputError(
                f"Nothing gives the {', '.join(lacking)}: set --config.weights.base to the folder or hub id of a "
                f"model, or each of {', '.join(f'weights.{part}' for part in OF_BASE)}."
            )
        if self.motion_frames is not None and self.motion_frames < 1:
            raise InputError(f"weights.motion_frames={self.motion_frames}: wanted 1 or more, or unset.")
        for source, folder in self.opened():
            check_reader(source, folder)

    def config_of(self, component: str) -> dict[str, dict[str, Any]]:
        """Returns {"config": the config.json given for a component}, {} where none is.

        Raises:
          InputError: the file cannot be read.
        """
        for name in self.configs:
            if name not in CONFIGURED:
                hint = nearest(name, CONFIGURED) or f" There are {', '.join(CONFIGURED)}."
                raise InputError(f"weights.configs.{name}: no component is called {name!r}.{hint}")
        return {"config": read_json(Path(self.configs[component]))} if self.configs.get(component) else {}

    def of(self, component: str) -> str | Path:
        """The source of a network that the base has unless another is named."""
        return getattr(self, component) or self.base

    def slots(self) -> dict[str, str | Path]:
        """Returns the base's UNet, and what is named beside it, by slot; control networks as a model calls them."""
        names = ("motion", "adapter", "image_adapter", "image_encoder", "vae", "text_encoder", "text_encoder_2")
        named = {name: source for name in names if (source := getattr(self, name))}
        return {"unet": self.of("unet")} | named | {component(i): source for i, source in enumerate(self.controls)}

    def styles(self) -> list[tuple[str, float]]:
        """Returns the LoRA files, each with its scale.

        Raises:
          InputError: a scale is no finite number.
        """
        try:
            return [style(str(text)) for text in self.loras]
        except InputError as error:
            raise InputError(f"weights.loras: {error}") from error

    def given_mivas(self) -> list[tuple[str, float]]:
        """Returns the files of MIVAs, each with its scale; those of the scale 0 are left out, and change nothing.

        Raises:
          InputError: a scale is no finite number, or one file is given twice.
        """
        return [(source, scale) for source, scale in mivas.parse(self.mivas) if scale]

    def read_embeddings(self) -> dict[str, list[Embedding]]:
        """Reads textual inversions, those that LoRA files bring too, by token.

        Raises:
          InputError: one cannot be read, or a token is defined twice.
        """
        found = []
        with telling_all(self.parts):
            for text in self.embeddings:
                found += read_embeddings(str(text))
            for source in dict.fromkeys(str(local(source) or source) for source, _ in self.styles()):
                for token, vectors in embeddings_of(source).items():
                    found.append(Embedding(token, dict(check_finite(Tensors.of(vectors, source))), source))
        return by_token(found)

    def opened(self, of_base: Sequence[str] = OF_BASE) -> list[tuple[str | Path, str]]:
        """Whatever is read: sources, and the folder to read in each that is the folder of a pipeline.

        Args:
          of_base: networks that the base gives unless others are named, which depend on its family.
        """
        named = [(getattr(self, part) or (self.base if part in of_base else ""), folder) for part, folder in FOLDERS]
        if not self.image_adapter:  # then nothing looks at the picture's tokens
            named = [(source, folder) for source, folder in named if folder != "image_encoder"]
        named += [(source, CONTROL_FOLDER) for source in self.controls]
        files = (*self.styles(), *self.given_mivas())
        named += [(source, "") for source in (*self.trained, *(source for source, _ in files))]
        named += [pair for source, _ in over_time.sources(self.over_time) for pair in over_time.opened(source)]
        named += [(file, "") for text in self.embeddings for file in files_of(token_and_file(text)[1])]
        return [(source, folder) for source, folder in named if source]

    def parts(self) -> list[Part]:
        """Returns all that is read, each once, with the name that a person knows it by."""
        parts = [
            Part(f"weights.{part}", source, folder)
            for part, folder in (*FOLDERS, ("tokenizer", "tokenizer"), ("tokenizer_2", "tokenizer_2"))
            if (source := getattr(self, part)) and (part, folder) != ("image_adapter", "image_proj")
            if part != "image_encoder" or self.image_adapter
        ]
        if self.base and not is_one_file(self.base):
            of_base = [name for name in COMPONENTS if not getattr(self, name)]
            parts = [Part("weights.base", self.base, name, of_base=True) for name in of_base] + parts
        elif self.base:
            parts = [Part("weights.base", self.base), *parts]
        parts += [Part("weights.controls", source, CONTROL_FOLDER) for source in dict.fromkeys(self.controls)]
        parts += [Part("weights.trained", source) for source in self.trained]
        parts += [Part("weights.loras", source) for source, _ in self.styles()]
        parts += [Part("mivas", source) for source, _ in self.given_mivas()]
        parts += [Part(over_time.KEY, source) for source, _ in over_time.sources(self.over_time)]
        return parts + [Part("weights.embeddings", token_and_file(text)[1]) for text in self.embeddings]

    def settings(self, file: str) -> dict[str, Any]:
        """Returns a JSON file of the base's folder on this machine, such as `unet/config.json`; {} where there is none.

        Raises:
          InputError: the file is no JSON object.
        """
        folder = local(self.base)
        return read_json(folder / file) if folder and (folder / file).is_file() else {}

    def files(self, of_base: Sequence[str] = OF_BASE) -> list[Path]:
        """The files of all that is read; `of_base` as of `opened`."""
        opened = [open_tensors(source, folder) for source, folder in self.opened(of_base)]
        return sorted({file for tensors in opened for file in tensors.files()})

    def tokenizer_of(self, part: TextPart) -> ClipTokenizer:
        """Reads a text encoder's tokenizer; for a model in one file, which has none beside it, CLIP's own.

        Raises:
          InputError: there is none.
        """
        name = tokenizer_name(part.component)
        with telling_all(self.parts):
            if source := getattr(self, name):
                if is_one_file(source):
                    raise InputError(
                        f"weights.{name}: {source} is a file; wanted the folder of a tokenizer (vocab.json, "
                        "merges.txt), such as openai/clip-vit-large-patch14. Leave it out with a model in one file: "
                        "CLIP's own is taken."
                    )
                return ClipTokenizer.from_pretrained(source)
            if is_one_file(self.base):
                return ClipTokenizer.bundled(part.pad_token)
            return ClipTokenizer.from_pretrained(self.base, name)

    def zeros_for_empty_prompt(self, family: Family) -> bool:
        """Whether text conditions without a prompt are zeros: what the base's `model_index.json` says, or the family.

        Raises:
          InputError: the file is no JSON object.
        """
        if not family.zeros_for_empty_prompt or is_one_file(self.base):
            return family.zeros_for_empty_prompt
        with telling_all(self.parts):
            folder = local(self.base) or fetch(self.base, [INDEX])
        index = read_json(folder / INDEX) if (folder / INDEX).is_file() else {}
        return bool(index.get("force_zeros_for_empty_prompt", True))


def _given(configs: Mapping[str, Any] | None) -> dict[str, Any]:
    return {name: file for name, file in (configs or {}).items() if file}


def _or_none(value: Any) -> Any:
    return value or None


def is_one_file(source: str | Path) -> bool:
    """Whether a source is a file, rather than the folder of a model, here or on the hub."""
    path = local(source)
    return path.is_file() if path else Path(source).suffix in WEIGHT_SUFFIXES
