"""Renders scenes of the small world: frames, and the flow, the visibility and the masks that are true of them.

Everything moves by affine maps, 3x3 matrices, from a layer's own coordinates to pixels: the flow is a product of them,
not an estimate. Layers are the background, and each object on a square of its own.
"""

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import skimage.data
from jaxtyping import Bool, Float, Float32, UInt8
from PIL import Image
from skimage import color

from i2v_jax.data.small_world.paths import BY_VERB, Maps, Times, affine
from i2v_jax.data.small_world.scene import CAMERA, COLOURS, FRAMES, PHOTOGRAPHS, SIZE, Motion, Object, Scene
from i2v_jax.data.small_world.scene import draw as draw_scene

WORLD = 1.8  # side of the background: enough for every pan and zoom
LOCAL = 3.5  # side of a shape's own square, in which its area is pi


class RenderedClip(NamedTuple):
    """A rendered clip with all that is true of it.

    Attributes:
      video: RGB.
      flow: (right, down) in pixels from frame t to t + 1: what is at (x, y) in frame t is at (x, y) + flow[t, y, x] in
        frame t + 1.
      visible: whether what a pixel's middle shows in frame t is in frame t + 1 within the picture (between the middles
        of its outermost pixels) and behind nothing.
      masks: where each object shows; later objects are in front of earlier ones. The rest is background.
      scene: what was rendered.
    """

    video: UInt8[np.ndarray, "f h w 3"]
    flow: Float32[np.ndarray, "f-1 h w 2"]
    visible: Bool[np.ndarray, "f-1 h w"]
    masks: Bool[np.ndarray, "o f h w"]
    scene: Scene

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
        camera = CAMERA in (motion.of for motion in self.motions)
        return ~self.masks.any((0, 1)) & (self.video == self.video[0]).all((0, -1)) & (not camera)


def make(index: int, split: str = "train", frames: int = FRAMES, size: int = SIZE) -> RenderedClip:
    """Makes a clip.

    Args:
      index, split: see `scene.draw`.
      frames: over which the motions are spread out evenly.
      size: pixels of a side.
    """
    return render_clip(draw_scene(index, split), frames, size)


def render_clip(scene: Scene, frames: int, size: int) -> RenderedClip:
    """Renders a scene, its motions spread out evenly over frames, with all that is true of it."""
    times = np.linspace(0, 1, frames)
    return RenderedClip(render(scene, times, size), *truth(scene, times, size), scene)


def render(scene: Scene, times: Times, size: int) -> UInt8[np.ndarray, "f h w 3"]:
    """Renders frames at times from 0 to 1.

    A pixel shows an object by the share of it that the object covers, taken from the distance to the object's edge.
    """
    background, *objects = layer_maps(scene, times, size)
    image = draw_background(scene, size)
    if CAMERA in (motion.of for motion in scene.motions):
        video = _view(image, WORLD, background, size)
    else:
        video = _view(image, WORLD, background[:1], size).repeat(len(times), 0)
    for number, (thing, maps) in enumerate(zip(scene.objects, objects)):
        scale = np.sqrt(np.abs(np.linalg.det(maps)))[:, None, None]  # pixels of a radius
        share = np.clip(0.5 - scale * _sample(edge_distance(thing.shape), LOCAL, maps, size, np.inf), 0, 1)
        where = share > 0
        colours = _sample(draw_sprite(scene, number, size), LOCAL, maps, size)[where]
        video[where] += share[where][:, None] * (colours - video[where])
    return np.round(video).astype(np.uint8)


def truth(
    scene: Scene, times: Times, size: int
) -> tuple[Float32[np.ndarray, "f-1 h w 2"], Bool[np.ndarray, "f-1 h w"], Bool[np.ndarray, "o f h w"]]:
    """Returns flow, visible and masks, see `RenderedClip`."""
    layers = layer_maps(scene, times, size)
    steps = [maps[1:] @ np.linalg.inv(maps[:-1]) for maps in layers]  # pixels of frame t to those of frame t + 1
    masks = np.zeros((len(scene.objects), len(times), size, size), bool)
    hidden = np.zeros((len(layers), len(times) - 1, size, size), bool)  # what each layer has there, in frame t + 1
    for number, thing in enumerate(scene.objects):
        inside = _sample(edge_distance(thing.shape), LOCAL, layers[number + 1], size, np.inf) < 0
        masks[:number] &= ~inside
        masks[number] = inside
        for behind in range(number + 1):
            ahead = np.linalg.inv(steps[behind]) @ layers[number + 1][1:]
            hidden[behind] |= _sample(edge_distance(thing.shape), LOCAL, ahead, size, np.inf) < 0
    y, x = np.mgrid[:size, :size] + 0.5
    flow, visible = _layer_flow(steps[0], x, y), ~hidden[0]
    for number, step in enumerate(steps[1:]):
        here = masks[number, :-1]
        flow[here], visible[here] = _layer_flow(step, x, y)[here], ~hidden[number + 1][here]
    end = np.stack([x, y], -1) + flow
    return flow, visible & ((end >= 0.5) & (end <= size - 0.5)).all(-1), masks


def _layer_flow(step: Maps, x, y) -> Float32[np.ndarray, "f-1 h w 2"]:
    """How far a layer's maps from frame to frame carry each pixel."""
    (xx, xy, dx), (yx, yy, dy) = np.moveaxis(step[:, :2, :, None, None], 0, 2)
    return np.stack([(xx - 1) * x + xy * y + dx, yx * x + (yy - 1) * y + dy], -1).astype(np.float32)


def layer_maps(scene: Scene, times: Times, size: int) -> list[Maps]:
    """From the background's and each object's own coordinates to pixels."""
    moves = {motion.of: _move(motion, amount, times) for motion, amount in zip(scene.motions, scene.amounts)}
    still = np.broadcast_to(np.eye(3), (len(times), 3, 3))
    camera = affine((size / 2, size / 2), 0, size) @ moves.get(CAMERA, still)
    return [camera] + [
        camera @ affine(thing.middle, 0, 1) @ moves.get(i, still) @ affine((0, 0), thing.angle, thing.radius)
        for i, thing in enumerate(scene.objects)
    ]


def _move(motion: Motion, amount: float, times: Times) -> Maps:
    """What a motion has done at each time: straight at one speed, round the middle, or by a factor; or its own path."""
    if motion.name in BY_VERB:
        return BY_VERB[motion.name].path(amount, times)
    effect = motion.effect
    direction = np.array([effect.right, effect.down]) / max(1, math.hypot(effect.right, effect.down))
    return affine(
        amount * times[:, None] * direction, amount * effect.clockwise * times, amount ** (effect.growth * times)
    )


def _sample(image: Image.Image, side: float, maps: Maps, size: int, outside: float = 0) -> np.ndarray:
    """Puts an image that covers a square of a side, round the origin, into frames; bilinear."""
    texels = affine((image.width / 2, image.height / 2), 0, image.width / side) @ np.linalg.inv(maps)
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
    texels = affine((image.width / 2, image.height / 2), 0, image.width / side) @ np.linalg.inv(maps)
    frames = np.empty((len(maps), size, size, 3), np.float32)
    for frame, to_texels in zip(frames, texels):
        box = (to_texels @ [[0, size], [0, size], [1, 1]])[:2].T.flat  # left, top, right, bottom
        frame[:] = image.resize((size, size), Image.Resampling.BICUBIC, tuple(box))
    return frames


def draw_background(scene: Scene, size: int) -> Image.Image:
    """The world behind all objects, two texels to a pixel, without detail finer than a pixel."""
    rng, side = np.random.default_rng((*scene.seed, 0)), math.ceil(WORLD * size)
    dark, light = (_tint(rng, value) for value in ((0.2, 0.5), (0.65, 1)))
    kind = rng.choice(["photograph", "photograph", "noise", "gradient"])
    if kind == "photograph":
        picture = _crop(str(rng.choice(PHOTOGRAPHS[scene.split])), side, rng, (0.85, 1))
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


def draw_sprite(scene: Scene, number: int, size: int) -> Image.Image:
    """An object's colours over its own square, two texels to a pixel of the first frame.

    One half is darker, so that even a shape of many symmetries shows which way it turns.
    """
    thing, rng = scene.objects[number], np.random.default_rng((*scene.seed, 1 + number))
    side = math.ceil(2 * LOCAL * thing.radius * size)
    full = np.array(COLOURS[thing.colour])
    tone = _mix(0.75 * full, full + 0.2 * (1 - full), _texture(thing.texture, side, rng))
    depth = -np.asarray(edge_distance(thing.shape).resize((side, side), Image.Resampling.BILINEAR))
    rim = np.clip((depth - 0.06) / 0.1, 0, 1)
    lit = np.clip(0.5 + _grid(side, LOCAL, rng.uniform(0, 2 * math.pi))[0] / 0.25, 0, 1)
    light = (0.45 + 0.55 * rim) * (0.45 + 0.55 * lit)
    return Image.fromarray(np.round(np.asarray(tone) * light[..., None]).astype(np.uint8))


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
def photograph(name: str) -> Image.Image:
    return Image.fromarray(getattr(skimage.data, name)())


def _crop(name: str, size: int, rng: np.random.Generator, share: tuple[float, float]) -> Image.Image:
    """Draws a square of a photograph, of a share of its shorter side, perhaps mirrored, and scales it."""
    picture = photograph(name)
    side = rng.uniform(*share) * min(picture.size)
    left, top = rng.uniform(0, picture.width - side), rng.uniform(0, picture.height - side)
    box = (left, top, left + side, top + side)
    crop = picture.resize((size, size), Image.Resampling.BOX, box, reducing_gap=2)
    return crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else crop


@functools.cache
def edge_distance(shape: str) -> Image.Image:
    """How far a point is outside of a shape's edge, or inside where negative, over the shape's own square."""
    points = _grid(192, LOCAL)
    if shape == "disc":
        distance = np.hypot(*points) - 1
    elif shape == "ring":
        distance = np.abs(np.hypot(*points) - 0.87) - 0.29
    else:
        distance = _distance_to_polygon(points, _corners(shape))
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


def _distance_to_polygon(points: Float[np.ndarray, "2 h w"], corners: Float[np.ndarray, "n 2"]) -> np.ndarray:
    px, py = points
    nearest_edge, inside = np.inf, False
    for (ax, ay), (bx, by) in zip(corners, np.roll(corners, -1, 0)):
        ex, ey, wx, wy = bx - ax, by - ay, px - ax, py - ay
        along = np.clip((wx * ex + wy * ey) / (ex * ex + ey * ey), 0, 1)
        nearest_edge = np.minimum(nearest_edge, np.hypot(wx - along * ex, wy - along * ey))
        inside ^= ((ay > py) != (by > py)) & ((wx * ey - wy * ex < 0) != (by > ay))
    return np.where(inside, -nearest_edge, nearest_edge)
