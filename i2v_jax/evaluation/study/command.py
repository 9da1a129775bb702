"""A user study: which of several models' videos people prefer, asked blindly, on a page that wants no server.

    python -m i2v_jax.evaluation.study make ours=videos/ours SVD=videos/svd --source=pictures --cases=20 --to=study.html
    python -m i2v_jax.evaluation.study serve study.html --answers=answers
    python -m i2v_jax.evaluation.study read study.key.json answers/*.json --to=results

`make` writes the page, which is sent to people as it is, and study.key.json, which says what is whose and is not.
People open the page, rank, and send back the file that it saves; with `serve` the page sends it by itself.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from i2v_jax import media
from i2v_jax.errors import InputError
from i2v_jax.evaluation import sets
from i2v_jax.evaluation.study import making
from i2v_jax.evaluation.study.answers import read_answers
from i2v_jax.evaluation.study.key import key_path, read_key
from i2v_jax.evaluation.study.results import as_json, as_markdown, results
from i2v_jax.evaluation.study.serving import server

MODULE = "python -m i2v_jax.evaluation.study"
LARGE = 200  # MB of a page that phones may fail at


def main(arguments: Sequence[str] | None = None) -> None:
    """The command.

    Args:
      arguments: "make", "serve" or "read", and what follows; by default the command line's.

    Raises:
      InputError: what is given cannot be read, does not fit, or cannot be written.
    """
    given = _parser().parse_args(arguments)
    given.run(given)


def make(given: argparse.Namespace) -> None:
    """Writes a page and its key."""
    target = Path(given.to).expanduser()
    if target.suffix not in (".html", ".htm"):
        raise InputError(f"--to={given.to}: wanted a page, NAME.html.")
    media.check_folder(target.parent)
    folders = _named(given.runs, "run", "NAME=FOLDER")
    questions = _named(given.question, "--question", "NAME=TEXT") or None
    items = sets.pictures(given.source) if given.source else []
    options = dict(count=given.cases, seed=given.seed, side=given.side, title=given.title, common=given.common)
    page, key = making.make(folders, items, questions=questions, **options)
    media.write_files({target: page, key_path(target): key.to_json()}, given.overwrite)
    size = len(page) / 1e6
    print(f"{len(key.cases)} cases of {len(key.runs)} runs, {size:.1f} MB: {target}")
    print(f"Which video is whose: {key_path(target)}. Keep it to yourself; `read` wants it.")
    if size > LARGE:
        print(f"Phones may fail at a page of {size:.0f} MB: take fewer --cases or a smaller --side.")


def serve(given: argparse.Namespace) -> None:
    """Serves a page until it is interrupted."""
    path, folder = Path(given.page).expanduser(), Path(given.answers).expanduser()
    if not path.is_file():
        raise InputError(f"No page at '{path}'. `study make` writes one.")
    key, page = read_key(path), path.read_bytes()
    if f'"study": "{key.study}"'.encode() not in page:
        raise InputError(f"{path} is not of the study of {key_path(path)}. Make both anew.")
    media.check_folder(folder)
    with server(page, key, folder, given.host, given.port) as running:
        host, port = running.server_address[:2]
        print(f"http://{host}:{port}/ until Ctrl-C; answers go to {folder}", flush=True)
        try:
            running.serve_forever()
        except KeyboardInterrupt:
            print()


def read(given: argparse.Namespace) -> None:
    """Prints what people's answers come to, and writes it."""
    key = read_key(given.key)
    people, notes = read_answers([Path(path).expanduser() for path in given.files], key, given.incomplete)
    found = results(people, key, given.seed)
    text = as_markdown(found) + "".join(f"- {note}\n" for note in notes)
    files = {}
    if given.to:
        stem = media.free_stem(Path(given.to).expanduser().parent, Path(given.to).name, (".md", ".json"))
        files = {f"{stem}.md": text.encode(), f"{stem}.json": as_json(found)}
        media.write_files(files)
    print("\n".join([text, *files]))


def _named(texts: Sequence[str], what: str, wanted: str) -> dict[str, str]:
    """NAME=VALUE, each name once."""
    found: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.strip() or not value.strip():
            raise InputError(f"{what} {text!r}: wanted {wanted}.")
        if name.strip() in found:
            raise InputError(f"{what} {name.strip()!r} stands twice.")
        found[name.strip()] = value.strip()
    return found


def _parser() -> argparse.ArgumentParser:
    program = sys.argv[0] if sys.argv[0].startswith("i2v ") else MODULE  # what `i2v` calls itself
    whole = argparse.ArgumentParser(
        prog=program,
        description=__doc__.replace(MODULE, program),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = whole.add_subparsers(required=True, metavar="make|serve|read")
    parser = commands.add_parser("make", help="writes a page and its key")
    parser.add_argument("runs", nargs="+", metavar="NAME=FOLDER", help="a run's videos; one name for one case")
    parser.add_argument("--to", default="study.html", help="the page; the key is NAME.key.json beside it")
    parser.add_argument("--source", default="", help="folder or CSV of the pictures and prompts, by the videos' names")
    parser.add_argument("--cases", type=int, default=0, help="how many, drawn at random; by default all")
    parser.add_argument("--common", action="store_true", help="leave out the cases that not all runs have")
    parser.add_argument("--seed", type=int, default=0, help="of the draw, of ids and orders")
    parser.add_argument("--side", type=int, default=512, help="pixels of a video's longer side, at most")
    parser.add_argument("--title", default=making.TITLE, help="of the page")
    parser.add_argument(
        "--question",
        action="append",
        default=[],
        metavar="NAME=TEXT",
        help=f"what is asked, once each; by default {', '.join(making.QUESTIONS)}",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a page that is there already")
    parser.set_defaults(run=make)
    parser = commands.add_parser("serve", help="serves the page here, and keeps what it sends")
    parser.add_argument("page")
    parser.add_argument("--answers", default="answers", help="folder for people's answers")
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0: people in the same network reach it, too")
    parser.add_argument("--port", type=int, default=8000)
    parser.set_defaults(run=serve)
    parser = commands.add_parser("read", help="what people's answers come to")
    parser.add_argument("key", help="NAME.key.json, or the page that it lies beside")
    parser.add_argument("files", nargs="+", metavar="ANSWERS", help="people's files")
    parser.add_argument("--to", default="", help="writes NAME.md and NAME.json, too")
    parser.add_argument("--incomplete", action="store_true", help="count what is there of incomplete answers")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap")
    parser.set_defaults(run=read)
    return whole
