"""The CSV of a batch: one video per row, columns picture, prompt, negative_prompt, seed."""

import csv
from dataclasses import dataclass
from pathlib import Path

from i2v_jax.errors import InputError, nearest

REQUIRED, OPTIONAL = ("picture", "prompt"), ("negative_prompt", "seed")
MAX_SEED = 2**32 - 1


@dataclass(frozen=True)
class Job:
    """One video to make."""

    picture: Path
    prompt: str
    negative_prompt: str
    seed: int


def check_seed(seed: int) -> None:
    """Raises InputError unless the seed is 0..2**32-1."""
    if not 0 <= seed <= MAX_SEED:
        raise InputError(f"seed={seed}: a whole number from 0 to {MAX_SEED} is wanted.")


def read_jobs(path: str | Path, negative_prompt: str = "", seed: int = 0) -> list[Job]:
    """Reads a batch from a CSV file, UTF-8, comma-separated, with a header line.

    `negative_prompt` and `seed` are what a row gets that leaves those cells empty, or all rows when the columns are not
    there. Relative pictures are sought from the CSV's folder. Empty rows are passed over; an empty prompt is a prompt.

    Raises:
        InputError: no such file, not UTF-8 text, a missing, unknown or repeated column, no rows, or a row with too few
            or too many cells, no picture, a picture that is not there, or a seed that is not 0..2**32-1. Rows are named
            by their line in the file.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise InputError(f"No CSV file at {str(path)!r}. Check the path.")
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, strict=True)
            header = [name.strip() for name in next(reader, [])]
            _check_header(header, path)
            jobs = []
            for cells in reader:
                if any(cell.strip() for cell in cells):
                    where = f"{str(path)!r}, line {reader.line_num}"
                    jobs.append(_job(header, cells, where, path.parent, negative_prompt, seed))
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


def _job(header: list[str], cells: list[str], where: str, folder: Path, negative_prompt: str, seed: int) -> Job:
    if len(cells) != len(header):
        raise InputError(f"{where}: {len(cells)} cells, {len(header)} are wanted. Quote a text that has commas in it.")
    row = {name: cell.strip() for name, cell in zip(header, cells)}
    picture = folder / row["picture"]
    if not row["picture"] or not picture.is_file():
        raise InputError(f"{where}: no picture at {row['picture']!r} (sought from {str(folder)!r}).")
    if given := row.get("seed"):
        if not (given.isascii() and given.isdigit() and len(given) < 20 and int(given) <= MAX_SEED):
            raise InputError(f"{where}: the seed {given!r} is not a whole number from 0 to {MAX_SEED}.")
        seed = int(given)
    return Job(picture, row["prompt"], row.get("negative_prompt") or negative_prompt, seed)
