"""The CSV of a batch: one video per row, columns picture, prompt, negative_prompt, seed and, for models of two text
encoders, prompt_2, negative_prompt_2."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from i2v_jax.errors import InputError, nearest

REQUIRED = ("picture", "prompt")
OPTIONAL = ("negative_prompt", "seed", "prompt_2", "negative_prompt_2")
MAX_SEED = 2**32 - 1


@dataclass(frozen=True)
class Job:
    """One video to make.

    Attributes:
      picture: becomes the first frame.
      prompt, negative_prompt: texts.
      seed: 0 .. 2**32 - 1.
      prompt_2, negative_prompt_2: for a second text encoder; None or "": the same.
    """

    picture: Path
    prompt: str
    negative_prompt: str
    seed: int
    prompt_2: str | None = None
    negative_prompt_2: str | None = None


def second_prompts(jobs: Sequence[Job]) -> dict[str, list[str] | None]:
    """Returns `prompts_2` and `negative_prompts_2` of a batch, None where no row has any."""

    def texts(second: str, first: str) -> list[str] | None:
        given = [getattr(job, second) for job in jobs]
        if not any(given):
            return None
        return [text or getattr(job, first) for text, job in zip(given, jobs)]

    return dict(
        prompts_2=texts("prompt_2", "prompt"),
        negative_prompts_2=texts("negative_prompt_2", "negative_prompt"),
    )


def check_seed(seed: int) -> None:
    """Raises InputError unless the seed is 0..2**32-1."""
    if not 0 <= seed <= MAX_SEED:
        raise InputError(f"seed={seed}: a whole number from 0 to {MAX_SEED} is wanted.")


def read_jobs(path: str | Path, negative_prompt: str = "", seed: int = 0, **others: str | None) -> list[Job]:
    """Reads a batch from a CSV file, UTF-8, comma-separated, with a header line.

    `negative_prompt`, `seed` and `others` are what a row gets that leaves those cells empty, or all rows when the
    columns are not there. Relative pictures are sought from the CSV's folder. Empty rows are passed over; an empty
    prompt is a prompt.

    Raises:
        InputError: no such file, not UTF-8 text, a missing, unknown or repeated column, no rows, or a row with too few
            or too many cells, no picture, a picture that is not there, or a seed that is not 0..2**32-1. Rows are named
            by their line in the file.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise InputError(f"No CSV file at {str(path)!r}. Check the path.")
    defaults = dict(negative_prompt=negative_prompt, seed=seed, **others)
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, strict=True)
            header = [name.strip() for name in next(reader, [])]
            _check_header(header, path)
            jobs = []
            for cells in reader:
                if any(cell.strip() for cell in cells):
                    where = f"{str(path)!r}, line {reader.line_num}"
                    jobs.append(_job(header, cells, where, path.parent, defaults))
    except UnicodeDecodeError:
        raise InputError(f"{str(path)!r} is not UTF-8 text. Save it as CSV UTF-8.") from None
    except csv.Error as error:
        raise InputError(f"{str(path)!r}, line {reader.line_num}: {error}. Check its quotes.") from None
    if not jobs:
        raise InputError(f"{str(path)!r} has no rows under its header.")
    return jobs


def _check_header(header: list[str], path: Path) -> None:
    columns = REQUIRED + OPTIONAL
    for name in header:
        if name not in columns:
            hint = " Separate the columns by commas." if ";" in name or "\t" in name else nearest(name, columns)
            raise InputError(f"{str(path)!r} has a column {name!r}, known are {', '.join(columns)}.{hint}")
        if header.count(name) > 1:
            raise InputError(f"{str(path)!r} has the column {name!r} twice.")
    for name in REQUIRED:
        if name not in header:
            raise InputError(f"{str(path)!r} has no column {name!r}. Its first line names the columns.")


def _job(header: list[str], cells: list[str], where: str, folder: Path, defaults: Mapping[str, Any]) -> Job:
    if len(cells) != len(header):
        raise InputError(f"{where}: {len(cells)} cells, {len(header)} are wanted. Quote a text that has commas in it.")
    row = {name: cell.strip() for name, cell in zip(header, cells)}
    picture = folder / row["picture"]
    if not row["picture"] or not picture.is_file():
        raise InputError(f"{where}: no picture at {row['picture']!r} (sought from {str(folder)!r}).")
    given = {name: row[name] for name in OPTIONAL if row.get(name)}
    if seed := given.get("seed"):
        if not (seed.isascii() and seed.isdigit() and len(seed) < 20 and int(seed) <= MAX_SEED):
            raise InputError(f"{where}: the seed {seed!r} is not a whole number from 0 to {MAX_SEED}.")
        given["seed"] = int(seed)
    return Job(picture, row["prompt"], **{**defaults, **given})
