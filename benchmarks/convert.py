"""Time and memory of `python -m convert` on a checkpoint of the real size.

    python -m benchmarks.convert [--family sd15|dynamicrafter] [--repeats N] [--folder PATH]

Writes random weights as a single file of the original layout (SD1.5: 4.27 GB; DynamiCrafter: 10 GB), copies it with
`cp`, imports it, exports it again and imports it as an orbax folder, each in a process of its own with the source out
of the page cache. Prints the time over the copy's, the peak of anonymous memory (what no file backs: interpreter and
JAX included) over the file's size, best of N, and whether every byte came back.
"""

import argparse
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from i2v_jax.families.published import DYNAMICRAFTER
from i2v_jax.models.clip import SD15_TEXT as TEXT
from i2v_jax.models.networks import parameter_shapes
from i2v_jax.models.unet import SD15
from i2v_jax.models.vae import SD_VAE as VAE
from i2v_jax.weights.formats.dynamicrafter import DYNAMICRAFTER_PROJECTION, DYNAMICRAFTER_UNETS, OPENCLIP_VISION
from i2v_jax.weights.formats.original import SD2_TEXT, SD15_TEXT, SD15_UNET, SD_VAE
from i2v_jax.weights.storage.open import open_tensors
from i2v_jax.weights.storage.safetensors import save_tensors
from i2v_jax.weights.tensors import Entry, Tensors
from i2v_jax.weights.translate import export_tensors

TIME_BAR, MEMORY_BARS = 3.0, {"sd15": 0.3, "dynamicrafter": 0.2}
FAMILIES = {  # networks' configs with the tables of their names
    "sd15": ((SD15, SD15_UNET), (VAE, SD_VAE), (TEXT, SD15_TEXT)),
    "dynamicrafter": (
        (DYNAMICRAFTER["unet"], DYNAMICRAFTER_UNETS[0]),
        (DYNAMICRAFTER["vae"], SD_VAE),
        (DYNAMICRAFTER["text_encoder"], SD2_TEXT),
        (DYNAMICRAFTER["image_encoder"], OPENCLIP_VISION),
        (DYNAMICRAFTER["image_proj"], DYNAMICRAFTER_PROJECTION),
    ),
}
EXPORTED_AS = {"sd15": "sd", "dynamicrafter": "dynamicrafter"}
INTERVAL = 0.002  # seconds between two looks at a process
SETTLING = 4.0  # seconds before a process starts


class Run(NamedTuple):
    """What a process took: seconds, and bytes of anonymous memory at its peak."""

    seconds: float
    memory: int


def write_checkpoint(path: Path, family: str) -> int:
    """Writes random weights of every component under the names of a single-file checkpoint; returns how many."""
    random = np.random.default_rng(0)

    def entry(leaf) -> Entry:
        return Entry(leaf.shape, np.dtype("f4"), lambda: random.random(leaf.shape, np.float32))

    entries, parameters = {}, 0
    for config, table in FAMILIES[family]:
        shapes = parameter_shapes(config)
        parameters += sum(math.prod(leaf.shape) for leaf in shapes.values())
        ours = Tensors({path: entry(leaf) for path, leaf in shapes.items()}, "random weights")
        entries |= export_tensors(ours, table, Tensors.of({})).entries
    if family == "sd15":
        positions = np.arange(TEXT.max_positions)[None]
        entries["cond_stage_model.transformer.text_model.embeddings.position_ids"] = Entry.of(positions)
    save_tensors(path, Tensors(entries, "random weights"))
    return parameters


def measure(command: list[str | Path], source: Path) -> Run:
    """Runs a command with `source` out of the page cache and nothing left to be written, once memory has settled.

    Free pages go back to a virtual machine's host within seconds and are slow to take again. What starts at once, as
    `cp` does, would have those just freed; what imports for a second first would not.
    """
    os.sync()
    with open(source, "rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    time.sleep(SETTLING)
    with tempfile.TemporaryFile() as output:
        start, memory = time.perf_counter(), 0
        process = subprocess.Popen(command, stdout=output, stderr=output)
        while process.poll() is None:
            memory = max(memory, anonymous(process.pid))
            time.sleep(INTERVAL)
        seconds = time.perf_counter() - start
        if process.returncode:
            output.seek(0)
            sys.exit(f"{' '.join(map(str, command))} failed:\n{output.read().decode()}")
    return Run(seconds, memory)


def anonymous(pid: int) -> int:
    """Bytes of memory that a process holds and no file backs; 0 once it has ended."""
    try:
        found = re.search(r"RssAnon:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    except OSError:
        found = None
    return int(found[1]) * 1024 if found else 0


def repeated(count: int, command: list[str | Path], source: Path, output: Path) -> Iterator[Run]:
    """Runs a command that writes `output` several times; the last output stays."""
    for _ in range(count):
        if output.is_dir():
            shutil.rmtree(output)
        output.unlink(missing_ok=True)
        yield measure(command, source)


def best(runs: Iterator[Run]) -> Run:
    """The least time, and the most memory."""
    seconds, memory = zip(*runs)
    return Run(min(seconds), max(memory))


def same(first: Path, second: Path) -> bool:
    """Whether two files hold the same tensors, byte for byte."""
    one, other = open_tensors(first), open_tensors(second)
    return one.keys() == other.keys() and all(
        (one[name].dtype, one[name].shape) == (other[name].dtype, other[name].shape)
        and one[name].tobytes() == other[name].tobytes()
        for name in one
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", choices=FAMILIES, default="sd15")
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="of each step (3)")
    parser.add_argument("--folder", metavar="PATH", help="where files are written, four times the size; default: /tmp")
    given = parser.parse_args()
    repeats, memory_bar = given.repeats, MEMORY_BARS[given.family]
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        source, copy, ours, back = (
            Path(folder, name)
            for name in (f"{given.family}.safetensors", "copy", "ours.safetensors", "back.safetensors")
        )
        parameters = write_checkpoint(source, given.family)
        size = source.stat().st_size
        print(f"{parameters / 1e6:.1f} M parameters, {size / 1e9:.2f} GB; best of {repeats}")
        convert = [sys.executable, "-m", "convert"]
        copied = best(repeated(repeats, ["cp", source, copy], source, copy))
        copy.unlink()
        print(f"cp      {copied.seconds:6.2f} s")
        imported = best(repeated(repeats, [*convert, "import", source, ours], source, ours))
        to = [*convert, "export", ours, back, "--to", EXPORTED_AS[given.family]]
        exported = best(repeated(repeats, to, ours, back))
        identical = same(source, back)
        back.unlink()
        tree = Path(folder, "tree")
        restorable = best(repeated(repeats, [*convert, "import", source, tree], source, tree))
        runs = {"import": imported, "export": exported, "orbax": restorable}
        for name, run in runs.items():
            print(
                f"{name:6}  {run.seconds:6.2f} s, {run.seconds / copied.seconds:.2f} x cp (bar {TIME_BAR}); "
                f"peak anonymous memory {run.memory / 1e9:.2f} GB, {run.memory / size:.3f} x file (bar {memory_bar})"
            )
        identical &= same(ours, tree)
        print("every tensor came back byte for byte" if identical else "DIFFERENT after the round trip")
    within = all(run.seconds <= TIME_BAR * copied.seconds and run.memory <= memory_bar * size for run in runs.values())
    sys.exit(not (identical and within))


if __name__ == "__main__":
    main()
