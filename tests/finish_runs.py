"""Configs of `i2v finish` with changes."""

from i2v_jax import commands
from i2v_jax.finishing import finish


def config(video, output, **changes):
    """The shipped config; `upscale__factor=2` is its key `upscale.factor`."""
    found = commands.load_config(finish.DEFAULT)
    with found.unlocked():
        found.video, found.output = str(video), str(output)
        found.update_from_flattened_dict({key.replace("__", "."): value for key, value in changes.items()})
    return found
