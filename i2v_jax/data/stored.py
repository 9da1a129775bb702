"""Clips stored as what the frozen encoders make of them: VAE moments, prompt states, image tokens.

A folder of ArrayRecord files. A record is a safetensors file's bytes, float16 but for `EXACT`: `mean` and `std`
[f h w c] of the latents, scaled by the VAE's factor, so that training still draws latents from the posterior; the
arrays that `stored.json` names under `arrays`, such as `text` [t d] and `image_tokens` [n d]; and the clip's `id`,
UTF-8. `stored.json` also says how they were made.
"""

import dataclasses
import functools
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import grain
import numpy as np
import safetensors.numpy
from array_record.python.array_record_module import ArrayRecordWriter

from i2v_jax.data.decoding import Cut
from i2v_jax.errors import InputError
from i2v_jax.hub import on_disk

ABOUT, EMPTY = "stored.json", "empty_prompt.safetensors"
EXACT = ("sizes", "picture", "fs")  # float16 rounds counts of pixels above 2048
ENCODERS = ("vae", "text_encoder", "text_encoder_2", "image_encoder", "image_proj")
PARTS = "clips-{host:05d}-{part:05d}.array_record"
IDS = "ids-{host:05d}-{part:05d}.json"  # of a part's clips, in its order
PROGRESS = "progress-{host:05d}.json"


class Stored:
    """A source of stored clips, each a dictionary of arrays.

    Attributes:
      about: what `stored.json` holds.
      arrays: names of a clip's arrays beside the latents.

    Raises:
      InputError: no stored clips, or not all hosts have finished storing theirs.
    """

    def __init__(self, path: Path):
        self.path = path
        try:
            self.about = _read_about(path)
            self.arrays = self.about["arrays"]
            done = [self._parts(host) for host in range(self.about["hosts"])]
            self.records = grain.sources.ArrayRecordDataSource([str(part) for parts in done for part in parts])
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise InputError(f"{str(path)!r} does not hold whole stored clips: {error}. Store them again.") from error

    def _parts(self, host: int) -> list[Path]:
        progress = _progress(self.path, host)
        if not progress["done"]:
            raise InputError(
                f"Storing clips in {str(self.path)!r} has not ended on host {host}. Run it again to go on."
            )
        return [self.path / PARTS.format(host=host, part=part) for part in range(progress["parts"])]

    def __reduce__(self):
        return Stored, (self.path,)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, number: int) -> dict[str, Any]:
        record = safetensors.numpy.load(self.records[number])
        return record | {"id": record["id"].tobytes().decode()}

    def id_of(self, number: int) -> str:
        """A clip's id. The first call reads all ids, in folders of earlier versions from the clips themselves."""
        return self._ids[number]

    @functools.cached_property
    def _ids(self) -> list[str]:
        files = [
            self.path / IDS.format(host=host, part=part)
            for host in range(self.about["hosts"])
            for part in range(_progress(self.path, host)["parts"])
        ]
        if all(file.is_file() for file in files):
            return [name for file in files for name in json.loads(file.read_text(encoding="utf-8"))]
        return [self[number]["id"] for number in range(len(self))]

    def reader(self, cut: Cut, wanted: Sequence[str] = ("text",)) -> "StoredReader":
        """Returns what makes batch items of these clips.

        Args:
          cut: what a clip is.
          wanted: names of arrays beside the latents.

        Raises:
          InputError: they are stored in another size, or without one of the arrays.
        """
        for name, value in dataclasses.asdict(cut).items():
            if self.about["cut"][name] != value:
                raise InputError(
                    f"data.{name}={value}, but the clips in {str(self.path)!r} are stored with "
                    f"{name}={self.about['cut'][name]}. Set it so, or store them again."
                )
        missing = [name for name in wanted if name not in self.arrays]
        if missing:
            adapter = " and weights.image_adapter" if "image_tokens" in missing else ""
            raise InputError(
                f"The model wants {', '.join(missing)} of each clip, and {str(self.path)!r} holds none, only "
                f"{', '.join(self.arrays)}. Store the clips again with this model's config{adapter}."
            )
        return StoredReader(wanted)


class StoredReader:
    """Makes of a stored clip what a batch holds of it: `latents` and the arrays that are wanted, float32."""

    def __init__(self, wanted: Sequence[str]):
        self.wanted = tuple(wanted)

    def __call__(self, clip: Mapping[str, Any], rng: np.random.Generator) -> dict[str, np.ndarray]:
        mean, std = (clip[name].astype(np.float32) for name in ("mean", "std"))
        latents = mean + std * rng.standard_normal(mean.shape, np.float32)
        return {"latents": latents} | {name: clip[name].astype(np.float32) for name in self.wanted}


def is_stored(path: str | Path) -> bool:
    """Whether a folder holds stored clips."""
    return (Path(path).expanduser() / ABOUT).is_file()


def read_empty(path: str | Path) -> dict[str, np.ndarray]:
    """Returns what stands for dropped conditions, by name, see `Writer.write_empty`; float32."""
    content = safetensors.numpy.load((on_disk(path) / EMPTY).read_bytes())
    return {name: array.astype(np.float32) for name, array in content.items()}


def check_frozen(trained: Iterable[str]) -> None:
    """Raises InputError where one of the paths to train is an encoder's: what that makes of a clip changes then."""
    for path in trained:
        if path.startswith(tuple(f"{name}/" for name in ENCODERS)):
            raise InputError(
                f"{path!r} is to be trained, and what a trained encoder makes of a clip cannot be stored. Train on "
                "videos, or narrow `train`."
            )


def narrow(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns arrays in float16, where what is out of its range becomes the largest it has; `EXACT` ones in float32."""
    limit = np.finfo(np.float16).max
    return {
        name: array.astype(np.float32) if name in EXACT else np.clip(array, -limit, limit).astype(np.float16)
        for name, array in arrays.items()
    }


def read_progress(path: Path, host: int, about: Mapping[str, Any]) -> dict[str, Any]:
    """Returns how far a host has come in a folder: `done`, how many `parts`, the `state` behind them.

    Args:
      path: the folder, which need not be there.
      host, about: as of `Writer`.

    Raises:
      InputError: the folder holds clips stored in another way, by what both that and this one say.
    """
    if is_stored(path):
        now = json.loads(json.dumps(about))  # JSON has lists for tuples
        if different := _differences(_read_about(path), _with_arrays(now)):
            raise InputError(
                f"{str(path)!r} holds clips stored with another {', '.join(different)}. Give another folder, or "
                "remove that one."
            )
    return _progress(path, host)


def unfinished(path: Path) -> list[int]:
    """Returns the hosts that have not stored all of their share, or have not begun."""
    hosts = range(_read_about(path)["hosts"])
    return [host for host in hosts if not _progress(path, host)["done"]]


class Writer:
    """Writes one host's records, a part at a time, with the position behind the last whole part: a pass that is cut
    off goes on from there.

    Args:
      path: the folder.
      host: whose records.
      about: what `stored.json` is to say: `hosts`, their number; `cut`, as a mapping; `arrays`, the names of a clip's
        arrays beside the latents; and whatever else says how the clips are made.

    Raises:
      InputError: the folder holds clips stored in another way, by what both that and this one say.
    """

    def __init__(self, path: Path, host: int, about: Mapping[str, Any]):
        self.path, self.host = path, host
        path.mkdir(parents=True, exist_ok=True)
        self.progress = read_progress(path, host, about)
        if not is_stored(path):
            _write(path / ABOUT, json.dumps(about, indent=1).encode(), f".{host}.tmp")  # other hosts may do so too

    def write_empty(self, **arrays: np.ndarray) -> None:
        """Writes what stands for dropped conditions, by the names of clips' arrays: `text` [t d] of the empty prompt,
        `image_tokens` [n d] of a zero picture for clips with tokens."""
        _write(self.path / EMPTY, safetensors.numpy.save(narrow(arrays)))

    def write(self, records: Sequence[tuple[str, Mapping[str, np.ndarray]]], state: Mapping[str, Any], done: bool):
        """Writes a part.

        Args:
          records: ids, and arrays as `narrow` returns them.
          state: the position behind them.
          done: whether they are the last.
        """
        file = self.path / PARTS.format(host=self.host, part=self.progress["parts"])
        if records:
            ids = IDS.format(host=self.host, part=self.progress["parts"])
            _write(self.path / ids, json.dumps([name for name, _ in records]).encode())
            temporary = file.with_suffix(".tmp")
            writer = ArrayRecordWriter(str(temporary), "group_size:1,uncompressed")
            for name, arrays in records:
                array = np.frombuffer(name.encode(), np.uint8)
                held = {key: np.asarray(it) for key, it in arrays.items()}  # numbers too
                writer.write(safetensors.numpy.save({"id": array} | held))
            writer.close()
            temporary.rename(file)
        self.progress = {"done": done, "parts": self.progress["parts"] + bool(records), "state": state}
        _write(self.path / PROGRESS.format(host=self.host), json.dumps(self.progress).encode())


def _progress(path: Path, host: int) -> dict[str, Any]:
    file = path / PROGRESS.format(host=host)
    if not file.exists():
        return {"done": False, "parts": 0, "state": None}
    return json.loads(file.read_text(encoding="utf-8"))


def _read_about(path: Path) -> dict[str, Any]:
    return _with_arrays(json.loads((path / ABOUT).read_text(encoding="utf-8")))


def _with_arrays(about: Mapping[str, Any]) -> dict[str, Any]:
    """`about` with the names of arrays, of which earlier versions said but whether there are image tokens."""
    if "arrays" in about:
        return dict(about)
    return dict(about) | dict(arrays=["text", "image_tokens"] if about.get("image_tokens") else ["text"])


def _differences(one: Any, other: Any, path: str = "") -> list[str]:
    """Names of what two JSON values both have, and of which they have something else, with both."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return [
            found
            for name in one
            if name in other
            for found in _differences(one[name], other[name], f"{path}.{name}" if path else name)
        ]
    return [] if one == other else [f"{path} ({json.dumps(one)} there, {json.dumps(other)} here)"]


def _write(file: Path, content: bytes, suffix: str = ".tmp") -> None:
    temporary = file.with_suffix(suffix)
    temporary.write_bytes(content)
    temporary.rename(file)
