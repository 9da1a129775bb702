"""Programs that tests start, read from, and stop in the middle."""

import contextlib
import importlib
import io
import os
import signal
import socket
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent


QUICKLY, AS_USERS = {"xla_cpu_parallel_codegen_split_count": 1}, {}
if version("jaxlib").startswith("0.10."):
    QUICKLY |= {
        "xla_cpu_use_fusion_emitters": "false",
        "xla_cpu_opt_preset": "CPU_OPT_PRESET_FAST_COMPILE",
        "xla_cpu_experimental_ynn_fusion_type": "-individual_dot,-individual_convolution",
    }
    kinds = ("INDIVIDUAL_DOT", "INDIVIDUAL_CONVOLUTION")
    AS_USERS = {
        "xla_cpu_use_fusion_emitters": True,
        "xla_cpu_opt_preset": "CPU_OPT_PRESET_DEFAULT",
        "xla_cpu_experimental_ynn_fusion_type": ",".join(f"LIBRARY_FUSION_TYPE_{kind}" for kind in kinds),
    }
"""XLA's options with which programs compile in half the time, and a program's own that undo what changes roundings;
later versions lack some, and end at unknown ones."""


def xla_flags(devices: int) -> str:
    """Flags for virtual devices, and for programs that compile quickly."""
    flags = {"xla_force_host_platform_device_count": devices} | QUICKLY
    return " ".join(f"--{name}={value}" for name, value in flags.items())


def environment(devices: int = 1) -> dict[str, str]:
    """The variables of a program that runs on virtual devices."""
    return os.environ | {"XLA_FLAGS": xla_flags(devices)}


def start(arguments, devices=1, **options) -> subprocess.Popen:
    """Starts `python ARGUMENTS` on virtual devices; its output is one stream of lines."""
    variables = environment(devices) | {
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".cache" / "jax"),
        "PYTHONPATH": str(ROOT),
        "PYTHONUNBUFFERED": "1",
    }
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        env=variables,
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        **options,
    )


def finish(process, code=0, seconds=600) -> str:
    """Waits for the end of a program; returns what it has printed."""
    output, _ = process.communicate(timeout=seconds)
    assert process.returncode == code, output
    return output


def run(arguments, code=0, devices=1) -> str:
    """Runs `python ARGUMENTS` to its end; returns what it has printed."""
    return finish(start(arguments, devices), code, 1800)


def run_here(arguments, devices=1) -> str:
    """As `run`, in this process, which has imported all that a command needs."""
    import jax  # not before it is set up for tests

    name, *rest = arguments[1:] if arguments[0] == "-m" else [f"i2v_jax.cli.{Path(arguments[0]).stem}", *arguments[1:]]
    module, devices, output = importlib.import_module(name), jax.devices()[:devices], io.StringIO()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(output),
        contextlib.redirect_stderr(output),
    ):
        patch.chdir(ROOT)
        patch.setattr(sys, "argv", [name, *map(str, rest)])
        patch.setattr(jax, "devices", lambda: devices)
        patch.setattr(jax, "local_devices", lambda: devices)
        try:
            module.main()
        finally:
            signal.set_wakeup_fd(-1)
            for number, handler in handlers.items():
                signal.signal(number, handler)
    return output.getvalue()


def wait_for(process, text, count=1) -> bool:
    """Reads lines until `count` of them hold a text; returns whether so many came."""
    while count and (line := process.stdout.readline()):
        count -= text in line
    return not count


def kill_at_random(arguments, kills, text, rng, devices=1, most=5, startup=3.0, step=0.3) -> list[int]:
    """Starts a program again and again, and kills it: within its first seconds, or some lines later.

    Args:
        arguments: of Python.
        kills: how often.
        text: of the lines that are counted.
        rng: draws when.
        devices: virtual ones.
        most: lines that it prints at most before it is killed.
        startup: seconds from its start within which it is killed when no line is waited for.
        step: seconds after a line within which it is killed.

    Returns:
        After how many lines it was killed, each time.
    """
    counts = []
    for _ in range(kills):
        process = start(arguments, devices)
        counts.append(int(rng.integers(most + 1)))
        assert wait_for(process, text, counts[-1]), "the program ended before it was killed"
        time.sleep(rng.uniform(0, step if counts[-1] else startup))
        process.send_signal(signal.SIGKILL)
        output, _ = process.communicate()
        assert process.returncode == -signal.SIGKILL, f"the program ended before it was killed: {output}"
    return counts


def free_port() -> int:
    with socket.socket() as it:
        it.bind(("localhost", 0))
        return it.getsockname()[1]


def results(folder) -> dict[str, np.ndarray]:
    with np.load(Path(folder) / "result.npz") as held:
        return dict(held)
