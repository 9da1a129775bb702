"""What is in a clip of the small world, how its things move, and its caption.

The splits share colours, shapes and motions; but no texture, no photograph and no pair of a colour and a shape is in
both. Other backgrounds, noise and gradients, are of the same kinds in both. The photographs come with scikit-image,
which says that they are CC0, in the public domain, or (coins) without known copyright restrictions.

Positions are (x to the right, y down). The picture's middle is the origin and its side is 1, so that a scene is the
same at any size.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from i2v_jax.data.small_world.paths import BY_VERB, NOVEL
from i2v_jax.errors import InputError, nearest

NOVEL_CLIPS = 10  # of a motion that the bundled model was not taught, in a source
FRAMES, SIZE = 16, 64  # of a clip, where nothing else is asked for
FPS = 8  # at which clips are shown
CLIPS = {"train": 50_000, "held_out": 1_000}  # in a source; any other number can be made, too
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
    "pans left": Effect(right=1),  # what the camera shows moves the other way
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


class Motion(NamedTuple):
    """One motion of a clip.

    Attributes:
      of: the object's number, or CAMERA.
      name: of `MOTIONS` or `CAMERA_MOTIONS`, or a verb of `paths.NOVEL`.
      effect: on the screen. A camera's is that on the background; an object's adds to it. None of a novel motion.
    """

    of: int
    name: str
    effect: Effect


class Object(NamedTuple):
    """A shape as it is at first: its middle, the radius of a disc of its area, its angle in radians, clockwise."""

    colour: str
    shape: str
    texture: str
    middle: tuple[float, float]
    radius: float
    angle: float


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
        motion_of = {motion.of: motion.name for motion in self.motions}
        camera = motion_of.pop(CAMERA, None)
        return self._subjects(motion_of) + (f", the camera {camera}" if camera else "")

    @property
    def still_caption(self) -> str:
        """What the caption says of things: "a blue star and a red ring"."""
        return self._subjects({})

    def _subjects(self, motion_of: Mapping[int, str]) -> str:
        subjects = []
        for number, thing in enumerate(self.objects):
            article = "an" if thing.colour[0] in "aeiou" else "a"
            words = [article, thing.colour, thing.shape]
            if motion_of:
                words.append(motion_of.get(number, STILL))
            subjects.append(" ".join(words))
        return " and ".join(subjects)

    @property
    def motion_caption(self) -> str:
        """What the caption says of motions: "moves left", or "the camera zooms in"."""
        return " and ".join(("the camera " if motion.of == CAMERA else "") + motion.name for motion in self.motions)

    def opposite(self) -> "Scene":
        """This scene with every motion the other way: the same first frame, another caption, another clip.

        Novel motions have no other way: InputError.
        """
        motions = []
        for motion in self.motions:
            if motion.name in BY_VERB:
                raise InputError(f"A thing that {motion.name} cannot do so the other way. Leave `opposite` out.")
            effect = Effect(*(-sign for sign in motion.effect))
            names = motions_of(motion.of)
            motions.append(Motion(motion.of, next(name for name in names if names[name] == effect), effect))
        return dataclasses.replace(self, motions=tuple(motions))

    def alternatives(self, number: int) -> dict[str, "Scene"]:
        """By name, this scene with each motion that its motion of a number could be, itself and none among them.

        All go as far as the middle of what their kind goes. Novel motions are among them where it is one.
        """
        of, found = self.motions[number].of, {}
        ranges = {name: (effect, amount_range(of, effect)) for name, effect in motions_of(of).items()}
        if self.motions[number].name in BY_VERB:
            is_camera = of == CAMERA
            ranges |= {it.verb: (Effect(), it.amounts) for it in NOVEL.values() if it.of_camera == is_camera}
        for name, (effect, amounts_of) in (ranges | {STILL: (Effect(), TRAVEL)}).items():
            motions, amounts = list(self.motions), list(self.amounts)
            motions[number], amounts[number] = Motion(of, name, effect), sum(amounts_of) / 2
            found[name] = dataclasses.replace(self, motions=tuple(motions), amounts=tuple(amounts))
        return found


def motions_of(of: int) -> dict[str, Effect]:
    """The motions that an object of a number, or the `CAMERA`, can have."""
    return CAMERA_MOTIONS if of == CAMERA else MOTIONS


def amount_range(of: int, effect: Effect) -> tuple[float, float]:
    """The least and the most that a motion goes."""
    if effect.clockwise:
        return TURN
    if effect.growth:
        return ZOOM if of == CAMERA else GROWTH
    return TRAVEL


def check_split(split: str, *others: str) -> None:
    """Raises InputError for what is no split, nor one of `others`, nor one of clips with novel motions."""
    if split in CLIPS or novel_of(split):
        return
    known = (*CLIPS, *others, *NOVEL, "held_out:swing", "swing+sway")
    raise InputError(
        f"The small world has no split {split!r}, one of {', '.join(known)} is wanted.{nearest(split, known)}"
    )


def novel_of(split: str) -> tuple[str, tuple[str, ...]] | None:
    """Returns the split and the novel motions that "SPLIT:MOTION" names, or "MOTION", which is of the train split, or
    "MOTION+MOTION", an object's and the camera's; None of anything else."""
    named, _, motions = split.rpartition(":")
    names = tuple(motions.split("+"))
    if named not in ("", *CLIPS) or not set(names) <= NOVEL.keys():
        return None
    of = [NOVEL[name].of_camera for name in names]
    return (named or "train", names) if len(set(of)) == len(of) else None


def draw(index: int, split: str = "train", alone: bool = False) -> Scene:
    """Draws what is in a clip.

    Args:
      index: its number, from 0 on; numbers go through all kinds of motion in turn.
      split: "train" or "held_out"; or, for one object that moves in a novel way, such as "held_out:swing", see
        `novel_of`.
      alone: one object, and one motion.
    """
    check_split(split)
    if found := novel_of(split):
        return _draw_novel(index, *found)
    seed = (list(CLIPS).index(split), index)
    rng = np.random.default_rng(seed)
    objects = _draw_objects(split, alone, rng)
    names = _draw_motions(index, split, len(objects), rng)
    for of in names.keys() - {CAMERA}:
        objects[of] = _fitted(objects[of], names[of], split, rng)
    motions, amounts = [], []
    for of in sorted(names):
        effect = motions_of(of)[names[of]]
        motions.append(Motion(of, names[of], effect))
        amounts.append(rng.uniform(*amount_range(of, effect)))
    return Scene(tuple(objects), tuple(motions), tuple(amounts), split, seed)


def _draw_objects(split: str, alone: bool, rng: np.random.Generator) -> list[Object]:
    """One object, or two of different colours on either side of the picture's middle."""
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
    return objects


def _draw_motions(index: int, split: str, count: int, rng: np.random.Generator) -> dict[int, str]:
    """Names of motions, by the number of the object that has it, or `CAMERA`."""
    kind = IN_TURN[split][index % len(IN_TURN[split])]
    mover = int(rng.integers(count))
    if kind in CAMERA_MOTIONS:
        return {CAMERA: kind}
    names = {mover: kind}
    if count == 2 and rng.random() < 0.75:
        names[1 - mover] = str(rng.choice([name for name, effect in MOTIONS.items() if not effect.clockwise]))
    return names


def _fitted(thing: Object, motion: str, split: str, rng: np.random.Generator) -> Object:
    """An object of the size that its motion shows best at; what rotates gets a shape on which that can be seen."""
    larger = LARGER.get(motion.split()[0], 1)
    thing = thing._replace(radius=larger * thing.radius)
    if not MOTIONS[motion].clockwise:
        return thing
    shapes = [shape for colour, shape in PAIRS[split] if colour == thing.colour and shape not in ROUND]
    shape = thing.shape if thing.shape in shapes else str(rng.choice(shapes))
    middle = (thing.middle[0] / larger, thing.middle[1] / larger)  # and nearer to the picture's
    return thing._replace(shape=shape, middle=middle)


def _draw_novel(index: int, split: str, names: tuple[str, ...]) -> Scene:
    """One object, which or whose camera moves as the bundled model was not taught, or both do."""
    seed = (list(CLIPS).index(split), 1 + list(NOVEL).index(names[0]), index)
    rng = np.random.default_rng(seed)
    objects, motions, amounts = _draw_objects(split, True, rng), [], []
    for novel in (NOVEL[name] for name in names):
        motions.append(Motion(CAMERA if novel.of_camera else 0, novel.verb, Effect()))
        amounts.append(rng.uniform(*novel.amounts))
    return Scene(tuple(objects), tuple(motions), tuple(amounts), split, seed)
