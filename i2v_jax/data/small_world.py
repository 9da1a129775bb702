"""The small world: made clips whose every motion is known. Textured shapes move over a background under a camera.

    python -m i2v_jax.data.small_world FOLDER [--clips=18] [--split=train] [--frames=16] [--size=64]

writes clips as NAME.mp4 with NAME.txt, and a contact sheet of them with their optical flow.

A clip follows from its split and number alone. Its first frame does not say which way anything goes, though a shape's
size hints at whether it grows, shrinks or rotates (`LARGER`); its caption says nothing but colours, shapes and motions.
The splits share colours, shapes and motions; but no texture, no photograph and no pair of a colour and a shape is in
both. Other backgrounds, noise and gradients, are of the same kinds in both. The photographs come with scikit-image,
which says that they are CC0, in the public domain, or (coins) without known copyright restrictions.

Places are (x to the right, y down). In a scene the picture's middle is the origin and its side is 1, so that a scene is
the same at any size. Everything moves by affine maps, 3x3 matrices: the flow is a product of them, not an estimate.
"""

import argparse
import dataclasses
import functools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import skimage.data
from jaxtyping import Bool, Float, Float32, UInt8
from PIL import Image, ImageDraw, ImageFont
from skimage import color

from i2v_jax import commands, media
from i2v_jax.data import sources
from i2v_jax.data.decoding import Cut, choose_frames
from i2v_jax.errors import InputError

FRAMES, SIZE, FPS = 16, 64, 8
CLIPS = {"train": 50_000, "held_out": 1_000}  # in a source; any other number can be made, too
LESSONS = "lessons"  # one more source, see `SmallWorld`
CAMERA = -1

COLOURS = {
    "red": (0.88, 0.10, 0.12),
    "orange": (0.98, 0.46, 0.02),
    "yellow": (0.98, 0.88, 0.15),
    "green": (0.12, 0.66, 0.22),
    "blue": (0.12, 0.32, 0.92),
    "purple": (0.50, 0.14, 0.72),
    "pink": (1.00, 0.52, 0.74),
    "white": (0.96, 0.96, 0.96),
}
SHAPES = ("disc", "square", "triangle", "star", "heart", "cross", "ring")
ROUND = ("disc", "ring")  # turned, they keep their outline: they do not rotate
PAIRS = {
    split: [
        (colour, shape)
        for i, colour in enumerate(COLOURS)
        for j, shape in enumerate(SHAPES)
        if ((i - j) % len(SHAPES) in (0, 3)) == (split == "held_out")
    ]
    for split in CLIPS
}
TEXTURES = {"train": ("stripes", "dots", "clouds", "gravel"), "held_out": ("checks", "waves", "marble", "brick")}
PHOTOGRAPHS = {
    "train": ("coffee", "rocket", "hubble_deep_field", "grass", "camera"),
    "held_out": ("chelsea", "astronaut", "coins", "brick"),
}


class Effect(NamedTuple):
    """What a motion does on the screen: signs of the flow's mean, of its curl, of its divergence."""

    right: int = 0
    down: int = 0
    clockwise: int = 0
    growth: int = 0


MOTIONS = {
    "moves left": Effect(right=-1),
    "moves right": Effect(right=1),
    "moves up": Effect(down=-1),
    "moves down": Effect(down=1),
    "moves up and left": Effect(-1, -1),
    "moves up and right": Effect(1, -1),
    "moves down and left": Effect(-1, 1),
    "moves down and right": Effect(1, 1),
    "rotates clockwise": Effect(clockwise=1),
    "rotates counterclockwise": Effect(clockwise=-1),
    "grows": Effect(growth=1),
    "shrinks": Effect(growth=-1),
}
CAMERA_MOTIONS = {
    "pans left": Effect(right=1),  # what is seen moves the other way
    "pans right": Effect(right=-1),
    "pans up": Effect(down=1),
    "pans down": Effect(down=-1),
    "zooms in": Effect(growth=1),
    "zooms out": Effect(growth=-1),
}
STILL = "stands still"
KINDS = (*MOTIONS, *CAMERA_MOTIONS)
ONCE_MORE = ("rotates", "zooms", "rotates", "rotates")  # in training, as they are learned last
IN_TURN = {  # clip number n has the kind number n mod their count, and perhaps other motions beside it
    "train": KINDS + tuple(kind for word in ONCE_MORE for kind in KINDS if kind.startswith(word)),
    "held_out": KINDS,
}
TRAVEL, TURN, GROWTH, ZOOM = (0.25, 0.3), (math.radians(40), math.radians(60)), (1.6, 1.9), (1.4, 1.6)
RADIUS = {1: (0.2, 0.25), 2: (0.145, 0.175)}  # of a clip's one object, of each of two: of a disc of its area
LARGER = {"rotates": 1.25, "shrinks": 1.1, "grows": 0.75}  # are shapes that do so, which shows best or has room then
WORLD = 1.8  # side of the background: enough for every pan and zoom
LOCAL = 3.5  # side of a shape's own square, in which its area is pi

Times = Float[np.ndarray, "f"]
Maps = Float[np.ndarray, "f 3 3"]


class Motion(NamedTuple):
    """One motion of a clip.

    Attributes:
      of: the object's number, or CAMERA.
      name: of `MOTIONS` or `CAMERA_MOTIONS`.
      effect: on the screen. A camera's is seen on the background; an object's adds to it.
    """

    of: int
    name: str
    effect: Effect


class Object(NamedTuple):
    """A shape as it is at first: its place, the radius of a disc of its area, its angle in radians, clockwise."""

    colour: str
    shape: str
    texture: str
    place: tuple[float, float]
    radius: float
    angle: float


class Clip(NamedTuple):
    """A rendered clip with all that is true of it.

    Attributes:
      video: RGB.
      caption: colours, shapes and motions.
      flow: (right, down) in pixels from frame t to t + 1: what is at (x, y) in frame t is at (x, y) + flow[t, y, x] in
        frame t + 1.
      visible: whether what a pixel's middle shows in frame t is in frame t + 1 within the picture (between the middles
        of its outermost pixels) and behind nothing.
      masks: where each object is seen; later objects are in front of earlier ones. The rest is background.
      scene: what was rendered.
    """

    video: UInt8[np.ndarray, "f h w 3"]
    flow: Float32[np.ndarray, "f-1 h w 2"]
    visible: Bool[np.ndarray, "f-1 h w"]
    masks: Bool[np.ndarray, "o f h w"]
    scene: "Scene"

    @property
    def caption(self) -> str:
        return self.scene.caption

    @property
    def objects(self) -> tuple[Object, ...]:
        return self.scene.objects

    @property
    def motions(self) -> tuple[Motion, ...]:
        return self.scene.motions

    @property
    def still(self) -> Bool[np.ndarray, "h w"]:
        """Background that stays as it is in all frames; none under a moving camera."""
        camera = CAMERA in (it.of for it in self.motions)
        return ~self.masks.any((0, 1)) & (self.video == self.video[0]).all((0, -1)) & (not camera)


def make(index: int, split: str = "train", frames: int = FRAMES, size: int = SIZE) -> Clip:
    """Makes a clip.

    Args:
      index: its number, from 0 on; numbers go through all kinds of motion in turn.
      split: "train" or "held_out".
      frames: over which the motions are spread out evenly.
      size: pixels of a side.
    """
    return draw(index, split).clip(frames, size)


class SmallWorld:
    """A source of clips, see `data.sources`: their frames are made when they are read.

    Args:
      split: or `LESSONS`: the train split's clips, but with one object and one motion each, and captions that tell the
        motion alone, such as "moves left".

    Raises:
      InputError: no such split.
    """

    def __init__(self, split: str):
        self.named, self.lessons = split, split == LESSONS
        self.split = "train" if self.lessons else split
        _check_split(self.split, LESSONS)

    def __len__(self) -> int:
        return CLIPS[self.split]

    def __getitem__(self, number: int) -> sources.Clip:
        number = range(len(self))[number]
        scene = draw(number, self.split, self.lessons)
        caption = scene.told_motions if self.lessons else scene.caption
        return sources.Clip(name(number, self.named), caption, scene.read)


def name(index: int, split: str) -> str:
    """A clip's id."""
    return f"{split}-{index:06d}"


@dataclasses.dataclass(frozen=True)
class Scene:
    """What is in a clip and how it moves, before it is rendered.

    Attributes:
      objects: from the back to the front.
      motions: at most one for each object, and for the camera. Objects without one stand still.
      amounts: by how much each motion goes: sides of the picture, radians, or a factor.
      split: says which textures and backgrounds there are.
      seed: of the textures and the background.
    """

    objects: tuple[Object, ...]
    motions: tuple[Motion, ...]
    amounts: tuple[float, ...]
    split: str
    seed: tuple[int, ...]

    @property
    def caption(self) -> str:
        """Such as "a red disc moves left", or "a blue star and a red ring, the camera zooms in"."""
        of = {motion.of: motion.name for motion in self.motions}
        still = f" {STILL}" if of.keys() - {CAMERA} else ""
        subjects = [
            f"{'an' if it.colour[0] in 'aeiou' else 'a'} {it.colour} {it.shape}" + (f" {of[i]}" if i in of else still)
            for i, it in enumerate(self.objects)
        ]
        return " and ".join(subjects) + (f", the camera {of[CAMERA]}" if CAMERA in of else "")

    @property
    def told_motions(self) -> str:
        """What the caption says of motions: "moves left", or "the camera zooms in"."""
        return " and ".join(("the camera " if it.of == CAMERA else "") + it.name for it in self.motions)

    def opposite(self) -> "Scene":
        """This scene with every motion the other way: the same first frame, another caption, another clip."""
        motions = []
        for it in self.motions:
            effect = Effect(*(-sign for sign in it.effect))
            names = CAMERA_MOTIONS if it.of == CAMERA else MOTIONS
            motions.append(Motion(it.of, next(name for name in names if names[name] == effect), effect))
        return dataclasses.replace(self, motions=tuple(motions))

    def alternatives(self, number: int) -> dict[str, "Scene"]:
        """By name, this scene with each motion that its motion of a number could be, itself and none among them.

        All go as far as the middle of what their kind goes.
        """
        of, found = self.motions[number].of, {}
        for name, effect in ((CAMERA_MOTIONS if of == CAMERA else MOTIONS) | {STILL: Effect()}).items():
            motions, amounts = list(self.motions), list(self.amounts)
            motions[number], amounts[number] = Motion(of, name, effect), sum(_amounts(of, effect)) / 2
            found[name] = dataclasses.replace(self, motions=tuple(motions), amounts=tuple(amounts))
        return found

    def clip(self, frames: int, size: int) -> Clip:
        """Renders it, its motions spread out evenly over frames, with all that is true of it."""
        times = np.linspace(0, 1, frames)
        return Clip(self.render(times, size), *self.truth(times, size), self)

    def read(self, cut: Cut, rng: np.random.Generator) -> UInt8[np.ndarray, "f h w 3"]:
        """Renders the frames that a cut takes of a clip of 16, as `data.decode.read_clip` decodes them of a video.

        Raises:
          BadClip: the cut has more frames.
        """
        size = max(cut.height, cut.width)
        top, left = (size - cut.height) // 2, (size - cut.width) // 2
        video = self.render(np.array(choose_frames(FRAMES, cut, rng)) / (FRAMES - 1), size)
        return video[:, top : top + cut.height, left : left + cut.width]

    def render(self, times: Times, size: int) -> UInt8[np.ndarray, "f h w 3"]:
        """Renders frames at times from 0 to 1.

        A pixel shows an object by the share of it that the object covers, taken from the distance to the object's edge.
        """
        background, *objects = self._maps(times, size)
        image = self._background(size)
        if CAMERA in (motion.of for motion in self.motions):
            video = _view(image, WORLD, background, size)
        else:
            video = _view(image, WORLD, background[:1], size).repeat(len(times), 0)
        for number, (it, maps) in enumerate(zip(self.objects, objects)):
            scale = np.sqrt(np.linalg.det(maps))[:, None, None]  # pixels of a radius
            share = np.clip(0.5 - scale * _sample(_distance(it.shape), LOCAL, maps, size, np.inf), 0, 1)
            where = share > 0
            colours = _sample(self._sprite(number, size), LOCAL, maps, size)[where]
            video[where] += share[where][:, None] * (colours - video[where])
        return np.round(video).astype(np.uint8)

    def truth(
        self, times: Times, size: int
    ) -> tuple[Float32[np.ndarray, "f-1 h w 2"], Bool[np.ndarray, "f-1 h w"], Bool[np.ndarray, "o f h w"]]:
        """Returns flow, visible and masks, see `Clip`."""
        layers = self._maps(times, size)
        steps = [maps[1:] @ np.linalg.inv(maps[:-1]) for maps in layers]  # pixels of frame t to those of frame t + 1
        shape = len(times), size, size
        masks = np.zeros((len(self.objects), *shape), bool)
        hidden = np.zeros((len(layers), shape[0] - 1, size, size), bool)  # what each layer has there, in frame t + 1
        for number, it in enumerate(self.objects):
            masks[:number] &= ~(inside := _sample(_distance(it.shape), LOCAL, layers[number + 1], size, np.inf) < 0)
            masks[number] = inside
            for behind in range(number + 1):
                ahead = np.linalg.inv(steps[behind]) @ layers[number + 1][1:]
                hidden[behind] |= _sample(_distance(it.shape), LOCAL, ahead, size, np.inf) < 0
        y, x = np.mgrid[:size, :size] + 0.5
        flow, seen = None, ~hidden[0]
        for number, step in enumerate(steps):
            (xx, xy, dx), (yx, yy, dy) = np.moveaxis(step[:, :2, :, None, None], 0, 2)
            of_layer = np.stack([(xx - 1) * x + xy * y + dx, yx * x + (yy - 1) * y + dy], -1).astype(np.float32)
            if number == 0:
                flow = of_layer
            else:
                here = masks[number - 1, :-1]
                flow[here], seen[here] = of_layer[here], ~hidden[number][here]
        end = np.stack([x, y], -1) + flow
        return flow, seen & ((end >= 0.5) & (end <= size - 0.5)).all(-1), masks

    def _maps(self, times: Times, size: int) -> list[Maps]:
        """From the background's and each object's own places to pixels."""
        moves = {it.of: _move(it.effect, amount, times) for it, amount in zip(self.motions, self.amounts)}
        still = np.broadcast_to(np.eye(3), (len(times), 3, 3))
        camera = _affine((size / 2, size / 2), 0, size) @ moves.get(CAMERA, still)
        return [camera] + [
            camera @ _affine(it.place, 0, 1) @ moves.get(i, still) @ _affine((0, 0), it.angle, it.radius)
            for i, it in enumerate(self.objects)
        ]

    def _background(self, size: int) -> Image.Image:
        """The world behind all objects, two texels to a pixel, without detail finer than a pixel."""
        rng, side = np.random.default_rng((*self.seed, 0)), math.ceil(WORLD * size)
        dark, light = (_tint(rng, value) for value in ((0.2, 0.5), (0.65, 1)))
        kind = rng.choice(["photograph", "photograph", "noise", "gradient"])
        if kind == "photograph":
            picture = _crop(str(rng.choice(PHOTOGRAPHS[self.split])), side, rng, (0.85, 1))
            if picture.mode == "L":
                picture = _mix(dark, light, np.asarray(picture, np.float32) / 255)
            else:
                picture = Image.blend(picture.convert("L").convert("RGB"), picture, 0.7)
        else:
            noise = _noise(side, rng, (3, 6, 12, 24, 48))
            if kind == "gradient":
                x, y = _grid(side, 1, rng.uniform(0, 2 * math.pi))
                noise = 0.5 + 0.7 * x + 0.4 * (noise - 0.5)
            picture = _mix(dark, light, noise)
        return picture.resize((2 * side, 2 * side), Image.Resampling.BICUBIC)

    def _sprite(self, number: int, size: int) -> Image.Image:
        """An object's colours over its own square, two texels to a pixel of the first frame.

        One half is darker, so that even a shape of many symmetries shows which way it turns.
        """
        it, rng = self.objects[number], np.random.default_rng((*self.seed, 1 + number))
        side = math.ceil(2 * LOCAL * it.radius * size)
        full = np.array(COLOURS[it.colour])
        tone = _mix(0.75 * full, full + 0.2 * (1 - full), _texture(it.texture, side, rng))
        depth = -np.asarray(_distance(it.shape).resize((side, side), Image.Resampling.BILINEAR))
        rim = np.clip((depth - 0.06) / 0.1, 0, 1)
        lit = np.clip(0.5 + _grid(side, LOCAL, rng.uniform(0, 2 * math.pi))[0] / 0.25, 0, 1)
        light = (0.45 + 0.55 * rim) * (0.45 + 0.55 * lit)
        return Image.fromarray(np.round(np.asarray(tone) * light[..., None]).astype(np.uint8))


def draw(index: int, split: str = "train", alone: bool = False) -> Scene:
    """Draws what is in a clip; see `make`. `alone`: one object, and one motion."""
    _check_split(split)
    seed = (list(CLIPS).index(split), index)
    rng = np.random.default_rng(seed)
    count = 1 if rng.random() < 0.6 or alone else 2
    pairs = [PAIRS[split][rng.integers(len(PAIRS[split]))]]
    others = [pair for pair in PAIRS[split] if pair[0] != pairs[0][0]]
    pairs.append(others[rng.integers(len(others))])
    angle, apart = rng.uniform(0, 2 * math.pi), 0 if count == 1 else rng.uniform(0.21, 0.25)
    middle = rng.uniform(-0.13, 0.13, 2) if count == 1 else rng.uniform(-0.04, 0.04, 2)
    objects = []
    for number, (colour, shape) in enumerate(pairs[:count]):
        side = apart * (1 - 2 * number)
        objects.append(
            Object(
                colour,
                shape,
                str(rng.choice(TEXTURES[split])),
                (float(middle[0] + side * math.cos(angle)), float(middle[1] + side * math.sin(angle))),
                rng.uniform(*RADIUS[count]),
                rng.uniform(0, 2 * math.pi),
            )
        )

    names = {}
    kind = IN_TURN[split][index % len(IN_TURN[split])]
    mover = int(rng.integers(count))
    if kind in MOTIONS:
        names[mover] = kind
        if count == 2 and rng.random() < 0.75:
            names[1 - mover] = str(rng.choice([name for name, effect in MOTIONS.items() if not effect.clockwise]))
    else:
        names[CAMERA] = kind
    for of in names.keys() - {CAMERA}:
        it, larger = objects[of], LARGER.get(names[of].split()[0], 1)
        objects[of] = it._replace(radius=larger * it.radius)
        if MOTIONS[names[of]].clockwise:
            shapes = [shape for colour, shape in PAIRS[split] if colour == it.colour and shape not in ROUND]
            shape = it.shape if it.shape in shapes else str(rng.choice(shapes))
            place = (it.place[0] / larger, it.place[1] / larger)  # and nearer to the middle
            objects[of] = objects[of]._replace(shape=shape, place=place)
    motions, amounts = [], []
    for of in sorted(names):
        effect = (CAMERA_MOTIONS if of == CAMERA else MOTIONS)[names[of]]
        motions.append(Motion(of, names[of], effect))
        amounts.append(rng.uniform(*_amounts(of, effect)))
    return Scene(tuple(objects), tuple(motions), tuple(amounts), split, seed)


def _amounts(of: int, effect: Effect) -> tuple[float, float]:
    """The least and the most that a motion goes."""
    return TURN if effect.clockwise else TRAVEL if not effect.growth else ZOOM if of == CAMERA else GROWTH


def _check_split(split: str, *others: str) -> None:
    if split not in CLIPS:
        raise InputError(f"The small world has no split {split!r}, one of {', '.join((*CLIPS, *others))} is wanted.")


def _affine(shift, angle, scale) -> Float[np.ndarray, "*maps 3 3"]:
    """Scales, turns clockwise, then shifts; of one number each or of one for each map."""
    shift = np.asarray(shift, float)
    c, s = scale * np.cos(angle), scale * np.sin(angle)
    maps = np.zeros((*np.broadcast_shapes(shift.shape[:-1], np.shape(c)), 3, 3))
    maps[..., 0, 0], maps[..., 0, 1], maps[..., 1, 0], maps[..., 1, 1] = c, -s, s, c
    maps[..., :2, 2], maps[..., 2, 2] = shift, 1
    return maps


def _move(effect: Effect, amount: float, times: Times) -> Maps:
    """What a motion has done at each time: straight at one speed, round the middle, or by a factor."""
    way = np.array([effect.right, effect.down]) / max(1, math.hypot(effect.right, effect.down))
    return _affine(amount * times[:, None] * way, amount * effect.clockwise * times, amount ** (effect.growth * times))


def _sample(image: Image.Image, side: float, maps: Maps, size: int, outside: float = 0) -> np.ndarray:
    """Puts an image that covers a square of its own places, round the origin, into frames; bilinear."""
    texels = _affine((image.width / 2, image.height / 2), 0, image.width / side) @ np.linalg.inv(maps)
    kind, fill = ((), outside) if image.mode == "F" else ((3,), None)
    frames = np.empty((len(maps), size, size, *kind), np.float32)
    for frame, to_texels in zip(frames, texels):
        to_texels = tuple(to_texels[:2].flat)
        frame[:] = image.transform(
            (size, size), Image.Transform.AFFINE, to_texels, Image.Resampling.BILINEAR, fillcolor=fill
        )
    return frames


def _view(image: Image.Image, side: float, maps: Maps, size: int) -> Float32[np.ndarray, "f h w 3"]:
    """Does what `_sample` does for maps that do not turn; a pixel is a mean over all that it covers."""
    texels = _affine((image.width / 2, image.height / 2), 0, image.width / side) @ np.linalg.inv(maps)
    frames = np.empty((len(maps), size, size, 3), np.float32)
    for frame, to_texels in zip(frames, texels):
        box = (to_texels @ [[0, size], [0, size], [1, 1]])[:2].T.flat  # left, top, right, bottom
        frame[:] = image.resize((size, size), Image.Resampling.BICUBIC, tuple(box))
    return frames


def _grid(size: int, side: float, angle: float = 0) -> Float[np.ndarray, "2 h w"]:
    """x and y of the texels of a square, turned."""
    x, y = ((np.mgrid[:size, :size] + 0.5) / size - 0.5)[::-1] * side
    return np.stack([math.cos(angle) * x + math.sin(angle) * y, math.cos(angle) * y - math.sin(angle) * x])


def _noise(size: int, rng: np.random.Generator, cells: Sequence[int]) -> Float32[np.ndarray, "h w"]:
    """Sums noise of several widths, the widest the strongest; 0.5 at the mean, mostly within 0 to 1."""
    total = np.zeros((size, size), np.float32)
    for count in cells:
        grid = Image.fromarray(rng.standard_normal((count, count)).astype(np.float32))
        total += np.asarray(grid.resize((size, size), Image.Resampling.BICUBIC)) / count**0.7
    return 0.5 + total / (4 * total.std())


def _texture(name: str, size: int, rng: np.random.Generator) -> Float[np.ndarray, "h w"]:
    """A pattern of 0 to 1 over a shape's own square, on which a turn can be seen."""
    x, y = _grid(size, LOCAL, rng.uniform(0, 2 * math.pi)) * 2 * math.pi / rng.uniform(0.7, 1.0)
    x += rng.uniform(0, 2 * math.pi)
    if name in ("gravel", "brick"):
        grains = _crop(name, size // 2, rng, (0.3, 0.5)).resize((size, size), Image.Resampling.BICUBIC)
        return np.asarray(grains, np.float32) / 255
    noise = _noise(size, rng, (4, 8, 16))
    pattern = {
        "stripes": np.sin(x),
        "dots": np.cos(x) + np.cos(y) - 0.4,
        "clouds": 2 * noise - 1,
        "checks": 2 * np.sin(x) * np.sin(y),
        "waves": np.sin(x + 1.5 * np.sin(y)),
        "marble": np.sin(x + 6 * noise),
    }[name]
    return 0.5 + 0.5 * np.tanh(2.5 * pattern)


def _tint(rng: np.random.Generator, value: tuple[float, float]) -> Float[np.ndarray, "3"]:
    """Draws a pale colour, paler than an object's."""
    return color.hsv2rgb([rng.random(), rng.uniform(0.15, 0.5), rng.uniform(*value)])


def _mix(zero, one, shares: Float[np.ndarray, "h w"]) -> Image.Image:
    """Mixes two colours, of 0 to 1, by shares of the second."""
    mixed = zero + (one - np.asarray(zero)) * np.clip(shares, 0, 1)[..., None]
    return Image.fromarray(np.round(255 * np.clip(mixed, 0, 1)).astype(np.uint8))


@functools.cache
def _photograph(name: str) -> Image.Image:
    return Image.fromarray(getattr(skimage.data, name)())


def _crop(name: str, size: int, rng: np.random.Generator, share: tuple[float, float]) -> Image.Image:
    """Draws a square of a photograph, of a share of its shorter side, perhaps mirrored, and scales it."""
    picture = _photograph(name)
    side = rng.uniform(*share) * min(picture.size)
    left, top = rng.uniform(0, picture.width - side), rng.uniform(0, picture.height - side)
    box = (left, top, left + side, top + side)
    crop = picture.resize((size, size), Image.Resampling.BOX, box, reducing_gap=2)
    return crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else crop


@functools.cache
def _distance(shape: str) -> Image.Image:
    """How far a place is outside of a shape's edge, or inside where negative, over the shape's own square."""
    places = _grid(192, LOCAL)
    if shape == "disc":
        distance = np.hypot(*places) - 1
    elif shape == "ring":
        distance = np.abs(np.hypot(*places) - 0.87) - 0.29
    else:
        distance = _distance_to_polygon(places, _corners(shape))
    return Image.fromarray(distance.astype(np.float32))


def _corners(shape: str) -> Float[np.ndarray, "n 2"]:
    """The corners of a shape of area pi."""
    if shape == "heart":
        t = np.linspace(0, 2 * math.pi, 64, endpoint=False)
        x, y = 16 * np.sin(t) ** 3, -13 * np.cos(t) + 5 * np.cos(2 * t) + 2 * np.cos(3 * t) + np.cos(4 * t)
    elif shape == "cross":
        x = np.array([1, 1, 3, 3, 1, 1, -1, -1, -3, -3, -1, -1])
        y = np.roll(x, 3)
    else:
        count = {"triangle": 3, "square": 4, "star": 10}[shape]
        t = np.arange(count) * 2 * math.pi / count
        radius = np.where(np.arange(count) % 2, 0.45, 1) if shape == "star" else 1
        x, y = radius * np.sin(t), -radius * np.cos(t)
    area = abs(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2
    return np.stack([x, y], -1) * math.sqrt(math.pi / area)


def _distance_to_polygon(places: Float[np.ndarray, "2 h w"], corners: Float[np.ndarray, "n 2"]) -> np.ndarray:
    px, py = places
    nearest_edge, inside = np.inf, False
    for (ax, ay), (bx, by) in zip(corners, np.roll(corners, -1, 0)):
        ex, ey, wx, wy = bx - ax, by - ay, px - ax, py - ay
        along = np.clip((wx * ex + wy * ey) / (ex * ex + ey * ey), 0, 1)
        nearest_edge = np.minimum(nearest_edge, np.hypot(wx - along * ex, wy - along * ey))
        inside ^= ((ay > py) != (by > py)) & ((wx * ey - wy * ex < 0) != (by > ay))
    return np.where(inside, -nearest_edge, nearest_edge)


def contact_sheet(clips: Sequence[Clip], shown: int = 4, scale: int = 2, columns: int = 2) -> media.Picture:
    """Lays clips out: of each some frames, its flow from the first frame on, its caption below."""
    height, width = (scale * side for side in clips[0].video.shape[1:3])
    gap, line = 3 * scale, 10 * scale
    across, down = (shown + 1) * (width + gap) + 3 * gap, height + line + 2 * gap
    sheet = Image.new("RGB", (columns * across - 3 * gap, -(-len(clips) // columns) * down), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(0.8 * line)
    for number, clip in enumerate(clips):
        left, top = number % columns * across, number // columns * down
        numbers = np.linspace(0, len(clip.video) - 1, shown).round().astype(int)
        for place, picture in enumerate([*clip.video[numbers], flow_colours(clip.flow[0])]):
            tile = Image.fromarray(picture).resize((width, height), Image.Resampling.LANCZOS)
            sheet.paste(tile, (left + place * (width + gap), top))
        pen.text((left, top + height), clip.caption, "black", font)
    return np.asarray(sheet)


def flow_colours(flow: Float[np.ndarray, "h w 2"], fastest: float = 3.0) -> media.Picture:
    """Shows a flow: the hue tells where to, the saturation how fast, up to `fastest` pixels."""
    right, down = np.moveaxis(flow, -1, 0)
    hue = np.arctan2(down, right) / (2 * math.pi) % 1
    speed = np.minimum(np.hypot(right, down) / fastest, 1)
    return np.round(255 * color.hsv2rgb(np.stack([hue, speed, np.ones_like(hue)], -1))).astype(np.uint8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="where to write the clips and contact_sheet.png")
    parser.add_argument("--clips", type=int, default=len(KINDS), help="how many; by default one of each kind")
    parser.add_argument("--split", default="train", choices=CLIPS)
    parser.add_argument("--frames", type=int, default=FRAMES)
    parser.add_argument("--size", type=int, default=SIZE, help="pixels of a side")
    arguments = parser.parse_args()
    for option in ("clips", "frames", "size"):
        if getattr(arguments, option) < 2:
            raise InputError(f"--{option}={getattr(arguments, option)}: wanted 2 or more.")
    folder, split = Path(arguments.folder).expanduser(), arguments.split
    clips = [make(index, split, arguments.frames, arguments.size) for index in range(arguments.clips)]
    files = {folder / "contact_sheet.png": media.encode_png(contact_sheet(clips))}
    for index, clip in enumerate(clips):
        files[folder / f"{name(index, split)}{sources.VIDEO}"] = media.encode_video(clip.video, FPS)
        files[folder / f"{name(index, split)}{sources.CAPTION}"] = clip.caption.encode()
    media.write_files(files)
    print(f"{len(clips)} clips and contact_sheet.png in {folder}")


if __name__ == "__main__":
    commands.run(main)
