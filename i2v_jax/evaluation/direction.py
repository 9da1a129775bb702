"""The direction in which things move in a video: the camera, and each object of the first frame.

The video's optical flow shows it, or a comparison to renderings of what else could have happened. A flow is fitted by
a similarity, v(z) = shift + rate z with points z = x + iy; the rate's real part is growth, its imaginary part turns
clockwise. Objects are followed from where they are in the first frame.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Complex, Float

from i2v_jax.data.small_world.drawing import render, truth
from i2v_jax.data.small_world.paths import BY_VERB
from i2v_jax.data.small_world.scene import CAMERA, STILL, Effect, Motion, Scene, motions_of
from i2v_jax.evaluation.flow import Flows, Video

LEAST = 1 / 64  # sides of the picture: what moves less over a whole video stands still
LEAST_CHANGE = 0.1  # of a rendering's: a video that changes less along it stands still


class Movement(NamedTuple):
    """How a thing has moved by the end of a video.

    Attributes:
      right, down: of its middle, in sides of the picture.
      clockwise, growth: in radians, and the logarithm of a factor; both times the thing's radius (root mean square),
        so that they are in sides of the picture too.
    """

    right: float
    down: float
    clockwise: float
    growth: float


def movements(flows: Flows, regions: Bool[np.ndarray, "o h w"]) -> list[Movement]:
    """Measures the movements of objects and of the camera.

    Args:
      flows: from each frame to the next, pixels.
      regions: where each object is in the first frame; later ones are in front.

    Returns:
      For each object, its own movement: what is left without the camera's. Last the background's, which is the
      camera's, about the picture's middle (so `CAMERA` = -1 is its index).
    """
    height, width = flows.shape[1:3]
    side = min(height, width)
    y, x = np.mgrid[:height, :width] - np.array([(height - 1) / 2, (width - 1) / 2])[:, None, None]
    points = x + 1j * y
    middles = np.array([points[region].mean() if region.any() else 0 for region in regions])
    whole = np.ones((height, width), bool)
    radii = [_radius(points[region]) if region.any() else 0 for region in (*regions, whole)]
    scale, shift = np.ones(len(regions), complex), np.zeros(len(regions), complex)  # where objects have got to
    moved, turned = np.zeros(len(regions) + 1, complex), np.zeros(len(regions) + 1, complex)
    for flow in flows[..., 0] + 1j * flows[..., 1]:
        masks = [_carried(region, points, a, b) for region, a, b in zip(regions, scale, shift)]
        free = ~np.any(masks, 0) if masks else whole
        offset, rate = _fit(points, flow, free)
        moved[CAMERA] += offset
        turned[CAMERA] += np.log(1 + rate)
        camera = offset + rate * points
        for i, mask in enumerate(masks):
            own = mask & ~np.any(masks[i + 1 :], 0) if masks[i + 1 :] else mask
            own_offset, own_rate = _fit(points, flow - camera, own)
            middle = scale[i] * middles[i] + shift[i]
            moved[i] += own_offset + own_rate * middle
            turned[i] += np.log(1 + own_rate)
            step = offset + own_offset, 1 + rate + own_rate
            scale[i], shift[i] = step[1] * scale[i], step[1] * shift[i] + step[0]
    return [
        Movement(m.real / side, m.imag / side, t.imag * r / side, t.real * r / side)
        for m, t, r in zip(moved, turned, radii)
    ]


def nearest_motion(movement: Movement, names: Mapping[str, Effect]) -> str:
    """Returns which of some motions a movement is most like, or `STILL`.

    That is the one whose effect, as a direction in the space of movements, the movement goes along the farthest.
    """
    along = {name: np.dot(movement, effect) / np.linalg.norm(effect) for name, effect in names.items()}
    best = max(along, key=along.get)
    return best if along[best] >= LEAST else STILL


def motions_by_flow(
    flows: Flows, regions: Bool[np.ndarray, "o h w"], motions: Sequence[Motion], scene: Scene | None = None
) -> list[tuple[str, str]]:
    """Returns the name of each motion of a caption, and of what the video shows in its place.

    Args:
      flows: from each frame to the next, pixels.
      regions: where each object is in the first frame.
      motions: of the caption.
      scene: of the caption. Where its motions are novel, which come back to where they began or turn things over, the
        one is shown whose true flow the video's goes along the farthest, as `motions_by_rendering` compares videos.
    """
    if scene is not None and any(motion.name in BY_VERB for motion in motions):
        times = np.linspace(0, 1, len(flows) + 1)
        return _most_alike(scene, np.asarray(flows, np.float32), lambda it: truth(it, times, flows.shape[1])[0])
    shown = movements(flows, regions)
    return [(motion.name, nearest_motion(shown[motion.of], motions_of(motion.of))) for motion in motions]


def motions_by_rendering(video: Video, scene: Scene) -> list[tuple[str, str]]:
    """Returns the name of each motion of a caption, and of that whose rendering in its place a video is most like.

    That is the one whose change of the standing scene, as a direction in the space of videos, the video's change goes
    along the farthest; or `STILL`. A shape that loses its form as it goes, which flow takes for turning and shrinking,
    still counts where it is.

    Args:
      video: from the scene's first frame on.
      scene: of the caption.
    """
    times = np.linspace(0, 1, len(video))
    return _most_alike(scene, video, lambda other: render(other, times, video.shape[1]).astype(np.float32))


def _most_alike(
    scene: Scene, shown: Float[np.ndarray, "f h w c"], make: Callable[[Scene], Float[np.ndarray, "f h w c"]]
) -> list[tuple[str, str]]:
    """The name of each motion of a scene, and of the alternative whose change of what stands still is most like."""
    named = []
    for number, prompted in enumerate(scene.motions):
        made = {name: make(other) for name, other in scene.alternatives(number).items()}
        still = made.pop(STILL)
        sizes = {name: np.linalg.norm(other - still) for name, other in made.items()}
        along = {name: np.vdot(shown - still, other - still) / sizes[name] for name, other in made.items()}
        best = max(along, key=along.get)
        named.append((prompted.name, best if along[best] >= LEAST_CHANGE * sizes[best] else STILL))
    return named


def direction_accuracy(named: Sequence[tuple[str, str]]) -> float:
    """Share of the motions of captions that videos show; 0 to 1.

    Args:
      named: motions of the caption and of the video, see `motions_by_flow` and `motions_by_rendering`.
    """
    return float(np.mean([prompted == shown for prompted, shown in named]))


def _radius(points: Complex[np.ndarray, "n"]) -> float:
    return float(np.sqrt(np.mean(np.abs(points - points.mean()) ** 2)))


def _carried(
    region: Bool[np.ndarray, "h w"], points: Complex[np.ndarray, "h w"], scale: complex, shift: complex
) -> Bool[np.ndarray, "h w"]:
    """Moves a region by z -> scale z + shift."""
    height, width = region.shape
    source = (points - shift) / scale
    row = np.round(source.imag + (height - 1) / 2).astype(int)
    column = np.round(source.real + (width - 1) / 2).astype(int)
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    return inside & region[np.where(inside, row, 0), np.where(inside, column, 0)]


def _fit(
    points: Complex[np.ndarray, "h w"], flow: Complex[np.ndarray, "h w"], region: Bool[np.ndarray, "h w"]
) -> tuple[complex, complex]:
    """Fits offset + rate z by reweighted least squares, which outliers do not pull (Geman and McClure's weights)."""
    z, v = points[region], flow[region]
    if len(z) < 3:
        return 0j, 0j
    weights = np.ones(len(z))
    for _ in range(8):
        total = weights.sum()
        middle, mean = (weights * z).sum() / total, (weights * v).sum() / total
        rate = (weights * (z - middle).conj() * (v - mean)).sum() / (weights * np.abs(z - middle) ** 2).sum()
        offset = mean - rate * middle
        error = np.abs(v - offset - rate * z)
        weights = 1 / (1 + (error / max(0.05, 1.5 * np.median(error))) ** 2) ** 2
    return offset, rate
