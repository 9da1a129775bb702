"""The page (docs/page.md) with the bundled model: what `make page` and `i2v page` run.

Any config of sampling goes in its place: `i2v page --config configs/sample/sdxl.py`; the keys of the page then keep the
values that they have here.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from configs.sample import default


def get_config() -> ConfigDict:
    config = default.get_config()
    add_page(config)
    add_limits(config)
    return config


def add_page(config: ConfigDict) -> None:
    """The page: where it listens, and what it offers."""
    config.host = "127.0.0.1"  # where it listens; 0.0.0.0: to all of the network
    config.port = 7860  # of 1024 to 65535
    config.share = False  # a public address, through Gradio's servers; wants a password
    config.password = ""  # that people are asked for; "@FILE": the first line of a file; "": none
    config.styles = ""  # folder of LoRA files to choose from; "": none
    config.bases = ""  # folder of base models (files or diffusers folders) to choose from; "": none
    config.motions = ""  # folder of MIVA files to choose from; "": none
    config.offered_sizes = ()  # (height, width) pairs; (): the config's own, 4:3, 3:4, 16:9, 9:16 of as many pixels
    config.offered_lengths = ()  # in frames; (): the config's own, twice and four times as many
    config.offered_steps = ()  # (): the config's own, half and twice as many
    config.lively_p = 0.1  # Frame Similarity Prior's p of "lively" motion, as measured in docs/small_world.md


def add_limits(config: ConfigDict) -> None:
    """Limits of the page, against mistakes and malice."""
    config.most_megabytes = 25  # of an uploaded file
    config.most_megapixels = 40.0  # of a picture
    config.most_waiting = 32  # runs in the queue
    config.most_runs = 100  # in the history; older ones are removed with their files
    config.most_models = 1  # in memory: a base with a style and a motion; more make changing between them quick
    config.most_programs = 8  # sizes, lengths and numbers of steps that stay compiled
    config.preview_steps = placeholder(int)  # from one preview to the next; unset: a fifth of the run
