"""Shows what a control network will see: the pictures that sampling reads, by the same code.

    python -m i2v_jax.sampling.controls preview SOURCE --process=canny --to=preview.mp4

SOURCE is a video, a folder of pictures, a picture for all frames, a text file with a path a line (an empty one: no
picture on that frame), or keypoints (.json, .npz, .npy, or a folder of them); or several of these, one a frame.

--to=NAME.mp4 or NAME.gif writes that, and a contact sheet NAME.png; --to=NAME.png the sheet alone; --to=FOLDER a PNG a
frame, to the pixel what the network sees. Frames without a picture are black.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from i2v_jax import media
from i2v_jax.errors import InputError
from i2v_jax.hub import on_disk
from i2v_jax.sampling.controls.pictures import read
from i2v_jax.sampling.controls.preprocess import POSE, PROCESSES

MODULE = "python -m i2v_jax.sampling.controls"
FORMATS = (".mp4", ".gif", ".png")


def main(arguments: Sequence[str] | None = None) -> None:
    """The command.

    Args:
      arguments: "preview" and what follows; by default the command line's.

    Raises:
      InputError: what is given cannot be read, does not fit, or cannot be written.
    """
    given = _parser().parse_args(arguments)
    target = _target(given.to)
    source = given.source[0] if len(given.source) == 1 else given.source
    pictures, known = read(
        source, given.frames, given.height, given.width, given.fit, given.process, given.at, given.take
    )
    files = show(pictures, known, target, given.fps)
    media.write_files(files, given.overwrite)
    on = "all frames" if known.all() else f"frames {', '.join(map(str, np.flatnonzero(known)))} of {given.frames}"
    print(f"{given.frames} control pictures of {given.height}x{given.width}, on {on}: {', '.join(map(str, files))}")


def show(pictures: media.Frames, known: np.ndarray, target: Path, fps: float) -> dict[Path, bytes]:
    """Returns the files that show control pictures.

    Args:
      pictures, known: as `pictures.read` returns them.
      target: a video, a contact sheet, or a folder of a picture a frame.

    Raises:
      InputError: frames that the format cannot have.
    """
    if not target.suffix:
        digits = max(4, len(str(len(pictures))))
        return {
            target / f"{number:0{digits}d}.png": media.encode_png(picture)
            for number, picture in enumerate(pictures)
            if known[number]
        }
    first = pictures[int(np.argmax(known))]
    files = {target.with_suffix(".png"): media.encode_png(media.contact_sheet(first, pictures))}
    if target.suffix.lower() != ".png":
        encode = media.encode_gif if target.suffix.lower() == ".gif" else media.encode_video
        files = {target: encode(pictures, fps)} | files
    return files


def _target(to: str) -> Path:
    target = on_disk(to)
    if target.suffix and target.suffix.lower() not in FORMATS:
        raise InputError(f"--to={to}: wanted a name that ends in {', '.join(FORMATS)}, or a folder.")
    return target


def _parser() -> argparse.ArgumentParser:
    program = sys.argv[0] if sys.argv[0].startswith("i2v ") else MODULE  # what `i2v` calls itself
    parser = argparse.ArgumentParser(prog=program, description="Control pictures of a run.")
    command = parser.add_subparsers(metavar="preview", required=True).add_parser(
        "preview",
        description=__doc__.replace(f"{MODULE} preview", "%(prog)s"),
        help="shows what a control network will see",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("source", nargs="+")
    command.add_argument("--frames", type=int, default=16, help="of the run; by default 16")
    command.add_argument("--height", type=int, default=512, help="of the run, pixels; by default 512")
    command.add_argument("--width", type=int, default=512)
    command.add_argument("--fit", choices=media.FITS, default="crop", help="what to do with another aspect")
    command.add_argument(
        "--process", default="none", help=f"{', '.join((*PROCESSES, POSE))}; with settings: canny:low=50,high=150"
    )
    command.add_argument(
        "--at", type=int, nargs="+", default=(), help="frames, counted from 0, on which the pictures stand"
    )
    command.add_argument("--take", choices=("first", "even"), help="which, of more pictures than frames")
    command.add_argument("--fps", type=float, default=8)
    command.add_argument("--to", default="preview.mp4", help="NAME.mp4, NAME.gif, NAME.png or a folder")
    command.add_argument("--overwrite", action="store_true", help="replace what is there")
    return parser
