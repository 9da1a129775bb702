"""The table of an export: sizes, seconds, how far ONNX and StableHLO are from JAX, and PSNR of the videos."""

import functools
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import export
from jaxtyping import UInt8
from PIL import Image

from convert.device.networks import Network
from convert.device.precisions import SCALE
from convert.tables import megabytes
from i2v_jax.tree import unflatten
from i2v_jax.weights.storage.open import open_tensors
from i2v_jax.weights.tensors import Tensors

CALLS = 3
"""Of which the median is told, after one that is not counted."""

Outputs = Mapping[str, np.ndarray]


class Row(NamedTuple):
    """A network with one kind of weights.

    Attributes:
      weights, network: which.
      sizes: bytes of its safetensors file, its ONNX graph and its StableHLO program.
      seconds: of a call, by ONNX Runtime and by JAX; None where not measured.
      errors: of ONNX and of StableHLO against JAX with float32 weights, relative; None where not measured.
    """

    weights: str
    network: str
    sizes: tuple[int, int, int]
    seconds: tuple[float, float] | None = None
    errors: tuple[float, float] | None = None


class Video(NamedTuple):
    """A whole run: seconds it took, and PSNR of its frames after the first against float32's, dB."""

    weights: str
    seconds: float
    psnr: float | None


def reference(network: Network, parameters: Tensors) -> Outputs:
    """Returns what JAX makes of a network's example, with float32 weights."""
    read = {path: np.asarray(entry.read(), np.float32) for path, entry in parameters.entries.items()}
    made = jax.jit(network.call)(unflatten(read), network.inputs)
    return {name: np.asarray(array) for name, array in made.items()}


def row(folder: Path, network: Network, wanted: Outputs | None) -> Row:
    """Returns a network's row.

    Args:
      folder: of one kind of weights.
      network: whose files are there.
      wanted: of `reference`; None: only sizes are told.
    """
    files = [folder / f"{network.name}.{suffix}" for suffix in ("safetensors", "onnx", "stablehlo")]
    known = Row(folder.name, network.name, tuple(file.stat().st_size for file in files))
    if wanted is None:
        return known
    from convert.device import runner  # wants ONNX Runtime, of which `onnx_graph.load_libraries` speaks

    call = functools.partial(runner.Networks(folder.parent, folder.name), network.name)
    onnx, of_onnx = timed(lambda: call(**network.inputs))
    weights = arrays(files[0])
    program = jax.jit(export.deserialize(bytearray(files[2].read_bytes())).call)
    hlo, of_hlo = timed(lambda: jax.tree.map(np.asarray, program(weights, network.inputs)))
    return known._replace(seconds=(of_onnx, of_hlo), errors=(farthest(onnx, wanted), farthest(hlo, wanted)))


def arrays(file: Path) -> dict[str, np.ndarray]:
    """Returns the tensors of a file, by name."""
    return {name: np.asarray(entry.read()) for name, entry in open_tensors(file).entries.items()}


def timed(call: Callable[[], Outputs]) -> tuple[Outputs, float]:
    """Returns what a call returns, and the seconds that it takes."""
    made, seconds = call(), []
    for _ in range(CALLS):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return made, statistics.median(seconds)


def farthest(made: Outputs, wanted: Outputs) -> float:
    """Returns the largest relative error of the outputs, ||made - wanted|| / ||wanted||."""
    errors = [np.linalg.norm(np.float64(made[name]) - wanted[name]) / np.linalg.norm(wanted[name]) for name in wanted]
    return float(max(errors))


def videos(folder: Path, run: Mapping[str, Any], picture: UInt8[np.ndarray, "h w 3"]) -> list[Video]:
    """Returns the run of `run.json` on a picture with every kind of weights, by the exported runner."""
    from convert.device import runner

    keys = ("prompt", "negative_prompt", "seed", "guidance_scale", "t0")
    image, made, first = Image.fromarray(picture), [], None
    for weights in run["weights"]:
        start = time.perf_counter()
        settings = {key: run[key] for key in keys}
        frames = runner.animate(folder, image, weights=weights, **settings, report=lambda line: None)
        seconds = time.perf_counter() - start
        first = frames if weights == "float32" else first
        is_compared = first is not None and weights != "float32"
        made.append(Video(weights, seconds, psnr(frames[1:], first[1:]) if is_compared else None))
    return made


def psnr(made: UInt8[np.ndarray, "..."], wanted: UInt8[np.ndarray, "..."]) -> float:
    """Returns the peak signal-to-noise ratio of 8-bit pictures, dB; infinite where they are equal."""
    error = np.mean((np.float64(made) - np.float64(wanted)) ** 2)
    return float(10 * np.log10(255**2 / error)) if error else np.inf


def page(rows: Sequence[Row], shown: Sequence[Video], run: Mapping[str, Any], machine: str) -> str:
    """Returns the export's README.md: how it is run, and the tables."""
    size = f"{run['frames']} frames of {run['height']}x{run['width']}"
    lines = [PAGE.format(size=size, steps=len(run["steps"]["timestep"]), weights=run["weights"][-1], scale=SCALE)]
    lines += ["## Networks", "", f"Seconds are of one call, the median of {CALLS}, on {machine}.", ""]
    head = ("weights", "network", "weights file", "ONNX graph", "StableHLO", "s, ONNX Runtime", "s, JAX")
    head = (*head, "ONNX against JAX", "StableHLO against JAX")
    lines += [_line(head), _line(["---"] * len(head))]
    for each in rows:
        seconds = [f"{number:.2g}" for number in each.seconds or ()] or ["-", "-"]
        errors = [f"{number:.1e}" for number in each.errors or ()] or ["-", "-"]
        lines.append(_line([each.weights, each.network, *map(megabytes, each.sizes), *seconds, *errors]))
    if shown:
        lines += ["", "## Videos", "", f"The run of run.json, by run.py on {machine}; frames after the first.", ""]
        lines += [_line(("weights", "seconds", "PSNR against float32")), _line(["---"] * 3)]
        for each in shown:
            ratio = "-" if each.psnr is None else f"{each.psnr:.1f} dB"
            lines.append(_line([each.weights, f"{each.seconds:.1f}", ratio]))
    return "\n".join(lines) + "\n"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


PAGE = """\
# Exported networks: {size}, {steps} steps

```sh
pip install onnxruntime numpy pillow tokenizers
python run.py cat.png --prompt "a cat turns its head" --weights {weights} --output cat.webp   # --help shows all
```

Each folder has the networks with one kind of weights: `NAME.onnx`, whose weights are in `NAME.safetensors` beside it,
and `NAME.stablehlo`, the same network for JAX and whatever else reads StableHLO, with those weights as its arguments:

```python
import jax, safetensors.numpy
program = jax.export.deserialize(bytearray(open("float32/unet.stablehlo", "rb").read()))
outputs = program.call(safetensors.numpy.load_file("float32/unet.safetensors"), inputs)  # both are dictionaries
```

Shapes are fixed. Arithmetic is float32 with all weights; int8 is a scale for each channel (`PATH{scale}`), or row of a
table of embeddings, times whole numbers. Colours are not matched after decoding, as `sample.py` does by default.
"""
