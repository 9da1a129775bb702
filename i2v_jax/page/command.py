"""A page on which pictures are animated: drop one, say what happens, watch; on this machine, in a browser.

    i2v page                                      # the bundled small model, at http://127.0.0.1:7860
    i2v page --config=sd15 --config.styles=loras  # any model of sampling, with styles to choose from
    i2v page --config.host=0.0.0.0 --config.password=@secret.txt

docs/page.md says more, and how the same functions are called by HTTP.
"""

import importlib.util
import os
import socket
import sys
import tempfile
from pathlib import Path

from i2v_jax import commands, media
from i2v_jax.errors import InputError
from i2v_jax.page.history import History
from i2v_jax.page.options import Options, split
from i2v_jax.sampling import command_line

DEFAULT = commands.ROOT / "configs" / "page" / "default.py"
REAL = DEFAULT.with_name("sd15.py")
SHORT = ("host", "port", "password", "share", "styles", "motions", "output")


def main() -> None:
    argv = command_line.begun(commands.in_full(sys.argv, SHORT), DEFAULT, REAL)
    options, config = split(commands.read_config(DEFAULT, argv, usage=__doc__, short=SHORT))
    check_gradio()
    check_port(options)
    media.check_folder(config.output)
    with tempfile.TemporaryDirectory(prefix="i2v-page-") as folder:
        use_folder(Path(folder))
        from i2v_jax.page import app  # after the folder is set: Gradio reads it when it is imported
        from i2v_jax.page.studio import Studio

        history = History(config.output, options.most_runs)
        history.folder.mkdir(parents=True, exist_ok=True)
        history.remove_leftovers()
        app.serve(Studio(options, config, history), Path(folder))


def check_gradio() -> None:
    """Raises InputError where Gradio is not installed."""
    if importlib.util.find_spec("gradio") is None:
        raise InputError(
            'The page wants Gradio, which is not installed here: `pip install "i2v-jax[page]"`, or in a checkout '
            "`make page`, which makes an environment of its own."
        )


def check_port(options: Options) -> None:
    """Raises InputError where nothing can listen at the page's address."""
    try:
        kind, _, _, _, address = socket.getaddrinfo(options.host, options.port, type=socket.SOCK_STREAM)[0]
        with socket.socket(kind, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise InputError(
            f"The page cannot listen at {options.host}:{options.port}: {error.strerror}. Another program may be there: "
            f"choose another --config.port, such as {options.port + 1}."
        ) from None


def use_folder(folder: Path) -> None:
    """Has Gradio keep its files in a folder, tell nobody of its use, and look nothing up."""
    os.environ |= {
        "GRADIO_TEMP_DIR": str(folder),
        "GRADIO_ANALYTICS_ENABLED": "False",
        "GRADIO_RUN_HISTORY": "False",
        "GRADIO_MCP_SERVER": "False",
        "GRADIO_SSR_MODE": "False",
        "GRADIO_SHARE": "False",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    for name in ("GRADIO_SERVER_NAME", "GRADIO_SERVER_PORT", "GRADIO_ALLOWED_PATHS", "GRADIO_ROOT_PATH"):
        os.environ.pop(name, None)
