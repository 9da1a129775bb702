"""Writes clips of the small world for people to look at, and a contact sheet of them with their optical flow.

    python -m i2v_jax.data.small_world FOLDER [--clips=18] [--split=train] [--frames=16] [--size=64] [--look=blueprint]

Clips are NAME.mp4 with NAME.txt; the sheet is contact_sheet.png. With a look, first frames alone, in that look, are
NAME.png: what a style is learned from.
"""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFont
from skimage import color

from i2v_jax import media
from i2v_jax.data.clip import CAPTION_SUFFIX, VIDEO_SUFFIXES
from i2v_jax.data.small_world.drawing import RenderedClip, make
from i2v_jax.data.small_world.looks import LOOKS
from i2v_jax.data.small_world.scene import FPS, FRAMES, KINDS, SIZE, check_split
from i2v_jax.data.small_world.source import clip_id
from i2v_jax.errors import InputError


def contact_sheet(clips: Sequence[RenderedClip], shown: int = 4, scale: int = 2, columns: int = 2) -> media.Picture:
    """Lays clips out: of each some frames, its flow from the first frame on, its caption below."""
    height, width = (scale * side for side in clips[0].video.shape[1:3])
    gap, line = 3 * scale, 10 * scale
    across, down = (shown + 1) * (width + gap) + 3 * gap, height + line + 2 * gap
    sheet = Image.new("RGB", (columns * across - 3 * gap, -(-len(clips) // columns) * down), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(0.8 * line)
    for number, clip in enumerate(clips):
        left, top = number % columns * across, number // columns * down
        numbers = np.linspace(0, len(clip.video) - 1, shown).round().astype(int)
        for column, picture in enumerate([*clip.video[numbers], flow_colours(clip.flow[0])]):
            tile = Image.fromarray(picture).resize((width, height), Image.Resampling.LANCZOS)
            sheet.paste(tile, (left + column * (width + gap), top))
        pen.text((left, top + height), clip.caption, "black", font)
    return np.asarray(sheet)


def flow_colours(flow: Float[np.ndarray, "h w 2"], fastest: float = 3.0) -> media.Picture:
    """Shows a flow: the hue says where to, the saturation how fast, up to `fastest` pixels."""
    right, down = np.moveaxis(flow, -1, 0)
    hue = np.arctan2(down, right) / (2 * math.pi) % 1
    speed = np.minimum(np.hypot(right, down) / fastest, 1)
    return np.round(255 * color.hsv2rgb(np.stack([hue, speed, np.ones_like(hue)], -1))).astype(np.uint8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="where to write the clips and contact_sheet.png")
    parser.add_argument("--clips", type=int, default=len(KINDS), help="how many; by default one of each kind")
    parser.add_argument("--split", default="train", help="train, held_out, or a motion: swing, held_out:swing, ...")
    parser.add_argument("--frames", type=int, default=FRAMES)
    parser.add_argument("--size", type=int, default=SIZE, help="pixels of a side")
    parser.add_argument("--look", choices=LOOKS, help="of pictures, which are then written in the place of clips")
    arguments = parser.parse_args()
    for option in ("clips", "frames", "size"):
        if getattr(arguments, option) < 2:
            raise InputError(f"--{option}={getattr(arguments, option)}: wanted 2 or more.")
    check_split(arguments.split)
    folder, split = Path(arguments.folder).expanduser(), arguments.split
    if arguments.look:
        numbers = range(arguments.clips)
        media.write_files({folder / name: it for i in numbers for name, it in _picture(i, arguments).items()})
        print(f"{arguments.clips} pictures in {folder}")
        return
    clips = [make(index, split, arguments.frames, arguments.size) for index in range(arguments.clips)]
    files = {folder / "contact_sheet.png": media.encode_png(contact_sheet(clips))}
    for index, clip in enumerate(clips):
        name = clip_id(index, split).replace(":", "_")
        files[folder / f"{name}{VIDEO_SUFFIXES[0]}"] = media.encode_video(clip.video, FPS)
        files[folder / f"{name}{CAPTION_SUFFIX}"] = clip.caption.encode()
    media.write_files(files)
    print(f"{len(clips)} clips and contact_sheet.png in {folder}")


def _picture(index: int, arguments: argparse.Namespace) -> dict[str, bytes]:
    """A clip's first frame in a look, and its caption: "a red disc, blueprint"."""
    clip, name = make(index, arguments.split, 2, arguments.size), clip_id(index, arguments.split).replace(":", "_")
    picture = LOOKS[arguments.look](clip.video[0])
    caption = f"{clip.scene.still_caption}, {arguments.look}"
    return {f"{name}.png": media.encode_png(picture), f"{name}{CAPTION_SUFFIX}": caption.encode()}
