"""The bundled model's MIVAs on two pictures, without a prompt: `miva.py:swing`, `:bounce`, `:sway`, or two at once.

    python sample.py --config configs/sample/miva.py:swing [--image=PICTURE]
    python sample.py --config configs/sample/miva.py:bounce+sway

Each was trained on ten clips of a motion that the model did not know (docs/miva.md). With models for photographs:
`--config configs/sample/sd15.py --config.mivas="('FILE=1.0',)"`.
"""

from ml_collections import ConfigDict

from configs import variants
from configs.models import small_world
from configs.sample import default

MOTIONS = ("swing", "bounce", "sway")
KNOWN = (*MOTIONS, "swing+sway", "bounce+sway")  # of an object, of the camera, of both


def get_config(motions: str = "swing") -> ConfigDict:
    motions = variants.row({name: name for name in KNOWN}, motions, "miva.py")
    config = default.get_config()
    folder = small_world.SMALL_WORLD.parent / "mivas"
    config.csv = str(folder / "pictures.csv")
    config.output = f"output/{motions}"
    config.mivas = tuple(str(folder / f"{name}.safetensors") for name in motions.split("+"))
    return config
