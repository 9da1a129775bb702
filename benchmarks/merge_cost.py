"""Time and memory of `python -m convert merge`: `python -m benchmarks.merge_cost [--size 3GB] [--repeats N]`.

Writes two files of random float32 weights of that size, in layers as wide as Stable Diffusion's, and merges them by the
recipes named, each in a process of its own with the files out of the page cache. Prints the time over that of `cp` for
as many bytes as are written, and the peak of anonymous memory (interpreter and JAX included) over one file's size.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.convert import best, measure, repeated
from convert.arguments import size
from i2v_jax.weights.storage.safetensors import save_tensors
from i2v_jax.weights.tensors import Entry, Tensors

TIME_BAR, MEMORY_BAR = 3.0, 0.2
SHAPES = ((1280, 1280, 3, 3), (5120, 1280), (1280, 1280), (1280,), (640, 640, 3, 3), (320, 640, 3, 3))
"""Of one layer; a file has as many layers as fit."""
RECIPES = {"a + 0.5 * (a - b)": ("a", "b", "result"), "edg": ("pre", "tuned", "dyn")}
"""Recipe -> its two models and the result that is written."""


def write_model(path: Path, total: int, seed: int) -> None:
    """Writes random weights of about `total` bytes."""
    layer = sum(4 * int(np.prod(shape)) for shape in SHAPES)
    random = np.random.default_rng(seed)

    def entry(shape: tuple[int, ...]) -> Entry:
        return Entry(shape, np.dtype("f4"), lambda: random.random(shape, np.float32))

    layers = range(max(1, total // layer))
    names = {f"layers.{i}.{j}.weight": entry(shape) for i in layers for j, shape in enumerate(SHAPES)}
    save_tensors(path, Tensors(names, "random weights"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=size, default="3GB", metavar="SIZE", help="of each of the two files (3GB)")
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="of each step (3)")
    parser.add_argument("--folder", metavar="PATH", help="where the files are written; default: the system's own")
    given = parser.parse_args()
    within = True
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        one, other, copy, made = (
            Path(folder, name) for name in ("one.safetensors", "other.safetensors", "copy", "m.safetensors")
        )
        for seed, path in enumerate((one, other)):
            write_model(path, given.size, seed)
        held = one.stat().st_size
        copied = best(repeated(given.repeats, ["cp", one, copy], one, copy))
        copy.unlink()
        print(f"two files of {held / 1e9:.2f} GB; best of {given.repeats}\ncp   {copied.seconds:6.2f} s")
        idle = measure([sys.executable, "-m", "convert", "merge", "--help"], one).memory
        print(f"interpreter and imports of the command's help: {idle / 1e9:.2f} GB")
        for recipe, (a, b, result) in RECIPES.items():
            files = [f"{a}={one}", f"{b}={other}", f"{result}={made}"]
            run = best(repeated(given.repeats, [sys.executable, "-m", "convert", "merge", recipe, *files], other, made))
            within &= run.seconds <= TIME_BAR * copied.seconds and run.memory <= MEMORY_BAR * held
            print(
                f"{recipe:18}{run.seconds:6.2f} s, {run.seconds / copied.seconds:.2f} x cp (bar {TIME_BAR}); peak "
                f"anonymous memory {run.memory / 1e9:.2f} GB, {run.memory / held:.3f} x file (bar {MEMORY_BAR})"
            )
    sys.exit(not within)


if __name__ == "__main__":
    main()
