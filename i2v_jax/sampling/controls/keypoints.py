"""Keypoints of people out of files: COCO and OpenPose JSON, MMPose's and DWPose's, arrays; one frame a file or many.

Whatever the skeleton, a person here has the 18 points of OpenPose's COCO model, and hands and face where given.
"""

import json
import math
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from i2v_jax.errors import InputError
from i2v_jax.hub import read_text
from i2v_jax.sampling.controls.numbered import check_numbers, key

SUFFIXES = (".json", ".npz", ".npy")
Points = Float[np.ndarray, "n 3"]  # x, y, confidence; 0 where a point is missing

LEFT_SHOULDER, RIGHT_SHOULDER, NECK = 5, 6, 17  # of COCO; the neck is put behind its 17 points
SKELETONS = {  # number of points: which of them are OpenPose's 18
    17: (0, NECK, 6, 8, 10, 5, 7, 9, 12, 14, 16, 11, 13, 15, 2, 1, 4, 3),
    18: tuple(range(18)),
    25: (0, 1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18),  # OpenPose's BODY_25: hips' middle and feet
}
WHOLE_BODIES = {  # number of points: those of the body, where the face is, where the hands are
    133: (17, slice(23, 91), (slice(91, 112), slice(112, 133))),  # COCO-WholeBody
    134: (18, slice(24, 92), (slice(92, 113), slice(113, 134))),  # DWPose's, with a neck, in OpenPose's order
}
KNOWN = "17 (COCO), 18 (OpenPose, DWPose), 25 (BODY_25), 133 and 134 (whole bodies)"
HAND, FACES = 21, (68, 70)
OPENPOSE_HANDS = ("hand_left_keypoints_2d", "hand_right_keypoints_2d")


class Person(NamedTuple):
    """OpenPose's 18 points, hands of 21, and a face of 68 or 70, or of none."""

    body: Points
    hands: tuple[Points, ...] = ()
    face: Points = np.zeros((0, 3))


class Pose(NamedTuple):
    """The people of a frame; the size of the picture in which their points are, where the file tells."""

    people: tuple[Person, ...]
    height: float | None = None
    width: float | None = None


def read_poses(path: Path) -> list[Pose]:
    """Reads the poses of one frame or of many.

    Raises:
      InputError: no file of a known form, another skeleton, or values that are no numbers; names the file.
    """
    try:
        poses = _of_arrays(path) if path.suffix.lower() != ".json" else _of_document(_json(path))
    except InputError as error:
        raise InputError(f"{str(path)!r}: {error}") from None
    except (AttributeError, IndexError, KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise InputError(
            f"{str(path)!r} has not the form of keypoints that its names promise ({type(error).__name__}: {error}). "
            "Wanted: COCO's, OpenPose's, MMPose's or DWPose's."
        ) from None
    if not poses:
        raise InputError(f"{str(path)!r} has no frames.")
    for side in (side for pose in poses for side in (pose.height, pose.width) if side is not None):
        if not isinstance(side, int | float) or not 1 <= side < math.inf:
            raise InputError(f"{str(path)!r}: {side!r} is no height or width of a picture in pixels.")
    return poses


def _json(path: Path) -> Any:
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise InputError(f"no JSON in line {error.lineno}: {error.msg}. Write it again.") from None
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}.") from None


# JSON.


def _of_document(document: Any) -> list[Pose]:
    if isinstance(document, dict):
        if "annotations" in document:
            return _of_coco(document["annotations"], document.get("images", []))
        for several in ("instance_info", "frames"):
            if several in document:
                return _of_document(document[several])
        return [_frame(document, 0)]
    if not isinstance(document, list):
        raise InputError("no keypoints; wanted COCO's, OpenPose's, MMPose's or DWPose's JSON.")
    if document and all(isinstance(one, dict) and "keypoints" in one for one in document):
        if "image_id" in document[0]:
            return _of_coco(document, [])
        return [Pose(tuple(_person(one, 0) for one in document))]
    return [_frame(one, number) for number, one in enumerate(document)]


def _of_coco(annotations: Sequence[dict], images: Sequence[dict]) -> list[Pose]:
    """Frames are in the order of the images' ids; without a list of images, ids follow each other in even steps."""
    people: dict[Any, list[Person]] = {image["id"]: [] for image in images}
    sizes = {image["id"]: (image.get("height"), image.get("width")) for image in images}
    for annotation in annotations:
        if "image_id" not in annotation or "keypoints" not in annotation:
            raise InputError("an annotation without 'image_id' or 'keypoints'; wanted COCO's keypoints.")
        image = annotation["image_id"]
        if images and image not in people:
            raise InputError(f"an annotation of image_id {image!r}, which is not among its images.")
        people.setdefault(image, []).append(_person(annotation, f"of image_id {image!r}"))
    ids = sorted(people, key=_order)
    if not images and all(isinstance(image, str) for image in ids):
        check_numbers("a list of image_ids that", ids, "Add 'images', which lists every frame, or its keypoints.")
    steps = [after - before for before, after in zip(ids, ids[1:])] if all(isinstance(i, int) for i in ids) else []
    if not images and steps and max(steps) > min(steps):
        lacking = ids[int(np.argmax(steps))] + min(steps)
        raise InputError(f"image_id {lacking} is missing; add 'images', which lists every frame, or its keypoints.")
    return [Pose(tuple(people[image]), *sizes.get(image, ())) for image in ids]


def _order(image: Any) -> tuple[bool, Any]:
    return (True, key(image)) if isinstance(image, str) else (False, image)


def _frame(frame: Any, number: int | str) -> Pose:
    if not isinstance(frame, dict):
        raise InputError(f"frame {number} is no object with keypoints.")
    size = frame.get("canvas_height"), frame.get("canvas_width")
    if "people" in frame:
        return Pose(tuple(_of_openpose(one, number) for one in frame["people"]), *size)
    if "bodies" in frame:
        return Pose(_of_dwpose(frame, number), *size)
    if "instances" in frame or "keypoints" in frame:
        return Pose(tuple(_person(one, number) for one in frame.get("instances", [frame])), *size)
    raise InputError(
        f"frame {number} has {', '.join(map(repr, frame)) or 'nothing'}; wanted 'people' (OpenPose), 'keypoints' "
        "(COCO), 'instances' (MMPose) or 'bodies' (DWPose)."
    )


def _of_openpose(person: dict, number: int | str) -> Person:
    def part(name: str) -> Points:
        return _points(_triplets(person.get(name) or [], number), None, number)

    if not person.get("pose_keypoints_2d"):
        raise InputError(f"frame {number} has a person without 'pose_keypoints_2d'.")
    hands = [hand for hand in map(part, OPENPOSE_HANDS) if len(hand)]
    return _whole(_body(part("pose_keypoints_2d"), number), hands, part("face_keypoints_2d"), number)


def _triplets(values: Sequence[float], number: int | str) -> list[Sequence[float]]:
    if len(values) % 3:
        raise InputError(f"frame {number}: {len(values)} numbers, which are no triples of x, y and confidence.")
    return [values[i : i + 3] for i in range(0, len(values), 3)] or np.zeros((0, 3))


def _of_dwpose(frame: dict, number: int | str) -> tuple[Person, ...]:
    """Bodies are rows of numbers of candidates, -1 for none; hands and faces stand beside them."""
    bodies = frame["bodies"]
    candidates = _points(bodies["candidate"], None, number)
    rows = np.atleast_2d(np.asarray(bodies["subset"], float))[:, :18]
    if rows.size and (rows.shape[1] != 18 or not (np.abs(rows) < max(2, len(candidates))).all()):
        raise InputError(f"frame {number}: 'subset' {rows.shape} does not number 'candidate' {candidates.shape}.")
    padded = np.concatenate([candidates, np.zeros((1, 3))])  # number -1 is the missing one
    bodies = [padded[np.maximum(row.astype(int), -1)] for row in rows if row.size]
    hands = [_points(hand, None, number) for hand in frame.get("hands") or ()]
    faces = [_points(face, None, number) for face in frame.get("faces") or ()]
    people = []
    for i in range(max(len(bodies), (len(hands) + 1) // 2, len(faces))):  # hands and faces may be of more people
        body = bodies[i] if i < len(bodies) else np.zeros((18, 3))
        face = faces[i] if i < len(faces) else np.zeros((0, 3))
        people.append(_whole(body, hands[2 * i : 2 * i + 2], face, number))
    return tuple(people)


def _person(person: dict, number: int | str) -> Person:
    if not isinstance(person, dict) or "keypoints" not in person:
        raise InputError(f"frame {number} has a person without 'keypoints'.")
    points = _points(person["keypoints"], person.get("keypoint_scores"), number)
    points[:, 2] = np.minimum(points[:, 2], 1)  # COCO's flag: 0 not labelled, 1 hidden, 2 visible
    return _split(points, number)


# Arrays.


def _of_arrays(path: Path) -> list[Pose]:
    """Keypoints [frames, people, points, 2 or 3], people left out where there is one; perhaps scores without the last
    axis. Or DWPose's bodies [frames, people, 18, .], hands [frames, hands, 21, .] and faces [frames, people, 68, .]."""
    try:
        stored = np.load(path, allow_pickle=False)
        arrays = {"keypoints": stored} if isinstance(stored, np.ndarray) else {name: stored[name] for name in stored}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"no arrays of numbers ({error}). Pickled objects could run code: save arrays.") from None
    size = tuple(float(arrays.pop(name)) if name in arrays else None for name in ("height", "width"))
    if len(arrays) == 1:
        arrays = {"bodies" if "bodies" in arrays else "keypoints": next(iter(arrays.values()))}
    known = [name for name in ("keypoints", "bodies") if name in arrays]
    if not known:
        raise InputError(f"arrays {', '.join(arrays)}; wanted 'keypoints' (and 'scores'), or 'bodies'.")
    keypoints = _four_axes(arrays, known[0])
    scores = arrays.get("scores", arrays.get("keypoint_scores"))
    if scores is not None and scores.size != keypoints[..., 0].size:
        raise InputError(f"scores {scores.shape} are not one for each of the keypoints {keypoints.shape}.")
    scores = None if scores is None else scores.reshape(keypoints.shape[:-1])
    parts = {name: _four_axes(arrays, name) for name in ("hands", "faces") if name in arrays}
    for name, part in parts.items():
        if len(part) != len(keypoints):
            raise InputError(f"{name} of {len(part)} frames, and {known[0]} of {len(keypoints)}.")
    poses = []
    for number, people in enumerate(keypoints):
        read = [
            _split(_points(one, None if scores is None else scores[number, i], number), number)
            for i, one in enumerate(people)
        ]
        hands = [_points(hand, None, number) for hand in parts["hands"][number]] if "hands" in parts else []
        faces = [_points(face, None, number) for face in parts["faces"][number]] if "faces" in parts else []
        for i, person in enumerate(read):
            face = faces[i] if i < len(faces) else person.face
            read[i] = _whole(person.body, hands[2 * i : 2 * i + 2] or person.hands, face, number)
        poses.append(Pose(tuple(read), *size))
    return poses


def _four_axes(arrays: dict[str, np.ndarray], name: str) -> np.ndarray:
    array = arrays[name]
    array = array[:, None] if array.ndim == 3 else array
    if array.ndim != 4 or array.shape[-1] not in (2, 3) or array.dtype.kind not in "fiu":
        raise InputError(
            f"{name} is {arrays[name].dtype} {arrays[name].shape}; wanted numbers [frames, people, points, 2 or 3]."
        )
    return array


# Both.


def _points(values: Any, scores: Any, number: int | str) -> Points:
    """Points of nested or of flat lists. Missing ones, at (0, 0) or at -1, get confidence 0."""
    try:
        array = np.array(values, float)
        confidence = None if scores is None else np.array(scores, float).reshape(-1)
    except (TypeError, ValueError):
        raise InputError(f"frame {number}: keypoints that are no numbers, or not as many of each.") from None
    if not array.size:
        return np.zeros((0, 3))
    if array.ndim == 1:
        counts = {*SKELETONS, *WHOLE_BODIES, HAND, *FACES}
        each = next((each for each in (3, 2) if array.size % each == 0 and array.size // each in counts), None)
        if each is None:
            raise InputError(f"frame {number}: {array.size / 3:g} keypoints of x, y and confidence; known: {KNOWN}.")
        array = array.reshape(-1, each)
    if array.ndim != 2 or array.shape[1] not in (2, 3):
        raise InputError(f"frame {number}: keypoints {array.shape}; wanted [points, 2 or 3].")
    if confidence is None:
        confidence = array[:, 2] if array.shape[1] == 3 else np.ones(len(array))
    if len(confidence) != len(array):
        raise InputError(f"frame {number}: {len(confidence)} scores of {len(array)} keypoints.")
    array = np.column_stack([array[:, :2], confidence])
    if bad := np.flatnonzero(~np.isfinite(array).all(1)).tolist():
        raise InputError(
            f"frame {number}: keypoint {bad[0]} is not finite (of {len(bad)} such): {array[bad[0]].tolist()}. A "
            "missing point has confidence 0."
        )
    missing = (array[:, :2] == 0).all(1) | (array[:, :2] == -1).any(1)
    array[missing | (array[:, 2] <= 0)] = 0
    return array


def _split(points: Points, number: int | str) -> Person:
    if len(points) not in WHOLE_BODIES:
        return Person(_body(points, number))
    body, face, hands = WHOLE_BODIES[len(points)]
    return Person(_body(points[:body], number), tuple(points[hand] for hand in hands), points[face])


def _body(points: Points, number: int | str) -> Points:
    if len(points) not in SKELETONS:
        raise InputError(f"frame {number}: a skeleton of {len(points)} keypoints; known: {KNOWN}.")
    order = list(SKELETONS[len(points)])
    if len(points) == NECK:
        shoulders = points[[LEFT_SHOULDER, RIGHT_SHOULDER]]
        neck = shoulders.mean(0)
        neck[2] = shoulders[:, 2].min()
        points = np.concatenate([points, neck[None]])
    return points[order]


def _whole(body: Points, hands: Iterable[Points], face: Points, number: int | str) -> Person:
    hands = tuple(hands)
    for hand in hands:
        if len(hand) != HAND:
            raise InputError(f"frame {number}: a hand of {len(hand)} keypoints; wanted {HAND}.")
    if len(face) not in (0, *FACES):
        raise InputError(f"frame {number}: a face of {len(face)} keypoints; wanted {FACES[0]} or {FACES[1]}.")
    return Person(body, hands, face)
