"""The CSV of a batch: one video a row, columns picture, prompt, negative_prompt, seed, name, for models of two text
encoders prompt_2 and negative_prompt_2, and settings of a run, by their keys in the config."""

import ast
import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from i2v_jax.data.clip import CAPTION_SUFFIX
from i2v_jax.errors import InputError, nearest
from i2v_jax.hub import read_text, text_lines
from i2v_jax.sampling.inputs import MAX_SEED

REQUIRED = ("picture", "prompt")
OPTIONAL = ("negative_prompt", "seed", "name", "prompt_2", "negative_prompt_2")
KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text", tuple: "a tuple like '(8, 0)'"}
CONTROL_PICTURES = "controls.pictures"
FILES = (CONTROL_PICTURES, "image_prompts.pictures", "image_prompts.face_embedding")  # settings that name files
TRUTHS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def read(path: str | Path, settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Reads a CSV file, UTF-8 or UTF-16, comma-separated, with a header line.

    Relative files are sought from the CSV's folder. Empty rows are passed over; an empty prompt is a prompt; any
    other empty cell is left out of its row.

    Args:
      path: of the file.
      settings: further columns that there may be, with a value of their types.

    Returns:
      The rows: picture (a path), prompt, the cells of `OPTIONAL`, and "changes", pairs of a setting and its value.

    Raises:
      InputError: no such file, other bytes, a missing, unknown or repeated column, no rows, or a row with too few
        or too many cells, no picture, a picture that is not there, a seed that is not 0..2**32-1, a name that is no
        file's, a setting of another type. Rows are named by their line in the file.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise InputError(f"No CSV file at {str(path)!r}. Check the path.")
    try:
        reader = csv.reader(text_lines(path, newline=""), strict=True)
        header = [name.strip() for name in next(reader, [])]
        _check_header(header, path, settings)
        rows = []
        for cells in reader:
            if any(cell.strip() for cell in cells):
                where = f"{str(path)!r}, line {reader.line_num}"
                rows.append(_row(header, cells, where, path.parent, settings))
    except csv.Error as error:
        raise InputError(f"{str(path)!r}, line {reader.line_num}: {error}. Check its quotes.") from None
    if not rows:
        raise InputError(f"{str(path)!r} has no rows under its header.")
    return rows


def text_beside(picture: Path, otherwise: str) -> str:
    """Returns the text of NAME.txt, its ending in any case, beside a picture, or another where there is none.

    Raises:
      InputError: it is no text, see `hub.text_lines`.
    """
    files = (picture.with_suffix(write(CAPTION_SUFFIX)) for write in (str.lower, str.upper, str.title))
    return next((read_text(file).strip() for file in files if file.is_file()), otherwise)


def _check_header(header: list[str], path: Path, settings: Mapping[str, Any]) -> None:
    columns = REQUIRED + OPTIONAL
    for name in header:
        if name not in columns and name not in settings:
            hint = nearest(name, (*columns, *settings))
            hint = " Separate the columns by commas." if ";" in name or "\t" in name else hint
            more = ", and settings such as steps, t0" if settings else ""
            raise InputError(f"{str(path)!r} has a column {name!r}, known are {', '.join(columns)}{more}.{hint}")
        if header.count(name) > 1:
            raise InputError(f"{str(path)!r} has the column {name!r} twice.")
    for name in REQUIRED:
        if name not in header:
            raise InputError(f"{str(path)!r} has no column {name!r}. Its first line names the columns.")


def _row(header: list[str], cells: list[str], where: str, folder: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
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
    if name := given.get("name"):
        if set(name) & set('/\\\0:*?"<>|') or name.startswith("."):
            raise InputError(f"{where}: {name!r} cannot be the name of a file. Leave out slashes, and dots before it.")
    own = [name for name in header if name in settings and row[name]]
    changes = [(name, _value(row[name], settings[name], name, where)) for name in own]
    changes = [
        (name, _from_folder(value, folder, f"{where}: {name}") if name in FILES else value) for name, value in changes
    ]
    return dict(picture=picture, prompt=row["prompt"], changes=tuple(changes), **given)


def _from_folder(value: Any, folder: Path, name: str) -> Any:
    """A file, or several, sought from the CSV's folder."""
    if isinstance(value, str):
        return str(folder / Path(value).expanduser())
    if not isinstance(value, tuple | list):
        raise InputError(f"{name} has {value!r}, the path of a file is wanted.")
    return tuple(_from_folder(each, folder, name) for each in value)


def _value(text: str, known: Any, name: str, where: str) -> Any:
    """Reads a cell as a value of the type of `known`."""
    kind = type(known)
    try:
        if kind is bool:
            return TRUTHS[text.lower()]
        if name in FILES and kind is tuple and not text.startswith(("(", "[", "'", '"')):
            return (text,)
        if kind is tuple:
            value = ast.literal_eval(text)
            is_one = isinstance(value, str) or name.startswith("controls.") and isinstance(value, int | float)
            return (value,) if is_one else tuple(value)
        return kind(text)
    except (KeyError, ValueError, TypeError, SyntaxError):
        raise InputError(f"{where}: {name} is {text!r}, {KINDS[kind]} is wanted.") from None
