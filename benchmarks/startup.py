"""Seconds from launching `sample.py` to its first finished step: a warm compilation cache over a cold one.

    python -m benchmarks.startup [--config.KEY=VALUE ...]

Runs the bundled model twice with a cache folder of its own; its videos are small, so that what is measured is starting
and not sampling. Arguments are passed on.
"""

import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def seconds_to_first_step(cache: str, output: str) -> float:
    command = [sys.executable, "sample.py", "--config", "configs/sample/default.py", f"--config.output={output}"]
    command += [f"--config.compilation_cache={cache}", *sys.argv[1:]]
    begin = time.perf_counter()
    run = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
    errors, first = b"", None
    while piece := run.stderr.read1():
        errors += piece
        if first is None and re.search(rb" 1/\d+ ", errors):
            first = time.perf_counter() - begin
    if run.wait() or first is None:
        sys.exit(f"sample.py failed:\n{errors.decode()}")
    return first


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        cold = seconds_to_first_step(f"{folder}/cache", f"{folder}/cold")
        warm = seconds_to_first_step(f"{folder}/cache", f"{folder}/warm")
    print(f"cold cache {cold:.1f} s, warm cache {warm:.1f} s, warm over cold {warm / cold:.2f}   (bar 0.3)")


if __name__ == "__main__":
    main()
