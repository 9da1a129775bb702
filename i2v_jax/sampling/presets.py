"""The shipped sampling configs from Python: weights, noise schedule and settings that belong together."""

from pathlib import Path
from typing import NamedTuple

from i2v_jax import commands
from i2v_jax.diffusion.noise_schedule import NoiseSchedule
from i2v_jax.errors import InputError, nearest
from i2v_jax.families.weights import Weights
from i2v_jax.sampling.settings import Settings

FOLDER = commands.ROOT / "configs" / "sample"


class Preset(NamedTuple):
    """What a sampling config says of a model: `Model.load(preset.weights, schedule=preset.schedule)`."""

    weights: Weights
    schedule: NoiseSchedule
    settings: Settings


def preset(name: str | Path = "default") -> Preset:
    """Reads a sampling config, from any working directory.

    Args:
      name: "default" (the bundled small model), "sd15", "sdxl", one of a table such as "hyper_sd:sdxl_4", a config
        file's path, or a record's.

    Raises:
      InputError: no such config; names the nearest.
    """
    known = commands.load_config(FOLDER / "sd15.py")
    shipped = {file.stem: file for file in sorted(FOLDER.glob("*.py")) if not file.stem.startswith("_")}
    stem, colon, row = str(name).partition(":")
    path = f"{shipped[stem]}{colon}{row}" if stem in shipped else Path(name).expanduser()
    if stem not in shipped and not path.is_file():
        raise InputError(
            f"preset: {str(name)!r} is neither one of {', '.join(shipped)} nor a file.{nearest(str(name), shipped)}"
        )
    config = commands.load_config(path, known)
    schedule = NoiseSchedule(**config.noise_schedule)
    return Preset(Weights.of_run(config), schedule, Settings.of_config(config))
